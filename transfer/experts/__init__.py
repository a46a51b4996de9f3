"""Disagreement of human raters: measured, predicted from a network, and used to divide work."""
