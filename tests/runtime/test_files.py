"""Files are whole or absent, and never unpickled."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest
import torch

from metalearn.runtime import files


def test_tensors_and_record_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "double": torch.rand(3, 2, dtype=torch.float64),
        "scalar": torch.tensor(3),
        "none": torch.empty(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.rand(4).bfloat16(),
        "strided": torch.zeros(31)[::31],
        "turned": torch.rand(3, 4).T,
        "flag": torch.tensor([True, False]),
    }
    shared = torch.rand(4)
    files.save(
        tmp_path / "x.safetensors", {**tensors, "a": shared, "b": shared}, {"step": 3, "name": "é"}
    )
    loaded, record = files.load(tmp_path / "x.safetensors")
    assert record == {"step": 3, "name": "é"}
    assert loaded.keys() == {*tensors, "a", "b"}
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )


def test_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    files.save(tmp_path / "x.safetensors", {"weight": torch.ones(2)})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["weight"], torch.ones(2))


def test_damage_is_detected_and_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    files.save(path, {"weight": torch.rand(100)}, {"step": 1})
    whole = path.read_bytes()
    bit, word = (
        whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        whole.replace(b'step\\": 1', b'step\\": 2'),
    )
    for broken in (whole[:-1], whole[:20], b"", bit, word):
        assert broken != whole
        path.write_bytes(broken)
        with pytest.raises(files.Damaged, match=r"x\.safetensors"):
            files.load(path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "x.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(files.Damaged):
        files.load(tmp_path / "x.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(files.Damaged, match="carries no checksum"):
        files.load(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        files.load(tmp_path / "y.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    files.write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write .*No space left.*unchanged"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write_atomically(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
