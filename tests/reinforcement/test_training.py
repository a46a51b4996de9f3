"""Meta-training, checkpoints, returns and reuse on tiny policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.models import MLP
from metalearn.reinforcement import (
    TRPO,
    GaussianPolicy,
    Navigation,
    PolicyANIL,
    PolicyMAML,
    collect,
    meta_train_policy,
    policy_reuse,
    returns,
)
from metalearn.reinforcement.environments import Step
from metalearn.reinforcement.evaluation import adaptation
from metalearn.reinforcement.randomness import Draws

SIZES: dict[str, int] = {"meta_batch": 3, "episodes": 4, "horizon": 8}


def learner(kind: type[PolicyMAML] = PolicyMAML, lr: float = 0.1, **settings: Any) -> PolicyMAML:
    torch.manual_seed(0)
    return kind(GaussianPolicy(MLP(2, 2, hidden=(6, 6))), lr, **settings)


def weights(trained: PolicyMAML) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in trained.policy.parameters()]).detach()


def test_a_resumed_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    whole = learner()
    curve = meta_train_policy(whole, Navigation(), steps=4, **SIZES)
    halves = learner()
    options: dict[str, Any] = {"checkpoint": file, "checkpoint_every": 1, **SIZES}
    meta_train_policy(halves, Navigation(), steps=2, **options)
    resumed = learner()
    again = meta_train_policy(resumed, Navigation(), steps=4, **options)
    assert torch.equal(weights(whole), weights(resumed))
    assert again.steps == curve.steps
    # What is done is loaded.
    loaded = learner()
    assert meta_train_policy(loaded, Navigation(), steps=4, **options).steps == curve.steps
    assert torch.equal(weights(whole), weights(loaded))
    with pytest.raises(ValueError, match="has 4 outer steps, more than steps=3"):
        meta_train_policy(learner(), Navigation(), steps=3, **options)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    meta_train_policy(learner(), Navigation(), steps=1, checkpoint=file, **SIZES)
    with pytest.raises(ValueError, match=r"trained with reward='distance'.*'squared'"):
        meta_train_policy(learner(), Navigation("squared"), steps=1, checkpoint=file, **SIZES)
    with pytest.raises(ValueError, match="trained with learner='PolicyMAML'"):
        meta_train_policy(learner(PolicyANIL), Navigation(), steps=1, checkpoint=file, **SIZES)
    with pytest.raises(ValueError, match=r"trained with lr=0\.1"):
        meta_train_policy(learner(lr=0.2), Navigation(), steps=1, checkpoint=file, **SIZES)


def test_training_raises_the_return() -> None:
    trained = learner()
    test: dict[str, Any] = {"tasks": 20, "steps": 1, "horizon": 20}
    before = returns(trained, Navigation(), **test)
    sizes: dict[str, Any] = {"meta_batch": 5, "episodes": 10, "horizon": 20}
    meta_train_policy(trained, Navigation(), steps=6, **sizes)
    after = returns(trained, Navigation(), **test)
    assert after.means[1] > before.means[1] + 2


def test_training_with_another_seed_differs_and_with_the_same_does_not() -> None:
    results = []
    for seed in (0, 0, 1):
        trained = learner()
        meta_train_policy(trained, Navigation(), steps=1, seed=seed, **SIZES)
        results.append(weights(trained))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_later_steps_have_fresh_trajectories_and_half_the_rate() -> None:
    trained = learner(lr=0.2)
    adapted = adaptation(trained, Navigation(), tasks=2, steps=2, episodes=3, horizon=5)
    observations = [each.observations for each in adapted.trajectories]
    actions = [each.actions for each in adapted.trajectories]
    assert not torch.allclose(actions[0], actions[1])
    assert not torch.allclose(observations[1], observations[2])
    by_hand = trained.adapt(adapted.weights[1], trained.batch(adapted.trajectories[1]), scale=0.5)
    for name, weight in by_hand.items():
        torch.testing.assert_close(weight.detach(), adapted.weights[2][name].detach())


def test_returns_print_intervals_over_tasks() -> None:
    result = returns(learner(), Navigation(), tasks=4, steps=1, episodes=3, horizon=5, seed=1)
    assert result.per_task.shape == (2, 4)
    first, second = result.records()
    assert (first["steps"], second["steps"]) == (0, 1)
    assert first["return"]["mean"] == pytest.approx(float(result.per_task[0].mean()))
    assert "4 tasks, 3 episodes each" in str(result)
    assert result.gain.mean == pytest.approx(second["return"]["mean"] - first["return"]["mean"])


def test_the_body_of_anil_does_not_move_and_that_of_maml_does() -> None:
    sizes = {"tasks": 3, "episodes": 4, "horizon": 8, "draws": 5}
    still = policy_reuse(learner(PolicyANIL), Navigation(), **sizes)
    assert [row.layer for row in still.layers] == [
        "network.layer1",
        "network.layer2",
        "network.head",
    ]
    assert [row.moved.mean == 0 for row in still.layers] == [True, True, False]
    assert still.layers[0].similarity.mean == pytest.approx(1)
    assert still.answer == "The inner loop does not move the body: only the head adapts."
    moved = policy_reuse(learner(lr=2.0), Navigation(), **sizes)
    assert all(row.moved.mean > 0 for row in moved.layers)
    assert moved.layers[1].similarity.mean < 1
    assert not still.held
    assert [held.factor for held in moved.held] == [1, 2, 4]
    # Nothing has adapted before the first step.
    for held in moved.held:
        torch.testing.assert_close(held.returns.per_task[0], moved.returns.per_task[0])
    lost = moved.returns.per_task[-1] - moved.held[0].returns.per_task[-1]
    assert moved.held[0].lost.mean == pytest.approx(float(lost.mean()))
    assert "If the body is held, adaptation loses" in moved.answer


def test_a_held_body_is_anil_with_the_standard_deviation() -> None:
    maml = learner(lr=0.5)
    test: dict[str, int] = {"tasks": 3, "steps": 2, "episodes": 4, "horizon": 8}
    held = policy_reuse(maml, Navigation(), draws=5, factors=(2.0,), **test).held[0]
    anil = PolicyANIL(maml.policy, 1.0, adapt_std=True)
    anil.rates["log_std"] = 0.5
    torch.testing.assert_close(held.returns.per_task, returns(anil, Navigation(), **test).per_task)


class Ends(Navigation):
    """Every episode ends at its first step."""

    def step(self, actions: Tensor) -> Step:
        step = super().step(actions)
        return step._replace(done=torch.ones_like(step.done))


class Diverges(Navigation):
    """The observations of one episode are not finite from the third step on."""

    steps = 0

    def step(self, actions: Tensor) -> Step:
        step = super().step(actions)
        self.steps += 1
        if self.steps == 3:
            step.observations[1, 2] = float("nan")
        return step


def test_bad_environments_and_sizes_are_named() -> None:
    def train(environment: Navigation, **changed: int) -> None:
        meta_train_policy(learner(), environment, steps=1, **{**SIZES, **changed})

    with pytest.raises(ValueError, match="horizon=0 must be at least 1"):
        train(Navigation(), horizon=0)
    with pytest.raises(ValueError, match="episodes=0 must be at least 1"):
        train(Navigation(), episodes=0)
    with pytest.raises(ValueError, match="every episode of all 3 tasks ended at its first step"):
        train(Ends())
    with pytest.raises(
        ValueError, match="observation of task 1, episode 2 is not finite at step 3"
    ):
        train(Diverges())


def test_steps_after_the_end_may_be_anything() -> None:
    class EndsThenDiverges(Diverges):
        def step(self, actions: Tensor) -> Step:
            step = super().step(actions)
            step.done[1, 2] = True
            return step

    trained = learner()
    environment = EndsThenDiverges()
    goals = environment.sample_tasks(3, Draws(0))
    paths = collect(
        environment, trained.policy, goals, trained.weights(3), draws=Draws(0), **_episodes()
    )
    assert paths.lengths[1, 2] == 1
    assert all(tensor.isfinite().all() for tensor in vars(paths).values())
    assert torch.equal(paths.rewards * (1 - paths.mask), torch.zeros_like(paths.rewards))


def _episodes() -> dict[str, int]:
    return {"episodes": SIZES["episodes"], "horizon": SIZES["horizon"]}


def test_no_accepted_step_is_recorded_and_too_many_end_the_training(tmp_path: Path) -> None:
    # In single precision no step of this length lowers the surrogate.
    outer = TRPO(max_kl=1e-30)
    curve = meta_train_policy(learner(), Navigation(), steps=2, outer=outer, **SIZES)
    assert curve.rejected == 2
    assert "TRPO accepted 0 of 2 steps" in str(curve)
    assert curve.records()[0]["accepted"] is False
    with pytest.raises(ValueError, match="accepted no step 3 times in a row, up to outer step 3"):
        meta_train_policy(learner(), Navigation(), steps=9, outer=outer, patience=3, **SIZES)
