"""HalfCheetah on `mujoco.rollout`, with gymnasium as the oracle."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.reinforcement import Draws
from metalearn.reinforcement.mujoco import Physics, gymnasium_model, import_mujoco
from metalearn.reinforcement.registry import build_environment


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make the import of a package fail."""
    real = builtins.__import__

    def refusing(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_without_mujoco_the_message_has_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "mujoco")
    with pytest.raises(ImportError, match=r"pip install 'metalearn-transfer\[rl\]'"):
        import_mujoco()


def test_without_gymnasium_the_message_has_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, "gymnasium")
    with pytest.raises(ImportError, match=r"half_cheetah.xml.*'metalearn-transfer\[rl\]'"):
        gymnasium_model("half_cheetah.xml")


def test_unknown_environments_are_named() -> None:
    with pytest.raises(ValueError, match="no environment 'humanoid'; choose from navigation"):
        build_environment("humanoid")


@pytest.fixture
def bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    # MuJoCo writes its log into the working directory.
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    from metalearn.reinforcement import locomotion

    return locomotion


def test_the_steps_are_those_of_gymnasium(bodies: Any) -> None:
    import gymnasium

    environment = bodies.HalfCheetahDir(threads=1, action_scale=1.0)
    draws = Draws(seed=3)
    tasks = torch.tensor([[1.0], [-1.0]])
    observations = environment.reset(tasks, 2, draws)
    positions = environment.physics.positions.copy()
    velocities = environment.physics.velocities.copy()
    actions = 2 * torch.rand(20, 2, 2, 6, dtype=torch.float64) - 1
    ours = [environment.step(action) for action in actions]
    oracle = gymnasium.make("HalfCheetah-v5", ctrl_cost_weight=0.05).unwrapped
    for place, (task, episode) in enumerate(np.ndindex(2, 2)):
        oracle.reset(seed=0)
        oracle.set_state(positions[place], velocities[place])
        first = oracle._get_obs()
        np.testing.assert_allclose(observations[task, episode], first, atol=1e-12)
        for action, step in zip(actions, ours, strict=True):
            seen, reward, _, _, info = oracle.step(action[task, episode].numpy())
            np.testing.assert_allclose(step.observations[task, episode], seen, atol=1e-9)
            expected = float(tasks[task]) * info["reward_forward"] + info["reward_ctrl"]
            assert float(step.rewards[task, episode]) == pytest.approx(expected, abs=1e-10)
            assert task or reward == pytest.approx(expected, abs=1e-10)
    oracle.close()


def test_the_steps_of_the_ant_are_those_of_gymnasium(bodies: Any) -> None:
    import gymnasium

    environment = bodies.AntDir(threads=1, action_scale=1.0)
    observations = environment.reset(torch.tensor([[-1.0]]), 1, Draws(5))
    options: dict[str, Any] = {
        "include_cfrc_ext_in_observation": False,
        "contact_cost_weight": 0.0,
    }
    oracle = gymnasium.make("Ant-v5", **options).unwrapped
    oracle.reset(seed=0)
    oracle.set_state(environment.physics.positions[0], environment.physics.velocities[0])
    np.testing.assert_allclose(observations[0, 0], oracle._get_obs(), atol=1e-12)
    for _ in range(20):
        action = 2 * torch.rand(8, dtype=torch.float64) - 1
        x = oracle.data.qpos[0]
        step = environment.step(action[None, None])
        seen, _, ended, _, info = oracle.step(action.numpy())
        np.testing.assert_allclose(step.observations[0, 0], seen, atol=1e-8)
        # Gymnasium's velocity is that of one substep earlier.
        velocity = (oracle.data.qpos[0] - x) / 0.05
        expected = -velocity + info["reward_ctrl"] + info["reward_survive"]
        assert float(step.rewards) == pytest.approx(expected, abs=1e-8)
        assert bool(step.done) == ended
    oracle.close()


def test_an_ant_that_falls_ends_its_episode(bodies: Any) -> None:
    environment = bodies.AntDir(threads=1)
    environment.reset(torch.ones(1, 1), 2, Draws(0))
    environment.physics.positions[1, 2] = 3.0
    step = environment.step(torch.zeros(1, 2, 8))
    assert step.done.tolist() == [[False, True]]
    assert float(step.rewards[0, 0] - step.rewards[0, 1]) > 0.5  # 1 for an upright torso


def test_finns_observation_adds_the_position_of_the_torso(bodies: Any) -> None:
    import mujoco

    environment = bodies.HalfCheetahVel(threads=1, observation="finn")
    environment.reset(torch.tensor([[1.0]]), 1, Draws(0))
    step = environment.step(torch.ones(1, 1, 6))
    assert step.observations.shape == (1, 1, environment.observations) == (1, 1, 20)
    data = environment.physics.data[0]
    data.qpos[:] = environment.physics.positions[0]
    mujoco.mj_forward(environment.physics.model, data)
    np.testing.assert_allclose(step.observations[0, 0, 17:], data.body("torso").xpos, atol=1e-12)


def test_the_reward_of_a_velocity_by_hand(bodies: Any) -> None:
    environment = bodies.HalfCheetahVel(threads=1)
    environment.reset(torch.tensor([[0.5], [2.0]]), 1, Draws(0))
    before = environment.physics.positions[:, 0].copy()
    # 20 is beyond the range, which is 10
    step = environment.step(torch.full((2, 1, 6), 20.0))
    velocity = (environment.physics.positions[:, 0] - before) / 0.05
    expected = -np.abs(velocity - np.array([0.5, 2.0])) - 0.05 * 6
    np.testing.assert_allclose(step.rewards[:, 0], expected)
    assert not step.done.any()


def test_threads_and_other_episodes_do_not_change_an_episode(bodies: Any) -> None:
    actions = torch.randn(5, 3, 4, 6)
    results = []
    for threads in (1, 3):
        environment = bodies.HalfCheetahDir(threads=threads)
        environment.reset(torch.ones(3, 1), 4, Draws(1))
        results.append([environment.step(action).observations for action in actions][-1])
    assert torch.equal(*results)
    environment.reset(torch.ones(2, 1), 3, Draws(1))
    few = [environment.step(action[:2, :3]).observations for action in actions][-1]
    torch.testing.assert_close(few, results[0][:2, :3])


def test_tasks_are_in_their_ranges(bodies: Any) -> None:
    directions = bodies.HalfCheetahDir(threads=1).sample_tasks(200, Draws(0))
    assert set(directions.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(directions.mean())) < 0.2
    velocities = bodies.HalfCheetahVel(threads=1).sample_tasks(200, Draws(0))
    assert 0 <= float(velocities.min()) < 0.1 and 1.9 < float(velocities.max()) <= 2


def test_an_unstable_episode_is_not_finite_and_the_others_go_on(bodies: Any) -> None:
    environment = bodies.HalfCheetahDir(threads=1)
    environment.reset(torch.ones(1, 1), 3, Draws(0))
    environment.physics.velocities[1] = 1e12
    step = environment.step(torch.zeros(1, 3, 6))
    finite = step.observations.isfinite().all(-1)
    assert finite.tolist() == [[True, False, True]]


def test_a_policy_runs_and_learns_from_the_cheetah(bodies: Any) -> None:
    from metalearn.models import MLP
    from metalearn.reinforcement import GaussianPolicy, PolicyMAML, meta_train_policy

    environment = bodies.HalfCheetahDir(threads=1)
    learner = PolicyMAML(GaussianPolicy(MLP(17, 6, hidden=(8,))), lr=0.1)
    curve = meta_train_policy(learner, environment, steps=1, meta_batch=2, episodes=3, horizon=5)
    assert curve.steps[0].length == 5
    with pytest.raises(ValueError, match=r"17 numbers of an observation of HalfCheetahDir"):
        meta_train_policy(PolicyMAML(GaussianPolicy(MLP(20, 6, hidden=(8,)))), environment, steps=1)


def test_model_files_that_are_missing_or_no_models_are_named(bodies: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model file .*cheetah.xml; name one with"):
        bodies.HalfCheetahDir(model_file=tmp_path / "cheetah.xml")
    file = tmp_path / "other.xml"
    file.write_text("<html></html>")
    with pytest.raises(ValueError, match=r"other.xml is not a model of MuJoCo"):
        Physics(file, substeps=5)
    with pytest.raises(ValueError, match="observation='v4' is not one of 'v5', 'finn'"):
        bodies.HalfCheetahDir(observation="v4")


def test_no_warning_is_printed_and_no_log_is_written(
    bodies: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bodies.HalfCheetahDir(threads=1)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())  # the working directory
