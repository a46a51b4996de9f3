"""How fast is each algorithm beside learn2learn, higher and torchopt?

    python -m benchmarks.speed
    python -m benchmarks.speed --settings omniglot-5 --algorithms maml --figures time,gradients

Every side has its own network of the same function, the same weights and the same episodes. A
peer's loop is the one of its documentation (`peers/loops.py`), and batch norm uses the current
batch on every side. Images are random: the cost does not depend on what they show. Figures:

- time: one meta-gradient, all sides in turn, with the bare convolutions of the same step (every
  convolution call of forward, backward and double backward, recorded from the plain network and
  made again alone, tasks in threads or in a loop, whichever is faster)
- gradients: the largest difference of the meta-gradients, float32 and float64, over the first tasks
- test: adaptation and prediction without a meta-gradient
- memory: the peak of a fresh process above what it held before, with one thread and with all; on
  CUDA that of this process's tensors
- sampling: episodes per second of our sampler and of learn2learn's on the same images in memory,
  and of learn2learn's on its own Omniglot, which reads files (METALEARN_DATA names the folder)
- transforms: the same with the random transforms of CIFAR-FS (crop, colours, flip, normalised) on
  images of 32 x 32 pixels in memory, and with ours on images that are read for each task
- start: a short Omniglot training run in a fresh process with nothing cached, data included
  (METALEARN_DATA names the folder)

The peers are installed in the environment that `benchmarks/peers/install.sh` builds. One that is
missing is reported, and the others run. `--results benchmarks/results/speed.jsonl` adds a JSON line
a figure to that file.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

from metalearn import ANIL, BOIL, MAML, NIL, Episode, Examples, Learner, MetaSGD, meta_backward
from metalearn.engine.execution import choose_execution
from metalearn.engine.threads import in_threads
from metalearn.episodes import stack, unstack
from metalearn.models import MLP, Conv4
from metalearn.runtime.options import Listed
from metalearn.runtime.options import device as usable
from metalearn.tasks import FewShot, LabelledImages, Sinusoid

from . import cold
from .harness.clock import Times, medians, take_turns
from .harness.markdown import mebibytes
from .harness.markdown import seconds as said_time
from .harness.memory import fresh_process, peak_above
from .harness.rows import Row, append, choose, keep_in, origin, run_benchmark
from .peers import loops as peer_loops
from .peers.loops import Plain, Recipe

OURS = "metalearn"
BARE = "bare convolutions"
FILES = "learn2learn, its Omniglot"
COMPARED = 4  # tasks over which gradients are compared
ON_DEMAND = "metalearn, read for each task"
DRAWS = {OURS: 2000, "learn2learn": 50, FILES: 5}  # episodes of a round of sampling
TRANSFORMED_DRAWS = {OURS: 200, ON_DEMAND: 20, "learn2learn": 20}
WITH_PEERS = ("maml", "fomaml", "anil")
ALGORITHMS = (*WITH_PEERS, "boil", "meta-sgd", "nil")
FIGURES = ("time", "gradients", "test", "memory", "sampling", "transforms", "start")
EVERY_ALGORITHM = ",".join(ALGORITHMS)
EVERY_FIGURE = ",".join(FIGURES)
Run = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """A problem of the papers: ways, tasks of a meta-batch, inner steps and rate, network."""

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
    """One setting and one algorithm, with changes to them; 0 stands for the setting's own."""

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
        """The setting with its changes."""
        own = SETTINGS[self.setting]
        return replace(own, tasks=self.tasks or own.tasks, hidden=self.hidden or own.hidden)

    @property
    def kind(self) -> dict[str, Any]:
        """The device and the precision of its tensors."""
        dtypes = {False: torch.float32, True: torch.float64}
        return {"device": self.device, "dtype": dtypes[self.double]}

    def learner(self) -> Learner:
        """Our side."""
        torch.manual_seed(0)
        problem = self.problem
        model: nn.Module = MLP(1, 1)
        if problem.ways:
            model = Conv4(problem.ways, problem.channels, problem.hidden, problem.size)
        options: dict[str, Any] = {"loss": self.recipe().loss, "execution": self.execution}
        model.to(**self.kind)
        if self.algorithm == "nil":
            return NIL(model, **options)
        kind = {"anil": ANIL, "boil": BOIL, "meta-sgd": MetaSGD}.get(self.algorithm, MAML)
        first_order = self.algorithm == "fomaml"
        return kind(model, problem.lr, problem.steps, first_order=first_order, **options)

    def plain(self) -> Plain:
        """A peer's side: the same weights in plain modules."""
        problem = self.problem
        net = Plain.mlp()
        if problem.ways:
            net = Plain.conv4(problem.ways, problem.channels, problem.hidden, problem.size)
        net.to(**self.kind)
        sources = self.learner().model.parameters()
        with torch.no_grad():
            for target, source in zip(net.parameters(), sources, strict=True):
                target.copy_(source)
        return net

    def recipe(self) -> Recipe:
        """What a peer's loop is told."""
        problem = self.problem
        return Recipe(
            problem.lr,
            problem.steps,
            F.cross_entropy if problem.ways else F.mse_loss,
            head_only=self.algorithm == "anil",
            first_order=self.algorithm == "fomaml",
        )

    def episodes(self) -> Episode:
        """A stack of the tasks of one meta-batch."""
        problem = self.problem
        if not problem.ways:
            waves = Sinusoid(shots=10, queries=10, tasks=problem.tasks)
            return stack(waves[index] for index in range(problem.tasks)).to(**self.kind)
        generator = torch.Generator().manual_seed(0)
        image = (problem.channels, problem.size, problem.size)

        def examples(each: int) -> Examples:
            # (tasks, ways x each, channels, size, size), with labels (tasks, ways x each)
            shape = (problem.tasks, problem.ways * each, *image)
            labels = torch.arange(problem.ways).repeat_interleave(each).repeat(problem.tasks, 1)
            return Examples(torch.rand(shape, generator=generator), labels)

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
    bfloat16: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    tf32: bool = False,  # noqa: FBT001, FBT002  # a command line setting
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
        figures: which of time, gradients, test, memory, sampling, transforms and start, with
            commas.
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
    setting_names = choose("setting", settings, SETTINGS)
    algorithm_names = choose("algorithm", algorithms, ALGORITHMS)
    peer_names = choose("peer", peers, peer_loops.LOOPS)
    figure_names = choose("figure", figures, FIGURES)
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; each side is timed at least once")
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    session = Session(peer_names, rounds, start_steps, bfloat16=bfloat16)
    for setting in setting_names:
        for algorithm in algorithm_names:
            # NIL looks classes up, and the sinusoid has none.
            if algorithm == "nil" and not SETTINGS[setting].ways:
                continue
            case = Case(setting, algorithm, tasks, queries, hidden, device, execution)
            session.measure(case, figure_names)
    if "sampling" in figure_names:
        session.sampling(queries)
    if "transforms" in figure_names:
        session.transforms(queries)
    if "start" in figure_names:
        session.start(Case("omniglot-5", "maml", tasks, queries))


class Session:
    """One run of the benchmark: the peers that are installed, and how often each side is timed.

    Args:
        peers: those that are asked for.
        rounds: how often each side is timed.
        start_steps: outer steps of the run from a cold start.
        bfloat16: time ours under bfloat16 autocast too.
    """

    def __init__(
        self, peers: Sequence[str], rounds: int, start_steps: int, *, bfloat16: bool
    ) -> None:
        reasons = {peer: peer_loops.missing(peer) for peer in peers}
        self.peers = [peer for peer, reason in reasons.items() if not reason]
        self.missing = {peer: reason for peer, reason in reasons.items() if reason}
        self.rounds = rounds
        self.start_steps = start_steps
        self.bfloat16 = bfloat16

    def measure(self, case: Case, figures: Sequence[str]) -> None:
        """The figures of one setting and algorithm."""
        parts = {
            "time": self.time,
            "gradients": self.gradients,
            "test": self.test,
            "memory": self.memory,
        }
        for figure in figures:
            if figure in parts:
                parts[figure](case)

    def time(self, case: Case) -> None:
        """One meta-gradient, all sides in turn."""
        learner = case.learner()
        runs = gradient_runs(case, self._peers(case), learner, case.episodes())
        facts: dict[str, Any] = {"execution": choose_execution(learner)}
        if self.bfloat16:
            runs[f"{OURS}, bfloat16"] = partial(_in_bfloat16, case.device, runs[OURS])
        single = f"{BARE}, one by one"
        if case.problem.ways and case.algorithm in WITH_PEERS:
            calls = convolutions(case)
            facts["convolution_calls_a_task"] = len(calls)
            runs[BARE] = partial(replay_all, calls, case.problem.tasks, learner)
            runs[single] = partial(replay_all, calls, case.problem.tasks)
        seconds = take_turns(runs, self.rounds, device=case.device)
        if BARE in seconds:
            # With threads of its own a convolution may be faster than a task a thread, so the
            # shorter time is the floor.
            seconds[BARE] = min(seconds[BARE], seconds.pop(single), key=statistics.median)
        self._report(case, "time", {"seconds": seconds, **facts}, said_seconds(seconds))

    def test(self, case: Case) -> None:
        """Adaptation and prediction.

        learn2learn is timed as fast as its arguments allow, and as its own examples evaluate, with
        second order.
        """
        if case.algorithm == "fomaml":
            return  # at test it is MAML
        learner = case.learner()
        episodes = case.episodes()
        tasks = unstack(episodes)
        runs: dict[str, Run] = {OURS: partial(_predictions, learner, episodes)}
        how = replace(case.recipe(), test=True)
        for peer in self._peers(case):
            runs[peer] = partial(peer_loops.predictions, peer, case.plain(), how, tasks)
        # The sides must agree before they are timed.
        outputs = {name: run() for name, run in runs.items()}
        expected = outputs.pop(OURS)
        apart = {name: float((found - expected).abs().max()) for name, found in outputs.items()}
        if "learn2learn" in runs:
            second = (case.plain(), case.recipe(), tasks)
            runs["learn2learn, second order"] = partial(
                peer_loops.predictions, "learn2learn", *second
            )
        seconds = take_turns(runs, self.rounds, device=case.device)
        facts = {"seconds": seconds, "apart": apart, "execution": choose_execution(learner)}
        self._report(case, "test", facts, said_seconds(seconds))

    def gradients(self, case: Case) -> None:
        """The largest difference from each peer, in both precisions and all ways to run tasks."""
        if case.algorithm not in WITH_PEERS:
            return
        peers = [*self._peers(case), "torch"]
        count = min(case.problem.tasks, COMPARED)
        third = "threads" if case.device == "cpu" else "graphs"
        ways = {"float32": (case.execution,), "float64": ("loop", "vectorized", third)}
        apart: dict[str, dict[str, float]] = {}
        for precision, executions in ways.items():
            few = replace(case, tasks=count, double=precision == "float64")
            apart[precision] = differences(few, peers, executions)
        texts = []
        for precision, values in apart.items():
            texts.append(f"{precision} {max(values.values()):.1e} of the largest entry")
        facts = {"apart": apart, "compared_tasks": count}
        self._report(case, "gradients", facts, ", ".join(texts))

    def memory(self, case: Case) -> None:
        """The peak of every side in a fresh process."""
        on_cuda = torch.device(case.device).type == "cuda"
        counts = {torch.get_num_threads()}
        # A GPU does not care how many threads the CPU has.
        if not on_cuda:
            counts.add(1)
        bytes_used: dict[str, dict[str, int]] = {}
        for threads in sorted(counts):
            peaks = {}
            for side in [OURS, *self._peers(case)]:
                if on_cuda:
                    # A CUDA device counts what tensors hold, so this process will do.
                    peaks[side] = peak(case, side, threads)
                else:
                    peaks[side] = in_fresh_process(f"peak({case!r}, {side!r}, {threads})")
            bytes_used[str(threads)] = peaks
        texts = []
        for threads_text, peaks in bytes_used.items():
            sides = ", ".join(f"{side} {mebibytes(used)}" for side, used in peaks.items())
            texts.append(f"{threads_text} thread{'s' * (threads_text != '1')}: {sides}")
        self._report(case, "memory", {"bytes": bytes_used}, "; ".join(texts))

    def sampling(self, queries: int) -> None:
        """Episodes per second, 5-way 1-shot, of 28x28 images in memory."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        runs = samplers(queries, learn2learn="learn2learn" in self.peers)
        root = os.environ.get("METALEARN_DATA")
        with tempfile.TemporaryDirectory() as scratch:
            if root and "learn2learn" in runs:
                runs[FILES] = cold.learn2learn_tasks(root, scratch, queries).sample
            rates = self._rates(runs, DRAWS)
        sides = ", ".join(f"{name} {rate:,.0f} a second" for name, rate in medians(rates).items())
        facts = {"rates": rates, "queries": queries, "threads": 1}
        self._report(None, "sampling", facts, sides)
        torch.set_num_threads(threads)

    def transforms(self, queries: int) -> None:
        """Episodes per second, 5-way 1-shot, with the random transforms of CIFAR-FS."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        runs = transformed_samplers(queries, learn2learn="learn2learn" in self.peers)
        rates = self._rates(runs, TRANSFORMED_DRAWS)
        sides = ", ".join(f"{name} {rate:,.0f} a second" for name, rate in medians(rates).items())
        facts = {"rates": rates, "queries": queries, "threads": 1}
        self._report(None, "transforms", facts, sides)
        torch.set_num_threads(threads)

    def _rates(self, runs: Mapping[str, Run], draws: Mapping[str, int]) -> Times:
        """Draws per second of each side in each round."""
        repeated = {name: partial(_repeat, draw, draws[name]) for name, draw in runs.items()}
        rates = {}
        for name, seconds in take_turns(repeated, self.rounds).items():
            rates[name] = [draws[name] / value for value in seconds]
        return rates

    def start(self, case: Case) -> None:
        """A short training run in a fresh process that finds nothing cached."""
        root = os.environ.get("METALEARN_DATA")
        if not root:
            message = "METALEARN_DATA is not set; it names the folder that holds omniglot-py"
            print(f"start: {message}", flush=True)
            return
        sides = [OURS, *(peer for peer in self.peers if peer == "learn2learn")]
        numbers = (self.start_steps, case.problem.tasks, case.queries)
        parts: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        runs = {side: partial(_cold_start, side, root, numbers, parts[side]) for side in sides}
        seconds = take_turns(runs, self.rounds, uncounted=0)
        texts = []
        for side, measured in parts.items():
            shares = []
            for part in measured[0]:
                median = statistics.median(run[part] for run in measured)
                shares.append(f"{part} {median:.1f} s")
            texts.append(f"{side}: {', '.join(shares)}")
        facts = {
            "seconds": seconds,
            "parts": parts,
            "steps": self.start_steps,
            "queries": case.queries,
            "tasks": case.problem.tasks,
        }
        self._report(None, "start", facts, f"{said_seconds(seconds)} ({'; '.join(texts)})")

    def _peers(self, case: Case) -> list[str]:
        if case.algorithm in WITH_PEERS:
            return self.peers
        return []

    def _report(self, case: Case | None, figure: str, facts: Row, text: str) -> None:
        """Print a figure in words, and append its row."""
        title = "Omniglot 5-way 1-shot"
        row: Row = {"benchmark": "speed", "figure": figure, "said": text, "missing": self.missing}
        device = "cpu"
        gaps = self.missing
        if case:
            title = f"{case.problem.title}, {case.algorithm}"
            row |= described(case)
            if torch.device(case.device).type == "cuda":
                device = torch.cuda.get_device_name(case.device)
            if case.algorithm not in WITH_PEERS:
                gaps = {}
        missing = "".join(f"; {peer} {reason}" for peer, reason in gaps.items())
        print(f"{figure}, {title}: {text}{missing}", flush=True)
        row |= {
            "device": device,
            "threads": torch.get_num_threads(),
            "tf32": torch.backends.cudnn.allow_tf32,
            **facts,
            **origin("speed"),
        }
        for peer in self.peers:
            if peer != "compat":  # which is ours
                row["versions"][peer] = importlib.metadata.version(peer)
        append(row)


def described(case: Case) -> Row:
    """The settings of a case in a row."""
    problem = case.problem
    return {
        "setting": case.setting,
        "algorithm": case.algorithm,
        "tasks": problem.tasks,
        "queries": case.queries,
        "hidden": problem.hidden,
        "inner_steps": problem.steps,
        "lr": problem.lr,
        "asked_execution": case.execution,
    }


# Sides


def gradient_runs(
    case: Case, peers: Sequence[str], learner: Learner, episodes: Episode
) -> dict[str, Run]:
    """A call a side that computes one meta-gradient into `.grad`."""
    tasks = unstack(episodes)
    runs: dict[str, Run] = {
        OURS: partial(_fresh, learner, partial(meta_backward, learner, episodes))
    }
    for peer in peers:
        net = case.plain()
        work = partial(peer_loops.meta_backward, peer, net, case.recipe(), tasks)
        runs[peer] = partial(_fresh, net, work)
    return runs


def differences(case: Case, peers: Sequence[str], ways: Sequence[str]) -> dict[str, float]:
    """The largest difference from each peer over the largest entry, by "peer, way".

    Raises:
        RuntimeError: a meta-gradient is not finite, or all zero.
    """
    tasks = unstack(case.episodes())
    expected = {}
    for peer in peers:
        net = case.plain()
        peer_loops.meta_backward(peer, net, case.recipe(), tasks)
        expected[peer] = _gradient(net)
    apart = {}
    for way in ways:
        learner = replace(case, execution=way).learner()
        meta_backward(learner, case.episodes())
        ours = _gradient(learner.model)
        for peer, gradient in expected.items():
            difference = float((ours - gradient).abs().max() / gradient.abs().max())
            if not math.isfinite(difference):
                raise RuntimeError(
                    f"{case}: the meta-gradient of {peer} or of ours ({way}) is not finite, or all"
                    " zero"
                )
            apart[f"{peer}, {way}"] = difference
    return apart


def said_seconds(seconds: Times) -> str:
    """Medians and minima in words, with how many times ours each is."""
    middle = medians(seconds)
    ours = middle[OURS]
    parts = [f"{OURS} {said_time(ours)} (min {said_time(min(seconds[OURS]))})"]
    for name, median in middle.items():
        if name not in (OURS, BARE):
            least = said_time(min(seconds[name]))
            parts.append(f"{name} {said_time(median)} (min {least}), {median / ours:.2f} x ours")
    if BARE in middle:
        multiple = ours / middle[BARE]
        parts.append(f"{BARE} {said_time(middle[BARE])}, ours is {multiple:.2f} x that")
    return "; ".join(parts)


def _fresh(module: nn.Module, work: Run) -> None:
    module.zero_grad()
    work()


def _repeat(draw: Run, count: int) -> None:
    for _ in range(count):
        draw()


def _gradient(module: nn.Module) -> Tensor:
    """All gradients as one vector; a parameter without one counts as zeros."""
    gradients = []
    for parameter in module.parameters():
        gradient = parameter.grad
        if gradient is None:
            gradient = torch.zeros_like(parameter)
        gradients.append(gradient.flatten())
    return torch.cat(gradients)


def _predictions(learner: Learner, episodes: Episode) -> Tensor:
    with torch.no_grad():
        return learner(episodes)


def _in_bfloat16(device: str, run: Run) -> None:
    # A cached cast would tie the graphs of tasks together.
    with torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False):
        run()


def _cold_start(
    side: str, root: str, numbers: Sequence[int], parts: list[dict[str, float]]
) -> None:
    """Run one side from nothing, and note the seconds of its parts."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ("-m", "benchmarks.cold", side, root, scratch, *map(str, numbers))
        output = fresh_process(*command, give_back=False)
    parts.append(json.loads(output.splitlines()[-1]))


# The convolutions of a step, alone

Call = tuple[Any, tuple[Any, ...]]  # an operation and its arguments
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class _Recorded(TorchDispatchMode):
    """Notes every convolution below autograd: forward, backward, and those of double backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.like: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CONVOLUTIONS:
            arguments = []
            for argument in args:
                stand_in = isinstance(argument, Tensor)
                arguments.append(self._stand_in(argument) if stand_in else argument)
            self.calls.append((func, tuple(arguments)))
        return func(*args, **(kwargs or {}))

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """Random numbers of the same shape and layout.

        One tensor stands for all of a kind, so a replay needs no more memory than a step.
        """
        kind = (tensor.shape, tensor.stride(), tensor.dtype)
        if kind not in self.like:
            shape, stride, dtype = kind
            empty = torch.empty_strided(shape, stride, dtype=dtype, device=tensor.device)
            self.like[kind] = empty.normal_()
        return self.like[kind]


def convolutions(case: Case) -> list[Call]:
    """The convolution calls of one task's meta-gradient, as the plain network makes them."""
    task = unstack(replace(case, tasks=1).episodes())
    net = case.plain()
    with _Recorded() as recorded:
        peer_loops.meta_backward("torch", net, case.recipe(), task)
    return recorded.calls


def replay(calls: Sequence[Call]) -> None:
    """Make the calls again."""
    with torch.no_grad():
        for operation, arguments in calls:
            operation(*arguments)


def replay_all(calls: Sequence[Call], tasks: int, learner: Learner | None = None) -> None:
    """Make them for every task: a task a thread on the learner's device, or one by one."""
    if learner is None:
        for _ in range(tasks):
            replay(calls)
    else:
        for _ in in_threads(learner, range(tasks), lambda _, number: replay(calls)):
            pass


# Memory, sampling, processes


def peak(case: Case, side: str, threads: int) -> int:
    """Bytes at the peak of one meta-gradient, above those before; call it in a fresh process."""
    torch.set_num_threads(threads)
    peers = [] if side == OURS else [side]
    small = replace(case, tasks=2, queries=1, hidden=2)
    # Load the libraries and start their threads.
    gradient_runs(small, peers, small.learner(), small.episodes())[side]()
    run = gradient_runs(case, peers, case.learner(), case.episodes())[side]
    if torch.device(case.device).type != "cuda":
        return peak_above(run)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    for _ in range(2):  # the second one may be recorded
        run()
    return torch.cuda.max_memory_allocated() - held


def in_fresh_process(call: str) -> Any:
    """What a call of a function of this file gives in a process of its own."""
    code = f"import json\nfrom benchmarks.speed import Case, peak\nprint(json.dumps({call}))"
    return json.loads(fresh_process("-c", code).splitlines()[-1])


def samplers(queries: int, *, learn2learn: bool, classes: int = 1028) -> dict[str, Run]:
    """A call a side that draws one 5-way 1-shot episode from the same images, 20 a class."""
    images = LabelledImages(
        torch.randint(256, (classes * 20, 1, 28, 28), dtype=torch.uint8),
        torch.arange(classes).repeat_interleave(20),
    )
    tasks = FewShot(images, 5, 1, queries, tasks=10**9)
    numbers = iter(range(10**9))
    runs: dict[str, Run] = {OURS: lambda: tasks[next(numbers)]}
    if learn2learn:
        runs["learn2learn"] = _learn2learn_sampler(images, queries)
    return runs


def transformed_samplers(
    queries: int, *, learn2learn: bool, classes: int = 64, images_per_class: int = 100
) -> dict[str, Run]:
    """A call a side that draws one 5-way 1-shot episode with the same transforms of each image."""
    from torchvision.transforms import v2

    random_part = [
        v2.RandomCrop(32, padding=4),
        v2.ColorJitter(0.4, 0.4, 0.4),
        v2.RandomHorizontalFlip(),
    ]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    pixels = torch.randint(256, (classes * images_per_class, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(classes).repeat_interleave(images_per_class)
    stored = LabelledImages(pixels, labels)
    drawn = TransformedImages(pixels, labels, v2.Compose([*random_part, *last]))
    count = 10**9
    augment = v2.Compose(random_part)
    normalize = ([0.5] * 3, [0.25] * 3)
    tasks = FewShot(stored, 5, 1, queries, count, augment=augment, normalize=normalize)
    unread = FewShot(drawn, 5, 1, queries, count, in_memory=False)
    numbers = iter(range(count))
    runs: dict[str, Run] = {
        OURS: lambda: tasks[next(numbers)],
        ON_DEMAND: lambda: unread[next(numbers)],
    }
    if learn2learn:
        runs["learn2learn"] = _learn2learn_sampler(drawn, queries)
    return runs


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Images in memory with a transform of each, as torchvision's data sets have it."""

    def __init__(self, pixels: Tensor, labels: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.pixels = pixels
        self.targets = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), self.targets[index]


def _learn2learn_sampler(images: Any, queries: int) -> Run:
    # `Session` has imported it before, without the warnings of its age.
    import learn2learn as l2l

    dataset = l2l.data.MetaDataset(images)
    steps = l2l.data.transforms
    make = [steps.FusedNWaysKShots(dataset, n=5, k=1 + queries), steps.LoadData(dataset)]
    taskset = l2l.data.Taskset(
        dataset,
        [*make, steps.RemapLabels(dataset), steps.ConsecutiveLabels(dataset)],
        num_tasks=-1,
    )
    sample: Run = taskset.sample
    return sample


if __name__ == "__main__":
    run_benchmark(speed)
