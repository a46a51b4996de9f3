"""A small language model with rotary positions, and the reader of llama2.c's files of one.

Touvron et al. 2023 (arXiv:2302.13971): blocks of causal attention and a gated MLP, each behind an
RMS norm. Positions are rotations of queries and keys (Su et al. 2021, arXiv:2104.09864), so there
is no table of positions.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.runtime.checks import positive
from metalearn.runtime.files import Damaged, open_file

EPSILON = 1e-5  # of the norms, as llama2.c has it
BASE = 10_000.0  # of the wavelengths of the rotations
LARGEST = 2**20  # that a size in a file's header may be


class DecoderBlock(nn.Module):
    """Causal attention, then a gated MLP, each added to the stream after a norm of its input.

    Args:
        width: features of a token.
        heads: of the queries.
        key_value_heads: of the keys and values; several heads of the queries share one.
        hidden: features inside the MLP.
    """

    def __init__(self, width: int, heads: int, key_value_heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_value_heads = key_value_heads
        features = width // heads
        self.norm1 = nn.RMSNorm(width, eps=EPSILON)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, key_value_heads * features, bias=False)
        self.value = nn.Linear(width, key_value_heads * features, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=EPSILON)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        """Stream (examples, tokens, width) -> the same shape."""
        stream = stream + self.attention(self.norm1(stream))
        inputs = self.norm2(stream)
        return stream + self.down(F.silu(self.gate(inputs)) * self.up(inputs))

    def attention(self, tokens: Tensor) -> Tensor:
        """Every token attends to itself and to those before it."""
        # (examples, heads, tokens, features)
        query = self.query(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key = self.key(tokens).unflatten(-1, (self.key_value_heads, -1)).transpose(1, 2)
        value = self.value(tokens).unflatten(-1, (self.key_value_heads, -1)).transpose(1, 2)
        query = rotated(query)
        key = rotated(key)
        groups = self.heads // self.key_value_heads
        key = key.repeat_interleave(groups, 1)
        value = value.repeat_interleave(groups, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.project(mixed.transpose(1, 2).flatten(2))


def rotated(features: Tensor) -> Tensor:
    """Rotate neighbouring pairs of features by angles in proportion to the token's position.

    Pair i of d/2 at position t turns by `t * 10000^(-2i/d)`. A product of a query and a key then
    depends on the difference of their positions alone.

    Args:
        features: (..., tokens, d).

    Returns:
        The same shape.

    Example:
        >>> ones = torch.ones(1, 1, 3, 2)
        >>> [round(float(value), 3) for value in rotated(ones)[0, 0, :, 0]]
        [1.0, -0.301, -1.325]
    """
    tokens, size = features.shape[-2:]
    pairs = torch.arange(0, size, 2, dtype=torch.float32, device=features.device)  # (d / 2,)
    positions = torch.arange(tokens, dtype=torch.float32, device=features.device)
    angles = positions[:, None] / BASE ** (pairs / size)  # (tokens, d / 2)
    cosine = angles.cos().to(features.dtype)
    sine = angles.sin().to(features.dtype)
    first = features[..., 0::2]
    second = features[..., 1::2]
    turned = (first * cosine - second * sine, first * sine + second * cosine)
    return torch.stack(turned, -1).flatten(-2)  # (..., tokens, d / 2, 2) -> (..., tokens, d)


class Decoder(nn.Module):
    """The body of a language model: from embeddings to features of the same width.

    Args:
        width: features of a token.
        depth: number of blocks.
        heads: of the queries; they divide `width` into even parts.
        key_value_heads: of keys and values; by default as many. They divide `heads`.
        hidden: features inside each MLP; by default 8/3 of the width.

    Raises:
        ValueError: the heads do not divide the width.

    Example:
        >>> body = Decoder(width=16, depth=2, heads=2)
        >>> body(torch.rand(3, 5, 16)).shape
        torch.Size([3, 5, 16])
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        key_value_heads: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        shared = heads if key_value_heads is None else key_value_heads
        inner = max(1, 8 * width // 3) if hidden is None else hidden
        width, depth, heads = positive(width=width, depth=depth, heads=heads)
        shared, inner = positive(key_value_heads=shared, hidden=inner)
        if width % (2 * heads) or heads % shared:
            raise ValueError(
                f"width={width}, heads={heads} and key_value_heads={shared} do not fit: a head"
                " needs an even number of features, and each key-value head equally many heads"
            )
        self.width = width
        blocks = [DecoderBlock(width, heads, shared, inner) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.RMSNorm(width, eps=EPSILON)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (examples, tokens, width) -> the same shape."""
        return self.norm(self.blocks(embeddings))


class LanguageModel(nn.Module):
    """A table of tokens, a decoder, and a linear output.

    Its `decoder` is a body for `sequence_model`.

    Args:
        vocabulary: number of tokens.
        width: features of a token.
        depth: number of blocks.
        heads: of the queries.
        key_value_heads: as in `Decoder`.
        hidden: as in `Decoder`.

    Example:
        >>> model = LanguageModel(vocabulary=7, width=16, depth=2, heads=2)
        >>> model(torch.tensor([[1, 6, 3]])).shape
        torch.Size([1, 3, 7])
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        *,
        key_value_heads: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        (vocabulary,) = positive(vocabulary=vocabulary)
        self.tokens = nn.Embedding(vocabulary, width)
        self.decoder = Decoder(width, depth, heads, key_value_heads=key_value_heads, hidden=hidden)
        self.output = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (examples, tokens) -> logits of the next token (examples, tokens, tokens)."""
        try:
            tokens = self.tokens(ids)
        except IndexError as error:
            # Only now are the ids read: comparing values would keep tasks from being stacked.
            last = self.tokens.num_embeddings - 1
            raise ValueError(
                f"token ids run from {int(ids.min())} to {int(ids.max())}, but the table has 0 to"
                f" {last}: LanguageModel(vocabulary=)"
            ) from error
        return self.output(self.decoder(tokens))


class _Header(NamedTuple):
    """The seven int32 that such a file begins with."""

    width: int
    hidden: int
    depth: int
    heads: int
    key_value_heads: int
    vocabulary: int
    positions: int


def read_llama2c(path: str | os.PathLike[str]) -> LanguageModel:
    """Read a language model from a file of llama2.c: seven int32, then float32 values.

    The order is: token table, gains of the first norms, queries, keys, values and projections of
    all blocks, gains of the second norms, gate (w1), down (w2) and up (w3) of all blocks, the last
    norm's gains, two tables of rotations that are not needed here, and the output's weights, if
    they are not the token table (the vocabulary's sign says so).

    Args:
        path: such as stories260K.bin: 260,032 parameters, trained on TinyStories.

    Returns:
        The model. A shared table is tied, as one parameter.

    Raises:
        FileNotFoundError: there is no such file.
        metalearn.runtime.files.Damaged: the sizes in the header do not fit each other or the file.
    """
    place = Path(path)
    with open_file(place) as file:
        content = file.read()
    header = _header(content, place)
    shared = header.vocabulary > 0
    # The weights are overwritten; building must not advance the caller's generator.
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(
            abs(header.vocabulary),
            header.width,
            header.depth,
            header.heads,
            key_value_heads=header.key_value_heads,
            hidden=header.hidden,
        )
    if shared:
        model.output.weight = model.tokens.weight
    # Two tables, which are computed here instead.
    rotations = torch.empty(2 * header.positions, header.width // header.heads // 2)
    stored = [*_in_order(model), rotations]
    if not shared:
        stored.append(model.output.weight)
    needed = sum(tensor.numel() for tensor in stored)
    values = torch.frombuffer(bytearray(content[28:]), dtype=torch.float32)
    if len(values) != needed:
        raise Damaged(
            f"{place} has {len(values):,} numbers after its header, but {header} needs {needed:,};"
            " it is truncated or another format; fetch it again"
        )
    _fill(stored, values)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise Damaged(f"{place} holds numbers that are not finite; fetch it again")
    return model


def _header(content: bytes, path: Path) -> _Header:
    """The header of a file; raises Damaged if its sizes are impossible."""
    if len(content) < 28 or len(content) % 4:
        raise Damaged(f"{path} has {len(content):,} bytes: it is no whole model of llama2.c")
    header = _Header(*struct.unpack("<7i", content[:28]))
    sizes = [abs(size) for size in header]
    positive_sizes = min(header._replace(vocabulary=1)) >= 1 and header.vocabulary
    fits = positive_sizes and max(sizes) <= LARGEST
    # Sizes that a file of this length cannot hold are refused before memory is taken.
    numbers = header.width * (sizes[5] + header.depth * (2 * header.width + 3 * header.hidden))
    fits = fits and 4 * numbers <= len(content)
    if not fits or header.width % (2 * header.heads) or header.heads % header.key_value_heads:
        raise Damaged(
            f"{path} does not begin with the sizes of a model of llama2.c ({header}); name a file"
            " such as stories260K.bin"
        )
    return header


def _in_order(model: LanguageModel) -> list[Tensor]:
    """The parameters in the order of the file, without an output of its own."""
    kinds = ("norm1", "query", "key", "value", "project", "norm2", "gate", "down", "up")
    parameters: list[Tensor] = [model.tokens.weight]
    for kind in kinds:
        parameters += [getattr(block, kind).weight for block in model.decoder.blocks]
    return [*parameters, model.decoder.norm.weight]


def _fill(parameters: list[Tensor], values: Tensor) -> None:
    """Copy values into parameters, one after the other."""
    place = 0
    with torch.no_grad():
        for parameter in parameters:
            end = place + parameter.numel()
            parameter.copy_(values[place:end].view_as(parameter))
            place = end
