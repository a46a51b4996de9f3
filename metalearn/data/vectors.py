"""Labelled vectors in memory, such as features or token ids."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.data import Dataset

from metalearn.runtime.files import Record


@dataclass(frozen=True, eq=False, repr=False)
class LabelledVectors(Dataset[tuple[Tensor, int]]):
    """Vectors of numbers or token ids with their labels, which keep their dtype and numbers.

    `[i]` is an input and its label.

    Attributes:
        inputs: (examples, features), floating-point values or integers.
        labels: (examples,) int64, numbers into `names`.
        names: of the classes, also of those without examples.
        description: a JSON-able record of where they come from.
    """

    inputs: Tensor
    labels: Tensor
    names: tuple[str, ...]
    description: Record = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(self.labels[index])

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.description.items())
        return f"{type(self).__name__}({settings})"
