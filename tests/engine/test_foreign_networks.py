"""Networks that recompute, keep state, draw random numbers, or cannot be copied: the right numbers,
or a refusal by name.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import metalearn as ml
from metalearn.episodes import Episode, Examples, stack, unstack
from tests.helpers import gradients, made_up_tasks, outer_loss

pytestmark = pytest.mark.usefixtures("two_threads")

LR = 0.4


def plain_gradients(model: nn.Module, episodes: Episode, steps: int = 2) -> Tensor:
    """The meta-gradient of MAML by a loop that uses torch alone."""
    parameters = dict(model.named_parameters())
    losses = []
    for task in unstack(episodes):
        weights = dict(parameters)
        for _ in range(steps):
            loss = F.cross_entropy(
                functional_call(model, weights, (task.support.inputs,)), task.support.targets
            )
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {
                name: w - LR * g for (name, w), g in zip(weights.items(), slopes, strict=True)
            }
        losses.append(
            F.cross_entropy(
                functional_call(model, weights, (task.query.inputs,)), task.query.targets
            )
        )
    slopes = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
    return torch.cat([slope.flatten() for slope in slopes])


def meta_gradients(model: nn.Module, episodes: Episode, execution: str = "auto") -> Tensor:
    """The same from `meta_backward`."""
    learner = ml.MAML(model, LR, 2, execution=execution)
    learner.zero_grad()
    ml.meta_backward(learner, episodes)
    return gradients(learner)


class Block(nn.Module):
    """A network of two layers whose first part runs as `run` says."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside = nn.Sequential(
            nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU()
        )
        self.head = nn.Linear(8, 3)
        self.run = run
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.run(self.inside, inputs))


def plainly(inside: nn.Module, inputs: Tensor) -> Tensor:
    return inside(inputs)


# Recomputation: pytorch#102981. Whatever runs again in the backward pass has to find the weights of
# its task and step.


class Recomputed(torch.autograd.Function):
    """A hand-written block that keeps its inputs alone and runs again in the backward pass, as
    reversible networks do.
    """

    @staticmethod
    def forward(ctx: Any, inside: nn.Module, inputs: Tensor, *parameters: Tensor) -> Tensor:
        ctx.inside = inside
        ctx.save_for_backward(inputs)
        with torch.no_grad():
            return inside(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        with torch.enable_grad():
            (inputs,) = ctx.saved_tensors
            inputs = inputs.detach().requires_grad_()
            parameters = list(ctx.inside.parameters())
            slopes = torch.autograd.grad(
                ctx.inside(inputs), [inputs, *parameters], gradient.detach()
            )
        return None, *slopes


RECOMPUTED = {
    "checkpoint": lambda inside, x: checkpoint(inside, x, use_reentrant=False),
    "a closure": lambda inside, x: checkpoint(
        lambda y: inside[3:](inside[:3](y)), x, use_reentrant=False
    ),
    "nested": lambda inside, x: checkpoint(
        lambda y: checkpoint(inside, y, use_reentrant=False),
        x,
        use_reentrant=False,
        early_stop=False,
    ),
    "checkpoint_sequential": lambda inside, x: checkpoint_sequential(
        inside, 2, x, use_reentrant=False
    ),
    "only in training mode": lambda inside, x: (
        checkpoint(inside, x, use_reentrant=False) if inside.training else inside(x)
    ),
    "only queries": lambda inside, x: (
        checkpoint(inside, x, use_reentrant=False) if len(x) > 6 else inside(x)
    ),
}


@pytest.mark.parametrize("execution", ["auto", "loop", "threads"])
@pytest.mark.parametrize("name", RECOMPUTED)
def test_what_recomputes_does_so_with_the_weights_of_its_task(name: str, execution: str) -> None:
    episodes = made_up_tasks(tasks=3, shape=(4,))
    expected = plain_gradients(Block(plainly), episodes)
    model = Block(RECOMPUTED[name])
    torch.testing.assert_close(
        meta_gradients(model, episodes, execution), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", ["checkpoint", "only queries"])
def test_what_recomputes_is_right_in_a_training_loop_of_ones_own(name: str) -> None:
    episodes = made_up_tasks(tasks=3, shape=(4,))
    learner = ml.MAML(Block(RECOMPUTED[name]), LR, 2)
    outer_loss(learner, episodes).backward()
    expected = plain_gradients(Block(plainly), episodes)
    torch.testing.assert_close(gradients(learner), expected, rtol=1e-9, atol=1e-12)


def test_adapted_weights_of_a_checkpointed_network_are_those_of_the_plain_one() -> None:
    task = unstack(made_up_tasks(tasks=1, shape=(4,)))[0]
    adapted = [
        ml.MAML(Block(run), LR, 3).adapt(task.support).weights
        for run in (plainly, RECOMPUTED["checkpoint"])
    ]
    for name, weight in adapted[0].items():
        torch.testing.assert_close(adapted[1][name], weight, rtol=1e-12, atol=1e-14)


def test_a_function_that_recomputes_by_itself_is_right_to_first_order() -> None:
    def run(inside: nn.Module, x: Tensor) -> Tensor:
        return Recomputed.apply(inside, x.requires_grad_(), *inside.parameters())

    task = unstack(made_up_tasks(tasks=1, shape=(4,)))[0]
    adapted = [
        ml.MAML(Block(r), LR, 3, first_order=True).adapt(task.support).weights
        for r in (plainly, run)
    ]
    for name, weight in adapted[0].items():
        torch.testing.assert_close(adapted[1][name], weight, rtol=1e-12, atol=1e-14)


def test_recomputation_in_vectorized_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="execution='loop'"):
        meta_gradients(Block(RECOMPUTED["checkpoint"]), made_up_tasks(shape=(4,)), "vectorized")


def test_a_reentrant_checkpoint_is_refused_with_the_cure() -> None:
    model = Block(lambda inside, x: checkpoint(inside, x.requires_grad_(), use_reentrant=True))
    with pytest.raises(ValueError, match="use_reentrant=False"):
        meta_gradients(model, made_up_tasks(shape=(4,)), "loop")


def test_a_parameter_that_a_closure_holds_is_refused_by_name() -> None:
    model = Block(plainly)
    weight = model.inside[2].weight
    model.run = lambda inside, x: inside(x) + x.sum(1, keepdim=True) * weight.sum()
    with pytest.raises(ValueError, match=r"'inside\.2\.weight'"):
        meta_gradients(model, made_up_tasks(shape=(4,)))


def test_a_hook_that_holds_the_model_is_run_on_the_model_itself() -> None:
    model, same = Block(plainly), Block(plainly)
    model.inside[1].register_forward_hook(
        lambda module, inputs, output: output + model.inside[2](output)
    )
    same.inside[1].register_forward_hook(
        lambda module, inputs, output: output + same.inside[2](output)
    )
    episodes = made_up_tasks(shape=(4,))
    torch.testing.assert_close(
        meta_gradients(model, episodes), plain_gradients(same, episodes), rtol=1e-9, atol=1e-12
    )


# State that a forward pass writes.


class Writes(nn.Module):
    """A network that writes into itself as `write` says."""

    def __init__(self, write: Callable[[Any, Tensor], Any], **buffers: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.scale: Any = None
        self.calls = 0
        self.kept: list[Tensor] = []
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.tensor(0))
        self.write = write
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.layer(inputs)
        shift = self.write(self, maps)
        return self.head(maps if shift is None else maps + shift)


def reassigned(net: Any, maps: Tensor) -> Tensor:
    net.mean = 0.9 * net.mean + 0.1 * maps.detach().mean(0)
    return net.mean


def in_place(net: Any, maps: Tensor) -> Tensor:
    net.mean.mul_(0.9).add_(0.1 * maps.detach().mean(0))
    return net.mean


def past_autograd(net: Any, maps: Tensor) -> Tensor:
    net.mean.data.mul_(0.9).add_(0.1 * maps.detach().mean(0))
    return net.mean


def into_a_parameter(net: Any, maps: Tensor) -> None:
    with torch.no_grad():
        net.head.bias.add_(maps.mean())


def constraining_a_weight(net: Any, maps: Tensor) -> None:
    net.head.weight.data = torch.renorm(net.head.weight.data, 2, 0, 0.1)


def clamping_a_weight(net: Any, maps: Tensor) -> None:
    net.head.weight.data.clamp_(-0.1, 0.1)


def adding_a_layer(net: Any, maps: Tensor) -> Tensor:
    if not hasattr(net, "late"):
        net.late = nn.Linear(4, 4).double()
    return net.late(maps)


REFUSED = {
    reassigned: "buffer mean",
    in_place: "buffer mean",
    past_autograd: "buffer mean",
    into_a_parameter: r"parameter head\.bias",
    constraining_a_weight: r"parameter head\.weight",
    clamping_a_weight: r"parameter head\.weight",
    adding_a_layer: "module late",
}


@pytest.mark.parametrize("execution", ["auto", "loop", "threads"])
@pytest.mark.parametrize("write", REFUSED)
def test_writes_into_parameters_and_buffers_are_refused_by_name(
    write: Callable[..., Any], execution: str
) -> None:
    model = Writes(write)
    before = model.mean
    learner = ml.MAML(model, LR, execution=execution)
    episodes = made_up_tasks(shape=(4,))
    with pytest.raises(ValueError, match=f"writes into its {REFUSED[write]}"):
        ml.meta_backward(learner, episodes)
    with pytest.raises(ValueError, match=f"writes into its {REFUSED[write]}"):
        ml.evaluate(learner, episodes)
    assert model.mean is before and not hasattr(model, "late")


def test_a_buffer_reassigned_in_vectorized_tasks_is_refused_and_left_as_it_was() -> None:
    model = Writes(reassigned)
    before = model.mean
    with pytest.raises(ValueError, match="buffer mean"):
        ml.meta_backward(ml.MAML(model, LR, execution="vectorized"), made_up_tasks(shape=(4,)))
    assert model.mean is before


def keeping_an_attribute(net: Any, maps: Tensor) -> Tensor:
    old = net.scale
    net.scale = maps.mean(0)
    return net.scale if old is None else old


def counting(net: Any, maps: Tensor) -> Tensor:
    net.calls += 1
    return maps * net.calls


def counting_in_a_buffer(net: Any, maps: Tensor) -> Tensor:
    net.count += 1
    return maps * net.count


def keeping_a_list(net: Any, maps: Tensor) -> Tensor:
    net.kept.append(maps.mean(0))
    return sum(net.kept)  # type: ignore[return-value]


@pytest.mark.parametrize("execution", ["auto", "loop", "threads", "vectorized"])
@pytest.mark.parametrize(
    "write", [keeping_an_attribute, counting, counting_in_a_buffer, keeping_a_list]
)
def test_what_one_task_keeps_in_the_model_the_next_one_does_not_see(
    write: Callable[..., Any], execution: str
) -> None:
    episodes = made_up_tasks(tasks=3, shape=(4,))
    learner = ml.MAML(Writes(write), LR, 2, execution=execution)
    together = ml.meta_backward(learner, episodes).losses
    alone = [
        ml.meta_backward(ml.MAML(Writes(write), LR, 2), stack([task])).losses
        for task in unstack(episodes)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-14)
    assert (
        learner.model.scale is None
        and learner.model.calls == 0
        and not learner.model.kept
        and learner.model.count == 0
    )


# Random numbers that no dropout module draws.


def functional_dropout(net: Any, maps: Tensor) -> Tensor:
    return F.dropout(maps, 0.5) - maps


def numpy_noise(net: Any, maps: Tensor) -> Tensor:
    return maps * np.random.rand()  # noqa: NPY002


def python_noise(net: Any, maps: Tensor) -> Tensor:
    return maps * random.random()


DRAWS = [functional_dropout, numpy_noise, python_noise]


def seeded_losses(learner: ml.Learner, episodes: Episode) -> Tensor:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    return ml.meta_backward(learner, episodes).losses


@pytest.mark.parametrize("write", DRAWS)
def test_draws_repeat_by_seed_step_and_task(write: Callable[..., Any]) -> None:
    episodes = made_up_tasks(tasks=6, shape=(4,))
    learner = ml.MAML(Writes(write), LR, 2)
    losses = [seeded_losses(learner, episodes) for _ in range(4)]
    assert all(torch.equal(losses[0], other) for other in losses[1:])
    loop = ml.MAML(learner.model, LR, 2, execution="loop")
    assert torch.equal(seeded_losses(loop, episodes), losses[0])
    second = ml.meta_backward(learner, episodes).losses
    assert not torch.equal(second, losses[0])  # the next step draws anew
    first = stack(unstack(episodes)[:1])
    assert torch.equal(seeded_losses(learner, first), losses[0][:1])  # whatever comes after


@pytest.mark.parametrize("write", DRAWS)
@pytest.mark.parametrize("execution", ["threads", "vectorized"])
def test_draws_in_threads_or_vectorized_are_refused(
    write: Callable[..., Any], execution: str
) -> None:
    learner = ml.MAML(Writes(write), LR, 2, execution=execution)
    with pytest.raises(ValueError, match=r"draws random numbers.*execution='loop'"):
        ml.meta_backward(learner, made_up_tasks(tasks=3, shape=(4,)))


def test_torchvisions_drop_block_repeats() -> None:
    torch.manual_seed(0)
    block = torchvision.ops.DropBlock2d(0.5, 3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), block, nn.Flatten(), nn.Linear(36, 3)
    ).double()
    episodes, learner = made_up_tasks(tasks=4), ml.MAML(model, LR)
    losses = [seeded_losses(learner, episodes) for _ in range(3)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_networks_that_draw_nothing_leave_the_generators_alone() -> None:
    model, before = Block(plainly), torch.get_rng_state()
    for execution in ("loop", "threads", "vectorized"):
        ml.meta_backward(ml.MAML(model, LR, execution=execution), made_up_tasks(shape=(4,)))
    assert torch.equal(torch.get_rng_state(), before)


# Networks that cannot be copied for threads: pytorch#26596.


def test_tensors_that_are_not_leaves_may_be_kept_as_attributes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm has a newer form
        normed = torch.nn.utils.weight_norm(nn.Linear(4, 8))
    model = nn.Sequential(normed, nn.Tanh(), nn.Linear(8, 3)).double()
    pruned = copy.deepcopy(Block(plainly))
    prune.l1_unstructured(pruned.inside[2], "weight", amount=0.3)
    kept = Block(plainly)
    kept.plan = torch.ones(3, requires_grad=True) * 2
    kept.plans = {"a": [kept.plan + 1]}
    episodes = made_up_tasks(shape=(4,))
    for network in (model, pruned, kept):
        expected = plain_gradients(network, episodes)
        torch.testing.assert_close(
            meta_gradients(network, episodes, "threads"), expected, rtol=1e-9, atol=1e-12
        )


def test_what_cannot_be_copied_runs_in_the_loop_with_a_note() -> None:
    class Single:
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one")

    model = Block(plainly)
    model.handle = Single()
    episodes = made_up_tasks(shape=(4,))
    with pytest.warns(UserWarning, match=r"there is only one.*one by one"):
        found = meta_gradients(model, episodes)
    torch.testing.assert_close(found, plain_gradients(model, episodes), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"there is only one.*execution='loop'"):
        meta_gradients(model, episodes, "threads")


# Several inputs, and outputs that are not one tensor: transformers#38922.

Result = namedtuple("Result", ["logits", "hidden"])


class Tokens(nn.Module):
    """Takes token ids and a mask by name, as language models do, and returns what `wrap` makes of
    logits and hidden states.
    """

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 6)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.wrap = wrap
        self.double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        mask = attention_mask.unsqueeze(-1).to(torch.float64)
        hidden = torch.tanh(self.layer((self.embedding(input_ids) * mask).sum(1) / mask.sum(1)))
        return self.wrap(self.head(hidden), hidden)


def token_tasks(kind: type) -> Episode:
    generator = torch.Generator().manual_seed(0)

    def examples(count: int) -> Examples:
        ids = torch.randint(0, 11, (3, 3 * count, 5), generator=generator)
        mask = torch.ones(3, 3 * count, 5, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": mask} if kind is dict else kind((ids, mask))
        return Examples(inputs, torch.arange(3).repeat_interleave(count).repeat(3, 1))

    return Episode(examples(2), examples(3))


@pytest.mark.parametrize("execution", ["loop", "threads", "vectorized"])
@pytest.mark.parametrize("kind", [dict, tuple, list])
@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda logits, hidden: logits, None),
        (Result, "logits"),
        (lambda a, b: {"hidden": b, "logits": a}, "logits"),
        (Result, "0"),
    ],
)
def test_several_inputs_and_named_outputs(
    wrap: Callable[..., Any], output: str | None, kind: type, execution: str
) -> None:
    if output == "0":
        wrap = lambda logits, hidden: (logits, hidden)  # noqa: E731
    episodes, model = token_tasks(kind), Tokens(wrap)
    found = []
    for way, net, entry in (
        ("loop", Tokens(lambda logits, hidden: logits), None),
        (execution, model, output),
    ):
        learner = ml.MAML(net, LR, 2, execution=way, output=entry)
        learner.zero_grad()
        ml.meta_backward(learner, episodes)
        found.append(gradients(learner))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
    plain = Tokens(lambda logits, hidden: logits)
    for algorithm, options in ((ml.ANIL, {"lr": LR}), (ml.ProtoNet, {})):
        named = ml.evaluate(algorithm(model, output=output, **options), episodes)
        bare = ml.evaluate(algorithm(plain, **options), episodes)
        assert named.per_episode.tolist() == bare.per_episode.tolist()


def test_a_missing_output_lists_the_entries() -> None:
    with pytest.raises(
        ValueError, match=r"logits \(6 x 3\), hidden \(6 x 6\); name .*output='logits'"
    ):
        ml.meta_backward(ml.MAML(Tokens(Result), LR, execution="loop"), token_tasks(dict))


def test_auxiliary_outputs_of_torchvision() -> None:
    torch.manual_seed(0)
    model = ml.batch_statistics(
        torchvision.models.googlenet(weights=None, num_classes=2, init_weights=False)
    )
    episodes = made_up_tasks(tasks=1, ways=2, shots=1, queries=1, shape=(3, 64, 64)).to(
        torch.float32
    )
    for module in (model.aux1, model.aux2, model.dropout):
        module.eval()
    learner = ml.ANIL(model, 0.1, output="logits", head="fc", execution="loop")
    assert learner(episodes).shape == (
        1,
        2,
        2,
    )  # the model returns (logits, aux2, aux1) here, and a tensor in `evaluate`
    assert ml.evaluate(learner, episodes).measure == "accuracy"
    with pytest.raises(ValueError, match=r"entries are logits .* aux_logits2 .*output='logits'"):
        ml.ANIL(model, 0.1, head="fc", execution="loop")(episodes)


# Relatives: attention, tied weights, recurrent cells, wrappers.


class Attention(nn.Module):
    """A small transformer, whose encoder runs under a checkpoint or not."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.recompute = recompute
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = (
            checkpoint(self.encoder, inputs, use_reentrant=False)
            if self.recompute
            else self.encoder(inputs)
        )
        return self.head(tokens.mean(1))


class Tied(nn.Module):
    """Two layers with one weight, run under a checkpoint or not."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)
        self.recompute = recompute
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return torch.tanh(self.second(torch.tanh(self.first(x))))

        return self.head(
            checkpoint(run, inputs, use_reentrant=False) if self.recompute else run(inputs)
        )


@pytest.mark.parametrize("execution", ["loop", "threads"])
@pytest.mark.parametrize(("kind", "shape"), [(Attention, (6, 4)), (Tied, (4,))])
def test_attention_and_tied_weights_recompute_rightly(
    kind: type, shape: tuple[int, ...], execution: str
) -> None:
    episodes = made_up_tasks(shape=shape)
    expected = meta_gradients(kind(False), episodes, "loop")
    torch.testing.assert_close(
        meta_gradients(kind(True), episodes, execution), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks_adapt(cell: type[nn.RNNBase]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn = cell(4, 5, batch_first=True, num_layers=2)
            self.head = nn.Linear(5, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.rnn(inputs)[0][:, -1])

    model, episodes = Recurrent().double(), made_up_tasks(shape=(6, 4))
    torch.testing.assert_close(
        meta_gradients(model, episodes), plain_gradients(model, episodes), rtol=1e-9, atol=1e-12
    )


def test_generators_of_their_own_keep_tasks_out_of_threads() -> None:
    class Noisy(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(
                inputs + torch.rand(inputs.shape, generator=self.generator, dtype=inputs.dtype)
            )

    torch.manual_seed(0)
    model = Noisy().double()
    episodes = made_up_tasks(tasks=4, shape=(4,))
    expected = plain_gradients(copy.deepcopy(model), episodes)
    torch.testing.assert_close(
        meta_gradients(copy.deepcopy(model), episodes), expected, rtol=1e-9, atol=1e-12
    )
    with pytest.raises(ValueError, match=r"generator.*execution='loop'"):
        meta_gradients(model, episodes, "threads")


def test_weights_that_cannot_be_exchanged_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 \(LazyLinear\).*run the model once"):
        ml.MAML(nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 3)), LR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.trace(nn.Linear(4, 8), torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"TorchScript.*pass the module"):
        ml.MAML(nn.Sequential(traced, nn.Linear(8, 3)), LR)
