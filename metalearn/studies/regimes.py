"""Which training gives the features: MAML, ANIL, one head for all classes, for all tasks, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from metalearn.algorithms import NIL
from metalearn.evaluation import Evaluation, Tasks, evaluate_together
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.regimes import REGIMES, trained
from metalearn.experiments.runs import Run
from metalearn.runtime.statistics import MeanStd
from metalearn.runtime.tables import Tabular, aligned, plain

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Regimes(Tabular):
    """Accuracy under NIL by what trained the body: over seeds, and each seed's evaluation; prints
    as table 5 of Raghu et al. 2020.
    """

    accuracy: Mapping[str, MeanStd]
    evaluations: Mapping[str, tuple[Evaluation, ...]]
    rule: str

    def __str__(self) -> str:
        rows = [
            (
                name,
                self.accuracy[name].text(100, 2),
                "; ".join(f"{100 * e.mean:.2f} ± {100 * e.interval:.2f}" for e in found),
            )
            for name, found in self.evaluations.items()
        ]
        table = aligned(
            ("training", "accuracy %, ± std over seeds", "each seed, ± 95 % over tasks"), rows
        )
        return f"{table}\n(NIL, rule {self.rule}, on the same test tasks)"

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of numbers and names."""
        return [{"training": name, "accuracy": spread} for name, spread in self.accuracy.items()]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; NaN is None."""
        found = {name: [one.to_dict() for one in runs] for name, runs in self.evaluations.items()}
        return plain({"accuracy": self.accuracy, "rule": self.rule, "evaluations": found})


def under_nil(
    models: Mapping[str, nn.Module],
    episodes: Tasks,
    *,
    rule: str = "softmax",
    progress: bool = False,
) -> dict[str, Evaluation]:
    """Accuracy of each network's features alone, on the same tasks: the head is not used, so that
    it may have any number of outputs.

    Example:
        >>> from metalearn.models import Conv4
        >>> from metalearn.tasks import FewShot, glyphs
        >>> tasks = FewShot(glyphs("test"), ways=5, shots=1, queries=5, tasks=4)
        >>> sorted(under_nil({"random": Conv4(5, hidden=4), "other head": Conv4(60, hidden=4)}, tasks))
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
    """Which training gives the features? Train each regime from each seed, then test every body
    under NIL -> `Regimes`.

    Table 5 of Raghu et al. 2020 (arXiv:1909.09157): MAML and ANIL against training without an inner
    loop ("multiclass", "multitask"), no training ("random") and training under NIL's own rule
    ("nil-train"). All see as many training images a step.

    Args:
        experiment: the few-shot problem, the network, and how long each is trained.
        regimes: which; any algorithm that trains will do too.
        seeds: of the initial weights and of what is drawn in training.
        runs: (regime, seed) -> a run that is taken instead of training it.
        rule: NIL's.
        progress: show progress.
    """
    given, tasks = dict(runs or {}), experiment.testing_tasks()
    found: dict[str, list[Evaluation]] = {name: [] for name in regimes}
    for seed in seeds:
        own = replace(experiment, seed=seed)
        done = {
            name: given.get((name, seed)) or trained(own, name, progress=progress)
            for name in regimes
        }
        for name, evaluation in under_nil(
            {n: run.learner.model for n, run in done.items()}, tasks, rule=rule, progress=progress
        ).items():
            found[name].append(evaluation)
    return Regimes(
        {n: MeanStd.of([e.mean for e in found[n]]) for n in regimes},
        {n: tuple(found[n]) for n in regimes},
        rule,
    )
