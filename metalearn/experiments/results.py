"""A comparison of learners as a table, and the protocol behind its numbers."""

from __future__ import annotations

from operator import itemgetter

from metalearn.evaluation import Evaluation, paired
from metalearn.runtime.progress import duration
from metalearn.runtime.tables import Table

from .experiment import Experiment
from .learners import WITHOUT_INNER_LOOP
from .runs import Compared


def problem(experiment: Experiment) -> str:
    """The few-shot problem in words."""
    return f"{experiment.dataset}, {experiment.ways}-way {experiment.shots}-shot"


def protocol(experiment: Experiment) -> str:
    """What accuracies depend on beside the learner: the split, the queries and the norm."""
    split = ""
    if experiment.dataset == "omniglot":
        chosen = experiment.settings()
        turned = ", turned characters too" if chosen.test_rotations else ""
        split = f"characters split by protocol {chosen.protocol}{turned}; "
    if experiment.dataset == "cub":
        split = f"classes split by protocol {experiment.settings().protocol}; "
    queries = experiment.test_queries()
    word = "query" if queries == 1 else "queries"
    return f"{split}{queries} {word} a class; norm: {experiment.norm} statistics"


def plan(experiment: Experiment, algorithm: str) -> str:
    """How an algorithm is going to be trained, in a line."""
    chosen = experiment.settings(algorithm)
    inner = ""
    if algorithm not in WITHOUT_INNER_LOOP:
        inner = (
            f", inner rate {chosen.lr:g}, inner steps {chosen.inner_steps} (at test"
            f" {chosen.test_steps})"
        )
    queries = chosen.train_queries or experiment.shots
    ways = chosen.train_ways or experiment.ways
    return (
        f"{algorithm}: {chosen.model}{inner}; {chosen.steps:,} outer steps of {chosen.meta_batch}"
        f" tasks of {ways} ways with {queries} queries a class; seed {experiment.seed}"
    )


def title(name: str) -> str:
    """A learner's name as the page has it."""
    return name.upper() if len(name) <= 4 else name


def accuracy(evaluation: Evaluation) -> str:
    """An accuracy with its interval in words."""
    tasks = len(evaluation.per_episode)
    # A single task has no spread, and so no interval.
    interval = f" ± {100 * evaluation.interval:.2f}" if tasks > 1 else ""
    counted = f"{tasks} task{'s' * (tasks != 1)}{', exactly chance' * evaluation.at_chance}"
    return f"{100 * evaluation.mean:.2f}{interval} % ({counted})"


def accuracy_rows(compared: Compared) -> list[dict[str, str]]:
    """A row for each learner: its accuracy, the difference from the first, and its training."""
    first, reference = next(iter(compared.evaluations.items()))
    rows = []
    for name, evaluation in compared.evaluations.items():
        row = {"learner": name, "accuracy": accuracy(evaluation)}
        # The same tasks for all learners, so differences are taken task by task.
        difference = ""
        if name != first and len(evaluation.per_episode) > 1:
            test = paired(evaluation, reference)
            difference = f"{100 * test.mean:+.2f} ± {100 * test.interval:.2f}"
        row[f"minus {title(first)}, paired"] = difference
        row["training"] = duration(compared.runs[name].curve.seconds)
        rows.append(row)
    return rows


def accuracy_table(rows: list[dict[str, str]], experiment: Experiment) -> Table:
    """The rows as a table, without columns that say nothing."""
    # A single learner has no difference from another, for example.
    columns = [name for name in rows[0] if set(map(itemgetter(name), rows)) != {""}]
    heading = (
        f"{problem(experiment)}, {experiment.test_tasks} test tasks of unseen classes (± is 95 %"
        f" over tasks)\n{protocol(experiment)}"
    )
    cells = []
    for row in rows:
        cells.append([row[name] for name in columns])
    return Table(columns, cells, title=heading)
