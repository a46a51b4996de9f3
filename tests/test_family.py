"""What the learners are to each other, stated as identities."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import metalearn as ml
from metalearn.episodes import Episode, Examples, stack, unstack
from metalearn.models import MLP, Conv4
from tests.helpers import FAMILY, WAYS_TO_RUN, gradients, made_up_tasks, outer_loss, smooth_network

pytestmark = pytest.mark.usefixtures("two_threads")


def meta_gradient(learner: ml.Learner, episodes: Episode) -> torch.Tensor:
    learner.zero_grad()
    ml.meta_backward(learner, episodes)
    return gradients(learner)


def assert_same_learner(a: ml.Learner, b: ml.Learner, episodes: Episode) -> None:
    torch.testing.assert_close(a(episodes), b(episodes), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(
        meta_gradient(a, episodes), meta_gradient(b, episodes), rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("way", ["threads", "vectorized"])
@pytest.mark.parametrize("name", FAMILY)
def test_every_way_of_running_tasks_gives_the_numbers_of_the_loop(name: str, way: str) -> None:
    model, episodes = smooth_network(), made_up_tasks(tasks=5)
    assert_same_learner(
        FAMILY[name](model, execution=way), FAMILY[name](model, execution="loop"), episodes
    )


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_conv4_agrees_too_with_max_pooling_and_relu(way: str) -> None:
    torch.manual_seed(0)
    model, episodes = Conv4(ways=3, hidden=4, size=16).double(), made_up_tasks(shape=(1, 16, 16))
    assert_same_learner(
        ml.MAML(model, 0.4, steps=2, execution=way),
        ml.MAML(model, 0.4, steps=2, execution="loop"),
        episodes,
    )


def test_more_tasks_than_are_vectorized_at_once() -> None:
    model, episodes = MLP(2, 3, (4,)).double(), made_up_tasks(tasks=70, shape=(2,))
    assert_same_learner(
        ml.MAML(model, 0.1, execution="vectorized"), ml.MAML(model, 0.1, execution="loop"), episodes
    )


@pytest.mark.parametrize("first_order", [False, True])
def test_anil_is_maml_with_a_rate_for_the_head_alone(first_order: bool) -> None:
    model, episodes = smooth_network(), made_up_tasks()
    anil = ml.ANIL(model, lr=0.4, steps=3, first_order=first_order)
    assert_same_learner(
        anil, ml.MAML(model, lr={"6": 0.4}, steps=3, first_order=first_order), episodes
    )


def test_anil_runs_the_body_once_for_the_support_set() -> None:
    model, runs = smooth_network(), []
    model[0].register_forward_hook(lambda *_: runs.append(1))
    ml.ANIL(model, lr=0.1, steps=5).adapt(unstack(made_up_tasks())[0].support)
    assert len(runs) == 1


def test_anil_where_the_model_goes_on_after_its_head() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    assert ml.head(model) == "2"
    for way in WAYS_TO_RUN:
        assert_same_learner(
            ml.ANIL(model, 0.4, 2, execution=way),
            ml.MAML(model, {"2": 0.4}, 2, execution="loop"),
            made_up_tasks(),
        )


def test_boil_is_maml_with_a_rate_for_the_body_alone_and_leaves_the_head() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    assert_same_learner(ml.BOIL(model, 0.4), ml.MAML(model, {"": 0.4, "6": 0.0}), episodes)
    adapted = ml.BOIL(model, 0.4).adapt(unstack(episodes)[0].support).weights
    moved = {name for name, weight in model.named_parameters() if adapted[name] is not weight}
    assert moved == {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}


def test_meta_sgd_at_its_start_is_maml() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    meta_sgd, maml = ml.MetaSGD(model, 0.4, 2), ml.MAML(model, 0.4, 2)
    torch.testing.assert_close(meta_sgd(episodes), maml(episodes), rtol=1e-12, atol=1e-13)
    shared = meta_gradient(maml, episodes)
    torch.testing.assert_close(
        meta_gradient(meta_sgd, episodes)[: len(shared)], shared, rtol=1e-10, atol=1e-13
    )
    assert len(list(meta_sgd.parameters())) == 2 * len(list(maml.parameters()))


@pytest.mark.parametrize("algorithm", [ml.MAML, ml.ANIL, ml.BOIL, ml.MetaSGD])
def test_zero_steps_are_the_plain_model(algorithm: type[ml.MAML]) -> None:
    model, episodes = smooth_network(), made_up_tasks()
    expected = torch.stack([model(task.query.inputs) for task in unstack(episodes)])
    torch.testing.assert_close(
        algorithm(model, 0.4, steps=0)(episodes), expected, rtol=1e-12, atol=1e-13
    )


def test_a_step_by_hand() -> None:
    model, task = smooth_network(), unstack(made_up_tasks())[0]
    loss = nn.functional.cross_entropy(model(task.support.inputs), task.support.targets)
    expected = {
        n: p - 0.4 * g
        for (n, p), g in zip(
            model.named_parameters(),
            torch.autograd.grad(loss, list(model.parameters())),
            strict=True,
        )
    }
    adapted = ml.MAML(model, 0.4).adapt(task.support)
    for name, weight in expected.items():
        torch.testing.assert_close(adapted.weights[name], weight, rtol=1e-12, atol=1e-14)
    assert adapted.support is None


def test_reptile_sets_theta_minus_phi_and_refuses_autograd() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    for way in WAYS_TO_RUN:
        learner = ml.Reptile(model, 0.1, steps=4, execution=way)
        found = meta_gradient(learner, episodes)
        with torch.no_grad():
            phis = [
                ml.MAML(model, 0.1, steps=4).adapt(task.support).weights
                for task in unstack(episodes)
            ]
        expected = torch.cat(
            [
                torch.stack([p - phi[n] for phi in phis]).mean(0).flatten()
                for n, p in model.named_parameters()
            ]
        )
        torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-13)
        with pytest.raises(RuntimeError, match="no outer loss"):
            learner(episodes)
        with torch.no_grad():
            assert learner(episodes).shape == (3, 9, 3)


@pytest.mark.parametrize("rule", ["softmax", "sum", "class_mean"])
def test_nil_with_one_shot_takes_the_nearest_neighbour_by_cosine(rule: str) -> None:
    model, task = smooth_network(), unstack(made_up_tasks(shots=1))[0]
    nil = ml.NIL(model, rule)
    support, queries = (model[:6](part.inputs) for part in task)
    nearest = nn.functional.cosine_similarity(queries[:, None], support[None], dim=-1).argmax(1)
    assert torch.equal(
        nil.predict(nil.adapt(task.support), task.query.inputs).argmax(1),
        task.support.targets[nearest],
    )


def test_nil_softmax_gives_log_probabilities() -> None:
    logits = ml.NIL(smooth_network())(made_up_tasks())
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3, 9, dtype=torch.float64))


def test_nil_and_protonet_take_any_number_of_ways() -> None:
    model, episodes = smooth_network(ways=3), made_up_tasks(ways=7)
    for learner in (ml.NIL(model), ml.ProtoNet(model)):
        assert learner(episodes).shape == (3, 21, 7)


def test_protonet_by_hand() -> None:
    model, task = smooth_network(), unstack(made_up_tasks())[0]
    support, queries = (model[:6](part.inputs) for part in task)
    prototypes = torch.stack([support[task.support.targets == way].mean(0) for way in range(3)])
    learner = ml.ProtoNet(model)
    found = learner.predict(learner.adapt(task.support), task.query.inputs)
    torch.testing.assert_close(
        found, -(torch.cdist(queries, prototypes) ** 2), rtol=1e-9, atol=1e-9
    )


def test_frozen_leaves_layers_without_a_rate_on_the_same_parameters() -> None:
    model, task = smooth_network(), unstack(made_up_tasks())[0]
    learner = ml.MAML(model, 0.4)
    held = learner.frozen(["0", "1"])
    adapted = held.adapt(task.support).weights
    assert all(
        adapted[name] is dict(model.named_parameters())[name]
        for name in ("0.weight", "0.bias", "1.weight", "1.bias")
    )
    assert adapted["4.weight"] is not model[4].weight
    assert all(a is b for a, b in zip(held.parameters(), learner.parameters(), strict=True))
    assert "0.weight" in learner.rates
    torch.testing.assert_close(
        learner.frozen(ml.body(model))(stack([task])),
        ml.ANIL(model, 0.4)(stack([task])),
        rtol=1e-12,
        atol=1e-13,
    )


def test_the_same_call_twice_gives_the_same_bits() -> None:
    for way in WAYS_TO_RUN:
        learner = FAMILY["MAML"](smooth_network(), execution=way)
        assert torch.equal(
            meta_gradient(learner, made_up_tasks()).clone(), meta_gradient(learner, made_up_tasks())
        )


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("name", FAMILY)
def test_evaluation_works_without_gradients(name: str, way: str) -> None:
    learner, episodes = FAMILY[name](smooth_network(), execution=way), made_up_tasks()
    with torch.no_grad():
        logits = learner(episodes)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, learner(episodes).detach(), rtol=1e-12, atol=1e-13)


def test_tied_weights_stay_tied_and_adapt_as_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.second.weight = self.first.weight

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.second(torch.tanh(self.first(inputs)))))

    model, task = Tied().double(), unstack(made_up_tasks(shape=(4,)))[0]
    adapted = ml.MAML(model, {"second": 0.4}).adapt(task.support).weights
    assert adapted["first.weight"] is not model.first.weight
    assert "second.weight" not in adapted
    loss = nn.functional.cross_entropy(model(task.support.inputs), task.support.targets)
    expected = model.first.weight - 0.4 * torch.autograd.grad(loss, model.first.weight)[0]
    torch.testing.assert_close(adapted["first.weight"], expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="one tied parameter"):
        ml.MAML(model, {"first": 0.1, "second": 0.2})
    for way in WAYS_TO_RUN:
        assert_same_learner(
            ml.MAML(model, 0.4, execution=way),
            ml.MAML(model, 0.4, execution="loop"),
            made_up_tasks(shape=(4,)),
        )


def test_dropout_runs_in_the_loop_and_nowhere_else() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    episodes = made_up_tasks(shape=(4,))
    for way in ("threads", "vectorized"):
        learner = ml.MAML(model, 0.4, execution=way)
        with pytest.raises(ValueError, match=r"1 \(Dropout\) draws random numbers"):
            learner(episodes)
        learner.eval()
        assert learner(episodes).shape == (3, 9, 3)
        learner.train()
    torch.manual_seed(3)
    first = ml.MAML(model, 0.4)(episodes)
    torch.manual_seed(3)
    assert torch.equal(first, ml.MAML(model, 0.4)(episodes))


def test_a_parameter_that_the_user_froze_still_moves_in_the_inner_loop() -> None:
    model = smooth_network()
    model[6].requires_grad_(False)
    learner = ml.ANIL(model, 0.4)
    ml.meta_backward(learner, made_up_tasks())
    assert model[6].weight.grad is None
    assert model[0].weight.grad is not None
    assert (
        learner.adapt(unstack(made_up_tasks())[0].support).weights["6.weight"]
        is not model[6].weight
    )


def test_attention_has_second_order_gradients_and_its_fast_kernels_back_afterwards() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(32, 3)).double()
    before = torch.backends.cuda.flash_sdp_enabled()
    episodes = made_up_tasks(shape=(4, 8))
    assert_same_learner(
        ml.MAML(model, 0.1, 2, execution="threads"),
        ml.MAML(model, 0.1, 2, execution="loop"),
        episodes,
    )
    assert torch.backends.cuda.flash_sdp_enabled() == before
    with torch.no_grad():
        outer_loss(ml.MAML(model, 0.1), episodes)


def test_learners_can_be_copied_and_saved() -> None:
    for name, build in FAMILY.items():
        learner, episodes = build(smooth_network()), made_up_tasks()
        other = copy.deepcopy(learner)
        assert torch.equal(other(episodes), learner(episodes)), name
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
        other.load_state_dict(learner.state_dict())
        assert torch.equal(other(episodes), learner(episodes)), name


def test_regression_and_other_losses() -> None:
    inputs = torch.linspace(-1, 1, 10, dtype=torch.float64).view(1, 10, 1).repeat(2, 1, 1)
    episodes = Episode(Examples(inputs, inputs.sin()), Examples(inputs, inputs.sin()))
    model = MLP(1, 1, (4,)).double()
    for way in WAYS_TO_RUN:
        learner = ml.MAML(model, 0.1, loss=nn.functional.mse_loss, execution=way)
        assert learner(episodes).shape == (2, 10, 1)
        assert ml.meta_backward(learner, episodes).losses.shape == (2,)


def test_bad_input_is_named_with_its_cure() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    with pytest.raises(ValueError, match="has no layer 'haed'; did you mean head"):
        ml.MAML(MLP(2, 2), {"haed": 0.1})
    with pytest.raises(
        ValueError,
        match=(
            r"1 \(BatchNorm2d\) keeps running"
            r" statistics.*batch_statistics\(model\).*frozen_statistics"
        ),
    ):
        ml.MAML(
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)), 0.1
        )
    with pytest.raises(
        ValueError, match="head '6' has 3 outputs, but the support set has 5 classes"
    ):
        ml.MAML(model, 0.1)(made_up_tasks(ways=5))
    with pytest.warns(
        UserWarning, match="head '6' has 3 outputs, but the support set has 2 classes"
    ):
        ml.MAML(model, 0.1)(made_up_tasks(ways=2))
    with pytest.raises(
        ValueError, match="ANIL adapts its head '6' alone, but lr gives a rate to '0'"
    ):
        ml.ANIL(model, {"0": 0.1})
    with pytest.raises(ValueError, match=r"BOIL leaves its head '6' .*'6\.bias'"):
        ml.BOIL(model, {"6.bias": 0.1})
    with pytest.raises(ValueError, match=r"inner rate of 0\.weight is nan"):
        ml.MAML(model, float("nan"))
    with pytest.raises(ValueError, match="no execution 'vmap'; choose one of auto, loop"):
        ml.MAML(model, 0.1, execution="vmap")
    with pytest.raises(ValueError, match="NIL has no rule 'mean'"):
        ml.NIL(model, "mean")
    with pytest.raises(ValueError, match="one leading task dimension"):
        ml.MAML(model, 0.1)(unstack(episodes)[0])
    with pytest.raises(ValueError, match="no Linear or Conv2d that could be its head"):
        ml.MAML(nn.Sequential(nn.PReLU()), 0.1)
    with pytest.raises(ValueError, match="must be integers"):
        ml.ProtoNet(model)(
            Episode(
                Examples(episodes.support.inputs, episodes.support.targets.double()), episodes.query
            )
        )


class TimesThree(nn.Module):
    """A model that writes into what its head put out."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = self.head(torch.tanh(self.body(inputs)))
        logits *= 3
        return logits


class HeadTwice(TimesThree):
    """A model that runs its head twice."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = torch.tanh(self.body(inputs))
        return self.head(features + self.head(features).sum(1, keepdim=True))


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("network", [TimesThree, HeadTwice])
def test_anil_is_maml_of_the_head_whatever_the_model_does_with_it(
    network: type[nn.Module], way: str
) -> None:
    torch.manual_seed(0)
    model, episodes = network().double(), made_up_tasks(shape=(4,))
    assert_same_learner(
        ml.ANIL(model, 0.4, 2, execution=way),
        ml.MAML(model, {"head": 0.4}, 2, execution="loop"),
        episodes,
    )


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_an_update_sees_one_task_at_a_time(way: str) -> None:
    def clipped(weights, gradients, rates, state):  # type: ignore[no-untyped-def]
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        count = torch.ones_like(norm) if state is None else state + 1
        return {n: w - rates[n] * gradients[n] / (norm * count) for n, w in weights.items()}, count

    model, episodes = smooth_network(), made_up_tasks()
    assert_same_learner(
        ml.MAML(model, 0.1, 2, update=clipped, execution=way),
        ml.MAML(model, 0.1, 2, update=clipped, execution="loop"),
        episodes,
    )


def test_frozen_copies_share_nothing_but_the_parameters() -> None:
    learner = ml.MetaSGD(smooth_network(), 0.4)
    held = learner.frozen(["0"])
    held.model = smooth_network(ways=5)
    assert learner.model[6].out_features == 3
    held = learner.frozen(["0"])
    ml.meta_backward(held, made_up_tasks())
    assert held.learned_rates["0/weight"].grad is None
    assert held.learned_rates["4/weight"].grad is not None


def test_learned_rates_are_those_that_were_loaded() -> None:
    learner, episodes = ml.MetaSGD(smooth_network(), 0.4), made_up_tasks()
    zero = {
        name: torch.zeros_like(t) if name.startswith("learned_rates") else t
        for name, t in learner.state_dict().items()
    }
    expected = ml.MAML(learner.model, 0.4, steps=0)(episodes)
    learner.load_state_dict(zero, assign=True)
    torch.testing.assert_close(learner(episodes), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("way", ["loop", "threads"])
def test_a_model_that_writes_into_its_buffers_is_refused(way: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 3)
    ).double()
    learner, episodes = ml.MAML(model, 0.1, execution=way), made_up_tasks(shape=(4,))
    with pytest.raises(
        ValueError, match=r"writes into its buffer 0\.parametrizations.*model\.eval\(\)"
    ):
        learner(episodes)
    assert learner.eval()(episodes).shape == (3, 9, 3)


def test_more_bad_input_is_named_with_its_cure() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    with pytest.raises(ValueError, match="one that returns the mean"):
        ml.MAML(model, 0.1, loss=nn.CrossEntropyLoss(reduction="none"))(episodes)
    with pytest.raises(TypeError, match=r"rate of 0\.weight is '0\.1', a str"):
        ml.MAML(model, "0.1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values that are not finite"):
        ml.MAML(model, {"0": torch.tensor(float("nan"))})
    with pytest.raises(TypeError, match=r"write frozen\(\['0'\]\)"):
        ml.MAML(model, 0.1).frozen("0")
    with pytest.raises(ValueError, match="class labels must be integers"):
        ml.MAML(model, 0.1)(
            Episode(
                Examples(episodes.support.inputs, episodes.support.targets.double()), episodes.query
            )
        )
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"evaluate under torch\.no_grad"),
    ):
        ml.MAML(model, 0.1)(episodes)
    with pytest.raises(ValueError, match="no parameter to train"):
        ml.meta_backward(ml.MAML(smooth_network().requires_grad_(False), 0.1), episodes)
    with pytest.raises(TypeError, match="first_order"):
        ml.Reptile(model, 0.1, first_order=False)  # type: ignore[call-arg]
