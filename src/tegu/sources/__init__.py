"""What the section [data] of a recipe may name: one class a source, its settings the keys."""

from tegu.sources.causal_graphs import CausalGraphs
from tegu.sources.causal_pairs import CausalPairs
from tegu.sources.gaussian_processes import GaussianProcesses
from tegu.sources.grammars import Grammars
from tegu.sources.images import CifarFs, Fc100, Glyphs, Omniglot, Scribbles
from tegu.sources.own import Folder, Packed, Sentences, Sounds
from tegu.sources.scan import MutualExclusivity, Scan
from tegu.sources.scan_study import ScanStudy
from tegu.sources.sinusoids import Sinusoids
from tegu.sources.source import Inputs, Source, Wanted
from tegu.sources.tables import Tables

__all__ = [
    "SOURCES",
    "CausalGraphs",
    "CausalPairs",
    "CifarFs",
    "Fc100",
    "Folder",
    "GaussianProcesses",
    "Glyphs",
    "Grammars",
    "Inputs",
    "MutualExclusivity",
    "Omniglot",
    "Packed",
    "Scan",
    "ScanStudy",
    "Scribbles",
    "Sentences",
    "Sinusoids",
    "Sounds",
    "Source",
    "Tables",
    "Wanted",
]

SOURCES: dict[str, type[Source]] = {
    cls.name: cls
    for cls in (
        CausalGraphs,
        CausalPairs,
        CifarFs,
        Fc100,
        Folder,
        GaussianProcesses,
        Glyphs,
        Grammars,
        MutualExclusivity,
        Omniglot,
        Packed,
        Scan,
        ScanStudy,
        Scribbles,
        Sentences,
        Sinusoids,
        Sounds,
        Tables,
    )
}
