"""Networks: Conv4, ResNet12, MLP, SmallViT and cifar_resnet, and any other by its name."""

from .cifar_resnet import cifar_resnet
from .conv4 import Conv4
from .mlp import MLP
from .resnet12 import ResNet12
from .vit import SmallViT

__all__ = ["MLP", "Conv4", "ResNet12", "SmallViT", "cifar_resnet"]
