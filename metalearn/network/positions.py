"""Which embeddings of a transformer are tables of positions."""

from __future__ import annotations

from torch import nn

from metalearn.network.layers import resolve

# GPT-2's name for it.
NAMES = ("wpe",)
# Words that a name may begin with, between underscores.
WORDS = ("pos", "position", "positions", "positional")


def position_tables(model: nn.Module, name: str | None = None) -> list[str]:
    """The paths of the tables of positions: each `nn.Embedding` whose name says so.

    Such names are `wpe` (GPT-2), `position_embeddings` (BERT), `embed_positions` (BART) and the
    like. The size of a table says nothing: a token table may be as small.

    Args:
        model: any network.
        name: the path of a further table, whatever its name.

    Raises:
        ValueError: `name` is no `nn.Embedding` of the model.

    Example:
        >>> table = nn.ModuleDict({"wte": nn.Embedding(9, 2), "wpe": nn.Embedding(4, 2)})
        >>> position_tables(table)
        ['wpe']
    """
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _says_positions(path)
    ]
    if name is None:
        return paths
    module = model.get_submodule(resolve(model, name))
    if not isinstance(module, nn.Embedding):
        raise ValueError(
            f"positions={name!r} is a {type(module).__name__}; name an nn.Embedding, such as 'wpe'"
        )
    return [*paths, name] if name not in paths else paths


def _says_positions(path: str) -> bool:
    last = path.rpartition(".")[2]
    return last in NAMES or any(word in WORDS for word in last.lower().split("_"))
