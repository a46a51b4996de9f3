"""The weights of a training at several of its steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from torch import nn

from metalearn.runtime.checks import sequence, whole_number
from metalearn.runtime.files import write_atomically
from transfer.finetuning.curve import Snapshot


class Snapshots:
    """Takes the weights at the steps that are to be kept.

    Args:
        keep: numbers of updates.
        folder: where to write a safetensors file for each; None keeps them in memory.
        seed: of the training, which names the files.
    """

    def __init__(
        self, keep: Sequence[int], folder: str | os.PathLike[str] | None, seed: int
    ) -> None:
        self.keep = set(keep)
        self.folder = None if folder is None else Path(folder)
        self.seed = seed
        self.taken: dict[int, Snapshot] = {}

    def take(self, step: int, model: nn.Module) -> None:
        """Keep the weights after `step` updates, if they are to be kept."""
        if step not in self.keep:
            return
        weights = {
            name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()
        }
        if self.folder is None:
            self.taken[step] = weights
            return
        file = self._file(self.folder, step)
        # Whole or not at all, so that a kill leaves no half of a file.
        write_atomically(file, safetensors.torch.save(weights))
        self.taken[step] = file

    def find(self, step: int) -> None:
        """Take over the files of a training that continues after `step` updates.

        Raises:
            FileNotFoundError: one is missing.
        """
        if self.folder is None:
            return
        for earlier in sorted(self.keep):
            file = self._file(self.folder, earlier)
            if earlier > step:
                break
            if not file.is_file():
                raise FileNotFoundError(
                    f"the snapshot {file} is missing, and the training has passed step {earlier};"
                    " put it back, or name another folder= to train anew"
                )
            self.taken[earlier] = file

    def _file(self, folder: Path, step: int) -> Path:
        return folder / f"seed{self.seed}-step{step:08d}.safetensors"


def check_keep(keep: Sequence[int], steps: int) -> tuple[int, ...]:
    """The steps to keep, rising and each once.

    Raises:
        ValueError: a step is negative or past the end of the training.
        TypeError: a step is not a whole number.
    """
    checked = {
        whole_number(f"keep[{place}]", step, least=0)
        for place, step in enumerate(sequence("keep", keep, "(0, 10, 100)"))
    }
    if checked and max(checked) > steps:
        raise ValueError(
            f"keep={max(checked)} lies past the end of {steps} steps; give steps from 0 to {steps}"
        )
    return tuple(sorted(checked))
