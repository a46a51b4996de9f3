"""Trust region policy optimization: the outer step (Schulman et al. 2015, arXiv:1502.05477)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.engine.conjugate_gradients import Product, conjugate_gradients
from metalearn.runtime.checks import positive_number, whole_number

Parameters = dict[str, Tensor]


class Objective(NamedTuple):
    """What a step lowers, and what bounds it.

    Attributes:
        surrogate: a scalar to lower.
        kl: a scalar, zero with a zero gradient at the parameters before the step.
        outputs: what `kl` depends on, if its Hessian by them is known.
        curvatures: that Hessian, which is diagonal: a tensor for each output, that broadcasts
            against it.
    """

    surrogate: Tensor
    kl: Tensor
    outputs: tuple[Tensor, ...] = ()
    curvatures: tuple[Tensor, ...] = ()


class StepRecord(NamedTuple):
    """What a step of TRPO did.

    Attributes:
        before: the surrogate before the step.
        after: the surrogate after it.
        kl: the divergence of the step.
        accepted: whether a step was accepted; if not, the parameters are unchanged.
        backtracks: how often the step was shortened.
    """

    before: float
    after: float
    kl: float
    accepted: bool
    backtracks: int


@dataclass(frozen=True)
class TRPO:
    """The settings of the step.

    Args:
        max_kl: the bound of the divergence.
        iterations: of conjugate gradients.
        damping: what is added to the Hessian's diagonal.
        backtracks: how many lengths are tried.
        shrink: the factor from one length to the next.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_kl: float = 0.01
    iterations: int = 10
    damping: float = 1e-5
    backtracks: int = 15
    shrink: float = 0.8

    def __post_init__(self) -> None:
        positive_number("max_kl", self.max_kl)
        whole_number("iterations", self.iterations)
        whole_number("backtracks", self.backtracks)
        if not (self.damping >= 0 and math.isfinite(self.damping)):
            raise ValueError(f"damping={self.damping} must be a finite number of 0 or more")
        if not 0 < self.shrink < 1:
            raise ValueError(f"shrink={self.shrink} must lie between 0 and 1")


def hessian_product(scalar: Tensor, parameters: list[Tensor], *, damping: float = 0.0) -> Product:
    """From v to `(H + damping) v`, with H the exact Hessian of a scalar.

    The gradient is recorded once, and differentiated once for each product.

    Args:
        scalar: a function of the parameters, with its graph.
        parameters: what it is differentiated by.
        damping: added to the diagonal.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hessian_product((w**3).sum(), [w])(torch.tensor([1.0, 1.0]))
        tensor([ 6., 12.])
    """
    slopes = torch.autograd.grad(scalar, parameters, create_graph=True, allow_unused=True)
    gradient = flat(slopes, parameters)

    def product(vector: Tensor) -> Tensor:
        rows = torch.autograd.grad(
            gradient @ vector, parameters, retain_graph=True, allow_unused=True
        )
        return flat(rows, parameters) + damping * vector

    return product


def gauss_newton_product(
    outputs: Sequence[Tensor],
    curvatures: Sequence[Tensor],
    parameters: list[Tensor],
    *,
    damping: float = 0.0,
) -> Product:
    """From v to `(J^T C J + damping) v`, with J the derivative of the outputs by the parameters.

    If the derivative of a scalar by the outputs is zero, as that of a divergence is where it
    begins, and C is its Hessian by them, this is its exact Hessian by the parameters. It takes
    about 2/3 of the time of `hessian_product`, because the scalar is not differentiated twice.

    Args:
        outputs: functions of the parameters, with their graph.
        curvatures: the diagonal C, a tensor for each output, that broadcasts against it.
        parameters: what they are differentiated by.
        damping: added to the diagonal.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> product = gauss_newton_product([3 * w], [torch.tensor(1.0)], [w])
        >>> product(torch.tensor([1.0, 1.0]))
        tensor([9., 9.])
    """
    # J^T u is linear in u, so its derivative by u at any place, times v, is J v.
    places = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    pulled = torch.autograd.grad(
        outputs, parameters, grad_outputs=places, create_graph=True, allow_unused=True
    )
    transposed = flat(pulled, parameters)

    def product(vector: Tensor) -> Tensor:
        pushed = torch.autograd.grad(transposed @ vector, places, retain_graph=True)
        weighted = [c * tangent for c, tangent in zip(curvatures, pushed, strict=True)]
        rows = torch.autograd.grad(
            outputs, parameters, grad_outputs=weighted, retain_graph=True, allow_unused=True
        )
        return flat(rows, parameters) + damping * vector

    return product


def trust_region_step(
    objective: Callable[[Parameters], Objective],
    parameters: Mapping[str, Tensor],
    settings: TRPO | None = None,
) -> tuple[Parameters, StepRecord]:
    """One step of TRPO: a natural gradient, as long as the divergence allows.

    `x = H^-1 g` by conjugate gradients, with g the gradient of the surrogate and H the Hessian of
    the divergence; the step is `-x sqrt(2 max_kl / x^T H x)`. It is shortened until the surrogate
    is lower and the divergence below max_kl. If no length is accepted, nothing changes.

    Args:
        objective: from parameters by name to the surrogate and the divergence.
        parameters: where the step starts; the divergence is zero there.
        settings: of the step.

    Returns:
        The parameters after the step, detached, and what it did.

    Raises:
        ValueError: the gradient of the surrogate is not finite.

    Example:
        >>> target = torch.tensor([3.0, 1.0])
        >>> def objective(parameters):
        ...     w = parameters["w"]
        ...     return Objective(((w - target) ** 2).sum(), (w**2).sum() / 2)
        >>> w, record = trust_region_step(objective, {"w": torch.zeros(2)}, TRPO(max_kl=0.02))
        >>> record.accepted, round(record.kl, 4)
        (True, 0.02)
    """
    settings = settings or TRPO()
    start = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    tensors = list(start.values())
    with torch.enable_grad():
        before = objective(start)
        slopes = torch.autograd.grad(
            before.surrogate, tensors, retain_graph=True, allow_unused=True
        )
        gradient = flat(slopes, tensors)
        if not gradient.isfinite().all():
            raise ValueError(
                "the outer gradient is not finite; lower the inner rate, or start with a larger"
                " standard deviation"
            )
        product = _divergence_product(before, tensors, settings.damping)
        natural = conjugate_gradients(product, gradient, settings.iterations)
        curvature = (natural @ product(natural)).item()
    scale = 0.0
    # A curvature that is not above zero, or not a number, allows no step.
    if curvature > 0:
        scale = math.sqrt(2 * settings.max_kl / curvature)
    return _line_search(objective, start, -scale * natural, before.surrogate.item(), settings)


def _divergence_product(objective: Objective, parameters: list[Tensor], damping: float) -> Product:
    """Products with the Hessian of the divergence, by its outputs if they are known."""
    if objective.outputs:
        return gauss_newton_product(
            objective.outputs, objective.curvatures, parameters, damping=damping
        )
    return hessian_product(objective.kl, parameters, damping=damping)


def _line_search(
    objective: Callable[[Parameters], Objective],
    start: Parameters,
    step: Tensor,
    before: float,
    settings: TRPO,
) -> tuple[Parameters, StepRecord]:
    """The longest step that lowers the surrogate within the bound, or none."""
    unchanged = {name: tensor.detach() for name, tensor in start.items()}
    if not step.any() or not step.isfinite().all():
        return unchanged, StepRecord(before, before, 0.0, accepted=False, backtracks=0)
    with torch.no_grad():
        for backtracks in range(settings.backtracks):
            tried = _moved(unchanged, settings.shrink**backtracks * step)
            result = objective(tried)
            surrogate, kl = result.surrogate.item(), result.kl.item()
            # A comparison with NaN is False.
            if surrogate < before and kl < settings.max_kl:
                return tried, StepRecord(before, surrogate, kl, True, backtracks)  # noqa: FBT003
    return unchanged, StepRecord(
        before, before, 0.0, accepted=False, backtracks=settings.backtracks
    )


def flat(tensors: tuple[Tensor | None, ...], like: list[Tensor]) -> Tensor:
    """Tensors as one vector, with zeros for None."""
    pairs = zip(tensors, like, strict=True)
    return torch.cat(
        [
            (torch.zeros_like(shape) if tensor is None else tensor).flatten()
            for tensor, shape in pairs
        ]
    )


def _moved(parameters: Parameters, step: Tensor) -> Parameters:
    """The parameters plus their parts of a vector."""
    parts = step.split([tensor.numel() for tensor in parameters.values()])
    return {
        name: tensor + part.view_as(tensor)
        for (name, tensor), part in zip(parameters.items(), parts, strict=True)
    }
