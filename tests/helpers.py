"""What several tests share: the family of learners, small networks, and tasks of known shapes."""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from torch import nn

import metalearn as ml
from metalearn.data.images import LabelledImages
from metalearn.episodes import Episode, Examples, stack
from metalearn.models import MLP, Conv4, LanguageModel
from metalearn.network.cosine_head import cosine_head
from metalearn.network.norm import norm_parameters

ROOT = Path(__file__).parents[1]

# Learners


def has_norms(model: nn.Module) -> bool:
    """Whether a model has norms with weights."""
    return bool(norm_parameters(model))


FAMILY: dict[str, Callable[..., ml.Learner]] = {
    "MAML": lambda model, **options: ml.MAML(model, lr=0.4, steps=2, **options),
    "FOMAML": lambda model, **options: ml.MAML(model, lr=0.4, steps=2, first_order=True, **options),
    "ANIL": lambda model, **options: ml.ANIL(model, lr=0.4, steps=3, **options),
    "BOIL": lambda model, **options: ml.BOIL(model, lr=0.4, steps=2, **options),
    "MetaSGD": lambda model, **options: ml.MetaSGD(model, lr=0.3, steps=2, **options),
    "MAML++": lambda model, **options: ml.MAMLPlusPlus(
        model, lr=0.3, steps=2, learned_rates=True, step_norms=has_norms(model), **options
    ),
    "MetaCurvature": lambda model, **options: ml.MetaCurvature(model, lr=0.3, steps=2, **options),
    # A pull above the curvature of the loss (28): both solvers converge to 1e-10.
    "ImplicitMAML": lambda model, **options: ml.ImplicitMAML(
        model, lr=0.02, steps=30, strength=30.0, solver_steps=12, **options
    ),
    "ProtoMAML": lambda model, **options: ml.ProtoMAML(model, lr=0.02, steps=2, **options),
    "Baseline": lambda model, **options: ml.Baseline(model, steps=4, **options),
    "Baseline++": lambda model, **options: ml.BaselinePlusPlus(
        cosine_head(copy.deepcopy(model), scale=3.0), steps=4, **options
    ),
    "NIL softmax": lambda model, **options: ml.NIL(model, **options),
    "NIL sum": lambda model, **options: ml.NIL(model, rule="sum", **options),
    "NIL class_mean": lambda model, **options: ml.NIL(model, rule="class_mean", **options),
    "ProtoNet": lambda model, **options: ml.ProtoNet(model, **options),
    "ProtoNet normalised": lambda model, **options: ml.ProtoNet(model, normalised=True, **options),
    "R2D2": lambda model, **options: ml.R2D2(model, ridge=0.5, scale=2.0, **options),
}
EXACT = [name for name in FAMILY if name != "FOMAML"]
WAYS_TO_RUN = ["loop", "threads", "vectorized"]


def outer_loss(learner: ml.Learner, episodes: Episode) -> torch.Tensor:
    """The mean over queries, then over tasks."""
    logits = learner(episodes)
    return torch.stack(
        [learner.loss(*pair) for pair in zip(logits, episodes.query.targets, strict=True)]
    ).mean()


def gradients(learner: ml.Learner) -> torch.Tensor:
    """`.grad` of everything that the outer loop trains, as one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in learner.meta_parameters().values()])


def central_difference(
    learner: ml.Learner,
    direction: list[torch.Tensor],
    epsilon: float = 1e-4,
    episodes: Episode | None = None,
) -> float:
    """The derivative of the outer loss along a direction in parameter space.

    Central differences of fourth order: (8 (f(e) - f(-e)) - (f(2e) - f(-2e))) / 12e.
    """
    episodes = episodes or made_up_tasks()
    parameters = list(learner.meta_parameters().values())
    start = [parameter.detach().clone() for parameter in parameters]
    losses = {}
    for multiple in (-2, -1, 1, 2):
        with torch.no_grad():
            for parameter, origin, step in zip(parameters, start, direction, strict=True):
                parameter.copy_(origin + multiple * epsilon * step)
            losses[multiple] = outer_loss(learner, episodes).item()
            for parameter, origin in zip(parameters, start, strict=True):
                parameter.copy_(origin)
    return (8 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / (12 * epsilon)


def weights_vector(learner: nn.Module) -> torch.Tensor:
    """All parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in learner.parameters()])


# Networks


def smooth_network(norm: str = "batch", ways: int = 3) -> nn.Module:
    """A network without kinks, for central differences.

    Softplus instead of ReLU; affine parameters far from 1 and 0.
    """
    layer = {
        "batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
        "layer": lambda: nn.LayerNorm([4, 5, 5]),
        "instance": lambda: nn.InstanceNorm2d(4, affine=True),
        "group": lambda: nn.GroupNorm(2, 4),
        "frozen": lambda: ml.frozen_statistics(nn.BatchNorm2d(4)),
        "none": nn.Identity,
    }[norm]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        layer(),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(100, 8),
        nn.Softplus(),
        nn.Linear(8, ways),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double()


def small_conv4(ways: int = 3) -> nn.Module:
    """Conv4 with six channels for the images of `prototype_tasks`."""
    torch.manual_seed(0)
    return Conv4(ways, channels=1, hidden=6, size=16)


def sinusoid_learner(
    rate: float = 0.01,
    algorithm: Callable[..., ml.Learner] = ml.MAML,
    hidden: tuple[int, ...] = (8,),
    **options: Any,
) -> ml.Learner:
    """A learner of sinusoids with one small hidden layer."""
    torch.manual_seed(0)
    return algorithm(MLP(1, 1, hidden), rate, loss=nn.functional.mse_loss, **options)


# Tasks and data


def made_up_tasks(
    tasks: int = 3,
    ways: int = 3,
    shots: int = 2,
    queries: int = 3,
    shape: tuple[int, ...] = (1, 5, 5),
    seed: int = 1,
) -> Episode:
    """A stack of tasks of random inputs in float64, with all classes in support and query."""
    generator = torch.Generator().manual_seed(seed)

    def examples(count: int) -> Examples:
        inputs = torch.rand(tasks, ways * count, *shape, generator=generator, dtype=torch.float64)
        return Examples(inputs, torch.arange(ways).repeat_interleave(count).repeat(tasks, 1))

    return Episode(examples(shots), examples(queries))


def prototype_tasks(count: int = 6, ways: int = 3, queries: int = 4) -> Episode:
    """A stack of tasks of two shots, each image its class's prototype with noise."""
    generator = torch.Generator().manual_seed(0)

    def part(prototypes: torch.Tensor, each: int) -> Examples:
        images = prototypes.repeat_interleave(each, 0)
        noise = torch.randn(images.shape, generator=generator)
        return Examples(images + 0.3 * noise, torch.arange(ways).repeat_interleave(each))

    prototypes = [torch.rand(ways, 1, 16, 16, generator=generator) for _ in range(count)]
    return stack(Episode(part(p, 2), part(p, queries)) for p in prototypes)


def point_task(seed: int, shots: int = 1, queries: int = 5, ways: int = 3) -> Episode:
    """Classes of points in four dimensions, around centres that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(ways, 4, generator=generator)

    def examples(count: int) -> Examples:
        labels = torch.arange(ways).repeat(count)
        return Examples(centres[labels] + torch.randn(len(labels), 4, generator=generator), labels)

    return Episode(examples(shots), examples(queries))


class Listed(list):
    """A data set of pairs in a list."""


def striped_images(
    per_class: tuple[int, ...] = (12, 12, 12), seed: int = 0, size: int = 6
) -> LabelledImages:
    """Noise with a bright row that tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))
    pixels = torch.randint(
        0, 120, (len(labels), 1, size, size), generator=generator, dtype=torch.uint8
    )
    for i, label in enumerate(labels):
        pixels[i, :, label] += 100
    return LabelledImages(pixels, labels)


def medmnist_arrays(colour: bool = False, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a MedMNIST file of 12, 4 and 6 images in two classes."""
    generator = np.random.default_rng(0)
    shape = (8, 8, 3) if colour else (8, 8)
    arrays = {}
    for part, count in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{part}_images"] = generator.integers(0, 255, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    return {**arrays, **changes}


def rotation(width: int, seed: int = 1) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


# Processes


def send_result(
    sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """What the fixture `fresh_process` runs."""
    sender.send(function(*arguments))


def as_rank(
    rank: int, port: int, folder: Path, settings: dict[str, str], work: Callable[[int, Path], Any]
) -> None:
    """What each process of the fixture `start_ranks` does.

    Its environment is that of a scheduler without torchrun. What it prints goes to the files
    `output0` and `errors0`, and what it returns or raises to `rank0`, as JSON.
    """
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", **rendezvous, **settings})
    for descriptor, name in ((1, "output"), (2, "errors")):
        file = os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    torch.set_num_threads(1)
    try:
        record = {"result": work(rank, folder)}
    except Exception as error:
        record = {"error": f"{type(error).__name__}: {error}"}
    (folder / f"rank{rank}").write_text(json.dumps(record))


def rank_records(folder: Path, key: str) -> list[Any]:
    """The "result" or "error" of both ranks."""
    return [json.loads((folder / f"rank{rank}").read_text())[key] for rank in (0, 1)]


# Pictures and pages


def drawn_curves(axes: Axes) -> dict[str, list[float]]:
    """The heights of every line with a label, with error bars or without."""
    lines = {line.get_label(): line for line in axes.get_lines()}
    bars = [bars for bars in axes.containers if isinstance(bars, ErrorbarContainer)]
    lines |= {container.get_label(): container.lines[0] for container in bars}
    return {label: [float(y) for y in line.get_ydata()] for label, line in lines.items()}


class Page(HTMLParser):
    """The tags of a page, checked to be closed in order, with its links and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def body_of_two_blocks(width: int = 8) -> nn.TransformerEncoder:
    """A transformer without dropout that takes embeddings (examples, tokens, width)."""
    block = nn.TransformerEncoderLayer(
        width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, 2, nn.LayerNorm(width), enable_nested_tensor=False)


def write_llama2c(network: LanguageModel, path: Path, *, shared: bool) -> Path:
    """Write a language model's file from the description of llama2.c's layout, for 6 positions."""
    decoder = network.decoder
    block = decoder.blocks[0]
    tensors = [network.tokens.weight]
    for kind in ("norm1", "query", "key", "value", "project", "norm2", "gate", "down", "up"):
        tensors += [getattr(each, kind).weight for each in decoder.blocks]
    features = decoder.width // block.heads
    tensors += [decoder.norm.weight, torch.zeros(2 * 6 * features // 2)]
    if not shared:
        tensors.append(network.output.weight)
    vocabulary = network.tokens.num_embeddings
    sizes = (
        decoder.width,
        block.up.out_features,
        len(decoder.blocks),
        block.heads,
        block.key_value_heads,
        vocabulary if shared else -vocabulary,
        6,
    )
    values = torch.cat([tensor.detach().flatten() for tensor in tensors])
    path.write_bytes(struct.pack("<7i", *sizes) + values.numpy().astype("<f4").tobytes())
    return path
