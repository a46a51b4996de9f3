"""Callbacks: what a training calls on its way, such as loggers and early stopping."""

from .callback import Callback, Status, StopTraining
from .early_stopping import EarlyStopping
from .json_lines import JsonLines
from .metrics import MetricLogger
from .mlflow import MLflow
from .optuna import OptunaPruning
from .tensorboard import TensorBoard
from .time_limit import TimeLimit
from .trackio import Trackio
from .wandb import WandB

__all__ = [
    "Callback",
    "EarlyStopping",
    "JsonLines",
    "MLflow",
    "MetricLogger",
    "OptunaPruning",
    "Status",
    "StopTraining",
    "TensorBoard",
    "TimeLimit",
    "Trackio",
    "WandB",
]
