"""The physics of many episodes at once, on `mujoco.rollout`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.runtime.checks import whole_number

INSTALL = "pip install 'metalearn-transfer[rl]'"


def import_mujoco() -> Any:
    """The module `mujoco` with its part `rollout`.

    Raises:
        ImportError: it is not installed; the message has the line to type.
    """
    try:
        import mujoco
        from mujoco import rollout  # noqa: F401  # a part that has to be imported
    except ImportError as error:
        raise ImportError(
            f"this environment needs mujoco ({error}); install it with {INSTALL}"
        ) from error
    return mujoco


def gymnasium_model(name: str) -> Path:
    """The path of a model file that gymnasium comes with.

    Args:
        name: of the file, such as "half_cheetah.xml".

    Raises:
        ImportError: gymnasium is not installed.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(
            f"the model file {name} comes with gymnasium ({error}); install it with {INSTALL}"
        ) from error
    return Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / name


class Physics:
    """One model of MuJoCo, and the states of many episodes.

    An action holds for several steps of the physics, which run in threads of C++ without Python's
    lock. A state is that of `mjSTATE_FULLPHYSICS`: time, positions, velocities, activations.
    Episodes do not influence each other, so the number of threads does not change the states.

    Args:
        file: the model, as MJCF.
        substeps: steps of the physics for one action.
        threads: how many; by default as many as torch uses.

    Raises:
        ImportError: mujoco is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is not a model.
    """

    def __init__(
        self, file: str | os.PathLike[str], *, substeps: int, threads: int | None = None
    ) -> None:
        mujoco = import_mujoco()
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no model file {path}; name one with model_file=, or leave it out to use"
                f" that of gymnasium, and if that is missing, install it again with {INSTALL}"
            )
        try:
            with without_warnings():
                self.model = mujoco.MjModel.from_xml_path(str(path))
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path} is not a model of MuJoCo ({reason})") from error
        self.substeps = substeps
        self.threads = whole_number("threads", threads or torch.get_num_threads())
        # Without a pool the calling thread does the work.
        self.pool = mujoco.rollout.Rollout(nthread=self.threads if self.threads > 1 else 0)
        self.data = [mujoco.MjData(self.model) for _ in range(self.threads)]
        full = mujoco.mjtState.mjSTATE_FULLPHYSICS
        start = np.zeros(mujoco.mj_stateSize(self.model, full))
        mujoco.mj_getState(self.model, self.data[0], start, full)
        self.initial_state = start
        self.states = start[None]

    @property
    def seconds(self) -> float:
        """The time that one action holds."""
        return self.substeps * float(self.model.opt.timestep)

    @property
    def positions(self) -> np.ndarray:
        """(episodes, nq), after the time."""
        return self.states[:, 1 : 1 + self.model.nq]

    @property
    def velocities(self) -> np.ndarray:
        """(episodes, nv)."""
        first = 1 + self.model.nq
        return self.states[:, first : first + self.model.nv]

    def start(self, position_noise: np.ndarray, velocity_noise: np.ndarray) -> None:
        """Start episodes at the model's own state plus noise (episodes, nq) and (episodes, nv)."""
        self.states = np.tile(self.initial_state, (len(position_noise), 1))
        self.positions[:] += position_noise
        self.velocities[:] += velocity_noise

    def step(self, controls: np.ndarray) -> None:
        """Hold controls (episodes, nu) for the time of one action.

        The state of an episode whose physics became unstable is NaN.
        """
        before = self.states[:, 0]
        states, _ = self.pool.rollout(
            self.model,
            self.data,
            initial_state=self.states,
            control=controls[:, None],  # (episodes, 1, nu), for all substeps
            nstep=self.substeps,
        )
        # (episodes, substeps, state) -> the last
        self.states = states[:, -1].copy()
        # MuJoCo stops an episode that is unstable, and its time with it.
        stopped = self.states[:, 0] - before < 0.99 * self.seconds
        self.states[stopped] = np.nan


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep MuJoCo's warnings about model files from standard error and its log file."""
    mujoco = import_mujoco()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)
