"""Networks: Conv4, ResNet12, MLP, PointerMLP, SmallViT, LanguageModel, and others by name.

`cifar_resnet` builds ResNets for small images; `sequence_model` makes a model of sequences of any
transformer. `DropBlock` is a layer.
"""

from .cifar_resnet import cifar_resnet
from .conv4 import Conv4
from .dropblock import DropBlock
from .language_model import LanguageModel
from .mlp import MLP
from .pointer_mlp import PointerMLP
from .resnet12 import ResNet12
from .transformer import sequence_model
from .vit import SmallViT

__all__ = [
    "MLP",
    "Conv4",
    "DropBlock",
    "LanguageModel",
    "PointerMLP",
    "ResNet12",
    "SmallViT",
    "cifar_resnet",
    "sequence_model",
]
