"""One training on pointer value retrieval, scored, and kept in a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn.data.images import LabelledImages
from metalearn.data.vectors import LabelledVectors
from metalearn.runtime import files, provenance
from metalearn.runtime.files import Record, _checksum
from metalearn.studies.pointer_scores import PointerData, PointerScores, pointer_scores
from transfer.finetuning.finetune import finetune


@dataclass(frozen=True)
class PointerSets:
    """The data of one training.

    Attributes:
        train: the training set.
        iid: test examples drawn as the training set.
        adversarial: test examples with what training held out; None if it held out nothing.
        validation: examples for early stopping, drawn as the training set.
    """

    train: PointerData
    iid: PointerData
    adversarial: PointerData | None = None
    validation: PointerData | None = None


@dataclass(frozen=True)
class PointerTraining:
    """The result of one training.

    Attributes:
        scores: of the trained network.
        seconds: of training.
        file: of the record and the weights; None if they were not kept.
    """

    scores: PointerScores
    seconds: float
    file: Path | None


def trained(
    build: Callable[[], nn.Module],
    sets: PointerSets,
    seed: int,
    settings: Record,
    file: Path | None,
    **training: Any,
) -> PointerTraining:
    """Train a network and score it, or read what was done before.

    Args:
        build: makes the network, from torch's global generator.
        sets: the data.
        seed: of the initial weights and of the training.
        settings: what else decides the result, such as the sizes of the test sets.
        file: where the record and the weights are kept; None keeps neither.
        **training: settings of `finetune`.

    Raises:
        ValueError: `file` was written with other settings.
        TypeError: `build` returns no network.
    """
    # A small training set may lack a class, and `finetune` refuses tests of such a class. So it
    # tests on training examples, and the scores are taken below.
    tests = _first(sets.train, len(sets.iid))
    train = finetune(sets.train, tests, validation=sets.validation, **training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
    if not isinstance(network, nn.Module):
        raise TypeError(f"build() returned a {type(network).__name__}, not a torch.nn.Module")
    decisive = {**settings, "train": train.settings, "start": _checksum(_state(network), "")[:16]}
    record = _stored(file, decisive)
    if record is None:
        curve = train(network, seed)
        scores = pointer_scores(network, sets.train, sets.iid, sets.adversarial)
        # JSON has no NaN, so None stands for it.
        values = [None if math.isnan(value) else value for value in scores]
        record = {"scores": values, "seconds": curve.seconds}
        if file is not None:
            files.save(file, _state(network), {**record, "settings": decisive})
    scores = PointerScores(*[math.nan if value is None else value for value in record["scores"]])
    return PointerTraining(scores, record["seconds"], file)


def _first(data: PointerData, count: int) -> LabelledVectors | LabelledImages:
    """The first examples."""
    if isinstance(data, LabelledVectors):
        return replace(data, inputs=data.inputs[:count], labels=data.labels[:count])
    return LabelledImages(data.images[:count], data.labels[:count], data.names)


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the weights and buffers, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _stored(file: Path | None, settings: Record) -> Record | None:
    """The record of a training that was finished before; None if there is none.

    Raises:
        ValueError: it had other settings.
    """
    if file is None or not file.exists():
        return None
    _, record = files.load(file)
    provenance.check_same(settings, record["settings"], file)
    return record
