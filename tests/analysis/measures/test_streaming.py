"""A stream gives what the whole gives: any batches, any order, any number of processes."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import measures as benchmark
from metalearn.analysis import measures
from metalearn.analysis.measures.chance import measured
from metalearn.analysis.measures.streaming import Streaming

EXACT: list[tuple[str, dict[str, object]]] = [
    ("cca", {}),
    ("svcca", {}),
    ("svcca", {"energy": 0.9}),
    ("pwcca", {}),
    ("linear_cka", {}),
    ("linear_cka", {"debiased": False}),
    ("procrustes", {}),
    ("subspace", {"k": 3}),
]


def conditioned(
    draws: np.random.Generator, examples: int, features: int, condition: float
) -> np.ndarray:
    """Centred columns whose singular values fall from 1 to 1 / condition, in a random basis."""
    raw = draws.normal(size=(examples, features))
    basis = np.linalg.qr(raw - raw.mean(0))[0]
    return (
        basis
        * np.geomspace(1, 1 / condition, features)
        @ np.linalg.qr(draws.normal(size=(features, features)))[0]
    )


def sides(
    condition: float = 1e3, examples: int = 400, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    x = conditioned(draws, examples, 8, condition)
    mixed = x @ np.linalg.qr(draws.normal(size=(8, 8)))[0] + 0.3 * conditioned(
        draws, examples, 8, 30
    )
    return x + 5 * draws.normal(size=8), mixed - 2


def streamed(
    measure: str, x: np.ndarray, y: np.ndarray, sizes: list[int], **options: object
) -> Streaming:
    stream, first = Streaming(measure, **options), 0
    for size in sizes:
        stream.update(x[first : first + size], y[first : first + size])
        first += size
    assert first == len(x)
    return stream


@pytest.mark.parametrize(("measure", "options"), EXACT)
@pytest.mark.parametrize(
    "sizes",
    [[200], [32] * 6 + [8], [199, 1], [1, 199], [1] * 200],
    ids=lambda sizes: f"{len(sizes)} batches",
)
def test_any_batches_in_any_order_give_the_value_in_memory(
    measure: str, options: dict[str, object], sizes: list[int]
) -> None:
    x, y = sides(examples=200)
    whole = measured(measure, x, y, draws=0, **options)[0]
    order = np.random.default_rng(1).permutation(200)
    assert streamed(measure, x, y, sizes, **options).compute() == pytest.approx(whole, abs=1e-10)
    assert streamed(measure, x[order], y[order], sizes, **options).compute() == pytest.approx(
        whole, abs=1e-10
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=2, max_size=12), st.integers(0, 2**20), st.data())
def test_any_split_over_merged_accumulators_gives_the_value_in_memory(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    sizes = [60, *sizes]
    x, y = sides(examples=sum(sizes), seed=seed)
    ends = np.cumsum(sizes)[:-1]
    owners = data.draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    for measure, options in EXACT[:-1]:
        parts = [Streaming(measure, **options) for _ in range(3)]
        for owner, *pair in zip(owners, np.split(x, ends), np.split(y, ends), strict=True):
            parts[owner].update(*pair)
        merged = parts[0].merge(parts[1]).merge(parts[2])
        assert merged.compute() == pytest.approx(
            measured(measure, x, y, draws=0, **options)[0], abs=1e-10
        )
        assert (merged.examples, merged.batches) == (len(x), len(sizes))


@pytest.mark.parametrize("measure", ["cca", "pwcca"])
@pytest.mark.parametrize("small", [1, 31])
def test_many_small_directions_beside_few_large_ones_stay_exact(measure: str, small: int) -> None:
    draws = np.random.default_rng(0)
    spectrum = np.where(np.arange(32) < 32 - small, 1.0, 1e-3)
    x, y = (
        conditioned(draws, 2000, 32, 1) * spectrum @ np.linalg.qr(draws.normal(size=(32, 32)))[0]
        for _ in range(2)
    )
    y += 0.5 * x
    found = streamed(measure, x + 1, y - 1, [128] * 15 + [80]).compute()
    assert found == pytest.approx(measured(measure, x + 1, y - 1, draws=0)[0], abs=1e-10)


def test_activations_far_from_nought_lose_nothing() -> None:
    x, y = sides(condition=10)
    for measure, options in EXACT:
        near, far = (
            streamed(measure, x + shift, y + shift, [50] * 8, **options).compute()
            for shift in (0, 1e4)
        )
        assert far == pytest.approx(near, abs=1e-9)


@pytest.mark.parametrize(
    ("size", "value"),
    [(20, 0.5337183634), (25, 0.5132675064), (50, 0.5308439528), (100, 0.5134564895)],
)
def test_minibatch_cka_is_as_published(size: int, value: float) -> None:
    draws = np.random.RandomState(1337)
    x = draws.randn(100, 10)
    y = draws.randn(100, 10) + x
    assert streamed(
        "linear_cka", x, y, [size] * (100 // size), minibatch=True
    ).compute() == pytest.approx(value, abs=1e-8)


def u_statistic(k: np.ndarray, m: np.ndarray) -> float:
    k, m, n = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), len(k)
    return np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()


@pytest.mark.parametrize("last", [17, 4, 3, 1])
def test_a_short_last_batch_counts_for_what_it_holds(last: int) -> None:
    x, y = sides(examples=60 + last)
    terms = np.zeros(3)
    for part in (slice(0, 30), slice(30, 60), slice(60, None)):
        k, m = (centred @ centred.T for centred in (side[part] - side.mean(0) for side in (x, y)))
        if len(k) > 3:  # the statistic of fewer is nought or not defined
            terms += u_statistic(k, k), u_statistic(m, m), u_statistic(k, m)
    found = streamed("linear_cka", x, y, [30, 30, last], minibatch=True).compute()
    assert found == pytest.approx(terms[2] / np.sqrt(terms[0] * terms[1]), abs=1e-10)
    assert streamed("cca", x, y, [30, 30, last]).compute() == pytest.approx(
        measures.cca(x, y), abs=1e-10
    )


def test_one_minibatch_is_the_debiased_value_and_two_processes_add_up() -> None:
    x, y = sides()
    assert streamed(
        "rbf_cka", x, y, [400], minibatch=True, fraction=0.8
    ).compute() == pytest.approx(measures.rbf_cka(x, y, fraction=0.8, debiased=True), abs=1e-12)
    whole = streamed("rbf_cka", x, y, [100] * 4, minibatch=True)
    parts = [
        streamed("rbf_cka", x[half], y[half], [100] * 2, minibatch=True)
        for half in (slice(0, 200), slice(200, 400))
    ]
    assert parts[0].merge(parts[1]).compute() == pytest.approx(whole.compute(), abs=1e-12)


def a_rank(rank: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    x, y = sides()
    found = []
    for measure, options in [*EXACT, ("linear_cka", {"minibatch": True})]:
        mine = Streaming(measure, **options)
        for first in range(50 * rank, 400, 100):
            mine.update(x[first : first + 50], y[first : first + 50])
        everyone: list[Streaming | None] = [None, None]
        dist.all_gather_object(everyone, mine)
        merged = Streaming(measure, **options)
        for part in everyone:
            merged.merge(part)
        found.append(merged.compute())
    dist.destroy_process_group()
    Path(results, str(rank)).write_text(" ".join(map(repr, found)))


def test_data_split_over_two_processes_give_the_value_in_memory(
    tmp_path: Path, start: Callable[..., ForkServerProcess]
) -> None:
    both = [start(a_rank, rank, str(tmp_path / "meeting"), str(tmp_path)) for rank in (0, 1)]
    for process in both:
        process.join(120)
    x, y = sides()
    expected = [measured(measure, x, y, draws=0, **options)[0] for measure, options in EXACT]
    expected.append(streamed("linear_cka", x, y, [50] * 8, minibatch=True).compute())
    for rank in "01":
        assert [float(value) for value in (tmp_path / rank).read_text().split()] == pytest.approx(
            expected, abs=1e-10
        )


@pytest.mark.parametrize("measure", ["cca", "pwcca"])
def test_a_condition_number_that_moments_cannot_hold_is_said(measure: str) -> None:
    x, y = sides(condition=10)
    for condition in (1e3, 9e4):
        streamed(
            measure, conditioned(np.random.default_rng(0), 400, 8, condition), y, [100] * 4
        ).compute()
    bad = conditioned(np.random.default_rng(0), 400, 8, 1e6)
    with pytest.warns(UserWarning, match=r"condition number 1\.0e\+06.*svcca"):
        streamed(measure, bad, y, [100] * 4).compute()
    with pytest.warns(UserWarning, match=r"y has the condition number 1\.0e\+06"):
        streamed(measure, x, bad, [100] * 4).compute()
    with pytest.warns(UserWarning, match=r"1 of 8 directions of x are left out.*beyond 3e\+06"):
        streamed(measure, x @ np.diag([*np.ones(7), 1e-9]), y, [100] * 4).compute()
    assert streamed("svcca", bad, y, [100] * 4).compute() == pytest.approx(
        measures.svcca(bad, y), abs=1e-10
    )


def test_dead_and_dependent_features_change_nothing() -> None:
    x, y = sides(condition=10)
    dead = np.hstack([x, np.full((400, 2), 0.1), np.zeros((400, 1))]).astype(np.float32)
    for measure, options in EXACT[:-1]:
        found = streamed(measure, dead, y, [64] * 6 + [16], **options).compute()
        assert found == pytest.approx(measured(measure, dead, y, draws=0, **options)[0], abs=1e-10)
    dependent = np.hstack([x, x[:, :2] @ [[1.0], [2.0]]])
    with pytest.warns(UserWarning, match="1 of 9 directions of y are left out"):
        assert streamed("cca", y, dependent, [100] * 4).compute() == pytest.approx(
            measures.cca(y, x), abs=1e-10
        )


def test_the_same_is_exactly_one_and_another_is_not() -> None:
    x, y = sides()
    for measure, options in [*EXACT, ("rbf_cka", {"minibatch": True})]:
        assert streamed(measure, x, x, [100] * 4, **options).compute() == 1.0
        assert streamed(measure, x, y, [100] * 4, **options).compute() < 0.999


@pytest.mark.parametrize(
    ("measure", "options"),
    [*EXACT[:-1], ("rbf_cka", {"minibatch": True}), ("linear_cka", {"minibatch": True})],
)
def test_chance_is_the_measure_of_groups_shuffled_within_each_batch(
    measure: str, options: dict[str, object]
) -> None:
    x, y = sides()
    stream = Streaming(measure, draws=3, seed=5, **options)
    stream.update(x, y, groups=40)
    plain = (
        {"debiased": True}
        if measure == "rbf_cka"
        else {name: value for name, value in options.items() if name != "minibatch"}
    )
    assert stream.chance() == pytest.approx(
        measured(measure, x, y, groups=40, draws=3, seed=5, **plain)[1], abs=1e-10
    )
    batches = Streaming(measure, draws=3, **options)
    for first in range(0, 400, 50):
        batches.update(x[first : first + 50], y[first : first + 50])
    assert batches.chance().shape == (3,) and abs(batches.chance()).max() < batches.compute()


def test_subspaces_have_the_floor_of_shuffled_neurons_and_single_groups_none() -> None:
    x, _ = sides(condition=10)
    stream = Streaming("subspace", k=2, draws=50)
    stream.update(x, x)
    assert stream.compute() == 1.0 and stream.chance().mean() == pytest.approx(2 / 8, abs=0.1)
    single = streamed("cca", x, x**2, [1] * 400, draws=2)
    assert len(single.chance()) == 0 and single.compute() == pytest.approx(
        measures.cca(x, x**2), abs=1e-10
    )


def test_what_is_held_grows_with_the_features_alone() -> None:
    x, y = sides(examples=4000)
    few, many = (
        len(pickle.dumps(streamed("cca", x[:n], y[:n], [100] * (n // 100)))) for n in (200, 4000)
    )
    assert many == pytest.approx(few, abs=64)
    assert len(pickle.dumps(streamed("linear_cka", x, y, [100] * 40, minibatch=True))) < 3000


def test_a_reset_and_a_copy_start_and_go_on_as_expected() -> None:
    x, y = sides()
    stream = streamed("pwcca", y, x, [200] * 2)
    stream.reset()
    for part in (slice(0, 150), slice(150, 400)):
        stream.update(torch.tensor(x[part]), y[part])
        stream = pickle.loads(pickle.dumps(stream))
    assert stream.compute() == pytest.approx(measures.pwcca(x, y), abs=1e-10)


def test_a_bad_batch_is_refused_by_name_and_adds_nothing() -> None:
    x, y = sides()
    stream = streamed("cca", x, y, [400])
    value, broken = stream.compute(), y.copy()
    broken[7, 1] = np.nan
    overflowing = np.full_like(x, np.inf)
    for bad, said in [
        ((x, y[1:]), "x has 400 examples and y has 399"),
        ((x, broken), "y holds 1 values that are NaN"),
        ((overflowing, y), "x holds 3200 values"),
        ((x[:, 1:], y), "this batch has 7 and 8 features, and those before 8 and 8"),
        ((x[None], y), r"must be \(examples, features\)"),
        ((x[:0], y[:0]), "at least 1 examples"),
    ]:
        with pytest.raises(ValueError, match=said):
            stream.update(*bad)
    with pytest.raises(ValueError, match="400 examples do not divide into groups=3"):
        stream.update(x, y, groups=3)
    assert stream.compute() == value and stream.examples == 400


def test_too_little_to_compute_from_says_so() -> None:
    x, y = sides()
    with pytest.raises(ValueError, match="no batch was seen"):
        Streaming("cca").compute()
    with pytest.raises(ValueError, match=r"x has n=7 examples and d=8 .*Pool examples.*linear_cka"):
        streamed("cca", x[:7], y[:7], [5, 2]).compute()
    with pytest.raises(ValueError, match="x has 3 examples in all; this measure needs at least 4"):
        streamed("linear_cka", x[:3], y[:3], [1, 1, 1]).compute()
    with pytest.raises(ValueError, match="fewer than the 4 examples"):
        streamed("linear_cka", x[:9], y[:9], [3] * 3, minibatch=True).compute()
    for measure, options in EXACT:
        with pytest.raises(ValueError, match="y has no variance"):
            streamed(measure, x, np.full((400, 8), 0.3), [100] * 4, **options).compute()
    for minibatch in (False, True):
        with pytest.raises(ValueError, match="equally far apart"):
            streamed("linear_cka", np.eye(8), y[:8], [8], minibatch=minibatch).compute()
    for measure in ("linear_cka", "rbf_cka"):
        with pytest.raises(
            ValueError, match="y: all pairs of its 400 examples are equally far apart"
        ):
            streamed(measure, x, np.full((400, 8), 0.3), [100] * 4, minibatch=True).compute()
    with pytest.warns(UserWarning, match="canonical correlations are 1 whatever the data"):
        streamed("cca", x[:12], y[:12], [6, 6]).compute()


def test_measures_and_options_that_are_not_there_are_refused() -> None:
    for said, arguments in [
        ("no measure 'cka'", {"measure": "cka"}),
        ("rbf_cka has no moments of fixed size.*minibatch=True", {"measure": "rbf_cka"}),
        ("no minibatch cca", {"measure": "cca", "minibatch": True}),
        ("cca has no option 'energy'; it has none", {"measure": "cca", "energy": 0.9}),
        (
            "linear_cka has no option 'fraction'; it has debiased",
            {"measure": "linear_cka", "fraction": 0.9},
        ),
        ("subspace needs k=", {"measure": "subspace"}),
        (
            "debiased=False: minibatch CKA",
            {"measure": "linear_cka", "minibatch": True, "debiased": False},
        ),
    ]:
        with pytest.raises(ValueError, match=said):
            Streaming(**arguments)
    x, y = sides()
    with pytest.raises(ValueError, match="energy=2 must lie"):
        streamed("svcca", x, y, [400], energy=2).compute()
    with pytest.raises(ValueError, match="fraction=0 must be above 0"):
        streamed("rbf_cka", x, y, [400], minibatch=True, fraction=0)
    with pytest.raises(ValueError, match="x has 8 features and y has 5: subspace compares"):
        streamed("subspace", x, y[:, :5], [400], k=2)


def test_only_streams_of_one_kind_merge() -> None:
    x, y = sides()
    stream = streamed("linear_cka", x, y, [400])
    with pytest.raises(ValueError, match="measure is 'linear_cka' here and 'cca' there"):
        stream.merge(Streaming("cca"))
    with pytest.raises(ValueError, match="options is"):
        stream.merge(Streaming("linear_cka", debiased=False))
    with pytest.raises(ValueError, match=r"features are \(8, 8\) here and \(8, 5\) there"):
        stream.merge(streamed("linear_cka", x, y[:, :5], [400]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stream.merge(Streaming("linear_cka")).examples == 400


def test_the_benchmark_times_the_stream_beside_numpy_on_the_same_numbers(tmp_path: Path) -> None:
    benchmark.measures(
        examples=210,
        features=6,
        batch=50,
        rounds=1,
        figures="time",
        results=str(tmp_path / "measures.jsonl"),
    )
    row = json.loads((tmp_path / "measures.jsonl").read_text())
    assert row["apart"] < 1e-12 and set(row["seconds"]) == {
        "stream",
        "numpy's SVD of one side",
        "CCA with numpy",
    }
    assert {"command", "machine", "versions", "commit"} <= row.keys()
    with pytest.raises(ValueError, match="no figure 'speed'; choose from time, memory, exactness"):
        benchmark.measures(figures="speed")
