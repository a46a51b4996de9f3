"""Several tasks from one labelled set, cut by its classes: what a sequence of tasks learns."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import torch

from metalearn.runtime.checks import sequence

from .cifar import SUPERCLASSES
from .folders import mini_imagenet
from .images import LabelledImages
from .labelled_sets import Split, divided

Class: TypeAlias = int | str

# Classes of miniImageNet by superclass: those of the first task, and those of the second.
MINI_IMAGENET_SHIFT = {
    "dog": (
        # Walker hound, Saluki, Gordon setter, boxer
        ("n02089867", "n02091831", "n02101006", "n02108089"),
        # komondor, Newfoundland, French bulldog, miniature poodle
        ("n02105505", "n02111277", "n02108915", "n02113712"),
    ),
    # house finch, robin; toucan, goose
    "bird": (("n01532829", "n01558993"), ("n01843383", "n01855672")),
    # barrel, beer bottle; ashcan, cocktail shaker
    "container": (("n02795169", "n02823428"), ("n02747177", "n03062245")),
    # aircraft carrier, yawl; tank, school bus
    "vehicle": (("n02687172", "n04612504"), ("n04389033", "n04146614")),
}


def split_classes(parts: Split, classes: Sequence[Iterable[Class]]) -> list[Split]:
    """Tasks of other classes: task i has the images of `classes[i]`, labelled 0, 1, ...

    Args:
        parts: the images, such as `metalearn.data.labelled_sets.load("cifar10")`.
        classes: for each task its classes, by number or by name, in the order of their labels.

    Returns:
        A `Split` for each task.

    Raises:
        ValueError: a class does not exist or is named twice in a task, or a task has one class.

    Example:
        >>> from metalearn.data.labelled_sets import load
        >>> first, second = split_classes(load("glyphs"), [range(5), range(5, 10)])
        >>> len(first.train.names), second.train.labels.unique().tolist()
        (5, [0, 1, 2, 3, 4])
    """
    _check_parts(parts)
    tasks = []
    for number, members in enumerate(sequence("classes", classes, "[range(5), range(5, 10)]")):
        chosen = sequence(f"classes[{number}]", members, "range(5)")
        if len(chosen) < 2:
            raise ValueError(
                f"task {number} has {len(chosen)} class{'es' if not chosen else ''}: there is"
                " nothing to tell apart; give it two or more"
            )
        indices = [_number(parts.train, name) for name in chosen]
        tasks.append(
            _each_part(parts, lambda images, i=indices, n=number: images.classes(i, task=n))
        )
    return tasks


def shifted(parts: Split, superclasses: Mapping[str, Sequence[Iterable[Class]]]) -> list[Split]:
    """Tasks of the same superclasses: each task has other subclasses of every one.

    The labels are the superclasses, so that one head serves all tasks. Ramasesh et al. 2021
    (arXiv:2007.07400) make such a distribution shift from CIFAR-100.

    Args:
        parts: the images.
        superclasses: {superclass: for each task the classes that stand for it}, by number or name.
            A class of several tasks is not a shift, and is refused.

    Returns:
        A `Split` for each task, with the superclasses as classes.

    Raises:
        ValueError: a class does not exist or is used twice, superclasses have other numbers of
            tasks, or there is one superclass only.

    Example:
        >>> from metalearn.data.labelled_sets import load
        >>> tasks = shifted(load("glyphs"), {"low": [[0, 1], [2]], "high": [[10], [11, 12]]})
        >>> tasks[0].train.names, tasks[1].train.labels.bincount().tolist()
        (('low', 'high'), [20, 40])
    """
    _check_parts(parts)
    if not isinstance(superclasses, Mapping):
        raise TypeError(
            f"superclasses is a {type(superclasses).__name__}; give a dictionary, {{'dog':"
            " [['boxer'], ['komondor']], ...}"
        )
    if len(superclasses) < 2:
        raise ValueError(
            f"{len(superclasses)} superclass(es): there is nothing to tell apart; give two or more"
        )
    groups: dict[str, list[list[int]]] = {}
    for name, of_tasks in superclasses.items():
        groups[name] = [_numbers(parts.train, name, members) for members in of_tasks]
    counts = {name: len(numbers) for name, numbers in groups.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"superclasses have other numbers of tasks, {counts}; give all as many")
    used: list[int] = []
    for numbers in groups.values():
        used += itertools.chain.from_iterable(numbers)
    repeated = [number for number in used if used.count(number) > 1]
    if repeated:
        raise ValueError(
            f"the class {parts.train.names[repeated[0]]!r} is used twice; every class stands for"
            " one superclass in one task"
        )
    return [
        _each_part(parts, lambda images, t=task: _grouped(images, groups, t))
        for task in range(next(iter(counts.values())))
    ]


def mini_imagenet_shift(
    root: str | os.PathLike[str],
    *,
    size: int = 32,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> list[Split]:
    """Two tasks of dogs, birds, containers and vehicles, with other kinds of each.

    A stand-in for the shift of CIFAR-100's superclasses, on 24 classes of miniImageNet
    (`MINI_IMAGENET_SHIFT`) of all its splits.

    Args:
        root: as in `metalearn.tasks.mini_imagenet`.
        size: height and width in pixels.
        held_out: the share of each class to test on.
        seed: of that division.
        progress: whether to show progress on stderr while decoding.

    Raises:
        FileNotFoundError: there is no miniImageNet in `root`.
    """
    splits = [
        mini_imagenet(root, split, size=size, progress=progress)
        for split in ("train", "validation", "test")
    ]
    wanted: set[str] = set()
    for of_tasks in MINI_IMAGENET_SHIFT.values():
        wanted.update(itertools.chain.from_iterable(of_tasks))
    images = []
    labels = []
    names: list[str] = []
    for part in splits:
        here = [number for number, name in enumerate(part.names) if name in wanted]
        chosen = part.classes(here)
        images.append(chosen.images)
        labels.append(chosen.labels + len(names))
        names += chosen.names
    record = {"source": "mini_imagenet", "size": size}
    joined = LabelledImages(torch.cat(images), torch.cat(labels), names, record)
    return shifted(divided(joined, held_out, seed), MINI_IMAGENET_SHIFT)


def cifar100_superclasses(
    names: Sequence[str] | None = None, *, tasks: int = 2, each: int = 2
) -> dict[str, list[list[str]]]:
    """Superclasses of CIFAR-100 for `shifted`: every task gets `each` other classes of each one.

    Args:
        names: the superclasses; by default the first five of `metalearn.data.cifar.SUPERCLASSES`.
        tasks: how many.
        each: classes of a superclass in a task; CIFAR-100 has five of each.

    Raises:
        ValueError: there is no such superclass, or it has too few classes.

    Example:
        >>> cifar100_superclasses(["fish", "people"])["fish"]
        [['aquarium_fish', 'flatfish'], ['ray', 'shark']]
    """
    chosen = list(SUPERCLASSES)[:5] if names is None else list(names)
    unknown = [name for name in chosen if name not in SUPERCLASSES]
    if unknown:
        raise ValueError(
            f"CIFAR-100 has no superclass {unknown[0]!r}; it has {', '.join(SUPERCLASSES)}"
        )
    if not 0 < tasks * each <= 5:
        raise ValueError(
            f"tasks={tasks} of each={each} classes need {tasks * each} of a superclass, and"
            " CIFAR-100 has 5"
        )
    superclasses = {}
    for name in chosen:
        members = SUPERCLASSES[name].split()
        superclasses[name] = [members[task * each : (task + 1) * each] for task in range(tasks)]
    return superclasses


def alphabet_superclasses(
    names: Sequence[str], alphabets: int = 4, *, tasks: int = 2, each: int = 5
) -> dict[str, list[list[str]]]:
    """Alphabets of Omniglot for `shifted`: "which alphabet", by other characters in each task.

    Args:
        names: of the characters, "Alphabet/character", as `metalearn.tasks.omniglot` has them.
        alphabets: how many, the first that have enough characters.
        tasks: how many.
        each: characters of an alphabet in a task.

    Raises:
        ValueError: there are fewer alphabets with enough characters.

    Example:
        >>> names = ["Latin/a", "Latin/b", "Greek/a", "Greek/b"]
        >>> alphabet_superclasses(names, 2, each=1)
        {'Latin': [['Latin/a'], ['Latin/b']], 'Greek': [['Greek/a'], ['Greek/b']]}
    """
    characters: dict[str, list[str]] = {}
    for name in names:
        characters.setdefault(name.rpartition("/")[0], []).append(name)
    large = [name for name, members in characters.items() if len(members) >= tasks * each]
    if len(large) < alphabets:
        raise ValueError(
            f"{len(large)} alphabets have the {tasks * each} characters that {tasks} tasks of"
            f" each={each} need, and {alphabets} are wanted; take a smaller each="
        )
    superclasses = {}
    for name in large[:alphabets]:
        members = characters[name]
        superclasses[name] = [members[task * each : (task + 1) * each] for task in range(tasks)]
    return superclasses


def mixed(near: Split, far: Split, share: float, seed: int = 0) -> Split:
    """A task between two: of each label a share of the images from `near`, the rest from `far`.

    It makes an axis of similarity on purpose: label i keeps its meaning as "the i-th class", and
    its images move from one class to another.

    Args:
        near: a task.
        far: another with as many classes and images of the same shape.
        share: of the images from `near`, from 0 to 1.
        seed: which images.

    Raises:
        ValueError: the share is outside 0 to 1, or the two have other numbers of classes or other
            shapes of images.

    Example:
        >>> from metalearn.data.labelled_sets import load
        >>> first, second = split_classes(load("glyphs"), [range(2), range(2, 4)])
        >>> len(mixed(first, second, 0.25).train)
        40
    """
    if not isinstance(share, Real) or isinstance(share, bool) or not 0 <= share <= 1:
        raise ValueError(f"share={share!r}; give a number from 0 (all far) to 1 (all near)")
    if len(near.train.names) != len(far.train.names):
        raise ValueError(
            f"{len(near.train.names)} classes are near and {len(far.train.names)} far; give both"
            " as many"
        )
    if near.train.images.shape[1:] != far.train.images.shape[1:]:
        raise ValueError(
            f"images of {tuple(near.train.images.shape[1:])} are near and of"
            f" {tuple(far.train.images.shape[1:])} far; bring all to one shape"
        )
    both = [_mixed(near.train, far.train, share, seed), _mixed(near.test, far.test, share, seed)]
    return Split(both[0], None, both[1])


def _mixed(near: LabelledImages, far: LabelledImages, share: float, seed: int) -> LabelledImages:
    generator = np.random.default_rng(seed)
    images = []
    labels = []
    for label in range(len(near.names)):
        rows = [np.flatnonzero(side.labels.numpy() == label) for side in (near, far)]
        count = min(map(len, rows))
        taken = round(share * count)
        for side, members, number in ((near, rows[0], taken), (far, rows[1], count - taken)):
            images.append(side.images[torch.from_numpy(generator.permutation(members)[:number])])
        labels += [label] * count
    names = [f"{a} and {b}" for a, b in zip(near.names, far.names, strict=True)]
    record = {**near.description, "share": float(share), "mixed_by_seed": seed}
    return LabelledImages(torch.cat(images), torch.tensor(labels), names, record)


def _each_part(parts: Split, change: Any) -> Split:
    validation = None if parts.validation is None else change(parts.validation)
    return Split(change(parts.train), validation, change(parts.test))


def _grouped(
    images: LabelledImages, groups: Mapping[str, list[list[int]]], task: int
) -> LabelledImages:
    """The images of one task of `shifted`, labelled by superclass."""
    # Old label -> superclass, and -1 for the classes that are left out.
    relabel = torch.full((len(images.names),), -1, dtype=torch.int64)
    for label, of_tasks in enumerate(groups.values()):
        relabel[of_tasks[task]] = label
    labels = relabel[images.labels]
    keep = labels >= 0
    record = {**images.description, "task": task}
    return LabelledImages(images.images[keep], labels[keep], list(groups), record)


def _check_parts(parts: object) -> None:
    if not isinstance(parts, Split):
        raise TypeError(
            f"parts is a {type(parts).__name__}; give a Split, such as what"
            " metalearn.data.labelled_sets.load returns"
        )


def _numbers(images: LabelledImages, superclass: str, members: Iterable[Class]) -> list[int]:
    """The numbers of the classes that stand for a superclass in one task."""
    numbers = [_number(images, member) for member in members]
    if not numbers:
        raise ValueError(f"superclass {superclass!r} has a task without a class; give it one")
    return numbers


def _number(images: LabelledImages, name: object) -> int:
    """The number of a class, by number or name; a name matches its first synonym too."""
    if isinstance(name, Integral) and not isinstance(name, bool):
        if 0 <= int(name) < len(images.names):
            return int(name)
        raise ValueError(
            f"there is no class {name}: there are {len(images.names)}, 0 to {len(images.names) - 1}"
        )
    for number, known in enumerate(images.names):
        # ImageNet's names have synonyms behind commas.
        if name in (known, known.partition(",")[0]):
            return number
    near = difflib.get_close_matches(str(name), images.names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(images.names)}"
    raise ValueError(f"there is no class {name!r}; {hint:.300}")
