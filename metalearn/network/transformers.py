"""What happens inside any transformer: its attention maps and its residual stream.

Both readers ask the tensors, not the library that a network comes from. Outputs of the network are
the same to the last bit with a reader and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NORMS = (nn.LayerNorm, nn.RMSNorm)

# What a branch adds must equal the change of the stream to this share of its norm.
SAME = 1e-3

# An output counts as unchanged by the scale of the input if it changes by less than this share.
UNCHANGED = 1e-2

Reduce: TypeAlias = Callable[[Tensor], Any]


@contextmanager
def attention(model: nn.Module, reduce: Reduce | None = None) -> Iterator[dict[str, Any]]:
    """A dictionary that fills with the attention map of every attention module as the model runs.

    Args:
        model: a transformer of torch, torchvision, timm, transformers or your own. It is read if it
            attends through `nn.MultiheadAttention` or `F.scaled_dot_product_attention`.
        reduce: from one map (examples, heads, queries, keys) to what is kept of it. By default the
            map itself is kept, which takes much memory for many images.

    Yields:
        `{path of the attention module: map}`, in running order. Rows of a map sum to 1. A module
        that attends twice in one run has its second map under "path#2".

    Raises:
        ValueError: On leaving, if the model ran and no attention was seen.

    Example:
        >>> block = nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> with attention(block) as maps, torch.no_grad():
        ...     _ = block(torch.rand(3, 5, 8))
        >>> maps["self_attn"].shape
        torch.Size([3, 2, 5, 5])
    """
    maps: dict[str, Any] = {}
    running: list[str] = []
    runs = 0

    def keep(weights: Tensor) -> None:
        path = running[-1] if running else ""
        name = path
        repeat = 1
        while name in maps:
            repeat += 1
            name = f"{path}#{repeat}"
        maps[name] = weights if reduce is None else reduce(weights)

    def enter(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: running.append(path)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal runs
        running.pop()
        runs += not running

    handles: list[Any] = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path)))
        handles.append(module.register_forward_hook(leave))
        if isinstance(module, nn.MultiheadAttention):
            handles.append(module.register_forward_hook(_as_without_a_reader, with_kwargs=True))
    try:
        with _AttentionMode(keep):
            yield maps
    finally:
        for handle in handles:
            handle.remove()
    if runs and not maps:
        raise ValueError(
            f"no attention of {type(model).__name__} could be read. A transformer of the library"
            " `transformers` must be built with attn_implementation='sdpa', not 'eager'; attention"
            " in windows (Swin) has no map over the whole image; a network without attention has"
            " none"
        )


def _as_without_a_reader(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """The output of attention from torch's fused path, which a function mode turns off."""
    if module.training:
        return None  # there is no fused path, and dropout must not draw again
    with torch._C.DisableTorchFunction():
        return module.forward(*args, **kwargs)


class _AttentionMode(TorchFunctionMode):
    """Hands the attention weights of both of torch's attention functions to `keep`."""

    def __init__(self, keep: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the function as it was called; read its weights beside it."""
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            self.keep(dot_product_weights(*args, **kwargs))
        elif function is F.multi_head_attention_forward:
            # A second call, since the path that returns weights rounds differently.
            options = {**kwargs, "need_weights": True, "average_attn_weights": False}
            weights: Any = function(*args, **{**options, "training": False})[1]
            self.keep(weights if weights.ndim == 4 else weights[None])
        return output


def dot_product_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 (the signature of torch's function)
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    """The weights `softmax(q k^T scale + mask)` that `F.scaled_dot_product_attention` applies.

    Args:
        query: (examples, heads, queries, features).
        key: (examples, heads, keys, features).
        value: Not used. It and the others are the arguments of torch's function, without dropout.
        attn_mask: True where a query may attend, or numbers that are added to the scores.
        dropout_p: Not used.
        is_causal: Whether a query attends to itself and to earlier keys alone.
        scale: Of the scores; `1 / sqrt(features)` by default.
        enable_gqa: Whether several heads of the query share one of the key.

    Returns:
        (examples, heads, queries, keys).

    Example:
        >>> weights = dot_product_weights(*torch.rand(3, 1, 2, 4, 8), is_causal=True)
        >>> float(weights[0, 0, 0, 1]), round(float(weights[0, 0].sum()), 4)
        (0.0, 4.0)
    """
    if query.ndim == 3:
        query, key = query[:, None], key[:, None]
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * query @ key.mT  # (examples, heads, queries, keys)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1)


@dataclass(frozen=True)
class Branch:
    """One addition to the residual stream: `after = before + added`.

    Attributes:
        norm: path of the norm that the branch begins with.
        path: path of the module whose output was added.
        before: (examples, tokens, features), the stream that entered the norm.
        added: the same shape, the output of the branch.
    """

    norm: str
    path: str
    before: Tensor
    added: Tensor


@contextmanager
def stream(model: nn.Module, reduce: Callable[[Branch], Any] | None = None) -> Iterator[list[Any]]:
    """A list that fills with the branches of a pre-norm transformer as it runs.

    In a pre-norm transformer the stream is what enters a norm: `z_0, z_1, ..., z_2L`. The branch
    that was added between two norms is `f_i = z_(i+1) - z_i`. It must be the output of a module
    that ran between them, which is checked.

    Args:
        model: a transformer whose blocks add `f(norm(z))` to `z`.
        reduce: from one `Branch` to what is kept of it. By default the branch itself is kept.

    Yields:
        The branches, in running order.

    Raises:
        ValueError: No norm of tokens ran; or a change of the stream is not a module's output, as in
            a post-norm transformer or one whose branches run beside each other.

    Example:
        >>> from metalearn.models import SmallViT
        >>> network = SmallViT(width=12, depth=2).eval()
        >>> with stream(network) as branches, torch.no_grad():
        ...     _ = network(torch.rand(2, 3, 32, 32))
        >>> [branch.path for branch in branches][:2]
        ['blocks.0.attention', 'blocks.0.mlp']
    """
    branches: list[Any] = []
    reader = _StreamReader(
        model, lambda branch: branches.append(reduce(branch) if reduce else branch)
    )
    handles: list[Any] = []
    for path, module in model.named_modules():
        if may_be_norm(module):
            handles.append(module.register_forward_pre_hook(reader.norm_hook(path)))
        handles.append(module.register_forward_hook(reader.output_hook(path)))
    try:
        yield branches
    finally:
        for handle in handles:
            handle.remove()
    if reader.ran and not branches:
        raise ValueError(
            f"{type(model).__name__} has no residual stream of tokens: fewer than two of its norms"
            " (LayerNorm, RMSNorm) took (examples, tokens, features)"
        )


def may_be_norm(module: nn.Module) -> bool:
    """Whether a module has the parameters of a norm: vectors alone, and no module inside.

    Example:
        >>> may_be_norm(nn.LayerNorm(4)), may_be_norm(nn.Linear(4, 4))
        (True, False)
    """
    if isinstance(module, NORMS):
        return True
    parameters = list(module.parameters())
    vectors = [parameter.ndim == 1 for parameter in parameters]
    return bool(parameters) and all(vectors) and not list(module.children())


def normalizes(module: nn.Module, tokens: Tensor) -> bool:
    """Whether a module's output on these tokens does not depend on their scale.

    Tells norms of any class from layers that scale their input.

    Example:
        >>> tokens = torch.rand(2, 3, 4)
        >>> normalizes(nn.LayerNorm(4), tokens), normalizes(nn.Identity(), tokens)
        (True, False)
    """
    few = tokens[:1].detach()
    with torch.no_grad():
        once = module.forward(few)
        scaled = module.forward(4 * few)
    return bool((scaled - once).norm() <= UNCHANGED * once.norm())


class _StreamReader:
    """Compares the change of the stream between two norms with the outputs of the modules there."""

    def __init__(self, model: nn.Module, keep: Callable[[Branch], None]) -> None:
        self.model = model
        self.keep = keep
        self.norm = ""
        self.before: Tensor | None = None
        self.outputs: dict[str, Tensor] = {}
        self.ran = False

    def norm_hook(self, path: str) -> Callable[[nn.Module, Any], None]:
        """A hook that takes what enters a norm as the stream at this place."""

        def hook(module: nn.Module, inputs: Any) -> None:
            entering = inputs[0]
            if entering.ndim != 3:
                return  # a norm of queries or keys, which are split into heads
            if self.before is not None and self.before.shape != entering.shape:
                return  # a norm inside a branch, of another width
            if not normalizes(module, entering):
                return
            if self.before is not None:
                self._compare(entering - self.before, path)
            self.norm = path
            self.before = entering.clone()  # what follows may write into it
            self.outputs = {}

        return hook

    def output_hook(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that remembers what a module returned, until the next norm."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if module is self.model:
                self.ran = True
                self.before = None  # the next run starts anew
            first = output[0] if isinstance(output, tuple) and output else output
            if self.before is None or not isinstance(first, Tensor):
                return
            if first.shape == self.before.shape:
                self.outputs[path] = first.clone()

        return hook

    def _compare(self, change: Tensor, path: str) -> None:
        """Keep the branch under the path of the outermost module whose output is the change."""
        assert self.before is not None  # a change has a stream before it
        # The subtraction rounds by the size of the stream, not of the change.
        rounding = 8 * torch.finfo(change.dtype).eps * _norm(self.before)
        bound = SAME * _norm(change) + rounding
        matching = [
            name for name, output in self.outputs.items() if _norm(output - change) <= bound
        ]
        if not matching:
            raise ValueError(
                f"between the norms {self.norm!r} and {path!r} of {type(self.model).__name__} the"
                " stream changes by what no module returned: it is not a pre-norm transformer, or"
                " its branches run beside each other. Build it with norm_first=True, or compare"
                " its blocks with similarity_map"
            )
        outermost = min(matching, key=lambda name: name.count("."))  # the first of several
        self.keep(Branch(self.norm, outermost, self.before, change))


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().norm())
