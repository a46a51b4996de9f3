"""Transformers as models of sequences; they live in `metalearn.models`."""

from metalearn.models.language_model import LanguageModel, read_llama2c
from metalearn.models.transformer import SequenceModel, sequence_model

__all__ = ["LanguageModel", "SequenceModel", "read_llama2c", "sequence_model"]
