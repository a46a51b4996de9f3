"""What a network forgets when it learns the next task, and in which layers, over seeds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from metalearn.analysis.measures.subspace import check_k
from metalearn.runtime import files, provenance
from metalearn.runtime.checks import sequence, whole_number
from metalearn.runtime.files import Damaged
from metalearn.runtime.progress import progress as shown_progress
from metalearn.runtime.tables import plain
from transfer.comparison.run import checked_seeds
from transfer.continual.anatomy import Anatomy, anatomy
from transfer.continual.checked_tasks import Build, Train, built
from transfer.continual.memories import Memory
from transfer.continual.resets import layer_groups
from transfer.continual.results import ForgettingResult, Run
from transfer.continual.sequence import POINTS, Advance, Learner
from transfer.continual.stage_files import digest, file_name
from transfer.continual.task_sequence import Stage, TaskSequence, Weights


@dataclass(frozen=True, repr=False)
class Forgetting(ForgettingResult):
    """The result of `forgetting`.

    It prints as tables. `.plot(path)` draws it, `.report(path)` writes a page, and `.to_dict()`
    gives the numbers.
    """

    def answer(self) -> str:
        """What is forgotten and where, in a few sentences."""
        from .text import answer

        return answer(self)

    def __str__(self) -> str:
        from .text import text

        return text(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw accuracies along the tasks, similarities, resets and memories.

        Args:
            path: the picture; its ending gives the format (.png, .svg, .pdf).
        """
        from metalearn.analysis.plotting.style import save

        from .figures import summary

        save(summary(self), path)

    def report(
        self, path: str | os.PathLike[str], *, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Write one self-contained HTML page; `settings` are listed at its end."""
        from .page import report

        report(self, path, settings=settings)


def forgetting(
    build: Build,
    tasks: Sequence[Any],
    train: Train,
    seeds: Iterable[int] = (0, 1, 2),
    memories: Mapping[str, Memory | None] | None = None,
    *,
    heads: Literal["own", "shared"] = "own",
    head: str | None = None,
    layers: Sequence[str] | None = None,
    freezing: bool = True,
    ceiling: bool = True,
    probe: int = 500,
    k: int | Sequence[int] = 10,
    points: int = POINTS,
    folder: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Forgetting:
    """Learn tasks one after another under every seed and memory, and look into each layer.

    After Ramasesh, Dyer and Raghu 2021 (arXiv:2007.07400). Of the first task, before and after the
    later ones, layer by layer: CKA of its test images, with a ceiling (the same network, trained as
    many more steps on the first task) and a level of chance; the similarity of the leading
    directions, within and between the tasks; the accuracy with layers put back from the top, from
    the bottom and singly; and a linear probe. Of the last task: its accuracy with layers frozen.

    Args:
        build: makes the network with one head, as wide as the classes of the largest task.
        tasks: as in `learn_sequence`.
        train: as in `learn_sequence`.
        seeds: a sequence of every memory each.
        memories: {name: memory}, such as `{"none": None, "ewc": ewc(100.0)}`; None for nothing
            kept.
        heads: "own" or "shared", as in `learn_sequence`.
        head: the path of the head; by default the last Linear or Conv2d.
        layers: from the bottom to the top; by default all of `metalearn.layers` but the head.
        freezing: learn the last task with layers frozen, too: one training a layer and seed, for
            the memory that keeps nothing.
        ceiling: train the ceiling, too: one training a seed.
        probe: test images of each task that layers are compared on.
        k: leading directions of `subspace`, or several numbers; the first is that of the tables.
        points: how often earlier tasks are tested while one is learned.
        folder: where finished tasks are kept, so that a run that was stopped goes on; None keeps
            them until the end.
        settings: anything else that decides the result; recorded.
        progress: show progress on standard error.

    Returns:
        The result, which prints as tables.

    Raises:
        ValueError: as `learn_sequence` does; seeds repeat; a layer does not exist.

    Example:
        >>> from functools import partial
        >>> from torch import nn
        >>> from transfer import finetune, replay
        >>> from transfer.data import load, split_classes
        >>> tasks = split_classes(load("glyphs"), [range(3), range(3, 6)])
        >>> def build():
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> train = partial(finetune, steps=10, batch=8)
        >>> result = forgetting(build, tasks, train, [0], {"none": None, "replay": replay(0.5)})
        >>> result.layers, len(result.runs), len(result.runs[0].frozen)
        (('1',), 2, 2)
    """
    numbers = checked_seeds(seeds)
    chosen = _memories(memories)
    probe = whole_number("probe", probe)
    spaces = [k] if isinstance(k, int) else sequence("k", k, "(2, 10)")
    for space in spaces:
        check_k(space)
    learner = Learner.of(build, tasks, train, heads=heads, head=head, points=points)
    groups = layer_groups(built(build, 0), learner.head, layers)
    names = [group.layer for group in groups]
    for memory in chosen.values():
        learner.check_memory(memory)
    texts = {name: "none" if memory is None else repr(memory) for name, memory in chosen.items()}
    base = next((name for name, text in texts.items() if text == "none"), None)
    place = tempfile.TemporaryDirectory() if folder is None else nullcontext(os.fspath(folder))
    runs = []
    with (
        place as path,
        _progress(learner, numbers, chosen, names, freezing, ceiling, progress) as advance,
    ):
        study = Study(learner, names, Path(path), probe, spaces, advance)
        for name, memory in chosen.items():
            for seed in numbers:
                frozen = freezing and name == base
                runs.append(study.run(name, memory, seed, frozen=frozen, ceiling=ceiling))
    return Forgetting(
        memories=texts,
        seeds=tuple(numbers),
        tasks=len(learner.trainings),
        layers=tuple(names),
        runs=tuple(runs),
        shared=learner.shared,
        settings={
            "trainings": [training.settings for training in learner.trainings],
            "probe": probe,
            "own": dict(settings or {}),
            "versions": {**provenance.versions(), "threads": torch.get_num_threads()},
        },
    )


@dataclass(frozen=True)
class Study:
    """The sequences and what is measured on them, each a file.

    Attributes:
        learner: of the tasks.
        layers: from the bottom to the top.
        folder: of the files.
        probe: test images that layers are compared on.
        k: leading directions.
        advance: called while anything trains.
    """

    learner: Learner
    layers: Sequence[str]
    folder: Path
    probe: int
    k: Sequence[int]
    advance: Advance

    def run(
        self, name: str, memory: Memory | None, seed: int, *, frozen: bool, ceiling: bool
    ) -> Run:
        """One sequence, and its anatomy."""
        learner = self.learner
        result = learner.learn(seed, memory, self.folder, self.advance)
        continued = self.continued(result) if ceiling else None
        return Run(
            memory=name,
            seed=seed,
            accuracy=result.accuracy,
            courses=tuple(stage.course for stage in result.stages),
            anatomy=self.anatomy(result, continued),
            frozen=self.frozen(result) if frozen else (),
        )

    def continued(self, result: TaskSequence) -> Weights:
        """The weights of the network that went on with the first task instead of the others."""
        first = self.learner.trainings[0]
        steps = sum(training.steps for training in self.learner.trainings[1:])
        stage = replace(self.learner, points=0).stage(
            result.stages[:1],
            result.seed,
            folder=self.folder,
            advance=self.advance,
            training=replace(first, steps=steps),
            start=self.learner.network(result.weights[0]),
            name="ceiling",
        )
        return stage.weights

    def frozen(self, result: TaskSequence) -> tuple[float, ...]:
        """The accuracy on the last task, with all layers up to each one frozen; first with none."""
        last = len(result.stages) - 1
        accuracies = [result.accuracy[last][last]]
        for layer in self.layers:
            training = replace(self.learner.trainings[last], frozen=layer)
            stage: Stage = replace(self.learner, points=0).stage(
                result.stages[:last],
                result.seed,
                folder=self.folder,
                advance=self.advance,
                training=training,
                name=file_name(f"frozen {layer}"),
            )
            accuracies.append(stage.accuracy[last])
        return tuple(accuracies)

    def anatomy(self, result: TaskSequence, continued: Weights | None) -> Anatomy:
        """The anatomy of a sequence, from its file if it was measured before."""
        settings = plain(
            {
                "weights": [digest(result.state(after, 0)) for after in (0, -1)],
                "ceiling": None if continued is None else digest(continued),
                "test": [training.checksums for training in self.learner.trainings],
                "layers": list(self.layers),
                "probe": self.probe,
                "k": list(self.k),
            }
        )
        label = "" if result.memory == "none" else f"-{file_name(result.memory)}"
        path = self.folder / f"seed{result.seed}{label}-anatomy.safetensors"
        try:
            _, record = files.load(path)
            if record["settings"] == settings:
                return Anatomy.from_dict(record["anatomy"])
        except (FileNotFoundError, Damaged):
            pass
        measured = anatomy(
            self.learner,
            result,
            layers=self.layers,
            ceiling=continued,
            probe=self.probe,
            k=self.k,
        )
        record = {"settings": settings, "anatomy": measured.to_dict()}
        files.save(path, {}, record)
        return Anatomy.from_dict(plain(record["anatomy"]))


def _memories(memories: Mapping[str, Memory | None] | None) -> dict[str, Memory | None]:
    if memories is None:
        return {"none": None}
    is_named = isinstance(memories, Mapping) and all(isinstance(name, str) for name in memories)
    if not is_named or not memories:
        raise TypeError(
            f"memories={memories!r:.80}; give a dictionary by name, {{'none': None, 'ewc':"
            " ewc(100.0)}"
        )
    return dict(memories)


def _progress(
    learner: Learner,
    seeds: Sequence[int],
    memories: Mapping[str, Memory | None],
    layers: Sequence[str],
    freezing: bool,  # noqa: FBT001 (private)
    ceiling: bool,  # noqa: FBT001
    shown: bool,  # noqa: FBT001
) -> Any:
    """The progress of all trainings, in steps; a task that several memories share counts again."""
    steps = [training.steps for training in learner.trainings]
    total = len(memories) * sum(steps)
    if ceiling:
        total += len(memories) * sum(steps[1:])
    if freezing and None in memories.values():
        total += len(layers) * steps[-1]
    return shown_progress("forgetting", len(seeds) * total, shown=shown)
