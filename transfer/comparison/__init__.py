"""Strategies compared over seeds."""
