"""What does a map of every layer against every layer cost beside other libraries, and do they give
the same numbers?

    python -m benchmarks.similarity_map # batches of 64, 128, 256 and 512 python -m
    benchmarks.similarity_map --batch 256 --figures time # that of Nguyen et al.

ResNet-18 against ResNet-18 and against itself, the 40 outputs of all convolutions and batch norms,
64x64 images (made up). Time: all sides in turn in one run, several rounds, median of the rounds'
ratios. The forward passes alone stand beside them, and the floor: those, and as many products as
one half of every Gram matrix takes. The smaller the batch, the more of every side's time is the
forward passes. Agreement: the 20 convolutions in float64, since torchvision's ReLUs write into what
the other libraries keep of a batch norm, and their sums in float32 are off by some 1e-3. Memory:
ResNet-50 against ViT-B/16 at 224x224, the peak of a fresh process above what it held after its
imports. `--results benchmarks/results/similarity_map.jsonl` adds a JSON line a figure to that file.

The other libraries go into an environment of their own, where this one's is seen:

    python -m venv peers && python -c "import site; print(site.getsitepackages()[0])" >
    peers/lib/python3.11/site-packages/project.pth peers/bin/pip install tqdm && peers/bin/pip
    install --no-deps torch_cka==0.21 pytorch-cka==1.1.3 peers/bin/python -m
    benchmarks.similarity_map
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metalearn.analysis.measures.cka import linear_cka
from metalearn.analysis.networks.similarity_map import similarity_map as our_map
from metalearn.network.activations import representations
from metalearn.runtime.options import Listed, listed, numbers
from metalearn.runtime.provenance import commit, machine, now, versions

from .harness.memory import resident as _memory_now
from .harness.rows import append, keep_in, run_benchmark

OURS = "similarity_map"
Side = Callable[[nn.Module, nn.Module, Any, list[str]], np.ndarray]


def similarity_map(
    batch: Listed = "64,128,256,512",
    batches: int = 1,
    rounds: int = 3,
    threads: int = 0,
    figures: Listed = "time,agreement,memory",
    without: Listed = "",
    peak_of: int = 0,
    results: str | None = None,
) -> None:
    """Measure time, agreement and memory.

    Args:
        batch: images a batch, for time; several with commas.
        batches: how many batches, for time.
        rounds: how often each side is timed, in turn, after a small one that is not counted.
        threads: of torch; 0 is as many as it takes by itself.
        figures: which of time, agreement and memory, with commas.
        without: sides to leave out, with commas, such as "torch_cka", which takes by far the
            longest.
        peak_of: used by the benchmark itself, in a fresh process: the batch size whose peak of
            memory is printed in bytes.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    if threads:
        torch.set_num_threads(threads)
    if peak_of:
        print(_peak(peak_of))
        return
    keep_in(results)
    parts: dict[str, Callable[[], None]] = {
        "time": lambda: _times(batch, batches, rounds, sides(listed(without))),
        "agreement": lambda: _agreement(sides(listed(without))),
        "memory": _memory,
    }
    asked = listed(figures)
    unknown = [name for name in asked if name not in parts]
    if unknown:
        raise ValueError(f"there is no figure {unknown[0]!r}; choose from {', '.join(parts)}")
    for name in asked:
        parts[name]()


def images(count: int, size: int = 64) -> Tensor:
    """Smooth coloured patches with some noise: as natural images, they differ most in what is
    coarse.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size, mode="bilinear") + 0.3 * torch.randn(
        count, 3, size, size, generator=generator
    )


def networks() -> tuple[nn.Module, nn.Module, list[str]]:
    """Two ResNet-18 from different draws, and the names of their 40 convolutions and batch norms."""
    torch.manual_seed(0)
    a, b = (torchvision.models.resnet18(weights=None).eval() for _ in range(2))
    return (
        a,
        b,
        [
            name
            for name, module in a.named_modules()
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        ],
    )


def sides(without: list[str]) -> dict[str, Side]:
    """Ours, and the other libraries that are installed."""
    found: dict[str, Side] = {
        OURS: lambda a, b, loader, names: our_map(a, b, loader, names, names).values
    }
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
            found[name] = side
    return found


def _torch_cka(a: nn.Module, b: nn.Module, loader: Any, names: list[str]) -> np.ndarray:
    from torch_cka import CKA

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        found = CKA(a, b, model1_layers=names, model2_layers=names, device="cpu")
        found.compare(loader)
    for module in (*a.modules(), *b.modules()):  # it leaves its hooks behind
        module._forward_hooks.clear()
    return found.hsic_matrix.detach().numpy()


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
    """The forward passes, and a product of square matrices with as many multiplications as half the
    Gram matrices of the layers.
    """
    _forward(a, b, loader, names)
    for (batch,) in loader:
        for network in {a, b}:
            multiplications = len(batch) ** 2 / 2 * _features(network, tuple(names))
            side = round(multiplications ** (1 / 3))
            torch.ones(side, side) @ torch.ones(side, side)
    return np.empty(0)


@cache
def _features(network: nn.Module, names: tuple[str, ...]) -> int:
    with torch.no_grad(), representations(network, names) as seen:
        network(images(1))
    return sum(output.numel() for output in seen.values())


def _times(batch: Listed, batches: int, rounds: int, found: dict[str, Side]) -> None:
    for size in numbers(batch, "batch"):
        _time(size, batches, rounds, found)


def _time(batch: int, batches: int, rounds: int, found: dict[str, Side]) -> None:
    a, b, names = networks()
    loader = DataLoader(TensorDataset(images(batch * batches)), batch)
    found = {**found, "the floor": _floor, "forward passes alone": _forward}
    for what, other in (("two networks", b), ("one against itself", a)):
        seconds: dict[str, list[float]] = {name: [] for name in found}
        busy: dict[str, list[float]] = {name: [] for name in found}
        for run in found.values():
            run(a, other, DataLoader(TensorDataset(images(8)), 8), names)
        for _ in range(rounds):
            for name, run in found.items():
                started = time.perf_counter(), time.process_time()
                run(a, other, loader, names)
                seconds[name].append(time.perf_counter() - started[0])
                busy[name].append(time.process_time() - started[1])
        ratios = {
            name: _ratio(values, seconds[OURS]) for name, values in seconds.items() if name != OURS
        }
        busy_ratios = {
            name: _ratio(values, busy[OURS]) for name, values in busy.items() if name != OURS
        }
        said = "; ".join(
            f"{name} {statistics.median(seconds[name]):.2f} s, {ratio:.2f} x ours"
            + f" (processor time {busy_ratios[name]:.2f} x)"
            for name, ratio in ratios.items()
        )
        _report(
            f"time, {what}, {batches} x {batch} images",
            f"ours {statistics.median(seconds[OURS]):.2f} s; {said}",
            {
                "seconds": seconds,
                "processor_seconds": busy,
                "median_ratios": ratios,
                "median_processor_ratios": busy_ratios,
                "batch": batch,
            },
        )


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))


def _agreement(found: dict[str, Side]) -> None:
    a, b, names = networks()
    batch = images(48)
    with torch.no_grad(), representations(a, names) as left, representations(b, names) as right:
        a(batch), b(batch)
    some = names[::8]  # linear_cka of all pairs would take minutes
    exact = np.array(
        [[linear_cka(left[i].flatten(1), right[j].flatten(1)) for j in some] for i in some]
    )
    _say_off(
        "linear_cka, in float32, one batch",
        float(np.abs(our_map(a, b, [batch], some, some).values - exact).max()),
    )
    torch.set_default_dtype(torch.float64)  # torch_cka makes tensors of the default kind
    try:
        a, b, names = networks()
        convolutions = [name for name in names if "conv" in name or name.endswith("downsample.0")]
        loader = DataLoader(TensorDataset(images(48).double()), 16)
        values = {name: run(a, b, loader, convolutions) for name, run in found.items()}
    finally:
        torch.set_default_dtype(torch.float32)
    for name in found:
        if name != OURS:
            _say_off(
                f"{name}, in float64, three batches",
                float(np.abs(values[name] - values[OURS]).max()),
            )


def _say_off(other: str, off: float) -> None:
    _report(f"agreement with {other}", f"largest difference {off:.1e}", {"difference": off})


def _memory(batch: int = 32) -> None:
    # Every larger block goes back to the system when it is freed, so that the peak is of what is in
    # use, not of what the heap holds.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.similarity_map", "--peak_of", str(batch)]
    peak = int(
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    )
    _report(
        "peak memory, ResNet-50 against ViT-B/16",
        f"{peak / 2**30:.2f} GiB above the imported process, networks included, 2 batches of"
        f" {batch}",
        {"bytes": peak, "batch": batch},
    )


def _peak(batch: int) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory_now("VmRSS")
    torch.manual_seed(0)
    a, b = torchvision.models.resnet50(weights=None), torchvision.models.vit_b_16(weights=None)
    our_map(a, b, (images(batch, 224) for _ in range(2)))
    return _memory_now("VmHWM") - before


def _report(what: str, said: str, facts: dict[str, object]) -> None:
    print(f"{what}: {said}", flush=True)
    command = " ".join(["python -m benchmarks.similarity_map", *sys.argv[1:]])
    about = {
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
    about["load"] = os.getloadavg()[0]  # of all that runs, this included
    append(
        {
            "benchmark": "similarity_map",
            "figure": what,
            "said": said,
            **facts,
            **about,
            "commit": commit(),
            "time": now(),
        }
    )


if __name__ == "__main__":
    run_benchmark(similarity_map)
