"""For users of learn2learn: its names on this engine, and tasks and weights in both directions."""

from .adapters import copy_weights, from_learn2learn, to_learn2learn

__all__ = ["copy_weights", "from_learn2learn", "to_learn2learn"]
