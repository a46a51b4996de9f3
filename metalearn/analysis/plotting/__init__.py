"""Drawings of arrays: how they look, and how they become a file."""
