"""Tasks of several sources, mixed at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from metalearn.episodes import Episode
from metalearn.runtime.checks import positive, positive_number
from metalearn.runtime.files import Record
from metalearn.tasks.keyed_random import philox, position, seeded


class Mixture:
    """Tasks of several sources, such as a `FewShot` of each of several data sets.

    `[i]` is task i of the source that is drawn for it (modulo its length). It depends on `(seed,
    i)` alone, if the sources do so. `source(i)` tells which source it is.

    Args:
        sources: tasks by index, by name. For stacks all images need one size, as
            `FewShot(..., transform=)` gives them; tasks of other ways or shots are padded.
        tasks: the length.
        weights: how often each source is drawn, by name, in proportion; by default equally often.
        seed: of the choice of sources.

    Raises:
        ValueError: there is no source, one is empty, or the weights name others.
        TypeError: the sources have no names.

    Example:
        >>> from metalearn.data.glyphs import glyphs
        >>> from metalearn.tasks import FewShot
        >>> old = FewShot(glyphs("train"), ways=5, shots=1, queries=3, tasks=50)
        >>> new = FewShot(glyphs("test"), ways=5, shots=1, queries=3, tasks=50)
        >>> mixture = Mixture({"old": old, "new": new}, tasks=50, weights={"old": 3, "new": 1})
        >>> [mixture.source(i) for i in range(4)]
        ['old', 'new', 'new', 'old']
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        tasks: int,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(sources, Mapping):
            raise TypeError(
                f"sources={sources!r:.60} is a {type(sources).__name__}; give a dictionary from"
                " names to tasks, such as {'birds': FewShot(...)}"
            )
        self.sources = dict(sources)
        (self.tasks,) = positive(tasks=tasks)
        self.seed = seeded(seed)
        empty = [name for name, source in self.sources.items() if not len(source)]
        if not self.sources or empty:
            raise ValueError(
                f"there are no tasks in {empty or 'the mixture'}; give at least one source, each"
                " with at least one task"
            )
        given = dict.fromkeys(self.sources, 1.0) if weights is None else dict(weights)
        if given.keys() != self.sources.keys():
            raise ValueError(
                f"weights are for {', '.join(map(str, given))}, but the sources are"
                f" {', '.join(self.sources)}; give each source one"
            )
        self.weights = {
            name: positive_number(f"weights[{name!r}]", given[name]) for name in sources
        }
        self._bounds = np.cumsum(list(self.weights.values())) / sum(self.weights.values())

    def __len__(self) -> int:
        return self.tasks

    @property
    def draws_globally(self) -> bool:
        """Whether drawing a task may use the process's global random generators."""
        return any(getattr(source, "draws_globally", True) for source in self.sources.values())

    @property
    def sizes_vary(self) -> bool:
        """Whether tasks may differ in size, within a source or between sources."""
        sources = list(self.sources.values())
        if any(getattr(source, "sizes_vary", False) for source in sources):
            return True
        sizes = {_size(source) for source in sources}
        return len(sizes) > 1

    def source(self, index: int) -> str:
        """The name of the source of a task."""
        draw = philox(self.seed, position(index, self.tasks)).random()
        number = int(np.searchsorted(self._bounds, draw, side="right"))
        return list(self.sources)[min(number, len(self.sources) - 1)]

    def __getitem__(self, index: int) -> Episode:
        number = position(index, self.tasks)
        source = self.sources[self.source(number)]
        episode: Episode = source[number % len(source)]
        return episode

    def settings(self) -> Record:
        """A JSON-able record of the mixture and of its sources, for result lines."""
        parts: Record = {}
        for name, source in self.sources.items():
            own = getattr(source, "settings", None)
            parts[name] = {"source": type(source).__name__} if own is None else own()
        return {
            "source": "Mixture",
            "tasks": self.tasks,
            "seed": self.seed,
            "weights": self.weights,
            "sources": parts,
        }


def _size(source: Any) -> tuple[Any, ...]:
    """The numbers that decide the size of a source's tasks, as far as it tells them."""
    return tuple(getattr(source, name, None) for name in ("ways", "shots", "queries"))
