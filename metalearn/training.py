"""The outer loop: trains a learner on tasks, and goes on after any interruption as if there had been none."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metalearn import checkpoints, files, memory, ranks
from metalearn.episodes import Episode, unstack
from metalearn.evaluation import Tasks, accuracies, describe, drawn, evaluate
from metalearn.execution import in_flight, meta_backward, without_graphs
from metalearn.files import Record
from metalearn.learner import Learner
from metalearn.progress import progress as shown_progress
from metalearn.records import records


@dataclass
class Curve:
    """How training went.

    `losses` and `accuracies` hold a float a step: the means over that step's tasks (accuracies are NaN for real targets). `validation`
    holds a record a validation: step, measure, mean, interval; `best` is the best of them, None without any. `seconds` is the time
    spent in training steps, over all resumes.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    seconds: float = 0.0

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
    saved: str = "none was asked for"

    @property
    def step(self) -> int:
        return len(self.curve.losses)

    def save(self, path: str | os.PathLike[str], write: Callable[..., None] = checkpoints.save) -> None:
        """Write a checkpoint. Every rank must call it; the first one writes."""
        states = ranks.gather(checkpoints.generators(_device(self.learner)))
        if ranks.here()[0] == 0:
            tensors = {checkpoints.WEIGHTS + name: tensor for name, tensor in self.learner.state_dict().items()}
            for name in ("losses", "accuracies"):
                tensors[f"curve.{name}"] = torch.tensor(getattr(self.curve, name), dtype=torch.float64)
            record = {
                "step": self.step,
                "settings": self.settings,
                "versions": checkpoints.versions(),
                "optimizer": checkpoints.pack(self.optimizer.state_dict(), "optimizer", tensors),
                "schedule": checkpoints.pack(self.schedule.state_dict() if self.schedule else None, "schedule", tensors),
                "generators": states,
                "validation": self.curve.validation,
                "seconds": self.curve.seconds,
            }
            write(path, tensors, record)
        self.saved = f"{os.fspath(path)} (step {self.step})"

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take everything over from the checkpoint, where the first rank finds one. Raises ValueError where it is another run's."""
        found = None
        if ranks.here()[0] == 0:
            with contextlib.suppress(FileNotFoundError):
                tensors, record = checkpoints.load(path, set_aside=True)
                found = safetensors.torch.save(tensors), record  # bytes, since only plain values go from rank to rank
        found = ranks.from_first(found)
        if found is None:
            return
        tensors, record = safetensors.torch.load(found[0]), found[1]
        checkpoints.check_same(self.settings, record["settings"], path)
        if record["versions"] != checkpoints.versions():
            warnings.warn(
                f"{os.fspath(path)} was written under {record['versions']} and goes on under {checkpoints.versions()}, "
                "so its last bits may differ from an uninterrupted run",
                stacklevel=3,
            )
        weights = {name.removeprefix(checkpoints.WEIGHTS): t for name, t in tensors.items() if name.startswith(checkpoints.WEIGHTS)}
        checkpoints.load_weights(self.learner, weights, os.fspath(path))
        self.optimizer.load_state_dict(checkpoints.unpack(record["optimizer"], tensors))
        if self.schedule:
            self.schedule.load_state_dict(checkpoints.unpack(record["schedule"], tensors))
        states, (rank, _) = record["generators"], ranks.here()
        if rank < len(states):
            checkpoints.set_generators(states[rank], _device(self.learner))
        self.curve = Curve(tensors["curve.losses"].tolist(), tensors["curve.accuracies"].tolist(), record["validation"], record["seconds"])
        self.saved = f"{os.fspath(path)} (step {self.step})"


def meta_train(
    learner: Learner,
    episodes: Tasks,
    *,
    steps: int,
    meta_batch: int = 4,
    optimizer: Optimizer | Callable[..., Optimizer] | None = None,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
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

    Step s moves them against the gradient of the mean query loss over tasks (s * meta_batch + j) mod len(episodes), j < meta_batch. Where
    `checkpoint` exists the run goes on from it, and ends with the same weights to the last bit as one that was not interrupted (on a GPU:
    where its kernels repeat). Under torchrun the ranks share out every meta-batch, and the first one writes.

    Args:
        episodes: training tasks by index, such as `FewShot`.
        steps: outer steps in all, those before a resume included.
        meta_batch: tasks per step, over all ranks together.
        optimizer: from parameters to an optimizer (`lambda p: torch.optim.SGD(p, lr=0.1)`), or an optimizer over the learner's
            parameters; None for Adam with lr=1e-3.
        schedule: from the optimizer to a schedule, stepped once a step (`lambda o: CosineAnnealingLR(o, 60_000)`).
        clip_value: each gradient entry is clipped to this magnitude, as in the MAML papers' code.
        clip_norm: the gradient is scaled down to at most this norm.
        validation: tasks to evaluate on every `validate_every` steps and after the last; the best checkpoint so far is kept as
            `<checkpoint>.best`.
        checkpoint: a path, written before the first step, every `checkpoint_every` steps, after the last, and on Ctrl-C; the one before
            is kept as `<checkpoint>.previous`. `metalearn.checkpoints.restore` reads its weights.
        log: a path of JSON lines, one a step, also after resumes; what an earlier run left there moves to `<log>.previous`.
        tensorboard: a folder for TensorBoard (the extra `tensorboard`).
        precision: "bfloat16" runs what is safe in it under autocast; "tf32" multiplies float32 in tf32 on CUDA (10 bits of mantissa);
            None computes in the learner's own dtype, as torch is set.
        progress: show how tasks are run, the memory expected, loss, accuracy, rate and time left on standard error.
        settings: what else decides the run, JSON-able (data set, seeds, model); recorded in the checkpoint, and compared on
            resume, but for what stands under "notes".

    Raises FloatingPointError naming step, tasks and last good checkpoint where a loss or gradient is not finite; ValueError naming the
    setting where the checkpoint is another run's; KeyboardInterrupt after Ctrl-C, once the step is finished and the checkpoint written;
    ConnectionError naming the last checkpoint where another rank died. Warns, with the ways out, where a step is expected to need more
    memory than there is (see `metalearn.memory`).

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
    _check(
        learner, episodes, precision, steps=steps, meta_batch=meta_batch, validate_every=validate_every, checkpoint_every=checkpoint_every
    )
    ranks.join(_device(learner))
    ranks.same_weights(learner)
    run = Run(learner, *_outer(learner, optimizer, schedule), settings={})
    chosen = {"meta_batch": meta_batch, "clip_value": clip_value, "clip_norm": clip_norm, "precision": precision}
    run.settings = _recorded(run, episodes, chosen, settings)
    parameters = list(learner.trained().values())
    first = ranks.here()[0] == 0
    with (
        contextlib.ExitStack() as opened,
        _resumed(run, checkpoint, steps),
        _naming_the_checkpoint(run),
        _interrupts() as asked_to_stop,
        records(log if first else None, tensorboard if first else None, run.step) as write,
        shown_progress("training", steps, done=run.step, shown=progress and first) as advance,
    ):
        stop = False
        if run.step < steps:
            _foresee(run, episodes, meta_batch, precision, shown=progress and first)
        coming = opened.enter_context(contextlib.closing(_meta_batches(run, episodes, meta_batch, steps)))
        while run.step < steps and not stop:
            started = time.perf_counter()
            tasks, stacked = next(coming)
            learner.zero_grad(set_to_none=True)
            losses, right, finite = _backward(learner, stacked, len(tasks), precision)
            if not finite:
                _refuse(run, losses, episodes, tasks)
            if clip_value is not None:
                clip_grad_value_(parameters, clip_value)
            if clip_norm is not None:
                clip_grad_norm_(parameters, clip_norm)
            rate = float(run.optimizer.param_groups[0]["lr"])
            run.optimizer.step()
            if run.schedule:
                run.schedule.step()
            run.curve.losses.append(float(losses.mean()))
            run.curve.accuracies.append(float(right.mean()))
            run.curve.seconds += time.perf_counter() - started

            last, stop = run.step == steps, ranks.anywhere(asked_to_stop.is_set())
            measured = None
            if validation is not None and (last or run.step % validate_every == 0):
                measured = _validate(run, validation, f"{os.fspath(checkpoint)}.best" if checkpoint else None)
            write(_record(run, rate, measured))
            if checkpoint and (last or stop or run.step % checkpoint_every == 0):
                run.save(checkpoint)
            advance(text=_recent(run.curve))
        if stop or asked_to_stop.is_set():
            raise KeyboardInterrupt(f"stopped after step {run.step} of {steps}; last checkpoint: {run.saved}")
    return run.curve


def _meta_batches(run: Run, episodes: Tasks, meta_batch: int, steps: int) -> Generator[tuple[list[int], Episode | None]]:
    """The tasks of every step to come, and the stack of those that are this rank's, if any.

    Tasks of ours depend on their index alone, so that for a GPU the next ones are drawn while it works on these.
    """
    (rank, count), device = ranks.here(), _device(run.learner)
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None  # a thread has one of its own

    def draw(step: int) -> tuple[list[int], Episode | None]:
        tasks = [(step * meta_batch + j) % len(episodes) for j in range(meta_batch)]
        with torch.cuda.stream(stream):
            return tasks, drawn(episodes, tasks[rank::count], run.learner) if rank < len(tasks) else None

    left = range(run.step, steps)
    if stream is None or not type(episodes).__module__.startswith("metalearn."):
        yield from map(draw, left)
        return
    with ThreadPoolExecutor(1, "metalearn-draw") as pool:
        coming = pool.submit(draw, left[0])
        for step in left:
            ready = coming.result()
            if step + 1 < steps:
                coming = pool.submit(draw, step + 1)
            yield ready


def _backward(learner: Learner, stacked: Episode | None, tasks: int, precision: str | None) -> tuple[Tensor, Tensor, bool]:
    """Fill `.grad` with the mean over the tasks of all ranks -> losses and accuracies (meta_batch,), float64 on the CPU; whether finite."""
    rank, count = ranks.here()
    figures, trained = torch.zeros(2, tasks, dtype=torch.float64), list(learner.trained().values())
    found = torch.zeros(2, 0, dtype=torch.float64)
    if stacked is not None:
        with _computing_in(precision, learner):
            done = meta_backward(learner, stacked, scale=1 / tasks)
        found = torch.stack((done.losses.double(), accuracies(done.logits, stacked.query.targets)))
    ranks.total_gradients(trained)
    norm = get_total_norm([p.grad for p in trained if p.grad is not None])
    read = torch.cat((found.flatten(), norm.double().reshape(1).to(found.device))).cpu()  # the one time that a GPU is waited for
    figures[:, rank::count] = read[:-1].view(2, -1)
    losses, right = ranks.total(figures)
    return losses, right, bool(losses.isfinite().all() and read[-1].isfinite())


def _foresee(run: Run, episodes: Tasks, meta_batch: int, precision: str | None, *, shown: bool) -> None:
    """Say how tasks are run and what memory they are expected to need; warn where that exceeds what there is."""
    learner, (rank, count) = run.learner, ranks.here()
    share, states = -(-meta_batch // count), checkpoints.generators(_device(learner))
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count > 1 and _device(learner).type == "cpu" else 1
    said, advice = "tasks run in: {}, {} at once".format(*in_flight(learner, share)), None
    try:
        task = unstack(drawn(episodes, [run.step * meta_batch % len(episodes)], learner))[0]
        with _computing_in(precision, learner):
            expected = memory.forecast(learner, task, tasks=share)
            said, advice = str(expected), memory.ways_out(learner, task, expected, processes=sharing)
    except Exception as error:  # the first step will raise what is really wrong
        said += f" (memory could not be foretold: {str(error).splitlines()[:1]})"
    checkpoints.set_generators(states, _device(learner))  # the run draws as it would without a forecast
    if shown:
        if in_flight(learner, share)[0] == "vectorized" and _device(learner).type == "cuda":
            said += f"; not in CUDA graphs: {without_graphs(learner) or 'asked for so'}"
        print(f"training: {said}", file=sys.stderr, flush=True)
    if advice and rank == 0:
        warnings.warn(advice, stacklevel=3)


@contextlib.contextmanager
def _resumed(run: Run, checkpoint: str | os.PathLike[str] | None, steps: int) -> Iterator[None]:
    """Keep the checkpoint from other processes, and go on from it, or write it before the first step."""
    if not checkpoint:
        yield
        return
    with contextlib.ExitStack() as held:
        refused = None
        if ranks.here()[0] == 0:
            try:
                held.enter_context(files.locked(checkpoint))
            except OSError as error:
                refused = error
        ranks.raise_together(refused)
        run.resume(checkpoint)
        if run.step > steps:
            raise ValueError(
                f"{checkpoint} is at step {run.step} already, past steps={steps}; "
                "ask for more steps or name another checkpoint"
            )
        if run.step == 0:
            run.save(checkpoint)
        yield


@contextlib.contextmanager
def _naming_the_checkpoint(run: Run) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        raise ConnectionError(f"{error}; last checkpoint: {run.saved}. {ranks.CURE}") from error


@contextlib.contextmanager
def _computing_in(precision: str | None, learner: Learner) -> Iterator[None]:
    # A cached cast would tie the graphs of tasks together.
    cast = torch.autocast(_device(learner).type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)
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


def _refuse(run: Run, losses: Tensor, episodes: Tasks, tasks: list[int]) -> None:
    """Raise FloatingPointError naming what is not finite."""
    seed = getattr(episodes, "seed", None)
    named = ", ".join(str(task) for task, loss in zip(tasks, losses, strict=True) if not loss.isfinite())
    what = f"the loss of task {named}"
    if not named:
        gradients = {name: p.grad for name, p in run.learner.trained().items() if p.grad is not None}
        broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        what = (
            f"the gradient of {', '.join(broken) or 'all parameters together (its norm overflows)'} over tasks {', '.join(map(str, tasks))}"
        )
    raise FloatingPointError(
        f"step {run.step + 1}: {what} (seed {seed}) is not finite; the weights are as they were before this step. Last good checkpoint: "
        f"{run.saved}. A lower inner or outer rate or clip_norm=10 keeps it finite, unless the data of the task is broken"
    )


def _validate(run: Run, validation: Tasks, best: str | None) -> Record:
    result = evaluate(run.learner, validation)
    interval = None if math.isnan(result.interval) else result.interval
    record = {"step": run.step, "measure": result.measure, "mean": result.mean, "interval": interval}
    run.curve.validation.append(record)
    if best and run.curve.best is record:
        saved = run.saved
        run.save(best, files.save)
        run.saved = saved
    return record


def _outer(
    learner: Learner, optimizer: Optimizer | Callable[..., Optimizer] | None, schedule: Callable[[Optimizer], LRScheduler] | None
) -> tuple[Optimizer, LRScheduler | None]:
    trained = list(learner.trained().values())
    if not trained:
        raise ValueError("the learner has no parameter to train; set requires_grad_(True) on what the outer loop should move")
    chosen: Any = torch.optim.Adam(trained, lr=1e-3) if optimizer is None else optimizer
    made = chosen if isinstance(chosen, Optimizer) else chosen(trained)
    own = {id(p) for p in learner.parameters()}
    if any(id(p) not in own for group in made.param_groups for p in group["params"]):
        raise ValueError("the optimizer holds parameters that are not the learner's; build it over learner.parameters()")
    scheduled = None if schedule is None else schedule(made)
    if isinstance(scheduled, ReduceLROnPlateau):
        raise ValueError(
            "ReduceLROnPlateau waits for a validation loss, and schedules are stepped once a step; use MultiStepLR or CosineAnnealingLR"
        )
    return made, scheduled


def _recorded(run: Run, episodes: Tasks, training: Record, settings: Record | None) -> Record:
    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.tolist()
        return os.fspath(value) if isinstance(value, os.PathLike) else f"{type(value).__module__}.{type(value).__qualname__}"

    groups = [{name: value for name, value in group.items() if name != "params"} for group in run.optimizer.param_groups]
    optimizer = {"name": type(run.optimizer).__name__, **{str(i): group for i, group in enumerate(groups)}}
    schedule = {"name": type(run.schedule).__name__, **run.schedule.state_dict()} if run.schedule else None
    record = {
        "learner": run.learner.settings(),
        "episodes": describe(episodes),
        "training": {**training, "optimizer": optimizer, "schedule": schedule},
        "run": settings or {},
    }
    return json.loads(json.dumps(record, default=plain))


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that the step is finished; the second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked
        return

    def ask(signum: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, b"\nfinishing this step, then stopping; Ctrl-C again stops at once\n")

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _record(run: Run, rate: float, validation: Record | None) -> Record:
    right = run.curve.accuracies[-1]
    record = {"step": run.step, "loss": run.curve.losses[-1], "lr": rate, "seconds": round(run.curve.seconds, 3)}
    return record | ({} if math.isnan(right) else {"accuracy": right}) | ({"validation": validation} if validation else {})


def _recent(curve: Curve) -> str:
    def mean(values: list[float]) -> float:
        return sum(values[-20:]) / len(values[-20:])

    right = mean(curve.accuracies)
    return f"loss {mean(curve.losses):.4f}" + ("" if math.isnan(right) else f"  accuracy {100 * right:.1f} %")


def _device(learner: Learner) -> torch.device:
    return next(learner.parameters()).device


def _check(learner: Learner, episodes: Tasks, precision: str | None, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if not hasattr(episodes, "__getitem__"):
        raise TypeError(f"meta_train draws tasks by index, which a {type(episodes).__name__} has not; pass the data set itself (FewShot)")
    if len(episodes) == 0:
        raise ValueError("there are no training tasks: len(episodes) is 0")
    if precision == "float16":
        raise ValueError(
            "precision='float16' needs loss scaling, which the inner loop's gradients would not survive; use 'bfloat16' or None"
        )
    if precision not in (None, "bfloat16", "tf32"):
        raise ValueError(f"precision={precision!r} is not one of 'bfloat16', 'tf32' and None")
    if precision == "tf32" and _device(learner).type != "cuda":
        raise ValueError(f"precision='tf32' is of CUDA devices, and the learner is on {_device(learner)}; leave precision out")
    if precision == "bfloat16" and _device(learner).type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(f"{torch.cuda.get_device_name(_device(learner))} does not compute in bfloat16; leave precision out")
