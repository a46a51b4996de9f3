"""What the head and the body each contribute, on networks whose answer is known by construction."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import ANIL, BOIL, MAML, NIL, Episode, Examples
from metalearn.analysis import Estimate, feature_reuse, freezing, over_seeds
from metalearn.analysis.adaptation.converged import TOLERANCE, FixedBody
from metalearn.episodes import stack, unstack
from metalearn.evaluation import evaluate

SIZE = 8  # half of the inputs is noise, half holds the class


def tasks(count: int = 20, regression: bool = False, seed: int = 0) -> Episode:
    """Two classes at plus and minus a direction of each task, in the second half of the inputs; or
    the coordinate along it.
    """
    generator = torch.Generator().manual_seed(seed)

    def part(direction: Tensor, each: int) -> Examples:
        labels = torch.arange(2).repeat_interleave(each)
        signs = 2.0 * labels - 1
        noise = torch.randn(2 * each, SIZE, generator=generator, dtype=torch.float64)
        noise[:, SIZE // 2 :] *= 0.3
        inputs = noise
        inputs[:, SIZE // 2 :] += 2 * signs[:, None] * direction
        targets = inputs[:, SIZE // 2 :] @ direction if regression else labels
        return Examples(inputs, targets[:, None] if regression else targets)

    episodes = []
    for _ in range(count):
        direction = F.normalize(
            torch.randn(SIZE // 2, generator=generator, dtype=torch.float64), dim=0
        )
        episodes.append(Episode(part(direction, 8), part(direction, 10)))
    return stack(episodes)


class Linears(nn.Module):
    """Two linear layers and a head; `blind` layers read the noise alone until they are adapted."""

    def __init__(self, outputs: int = 2, blind: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lower = nn.Linear(SIZE, SIZE, bias=False)
        self.upper = nn.Linear(SIZE, SIZE, bias=False)
        self.head = nn.Linear(SIZE, outputs)
        self.double()
        for name in ("lower", "upper"):
            weight = torch.eye(SIZE, dtype=torch.float64)
            if name == blind:
                weight[:, SIZE // 2 :] = 0
            self.get_submodule(name).weight.data = weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(inputs)))


def test_a_body_that_cannot_move_is_reuse_by_construction():
    reuse = feature_reuse(ANIL(Linears(), lr=1.0, steps=5), tasks())
    assert reuse.verdict.answer == "feature reuse by construction"
    assert reuse.decomposition.worth == (0, 0)
    assert "rapid" not in reuse.verdict.evidence


def test_features_that_suffice_are_reused_though_the_body_may_move():
    reuse = feature_reuse(MAML(Linears(), lr={"": 0.02, "head": 1.0}, steps=5), tasks())
    assert reuse.verdict.answer == "feature reuse"
    assert not any(layer.unmoved for layer in reuse.layers)
    assert abs(reuse.decomposition.worth.mean) < 0.02


@pytest.mark.parametrize("learner", [BOIL, MAML])
def test_features_that_are_blind_until_they_adapt_are_rapid_learning(learner):
    reuse = feature_reuse(learner(Linears(blind="upper"), lr=1.0, steps=5), tasks())
    assert reuse.verdict.answer == "reuse below upper, rapid learning in upper"
    assert reuse.decomposition.worth.low > 0.3
    assert "most of that is upper" in reuse.verdict.evidence


def test_a_lower_layer_that_must_change_is_named():
    reuse = feature_reuse(BOIL(Linears(blind="lower"), lr=1.0, steps=5), tasks())
    assert reuse.verdict.answer == "rapid learning"
    assert "most of that is lower" in reuse.verdict.evidence


def test_a_head_that_needs_more_steps_than_it_has_is_not_rapid_learning():
    """The head alone cannot adapt in one small step, so freezing the body costs much, and means
    nothing.
    """
    torch.manual_seed(3)
    model = Linears()
    reuse = feature_reuse(MAML(model, lr={"upper": 0.3, "head": 0.01}, steps=1), tasks())
    steps = reuse.decomposition["body frozen, head by its own steps"]
    converged = reuse.decomposition["body frozen, head converged from zeros"]
    assert converged.score.mean > steps.score.mean + 0.1
    assert reuse.verdict.answer == "feature reuse"


def test_nothing_that_moves_does_not_adapt():
    assert feature_reuse(NIL(Linears()), tasks()).verdict.answer == "does not adapt"
    assert (
        feature_reuse(MAML(Linears(), lr=0.1, steps=0), tasks()).verdict.answer == "does not adapt"
    )


def test_a_learner_at_chance_gets_no_verdict():
    episodes = tasks()
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, episodes.query.targets.shape, generator=generator)
    guessed = Episode(episodes.support, Examples(episodes.query.inputs, labels))
    reuse = feature_reuse(MAML(Linears(), lr=0.5), guessed)
    assert reuse.verdict.answer == "no verdict"
    assert "cannot be told from chance" in reuse.verdict.evidence


@pytest.mark.parametrize(
    ("blind", "answer"), [("", "feature reuse"), ("upper", "rapid learning in upper")]
)
def test_regression_has_losses_in_place_of_accuracies(blind, answer):
    learner = MAML(
        Linears(1, blind), lr={"": 0.01, "upper": 0.05, "head": 0.05}, steps=20, loss=F.mse_loss
    )
    reuse = feature_reuse(learner, tasks(regression=True))
    assert reuse.decomposition.measure == "loss"
    assert reuse.verdict.answer.endswith(answer)
    assert "points" not in reuse.verdict.evidence


def test_the_parts_are_those_of_the_learners_they_name():
    learner, episodes = MAML(Linears(), lr=0.3, steps=2), tasks()
    parts = feature_reuse(learner, episodes).decomposition
    own, body_frozen = (
        evaluate(learner, episodes),
        evaluate(learner.frozen(["lower", "upper"]), episodes),
    )
    head_frozen = evaluate(learner.frozen(["head"]), episodes)
    for name, other in (
        ("body frozen, head by its own steps", body_frozen),
        ("head frozen, body adapted", head_frozen),
    ):
        assert parts[name].score == Estimate(other.mean, other.interval)
        assert parts[name].cost == Estimate.of(own.per_episode - other.per_episode)
    assert parts["nothing frozen"].cost == (0, 0)
    assert parts.chance == 0.5
    with pytest.raises(KeyError, match="nothing frozen"):
        parts["all frozen"]


def test_the_worth_is_after_minus_before_in_pairs():
    parts = feature_reuse(MAML(Linears(blind="upper"), lr=1.0, steps=2), tasks()).decomposition
    table = parts.converged
    assert parts.worth == table.rows[-1].cost
    assert parts.worth.mean == pytest.approx(
        table.rows[0].accuracy.mean - table.rows[-1].accuracy.mean
    )
    assert sum(row.added.mean for row in table.rows) == pytest.approx(parts.worth.mean)


def test_the_converged_head_of_a_regression_is_its_least_squares_fit():
    """A least squares problem, whose least residual is known in closed form."""
    learner = ANIL(Linears(1), lr=0.1, loss=F.mse_loss)
    task = unstack(tasks(1, regression=True))[0]
    support = task.support
    fit = FixedBody(learner, learner.network, learner.network.weights(), task).fit("zeros")
    assert fit.converged and fit.gradient < TOLERANCE
    ones = torch.cat([support.inputs, torch.ones(len(support.inputs), 1, dtype=torch.float64)], 1)
    exact = torch.linalg.lstsq(ones, support.targets).solution
    residual = F.mse_loss(ones @ exact, support.targets)
    assert fit.loss == pytest.approx(float(residual), abs=1e-3)


def test_a_head_that_does_not_converge_is_said_with_its_loss(monkeypatch):
    """A loss without a minimum: its slope never falls."""
    learner = MAML(
        Linears(), lr=0.1, loss=lambda logits, targets: -logits.gather(1, targets[:, None]).mean()
    )
    reuse = feature_reuse(learner, tasks(6))
    note = next(note for note in reuse.notes if "did not converge" in note)
    assert "6 of" not in note or "support loss" in note
    assert "support loss of -" in note
    assert reuse.decomposition.zeros.note in str(reuse)


def test_one_class_in_every_task_gets_no_verdict():
    episodes = tasks(6)
    alone = Episode(*(Examples(part.inputs, torch.zeros_like(part.targets)) for part in episodes))
    with pytest.warns(UserWarning, match="2 outputs"):
        reuse = feature_reuse(MAML(Linears(), lr=0.1), alone)
    assert reuse.verdict.answer == "no verdict"
    assert reuse.accuracies.chance == 1.0


def test_seeds_are_pooled_part_by_part():
    answers = []
    for seed in range(3):
        model = Linears(blind="upper")
        model.head.weight.data += 0.01 * seed
        answers.append(feature_reuse(MAML(model, lr=1.0, steps=5), tasks()))
    pooled = over_seeds(answers)
    means = [answer.decomposition.worth.mean for answer in answers]
    assert pooled.decomposition.worth.mean == pytest.approx(sum(means) / 3)
    assert pooled.decomposition["nothing frozen"].score == Estimate.of(
        [answer.accuracies.own.mean for answer in answers]
    )
    assert pooled.verdict.answer == answers[0].verdict.answer


def test_it_prints_first_what_decides_and_is_json():
    reuse = feature_reuse(MAML(Linears(blind="upper"), lr=1.0, steps=5), tasks())
    lines = str(reuse).splitlines()
    assert lines[0] == "MAML: reuse below upper, rapid learning in upper"
    assert lines[1].startswith("Adapting the body is worth")
    assert "The rule." in str(reuse) and "Converged:" in str(reuse)
    record = json.loads(json.dumps(reuse.to_dict(), allow_nan=False))
    assert record["decomposition"]["conditions"][0]["name"] == "nothing frozen"
    assert record["decomposition"]["zeros"]["head"] == "zeros"
    assert record["decomposition"]["worth"]["mean"] == reuse.decomposition.worth.mean


def test_the_same_seed_gives_the_same_answer():
    first, second = (feature_reuse(MAML(Linears(), lr=0.3), tasks()).to_dict() for _ in range(2))
    assert first == second


def test_differences_are_printed_as_gains_and_losses():
    parts = feature_reuse(MAML(Linears(blind="upper"), lr=1.0, steps=5), tasks(12)).decomposition
    printed = str(parts) + str(parts.converged)
    assert (
        "against nothing frozen (points, paired)" in printed
        and "loses " in printed
        and "cost" not in printed
    )
    losses = replace(parts, measure="loss")
    assert "adds 0." in str(losses) and "points" not in str(losses)


def test_the_papers_freezing_table_stays_and_says_whose_it_is():
    table = freezing(MAML(Linears(), lr=0.3), tasks())
    assert "Raghu et al. 2020" in str(table)
    assert [row.layers for row in table.rows] == [(), ("lower",), ("lower", "upper")]


def test_layers_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="uper"):
        feature_reuse(MAML(Linears(), lr=0.3), tasks(2), layers=["uper"])


def test_named_layers_that_leave_out_part_of_the_body_still_freeze_all_of_it():
    learner, episodes = MAML(Linears(blind="upper"), lr=1.0, steps=5), tasks()
    whole, part = (
        feature_reuse(learner, episodes),
        feature_reuse(learner, episodes, layers=["lower", "head"]),
    )
    assert part.decomposition.worth == whole.decomposition.worth
    assert [layer.layer for layer in part.layers] == ["lower", "head"]


def test_tasks_of_unequal_ways_are_taken_one_by_one_and_said():
    two = unstack(tasks(6))
    third = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    three = []
    for task in two[:2]:
        parts = [
            Examples(
                torch.cat([part.inputs, third]), torch.cat([part.targets, torch.full((4,), 2)])
            )
            for part in task
        ]
        three.append(Episode(*parts))
    with pytest.warns(UserWarning, match="3 outputs"):
        reuse = feature_reuse(MAML(Linears(3), lr=0.5, steps=3), [*two, *three])
    assert reuse.accuracies.chance == pytest.approx((6 / 2 + 2 / 3) / 8)
    assert "differ in size, from 2 to 3 ways" in reuse.notes[0]
    assert len(reuse.evaluation.per_episode) == 8


@pytest.mark.parametrize("execution", ["loop", "threads"])
def test_support_sets_of_one_class_among_others_are_counted(execution: str) -> None:
    whole = unstack(tasks(7))
    alone = []
    for task in whole[:3]:
        alone.append(
            Episode(
                *(
                    Examples(
                        part.inputs[: len(part.inputs) // 2], part.targets[: len(part.targets) // 2]
                    )
                    for part in task
                )
            )
        )
    with pytest.warns(UserWarning, match="2 outputs"):
        reuse = feature_reuse(
            MAML(Linears(), lr=0.5, steps=3, execution=execution), [*whole, *alone]
        )
    assert not any("2 outputs" in note for note in reuse.notes), (
        "a note of CCA took what a thread warned of"
    )
    assert any("3 of 10 tasks holds one class" in note for note in reuse.notes)
    assert reuse.accuracies.chance == pytest.approx((7 / 2 + 3) / 10)


class Pooled(nn.Module):
    """A model that goes on after its head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(SIZE, SIZE)
        self.head = nn.Linear(SIZE, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs)).unflatten(-1, (2, 2)).mean(-1)


class LowRank(nn.Module):
    """A frozen linear layer with a low-rank update, which a head of zeros cannot leave."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(SIZE, 2).requires_grad_(False)
        self.down = nn.Linear(SIZE, 2, bias=False)
        self.up = nn.Linear(2, 2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.base(features) + self.up(self.down(features))


class Maps(nn.Module):
    """A convolution of size 1 for a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(SIZE, SIZE, 1)
        self.head = nn.Conv2d(SIZE, 2, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs[:, :, None, None]).relu()).flatten(1)


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (Pooled, "head"),
        (Maps, None),
        (lambda: nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), LowRank()), "2"),
    ],
)
def test_any_head_can_be_run_to_convergence(model, head):
    learner = MAML(model().double(), lr=0.5, steps=3, head=head)
    for task in unstack(tasks(3)):
        body = FixedBody(learner, learner.network, learner.network.weights(), task)
        for start in ("zeros", "initial"):
            fit = body.fit(start)
            assert fit.converged and fit.loss < 0.1
            same = learner.network(fit.weights, task.query.inputs)
            assert torch.allclose(body.query_logits(fit.weights), same)


def test_a_head_that_zeros_break_is_run_from_its_initialisation():
    """The direction of a weight-normalised head of zeros is not a number."""
    torch.manual_seed(0)
    head = nn.utils.parametrizations.weight_norm(nn.Linear(SIZE, 2))
    learner = MAML(nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), head).double(), lr=0.5, steps=3)
    reuse = feature_reuse(learner, tasks(6))
    assert reuse.decomposition.converged.head == "initial"
    assert any("support loss is not finite" in note for note in reuse.notes)


@pytest.mark.parametrize(
    ("learner", "answer"), [(ANIL, "feature reuse by construction"), (MAML, "feature reuse")]
)
def test_what_cannot_move_is_told_by_its_rates_whatever_layers_are_looked_at(learner, answer):
    """The rates of MAML's body are so small that nothing is worth a point; it could move all the
    same.
    """
    lr = 1.0 if learner is ANIL else {"": 1e-12, "head": 1.0}
    for layers in (None, ["head"]):
        reuse = feature_reuse(learner(Linears(), lr=lr, steps=5), tasks(6), layers=layers)
        assert reuse.verdict.answer == answer
