"""The published backbones of learn2learn, read from files."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from metalearn.compat.learn2learn._missing import nearest

from .cnn4 import CNN4Backbone
from .resnet12 import ResNet12Backbone
from .wrn28 import WRN28Backbone

PUBLISHED = {
    ("mini-imagenet", "resnet12"): "25u1gtp5.pth",
    ("mini-imagenet", "wrn28"): "m8vz9plq.pth",
    ("tiered-imagenet", "resnet12"): "126od68s.pth",
    ("tiered-imagenet", "wrn28"): "2w8u50q4.pth",
    ("cifar-fs", "cnn4"): "2mbq7efr.pth",
    ("fc100", "cnn4"): "w02f5vab.pth",
}


def get_pretrained_backbone(
    model: str,
    dataset: str,
    spec: str = "default",
    root: str | os.PathLike[str] = "~/data",
    download: bool = False,
) -> nn.Module:
    """A backbone with weights that learn2learn's authors published, trained by supervision.

    Args:
        model: "cnn4", "resnet12" or "wrn28".
        dataset: "mini-imagenet", "tiered-imagenet", "cifar-fs" or "fc100".
        spec: "default" or "supervised", which are the same weights.
        root: the folder that holds `pretrained_models/DATASET/MODEL.pth`.
        download: whether a missing file may be downloaded.

    Raises:
        ValueError: if there are no such weights.
        FileNotFoundError: if the file is missing; the message has its address.
    """
    if spec not in ("default", "supervised"):
        raise ValueError(f"there are no weights spec={spec!r}; use 'default'")
    if (dataset, model) not in PUBLISHED:
        pairs = ", ".join(f"{name} of {data}" for data, name in PUBLISHED)
        raise ValueError(f"there are no weights of {model!r} for {dataset!r}; there are {pairs}")
    path = Path(root).expanduser() / "pretrained_models" / dataset / f"{model}.pth"
    address = f"https://zenodo.org/record/5651278/files/{PUBLISHED[dataset, model]}"
    if not path.exists():
        if not download:
            raise FileNotFoundError(
                f"there is no file {path}: put {address} there, or pass download=True"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path))
    network = _BACKBONES[model]()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


_BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "cnn4": CNN4Backbone,
    # Trained without the average: 16,000 features.
    "resnet12": lambda: ResNet12Backbone(avg_pool=False),
    "wrn28": WRN28Backbone,
}

__getattr__ = nearest(__name__, ["get_pretrained_backbone"])
