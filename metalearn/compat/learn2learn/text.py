"""learn2learn's text data: not covered; every name raises an error with a replacement."""

from ._missing import uncovered

__getattr__ = uncovered(
    __name__,
    "text data sets are not covered; l2l.data.MetaDataset takes any torch data set of (example, "
    "label), such as tensors of token ids with integer labels",
)
