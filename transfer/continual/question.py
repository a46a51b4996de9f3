"""A question of forgetting as settings: images cut into tasks, a network, and memories."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from metalearn.data import labelled_sets
from metalearn.data.class_tasks import Class, split_classes
from metalearn.data.glyphs import glyphs
from metalearn.data.labelled_sets import Split, divided
from metalearn.runtime.options import Listed, device, listed, numbers
from transfer.comparison.run import checked_seeds
from transfer.continual.memories import Memory, ewc, replay
from transfer.continual.norms import group_normalised
from transfer.finetuning.finetune import finetune
from transfer.models import Build as BuildByName

LISTS = ("memories", "seeds", "layers")
# Settings that decide no run, or only which runs there are: the folder of runs leaves them out.
NOT_OF_RUNS = ("seeds", "memories", "layers", "device", "download")
MEMORIES = {"ewc": ewc, "replay": replay}


@dataclass(frozen=True)
class Build:
    """A function without arguments that builds the network.

    Args:
        name: of the network.
        outputs: of its head.
        channels: of the images.
        norm: "group" in place of batch norm, or "batch" as the network has it.
    """

    name: str
    outputs: int
    channels: int
    norm: str

    def __call__(self) -> nn.Module:
        """Build the network from torch's global generator."""
        model = BuildByName(self.name, self.outputs, self.channels)()
        return group_normalised(model) if self.norm == "group" else model


@dataclass(frozen=True)
class Forget:
    """One question of forgetting: images, their tasks, a network, its training, and memories.

    Args:
        dataset: glyphs (embedded), a MedMNIST file (path.npz), a folder of class folders, or a set
            of torchvision's or MedMNIST's by name.
        root: the folder that holds named sets; by default METALEARN_DATA, or else ./data.
        download: let torchvision or the medmnist package download data that are not there.
        images: training images of each task that each seed draws, a number or (up to 1.0) a
            fraction [all].
        size: height and width of the images in pixels [the data set's own].
        channels: 1 for grey, 3 for colour [the data set's own].
        tasks: into how many tasks the classes are cut, in their order.
        classes: the classes of each task instead, by number or name: 0,1,2/3,4,5.
        heads: own (one for each task) or shared (one for all).
        model: cbr-mini, cbr-tiny, cbr-small, cbr-large_t, cbr-large_w, any torchvision model,
            timm:NAME, or package.module:callable, called with the number of outputs [cbr-mini for
            glyphs, cbr-tiny for others].
        norm: group (in place of batch norm) or batch (as the network has it; without EWC).
        memories: of none, ewc:STRENGTH and replay:SHARE, with commas.
        store: images of earlier tasks that replay draws from [all].
        layers: from the bottom to the top, with commas [all but the head].
        seeds: with commas.
        steps: of each task.
        batch: images a step.
        lr: the rate.
        optimizer: adam, adamw or sgd.
        device: auto (cuda where there is one, else cpu), cpu, cuda, or any that torch knows.
    """

    dataset: str = "glyphs"
    root: str | None = None
    download: bool = False
    images: float | None = None
    size: int | None = None
    channels: int | None = None
    tasks: int = 2
    classes: str | None = None
    heads: Literal["own", "shared"] = "own"
    model: str | None = None
    norm: Literal["group", "batch"] = "group"
    memories: Listed = "none,ewc:100,replay:0.25"
    store: int | None = None
    layers: Listed | None = None
    seeds: Listed = "0,1,2"
    steps: int = 200
    batch: int = 32
    lr: float = 0.05
    optimizer: Literal["adam", "adamw", "sgd"] = "sgd"
    device: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", device(self.device))
        for name in LISTS:
            value = getattr(self, name)
            if value is not None:
                # Text with commas, whichever form was typed: equal questions share a folder.
                object.__setattr__(self, name, ",".join(listed(value, name)))
        if self.norm not in ("group", "batch"):
            raise ValueError(f"norm={self.norm!r}; choose group or batch")
        # Raise for seeds that repeat and memories that do not exist, before any image is read.
        checked_seeds(self.numbers)
        self.chosen_memories()

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
        return Path(f"runs/forgetting-{Path(self.dataset).stem}-{digest[:8]}")

    def chosen_memories(self) -> dict[str, Memory | None]:
        """The memories by what was typed.

        Raises:
            ValueError: a memory does not exist, or its number is none.
        """
        chosen: dict[str, Memory | None] = {}
        for text in listed(self.memories):
            kind, _, number = text.partition(":")
            if text == "none":
                chosen[text] = None
                continue
            if kind not in MEMORIES:
                raise ValueError(
                    f"there is no memory {text!r}; choose none, ewc:STRENGTH or replay:SHARE"
                )
            try:
                value = float(number)
            except ValueError as error:
                raise ValueError(
                    f"memory {text!r} needs a number, such as ewc:100 or replay:0.25"
                ) from error
            chosen[text] = ewc(value) if kind == "ewc" else replay(value, self.store)
        if not chosen:
            raise ValueError("--memories is empty; write none, ewc:100 or replay:0.25")
        return chosen

    def parts(self) -> Split:
        """The images, before they are cut into tasks."""
        if self.dataset != "glyphs":
            return labelled_sets.load(
                self.dataset,
                self.root,
                size=self.size,
                channels=self.channels,
                download=self.download,
            )
        parts = divided(glyphs("test", classes=20, drawers=40), 0.5)
        sized = partial(labelled_sets.sized, size=self.size, channels=self.channels)
        return Split(sized(parts.train), None, sized(parts.test))

    def cut(self, parts: Split) -> list[Split]:
        """The tasks.

        Raises:
            ValueError: a class does not exist, or a task would have one class.
        """
        if self.classes is not None:
            return split_classes(parts, [_classes(group) for group in self.classes.split("/")])
        count = len(parts.train.names)
        if self.tasks < 2 or count // self.tasks < 2:
            raise ValueError(
                f"--tasks {self.tasks} of {count} classes; give 2 to {count // 2} tasks, so that"
                " each has two classes or more"
            )
        each = count // self.tasks
        return split_classes(
            parts, [range(task * each, (task + 1) * each) for task in range(self.tasks)]
        )

    def build(self, tasks: list[Split]) -> Build:
        """A function that builds the network for the largest task."""
        outputs = max(len(task.train.names) for task in tasks)
        return Build(self.network, outputs, tasks[0].train.images.shape[1], self.norm)

    def training(self) -> partial:
        """A function of (train set, test set) that makes the training of a task."""
        images: int | float | None = self.images
        if images is not None and images > 1:
            images = int(images)  # up to 1.0 it is a fraction
        return partial(
            finetune,
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            optimizer=self.optimizer,
            evaluate_every=max(1, self.steps // 4),
            images=images,
            device=self.device,
        )


def _classes(group: str) -> list[Class]:
    """The classes of one task, as numbers where they are such."""
    return [int(name) if name.isdecimal() else name for name in listed(group, "classes")]
