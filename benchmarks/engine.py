"""What does `meta_backward` cost, in time and memory, beside a plain loop over tasks?

    python -m benchmarks.engine

Conv4-64, Omniglot 5-way 1-shot, 15 queries a class, one inner step, 32 tasks (random images: the
cost does not depend on what they show). Time: both sides take turns, several rounds. Memory: the
peak of a fresh process above what it held before the first task, for one task, for 32 and for 128
tasks. Unequal tasks: padded stacks of 5 to 20 ways beside stacks of 12 ways, the time of an image.
Also the episodes per second of `FewShot[i]` with one thread, and the second start of
Omniglot if METALEARN_DATA names its folder. `--results benchmarks/results/engine.jsonl` adds a JSON
line a figure to that file.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils.data import TensorDataset

from metalearn import ANIL, MAML, Episode, Examples, Learner, ProtoNet, meta_backward
from metalearn.engine.execution import choose_execution
from metalearn.episodes import unstack
from metalearn.models import MLP, Conv4
from metalearn.padding import is_padding
from metalearn.runtime.options import Listed
from metalearn.tasks import FewShot, LabelledImages, omniglot

from .harness.clock import median_ratio, medians, take_turns
from .harness.markdown import mebibytes
from .harness.memory import peak_above
from .harness.memory import peak_of as peak_in_fresh_process
from .harness.rows import keep_in, report, run_benchmark, run_figures

DRAWN = 5000  # episodes of a round of sampling


def episodes(tasks: int, ways: int = 5, queries: int = 15) -> Episode:
    """A stack of 1-shot tasks of random 28x28 images."""
    generator = torch.Generator().manual_seed(0)

    def examples(each: int) -> Examples:
        # (tasks, ways x each, 1, 28, 28), with labels (tasks, ways x each)
        images = torch.rand(tasks, ways * each, 1, 28, 28, generator=generator)
        return Examples(images, torch.arange(ways).repeat_interleave(each).repeat(tasks, 1))

    return Episode(examples(1), examples(queries))


def plain_loop(model: torch.nn.Module, tasks: Episode, lr: float) -> None:
    """MAML's meta-gradient as one would write it by hand: task by task, gradients added up."""
    weights: dict[str, torch.Tensor] = dict(model.named_parameters())

    def loss_of(parameters: dict[str, torch.Tensor], examples: Examples) -> torch.Tensor:
        logits = functional_call(model, parameters, (examples.inputs,))
        return F.cross_entropy(logits, examples.targets)

    for task in unstack(tasks):
        # theta' = theta - lr grad L_support(theta)
        loss = loss_of(weights, task.support)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        adapted = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            adapted[name] = weight - lr * gradient
        # the mean over tasks of d L_query(theta') / d theta
        outer = torch.autograd.grad(loss_of(adapted, task.query), list(weights.values()))
        for parameter, gradient in zip(weights.values(), outer, strict=True):
            share = gradient / len(tasks.query.inputs)
            parameter.grad = share if parameter.grad is None else parameter.grad + share


def engine(
    rounds: int = 7,
    tasks: int = 32,
    figures: Listed = "time,memory,unequal,sampling,start",
    peak_of: str | None = None,
    results: str | None = None,
) -> None:
    """Measure time, memory, sampling and start-up.

    Args:
        rounds: how often each side is timed, in turn, after one round that is not counted.
        tasks: the meta-batch.
        figures: which of time, memory, unequal, sampling and start, with commas.
        peak_of: used by the benchmark itself, in a fresh process: "way,tasks,threads", whose peak
            of memory is printed in bytes.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    if peak_of:
        way, count, threads = peak_of.split(",")
        print(_peak(way, int(count), int(threads)))
        return
    keep_in(results)
    parts = {
        "time": lambda: _time(rounds, tasks),
        "memory": lambda: _memory(tasks),
        "unequal": lambda: _unequal(rounds, tasks),
        "sampling": lambda: _sampling(rounds),
        "start": lambda: _start(rounds),
    }
    run_figures(figures, parts)


def _time(rounds: int, count: int) -> None:
    torch.manual_seed(0)
    model = Conv4(5)
    learner = MAML(model, 0.4)
    stacked = episodes(count)
    sides = {
        "meta_backward": lambda: meta_backward(learner, stacked),
        "plain loop": lambda: plain_loop(model, stacked, 0.4),
    }
    seconds = take_turns(sides, rounds, before=model.zero_grad)
    ratio = median_ratio(seconds["plain loop"], seconds["meta_backward"])
    middle = medians(seconds)
    report(
        "engine",
        "time of one meta-gradient",
        f"{middle['meta_backward']:.3f} s, plain loop {middle['plain loop']:.3f} s: median ratio"
        f" {ratio:.2f}",
        {
            "seconds": seconds,
            "median_ratio": ratio,
            "execution": choose_execution(learner),
            "threads": torch.get_num_threads(),
            "tasks": count,
        },
    )


def _memory(count: int) -> None:
    def peak(way: str, tasks: int, threads: int) -> int:
        return peak_in_fresh_process("engine", "--peak_of", f"{way},{tasks},{threads}")

    # The yardstick is one task: memory may grow with tasks in flight, not with the meta-batch.
    single = peak("loop", 1, 1)
    for way, threads in (("loop", 1), ("threads", 2)):
        for tasks in (count, 4 * count):
            used = peak(way, tasks, threads)
            ratio = used / single / threads
            report(
                "engine",
                f"peak memory, {tasks} tasks, {way}",
                f"{mebibytes(used)} with {threads} in flight, one task {mebibytes(single)}:"
                f" {ratio:.2f} x tasks in flight x one task",
                {
                    "bytes": used,
                    "one_task_bytes": single,
                    "in_flight": threads,
                    "way": way,
                    "tasks": tasks,
                    "ratio": ratio,
                },
            )


def _peak(way: str, count: int, threads: int) -> int:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    small = MAML(Conv4(5, hidden=2), 0.4, execution=way)
    learner = MAML(Conv4(5), 0.4, execution=way)
    stacked = episodes(count)
    # Load the libraries and start their threads.
    meta_backward(small, episodes(2, queries=1))
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return peak_above(lambda: meta_backward(learner, stacked))


def _unequal(rounds: int, count: int) -> None:
    """The time of an image in padded stacks of unequal tasks, over that in stacks of equal ones."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(4000, 640, generator=generator)
    images = torch.rand(4000, 1, 28, 28, generator=generator)
    labels = torch.arange(100).repeat(40)
    torch.manual_seed(0)
    cases: dict[str, tuple[torch.Tensor, Learner]] = {
        "ANIL on features, vectorized": (features, ANIL(MLP(640, 20), 0.1, 5)),
        "MAML on features, vectorized": (features, MAML(MLP(640, 20), 0.1, 5)),
        "ProtoNet on features, vectorized": (features, ProtoNet(MLP(640, 20))),
        "ProtoNet, Conv4 with group norm, vectorized": (
            images,
            ProtoNet(Conv4(20, norm="group"), execution="vectorized"),
        ),
        "ProtoNet, Conv4 with batch norm, one by one": (images, ProtoNet(Conv4(20))),
    }
    for name, (inputs, learner) in cases.items():
        data = TensorDataset(inputs, labels)
        # Twelve and a half ways on the average, and twelve.
        stacks = {
            "unequal": FewShot(data, (5, 20), (1, 5), 10, count).stack(range(count)),
            "equal": FewShot(data, 12, 3, 10, count).stack(range(count)),
        }
        sides = {side: partial(meta_backward, learner, stacks[side]) for side in stacks}
        counts = {side: _examples(stacks[side]) for side in stacks}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*outputs, but the support set has")
            seconds = take_turns(sides, rounds, before=learner.zero_grad)
        ratio = median_ratio(seconds["unequal"], seconds["equal"])
        each = ratio * counts["equal"] / counts["unequal"]
        report(
            "engine",
            f"time of an image, padded stack of 5 to 20 ways: {name}",
            f"{each:.2f} x that of a stack of 12 ways",
            {
                "seconds": seconds,
                "examples": counts,
                "ratio_per_example": each,
                "execution": choose_execution(learner),
                "threads": torch.get_num_threads(),
                "tasks": count,
            },
        )


def _examples(stacked: Episode) -> int:
    """The examples of a stack that are not padding."""
    return sum(int((~is_padding(part.targets)).sum()) for part in stacked)


def _sampling(rounds: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.randint(256, (4112 * 20, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(4112).repeat_interleave(20)
    tasks = FewShot(LabelledImages(images, labels), 5, 1, 15, tasks=10**6)
    rates = []
    # Other indices each round, so no episode is drawn twice.
    for number in range(rounds):
        started = time.perf_counter()
        for index in range(DRAWN * number, DRAWN * (number + 1)):
            tasks[index]
        rates.append(DRAWN / (time.perf_counter() - started))
    torch.set_num_threads(threads)
    report(
        "engine",
        "episodes per second, FewShot[i], one thread",
        f"median {statistics.median(rates):,.0f}",
        {"rates": rates},
    )


def _start(rounds: int) -> None:
    root = os.environ.get("METALEARN_DATA")
    if not root:
        print("second start of Omniglot: METALEARN_DATA is not set")
        return
    seconds = take_turns({"start": lambda: omniglot(root, "train")}, rounds)["start"]
    report(
        "engine",
        "second start of Omniglot, imports apart",
        f"median {statistics.median(seconds):.2f} s",
        {"seconds": seconds},
    )


if __name__ == "__main__":
    run_benchmark(engine)
