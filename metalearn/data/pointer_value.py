"""Pointer value retrieval: one input says at which place of the others the label is to be read.

Zhang, Raghu, Kleinberg and Bengio 2021 (arXiv:2107.12580).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.runtime.checks import whole_number

from .decoding import check_memory
from .vectors import LabelledVectors

DIGITS = 10  # a pointer or a value is one of 0 to 9
LENGTH = 1 + DIGITS  # the pointer, then a value for each place
NAMES = tuple(map(str, range(DIGITS)))  # of the classes
BLOCK = 1 << 16  # rows that are drawn from one generator

Function = Callable[[Tensor], Tensor]


def _majority(windows: Tensor) -> Tensor:
    counts = F.one_hot(windows, DIGITS).sum(1)  # (examples, 10)
    # Smaller values come first among those with the same count.
    return (DIGITS * counts - torch.arange(DIGITS)).argmax(1)


FUNCTIONS: dict[str, Function] = {
    "sum": lambda windows: windows.sum(1) % DIGITS,
    "min": lambda windows: windows.min(1).values,
    "max": lambda windows: windows.max(1).values,
    "median": lambda windows: windows.median(1).values,  # the lower of two in the middle
    "majority": _majority,
}
"""Functions of a window (examples, complexity + 1) by name."""


@dataclass(frozen=True, eq=False, repr=False)
class PointerVectors(LabelledVectors):
    """The result of `pointer_vectors`: `[i]` is an input (11,) int64 and its label.

    Attributes:
        complexity: m; the label is a function of m + 1 values.
    """

    complexity: int = 0

    @property
    def entropy(self) -> float:
        """The entropy of the labels in bits (see `label_entropy`)."""
        return label_entropy(self.labels)

    def facts(self) -> dict[str, Tensor]:
        """What a probe may ask of an input, (examples,) each.

        "pointer", the values "value 0" to "value 9" by their place, and "pointed value", the one
        at the pointer.
        """
        pointers = self.inputs[:, 0]
        values = self.inputs[:, 1:]
        facts = {"pointer": pointers}
        facts |= {f"value {place}": values[:, place] for place in range(DIGITS)}
        return facts | {"pointed value": pointed_windows(self.inputs, 0)[:, 0]}


def label_entropy(labels: Tensor) -> float:
    """The entropy of labels in bits: 0 if all are equal, `log2(classes)` if all are as frequent.

    Labels of entropy 0 are predicted by a constant, whatever a network has learned.

    Example:
        >>> label_entropy(torch.tensor([0, 1, 1, 0])), label_entropy(torch.tensor([7, 7]))
        (1.0, 0.0)
    """
    shares = torch.bincount(labels).double() / len(labels)
    # 0 log 0 = 0; and + 0.0, since a sum of zeros may be -0.0.
    return float(torch.special.entr(shares).sum()) / math.log(2) + 0.0


def pointed_windows(inputs: Tensor, complexity: int) -> Tensor:
    """The values from the pointer on: v_p, ..., v_{p + m}; after place 9 comes place 0.

    Args:
        inputs: (examples, 11), a pointer and ten values.
        complexity: m.

    Returns:
        (examples, m + 1).

    Example:
        >>> pointed_windows(torch.tensor([[8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]), complexity=1)
        tensor([[8, 9]])
    """
    steps = torch.arange(complexity + 1, device=inputs.device)
    places = (inputs[:, :1] + steps) % DIGITS  # (examples, m + 1)
    return inputs[:, 1:].gather(1, places)


def pointer_vectors(
    size: int,
    *,
    complexity: int = 0,
    function: str = "sum",
    seed: int = 0,
    holdout: int = 0,
    adversarial: bool = False,
    wrap: bool = False,
) -> PointerVectors:
    """Vectors of a pointer and ten values, labelled by a function of the values it points to.

    An input is (p, v_0, ..., v_9), all drawn uniformly. Its label is g(v_p, ..., v_{p + m}).

    With a holdout the first k permutations of (0, ..., m), in lexicographic order, never are the
    window of an input: an input that has one is drawn again as a whole, so pointers stay uniform.
    Adversarial inputs have nothing else as their window. All functions give every permutation the
    same label, so **the labels of adversarial inputs are constant**: their `entropy` is 0, and a
    network that always predicts this label scores 100 %. Compare the score with the accuracy on
    other inputs with the same label.

    Row i depends on the settings and on (seed, i), but not on the size.

    Args:
        size: how many examples.
        complexity: m, from 0 to 9. With 0 every function returns the value itself.
        function: g: "sum" (modulo 10), "min", "max", "median" (the lower one) or "majority" (the
            smallest of the most frequent values).
        seed: of the draw. Take different seeds for training and test.
        holdout: k, how many permutations are held out: 0 to (m + 1)!.
        adversarial: draw inputs with held-out windows only.
        wrap: let windows continue at place 0 after place 9, so pointers are 0 to 9. Otherwise they
            are 0 to 9 - m.

    Raises:
        ValueError: the complexity is above 9, there is no such function, there are fewer
            permutations than `holdout`, or fewer different inputs than `size`.
        TypeError: a number is not a whole number.

    Example:
        >>> train = pointer_vectors(1000, complexity=1, function="sum", seed=0, holdout=2)
        >>> train.inputs.shape, len(train), train[0][1] == int(train.labels[0])
        (torch.Size([1000, 11]), 1000, True)
        >>> shifted = pointer_vectors(5, complexity=1, seed=2, holdout=2, adversarial=True)
        >>> shifted.labels, shifted.entropy
        (tensor([1, 1, 1, 1, 1]), 0.0)
    """
    size = whole_number("size", size)
    seed = whole_number("seed", seed, least=0)
    complexity, holdout = _checked(complexity, function, holdout, adversarial=adversarial)
    pointers = DIGITS if wrap else DIGITS - complexity
    _check_room(size, pointers, complexity, holdout, adversarial=adversarial)
    check_memory(size * (LENGTH + 1) * 8, f"size={size:,}", "ask for fewer examples")
    windows = np.array(list(islice(permutations(range(complexity + 1)), holdout)), dtype=np.uint8)
    inputs = torch.empty(size, LENGTH, dtype=torch.int64)
    labels = torch.empty(size, dtype=torch.int64)
    for first in range(0, size, BLOCK):
        # A whole block is drawn, also if fewer rows are needed, so the size changes no row.
        rng = np.random.Generator(np.random.Philox(key=[seed, first // BLOCK]))
        rows = _rows(BLOCK, pointers, rng)
        if adversarial:
            _place_windows(rows, windows, rng)
        elif holdout:
            _draw_again(rows, windows, pointers, rng)
        last = min(size, first + BLOCK)
        inputs[first:last] = torch.from_numpy(rows[: last - first])
        pointed = pointed_windows(inputs[first:last], complexity)
        labels[first:last] = FUNCTIONS[function](pointed)
    description = {
        "source": "pointer_vectors",
        "size": size,
        "complexity": complexity,
        "function": function,
        "seed": seed,
        "holdout": holdout,
        "adversarial": adversarial,
        "wrap": wrap,
    }
    return PointerVectors(inputs, labels, NAMES, description, complexity)


def _checked(
    complexity: object, function: str, holdout: object, *, adversarial: bool
) -> tuple[int, int]:
    """The complexity and the holdout. Raises ValueError if one is out of range."""
    m = whole_number("complexity", complexity, least=0)
    k = whole_number("holdout", holdout, least=0)
    if m > DIGITS - 1:
        raise ValueError(f"complexity={m}: a window has 1 to 10 values; give 0 to 9")
    if function not in list(FUNCTIONS):  # a list, since what cannot be hashed is no name either
        matches = difflib.get_close_matches(str(function), FUNCTIONS, n=1)
        hint = f" (did you mean {matches[0]}?)" if matches else ""
        raise ValueError(
            f"there is no function {function!r}{hint}; choose from {', '.join(FUNCTIONS)}"
        )
    if k and m == 0:
        raise ValueError(
            f"holdout={k} with complexity=0: a window of one value has no order to hold out; give a"
            " complexity of at least 1, or holdout=0"
        )
    if k > math.factorial(m + 1):
        raise ValueError(
            f"holdout={k}: a window of {m + 1} values has {math.factorial(m + 1)} permutations with"
            f" complexity={m}; give at most {math.factorial(m + 1)}"
        )
    if adversarial and not k:
        raise ValueError(
            "adversarial=True draws held-out windows, and holdout=0 holds out none; give the"
            " holdout of the training set"
        )
    return m, k


def _check_room(
    size: int, pointers: int, complexity: int, holdout: int, *, adversarial: bool
) -> None:
    """Raise ValueError if there are fewer different inputs than `size`."""
    others = DIGITS - complexity - 1  # values outside the window
    windows = holdout if adversarial else DIGITS ** (complexity + 1) - holdout
    room = pointers * windows * DIGITS**others
    if size > room:
        raise ValueError(
            f"size={size:,}: with complexity={complexity}, holdout={holdout} and"
            f" adversarial={adversarial} there are {room:,} different inputs; ask for at most so"
            " many"
        )


def _rows(count: int, pointers: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform pointers and values, (count, 11)."""
    rows = rng.integers(0, DIGITS, (count, LENGTH), dtype=np.uint8)
    rows[:, 0] = rng.integers(0, pointers, count, dtype=np.uint8)
    return rows


def _places(rows: np.ndarray, width: int) -> np.ndarray:
    """The columns of the window of each row, (rows, width)."""
    # Column 0 is the pointer.
    return 1 + (rows[:, :1].astype(np.int64) + np.arange(width)) % DIGITS


def _draw_again(
    rows: np.ndarray, windows: np.ndarray, pointers: int, rng: np.random.Generator
) -> None:
    """Draw rows with a held-out window again, until there are none, in place."""
    width = windows.shape[1]
    powers = DIGITS ** np.arange(width)
    held_out = windows @ powers  # a number for each window
    suspects = np.arange(len(rows))
    while len(suspects):
        values = np.take_along_axis(rows[suspects], _places(rows[suspects], width), axis=1)
        suspects = suspects[np.isin(values @ powers, held_out)]
        rows[suspects] = _rows(len(suspects), pointers, rng)


def _place_windows(rows: np.ndarray, windows: np.ndarray, rng: np.random.Generator) -> None:
    """Write a held-out window at the pointer of each row, in place.

    This is the distribution that rejection gives: pointer, window and other values are independent
    and uniform.
    """
    chosen = windows[rng.integers(0, len(windows), len(rows))]  # (rows, m + 1)
    np.put_along_axis(rows, _places(rows, windows.shape[1]), chosen, axis=1)
