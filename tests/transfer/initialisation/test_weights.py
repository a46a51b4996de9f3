"""Reading weights: every kind of file and object gives the same tensors, and nothing that a file
holds is run.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from metalearn.runtime.files import Damaged, save
from transfer import everywhere, initialize, permuted, transfusion
from transfer.initialisation.weights import read
from transfer.models import build

STATE = {"body.weight": torch.arange(6.0).view(2, 3), "body.bias": torch.tensor([7.0, 8.0])}
Writer = Callable[[Path], None]


def _arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in STATE.items()})


WRITERS: dict[str, Writer] = {
    "safetensors": lambda path: safetensors.torch.save_file(STATE, path),
    "torch": lambda path: torch.save(STATE, path),
    "old torch": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "training checkpoint": lambda path: torch.save(
        {"epoch": 3, "state_dict": STATE, "optimizer": {"state": {}, "lr": 0.1}}, path
    ),
    "npz": _arrays,
    "ours": lambda path: save(path, STATE, {"step": 1}),
}


def equal(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(
        torch.equal(found[name], STATE[name]) for name in STATE
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_tensors_whatever_its_name(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path / "weights")
    found = read(tmp_path / "weights")
    assert equal(found.tensors) and repr(found) == "weights"
    assert found.digest == read(STATE).digest


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_damaged(tmp_path: Path, kind: str, part: float) -> None:
    WRITERS[kind](tmp_path / "weights")
    content = (tmp_path / "weights").read_bytes()
    (tmp_path / "weights").write_bytes(content[: int(part * len(content))])
    with pytest.raises(
        Damaged, match=r"weights is truncated or (no weights|not a safetensors) file"
    ):
        read(tmp_path / "weights")


def test_an_altered_file_of_ours_is_damaged(tmp_path: Path) -> None:
    WRITERS["ours"](tmp_path / "weights")
    content = bytearray((tmp_path / "weights").read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(Damaged, match="does not match its own checksum"):
        read(tmp_path / "weights")


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "was run"))
    torch.save(
        {"state_dict": STATE, "extra": Evil()},
        tmp_path / "torch.pt",
        _use_new_zipfile_serialization=zipped,
    )
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil()))
    np.savez(tmp_path / "arrays.npz", a=np.array([Evil()], dtype=object))
    for name in ("torch.pt", "plain.pkl"):
        with pytest.raises(
            ValueError,
            match=(f"{name} holds more than tensors: .*not opened .*nsupported"),
        ):
            read(tmp_path / name)
    with pytest.raises(Damaged, match=r"arrays\.npz holds something other than complete arrays"):
        read(tmp_path / "arrays.npz")
    assert not (tmp_path / "was run").exists()


def test_a_whole_pickled_model_is_refused_with_the_cure(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"not an allowed global.*save model\.state_dict\(\)"):
        read(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": STATE, "ema": STATE}, r"holds several state dicts \('state_dict', 'ema'\)"),
        ({"epoch": 3}, r"holds no tensors \(only 'epoch'\)"),
        ([1, 2], "holds a list, not a state dict"),
        (torch.ones(2), "holds a Tensor, not a state dict"),
    ],
)
def test_a_file_without_one_state_dict_says_what_it_has(
    tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "weights.pt")


def test_what_is_no_file_or_no_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    with pytest.raises(Damaged, match=r"text\.pt is truncated or no weights file"):
        read(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.pt"):
        read(tmp_path / "absent.pt")
    with pytest.raises(TypeError, match="not int"):
        read(3)


def test_a_models_weights_are_taken_as_they_are_now() -> None:
    model = nn.Linear(2, 2)
    found, before = read(model), model.weight.detach().clone()
    nn.init.zeros_(model.weight)
    assert torch.equal(found.tensors["weight"], before) and repr(found) == "a Linear"


def test_digests_tell_weights_apart() -> None:
    changed = {**STATE, "body.bias": torch.tensor([7.0, 9.0])}
    renamed = {"body.weight": STATE["body.weight"], "head.bias": STATE["body.bias"]}
    assert len({read(state).digest for state in (STATE, changed, renamed)}) == 3


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache of torch's, and no network."""

    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    return tmp_path / "hub" / "checkpoints"


def test_a_torchvision_member_is_read_from_the_cache_and_the_global_generator_is_left(
    cache: Path,
) -> None:
    member = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    torch.manual_seed(0)
    source = build("squeezenet1_1", 1000)
    cache.mkdir(parents=True)
    torch.save(source.state_dict(), cache / Path(member.url).name)
    before = torch.get_rng_state()
    model = build("squeezenet1_1", 2)
    torch.set_rng_state(before)
    report = initialize(model, transfusion(member))
    assert torch.equal(model.features[0].weight, source.features[0].weight)
    assert report["features.0.weight"].source == "copied(SqueezeNet1_1_Weights.IMAGENET1K_V1)"
    assert torch.equal(before, torch.get_rng_state())


def test_a_torchvision_member_without_a_network_says_where_its_file_belongs(cache: Path) -> None:
    member = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    with pytest.raises(
        OSError,
        match=(r"SqueezeNet1_1_Weights\.IMAGENET1K_V1 .*put https://.* at .*checkpoints"),
    ):
        read(member)


@pytest.mark.data
def test_real_weights_are_read_and_fit(data: Path) -> None:
    imagenet = data / "weights" / "squeezenet1_0-imagenet-deepcompression.npz"
    model = build("squeezenet1_0", 2)
    assert initialize(model, transfusion(imagenet)).parameters() == {
        "copied": 735_424,
        "fresh": 1_026,
    }
    initialize(model, everywhere(permuted(imagenet)))
    assert torch.equal(
        model.features[0].weight.flatten().sort().values,
        read(imagenet).tensors["features.0.weight"].flatten().sort().values,
    )
    cifar = read(data / "weights" / "cifar10_resnet20-12fca82f.th")
    assert cifar.tensors["module.conv1.weight"].shape == (16, 3, 3, 3)
    with pytest.raises(
        ValueError, match=r"cifar10_resnet20-12fca82f\.th .*\d+ of \d+ tensors match"
    ):
        initialize(torchvision.models.resnet18(), transfusion(cifar))
