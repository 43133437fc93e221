"""R2-D2 against numpy, scikit-learn and finite differences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import R2D2
from tegu.learners.r2d2 import ridge
from tegu.models import Mlp
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(4))


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    double = replace(toy_data, examples=toy_data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(4))


def learner_of(width: int, **settings: object) -> R2D2:
    model = Mlp(6, 3, hidden=(width,), activation="tanh").double()
    return R2D2(model=model, n_way=3, **settings)


def plain_loss(learner: R2D2, params: Params, episode: Episode) -> Tensor:
    """The outer loss by the module itself and the formula of the paper."""
    model = learner.model
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(params[name])
    support, query = episode
    x = torch.cat([model.body(support.x), torch.ones(len(support.x), 1).double()], 1)
    strength = len(x) * params["ridge/log_lambda"].exp()
    weights = (x.T @ x + strength * torch.eye(x.shape[1]).double()).inverse() @ x.T
    weights = weights @ torch.eye(3).double()[support.y]
    out = torch.cat([model.body(query.x), torch.ones(len(query.x), 1).double()], 1) @ weights
    return F.cross_entropy(params["ridge/scale"] * out + params["ridge/offset"], query.y)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
@pytest.mark.parametrize("strength", [1e-3, 50.0])
def test_ridge_by_either_system(shape: tuple[int, int], strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).double()
    y = torch.randn(shape[0], 3, generator=generator).double()
    gram = x.numpy().T @ x.numpy() + strength * np.eye(shape[1])
    expected = torch.from_numpy(np.linalg.solve(gram, x.numpy().T @ y.numpy()))
    found = ridge(x, y, strength)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    theirs = Ridge(alpha=strength, fit_intercept=False, solver="cholesky").fit(x, y).coef_
    torch.testing.assert_close(found, torch.from_numpy(theirs.T), rtol=0, atol=1e-8)
    more = torch.cat([x, torch.zeros(3, shape[1]).double()])
    padded = ridge(more, torch.cat([y, torch.zeros(3, 3).double()]), strength)
    torch.testing.assert_close(padded, found, rtol=0, atol=1e-10)


@pytest.mark.parametrize("width", [4, 20])
@pytest.mark.parametrize("learn", [True, False])
def test_scores_are_those_of_scikit_learn(width: int, learn: bool, episodes: Episode) -> None:
    """With a bias column regularised as the rest, lambda times S, then scale and offset."""
    learner = learner_of(width, regulariser=0.02, scale=3.0, learn_regulariser=learn)
    params = {**learner.init(), "ridge/offset": torch.tensor(0.7, dtype=torch.float64)}
    assert ("ridge/log_lambda" in params) == learn
    support, query = select(episodes, 0)
    scores = learner.predict(params, learner.adapt(params, support, KEYS[0]), query.x, query.mask)
    with torch.no_grad():
        known, asked = (
            F.pad(learner.model.body(half.x), (0, 1), value=1) for half in (support, query)
        )
    theirs = Ridge(alpha=0.02 * 6, fit_intercept=False, solver="cholesky")
    theirs.fit(known.numpy(), np.eye(3)[support.y])
    expected = torch.from_numpy(3 * theirs.predict(asked.numpy()) + 0.7)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("width", [4, 20])
def test_the_outer_gradient_is_that_of_finite_differences(
    slopes: Any, width: int, episodes: Episode
) -> None:
    learner = learner_of(width, regulariser=0.05, scale=2.0)
    params = learner.init()
    grads, value = Vectorised(learner, vectorise="vmap").outer_gradient(params, episodes, KEYS)

    def loss(params: Params) -> Tensor:
        return torch.stack(
            [plain_loss(learner, params, select(episodes, t)) for t in range(4)]
        ).mean()

    torch.testing.assert_close(value, loss(params).detach())
    by_gradient, by_differences = slopes(loss, params, grads)
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)
    assert grads["ridge/log_lambda"].abs() > 1e-4
    assert grads["ridge/scale"].abs() > 1e-4


def test_lambda_stays_above_zero(episodes: Episode) -> None:
    """However far an outer step goes."""
    learner = learner_of(4, regulariser=0.05)
    params = {**learner.init(), "ridge/log_lambda": torch.tensor(-30.0).double()}
    assert learner.init()["ridge/log_lambda"].item() == pytest.approx(math.log(0.05))
    state = learner.adapt(params, select(episodes, 0).support, KEYS[0])
    assert state["weights"].isfinite().all()


def test_bfloat16_stops_at_the_features(episodes: Episode) -> None:
    """A head in bf16 would miss its solution by a percent; torch cannot even solve in it."""
    single = Episode(*(half._replace(x=half.x.float()) for half in episodes))
    learner = R2D2(model=Mlp(6, 3, hidden=(20,)), n_way=3, regulariser=0.05)
    engine, params = Vectorised(learner, precision="bf16", vectorise="loop"), learner.init()
    grads, _ = engine.outer_gradient(params, single, KEYS)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads.values())
    state = engine.adapt(params, single.support, KEYS)
    assert state["weights"].dtype == torch.float32
    scores = engine.predict(params, state, single.query)
    for t in range(4):
        support, query = select(single, t)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            known, asked = (learner.model.body(half.x).float() for half in (support, query))
        theirs = Ridge(alpha=0.05 * 6, fit_intercept=False)
        theirs.fit(F.pad(known, (0, 1), value=1).numpy(), np.eye(3)[support.y])
        expected = 10 * theirs.predict(F.pad(asked, (0, 1), value=1).numpy())
        torch.testing.assert_close(scores[t], torch.from_numpy(expected).float(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("width", [4, 20])
def test_compiled_equals_eager(width: int, episodes: Episode) -> None:
    learner = learner_of(width, regulariser=0.05)
    params = learner.init()
    eager, compiled = (
        Vectorised(learner, vectorise="vmap", compile=c).outer_gradient(params, episodes, KEYS)
        for c in (False, True)
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"regulariser": 0.0}, r"regulariser is 0.0; expected a number above 0"),
        ({"scale": -1.0}, r"scale is -1.0; expected a number above 0"),
    ],
)
def test_what_is_refused(settings: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        learner_of(4, **settings)


def test_padding_weighs_nothing(episodes: Episode) -> None:
    learner = learner_of(20)
    params, support = learner.init(), select(episodes, 0).support
    one = Examples(*(field[:5] for field in support))
    mask = support.mask.clone()
    mask[5] = False
    padded = learner.adapt(params, support._replace(mask=mask), KEYS[0])
    torch.testing.assert_close(padded, learner.adapt(params, one, KEYS[0]))
