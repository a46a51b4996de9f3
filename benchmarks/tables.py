"""The tables of README.md and of its pages, drawn from the result files.

python -m benchmarks.tables              # write them into the pages
python -m benchmarks.tables --check true # fail if a page differs from the results
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from metalearn.runtime.tables import Table

from .harness.rows import run_benchmark
from .pages import (
    block_structure,
    costs,
    disagreement,
    dynamics,
    few_shot,
    forgetting,
    frozen_transformers,
    init_strategies,
    omniglot_splits,
    one_shot,
    overview,
    pointer_values,
    reinforcement,
    reuse,
    speed,
    theory,
    vit_vs_cnn,
)

HERE = Path(__file__).parent
PAGES = (HERE / "README.md", *sorted((HERE / "pages").glob("*.md")))
TABLES: dict[str, Callable[[], Table | str]] = {
    **few_shot.TABLES,
    **omniglot_splits.TABLES,
    **one_shot.TABLES,
    **forgetting.TABLES,
    **reuse.TABLES,
    **costs.TABLES,
    **speed.TABLES,
    **init_strategies.TABLES,
    **block_structure.TABLES,
    **vit_vs_cnn.TABLES,
    **dynamics.TABLES,
    **theory.TABLES,
    **disagreement.TABLES,
    **frozen_transformers.TABLES,
    **pointer_values.TABLES,
    **reinforcement.TABLES,
    **overview.TABLES,
}
END = "<!-- end -->"


def tables(check: bool = False) -> None:  # noqa: FBT001, FBT002  # a command line setting
    """Draw the tables.

    Args:
        check: write nothing, and fail if a page differs.
    """
    for path in PAGES:
        stored = path.read_text()
        text = drawn(stored)
        if check and text != stored:
            sys.exit(f"{path} differs from the results; run python -m benchmarks.tables")
        if not check:
            path.write_text(text)


def drawn(text: str) -> str:
    r"""A page with the tables between its markers drawn anew.

    Example:
        >>> drawn("<!-- table one_shot -->\n<!-- end -->").splitlines()[1][:9]
        '| learner'
    """
    for name, draw in TABLES.items():
        start = marker(name)
        # A page has some of the tables.
        before, found, rest = text.partition(start)
        if found:
            content = draw()
            if isinstance(content, Table):
                content = content.to_markdown()
            _, _, after = rest.partition(END)
            text = f"{before}{start}{content}\n{END}{after}"
    return text


def marker(name: str) -> str:
    """The line before a table."""
    return f"<!-- table {name} -->\n"


if __name__ == "__main__":
    run_benchmark(tables)
