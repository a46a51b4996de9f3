"""Studies of papers that need fine-tuning: one question a file, one function a result."""

from .pointer_grid import GridCell, PointerGrid, pointer_grid

__all__ = ["GridCell", "PointerGrid", "pointer_grid"]
