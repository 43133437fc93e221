"""Where examples come from: one file a source."""

from tegu.datasets import augment as augment
from tegu.datasets.causal_graphs import CausalGraphs as CausalGraphs
from tegu.datasets.causal_pairs import CategoryPairs as CategoryPairs
from tegu.datasets.causal_pairs import ContinuousPairs as ContinuousPairs
from tegu.datasets.cifar import load_cifar_fs as load_cifar_fs
from tegu.datasets.cifar import load_fc100 as load_fc100
from tegu.datasets.classes import ClassDataset as ClassDataset
from tegu.datasets.folders import load_folder as load_folder
from tegu.datasets.folders import pack_folder as pack_folder
from tegu.datasets.folders import read_images as read_images
from tegu.datasets.gaussian_processes import GaussianProcesses as GaussianProcesses
from tegu.datasets.glyphs import load_glyphs as load_glyphs
from tegu.datasets.grammars import Grammars as Grammars
from tegu.datasets.mutual_exclusivity import MutualExclusivity as MutualExclusivity
from tegu.datasets.omniglot import LakeRuns as LakeRuns
from tegu.datasets.omniglot import load_lake_runs as load_lake_runs
from tegu.datasets.omniglot import load_omniglot as load_omniglot
from tegu.datasets.packed import Packable as Packable
from tegu.datasets.packed import load_packed as load_packed
from tegu.datasets.packed import write_packed as write_packed
from tegu.datasets.scan_study import ScanStudy as ScanStudy
from tegu.datasets.scan_tasks import Scan as Scan
from tegu.datasets.sinusoids import Sinusoids as Sinusoids
from tegu.datasets.tables import SyntheticTables as SyntheticTables
