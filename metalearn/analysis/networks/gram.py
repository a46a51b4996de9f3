"""Gram matrices of the layers of a network, computed while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from metalearn.analysis.measures.inputs import (
    Rounding,
    as_floats,
    count_not_finite,
    real_tensor,
    where_float64_exists,
)
from metalearn.network.activations import representations
from metalearn.network.forward import Inputs, arguments

from .batches import count, running, tensor_of, to_device

# Parts of rows in which a Gram matrix is computed, since most of what lies above its diagonal is
# not needed. More parts save more products, but small products are slower: with four, batches of
# 64 to 256 images took longer, and 512 no less.
STRIPES = 2

# Rounding of a float32 Gram matrix that would show in a similarity.
COARSE = 4e-6

# Numbers in float64 in memory at a time.
CHUNK = 2**20


class GramReader:
    """Runs one network on a batch, and returns the centred Gram matrix of each layer, as pairs.

    A Gram matrix is computed in float32 while its layer runs, before the next layers can write into
    the output, and the output is not kept. If float32 turns out to be too coarse for a layer (its
    activations hardly differ between images), the layer is read in float64 from then on, and the
    network runs on the same batch again.

    Args:
        network: a network in evaluation mode.
        side: what it is called in errors.
        names: the layers.
        transform: from a layer's name and activations (n, features) to those whose Gram matrix is
            computed, such as the activations without a component; by default as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        side: str,
        names: Sequence[str],
        transform: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        self.network = network
        self.side = side
        self.names = names
        self.transform = transform
        self.in_float64: set[str] = set() if _float32_is_exact() else set(names)
        self.channels_last = True
        self.any_tensor = tensor_of(network)

    def __call__(self, inputs: Inputs) -> dict[str, Tensor]:
        """The pairs (n (n - 1) / 2,) of each layer, for inputs of n images."""
        inputs = to_device(inputs, self.any_tensor)
        with running(self.network, inputs, self.side):
            if isinstance(inputs, Tensor) and self._may_be_channels_last(inputs):
                try:  # pooling and normalisation are faster in this order
                    return self._read(inputs.contiguous(memory_format=torch.channels_last))
                except RuntimeError as error:
                    if "view size is not compatible" not in str(error):
                        raise
                    self.channels_last = False  # the network views its activations
            return self._read(inputs)

    def _may_be_channels_last(self, inputs: Tensor) -> bool:
        return self.channels_last and inputs.ndim == 4 and inputs.device.type == "cpu"

    def _read(self, inputs: Inputs) -> dict[str, Tensor]:
        images = count(inputs)

        def reduce(name: str, output: Tensor) -> Tensor:
            return self._gram(name, output, images)

        args, kwargs = arguments(inputs)
        with representations(self.network, self.names, reduce) as grams:
            self.network(*args, **kwargs)
        noise = {}
        for name in [name for name in grams if name not in self.in_float64]:
            grams[name], trace = centred_pairs(grams[name])
            # Products are off by about eps |x_i| |x_j|; one part in n of this falls upon the
            # direction of another layer's matrix.
            eps = torch.finfo(torch.float32).eps
            noise[name] = float(eps * trace / (images * grams[name].norm()))
        # A share of NaN counts as coarse: float64 then names the layer.
        if all(share < COARSE for share in noise.values()):
            return grams
        coarse = [name for name, share in noise.items() if not share < COARSE / 4]
        self.in_float64.update(coarse)
        return self._read(inputs)

    def _gram(self, name: str, output: Tensor, images: int) -> Tensor:
        """A layer's Gram matrix (n, n) in float32, or its centred pairs in float64."""
        label = f"layer {name!r} of {self.side}"
        rows = _rows(real_tensor(output, label), images, label)
        if self.transform is not None:
            rows = self.transform(name, rows)
        rows = as_floats(rows)
        if rows.dtype == torch.float64:
            self.in_float64.add(name)
        if name in self.in_float64:
            return _pairs_in_float64(rows, label)
        return _product(rows)


def _rows(output: Tensor, images: int, label: str) -> Tensor:
    """A layer's output as (images, features), in the order of memory, which needs no copy."""
    if output.ndim < 1 or len(output) != images:
        raise ValueError(
            f"{label} outputs {tuple(output.shape)} for {images} images: its first dimension is"
            " not the images; name a layer before or after it"
        )
    # The order of features does not matter to a Gram matrix.
    order = sorted(range(1, output.ndim), key=output.stride, reverse=True)
    return output.detach().permute(0, *order).reshape(images, -1)


def _product(rows: Tensor) -> Tensor:
    """The Gram matrix of (n, features) on and below its diagonal, in float32."""
    n = len(rows)
    step = -(-n // STRIPES)
    gram = torch.empty(n, n, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.float()
        for i in range(0, n, step):
            # Rows i to i + step with all rows up to i + step: the part left of the diagonal.
            torch.mm(rows[i : i + step], rows[: i + step].T, out=gram[i : i + step, : i + step])
    return gram


def _pairs_in_float64(rows: Tensor, label: str) -> Tensor:
    """The pairs of the centred Gram matrix of (n, features); 0 if only rounding is left of it."""
    gram, level = _exact_product(rows)
    pairs, trace = centred_pairs(gram)
    if not bool((trace + level).isfinite()):
        raise ValueError(
            f"{label} outputs {count_not_finite(rows)} values that are NaN or infinite; check its"
            " weights and what enters it"
        )
    arithmetic = 4 * torch.finfo(torch.promote_types(rows.dtype, torch.float32)).eps
    stored = max(arithmetic, Rounding.of(rows.dtype).relative)
    # The variance, or what the images differ in, is no more than the squared rounding.
    constant = trace <= stored**2 * level
    equally_far = pairs.norm() <= arithmetic * trace
    return torch.zeros_like(pairs) if constant or equally_far else pairs


def _exact_product(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix of the centred features in float64.

    Args:
        rows: (n, features).

    Returns:
        The Gram matrix (n, n), and the squared norm of what centring removed ().
    """
    n = len(rows)
    rows = where_float64_exists(rows)
    gram = rows.new_zeros(n, n, dtype=torch.float64)
    level = rows.new_zeros((), dtype=torch.float64)
    for part in rows.split(max(1, CHUNK // n), 1):  # (n, some features)
        part = part.double()
        mean = part.mean(0)
        part = part - mean
        gram.addmm_(part, part.T)
        level += n * mean.square().sum()
    return gram, level


def centred_pairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs below the diagonal of a Gram matrix, centred for the U-statistic, in float64.

    The inner product of the pairs of two matrices is HSIC_1 times n (n - 3) / 2 (Szekely and Rizzo
    2014).

    Args:
        gram: (n, n); what lies above its diagonal is ignored.

    Returns:
        The pairs (n (n - 1) / 2,), and the trace ().
    """
    n = len(gram)
    gram = where_float64_exists(gram).double()
    trace = gram.trace()
    gram = gram.tril(-1)
    # With row sums k_i of the matrix without its diagonal, and their sum k:
    # K_ij - k_i / (n - 2) - k_j / (n - 2) + k / ((n - 1) (n - 2))
    means = (gram.sum(0) + gram.sum(1)) / (n - 2)
    means -= means.sum() / (2 * (n - 1))  # half of the last term for i, half for j
    i, j = torch.tril_indices(n, n, -1, device=gram.device)
    return (gram - means[:, None] - means)[i, j], trace


def shuffled_pairs(orders: Tensor, pairs: Tensor) -> Tensor:
    """Where each pair comes from when the rows and columns of its matrix are reordered.

    Args:
        orders: new orders of the n rows (n, draws).
        pairs: the row and the column of some pairs below the diagonal (2, pairs).

    Returns:
        Indices into all pairs below the diagonal, in order of rows (pairs, draws).
    """
    one, other = orders[pairs[0]], orders[pairs[1]]  # (pairs, draws)
    row, column = torch.maximum(one, other), torch.minimum(one, other)
    # The pair (row, column) with row > column has the number row (row - 1) / 2 + column.
    return row * (row - 1) // 2 + column


def _float32_is_exact() -> bool:
    """Whether torch multiplies float32 matrices without TF32 or bfloat16.

    torch raises if the setting differs between backends.
    """
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:
        return False
