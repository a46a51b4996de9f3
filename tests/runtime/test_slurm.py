"""The tasks of a step of SLURM are ranks without torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.runtime import distributed, slurm
from tests.helpers import rank_records

TASK = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "2",
    "SLURM_NNODES": "2",
    "SLURM_STEP_NODELIST": "gpu[11-12]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_the_variables_of_a_task_are_those_of_a_rank() -> None:
    port = 15_000 + (101 * 1234567 + 2) % 15_000
    assert slurm.rank_variables(TASK) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu11",
        "MASTER_PORT": str(port),
    }


def test_what_is_set_by_hand_stays() -> None:
    by_hand = slurm.rank_variables({**TASK, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    assert (by_hand["MASTER_ADDR"], by_hand["MASTER_PORT"]) == ("10.0.0.7", "29500")


def test_ports_are_below_those_of_outgoing_connections_and_differ_between_steps() -> None:
    ports = [
        int(slurm.rank_variables({**TASK, "SLURM_STEP_ID": str(step)})["MASTER_PORT"])
        for step in range(100)
    ]
    assert len(set(ports)) == 100
    assert min(ports) > 1024 and max(ports) < 32_768


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**TASK, "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        # The shells of sbatch and salloc: the job has four tasks, and this is not one of them.
        {name: value for name, value in TASK.items() if "STEP" not in name},
        {**TASK, "WORLD_SIZE": "1"},  # independent tasks
        {**TASK, "RANK": "0", "WORLD_SIZE": "8"},  # torchrun below srun
    ],
    ids=["no SLURM", "one task", "the shell of a job", "independent", "torchrun"],
)
def test_what_is_no_task_of_several_is_no_rank(environment: dict[str, str]) -> None:
    assert slurm.rank_variables(environment) == {}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node[01-03,7]", "node01"),
        ("node[7,01-03],login", "node7"),
        ("login,node[01-03]", "login"),
        ("rack[3-4]-node[08,10-12].cluster", "rack3-node08.cluster"),
        ("one", "one"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert slurm.first_host(nodes) == host


@pytest.mark.parametrize(
    ("counts", "node", "local"),
    [("4(x2),3", "1", "4"), ("4(x2),3", "2", "3"), ("2", "0", "2"), ("2", "5", ""), ("?", "0", "")],
)
def test_the_tasks_of_a_node(counts: str, node: str, local: str) -> None:
    task = {**TASK, "SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_NODEID": node}
    assert slurm.rank_variables(task).get("LOCAL_WORLD_SIZE", "") == local


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_PROCID": "first"}, "SLURM_PROCID is 'first'.*WORLD_SIZE=1 if tasks are indep"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS is 'many'"),
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not set"),
        ({"SLURM_STEP_NODELIST": ""}, "neither SLURM_STEP_NODELIST nor.*set MASTER_ADDR"),
    ],
)
def test_variables_that_cannot_be_used_are_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slurm.rank_variables({**TASK, **changes})


def as_a_task(rank: int, folder: Path) -> dict[str, Any]:
    """Join the other task by SLURM's variables alone, and add up numbers."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    os.environ |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    distributed.join(torch.device(distributed.device("cpu")))
    total = distributed.all_reduce(torch.tensor([rank + 1.0]))
    return {
        "rank": distributed.rank(),
        "ranks": distributed.world_size(),
        "total": total.item(),
        "hosts": os.environ["MASTER_ADDR"],
    }


def test_two_tasks_of_srun_meet(start_ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "no-such-host[1-2]",
    }
    for process in start_ranks(as_a_task, **step):
        process.join(60)
    assert rank_records(tmp_path, "result") == [
        {"rank": rank, "ranks": 2, "total": 3.0, "hosts": "127.0.0.1"} for rank in (0, 1)
    ]


@pytest.mark.parametrize(("gpus", "device"), [(1, "cuda:0"), (4, "cuda:1")])
def test_a_task_that_sees_one_gpu_takes_it(
    gpus: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**TASK, **dict.fromkeys(slurm.rank_variables(TASK), "")}.items():
        monkeypatch.setenv(name, value)  # so that all of them are unset after the test
    for name in slurm.rank_variables(TASK):
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert distributed.device("cuda") == device
