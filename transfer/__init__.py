"""Partial weight transfer as one call, and initialisations compared so that the answer can be believed."""

from .comparison import Comparison, compare
from .finetuning import finetune
from .freezing import freeze, frozen_transformer, linear_probe, parameter_groups
from .sources import copied, fresh, gabor, mean_var, permuted
from .strategies import everywhere, initialize, transfusion

__all__ = [
    "Comparison",
    "compare",
    "copied",
    "everywhere",
    "finetune",
    "freeze",
    "fresh",
    "frozen_transformer",
    "gabor",
    "initialize",
    "linear_probe",
    "mean_var",
    "parameter_groups",
    "permuted",
    "transfusion",
]
