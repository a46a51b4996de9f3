"""Pretrained transformers to freeze: read from files, or trained here and kept."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from metalearn.data.sequences import bit_memory, text_windows
from metalearn.models import LanguageModel, sequence_model
from metalearn.models.language_model import Decoder, read_llama2c
from metalearn.models.weights import Pretrained
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import load, open_file, save
from transfer import finetune

STORIES = "weights/stories260K.bin"
TEXT = "text/tinyshakespeare.txt"
# The trainings of bodies here: ten minutes or less on two cores.
TEXT_STEPS = 3000
MEMORY_STEPS = 6000


@dataclass(frozen=True)
class Body:
    """A pretrained transformer.

    Attributes:
        build: makes the architecture, randomly initialised.
        weights: its pretrained tensors by name.
    """

    build: Callable[[], nn.Module]
    weights: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """A checksum of the weights."""
        return Pretrained("", dict(self.weights)).digest


def data_file(path: str | None, default: str) -> Path:
    """A file of the data folder, unless another is named."""
    return Path(path) if path else Path(os.environ.get("METALEARN_DATA", "data")) / default


def stories(weights: str | None) -> Body:
    """The language model of 260 K parameters."""
    decoder = read_llama2c(data_file(weights, STORIES)).decoder

    def build() -> nn.Module:
        other = copy.deepcopy(decoder)
        for module in other.modules():
            # Both classes draw their own initial weights.
            if isinstance(module, nn.Linear | nn.RMSNorm):
                module.reset_parameters()
        return other

    return Body(build, decoder.state_dict())


def gpt2(weights: str | None) -> Body:
    """GPT-2 of the library transformers, from a folder or its cache; it may download it."""
    try:
        from transformers import GPT2Model
    except ImportError as error:
        raise ImportError("the body gpt2 needs transformers: pip install transformers") from error
    pretrained = GPT2Model.from_pretrained(weights or "gpt2", attn_implementation="sdpa")
    return Body(lambda: GPT2Model(pretrained.config), pretrained.state_dict())


BODIES: dict[str, Callable[[str | None], Body]] = {"stories": stories, "gpt2": gpt2}


def trained_on_text(
    body: Body, path: str | None, folder: Path, device: str, steps: int = TEXT_STEPS
) -> dict[str, Tensor]:
    """The weights of a decoder of the same sizes after learning to predict a text."""
    place = data_file(path, TEXT)
    with open_file(place) as file:
        text = file.read().decode()
    decoder = _decoder(body)
    cut = int(0.9 * len(text))
    alphabet = "".join(sorted(set(text)))
    train = text_windows(text[:cut], 20_000, alphabet=alphabet)
    test = text_windows(text[cut:], 500, alphabet=alphabet, seed=1)

    def fit() -> nn.Module:
        network = LanguageModel(len(alphabet), decoder.width, 1, 2)
        network.decoder = decoder
        finetune(train, test, steps=whole_number("steps", steps), batch=32, device=device)(
            network, 0
        )
        return decoder

    return _kept(folder / "decoder-text.safetensors", fit, {"text": place.name, "steps": steps})


def trained_on_memory(
    body: Body, folder: Path, device: str, steps: int = MEMORY_STEPS
) -> dict[str, Tensor]:
    """The weights of a decoder of the same sizes after learning short bit memory, unfrozen."""
    decoder = _decoder(body)
    train = bit_memory(50_000, bits=40, patch=10, seed=10)
    test = bit_memory(500, bits=40, patch=10, seed=11)

    def fit() -> nn.Module:
        model = sequence_model(decoder, **train.dimensions)
        finetune(train, test, steps=whole_number("steps", steps), batch=32, device=device)(model, 0)
        return decoder

    return _kept(folder / "decoder-memory.safetensors", fit, {"steps": steps})


def _decoder(body: Body) -> Decoder:
    """The architecture of the language model; raises ValueError for another body."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = body.build()
    if not isinstance(decoder, Decoder):
        raise ValueError(
            f"the starts text and memory are for the body stories, not a {type(decoder).__name__};"
            " leave them out"
        )
    return decoder


def _kept(
    path: Path, fit: Callable[[], nn.Module], settings: dict[str, object]
) -> dict[str, Tensor]:
    """Weights from their file, or trained and written to it."""
    if path.is_file():
        tensors, record = load(path)
        if record["settings"] != settings:
            raise ValueError(f"{path} is of other settings, {record['settings']}; delete it")
        return tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = fit().cpu().state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, dict(weights), {"settings": settings})
    return dict(weights)
