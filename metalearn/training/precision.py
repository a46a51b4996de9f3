"""The precision of a training step: bfloat16 under autocast, or float32 products in tf32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def check_precision(precision: str | None, device: torch.device) -> None:
    """Check that a device can train in this precision.

    Raises:
        ValueError: it cannot, or there is no such precision.
    """
    if precision == "float16":
        raise ValueError(
            "precision='float16' needs loss scaling, which the inner loop's gradients would not"
            " survive; use 'bfloat16' or None"
        )
    if precision not in (None, "bfloat16", "tf32"):
        raise ValueError(f"precision={precision!r} is not one of 'bfloat16', 'tf32' and None")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"precision='tf32' needs a CUDA device, but the learner is on {device}; omit it"
        )
    on_cuda = device.type == "cuda"
    if precision == "bfloat16" and on_cuda and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16; omit precision"
        )


@contextlib.contextmanager
def computing_in(precision: str | None, device: torch.device) -> Iterator[None]:
    """Compute in this precision while the context is active."""
    # A cached cast would tie the graphs of tasks together.
    cast = torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )
    matmul = torch.get_float32_matmul_precision()
    convolution = torch.backends.cudnn.allow_tf32
    try:
        if precision == "tf32":
            # Products of matrices and convolutions have separate switches.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        with cast:
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
