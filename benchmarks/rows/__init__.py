"""The rows of the speed benchmark, by name; each yields contests, checked before they are timed."""

from rows import maml, metric, reptile, sampling
from rows.contest import Row

ROWS: dict[str, Row] = {
    "sinusoids-1": maml.sinusoids(1),
    "sinusoids-5": maml.sinusoids(5),
    "maml": maml.omniglot,
    "reptile": reptile.training,
    "test-tasks": reptile.testing,
    "protonet": metric.protonet,
    "transductive": metric.transductive,
    "sampling": sampling.sampling,
    "one-task": sampling.one_task,
}
