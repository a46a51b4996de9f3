"""Networks by name: torchvision's, timm's, and any that a user's own code builds."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

TIMM = "timm:"
MOST_OUTPUTS = 10**8


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
    own: Iterable[str] = (),
) -> nn.Module:
    """A network by name, with freshly drawn weights: nothing is downloaded.

    Names of torchvision and timm are looked up in their registries. A `package.module:callable` is
    imported and called with the number of outputs, so its name must come from the user, never from
    a file.

    Args:
        name: "resnet50", "timm:resnet18", or "package.module:callable".
        outputs: of the head.
        channels: of the images, for timm's; torchvision's networks read 3.
        own: further names that the caller knows, for the message.

    Returns:
        The network. Inception and GoogLeNet are built without their auxiliary heads.

    Raises:
        ValueError: With near matches, for a name that does not exist; for no whole `outputs`.
        ImportError: With the cure, for timm's without timm.

    Example:
        >>> build("squeezenet1_1", outputs=2).classifier[1].out_channels
        2
    """
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is a {type(name).__name__}, not the name of a network")
    whole = isinstance(outputs, int) and not isinstance(outputs, bool)
    if not whole or not 1 <= outputs <= MOST_OUTPUTS:
        raise ValueError(f"outputs={outputs!r}; give a whole number from 1 to {MOST_OUTPUTS:,}")
    if runs_code(name):
        return _called(name, outputs)
    if name.startswith(TIMM):
        architecture, _ = timm_architecture(name.removeprefix(TIMM))
        import timm

        return timm.create_model(
            architecture, pretrained=False, num_classes=outputs, in_chans=channels
        )
    known = torchvision_names()
    if name not in known:
        default = "see torchvision.models.list_models(), or write timm:NAME for one of timm's"
        raise ValueError(f"there is no network {name!r}; {near(name, [*own, *known]) or default}")
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    import torchvision  # here, since it takes long to import

    return torchvision.models.get_model(name, weights=None, num_classes=outputs, **options)


def torchvision_names() -> list[str]:
    """The names of torchvision's classification networks."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def timm_architecture(name: str) -> tuple[str, str]:
    """A name of timm -> the architecture and the tag of its weights, such as "a1_in1k" or "".

    Only names of timm's registry pass, so neither "hf-hub:..." nor a folder is read.

    Raises:
        ValueError: With near matches, for another name.
        ImportError: With the cure, without timm.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"timm:{name} needs the extra: pip install 'metalearn-transfer[timm]'"
        ) from error
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        hint = near(architecture, known) or "see timm.list_models()"
        raise ValueError(f"timm has no network {name!r}; {hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(
            f"timm has no weights {tag!r} of {architecture};"
            f" {near(tag, tags) or 'it has ' + (', '.join(tags) or 'none')}"
        )
    return architecture, tag


def near(name: str, known: Iterable[str]) -> str:
    """The known names that are most like `name`, as a question, or "".

    Example:
        >>> near("resnet19", ["resnet18", "vgg11"])
        'did you mean resnet18?'
    """
    folded = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), folded, n=4, cutoff=0.5)
    return f"did you mean {', '.join(folded[match] for match in matches)}?" if matches else ""


def _called(path: str, outputs: int) -> nn.Module:
    module, _, name = path.partition(":")
    if "" not in sys.path:
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
