"""Meta-training of policies, with checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from metalearn.runtime import files
from metalearn.runtime.checks import positive, whole_number
from metalearn.runtime.files import Record
from metalearn.runtime.progress import progress as show_progress
from metalearn.runtime.tables import Table, Tabular
from metalearn.training import checkpoints

from .environments import Environment
from .learner import PolicyMAML
from .outer import Sampled, Sampling, outer_step, sample
from .randomness import Draws
from .rollouts import check_policy
from .trpo import TRPO, StepRecord

SHOWN = 12  # rows of a printed curve


@dataclass(frozen=True)
class OuterStep:
    """What one outer step did.

    Attributes:
        step: its number, from 1.
        before: the mean return before adaptation.
        after: the mean return after the inner steps.
        length: the mean number of steps of an episode after adaptation.
        surrogate: how much the surrogate fell.
        kl: the divergence of the step.
        accepted: whether TRPO accepted a step.
        backtracks: how often the step was shortened.
    """

    step: int
    before: float
    after: float
    length: float
    surrogate: float
    kl: float
    accepted: bool
    backtracks: int


@dataclass(frozen=True)
class PolicyCurve(Tabular):
    """A meta-training; prints as a table.

    Attributes:
        steps: the outer steps, in order.
        seconds: the time of all of them, those before a resumption too.
        settings: of the learner, the environment and the training.
    """

    steps: tuple[OuterStep, ...]
    seconds: float
    settings: Record = field(repr=False)

    @property
    def rejected(self) -> int:
        """In how many outer steps TRPO accepted no step."""
        return sum(not step.accepted for step in self.steps)

    def records(self) -> list[dict[str, Any]]:
        """A row for each outer step."""
        return [asdict(step) for step in self.steps]

    def table(self) -> Table:
        """About a dozen of the steps, as text."""
        every = max(1, -(-len(self.steps) // SHOWN))  # rounded up
        rows = [
            (
                str(step.step),
                f"{step.before:.2f}",
                f"{step.after:.2f}",
                f"{step.length:.1f}",
                f"{step.kl:.4f}" if step.accepted else "no step",
            )
            for step in self.steps
            if step.step % every == 0 or step is self.steps[-1]
        ]
        columns = ("outer step", "return before", "after", "length", "KL")
        note = f"TRPO accepted {len(self.steps) - self.rejected} of {len(self.steps)} steps"
        return Table(columns, rows, note=note)

    def __str__(self) -> str:
        return str(self.table())


def meta_train_policy(
    learner: PolicyMAML,
    environment: Environment,
    *,
    steps: int = 500,
    meta_batch: int = 20,
    episodes: int = 20,
    horizon: int = 100,
    seed: int = 0,
    outer: TRPO | None = None,
    patience: int = 10,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    progress: bool = False,
) -> PolicyCurve:
    """Train the meta-initialisation of a policy by TRPO (Finn et al. 2017, section 5.3).

    Every outer step draws tasks, collects episodes of each, takes the inner steps, collects
    episodes of the adapted policies, and takes one step of TRPO through the inner steps. Episodes
    depend on the seed and their place alone, so a resumed training gives the same weights bit for
    bit.

    Args:
        learner: `PolicyMAML` or `PolicyANIL`; trained in place.
        environment: the family of tasks.
        steps: outer steps in all, with those before a resumption.
        meta_batch: tasks of an outer step.
        episodes: of each task, before and after adaptation.
        horizon: the most steps of an episode.
        seed: of tasks, starts and actions.
        outer: the settings of TRPO.
        patience: how many outer steps in a row may pass without an accepted step.
        checkpoint: a file that the training is written to, and goes on from.
        checkpoint_every: outer steps between two checkpoints.
        progress: show the returns before and after adaptation on standard error.

    Returns:
        The curve.

    Raises:
        ValueError: the policy does not fit the environment, the checkpoint is of another training,
            numbers are not finite, or TRPO accepted no step `patience` times in a row.

    Example:
        >>> from metalearn.models import MLP
        >>> from metalearn.reinforcement import GaussianPolicy, Navigation
        >>> learner = PolicyMAML(GaussianPolicy(MLP(2, 2, hidden=(8,))), lr=0.1)
        >>> sizes = {"meta_batch": 2, "episodes": 3, "horizon": 5}
        >>> curve = meta_train_policy(learner, Navigation(), steps=2, **sizes)
        >>> [step.step for step in curve.steps]
        [1, 2]
    """
    steps, patience, checkpoint_every = positive(
        steps=steps, patience=patience, checkpoint_every=checkpoint_every
    )
    sampling = Sampling(*positive(meta_batch=meta_batch, episodes=episodes, horizon=horizon))
    draws = Draws(whole_number("seed", seed, least=0))
    outer = outer or TRPO()
    check_policy(learner.policy, environment)
    settings = {
        **learner.settings(),
        **environment.settings(),
        **sampling._asdict(),
        "seed": seed,
        "outer": asdict(outer),
    }
    with ExitStack() as opened:
        run = _Run(learner, settings, Path(checkpoint) if checkpoint else None)
        if run.path:
            opened.enter_context(files.locked(run.path))
            run.resume(steps)
        advance = opened.enter_context(
            show_progress("meta-training", steps, done=len(run.steps), shown=progress)
        )
        for step in range(len(run.steps), steps):
            sampled = sample(learner, environment, sampling, replace(draws, step=step))
            parameters, record = outer_step(learner, sampled, outer)
            learner.policy.load_state_dict(parameters, strict=False)
            run.add(sampled, record)
            last = step + 1 == steps
            if last or (step + 1) % checkpoint_every == 0:
                run.save()
            advance(text=run.words())
            run.check_accepted(patience)
    return run.curve()


class _Run:
    """A training that is under way."""

    def __init__(self, learner: PolicyMAML, settings: Record, path: Path | None) -> None:
        self.learner = learner
        self.settings = settings
        self.path = path
        self.steps: list[OuterStep] = []
        self.seconds_before = 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """The time so far."""
        return self.seconds_before + time.monotonic() - self.started

    def add(self, sampled: Sampled, record: StepRecord) -> None:
        """Add a step."""
        first, last = sampled.trajectories[0], sampled.trajectories[-1]
        self.steps.append(
            OuterStep(
                step=len(self.steps) + 1,
                before=float(first.returns.mean()),
                after=float(last.returns.mean()),
                length=float(last.lengths.mean()),
                surrogate=record.before - record.after,
                kl=record.kl,
                accepted=record.accepted,
                backtracks=record.backtracks,
            )
        )

    def words(self) -> str:
        """The last step, for the progress."""
        step = self.steps[-1]
        text = f"return {step.before:.1f} before, {step.after:.1f} after"
        return text if step.accepted else f"{text}; no step accepted"

    def check_accepted(self, patience: int) -> None:
        """Raise ValueError if no step was accepted for too long."""
        recent = self.steps[-patience:]
        if len(recent) == patience and not any(step.accepted for step in recent):
            raise ValueError(
                f"TRPO accepted no step {patience} times in a row, up to outer step"
                f" {len(self.steps)}, so the policy stands still; use more episodes, a smaller"
                " inner rate, or TRPO(max_kl=) of another size"
            )

    def save(self) -> None:
        """Write the checkpoint, if there is one."""
        if self.path is None:
            return
        tensors = {
            f"{checkpoints.WEIGHTS}{name}": tensor
            for name, tensor in self.learner.state_dict().items()
        }
        record = {
            "kind": "policy",
            "step": len(self.steps),
            "settings": self.settings,
            "curve": [asdict(step) for step in self.steps],
            "seconds": self.seconds,
        }
        checkpoints.save(self.path, tensors, record)

    def resume(self, steps: int) -> None:
        """Go on from the checkpoint, if there is one, up to so many steps."""
        assert self.path is not None
        try:
            tensors, record = checkpoints.load(self.path, set_aside=True)
        except FileNotFoundError:
            return
        if record.get("kind") != "policy":
            raise ValueError(
                f"{self.path} is not a checkpoint of meta_train_policy; name another file"
            )
        for name, stored, now in _differences(record["settings"], self.settings):
            raise ValueError(
                f"{self.path} was trained with {name}={stored!r}, and this training has {now!r};"
                " use the same settings, or another file"
            )
        if record["step"] > steps:
            raise ValueError(
                f"{self.path} has {record['step']} outer steps, more than steps={steps}; pass at"
                " least as many, or another file"
            )
        checkpoints.load_weights(self.learner, checkpoints.of_learner(tensors), str(self.path))
        self.steps = [OuterStep(**step) for step in record["curve"]]
        self.seconds_before = record["seconds"]

    def curve(self) -> PolicyCurve:
        """The result."""
        return PolicyCurve(tuple(self.steps), self.seconds, self.settings)


def _differences(stored: Record, now: Record) -> Iterator[tuple[str, Any, Any]]:
    """The settings that differ: name, the stored value, and that of now."""
    # The learner's first, as they are listed.
    for name in {**now, **stored}:
        if stored.get(name) != now.get(name):
            yield name, stored.get(name), now.get(name)
