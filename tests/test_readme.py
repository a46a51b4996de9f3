"""The README's code blocks run, in order, as they stand; and its commands are the ones that are
checked.
"""

from __future__ import annotations

import re

import pytest

from tests.helpers import ROOT

README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_code_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert len(BLOCKS) >= 4
    assert "['block1', 'block2', 'block3', 'block4', 'head']" in printed
    assert "95 % interval over 10 tasks" in printed
    assert "The rule." in printed


def test_files_it_points_at_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert links
    missing = [link for link in links if not (README.parent / link).exists()]
    assert not missing


def test_options_it_mentions_exist() -> None:
    from metalearn.experiments.experiment import Experiment
    from transfer.__main__ import Transfer
    from transfer.continual.question import Forget

    known = {
        *Experiment.__dataclass_fields__,
        *Forget.__dataclass_fields__,
        *Transfer.__dataclass_fields__,
        "algorithms",
        "algorithm",
        "environment",
        "checkpoint",
        "help",
        "config",
    }
    shell = "".join(re.findall(r"```bash\n(.*?)```", README.read_text(), flags=re.DOTALL))
    shell = "\n".join(re.findall(r"^(?:metalearn|transfuse) .*", shell, flags=re.MULTILINE))
    options = {option.replace("-", "_") for option in re.findall(r"(?<= )--([a-z_-]+)", shell)}
    assert options
    assert options <= known
