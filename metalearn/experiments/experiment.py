"""One few-shot problem and how it is trained, as settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from metalearn.algorithms.base import Learner
from metalearn.data.decoding import split_named
from metalearn.data.images import LabelledImages
from metalearn.engine.execution import check_execution
from metalearn.evaluation import Tasks
from metalearn.models.weights import PLAIN, Fit, Normalization, Pretrained, fit, normalize, read
from metalearn.runtime import distributed
from metalearn.runtime.checks import is_kind, positive_number, whole_number
from metalearn.runtime.options import Listed, device, listed
from metalearn.tasks.batches import ENDLESS, Minibatches
from metalearn.tasks.few_shot import SEEDS, FewShot
from metalearn.training.loop import Curve, meta_train

from .images import DATASETS, PROTOCOLS, Protocol, converted, fractions, load
from .learners import (
    ALGORITHMS,
    ANY_WAYS,
    JOINT,
    MULTICLASS,
    at_test,
    build_learner,
    check_algorithm,
    parse,
    trained_by,
)
from .networks import OWN, build_network, check_scores, is_registered
from .presets import Preset, preset

__all__ = ["ALGORITHMS", "DATASETS", "OWN", "Experiment", "parse", "trained_by"]

COUNTS = (
    "ways",
    "shots",
    "queries",
    "test_tasks",
    "size",
    "channels",
    "hidden",
    "meta_batch",
    "train_queries",
    "train_ways",
    "steps",
)
# The smallest value of each whole number.
LEAST = {**dict.fromkeys(COUNTS, 1), "inner_steps": 0, "test_steps": 0, "seed": 0}
# Numbers above zero, and what to do instead.
POSITIVE = {
    "lr": "without an inner loop, take protonet or nil-train",
    "outer_lr": "the outer loop trains nothing without a rate",
    "clip_value": "leave it out to train without clipping",
}
CHOICES = {
    "norm": ("batch", "frozen", "group", "none"),
    "precision": ("float32", "float64", "tf32", "bfloat16"),
    "schedule": ("constant", "cosine"),
    "channels": (1, 3),
    "protocol": get_args(Protocol),
}
# Settings that decide the result beside the preset's.
DECISIVE = ("dataset", "ways", "shots", "weights", "norm", "seed", "precision")
# Settings of a preset that do not decide what is trained.
AT_TEST = {"test_steps", "follows", "queries", "test_rotations", "differs"}


@dataclass(frozen=True)
class Experiment:
    """A data set, a model, and a preset with the settings that override it.

    Args:
        dataset: glyphs (embedded), omniglot, mini-imagenet, tiered-imagenet, cifar-fs, fc100, cub;
            for the test alone crop-disease, eurosat, isic, chestx, fewtrans/dtd (and the others of
            FewTrans); or the path of your own folder of class folders, or of a data set of
            Meta-Album.
        splits: for a folder, a CSV file with the columns filename, label and split, or a folder
            with train.csv, val.csv and test.csv.
        split_ratio: for a folder without split folders, the shares of its classes for training,
            validation and test, as 64,16,20 or [2, 1, 1] [64,16,20].
        root: the folder that holds the data sets; by default METALEARN_DATA, or else ./data.
        in_memory: false decodes image files when they are drawn, for more of them than memory
            holds; the tasks stay the same.
        download: let torchvision or timm download a data set or weights that are not there.
        ways: classes per task.
        shots: support images per class.
        queries: query images per class, at test [preset]. Under batch norm of the current batch
            more queries are worth points.
        preset: whose settings to follow: quick, finn2017, raghu2020 or boil2021.
        protocol: which characters of Omniglot are for training and test: vinyals, finn or lake
            [preset]; and which classes of CUB: chen2019, ye2020 or triantafillou2020 [chen2019].
        test_rotations: whether turned characters of Omniglot are classes at test, too [preset].
        size: height and width of the images in pixels [the data set's own].
        channels: 1 for grey, 3 for colour [what the model takes, or the data set has].
        model: conv4, resnet12, smallvit, cifar_resnet20 (32, 44, 56, 110), any torchvision model by
            name, or package.module:callable, called with the number of ways.
        weights: what the network starts from: a weights file, torchvision's name
            (ResNet18_Weights.IMAGENET1K_V1, or DEFAULT for the model's best), or timm:NAME. Weights
            that are not in a cache are downloaded only with --download.
        normalize: imagenet, none (images in 0 to 1), or MEAN/STD by channel [what the weights were
            trained with, else none].
        norm: batch (statistics of the current batch, transductive, as in the MAML papers), frozen
            (those of pretrained weights), or for conv4 group (group norm) or none
            (weight-standardised convolutions): no example then depends on others.
        hidden: channels of conv4 [preset].
        pool: max-pool in conv4; false for strides and a mean over space [preset].
        adapt_norm: whether the norms' weights and biases move in the inner loop [preset].
        lr: inner rate on a mean loss [preset].
        inner_steps: inner steps in training [preset].
        test_steps: inner steps at test [preset].
        meta_batch: tasks per outer step [preset].
        train_queries: query images per class in training [preset].
        train_ways: classes per task in training, for learners that take any number of them, such as
            protonet [preset, else ways].
        steps: outer steps [preset].
        outer_lr: rate of the outer Adam [preset].
        schedule: of that rate: constant, or cosine (falls to zero at the last step) [preset].
        clip_value: magnitude that outer gradients are clipped to [preset].
        test_tasks: test tasks, the same for every learner.
        seed: of the initial weights and of the training tasks; test tasks keep their own.
        execution: how tasks are run: auto, loop, threads, vectorized, graphs (CUDA) or compiled
            (CPU, small networks).
        device: auto (cuda where there is one, else cpu, in the process that trains), cpu, cuda, or
            any that torch knows.
        precision: float32, float64, tf32 (CUDA), or bfloat16 (autocast).
        runs: the folder of checkpoints and logs; a run that was interrupted goes on from there.

    Raises:
        ValueError: a value is out of range, or two settings contradict each other.
        TypeError: a value is of another type.
        FileNotFoundError: there is no such split file.
    """

    dataset: str = "glyphs"
    splits: str | None = None
    split_ratio: Listed | None = None
    root: str | None = None
    in_memory: bool = True
    download: bool = False
    ways: int = 5
    shots: int = 1
    queries: int | None = None
    preset: Literal["quick", "finn2017", "raghu2020", "boil2021"] = "quick"
    protocol: Protocol | None = None
    test_rotations: bool | None = None
    size: int | None = None
    channels: int | None = None
    model: str | None = None
    weights: str | None = None
    normalize: str | None = None
    norm: Literal["batch", "frozen", "group", "none"] = "batch"
    hidden: int | None = None
    pool: bool | None = None
    adapt_norm: bool | None = None
    lr: float | None = None
    inner_steps: int | None = None
    test_steps: int | None = None
    meta_batch: int | None = None
    train_queries: int | None = None
    train_ways: int | None = None
    steps: int | None = None
    outer_lr: float | None = None
    schedule: Literal["constant", "cosine"] | None = None
    clip_value: float | None = None
    test_tasks: int = 600
    seed: int = 0
    execution: Literal["auto", "loop", "threads", "vectorized", "graphs", "compiled"] = "auto"
    device: str = "auto"
    precision: Literal["float32", "float64", "tf32", "bfloat16"] = "float32"
    runs: str = "runs"
    _loaded: dict[str, LabelledImages] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        # In this order: a number of numpy becomes a plain one before types are checked.
        self._check_numbers()
        self._check_types()
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"{name}={value!r}; choose {' or '.join(map(str, choices))}")
        self._check_protocol()
        if self.normalize is not None:
            Normalization.parse(self.normalize)
        check_execution(self.execution)
        if self.device != "auto":  # which is resolved where the experiment runs
            device(self.device)
        self._check_division()

    def _check_numbers(self) -> None:
        """Replace numbers of other types by ints and floats; raise if one is out of range."""
        for name in (*LEAST, *POSITIVE):
            value = getattr(self, name)
            if value is None and getattr(Experiment, name) is None:  # left to the preset
                continue
            number: float
            if name in LEAST:
                number = whole_number(name, value, LEAST[name])
            else:
                number = positive_number(name, value, POSITIVE[name])
            object.__setattr__(self, name, number)

    def _check_types(self) -> None:
        hints = get_type_hints(Experiment)
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.init and not is_kind(value, hints[setting.name]):
                raise TypeError(
                    f"{setting.name}={value!r} is a {type(value).__name__}; give a {setting.type}"
                )

    def _check_protocol(self) -> None:
        """Raise if the protocol, or turned characters at test, are not those of this data set."""
        choices = PROTOCOLS.get(self.dataset, ())
        turned = self.test_rotations is not None and self.dataset != "omniglot"
        if turned or (self.protocol and not choices):
            raise ValueError(
                "--protocol divides the classes of Omniglot or CUB, and --test_rotations those of"
                f" Omniglot, and the data set is {self.dataset}; leave them out"
            )
        if self.protocol and self.protocol not in choices:
            raise ValueError(
                f"protocol={self.protocol!r} is not for {self.dataset}; choose"
                f" {' or '.join(choices)}"
            )

    def _check_division(self) -> None:
        """Raise if the classes of a folder cannot be divided as requested."""
        if (self.splits or self.split_ratio) and not Path(self.dataset).is_dir():
            raise ValueError(
                f"--splits and --split-ratio divide a folder's classes, and {self.dataset} is no"
                " folder; leave them out"
            )
        if self.splits and not Path(self.splits).exists():
            raise FileNotFoundError(
                f"there is no split file {self.splits}: it needs the columns filename, label and"
                " split"
            )
        if self.splits and self.split_ratio:
            raise ValueError("--splits and --split-ratio both divide the classes; give one of them")
        if self.split_ratio is not None:
            fractions(self.split_ratio)  # raises if it cannot be used
            object.__setattr__(self, "split_ratio", ",".join(listed(self.split_ratio)))

    @cached_property
    def pretrained(self) -> Pretrained | None:
        """The weights that the network starts from."""
        if self.weights is None:
            return None
        return read(self.weights, model=self.settings().model, download=self.download)

    @property
    def normalization(self) -> Normalization | None:
        """How the network normalises its images: as set, or as in the training of its weights."""
        if self.normalize is not None:
            return Normalization.parse(self.normalize)
        # Images in [0, 1] as they are need no normalisation.
        normalization = self.pretrained.normalization if self.pretrained else None
        return None if normalization == PLAIN else normalization

    @property
    def mixed(self) -> str | None:
        """The `precision` of `meta_train`, if it is less than the network's own dtype."""
        return self.precision if self.precision in ("bfloat16", "tf32") else None

    def settings(self, algorithm: str = "maml") -> Preset:
        """The preset for an algorithm, with the settings that override it."""
        # A setting of this experiment that has the name of a preset's overrides it.
        base = preset(self.preset, self.dataset, self.ways, self.shots, algorithm)
        values = {name: getattr(self, name, None) for name in base.__dataclass_fields__}
        return replace(base, **{name: value for name, value in values.items() if value is not None})

    def data(self, split: str) -> LabelledImages:
        """The images of a split: train, validation (or val) or test."""
        split = split_named(split)
        if split not in self._loaded:
            self._loaded[split] = self._load(split)
        return self._loaded[split]

    def _load(self, split: str) -> LabelledImages:
        chosen = self.settings()
        images = load(
            self.dataset,
            split,
            self.root or os.environ.get("METALEARN_DATA", "data"),
            size=self.size,
            in_memory=self.in_memory,
            download=self.download,
            protocol=chosen.protocol,
            # Turned characters are always classes in training.
            rotations=split == "train" or chosen.test_rotations,
            splits=self.splits,
            split_ratio=self.split_ratio,
        )
        own_channels, own_size, _ = images.image_shape
        if is_registered(chosen.model):
            own_channels = 3  # as all networks of torchvision and timm take by default
        return converted(images, self.channels or own_channels, self.size or own_size)

    def training_tasks(self, algorithm: str = "maml") -> Tasks:
        """An endless stream of training tasks, which the seed decides.

        Training without an inner loop sees as many images a step as an algorithm's tasks hold: the
        support images are among the queries of "multitask", and in the minibatches of "multiclass".
        """
        images = self.data("train")
        chosen = self.settings(algorithm)
        queries = chosen.train_queries or self.shots
        # No seed of training meets the seed of another split's tasks.
        seed = SEEDS["train"] + len(SEEDS) * self.seed
        if algorithm in JOINT or algorithm in MULTICLASS:
            queries += self.shots
        if algorithm in MULTICLASS:
            return Minibatches(images, chosen.meta_batch * self.ways * queries, seed=seed)
        ways = chosen.train_ways or self.ways
        if ways != self.ways and algorithm not in ANY_WAYS:
            raise ValueError(
                f"train_ways={ways}, but {algorithm} trains a head of {self.ways} outputs; leave it"
                f" out, or choose {', '.join(ANY_WAYS)}"
            )
        return FewShot(images, ways, self.shots, queries, ENDLESS, seed=seed)

    def testing_tasks(self, split: str = "test", tasks: int | None = None) -> FewShot:
        """The tasks that every learner is tested on.

        Args:
            split: train, validation or test.
            tasks: only the first of them.
        """
        split = split_named(split)
        count = tasks or self.test_tasks
        return FewShot(
            self.data(split), self.ways, self.shots, self.test_queries(), count, seed=SEEDS[split]
        )

    def test_queries(self) -> int:
        """Query images per class, at test."""
        return self.settings().queries or self.shots

    def learner(self, algorithm: str, model: nn.Module | None = None) -> Learner:
        """A learner by name.

        Args:
            algorithm: one of `ALGORITHMS`.
            model: the network; by default a fresh one.

        Raises:
            ValueError: there is no such algorithm or model.
        """
        check_algorithm(algorithm)
        if model is None:
            model = self._trained_as(algorithm).fresh_model()
        return build_learner(algorithm, model, self.settings(algorithm), self.execution)

    def _trained_as(self, algorithm: str) -> Experiment:
        """The experiment whose network is trained: with an output for every class or every way."""
        if algorithm not in MULTICLASS:
            return self
        channels, size = self.shape()
        classes = len(self.data("train").names)
        return replace(self, ways=classes, channels=channels, size=size)

    def fresh_model(self) -> nn.Module:
        """The model with weights drawn by the seed, or with pretrained ones.

        Raises:
            ValueError: it cannot take the images, or does not return a score for each way.
        """
        channels, size = self.shape()
        # Built on the CPU: the same seed gives the same weights on every device.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model, _ = self._build(channels, size)
            check_scores(model, self.settings().model, channels, size, self.ways)
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        return model.to(device=distributed.device(self.device), dtype=dtype)

    def start(self) -> list[str]:
        """What the network starts from, in lines for a command's output; none without weights."""
        if self.pretrained is None:
            return []
        # The network is built to see which weights fit it, and thrown away.
        with torch.random.fork_rng(devices=[]):
            _, taken = self._build(*self.shape())
        lines = [f"weights: {self.pretrained}: {taken}"]
        if self.normalization:
            lines.append(f"images are normalised by mean/std {self.normalization}")
        elif self.normalize is None and self.pretrained.normalization is None:
            lines.append(
                f"how the images of {self.pretrained} were normalised is not known, so images stay"
                " in [0, 1]; --normalize imagenet or MEAN/STD changes that"
            )
        else:
            lines.append("images stay in [0, 1]")
        return lines

    def shape(self) -> tuple[int, int]:
        """Channels and size of the images."""
        if self.channels and self.size:
            return self.channels, self.size
        channels, size, _ = self.data("train").image_shape
        return channels, size

    def network(self, channels: int, size: int) -> nn.Module:
        """The network by its name, with fresh weights."""
        return build_network(self.settings(), self.ways, channels, size, self.norm)

    def _build(self, channels: int, size: int) -> tuple[nn.Module, Fit | None]:
        """The network, and what it took of the weights."""
        model = self.network(channels, size)
        taken = fit(model, self.pretrained) if self.pretrained else None
        if self.normalization:
            normalized = len(self.normalization.mean)
            if normalized not in (1, channels):
                raise ValueError(
                    f"normalize={str(self.normalization)!r} is for {normalized} channels, but the"
                    f" images have {channels}; use --channels {normalized} or --normalize none"
                )
            normalize(model, self.normalization)
        return model, taken

    def train(
        self, algorithm: str, *, progress: bool = True, tensorboard: str | None = None
    ) -> tuple[Learner, Curve]:
        """Train a learner, or resume its training, or load it if it is done.

        Args:
            algorithm: one of `ALGORITHMS`; "random" trains nothing.
            progress: show progress.
            tensorboard: also write events to this folder.

        Returns:
            The learner, and how training went.
        """
        learner = self.learner(algorithm)
        if algorithm == "random":
            return learner, Curve()
        chosen = self.settings(algorithm)
        checkpoint = self.checkpoint(algorithm)
        curve = meta_train(
            learner,
            self.training_tasks(algorithm),
            steps=chosen.steps,
            # A minibatch holds as many images as the tasks of a step.
            meta_batch=1 if algorithm in MULTICLASS else chosen.meta_batch,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=chosen.outer_lr),
            schedule=_schedule(chosen),
            clip_value=chosen.clip_value,
            checkpoint=checkpoint,
            log=checkpoint.with_suffix(".jsonl"),
            tensorboard=tensorboard,
            precision=self.mixed,
            progress=progress,
            settings={
                "algorithm": algorithm,
                "experiment": self.to_dict(algorithm),
                "notes": self._notes(algorithm),
            },
        )
        return learner, curve

    def tested(self, algorithm: str, learner: Learner) -> Learner:
        """The learner as it is tested; see `metalearn.experiments.learners.at_test`."""
        return at_test(algorithm, learner, self.settings(algorithm))

    def checkpoint(self, algorithm: str) -> Path:
        """The file of an algorithm's run; its name holds a hash of all settings that decide it."""
        decisive = json.dumps({"algorithm": algorithm, **self.to_dict(algorithm)}, sort_keys=True)
        # The dataset, ways, shots and seed are in the name for people; the hash decides.
        digest = hashlib.sha256(decisive.encode()).hexdigest()[:8]
        problem = f"{Path(self.dataset).name}-{self.ways}way-{self.shots}shot"
        return Path(self.runs) / f"{problem}-{algorithm}-seed{self.seed}-{digest}.safetensors"

    def to_dict(self, algorithm: str) -> dict[str, Any]:
        """All settings that decide the final weights of a run, except for its length."""
        chosen = asdict(self.settings(algorithm))
        skipped = set(AT_TEST)
        # A rate that falls to zero at the last step makes a longer run another run, and so do the
        # epochs of MAML++.
        if chosen["schedule"] != "cosine" and algorithm != "maml++":
            skipped.add("steps")
        # Earlier runs trained with as many ways as they were tested with.
        if chosen["train_ways"] in (None, self.ways):
            skipped.add("train_ways")
        # Vinyals' was the only split of earlier runs.
        if self.dataset not in PROTOCOLS or chosen["protocol"] == "vinyals":
            skipped.add("protocol")
        settings = {name: getattr(self, name) for name in DECISIVE}
        settings["channels"], settings["size"] = self.shape()
        settings |= self.division()
        if self.pretrained:
            settings["weights_digest"] = self.pretrained.digest
        if self.normalization:
            settings["normalize"] = str(self.normalization)
        return settings | {name: value for name, value in chosen.items() if name not in skipped}

    def division(self) -> dict[str, Any]:
        """How a folder's classes are divided, if not by default.

        The content of a CSV file decides as much as its name.
        """
        if self.split_ratio:
            return {"split_ratio": self.split_ratio}
        if not self.splits:
            return {}
        path = Path(self.splits)
        tables = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        digest = hashlib.sha256(b"".join(table.read_bytes() for table in tables)).hexdigest()
        return {"splits": self.splits, "splits_sha256": digest}

    def _notes(self, algorithm: str) -> dict[str, Any]:
        """What is recorded with a run though it does not decide its weights."""
        if algorithm in JOINT:
            return {"preset": self.preset}
        chosen = self.settings(algorithm)
        notes: dict[str, Any] = {"preset": self.preset, "follows": chosen.follows}
        notes |= {"test_steps": chosen.test_steps, "queries": self.test_queries()}
        if self.dataset == "omniglot":
            notes["test_rotations"] = chosen.test_rotations
        return notes


def _schedule(chosen: Preset) -> Callable[[Optimizer], LRScheduler] | None:
    """The schedule of the outer rate; None for a constant rate."""
    if chosen.schedule == "constant":
        return None
    return lambda optimizer: CosineAnnealingLR(optimizer, chosen.steps)
