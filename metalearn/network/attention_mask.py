"""Which tokens attend to which, set from outside, for any transformer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# The arguments of F.scaled_dot_product_attention by position.
ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
# Numbers below this share of the smallest are masks, not biases.
FORBIDDEN = 0.5


@contextmanager
def attention_masked(
    model: nn.Module, *, causal: bool | None = None, present: Tensor | None = None
) -> Iterator[None]:
    """Set the attention mask of every attention layer that runs inside the block.

    Layers are reached that attend through `F.scaled_dot_product_attention` or
    `nn.MultiheadAttention`. Biases that a layer adds to its scores stay.

    Args:
        model: the transformer, for the message.
        causal: True: a token attends to itself and to those before it. False: it attends to all, in
            a model that is causal too. None: as the model has it.
        present: (examples, tokens), False for padding, to which nothing attends.

    Raises:
        ValueError: on leaving, if no attention was seen.

    Example:
        >>> block = nn.TransformerEncoderLayer(8, 2, batch_first=True, dropout=0)
        >>> tokens = torch.rand(1, 4, 8)
        >>> changed = torch.cat([tokens[:, :3], torch.rand(1, 1, 8)], 1)
        >>> with attention_masked(block, causal=True):
        ...     first, second = block(tokens), block(changed)
        >>> torch.equal(first[:, :3], second[:, :3])
        True
    """
    mode = _MaskMode(causal=causal, present=present)
    with mode:
        yield
    if not mode.seen:
        raise ValueError(
            f"no attention of {type(model).__name__} could be masked. A transformer of the library"
            " `transformers` must be built with attn_implementation='sdpa', not 'eager'; attention"
            " in windows cannot be masked; leave causal= out for a body without attention"
        )


class _MaskMode(TorchFunctionMode):
    """Replaces the masks of both of torch's attention functions."""

    def __init__(self, *, causal: bool | None, present: Tensor | None) -> None:
        super().__init__()
        self.causal = causal
        self.present = present
        self.seen = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the function, attention with another mask."""
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            self.seen += 1
            named = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
            return function(**self._dot_product(named))
        if function is F.multi_head_attention_forward:
            self.seen += 1
            return function(*args, **self._multi_head(args[0], kwargs))
        return function(*args, **kwargs)

    def _dot_product(self, named: dict[str, Any]) -> dict[str, Any]:
        query: Tensor = named["query"]
        keys: int = named["key"].shape[-2]
        mask: Tensor | None = named.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            # True where a query may attend.
            mask = _negative(~mask, query)
        causal = bool(named.get("is_causal")) if self.causal is None else self.causal
        bias = self._bias(query, query.shape[-2], keys, mask, causal=causal)
        if bias is not None and self.present is not None:
            absent = _negative(~self.present[:, None, None], query)
            bias = bias + absent  # (examples, 1, queries, keys)
        return {**named, "attn_mask": bias, "is_causal": False}

    def _multi_head(self, query: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        # nn.MultiheadAttention hands over (tokens, examples, width).
        tokens = query.shape[0]
        mask: Tensor | None = kwargs.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            # Here True forbids, unlike in the other function.
            mask = _negative(mask, query)
        causal = bool(kwargs.get("is_causal")) if self.causal is None else self.causal
        changed = {
            **kwargs,
            "attn_mask": self._bias(query, tokens, tokens, mask, causal=causal),
            "is_causal": False,
        }
        if self.present is not None:
            changed["key_padding_mask"] = _negative(~self.present, query)
        return changed

    def _bias(
        self, query: Tensor, queries: int, keys: int, mask: Tensor | None, *, causal: bool
    ) -> Tensor:
        """What is added to the scores, (queries, keys) or with dimensions before these."""
        bias = torch.zeros(queries, keys, dtype=query.dtype, device=query.device)
        if mask is not None:
            limit = FORBIDDEN * torch.finfo(mask.dtype).min
            # A mask that is to be lifted leaves its biases alone.
            bias = mask if self.causal is None else mask.masked_fill(mask < limit, 0)
        if causal:
            later = torch.ones(queries, keys, dtype=torch.bool, device=query.device).triu(1)
            bias = bias.masked_fill(later, -torch.inf)
        return bias


def _negative(forbidden: Tensor, like: Tensor) -> Tensor:
    """Numbers to add to scores: minus infinity where it is forbidden, else 0."""
    zeros = torch.zeros(forbidden.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill(forbidden, -torch.inf)
