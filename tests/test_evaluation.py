import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader

from metalearn import MAML
from metalearn.algorithms.base import Adapted, Learner
from metalearn.episodes import Episode, Examples, stack
from metalearn.evaluation import Evaluation, evaluate, evaluate_together, paired
from metalearn.models import MLP
from metalearn.runtime.statistics import confidence_half_width
from tests.helpers import point_task


class Tasks:
    """Three classes of points in four dimensions, a new draw for every index."""

    def __init__(self, length=20, seed=0):
        self.length, self.seed, self.drawn = length, seed, []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        self.drawn.append(index)
        return point_task(1000 * self.seed + index)


class Echo(Learner):
    """Predicts its inputs, so that a test chooses the predictions."""

    def adapt(self, support):
        return Adapted({})

    def predict(self, adapted, inputs):
        return inputs


def echo(**options):
    return Echo(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)), **options)


def answered(*right):
    """A stack of tasks with four queries each, of which so many are predicted right by `Echo`."""
    tasks = []
    for count in right:
        predicted = torch.tensor([1] * count + [0] * (4 - count))
        tasks.append(
            Episode(
                Examples(torch.zeros(2, 2), torch.arange(2)),
                Examples(F.one_hot(predicted, 2).float(), torch.ones(4).long()),
            )
        )
    return stack(tasks)


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return MAML(MLP(4, 3), lr=0.1)


def test_mean_and_interval_of_known_accuracies():
    result = evaluate(echo(), answered(4, 2, 3, 3))
    assert result.per_episode.tolist() == [1.0, 0.5, 0.75, 0.75]
    assert result.per_episode.dtype == torch.float64
    assert result.mean == 0.75
    assert result.interval == pytest.approx(
        3.1824463 * math.sqrt(0.125 / 3) / 2
    )  # Student's for 4 tasks
    assert str(result) == "75.00 % ± 32.48 (95 % interval over 4 tasks)"


def test_a_single_task_has_no_interval_and_says_so():
    result = evaluate(echo(), answered(3))
    assert math.isnan(result.interval)
    assert str(result) == "75.00 % (no interval: one task)"
    assert result.to_dict()["interval"] is None


def test_real_targets_are_scored_by_the_learners_loss():
    predicted = torch.tensor([[[1.0], [3.0]], [[0.0], [0.0]]])
    targets = torch.zeros(2, 2, 1)
    result = evaluate(
        echo(loss=F.mse_loss), Episode(Examples(predicted, targets), Examples(predicted, targets))
    )
    assert result.measure == "loss"
    assert result.per_episode.tolist() == [5.0, 0.0]
    assert str(result).startswith("loss 2.5 ± ")


def test_tasks_by_index_a_loader_and_one_stack_agree(learner):
    tasks = Tasks()
    by_index = evaluate(learner, tasks)
    for episodes in (
        DataLoader(tasks, batch_size=6),
        stack(tasks[i] for i in range(20)),
        [tasks[i] for i in range(20)],
    ):
        result = evaluate(learner, episodes)
        torch.testing.assert_close(result.per_episode, by_index.per_episode)
        assert result.fingerprints == by_index.fingerprints
    assert evaluate(learner, tasks, tasks_at_once=3).per_episode.equal(by_index.per_episode)
    assert by_index.settings["learner"]["algorithm"] == "MAML"


def test_evaluation_leaves_the_learner_as_it_was(learner):
    learner.model.frozen = nn.Dropout(0.9).eval()
    before = [parameter.clone() for parameter in learner.parameters()]
    modes = [module.training for module in learner.modules()]
    evaluate(learner, Tasks(3))
    assert [module.training for module in learner.modules()] == modes
    assert all(
        parameter.equal(old) and parameter.grad is None
        for parameter, old in zip(learner.parameters(), before, strict=True)
    )


def test_dropout_is_off_meanwhile():
    class Dropping(Echo):
        def predict(self, adapted, inputs):
            return self.model[0](inputs)

    result = evaluate(Dropping(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))), answered(4, 4, 4))
    assert result.per_episode.tolist() == [1.0, 1.0, 1.0]


def test_learners_evaluated_together_see_every_task_once(learner):
    other, tasks = MAML(MLP(4, 3), lr=0.1), Tasks(7)
    results = evaluate_together({"a": learner, "b": other}, tasks)
    assert tasks.drawn == list(range(7))
    assert results["b"].per_episode.equal(evaluate(other, tasks).per_episode)


def test_paired_comparison_is_the_paired_t_test(learner):
    a, b = (evaluate(which, Tasks()) for which in (learner, MAML(MLP(4, 3), lr=0.001)))
    result, expected = paired(a, b), stats.ttest_rel(a.per_episode.numpy(), b.per_episode.numpy())
    assert (result.t, result.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert result.mean == pytest.approx(a.mean - b.mean)
    assert result.interval == pytest.approx(confidence_half_width(a.per_episode - b.per_episode))
    assert paired(b, a).mean == -result.mean


def test_differences_without_spread_have_no_t_but_the_right_p():
    one, two = (
        Evaluation(torch.tensor(x, dtype=torch.float64)) for x in ([0.9, 0.8, 0.7], [0.8, 0.7, 0.6])
    )
    assert (paired(one, one).t, paired(one, one).p) == (0.0, 1.0)
    assert (paired(two, one).t, paired(two, one).p) == (-math.inf, 0.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Tasks(19), "20 tasks against 19"),
        (Tasks(20, seed=1), "20 of 20 tasks differ between the two, the first being task 0"),
    ],
)
def test_paired_refuses_other_tasks(learner, other, message):
    with pytest.raises(ValueError, match=message):
        paired(evaluate(learner, Tasks()), evaluate(learner, other))


def test_paired_refuses_one_task_and_two_measures():
    one = Evaluation(torch.ones(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least two tasks"):
        paired(one, one)
    with pytest.raises(ValueError, match="accuracy and the other loss"):
        paired(one, Evaluation(one.per_episode, "loss"))


def test_a_prediction_that_is_not_a_number_names_its_task():
    episodes = answered(4, 4, 4, 4, 4)
    episodes.query.inputs[3] = math.nan
    with pytest.raises(FloatingPointError, match="task 3 are NaN"):
        evaluate(echo(), episodes, tasks_at_once=2)


def test_no_tasks_and_no_chunk_are_refused(learner):
    with pytest.raises(ValueError, match="at least one task"):
        evaluate(learner, Tasks(0))
    with pytest.raises(ValueError, match="tasks_at_once=0"):
        evaluate(learner, Tasks(), tasks_at_once=0)


def test_episodes_follow_the_learners_dtype(learner):
    double = evaluate(MAML(MLP(4, 3).double(), lr=0.1), Tasks(4))
    assert len(double.per_episode) == 4
    assert double.fingerprints == evaluate(learner, Tasks(4)).fingerprints


@pytest.mark.parametrize(
    ("count", "quantile"),
    [(2, 12.7062), (3, 4.3027), (5, 2.7764), (29, 2.0484), (30, 1.96), (600, 1.96)],
)
def test_fewer_than_thirty_values_have_students_interval(count, quantile):
    values = torch.arange(count, dtype=torch.float64)
    assert confidence_half_width(values) == pytest.approx(
        quantile * float(values.std()) / math.sqrt(count), rel=1e-4
    )


@pytest.mark.parametrize("count", [3, 5, 10])
def test_the_interval_of_few_values_covers_the_mean_as_often_as_it_says(count):
    draws = torch.randn(
        4000, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    covered = sum(abs(float(row.mean())) <= confidence_half_width(row) for row in draws) / len(
        draws
    )
    assert covered == pytest.approx(0.95, abs=0.012)  # three and a half standard errors


class Sum(nn.Module):
    """A network with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 1)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.head(first + second)


def test_nan_in_named_inputs_of_a_loader_is_found_by_its_task() -> None:
    def examples() -> Examples:
        return Examples({"first": torch.rand(4, 2), "second": torch.rand(4, 2)}, torch.rand(4, 1))

    tasks = [Episode(examples(), examples()) for _ in range(7)]
    tasks[5].query.inputs["second"][0] = math.nan
    learner = MAML(Sum(), 0.01, loss=F.mse_loss)
    with pytest.raises(FloatingPointError, match="task 5 are NaN: its query inputs hold"):
        evaluate(learner, DataLoader(tasks, batch_size=3))
