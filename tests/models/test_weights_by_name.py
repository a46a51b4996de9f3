"""`--weights` means the same in both commands: a file, torchvision's name, or timm's; nothing is
downloaded unasked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models import SqueezeNet1_1_Weights

from metalearn import ANIL, MAML, NIL, ProtoNet
from metalearn.__main__ import main as metalearn
from metalearn.episodes import Episode, Examples
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.runs import restored
from metalearn.models import Conv4, registry
from metalearn.models.weights import IMAGENET, Normalization, fit, normalize, read
from metalearn.runtime.files import Damaged
from transfer.__main__ import Transfer
from transfer.__main__ import main as transfuse

MEMBER = SqueezeNet1_1_Weights.IMAGENET1K_V1


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, empty caches, and no network."""

    def unreachable(*arguments: object, **options: object) -> None:
        raise AssertionError("a download that nobody asked for")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    return tmp_path


def network(outputs: int = 1000, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return registry.build("squeezenet1_1", outputs)


def cache(here: Path) -> nn.Module:
    """A network whose weights lie in torch's cache as if torchvision had put them there."""
    folder = here / "cache" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    source = network()
    torch.save(source.state_dict(), folder / Path(MEMBER.url).name)
    return source


def pictures(here: Path) -> str:
    generator = np.random.default_rng(0)
    for label in range(9):
        folder = here / "pictures" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return str(here / "pictures")


@pytest.mark.parametrize(
    "name", [str(MEMBER), "IMAGENET1K_V1", "DEFAULT", "SqueezeNet1_1_Weights.DEFAULT"]
)
def test_torchvisions_names_are_read_from_the_cache_and_normalise(here: Path, name: str) -> None:
    source = cache(here)
    for weights in (
        Experiment(model="squeezenet1_1", weights=name).pretrained,
        Transfer(dataset="x", model="squeezenet1_1", weights=name).given,
    ):
        assert torch.equal(weights.tensors["features.0.weight"], source.features[0].weight)
        assert weights.normalization == IMAGENET


@pytest.mark.parametrize("name", [str(MEMBER), "timm:resnet18", "timm:resnet18.a1_in1k"])
def test_what_is_not_in_a_cache_says_what_to_do(here: Path, name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    for read_weights in (
        lambda: read(name),
        lambda: Experiment(model="squeezenet1_1", weights=name).fresh_model(),
        lambda: Transfer(dataset="x", weights=name).given,
    ):
        with pytest.raises(FileNotFoundError, match=r"not in .*cache; add --download"):
            read_weights()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet18_Weights.IMAGENET1K_V2", r"did you mean ResNet18_Weights\.IMAGENET1K_V1"),
        ("resnet18_weights.default", r"did you mean ResNet18_Weights\.DEFAULT"),
        ("IMAGENET1K_V9", "no weights 'IMAGENET1K_V9'"),
        ("imagenet", "no weights 'imagenet'"),
        ("timm:resnet19", "did you mean resnet18"),
        ("timm:resnet18.a9_in1k", "did you mean a1_in1k|a1_in1k"),
        ("timm:hf-hub:someone/something", "timm has no network"),
        ("hf-hub:someone/something", "no file"),
        ("https://example.org/weights.pt", "no file"),
        ("weigths.pt", r"no file weigths\.pt"),
        ("os:system", "no weights 'os:system'"),
    ],
)
def test_a_wrong_name_names_the_near_ones(here: Path, name: str, message: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    for read_weights in (
        lambda: Experiment(model="resnet18", weights=name).pretrained,
        lambda: Transfer(dataset="x", model="resnet18", weights=name).given,
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_weights()


WRAPPED: dict[str, Any] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": torch.tensor(3)},
    "model beside an optimizer": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.ones(1)}}},
    },
    "model_state_dict": lambda state: {"model_state_dict": state, "rng": torch.get_rng_state()},
    "deeper": lambda state: {"model": {"state_dict": state}, "ema": None},
    "of DataParallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "of Lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "half precision": lambda state: {k: v.half() for k, v in state.items()},
    "with an extra state": lambda state: {"net": {**state, "x._extra_state": None}},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("ways", [5, 1000])
def test_a_file_of_any_usual_kind_fits_and_says_what_did_not(
    here: Path, kind: str, ways: int
) -> None:
    source = network()
    torch.save(WRAPPED[kind](source.state_dict()), here / "some.pt")
    model = network(ways, seed=1)
    before = model.classifier[1].weight.clone()
    taken = fit(model, read("some.pt"))
    assert torch.allclose(model.features[0].weight, source.features[0].weight, atol=1e-3)
    assert taken.fresh == (() if ways == 1000 else ("classifier.1.weight", "classifier.1.bias"))
    assert torch.equal(before, model.classifier[1].weight) == (ways != 1000)


def test_a_body_that_does_not_fit_is_refused_by_name_and_nothing_changes(here: Path) -> None:
    state = network().state_dict()
    broken = [
        (
            {**state, "features.3.squeeze.weight": torch.zeros(1)},
            r"features\.3\.squeeze\.weight is \(16, 64, 1, 1\).* and \(1,\)",
        ),
        (
            {k: v for k, v in state.items() if k != "features.0.bias"},
            r"no features\.0\.bias in the weights",
        ),
        (
            {**state, "features.0.bias": torch.full((64,), torch.nan)},
            r"features\.0\.bias .* not finite",
        ),
        (
            {**state, "features.0.bias": torch.zeros(64, dtype=torch.int8)},
            r"features\.0\.bias .*int8",
        ),
        ({"classifier.1.weight": torch.zeros(5, 512, 1, 1)}, "does not fit"),
        (torchvision.models.resnet18().state_dict(), "does not fit"),
    ]
    for tensors, message in broken:
        model = network(5)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            fit(model, read(tensors))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\n<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"weights": 1}', "JSON"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"PK\x03\x04" + bytes(20), "truncated or no weights"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_what_is_no_weights_file_is_named(
    here: Path, content: bytes, message: str, suffix: str
) -> None:
    (here / f"w.{suffix}").write_bytes(content)
    with pytest.raises(Damaged, match=rf"w\.{suffix} .*{message}"):
        read(f"w.{suffix}")
    (here / "folder.pt").mkdir(exist_ok=True)
    with pytest.raises(IsADirectoryError, match="is a folder; name the weights file in it"):
        read("folder.pt")


def test_a_start_says_what_was_copied_and_how_images_are_normalised(here: Path) -> None:
    source = cache(here)
    safetensors.torch.save_file(source.state_dict(), here / "own.safetensors")
    expected = {
        ("DEFAULT", None): f"images are normalised by mean/std {IMAGENET}",
        ("own.safetensors", None): "how the images of own.safetensors were normalised is not known",
        ("own.safetensors", "0.5/0.5"): "images are normalised by mean/std 0.5/0.5",
        ("own.safetensors", "none"): "images stay in [0, 1]",
    }
    for (weights, normalization), line in expected.items():
        experiment = Experiment(
            model="squeezenet1_1", weights=weights, normalize=normalization, size=32, channels=3
        )
        first, second = experiment.start()
        assert "classifier.1.weight, classifier.1.bias stay as built" in first
        assert line in second


def test_the_first_lines_of_both_commands_say_so(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(here))
    (here / "strangers_body.py").write_text(
        "from torch import nn\ndef net(outputs):\n    return nn.Sequential(nn.Conv2d(3, 2, 8, 8),"
        " nn.Flatten(), nn.Linear(32, outputs))\n"
    )
    torch.save({"0.weight": torch.ones(2, 3, 8, 8), "0.bias": torch.zeros(2)}, here / "own.pt")
    common = [
        "--dataset",
        pictures(here),
        "--model",
        "strangers_body:net",
        "--weights",
        "own.pt",
        "--progress",
        "false",
    ]
    few = [
        "--ways",
        "2",
        "--queries",
        "1",
        "--train_queries",
        "1",
        "--size",
        "32",
        "--algorithm",
        "protonet",
    ]
    few += ["--steps", "1", "--meta_batch", "1", "--test_tasks", "2"]
    assert metalearn(["train", *common, *few]) == 0
    assert (
        "weights: own.pt: 2 tensors copied; 2.weight, 2.bias stay as built"
        in capsys.readouterr().out
    )
    tiny = [
        "--steps",
        "1",
        "--seeds",
        "0",
        "--processes",
        "1",
        "--probe",
        "4",
        "--strategies",
        "random,full",
    ]
    assert transfuse(["compare", *common, *tiny]) == 0
    assert "how their images were normalised is not known" in capsys.readouterr().out


def test_a_run_of_ours_as_weights_says_how_its_images_were_normalised(here: Path) -> None:
    experiment = Experiment(hidden=2, steps=1, meta_batch=1, normalize="0.5/0.25", execution="loop")
    experiment.train("protonet", progress=False)
    path = str(experiment.checkpoint("protonet"))
    again = Experiment(hidden=2, weights=path)
    assert again.normalization == Normalization((0.5,), (0.25,))
    start = again.fresh_model()
    trained = restored(path).learner.model
    assert torch.equal(start.block1.conv.weight, trained.block1.conv.weight)
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(start(images), trained(images))


@pytest.mark.parametrize("learner", [MAML, ANIL, NIL, ProtoNet])
@pytest.mark.parametrize("execution", ["loop", "threads", "vectorized"])
def test_a_network_that_normalises_gives_what_normalised_images_give(
    learner: type, execution: str
) -> None:
    torch.manual_seed(0)
    plain = Conv4(3, hidden=4, size=16).double()
    known = Normalization((0.4,), (0.3,))
    options: dict[str, Any] = {"lr": 0.1, "steps": 2} if learner in (MAML, ANIL) else {}
    images = torch.rand(2, 6, 1, 16, 16, dtype=torch.float64)
    labels = torch.arange(3).repeat(2, 2)
    scaled = (images - 0.4) / 0.3
    expected = learner(plain, execution="loop", **options)(
        Episode(Examples(scaled, labels), Examples(scaled, labels))
    )
    wrapped = normalize(plain, known)
    result = learner(wrapped, execution=execution, **options)(
        Episode(Examples(images, labels), Examples(images, labels))
    )
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "text", ["0.5", "a/b", "0.5/0", "0.5/-1", "nan/1", "1,2/3", "", "imagenet/1", "/"]
)
def test_a_normalisation_that_cannot_be_meant_is_refused(text: str) -> None:
    for build in (Experiment, Transfer):
        with pytest.raises(ValueError, match="choose imagenet or none, or write MEAN/STD"):
            build(normalize=text)


def test_a_normalisation_of_other_channels_is_refused(here: Path) -> None:
    with pytest.raises(ValueError, match="is for 3 channels, but the images have 1"):
        Experiment(normalize="imagenet").fresh_model()


def test_timms_weights_are_read_from_its_cache_and_normalise(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    source = timm.create_model("test_resnet", pretrained=False)
    safetensors.torch.save_file(source.state_dict(), here / "model.safetensors")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *names: str(here / "model.safetensors")
    )
    config = source.pretrained_cfg
    for name, model in (("timm:test_resnet", None), ("DEFAULT", "timm:test_resnet")):
        weights = read(name, model=model)
        assert weights.normalization == Normalization(tuple(config["mean"]), tuple(config["std"]))
        assert torch.equal(weights.tensors["conv1.0.weight"], source.state_dict()["conv1.0.weight"])
    experiment = Experiment(
        model="timm:test_resnet", weights="DEFAULT", size=32, channels=3, norm="frozen"
    )
    fresh = experiment.fresh_model()
    assert torch.equal(fresh.state_dict()["conv1.0.weight"], source.state_dict()["conv1.0.weight"])
    assert "stay as built" in experiment.start()[0]
