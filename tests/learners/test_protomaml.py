"""Proto-MAML against a plain loop of torch.autograd, central differences, and prototypes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tegu
from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import ProtoMaml, ProtoNet
from tegu.models import Conv4
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(3))
RATE = 0.2


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    double = replace(toy_data, examples=toy_data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(3))


class Net(nn.Module):
    """A body of two layers as a module, and a head that nothing asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        self.head = nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(2)
        for p in self.parameters():
            p.data.uniform_(-0.7, 0.7, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class Method(nn.Module):
    """A body that is a method, whose weights have no common name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

    def body(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.body(x))
        return out


def learner(**settings: object) -> ProtoMaml:
    return ProtoMaml(model=Net().double(), **{"n_way": 3, "inner_lr": RATE, **settings})


def body(weights: Params, x: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(x, weights["body.0.weight"], weights["body.0.bias"]))
    return F.linear(hidden, weights["body.2.weight"], weights["body.2.bias"])


def plain(params: Params, episode: Episode, *, steps: int, first_order: bool = False) -> Tensor:
    """Query loss by loops over classes and names, with no torch.func."""
    (x, y, _), (query_x, query_y, _) = episode
    features = body(params, x)
    means = [features[y == k].mean(0) for k in range(3)]
    # Times one: a gradient by these holds the head fixed, which comes from the leaves.
    weights = {name: 1 * p for name, p in params.items() if name.startswith("body.")}
    weights["W"] = torch.stack([2 * c for c in means])
    weights["b"] = torch.stack([-(c @ c) for c in means])
    for _ in range(steps):
        loss = F.cross_entropy(body(weights, x) @ weights["W"].T + weights["b"], y)
        grads = torch.autograd.grad(
            loss, list(weights.values()), create_graph=not first_order, retain_graph=True
        )
        weights = {k: w - RATE * g for (k, w), g in zip(weights.items(), grads, strict=True)}
    return F.cross_entropy(body(weights, query_x) @ weights["W"].T + weights["b"], query_y)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_is_that_of_a_plain_loop(
    steps: int, first_order: bool, as_plain: Any, episodes: Episode
) -> None:
    made = learner(inner_steps=steps, first_order=first_order)
    loop = partial(plain, steps=steps, first_order=first_order)
    as_plain(made, made.init(), episodes, loop, rtol=1e-9, unused=True)


def test_the_meta_gradient_is_that_of_central_differences(
    as_differences: Any, episodes: Episode
) -> None:
    made = learner(inner_steps=2)
    as_differences(made, made.init(), episodes, partial(plain, steps=2))


@pytest.mark.parametrize("first_order", [False, True])
def test_checkpointed_steps_give_the_same_gradient(first_order: bool, episodes: Episode) -> None:
    made = learner(inner_steps=3, first_order=first_order)
    params = made.init()
    whole, cut = (
        Vectorised(made, checkpoint=how).outer_gradient(params, episodes, KEYS)
        for how in (False, True)
    )
    torch.testing.assert_close(cut, whole, rtol=1e-10, atol=1e-12)


def test_before_any_step_it_is_a_prototypical_network(episodes: Episode) -> None:
    made = learner(eval_steps=0)
    params = made.init()
    distances = ProtoNet(model=made.model, n_way=3)
    found, expected = (
        Vectorised(one).predict(
            params, Vectorised(one).adapt(params, episodes.support, KEYS), episodes.query
        )
        for one in (made, distances)
    )
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found, expected)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_an_absent_class_is_as_if_it_did_not_exist(optimiser: str, episodes: Episode) -> None:
    """Three ways without an example of class 1, against two ways."""
    one, settings = select(episodes, 0), {"inner_optimiser": optimiser, "inner_lr": 0.05}
    three, two = learner(**settings), learner(n_way=2, **settings)
    params, rows = three.init(), one.support.y != 1
    support = one.support._replace(mask=rows)
    renamed = one.support._replace(mask=rows, y=one.support.y.clamp(max=1))
    x, mask = one.query.x, one.query.mask
    found = three.predict(params, three.adapt(params, support, KEYS[0]), x, mask)
    expected = two.predict(params, two.adapt(params, renamed, KEYS[0]), x, mask)
    torch.testing.assert_close(found[:, [0, 2]], expected, rtol=1e-10, atol=1e-12)
    assert bool((found[:, 1] < -1e300).all())
    assert bool((found.softmax(-1)[:, 1] == 0).all())


def test_no_head_is_meta_learned(episodes: Episode) -> None:
    """The model's own stays to the bit, and no task carries it."""
    made = learner()
    params, engine = made.init(), Vectorised(made)
    assert set(params) == {name for name, _ in made.model.named_parameters()}
    new, _, _ = engine.update(params, engine.outer_state(params), episodes, KEYS, outer_lr=0.1)
    for name, p in params.items():
        assert torch.equal(new[name], p) == name.startswith("head.")
    state = engine.adapt(params, episodes.support, KEYS)
    assert set(state) == {"weights", "support"}
    own = {name for name in params if name.startswith("body.")}
    assert set(state["weights"]) == own | {"prototypes/weight", "prototypes/bias"}
    assert state["weights"]["prototypes/weight"].shape == (3, 3, 4)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        (Method, "body"),
        (lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 2)), "0.1"),
        (lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.Tanh())), ""),
    ],
    ids=["method", "layer", "all"],
)
def test_features_come_from_any_part(model: object, part: str, episodes: Episode) -> None:
    """One step of the head by hand, on features that a plain call gives."""
    made = ProtoMaml(
        model=model().double(),  # type: ignore[operator]
        body=part,
        n_way=3,
        eval_steps=1,
        inner_lr=RATE,
    )
    x, y, _ = select(episodes, 0).support
    net = made.model
    features = (net.body(x) if part == "body" else net[0](x)).detach()
    means = torch.stack([features[y == k].mean(0) for k in range(3)])
    weight, bias = (2 * means).requires_grad_(), (-means.square().sum(1)).requires_grad_()
    loss = F.cross_entropy(features @ weight.T + bias, y)
    for leaf, g in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
        leaf.data -= RATE * g
    state = made.adapt(made.init(), select(episodes, 0).support, KEYS[0])
    torch.testing.assert_close(state["weights"]["prototypes/weight"], weight.detach())
    torch.testing.assert_close(state["weights"]["prototypes/bias"], bias.detach())


def test_low_precision_is_for_the_body_alone(episodes: Episode) -> None:
    """Before any step the head is the prototypes of bf16 features, themselves not rounded."""
    made = ProtoMaml(model=Net(), n_way=3, eval_steps=0)
    halves = [half._replace(x=half.x.float()) for half in episodes]
    episodes, params = Episode(*halves), made.init()
    support = select(episodes, 0).support
    with torch.autocast("cpu", torch.bfloat16):
        state = made.adapt(params, support, KEYS[0])
        features = made.features(params, support.x)
    assert features.dtype == torch.bfloat16
    for k in range(3):
        mean = features.float()[support.y == k].mean(0)
        found = state["weights"]["prototypes/weight"][k]
        torch.testing.assert_close(found, 2 * mean, rtol=1e-6, atol=1e-6)


def test_any_number_of_classes() -> None:
    """Meta-trained with five ways, used with two and with seven."""
    learned = tegu.MetaLearned(ProtoMaml(model=Conv4(5, width=4)), {})
    learned = replace(learned, params=learned.learner.init())
    images = torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for n in (2, 7):
        task = learned.adapt(images[:n], list("abcdefg"[:n]))
        assert task.predict(images[:n]) == list("abcdefg"[:n])
        assert task.predict_proba(images).shape == (7, n)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n_way": 1}, "n_way is 1; expected at least 2"),
        ({"carry": True}, "carry with sgd and ProtoMaml"),
    ],
)
def test_what_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        learner(**settings)
