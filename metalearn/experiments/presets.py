"""Settings by the paper they follow: what it trained, with what rates, for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Algorithms that train a fresh head at test, on a body that was trained without one.
FRESH_HEADS = ("baseline", "baseline++")


@dataclass(frozen=True)
class Preset:
    """One paper's settings on one data set.

    Attributes:
        follows: which paper, and what was chosen where it leaves something open.
        lr: the inner rate on a mean loss. The rate of a paper that sums over its ways is multiplied
            by them.
        train_queries: queries a class in training; None stands for as many as shots.
        train_ways: classes of a task in training; None stands for as many as at test.
        queries: queries a class at test; None stands for as many as shots.
        schedule: of the outer rate, "constant" or "cosine" (to zero at the last step).
        protocol: the split of Omniglot's characters: "vinyals", "finn" or "lake" (see
            `metalearn.tasks.omniglot`), or of CUB's classes (see `metalearn.tasks.cub`). Other data
            sets have one split.
        test_rotations: whether Omniglot's turned characters are classes at test, too.
        differs: what is not as in the paper, in words.
    """

    follows: str
    lr: float
    inner_steps: int
    test_steps: int
    meta_batch: int
    train_queries: int | None
    steps: int
    outer_lr: float = 1e-3
    schedule: str = "constant"
    clip_value: float | None = None
    model: str = "conv4"
    hidden: int = 64
    pool: bool = True
    adapt_norm: bool = True
    queries: int | None = 15
    train_ways: int | None = None
    protocol: str = "vinyals"
    test_rotations: bool = False
    differs: str = ""


def preset(
    name: str, dataset: str, ways: int = 5, shots: int = 1, algorithm: str = "maml"
) -> Preset:
    """The settings of a paper for a data set and an algorithm.

    Args:
        name: "quick", "finn2017", "raghu2020" or "boil2021".
        dataset: its name.
        ways: classes per task.
        shots: support images per class.
        algorithm: its name.

    Raises:
        ValueError: there is no such preset, or the paper did not use the data set.

    Example:
        >>> preset("finn2017", "omniglot", ways=5).lr
        2.0
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    settings = PRESETS[name](dataset, ways, shots, algorithm)
    if settings is None:
        raise ValueError(
            f"the paper behind {name!r} has no settings for {dataset!r}; use --preset quick and set"
            " what you know"
        )
    if algorithm in FRESH_HEADS:
        # The rate and the steps of the papers' inner loops are not those of a head from scratch.
        settings = replace(settings, lr=0.1, inner_steps=100, test_steps=100)
    if algorithm == "imaml":
        # Chosen with the strength in `build_learner`, on validation classes of glyphs.
        settings = replace(settings, lr=0.05, inner_steps=8, test_steps=8)
    if dataset == "cub":
        settings = replace(settings, protocol="chen2019")
    return settings


def _quick(dataset: str, ways: int, shots: int, algorithm: str) -> Preset | None:
    settings = Preset(
        follows="this project's own settings for minutes on a CPU; no paper",
        lr=0.4,
        inner_steps=1,
        test_steps=3,
        meta_batch=4,
        train_queries=5,
        steps=800,
        outer_lr=3e-3,
        schedule="cosine",
        hidden=32,
    )
    characters = dataset in ("glyphs", "omniglot")
    if not characters:
        settings = replace(settings, outer_lr=1e-3)
    if characters and algorithm in ("protonet", "r2d2"):
        # As many images a step as four tasks of 5 ways, in one task that is harder (Snell et al.
        # train with more ways, too). Chosen on validation characters of Omniglot.
        return replace(settings, train_ways=max(20, ways), meta_batch=1, steps=3000)
    if algorithm == "anil":
        # On characters it takes more steps at test, which are cheap: the body runs once.
        test_steps = 20 if characters else 10
        return replace(settings, lr=0.1, inner_steps=5, test_steps=test_steps)
    if algorithm == "maml++":
        # The paper's five steps in training and at test; its rates are learned from these.
        return replace(settings, lr=0.1 if characters else 0.02, inner_steps=5, test_steps=5)
    if not characters:
        # At 0.1 MAML was at chance on miniImageNet after 700 steps; only ANIL's head bears it.
        return replace(settings, lr=0.02, inner_steps=3, test_steps=5)
    return settings


FINN_DIFFERS = (
    "the head starts as torch draws a Linear (the paper: {head}), batch norm has a weight (gamma) "
    "beside its bias, weights are initialised by torch (the paper: Xavier), and training tasks "
    "never repeat (the paper: 200,000 tasks in turn)"
)
ROTATIONS_DIFFER = (
    ", and turned characters are classes of their own, so that one task may hold a character twice "
    "(the paper turns each class of a task at random)"
)


def _finn(dataset: str, ways: int, shots: int, algorithm: str) -> Preset | None:
    """Finn et al. 2017, checked against their public code.

    Omniglot: 1,100 / 100 / 423 characters drawn at random, turned characters at test, too, as many
    queries a class as shots in training and at test (5 queries in a 5-way 1-shot task), strides in
    place of pooling and a mean over space, an inner rate of 0.4 (5 ways) or 0.1 (20 ways) on a loss
    summed over ways, 1 and 3 (5 ways) or 5 and 5 (20 ways) inner steps in training and at test, 32
    or 16 tasks a step, Adam at 0.001, 60,000 steps, batch norm by the current batch, not adapted.

    miniImageNet: 32 filters, an inner rate of 0.01 on a summed loss, 5 and 10 inner steps, 4 tasks
    (5 shots: 2) a step, outer gradients clipped at 10, 15 queries a class in training and as many
    as shots at test, which their code takes.

    What differs: which characters are in each split (their shuffle follows the order of a file
    system, so it cannot be known); the head's initialisation (theirs: standard normal on Omniglot,
    Xavier on miniImageNet; ours: torch's); Xavier initialisation of the convolutions (ours:
    torch's); gamma in batch norm (theirs has none); turned characters as classes of their own
    (theirs turns each class of a task at random); tasks that never repeat (theirs: 200,000).
    """
    if dataset == "omniglot":
        setting = "5-way: alpha 0.4 on a summed loss, so 0.4 x 5"
        inner_steps = 1
        test_steps = 3
        meta_batch = 32
        if ways > 5:
            setting = "20-way: alpha 0.1 on a summed loss, so 0.1 x 20"
            inner_steps = 5
            test_steps = 5
            meta_batch = 16
        return Preset(
            follows=(
                f"Finn et al. 2017, Omniglot {setting} on a mean; batch norm does not adapt; "
                "1,100 training characters drawn at random, as many queries a class as shots"
            ),
            lr=2.0,  # 0.4 x 5 = 0.1 x 20
            inner_steps=inner_steps,
            test_steps=test_steps,
            meta_batch=meta_batch,
            train_queries=None,
            steps=60_000,
            pool=False,
            adapt_norm=False,
            queries=None,
            protocol="finn",
            test_rotations=True,
            differs=FINN_DIFFERS.format(head="a standard normal") + ROTATIONS_DIFFER,
        )
    if dataset == "mini-imagenet":
        return Preset(
            follows=(
                "Finn et al. 2017, miniImageNet: alpha 0.01 on a summed loss, so 0.01 x 5 on a"
                " mean; batch norm does not adapt; at test as many queries a class as shots"
            ),
            lr=0.05,  # 0.01 x 5
            inner_steps=5,
            test_steps=10,
            meta_batch=4 if shots == 1 else 2,
            train_queries=15,
            steps=60_000,
            clip_value=10.0,
            hidden=32,
            adapt_norm=False,
            queries=None,
            differs=FINN_DIFFERS.format(head="Xavier"),
        )
    return None


def _raghu(dataset: str, ways: int, shots: int, algorithm: str) -> Preset | None:
    """Raghu et al. 2020, who keep MAML's architecture and analyse 30,000 steps.

    Their rates, steps, meta-batches and splits are in an appendix that could not be checked, so
    Finn et al.'s are used, with 15 queries a class on miniImageNet. What differs is what differs
    from Finn et al. (see `_finn`). The paper's ± is a standard deviation over 3 seeds, so three
    seeds have to be trained.
    """
    settings = _finn(dataset, ways, shots, algorithm)
    if settings is None:
        return None
    return replace(
        settings,
        follows=(
            "Raghu et al. 2020, which keeps MAML's architecture; its own rates, split and queries "
            f"are not known, so MAML's: {settings.follows}"
        ),
        steps=30_000,
        queries=15 if dataset == "mini-imagenet" else settings.queries,
    )


def _boil(dataset: str, ways: int, shots: int, algorithm: str) -> Preset | None:
    """Oh et al. 2021 (BOIL), checked against their public code.

    Conv4 of 64 filters, one inner step in training and at test of rate 0.5 on a mean loss, batch
    norm by the current batch and adapted, Adam at 0.001, 4 tasks a step, 30,000 steps, 15 queries
    a class in training and at test.

    What differs: they test the weights that were best on validation tasks, ours are the last;
    they report the standard deviation of 5 means over 1,000 tasks each, ours is an interval over
    `test_tasks`; initialisation is torch's in both.
    """
    if dataset not in ("mini-imagenet", "cifar-fs", "fc100"):
        return None
    return Preset(
        follows=(
            "Oh et al. 2021 (BOIL), Conv4 of 64 channels: rate 0.5 on a mean loss, one step in"
            " training and at test, batch norm adapts"
        ),
        lr=0.5,
        inner_steps=1,
        test_steps=1,
        meta_batch=4,
        train_queries=15,
        steps=30_000,
        differs=(
            "the last weights are tested (the paper: the best on validation tasks), on test_tasks"
            " tasks (the paper: 5 x 1,000)"
        ),
    )


PRESETS = {"quick": _quick, "finn2017": _finn, "raghu2020": _raghu, "boil2021": _boil}
