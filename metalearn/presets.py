"""Settings by the paper they follow: what it trained, with what rates, for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Preset:
    """One paper's settings on one data set. `follows` says which paper, and where it leaves something open what was taken.

    `lr` is the inner rate on a mean loss: the rate of a paper that sums over its ways is multiplied by them. `train_queries` None stands
    for as many queries a class as shots; `schedule` of the outer rate is "constant" or "cosine" (to zero at the last step).
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


def preset(name: str, dataset: str, ways: int = 5, shots: int = 1, algorithm: str = "maml") -> Preset:
    """The settings of `name` ("quick", "finn2017", "raghu2020", "boil2021") for a data set and an algorithm.

    Raises ValueError, with those there are, for a paper that did not use the data set.

    Example:
        >>> preset("finn2017", "omniglot", ways=5).lr
        2.0
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    found = PRESETS[name](dataset, ways, shots, algorithm)
    if found is None:
        raise ValueError(f"the paper behind {name!r} has no settings for {dataset!r}; use --preset quick and set what you know")
    return found


def _quick(dataset: str, ways: int, shots: int, algorithm: str) -> Preset | None:
    if dataset not in ("glyphs", "omniglot"):
        # At 0.1 MAML was at chance on miniImageNet after 700 steps; ANIL's head alone bears it.
        rate, steps, test_steps = (0.1, 5, 10) if algorithm == "anil" else (0.02, 3, 5)
    elif algorithm == "anil":
        rate, steps, test_steps = 0.1, 5, 20  # its steps are cheap: the body runs once
    else:
        rate, steps, test_steps = 0.4, 1, 3
    return Preset(
        follows="this project's own settings for minutes on a CPU; no paper",
        lr=rate,
        inner_steps=steps,
        test_steps=test_steps,
        meta_batch=4,
        train_queries=5,
        steps=800,
        outer_lr=3e-3 if dataset in ("glyphs", "omniglot") else 1e-3,
        schedule="cosine",
        hidden=32,
    )


def _finn(dataset: str, ways: int, shots: int, algorithm: str) -> Preset | None:
    if dataset == "omniglot":
        few = ways <= 5
        setting = "5-way: alpha 0.4 on a summed loss, so 0.4 x 5" if few else "20-way: alpha 0.1 on a summed loss, so 0.1 x 20"
        return Preset(
            follows=f"Finn et al. 2017, Omniglot {setting} on a mean; batch norm does not adapt",
            lr=2.0,
            inner_steps=1 if few else 5,
            test_steps=3 if few else 5,
            meta_batch=32 if few else 16,
            train_queries=None,
            steps=60_000,
            pool=False,
            adapt_norm=False,
        )
    if dataset == "mini-imagenet":
        return Preset(
            follows="Finn et al. 2017, miniImageNet: alpha 0.01 on a summed loss, so 0.01 x 5 on a mean; batch norm does not adapt",
            lr=0.05,
            inner_steps=5,
            test_steps=10,
            meta_batch=4 if shots == 1 else 2,
            train_queries=15,
            steps=60_000,
            clip_value=10.0,
            hidden=32,
            adapt_norm=False,
        )
    return None


def _raghu(dataset: str, ways: int, shots: int, algorithm: str) -> Preset | None:
    found = _finn(dataset, ways, shots, algorithm)
    if found is None:
        return None
    follows = f"Raghu et al. 2020, which keeps MAML's architecture; its own rates are not known, so MAML's: {found.follows}"
    return replace(found, follows=follows, steps=30_000)


def _boil(dataset: str, ways: int, shots: int, algorithm: str) -> Preset | None:
    if dataset not in ("mini-imagenet", "cifar-fs", "fc100"):
        return None
    return Preset(
        follows="Oh et al. 2021 (BOIL), Conv4 of 64 channels: rate 0.5 on a mean loss, one step in training and at test, batch norm adapts",
        lr=0.5,
        inner_steps=1,
        test_steps=1,
        meta_batch=4,
        train_queries=15,
        steps=30_000,
    )


PRESETS = {"quick": _quick, "finn2017": _finn, "raghu2020": _raghu, "boil2021": _boil}
