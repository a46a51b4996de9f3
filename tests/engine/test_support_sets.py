"""Support sets and inputs that learners cannot learn from: absent classes, targets of another kind,
empty and misshapen tensors.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalearn as ml
from metalearn.episodes import Episode, Examples, stack, unstack
from metalearn.models import MLP, Conv4
from metalearn.tasks import Sinusoid
from tests.helpers import FAMILY, WAYS_TO_RUN, made_up_tasks, smooth_network

NEED_EVERY_CLASS = [
    name for name in FAMILY if name.startswith(("NIL", "Proto", "R2D2", "Baseline"))
]
CROSS_ENTROPIES = [
    F.cross_entropy,
    nn.CrossEntropyLoss(),
    functools.partial(F.cross_entropy, label_smoothing=0.1),
]


def without_class(label: int, task: int = 3, tasks: int = 5) -> Episode:
    """Tasks of three classes, one of which lacks a class in its support set."""
    episodes = made_up_tasks(tasks=tasks)
    labels = episodes.support.targets[task]
    labels[labels == label] = (label + 1) % 3
    return episodes


def relabelled(episodes: Episode, change: Callable[[Tensor], Tensor]) -> Episode:
    return Episode(*(Examples(part.inputs, change(part.targets)) for part in episodes))


# sinusoids need a loss of their own, which is easily forgotten
@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_real_targets_under_cross_entropy_are_refused(
    loss: Callable[..., Tensor], way: str
) -> None:
    tasks = [Sinusoid(shots=5, queries=5, tasks=4)[i] for i in range(2)]
    learner = ml.MAML(MLP(1, 1), lr=0.01, loss=loss, execution=way)
    for run in (
        lambda: learner(stack(tasks)),
        lambda: ml.meta_backward(learner, stack(tasks)),
        lambda: ml.meta_train(learner, tasks, steps=1, progress=False),
        lambda: ml.evaluate(learner, tasks),
        lambda: ml.evaluate(learner.with_steps(0), tasks),
    ):
        with pytest.raises(ValueError, match=r"not torch\.float32; pass loss=F\.mse_loss"):
            run()


@pytest.mark.parametrize("name", FAMILY)
def test_real_targets_of_any_shape_under_cross_entropy_are_refused(name: str) -> None:
    for change in (
        Tensor.double,
        lambda t: F.one_hot(t, 3).double(),
        lambda t: t.double().unsqueeze(-1),
    ):
        with pytest.raises(ValueError, match="must be integers"):
            FAMILY[name](smooth_network())(relabelled(made_up_tasks(), change))


def test_cross_entropy_of_one_output_is_refused() -> None:
    with pytest.raises(ValueError, match=r"single output is 0 .*F\.mse_loss"):
        ml.MAML(MLP(4, 1).double(), 0.1)(relabelled(made_up_tasks(shape=(4,)), torch.zeros_like))
    flat = nn.Sequential(MLP(4, 1), nn.Flatten(0)).double()
    with pytest.raises(ValueError, match="needs logits"):
        ml.MAML(flat, 0.1, head="0.head")(made_up_tasks(shape=(4,)))


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("name", NEED_EVERY_CLASS)
def test_the_task_and_the_absent_class_are_named(name: str, way: str) -> None:
    learner = FAMILY[name](smooth_network(), execution=way)
    for label in range(3):
        episodes = without_class(label)
        with pytest.raises(
            ValueError, match=f"support set of task 3 has no example of class {label}"
        ):
            learner(episodes)
        with pytest.raises(
            ValueError, match=f"support set of task 3 has no example of class {label}"
        ):
            ml.meta_backward(learner, episodes)
        with pytest.raises(
            ValueError, match=f"support set of task 3 has no example of class {label}"
        ):
            ml.evaluate(learner, unstack(episodes), tasks_at_once=2)
        if label < 2:  # without its last class a single task is one of two classes
            task = unstack(episodes)[3]
            with pytest.raises(ValueError, match=f"support set has no example of class {label}"):
                learner.predict(learner.adapt(task.support), task.query.inputs)


@pytest.mark.parametrize("way", WAYS_TO_RUN)
def test_a_class_without_support_is_named_to_learners_with_a_head_too(way: str) -> None:
    learner, episodes = ml.MAML(smooth_network(), 0.1, execution=way), without_class(0)
    with pytest.warns(UserWarning, match="no example of class 0, and labels count from 0"):
        learner(episodes)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        assert learner(episodes).isfinite().all()


@pytest.mark.parametrize("name", FAMILY)
def test_labels_that_do_not_count_from_zero_are_told_how_to(name: str) -> None:
    two = relabelled(made_up_tasks(ways=2), lambda t: t + 1)
    with pytest.raises(ValueError, match=r"no example of class 0.*unique\(return_inverse=True\)"):
        FAMILY[name](smooth_network(ways=2))(two)
    huge = relabelled(made_up_tasks(ways=2), lambda t: t * 10**12)
    with pytest.raises(ValueError, match=r"no example of class 1|unique\(return_inverse=True\)"):
        FAMILY[name](smooth_network(ways=2))(huge)
    with pytest.raises(ValueError, match="the labels run from -1"):
        FAMILY[name](smooth_network())(relabelled(made_up_tasks(), lambda t: t - 1))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int8])
def test_integer_labels_of_any_width_give_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    learner, episodes = FAMILY[name](smooth_network()), made_up_tasks()
    expected = ml.meta_backward(learner, episodes)
    narrow = ml.meta_backward(learner, relabelled(episodes, lambda t: t.to(dtype)))
    assert torch.equal(expected.losses, narrow.losses)
    assert torch.equal(expected.logits, narrow.logits)


@pytest.mark.parametrize("name", FAMILY)
def test_a_query_label_beyond_the_classes_is_named(name: str) -> None:
    episodes = made_up_tasks()
    episodes.query.targets[0, 0] = 7
    with pytest.raises(ValueError, match="labels run from 0 to 7, but there are 3 ways"):
        ml.meta_backward(FAMILY[name](smooth_network()), episodes)


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("name", ["MAML", "ANIL", "BOIL", "NIL sum", "ProtoNet"])
def test_nothing_to_learn_from_is_named(name: str, way: str) -> None:
    learner, episodes = FAMILY[name](smooth_network(), execution=way), made_up_tasks()

    def cut(
        tasks: int | None = None, support: int | None = None, query: int | None = None
    ) -> Episode:
        counts = {"support": support, "query": query}
        return Episode(
            *(
                Examples(*(t[:tasks, : counts[side]] for t in part))
                for side, part in episodes._asdict().items()
            )
        )

    for run in (learner, functools.partial(ml.meta_backward, learner)):
        with pytest.raises(ValueError, match="no tasks"):
            run(cut(tasks=0))
        with pytest.raises(ValueError, match="support set is empty"):
            run(cut(support=0))
    with pytest.raises(ValueError, match=r"no queries|no labels"):
        ml.meta_backward(learner, cut(query=0))
    with pytest.raises(ValueError, match="no queries"):
        ml.evaluate(learner, unstack(cut(query=0)))
    support = Examples(episodes.support.inputs, episodes.support.targets[:, :4])
    with pytest.raises(ValueError, match="6 inputs but 4 targets"):
        learner(Episode(support, episodes.query))


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("name", ["MAML", "ANIL", "BOIL", "ProtoNet"])
def test_inputs_that_the_model_cannot_take_are_said_in_words(name: str, way: str) -> None:
    torch.manual_seed(0)
    convolutions = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ).double()
    for shape, layer in (
        ((3, 5, 5), "layer '0'"),
        ((1, 6, 6), "layer '3'"),
        ((1, 2, 2), "layer '0'"),
    ):
        learner, episodes = FAMILY[name](convolutions, execution=way), made_up_tasks(shape=shape)
        sizes = re.escape(" x ".join(map(str, (6, *shape)))) if layer == "layer '0'" else "6 x 64"
        with pytest.raises(
            ValueError, match=f"{layer}.*{sizes}.*bring the inputs to the channels and size"
        ):
            learner(episodes)
    for dtype in (torch.uint8, torch.bool, torch.int64):
        learner = FAMILY[name](convolutions, execution=way)
        episodes = Episode(
            *(Examples(part.inputs.mul(9).to(dtype), part.targets) for part in made_up_tasks())
        )
        with pytest.raises(ValueError, match=r"give real numbers, such as inputs\.float\(\) / 255"):
            learner(episodes)


def test_conv4_says_what_it_takes() -> None:
    for shape, message in (
        ((2, 3, 28, 28), r"3 channels.*Conv4\(channels=3\)"),
        ((2, 1, 84, 84), r"84 x 84.*Conv4\(size=84\)"),
        ((1, 28, 28), "examples, channels, height, width"),
    ):
        with pytest.raises(ValueError, match=message):
            Conv4(5)(torch.rand(shape))
        with pytest.raises(ValueError, match=message):
            ml.MAML(Conv4(3), 0.1).adapt(Examples(torch.rand(shape), torch.arange(shape[0])))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cells, self.head = kind(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.cells(inputs)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("name", ["MAML", "ANIL", "ProtoNet"])
def test_recurrent_networks_run_in_the_loop_and_say_so(name: str, kind: type[nn.RNNBase]) -> None:
    model, episodes = Recurrent(kind).double(), made_up_tasks(shape=(5, 4))
    with pytest.raises(RuntimeError, match=r"cannot be vectorized over tasks.*execution='loop'"):
        FAMILY[name](model, execution="vectorized")(episodes)
    automatic, loop = (FAMILY[name](model, execution=way)(episodes) for way in ("auto", "loop"))
    torch.testing.assert_close(automatic, loop, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("way", ["loop", "threads"])
def test_a_missing_second_derivative_says_what_to_do(way: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Hardsigmoid(), nn.Linear(8, 3)).double()
    episodes = made_up_tasks(shape=(4,))
    with pytest.raises(
        RuntimeError, match=r"no second derivative of hardsigmoid.*first_order=True"
    ):
        ml.meta_backward(ml.MAML(model, 0.1, execution=way), episodes)
    learner = ml.MAML(model, 0.1, first_order=True, execution=way)
    assert ml.meta_backward(learner, episodes).losses.isfinite().all()


@pytest.mark.parametrize("way", ["loop", "threads", "vectorized"])
def test_a_missing_second_derivative_is_named_in_ones_own_backward_pass(way: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Hardsigmoid(), nn.Linear(8, 3)).double()
    episodes = made_up_tasks(shape=(4,))
    learner = ml.MAML(model, 0.1, steps=2, execution=way)
    for _ in range(2):
        loss = learner(episodes).square().sum()
        with pytest.raises(
            RuntimeError, match=r"no second derivative of hardsigmoid.*first_order=True"
        ):
            loss.backward()
    learner.first_order = True
    learner(episodes).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_nan_is_traced_to_its_cause() -> None:
    model, episodes = smooth_network(), made_up_tasks()
    tasks = unstack(episodes)
    episodes.query.inputs[1, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="task 1 are NaN: its query inputs"):
        ml.evaluate(ml.ProtoNet(smooth_network("none")), tasks)
    with pytest.raises(FloatingPointError, match="task 0 are NaN: a lower inner rate"):
        ml.evaluate(ml.MAML(model, 1e200, 5), [unstack(made_up_tasks())[0]])
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"the weights model\.0\.bias"):
        ml.evaluate(ml.ProtoNet(model), unstack(made_up_tasks()))
