"""Processes: both doors of every command, the start methods of other systems, and workers that do
not outlive their parent.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

SPAWN_ONLY = (  # as on Windows
    "import multiprocessing\nmultiprocessing.get_all_start_methods = lambda: ['spawn']\n"
)
TRANSFER = shlex.split(
    "--steps 2 --batch 8 --seeds 0 --probe 40 --pretrain_steps 2 --images 40 --strategies"
    " random,full --processes 2"
)
SWEEP = shlex.split(
    "--steps 2 --hidden 4 --meta_batch 2 --test_tasks 5 --seeds 0,1 --algorithms protonet"
    " --processes 2"
)


class Command(subprocess.Popen):
    """A process that the end of the `with` block leaves dead and closed."""

    def __exit__(self, *details: object) -> None:
        self.kill()
        super().__exit__(*details)


def start(*command: str, folder: Path, **environment: str) -> Command:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return Command(
        [sys.executable, *command],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*command: str, folder: Path, **environment: str) -> tuple[int, str]:
    with start(*command, folder=folder, **environment) as process:
        printed, _ = process.communicate(timeout=300)
        return process.returncode, printed


def living(mark: str) -> list[int]:
    """Processes that have `mark` in their environment, zombies aside."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            marked = mark.encode() in (process / "environ").read_bytes()
            if marked and (process / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    name = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    for process in living(name):
        os.kill(process, signal.SIGKILL)


def gone_within(seconds: float, mark: str) -> bool:
    until = time.monotonic() + seconds
    while living(mark) and time.monotonic() < until:
        time.sleep(0.1)
    return not living(mark)


PARENT = """
import sys, time
from metalearn.runtime import parallel

def work(number):
    parallel.end_with_parent()
    print("working", flush=True)
    while True:
        time.sleep(0.1)

if __name__ == "__main__":
    source = parallel.start_method("metalearn.runtime.parallel")
    started = [source.Process(target=work, args=(number,)) for number in range(2)]
    for process in started:
        process.start()
    time.sleep(300)
"""

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="no list of processes"
)


@needs_proc
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, mark: str) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    with start("parent.py", folder=tmp_path, MARK=mark) as parent:
        assert [parent.stdout.readline() for _ in range(2)] == ["working\n"] * 2
        parent.kill()
        assert gone_within(30, mark)


UNGUARDED = """
from torch import nn
from transfer import compare, everywhere, finetune, fresh
from tests.helpers import striped_images

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

train = finetune(striped_images(), striped_images(seed=1), steps=2)
starts = {"a": everywhere(fresh()), "b": everywhere(fresh())}
"""
COMPARE = "print(compare(starts, build, train, train.probe(36), seeds=[0, 1], processes=2))\n"
GUARD = 'if __name__ == "__main__":'


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED + COMPARE)
    code, printed = run("script.py", folder=tmp_path)
    assert code == 1
    assert f"put the call of compare() under `{GUARD}`" in printed.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["guarded", "module", "standard input", "command"])
def test_scripts_in_other_forms_run_or_say_what_to_do(tmp_path: Path, way: str) -> None:
    guarded = f"{UNGUARDED}\n{GUARD}\n    {COMPARE}"
    if way == "guarded":
        (tmp_path / "script.py").write_text(guarded)
        code, printed = run("script.py", folder=tmp_path)
        assert code == 0 and "final accuracy" in printed
    elif way == "module":  # build is then __main__'s of a package, which no other process imports
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "__main__.py").write_text(guarded)
        code, printed = run("-m", "package", folder=tmp_path)
        assert code == 1 and "define build, train and strategies at the top of a module" in printed
    elif way == "command":
        code, printed = run("-c", UNGUARDED + COMPARE, folder=tmp_path)
        assert code == 1 and "define build, train and strategies at the top of a module" in printed
    else:
        (tmp_path / "script.py").write_text(UNGUARDED + COMPARE)
        with (tmp_path / "script.py").open() as script:
            done = subprocess.run(
                [sys.executable, "-"],
                stdin=script,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                check=False,
            )
        assert done.returncode == 1 and "in a script file" in done.stderr


@pytest.mark.slow
def test_a_sweep_without_a_guard_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from metalearn.experiments import Experiment\nfrom metalearn.experiments.sweep import"
        " sweep\nquick = {'steps': 2, 'hidden': 4, 'meta_batch': 2, 'test_tasks':"
        " 5}\nsweep([Experiment(seed=seed, **quick) for seed in (0, 1)], ['protonet'],"
        " 'rows.jsonl', processes=2)\n"
    )
    code, printed = run("script.py", folder=tmp_path)
    assert code == 1 and f"put the call of sweep() under `{GUARD}`" in printed.splitlines()[-1]
    assert not (tmp_path / "rows.jsonl").exists()


def script(package: str) -> str:
    """What pip installs as the command of a package."""
    return (
        f"import sys\nfrom {package}.__main__ import main\nif __name__ == '__main__':\n   "
        " sys.exit(main())\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("system", ["here", "windows"])
@pytest.mark.parametrize("door", ["command", "module"])
@pytest.mark.parametrize("package", ["transfer", "metalearn"])
def test_both_doors_share_runs_out_among_processes(
    tmp_path: Path, package: str, door: str, system: str
) -> None:
    before = SPAWN_ONLY if system == "windows" else ""
    (tmp_path / "sitecustomize.py").write_text(before)
    (tmp_path / "command.py").write_text(script(package))
    opened = ["command.py"] if door == "command" else ["-m", package]
    arguments = ["compare", *TRANSFER] if package == "transfer" else ["sweep", *SWEEP]
    code, printed = run(
        *opened, *arguments, folder=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"
    )
    assert code == 0, printed
    assert (
        "The page with pictures" in printed
        if package == "transfer"
        else "2 figures in sweep.jsonl" in printed
    )


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("package", ["transfer", "metalearn"])
def test_a_command_that_is_stopped_leaves_no_worker(
    tmp_path: Path, mark: str, package: str, how: signal.Signals
) -> None:
    arguments = ["compare", *TRANSFER] if package == "transfer" else ["sweep", *SWEEP]
    arguments[arguments.index("--steps") + 1] = "9000"
    with start("-m", package, *arguments, folder=tmp_path, MARK=mark) as process:
        until = time.monotonic() + 120
        while (
            len(living(mark)) < 5 and time.monotonic() < until
        ):  # the command, fork server, resource tracker and two workers
            time.sleep(0.5)
        time.sleep(10)
        process.send_signal(how)
        assert gone_within(30, mark)
        assert process.wait() == (143 if how == signal.SIGTERM else -9)


@pytest.mark.slow
@needs_proc
def test_an_orphaned_sweep_goes_on_from_where_its_workers_stopped(
    tmp_path: Path, mark: str
) -> None:
    arguments = ["sweep", *SWEEP]
    arguments[arguments.index("--steps") + 1] = "9000"
    with start("-m", "metalearn", *arguments, folder=tmp_path, MARK=mark) as process:
        until = time.monotonic() + 120
        while len(list(tmp_path.glob("runs/**/*.jsonl"))) < 2 and time.monotonic() < until:
            time.sleep(0.5)
        time.sleep(3)
        process.kill()
        assert gone_within(30, mark)
    assert len(list((tmp_path / "runs").rglob("*.safetensors"))) == 2
