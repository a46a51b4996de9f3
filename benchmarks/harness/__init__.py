"""What all benchmarks share: rows of results, clocks, peaks of memory, tables and recipes."""
