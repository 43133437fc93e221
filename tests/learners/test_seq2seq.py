"""Meta sequence-to-sequence learning against the formulas, written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import tegu
from tegu import keys
from tegu.datasets import MutualExclusivity
from tegu.datasets.tokens import PAD, spoken
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Maml, MetaSeq2Seq, Reptile
from tegu.losses import exact_match, token_cross_entropy
from tegu.models import MemorySeq2Seq, Mlp, Seq2Seq

Slopes = Callable[..., tuple[Tensor, Tensor]]
KEY = keys.key(3)


def learner(*, packed: bool = True, dropout: float = 0.0, **settings: object) -> MetaSeq2Seq:
    net = MemorySeq2Seq(7, 7, longest=7, width=5, packed=packed, dropout=dropout).double()
    return MetaSeq2Seq(model=net, **settings)  # type: ignore[arg-type]


def episode() -> Episode:
    return select(MutualExclusivity(n_query=4).episodes(torch.arange(1)), 0)


def by_the_formulas(net: MemorySeq2Seq, one: Episode, *, rehearse: bool) -> Tensor:
    """Mean loss of a token, row after row."""
    support, query = one
    pairs = [
        (net.encode(x[None]).last[0], net.actions(y[y != PAD][None], None)[1][0])
        for x, y, real in zip(*support, strict=True)
        if real
    ]
    key, value = (torch.stack(part) for part in zip(*pairs, strict=True))
    terms = []
    for half in (support, query) if rehearse else (query,):
        for x, y, real in zip(*half, strict=True):
            if not real:
                continue
            context = net.encode(x[x != PAD][None])
            weight = (context.steps[0] @ key.T / 5**0.5).softmax(-1)
            steps = torch.tanh(net.recalled(torch.cat([context.steps[0], weight @ value], -1)))
            read = context._replace(steps=steps[None], last=steps[-1:])
            answer = y[y != PAD]
            logits = net.told(read, answer[None])[0]
            terms += list(F.cross_entropy(logits, answer, reduction="none"))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("rehearse", [True, False])
def test_the_outer_loss_is_that_of_the_formulas(rehearse: bool) -> None:
    ours, one = learner(rehearse=rehearse), episode()
    assert isinstance(ours.model, MemorySeq2Seq)
    expected = by_the_formulas(ours.model, one, rehearse=rehearse)
    torch.testing.assert_close(ours.outer_loss(ours.init(), one, KEY), expected)


@pytest.mark.parametrize("packed", [True, False])
def test_the_meta_gradient(slopes: Slopes, packed: bool) -> None:
    """Along random directions, by the engine and by differences of the plain module."""
    ours, one = learner(packed=packed), episode()
    params = ours.init()
    batch = Episode(*(Examples(*(f[None] for f in half)) for half in one))
    gradient, _ = Vectorised(ours).outer_gradient(params, batch, KEY[None])

    def loss(at: Params) -> Tensor:
        net = MemorySeq2Seq(7, 7, longest=7, width=5, packed=False, dropout=0.0).double()
        net.load_state_dict(at)
        return by_the_formulas(net, one, rehearse=True)

    torch.testing.assert_close(*slopes(loss, params, gradient), rtol=1e-6, atol=1e-9)


def test_dropout_is_in_the_outer_loss_alone() -> None:
    ours, one = learner(dropout=0.5), episode()
    params = ours.init()
    first, again, other = (ours.outer_loss(params, one, keys.key(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    states = [ours.adapt(params, one.support, keys.key(seed)) for seed in (1, 2)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_task_is_its_memory() -> None:
    """Another task's memory gives other answers; support in another order gives the same."""
    ours = learner()
    params = ours.init()
    both = MutualExclusivity(n_query=4).episodes(torch.arange(2))
    one, two = select(both, 0), select(both, 1)

    def answers(support: Examples) -> Tensor:
        state = ours.adapt(params, support, KEY)
        assert sorted(state) == ["key", "real", "value"]
        return ours.predict(params, state, one.query.x, one.query.mask)

    turned = Examples(*(field.flip(0) for field in one.support))
    torch.testing.assert_close(answers(turned), answers(one.support))
    assert not torch.allclose(answers(two.support), answers(one.support))


def test_padding_rows_change_nothing() -> None:
    ours, one = learner(dropout=0.5), episode()
    params = ours.init()

    def padded(half: Examples) -> Examples:
        x, y = (F.pad(field, (0, 1, 0, 2), value=PAD) for field in half[:2])
        return Examples(x.clone(), y, F.pad(half.mask, (0, 2)))

    wide = Episode(*(padded(half) for half in one))
    wide.support.x[3:], wide.query.x[4:] = 5, 3
    expected = ours.outer_loss(params, one, KEY)
    torch.testing.assert_close(ours.outer_loss(params, wide, KEY), expected)
    state, other = (ours.adapt(params, e.support, KEY) for e in (one, wide))
    torch.testing.assert_close(
        ours.predict(params, other, one.query.x, one.query.mask),
        ours.predict(params, state, one.query.x, one.query.mask),
    )


def test_beams_are_an_option() -> None:
    ours, one = learner(), episode()
    params = ours.init()
    state = ours.adapt(params, one.support, KEY)
    found = replace(ours, beam=3).predict(params, state, one.query.x, one.query.mask)
    assert found.shape == (4, 7, 7)
    assert isinstance(ours.model, MemorySeq2Seq)
    context = ours.model.recall(ours.model.encode(one.query.x), ours.model.memorise(*one.support))
    assert torch.equal(found.argmax(-1), ours.model.beam(context, 3).argmax(-1))


def test_without_a_memory_the_support_set_is_not_seen() -> None:
    net = Seq2Seq(7, 7, longest=7, width=5, dropout=0.0).double()
    ours = MetaSeq2Seq(model=net)
    both = MutualExclusivity(n_query=4).episodes(torch.arange(2))
    one, two = select(both, 0), select(both, 1)
    params = ours.init()
    found = [ours.adapt(params, e.support, KEY) for e in (one, two)]
    answers = [ours.predict(params, s, one.query.x, one.query.mask) for s in found]
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)
    torch.testing.assert_close(answers[0], net(one.query.x))
    expected = token_cross_entropy(net(one.query.x, one.query.y), one.query)
    torch.testing.assert_close(ours.outer_loss(params, one, KEY), expected)


def test_a_memory_is_learned_to_be_used() -> None:
    """Words shown once are answered in new strings: symbols of three words in tasks of its own."""
    source = MutualExclusivity(n_query=8, longest=2)
    net = MemorySeq2Seq(7, 7, longest=3, width=32, layers=1, dropout=0.0)
    ours = MetaSeq2Seq(model=net)
    engine = Vectorised(ours)
    params = ours.init()
    outer, losses = engine.outer_state(params), []
    for step in range(160):
        index = torch.arange(8) + 8 * step
        params, outer, loss = engine.update(
            params, outer, source.episodes(index), keys.fold(KEY, index), outer_lr=0.01
        )
        losses.append(float(loss))
    assert losses[0] > 1.8
    # Without the memory no loss under log(4) of three words and END is to be had.
    assert sum(losses[-10:]) / 10 < 0.3
    tasks = MutualExclusivity("meta_test", n_query=8, longest=2).episodes(torch.arange(30))
    state = engine.adapt(params, tasks.support, keys.fold(KEY, torch.arange(30)))
    answers = engine.predict(params, state, tasks.query)
    said = torch.vmap(exact_match)(answers, tasks.query)
    assert float(said.mean()) > 0.5  # a sixteenth by chance


@pytest.mark.parametrize("cls", [Reptile, Maml])
def test_learners_by_gradient_adapt_the_plain_network(cls: type[Reptile] | type[Maml]) -> None:
    """A task learnt in two steps is two steps of plain gradient descent."""
    net = Seq2Seq(7, 7, longest=7, width=5, dropout=0.0).double()
    settings = {"inner_optimiser": "sgd", "eval_batch": 0} if cls is Reptile else {}
    ours = cls(model=net, loss=token_cross_entropy, inner_lr=0.5, eval_steps=2, **settings)  # type: ignore[arg-type]
    batch = MutualExclusivity(n_query=4).episodes(torch.arange(3))
    params = ours.init()
    state = Vectorised(ours, vectorise="vmap").adapt(params, batch.support, keys.bits(KEY, 3))
    found = Vectorised(ours, vectorise="vmap").predict(params, state, batch.query)
    for t in range(3):
        one = select(batch, t)
        weights = {k: v.clone().requires_grad_() for k, v in params.items()}
        for _ in range(2):
            outputs = functional_call(net, weights, (one.support.x, one.support.y))
            width = one.support.y.shape[1]
            loss = token_cross_entropy(outputs[:, :width], one.support)
            grads = torch.autograd.grad(loss, list(weights.values()))
            weights = {
                k: (v - 0.5 * g).detach().requires_grad_()
                for (k, v), g in zip(weights.items(), grads, strict=True)
            }
        expected = functional_call(net, weights, (one.query.x,))
        torch.testing.assert_close(found[t], expected, rtol=1e-6, atol=1e-8)


def test_the_two_phases_on_a_callers_own_rows() -> None:
    ours = learner()
    learned = tegu.MetaLearned(ours, ours.init())
    task = learned.adapt([[3], [4], [5]], [[6], [4, 4], [3]])
    answers = task.predict([[3, 4], [5]])
    x, y = torch.tensor([[3], [4], [5]]), torch.tensor([[6, 1, 0], [4, 4, 1], [3, 1, 0]])
    state = ours.adapt(learned.params, Examples(x, y, torch.ones(3, dtype=torch.bool)), KEY)
    queries = torch.tensor([[3, 4], [5, 0]])
    out = ours.predict(learned.params, state, queries, torch.ones(2, dtype=torch.bool))
    assert answers == [spoken(row) for row in out.argmax(-1).tolist()]
    with pytest.raises(InputError, match="row 1 of x holds the token 9"):
        task.predict([[3], [9]])
    with pytest.raises(InputError, match=r"3 inputs and 1 answers"):
        learned.adapt([[3], [4], [5]], [[6]])
    with pytest.raises(InputError, match="x is empty"):
        learned.adapt([], [])
    with pytest.raises(InputError, match=r"row 0 of y has 7 words.*at most 6"):
        learned.adapt([[3]], [[3] * 7])


def test_other_networks_are_refused() -> None:
    with pytest.raises(InputError, match=r"Mlp as the network of seq2seq.*memory-seq2seq"):
        MetaSeq2Seq(model=Mlp(3, 2))
    with pytest.raises(InputError, match="beam is 0"):
        learner(beam=0)
    assert isinstance(learner().model, nn.Module)
