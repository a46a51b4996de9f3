"""Modules of earlier versions that have moved: importing one raises an error with its new name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "metalearn.analysis.batches": "metalearn.analysis.networks.batches",
    "metalearn.analysis.converged": "metalearn.analysis.adaptation.converged",
    "metalearn.analysis.decomposition": "metalearn.analysis.adaptation.decomposition",
    "metalearn.analysis.freezing": "metalearn.analysis.adaptation.freezing",
    "metalearn.analysis.layerwise": "metalearn.analysis.networks.layerwise",
    "metalearn.analysis.matrices": "metalearn.analysis.measures.inputs",
    "metalearn.analysis.observed": "metalearn.analysis.adaptation.observe",
    "metalearn.analysis.plots": "metalearn.analysis.adaptation.figures",
    "metalearn.analysis.probes": "metalearn.analysis.networks.probes",
    "metalearn.analysis.report": "metalearn.analysis.adaptation.page",
    "metalearn.analysis.reuse": "metalearn.analysis.adaptation.feature_reuse",
    "metalearn.analysis.seeds": "metalearn.analysis.networks.between",
    "metalearn.analysis.similarity": "metalearn.analysis.measures.chance",
    "metalearn.analysis.similarity_map": "metalearn.analysis.networks.similarity_map",
    "metalearn.analysis.streaming": "metalearn.analysis.measures.streaming",
    "metalearn.analysis.tables": "metalearn.runtime.tables",
    "metalearn.analysis.together": "metalearn.analysis.adaptation.over_seeds",
    "metalearn.analysis.verdict": "metalearn.analysis.adaptation.verdict",
    "metalearn.checkpoints": "metalearn.training.checkpoints",
    "metalearn.checks": "metalearn.runtime.checks",
    "metalearn.execution": "metalearn.engine.execution",
    "metalearn.files": "metalearn.runtime.files",
    "metalearn.forward": "metalearn.network.forward",
    "metalearn.functional": "metalearn.network.functional",
    "metalearn.graphs": "metalearn.engine.recording",
    "metalearn.inner_loop": "metalearn.engine.inner_loop",
    "metalearn.layers": "metalearn.network.layers",
    "metalearn.learner": "metalearn.algorithms.base",
    "metalearn.memory": "metalearn.engine.memory",
    "metalearn.norm": "metalearn.network.norm",
    "metalearn.operations": "metalearn.kernels.conv_cpu",
    "metalearn.options": "metalearn.runtime.options",
    "metalearn.presets": "metalearn.experiments.presets",
    "metalearn.progress": "metalearn.runtime.progress",
    "metalearn.randomness": "metalearn.engine.randomness",
    "metalearn.ranks": "metalearn.runtime.distributed",
    "metalearn.readouts": "metalearn.algorithms.features",
    "metalearn.records": "metalearn.training.callbacks.json_lines",
    "metalearn.regimes": "metalearn.experiments.regimes",
    "metalearn.registry": "metalearn.models.registry",
    "metalearn.representations": "metalearn.network.activations",
    "metalearn.stacked": "metalearn.kernels.conv_per_task",
    "metalearn.sweep": "metalearn.experiments.sweep",
    "metalearn.tasks.cifar_fs": "metalearn.data.cifar",
    "metalearn.tasks.decoding": "metalearn.data.decoding",
    "metalearn.tasks.glyphs": "metalearn.data.glyphs",
    "metalearn.tasks.image_folder": "metalearn.data.folders",
    "metalearn.tasks.omniglot": "metalearn.data.omniglot",
    "metalearn.tasks.split_table": "metalearn.data.split_table",
    "metalearn.weights": "metalearn.models.weights",
    "metalearn.workers": "metalearn.runtime.parallel",
    "transfer.freezing": "transfer.finetuning.trainable",
    "transfer.plots": "transfer.comparison.figures",
    "transfer.report": "transfer.comparison.page",
    "transfer.sources": "transfer.initialisation.sources",
    "transfer.statistics": "transfer.comparison.statistics",
    "transfer.strategies": "transfer.initialisation.strategies",
    "transfer.weights": "transfer.initialisation.weights",
}


class MovedModules(MetaPathFinder):
    """Raises ImportError with the new name of a module that has moved."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise ImportError if the module has moved; None for any other module."""
        if fullname in MOVED:
            raise ImportError(
                f"{fullname} has moved; import {MOVED[fullname]} instead", name=fullname
            )
        return None


def announce_moved_modules() -> None:
    """Add the finder behind Python's own, once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
