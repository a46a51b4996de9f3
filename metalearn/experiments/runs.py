"""Trained runs: read from a checkpoint, and compared on the same tasks."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch

from metalearn.algorithms.base import Learner
from metalearn.evaluation import Evaluation, evaluate_together
from metalearn.experiments.experiment import ELSEWHERE, LARGEST, OWN, SLACK, Experiment, trained_by
from metalearn.experiments.presets import preset
from metalearn.models.registry import runs_code
from metalearn.runtime import distributed
from metalearn.runtime.checks import is_kind
from metalearn.training.checkpoints import load, restore
from metalearn.training.loop import Curve


@dataclass(frozen=True)
class Run:
    """One trained learner: what was asked for, the algorithm that trained it, and how training
    went.
    """

    experiment: Experiment
    algorithm: str
    learner: Learner
    curve: Curve

    def tested(self, algorithm: str | None = None) -> Learner:
        """The learner as it is tested, or another algorithm around the model that it trained."""
        name = algorithm or self.algorithm
        return self.experiment.tested(
            name,
            (
                self.learner
                if name == self.algorithm
                else self.experiment.learner(name, self.learner.model)
            ),
        )

    def command(self) -> str:
        """The command that trains it."""
        own, base = (
            self.experiment,
            preset(
                self.experiment.preset,
                self.experiment.dataset,
                self.experiment.ways,
                self.experiment.shots,
                self.algorithm,
            ),
        )
        asked: dict[str, Any] = {
            "algorithm": self.algorithm,
            "dataset": own.dataset,
            "ways": own.ways,
            "shots": own.shots,
            "preset": own.preset,
        }
        asked["steps"] = len(self.curve.losses)
        changed = {
            name: getattr(own, name, None)
            for name in base.__dataclass_fields__
            if name not in ("steps", "test_steps")
        }
        asked |= {
            name: value
            for name, value in changed.items()
            if value not in (None, getattr(base, name))
        }
        defaults = Experiment.__dataclass_fields__
        named = ("splits", "split_ratio", "seed", "precision", "norm", "weights", "normalize")
        asked |= {
            name: getattr(own, name)
            for name in named
            if getattr(own, name) != defaults[name].default
        }
        if own.precision == "tf32":
            asked["device"] = "cuda"
        return shlex.join(
            [
                "metalearn",
                "train",
                *(text for name, value in asked.items() for text in (f"--{name}", str(value))),
            ]
        )


@dataclass(frozen=True)
class Compared:
    """Several learners on the same test tasks: the learners as tested, their evaluations, and the
    run behind each.
    """

    learners: Mapping[str, Learner]
    evaluations: Mapping[str, Evaluation]
    runs: Mapping[str, Run]


def compare(
    experiment: Experiment,
    algorithms: Iterable[str],
    *,
    runs: Mapping[str, Run] | None = None,
    progress: bool = True,
    **options: Any,
) -> Compared:
    """Train each algorithm (or resume it, or load what is done, or take it from `runs`), then test
    all on the same tasks.
    """
    names = list(algorithms)
    tasks_at_test = (
        experiment.testing_tasks()
    )  # now, since what is wrong with them should be said before hours of training
    done = dict(runs or {})
    for by in dict.fromkeys(map(trained_by, names)):
        if by not in done:
            if progress and distributed.rank() == 0:
                print(f"{by}: training ({experiment.checkpoint(by)})", file=sys.stderr, flush=True)
            done[by] = Run(experiment, by, *experiment.train(by, progress=progress, **options))
    learners = {name: done[trained_by(name)].tested(name) for name in names}
    return Compared(
        learners,
        evaluate_together(learners, tasks_at_test, progress=progress),
        {n: done[trained_by(n)] for n in names},
    )


def restored(
    path: str | os.PathLike[str],
    build: Callable[[Experiment, str], Learner] = Experiment.learner,
    /,
    *,
    trust_model: bool = False,
    **changes: Any,
) -> Run:
    """A run from its checkpoint; `changes` are settings that may differ at test (data set, queries,
    test_steps, device, ...).

    A checkpoint is data: it never decides what is imported, downloaded or how much memory is taken.

    Args:
        path: the checkpoint.
        build: makes the learner that takes the weights, from the experiment and the name of what
            trained it.
        trust_model: whether a `package.module:callable` that the checkpoint names as its model may
            be imported and called. It may also if `model` in `changes` names the same.
        changes: settings by name.

    Raises:
        ValueError: For a file that the command line did not train, or whose settings cannot be
            used.
    """
    tensors, record = load(path)
    try:
        run = record["settings"]["run"]
        algorithm, stored = run["algorithm"], {**run["experiment"], **run.get("notes", {})}
        curve = Curve(
            tensors["curve.losses"].tolist(),
            tensors["curve.accuracies"].tolist(),
            record["validation"],
            record["seconds"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} was not trained by the command line, so how its model is built is not"
            " recorded; in a script build the learner and call metalearn.training.restore(learner,"
            " path)"
        ) from error
    _check_trust(str(stored.get("model")), changes.get("model"), path, trust_model)
    if stored.get("dataset") == "omniglot":
        # Runs that record neither are of a time when there was one split.
        stored = {"protocol": "vinyals", "test_rotations": False, **stored}
    settings = _recorded(stored, path)
    # Every value of the preset is in the record.
    values = {"preset": "quick", **settings, **changes}
    if values.get("dataset") != settings.get("dataset"):
        values["preset"] = "quick"  # the paper's may say nothing of this data set
    same_division = (
        values.get("dataset") == settings.get("dataset")
        and not {"splits", "split_ratio"} & changes.keys()
    )
    if values.get("dataset") != settings.get("dataset"):
        values |= {name: changes.get(name) for name in ("protocol", "test_rotations")}
    if values.get("dataset") == "omniglot" and values["protocol"] != settings.get(
        "protocol", values["protocol"]
    ):
        raise ValueError(
            f"{path} was trained on the characters of protocol={settings['protocol']!r}, some of"
            f" which protocol={values['protocol']!r} tests on; leave --protocol out"
        )
    if not same_division:
        values |= {name: changes.get(name) for name in ("splits", "split_ratio")}
    experiment = Experiment(**values)
    recorded = stored.get("splits_sha256")
    if same_division and recorded and experiment.division()["splits_sha256"] != recorded:
        raise ValueError(
            f"{experiment.splits} has changed since {path} was trained, so its test classes may"
            " have been trained on; restore that file, or name another one with --splits"
        )
    _check_size(experiment, tensors, path)
    learner = build(experiment, algorithm)
    restore(learner, path)
    return Run(experiment, algorithm, learner, curve)


def _recorded(stored: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Those settings of a checkpoint's record that say how its network is built and tested.

    Pretrained weights are replaced at once by those of the checkpoint, and where data lie, what is
    downloaded and on which device is the user's to say. Raises ValueError for a value of another
    type than the setting's.
    """
    settings = {
        name: value
        for name, value in stored.items()
        if name in Experiment.__dataclass_fields__ and name not in ELSEWHERE
    }
    hints = get_type_hints(Experiment)
    for name, value in settings.items():
        if not is_kind(value, hints[name]) or (isinstance(value, str) and not value.isprintable()):
            raise ValueError(
                f"{path} records {name}={value!r}, which is not a setting of a run: the file is not"
                " to be trusted"
            )
    if (settings.get("size") or 0) > LARGEST:
        raise ValueError(
            f"{path} records images of {settings['size']} pixels, more than {LARGEST}: the file is"
            " not to be trusted"
        )
    if str(settings.get("dataset", "")).startswith(("//", "\\\\")):
        raise ValueError(
            f"{path} records the data set {settings['dataset']!r} on another machine; name yours"
            " with --dataset"
        )
    return settings


def _check_trust(
    model: str, named: str | None, path: str | os.PathLike[str], trusted: bool
) -> None:
    """Refuse code that a file alone names."""
    if named is not None and named != model:
        raise ValueError(
            f"{path} was trained with the model {model!r}, not {named!r}; leave --model out, or"
            " name the same"
        )
    if runs_code(model) and named is None and not trusted:
        raise ValueError(
            f"{path} names the model {model!r}, code that would be imported and run. If you know"
            f" it, name it yourself with --model {model}; if you trust the file, add --trust-model"
            " (trust_model=True in a script)"
        )


def _check_size(
    experiment: Experiment, tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str]
) -> None:
    """Refuse a record that describes a network much larger than the weights beside it, before it is
    built.
    """
    stored = sum(tensor.numel() for tensor in tensors.values())
    described = experiment.ways
    if experiment.settings().model in OWN and experiment.channels and experiment.size:
        with torch.device("meta"):  # shapes alone
            model = experiment._network(experiment.channels, experiment.size)
        described = sum(parameter.numel() for parameter in model.parameters())
    if described > 2 * stored + SLACK:
        raise ValueError(
            f"{path} records a network of {described:,} numbers or more but holds {stored:,}: the"
            " file is not to be trusted"
        )
