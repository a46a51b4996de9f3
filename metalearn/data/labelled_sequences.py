"""Labelled sequences in memory: rows of features or token ids, with one label or several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record

PADDING = 0
"""The token id after the end of a sequence that is shorter than the longest."""


@dataclass(frozen=True, eq=False, repr=False)
class Sequences(Dataset[tuple[Tensor, Any]]):
    """Sequences and their labels, as `finetune` and `sequence_model` take them.

    `[i]` is one sequence and its label, or its labels as a tensor.

    Args:
        inputs: features (examples, tokens, features), float32, or uint8 for numbers in [0, 1] (they
            are divided by 255); or token ids (examples, tokens), int64.
        targets: int64 labels (examples,), or (examples, labels) if a sequence has several. The
            labels belong to the last tokens, each of which has equally many.
        outputs: the number of values that a label has.
        vocabulary: the number of token ids; None for features.
        last: the number of tokens, from the end, whose outputs are the answer.
        padded: whether id 0 stands for no token, at the end of a sequence.
        description: a JSON-able record of where they come from.

    Raises:
        TypeError: inputs or targets are of another type or shape.
        ValueError: a token id or a label is outside of its range, or the labels of a sequence are
            not equally many for each of its last tokens.

    Example:
        >>> bits = torch.tensor([[0, 1], [1, 1]])
        >>> data = Sequences(bits, torch.tensor([1, 0]), outputs=2, vocabulary=2)
        >>> data[1], data.dimensions
        ((tensor([1, 1]), 0), {'vocabulary': 2, 'outputs': 2, 'tokens': 2})
    """

    inputs: Tensor
    targets: Tensor
    outputs: int
    vocabulary: int | None = None
    last: int = 1
    padded: bool = False
    description: Record = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive(outputs=self.outputs, last=self.last)
        self._check_inputs()
        targets = self.targets
        if targets.dtype != torch.int64 or targets.ndim not in (1, 2):
            raise TypeError(
                "targets must be int64 (examples,) or (examples, labels), not"
                f" {targets.dtype} {tuple(targets.shape)}"
            )
        if len(targets) != len(self.inputs) or not len(targets):
            raise ValueError(
                f"{len(self.inputs)} sequences have {len(targets)} rows of labels; give one row"
                " for each sequence, and at least one"
            )
        _check_range("label", targets, self.outputs, "outputs")
        if self.last > self.inputs.shape[1]:
            raise ValueError(f"last={self.last} exceeds the {self.inputs.shape[1]} tokens")
        if self.labels % self.last:
            raise ValueError(
                f"{self.labels} labels a sequence cannot be divided among its last {self.last}"
                " tokens; change last="
            )
        if self.padded and self.vocabulary is None:
            raise ValueError("padded=True is for token ids; give vocabulary= too")

    def _check_inputs(self) -> None:
        inputs = self.inputs
        described = f"{inputs.dtype} {tuple(inputs.shape)}"
        if self.vocabulary is None:
            if inputs.ndim != 3 or inputs.dtype not in (torch.float32, torch.uint8):
                raise TypeError(
                    "features must be float32 or uint8 (examples, tokens, features), not"
                    f" {described}; give vocabulary= for token ids"
                )
            return
        if inputs.ndim != 2 or inputs.dtype != torch.int64:
            raise TypeError(f"token ids must be int64 (examples, tokens), not {described}")
        _check_range("token id", inputs, self.vocabulary, "vocabulary")

    @property
    def labels(self) -> int:
        """The number of labels of a sequence."""
        return self.targets[0].numel()

    @property
    def dimensions(self) -> dict[str, Any]:
        """The arguments of `sequence_model` for a model of these sequences."""
        sizes: dict[str, Any] = {"outputs": self.outputs, "tokens": self.inputs.shape[1]}
        if self.vocabulary is None:
            sizes = {"inputs": self.inputs.shape[2], **sizes}
        else:
            sizes = {"vocabulary": self.vocabulary, **sizes}
        if self.padded:
            sizes["padding"] = PADDING
        if self.last > 1:
            sizes["last"] = self.last
        if self.labels > self.last:
            sizes["labels"] = self.labels // self.last
        return sizes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        values = self.inputs[index]
        if values.dtype == torch.uint8:
            values = values.float() / 255
        target = self.targets[index]
        return values, int(target) if target.ndim == 0 else target

    def __repr__(self) -> str:
        source = self.description.get("source", "Sequences")
        return f"Sequences({source}, {len(self):,} of {tuple(self.inputs.shape[1:])})"

    def at(self, indices: Iterable[int] | slice | Tensor) -> Sequences:
        """The sequences at some indices.

        Example:
            >>> data = Sequences(torch.zeros(4, 3, 1), torch.tensor([0, 1, 1, 0]), outputs=2)
            >>> len(data.at(slice(0, 3))), data.at([1, 3]).targets.tolist()
            (3, [1, 0])
        """
        rows = indices if isinstance(indices, slice | Tensor) else torch.tensor(list(indices))
        return Sequences(
            self.inputs[rows],
            self.targets[rows],
            self.outputs,
            self.vocabulary,
            self.last,
            self.padded,
            self.description,
        )


def _check_range(name: str, values: Tensor, count: int, setting: str) -> None:
    """Raise ValueError if integers are not all from 0 to `count` - 1."""
    if not values.numel():
        return
    lowest = int(values.min())
    highest = int(values.max())
    if lowest < 0 or highest >= count:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"there is a {name} {wrong}, but {setting}={count}: they run from 0 to {count - 1}"
        )
