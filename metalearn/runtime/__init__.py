"""What the rest stands on and knows nothing of learning: files, processes, progress, options."""
