"""Does a deep network on few images have a block structure, and which images make it?

    python -m benchmarks.block_structure                # two cores, about an hour
    python -m benchmarks.block_structure --quick true   # to see it run

The experiment of Nguyen, Raghu and Kornblith 2021 and 2022 in small: a CIFAR ResNet with more
capacity than images. One network is trained for each seed, one with each strength of the penalty on
first components, and one from pretrained weights. For each it prints the first components, the
blocks by two rules, and the similarity of layers with and without the dominant images. The
published ResNet-20 stands beside them, if its weights are in `weights` of the data folder.

On a GPU, the papers' sizes (depths 14 to 110, widths 1 to 8, 6 % and 100 % of the images):

    python -m benchmarks.block_structure --depth 110 --width 1 --images 3000 --size 32 \
        --epochs 300 --batch 128 --lr 0.01 --above 0.1 --probe 10000 --device cuda
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metalearn.analysis import compare_layers, components, without
from metalearn.analysis.networks.block_structure import block_structure as find_blocks
from metalearn.models import cifar_resnet
from metalearn.runtime.options import Listed, listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.tables import plain
from metalearn.studies.block_structure import BlockStudy, block_study, evolution
from metalearn.training.regularisers import leading_component
from transfer import copied, finetune, fresh, initialize
from transfer.finetuning.curve import Curve

from .harness.cifar import AT_ONCE, Cifar, accuracy, cifar, fewer, normalised
from .harness.rows import append, keep_in, origin, run_benchmark, run_figures

PUBLISHED = "cifar10_resnet20-12fca82f.th"
LOOSE: dict[str, Any] = {"share": 0.2, "contrast": 0.02}  # a rule that small networks can satisfy
DOMINANT = 0.01  # the share of images that count as dominant in the comparison of seeds
# Snapshots at these shares of a training.
KEPT = (0, 1 / 60, 1 / 12, 1 / 4, 1 / 2, 1)
FOLLOWED = 1000  # test images that snapshots are compared on


@dataclass(frozen=True)
class Trained:
    """A trained network, how its training went, and what it shows."""

    model: nn.Module
    curve: Curve
    study: BlockStudy


@dataclass(frozen=True)
class Experiment:
    """One network size on one set of images."""

    depth: int
    width: int
    images: int
    size: int
    epochs: int
    batch: int
    lr: float
    above: float
    pretrain_images: int
    pretrain_epochs: int
    device: str
    folder: Path
    data: Cifar
    note: str

    @property
    def layers(self) -> list[str]:
        """The names of the residual blocks."""
        number = (self.depth - 2) // 6
        return [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(number)]

    def network(self, seed: int) -> nn.Module:
        """A network with weights drawn by the seed."""
        torch.manual_seed(seed)
        return cifar_resnet(self.depth, self.width)

    def trained(self, seed: int, strength: float = 0.0, *, pretrained: bool = False) -> Trained:
        """Train a network and study it.

        Args:
            seed: of the weights and the order of the images.
            strength: of the penalty on first components; 0 for none.
            pretrained: start from weights that were trained on other images.
        """
        model = self.network(seed)
        if pretrained:
            start = self.pretrained(seed)
            initialize(model, {"": copied(start), "linear": fresh()})
        penalty = leading_component(strength, self.above, self.layers) if strength else None
        steps = self.epochs * (self.images // self.batch)
        kept = sorted({round(steps * share) for share in KEPT})
        curve = self.fit(model, seed, self.data.train, steps, penalty=penalty, keep=kept)
        study = block_study(model, self.data.batches(), self.layers)
        return Trained(model, curve, study)

    def pretrained(self, seed: int) -> nn.Module:
        """A network that was trained on images that the experiment does not train on."""
        model = self.network(1000 + seed)
        images = fewer(self.data.others, self.pretrain_images)
        steps = self.pretrain_epochs * (len(images) // self.batch)
        self.fit(model, seed, images, steps)
        return model

    def fit(self, model: nn.Module, seed: int, images: Any, steps: int, **settings: Any) -> Curve:
        """Train a network in place."""
        train = finetune(
            images,
            self.data.test,
            steps=steps,
            batch=self.batch,
            lr=self.lr,
            optimizer="sgd",
            decay="cosine",
            evaluate_every=steps,
            transform=normalised,
            device=self.device,
            **settings,
        )
        curve = train(model, seed)
        model.cpu()
        return curve

    def report(self, figure: str, text: str, facts: dict[str, Any]) -> None:
        """Print a figure and add its row."""
        names = ("depth", "width", "images", "size", "epochs", "batch", "lr", "above", "note")
        settings = {name: getattr(self, name) for name in names}
        print(f"{figure}: {text}", flush=True)
        append(
            plain(
                {
                    "benchmark": "block_structure",
                    "figure": figure,
                    "said": text,
                    **settings,
                    "probe": len(self.data.labels),
                    "threads": torch.get_num_threads(),
                    **facts,
                    **origin("block_structure"),
                }
            )
        )


def block_structure(
    figures: Listed = "seeds,penalty,pretrained,published",
    seeds: Listed = "0,1,2",
    strengths: Listed = "0.1,1,10",
    depth: int = 38,
    width: int = 1,
    images: int = 1500,
    size: int = 16,
    epochs: int = 60,
    batch: int = 64,
    lr: float = 0.05,
    above: float = 0.2,
    pretrain_images: int = 20_000,
    pretrain_epochs: int = 4,
    probe: int = 2000,
    root: str | None = None,
    folder: str = "runs/block_structure",
    device: str = "auto",
    quick: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    note: str = "",
    results: str | None = None,
) -> None:
    """Train deep networks on few images, and look for blocks and dominant images.

    Args:
        figures: which of seeds (a network for each seed, and how alike they are), penalty (a
            network for each strength, of the first seed), pretrained (a network for each seed that
            starts from weights of other images) and published (ResNet-20), with commas.
        seeds: of the weights and the order of the images.
        strengths: of the penalty on first components.
        depth: of the CIFAR ResNet, 6 m + 2.
        width: factor on its channels.
        images: training images, the same for every seed.
        size: height and width of the images in pixels.
        epochs: of training.
        batch: images a step.
        lr: rate of SGD, which decays along half a cosine.
        above: the share of a first component that the penalty leaves free.
        pretrain_images: images of the pretrained start, none of them a training image.
        pretrain_epochs: of its training.
        probe: test images that layers are compared on.
        root: the folder of the data sets [METALEARN_DATA].
        folder: where the pages are written, one for each network.
        device: what trains, auto (cuda where there is one), cpu or cuda.
        quick: a small version, to see it run.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    if quick:
        depth, images, epochs, probe, pretrain_images = 14, 256, 2, 200, 256
    experiment = Experiment(
        depth=depth,
        width=width,
        images=images,
        size=size,
        epochs=epochs,
        batch=batch,
        lr=lr,
        above=above,
        pretrain_images=pretrain_images,
        pretrain_epochs=pretrain_epochs,
        device=usable(device),
        folder=Path(folder),
        data=cifar(root, images, probe, size),
        note=note,
    )
    chosen = numbers(seeds, "seeds")
    parts: dict[str, Callable[[], None]] = {
        "seeds": lambda: of_seeds(experiment, chosen),
        "penalty": lambda: of_penalty(experiment, chosen[0], listed(strengths, "strengths")),
        "pretrained": lambda: of_pretrained(experiment, chosen),
        "published": lambda: of_published(experiment, root),
    }
    run_figures(figures, parts)


def of_seeds(experiment: Experiment, seeds: list[int]) -> None:
    """A network for each seed, and how alike they are."""
    networks = {}
    for seed in seeds:
        networks[seed] = experiment.trained(seed)
        name = f"resnet{experiment.depth}, seed {seed}"
        described(experiment, name, networks[seed], {"start": "random", "seed": seed})
    for first, second in combinations(seeds, 2):
        of_pair(experiment, (first, second), (networks[first], networks[second]))


def of_penalty(experiment: Experiment, seed: int, strengths: list[str]) -> None:
    """A network for each strength of the penalty."""
    for strength in strengths:
        trained = experiment.trained(seed, float(strength))
        name = f"resnet{experiment.depth}, seed {seed}, penalty {strength}"
        facts = {"start": "random", "seed": seed, "strength": float(strength)}
        described(experiment, name, trained, facts)


def of_pretrained(experiment: Experiment, seeds: list[int]) -> None:
    """A network for each seed that starts from pretrained weights."""
    for seed in seeds:
        trained = experiment.trained(seed, pretrained=True)
        name = f"resnet{experiment.depth}, seed {seed}, pretrained"
        facts = {
            "start": "pretrained",
            "seed": seed,
            "pretrain_images": experiment.pretrain_images,
            "pretrain_epochs": experiment.pretrain_epochs,
        }
        described(experiment, name, trained, facts)


def of_published(experiment: Experiment, root: str | None) -> None:
    """The published ResNet-20 on images of 32 pixels."""
    path = Path(root or os.environ.get("METALEARN_DATA", "data")) / "weights" / PUBLISHED
    if not path.exists():
        print(f"published: {path} is missing; it is left out", flush=True)
        return
    model = cifar_resnet(20)
    initialize(model, {"": copied(path), "linear": copied(path)})
    data = cifar(root, experiment.images, len(experiment.data.labels))
    layers = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    study = block_study(model, data.batches(), layers)
    study.report(experiment.folder / "published.html", data.pictures)
    right = accuracy(model, data.test)
    text = f"{100 * right:.2f} % of {len(data.test):,} test images; {study.answer()}"
    facts = {"start": "published", "depth": 20, "size": 32, "test_accuracy": right}
    experiment.report("published resnet20", text, {**facts, **measured(study)})


def described(experiment: Experiment, name: str, trained: Trained, facts: dict[str, Any]) -> None:
    """Print what a network shows, write its page, and add its row."""
    data = experiment.data
    study = trained.study
    batches = data.batches()
    strongest = [study.layer]
    dominant = study.components.dominant(study.layer, DOMINANT)
    rest = components(trained.model, without(batches, dominant), strongest)
    # Fewer images: up to 1,024 of them all components of a layer come from one decomposition.
    some = batches[: FOLLOWED // AT_ONCE]
    steps = evolution(experiment.network(0), trained.curve.snapshots, some, experiment.layers)
    right = {
        "train_accuracy": accuracy(trained.model, data.train),
        "test_accuracy": accuracy(trained.model, data.test),
    }
    study.report(
        experiment.folder / f"{name.replace(', ', '-').replace(' ', '-')}.html", data.pictures
    )
    text = (
        f"{100 * right['train_accuracy']:.1f} % of the training and"
        f" {100 * right['test_accuracy']:.1f} % of the test images; {study.answer()}"
    )
    experiment.report(
        name,
        text,
        {
            **facts,
            **right,
            "seconds": trained.curve.seconds,
            "share_without_dominant": rest[study.layer].share,
            "evolution": steps.records(),
            **measured(study),
        },
    )


def measured(study: BlockStudy) -> dict[str, Any]:
    """The numbers of a study, and its blocks by the loose rule."""
    loose = find_blocks(study.similarity, study.components, **LOOSE)
    strongest = study.components[study.layer]
    return {
        "layer": study.layer,
        "share": strongest.share,
        "participation": strongest.participation,
        "dominant": study.dominant,
        "carried": study.components.carried(study.layer, study.dominant),
        "components": study.components.records(),
        "maps": {row["map"]: row["similarity"] for row in study.records()},
        "blocks": study.structure.records(),
        "loose_blocks": loose.records(),
        "loose_rule": LOOSE,
    }


def of_pair(
    experiment: Experiment, seeds: tuple[int, int], networks: tuple[Trained, Trained]
) -> None:
    """How alike two networks are, and how many dominant images they share."""
    first, second = networks
    profile = compare_layers(
        first.model,
        second.model,
        torch.cat(experiment.data.batches()),
        layers=experiment.layers,
        draws=0,
    )
    similarity = {row.layer: row.similarity for row in profile.layers}
    sets = [set(net.study.components.dominant(net.study.layer, DOMINANT)) for net in networks]
    overlap = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    mean = float(np.mean(list(similarity.values())))
    experiment.report(
        f"resnet{experiment.depth}, seeds {seeds[0]} and {seeds[1]}",
        f"CKA of the same layers {mean:.3f}; overlap of the dominant images {overlap:.3f}",
        {"pair": seeds, "similarity": similarity, "overlap": overlap},
    )


if __name__ == "__main__":
    run_benchmark(block_structure)
