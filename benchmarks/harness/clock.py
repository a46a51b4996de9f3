"""Times of several sides that take turns, so that whatever else the machine does is shared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Side = Callable[[], Any]
Times = dict[str, list[float]]


def take_turns(
    sides: Mapping[str, Side],
    rounds: int,
    *,
    before: Callable[[], Any] | None = None,
    uncounted: int = 1,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """The seconds of each side in each round.

    Every round begins with another side, so none is always first after the others.

    Args:
        sides: what is timed, by name.
        rounds: how often each side is timed.
        before: called before each turn, outside the time.
        uncounted: rounds before those that count. On CUDA there is one more, which may record a
            CUDA graph.
        device: where the sides run; on CUDA each turn waits for the device.
        clock: gives the seconds.

    Example:
        >>> times = take_turns({"sum": lambda: sum(range(9)), "nothing": lambda: None}, rounds=3)
        >>> {name: len(seconds) for name, seconds in times.items()}
        {'sum': 3, 'nothing': 3}
    """
    names = list(sides)
    times: Times = {name: [] for name in names}
    on_cuda = torch.device(device).type == "cuda"
    # Rounds up to 0 do not count.
    for number in range(1 - uncounted - on_cuda, rounds + 1):
        # In the first round the second side begins, then the third, and so on.
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if before is not None:
                before()
            wait(device)
            started = clock()
            sides[name]()
            wait(device)
            if number > 0:
                times[name].append(clock() - started)
    return times


def wait(device: str) -> None:
    """Wait until a CUDA device has done its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each side."""
    return {name: statistics.median(values) for name, values in times.items()}


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median over rounds of one side's time over the other's in the same round.

    Example:
        >>> median_ratio([2.0, 3.0, 8.0], [1.0, 1.0, 1.0])
        3.0
    """
    # Ratios within a round: what slows the machine in one round slows both sides.
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(above / below for above, below in pairs)
