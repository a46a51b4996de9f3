"""The measures over a stream of batches, without holding activations.

There are two ways to sum. *Moments* (`moments.py`): means and centred sums of products, which
determine CCA, SVCCA, PWCCA, linear CKA, Procrustes and the subspace similarity. They take features²
numbers, and give the value in memory for any batches in any order. *Minibatch* (`minibatch.py`):
the three HSIC terms of each batch, added up. They take three numbers, and are the only way for a
kernel that is not linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.analysis.checks import check_count, check_groups, check_seed
from metalearn.runtime.renamed import warn_renamed

from .chance import check_options, rearranged
from .inputs import Activations, Matrix, activations, check_matched, same
from .minibatch import MINIBATCH, Terms, batch_kernel, minibatch_cka
from .moments import MOMENTS, Moments, principal_axes
from .subspace import check_width


class Streaming:
    """A similarity of two networks' activations, accumulated batch by batch.

    Call `update` with every batch, `merge` across processes, and `compute`. From moments, the
    result equals the function of the measure's name on all batches at once. Row i of both sides of
    a batch is the same example; a short last batch counts by its size. Sums are float64 on the
    device of the first side. An instance can be pickled: across processes each updates its own, and
    one merges those that `all_gather_object` collects.

    CCA and PWCCA divide by the smallest direction, and moments hold its square. They agree with the
    in-memory value to 1e-10 up to a condition number (largest over smallest singular value of a
    centred side) of 1e3; beyond 1e5 `compute` warns with the number. SVCCA drops the small
    directions; the other measures do not divide. Directions smaller than 3e-7 of the largest, or
    than the rounding of the dtype, are dropped. For float64 inputs `compute` warns about it,
    because the in-memory measure keeps them.

    Args:
        measure: "cca", "svcca", "pwcca", "linear_cka", "rbf_cka", "procrustes" or "subspace".
        minibatch: minibatch CKA instead of moments, for "linear_cka" and "rbf_cka" (which has no
            other way): `sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b, K_b) sum_b HSIC(L_b, L_b))`
            with the unnormalised U-statistic (Nguyen et al. 2021, arXiv:2010.15327). A batch of n
            examples has the weight n (n - 3), and none below 4. The result depends on the batches.
        draws: how many shuffled versions of the second side are accumulated for `chance`; each adds
            a matrix of features².
        seed: determines the draws.
        **options: the options of the measure, such as `energy`, `debiased`, `fraction` or `k`.

    Raises:
        ValueError: an unknown measure or option, or a kernel without `minibatch`.

    Example:
        >>> from metalearn.analysis import cca
        >>> x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
        >>> y = x**3
        >>> stream = Streaming("cca")
        >>> for first in range(0, 1000, 64):
        ...     stream.update(x[first : first + 64], y[first : first + 64])
        >>> abs(stream.compute() - cca(x, y)) < 1e-12
        True
    """

    def __init__(
        self,
        measure: str,
        *,
        minibatch: bool = False,
        draws: int = 0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        _check_options(measure, options, minibatch=minibatch)
        self.measure = measure
        self.minibatch = minibatch
        self.options = options
        self.draws = check_count(draws)
        self.seed = check_seed(seed)
        self.reset()

    def reset(self) -> None:
        """Forget every batch."""
        self._sums: Moments | Terms | None = None
        self._same = True
        self.examples = 0
        self.batches = 0
        self.shuffled = 0  # batches of which the second side could be shuffled
        self.features = (0, 0)

    def update(
        self, x: Matrix, y: Matrix, *, groups: int | None = None, units: int | None = None
    ) -> None:
        """Add a batch.

        Args:
            x: (examples, features).
            y: (examples, other features).
            groups: how many equal consecutive blocks of rows `chance` shuffles whole; by default
                each row is one.
            units: the former name of `groups`.

        Raises:
            ValueError: different numbers of examples, other widths than before, or values that are
                not finite. The batch is not added.
        """
        if units is not None:
            warn_renamed("Streaming.update(units=)", "Streaming.update(groups=)")
            groups = units
        left = activations(x, "x")
        right = activations(y, "y")
        check_matched(left.values, right.values)
        right = replace(right, values=right.values.to(left.values.device))
        features = left.values.shape[1], right.values.shape[1]
        self._check_features(features)
        rows = len(left.values)
        groups = rows if groups is None else groups
        check_groups(groups, rows)
        orders = self._orders(rows, groups).to(left.values.device)
        self._add(
            self._sums_of(left, right, orders),
            examples=rows,
            batches=1,
            shuffled=int(groups > 1),
            features=features,
            same=same(left, right),
        )

    def merge(self, other: Streaming) -> Streaming:
        """Add the batches of another instance, such as another process's, to this one.

        Args:
            other: an instance of the same measure and options.

        Returns:
            This instance.

        Raises:
            ValueError: the two differ in measure, options or features.
        """
        for name in ("measure", "minibatch", "draws", "options"):
            here = getattr(self, name)
            there = getattr(other, name)
            if here != there:
                raise ValueError(
                    f"{name} is {here!r} here and {there!r} there; merge streams of one kind"
                )
        if self.examples and other.examples and self.features != other.features:
            raise ValueError(
                f"features are {self.features} here and {other.features} there; merge streams of"
                " the same two layers"
            )
        if other._sums is not None:
            self._add(
                other._sums,
                examples=other.examples,
                batches=other.batches,
                shuffled=other.shuffled,
                features=other.features,
                same=other._same,
            )
        return self

    def compute(self) -> float:
        """The similarity over all batches so far.

        Warns if a condition number is too large.

        Raises:
            ValueError: as the function of that name does; also without a batch.
        """
        value = self._value()
        # Equal matrices score exactly 1, without the rounding of the last bit.
        return 1.0 if self._same else value(self._accumulated().cross)

    def chance(self) -> np.ndarray:
        """The similarity with the second side shuffled within each batch (draws,).

        Whole groups are shuffled; for "subspace", neurons. There are no draws if no batch has two
        groups. A batch of one group stays as it is, which raises the chance level a little. Batches
        sorted by class give the chance level of one class: shuffle the loader.

        Raises:
            ValueError: as `compute` does.
        """
        sums = self._accumulated()
        if self.measure == "subspace":
            generator = torch.Generator().manual_seed(self.seed)
            before, after = principal_axes(sums, **self.options)
            orders = torch.empty(self.draws, 0)  # only their number counts
            return before.chance(after, orders, generator).cpu().numpy()
        value = self._value()
        if not self.shuffled:
            return np.array([])
        return np.array([value(cross) for cross in sums.shuffled])

    def _check_features(self, features: tuple[int, int]) -> None:
        if self.examples and features != self.features:
            raise ValueError(
                f"this batch has {features[0]} and {features[1]} features, and those before"
                f" {self.features[0]} and {self.features[1]}"
            )
        if self.measure == "subspace":
            check_width(*features)

    def _orders(self, rows: int, groups: int) -> Tensor:
        """The order of the second side's rows in every draw of this batch (draws, rows)."""
        draws = self.draws
        if self.measure == "subspace":  # which shuffles neurons in `chance`
            draws = 0
        if groups == 1:  # a single group has no other place
            return torch.arange(rows).expand(draws, -1)
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.batches)
        return rearranged(rows, groups, generator, draws)

    def _sums_of(self, left: Activations, right: Activations, orders: Tensor) -> Moments | Terms:
        if not self.minibatch:
            return Moments.of(left, right, orders)
        fraction = None if self.measure == "linear_cka" else self.options.get("fraction", 0.5)
        before = batch_kernel(left, "x", fraction)
        after = batch_kernel(right, "y", fraction)
        return Terms.of(before, after, orders)

    def _add(
        self,
        sums: Moments | Terms,
        *,
        examples: int,
        batches: int,
        shuffled: int,
        features: tuple[int, int],
        same: bool,
    ) -> None:
        self._sums = sums if self._sums is None else self._sums + sums  # type: ignore[operator]
        self._same = self._same and same
        self.examples += examples
        self.batches += batches
        self.shuffled += shuffled
        self.features = features

    def _accumulated(self) -> Any:
        if self._sums is None:
            raise ValueError(
                "no batch was seen, so there is nothing to compute; call update(x, y) first"
            )
        return self._sums

    def _value(self) -> Callable[[Any], float]:
        """The measure as a function of the cross products, true or shuffled."""
        sums = self._accumulated()
        if self.minibatch:
            return minibatch_cka(sums, self.examples)
        return MOMENTS[self.measure](sums, **self.options)


def _check_options(measure: str, options: dict[str, Any], *, minibatch: bool) -> None:
    check_options(measure, options)
    if minibatch and measure not in MINIBATCH:
        raise ValueError(
            f"minibatch={minibatch}: there is no minibatch {measure}, only"
            f" {' and '.join(MINIBATCH)}; leave minibatch out to stream {measure} from moments"
        )
    if not minibatch and measure not in MOMENTS:
        raise ValueError(
            f"{measure} has no moments of fixed size: its kernel needs all examples at once; pass"
            " minibatch=True"
        )
    if minibatch and options.get("debiased", True) is not True:
        raise ValueError(
            "debiased=False: minibatch CKA adds up the unbiased terms, because biased ones depend"
            " on the size of the batches; leave debiased out"
        )
