"""Other trainings of the same body, to set beside meta-learning: one head for all classes, one head
for all tasks, or none at all.

Raghu et al. 2020 (arXiv:1909.09157, section 5.2) ask which training gives the features, under a
readout without a head. `trained` gives the body of each regime from the same architecture, the same
seed, and as many training images a step.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn import experiments
from metalearn.algorithms import NIL
from metalearn.algorithms.base import Learner
from metalearn.algorithms.joint import JointTraining
from metalearn.data.images import LabelledImages
from metalearn.episodes import Episode, Examples
from metalearn.evaluation import Tasks
from metalearn.network.layers import head as find_head
from metalearn.runtime.checks import positive
from metalearn.runtime.files import Record
from metalearn.tasks.few_shot import SEEDS, FewShot
from metalearn.tasks.keyed_random import philox, position, seeded
from metalearn.training.checkpoints import load
from metalearn.training.loop import Curve, meta_train

from .experiment import ALGORITHMS, ENDLESS, Experiment
from .runs import Run

REGIMES = ("maml", "anil", "multiclass", "multitask", "random", "nil-train")


class Minibatches:
    """Minibatches of labelled images under their own labels, each as one task without a support
    set: what `JointTraining` trains on.

    `[i]` holds `size` different images of all classes; it depends on (seed, i) alone.

    Raises ValueError where there are fewer images than `size`.

    Example:
        >>> images = LabelledImages(torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(6).repeat_interleave(10))
        >>> Minibatches(images, size=32)[0].query.inputs.shape
        torch.Size([32, 1, 28, 28])
    """

    draws_by_index = True  # a task depends on the seed and its index alone

    def __init__(
        self, images: LabelledImages, size: int, batches: int = ENDLESS, seed: int = 0
    ) -> None:
        self.images = images
        self.size, self.batches = positive(size=size, batches=batches)
        self.seed = seeded(seed)
        if self.size > len(images):
            raise ValueError(
                f"size={size} but there are {len(images)} images; ask for at most {len(images)} a"
                " batch"
            )

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Episode:
        drawn = philox(self.seed, position(index, self.batches)).choice(
            len(self.images), self.size, replace=False
        )
        rows = torch.from_numpy(drawn)
        inputs = self.images.images[rows] / 255
        return Episode(
            Examples(inputs[:0], self.images.labels[:0]), Examples(inputs, self.images.labels[rows])
        )

    def settings(self) -> Record:
        """A JSON-able record of the batches and of the data they come from."""
        return {
            "batch": self.size,
            "batches": self.batches,
            "seed": self.seed,
            "data": self.images.description,
        }


def multiclass(
    model: nn.Module,
    images: LabelledImages,
    *,
    steps: int,
    batch: int = 120,
    seed: int = 0,
    **training: Any,
) -> Curve:
    """Train a network to tell all classes of a data set apart, as usual: cross-entropy on
    minibatches -> how training went.

    Args:
        model: any module with an output for every class.
        images: the training images.
        steps: minibatches.
        batch: images a minibatch.
        seed: of the minibatches.
        training: what `meta_train` takes: optimizer, schedule, checkpoint, progress, ...

    Raises ValueError where the head has fewer outputs than there are classes.

    Example:
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import glyphs
        >>> images = glyphs("train")
        >>> len(multiclass(Conv4(len(images.names), hidden=4), images, steps=2, batch=8, progress=False).losses)
        2
    """
    name = find_head(model)
    module = model.get_submodule(name)
    outputs = getattr(module, "out_features", getattr(module, "out_channels", 0))
    if outputs < len(images.names):
        raise ValueError(
            f"the head {name!r} has {outputs} outputs, but there are {len(images.names)} classes;"
            " give it one for each"
        )
    return meta_train(
        JointTraining(model),
        Minibatches(images, batch, seed=seed),
        steps=steps,
        meta_batch=1,
        **training,
    )


def multitask(
    model: nn.Module, tasks: Tasks, *, steps: int, meta_batch: int = 4, **training: Any
) -> Curve:
    """Train a network with one common head on the queries of all tasks at once, without an inner
    loop -> how training went.

    Args:
        model: any module with an output for every way.
        tasks: training tasks by index, such as `FewShot`; their support sets are not used.
        steps, meta_batch, training: as for `meta_train`.
    """
    return meta_train(JointTraining(model), tasks, steps=steps, meta_batch=meta_batch, **training)


def trained(experiment: Experiment, regime: str, *, progress: bool = True) -> Run:
    """The run of a regime: trained, gone on with where it was interrupted, or loaded where it is
    done.

    Args:
        experiment: the few-shot problem, the network and the seed.
        regime: "multiclass" (a head for all training classes; as many images a step as an
            algorithm's tasks hold), "multitask" (no inner loop; the support images are among the
            queries), "random" (no training), or an algorithm such as "maml" or "nil-train".
        progress: show progress.

    Raises ValueError for an unknown regime.
    """
    if regime in ALGORITHMS and regime != "nil":
        if progress:
            _say(experiment, regime)
        return Run(experiment, regime, *experiment.train(regime, progress=progress))
    learner = fresh_learner(experiment, regime)
    if regime == "random":
        return Run(experiment, regime, learner, Curve())
    if progress:
        _say(experiment, regime)
    chosen, images = experiment.settings(regime), experiment.data("train")
    each = (chosen.train_queries or experiment.shots) + experiment.shots
    seed = SEEDS["train"] + len(SEEDS) * experiment.seed
    if regime == "multitask":
        meta_batch = chosen.meta_batch
        tasks: Any = FewShot(images, experiment.ways, experiment.shots, each, ENDLESS, seed=seed)
    else:
        meta_batch, tasks = (
            1,
            Minibatches(images, chosen.meta_batch * experiment.ways * each, seed=seed),
        )
    checkpoint = experiment.checkpoint(regime)
    curve = meta_train(
        learner,
        tasks,
        steps=chosen.steps,
        meta_batch=meta_batch,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=chosen.outer_lr),
        schedule=_schedule(chosen.schedule, chosen.steps),
        clip_value=chosen.clip_value,
        checkpoint=checkpoint,
        log=checkpoint.with_suffix(".jsonl"),
        precision=experiment.mixed,
        progress=progress,
        settings={
            "algorithm": regime,
            "experiment": experiment.to_dict(regime),
            "notes": {"preset": experiment.preset},
        },
    )
    return Run(experiment, regime, learner, curve)


def fresh_learner(experiment: Experiment, regime: str) -> Learner:
    """What a regime trains, before training: an algorithm's learner, or a body under one head for
    all classes or for all tasks.

    Raises ValueError for an unknown regime.
    """
    if regime in ALGORITHMS and regime != "nil":
        return experiment.learner(regime)
    if regime not in REGIMES:
        raise ValueError(
            f"there is no regime {regime!r}; choose from"
            f" {', '.join(dict.fromkeys((*REGIMES, *ALGORITHMS)))}"
        )
    if regime == "multiclass":
        channels, size = experiment.shape()
        experiment = replace(
            experiment, ways=len(experiment.data("train").names), channels=channels, size=size
        )
    return JointTraining(experiment.fresh_model(), execution=experiment.execution)


def restored(path: str | os.PathLike[str], **changes: Any) -> Run:
    """A run of any regime from its checkpoint; `changes` are settings that may differ at test."""
    return experiments.restored(path, fresh_learner, **changes)


def at_test(run: Run) -> Learner:
    """The learner of a run as it is tested on few-shot tasks: NIL around a body that was trained
    without an inner loop.
    """
    return (
        NIL(run.learner.model, execution=run.learner.execution)
        if isinstance(run.learner, JointTraining)
        else run.tested()
    )


def snapshots(
    experiment: Experiment, algorithm: str, steps: Sequence[int], *, progress: bool = True
) -> dict[int, Path]:
    """One training run as it stood after each number of outer steps -> the checkpoint of each.

    The outer rate stays constant, as in the papers that look at several points of training (a
    schedule would end at each of them). Snapshots that are there are kept, and training goes on
    from the last one.

    Raises ValueError where a snapshot is missing and training is past it already.
    """
    constant = replace(experiment, schedule="constant")
    checkpoint = constant.checkpoint(algorithm)
    found = {
        step: checkpoint.with_name(f"{checkpoint.stem}-step{step}.safetensors")
        for step in sorted(set(steps))
    }
    for step, path in found.items():
        if path.exists():
            continue
        reached = load(checkpoint)[1]["step"] if checkpoint.exists() else 0
        if reached > step:
            raise ValueError(
                f"{checkpoint} is at step {reached} already and there is no {path}; ask for later"
                " points, or remove the checkpoint"
            )
        replace(constant, steps=step).train(algorithm, progress=progress)
        coming = path.with_suffix(".next")
        shutil.copyfile(checkpoint, coming)
        os.replace(coming, path)
    return found


def _schedule(kind: str, steps: int) -> Callable[..., Any] | None:
    return (
        None
        if kind == "constant"
        else lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    )


def _say(experiment: Experiment, name: str) -> None:
    print(
        f"{name}, seed {experiment.seed}: training ({experiment.checkpoint(name)})",
        file=sys.stderr,
        flush=True,
    )
