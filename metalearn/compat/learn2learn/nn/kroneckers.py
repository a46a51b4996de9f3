"""Linear maps of matrices whose matrix is a Kronecker product."""

# learn2learn's signatures take booleans by position.
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.compat.learn2learn._missing import nearest


class KroneckerLinear(nn.Module):
    """`left @ x @ right + bias` of matrices x of shape (n, m); initially the identity.

    For the columns of x, stacked in one vector, the map's matrix is the Kronecker product of
    `right` transposed and `left`.

    Args:
        n: the number of rows of the inputs.
        m: their number of columns.
        bias: whether there is a bias.
        psd: use `left.T @ left` and `right.T @ right`, which make the map positive semi-definite.
        device: of the weights; inputs are moved there and outputs back.

    Example:
        >>> KroneckerLinear(2, 3)(torch.arange(6.0)).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(
        self, n: int, m: int, bias: bool = True, psd: bool = False, device: Any = None
    ) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.eye(n, device=device))
        self.right = nn.Parameter(torch.eye(m, device=device))
        self.bias = nn.Parameter(torch.zeros(n, m, device=device)) if bias else None
        self.psd = psd
        self.device = device

    def forward(self, x: Tensor) -> Tensor:
        """Matrices (..., n, m), or a vector (n * m,) of columns -> the same shape.

        Raises ValueError for another shape.
        """
        n, m = len(self.left), len(self.right)
        if x.ndim == 1 and len(x) == n * m:
            # (n * m,) -> (n, m), and back to a vector of columns
            return self._matrices(x.reshape(m, n).T).T.flatten()
        if x.ndim == 1 or x.shape[-2:] != (n, m):
            raise ValueError(
                f"KroneckerLinear({n}, {m}) takes inputs of shape (..., {n}, {m}) or ({n * m},),"
                f" not {tuple(x.shape)}"
            )
        return self._matrices(x)

    def _matrices(self, x: Tensor) -> Tensor:
        """Matrices (..., n, m) -> (..., n, m)."""
        left: Tensor = self.left
        right: Tensor = self.right
        if self.psd:
            left = left.T @ left
            right = right.T @ right
        inputs = x if self.device is None else x.to(self.device)
        output = left @ inputs @ right
        if self.bias is not None:
            output = output + self.bias
        return output.to(x.device)


class KroneckerRNN(nn.Module):
    """A recurrent cell with Kronecker products for matrices: `sigma(W_h(x) + U_h(hidden))`.

    Args:
        n: the number of rows of inputs and hidden states.
        m: their number of columns.
        bias: whether its maps have a bias.
        sigma: the activation; by default tanh.
    """

    def __init__(
        self, n: int, m: int, bias: bool = True, sigma: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.W_h = KroneckerLinear(n, m, bias=bias)
        self.U_h = KroneckerLinear(n, m, bias=bias)
        self.W_y = KroneckerLinear(n, m, bias=bias)
        self.sigma = nn.Tanh() if sigma is None else sigma

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step: the output `W_y(hidden)`, and the new hidden state."""
        hidden = self.sigma(self.W_h(x) + self.U_h(hidden))
        return self.W_y(hidden), hidden


class KroneckerLSTM(nn.Module):
    """An LSTM cell with Kronecker products for matrices.

    Args:
        n: the number of rows of inputs and states.
        m: their number of columns.
        bias: whether its maps have a bias.
        sigma: the activation of the gates; by default the logistic function.
    """

    def __init__(
        self, n: int, m: int, bias: bool = True, sigma: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        # Input, forget, cell and output gate: a map of the input and one of the hidden state each.
        for gate in "ifgo":
            for source in "ih":
                self.add_module(f"W_{source}{gate}", KroneckerLinear(n, m, bias=bias))
        self.sigma = nn.Sigmoid() if sigma is None else sigma
        self.tanh = nn.Tanh()

    def forward(
        self, x: Tensor, hidden: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Take one step from the states (h, c): the new h, and the new states."""
        h, c = hidden
        # c' = f * c + i * tanh(g) and h' = o * tanh(c'), with gates i, f and o
        c = self._gate("f", x, h) * c + self._gate("i", x, h) * self.tanh(self._sum("g", x, h))
        h = self._gate("o", x, h) * self.tanh(c)
        return h, (h, c)

    def _gate(self, gate: str, x: Tensor, h: Tensor) -> Tensor:
        return self.sigma(self._sum(gate, x, h))

    def _sum(self, gate: str, x: Tensor, h: Tensor) -> Tensor:
        """The sum that enters the activation of a gate."""
        return self.get_submodule(f"W_i{gate}")(x) + self.get_submodule(f"W_h{gate}")(h)


__getattr__ = nearest(__name__, ["KroneckerLSTM", "KroneckerLinear", "KroneckerRNN"])
