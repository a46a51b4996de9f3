"""Does a pretrained start help, which layers carry it, and is it features or only scale? The
Transfusion paper asked; on public images.

    python -m benchmarks.init_strategies --table a --images 500

Fine-tunes every start under every seed on the same batches (a comparison that was stopped goes on
in `--folder`), after pretraining the network where that is not there yet; prints curves' figures,
tests and the paper's findings, and appends one row with all numbers to
`benchmarks/results/init_strategies.jsonl`. Tables:

    a      ResNet-18 pretrained here, with its slim hybrid
    conv4 Conv4 pretrained here, and meta-learned starts of the same network (`--checkpoints`, of
    `metalearn train`) b SqueezeNet with real ImageNet weights (`--weights`) c CBR-Tiny and
    CBR-Small pretrained here
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torchvision.transforms import v2

from metalearn.data.labelled_sets import Split, load
from metalearn.models import Conv4
from metalearn.runtime import files, provenance
from metalearn.runtime.options import Listed, listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.progress import progress as shown_progress
from metalearn.runtime.provenance import commit
from metalearn.runtime.tables import plain
from metalearn.tasks import LabelledImages
from metalearn.training import checkpoints as saved
from transfer import (
    Comparison,
    compare,
    everywhere,
    finetune,
    fresh,
    gabor,
    mean_var,
    permuted,
    transfusion,
)
from transfer.finetuning.finetune import FineTuning, subset
from transfer.initialisation.weights import IMAGENET, Pretrained, read
from transfer.models import build, slim

from .papers.findings import Measured, findings, printed
from .harness.rows import append, keep_in, run_benchmark

HIDDEN, POOL = 64, False  # Conv4 as Finn et al. 2017 have it for Omniglot
SLIM_THROUGH = "layer2"
PRETRAINING: dict[str, Any] = {"batch": 64, "lr": 1e-3}
TESTED = 2000  # test images at most: of CIFAR-10 the first by class
SHARE = (
    91 / 96.4
)  # the paper's 91 % test AUC, of the 96.4 % that ResNet-50 from a random start ends with
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a table compares: a network, the layers to copy through (all but the last before the
    head), and the images it reads.
    """

    network: str
    places: tuple[str, ...]
    size: int = 28
    channels: int = 1
    pretrained_here: bool = True


BLOCKS = ("block1", "block2", "block3")
TABLES: dict[str, tuple[Plan, ...]] = {
    "a": (Plan("resnet18", ("bn1", "layer1", "layer2", "layer3")),),
    "conv4": (Plan("conv4", BLOCKS),),
    "b": (
        Plan(
            "squeezenet1_0", tuple(f"features.{i}" for i in (0, 3, 4, 5, 7, 8, 9, 10)), 64, 3, False
        ),
    ),
    "c": (Plan("cbr_tiny", BLOCKS), Plan("cbr_small", BLOCKS)),
}


@dataclass(frozen=True)
class Network:
    """Builds a network by name from its own random start; other processes can be handed it."""

    name: str
    outputs: int
    channels: int
    slim: bool = False

    def __call__(self) -> nn.Module:
        """The network, drawn from torch's global generator."""
        if self.slim:
            return slim(self.name, SLIM_THROUGH, self.outputs, channels=self.channels)
        if self.name == "conv4":
            return Conv4(self.outputs, self.channels, HIDDEN, pool=POOL)
        return build(self.name, self.outputs, self.channels)


@dataclass(frozen=True)
class Study:
    """One call of this command."""

    table: str
    dataset: str
    images: int
    seeds: tuple[int, ...]
    steps: int
    tests: int
    batch: int
    lr: float
    pretrain_on: str
    pretrain_steps: int
    weights: str | None
    checkpoints: tuple[str, ...]
    root: str | None
    folder: Path
    probe: int
    device: str
    processes: int
    progress: bool
    note: str

    def split(self, dataset: str, plan: Plan) -> Split:
        """The images of a data set as a network takes them, with at most `TESTED` to test on."""
        parts = load(
            dataset, self.root, size=plan.size, channels=plan.channels, progress=self.progress
        )
        return parts._replace(test=fewer(parts.test, TESTED))

    def training(self, parts: Split, plan: Plan) -> FineTuning:
        """The function that fine-tunes: the AUC of two classes, the accuracy of more."""
        every = max(1, self.steps // self.tests)
        return finetune(
            parts.train,
            parts.test,
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            optimizer=adam,
            evaluate_every=every,
            metric="auc" if len(parts.train.names) == 2 else "accuracy",
            images=None if self.images >= len(parts.train) else self.images,
            transform=None if plan.pretrained_here else v2.Normalize(*map(list, IMAGENET)),
            device=self.device,
        )

    def start(self, plan: Plan) -> tuple[Pretrained, Row]:
        """The weights to transfer, and what is known of them."""
        if plan.pretrained_here:
            return self.pretrained(plan)
        if not self.weights:
            raise ValueError(
                f"table {self.table} starts from real ImageNet weights of {plan.network}: give the"
                " file with --weights"
            )
        return read(self.weights), {"file": Path(self.weights).name, "trained_on": "ImageNet"}

    def pretrained(self, plan: Plan) -> tuple[Pretrained, Row]:
        """The network trained here on `pretrain_on`, once, and kept in the folder."""
        path = (
            self.folder
            / f"pretrained-{plan.network}-{Path(self.pretrain_on).stem}-{self.pretrain_steps}.safetensors"
        )
        if not path.exists():
            parts = self.split(self.pretrain_on, plan)
            train = finetune(
                parts.train,
                parts.test,
                steps=self.pretrain_steps,
                optimizer=adam,
                evaluate_every=max(1, self.pretrain_steps // 4),
                device=self.device,
                **PRETRAINING,
            )
            torch.manual_seed(0)
            model = Network(plan.network, train.classes, plan.channels)()
            with shown_progress(
                f"pretraining {plan.network} on {self.pretrain_on}",
                train.steps,
                shown=self.progress,
            ) as advance:
                curve = train(model, 0, advance)
            about = {
                "trained_on": self.pretrain_on,
                "steps": train.steps,
                **PRETRAINING,
                "accuracy": curve.final,
                "seconds": curve.seconds,
            }
            described = {
                "classes": train.classes,
                "images": len(parts.train),
                "size": plan.size,
                "channels": plan.channels,
            }
            where = {
                "device": self.device,
                "machine": provenance.machine(),
                "versions": provenance.versions(),
            }
            files.save(path, dict(model.state_dict()), {**about, **described, **where})
        tensors, record = files.load(path)
        print(
            f"{plan.network} pretrained on {record['trained_on']}: {record['accuracy']:.1%} of its"
            " test images right",
            flush=True,
        )
        return Pretrained(f"{plan.network} pretrained on {record['trained_on']}", tensors), record

    def strategies(self, plan: Plan, weights: Pretrained, network: Network) -> dict[str, Any]:
        """Every start by name, from none to all of the weights, then the meta-learned ones."""
        found: dict[str, Any] = {
            "random": everywhere(fresh()),
            "mean_var": everywhere(mean_var(weights)),
            "permuted": everywhere(permuted(weights)),
            "gabor": everywhere(gabor()),
        }
        if plan.network.startswith("resnet"):
            found["slim"] = (
                replace(network, slim=True),
                transfusion(weights, through=SLIM_THROUGH),
            )
        found |= {f"through {place}": transfusion(weights, through=place) for place in plan.places}
        found["full"] = transfusion(weights)
        given = (
            [(learned_by(path), path) for path in self.checkpoints]
            if plan.network == "conv4"
            else []
        )
        twice = [name for name, _ in given if [other for other, _ in given].count(name) > 1]
        if twice:
            raise ValueError(
                f"two of the checkpoints are {twice[0]}; give one of each algorithm and data set"
            )
        return found | {name: transfusion(path) for name, path in given}


def init_strategies(
    table: str = "a",
    dataset: str = "pneumoniamnist",
    images: int = 500,
    seeds: Listed = "0,1,2,3,4,5",
    steps: int = 96,
    tests: int = 12,
    batch: int = 32,
    lr: float = 1e-3,
    pretrain_on: str = "cifar10",
    pretrain_steps: int = 3000,
    weights: str | None = None,
    checkpoints: Listed = "",
    root: str | None = None,
    folder: str = "runs/init",
    probe: int = 400,
    device: str = "auto",
    processes: int = 1,
    progress: bool = True,
    note: str = "",
    results: str | None = None,
) -> None:
    """Compare initialisations by their learning curves.

    Args:
        table: a, conv4, b or c.
        dataset: what is fine-tuned on: pneumoniamnist, cifar10, or another of
            `metalearn.data.labelled_sets.load`.
        images: training images each seed draws, each class with its share; all where there are no
            more.
        seeds: one run of every start each; six can be decided at the level 0.05, five cannot.
        steps: of fine-tuning.
        tests: along the way.
        batch: images a step.
        lr: rate of fine-tuning, Adam's.
        pretrain_on: the data set that the network is pretrained on here.
        pretrain_steps: steps of that.
        weights: table b's ImageNet weights.
        checkpoints: meta-learned starts of table conv4, with commas: checkpoints of
            `metalearn train --preset finn2017` on Omniglot.
        root: the folder of the data sets [METALEARN_DATA].
        folder: where pretrained networks and runs are kept.
        probe: test images that layers are compared on.
        device: what trains, auto (cuda where there is one), cpu or cuda; layers are compared on the
            CPU.
        processes: how many share out the runs.
        progress: show progress.
        note: what a reader of the row should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    device = usable(device)
    if table not in TABLES:
        raise ValueError(f"there is no table {table!r}; choose {', '.join(TABLES)}")
    seed_numbers = tuple(numbers(seeds, "seeds"))
    paths = tuple(listed(checkpoints))
    if min(steps, tests, batch, images) < 1:
        raise ValueError(
            f"steps={steps}, tests={tests}, batch={batch} and images={images} must be at least 1"
        )
    shared = (
        pretrain_on,
        pretrain_steps,
        weights,
        paths,
        root,
        Path(folder),
        probe,
        device,
        processes,
        progress,
        note,
    )
    study = Study(table, dataset, images, seed_numbers, steps, tests, batch, lr, *shared)
    for plan in TABLES[table]:
        row = compared(study, plan)
        append(row)


def compared(study: Study, plan: Plan) -> Row:
    """Run the comparison of one network and print it -> its row."""
    started = time.monotonic()
    weights, origin = study.start(plan)
    parts = study.split(study.dataset, plan)
    train = study.training(parts, plan)
    network = Network(plan.network, len(parts.train.names), plan.channels)
    strategies = study.strategies(plan, weights, network)
    count = len(train.chosen(0))
    place = study.folder / f"{study.table}-{plan.network}-{Path(study.dataset).stem}-{count}"
    print(
        f"{plan.network} on {study.dataset}, {count:,} training images: {', '.join(strategies)};"
        f" seeds {study.seeds} ({place})",
        flush=True,
    )
    found = compare(
        strategies,
        network,
        train,
        train.probe(study.probe),
        study.seeds,
        folder=place,
        processes=study.processes,
        progress=study.progress,
        settings={"model": plan.network, "weights": weights.digest},
    )
    found = with_threshold(found)
    measured = Measured.of(found, plan.places, [name for name in strategies if " on " in name])
    answers = findings(measured, few=count < len(parts.train), level=found.level)
    print(f"\n{found}\n\n{printed(answers)}\n", flush=True)
    return {
        **described(study, plan, parts, train, origin),
        **plain(measured.to_dict()),
        "final_tests": plain(found.finals),
        "steps_tests": plain(found.steps),
        "layers": plain(by_layer(found)),
        "alike": plain(found.alike),
        "probe": study.probe,
        "measure": found.measure,
        "metric": found.metric,
        "parameters": {
            name: sum(found.of(name)[0].initialisation["parameters"].values())
            for name in strategies
        },
        "training_seconds": round(sum(run.curve.seconds for run in found.runs), 1),
        "seconds": round(time.monotonic() - started),
        "threshold": found.threshold,
        "threshold_rule": found.threshold_rule,
        "level": found.level,
    }


def described(
    study: Study, plan: Plan, parts: Split, train: FineTuning, origin: Mapping[str, Any]
) -> Row:
    """All that is behind a row but its numbers."""
    return {
        "benchmark": "init_strategies",
        "table": study.table,
        "network": plan.network,
        "dataset": study.dataset,
        "images": len(train.chosen(0)),
        "whole": len(parts.train),
        "test_images": len(parts.test),
        "size": plan.size,
        "channels": plan.channels,
        "classes": len(parts.train.names),
        "seeds": study.seeds,
        "settings": train.settings,
        "pretraining": {
            name: value for name, value in origin.items() if name not in ("versions", "machine")
        },
        "checkpoints": [Path(path).name for path in study.checkpoints],
        "device": study.device,
        "processes": study.processes,
        "note": study.note,
        "command": shlex.join(["python", "-m", "benchmarks.init_strategies", *sys.argv[1:]]),
        "versions": provenance.versions(),
        "threads": torch.get_num_threads(),
        "machine": provenance.machine(),
        "commit": commit(),
        "time": provenance.now(),
    }


def by_layer(found: Comparison) -> list[Row]:
    """Layer by layer, how alike its outputs are at the start and the end of every start's runs,
    what chance gives, and its weights.
    """
    kept = {name: found.kept(name) for name in found.strategies}
    return [
        {
            "layer": layer,
            "similarity": {name: layers[layer][0] for name, layers in kept.items()},
            "chance": {name: layers[layer][1] for name, layers in kept.items()},
            "correlation": {name: layers[layer][2] for name, layers in kept.items()},
        }
        for layer in kept[found.baseline]
    ]


def with_threshold(found: Comparison) -> Comparison:
    """The same comparison, with steps counted to the share of random's final score that the paper's
    threshold is.
    """
    runs = found.of(found.baseline)
    goal = SHARE * sum(run.curve.final for run in runs) / len(runs)
    return replace(
        found,
        threshold=goal,
        threshold_rule=(
            f"{100 * SHARE:.1f} % of the mean final score of {found.baseline}, as the paper's 91 of"
            " 96.4"
        ),
    )


def adam(groups: Any, lr: float) -> Optimizer:
    """Adam in one pass over the weights: of a ResNet's step on a CPU, the other takes a third."""
    return Adam(groups, lr=lr, fused=True)


def fewer(images: LabelledImages, most: int) -> LabelledImages:
    """At most so many of the images, each class with its share, always the same ones."""
    if len(images) <= most:
        return images
    chosen = subset(images.labels, most, seed=0)
    return LabelledImages(
        images.images[chosen],
        images.labels[chosen],
        images.names,
        {**images.description, "of": len(images)},
    )


def learned_by(path: str) -> str:
    """A name for the start that a checkpoint gives: what trained it on what."""
    settings = saved.read_settings(path).get("run")
    if not settings:
        raise ValueError(
            f"{path} does not say what trained it; give a checkpoint of `metalearn train`"
        )
    experiment = settings["experiment"]
    own = {name: experiment.get(name) for name in ("hidden", "pool")}
    if own != {
        "hidden": HIDDEN,
        "pool": POOL,
    }:  # strides in place of pools have weights of the same shapes
        raise ValueError(
            f"{path} is of a Conv4 with {own}, and the table's has hidden={HIDDEN}, pool={POOL}:"
            " train it with --preset finn2017"
        )
    return f"{settings['algorithm']} on {Path(experiment['dataset']).name}"


if __name__ == "__main__":
    run_benchmark(init_strategies)
