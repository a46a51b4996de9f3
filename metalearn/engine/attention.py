"""Attention kernels: only one of PyTorch's has a second derivative."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch


class _Attention:
    """Keeps attention to its kernel with a second derivative while any thread needs it.

    The choice of kernel is global to the process, so the first thread to enter makes it and the
    last one to leave undoes it. `torch.nn.attention.sdpa_kernel` sets it for one thread and cannot
    be left in another.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.inside = 0
        self.before = (True, True, True)

    @contextmanager
    def twice_differentiable(self, *, needed: bool) -> Iterator[None]:
        """Allow no kernel without a second derivative while this is active."""
        if not needed:
            yield
            return
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.before = self._enabled()
                self._enable(flash=False, efficient=False, cudnn=False)
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    flash, efficient, cudnn = self.before
                    self._enable(flash=flash, efficient=efficient, cudnn=cudnn)

    @staticmethod
    def _enabled() -> tuple[bool, bool, bool]:
        kernels = torch.backends.cuda
        return (
            kernels.flash_sdp_enabled(),
            kernels.mem_efficient_sdp_enabled(),
            kernels.cudnn_sdp_enabled(),
        )

    @staticmethod
    def _enable(*, flash: bool, efficient: bool, cudnn: bool) -> None:
        torch.backends.cuda.enable_flash_sdp(flash)
        torch.backends.cuda.enable_mem_efficient_sdp(efficient)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


attention = _Attention()
