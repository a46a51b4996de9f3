"""One network a strategy and seed, trained here or in other processes."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.analysis import Profile, compare_layers
from metalearn.network.activations import representations
from metalearn.network.forward import Inputs, map_tensors
from metalearn.network.layers import layers as layer_names
from metalearn.network.layers import owners
from metalearn.network.modes import evaluation_mode
from metalearn.runtime import distributed, files, parallel, provenance
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Damaged, Record, _checksum
from metalearn.runtime.progress import progress as shown_progress
from metalearn.runtime.tables import plain
from transfer.comparison import statistics
from transfer.comparison.results import EndSimilarity, LayerRetention, Run
from transfer.finetuning.curve import Curve
from transfer.finetuning.finetune import FineTuning, named_tensors
from transfer.initialisation.strategies import initialize


@dataclass(frozen=True)
class _Plan:
    """What one run needs, wherever it is performed."""

    strategies: dict[str, Any]
    build: Build
    train: Train
    probe: Inputs
    layers: Sequence[str] | None
    folder: Path
    measure: str
    settings: Record
    starts: dict[tuple[str, int], str] = field(
        default_factory=dict
    )  # checksums of starts, once known

    def path(self, name: str, seed: int) -> Path:
        """The file of a run; a name that is no file name gets a checksum, so that two of them stay
        apart.
        """
        plain_name = re.sub(r"[^\w.=+-]+", "-", name)
        own = (
            plain_name
            if plain_name == name
            else f"{plain_name}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        )
        return self.folder / f"{own}-seed{seed}.safetensors"

    def network(self, name: str, seed: int) -> nn.Module:
        """The network as it is built."""
        chosen = self.strategies[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = (chosen[0] if isinstance(chosen, tuple) else self.build)()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"build() returned a {type(model).__name__} for {name}; it must return a"
                " torch.nn.Module"
            )
        return model

    def start(self, name: str, seed: int) -> tuple[nn.Module, Record]:
        """The network as this run starts, and the report of it."""
        chosen, model = self.strategies[name], self.network(name, seed)
        return (
            model,
            initialize(
                model, chosen[1] if isinstance(chosen, tuple) else chosen, seed=seed
            ).to_dict(),
        )

    def try_out(self, seed: int) -> None:
        """Start every strategy and look at two inputs, so that what cannot work is said before
        hours of training.
        """
        for name in self.strategies:
            model, _ = self.start(name, seed)
            few = replace(self, probe=map_tensors(lambda tensor: tensor[:2], self.probe))
            try:
                _outputs((model, {}), [], few.probe)
            except (RuntimeError, TypeError) as error:
                shapes = ", ".join(
                    str(tuple(tensor.shape)) for tensor in named_tensors(self.probe).values()
                )
                raise ValueError(
                    f"{name}: the network does not take the probe, inputs {shapes} ({error});"
                    " train.probe() makes some"
                ) from error
            try:
                _profile((model, {}), (model, {}), few)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    def done(self, name: str, seed: int, *, waiting: bool = False) -> bool:
        """Whether the run's file is there and whole; while `waiting` for another's, a damaged one
        counts as not there.
        """
        path = self.path(name, seed)
        try:
            _, record = files.load(path)
        except FileNotFoundError:
            return False
        except Damaged as error:
            if not waiting:
                print(
                    f"{error}: the run {name}, seed {seed}, is repeated",
                    file=sys.stderr,
                    flush=True,
                )
            return False
        if (name, seed) not in self.starts:
            network, _ = self.start(name, seed)
            self.starts[name, seed] = _checksum(_state(network), "")[:16]
        settings = {**self.settings, "start": self.starts[name, seed]}
        provenance.check_same(settings, record["settings"], path)
        return True

    def perform(self, name: str, seed: int, advance: Callable[..., None] | None = None) -> None:
        """Do the run and write its file."""
        path = self.path(name, seed)
        for torn in path.parent.glob(f".{path.name}.*"):
            torn.unlink(missing_ok=True)
        model, report = self.start(name, seed)
        before = _state(model)
        settings = {**self.settings, "start": _checksum(before, "")[:16]}
        try:
            curve = (
                self.train(model, seed, advance)
                if isinstance(self.train, FineTuning)
                else self.train(model, seed)
            )  # type: ignore[call-arg]
        except (ValueError, FloatingPointError) as error:
            raise type(error)(f"{name}, seed {seed}: {error}") from error
        if not isinstance(curve, Curve):
            raise TypeError(
                f"train() returned a {type(curve).__name__} for {name}; it must return a"
                " transfer.finetuning.finetune.curve.Curve"
            )
        after = _state(model)
        kept = _kept(model.cpu(), before, after, self)
        tensors = {f"end.{key}": tensor for key, tensor in after.items()}
        filters = _filters(model, before, after)
        if filters is not None:
            tensors["filters"] = filters
        about = {
            "strategy": name,
            "seed": seed,
            "curve": curve.to_dict(),
            "initialisation": report,
            "kept": plain(kept),
        }
        files.save(
            path, tensors, {**about, "settings": settings, "versions": provenance.versions()}
        )

    def read(self, name: str, seed: int) -> Run:
        """The run that was performed."""
        tensors, record = files.load(self.path(name, seed))
        rows: list[Record] = [
            {key: math.nan if value is None else value for key, value in row.items()}
            for row in record["kept"]
        ]
        kept = tuple(LayerRetention(**row) for row in rows)
        filters = (
            tensors["filters"].clone() if "filters" in tensors else None
        )  # else all of the file stays in memory with them
        return Run(
            name, seed, Curve.from_dict(record["curve"]), record["initialisation"], kept, filters
        )

    def end(self, name: str, seed: int) -> dict[str, Tensor]:
        """The weights and buffers that the run ended with."""
        tensors, _ = files.load(self.path(name, seed))
        return {
            key.removeprefix("end."): tensor
            for key, tensor in tensors.items()
            if key.startswith("end.")
        }


def _perform(
    plan: _Plan, wanted: list[tuple[str, int]], pool: Executor | None, progress: bool
) -> None:
    """All runs that are not there yet: this rank's share of them, here or in a pool."""
    rank, count = distributed.rank(), distributed.world_size()
    mine = wanted[rank::count]
    left = [key for key in mine if not plan.done(*key)]
    steps = getattr(plan.train, "steps", 1)
    unit = "step" if steps > 1 else "run"
    with shown_progress(
        f"{len(mine)} runs",
        steps * len(mine),
        unit=unit,
        done=steps * (len(mine) - len(left)),
        shown=progress and rank == 0,
    ) as advance:
        if pool:
            _share_out(
                pool, _Plan.perform, left, lambda key: advance(steps, f"{key[0]}, seed {key[1]}")
            )
        else:
            for name, seed in left:
                plan.perform(name, seed, _told(advance, f"{name}, seed {seed}: "))
                if not isinstance(plan.train, FineTuning):
                    advance(steps, f"{name}, seed {seed}")
    others = [key for key in wanted if key not in mine]
    while others:
        others = [key for key in others if not plan.done(*key, waiting=True)]
        time.sleep(WAITING if others else 0)


def _told(advance: Callable[..., None], which: str) -> Callable[..., None]:
    return lambda count=1, text="": advance(count, which + text)


@contextmanager
def _workers(plan: _Plan, processes: int) -> Iterator[Executor | None]:
    """Processes that hold the plan, each with its share of the cores, started when there is work;
    None for one.
    """
    if processes == 1:
        yield None
        return
    try:
        packed = pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"processes={processes} cannot hand the runs to other processes ({error}): define build"
            " and train at the top of a module, leave processes at 1, or start the script with"
            " torchrun"
        ) from error
    threads = max(1, torch.get_num_threads() // processes)
    source = parallel.start_method(
        __name__
    )  # never a fork of this process: torch's threads do not survive it
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(
        processes, mp_context=source, initializer=_receive, initargs=(packed, threads)
    ) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                if worker not in others:
                    worker.terminate()  # rather than wait for runs that are under way: files are whole or absent
            raise


def _share_out(
    pool: Executor,
    work: Callable[..., Any],
    items: Sequence[tuple[Any, ...]],
    finished: Callable[[tuple[Any, ...]], None],
) -> list[Any]:
    """`work(plan, *item)` of every item -> what each gave, in order."""
    if items:
        _check_started(pool)
    started = {pool.submit(_there, work, item): item for item in items}
    try:
        for future in as_completed(started):
            future.result()
            finished(started[future])
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process ended in the middle of its run, often for lack of memory; runs that"
            " are done are kept in folder=, and fewer processes= need less"
        ) from error
    return [future.result() for future in started]


def _check_started(pool: Executor) -> None:
    """Let a worker unpack the plan before it is handed work."""
    try:
        pool.submit(_unpack).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process could not import this script; in a script file, put the call of"
            f" compare() under `{parallel.GUARD}`, or pass processes=1"
        ) from error
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"a worker process cannot import what compare() was given ({error}): define build,"
            " train and strategies at the top of a module or a script file, or pass processes=1"
        ) from error


_received: list[Any] = []  # in a worker: the plan, packed until it is first needed


def _receive(packed: bytes, threads: int) -> None:
    parallel.end_with_parent()
    torch.set_num_threads(threads)
    _received[:] = [packed]


def _unpack() -> None:
    """Unpack the plan."""
    if isinstance(_received[0], bytes):
        _received[:] = [pickle.loads(_received[0])]


def _there(work: Callable[..., Any], item: tuple[Any, ...]) -> Any:
    _unpack()
    return work(_received[0], *item)


def _alike(
    plan: _Plan,
    names: list[str],
    seeds: list[int],
    baseline: str,
    pool: Executor | None,
    progress: bool,
) -> tuple[EndSimilarity, ...]:
    """Every strategy's end against its own, and against the baseline's, under the next seed."""
    pairs = tuple(zip(seeds, seeds[1:] + seeds[:1], strict=True))[
        : len(seeds) if len(seeds) > 2 else len(seeds) - 1
    ]
    if not pairs:
        return ()
    items = [(name, baseline, pairs) for name in names]
    with shown_progress("comparing ends", len(names), unit="start", shown=progress) as advance:
        if pool:
            found = _share_out(pool, _ends, items, lambda item: advance(text=item[0]))
        else:
            found = []
            for item in items:
                found.append(_ends(plan, *item))
                advance(text=item[0])
    return tuple(row for rows in found for row in rows)


def _ends(
    plan: _Plan, name: str, baseline: str, pairs: Sequence[tuple[int, int]]
) -> list[EndSimilarity]:
    """One strategy's layers, each with how alike two of its ends are, and one of it and one of the
    baseline.
    """
    model, other = plan.network(name, pairs[0][0]), plan.network(baseline, pairs[0][0])
    own: list[Profile] = []
    base: list[Profile] = []
    for seed, following in pairs:
        ours = (model, plan.end(name, seed))
        own.append(_profile(ours, (model, plan.end(name, following)), plan))
        base.append(
            own[-1]
            if name == baseline
            else _profile(ours, (other, plan.end(baseline, following)), plan)
        )
    shared = [row.layer for row in base[0].layers]
    values = {
        layer: [[profile[layer].similarity for profile in profiles] for profiles in (own, base)]
        for layer in shared
    }
    return [
        EndSimilarity(name, layer, *map(statistics.over_seeds, both))
        for layer, both in values.items()
    ]


def _profile(ours: Weighted, theirs: Weighted, plan: _Plan, draws: int = 0) -> Profile:
    probe = map_tensors(Tensor.cpu, plan.probe)
    options: dict[str, Any] = {"measure": plan.measure, "rows": ROWS, "draws": draws}
    if isinstance(probe, Tensor):
        return compare_layers(ours, theirs, probe, plan.layers, **options)
    names = plan.layers or [name for name in layer_names(ours[0]) if name in layer_names(theirs[0])]
    return compare_layers(_outputs(ours, names, probe), _outputs(theirs, names, probe), **options)


def _outputs(network: Weighted, names: Sequence[str], inputs: Inputs) -> dict[str, Tensor]:
    """What the named layers put out; `compare_layers` takes a tuple for a loader, so several inputs
    are run here.
    """
    model, weights = network
    if isinstance(inputs, Mapping):
        positional, named = (), dict(inputs)
    else:
        positional, named = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs), {}
    with evaluation_mode([model]), torch.no_grad(), representations(model, names) as outputs:
        functional_call(model, dict(weights), positional, named)
    return outputs


def _digest(probe: Inputs) -> str:
    tensors = {"probe": probe} if isinstance(probe, Tensor) else named_tensors(probe)
    return _checksum({name: tensor.cpu() for name, tensor in tensors.items()}, "")[:16]


def _kept(
    model: nn.Module, before: dict[str, Tensor], after: dict[str, Tensor], plan: _Plan
) -> list[LayerRetention]:
    profile = _profile((model, before), (model, after), plan, draws=10)
    correlations = _correlations(model, before, after)
    return [
        LayerRetention(
            row.layer,
            row.similarity,
            row.floor.upper,
            correlations.get(row.layer, math.nan),
            row.note,
        )
        for row in profile.layers
    ]


def _correlations(
    model: nn.Module, before: dict[str, Tensor], after: dict[str, Tensor]
) -> dict[str, float]:
    """Layer -> Pearson's correlation of all its weights before and after, biases and normalisation
    left out.
    """
    owner = owners(model)
    found = {}
    for layer in layer_names(model):
        names = [
            name for name, p in model.named_parameters() if owner[name] == layer and p.ndim > 1
        ]
        if names:
            both = torch.stack(
                [
                    torch.cat([side[name].flatten() for name in names]).double()
                    for side in (before, after)
                ]
            )
            centred = both - both.mean(1, keepdim=True)
            norm = float(centred.norm(dim=1).prod())
            found[layer] = float(centred[0] @ centred[1]) / norm if norm else math.nan
    return found


def _filters(
    model: nn.Module, before: dict[str, Tensor], after: dict[str, Tensor]
) -> Tensor | None:
    first = next(
        (
            f"{path}.weight"
            for path, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        ),
        None,
    )
    return (
        None
        if first is None
        else torch.stack([side[first.lstrip(".")][:FILTERS] for side in (before, after)])
    )


def _state(model: nn.Module) -> dict[str, Tensor]:
    both = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().cpu().clone() for name, tensor in both}


def checked_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds, each once and one at least."""
    seeds = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise TypeError(
            f"seeds={seeds!r} is no list of whole numbers; write seeds=[0, 1, 2, 3, 4, 5] or"
            " range(6)"
        )
    numbers = [whole_number("a seed", seed, least=0) for seed in seeds]
    twice = sorted({seed for seed in numbers if numbers.count(seed) > 1})
    if twice:
        raise ValueError(
            f"seeds={numbers} has {twice[0]} twice: the same run again is no more evidence; give"
            " each seed once"
        )
    if not numbers:
        raise ValueError("seeds is empty; give at least one, and six for tests at the level 0.05")
    return numbers


@contextmanager
def _place(folder: str | os.PathLike[str] | None) -> Iterator[Path]:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        first = distributed.rank() == 0
        with files.locked(Path(folder) / "comparison") if first else nullcontext():
            yield Path(folder)
    else:
        with tempfile.TemporaryDirectory() as passing:
            yield Path(passing)


Build: TypeAlias = Callable[[], nn.Module]


Train: TypeAlias = Callable[[nn.Module, int], Curve]


Weighted: TypeAlias = tuple[nn.Module, Mapping[str, Tensor]]


ROWS = 5_000  # examples times positions that layers are compared over


FILTERS = 16  # first-layer filters kept for the picture


WAITING = 0.5  # seconds between looks for the files of other ranks
