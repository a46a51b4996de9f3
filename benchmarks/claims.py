"""The numbers of the sentences in README.md and benchmarks/README.md, computed from the rows that
they rest on.

    python -m benchmarks.claims         # print them

A sentence with numbers is followed by a comment, `<!-- claim NAME -->`. The function of that name
here gives its numbers, as printed and in the order of the sentence; `tests/test_claims.py` compares
the two. A sentence reaches back to the comment before it, or to the start of its paragraph.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from metalearn.analysis import linear_cka

from . import init_tables, reuse_tables, speed_tables
from .papers.figures import ACCURACY, RAGHU
from .rows import run_benchmark
from .tables import HERE, newest_few_shot, rows

PAGES = (HERE.parent / "README.md", HERE / "README.md")
Row = dict[str, Any]
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
    """(name, sentence) of every claim of a page."""
    for paragraph in re.split(r"\n\s*\n", text):
        parts = re.split(r"<!-- claim (\w+) -->", paragraph)
        # sentence, name, sentence, name, ..., the rest
        yield from zip(parts[1::2], parts[::2], strict=False)


def missing(sentence: str, numbers: Iterable[str]) -> str:
    """The first of the numbers that the sentence does not have in this order, or "".

    Example:
        >>> missing("it costs 17.7 ± 1.1 points", ["17.7", "1.1"]), missing("it costs 17.7 points", ["7.7"])
        ('', '7.7')
    """
    place = 0
    text = " ".join(sentence.split())
    for number in numbers:
        # not within another number: neither 7.7 in 17.7 or -7.7, nor 17 in 17.7 or 17,000
        found = re.compile(rf"(?<![\d.,+-]){re.escape(number)}(?![.,]?\d)").search(text, place)
        if found is None:
            return number
        place = found.end()
    return ""


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
    """The largest distance of a streamed measure from the one in memory, up to a condition number
    of 1e5.
    """
    (row,) = [row for row in rows("measures") if "apart" in row and "size" in row]
    apart = [
        value
        for number in ("1e0", "1e1", "1e2", "1e3", "1e4", "1e5")
        for value in row["apart"][number].values()
    ]
    return [f"{max(apart):.0e}", "1e5"]


@claim
def anil_against_maml() -> list[str]:
    """ANIL minus MAML on Omniglot 5-way, of the runs of 10,000 steps and more; and its time of a
    meta-gradient.
    """
    below = [-100 * row["minus"]["mean"] for row in long_runs("anil")]
    seconds = {
        (row["setting"], row["algorithm"]): speed_tables.median(row, "metalearn")
        for row in timed("cpu, 2 threads", images=True)
    }
    shares = [
        seconds[setting, "anil"] / seconds[setting, "maml"]
        for setting, name in seconds
        if name == "anil"
    ]
    return [*between(below, 1), str(len(below)), *between(shares, 2)]


@claim
def freezing_mini_imagenet() -> list[str]:
    """What freezing MAML's body costs on miniImageNet, over all test tasks."""
    run = few_shot_run("mini-imagenet", "maml", "raghu2020")
    (paper,) = [
        mean for mean, _, _, source in ACCURACY["mini-imagenet", 5, 1, "maml"] if source == RAGHU
    ]
    return [f"{100 * run['accuracy']:.1f}", f"{paper:g}", *body_cost("mini-imagenet", "raghu2020")]


@claim
def freezing_omniglot() -> list[str]:
    """What happens to MAML's last block on Omniglot, after the whole of MAML's protocol."""
    (row,) = profiles("omniglot", "maml", "finn2017")
    anil = few_shot_run("omniglot", "anil", "finn2017")["minus"]
    return [
        f"{few_shot_run('omniglot', 'maml', 'finn2017')['trained_steps']:,}",
        f"{similarity(row, 'block4'):.2f}",
        *body_cost("omniglot", "finn2017"),
        f"{100 * anil['mean']:.1f}",
        f"{100 * anil['interval']:.1f}",
    ]


@claim
def transfusion_steps() -> list[str]:
    """Steps to the threshold of ResNet-18 from CIFAR-10, with 500 and with all radiographs."""
    few, whole = resnets()
    numbers = ["500", *(f"{steps(few, name):.0f}" for name in ("full", "random"))]
    return [
        *numbers,
        f"{whole['images']:,}",
        *(f"{steps(whole, name):.0f}" for name in ("full", "random")),
        str(len(few["seeds"])),
    ]


@claim
def transfusion_first_layers() -> list[str]:
    """Steps to the threshold with the first convolution and norm alone."""
    return [f"{steps(row, 'through bn1'):.0f}" for row in resnets()]


@claim
def transfusion_scale() -> list[str]:
    """How much sooner than random Mean-Var reaches the threshold, and p after Holm."""
    tests = [of_start(row["steps_tests"], "mean_var") for row in resnets()]
    assert {test["answer"] for test in tests} == {"no difference shown"}
    numbers = []
    for test in tests:
        difference = test["paired"]["difference"]
        numbers += [f"{-difference['mean']:.1f}", f"{difference['interval']:.1f}"]
    return [*numbers, *(f"{test['adjusted']:.2g}" for test in tests)]


@claim
def transfusion_ends() -> list[str]:
    """Where full ends against random."""
    tests = [of_start(row["final_tests"], "full") for row in resnets()]
    assert {test["answer"] for test in tests} == {"no difference shown"}
    return [
        f"{100 * test['paired']['difference'][part]:.2f}"
        for test in tests
        for part in ("mean", "interval")
    ]


@claim
def learn2learn_cpu() -> list[str]:
    """A meta-gradient of learn2learn's as a multiple of ours on two CPU cores: images, sinusoid,
    and compiled.
    """
    return [
        *between(ratios("cpu, 2 threads", images=True), 1),
        *between(ratios("cpu, 2 threads", images=False), 0),
        *between(ratios("cpu, 2 threads, compiled", images=False), 0),
    ]


@claim
def learn2learn_gpu() -> list[str]:
    """The same on a GPU, and how far apart the gradients are anywhere."""
    where = "NVIDIA H100 80GB HBM3, 8 threads"
    apart = [
        value
        for row in speed_tables.newest("gradients")
        for name, value in row["apart"]["float64"].items()
        if name.startswith("learn2learn")
    ]
    return [
        *between(ratios(where, images=True), 0),
        *between(ratios(where, images=False), 0),
        f"{max(apart):.0e}",
    ]


# benchmarks/README.md


@claim
def maml_over_anil() -> list[str]:
    """The time of a meta-gradient on miniImageNet and a GPU, MAML's and ANIL's."""
    found = timed("NVIDIA H100 80GB HBM3, 8 threads", images=True)
    seconds = {
        row["algorithm"]: speed_tables.median(row, "metalearn")
        for row in found
        if row["setting"] == "mini-imagenet"
    }
    return [
        f"{seconds['maml'] / seconds['anil']:.1f}",
        *(f"{1000 * seconds[name]:.1f}" for name in ("maml", "anil")),
    ]


@claim
def second_seed() -> list[str]:
    """Accuracy and minutes of the second seed."""
    runs = [few_shot_run("omniglot", name, "quick", seed=1) for name in ("maml", "anil")]
    (minutes,) = {f"{run['training_seconds'] / 60:.0f}" for run in runs}
    return [*between([100 * run["accuracy"] for run in runs], 1), minutes]


@claim
def bfloat16() -> list[str]:
    """Accuracy after 1,200 steps in bfloat16 beside float32."""
    numbers = []
    for algorithm in ("maml", "anil"):
        for precision in ("bfloat16", "float32"):
            (row,) = [
                row
                for row in on_the_shown_split()
                if (row["algorithm"], row["precision"], row["trained_steps"])
                == (algorithm, precision, 1200)
            ]
            numbers += [f"{100 * row['accuracy']:.2f}", f"{100 * row['interval']:.2f}"]
    return ["1,200", *numbers]


@claim
def finn_rises() -> list[str]:
    """Test accuracy of MAML's protocol at points of training, and its time."""
    points = timeline("omniglot", "finn2017")
    seconds = few_shot_run("omniglot", "maml", "finn2017")["training_seconds"]
    assert 11.25 < seconds / 60 < 11.75  # in words: 11 and a half minutes
    accuracies = [
        (f"{100 * row['evaluation']['mean']:.1f}", f"{row['step']:,}")
        for row in points
        if row["step"] != 18_200
    ]
    return [number for pair in accuracies for number in pair]


@claim
def analysed_networks() -> list[str]:
    """The miniImageNet networks that are analysed."""
    own = [few_shot_run("mini-imagenet", name, "quick") for name in ("maml", "anil")]
    papers = [few_shot_run("mini-imagenet", name, "raghu2020") for name in ("maml", "anil")]
    boil = few_shot_run("mini-imagenet", "boil", "boil2021")
    nil = few_shot_run("mini-imagenet", "nil-train", "raghu2020")
    numbers = [f"{100 * row['accuracy']:.1f}" for row in own]
    for row in papers:
        numbers += [f"{100 * row['accuracy']:.1f}", f"{row['trained_steps']:,}"]
    return [*numbers, *(f"{100 * row['accuracy']:.1f}" for row in (boil, nil))]


@claim
def reuse_mini_imagenet() -> list[str]:
    """CKA of MAML's blocks at all points of training."""
    points = timeline("mini-imagenet", "raghu2020")
    lower = [similarity(row, name) for row in points for name in ("block1", "block2")]
    assert len(points) == 4
    numbers = [f"{min(lower):.2f}"]
    for name in ("block3", "block4"):
        numbers += between([similarity(row, name) for row in points], 2)
    return numbers


@claim
def freezing_at_points() -> list[str]:
    """What freezing MAML's body costs on miniImageNet: at the end over all test tasks, and at the
    points of training.
    """
    cost, interval, tasks = body_cost("mini-imagenet", "raghu2020")
    points = timeline("mini-imagenet", "raghu2020")
    costs = [row["reuse"]["freezing"]["rows"][-1]["cost"] for row in points]
    numbers = [cost, interval, tasks]
    for one in costs:
        numbers += [f"{100 * one['mean']:.1f}", f"{100 * one['interval']:.1f}"]
    return [*numbers, str(points[0]["analysed_tasks"])]


@claim
def regimes_rank() -> list[str]:
    """The order of bodies under NIL on miniImageNet."""
    rows_of = [
        row
        for row in reuse_tables.newest("regimes", "algorithm")
        if row["dataset"] == "mini-imagenet"
    ]
    order = [row["algorithm"] for row in sorted(rows_of, key=lambda row: -row["accuracy"]["mean"])]
    assert set(order[:2]) == {"maml", "anil"}
    return [name.replace("nil-train", "NIL training") for name in order[2:]]


@claim
def boil_moves() -> list[str]:
    """CKA of BOIL's last block on miniImageNet."""
    (row,) = profiles("mini-imagenet", "boil", "raghu2020")
    return [f"{similarity(row, 'block4'):.2f}"]


@claim
def rapid_after_minutes() -> list[str]:
    """MAML's last block on Omniglot after 1,200 steps, three seeds."""
    found = profiles("omniglot", "maml", "quick")
    (row,) = freezing_rows("omniglot", "quick")
    cost = row["rows"][0]["accuracy"]["mean"] - row["rows"][-1]["accuracy"]["mean"]
    (trained,) = {run["trained_steps"] for run in row["trained"]["maml"]}
    block4 = statistics.fmean(similarity(one, "block4") for one in found)
    return [f"{trained:,}", f"{block4:.2f}", f"{100 * cost:.1f}"]


@claim
def rapid_after_all() -> list[str]:
    """MAML's last block on Omniglot after the whole protocol, one seed."""
    (row,) = profiles("omniglot", "maml", "finn2017")
    cost, interval, tasks = body_cost("omniglot", "finn2017")
    analysed = row["reuse"]["freezing"]["rows"][-1]["cost"]
    fewer = [
        f"{100 * analysed['mean']:.1f}",
        f"{100 * analysed['interval']:.1f}",
        str(row["analysed_tasks"]),
    ]
    headless = [
        f"{100 * row['reuse']['accuracies'][name]['mean']:.1f}"
        for name in ("headless_before", "headless_after")
    ]
    steps = f"{few_shot_run('omniglot', 'maml', 'finn2017')['trained_steps']:,}"
    return [steps, f"{similarity(row, 'block4'):.2f}", cost, interval, tasks, *fewer, *headless]


@claim
def accurate_without() -> list[str]:
    """ANIL and NIL minus MAML on Omniglot, after the whole protocol."""
    numbers = []
    for name in ("anil", "nil"):
        minus = few_shot_run("omniglot", name, "finn2017")["minus"]
        numbers += [f"{100 * minus['mean']:+.1f}", f"{100 * minus['interval']:.1f}"]
    return numbers


@claim
def similarity_map_batches() -> list[str]:
    """From which batch on torch_cka takes 8 times as long for two networks, and 20 times for one
    against itself.
    """
    found: dict[tuple[str, int], float] = {}
    for row in rows("similarity_map"):
        if row["figure"].startswith("time, "):
            found[row["figure"].split(",")[1].strip(), row["batch"]] = row["median_ratios"][
                "torch_cka"
            ]
    two = {batch: ratio for (kind, batch), ratio in found.items() if kind == "two networks"}
    single = {
        batch: ratio for (kind, batch), ratio in found.items() if kind == "one against itself"
    }
    assert 19 < single[256] < 20  # in words: all but at 256
    reached = min(batch for batch, ratio in two.items() if ratio >= 8)
    return [
        "8",
        str(reached),
        "20",
        str(min(batch for batch, ratio in single.items() if ratio >= 20)),
        "256",
    ]


@claim
def small_networks() -> list[str]:
    """Random's steps to the threshold of the small networks, and what CBR-Small gains."""
    small = [
        row for row in init_tables.newest() if row["network"] in ("cbr_tiny", "cbr_small", "conv4")
    ]
    tests = [test for row in small for test in row["steps_tests"] if test["strategy"] != "random"]
    assert "lower" not in {test["answer"] for test in tests}  # no start can be shown to be faster
    (gain,) = [
        of_start(row["final_tests"], "full") for row in small if row["network"] == "cbr_small"
    ]
    assert gain["answer"] == "higher"
    return [
        *between([steps(row, "random") for row in small], 0),
        f"{100 * gain['paired']['difference']['mean']:.2f}",
    ]


@claim
def same_seconds() -> list[str]:
    """Outer steps in 24 seconds, of the newest turns."""
    newest = {
        (row["side"], row["algorithm"]): row["points"][-1]["steps"] for row in rows("accuracy_time")
    }
    return [
        "24",
        *(
            str(newest[side, name])
            for side in ("metalearn", "learn2learn")
            for name in ("maml", "fomaml", "anil")
        ),
    ]


@claim
def worth_at_five_ways() -> list[str]:
    """What adapting the body is worth on glyphs and on Omniglot 5-way, beside what freezing it
    costs under the head's own steps.
    """
    numbers = []
    for dataset in ("glyphs", "omniglot"):
        row = decomposition_row(dataset, 5, "maml")
        parts = {part["name"]: part for part in row["pooled"]["decomposition"]["conditions"]}
        own_steps = parts["body frozen, head by its own steps"]["cost"]
        numbers += [*in_points(row["pooled"]["decomposition"]["worth"]), *in_points(own_steps)]
    return [str(len(row["seeds"])), *numbers]


@claim
def worth_at_twenty_ways() -> list[str]:
    """The same on Omniglot 20-way."""
    row = decomposition_row("omniglot", 20, "maml")
    parts = {part["name"]: part for part in row["pooled"]["decomposition"]["conditions"]}
    accuracy = f"{100 * parts['nothing frozen']['score']['mean']:.1f}"
    own_steps = parts["body frozen, head by its own steps"]["cost"]
    return [
        "20",
        accuracy,
        *in_points(row["pooled"]["decomposition"]["worth"]),
        *in_points(own_steps),
    ]


@claim
def share_of_the_body() -> list[str]:
    """The same in whole points."""
    _, glyphs, _, glyphs_cost, _, omniglot, _, omniglot_cost, _ = map(float, worth_at_five_ways())
    return [f"{value:.0f}" for value in (glyphs, glyphs_cost, omniglot, omniglot_cost)]


@claim
def worth_of_boil() -> list[str]:
    """What adapting the body is worth to BOIL on glyphs."""
    return in_points(decomposition_row("glyphs", 5, "boil")["pooled"]["decomposition"]["worth"])


@claim
def worth_on_mini_imagenet() -> list[str]:
    """Accuracy on miniImageNet, and what adapting the body is worth there, of MAML and of BOIL."""
    numbers = []
    for algorithm in ("maml", "boil"):
        row = decomposition_row("mini-imagenet", 5, algorithm)
        parts = {part["name"]: part for part in row["pooled"]["decomposition"]["conditions"]}
        accuracy = parts["nothing frozen"]["score"]["mean"]
        numbers += [f"{100 * accuracy:.1f}", *in_points(row["pooled"]["decomposition"]["worth"])]
    return numbers


@claim
def queries_at_test() -> list[str]:
    """Accuracy of the same networks on Finn et al.'s characters, by the number of queries a class."""
    numbers = []
    for queries in (1, 15):
        of = {
            "dataset": "omniglot",
            "ways": 5,
            "algorithm": "maml",
            "preset": "finn2017",
            "queries": queries,
        }
        chosen = [
            row for row in rows("few_shot") if all(row[name] == value for name, value in of.items())
        ]
        seeds = {
            row["seed"]: row["accuracy"] for row in chosen if row["data"]["protocol"] == "finn"
        }
        values = list(seeds.values())
        numbers += [
            str(queries),
            f"{100 * statistics.mean(values):.1f}",
            f"{100 * statistics.stdev(values):.1f}",
        ]
    return numbers


def decomposition_row(dataset: str, ways: int, algorithm: str) -> Row:
    """The newest row that takes an accuracy apart."""
    newest = reuse_tables.newest("decomposition", "algorithm")
    return [
        row
        for row in newest
        if (row["dataset"], row["ways"], row["algorithm"]) == (dataset, ways, algorithm)
    ][-1]


def in_points(estimate: Row) -> list[str]:
    """A mean and its interval in percentage points."""
    return [f"{100 * estimate['mean']:.1f}", f"{100 * estimate['interval']:.1f}"]


def few_shot_run(dataset: str, algorithm: str, preset: str, seed: int = 0) -> Row:
    """The longest run of an algorithm on 5-way 1-shot tasks of 15 queries a class."""
    keys = ("dataset", "ways", "queries", "algorithm", "preset", "seed")
    wanted = (dataset, 5, 15, algorithm, preset, seed)
    same = [row for row in on_the_shown_split() if tuple(row[key] for key in keys) == wanted]
    return max(same, key=lambda row: row["trained_steps"])


def long_runs(algorithm: str) -> list[Row]:
    """The runs on Omniglot 5-way of 10,000 steps and more."""
    keys = ("dataset", "ways", "queries", "algorithm")
    same = [
        row
        for row in on_the_shown_split()
        if tuple(row[key] for key in keys) == ("omniglot", 5, 15, algorithm)
    ]
    return [row for row in same if row["trained_steps"] >= 10_000]


def on_the_shown_split() -> list[Row]:
    """The newest row of each run, but for those on another split of Omniglot than that of the first
    table.
    """
    return [row for row in newest_few_shot() if row["data"].get("protocol") in (None, "vinyals")]


def freezing_rows(dataset: str, preset: str) -> list[Row]:
    """MAML's rows of freezing."""
    found = reuse_tables.newest("freezing", "algorithm")
    return [
        row
        for row in found
        if (row["dataset"], row["preset"], row["algorithm"]) == (dataset, preset, "maml")
    ]


def body_cost(dataset: str, preset: str) -> tuple[str, str, str]:
    """What freezing MAML's body costs one network in points, its interval over tasks, and how many
    tasks.
    """
    (row,) = freezing_rows(dataset, preset)
    (run,) = row["runs"]
    cost = run["rows"][-1]["cost"]
    return f"{100 * cost['mean']:.1f}", f"{100 * cost['interval']:.1f}", str(run["tasks"])


def profiles(dataset: str, algorithm: str, preset: str) -> list[Row]:
    """The rows of what the inner loop changes, a seed each."""
    for same in reuse_tables.grouped("profile", "algorithm"):
        if (same[0]["dataset"], same[0]["algorithm"], same[0]["preset"]) == (
            dataset,
            algorithm,
            preset,
        ):
            return same
    raise LookupError(f"there is no profile of {algorithm} on {dataset} under {preset}")


def timeline(dataset: str, preset: str) -> list[Row]:
    """MAML's rows at points of training, one seed."""
    groups = reuse_tables.grouped("timeline", "algorithm", "step")
    return [
        row
        for (row, *_) in groups
        if (row["dataset"], row["preset"], row["algorithm"]) == (dataset, preset, "maml")
    ]


def similarity(row: Row, name: str) -> float:
    """Debiased CKA of a layer before and after adaptation."""
    ((layer, _),) = reuse_tables.of_layer([row], name)
    return float(layer["cka"]["mean"])


def resnets() -> tuple[Row, Row]:
    """The comparisons of ResNet-18 with 500 and with all radiographs."""
    few, whole = (row for row in init_tables.newest() if row["network"] == "resnet18")
    return few, whole


def of_start(tests: Iterable[Row], name: str) -> Row:
    """The test of one start."""
    (test,) = [test for test in tests if test["strategy"] == name]
    return test


def steps(row: Row, name: str) -> float:
    """Mean steps of a start to the threshold."""
    return float(of_start(row["steps_tests"], name)["estimate"]["mean"])


def timed(where: str, *, images: bool) -> list[Row]:
    """The times of a meta-gradient in one place, of images or of the sinusoid."""
    return [
        row
        for row in speed_tables.newest("time")
        if speed_tables.place(row) == where and (row["setting"] != "sinusoid") == images
    ]


def ratios(where: str, *, images: bool) -> list[float]:
    """learn2learn's times as multiples of ours."""
    return [
        speed_tables.ratio(row, "learn2learn")
        for row in timed(where, images=images)
        if "learn2learn" in row["seconds"]
    ]


def between(values: Iterable[float], digits: int) -> list[str]:
    """The smallest and the largest, as printed."""
    known = list(values)
    assert all(map(math.isfinite, known))
    return [f"{value:.{digits}f}" for value in (min(known), max(known))]


if __name__ == "__main__":
    run_benchmark(claims)
