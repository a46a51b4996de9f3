"""What is imported at the start, which decides how long it takes."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torchvision", "scipy.stats", "matplotlib", "jinja2", "pandas", "timm", "jsonargparse")
STARTS = (
    ("import metalearn", set()),
    ("from metalearn import MAML, evaluate, meta_train; import metalearn.tasks", set()),
    ("import metalearn.analysis; import transfer", set()),
    ("import metalearn.__main__", {"jsonargparse"}),
)


def test_heavy_libraries_are_imported_when_they_are_needed() -> None:
    loaded = f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    code = "\n".join(["import sys", *(f"{start}\n{loaded}" for start, _ in STARTS)])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for line, (start, allowed) in zip(ran.stdout.splitlines(), STARTS, strict=True):
        assert set(line.split()) <= allowed, start
