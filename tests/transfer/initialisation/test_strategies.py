"""What each layer starts from: transfusion tensor by tensor, mappings, the head, the report, and
what is refused.
"""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from torch import nn

from metalearn import ANIL, batch_statistics, head, layers
from metalearn.models import Conv4
from metalearn.network.layers import is_inside, owners
from metalearn.training.loop import meta_train
from transfer import copied, everywhere, fresh, gabor, initialize, mean_var, transfusion
from transfer.initialisation.strategies import ordered
from transfer.models import cbr


def tiny(outputs: int = 2) -> nn.Module:
    """A torchvision ResNet with every feature of the big ones: blocks, shortcuts with batch norm, a
    head.
    """
    return torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=outputs, width_per_group=64
    )


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(1)
    model = tiny(outputs=7)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) + 1 if tensor.is_floating_point() else tensor + 3)
    return model


def same(model: nn.Module, other: nn.Module, names: list[str]) -> list[str]:
    a, b = model.state_dict(), other.state_dict()
    return [
        name for name in names if a[name].shape == b[name].shape and torch.equal(a[name], b[name])
    ]


@pytest.mark.parametrize("k", range(7))
def test_transfusion_copies_exactly_the_layers_up_to_each(source: nn.Module, k: int) -> None:
    torch.manual_seed(0)
    model = tiny()
    built = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = layers(model)
    initialize(model, transfusion(source, through=names[k]) if k < 6 else transfusion(source))
    owner, below = owners(model), set(names[: k + 1]) - {"fc"}
    copied_names = [name for name in built if owner[name] in below]
    assert same(model, source, list(built)) == copied_names
    assert all(
        torch.equal(model.state_dict()[name], built[name])
        for name in built
        if name not in copied_names
    )
    assert any("running_var" in name for name in copied_names) == (k >= 1)  # buffers too


@pytest.mark.parametrize("stage", ["layer1", "layer3", "layer4", "layer4.0"])
def test_transfusion_from_the_top_copies_down_to_a_layer(source: nn.Module, stage: str) -> None:
    model = tiny()
    initialize(model, transfusion(source, down_to=stage))
    owner, names = owners(model), layers(model)
    first = next(place for place, name in enumerate(names) if is_inside(name, stage))
    everything = list(model.state_dict())
    assert same(model, source, everything) == [
        name for name in everything if owner[name] in names[first:-1]
    ]


def test_bottom_and_top_together_are_everything_but_the_head(source: nn.Module) -> None:
    one, both = tiny(), tiny()
    initialize(one, transfusion(source))
    initialize(both, transfusion(source, through="layer2"))
    initialize(both, transfusion(source, down_to="layer3"))
    assert same(one, both, ordered(one)) == [
        name for name in ordered(one) if not name.startswith("fc.")
    ]
    with pytest.raises(ValueError, match="name one of the two"):
        transfusion(source, through="layer2", down_to="layer3")


def test_a_prefix_names_all_of_its_blocks_and_a_path_inside_a_block_cuts_it(
    source: nn.Module,
) -> None:
    model = tiny()
    report = initialize(model, transfusion(source, through="layer1.0.bn1"))
    assert [report[f"layer1.0.{name}"].how for name in ("bn1.running_mean", "conv2.weight")] == [
        "copied",
        "fresh",
    ]


def test_the_head_stays_fresh_unless_asked(source: nn.Module) -> None:
    for strategy in (transfusion(source), everywhere(copied(source)), {"": copied(source)}):
        model = tiny()
        report = initialize(model, strategy)
        assert report["fc.weight"].how == "fresh"
        assert report["fc.weight"].note == "the head; (7, 512) in the weights"
    for strategy in (
        transfusion(source, through="fc"),
        everywhere(copied(source), head=True),
        {"": copied(source), "fc": copied(source)},
    ):
        model = tiny(outputs=7)
        initialize(model, strategy)
        assert torch.equal(model.fc.weight, source.fc.weight)
    with pytest.raises(
        ValueError, match=r"fc\.weight is \(7, 512\) in the weights and \(2, 512\) here"
    ):
        initialize(tiny(), everywhere(copied(source), head=True))


def test_another_head_can_be_named(source: nn.Module) -> None:
    report = initialize(tiny(outputs=7), everywhere(copied(source)), head="layer4")
    assert report["layer4.0.conv1.weight"].how == "fresh"
    assert report["fc.weight"].how == "copied"


def test_in_a_mapping_the_longest_path_wins_for_parameters_and_buffers(source: nn.Module) -> None:
    model = tiny()
    report = initialize(
        model,
        {
            "": fresh(),
            "layer1": copied(source),
            "layer1.0.conv2": mean_var(source),
            "layer1.0.bn2.running_mean": fresh(),
            "conv1": gabor(),
        },
    )
    hows = [
        report[name].how
        for name in (
            "conv1.weight",
            "layer1.0.conv1.weight",
            "layer1.0.conv2.weight",
            "layer2.0.conv1.weight",
        )
    ]
    assert hows == ["drawn", "copied", "drawn", "fresh"]
    assert report["layer1.0.bn2.running_mean"].how == "fresh"
    assert report["layer1.0.bn2.running_var"].how == "copied"


def test_a_vision_transformers_bare_parameters_go_with_their_layers() -> None:
    def vit(outputs: int) -> nn.Module:
        return torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 8, num_classes=outputs)

    source, model = vit(5), vit(2)
    with torch.no_grad():
        source.class_token.fill_(3)
    report = initialize(model, transfusion(source, through="conv_proj"))
    assert report["class_token"].how == "copied" and (model.class_token == 3).all()
    assert report["encoder.pos_embedding"].how == "fresh"


def test_tied_weights_stay_tied() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    source, model = tied(), tied()
    for strategy in (
        everywhere(copied(source)),
        transfusion(source, through="0"),
        everywhere(mean_var(source)),
    ):
        initialize(model, strategy)
        assert model[2].weight is model[0].weight
    initialize(model, transfusion(source, through="0"))
    assert torch.equal(model[2].weight, source[0].weight)
    with pytest.raises(ValueError, match="one tied parameter"):
        initialize(model, {"": fresh(), "0": copied(source), "2": mean_var(source)})


def test_prefixes_of_wrappers_are_matched_on_either_side(source: nn.Module) -> None:
    class Wrapped(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone = backbone

    plain, prefixed = (
        source.state_dict(),
        {f"module.model.{name}": tensor for name, tensor in source.state_dict().items()},
    )
    for weights, model in ((prefixed, tiny()), (plain, Wrapped(tiny())), (Wrapped(source), tiny())):
        report = initialize(model, transfusion(weights))
        assert report.parameters()["copied"] == sum(
            p.numel() for n, p in source.named_parameters() if not n.startswith("fc.")
        )


def test_the_names_inside_one_block_do_not_pass_for_a_network() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 64, 7), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="0 of 2 tensors match"):
        initialize(
            plain,
            transfusion(
                {
                    "layer1.conv.weight": torch.ones(1),
                    "layer1.0.weight": torch.ones(1),
                    "x.y": torch.ones(1),
                }
            ),
        )


def test_weights_of_another_architecture_are_refused_with_how_many_match_and_the_nearest_names(
    source: nn.Module,
) -> None:
    torch.manual_seed(0)
    model = tiny()
    built = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {name.replace("layer", "stage"): tensor for name, tensor in source.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=(
            r"6 of 72 tensors match.*layer1\.0\.conv1\.weight .*stage1\.0\.conv1\.weight\)"
            r".*transfusion\(weights, through=\.\.\.\)"
        ),
    ):
        initialize(model, transfusion(other))
    assert all(
        torch.equal(model.state_dict()[name], built[name]) for name in built
    )  # nothing was changed by halves


def test_a_model_without_old_weights_batch_counter_takes_the_rest(source: nn.Module) -> None:
    old = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    report = initialize(tiny(), transfusion(old))
    assert (
        report["bn1.num_batches_tracked"].how == "skipped"
        and report["bn1.running_mean"].how == "copied"
    )


def test_running_statistics_that_the_weights_lack_are_refused() -> None:
    with pytest.raises(ValueError, match=r"block1\.norm\.running_mean is not in the weights"):
        initialize(cbr("tiny", 2), transfusion(batch_statistics(cbr("tiny", 2))))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (lambda s: transfusion(s, through="layer9"), "no layer 'layer9'; did you mean layer"),
        (lambda s: transfusion(s, down_to="fd"), "no layer 'fd'; did you mean fc"),
        (lambda s: transfusion(s, through="relu"), "'relu' holds no tensors to copy"),
        (lambda s: {"layr1": copied(s), "": fresh()}, "no layer 'layr1'; did you mean layer1"),
        (lambda s: {"layer1": copied(s)}, r"leaves conv1\.weight, .* without a source"),
        (lambda s: {}, r"leaves conv1\.weight, bn1\.weight, .* more without a source"),
    ],
)
def test_what_does_not_exist_or_is_left_over_is_named(
    source: nn.Module, strategy: type, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        initialize(tiny(), strategy(source))


def test_sources_where_a_strategy_belongs_and_classes_where_a_source_does(
    source: nn.Module,
) -> None:
    with pytest.raises(TypeError, match=r"write everywhere\(copied\(a ResNet\)\)"):
        initialize(tiny(), copied(source))
    with pytest.raises(TypeError, match=r"write fresh\(\)"):
        initialize(tiny(), {"": fresh})


def test_weights_that_are_not_finite_are_refused(source: nn.Module) -> None:
    broken = {**source.state_dict(), "conv1.weight": source.conv1.weight * torch.nan}
    with pytest.raises(ValueError, match=r"conv1\.weight values that are not finite"):
        initialize(tiny(), transfusion(broken))


def test_the_report_has_every_tensor_once_with_counts_that_add_up(source: nn.Module) -> None:
    model = tiny()
    report = initialize(
        model,
        {"": transfusion(source)(model, "fc")["conv1.weight"], "layer4": mean_var(source)},
        seed=3,
    )
    assert [row.name for row in report.rows] == ordered(model)
    assert sorted(row.name for row in report.rows) == sorted(model.state_dict())
    assert sum(report.parameters().values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert report.parameters("layer4") == {
        "drawn": sum(p.numel() for n, p in model.layer4.named_parameters() if p.ndim == 4),
        "skipped": sum(p.numel() for p in model.layer4.parameters() if p.ndim == 1),
    }
    assert report.parameters("fc") == {"fresh": 2 * 512 + 2}
    assert set(report.weights[0]["unused"]) >= {"fc.weight", "fc.bias"}
    with pytest.raises(KeyError, match="no tensor 'conv9'"):
        report["conv9"]


def test_the_report_prints_as_a_table_and_goes_through_json(source: nn.Module) -> None:
    report = initialize(tiny(), {"": copied(source), "conv1": mean_var(source)}, seed=3)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "shape", "parameters", "start", "mean", "variance"]
    weight = next(line for line in lines if line.startswith("  weight")).split()
    assert weight[1:9] == ["64", "x", "3", "x", "7", "x", "7", "9,408"] and weight[9] == "drawn"
    assert any(line.startswith("fc ") and "1,026 fresh" in line for line in lines)
    assert lines[-2].endswith("1,026 fresh; seed 3)")
    assert lines[-1] == "(not used of a ResNet: fc.bias, fc.weight)"
    stored = json.loads(json.dumps(report.to_dict()))
    assert stored["tensors"][0]["how"] == "drawn" and stored["layers"]["fc"] == {"fresh": 1026}
    assert stored["weights"][0]["digest"] == transfusion(source).weights.digest


def test_a_meta_learned_checkpoint_is_a_source(tmp_path: object) -> None:
    from metalearn.tasks import FewShot, glyphs

    learner = ANIL(Conv4(ways=3, hidden=4), lr=0.1)
    path = f"{tmp_path}/anil.safetensors"
    tasks = FewShot(glyphs("train"), ways=3, shots=1, queries=1, tasks=2)
    meta_train(learner, tasks, steps=1, meta_batch=2, checkpoint=path, progress=False)
    for weights in (path, learner):
        model = Conv4(ways=2, hidden=4)
        report = initialize(model, transfusion(weights))
        assert torch.equal(model.block4.conv.weight, learner.model.block4.conv.weight)
        assert report["head.weight"].how == "fresh" and head(model) == "head"


def test_strategies_print_what_they_are(source: nn.Module) -> None:
    assert repr(everywhere(fresh())) == "everywhere(fresh())"
    assert repr(transfusion(source, through="layer1")) == "transfusion(a ResNet, through='layer1')"
    assert (
        repr(everywhere(copied(source, average_channels=True), head=True))
        == "everywhere(copied(a ResNet, average_channels=True), head=True)"
    )
