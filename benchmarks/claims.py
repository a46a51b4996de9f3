"""The numbers of the pages' sentences, computed from the rows that they rest on.

    python -m benchmarks.claims         # print them

A sentence with numbers is followed by a comment, `<!-- claim NAME -->`. The function of that name
here gives its numbers, as printed and in the order of the sentence; the two are compared by
`tests/benchmarks/test_claims.py`. A sentence reaches back to the comment before it, or to the start
of its paragraph.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from metalearn.analysis import Estimate, linear_cka

from .harness.rows import RESULTS, Row, load, run_benchmark
from .pages import (
    block_structure,
    costs,
    disagreement,
    dynamics,
    few_shot,
    forgetting,
    frozen_transformers,
    init_strategies,
    omniglot_splits,
    one_shot,
    pointer_values,
    reinforcement,
    reuse,
    speed,
    theory,
    vit_vs_cnn,
)
from .papers.figures import ACCURACY, FINN, RAGHU
from .tables import HERE
from .tables import PAGES as RESULT_PAGES

PAGES = (HERE.parent / "README.md", *RESULT_PAGES)
CPU = "cpu, 2 threads"
H100 = "NVIDIA H100 80GB HBM3, 8 threads"
SPLITS = (None, "vinyals")  # of the first table on accuracy, other data sets having none
Claim = Callable[[], list[str]]
CLAIMS: dict[str, Claim] = {}


def claim(function: Claim) -> Claim:
    """Register a claim under the name of its function."""
    CLAIMS[function.__name__] = function
    return function


def claims() -> None:
    """Print the numbers of every claim."""
    for name, numbers in CLAIMS.items():
        print(f"{name}: {', '.join(numbers())}")


def sentences(text: str) -> Iterator[tuple[str, str]]:
    """(name, sentence) of every claim of a page; a table ends a paragraph."""
    for paragraph in re.split(r"\n\s*\n|<!-- end -->|<!-- table \w+ -->", text):
        parts = re.split(r"<!-- claim (\w+) -->", paragraph)
        # sentence, name, sentence, name, ..., the rest
        yield from zip(parts[1::2], parts[::2], strict=False)


def missing(sentence: str, numbers: Iterable[str]) -> str:
    """The first of the numbers that the sentence does not have in this order, or "".

    Example:
        >>> missing("it costs 17.7 ± 1.1 points", ["17.7", "1.1"])
        ''
        >>> missing("it costs 17.7 points", ["7.7"])
        '7.7'
    """
    place = 0
    text = " ".join(sentence.split())
    for number in numbers:
        # Not within another number: neither 7.7 in 17.7 or -7.7, nor 17 in 17.7 or 17,000.
        pattern = rf"(?<![\d.,+-]){re.escape(number)}(?![.,]?\d)"
        match = re.compile(pattern).search(text, place)
        if match is None:
            return number
        place = match.end()
    return ""


# How numbers are printed


def points(share: float, digits: int = 1) -> str:
    """A share in per cent."""
    return f"{100 * share:.{digits}f}"


def in_points(estimate: Row, digits: int = 1) -> list[str]:
    """A mean and its interval in percentage points."""
    return [points(estimate["mean"], digits), points(estimate["interval"], digits)]


def between(values: Iterable[float], digits: int) -> list[str]:
    """The smallest and the largest, as printed."""
    known = list(values)
    assert all(map(math.isfinite, known))
    return [f"{value:.{digits}f}" for value in (min(known), max(known))]


# Rows


def matching(rows: Iterable[Row], **values: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if values.items() <= row.items()]


def few_shot_run(dataset: str, algorithm: str, preset: str, seed: int = 0) -> Row:
    """The longest run of an algorithm on 5-way 1-shot tasks of 15 queries a class."""
    problem = {"dataset": dataset, "ways": 5, "queries": 15, "seed": seed}
    rows = matching(few_shot_rows(), **problem, algorithm=algorithm, preset=preset)
    return max(rows, key=lambda row: row["trained_steps"])


def few_shot_rows() -> list[Row]:
    """The newest row of each run on the splits of the first table."""
    return [row for row in few_shot.newest() if row["data"].get("protocol") in SPLITS]


def plus_plus_row() -> Row:
    """MAML++ on Finn et al.'s characters."""
    (row,) = matching(few_shot.load(few_shot.RESULTS), algorithm="maml++", protocol="finn")
    return row


def long_runs(algorithm: str) -> list[Row]:
    """The runs on Omniglot 5-way of 10,000 steps and more."""
    problem = {"dataset": "omniglot", "ways": 5, "queries": 15}
    rows = matching(few_shot_rows(), **problem, algorithm=algorithm)
    return [row for row in rows if row["trained_steps"] >= 10_000]


def published(dataset: str, algorithm: str, source: str) -> str:
    """The accuracy that a paper has for 5-way 1-shot tasks."""
    figures = ACCURACY[dataset, 5, 1, algorithm]
    (mean,) = [mean for mean, _, _, paper in figures if paper == source]
    return f"{mean:g}"


def reuse_row(experiment: str, dataset: str, preset: str, algorithm: str = "maml") -> Row:
    """The row of an experiment on feature reuse for one learner."""
    rows = reuse.newest(experiment, "algorithm")
    (row,) = matching(rows, dataset=dataset, preset=preset, algorithm=algorithm)
    return row


def body_cost(dataset: str, preset: str) -> tuple[str, str, str]:
    """The cost of freezing MAML's body for one network, its interval, and how many tasks."""
    (run,) = reuse_row("freezing", dataset, preset)["runs"]
    cost = run["rows"][-1]["cost"]
    return points(cost["mean"]), points(cost["interval"]), str(run["tasks"])


def profiles(dataset: str, algorithm: str, preset: str) -> list[Row]:
    """The rows of what the inner loop changes, a seed each."""
    for group in reuse.grouped("profile", "algorithm"):
        if matching(group, dataset=dataset, algorithm=algorithm, preset=preset):
            return group
    raise LookupError(f"there is no profile of {algorithm} on {dataset} under {preset}")


def timeline(dataset: str, preset: str) -> list[Row]:
    """MAML's rows at points of training, one seed."""
    firsts = [group[0] for group in reuse.grouped("timeline", "algorithm", "step")]
    return matching(firsts, dataset=dataset, preset=preset, algorithm="maml")


def cka(row: Row, name: str) -> float:
    """Debiased CKA of a layer before and after adaptation."""
    ((layer, _),) = reuse.of_layer([row], name)
    return float(layer["cka"]["mean"])


def decomposition_row(dataset: str, ways: int, algorithm: str) -> Row:
    """The newest row that splits an accuracy into the parts of head and body."""
    rows = reuse.newest("decomposition", "algorithm")
    return matching(rows, dataset=dataset, ways=ways, algorithm=algorithm)[-1]


def conditions(row: Row) -> dict[str, Row]:
    """The conditions of a decomposition by name."""
    return {part["name"]: part for part in row["pooled"]["decomposition"]["conditions"]}


def worth(row: Row) -> list[str]:
    """The worth of adapting the body."""
    return in_points(row["pooled"]["decomposition"]["worth"])


def resnets() -> tuple[Row, Row]:
    """The comparisons of ResNet-18 with 500 and with all radiographs."""
    few, whole = (row for row in init_strategies.newest() if row["network"] == "resnet18")
    return few, whole


def test_of(tests: Iterable[Row], name: str) -> Row:
    """The test of one start."""
    (test,) = [test for test in tests if test["strategy"] == name]
    return test


def steps(row: Row, name: str) -> float:
    """Mean steps of a start to the threshold."""
    return float(test_of(row["steps_tests"], name)["estimate"]["mean"])


def timed(where: str, *, images: bool) -> list[Row]:
    """The times of a meta-gradient in one place, of images or of the sinusoid."""
    rows = [row for row in speed.newest("time") if speed.place(row) == where]
    return [row for row in rows if (row["setting"] in speed.IMAGES) == images]


def learn2learn_ratios(where: str, *, images: bool) -> list[float]:
    """learn2learn's times as multiples of ours."""
    rows = [row for row in timed(where, images=images) if "learn2learn" in row["seconds"]]
    return [speed.ratio(row, "learn2learn") for row in rows]


def streamed_distance() -> list[str]:
    """The largest distance of a streamed measure from that in memory, to a condition of 1e5."""
    (row,) = [row for row in load(costs.MEASURES) if "size" in row]
    distances: list[float] = []
    for condition in ("1e0", "1e1", "1e2", "1e3", "1e4", "1e5"):
        distances += row["apart"][condition].values()
    return [f"{max(distances):.0e}", "1e5"]


def map_ratios(kind: str, library: str) -> dict[int, float]:
    """How many times as long as ours a library takes, by batch: the newest row of each."""
    rows = [row for row in load(costs.SIMILARITY_MAP) if row["figure"].startswith(f"time, {kind}")]
    return {row["batch"]: row["median_ratios"][library] for row in rows}


# README.md


@claim
def noise() -> list[str]:
    """Plain CKA of independent noise at the size of Conv4's second block."""
    features = 64 * 7 * 7
    noise = torch.randn(2, 75, features, generator=torch.Generator().manual_seed(0))
    score = linear_cka(noise[0], noise[1], debiased=False)
    return [f"{score:.2f}", "75", f"{features:,}"]


@claim
def streaming() -> list[str]:
    """The largest distance of a streamed measure from that in memory, to a condition of 1e5."""
    return streamed_distance()


@claim
def anil_against_maml() -> list[str]:
    """ANIL minus MAML on Omniglot 5-way after 10,000 steps and more, and its time."""
    below = [-100 * row["minus"]["mean"] for row in long_runs("anil")]
    seconds = {}
    for row in timed(CPU, images=True):
        seconds[row["setting"], row["algorithm"]] = speed.median(row, "metalearn")
    shares = [seconds[name, "anil"] / seconds[name, "maml"] for name in speed.IMAGES]
    return [*between(below, 1), str(len(below)), *between(shares, 2)]


@claim
def freezing_mini_imagenet() -> list[str]:
    """The cost of freezing MAML's body on miniImageNet, over all test tasks."""
    run = few_shot_run("mini-imagenet", "maml", "raghu2020")
    paper = published("mini-imagenet", "maml", RAGHU)
    return [points(run["accuracy"]), paper, *body_cost("mini-imagenet", "raghu2020")]


@claim
def freezing_omniglot() -> list[str]:
    """MAML's last block on Omniglot, after the whole of MAML's protocol."""
    (row,) = profiles("omniglot", "maml", "finn2017")
    trained = few_shot_run("omniglot", "maml", "finn2017")["trained_steps"]
    anil = few_shot_run("omniglot", "anil", "finn2017")["minus"]
    block4 = f"{cka(row, 'block4'):.2f}"
    return [f"{trained:,}", block4, *body_cost("omniglot", "finn2017"), *in_points(anil)]


@claim
def share_of_the_body() -> list[str]:
    """The worth of the body and its cost in whole points, at five ways."""
    _, glyphs, _, glyphs_cost, _, omniglot, _, omniglot_cost, _ = map(float, worth_at_five_ways())
    return [f"{value:.0f}" for value in (glyphs, glyphs_cost, omniglot, omniglot_cost)]


@claim
def transfusion_steps() -> list[str]:
    """Steps to the threshold of ResNet-18 from CIFAR-10, with 500 and with all radiographs."""
    few, whole = resnets()
    numbers = ["500", *(f"{steps(few, name):.0f}" for name in ("full", "random"))]
    numbers += [f"{whole['images']:,}"]
    numbers += [f"{steps(whole, name):.0f}" for name in ("full", "random")]
    return [*numbers, str(len(few["seeds"]))]


@claim
def transfusion_first_layers() -> list[str]:
    """Steps to the threshold with the first convolution and norm alone."""
    return [f"{steps(row, 'through bn1'):.0f}" for row in resnets()]


@claim
def transfusion_scale() -> list[str]:
    """How much sooner than random Mean-Var reaches the threshold, and p after Holm."""
    tests = [test_of(row["steps_tests"], "mean_var") for row in resnets()]
    assert {test["answer"] for test in tests} == {"no difference shown"}
    numbers = []
    for test in tests:
        difference = test["paired"]["difference"]
        numbers += [f"{-difference['mean']:.1f}", f"{difference['interval']:.1f}"]
    return [*numbers, *(f"{test['adjusted']:.2g}" for test in tests)]


@claim
def transfusion_ends() -> list[str]:
    """The final score of full against random's."""
    tests = [test_of(row["final_tests"], "full") for row in resnets()]
    assert {test["answer"] for test in tests} == {"no difference shown"}
    numbers = []
    for test in tests:
        numbers += in_points(test["paired"]["difference"], 2)
    return numbers


@claim
def learn2learn_cpu() -> list[str]:
    """learn2learn's time as a multiple of ours on a CPU: images, sinusoid, compiled."""
    return [
        *between(learn2learn_ratios(CPU, images=True), 1),
        *between(learn2learn_ratios(CPU, images=False), 0),
        *between(learn2learn_ratios(f"{CPU}, compiled", images=False), 0),
    ]


@claim
def learn2learn_gpu() -> list[str]:
    """The same on a GPU, and the largest difference of the gradients anywhere."""
    differences: list[float] = []
    for row in speed.newest("gradients"):
        sides = row["apart"]["float64"].items()
        differences += [value for name, value in sides if name.startswith("learn2learn")]
    return [
        *between(learn2learn_ratios(H100, images=True), 0),
        *between(learn2learn_ratios(H100, images=False), 0),
        f"{max(differences):.0e}",
    ]


# benchmarks/README.md


@claim
def overview_maml() -> list[str]:
    """MAML's accuracy under the papers' presets, beside theirs."""
    omniglot = few_shot_run("omniglot", "maml", "finn2017")
    mini = few_shot_run("mini-imagenet", "maml", "raghu2020")
    assert mini["trained_steps"] < 30_000  # in words: fewer steps than the papers'
    papers = [published(name, "maml", FINN) for name in ("omniglot", "mini-imagenet")]
    ours = [points(row["accuracy"]) for row in (omniglot, plus_plus_row(), mini)]
    return [ours[0], papers[0], ours[1], ours[2], papers[1]]


@claim
def overview_one_shot() -> list[str]:
    """The errors on Lake et al.'s runs."""
    rows = {row["algorithm"]: row for row in load(one_shot.RESULTS)}
    assert {len(row["seeds"]) for row in rows.values()} == {1}  # in words: one seed
    (trained,) = {row["trained_steps"][0] for row in rows.values()}
    numbers = [f"{trained:,}"]
    for name in ("protonet", "anil"):
        numbers += [points(rows[name]["error"]), points(rows[name]["interval"])]
    return numbers


@claim
def overview_worth() -> list[str]:
    """The worth of MAML's body at five ways."""
    rows = [decomposition_row(name, 5, "maml") for name in ("glyphs", "omniglot")]
    (seeds,) = {len(row["seeds"]) for row in rows}
    return [str(seeds), *worth(rows[0]), *worth(rows[1])]


@claim
def overview_reuse() -> list[str]:
    """The cost of freezing the body of the longest trained networks."""
    run = few_shot_run("mini-imagenet", "maml", "raghu2020")
    mini_cost = body_cost("mini-imagenet", "raghu2020")[:2]
    trained = f"{few_shot_run('omniglot', 'maml', 'finn2017')['trained_steps']:,}"
    return [points(run["accuracy"]), *mini_cost, trained, *body_cost("omniglot", "finn2017")[:2]]


@claim
def overview_streaming() -> list[str]:
    """The largest distance of a streamed measure from that in memory, to a condition of 1e5."""
    return streamed_distance()


@claim
def overview_maps() -> list[str]:
    """The other libraries' times as multiples of ours, over all sizes on two threads."""
    rows = [row["median_ratios"] for row in costs.map_times() if row["threads"] == 2]
    # torch_cka, then pytorch-cka
    numbers = between([row["torch_cka"] for row in rows], 1)
    return [*numbers, *between([row["pytorch-cka"] for row in rows], 1)]


@claim
def overview_speed() -> list[str]:
    """learn2learn's meta-gradient as a multiple of ours, images, on a CPU and on a GPU."""
    numbers = between(learn2learn_ratios(CPU, images=True), 1)
    return [*numbers, *between(learn2learn_ratios(H100, images=True), 0)]


@claim
def overview_forgetting() -> list[str]:
    """What is forgotten, and the recovery by the upper and the lower half."""
    return [*forgetting_depth()[:2], *forgetting_resets()[:2]]


@claim
def overview_pointers() -> list[str]:
    """The sum of pointed values with 100,000 examples: tests, then windows left out."""
    row = pointer_row(1, "sum", 100_000)
    return [points(row["iid"]), points(row["adversarial"])]


@claim
def overview_disagreement() -> list[str]:
    """AUC via the votes and directly, last layer; directly and via where a feature is hidden."""
    direct, via = layer_aucs()[-1]
    cases = [row["cases"][0]["contest"] for row in disagreement.rows_of("hidden")]
    hidden = auc_means(cases)
    return [f"{via:.3f}", f"{direct:.3f}", *(f"{auc:.2f}" for auc in hidden)]


@claim
def overview_starts() -> list[str]:
    """Steps of three starts to the threshold, with 500 radiographs."""
    # In words: no final score differs, nor do Mean-Var's steps.
    few, _ = resnets()
    assert {test["answer"] for test in few["final_tests"][1:]} == {"no difference shown"}
    assert test_of(few["steps_tests"], "mean_var")["answer"] == "no difference shown"
    return [f"{steps(few, name):.1f}" for name in ("through bn1", "full", "random")]


@claim
def overview_finetuning() -> list[str]:
    """The ratio to a plain loop, and how many runs share the memory."""
    rows = {row["figure"].split(" ")[0]: row for row in load(RESULTS / "finetuning.jsonl")}
    assert abs(rows["peak"]["ratio"] - 1) < 0.01  # in words: the memory of 2
    runs = [str(2 * seeds) for seeds in reversed(rows["peak"]["seeds"])]
    return [f"{rows['time']['ratio']:.3f}", *runs]


@claim
def overview_race() -> list[str]:
    """How many fewer and more outer steps ours makes in the same seconds, in per cent."""
    ends = {}
    for row in costs.races()[0]:
        ends[row["algorithm"], row["side"]] = row["points"][-1]["steps"]
    names = [name for name, side in ends if side == "learn2learn"]
    more = [ends[name, "metalearn"] / ends[name, "learn2learn"] - 1 for name in names]
    assert min(more) < 0 < max(more)
    return [f"{-100 * min(more):.0f}", f"{100 * max(more):.0f}"]


@claim
def overview_growth() -> list[str]:
    """Memory of one task and of 32, and the speed of two processes."""
    newest = {(row["changed"], row["value"]): row for row in load(costs.SCALE)}
    sizes = [costs.memory(newest["tasks", count], "peak_bytes") for count in (1, 32)]
    faster = newest["processes", 2]["times_faster"]
    return [*(text.removesuffix(" MiB") for text in sizes), f"{faster:.2f}"]


@claim
def overview_engine() -> list[str]:
    """The plain loop's time as a multiple of ours."""
    rows = [
        row for row in load(RESULTS / "engine.jsonl") if row["figure"].startswith("time of one")
    ]
    return [f"{rows[-1]['median_ratio']:.2f}"]


@claim
def overview_blocks() -> list[str]:
    """The largest first components over seeds."""
    return block_shares()[:2]


@claim
def overview_vit() -> list[str]:
    """The range of the heads, and the ranks of the own patch."""
    return [*vit_heads(), *vit_places()]


@claim
def overview_settling() -> list[str]:
    """Rank correlations of depth and similarity, and the heads of both groups."""
    return [*settling_ranks(), *labels_groups()[:2]]


# The pages


@claim
def maml_over_anil() -> list[str]:
    """The time of a meta-gradient on miniImageNet and a GPU, MAML's and ANIL's."""
    rows = [row for row in timed(H100, images=True) if row["setting"] == "mini-imagenet"]
    seconds = {row["algorithm"]: speed.median(row, "metalearn") for row in rows}
    milliseconds = [f"{1000 * seconds[name]:.1f}" for name in ("maml", "anil")]
    return [f"{seconds['maml'] / seconds['anil']:.1f}", *milliseconds]


@claim
def second_seed() -> list[str]:
    """Accuracy and minutes of the second seed."""
    runs = [few_shot_run("omniglot", name, "quick", seed=1) for name in ("maml", "anil")]
    (minutes,) = {f"{run['training_seconds'] / 60:.0f}" for run in runs}
    return [*between([100 * run["accuracy"] for run in runs], 1), minutes]


@claim
def maml_plus_plus() -> list[str]:
    """MAML++ on Finn et al.'s characters, beside their figure for MAML."""
    row = plus_plus_row()
    return [
        *in_points({"mean": row["accuracy"], "interval": row["interval"]}, 2),
        f"{row['queries']}",
        f"{row['trained_steps']:,}",
        f"{row['meta_batch']}",
        published("omniglot", "maml", FINN),
    ]


@claim
def finn_split() -> list[str]:
    """The split drawn at random, minus that of Vinyals et al."""
    gains = [omniglot_splits.difference("finn", steps) for steps in omniglot_splits.points()]
    assert gains[0].low > 0 and gains[1].low > 0 > gains[2].low
    seeds = str(len(omniglot_splits.rows_at("finn", omniglot_splits.points()[-1])))
    figures = [in_points({"mean": gain.mean, "interval": gain.interval}) for gain in gains]
    steps = [f"{steps:,}" for steps in omniglot_splits.points()]
    return [*figures[0], steps[0], *figures[1], steps[1], seeds, steps[2], *figures[2]]


@claim
def lake_split() -> list[str]:
    """The split of Lake et al., minus that of Vinyals et al."""
    last = omniglot_splits.points()[-1]
    loss = omniglot_splits.difference("lake", last)
    seeds = str(len(omniglot_splits.rows_at("lake", last)))
    return [*in_points({"mean": loss.mean, "interval": loss.interval}), f"{last:,}", seeds]


@claim
def finn_tests() -> list[str]:
    """The same networks on Finn et al.'s test tasks and on ours."""
    last = omniglot_splits.points()[-1]
    theirs = omniglot_splits.rows_at("finn", last, "turned characters, one query a class")
    ours = omniglot_splits.rows_at("vinyals", last)
    means = [sum(row["accuracy"] for row in rows) / len(rows) for rows in (theirs, ours)]
    return [points(means[0]), points(means[1]), str(ours[0]["queries"])]


@claim
def bfloat16() -> list[str]:
    """Accuracy after 1,200 steps in bfloat16 beside float32."""
    rows = matching(few_shot_rows(), trained_steps=1200)
    numbers = ["1,200"]
    for algorithm in ("maml", "anil"):
        for precision in ("bfloat16", "float32"):
            (row,) = matching(rows, algorithm=algorithm, precision=precision)
            numbers += [points(row["accuracy"], 2), points(row["interval"], 2)]
    return numbers


@claim
def finn_rises() -> list[str]:
    """Test accuracy of MAML's protocol at points of training, and its time."""
    seconds = few_shot_run("omniglot", "maml", "finn2017")["training_seconds"]
    assert 11.25 < seconds / 60 < 11.75  # in words: 11 and a half minutes
    numbers = []
    for row in timeline("omniglot", "finn2017"):
        if row["step"] != 18_200:
            numbers += [points(row["evaluation"]["mean"]), f"{row['step']:,}"]
    return numbers


@claim
def analysed_networks() -> list[str]:
    """The miniImageNet networks that are analysed."""
    quick = [few_shot_run("mini-imagenet", name, "quick") for name in ("maml", "anil")]
    papers = [few_shot_run("mini-imagenet", name, "raghu2020") for name in ("maml", "anil")]
    boil = few_shot_run("mini-imagenet", "boil", "boil2021")
    nil = few_shot_run("mini-imagenet", "nil-train", "raghu2020")
    numbers = [points(row["accuracy"]) for row in quick]
    for row in papers:
        numbers += [points(row["accuracy"]), f"{row['trained_steps']:,}"]
    return [*numbers, points(boil["accuracy"]), points(nil["accuracy"])]


@claim
def reuse_mini_imagenet() -> list[str]:
    """CKA of MAML's blocks at all points of training."""
    rows = timeline("mini-imagenet", "raghu2020")
    assert len(rows) == 4
    lower = [cka(row, "block1") for row in rows] + [cka(row, "block2") for row in rows]
    numbers = [f"{min(lower):.2f}"]
    for name in ("block3", "block4"):
        numbers += between([cka(row, name) for row in rows], 2)
    return numbers


@claim
def freezing_at_points() -> list[str]:
    """The cost of freezing MAML's body on miniImageNet, at the end and at points of training."""
    rows = timeline("mini-imagenet", "raghu2020")
    numbers = list(body_cost("mini-imagenet", "raghu2020"))
    for row in rows:
        numbers += in_points(row["reuse"]["freezing"]["rows"][-1]["cost"])
    return [*numbers, str(rows[0]["analysed_tasks"])]


@claim
def regimes_rank() -> list[str]:
    """The order of bodies under NIL on miniImageNet."""
    rows = reuse.newest("regimes", "algorithm")
    accuracies = {
        row["algorithm"]: row["accuracy"]["mean"]
        for row in rows
        if row["dataset"] == "mini-imagenet"
    }
    order = sorted(accuracies, key=accuracies.__getitem__, reverse=True)
    assert set(order[:2]) == {"maml", "anil"}
    return [name.replace("nil-train", "NIL training") for name in order[2:]]


@claim
def boil_moves() -> list[str]:
    """CKA of BOIL's last block on miniImageNet."""
    (row,) = profiles("mini-imagenet", "boil", "raghu2020")
    return [f"{cka(row, 'block4'):.2f}"]


@claim
def rapid_after_minutes() -> list[str]:
    """MAML's last block on Omniglot after 1,200 steps, three seeds."""
    row = reuse_row("freezing", "omniglot", "quick")
    cost = row["rows"][0]["accuracy"]["mean"] - row["rows"][-1]["accuracy"]["mean"]
    (trained,) = {run["trained_steps"] for run in row["trained"]["maml"]}
    seeds = profiles("omniglot", "maml", "quick")
    block4 = statistics.fmean(cka(seed, "block4") for seed in seeds)
    return [f"{trained:,}", f"{block4:.2f}", points(cost)]


@claim
def rapid_after_all() -> list[str]:
    """MAML's last block on Omniglot after the whole protocol, one seed."""
    (row,) = profiles("omniglot", "maml", "finn2017")
    trained = few_shot_run("omniglot", "maml", "finn2017")["trained_steps"]
    analysed = row["reuse"]["freezing"]["rows"][-1]["cost"]
    accuracies = row["reuse"]["accuracies"]
    numbers = [f"{trained:,}", f"{cka(row, 'block4'):.2f}", *body_cost("omniglot", "finn2017")]
    numbers += [*in_points(analysed), str(row["analysed_tasks"])]
    for name in ("headless_before", "headless_after"):
        numbers.append(points(accuracies[name]["mean"]))
    return numbers


@claim
def accurate_without() -> list[str]:
    """ANIL and NIL minus MAML on Omniglot, after the whole protocol."""
    numbers = []
    for name in ("anil", "nil"):
        minus = few_shot_run("omniglot", name, "finn2017")["minus"]
        numbers += [f"{100 * minus['mean']:+.1f}", points(minus["interval"])]
    return numbers


@claim
def similarity_map_batches() -> list[str]:
    """From which batch on torch_cka takes 8 times as long, 20 for one network; pytorch-cka's."""
    two = map_ratios("two networks", "torch_cka")
    single = map_ratios("one against itself", "torch_cka")
    eight = min(batch for batch, ratio in two.items() if ratio >= 8)
    twenty = min(batch for batch, ratio in single.items() if ratio >= 20)
    assert eight == twenty  # in words: both
    other = map_ratios("one against itself", "pytorch-cka")
    large = between([ratio for batch, ratio in other.items() if batch >= 256], 2)
    return ["8", "20", str(eight), f"{other[64]:.2f}", "64", *large, "256"]


@claim
def small_networks() -> list[str]:
    """Random's steps to the threshold of the small networks, and the gain of CBR-Small."""
    small = ("cbr_tiny", "cbr_small", "conv4")
    rows = {row["network"]: row for row in init_strategies.newest() if row["network"] in small}
    for row in rows.values():
        # In words: no start can be shown to be faster.
        assert "lower" not in {test["answer"] for test in row["steps_tests"]}
    gain = test_of(rows["cbr_small"]["final_tests"], "full")
    assert gain["answer"] == "higher"
    random = between([steps(row, "random") for row in rows.values()], 0)
    return [*random, points(gain["paired"]["difference"]["mean"], 2)]


def race_seconds() -> str:
    """How long each side trained in the newest races."""
    return f"{min(row['points'][-1]['seconds'] for row in costs.races()[0]):.0f}"


def race_end(algorithm: str) -> Row:
    """Where the newest race of ours ended."""
    (row,) = matching(costs.races()[0], algorithm=algorithm, side="metalearn")
    end: Row = row["points"][-1]
    return end


@claim
def unequal_tasks() -> list[str]:
    """The time of an image in padded stacks: the slowest with convolutions, and on features."""
    newest = {}
    for row in costs.load(costs.FOLDER / "engine.jsonl"):
        if "ratio_per_example" in row:
            newest[row["figure"]] = row["ratio_per_example"]
    on_features = [ratio for figure, ratio in newest.items() if "on features" in figure]
    images = [ratio for figure, ratio in newest.items() if "Conv4" in figure]
    return [f"{max(images):.2f}", *between(on_features, 1)]


@claim
def race_of_learners() -> list[str]:
    """The accuracy of our learners after the same seconds."""
    order = ("maml++", "r2d2", "protonet", "protomaml", "anil", "maml", "fomaml")
    return [race_seconds(), *(points(race_end(name)["accuracy"]) for name in order)]


@claim
def minutes_to_the_aim() -> list[str]:
    """ProtoNet and R2-D2 under the preset `quick`, and how long they trained."""
    numbers = []
    for name in ("protonet", "r2d2"):
        row = few_shot_run("omniglot", name, "quick")
        numbers += in_points({"mean": row["accuracy"], "interval": row["interval"]}, 2)
        numbers.append(f"{row['training_seconds'] / 60:.1f}")
    return numbers


@claim
def same_seconds() -> list[str]:
    """Outer steps in the same seconds, of the newest turns."""
    made = {}
    for row in costs.races()[0]:
        made[row["side"], row["algorithm"]] = row["points"][-1]["steps"]
    numbers = [race_seconds()]
    for side in ("metalearn", "learn2learn"):
        numbers += [str(made[side, name]) for name in ("maml", "fomaml", "anil")]
    return numbers


@claim
def worth_at_five_ways() -> list[str]:
    """The worth of the body at five ways, and the cost of freezing it."""
    numbers = []
    for dataset in ("glyphs", "omniglot"):
        row = decomposition_row(dataset, 5, "maml")
        cost = conditions(row)["body frozen, head by its own steps"]["cost"]
        numbers += [*worth(row), *in_points(cost)]
    return [str(len(row["seeds"])), *numbers]


@claim
def worth_at_twenty_ways() -> list[str]:
    """The same at 20 ways, after how many steps and at which accuracy."""
    row = decomposition_row("omniglot", 20, "maml")
    (trained,) = {run["trained_steps"] for run in row["trained"]["maml"]}
    parts = conditions(row)
    accuracy = points(parts["nothing frozen"]["score"]["mean"])
    cost = in_points(parts["body frozen, head by its own steps"]["cost"])
    return ["20", str(trained), accuracy, *worth(row), *cost]


@claim
def worth_of_boil() -> list[str]:
    """The worth of adapting BOIL's body on glyphs."""
    return worth(decomposition_row("glyphs", 5, "boil"))


@claim
def worth_on_mini_imagenet() -> list[str]:
    """Accuracy on miniImageNet, and the worth of adapting the body there, of MAML and of BOIL."""
    numbers = []
    for algorithm in ("maml", "boil"):
        row = decomposition_row("mini-imagenet", 5, algorithm)
        accuracy = conditions(row)["nothing frozen"]["score"]["mean"]
        numbers += [points(accuracy), *worth(row)]
    return numbers


@claim
def queries_at_test() -> list[str]:
    """Accuracy of the same networks on Finn et al.'s characters, by the queries a class."""
    numbers = []
    for queries in (1, 15):
        seeds = {}
        for row in load(few_shot.RESULTS):
            kind = (row["dataset"], row["ways"], row["algorithm"], row["queries"])
            finn = row["data"].get("protocol") == "finn"
            if finn and kind == ("omniglot", 5, "maml", queries):
                seeds[row["seed"]] = row["accuracy"]
        accuracies = list(seeds.values())
        spread = statistics.stdev(accuracies)
        numbers += [str(queries), points(statistics.fmean(accuracies)), points(spread)]
    return numbers


def seeded_networks() -> list[Row]:
    """The networks of the benchmark of block structure that were trained from random weights."""
    rows = matching(block_structure.networks(), start="random")
    return [row for row in rows if "strength" not in row]


@claim
def block_shares() -> list[str]:
    """The largest first components over seeds, and that of the published ResNet-20."""
    rows = seeded_networks()
    # In words: no network has a block.
    assert not any(row["blocks"] for row in block_structure.networks())
    (published,) = matching(block_structure.networks(), start="published")
    return [*between((row["share"] for row in rows), 2), f"{published['share']:.2f}"]


@claim
def block_dominant() -> list[str]:
    """How much the mean similarity changes without the dominant images."""
    changes = []
    for row in seeded_networks():
        maps = row["maps"]
        changes.append(maps["without the dominant images"] - maps["all images"])
    assert min(changes) > -0.0005  # in words: it does not fall
    return [f"{max(changes):.3f}"]


@claim
def block_overlap() -> list[str]:
    """The shared dominant images of two seeds."""
    return between((row["overlap"] for row in block_structure.pairs()), 2)


@claim
def block_penalty() -> list[str]:
    """The largest share and the test accuracy of the first seed, without and with the penalty."""
    plain = seeded_networks()[0]
    penalised = [row for row in block_structure.networks() if "strength" in row]
    costs_of = (plain["test_accuracy"] - row["test_accuracy"] for row in penalised)
    return [
        f"{plain['share']:.2f}",
        *between((row["share"] for row in penalised), 2),
        *between((100 * cost for cost in costs_of), 1),
    ]


@claim
def published_resnet20() -> list[str]:
    """The accuracy of the published weights on the JPEG copy."""
    (row,) = matching(block_structure.networks(), start="published")
    return [points(row["test_accuracy"])]


def trained_vit(pool: str) -> Row:
    """The row of a trained transformer."""
    (row,) = matching(vit_vs_cnn.transformers(), pool=pool, trained=True)
    return row


@claim
def vit_heads() -> list[str]:
    """The nearest and the farthest head of the trained transformers, and uniform attention."""
    rows = [trained_vit(pool) for pool in ("class", "mean")]
    distances = []
    for row in rows:
        for heads in row["distances"]["distances"]:
            distances += heads
    return [*between(distances, 1), f"{rows[0]['distances']['uniform']:.1f}"]


@claim
def vit_depths() -> list[str]:
    """The most similar depths of ResNet-20 for both quarters of each trained transformer."""
    numbers = []
    for pool in ("class", "mean"):
        matches = trained_vit(pool)["best_matches"]
        for rows in (
            [row for row in matches if row["depth"] <= 0.25],
            [row for row in matches if row["depth"] >= 0.75],
        ):
            numbers.append(vit_vs_cnn.depth_of(rows).removesuffix(" %"))
    return numbers


@claim
def vit_places() -> list[str]:
    """The rank of the own patch in the last block, with a class token and with a mean."""
    last = [trained_vit(pool)["places"]["layers"][-1] for pool in ("class", "mean")]
    return [f"{row['rank']:.1f}" for row in last]


@claim
def vit_skips() -> list[str]:
    """What the skip connections of one block are worth, in points."""
    worths = []
    for pool in ("class", "mean"):
        row = trained_vit(pool)
        worths += [row["test_accuracy"] - right for right in row["without_skip"].values()]
    return between((100 * worth for worth in worths), 1)


@claim
def settling_ranks() -> list[str]:
    """The rank correlations of depth and similarity to the end, over seeds and steps."""
    values = []
    for row in dynamics.of("settling"):
        values += row["bottom_up"].values()
    return between(values, 2)


def at_step(figure: str, layer: str, step: int) -> list[float]:
    """Similarity of a layer to the end at a step, one for each seed."""
    values = []
    for row in dynamics.of(figure):
        found = row["convergence"]
        values.append(found["values"][found["layers"].index(layer)][found["steps"].index(step)])
    return values


@claim
def settling_layers() -> list[str]:
    """Similarity to the end at step 300, of the first and the last block."""
    return [
        *between(at_step("settling", "block1", 300), 2),
        *between(at_step("settling", "block4", 300), 2),
    ]


@claim
def settling_control() -> list[str]:
    """Similarity of the last block to another seed's end, after the training."""
    values = []
    for row in dynamics.of("settling"):
        found = row["convergence"]
        values.append(found["other"][found["layers"].index("block4")][-1])
    return between(values, 2)


@claim
def labels_groups() -> list[str]:
    """Similarity of the head within both groups, and of the last and the first block."""
    (row,) = dynamics.of("labels")
    groups = {tuple(group["groups"]): group["layers"] for group in row["groups"]}
    numbers = []
    for layer in ("head", "block4", "block1"):
        for name in ("true", "random"):
            numbers.append(f"{groups[name, name][layer]['mean']:.2f}")
    return numbers


@claim
def text_layers() -> list[str]:
    """Similarity of both LSTMs to their end at step 300."""
    lower = between(at_step("text", "lstm1:0", 300), 2)
    # The same for every seed, as printed.
    (upper,) = set(between(at_step("text", "lstm2:0", 300), 2))
    return [*lower, upper]


@claim
def text_states() -> list[str]:
    """Similarity of the second LSTM's states, one step and 16 steps apart."""
    states = [row["by_distance"]["lstm2:0"] for row in dynamics.of("text")]
    far = max(abs(values[16]) for values in states)
    return [*between((values[1] for values in states), 2), f"{far:.2f}"]


def freezing_rows() -> dict[float | None, Row]:
    """The schedules of freeze training by their scale; None freezes nothing."""
    (row,) = dynamics.of("freezing")
    return {schedule["scale"]: schedule for schedule in row["rows"]}


@claim
def freezing_costs() -> list[str]:
    """Share of the time and test accuracy at scale 0.5, and the accuracy without freezing."""
    early, without = freezing_rows()[0.5], freezing_rows()[None]
    accuracies = [points(row["score"]["mean"]) for row in (early, without)]
    return ["0.5", f"{early['share_of_time']:.2f}", *accuracies]


@claim
def freezing_gentle() -> list[str]:
    """Share of the time and test accuracy at scale 1."""
    row = freezing_rows()[1.0]
    return ["1", f"{row['share_of_time']:.2f}", points(row["score"]["mean"])]


def auc_means(contests: Iterable[Row]) -> tuple[float, float]:
    """The AUC direct and via the votes, means over seeds."""
    rows = list(contests)
    direct, via = (
        statistics.mean(row[way]["auc"]["value"] for row in rows) for way in ("direct", "via")
    )
    return direct, via


def layer_aucs() -> list[tuple[float, float]]:
    """The AUC direct and via the votes of every layer."""
    rows = disagreement.rows_of("probes")
    places = range(len(rows[0]["layers"]))
    return [auc_means(row["layers"][place]["contest"] for row in rows) for place in places]


@claim
def disagreement_layers() -> list[str]:
    """Direct and via the votes: in the last layer, and the best direct one of the first stages."""
    layers = layer_aucs()
    assert max(via for _, via in layers) == layers[-1][1]  # in words: the highest of all
    middle = layers[2:8]
    assert all(direct > via for direct, via in middle)
    last = [f"{layers[-1][1]:.3f}", f"{layers[-1][0]:.3f}"]
    return [*last, *between((direct for direct, _ in middle), 2)]


@claim
def disagreement_heads() -> list[str]:
    """By how much the AUC via the votes is higher, of both pairs of losses."""
    pairs = [
        auc_means(row[name] for row in disagreement.rows_of("heads")) for name in disagreement.PAIRS
    ]
    return [f"{via - direct:.3f}" for direct, via in pairs]


@claim
def disagreement_triage() -> list[str]:
    """The best shares of three rankings with their losses, and the losses of people and network."""
    (row, *_) = disagreement.rows_of("triage")
    losses = row["losses"]["uncertainty of the network"]
    share = row["best_share"]["uncertainty of the network"]
    worse = [
        statistics.mean(row["best_share"][name] for row in disagreement.rows_of("triage"))
        for name in ("uncertainty minus predicted human error", "predicted disagreement")
    ]
    numbers = [f"{value:.4f}" for value in (min(losses), losses[0], losses[-1])]
    return [points(share), *numbers, *map(points, worse)]


def pointer_row(complexity: int, function: str, size: int) -> Row:
    """A row of the grid of pointer value retrieval."""
    (rows,) = [
        rows
        for rows in pointer_values.grouped("grid", ("complexity", "function", "size"))
        if (rows[0]["complexity"], rows[0]["function"], rows[0]["size"])
        == (complexity, function, size)
    ]
    (row,) = rows  # one seed
    return row


@claim
def pointer_examples() -> list[str]:
    """Test accuracy by the number of examples, of each problem."""
    cells = [
        (0, "value", 1000),
        (0, "value", 10_000),
        (1, "max", 10_000),
        (1, "sum", 10_000),
        (1, "sum", 100_000),
    ]
    rows = [pointer_row(*cell) for cell in cells]
    # In words: the training set is right in the first two.
    assert {points(row["train"]) for row in rows[:2]} == {"100.0"}
    return [points(row["iid"]) for row in rows]


@claim
def pointer_shift() -> list[str]:
    """With 100,000 examples: inputs of the same labels, then the windows left out."""
    rows = [pointer_row(1, function, 100_000) for function in ("sum", "max")]
    same = [points(row["same_labels"]) for row in rows]
    return [*same, *(points(row["adversarial"]) for row in rows)]


@claim
def pointer_layers() -> list[str]:
    """Probes of the pointed value, the values and the label, by layer."""
    by_network = {}
    for (row,) in pointer_values.grouped("probes", ("network", "size")):
        by_network[row["network"]] = {layer["layer"]: layer for layer in row["layers"]}
    value, summed = by_network["value, m = 0"], by_network["sum, m = 1"]
    best = max(summed, key=lambda layer: summed[layer]["pointed value"])
    known = max(summed, key=lambda layer: summed[layer]["label"])
    assert (best, known) == ("layer2", "layer3")
    cells = [
        value["layer1"]["pointed value"],
        value["layer3"]["values (mean)"],
        summed["layer2"]["pointed value"],
        summed["layer3"]["label"],
    ]
    return [points(cell) for cell in cells]


def first(cell: str) -> str:
    """The mean of a cell that has its interval, too."""
    return cell.split()[0].removeprefix("+")


@claim
def forgetting_depth() -> list[str]:
    """What is forgotten with nothing kept, and the CKA and ceiling of the ends."""
    lost = forgetting.memories().rows[0][3].removeprefix("+").split(" ± ")
    rows = forgetting.layers().rows
    similarities = [first(row[1]) for row in rows]
    assert similarities == sorted(similarities, reverse=True)  # in words: falls with depth
    ends = [first(rows[place][column]) for column in (1, 2) for place in (0, -1)]
    return [*lost, *ends]


@claim
def forgetting_resets() -> list[str]:
    """Recovery by the upper and the lower half, and the cost of freezing the lower one."""
    measured = [row[1] for row in forgetting.statements().rows]
    upper, lower = (first(cell) for cell in measured[1:3])
    return [upper, lower, *measured[3].removesuffix(" points").split(" ± ")]


@claim
def forgetting_memories() -> list[str]:
    """EWC's forgetting by strength with its cost, then that of the largest share of replay."""
    rows = {row[0]: row for row in forgetting.memories().rows}
    ewc = [first(rows[name][3]) for name in ("ewc 1", "ewc 10", "ewc 100")]
    replay = rows["replay 0.3"]
    cost = [first(rows[name][4]) for name in ("ewc 100", "none")]
    return [*ewc, *cost, *replay[3].split(" ± "), first(replay[4])]


@claim
def forgetting_directions() -> list[str]:
    """The similarity of both tasks' directions after replay and after EWC."""
    cell = forgetting.statements().rows[-1][1]
    assert forgetting.statements().rows[-1][2] == "no"
    overlaps = [float(first(row[-1])) for row in forgetting.subspaces().rows]
    assert min(overlaps) > 0.99  # in words
    return re.findall(r"\d\.\d+", cell)


def frozen_rows(task: str) -> dict[str, Row]:
    """The rows of the stories body on a task, by start."""
    rows = [row for row in load(frozen_transformers.RESULTS) if row["task"] == task]
    return {row["start"]: row for row in rows if row["body"]["name"] == "stories"}


@claim
def frozen_memory() -> list[str]:
    """Bit memory: frozen starts beside chance, then bodies that are trained."""
    rows = frozen_rows("memory")
    at_edge = {start for start, row in rows.items() if row["at_edge"]}
    assert at_edge == rows.keys() - {"memory"}  # in words: every start but memory
    means = {start: points(row["test"]["mean"]) for start, row in rows.items()}
    chance = f"{100 * rows['pretrained']['chance']:.0f}"
    names = ("normal", "xavier", "trained", "trained-random")
    return [means["pretrained"], chance, *(means[name] for name in names)]


@claim
def frozen_scale() -> list[str]:
    """Bit memory with statistics alone."""
    means = {start: row["test"]["mean"] for start, row in frozen_rows("memory").items()}
    scale = means["xavier"] - means["normal"]
    assert scale > means["pretrained"] - means["statistics"]  # in words: matters more
    return [points(means["statistics"])]


@claim
def frozen_xor() -> list[str]:
    """Xor: every start but normal, then normal."""
    means = {start: points(row["test"]["mean"]) for start, row in frozen_rows("xor").items()}
    normal = means.pop("normal")
    (mean,) = set(means.values())
    return [mean, normal]


@claim
def frozen_pretrained_here() -> list[str]:
    """Bit memory: bodies that were pretrained here on bit memory, and on text."""
    rows = frozen_rows("memory")
    return [points(rows[start]["test"]["mean"]) for start in ("memory", "text")]


@claim
def frozen_mnist() -> list[str]:
    """MNIST: frozen xavier, pretrained, statistics, normal; trained from random, pretrained."""
    rows = frozen_rows("mnist")
    names = ("xavier", "pretrained", "statistics", "normal", "trained-random", "trained")
    cells = []
    for name in names:
        test = rows[name]["test"]
        cells += [points(test["mean"]), points(test["std"])]
    return cells


@claim
def overview_frozen() -> list[str]:
    """Bit memory: frozen pretrained, frozen random at two scales, trained from both starts."""
    pretrained, chance, *others = frozen_memory()
    return [pretrained, chance, *others]


def forgotten_points() -> dict[str, str]:
    """The points that each pair of tasks makes forgotten, by its name."""
    return {row[0]: first(row[2]) for row in forgetting.semantics().rows}


def mixture(share: int) -> str:
    """The name of the pair whose second task has this share of near classes."""
    return f"ship, truck; then {share} % airplane, automobile, the rest cat, horse"


@claim
def forgetting_similar() -> list[str]:
    """After the near and after the far second task."""
    lost = forgotten_points()
    return [lost[mixture(100)], lost[mixture(0)]]


@claim
def forgetting_axis() -> list[str]:
    """After mixtures of near and far classes."""
    lost = forgotten_points()
    return [lost[mixture(share)] for share in (25, 50, 75)]


@claim
def forgetting_groups() -> list[str]:
    """Animals and vehicles, after vehicles and after animals."""
    lost = forgotten_points()
    return [
        lost[f"{group} of deer, dog, ship, truck; then {second}"]
        for second in ("airplane, automobile", "cat, horse")
        for group in ("deer, dog", "ship, truck")
    ]


@claim
def forgetting_other() -> list[str]:
    """With a third class in the first task: after the near task, without it, after the far one."""
    lost = forgotten_points()
    near, far = (
        lost[f"ship, truck of ship, truck, other; then {second}"]
        for second in ("airplane, automobile", "cat, horse")
    )
    return [near, lost[mixture(100)], far]


if __name__ == "__main__":
    run_benchmark(claims)


def law_means(axis: str, name: str) -> dict[float, str]:
    """A column of the error law over seeds, to four digits, by the value that is varied."""
    rows = [row for row in load(theory.RESULTS) if row["figure"] == "law" and row["axis"] == axis]
    means = {}
    for value in sorted({row["value"] for row in rows}):
        values = [row[name] for row in rows if row["value"] == value]
        means[value] = f"{statistics.mean(values):.4f}"
    return means


@claim
def theory_tasks() -> list[str]:
    """The error of the subspace with 10, 20, 40, 80 and 160 tasks."""
    means = law_means("tasks", "error")
    return [means[count] for count in (10, 20, 40, 80, 160)]


@claim
def theory_condition() -> list[str]:
    """The error of the subspace at conditions 1, 4 and 8; the risk of a new task at 1 and 8."""
    errors = law_means("condition", "error")
    risks = law_means("condition", "risk")
    return [errors[1], errors[4], errors[8], risks[1], risks[8]]


@claim
def theory_risk() -> list[str]:
    """The risk of a new task with the true subspace, and exact, with 10 and 40 examples."""
    measured = law_means("new_shots", "oracle")
    exact = law_means("new_shots", "exact")
    return [measured[10], exact[10], measured[40], exact[40]]


def policy_rows(algorithm: str) -> list[Row]:
    """The trainings on navigation of an algorithm."""
    for rows in reinforcement.grouped():
        if (rows[0]["environment"], rows[0]["algorithm"]) == ("navigation", algorithm):
            return rows
    raise LookupError(algorithm)


def policy_return(algorithm: str, step: int) -> list[str]:
    """The return after so many gradient steps and its standard deviation, over seeds."""
    values = [row["returns"][step]["return"]["mean"] for row in policy_rows(algorithm)]
    return [f"{statistics.mean(values):.1f}", f"{statistics.stdev(values):.1f}"]


@claim
def policy_adaptation() -> list[str]:
    """MAML and ANIL before adaptation and after one step; the difference with its interval."""
    (paired,) = [rows for key, rows in reinforcement.pairs().items() if key[0] == "navigation"]
    difference = Estimate.of(reinforcement.differences(paired, 1))
    before = [policy_return(name, 0)[0] for name in ("maml", "anil")]
    after = [*policy_return("maml", 1), *policy_return("anil", 1)]
    return [*before, *after, f"{difference.mean:.1f}", f"{difference.interval:.1f}"]


@claim
def policy_body() -> list[str]:
    """Similarity of MAML's body, its weights' move in percent, and what holding the body costs."""
    rows = policy_rows("maml")
    cells = []
    for name, scale, digits in (("similarity", 1, 3), ("moved", 100, 1)):
        # layer1 and layer2
        for place in range(2):
            values = [row["layers"][place][name]["mean"] for row in rows]
            cells.append(f"{scale * statistics.mean(values):.{digits}f}")
    costs = []
    for place in range(len(rows[0]["body_held"])):
        lost = [row["body_held"][place]["lost"]["mean"] for row in rows]
        costs.append(f"{statistics.mean(lost):.1f}")
    assert [case["factor"] for case in rows[0]["body_held"]] == [1, 2, 4]  # in words
    (similarity,) = set(cells[:2])
    return [similarity, *cells[2:], costs[0], costs[2]]


@claim
def policy_cheetah() -> list[str]:
    """HalfCheetah-Dir: ANIL after 200 outer steps, before adaptation and after one step."""
    (row,) = [
        row
        for row in load(reinforcement.RESULTS)
        if row["part"] == "returns" and row["environment"] == "half-cheetah-dir"
        if (row["algorithm"], row["steps"]) == ("anil", 200)
    ]
    return [f"{row['returns'][step]['return']['mean']:.1f}" for step in range(2)]


@claim
def policy_rates() -> list[str]:
    """Steps of HalfCheetah a second: the environment, with a policy, and gymnasium's."""
    rows = [row for row in load(reinforcement.RESULTS) if row["part"] == "speed"]
    return [f"{row['steps_per_second']:,.0f}" for row in rows]


@claim
def theory_subspace() -> list[str]:
    """The error of the subspace of ANIL and of MAML, at conditions 1 and 8."""
    rows = [row for row in load(theory.RESULTS) if row["figure"] == "subspace"]
    cells = []
    for learner in ("anil", "maml"):
        for condition in (1, 8):
            errors = [
                row["error"]
                for row in rows
                if (row["learner"], row["condition"]) == (learner, condition)
            ]
            cells.append(f"{statistics.mean(errors):.3f}")
    return cells


@claim
def overview_policies() -> list[str]:
    """Navigation: MAML and ANIL before and after one step; then the error of the subspace."""
    before, _, maml, maml_std, anil, anil_std, *_ = policy_adaptation()
    return [before, maml, maml_std, anil, anil_std, *theory_condition()[:3]]


def diversity(learner: str, kept_by: str) -> list[str]:
    """20-way glyphs, without and with it: condition and accuracy; then the gain."""
    by_seed: dict[str, dict[int, Row]] = {"nothing": {}, kept_by: {}}
    for row in load(theory.RESULTS):
        if row["figure"] == "glyphs" and row["learner"] == learner:
            by_seed[row["kept_by"]][row["seed"]] = row
    plain, kept = by_seed.values()
    assert len(kept) == 3  # in words: three seeds
    conditions = []
    accuracies = []
    for trained in (plain, kept):
        course = [row["course"][-1]["condition"] for row in trained.values()]
        conditions.append(f"{statistics.mean(course):.1f}")
        accuracies.append(points(statistics.mean(row["accuracy"] for row in trained.values())))
    gains = Estimate.of([kept[seed]["accuracy"] - plain[seed]["accuracy"] for seed in plain])
    return [*conditions, *accuracies, points(gains.mean), points(gains.interval)]


@claim
def theory_spectral() -> list[str]:
    """MAML with the spectral penalty."""
    return diversity("maml", "spectral(1, 1)")


@claim
def theory_prototypes() -> list[str]:
    """ProtoNet with prototypes of unit length."""
    return diversity("protonet", "unit prototypes")
