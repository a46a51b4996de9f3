"""Penalties that a training may add to its loss, layer by layer; see `penalty`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from metalearn.models.weights import Weights, read
from metalearn.network.layer_names import LayerOutput, named_output
from metalearn.network.layers import assign, check_reached, head
from metalearn.network.layers import layers as layer_names
from metalearn.training.penalty import Extra, Penalty, check_from_zero, no_penalty, together
from metalearn.training.spectral import spectral

__all__ = [
    "Extra",
    "Penalty",
    "leading_component",
    "no_penalty",
    "pulled",
    "spectral",
    "together",
]


Strength: TypeAlias = float | Mapping[str, float]


@dataclass(frozen=True)
class pulled:
    """Pull parameters towards earlier values, each layer with a strength of its own.

    `sum_l s_l sum_i F_i (w_i - w*_i)^2 / 2`. With `importance` the Fisher information this is
    elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796); without it L2-SP (Li
    et al. 2018, arXiv:1802.01483).

    Args:
        to: the values `w*`, as `copied` takes them: a state dict, a model, a file or a name.
        strength: `s`, a number for all parameters, or `{module or parameter path: s}`, the longest
            match winning. What no path reaches is not pulled.
        importance: `F`, `{parameter: tensor of its shape}`; 1 without it. Parameters that it leaves
            out are not pulled.

    Raises:
        ValueError: When it is entered: a path that reaches nothing, a strength that is not a finite
            number from 0, or values of other shapes than the parameters.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> before = {name: weight.detach() + 1 for name, weight in model.named_parameters()}
        >>> with pulled(before, strength=2.0)(model) as extra:
        ...     round(extra().item(), 4)  # three parameters, each 1 away: 2 * 3 / 2
        3.0
    """

    to: Weights
    strength: Strength = 1.0
    importance: Mapping[str, Tensor] | None = None

    def __repr__(self) -> str:
        # Checkpoints record it: the values by their checksum.
        to = read(self.to).digest
        importance = "" if self.importance is None else read(self.importance).digest
        return f"pulled({to}, strength={self.strength}, importance={importance or None})"

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[Extra]:
        """Enter the penalty for a training of `model`."""
        strengths = _strengths(model, self.strength)
        terms = []
        source = read(self.to)
        values = {name: source.tensors[at] for name, at in source.matched(model).items()}
        for name, parameter in model.named_parameters():
            strength = strengths.get(name, 0.0)
            importance = None if self.importance is None else self.importance.get(name)
            if not strength or (self.importance is not None and importance is None):
                continue
            target = self._target(name, parameter, values)
            weight = torch.full_like(target, strength / 2)
            if importance is not None:
                _check_shape(name, "importance", importance, parameter)
                weight = weight * importance.to(weight)
            terms.append((parameter, target, weight))
        if not terms and any(strengths.values()):
            raise ValueError(
                f"pulled() reaches no parameter of {type(model).__name__}: the values and the"
                " importance name none of those that have a strength"
            )
        zero = next(model.parameters()).new_zeros(())

        def extra() -> Tensor:
            return sum(((p - to).square() * weight).sum() for p, to, weight in terms) + zero

        yield extra

    def _target(self, name: str, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> Tensor:
        if name not in values:
            raise ValueError(
                f"pulled() has no value for {name!r}, which has a strength; leave that layer out of"
                " strength={...}, or give weights that hold it"
            )
        _check_shape(name, "value", values[name], parameter)
        return values[name].detach().to(parameter, copy=True)


@dataclass(frozen=True)
class leading_component:
    """Keep the first principal component of layers small: the intervention on block structure.

    `weight * sum_l relu(lam_1 / sum_i lam_i - above)`, over the batch (Nguyen, Raghu and Kornblith
    2022, arXiv:2202.07184; their code uses 10 and 0.1). `lam_1 / sum lam` is the Rayleigh quotient
    `||A v||^2 / ||A||_F^2` of a vector `v` that one power step after each pass keeps close to the
    first eigenvector; it is differentiated with `v` held fixed, which is exact at the eigenvector.

    A batch has a larger share than many images, so a small batch is penalised more.

    Args:
        weight: how strong.
        above: the share that costs nothing.
        layers: names of layers; by default `metalearn.layers(model)` without the head.

    Raises:
        ValueError: When it is entered, a layer that does not exist; in training, fewer than 3
            images in a batch, or a layer that the first forward pass does not run.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with leading_component(weight=1.0, above=0.0, layers=["1"])(model) as extra:
        ...     _ = model(torch.rand(16, 4))
        ...     0 < extra().item() <= 1
        True
    """

    weight: float = 10.0
    above: float = 0.1
    layers: Sequence[str] | None = None
    reads_outputs: ClassVar[bool] = True  # of the network, so it is not for meta_train

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[Extra]:
        """Enter the penalty for a training of `model`."""
        check_from_zero("weight", self.weight)
        check_from_zero("above", self.above)
        last = head(model)
        names = self.layers
        if names is None:
            names = [name for name in layer_names(model) if name != last]
        if not names:
            raise ValueError(
                f"leading_component() has no layer of {type(model).__name__} to penalise; name some"
                " with layers="
            )
        layers = [named_output(model, name) for name in names]
        shares = _LeadingShares(self, model, [layer.name for layer in layers])
        handles = [
            model.get_submodule(layer.path).register_forward_hook(shares.hook(layer))
            for layer in layers
        ]
        try:
            yield shares
        finally:
            for handle in handles:
                handle.remove()


class _LeadingShares:
    """The penalty on the layers that ran in the last pass; it remembers a vector for each."""

    def __init__(self, penalty: leading_component, model: nn.Module, names: Sequence[str]) -> None:
        self.penalty = penalty
        self.not_seen = set(names)  # layers that no forward pass has run
        self.zero = next(model.parameters()).new_zeros(())
        self.outputs: dict[str, Tensor] = {}
        self.vectors: dict[str, Tensor] = {}

    def hook(self, layer: LayerOutput) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook that keeps the output of a layer in training."""

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self.not_seen.discard(layer.name)
            if torch.is_grad_enabled() and module.training:
                self.outputs[layer.name] = layer.of(output).flatten(1)  # (images, features)

        return keep

    def __call__(self) -> Tensor:
        if self.not_seen:
            raise ValueError(
                f"leading_component(): no forward pass has run layer {min(self.not_seen)!r}, so it"
                " has no component; leave it out of layers="
            )
        total = self.zero
        for name in list(self.outputs):
            activations = self.outputs.pop(name)
            if len(activations) < 3:
                raise ValueError(
                    f"a batch of {len(activations)} images has no first component to penalise;"
                    " take at least 3"
                )
            share, self.vectors[name] = leading_share(activations, self.vectors.get(name))
            total = total + self.penalty.weight * (share - self.penalty.above).relu()
        return total

    def state_dict(self) -> dict[str, Any]:
        return dict(self.vectors)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.vectors = {name: vector.to(self.zero.device) for name, vector in state.items()}


def leading_share(activations: Tensor, vector: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The share of the variance along a vector after one power step, and that vector.

    Args:
        activations: `A` before centring, (images, features).
        vector: (features,), the vector of the last call; the mean direction of the images at first.

    Returns:
        `||A v||^2 / ||A||_F^2`, differentiable with `v` held fixed; and `v`, of unit length.

    Example:
        >>> rank_one = torch.outer(torch.arange(5.0), torch.ones(3))
        >>> round(leading_share(rank_one)[0].item(), 4)
        1.0
    """
    centred = activations - activations.mean(0)
    with torch.no_grad():
        if vector is None:
            # The image farthest from the mean: the dominant one, if there is one.
            vector = centred[centred.norm(dim=1).argmax()]
        stepped = centred.mT @ (centred @ vector)  # (features,)
        size = stepped.norm()
        vector = stepped / size if size > 0 else vector
    tiny = torch.finfo(centred.dtype).tiny
    share = (centred @ vector).square().sum() / centred.square().sum().clamp(min=tiny)
    return share, vector


def check_strength(strength: Strength) -> None:
    """Raise ValueError for a strength that is not a finite number from 0."""
    by_path = strength if isinstance(strength, Mapping) else {"": strength}
    for path, value in by_path.items():
        check_from_zero(f"strength of {path!r}" if path else "strength", value)


def _strengths(model: nn.Module, strength: Strength) -> dict[str, float]:
    check_strength(strength)
    by_path = strength if isinstance(strength, Mapping) else {"": strength}
    assigned = assign(model, by_path)
    check_reached(model, by_path, "strength")
    return assigned


def _check_shape(name: str, what: str, given: Tensor, parameter: Tensor) -> None:
    if given.shape != parameter.shape:
        raise ValueError(
            f"pulled(): the {what} of {name!r} has shape {tuple(given.shape)} and the parameter"
            f" {tuple(parameter.shape)}; leave that layer out of strength={{...}}"
        )
