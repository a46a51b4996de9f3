"""Do policies that adapt by gradient steps need to adapt more than their head?

    python -m benchmarks.reinforcement                # 2-D navigation, two cores, about an hour
    python -m benchmarks.reinforcement --quick true   # to see it run
    python -m benchmarks.reinforcement --environments half-cheetah-dir --meta-batch 40 --steps 500

MAML and ANIL with TRPO as the outer step (Finn et al. 2017, section 5.3; Raghu et al. 2020, table
3). Parts:

- returns: train, then test on new tasks after 0, 1, 2 and 3 gradient steps; does the body move?
- speed: steps of HalfCheetah a second, in turn with gymnasium's vector environment

Every training is a file in `--folder`, so a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.models import MLP
from metalearn.reinforcement import (
    Draws,
    GaussianPolicy,
    collect,
    meta_train_policy,
    policy_reuse,
    returns,
)
from metalearn.reinforcement.mujoco import without_warnings
from metalearn.reinforcement.registry import (
    ALGORITHMS,
    ENVIRONMENTS,
    build_environment,
    policy_learner,
)
from metalearn.runtime.options import Listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.tables import plain

from .harness.clock import medians, take_turns
from .harness.rows import append, choose, keep_in, origin, run_benchmark

PARTS = ("returns", "speed")
VECTOR = 20  # copies in gymnasium's vector environment
ACTIONS = 20  # actions of every episode in one turn of the clock


@dataclass(frozen=True)
class Settings:
    """One call of this command."""

    steps: int
    meta_batch: int
    episodes: int
    horizon: int
    hidden: tuple[int, ...]
    lr: float
    test_tasks: int
    test_steps: int
    rounds: int
    device: str
    folder: Path
    progress: bool
    note: str

    def report(self, part: str, text: str, facts: dict[str, Any]) -> None:
        """Print a result and add its row."""
        print(f"{part}: {text}", flush=True)
        row = {
            "benchmark": "reinforcement",
            "part": part,
            **facts,
            "threads": torch.get_num_threads(),
            "note": self.note,
            **origin("reinforcement"),
        }
        append(plain(row))


def trained_and_tested(settings: Settings, environment: str, algorithm: str, seed: int) -> None:
    """Train one policy, test it, and see whether its body moves."""
    built = build_environment(environment)
    torch.manual_seed(seed)
    network = MLP(built.observations, built.actions, hidden=settings.hidden)
    policy = GaussianPolicy(network).to(settings.device)
    learner = policy_learner(algorithm)(policy, settings.lr)
    name = f"{environment}-{algorithm}-{settings.steps}-{settings.horizon}-seed{seed}"
    curve = meta_train_policy(
        learner,
        built,
        steps=settings.steps,
        meta_batch=settings.meta_batch,
        episodes=settings.episodes,
        horizon=settings.horizon,
        seed=seed,
        checkpoint=settings.folder / f"{name}.safetensors",
        progress=settings.progress,
    )
    test: dict[str, Any] = {
        "episodes": settings.episodes,
        "horizon": settings.horizon,
        "seed": seed,
        "progress": settings.progress,
    }
    result = returns(learner, built, tasks=settings.test_tasks, steps=settings.test_steps, **test)
    reuse = policy_reuse(learner, built, tasks=min(settings.test_tasks, 20), **test)
    facts = {
        "environment": environment,
        "algorithm": algorithm,
        "seed": seed,
        "steps": settings.steps,
        "test_tasks": settings.test_tasks,
        "hidden": settings.hidden,
        "device": settings.device,
        "settings": curve.settings,
        "seconds": curve.seconds,
        "rejected": curve.rejected,
        "curve": [(step.before, step.after) for step in curve.steps],
        "returns": result.records(),
        "per_task": result.per_task,
        "layers": reuse.records(),
        "all_adapts": reuse.returns.means[-1],
        "body_held": [
            {"factor": held.factor, "return": held.returns.means[-1], "lost": held.lost}
            for held in reuse.held
        ],
        "answer": reuse.answer,
    }
    means = ", ".join(f"{mean:.1f}" for mean in result.means)
    text = f"{algorithm} on {environment}, seed {seed}: {means} after 0, 1, ... gradient steps"
    settings.report("returns", f"{text}. {reuse.answer}", facts)


def speed(settings: Settings) -> None:
    """Steps of HalfCheetah a second: ours with and without a policy, and gymnasium's."""
    import gymnasium

    built = build_environment("half-cheetah-dir")
    draws = Draws(0)
    tasks = built.sample_tasks(settings.meta_batch, draws)
    ours = settings.meta_batch * settings.episodes
    policy = GaussianPolicy(MLP(built.observations, built.actions, hidden=settings.hidden))
    weights = {
        name: weight.detach().expand(len(tasks), *weight.shape)
        for name, weight in policy.named_parameters()
    }
    actions = torch.randn(ACTIONS, len(tasks), settings.episodes, built.actions)
    with without_warnings():
        theirs = gymnasium.make_vec("HalfCheetah-v5", VECTOR, vectorization_mode="sync")

    def alone() -> None:
        built.reset(tasks, settings.episodes, draws)
        for action in actions:
            built.step(action)

    def with_policy() -> None:
        collect(
            built,
            policy,
            tasks,
            weights,
            episodes=settings.episodes,
            horizon=ACTIONS,
            draws=draws,
        )

    sides: dict[str, Callable[[], Any]] = {
        "metalearn": alone,
        "metalearn with a policy": with_policy,
        "gymnasium SyncVectorEnv": lambda: _run_vector(theirs),
    }
    times = take_turns(sides, settings.rounds)
    theirs.close()
    for name, seconds in medians(times).items():
        environments = ours if name.startswith("metalearn") else VECTOR
        rate = environments * ACTIONS / seconds
        facts = {
            "side": name,
            "environments": environments,
            "steps_per_second": rate,
            "seconds": times[name],
            "rounds": settings.rounds,
        }
        text = f"{name}: {rate:,.0f} HalfCheetah steps a second, {environments} at once"
        settings.report("speed", text, facts)


def _run_vector(environments: Any) -> None:
    """A turn of gymnasium's."""
    environments.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (ACTIONS, VECTOR, 6)).astype(np.float32)
    for action in actions:
        environments.step(action)


def reinforcement(
    parts: Listed = "returns",
    environments: Listed = "navigation",
    algorithms: Listed = "maml,anil",
    seeds: Listed = "0,1,2",
    steps: int = 100,
    meta_batch: int = 20,
    episodes: int = 20,
    horizon: int = 100,
    hidden: Listed = "100,100",
    lr: float = 0.1,
    test_tasks: int = 40,
    test_steps: int = 3,
    rounds: int = 7,
    device: str = "cpu",
    folder: str = "runs/reinforcement",
    quick: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    progress: bool = True,  # noqa: FBT001, FBT002  # a command line setting
    note: str = "",
    results: str | None = None,
) -> None:
    """Train and test policies that adapt, and measure the speed of their environments.

    Args:
        parts: returns and speed, with commas.
        environments: navigation, half-cheetah-dir, half-cheetah-vel and ant-dir, with commas.
        algorithms: maml and anil, with commas.
        seeds: of initial weights, tasks and episodes, with commas.
        steps: outer steps.
        meta_batch: tasks of an outer step.
        episodes: of each task, before and after adaptation.
        horizon: the most steps of an episode.
        hidden: units of the hidden layers, with commas.
        lr: the inner rate; half of it from the second step on.
        test_tasks: new tasks to test on.
        test_steps: gradient steps in the test.
        rounds: how often each side of the speed is timed.
        device: of the policies: auto (cuda where there is one, else cpu), cpu or cuda.
        folder: where trainings are kept.
        quick: a run of a minute, to see it work.
        progress: show progress.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    chosen = choose("part", parts, PARTS)
    problems = choose("environment", environments, ENVIRONMENTS)
    learners = choose("algorithm", algorithms, ALGORITHMS)
    settings = Settings(
        steps,
        meta_batch,
        episodes,
        horizon,
        tuple(numbers(hidden, "hidden")),
        lr,
        test_tasks,
        test_steps,
        rounds,
        usable(device),
        Path(folder),
        progress,
        note,
    )
    runs = numbers(seeds, "seeds")
    if quick:
        settings = replace(
            settings,
            steps=2,
            meta_batch=4,
            episodes=5,
            horizon=20,
            test_tasks=4,
            rounds=2,
            folder=Path(folder) / "quick",
        )
        runs = runs[:1]
    if "returns" in chosen:
        for environment in problems:
            for seed in runs:
                for algorithm in learners:
                    trained_and_tested(settings, environment, algorithm, seed)
    if "speed" in chosen:
        speed(settings)


if __name__ == "__main__":
    run_benchmark(reinforcement)
