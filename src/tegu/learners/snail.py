"""SNAIL: causal convolutions over time that gather, causal attention that pinpoints.

Mishra, Rohaninejad, Chen, Abbeel (2018), A simple neural attentive meta-learner,
arXiv:1707.03141, section 3. With x the sequence so far, each block widens it:

    dense(x, d)  = [x, tanh(f) * sigmoid(g)],  (f, g) = causal convolution of x, 2 taps d apart
    tc(x)        = dense blocks with d = 1, 2, 4, ...
    attention(x) = [x, softmax(q k / sqrt(K)) v]   over earlier steps and the step itself

and the network is attention, tc, attention, tc, attention, and one dense layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.learner import State
from tegu.learners.reader import Reader, Sequence, attend, before, linear


@dataclass(frozen=True, kw_only=True)
class Snail(Reader):
    """SNAIL over pairs of example and label, the last without one.

    The state is, for each convolution, the one step back that a query's tap looks at, and the
    keys and values of each attention.

    Args:
        length: steps of a sequence, query included, that the convolutions reach over: as many
            dense blocks as it takes doublings. Attention reaches over all. In the paper it is
            n_way * n_shot + 1, the default 6 being that of 5-way 1-shot tasks; 21 is that of
            20-way ones.
        filters: of each dense block.
        key_width: width of keys in the three attentions.
        value_width: width of their values.

    The other settings are those of `Reader`.

    Reference:
        arXiv:1707.03141, its widths for Omniglot. Differs from the paper: dilations begin with
        1, so that every step of `length` is reached, and not with 2; example and label are each
        embedded, and summed, where they are concatenated.
    """

    name: ClassVar[str] = "snail"

    width: int = 64
    length: int = 6
    filters: int = 128
    key_width: tuple[int, ...] = (64, 256, 512)
    value_width: tuple[int, ...] = (32, 128, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("length", 2), ("filters", 1)):
            check_range(name, getattr(self, name), least)
        for name in ("key_width", "value_width"):
            given = getattr(self, name)
            if len(given) != 3 or min(given) < 1:
                raise InputError(f"{name} is {given}", "three widths of at least 1", "Write three.")

    def blocks(self) -> list[tuple[str, int, int]]:
        """Name, input width and dilation of each block; 0 for an attention."""
        found, width = [], self.width
        for part in range(3):
            found.append((f"{part}.attention", width, 0))
            width += self.value_width[part]
            for i in range((self.length - 1).bit_length() if part < 2 else 0):
                found.append((f"{part}.dense{i}", width, 2**i))
                width += self.filters
        return found

    def out_width(self) -> int:
        convolutions = sum(dilation > 0 for *_, dilation in self.blocks())
        return self.width + sum(self.value_width) + convolutions * self.filters

    def weights(self) -> Params:
        found: Params = {}
        for name, width, dilation in self.blocks():
            if dilation:
                found |= self.dense(name, 2 * width, 2 * self.filters)  # taps: back, and here
            else:
                part = int(name[0])
                found |= self.dense(f"{name}.query", width, self.key_width[part])
                found |= self.dense(f"{name}.key", width, self.key_width[part])
                found |= self.dense(f"{name}.value", width, self.value_width[part])
        return found

    def read(self, own: Params, given: Sequence, *, positions: bool) -> tuple[State, Tensor]:
        steps = torch.arange(len(given.mask), device=given.mask.device)
        x, lower, end = given.examples + given.labels, before(given.mask), given.mask.sum()
        asked = given.examples + given.unknown  # in a pair's place, but its label is not there yet
        left: dict[str, Any] = {}
        for name, _, dilation in self.blocks():
            if dilation:
                left[name] = back(x, end[None], dilation)[0]
                past: Any = back(x, steps, dilation)
            else:
                left[name] = past = keys_and_values(own, name, x)
            if positions:
                asked = widened(own, name, asked, past, lower)
            x = widened(own, name, x, past, lower)
        return {"left": left, "mask": given.mask}, asked if positions else x[:0]

    def ask(self, own: Params, state: State, examples: Tensor, unknown: Tensor) -> Tensor:
        x, seen = examples + unknown, state["mask"].expand(len(examples), -1)
        for name, past in state["left"].items():
            x = widened(own, name, x, past, seen)
        return x


def widened(own: Params, name: str, x: Tensor, past: Any, seen: Tensor) -> Tensor:
    """One block: steps (M, C) to (M, C + more).

    Args:
        own: weights.
        name: the block's.
        x: steps, each at its place in a sequence of its own.
        past: of a dense block, what its tap finds (M, C) or (C,); of an attention, keys and
            values (S, 1, K) and (S, 1, V).
        seen: which of the past each step sees, shape (M, S) bool.
    """
    if isinstance(past, Tensor):
        gates = linear(own, name, torch.cat([past.expand_as(x), x], -1))
        f, g = gates.chunk(2, -1)
        return torch.cat([x, f.tanh() * g.sigmoid()], -1)
    query = linear(own, f"{name}.query", x)[:, None]
    return torch.cat([x, attend(query, keys_and_values(own, name, x), past, seen)], -1)


def keys_and_values(own: Params, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of steps (M, C), with one head: (M, 1, K) and (M, 1, V)."""
    return linear(own, f"{name}.key", x)[:, None], linear(own, f"{name}.value", x)[:, None]


def back(x: Tensor, at: Tensor, dilation: int) -> Tensor:
    """Rows of x (S, C) so many steps before `at` (M,): (M, C), zeros before the first.

    Example:
        >>> back(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 3]), 2)
        tensor([[0.],
                [2.]])
    """
    found = F.pad(x, (0, 0, 1, 0))  # row 0 is what lies before the first
    return found.index_select(0, (at - dilation + 1).clamp(min=0))
