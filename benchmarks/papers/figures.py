"""The papers' figures, printed beside ours: accuracy in per cent and what its ± means.

A figure is here only if its source was found.
"""

from __future__ import annotations

INTERVAL = "95 % over 600 tasks"
SEEDS = "std over 3 seeds"
REPEATS = "std over 5 x 1,000 tasks"

FINN = "Finn et al. 2017"
RAGHU = "Raghu et al. 2020"
OH = "Oh et al. 2021"
LAKE = "Lake et al. 2015"

Figure = tuple[float, float | None, str, str]  # mean, its ±, what that means, source

ACCURACY: dict[tuple[str, int, int, str], list[Figure]] = {
    ("omniglot", 5, 1, "maml"): [(98.7, 0.4, INTERVAL, FINN)],
    ("omniglot", 5, 5, "maml"): [(99.9, 0.1, INTERVAL, FINN)],
    ("omniglot", 20, 1, "maml"): [(95.8, 0.3, INTERVAL, FINN), (93.7, 0.7, SEEDS, RAGHU)],
    ("omniglot", 20, 1, "anil"): [(96.2, 0.5, SEEDS, RAGHU)],
    ("omniglot", 20, 1, "nil"): [(96.7, 0.3, SEEDS, RAGHU)],
    ("omniglot", 20, 5, "maml"): [(98.9, 0.2, INTERVAL, FINN), (96.4, 0.1, SEEDS, RAGHU)],
    ("omniglot", 20, 5, "anil"): [(98.0, 0.3, SEEDS, RAGHU)],
    ("omniglot", 20, 5, "nil"): [(98.0, 0.04, SEEDS, RAGHU)],
    ("mini-imagenet", 5, 1, "maml"): [(48.70, 1.84, INTERVAL, FINN), (46.9, 0.2, SEEDS, RAGHU)],
    ("mini-imagenet", 5, 1, "fomaml"): [(48.07, 1.75, INTERVAL, FINN)],
    ("mini-imagenet", 5, 1, "anil"): [(46.7, 0.4, SEEDS, RAGHU)],
    ("mini-imagenet", 5, 1, "nil"): [(48.0, 0.7, SEEDS, RAGHU)],
    ("mini-imagenet", 5, 1, "nil-train"): [(38.3, 0.6, SEEDS, RAGHU)],
    ("mini-imagenet", 5, 1, "boil"): [(49.61, 0.16, REPEATS, OH)],
    ("mini-imagenet", 5, 5, "maml"): [(63.11, 0.92, INTERVAL, FINN), (63.1, 0.4, SEEDS, RAGHU)],
    ("mini-imagenet", 5, 5, "fomaml"): [(63.15, 0.91, INTERVAL, FINN)],
    ("mini-imagenet", 5, 5, "anil"): [(61.5, 0.5, SEEDS, RAGHU)],
    ("mini-imagenet", 5, 5, "nil"): [(62.2, 0.5, SEEDS, RAGHU)],
    ("mini-imagenet", 5, 5, "nil-train"): [(43.0, 0.2, SEEDS, RAGHU)],
    ("mini-imagenet", 5, 5, "boil"): [(66.45, 0.37, REPEATS, OH)],
    ("cifar-fs", 5, 1, "maml"): [(56.55, 0.45, REPEATS, OH)],
    ("cifar-fs", 5, 1, "anil"): [(57.13, 0.47, REPEATS, OH)],
    ("cifar-fs", 5, 1, "boil"): [(58.03, 0.43, REPEATS, OH)],
    ("cifar-fs", 5, 5, "maml"): [(70.10, 0.29, REPEATS, OH)],
    ("cifar-fs", 5, 5, "anil"): [(69.87, 0.39, REPEATS, OH)],
    ("cifar-fs", 5, 5, "boil"): [(73.61, 0.32, REPEATS, OH)],
    ("fc100", 5, 1, "maml"): [(35.99, 0.48, REPEATS, OH)],
    ("fc100", 5, 1, "anil"): [(36.37, 0.33, REPEATS, OH)],
    ("fc100", 5, 1, "boil"): [(38.93, 0.45, REPEATS, OH)],
    ("fc100", 5, 5, "maml"): [(47.58, 0.30, REPEATS, OH)],
    ("fc100", 5, 5, "anil"): [(45.65, 0.44, REPEATS, OH)],
    ("fc100", 5, 5, "boil"): [(51.66, 0.32, REPEATS, OH)],
}


def beside(dataset: str, ways: int, shots: int, algorithm: str) -> str:
    """The papers' figures for a row, in words; empty if there is none.

    Example:
        >>> beside("omniglot", 5, 1, "maml")
        '98.7 ± 0.4 (95 % over 600 tasks; Finn et al. 2017)'
    """
    texts = []
    for mean, spread, meaning, paper in ACCURACY.get((dataset, ways, shots, algorithm), []):
        texts.append(f"{mean:g} ± {spread:g} ({meaning}; {paper})")
    return "; ".join(texts)


# Accuracy with the first k blocks frozen at test time, k = 0 to 4: the camera-ready table 1, mean
# and standard deviation over 3 seeds.
FREEZING: dict[tuple[str, int, int, str], list[tuple[float, float]]] = {
    ("mini-imagenet", 5, 1, "maml"): [
        (46.9, 0.2),
        (46.5, 0.3),
        (46.4, 0.4),
        (46.3, 0.4),
        (46.3, 0.4),
    ],
    ("mini-imagenet", 5, 5, "maml"): [
        (63.1, 0.4),
        (63.0, 0.6),
        (62.6, 0.6),
        (61.2, 0.5),
        (61.0, 0.6),
    ],
}

# Similarity of independently trained networks, averaged over the body (table 3): CCA, and CKA as
# Kornblith's code has it.
BETWEEN: dict[frozenset[str], tuple[float, float]] = {
    frozenset({"maml"}): (0.51, 0.83),
    frozenset({"anil"}): (0.51, 0.86),
    frozenset({"maml", "anil"}): (0.50, 0.83),
}

# Accuracy under NIL by what trained the body (table 5): mean and standard deviation over 3 seeds.
REGIMES: dict[tuple[str, int, int, str], tuple[float, float]] = {
    ("mini-imagenet", 5, 1, "maml"): (48.4, 0.3),
    ("mini-imagenet", 5, 1, "anil"): (48.0, 0.7),
    ("mini-imagenet", 5, 1, "multiclass"): (39.7, 0.3),
    ("mini-imagenet", 5, 1, "multitask"): (26.5, 1.1),
    ("mini-imagenet", 5, 1, "random"): (32.9, 0.6),
    ("mini-imagenet", 5, 1, "nil-train"): (38.3, 0.6),
    ("mini-imagenet", 5, 5, "maml"): (61.5, 0.8),
    ("mini-imagenet", 5, 5, "anil"): (62.2, 0.5),
    ("mini-imagenet", 5, 5, "multiclass"): (54.4, 0.5),
    ("mini-imagenet", 5, 5, "multitask"): (34.2, 3.5),
    ("mini-imagenet", 5, 5, "random"): (43.2, 0.5),
    ("mini-imagenet", 5, 5, "nil-train"): (43.0, 0.2),
}

# Biased linear CKA before and after adaptation, blocks 1 to 4 and head, miniImageNet 5-way 5-shot:
# read off a figure, so ± 0.02.
PROFILE: dict[str, tuple[float, ...]] = {
    "maml": (1, 1, 1, 0.99, 0.18),
    "anil": (1, 1, 1, 0.995, 0.21),
    "boil": (1, 1, 1, 0.52, 0.62),
}

# Mean norm of the inner gradient by the weights of blocks 1 to 4 and head, the same networks, 5
# tasks.
GRADIENTS: dict[str, tuple[float, ...]] = {
    "maml": (0.148, 0.105, 0.133, 0.114, 3.288),
    "anil": (0, 0, 0, 0, 3.396),
    "boil": (0.391, 0.400, 0.548, 4.514, 0),
}

# Error in per cent on the 20 runs of one-shot classification.
ONE_SHOT: dict[str, float] = {
    "people": 4.5,
    "Bayesian program learning": 3.3,
    "a convolutional network": 13.5,
}
