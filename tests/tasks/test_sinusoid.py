"""Sinusoid tasks: the equation, the ranges, and that a task is a function of (seed, i) alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn.tasks.sinusoid import Sinusoid


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 999))
def test_every_task_is_one_sinusoid_of_the_paper(seed, index):
    support, query = Sinusoid(shots=10, queries=20, seed=seed, dtype=torch.float64)[index]
    x, y = (
        torch.cat((support.inputs, query.inputs)).numpy()[:, 0],
        torch.cat((support.targets, query.targets)).numpy()[:, 0],
    )
    # A sin(x - phase) = a sin(x) + b cos(x), so least squares finds the one sinusoid or leaves a
    # residual.
    (a, b), *_ = np.linalg.lstsq(np.stack((np.sin(x), np.cos(x)), 1), y, rcond=None)
    assert np.abs(a * np.sin(x) + b * np.cos(x) - y).max() < 1e-9
    assert 0.1 <= math.hypot(a, b) <= 5 and -1e-12 <= math.atan2(-b, a) <= math.pi + 1e-12
    assert np.abs(x).max() <= 5 and len(set(x)) == 30


def test_shapes_and_dtypes():
    tasks = Sinusoid(shots=5, queries=7, tasks=3)
    support, query = tasks[0]
    assert support.inputs.shape == support.targets.shape == (
        5,
        1,
    ) and query.inputs.shape == query.targets.shape == (7, 1)
    assert {t.dtype for part in tasks[0] for t in part} == {torch.float32} and len(list(tasks)) == 3
    assert torch.equal(Sinusoid(5, 7, dtype=torch.float64)[0].query.targets.float(), query.targets)


def test_a_task_depends_on_seed_and_index_alone():
    forward = [Sinusoid(seed=3)[i].query.targets for i in range(5)]
    again = Sinusoid(seed=3)
    assert all(torch.equal(again[i].query.targets, forward[i]) for i in (4, 0, 3, 1, 2))
    assert not torch.equal(Sinusoid(seed=4)[0].query.targets, forward[0]) and not torch.equal(
        forward[0], forward[1]
    )


def test_parameters_fill_their_ranges():
    tasks = Sinusoid(shots=1, queries=500, tasks=200, amplitude=(2, 3), inputs=(0, 10))
    peaks = torch.stack([tasks[i].query.targets.abs().max() for i in range(200)])
    assert peaks.max() > 2.9 and 1.9 < peaks.min() < 2.1 and peaks.max() <= 3
    points = torch.cat([tasks[i].query.inputs for i in range(200)])
    assert 0 <= points.min() < 0.01 and 9.99 < points.max() <= 10


def test_settings_record_the_ranges():
    assert Sinusoid(tasks=7, seed=1).settings()["data"] == {
        "source": "sinusoid",
        "amplitude": (0.1, 5.0),
        "phase": (0.0, math.pi),
        "inputs": (-5.0, 5.0),
    }


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"shots": 0}, ValueError, "shots=0 must be at least 1"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"amplitude": (5, 1)}, ValueError, r"amplitude=\(5, 1\) is not a range"),
        ({"inputs": (0, math.inf)}, ValueError, "inputs"),
        ({"queries": 1.5}, TypeError, "float"),
    ],
)
def test_what_makes_no_task_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        Sinusoid(**wrong)


def test_past_the_last_task_is_an_index_error():
    with pytest.raises(IndexError, match="there are 2"):
        Sinusoid(tasks=2)[2]
