"""Reading weights; the reader itself is `metalearn.models.weights`, which both command lines use."""

from metalearn.models.weights import (
    IMAGENET,
    PLAIN,
    Normalization,
    Pretrained,
    Weights,
    aliases,
    read,
)

__all__ = ["IMAGENET", "PLAIN", "Normalization", "Pretrained", "Weights", "aliases", "read"]
