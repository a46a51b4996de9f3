"""Reading weights; the reader itself is `metalearn.weights`, which both command lines use."""

from metalearn.weights import IMAGENET, PLAIN, Normalization, Pretrained, Weights, aliases, read

__all__ = ["IMAGENET", "PLAIN", "Normalization", "Pretrained", "Weights", "aliases", "read"]
