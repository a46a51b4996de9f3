"""Networks by name: ours, torchvision's, timm's, and any that a user's own code builds."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from .cifar_resnet import CifarResNet, cifar_resnet
from .conv4 import Conv4
from .resnet12 import ResNet12
from .vit import SmallViT

TIMM = "timm:"
# Far more than any head has: a larger number is a mistake, or a file made to fill the memory.
MOST_OUTPUTS = 10**8
Builder = Callable[..., nn.Module]  # called with outputs, channels, and options by name
DEPTHS = (20, 32, 44, 56, 110)  # of the CIFAR ResNets of He et al. 2016, table 6


def _small_vit(outputs: int, channels: int = 3, **options: Any) -> SmallViT:
    return SmallViT(outputs, channels=channels, **options)


def _cifar_resnet(depth: int, outputs: int, channels: int = 3, width: int = 1) -> CifarResNet:
    return cifar_resnet(depth, width, outputs, channels)


OURS: dict[str, Builder] = {
    "conv4": Conv4,
    "resnet12": ResNet12,
    "smallvit": _small_vit,
    **{f"cifar_resnet{depth}": partial(_cifar_resnet, depth) for depth in DEPTHS},
}


def runs_code(name: str) -> bool:
    """Whether building the network imports code that the name itself chooses.

    Example:
        >>> runs_code("resnet18"), runs_code("timm:resnet18"), runs_code("mynet:build")
        (False, False, True)
    """
    return ":" in name and not name.startswith(TIMM)


def build(
    name: str,
    outputs: int,
    channels: int = 3,
    *,
    networks: Mapping[str, Builder] = OURS,
    **options: Any,
) -> nn.Module:
    """Build a network by its name, with freshly drawn weights: nothing is downloaded.

    Names of torchvision and timm are looked up in their registries. A `package.module:callable` is
    imported and called with the number of outputs, so its name must come from the user, never from
    a file.

    Args:
        name: "conv4", "resnet12", "smallvit", "cifar_resnet20" (to 110), "resnet50",
            "timm:resnet18", or "package.module:callable".
        outputs: of the head.
        channels: of the images, for ours and timm's; torchvision's networks read 3.
        networks: a table of networks to choose from besides torchvision's and timm's.
        options: further arguments of a network of that table, such as Conv4's and SmallViT's
            `size`, or the `width` of a CIFAR ResNet.

    Returns:
        The network. Inception and GoogLeNet are built without their auxiliary heads.

    Raises:
        ValueError: for a name that does not exist, with near matches; if `outputs` is no whole
            number of at least 1.
        ImportError: for a network of timm without timm, with the cure.

    Example:
        >>> build("conv4", outputs=5, channels=1, size=28).head.out_features
        5
        >>> build("cifar_resnet20", outputs=5, channels=1).conv1.in_channels
        1
        >>> build("squeezenet1_1", outputs=2).classifier[1].out_channels
        2
    """
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is a {type(name).__name__}, not the name of a network")
    if name in networks:  # they check their arguments themselves
        return networks[name](outputs, channels, **options)
    whole = isinstance(outputs, int) and not isinstance(outputs, bool)
    if not whole or not 1 <= outputs <= MOST_OUTPUTS:
        raise ValueError(f"outputs={outputs!r}; give a whole number from 1 to {MOST_OUTPUTS:,}")
    if options:
        raise TypeError(f"{name} takes no options, but {', '.join(options)} are given; omit them")
    if runs_code(name):
        return _from_callable(name, outputs)
    if name.startswith(TIMM):
        return _from_timm(name.removeprefix(TIMM), outputs, channels)
    return _from_torchvision(name, outputs, networks)


def _from_torchvision(name: str, outputs: int, networks: Iterable[str]) -> nn.Module:
    """A network of torchvision's; `networks` are further names for the message."""
    known = torchvision_names()
    if name not in known:
        default = "see torchvision.models.list_models(), or write timm:NAME for one of timm's"
        hint = near(name, [*networks, *known]) or default
        raise ValueError(f"there is no network {name!r}; {hint}")
    options: dict[str, Any] = {}
    # Their auxiliary heads return tuples in training mode; init_weights avoids a warning.
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    import torchvision  # here, since importing it takes long

    return torchvision.models.get_model(name, weights=None, num_classes=outputs, **options)


def _from_timm(name: str, outputs: int, channels: int) -> nn.Module:
    """A network of timm's."""
    architecture, _ = timm_architecture(name)
    import timm

    return timm.create_model(architecture, pretrained=False, num_classes=outputs, in_chans=channels)


def torchvision_names() -> list[str]:
    """The names of torchvision's classification networks."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def timm_architecture(name: str) -> tuple[str, str]:
    """Split a name of timm into the architecture and the tag of its weights ("" for none).

    Only names of timm's registry are accepted, so neither "hf-hub:..." nor a folder is read.

    Raises:
        ValueError: for another name, with near matches.
        ImportError: without timm, with the cure.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"timm:{name} needs the extra: pip install 'metalearn-transfer[timm]'"
        ) from error
    # timm writes "resnet50.a1_in1k": the architecture and the tag of its weights.
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        hint = near(architecture, known) or "see timm.list_models()"
        raise ValueError(f"timm has no network {name!r}; {hint}")
    pretrained = timm.list_pretrained(f"{architecture}.*")
    tags = [full_name.partition(".")[2] for full_name in pretrained]
    if tag and tag not in tags:
        hint = near(tag, tags) or f"it has {', '.join(tags) or 'none'}"
        raise ValueError(f"timm has no weights {tag!r} of {architecture}; {hint}")
    return architecture, tag


def near(name: str, known: Iterable[str]) -> str:
    """The known names closest to `name`, as a question, or "".

    Example:
        >>> near("resnet19", ["resnet18", "vgg11"])
        'did you mean resnet18?'
    """
    # Names are compared without regard to case.
    folded = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), folded, n=4, cutoff=0.5)
    if not matches:
        return ""
    return f"did you mean {', '.join(folded[match] for match in matches)}?"


def _from_callable(path: str, outputs: int) -> nn.Module:
    """The network that `package.module:callable` builds."""
    module, _, name = path.partition(":")
    if "" not in sys.path:  # the current folder, as in a script
        sys.path.insert(0, "")
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model {path!r} cannot be imported ({error}); write package.module:callable, from the"
            " current folder"
        ) from error
    model = build(outputs)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{path} returned a {type(model).__name__}, not a torch.nn.Module")
    return model
