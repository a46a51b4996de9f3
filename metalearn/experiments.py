"""From names to runs: what the command line and the benchmarks share."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torchvision.transforms.functional import resize, rgb_to_grayscale

from . import models, ranks, tasks
from .algorithms import ANIL, BOIL, MAML, NIL, MetaSGD, ProtoNet, Reptile
from .checkpoints import load, restore
from .evaluation import Evaluation, evaluate_together, evaluation_mode
from .execution import known
from .layers import head
from .learner import Learner
from .norm import batch_statistics, frozen_statistics, norm_parameters
from .presets import Preset, preset
from .tasks.few_shot import SEEDS, FewShot, LabelledImages
from .training import Curve, meta_train

ALGORITHMS = ("maml", "fomaml", "anil", "boil", "meta-sgd", "reptile", "protonet", "nil", "nil-train")
DATASETS = ("glyphs", "omniglot", "mini-imagenet", "cifar-fs", "fc100")
ENDLESS = 10**9  # training tasks; only those that are asked for are drawn


@dataclass(frozen=True)
class Experiment:
    """One few-shot problem and how it is trained: a data set, a model, and a preset with what overrides it.

    Arguments:
        dataset: glyphs (embedded), omniglot, mini-imagenet, cifar-fs, fc100, or the path of your own folder of class folders.
        root: the folder that holds the data sets; by default METALEARN_DATA, or else ./data.
        download: let torchvision download a data set that is not there.
        ways: classes per task.
        shots: support images per class.
        queries: query images per class, at test.
        preset: whose settings to follow: quick, finn2017, raghu2020 or boil2021.
        size: height and width of the images in pixels [the data set's own].
        channels: 1 for grey, 3 for colour [what the model takes, or the data set has].
        model: conv4, resnet12, any torchvision model by name, or package.module:callable, called with the number of ways.
        weights: torchvision's name of pretrained weights for its model (DEFAULT for its best); the images it sees stay in [0, 1].
        norm: batch (statistics of the current batch, transductive, as in the MAML papers) or frozen (those of pretrained weights).
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
        execution: how tasks are run: auto, loop, threads, vectorized, graphs (CUDA) or compiled (CPU, small networks).
        device: cpu, cuda, or any that torch knows.
        precision: float32, float64, tf32 (CUDA), or bfloat16 (autocast).
        runs: the folder of checkpoints and logs; a run that was interrupted goes on from there.
    """

    dataset: str = "glyphs"
    root: str | None = None
    download: bool = False
    ways: int = 5
    shots: int = 1
    queries: int = 15
    preset: str = "quick"
    size: int | None = None
    channels: int | None = None
    model: str | None = None
    weights: str | None = None
    norm: str = "batch"
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
    schedule: str | None = None
    clip_value: float | None = None
    test_tasks: int = 600
    seed: int = 0
    execution: str = "auto"
    device: str = "cpu"
    precision: str = "float32"
    runs: str = "runs"
    _loaded: dict[str, LabelledImages] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("norm", self.norm, ("batch", "frozen")),
            ("precision", self.precision, ("float32", "float64", "tf32", "bfloat16")),
            ("schedule", self.schedule or "constant", ("constant", "cosine")),
            ("channels", self.channels or 1, (1, 3)),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}; choose {' or '.join(map(str, choices))}")
        known(self.execution)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={self.device!r} cannot be used here ({str(error).splitlines()[0]}); use --device cpu") from error

    @property
    def mixed(self) -> str | None:
        """What `meta_train` computes in where that is less than the network's own dtype: its `precision`."""
        return self.precision if self.precision in ("bfloat16", "tf32") else None

    def settings(self, algorithm: str = "maml") -> Preset:
        """The preset for an algorithm, with what was asked for in its place."""
        found = preset(self.preset, self.dataset, self.ways, self.shots, algorithm)
        asked = {name: getattr(self, name, None) for name in found.__dataclass_fields__}
        return replace(found, **{name: value for name, value in asked.items() if value is not None})

    def data(self, split: str) -> LabelledImages:
        """The images of a split: train, validation or test."""
        if split not in self._loaded:
            self._loaded[split] = self._load(split)
        return self._loaded[split]

    def training_tasks(self, algorithm: str = "maml") -> FewShot:
        """An endless stream of training tasks, named by the seed."""
        queries = self.settings(algorithm).train_queries or self.shots
        return FewShot(self.data("train"), self.ways, self.shots, queries, ENDLESS, seed=SEEDS["train"] + len(SEEDS) * self.seed)

    def testing_tasks(self, split: str = "test", tasks: int | None = None) -> FewShot:
        """The tasks that every learner is tested on, or the first of them."""
        return FewShot(self.data(split), self.ways, self.shots, self.queries, tasks or self.test_tasks, seed=SEEDS[split])

    def learner(self, algorithm: str, model: nn.Module | None = None) -> Learner:
        """A learner by name, around `model` or a fresh one."""
        options: dict[str, Any] = {"execution": self.execution}
        net = self.fresh_model() if model is None else model
        if algorithm in ("nil", "nil-train"):
            return NIL(net, **options)
        if algorithm == "protonet":
            return ProtoNet(net, **options)
        kinds = {"maml": MAML, "fomaml": MAML, "anil": ANIL, "boil": BOIL, "meta-sgd": MetaSGD, "reptile": Reptile}
        if algorithm not in kinds:
            raise ValueError(f"there is no algorithm {algorithm!r}; choose from {', '.join(ALGORITHMS)}")
        chosen = self.settings(algorithm)
        moves_all = chosen.adapt_norm or algorithm == "anil"
        norms = [] if moves_all else [name.rpartition(".")[0] for name in norm_parameters(net)]
        lr: Any = {"": chosen.lr, **dict.fromkeys(norms, 0.0)} if norms else chosen.lr
        if algorithm == "fomaml":
            options["first_order"] = True
        return kinds[algorithm](net, lr, chosen.inner_steps, **options)

    def fresh_model(self) -> nn.Module:
        """The model with freshly drawn weights (or pretrained ones, where asked for), governed by the seed.

        Raises ValueError where it cannot take the images, or does not put out a score for each way.
        """
        channels, size = self.shape()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self._build(channels, size)
            _check_model(model, self.settings().model, channels, size, self.ways)
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        return model.to(device=ranks.device(self.device), dtype=dtype)

    def shape(self) -> tuple[int, int]:
        """Channels and size of the images."""
        if self.channels and self.size:
            return self.channels, self.size
        images = self.data("train").images
        return images.shape[1], images.shape[2]

    def train(self, algorithm: str, *, progress: bool = True, tensorboard: str | None = None) -> tuple[Learner, Curve]:
        """Train a learner, or go on where it was interrupted, or load it where it is done -> the learner and how training went."""
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
            settings={"algorithm": algorithm, "experiment": self.to_dict(algorithm), "notes": self._notes(algorithm)},
        )
        return learner, curve

    def tested(self, algorithm: str, learner: Learner) -> Learner:
        """The learner as it is tested: with as many inner steps as the preset takes at test."""
        return learner.taking(self.settings(algorithm).test_steps) if isinstance(learner, MAML) else learner

    def checkpoint(self, algorithm: str) -> Path:
        """Where the run of an algorithm is kept; the name holds a hash of everything that decides its result."""
        decisive = json.dumps({"algorithm": algorithm, **self.to_dict(algorithm)}, sort_keys=True)
        digest = hashlib.sha256(decisive.encode()).hexdigest()[:8]
        dataset = Path(self.dataset).name
        return Path(self.runs) / f"{dataset}-{self.ways}way-{self.shots}shot-{algorithm}-seed{self.seed}-{digest}.safetensors"

    def to_dict(self, algorithm: str) -> dict[str, Any]:
        """What decides the weights that a run ends with, but for its length."""
        chosen = asdict(self.settings(algorithm))
        # Where the rate falls to zero at the last step, a longer run is another run.
        skipped = ("test_steps", "follows") if chosen["schedule"] == "cosine" else ("steps", "test_steps", "follows")
        own = {name: getattr(self, name) for name in ("dataset", "ways", "shots", "weights", "norm", "seed", "precision")}
        own |= dict(zip(("channels", "size"), self.shape(), strict=True))
        return {**own, **{name: value for name, value in chosen.items() if name not in skipped}}

    def _notes(self, algorithm: str) -> dict[str, Any]:
        """What is recorded with a run though it does not decide its weights."""
        chosen = self.settings(algorithm)
        return {"preset": self.preset, "follows": chosen.follows, "test_steps": chosen.test_steps, "queries": self.queries}

    def _schedule(self, algorithm: str) -> Callable[[Optimizer], LRScheduler] | None:
        chosen = self.settings(algorithm)
        kind, steps = chosen.schedule, chosen.steps
        return None if kind == "constant" else lambda optimizer: CosineAnnealingLR(optimizer, steps)

    def _load(self, split: str) -> LabelledImages:
        root = self.root or os.environ.get("METALEARN_DATA", "data")
        if self.dataset == "glyphs":
            found = tasks.glyphs(split)
        elif self.dataset == "omniglot":
            found = tasks.omniglot(root, split, download=self.download)
        elif self.dataset == "mini-imagenet":
            found = tasks.mini_imagenet(root, split)
        elif self.dataset == "cifar-fs":
            found = tasks.cifar_fs(root, split, download=self.download)
        elif self.dataset == "fc100":
            found = tasks.fc100(root, split, download=self.download)
        elif Path(self.dataset).is_dir():
            found = tasks.image_folder(self.dataset, split)
        else:
            near = difflib.get_close_matches(self.dataset, DATASETS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"there is no data set {self.dataset!r}: it is none of {', '.join(DATASETS)}, and no folder of class folders{hint}"
            )
        channels = self.channels or (3 if self._is_torchvision() else found.images.shape[1])
        return _as(found, channels, self.size or found.images.shape[2])

    def _is_torchvision(self) -> bool:
        model = self.settings().model
        return model not in ("conv4", "resnet12") and ":" not in model

    def _build(self, channels: int, size: int) -> nn.Module:
        chosen = self.settings()
        if self.weights and not self._is_torchvision():
            raise ValueError(f"weights={self.weights!r} are torchvision's, but the model is {chosen.model!r}; name a torchvision model")
        if self.norm == "frozen" and chosen.model in ("conv4", "resnet12"):
            raise ValueError(f"norm='frozen' keeps the statistics of pretrained weights, and {chosen.model} has none; use norm='batch'")
        if chosen.model == "conv4":
            return models.Conv4(self.ways, channels, chosen.hidden, size, chosen.pool)
        if chosen.model == "resnet12":
            return models.ResNet12(self.ways, channels)
        model = _called(chosen.model, self.ways) if ":" in chosen.model else _torchvision(chosen.model, self.weights, self.ways)
        return batch_statistics(model) if self.norm == "batch" else frozen_statistics(model)


def parse(algorithms: str) -> list[str]:
    """ "maml, anil" -> ["maml", "anil"]. Raises ValueError for an unknown one.

    Example:
        >>> parse("maml, anil")
        ['maml', 'anil']
    """
    names = [name.strip().lower() for name in algorithms.split(",") if name.strip()]
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown or not names:
        raise ValueError(f"there is no algorithm {', '.join(unknown) or algorithms!r}; choose from {', '.join(ALGORITHMS)}")
    return list(dict.fromkeys(names))


def trained_by(algorithm: str) -> str:
    """Which algorithm trains the body that `algorithm` is tested with: NIL's test-time rule takes ANIL's, as in the paper's table."""
    return "anil" if algorithm == "nil" else algorithm


@dataclass(frozen=True)
class Run:
    """One trained learner: what was asked for, the algorithm that trained it, and how training went."""

    experiment: Experiment
    algorithm: str
    learner: Learner
    curve: Curve

    def tested(self, algorithm: str | None = None) -> Learner:
        """The learner as it is tested, or another algorithm around the model that it trained."""
        name = algorithm or self.algorithm
        return self.experiment.tested(name, self.learner if name == self.algorithm else self.experiment.learner(name, self.learner.model))

    def command(self) -> str:
        """The command that trains it."""
        own, base = (
            self.experiment,
            preset(self.experiment.preset, self.experiment.dataset, self.experiment.ways, self.experiment.shots, self.algorithm),
        )
        asked: dict[str, Any] = {
            "algorithm": self.algorithm,
            "dataset": own.dataset,
            "ways": own.ways,
            "shots": own.shots,
            "preset": own.preset,
        }
        asked["steps"] = len(self.curve.losses)
        changed = {name: getattr(own, name, None) for name in base.__dataclass_fields__ if name not in ("steps", "test_steps")}
        asked |= {name: value for name, value in changed.items() if value not in (None, getattr(base, name))}
        defaults = Experiment.__dataclass_fields__
        asked |= {name: getattr(own, name) for name in ("seed", "precision", "norm") if getattr(own, name) != defaults[name].default}
        return shlex.join(["metalearn", "train", *(text for name, value in asked.items() for text in (f"--{name}", str(value)))])


@dataclass(frozen=True)
class Compared:
    """Several learners on the same test tasks: the learners as tested, their evaluations, and the run behind each."""

    learners: Mapping[str, Learner]
    evaluations: Mapping[str, Evaluation]
    runs: Mapping[str, Run]


def compare(
    experiment: Experiment, algorithms: Iterable[str], *, runs: Mapping[str, Run] | None = None, progress: bool = True, **options: Any
) -> Compared:
    """Train each algorithm (or resume it, or load what is done, or take it from `runs`), then test all on the same tasks."""
    names = list(algorithms)
    tasks_at_test = experiment.testing_tasks()  # now, since what is wrong with them should be said before hours of training
    done = dict(runs or {})
    for by in dict.fromkeys(map(trained_by, names)):
        if by not in done:
            if progress and ranks.here()[0] == 0:
                print(f"{by}: training ({experiment.checkpoint(by)})", file=sys.stderr, flush=True)
            done[by] = Run(experiment, by, *experiment.train(by, progress=progress, **options))
    learners = {name: done[trained_by(name)].tested(name) for name in names}
    return Compared(learners, evaluate_together(learners, tasks_at_test, progress=progress), {n: done[trained_by(n)] for n in names})


def restored(path: str | os.PathLike[str], build: Callable[[Experiment, str], Learner] = Experiment.learner, /, **changes: Any) -> Run:
    """A run from its checkpoint; `changes` are settings that may differ at test (data set, queries, test_steps, device, ...).

    `build` makes the learner that takes the weights from the experiment and the name of what trained it.
    """
    tensors, record = load(path)
    run = record["settings"].get("run", {})
    if "experiment" not in run:
        raise ValueError(
            f"{path} was not trained by the command line, so how its model is built is not recorded; in a script build the learner and "
            f"call metalearn.checkpoints.restore(learner, path)"
        )
    # Every value of the preset is in the record, and pretrained weights are replaced at once by those of the checkpoint.
    values = {"preset": "quick", **run["experiment"], **run.get("notes", {}), "weights": None, **changes}
    if values["dataset"] != run["experiment"]["dataset"]:
        values["preset"] = "quick"  # the paper's may say nothing of this data set
    experiment = Experiment(**{name: value for name, value in values.items() if name in Experiment.__dataclass_fields__})
    learner = build(experiment, run["algorithm"])
    restore(learner, path)
    curve = Curve(tensors["curve.losses"].tolist(), tensors["curve.accuracies"].tolist(), record["validation"], record["seconds"])
    return Run(experiment, run["algorithm"], learner, curve)


def machine() -> str:
    """This machine in words, for the record of a result."""
    kind = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()}, {kind}, {os.cpu_count()} cores{device}"


def now() -> str:
    """The time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _as(found: LabelledImages, channels: int, size: int) -> LabelledImages:
    """The images with another number of channels or another size; which is recorded."""
    images, about = found.images, dict(found.description)
    if images.shape[1] != channels:
        images = images.expand(-1, 3, -1, -1) if channels == 3 else rgb_to_grayscale(images)
        about["channels"] = "grey, three times" if channels == 3 else "colour as grey"
    if images.shape[2] != size:
        images = resize(images, [size, size], antialias=True)
        about["resized"] = size
    return found if images is found.images else LabelledImages(images, found.labels, found.names, about)


def _check_model(model: nn.Module, name: str, channels: int, size: int, ways: int) -> None:
    try:
        with torch.no_grad(), evaluation_mode([model]):
            output = model(torch.zeros(2, channels, size, size))
    except Exception as error:  # whatever the model's own code raises
        raise ValueError(
            f"{name} does not take images of {channels} channels and {size}x{size} pixels ({str(error).splitlines()[0]}); "
            f"try another --size (224 for most of torchvision) or --channels"
        ) from error
    if not isinstance(output, torch.Tensor) or output.shape != (2, ways):
        what = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"{name} puts out {what} for 2 images, not one score for each of {ways} ways (2, {ways}); choose another model")


def _torchvision(name: str, weights: str | None, ways: int) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=4)) or "resnet18, vgg11, vit_b_16"
        raise ValueError(f"there is no model {name!r}: conv4, resnet12, a torchvision model such as {near}, or package.module:callable")
    if weights is None:
        return torchvision.models.get_model(name, weights=None, num_classes=ways)
    try:
        model = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"the weights {weights!r} of {name} are not here and could not be downloaded ({error}); put torchvision's file into {folder}, "
            f"or leave --weights out"
        ) from error
    path = head(model)
    old = model.get_submodule(path)
    new: nn.Module = nn.Linear(old.in_features, ways) if isinstance(old, nn.Linear) else nn.Conv2d(old.in_channels, ways, old.kernel_size)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
    return model


def _called(path: str, ways: int) -> nn.Module:
    module, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model {path!r} cannot be imported ({error}); write package.module:callable, from where you are") from error
    model = build(ways)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{path} returned a {type(model).__name__}, not a torch.nn.Module")
    return model
