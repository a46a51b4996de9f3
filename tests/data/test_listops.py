"""ListOps against its published examples and against a machine with a stack."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn.data.listops import WORDS, evaluated, listops, parsed, written

GOLDEN = {
    "[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]": 5,
    "[SM 9 9 9 ]": 7,
    "[MED 1 4 ]": 2,
    "7": 7,
}


@pytest.mark.parametrize(("text", "expected"), GOLDEN.items())
def test_golden_strings(text: str, expected: int) -> None:
    assert evaluated(text) == expected


def stack_machine(text: str) -> int:
    """The value of a string, from left to right over one stack, without a tree."""
    stack: list[int | str] = []
    for word in text.split():
        if word != "]":
            stack.append(int(word) if word.isdigit() else word)
            continue
        arguments: list[int] = []
        while isinstance(stack[-1], int):
            arguments.append(stack.pop())
        operation = stack.pop()
        arguments.sort()
        count = len(arguments)
        if operation == "[MIN":
            result = arguments[0]
        elif operation == "[MAX":
            result = arguments[-1]
        elif operation == "[SM":
            result = sum(arguments) % 10
        else:
            result = int((arguments[(count - 1) // 2] + arguments[count // 2]) / 2)
        stack.append(result)
    (answer,) = stack
    assert isinstance(answer, int)
    return answer


trees = st.recursive(
    st.integers(0, 9),
    lambda inner: st.tuples(
        st.sampled_from(["MIN", "MAX", "MED", "SM"]),
        st.lists(inner, min_size=1, max_size=6).map(tuple),
    ),
    max_leaves=40,
)


@settings(deadline=None, max_examples=150)
@given(trees)
def test_values_are_those_of_a_stack_machine(tree: object) -> None:
    text = written(tree)
    assert parsed(text) == tree
    assert evaluated(text) == stack_machine(text)


def strings(data: object) -> list[str]:
    return [" ".join(WORDS[i - 1] for i in row.tolist() if i) for row in data.inputs]


def test_drawn_strings_close_have_their_length_and_their_value() -> None:
    data = listops(60, shortest=10, longest=64, seed=5)
    texts = strings(data)
    assert len(set(texts)) == 60
    for text, label in zip(texts, data.targets.tolist(), strict=True):
        assert 10 <= len(text.split()) <= 64
        assert stack_machine(text) == label
        assert max_depth(text) <= 10
    # Padding is at the end alone.
    real = (data.inputs != 0).int()
    assert bool((real.diff(dim=1) <= 0).all())
    assert torch.equal(data.inputs, listops(60, shortest=10, longest=64, seed=5).inputs)
    assert not torch.equal(data.inputs, listops(60, shortest=10, longest=64, seed=6).inputs)


def max_depth(text: str) -> int:
    depth = deepest = 0
    for word in text.split():
        depth += word.startswith("[")
        deepest = max(deepest, depth)
        depth -= word == "]"
    return deepest


def test_long_strings_fit_their_limit() -> None:
    data = listops(5, shortest=100, longest=512)
    lengths = (data.inputs != 0).sum(1)
    assert int(lengths.min()) >= 100 and int(lengths.max()) <= 512
    assert data.dimensions == {"vocabulary": 16, "outputs": 10, "tokens": 512, "padding": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[MAX 4 3 [MIN 2 3 ] 1", "does not close, as if it were cut off; open at its end: 1"),
        ("[MAX [MIN [SM 1", "open at its end: 3 of its operations"),
        ("1 ]", "word 1 of the string, ']', closes nothing"),
        ("[MAX ]", "an operation without arguments"),
        ("[AVG 1 2 ]", r"word 0 of the string is '\[AVG'; ListOps has 0 1"),
        ("[MAX 12 2 ]", "word 1 of the string is '12'"),
        ("1 2", "the string has 2 expressions"),
        ("", "the string has 0 expressions"),
    ],
)
def test_strings_that_are_no_expression_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluated(text)


def test_lengths_that_no_string_has_are_refused() -> None:
    with pytest.raises(ValueError, match="shortest=9 exceeds longest=8"):
        listops(3, shortest=9, longest=8)
    with pytest.raises(ValueError, match="allow more lengths"):
        listops(1000, shortest=1, longest=4)  # there are 400 strings of one operation on two digits


def test_every_prefix_of_a_string_is_refused() -> None:
    text = strings(listops(1, shortest=20, longest=40))[0].split()
    cut = random.Random(0).sample(range(1, len(text)), 8)
    for end in cut:
        with pytest.raises(ValueError, match="does not close"):
            evaluated(" ".join(text[:end]))
