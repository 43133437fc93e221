"""Long short-term memory over token sequences of unequal length.

Hochreiter, Schmidhuber (1997), Long short-term memory, in the form that
`torch.nn.LSTM` has:

    i, f, g, o = W x_t + U h_(t-1) + b
    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g)
    h_t = sigmoid(o) tanh(c_t)

`torch.nn.LSTM` runs neither under `vmap` nor with weights handed in. Two ways
to the same numbers replace it. `scan` is plain tensor operations: weights that
differ from task to task, gradients of gradients. `packed` leaves padding out and
has its gradient written by hand, with one matrix product over all steps for each
weight: several times faster, for weights that all tasks share.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import InputError


def flipped(x: Tensor, lengths: Tensor) -> Tensor:
    """Each row's real part from back to front, padding where it was: x (B, M, ...)."""
    steps = torch.arange(x.shape[1], device=x.device)
    at = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    return x.gather(1, at.reshape(*at.shape, *[1] * (x.dim() - 2)).expand_as(x))


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """New h and c from what the four gates are given, (..., 4H), and c (..., H)."""
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def scan(
    x: Tensor, lengths: Tensor, w: Tensor, u: Tensor, b: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer, one or two directions, step by step.

    Args:
        x: inputs, shape (B, M, D), floating.
        lengths: real steps of each row, from its first, (B,) int64, 1 to M.
        w: from inputs to gates, (G, 4H, D), for G = 1 or 2 directions; the second
            reads from a row's end to its beginning.
        u: from the last step to gates, (G, 4H, H).
        b: (G, 4H).
        start: what h and c begin with, (B, H).

    Returns:
        h at each step, (B, M, G, H), 0 behind a row's end, and after a row's last step
        in each direction's own order, (G, B, H).
    """
    outputs, lasts = [], []
    for way in range(len(w)):
        inputs = x if way == 0 else flipped(x, lengths)
        gates = F.linear(inputs, w[way], b[way])
        h = c = start
        steps = []
        for t in range(x.shape[1]):
            new_h, new_c = cell(gates[:, t] + F.linear(h, u[way]), c)
            real = (t < lengths)[:, None]
            h, c = torch.where(real, new_h, h), torch.where(real, new_c, c)
            steps.append(torch.where(real, new_h, 0.0))
        out = torch.stack(steps, 1)
        outputs.append(out if way == 0 else flipped(out, lengths))
        lasts.append(h)
    return torch.stack(outputs, 2), torch.stack(lasts)


def packed(
    x: Tensor, lengths: Tensor, w: Tensor, u: Tensor, b: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """What `scan` computes, over real steps only, and once differentiable.

    The weights must be shared by all episodes: under `vmap` these become rows of one
    batch. Lengths are read as numbers, so `torch.compile` cannot trace it.
    """
    half = torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False):
        out, last, *_ = _Packed.apply(x, lengths, w, u, b, start, half)  # type: ignore[no-untyped-call]
    return out, last


class _Rows:
    """Where the real steps of a batch lie when its rows are sorted by length.

    Step t of all rows that are that long forms one block; blocks follow one another.
    """

    def __init__(self, lengths: Tensor, width: int, ways: int) -> None:
        self.order = lengths.argsort(descending=True, stable=True)
        long = lengths[self.order]
        steps = torch.arange(width, device=lengths.device)
        real = steps[:, None] < long  # (M, B)
        self.counts: list[int] = [n for n in real.sum(1).tolist() if n]
        t, row = real.nonzero(as_tuple=True)
        first = self.order[row] * width
        at = [first + t, first + long[row] - 1 - t][:ways]
        self.at = torch.stack(at)  # (G, N) rows of x flattened to (B M, ...)
        self.rows = row  # (N,) in sorted order
        self.offsets = [0]
        for n in self.counts:
            self.offsets.append(self.offsets[-1] + n)

    def blocks(self) -> list[tuple[int, int, int]]:
        """Offset, end and number of rows of each step."""
        return list(zip(self.offsets, self.offsets[1:], self.counts, strict=False))


def _mm(x: Tensor, y: Tensor, half: bool) -> Tensor:
    return torch.bmm(x.bfloat16(), y.bfloat16()).to(x.dtype) if half else torch.bmm(x, y)


class _Packed(torch.autograd.Function):
    """`packed`; its other outputs are what the gradient needs."""

    @staticmethod
    def forward(
        x: Tensor, lengths: Tensor, w: Tensor, u: Tensor, b: Tensor, start: Tensor, half: bool
    ) -> tuple[Tensor, ...]:
        ways, wide = w.shape[0], u.shape[-1]
        batch, width = x.shape[:2]
        rows = _Rows(lengths, width, ways)
        inputs = x.reshape(batch * width, -1)[rows.at]  # (G, N, D)
        gates = _mm(inputs, w.mT, half) + b[:, None]
        step = u.mT.bfloat16() if half else u.mT.contiguous()
        h = start[rows.order].expand(ways, -1, -1)
        c, last = h, h.clone()
        states = x.new_empty(2, ways, len(rows.rows), wide)  # tanh(c), h
        cells = x.new_empty(ways, len(rows.rows), wide)
        for begin, end, n in rows.blocks():
            block = gates[:, begin:end]
            before = h[:, :n]
            block += torch.bmm(before.bfloat16(), step) if half else torch.bmm(before, step)
            i, f, g, o = block.chunk(4, -1)
            block[..., : 2 * wide].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            c = torch.addcmul(f * c[:, :n], i, g)
            squashed = c.tanh()
            h = o * squashed
            cells[:, begin:end], states[0, :, begin:end], states[1, :, begin:end] = c, squashed, h
            last[:, :n] = h
        out = x.new_zeros(batch * width, ways, wide)
        for way in range(ways):
            out[rows.at[way], way] = states[1, way]
        final = torch.empty_like(last)
        final[:, rows.order] = last
        return out.view(batch, width, ways, wide), final, gates, cells, states

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.half = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(True)
        ctx.save_for_backward(*tensors, *output[2:])

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_last: Tensor, *_: Any) -> Any:
        grads = _Gradient.apply(d_out, d_last, *ctx.saved_tensors, ctx.half)  # type: ignore[no-untyped-call]
        d_x, d_w, d_u, d_b, d_start = grads
        return d_x, None, d_w, d_u, d_b, d_start, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        x, lengths, w, u, b, start, half = args
        if any(dim is not None for dim in in_dims[2:5]):
            raise InputError(
                "packed recurrence with weights that differ from task to task",
                "weights that all tasks share",
                "Set packed=False on the network.",
            )
        n = info.batch_size

        def folded(value: Tensor, dim: int | None) -> Tensor:
            value = value.expand(n, *value.shape) if dim is None else value.movedim(dim, 0)
            return value.flatten(0, 1)

        rows = [
            folded(v, d)
            for v, d in zip((x, lengths, start), (*in_dims[:2], in_dims[5]), strict=True)
        ]
        out, last, *kept = _Packed.apply(rows[0], rows[1], w, u, b, rows[2], half)  # type: ignore[no-untyped-call]
        out = out.unflatten(0, (n, -1))
        return (out, last.unflatten(1, (n, -1)), *kept), (0, 1, *[None] * len(kept))


class _Gradient(torch.autograd.Function):
    """The gradient of `packed`, of which there is no further gradient."""

    @staticmethod
    def forward(
        d_out: Tensor,
        d_last: Tensor,
        x: Tensor,
        lengths: Tensor,
        w: Tensor,
        u: Tensor,
        b: Tensor,
        start: Tensor,
        gates: Tensor,
        cells: Tensor,
        states: Tensor,
        half: bool,
    ) -> tuple[Tensor, ...]:
        ways, wide = w.shape[0], u.shape[-1]
        batch, width = x.shape[:2]
        rows = _Rows(lengths, width, ways)
        flat = d_out.reshape(batch * width, ways, wide)
        d_h_all = torch.stack([flat[rows.at[way], way] for way in range(ways)])
        begun = start[rows.order].expand(ways, -1, -1)
        h_before, c_before = _shifted(states[1], begun, rows), _shifted(cells, begun, rows)
        squashed = states[0]
        i, f, g, o = gates.chunk(4, -1)
        # What a step's gradient by h or c is multiplied with, for all steps at once.
        to_o = squashed * (o * (1 - o))
        to_c = o * (1 - squashed.square())
        to_ifg = torch.cat([g * (i * (1 - i)), c_before * (f * (1 - f)), i * (1 - g.square())], -1)
        d_gates = torch.empty_like(gates)
        back = u.bfloat16() if half else u
        # At a row's last step its gradient begins; rows that are still to come have theirs there.
        d_h = d_last[:, rows.order].clone()
        d_c = torch.zeros_like(d_h)
        for begin, end, n in reversed(rows.blocks()):
            at = d_h[:, :n] + d_h_all[:, begin:end]
            more = torch.addcmul(d_c[:, :n], at, to_c[:, begin:end])
            block = d_gates[:, begin:end]
            torch.mul(
                to_ifg[:, begin:end].unflatten(-1, (3, wide)),
                more.unsqueeze(-2),
                out=block[..., : 3 * wide].unflatten(-1, (3, wide)),
            )
            torch.mul(at, to_o[:, begin:end], out=block[..., 3 * wide :])
            d_h[:, :n] = torch.bmm(block.bfloat16() if half else block, back)
            d_c[:, :n] = more * f[:, begin:end]
        d_inputs = _mm(d_gates, w, half)
        d_x = x.new_zeros(batch * width, x.shape[-1])
        for way in range(ways):
            d_x.index_add_(0, rows.at[way], d_inputs[way])
        inputs = x.reshape(batch * width, -1)[rows.at]
        across = d_gates.mT
        d_start = torch.empty_like(start)
        d_start[rows.order] = (d_h + d_c).sum(0)
        return (
            d_x.view_as(x),
            _mm(across, inputs, half),
            _mm(across, h_before, half),
            d_gates.sum(1),
            d_start,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise InputError(
            "a second derivative through a packed recurrence",
            "a network with packed=False, whose steps are plain tensor operations",
            "Set packed=False on the network.",
        )


def _shifted(values: Tensor, start: Tensor, rows: _Rows) -> Tensor:
    """What each step found, from what each step left: both (G, N, H)."""
    before = [start[:, : rows.counts[0]]]
    for (begin, _, _), (_, _, n) in zip(rows.blocks(), rows.blocks()[1:], strict=False):
        before.append(values[:, begin : begin + n])
    return torch.cat(before, 1)


class Lstm(nn.Module):
    """Layers of LSTM cells, in one direction or two.

    Each layer of two directions hands both on, side by side; what it returns is their
    sum, as Lake (2019) has it. One bias for each gate, where `torch.nn.LSTM` has two
    that are added.

    Args:
        width: H, of inputs, states and outputs.
        layers: how many.
        ways: 1, or 2 for both directions.
        generator: of the initial weights, uniform within 1 / sqrt(H) as torch's are.
        packed: leave padding out, with a gradient written by hand: for weights that
            all tasks share, and first derivatives.
    """

    def __init__(
        self, width: int, layers: int, ways: int, generator: torch.Generator, *, packed: bool
    ) -> None:
        super().__init__()
        self.layers, self.packed = layers, packed

        def drawn(*shape: int) -> nn.Parameter:
            values = torch.empty(shape).uniform_(-1, 1, generator=generator)
            return nn.Parameter(values * width**-0.5)

        for layer in range(layers):
            inputs = width if layer == 0 else ways * width
            self.register_parameter(f"w{layer}", drawn(ways, 4 * width, inputs))
            self.register_parameter(f"u{layer}", drawn(ways, 4 * width, width))
            self.register_parameter(f"b{layer}", drawn(ways, 4 * width))

    def weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """W, U and b of a layer: (G, 4H, D), (G, 4H, H), (G, 4H)."""
        w, u, b = (getattr(self, f"{kind}{layer}") for kind in "wub")
        return w, u, b

    def forward(
        self, x: Tensor, lengths: Tensor, start: Tensor, masks: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Sums over directions of h at each step, (B, M, H), and after the last, (B, H).

        Args:
            x: (B, M, H).
            lengths: (B,) int64, real steps of each row.
            start: (B, H), what h and c of every layer begin with.
            masks: dropout between layers: `layers - 1` factors (B, M, G H), or None.
        """
        run = packed if self.packed else scan
        for layer in range(self.layers):
            if layer:
                mask = masks[layer - 1]
                x = x if mask is None else x * mask
            out, last = run(x, lengths, *self.weights(layer), start)
            x = out.flatten(2)
        return out.sum(2), last.sum(0)

    def step(self, x: Tensor, state: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """h and c of each layer after one more input (B, H); one direction only."""
        new = []
        for layer, (h, c) in enumerate(state):
            w, u, b = self.weights(layer)
            x, c = cell(F.linear(x, w[0], b[0]) + F.linear(h, u[0]), c)
            new.append((x, c))
        return new
