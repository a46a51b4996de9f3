"""The command `metalearn rl`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from metalearn.models.mlp import MLP
from metalearn.runtime.checks import positive
from metalearn.runtime.options import Listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.progress import duration
from metalearn.runtime.tables import check_table

from .evaluation import returns
from .navigation import Navigation
from .policies import GaussianPolicy
from .registry import build_environment, policy_learner
from .reuse import policy_reuse
from .training import PolicyCurve, meta_train_policy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .environments import Environment
    from .learner import PolicyMAML


def rl(
    environment: Literal[
        "navigation", "half-cheetah-dir", "half-cheetah-vel", "ant-dir"
    ] = "navigation",
    algorithm: Literal["maml", "anil"] = "maml",
    steps: int = 60,
    meta_batch: int = 20,
    episodes: int = 10,
    horizon: int = 100,
    hidden: Listed = "64,64",
    lr: float = 0.1,
    seed: int = 0,
    test_tasks: int = 40,
    test_episodes: int = 20,
    test_steps: int = 3,
    device: str = "auto",
    checkpoint: str | None = None,
    picture: str = "rl.png",
    table: str | None = None,
    *,
    progress: bool = True,
) -> None:
    """Train a policy that adapts by gradient steps, and test it on new tasks.

    Prints the mean return before and after each gradient step, and whether the body of the policy
    moves. Writes a picture: of navigation the paths to a few goals, of other environments the
    returns over training.

    Args:
        environment: navigation (2-D); or half-cheetah-dir, half-cheetah-vel or ant-dir, which need
            the extra `rl`.
        algorithm: maml (everything adapts) or anil (only the head).
        steps: outer steps.
        meta_batch: tasks of an outer step.
        episodes: of each task, before and after adaptation.
        horizon: the most steps of an episode.
        hidden: units of the policy's hidden layers, with commas.
        lr: the inner rate.
        seed: of the initial weights, the tasks and the episodes.
        test_tasks: new tasks to test on.
        test_episodes: of each task and gradient step in the test.
        test_steps: gradient steps in the test.
        device: of the policy: auto (cuda where there is one, else cpu), cpu or cuda; environments
            run on the CPU.
        checkpoint: the file that the training is written to, and goes on from [by its settings, in
            runs/].
        picture: the picture to write: .png, .svg or .pdf.
        table: also write the table of returns to this file: .csv, .md, .tex, .html or .txt.
        progress: show progress.
    """
    from metalearn.analysis.plotting.style import check_picture, save  # takes long to import

    started = time.monotonic()
    check_table(table)
    check_picture(picture)
    # Before the training rather than after it.
    positive(test_tasks=test_tasks, test_episodes=test_episodes, test_steps=test_steps)
    Path(picture).absolute().parent.mkdir(parents=True, exist_ok=True)
    built = build_environment(environment)
    widths = numbers(hidden, "hidden")
    if checkpoint is None:
        sizes = f"{meta_batch}x{episodes}x{horizon}"
        units = "-".join(map(str, widths))
        name = f"rl-{environment}-{algorithm}-{sizes}-{units}-lr{lr:g}-seed{seed}"
        checkpoint = f"runs/{name}.safetensors"
    torch.manual_seed(seed)
    policy = GaussianPolicy(MLP(built.observations, built.actions, hidden=widths))
    policy = policy.to(usable(device))
    learner = policy_learner(algorithm)(policy, lr)
    print(
        f"{algorithm} on {environment}: {steps} outer steps of {meta_batch} tasks x {episodes}"
        f" episodes of at most {horizon} steps"
    )
    curve = meta_train_policy(
        learner,
        built,
        steps=steps,
        meta_batch=meta_batch,
        episodes=episodes,
        horizon=horizon,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    print(f"\n{curve}\n")
    test: dict[str, Any] = {"episodes": test_episodes, "horizon": horizon, "seed": seed}
    result = returns(learner, built, tasks=test_tasks, steps=test_steps, progress=progress, **test)
    print(f"{result}\n")
    if table:
        result.table().write(table)
    print(policy_reuse(learner, built, tasks=min(test_tasks, 20), progress=progress, **test))
    save(_figure(learner, built, curve, {**test, "steps": test_steps}), picture)
    seconds = duration(time.monotonic() - started)
    print(f"\nThe trained policy: {checkpoint}")
    print(f"The picture: {os.path.abspath(picture)} ({seconds} in all)")


def _figure(
    learner: PolicyMAML, environment: Environment, curve: PolicyCurve, test: dict[str, Any]
) -> Figure:
    """The paths of navigation, or the returns over training."""
    from .figures import paths, training

    if isinstance(environment, Navigation):
        return paths(learner, environment, **test)
    return training(curve)
