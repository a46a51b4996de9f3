"""Which training gives the features: MAML, ANIL, training without an inner loop, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from metalearn.algorithms import NIL
from metalearn.evaluation import Evaluation, Tasks, evaluate_together
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import REGIMES, trained
from metalearn.experiments.runs import Run
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Tabular, aligned, plain


@dataclass(frozen=True)
class Regimes(Tabular):
    """Accuracy under NIL for each training regime; prints as table 5 of Raghu et al. 2020.

    Args:
        accuracy: mean and standard deviation over seeds, by regime.
        evaluations: that of each seed, by regime.
        rule: of NIL.
    """

    accuracy: Mapping[str, MeanStd]
    evaluations: Mapping[str, tuple[Evaluation, ...]]
    rule: str

    def __str__(self) -> str:
        # One row a regime, in percent.
        header = ("training", "accuracy %, ± std over seeds", "each seed, ± 95 % over tasks")
        rows = []
        for name, evaluations in self.evaluations.items():
            seeds = [f"{100 * e.mean:.2f} ± {100 * e.interval:.2f}" for e in evaluations]
            rows.append((name, self.accuracy[name].text(100, 2), "; ".join(seeds)))
        table = aligned(header, rows)
        return f"{table}\n(NIL, rule {self.rule}, on the same test tasks)"

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return [{"training": name, "accuracy": spread} for name, spread in self.accuracy.items()]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        records = {}
        for name, evaluations in self.evaluations.items():
            records[name] = [evaluation.to_dict() for evaluation in evaluations]
        return plain({"accuracy": self.accuracy, "rule": self.rule, "evaluations": records})


def under_nil(
    models: Mapping[str, nn.Module],
    episodes: Tasks,
    *,
    rule: str = "softmax",
    progress: bool = False,
) -> dict[str, Evaluation]:
    """Accuracy of each network's features alone, on the same tasks.

    The head is not used, so it may have any number of outputs.

    Args:
        models: networks by name.
        episodes: the tasks.
        rule: of NIL.
        progress: whether to show progress.

    Example:
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import FewShot, glyphs
        >>> tasks = FewShot(glyphs("test"), ways=5, shots=1, queries=5, tasks=4)
        >>> networks = {"random": Conv4(5, hidden=4), "other head": Conv4(60, hidden=4)}
        >>> sorted(under_nil(networks, tasks))
        ['other head', 'random']
    """
    return evaluate_together(
        {name: NIL(model, rule) for name, model in models.items()}, episodes, progress=progress
    )


def training_regimes(
    experiment: Experiment,
    regimes: Sequence[str] = REGIMES,
    seeds: Sequence[int] = (0,),
    *,
    runs: Mapping[tuple[str, int], Run] | None = None,
    rule: str = "softmax",
    progress: bool = True,
) -> Regimes:
    """Train each regime from each seed, then test every body under NIL.

    Table 5 of Raghu et al. 2020 (arXiv:1909.09157): MAML and ANIL against training without an inner
    loop ("multiclass", "multitask"), no training ("random") and training under NIL's own rule
    ("nil-train"). All see the same number of training images a step.

    Args:
        experiment: the few-shot problem, the network, and how long each is trained.
        regimes: their names; that of any algorithm that trains is accepted too.
        seeds: of the initial weights and of the random numbers in training.
        runs: trained runs by (regime, seed), to use instead of training them.
        rule: of NIL.
        progress: whether to show progress.

    Returns:
        The accuracy of each regime.
    """
    # The test tasks are the same for all seeds and regimes.
    runs = runs or {}
    tasks = experiment.testing_tasks()
    evaluations: dict[str, list[Evaluation]] = {name: [] for name in regimes}
    for seed in seeds:
        of_seed = replace(experiment, seed=seed)
        bodies: dict[str, nn.Module] = {}
        for name in regimes:
            run = runs.get((name, seed)) or trained(of_seed, name, progress=progress)
            # NIL uses no head, so bodies with heads of different widths can be compared.
            bodies[name] = run.learner.model
        for name, evaluation in under_nil(bodies, tasks, rule=rule, progress=progress).items():
            evaluations[name].append(evaluation)
    accuracy = {}
    for name in regimes:
        accuracy[name] = MeanStd.of([evaluation.mean for evaluation in evaluations[name]])
    return Regimes(accuracy, {name: tuple(evaluations[name]) for name in regimes}, rule)
