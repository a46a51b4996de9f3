"""The runs of a comparison: one network for each start and seed, trained here or in processes."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from metalearn.network.forward import Inputs, map_tensors
from metalearn.runtime import distributed, files, parallel, provenance
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Damaged, Record, _checksum
from metalearn.runtime.progress import progress as shown_progress
from metalearn.runtime.tables import plain
from transfer.comparison import statistics
from transfer.comparison.first_step import first_step
from transfer.comparison.results import EndSimilarity, FirstStep, LayerRetention, Run
from transfer.comparison.retention import Network, Profile, first_filters, outputs, retained
from transfer.comparison.retention import profile as profile_of
from transfer.finetuning.curve import Curve
from transfer.finetuning.data import named_tensors
from transfer.finetuning.finetune import FineTuning
from transfer.initialisation.strategies import Strategy, initialize

TRIED = 4  # inputs of the first try: debiased measures need as many

Build: TypeAlias = Callable[[], nn.Module]
Train: TypeAlias = Callable[[nn.Module, int], Curve]
Key: TypeAlias = tuple[str, int]
"""The name of a strategy, and a seed."""


@dataclass(frozen=True)
class Plan:
    """Everything that one run needs, in any process."""

    strategies: dict[str, Strategy | tuple[Build, Strategy]]
    build: Build
    train: Train
    probe: Inputs
    layers: Sequence[str] | None
    folder: Path
    measure: str
    settings: Record
    # Checksums of starts, once they are known.
    starts: dict[Key, str] = field(default_factory=dict)

    def path(self, name: str, seed: int) -> Path:
        """The file of a run; a name that is no file name gets a checksum, which keeps it unique."""
        stem = re.sub(r"[^\w.=+-]+", "-", name)
        if stem != name:
            stem = f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        return self.folder / f"{stem}-seed{seed}.safetensors"

    def network(self, name: str, seed: int) -> nn.Module:
        """The network as it is built."""
        strategy = self.strategies[name]
        build = strategy[0] if isinstance(strategy, tuple) else self.build
        # The same fresh weights for every strategy under one seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"build() returned a {type(model).__name__} for {name}; it must return a"
                " torch.nn.Module"
            )
        return model

    def start(self, name: str, seed: int) -> tuple[nn.Module, Record]:
        """The network as this run starts, and the report of its initialisation."""
        model = self.network(name, seed)
        strategy = self.strategies[name]
        if isinstance(strategy, tuple):
            strategy = strategy[1]
        return model, initialize(model, strategy, seed=seed).to_dict()

    def profile(self, first: Network, second: Network) -> Profile:
        """The similarity of two networks, layer by layer."""
        return profile_of(first, second, self.probe, layers=self.layers, measure=self.measure)

    def try_out(self, seed: int) -> None:
        """Start every strategy and run a few inputs, to find errors before hours of training."""
        for name in self.strategies:
            model, _ = self.start(name, seed)
            few = replace(self, probe=map_tensors(lambda tensor: tensor[:TRIED], self.probe))
            try:
                outputs((model, {}), [], few.probe)
            except (RuntimeError, TypeError) as error:
                shapes = [str(tuple(tensor.shape)) for tensor in named_tensors(self.probe).values()]
                raise ValueError(
                    f"{name}: the network does not take the probe, inputs {', '.join(shapes)}"
                    f" ({error}); train.probe() makes some"
                ) from error
            try:
                few.profile((model, {}), (model, {}))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    def done(self, name: str, seed: int) -> bool:
        """Whether the run's file is there and whole.

        Raises:
            ValueError: the file is of a run with other settings or another start.
        """
        path = self.path(name, seed)
        try:
            _, record = files.load(path)
        except FileNotFoundError:
            return False
        except Damaged as error:
            print(f"{error}: the run {name}, seed {seed}, is repeated", file=sys.stderr, flush=True)
            return False
        # Other weights under the same name are another start.
        if (name, seed) not in self.starts:
            network, _ = self.start(name, seed)
            self.starts[name, seed] = _short_checksum(_state(network))
        settings = {**self.settings, "start": self.starts[name, seed]}
        provenance.check_same(settings, record["settings"], path)
        return True

    def perform(self, name: str, seed: int, advance: Callable[..., None] | None = None) -> None:
        """Do the run and write its file."""
        path = self.path(name, seed)
        # Files that a kill left half written.
        for torn in path.parent.glob(f".{path.name}.*"):
            torn.unlink(missing_ok=True)
        model, report = self.start(name, seed)
        before = _state(model)
        curve = self._trained(model, name, seed, advance)
        first = self._first_step(name, seed)
        after = _state(model)
        model.cpu()  # as the probe is
        kept = retained(model, before, after, self.probe, layers=self.layers, measure=self.measure)
        tensors = {f"end.{key}": tensor for key, tensor in after.items()}
        filters = first_filters(model, before, after)
        if filters is not None:
            tensors["filters"] = filters
        record = {
            "strategy": name,
            "seed": seed,
            "curve": curve.to_dict(),
            "initialisation": report,
            "kept": plain(kept),
            "first": plain(first),
            "settings": {**self.settings, "start": _short_checksum(before)},
            "versions": provenance.versions(),
        }
        files.save(path, tensors, record)

    def _trained(
        self, model: nn.Module, name: str, seed: int, advance: Callable[..., None] | None
    ) -> Curve:
        """Train the network; errors name the run."""
        try:
            # A user's own function shows no progress.
            if isinstance(self.train, FineTuning):
                curve = self.train(model, seed, advance)
            else:
                curve = self.train(model, seed)
        except (ValueError, FloatingPointError) as error:
            raise type(error)(f"{name}, seed {seed}: {error}") from error
        if not isinstance(curve, Curve):
            raise TypeError(
                f"train() returned a {type(curve).__name__} for {name}; it must return a"
                " transfer.finetuning.curve.Curve"
            )
        return curve

    def _first_step(self, name: str, seed: int) -> FirstStep | None:
        """The start of a run on its first batch; None for a user's own training."""
        # It runs after the training, whose errors name what does not fit, so the start is built
        # once more.
        if not isinstance(self.train, FineTuning):
            return None
        start, _ = self.start(name, seed)
        return first_step(start, self.train, seed)

    def read(self, name: str, seed: int) -> Run:
        """The run that was performed."""
        tensors, record = files.load(self.path(name, seed))
        kept = []
        for row in record["kept"]:
            # JSON has no NaN.
            numbers: Record = {
                key: math.nan if value is None else value for key, value in row.items()
            }
            kept.append(LayerRetention(**numbers))
        filters = tensors.get("filters")
        if filters is not None:
            filters = filters.clone()  # otherwise all of the file stays in memory with them
        curve = Curve.from_dict(record["curve"])
        return Run(
            name,
            seed,
            curve,
            record["initialisation"],
            tuple(kept),
            filters,
            _first_step_of(record),
        )

    def end(self, name: str, seed: int) -> dict[str, Tensor]:
        """The weights and buffers that the run ended with."""
        tensors, _ = files.load(self.path(name, seed))
        return {
            key.removeprefix("end."): tensor
            for key, tensor in tensors.items()
            if key.startswith("end.")
        }


def _first_step_of(record: Record) -> FirstStep | None:
    """The first step of a run's record; None if it has none, as files of earlier versions."""
    first = record.get("first")
    if first is None:
        return None
    gradients = {}
    for layer, norm in first["gradients"].items():
        gradients[layer] = math.nan if norm is None else norm  # JSON has no NaN
    return FirstStep(**{**first, "gradients": gradients})


def perform_runs(
    plan: Plan, keys: list[Key], workers: parallel.Workers | None, *, progress: bool
) -> None:
    """Do all runs that are missing: this rank's share of them, here or in worker processes."""
    # Every rank has its share of the runs by their numbers.
    rank = distributed.rank()
    share = keys[rank :: distributed.world_size()]
    left = [key for key in share if not plan.done(*key)]
    steps = getattr(plan.train, "steps", 1)
    with shown_progress(
        f"{len(share)} runs",
        steps * len(share),
        unit="step" if steps > 1 else "run",
        done=steps * (len(share) - len(left)),
        shown=progress and rank == 0,
    ) as advance:
        if workers:
            for (name, seed), _ in _in_workers(workers, Plan.perform, left):
                advance(steps, f"{name}, seed {seed}")
        else:
            for name, seed in left:
                plan.perform(name, seed, _prefixed(advance, f"{name}, seed {seed}: "))
                if not isinstance(plan.train, FineTuning):  # which advances by itself
                    advance(steps, f"{name}, seed {seed}")
    distributed.all_gather(None)  # wait until the other ranks have written their runs


def _prefixed(advance: Callable[..., None], prefix: str) -> Callable[..., None]:
    return lambda count=1, text="": advance(count, prefix + text)


@contextmanager
def started_workers(plan: Plan, processes: int) -> Iterator[parallel.Workers | None]:
    """Processes that hold the plan, each with its share of the cores; None for one process."""
    if processes == 1:
        yield None
        return
    # Packed once, and unpacked once in each process.
    try:
        packed = pickle.dumps((plan,))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"processes={processes} cannot hand the runs to other processes ({error}): define build"
            " and train at the top of a module, leave processes at 1, or start the script with"
            " torchrun"
        ) from error
    threads = max(1, torch.get_num_threads() // processes)
    with parallel.Workers(
        processes, "compare()", __name__, packed=packed, threads=threads
    ) as workers:
        yield workers


def _in_workers(
    workers: parallel.Workers, work: Callable[..., Any], jobs: Sequence[parallel.Job]
) -> Iterator[tuple[parallel.Job, Any]]:
    """Yield each job and what `work(plan, *job)` returned, in the order in which they finish."""
    if jobs:
        _start(workers)
    for job, future in workers.perform(work, jobs):
        try:
            result = future.result()
        except ChildProcessError as error:
            raise ChildProcessError(
                f"a run stopped: {error}. Runs that are done are kept in folder=, and fewer"
                " processes= need less memory"
            ) from error
        yield job, result


def _start(workers: parallel.Workers) -> None:
    """Start the first process, which imports what the plan holds."""
    try:
        workers.start()
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"a worker process cannot import what compare() was given ({error}): define build,"
            " train and strategies at the top of a module or a script file, or pass processes=1"
        ) from error


def compare_ends(
    plan: Plan,
    names: list[str],
    seeds: list[int],
    baseline: str,
    workers: parallel.Workers | None,
    *,
    progress: bool,
) -> tuple[EndSimilarity, ...]:
    """Each strategy's end against its own, and the baseline's, under the next seed."""
    # Each seed with the next one, and the last with the first.
    pairs = list(zip(seeds, seeds[1:] + seeds[:1], strict=True))
    if len(seeds) < 3:
        pairs = pairs[: len(seeds) - 1]  # two seeds make one pair, and one seed none
    if not pairs:
        return ()
    jobs = [(name, baseline, pairs) for name in names]
    # Workers finish in any order; the result has the order of `names`.
    rows: dict[str, list[EndSimilarity]] = {}
    with shown_progress("comparing ends", len(names), unit="start", shown=progress) as advance:
        if workers:
            finished = _in_workers(workers, _ends, jobs)
        else:
            finished = ((job, _ends(plan, *job)) for job in jobs)
        for (name, *_), result in finished:
            rows[name] = result
            advance(text=name)
    return tuple(row for name in names for row in rows[name])


def _ends(
    plan: Plan, name: str, baseline: str, pairs: Sequence[tuple[int, int]]
) -> list[EndSimilarity]:
    """Similarity of two ends of one strategy, and of its end and the baseline's, by layer."""
    # The modules are shells for the weights of the ends.
    model = plan.network(name, pairs[0][0])
    other = plan.network(baseline, pairs[0][0])
    with_itself: list[Profile] = []
    with_baseline: list[Profile] = []
    for seed, following in pairs:
        end = (model, plan.end(name, seed))
        with_itself.append(plan.profile(end, (model, plan.end(name, following))))
        if name == baseline:
            with_baseline.append(with_itself[-1])
        else:
            with_baseline.append(plan.profile(end, (other, plan.end(baseline, following))))
    # Only layers that both networks have.
    rows = []
    for row in with_baseline[0].layers:
        layer = row.layer
        itself = statistics.over_seeds([each[layer].similarity for each in with_itself])
        base = statistics.over_seeds([each[layer].similarity for each in with_baseline])
        rows.append(EndSimilarity(name, layer, itself, base))
    return rows


def digest(probe: Inputs) -> str:
    """A checksum of the probe."""
    tensors = {"probe": probe} if isinstance(probe, Tensor) else named_tensors(probe)
    return _short_checksum({name: tensor.cpu() for name, tensor in tensors.items()})


def _short_checksum(tensors: dict[str, Tensor]) -> str:
    return _checksum(tensors, "")[:16]


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, on the CPU."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors}


def checked_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds as a list of ints.

    Raises:
        TypeError: they are no list of whole numbers.
        ValueError: there is none, or one is there twice.
    """
    if isinstance(seeds, Tensor):
        seeds = seeds.tolist()
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise TypeError(
            f"seeds={seeds!r} is no list of whole numbers; write seeds=[0, 1, 2, 3, 4, 5] or"
            " range(6)"
        )
    numbers = [whole_number("a seed", seed, least=0) for seed in seeds]
    repeated = sorted({seed for seed in numbers if numbers.count(seed) > 1})
    if repeated:
        raise ValueError(
            f"seeds={numbers} has {repeated[0]} twice: the same run again is no more evidence; give"
            " each seed once"
        )
    if not numbers:
        raise ValueError("seeds is empty; give at least one, and six for tests at the level 0.05")
    return numbers


@contextmanager
def runs_folder(folder: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The folder of the runs, locked against other comparisons; a temporary one for None."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # Under torchrun the first rank holds the lock for all of them.
    lock = files.locked(path / "comparison") if distributed.rank() == 0 else nullcontext()
    with lock:
        yield path
