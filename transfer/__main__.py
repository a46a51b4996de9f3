"""The command line: `transfuse compare`, every setting from the signatures below."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torchvision.transforms import v2

from metalearn import __version__
from metalearn.data import labelled_sets
from metalearn.data.labelled_sets import Split, divided
from metalearn.network.layers import layers
from metalearn.runtime import distributed, files, parallel
from metalearn.runtime.installation import check_files
from metalearn.runtime.options import Listed, Parser, command, device, listed, numbers
from metalearn.runtime.progress import duration, progress
from metalearn.runtime.provenance import machine
from metalearn.runtime.tables import Table, check_table
from metalearn.tasks import glyphs
from transfer.comparison.compare import compare as compare_strategies
from transfer.comparison.run import checked_seeds
from transfer.comparison.text import columns, final_rows
from transfer.finetuning.finetune import finetune
from transfer.initialisation.sources import fresh, gabor, mean_var, permuted
from transfer.initialisation.strategies import Strategy, everywhere, transfusion
from transfer.initialisation.weights import PLAIN, Normalization, Pretrained, read

from .models import Build

NAMES = ("random", "mean_var", "permuted", "gabor", "slim", "full")
Start: TypeAlias = "Strategy | tuple[Build, Strategy]"
TESTS = 16  # of one run
PRETRAINING_BATCH, PRETRAINING_RATE = 64, 2e-3


@dataclass(frozen=True)
class Transfer:
    """One question of transfer: images, a network, what it was trained on before, and how it is
    fine-tuned.

    Arguments:
        dataset: glyphs (embedded), a MedMNIST file (path.npz), a folder of class folders, or a set
            of torchvision's or MedMNIST's by name.
        root: the folder that holds named sets; by default METALEARN_DATA, or else ./data.
        download: let torchvision, timm or the medmnist package download data or weights that are
            not there.
        images: training images each seed draws, a number or (up to 1.0) a fraction, each class with
            its share [all; 160 of glyphs].
        size: height and width of the images in pixels [the data set's own].
        channels: 1 for grey, 3 for colour [the data set's own; 3 with weights].
        model: cbr-mini, cbr-tiny, cbr-small, cbr-large_t, cbr-large_w, any torchvision model,
            timm:NAME, or package.module:callable, called with the number of outputs [cbr-mini for
            glyphs, cbr-tiny for others].
        weights: a weights file, torchvision's name (ResNet18_Weights.IMAGENET1K_V1, or DEFAULT for
            the model's best), or timm:NAME; what is not in a cache is downloaded with --download
            alone.
        pretrain_on: instead of weights, the data set to pretrain on, as dataset [other glyphs, for
            glyphs].
        pretrain_steps: steps of that pretraining.
        normalize: imagenet, none (images in 0 to 1), or MEAN/STD by channel [what the weights were
            trained with, else none].
        strategies: of random, mean_var, permuted, gabor, full, and for ResNets slim (half as wide
            above layer2), with commas.
        through: layers to copy up to, with commas, each a strategy [the first and the middle layer
            of cbr-mini].
        seeds: with commas; six can be decided at the level 0.05.
        steps: of fine-tuning.
        batch: images a step.
        lr: rate of fine-tuning.
        optimizer: adam, adamw or sgd.
        evaluate_every: steps between tests [a sixteenth of the steps].
        metric: accuracy, balanced_accuracy or auc.
        balance: loss (weighed by class) or batches (drawn by class), for classes of different size
            [neither].
        early_stop: stop after so many tests without a better validation score, where the data set
            has validation images [never].
        frozen: the layer up to which nothing is trained [none].
        device: auto (cuda where there is one, else cpu), cpu, cuda, or any that torch knows.
    """

    dataset: str = "glyphs"
    root: str | None = None
    download: bool = False
    images: float | None = None
    size: int | None = None
    channels: int | None = None
    model: str | None = None
    weights: str | None = None
    pretrain_on: str | None = None
    pretrain_steps: int = 600
    normalize: Literal["imagenet", "none"] | None = None
    strategies: Listed = "random,mean_var,permuted,gabor,full"
    through: Listed | None = None
    seeds: Listed = "0,1,2,3,4,5"
    steps: int = 160
    batch: int = 32
    lr: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    evaluate_every: int | None = None
    metric: Literal["accuracy", "balanced_accuracy", "auc"] = "accuracy"
    balance: Literal["loss", "batches"] | None = None
    early_stop: int | None = None
    frozen: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", device(self.device))
        for name in (
            "strategies",
            "through",
            "seeds",
        ):  # as text with commas, which keeps the names of folders of runs
            if getattr(self, name) is not None:
                object.__setattr__(self, name, ",".join(listed(getattr(self, name), name)))
        unknown = [name for name in listed(self.strategies) if name not in NAMES]
        if unknown:
            raise ValueError(
                f"there is no strategy {unknown[0]!r}; choose from {', '.join(NAMES)}, and name"
                " layers with --through"
            )
        checked_seeds(self.numbers)
        if self.normalize is not None:
            Normalization.parse(self.normalize)
        if self.weights and self.pretrain_on:
            raise ValueError(
                "--weights and --pretrain_on both say what the pretrained start is; give one of"
                " them"
            )
        if not (self.weights or self.pretrain_on or self.dataset == "glyphs"):
            raise ValueError(
                "what was the network pretrained on? Give --weights FILE (or torchvision's name),"
                " or --pretrain_on DATASET"
            )

    @property
    def numbers(self) -> list[int]:
        """The seeds."""
        return numbers(self.seeds, "seeds")

    @property
    def network(self) -> str:
        """The model's name."""
        return self.model or ("cbr-mini" if self.dataset == "glyphs" else "cbr-tiny")

    def _sized(self, parts: Split, channels: int | None) -> Split:
        """The parts in the size of this question, and with so many channels."""
        train = labelled_sets.sized(parts.train, self.size, channels)
        test = labelled_sets.sized(parts.test, self.size, channels)
        validation = parts.validation
        if validation is not None:
            validation = labelled_sets.sized(validation, self.size, channels)
        return Split(train, validation, test)

    def split(self, dataset: str, channels: int | None = None) -> Split:
        """The images of a data set, as this network takes them."""
        if dataset == "glyphs":
            found = divided(glyphs("test", classes=40, drawers=30), 0.5)
            return self._sized(found, channels or self.channels)
        options: dict[str, Any] = {
            "size": self.size,
            "channels": channels or self.channels,
            "download": self.download,
        }
        return labelled_sets.load(dataset, self.root, **options)

    def build(self, outputs: int, channels: int) -> Build:
        """What builds the network with its own random start."""
        return Build(self.network, outputs, channels)

    def pretrained(self, folder: Path, channels: int, shown: bool) -> Pretrained:
        """The weights to transfer: read, or trained here once and kept in `folder`."""
        if self.given:
            return self.given
        source = self.pretrain_on or "glyphs"
        parts = (
            divided(glyphs("train", classes=160), 0.1)
            if source == "glyphs"
            else self.split(source, channels)
        )
        if source == "glyphs":
            parts = self._sized(parts, channels)
        train = finetune(
            parts.train,
            parts.test,
            steps=self.pretrain_steps,
            batch=PRETRAINING_BATCH,
            lr=PRETRAINING_RATE,
            evaluate_every=max(1, self.pretrain_steps // TESTS),
            transform=self._transform(),
            device=self.device,
        )
        settings = {"model": self.network, "channels": channels, **train.settings}
        path = folder / "pretrained.safetensors"
        if path.exists():
            tensors, record = files.load(path)
            if record["settings"] != json.loads(json.dumps(settings)):
                raise ValueError(
                    f"{path} was pretrained with other settings; name another --folder, or"
                    " delete it"
                )
        else:
            torch.manual_seed(0)
            model = self.build(train.classes, channels)()
            with progress(f"pretraining on {source}", train.steps, shown=shown) as advance:
                curve = train(model, 0, advance)
            tensors = dict(model.cpu().state_dict())
            record = {"settings": settings, "accuracy": curve.final, "seconds": curve.seconds}
            record |= {"majority": curve.majority, "collapsed": curve.collapsed}
            files.save(path, tensors, record)
        if distributed.rank() == 0:
            right = (
                f"{record['accuracy']:.1%} of its test images right, {duration(record['seconds'])}"
            )
            collapsed = (
                "; it has collapsed: it predicts one class for all of them, so more"
                " --pretrain_steps or other images are needed"
            )
            print(f"pretrained on {source}: {right}{collapsed if record.get('collapsed') else ''}")
        return Pretrained(f"the network pretrained on {source}", tensors)

    def chosen(self, weights: Pretrained, build: Build) -> dict[str, Start]:
        """The strategies by name, for the network that `build` builds."""
        names = layers(build())
        known: dict[str, Callable[[], Start]] = {
            "random": lambda: everywhere(fresh()),
            "mean_var": lambda: everywhere(mean_var(weights)),
            "permuted": lambda: everywhere(permuted(weights)),
            "gabor": lambda: everywhere(gabor()),
            "slim": lambda: (replace(build, slim=True), transfusion(weights, through="layer2")),
            "full": lambda: transfusion(weights),
        }
        places = (
            listed(self.through)
            if self.through is not None
            else _quarters(names)
            if self.network == "cbr-mini"
            else []
        )
        asked = listed(self.strategies)
        partial: dict[str, Start] = {
            f"through {place}": transfusion(weights, through=place) for place in places
        }
        whole = {name: known[name]() for name in asked}
        full = {"full": whole.pop("full")} if "full" in whole else {}
        return {**whole, **partial, **full}

    def training(self, parts: Split) -> Any:
        """The function that fine-tunes."""
        if self.early_stop is not None and parts.validation is None:
            raise ValueError(
                f"--early_stop needs validation images, and {self.dataset} has none apart; leave"
                " it out"
            )
        return finetune(
            parts.train,
            parts.test,
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            optimizer=self.optimizer,
            evaluate_every=self.evaluate_every or max(1, self.steps // TESTS),
            metric=self.metric,
            images=self._images(),
            validation=parts.validation if self.early_stop is not None else None,
            early_stop=self.early_stop,
            balance=self.balance,
            frozen=self.frozen,
            transform=self._transform(),
            device=self.device,
        )

    def _images(self) -> int | float | None:
        if self.images is None:
            return 160 if self.dataset == "glyphs" else None
        return self.images if self.images <= 1 else int(self.images)

    @cached_property
    def given(self) -> Pretrained | None:
        """The weights that --weights names."""
        if not self.weights:
            return None
        return read(self.weights, model=self.network, download=self.download)

    @property
    def normalization(self) -> Normalization | None:
        """How images are normalised: as asked for, or as those were that the weights were trained
        on.
        """
        if self.normalize is not None:
            return Normalization.parse(self.normalize)
        known = self.given.normalization if self.given else None
        return None if known == PLAIN else known

    def _transform(self) -> v2.Normalize | None:
        if self.normalization is None:
            return None
        return v2.Normalize(list(self.normalization.mean), list(self.normalization.std))


def compare(
    report: str = "transfer.html",
    table: str | None = None,
    folder: str | None = None,
    baseline: str = "random",
    threshold: float | None = None,
    level: float = 0.05,
    measure: str = "cca",
    probe: int = 400,
    processes: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Does a pretrained start help, which layers carry it, and is it features or only scale?

    Trains every start under every seed on the same batches, prints learning speed, scores, tests
    and what each layer kept, and writes all of it with pictures as one HTML page (and as JSON
    beside it). A comparison that was stopped goes on where it was.

    Args:
        report: the page to write.
        table: also write the table of final scores to this file: .csv, .md, .tex, .html or .txt.
        folder: where runs are kept [runs/transfer-... by settings].
        baseline: the strategy that others are compared against.
        threshold: the score that steps are counted to [98 % of the baseline's final score].
        level: of the tests and intervals.
        measure: cca, svcca, linear_cka, or another measure of similarity.
        probe: test images that layers are compared on.
        processes: how many share out the runs on this machine [one a core, at most 4, on a CPU;
            else 1].
        progress: show progress.
        settings: the images, the network and its fine-tuning.
    """
    started = time.monotonic()
    question = Transfer(**settings)
    check_table(table)
    Path(report).absolute().parent.mkdir(
        parents=True, exist_ok=True
    )  # now, rather than after all the work
    place = Path(folder or f"runs/transfer-{_digest(question)}")
    parts = question.split(question.dataset, question.channels or (3 if question.weights else None))
    train = question.training(parts)
    distributed.join(torch.device(question.device))
    rank, count = distributed.rank(), distributed.world_size()
    channels = parts.train.images.shape[1]
    build = question.build(len(parts.train.names), channels)
    weights = distributed.rank_zero_first(
        lambda: question.pretrained(place, channels, progress and rank == 0)
    )
    strategies = question.chosen(weights, build)
    sharing = 1 if count > 1 else _processes(question.device) if processes is None else processes
    if rank == 0:
        _announce(question, parts, train, strategies, place)
    found = compare_strategies(
        strategies,
        build,
        train,
        train.probe(probe),
        question.numbers,
        baseline=baseline,
        folder=place,
        threshold=threshold,
        level=level,
        measure=measure,
        processes=sharing,
        settings={"model": question.network, "weights": repr(weights)},
        progress=progress,
    )
    if rank:
        return
    print(f"\n{found}")
    seconds = time.monotonic() - started
    about = {
        "command": shlex.join(["transfuse", *sys.argv[1:]]),
        "data": _described(parts),
        "machine": machine(),
        "seconds": round(seconds),
    }
    if table:
        Table(columns(found, "final"), final_rows(found)).write(table)
    found.report(report, settings={**about, "processes": sharing})
    facts = {**found.to_dict(), "about": about, "question": asdict(question)}
    files.write_atomically(Path(report).with_suffix(".json"), json.dumps(facts, indent=1).encode())
    print(f"\nThe page with pictures: {os.path.abspath(report)} ({duration(seconds)} in all)")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line -> exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C."""
    from jsonargparse import auto_cli

    try:
        if "--version" in (sys.argv[1:] if arguments is None else arguments):
            check_files()
        with parallel.sigterm_exits():
            auto_cli(
                {"compare": compare},
                args=arguments,
                prog="transfuse",
                as_positional=False,
                parser_class=Parser,
                version=__version__,
            )
    except KeyboardInterrupt:
        again = command("transfuse", arguments)
        print(f"transfuse: stopped; the same command goes on from there: {again}", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError, OSError) as error:
        print(f"transfuse: {error}", file=sys.stderr)
        return 2
    return 0


def _announce(
    question: Transfer, parts: Split, train: Any, strategies: dict[str, Start], place: Path
) -> None:
    images, classes = len(train.chosen(0)), len(parts.train.names)
    print(
        f"{question.network} on {question.dataset}: {images:,} training images of {classes}"
        f" classes, {len(parts.test):,} test images"
    )
    if question.given:
        print(f"weights: {question.given}; {_images(question)}")
    print(
        f"{question.steps} steps of {min(question.batch, images)} images; {', '.join(strategies)};"
        f" seeds {question.seeds} ({place})"
    )


def _images(question: Transfer) -> str:
    """What is done to the images, in words."""
    if question.normalization:
        return f"images are normalised by mean/std {question.normalization}"
    if question.normalize is None and question.given and question.given.normalization is None:
        return (
            "how their images were normalised is not known, so images stay in [0, 1]; --normalize"
            " imagenet or MEAN/STD changes that"
        )
    return "images stay in [0, 1]"


def _quarters(names: list[str]) -> list[str]:
    """The first layer and the one in the middle of the body."""
    return [names[0], names[(len(names) - 1) // 2 - 1]] if len(names) > 3 else names[:1]


def _processes(device: str) -> int:
    return max(1, min(4, os.cpu_count() or 1)) if device == "cpu" else 1


def _digest(question: Transfer) -> str:
    import hashlib

    decisive = {
        key: value
        for key, value in asdict(question).items()
        if key not in ("seeds", "strategies", "through", "device", "download")
    }
    return f"{Path(question.dataset).stem}-{hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]}"


def _described(parts: Split) -> dict[str, Any]:
    return {
        "images": {"train": len(parts.train), "test": len(parts.test)},
        **{k: v for k, v in parts.train.description.items() if k != "split"},
    }


if __name__ == "__main__":
    sys.exit(main())
