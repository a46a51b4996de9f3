"""The outer loop: trains a learner on tasks, and goes on after any interruption as if there had
been none.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TypeVar

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from metalearn.algorithms.base import Learner
from metalearn.engine import memory
from metalearn.engine.execution import in_flight, without_graphs
from metalearn.engine.meta_gradient import meta_backward
from metalearn.episodes import Episode, unstack
from metalearn.evaluation import (
    Tasks,
    accuracies,
    check_learner,
    check_tasks,
    describe,
    evaluate,
    first_task,
    load,
)
from metalearn.runtime import distributed, files, provenance, random_state
from metalearn.runtime.checks import positive_number, whole_number
from metalearn.runtime.files import Record
from metalearn.runtime.progress import progress as shown_progress

from . import checkpoints
from .log import records

Choice = TypeVar("Choice")
NOT_SAVED = "none was asked for"
UNCLIPPED = "leave it out to train without clipping"


@dataclass
class Curve:
    """How training went.

    `losses` and `accuracies` hold a float a step: the means over that step's tasks (accuracies are
    NaN for real targets). `validation` holds a record a validation: step, measure, mean, interval;
    `best` is the best of them, None without any. `seconds` is the time spent in training steps,
    over all resumes.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    seconds: float = 0.0

    def __repr__(self) -> str:
        if not self.losses:
            return "Curve(no steps)"
        best = (
            f", best validation {self.best['mean']:.4g} at step {self.best['step']}"
            if self.best
            else ""
        )
        return (
            f"Curve({len(self.losses)} steps, last loss {self.losses[-1]:.4g}{best},"
            f" {self.seconds:.0f} s)"
        )

    @property
    def best(self) -> Record | None:
        better = min if self.validation and self.validation[0]["measure"] == "loss" else max
        return better(self.validation, key=lambda record: record["mean"], default=None)


@dataclass
class Run:
    """All that decides the next step, which is what a checkpoint holds."""

    learner: Learner
    optimizer: Optimizer
    schedule: LRScheduler | None
    settings: Record
    curve: Curve = field(default_factory=Curve)
    saved: str = NOT_SAVED

    @property
    def step(self) -> int:
        return len(self.curve.losses)

    def save(
        self, path: str | os.PathLike[str], write: Callable[..., None] = checkpoints.save
    ) -> None:
        """Write a checkpoint. Every rank must call it; the first one writes."""
        states = distributed.all_gather(random_state.generators(_device(self.learner)))
        if distributed.rank() == 0:
            tensors = {
                checkpoints.WEIGHTS + name: tensor
                for name, tensor in self.learner.state_dict().items()
            }
            for name in ("losses", "accuracies"):
                tensors[f"curve.{name}"] = torch.tensor(
                    getattr(self.curve, name), dtype=torch.float64
                )
            record = {
                "step": self.step,
                "settings": self.settings,
                "versions": provenance.versions(),
                "optimizer": checkpoints.pack(self.optimizer.state_dict(), "optimizer", tensors),
                "schedule": checkpoints.pack(
                    self.schedule.state_dict() if self.schedule else None, "schedule", tensors
                ),
                "generators": states,
                "validation": self.curve.validation,
                "seconds": self.curve.seconds,
            }
            write(path, tensors, record)
        self.saved = f"{os.fspath(path)} (step {self.step})"

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take everything over from the checkpoint, where the first rank finds one.

        Raises ValueError where it is another run's.
        """
        found = None
        if distributed.rank() == 0:
            with contextlib.suppress(FileNotFoundError):
                tensors, record = checkpoints.load(path, set_aside=True)
                found = (
                    safetensors.torch.save(tensors),
                    record,
                )  # bytes, since only plain values go from rank to rank
        found = distributed.broadcast(found)
        if found is None:
            return
        tensors, record = safetensors.torch.load(found[0]), found[1]
        provenance.check_same(self.settings, record["settings"], path)
        if record["versions"] != provenance.versions():
            warnings.warn(
                f"{os.fspath(path)} was written under {record['versions']} and goes on under"
                f" {provenance.versions()}, so its last bits may differ from an uninterrupted run",
                stacklevel=3,
            )
        weights = {
            name.removeprefix(checkpoints.WEIGHTS): t
            for name, t in tensors.items()
            if name.startswith(checkpoints.WEIGHTS)
        }
        checkpoints.load_weights(self.learner, weights, os.fspath(path))
        self.optimizer.load_state_dict(checkpoints.unpack(record["optimizer"], tensors))
        if self.schedule:
            self.schedule.load_state_dict(checkpoints.unpack(record["schedule"], tensors))
        states, rank = record["generators"], distributed.rank()
        if rank < len(states):
            random_state.set_generators(states[rank], _device(self.learner))
        self.curve = Curve(
            tensors["curve.losses"].tolist(),
            tensors["curve.accuracies"].tolist(),
            record["validation"],
            record["seconds"],
        )
        self.saved = f"{os.fspath(path)} (step {self.step})"


def meta_train(
    learner: Learner,
    episodes: Tasks,
    *,
    steps: int,
    meta_batch: int = 4,
    optimizer: str | Optimizer | Callable[..., Optimizer] | None = None,
    schedule: str | Callable[[Optimizer], LRScheduler] | None = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    validation: Tasks | None = None,
    validate_every: int = 500,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 200,
    log: str | os.PathLike[str] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
    precision: str | None = None,
    progress: bool = True,
    settings: Record | None = None,
) -> Curve:
    """Train the learner's parameters in place for `steps` outer steps -> `Curve`.

    Step s moves them against the gradient of the mean query loss over tasks (s * meta_batch + j)
    mod len(episodes), j < meta_batch. Where `checkpoint` exists the run goes on from it, and ends
    with the same weights to the last bit as one that was not interrupted (on a GPU: where its
    kernels repeat). Under torchrun the ranks share out every meta-batch, and the first one writes.

    Args:
        episodes: training tasks by index, such as `FewShot`.
        steps: outer steps in all, those before a resume included.
        meta_batch: tasks per step, over all ranks together.
        optimizer: "adam", "adamw", "sgd" or "momentum" (0.9), each with lr=1e-3; or from parameters
            to an optimizer (`lambda p: torch.optim.SGD(p, lr=0.1)`), or an optimizer over the
            learner's parameters; None for "adam".
        schedule: "cosine" or "linear", from the optimizer's rate to 0 over `steps`; or from the
            optimizer to a schedule, stepped once a step (`lambda o: CosineAnnealingLR(o, 60_000)`).
        clip_value: each gradient entry is clipped to this magnitude, as in the MAML papers' code.
        clip_norm: the gradient is scaled down to at most this norm.
        validation: tasks to evaluate on every `validate_every` steps and after the last; the best
            checkpoint so far is kept as `<checkpoint>.best`.
        checkpoint: a path, written before the first step, every `checkpoint_every` steps, after the
            last, and on Ctrl-C or SIGTERM; the one before is kept as `<checkpoint>.previous`.
            `metalearn.training.restore` reads its weights.
        log: a path of JSON lines, one a step, also after resumes; what an earlier run left there
            moves to `<log>.previous`.
        tensorboard: a folder for TensorBoard (the extra `tensorboard`).
        precision: "bfloat16" runs what is safe in it under autocast; "tf32" multiplies float32 in
            tf32 on CUDA (10 bits of mantissa); None computes in the learner's own dtype, as torch
            is set.
        progress: show how tasks are run, the memory expected, loss, accuracy, rate and time left on
            standard error.
        settings: what else decides the run, JSON-able (data set, seeds, model); recorded in the
            checkpoint, and compared on resume, but for what stands under "notes".

    Raises:
        FloatingPointError: naming step, tasks and last good checkpoint, if a loss, a gradient or a
            weight is not finite.
        ValueError: naming the setting, if one cannot be meant, differs from the checkpoint's, or
            differs between ranks.
        TypeError: naming the setting, if it is of another type.
        KeyboardInterrupt: after Ctrl-C, once the step is finished and the checkpoint written.
        SystemExit: with code 143 after SIGTERM, once the step is finished and the checkpoint
            written. (Only the main thread receives signals; those that the program handles itself
            are left to it.)
        ConnectionError: naming the last checkpoint, if another rank died.

    Warns, with the ways out, where a step is expected to need more memory than there is (see
    `metalearn.engine.memory`).

    Example:
        >>> import torch
        >>> from metalearn import MAML
        >>> from metalearn.models import MLP
        >>> from metalearn.tasks import Sinusoid
        >>> learner = MAML(MLP(1, 1), lr=0.01, loss=torch.nn.functional.mse_loss)
        >>> curve = meta_train(learner, Sinusoid(shots=10, queries=10, tasks=100), steps=3, progress=False)
        >>> len(curve.losses)
        3
    """
    check_learner(learner)
    distributed.join(_device(learner))
    with distributed.failing_together():
        steps = whole_number("steps", steps)
        meta_batch = whole_number("meta_batch", meta_batch)
        validate_every = whole_number("validate_every", validate_every)
        checkpoint_every = whole_number("checkpoint_every", checkpoint_every)
        if clip_value is not None:
            clip_value = positive_number("clip_value", clip_value, UNCLIPPED)
        if clip_norm is not None:
            clip_norm = positive_number("clip_norm", clip_norm, UNCLIPPED)
        _check(
            learner,
            episodes,
            validation,
            precision,
            settings,
            checkpoint=checkpoint,
            log=log,
            tensorboard=tensorboard,
        )
        if learner.guessed and learner.needs_head:  # which decides what is trained
            states = random_state.generators(_device(learner))
            learner.prepare(load(episodes, [0], learner))
            random_state.set_generators(states, _device(learner))
        run = Run(learner, *_outer(learner, optimizer, schedule, steps), settings={})
        chosen = {
            "meta_batch": meta_batch,
            "clip_value": clip_value,
            "clip_norm": clip_norm,
            "precision": precision,
        }
        run.settings = _recorded(run, episodes, chosen, settings)
        plan: Record = {
            "steps": steps,
            "checkpoint_every": checkpoint_every if checkpoint else None,
        }
        if validation is not None:
            plan |= {"validate_every": validate_every, "validation": describe(validation)}
        decisive = _decisive(run, episodes, plan)
    distributed.check_same(decisive, "Start every rank with the same settings")
    distributed.same_weights(learner)
    parameters = list(learner.meta_parameters().values())
    first = distributed.rank() == 0
    with (
        contextlib.ExitStack() as opened,
        _resumed(run, checkpoint, steps),
        _naming_the_checkpoint(run),
        _stop_signals() as received,
        records(log if first else None, tensorboard if first else None, run.step) as write,
        shown_progress("training", steps, done=run.step, shown=progress and first) as advance,
    ):
        stop: signal.Signals | None = None
        if run.step < steps:
            _foresee(run, episodes, meta_batch, precision, shown=progress and first)
        coming = opened.enter_context(
            contextlib.closing(_meta_batches(run, episodes, meta_batch, steps))
        )
        while run.step < steps and not stop:
            started = time.perf_counter()
            tasks, stacked = next(coming)
            learner.zero_grad(set_to_none=True)
            losses, right, finite = _backward(learner, stacked, len(tasks), precision)
            if not finite:
                _refuse(run, losses, episodes, tasks, precision)
            if clip_value is not None:
                clip_grad_value_(parameters, clip_value)
            if clip_norm is not None:
                clip_grad_norm_(parameters, clip_norm)
            rates = _rates(run)
            run.optimizer.step()
            if run.schedule:
                run.schedule.step()
            run.curve.losses.append(float(losses.mean()))
            run.curve.accuracies.append(float(right.mean()))
            run.curve.seconds += time.perf_counter() - started

            last = run.step == steps
            stop = _agreed_stop(run, rates, received())
            measured = None
            if validation is not None and (last or run.step % validate_every == 0):
                measured = _validate(
                    run, validation, f"{os.fspath(checkpoint)}.best" if checkpoint else None
                )
            write(_record(run, rates[0], measured))
            if last or stop or run.step % checkpoint_every == 0:
                _check_weights(run)
                if checkpoint:
                    run.save(checkpoint)
            advance(text=_recent(run.curve))
        stop = stop or received()
    if stop:
        _stop(stop, run, steps)
    return run.curve


def _meta_batches(
    run: Run, episodes: Tasks, meta_batch: int, steps: int
) -> Generator[tuple[list[int], Episode | None]]:
    """The tasks of every step to come, and the stack of those that are this rank's, if any.

    For a GPU the next tasks are drawn while it works on these, in a thread, if their class declares
    with `draws_by_index` that a task depends on its index alone.
    """
    rank, count = distributed.rank(), distributed.world_size()
    device = _device(run.learner)
    stream = (
        torch.cuda.current_stream(device) if device.type == "cuda" else None
    )  # a thread has one of its own

    def draw(step: int) -> tuple[list[int], Episode | None]:
        tasks = [(step * meta_batch + j) % len(episodes) for j in range(meta_batch)]
        with torch.cuda.stream(stream):
            return tasks, (
                load(episodes, tasks[rank::count], run.learner) if rank < len(tasks) else None
            )

    left = range(run.step, steps)
    if stream is None or not vars(type(episodes)).get("draws_by_index", False):
        yield from map(draw, left)
        return
    with ThreadPoolExecutor(1, "metalearn-draw") as pool:
        coming = pool.submit(draw, left[0])
        for step in left:
            ready = coming.result()
            if step + 1 < steps:
                coming = pool.submit(draw, step + 1)
            yield ready


def _backward(
    learner: Learner, stacked: Episode | None, tasks: int, precision: str | None
) -> tuple[Tensor, Tensor, bool]:
    """Fill `.grad` with the mean over the tasks of all ranks -> losses and accuracies
    (meta_batch,), float64 on the CPU; whether finite.
    """
    rank, count = distributed.rank(), distributed.world_size()
    figures, trained = (
        torch.zeros(2, tasks, dtype=torch.float64),
        list(learner.meta_parameters().values()),
    )
    found = torch.zeros(2, 0, dtype=torch.float64)
    if stacked is not None:
        with _computing_in(precision, learner):
            done = meta_backward(learner, stacked, scale=1 / tasks)
        found = torch.stack((done.losses.double(), accuracies(done.logits, stacked.query.targets)))
    distributed.all_reduce_gradients(trained)
    norm = get_total_norm([p.grad for p in trained if p.grad is not None])
    read = torch.cat(
        (found.flatten(), norm.double().reshape(1).to(found.device))
    ).cpu()  # the one time that a GPU is waited for
    figures[:, rank::count] = read[:-1].view(2, -1)
    losses, right = distributed.all_reduce(figures)
    return losses, right, bool(losses.isfinite().all() and read[-1].isfinite())


def _foresee(
    run: Run, episodes: Tasks, meta_batch: int, precision: str | None, *, shown: bool
) -> None:
    """Say how tasks are run and what memory they are expected to need; warn where that exceeds what
    there is.
    """
    learner = run.learner
    rank, count = distributed.rank(), distributed.world_size()
    share, states = -(-meta_batch // count), random_state.generators(_device(learner))
    sharing = (
        int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if count > 1 and _device(learner).type == "cpu"
        else 1
    )
    said, advice = "tasks run in: {}, {} at once".format(*in_flight(learner, share)), None
    try:
        task = unstack(load(episodes, [run.step * meta_batch % len(episodes)], learner))[0]
        with _computing_in(precision, learner):
            expected = memory.forecast(learner, task, tasks=share)
            said, advice = (
                str(expected),
                memory.ways_out(learner, task, expected, processes=sharing),
            )
    except Exception as error:  # the first step will raise what is really wrong
        said += f" (memory could not be foretold: {str(error).splitlines()[:1]})"
    random_state.set_generators(
        states, _device(learner)
    )  # the run draws as it would without a forecast
    if shown:
        if in_flight(learner, share)[0] == "vectorized" and _device(learner).type == "cuda":
            said += f"; not in CUDA graphs: {without_graphs(learner) or 'asked for so'}"
        print(f"training: {said}", file=sys.stderr, flush=True)
    if advice and rank == 0:
        warnings.warn(advice, stacklevel=3)


@contextlib.contextmanager
def _resumed(run: Run, checkpoint: str | os.PathLike[str] | None, steps: int) -> Iterator[None]:
    """Keep the checkpoint from other processes, and go on from it, or write it before the first
    step.
    """
    if not checkpoint:
        yield
        return
    with contextlib.ExitStack() as held:
        refused = None
        if distributed.rank() == 0:
            try:
                held.enter_context(files.locked(checkpoint))
            except OSError as error:
                refused = error
        distributed.raise_together(refused)
        run.resume(checkpoint)
        if run.step > steps:
            raise ValueError(
                f"{checkpoint} is at step {run.step} already, past steps={steps}; ask for more"
                " steps or name another checkpoint"
            )
        if run.step == 0:
            run.save(checkpoint)
        yield


@contextlib.contextmanager
def _naming_the_checkpoint(run: Run) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; last checkpoint: {run.saved}. {distributed.CURE}"
        ) from error


@contextlib.contextmanager
def _computing_in(precision: str | None, learner: Learner) -> Iterator[None]:
    # A cached cast would tie the graphs of tasks together.
    cast = torch.autocast(
        _device(learner).type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        if precision == "tf32":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        with cast:
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _refuse(
    run: Run, losses: Tensor, episodes: Tasks, tasks: list[int], precision: str | None
) -> None:
    """Raise FloatingPointError naming what is not finite."""
    _check_weights(run)
    seed = getattr(episodes, "seed", None)
    named = ", ".join(
        str(task) for task, loss in zip(tasks, losses, strict=True) if not loss.isfinite()
    )
    what = f"the loss of task {named}"
    if not named:
        gradients = {
            name: p.grad for name, p in run.learner.meta_parameters().items() if p.grad is not None
        }
        broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        of = ", ".join(broken) or "all parameters together (its norm overflows)"
        tasks = _without_gradient(run.learner, episodes, tasks, precision) or tasks
        what = f"the gradient of {of} over tasks {', '.join(map(str, tasks))}"
    raise FloatingPointError(
        f"step {run.step + 1}: {what} (seed {seed}) is not finite; the weights are as they were"
        f" before this step. Last good checkpoint: {run.saved}. A lower inner or outer rate or"
        " clip_norm=10 keeps it finite, unless the data of the task is broken"
    )


def _without_gradient(
    learner: Learner, episodes: Tasks, tasks: list[int], precision: str | None
) -> list[int]:
    """Those of the tasks whose own gradient is not finite; every rank looks at its share again."""
    rank, count = distributed.rank(), distributed.world_size()
    broken = []
    for task in tasks[rank::count]:
        learner.zero_grad(set_to_none=True)
        with _computing_in(precision, learner):
            meta_backward(learner, load(episodes, [task], learner))
        if not all(
            p.grad.isfinite().all()
            for p in learner.meta_parameters().values()
            if p.grad is not None
        ):
            broken.append(task)
    return sorted(itertools.chain.from_iterable(distributed.all_gather(broken)))


def _check_weights(run: Run) -> None:
    """Raise FloatingPointError naming the weights that an outer step has made infinite or NaN."""
    broken = [name for name, p in run.learner.meta_parameters().items() if not p.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"step {run.step}: the optimizer's step made {', '.join(broken)} not finite, though the"
            f" loss and the gradient were. Last good checkpoint: {run.saved}. Lower the outer rate,"
            " or see its other settings (such as eps)"
        )


def _rates(run: Run) -> list[float]:
    """The outer rate of each group of parameters.

    Raises ValueError for one that cannot be meant.
    """
    rates = [float(group["lr"]) for group in run.optimizer.param_groups]
    for rate in rates:
        if not 0 <= rate < math.inf:
            raise ValueError(
                f"step {run.step + 1}: the outer rate is {rate:g}; give an optimizer and a schedule"
                f" whose rates are finite and not negative. Last good checkpoint: {run.saved}"
            )
    return rates


def _validate(run: Run, validation: Tasks, best: str | None) -> Record:
    result = evaluate(run.learner, validation)
    interval = None if math.isnan(result.interval) else result.interval
    record = {
        "step": run.step,
        "measure": result.measure,
        "mean": result.mean,
        "interval": interval,
    }
    run.curve.validation.append(record)
    if best and run.curve.best is record:
        saved = run.saved
        run.save(best, files.save)
        run.saved = saved
    return record


def _outer(
    learner: Learner,
    optimizer: str | Optimizer | Callable[..., Optimizer] | None,
    schedule: str | Callable[[Optimizer], LRScheduler] | None,
    steps: int,
) -> tuple[Optimizer, LRScheduler | None]:
    trained = list(learner.meta_parameters().values())
    if not trained:
        raise ValueError(
            "the learner has no parameter to train; set requires_grad_(True) on what the outer loop"
            " should move"
        )
    chosen: Any = "adam" if optimizer is None else optimizer
    if isinstance(chosen, str):
        chosen = _by_name("optimizer", chosen, OPTIMIZERS)
    made = chosen if isinstance(chosen, Optimizer) else chosen(trained)
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"optimizer= gives a {type(made).__name__}; give a function that returns a"
            " torch.optim.Optimizer"
        )
    if isinstance(made, torch.optim.LBFGS) or any("lr" not in group for group in made.param_groups):
        raise ValueError(
            f"{type(made).__name__} does not step at one rate along one gradient; use SGD, Adam or"
            " another of their kind"
        )
    own = {id(p) for p in learner.parameters()}
    if any(id(p) not in own for group in made.param_groups for p in group["params"]):
        raise ValueError(
            "the optimizer holds parameters that are not the learner's; build it over"
            " learner.parameters()"
        )
    scheduled = None if schedule is None else _scheduled(made, schedule, steps)
    if schedule is None and not any(group["lr"] for group in made.param_groups):
        raise ValueError("the optimizer's rate lr=0 trains nothing; give a rate above 0")
    return made, scheduled


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=1e-3),
    "momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
}
SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "linear": lambda optimizer, steps: LinearLR(
        optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps
    ),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
}


def _scheduled(
    optimizer: Optimizer, schedule: str | Callable[[Optimizer], LRScheduler], steps: int
) -> LRScheduler:
    if isinstance(schedule, str):
        return _by_name("schedule", schedule, SCHEDULES)(optimizer, steps)
    if not callable(schedule):
        raise TypeError(
            f"schedule is a {type(schedule).__name__}; pass a name, or a function from the"
            " optimizer to its schedule"
        )
    try:
        scheduled = schedule(optimizer)
    except TypeError as error:
        if not isinstance(schedule, type):
            raise
        name = schedule.__name__
        raise TypeError(
            f"schedule={name} needs more than the optimizer ({error}); pass lambda optimizer:"
            f" {name}(optimizer, ...)"
        ) from error
    if isinstance(scheduled, ReduceLROnPlateau):
        raise ValueError(
            "ReduceLROnPlateau waits for a validation loss, and schedules are stepped once a step;"
            " use MultiStepLR or CosineAnnealingLR"
        )
    if not isinstance(scheduled, LRScheduler):
        raise TypeError(
            f"schedule= gives a {type(scheduled).__name__}; give a function that returns a"
            " torch.optim.lr_scheduler"
        )
    return scheduled


def _by_name(setting: str, name: str, known: Mapping[str, Choice]) -> Choice:
    if name not in known:
        raise ValueError(
            f"{setting}={name!r} is not one of {', '.join(map(repr, known))}; or pass a function"
            " that builds one"
        )
    return known[name]


def _recorded(run: Run, episodes: Tasks, training: Record, settings: Record | None) -> Record:
    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.tolist()
        return (
            os.fspath(value)
            if isinstance(value, os.PathLike)
            else f"{type(value).__module__}.{type(value).__qualname__}"
        )

    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in run.optimizer.param_groups
    ]
    optimizer = {
        "name": type(run.optimizer).__name__,
        **{str(i): group for i, group in enumerate(groups)},
    }
    schedule = (
        {"name": type(run.schedule).__name__, **run.schedule.state_dict()} if run.schedule else None
    )
    record = {
        "learner": run.learner.settings(),
        "episodes": describe(episodes),
        "training": {**training, "optimizer": optimizer, "schedule": schedule},
        "run": settings or {},
    }
    return json.loads(json.dumps(record, default=plain))


def _decisive(run: Run, episodes: Tasks, plan: Record) -> Record:
    """All that decides the weights a run ends with and the calls that ranks make together, so that
    they can be compared.
    """
    if distributed.world_size() == 1:
        return {}
    learner, trained = run.learner, run.learner.meta_parameters()
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    tensors = {
        name: (
            f"{tuple(tensor.shape)} {tensor.dtype}"
            f" {'trained' if name in trained else 'not trained'}"
        )
        for name, tensor in learner.state_dict().items()
    }
    groups = {
        str(i): [names[id(p)] for p in group["params"]]
        for i, group in enumerate(run.optimizer.param_groups)
    }
    return {
        "call": "meta_train",
        **run.settings,
        "run": {name: value for name, value in run.settings["run"].items() if name != "notes"},
        **plan,
        "weights": tensors,
        "moving": list(learner.rates),
        "optimizer of": groups,
        "in evaluation mode": [
            name or "the learner" for name, module in learner.named_modules() if not module.training
        ],
        "first task": first_task(episodes, _device(learner)),
        "versions": provenance.versions(),
    }


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], signal.Signals | None]]:
    """Ctrl-C and SIGTERM wait for the end of the step: yield a function that returns which was
    received.

    A second Ctrl-C stops at once. A second SIGTERM does not: a scheduler and torchrun may each send
    one.
    """
    received: list[signal.Signals] = []

    def receive(number: int, frame: object) -> None:
        again = ""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            again = "; Ctrl-C again stops at once"
        if not received:
            with contextlib.suppress(OSError):
                os.write(2, f"\nfinishing this step, then stopping{again}\n".encode())
        received.append(signal.Signals(number))

    defaults: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    # Signals that the program handles itself stay its own. Only the main thread can receive any.
    in_main = threading.current_thread() is threading.main_thread()
    taken = [
        number
        for number, default in defaults.items()
        if in_main and signal.getsignal(number) == default
    ]
    for number in taken:
        signal.signal(number, receive)
    try:
        yield lambda: max(received, default=None)
    finally:
        for number in taken:
            signal.signal(number, defaults[number])


def _agreed_stop(
    run: Run, rates: list[float], received: signal.Signals | None
) -> signal.Signals | None:
    """The signal after which every rank stops.

    Raises ValueError if the ranks took this step at different rates.
    """
    rank, count = distributed.rank(), distributed.world_size()
    rows = torch.zeros(count, 1 + len(rates), dtype=torch.float64)  # a row per rank
    rows[rank] = torch.tensor([received or 0, *rates])
    rows = distributed.all_reduce(rows)
    if not rows[:, 1:].equal(rows[:1, 1:].expand(count, -1)):
        distributed.check_same(
            {f"at step {run.step} the outer rate": rates}, "Give every rank the same schedule"
        )
    highest = int(rows[:, 0].max())
    return signal.Signals(highest) if highest else None


def _stop(received: signal.Signals, run: Run, steps: int) -> NoReturn:
    text = f"stopped after step {run.step} of {steps}; last checkpoint: {run.saved}"
    if received == signal.SIGINT:
        raise KeyboardInterrupt(text)
    rank, count = distributed.rank(), distributed.world_size()
    if rank == 0:
        command = (
            distributed.CURE
            if count > 1
            else f"This command goes on from there: {shlex.join(sys.orig_argv)}"
        )
        cure = "Pass checkpoint= to keep what is trained" if run.saved == NOT_SAVED else command
        print(f"training: SIGTERM: {text}. {cure}", file=sys.stderr, flush=True)
    raise SystemExit(128 + received)


def _record(run: Run, rate: float, validation: Record | None) -> Record:
    right = run.curve.accuracies[-1]
    record = {
        "step": run.step,
        "loss": run.curve.losses[-1],
        "lr": rate,
        "seconds": round(run.curve.seconds, 3),
    }
    return (
        record
        | ({} if math.isnan(right) else {"accuracy": right})
        | ({"validation": validation} if validation else {})
    )


def _recent(curve: Curve) -> str:
    def mean(values: list[float]) -> float:
        return sum(values[-20:]) / len(values[-20:])

    right = mean(curve.accuracies)
    return f"loss {mean(curve.losses):.4f}" + (
        "" if math.isnan(right) else f"  accuracy {100 * right:.1f} %"
    )


def _device(learner: Learner) -> torch.device:
    return next((p.device for p in learner.parameters()), torch.device("cpu"))


def _check(
    learner: Learner,
    episodes: Tasks,
    validation: Tasks | None,
    precision: str | None,
    settings: Record | None,
    **paths: Any,
) -> None:
    check_tasks("training tasks", episodes)
    if validation is not None:
        check_tasks("validation tasks", validation)
    if isinstance(episodes, DataLoader | Episode):
        raise TypeError(
            f"meta_train draws tasks by index, which a {type(episodes).__name__} has not; pass the"
            " data set itself (FewShot)"
        )
    if settings is not None and not isinstance(settings, dict):
        raise TypeError(
            f"settings={settings!r} is a {type(settings).__name__}; give a dictionary of what else"
            " decides the run"
        )
    for name, path in paths.items():
        if path is not None and not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"{name}={path!r} is a {type(path).__name__}; give a path, or leave it out"
            )
        if path == "":
            raise ValueError(f"{name}='' names no file; give a path, or leave it out")
    if precision == "float16":
        raise ValueError(
            "precision='float16' needs loss scaling, which the inner loop's gradients would not"
            " survive; use 'bfloat16' or None"
        )
    if precision not in (None, "bfloat16", "tf32"):
        raise ValueError(f"precision={precision!r} is not one of 'bfloat16', 'tf32' and None")
    if precision == "tf32" and _device(learner).type != "cuda":
        raise ValueError(
            f"precision='tf32' is of CUDA devices, and the learner is on {_device(learner)}; leave"
            " precision out"
        )
    if (
        precision == "bfloat16"
        and _device(learner).type == "cuda"
        and not torch.cuda.is_bf16_supported()
    ):
        raise ValueError(
            f"{torch.cuda.get_device_name(_device(learner))} does not compute in bfloat16; leave"
            " precision out"
        )
