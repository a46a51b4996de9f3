"""A checkpoint or a weights file decides nothing that is run, downloaded or allocated."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metalearn import experiments
from metalearn.__main__ import main
from metalearn.experiments.experiment import Experiment
from metalearn.models.weights import read
from metalearn.runtime import files
from metalearn.runtime.files import Damaged
from metalearn.training import checkpoints

OWN = (
    "import torch\n\n\ndef net(ways):\n    return torch.nn.Sequential(torch.nn.Flatten(),"
    " torch.nn.Linear(784, ways))\n"
)


def checkpoint(path: Path, **changes: Any) -> str:
    """A whole checkpoint, as `metalearn train` writes it, whose record somebody has changed."""
    experiment = Experiment(hidden=2, size=28, channels=1)
    learner = experiment.learner("maml")
    tensors = {f"learner.{name}": tensor for name, tensor in learner.state_dict().items()}
    tensors |= {
        f"curve.{name}": torch.zeros(1, dtype=torch.float64) for name in ("losses", "accuracies")
    }
    run = {
        "algorithm": "maml",
        "experiment": {**experiment.to_dict("maml"), **changes},
        "notes": {},
    }
    record = {"step": 1, "settings": {"run": run}, "validation": [], "seconds": 0.0}
    files.save(path, tensors, record)
    return str(path)


EXPLOITS = [
    {"model": "os:system", "ways": "touch ran"},
    {"model": "posix:system", "ways": "touch ran"},
    {"model": "builtins:exec", "ways": "open('ran', 'w')"},
    {"model": "builtins:eval", "ways": "open('ran', 'w')"},
    {"model": "subprocess:run", "ways": ["touch", "ran"]},
    {"model": "torch.hub:load", "ways": "someone/something"},
    {"model": "ran_on_import:net"},
    {"model": "pickle:loads"},
]


@pytest.mark.parametrize("change", EXPLOITS, ids=lambda change: change["model"])
@pytest.mark.parametrize("command", ["evaluate", "reuse"])
def test_a_checkpoint_does_not_decide_what_is_run(
    here: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], command: str
) -> None:
    (here / "ran_on_import.py").write_text("open('ran', 'w')\n" + OWN)
    path = checkpoint(here / "evil.safetensors", **change)
    assert main([command, "--checkpoint", path, "--progress", "false"]) == 2
    assert "evil.safetensors" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"evil\.safetensors names the model .*--trust-model"):
        experiments.restored(path)
    with pytest.raises(ValueError, match="was trained with the model"):
        experiments.restored(path, model="mine:net")
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "timm:hf-hub:someone/something"},
        {"model": "timm:local-dir:/tmp"},
        {"model": "timm:../../etc"},
        {"model": "../weights"},
        {"ways": "5"},
        {"ways": True},
        {"ways": 10**12},
        {"hidden": 10**7},
        {"size": 10**6},
        {"norm": ["batch"]},
        {"dataset": "\x1b]0;title\x07"},
        {"dataset": "//attacker/share"},
        {"dataset": r"\\attacker\share"},
        {"normalize": "1/0"},
        {"lr": {"head": 0.1}},
    ],
    ids=str,
)
def test_a_record_that_no_run_wrote_is_refused_at_once(here: Path, change: dict[str, Any]) -> None:
    if str(change.get("model")).startswith("timm:"):
        pytest.importorskip("timm")
    path = checkpoint(here / "evil.safetensors", **change)
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=r"evil\.safetensors records|timm has no|no model|normalize="
    ):
        experiments.restored(path)
    assert time.monotonic() - started < 20


def test_a_record_decides_neither_downloads_nor_folders(here: Path) -> None:
    elsewhere = {"download": True, "root": "/", "runs": "/", "device": "meta", "weights": "DEFAULT"}
    run = experiments.restored(checkpoint(here / "evil.safetensors", **elsewhere))
    defaults = Experiment()
    for name in elsewhere:
        assert getattr(run.experiment, name) == getattr(defaults, name)


@pytest.mark.parametrize(
    "record",
    [{}, {"settings": 3}, {"settings": {"run": {"algorithm": "maml"}}}, {"settings": {"run": []}}],
)
def test_a_record_without_a_run_says_so(here: Path, record: dict[str, Any]) -> None:
    files.save(here / "odd.safetensors", {"a": torch.ones(1)}, record)
    with pytest.raises(ValueError, match=r"odd\.safetensors was not trained by the command line"):
        experiments.restored(here / "odd.safetensors")


def test_ones_own_model_is_built_if_its_user_names_it_or_trusts_the_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "strangers_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(here))
    tiny = ["--steps", "1", "--meta_batch", "1", "--test_tasks", "2", "--progress", "false"]
    assert main(["train", "--model", "strangers_net:net", "--execution", "loop", *tiny]) == 0
    (path,) = map(str, (here / "runs").glob("*.safetensors"))
    asked = ["evaluate", "--checkpoint", path, "--test_tasks", "2", "--progress", "false"]
    assert main(asked) == 2
    assert "--model strangers_net:net" in capsys.readouterr().err
    assert main([*asked, "--model", "strangers_net:net"]) == 0
    assert main([*asked, "--trust_model", "true"]) == 0
    assert main(["reuse", "--checkpoint", path, "--model", "other:net"]) == 2
    assert experiments.restored(path, trust_model=True).algorithm == "maml"


def _header(shape: list[int], size: int) -> bytes:
    entry = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(entry).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


def _zipped(content: bytes) -> bytes:
    """A file of torch's whose storage is deflated."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.ones(4)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            data = content if entry.filename.endswith("data/0") else source.read(entry)
            target.writestr(entry.filename, data)
    return packed.getvalue()


def _npz(shape: tuple[int, ...], data: bytes) -> bytes:
    header, packed = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a.npy", header.getvalue() + data)
    return packed.getvalue()


def _saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


CLAIMS: dict[str, Callable[[], bytes]] = {
    "a header of 20 GB": lambda: _header([5 * 10**9], 20 * 10**9),
    "a header that is 2 ** 60 long": lambda: struct.pack("<Q", 2**60) + b"{" * 16,
    "a shape that overflows": lambda: _header([2**40, 2**40], 16),
    "a zip bomb": lambda: _zipped(bytes(2**27)),
    "an array of 20 GB": lambda: _npz((5 * 10**9,), bytes(40_000)),
    "an array bomb": lambda: _npz((2**25,), bytes(2**27)),
    "one number seen 10 ** 12 times": lambda: _saved({"a": torch.ones(1).expand(10**6, 10**6)}),
    "a byte array of 10 ** 15": (
        lambda: (
            b"\x80\x02c__builtin__\nbytearray\n\x8a\x07"
            + (10**15).to_bytes(7, "little")
            + b"\x85R."
        )
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_weights_file_takes_no_more_memory_than_it_is_worth(here: Path, claim: str) -> None:
    (here / "bomb.pt").write_bytes(CLAIMS[claim]())
    with pytest.raises((Damaged, ValueError), match=r"bomb\.pt"):
        read(here / "bomb.pt")
    with pytest.raises(Damaged, match=r"bomb\.pt"):
        files.load(here / "bomb.pt")


def test_tensors_without_values_are_refused_by_name(here: Path) -> None:
    for tensor in (torch.empty(10**6, 10**6, device="meta"), torch.eye(3).to_sparse()):
        torch.save({"layer.weight": tensor}, here / "odd.pt")
        with pytest.raises(ValueError, match=r"layer\.weight of .*odd\.pt is"):
            read(here / "odd.pt")


def test_a_deep_record_is_damage_and_no_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.json, "dumps", lambda *args, **options: "[" * 100_000)
    files.save(here / "deep.safetensors", {}, {})
    monkeypatch.undo()
    with pytest.raises(Damaged, match=r"deep\.safetensors"):
        files.load(here / "deep.safetensors")


def test_a_pickle_named_as_a_checkpoint_is_not_opened(here: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, ("ran", "w")

    (here / "run").write_bytes(pickle.dumps(Trap()))
    restore = lambda path: checkpoints.restore(nn.Linear(1, 1), path)  # noqa: E731
    for load in (checkpoints.load, experiments.restored, read, restore):
        with pytest.raises(ValueError, match=r"run (is|holds)"):
            load("run")
    assert not (here / "ran").exists()
