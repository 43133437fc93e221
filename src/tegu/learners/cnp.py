"""Conditional neural process: the mean of the examples' representations, and a decoder.

Garnelo et al. (2018a), Conditional neural processes, arXiv:1807.01613, equations 1 to 3:

    r_i = h(x_i, y_i),  r = mean of r_i,  (mean, sd) of y at x = g(x, r)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu.learners.process import Process


@dataclass(frozen=True, kw_only=True)
class Cnp(Process):
    """Learns a task by averaging; `model` is a NeuralProcess with path="mean".

    Reference:
        arXiv:1807.01613. Differs from it: the loss is that of the queries only, where the
        paper also asks for the support points.
    """

    name: ClassVar[str] = "cnp"
    network: ClassVar[Mapping[str, Any]] = {"name": "neural-process", "path": "mean"}
