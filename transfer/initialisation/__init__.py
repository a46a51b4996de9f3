"""What each layer starts from."""
