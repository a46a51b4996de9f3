"""Other projects that install into the same folders are noticed."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import metalearn
from metalearn.__main__ import main
from metalearn.runtime import installation

ROOT = Path(metalearn.__file__).parents[1]


def install(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """What pip leaves of a distribution: its files, their hashes, and its name."""
    lines = []
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=")
        lines.append(f"{path},sha256={digest.decode()},{len(content)}")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_nothing_is_said_of_an_environment_of_its_own() -> None:
    installation.warn_of_others()
    assert installation.others_installed(["no-such-distribution"]) == []


@pytest.mark.parametrize("name", installation.SAME_FOLDERS)
def test_a_project_of_the_same_folders_is_warned_of_with_the_cure(site: Path, name: str) -> None:
    install(site, name, "9.9", {})
    with pytest.warns(UserWarning, match=rf"{name} 9\.9 from PyPI.*use an environment of its own"):
        installation.warn_of_others()


def test_replaced_and_missing_files_are_found(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"metalearn/a.py": "a = 1", "transfer/b.py": "b = 1", "elsewhere/c.py": "c = 1"}
    install(site, "metalearn-transfer", "0.1.0", own)
    assert installation.replaced_files() == []
    (site / "metalearn/a.py").write_text("something else")
    (site / "transfer/b.py").unlink()
    (site / "elsewhere/c.py").unlink()  # not in a folder that others use
    assert installation.replaced_files() == ["metalearn/a.py", "transfer/b.py"]
    install(site, "metalearn", "0.0.7", {})
    assert main(["--version"]) == 2
    error = capsys.readouterr().err
    assert "2 files are not those of metalearn-transfer" in error
    assert "metalearn/a.py" in error and "metalearn 0.0.7 is installed here too" in error


def test_transfer_beside_another_projects_metalearn_says_so(tmp_path: Path) -> None:
    (tmp_path / "metalearn").mkdir()
    (tmp_path / "metalearn/__init__.py").write_text("theirs = True")
    (tmp_path / "transfer").symlink_to(ROOT / "transfer")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", "import transfer"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "is another project's 'metalearn'" in ran.stderr
