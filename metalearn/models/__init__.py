"""Networks: Conv4, ResNet12, MLP, SmallViT, LanguageModel and cifar_resnet, and others by name.

`sequence_model` makes a model of sequences of any transformer.
"""

from .cifar_resnet import cifar_resnet
from .conv4 import Conv4
from .language_model import LanguageModel
from .mlp import MLP
from .resnet12 import ResNet12
from .transformer import sequence_model
from .vit import SmallViT

__all__ = [
    "MLP",
    "Conv4",
    "LanguageModel",
    "ResNet12",
    "SmallViT",
    "cifar_resnet",
    "sequence_model",
]
