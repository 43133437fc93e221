"""Attentive neural process: queries look at the examples that lie near them.

Kim et al. (2019), Attentive neural processes, arXiv:1901.05761: to the latent variable of a
neural process comes a deterministic path, in which a query attends to the representations of
the examples, by its input and theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tegu.learners.latentnp import Np


@dataclass(frozen=True, kw_only=True)
class Anp(Np):
    """A neural process around a NeuralProcess with path="attention".

    Reference:
        arXiv:1901.05761, section 3. Differs from it: in the bound the targets are the
        queries, where the paper counts the support points among them. The code of Nguyen and
        Grover (2022) trains on another bound, of four weighted draws, and answers by 50.
    """

    name: ClassVar[str] = "anp"
    network: ClassVar[Mapping[str, Any]] = {
        "name": "neural-process",
        "path": "attention",
        "latent": 128,
        "self_attention": True,
    }
