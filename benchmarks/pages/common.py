"""What the tables of several pages share: runs and their commands, history, figures in words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from benchmarks.harness.markdown import table
from benchmarks.harness.recipes import Recipe, recipe_of
from benchmarks.harness.rows import Row, load
from metalearn.runtime.tables import Table

RECIPES = "../results/recipes.json"


class Runs:
    """The runs of a file of results: its different commands, numbered from 1 as they first came.

    Rows are only ever added to a file, so a run keeps its number.

    Args:
        path: the file of JSON lines.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.rows: dict[str, list[Row]] = {}
        for row in load(path):
            self.rows.setdefault(row["command"], []).append(row)
        self.numbers = {command: number for number, command in enumerate(self.rows, 1)}

    def of(self, *rows: Row) -> str:
        """The numbers of the runs behind some rows, with commas."""
        return ", ".join(map(str, sorted({self.numbers[row["command"]] for row in rows})))

    def recipe(self, command: str) -> Recipe | None:
        """What makes the files that a command names."""
        return recipe_of(self.name, self.numbers[command])

    def listing(self) -> str:
        """Every run with its command, machine and versions, then the recipes that they need."""
        lines = [self._line(command) for command in self.rows]
        # Several runs may need the same recipe, which stands once.
        recipes = {}
        for command in self.rows:
            recipe = self.recipe(command)
            if recipe is not None:
                recipes[recipe.name] = recipe
        if recipes:
            lines += ["", f"Recipes, from [recipes.json]({RECIPES}):"]
        for recipe in recipes.values():
            lines += ["", f"**{recipe.name}**. {recipe.note}".rstrip(". ") + ".", "", "```bash"]
            lines += [*recipe.commands, "```"]
        return "\n".join(lines)

    def _line(self, command: str) -> str:
        rows = self.rows[command]
        first = rows[0]
        recipe = self.recipe(command)
        typed = typed_command(first)
        before = ""
        if recipe is not None:
            typed = recipe.applied(typed)
            before = f"after recipe **{recipe.name}**: "
        # A run may span commits, and its rows say at which commit each was measured.
        commits = list(dict.fromkeys(row["commit"][:8] for row in rows))
        versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
        note = first.get("note", "")
        parts = [first["machine"], versions, f"commit {', '.join(commits)}", first["time"][:10]]
        line = f"- **{self.numbers[command]}** {before}`{typed}`. {'; '.join(parts)}."
        if note:
            line += f" Note: {note}."
        return line


def typed_command(row: Row) -> str:
    """The command of a row, without its note and the file that its rows went to.

    Example:
        >>> row = {"command": "python -m benchmarks.speed --note a b --results c", "note": "a b"}
        >>> typed_command(row)
        'python -m benchmarks.speed'
    """
    command = row["command"]
    note = row.get("note", "")
    # Older rows have notes without quotes.
    for form in (note, shlex.quote(note)):
        command = command.replace(f" --note {form}", "")
    return re.sub(r" --results \S+", "", command)


def shown_and_superseded(
    rows: Iterable[Row], setting: Callable[[Row], Hashable], length: Callable[[Row], int]
) -> tuple[list[Row], list[Row]]:
    """The rows that a page shows, and those that its history keeps.

    Of several rows of one setting and length the newest counts. Of these the longest run is shown,
    and shorter ones are superseded by it.

    Args:
        rows: oldest first.
        setting: what makes two runs comparable, all but their length.
        length: outer steps of training.

    Example:
        >>> rows = [{"lr": 1, "steps": steps} for steps in (5, 9, 9)]
        >>> shown_and_superseded(rows, lambda row: row["lr"], lambda row: row["steps"])
        ([{'lr': 1, 'steps': 9}], [{'lr': 1, 'steps': 5}])
    """
    newest: dict[tuple[Hashable, int], Row] = {}
    longest: dict[Hashable, int] = {}
    for row in rows:
        key = setting(row)
        steps = length(row)
        newest[key, steps] = row
        longest[key] = max(steps, longest.get(key, 0))
    shown = [row for (key, steps), row in newest.items() if steps == longest[key]]
    superseded = [row for (key, steps), row in newest.items() if steps < longest[key]]
    return shown, superseded


def figures(path: Path, rows: Sequence[Row] | None = None) -> Table:
    """The newest row of each figure: what was measured, and with which torch and threads.

    Args:
        path: the file of JSON lines.
        rows: those of its rows that the table shows [all].
    """
    runs = Runs(path)
    newest = {row["figure"]: row for row in (load(path) if rows is None else rows)}
    columns = ("figure", "measured", "torch", "threads", "run")
    lines = []
    for figure, row in newest.items():
        threads = str(row.get("threads", ""))
        lines.append((figure, row["said"], row["versions"]["torch"], threads, runs.of(row)))
    return table(columns, lines)


def problem(row: Row) -> str:
    """Data, ways and shots."""
    return f"{row['dataset']} {row['ways']}-way {row['shots']}-shot"


def device(row: Row) -> str:
    """What a network was trained on, in a few words."""
    gpu = row["machine"].partition("NVIDIA ")[2]
    if not gpu:
        return "CPU"
    return f"{gpu.split()[0]} shared with other trainings"
