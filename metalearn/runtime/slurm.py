"""The tasks of a step of SLURM (`srun` without torchrun) as ranks.

    srun --ntasks-per-node=4 --gpus-per-task=1 metalearn train ...

`srun` starts the processes and numbers them, as torchrun does, under other names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

# Set by torchrun, or by hand: SLURM's own variables then say nothing.
TORCHRUN = ("RANK", "WORLD_SIZE")
# Below the ports that Linux gives to outgoing connections (from 32768 on).
FIRST_PORT = 15_000
PORTS = 15_000


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of torchrun for this task of a step of SLURM, from those of SLURM.

    Only the tasks of one step (`srun`) are ranks, not the shell of `sbatch` or `salloc`, whose job
    may have many tasks. `MASTER_ADDR` is the first host of the step, where task 0 runs (not
    SLURM_LAUNCH_NODE_IPADDR: `srun` may have been called on a login node). `MASTER_PORT` follows
    from the numbers of the job and the step. Either may be set by hand.

    Args:
        environment: the variables of this process.

    Returns:
        RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, and LOCAL_WORLD_SIZE where SLURM
        tells it; nothing outside a step, in a step of one task, or where torchrun's are set.

    Raises:
        ValueError: a variable of SLURM is missing or is no number.

    Example:
        >>> step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
        >>> step |= {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NNODES": "2"}
        >>> variables = rank_variables({**step, "SLURM_STEP_NODELIST": "gpu[07-08]"})
        >>> variables["RANK"], variables["WORLD_SIZE"], variables["MASTER_ADDR"]
        ('1', '2', 'gpu07')
    """
    if any(name in environment for name in TORCHRUN):
        return {}
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1":
        return {}
    job = _number(environment, "SLURM_JOB_ID")
    step = _number(environment, "SLURM_STEP_ID")
    variables = {
        "RANK": str(_number(environment, "SLURM_PROCID")),
        "WORLD_SIZE": str(_number(environment, "SLURM_STEP_NUM_TASKS")),
        "LOCAL_RANK": str(_number(environment, "SLURM_LOCALID")),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_address(environment),
        # Steps of one job may run beside each other.
        "MASTER_PORT": environment.get("MASTER_PORT")
        or str(FIRST_PORT + (101 * job + step) % PORTS),
    }
    local = _tasks_of_node(environment)
    if local:
        variables["LOCAL_WORLD_SIZE"] = local
    return variables


def become_rank() -> None:
    """Set torchrun's variables in this process if it is a task of a step of SLURM."""
    os.environ.update(rank_variables(os.environ))


def first_host(nodes: str) -> str:
    """The first host of a node list of SLURM.

    Example:
        >>> first_host("node[01-03,7],login"), first_host("rack[2,4]-node[5-6]"), first_host("a,b")
        ('node01', 'rack2-node5', 'a')
    """
    # Up to the first comma outside brackets.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None  # it matches an empty text, too
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def _first_address(environment: Mapping[str, str]) -> str:
    """Where the first task of the step runs."""
    count = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES")
    if count == "1":
        return "127.0.0.1"  # needs no name of the host
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        host = first_host(environment.get(name, ""))
        if host:
            return host
    raise ValueError(
        "this is a task of srun, but neither SLURM_STEP_NODELIST nor SLURM_JOB_NODELIST names its"
        " hosts; set MASTER_ADDR to the host of task 0, or WORLD_SIZE=1 if tasks are independent"
    )


def _tasks_of_node(environment: Mapping[str, str]) -> str:
    """How many tasks of the step run on this node; "" if SLURM does not tell.

    SLURM_STEP_TASKS_PER_NODE is such as "4(x2),3": two nodes of four, and one of three.
    """
    counts: list[str] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        entry = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if entry:
            counts += [entry[1]] * int(entry[2] or 1)
    node = environment.get("SLURM_NODEID", "0")
    if not node.isdecimal() or int(node) >= len(counts):
        return ""
    return counts[int(node)]


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        found = repr(value) if value else "not set"
        raise ValueError(
            f"this is a task of srun, but {name} is {found}; set RANK, WORLD_SIZE, LOCAL_RANK,"
            " MASTER_ADDR and MASTER_PORT yourself, or WORLD_SIZE=1 if tasks are independent"
        )
    return int(value)
