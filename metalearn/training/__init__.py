"""The outer loop, and what a checkpoint of it stores."""

from .checkpoints import restore
from .loop import Curve, meta_train

__all__ = ["Curve", "meta_train", "restore"]
