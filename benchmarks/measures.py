"""What does CCA from a stream cost beside numpy's singular value decomposition of the whole matrix,
and does it give the same number?

    python -m benchmarks.measures

Two sides of 50,000 examples and 512 features, in batches of 1,000. Time: the stream over both sides
(every update and the value), numpy's SVD of one whole side, and CCA in memory with numpy (an SVD of
each side), in turn in one run. Memory: the peak of a fresh process above what it held after its
imports, the batches drawn as they come. Also how far streamed values are from those in memory, by
condition number. `--results benchmarks/results/measures.jsonl` adds a JSON line a figure to that
file.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from metalearn.analysis.measures.chance import measured
from metalearn.analysis.measures.streaming import Streaming
from metalearn.runtime.options import Listed, listed
from metalearn.runtime.provenance import commit, machine, now, versions

from .harness.memory import resident as _memory_now
from .harness.rows import append, keep_in, run_benchmark

MEASURES = ("cca", "svcca", "pwcca", "linear_cka", "procrustes")


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
    asked = listed(figures)
    unknown = [name for name in asked if name not in parts]
    if unknown:
        raise ValueError(f"there is no figure {unknown[0]!r}; choose from {', '.join(parts)}")
    for name in asked:
        parts[name]()


def batches(examples: int, features: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two related sides, (batch, features) each, drawn as they are asked for."""
    draws = np.random.default_rng(0)
    for first in range(0, examples, batch):
        x = draws.normal(size=(min(batch, examples - first), features))
        yield x, x + draws.normal(size=x.shape)


def streamed(pairs: Iterator[tuple[np.ndarray, np.ndarray]], measure: str = "cca") -> float:
    """The measure over batches."""
    stream = Streaming(measure)
    for x, y in pairs:
        stream.update(x, y)
    return stream.compute()


def in_memory(x: np.ndarray, y: np.ndarray) -> float:
    """Mean CCA as one would write it with numpy."""
    bases = [np.linalg.svd(side - side.mean(0), full_matrices=False)[0] for side in (x, y)]
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean())


def _time(examples: int, features: int, batch: int, rounds: int) -> None:
    x, y = (np.concatenate(side) for side in zip(*batches(examples, features, batch), strict=True))
    starts = range(0, examples, batch)
    sides: dict[str, Callable[[], float]] = {
        "stream": lambda: streamed(
            (x[first : first + batch], y[first : first + batch]) for first in starts
        ),
        "numpy's SVD of one side": lambda: float(np.linalg.svd(x, full_matrices=False)[1][0]),
        "CCA with numpy": lambda: in_memory(x, y),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, float] = {}
    streamed(batches(2 * features, features, batch))  # libraries and threads are there now
    np.linalg.svd(x[: 2 * features], full_matrices=False)
    for _ in range(rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            values[name] = run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    apart = abs(values["stream"] - values["CCA with numpy"])
    _report(
        f"time of CCA, {examples:,} x {features}",
        "; ".join(f"{name} {median:.2f} s" for name, median in medians.items())
        + f"; values {apart:.1e} apart",
        {"seconds": seconds, "apart": apart, "batch": batch, "threads": torch.get_num_threads()},
    )


def _memory(examples: int, features: int, batch: int) -> None:
    for way in ("stream", "whole"):
        sizes = ["--examples", str(examples), "--features", str(features), "--batch", str(batch)]
        command = [sys.executable, "-m", "benchmarks.measures", "--peak_of", way, *sizes]
        # Every larger block goes back to the system when it is freed, so that the peak is of what
        # is in use, not of what the heap holds.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        found = int(
            subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            ).stdout
        )
        what = "from a stream" if way == "stream" else "numpy's SVD of one whole side"
        said = f"{found / 2**20:,.0f} MiB above the imported process"
        _report(
            f"peak memory of CCA, {examples:,} x {features}, {what}",
            said,
            {"bytes": found, "batch": batch},
        )


def _peak(way: str, examples: int, features: int, batch: int) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory_now("VmRSS")
    if way == "stream":
        streamed(batches(examples, features, batch))
    else:
        np.linalg.svd(
            np.random.default_rng(0).normal(size=(examples, features)), full_matrices=False
        )
    return _memory_now("VmHWM") - before


def _exactness(examples: int = 5_000, features: int = 64) -> None:
    apart: dict[str, dict[str, float]] = {}
    for exponent in (0, 1, 2, 3, 4, 5, 6):
        draws = np.random.default_rng(exponent)
        x, y = (_conditioned(draws, examples, features, 10.0**exponent) for _ in range(2))
        y = y + x[:, ::-1]
        row = apart[f"1e{exponent}"] = {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for measure in MEASURES:
                found = streamed(
                    ((x[i : i + 96], y[i : i + 96]) for i in range(0, examples, 96)), measure
                )
                row[measure] = abs(found - measured(measure, x, y, draws=0)[0])
        row["warnings"] = len(caught)
    worst = {
        condition: max(row[measure] for measure in MEASURES) for condition, row in apart.items()
    }
    said = "; ".join(
        f"{c}: {w:.0e}{' (warned)' * bool(apart[c]['warnings'])}" for c, w in worst.items()
    )
    _report(
        "largest distance from the value in memory, by condition number",
        said,
        {"apart": apart, "size": [examples, features]},
    )


def _conditioned(
    draws: np.random.Generator, examples: int, features: int, condition: float
) -> np.ndarray:
    basis = np.linalg.qr(draws.normal(size=(examples, features)))[0]
    return (
        basis
        * np.geomspace(1, 1 / condition, features)
        @ np.linalg.qr(draws.normal(size=(features, features)))[0]
    )


def _report(what: str, said: str, facts: dict[str, object]) -> None:
    print(f"{what}: {said}", flush=True)
    about = {
        "command": " ".join(["python -m benchmarks.measures", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
    }
    append(
        {
            "benchmark": "measures",
            "figure": what,
            "said": said,
            **facts,
            **about,
            "commit": commit(),
            "time": now(),
        }
    )


if __name__ == "__main__":
    run_benchmark(measures)
