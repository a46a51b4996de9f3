"""Which layer is the head: what the run shows, on models without one, with another one, and with
adapters around it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

import metalearn as ml
from metalearn.episodes import unstack
from tests.helpers import gradients, made_up_tasks


def resnet(ways: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return ml.frozen_statistics(torchvision.models.resnet18(num_classes=ways)).double()


def trunk() -> nn.Module:
    model = resnet()
    model.fc = nn.Identity()
    return model


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(*layers).double()


class HeadFirst(nn.Module):
    """A model that registers its head before its body."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.body = nn.Linear(8, 3), nn.Linear(4, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(inputs)))


class Auxiliary(HeadFirst):
    """A model with a second head, which the output does not come from."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = torch.tanh(self.body(inputs))
        self.auxiliary(features)
        return self.head(features)


class Normalised(HeadFirst):
    """A model that normalises what its head puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(inputs), dim=1)


class LoRA(nn.Module):
    """A layer and its low-rank adapter."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + self.lora_B(self.lora_A(inputs))


def adapted_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), LoRA(nn.Linear(8, 3))).double()


def prototypes(model: Callable[[Tensor], Tensor], episodes: ml.Episode) -> Tensor:
    """The logits of prototypical networks, written out, on these features."""
    logits = []
    for task in unstack(episodes):
        support, queries = (model(part.inputs).flatten(1) for part in task)
        means = torch.stack([support[task.support.targets == way].mean(0) for way in range(3)])
        logits.append(-(queries[:, None] - means).square().sum(-1))
    return torch.stack(logits)


# sicara/easy-few-shot-learning#126 and #63: backbones without a head
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (trunk, (3, 32, 32)),
        (convolutions, (1, 8, 8)),
        (lambda: nn.Sequential(nn.Flatten()).double(), (4,)),
    ],
)
def test_a_model_without_a_head_has_its_output_for_features(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, episodes = build(), made_up_tasks(tasks=2, shots=1, queries=1, shape=shape)
    learner = ml.ProtoNet(model, execution="loop")
    with torch.no_grad():
        torch.testing.assert_close(
            learner(episodes), prototypes(model, episodes), rtol=1e-9, atol=1e-9
        )
    assert learner.settings()["head"] == ""


@pytest.mark.parametrize("way", ["loop", "threads", "vectorized"])
def test_a_model_without_a_head_is_trained_as_a_whole(way: str) -> None:
    model, episodes = convolutions(), made_up_tasks(shape=(1, 8, 8))
    learner = ml.ProtoNet(model, execution=way)
    ml.meta_backward(learner, episodes)
    loss = torch.stack(
        [
            nn.functional.cross_entropy(*pair)
            for pair in zip(prototypes(model, episodes), episodes.query.targets, strict=True)
        ]
    )
    expected = torch.autograd.grad(loss.mean(), list(model.parameters()))
    torch.testing.assert_close(
        gradients(learner), torch.cat([gradient.flatten() for gradient in expected])
    )
    trained = ml.ProtoNet(convolutions(), execution=way)
    before = [parameter.clone() for parameter in trained.model.parameters()]
    ml.meta_train(trained, unstack(episodes), steps=1, progress=False)
    assert all(
        not torch.equal(*pair) for pair in zip(before, trained.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("network", [HeadFirst, Auxiliary, Normalised])
def test_features_are_what_enters_the_layer_that_makes_the_output(network: type[nn.Module]) -> None:
    model, episodes = network().double(), made_up_tasks(shape=(4,))
    learner = ml.ProtoNet(model)
    features = model if network is Normalised else lambda inputs: torch.tanh(model.body(inputs))
    torch.testing.assert_close(
        learner(episodes), prototypes(features, episodes), rtol=1e-9, atol=1e-12
    )
    assert learner.head == ("" if network is Normalised else "head")


@pytest.mark.parametrize("algorithm", [ml.ANIL, ml.BOIL])
@pytest.mark.parametrize("network", [HeadFirst, Auxiliary])
def test_a_wrong_guess_is_refused_and_the_head_named(
    algorithm: type[ml.MAML], network: type[nn.Module]
) -> None:
    model, episodes = network().double(), made_up_tasks(shape=(4,))
    for run in (
        lambda learner: learner(episodes),
        lambda learner: ml.meta_backward(learner, episodes),
    ):
        with pytest.raises(ValueError, match="pass head='head'"):
            run(algorithm(model, 0.1))
    with pytest.raises(ValueError, match="pass head='head'"):
        algorithm(model, 0.1).adapt(unstack(episodes)[0].support)
    rates = {"head" if algorithm is ml.ANIL else "body": 0.1}
    assert algorithm(model, rates, head="head")(episodes).shape == (3, 9, 3)


@pytest.mark.parametrize("algorithm", [ml.ANIL, ml.BOIL])
def test_a_model_without_a_head_is_refused_where_one_is_needed(algorithm: type[ml.MAML]) -> None:
    with pytest.raises(ValueError, match=r"layer4\.1\.conv2.* with head=, or add a head"):
        algorithm(trunk(), 0.1, execution="loop")(
            made_up_tasks(tasks=1, shots=1, queries=1, shape=(3, 32, 32))
        )


@pytest.mark.parametrize("way", ["loop", "threads", "vectorized"])
def test_what_follows_the_head_without_parameters_is_run_at_every_step(way: str) -> None:
    model, episodes = Normalised().double(), made_up_tasks(shape=(4,))
    # The head is registered first, so that it has to be named.
    anil, maml = (
        ml.ANIL(model, 0.4, 2, head="head", execution=way),
        ml.MAML(model, {"head": 0.4}, 2, execution="loop"),
    )
    torch.testing.assert_close(anil(episodes), maml(episodes), rtol=1e-12, atol=1e-13)


class WritesAfterTheHead(HeadFirst):
    """A model that writes into its head's output, through autograd or past it."""

    def __init__(self, past_autograd: bool) -> None:
        super().__init__()
        self.past_autograd = past_autograd

    def forward(self, inputs: Tensor) -> Tensor:
        output = super().forward(inputs)
        if self.past_autograd:
            output.data.mul_(2)
            return output
        return output.mul_(2)


@pytest.mark.parametrize("gradients_on", [True, False])
@pytest.mark.parametrize(
    ("way", "past_autograd"),
    [
        ("loop", False),
        ("loop", True),
        ("vectorized", False),
        pytest.param("compiled", False, marks=pytest.mark.slow),
    ],
)
def test_a_write_into_the_output_of_the_head_is_seen(
    way: str, past_autograd: bool, gradients_on: bool
) -> None:
    model = WritesAfterTheHead(past_autograd).double()
    episodes = made_up_tasks(shape=(4,))
    anil = ml.ANIL(model, 0.4, 2, head="head", execution=way)
    maml = ml.MAML(model, {"head": 0.4}, 2, execution="loop")
    with torch.set_grad_enabled(gradients_on):
        for _ in range(3):
            torch.testing.assert_close(anil(episodes), maml(episodes), rtol=1e-12, atol=1e-13)


def test_an_adapter_around_the_head_is_one_head() -> None:
    model, episodes = adapted_network(), made_up_tasks(shape=(4,))
    assert ml.head(model) == "2"
    anil = ml.ANIL(model, 0.4, 2)
    assert sorted(anil.rates) == ["2.lora_A.weight", "2.lora_B.weight"]
    same = ml.MAML(model, {"*lora_*": 0.4}, 2, execution="loop")
    torch.testing.assert_close(anil(episodes), same(episodes), rtol=1e-12, atol=1e-13)
    learner = ml.ProtoNet(model)
    torch.testing.assert_close(
        learner(episodes), prototypes(model[:2], episodes), rtol=1e-9, atol=1e-12
    )


class BareLoRA(nn.Linear):
    """A layer that holds the factors of its adapter itself; one head, and the guess as it always
    was.
    """

    def __init__(self) -> None:
        super().__init__(8, 3)
        self.lora_A, self.lora_B = nn.Parameter(torch.zeros(2, 8)), nn.Parameter(torch.zeros(3, 2))


def test_other_adapters_and_what_is_none() -> None:
    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.down, self.up = nn.Parameter(torch.zeros(8, 2)), nn.Parameter(torch.zeros(2, 8))

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.output = nn.Linear(8, 6), nn.Linear(6, 3)

    body = nn.Linear(4, 8)
    assert ml.head(nn.Sequential(body, BareLoRA())) == "1"
    assert ml.head(nn.Sequential(body, Factors())) == "1"
    assert ml.head(nn.Sequential(body, Classifier())) == "1.output"
    block = nn.TransformerEncoderLayer(8, 2, 16)
    assert ml.head(nn.Sequential(body, block)) == "1.linear2"


def test_a_single_layer_has_no_body_to_give_features() -> None:
    torch.manual_seed(0)
    model, episodes = nn.Linear(4, 3).double(), made_up_tasks(shape=(4,))
    torch.testing.assert_close(ml.ProtoNet(model)(episodes), prototypes(model, episodes))
    torch.testing.assert_close(ml.ANIL(model, 0.4)(episodes), ml.MAML(model, 0.4)(episodes))


def test_the_check_draws_no_random_number_and_writes_no_state() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    before = torch.get_rng_state()
    ml.ANIL(model, 0.1).prepare(made_up_tasks(shape=(4,)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_head_is_named_by_its_path() -> None:
    with pytest.raises(TypeError, match=r"not by 3, a int"):
        ml.MAML(HeadFirst(), 0.1, head=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", [ml.MAML, ml.ANIL, ml.BOIL, ml.MetaSGD])
def test_a_task_that_is_not_stacked_is_named(algorithm: type[ml.MAML]) -> None:
    with pytest.raises(ValueError, match="one leading task dimension"):
        algorithm(convolutions(), 0.1)(unstack(made_up_tasks(shape=(1, 8, 8)))[0])
