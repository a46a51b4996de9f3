"""How accurate is each learner after so many seconds of training, ours beside learn2learn?

    python -m benchmarks.accuracy_time --seconds 300
    python -m benchmarks.accuracy_time --draw true      # the picture alone, from the result file

Omniglot 5-way 1-shot, the `quick` preset's network, rates and meta-batch at a constant outer rate.
All runs begin with the same weights and see the same training episodes in the same order, drawn by
our sampler on both sides; they take turns, `slice` seconds each, so that what else the machine does
is shared. The clock counts outer steps with their episodes; testing, on the same test tasks with
the same code, is not counted. `--results benchmarks/results/accuracy_time.jsonl` adds a JSON line a
run to that file and draws `benchmarks/accuracy_time.png`.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn import Learner, evaluate, meta_backward
from metalearn.engine.execution import choose_execution
from metalearn.episodes import stack, unstack
from metalearn.experiments.experiment import Experiment
from metalearn.runtime.options import Listed, listed
from metalearn.runtime.progress import progress as shown_progress
from metalearn.runtime.provenance import commit, machine, now, versions

from .peers import loops as peer_loops
from .peers.loops import Plain, Recipe
from .harness.rows import append, keep_in, run_benchmark

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "accuracy_time.jsonl"
PICTURE = HERE / "accuracy_time.png"
ALGORITHMS = ("maml", "fomaml", "anil")
SIDES = ("metalearn", "learn2learn")


@dataclass
class Racer:
    """One algorithm on one side: what it trains, and what it reached when."""

    side: str
    algorithm: str
    experiment: Experiment
    learner: Learner
    net: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int = 0
    seconds: float = 0.0
    points: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, side: str, algorithm: str, experiment: Experiment) -> Racer:
        """With the experiment's first weights."""
        learner = experiment.learner(algorithm)
        net: nn.Module = learner.model
        if side != "metalearn":
            channels, size = experiment.shape()
            net = Plain.conv4(experiment.ways, channels, experiment.settings().hidden, size)
            _copy(learner.model, net)
        optimizer = torch.optim.Adam(net.parameters(), lr=experiment.settings(algorithm).outer_lr)
        return cls(side, algorithm, experiment, learner, net, optimizer)

    def train(self, seconds: float) -> None:
        """Go on for about so long."""
        settings = self.experiment.settings(self.algorithm)
        tasks, until = self.experiment.training_tasks(self.algorithm), self.seconds + seconds
        first = self.algorithm == "fomaml"
        how = Recipe(
            settings.lr,
            settings.inner_steps,
            nn.functional.cross_entropy,
            self.algorithm == "anil",
            first,
        )
        while self.seconds < until:
            started = time.perf_counter()
            episodes = stack(
                tasks[self.steps * settings.meta_batch + j] for j in range(settings.meta_batch)
            )
            self.optimizer.zero_grad()
            if self.side == "metalearn":
                meta_backward(self.learner, episodes)
            else:
                peer_loops.meta_backward(self.side, self.net, how, unstack(episodes))  # type: ignore[arg-type]
            self.optimizer.step()
            self.steps += 1
            self.seconds += time.perf_counter() - started

    def test(self, tasks: int) -> None:
        """Note what it reaches now."""
        if self.net is not self.learner.model:
            _copy(self.net, self.learner.model)
        found = evaluate(
            self.experiment.tested(self.algorithm, self.learner),
            self.experiment.testing_tasks(tasks=tasks),
        )
        point = {
            "seconds": self.seconds,
            "steps": self.steps,
            "accuracy": found.mean,
            "interval": found.interval,
        }
        self.points.append(point)


def accuracy_time(
    algorithms: str = "maml,fomaml,anil",
    sides: str = "metalearn,learn2learn",
    seconds: float = 300,
    slice: float = 20,
    test_tasks: int = 300,
    dataset: str = "omniglot",
    hidden: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    root: str | None = None,
    draw: bool = False,
    results: str | None = None,
    progress: bool = True,
) -> None:
    """Race the learners.

    Args:
        algorithms: which of maml, fomaml and anil, with commas.
        sides: which of metalearn and learn2learn, with commas.
        seconds: of training for every run.
        slice: seconds of a turn; each run is tested after each of its turns.
        test_tasks: test tasks of a point.
        dataset: omniglot, or any that `metalearn train` takes.
        hidden: channels of the network [the preset's].
        seed: of the first weights and of the training tasks.
        threads: torch's threads, for every side [torch's own number].
        root: the folder that holds the data sets; by default METALEARN_DATA.
        draw: only draw the picture of the newest rows of the results [those of the page].
        results: the file of JSON lines that the rows are added to, and that the picture is drawn
            from [none: they are only printed].
        progress: show progress.
    """
    if draw:
        picture(newest(Path(results or RESULTS)), drawn_beside(results or RESULTS))
        return
    keep_in(results)
    if threads:
        torch.set_num_threads(threads)
    experiment = Experiment(
        dataset=dataset, root=root, hidden=hidden, seed=seed, schedule="constant"
    )
    racers = [
        Racer.of(side, name, experiment)
        for name in _among(algorithms, ALGORITHMS)
        for side in _present(_among(sides, SIDES))
    ]
    turns = max(1, round(seconds / slice))
    with shown_progress("racing", turns * len(racers), shown=progress, unit="turn") as advance:
        for racer in racers:
            racer.test(test_tasks)
        for _ in range(turns):
            for racer in racers:
                racer.train(seconds / turns)
                racer.test(test_tasks)
                advance(text=f"{racer.side} {racer.algorithm} {racer.points[-1]['accuracy']:.1%}")
    for racer in racers:
        last = racer.points[-1]
        print(
            f"{racer.side} {racer.algorithm}: {last['accuracy']:.2%} after {racer.seconds:.0f} s"
            f" and {racer.steps:,} steps",
            flush=True,
        )
        append(_row(racer, test_tasks))
    if results:
        picture(newest(Path(results)), drawn_beside(results))


def _row(racer: Racer, test_tasks: int) -> dict[str, Any]:
    own = {racer.side: importlib.metadata.version(racer.side)} if racer.side != "metalearn" else {}
    return {
        "benchmark": "accuracy_time",
        "side": racer.side,
        "algorithm": racer.algorithm,
        **racer.experiment.to_dict(racer.algorithm),
        "points": racer.points,
        "test_tasks": test_tasks,
        "execution": choose_execution(racer.learner) if racer.side == "metalearn" else None,
        "threads": torch.get_num_threads(),
        "command": " ".join(["python -m benchmarks.accuracy_time", *sys.argv[1:]]),
        "versions": versions() | own,
        "machine": machine(),
        "commit": commit(),
        "time": now(),
    }


def drawn_beside(results: str | Path) -> Path:
    """Where the picture of these results goes: the page's, or beside the file."""
    return (
        PICTURE
        if Path(results).resolve() == RESULTS.resolve()
        else Path(results).with_suffix(".png")
    )


def newest(results: Path) -> list[dict[str, Any]]:
    """The newest row of every algorithm and side."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    return list({(row["algorithm"], row["side"]): row for row in rows}.values())


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against seconds of training: a panel an algorithm, ours solid and the peer dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["algorithm"] for row in rows))
    figure, axes = plt.subplots(
        1,
        len(names),
        figsize=(3.6 * len(names), 3.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, name in zip(axes[0], names, strict=True):
        for row in (row for row in rows if row["algorithm"] == name):
            ours = row["side"] == "metalearn"
            seconds = [point["seconds"] for point in row["points"]]
            mean, half = (
                [100 * point[key] for point in row["points"]] for key in ("accuracy", "interval")
            )
            colour = "#1f4e79" if ours else "#c05020"
            axis.plot(
                seconds,
                mean,
                "-" if ours else "--",
                color=colour,
                label=f"{row['side']} ({row['points'][-1]['steps']:,} steps)",
            )
            low, high = (
                [m + sign * h for m, h in zip(mean, half, strict=True)] for sign in (-1, 1)
            )
            axis.fill_between(seconds, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=name.upper(), xlabel="seconds of training")
        axis.legend(loc="lower right", fontsize="small")
        axis.grid(alpha=0.3)
    first = rows[0]
    axes[0][0].set_ylabel(
        f"test accuracy, %\n({first['dataset']} {first['ways']}-way {first['shots']}-shot)"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _copy(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for to, value in zip(target.parameters(), source.parameters(), strict=True):
            to.copy_(value)


def _among(names: Listed, known: tuple[str, ...]) -> list[str]:
    chosen_names = listed(names)
    unknown = [name for name in chosen_names if name not in known]
    if unknown or not chosen_names:
        raise ValueError(
            f"there is no {unknown[0] if unknown else names!r}; choose from {', '.join(known)}"
        )
    return chosen_names


def _present(sides: list[str]) -> list[str]:
    why = {side: peer_loops.missing(side) for side in sides if side != "metalearn"}
    for side, reason in why.items():
        if reason:
            print(
                f"{side} {reason}; benchmarks/peers/install.sh builds an environment with it",
                flush=True,
            )
    return [side for side in sides if not why.get(side)]


if __name__ == "__main__":
    run_benchmark(accuracy_time)
