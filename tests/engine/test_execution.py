"""How many tasks run: what is chosen, what is refused, and that memory does not grow with the
meta-batch.
"""

from __future__ import annotations

import gc
import shutil
import warnings
import weakref

import pytest
import torch
import torchvision
from torch import nn

import metalearn as ml
from metalearn.engine.execution import choose_execution
from metalearn.engine.threads import in_threads
from metalearn.episodes import stack, unstack
from metalearn.models import MLP, Conv4
from metalearn.network.functional import Functional
from tests.helpers import WAYS_TO_RUN, gradients, made_up_tasks, smooth_network

pytestmark = pytest.mark.usefixtures("two_threads")


def test_what_is_chosen_on_a_cpu() -> None:
    assert choose_execution(ml.MAML(MLP(1, 1), 0.1)) == "vectorized"
    assert choose_execution(ml.MAML(Conv4(5), 0.1)) == "threads"
    assert choose_execution(ml.MAML(Conv4(5), 0.1, execution="loop")) == "loop"
    dropout = ml.MAML(nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)), 0.1)
    assert choose_execution(dropout) == "loop"
    assert choose_execution(dropout.eval()) == "vectorized"
    torch.set_num_threads(1)
    assert choose_execution(ml.MAML(Conv4(5), 0.1)) == "loop"


def test_a_network_of_unknown_modules_is_not_vectorized_unasked() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(
                inputs if inputs.sum() > 0 else -inputs
            )  # control flow on data, which vmap refuses

    learner, episodes = ml.MAML(Own().double(), 0.1), made_up_tasks(shape=(2,))
    assert choose_execution(learner) == "threads"
    assert learner(episodes).shape == (3, 9, 3)


def test_threads_use_one_intra_op_thread_each_and_leave_the_callers_number_alone() -> None:
    learner = ml.MAML(MLP(2, 3), 0.1)
    inside = list(
        in_threads(
            learner,
            range(4),
            lambda network, item: (torch.get_num_threads(), item, network.module is learner.model),
        )
    )
    assert inside == [(1, 0, False), (1, 1, False), (1, 2, False), (1, 3, False)]
    assert torch.get_num_threads() == 2


def test_replicas_share_every_tensor() -> None:
    learner = ml.MAML(MLP(2, 3), 0.1)
    for parameters in in_threads(
        learner, range(3), lambda network, _: list(network.module.parameters())
    ):
        assert all(
            ours is theirs
            for ours, theirs in zip(learner.model.parameters(), parameters, strict=True)
        )


def test_modes_of_the_caller_hold_in_threads() -> None:
    learner = ml.MAML(MLP(2, 3), 0.1)

    def modes(network: Functional, item: int) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert list(in_threads(learner, range(2), modes)) == [(False, True)] * 2
    assert list(in_threads(learner, range(2), modes)) == [(True, False)] * 2


def test_an_error_in_a_thread_reaches_the_caller_and_leaves_the_threads_usable() -> None:
    model, episodes = smooth_network(), made_up_tasks(tasks=6)
    with pytest.raises(ValueError, match="has 3 outputs, but the support set has 5"):
        ml.meta_backward(ml.MAML(model, 0.1, execution="threads"), made_up_tasks(tasks=6, ways=5))
    assert ml.meta_backward(ml.MAML(model, 0.1, execution="threads"), episodes).losses.shape == (6,)


class Alive(torch.autograd.Function):
    """The identity, which counts how many of its graphs, of a task each, are alive."""

    count, most = 0, 0

    @staticmethod
    def forward(ctx, inputs):  # type: ignore[no-untyped-def]
        Alive.count += 1
        Alive.most = max(Alive.most, Alive.count)
        weakref.finalize(ctx, Alive.gone)
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient

    @staticmethod
    def gone() -> None:
        Alive.count -= 1


@pytest.fixture
def graphs() -> type[Alive]:
    gc.collect()
    Alive.count = Alive.most = 0
    return Alive


@pytest.mark.parametrize(("way", "in_flight"), [("loop", 1), ("threads", 2)])
def test_activations_in_memory_do_not_grow_with_the_meta_batch(
    way: str, in_flight: int, graphs: type[Alive]
) -> None:
    class Watched(nn.Sequential):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(Alive.apply(inputs))

    torch.manual_seed(0)
    learner = ml.MAML(
        Watched(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double(), 0.1, execution=way
    )
    for tasks in (4, 32):
        graphs.most = 0
        ml.meta_backward(learner, made_up_tasks(tasks=tasks, shape=(2,)))
        assert graphs.most <= 2 * in_flight  # support and query of the tasks in flight


def test_nothing_is_left_behind_by_many_calls() -> None:
    learner, episodes = ml.MAML(smooth_network(), 0.1, steps=2), made_up_tasks()
    counts = []
    for _ in range(3):
        for _ in range(5):
            learner.zero_grad()
            ml.meta_backward(learner, episodes)
        gc.collect()
        counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize(
    "name", [pytest.param("resnet18", marks=pytest.mark.slow), "squeezenet1_1"]
)
def test_torchvision_models_work_unchanged(name: str, way: str) -> None:
    torch.manual_seed(0)
    model = ml.batch_statistics(
        torchvision.models.get_model(name, weights=None, num_classes=2)
    ).double()
    episodes = made_up_tasks(
        tasks=2, ways=2, shots=2, queries=2, shape=(3, 64, 64)
    )  # smaller batches of maps are ill-conditioned
    found = []
    for execution in ("loop", way):
        learner = ml.ANIL(model, 0.1, execution=execution).eval()
        learner.zero_grad()
        ml.meta_backward(learner, episodes)
        found.append(gradients(learner))
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-9)


def test_a_share_of_the_meta_batch_is_scaled_by_the_whole() -> None:
    learner, episodes = ml.MAML(smooth_network(), 0.1), made_up_tasks(tasks=3)
    ml.meta_backward(learner, episodes)
    whole = gradients(learner).clone()
    learner.zero_grad()
    tasks = unstack(episodes)
    ml.meta_backward(learner, stack(tasks[:1]), scale=1 / 3)
    ml.meta_backward(learner, stack(tasks[1:]), scale=1 / 3)
    torch.testing.assert_close(gradients(learner), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("algorithm", [ml.MAML, pytest.param(ml.ANIL, marks=pytest.mark.slow)])
def test_compiled_tasks_are_those_of_the_loop_while_weights_and_labels_change(
    algorithm: type[ml.MAML],
) -> None:
    torch.manual_seed(0)
    model = MLP(4, 3, (8,)).double()
    compiled, loop = (algorithm(model, 0.1, 2, execution=way) for way in ("compiled", "loop"))
    for number in range(
        4
    ):  # called, recorded, replayed, and with a class less, of which the recording knows nothing
        generator = torch.Generator().manual_seed(number)
        inputs = [torch.rand(2, 6, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
        targets = torch.arange(6).expand(2, 6) % (3 if number < 3 else 2)
        stacked = ml.Episode(*(ml.Examples(part, targets) for part in inputs))
        found = []
        for learner in (compiled, loop):
            model.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a class less, and of torch's own compiler
                losses = ml.meta_backward(learner, stacked).losses
            found.append([losses, *(p.grad for p in model.parameters())])
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)  # type: ignore[operator]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_compiled_tasks_under_autocast_are_not_those_without() -> None:
    torch.manual_seed(0)
    model, stacked = MLP(25, 3, (8,)), made_up_tasks(shape=(25,)).to(torch.float32)
    found: dict[str, list[torch.Tensor]] = {}
    for way in ("compiled", "vectorized"):
        learner = ml.MAML(model, 0.1, execution=way)
        for half in (False, False, True, True):  # each is recorded at its second call
            with torch.autocast("cpu", torch.bfloat16, enabled=half), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.zero_grad()
                ml.meta_backward(learner, stacked)
            found.setdefault(way, []).append(gradients(learner))
    (_, exact, _, coarse), (_, theirs, _, cast) = found["compiled"], found["vectorized"]
    torch.testing.assert_close(exact, theirs)
    assert not torch.equal(coarse, exact) and (coarse - cast).abs().max() < 0.02 * cast.abs().max()


def test_what_cannot_be_compiled_is_said() -> None:
    learner = ml.MAML(Conv4(3, hidden=4, size=16).double(), 0.1, execution="compiled")
    stacked = made_up_tasks(2, shape=(1, 16, 16))
    ml.meta_backward(learner, stacked)  # called as it is, the first time
    with pytest.raises(
        RuntimeError,
        match=(r"could not compile .* execution='auto'"),
    ):
        ml.meta_backward(learner, stacked)
