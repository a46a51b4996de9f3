"""A small vision transformer, for images of a few dozen pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.runtime.checks import positive

POOLS = ("class", "mean")


class SmallViT(nn.Module):
    """A pre-norm vision transformer with a class token or a mean over patches.

    Dosovitskiy et al. 2021 (arXiv:2010.11929). Each block adds `attention(norm(z))`, then
    `mlp(norm(z))` to the residual stream `z`. Layers: patches, blocks.0 to blocks.{depth - 1},
    norm and head.

    Args:
        classes: Outputs of the head.
        size: Height and width of the images in pixels.
        patch: Height and width of a patch in pixels; it divides `size`.
        width: Features of a token.
        depth: Number of blocks.
        heads: Attention heads of a block; they divide `width`.
        channels: Channels of the images.
        pool: What enters the head: "class" for a class token (position 0), "mean" for the mean
            over patches. A network that pools has no class token.

    Raises:
        ValueError: The patch does not divide the size, the heads do not divide the width, or there
            is no such pool.

    Example:
        >>> network = SmallViT(classes=10, width=24, depth=2)
        >>> network(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        classes: int = 10,
        *,
        size: int = 32,
        patch: int = 4,
        width: int = 96,
        depth: int = 6,
        heads: int = 3,
        channels: int = 3,
        pool: str = "class",
    ) -> None:
        super().__init__()
        classes, size, patch, width = positive(classes=classes, size=size, patch=patch, width=width)
        depth, heads, channels = positive(depth=depth, heads=heads, channels=channels)
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}; choose one of: {', '.join(POOLS)}")
        if size % patch:
            raise ValueError(f"patch={patch} does not divide images of {size} pixels")
        if width % heads:
            raise ValueError(f"heads={heads} do not divide width={width}")
        self.size = size
        self.pool = pool
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        tokens = (size // patch) ** 2 + (pool == "class")
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "class" else None
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (examples, channels, size, size) -> logits (examples, classes)."""
        if images.shape[-2:] != (self.size, self.size):
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {height} x {width} pixels; this network was built for {self.size} x"
                f" {self.size}: SmallViT(size={height})"
            )
        stream = self.patches(images).flatten(2).mT  # (examples, patches, width)
        if self.class_token is not None:
            first = self.class_token.expand(len(stream), -1, -1)
            stream = torch.cat([first, stream], 1)  # (examples, 1 + patches, width)
        stream = self.norm(self.blocks(stream + self.positions))
        pooled = stream[:, 0] if self.pool == "class" else stream.mean(1)
        return self.head(pooled)


class Block(nn.Module):
    """One transformer block: attention, then an MLP, each added to the stream after its norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, stream: Tensor) -> Tensor:
        """Stream (examples, tokens, width) -> the same shape."""
        stream = stream + self.attention(self.norm1(stream))
        return stream + self.mlp(self.norm2(stream))


class Attention(nn.Module):
    """Self-attention of every token to every token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (examples, tokens, width) -> the same shape."""
        shape = (self.heads, tokens.shape[-1] // self.heads)
        parts = self.qkv(tokens).chunk(3, -1)
        # each (examples, heads, tokens, width / heads)
        query, key, value = (part.unflatten(-1, shape).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.project(mixed.transpose(1, 2).flatten(2))
