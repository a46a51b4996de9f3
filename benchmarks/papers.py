"""The papers' figures, printed beside ours: accuracy in per cent and what its ± means. Only figures whose source was found."""

from __future__ import annotations

INTERVAL = "95 % over 600 tasks"
SEEDS = "std over 3 seeds"
REPEATS = "std over 5 x 1,000 tasks"

FINN = "Finn et al. 2017"
RAGHU = "Raghu et al. 2020"
OH = "Oh et al. 2021"

Figure = tuple[float, float | None, str, str]

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
    """The papers' figures for a row, in words; empty where none was found."""
    found = ACCURACY.get((dataset, ways, shots, algorithm), [])
    return "; ".join(f"{mean:g} ± {spread:g} ({meaning}; {paper})" for mean, spread, meaning, paper in found)
