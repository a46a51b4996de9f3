"""Recipes: the commands that make the files which a row's command names.

A row's command may name checkpoints that only the machine of that row had. `results/recipes.json`
maps such a run, by its file of results and its number, to a recipe: the commands that train the
same networks, in order, and the names of the files that they write in place of the recorded ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .rows import RESULTS

FILE = re.compile(r"[\w./-]+\.(?:safetensors|npz)")  # a file that a command names


@dataclass(frozen=True)
class Recipe:
    """How to make the files that a run needs.

    Args:
        name: the key in `results/recipes.json`.
        commands: what makes them, in order.
        files: a recorded file name to the one that the commands write.
        options: what the run's own command needs besides, because a default has changed since.
        note: what a reader should know.
    """

    name: str
    commands: Sequence[str]
    files: dict[str, str]
    options: str = ""
    note: str = ""

    def applied(self, command: str) -> str:
        """The command with the names of the files that the recipe writes, and its options.

        Example:
            >>> recipe = Recipe("one", (), {"runs/a-12.safetensors": "runs/a-34.safetensors"})
            >>> recipe.applied("metalearn evaluate --checkpoint runs/a-12.safetensors")
            'metalearn evaluate --checkpoint runs/a-34.safetensors'
        """
        # The recorded names are those of the machine of the row.
        renamed = FILE.sub(lambda match: self.files.get(match[0], match[0]), command)
        return f"{renamed} {self.options}".rstrip()


def named_files(command: str) -> list[str]:
    """The files that a command reads: checkpoints and weights.

    Example:
        >>> named_files("metalearn evaluate --checkpoint runs/a.safetensors")
        ['runs/a.safetensors']
    """
    return FILE.findall(command)


@cache
def _stored() -> dict[str, Any]:
    return json.loads((RESULTS / "recipes.json").read_text())


def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    stored = _stored()["recipes"]
    return {name: Recipe(name=name, **fields) for name, fields in stored.items()}


def recipe_of(results: str, run: int) -> Recipe | None:
    """The recipe of a run; None if its command names no file.

    Args:
        results: the name of the file of results, such as "few_shot".
        run: its number there.
    """
    name = _stored()["runs"].get(results, {}).get(str(run))
    return None if name is None else recipes()[name]
