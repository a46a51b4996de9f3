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
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.images import PROTOCOLS
from metalearn.experiments.learners import trained_by
from metalearn.experiments.networks import OWN
from metalearn.experiments.presets import preset
from metalearn.models.registry import runs_code
from metalearn.runtime import distributed
from metalearn.runtime.checks import is_kind
from metalearn.runtime.files import Record
from metalearn.training.checkpoints import load, restore
from metalearn.training.loop import Curve

# Settings that a checkpoint's record does not decide: they are of the machine and the user.
ELSEWHERE = ("root", "download", "weights", "execution", "device", "runs")
# Settings that a command names if they are not the defaults.
NAMED = ("splits", "split_ratio", "seed", "precision", "norm", "weights", "normalize")
LARGEST = 4096  # pixels of an image that a record may ask for
SLACK = 10**7  # numbers that a network may have beyond twice those of its checkpoint


@dataclass(frozen=True)
class Run:
    """One trained learner.

    Attributes:
        experiment: the problem and its settings.
        algorithm: that trained it.
        learner: as trained.
        curve: how training went.
    """

    experiment: Experiment
    algorithm: str
    learner: Learner
    curve: Curve

    def tested(self, algorithm: str | None = None) -> Learner:
        """The learner as it is tested.

        Args:
            algorithm: another algorithm, around the model that this run trained.
        """
        name = algorithm or self.algorithm
        learner = self.learner
        if name != self.algorithm:
            learner = self.experiment.learner(name, learner.model)
        return self.experiment.tested(name, learner)

    def command(self) -> str:
        """The command that trains it."""
        experiment = self.experiment
        base = preset(
            experiment.preset,
            experiment.dataset,
            experiment.ways,
            experiment.shots,
            self.algorithm,
        )
        # The preset and the settings that differ from it, then those that have no preset.
        options: dict[str, Any] = {
            "algorithm": self.algorithm,
            "dataset": experiment.dataset,
            "ways": experiment.ways,
            "shots": experiment.shots,
            "preset": experiment.preset,
            "steps": len(self.curve.losses),
        }
        for name in base.__dataclass_fields__:
            value = getattr(experiment, name, None)
            usual = getattr(base, name)
            if name == "train_ways" and usual is None:
                usual = experiment.ways
            if name not in ("steps", "test_steps") and value not in (None, usual):
                options[name] = value
        for name in NAMED:
            value = getattr(experiment, name)
            if value != Experiment.__dataclass_fields__[name].default:
                options[name] = value
        if experiment.precision == "tf32":
            options["device"] = "cuda"
        words = ["metalearn", "train"]
        for name, value in options.items():
            words += [f"--{name}", str(value)]
        return shlex.join(words)


@dataclass(frozen=True)
class Compared:
    """Several learners on the same test tasks.

    Attributes:
        learners: as tested, by name.
        evaluations: of each.
        runs: that trained each.
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
    """Train each algorithm, then test all on the same tasks.

    Args:
        experiment: the problem.
        algorithms: their names. A run that was interrupted is resumed, and one that is done is
            loaded.
        runs: trained runs by algorithm, which are taken instead.
        progress: show progress.
        options: of `Experiment.train`.
    """
    names = list(algorithms)
    # Now, since errors in the test tasks should be found before hours of training.
    tasks_at_test = experiment.testing_tasks()
    trained = dict(runs or {})
    for trainer in dict.fromkeys(map(trained_by, names)):
        if trainer not in trained:
            trained[trainer] = train(experiment, trainer, progress=progress, **options)
    # Several algorithms may be tested on one run: NIL on the body that ANIL trained.
    by_name = {name: trained[trained_by(name)] for name in names}
    learners = {name: run.tested(name) for name, run in by_name.items()}
    evaluations = evaluate_together(learners, tasks_at_test, progress=progress)
    return Compared(learners, evaluations, by_name)


def train(experiment: Experiment, algorithm: str, *, progress: bool = True, **options: Any) -> Run:
    """Train one algorithm, or resume its run, or load it if it is done."""
    if progress and algorithm != "random" and distributed.rank() == 0:
        print(
            f"{algorithm}, seed {experiment.seed}: training ({experiment.checkpoint(algorithm)})",
            file=sys.stderr,
            flush=True,
        )
    learner, curve = experiment.train(algorithm, progress=progress, **options)
    return Run(experiment, algorithm, learner, curve)


def restored(
    path: str | os.PathLike[str],
    build: Callable[[Experiment, str], Learner] = Experiment.learner,
    /,
    *,
    trust_model: bool = False,
    **changes: Any,
) -> Run:
    """A run from its checkpoint.

    A checkpoint is data: it never decides what is imported, downloaded or how much memory is taken.

    Args:
        path: the checkpoint.
        build: makes the learner that takes the weights, from the experiment and the name of the
            algorithm that trained it.
        trust_model: whether a `package.module:callable` that the checkpoint names as its model may
            be imported and called. It also may if `model` in `changes` names the same.
        changes: settings that may differ at test (data set, queries, test_steps, device, ...).

    Raises:
        ValueError: the command line did not train the file, or its settings cannot be used.
    """
    tensors, record = load(path)
    try:
        run = record["settings"]["run"]
        algorithm = run["algorithm"]
        stored = {**run["experiment"], **run.get("notes", {})}
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
    # Before anything is built from the record.
    _check_trust(str(stored.get("model")), changes.get("model"), path, trusted=trust_model)
    experiment = _experiment(stored, changes, path)
    _check_size(experiment, tensors, path)
    learner = build(experiment, algorithm)
    restore(learner, path)
    return Run(experiment, algorithm, learner, curve)


def _experiment(
    stored: Record, changes: Mapping[str, Any], path: str | os.PathLike[str]
) -> Experiment:
    """The experiment of a checkpoint's record, with the changes."""
    if stored.get("dataset") == "omniglot":
        # Runs that record neither are of a time when there was one split.
        stored = {"protocol": "vinyals", "test_rotations": False, **stored}
    settings = _recorded(stored, path)
    # Every value of the preset is in the record, but for one that earlier runs did not have.
    values = {"preset": "quick", "train_ways": settings.get("ways"), **settings, **changes}
    same_dataset = values.get("dataset") == settings.get("dataset")
    if not same_dataset:
        values["preset"] = "quick"  # the paper's may have no settings for this data set
        values |= {name: changes.get(name) for name in ("protocol", "test_rotations")}
    trained_protocol = settings.get("protocol", values.get("protocol"))
    has_protocols = same_dataset and values.get("dataset") in PROTOCOLS
    if has_protocols and values["protocol"] != trained_protocol:
        raise ValueError(
            f"{path} was trained on the classes of protocol={trained_protocol!r}, some of"
            f" which protocol={values['protocol']!r} tests on; leave --protocol out"
        )
    # A folder's classes are divided as in training, unless the call divides them otherwise.
    same_division = same_dataset and not {"splits", "split_ratio"} & changes.keys()
    if not same_division:
        values |= {name: changes.get(name) for name in ("splits", "split_ratio")}
    experiment = Experiment(**values)
    digest = stored.get("splits_sha256")
    if same_division and digest and experiment.division()["splits_sha256"] != digest:
        raise ValueError(
            f"{experiment.splits} has changed since {path} was trained, so its test classes may"
            " have been trained on; restore that file, or name another one with --splits"
        )
    return experiment


def _recorded(stored: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a checkpoint's record that decide how its network is built and tested.

    Pretrained weights are replaced at once by those of the checkpoint. The user decides where data
    are, what is downloaded, and on which device to run. Raises ValueError for a value of another
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
    model: str, named: str | None, path: str | os.PathLike[str], *, trusted: bool
) -> None:
    """Raise ValueError for code that only the file names."""
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
    """Raise ValueError for a network much larger than the weights beside it, before it is built."""
    stored = sum(tensor.numel() for tensor in tensors.values())
    described = experiment.ways
    if experiment.settings().model in OWN and experiment.channels and experiment.size:
        with torch.device("meta"):  # shapes without memory
            model = experiment.network(experiment.channels, experiment.size)
        described = sum(parameter.numel() for parameter in model.parameters())
    if described > 2 * stored + SLACK:
        raise ValueError(
            f"{path} records a network of {described:,} numbers or more but holds {stored:,}: the"
            " file is not to be trusted"
        )
