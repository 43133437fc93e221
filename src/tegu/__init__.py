"""Meta-learning: train once over many tasks, then learn a new one from a few examples.

>>> learned = tegu.meta_train(learner, tasks, meta_iterations=1000)  # phase 1  # doctest: +SKIP
>>> learned.adapt(x, labels).predict(new_x)  # phase 2  # doctest: +SKIP
"""

from tegu import datasets, learners, losses, models
from tegu.adapted import Adapted
from tegu.arrays import grouped
from tegu.datasets import (
    ClassDataset,
    GaussianProcesses,
    Packable,
    Sinusoids,
    SyntheticTables,
    load_cifar_fs,
    load_fc100,
    load_folder,
    load_glyphs,
    load_omniglot,
    load_packed,
    load_scribbles,
    load_sentences,
    load_sounds,
    pack_folder,
    read_images,
    read_sentences,
    read_sounds,
    write_packed,
)
from tegu.episodes import Episode, Examples
from tegu.errors import InputError
from tegu.estimator import ReptileEstimator
from tegu.learners import Learner, Reptile
from tegu.meta import MetaLearned, meta_train
from tegu.runs import load_run
from tegu.sampling import ClassBatches, FewShotTasks

__version__ = "0.1.0"

__all__ = [
    "Adapted",
    "ClassBatches",
    "ClassDataset",
    "Episode",
    "Examples",
    "FewShotTasks",
    "GaussianProcesses",
    "InputError",
    "Learner",
    "MetaLearned",
    "Packable",
    "Reptile",
    "ReptileEstimator",
    "Sinusoids",
    "SyntheticTables",
    "datasets",
    "grouped",
    "learners",
    "load_cifar_fs",
    "load_fc100",
    "load_folder",
    "load_glyphs",
    "load_omniglot",
    "load_packed",
    "load_run",
    "load_scribbles",
    "load_sentences",
    "load_sounds",
    "losses",
    "meta_train",
    "models",
    "pack_folder",
    "read_images",
    "read_sentences",
    "read_sounds",
    "write_packed",
]
