"""Minibatch CKA: the three HSIC terms of each batch, added up (Nguyen et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cka import centred_kernel, equally_far, rbf_kernel
from .inputs import Activations, Undefined, varying

MINIBATCH = ("linear_cka", "rbf_cka")

# Examples of a batch that the U-statistic needs: that of 3 is zero, and of fewer is undefined.
FEWEST = 4


@dataclass(frozen=True)
class Terms:
    """HSIC terms, summed over batches.

    With K_b and L_b the kernels of the two sides in batch b:

    Attributes:
        left: `sum_b HSIC(K_b, K_b)` ().
        right: `sum_b HSIC(L_b, L_b)` ().
        cross: `sum_b HSIC(K_b, L_b)` ().
        shuffled: `cross` with the examples of L_b shuffled (draws,).
    """

    left: Tensor
    right: Tensor
    cross: Tensor
    shuffled: Tensor

    @classmethod
    def of(cls, k: Tensor, m: Tensor, orders: Tensor) -> Terms:
        """The terms of one batch.

        Args:
            k: the centred kernel of the first side (examples, examples).
            m: the centred kernel of the second side (examples, examples).
            orders: (draws, examples).
        """
        shuffled = [(k * m[order][:, order]).sum() for order in orders]
        return cls(
            left=(k * k).sum(),
            right=(m * m).sum(),
            cross=(k * m).sum(),
            shuffled=torch.stack(shuffled) if shuffled else k.new_zeros(0),
        )

    def __add__(self, other: Terms) -> Terms:
        device = self.cross.device
        return Terms(
            self.left + other.left.to(device),
            self.right + other.right.to(device),
            self.cross + other.cross.to(device),
            self.shuffled + other.shuffled.to(device),
        )


def batch_kernel(side: Activations, name: str, fraction: float | None) -> Tensor:
    """A batch's centred kernel (examples, examples).

    It is zero if the batch has too few examples, or all of them are equally far apart.

    Args:
        side: the activations of the batch.
        name: what to call them in errors.
        fraction: the width of the kernel of `rbf_cka`; None for the linear kernel.
    """
    n = len(side.values)
    varies = varying(side.values)
    centred = side.values[:, varies] - side.values[:, varies].mean(0)
    if n < FEWEST or side.is_rounding(centred):
        return side.values.new_zeros(n, n)
    kernel = _kernel(centred, name, fraction)
    aligned = centred_kernel(kernel, debiased=True)
    if float(aligned.norm()) > 1e-12 * float(kernel.norm()):
        return aligned
    return torch.zeros_like(aligned)


def _kernel(centred: Tensor, name: str, fraction: float | None) -> Tensor:
    if fraction is None:
        return centred @ centred.T
    return rbf_kernel(centred, name, fraction)


def minibatch_cka(terms: Terms, n: int) -> Callable[[Tensor], float]:
    """Minibatch CKA as a function of the cross term, true or shuffled.

    `sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b, K_b) sum_b HSIC(L_b, L_b))` (Nguyen et al. 2021,
    arXiv:2010.15327).

    Args:
        terms: the sums over batches.
        n: how many examples they are summed over.

    Raises:
        Undefined: there is nothing to align on one side.
    """
    for term, name in ((terms.left, "x"), (terms.right, "y")):
        if float(term) <= 0:
            raise Undefined(
                f"{equally_far(name, n)}; or every batch has fewer than the {FEWEST} examples that"
                " minibatch CKA needs"
            )
    scale = (terms.left * terms.right).sqrt()
    return lambda cross: min(1.0, float(cross / scale))
