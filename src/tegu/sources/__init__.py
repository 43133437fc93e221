"""What the section [data] of a recipe may name: one class a source, its settings the keys."""

from tegu.sources.causal_graphs import CausalGraphs
from tegu.sources.images import CifarFs, Fc100, Glyphs, Omniglot
from tegu.sources.sinusoids import Sinusoids
from tegu.sources.source import Inputs, Source

__all__ = [
    "SOURCES",
    "CausalGraphs",
    "CifarFs",
    "Fc100",
    "Glyphs",
    "Inputs",
    "Omniglot",
    "Sinusoids",
    "Source",
]

SOURCES: dict[str, type[Source]] = {
    cls.name: cls
    for cls in (
        CausalGraphs,
        CifarFs,
        Fc100,
        Glyphs,
        Omniglot,
        Sinusoids,
    )
}
