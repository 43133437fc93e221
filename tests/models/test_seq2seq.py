"""Sequence networks against plain loops over tokens."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from tegu import keys
from tegu.datasets.tokens import END, PAD, START
from tegu.errors import InputError
from tegu.models import MemorySeq2Seq, Seq2Seq
from tegu.models.lstm import cell
from tegu.models.seq2seq import Context, Memory, ended, kept

IN, OUT, STEPS, H = 7, 6, 4, 5
X = torch.tensor([[3, 4, 5], [6, 0, 0], [4, 4, 0]])
ROWS = keys.fold(keys.key(1), torch.arange(3))
Y = torch.tensor([[3, 4, 1, 0], [5, 1, 0, 0], [3, 3, 3, 1]])


def plain(**settings: object) -> Seq2Seq:
    return _wide(Seq2Seq(IN, OUT, longest=STEPS, width=H, **settings))  # type: ignore[arg-type]


def with_memory(**settings: object) -> MemorySeq2Seq:
    return _wide(MemorySeq2Seq(IN, OUT, longest=STEPS, width=H, **settings))  # type: ignore[arg-type]


def _wide(net: Seq2Seq) -> Seq2Seq:
    """In float64, with weights large enough for answers to differ."""
    for p in net.double().parameters():
        p.data *= 2.0
    return net


def read(encoder: torch.nn.Module, row: list[int]) -> tuple[list[Tensor], Tensor]:
    """States and last state of one unpadded row, one cell after another."""
    inputs = [encoder.embedding[token] for token in row]
    for layer in range(encoder.lstm.layers):
        w, u, b = encoder.lstm.weights(layer)
        ways = []
        for way in range(2):
            h = c = torch.zeros(H, dtype=torch.float64)
            steps = []
            for x in inputs if way == 0 else inputs[::-1]:
                h, c = cell(w[way] @ x + u[way] @ h + b[way], c)
                steps.append(h)
            ways.append((steps if way == 0 else steps[::-1], h))
        inputs = [torch.cat(pair) for pair in zip(ways[0][0], ways[1][0], strict=True)]
    states = [a + b for a, b in zip(ways[0][0], ways[1][0], strict=True)]
    return states, ways[0][1] + ways[1][1]


def attend(query: Tensor, key: list[Tensor], value: list[Tensor]) -> Tensor:
    scores = [((query @ k) / math.sqrt(H)).exp() for k in key]
    return sum(s / sum(scores) * v for s, v in zip(scores, value, strict=True))


def spoken(net: Seq2Seq, steps: list[Tensor], last: Tensor, told: list[int] | None) -> Tensor:
    """Logits after each token of an answer that is told, or the network's own."""
    state, token, found = [(last, last)] * net.layers, START, []
    for t in range(STEPS if told is None else len(told)):
        x = net.embedding[token]
        for layer in range(net.layers):
            w, u, b = net.lstm.weights(layer)
            h, c = cell(w[0] @ x + u[0] @ state[layer][0] + b[0], state[layer][1])
            state[layer] = (h, c)
            x = h
        seen = torch.cat([x, attend(x, steps, steps)])
        found.append(net.out(torch.tanh(net.attended(seen))))
        token = int(found[-1].argmax()) if told is None else told[t]
    return torch.stack(found)


@pytest.mark.parametrize("fast", [False, True])
def test_a_pass_is_a_loop_over_tokens(fast: bool) -> None:
    net = plain(packed=fast)
    told, own = net(X, Y), net(X)
    for row in range(len(X)):
        words = [*X[row][X[row] != PAD].tolist(), END]
        steps, last = read(net.commands, words)
        answer = Y[row][Y[row] != PAD].tolist()
        torch.testing.assert_close(told[row, : len(answer)], spoken(net, steps, last, answer))
        torch.testing.assert_close(own[row], spoken(net, steps, last, None))


def test_told_its_own_answer_a_network_says_the_same() -> None:
    net = plain()
    own = net(X)
    answer = own.argmax(-1)
    answer = torch.where(answer == PAD, END, answer)  # PAD would end the row
    kept_rows = (answer == own.argmax(-1)).all(-1)
    assert bool(kept_rows.any())
    torch.testing.assert_close(net(X, answer)[kept_rows], own[kept_rows])


def test_memory_by_hand() -> None:
    """Each state of a query looks for like commands and finds their actions."""
    net = with_memory()
    memory = net.memorise(X, Y, torch.ones(3, dtype=torch.bool))
    pairs = [
        (
            read(net.commands, [*x[x != PAD].tolist(), END])[1],
            read(net.actions, y[y != PAD].tolist())[1],
        )
        for x, y in zip(X, Y, strict=True)
    ]
    key, value = [list(each) for each in zip(*pairs, strict=True)]
    torch.testing.assert_close(memory.key, torch.stack(key))
    torch.testing.assert_close(memory.value, torch.stack(value))
    context = net.recall(net.encode(torch.tensor([[5, 3, 0, 0]])), memory)
    states, _ = read(net.commands, [5, 3, END])
    steps = [torch.tanh(net.recalled(torch.cat([h, attend(h, key, value)]))) for h in states]
    torch.testing.assert_close(context.steps[0, :3], torch.stack(steps))
    torch.testing.assert_close(context.last[0], steps[-1])


def test_a_memory_of_two_numbers() -> None:
    """Scores sqrt(2) log 3 / sqrt(2) and 0: three quarters of one value, a quarter of the other."""
    net = Seq2Seq.__new__(MemorySeq2Seq)
    torch.nn.Module.__init__(net)
    net.width = 2
    net.recalled = torch.nn.Linear(4, 2, bias=False).double()
    net.recalled.weight.data = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]]).double()
    root = 2**0.5
    memory = Memory(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]).double(),
        torch.tensor([[0.4, 0.0], [0.0, 0.8], [7.0, 7.0]]).double(),
        torch.tensor([True, True, False]),
    )
    state = torch.tensor([[[root * math.log(3), 0.0]]]).double()
    found = net.recall(Context(state, state[:, 0], torch.ones(1, 1, dtype=torch.bool)), memory)
    expected = torch.tensor([0.75 * 0.4, 0.25 * 0.8]).double().tanh()
    torch.testing.assert_close(found.last[0], expected)


def test_nothing_in_memory_is_nothing_recalled() -> None:
    net = with_memory()
    empty = net.memorise(X, Y, torch.zeros(3, dtype=torch.bool))
    context = net.recall(net.encode(X), empty)
    torch.testing.assert_close(net.told(context, Y), net(X, Y))


def test_padding_of_commands_and_answers_changes_nothing() -> None:
    net = with_memory()
    memory = net.memorise(X, Y, torch.ones(3, dtype=torch.bool))
    wide = net.memorise(
        torch.nn.functional.pad(X, (0, 3)),
        torch.nn.functional.pad(Y, (0, 2)),
        torch.ones(3, dtype=torch.bool),
    )
    torch.testing.assert_close(memory, wide)
    torch.testing.assert_close(net(X), net(torch.nn.functional.pad(X, (0, 4))))


def test_one_beam_is_greedy() -> None:
    net = plain(seed=1)
    net.out.weight.data *= 8.0  # so that answers differ, and one ends early
    net.embedding.data *= 3.0
    context = net.encode(X)
    own = net.greedy(context).argmax(-1)
    said = net.beam(context, 1).argmax(-1)
    over = (own == END).cumsum(-1) - (own == END).int() > 0
    assert bool(over.any() & (own[over] != PAD).any())
    assert torch.equal(said, torch.where(over, PAD, own))


def test_beams_enough_find_the_likeliest_answer() -> None:
    """As many beams as there are beginnings: the best of all answers by trying each."""
    net = Seq2Seq(IN, 5, longest=3, width=H, layers=1, seed=7)
    for p in net.double().parameters():
        p.data *= 2.0
    context = net.encode(X)
    found = net.beam(context, 5**2).argmax(-1)
    every = torch.tensor(list(itertools.product(range(5), repeat=3)))
    over = (every == END).cumsum(-1) - (every == END).int() > 0
    every = every[((every == PAD) | ~over).all(-1)]  # behind END only PAD
    for row in range(len(X)):
        steps = list(context.steps[row][context.real[row]])
        scores = []
        for answer in every.tolist():
            tokens = answer[: answer.index(END) + 1] if END in answer else answer
            logits = spoken(net, steps, context.last[row], tokens).log_softmax(-1)
            scores.append(float(logits[range(len(tokens)), tokens].sum().detach()))
        assert found[row].tolist() == every[torch.tensor(scores).argmax()].tolist()
    assert not torch.equal(found, net.beam(context, 1).argmax(-1))  # else none need search


def test_the_end_of_a_command() -> None:
    assert ended(torch.tensor([[3, 4], [5, 0]])).tolist() == [[3, 4, 1], [5, 1, 0]]


def test_dropout_out_of_keys() -> None:
    rows = keys.fold(keys.key(4), torch.arange(100))
    factors = kept(rows, (5, 8), 0.25, torch.float64)
    assert set(factors.unique().tolist()) == {0.0, 256 / 192}
    assert abs(float(factors.mean()) - 1) < 0.04
    assert not torch.equal(factors[0], factors[1])
    torch.testing.assert_close(kept(rows, (7, 8), 0.25, torch.float64)[:, :5], factors)
    torch.testing.assert_close(kept(rows[3:4], (5, 8), 0.25, torch.float64)[0], factors[3])
    both = vmap(lambda key: kept(key, (5, 8), 0.25, torch.float64))(rows.view(2, 50))
    torch.testing.assert_close(both.flatten(0, 1), factors)


def test_dropout_where_there_is_a_key() -> None:
    net = plain(dropout=0.5)
    context = net.encode(X)
    assert not torch.equal(context.steps, net.encode(X, ROWS).steps)
    told = net.told(context, Y)
    assert not torch.equal(told, net.told(context, Y, ROWS))
    never = plain(dropout=0.0)
    torch.testing.assert_close(never.encode(X), never.encode(X, ROWS))


def test_bad_settings_are_said() -> None:
    with pytest.raises(InputError, match=r"longest is 0.*at least 1"):
        Seq2Seq(5, 5, longest=0)
    with pytest.raises(InputError, match=r"dropout is 1.*Try 0.5"):
        Seq2Seq(5, 5, longest=2, dropout=1.0)
