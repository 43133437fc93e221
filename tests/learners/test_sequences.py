"""Learners by gradient around a network that writes sequences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.tokens import END, PAD, START, WORDS
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.learners import IMaml, Learner, Maml, MamlPlusPlus, Reptile
from tegu.losses import exact_match, token_cross_entropy

V, M = 6, 4


class Writer(nn.Module):
    """The next token from the mean of the input's embeddings and the token before."""

    generates = True

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(V, V, generator=generator))
        self.last = nn.Parameter(torch.randn(V, V, generator=generator))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        seen = self.table[x].mean(1)  # (B, V)
        token, out = torch.full_like(x[:, 0], START), []
        for step in range(M):
            out.append(seen + self.last[token])
            token = out[-1].argmax(-1) if y is None else y[:, step]
        return torch.stack(out, 1)


def episodes() -> Episode:
    generator = torch.Generator().manual_seed(1)
    halves = []
    for rows in (5, 3):
        x = torch.randint(WORDS, V, (2, rows, 3), generator=generator)
        y = torch.randint(WORDS, V, (2, rows, M), generator=generator)
        y[..., 2] = END
        y[..., 3] = PAD
        halves.append(Examples(x, y, torch.ones(2, rows, dtype=torch.bool)))
    return Episode(*halves)


def loss_by_hand(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean of -log p(token | input, the right token before), token by token."""
    terms = []
    for command, actions in zip(x.tolist(), y.tolist(), strict=True):
        seen = torch.stack([weights["table"][w] for w in command]).mean(0)
        for before, token in zip([START, *actions], actions, strict=False):
            if token != PAD:
                terms.append(-(seen + weights["last"][before]).log_softmax(-1)[token])
    return torch.stack(terms).mean()


def test_the_loss_of_tokens_leaves_padding_out() -> None:
    support = select(episodes(), 0).support
    logits = torch.randn(5, M, V, generator=torch.Generator().manual_seed(2)).double()
    right = [
        -logits[s, m].log_softmax(-1)[support.y[s, m]]
        for s in range(4)
        for m in range(M)
        if support.y[s, m] != PAD
    ]
    masked = support._replace(mask=torch.tensor([True] * 4 + [False]))
    found = token_cross_entropy(logits, masked)
    torch.testing.assert_close(found, torch.stack(right).mean())


def test_an_exact_match_is_of_whole_sequences_up_to_their_end() -> None:
    y = torch.tensor([[3, END, PAD], [4, 5, END], [3, 3, END], [4, END, PAD]])
    answers = y.clone()
    answers[0, 2] = 5  # after the end
    answers[1, 1] = 4
    target = Examples(y, y, torch.tensor([True, True, True, False]))
    score = exact_match(F.one_hot(answers, V).float(), target)
    assert float(score) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda model, loss: Maml(model=model, loss=loss, inner_lr=0.1),
        lambda model, loss: MamlPlusPlus(model=model, loss=loss, inner_lr=0.1, inner_steps=1),
        lambda model, loss: IMaml(
            model=model, loss=loss, inner_lr=0.1, inner_steps=1, solver_steps=1
        ),
    ],
)
def test_the_outer_loss_is_teacher_forced(make: Callable[..., Learner]) -> None:
    """One step of gradient descent on the support set by hand, then the queries' loss."""
    learner = make(Writer().double(), token_cross_entropy)
    one = select(episodes(), 0)
    weights = {k: v.clone().requires_grad_() for k, v in learner.model.named_parameters()}
    inner = loss_by_hand(weights, one.support.x, one.support.y)
    grads = torch.autograd.grad(inner, list(weights.values()))
    moved = {k: w - 0.1 * g for (k, w), g in zip(weights.items(), grads, strict=True)}
    found = learner.outer_loss(learner.init(), one, keys.key(0))
    torch.testing.assert_close(found, loss_by_hand(moved, one.query.x, one.query.y))


def test_reptile_learns_a_task_of_sequences_and_writes_its_own_words() -> None:
    """Answers equal a loop that feeds each token back, and many tasks at once equal one."""
    model = Writer().double()
    learner = Reptile(model=model, loss=token_cross_entropy, eval_steps=30, inner_lr=0.05)
    both, params = episodes(), learner.init()
    at = keys.fold(keys.key(0), torch.arange(2))
    states = Vectorised(learner).adapt(params, both.support, at)
    outputs = Vectorised(learner).predict(params, states, both.query)
    assert outputs.shape == (2, 3, M, V)
    for t in range(2):
        weights = {k: v[t] for k, v in states["weights"].items()}
        for q, command in enumerate(both.query.x[t].tolist()):
            seen = torch.stack([weights["table"][w] for w in command]).mean(0)
            token = START
            for m in range(M):
                logits = seen + weights["last"][token]
                torch.testing.assert_close(outputs[t, q, m], logits)
                token = int(logits.argmax())
    support = select(both, 0).support
    before = loss_by_hand(params, support.x, support.y)
    after = loss_by_hand({k: v[0] for k, v in states["weights"].items()}, support.x, support.y)
    assert after < 0.7 * before
