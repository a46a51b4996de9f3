"""The Fisher information against closed forms, and what has none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metalearn as ml
from tests.helpers import smooth_network
from transfer.continual.fisher import fisher


def regression(features: int = 6, classes: int = 4) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(features, classes).double(), torch.randn(50, features).double()


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_softmax_regression_has_its_closed_form(chunk: int) -> None:
    """F[c, i] = mean_x p_c (1 - p_c) x_i^2 with labels from the model."""
    model, x = regression()
    p = model(x).softmax(1).detach()
    expected = torch.einsum("nc,ni->ci", p * (1 - p), x.square()) / len(x)
    found = fisher(model, x, chunk=chunk)
    torch.testing.assert_close(found["weight"], expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(found["bias"], (p * (1 - p)).mean(0), rtol=0, atol=1e-15)


@pytest.mark.parametrize("labels", ["model", "data"])
@pytest.mark.parametrize("norm", ["group", "layer", "frozen", "none"])
def test_all_examples_at_once_are_as_one_by_one(labels: str, norm: str) -> None:
    model = smooth_network(norm)
    torch.manual_seed(1)
    x, y = torch.rand(6, 1, 5, 5).double(), torch.arange(6) % 3
    together = fisher(model, x, y, labels=labels, chunk=4)
    single = fisher(model, x, y, labels=labels, chunk=1)
    assert together.keys() == dict(model.named_parameters()).keys()
    for name, value in together.items():
        torch.testing.assert_close(value, single[name], rtol=1e-10, atol=1e-15)


def test_the_empirical_fisher_squares_the_gradient_of_each_label() -> None:
    model, x = regression()
    y = torch.arange(50) % 4
    error = model(x).softmax(1).detach() - F.one_hot(y, 4)
    expected = torch.einsum("nc,ni->ci", error.square(), x.square()) / len(x)
    torch.testing.assert_close(fisher(model, x, y, labels="data")["weight"], expected)


def test_the_square_of_a_batchs_mean_gradient_is_smaller_by_the_batch() -> None:
    """The common mistake: with labels from the model the mean gradient of B has 1/B of it."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    x = torch.randn(20_000, 6).double()
    p = model(x).softmax(1).detach()
    y = torch.multinomial(p, 1)[:, 0]
    error = (p - F.one_hot(y, 4)).unflatten(0, (2000, 10))  # (batches, 10, classes)
    means = torch.einsum("bnc,bni->bci", error, x.unflatten(0, (2000, 10))) / 10
    wrong = means.square().mean(0).sum()
    assert float(wrong / fisher(model, x, chunk=5000)["weight"].sum()) == pytest.approx(
        0.1, abs=0.01
    )


def test_frozen_parameters_are_left_out() -> None:
    model, x = regression()
    model.bias.requires_grad = False
    assert list(fisher(model, x)) == ["weight"]


def test_networks_whose_examples_are_not_alone_are_refused() -> None:
    x = torch.rand(4, 1, 5, 5).double()
    with pytest.raises(ValueError, match=r"1 \(BatchNorm2d\) normalises by the batch.*GroupNorm"):
        fisher(smooth_network("batch"), x)
    running = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2))
    with pytest.raises(ValueError, match=r"1 \(BatchNorm2d\) keeps running.*frozen_statistics"):
        fisher(running, x.float())
    assert len(fisher(ml.frozen_statistics(running), x.float())) == 6


def test_active_dropout_is_refused_and_named() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"1 \(Dropout\(p=0.5.*set its p to 0, or use replay"):
        fisher(model, torch.rand(5, 6))
    model[1].p = 0.0
    assert fisher(model.eval(), torch.rand(5, 6))
    assert not model.training

    class Noisy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(super().forward(x), 0.5, self.training)

    with pytest.raises(ValueError, match="Noisy drops units at random"):
        fisher(Noisy(6, 3), torch.rand(5, 6))


def test_bad_settings_are_refused() -> None:
    model, x = regression()
    with pytest.raises(ValueError, match="labels='true'; choose model or data"):
        fisher(model, x, labels="true")
    with pytest.raises(ValueError, match="needs targets="):
        fisher(model, x, labels="data")
    with pytest.raises(ValueError, match="chunk=0"):
        fisher(model, x, chunk=0)
    with pytest.raises(ValueError, match="freeze fewer layers"):
        fisher(model.requires_grad_(requires_grad=False), x)
