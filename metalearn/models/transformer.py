"""Any transformer as a model of sequences: a new input, the body, a new output.

The frozen pretrained transformer of Lu et al. 2021 (arXiv:2103.05247).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn.models.transformer_body import Body, body_of, width_of
from metalearn.network.attention_mask import attention_masked
from metalearn.network.positions import position_tables
from metalearn.runtime.checks import positive

GAIN = 1.41  # of the orthogonal input layer


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model of sequences, as `sequence_model` takes them."""

    outputs: int
    tokens: int
    inputs: int | None = None
    vocabulary: int | None = None
    last: int = 1
    labels: int = 1
    padding: int | None = None

    def __post_init__(self) -> None:
        if (self.inputs is None) == (self.vocabulary is None):
            raise TypeError(
                f"inputs={self.inputs} and vocabulary={self.vocabulary}; give one of them: the"
                " features of a token, or the number of token ids"
            )
        positive(outputs=self.outputs, tokens=self.tokens, last=self.last, labels=self.labels)
        if self.inputs is not None:
            positive(inputs=self.inputs)
        else:
            positive(vocabulary=self.vocabulary)
        if self.padding is not None and (self.vocabulary is None or self.last > 1):
            raise ValueError(
                f"padding={self.padding} is for token ids of which one is read; leave it out"
            )


class SequenceModel(nn.Module):
    """A transformer between a new input and a new output; see `sequence_model`.

    Layers: input (Linear or Embedding), positions (a parameter, unless the body has its own), body,
    output.
    """

    def __init__(
        self, body: Body, sizes: Sizes, *, causal: bool | None, positions: bool, dropout: float
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.causal = causal
        self.kind = body.kind
        self.input = _input_layer(sizes, body.width)
        self.dropout = nn.Dropout(dropout)
        self.positions: nn.Parameter | None = None
        if positions:
            self.positions = nn.Parameter(torch.zeros(sizes.tokens, body.width))
        self.body = body.module
        # The output is registered last: it is the head.
        self.output = nn.Linear(body.width, sizes.labels * sizes.outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Sequences -> logits.

        Args:
            inputs: features (examples, tokens, inputs), or token ids (examples, tokens).

        Returns:
            (examples, outputs); with several labels a sequence (examples, labels, outputs).

        Raises:
            ValueError: there are too many tokens or other features, or an id is outside of the
                table.
        """
        self._check(inputs)
        values = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
        stream = self.input(values)  # (examples, tokens, width)
        if isinstance(self.input, nn.Linear):
            stream = self.dropout(stream)
        if self.positions is not None:
            stream = stream + self.positions[: stream.shape[1]]
        features = self._features(stream, inputs)
        logits = self.output(self._read(features, inputs))  # (examples, last, labels * outputs)
        sizes = self.sizes
        answers = logits.unflatten(-1, (sizes.labels, sizes.outputs)).flatten(1, 2)
        return answers[:, 0] if answers.shape[1] == 1 else answers

    def _features(self, stream: Tensor, inputs: Tensor) -> Tensor:
        """The body's output (examples, tokens, width), with masks if there are any."""
        padding = self.sizes.padding
        present = None if padding is None else inputs != padding
        if self.causal is None and present is None:
            return self.kind.run(self.body, stream)
        with attention_masked(self.body, causal=self.causal, present=present):
            return self.kind.run(self.body, stream)

    def _read(self, features: Tensor, inputs: Tensor) -> Tensor:
        """The features of the tokens that answer, (examples, last, width)."""
        if self.sizes.padding is None:
            return features[:, -self.sizes.last :]
        # The last token that is no padding.
        ends = (inputs != self.sizes.padding).sum(1).clamp(min=1) - 1  # (examples,)
        return features[torch.arange(len(ends), device=ends.device), ends][:, None]

    def _check(self, inputs: Tensor) -> None:
        """Raise ValueError if the model cannot take these sequences."""
        sizes = self.sizes
        tokens = inputs.shape[1] if inputs.ndim > 1 else 0
        if not sizes.last <= tokens <= sizes.tokens:
            raise ValueError(
                f"sequences of {tokens} tokens, {tuple(inputs.shape)}; this model takes"
                f" {sizes.last} to {sizes.tokens}: sequence_model(..., tokens={tokens})"
            )
        if sizes.inputs is not None:
            _check_features(inputs, sizes.inputs)
        if sizes.vocabulary is not None:
            _check_ids(inputs, sizes.vocabulary)


def _check_features(inputs: Tensor, size: int) -> None:
    """Raise ValueError if inputs are no features of this size."""
    real = inputs.is_floating_point() or inputs.dtype == torch.uint8
    if inputs.ndim != 3 or inputs.shape[2] != size or not real:
        raise ValueError(
            f"sequences of {inputs.dtype} {tuple(inputs.shape)}; this model takes (examples,"
            f" tokens, {size}), real numbers: sequence_model(..., inputs=) takes the number of"
            " features"
        )


def _check_ids(inputs: Tensor, vocabulary: int) -> None:
    """Raise ValueError if inputs are no token ids of a table."""
    if inputs.ndim != 2 or inputs.is_floating_point():
        raise ValueError(
            f"sequences of {inputs.dtype} {tuple(inputs.shape)}; this model takes token ids"
            " (examples, tokens), integers: sequence_model(..., inputs=) takes features"
        )
    # A check on a GPU would wait for it at every step; there the table itself fails.
    if inputs.device.type != "cpu" or not inputs.numel():
        return
    lowest, highest = inputs.aminmax()
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(
            f"token ids run from {int(lowest)} to {int(highest)}, but the table has"
            f" vocabulary={vocabulary}: 0 to {vocabulary - 1}"
        )


def _input_layer(sizes: Sizes, width: int) -> nn.Linear | nn.Embedding:
    """A linear layer for features, an embedding for token ids."""
    if sizes.vocabulary is not None:
        return nn.Embedding(sizes.vocabulary, width)
    assert sizes.inputs is not None
    layer = nn.Linear(sizes.inputs, width)
    nn.init.orthogonal_(layer.weight, gain=GAIN)
    nn.init.zeros_(layer.bias)
    return layer


def sequence_model(
    body: nn.Module,
    *,
    outputs: int,
    tokens: int,
    inputs: int | None = None,
    vocabulary: int | None = None,
    last: int = 1,
    labels: int = 1,
    padding: int | None = None,
    causal: bool | None = None,
    positions: bool | None = None,
    width: int | None = None,
    dropout: float = 0.1,
) -> SequenceModel:
    """Put a transformer between a new input layer and a new output layer.

    The input is linear, orthogonal with gain 1.41 and dropout behind it, or an embedding of tokens.
    Positions are a new table of zeros, unless the body has its own. The output is linear and reads
    the last tokens. `Sequences.dimensions` has the sizes for a task:
    `sequence_model(body, **data.dimensions)`.

    Args:
        body: takes embeddings (examples, tokens, width), as `nn.TransformerEncoder` with
            `batch_first=True` and `LanguageModel(...).decoder` do; or takes `inputs_embeds=`, as
            models of the library transformers do (without a head); or is a vision transformer of
            torchvision, timm or `SmallViT`, of which the blocks and the norm behind them are taken.
            It is not copied.
        outputs: classes of a label.
        tokens: of the longest sequence.
        inputs: features of a token; or
        vocabulary: the number of token ids.
        last: how many tokens, from the end, are read.
        labels: that each of them answers.
        padding: the id that stands for no token, at the end of a sequence. It is masked, and the
            last token before it is read.
        causal: whether a token attends to itself and those before it alone; None is as the body has
            it (see `attention_masked`).
        positions: whether to add a new table of positions; by default if the body has none. The
            rotary positions of `LanguageModel` are no table.
        width: of the embeddings; by default that of the body's last norm.
        dropout: behind the linear input.

    Returns:
        The model: layers input, body, output.

    Raises:
        ValueError: the body takes no embeddings, or its positions are fewer than the tokens; the
            width is another than the body's.
        TypeError: `body` is no module, or not one of `inputs` and `vocabulary` is given.

    Example:
        >>> block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> body = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        >>> model = sequence_model(body, inputs=16, outputs=10, tokens=64)
        >>> model(torch.rand(3, 64, 16)).shape
        torch.Size([3, 10])
    """
    if not isinstance(body, nn.Module):
        raise TypeError(f"the body is {body!r:.60}, a {type(body).__name__}; pass a Module")
    sizes = Sizes(outputs, tokens, inputs, vocabulary, last, labels, padding)
    tables = position_tables(body)
    _check_positions(body, tables, tokens)
    return SequenceModel(
        body_of(body, width_of(body) if width is None else width),
        sizes,
        causal=causal,
        positions=not tables if positions is None else positions,
        dropout=dropout,
    )


def _check_positions(body: nn.Module, tables: list[str], tokens: int) -> None:
    """Raise ValueError if a table of positions of the body is too short."""
    for path in tables:
        table = body.get_submodule(path)
        assert isinstance(table, nn.Embedding)
        if table.num_embeddings < tokens:
            raise ValueError(
                f"tokens={tokens}, but {type(body).__name__} has {table.num_embeddings} positions"
                f" ({path}); make the sequences shorter, with larger patches or longest="
            )
