"""In-context learners: a support set is read as a sequence, and nothing else happens.

Adapting is one pass over the examples with their labels; what the pass leaves behind (a
recurrent state, keys and values) is what was learned. The learning rule is in the weights of
the network that reads. `Lstm`, `Snail` and `InContext` are such networks. What they share:

    e_i = E f(x_i)                   an example, embedded; f is the model
    l_i = row y_i of L, or L y_i     its label, a class or numbers; u where it is unknown
    (e_1, l_1), ..., (e_n, l_n)      the support set, in the order it came in
    (e_q, u)                         a query, at the end of that sequence

Each query continues the sequence by itself and sees no other query, so that all of them are
answered side by side from one pass over the support set.

Order and the names of classes mean nothing in a task, but something to such a network. So in
meta-training the examples of classes, which episodes hold one class after another, are shuffled.
And a new task may be read in several views, the examples in another order and the classes under
other labels, and answers averaged. Examples pass the model once, whatever the number of views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from tegu import keys
from tegu.episodes import Episode, Examples
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners.head import Head, members
from tegu.learners.learner import Learner, State
from tegu.losses import cross_entropy, gaussian

OWN = "reader/"  # the reading network's weights among what is meta-learned


class Sequence(NamedTuple):
    """A support set in reading order: real rows first, padding behind them.

    Attributes:
        examples: e, shape (S, W).
        labels: l, shape (S, W).
        unknown: u, shape (W,).
        mask: shape (S,) bool; True up to the number of real rows.
    """

    examples: Tensor
    labels: Tensor
    unknown: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class Reader(Head):
    """What learners that read a support set share.

    A network is `weights`, its own initial values; `read`, a pass over the support set; and
    `ask`, queries at the end of it.

    Args:
        n_way: classes of a task; after meta-training it may be less than it was then.
        numbers: how many numbers a target has; 0 where targets are classes.
        width: W of the embedded examples and labels.
        every: weight of the mean loss over the support set, whose examples are each
            predicted from those before it; 0 for the loss on queries alone.
        views: how many times a new task is read, after meta-training; 1: in the order
            it came, and no more.
        shuffled: whether meta-training reads examples of classes in random order; else as
            episodes have them, class after class, which is then how to show a new task.
        seed: of the reading network's initial weights.
    """

    targets: ClassVar[tuple[str, ...]] = ("classes", "numbers")
    later: ClassVar[tuple[str, ...]] = ("views",)
    start: ClassVar[Mapping[str, Any]] = {
        "learner.normalisation": "running",
        "learner.shuffled": True,
        "train.outer_lr": 0.001,
        "train.outer_lr_final": 0.0,
        "train.meta_batch": 8,
        "train.n_query": 5,
    }
    start_numbers: ClassVar[Mapping[str, Any]] = {
        "train.outer_lr": 0.001,
        "train.outer_lr_final": 0.0,
        "train.meta_batch": 25,
        "train.n_shot": 10,
        "train.n_query": 20,
        "data.grid_query": False,
    }

    numbers: int = 0
    width: int = 128
    every: float = 0.0
    views: int = 1
    shuffled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("numbers", 0), ("width", 1), ("every", 0), ("views", 1)):
            if not least <= getattr(self, name) < float("inf"):
                given = getattr(self, name)
                raise InputError(f"{name} is {given}", f"at least {least}", f"Change {name}.")
        if self.numbers and self.loss is cross_entropy:
            raise InputError(
                f"numbers is {self.numbers} with the loss of classes",
                "a loss of numbers",
                "Pass loss=tegu.losses.squared_error.",
            )

    def for_ways(self, n_way: int) -> Learner:
        """The learner for tasks of n_way classes, no more than it has labels for."""
        if n_way > self.n_way and not self.numbers:
            raise InputError(
                f"tasks of {n_way} ways for {self.name} with labels for {self.n_way}",
                "no more ways than in meta-training",
                f"Set train.n_way={n_way}.",
            )
        return super().for_ways(n_way)

    def n_targets(self, params: Params, x: Tensor) -> int:
        self.features(params, x)  # where a misfit shows
        if not self.numbers:
            raise InputError(
                "targets that are numbers where numbers is 0",
                "as many as a target has",
                f"Build {type(self).__name__} with numbers=1, say.",
            )
        return self.numbers

    # What a network fills in.

    def weights(self) -> Params:
        """Initial values of the network, by names of its own."""
        raise TypeError(f"{type(self).__name__} has no weights()")

    def out_width(self) -> int:
        """Width H of what `ask` returns."""
        raise TypeError(f"{type(self).__name__} has no out_width()")

    def read(self, own: Params, given: Sequence, *, positions: bool) -> tuple[State, Tensor]:
        """A pass over a support set.

        Args:
            own: the network's weights, by the names in `weights`.
            given: the support set.
            positions: whether predictions at every position are asked for.

        Returns:
            All that `ask` needs; and, where `positions`, outputs of shape (S, H): row t is
            what `ask` would answer to example t after the rows before it alone. Else (0, H).
        """
        raise TypeError(f"{type(self).__name__} has no read()")

    def ask(self, own: Params, state: State, examples: Tensor, unknown: Tensor) -> Tensor:
        """Queries (Q, W), each at the end of what was read: outputs (Q, H)."""
        raise TypeError(f"{type(self).__name__} has no ask()")

    # What they share.

    def init(self) -> Params:
        """The model's weights, and those of the reading network under "reader/"."""
        targets = self.numbers or self.n_way
        outputs = targets * (2 if self.loss is gaussian else 1)
        own = {
            **self.dense("example", self.feature_width(), self.width),
            # As large as an embedded example, whose features are of the order of 1.
            "label": self.drawn("label", (targets, self.width), seed=self.seed, bound=1.0),
            "unknown": self.drawn("unknown", (self.width,), seed=self.seed, bound=1.0),
            **self.weights(),
            **self.dense("out", self.out_width(), outputs),
        }
        return {**super().init(), **{OWN + name: value for name, value in own.items()}}

    def dense(self, name: str, inputs: int, outputs: int) -> Params:
        """Initial weight (outputs, inputs) and bias (outputs,) of a dense layer."""
        weight = self.drawn(name, (outputs, inputs), seed=self.seed)
        return {f"{name}.weight": weight, f"{name}.bias": weight.new_zeros(outputs)}

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Loss on the queries, and `every` times that at the support set's own positions."""
        if self.shuffled and not self.numbers:
            support = episode.support
            order = keys.bits(keys.fold(key, 5), len(support.mask)).argsort(stable=True)
            episode = episode._replace(support=Examples(*(field[order] for field in support)))
        known, asked = self.passed(params, episode)
        state, outputs = self._read(params, known, episode.support, positions=self.every > 0)
        scores = self._viewed(params, state, asked)
        loss = self.loss(scores, episode.query)
        if not self.every:
            return loss
        return loss + self.every * self.loss(self._outputs(params, outputs), episode.support)

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        features = self.features(params, support.x, support.mask, training=training)
        kept = {"support": self.kept(support)}
        if training or self.views == 1:
            return {**self._fitted(params, features, support), **kept}
        rows, names = self._orders(key, support.mask)

        def viewed(rows: Tensor, names: Tensor) -> State:
            x, y, mask = (field[rows] for field in support)
            seen = Examples(x, y if self.numbers else names[y], mask)
            return self._fitted(params, features[rows], seen)

        return {**vmap(viewed)(rows, names), "names": names, **kept}

    def _orders(self, key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Order of examples (V, S) and names of classes (V, N) in each view; the first as it is."""
        orders, renamed = ([torch.arange(n, device=key.device)] for n in (len(mask), self.n_way))
        for view in range(1, self.views):
            own = keys.fold(key, view)
            # Padding has no say in the order of the others.
            drawn = torch.where(mask, keys.bits(own, len(mask)) >> 1, torch.iinfo(torch.int64).max)
            orders.append(drawn.argsort(stable=True))
            renamed.append(keys.permutation(keys.fold(own, 1), self.n_way))
        return torch.stack(orders), torch.stack(renamed)

    def positions(self, params: Params, support: Examples) -> Tensor:
        """Outputs (S, N) or (S, D): each support example, predicted from those before it."""
        features = self.features(params, support.x, support.mask)
        return self._outputs(params, self._read(params, features, support, positions=True)[1])

    def _fitted(self, params: Params, features: Tensor, support: Examples) -> State:
        return self._read(params, features, support, positions=False)[0]

    def _scored(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        if "names" not in state:
            return self._viewed(params, state, features)
        views = {name: state[name] for name in ("read", "present") if name in state}
        outputs = vmap(lambda view: self._viewed(params, view, features))(views)
        if self.numbers:  # each view a component, equally likely
            mixed = self.loss is gaussian
            return outputs.transpose(0, 1).flatten(1) if mixed else outputs.mean(0)
        own = vmap(lambda scores, names: scores[:, names])(outputs, state["names"])
        mean: Tensor = own.log_softmax(-1).logsumexp(0) - math.log(len(own))
        return mean.masked_fill(~state["present"][0], torch.finfo(mean.dtype).min)

    def _viewed(self, params: Params, state: State, features: Tensor) -> Tensor:
        """Outputs for query features (Q, D), from what one view left."""
        own = _own(params)
        asked = self.ask(own, state["read"], linear(own, "example", features), own["unknown"])
        outputs = self._outputs(params, asked)
        if self.numbers:
            return outputs
        return outputs.masked_fill(~state["present"], torch.finfo(outputs.dtype).min)

    def _read(
        self, params: Params, features: Tensor, support: Examples, *, positions: bool
    ) -> tuple[State, Tensor]:
        """The state, and outputs (S, H) at each position, in the order of the support set."""
        self._check(support, params)
        own = _own(params)
        # Real rows first, in their order; a row's place is where it went.
        order = (~support.mask).long().argsort(stable=True)
        given = Sequence(
            linear(own, "example", features)[order],
            self._labels(own, support.y)[order],
            own["unknown"],
            support.mask[order],
        )
        read, outputs = self.read(own, given, positions=positions)
        state: State = {"read": read}
        if not self.numbers:
            state["present"] = members(support, self.n_way, features).sum(0) > 0
        return state, outputs[order.argsort()] if positions else outputs

    def _labels(self, own: Params, y: Tensor) -> Tensor:
        """Labels l (S, W) of targets."""
        if self.numbers:
            return y.to(own["label"].dtype) @ own["label"]
        return F.one_hot(y, self.n_way).to(own["label"].dtype) @ own["label"][: self.n_way]

    def _outputs(self, params: Params, hidden: Tensor) -> Tensor:
        """Scores (Q, N) of as many classes as a task has, or what the loss of numbers takes."""
        rows = None if self.numbers else self.n_way
        weight, bias = (params[f"{OWN}out.{kind}"][:rows] for kind in ("weight", "bias"))
        outputs = F.linear(hidden, weight, bias)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _check(self, support: Examples, params: Params) -> None:
        if not len(support.mask):
            raise InputError(
                "a support set without rows", "at least one", "Give the task some examples."
            )
        shape = tuple(support.y.shape[1:]) if support.y.is_floating_point() else ()
        if shape != ((self.numbers,) if self.numbers else ()):
            raise InputError(
                f"targets of {shape[0] if shape else 'classes'} where numbers is {self.numbers}",
                "the kind of targets that the learner was made for",
                "Write numbers=0 for classes, or as many as a target has.",
            )
        if not self.numbers and (known := len(params[OWN + "label"])) < self.n_way:
            raise InputError(
                f"{self.n_way} ways with labels for {known}",
                "no more ways than in meta-training",
                "Lower n_way, or meta-train with as many.",
            )

    def drawn(self, name: str, shape: tuple[int, ...], *, seed: int, bound: float = 0.0) -> Tensor:
        """As `Head.drawn`; uniform within plus and minus `bound` where it is given."""
        drawn = super().drawn(name, shape, seed=seed)
        return drawn * (bound * shape[-1] ** 0.5) if bound else drawn


def _own(params: Params) -> Params:
    return {k.removeprefix(OWN): p for k, p in params.items() if k.startswith(OWN)}


def linear(own: Params, name: str, x: Tensor) -> Tensor:
    """The dense layer `name`: (..., inputs) to (..., outputs)."""
    return F.linear(x, own[f"{name}.weight"], own[f"{name}.bias"])


def before(mask: Tensor) -> Tensor:
    """Which real rows lie before each: shape (S, S) bool, row t is True at real rows below t."""
    rows = torch.arange(len(mask), device=mask.device)
    return (rows < rows[:, None]) & mask


def attend(
    query: Tensor, own: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor], seen: Tensor
) -> Tensor:
    """Attention of items to what was before them and to themselves.

    Args:
        query: shape (M, H, K), H heads of width K.
        own: keys (M, H, K) and values (M, H, V) of the items themselves.
        past: keys (S, H, K) and values (S, H, V).
        seen: which of the past an item sees, shape (M, S) bool.

    Returns:
        Shape (M, H * V).
    """
    scale = query.shape[-1] ** -0.5
    to_past = torch.einsum("mhk,shk->mhs", query, past[0]) * scale
    least = torch.finfo(to_past.dtype).min
    to_past = to_past.masked_fill(~seen[:, None], least)
    to_itself = (query * own[0]).sum(-1, keepdim=True) * scale
    shares = torch.cat([to_past, to_itself.to(to_past.dtype)], -1).softmax(-1).to(past[1].dtype)
    mixed = torch.einsum("mhs,shv->mhv", shares[..., :-1], past[1]) + shares[..., -1:] * own[1]
    return mixed.flatten(1)
