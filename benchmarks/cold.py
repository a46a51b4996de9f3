"""A short Omniglot training run from nothing: imports, data, and a few outer steps.

`benchmarks.speed` runs it in fresh processes.

    python -m benchmarks.cold metalearn ROOT SCRATCH STEPS TASKS QUERIES

ROOT holds `omniglot-py`, SCRATCH is an empty folder for what a library keeps. Prints a JSON object
of seconds. Each side imports itself alone.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

# Finn et al.'s Omniglot 5-way, with max-pools.
WAYS = 5
LR = 0.4
HIDDEN = 64


def metalearn(root: str, scratch: str, steps: int, tasks: int, queries: int) -> dict[str, float]:
    """Ours: the images are decoded once and kept in memory."""
    started = time.perf_counter()
    import torch

    from metalearn import MAML, meta_train
    from metalearn.models import Conv4
    from metalearn.tasks import FewShot, omniglot

    imported = time.perf_counter()
    torch.manual_seed(0)
    episodes = FewShot(
        omniglot(root, "train", cache=scratch, progress=False), WAYS, 1, queries, tasks=10**6
    )
    loaded = time.perf_counter()
    meta_train(
        MAML(Conv4(WAYS, hidden=HIDDEN), LR),
        episodes,
        steps=steps,
        meta_batch=tasks,
        progress=False,
    )
    return {
        "imports": imported - started,
        "data": loaded - imported,
        "steps": time.perf_counter() - loaded,
    }


def learn2learn(root: str, scratch: str, steps: int, tasks: int, queries: int) -> dict[str, float]:
    """learn2learn's Omniglot script: its `get_tasksets`, its loop; the network is the plain one."""
    started = time.perf_counter()
    import learn2learn as l2l
    import torch
    import torch.nn.functional as F

    from .peers.loops import Plain

    imported = time.perf_counter()
    torch.manual_seed(0)
    random.seed(0)
    train = learn2learn_tasks(root, scratch, queries)
    loaded = time.perf_counter()
    maml = l2l.algorithms.MAML(Plain.conv4(WAYS, hidden=HIDDEN), lr=LR, first_order=False)
    optimizer = torch.optim.Adam(maml.parameters(), lr=1e-3)
    support = torch.zeros(WAYS * (1 + queries), dtype=torch.bool)
    support[:: 1 + queries] = True
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(tasks):
            learner = maml.clone()
            data, labels = train.sample()
            labels, order = labels.sort()
            data = data[order]
            learner.adapt(F.cross_entropy(learner(data[support]), labels[support]))
            F.cross_entropy(learner(data[~support]), labels[~support]).backward()
        for parameter in maml.parameters():
            parameter.grad.mul_(1 / tasks)
        optimizer.step()
    return {
        "imports": imported - started,
        "data": loaded - imported,
        "steps": time.perf_counter() - loaded,
    }


def learn2learn_tasks(root: str, scratch: str, queries: int) -> Any:
    """The training tasks of learn2learn's `get_tasksets("omniglot")`.

    It reads an image from its file whenever it is drawn.
    """
    import learn2learn as l2l
    from torchvision.datasets import Omniglot

    # It writes a file beside the data, so the scratch folder holds a link to them.
    (Path(scratch) / "omniglot-py").symlink_to((Path(root) / "omniglot-py").resolve())
    # The images are there; the archive that they came in need not be.
    Omniglot._check_integrity = lambda self: True
    samples = {
        "train_ways": WAYS,
        "train_samples": 1 + queries,
        "test_ways": WAYS,
        "test_samples": 1 + queries,
    }
    return l2l.vision.benchmarks.get_tasksets(
        "omniglot", **samples, num_tasks=20_000, root=scratch
    ).train


if __name__ == "__main__":
    side, root, scratch, *numbers = sys.argv[1:]
    run = {"metalearn": metalearn, "learn2learn": learn2learn}[side]
    print(json.dumps(run(root, scratch, *map(int, numbers))))
