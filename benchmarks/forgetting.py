"""What does a network forget when it learns the next classes, in which layers, and what keeps it?

    python -m benchmarks.forgetting --seeds 0,1,2

The figure "anatomy" learns two halves of CIFAR-10's classes one after another, with nothing kept,
with EWC and with replay, and looks into every layer. The figure "semantics" asks which second task
makes the first forgotten: pairs of classes that are near or far, and mixtures of them. Every
finished task is a file, so a run that was stopped goes on. A JSON line for each memory and seed, or
for each pair of tasks and seed, is added to the file that `--results` names
(benchmarks/results/forgetting.jsonl holds those of the page).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.analysis import overlap
from metalearn.analysis.networks.outputs import layer_outputs
from metalearn.analysis.networks.positions import matrix
from metalearn.data.class_tasks import mixed, shifted, split_classes
from metalearn.data.images import LabelledImages
from metalearn.data.labelled_sets import Split, load
from metalearn.models import Conv4
from metalearn.network.layers import body
from metalearn.runtime import options
from metalearn.runtime.options import Listed, listed, numbers
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import plain
from transfer.continual import forgetting as study
from transfer.continual.memories import Memory, ewc, replay
from transfer.continual.norms import group_normalised
from transfer.continual.question import Build as BuildByName
from transfer.continual.sequence import Learner
from transfer.finetuning.finetune import finetune

from .harness.markdown import table
from .harness.rows import Row, append, choose, keep_in, origin, run_benchmark

FIGURES = ("anatomy", "semantics")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the second task's images that are of near classes
BINARY_IMAGES = 1000  # a class, in the figure "semantics"
BINARY_STEPS = 2  # the steps of "anatomy" divided by so many


@dataclass(frozen=True)
class Setting:
    """What all sequences of a run share.

    Attributes:
        images: CIFAR-10's.
        model: conv4, or another network by name.
        hidden: channels of conv4.
        norm: "group" or "batch".
        steps: of each task.
        batch: images a step.
        lr: the rate.
        each: training images of a class.
        tested: test images of a class.
        device: where to train.
        folder: of finished tasks.
    """

    images: Split
    model: str
    hidden: int
    norm: str
    steps: int
    batch: int
    lr: float
    each: int
    tested: int
    device: str
    folder: Path

    def build(self, outputs: int) -> Any:
        """A function that builds the network."""
        size = self.images.train.images.shape[-1]
        if self.model == "conv4":
            return partial(conv4, outputs, self.hidden, size, self.norm)
        return partial(without_dropout, BuildByName(self.model, outputs, 3, self.norm))

    def training(self, **changes: Any) -> Any:
        """A function of (train set, test set) that makes the training of a task."""
        options: dict[str, Any] = {
            "steps": self.steps,
            "batch": self.batch,
            "lr": self.lr,
            "optimizer": "sgd",
            "evaluate_every": max(1, self.steps // 2),
            "device": self.device,
        }
        return partial(finetune, **(options | changes))

    def record(self) -> Row:
        """What decides the results, for their rows."""
        names = ("model", "hidden", "norm", "steps", "batch", "lr", "each", "tested", "device")
        return {name: getattr(self, name) for name in names}


def conv4(outputs: int, hidden: int, size: int, norm: str) -> nn.Module:
    """Conv4, with group norm: examples are normalised alone, and nothing follows the next task."""
    model = Conv4(outputs, channels=3, hidden=hidden, size=size)
    return group_normalised(model) if norm == "group" else model


def without_dropout(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose dropout does nothing, as EWC needs it."""
    model = build()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def forgetting(
    figures: Listed = "anatomy,semantics",
    seeds: Listed = "0,1,2",
    classes: str = "0,1,2,3,4/5,6,7,8,9",
    ewc_strengths: Listed = "1,10,100",
    replay_shares: Listed = "0.05,0.1,0.3",
    model: str = "conv4",
    hidden: int = 32,
    norm: str = "group",
    steps: int = 400,
    batch: int = 64,
    lr: float = 0.02,
    each: int = 2000,
    tested: int = 500,
    size: int = 32,
    root: str | None = None,
    device: str = "auto",
    folder: str | None = None,
    report: str | None = None,
    quick: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    progress: bool = True,  # noqa: FBT001, FBT002
    note: str = "",
    results: str | None = None,
) -> None:
    """Learn tasks of CIFAR-10's classes one after another.

    Args:
        figures: anatomy (two halves of the classes, layer by layer), semantics (which second task
            makes the first forgotten), with commas.
        seeds: of the networks and their trainings, with commas.
        classes: of the two tasks of "anatomy", by number.
        ewc_strengths: of EWC, with commas.
        replay_shares: of every batch, with commas.
        model: conv4, or any network by name, such as resnet18 or vgg11.
        hidden: channels of conv4.
        norm: group (in place of batch norm), or batch: as the network has it, without EWC.
        steps: of each task of "anatomy"; a half of it for each pair of classes.
        batch: images a step.
        lr: of SGD with momentum 0.9.
        each: training images of a class; 1,000 at most for pairs of classes.
        tested: test images of a class.
        size: height and width of the images.
        root: the folder that holds CIFAR-10; by default METALEARN_DATA, or else ./data.
        device: auto, cpu or cuda.
        folder: where finished tasks are kept [runs/forgetting-benchmark-... by settings].
        report: also write the page of "anatomy" to this file.
        quick: a few steps on a few images, to try the command.
        progress: show progress.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    chosen = choose("figure", figures, FIGURES)
    if quick:
        steps, batch, each, tested = (8, 16, 40, 20)
        seeds, ewc_strengths, replay_shares = ("0", "100", "0.25")
    setting = Setting(
        images=load("cifar10", root, size=size, progress=progress),
        model=model,
        hidden=hidden,
        norm=norm,
        steps=steps,
        batch=batch,
        lr=lr,
        each=each,
        tested=tested,
        device=options.device(device),
        folder=Path(),
    )
    digest = hashlib.sha256(json.dumps(setting.record(), sort_keys=True).encode()).hexdigest()
    place = Path(folder or f"runs/forgetting-benchmark-{digest[:8]}")
    setting = replace(setting, folder=place)
    if "anatomy" in chosen:
        memories: dict[str, Memory | None] = {"none": None}
        if norm == "group":
            memories |= {f"ewc {s}": ewc(float(s)) for s in listed(ewc_strengths)}
        memories |= {f"replay {share}": replay(float(share)) for share in listed(replay_shares)}
        anatomy(setting, classes, memories, numbers(seeds), note, report, progress=progress)
    if "semantics" in chosen:
        semantics(setting, numbers(seeds), note)


def anatomy(
    setting: Setting,
    classes: str,
    memories: dict[str, Memory | None],
    seeds: Sequence[int],
    note: str,
    report: str | None,
    *,
    k: Sequence[int] = (10, 3, 20),
    progress: bool,
) -> study.Forgetting:
    """Two tasks of other classes, with every memory."""
    groups = [numbers(group) for group in classes.split("/")]
    tasks = split_classes(few(setting.images, setting.each, setting.tested), groups)
    result = study.forgetting(
        setting.build(max(map(len, groups))),
        tasks,
        setting.training(),
        seeds,
        memories,
        folder=setting.folder / f"anatomy-{classes.replace('/', '-').replace(',', '')}",
        points=4,
        k=k,
        probe=500,
        progress=progress,
    )
    for run in result.runs:
        row = {
            "benchmark": "forgetting",
            "figure": "anatomy",
            "classes": classes,
            "names": [list(task.train.names) for task in tasks],
            "memory": run.memory,
            "memory_is": result.memories[run.memory],
            "seed": run.seed,
            "accuracy": run.accuracy,
            "courses": run.courses,
            "anatomy": run.anatomy.to_dict(),
            "frozen": run.frozen,
            **setting.record(),
            "note": note,
            **origin("forgetting"),
        }
        append(plain(row))
    print(result, flush=True)
    if report:
        result.report(report, settings=setting.record())
    return result


def semantics(setting: Setting, seeds: Sequence[int], note: str) -> None:
    """Which second task makes the first forgotten."""
    lines = []
    images = few(setting.images, min(setting.each, BINARY_IMAGES), setting.tested)
    for pair, (first, second, scored) in pairs_of_tasks(images).items():
        values: dict[str, list[float]] = {}
        for seed in seeds:
            measured = forgotten_by(setting, pair, first, second, scored, seed)
            row = {
                "benchmark": "forgetting",
                "figure": "semantics",
                "pair": pair,
                "seed": seed,
                **measured,
                **setting.record(),
                "note": note,
                **origin("forgetting"),
            }
            append(plain(row))
            for name, value in measured.items():
                values.setdefault(name, []).append(value)
        cells = [MeanStd.of(values[name]).text(100, 1, "seed") for name in ("before", "forgetting")]
        near = MeanStd.of(values["overlap"]).text(1, 3, "seed")
        lines.append((pair, *cells, near))
        print(f"{pair}: {cells[1]} points forgotten", flush=True)
    columns = ("first task, then second", "before, %", "forgetting, points", "overlap of features")
    print(table(columns, lines))


Pair = tuple[Split, Split, tuple[int, ...]]
"""A first task, a second one, and the labels of the first that are scored."""


def pairs_of_tasks(images: Split) -> dict[str, Pair]:
    """The pairs of tasks of Ramasesh et al. 2021's question on similarity, by name."""

    def task(*names: str) -> Split:
        return split_classes(images, [names])[0]

    vehicles, near, far = (
        task("ship", "truck"),
        task("airplane", "automobile"),
        task("cat", "horse"),
    )
    pairs: dict[str, Pair] = {}
    for share in SHARES:
        name = f"ship, truck; then {100 * share:.0f} % airplane, automobile, the rest cat, horse"
        pairs[name] = (vehicles, mixed(near, far, share), (0, 1))
    four = task("deer", "dog", "ship", "truck")
    for name, second in (("airplane, automobile", near), ("cat, horse", far)):
        pairs[f"deer, dog of deer, dog, ship, truck; then {name}"] = (four, second, (0, 1))
        pairs[f"ship, truck of deer, dog, ship, truck; then {name}"] = (four, second, (2, 3))
    others = ["bird", "deer", "dog", "frog"]
    (with_other,) = shifted(images, {"ship": [["ship"]], "truck": [["truck"]], "other": [others]})
    for name, second in (("airplane, automobile", near), ("cat, horse", far)):
        pairs[f"ship, truck of ship, truck, other; then {name}"] = (with_other, second, (0, 1))
    return pairs


def forgotten_by(
    setting: Setting, pair: str, first: Split, second: Split, scored: Sequence[int], seed: int
) -> dict[str, float]:
    """What a second task does to some classes of the first."""
    outputs = max(len(first.train.names), len(second.train.names))
    steps = max(1, setting.steps // BINARY_STEPS)
    train = setting.training(steps=steps, evaluate_every=steps)
    learner = Learner.of(setting.build(outputs), [first, second], train, points=0)
    digest = hashlib.sha256(repr([s.train.description for s in (first, second)]).encode())
    digest.update(pair.encode())
    sequence = learner.learn(seed, None, setting.folder / f"pair-{digest.hexdigest()[:8]}")
    accuracies = [scored_accuracy(learner, sequence.state(after, 0), scored) for after in (0, 1)]
    return {
        "before": accuracies[0],
        "after": accuracies[1],
        "forgetting": accuracies[0] - accuracies[1],
        "second": sequence.accuracy[1][1],
        "overlap": top_overlap(learner, sequence.weights[0]),
    }


def scored_accuracy(learner: Learner, weights: Any, scored: Sequence[int]) -> float:
    """The accuracy on test images of some labels, with the outputs of these labels alone."""
    training = learner.trainings[0]
    model = learner.network(weights)
    logits = training._logits(model, training.test_inputs, len(training.test_targets))
    rows = torch.isin(training.test_targets, torch.tensor(scored))
    answers = torch.tensor(scored)[logits[rows][:, list(scored)].argmax(1)]
    return float((answers == training.test_targets[rows]).double().mean())


def top_overlap(learner: Learner, weights: Any, count: int = 500) -> float:
    """The overlap of both tasks' features in the top layer of the network of the first."""
    model = learner.network(weights).eval()
    top = body(model, learner.head)[-1]
    sides: list[Tensor] = []
    for training in learner.trainings:
        outputs = layer_outputs(model, [top], training.probe(count), "before")
        sides.append(matrix(outputs[top], "positions", 10_000, 0).cpu())
    return overlap(*sides)


def few(images: Split, each: int, tested: int) -> Split:
    """The first images of every class."""
    return Split(_first(images.train, each), None, _first(images.test, tested))


def _first(images: LabelledImages, count: int) -> LabelledImages:
    rows = [(images.labels == label).nonzero()[:count, 0] for label in range(len(images.names))]
    kept = torch.cat(rows)
    record = {**images.description, "images_per_class": count}
    return LabelledImages(images.images[kept], images.labels[kept], images.names, record)


if __name__ == "__main__":
    run_benchmark(forgetting)
