"""The network of an experiment, by its name."""

from __future__ import annotations

import torch
from torch import nn

from metalearn.models import registry
from metalearn.models.registry import TIMM, near, runs_code, torchvision_names
from metalearn.network.modes import evaluation_mode
from metalearn.network.norm import batch_statistics, frozen_statistics

from .presets import Preset

OWN = tuple(registry.OURS)


def is_registered(name: str) -> bool:
    """Whether a model is torchvision's or timm's."""
    return name not in OWN and not runs_code(name)


def build_network(preset: Preset, ways: int, channels: int, size: int, norm: str) -> nn.Module:
    """A network with fresh weights.

    Args:
        preset: its name, and the width and pooling of conv4.
        ways: outputs.
        channels: of the images.
        size: height and width of the images.
        norm: "batch" or "frozen" statistics; for conv4 and resnet12 also "group" and "none".

    Raises:
        ValueError: there is no such model, it has no statistics to freeze, or no such norm.
    """
    name = preset.model
    if norm in ("group", "none") and name not in ("conv4", "resnet12"):
        raise ValueError(
            f"norm={norm!r} is a variant of conv4 and resnet12, and the model is {name}; use"
            " norm='batch'"
        )
    if norm == "frozen" and name in OWN:
        raise ValueError(
            f"norm='frozen' keeps the statistics of pretrained weights, and {name} has none;"
            " use norm='batch'"
        )
    if name == "conv4":
        return registry.build(
            name, ways, channels, hidden=preset.hidden, size=size, pool=preset.pool, norm=norm
        )
    if name == "resnet12":
        return registry.build(name, ways, channels, norm=norm)
    if name == "smallvit":
        return registry.build(name, ways, channels, size=size)
    if name in OWN:
        # The CIFAR ResNets have running statistics, which a few-shot task has not.
        return batch_statistics(registry.build(name, ways, channels))
    if is_registered(name) and not name.startswith(TIMM) and name not in torchvision_names():
        hint = near(name, [*OWN, *torchvision_names()]) or "such as resnet18, vgg11 or vit_b_16"
        raise ValueError(
            f"there is no model {name!r}: {', '.join(OWN)}, a torchvision model ({hint}),"
            " timm:NAME, or package.module:callable"
        )
    # A network of torchvision's, timm's or the user's has running statistics.
    model = registry.build(name, ways, channels)
    return batch_statistics(model) if norm == "batch" else frozen_statistics(model)


def check_scores(model: nn.Module, name: str, channels: int, size: int, ways: int) -> None:
    """Raise ValueError if a model does not take the images or return a score for each way."""
    # Two black images are enough to see what it takes and returns.
    try:
        with torch.no_grad(), evaluation_mode([model]):
            output = model(torch.zeros(2, channels, size, size))
    except Exception as error:  # anything that the model's own code raises
        raise ValueError(
            f"{name} does not take images of {channels} channels and {size}x{size} pixels"
            f" ({str(error).splitlines()[0]}); try another --size (224 for most of torchvision) or"
            " --channels"
        ) from error
    kind = type(output).__name__
    if isinstance(output, torch.Tensor):
        if output.shape == (2, ways):
            return
        kind = str(tuple(output.shape))
    raise ValueError(
        f"{name} returns {kind} for 2 images, not one score for each of {ways} ways (2, {ways});"
        " choose another model"
    )
