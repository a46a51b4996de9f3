"""learn2learn's data sets by class, and tasks drawn from them; plain Python, without pickles."""

from metalearn.compat.learn2learn._missing import nearest

from . import meta_dataset, samplers, task_dataset, transforms, utils
from .meta_dataset import FilteredMetaDataset, MetaDataset, UnionMetaDataset
from .task_dataset import DataDescription, TaskDataset, Taskset
from .utils import InfiniteIterator, OnDeviceDataset, partition_task

__all__ = [
    "DataDescription",
    "FilteredMetaDataset",
    "InfiniteIterator",
    "MetaDataset",
    "OnDeviceDataset",
    "TaskDataset",
    "Taskset",
    "UnionMetaDataset",
    "meta_dataset",
    "partition_task",
    "samplers",
    "task_dataset",
    "transforms",
    "utils",
]

__getattr__ = nearest(__name__, __all__)
