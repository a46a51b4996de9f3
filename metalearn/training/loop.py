"""The outer loop: trains a learner on tasks, and resumes after any interruption to the last bit."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

from metalearn.algorithms.base import Learner
from metalearn.engine import memory
from metalearn.engine.execution import in_flight, without_graphs
from metalearn.engine.meta_gradient import meta_backward
from metalearn.engine.solver import device_of
from metalearn.episodes import Episode, unstack
from metalearn.evaluation import (
    Tasks,
    accuracies,
    check_learner,
    evaluate,
    load,
)
from metalearn.runtime import distributed, files, random_state
from metalearn.runtime.checks import whole_number
from metalearn.runtime.files import Record
from metalearn.runtime.progress import progress as shown_progress

from .callbacks import JsonLines, Status, TensorBoard
from .callbacks.calls import Callbacks, check_callbacks
from .finite import check_weights, outer_rates, refuse_step
from .optimizers import OptimizerChoice, ScheduleChoice, build_optimizer
from .penalty import Extra, Penalty, enter, no_penalty
from .plan import FilePath, Plan, check_arguments, check_paths, clipping_bound
from .precision import computing_in
from .state import (
    Curve,
    TrainingState,
    best_checkpoint,
    decisive_settings,
    naming_the_checkpoint,
    record_settings,
    resumed,
)
from .stopping import Agreed, agreed_stop, stop, stop_signals


def meta_train(
    learner: Learner,
    episodes: Tasks,
    *,
    steps: int,
    meta_batch: int = 4,
    optimizer: OptimizerChoice = None,
    schedule: ScheduleChoice = None,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    validation: Tasks | None = None,
    validate_every: int = 500,
    checkpoint: FilePath | None = None,
    checkpoint_every: int = 200,
    log: FilePath | None = None,
    tensorboard: FilePath | None = None,
    precision: str | None = None,
    progress: bool = True,
    settings: Record | None = None,
    penalty: Penalty | None = None,
    callbacks: Sequence[Any] = (),
    keep_best: bool = False,
) -> Curve:
    """Train the learner's parameters in place for `steps` outer steps.

    Step s moves them against the gradient of the mean query loss over tasks (s * meta_batch + j)
    mod len(episodes), j < meta_batch. If `checkpoint` exists, the run goes on from it and ends with
    the same weights to the last bit as one that was not interrupted (on a GPU if its kernels
    repeat). Under torchrun the ranks share every meta-batch, and the first one writes.

    Args:
        learner: trained in place.
        episodes: training tasks by index, such as `FewShot`.
        steps: outer steps in all, those before a resume included.
        meta_batch: tasks per step, over all ranks together.
        optimizer: "adam", "adamw", "sgd" or "momentum" (0.9), each with lr=1e-3; a function from
            parameters to an optimizer (`lambda p: torch.optim.SGD(p, lr=0.1)`); an optimizer over
            the learner's parameters; None for "adam".
        schedule: "cosine" or "linear", from the optimizer's rate to 0 over `steps`; or a function
            from the optimizer to a schedule, which is stepped once a step
            (`lambda o: CosineAnnealingLR(o, 60_000)`).
        clip_value: each gradient entry is clipped to this magnitude, as in the MAML papers' code.
        clip_norm: the gradient is scaled down to at most this norm.
        validation: tasks to evaluate on every `validate_every` steps and after the last; the best
            checkpoint so far is kept as `<checkpoint>.best`, which `metalearn.training.restore`
            reads like any other.
        validate_every: steps from one validation to the next.
        checkpoint: a path, written before the first step, every `checkpoint_every` steps, after the
            last, and on Ctrl-C or SIGTERM; the one before is kept as `<checkpoint>.previous`.
            `metalearn.training.restore` reads its weights.
        checkpoint_every: steps from one checkpoint to the next.
        log: short for the callback `JsonLines(log)`.
        tensorboard: short for the callback `TensorBoard(tensorboard)`.
        precision: "bfloat16" runs what is safe in it under autocast; "tf32" multiplies float32 in
            tf32 on CUDA (10 bits of mantissa); None computes in the learner's dtype, as torch is
            set.
        progress: show how tasks run, on a CPU the memory expected, loss, accuracy, rate and time
            left on standard error.
        settings: what else decides the run, JSON-able (data set, seeds, model). It is recorded in
            the checkpoint and compared on resume, except for what is under "notes".
        penalty: added to the loss once a step, from the meta-parameters alone, such as
            `metalearn.training.regularisers.pulled`. The curve has the loss without it.
        callbacks: called on the way, in this order: `metalearn.training.callbacks` has loggers,
            early stopping, a time limit and Optuna's pruning; `Callback` says how to write one.
        keep_best: leave the learner with the weights of the best validation rather than of the last
            step. The checkpoint keeps the last ones, from which a longer run continues.

    Returns:
        Loss and accuracy of every step, the validations, and why the run was stopped early, if a
        callback stopped it.

    Raises:
        FloatingPointError: a loss, a gradient or a weight is not finite; step, tasks and last good
            checkpoint are named.
        ValueError: a setting cannot be meant, differs from the checkpoint's, or differs between
            ranks.
        TypeError: a setting is of another type.
        KeyboardInterrupt: after Ctrl-C, once the step is finished and the checkpoint written.
        SystemExit: with code 143 after SIGTERM, once the step is finished and the checkpoint
            written. (Only the main thread receives signals. Those that the program handles itself
            are left to it.)
        ConnectionError: another rank died; the last checkpoint is named.
        Exception: what a callback raised, once the step is finished and the checkpoint written.
        torch.OutOfMemoryError: a GPU's memory does not suffice; the ways out are named.

    Warns:
        UserWarning: on a CPU, a step is expected to need more memory than there is; the ways out
            are named (see `metalearn.engine.memory`).

    Example:
        >>> import torch
        >>> from metalearn import MAML
        >>> from metalearn.models import MLP
        >>> from metalearn.tasks import Sinusoid
        >>> learner = MAML(MLP(1, 1), lr=0.01, loss=torch.nn.functional.mse_loss)
        >>> tasks = Sinusoid(shots=10, queries=10, tasks=100)
        >>> curve = meta_train(learner, tasks, steps=3, progress=False)
        >>> len(curve.losses)
        3
    """
    check_learner(learner)
    distributed.join(device_of(learner))
    # An error on one rank before the first step is raised on all of them.
    with distributed.failing_together():
        check_paths(checkpoint=checkpoint, log=log, tensorboard=tensorboard)
        plan = Plan(
            episodes=episodes,
            steps=whole_number("steps", steps),
            meta_batch=whole_number("meta_batch", meta_batch),
            validate_every=whole_number("validate_every", validate_every),
            checkpoint_every=whole_number("checkpoint_every", checkpoint_every),
            clip_value=clipping_bound("clip_value", clip_value),
            clip_norm=clipping_bound("clip_norm", clip_norm),
            validation=validation,
            checkpoint=checkpoint,
            precision=precision,
            shown=progress and distributed.rank() == 0,
            penalty=penalty,
            callbacks=_with_logs(callbacks, log, tensorboard),
            keep_best=keep_best,
        )
        check_arguments(learner, plan, settings)
        _settle_head(learner, episodes)
        state = TrainingState(learner, *build_optimizer(learner, optimizer, schedule, plan.steps))
        state.settings = record_settings(state, episodes, plan.decisive(), settings)
        decisive = decisive_settings(state, episodes, plan.schedule())
    distributed.check_same(decisive, "Start every rank with the same settings")
    # Otherwise the ranks would train different models with one gradient.
    distributed.same_weights(learner)
    received = _train(state, plan)
    if received:
        stop(received, state.step, plan.steps, state.saved, "Pass checkpoint=")
    if plan.keep_best:
        state.take_best(plan.checkpoint)
    return state.curve


def _with_logs(
    callbacks: Sequence[Any], log: FilePath | None, tensorboard: FilePath | None
) -> tuple[Any, ...]:
    """The callbacks, after those that `log` and `tensorboard` stand for."""
    logs: list[Any] = []
    if log:
        logs.append(JsonLines(log))
    if tensorboard:
        logs.append(TensorBoard(tensorboard))
    return (*logs, *check_callbacks(callbacks))


def _settle_head(learner: Learner, episodes: Tasks) -> None:
    """Find a guessed head, which decides what is trained, without changing the random state."""
    if not (learner.guessed and learner.needs_head):
        return
    device = device_of(learner)
    generators = random_state.generators(device)
    learner.prepare(load(episodes, [0], learner))
    random_state.set_generators(generators, device)


def _train(state: TrainingState, plan: Plan) -> signal.Signals | None:
    """Take the steps that are left; the signal that stopped them, or None."""
    rates: list[float] = []  # of the last step
    callbacks = Callbacks(
        plan.callbacks, state.device, lambda end: _status(state, plan, rates, end)
    )
    with (
        resumed(state, plan.checkpoint, plan.steps),
        naming_the_checkpoint(state),
        stop_signals() as received,
        callbacks.running(),
        shown_progress("training", plan.steps, done=state.step, shown=plan.shown) as advance,
        contextlib.closing(_meta_batches(state, plan)) as meta_batches,
        enter(plan.penalty or no_penalty, state.learner.model) as extra,
    ):
        # `resumed` may have found a finished run, and a callback may want no step.
        agreed = Agreed(None, stops=distributed.broadcast(callbacks.stops))
        if state.step < plan.steps and not agreed:
            _announce(state, plan)
        while state.step < plan.steps and not agreed:
            rates[:] = _step(state, plan, meta_batches, extra)
            last = state.step == plan.steps
            # Every rank takes part in a validation.
            if plan.validation is not None and (last or state.step % plan.validate_every == 0):
                _validate(state, plan.validation, plan)
                callbacks.call("on_validation")
            callbacks.call("on_step")
            agreed = agreed_stop(state, rates, received(), stops=callbacks.stops)
            if last or agreed or state.step % plan.checkpoint_every == 0:
                # A checkpoint never holds weights that are not finite.
                check_weights(state)
                if plan.checkpoint:
                    _save(state, plan.checkpoint, callbacks)
            advance(text=_recent(state.curve))
        state.curve.stopped = callbacks.reason()
        stopped_by = agreed.signal or received()
        if stopped_by:
            callbacks.end = f"stopped: {stopped_by.name}"
        return stopped_by


def _save(state: TrainingState, path: FilePath, callbacks: Callbacks) -> None:
    """Write a checkpoint, and call the callbacks."""
    try:
        state.save(path)
    except OSError as error:
        # A full disk fails the log first, whose error names the cause.
        raise (callbacks.raised or error) from error
    callbacks.call("on_checkpoint")


def _status(state: TrainingState, plan: Plan, rates: list[float], end: str) -> Status:
    """Where the training is, for callbacks."""
    accuracy = state.curve.accuracies[-1] if rates else math.nan
    return Status(
        call="meta_train",
        step=state.step,
        steps=plan.steps,
        model=state.learner,
        settings=state.settings,
        validates=plan.validation is not None,
        validations=state.curve.validation,
        step_loss=state.curve.losses[-1] if rates else None,
        accuracy=None if math.isnan(accuracy) else accuracy,
        lr=rates[0] if rates else None,
        seconds=state.curve.seconds,
        checkpoint=os.fspath(plan.checkpoint) if plan.checkpoint else None,
        end=end,
    )


MetaBatches = Generator[tuple[list[int], Episode | None]]


def _step(state: TrainingState, plan: Plan, meta_batches: MetaBatches, extra: Extra) -> list[float]:
    """One outer step -> the rate of each group of parameters."""
    started = time.perf_counter()
    tasks, stacked = next(meta_batches)
    state.learner.zero_grad(set_to_none=True)
    losses, right, finite = fill_gradients(state.learner, stacked, len(tasks), plan.precision)
    if not finite:
        refuse_step(state, losses, plan.episodes, tasks, plan.precision)
    if plan.penalty is not None:
        # Once, after the gradients of all tasks and ranks are summed.
        _add_penalty(extra(), state)
    parameters = list(state.learner.meta_parameters().values())
    if plan.clip_value is not None:
        clip_grad_value_(parameters, plan.clip_value)
    if plan.clip_norm is not None:
        clip_grad_norm_(parameters, plan.clip_norm)
    # The rates of this step, before the schedule changes them.
    rates = outer_rates(state)
    state.optimizer.step()
    if state.schedule:
        state.schedule.step()
    state.learner.advance()
    state.curve.losses.append(float(losses.mean()))
    state.curve.accuracies.append(float(right.mean()))
    state.curve.seconds += time.perf_counter() - started
    return rates


def _add_penalty(value: Tensor, state: TrainingState) -> None:
    """Add the gradient of a penalty to `.grad`.

    Raises:
        FloatingPointError: it is not finite.
        ValueError: it depends on parameters, and on none that the learner trains.
    """
    if not value.isfinite():
        raise FloatingPointError(
            f"the penalty is {value.item()} at step {state.step + 1}; check its values, or take a"
            " smaller strength"
        )
    if not value.requires_grad:
        return
    parameters = list(state.learner.meta_parameters().values())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            f"the penalty depends on no parameter that {type(state.learner).__name__} trains, so it"
            " would change nothing; omit it, or penalise a layer that is trained"
        )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _meta_batches(state: TrainingState, plan: Plan) -> MetaBatches:
    """The tasks of every step left, and the stack of those that are this rank's, if any.

    For a GPU the next tasks are drawn in a thread while it works on these, if their class declares
    with `draws_by_index` that a task depends on its index alone.
    """
    rank = distributed.rank()
    count = distributed.world_size()
    episodes = plan.episodes
    stream = None
    if state.device.type == "cuda":
        stream = torch.cuda.current_stream(state.device)  # a thread has a stream of its own

    def draw(step: int) -> tuple[list[int], Episode | None]:
        # tasks (s * meta_batch + j) mod len(episodes), of which this rank takes every count-th
        first = step * plan.meta_batch
        tasks = [(first + j) % len(episodes) for j in range(plan.meta_batch)]
        share = tasks[rank::count]
        if not share:
            return tasks, None
        with torch.cuda.stream(stream):
            return tasks, load(episodes, share, state.learner)

    left = range(state.step, plan.steps)
    by_index = vars(type(episodes)).get("draws_by_index", False)
    # A thread that uses the global generators would change what the step draws from them.
    if stream is None or not by_index or getattr(episodes, "draws_globally", False):
        yield from map(draw, left)
        return
    with ThreadPoolExecutor(1, "metalearn-draw") as pool:
        coming = pool.submit(draw, left[0])
        for step in left:
            ready = coming.result()
            if step + 1 < plan.steps:
                coming = pool.submit(draw, step + 1)
            yield ready


def fill_gradients(
    learner: Learner, stacked: Episode | None, tasks: int, precision: str | None
) -> tuple[Tensor, Tensor, bool]:
    """Fill `.grad` with the mean over the tasks of all ranks.

    Args:
        learner: whose parameters get the gradient.
        stacked: this rank's tasks; None if it has none.
        tasks: how many tasks all ranks have together.
        precision: of the step.

    Returns:
        Losses and accuracies (tasks,), float64 on the CPU, and whether all that counts is finite.
    """
    trained = list(learner.meta_parameters().values())
    figures = torch.zeros(2, 0, dtype=torch.float64)  # (loss and accuracy, this rank's tasks)
    if stacked is not None:
        with computing_in(precision, device_of(learner)):
            done = meta_backward(learner, stacked, scale=1 / tasks)
        right = accuracies(done.logits, stacked.query.targets)
        figures = torch.stack((done.losses.double(), right))
    distributed.all_reduce_gradients(trained)
    # One number tells whether every gradient is finite.
    norm = get_total_norm([p.grad for p in trained if p.grad is not None])
    norm = norm.double().reshape(1).to(figures.device)
    read = torch.cat((figures.flatten(), norm)).cpu()  # one read: a GPU is waited for once
    # Each rank fills in its tasks, and the sum over ranks has all of them.
    everywhere = torch.zeros(2, tasks, dtype=torch.float64)
    everywhere[:, distributed.rank() :: distributed.world_size()] = read[:-1].view(2, -1)
    losses, right = distributed.all_reduce(everywhere)
    return losses, right, bool(losses.isfinite().all() and read[-1].isfinite())


def _announce(state: TrainingState, plan: Plan) -> None:
    """Report how tasks run, and on a CPU the memory expected; warn if there is less.

    A CPU raises nothing when memory runs out: the system ends the process. On a GPU `meta_backward`
    raises OutOfMemoryError with the same ways out, so nothing is forecast there.
    """
    learner = state.learner
    share = -(-plan.meta_batch // distributed.world_size())  # of this rank, rounded up
    way, tasks = in_flight(learner, share)
    text = memory.describe_way(way, tasks)
    advice = None
    if state.device.type == "cpu":
        generators = random_state.generators(state.device)
        try:
            expected, advice = _forecast(state, plan, share)
            text = str(expected)
        except Exception as error:  # the first step will raise the actual fault
            text += f" (no memory forecast: {str(error).splitlines()[:1]})"
        # The run draws as it would without a forecast.
        random_state.set_generators(generators, state.device)
    elif way == "vectorized" and state.device.type == "cuda":
        text += f"; not in CUDA graphs: {without_graphs(learner) or 'as requested'}"
    if plan.shown:
        print(f"training: {text}", file=sys.stderr, flush=True)
    if advice and distributed.rank() == 0:
        warnings.warn(advice, stacklevel=4)


def _forecast(state: TrainingState, plan: Plan, tasks: int) -> tuple[memory.Forecast, str | None]:
    """The memory that a step on so many tasks needs, and the ways out if there is less."""
    processes = 1
    if distributed.world_size() > 1:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    first = state.step * plan.meta_batch % len(plan.episodes)
    task = unstack(load(plan.episodes, [first], state.learner))[0]
    with computing_in(plan.precision, state.device):
        expected = memory.forecast(state.learner, task, tasks=tasks)
    return expected, memory.ways_out(state.learner, expected, processes=processes)


def _validate(state: TrainingState, tasks: Tasks, plan: Plan) -> None:
    """Evaluate, and keep the checkpoint of the best validation so far."""
    result = evaluate(state.learner, tasks)
    record: Record = {
        "step": state.step,
        "measure": result.measure,
        "mean": result.mean,
        "interval": None if math.isnan(result.interval) else result.interval,
    }
    state.curve.validation.append(record)
    if state.curve.best is not record:
        return
    if plan.checkpoint:
        saved = state.saved
        state.save(best_checkpoint(plan.checkpoint), files.save)
        state.saved = saved  # messages name the checkpoint that a resume reads
    elif plan.keep_best:
        state.keep_best()


def _recent(curve: Curve) -> str:
    """Mean loss and accuracy of the last 20 steps, for the progress bar."""
    losses = curve.losses[-20:]
    text = f"loss {sum(losses) / len(losses):.4f}"
    accuracies = curve.accuracies[-20:]
    accuracy = sum(accuracies) / len(accuracies)
    if math.isnan(accuracy):
        return text
    return f"{text}  accuracy {100 * accuracy:.1f} %"
