"""Linear probes: known answers on separable and on random labels, against a solver written out, and
bad input.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from metalearn import MAML, Examples
from metalearn.analysis.networks.probes import RIDGES, linear_probes
from metalearn.models import Conv4
from metalearn.tasks import LabelledImages


def network(inputs: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 3))


def clusters(count: int, spread: float, seed: int = 0, classes: int = 3) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.eye(classes, 6)
    labels = torch.arange(classes).repeat_interleave(count)
    return Examples(
        centres[labels] + spread * torch.randn(len(labels), 6, generator=generator), labels
    )


def test_separable_features_are_read_without_an_error() -> None:
    found = linear_probes(network(), clusters(10, 0.05), clusters(20, 0.05, seed=1))
    assert [row.layer for row in found.layers] == ["0", "2"]
    assert found["0"].accuracy.mean == 1
    assert found["0"].accuracy.interval == 0
    assert (found.train, found.test, found.classes, found["0"].features) == (30, 60, 3, 12)
    assert found.chance == pytest.approx(1 / 3)


def test_random_labels_are_read_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = (
        Examples(
            torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)
        )
        for n in (300, 3000)
    )
    found = linear_probes(network(), train, test, layers=["0"])["0"].accuracy
    assert abs(found.mean - 1 / 3) < 3 * found.interval
    assert found.interval == pytest.approx(1.96 * math.sqrt(found.mean * (1 - found.mean) / 2999))


@pytest.mark.parametrize("features", [8, 60])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_closed_form_is_the_solution_of_the_normal_equations(
    features: int, ridge: float
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, features), nn.ReLU(), nn.Linear(features, 3)).double()
    train, test = (
        Examples(torch.randn(n, 6, dtype=torch.float64), torch.randint(3, (n,))) for n in (40, 200)
    )
    x, y = (model[:2](part.inputs).detach() for part in (train, test))
    hot = nn.functional.one_hot(train.targets, 3).double()
    centred = x - x.mean(0)
    energy = torch.linalg.svdvals(centred).square()
    strength = ridge * energy[energy > 1e-10 * energy.max()].mean()
    weight = torch.linalg.solve(
        centred.T @ centred + strength * torch.eye(features).double(),
        centred.T @ (hot - hot.mean(0)),
    )
    expected = ((hot.mean(0) + (y - x.mean(0)) @ weight).argmax(1) == test.targets).double().mean()
    assert linear_probes(model, train, test, layers=["1"], ridge=ridge)[
        "1"
    ].accuracy.mean == pytest.approx(float(expected), abs=1e-12)


def test_the_ridge_taken_has_the_least_error_when_each_example_is_left_out_in_turn() -> None:
    torch.manual_seed(0)
    train = Examples(torch.randn(24, 6).double(), torch.arange(3).repeat(8))
    hot = nn.functional.one_hot(train.targets, 3).double()
    identity = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).double()
    with torch.no_grad():
        identity[0].weight.copy_(torch.eye(6))
        identity[0].bias.zero_()
    x = train.inputs
    energy = torch.linalg.svdvals(x - x.mean(0)).square().mean()
    errors = []
    for ridge in RIDGES:
        error = 0.0
        for i in range(24):
            rest = torch.arange(24) != i
            # The mean of features stays that of all examples, which leaves the fit with an
            # intercept the same.
            a = torch.cat([torch.ones(23, 1).double(), x[rest] - x.mean(0)], 1)
            penalty = ridge * energy * torch.diag(torch.tensor([0.0] + [1.0] * 6).double())
            weight = torch.linalg.solve(a.T @ a + penalty, a.T @ hot[rest])
            error += float(
                (hot[i] - torch.cat([torch.ones(1).double(), x[i] - x.mean(0)]) @ weight)
                .square()
                .sum()
            )
        errors.append(error)
    found = linear_probes(identity, train, train, layers=["0"])["0"]
    assert found.ridge == RIDGES[errors.index(min(errors))]


def test_scale_and_rotation_of_the_features_do_not_matter() -> None:
    train, test = clusters(10, 3.0), clusters(40, 3.0, seed=1)
    model = network().double()
    train, test = train.to(torch.float64), test.to(torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double())[
        0
    ]
    plain, turned = (
        nn.Sequential(nn.Linear(6, 6), model).double(),
        nn.Sequential(nn.Linear(6, 6), model).double(),
    )
    with torch.no_grad():
        for one, weight in ((plain, torch.eye(6).double()), (turned, 100 * turn)):
            one[0].weight.copy_(weight)
            one[0].bias.fill_(3)
    assert (
        linear_probes(plain, train, test, layers=["0"])["0"]
        == linear_probes(turned, train, test, layers=["0"])["0"]
    )


def test_images_are_pooled_on_request_and_shots_take_so_many_of_each_class() -> None:
    torch.manual_seed(0)
    images = LabelledImages(
        torch.randint(256, (40, 1, 16, 16), dtype=torch.uint8),
        torch.arange(4).repeat_interleave(10),
    )
    model = Conv4(4, hidden=5, size=16)
    found = linear_probes(MAML(model, lr=0.1), images, images, shots=3, convention="pool")
    assert [row.features for row in found.layers] == [5, 5, 5, 5, 4]
    assert (found.train, found.test) == (12, 40)
    assert linear_probes(model, images, images, layers=["block1"])["block1"].features == 5 * 64
    assert "chance 25.0 %" in str(found)
    assert "channels averaged" in str(found)
    assert found.to_dict()["layers"][0]["layer"] == "block1"


def test_labels_need_not_count_from_zero_and_the_model_keeps_its_mode() -> None:
    model = network().train()
    shifted = [
        Examples(part.inputs, part.targets + 7)
        for part in (clusters(10, 0.05), clusters(10, 0.05, seed=1))
    ]
    assert linear_probes(model, *shifted, layers=["0"])["0"].accuracy.mean == 1
    assert model.training


def test_constant_features_are_at_chance() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.zero_()
    found = linear_probes(model, clusters(10, 0.1), clusters(10, 0.1, seed=1), layers=["0"])
    assert found["0"].accuracy.mean == pytest.approx(found.chance)


def test_bad_input_is_named() -> None:
    train, test = clusters(5, 0.1), clusters(5, 0.1, seed=1)
    with pytest.raises(ValueError, match="has no layer 'block9'"):
        linear_probes(network(), train, test, layers=["block9"])
    with pytest.raises(ValueError, match="class 0 has 5 training examples; ask for 1 to 5 shots"):
        linear_probes(network(), train, test, shots=6)
    with pytest.raises(ValueError, match="the label 3, which no training example has"):
        linear_probes(network(), train, clusters(5, 0.1, classes=4))
    with pytest.raises(ValueError, match="images have 3 channels, and this Conv4 takes 1"):
        linear_probes(
            Conv4(3, channels=1, size=16, hidden=4),
            *[Examples(torch.rand(6, 3, 16, 16), torch.arange(6) % 3)] * 2,
        )
    with pytest.raises(ValueError, match="there is no convention 'mean'"):
        linear_probes(network(), train, test, convention="mean")
    with pytest.raises(ValueError, match="ridge=0 must be above 0"):
        linear_probes(network(), train, test, ridge=0)
    with pytest.raises(ValueError, match="integer labels"):
        linear_probes(network(), Examples(train.inputs, train.targets.float()), test)
    with pytest.raises(ValueError, match="layer 0: features that are not finite"):
        linear_probes(network(), Examples(train.inputs.log(), train.targets), test)
    with pytest.raises(KeyError, match="no layer 'z' was probed"):
        linear_probes(network(), train, test, layers=["0"])["z"]
