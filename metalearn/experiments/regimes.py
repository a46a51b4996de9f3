"""Trainings of the same body without an inner loop, to compare with meta-learning.

Raghu et al. 2020 (arXiv:1909.09157, section 5.2) ask which training gives the features, under a
readout without a head: meta-learning, one head for all classes, one head for all tasks, or no
training. All start from the same architecture and seed, and see as many training images a step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from metalearn import experiments
from metalearn.algorithms.base import Learner
from metalearn.algorithms.joint import JointTraining
from metalearn.data.images import LabelledImages
from metalearn.evaluation import Tasks
from metalearn.network.layers import head as find_head
from metalearn.tasks.batches import Minibatches
from metalearn.training.checkpoints import load
from metalearn.training.loop import Curve, meta_train

from .experiment import ALGORITHMS, Experiment
from .runs import Run, train

__all__ = [
    "REGIMES",
    "Minibatches",
    "at_test",
    "multiclass",
    "multitask",
    "restored",
    "snapshots",
    "trained",
]

REGIMES = ("maml", "anil", "multiclass", "multitask", "random", "nil-train")


def multiclass(
    model: nn.Module,
    images: LabelledImages,
    *,
    steps: int,
    batch: int = 120,
    seed: int = 0,
    **training: Any,
) -> Curve:
    """Train a network to classify all classes of a data set: cross-entropy on minibatches.

    Args:
        model: any module with an output for every class.
        images: the training images.
        steps: minibatches.
        batch: images a minibatch.
        seed: of the minibatches.
        training: options of `meta_train`: optimizer, schedule, checkpoint, progress, ...

    Returns:
        How training went.

    Raises:
        ValueError: the head has fewer outputs than there are classes.

    Example:
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import glyphs
        >>> images = glyphs("train")
        >>> model = Conv4(len(images.names), hidden=4)
        >>> len(multiclass(model, images, steps=2, batch=8, progress=False).losses)
        2
    """
    name = find_head(model)
    module = model.get_submodule(name)
    # A Linear has out_features, a Conv2d out_channels.
    outputs = getattr(module, "out_features", getattr(module, "out_channels", 0))
    if outputs < len(images.names):
        raise ValueError(
            f"the head {name!r} has {outputs} outputs, but there are {len(images.names)} classes;"
            " give it one for each"
        )
    batches = Minibatches(images, batch, seed=seed)
    return meta_train(JointTraining(model), batches, steps=steps, meta_batch=1, **training)


def multitask(
    model: nn.Module, tasks: Tasks, *, steps: int, meta_batch: int = 4, **training: Any
) -> Curve:
    """Train a network with one head for all tasks on their queries, without an inner loop.

    Args:
        model: any module with an output for every way.
        tasks: training tasks by index, such as `FewShot`; their support sets are not used.
        steps: outer steps.
        meta_batch: tasks a step.
        training: other options of `meta_train`.

    Returns:
        How training went.
    """
    return meta_train(JointTraining(model), tasks, steps=steps, meta_batch=meta_batch, **training)


def trained(experiment: Experiment, regime: str, *, progress: bool = True) -> Run:
    """The run of a regime: trained, or resumed if it was interrupted, or loaded if it is done.

    Args:
        experiment: the few-shot problem, the network and the seed.
        regime: "multiclass" (a head for all training classes; as many images a step as an
            algorithm's tasks hold), "multitask" (no inner loop; the support images are among the
            queries), "random" (no training), or an algorithm such as "maml" or "nil-train".
        progress: show progress.

    Raises:
        ValueError: there is no such regime.
    """
    # NIL is a rule at test, which trains nothing.
    regimes = [name for name in dict.fromkeys((*REGIMES, *ALGORITHMS)) if name != "nil"]
    if regime not in regimes:
        raise ValueError(f"there is no regime {regime!r}; choose from {', '.join(regimes)}")
    return train(experiment, regime, progress=progress)


def restored(path: str | os.PathLike[str], **changes: Any) -> Run:
    """A run of any regime from its checkpoint; `changes` are settings that may differ at test."""
    return experiments.restored(path, **changes)


def at_test(run: Run) -> Learner:
    """The learner of a run as it is tested; see `Run.tested`."""
    return run.tested()


def snapshots(
    experiment: Experiment, algorithm: str, steps: Sequence[int], *, progress: bool = True
) -> dict[int, Path]:
    """The checkpoints of one training run after several numbers of outer steps.

    The outer rate stays constant, as in the papers that look at several points of training (a
    schedule would end at each of them). Snapshots that exist are kept, and training goes on from
    the last one.

    Args:
        experiment: the few-shot problem, the network and the seed.
        algorithm: that trains it.
        steps: the numbers of outer steps.
        progress: show progress.

    Returns:
        The checkpoint after each number of steps.

    Raises:
        ValueError: a snapshot is missing, and training is already past it.
    """
    # Each snapshot is the same training, stopped later.
    constant = replace(experiment, schedule="constant")
    checkpoint = constant.checkpoint(algorithm)
    paths = {
        step: checkpoint.with_name(f"{checkpoint.stem}-step{step}.safetensors")
        for step in sorted(set(steps))
    }
    for step, path in paths.items():
        if path.exists():
            continue
        reached = load(checkpoint)[1]["step"] if checkpoint.exists() else 0
        if reached > step:
            raise ValueError(
                f"{checkpoint} is at step {reached} already and there is no {path}; ask for later"
                " points, or remove the checkpoint"
            )
        replace(constant, steps=step).train(algorithm, progress=progress)
        # Copied under another name first: the snapshot is whole or absent.
        copy = path.with_suffix(".next")
        shutil.copyfile(checkpoint, copy)
        os.replace(copy, path)
    return paths
