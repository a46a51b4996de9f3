"""The joint estimator: exact without noise, and the error laws that can be computed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import ANIL, Episode, Examples, meta_train
from metalearn.algorithms import joint_representation
from metalearn.algorithms.joint_representation import subspace_error
from metalearn.tasks import SharedSubspace, Sinusoid


def rotated(tasks: Sequence[Episode], rotation: Tensor) -> list[Episode]:
    return [
        Episode(
            Examples(tasks[i].support.inputs @ rotation, tasks[i].support.targets), tasks[i].query
        )
        for i in range(len(tasks))
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(8, 2, 6, 40), (20, 2, 10, 20), (10, 3, 8, 30)])
def test_without_noise_the_subspace_is_exact(seed: int, shape: tuple[int, ...]) -> None:
    inputs, rank, shots, number = shape
    tasks = SharedSubspace(
        inputs, rank, shots, 5, number, noise=0.0, seed=seed, dtype=torch.float64
    )
    basis = joint_representation(tasks, rank)
    assert torch.allclose(basis.T @ basis, torch.eye(rank).double(), atol=1e-12)
    # The sine of the largest principal angle.
    assert subspace_error(basis, tasks.basis) ** 0.5 < 1e-8


def test_a_rotation_of_the_inputs_rotates_the_subspace() -> None:
    tasks = SharedSubspace(8, 2, 6, 5, 40, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    basis = joint_representation(tasks, 2)
    other = joint_representation(rotated(tasks, rotation), 2)
    assert subspace_error(other, rotation.T @ basis) < 1e-12


def test_the_error_falls_with_tasks_and_rises_with_the_condition() -> None:
    def error(number: int, condition: float = 1.0) -> float:
        errors = []
        for seed in range(2):
            tasks = SharedSubspace(20, 2, 10, 1, number, condition, 0.5, seed)
            errors.append(subspace_error(joint_representation(tasks, 2), tasks.basis))
        return sum(errors) / 2

    few, many = (error(20), error(160))
    assert 5 < few / many < 30  # 8 times as many tasks
    # sigma² k (d - k) / (T n), inflated because each w_t is fitted on 10 examples
    assert 1 < many / (0.25 * 2 * 18 / (160 * 10)) < 4
    assert error(80, 4.0) > 3 * error(80)


def test_queries_are_fitted_on_request() -> None:
    tasks = SharedSubspace(20, 2, 10, 50, 20)
    alone = subspace_error(joint_representation(tasks), tasks.basis)
    assert subspace_error(joint_representation(tasks, queries=True), tasks.basis) < alone / 3


def test_the_risk_of_the_true_basis_is_known_exactly() -> None:
    """Least squares in k Gaussian features: sigma² k / (n2 - k - 1) on average."""
    rank, shots, noise, number = (2, 10, 0.5, 20_000)
    x = torch.randn(number, shots, rank, dtype=torch.float64)
    errors = noise * torch.randn(number, shots, 1, dtype=torch.float64)
    # The error of w is that of a regression of the noise alone.
    wrong = torch.linalg.lstsq(x, errors).solution
    risk = float(wrong.square().sum((1, 2)).mean())
    assert risk == pytest.approx(noise**2 * rank / (shots - rank - 1), rel=0.05)


def test_anil_with_a_linear_body_finds_the_subspace() -> None:
    """Wang et al. 2021: with a linear body and head, ANIL's body learns the shared subspace."""
    # From some starts training rests long with one direction learned; from this one it does not.
    torch.manual_seed(1)
    tasks = SharedSubspace(20, 2, 10, 20, 8 * 300, seed=1)
    model = nn.Sequential(nn.Linear(20, 2, bias=False), nn.Linear(2, 1, bias=False))
    learner = ANIL(model, lr=0.1, steps=5, loss=F.mse_loss, execution="vectorized")
    start = subspace_error(model[0].weight.T, tasks.basis)
    meta_train(
        learner, tasks, steps=300, meta_batch=8, progress=False,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-2),
    )  # fmt: skip
    assert start > 1
    assert subspace_error(model[0].weight.T, tasks.basis) < 0.1


@pytest.mark.parametrize(
    ("shape", "rank", "words"),
    [
        ((20, 2, 10, 1, 2), 3, "2 tasks.*at least 3 tasks"),
        ((4, 2, 9, 1, 9), 5, "rank=5.*4 inputs"),
        ((20, 2, 2, 1, 90), 2, "2 examples a task.*at least 3"),
        ((20, 2, 3, 1, 9), 2, "27 equations for 40 unknowns"),
        ((20, 2, 3, 1, 9), 0, "rank=0"),
    ],
)
def test_what_determines_no_subspace(shape: tuple[int, ...], rank: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        joint_representation(SharedSubspace(*shape), rank)


def test_tasks_that_are_not_linear_regression() -> None:
    labels = Examples(torch.rand(9, 4), torch.arange(9))
    with pytest.raises(ValueError, match=r"task 0.*int64"):
        joint_representation([Episode(labels, labels)] * 9)
    with pytest.raises(TypeError, match=r"int.*SharedSubspace"):
        joint_representation(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no tasks"):
        joint_representation([])
    bad = Examples(torch.full((9, 4), torch.nan), torch.rand(9, 1))
    with pytest.raises(ValueError, match=r"task 0.*not finite"):
        joint_representation([Episode(bad, bad)] * 9)
    with pytest.raises(ValueError, match=r"rank=2.*1 inputs"):
        joint_representation(Sinusoid(tasks=9))
