"""Frozen pretrained transformers: what trains, what it counts, and what stays bit-equal."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn.data.sequences import bit_memory, bit_xor, listops
from metalearn.models import LanguageModel, sequence_model
from metalearn.network.norm import norm_parameters
from tests.helpers import body_of_two_blocks
from transfer import (
    compare,
    copied,
    finetune,
    fresh,
    frozen_transformer,
    initialize,
    mean_var,
    normal,
    permuted,
    xavier,
)

WIDTH = 16


def decoder(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return LanguageModel(vocabulary=9, width=WIDTH, depth=2, heads=2).decoder


def count(model: nn.Module) -> int:
    """The parameters that train."""
    return sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)


def test_the_count_is_the_papers_on_a_body_of_its_shape() -> None:
    # 4 d L of norms, 2 d of the last norm, d a position, input and output.
    width, depth, tokens = 24, 2, 64
    model = sequence_model(body_of_two_blocks(width), inputs=16, outputs=10, tokens=tokens)
    frozen_transformer(model)
    norms = 4 * width * depth + 2 * width
    assert count(model) == norms + tokens * width + (16 * width + width) + (10 * width + 10)


def test_the_count_of_vit_b_is_the_papers() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        network = torchvision.models.vit_b_16(weights=None)
    # The body is not run: on the meta device there are no numbers.
    trained = frozen_transformer(network)
    norms = [name for name in trained if name in set(norm_parameters(network))]
    sizes = {name: tensor.numel() for name, tensor in network.named_parameters()}
    assert sum(sizes[name] for name in norms) == 4 * 768 * 12 + 2 * 768


def test_counts_of_gpt_2_and_bert() -> None:
    transformers = pytest.importorskip("transformers")
    body = transformers.GPT2Model(transformers.GPT2Config())
    model = sequence_model(body, inputs=16, outputs=10, tokens=64)
    trained = frozen_transformer(model)
    # The paper's numbers for CIFAR-10: 36,864 of norms, 13,056 of the input, 7,680 of the output
    # without its bias, 49,152 of the positions that are used, 64 of 1,024.
    assert 4 * 768 * 12 == 36_864 and 17 * 768 == 13_056 and 10 * 768 == 7_680
    table = 1024 * 768
    assert count(model) == 36_864 + 2 * 768 + 13_056 + 7_680 + 10 + table
    assert 36_864 + 13_056 + 7_680 + 64 * 768 == 106_752
    assert "body.wpe.weight" in trained and "body.wte.weight" not in trained
    config = transformers.BertConfig(
        num_hidden_layers=2, hidden_size=24, num_attention_heads=2, intermediate_size=32
    )
    bert = sequence_model(transformers.BertModel(config), vocabulary=7, outputs=3, tokens=12)
    trained = frozen_transformer(bert)
    assert "body.embeddings.position_embeddings.weight" in trained
    assert "body.embeddings.word_embeddings.weight" not in trained
    # Two norms a block and that of the embeddings; the new table of 7 tokens trains.
    norms = 2 * 24 * (2 * 2 + 1)
    assert count(bert) == norms + 512 * 24 + 7 * 24 + (3 * 24 + 3)


def test_masks_reach_gpt_2() -> None:
    transformers = pytest.importorskip("transformers")
    config = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 9}
    config |= {"bos_token_id": 0, "eos_token_id": 0}
    body = transformers.GPT2Model(transformers.GPT2Config(**config))
    inputs = torch.randn(1, 9, 4, requires_grad=True)
    for causal, later in ((None, False), (True, False), (False, True)):
        model = sequence_model(body, inputs=4, outputs=3, tokens=9, last=9, causal=causal).eval()
        changes = torch.autograd.grad(model(inputs)[0, 3].sum(), inputs)[0][0].abs().sum(-1)
        assert bool((changes[4:] > 0).all()) == later and bool((changes[:4] > 0).all())
    # With positions of zero, a model without a causal mask ignores the order.
    model = sequence_model(body, inputs=4, outputs=3, tokens=9, causal=False).eval()
    nn.init.zeros_(body.wpe.weight)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4, 8])
    torch.testing.assert_close(model(inputs[:, order]), model(inputs), rtol=0, atol=1e-6)
    eager = transformers.GPT2Model(transformers.GPT2Config(**config, attn_implementation="eager"))
    model = sequence_model(eager, inputs=4, outputs=3, tokens=9, causal=False)
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        model(inputs)
    head = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
    with pytest.raises(ValueError, match="takes no embeddings of width 16"):
        sequence_model(head, inputs=4, outputs=3, tokens=9)


def test_what_is_frozen_is_bit_equal_after_training() -> None:
    data = bit_memory(24, bits=20, patch=5)
    model = sequence_model(decoder(), **data.dimensions)
    before = copy.deepcopy(model.state_dict())
    train = finetune(data, data, steps=12, batch=8, lr=1e-2, frozen=frozen_transformer)
    curve = train(model, seed=0)
    trained = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    norms = {name for name in before if "norm" in name}
    assert (
        trained
        == {"input.weight", "input.bias", "positions", "output.weight", "output.bias"} | norms
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name
    assert curve.test_counts.keys() == {0, 1} and sum(curve.test_counts.values()) == 24 * 20


def test_parts_are_those_of_the_ablation() -> None:
    model = sequence_model(decoder(), inputs=3, outputs=2, tokens=4)
    parts = ("output", "norms", "input", "positions")
    sizes = []
    for number in range(1, 5):
        frozen_transformer(model, parts=parts[:number])
        sizes.append(count(model))
    # RMS norms have gains alone: 2 a block and the last.
    added = [2 * WIDTH + 2, 5 * WIDTH, 4 * WIDTH, 4 * WIDTH]
    assert sizes == [sum(added[: number + 1]) for number in range(4)]
    with pytest.raises(ValueError, match="no part 'attention' to train; choose output, norms"):
        frozen_transformer(model, parts=("attention",))


class Tokens(nn.Module):
    """A language model whose tables are inside the body."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"wte": nn.Embedding(9, 8), name: nn.Embedding(5, 8)})
        self.body["blocks"] = body_of_two_blocks(8)
        self.head = nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body["blocks"](self.body["wte"](ids)).mean(1))


def test_positions_train_and_the_token_table_of_the_body_never() -> None:
    trained = frozen_transformer(Tokens("wpe"))
    assert "body.wpe.weight" in trained and "body.wte.weight" not in trained
    trained = frozen_transformer(Tokens("places"))
    assert "body.places.weight" not in trained and "body.wte.weight" not in trained
    assert "body.places.weight" in frozen_transformer(Tokens("places"), positions="body.places")
    # A new table before the body is the input.
    model = nn.Sequential(nn.Embedding(9, 8), body_of_two_blocks(8), nn.Linear(8, 2))
    assert frozen_transformer(model)[0] == "0.weight"
    # The first layer of a network of one block is no input.
    block = nn.TransformerEncoderLayer(8, 2, 16)
    single = nn.Sequential(block, nn.Linear(8, 2))
    assert frozen_transformer(single) == [*(f"0.{n}" for n in NORMS), "1.weight", "1.bias"]


NORMS = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")


def test_starts_of_the_body_leave_input_and_output_fresh() -> None:
    data = bit_xor(4)
    weights = decoder(seed=1)
    starts = {
        "pretrained": copied(weights),
        "statistics": mean_var(weights),
        "permuted": permuted(weights),
        "normal": normal(0.02),
        "xavier": xavier(),
    }
    for name, source in starts.items():
        model = sequence_model(decoder(), **data.dimensions)
        before = copy.deepcopy(model.state_dict())
        report = initialize(model, {"body": source, "": fresh()})
        assert torch.equal(model.input.weight, before["input.weight"]), name
        assert torch.equal(model.output.weight, before["output.weight"]), name
        matrix = "body.blocks.0.gate.weight"
        assert report[matrix].how == ("copied" if name == "pretrained" else "drawn")
        assert not torch.equal(model.state_dict()[matrix], before[matrix]), name
    other = LanguageModel(vocabulary=9, width=8, depth=2, heads=2).decoder
    model = sequence_model(decoder(), **data.dimensions)
    with pytest.raises(ValueError, match=r"\(8, 8\) in the weights and \(16, 16\)"):
        initialize(model, {"body": copied(other), "": fresh()})


def test_compare_takes_sequences() -> None:
    data = bit_xor(32, seed=0)
    weights = decoder(seed=1)

    def build() -> nn.Module:
        body = LanguageModel(vocabulary=9, width=WIDTH, depth=2, heads=2).decoder
        return sequence_model(body, **data.dimensions)

    train = finetune(data, bit_xor(64, seed=1), steps=4, batch=8, frozen=frozen_transformer)
    starts = {"random": {"": fresh()}, "pretrained": {"body": copied(weights), "": fresh()}}
    layers = ["body.blocks.0", "body.blocks.1"]
    result = compare(starts, build, train, train.probe(64), seeds=[0, 1], layers=layers)
    assert len(result.of("pretrained")) == 2 and "pretrained" in str(result)


def test_the_loss_is_the_mean_over_all_labels() -> None:
    data = bit_memory(8, bits=20, patch=5)
    model = sequence_model(decoder(), **data.dimensions, dropout=0.0)
    expected = F.cross_entropy(model(data.inputs).flatten(0, 1), data.targets.flatten())
    curve = finetune(data, data, steps=1, batch=8)(model, seed=0)
    assert curve.losses[0] == pytest.approx(expected.item(), rel=1e-5)


def test_several_labels_that_do_not_fit_are_refused() -> None:
    data = bit_xor(16)
    model = sequence_model(decoder(), inputs=1, outputs=2, tokens=10)
    with pytest.raises(ValueError, match=r"puts out \(2,\) for an example of 5 labels"):
        finetune(data, data, steps=1)(model, seed=0)
    with pytest.raises(ValueError, match="these have 5 labels each"):
        finetune(data, data, steps=1, images=4)
    with pytest.raises(ValueError, match="these have 5 labels each"):
        finetune(data, data, steps=1, balance="batches")
    with pytest.raises(ValueError, match="and another part"):
        finetune(data, bit_xor(16, bits=4), steps=1)
    with pytest.raises(TypeError, match="give Sequences for all parts"):
        finetune(data, [(torch.rand(10, 1), 0)], steps=1)


def test_balanced_losses_weigh_labels_by_their_frequency() -> None:
    inputs = bit_memory(16, bits=20, patch=5)
    train = finetune(inputs, inputs, steps=3, batch=8, balance="loss")
    assert train(sequence_model(decoder(), **inputs.dimensions), seed=0).final >= 0


def test_a_training_repeats_by_its_seed() -> None:
    data = listops(24, shortest=8, longest=24)
    train = finetune(data, data, steps=4, batch=8, frozen=frozen_transformer)

    def losses(seed: int) -> tuple[float, ...]:
        body = decoder()  # from a fixed seed, as are input and output
        return train(sequence_model(body, **data.dimensions, dropout=0.5), seed=seed).losses

    assert losses(3) == losses(3)
    assert losses(3) != losses(4)


@pytest.mark.parametrize("ids", [False, True])
def test_a_frozen_random_body_learns_xor(ids: bool) -> None:
    train_set, test_set = bit_xor(4096, ids=ids, seed=0), bit_xor(512, ids=ids, seed=1)
    torch.manual_seed(0)
    body = LanguageModel(vocabulary=2, width=16, depth=2, heads=4).decoder
    model = sequence_model(body, **train_set.dimensions, dropout=0.0)
    initialize(model, {"body": xavier(), "": fresh()})
    options = {"steps": 200, "batch": 16, "lr": 2e-2, "evaluate_every": 200}
    train = finetune(train_set, test_set, frozen=frozen_transformer, **options)
    assert train(model, seed=0).final > 0.95
