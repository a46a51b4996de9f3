"""Any transformer as a model of sequences: what it takes, its masks, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from metalearn.data.sequences import bit_memory, bit_xor, listops
from metalearn.models import LanguageModel, SmallViT, sequence_model
from metalearn.models.transformer import SequenceModel
from metalearn.network.attention_mask import attention_masked
from metalearn.network.layers import head, layers
from metalearn.network.positions import position_tables
from tests.helpers import body_of_two_blocks

WIDTH = 24


def vision_transformers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "torchvision": torchvision.models.VisionTransformer(16, 4, 2, 2, WIDTH, 32),
        "timm": timm.create_model(
            "vit_tiny_patch16_224", embed_dim=WIDTH, depth=2, num_heads=2, img_size=32
        ),
        "SmallViT": SmallViT(width=WIDTH, depth=2),
    }


def bodies() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    decoder = LanguageModel(vocabulary=9, width=WIDTH, depth=2, heads=2).decoder
    return {"encoder": body_of_two_blocks(WIDTH), "decoder": decoder, **vision_transformers()}


BODIES = bodies()


def built(name: str, **options: object) -> SequenceModel:
    torch.manual_seed(1)
    sizes = {"inputs": 4, "outputs": 3, "tokens": 9, **options}
    return sequence_model(copy.deepcopy(BODIES[name]), **sizes).eval()


def gradient(model: nn.Module, token: int) -> Tensor:
    """How much each input token changes the output of one token, (tokens,)."""
    torch.manual_seed(2)
    inputs = torch.randn(1, 9, 4, requires_grad=True)
    return torch.autograd.grad(model(inputs)[0, token].sum(), inputs)[0][0].abs().sum(-1)


@pytest.mark.parametrize("name", BODIES)
def test_every_body_gives_one_answer_or_one_for_each_token(name: str) -> None:
    inputs = torch.randn(2, 9, 4)
    assert built(name)(inputs).shape == (2, 3)
    assert built(name, last=4, labels=5)(inputs).shape == (2, 20, 3)
    assert built(name)(inputs[:, :5]).shape == (2, 3)
    assert built(name).positions.shape == (9, WIDTH)


@pytest.mark.parametrize("name", BODIES)
def test_causal_attention_sees_no_later_token(name: str) -> None:
    changes = gradient(built(name, last=9, causal=True), 3)
    assert bool((changes[:4] > 0).all()) and bool((changes[4:] == 0).all())


@pytest.mark.parametrize("name", BODIES)
def test_attention_that_is_not_causal_sees_all_tokens(name: str) -> None:
    assert bool((gradient(built(name, last=9, causal=False), 3) > 0).all())
    # Without a mask a body is as it was built.
    later = gradient(built(name, last=9), 3)[4:]
    assert bool((later == 0).all()) == (name == "decoder")


@pytest.mark.parametrize("name", [name for name in BODIES if name != "decoder"])
def test_without_positions_and_causality_the_order_of_tokens_does_not_matter(name: str) -> None:
    model = built(name, causal=False)  # new positions are zeros
    inputs = torch.randn(1, 9, 4)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4, 8])  # the last token is read
    torch.testing.assert_close(model(inputs[:, order]), model(inputs), rtol=0, atol=1e-6)
    nn.init.normal_(model.positions)
    assert not torch.allclose(model(inputs[:, order]), model(inputs), rtol=0, atol=1e-5)
    # A causal body tells the order from what each token sees.
    causal = built(name, causal=True)
    assert not torch.allclose(causal(inputs[:, order]), causal(inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BODIES)
def test_padding_changes_nothing(name: str) -> None:
    torch.manual_seed(3)
    sizes = {"vocabulary": 7, "outputs": 3, "tokens": 9, "padding": 0}
    model = sequence_model(copy.deepcopy(BODIES[name]), **sizes).eval()
    ids = torch.randint(1, 7, (2, 9))
    ids[0, 5:] = 0
    torch.testing.assert_close(model(ids)[:1], model(ids[:1, :5]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(ids)[1:], model(ids[1:]), rtol=1e-4, atol=1e-5)


def test_masks_keep_the_biases_of_a_layer() -> None:
    class Biased(nn.Module):
        def forward(self, tokens: Tensor, bias: Tensor, *, causal: bool = False) -> Tensor:
            heads = tokens[:, None]
            return nn.functional.scaled_dot_product_attention(
                heads, heads, heads, None if causal else bias, is_causal=causal
            )

    tokens, bias = torch.randn(2, 1, 4, 8)[:, 0, None].expand(2, 2, 4, 8)[0], torch.randn(4, 4)
    later = torch.ones(4, 4, dtype=torch.bool).triu(1)
    with attention_masked(Biased(), causal=True):
        masked = Biased()(tokens, bias)
    torch.testing.assert_close(masked, Biased()(tokens, bias.masked_fill(later, -torch.inf)))
    with attention_masked(Biased(), causal=False):
        lifted = Biased()(tokens, bias.masked_fill(later, -torch.inf))
    torch.testing.assert_close(lifted, Biased()(tokens, bias.masked_fill(later, 0.0)))


def test_the_input_is_orthogonal_and_the_output_is_the_head() -> None:
    model = built("encoder", inputs=16)
    product = model.input.weight.T @ model.input.weight
    torch.testing.assert_close(product, 1.41**2 * torch.eye(16), rtol=1e-4, atol=1e-4)
    assert not bool(model.input.bias.any()) and not bool(model.positions.any())
    assert layers(model)[0] == "input" and head(model) == "output"


def test_weights_of_the_whole_network_fit_the_body_by_name() -> None:
    for name, network in vision_transformers().items():
        model = built(name)
        for path, tensor in model.body.state_dict().items():
            assert torch.equal(tensor, network.state_dict()[path]), (name, path)


def test_models_can_be_copied_and_pickled() -> None:
    model = built("SmallViT")
    inputs = torch.randn(2, 9, 4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(inputs), model(inputs))


def test_tasks_say_their_sizes() -> None:
    body = BODIES["decoder"]
    memory = bit_memory(2, bits=20, patch=5)
    assert sequence_model(body, **memory.dimensions)(memory.inputs).shape == (2, 20, 2)
    xor = bit_xor(2, ids=True)
    assert sequence_model(body, **xor.dimensions)(xor.inputs).shape == (2, 5, 2)
    lists = listops(2, shortest=8, longest=30)
    assert sequence_model(body, **lists.dimensions)(lists.inputs).shape == (2, 10)


def test_positions_are_recognised_by_name() -> None:
    body = body_of_two_blocks(WIDTH)
    body.embed_positions = nn.Embedding(9, WIDTH)
    body.tokens = nn.Embedding(9, WIDTH)
    body.composer = nn.Embedding(9, WIDTH)
    assert position_tables(body) == ["embed_positions"]
    assert position_tables(body, "composer") == ["embed_positions", "composer"]
    assert sequence_model(body, inputs=4, outputs=2, tokens=9).positions is None
    assert sequence_model(body, inputs=4, outputs=2, tokens=9, positions=True).positions is not None
    with pytest.raises(ValueError, match=r"tokens=10, but .* has 9 positions .embed_positions."):
        sequence_model(body, inputs=4, outputs=2, tokens=10)
    with pytest.raises(ValueError, match=r"positions='layers.0' is a TransformerEncoderLayer"):
        position_tables(body, "layers.0")


def test_what_takes_no_embeddings_is_refused() -> None:
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for body in (convolutions, torchvision.models.resnet18(), torchvision.models.swin_t()):
        with pytest.raises(ValueError, match="takes no embeddings of width"):
            sequence_model(body, inputs=4, outputs=3, tokens=9)
    layer = nn.TransformerEncoderLayer(8, 2)
    sequence_first = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    with pytest.raises(ValueError, match="build it with batch_first=True"):
        sequence_model(sequence_first, inputs=4, outputs=3, tokens=9)
    with pytest.raises(ValueError, match="no normalisation layer that says its width; give width="):
        sequence_model(nn.Linear(8, 8), inputs=4, outputs=3, tokens=9)
    with pytest.raises(ValueError, match="takes no embeddings of width 16"):
        sequence_model(BODIES["encoder"], inputs=4, outputs=3, tokens=9, width=16)
    with pytest.raises(TypeError, match="the body is 'gpt2', a str"):
        sequence_model("gpt2", inputs=4, outputs=3, tokens=9)


def test_attention_that_cannot_be_masked_is_refused() -> None:
    model = sequence_model(nn.LayerNorm(8), inputs=4, outputs=3, tokens=9, causal=True)
    with pytest.raises(ValueError, match="no attention of LayerNorm could be masked"):
        model(torch.randn(1, 9, 4))


def test_sizes_that_do_not_fit_are_refused() -> None:
    body = BODIES["encoder"]
    with pytest.raises(TypeError, match="inputs=None and vocabulary=None; give one"):
        sequence_model(body, outputs=3, tokens=9)
    with pytest.raises(TypeError, match="inputs=4 and vocabulary=5; give one"):
        sequence_model(body, inputs=4, vocabulary=5, outputs=3, tokens=9)
    with pytest.raises(ValueError, match="padding=0 is for token ids"):
        sequence_model(body, inputs=4, outputs=3, tokens=9, padding=0)
    with pytest.raises(ValueError, match="tokens=0 must be at least 1"):
        sequence_model(body, inputs=4, outputs=3, tokens=0)


def test_sequences_that_do_not_fit_are_refused() -> None:
    features, ids = built("encoder"), built("encoder", inputs=None, vocabulary=7)
    with pytest.raises(ValueError, match=r"sequences of 12 tokens.*takes 1 to 9"):
        features(torch.randn(2, 12, 4))
    with pytest.raises(ValueError, match=r"takes \(examples, tokens, 4\)"):
        features(torch.randn(2, 9, 5))
    with pytest.raises(ValueError, match="token ids run from 0 to 7, but the table has vocab"):
        ids(torch.arange(8)[None])
    with pytest.raises(ValueError, match="token ids run from -1 to 3"):
        ids(torch.tensor([[-1, 3]]))
    with pytest.raises(ValueError, match="this model takes token ids"):
        ids(torch.randn(2, 9))
    with pytest.raises(ValueError, match=r"takes 4 to 9"):
        built("encoder", last=4)(torch.randn(2, 3, 4))
