"""For those who come from learn2learn: its names on this engine, and its tasks and weights as ours
and back.
"""

from .adapters import copy_weights, from_learn2learn, to_learn2learn

__all__ = ["copy_weights", "from_learn2learn", "to_learn2learn"]
