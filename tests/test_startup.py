"""What is imported at the start, which decides how long it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torchvision", "scipy.stats", "matplotlib", "jinja2", "pandas", "timm", "jsonargparse")
AFTER = "import sys; print(*[name for name in {heavy!r} if name in sys.modules])"


@pytest.mark.parametrize(
    ("first", "allowed"),
    [
        ("import metalearn", set()),
        ("from metalearn import MAML, evaluate, meta_train; import metalearn.tasks", set()),
        ("import metalearn.__main__", {"jsonargparse"}),
    ],
)
def test_heavy_libraries_are_imported_when_they_are_needed(first: str, allowed: set[str]) -> None:
    code = f"{first}; {AFTER.format(heavy=HEAVY)}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ran.stdout.split()) <= allowed
