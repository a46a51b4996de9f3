"""learn2learn's names on this engine: scripts for learn2learn run unchanged.

They only need `import metalearn.compat.learn2learn as l2l`. It has the names that learn2learn's
examples for vision, regression and hypergradients use; any other raises an error with the nearest
name, or with a replacement. Batch norm with running statistics is accepted, as in learn2learn: all
clones update the statistics of the one network.
"""

from . import algorithms, data, gym, nn, optim, text, utils, vision
from ._missing import nearest
from .utils import (
    accuracy,
    clone_module,
    clone_named_parameters,
    clone_parameters,
    detach_module,
    magic_box,
    update_module,
)

__all__ = [
    "accuracy",
    "algorithms",
    "clone_module",
    "clone_named_parameters",
    "clone_parameters",
    "data",
    "detach_module",
    "gym",
    "magic_box",
    "nn",
    "optim",
    "text",
    "update_module",
    "utils",
    "vision",
]

__getattr__ = nearest(__name__, __all__, instead=utils.INSTEAD)
