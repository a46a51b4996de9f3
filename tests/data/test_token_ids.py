"""Token ids stay integers on their way from a data set into an embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from metalearn.data.images import in_memory
from metalearn.tasks import FewShot
from tests.helpers import Listed
from transfer import finetune

# Ids of 0 and 1 alone could be taken for pixels.
BITS = torch.tensor([[0, 1, 1], [1, 1, 0], [1, 0, 1], [0, 0, 0]])
LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_token_ids_are_not_changed(dtype: torch.dtype) -> None:
    for ids in (BITS, BITS * 499, -BITS, BITS[:, None], BITS[:, 0]):
        inputs = in_memory(TensorDataset(ids.to(dtype), LABELS))[0]
        assert inputs.dtype == torch.int64
        assert torch.equal(inputs, ids)


def test_arrays_of_token_ids_are_not_changed() -> None:
    inputs = in_memory(Listed([(np.array([3, 700]), 0), (np.array([1, 0]), 1)]))[0]
    assert inputs.dtype == torch.int64 and inputs.tolist() == [[3, 700], [1, 0]]


def test_an_embedding_trains_on_token_ids() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(2, 4), nn.Flatten(), nn.Linear(12, 2))
    data = TensorDataset(BITS.repeat(4, 1), BITS[:, 1].repeat(4))
    curve = finetune(data, data, steps=60, batch=8, lr=0.1)(network, seed=0)
    assert curve.final == 1


def test_an_id_outside_of_the_table_is_told_the_table() -> None:
    network = nn.Sequential(nn.Embedding(2, 4), nn.Flatten(), nn.Linear(12, 2))
    data = TensorDataset(BITS + 1, LABELS)
    with pytest.raises(ValueError, match=r"layer '0' \(Embedding\).* give integers from 0 to 1"):
        finetune(data, data, steps=1)(network, seed=0)


def test_few_shot_tasks_hold_token_ids() -> None:
    support, _ = FewShot(TensorDataset(BITS + 5, LABELS), 2, 1, 1, tasks=1)[0]
    assert support.inputs.dtype == torch.int64 and int(support.inputs.min()) == 5


def test_an_item_that_is_no_token_among_tokens_is_named() -> None:
    mixed = Listed([(torch.tensor([1, 2]), 0), (torch.tensor([1.0, 2.5]), 1)])
    with pytest.raises(TypeError, match=r"item 1 of Listed is torch.float32 but item 0 is .*int64"):
        in_memory(mixed)
    # Images of integers have no known range, and are refused as before.
    with pytest.raises(TypeError, match=r"holds torch.int64; give uint8 images"):
        in_memory(Listed([(torch.zeros(1, 2, 2, dtype=torch.int64), 0)]))
