"""Before and after the inner loop: what changes, where, and what it is worth."""
