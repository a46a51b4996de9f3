"""Sequence tasks to fine-tune on; they live in `metalearn.data.sequences`."""

from metalearn.data.sequences import (
    Sequences,
    bit_memory,
    bit_xor,
    listops,
    patches,
    remote_homology,
    text_windows,
)

__all__ = [
    "Sequences",
    "bit_memory",
    "bit_xor",
    "listops",
    "patches",
    "remote_homology",
    "text_windows",
]
