"""Tasks to learn: `FewShot` and the data sets it draws from, regression, and one-shot runs."""

from metalearn.data.cifar import cifar_fs, fc100
from metalearn.data.cross_domain import chestx, crop_disease, isic
from metalearn.data.eurosat import eurosat
from metalearn.data.few_shot_sets import cub, tiered_imagenet
from metalearn.data.fewtrans import fewtrans
from metalearn.data.folders import image_folder, mini_imagenet
from metalearn.data.glyphs import glyphs
from metalearn.data.image_files import ImageFiles
from metalearn.data.images import LabelledImages
from metalearn.data.meta_album import meta_album
from metalearn.data.omniglot import omniglot
from metalearn.data.pointer_images import pointer_images
from metalearn.data.pointer_value import pointer_vectors
from metalearn.tasks.few_shot import SEEDS, FewShot
from metalearn.tasks.mixture import Mixture
from metalearn.tasks.one_shot import OneShotRuns, one_shot_runs
from metalearn.tasks.shared_subspace import SharedSubspace
from metalearn.tasks.sinusoid import Sinusoid
from metalearn.tasks.task_sizes import MetaDatasetSizes

__all__ = [
    "SEEDS",
    "FewShot",
    "ImageFiles",
    "LabelledImages",
    "MetaDatasetSizes",
    "Mixture",
    "OneShotRuns",
    "SharedSubspace",
    "Sinusoid",
    "chestx",
    "cifar_fs",
    "crop_disease",
    "cub",
    "eurosat",
    "fc100",
    "fewtrans",
    "glyphs",
    "image_folder",
    "isic",
    "meta_album",
    "mini_imagenet",
    "omniglot",
    "one_shot_runs",
    "pointer_images",
    "pointer_vectors",
    "tiered_imagenet",
]
