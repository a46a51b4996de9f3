"""How many classes, support and query examples each task has, if that is drawn for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record

Count: TypeAlias = int | tuple[int, int]
"""A number, or the smallest and the largest of a number that is drawn for each task."""


class TaskSize(NamedTuple):
    """The size of one task.

    Attributes:
        classes: the numbers of its classes, in the order of their labels (ways,).
        shots: support examples of each class (ways,).
        queries: query examples of each class (ways,).
    """

    classes: np.ndarray
    shots: np.ndarray
    queries: np.ndarray


class TaskSizes(Protocol):
    """A rule for the sizes of tasks."""

    def draw(self, rng: np.random.Generator, class_sizes: np.ndarray) -> TaskSize:
        """The size of one task of classes with so many examples (classes,)."""
        ...

    def needs(self) -> tuple[int, int]:
        """The classes, and the examples of each of them, that every task may need."""
        ...

    def settings(self) -> Record:
        """The rule as JSON-able values."""
        ...


@dataclass(frozen=True)
class RangedSizes:
    """Ways, shots and queries drawn uniformly for each task, all classes alike.

    Args:
        ways: classes, a number or (smallest, largest).
        shots: support examples per class, likewise.
        queries: query examples per class, likewise.
    """

    ways: tuple[int, int]
    shots: tuple[int, int]
    queries: tuple[int, int]

    def draw(self, rng: np.random.Generator, class_sizes: np.ndarray) -> TaskSize:
        """The size of one task of classes with so many examples (classes,)."""
        ranges = (self.ways, self.shots, self.queries)
        ways, shots, queries = (rng.integers(*bounds, endpoint=True) for bounds in ranges)
        classes = rng.choice(len(class_sizes), ways, replace=False)
        return TaskSize(classes, np.full(ways, shots), np.full(ways, queries))

    def needs(self) -> tuple[int, int]:
        """The classes, and the examples of each of them, that every task may need."""
        return self.ways[1], self.shots[1] + self.queries[1]

    def settings(self) -> Record:
        """The rule as JSON-able values."""
        return {name: list(bounds) for name, bounds in asdict(self).items()}


@dataclass(frozen=True)
class MetaDatasetSizes:
    """The sizes of tasks in Meta-Dataset (Triantafillou et al., ICLR 2020, section 3.2).

    Many ways, and shots that differ between the classes of a task, as their sizes do:

    1. Ways are uniform between `ways[0]` and `ways[1]`, or the number of classes if that is less.
    2. Every class has q queries, the least of `queries` and half of the smallest class.
    3. With r_c = n_c - q the images that class c has left, and one beta uniform in (0, 1], the
       support set has S = min(support, sum_c ceil(beta min(per_class, r_c))) images.
    4. Class c has k_c = min(r_c, 1 + floor(R_c (S - ways))) of them, where R_c is in proportion to
       n_c exp(a_c) with a_c uniform between log 0.5 and log 2.

    The classes are drawn uniformly: the hierarchies of ImageNet and Omniglot are not used.

    Args:
        ways: smallest and largest number of classes.
        queries: most queries per class.
        support: most support images of a task.
        per_class: most images that a class adds to S.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> size = MetaDatasetSizes().draw(rng, np.full(20, 30))
        >>> len(size.classes), size.shots.tolist()[:5], size.queries.tolist()[:5]
        (18, [12, 7, 8, 17, 16], [10, 10, 10, 10, 10])
    """

    ways: tuple[int, int] = (5, 50)
    queries: int = 10
    support: int = 500
    per_class: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "ways", bounds("ways", self.ways))
        for name in ("queries", "support", "per_class"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        if self.support < self.ways[1]:
            raise ValueError(
                f"support={self.support} is less than the {self.ways[1]} ways that a task may have;"
                " every class needs an image"
            )

    def draw(self, rng: np.random.Generator, class_sizes: np.ndarray) -> TaskSize:
        """The size of one task of classes with so many examples (classes,)."""
        smallest, largest = self.ways
        ways = rng.integers(smallest, min(largest, len(class_sizes)), endpoint=True)
        classes = rng.choice(len(class_sizes), ways, replace=False)
        sizes = class_sizes[classes]
        queries = min(self.queries, int(sizes.min()) // 2)
        left = sizes - queries
        # 1 - u is in (0, 1], u in [0, 1)
        shares = np.ceil((1 - rng.random()) * np.minimum(self.per_class, left))
        support = min(int(shares.sum()), self.support)
        weights = sizes * np.exp(rng.uniform(math.log(0.5), math.log(2), ways))
        wanted = 1 + np.floor(weights / weights.sum() * (support - ways)).astype(int)
        return TaskSize(classes, np.minimum(wanted, left), np.full(ways, queries))

    def needs(self) -> tuple[int, int]:
        """The classes, and the examples of each of them, that every task may need."""
        return self.ways[0], 2

    def settings(self) -> Record:
        """The rule as JSON-able values."""
        return {"sizes": "Meta-Dataset", **asdict(self), "ways": list(self.ways)}


def task_sizes(counts: Mapping[str, Any]) -> RangedSizes | None:
    """The rule of ways, shots and queries; None if all are plain numbers.

    Args:
        counts: "ways", "shots" and "queries", each a `Count`.

    Raises:
        ValueError: a number is below 1, or a range falls.
        TypeError: a value is neither a number nor a pair.

    Example:
        >>> task_sizes({"ways": (5, 20), "shots": 1, "queries": 15})
        RangedSizes(ways=(5, 20), shots=(1, 1), queries=(15, 15))
    """
    if not any(isinstance(count, tuple | list) for count in counts.values()):
        return None
    return RangedSizes(**{name: bounds(name, count) for name, count in counts.items()})


def bounds(name: str, count: Any) -> tuple[int, int]:
    """The smallest and the largest value of a `Count`."""
    if not isinstance(count, tuple | list):
        number = whole_number(name, count, 1)
        return number, number
    if len(count) != 2:
        raise ValueError(f"{name}={count!r}; give a number, or (smallest, largest)")
    smallest, largest = (whole_number(name, value, 1) for value in count)
    if smallest > largest:
        raise ValueError(
            f"{name}={count!r} falls; give (smallest, largest), such as ({largest}, {smallest})"
        )
    return smallest, largest
