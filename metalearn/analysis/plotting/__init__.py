"""Drawings of arrays: their style, and how they are written to files."""
