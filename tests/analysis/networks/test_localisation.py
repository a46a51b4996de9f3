"""Positions against positions: identities, permutations, and processes with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalearn.analysis import compare_layers, linear_cka, linear_probes, similarity_map
from metalearn.analysis.networks.localisation import localisation, position_map
from metalearn.episodes import Examples
from metalearn.models import SmallViT


class Patches(nn.Module):
    """Tokens that are the patches of the image, in an order of the test's choice."""

    def __init__(self, order: Tensor | None = None) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 4, stride=4, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(16).view(16, 1, 4, 4))
        self.norm = nn.LayerNorm(16)
        self.tokens = nn.Identity()
        self.order = order

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).mT
        if self.order is not None:
            tokens = tokens[:, self.order]
        return self.norm(self.tokens(tokens))


def noise(count: int = 200, size: int = 8) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def test_identity_tokens_of_independent_patches_map_to_themselves() -> None:
    found = position_map(Patches(), noise(), "tokens", "input", draws=0)
    assert found.layers_a[1] == "tokens@1"
    np.testing.assert_allclose(np.diag(found.values), 1, atol=1e-5)
    assert np.abs(found.values - np.eye(4)).max() < 0.05


def test_permuting_tokens_permutes_the_rows() -> None:
    order = torch.tensor([2, 0, 3, 1])
    plain = position_map(Patches(), noise(), "tokens", "input", draws=0)
    permuted = position_map(Patches(order), noise(), "tokens", "input", draws=0)
    np.testing.assert_allclose(permuted.values, plain.values[order], atol=1e-6)


def test_a_pair_is_the_similarity_of_the_two_matrices() -> None:
    torch.manual_seed(0)
    network, images = SmallViT(width=12, depth=1, size=8), torch.rand(40, 3, 8, 8)
    found = position_map(network, images, "blocks.0", draws=0)
    with torch.no_grad():
        tokens = network.blocks[0](_entering(network, images))
    for pair in [(0, 1), (3, 2)]:
        expected = linear_cka(tokens[:, pair[0]], tokens[:, pair[1]])
        assert found.values[pair] == pytest.approx(expected, abs=1e-5)
    assert found["blocks.0@3", "blocks.0@2"] == found.values[3, 2]


def _entering(network: SmallViT, images: Tensor) -> Tensor:
    stream = network.patches(images).flatten(2).mT
    first = network.class_token.expand(len(stream), -1, -1)
    return torch.cat([first, stream], 1) + network.positions


def test_states_of_a_scalar_process_forget_as_its_correlation_says() -> None:
    """An AR(1) process: R² of t on t' is rho^(2 |t - t'|)."""
    generator = torch.Generator().manual_seed(0)
    rho, steps = 0.8, 6
    states = [torch.randn(4000, generator=generator, dtype=torch.float64)]
    for _ in range(steps - 1):
        fresh = torch.randn(4000, generator=generator, dtype=torch.float64)
        states.append(rho * states[-1] + (1 - rho**2) ** 0.5 * fresh)
    series = torch.stack(states, 1)[..., None]  # (examples, steps, 1)
    found = position_map(nn.Sequential(nn.Identity()), series.split(500), "0", draws=0)
    lags = np.abs(np.arange(steps)[:, None] - np.arange(steps))
    np.testing.assert_allclose(found.values, rho ** (2 * lags), atol=0.05)


def test_rotating_states_stay_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    state = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    states = [state]
    for _ in range(3):
        states.append(states[-1] @ rotation)
    found = position_map(nn.Sequential(nn.Identity()), torch.stack(states, 1), "0", draws=0)
    np.testing.assert_allclose(found.values, 1, atol=1e-9)


def test_tokens_name_layers_everywhere() -> None:
    torch.manual_seed(0)
    network = SmallViT(width=12, depth=2, size=8)
    images = torch.rand(60, 3, 8, 8)
    names = ["blocks.0@0", "blocks.1@1:mean", "blocks.1@-1"]
    profile = compare_layers(network, network, images, names, draws=0)
    assert [row.features for row in profile.layers] == [(12, 12)] * 3
    assert [row.similarity for row in profile.layers] == pytest.approx([1] * 3)
    found = similarity_map(network, network, images, names, names, draws=0)
    np.testing.assert_allclose(np.diag(found.values), 1)
    examples = Examples(images, torch.arange(60) % 3)
    probes = linear_probes(network, examples, examples, names)
    assert [row.layer for row in probes.layers] == names
    rnn = nn.LSTM(3, 5, batch_first=True)
    last = compare_layers(rnn, rnn, torch.rand(30, 4, 3), [":0@-1"], draws=0)
    assert last.layers[0].features == (5, 5)


def test_localisation_is_perfect_for_patches_and_lost_for_shuffled_ones() -> None:
    kept = localisation(Patches(), noise(), ["tokens"])
    assert kept.layers[0].rank == 1
    assert kept.layers[0].own == pytest.approx(1, abs=1e-5)
    assert abs(kept.layers[0].elsewhere) < 0.05
    moved = localisation(Patches(torch.tensor([1, 2, 3, 0])), noise(), ["tokens"])
    assert moved.layers[0].own < 0.05
    assert moved.layers[0].rank > 1
    assert "2.5 by chance" in str(moved)
    assert moved.records()[0]["layer"] == "tokens"


def test_the_class_token_is_left_out() -> None:
    torch.manual_seed(0)
    network = SmallViT(width=12, depth=1, size=8)
    found = localisation(network, torch.rand(40, 3, 8, 8), ["blocks.0"])
    assert found.patches == 4
    with pytest.raises(ValueError, match="keeps all tokens"):
        localisation(network, torch.rand(40, 3, 8, 8), ["blocks.0"], special=0)


def test_layers_without_positions_are_refused() -> None:
    network, images = SmallViT(width=12, depth=1, size=8), torch.rand(10, 3, 8, 8)
    with pytest.raises(ValueError, match=r"'head' returned \(10, 10\).*no positions"):
        position_map(network, images, "head")
    with pytest.raises(ValueError, match="blocks"):
        position_map(network, images, "block.0")
    with pytest.raises(ValueError, match="no batch"):
        position_map(network, [], "blocks.0")
    lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True)
    with pytest.raises(ValueError, match="':0'"):
        position_map(lstm, torch.rand(8, 4, 3), "")
    with pytest.raises(ValueError, match=r"num_layers=2.*nn\.LSTM\(num_layers=1\)"):
        position_map(lstm, torch.rand(8, 4, 3), ":0")
    with pytest.raises(ValueError, match=r"num_layers=2.*nn\.LSTM\(num_layers=1\)"):
        compare_layers(lstm, lstm, torch.rand(30, 4, 3), [":0@3"], draws=0)


def test_time_steps_of_a_module_with_time_first_are_time_steps() -> None:
    class Transposing(nn.Module):
        def __init__(self, *, batch_first: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.GRU(2, 4, batch_first=batch_first)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.rnn.batch_first:
                return self.rnn(inputs)[0]
            return self.rnn(inputs.transpose(0, 1))[0].transpose(0, 1)

    inputs = torch.randn(30, 5, 2)
    first, second = (
        position_map(Transposing(batch_first=batch_first), inputs, "rnn:0", draws=0)
        for batch_first in (True, False)
    )
    assert second.values.shape == (5, 5)
    np.testing.assert_allclose(first.values, second.values, atol=1e-5)
    # A network that takes time first is not given its examples first.
    rnn = nn.GRU(2, 4)
    with pytest.raises(ValueError, match="examples"):
        compare_layers(rnn, rnn, inputs, [":0@-1"], draws=0)
    with pytest.raises(ValueError, match="its first dimension is not the images"):
        position_map(rnn, inputs, ":0", draws=0)
    examples = Examples(inputs, torch.arange(30) % 3)
    with pytest.raises(ValueError, match=r"\(5, 4\) for 30 examples"):
        linear_probes(rnn, examples, examples, [":0@-1"])
