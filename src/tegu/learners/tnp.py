"""Transformer neural process, TNP-D: in-context regression with a distribution.

Nguyen and Grover (2022), Transformer neural processes, arXiv:2207.04179, section 4.2: support
points attend to support points, queries to support points only, and each query is predicted by
a normal distribution of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu.learners.process import Process


@dataclass(frozen=True, kw_only=True)
class Tnp(Process):
    """Its state is the support set's keys and values in every layer of a TransformerProcess.

    Reference:
        arXiv:2207.04179. Differs from it: see `tegu.models.TransformerProcess`.
    """

    name: ClassVar[str] = "tnp"
    network: ClassVar[Mapping[str, Any]] = {"name": "transformer-process"}
