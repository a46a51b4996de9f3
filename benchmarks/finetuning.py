"""Does fine-tuning cost more than a plain PyTorch loop, and does comparing many runs hold more
memory than one?

    python -m benchmarks.finetuning

Time: ResNet-18 on 28x28 grey images, batches of 32, Adam; both sides take the same steps on the
same images from the same weights, in turn.
Memory: the peak of a fresh process that compares two starts, above what it held before, under one
seed and under several. `--results benchmarks/results/finetuning.jsonl` adds a JSON line a figure to
that file.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from metalearn.runtime.provenance import commit, machine, now, versions
from transfer import compare, everywhere, finetune, fresh, transfusion
from transfer.finetuning.finetune import FineTuning, order
from transfer.models import build

from .harness.memory import resident as _memory_now
from .harness.rows import append, keep_in, run_benchmark

SIZE, BATCH, RATE = 28, 32, 1e-3


def finetuning(
    rounds: int = 9, steps: int = 12, seeds: int = 6, peak_of: int = 0, results: str | None = None
) -> None:
    """Measure time and memory.

    Args:
        rounds: how often each side is timed, in turn, after one round that is not counted.
        steps: of fine-tuning in a round.
        seeds: how many the larger of the two comparisons has.
        peak_of: used by the benchmark itself, in a fresh process: so many seeds, whose peak of
            memory is printed in bytes.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    if peak_of:
        print(_peak(peak_of))
        return
    keep_in(results)
    _time(rounds, steps)
    _memory(seeds)


def network() -> nn.Module:
    """ResNet-18 with two outputs, for one channel."""
    return build("resnet18", 2, 1)


def training(steps: int) -> FineTuning:
    """Fine-tuning on random images of two classes, tested on two images: the cost is that of the
    steps.
    """
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(256, 1, SIZE, SIZE, generator=generator), torch.arange(256) % 2
    whole, few = TensorDataset(images, labels), TensorDataset(images[:2], labels[:2])
    return finetune(whole, few, steps=steps, batch=BATCH, lr=RATE, evaluate_every=steps)


def plain_loop(model: nn.Module, train: FineTuning, seed: int) -> None:
    """The same steps on the same images, as one would write them by hand."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    batches = order(train.train_targets, BATCH, seed, balanced=False)
    model.train()
    for _ in range(train.steps):
        index = next(batches)
        loss = F.cross_entropy(model(train.train_inputs[index]), train.train_targets[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _time(rounds: int, steps: int) -> None:
    train = training(steps)
    seconds: dict[str, list[float]] = {"finetune": [], "plain loop": []}
    for number in range(rounds + 1):
        ends = []
        for side, times in seconds.items():
            torch.manual_seed(0)
            model = network()
            started = time.perf_counter()
            train(model, number) if side == "finetune" else plain_loop(model, train, number)
            if number:
                times.append(time.perf_counter() - started)
            ends.append(
                torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
            )
        assert torch.equal(*ends), "the two sides end with other weights"
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*seconds.values(), strict=True))
    ours, theirs = (statistics.median(times) for times in seconds.values())
    said = (
        f"{ours:.3f} s, plain loop {theirs:.3f} s: median ratio {ratio:.3f}, the same weights to"
        " the last bit"
    )
    _report(f"time of {steps} steps", said, {"seconds": seconds, "ratio": ratio})


def _memory(seeds: int) -> None:
    def peak(count: int) -> int:
        command = [sys.executable, "-m", "benchmarks.finetuning", "--peak_of", str(count)]
        # Every larger block goes back to the system when it is freed, so that the peak is of what
        # is in use, not of what the heap holds.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        return int(
            subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            ).stdout.splitlines()[-1]
        )

    one, many = peak(1), peak(seeds)
    said = (
        f"{many / 2**20:.0f} MiB for {2 * seeds} runs, {one / 2**20:.0f} MiB for 2:"
        f" {many / one:.2f} x"
    )
    _report(
        "peak memory of compare",
        said,
        {"bytes": [one, many], "seeds": [1, seeds], "ratio": many / one},
    )


def _peak(seeds: int) -> int:
    train, weights = training(4), network()
    train(network(), 0)  # libraries are there now
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory_now("VmRSS")
    starts: dict[str, Any] = {"random": everywhere(fresh()), "full": transfusion(weights)}
    with tempfile.TemporaryDirectory() as folder:
        compare(starts, network, train, train.train_inputs[:64], range(seeds), folder=folder)
    return _memory_now("VmHWM") - before


def _report(what: str, said: str, facts: dict[str, object]) -> None:
    print(f"{what}: {said}", flush=True)
    about = {
        "command": " ".join(["python -m benchmarks.finetuning", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
    }
    row = {
        "benchmark": "finetuning",
        "figure": what,
        "said": said,
        **facts,
        **about,
        "threads": torch.get_num_threads(),
    }
    append({**row, "commit": commit(), "time": now()})


if __name__ == "__main__":
    run_benchmark(finetuning)
