"""learn2learn's networks, with the same functions and the same names and shapes of weights.

Weights can therefore be loaded in both directions.
"""

from metalearn.compat.learn2learn._missing import nearest

from . import cnn4, resnet12, wrn28
from .cnn4 import (
    CNN4,
    CNN4Backbone,
    ConvBase,
    ConvBlock,
    MiniImagenetCNN,
    OmniglotCNN,
    OmniglotFC,
    fc_init_,
    maml_init_,
)
from .pretrained import get_pretrained_backbone
from .resnet12 import ResNet12, ResNet12Backbone
from .wrn28 import WRN28, WRN28Backbone

__all__ = [
    "CNN4",
    "WRN28",
    "CNN4Backbone",
    "ConvBase",
    "ConvBlock",
    "MiniImagenetCNN",
    "OmniglotCNN",
    "OmniglotFC",
    "ResNet12",
    "ResNet12Backbone",
    "WRN28Backbone",
    "cnn4",
    "fc_init_",
    "get_pretrained_backbone",
    "maml_init_",
    "resnet12",
    "wrn28",
]

__getattr__ = nearest(__name__, __all__)
