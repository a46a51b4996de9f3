"""What does CCA from a stream cost beside numpy's SVD of the whole matrix, and is it the same?

    python -m benchmarks.measures

Two sides of 50,000 examples and 512 features, in batches of 1,000. Time: the stream over both sides
(every update and the value), numpy's SVD of one whole side, and CCA in memory with numpy (an SVD of
each side) take turns in one run. Memory: the peak of a fresh process above what it held after its
imports, with batches drawn as they come. Exactness: the distance of streamed values from those in
memory, by condition number. `--results benchmarks/results/measures.jsonl` adds a JSON line a figure
to that file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch

from metalearn.analysis.measures.chance import measured
from metalearn.analysis.measures.streaming import Streaming
from metalearn.runtime.options import Listed

from .harness.clock import medians, take_turns
from .harness.markdown import mebibytes
from .harness.memory import peak_above
from .harness.memory import peak_of as peak_in_fresh_process
from .harness.rows import keep_in, report, run_benchmark, run_figures

MEASURES = ("cca", "svcca", "pwcca", "linear_cka", "procrustes")
Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


def measures(
    examples: int = 50_000,
    features: int = 512,
    batch: int = 1_000,
    rounds: int = 3,
    figures: Listed = "time,memory,exactness",
    peak_of: str | None = None,
    results: str | None = None,
) -> None:
    """Measure time, memory and exactness.

    Args:
        examples: rows of both sides.
        features: columns of both sides.
        batch: examples a batch; the last is shorter where it does not divide.
        rounds: how often each side is timed, in turn, after a small one that is not counted.
        figures: which of time, memory and exactness, with commas.
        peak_of: used by the benchmark itself, in a fresh process: "stream" or "whole", whose peak
            of memory is printed in bytes.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    if peak_of:
        print(_peak(peak_of, examples, features, batch))
        return
    keep_in(results)
    parts: dict[str, Callable[[], None]] = {
        "time": lambda: _time(examples, features, batch, rounds),
        "memory": lambda: _memory(examples, features, batch),
        "exactness": _exactness,
    }
    run_figures(figures, parts)


def batches(examples: int, features: int, batch: int) -> Pairs:
    """Two related sides, (batch, features) each, drawn when they are asked for."""
    generator = np.random.default_rng(0)
    for first in range(0, examples, batch):
        x = generator.normal(size=(min(batch, examples - first), features))
        yield x, x + generator.normal(size=x.shape)


def slices(x: np.ndarray, y: np.ndarray, batch: int) -> Pairs:
    """Two sides in memory, batch by batch."""
    for first in range(0, len(x), batch):
        yield x[first : first + batch], y[first : first + batch]


def streamed(pairs: Pairs, measure: str = "cca") -> float:
    """The measure over batches."""
    stream = Streaming(measure)
    for x, y in pairs:
        stream.update(x, y)
    return stream.compute()


def in_memory(x: np.ndarray, y: np.ndarray) -> float:
    """Mean CCA as one would write it with numpy."""
    # Canonical correlations are the singular values of U_x^T U_y, the bases of the centred sides.
    bases = [np.linalg.svd(side - side.mean(0), full_matrices=False)[0] for side in (x, y)]
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean())


def _time(examples: int, features: int, batch: int, rounds: int) -> None:
    x, y = (np.concatenate(side) for side in zip(*batches(examples, features, batch), strict=True))
    values: dict[str, float] = {}

    def stream() -> None:
        values["stream"] = streamed(slices(x, y, batch))

    # A lower bound of CCA in memory: its first step, on one side alone.
    def one_side() -> None:
        np.linalg.svd(x, full_matrices=False)

    def both_sides() -> None:
        values["memory"] = in_memory(x, y)

    sides = {"stream": stream, "numpy's SVD of one side": one_side, "CCA with numpy": both_sides}
    # Load the libraries and start their threads.
    streamed(batches(2 * features, features, batch))
    np.linalg.svd(x[: 2 * features], full_matrices=False)
    seconds = take_turns(sides, rounds, uncounted=0)
    apart = abs(values["stream"] - values["memory"])
    times = "; ".join(f"{name} {median:.2f} s" for name, median in medians(seconds).items())
    report(
        "measures",
        f"time of CCA, {examples:,} x {features}",
        f"{times}; values {apart:.1e} apart",
        {"seconds": seconds, "apart": apart, "batch": batch, "threads": torch.get_num_threads()},
    )


def _memory(examples: int, features: int, batch: int) -> None:
    sizes = ("--examples", str(examples), "--features", str(features), "--batch", str(batch))
    ways = {"stream": "from a stream", "whole": "numpy's SVD of one whole side"}
    for way, words in ways.items():
        peak = peak_in_fresh_process("measures", "--peak_of", way, *sizes)
        report(
            "measures",
            f"peak memory of CCA, {examples:,} x {features}, {words}",
            f"{mebibytes(peak)} above the imported process",
            {"bytes": peak, "batch": batch},
        )


def _peak(way: str, examples: int, features: int, batch: int) -> int:
    if way == "stream":
        return peak_above(lambda: streamed(batches(examples, features, batch)))

    def whole() -> None:
        x = np.random.default_rng(0).normal(size=(examples, features))
        np.linalg.svd(x, full_matrices=False)

    return peak_above(whole)


def _exactness(examples: int = 5_000, features: int = 64, batch: int = 96) -> None:
    apart: dict[str, dict[str, float]] = {}
    for exponent in range(7):
        generator = np.random.default_rng(exponent)
        x, other = (_conditioned(generator, examples, features, 10.0**exponent) for _ in range(2))
        # Columns of x in reverse order make the sides related.
        y = other + x[:, ::-1]
        distances: dict[str, float] = {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for measure in MEASURES:
                value = streamed(slices(x, y, batch), measure)
                distances[measure] = abs(value - measured(measure, x, y, draws=0)[0])
        apart[f"1e{exponent}"] = {**distances, "warnings": len(caught)}
    texts = []
    for condition, distances in apart.items():
        worst = max(distances[measure] for measure in MEASURES)
        warned = " (warned)" * bool(distances["warnings"])
        texts.append(f"{condition}: {worst:.0e}{warned}")
    report(
        "measures",
        "largest distance from the value in memory, by condition number",
        "; ".join(texts),
        {"apart": apart, "size": [examples, features]},
    )


def _conditioned(
    generator: np.random.Generator, examples: int, features: int, condition: float
) -> np.ndarray:
    """A matrix (examples, features) of a condition number: U diag(s) V^T."""
    left = np.linalg.qr(generator.normal(size=(examples, features)))[0]
    right = np.linalg.qr(generator.normal(size=(features, features)))[0]
    return left * np.geomspace(1, 1 / condition, features) @ right


if __name__ == "__main__":
    run_benchmark(measures)
