"""How layers settle: networks whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.analysis.networks.dynamics import (
    Dynamics,
    class_sensitivity,
    convergence,
    generalising,
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))


def trained(frozen_after: int) -> tuple[nn.Module, dict[int, dict[str, Tensor]]]:
    """Snapshots of a training in which the first layer stays as it is from a step on."""
    torch.manual_seed(0)
    model, inputs = network(), torch.randn(40, 5)
    targets = torch.randint(0, 2, (40,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    snapshots = {}
    for step in range(21):
        if step % 5 == 0:
            snapshots[step] = {name: t.clone() for name, t in model.state_dict().items()}
        if step == frozen_after:
            model[0].requires_grad_(False)
            optimizer = torch.optim.SGD(model[2:].parameters(), lr=0.5)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, snapshots


@pytest.mark.parametrize("measure", ["pwcca", "linear_cka", "svcca"])
def test_a_layer_is_at_its_end_from_the_step_at_which_it_was_frozen(measure: str) -> None:
    model, snapshots = trained(frozen_after=10)
    inputs = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    found = convergence(network, snapshots, inputs, measure=measure, layers=["0", "1", "3"])
    assert found.steps == (0, 5, 10, 15, 20)
    np.testing.assert_allclose(found.values[:2, 2:], 1, atol=1e-6)
    assert found.values[1, 0] < 1 - 1e-6 or measure != "linear_cka"
    assert found.values[2, 2] < 1 - 1e-6
    assert not model.training or found.values[2, -1] == pytest.approx(1, abs=1e-6)


def test_the_step_reached_is_the_first_from_which_the_level_holds() -> None:
    _, snapshots = trained(frozen_after=10)
    found = convergence(network, snapshots, torch.randn(100, 5), layers=["1", "3"])
    object.__setattr__(
        found, "values", np.array([[0.5, 0.95, 0.8, 0.97, 1], [0.1, 0.2, 0.3, 0.4, 1]])
    )
    assert found.reached(0.9) == {"1": 15, "3": None}
    assert found.reached(0.0) == {"1": 0, "3": 0}
    assert "never" in str(found)


def test_equal_snapshots_are_at_their_end_throughout() -> None:
    model = network()
    same = dict(model.state_dict())
    found = convergence(model, {0: same, 1: same, 2: same}, torch.randn(100, 5))
    np.testing.assert_allclose(found.values, 1, atol=1e-6)


def test_the_end_of_another_seed_and_files_of_snapshots(tmp_path: Path) -> None:
    _, snapshots = trained(frozen_after=99)
    files = {}
    for step, weights in snapshots.items():
        files[step] = tmp_path / f"{step}.safetensors"
        safetensors.torch.save_file(weights, files[step])
    torch.manual_seed(5)
    other = dict(network().state_dict())
    inputs = torch.randn(100, 5)
    found = convergence(network, files, inputs, other=other, layers=["1", "3"])
    in_memory = convergence(network, snapshots, inputs, layers=["1", "3"])
    np.testing.assert_array_equal(found.values, in_memory.values)
    assert found.other is not None
    assert (found.other < found.values).all()
    assert len(found.figure().axes[0].lines) == 3
    assert {"layer", "step", "similarity", "other"} == set(found.records()[0])


def test_snapshots_of_another_network_are_refused() -> None:
    other = dict(nn.Sequential(nn.Linear(5, 7)).state_dict())
    with pytest.raises(ValueError, match=r"step 0 is not of this Sequential.*build the network"):
        convergence(network, {0: other, 1: other}, torch.randn(50, 5))
    wide = {name: torch.zeros(9) for name in network().state_dict()}
    with pytest.raises(ValueError, match=r"has shape \(9,\)"):
        convergence(network, {0: wide, 1: wide}, torch.randn(50, 5))
    with pytest.raises(ValueError, match="at least a step and the end"):
        convergence(network, {0: dict(network().state_dict())}, torch.randn(50, 5))


def test_untrained_groups_are_as_alike_within_as_across() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(50, 5), torch.arange(50) % 2
    built = []

    def build() -> nn.Module:
        built.append(torch.initial_seed())
        torch.manual_seed(len(built))  # no two networks share their first weights
        return network()

    found = generalising(
        build, inputs, targets, lambda *_: None, torch.randn(300, 5), seeds=range(6), layers=["3"]
    )
    assert built == [*range(6), *range(6)]
    within, across = found["random", "random"].layers["3"], found["true", "random"].layers["3"]
    assert found["true", "random"].pairs == 36
    assert found["random", "random"].pairs == 15
    error = across.std / math.sqrt(6)
    assert abs(within.mean - across.mean) < 4 * error


def test_training_accuracies_are_printed_and_shuffled_labels_are_the_same_for_all() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(30, 5), torch.arange(30) % 2
    seen: list[Tensor] = []

    def train(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
        seen.append(y)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    found = generalising(network, inputs, targets, train, torch.randn(100, 5), seeds=(0, 1))
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])
    assert found.training["random"].mean > 0.95
    assert "training accuracy, %" in str(found)
    assert len(found.records()) == 3 * 3
    with pytest.raises(ValueError, match="at least two"):
        generalising(network, inputs, targets, train, inputs, seeds=(0,))
    with pytest.raises(KeyError, match="true and random"):
        found["false", "true"]


def test_sensitivity_is_one_where_a_class_can_be_read_off_and_about_zero_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(600) % 3
    signal = F.one_hot(targets, 3).double() @ torch.randn(3, 4, generator=generator).double()
    noise = torch.randn(600, 4, generator=generator).double()
    model = nn.Sequential(nn.Identity())
    assert class_sensitivity(model, signal, targets, ["0"]).values == pytest.approx(
        np.ones((1, 3)), abs=1e-9
    )
    assert (class_sensitivity(model, noise, targets, ["0"]).values < 0.15).all()
    both = class_sensitivity(model, torch.cat([signal, noise], 1), targets, ["0"])
    assert both.records()[0]["class"] == 0
    maps = signal[:, :, None, None].expand(-1, -1, 2, 2)
    assert class_sensitivity(model, maps, targets, ["0"]).values.min() > 0.999


def test_sensitivity_refuses_too_few_examples_and_one_class() -> None:
    model = nn.Sequential(nn.Identity())
    with pytest.raises(ValueError, match="take more examples"):
        class_sensitivity(model, torch.randn(6, 20), torch.arange(6) % 2, ["0"])
    with pytest.raises(ValueError, match="one class"):
        class_sensitivity(model, torch.randn(60, 2), torch.zeros(60).long(), ["0"])


def test_snapshots_of_a_deeper_network_and_missing_files_are_refused() -> None:
    def network(depth: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth)))

    deeper = network(3).state_dict()
    with pytest.raises(ValueError, match=r"step 5 .* '2.weight' is only in the snapshot"):
        convergence(network(2), {0: network(2).state_dict(), 5: deeper}, torch.randn(30, 3))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convergence(network(2), {0: "nowhere.safetensors", 5: deeper}, torch.randn(30, 3))


def test_a_level_that_is_no_number_is_named() -> None:
    values = np.array([[0.1, 0.2, 1.0]])
    dynamics = Dynamics((0, 5, 10), ("a",), values, None, "linear_cka", 10)
    assert dynamics.reached() == {"a": None}
    with pytest.raises(ValueError, match="level='x'"):
        dynamics.reached("x")
