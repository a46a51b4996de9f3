"""Do small vision transformers see like a convolutional network?

    python -m benchmarks.vit_vs_cnn                # two cores, about an hour
    python -m benchmarks.vit_vs_cnn --quick true   # to see it run

The measurements of Raghu et al. 2021 in small: two vision transformers, with a class token and with
a mean over patches, beside a ResNet-20, all trained on the same 10,000 images of CIFAR-10. Each
transformer is also measured before training.

How much data each block needs is a figure of its own: transformers of 10 %, 30 % and all of the
images, as many steps each.

    python -m benchmarks.vit_vs_cnn --figures shares --epochs 5 --seeds 0,1   # half an hour

On a GPU, all images for 200 epochs, with three seeds and flipped and shifted images:

    python -m benchmarks.vit_vs_cnn --images 50000 --epochs 200 --width 384 --heads 6 --depth 12 \
        --seeds 0,1,2 --augment true --probe 10000 --device cuda
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from metalearn.analysis import residual_off
from metalearn.data.images import LabelledImages
from metalearn.episodes import Examples
from metalearn.models import SmallViT, cifar_resnet
from metalearn.runtime.options import Listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.tables import plain
from metalearn.studies.data_scale import data_scale
from metalearn.studies.vit_vs_cnn import ViTStudy
from metalearn.studies.vit_vs_cnn import vit_vs_cnn as study_of
from transfer import finetune
from transfer.finetuning.curve import Curve

from .harness.cifar import Cifar, accuracy, cifar, fewer, normalised
from .harness.rows import append, choose, keep_in, origin, run_benchmark, run_figures

POOLS = {"class": "class token", "mean": "mean over patches"}
OPTIMIZERS = {"vit": ("adamw", 1e-3), "cnn": ("sgd", 0.05)}  # and their rates
SHOTS = 10  # training images a class of the probes
PROBED = 100  # images a class that probes choose from


@dataclass(frozen=True)
class Experiment:
    """One size of transformer, beside ResNet-20, on one set of images."""

    width: int
    depth: int
    heads: int
    images: int
    epochs: int
    batch: int
    augment: bool
    device: str
    folder: Path
    data: Cifar
    note: str

    @property
    def blocks(self) -> list[str]:
        """The names of the transformer's blocks."""
        return [f"blocks.{block}" for block in range(self.depth)]

    def vit(self, seed: int, pool: str) -> nn.Module:
        """A transformer with weights drawn by the seed."""
        torch.manual_seed(seed)
        return SmallViT(width=self.width, depth=self.depth, heads=self.heads, pool=pool)

    def cnn(self, seed: int) -> nn.Module:
        """A ResNet-20 with weights drawn by the seed."""
        torch.manual_seed(seed)
        return cifar_resnet(20)

    def fit(
        self, model: nn.Module, seed: int, family: str, images: LabelledImages | None = None
    ) -> Curve:
        """Train a network in place, on all images or on those given."""
        optimizer, rate = OPTIMIZERS[family]
        steps = self.epochs * (self.images // self.batch)
        train = finetune(
            self.data.train if images is None else images,
            self.data.test,
            steps=steps,
            batch=self.batch,
            lr=rate,
            optimizer=optimizer,
            decay="cosine",
            evaluate_every=steps,
            transform=normalised,
            augment=flipped_and_shifted if self.augment else None,
            device=self.device,
        )
        curve = train(model, seed)
        model.cpu()
        return curve

    def labelled(self) -> tuple[Examples, Examples]:
        """Training and test examples of the probes."""
        chosen = fewer(self.data.train, PROBED * len(self.data.train.names))
        pixels = normalised(chosen.images.float() / 255)
        test = Examples(torch.cat(self.data.batches()), self.data.labels)
        return Examples(pixels, chosen.labels), test

    def report(self, figure: str, text: str, facts: dict[str, Any]) -> None:
        """Print a figure and add its row."""
        names = ("width", "depth", "heads", "images", "epochs", "batch", "augment", "note")
        settings = {name: getattr(self, name) for name in names}
        print(f"{figure}: {text}", flush=True)
        append(
            plain(
                {
                    "benchmark": "vit_vs_cnn",
                    "figure": figure,
                    "said": text,
                    **settings,
                    "probe": len(self.data.labels),
                    "threads": torch.get_num_threads(),
                    **facts,
                    **origin("vit_vs_cnn"),
                }
            )
        )


def vit_vs_cnn(
    figures: Listed = "networks",
    seeds: Listed = "0",
    pools: Listed = "class,mean",
    width: int = 96,
    depth: int = 6,
    heads: int = 3,
    images: int = 10_000,
    epochs: int = 20,
    batch: int = 128,
    augment: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    probe: int = 1000,
    root: str | None = None,
    folder: str = "runs/vit_vs_cnn",
    device: str = "auto",
    quick: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    note: str = "",
    results: str | None = None,
) -> None:
    """Train transformers and a convolutional network, and compare what they represent.

    Args:
        figures: which of networks (the measurements) and shares (of the images), with commas.
        seeds: of the weights and the order of the images.
        pools: of the transformers: class (a class token), mean (the mean over patches).
        width: features of a token.
        depth: blocks of the transformer.
        heads: of a block.
        images: training images, the same for every network.
        epochs: of training.
        batch: images a step.
        augment: whether each batch is flipped and shifted at random.
        probe: test images that layers are compared on.
        root: the folder of the data sets [METALEARN_DATA].
        folder: where the pages are written, one for each transformer.
        device: what trains, auto (cuda where there is one), cpu or cuda.
        quick: a small version, to see it run.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    if quick:
        width, depth, images, epochs, probe = 24, 2, 500, 1, 200
    experiment = Experiment(
        width=width,
        depth=depth,
        heads=heads,
        images=images,
        epochs=epochs,
        batch=batch,
        augment=augment,
        device=usable(device),
        folder=Path(folder),
        data=cifar(root, images, probe),
        note=note,
    )
    chosen = numbers(seeds, "seeds")
    kinds = choose("pool", pools, POOLS)
    parts: dict[str, Callable[[], None]] = {
        "networks": lambda: of_networks(experiment, chosen, kinds),
        "shares": lambda: of_shares(experiment, chosen),
    }
    run_figures(figures, parts)


def of_networks(experiment: Experiment, seeds: list[int], pools: list[str]) -> None:
    """The transformers beside the convolutional network, before and after training."""
    for seed in seeds:
        cnn = experiment.cnn(seed)
        curve = experiment.fit(cnn, seed, "cnn")
        right = scores(cnn, experiment.data)
        text = in_words(right)
        facts = {"network": "resnet20", "seed": seed, "seconds": curve.seconds, **right}
        experiment.report(f"resnet20, seed {seed}", text, facts)
        for pool in pools:
            vit = experiment.vit(seed, pool)
            described(experiment, vit, cnn, seed, pool, 0.0)
            curve = experiment.fit(vit, seed, "vit")
            described(experiment, vit, cnn, seed, pool, curve.seconds)


def of_shares(experiment: Experiment, seeds: list[int]) -> None:
    """Transformers of shares of the images, block by block beside those of all images."""
    data = experiment.data

    def train(network: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
        part = LabelledImages(images, labels, data.train.names, data.train.description)
        experiment.fit(network, seed, "vit", part)

    study = data_scale(
        partial(SmallViT, width=experiment.width, depth=experiment.depth, heads=experiment.heads),
        data.train.images,
        data.train.labels,
        train,
        torch.cat(data.batches()),
        seeds=seeds,
        layers=experiment.blocks,
        labelled=experiment.labelled(),
        shots=SHOTS,
    )
    facts = {"seeds": seeds, **study.to_dict()}
    experiment.report("vit with class token, shares of the images", str(study), facts)


def described(
    experiment: Experiment, vit: nn.Module, cnn: nn.Module, seed: int, pool: str, seconds: float
) -> None:
    """Measure a transformer, write its page, and add its row; 0 seconds: it is not trained."""
    data = experiment.data
    trained = seconds > 0
    study = study_of(
        vit, cnn, data.batches(), experiment.blocks, labelled=experiment.labelled(), shots=SHOTS
    )
    right = scores(vit, data)
    state = "trained" if trained else "untrained"
    study.report(experiment.folder / f"vit-{pool}-seed-{seed}-{state}.html")
    facts = {
        "network": "vit",
        "pool": pool,
        "seed": seed,
        "trained": trained,
        "seconds": seconds,
        **right,
        **measured(study),
    }
    if trained:
        facts["without_skip"] = without_skips(vit, data, experiment.blocks)
    name = f"vit with {POOLS[pool]}, seed {seed}, {state}"
    experiment.report(name, f"{in_words(right)}; {study.answer()}", facts)


def measured(study: ViTStudy) -> dict[str, Any]:
    """The numbers of a study, with the means of its maps."""
    maps = {"across": study.across, "vit": study.within_vit, "cnn": study.within_cnn}
    return {
        **study.to_dict(),
        "maps": {name: float(found.values.mean()) for name, found in maps.items()},
    }


def without_skips(vit: nn.Module, data: Cifar, blocks: list[str]) -> dict[str, float]:
    """The test accuracy without the skip connections of one block."""
    found = {}
    for block in blocks:
        with residual_off(vit, block):
            found[block] = accuracy(vit, data.test)
    return found


def scores(model: nn.Module, data: Cifar) -> dict[str, float]:
    """Training and test accuracy."""
    return {
        "train_accuracy": accuracy(model, data.train),
        "test_accuracy": accuracy(model, data.test),
    }


def in_words(right: dict[str, float]) -> str:
    """Training and test accuracy in words."""
    return (
        f"{100 * right['train_accuracy']:.1f} % of the training and"
        f" {100 * right['test_accuracy']:.1f} % of the test images"
    )


def flipped_and_shifted(images: Tensor) -> Tensor:
    """Each image flipped with probability 1/2, and the batch shifted by up to 4 pixels."""
    flips = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    flipped = torch.where(flips, images.flip(-1), images)
    return v2.RandomCrop(images.shape[-1], padding=4, padding_mode="reflect")(flipped)


if __name__ == "__main__":
    run_benchmark(vit_vs_cnn)
