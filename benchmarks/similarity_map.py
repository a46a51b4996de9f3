r"""What does a map of every layer against every layer cost, and do other libraries agree?

    python -m benchmarks.similarity_map                             # batches of 64 to 512
    python -m benchmarks.similarity_map --batch 256 --figures time  # that of Nguyen et al.

ResNet-18 against ResNet-18 and against itself, the 40 outputs of all convolutions and batch norms,
64x64 images (made up). Time: all sides take turns in one run, several rounds, median of the rounds'
ratios. The forward passes alone stand beside them, and the floor: those, and as many products as
one half of every Gram matrix takes. The smaller the batch, the more of every side's time is the
forward passes. Agreement: the 20 convolutions in float64, because torchvision's ReLUs write into
what the other libraries keep of a batch norm, and their sums in float32 are off by some 1e-3.
Memory: ResNet-50 against ViT-B/16 at 224x224, the peak of a fresh process above what it held after
its imports. Map and components: of 60 layers of a CIFAR ResNet on 10,000 images of 16 pixels, time
and peak of the map, and of the first components of all layers.
`--results benchmarks/results/similarity_map.jsonl` adds a JSON line a figure to that file.

The other libraries go into an environment of their own, which sees this one:

    python -m venv peers
    python -c "import site; print(site.getsitepackages()[0])" \
        > peers/lib/python3.11/site-packages/project.pth
    peers/bin/pip install tqdm
    peers/bin/pip install --no-deps torch_cka==0.21 pytorch-cka==1.1.3
    peers/bin/python -m benchmarks.similarity_map
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metalearn.analysis.measures.cka import linear_cka
from metalearn.analysis.networks.components import components
from metalearn.analysis.networks.similarity_map import similarity_map as our_map
from metalearn.models import cifar_resnet
from metalearn.network.activations import representations
from metalearn.runtime.options import Listed, listed, numbers

from .harness.clock import Times, median_ratio, take_turns
from .harness.memory import fresh_process, peak_above
from .harness.memory import peak_of as peak_in_fresh_process
from .harness.rows import keep_in, report, run_benchmark, run_figures

OURS = "similarity_map"
LARGE_IMAGES = 10_000
LARGE_LAYERS = 60
Side = Callable[[nn.Module, nn.Module, Any, list[str]], np.ndarray]


def similarity_map(
    batch: Listed = "64,128,256,512",
    batches: int = 1,
    rounds: int = 3,
    threads: int = 0,
    figures: Listed = "time,agreement,memory,map,components",
    without: Listed = "",
    peak_of: int = 0,
    large_of: str = "",
    results: str | None = None,
) -> None:
    """Measure time, agreement and memory.

    Args:
        batch: images a batch, for time; several with commas.
        batches: how many batches, for time.
        rounds: how often each side is timed, in turn, after a small one that is not counted.
        threads: of torch; 0 is as many as it takes by itself.
        figures: which of time, agreement, memory, map and components, with commas; the last two
            are of many images and layers.
        without: sides to leave out, with commas, such as "torch_cka", which takes by far the
            longest.
        peak_of: used by the benchmark itself, in a fresh process: the batch size whose peak of
            memory is printed in bytes.
        large_of: used by the benchmark itself, in a fresh process: what is computed of many images
            and layers, map or components; its seconds and its peak in bytes are printed.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    if threads:
        torch.set_num_threads(threads)
    if peak_of:
        print(_peak(peak_of))
        return
    if large_of:
        print(*_large_peak(large_of))
        return
    keep_in(results)
    parts: dict[str, Callable[[], None]] = {
        "time": lambda: _times(batch, batches, rounds, sides(listed(without))),
        "agreement": lambda: _agreement(sides(listed(without))),
        "memory": _memory,
        "map": lambda: _large("map"),
        "components": lambda: _large("components"),
    }
    run_figures(figures, parts)


def images(count: int, size: int = 64) -> Tensor:
    """Smooth coloured patches with some noise: like natural images, they differ most coarsely."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    noise = torch.randn(count, 3, size, size, generator=generator)
    return F.interpolate(coarse, size, mode="bilinear") + 0.3 * noise


def networks() -> tuple[nn.Module, nn.Module, list[str]]:
    """Two ResNet-18 from different draws, and the names of their convolutions and batch norms."""
    torch.manual_seed(0)
    a, b = (torchvision.models.resnet18(weights=None).eval() for _ in range(2))
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    return a, b, [name for name, module in a.named_modules() if isinstance(module, kinds)]


def sides(without: list[str]) -> dict[str, Side]:
    """Ours, and the other libraries that are installed."""
    present: dict[str, Side] = {OURS: _ours}
    for name, module, side in (
        ("torch_cka", "torch_cka", _torch_cka),
        ("pytorch-cka", "cka", _pytorch_cka),
    ):
        if name in without:
            continue
        try:
            importlib.import_module(module)
        except ImportError:
            print(f"{name}: not installed")
        else:
            present[name] = side
    return present


def _ours(a: nn.Module, b: nn.Module, loader: Any, names: list[str]) -> np.ndarray:
    return our_map(a, b, loader, names, names).values


def _torch_cka(a: nn.Module, b: nn.Module, loader: Any, names: list[str]) -> np.ndarray:
    from torch_cka import CKA

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        comparison = CKA(a, b, model1_layers=names, model2_layers=names, device="cpu")
        comparison.compare(loader)
    for module in (*a.modules(), *b.modules()):  # it leaves its hooks behind
        module._forward_hooks.clear()
    return comparison.hsic_matrix.detach().numpy()


def _pytorch_cka(a: nn.Module, b: nn.Module, loader: Any, names: list[str]) -> np.ndarray:
    from cka import compute_cka

    return compute_cka(a, b, loader, layers=names, device="cpu", progress=False)[0].numpy()


def _forward(a: nn.Module, b: nn.Module, loader: Any, names: list[str]) -> np.ndarray:
    with torch.inference_mode():
        for (batch,) in loader:
            for network in {a, b}:
                network(batch.contiguous(memory_format=torch.channels_last))
    return np.empty(0)


def _floor(a: nn.Module, b: nn.Module, loader: Any, names: list[str]) -> np.ndarray:
    """The forward passes, and as many multiplications as half the Gram matrices of the layers."""
    _forward(a, b, loader, names)
    for (batch,) in loader:
        for network in {a, b}:
            # A Gram matrix of b images and d features takes b^2 d, and half of it by symmetry.
            multiplications = len(batch) ** 2 / 2 * _features(network, tuple(names))
            # A product of square matrices of side n takes n^3 multiplications.
            side = round(multiplications ** (1 / 3))
            torch.ones(side, side) @ torch.ones(side, side)
    return np.empty(0)


@cache
def _features(network: nn.Module, names: tuple[str, ...]) -> int:
    with torch.no_grad(), representations(network, names) as seen:
        network(images(1))
    return sum(output.numel() for output in seen.values())


def _times(batch: Listed, batches: int, rounds: int, present: dict[str, Side]) -> None:
    a, b, names = networks()
    timed = {**present, "the floor": _floor, "forward passes alone": _forward}
    for size in numbers(batch, "batch"):
        for networks_text, other in (("two networks", b), ("one against itself", a)):
            small = DataLoader(TensorDataset(images(8)), 8)
            for side in timed.values():
                side(a, other, small, names)
            loader = DataLoader(TensorDataset(images(size * batches)), size)
            runs = {name: partial(side, a, other, loader, names) for name, side in timed.items()}
            # Wall time and processor time of the same calls.
            busy: Times = {name: [] for name in runs}
            counted = {name: partial(_counted, run, busy[name]) for name, run in runs.items()}
            seconds = take_turns(counted, rounds, uncounted=0)
            figure = f"time, {networks_text}, {batches} x {size} images"
            _report_times(figure, size, seconds, busy)


def _counted(run: Callable[[], Any], busy: list[float]) -> None:
    started = time.process_time()
    run()
    busy.append(time.process_time() - started)


def _report_times(figure: str, batch: int, seconds: Times, busy: Times) -> None:
    others = [name for name in seconds if name != OURS]
    ratios = {name: median_ratio(seconds[name], seconds[OURS]) for name in others}
    busy_ratios = {name: median_ratio(busy[name], busy[OURS]) for name in others}
    texts = [f"ours {statistics.median(seconds[OURS]):.2f} s"]
    for name in others:
        texts.append(
            f"{name} {statistics.median(seconds[name]):.2f} s, {ratios[name]:.2f} x ours"
            f" (processor time {busy_ratios[name]:.2f} x)"
        )
    facts = {
        "seconds": seconds,
        "processor_seconds": busy,
        "median_ratios": ratios,
        "median_processor_ratios": busy_ratios,
        "batch": batch,
    }
    _report(figure, "; ".join(texts), facts)


def _agreement(present: dict[str, Side]) -> None:
    a, b, names = networks()
    batch = images(48)
    with torch.no_grad(), representations(a, names) as left, representations(b, names) as right:
        a(batch)
        b(batch)
    some = names[::8]  # linear_cka of all pairs would take minutes
    exact = np.empty((len(some), len(some)))
    for row, i in enumerate(some):
        exact[row] = [linear_cka(left[i].flatten(1), right[j].flatten(1)) for j in some]
    difference = np.abs(our_map(a, b, [batch], some, some).values - exact).max()
    _report_difference("linear_cka, in float32, one batch", float(difference))
    torch.set_default_dtype(torch.float64)  # torch_cka makes tensors of the default kind
    try:
        a, b, names = networks()
        convolutions = [name for name in names if "conv" in name or name.endswith("downsample.0")]
        loader = DataLoader(TensorDataset(images(48).double()), 16)
        values = {name: side(a, b, loader, convolutions) for name, side in present.items()}
    finally:
        torch.set_default_dtype(torch.float32)
    for name in present:
        if name != OURS:
            difference = np.abs(values[name] - values[OURS]).max()
            _report_difference(f"{name}, in float64, three batches", float(difference))


def _report_difference(other: str, difference: float) -> None:
    text = f"largest difference {difference:.1e}"
    _report(f"agreement with {other}", text, {"difference": difference})


def _memory(batch: int = 32) -> None:
    peak = peak_in_fresh_process("similarity_map", "--peak_of", str(batch))
    _report(
        "peak memory, ResNet-50 against ViT-B/16",
        f"{peak / 2**30:.2f} GiB above the imported process, networks included, 2 batches of"
        f" {batch}",
        {"bytes": peak, "batch": batch},
    )


def _peak(batch: int) -> int:
    def work() -> None:
        torch.manual_seed(0)
        a = torchvision.models.resnet50(weights=None)
        b = torchvision.models.vit_b_16(weights=None)
        our_map(a, b, (images(batch, 224) for _ in range(2)))

    return peak_above(work)


def _large(what: str) -> None:
    output = fresh_process("-m", "benchmarks.similarity_map", "--large_of", what)
    seconds, peak = output.splitlines()[-1].split()
    _report(
        f"{what} of {LARGE_LAYERS} layers, {LARGE_IMAGES:,} images",
        f"{float(seconds):.0f} s, peak {int(peak) / 2**30:.2f} GiB above the imported process",
        {"seconds": float(seconds), "bytes": int(peak)},
    )


def _large_peak(what: str) -> tuple[float, int]:
    """Seconds and peak bytes of a map or of all first components, over many images and layers."""
    torch.manual_seed(0)
    model = cifar_resnet(LARGE_LAYERS + 2).eval()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    layers = names[1:]  # the norms of all blocks
    batches = list(images(LARGE_IMAGES, 16).split(256))

    def work() -> None:
        if what == "map":
            our_map(model, model, batches, layers, layers)
        else:
            components(model, batches, layers)

    started = time.perf_counter()
    peak = peak_above(work)
    return time.perf_counter() - started, peak


def _report(figure: str, text: str, facts: dict[str, Any]) -> None:
    load = os.getloadavg()[0]  # of all that runs, this included
    report(
        "similarity_map",
        figure,
        text,
        {**facts, "threads": torch.get_num_threads(), "load": load},
    )


if __name__ == "__main__":
    run_benchmark(similarity_map)
