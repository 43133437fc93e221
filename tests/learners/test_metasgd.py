"""Meta-SGD against a plain loop of torch.autograd, and against central differences."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tegu import keys
from tegu.datasets import Sinusoids
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Maml, MetaSgd
from tegu.losses import squared_error
from tegu.models import Mlp

KEYS = keys.fold(keys.key(0), torch.arange(3))


def network(weights: Params, x: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(x, weights["body.1.weight"], weights["body.1.bias"]))
    return F.linear(hidden, weights["head.weight"], weights["head.bias"])


def plain(params: Params, episode: Episode, *, steps: int, first_order: bool) -> Tensor:
    """Query loss after algorithm 1's inner steps, a loop over names and no torch.func."""
    (x, y, _), (query_x, query_y, _) = episode
    weights = {name: p for name, p in params.items() if "/" not in name}
    for _ in range(steps):
        loss = (network(weights, x) - y).square().mean()
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order)
        weights = {
            name: w - params[f"rates/{name}"] * g
            for (name, w), g in zip(weights.items(), grads, strict=True)
        }
    return (network(weights, query_x) - query_y).square().mean()


def learner(**settings: object) -> MetaSgd:
    model = Mlp(1, 1, hidden=(5,), activation="tanh").double()
    return MetaSgd(model=model, loss=squared_error, **settings)


@pytest.fixture
def episodes() -> Episode:
    halves = Sinusoids(n_shot=4, n_query=6).episodes(torch.arange(3))
    return Episode(*(half._replace(x=half.x.double(), y=half.y.double()) for half in halves))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_that_of_a_plain_loop(
    steps: int, first_order: bool, as_plain: Any, episodes: Episode
) -> None:
    made = learner(inner_steps=steps, first_order=first_order)
    loop = partial(plain, steps=steps, first_order=first_order)
    found = as_plain(made, made.init(), episodes, loop)
    assert all(bool(g.abs().max() > 0) for name, g in found.items() if name.startswith("rates/"))


def test_the_meta_gradient_is_that_of_central_differences(
    as_differences: Any, episodes: Episode
) -> None:
    """Weights and rates moved together, along random directions."""
    made = learner(inner_steps=2)
    as_differences(made, made.init(), episodes, partial(plain, steps=2, first_order=False))


def test_checkpointed_steps_give_the_same_gradient(episodes: Episode) -> None:
    for first_order in (False, True):
        made = learner(inner_steps=3, first_order=first_order)
        params = made.init()
        whole, cut = (
            Vectorised(made, checkpoint=how).outer_gradient(params, episodes, KEYS)
            for how in (False, True)
        )
        torch.testing.assert_close(cut, whole, rtol=1e-10, atol=1e-12)


def test_equal_rates_are_maml(episodes: Episode) -> None:
    made = learner(initial="same", inner_lr=0.3, inner_steps=2)
    maml = Maml(model=made.model, loss=squared_error, inner_lr=0.3, inner_steps=2)
    found, _ = Vectorised(made).outer_gradient(made.init(), episodes, KEYS)
    expected, _ = Vectorised(maml).outer_gradient(maml.init(), episodes, KEYS)
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g, rtol=1e-12, atol=0)


def test_initial_rates() -> None:
    first, again, other = (learner(initial="uniform", rate_seed=n).init() for n in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    rates = torch.cat([p.flatten() for name, p in first.items() if name.startswith("rates/")])
    assert len(rates) == 16
    assert len(rates.unique()) == 16
    assert 0.005 <= float(rates.min()) < 0.03
    assert 0.07 < float(rates.max()) < 0.1
    assert not torch.equal(first["rates/body.1.bias"], other["rates/body.1.bias"])
    assert torch.equal(first["body.1.bias"], other["body.1.bias"])
    ones = [learner(initial="one", rate_seed=seed).init() for seed in (0, 0, 1)]
    drawn = [
        torch.cat([p.flatten() for name, p in one.items() if name.startswith("rates/")]).unique()
        for one in ones
    ]
    assert [len(rates) for rates in drawn] == [1, 1, 1]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(0.005 <= float(rate) < 0.1 for rate in drawn)
    same = learner(initial="same", inner_lr=0.25).init()
    assert same["rates/head.weight"].tolist() == [[0.25] * 5]


def test_a_task_keeps_weights_alone(episodes: Episode) -> None:
    made = learner()
    state = Vectorised(made).adapt(made.init(), episodes.support, KEYS)
    assert set(state) == {"weights", "support"}
    assert set(state["weights"]) == {name for name, _ in made.model.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"initial": "normal"}, "unknown way to start the rates 'normal'"),
        ({"lowest_rate": 0.2}, r"rates from 0\.2 to 0\.1; expected 0 or more, the lower first"),
        ({"inner_optimiser": "adam"}, "Meta-SGD with adam, .*expected plain sgd"),
        ({"momentum": 0.9}, r"Meta-SGD with sgd, momentum 0\.9"),
    ],
)
def test_what_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        learner(**settings)
