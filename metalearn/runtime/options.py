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

from .devices import resolved

Listed = str | int | list[str | int]
"""A setting that is a list: `maml,anil` or `[maml, anil]`, or a list in a YAML file."""


def listed(value: Listed | Sequence[str | int] | None, name: str = "the list") -> list[str]:
    """The entries of a list setting, without empty ones.

    Args:
        value: the setting in any of its forms.
        name: what it is called, for the message.

    Raises:
        ValueError: the brackets do not hold a list.

    Example:
        >>> listed("maml, anil"), listed("[maml, anil]"), listed(["maml", "anil"])
        (['maml', 'anil'], ['maml', 'anil'], ['maml', 'anil'])
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
    entries: Iterable[Any] = value  # type: ignore[assignment]
    if isinstance(value, str):
        entries = value.split(",")
    elif isinstance(value, int | float):
        entries = [value]  # YAML reads `seeds: 5` as a number
    texts = [str(entry).strip() for entry in entries]
    return [text for text in texts if text]


def numbers(value: Listed | Sequence[str | int] | None, name: str = "the list") -> list[int]:
    """The entries of a list setting of whole numbers.

    Args:
        value: the setting in any of its forms.
        name: what it is called, for the message.

    Raises:
        ValueError: an entry is not a whole number.

    Example:
        >>> numbers("0,1,2"), numbers("[0, 1]"), numbers(3)
        ([0, 1, 2], [0, 1], [3])
    """
    entries = listed(value, name)
    try:
        return [int(entry) for entry in entries]
    except ValueError as error:
        raise ValueError(
            f"{name}={value!r} are not whole numbers; write 0,1,2 or [0, 1, 2]"
        ) from error


def device(name: str) -> str:
    """The name of a device, with "auto" resolved: cuda if there is a CUDA device, otherwise cpu.

    Raises:
        ValueError: the device cannot be used on this machine.

    Example:
        >>> device("cpu")
        'cpu'
    """
    name = resolved(name)
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:
        # torch built without CUDA fails an assertion
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={name!r} cannot be used here ({reason}); use --device cpu, or --device auto"
        ) from error
    return name


def command(name: str, arguments: Sequence[str] | None = None) -> str:
    """The command line of this process, ready to be typed again.

    Args:
        name: the installed command.
        arguments: its arguments; by default those of this process.

    Example:
        >>> command("metalearn", ["train", "--runs", "my runs"]).endswith("train --runs 'my runs'")
        True
    """
    if arguments is None:
        arguments = sys.argv[1:]
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        return shlex.join(["python", "-m", script.parent.name, *arguments])
    return shlex.join([name, *arguments])


class Parser(ArgumentParser):
    """A parser of jsonargparse with hyphens for underscores, bare flags, and errors of one line."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parse a command line.

        `--meta-batch` is read as `--meta_batch`, and `--download` as `--download true`.
        """
        _prepare(self)
        if args is None:
            args = sys.argv[1:]
        return super().parse_args([_underscored(argument) for argument in args], *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error in one line, and exit with code 2."""
        prog = self.prog.replace(" [options]", "")
        self.exit(
            2, f"{prog}: {self._in_words(str(message))}; `{prog} --help` lists every setting\n"
        )

    def _in_words(self, message: str) -> str:
        """The parser's message in one line that names the option and its type."""
        # "the following arguments are required: train.steps"
        required = re.search(r"arguments are required: ([\w.]+)", message)
        if required:
            return f"--{required[1].rpartition('.')[2]} is required"
        # 'Parser key "train.steps": ... Given value: five'
        key = re.search(r'Parser key "([\w.]+)"', message)
        value = re.search(r"(?:Given|Got) value: (.*)", message, re.DOTALL)
        if not key or not value:
            return " ".join(message.split())
        name = key[1].rpartition(".")[2]
        needed = "does not fit"
        for action in _actions(self):
            if action.dest == name and hasattr(action, "_typehint"):
                needed = f"must be {_kind(action._typehint)}"
                break
        return f"--{name}={value[1].strip()} {needed}"


def _underscored(argument: str) -> str:
    """`--meta-batch=4` -> `--meta_batch=4`; all else unchanged."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _actions(parser: Any) -> Iterable[Any]:
    """The options of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):  # the parsers of the subcommands
            for subparser in action.choices.values():
                yield from _actions(subparser)


def _prepare(parser: Any) -> None:
    """Let flags stand alone, and show choices in the help.

    The parser then takes any text for a choice: the code behind the setting has a better message.
    """
    for action in _actions(parser):
        kinds = _members(getattr(action, "_typehint", None))
        choices: list[str] = []
        for kind in kinds:
            if get_origin(kind) is Literal:
                choices += get_args(kind)
        if choices:
            action.metavar = f"{{{','.join(choices)}}}"
            action._typehint = str | None if type(None) in kinds else str
        if bool in kinds:
            # `--download` without a value means true
            action.nargs = "?"
            action.const = True


def _members(typehint: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    if get_origin(typehint) in (Union, types.UnionType):
        return get_args(typehint)
    return (typehint,)


def _kind(typehint: Any) -> str:
    """A type in words."""
    members = _members(typehint)
    if len(members) > 1:
        return " or ".join(_kind(kind) for kind in members if kind is not type(None))
    words = {
        int: "a whole number (int)",
        float: "a number (float)",
        bool: "true or false (bool)",
        str: "text (str)",
    }
    if get_origin(typehint) is list:
        return "a list"
    return words.get(typehint, str(typehint))
