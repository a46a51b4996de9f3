"""Loggers: what each sends to its service, against a fake of each module."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from metalearn import meta_train
from metalearn.tasks import Sinusoid
from metalearn.training.callbacks import (
    Callback,
    MLflow,
    OptunaPruning,
    Status,
    TensorBoard,
    Trackio,
    WandB,
)
from tests.helpers import sinusoid_learner


class Run:
    """A run of W&B or Trackio."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished: list[dict[str, Any]] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, metrics))

    def finish(self, **options: Any) -> None:
        self.finished.append(options)


class FakeMLflow:
    def __init__(self, active: bool = False) -> None:
        self.active = active
        self.calls: list[tuple[Any, ...]] = []

    def active_run(self) -> Any:
        return self if self.active else None

    def start_run(self, **options: Any) -> None:
        self.calls.append(("start", options))

    def log_params(self, parameters: dict[str, str]) -> None:
        assert len(parameters) <= 100
        self.calls.append(("parameters", parameters))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append(("metrics", step, metrics))

    def end_run(self, status: str) -> None:
        self.calls.append(("end", status))


class Fail(Callback):
    def on_step(self, status: Status) -> None:
        raise ZeroDivisionError


def train(*callbacks: Any, **options: Any) -> Any:
    return meta_train(
        sinusoid_learner(),
        Sinusoid(tasks=8),
        steps=5,
        meta_batch=2,
        validation=Sinusoid(tasks=2, seed=1),
        validate_every=3,
        callbacks=callbacks,
        progress=False,
        **options,
    )


def test_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    opened: list[dict[str, Any]] = []
    fake = SimpleNamespace(init=lambda **options: opened.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    curve = train(WandB(every=2, project="few-shot", id="a", resume="allow"))
    (options,) = opened
    assert (options["project"], options["id"], options["resume"]) == ("few-shot", "a", "allow")
    assert options["config"]["training"]["meta_batch"] == 2
    assert [step for step, _ in run.logged] == [2, 3, 4, 5]  # 3 is a validation, 5 the last
    assert run.logged[0][1] == {"training/loss": curve.losses[1], "training/lr": 1e-3}
    assert run.logged[1][1]["validation/loss"] == curve.validation[0]["mean"]
    assert run.finished == [{"exit_code": 0}]
    with pytest.raises(ZeroDivisionError):
        train(WandB(config={"mine": 1}), Fail())
    assert opened[1]["config"] == {"mine": 1}
    assert run.finished[1] == {"exit_code": 1}


def test_a_run_of_wandb_that_is_given_stays_open() -> None:
    run = Run()
    train(WandB(every=1, run=run))
    assert len(run.logged) == 5 and run.finished == []


def test_trackio(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    opened: list[Any] = []

    def init(project: str, **options: Any) -> Run:
        opened.append((project, options))
        return run

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    train(Trackio("few-shot", every=5, name="a"))
    ((project, options),) = opened
    assert (project, options["name"]) == ("few-shot", "a")
    assert options["config"]["training.meta_batch"] == 2
    assert [step for step, _ in run.logged] == [3, 5] and run.finished == [{}]


def test_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    curve = train(MLflow(every=5, run_name="a"), settings={"text": "x" * 900, "odd:*": 1})
    start, *middle, end = fake.calls
    assert start == ("start", {"run_name": "a"}) and end == ("end", "FINISHED")
    parameters: dict[str, str] = {}
    for call in middle:
        if call[0] == "parameters":
            parameters |= call[1]
    assert parameters["training.meta_batch"] == "2" and parameters["run.odd__"] == "1"
    assert len(parameters["run.text"]) == 500
    metrics = [call[1:] for call in middle if call[0] == "metrics"]
    assert [step for step, _ in metrics] == [3, 5]
    assert metrics[1][1]["training/loss"] == curve.losses[4]
    with pytest.raises(ZeroDivisionError):
        train(MLflow(), Fail())
    assert fake.calls[-1] == ("end", "FAILED")


def test_an_active_run_of_mlflow_stays_active(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMLflow(active=True)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    train(MLflow())
    assert {call[0] for call in fake.calls} == {"parameters", "metrics"}


def test_a_resumed_run_of_mlflow_sends_no_parameters_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    with pytest.raises(ZeroDivisionError):
        train(Fail(), checkpoint=tmp_path / "run")
    train(MLflow(run_id="7"), checkpoint=tmp_path / "run")
    assert fake.calls[0] == ("start", {"run_id": "7"})
    assert "parameters" not in [call[0] for call in fake.calls]


@pytest.mark.parametrize(
    ("module", "callback"),
    [
        ("wandb", WandB()),
        ("trackio", Trackio("few-shot")),
        ("mlflow", MLflow()),
        ("torch.utils.tensorboard", TensorBoard("board")),
    ],
)
def test_a_missing_package_is_named_with_its_cure(
    module: str, callback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{type(callback).__name__} needs .*pip install"):
        train(callback)


class Trial:
    """A trial of Optuna that is pruned at its second report."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, int]] = []

    def report(self, value: float, step: int) -> None:
        self.reports.append((value, step))

    def should_prune(self) -> bool:
        return len(self.reports) == 2


def test_a_pruned_trial_writes_its_checkpoint_and_raises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    class TrialPruned(Exception):
        pass

    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace(TrialPruned=TrialPruned))
    trial = Trial()
    with pytest.raises(TrialPruned, match="pruned at step 5"):
        train(OptunaPruning(trial), checkpoint=tmp_path / "run")
    assert [step for _, step in trial.reports] == [3, 5]
    with pytest.raises(ValueError, match="OptunaPruning needs validations"):
        meta_train(
            sinusoid_learner(),
            Sinusoid(tasks=8),
            steps=1,
            callbacks=[OptunaPruning(trial)],
            progress=False,
        )


def test_a_study_of_optuna_prunes_the_worse_trial() -> None:
    optuna = pytest.importorskip("optuna")

    def objective(trial: Any) -> float:
        lr = trial.suggest_categorical("lr", [0.001, 1e-12])
        curve = meta_train(
            sinusoid_learner(),
            Sinusoid(tasks=8),
            steps=6,
            validation=Sinusoid(tasks=2, seed=1),
            validate_every=2,
            optimizer=lambda parameters: __import__("torch").optim.SGD(parameters, lr=lr),
            callbacks=[OptunaPruning(trial)],
            progress=False,
        )
        return curve.best["mean"]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {"lr": [0.001, 1e-12]}
    study = optuna.create_study(
        direction="minimize",
        sampler=optuna.samplers.GridSampler(space, seed=1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0),
    )
    study.enqueue_trial({"lr": 0.001})
    study.enqueue_trial({"lr": 1e-12})
    study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
