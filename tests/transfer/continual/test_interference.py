"""Interference against central differences and the closed form of a linear layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.episodes import Examples
from tests.helpers import smooth_network
from transfer.continual.interference import interference


def task(seed: int, count: int = 5) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, 1, 5, 5, generator=generator, dtype=torch.float64)
    return Examples(inputs, torch.arange(count) % 3)


def loss(model: nn.Module, weights: dict[str, Tensor], examples: Examples) -> Tensor:
    return F.cross_entropy(functional_call(model, weights, (examples.inputs,)), examples.targets)


def test_it_is_the_derivative_of_the_other_loss_along_a_step() -> None:
    """Central differences of fourth order of L1(w + eps g2)."""
    model = smooth_network("group").eval()
    first, second = task(1), task(2)
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    values = torch.autograd.grad(loss(model, weights, second), list(weights.values()))
    direction = dict(zip(weights, values, strict=True))

    def at(epsilon: float) -> float:
        moved = {name: w.detach() + epsilon * direction[name] for name, w in weights.items()}
        return float(loss(model, moved, first))

    step = 1e-3
    slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    found = interference(model, first, second)
    assert found.product == pytest.approx(slope, rel=1e-9)


def test_layers_sum_to_the_whole_and_the_order_does_not_matter() -> None:
    model = smooth_network("layer")
    tasks = task(1), task(2)
    found = interference(model, *tasks)
    back = interference(model, *tasks[::-1])
    weights = dict(model.named_parameters())
    sides = [torch.autograd.grad(loss(model, weights, t), [*weights.values()]) for t in tasks]
    whole = sum(float((p * q).sum()) for p, q in zip(*sides, strict=True))
    assert found.product == pytest.approx(whole, rel=1e-12)
    assert back.product == pytest.approx(found.product, rel=1e-12)
    assert [row.layer for row in found.layers] == ["0", "1", "4", "6"]
    assert all(-1 <= row.cosine <= 1 for row in found.layers)


def test_a_linear_head_interferes_through_the_products_of_its_features() -> None:
    """<g_1, g_2> = mean_ij (e_i . e_j) (phi_i . phi_j + 1)."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    sides = [Examples(torch.randn(6, 4).double(), torch.arange(6) % 3) for _ in range(2)]
    errors = [model(s.inputs).softmax(1).detach() - F.one_hot(s.targets, 3) for s in sides]
    features = sides[0].inputs @ sides[1].inputs.T + 1
    expected = float(((errors[0] @ errors[1].T) * features).mean())
    assert interference(model, *sides).product == pytest.approx(expected, rel=1e-12)


def test_a_head_for_each_task_is_left_out() -> None:
    model = smooth_network("group")
    heads = [{name: torch.randn_like(p) for name, p in model.named_parameters() if name[0] == "6"}]
    heads.append({name: -value for name, value in heads[0].items()})
    found = interference(model, task(1), task(2), heads=(heads[0], heads[1]))
    assert [row.layer for row in found.layers] == ["0", "1", "4"]
    model.load_state_dict({**model.state_dict(), **heads[0]})
    same = interference(model, task(1), task(1), heads=(heads[0], heads[0]))
    assert same["4"].product == pytest.approx(interference(model, task(1), task(1))["4"].product)
    with pytest.raises(ValueError, match="not of the head '6'"):
        interference(model, task(1), task(2), heads=({"0.weight": torch.zeros(1)}, {}))


def test_it_prints_as_a_table() -> None:
    found = interference(smooth_network("group"), task(1), task(2))
    assert "all layers" in str(found) and len(found.records()) == 4
    with pytest.raises(KeyError, match="no layer '9'"):
        found["9"]
