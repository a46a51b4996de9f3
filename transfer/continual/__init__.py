"""Tasks learned one after another: what is forgotten, in which layers, and what prevents it."""
