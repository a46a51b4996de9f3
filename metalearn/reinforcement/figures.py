"""Pictures of navigation: paths to a few goals before and after adaptation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .evaluation import LATER, Adaptation, adaptation
from .navigation import Navigation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .learner import PolicyMAML
    from .rollouts import Trajectories
    from .training import PolicyCurve

# One goal in each quarter of the plane, at different distances.
GOALS = ((0.4, 0.35), (-0.45, 0.25), (0.3, -0.4))
BEFORE = "#a3adb8"  # grey
SHOWN = 2  # paths of a goal before adaptation, and as many after it


def paths(
    learner: PolicyMAML,
    environment: Navigation,
    *,
    goals: Tensor | None = None,
    steps: int = 1,
    episodes: int = 20,
    horizon: int = 100,
    later: float = LATER,
    seed: int = 0,
) -> Figure:
    """Paths of a policy to a few goals, before and after adaptation; a panel for each goal.

    Thin lines are single paths, thick ones the mean position of all episodes.

    Args:
        learner: not changed.
        environment: navigation.
        goals: (goals, 2); by default three.
        steps: gradient steps.
        episodes: that a gradient step learns from, and of the mean path.
        horizon: the most steps of an episode.
        later: a factor of the inner rate after the first step.
        seed: of the actions.
    """
    from metalearn.analysis.plotting.style import panels

    if goals is None:
        goals = torch.tensor(GOALS, dtype=torch.float64)
    adapted = adaptation(
        learner,
        environment,
        tasks=goals,
        steps=steps,
        episodes=episodes,
        horizon=horizon,
        later=later,
        seed=seed,
    )
    shown = [adapted.trajectories[stage].observations[:, :SHOWN].abs().max() for stage in (0, -1)]
    edge = 1.05 * max(float(goals.abs().max()), *map(float, shown))
    draws: list[Callable[[Axes], None]] = [
        partial(_panel, adapted, task, edge) for task in range(len(goals))
    ]
    return panels(draws, 3.7 * min(len(draws), 3) + 0.3, height=4.3)


def _panel(adapted: Adaptation, task: int, edge: float, axes: Axes) -> None:
    """The paths to one goal, in a square from -edge to edge."""
    from metalearn.analysis.plotting.style import COLOURS, INK

    goal = adapted.tasks[task].tolist()
    steps = len(adapted.trajectories) - 1
    after = f"after {steps} gradient step{'s' if steps > 1 else ''}"
    looks = ((0, BEFORE, "before adaptation"), (-1, COLOURS[0], after))
    for stage, colour, label in looks:
        trajectories = adapted.trajectories[stage]
        lengths = trajectories.lengths[task].long().tolist()
        for episode, length in enumerate(lengths[:SHOWN]):
            walked = trajectories.observations[task, episode, :length].cpu()
            axes.plot(walked[:, 0], walked[:, 1], color=colour, lw=0.6, alpha=0.6)
        mean = mean_path(trajectories, task).cpu()
        axes.plot(mean[:, 0], mean[:, 1], color=colour, lw=2.6, label=label, zorder=3)
    axes.plot(0, 0, "o", color=INK, ms=5, label="start", zorder=4)
    axes.plot(*goal, "*", color=COLOURS[1], ms=15, mec="white", label="goal", zorder=5)
    first, last = (float(adapted.trajectories[i].returns[task].mean()) for i in (0, -1))
    axes.set_title(f"return {first:.1f} before, {last:.1f} after", fontsize=9.5)
    axes.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal")
    axes.tick_params(length=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)


def mean_path(trajectories: Trajectories, task: int) -> Tensor:
    """The mean position (time, 2) of a task's episodes; one that has ended stays at its end."""
    positions = trajectories.observations[task]
    last = trajectories.lengths[task].long() - 1
    # (episodes, time): the step, or the last of the episode
    steps = torch.arange(positions.shape[1], device=last.device).minimum(last[:, None])
    return positions.gather(1, steps[..., None].expand_as(positions)).mean(0)


def training(curve: PolicyCurve) -> Figure:
    """The mean return before and after adaptation, over outer steps.

    Args:
        curve: from `meta_train_policy`.
    """
    from metalearn.analysis.plotting.style import panels

    return panels([partial(_curve_panel, curve)], 7.0)


def _curve_panel(curve: PolicyCurve, axes: Axes) -> None:
    from metalearn.analysis.plotting.style import COLOURS, LINES, finish

    steps = [step.step for step in curve.steps]
    before = [step.before for step in curve.steps]
    after = [step.after for step in curve.steps]
    axes.plot(steps, before, color=COLOURS[1], ls=LINES[1], label="before adaptation")
    axes.plot(steps, after, color=COLOURS[0], ls=LINES[0], label="after adaptation")
    axes.set(xlabel="outer step", ylabel="mean return")
    finish(axes, 2)
