"""The state of a fine-tuning in a file, from which a training that was stopped continues."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metalearn.models.weights import read
from metalearn.runtime import provenance, random_state
from metalearn.runtime.files import Foreign, Record, locked
from metalearn.training import checkpoints
from metalearn.training.penalty import Extra, load_state, state_of
from transfer.finetuning.history import History
from transfer.finetuning.schedule import FreezeSchedule
from transfer.finetuning.snapshots import Snapshots

KIND = "fine-tuning"
CURE = (
    "Give the model as it was before training and the earlier settings to continue, or another"
    " folder= to train anew"
)


@dataclass
class Training:
    """A training in progress: the model and everything that decides its next step.

    Attributes:
        model: trained in place.
        optimizer: of its parameters.
        schedule: of the layers that are held, if there is one.
        history: scores and losses so far.
        snapshots: the weights that are kept.
        device: where the model is.
        rates: of the groups of parameters at the first step.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: FreezeSchedule | None
    history: History
    snapshots: Snapshots
    device: torch.device
    rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self, extra: Extra) -> Record:
        """The state after the last update.

        Args:
            extra: what entering the penalty returned.
        """
        return {
            "model": dict(self.model.state_dict()),
            "buffers": _unsaved_buffers(self.model),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history.state_dict(),
            "penalty": state_of(extra),
            "generators": random_state.generators(self.device),
        }

    def load_state_dict(self, state: Mapping[str, Any], extra: Extra) -> None:
        """Continue from what `state_dict` returned, on a training that has not begun."""
        self.model.load_state_dict(state["model"])
        for name, buffer in _unsaved_buffers(self.model).items():
            buffer.copy_(state["buffers"][name])
        _load_optimizer(self.optimizer, state["optimizer"])
        self.history.load_state_dict(state["history"])
        self.snapshots.find(self.history.updates)
        # After the optimizer, which forgets the layers that are held.
        if self.schedule is not None:
            self.schedule.hold(self.history.updates, self.optimizer)
        load_state(extra, state["penalty"])
        # A finished training draws no more numbers.
        if not self.history.finished:
            random_state.set_generators(state["generators"], self.device)


class Checkpoint:
    """The state of one training in a file; without a path nothing is read or written.

    Args:
        path: the file; the state before the last one is kept beside it as `<path>.previous`.
        settings: everything that decides the result of the training.
    """

    def __init__(self, path: Path | None, settings: Record) -> None:
        self.path = path
        # As the record will have them when it is read.
        self.settings = json.loads(json.dumps(settings, default=str))

    def save(self, training: Training, extra: Extra) -> None:
        """Write the state after the last update; a kill leaves the one before."""
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {}
        record = {
            "kind": KIND,
            "step": training.history.updates,
            "settings": self.settings,
            "versions": provenance.versions(),
            # Packing moves the tensors of the state into `tensors`.
            "state": checkpoints.pack(training.state_dict(extra), "state", tensors),
        }
        checkpoints.save(self.path, tensors, record)

    def load(self) -> Record | None:
        """The state in the file; None if there is none.

        Raises:
            ValueError: it is that of another training. The message names the settings that differ.
            Damaged: no whole file is left.
        """
        if self.path is None:
            return None
        try:
            tensors, record = checkpoints.load(self.path, set_aside=True)
        except FileNotFoundError:
            return None
        if record.get("kind") != KIND:
            raise Foreign(f"{self.path} is no state of a fine-tuning; name another folder=")
        provenance.check_same(self.settings, record["settings"], self.path, CURE)
        if record["versions"] != provenance.versions():
            warnings.warn(
                f"{self.path} was written under {record['versions']} and goes on under"
                f" {provenance.versions()}, so its last bits may differ from an uninterrupted run",
                stacklevel=2,
            )
        return checkpoints.unpack(record["state"], tensors)


@contextmanager
def checkpoint(
    folder: str | os.PathLike[str] | None, seed: int, settings: Record
) -> Iterator[Checkpoint]:
    """The checkpoint of the training with this seed, locked against other processes.

    Args:
        folder: where its file is; None for a training that is not saved.
        seed: of the training, which names the file.
        settings: everything that decides the result of the training.
    """
    if folder is None:
        yield Checkpoint(None, {})
        return
    path = Path(folder) / f"seed{seed}.training"
    with locked(path):
        yield Checkpoint(path, settings)


def start_settings(model: nn.Module, optimizer: Optimizer) -> Record:
    """What the model and its optimizer are before the first step, to be compared on resume."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    groups = {}
    for number, group in enumerate(optimizer.param_groups):
        groups[str(number)] = {name: value for name, value in group.items() if name != "params"}
    return {
        "model": type(model).__name__,
        "modules of the model": _digest(without_addresses(repr(model))),
        "weights at the start": read(model).digest,
        "trained parameters": f"{len(trained)} ({_digest(repr(trained))})",
        # Options that only one version of torch has are not compared under this name.
        "training": {"optimizer": {"name": type(optimizer).__name__, **groups}},
    }


def without_addresses(text: str) -> str:
    """The text of an object without places in memory, which differ from process to process.

    Example:
        >>> without_addresses("partial(<function crop at 0x7f3a5c>, 4)")
        'partial(<function crop>, 4)'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are not in the state dict."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer, in the memory layout of its parameters."""
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # As the optimizer makes it itself, so that the same kernels compute the same bits.
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
