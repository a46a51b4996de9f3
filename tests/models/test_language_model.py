"""The small language model, and files of llama2.c."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn.data.sequences import text_windows
from metalearn.models import LanguageModel
from metalearn.models.language_model import read_llama2c, rotated
from metalearn.runtime.files import Damaged
from tests.helpers import write_llama2c
from transfer import finetune

STORIES = Path(os.environ.get("METALEARN_DATA", "data")) / "weights" / "stories260K.bin"


def model() -> LanguageModel:
    torch.manual_seed(0)
    network = LanguageModel(vocabulary=7, width=8, depth=2, heads=2, key_value_heads=1, hidden=12)
    for norm in network.modules():
        if isinstance(norm, nn.RMSNorm):
            nn.init.normal_(norm.weight)
    return network


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_gives_back_its_model(tmp_path: Path, shared: bool) -> None:
    network = model()
    if shared:
        network.output.weight = network.tokens.weight
    read = read_llama2c(write_llama2c(network, tmp_path / "model.bin", shared=shared))
    for name, tensor in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    assert (read.output.weight is read.tokens.weight) == shared
    ids = torch.tensor([[1, 5, 2]])
    assert torch.equal(read(ids), network(ids))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abcd" * 20,
        struct.pack("<7i", 8, 12, 2, 3, 1, 7, 6) + bytes(4000),  # 3 heads do not divide 8
        struct.pack("<7i", 8, 12, 2, 2, 1, 0, 6) + bytes(4000),
        struct.pack("<7i", 2**20, 12, 2, 2, 1, 7, 6) + bytes(4000),  # would need terabytes
        struct.pack("<7i", 8, 2**20, 2, 2, 1, 7, 6) + bytes(8000),
        struct.pack("<7i", 8, 12, 2, 2, 1, 7, 6) + bytes(4000),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"model\.bin"):
        read_llama2c(path)


def test_a_truncated_file_and_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = write_llama2c(model(), tmp_path / "model.bin", shared=True)
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(Damaged, match=r"numbers after its header, but .* needs .* truncated"):
        read_llama2c(path)
    path.write_bytes(content[:28] + struct.pack("<f", float("nan")) + content[32:])
    with pytest.raises(Damaged, match="not finite"):
        read_llama2c(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.bin"):
        read_llama2c(tmp_path / "absent.bin")


def test_rotations_keep_lengths_and_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 8, dtype=torch.float64)
    queries = rotated(query.expand(12, 8))
    keys = rotated(key.expand(12, 8))
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(12))
    products = queries @ keys.T  # (positions, positions)
    torch.testing.assert_close(products[3, 1], products[9, 7])
    torch.testing.assert_close(products[0, 0], query @ key)


def test_reading_draws_no_random_number(tmp_path: Path) -> None:
    path = write_llama2c(model(), tmp_path / "model.bin", shared=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    read_llama2c(path)
    assert torch.equal(torch.rand(3), expected)


def test_a_language_model_learns_the_next_character() -> None:
    text = "abcde" * 30
    torch.manual_seed(0)
    network = LanguageModel(vocabulary=5, width=16, depth=1, heads=2)
    parts = [text_windows(text, 32, length=8, seed=seed) for seed in (0, 1)]
    curve = finetune(*parts, steps=40, batch=8, lr=1e-2)(network, seed=0)
    assert curve.final > 0.99


@pytest.mark.skipif(not STORIES.is_file(), reason="needs stories260K.bin in METALEARN_DATA")
def test_the_published_model_predicts_its_own_stories() -> None:
    network = read_llama2c(STORIES).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 260_032
    generator = torch.Generator().manual_seed(0)
    ids = torch.ones(4, 1, dtype=torch.int64)  # token 1 begins a text
    with torch.no_grad():
        for _ in range(60):
            chances = network(ids)[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    assert 2.0 < cost(network, ids) < 3.2  # nats a token; guessing among 512 costs 6.24
    assert cost(network, torch.randint(0, 512, (4, 60), generator=generator)) > 9


def cost(network: nn.Module, ids: torch.Tensor) -> float:
    """The mean cross-entropy of the next token, in nats."""
    with torch.no_grad():
        logits = network(ids[:, :-1])
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_ids_outside_the_table_are_named() -> None:
    with pytest.raises(ValueError, match=r"run from 2 to 7, but the table has 0 to 6"):
        model()(torch.tensor([[2, 7]]))
