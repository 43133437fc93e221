"""What the section [data] of a recipe may name: one class a source, its settings the keys."""

from tegu.sources.images import CifarFs, Fc100, Glyphs, Omniglot
from tegu.sources.sinusoids import Sinusoids
from tegu.sources.source import Inputs, Source

__all__ = [
    "SOURCES",
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
        CifarFs,
        Fc100,
        Glyphs,
        Omniglot,
        Sinusoids,
    )
}
