"""The overlap of two sets of activations in one neuron space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn.analysis import linear_cka, overlap
from tests.helpers import rotation


def test_scaled_and_repeated_data_overlap_fully() -> None:
    x = np.random.default_rng(0).normal(size=(30, 5))
    assert overlap(x, x) == pytest.approx(1.0, abs=1e-12)
    assert overlap(x, -7.0 * x) == pytest.approx(1.0, abs=1e-12)
    assert overlap(x, np.concatenate([x, x])[::-1].copy()) == pytest.approx(1.0, abs=1e-12)


def test_orthogonal_coordinates_do_not_overlap() -> None:
    generator = np.random.default_rng(0)
    x, y = np.zeros((2, 20, 6))
    x[:, :3] = generator.normal(size=(20, 3))
    y[:, 3:] = generator.normal(size=(20, 3))
    assert overlap(x, y) == 0.0


def test_one_rotation_of_both_sides_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 6)), generator.normal(size=(25, 6)) + 1
    turn = rotation(6)
    assert overlap(x @ turn, y @ turn) == pytest.approx(overlap(x, y), abs=1e-12)


def test_random_subspaces_overlap_as_k_of_p() -> None:
    """Projectors of rank k in p dimensions: E tr(P Q) / k = k / p."""
    generator = np.random.default_rng(0)
    k, p = 10, 100
    values = []
    for _ in range(40):
        x, y = (np.linalg.qr(generator.normal(size=(p, k)))[0].T for _ in range(2))
        values.append(overlap(x, y))
    assert np.mean(values) == pytest.approx(k / p, abs=0.01)


def test_it_is_linear_cka_of_the_transposed_matrices_without_centring() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 7)), generator.normal(size=(9, 7))
    kernels = x.T @ x, y.T @ y
    cosine = (kernels[0] * kernels[1]).sum() / np.prod([np.linalg.norm(k) for k in kernels])
    assert overlap(x, y) == pytest.approx(cosine, abs=1e-12)
    wide, other = x[:5], y[:4]  # more features than examples
    kernels = wide.T @ wide, other.T @ other
    cosine = (kernels[0] * kernels[1]).sum() / np.prod([np.linalg.norm(k) for k in kernels])
    assert overlap(wide, other) == pytest.approx(cosine, abs=1e-12)
    # Neurons as examples: CKA centres over the neurons, which columns of mean zero do already.
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    cka = linear_cka(x.T.copy(), y.T.copy(), debiased=False)
    assert overlap(x, y) == pytest.approx(cka, abs=1e-12)


def test_centring_leaves_the_covariances() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    assert overlap(x + 5, x - 3, centred=True) == pytest.approx(1.0, abs=1e-12)
    assert overlap(x + 5, x - np.array([3, 0, 0, 0])) < 0.9


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_it_lies_between_zero_and_one(n: int, m: int, p: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-150, 150)
    x, y = scale * generator.normal(size=(n, p)), generator.normal(size=(m, p))
    assert 0 <= overlap(x, y) <= 1


def test_what_has_no_overlap_is_refused() -> None:
    x = torch.ones(4, 3)
    with pytest.raises(ValueError, match="3 features and y has 2"):
        overlap(x, torch.ones(4, 2))
    with pytest.raises(ValueError, match="x has only zeros"):
        overlap(torch.zeros(4, 3), x)
    with pytest.raises(ValueError, match="y has no feature that varies"):
        overlap(torch.rand(4, 3), x, centred=True)
    with pytest.raises(ValueError, match="NaN or infinite"):
        overlap(x, x * torch.nan)
