"""The estimator of the theory: one linear representation fitted to all tasks at once."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from metalearn.episodes import Episode
from metalearn.runtime.checks import positive, whole_number

TOLERANCE = 1e-22  # of the summed squared sines of the angles between two steps
FIRST_STEPS = 20  # from every start; the best then goes on
RANDOM_STARTS = 3  # alternating least squares may end in a local minimum


class LinearTasks(Protocol):
    """Tasks by index, such as `SharedSubspace` or a list of episodes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Episode: ...


def joint_representation(
    tasks: LinearTasks, rank: int = 2, *, queries: bool = False, steps: int = 2000
) -> Tensor:
    """The subspace that explains all tasks best: `min over B, w_t of sum_t |y_t - X_t B w_t|²`.

    Alternating least squares, each half in closed form: B given, one regression per task; all w_t
    given, one regression for B. It starts from the leading eigenvectors of `sum y² x x^T`
    (Tripuraneni et al. 2021, arXiv:2002.11684, algorithm 1), from those of the mean `y x` of each
    task, and at random, and the best fit counts, because one start may end in a local minimum. Du
    et al. 2021 (arXiv:2002.09434) bound the error of the minimum by `O(dk / (n T) + k / n2)`, with
    n examples of each of T tasks of d inputs, and n2 of a new task.

    Args:
        tasks: episodes with inputs (examples, inputs) and real targets (examples, 1), such as
            `metalearn.tasks.SharedSubspace`; their support sets are fitted.
        rank: k, dimensions of the subspace.
        queries: also fit the query sets.
        steps: the most alternations.

    Returns:
        B (inputs, rank) with orthonormal columns, float64.

    Raises:
        ValueError: fewer tasks than `rank`, a rank above the inputs, no more examples in a task
            than `rank`, fewer examples together than B has entries, or inputs and targets of other
            shapes or not finite.
        TypeError: the tasks have no index, or `rank` is not whole.

    Example:
        >>> from metalearn.tasks import SharedSubspace
        >>> tasks = SharedSubspace(inputs=8, rank=2, shots=6, tasks=40, noise=0.0)
        >>> basis = joint_representation(tasks, rank=2)
        >>> subspace_error(basis, tasks.basis) < 1e-12
        True
    """
    if not hasattr(tasks, "__len__") or not hasattr(tasks, "__getitem__"):
        raise TypeError(
            f"tasks is a {type(tasks).__name__}; give tasks by index, such as SharedSubspace(...)"
        )
    (rank,) = positive(rank=rank)
    steps = whole_number("steps", steps)
    inputs, targets = _examples(tasks, queries=queries)
    _check(inputs, rank)
    # Grams (tasks, inputs, inputs) and moments (tasks, inputs) hold all that a fit needs.
    grams = torch.einsum("tni,tnj->tij", inputs, inputs)
    moments = torch.einsum("tni,tn->ti", inputs, targets)
    first = min(steps, FIRST_STEPS)
    fits = [_fit(start, grams, moments, first) for start in _starts(inputs, targets, rank)]
    best = max(fits, key=lambda basis: _explained(basis, grams, moments))
    return _fit(best, grams, moments, steps - first)


def _starts(inputs: Tensor, targets: Tensor, rank: int) -> list[Tensor]:
    """Bases to start from: two moment estimators, then random ones, the same in every call."""
    weighted = inputs * targets.unsqueeze(-1)  # (tasks, examples, inputs)
    means = weighted.mean(1)  # (tasks, inputs)
    squared = torch.einsum("tni,tnj->ij", weighted, weighted)  # sum y² x x^T
    bases = [
        torch.linalg.eigh(moment).eigenvectors[:, -rank:] for moment in (squared, means.T @ means)
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(RANDOM_STARTS):
        drawn = torch.randn(len(squared), rank, generator=generator, dtype=torch.float64)
        bases.append(torch.linalg.qr(drawn)[0].to(squared.device))
    return bases


def _fit(basis: Tensor, grams: Tensor, moments: Tensor, steps: int) -> Tensor:
    """Alternate from a basis until the subspace stays."""
    for _ in range(steps):
        following = _alternation(basis, grams, moments)
        moved = subspace_error(following, basis)
        basis = following
        if moved < TOLERANCE:
            break
    return basis


def _explained(basis: Tensor, grams: Tensor, moments: Tensor) -> float:
    """How much of sum y² the regressions on a basis explain."""
    projected = moments @ basis  # (tasks, rank)
    predictors = torch.linalg.solve(basis.T @ grams @ basis, projected)
    return float((predictors * projected).sum())


def _alternation(basis: Tensor, grams: Tensor, moments: Tensor) -> Tensor:
    """One step: the regressions of all tasks on a basis, then the basis that fits them best."""
    features, rank = basis.shape
    normal = basis.T @ grams @ basis  # (tasks, rank, rank)
    predictors = torch.linalg.solve(normal, moments @ basis)  # (tasks, rank)
    # The gradient in B vanishes: sum_t G_t B w_t w_t^T = sum_t m_t w_t^T. With B's entries in rows,
    # this is one system of inputs * rank equations.
    system = torch.einsum("tij,tk,tl->ikjl", grams, predictors, predictors)
    size = features * rank
    right = (moments.T @ predictors).reshape(size)
    solution = torch.linalg.solve(system.reshape(size, size), right).reshape(features, rank)
    return torch.linalg.qr(solution)[0]


def subspace_error(estimate: Tensor, basis: Tensor) -> float:
    """How far a subspace is from another: `||(I - E E^T) B||_F²`, the sum of squared sines.

    Args:
        estimate: E (inputs, k), any columns that span the subspace.
        basis: B (inputs, k), orthonormal columns.

    Returns:
        From 0 to k; unrelated subspaces give k (d - k) / d on average.

    Raises:
        ValueError: another number of inputs.

    Example:
        >>> subspace_error(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
        1.0
    """
    if estimate.ndim != 2 or basis.ndim != 2 or len(estimate) != len(basis):
        raise ValueError(
            f"the subspaces are {tuple(estimate.shape)} and {tuple(basis.shape)}; give two bases"
            " (inputs, k) of the same inputs"
        )
    directions = torch.linalg.qr(estimate.detach().double())[0]
    basis = basis.detach().double()
    return float((basis - directions @ (directions.T @ basis)).square().sum())


def _examples(tasks: LinearTasks, *, queries: bool) -> tuple[Tensor, Tensor]:
    """Inputs (tasks, examples, inputs) and targets (tasks, examples) in double precision."""
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    for number in range(len(tasks)):
        support, query = tasks[number]
        parts = (support, query) if queries else (support,)
        x = torch.cat([part.inputs for part in parts]).double()
        y = torch.cat([part.targets for part in parts])
        if x.ndim != 2 or y.shape != (len(x), 1) or not y.is_floating_point():
            raise ValueError(
                f"task {number} has inputs {tuple(x.shape)} and {y.dtype} targets"
                f" {tuple(y.shape)}; joint_representation() takes inputs (examples, inputs) and"
                " real targets (examples, 1)"
            )
        if not (x.isfinite().all() and y.isfinite().all()):
            raise ValueError(f"task {number} holds numbers that are not finite; leave it out")
        if inputs and x.shape != inputs[0].shape:
            raise ValueError(
                f"task {number} has inputs {tuple(x.shape)} and task 0 {tuple(inputs[0].shape)};"
                " give all tasks as many examples"
            )
        inputs.append(x)
        targets.append(y[:, 0].double())
    if not inputs:
        raise ValueError("joint_representation() got no tasks; give at least `rank`")
    return torch.stack(inputs), torch.stack(targets)


def _check(inputs: Tensor, rank: int) -> None:
    tasks, examples, features = inputs.shape
    if rank > features:
        raise ValueError(f"rank={rank} is above the {features} inputs; give {features} or less")
    if tasks < rank:
        raise ValueError(
            f"{tasks} tasks do not determine a subspace of rank {rank}; give at least {rank} tasks,"
            " or a lower rank"
        )
    if examples <= rank:
        raise ValueError(
            f"{examples} examples a task are fitted by any subspace of rank {rank}; give at least"
            f" {rank + 1}, or a lower rank"
        )
    if examples * tasks <= features * rank:
        raise ValueError(
            f"{tasks} tasks of {examples} examples are {tasks * examples} equations for"
            f" {features * rank} unknowns; give more tasks or examples"
        )
