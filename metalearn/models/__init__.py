"""Networks: Conv4, ResNet12, MLP, PointerMLP, SmallViT, cifar_resnet, and others by name."""

from .cifar_resnet import cifar_resnet
from .conv4 import Conv4
from .mlp import MLP
from .pointer_mlp import PointerMLP
from .resnet12 import ResNet12
from .vit import SmallViT

__all__ = ["MLP", "Conv4", "PointerMLP", "ResNet12", "SmallViT", "cifar_resnet"]
