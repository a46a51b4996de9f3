"""From names to runs: what the command line and the benchmarks share."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from metalearn import tasks
from metalearn.algorithms import ANIL, BOIL, MAML, NIL, MetaSGD, ProtoNet, Reptile
from metalearn.algorithms.base import Learner
from metalearn.data.decoding import split_named
from metalearn.data.images import LabelledImages
from metalearn.engine.execution import check_execution
from metalearn.models import registry
from metalearn.models.registry import TIMM, near, runs_code, torchvision_names
from metalearn.models.weights import PLAIN, Fit, Normalization, Pretrained, fit, normalize, read
from metalearn.network.modes import evaluation_mode
from metalearn.network.norm import batch_statistics, frozen_statistics, norm_parameters
from metalearn.runtime import distributed
from metalearn.runtime.checks import is_kind, positive_number, whole_number
from metalearn.runtime.options import Listed, device, listed
from metalearn.tasks.few_shot import SEEDS, FewShot
from metalearn.training.loop import Curve, meta_train

from .presets import Preset, preset

ALGORITHMS = (
    "maml",
    "fomaml",
    "anil",
    "boil",
    "meta-sgd",
    "reptile",
    "protonet",
    "nil",
    "nil-train",
)
DATASETS = ("glyphs", "omniglot", "mini-imagenet", "cifar-fs", "fc100")
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
    "steps",
)
LEAST = {
    **dict.fromkeys(COUNTS, 1),
    "inner_steps": 0,
    "test_steps": 0,
    "seed": 0,
}  # the smallest value of each whole number
POSITIVE = {
    "lr": "without an inner loop, take protonet or nil-train",
    "outer_lr": "the outer loop trains nothing without a rate",
    "clip_value": "leave it out to train without clipping",
}
OWN = tuple(registry.OURS)
ELSEWHERE = (
    "root",
    "download",
    "weights",
    "execution",
    "device",
    "runs",
)  # settings that no record decides
LARGEST = 4096  # pixels
SLACK = 10**7  # numbers
ENDLESS = 10**9  # training tasks; only those that are asked for are drawn


@dataclass(frozen=True)
class Experiment:
    """One few-shot problem and how it is trained: a data set, a model, and a preset with what
    overrides it.

    Arguments:
        dataset: glyphs (embedded), omniglot, mini-imagenet, cifar-fs, fc100, or the path of your
            own folder of class folders.
        splits: for a folder, a CSV file with the columns filename, label and split, or a folder
            with train.csv, val.csv and test.csv.
        split_ratio: for a folder without split folders, the shares of its classes for training,
            validation and test, as 64,16,20 or [2, 1, 1] [64,16,20].
        root: the folder that holds the data sets; by default METALEARN_DATA, or else ./data.
        download: let torchvision or timm download a data set or weights that are not there.
        ways: classes per task.
        shots: support images per class.
        queries: query images per class, at test [preset]. Under batch norm of the current batch
            more queries are worth points.
        preset: whose settings to follow: quick, finn2017, raghu2020 or boil2021.
        protocol: which characters of Omniglot are for training and test: vinyals, finn or lake
            [preset].
        test_rotations: whether turned characters of Omniglot are classes at test, too [preset].
        size: height and width of the images in pixels [the data set's own].
        channels: 1 for grey, 3 for colour [what the model takes, or the data set has].
        model: conv4, resnet12, any torchvision model by name, or package.module:callable, called
            with the number of ways.
        weights: what the network starts from: a weights file, torchvision's name
            (ResNet18_Weights.IMAGENET1K_V1, or DEFAULT for the model's best), or timm:NAME; what is
            not in a cache is downloaded with --download alone.
        normalize: imagenet, none (images in 0 to 1), or MEAN/STD by channel [what the weights were
            trained with, else none].
        norm: batch (statistics of the current batch, transductive, as in the MAML papers) or frozen
            (those of pretrained weights).
        hidden: channels of conv4 [preset].
        pool: max-pool in conv4; false for strides and a mean over space [preset].
        adapt_norm: whether the norms' weights and biases move in the inner loop [preset].
        lr: inner rate on a mean loss [preset].
        inner_steps: inner steps in training [preset].
        test_steps: inner steps at test [preset].
        meta_batch: tasks per outer step [preset].
        train_queries: query images per class in training [preset].
        steps: outer steps [preset].
        outer_lr: rate of the outer Adam [preset].
        schedule: of that rate: constant, or cosine (falls to zero at the last step) [preset].
        clip_value: magnitude that outer gradients are clipped to [preset].
        test_tasks: test tasks, the same for every learner.
        seed: of the initial weights and of the training tasks; test tasks keep their own.
        execution: how tasks are run: auto, loop, threads, vectorized, graphs (CUDA) or compiled
            (CPU, small networks).
        device: auto (cuda where there is one, else cpu), cpu, cuda, or any that torch knows.
        precision: float32, float64, tf32 (CUDA), or bfloat16 (autocast).
        runs: the folder of checkpoints and logs; a run that was interrupted goes on from there.
    """

    dataset: str = "glyphs"
    splits: str | None = None
    split_ratio: Listed | None = None
    root: str | None = None
    download: bool = False
    ways: int = 5
    shots: int = 1
    queries: int | None = None
    preset: Literal["quick", "finn2017", "raghu2020", "boil2021"] = "quick"
    protocol: Literal["vinyals", "finn", "lake"] | None = None
    test_rotations: bool | None = None
    size: int | None = None
    channels: int | None = None
    model: str | None = None
    weights: str | None = None
    normalize: str | None = None
    norm: Literal["batch", "frozen"] = "batch"
    hidden: int | None = None
    pool: bool | None = None
    adapt_norm: bool | None = None
    lr: float | None = None
    inner_steps: int | None = None
    test_steps: int | None = None
    meta_batch: int | None = None
    train_queries: int | None = None
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
        for name in (*LEAST, *POSITIVE):
            value = getattr(self, name)
            if value is None and getattr(Experiment, name) is None:  # left to the preset
                continue
            number = (
                whole_number(name, value, LEAST[name])
                if name in LEAST
                else positive_number(name, value, POSITIVE[name])
            )
            object.__setattr__(self, name, number)
        hints = get_type_hints(Experiment)
        for setting in (each for each in fields(self) if each.init):
            value = getattr(self, setting.name)
            if not is_kind(value, hints[setting.name]):
                raise TypeError(
                    f"{setting.name}={value!r} is a {type(value).__name__}; give a {setting.type}"
                )
        for name, value, choices in (
            ("norm", self.norm, ("batch", "frozen")),
            ("precision", self.precision, ("float32", "float64", "tf32", "bfloat16")),
            ("schedule", self.schedule or "constant", ("constant", "cosine")),
            ("channels", self.channels or 1, (1, 3)),
            ("protocol", self.protocol or "vinyals", ("vinyals", "finn", "lake")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}; choose {' or '.join(map(str, choices))}")
        if self.dataset != "omniglot" and (self.protocol or self.test_rotations is not None):
            raise ValueError(
                "--protocol and --test_rotations divide the characters of Omniglot, and the data"
                f" set is {self.dataset}; leave them out"
            )
        if self.normalize is not None:
            Normalization.parse(self.normalize)
        check_execution(self.execution)
        object.__setattr__(self, "device", device(self.device))
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
            _fractions(self.split_ratio)  # an unusable one is refused now
            object.__setattr__(self, "split_ratio", ",".join(listed(self.split_ratio)))

    @cached_property
    def pretrained(self) -> Pretrained | None:
        """The weights that the network starts from."""
        if self.weights is None:
            return None
        return read(self.weights, model=self.settings().model, download=self.download)

    @property
    def normalization(self) -> Normalization | None:
        """How the network normalises its images: as asked for, or as those were that its weights
        were trained on.
        """
        if self.normalize is not None:
            return Normalization.parse(self.normalize)
        normalization = self.pretrained.normalization if self.pretrained else None
        return None if normalization == PLAIN else normalization

    @property
    def mixed(self) -> str | None:
        """What `meta_train` computes in where that is less than the network's own dtype: its
        `precision`.
        """
        return self.precision if self.precision in ("bfloat16", "tf32") else None

    def settings(self, algorithm: str = "maml") -> Preset:
        """The preset for an algorithm, with what was asked for in its place."""
        found = preset(self.preset, self.dataset, self.ways, self.shots, algorithm)
        asked = {name: getattr(self, name, None) for name in found.__dataclass_fields__}
        return replace(found, **{name: value for name, value in asked.items() if value is not None})

    def data(self, split: str) -> LabelledImages:
        """The images of a split: train, validation (or val) or test."""
        split = split_named(split)
        if split not in self._loaded:
            self._loaded[split] = self._load(split)
        return self._loaded[split]

    def training_tasks(self, algorithm: str = "maml") -> FewShot:
        """An endless stream of training tasks, named by the seed."""
        queries = self.settings(algorithm).train_queries or self.shots
        return FewShot(
            self.data("train"),
            self.ways,
            self.shots,
            queries,
            ENDLESS,
            seed=SEEDS["train"] + len(SEEDS) * self.seed,
        )

    def testing_tasks(self, split: str = "test", tasks: int | None = None) -> FewShot:
        """The tasks that every learner is tested on, or the first of them."""
        split = split_named(split)
        count = tasks or self.test_tasks
        return FewShot(
            self.data(split), self.ways, self.shots, self.test_queries(), count, seed=SEEDS[split]
        )

    def test_queries(self) -> int:
        """Query images per class, at test."""
        return self.settings().queries or self.shots

    def learner(self, algorithm: str, model: nn.Module | None = None) -> Learner:
        """A learner by name, around `model` or a fresh one."""
        options: dict[str, Any] = {"execution": self.execution}
        net = self.fresh_model() if model is None else model
        if algorithm in ("nil", "nil-train"):
            return NIL(net, **options)
        if algorithm == "protonet":
            return ProtoNet(net, **options)
        kinds = {
            "maml": MAML,
            "fomaml": MAML,
            "anil": ANIL,
            "boil": BOIL,
            "meta-sgd": MetaSGD,
            "reptile": Reptile,
        }
        if algorithm not in kinds:
            raise ValueError(
                f"there is no algorithm {algorithm!r}; choose from {', '.join(ALGORITHMS)}"
            )
        chosen = self.settings(algorithm)
        moves_all = chosen.adapt_norm or algorithm == "anil"
        norms = [] if moves_all else [name.rpartition(".")[0] for name in norm_parameters(net)]
        lr: Any = {"": chosen.lr, **dict.fromkeys(norms, 0.0)} if norms else chosen.lr
        if algorithm == "fomaml":
            options["first_order"] = True
        return kinds[algorithm](net, lr, chosen.inner_steps, **options)

    def fresh_model(self) -> nn.Module:
        """The model with freshly drawn weights (or pretrained ones, where asked for), governed by
        the seed.

        Raises ValueError where it cannot take the images, or does not put out a score for each way.
        """
        channels, size = self.shape()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model, _ = self._build(channels, size)
            _check_model(model, self.settings().model, channels, size, self.ways)
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        return model.to(device=distributed.device(self.device), dtype=dtype)

    def start(self) -> list[str]:
        """What the network starts from, in lines for the first ones of a command's output; none
        without weights.
        """
        if self.pretrained is None:
            return []
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
        images = self.data("train").images
        return images.shape[1], images.shape[2]

    def train(
        self, algorithm: str, *, progress: bool = True, tensorboard: str | None = None
    ) -> tuple[Learner, Curve]:
        """Train a learner, or go on where it was interrupted, or load it where it is done -> the
        learner and how training went.
        """
        learner, chosen = self.learner(algorithm), self.settings(algorithm)
        checkpoint = self.checkpoint(algorithm)
        curve = meta_train(
            learner,
            self.training_tasks(algorithm),
            steps=chosen.steps,
            meta_batch=chosen.meta_batch,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=chosen.outer_lr),
            schedule=self._schedule(algorithm),
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
        """The learner as it is tested: with as many inner steps as the preset takes at test."""
        return (
            learner.with_steps(self.settings(algorithm).test_steps)
            if isinstance(learner, MAML)
            else learner
        )

    def checkpoint(self, algorithm: str) -> Path:
        """Where the run of an algorithm is kept; the name holds a hash of everything that decides
        its result.
        """
        decisive = json.dumps({"algorithm": algorithm, **self.to_dict(algorithm)}, sort_keys=True)
        digest = hashlib.sha256(decisive.encode()).hexdigest()[:8]
        dataset = Path(self.dataset).name
        return (
            Path(self.runs)
            / f"{dataset}-{self.ways}way-{self.shots}shot-{algorithm}-seed{self.seed}-{digest}.safetensors"
        )

    def to_dict(self, algorithm: str) -> dict[str, Any]:
        """What decides the weights that a run ends with, but for its length."""
        chosen = asdict(self.settings(algorithm))
        # Where the rate falls to zero at the last step, a longer run is another run.
        skipped = {"test_steps", "follows", "queries", "test_rotations", "differs"}
        if chosen["schedule"] != "cosine":
            skipped.add("steps")
        if (
            self.dataset != "omniglot" or chosen["protocol"] == "vinyals"
        ):  # the only split of earlier runs
            skipped.add("protocol")
        own = {
            name: getattr(self, name)
            for name in ("dataset", "ways", "shots", "weights", "norm", "seed", "precision")
        }
        own |= dict(zip(("channels", "size"), self.shape(), strict=True))
        own |= self.division()
        if self.pretrained:
            own["weights_digest"] = self.pretrained.digest
        if self.normalization:
            own["normalize"] = str(self.normalization)
        return {**own, **{name: value for name, value in chosen.items() if name not in skipped}}

    def division(self) -> dict[str, Any]:
        """How a folder's classes are divided, if not by default; the content of a CSV file decides
        as much as its name.
        """
        if self.split_ratio:
            return {"split_ratio": self.split_ratio}
        if not self.splits:
            return {}
        tables = (
            sorted(Path(self.splits).glob("*.csv"))
            if Path(self.splits).is_dir()
            else [Path(self.splits)]
        )
        digest = hashlib.sha256(b"".join(table.read_bytes() for table in tables)).hexdigest()
        return {"splits": self.splits, "splits_sha256": digest}

    def _notes(self, algorithm: str) -> dict[str, Any]:
        """What is recorded with a run though it does not decide its weights."""
        chosen = self.settings(algorithm)
        notes: dict[str, Any] = {"preset": self.preset, "follows": chosen.follows}
        notes |= {"test_steps": chosen.test_steps, "queries": self.test_queries()}
        if self.dataset == "omniglot":
            notes["test_rotations"] = chosen.test_rotations
        return notes

    def _schedule(self, algorithm: str) -> Callable[[Optimizer], LRScheduler] | None:
        chosen = self.settings(algorithm)
        kind, steps = chosen.schedule, chosen.steps
        return None if kind == "constant" else lambda optimizer: CosineAnnealingLR(optimizer, steps)

    def _load(self, split: str) -> LabelledImages:
        root = self.root or os.environ.get("METALEARN_DATA", "data")
        if self.dataset == "glyphs":
            found = tasks.glyphs(split)
        elif self.dataset == "omniglot":
            chosen = self.settings()
            turned = split == "train" or chosen.test_rotations
            found = tasks.omniglot(
                root, split, protocol=chosen.protocol, rotations=turned, download=self.download
            )
        elif self.dataset == "mini-imagenet":
            found = tasks.mini_imagenet(root, split)
        elif self.dataset == "cifar-fs":
            found = tasks.cifar_fs(root, split, download=self.download)
        elif self.dataset == "fc100":
            found = tasks.fc100(root, split, download=self.download)
        elif Path(self.dataset).is_dir():
            found = tasks.image_folder(
                self.dataset, split, splits=self.splits or _fractions(self.split_ratio)
            )
        else:
            matches = difflib.get_close_matches(self.dataset, DATASETS, n=1)
            hint = f"; did you mean {matches[0]}?" if matches else ""
            raise ValueError(
                f"there is no data set {self.dataset!r}: it is none of {', '.join(DATASETS)}, and"
                f" no folder of class folders{hint}"
            )
        channels = self.channels or (3 if self._is_registered() else found.images.shape[1])
        return _as(found, channels, self.size or found.images.shape[2])

    def _is_registered(self) -> bool:
        """Whether the model is torchvision's or timm's."""
        model = self.settings().model
        return model not in OWN and not runs_code(model)

    def _build(self, channels: int, size: int) -> tuple[nn.Module, Fit | None]:
        """The network, and what it took of the weights."""
        model = self._network(channels, size)
        taken = fit(model, self.pretrained) if self.pretrained else None
        if self.normalization:
            if len(self.normalization.mean) not in (1, channels):
                raise ValueError(
                    f"normalize={str(self.normalization)!r} is for {len(self.normalization.mean)}"
                    f" channels, but the images have {channels}; use --channels"
                    f" {len(self.normalization.mean)} or --normalize none"
                )
            normalize(model, self.normalization)
        return model, taken

    def _network(self, channels: int, size: int) -> nn.Module:
        """The network by its name, with fresh weights."""
        chosen = self.settings()
        name = chosen.model
        if self.norm == "frozen" and name in OWN:
            raise ValueError(
                f"norm='frozen' keeps the statistics of pretrained weights, and {name} has none;"
                " use norm='batch'"
            )
        if name == "conv4":
            return registry.build(
                name, self.ways, channels, hidden=chosen.hidden, size=size, pool=chosen.pool
            )
        if name in OWN:
            return registry.build(name, self.ways, channels)
        if self._is_registered() and not name.startswith(TIMM) and name not in torchvision_names():
            hint = near(name, [*OWN, *torchvision_names()]) or "such as resnet18, vgg11 or vit_b_16"
            raise ValueError(
                f"there is no model {name!r}: conv4, resnet12, a torchvision model ({hint}),"
                " timm:NAME, or package.module:callable"
            )
        model = registry.build(name, self.ways, channels)
        return batch_statistics(model) if self.norm == "batch" else frozen_statistics(model)


def parse(algorithms: Listed) -> list[str]:
    """The names of algorithms in a list setting, such as "maml, anil". Raises ValueError for an
    unknown one.

    Example:
        >>> parse("maml, anil")
        ['maml', 'anil']
    """
    names = [name.lower() for name in listed(algorithms, "algorithms")]
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown or not names:
        raise ValueError(
            f"there is no algorithm {', '.join(unknown) or algorithms!r}; choose from"
            f" {', '.join(ALGORITHMS)}"
        )
    return list(dict.fromkeys(names))


def trained_by(algorithm: str) -> str:
    """Which algorithm trains the body that `algorithm` is tested with: NIL's test-time rule takes
    ANIL's, as in the paper's table.
    """
    return "anil" if algorithm == "nil" else algorithm


def _fractions(ratio: Listed | None) -> tuple[float, ...] | None:
    """A ratio of training, validation and test, such as 64,16,20 -> the fractions."""
    if ratio is None:
        return None
    try:
        shares = [float(share) for share in listed(ratio, "split_ratio")]
    except ValueError as error:
        raise ValueError(f"split_ratio={ratio!r} is not three numbers; write 64,16,20") from error
    if len(shares) != 3 or not 0 < min(shares) <= max(shares) < math.inf:
        raise ValueError(
            f"split_ratio={ratio!r} must be three positive numbers, for training, validation and"
            " test; write 64,16,20"
        )
    return tuple(share / sum(shares) for share in shares)


def _as(found: LabelledImages, channels: int, size: int) -> LabelledImages:
    """The images with another number of channels or another size; which is recorded."""
    from torchvision.transforms.functional import resize, rgb_to_grayscale  # takes long to import

    images, about = found.images, dict(found.description)
    if images.shape[1] != channels:
        images = images.expand(-1, 3, -1, -1) if channels == 3 else rgb_to_grayscale(images)
        about["channels"] = "grey, three times" if channels == 3 else "colour as grey"
    if images.shape[2] != size:
        images = resize(images, [size, size], antialias=True)
        about["resized"] = size
    return (
        found
        if images is found.images
        else LabelledImages(images, found.labels, found.names, about)
    )


def _check_model(model: nn.Module, name: str, channels: int, size: int, ways: int) -> None:
    try:
        with torch.no_grad(), evaluation_mode([model]):
            output = model(torch.zeros(2, channels, size, size))
    except Exception as error:  # whatever the model's own code raises
        raise ValueError(
            f"{name} does not take images of {channels} channels and {size}x{size} pixels"
            f" ({str(error).splitlines()[0]}); try another --size (224 for most of torchvision) or"
            " --channels"
        ) from error
    if not isinstance(output, torch.Tensor) or output.shape != (2, ways):
        what = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"{name} puts out {what} for 2 images, not one score for each of {ways} ways (2,"
            f" {ways}); choose another model"
        )
