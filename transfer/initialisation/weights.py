"""Reading weights, under the names of `metalearn.models.weights`."""

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
