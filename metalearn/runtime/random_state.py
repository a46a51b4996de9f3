"""The state of every random generator, as plain values that a file can hold."""

from __future__ import annotations

import random

import numpy as np
import torch

from metalearn.runtime.files import Record


def generators(device: torch.device) -> Record:
    """The states of the global generators of torch, numpy, Python and, on CUDA, of `device`."""
    # A run depends on numpy's legacy global generator.
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    version, state, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [kind, np.array(keys).tolist(), *rest],
        "python": [version, list(state), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device).tolist()
    return states


def set_generators(states: Record, device: torch.device) -> None:
    """Put the global generators into the states that `generators` returned."""
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    np.random.set_state(tuple(states["numpy"]))  # noqa: NPY002
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)
