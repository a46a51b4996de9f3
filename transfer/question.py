"""A question of transfer as settings, and what it compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torchvision.transforms import v2

from metalearn.data import labelled_sets
from metalearn.data.labelled_sets import Split, divided
from metalearn.network.layers import layers
from metalearn.runtime import distributed, files
from metalearn.runtime.files import Record
from metalearn.runtime.options import Listed, device, listed, numbers
from metalearn.runtime.progress import duration, progress
from metalearn.tasks import glyphs
from transfer.comparison.run import checked_seeds
from transfer.finetuning.finetune import FineTuning, finetune
from transfer.initialisation.sources import fresh, gabor, mean_var, permuted
from transfer.initialisation.strategies import Strategy, everywhere, transfusion
from transfer.initialisation.weights import PLAIN, Normalization, Pretrained, read
from transfer.models import Build

Start: TypeAlias = "Strategy | tuple[Build, Strategy]"
NAMES = ("random", "mean_var", "permuted", "gabor", "slim", "full")
LISTS = ("strategies", "through", "seeds")
# Settings that decide no run, or only which runs there are: the folder of runs leaves them out.
NOT_OF_RUNS = ("seeds", "strategies", "through", "device", "download")
TESTS = 16  # of one run
PRETRAINING_TESTS = 4  # only the last counts; the others show progress
GLYPH_IMAGES = 160
PRETRAINING_BATCH = 64
PRETRAINING_RATE = 2e-3


@dataclass(frozen=True)
class Transfer:
    """One question of transfer: images, a network, its pretraining, and its fine-tuning.

    Args:
        dataset: glyphs (embedded), eurosat, crop-disease, isic, chestx, a MedMNIST file (path.npz),
            a folder of class folders, or a set of torchvision's or MedMNIST's by name.
        root: the folder that holds named sets; by default METALEARN_DATA, or else ./data.
        download: let torchvision, timm or the medmnist package download data or weights that are
            not there.
        images: training images each seed draws, a number or (up to 1.0) a fraction, each class with
            its share [all; 160 of glyphs].
        size: height and width of the images in pixels [the data set's own].
        channels: 1 for grey, 3 for colour [the data set's own; 3 with weights].
        model: cbr-mini, cbr-tiny, cbr-small, cbr-large_t, cbr-large_w, smallvit, cifar_resnet20
            (32, 44, 56, 110), any torchvision model, timm:NAME, or package.module:callable, called
            with the number of outputs [cbr-mini for glyphs, cbr-tiny for others].
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
        for name in LISTS:
            value = getattr(self, name)
            if value is not None:
                # Text with commas, whichever form was typed: equal questions share a folder.
                object.__setattr__(self, name, ",".join(listed(value, name)))
        unknown = [name for name in listed(self.strategies) if name not in NAMES]
        if unknown:
            raise ValueError(
                f"there is no strategy {unknown[0]!r}; choose from {', '.join(NAMES)}, and name"
                " layers with --through"
            )
        # Raises for seeds that repeat, long before they are used.
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

    @property
    def folder(self) -> Path:
        """The default folder of the runs; its name holds a hash of the settings."""
        decisive = {name: value for name, value in asdict(self).items() if name not in NOT_OF_RUNS}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        return Path(f"runs/transfer-{Path(self.dataset).stem}-{digest[:8]}")

    def images_of(self, dataset: str, channels: int | None = None) -> Split:
        """The images of a data set, as this network takes them."""
        channels = channels or self.channels
        # Glyphs to transfer to are of other classes than those to pretrain on.
        if dataset == "glyphs":
            return self._sized(divided(glyphs("test", classes=40, drawers=30), 0.5), channels)
        return labelled_sets.load(
            dataset, self.root, size=self.size, channels=channels, download=self.download
        )

    def parts(self) -> Split:
        """The images to fine-tune and test on."""
        channels = self.channels
        if channels is None and self.weights:
            channels = 3  # as pretrained networks take them
        return self.images_of(self.dataset, channels)

    def _sized(self, parts: Split, channels: int | None) -> Split:
        """The parts in the size of this question, with this number of channels."""
        train = labelled_sets.sized(parts.train, self.size, channels)
        test = labelled_sets.sized(parts.test, self.size, channels)
        validation = parts.validation
        if validation is not None:
            validation = labelled_sets.sized(validation, self.size, channels)
        return Split(train, validation, test)

    def build(self, outputs: int, channels: int, size: int) -> Build:
        """A function that builds the network with its own random start."""
        return Build(self.network, outputs, channels, size=size)

    def pretrained(self, folder: Path, channels: int, *, shown: bool) -> Pretrained:
        """The weights to transfer: read, or trained here once and kept in `folder`.

        Args:
            folder: where pretrained weights are kept.
            channels: of the images.
            shown: show progress.

        Raises:
            ValueError: `folder` holds weights that were pretrained with other settings.
        """
        if self.given:
            return self.given
        dataset = self.pretrain_on or "glyphs"
        if dataset == "glyphs":
            parts = self._sized(divided(glyphs("train", classes=160), 0.1), channels)
        else:
            parts = self.images_of(dataset, channels)
        train = finetune(
            parts.train,
            parts.test,
            steps=self.pretrain_steps,
            batch=PRETRAINING_BATCH,
            lr=PRETRAINING_RATE,
            evaluate_every=max(1, self.pretrain_steps // PRETRAINING_TESTS),
            transform=self._transform(),
            device=self.device,
        )
        settings = {"model": self.network, "channels": channels, **train.settings}
        path = folder / "pretrained.safetensors"
        if path.exists():
            tensors, record = files.load(path)
            # As JSON stores them: tuples become lists.
            if record["settings"] != json.loads(json.dumps(settings)):
                raise ValueError(
                    f"{path} was pretrained with other settings; name another --folder, or"
                    " delete it"
                )
        else:
            tensors, record = self._pretrain(train, dataset, channels, shown=shown)
            files.save(path, tensors, record | {"settings": settings})
        if distributed.rank() == 0:
            print(_pretraining(dataset, record))
        return Pretrained(f"the network pretrained on {dataset}", tensors)

    def _pretrain(
        self, train: FineTuning, dataset: str, channels: int, *, shown: bool
    ) -> tuple[dict[str, Tensor], Record]:
        """Train the network on the data set to transfer from."""
        # One network for all seeds of the comparison, as with weights from a file.
        torch.manual_seed(0)
        model = self.build(train.classes, channels, train.train_inputs.shape[-1])()
        with progress(f"pretraining on {dataset}", train.steps, shown=shown) as advance:
            curve = train(model, 0, advance)
        record = {
            "accuracy": curve.final,
            "seconds": curve.seconds,
            "majority": curve.majority,
            "collapsed": curve.collapsed,
        }
        return dict(model.cpu().state_dict()), record

    def starts(self, weights: Pretrained, build: Build) -> dict[str, Start]:
        """The strategies by name, for the network that `build` builds."""
        # Functions, since making a strategy reads its weights and may raise.
        makers: dict[str, Callable[[], Start]] = {
            "random": lambda: everywhere(fresh()),
            "mean_var": lambda: everywhere(mean_var(weights)),
            "permuted": lambda: everywhere(permuted(weights)),
            "gabor": lambda: everywhere(gabor()),
            "slim": lambda: (replace(build, slim=True), transfusion(weights, through="layer2")),
            "full": lambda: transfusion(weights),
        }
        names = listed(self.strategies)
        starts = {name: makers[name]() for name in names if name != "full"}
        for layer in self._through(layers(build())):
            starts[f"through {layer}"] = transfusion(weights, through=layer)
        if "full" in names:  # after those that copy a part
            starts["full"] = makers["full"]()
        return starts

    def _through(self, names: list[str]) -> list[str]:
        """The layers to copy up to."""
        if self.through is not None:
            return listed(self.through)
        if self.network != "cbr-mini":
            return []
        if len(names) <= 3:
            return names[:1]
        middle = (len(names) - 1) // 2 - 1  # of the body
        return [names[0], names[middle]]

    def training(self, parts: Split) -> FineTuning:
        """The function that fine-tunes.

        Raises:
            ValueError: early stopping without validation images, or as `finetune` raises.
        """
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
            images=self._training_images(),
            validation=parts.validation if self.early_stop is not None else None,
            early_stop=self.early_stop,
            balance=self.balance,
            frozen=self.frozen,
            transform=self._transform(),
            device=self.device,
        )

    def _training_images(self) -> int | float | None:
        if self.images is None:
            return GLYPH_IMAGES if self.dataset == "glyphs" else None
        # Up to 1.0 it is a fraction; the command line reads every number as a float.
        return self.images if self.images <= 1 else int(self.images)

    @cached_property
    def given(self) -> Pretrained | None:
        """The weights that --weights names."""
        if not self.weights:
            return None
        return read(self.weights, model=self.network, download=self.download)

    @property
    def normalization(self) -> Normalization | None:
        """How images are normalised: as --normalize says, or as in the training of the weights."""
        if self.normalize is not None:
            return Normalization.parse(self.normalize)
        # Images in [0, 1] as they are need no normalisation.
        known = self.given.normalization if self.given else None
        return None if known == PLAIN else known

    def _transform(self) -> v2.Normalize | None:
        if self.normalization is None:
            return None
        return v2.Normalize(list(self.normalization.mean), list(self.normalization.std))


def _pretraining(dataset: str, record: Record) -> str:
    """How the pretraining went, in a line."""
    accuracy = f"{record['accuracy']:.1%}"
    line = (
        f"pretrained on {dataset}: {accuracy} of its test images right,"
        f" {duration(record['seconds'])}"
    )
    if record.get("collapsed"):
        line += (
            "; it has collapsed: it predicts one class for all of them, so more --pretrain_steps or"
            " other images are needed"
        )
    return line
