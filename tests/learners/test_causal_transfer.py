"""Causal transfer against plain loops, closed forms and differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets.causal_pairs import CategoryPairs, ContinuousPairs
from tegu.engine.train import Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.engine.worlds import stacked, train_worlds
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import CausalTransfer
from tegu.learners.causal_transfer import regret
from tegu.models import Mlp, Pair, category_pair, mixture_pair, tables_of

KEY = keys.key(3, "test")


def double(episode: Episode) -> Episode:
    return Episode(*(half._replace(x=half.x.double()) for half in episode))


@pytest.fixture
def categories() -> Episode:
    return double(
        select(CategoryPairs(n_shot=20, n_query=9, n_categories=4).episodes(torch.arange(1)), 0)
    )


@pytest.fixture
def numbers() -> Episode:
    return double(
        select(ContinuousPairs(n_shot=15, n_query=9, angle=0.4).episodes(torch.arange(1)), 0)
    )


def random_tables(n: int) -> Pair:
    model = category_pair(n).double()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.normal_(generator=generator)
    return model


def small_mixtures() -> Pair:
    return mixture_pair(components=3, hidden=5, spread=6.0, seed=2).double()


@pytest.mark.parametrize("gamma", [-2.0, 0.0, 0.7])
@pytest.mark.parametrize("gap", [-3.0, 0.5, 200.0])
def test_slope_of_the_regret_is_prior_minus_posterior(gamma: float, gap: float) -> None:
    """Proposition 2; a gap of hundreds overflows nothing."""
    at = torch.tensor(gamma, dtype=torch.float64, requires_grad=True)
    online = torch.tensor([-500.0 + gap, -500.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad(regret(at, online), at)
    expected = torch.sigmoid(at.detach()) - torch.sigmoid(at.detach() + gap)
    torch.testing.assert_close(slope, expected)
    direct = torch.sigmoid(at) * torch.tensor(gap).double().exp() + torch.sigmoid(-at)
    torch.testing.assert_close(regret(at, online), 500 - direct.log())


def plain_tables(params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods both ways, row by row, out of softmax tables."""
    forth, back = [], []
    for row in x:
        a, b = int(row[0]), int(row[1])
        forth.append(
            params["a.logits"].softmax(0)[a].log()
            + params["b_given_a.logits"][a].softmax(0)[b].log()
        )
        back.append(
            params["b.logits"].softmax(0)[b].log()
            + params["a_given_b.logits"][b].softmax(0)[a].log()
        )
    return torch.stack(forth), torch.stack(back)


@pytest.mark.parametrize("evidence", ["sum", "mean"])
def test_two_steps_on_tables_by_a_plain_loop(categories: Episode, evidence: str) -> None:
    """Each batch is judged before it is learnt from; each direction learns by itself."""
    learner = CausalTransfer(model=random_tables(4), evidence=evidence)
    params = {**learner.init(), "belief/gamma": torch.tensor(0.3).double()}
    at = learner.begin(params, categories.support, KEY, training=True)["order"]
    tables = {k: v.clone().requires_grad_() for k, v in params.items() if "/" not in k}
    online = torch.zeros(2, dtype=torch.float64)
    for rows in at:
        forth, back = plain_tables(tables, categories.support.x[rows])
        each = torch.stack([forth.sum(), back.sum()])
        online = online + (each if evidence == "sum" else each / 10).detach()
        loss = -forth.mean() - back.mean()
        grads = torch.autograd.grad(loss, list(tables.values()))
        tables = {
            k: (v - 0.1 * g).detach().requires_grad_()
            for (k, v), g in zip(tables.items(), grads, strict=True)
        }
    state = learner.adapt(params, categories.support, KEY, training=True)
    torch.testing.assert_close(state["online"], online)
    torch.testing.assert_close(state["weights"], {k: v.detach() for k, v in tables.items()})
    sigma = torch.sigmoid(torch.tensor(0.3).double())
    expected = -(sigma * online[0].exp() + (1 - sigma) * online[1].exp()).log()
    torch.testing.assert_close(learner.outer_loss(params, categories, KEY), expected)
    # After meta-training nothing is kept but the adapted tables, which answer by the belief.
    state = learner.adapt(params, categories.support, KEY)
    assert state.keys() == {"weights", "support"}
    query = categories.query
    forth, back = plain_tables(state["weights"], query.x)
    mixed = (sigma * forth.exp() + (1 - sigma) * back.exp()).log()
    answers = learner.predict(params, state, query.x, query.mask)
    torch.testing.assert_close(answers, mixed[:, None])
    torch.testing.assert_close(learner.loss(answers, query), -mixed.mean())


def test_each_row_is_judged_once(categories: Episode) -> None:
    learner = CausalTransfer(model=random_tables(4))
    dealt = learner.begin(learner.init(), categories.support, KEY, training=True)["order"]
    assert sorted(dealt.flatten().tolist()) == list(range(20))


def test_belief_moves_alone_unless_the_models_are_fitted(categories: Episode) -> None:
    batch = Episode(*(Examples(*(field[None] for field in half)) for half in categories))
    for refit in (False, True):
        learner = CausalTransfer(model=random_tables(4), refit=refit)
        params = learner.init()
        grads, _ = Vectorised(learner).outer_gradient(params, batch, KEY[None])
        assert float(grads["belief/gamma"].abs()) > 1e-3
        moved = {k for k, v in grads.items() if float(v.abs().max()) > 0}
        assert (moved == {"belief/gamma"}) != refit
    fitting = {**params, "schedule/fit": torch.ones(()).double()}
    learner = CausalTransfer(model=random_tables(4))
    grads, loss = Vectorised(learner).outer_gradient(fitting, batch, KEY[None])
    forth, back = plain_tables(params, categories.query.x)
    torch.testing.assert_close(loss, -forth.mean() - back.mean())
    assert float(grads["belief/gamma"]) == 0
    assert float(grads["a.logits"].abs().max()) > 1e-3


def test_belief_and_angle_move_alone(numbers: Episode) -> None:
    """What the models adapt to tells the angle, and is no reason to change where they start."""
    batch = Episode(*(Examples(*(field[None] for field in half)) for half in numbers))
    learner = CausalTransfer(model=small_mixtures(), **encoder_settings(False))
    grads, _ = Vectorised(learner).outer_gradient(learner.init(), batch, KEY[None])
    moved = {k for k, v in grads.items() if float(v.abs().max()) > 0}
    assert moved == {"belief/gamma", "encoder/angle"}


def test_fitting_comes_first() -> None:
    learner = CausalTransfer(model=random_tables(4), fit=0.25)
    assert learner.schedule(0.24).keys() == {"fit"}
    assert not learner.schedule(0.25)
    assert not CausalTransfer(model=random_tables(4), fit=0.0).schedule(0.0)


def encoder_settings(first_order: bool) -> dict[str, Any]:
    return {
        "encoder": True,
        "evidence": "mean",
        "inner_steps": 3,
        "inner_batch": 0,
        "inner_lr": 0.05,
        "em": 1,
        "first_order": first_order,
    }


def test_slope_by_the_angle_is_exact_in_second_order(numbers: Episode) -> None:
    """Central differences, through three steps of adaptation and EM."""
    learner = CausalTransfer(model=small_mixtures(), **encoder_settings(False))
    params = {**learner.init(), "encoder/angle": torch.tensor(0.2, dtype=torch.float64)}
    batch = Episode(*(Examples(*(field[None] for field in half)) for half in numbers))
    grads, _ = Vectorised(learner).outer_gradient(params, batch, KEY[None])
    step = 1e-5

    def value(angle: float) -> Tensor:
        at = {**params, "encoder/angle": torch.tensor(angle, dtype=torch.float64)}
        return learner.outer_loss(at, numbers, KEY)

    slope = (value(0.2 + step) - value(0.2 - step)) / (2 * step)
    torch.testing.assert_close(grads["encoder/angle"], slope, rtol=1e-6, atol=1e-8)


def plain_rotated(x: Tensor, angle: Tensor) -> Tensor:
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    return x @ turn.T


def plain_em(values: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor) -> list[Tensor]:
    share = torch.stack(
        [
            logits.softmax(0)[k]
            * torch.distributions.Normal(mean[k], log_scale[k].exp()).log_prob(values).exp()
            for k in range(len(mean))
        ],
        1,
    )
    share = share / share.sum(1, keepdim=True)
    news: list[list[Tensor]] = [[], [], []]
    for k in range(len(mean)):
        n = share[:, k].sum() + 1e-3
        centre = ((share[:, k] * values).sum() + 1e-3 * mean[k]) / n
        spread = (share[:, k] * (values - centre) ** 2).sum()
        spread = spread + 1e-3 * (log_scale[k].exp() ** 2 + (mean[k] - centre) ** 2)
        for new, part in zip(news, (n, centre, (spread / n).sqrt().log()), strict=True):
            new.append(part)
    weights, means, scales = (torch.stack(part) for part in news)
    return [(weights / weights.sum()).log(), means, scales]


def test_slope_by_the_angle_in_first_order_by_a_plain_loop(numbers: Episode) -> None:
    """As the published code: adapted weights are constants, likelihoods see the angle."""
    learner = CausalTransfer(model=small_mixtures(), **encoder_settings(True))
    params = {**learner.init(), "encoder/angle": torch.tensor(0.2, dtype=torch.float64)}
    batch = Episode(*(Examples(*(field[None] for field in half)) for half in numbers))
    grads, loss = Vectorised(learner).outer_gradient(params, batch, KEY[None])

    angle = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    model, online = small_mixtures(), torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        x = plain_rotated(numbers.support.x, angle)
        each = model(x).mean(0)
        online = online + each
        own = list(model.parameters())
        steps = torch.autograd.grad(-each.sum(), own, retain_graph=True)
        em = {}
        for column, part in enumerate((model.a, model.b)):
            old = (part.logits.detach(), part.mean.detach(), part.log_scale.detach())
            em[column] = plain_em(x[:, column].detach(), *old)
        following = small_mixtures()  # the old one is part of the graph
        for p, old_p, g in zip(following.parameters(), own, steps, strict=True):
            p.data.copy_(old_p.detach() - 0.05 * g)
        for column, part in enumerate((following.a, following.b)):
            for p, new in zip((part.logits, part.mean, part.log_scale), em[column], strict=True):
                p.data.copy_(new)
        model = following
    expected = regret(torch.zeros(()).double(), online)
    (slope,) = torch.autograd.grad(expected, angle)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(grads["encoder/angle"], slope)
    exact = CausalTransfer(model=small_mixtures(), **encoder_settings(False))
    other, _ = Vectorised(exact).outer_gradient(params, batch, KEY[None])
    assert not torch.allclose(other["encoder/angle"], slope)


@pytest.mark.parametrize("kind", ["categories", "numbers"])
def test_neither_direction_has_a_head_start(request: pytest.FixtureRequest, kind: str) -> None:
    """Exchanging the columns exchanges the evidence, bit for bit."""
    episode: Episode = request.getfixturevalue(kind)
    model = category_pair(4, hidden=3).double() if kind == "categories" else small_mixtures()
    learner = CausalTransfer(model=model, em=1)
    params = learner.init()
    support = episode.support
    forth = learner.adapt(params, support, KEY, training=True)["online"]
    back = learner.adapt(params, support._replace(x=support.x.flip(-1)), KEY, training=True)[
        "online"
    ]
    assert torch.equal(forth, back.flip(0))
    assert not torch.equal(forth, back)


def beliefs(swapped: bool) -> Tensor:
    worlds = [CategoryPairs(n_query=1, world=w, swapped=swapped) for w in range(6)]
    learner = CausalTransfer(model=category_pair(10))
    start = stacked(
        [
            {**learner.init(), **{k: v.float() for k, v in tables_of(w.training).items()}}
            for w in worlds
        ]
    )
    _, _, path = train_worlds(
        learner,
        start,
        worlds,
        meta_iterations=60,
        outer_lr=0.05,
        done=1.0,
        watch=lambda params: params["belief/gamma"].sigmoid(),
    )
    return path[-1]


def test_belief_finds_the_cause_among_categories() -> None:
    """Six random worlds, their tables exact; where the columns are exchanged, it turns round."""
    assert float(beliefs(False).min()) > 0.8
    assert float(beliefs(True).max()) < 0.2


def test_one_call_fits_the_models_and_finds_the_cause() -> None:
    """The engine's own meta-training, tables learnt from samples.

    Ten steps: two directions that were fitted apart differ by more than two steps teach.
    """
    found = {}
    for swapped in (False, True):
        tasks = CategoryPairs(n_shot=100, n_categories=5, world=1, swapped=swapped)
        learner = CausalTransfer(model=category_pair(5), fit=0.6, inner_steps=10, inner_lr=0.5)
        settings = Settings(meta_iterations=200, meta_batch=1, outer_lr=0.04, outer_lr_final=0.01)
        params, _ = meta_train(Vectorised(learner), tasks, settings)
        found[swapped] = float(params["belief/gamma"].sigmoid())
        learnt = params["a.logits"].softmax(0) - tasks.training.sum(1).float()
        assert float(learnt.abs().max()) < 0.05
    assert found[False] > 0.75
    assert found[True] < 0.25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evidence": "max"}, "unknown evidence 'max'; expected one of mean, sum. Did"),
        ({"fit": 1.0}, "fit is 1.0; expected at least 0 and below 1. Try 0.5."),
        ({"em": -1}, "em is -1; expected at least 0. Raise em."),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as told:
        CausalTransfer(model=category_pair(3), **settings)
    assert str(told.value).startswith(message)


def test_pairs_of_ten_rows_do_not_run_out(numbers: Episode) -> None:
    """Fewer rows than the steps ask for are dealt again, and stay finite."""
    learner = CausalTransfer(model=small_mixtures(), inner_steps=5, inner_batch=10)
    state = learner.adapt(learner.init(), numbers.support, KEY, training=True)
    assert bool(state["online"].isfinite().all())
    assert F.softmax(state["online"], 0).sum() == pytest.approx(1.0)


def test_tables_are_read_unrounded_in_bf16() -> None:
    pair = category_pair(10)
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(10)).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = pair(pairs)
    torch.testing.assert_close(found, pair(pairs), rtol=0, atol=0)


def test_a_model_without_two_directions() -> None:
    learner = CausalTransfer(model=Mlp(2, 1, hidden=(4,)))
    tasks = ContinuousPairs(n_shot=4, n_query=2)
    with pytest.raises(InputError, match="a model with 1 outputs for causal-transfer"):
        meta_train(Vectorised(learner), tasks, Settings(1, 1))
