"""Does fine-tuning cost more than a plain PyTorch loop, and many runs more memory than one?

    python -m benchmarks.finetuning

Time: ResNet-18 on 28x28 grey images, batches of 32, Adam; both sides take the same steps on the
same images from the same weights, in turn. Memory: the peak of a fresh process that compares two
starts, above what it held before, under one seed and under several.
`--results benchmarks/results/finetuning.jsonl` adds a JSON line a figure to that file.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from transfer import compare, everywhere, finetune, fresh, transfusion
from transfer.finetuning.finetune import FineTuning, order
from transfer.models import build

from .harness.clock import median_ratio, medians, take_turns
from .harness.markdown import mebibytes
from .harness.memory import peak_above
from .harness.memory import peak_of as peak_in_fresh_process
from .harness.rows import keep_in, report, run_benchmark

SIZE = 28
BATCH = 32
RATE = 1e-3


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
    """Fine-tuning on random images of two classes, tested on two: the cost is that of the steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(256, 1, SIZE, SIZE, generator=generator)
    labels = torch.arange(256) % 2
    train = TensorDataset(images, labels)
    test = TensorDataset(images[:2], labels[:2])
    return finetune(train, test, steps=steps, batch=BATCH, lr=RATE, evaluate_every=steps)


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
    turn: list[nn.Module] = []  # the network of this turn
    ends: list[Tensor] = []  # the weights after the first turn

    def start() -> None:
        check_end()
        torch.manual_seed(0)
        turn.append(network())

    def check_end() -> None:
        # Every turn begins with the same weights and sees the same images, so all end alike.
        if turn:
            end = nn.utils.parameters_to_vector(turn.pop().parameters()).detach()
            ends.append(end)
        if len(ends) == 2:
            assert torch.equal(*ends), "the two sides end with other weights"
            ends.pop()

    sides = {
        "finetune": lambda: train(turn[0], 0),
        "plain loop": lambda: plain_loop(turn[0], train, 0),
    }
    seconds = take_turns(sides, rounds, before=start)
    check_end()
    ratio = median_ratio(seconds["finetune"], seconds["plain loop"])
    middle = medians(seconds)
    report(
        "finetuning",
        f"time of {steps} steps",
        f"{middle['finetune']:.3f} s, plain loop {middle['plain loop']:.3f} s: median ratio"
        f" {ratio:.3f}, the same weights to the last bit",
        {"seconds": seconds, "ratio": ratio, "threads": torch.get_num_threads()},
    )


def _memory(seeds: int) -> None:
    few = peak_in_fresh_process("finetuning", "--peak_of", "1")
    many = peak_in_fresh_process("finetuning", "--peak_of", str(seeds))
    report(
        "finetuning",
        "peak memory of compare",
        f"{mebibytes(many)} for {2 * seeds} runs, {mebibytes(few)} for 2: {many / few:.2f} x",
        {
            "bytes": [few, many],
            "seeds": [1, seeds],
            "ratio": many / few,
            "threads": torch.get_num_threads(),
        },
    )


def _peak(seeds: int) -> int:
    train = training(4)
    weights = network()
    train(network(), 0)  # load the libraries
    starts: dict[str, Any] = {"random": everywhere(fresh()), "full": transfusion(weights)}
    probe = train.train_inputs[:64]
    with tempfile.TemporaryDirectory() as folder:
        return peak_above(
            lambda: compare(starts, network, train, probe, range(seeds), folder=folder)
        )


if __name__ == "__main__":
    run_benchmark(finetuning)
