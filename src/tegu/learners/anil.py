"""ANIL: a task changes the head alone; its features are computed once.

Raghu, Raghu, Bengio, Vinyals (2020), Rapid learning or feature reuse? Towards
understanding the effectiveness of MAML, arXiv:1909.09157, section 4: MAML's inner
loop without the body (almost no inner loop),

    head_i <- head - inner_lr * gradient of the support loss by the head, `inner_steps` times

while the outer step moves body and head both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tegu.episodes import Examples
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners.learner import State
from tegu.learners.maml import Maml


@dataclass(frozen=True, kw_only=True)
class Anil(Maml):
    """MAML whose inner loop runs on features, through the head and nothing else.

    The model's forward has to be head(body(x)), of two modules. No step changes the body,
    so the support set passes through it once, however many steps there are, and the
    meta-gradient reaches the body through these features and those of the queries. The
    state that is left of a task is the head, and what normalisation needs.

    Args:
        head: name of the module that makes outputs of features; `body` names the other.
        first_order: as in MAML. The body then learns from the queries alone, since the
            steps, and with them the features of the support set, count as constants.

    The other settings are those of `Maml`. Batch normalisation sees the whole support set,
    of which mini-batches are taken behind the body.

    Reference:
        arXiv:1909.09157. Differs from the paper: the outer loss is a mean over tasks; the
        features are computed once, which changes no value as long as `inner_batch` is 0, its
        setting and the default.
    """

    name: ClassVar[str] = "anil"
    targets: ClassVar[tuple[str, ...]] = ("classes", "numbers")

    head: str = "head"

    def adaptable(self, params: Params) -> Params:
        """The head."""
        found = {name: p for name, p in params.items() if name.startswith(f"{self.head}.")}
        if not found:
            raise InputError(
                f"{type(self.model).__name__} without a module named {self.head} to be trained",
                "a model whose forward is head(body(x)), of two modules",
                "Name these parts of the model so, or tell the learner: body=NAME, head=NAME.",
            )
        self._check_apart()
        return found

    def _check_apart(self) -> None:
        body, head = (
            {id(p) for p in self._part(name).parameters() if p.requires_grad}
            for name in (self.body, self.head)
        )
        if body & head:
            raise InputError(
                f"weights that {self.body} and {self.head} of {type(self.model).__name__} share",
                "a head with weights of its own, since a task changes the head alone",
                "Untie them, or take maml or reptile.",
            )

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        state = super().begin(params, support, key, training=training)
        features = self._through(self.body, params, support.x, support.mask)
        return {**state, "features": features}

    def batch_loss(self, params: Params, state: State, support: Examples, index: Tensor) -> Tensor:
        known = support._replace(x=state["features"])
        batch, mask, scale = self.batch(state, known, index)
        weights = {**params, **state["weights"]}
        return scale * self.loss(self._through(self.head, weights, batch.x, mask), batch)

    def finish(self, state: State, *, training: bool) -> State:
        left = super().finish(state, training=training)
        return {name: value for name, value in left.items() if name != "features"}

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        with self._in_two_parts():
            return super().predict(params, state, query, mask)

    def _through(self, name: str, params: Params, x: Tensor, mask: Tensor | None) -> Tensor:
        """A pass through one module of the model."""
        inside = f"{name}."
        own = {k[len(inside) :]: p for k, p in params.items() if k.startswith(inside)}
        return self._call(self._part(name), own, x, mask, False)

    def _part(self, name: str) -> nn.Module:
        part: nn.Module | None = dict(self.model.named_modules()).get(name)
        if not name or part is None:
            raise InputError(
                f"{type(self.model).__name__} without a module named '{name}'",
                "a model whose forward is head(body(x)), of two modules",
                "Name these parts of the model so, or tell the learner: body=NAME, head=NAME.",
            )
        return part

    @contextmanager
    def _in_two_parts(self) -> Iterator[None]:
        """Holds the model's passes inside the block to head(body(x)), by which tensor goes where.

        Raises:
            InputError: the head gets another tensor than the body gives, or another tensor
                than the head gives is the answer.
        """
        body, head, thread = self._part(self.body), self._part(self.head), get_ident()
        last: dict[str, Any] = {}

        def watch(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if get_ident() != thread:
                return
            if module is body:
                last["features"] = output
            if module is head:
                last["direct"] = bool(given) and given[0] is last.get("features")
                last["outputs"] = output
            if module is self.model and not (last.get("direct") and output is last["outputs"]):
                raise InputError(
                    f"{type(module).__name__}, whose forward does more than {self.head} and "
                    f"{self.body}",
                    f"a forward that is {self.head}({self.body}(x))",
                    "Move what lies between them, or behind, into one of the two; or take maml.",
                )

        # A hook of torch's own list, not of the modules, which stay as they are.
        handle = register_module_forward_hook(watch)
        try:
            yield
        finally:
            handle.remove()
