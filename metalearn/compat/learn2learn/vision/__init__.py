"""learn2learn's names for vision: models, data sets and task sets."""

from metalearn.compat.learn2learn._missing import nearest

from . import benchmarks, datasets, models, transforms

__all__ = ["benchmarks", "datasets", "models", "transforms"]

__getattr__ = nearest(__name__, __all__)
