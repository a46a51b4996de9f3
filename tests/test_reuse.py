"""The comparison of layers, the verdict's rule, and `feature_reuse` on learners whose answer is known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from metalearn import ANIL, BOIL, MAML, NIL, Episode, Examples, ProtoNet
from metalearn.analysis import Estimate, compare_layers, feature_reuse, freezing, linear_cka, verdict
from metalearn.episodes import stack
from metalearn.evaluation import evaluate
from metalearn.models import Conv4

SAME, FREE = Estimate(0.99, 0.005), Estimate(0.001, 0.004)


def net(ways: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return Conv4(ways, channels=1, hidden=6, size=16)


def tasks(count: int = 6, ways: int = 3, queries: int = 4) -> Episode:
    generator = torch.Generator().manual_seed(0)

    def part(prototypes: torch.Tensor, each: int) -> Examples:
        images = prototypes.repeat_interleave(each, 0)
        return Examples(images + 0.3 * torch.randn(images.shape, generator=generator), torch.arange(ways).repeat_interleave(each))

    prototypes = [torch.rand(ways, 1, 16, 16, generator=generator) for _ in range(count)]
    return stack(Episode(part(p, 2), part(p, queries)) for p in prototypes)


@pytest.fixture(scope="module")
def maml():
    return feature_reuse(MAML(net(), lr=0.3), tasks())


def test_the_verdict_is_feature_reuse_where_every_criterion_holds():
    found = verdict({"a": SAME, "b": Estimate(0.93, 0.02)}, FREE, Estimate(-0.05, 0.06))
    assert found.answer == "feature reuse"
    assert {criterion.status for criterion in found.criteria} == {"holds"}
    for number in (
        "CKA of a 0.990 ± 0.005",
        "CKA of b 0.930 ± 0.020",
        "freezing the body costs 0.10 ± 0.40",
        "removing the head costs -5.00 ± 6.00",
    ):
        assert number in found.evidence


@pytest.mark.parametrize(
    ("body", "frozen", "headless"),
    [
        ({"a": SAME, "b": Estimate(0.8, 0.05)}, FREE, FREE),
        ({"a": SAME}, Estimate(0.05, 0.02), FREE),
        ({"a": SAME}, FREE, Estimate(0.03, 0.005)),
        ({"a": Estimate(0.9, 0.05)}, FREE, Estimate(0.03, 0.005)),
    ],
)
def test_the_verdict_is_rapid_learning_where_one_fails_beyond_its_interval(body, frozen, headless):
    assert verdict(body, frozen, headless).answer == "rapid learning"


@pytest.mark.parametrize(
    ("body", "frozen", "headless"),
    [
        ({"a": SAME, "b": Estimate(0.89, 0.02)}, FREE, FREE),
        ({"a": Estimate(0.91, 0.02)}, FREE, FREE),
        ({"a": SAME}, Estimate(0.019, 0.004), FREE),
        ({"a": SAME}, FREE, Estimate(0.03, 0.02)),
        ({"a": Estimate(0.99, math.nan)}, FREE, FREE),
        ({"a": Estimate(math.nan, math.nan)}, FREE, FREE),
    ],
)
def test_the_verdict_is_undecided_where_an_interval_straddles_its_bound_or_is_missing(body, frozen, headless):
    assert verdict(body, frozen, headless).answer == "undecided"


def test_layers_of_one_network_under_two_sets_of_weights():
    model, inputs = net(), tasks().query.inputs[0]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    moved = {**weights, "block3.conv.weight": weights["block3.conv.weight"] + torch.randn(6, 6, 3, 3)}
    profile = compare_layers(model, (model, moved), inputs)
    assert [row.layer for row in profile.layers] == ["block1", "block2", "block3", "block4", "head"]
    assert profile["block1"].similarity == profile["block2"].similarity == 1.0
    assert profile["block3"].similarity < 0.95
    assert profile["block1"].floor.upper < 0.6
    assert "every image" not in str(profile) and "an example a row" in str(profile)
    assert json.dumps(profile.to_dict(), allow_nan=False)


def test_compare_layers_is_the_measure_of_the_layers_outputs():
    a, b, inputs = net(), Conv4(3, 1, 6, 16), tasks().query.inputs[0]
    with torch.no_grad():
        x, y = a.block1(inputs).flatten(1), b.block1(inputs).flatten(1)
    assert compare_layers(a, b, inputs, ["block1"])["block1"].similarity == pytest.approx(linear_cka(x, y))
    assert compare_layers(a, b, inputs, [("block1", "block2")])["block1 / block2"].features == (6 * 64, 6 * 16)


def test_conventions_give_the_shapes_that_the_table_prints():
    outputs = {"a": torch.randn(10, 3, 4, 4)}
    other = {"a": torch.randn(10, 3, 4, 4)}
    sizes = {c: compare_layers(outputs, other, convention=c)["a"] for c in ("flatten", "positions", "pool")}
    assert [(r.examples, r.features[0]) for r in sizes.values()] == [(10, 48), (160, 3), (10, 3)]
    assert compare_layers(outputs, other, measure="cca", rows=50)["a"].examples == 50
    assert compare_layers({"a": torch.randn(10, 7, 5)}, {"a": torch.randn(10, 7, 5)}, measure="cca")["a"].examples == 70


def test_a_layer_that_a_measure_cannot_judge_is_nan_with_the_reason():
    outputs = {"few": torch.randn(10, 30), "dead": torch.zeros(10, 4), "fine": torch.randn(10, 2)}
    profile = compare_layers(outputs, {name: x + 1 for name, x in outputs.items()}, measure="cca")
    assert math.isnan(profile["few"].similarity) and "n=10 examples and d=30" in profile["few"].note
    assert math.isnan(profile["dead"].similarity) and "no variance" in profile["dead"].note
    assert profile["fine"].similarity == pytest.approx(1)
    assert profile.to_dict()["layers"][0]["similarity"] is None


def test_bad_comparisons_name_the_layer_and_the_cure():
    x = torch.randn(10, 3, 4, 4)
    with pytest.raises(ValueError, match="layer a: y holds 480 values"):
        compare_layers({"a": x}, {"a": x / 0})
    with pytest.raises(ValueError, match=r"layer a: .*positions.*convention='pool'"):
        compare_layers({"a": x}, {"a": x[:, :, :2]}, convention="positions")
    with pytest.raises(ValueError, match="share no layer name"):
        compare_layers({"a": x}, {"b": x})
    with pytest.raises(ValueError, match="no convention 'flat'"):
        compare_layers({"a": x}, {"a": x}, convention="flat")
    with pytest.raises(ValueError, match="need inputs"):
        compare_layers(net(), net())
    with pytest.raises(ValueError, match="block9"):
        compare_layers(net(), net(), torch.rand(5, 1, 16, 16), ["block9"])
    with pytest.raises(KeyError, match="no layer 'b'"):
        compare_layers({"a": x}, {"a": x})["b"]


def test_comparing_leaves_modes_statistics_and_hooks_as_they_were():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compare_layers(model, (model, dict(model.named_parameters())), torch.rand(8, 1, 16, 16))
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_freezing_agrees_with_evaluating_frozen_learners_in_pairs():
    learner, episodes = MAML(net(), lr=0.3), tasks()
    table = freezing(learner, episodes)
    free, held = evaluate(learner, episodes), evaluate(learner.frozen(["block1", "block2"]), episodes)
    row = table.rows[2]
    assert row.layers == ("block1", "block2")
    assert row.accuracy == Estimate(held.mean, held.interval)
    assert row.cost == Estimate.of(free.per_episode - held.per_episode)
    assert len(table.rows) == 5 and table.rows[0].cost.mean == 0
    assert "up to block2" in str(table)


def test_maml_is_measured_layer_by_layer(maml):
    assert [layer.layer for layer in maml.layers] == ["block1", "block2", "block3", "block4", "head"]
    assert [layer.head for layer in maml.layers] == [False] * 4 + [True]
    for layer in maml.layers:
        assert not layer.unmoved and layer.cka.mean < 1 and layer.cka.interval > 0
        assert abs(layer.cka_floor.median) < 0.3 and layer.cka_size[0] == 12
    assert maml.layers[0].cca_size == (6 * 12 * 64, 6)
    assert maml.layers[0].cca > maml.layers[0].cca_floor.upper


def test_accuracies_agree_with_evaluate_and_the_untrained_head_is_not_adapted_before(maml):
    learner, episodes = MAML(net(), lr=0.3), tasks()
    assert maml.accuracies.own.mean == pytest.approx(evaluate(learner, episodes).mean)
    assert maml.accuracies.head_after == maml.accuracies.own
    with torch.no_grad():
        plain = torch.stack([learner.model(x).argmax(-1) for x in episodes.query.inputs]) == episodes.query.targets
    assert maml.accuracies.head_before.mean == pytest.approx(float(plain.double().mean()))
    cost = maml.accuracies.head_after.mean - maml.accuracies.headless_after.mean
    assert maml.accuracies.head_cost.mean == pytest.approx(cost)


def test_the_same_seed_gives_the_same_report_and_another_only_other_draws(maml):
    again, other = (feature_reuse(MAML(net(), lr=0.3), tasks(), seed=seed) for seed in (0, 1))
    assert again.to_dict() == maml.to_dict()
    assert [layer.cka for layer in other.layers] == [layer.cka for layer in maml.layers]
    assert other.layers[0].cka_floor != maml.layers[0].cka_floor


def test_anil_keeps_its_body_by_construction():
    reuse = feature_reuse(ANIL(net(), lr=0.5), tasks())
    assert [layer.unmoved for layer in reuse.layers] == [True] * 4 + [False]
    assert all(layer.cka == (1.0, 0.0) and layer.cca == 1.0 for layer in reuse.layers[:4])
    assert reuse.freezing.rows[-1].cost == (0, 0)
    assert "by construction" in reuse.verdict.evidence and "by construction" in reuse.notes[0]


def test_boil_moves_its_features_and_needs_to():
    reuse = feature_reuse(BOIL(net(), lr=2.0), tasks())
    frozen = reuse.freezing.rows[-1].accuracy
    assert frozen.mean == pytest.approx(reuse.accuracies.head_before.mean)
    assert not any(layer.unmoved for layer in reuse.layers)


@pytest.mark.parametrize("learner", [NIL, ProtoNet])
def test_a_learner_without_an_inner_loop_has_nothing_to_compare(learner):
    reuse = feature_reuse(learner(net(ways=8)), tasks())
    assert reuse.verdict.answer == "does not adapt" and "by construction" in reuse.verdict.evidence
    assert all(layer.cka == (1.0, 0.0) for layer in reuse.layers)
    assert reuse.freezing is None and math.isnan(reuse.accuracies.head_after.mean)
    assert reuse.accuracies.own.mean == pytest.approx(evaluate(learner(net(ways=8)), tasks()).mean)
    assert json.loads(json.dumps(reuse.to_dict(), allow_nan=False))["accuracies"]["head_after"] == {"mean": None, "interval": None}


def test_one_task_is_undecided_and_says_that_it_has_no_interval():
    reuse = feature_reuse(MAML(net(), lr=0.001), tasks(1))
    assert reuse.verdict.answer == "undecided"
    assert "One task gives no interval" in reuse.notes[0]


def test_a_learner_at_chance_is_pointed_out():
    episodes = tasks()
    shuffled = Examples(episodes.query.inputs, episodes.query.targets.roll(1, 1).flip(1).roll(2, 1))
    reuse = feature_reuse(ANIL(net(), lr=0.0), Episode(episodes.support, shuffled))
    assert any("cannot be told from chance" in note for note in reuse.notes)


def test_too_few_images_for_cca_are_nan_with_the_reason_and_the_rest_stands():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 40), nn.Tanh(), nn.Linear(40, 3))
    reuse = feature_reuse(MAML(model, lr=0.1), tasks(2))
    assert math.isnan(reuse.layers[0].cca) and not math.isnan(reuse.layers[0].cka.mean)
    assert any("n=24 examples and d=40" in note for note in reuse.notes)
    assert reuse.to_dict()["layers"][0]["cca"] is None


def test_what_feature_reuse_cannot_take_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="no tasks"):
        feature_reuse(MAML(net(), lr=0.1), [])
    with pytest.raises(TypeError, match="FewShot or one stack"):
        feature_reuse(MAML(net(), lr=0.1), iter([]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    one = tasks(1)
    real = Episode(*(Examples(part.inputs, part.targets[..., None].float()) for part in one))
    with pytest.raises(ValueError, match=r"class labels.*compare_layers"):
        feature_reuse(MAML(model, lr=0.1, loss=nn.functional.mse_loss), real)


def test_the_learner_is_left_as_it_was():
    learner = MAML(net(), lr=0.3).train()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    feature_reuse(learner, tasks(2))
    assert learner.training and all(parameter.grad is None for parameter in learner.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state_dict().items())


def test_layers_may_be_named_where_the_default_ones_cannot_be_compared() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.norm, self.head = nn.LSTM(4, 8, batch_first=True), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.lstm(inputs.flatten(2).squeeze(1).unflatten(1, (-1, 4)))[0][:, -1]))

    torch.manual_seed(0)
    inputs = torch.rand(4, 20, 1, 8)
    targets = torch.arange(2).repeat_interleave(10).repeat(4, 1)
    tasks = Episode(Examples(inputs, targets), Examples(inputs, targets))
    learner = MAML(Recurrent(), lr=0.3, execution="loop")
    with pytest.raises(ValueError, match="'lstm' puts out a tuple"):
        feature_reuse(learner, tasks)
    assert [layer.layer for layer in feature_reuse(learner, tasks, layers=["norm", "head"]).layers] == ["norm", "head"]
