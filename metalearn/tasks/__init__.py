"""Where tasks come from: data sets that `FewShot` draws episodes from, and `Sinusoid`."""

from metalearn.tasks.cifar_fs import cifar_fs, fc100
from metalearn.tasks.few_shot import SEEDS, FewShot, LabelledImages
from metalearn.tasks.glyphs import glyphs
from metalearn.tasks.image_folder import image_folder, mini_imagenet
from metalearn.tasks.omniglot import omniglot
from metalearn.tasks.one_shot import OneShotRuns, one_shot_runs
from metalearn.tasks.sinusoid import Sinusoid

__all__ = [
    "SEEDS",
    "FewShot",
    "LabelledImages",
    "OneShotRuns",
    "Sinusoid",
    "cifar_fs",
    "fc100",
    "glyphs",
    "image_folder",
    "mini_imagenet",
    "omniglot",
    "one_shot_runs",
]
