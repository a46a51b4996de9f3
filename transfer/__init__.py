"""Partial weight transfer as one call, comparisons of initialisations, and forgetting."""

import metalearn

if not hasattr(metalearn, "meta_train"):
    raise ImportError(
        f"the folder {metalearn.__path__[0]} is another project's 'metalearn', such as PyPI's, and"
        " not that of metalearn-transfer; use an environment of its own:"
        " python3 -m venv .venv && .venv/bin/pip install metalearn-transfer"
    )

from transfer.comparison.compare import Comparison, compare
from transfer.continual.forgetting import Forgetting, forgetting
from transfer.continual.memories import ewc, replay
from transfer.continual.sequence import learn_sequence
from transfer.experts.probes import disagreement_probes
from transfer.experts.triage import triage
from transfer.experts.votes import disagreement
from transfer.finetuning.finetune import finetune
from transfer.finetuning.trainable import freeze, frozen_transformer, linear_probe, parameter_groups
from transfer.initialisation.sources import (
    copied,
    fresh,
    gabor,
    mean_var,
    normal,
    permuted,
    xavier,
)
from transfer.initialisation.strategies import everywhere, initialize, transfusion

__all__ = [
    "Comparison",
    "Forgetting",
    "compare",
    "copied",
    "disagreement",
    "disagreement_probes",
    "everywhere",
    "ewc",
    "finetune",
    "forgetting",
    "freeze",
    "fresh",
    "frozen_transformer",
    "gabor",
    "initialize",
    "learn_sequence",
    "linear_probe",
    "mean_var",
    "normal",
    "parameter_groups",
    "permuted",
    "replay",
    "transfusion",
    "triage",
    "xavier",
]
