"""How accurate is each learner after so many seconds, ours beside learn2learn?

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
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn import Learner, evaluate, meta_backward
from metalearn.engine.execution import choose_execution
from metalearn.episodes import stack, unstack
from metalearn.experiments.experiment import Experiment
from metalearn.runtime.progress import progress as shown_progress

from .harness.rows import Row, append, choose, keep_in, load, origin, run_benchmark
from .peers import loops
from .peers.loops import Plain, Recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "accuracy_time.jsonl"
PICTURE = HERE / "accuracy_time.png"
ALGORITHMS = ("maml", "fomaml", "anil", "maml++", "protonet", "r2d2", "protomaml")
PEERS_HAVE = ("maml", "fomaml", "anil")
SIDES = ("metalearn", "learn2learn")
LINES = {True: ("-", "#1f4e79"), False: ("--", "#c05020")}  # of ours, and of a peer


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
        trained = list(net.parameters())
        if side == "metalearn":
            trained = list(learner.meta_parameters().values())
        optimizer = torch.optim.Adam(trained, lr=experiment.settings(algorithm).outer_lr)
        return cls(side, algorithm, experiment, learner, net, optimizer)

    def train(self, seconds: float) -> None:
        """Continue for about so long."""
        settings = self.experiment.settings(self.algorithm)
        tasks = self.experiment.training_tasks(self.algorithm)
        until = self.seconds + seconds
        while self.seconds < until:
            started = time.perf_counter()
            first = self.steps * settings.meta_batch
            episodes = stack(tasks[first + number] for number in range(settings.meta_batch))
            self.optimizer.zero_grad()
            if isinstance(self.net, Plain):
                loops.meta_backward(self.side, self.net, self.recipe(), unstack(episodes))
            else:
                meta_backward(self.learner, episodes)
                self.learner.advance()
            self.optimizer.step()
            self.steps += 1
            self.seconds += time.perf_counter() - started

    def recipe(self) -> Recipe:
        """What a peer's loop is told."""
        settings = self.experiment.settings(self.algorithm)
        return Recipe(
            settings.lr,
            settings.inner_steps,
            nn.functional.cross_entropy,
            head_only=self.algorithm == "anil",
            first_order=self.algorithm == "fomaml",
        )

    def test(self, tasks: int) -> None:
        """Note what it reaches now."""
        # All sides are tested by the same code.
        if self.net is not self.learner.model:
            _copy(self.net, self.learner.model)
        evaluation = evaluate(
            self.experiment.tested(self.algorithm, self.learner),
            self.experiment.testing_tasks(tasks=tasks),
        )
        self.points.append(
            {
                "seconds": self.seconds,
                "steps": self.steps,
                "accuracy": evaluation.mean,
                "interval": evaluation.interval,
            }
        )


def accuracy_time(
    algorithms: str = "maml,anil,maml++,protonet,r2d2",
    sides: str = "metalearn,learn2learn",
    seconds: float = 300,
    slice: float = 20,
    test_tasks: int = 300,
    dataset: str = "omniglot",
    hidden: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    root: str | None = None,
    draw: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    results: str | None = None,
    progress: bool = True,  # noqa: FBT001, FBT002  # a command line setting
) -> None:
    """Race the learners.

    Args:
        algorithms: which of maml, fomaml, anil, maml++, protonet, r2d2 and protomaml, with commas;
            learn2learn takes part in the first three.
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
        path = Path(results or RESULTS)
        picture(newest(path), picture_path(path))
        return
    keep_in(results)
    if threads:
        torch.set_num_threads(threads)
    experiment = Experiment(
        dataset=dataset, root=root, hidden=hidden, seed=seed, schedule="constant"
    )
    present = installed(choose("side", sides, SIDES))
    racers = []
    for name in choose("algorithm", algorithms, ALGORITHMS):
        sides_here = [side for side in present if side == "metalearn" or name in PEERS_HAVE]
        racers += [Racer.of(side, name, experiment) for side in sides_here]
    race(racers, max(1, round(seconds / slice)), seconds, test_tasks, progress=progress)
    for racer in racers:
        last = racer.points[-1]
        print(
            f"{racer.side} {racer.algorithm}: {last['accuracy']:.2%} after {racer.seconds:.0f} s"
            f" and {racer.steps:,} steps",
            flush=True,
        )
        append(described(racer, test_tasks))
    if results:
        picture(newest(Path(results)), picture_path(Path(results)))


def race(
    racers: Sequence[Racer], turns: int, seconds: float, test_tasks: int, *, progress: bool
) -> None:
    """Let the racers train in turns, each for `seconds` together, and test them after each turn."""
    with shown_progress("racing", turns * len(racers), shown=progress, unit="turn") as advance:
        for racer in racers:
            racer.test(test_tasks)
        for _ in range(turns):
            for racer in racers:
                racer.train(seconds / turns)
                racer.test(test_tasks)
                advance(text=f"{racer.side} {racer.algorithm} {racer.points[-1]['accuracy']:.1%}")


def described(racer: Racer, test_tasks: int) -> Row:
    """All that is behind a race."""
    execution = None
    row = {
        "benchmark": "accuracy_time",
        "side": racer.side,
        "algorithm": racer.algorithm,
        **racer.experiment.to_dict(racer.algorithm),
        "points": racer.points,
        "test_tasks": test_tasks,
        "threads": torch.get_num_threads(),
        **origin("accuracy_time"),
    }
    if racer.side == "metalearn":
        execution = choose_execution(racer.learner)
    else:
        row["versions"] |= {racer.side: importlib.metadata.version(racer.side)}
    return {**row, "execution": execution}


def picture_path(results: Path) -> Path:
    """Where the picture of these results goes: the page's, or beside the file."""
    if results.resolve() == RESULTS.resolve():
        return PICTURE
    return results.with_suffix(".png")


def newest(results: Path) -> list[Row]:
    """The newest row of every algorithm and side."""
    return list({(row["algorithm"], row["side"]): row for row in load(results)}.values())


def picture(rows: list[Row], path: Path) -> None:
    """Accuracy against seconds of training: a panel an algorithm, ours solid and peers dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["algorithm"] for row in rows))
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(3.6 * columns, 3.2 * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(names) :]:
        axis.remove()
    for axis, name in zip(axes.flat, names, strict=False):
        for row in rows:
            if row["algorithm"] == name:
                _draw_race(axis, row)
        axis.set(title=name.upper(), xlabel="seconds of training")
        axis.legend(loc="lower right", fontsize="small")
        axis.tick_params(labelbottom=True)  # the panel below it may be missing
        axis.grid(alpha=0.3)
    first = rows[0]
    problem = f"{first['dataset']} {first['ways']}-way {first['shots']}-shot"
    for row_of_axes in axes:
        row_of_axes[0].set_ylabel(f"test accuracy, %\n({problem})")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_race(axis: Any, row: Row) -> None:
    style, colour = LINES[row["side"] == "metalearn"]
    points = row["points"]
    seconds = [point["seconds"] for point in points]
    mean = [100 * point["accuracy"] for point in points]
    low = [100 * (point["accuracy"] - point["interval"]) for point in points]
    high = [100 * (point["accuracy"] + point["interval"]) for point in points]
    label = f"{row['side']} ({points[-1]['steps']:,} steps)"
    axis.plot(seconds, mean, style, color=colour, label=label)
    axis.fill_between(seconds, low, high, color=colour, alpha=0.2, linewidth=0)


def _copy(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for to, value in zip(target.parameters(), source.parameters(), strict=True):
            to.copy_(value)


def installed(sides: list[str]) -> list[str]:
    """The sides that can run here; the others are named with the cure."""
    present = []
    for side in sides:
        reason = ""
        if side != "metalearn":
            reason = loops.missing(side)
        if reason:
            message = "benchmarks/peers/install.sh builds an environment with it"
            print(f"{side} {reason}; {message}", flush=True)
        else:
            present.append(side)
    return present


if __name__ == "__main__":
    run_benchmark(accuracy_time)
