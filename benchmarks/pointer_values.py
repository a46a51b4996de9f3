"""How many examples does retrieval by a pointer need, and which layers do it?

    python -m benchmarks.pointer_values                # two cores, about 25 minutes
    python -m benchmarks.pointer_values --quick true   # to see it run

Pointer value retrieval of Zhang et al. 2021. Parts:

- grid: `PointerMLP` on each complexity, function and size, with inputs like those of training and
  with held-out windows
- probes: linear probes of every layer, of the networks with the most examples and of a fresh one
- transfer: complexity 1 from a network that was trained on complexity 0
- visual: digits of MNIST in four places (`--root`), several architectures; for a GPU

Every training is a file in `--folder`, so a run that was stopped goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn.data.images import LabelledImages
from metalearn.models import PointerMLP, SmallViT
from metalearn.models.weights import read
from metalearn.runtime.options import Listed, listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.tables import plain
from metalearn.studies.pointer_probes import pointer_probes
from metalearn.studies.pointer_scores import PointerScores
from metalearn.tasks import pointer_images
from transfer import everywhere, fresh, initialize, mean_var, transfusion
from transfer.initialisation.strategies import Strategy
from transfer.models import build as named_network
from transfer.studies.pointer_grid import (
    SETS,
    VALUE,
    PointerGrid,
    PointerProblem,
    pointer_grid,
)
from transfer.studies.pointer_training import PointerSets, trained

from .harness.rows import append, choose, keep_in, origin, run_benchmark

PARTS = ("grid", "probes", "transfer", "visual")
HOLDOUT = 3  # permutations, where there are so many
PROBED = 2000  # examples to fit probes on, and as many to score them
STATISTICS = "mean_var"  # keeps the mean and variance of each pretrained tensor
SIDE = 80  # pixels of the images


@dataclass(frozen=True)
class Settings:
    """One call of this command."""

    complexities: tuple[int, ...]
    functions: tuple[str, ...]
    sizes: tuple[int, ...]
    tests: int
    probed: int
    steps: int
    batch: int
    lr: float
    optimizer: str
    device: str
    folder: Path
    progress: bool
    note: str

    @property
    def training(self) -> dict[str, Any]:
        """Settings of `finetune`."""
        names = ("steps", "batch", "lr", "optimizer", "device")
        return {name: getattr(self, name) for name in names}

    def report(self, part: str, text: str, facts: dict[str, Any]) -> None:
        """Print a result and add its row."""
        print(f"{part}: {text}", flush=True)
        row = {
            "benchmark": "pointer_values",
            "part": part,
            **facts,
            **self.training,
            "tests": self.tests,
            "holdout": HOLDOUT,
            "threads": torch.get_num_threads(),
            "note": self.note,
            **origin("pointer_values"),
        }
        append(plain(row))


def run_grid(
    settings: Settings,
    seed: int,
    complexities: Sequence[int],
    sizes: Sequence[int],
    functions: Sequence[str],
    build: Callable[[], nn.Module] = PointerMLP,
    folder: str = "",
) -> PointerGrid:
    """A grid of one seed, in a folder within that of the settings."""
    return pointer_grid(
        build,
        complexities,
        sizes,
        functions,
        seeds=[seed],
        holdout=HOLDOUT,
        tests=settings.tests,
        folder=settings.folder / folder,
        progress=settings.progress,
        **settings.training,
    )


def grid(settings: Settings, seed: int) -> None:
    """Accuracy of each complexity, function and size."""
    result = run_grid(settings, seed, settings.complexities, settings.sizes, settings.functions)
    for cell, facts in zip(result.cells, result.records(), strict=True):
        problem = f"m = {cell.complexity}, {cell.function}, {cell.size:,} examples, seed {seed}"
        settings.report("grid", f"{problem}: {accuracies(cell.scores)}", facts)


def accuracies(scores: PointerScores) -> str:
    """The test accuracies in words."""
    iid = f"iid {100 * scores.iid:.1f} %"
    # Complexity 0 has no held-out windows.
    if math.isnan(scores.adversarial):
        return iid
    return f"{iid}, adversarial {100 * scores.adversarial:.1f} %"


def trained_file(settings: Settings, complexity: int, function: str, size: int, seed: int) -> Path:
    """The file of a network of the grid, which is trained now if it is not there."""
    functions = settings.functions[:1] if function == VALUE else (function,)
    file = run_grid(settings, seed, [complexity], [size], functions).cells[0].file
    assert file is not None
    return file


def probes(settings: Settings, seed: int) -> None:
    """What each layer knows, of a fresh network and of those with the most examples."""
    size = max(settings.sizes)
    problems = {"fresh": (0, VALUE)}
    for complexity in settings.complexities:
        functions = settings.functions if complexity else (VALUE,)
        problems |= {f"{name}, m = {complexity}": (complexity, name) for name in functions}
    for network, (complexity, function) in problems.items():
        torch.manual_seed(seed)
        model = PointerMLP()
        if network != "fresh":
            file = trained_file(settings, complexity, function, size, seed)
            initialize(model, transfusion(file, through="head"), seed=seed)
        problem = PointerProblem(complexity, function, 0)
        result = pointer_probes(
            model,
            problem.validation(settings.probed, seed),
            problem.iid(settings.probed, seed),
        )
        facts = {"network": network, "seed": seed, "size": size, **result.to_dict()}
        settings.report("probes", f"{network}, seed {seed}\n{result}", facts)


@dataclass(frozen=True)
class Started:
    """Builds a `PointerMLP` with a start of its own, from torch's global generator."""

    strategy: Strategy

    def __call__(self) -> nn.Module:
        """The network."""
        model = PointerMLP()
        # The seed that the fresh weights were drawn from.
        initialize(model, self.strategy, seed=torch.initial_seed())
        return model


def carried_over(settings: Settings, seed: int, starts: tuple[str, ...], size: int) -> None:
    """Complexity 1 from networks of complexity 0, copied through one layer or another."""
    weights = read(trained_file(settings, 0, VALUE, max(settings.sizes), seed))
    for function in settings.functions:
        for start in starts:
            strategies: dict[str, Callable[[], Strategy]] = {
                "random": lambda: everywhere(fresh()),
                STATISTICS: lambda: everywhere(mean_var(weights)),
            }
            make = strategies.get(start, partial(transfusion, weights, through=start))
            result = run_grid(
                settings, seed, [1], [size], [function], Started(make()), f"from-m0-{start}"
            )
            scores = accuracies(result.cells[0].scores)
            text = f"{function} from m = 0, {start}, {size:,} examples, seed {seed}: {scores}"
            settings.report("transfer", text, {"start": start, **result.records()[0]})


def mixer() -> nn.Module:
    """An MLP-Mixer of timm's for one channel."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "the mixer is timm's: pip install 'metalearn-transfer[timm]', or leave it out of"
            " --networks"
        ) from error
    return timm.create_model("mixer_s16_224", img_size=SIDE, in_chans=1, num_classes=10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": partial(SmallViT, size=SIDE, patch=8, width=192, channels=1),
    "mixer": mixer,
}


def network_named(name: str) -> Callable[[], nn.Module]:
    """A function that builds a network for images of one channel and ten digits."""
    return NETWORKS.get(name, partial(named_network, name, 10, 1))


def mnist(root: str | None, *, train: bool) -> LabelledImages:
    """MNIST's digits; files that are there are unpacked, and nothing is downloaded otherwise."""
    from torchvision.datasets import MNIST

    digits = MNIST(root or "data", train=train, download=True)
    names = tuple(map(str, range(10)))
    return LabelledImages(digits.data[:, None], digits.targets, names, {"source": "MNIST"})


def visual(
    settings: Settings, seed: int, networks: tuple[str, ...], sizes: tuple[int, ...], root: str
) -> None:
    """Accuracy on images of four digits, with digits held out of places."""
    digits = mnist(root, train=True), mnist(root, train=False)
    tested = partial(pointer_images, digits[1], settings.tests, holdout="positions")
    iid = tested(seed=SETS * seed + 1)
    shifted = tested(seed=SETS * seed + 2, adversarial=True)
    for size in sizes:
        train = pointer_images(digits[0], size, seed=SETS * seed, holdout="positions")
        for name in networks:
            done = trained(
                network_named(name),
                PointerSets(train, iid, shifted),
                seed,
                {"network": name, "tests": settings.tests},
                settings.folder / f"visual-{name}-{size}-seed{seed}.safetensors",
                evaluate_every=settings.steps,
                **settings.training,
            )
            text = f"{name}, {size:,} images, seed {seed}: {accuracies(done.scores)}"
            facts = {"network": name, "size": size, "seed": seed, **plain(done.scores)}
            settings.report("visual", text, {**facts, "seconds": done.seconds})


def pointer_values(
    parts: Listed = "grid,probes,transfer",
    complexities: Listed = "0,1",
    functions: Listed = "sum,max",
    sizes: Listed = "1000,10000,100000",
    seeds: Listed = "0",
    through: Listed = "random,mean_var,embedding,layer2,layer4",
    transfer_size: int = 10_000,
    networks: Listed = "vgg11_bn,resnet18,densenet121,vit,mixer",
    visual_sizes: Listed = "1000,10000,60000,200000",
    tests: int = 10_000,
    probed: int = PROBED,
    steps: int = 1500,
    batch: int = 256,
    lr: float = 1e-3,
    optimizer: str = "adam",
    device: str = "cpu",
    root: str = "data",
    folder: str = "runs/pointer_values",
    quick: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    progress: bool = True,  # noqa: FBT001, FBT002  # a command line setting
    note: str = "",
    results: str | None = None,
) -> None:
    """Train, probe and transfer on pointer value retrieval.

    Args:
        parts: grid, probes, transfer and visual, with commas.
        complexities: of the windows, 0 to 9, with commas.
        functions: sum, min, max, median and majority, with commas.
        sizes: of the training sets, with commas.
        seeds: of data and initial weights, with commas.
        through: starts of the transfer: random, mean_var, or the layers to copy up to.
        transfer_size: training examples of complexity 1.
        networks: of the images: vit, mixer, or names of torchvision's and timm's.
        visual_sizes: training images, with commas.
        tests: examples of each test set.
        probed: examples that probes are fitted on, and as many to score them.
        steps: updates of each training.
        batch: examples of an update.
        lr: rate.
        optimizer: adam, adamw or sgd (with momentum 0.9).
        device: auto (cuda where there is one, else cpu), cpu or cuda.
        root: the folder with MNIST, for visual.
        folder: where trainings are kept.
        quick: a run of a minute, to see it work.
        progress: show progress.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    started = time.monotonic()
    keep_in(results)
    chosen = choose("part", parts, PARTS)
    settings = Settings(
        tuple(numbers(complexities)),
        tuple(listed(functions)),
        tuple(numbers(sizes)),
        tests,
        probed,
        steps,
        batch,
        lr,
        optimizer,
        usable(device),
        Path(folder),
        progress,
        note,
    )
    starts = tuple(listed(through))
    if quick:
        settings = replace(
            settings,
            sizes=(300,),
            tests=300,
            probed=200,
            steps=20,
            batch=64,
            folder=Path(folder, "quick"),
        )
        starts, transfer_size = starts[:3], 300
    for seed in numbers(seeds):
        calls: dict[str, Callable[[], None]] = {
            "grid": partial(grid, settings, seed),
            "probes": partial(probes, settings, seed),
            "transfer": partial(carried_over, settings, seed, starts, transfer_size),
            "visual": partial(
                visual,
                settings,
                seed,
                tuple(listed(networks)),
                settings.sizes if quick else tuple(numbers(visual_sizes)),
                root,
            ),
        }
        for part in chosen:
            calls[part]()
    print(f"{(time.monotonic() - started) / 60:.1f} minutes in all")


if __name__ == "__main__":
    run_benchmark(pointer_values)
