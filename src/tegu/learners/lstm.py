"""An LSTM that learns: the support set runs through it, and its state is what was learned.

Hochreiter, Younger, Conwell (2001), Learning to learn using gradient descent; for few-shot
classification Santoro et al. (2016), One-shot learning with memory-augmented neural networks,
arXiv:1605.06065, section 2. The label comes one step late, with the next example:

    (h_t, c_t) = lstm((x_t, y_{t-1}), (h_{t-1}, c_{t-1}))      p(y_t) from h_t

so that the network must hold an example until its label is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tegu.errors import check_range
from tegu.inner import Params
from tegu.learners.learner import State
from tegu.learners.reader import Reader, Sequence
from tegu.models.lstm import cell

Pair = tuple[Tensor, Tensor]  # hidden state h and cell c


@dataclass(frozen=True, kw_only=True)
class Lstm(Reader):
    """A stack of LSTM layers over (example, last label).

    The state is h and c of each layer and the last label: its size does not grow with the
    support set.

    Args:
        hidden: width of h and c.
        layers: how many, each reading the one below.

    The other settings are those of `Reader`.

    Reference:
        The papers above. Differs from them: examples are features of a model that is
        meta-learned along, where they feed pixels; example and label are each embedded, and
        summed; the loss at the support set's positions is a mean of its own beside that of the
        queries, which are answered side by side; two layers; Adam in place of RMSprop.
    """

    name: ClassVar[str] = "lstm"

    hidden: int = 256
    layers: int = 2
    every: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "layers"):
            check_range(name, getattr(self, name), 1)

    def out_width(self) -> int:
        return self.hidden

    def weights(self) -> Params:
        found: Params = {}
        for i in range(self.layers):
            inputs = self.width if i == 0 else self.hidden
            # Gates in torch.nn.LSTM's order: input, forgetting, cell, output.
            found |= self.dense(f"{i}.in", inputs, 4 * self.hidden)
            weight = self.drawn(f"{i}.back", (4 * self.hidden, self.hidden), seed=self.seed)
            found[f"{i}.back.weight"] = weight
        return found

    def read(self, own: Params, given: Sequence, *, positions: bool) -> tuple[State, Tensor]:
        first = given.unknown.to(given.labels.dtype)[None]
        late = torch.cat([first, given.labels[:-1]])  # y_{t-1}; nothing known before the first
        x, pairs = given.examples + late, []
        for i in range(self.layers):
            x, pair = self._through(own, i, x, given.mask)
            pairs.append(pair)
        last = given.mask.sum() - 1
        label = torch.cat([first, given.labels]).index_select(0, (last + 1)[None])
        return {"pairs": tuple(pairs), "label": label[0]}, x if positions else x[:0]

    def ask(self, own: Params, state: State, examples: Tensor, unknown: Tensor) -> Tensor:
        x: Tensor = examples + state["label"]
        for i, (h, c) in enumerate(state["pairs"]):
            x = self._step(own, i, driven(own, i, x), (h, c))[0]
        return x

    def _through(self, own: Params, i: int, x: Tensor, mask: Tensor) -> tuple[Tensor, Pair]:
        """Layer i over (S, W): all h, shape (S, H), and the pair after the last real row."""
        drive = driven(own, i, x)
        h = c = drive.new_zeros(self.hidden)
        outputs = []
        for t in range(len(x)):
            new = self._step(own, i, drive[t], (h, c))
            outputs.append(new[0])
            h, c = (
                torch.where(mask[t], a, b.to(a.dtype)) for a, b in zip(new, (h, c), strict=True)
            )
        return torch.stack(outputs), (h, c)

    def _step(self, own: Params, i: int, drive: Tensor, pair: Pair) -> Pair:
        """One step of layer i: the input's share of the gates (..., 4 H), and h and c."""
        h, c = pair
        return cell(drive + F.linear(h, own[f"{i}.back.weight"]), c)


def driven(own: Params, i: int, x: Tensor) -> Tensor:
    """What the inputs (..., W) of layer i add to its gates: (..., 4 H)."""
    return F.linear(x, own[f"{i}.in.weight"], own[f"{i}.in.bias"])
