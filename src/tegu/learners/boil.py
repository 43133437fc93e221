"""BOIL: a task changes the body alone; its features come to the head, not the head to them.

Oh, Yoo, Kim, Yun (2021), BOIL: towards representation change for few-shot learning,
arXiv:2008.08882, section 3: MAML with an inner step size of 0 for the head,

    body_i <- body - inner_lr * gradient of the support loss by the body, `inner_steps` times

while the outer step moves body and head both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners.maml import Maml


@dataclass(frozen=True, kw_only=True)
class Boil(Maml):
    """MAML whose inner loop leaves all but the body as it is.

    The body is the module that `body` names; all other parameters are shared by all tasks,
    and the state that is left of a task is its body. The other settings are those of
    `Maml`, and the inner step size that of the published code.

    Reference:
        arXiv:2008.08882. Differs from the paper: the outer loss is the mean over tasks, as in
        `Maml`. The code published with it normalises queries together: "transductive".
    """

    name: ClassVar[str] = "boil"
    targets: ClassVar[tuple[str, ...]] = ("classes", "numbers")

    inner_lr: float = 0.5
    eval_steps: int = 1

    def adaptable(self, params: Params) -> Params:
        """The body."""
        found = {name: p for name, p in params.items() if name.startswith(f"{self.body}.")}
        if not found:
            raise InputError(
                f"{type(self.model).__name__} without a module named '{self.body}' to be trained",
                "a model with its feature extractor in a module of its own",
                "Name that module `body`, or tell the learner its name: body=NAME.",
            )
        return found
