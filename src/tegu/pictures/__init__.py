"""Pictures, drawn in one style and written whole or not at all.

matplotlib is imported when the first is drawn, and none of its global state is touched
for long.
"""

from tegu.pictures.bands import Band, predictive_bands
from tegu.pictures.beliefs import belief_paths
from tegu.pictures.compare import side_by_side
from tegu.pictures.graphs import belief_graph, recovery
from tegu.pictures.runs import comparison, episode, learning_curve, sinusoid_fit, tradeoff

__all__ = [
    "Band",
    "belief_graph",
    "belief_paths",
    "comparison",
    "episode",
    "learning_curve",
    "predictive_bands",
    "recovery",
    "side_by_side",
    "sinusoid_fit",
    "tradeoff",
]
