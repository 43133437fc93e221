"""Learners that read a support set, against networks that read a whole sequence for a query."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tegu
from tegu import keys
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import InContext, Lstm, Reader, Snail
from tegu.losses import gaussian, squared_error

KEYS = keys.fold(keys.key(0), torch.arange(3))
Network = Callable[[Params, Tensor, Tensor, Tensor], Tensor]


def read_by_lstm(own: Params, examples: Tensor, labels: Tensor, unknown: Tensor) -> Tensor:
    """torch's LSTM over (example, label before); labels are one fewer than examples."""
    net = nn.LSTM(4, 5, num_layers=2).double()
    weights = {}
    for i in range(2):
        weights[f"weight_ih_l{i}"] = own[f"{i}.in.weight"]
        weights[f"bias_ih_l{i}"] = own[f"{i}.in.bias"]
        weights[f"weight_hh_l{i}"] = own[f"{i}.back.weight"]
        weights[f"bias_hh_l{i}"] = torch.zeros_like(own[f"{i}.in.bias"])
    sequence = examples + torch.cat([unknown[None], labels])
    return torch.func.functional_call(net, weights, (sequence,))[0][-1]


def read_by_snail(own: Params, examples: Tensor, labels: Tensor, unknown: Tensor) -> Tensor:
    """Step by step and block by block, over all steps."""

    def dense(name: str, x: Tensor) -> Tensor:
        return own[f"{name}.weight"] @ x + own[f"{name}.bias"]

    def attention(name: str, steps: list[Tensor]) -> list[Tensor]:
        out = []
        for t, x in enumerate(steps):
            query = dense(f"{name}.query", x)
            alike = torch.stack([query @ dense(f"{name}.key", s) for s in steps[: t + 1]])
            shares = (alike / len(query) ** 0.5).exp()
            shares = shares / shares.sum()
            pairs = zip(shares, steps[: t + 1], strict=True)
            out.append(torch.cat([x, sum(a * dense(f"{name}.value", s) for a, s in pairs)]))
        return out

    def convolution(name: str, steps: list[Tensor], dilation: int) -> list[Tensor]:
        out = []
        for t, x in enumerate(steps):
            tap = steps[t - dilation] if t >= dilation else torch.zeros_like(x)
            f, g = dense(name, torch.cat([tap, x])).chunk(2)
            out.append(torch.cat([x, torch.tanh(f) / (1 + torch.exp(-g))]))
        return out

    steps = list(examples + torch.cat([labels, unknown[None]]))
    for part in range(3):
        steps = attention(f"{part}.attention", steps)
        for i in range(3 if part < 2 else 0):
            steps = convolution(f"{part}.dense{i}", steps, 2**i)
    return steps[-1]


def read_by_transformer(own: Params, examples: Tensor, labels: Tensor, unknown: Tensor) -> Tensor:
    """One pass over pairs and query under one causal mask, two heads of width 2."""

    def norm(name: str, x: Tensor) -> Tensor:
        spread = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + 1e-5
        scaled = (x - x.mean(-1, keepdim=True)) / spread.sqrt()
        return scaled * own[f"{name}.gain"] + own[f"{name}.shift"]

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]

    x = examples + torch.cat([labels, unknown[None]])
    for i in range(2):
        normed = norm(f"{i}.norm1", x)
        keys, values = dense(f"{i}.past", normed).chunk(2, -1)
        heads = [
            dense(f"{i}.query", normed) if part is None else part for part in (None, keys, values)
        ]
        query, keys, values = (part.reshape(len(x), 2, 2).transpose(0, 1) for part in heads)
        alike = query @ keys.transpose(1, 2) / 2**0.5
        later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        mixed = alike.masked_fill(later, -torch.inf).softmax(-1) @ values
        x = x + dense(f"{i}.mix", mixed.transpose(0, 1).reshape(len(x), 4))
        hidden = dense(f"{i}.up", norm(f"{i}.norm2", x))
        x = x + dense(f"{i}.down", hidden * torch.erfc(-hidden / 2**0.5) / 2)
    return norm("norm", x)[-1]


READERS: dict[str, tuple[Callable[..., Reader], Network]] = {
    "lstm": (lambda **more: Lstm(hidden=5, layers=2, **more), read_by_lstm),
    "snail": (
        lambda **more: Snail(
            filters=3, length=7, key_width=(2, 3, 2), value_width=(2, 1, 3), **more
        ),
        read_by_snail,
    ),
    "in-context": (lambda **more: InContext(layers=2, heads=2, **more), read_by_transformer),
}


@pytest.fixture(params=READERS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def numbers(toy_episodes: Episode) -> Episode:
    """The toy episodes with two numbers as targets."""
    generator = torch.Generator().manual_seed(8)
    halves = (
        half._replace(y=torch.randn(*half.y.shape, 2, generator=generator).double())
        for half in toy_episodes
    )
    return Episode(*halves)


def moved(learner: Reader) -> Params:
    """Weights that are not the initial ones, biases and gains included."""
    generator = torch.Generator().manual_seed(4)
    return {
        k: v + 0.3 * torch.randn(v.shape, generator=generator).double()
        for k, v in learner.init().items()
    }


def answer(network: Network, features: Any, params: Params, given: Examples, x: Tensor) -> Tensor:
    """The reading network's answer to one query x after a support set, written out."""
    own = {k.removeprefix("reader/"): v for k, v in params.items()}
    both = features(params, torch.cat([given.x, x[None]]))
    examples = both @ own["example.weight"].T + own["example.bias"]
    rows = [own["label"][y] if not y.is_floating_point() else own["label"].T @ y for y in given.y]
    labels = torch.stack(rows) if rows else examples[:0]
    return own["out.weight"] @ network(own, examples, labels, own["unknown"]) + own["out.bias"]


def upto(given: Examples, t: int) -> Examples:
    return Examples(*(field[:t] for field in given))


def reference(
    network: Network, features: Any, params: Params, episodes: Episode, *, every: float
) -> Tensor:
    """The outer loss with one sequence for each query, and for each position."""
    losses = []
    for t in range(3):
        support, query = select(episodes, t)
        asked = torch.stack([answer(network, features, params, support, x) for x in query.x])
        places = [
            answer(network, features, params, upto(support, i), support.x[i])
            for i in range(len(support.x))
        ]
        loss = F.mse_loss if query.y.is_floating_point() else F.cross_entropy
        losses.append(loss(asked, query.y) + every * loss(torch.stack(places), support.y))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("every", [0.0, 0.7])
@pytest.mark.parametrize("targets", ["classes", "numbers"])
def test_meta_gradient(
    kind: str,
    targets: str,
    every: float,
    smooth: nn.Module,
    smooth_features: Any,
    slopes: Any,
    toy_episodes: Episode,
    numbers: Episode,
) -> None:
    """Against autograd through whole sequences, and against differences of them."""
    make, network = READERS[kind]
    more = {"numbers": 2, "loss": squared_error} if targets == "numbers" else {}
    episodes = numbers if targets == "numbers" else toy_episodes
    learner = make(model=smooth, n_way=3, width=4, every=every, shuffled=False, **more)
    params = moved(learner)

    def whole(params: Params) -> Tensor:
        return reference(network, smooth_features, params, episodes, every=every)

    wrt = {k: v.clone().requires_grad_() for k, v in params.items()}
    loss = whole(wrt)
    expected = dict(zip(wrt, torch.autograd.grad(loss, list(wrt.values())), strict=True))
    found, value = Vectorised(learner, vectorise="vmap").outer_gradient(params, episodes, KEYS)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(found, expected)
    by_gradient, by_differences = slopes(whole, params, found, step=2e-6)
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)


def test_meta_training_reads_classes_in_random_order(
    kind: str, smooth: nn.Module, toy_episodes: Episode, numbers: Episode
) -> None:
    """The loss is that of another order of the support set, and padding stays out of it."""
    plain = READERS[kind][0](model=smooth, n_way=3, width=4, every=0.7, shuffled=False)
    params, one, losses = moved(plain), select(toy_episodes, 0), set()
    keep = torch.tensor([True, True, False, True, True, True])
    one = one._replace(support=one.support._replace(mask=keep))
    real = Examples(*(field[keep] for field in one.support))
    orders = [Examples(*(f[list(o)] for f in real)) for o in itertools.permutations(range(5))]
    every = [float(plain.outer_loss(params, one._replace(support=s), KEYS[0])) for s in orders]
    for key in keys.fold(keys.key(4), torch.arange(6)):
        loss = float(replace(plain, shuffled=True).outer_loss(params, one, key))
        assert min(abs(loss - other) for other in every) < 1e-9
        losses.add(round(loss, 9))
    assert len(losses) >= 4
    more = {"numbers": 2, "loss": squared_error}
    of_numbers = READERS[kind][0](model=smooth, n_way=3, width=4, **more)
    params, one = moved(of_numbers), select(numbers, 0)
    found = (
        replace(of_numbers, shuffled=s).outer_loss(params, one, KEYS[0]) for s in (True, False)
    )
    assert torch.equal(*found)


def test_answers_with_padding_in_the_middle(
    kind: str, smooth: nn.Module, smooth_features: Any, toy_episodes: Episode
) -> None:
    make, network = READERS[kind]
    learner = make(model=smooth, n_way=3, width=4)
    params, (support, query) = moved(learner), select(toy_episodes, 0)
    keep = torch.tensor([True, False, True, True, False, True])
    noisy = support._replace(x=torch.where(keep[:, None], support.x, 1e3), mask=keep)
    real = Examples(*(field[keep] for field in support))
    state = learner.adapt(params, noisy, KEYS[0])
    found = learner.predict(params, state, query.x, query.mask)
    assert sorted(real.y.tolist()) != support.y.tolist()
    for x, scores in zip(query.x, found, strict=True):
        shown = real.y.unique()
        expected = answer(network, smooth_features, params, real, x)
        torch.testing.assert_close(scores[shown], expected[shown])
    places = learner.positions(params, noisy)[keep]
    for t, scores in enumerate(places):
        expected = answer(network, smooth_features, params, upto(real, t), real.x[t])
        torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("targets", ["classes", "numbers"])
def test_views_are_readings_of_their_own(
    kind: str, targets: str, smooth: nn.Module, toy_episodes: Episode, numbers: Episode
) -> None:
    """Answers are the mean over orders and names; the outer loss has one view."""
    more = {"numbers": 2, "loss": squared_error} if targets == "numbers" else {}
    plain = READERS[kind][0](model=smooth, n_way=3, width=4, every=0.7, **more)
    learner = replace(plain, views=3)
    params = moved(learner)
    support, query = select(numbers if more else toy_episodes, 0)
    mask = torch.tensor([True, False, True, True, True, True])
    support = support._replace(mask=mask)
    orders, names = learner._orders(KEYS[0], mask)
    assert orders.shape == (3, 6)
    assert all(sorted(order.tolist()) == list(range(6)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert orders[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert names[0].tolist() == [0, 1, 2]
    assert names.unique(dim=0).shape == (3, 3)
    answers = []
    for order, own in zip(orders, names, strict=True):
        order = order[mask[order]]
        y = support.y[order]
        seen = Examples(support.x[order], y if more else own[y], mask[order])
        scores = plain.predict(params, plain.adapt(params, seen, KEYS[0]), query.x, query.mask)
        answers.append(scores if more else scores.softmax(-1)[:, own])
    found = learner.predict(params, learner.adapt(params, support, KEYS[0]), query.x, query.mask)
    expected = torch.stack(answers).mean(0)
    torch.testing.assert_close(found if more else found.softmax(-1), expected)
    loss, once = (
        one.outer_loss(params, Episode(support, query), KEYS[0]) for one in (learner, plain)
    )
    assert torch.equal(loss, once)


def test_padding_leaves_views_as_they_were(
    kind: str, smooth: nn.Module, toy_episodes: Episode
) -> None:
    learner = READERS[kind][0](model=smooth, n_way=3, width=4, views=4)
    params, (support, query) = moved(learner), select(toy_episodes, 0)
    longer = Examples(*(torch.cat([field, field[:2]]) for field in support))
    longer = longer._replace(mask=torch.arange(8) < 6)
    found = [
        learner.predict(params, learner.adapt(params, one, KEYS[0]), query.x, query.mask)
        for one in (support, longer)
    ]
    torch.testing.assert_close(*found)


def test_a_position_sees_nothing_later(kind: str, smooth: nn.Module, toy_episodes: Episode) -> None:
    """Bit for bit; and each position does see every label before it."""
    learner = READERS[kind][0](model=smooth, n_way=3, width=4)
    params, support = moved(learner), select(toy_episodes, 0).support
    before = learner.positions(params, support)
    for t in range(6):
        later = torch.arange(6) > t
        changed = support._replace(
            x=torch.where(later[:, None], -support.x, support.x),
            y=torch.where(torch.arange(6) >= t, (support.y + 1) % 3, support.y),
        )
        after = learner.positions(params, changed)
        torch.testing.assert_close(after[: t + 1], before[: t + 1], rtol=0, atol=0)
        if t < 5:
            assert ((after - before)[t + 1 :].abs().amax(-1) > 1e-6).all()


def test_the_state_is_enough_and_small(kind: str, smooth: nn.Module, toy_episodes: Episode) -> None:
    """The LSTM's does not grow with the support set; no state holds the support set itself."""
    learner = READERS[kind][0](model=smooth, n_way=3, width=4)
    params, support = learner.init(), select(toy_episodes, 0).support
    sizes = []
    for n in (4, 6):
        state = learner.adapt(params, upto(support, n), KEYS[0])
        assert state["support"] == ()
        leaves = torch.utils._pytree.tree_leaves(state)
        sizes.append(sum(x.numel() for x in leaves))
    growth = {"lstm": 0, "snail": 2 * (2 + 3 + 2 + 2 + 1 + 3 + 1), "in-context": 2 * (2 * 8 + 1)}
    assert sizes[1] - sizes[0] == growth[kind]


def test_fewer_classes_than_labels(kind: str, smooth: nn.Module, toy_episodes: Episode) -> None:
    """Scores of the classes that there are equal those among more; more are refused."""
    learner = READERS[kind][0](model=smooth, n_way=5, width=4)
    params, (support, query) = moved(learner), select(toy_episodes, 0)
    few = learner.for_ways(3)
    answers = [
        one.predict(params, one.adapt(params, support, KEYS[0]), query.x, query.mask)
        for one in (few, learner)
    ]
    torch.testing.assert_close(answers[0], answers[1][:, :3])
    assert (answers[1][:, 3:] == torch.finfo(torch.float64).min).all()
    with pytest.raises(InputError, match=r"6 ways for .* with labels for 5"):
        learner.for_ways(6)
    with pytest.raises(InputError, match="3 ways with labels for 2"):
        few.adapt(READERS[kind][0](model=smooth, n_way=2, width=4).init(), support, KEYS[0])


def test_weights_from_a_seed(kind: str, smooth: nn.Module) -> None:
    one, other = (READERS[kind][0](model=smooth, seed=seed).init() for seed in (1, 2))
    drawn = [k for k, v in one.items() if k.startswith("reader/") and v.unique().numel() > 1]
    assert len(drawn) > 7
    assert all(not torch.equal(one[k], other[k]) for k in drawn)
    alike = [(a, b) for a in drawn for b in drawn if a < b and torch.equal(one[a], one[b])]
    assert alike == []


@pytest.mark.parametrize(
    ("learner", "settings", "text"),
    [
        (Lstm, {"hidden": 0}, "hidden is 0"),
        (Lstm, {"layers": 0}, "layers is 0"),
        (Lstm, {"every": -1.0}, "every is -1.0"),
        (InContext, {"width": 30}, "a width of 30 for 4 heads.*width=32"),
        (InContext, {"factor": 0}, "factor is 0"),
        (Snail, {"length": 1}, "length is 1"),
        (Snail, {"filters": 0}, "filters is 0"),
        (Snail, {"key_width": (4, 4)}, r"key_width is \(4, 4\)"),
        (Snail, {"numbers": -1}, "numbers is -1"),
        (Lstm, {"numbers": 2}, "numbers is 2 with the loss of classes"),
    ],
)
def test_settings(
    learner: type[Reader], settings: dict[str, Any], text: str, smooth: nn.Module
) -> None:
    with pytest.raises(InputError, match=text):
        learner(model=smooth, **settings)


def test_other_targets_than_told(smooth: nn.Module, toy_episodes: Episode) -> None:
    support = select(toy_episodes, 0).support
    of_classes, of_numbers = (
        InContext(model=smooth, numbers=n, loss=squared_error) for n in (0, 2)
    )
    with pytest.raises(InputError, match="targets of classes where numbers is 2"):
        of_numbers.adapt(of_numbers.init(), support, KEYS[0])
    three = support._replace(y=torch.zeros(6, 3).double())
    for learner in (of_classes, of_numbers):
        with pytest.raises(InputError, match="targets of 3 where numbers is"):
            learner.adapt(learner.init(), three, KEYS[0])
    with pytest.raises(InputError, match="a support set without rows"):
        of_classes.adapt(of_classes.init(), upto(support, 0), KEYS[0])


def test_numbers_with_a_spread(kind: str) -> None:
    """Means beside deviations; readings of a set in other orders are components of a mixture."""
    waves = tegu.Sinusoids(n_shot=4, n_query=3)
    model = tegu.models.Mlp(1, 0, hidden=(5,))
    learner = READERS[kind][0](model=model, numbers=1, width=4, loss=gaussian)
    learned = tegu.meta_train(learner, waves, meta_iterations=2, meta_batch=3)
    x, y, asked = [[0.0], [1.0], [2.0]], [[0.5], [0.9], [0.1]], [[0.5], [1.5]]
    one = learned.adapt(x, y).outputs(asked)
    assert one.shape == (2, 2)
    many = replace(learned, learner=replace(learner, views=5)).adapt(x, y)
    parts = many.outputs(asked).unflatten(1, (5, 2))
    torch.testing.assert_close(parts[:, 0], one)  # the first reading is in the given order
    mean, sd = many.predict_distribution(asked)
    torch.testing.assert_close(mean[:, 0], parts[..., 0].mean(1))
    inside = (2 * parts[..., 1]).exp().mean(1)
    torch.testing.assert_close(sd[:, 0] ** 2, inside + parts[..., 0].var(1, correction=0))


def test_numbers_through_the_two_phases(kind: str) -> None:
    """New tasks take as many numbers as the learner was told, and say so."""
    waves = tegu.Sinusoids(n_shot=4, n_query=3)
    model = tegu.models.Mlp(1, 0, hidden=(5,))
    learner = READERS[kind][0](model=model, numbers=1, width=4, loss=squared_error)
    learned = tegu.meta_train(learner, waves, meta_iterations=2, meta_batch=3)
    task = learned.adapt([[0.0], [1.0]], [[0.5], [0.9]])
    assert task.predict([[0.5], [1.5], [2.5]]).shape == (3, 1)
    with pytest.raises(InputError, match="y has 2 columns for a model of 1 targets"):
        learned.adapt([[0.0]], [[0.5, 0.1]])
    blind = replace(learned, learner=replace(learner, numbers=0))
    with pytest.raises(InputError, match="targets that are numbers where numbers is 0"):
        blind.adapt([[0.0]], [[0.5]])
