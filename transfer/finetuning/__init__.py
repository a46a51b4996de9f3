"""Training from a start, and what of it is trained."""
