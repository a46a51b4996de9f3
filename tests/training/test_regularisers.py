"""Penalties: their gradients by central differences, and what they reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import MAML, meta_train
from metalearn.models import MLP
from metalearn.tasks import Sinusoid
from metalearn.training.regularisers import (
    Penalty,
    leading_component,
    leading_share,
    no_penalty,
    pulled,
    together,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 2)).double()


def importance(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.rand_like(p) for name, p in model.named_parameters()}


PENALTIES: dict[str, Callable[[nn.Module], Penalty]] = {
    "pulled": lambda model: pulled(shifted(model), 0.7),
    "pulled per layer": lambda model: pulled(shifted(model), {"": 0.5, "2": 3.0}),
    "pulled by importance": lambda model: pulled(shifted(model), 2.0, importance(model)),
    "together": lambda model: together(pulled(shifted(model), 1.0), pulled(model, 2.0)),
}


def shifted(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: p.detach() + torch.randn_like(p) for name, p in model.named_parameters()}


def directional(model: nn.Module, value: Callable[[], Tensor]) -> tuple[float, float]:
    """The derivative along one direction: by autograd, and by a central difference."""
    torch.manual_seed(2)
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    exact = sum(
        float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None
    )
    step = 1e-5
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(sign * step * d)
        ends.append(float(value().detach()))
    return exact, (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_agree_with_central_differences(name: str) -> None:
    model = network()
    with PENALTIES[name](model)(model) as extra:
        exact, difference = directional(model, extra)
    assert exact == pytest.approx(difference, rel=1e-6)


def test_the_leading_share_has_the_derivative_of_the_eigenvalue() -> None:
    """With v at the eigenvector, holding it fixed is exact."""
    model, inputs = network(), torch.rand(9, 4).double()

    def vector() -> Tensor:
        with torch.no_grad():
            activations = model[:2](inputs)
            centred = activations - activations.mean(0)
            return torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -1]

    fixed = vector()
    exact, _ = directional(model, lambda: leading_share(model[:2](inputs), fixed)[0])

    def share() -> Tensor:
        activations = model[:2](inputs)
        centred = activations - activations.mean(0)
        values = torch.linalg.eigvalsh(centred.mT @ centred)
        return values[-1] / values.sum()

    model_again = network()
    model.load_state_dict(model_again.state_dict())
    true, difference = directional(model, share)
    assert exact == pytest.approx(true, rel=1e-6)
    assert true == pytest.approx(difference, rel=1e-5)


def test_power_steps_reach_the_first_eigenvector() -> None:
    torch.manual_seed(0)
    activations = torch.randn(20, 6, dtype=torch.float64) * torch.arange(1, 7)
    centred = activations - activations.mean(0)
    values = torch.linalg.eigvalsh(centred.mT @ centred)
    vector = None
    for _ in range(200):
        share, vector = leading_share(activations, vector)
    assert float(share) == pytest.approx(float(values[-1] / values.sum()), rel=1e-9)


def test_a_penalty_only_counts_above_its_level_and_after_training_passes() -> None:
    model, inputs = network(), torch.rand(9, 4).double()
    with leading_component(weight=2.0, above=0.0)(model) as extra:
        model(inputs)
        share = float(extra().detach()) / 2
        assert float(extra()) == 0  # each pass counts once
        with torch.no_grad():
            model(inputs)
        assert extra().item() == 0
    assert 0 < share <= 1  # of one layer: the head is left out, the softplus has no parameters
    with leading_component(above=1.0)(model) as extra:
        model(inputs)
        assert extra().item() == 0
    assert not any(module._forward_hooks for module in model.modules())


def test_a_training_keeps_the_component_below_its_level() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    inputs[0] *= 50  # one dominant image
    shares = []
    for weight in (0.0, 10.0):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with leading_component(weight, above=0.5, layers=["1"])(model) as extra:
            for _ in range(200):
                loss = model(inputs).square().mean() + extra()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            shares.append(leading_share(model[:2](inputs))[0].item())
    assert shares[1] < shares[0]
    assert shares[1] < 0.6


def test_strengths_and_importance_reach_what_they_name() -> None:
    model = network()
    there = {name: p.detach() + 1 for name, p in model.named_parameters()}
    with pulled(there, {"2": 1.0})(model) as extra:
        assert extra().item() == pytest.approx(0.5 * 14)  # 12 weights and 2 biases, each 1 away
        gradients = torch.autograd.grad(extra(), list(model.parameters()), allow_unused=True)
    assert [gradient is None for gradient in gradients] == [True, True, False, False]
    bias_alone = {"0.bias": torch.full((6,), 2.0)}
    with pulled(there, 1.0, bias_alone)(model) as extra:
        assert extra().item() == pytest.approx(6)
    with pulled(there, 0.0)(model) as extra:
        assert extra().item() == 0


def test_bad_penalties_are_refused_when_they_are_entered() -> None:
    model = network()
    wrong: list[tuple[Penalty, str]] = [
        (pulled(model, {"3": 1.0}), "no layer '3'"),
        (pulled(model, -1.0), "strength=-1.0; give a finite number from 0"),
        (pulled(model, {"2": float("nan")}), "strength of '2'=nan"),
        (pulled({"0.weight": torch.zeros(6, 4)}, {"2": 1.0}), "no value for '2.weight'"),
        (pulled(model, 1.0, {"0.bias": torch.ones(5)}), "importance of '0.bias' has shape"),
        (pulled(model, 1.0, {"other": torch.ones(5)}), "reaches no parameter"),
        (leading_component(weight=-1), "weight=-1"),
        (leading_component(layers=["7"]), "no layer '7'"),
    ]
    for penalty, message in wrong:
        with pytest.raises(ValueError, match=message), penalty(model):
            pass
    with leading_component()(model) as extra:
        model(torch.rand(2, 4).double())
        with pytest.raises(ValueError, match="batch of 2 images"):
            extra()


def test_a_layer_that_does_not_run_is_named() -> None:
    model = network()
    model.unused = nn.Linear(4, 4)
    with leading_component(layers=["0", "unused"])(model) as extra:
        nn.Sequential.forward(model[:3], torch.rand(9, 4).double())
        with pytest.raises(ValueError, match=r"has run layer 'unused'.*leave it out"):
            extra()


def meta_trained(**options: object) -> MLP:
    torch.manual_seed(0)
    learner = MAML(MLP(1, 1, (4,)), lr=0.01, loss=F.mse_loss)
    tasks = Sinusoid(shots=5, queries=5, tasks=8)
    meta_train(learner, tasks, progress=False, **{"steps": 4, "meta_batch": 2, **options})
    return learner.model


def test_meta_training_adds_the_penalty_once_before_clipping() -> None:
    """One step of plain SGD moves by the gradient of the loss plus that of the penalty."""
    torch.manual_seed(0)
    start = MLP(1, 1, (4,))
    there = {name: p.detach() + 1 for name, p in start.named_parameters()}
    options = {"steps": 1, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    free, pulling = meta_trained(**options), meta_trained(**options, penalty=pulled(there, 2.0))
    for name, p in pulling.named_parameters():
        # the gradient of 2 (w - w*)^2 / 2 is 2 (w - w*) = -2
        torch.testing.assert_close(p, dict(free.named_parameters())[name] + 0.1 * 2)


def test_a_meta_training_with_a_penalty_resumes_to_the_last_bit(tmp_path: Path) -> None:
    torch.manual_seed(5)
    anchor = {name: p.detach().clone() for name, p in MLP(1, 1, (4,)).named_parameters()}
    whole = meta_trained(penalty=pulled(anchor, 1.0))
    file = tmp_path / "run"
    meta_trained(penalty=pulled(anchor, 1.0), steps=2, checkpoint=file)
    resumed = meta_trained(penalty=pulled(anchor, 1.0), checkpoint=file)
    for name, p in resumed.named_parameters():
        assert torch.equal(p, dict(whole.named_parameters())[name]), name
    free = meta_trained()
    assert not torch.equal(free.layer1.weight, whole.layer1.weight)
    with pytest.raises(ValueError, match=r"penalty.*strength=2\.0.*strength=1\.0"):
        meta_trained(penalty=pulled(anchor, 2.0), checkpoint=file, steps=6)


def test_a_penalty_is_recorded_by_its_numbers() -> None:
    model = network()
    same = pulled(model.state_dict(), 1.0)
    assert repr(pulled(model, 1.0)) == repr(same)
    shifted_name = repr(pulled(shifted(model), 1.0))
    assert shifted_name != repr(same)
    assert len(shifted_name) < 100
    assert repr(together(same, leading_component())).startswith("together(pulled(")


def test_strength_zero_meta_trains_as_without() -> None:
    free, none = meta_trained(), meta_trained(penalty=pulled(MLP(1, 1, (4,)), 0.0))
    for name, p in none.named_parameters():
        assert torch.equal(p, dict(free.named_parameters())[name]), name


def test_a_penalty_of_outputs_is_refused_in_meta_training() -> None:
    for penalty in (leading_component(), together(leading_component(), no_penalty)):
        with pytest.raises(ValueError, match="meta_train takes penalties of weights alone"):
            meta_trained(penalty=penalty)


def test_a_penalty_of_a_meta_training_that_is_not_finite_is_named() -> None:
    nan = {name: torch.full_like(p, torch.nan) for name, p in MLP(1, 1, (4,)).named_parameters()}
    with pytest.raises(FloatingPointError, match="penalty is nan at step 1"):
        meta_trained(penalty=pulled(nan, 1.0))
