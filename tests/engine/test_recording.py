"""CUDA graphs: every recorded meta-gradient and prediction against the loop; without a CUDA device
a recording calls the function again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.engine import execution, recording
from metalearn.engine.execution import choose_execution, in_flight, without_graphs
from metalearn.episodes import Episode
from metalearn.models import MLP, Conv4, ResNet12
from metalearn.tasks import FewShot, Sinusoid, glyphs
from tests.helpers import (
    EXACT,
    FAMILY,
    central_difference,
    gradients,
    made_up_tasks,
    outer_loss,
    smooth_network,
)

cuda = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
)


@pytest.fixture(params=["cpu", cuda])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where recordings are made.

    On a CPU what would be recorded is run again on the same memory.
    """

    def run_again(work: Callable[..., Any], *inputs: torch.Tensor) -> Callable[..., Any]:
        held = [tensor.clone() for tensor in inputs]
        work(*held)

        def replay(*given: torch.Tensor) -> Any:
            for ours, theirs in zip(held, given, strict=True):
                ours.copy_(theirs)
            return work(*held)

        return replay

    if request.param == "cpu":
        monkeypatch.setattr(recording, "record", run_again)
        monkeypatch.setattr(execution, "is_on", lambda learner, kind: kind == "cuda")
    return str(request.param)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The device of every recording that was made."""
    made: list[torch.device] = []
    original = recording.record
    monkeypatch.setattr(
        recording,
        "record",
        lambda work, *inputs: made.append(inputs[0].device) or original(work, *inputs),
    )
    return made


def found(learner: ml.Learner, episodes: Episode) -> tuple[torch.Tensor, ...]:
    """Meta-gradient, losses, logits, and predictions without gradients."""
    learner.zero_grad()
    done = ml.meta_backward(learner, episodes)
    with torch.no_grad():
        predicted = learner(episodes)
    return tuple(
        tensor.cpu() for tensor in (gradients(learner), done.losses, done.logits, predicted)
    )


def check(
    build: Callable[..., ml.Learner],
    device: str,
    shape: tuple[int, ...] = (1, 5, 5),
    ways: int = 3,
    calls: int = 4,
) -> None:
    """In graphs, other tasks at every call, as in a loop on the CPU."""
    expected, recorded = build(execution="loop"), build(execution="graphs").to(device)
    for call in range(calls):
        episodes = made_up_tasks(seed=call, shape=shape, ways=ways)
        for ours, theirs in zip(
            found(recorded, episodes.to(device)), found(expected, episodes), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_every_learner_is_as_in_a_loop(
    name: str, device: str, recordings: list[torch.device]
) -> None:
    check(lambda **options: FAMILY[name](smooth_network(), **options), device)
    assert len(recordings) == 2  # the meta-gradient and the prediction, each at its second call


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group", "frozen", "none"])
@pytest.mark.parametrize("name", ["MAML", "FOMAML", "ANIL", "BOIL", "MetaSGD"])
def test_every_normalisation_layer_is_as_in_a_loop(name: str, norm: str, device: str) -> None:
    check(lambda **options: FAMILY[name](smooth_network(norm), **options), device, calls=3)


@pytest.mark.parametrize("name", ["MAML", "FOMAML", "ANIL", "BOIL", "NIL softmax"])
@pytest.mark.parametrize("network", ["pooled", "strided", "residual"])
def test_the_networks_of_the_papers_are_as_in_a_loop(name: str, network: str, device: str) -> None:
    build: dict[str, Callable[[], nn.Module]] = {
        "pooled": lambda: Conv4(3, hidden=4, size=16),
        "strided": lambda: Conv4(3, hidden=4, size=16, pool=False),
        "residual": lambda: ResNet12(3, 1, widths=(2, 3, 4, 5)),
    }

    def learner(**options: str) -> ml.Learner:
        torch.manual_seed(0)
        return FAMILY[name](build[network]().double(), **options)

    check(learner, device, shape=(1, 16, 16), calls=3)


def test_reptile_and_learned_rates_are_as_in_a_loop(device: str) -> None:
    check(lambda **options: ml.Reptile(smooth_network(), 0.3, steps=3, **options), device)
    rate = torch.tensor(0.3, dtype=torch.float64)
    check(
        lambda **options: ml.MAML(
            smooth_network(), {"": 0.2, "6": nn.Parameter(rate.clone())}, steps=2, **options
        ),
        device,
    )


@pytest.mark.parametrize("name", EXACT)
def test_a_recorded_meta_gradient_is_the_derivative_of_the_outer_loss(
    name: str, device: str
) -> None:
    learner = FAMILY[name](smooth_network(), execution="graphs").to(device)
    episodes = made_up_tasks().to(device)
    for _ in range(3):
        learner.zero_grad()
        ml.meta_backward(learner, episodes)
    generator = torch.Generator().manual_seed(5)
    direction = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype).to(device)
        for p in learner.meta_parameters().values()
    ]
    exact = sum(
        (p.grad * d).sum().item()
        for p, d in zip(learner.meta_parameters().values(), direction, strict=True)
    )
    assert exact == pytest.approx(
        central_difference(learner, direction, episodes=episodes), rel=1e-8, abs=1e-9
    )


def test_weights_that_the_outer_loop_moved_are_used(device: str) -> None:
    build = lambda **options: ml.MAML(smooth_network(), 0.4, steps=2, **options)  # noqa: E731
    curves = []
    for learner in (build(execution="loop"), build(execution="graphs").to(device)):
        tasks = [ml.episodes.unstack(made_up_tasks(seed=seed))[0] for seed in range(8)]
        curves.append(ml.meta_train(learner, tasks, steps=6, meta_batch=2, progress=False).losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)


@pytest.mark.parametrize("device", [cuda])
def test_training_on_a_gpu_is_training_on_a_cpu(device: str) -> None:
    images = glyphs("train")
    curves = []
    for where in ("cpu", device):
        torch.manual_seed(0)
        learner = ml.MAML(Conv4(5, hidden=8).double(), 0.1, steps=2).to(where)
        curves.append(
            ml.meta_train(
                learner, FewShot(images, 5, 1, 3, tasks=100), steps=8, meta_batch=4, progress=False
            )
        )
    assert curves[0].losses == pytest.approx(curves[1].losses, rel=1e-8)
    assert curves[0].accuracies == curves[1].accuracies


def test_another_number_of_classes_is_noticed(device: str, recordings: list[torch.device]) -> None:
    loop, recorded = (
        FAMILY["NIL softmax"](smooth_network(), execution=way) for way in ("loop", "graphs")
    )
    recorded = recorded.to(device)
    for ways in (3, 3, 3, 2, 3):
        episodes = made_up_tasks(ways=3)
        episodes.support.targets.clamp_(max=ways - 1)
        episodes.query.targets.clamp_(max=ways - 1)
        for ours, theirs in zip(
            found(recorded, episodes.to(device)), found(loop, episodes), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert len(recordings) == 2
    broken = made_up_tasks(ways=3)
    broken.support.targets.add_(1)
    learner = ml.MAML(smooth_network(), 0.1, execution="graphs").to(device)
    for _ in range(3):
        ml.meta_backward(learner, made_up_tasks().to(device))
    with pytest.raises(ValueError, match="has 3 outputs, but the support set has 4 classes"):
        ml.meta_backward(learner, broken.to(device))


@pytest.mark.parametrize("name", ["MAML", "ANIL", "NIL softmax", "NIL class_mean", "ProtoNet"])
def test_labels_are_checked_before_a_replay(name: str, device: str) -> None:
    learner = FAMILY[name](smooth_network(), execution="graphs").to(device)
    for _ in range(3):
        ml.meta_backward(learner, made_up_tasks().to(device))
    beyond = made_up_tasks()
    beyond.query.targets[1, 0] = 7
    with pytest.raises(ValueError, match="labels run from 0 to 7, but there are 3 ways"):
        ml.meta_backward(learner, beyond.to(device))
    absent = made_up_tasks()
    absent.support.targets[1].clamp_(min=1)
    if name in ("MAML", "ANIL"):
        with pytest.warns(UserWarning, match="no example of class 0, and labels count from 0"):
            ml.meta_backward(learner, absent.to(device))
    else:
        with pytest.raises(ValueError, match="support set of task 1 has no example of class 0"):
            ml.meta_backward(learner, absent.to(device))


def test_query_labels_are_not_read_for_predictions(device: str) -> None:
    learner = ml.MAML(smooth_network(), 0.4, execution="graphs").to(device)
    episodes = made_up_tasks().to(device)
    with torch.no_grad():
        expected = learner(episodes)
        episodes.query.targets.fill_(-1)
        for _ in range(3):
            assert torch.equal(learner(episodes), expected)


def test_another_setting_is_another_recording(device: str, recordings: list[torch.device]) -> None:
    learner, episodes = (
        ml.MAML(smooth_network(), 0.4, steps=1, execution="graphs").to(device),
        made_up_tasks().to(device),
    )
    loop = ml.MAML(smooth_network(), 0.4, steps=1, execution="loop").to(device)
    for steps in (1, 3):
        for _ in range(3):
            for ours, theirs in zip(
                found(learner.with_steps(steps), episodes),
                found(loop.with_steps(steps), episodes),
                strict=True,
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert len(recordings) == 4
    frozen = learner.frozen(["0"]), loop.frozen(["0"])
    for _ in range(3):
        torch.testing.assert_close(
            found(frozen[0], episodes)[0], found(frozen[1], episodes)[0], rtol=1e-10, atol=1e-12
        )
    assert len(recordings) == 6


def test_results_outlive_the_next_call(device: str) -> None:
    learner = ml.MAML(smooth_network(), 0.4, execution="graphs").to(device)
    one, two = (made_up_tasks(seed=seed).to(device) for seed in (0, 1))
    with torch.no_grad():
        for _ in range(2):
            learner(one)
        first = learner(one)
        before = first.clone()
        learner(two)
    assert torch.equal(first, before)


def test_what_is_chosen_and_why(device: str) -> None:
    assert choose_execution(ml.MAML(Conv4(5).to(device), 0.1)) == "graphs"
    assert in_flight(ml.MAML(MLP(1, 1).to(device), 0.1), 50) == ("graphs", execution.CHUNK)

    def mine(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, targets)

    own = ml.MAML(Conv4(5).to(device), 0.1, loss=mine)
    assert choose_execution(own) == "vectorized"
    assert without_graphs(own).startswith("the loss mine may have side effects")
    hooked = ml.ANIL(Conv4(5).to(device), 0.1)
    hooked.model.block2.register_forward_hook(lambda *_: None)
    assert choose_execution(hooked) == "loop"  # what a hook does under vmap is not known
    assert without_graphs(hooked) == "block2 has hooks, which a CUDA graph would not call"


def test_graphs_need_a_cuda_device() -> None:
    with pytest.raises(ValueError, match="this learner is not on a CUDA device"):
        ml.meta_backward(ml.MAML(MLP(1, 1), 0.1, execution="graphs"), made_up_tasks(shape=(1,)))


def test_differentiable_predictions_are_not_recorded(
    device: str, recordings: list[torch.device]
) -> None:
    learner, episodes = (
        ml.MAML(smooth_network(), 0.4, execution="graphs").to(device),
        made_up_tasks().to(device),
    )
    for _ in range(3):
        learner.zero_grad()
        outer_loss(learner, episodes).backward()
    assert not recordings
    expected = gradients(learner)
    learner.zero_grad()
    ml.meta_backward(learner, episodes)
    torch.testing.assert_close(gradients(learner), expected, rtol=1e-10, atol=1e-12)


def test_evaluation_is_as_in_a_loop(device: str) -> None:
    for name in ("MAML", "ANIL", "NIL sum", "ProtoNet"):
        loop, recorded = (
            FAMILY[name](smooth_network(), execution=way) for way in ("loop", "graphs")
        )
        tasks = [ml.episodes.unstack(made_up_tasks(seed=seed))[0] for seed in range(20)]
        expected, ours = (
            ml.evaluate(loop, tasks, tasks_at_once=4),
            ml.evaluate(recorded.to(device), tasks, tasks_at_once=4),
        )
        assert torch.equal(expected.per_episode, ours.per_episode)
        assert expected.fingerprints == ours.fingerprints


@pytest.mark.parametrize("device", [cuda])
def test_recordings_go_with_their_model(device: str) -> None:
    learner = ml.MAML(MLP(1, 1).to(device), 0.1, loss=nn.functional.mse_loss)
    tasks = ml.episodes.stack([Sinusoid(shots=5, queries=5, tasks=1)[0]]).to(device)
    before = len(recording._of_model)
    for _ in range(3):
        ml.meta_backward(learner, tasks)
    assert len(recording._of_model) == before + 1
    del learner
    gc.collect()
    assert len(recording._of_model) == before
