"""The ground floor, which knows nothing of learning: files, processes, progress, options."""
