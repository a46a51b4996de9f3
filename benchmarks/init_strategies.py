"""Does a pretrained start help, which layers carry it, and is it features or only scale?

    python -m benchmarks.init_strategies --table a --images 500

The questions of the Transfusion paper, on public images. Fine-tunes every start under every seed on
the same batches (a comparison that was stopped continues in `--folder`), after pretraining the
network if that is not there yet; prints curves' figures, tests and the paper's findings, and adds
one row with all numbers to the file that `--results` names. Tables:

- a: ResNet-18 pretrained here, with its slim hybrid
- conv4: Conv4 pretrained here, and meta-learned starts of the same network (`--checkpoints`, of
  `metalearn train`)
- b: SqueezeNet with real ImageNet weights (`--weights`)
- c: CBR-Tiny and CBR-Small pretrained here
"""

from __future__ import annotations

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
from metalearn.runtime.tables import plain
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
from transfer.finetuning.finetune import FineTuning
from transfer.initialisation.weights import IMAGENET, Pretrained, read
from transfer.models import build, slim

from .harness.cifar import fewer
from .harness.rows import Row, append, keep_in, origin, run_benchmark
from .papers.findings import Measured, findings, printed

# Conv4 as Finn et al. 2017 have it for Omniglot.
HIDDEN = 64
POOL = False
SLIM_THROUGH = "layer2"
PRETRAINING: dict[str, Any] = {"batch": 64, "lr": 1e-3}
TESTED = 2000  # test images at most: of CIFAR-10 the first by class
# The paper's 91 % test AUC, of the 96.4 % that ResNet-50 from a random start ends with.
SHARE = 91 / 96.4


@dataclass(frozen=True)
class Plan:
    """What a table compares.

    Args:
        network: its name.
        places: the layers to copy through, all but the last before the head.
        size: height and width of the images it reads.
        channels: 1 for grey, 3 for colour.
        pretrained_here: whether its weights come from a training here.
    """

    network: str
    places: tuple[str, ...]
    size: int = 28
    channels: int = 1
    pretrained_here: bool = True


BLOCKS = ("block1", "block2", "block3")
FIRES = tuple(f"features.{number}" for number in (0, 3, 4, 5, 7, 8, 9, 10))
TABLES: dict[str, tuple[Plan, ...]] = {
    "a": (Plan("resnet18", ("bn1", "layer1", "layer2", "layer3")),),
    "conv4": (Plan("conv4", BLOCKS),),
    "b": (Plan("squeezenet1_0", FIRES, size=64, channels=3, pretrained_here=False),),
    "c": (Plan("cbr_tiny", BLOCKS), Plan("cbr_small", BLOCKS)),
}


@dataclass(frozen=True)
class Network:
    """Builds a network by name from its own random start; it can be sent to other processes."""

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
        images = self.images if self.images < len(parts.train) else None
        normalize = None if plan.pretrained_here else v2.Normalize(*map(list, IMAGENET))
        return finetune(
            parts.train,
            parts.test,
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            optimizer=adam,
            evaluate_every=max(1, self.steps // self.tests),
            metric="auc" if len(parts.train.names) == 2 else "accuracy",
            images=images,
            transform=normalize,
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
        data = Path(self.pretrain_on).stem
        file = f"pretrained-{plan.network}-{data}-{self.pretrain_steps}.safetensors"
        path = self.folder / file
        if not path.exists():
            self._pretrain(plan, path)
        tensors, record = files.load(path)
        name = f"{plan.network} pretrained on {record['trained_on']}"
        print(f"{name}: {record['accuracy']:.1%} of its test images right", flush=True)
        return Pretrained(name, tensors), record

    def _pretrain(self, plan: Plan, path: Path) -> None:
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
        title = f"pretraining {plan.network} on {self.pretrain_on}"
        with shown_progress(title, train.steps, shown=self.progress) as advance:
            curve = train(model, 0, advance)
        record = {
            "trained_on": self.pretrain_on,
            "steps": train.steps,
            **PRETRAINING,
            "accuracy": curve.final,
            "seconds": curve.seconds,
            "classes": train.classes,
            "images": len(parts.train),
            "size": plan.size,
            "channels": plan.channels,
            "device": self.device,
            "machine": provenance.machine(),
            "versions": provenance.versions(),
        }
        files.save(path, dict(model.state_dict()), record)

    def strategies(self, plan: Plan, weights: Pretrained, network: Network) -> dict[str, Any]:
        """Every start by name, from none to all of the weights, then the meta-learned ones."""
        starts: dict[str, Any] = {
            "random": everywhere(fresh()),
            "mean_var": everywhere(mean_var(weights)),
            "permuted": everywhere(permuted(weights)),
            "gabor": everywhere(gabor()),
        }
        if plan.network.startswith("resnet"):
            hybrid = transfusion(weights, through=SLIM_THROUGH)
            starts["slim"] = (replace(network, slim=True), hybrid)
        # From the lowest layers up, each start copies more.
        for place in plan.places:
            starts[f"through {place}"] = transfusion(weights, through=place)
        starts["full"] = transfusion(weights)
        if plan.network == "conv4":
            for path in self.checkpoints:
                name = learned_by(path)
                if name in starts:
                    raise ValueError(
                        f"two of the checkpoints are {name}; give one of each algorithm and data"
                        " set"
                    )
                starts[name] = transfusion(path)
        return starts


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
    progress: bool = True,  # noqa: FBT001, FBT002  # a command line setting
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
    if min(steps, tests, batch, images) < 1:
        raise ValueError(
            f"steps={steps}, tests={tests}, batch={batch} and images={images} must be at least 1"
        )
    study = Study(
        table=table,
        dataset=dataset,
        images=images,
        seeds=tuple(numbers(seeds, "seeds")),
        steps=steps,
        tests=tests,
        batch=batch,
        lr=lr,
        pretrain_on=pretrain_on,
        pretrain_steps=pretrain_steps,
        weights=weights,
        checkpoints=tuple(listed(checkpoints)),
        root=root,
        folder=Path(folder),
        probe=probe,
        device=device,
        processes=processes,
        progress=progress,
        note=note,
    )
    for plan in TABLES[table]:
        append(compared(study, plan))


def compared(study: Study, plan: Plan) -> Row:
    """Run the comparison of one network and print it -> its row."""
    started = time.monotonic()
    weights, source = study.start(plan)
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
    comparison = compare(
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
    comparison = with_threshold(comparison)
    learned = [name for name in strategies if " on " in name]
    measured = Measured.of(comparison, plan.places, learned)
    answers = findings(measured, few=count < len(parts.train), level=comparison.level)
    print(f"\n{comparison}\n\n{printed(answers)}\n", flush=True)
    return {
        **described(study, plan, parts, train, source),
        **plain(measured.to_dict()),
        **described_results(comparison),
        "probe": study.probe,
        "seconds": round(time.monotonic() - started),
    }


def described_results(comparison: Comparison) -> Row:
    """The tests, layers and costs of a comparison."""
    parameters = {}
    for name in comparison.strategies:
        initialisation = comparison.of(name)[0].initialisation
        parameters[name] = sum(initialisation["parameters"].values())
    return {
        "final_tests": plain(comparison.finals),
        "steps_tests": plain(comparison.steps),
        "layers": plain(by_layer(comparison)),
        "alike": plain(comparison.alike),
        "measure": comparison.measure,
        "metric": comparison.metric,
        "parameters": parameters,
        "training_seconds": round(sum(run.curve.seconds for run in comparison.runs), 1),
        "threshold": comparison.threshold,
        "threshold_rule": comparison.threshold_rule,
        "level": comparison.level,
    }


def described(
    study: Study, plan: Plan, parts: Split, train: FineTuning, source: Mapping[str, Any]
) -> Row:
    """All that is behind a row but its numbers."""
    elsewhere = ("versions", "machine")
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
        "pretraining": {name: value for name, value in source.items() if name not in elsewhere},
        "checkpoints": [Path(path).name for path in study.checkpoints],
        "device": study.device,
        "processes": study.processes,
        "note": study.note,
        "threads": torch.get_num_threads(),
        **origin("init_strategies"),
    }


def by_layer(comparison: Comparison) -> list[Row]:
    """Layer by layer: similarity at the ends of every start's runs, chance, and its weights."""
    kept = {name: comparison.kept(name) for name in comparison.strategies}
    rows = []
    for layer in kept[comparison.baseline]:
        row: Row = {"layer": layer}
        for place, measure in enumerate(("similarity", "chance", "correlation")):
            row[measure] = {name: layers[layer][place] for name, layers in kept.items()}
        rows.append(row)
    return rows


def with_threshold(comparison: Comparison) -> Comparison:
    """The same comparison, with steps counted to the paper's share of random's final score."""
    runs = comparison.of(comparison.baseline)
    goal = SHARE * sum(run.curve.final for run in runs) / len(runs)
    rule = (
        f"{100 * SHARE:.1f} % of the mean final score of {comparison.baseline}, as the paper's 91"
        " of 96.4"
    )
    return replace(comparison, threshold=goal, threshold_rule=rule)


def adam(groups: Any, lr: float) -> Optimizer:
    """Adam in one pass over the weights: of a ResNet's step on a CPU, the other takes a third."""
    return Adam(groups, lr=lr, fused=True)


def learned_by(path: str) -> str:
    """A name for the start that a checkpoint gives: what trained it on what."""
    settings = saved.read_settings(path).get("run")
    if not settings:
        raise ValueError(
            f"{path} does not say what trained it; give a checkpoint of `metalearn train`"
        )
    experiment = settings["experiment"]
    network = {name: experiment.get(name) for name in ("hidden", "pool")}
    # Strides in place of pools have weights of the same shapes.
    if network != {"hidden": HIDDEN, "pool": POOL}:
        raise ValueError(
            f"{path} is of a Conv4 with {network}, and the table's has hidden={HIDDEN},"
            f" pool={POOL}: train it with --preset finn2017"
        )
    return f"{settings['algorithm']} on {Path(experiment['dataset']).name}"


if __name__ == "__main__":
    run_benchmark(init_strategies)
