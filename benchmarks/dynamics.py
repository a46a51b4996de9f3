"""Which layers settle first, and do networks that generalise agree more than those that memorise?

    python -m benchmarks.dynamics                # two cores, about half an hour
    python -m benchmarks.dynamics --quick true   # to see it run

The experiments of Raghu et al. 2017 and of Morcos, Raghu and Bengio 2018 in small:

- `settling`: Conv4 on 5,000 images of CIFAR-10. Similarity of each layer at several steps to the
  end of its training, and to the end of another seed's.
- `freezing`: the same network, with layers frozen from below. The trainings take turns.
- `labels`: networks on true and on shuffled labels of 1,000 images.
- `text`: a model of the characters of a text, of two LSTMs. Each layer's similarity to its end, and
  the states of a layer at one time step against those at another.

On a GPU, the eleven convolutions of the papers' network:

    python -m benchmarks.dynamics --figures labels --network deep --seeds 0,1,2,3,4 \
        --labelled 50000 --label_steps 39000 --probe 10000 --device cuda
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.analysis import generalising, position_map
from metalearn.models import Conv4
from metalearn.runtime.options import Listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.tables import plain
from metalearn.studies.dynamics import dynamics as study_of
from transfer import finetune
from transfer.finetuning.freeze_training import freeze_training

from .harness.cifar import Cifar, cifar, fewer, normalised
from .harness.rows import append, choose, keep_in, origin, run_benchmark, run_figures

KEPT = (0, 10, 30, 100, 300, 1000, 3000)  # steps of the snapshots
TEXT = "text/tinyshakespeare.txt"
LENGTH = 64  # characters of a sequence
WIDTH = 128  # features of a state
# Channels and strides of the papers' network of eleven convolutions.
DEEP = (64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)


def small_network() -> nn.Module:
    """Conv4 with 32 channels for images of 32 pixels."""
    return Conv4(10, channels=3, hidden=32, size=32)


def deep_network() -> nn.Module:
    """Eleven convolutions with batch norm, a mean over the image, and a head."""
    layers: list[nn.Module] = []
    before = 3
    for channels, stride in zip(DEEP, STRIDES, strict=True):
        convolution = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        layers.append(nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU()))
        before = channels
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))
    return nn.Sequential(*layers, head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"conv4": small_network, "deep": deep_network}


class CharacterModel(nn.Module):
    """The next character after each one of a sequence: an embedding, two LSTMs and a head."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, WIDTH)
        self.lstm1 = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.lstm2 = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, characters: Tensor) -> Tensor:
        """Characters (sequences, time) -> logits (sequences, time, characters)."""
        states, _ = self.lstm1(self.embedding(characters))
        states, _ = self.lstm2(states)
        return self.head(states)


@dataclass(frozen=True)
class Experiment:
    """The settings that all figures share."""

    network: str
    images: int
    steps: int
    batch: int
    lr: float
    device: str
    folder: Path
    root: str | None
    data: Cifar
    note: str

    def build(self) -> nn.Module:
        """A network with new weights."""
        return NETWORKS[self.network]()

    def training(self, images: Any, steps: int, **settings: Any) -> Any:
        """A training function."""
        return finetune(
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

    def report(self, figure: str, text: str, facts: dict[str, Any]) -> None:
        """Print a figure and add its row."""
        names = ("network", "images", "steps", "batch", "lr", "device", "note")
        settings = {name: getattr(self, name) for name in names}
        print(f"{figure}: {text}", flush=True)
        append(
            plain(
                {
                    "benchmark": "dynamics",
                    "figure": figure,
                    "said": text,
                    **settings,
                    "probe": len(self.data.labels),
                    "threads": torch.get_num_threads(),
                    **facts,
                    **origin("dynamics"),
                }
            )
        )


def dynamics(
    figures: Listed = "settling,labels,text,freezing",
    seeds: Listed = "0,1,2",
    network: str = "conv4",
    images: int = 5000,
    steps: int = 3000,
    batch: int = 64,
    lr: float = 0.05,
    labelled: int = 1000,
    label_steps: int = 1200,
    freeze_steps: int = 600,
    text_steps: int = 2000,
    probe: int = 1000,
    root: str | None = None,
    folder: str = "runs/dynamics",
    device: str = "auto",
    quick: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    note: str = "",
    results: str | None = None,
) -> None:
    """Train small networks, and follow their layers.

    Args:
        figures: which of settling, labels, text and freezing, with commas.
        seeds: of the weights and the order of the examples.
        network: conv4 or deep (eleven convolutions).
        images: training images of settling and freezing.
        steps: of the training of settling.
        batch: images a step.
        lr: rate of SGD, which decays along half a cosine.
        labelled: training images of labels.
        label_steps: of the trainings of labels, enough to fit shuffled labels.
        freeze_steps: of the trainings of freezing.
        text_steps: of the training on text.
        probe: test images that layers are compared on.
        root: the folder of the data sets [METALEARN_DATA].
        folder: where the pages are written.
        device: what trains, auto (cuda where there is one), cpu or cuda.
        quick: a small version, to see it run.
        note: what a reader of the rows should know.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    choose("network", network, NETWORKS)
    if quick:
        images, steps, labelled, label_steps, freeze_steps, text_steps = 500, 30, 100, 20, 10, 10
    experiment = Experiment(
        network=network,
        images=images,
        steps=steps,
        batch=batch,
        lr=lr,
        device=usable(device),
        folder=Path(folder),
        root=root,
        data=cifar(root, images, probe),
        note=note,
    )
    chosen = numbers(seeds, "seeds")
    parts: dict[str, Callable[[], None]] = {
        "settling": lambda: of_settling(experiment, chosen),
        "labels": lambda: of_labels(experiment, chosen, labelled, label_steps),
        "text": lambda: of_text(experiment, chosen, text_steps),
        "freezing": lambda: of_freezing(experiment, chosen, freeze_steps),
    }
    run_figures(figures, parts)


def of_settling(experiment: Experiment, seeds: list[int]) -> None:
    """Similarity of each layer to its end, for each seed, beside the end of the next seed."""
    kept = [step for step in KEPT if step < experiment.steps]
    train = experiment.training(
        experiment.data.train, experiment.steps, keep=(*kept, experiment.steps)
    )
    curves = {}
    for seed in seeds:
        torch.manual_seed(seed)
        curves[seed] = train(experiment.build(), seed)
    inputs = torch.cat(experiment.data.batches())
    for place, seed in enumerate(seeds):
        other = seeds[(place + 1) % len(seeds)]
        end = None if other == seed else curves[other].snapshots[experiment.steps]
        study = study_of(
            experiment.build, curves[seed].snapshots, inputs, experiment.data.labels, other=end
        )
        study.report(experiment.folder / f"settling-seed-{seed}.html")
        facts = {
            "seed": seed,
            "other_seed": other,
            "test_accuracy": curves[seed].final,
            "seconds": curves[seed].seconds,
            **study.to_dict(),
        }
        experiment.report(f"settling, seed {seed}", study.answer(), facts)


def of_labels(experiment: Experiment, seeds: list[int], labelled: int, steps: int) -> None:
    """Networks on true and on shuffled labels."""
    images = fewer(experiment.data.train, labelled)
    pixels = normalised(images.images.float() / 255)

    def train(network: nn.Module, inputs: Tensor, targets: Tensor, seed: int) -> None:
        fit(network, inputs, targets, seed, steps, experiment)

    found = generalising(
        experiment.build,
        pixels,
        images.labels,
        train,
        torch.cat(experiment.data.batches()),
        seeds=seeds,
    )
    facts = {"seeds": seeds, "labelled": labelled, "label_steps": steps, **found.to_dict()}
    experiment.report("labels", f"\n{found}", facts)


def fit(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    seed: int,
    steps: int,
    experiment: Experiment,
) -> None:
    """Train a network in place, on tensors."""
    network.to(experiment.device).train()
    inputs, targets = inputs.to(experiment.device), targets.to(experiment.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=experiment.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randperm(len(targets), generator=generator)[: experiment.batch]
        loss = F.cross_entropy(network(inputs[index]), targets[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.cpu()


def of_text(experiment: Experiment, seeds: list[int], steps: int) -> None:
    """A model of characters: its layers over training, and its states over time."""
    root = Path(experiment.root or os.environ.get("METALEARN_DATA", "data"))
    path = root / TEXT
    if not path.exists():
        print(f"text: {path} is missing; it is left out", flush=True)
        return
    text = path.read_text()
    alphabet = sorted(set(text))
    codes = {character: code for code, character in enumerate(alphabet)}
    encoded = torch.tensor([codes[character] for character in text])
    # The last tenth is not trained on; whole sequences of it are compared on.
    border = len(encoded) - len(encoded) // 10
    held_out = encoded[border:]
    count = min(500, len(held_out) // LENGTH)
    inputs = held_out[: count * LENGTH].view(count, LENGTH)  # (sequences, time)
    layers = ["embedding", "lstm1:0", "lstm2:0", "head"]
    trained = {
        seed: character_model(encoded[:border], len(alphabet), seed, steps) for seed in seeds
    }
    for place, seed in enumerate(seeds):
        other = seeds[(place + 1) % len(seeds)]
        end = None if other == seed else trained[other][1][steps]
        model, snapshots, loss = trained[seed]
        study = study_of(model, snapshots, inputs, layers=layers, other=end, measure="cca")
        study.report(experiment.folder / f"text-seed-{seed}.html")
        times = {}
        for layer in layers[1:3]:
            found = position_map(model, inputs, layer)
            times[layer] = by_distance(found.values)
        facts = {
            "seed": seed,
            "other_seed": other,
            "text_steps": steps,
            "loss": loss,
            "by_distance": times,
            **study.to_dict(),
        }
        apart = times["lstm2:0"]
        states = f"States 1 step apart: CKA {apart[1]:.2f}, 16 apart {apart[16]:.2f}."
        text = f"{study.answer()} {states}"
        experiment.report(f"text, seed {seed}", text, facts)


def by_distance(similarities: np.ndarray) -> list[float]:
    """The mean similarity of two time steps by their distance, (distances,)."""
    # The first states depend on few characters, so they are left out.
    later = similarities[8:, 8:]
    return [float(np.diagonal(later, distance).mean()) for distance in range(len(later))]


def character_model(
    characters: Tensor, alphabet: int, seed: int, steps: int
) -> tuple[nn.Module, dict[int, dict[str, Tensor]], float]:
    """A trained model, its snapshots, and its mean loss over the last tenth of the steps."""
    torch.manual_seed(seed)
    model = CharacterModel(alphabet)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    snapshots = {}
    losses = []
    window = torch.arange(LENGTH + 1)
    for step in range(steps + 1):
        if step in KEPT or step == steps:
            snapshots[step] = {name: value.clone() for name, value in model.state_dict().items()}
        if step == steps:
            break
        starts = torch.randint(len(characters) - LENGTH, (32, 1), generator=generator)
        batch = characters[starts + window]  # (sequences, time + 1)
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, snapshots, float(np.mean(losses[-max(1, steps // 10) :]))


def of_freezing(experiment: Experiment, seeds: list[int], steps: int) -> None:
    """Freeze training: the accuracy it costs and the time it saves."""
    train = partial(experiment.training, experiment.data.train, steps)
    found = freeze_training(experiment.build, train, seeds=seeds)
    facts = {"seeds": seeds, "freeze_steps": steps, "rows": found.records()}
    experiment.report("freezing", f"\n{found}", facts)


if __name__ == "__main__":
    run_benchmark(dynamics)
