"""The comparison of layers, the verdict's rule, and `feature_reuse` on learners whose answer is
known.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise, permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from metalearn import ANIL, BOIL, MAML, NIL, Episode, Examples, ProtoNet
from metalearn.analysis import Estimate, compare_layers, feature_reuse, freezing, linear_cka
from metalearn.analysis.adaptation.feature_reuse import Reuse
from metalearn.analysis.adaptation.observe import class_cosines
from metalearn.analysis.adaptation.over_seeds import differences, over_seeds
from metalearn.episodes import unstack
from metalearn.evaluation import evaluate, paired
from metalearn.models import Conv4
from tests.helpers import prototype_tasks, small_conv4


@pytest.fixture(scope="module")
def maml():
    return feature_reuse(MAML(small_conv4(), lr=0.3), prototype_tasks())


def test_layers_of_one_network_under_two_sets_of_weights():
    model, inputs = small_conv4(), prototype_tasks().query.inputs[0]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    moved = {
        **weights,
        "block3.conv.weight": weights["block3.conv.weight"] + torch.randn(6, 6, 3, 3),
    }
    profile = compare_layers(model, (model, moved), inputs)
    assert [row.layer for row in profile.layers] == ["block1", "block2", "block3", "block4", "head"]
    assert profile["block1"].similarity == profile["block2"].similarity == 1.0
    assert profile["block3"].similarity < 0.95
    assert profile["block1"].floor.upper < 0.6
    assert "every image" not in str(profile) and "an example a row" in str(profile)
    assert json.dumps(profile.to_dict(), allow_nan=False)


def test_compare_layers_is_the_measure_of_the_layers_outputs():
    a, b, inputs = small_conv4(), Conv4(3, 1, 6, 16), prototype_tasks().query.inputs[0]
    with torch.no_grad():
        x, y = a.block1(inputs).flatten(1), b.block1(inputs).flatten(1)
    assert compare_layers(a, b, inputs, ["block1"])["block1"].similarity == pytest.approx(
        linear_cka(x, y)
    )
    assert compare_layers(a, b, inputs, [("block1", "block2")])["block1 / block2"].features == (
        6 * 64,
        6 * 16,
    )


def test_conventions_give_the_shapes_that_the_table_prints():
    outputs = {"a": torch.randn(10, 3, 4, 4)}
    other = {"a": torch.randn(10, 3, 4, 4)}
    sizes = {
        c: compare_layers(outputs, other, convention=c)["a"]
        for c in ("flatten", "positions", "pool")
    }
    assert [(r.examples, r.features[0]) for r in sizes.values()] == [(10, 48), (160, 3), (10, 3)]
    assert compare_layers(outputs, other, measure="cca", rows=50)["a"].examples == 50
    assert (
        compare_layers({"a": torch.randn(10, 7, 5)}, {"a": torch.randn(10, 7, 5)}, measure="cca")[
            "a"
        ].examples
        == 70
    )


def test_a_layer_that_a_measure_cannot_judge_is_nan_with_the_reason():
    outputs = {"few": torch.randn(10, 30), "dead": torch.zeros(10, 4), "fine": torch.randn(10, 2)}
    profile = compare_layers(outputs, {name: x + 1 for name, x in outputs.items()}, measure="cca")
    assert math.isnan(profile["few"].similarity) and "n=10 examples and d=30" in profile["few"].note
    assert math.isnan(profile["dead"].similarity) and "no variance" in profile["dead"].note
    assert profile["fine"].similarity == pytest.approx(1)
    assert profile.to_dict()["layers"][0]["similarity"] is None


def test_bad_comparisons_name_the_layer_and_the_cure():
    x = torch.randn(10, 3, 4, 4)
    with pytest.raises(ValueError, match="after: layer 'a' outputs 480 values"):
        compare_layers({"a": x}, {"a": x / 0})
    with pytest.raises(ValueError, match=r"layer a: .*positions.*convention='pool'"):
        compare_layers({"a": x}, {"a": x[:, :, :2]}, convention="positions")
    with pytest.raises(ValueError, match="share no layer name"):
        compare_layers({"a": x}, {"b": x})
    with pytest.raises(ValueError, match="no convention 'flat'"):
        compare_layers({"a": x}, {"a": x}, convention="flat")
    with pytest.raises(ValueError, match="need inputs"):
        compare_layers(small_conv4(), small_conv4())
    with pytest.raises(ValueError, match="block9"):
        compare_layers(small_conv4(), small_conv4(), torch.rand(5, 1, 16, 16), ["block9"])
    with pytest.raises(KeyError, match="no layer 'b'"):
        compare_layers({"a": x}, {"a": x})["b"]


def test_comparing_leaves_modes_statistics_and_hooks_as_they_were():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)
    ).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compare_layers(model, (model, dict(model.named_parameters())), torch.rand(8, 1, 16, 16))
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_freezing_agrees_with_evaluating_frozen_learners_in_pairs():
    learner, episodes = MAML(small_conv4(), lr=0.3), prototype_tasks()
    table = freezing(learner, episodes)
    free, held = (
        evaluate(learner, episodes),
        evaluate(learner.frozen(["block1", "block2"]), episodes),
    )
    row = table.rows[2]
    assert row.layers == ("block1", "block2")
    assert row.accuracy == Estimate(held.mean, held.interval)
    assert row.cost == Estimate.of(free.per_episode - held.per_episode)
    assert len(table.rows) == 5 and table.rows[0].cost.mean == 0
    assert "up to block2" in str(table)


def test_maml_is_measured_layer_by_layer(maml):
    assert [layer.layer for layer in maml.layers] == [
        "block1",
        "block2",
        "block3",
        "block4",
        "head",
    ]
    assert [layer.head for layer in maml.layers] == [False] * 4 + [True]
    for layer in maml.layers:
        assert not layer.unmoved and layer.cka.mean < 1 and layer.cka.interval > 0
        assert abs(layer.cka_floor.median) < 0.3 and layer.cka_size[0] == 12
    assert maml.layers[0].cca_size == (12 * 64, 6) and maml.layers[0].cca_pooled_size == (
        6 * 12 * 64,
        6,
    )
    assert maml.layers[0].cca.low > maml.layers[0].cca_floor.upper
    assert maml.layers[0].cca_pooled > maml.layers[0].cca_pooled_floor.upper


def test_accuracies_agree_with_evaluate_and_the_untrained_head_is_not_adapted_before(maml):
    learner, episodes = MAML(small_conv4(), lr=0.3), prototype_tasks()
    assert maml.accuracies.own.mean == pytest.approx(evaluate(learner, episodes).mean)
    assert maml.accuracies.head_after == maml.accuracies.own
    with torch.no_grad():
        plain = (
            torch.stack([learner.model(x).argmax(-1) for x in episodes.query.inputs])
            == episodes.query.targets
        )
    assert maml.accuracies.head_before.mean == pytest.approx(float(plain.double().mean()))
    cost = maml.accuracies.head_after.mean - maml.accuracies.headless_after.mean
    assert maml.accuracies.head_cost.mean == pytest.approx(cost)


def test_the_same_seed_gives_the_same_report_and_another_only_other_draws(maml):
    again, other = (
        feature_reuse(MAML(small_conv4(), lr=0.3), prototype_tasks(), seed=seed) for seed in (0, 1)
    )
    assert again.to_dict() == maml.to_dict()
    assert [layer.cka for layer in other.layers] == [layer.cka for layer in maml.layers]
    assert other.layers[0].cka_floor != maml.layers[0].cka_floor


def test_anil_keeps_its_body_by_construction():
    reuse = feature_reuse(ANIL(small_conv4(), lr=0.5), prototype_tasks())
    assert [layer.unmoved for layer in reuse.layers] == [True] * 4 + [False]
    assert all(
        layer.cka == layer.cca == (1.0, 0.0) and layer.cca_pooled == 1.0
        for layer in reuse.layers[:4]
    )
    assert reuse.freezing.rows[-1].cost == (0, 0)
    assert reuse.verdict.answer in ("feature reuse by construction", "no verdict")
    assert "by construction" in reuse.notes[0]


def test_boil_moves_its_features_and_needs_to():
    reuse = feature_reuse(BOIL(small_conv4(), lr=2.0), prototype_tasks())
    frozen = reuse.freezing.rows[-1].accuracy
    assert frozen.mean == pytest.approx(reuse.accuracies.head_before.mean)
    assert not any(layer.unmoved for layer in reuse.layers)


@pytest.mark.parametrize("learner", [NIL, ProtoNet])
def test_a_learner_without_an_inner_loop_has_nothing_to_compare(learner):
    reuse = feature_reuse(learner(small_conv4(ways=8)), prototype_tasks())
    assert reuse.verdict.answer == "does not adapt" and "by construction" in reuse.verdict.evidence
    assert all(layer.cka == (1.0, 0.0) for layer in reuse.layers)
    assert reuse.freezing is None and math.isnan(reuse.accuracies.head_after.mean)
    assert reuse.accuracies.own.mean == pytest.approx(
        evaluate(learner(small_conv4(ways=8)), prototype_tasks()).mean
    )
    assert json.loads(json.dumps(reuse.to_dict(), allow_nan=False))["accuracies"]["head_after"] == {
        "mean": None,
        "interval": None,
    }


def test_one_task_is_undecided_and_says_that_it_has_no_interval():
    reuse = feature_reuse(MAML(small_conv4(), lr=0.001), prototype_tasks(1))
    assert reuse.verdict.answer == "no verdict"
    assert "One task gives no interval" in reuse.notes[0]


def test_a_learner_at_chance_is_pointed_out():
    episodes = prototype_tasks()
    shuffled = Examples(episodes.query.inputs, episodes.query.targets.roll(1, 1).flip(1).roll(2, 1))
    reuse = feature_reuse(ANIL(small_conv4(), lr=1e-6), Episode(episodes.support, shuffled))
    assert "cannot be told from chance" in reuse.verdict.evidence


def test_too_few_images_for_cca_are_nan_with_the_reason_and_the_rest_stands():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 40), nn.Tanh(), nn.Linear(40, 3))
    reuse = feature_reuse(MAML(model, lr=0.1), prototype_tasks(2))
    assert math.isnan(reuse.layers[0].cca.mean) and not math.isnan(reuse.layers[0].cka.mean)
    assert any(
        "n=12 examples and d=40" in note and "n=24 examples and d=40" in note
        for note in reuse.notes
    )
    assert (
        reuse.to_dict()["layers"][0]["cca"] == {"mean": None, "interval": None}
        and reuse.to_dict()["layers"][0]["cca_pooled"] is None
    )


def test_what_feature_reuse_cannot_take_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="no tasks"):
        feature_reuse(MAML(small_conv4(), lr=0.1), [])
    with pytest.raises(TypeError, match="FewShot or one stack"):
        feature_reuse(MAML(small_conv4(), lr=0.1), iter([]))


def test_the_learner_is_left_as_it_was():
    learner = MAML(small_conv4(), lr=0.3).train()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    feature_reuse(learner, prototype_tasks(2))
    assert learner.training and all(parameter.grad is None for parameter in learner.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state_dict().items())


def test_layers_may_be_named_where_the_default_ones_cannot_be_compared() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.norm, self.head = (
                nn.LSTM(4, 8, batch_first=True),
                nn.LayerNorm(8),
                nn.Linear(8, 2),
            )

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(
                self.norm(self.lstm(inputs.flatten(2).squeeze(1).unflatten(1, (-1, 4)))[0][:, -1])
            )

    torch.manual_seed(0)
    inputs = torch.rand(4, 20, 1, 8)
    targets = torch.arange(2).repeat_interleave(10).repeat(4, 1)
    tasks = Episode(Examples(inputs, targets), Examples(inputs, targets))
    learner = MAML(Recurrent(), lr=0.3, execution="loop")
    with pytest.raises(ValueError, match="'lstm' returned a tuple"):
        feature_reuse(learner, tasks)
    assert [
        layer.layer for layer in feature_reuse(learner, tasks, layers=["norm", "head"]).layers
    ] == ["norm", "head"]


# What the inner loop does to weights, gradients and classes


def double(learner: type[MAML], **options: Any) -> MAML:
    return learner(small_conv4().double(), **options)


def test_one_sgd_step_moves_each_layer_by_its_rate_times_its_first_gradient():
    reuse = feature_reuse(
        double(MAML, lr={"": 0.3, "head": 0.7, "block2": 0.0}), prototype_tasks(3)
    )
    for layer, rate in zip(reuse.layers, (0.3, 0.0, 0.3, 0.3, 0.7), strict=True):
        assert layer.distance.mean == pytest.approx(rate * layer.gradient.mean, rel=1e-12)
        assert layer.distance.interval == pytest.approx(rate * layer.gradient.interval, rel=1e-9)
    assert [layer.has_rate for layer in reuse.layers] == [True, False, True, True, True]
    assert [layer.weights for layer in reuse.layers] == [
        sum(p.numel() for p in small_conv4().get_submodule(x.layer).parameters())
        for x in reuse.layers
    ]


def test_the_gradient_norm_is_autograds_at_the_meta_initialisation():
    learner, episodes = double(MAML, lr=0.3, steps=3), prototype_tasks(2)
    found = {layer.layer: layer.gradient.mean for layer in feature_reuse(learner, episodes).layers}
    norms = []
    for task in unstack(episodes):
        loss = nn.functional.cross_entropy(
            learner.model(task.support.inputs.double()), task.support.targets
        )
        gradients = torch.autograd.grad(loss, list(learner.model.block3.parameters()))
        norms.append(float(sum(gradient.square().sum() for gradient in gradients).sqrt()))
    assert found["block3"] == pytest.approx(sum(norms) / 2, rel=1e-12)


def test_the_distance_is_that_of_the_adapted_weights_and_relative_to_their_norm():
    learner, episodes = double(MAML, lr=0.3, steps=2), prototype_tasks(1)
    layer = feature_reuse(learner, episodes).layers[4]
    support = unstack(episodes)[0].support
    with torch.no_grad():
        adapted = learner.adapt(Examples(support.inputs.double(), support.targets)).weights
    before = torch.cat([p.detach().flatten() for p in learner.model.head.parameters()])
    after = torch.cat([adapted["head.weight"].flatten(), adapted["head.bias"]])
    assert layer.distance.mean == pytest.approx(float((after - before).norm()), rel=1e-12)
    assert layer.relative_distance.mean == pytest.approx(
        float((after - before).norm() / before.norm()), rel=1e-12
    )


def test_what_has_no_rate_neither_moves_nor_has_a_gradient():
    anil, boil = (
        feature_reuse(learner(small_conv4(), lr=0.5), prototype_tasks(3)).layers
        for learner in (ANIL, BOIL)
    )
    for layer in (*anil[:4], boil[4]):
        assert (
            not layer.has_rate
            and layer.distance == layer.relative_distance == layer.gradient == (0, 0)
        )
    for layer in (anil[4], *boil[:4]):
        assert layer.has_rate and layer.distance.low > 0 and layer.gradient.low > 0
    assert all(
        layer.intra.before == layer.intra.after and layer.inter.before == layer.inter.after
        for layer in anil[:4]
    )


def test_no_inner_steps_move_nothing_though_there_is_a_gradient():
    layers = feature_reuse(MAML(small_conv4(), lr=0.3, steps=0), prototype_tasks(3)).layers
    assert all(layer.distance == (0, 0) and layer.gradient.mean > 0 for layer in layers)


def test_learners_without_an_inner_loop_have_no_distance_and_no_gradient_by_construction():
    reuse = feature_reuse(NIL(small_conv4()), prototype_tasks(3))
    assert all(
        layer.distance == layer.gradient == (0, 0) and not layer.has_rate for layer in reuse.layers
    )
    assert "0, no rate" in str(reuse)


def test_class_cosines_are_the_means_over_pairs():
    torch.manual_seed(0)
    features, targets = (
        torch.randn(7, 2, 3, dtype=torch.float64),
        torch.tensor([0, 1, 0, 2, 1, 0, 2]),
    )
    flat = features.flatten(1)
    pairs = {True: [], False: []}
    for i, j in permutations(range(7), 2):
        cosine = nn.functional.cosine_similarity(flat[i], flat[j], dim=0)
        pairs[bool(targets[i] == targets[j])].append(float(cosine))
    assert class_cosines(features, targets) == pytest.approx(
        [sum(pairs[same]) / len(pairs[same]) for same in (True, False)]
    )


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_class_cosines_ignore_scale_and_rotation_and_are_one_for_the_same_features_in_a_class(
    seed, scale
):
    generator = torch.Generator().manual_seed(seed)
    features, targets = (
        torch.randn(6, 4, generator=generator, dtype=torch.float64),
        torch.arange(2).repeat(3),
    )
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    assert class_cosines(scale * features @ rotation, targets) == pytest.approx(
        class_cosines(features, targets)
    )
    assert class_cosines(features[:2].repeat(3, 1), targets)[0] == pytest.approx(1)


def test_class_cosines_without_a_pair_are_nan_and_of_dead_features_zero():
    intra, inter = class_cosines(torch.eye(3), torch.arange(3))
    assert math.isnan(intra) and inter == 0
    assert class_cosines(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])) == (0, 0)


def test_tasks_in_threads_give_what_a_loop_gives(two_threads):
    torch.manual_seed(1)
    other = MAML(Conv4(3, channels=1, hidden=6, size=16), lr=0.3)
    threads = feature_reuse(
        MAML(small_conv4(), lr=0.3), prototype_tasks(3), other_seed=other
    ).to_dict()
    torch.set_num_threads(1)
    loop = feature_reuse(
        MAML(small_conv4(), lr=0.3), prototype_tasks(3), other_seed=other
    ).to_dict()
    for ours, theirs in zip(threads["layers"], loop["layers"], strict=True):
        for key in ("cka", "distance", "gradient", "intra", "inter", "other_seed"):
            assert flat_numbers(ours[key]) == pytest.approx(
                flat_numbers(theirs[key]), rel=1e-4, abs=1e-5
            )


def flat_numbers(value: Any) -> list[float]:
    return (
        [one for item in value.values() for one in flat_numbers(item)]
        if isinstance(value, dict)
        else [value]
    )


# Another network


def test_other_seed_is_the_similarity_of_the_two_initialisations():
    torch.manual_seed(1)
    learner, other, episodes = (
        MAML(small_conv4(), lr=0.3),
        MAML(Conv4(3, 1, 6, 16), lr=0.1),
        prototype_tasks(3),
    )
    reuse = feature_reuse(learner, episodes, other_seed=other)
    each = [
        compare_layers(small_conv4(), other.model, task.query.inputs)["block2"].similarity
        for task in unstack(episodes)
    ]
    assert reuse.layers[1].other_seed.cka.mean == pytest.approx(Estimate.of(each).mean, rel=1e-5)
    assert reuse.layers[1].other_seed.cka.interval == pytest.approx(
        Estimate.of(each).interval, rel=1e-4
    )
    outputs = [
        torch.cat([run(x) for x in episodes.query.inputs]).detach()
        for run in (learner.model.block1, other.model.block1)
    ]
    assert reuse.layers[0].other_seed.cca_pooled == pytest.approx(
        compare_layers(*({"a": x} for x in outputs), measure="cca")["a"].similarity
    )
    without = feature_reuse(MAML(small_conv4(), lr=0.3), episodes)
    assert without.layers[0].other_seed is None and without.layers[0].cka == reuse.layers[0].cka
    assert "other seed" in str(reuse) and "other seed" not in str(without)


def test_another_network_that_is_no_comparison_is_refused():
    with pytest.raises(ValueError, match="same weights"):
        feature_reuse(
            MAML(small_conv4(), lr=0.3), prototype_tasks(2), other_seed=ANIL(small_conv4(), lr=0.1)
        )
    with pytest.raises(ValueError, match=r"another architecture: block1\.conv\.weight differs"):
        feature_reuse(
            MAML(small_conv4(), lr=0.3),
            prototype_tasks(2),
            other_seed=MAML(Conv4(3, 1, 8, 16), lr=0.3),
        )


# Several answers together


@pytest.fixture(scope="module")
def three():
    def one(seed: int) -> Reuse:
        torch.manual_seed(seed)
        return feature_reuse(MAML(Conv4(3, 1, 6, 16), lr=0.3), prototype_tasks(3))

    return [one(seed) for seed in range(3)]


def test_over_seeds_is_the_mean_with_students_interval(three):
    pooled = over_seeds(three)
    for i, layer in enumerate(pooled.layers):
        values = [one.layers[i].cka.mean for one in three]
        low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
        assert (layer.cka.low, layer.cka.high) == pytest.approx((low, high))
        assert layer.gradient.mean == pytest.approx(
            sum(one.layers[i].gradient.mean for one in three) / 3
        )
        assert (
            layer.cca == pytest.approx(Estimate.of([one.layers[i].cca.mean for one in three]))
            and layer.cca.interval > 0
        )
        assert layer.cca_pooled == pytest.approx(sum(one.layers[i].cca_pooled for one in three) / 3)
    assert pooled.accuracies.own.mean == pytest.approx(
        sum(one.accuracies.own.mean for one in three) / 3
    )
    assert pooled.evaluation.mean == pytest.approx(pooled.accuracies.own.mean)
    assert pooled.freezing.rows[-1].cost == Estimate.of(
        [one.freezing.rows[-1].cost.mean for one in three]
    )
    text = str(pooled)
    assert (
        "mean over 3 seeds" in text
        and "standard deviation over 3 seeds" in text
        and "± over seeds" in text
    )
    assert len(json.loads(json.dumps(pooled.to_dict(), allow_nan=False))["seeds"]) == 3


def test_one_seed_gives_no_interval_and_says_so(three):
    pooled = over_seeds(three[:1])
    assert (
        pooled.notes[0].startswith("One seed gives no interval")
        and "(no interval)" in str(pooled)
        and " nan" not in str(pooled)
    )
    assert pooled.layers[0].cka.mean == three[0].layers[0].cka.mean and math.isnan(
        pooled.layers[0].cka.interval
    )
    assert pooled.verdict.answer == "no verdict"


def test_seeds_that_do_not_belong_together_are_refused(three):
    with pytest.raises(ValueError, match="nothing to pool"):
        over_seeds([])
    with pytest.raises(ValueError, match="runs 0 and 1 are the same"):
        over_seeds([three[0], three[0]])
    with pytest.raises(ValueError, match=r"differ in lr \(0.3 against 0.5\)"):
        over_seeds([three[0], feature_reuse(MAML(small_conv4(), lr=0.5), prototype_tasks(3))])
    with pytest.raises(ValueError, match=r"differ in tasks \(3 against 2\)"):
        over_seeds([three[0], feature_reuse(MAML(small_conv4(), lr=0.3), prototype_tasks(2))])
    flipped = Episode(
        *(Examples(part.inputs.flip(-1), part.targets) for part in prototype_tasks(3))
    )
    with pytest.raises(ValueError, match="saw other tasks"):
        over_seeds([three[0], feature_reuse(MAML(small_conv4(), lr=0.3), flipped)])
    with pytest.raises(ValueError, match="pooled already"):
        over_seeds([over_seeds(three[:2]), three[2]])


def test_learners_are_compared_in_pairs_on_the_same_tasks(three):
    learners = [MAML(small_conv4(), lr=0.3), ANIL(small_conv4(), lr=0.3)]
    found = differences(
        [
            feature_reuse(learner, prototype_tasks(), name=name)
            for learner, name in zip(learners, "ab", strict=True)
        ]
    )
    expected = paired(*(evaluate(learner, prototype_tasks()) for learner in learners))
    assert [(one.first, one.second, one.estimate, one.pairs) for one in found] == [
        ("a", "b", (expected.mean, expected.interval), 6)
    ]
    pooled = differences([over_seeds(three[:2]), replace(over_seeds(three[1:]), name="other")])[0]
    gaps = [a.accuracies.own.mean - b.accuracies.own.mean for a, b in pairwise(three)]
    assert pooled.estimate == pytest.approx(Estimate.of(gaps)) and (pooled.pairs, pooled.unit) == (
        2,
        "seed",
    )


def test_learners_on_other_tasks_are_not_compared(three, maml):
    found = differences([three[0], maml])[0]
    assert math.isnan(found.estimate.mean) and "3 tasks against 6" in found.note
