"""How fast is each algorithm beside learn2learn, higher and torchopt, on the same weights and the
same episodes?

    python -m benchmarks.speed
    python -m benchmarks.speed --settings omniglot-5 --algorithms maml --figures time,gradients

Every side has its own network of the same function and the same weights; a peer's loop is the one
of its documentation (`peer_loops.py`), and batch norm uses the current batch on every side. Images
are random: the cost does not depend on what they show. Figures: time one meta-gradient, all sides
in turn, with the bare convolutions of the same step (every convolution call of forward, backward
            and double backward, recorded from the plain network and made again alone, tasks in
            threads or in a loop, whichever is faster)
gradients the largest difference of the meta-gradients, float32 and float64, over the first few
tasks test adaptation and prediction without a meta-gradient memory the peak of a fresh process
above what it held before, with one thread and with all; on CUDA that of this process's tensors
sampling episodes per second of our sampler and of learn2learn's on the same images in memory, and
of learn2learn's on its own Omniglot,
            which reads files (where METALEARN_DATA names the folder), one thread
start a short Omniglot training run in a fresh process with nothing cached, data included
(METALEARN_DATA names the folder)

The peers are met in the environment that `benchmarks/peers/install.sh` builds; one that is not
there is said to be missing and the others go on. `--results benchmarks/results/speed.jsonl` adds a
JSON line a figure to that file.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn import ANIL, BOIL, MAML, NIL, Episode, Examples, Learner, MetaSGD, meta_backward
from metalearn.engine.execution import choose_execution, in_threads
from metalearn.episodes import stack, unstack
from metalearn.models import MLP, Conv4
from metalearn.runtime.options import Listed, listed
from metalearn.runtime.options import device as usable
from metalearn.runtime.provenance import commit, machine, now, versions
from metalearn.tasks import FewShot, LabelledImages, Sinusoid

from . import cold
from .peers import loops as peer_loops
from .harness.memory import resident as _memory_now
from .peers.loops import Plain, Recipe
from .harness.rows import append, keep_in, run_benchmark

OURS = "metalearn"
BARE = "bare convolutions"
FILES = "learn2learn, its Omniglot"
COMPARED = 4  # tasks over which gradients are compared
WITH_PEERS = ("maml", "fomaml", "anil")
ALGORITHMS = (*WITH_PEERS, "boil", "meta-sgd", "nil")
FIGURES = ("time", "gradients", "test", "memory", "sampling", "start")
EVERY_ALGORITHM = ",".join(ALGORITHMS)
EVERY_FIGURE = ",".join(FIGURES)
Run = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """A problem as the papers have it: ways, tasks of a meta-batch, inner steps and rate, and the
    network's numbers.
    """

    title: str
    tasks: int
    steps: int
    lr: float
    ways: int = 0
    channels: int = 1
    hidden: int = 64
    size: int = 28


SETTINGS = {
    "omniglot-5": Setting("Omniglot 5-way 1-shot", tasks=32, steps=1, lr=0.4, ways=5),
    "omniglot-20": Setting("Omniglot 20-way 1-shot", tasks=16, steps=5, lr=0.1, ways=20),
    "mini-imagenet": Setting(
        "miniImageNet 5-way 1-shot",
        tasks=4,
        steps=5,
        lr=0.01,
        ways=5,
        channels=3,
        hidden=32,
        size=84,
    ),
    "sinusoid": Setting("sinusoid 10-shot", tasks=25, steps=1, lr=0.01),
}


@dataclass(frozen=True)
class Case:
    """One setting and one algorithm, with what was asked for in their place; 0 stands for the
    setting's own.
    """

    setting: str
    algorithm: str
    tasks: int = 0
    queries: int = 15
    hidden: int = 0
    device: str = "cpu"
    execution: str = "auto"
    double: bool = False

    @property
    def problem(self) -> Setting:
        """The setting with what was asked for."""
        own = SETTINGS[self.setting]
        return replace(own, tasks=self.tasks or own.tasks, hidden=self.hidden or own.hidden)

    @property
    def kind(self) -> dict[str, Any]:
        """Where and in what its tensors live."""
        return {"device": self.device, "dtype": torch.float64 if self.double else torch.float32}

    def learner(self) -> Learner:
        """Our side."""
        torch.manual_seed(0)
        of = self.problem
        model = Conv4(of.ways, of.channels, of.hidden, of.size) if of.ways else MLP(1, 1)
        options: dict[str, Any] = {"loss": self.recipe().loss, "execution": self.execution}
        model.to(**self.kind)
        if self.algorithm == "nil":
            return NIL(model, **options)
        kind = {"anil": ANIL, "boil": BOIL, "meta-sgd": MetaSGD}.get(self.algorithm, MAML)
        return kind(model, of.lr, of.steps, first_order=self.algorithm == "fomaml", **options)

    def plain(self) -> Plain:
        """A peer's side: the same weights in plain modules."""
        of = self.problem
        net = (
            Plain.conv4(of.ways, of.channels, of.hidden, of.size) if of.ways else Plain.mlp()
        ).to(**self.kind)
        with torch.no_grad():
            for target, source in zip(
                net.parameters(), self.learner().model.parameters(), strict=True
            ):
                target.copy_(source)
        return net

    def recipe(self) -> Recipe:
        """What a peer's loop is told."""
        of = self.problem
        loss = F.cross_entropy if of.ways else F.mse_loss
        return Recipe(
            of.lr,
            of.steps,
            loss,
            head_only=self.algorithm == "anil",
            first_order=self.algorithm == "fomaml",
        )

    def episodes(self) -> Episode:
        """A stack of the tasks of one meta-batch."""
        of = self.problem
        if not of.ways:
            drawn = Sinusoid(shots=10, queries=10, tasks=of.tasks)
            return stack(drawn[i] for i in range(of.tasks)).to(**self.kind)
        generator = torch.Generator().manual_seed(0)

        def examples(each: int) -> Examples:
            images = torch.rand(
                of.tasks, of.ways * each, of.channels, of.size, of.size, generator=generator
            )
            return Examples(
                images, torch.arange(of.ways).repeat_interleave(each).repeat(of.tasks, 1)
            )

        return Episode(examples(1), examples(self.queries)).to(**self.kind)


def speed(
    settings: Listed = "omniglot-5,omniglot-20,mini-imagenet,sinusoid",
    algorithms: Listed = EVERY_ALGORITHM,
    peers: Listed = "learn2learn,higher,torchopt",
    figures: Listed = EVERY_FIGURE,
    rounds: int = 5,
    tasks: int = 0,
    queries: int = 15,
    hidden: int = 0,
    threads: int | None = None,
    device: str = "auto",
    execution: str = "auto",
    bfloat16: bool = False,
    tf32: bool = False,
    start_steps: int = 10,
    results: str | None = None,
) -> None:
    """Measure ours beside the peers.

    Args:
        settings: which of omniglot-5, omniglot-20, mini-imagenet and sinusoid, with commas.
        algorithms: which of maml, fomaml, anil (ours and the peers'), boil, meta-sgd and nil (ours
            alone), with commas.
        peers: which of learn2learn, higher, torchopt and torch (a loop by hand), with commas;
            nothing for ours alone.
        figures: which of time, gradients, test, memory, sampling and start, with commas.
        rounds: how often each side is timed, in turn, after one round that is not counted.
        tasks: tasks of a meta-batch [the setting's].
        queries: query images per class.
        hidden: channels of the network [the setting's].
        threads: torch's threads, for every side [torch's own number].
        device: auto (cuda where there is one, else cpu), cpu or cuda.
        execution: how our tasks are run: auto, loop, threads, vectorized, graphs or compiled.
        bfloat16: time ours under bfloat16 autocast too.
        tf32: let every side multiply float32 in tf32 on CUDA; otherwise none does, convolutions
            included.
        start_steps: outer steps of the run from a cold start.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    device = usable(device)
    asked = {
        "setting": (listed(settings), SETTINGS),
        "algorithm": (listed(algorithms), ALGORITHMS),
        "peer": (listed(peers), peer_loops.LOOPS),
        "figure": (listed(figures), FIGURES),
    }
    for kind, (names, known) in asked.items():
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"there is no {kind} {unknown[0]!r}; choose from {', '.join(known)}")
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; each side is timed at least once")
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    figure_names, peer_names = asked["figure"][0], asked["peer"][0]
    session = Session(peer_names, rounds, bfloat16, start_steps)
    for setting in asked["setting"][0]:
        for algorithm in asked["algorithm"][0]:
            if algorithm == "nil" and not SETTINGS[setting].ways:
                continue  # no classes to look up
            case = Case(setting, algorithm, tasks, queries, hidden, device, execution)
            for figure in figure_names:
                if figure not in ("sampling", "start"):
                    {
                        "time": session.time,
                        "gradients": session.gradients,
                        "test": session.test,
                        "memory": session.memory,
                    }[figure](case)
    if "sampling" in figure_names:
        session.sampling(queries)
    if "start" in figure_names:
        session.start(Case("omniglot-5", "maml", tasks, queries))


class Session:
    """One run of the benchmark: which peers are there, and how often each side is timed."""

    def __init__(self, peers: Sequence[str], rounds: int, bfloat16: bool, start_steps: int) -> None:
        why = {peer: peer_loops.missing(peer) for peer in peers}
        self.peers = [peer for peer, reason in why.items() if not reason]
        self.missing = {peer: reason for peer, reason in why.items() if reason}
        self.rounds, self.bfloat16, self.start_steps = rounds, bfloat16, start_steps

    def time(self, case: Case) -> None:
        """One meta-gradient, all sides in turn."""
        learner, episodes = case.learner(), case.episodes()
        runs = gradient_runs(case, self._peers(case), learner, episodes)
        facts: dict[str, Any] = {"execution": choose_execution(learner)}
        if self.bfloat16:
            runs[f"{OURS}, bfloat16"] = lambda: _in_bfloat16(case.device, runs[OURS])
        if case.problem.ways and case.algorithm in WITH_PEERS:
            calls = convolutions(case)
            runs[BARE] = lambda: replay_all(calls, case.problem.tasks, learner)
            facts["convolution_calls_a_task"] = len(calls)
            # With threads of its own a convolution may be faster than a task a thread, so that the
            # shorter time is the floor.
            runs[f"{BARE}, one by one"] = lambda: replay_all(calls, case.problem.tasks)
        seconds = in_turn(runs, self.rounds, case.device)
        if BARE in seconds:
            seconds[BARE] = min(
                seconds[BARE], seconds.pop(f"{BARE}, one by one"), key=statistics.median
            )
        self._report(case, "time", {"seconds": seconds, **facts}, said_seconds(seconds))

    def test(self, case: Case) -> None:
        """Adaptation and prediction; learn2learn as fast as its arguments allow, and as its own
        examples evaluate, with second order.
        """
        if case.algorithm == "fomaml":
            return  # at test it is MAML
        learner, episodes = case.learner(), case.episodes()
        tasks = unstack(episodes)
        runs: dict[str, Run] = {OURS: lambda: _asked(learner, episodes)}
        for peer in self._peers(case):
            net, how = case.plain(), replace(case.recipe(), test=True)
            runs[peer] = lambda peer=peer, net=net, how=how: peer_loops.predictions(
                peer, net, how, tasks
            )  # type: ignore[misc]
        outputs = {name: run() for name, run in runs.items()}
        apart = {
            name: float((found - outputs[OURS]).abs().max())
            for name, found in outputs.items()
            if name != OURS
        }
        if "learn2learn" in runs:
            net, how = case.plain(), case.recipe()
            runs["learn2learn, second order"] = lambda: peer_loops.predictions(
                "learn2learn", net, how, tasks
            )
        seconds = in_turn(runs, self.rounds, case.device)
        self._report(
            case,
            "test",
            {"seconds": seconds, "apart": apart, "execution": choose_execution(learner)},
            said_seconds(seconds),
        )

    def gradients(self, case: Case) -> None:
        """The largest difference from each peer, in both precisions and for every way to run tasks."""
        if case.algorithm not in WITH_PEERS:
            return
        peers = [*self._peers(case), "torch"]
        count = min(case.problem.tasks, COMPARED)
        apart: dict[str, dict[str, float]] = {}
        for double in (False, True):
            few = replace(case, tasks=count, double=double)
            third = "threads" if case.device == "cpu" else "graphs"
            ways = ("loop", "vectorized", third) if double else (case.execution,)
            found = differences(few, peers, ways)
            apart["float64" if double else "float32"] = found
        worst = {precision: max(values.values()) for precision, values in apart.items()}
        said = ", ".join(
            f"{precision} {value:.1e} of the largest entry" for precision, value in worst.items()
        )
        self._report(case, "gradients", {"apart": apart, "compared_tasks": count}, said)

    def memory(self, case: Case) -> None:
        """The peak of every side in a fresh process."""
        bytes_used: dict[str, dict[str, int]] = {}
        on_cuda = torch.device(case.device).type == "cuda"
        for threads in (
            {torch.get_num_threads()} if on_cuda else sorted({1, torch.get_num_threads()})
        ):
            sides = [OURS, *self._peers(case)]
            # A CUDA device counts what tensors hold, so that this process will do.
            peaks = {
                side: (
                    peak(case, side, threads)
                    if on_cuda
                    else in_fresh_process(f"peak({case!r}, {side!r}, {threads})")
                )
                for side in sides
            }
            bytes_used[str(threads)] = peaks
        said = "; ".join(
            f"{threads} thread{'s' * (threads != '1')}: "
            + ", ".join(f"{side} {used / 2**20:.0f} MiB" for side, used in row.items())
            for threads, row in bytes_used.items()
        )
        self._report(case, "memory", {"bytes": bytes_used}, said)

    def sampling(self, queries: int) -> None:
        """Episodes per second, 5-way 1-shot, of 28x28 images in memory."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        runs, counts = (
            samplers(queries, learn2learn="learn2learn" in self.peers),
            {
                OURS: 2000,
                "learn2learn": 50,
                FILES: 5,
            },
        )
        root = os.environ.get("METALEARN_DATA")
        if root and "learn2learn" in runs:
            with tempfile.TemporaryDirectory() as scratch:
                runs[FILES] = cold.learn2learn_tasks(root, scratch, queries).sample
                self._sampled(runs, counts, queries)
        else:
            self._sampled(runs, counts, queries)
        torch.set_num_threads(threads)

    def _sampled(self, runs: dict[str, Run], counts: dict[str, int], queries: int) -> None:
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(self.rounds + 1):
            for name, draw in runs.items():
                started = time.perf_counter()
                for _ in range(counts[name]):
                    draw()
                if number:
                    rates[name].append(counts[name] / (time.perf_counter() - started))
        said = ", ".join(
            f"{name} {statistics.median(values):,.0f} a second" for name, values in rates.items()
        )
        self._report(None, "sampling", {"rates": rates, "queries": queries, "threads": 1}, said)

    def start(self, case: Case) -> None:
        """A short training run in a fresh process that finds nothing cached."""
        root = os.environ.get("METALEARN_DATA")
        if not root:
            print(
                "start: METALEARN_DATA is not set; it names the folder that holds omniglot-py",
                flush=True,
            )
            return
        sides = [OURS, *(peer for peer in self.peers if peer == "learn2learn")]
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        parts: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(self.rounds):
            for side in sides:
                with tempfile.TemporaryDirectory() as scratch:
                    numbers = (self.start_steps, case.problem.tasks, case.queries)
                    command = [
                        sys.executable,
                        "-W",
                        "ignore",
                        "-m",
                        "benchmarks.cold",
                        side,
                        root,
                        scratch,
                        *map(str, numbers),
                    ]
                    started = time.perf_counter()
                    parts[side].append(_output(command))
                    seconds[side].append(time.perf_counter() - started)
        facts = {
            "seconds": seconds,
            "parts": parts,
            "steps": self.start_steps,
            "queries": case.queries,
        }
        medians = {
            side: {part: statistics.median(run[part] for run in runs) for part in runs[0]}
            for side, runs in parts.items()
        }
        of = "; ".join(
            f"{side}: " + ", ".join(f"{part} {value:.1f} s" for part, value in row.items())
            for side, row in medians.items()
        )
        self._report(
            None, "start", {**facts, "tasks": case.problem.tasks}, f"{said_seconds(seconds)} ({of})"
        )

    def _peers(self, case: Case) -> list[str]:
        return self.peers if case.algorithm in WITH_PEERS else []

    def _report(self, case: Case | None, figure: str, facts: dict[str, Any], said: str) -> None:
        named = f"{case.problem.title}, {case.algorithm}" if case else "Omniglot 5-way 1-shot"
        gaps = "".join(
            f"; {peer} {why}"
            for peer, why in self.missing.items()
            if not case or case.algorithm in WITH_PEERS
        )
        print(f"{figure}, {named}: {said}{gaps}", flush=True)
        row: dict[str, Any] = {
            "benchmark": "speed",
            "figure": figure,
            "said": said,
            "missing": self.missing,
        }
        if case:
            of = case.problem
            row |= {
                "setting": case.setting,
                "algorithm": case.algorithm,
                "tasks": of.tasks,
                "queries": case.queries,
                "hidden": of.hidden,
            }
            row |= {"inner_steps": of.steps, "lr": of.lr, "asked_execution": case.execution}
        device = (
            torch.cuda.get_device_name(case.device)
            if case and torch.device(case.device).type == "cuda"
            else "cpu"
        )
        row |= {
            "device": device,
            "threads": torch.get_num_threads(),
            "tf32": torch.backends.cudnn.allow_tf32,
            **facts,
        }
        about = {
            "command": " ".join(["python -m benchmarks.speed", *sys.argv[1:]]),
            "machine": machine(),
        }
        installed = {
            peer: importlib.metadata.version(peer) for peer in self.peers if peer != "compat"
        }  # which is ours
        append(
            {**row, **about, "versions": versions() | installed, "commit": commit(), "time": now()}
        )


# Sides and their clocks


def gradient_runs(
    case: Case, peers: Sequence[str], learner: Learner, episodes: Episode
) -> dict[str, Run]:
    """A call a side that computes one meta-gradient into `.grad`."""
    tasks = unstack(episodes)
    runs: dict[str, Run] = {OURS: lambda: _fresh(learner, lambda: meta_backward(learner, episodes))}
    for peer in peers:
        net, how = case.plain(), case.recipe()

        def theirs(peer: str = peer, net: Plain = net, how: Recipe = how) -> None:
            _fresh(net, lambda: peer_loops.meta_backward(peer, net, how, tasks))

        runs[peer] = theirs
    return runs


def differences(case: Case, peers: Sequence[str], ways: Sequence[str]) -> dict[str, float]:
    """How far our meta-gradient is from each peer's: the largest difference over the largest entry,
    by "peer, way".
    """
    tasks, found = unstack(case.episodes()), {}
    theirs = {}
    for peer in peers:
        net = case.plain()
        peer_loops.meta_backward(peer, net, case.recipe(), tasks)
        theirs[peer] = _gradient(net)
    for way in ways:
        learner = replace(case, execution=way).learner()
        meta_backward(learner, case.episodes())
        ours = _gradient(learner.model)
        for peer, expected in theirs.items():
            apart = float((ours - expected).abs().max() / expected.abs().max())
            if not math.isfinite(apart):
                raise RuntimeError(
                    f"{case}: the meta-gradient of {peer} or of ours ({way}) is not finite, or all"
                    " zero"
                )
            found[f"{peer}, {way}"] = apart
    return found


def in_turn(runs: dict[str, Run], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every call, `rounds` of each, one after the other, each round beginning with
    another; a first round is not counted.

    (On CUDA nor is the second one, which may record a CUDA graph.)
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    on_cuda = torch.device(device).type == "cuda"
    wait = torch.cuda.synchronize if on_cuda else lambda: None
    for number in range(-1 if on_cuda else 0, rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wait()
            started = time.perf_counter()
            runs[name]()
            wait()
            if number > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def said_seconds(seconds: dict[str, list[float]]) -> str:
    """Medians and minima in words, with how many times ours each is."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians[OURS]
    parts = [f"{OURS} {said_time(ours)} (min {said_time(min(seconds[OURS]))})"]
    for name, median in medians.items():
        if name not in (OURS, BARE):
            parts.append(
                f"{name} {said_time(median)} (min {said_time(min(seconds[name]))}),"
                f" {median / ours:.2f} x ours"
            )
    if BARE in medians:
        parts.append(
            f"{BARE} {said_time(medians[BARE])}, ours is {ours / medians[BARE]:.2f} x that"
        )
    return "; ".join(parts)


def said_time(value: float) -> str:
    """Seconds in words: in ms below one."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _fresh(module: nn.Module, work: Run) -> None:
    module.zero_grad()
    work()


def _gradient(module: nn.Module) -> Tensor:
    return torch.cat(
        [
            torch.zeros(p.numel()).to(p) if p.grad is None else p.grad.flatten()
            for p in module.parameters()
        ]
    )


def _asked(learner: Learner, episodes: Episode) -> Tensor:
    with torch.no_grad():
        return learner(episodes)


def _in_bfloat16(device: str, run: Run) -> None:
    # A cached cast would tie the graphs of tasks together.
    with torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False):
        run()


# The convolutions of a step, alone

Call = tuple[Any, tuple[Any, ...]]  # an operation and its arguments


class _Recorded(TorchDispatchMode):
    """Notes every convolution below autograd: forward, backward, and the double backward that
    autograd makes of further convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.like: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (
            torch.ops.aten.convolution.default,
            torch.ops.aten.convolution_backward.default,
        ):
            self.calls.append(
                (
                    func,
                    tuple(self._stand_in(arg) if isinstance(arg, Tensor) else arg for arg in args),
                )
            )
        return func(*args, **(kwargs or {}))

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """Random numbers of the same shape and layout; one tensor for all of a kind, so that a
        replay needs no more memory than a step.
        """
        kind = (tensor.shape, tensor.stride(), tensor.dtype)
        if kind not in self.like:
            empty = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )
            self.like[kind] = empty.normal_()
        return self.like[kind]


def convolutions(case: Case) -> list[Call]:
    """The convolution calls of one task's meta-gradient, as the plain network makes them:
    operations and their arguments.
    """
    task, net = unstack(replace(case, tasks=1).episodes()), case.plain()
    with _Recorded() as recorded:
        peer_loops.meta_backward("torch", net, case.recipe(), task)
    return recorded.calls


def replay(calls: Sequence[Call]) -> None:
    """Make the calls again."""
    with torch.no_grad():
        for operation, arguments in calls:
            operation(*arguments)


def replay_all(calls: Sequence[Call], tasks: int, learner: Learner | None = None) -> None:
    """Make them for every task: a task a thread where a learner says on which device, otherwise one
    after the other.
    """
    if learner is None:
        for _ in range(tasks):
            replay(calls)
    else:
        for _ in in_threads(learner, range(tasks), lambda _, number: replay(calls)):
            pass


# Memory, sampling, processes


def peak(case: Case, side: str, threads: int) -> int:
    """Bytes that one meta-gradient holds at its peak, above what the process held before; to be
    called in a fresh process.
    """
    torch.set_num_threads(threads)
    peers = [] if side == OURS else [side]
    small = replace(case, tasks=2, queries=1, hidden=2)
    gradient_runs(small, peers, small.learner(), small.episodes())[
        side
    ]()  # libraries and threads are there now
    learner, episodes = case.learner(), case.episodes()
    run = gradient_runs(case, peers, learner, episodes)[side]
    if torch.device(case.device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        for _ in range(2):  # the second one may be recorded
            run()
        return torch.cuda.max_memory_allocated() - held
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    held = _memory_now("VmRSS")
    run()
    return _memory_now("VmHWM") - held


def in_fresh_process(call: str) -> Any:
    """What a call of a function of this file gives in a process of its own."""
    code = f"import json\nfrom benchmarks.speed import Case, peak\nprint(json.dumps({call}))"
    return _output([sys.executable, "-W", "ignore", "-c", code])


def _output(command: Sequence[str]) -> Any:
    # Every larger block goes back to the system when it is freed, so that a peak is of what is in
    # use, not of what the heap holds.
    environment = (
        {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"} if "-c" in command else dict(os.environ)
    )
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parent.parent
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def samplers(queries: int, *, learn2learn: bool, classes: int = 1028) -> dict[str, Run]:
    """A call a side that draws one 5-way 1-shot episode from the same images in memory, 20 a class."""
    images = LabelledImages(
        torch.randint(256, (classes * 20, 1, 28, 28), dtype=torch.uint8),
        torch.arange(classes).repeat_interleave(20),
    )
    drawn = FewShot(images, 5, 1, queries, tasks=10**9)
    numbers = iter(range(10**9))
    runs: dict[str, Run] = {OURS: lambda: drawn[next(numbers)]}
    if learn2learn:
        import learn2learn as l2l  # `Session` has imported it before, without the warnings of its age

        dataset = l2l.data.MetaDataset(images)
        steps = l2l.data.transforms
        make = [steps.FusedNWaysKShots(dataset, n=5, k=1 + queries), steps.LoadData(dataset)]
        taskset = l2l.data.Taskset(
            dataset,
            [*make, steps.RemapLabels(dataset), steps.ConsecutiveLabels(dataset)],
            num_tasks=-1,
        )
        runs["learn2learn"] = taskset.sample
    return runs


if __name__ == "__main__":
    run_benchmark(speed)
