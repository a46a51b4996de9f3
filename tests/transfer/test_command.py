"""The command line of transfer: its answers, its refusals, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests.helpers import ROOT, medmnist_arrays
from transfer.__main__ import Transfer, main
from transfer.models import build

TINY = [
    "--steps",
    "2",
    "--batch",
    "8",
    "--seeds",
    "0,1",
    "--processes",
    "1",
    "--progress",
    "false",
    "--probe",
    "40",
]
GLYPHS = [*TINY, "--pretrain_steps", "2", "--images", "40"]


def run(*arguments: str) -> int:
    return main(["compare", *arguments])


@pytest.fixture
def medical(here: Path) -> str:
    np.savez(here / "some.npz", **medmnist_arrays())
    return "some.npz"


def weights(path: Path, name: str = "cbr_tiny", channels: int = 1) -> str:
    torch.manual_seed(1)
    torch.save(build(name, 5, channels).state_dict(), path)
    return str(path)


def test_embedded_glyphs_end_with_tables_a_page_and_its_numbers(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*GLYPHS) == 0
    printed = capsys.readouterr().out
    for name in (
        "random",
        "mean_var",
        "permuted",
        "gabor",
        "through block1",
        "through block2",
        "full",
    ):
        assert name in printed
    assert "Not decidable with 2 seeds" in printed and "pretrained on glyphs:" in printed
    page, facts = (
        (here / "transfer.html").read_text(),
        json.loads((here / "transfer.json").read_text()),
    )
    assert "data:image/svg+xml" in page and "http://" not in page and "transfuse" in page
    assert (
        len(facts["runs"]) == 14
        and facts["question"]["dataset"] == "glyphs"
        and facts["about"]["machine"]
    )
    files = {path: path.stat().st_mtime_ns for path in (here / "runs").rglob("*.safetensors")}
    assert len(files) == 15
    assert run(*GLYPHS, "--strategies", "random,full", "--through", "") == 0
    assert {
        path: path.stat().st_mtime_ns for path in (here / "runs").rglob("*.safetensors")
    } == files


@pytest.mark.slow
def test_of_torchruns_ranks_one_pretrains_and_all_share_out_the_runs(here: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "transfer",
        "compare",
    ]
    chosen = [*GLYPHS, "--strategies", "random,full", "--through", ""]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, *chosen], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("pretrained on glyphs:")
        == done.stdout.count("The page with pictures:")
        == 1
    )
    files = {path: path.stat().st_mtime_ns for path in (here / "runs").rglob("*.safetensors")}
    assert len(files) == 5 and run(*chosen) == 0
    assert {
        path: path.stat().st_mtime_ns for path in (here / "runs").rglob("*.safetensors")
    } == files


def test_a_medmnist_file_weights_from_a_file_and_layers_by_name(
    medical: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = weights(here / "weights.pt")
    options = [
        "--dataset",
        medical,
        "--channels",
        "1",
        "--weights",
        file,
        "--metric",
        "auc",
        "--balance",
        "loss",
    ]
    assert (
        run(
            *TINY,
            *options,
            "--strategies",
            "random,full",
            "--through",
            "block1,block3",
            "--images",
            "0.5",
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert (
        "6 training images of 2 classes" in printed
        and "final AUC" in printed
        and "through block3" in printed
    )


def test_a_folder_any_torchvision_model_slim_and_settings_from_a_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (here / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
                here / "pictures" / name / f"{i}.png"
            )
    file = weights(here / "weights.pt", "resnet18", 3)
    (here / "settings.yaml").write_text(
        f"dataset: pictures\nmodel: resnet18\nweights: {file}\nstrategies:"
        " random,slim,full\nprobe: 4\n"
    )
    tiny = [
        value
        for pair in zip(TINY[::2], TINY[1::2], strict=True)
        if pair[0] != "--probe"
        for value in pair
    ]
    assert run("--config", "settings.yaml", *tiny, "--seeds", "3") == 0
    printed = capsys.readouterr().out
    assert (
        "resnet18 on pictures: 16 training images of 2 classes, 4 test images" in printed
        and "slim" in printed
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--through", "layer1"],
        ["--baseline", "best"],
        ["--measure", "nonsense"],
        ["--level", "2"],
        ["--probe", "0"],
        ["--processes", "0"],
    ],
)
def test_errors_come_before_the_pretraining(
    here: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def begun(*_: object, **__: object) -> None:
        raise AssertionError("the pretraining has begun")

    monkeypatch.setattr(Transfer, "pretrained", begun)
    assert run(*GLYPHS, *arguments) == 2


def test_a_network_of_ones_own(medical: str, here: Path) -> None:
    (here / "mine.py").write_text(
        "from torch import nn\ndef net(outputs): return nn.Sequential(nn.Conv2d(1, 2, 3),"
        " nn.Flatten(), nn.Linear(72, outputs))\n"
    )
    torch.save({"0.weight": torch.randn(2, 1, 3, 3), "0.bias": torch.zeros(2)}, here / "own.pt")
    options = [
        "--dataset",
        medical,
        "--channels",
        "1",
        "--model",
        "mine:net",
        "--weights",
        "own.pt",
    ]
    assert run(*TINY, *options, "--strategies", "random,full") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "random,best"], "there is no strategy 'best'"),
        (["--seeds", "0,0"], "has 0 twice"),
        (["--seeds", "0,one"], "seeds='0,one' are not whole numbers"),
        (["--dataset", "nothing", "--weights", "w.pt"], "there is no data set 'nothing'"),
        (["--dataset", "some.npz"], "what was the network pretrained on?"),
        (["--dataset", "some.npz", "--weights", "none.pt"], "there is no file none.pt"),
        (
            ["--dataset", "some.npz", "--weights", "ResNet18_Weights.NONE"],
            "torchvision has no weights 'ResNet18_Weights.NONE'",
        ),
        (["--weights", "w.pt", "--pretrain_on", "glyphs"], "give one of them"),
        (
            [
                "--dataset",
                "some.npz",
                "--channels",
                "1",
                "--weights",
                "w.pt",
                "--through",
                "block9",
            ],
            "has no layer 'block9'",
        ),
        (
            [
                "--dataset",
                "some.npz",
                "--channels",
                "1",
                "--weights",
                "w.pt",
                "--model",
                "resnet18",
            ],
            "tensors match",
        ),
        (
            ["--dataset", "some.npz", "--weights", "w.pt", "--images", "1000"],
            "there are 12 training images",
        ),
        (["--early_stop", "2"], "needs validation images"),
        (["--device", "tpu"], "device='tpu' cannot be used here"),
        (["--probe", "0"], "probe=0 must be at least 1"),
        (["--processes", "0"], "processes=0 must be at least 1"),
        (["--normalize", "yes"], "choose imagenet or none"),
        (["--model", "resnet0"], "there is no network 'resnet0'"),
    ],
)
def test_what_cannot_be_used_is_said_with_exit_code_2(
    medical: str, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    weights(here / "w.pt")
    assert run(*TINY, "--pretrain_steps", "1", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_other_settings_are_another_folder_and_a_folder_of_other_settings_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [*GLYPHS, "--strategies", "random,full", "--through", "", "--seeds", "0"]
    assert run(*short, "--folder", "kept") == 0
    assert run(*short, "--folder", "kept", "--lr", "0.01") == 2
    assert "train.lr is 0.01 but was 0.001" in capsys.readouterr().err


def test_weights_of_torchvision_are_normalised_as_they_were_trained(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(here))
    member = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    (here / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(
        build("squeezenet1_1", 1000).state_dict(),
        here / "hub" / "checkpoints" / Path(member.url).name,
    )
    for name, model in ((str(member), None), ("DEFAULT", "squeezenet1_1")):
        question = Transfer(dataset="x", weights=name, model=model)
        assert str(question.normalization) == "0.485,0.456,0.406/0.229,0.224,0.225"
    assert Transfer().normalization is None
