"""Transformers as models of sequences; they live in `metalearn.models`.

Example:
    >>> import torch
    >>> from transfer import copied, finetune, fresh, frozen_transformer, initialize
    >>> from transfer.sequences import bit_xor
    >>> from transfer.transformers import LanguageModel, sequence_model
    >>> _ = torch.manual_seed(0)
    >>> pretrained = LanguageModel(vocabulary=9, width=16, depth=2, heads=2).decoder
    >>> body = LanguageModel(vocabulary=9, width=16, depth=2, heads=2).decoder
    >>> data = bit_xor(64)
    >>> model = sequence_model(body, **data.dimensions)
    >>> report = initialize(model, {"body": copied(pretrained), "": fresh()})
    >>> train = finetune(data, bit_xor(32, seed=1), steps=2, frozen=frozen_transformer)
    >>> len(train(model, seed=0).losses)
    2
"""

from metalearn.models.language_model import LanguageModel, read_llama2c
from metalearn.models.transformer import SequenceModel, sequence_model

__all__ = ["LanguageModel", "SequenceModel", "read_llama2c", "sequence_model"]
