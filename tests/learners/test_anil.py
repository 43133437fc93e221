"""ANIL against finite differences on a plain network, a plain loop, and a count of passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Anil
from tegu.learners.finetune import cycle
from tegu.models import Conv4
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(3))


class Network(nn.Module):
    """A body with batch normalisation, counting its passes, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        generator = torch.Generator().manual_seed(4)
        for p in self.parameters():
            p.data.uniform_(-0.8, 0.8, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def learner_of(model: nn.Module | None = None, **settings: Any) -> Anil:
    own = {"inner_steps": 3, "eval_steps": 3, "inner_lr": 0.3, "normalisation": "transductive"}
    return Anil(model=(model or Network()).double(), **{**own, **settings})


@pytest.fixture
def tasks(toy_data: ClassDataset) -> FewShotTasks:
    double = replace(toy_data, examples=toy_data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2)


@pytest.fixture
def episodes(tasks: FewShotTasks) -> Episode:
    """Three episodes, 3-way 2-shot, two queries a class."""
    return tasks.episodes(torch.arange(3))


def descended(params: Params, episodes: Episode, steps: int) -> Tensor:
    """The outer loss by whole passes of one network, whose head an optimiser moves in place."""
    total = torch.zeros((), dtype=torch.float64)
    for t in range(3):
        support, query = select(episodes, t)
        model = Network().double().train()
        for name, p in model.named_parameters():
            p.data.copy_(params[name])
        optimiser = torch.optim.SGD(model.head.parameters(), lr=0.3)
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(model(support.x), support.y).backward()
            optimiser.step()
        total += F.cross_entropy(model(query.x), query.y).detach() / 3
    return total


@pytest.mark.parametrize("steps", [1, 5])
def test_the_meta_gradient_is_that_of_finite_differences(
    steps: int, slopes: Any, episodes: Episode
) -> None:
    learner = learner_of(inner_steps=steps)
    params = learner.init()
    grads, loss = Vectorised(learner).outer_gradient(params, episodes, KEYS)
    torch.testing.assert_close(loss, descended(params, episodes, steps))
    descent = partial(descended, episodes=episodes, steps=steps)
    found, expected = slopes(descent, params, grads, kinds=("body", "head", ""), count=1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def body(w: Params, x: Tensor) -> Tensor:
    hidden = F.linear(x, w["body.0.weight"], w["body.0.bias"])
    return F.batch_norm(
        hidden, None, None, w["body.1.weight"], w["body.1.bias"], training=True
    ).tanh()


def head(w: Params, x: Tensor) -> Tensor:
    hidden = F.linear(x, w["head.0.weight"], w["head.0.bias"]).tanh()
    return F.linear(hidden, w["head.2.weight"], w["head.2.bias"])


def looped(
    leaves: Params, episode: Episode, rows: list[list[int]], *, create_graph: bool
) -> tuple[Params, Tensor]:
    """Weights after steps of the head on mini-batches of features, and answers."""
    support, query = episode
    w, features = dict(leaves), body(leaves, support.x)
    for mini in rows:
        own = {name: p for name, p in w.items() if name.startswith("head")}
        inner = F.cross_entropy(head(w, features[mini]), support.y[mini])
        found = torch.autograd.grad(
            inner, list(own.values()), create_graph=create_graph, retain_graph=True
        )
        moved = {name: p - 0.3 * g for (name, p), g in zip(own.items(), found, strict=True)}
        w = {**w, **moved}
    return w, head(w, body(w, query.x))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("batch", [0, 4])
@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_the_meta_gradient_is_that_of_a_plain_loop(
    how: str, batch: int, first_order: bool, episodes: Episode
) -> None:
    learner = learner_of(inner_batch=batch, first_order=first_order)
    params = learner.init()
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    losses = []
    for t in range(3):
        one = select(episodes, t)
        rows = [list(range(6))] * 3
        if batch:
            rows = cycle(KEYS[t], one.support.mask, batch=batch, steps=3).tolist()
        _, answers = looped(leaves, one, rows, create_graph=not first_order)
        losses.append(F.cross_entropy(answers, one.query.y))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()))
    engine = Vectorised(learner, vectorise=how)
    grads, _ = engine.outer_gradient(params, episodes, KEYS)
    torch.testing.assert_close(tuple(grads.values()), expected, rtol=1e-9, atol=1e-12)
    if how == "vmap":
        found = Vectorised(learner, checkpoint=True).outer_gradient(params, episodes, KEYS)[0]
        torch.testing.assert_close(found, grads, rtol=1e-9, atol=1e-12)


def test_what_is_left_of_a_task_is_its_head(episodes: Episode) -> None:
    learner = learner_of()
    params = learner.init()
    state = Vectorised(learner).adapt(params, episodes.support, KEYS)
    assert set(state) == {"weights", "support"}
    assert {name.partition(".")[0] for name in state["weights"]} == {"head"}
    leaves = {name: p.requires_grad_() for name, p in params.items()}
    for t in range(3):
        one = select(episodes, t)
        w, answers = looped(leaves, one, [list(range(6))] * 3, create_graph=False)
        for name, value in state["weights"].items():
            torch.testing.assert_close(value[t], w[name].detach())
        found = Vectorised(learner).predict(params, state, episodes.query)[t]
        torch.testing.assert_close(found, answers.detach())
    assert learner_of(normalisation="running").adapt(params, one.support, KEYS[0])["support"] == ()


@pytest.mark.parametrize("steps", [1, 7])
def test_the_support_set_passes_through_the_body_once(steps: int, episodes: Episode) -> None:
    """However many steps: once in meta-training, and once more for the queries."""
    model, rows = Network(), []
    model.body.register_forward_hook(lambda _module, given, _out: rows.append(len(given[0])))
    learner = learner_of(model, inner_steps=steps, eval_steps=steps)
    one = select(episodes, 0)
    learner.outer_loss(learner.init(), one, KEYS[0])
    assert rows == [6, 6]
    rows.clear()
    learner.adapt(learner.init(), one.support, KEYS[0])
    assert rows == [6]


def test_conv4_under_each_normalisation(toy_images: ClassDataset) -> None:
    """The same answers as the whole network with the task's head in place."""
    double = replace(toy_images, examples=toy_images.examples.double())
    images = FewShotTasks(double, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(3))
    learner = learner_of(Conv4(3, size=8, width=4))
    params = learner.init()
    state = Vectorised(learner).adapt(params, images.support, KEYS)
    assert set(state["weights"]) == {"head.weight", "head.bias"}
    support, query = select(images, 1)
    twin = Conv4(3, size=8, width=4).double()
    twin.head.weight.data.copy_(state["weights"]["head.weight"][1])
    twin.head.bias.data.copy_(state["weights"]["head.bias"][1])
    expected = {
        "transductive": twin(query.x),
        "support": torch.stack([twin(torch.cat([support.x, q[None]]))[-1] for q in query.x]),
    }
    for normalisation, outputs in expected.items():
        judge = replace(learner, normalisation=normalisation)
        found = Vectorised(learner).predict(params, state, images.query, learner=judge)
        torch.testing.assert_close(found[1], outputs.detach(), msg=normalisation)


class Named(Network):
    """The same parts under other names, one of them deeper."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleDict({"first": self.body})
        self.last = self.head
        del self.body, self.head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.trunk["first"](x))
        return out


def test_parts_with_other_names(episodes: Episode) -> None:
    named = learner_of(Named(), body="trunk.first", head="last")
    found, expected = (
        Vectorised(learner).outer_gradient(learner.init(), episodes, KEYS)
        for learner in (named, learner_of())
    )
    as_before = {
        k.replace("trunk.first", "body").replace("last", "head"): g for k, g in found[0].items()
    }
    torch.testing.assert_close((as_before, found[1]), expected)


def with_forward(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    cls = type("Other", (Network,), {"forward": forward})
    made: nn.Module = cls()
    return made


@pytest.mark.parametrize(
    ("make", "settings", "text"),
    [
        (lambda: nn.Linear(6, 3), {}, r"Linear without a module named head to be trained"),
        (Network, {"body": "trunk"}, r"Network without a module named 'trunk'"),
        (Network, {"body": ""}, r"Network without a module named ''"),
        (Network, {"body": "forward"}, r"Network without a module named 'forward'"),
        (
            lambda: with_forward(lambda self, x: self.head(self.body(x).relu())),
            {},
            r"Other, whose forward does more than head and body; expected a forward that is head",
        ),
        (lambda: with_forward(lambda self, x: 2 * self.head(self.body(x))), {}, "does more"),
        (lambda: with_forward(lambda self, x: self.body(x) @ self.head[0].weight.T), {}, "does"),
    ],
)
def test_a_model_that_is_not_head_of_body(
    make: Callable[[], nn.Module], settings: dict[str, Any], text: str, episodes: Episode
) -> None:
    learner = learner_of(make(), **settings)
    for how in ("vmap", "loop"):
        with pytest.raises(InputError, match=text):
            Vectorised(learner, vectorise=how).outer_gradient(learner.init(), episodes, KEYS)


def test_a_frozen_head(episodes: Episode) -> None:
    model = Network()
    model.head.requires_grad_(False)
    learner = learner_of(model)
    with pytest.raises(InputError, match="without a module named head to be trained"):
        learner.adapt(learner.init(), select(episodes, 0).support, KEYS[0])


def test_a_head_that_shares_weights_with_its_body(episodes: Episode) -> None:
    """A task changes the head alone, so that the two would part."""

    class Tied(Network):
        def __init__(self, *, trained: bool) -> None:
            super().__init__()
            self.body[0] = nn.Linear(6, 6)
            self.body[1] = nn.BatchNorm1d(6)
            self.head = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
            self.head[0].weight = self.body[0].weight.requires_grad_(trained)

    frozen = learner_of(Tied(trained=False))
    Vectorised(frozen).adapt(frozen.init(), episodes.support, KEYS)
    tied = learner_of(Tied(trained=True))
    with pytest.raises(InputError, match="weights that body and head of Tied share"):
        Vectorised(tied).adapt(tied.init(), episodes.support, KEYS)
