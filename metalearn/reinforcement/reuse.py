"""Does a policy's body move? Its layers and its returns before and after adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.network.layers import body as body_of
from metalearn.network.layers import is_inside, owners
from metalearn.network.module_call import Weights
from metalearn.runtime.checks import positive
from metalearn.runtime.progress import progress as show_progress
from metalearn.runtime.statistics import Estimate
from metalearn.runtime.tables import Table, Tabular

from .environments import Environment
from .evaluation import LATER, Returns, adaptation, returns
from .learner import PolicyMAML
from .rollouts import Trajectories

FACTORS = (1.0, 2.0, 4.0)  # of the head's rate, with the body held
CHANGED = 0.05  # a body whose CKA falls by less counts as reused


@dataclass(frozen=True)
class PolicyLayer:
    """One layer of a policy before and after adaptation.

    Attributes:
        layer: its name.
        similarity: the measure's value, over tasks.
        chance: the 95 % quantile of the same measure with whole episodes of one side shuffled, over
            tasks.
        moved: `|w' - w| / |w|` of its weights, over tasks.
    """

    layer: str
    similarity: Estimate
    chance: Estimate
    moved: Estimate


@dataclass(frozen=True)
class HeldBody:
    """Adaptation of the head alone, on the same tasks.

    Attributes:
        factor: the head's rate over the learner's own.
        returns: before adaptation and after each gradient step.
        lost: what the whole learner's last return is above this one's, paired over tasks.
    """

    factor: float
    returns: Returns
    lost: Estimate


@dataclass(frozen=True)
class PolicyReuse(Tabular):
    """The result of `policy_reuse`; prints as a table with its answer.

    Attributes:
        layers: the rows, in order.
        head: the name of the head.
        returns: before adaptation and after each gradient step, of the whole learner.
        held: the same with the body held, at several rates of the head; empty for a learner that
            holds its body anyway.
        measure: of the similarity.
    """

    layers: tuple[PolicyLayer, ...]
    head: str
    returns: Returns
    held: tuple[HeldBody, ...]
    measure: str

    @property
    def best_held(self) -> HeldBody:
        """The rate of the head that does best alone."""
        return max(self.held, key=lambda held: held.returns.means[-1])

    @property
    def answer(self) -> str:
        """Whether the body changes, and what it costs to hold it, in words."""
        if not self.held:
            return "The inner loop does not move the body: only the head adapts."
        words = []
        body = [row for row in self.layers if not is_inside(row.layer, self.head)]
        if body:
            least = min(body, key=lambda row: row.similarity.mean)
            how = "hardly changes" if least.similarity.mean >= 1 - CHANGED else "changes"
            words.append(
                f"The body {how}: its least similar layer, {least.layer}, has {self.measure}"
                f" {least.similarity.shown('.4f')} after adaptation."
            )
        cost = f"If the body is held, adaptation loses {self._loss(self.held[0])}"
        if self.best_held is not self.held[0]:
            cost += f", and {self._loss(self.best_held)}"
        words.append(f"{cost}.")
        return " ".join(words)

    def _loss(self, held: HeldBody) -> str:
        """What holding the body costs, in words."""
        rate = "the head's own rate"
        if held.factor != 1:
            rate = f"{held.factor:g} times the head's rate"
        lost = f"{held.lost.shown('.2f')} of return"
        if held.lost.low <= 0:
            lost = f"nothing that {self.returns.per_task.shape[1]} tasks show ({lost})"
        return f"{lost} at {rate}"

    def records(self) -> list[dict[str, Any]]:
        """A row for each layer."""
        return [
            {
                "layer": row.layer,
                "similarity": row.similarity._asdict(),
                "chance": row.chance._asdict(),
                "moved": row.moved._asdict(),
            }
            for row in self.layers
        ]

    def table(self) -> Table:
        """The rows as text."""
        rows = [
            (
                row.layer,
                row.similarity.shown(".4f"),
                f"{row.chance.mean:.3f}",
                row.moved.shown(".3f"),
            )
            for row in self.layers
        ]
        columns = ("layer", self.measure, "chance", "weights moved by")
        note = (
            "before and after adaptation, on observations of both policies; ± is the 95 % interval"
            " over tasks"
        )
        return Table(columns, rows, note=note)

    def held_table(self) -> Table:
        """The returns with the body held, as text."""
        rows = [("all adapts", "1", self.returns.estimates[-1].shown(".2f"), "")]
        for held in self.held:
            last = held.returns.estimates[-1].shown(".2f")
            rows.append(("body held", f"{held.factor:g}", last, held.lost.shown(".2f")))
        return Table(("adaptation", "head's rate times", "return after", "lost"), rows)

    def __str__(self) -> str:
        parts = [str(self.table())]
        if self.held:
            parts.append(str(self.held_table()))
        return "\n\n".join([*parts, self.answer])


def policy_reuse(
    learner: PolicyMAML,
    environment: Environment,
    *,
    layers: Sequence[str] | None = None,
    tasks: int = 20,
    steps: int = 1,
    episodes: int = 20,
    horizon: int = 100,
    later: float = LATER,
    measure: str = "linear_cka",
    factors: Sequence[float] = FACTORS,
    steps_per_episode: int = 25,
    draws: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> PolicyReuse:
    """Does adaptation change a policy's features, or reuse them?

    The question of Raghu et al. 2020 (arXiv:1909.09157) for policies. For every test task, each
    layer's output under the weights before and after adaptation is compared by `compare_layers`, on
    observations that both policies visited. Chance shuffles whole episodes. Then the same tasks are
    adapted with the body held: at the same rate, and at larger rates of the head, because a body
    that moves also makes a gradient step longer.

    Args:
        learner: not changed.
        environment: the family of tasks.
        layers: names of layers; by default all of the policy's network.
        tasks: how many test tasks.
        steps: gradient steps.
        episodes: of each task and step.
        horizon: the most steps of an episode.
        later: a factor of the inner rate after the first step.
        measure: of `compare_layers`.
        factors: of the head's rate, with the body held; the first is what is compared first.
        steps_per_episode: how many observations of an episode are compared, evenly spaced.
        draws: how often chance shuffles.
        seed: of tasks, episodes and draws.
        progress: show the progress on standard error.

    Raises:
        ValueError: as `collect` and `compare_layers` do.

    Example:
        >>> from metalearn.models import MLP
        >>> from metalearn.reinforcement import GaussianPolicy, Navigation, PolicyANIL
        >>> learner = PolicyANIL(GaussianPolicy(MLP(2, 2, hidden=(8,))), lr=0.1)
        >>> reuse = policy_reuse(learner, Navigation(), tasks=2, episodes=3, horizon=9, draws=5)
        >>> [(row.layer, round(row.similarity.mean, 3)) for row in reuse.layers][0]
        ('network.layer1', 1.0)
    """
    from metalearn.analysis.networks.layerwise import compare_layers

    positive(steps=steps, tasks=tasks, steps_per_episode=steps_per_episode)
    settings: dict[str, Any] = {
        "tasks": tasks,
        "steps": steps,
        "episodes": episodes,
        "horizon": horizon,
        "later": later,
        "seed": seed,
    }
    adapted = adaptation(learner, environment, **settings)
    before = _weights_of_tasks(learner, adapted.weights[0], tasks)
    after = _weights_of_tasks(learner, adapted.weights[-1], tasks)
    names = list(layers) if layers is not None else _layers_of(learner)
    profiles = []
    with show_progress(
        "before and after adaptation", tasks, unit="task", shown=progress
    ) as advance:
        for task in range(tasks):
            visited = torch.cat(
                [
                    visited_observations(adapted.trajectories[stage], task, steps_per_episode)
                    for stage in (0, -1)
                ]
            )
            profiles.append(
                compare_layers(
                    (learner.policy, before[task]),
                    (learner.policy, after[task]),
                    visited,
                    names,
                    measure=measure,
                    groups=2 * episodes,
                    draws=draws,
                    seed=seed,
                )
            )
            advance()
    rows = []
    for name in names:
        similarities = [profile[name] for profile in profiles]
        moved = [_moved(learner, name, *pair) for pair in zip(before, after, strict=True)]
        rows.append(
            PolicyLayer(
                name,
                Estimate.of([row.similarity for row in similarities]),
                Estimate.of([row.floor.upper for row in similarities]),
                Estimate.of(moved),
            )
        )
    full = returns(learner, environment, **settings)
    held = []
    if _moves_body(learner):
        for factor in factors:
            alone = returns(_with_body_held(learner, factor), environment, **settings)
            lost = Estimate.of(full.per_task[-1] - alone.per_task[-1])
            held.append(HeldBody(factor, alone, lost))
    return PolicyReuse(tuple(rows), learner.policy.head, full, tuple(held), measure)


def visited_observations(trajectories: Trajectories, task: int, count: int) -> Tensor:
    """Evenly spaced observations of each episode of a task, (episodes * count, observations).

    A shorter episode repeats some.
    """
    observations = trajectories.observations[task]
    # (episodes, count): steps of each episode, from its first to its last
    last = trajectories.lengths[task] - 1
    places = torch.linspace(0, 1, count).to(last) * last[:, None]
    index = places.round().long()[..., None].expand(-1, -1, observations.shape[-1])
    return observations.gather(1, index).flatten(0, 1)


def _layers_of(learner: PolicyMAML) -> list[str]:
    """The layers of the policy's network, the head last."""
    network = learner.policy.network
    head = learner.policy.head
    return [*(f"network.{name}" for name in body_of(network, head.removeprefix("network."))), head]


def _weights_of_tasks(learner: PolicyMAML, weights: Weights, tasks: int) -> list[Weights]:
    """The weights of each task, without the task dimension."""
    return [
        {
            name: weight[task] if name in learner.rates else weight
            for name, weight in weights.items()
        }
        for task in range(tasks)
    ]


def _moved(learner: PolicyMAML, layer: str, before: Weights, after: Weights) -> float:
    """`|w' - w| / |w|` over the tensors of a layer."""
    owner = owners(learner.policy)
    names = [name for name in before if owner.get(name) == layer or is_inside(name, layer)]
    distance = sum(float((after[name] - before[name]).square().sum()) for name in names)
    size = sum(float(before[name].square().sum()) for name in names)
    return (distance / size) ** 0.5 if size else float("nan")


def _moves_body(learner: PolicyMAML) -> bool:
    """Whether the inner loop moves more than the head and the standard deviation."""
    head = learner.policy.head
    return any(name != "log_std" and not is_inside(name, head) for name in learner.rates)


def _with_body_held(learner: PolicyMAML, factor: float) -> PolicyMAML:
    """The same learner on the same policy, whose inner loop leaves the body.

    Args:
        learner: whose rates.
        factor: of the head's rates; that of the standard deviation stays.
    """
    head = learner.policy.head
    rates = {name: factor * rate for name, rate in learner.rates.items() if is_inside(name, head)}
    if "log_std" in learner.rates:
        rates["log_std"] = learner.rates["log_std"]
    return PolicyMAML(
        learner.policy,
        rates,
        steps=learner.steps,
        first_order=learner.first_order,
        discount=learner.discount,
        decay=learner.decay,
    )
