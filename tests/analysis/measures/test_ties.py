"""Where correlations or singular values tie, the value does not depend on which of the tied
directions come out first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from metalearn.analysis import Streaming, cca, pwcca, subspace, svcca
from metalearn.analysis.measures.cca import weighted_correlation
from tests.helpers import rotation

TURNS = range(4)


def orthonormal(width: int, examples: int = 200) -> np.ndarray:
    """Orthonormal columns (examples, width) that sum to zero."""
    draws = np.random.default_rng(7).normal(size=(examples, width + 1))
    draws[:, 0] = 1
    return np.linalg.qr(draws)[0][:, 1:]


def correlated(rho: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Two sides with these canonical correlations; features of x mix its directions, and those of y
    are its directions.
    """
    width = len(rho)
    basis, values = orthonormal(2 * width), np.array(rho)
    x = basis[:, :width] @ np.random.default_rng(1).normal(size=(width, width))
    return x, basis[:, :width] * values + basis[:, width:] * np.sqrt(1 - values**2)


def spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


@pytest.mark.parametrize(
    "rho",
    [
        (0.9, 0.6, 0.6, 0.6, 0.2),
        (0.9, 0.9, 0.3, 0.3, 0.3),
        (0.8, 0.6, 0.6 - 1e-10, 0.6 - 2e-10, 0.1),
        (0.7, 0.7, 0.7, 0.7, 0.7),
        (1.0, 1.0, 1.0, 0.5, 0.5),
        (0.9, 0.5, 0.0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pwcca_ignores_rotations_of_the_second_side(rho: Sequence[float], dtype: type) -> None:
    x, y = correlated(rho)
    values = [
        pwcca(x.astype(dtype), (y @ rotation(len(rho), turn)).astype(dtype)) for turn in TURNS
    ]
    assert spread(values) < (1e-9 if dtype is np.float64 else 1e-5)
    for turn in TURNS:
        stream = Streaming("pwcca")
        turned = (y @ rotation(len(rho), turn)).astype(dtype)
        for first in range(0, 200, 50):
            stream.update(x[first : first + 50].astype(dtype), turned[first : first + 50])
        assert stream.compute() == pytest.approx(
            values[0], abs=1e-9 if dtype is np.float64 else 1e-5
        )


def test_pwcca_ignores_any_invertible_map_of_the_second_side_where_correlations_tie() -> None:
    x, y = correlated((0.9, 0.6, 0.6, 0.2))
    mix = rotation(4, 5) @ np.diag([1.0, 3.0, 20.0, 0.2])
    assert pwcca(x, y @ mix) == pytest.approx(pwcca(x, y), abs=1e-9)


def test_pwcca_is_determined_where_the_first_side_has_directions_to_spare() -> None:
    x, y = correlated((0.9, 0.6, 0.0, 0.0, 0.0, 0.0))
    values = [pwcca(x, y[:, :4] @ rotation(4, turn)) for turn in TURNS]
    assert spread(values) < 1e-9
    order = np.random.default_rng(0).permutation(200)
    assert pwcca(x[order], y[order, :4]) == pytest.approx(values[0], abs=1e-9)


def test_equal_correlations_give_that_correlation() -> None:
    x, y = correlated((0.7,) * 5)
    assert pwcca(x, y) == pytest.approx(0.7, abs=1e-12)
    assert pwcca(x, y) == pytest.approx(cca(x, y), abs=1e-12)


def test_the_weight_of_tied_directions_is_the_mean_over_rotations() -> None:
    x, y = correlated((0.9, 0.6, 0.6, 0.6, 0.2))
    columns = torch.from_numpy(np.linalg.svd(x - x.mean(0), full_matrices=False)[0].T[:5] @ x)
    basis = np.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, :5]
    u, rho, _ = np.linalg.svd(basis.T @ y)
    drawn = []
    for seed in range(4000):
        turned = u.copy()
        turned[:, 1:4] = u[:, 1:4] @ rotation(3, seed)
        drawn.append(np.abs(turned.T @ columns.numpy()).sum(1))
    weights = np.mean(drawn, axis=0)
    found = weighted_correlation(torch.from_numpy(basis.T @ y), columns, 1e-8)
    assert found == pytest.approx(weights @ rho / weights.sum(), abs=5e-4)


@pytest.mark.parametrize("apart", [0.0, 1e-11])
def test_svcca_keeps_all_directions_that_tie_with_the_last(apart: float) -> None:
    basis = orthonormal(10)
    scales = np.array(
        [10.0, 3.0 + apart, 3.0, 3.0 - apart, 0.01]
    )  # shares of the squares: 0.79, 0.07 three times
    y = basis[:, :4] * [0.9, 0.5, 0.3, 0.1] + basis[:, 5:9]
    values = []
    for turn in TURNS:
        mixed = basis[:, :5].copy()
        mixed[:, 1:4] = mixed[:, 1:4] @ rotation(3, turn)
        values.append(svcca(mixed * scales @ rotation(5, turn), y, energy=0.9))
    assert spread(values) < 1e-9
    assert values[0] == pytest.approx(cca(basis[:, :4], y), abs=1e-9)


def test_svcca_of_equal_singular_values_keeps_them_all() -> None:
    basis = orthonormal(8)
    y = basis[:, :4] + basis[:, 4:]
    values = [
        svcca(basis[:, :4] @ rotation(4, turn), y @ rotation(4, turn + 9), energy=0.5)
        for turn in TURNS
    ]
    assert values == pytest.approx([cca(basis[:, :4], y)] * len(TURNS), abs=1e-9)


def test_a_subspace_that_ends_among_tied_directions_counts_each_in_part() -> None:
    basis, axes = orthonormal(5), np.random.default_rng(3).normal(size=(5, 5))
    axes = np.linalg.qr(axes)[0]
    y = basis[:, ::-1] * [9, 7, 5, 3, 1]
    values = []
    for turn in TURNS:
        mixed, neurons = basis.copy(), axes.copy()
        mixed[:, 1:4] = mixed[:, 1:4] @ rotation(3, turn)
        neurons[1:4] = rotation(3, turn).T @ neurons[1:4]
        x = mixed * [8, 2, 2, 2, 1] @ neurons
        values.append(subspace(x, y, k=2))
        assert subspace(x, 3 * x + 1, k=2) == pytest.approx(1, abs=1e-12)
        stream = Streaming("subspace", k=2)
        stream.update(x, y)
        assert stream.compute() == pytest.approx(values[0], abs=1e-9)
    assert spread(values) < 1e-9
