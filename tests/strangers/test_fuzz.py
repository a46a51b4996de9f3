"""Calls of every public function with odd arguments: each gives a number in its range, or an error
that names the value.

An example is a line of Python, so that what fails can be run again:

    python -m tests.strangers.test_fuzz "cca(matrix((4, 0)), matrix((4, 3)))"

and `python -m tests.strangers.test_fuzz 1000 [part]` prints all that fails, grouped by file.
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import metalearn
import metalearn.analysis
import metalearn.models.conv4
import metalearn.tasks
import transfer
import transfer.models
from metalearn.analysis.adaptation import figures
from metalearn.analysis.measures.chance import measured
from metalearn.data.images import LabelledImages
from metalearn.episodes import Episode, Examples, stack, unstack

ROOT = Path(metalearn.__file__).parents[1]
OURS = (str(ROOT / "metalearn"), str(ROOT / "transfer"))
# What arguments are made of


def matrix(
    shape: tuple[int, ...] = (12, 3), dtype: str = "float32", values: str = "normal", seed: int = 0
) -> Tensor:
    """Numbers of a shape, a dtype and a kind."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made = {
        "normal": drawn,
        "zeros": torch.zeros_like(drawn),
        "constant": torch.full_like(drawn, 0.1),
        "nan": drawn.masked_fill(drawn > 1, torch.nan),
        "inf": drawn.masked_fill(drawn > 1, torch.inf),
        "huge": drawn * 1e200,
        "tiny": drawn * 1e-200,
        "far": drawn + 1e6,
        "coarse": drawn.round(),
    }[values]
    return made.to(getattr(torch, dtype))


def network(kind: str = "linear", seed: int = 0) -> nn.Module:
    """A small network for inputs (examples, 4) or images (examples, 1, 6, 6)."""
    torch.manual_seed(seed)
    return {
        "linear": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)),
        "conv": lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        ),
        "norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        "batch": lambda: metalearn.batch_statistics(
            nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        ),
        "dropout": lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 3)),
        "recurrent": lambda: nn.Sequential(nn.LSTM(4, 6), nn.Linear(6, 3)),
        "words": lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(16, 3)),
        "dead": lambda: nn.Sequential(nn.Linear(4, 6), nn.Threshold(1e9, 0.0), nn.Linear(6, 3)),
        "headless": lambda: nn.Sequential(nn.Flatten(), nn.Tanh()),
        "empty": lambda: nn.Sequential(),
        "half": lambda: nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).bfloat16(),
    }[kind]()


def tasks(
    count: int = 2,
    ways: int = 3,
    shots: int = 2,
    shape: tuple[int, ...] = (4,),
    labels: str = "whole",
    dtype: str = "float32",
) -> Episode:
    """A stack of tasks."""
    inputs = matrix((count, ways * shots, *shape), dtype)
    whole = torch.arange(ways).repeat_interleave(shots).repeat(count, 1)
    targets = {
        "whole": whole,
        "real": matrix((count, ways * shots, 3)),
        "floats": whole.float(),
        "bool": whole > 0,
        "short": whole.int(),
        "negative": whole - 1,
        "gap": 2 * whole,
        "from one": whole + 1,
        "one": torch.zeros_like(whole),
        "nan": matrix((count, ways * shots, 3), values="nan"),
    }[labels]
    return Episode(Examples(inputs, targets), Examples(inputs + 0.1, targets))


def data_set(classes: int = 3, images: int = 6, labels: str = "whole") -> Any:
    """A data set of images (1, 6, 6)."""
    pixels = torch.randint(
        256, (classes * images, 1, 6, 6), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)
    whole = torch.arange(classes).repeat_interleave(images)
    if labels == "whole":
        return LabelledImages(pixels, whole)
    names = {
        "float": whole.float().tolist(),
        "text": [f"class {i}" for i in whole.tolist()],
        "gap": (2 * whole).tolist(),
        "none": [None] * len(whole),
    }
    return [(pixels[i].float() / 255, names[labels][i]) for i in range(len(whole))]


def learn(algorithm: Any, model: Any, episodes: Any, way: str, **options: Any) -> Any:
    """Build a learner and use it in one way."""
    if algorithm not in (metalearn.NIL, metalearn.ProtoNet):
        options.setdefault("lr", 0.1)
    learner = algorithm(model, **options)
    if way == "train":
        listed = unstack(episodes)
        return metalearn.meta_train(
            learner, listed, steps=1, meta_batch=min(2, len(listed)), progress=False
        )
    if way == "freeze":
        return learner.frozen([next(iter(dict(model.named_children())))])
    with torch.no_grad():
        return {
            "evaluate": lambda: metalearn.evaluate(learner, episodes),
            "forward": lambda: learner(episodes),
            "adapt": lambda: learner.adapt(unstack(episodes)[0].support),
            "reuse": lambda: metalearn.analysis.feature_reuse(learner, episodes),
            "freezing": lambda: metalearn.analysis.freezing(learner, episodes),
            "between": lambda: metalearn.analysis.similarity_between(
                {"a": [learner, learner]}, episodes
            ),
            "backward": lambda: metalearn.meta_backward(learner, episodes),
        }[way]()


def over_batches(measure: str, x: Any, y: Any, size: int = 5, **options: Any) -> float:
    """A measure over a stream."""
    stream = metalearn.analysis.Streaming(measure, **options)
    parts = [side.split(size) if side.ndim else [side] for side in (x, y)]
    for left, right in zip(*parts, strict=False):
        stream.update(left, right)
    stream.chance()
    return stream.compute()


def trained(model: Any, train: Any, test: Any, **options: Any) -> Any:
    """Fine-tune a model."""
    return transfer.finetune(train, test, **{"steps": 2, "batch": 4, **options})(model, 0)


# Lines of Python


def one_of(*sources: str) -> st.SearchStrategy[str]:
    return st.sampled_from(sources)


def mostly(usual: st.SearchStrategy[str], odd: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.integers(0, 5).flatmap(lambda roll: usual if roll else odd)


ODD = one_of(
    "None",
    "-1",
    "0",
    "1.5",
    "float('nan')",
    "float('inf')",
    "'1'",
    "''",
    "True",
    "[]",
    "{}",
    "10**20",
    "np.int64(2)",
    "torch.tensor(1.0)",
    "(1, 2)",
)
COUNT = mostly(one_of("1", "2", "3"), ODD)
SEED = mostly(one_of("0", "7"), ODD)
SHARE = mostly(one_of("0.5", "0.99", "1"), ODD)
RATE = mostly(one_of("0.1", "0.0", "{'': 0.1}", "{'0': 0.1}", "{'nowhere': 0.1}"), ODD)
NAME = mostly(one_of("'0'", "'2'", "'nowhere'"), ODD)
DTYPES = one_of(
    "'float32'",
    "'float64'",
    "'float16'",
    "'bfloat16'",
    "'float8_e5m2'",
    "'int8'",
    "'uint8'",
    "'int64'",
    "'uint16'",
    "'bool'",
    "'complex64'",
)
VALUES = one_of(
    "'normal'", "'zeros'", "'constant'", "'nan'", "'inf'", "'huge'", "'tiny'", "'far'", "'coarse'"
)
SHAPES = mostly(
    one_of("(12, 3)", "(12, 5)", "(12, 4)"),
    one_of(
        "(0, 3)", "(1, 3)", "(2, 3)", "(3, 3)", "(4, 9)", "(12, 0)", "(12,)", "()", "(12, 2, 2, 2)"
    ),
)
PLAIN = st.builds("matrix({}, seed={})".format, SHAPES, one_of("0", "1"))
STRANGE = st.builds("matrix({}, {}, {})".format, SHAPES, DTYPES, VALUES)
NO_MATRIX = one_of(
    "None",
    "'text'",
    "3",
    "[[1.0, 2.0], [3.0]]",
    "[]",
    "matrix().numpy()",
    "matrix().to_sparse()",
    "matrix().tolist()",
    "np.array([['a']])",
)
MATRIX = st.integers(0, 9).flatmap(
    lambda roll: PLAIN if roll < 4 else STRANGE if roll < 9 else NO_MATRIX
)
STREAM = PLAIN | STRANGE
MEASURE = mostly(
    one_of("'cca'", "'svcca'", "'pwcca'", "'linear_cka'", "'rbf_cka'", "'procrustes'"),
    one_of("'subspace'", "'cka'", "None", "3"),
)
KINDS = one_of(
    "'linear'",
    "'conv'",
    "'norm'",
    "'batch'",
    "'dropout'",
    "'recurrent'",
    "'words'",
    "'dead'",
    "'headless'",
    "'empty'",
    "'half'",
)
NETWORK = mostly(
    st.builds("network({}, {})".format, KINDS, one_of("0", "1")),
    one_of("None", "'resnet18'", "nn.Identity()", "nn.Linear(4, 3)", "matrix()"),
)
INPUTS = mostly(
    one_of(
        "matrix((12, 4))",
        "matrix((12, 4)).split(6)",
        "[(matrix((12, 4)), None)]",
        "matrix((12, 1, 6, 6))",
        "matrix((12, 4)).numpy()",
    ),
    one_of(
        "None",
        "3",
        "'text'",
        "[]",
        "[None]",
        "matrix((0, 4))",
        "matrix((3, 4))",
        "matrix((12, 4), 'uint8', 'coarse')",
        "{'x': matrix((12, 4))}",
        "{'input': matrix((12, 4)), 'labels': None}",
        "matrix((12, 5))",
        "matrix((12, 4), 'float32', 'nan')",
        "matrix((12, 4), 'float64')",
        "matrix((12, 4), 'int64', 'zeros')",
        "matrix((12, 1, 6, 6), 'uint8', 'zeros')",
        "{}",
        "((matrix((12, 4)), matrix((12, 4))),)",
    ),
)
LAYERS = mostly(
    one_of("None", "['0']", "['0', '2']"),
    one_of("[]", "['nowhere']", "'0'", "[3]", "['0:0']", "['']", "[None]", "[('0', '2')]", "3"),
)
TASKS = mostly(
    st.builds("tasks({}, labels={})".format, one_of("2", "1"), one_of("'whole'", "'real'")),
    st.builds(
        "tasks({}, {}, {}, {}, {}, {})".format,
        one_of("0", "1", "2"),
        one_of("1", "2", "3", "4"),
        one_of("0", "1", "2"),
        one_of("(4,)", "(1, 6, 6)", "(5,)", "()"),
        one_of(
            "'whole'",
            "'real'",
            "'floats'",
            "'bool'",
            "'short'",
            "'negative'",
            "'gap'",
            "'from one'",
            "'one'",
            "'nan'",
        ),
        one_of("'float32'", "'float64'", "'uint8'", "'int64'", "'float16'", "'complex64'"),
    )
    | one_of(
        "None",
        "[]",
        "3",
        "'omniglot'",
        "unstack(tasks())",
        "unstack(tasks())[0]",
        "FewShot(data_set(), 3, 1, 1, 2)",
        "Sinusoid(tasks=2)",
    ),
)
EXAMPLES = mostly(
    st.builds(
        "Examples(matrix((12, 4), seed={}), torch.arange(3).repeat(4))".format, one_of("0", "1")
    ),
    one_of(
        "data_set()",
        "data_set(labels='text')",
        "None",
        "[]",
        "matrix()",
        "Examples(matrix((12, 4)), matrix((12,)))",
        "Examples(matrix((0, 4)), torch.arange(0))",
        "Examples(matrix((12, 4), values='nan'), torch.arange(12))",
        "Examples(matrix((12, 4)), torch.arange(3))",
        "Examples(matrix((12, 4), 'int64'), torch.arange(12))",
    ),
)
DATA = mostly(
    one_of("data_set()", "data_set(4, 8)"),
    one_of(
        "data_set(labels='text')",
        "data_set(labels='gap')",
        "data_set(labels='none')",
        "None",
        "[]",
        "[1, 2]",
        "data_set(1, 2)",
    ),
)
ALGORITHM = one_of("MAML", "ANIL", "BOIL", "MetaSGD", "Reptile", "NIL", "ProtoNet")
WAY = one_of("'evaluate'", "'forward'", "'adapt'", "'backward'", "'train'", "'freeze'")
LOSS = mostly(
    one_of("F.cross_entropy", "F.mse_loss"),
    one_of(
        "None",
        "'mse'",
        "nn.MSELoss()",
        "F.mse_loss(torch.ones(1), torch.ones(1))",
        "nn.MSELoss(reduction='none')",
    ),
)
EXECUTION = mostly(one_of("'auto'", "'loop'", "'threads'", "'vectorized'"), ODD)
ESTIMATE = mostly(
    one_of("Estimate(0.9, 0.01)", "Estimate(0.99, 0.001)"),
    one_of("Estimate(float('nan'), 0.1)", "Estimate(0.5, float('nan'))", "None", "0.9"),
)
WEIGHTS = mostly(
    one_of("network('conv', 1)", "network('linear', 1).state_dict()"),
    one_of("None", "{}", "'no_such_file.safetensors'", "'ResNet18_Weights.NOPE'", "3", "matrix()"),
)
STRATEGY = mostly(
    st.builds("transfusion({}, {})".format, WEIGHTS, NAME)
    | one_of("everywhere(fresh())", "everywhere(gabor())", "{'': fresh()}"),
    st.builds("everywhere({}({}))".format, one_of("copied", "mean_var", "permuted"), WEIGHTS)
    | one_of("None", "{}", "fresh()", "{'nowhere': fresh()}", "{'': 3}", "'copied'"),
)

MODULES = (
    metalearn,
    metalearn.analysis,
    metalearn.models,
    metalearn.tasks,
    transfer,
    transfer.models,
)
NAMES = {
    name: getattr(module, name)
    for module in MODULES
    for name in dir(module)
    if not name.startswith("_")
}
NAMES |= {
    function.__name__: function
    for function in (matrix, network, tasks, data_set, learn, over_batches, trained, measured)
}
NAMES |= {
    function.__name__: function for function in (stack, unstack, Episode, Examples, LabelledImages)
}
NAMES |= {"F": F, "nn": nn, "np": np, "figures": figures, "torch": torch}

Arguments = dict[str, st.SearchStrategy[str]]
# part -> function -> (what it must be given, what it may be)
CALLS: dict[str, dict[str, tuple[Arguments, Arguments]]] = {
    "analysis": {
        **{
            name: ({"x": MATRIX, "y": MATRIX}, {})
            for name in ("canonical_correlations", "cca", "pwcca", "procrustes")
        },
        "svcca": ({"x": MATRIX, "y": MATRIX}, {"energy": SHARE}),
        "linear_cka": ({"x": MATRIX, "y": MATRIX}, {"debiased": one_of("True", "False")}),
        "rbf_cka": (
            {"x": MATRIX, "y": MATRIX},
            {"fraction": SHARE, "debiased": one_of("True", "False")},
        ),
        "subspace": ({"x": MATRIX, "y": MATRIX, "k": COUNT}, {}),
        "overlap": ({"x": MATRIX, "y": MATRIX}, {"centred": one_of("True", "False")}),
        "measured": (
            {"name": MEASURE, "x": MATRIX, "y": MATRIX},
            {"groups": COUNT, "draws": COUNT, "seed": SEED, "k": COUNT},
        ),
        "over_batches": (
            {"measure": MEASURE, "x": STREAM, "y": STREAM},
            {
                "minibatch": one_of("True", "False"),
                "draws": COUNT,
                "seed": SEED,
                "k": COUNT,
                "energy": SHARE,
            },
        ),
        "compare_layers": (
            {"before": NETWORK, "after": NETWORK, "inputs": INPUTS},
            {
                "layers": LAYERS,
                "measure": MEASURE,
                "convention": mostly(one_of("'flatten'", "'pool'", "'positions'"), ODD),
                "groups": COUNT,
            }
            | {"rows": COUNT, "draws": COUNT, "seed": SEED, "k": COUNT},
        ),
        "similarity_map": (
            {"a": NETWORK, "b": NETWORK, "loader": INPUTS},
            {"layers_a": LAYERS, "layers_b": LAYERS, "draws": COUNT, "seed": SEED},
        ),
        "linear_probes": (
            {"model": NETWORK, "train": EXAMPLES, "test": EXAMPLES},
            {
                "layers": LAYERS,
                "shots": COUNT,
                "ridge": SHARE,
                "batch": COUNT,
                "seed": SEED,
                "convention": mostly(one_of("'pool'"), ODD),
            },
        ),
        "class_cosines": (
            {
                "features": MATRIX,
                "targets": one_of(
                    "torch.arange(3).repeat(4)", "torch.zeros(12)", "None", "matrix()"
                ),
            },
            {},
        ),
        "verdict": (
            {
                "body": mostly(st.builds("{{'a': {}}}".format, ESTIMATE), ODD),
                "freezing_cost": ESTIMATE,
                "head_cost": ESTIMATE,
            },
            {},
        ),
        "over_seeds": ({"reuses": one_of("[]", "None", "[None]", "3")}, {}),
        "differences": ({"reuses": one_of("[]", "[None]", "3")}, {}),
        "report": ({"reuses": one_of("[]", "None"), "path": one_of("'page.html'", "None")}, {}),
        "freezing_over_seeds": (
            {"learners": one_of("[]", "None", "[None]"), "episodes": TASKS},
            {},
        ),
        "figures.timeline": (
            {
                "steps": one_of("[0, 100]", "[]", "None", "[1]"),
                "similarity": mostly(st.builds("{{'a': [{}]}}".format, ESTIMATE), ODD),
            }
            | {"accuracy": st.builds("[{}]".format, ESTIMATE)},
            {},
        ),
    },
    "questions": {
        "learn": (
            {
                "algorithm": ALGORITHM,
                "model": NETWORK,
                "episodes": TASKS,
                "way": one_of("'reuse'", "'freezing'", "'between'"),
            },
            {"lr": RATE, "steps": COUNT, "loss": LOSS},
        ),
    },
    "learners": {
        "learn": (
            {"algorithm": ALGORITHM, "model": NETWORK, "episodes": TASKS, "way": WAY},
            {
                "lr": RATE,
                "steps": COUNT,
                "head": NAME,
                "loss": LOSS,
                "execution": EXECUTION,
                "first_order": one_of("True", "False"),
            }
            | {"rule": mostly(one_of("'softmax'", "'sum'", "'class_mean'"), ODD)},
        ),
        "layers": ({"model": NETWORK}, {}),
        "head": ({"model": NETWORK}, {"name": NAME}),
        "body": ({"model": NETWORK}, {"head_name": NAME}),
        "batch_statistics": ({"model": NETWORK}, {}),
        "frozen_statistics": ({"model": NETWORK}, {}),
        "stack": ({"episodes": mostly(one_of("unstack(tasks())"), TASKS)}, {}),
        "unstack": ({"episodes": TASKS}, {}),
    },
    "tasks": {
        "FewShot": (
            {"dataset": DATA, "ways": COUNT, "shots": COUNT, "queries": COUNT, "tasks": COUNT},
            {"seed": SEED},
        ),
        "Sinusoid": (
            {},
            {
                "shots": COUNT,
                "queries": COUNT,
                "tasks": COUNT,
                "seed": SEED,
                "amplitude": ODD,
                "phase": ODD,
                "dtype": ODD,
            },
        ),
        "LabelledImages": (
            {
                "images": one_of(
                    "matrix((4, 1, 2, 2), 'uint8', 'zeros')",
                    "matrix()",
                    "None",
                    "matrix((0, 1, 2, 2), 'uint8')",
                )
            }
            | {
                "labels": one_of(
                    "torch.arange(4)", "torch.arange(3)", "None", "-torch.arange(4)", "matrix((4,))"
                )
            },
            {"names": ODD},
        ),
        "glyphs": (
            {"classes": one_of("1", "2", "0", "-1", "'2'", "None.__class__", "1.5")},
            {
                "split": mostly(one_of("'test'"), ODD),
                "drawers": COUNT,
                "size": one_of("28", "8", "0", "-1", "'28'"),
                "seed": SEED,
            },
        ),
        "omniglot": (
            {"root": one_of("'no_such_folder'", "None", "3", "''")},
            {"split": mostly(one_of("'test'"), ODD)},
        ),
        "mini_imagenet": (
            {"root": one_of("'no_such_folder'", "None", "3")},
            {"split": mostly(one_of("'test'"), ODD)},
        ),
        "image_folder": (
            {"root": one_of("'no_such_folder'", "None", "3", "'tests'")},
            {"split": mostly(one_of("'test'"), ODD)},
        ),
        "Conv4": (
            {"ways": COUNT},
            {
                "channels": COUNT,
                "hidden": COUNT,
                "size": one_of("28", "4", "0", "-3", "'28'", "16.5"),
                "pool": ODD,
            },
        ),
        "ResNet12": (
            {"ways": COUNT},
            {
                "channels": COUNT,
                "widths": one_of("(2, 2, 2, 2)", "(2,)", "()", "3", "(0, 1, 1, 1)", "'wide'"),
            },
        ),
        "MLP": (
            {"inputs": COUNT, "outputs": COUNT},
            {"hidden": one_of("(3,)", "()", "3", "(0,)", "(1.5,)", "'4'", "None")},
        ),
    },
    "transfer": {
        "initialize": ({"model": NETWORK, "strategy": STRATEGY}, {"seed": SEED, "head": NAME}),
        "trained": (
            {"model": mostly(one_of("network('conv')"), NETWORK), "train": DATA, "test": DATA},
            {
                "steps": COUNT,
                "batch": COUNT,
                "lr": SHARE,
                "optimizer": mostly(one_of("'adam'", "'sgd'"), ODD),
                "metric": mostly(one_of("'auc'"), ODD),
            }
            | {
                "images": COUNT,
                "early_stop": COUNT,
                "balance": mostly(one_of("'loss'", "'batches'"), ODD),
                "rates": RATE,
                "frozen": NAME,
            },
        ),
        "freeze": ({"model": NETWORK, "through": NAME}, {}),
        "linear_probe": ({"model": NETWORK}, {}),
        "frozen_transformer": ({"model": NETWORK}, {}),
        "parameter_groups": ({"model": NETWORK, "rates": RATE, "lr": SHARE}, {}),
        "build": (
            {
                "name": one_of(
                    "'cbr_tiny'", "'squeezenet1_1'", "'no_such'", "None", "'timm:no_such'"
                ),
                "outputs": COUNT,
            },
            {"channels": COUNT},
        ),
        "cbr": (
            {"name": one_of("'tiny'", "'no_such'", "None"), "outputs": COUNT},
            {"channels": COUNT},
        ),
        "slim": (
            {
                "name": one_of("'resnet18'", "'vgg11'", "None"),
                "through": one_of("'bn1'", "'layer1'", "'nowhere'", "None", "'fc'"),
                "outputs": COUNT,
            },
            {"width": SHARE},
        ),
    },
}


def lines(part: str) -> st.SearchStrategy[str]:
    """Calls of the functions of a part, as lines of Python."""

    def calls(name: str) -> st.SearchStrategy[str]:
        needed, optional = CALLS[part][name]
        arguments = st.fixed_dictionaries(needed, optional=optional)
        return arguments.map(
            lambda chosen: (
                f"{name}({', '.join(f'{key}={source}' for key, source in chosen.items())})"
            )
        )

    return st.sampled_from(sorted(CALLS[part])).flatmap(calls)


# What a call may do


def failure(line: str) -> tuple[str, str] | None:
    """Where a call went wrong and how, or None where it gave what it should or said why not."""
    try:
        arguments = compile(line, "<line>", "eval")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = eval(arguments, NAMES)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        return (
            None
            if is_said(error, frames)
            else (
                place(error.__traceback__),
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:140],
            )
        )
    wrong = silent(line.partition("(")[0], result)
    return (line.partition("(")[0], wrong) if wrong else None


def is_said(error: Exception, frames: traceback.StackSummary) -> bool:
    """Whether the error was raised on purpose: by a `raise` of this project, by Python for a wrong
    argument, or with a note.
    """
    if getattr(error, "__notes__", None):
        return True
    last = frames[-1]
    if last.filename.startswith(OURS):
        return (last.line or "").startswith("raise") and len(str(error)) > 15
    in_line = last.filename in ("<line>", __file__)
    return in_line and (
        isinstance(error, TypeError | AttributeError | ValueError | KeyError | StopIteration)
    )


def place(trace: TracebackType | None) -> str:
    """The innermost line of this project in a traceback."""
    ours = [frame for frame in traceback.extract_tb(trace) if frame.filename.startswith(OURS)]
    return (
        f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno} {ours[-1].name}"
        if ours
        else "outside"
    )


def silent(name: str, result: Any) -> str:
    """What is wrong with a result that came without an error."""
    if name in (
        "cca",
        "svcca",
        "pwcca",
        "procrustes",
        "rbf_cka",
        "subspace",
        "overlap",
        "linear_cka",
        "over_batches",
    ):
        value = float(result)
        low = -np.inf if name in ("linear_cka", "over_batches", "rbf_cka") else 0
        return "" if low <= value <= 1 + 1e-9 else f"gives {value}"
    if name == "measured":
        return "" if result[0] <= 1 + 1e-9 else f"gives {result[0]}"
    if name == "compare_layers":
        wrong = [row for row in result.layers if not row.note and not row.similarity <= 1 + 1e-9]
        return f"gives {wrong[0].similarity} without a note" if wrong else ""
    if name == "similarity_map":
        wrong = not result.notes and not (result.values <= 1 + 1e-9).all()
        return "gives NaN without a note" if wrong else ""
    if isinstance(result, metalearn.evaluation.Evaluation):
        return "" if np.isfinite(result.mean) else f"gives the mean {result.mean}"
    return ""


def failures(part: str, calls: int) -> dict[tuple[str, str], str]:
    """Each way in which one of so many calls failed, with the shortest line that shows it."""
    shortest: dict[tuple[str, str], str] = {}

    @settings(
        max_examples=calls,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(lines(part))
    def attempt(line: str) -> None:
        wrong = failure(line)
        if wrong and len(line) < len(shortest.get(wrong, line + " ")):
            shortest[wrong] = line

    attempt()
    return shortest


@pytest.mark.parametrize("part", CALLS)
def test_calls_give_a_number_or_say_what_is_wrong(part: str) -> None:
    assert (
        failures(part, 10 if part == "transfer" else 40) == {}
    )  # networks of torchvision take long to draw


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stack(None)", "episodes=None is a NoneType; give a list"),
        ("stack('omniglot')", "episodes='omniglot' is a str; give a list"),
        ("stack([tasks().support])", "task 0 is a Examples; give an Episode"),
        ("unstack(unstack(tasks()))", "the stack of tasks is a list; give an Episode"),
        (
            "learn(MAML, network(), None, 'forward')",
            "the stack of tasks is a NoneType; give an Episode",
        ),
        (
            "learn(MAML, network(), FewShot(data_set(), 3, 1, 1, 2), 'forward')",
            "the stack of tasks is a FewShot",
        ),
        ("MLP(1, -1)", "outputs=-1 must be at least 1"),
        ("MLP(10**20, 1)", "inputs=100000000000000000000 does not fit 64 bits"),
        ("MLP(1, 1, hidden=3)", "hidden=3 is a int; give a list, such as (40, 40)"),
        ("MLP(1, 1, hidden=(1.5,))", "hidden[0]=1.5 is a float; it must be a whole number"),
        ("Conv4(5, size='28')", "size='28' is a str; it must be a whole number"),
        ("ResNet12(5, widths=())", "widths is empty; give the channels of each block"),
        (
            "LabelledImages(None, None)",
            "images must be a tensor of uint8 (n, channels, height, width), not a NoneType",
        ),
        (
            "LabelledImages(matrix((4, 1, 2, 2), 'uint8', 'zeros'), None)",
            "labels=None is a NoneType; give a list",
        ),
        ("glyphs({})", "split={} is not one of train, validation, test"),
        ("frozen_transformer(nn.Identity())", "Identity has no normalisation layer to train"),
        (
            "trained(nn.Linear(4, 3), data_set(), data_set())",
            "the model Linear cannot take its input, torch.float32 of 18 x 1 x 6 x 6",
        ),
        (
            "learn(MAML, network(), tasks(), 'adapt', loss=F.mse_loss)",
            "the loss cannot take outputs of (6, 3) and targets of (6,)",
        ),
        (
            "learn(MAML, network(), tasks(), 'between', loss=F.mse_loss)",
            "the loss cannot take outputs of (6, 3) and targets of (6,)",
        ),
        (
            "learn(MAML, network('conv'), tasks(), 'between', lr=0.0)",
            "layer '0' (Conv2d) cannot take its input, torch.float32 of 6 x 4",
        ),
        (
            "learn(MAML, network('recurrent'), tasks(1, shape=(1, 6, 6)), 'adapt')",
            "layer '0' (LSTM) cannot take its input",
        ),
        ("learn(MAML, network('norm'), tasks(1, 1, 1), 'adapt')", "keeps running statistics"),
        (
            "learn(BOIL, network(), tasks(0), 'reuse')",
            "episodes holds no tasks; pass at least 20",
        ),
        (
            "learn(BOIL, network(), tasks(0), 'between')",
            "episodes holds no tasks; pass at least 20",
        ),
        (
            "learn(MetaSGD, network(), tasks(2, 1, 0), 'reuse')",
            "set is empty; give at least one example",
        ),
        (
            "learn(MAML, network(), tasks(2, 1, 0), 'between')",
            "set is empty; give at least one example",
        ),
    ],
)
def test_what_is_wrong_is_named(line: str, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        eval(line, NAMES)


def test_a_loss_that_fails_is_named_in_every_way_of_running() -> None:
    for execution in ("loop", "threads", "vectorized"):
        with pytest.raises(ValueError, match="the loss cannot take outputs"):
            learn(
                metalearn.MAML, network(), tasks(), "forward", loss=F.mse_loss, execution=execution
            )


@pytest.mark.slow
@pytest.mark.parametrize("part", CALLS)
def test_many_calls_give_a_number_or_say_what_is_wrong(part: str) -> None:
    assert failures(part, 1000) == {}


if __name__ == "__main__":
    if not sys.argv[1].isdigit():
        sys.exit(repr(eval(sys.argv[1], NAMES)))
    for part in sys.argv[2:] or CALLS:
        by_file = defaultdict(list)
        for (where, wrong), line in failures(part, int(sys.argv[1])).items():
            by_file[where.split(":")[0]].append(f"- {where}: {wrong}\n  `{line}`")
        print(f"\n# {part}: {sum(map(len, by_file.values()))} ways to fail in {sys.argv[1]} calls")
        for file, found in sorted(by_file.items()):
            print(f"\n## {file}\n", *sorted(found), sep="\n")
