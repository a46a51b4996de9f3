"""Does a frozen pretrained transformer learn tasks that a frozen random one does not?

    python -m benchmarks.frozen_transformers --tasks memory,xor,mnist --seeds 0,1,2

The question of Lu et al. 2021 (arXiv:2103.05247), with a learning rate for every row, chosen on
validation data (Rothermel et al. 2021, arXiv:2107.12460), and random bodies at two scales. Trains
norms, positions, input and output around a frozen body for every start (a run that was stopped
continues in `--folder`), prints a table a task, and adds a row a task and start to the file that
`--results` names. Bodies:

- stories: a language model of 260 K parameters (`--weights`, stories260K.bin of llama2.c)
- gpt2: GPT-2 of the library transformers, from its cache or the folder `--weights`

Starts: pretrained, statistics (Mean-Var), permuted, normal (N(0, 0.02)), xavier (unit gain);
trained (pretrained, nothing frozen), trained-random (xavier, nothing frozen); text (stories'
architecture, trained here on `--text`) and memory (trained here on bit memory).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn.data.labelled_sequences import Sequences
from metalearn.models import sequence_model
from metalearn.runtime.checks import positive_number
from metalearn.runtime.options import Listed, listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.tables import plain
from transfer import (
    copied,
    fresh,
    frozen_transformer,
    initialize,
    mean_var,
    normal,
    permuted,
    xavier,
)
from transfer.comparison.rates import RateSweep, sweep_rates
from transfer.finetuning.curve import Curve
from transfer.finetuning.finetune import finetune
from transfer.finetuning.optimizers import clipped
from transfer.initialisation.sources import Source

from .harness.bodies import BODIES, Body, trained_on_memory, trained_on_text
from .harness.rows import Row, append, choose, keep_in, origin, run_benchmark
from .harness.sequence_tasks import TASKS, Amount, Task

STARTS = (
    "pretrained",
    "statistics",
    "permuted",
    "normal",
    "xavier",
    "trained",
    "trained-random",
    "text",
    "memory",
)
DEFAULT = "pretrained,statistics,permuted,normal,xavier,trained,trained-random"
UNFROZEN = ("trained", "trained-random")


@dataclass(frozen=True)
class Study:
    """One call of this command."""

    body: str
    weights: str | None
    text: str | None
    amount: Amount
    steps: int | None
    batch: int
    clip: float
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    swept: int
    folder: Path
    device: str
    progress: bool

    @cached_property
    def pretrained(self) -> Body:
        """The body with its weights."""
        return BODIES[self.body](self.weights)

    def sweep(
        self, name: str, starts: list[str], parts: tuple[Sequences, ...]
    ) -> tuple[RateSweep, dict[str, Any]]:
        """Train all starts on a task at all rates; and what decides the result."""
        task = TASKS[name]
        steps = task.steps if self.steps is None else self.steps
        settings = {
            "task": {"name": name, **parts[0].description, "examples": list(map(len, parts))},
            "body": {"name": self.body, "weights": self.pretrained.digest},
            "steps": steps,
            "batch": self.batch,
            "clip": self.clip,
        }
        runs = {start: self._run(start, task, parts, steps) for start in starts}
        result = sweep_rates(
            runs,
            self.rates,
            self.seeds,
            swept=self.swept,
            folder=self.folder / f"{self.body}-{name}",
            settings=settings,
            progress=self.progress,
        )
        return result, settings

    def _run(
        self, start: str, task: Task, parts: tuple[Sequences, ...], steps: int
    ) -> Callable[[float, int], Curve]:
        train, validation, test = parts

        def run(rate: float, seed: int) -> Curve:
            return finetune(
                train,
                test,
                validation=validation,
                steps=steps,
                batch=self.batch,
                lr=rate,
                optimizer=clipped("adam", self.clip),
                evaluate_every=steps,
                frozen=None if start in UNFROZEN else frozen_transformer,
                augment=task.augment,
                device=self.device,
            )(self.model(start, train, seed), seed)

        return run

    def model(self, start: str, data: Sequences, seed: int) -> nn.Module:
        """The model of a start: the body as it says, input and output fresh."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = sequence_model(self.pretrained.build(), **data.dimensions)
        initialize(model, {"body": self.source(start), "": fresh()}, seed=seed)
        return model

    def source(self, start: str) -> Source:
        """What the body starts from."""
        if start == "normal":
            return normal(0.02)
        if start in ("xavier", "trained-random"):
            return xavier()
        weights = self.pretrained.weights
        if start == "statistics":
            return mean_var(weights)
        if start == "permuted":
            return permuted(weights)
        if start == "text":
            weights = trained_on_text(self.pretrained, self.text, self.folder, self.device)
        if start == "memory":
            weights = trained_on_memory(self.pretrained, self.folder, self.device)
        return copied(weights)


def frozen_transformers(
    tasks: Listed = "memory,xor,mnist",
    starts: Listed = DEFAULT,
    body: str = "stories",
    weights: str | None = None,
    text: str | None = None,
    rates: Listed = "1e-3,3e-3,1e-2",
    seeds: Listed = "0,1,2",
    swept: int = 1,
    steps: int | None = None,
    batch: int = 16,
    clip: float = 1.0,
    train: int = 20_000,
    test: int = 2_000,
    root: str | None = None,
    folder: str = "runs/frozen",
    device: str = "cpu",
    quick: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    progress: bool = True,  # noqa: FBT001, FBT002
    note: str = "",
    results: str | None = None,
) -> None:
    """Train around frozen transformers, and compare what their bodies start from.

    Args:
        tasks: memory, xor, mnist, listops-short, long-memory, cifar10, listops, lra, with commas.
        starts: pretrained, statistics, permuted, normal, xavier, trained, trained-random, text,
            memory, with commas.
        body: stories or gpt2.
        weights: the file or folder of its weights [stories: METALEARN_DATA/weights/
            stories260K.bin; gpt2: the cache of transformers].
        text: the text for the start "text" [METALEARN_DATA/text/tinyshakespeare.txt].
        rates: of Adam, with commas; each start gets the best on validation data.
        seeds: with commas.
        swept: how many of the seeds, from the first, try all rates.
        steps: of every training [a number for each task].
        batch: sequences a step.
        clip: the largest norm of a gradient.
        train: training sequences, at most.
        test: sequences for validation, and as many for the test.
        root: the folder of the data sets [METALEARN_DATA].
        folder: where finished trainings are kept.
        device: where to train.
        quick: a few steps of everything, to see that it runs.
        progress: show progress.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    names = choose("task", tasks, TASKS)
    rows = choose("start", starts, STARTS)
    choose("body", body, BODIES)
    study = Study(
        body=body,
        weights=weights,
        text=text,
        amount=Amount(min(train, 200) if quick else train, min(test, 100) if quick else test, root),
        steps=4 if quick else steps,
        batch=batch,
        clip=positive_number("clip", clip),
        rates=tuple(positive_number("rates", float(rate)) for rate in listed(rates)),
        seeds=tuple(numbers(seeds)),
        swept=swept,
        folder=Path(folder) / "quick" if quick else Path(folder),
        device=usable(device),
        progress=progress,
    )
    for name in names:
        parts = TASKS[name].parts(study.amount)
        result, settings = study.sweep(name, rows, parts)
        settings["chance"] = TASKS[name].chance(parts[2])
        print(f"{name}, chance {100 * settings['chance']:.0f} %\n{result}\n", flush=True)
        for record in result.records():
            append(described(study, name, record, settings, parts[0]) | {"note": note})


def described(study: Study, task: str, record: Row, settings: Row, data: Sequences) -> Row:
    """A start on a task, and all that is behind it."""
    model = study.model(record["row"], data, 0)
    if record["row"] not in UNFROZEN:
        frozen_transformer(model)
    sizes = [(tensor.numel(), tensor.requires_grad) for tensor in model.parameters()]
    row = {
        "benchmark": "frozen_transformers",
        **settings,
        **record,
        "start": record["row"],
        "task": task,
        "sequences": settings["task"],
        "parameters": sum(size for size, _ in sizes),
        "trained_parameters": sum(size for size, trains in sizes if trains),
        "device": study.device,
        **origin("frozen_transformers"),
    }
    return plain(row)


if __name__ == "__main__":
    run_benchmark(frozen_transformers)
