"""Networks: Conv4, ResNet12 and MLP, and any other by its name."""

from .conv4 import Conv4
from .mlp import MLP
from .resnet12 import ResNet12

__all__ = ["MLP", "Conv4", "ResNet12"]
