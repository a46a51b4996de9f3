"""Activations of every dtype that torch and numpy have, in every measure, beside float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalearn.analysis import (
    Streaming,
    canonical_correlations,
    cca,
    class_cosines,
    compare_layers,
    linear_cka,
    linear_probes,
    procrustes,
    pwcca,
    rbf_cka,
    similarity_map,
    subspace,
    svcca,
)
from metalearn.analysis.adaptation.observe import weights_moved
from metalearn.episodes import Examples

MEASURES = {
    "cca": cca,
    "svcca": svcca,
    "pwcca": pwcca,
    "linear_cka": linear_cka,
    "rbf_cka": rbf_cka,
    "procrustes": procrustes,
    "subspace": lambda x, y: subspace(x, y, k=3),
}
OPTIONS = {"rbf_cka": {"minibatch": True}, "subspace": {"k": 3}}
FLOATS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
WHOLE = [
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


def one_subspace(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sides (300, 20) of one space of 5 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    maps = torch.randn(2, 5, 20, generator=generator, dtype=torch.float64)
    return common @ maps[0], common @ maps[1]


def related(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sides (300, 6) that share half of their variance."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, 300, 6, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([5.0, 3.0, 2.0, 1.5, 1.0, 0.7])
    return x, x.flip(1) + 2 * noise + x


@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_is_no_direction(dtype: torch.dtype) -> None:
    x, y = (side.to(dtype) for side in one_subspace())
    assert len(canonical_correlations(x, y)) == 5
    for measure in (cca, svcca, pwcca):
        assert measure(x, y) == pytest.approx(1, abs=1e-3)
    stream = Streaming("cca")
    for left, right in zip(x.split(64), y.split(64), strict=True):
        stream.update(left, right)
    assert stream.compute() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_cast_to_a_wider_dtype_does_not_hide_the_rounding(dtype: torch.dtype) -> None:
    x, y = (side.to(dtype).double().numpy() for side in one_subspace())
    assert len(canonical_correlations(x, y)) == 5
    assert cca(x, y) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_large_mean_adds_no_directions(dtype: torch.dtype) -> None:
    x, y = (side.add(20).to(dtype) for side in one_subspace())
    assert len(canonical_correlations(x, y)) <= 5
    assert cca(x, y) == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cca_is_what_numpy_computes(dtype: type) -> None:  # anatome#27
    x, y = np.random.default_rng(0).normal(size=(2, 2000, 40)).astype(dtype)
    bases = [np.linalg.qr((side - side.mean(0)).astype(np.float64))[0] for side in (x, y)]
    rho = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    assert canonical_correlations(x, y) == pytest.approx(rho, abs=1e-6)
    assert cca(x, y) == pytest.approx(rho.mean(), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_every_float_gives_what_float64_gives(name: str) -> None:
    x, y = related()
    expected = MEASURES[name](x, y)
    for dtype, tolerance in FLOATS.items():
        assert MEASURES[name](x.to(dtype), y.to(dtype)) == pytest.approx(expected, abs=tolerance)
        assert MEASURES[name](x, y.to(dtype)) == pytest.approx(expected, abs=tolerance)
    for dtype in FLOAT8:
        assert MEASURES[name](x.to(dtype), y.to(dtype)) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", WHOLE)
def test_integers_are_exact(name: str, dtype: torch.dtype) -> None:
    x, y = ((20 * side).round().clamp(-128, 127) for side in related())
    x, y = (side if dtype.is_signed else side + 128 for side in (x, y))
    expected = MEASURES[name](x, y)
    assert MEASURES[name](x.to(dtype), y.to(dtype)) == pytest.approx(expected, abs=1e-9)
    array = x.numpy().astype(str(dtype).removeprefix("torch."))
    assert MEASURES[name](array, y.to(dtype)) == pytest.approx(expected, abs=1e-9)
    stream = Streaming(name, **OPTIONS.get(name, {}))
    stream.update(x.to(dtype), y.to(dtype))
    if name != "rbf_cka":  # minibatch CKA is the debiased one
        assert stream.compute() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", MEASURES)
def test_bools_are_noughts_and_ones(name: str) -> None:
    x, y = (side > 0 for side in related())
    assert MEASURES[name](x, y) == pytest.approx(MEASURES[name](x.double(), y.double()), abs=1e-9)
    assert MEASURES[name](x.numpy(), y) == pytest.approx(
        MEASURES[name](x.double(), y.double()), abs=1e-9
    )


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.float32]
)
@pytest.mark.parametrize("name", MEASURES)
def test_a_dead_layer_has_no_similarity(name: str, dtype: torch.dtype) -> None:
    x, _ = related()
    dead = torch.full((300, 6), 1.0).to(dtype)
    with pytest.raises(ValueError, match="y has no variance"):
        MEASURES[name](x, dead)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_constant_but_for_rounding_is_dead(dtype: torch.dtype) -> None:
    x, _ = related()
    flicker = 1 + torch.finfo(dtype).eps / 4 * torch.randn(
        300, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    with pytest.raises(ValueError, match="y has no variance"):
        linear_cka(x, flicker.to(dtype))
    stream = Streaming("cca")
    stream.update(x, flicker.to(dtype))
    with pytest.raises(ValueError, match="y has no variance"):
        stream.compute()


@pytest.mark.filterwarnings("ignore:Sparse")
def test_any_layout_is_read() -> None:
    x, y = related()
    expected = cca(x, y)
    single = x.float()
    layouts = [
        x.requires_grad_(),
        nn.Parameter(x.detach()),
        x.detach().T.contiguous().T,
        x.detach().repeat_interleave(2, 0)[::2],
        x.detach().to_sparse(),
        x.detach().to_sparse_csr(),
        x.detach().numpy()[::-1][::-1],
        np.asfortranarray(x.detach().numpy()),
        x.detach().numpy().astype(">f8"),
        x.detach().numpy().astype(np.longdouble),
        np.ma.masked_array(x.detach().numpy()),
        np.broadcast_to(x.detach().numpy()[None], (2, 300, 6))[1],
        x.tolist(),
    ]
    for side in layouts:
        assert cca(side, y) == pytest.approx(expected, abs=1e-9)
    reversed_rows = x.detach().numpy()[::-1]
    assert cca(reversed_rows, y.flip(0)) == pytest.approx(expected, abs=1e-9)
    assert cca(single.numpy(), y) == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*support is experimental")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_is_no_matrix_of_real_numbers_is_refused_by_name() -> None:
    _, y = related()
    masked = np.ma.masked_array(y.numpy(), mask=y.numpy() > 3)
    for bad, said in [
        (y.to(torch.complex64), "complex"),
        (y.numpy().astype(np.complex128), "complex"),
        (y.numpy().astype(np.clongdouble), "complex"),
        (masked, "masked array with .* leave those examples out"),
        (torch.empty(300, 6, device="meta"), "meta device"),
        (torch.quantize_per_tensor(y.float(), 0.1, 0, torch.qint8), "dequantize"),
        (y[:0], "at least"),
        (y[:, :0], "at least"),
        (y[:, 0], r"\(examples, features\)"),
        (y.long() + 2**60, r"beyond 2\*\*53"),
        ((y.long() + 10).to(torch.uint64).numpy() + np.uint64(2**63 + 2**62), r"beyond 2\*\*53"),
        (torch.full((300, 6), float("nan"), dtype=torch.bfloat16), "1800 values that are NaN"),
        (torch.full((300, 6), float("inf")).to(torch.float8_e5m2), "1800 values that are NaN"),
        (np.array([["a", "b"], ["c", "d"]]), "array of <U1"),
        (np.array([[1, None]], dtype=object), "array of object"),
        (np.zeros(300, dtype=[("a", float), ("b", float)]), "array of"),
        (np.zeros((300, 6), dtype="datetime64[s]"), "array of datetime64"),
        ([[1.0, 2.0], [3.0]], "is a list, which numpy does not turn into an array"),
        ("activations", "is a str"),
        (None, "NoneType"),
        ({"layer": y}, "is a dict"),
    ]:
        for measure in (cca, linear_cka):
            with pytest.raises((ValueError, TypeError), match=f"^x .*{said}"):
                measure(bad, y)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int16, torch.bool, torch.uint8]
)
@pytest.mark.parametrize("convention", ["flatten", "positions", "pool"])
def test_captured_outputs_of_any_dtype_are_compared(dtype: torch.dtype, convention: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (40 * torch.rand(30, 5, 4, 4, generator=generator)).to(dtype)
    y = (40 * torch.rand(30, 5, 4, 4, generator=generator)).to(dtype) + x
    for measure in ("linear_cka", "cca", "procrustes"):
        if measure == "cca" and convention == "flatten":
            continue
        options = {"measure": measure, "convention": convention, "draws": 2}
        found = compare_layers({"conv": x}, {"conv": y}, **options)["conv"]
        exact = compare_layers({"conv": x.double()}, {"conv": y.double()}, **options)["conv"]
        assert found.similarity == pytest.approx(exact.similarity, abs=2e-2, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_map_of_narrow_networks_is_that_of_wide_ones(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype)
    x, _ = related()
    x = x.to(dtype)
    with torch.no_grad():
        hidden = narrow[0](x)
        expected = linear_cka(hidden, narrow(x))
    found = similarity_map(narrow, narrow, [x], draws=0)
    assert found["0", "2"] == pytest.approx(expected, abs=1e-5)
    probed = linear_probes(
        narrow, Examples(x[::2], (x[::2, 0] > 0).long()), Examples(x[1::2], (x[1::2, 0] > 0).long())
    )
    assert probed["0"].accuracy.mean > 0.9


def test_distances_of_narrow_weights_are_taken_in_float64() -> None:
    model = nn.Linear(300, 300, bias=False)
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        before = {"weight": (300 * torch.randn(300, 300, generator=generator)).to(dtype)}
        after = {
            "weight": (
                (before["weight"].double() + torch.randn(300, 300, generator=generator)).to(dtype)
            )
        }
        moved = weights_moved(model, [""], before, after, {})[""]
        exact = float((after["weight"].double() - before["weight"].double()).norm())
        assert moved["distance"] == pytest.approx(exact, rel=1e-9)
        assert moved["relative_distance"] == pytest.approx(
            exact / float(before["weight"].double().norm()), rel=1e-9
        )


def test_cosines_of_classes_are_those_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    features, targets = 20 * torch.randn(12, 40, generator=generator), torch.arange(3).repeat(4)
    for dtype in (torch.float16, torch.bfloat16, torch.int8):
        narrow = features.to(dtype)
        assert class_cosines(narrow, targets) == pytest.approx(
            class_cosines(narrow.double(), targets), abs=1e-12
        )


def test_networks_of_narrow_weights_are_compared_as_wide_ones() -> None:
    torch.manual_seed(0)
    wide = [nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4)) for _ in range(2)]
    x = torch.randn(400, 6)
    for measure in ("cca", "linear_cka", "procrustes"):
        expected = compare_layers(*wide, x, measure=measure, draws=0)
        for dtype in (torch.float16, torch.bfloat16):
            narrow = [copy.deepcopy(network).to(dtype) for network in wide]
            found = compare_layers(*narrow, x, measure=measure, draws=0)
            for layer in ("0", "2"):
                assert found[layer].similarity == pytest.approx(
                    expected[layer].similarity, abs=3e-2
                )
