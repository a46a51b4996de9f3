"""What a step will need is known before it: against what it then takes, by way of running, and what
is said where it is too much.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.engine import episodes
from benchmarks.harness.memory import resident
from metalearn import ANIL, MAML, NIL, meta_backward, meta_train
from metalearn.engine import execution, memory
from metalearn.engine.memory import Forecast, forecast, size, ways_out
from metalearn.episodes import stack, unstack
from metalearn.models import MLP, Conv4
from metalearn.tasks import FewShot, Sinusoid, glyphs

FACTOR = 1.25  # measured over forecast, and the other way round


def peak(way: str, threads: int, steps: int) -> tuple[int, int]:
    """The forecast of a step over four tasks in bytes, and what it then takes.

    Every larger block goes back to the system when it is freed, so the peak is of what is in use,
    not of what the heap holds.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    ctypes.CDLL(None).mallopt(mmap_threshold, 65536)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    learner, stacked = MAML(Conv4(5, hidden=16), 0.4, steps, execution=way), episodes(4)
    meta_backward(MAML(Conv4(5, hidden=2), 0.4, execution=way), episodes(2, queries=1))
    expected = forecast(learner, unstack(stacked)[0], tasks=4).total
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    meta_backward(learner, stacked)
    return expected, resident("VmHWM") - before


@pytest.fixture
def task():
    return FewShot(glyphs("train"), ways=5, shots=1, queries=5, tasks=1)[0]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="the peak of a process is read from Linux's /proc",
)
@pytest.mark.parametrize(
    ("way", "threads", "steps"),
    [
        ("loop", 1, 3),
        pytest.param("threads", 2, 1, marks=pytest.mark.slow),
        ("vectorized", 1, 1),
    ],
)
def test_the_forecast_is_what_a_step_then_takes(way, threads, steps, fresh_process):
    expected, measured = fresh_process(peak, way, threads, steps)
    assert 1 / FACTOR < measured / expected < FACTOR, (expected, measured)


def test_steps_add_up_exactly_and_first_order_holds_one_at_a_time(task):
    per_step = forecast(MAML(Conv4(5, hidden=8), 0.1, steps=1), task).per_step
    assert per_step > 0
    for steps in (1, 2, 4):
        learner = MAML(Conv4(5, hidden=8), 0.1, steps=steps)
        assert forecast(learner, task).per_task == pytest.approx(
            memory._peak(learner, learner.network, task), rel=0.02
        )
    first = forecast(MAML(Conv4(5, hidden=8), 0.1, steps=4, first_order=True), task)
    assert first.per_step < 0.1 * per_step
    assert forecast(ANIL(Conv4(5, hidden=8), 0.1, steps=4), task).per_step < 0.1 * per_step
    assert forecast(NIL(Conv4(5, hidden=8)), task).per_step == 0


def test_the_way_and_the_tasks_in_flight(task, two_threads):
    conv = nn.Sequential(nn.Conv2d(1, 2, 5, stride=4), nn.Flatten(), nn.Linear(72, 5))
    assert forecast(MAML(conv, 0.1), task, tasks=8)[2:4] == ("threads", 2)
    assert forecast(MAML(conv, 0.1, execution="loop"), task, tasks=8)[2:4] == ("loop", 1)
    vectorized = forecast(MAML(conv, 0.1, execution="vectorized"), task, tasks=8)
    assert (vectorized.way, vectorized.in_flight, vectorized.total) == (
        "vectorized",
        8,
        8 * vectorized.per_task,
    )
    assert (
        forecast(MAML(conv, 0.1, execution="vectorized"), task, tasks=100).in_flight
        == execution.CHUNK
    )


def test_a_forecast_changes_nothing(task):
    torch.manual_seed(0)
    learner = MAML(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 5)), 0.1)
    state = torch.get_rng_state()
    forecast(learner, task)
    assert torch.get_rng_state().equal(state)
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_what_does_not_fit_is_warned_of_with_the_ways_out_before_the_first_step(
    monkeypatch, two_threads
):
    steps = []
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**18)
    monkeypatch.setattr(
        "metalearn.training.loop.fill_gradients",
        lambda *arguments: steps.append(arguments) or 1 / 0,
    )
    tasks = FewShot(glyphs("train"), ways=5, shots=1, queries=5, tasks=100)
    with (
        pytest.warns(
            UserWarning,
            match=(
                r"more than there is.*first_order=True.*fewer tasks in flight"
                r" \(torch.set_num_threads\(1\)"
            ),
        ) as seen,
        pytest.raises(ZeroDivisionError),
    ):
        meta_train(MAML(Conv4(5, hidden=4), 0.1), tasks, steps=1, progress=False)
    assert len(seen) == len(steps) == 1


def test_ways_out_fit_the_way_and_name_their_figures():
    expected = Forecast(
        per_task=10 * 2**20, per_step=2**20, way="vectorized", in_flight=32, free=100 * 2**20
    )
    said = ways_out(MAML(Conv4(5, hidden=4), 0.1), expected)
    assert said is not None
    assert "expected to need 320 MiB" in said
    assert "a smaller chunk (metalearn.engine.execution.CHUNK = 10)" in said
    assert "10 MiB a task" in said
    assert "execution='loop'" in said
    again = ways_out(
        MAML(Conv4(5, hidden=4), 0.1, first_order=True),
        expected._replace(way="loop", in_flight=1),
        processes=20,
    )
    assert again is not None
    assert "first_order" not in again
    assert "fewer processes" in again
    assert ways_out(MAML(Conv4(5, hidden=4), 0.1), expected._replace(free=320 * 2**20)) is None
    assert ways_out(MAML(Conv4(5, hidden=4), 0.1), expected._replace(free=None)) is None


@pytest.mark.parametrize("way", ["loop", "vectorized"])
def test_a_gpu_without_memory_names_the_ways_out(way):
    def loss(logits, targets):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    learner = MAML(MLP(1, 1), 0.01, loss=loss, execution=way)
    with pytest.raises(
        torch.OutOfMemoryError, match=r"allocate 2.00 GiB .*at once.*Ways out: first order"
    ) as raised:
        meta_backward(learner, stack([Sinusoid(tasks=1)[0]]))
    assert ("a smaller chunk" in str(raised.value)) == (way == "vectorized")


def test_a_smaller_chunk_is_what_is_then_in_flight(monkeypatch):
    learner = MAML(MLP(1, 1), 0.01, loss=nn.functional.mse_loss)
    monkeypatch.setattr(execution, "CHUNK", 3)
    assert forecast(learner, Sinusoid(tasks=1)[0], tasks=10).in_flight == 3


def test_a_container_may_have_less_than_the_machine(tmp_path):
    assert memory._left_in_container(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("700\n")
    (tmp_path / "memory" / "memory.stat").write_text("cache 5\ntotal_inactive_file 50\n")
    assert memory._left_in_container(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("10\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1\n")
    assert memory._left_in_container(tmp_path) == 350


def test_sizes_are_said_in_their_unit():
    assert [size(value) for value in (3 * 2**19, 999 * 2**20, 2**31)] == [
        "1.5 MiB",
        "999 MiB",
        "2.0 GiB",
    ]
