"""Where examples come from: one file a source."""

from tegu.datasets import augment as augment
from tegu.datasets.causal_graphs import CausalGraphs as CausalGraphs
from tegu.datasets.cifar import load_cifar_fs as load_cifar_fs
from tegu.datasets.cifar import load_fc100 as load_fc100
from tegu.datasets.classes import ClassDataset as ClassDataset
from tegu.datasets.glyphs import load_glyphs as load_glyphs
from tegu.datasets.omniglot import LakeRuns as LakeRuns
from tegu.datasets.omniglot import load_lake_runs as load_lake_runs
from tegu.datasets.omniglot import load_omniglot as load_omniglot
from tegu.datasets.sinusoids import Sinusoids as Sinusoids
