"""Headers of the arrays in an npz archive, read before memory is taken for the arrays."""

from __future__ import annotations

import math
import zipfile
from typing import NamedTuple

import numpy as np


class ArrayHeader(NamedTuple):
    """The shape and dtype that an array claims, and the length of its header in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    length: int

    @property
    def claimed(self) -> int:
        """The bytes of the array, without its header."""
        return math.prod(self.shape) * self.dtype.itemsize


def array_header(archive: zipfile.ZipFile, name: str) -> ArrayHeader:
    """Read the header of one array.

    Args:
        archive: an npz archive.
        name: the array's file in it, such as "images.npy".

    Raises:
        ValueError: if the file is no array.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> np.savez(file, images=np.zeros((3, 4), dtype=np.uint8))
        >>> array_header(zipfile.ZipFile(file), "images.npy").claimed
        12
    """
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        return ArrayHeader(shape, dtype, file.tell())
