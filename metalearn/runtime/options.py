"""Settings as people write them: lists, devices, and the parser that both command lines share."""

from __future__ import annotations

import re
import shlex
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import torch
import yaml
from jsonargparse import ArgumentParser

Listed = str | int | list[str | int]
"""A setting that is a list: `maml,anil` or `[maml, anil]` on a command line, either of them or a list in a YAML file."""


def listed(value: Listed | Sequence[str | int] | None, name: str = "the list") -> list[str]:
    """A list setting in any of its forms -> its entries, without empty ones.

    Raises ValueError for brackets that are not a list.

    Example:
        >>> listed("maml, anil") == listed("[maml, anil]") == listed('["maml", "anil"]') == listed(["maml", "anil"])
        True
        >>> listed(5)
        ['5']
    """
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{name}={value!r} is not a list; write a,b or [a, b]") from error
    if value is None:
        return []
    entries: Iterable[Any] = (
        value.split(",")
        if isinstance(value, str)
        else [value]
        if isinstance(value, int | float)
        else value
    )
    return [text for text in (str(entry).strip() for entry in entries) if text]


def numbers(value: Listed | Sequence[str | int] | None, name: str = "the list") -> list[int]:
    """A list setting of whole numbers. Raises ValueError, naming the setting, for anything else.

    Example:
        >>> numbers("0,1,2"), numbers("[0, 1]"), numbers(3)
        ([0, 1, 2], [0, 1], [3])
    """
    entries = listed(value, name)
    try:
        return [int(entry) for entry in entries]
    except ValueError as error:
        raise ValueError(
            f"{name}={value!r} are no whole numbers; write 0,1,2 or [0, 1, 2]"
        ) from error


def device(name: str) -> str:
    """The name of a device, with "auto" resolved: cuda if there is a CUDA device, otherwise cpu.

    Raises ValueError for a device that cannot be used here.

    Example:
        >>> device("cpu")
        'cpu'
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (
        RuntimeError,
        AssertionError,
        TypeError,
    ) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={name!r} cannot be used here ({reason}); use --device cpu, or --device auto"
        ) from error
    return name


def command(name: str, arguments: Sequence[str] | None = None) -> str:
    """The command that was typed, to be typed again.

    Example:
        >>> command("metalearn", ["train", "--runs", "my runs"]).endswith("train --runs 'my runs'")
        True
    """
    typed = sys.argv[1:] if arguments is None else arguments
    module = Path(sys.argv[0]).parent.name if Path(sys.argv[0]).name == "__main__.py" else ""
    return shlex.join([*(["python", "-m", module] if module else [name]), *typed])


class Parser(ArgumentParser):
    """jsonargparse's parser, with options in hyphens as well as underscores, bare flags, and errors
    of one line.
    """

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse a command line, `--meta-batch` as `--meta_batch` and `--download` as `--download
        true`.
        """
        _prepare(self)
        typed = sys.argv[1:] if args is None else args
        return super().parse_args([_underscored(argument) for argument in typed], *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say in one line what is wrong, and stop."""
        prog = self.prog.replace(" [options]", "")
        self.exit(
            2, f"{prog}: {self._in_words(str(message))}; `{prog} --help` lists every setting\n"
        )

    def _in_words(self, message: str) -> str:
        required = re.search(r"arguments are required: ([\w.]+)", message)
        if required:
            return f"--{required[1].rpartition('.')[2]} is required"
        key = re.search(r'Parser key "([\w.]+)"', message)
        value = re.search(r"(?:Given|Got) value: (.*)", message, re.DOTALL)
        if not key or not value:
            return " ".join(message.split())
        name = key[1].rpartition(".")[2]
        kinds = [
            action._typehint
            for action in _actions(self)
            if action.dest == name and hasattr(action, "_typehint")
        ]
        wanted = f"must be {_kind(kinds[0])}" if kinds else "does not fit"
        return f"--{name}={value[1].strip()} {wanted}"


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _actions(parser: Any) -> Iterable[Any]:
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):  # the parsers of the subcommands
            for subparser in action.choices.values():
                yield from _actions(subparser)


def _prepare(parser: Any) -> None:
    """Let flags stand alone, and show choices in the help; the code behind a setting says what else
    is wrong with a choice.
    """
    for action in _actions(parser):
        typehint = getattr(action, "_typehint", None)
        kinds = (
            get_args(typehint) if get_origin(typehint) in (Union, types.UnionType) else (typehint,)
        )
        choices = [
            choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)
        ]
        if choices:
            action.metavar = f"{{{','.join(choices)}}}"
            action._typehint = str | None if type(None) in kinds else str
        if bool in kinds:
            action.nargs = "?"
            action.const = True


def _kind(typehint: Any) -> str:
    """A type in words."""
    if get_origin(typehint) in (Union, types.UnionType):
        return " or ".join(_kind(kind) for kind in get_args(typehint) if kind is not type(None))
    words = {
        int: "a whole number (int)",
        float: "a number (float)",
        bool: "true or false (bool)",
        str: "text (str)",
    }
    return words.get(typehint, "a list" if get_origin(typehint) is list else str(typehint))
