"""Whether a data set has the classes, and the examples of each, that tasks need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def check_classes(
    dataset: Any, names: Sequence[str], absent: Sequence[str], ways: int, asked: str
) -> None:
    """Raise ValueError if a data set has too few classes.

    Args:
        dataset: it; its `description` says how its classes were divided.
        names: the classes that have examples.
        absent: the classes without examples.
        ways: the classes of the largest task.
        asked: the setting that asks for them, for the message.
    """
    if ways <= len(names):
        return
    raise ValueError(
        f"the data set has {len(names)} classes{_absences(absent)} but {asked}; ask for at most"
        f" {len(names)} ways{_how_to_divide(dataset)}"
    )


def check_examples(names: Sequence[str], sizes: np.ndarray, needed: int, asked: str) -> None:
    """Raise ValueError if a class has too few examples for a task.

    Args:
        names: the classes.
        sizes: the number of examples of each.
        needed: the examples of a class in the largest task.
        asked: the settings that ask for them, for the message.
    """
    small = np.flatnonzero(sizes < needed)
    if len(small):
        smallest = small[sizes[small].argmin()]
        raise ValueError(
            f"class {names[smallest]!r} has {sizes[smallest]} images but {asked} need {needed}"
            f" ({len(small)} of {len(names)} classes are too small); ask for fewer shots or"
            " queries, or leave such classes out"
        )


def _absences(absent: Sequence[str]) -> str:
    """The classes without images, for the message about too few classes."""
    if not absent:
        return ""
    verb = "has" if len(absent) == 1 else "have"
    return f" with images ({', '.join(map(repr, absent[:5]))} {verb} none)"


def _how_to_divide(dataset: Any) -> str:
    """How the classes of a folder were divided, and how to divide them differently."""
    description = getattr(dataset, "description", None) or {}
    if "classes_per_split" not in description:
        return ""
    counts: dict[str, int] = description["classes_per_split"]
    parts = ", ".join(f"{count} for {split}" for split, count in counts.items())
    how = f"by {description['classes_split_by']}"
    if description["classes_split_by"] == "seed":
        how = f"{'/'.join(map(_share, description.get('shares', ())))} by seed"
    return (
        f". The {sum(counts.values())} classes of {description.get('folder', 'the folder')} are"
        f" divided {how}: {parts}. Divide them differently with --split-ratio 1,1,1 or --splits"
        " FILE (image_folder's splits=), or make folders train, val and test"
    )


def _share(share: float) -> str:
    """A fraction in percent, or a number of classes."""
    return f"{100 * share:.3g}" if share < 1 else str(share)
