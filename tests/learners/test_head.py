"""What all heads share: one pass, absent classes, running statistics, the choice of features."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.checkpoint import load_checkpoint
from tegu.engine.evaluate import evaluate
from tegu.engine.run import Run
from tegu.engine.train import Interrupted, Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, pooled, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Head, ProtoNet
from tegu.learners.head import class_means, members, squared_distances
from tegu.learners.learner import State
from tegu.losses import cross_entropy
from tegu.models import BatchNorm
from tegu.sampling import FewShotTasks

MEAN, VAR = "statistics/body.1.running_mean", "statistics/body.1.running_var"
KEYS = keys.fold(keys.key(0), torch.arange(3))


class Normed(nn.Module):
    """A layer and batch normalisation, tegu's or torch's, in float64."""

    feature_width = 5

    def __init__(self, norm: Callable[[int], nn.Module] = BatchNorm) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), norm(5), nn.Tanh())
        generator = torch.Generator().manual_seed(8)
        for p in self.parameters():
            p.data.uniform_(-0.8, 0.8, generator=generator)
        self.double()


def moments(model: nn.Module, params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance before the normalisation."""
    hidden = x @ params["body.0.weight"].T + params["body.0.bias"]
    return hidden.mean(0), ((hidden - hidden.mean(0)) ** 2).mean(0)


def features_by_hand(params: Params, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    hidden = x @ params["body.0.weight"].T + params["body.0.bias"]
    hidden = (hidden - mean) / (var + eps).sqrt()
    return torch.tanh(hidden * params["body.1.weight"] + params["body.1.bias"])


# Sets of features


def test_members_means_and_distances() -> None:
    features = torch.tensor([[0.0, 2.0], [4.0, 0.0], [9.0, 9.0], [2.0, 4.0]], dtype=torch.float64)
    mask = torch.tensor([True, True, False, True])
    support = Examples(features, torch.tensor([2, 0, 0, 2]), mask)
    member = members(support, 4, features)
    assert member.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    means = class_means(features, member)
    assert means.tolist() == [[4, 0], [0, 0], [1, 3], [0, 0]]
    found = squared_distances(features, means)
    for q in range(4):
        for n in range(4):
            expected = sum((features[q, d] - means[n, d]) ** 2 for d in range(2))
            assert float(found[q, n]) == float(expected)


@dataclass(frozen=True, kw_only=True)
class Constant(Head):
    """Scores that rise with the number of the class, whatever was shown."""

    def fit(self, params: Params, features: Tensor, support: Examples) -> State:
        return {}

    def score(self, params: Params, state: State, features: Tensor, mask: Tensor) -> Tensor:
        return features.sum(-1, keepdim=True) + torch.arange(self.n_way)


def test_absent_classes_never_win(smooth: nn.Module, toy_episodes: Episode) -> None:
    """The last class would win each time; it is absent, or there in padding alone."""
    learner, one = Constant(model=smooth, n_way=4), select(toy_episodes, 0)
    params = learner.init()
    present = replace(learner, n_way=3)
    winners = present.predict(
        params, present.adapt(params, one.support, KEYS[0]), one.query.x, one.query.mask
    ).argmax(-1)
    assert bool((winners == 2).all())
    padding = one.support.y != 2
    for support in (
        one.support,
        one.support._replace(mask=padding, y=one.support.y),
        Examples(*(torch.cat([f, f[:1]]) for f in one.support))._replace(
            y=torch.cat([one.support.y, torch.tensor([3])]),
            mask=torch.tensor([True] * len(padding) + [False]),
        ),
    ):
        state = learner.adapt(params, support, KEYS[0])
        scores = learner.predict(params, state, one.query.x, one.query.mask)
        last = int(support.y[support.mask].max())
        assert bool((scores.argmax(-1) == last).all())
        assert bool(scores.isfinite().all())
        shares = scores.softmax(-1)
        assert float(shares[:, last + 1 :].sum()) == 0


def test_heads_fit_support_and_queries_in_one_pass(toy_episodes: Episode) -> None:
    """While meta-training batch normalisation sees both halves together."""
    learner = ProtoNet(model=Normed(), n_way=3)
    params = learner.init()
    losses = []
    for t in range(3):
        support, query = select(toy_episodes, t)
        x = torch.cat([support.x, query.x])
        known, asked = features_by_hand(params, x, *moments(learner.model, params, x), 1e-3).split(
            [len(support.y), len(query.y)]
        )
        centres = torch.stack([known[support.y == n].mean(0) for n in range(3)])
        scores = -((asked[:, None] - centres) ** 2).sum(-1)
        losses.append(nn.functional.cross_entropy(scores, query.y))
    for how in ("vmap", "loop"):
        engine = Vectorised(learner, vectorise=how)
        _, loss = engine.outer_gradient(params, toy_episodes, KEYS)
        torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_pooled(toy_episodes: Episode) -> None:
    one = select(toy_episodes, 0)
    both = pooled(one)
    assert both.y.tolist() == one.support.y.tolist() + one.query.y.tolist()
    torch.testing.assert_close(both.x[6:], one.query.x)


def test_heads_are_exact_under_autocast(smooth: nn.Module, toy_episodes: Episode) -> None:
    """Passes through the model are in bf16; means and distances of features are not."""
    single = smooth.float()
    episodes = Episode(*(half._replace(x=half.x.float()) for half in toy_episodes))
    learner = ProtoNet(model=single, n_way=3)
    params = learner.init()

    def features(x: Tensor) -> Tensor:
        return learner.features(params, x)

    for how in ("vmap", "loop"):
        engine = Vectorised(learner, precision="bf16", vectorise=how)
        state = engine.adapt(params, episodes.support, KEYS)
        found = engine.predict(params, state, episodes.query)
        assert state["prototypes"].dtype == found.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            known, asked = (
                torch.func.vmap(features)(half.x)
                if how == "vmap"
                else torch.stack([features(x) for x in half.x])
                for half in episodes
            )
        if how == "loop":
            assert known.dtype == asked.dtype == torch.bfloat16
        for t in range(3):
            y, f = episodes.support.y[t], known[t].float()
            centres = torch.stack([f[y == n].mean(0) for n in range(3)])
            expected = -((asked[t].float()[:, None] - centres) ** 2).sum(-1)
            torch.testing.assert_close(found[t], expected, rtol=1e-4, atol=1e-4)


# Running statistics


NORMS = {
    "tegu": (BatchNorm, 1e-3),
    "torch": (nn.BatchNorm1d, 1e-5),
}


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize("norm", NORMS)
def test_running_statistics_are_the_running_mean_of_the_batches(
    norm: str, how: str, toy_episodes: Episode
) -> None:
    """Share 0.1 of each meta-iteration's mean over tasks; adapting and answering use them."""
    kind, eps = NORMS[norm]
    learner = ProtoNet(model=Normed(kind), n_way=3, normalisation="running")
    engine = Vectorised(learner, vectorise=how)
    params = learner.init()
    outer = engine.outer_state(params)
    mean, var = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close((params[MEAN], params[VAR]), (mean, var))
    for _ in range(3):
        seen = []
        for t in range(3):
            support, query = select(toy_episodes, t)
            seen.append(moments(learner.model, params, torch.cat([support.x, query.x])))
        mean = 0.9 * mean + 0.1 * torch.stack([m for m, _ in seen]).mean(0)
        var = 0.9 * var + 0.1 * torch.stack([v for _, v in seen]).mean(0)
        params, outer, _ = engine.update(params, outer, toy_episodes, KEYS, outer_lr=0.05)
        torch.testing.assert_close((params[MEAN], params[VAR]), (mean, var))
    assert MEAN not in outer
    assert not any(MEAN in name for name in outer)

    state = engine.adapt(params, toy_episodes.support, KEYS)
    found = engine.predict(params, state, toy_episodes.query)
    for t in range(3):
        support, query = select(toy_episodes, t)
        known = features_by_hand(params, support.x, mean, var, eps)
        centres = torch.stack([known[support.y == n].mean(0) for n in range(3)])
        asked = features_by_hand(params, query.x, mean, var, eps)
        torch.testing.assert_close(found[t], -((asked[:, None] - centres) ** 2).sum(-1))


def test_running_statistics_leave_out_padding(toy_episodes: Episode) -> None:
    learner = ProtoNet(model=Normed(), n_way=3, normalisation="running")
    mask = toy_episodes.support.mask.clone()
    mask[:, 1::2] = False
    padded = Episode(toy_episodes.support._replace(mask=mask), toy_episodes.query)
    params, engine = learner.init(), Vectorised(learner)
    new, _, _ = engine.update(params, engine.outer_state(params), padded, KEYS, outer_lr=0.1)
    seen = []
    for t in range(3):
        support, query = select(toy_episodes, t)
        x = torch.cat([support.x[::2], query.x])
        seen.append(moments(learner.model, params, x)[0])
    torch.testing.assert_close(new[MEAN], 0.1 * torch.stack(seen).mean(0))


class Stop:
    """Tasks that interrupt the run when block number `at` is drawn."""

    def __init__(self, tasks: FewShotTasks, at: int) -> None:
        self.tasks, self.left, self.split = tasks, at, tasks.split

    def episodes(self, index: Tensor) -> Episode:
        if len(index) > 1:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGINT)
        return self.tasks.episodes(index)


def test_running_statistics_survive_checkpoint_and_resume(
    toy_data: ClassDataset, tmp_path: Path
) -> None:
    double = replace(toy_data, examples=toy_data.examples.double())
    tasks = FewShotTasks(double, n_way=3, n_shot=1, n_query=1)
    learner = ProtoNet(model=Normed(), n_way=3, normalisation="running")
    settings = Settings(70, meta_batch=2, outer_lr=0.01, checkpoint_seconds=1000)
    whole, _ = meta_train(Vectorised(learner), tasks, settings)
    run = Run(tmp_path / "run", {"one": 1})
    with pytest.raises(Interrupted) as stopped:
        meta_train(Vectorised(learner), Stop(tasks, 2), settings, run=run)
    assert 0 < stopped.value.iteration < 70
    saved = load_checkpoint(run.checkpoint).params
    assert float(saved[MEAN].abs().sum()) > 0
    again = Run(tmp_path / "run", {"one": 1})
    resumed, _ = meta_train(Vectorised(learner), tasks, settings, run=again, resume=True)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    kept = load_checkpoint(run.checkpoint).params
    torch.testing.assert_close(kept[MEAN], whole[MEAN], rtol=0, atol=0)


def test_running_asks_for_what_was_trained_so(toy_episodes: Episode) -> None:
    learner = ProtoNet(model=Normed(), n_way=3)
    params, judge = learner.init(), replace(learner, normalisation="running")
    state = learner.adapt(params, select(toy_episodes, 0).support, KEYS[0])
    query = select(toy_episodes, 0).query
    expected = r"'body.1.running_mean' was not tracked.*learner.normalisation=running"
    with pytest.raises(InputError, match=expected):
        judge.predict(params, state, query.x, query.mask)
    with pytest.raises(InputError, match=expected):
        Vectorised(judge).adapt(params, toy_episodes.support, KEYS)


@pytest.mark.parametrize("own", ["support", "running"])
def test_tasks_are_learnt_under_the_statistics_of_their_answers(
    own: str, toy_data: ClassDataset
) -> None:
    """Cells of one evaluation equal an evaluation of each by itself."""
    double = replace(toy_data, examples=toy_data.examples.double())
    tasks = FewShotTasks(double, n_way=3, n_shot=1, n_query=2)
    trained = ProtoNet(model=Normed(), n_way=3, normalisation="running")
    engine = Vectorised(trained)
    params = trained.init()
    batch = tasks.episodes(torch.arange(3))
    params, _, _ = engine.update(params, engine.outer_state(params), batch, KEYS, outer_lr=0.1)
    modes = ("running", "support", "transductive")
    judge = Vectorised(replace(trained, normalisation=own))
    settings = {"episodes": 20, "score": lambda out, query: -cross_entropy(out, query)}
    together = evaluate(judge, params, tasks, normalisations=modes, **settings)
    for mode, found in zip(modes, together, strict=True):
        alone = Vectorised(replace(trained, normalisation=mode))
        (expected,) = evaluate(alone, params, tasks, **settings)
        assert found.value == pytest.approx(expected.value)
        assert found.normalisation == mode
    assert len({round(found.value, 6) for found in together}) == 3


# Which part of the model gives features


class Deep(nn.Module):
    """Features inside a nested module, by a method, and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"first": nn.Linear(6, 4), "second": nn.Linear(4, 5)})
        self.head = nn.Linear(5, 3)
        self.calls = 0
        generator = torch.Generator().manual_seed(2)
        for p in self.parameters():
            p.data.uniform_(-0.5, 0.5, generator=generator)
        self.double()

    def inner(self, x: Tensor) -> Tensor:
        return torch.tanh(self.stem["first"](x))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.stem["second"](self.inner(x))))
        return out


PARTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "": lambda model, x: model(x),
    "inner": lambda model, x: model.inner(x),
    "stem.first": lambda model, x: model.stem["first"](x),
    "stem.second": lambda model, x: model.stem["second"](model.inner(x)),
}


@pytest.mark.parametrize("body", PARTS)
def test_features_come_from_the_part_named(body: str, toy_episodes: Episode) -> None:
    model = Deep()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learner = ProtoNet(model=model, n_way=3, body=body)
    params = {k: v + 0.1 for k, v in learner.init().items()}
    changed = Deep()
    changed.load_state_dict(params)
    x = toy_episodes.query.x[0]
    expected = PARTS[body](changed, x)
    torch.testing.assert_close(learner.features(params, x), expected)

    # Under vmap, and with gradients by the parameters through it.
    engines = [Vectorised(learner, vectorise=how) for how in ("vmap", "loop")]
    by = [engine.outer_gradient(params, toy_episodes, KEYS) for engine in engines]
    torch.testing.assert_close(by[0], by[1])
    assert float(by[0][0]["stem.first.weight"].abs().sum()) > 0
    states = [engine.adapt(params, toy_episodes.support, KEYS) for engine in engines]
    torch.testing.assert_close(states[0], states[1])

    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert vars(model).keys() == vars(changed).keys()
    assert not torch_module._global_forward_hooks
    assert not any(m._forward_hooks for m in model.modules())


def test_hooks_are_gone_after_a_failure() -> None:
    learner = ProtoNet(model=Deep(), n_way=3, body="stem.second")
    with pytest.raises(RuntimeError):
        learner.features(learner.init(), torch.zeros(2, 9, dtype=torch.float64))
    assert not torch_module._global_forward_hooks


def test_a_part_that_is_none() -> None:
    model = Deep()
    for name in ("boddy", "calls"):
        learner = ProtoNet(model=model, body=name)
        with pytest.raises(InputError, match=rf"Deep without a module or method named {name}"):
            learner.features(learner.init(), torch.zeros(2, 6, dtype=torch.float64))
    model.add_module("aside", nn.ModuleDict({"spare": nn.Linear(6, 2)}).double())
    learner = ProtoNet(model=model, body="aside.spare")
    with pytest.raises(InputError, match=r"aside.spare is no part of a pass through Deep"):
        learner.features(learner.init(), torch.zeros(2, 6, dtype=torch.float64))


# What heads with weights of their own need


def test_the_model_tells_the_width_of_its_features(smooth: nn.Module) -> None:
    assert Constant(model=smooth).feature_width() == 5
    with pytest.raises(InputError, match=r"Deep without.*Set model.feature_width = D"):
        Constant(model=Deep()).feature_width()


def test_weights_are_drawn_from_seed_and_name(smooth: nn.Module) -> None:
    head = Constant(model=smooth)
    one = head.drawn("a", (40, 25), seed=1)
    assert one.dtype == torch.float64
    torch.testing.assert_close(one, head.drawn("a", (40, 25), seed=1), rtol=0, atol=0)
    for other in (head.drawn("a", (40, 25), seed=2), head.drawn("b", (40, 25), seed=1)):
        assert not bool((one == other).any())
    assert 0.19 < float(one.max()) <= 0.2
    assert -0.2 <= float(one.min()) < -0.19
    assert abs(float(one.mean())) < 5 * 0.2 / 3**0.5 / 1000**0.5


def test_a_layer_in_the_middle_is_reached_through_those_before_it() -> None:
    """Of a Sequential, whose children are called 0, 1, 2: layer 1 sees what layer 0 gives."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    learner = ProtoNet(model=model, body="1")
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    torch.testing.assert_close(learner.features(learner.init(), x), model[1](model[0](x)))


def test_distances_far_from_zero_lose_no_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 640, generator=generator) for n in (6, 4))
    expected = (a[:, None].double() - b.double()).square().sum(-1)
    for shift in (0.0, 1000.0):
        moved = [(x + shift) for x in (a, b)]
        exact = (moved[0][:, None].double() - moved[1].double()).square().sum(-1)
        found = squared_distances(*moved)
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1.0)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(squared_distances, (x, y))
    assert torch.autograd.gradgradcheck(squared_distances, (x, y))
