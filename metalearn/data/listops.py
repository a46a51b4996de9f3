"""ListOps: nested lists of operations on digits, drawn, written, read and evaluated.

Nangia and Bowman 2018 (arXiv:1804.06028), with the distribution of Long Range Arena (Tay et al.
2021, arXiv:2011.04006).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from metalearn.data.labelled_sequences import PADDING, Sequences
from metalearn.runtime.checks import whole_number

Tree = int | tuple[str, tuple[Any, ...]]
"""A digit, or an operation and its arguments, which are trees."""

DEPTH = 10  # below it there are digits alone
ARGUMENTS = (2, 10)
OPERATION = 0.25  # the probability that a node is an operation
TRIALS = 10_000  # draws without a new string, after which the lengths are refused


def _median(values: Sequence[int]) -> int:
    """The median; of an even number the mean of the middle two, truncated."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) // 2


OPERATIONS: dict[str, Callable[[Sequence[int]], int]] = {
    "MIN": min,
    "MAX": max,
    "MED": _median,
    "SM": lambda values: sum(values) % 10,
}
# Id 0 is padding.
WORDS = (*map(str, range(10)), *(f"[{name}" for name in OPERATIONS), "]")
IDS = {word: number for number, word in enumerate(WORDS, start=PADDING + 1)}
VOCABULARY = len(WORDS) + 1


def listops(count: int, *, shortest: int = 500, longest: int = 2000, seed: int = 0) -> Sequences:
    """Strings of ListOps, whose label is their value, 0 to 9.

    A node above depth 10 is an operation (MIN, MAX, MED or SM, the sum modulo 10) of 2 to 10
    arguments with probability 0.25, else a digit. Strings of other lengths are drawn again. Long
    Range Arena has 96,000, 2,000 and 2,000 strings of 500 to 2,000 tokens. No string comes twice in
    a set; sets of other seeds share some if strings are very short.

    Args:
        count: how many strings.
        shortest: tokens of a string, at least. A string of one operation has 4 or more.
        longest: tokens of a string, at most. Shorter ones are padded at the end with id 0.
        seed: of the strings.

    Returns:
        Token ids (count, longest) of 16 kinds: padding, ten digits, four operations with their
        bracket, and the closing bracket.

    Raises:
        ValueError: hardly any string has such a length.

    Example:
        >>> data = listops(3, shortest=10, longest=64)
        >>> data.inputs.shape, data.dimensions["vocabulary"], data.outputs
        (torch.Size([3, 64]), 16, 10)
    """
    count = whole_number("count", count)
    longest = whole_number("longest", longest, least=4)
    shortest = whole_number("shortest", shortest)
    if shortest > longest:
        raise ValueError(f"shortest={shortest} exceeds longest={longest}; no string has both")
    generator = random.Random(seed)
    inputs = torch.full((count, longest), PADDING)
    targets = torch.empty(count, dtype=torch.int64)
    drawn: set[tuple[int, ...]] = set()
    trials = 0
    while len(drawn) < count:
        trials += 1
        if trials > TRIALS:
            raise ValueError(
                f"after {len(drawn)} strings of {shortest} to {longest} tokens, {TRIALS:,}"
                " draws gave no new one; allow more lengths, or ask for fewer strings"
            )
        tree = _drawn(generator, longest)
        if tree is None:
            continue
        ids = tuple(IDS[word] for word in written(tree).split())
        if len(ids) < shortest or ids in drawn:
            continue
        inputs[len(drawn), : len(ids)] = torch.tensor(ids)
        targets[len(drawn)] = value(tree)
        drawn.add(ids)
        trials = 0
    record = {"source": "listops", "shortest": shortest, "longest": longest, "seed": seed}
    return Sequences(inputs, targets, 10, VOCABULARY, padded=True, description=record)


def _drawn(generator: random.Random, longest: int) -> Tree | None:
    """A tree; None as soon as it has more than `longest` tokens."""
    tokens = 0

    def node(depth: int) -> Tree:
        nonlocal tokens
        # The root is an operation: a digit alone would always be too short, and drawn again.
        operation = depth == 0 or (depth < DEPTH and generator.random() < OPERATION)
        tokens += 2 if operation else 1
        if tokens > longest:
            raise _TooLong
        if not operation:
            return generator.randrange(10)
        name = generator.choice(tuple(OPERATIONS))
        arguments = [node(depth + 1) for _ in range(generator.randint(*ARGUMENTS))]
        return name, tuple(arguments)

    try:
        return node(0)
    except _TooLong:
        return None


class _TooLong(Exception):
    """A tree has too many tokens."""


def written(tree: Tree) -> str:
    """A tree as a string.

    Example:
        >>> written(("MAX", (4, ("MIN", (2, 3)), 1)))
        '[MAX 4 [MIN 2 3 ] 1 ]'
    """
    if isinstance(tree, int):
        return str(tree)
    name, arguments = tree
    return " ".join([f"[{name}", *map(written, arguments), "]"])


def value(tree: Tree) -> int:
    """The value of a tree.

    Example:
        >>> value(("SM", (9, 9, 9)))
        7
    """
    if isinstance(tree, int):
        return tree
    name, arguments = tree
    return OPERATIONS[name]([value(argument) for argument in arguments])


def parsed(text: str) -> Tree:
    """The tree of a string.

    Args:
        text: words with spaces between them.

    Raises:
        ValueError: the string does not close, closes too early, has an operation without arguments,
            or a word that ListOps does not have.

    Example:
        >>> parsed("[MED 1 4 ]")
        ('MED', (1, 4))
    """
    words = text.split()
    # Operations that are still open: name and arguments so far. The first entry collects the whole.
    pending: list[tuple[str, list[Tree]]] = [("", [])]
    for place, word in enumerate(words):
        if word not in IDS:
            raise ValueError(
                f"word {place} of the string is {word!r}; ListOps has {' '.join(WORDS)}"
            )
        if word.startswith("["):
            pending.append((word[1:], []))
        elif word == "]":
            name, arguments = pending.pop()
            if not pending or not arguments:
                fault = "an operation without arguments" if pending else "nothing that is open"
                raise ValueError(f"word {place} of the string, ']', closes {fault}: {text:.60}")
            pending[-1][1].append((name, tuple(arguments)))
        else:
            pending[-1][1].append(int(word))
    if len(pending) > 1:
        raise ValueError(
            f"the string does not close, as if it were cut off; open at its end: {len(pending) - 1}"
            f" of its operations: ... {text[-40:]}"
        )
    trees = pending[0][1]
    if len(trees) != 1:
        raise ValueError(f"the string has {len(trees)} expressions; give one: {text:.60}")
    return trees[0]


def evaluated(text: str) -> int:
    """The value of a string.

    Raises:
        ValueError: as `parsed` does.

    Example:
        >>> evaluated("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]")
        5
    """
    return value(parsed(text))
