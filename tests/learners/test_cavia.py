"""CAVIA against a plain loop of torch.autograd, and against central differences."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tegu
from tegu import keys
from tegu.datasets import Sinusoids
from tegu.datasets.classes import ClassDataset
from tegu.engine.trees import tensors_of
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.job import Job
from tegu.learners import Cavia
from tegu.losses import squared_error
from tegu.models import Conv4, Mlp
from tegu.recipes import parse
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(3))


def network(weights: Params, x: Tensor, context: Tensor) -> Tensor:
    """The first layer in two products, so that nothing is joined."""
    into_x, into_context = weights["body.1.weight"].split([1, len(context)], 1)
    hidden = x @ into_x.T + into_context @ context + weights["body.1.bias"]
    return F.linear(torch.tanh(hidden), weights["head.weight"], weights["head.bias"])


def adapted(weights: Params, support: Examples, *, steps: int, second: bool) -> Tensor:
    context = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        loss = (network(weights, support.x, context) - support.y).square().mean()
        (grad,) = torch.autograd.grad(loss, context, create_graph=second)
        context = context - 0.7 * grad
    return context


def plain(weights: Params, episode: Episode, *, steps: int, first_order: bool = False) -> Tensor:
    context = adapted(weights, episode.support, steps=steps, second=not first_order)
    query = episode.query
    return (network(weights, query.x, context) - query.y).square().mean()


def learner(**settings: object) -> Cavia:
    model = Mlp(5, 1, hidden=(6,), activation="tanh").double()
    return Cavia(model=model, loss=squared_error, **{"context": 4, "inner_lr": 0.7, **settings})


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
    as_plain(made, made.init(), episodes, loop)


def test_the_meta_gradient_is_that_of_central_differences(
    as_differences: Any, episodes: Episode
) -> None:
    made = learner(inner_steps=2)
    as_differences(made, made.init(), episodes, partial(plain, steps=2))


def test_checkpointed_steps_give_the_same_gradient(episodes: Episode) -> None:
    made = learner(inner_steps=3)
    params = made.init()
    whole, cut = (
        Vectorised(made, checkpoint=how).outer_gradient(params, episodes, KEYS)
        for how in (False, True)
    )
    torch.testing.assert_close(cut, whole, rtol=1e-10, atol=1e-12)


def test_a_task_is_its_context_alone(episodes: Episode) -> None:
    """Four numbers a task, those of the plain loop, and the answers that they give."""
    made = learner(eval_steps=3)
    params = made.init()
    assert set(params) == {name for name, _ in made.model.named_parameters()}
    state = Vectorised(made).adapt(params, episodes.support, KEYS)
    (contexts,) = tensors_of(state)
    answers = Vectorised(made).predict(params, state, episodes.query)
    for t in range(3):
        one = select(episodes, t)
        context = adapted(params, one.support, steps=3, second=False).detach()
        torch.testing.assert_close(contexts[t], context, rtol=1e-10, atol=1e-12)
        expected = network(params, one.query.x, context)
        torch.testing.assert_close(answers[t], expected, rtol=1e-10, atol=1e-12)
        joined = torch.cat([one.query.x, context.expand(6, 4)], 1)
        features = made.features({**params, "context/task": context}, one.query.x)
        torch.testing.assert_close(features, made.model.body(joined).detach())


def test_images_get_constant_channels(toy_images: ClassDataset) -> None:
    """Conv4 from what the learner is given equals Conv4 from channels added by hand."""
    batch = FewShotTasks(toy_images, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(1))
    (x, y, mask), query = select(batch, 0)
    model = Conv4(3, channels=3, size=8, width=4)
    made = Cavia(model=model, context=2, normalisation="transductive")
    params = made.init()
    state = made.adapt(params, Examples(x, y, mask), KEYS[0])
    context = state["weights"]["context/task"]
    assert context.shape == (2,)
    planes = context.detach()[:, None, None].expand(len(query.x), 2, 8, 8)
    expected = model(torch.cat([query.x, planes], 1))
    assert context.abs().min() > 0
    torch.testing.assert_close(made.predict(params, state, query.x, query.mask), expected)


def test_a_job_builds_models_with_room(few_glyphs: None) -> None:
    def built(**changes: Any) -> torch.nn.Module:
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        one = {"name": "one", "learner": {"name": "cavia"}, "train": {"n_query": 1, "n_way": 3}}
        found = Job(parse(one, overrides))
        found.check()
        return found.learner.model

    waves = built(data__name="sinusoids", model__name="mlp", learner__context=3)
    assert waves.body[1].in_features == 4
    assert built(model__name="mlp").body[1].in_features == 6 * 784
    assert built(model__width=4).body.convs[0].weight.shape == (9 * 6, 4)
    with pytest.raises(InputError, match="context is -7"):
        built(learner__context=-7)


@pytest.mark.parametrize("how", ["auto", "vmap", "loop"])
def test_a_model_without_room_is_refused(how: str, episodes: Episode) -> None:
    made = Cavia(model=Mlp(1, 1).double(), loss=squared_error)
    text = r"Mlp as a model, which cannot take 5 numbers .* inputs of shape \(1,\).*Mlp\(width \+ 5"
    with pytest.raises(InputError, match=text):
        Vectorised(made, vectorise=how).outer_gradient(made.init(), episodes, KEYS)
    with pytest.raises(InputError, match=text):
        tegu.MetaLearned(made, made.init()).adapt([[0.0], [1.0]], [[0.0], [0.8]])


def test_what_vmap_cannot_run_is_still_looped(episodes: Episode) -> None:
    class Fickle(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if float(x.detach().sum()) > 1e9 else 1.0)

    made = Cavia(model=Fickle(6, 1).double(), loss=squared_error)
    with pytest.warns(RuntimeWarning, match="tasks run one by one"):
        Vectorised(made).outer_gradient(made.init(), episodes, KEYS)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"context": 0}, "context is 0; expected at least 1"),
        ({"carry": True}, "carry with sgd and Cavia"),
    ],
)
def test_what_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        learner(**settings)
