"""Questions asked of networks: layers compared, maps, seeds, probes."""
