"""How many examples does a network need to retrieve values by a pointer, and does it do so always?

Zhang, Raghu, Kleinberg and Bengio 2021 (arXiv:2107.12580).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from metalearn.data.pointer_value import PointerVectors, pointer_vectors
from metalearn.runtime.checks import sequence, whole_number
from metalearn.runtime.progress import progress as shown_progress
from transfer.studies.pointer_results import GridCell, PointerGrid
from transfer.studies.pointer_training import PointerSets, trained

__all__ = ["GridCell", "PointerGrid", "PointerProblem", "pointer_grid"]

VALUE = "value"  # the function of complexity 0, whichever is named
BATCH = 256
SETS = 4  # data sets of a seed: training, iid test, adversarial test, validation


@dataclass(frozen=True)
class PointerProblem:
    """One function of one complexity, with a holdout.

    Attributes:
        complexity: m.
        function: as in `pointer_vectors`; "value" for complexity 0.
        holdout: k.
    """

    complexity: int
    function: str
    holdout: int

    def train(self, size: int, seed: int) -> PointerVectors:
        """The training set of a seed."""
        return self._drawn(size, SETS * seed)

    def iid(self, size: int, seed: int) -> PointerVectors:
        """The test set of a seed, drawn as the training set."""
        return self._drawn(size, SETS * seed + 1)

    def adversarial(self, size: int, seed: int) -> PointerVectors | None:
        """The test set of a seed with held-out windows; None if nothing is held out."""
        if not self.holdout:
            return None
        return self._drawn(size, SETS * seed + 2, adversarial=True)

    def validation(self, size: int, seed: int) -> PointerVectors:
        """The validation set of a seed, drawn as the training set."""
        return self._drawn(size, SETS * seed + 3)

    def _drawn(self, size: int, seed: int, *, adversarial: bool = False) -> PointerVectors:
        return pointer_vectors(
            size,
            complexity=self.complexity,
            function="sum" if self.function == VALUE else self.function,
            seed=seed,
            holdout=self.holdout,
            adversarial=adversarial,
        )


def pointer_grid(
    build: Callable[[], nn.Module],
    complexities: Sequence[int] = (0, 1),
    sizes: Sequence[int] = (1000, 10_000),
    functions: Sequence[str] = ("sum",),
    *,
    seeds: Sequence[int] = (0,),
    holdout: int = 3,
    tests: int = 10_000,
    steps: int = 1500,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **training: Any,
) -> PointerGrid:
    """Train a network on pointer value retrieval of each complexity, function, size and seed.

    With complexity 0 all functions return the value itself, so there is one function "value".
    Every network makes the same number of updates. A seed decides its data and its initial weights.

    Args:
        build: makes the network, from torch's global generator; it takes (examples, 11) int64.
        complexities: the m of `pointer_vectors`.
        sizes: of the training sets.
        functions: as in `pointer_vectors`.
        seeds: one training each.
        holdout: how many permutations are held out of each complexity; all if it has fewer, and
            none of complexity 0.
        tests: examples of each test set.
        steps: updates of the weights.
        folder: where finished trainings are kept, a file each, so a grid that was stopped goes on.
            The files also hold the weights, which `transfusion` takes.
        progress: show progress on standard error.
        **training: other settings of `finetune`, such as lr, batch (256 by default), optimizer and
            device. With early_stop there is a validation set of `tests` examples.

    Returns:
        The grid.

    Raises:
        ValueError: there is nothing to train, a value is there twice or out of range, or `folder`
            holds trainings with other settings.
        TypeError: `build` is no function, or returns no network.

    Example:
        >>> from metalearn.models import PointerMLP
        >>> def build():
        ...     return PointerMLP(embedding=4, hidden=(8,))
        >>> grid = pointer_grid(build, [0, 1], [100], ["max"], tests=50, steps=2)
        >>> [(cell.complexity, cell.function) for cell in grid.cells]
        [(0, 'value'), (1, 'max')]
    """
    if isinstance(build, nn.Module) or not callable(build):
        raise TypeError(
            f"build is a {type(build).__name__}; pass a function that makes a network, such as"
            " PointerMLP"
        )
    lengths = _different("sizes", sizes)
    numbers = _different("seeds", seeds)
    tests = whole_number("tests", tests)
    problems = list(_problems(complexities, functions, holdout))
    for problem in problems:
        # Errors of the settings are found before any training.
        problem.adversarial(tests, 0)
        problem.train(1, 0)
    keys = list(itertools.product(numbers, problems, lengths))
    training = {"batch": BATCH, "steps": steps, "evaluate_every": steps, **training}
    cells = []
    with shown_progress("pointer grid", len(keys), unit="training", shown=progress) as advance:
        for seed, problem, size in keys:
            path = None
            if folder is not None:
                name = f"m{problem.complexity}-{problem.function}-{size}-seed{seed}.safetensors"
                path = Path(folder) / name
            cell = _cell(build, problem, size, seed, tests, training, path)
            cells.append(cell)
            advance(text=f"iid {cell.scores.iid:.3f}")
    return PointerGrid(tuple(cells), tests, steps)


def _problems(
    complexities: Sequence[int], functions: Sequence[str], holdout: int
) -> Iterator[PointerProblem]:
    """Every function of every complexity; one of complexity 0."""
    names = sequence("functions", functions, "['sum', 'max']")
    if not names or len(set(map(str, names))) < len(names):
        raise ValueError(f"functions={names}: give at least one, and each once")
    holdout = whole_number("holdout", holdout, least=0)
    for complexity in _different("complexities", complexities, least=0):
        if complexity == 0:
            pointer_vectors(1, function=names[0])  # raises if there is no such function
            yield PointerProblem(0, VALUE, 0)
            continue
        # A complexity above 9 is refused when its data are drawn.
        held_out = min(holdout, math.factorial(min(complexity, 9) + 1))
        for name in names:
            yield PointerProblem(complexity, name, held_out)


def _different(name: str, values: object, least: int | None = None) -> list[int]:
    """Whole numbers, at least one, each once."""
    least = {"seeds": 0}.get(name, 1) if least is None else least
    numbers = [
        whole_number(f"{name}[{place}]", value, least=least)
        for place, value in enumerate(sequence(name, values, "[0, 1]"))
    ]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"{name}={numbers}: give at least one, and each once")
    return numbers


def _cell(
    build: Callable[[], nn.Module],
    problem: PointerProblem,
    size: int,
    seed: int,
    tests: int,
    training: dict[str, Any],
    path: Path | None,
) -> GridCell:
    """Train and score one network, or read what was done before."""
    sets = PointerSets(
        problem.train(size, seed), problem.iid(tests, seed), problem.adversarial(tests, seed)
    )
    if training.get("early_stop") is not None:
        sets = replace(sets, validation=problem.validation(tests, seed))
    settings = {"problem": dict(vars(problem)), "tests": tests}
    done = trained(build, sets, seed, settings, path, **training)
    return GridCell(
        problem.complexity, problem.function, size, seed, done.scores, done.seconds, path
    )
