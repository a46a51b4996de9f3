"""Known answers, and what each measure must and must not ignore."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn.analysis import (
    canonical_correlations,
    cca,
    linear_cka,
    procrustes,
    pwcca,
    rbf_cka,
    svcca,
)
from metalearn.analysis.measures.chance import Floor, measured
from metalearn.analysis.measures.inputs import cautions
from metalearn.analysis.measures.subspace import subspace
from tests.helpers import rotation


def subspace_of_two(x, y) -> float:
    return subspace(x, y, k=2)


MEASURES = (cca, svcca, pwcca, linear_cka, rbf_cka, procrustes)
CCA_FAMILY = (cca, svcca, pwcca)


def kornblith_demo():
    draws = np.random.RandomState(1337)
    x = draws.randn(100, 10)
    return x, draws.randn(100, 10) + x


def related(seed: int = 0, examples: int = 200) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    x = draws.normal(size=(examples, 6)) * [5, 3, 2, 1, 0.5, 0.2]
    return x, x[:, :4] @ draws.normal(size=(4, 5)) + draws.normal(size=(examples, 5))


def invertible(width: int, seed: int = 1) -> np.ndarray:
    draws = np.random.default_rng(seed)
    return draws.normal(size=(width, width)) + 3 * np.diag(draws.uniform(1, 20, width))


def centred_kernel(kernel: np.ndarray) -> np.ndarray:
    centring = np.eye(len(kernel)) - 1 / len(kernel)
    return centring @ kernel @ centring


def test_the_published_demo_of_cka_is_reproduced():
    x, y = kornblith_demo()
    assert linear_cka(x, y, debiased=False) == pytest.approx(0.5576132566, abs=1e-8)
    assert linear_cka(x, y) == pytest.approx(0.5134564895, abs=1e-8)
    assert (canonical_correlations(x, y) ** 2).mean() == pytest.approx(0.5453963, abs=5e-8)
    squares = [((side[:, None] - side) ** 2).sum(-1) for side in (x, y)]
    k, m = (centred_kernel(np.exp(-d / (2 * 0.5**2 * np.median(d)))) for d in squares)
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert rbf_cka(x, y, fraction=0.5) == pytest.approx(expected, abs=1e-10)
    assert expected == pytest.approx(0.65483, abs=5e-6)


@pytest.mark.parametrize(
    ("n", "mean_cca", "biased", "debiased"),
    [
        (200, 0.6378, 0.3291, -0.0018),
        (500, 0.3887, 0.1656, -0.0013),
        (1000, 0.2691, 0.0897, -0.0014),
        (2000, 0.1900, 0.0471, -0.0006),
        (5000, 0.1201, 0.0198, None),
        (10000, 0.0851, 0.0100, None),
    ],
)
def test_independent_noise_scores_as_tabulated(
    n: int, mean_cca: float, biased: float, debiased: float | None
):
    draws = np.random.RandomState(0)
    a, b = draws.randn(100, n).T, draws.randn(100, n).T
    ac, bc = a - a.mean(0), b - b.mean(0)
    cross, left, right = (np.linalg.norm(p.T @ q) ** 2 for p, q in ((ac, bc), (ac, ac), (bc, bc)))
    rho = np.linalg.svd(np.linalg.qr(ac)[0].T @ np.linalg.qr(bc)[0], compute_uv=False)
    for found, exact, tabulated in (
        (cca(a, b), rho.mean(), mean_cca),
        (linear_cka(a, b, False), cross / np.sqrt(left * right), biased),
    ):
        assert found == pytest.approx(exact, abs=1e-10)
        assert found == pytest.approx(tabulated, abs=5.1e-5)
    if debiased is not None:
        assert linear_cka(a, b) == pytest.approx(debiased, abs=5.1e-5)


def test_noise_of_unequal_widths_scores_as_tabulated():
    draws = np.random.RandomState(0)
    assert cca(draws.randn(100, 2000).T, draws.randn(50, 2000).T) == pytest.approx(
        0.2056955, abs=5e-8
    )


def test_directions_that_leave_no_freedom_give_one_and_say_so():
    draws = np.random.RandomState(0)
    a, b = draws.randn(100, 101).T, draws.randn(100, 101).T
    with pytest.warns(
        UserWarning, match="100 of 100 canonical correlations are 1 whatever the data"
    ):
        assert cca(a, b) == pytest.approx(1)
    assert linear_cka(a, b, debiased=False) == pytest.approx(0.4902, abs=5e-5)
    assert linear_cka(a, b) == pytest.approx(-0.0207, abs=5e-5)


def test_pwcca_is_the_textbook_formula_for_either_width():
    for x, y in (related(), related()[::-1]):
        xc, yc = x - x.mean(0), y - y.mean(0)
        u, s, _ = np.linalg.svd(np.linalg.qr(xc)[0].T @ np.linalg.qr(yc)[0], full_matrices=False)
        weights = np.abs((np.linalg.qr(xc)[0] @ u).T @ xc).sum(1)
        assert pwcca(x, y) == pytest.approx((weights / weights.sum()) @ s, abs=1e-12)


def test_svcca_keeps_the_directions_that_hold_the_energy_of_the_squares():
    draws = np.random.default_rng(0)
    basis = np.linalg.qr(draws.normal(size=(300, 6)) - 0)[0]
    basis = np.linalg.qr(basis - basis.mean(0))[0]
    x = basis * [10, 3, 1, 1, 1, 1]  # shares of the squares: 0.885, 0.080, 0.009 four times
    y = draws.normal(size=(300, 4))
    assert svcca(x, y, energy=0.8) == pytest.approx(cca(x[:, :1], y))
    assert svcca(x, y, energy=0.95) == pytest.approx(cca(x[:, :2], y))
    assert svcca(x, y, energy=1.0) == pytest.approx(cca(x, y))


def test_linear_cka_from_features_equals_linear_cka_from_examples():
    x, y = related(examples=40)
    wide = np.hstack(
        [x, np.zeros((40, 60)) + 1e-9 * np.random.default_rng(0).normal(size=(40, 60))]
    )
    for debiased in (True, False):
        assert linear_cka(wide, y, debiased) == pytest.approx(linear_cka(x, y, debiased), abs=1e-9)


def test_debiased_linear_cka_is_the_u_statistic():
    x, y = related(examples=12)
    k, m, n = x @ x.T, y @ y.T, 12
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return (
            np.trace(a @ b) + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b).sum()
        ) / (n * (n - 3))

    assert linear_cka(x, y) == pytest.approx(
        hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), abs=1e-12
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_the_same_scores_one_and_two_different_matrices_do_not(measure):
    x, y = related()
    assert measure(x, x) == 1.0
    assert 0.05 < measure(x, y) < 0.99
    assert measure(x, x + 5) == pytest.approx(1)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_ignores_rotation_scale_and_shift_of_either_side(measure):
    x, y = related()
    turned = (
        3 * x + 7 if measure is pwcca else 3 * x @ rotation(6) + 7
    )  # its weights are of the first argument's own columns
    assert measure(turned, y) == pytest.approx(measure(x, y), abs=1e-9)
    assert measure(x, 0.2 * y @ rotation(5) - 1) == pytest.approx(measure(x, y), abs=1e-9)


@pytest.mark.parametrize("measure", [cca, lambda x, y: pwcca(y, x)])
def test_cca_ignores_any_invertible_map(measure):
    x, y = related()
    assert measure(x @ invertible(6), y) == pytest.approx(measure(x, y), abs=1e-8)
    assert cca(x, x @ invertible(6)) == pytest.approx(1)


@pytest.mark.parametrize("measure", [linear_cka, rbf_cka, procrustes])
def test_cka_and_procrustes_see_an_invertible_map_that_is_no_rotation(measure):
    x, _ = related()
    assert measure(x, x @ np.diag([0.1, 1, 2, 5, 20, 50])) < 0.9


def test_svcca_and_the_first_side_of_pwcca_see_an_invertible_map():
    x, y = related()
    stretched = x @ rotation(6) @ np.diag([100, 1, 1, 1, 1, 0.01])
    assert abs(svcca(stretched, y) - svcca(x, y)) > 0.05
    assert abs(pwcca(stretched, y) - pwcca(x, y)) > 0.01


@pytest.mark.parametrize("measure", [*MEASURES, subspace_of_two])
def test_unrelated_matrices_score_near_nought_or_their_floor(measure):
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(600, 12)), draws.normal(size=(600, 12))
    name, options = ("subspace", {"k": 2}) if measure is subspace_of_two else (measure.__name__, {})
    value, chance = measured(name, x, y, **options)
    assert value < 0.3
    assert value <= max(chance.max() + 0.02, 0.02)
    assert value >= chance.min() - 0.02


def test_subspace_similarity_is_the_overlap_of_principal_directions():
    draws = np.random.default_rng(0)
    x, y = (
        draws.normal(size=(80, 6)) * [9, 7, 5, 1, 1, 1],
        draws.normal(size=(80, 6))
        * [
            9,
            1,
            7,
            5,
            1,
            1,
        ],
    )
    v, u = (np.linalg.svd(side - side.mean(0))[2][:3].T for side in (x, y))
    assert subspace(x, y, k=3) == pytest.approx(np.linalg.norm(v.T @ u) ** 2 / 3, abs=1e-12)
    assert subspace(x, y, k=3) == pytest.approx(subspace(y, x, k=3), abs=1e-12)
    assert subspace(x, y, k=6) == pytest.approx(1)
    assert subspace(x, x, k=3) == 1.0
    assert subspace(np.eye(6)[:4] * 3, np.roll(np.eye(6), 3, 1)[:4] * 3, k=1) < 0.5


def test_subspace_similarity_ignores_scale_shift_and_a_rotation_of_both_but_not_of_one():
    x, y = related()
    y = np.hstack([y, x[:, :1]])
    for k in (1, 3):
        turn = rotation(6)
        assert subspace(-4 * x + 3, y / 7 - 1, k) == pytest.approx(subspace(x, y, k), abs=1e-10)
        assert subspace(x @ turn, y @ turn, k) == pytest.approx(subspace(x, y, k), abs=1e-10)
        assert subspace(x, x @ turn, k) < 0.9
    dead = np.hstack([x, np.full((200, 2), 0.1)])
    moved = np.hstack([y, np.zeros((200, 2))])
    assert subspace(dead, moved, 3) == pytest.approx(subspace(x, y, 3), abs=1e-10)


def test_subspace_similarity_refuses_other_widths_and_directions_that_are_not_there():
    x, y = related()
    with pytest.raises(
        ValueError,
        match=(r"6 features and y has 5: .* use linear_cka, procrustes or cca"),
    ):
        subspace(x, y, k=2)
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        subspace(x, x**2, k=0)
    with pytest.raises(ValueError, match=r"fewer than k=3; .*k=2"):
        subspace(x, x[:, :2] @ np.ones((2, 6)) + x[:, :1] @ [[0, 1, 2, 3, 4, 5]], k=3)
    broken = x.copy()
    broken[3, 2] = np.nan
    for bad, said in [
        (broken, "y holds 1 values that are NaN"),
        (np.ones((200, 6)), "y has no variance"),
        (x[1:], "200 examples and y has 199"),
        (x[None], r"y must be \(examples, features\)"),
    ]:
        with pytest.raises(ValueError, match=said):
            subspace(x, bad, k=2)


def test_the_rounding_of_single_precision_is_no_direction():
    x, y = (
        torch.nn.functional.layer_norm(torch.tensor(side[:, :5], dtype=torch.float32), (5,))
        for side in related()
    )
    assert len(canonical_correlations(x, y)) == 4  # what layer norm puts out sums to a constant
    assert cca(x, y) == pytest.approx(cca(x[:, :4], y[:, :4]), abs=1e-5)
    exact = np.hstack([related()[0], 1e-8 * np.random.default_rng(0).normal(size=(200, 1))])
    assert len(canonical_correlations(exact, exact)) == 7


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(2, 9))
def test_similarities_lie_in_their_range_and_repeat(seed: int, width: int, other: int):
    draws = np.random.default_rng(seed)
    x, y = draws.normal(size=(60, width)), draws.normal(size=(60, other))
    for measure in (cca, svcca, pwcca, rbf_cka, procrustes):
        assert 0 <= measure(x, y) < 0.9
        assert measure(x, y) == measure(x, y)
    assert abs(linear_cka(x, y)) < 0.5


def test_torch_and_numpy_of_any_precision_agree_and_carry_no_graph():
    x, y = related()
    single = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    for measure in MEASURES:
        assert isinstance(measure(single, y), float)
        assert measure(single, torch.tensor(y)) == pytest.approx(measure(x, y), abs=1e-5)


def test_dead_features_and_dependent_features_change_nothing():
    x, y = related()
    dead = np.hstack([x, np.full((200, 3), 0.1), x[:, :2] @ [[1.0], [2.0]]])
    for measure in (cca, lambda a, b: pwcca(b, a)):
        assert measure(dead, y) == pytest.approx(measure(x, y), abs=1e-9)
    assert len(canonical_correlations(dead, dead)) == 6


@pytest.mark.parametrize("measure", CCA_FAMILY)
def test_too_few_examples_are_refused_with_the_cures(measure):
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(30, 64)), draws.normal(size=(30, 3))
    arguments = {"energy": 1.0} if measure is svcca else {}
    with pytest.raises(
        ValueError,
        match=(r"n=30 examples and d=64 .*svcca.*linear_cka"),
    ):
        measure(x, y, **arguments)
    with pytest.raises(ValueError, match="y has n=30 examples and d=64"):
        measure(y, x, **arguments)


def test_few_examples_of_many_dependent_features_are_enough():
    draws = np.random.default_rng(0)
    x = draws.normal(size=(50, 3)) @ draws.normal(size=(3, 64))
    assert cca(x, x @ rotation(64)) == pytest.approx(1)


@pytest.mark.parametrize("measure", MEASURES)
def test_what_cannot_be_compared_is_refused_by_name(measure):
    x, y = related(examples=20)
    broken = y.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="y holds 1 values that are NaN"):
        measure(x, broken)
    broken[3, 2] = np.inf
    with pytest.raises(ValueError, match="x holds 1 values"):
        measure(broken, x)
    with pytest.raises(ValueError, match="x has no variance"):
        measure(np.full((20, 4), 0.3), y)
    with pytest.raises(ValueError, match="20 examples and y has 19"):
        measure(x, y[1:])
    with pytest.raises(ValueError, match=r"must be \(examples, features\), got \(20, 6, 1\)"):
        measure(x[..., None], y)
    with pytest.raises(ValueError, match="at least"):
        measure(x[:1], y[:1])


def test_options_out_of_range_are_refused():
    x, y = related()
    with pytest.raises(ValueError, match="energy=0"):
        svcca(x, y, energy=0)
    with pytest.raises(ValueError, match="fraction=0"):
        rbf_cka(x, y, fraction=0)
    with pytest.raises(ValueError, match="no measure 'cka'; there are cca"):
        measured("cka", x, y)
    with pytest.raises(ValueError, match="equally far apart"):
        linear_cka(np.eye(8), x[:8])
    with pytest.raises(ValueError, match="half of its pairs"):
        rbf_cka(np.repeat([[0.0], [1.0]], [18, 2], axis=0), x[:20])


def test_shuffling_whole_groups_gives_a_higher_floor_than_shuffling_rows():
    draws = np.random.default_rng(0)
    x, y = (
        np.repeat(draws.normal(size=(20, 4)), 30, axis=0) + 0.1 * draws.normal(size=(600, 4))
        for _ in range(2)
    )
    by_row, by_unit = (
        Floor.of(measured("cca", x, y, groups=groups)[1]).median for groups in (600, 20)
    )
    assert by_row < 0.15 < by_unit


def test_one_group_has_no_floor_and_uneven_groups_are_refused():
    x, y = related()
    assert measured("cca", x, y, groups=1)[1].size == 0
    assert np.isnan(Floor.of(np.array([])).median)
    with pytest.raises(ValueError, match="200 examples do not divide into groups=3"):
        measured("cca", x, y, groups=3)


def test_two_groups_are_exchanged_never_left_in_place():
    x, _ = related()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measured("cca", x, x, groups=2)[1].max() < 0.9


def test_cautions_are_kept_for_who_collects_them_and_leave_other_threads_alone() -> None:
    x, y = related(examples=13)
    wide = np.concatenate([x, np.random.default_rng(2).normal(size=(13, 4))], axis=1)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with cautions() as kept:
            cca(wide, y)
            cca(wide, y)
            with ThreadPoolExecutor(1) as elsewhere:
                elsewhere.submit(cca, wide, y).result()
                elsewhere.submit(warnings.warn, "of something else").result()
        cca(wide, y)
    said = [str(one.message) for one in heard]
    assert len(kept) == 1 and "canonical correlations are 1 whatever the data" in kept[0]
    assert said == [kept[0], "of something else", kept[0]]
