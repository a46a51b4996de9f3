"""Images and labels in memory, by name or path."""
