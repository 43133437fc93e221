"""MAML++ against finite differences on a plain network, and a plain loop by autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.checkpoint import load_checkpoint
from tegu.engine.run import Run
from tegu.engine.train import Progress, Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import MamlPlusPlus
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(3))
NORM = ("body.1.weight", "body.1.bias")


class Normed(nn.Module):
    """Two layers, batch normalisation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh())
        self.head = nn.Linear(5, 3)
        generator = torch.Generator().manual_seed(4)
        for p in self.parameters():
            p.data.uniform_(-0.8, 0.8, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def learner_of(**settings: Any) -> MamlPlusPlus:
    own = {"inner_steps": 3, "eval_steps": 3, "inner_lr": 0.3, "normalisation": "transductive"}
    return MamlPlusPlus(model=Normed().double(), **{**own, **settings})


def jittered(learner: MamlPlusPlus) -> Params:
    """Parameters as meta-training might leave them: rates and norms that differ by step."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: p + 0.1 * torch.rand(p.shape, generator=generator, dtype=p.dtype)
        for name, p in learner.init().items()
    }


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    """Three episodes, 3-way 2-shot, two queries a class."""
    double = replace(toy_data, examples=toy_data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(3))


def norm_of(params: Params, name: str, step: int) -> Tensor:
    return params[name] if step == 0 else params[f"norms/{name}"][step - 1]


def descended(params: Params, episodes: Episode, steps: int, v: list[float]) -> Tensor:
    """The outer loss by steps in place on one network of torch's own layers."""
    total = torch.zeros((), dtype=torch.float64)
    for t in range(3):
        support, query = select(episodes, t)
        model = Normed().double().train()
        named = dict(model.named_parameters())
        for name, p in named.items():
            p.data.copy_(params[name])
        for step in range(steps):
            for name in NORM:
                named[name].data.copy_(norm_of(params, name, step))
            model.zero_grad()
            F.cross_entropy(model(support.x), support.y).backward()
            for name, p in named.items():
                if name not in NORM:
                    p.data.sub_(params[f"rates/{name}"][step] * p.grad)
            total += v[step] * F.cross_entropy(model(query.x), query.y).detach() / 3
    return total


def gradient(engine: Vectorised, params: Params, episodes: Episode, done: float) -> tuple[Any, Any]:
    staged = {f"schedule/{k}": v.double() for k, v in engine.learner.schedule(done).items()}
    return engine.outer_gradient({**params, **staged}, episodes, KEYS)


# Settings, share of meta-training done, and the weights of the losses then.
PHASES: dict[str, tuple[dict[str, Any], float, list[float]]] = {
    "all losses alike": ({"first_order_until": 0.0}, 0.0, [1 / 3, 1 / 3, 1 / 3]),
    "half way": ({"first_order_until": 0.0, "multi_step_until": 0.5}, 0.25, [1 / 6, 1 / 6, 2 / 3]),
    "last loss": ({}, 1.0, [0.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("phase", PHASES)
def test_the_meta_gradient_is_that_of_finite_differences(
    phase: str, slopes: Any, episodes: Episode
) -> None:
    settings, done, v = PHASES[phase]
    learner = learner_of(**settings)
    params = jittered(learner)
    grads, loss = gradient(Vectorised(learner), params, episodes, done)
    assert grads.keys() == params.keys()
    torch.testing.assert_close(loss, descended(params, episodes, 3, v))
    kinds = ("body", "head", "rates", "norms", "")
    descent = partial(descended, episodes=episodes, steps=3, v=v)
    found, expected = slopes(descent, params, grads, kinds=kinds, count=1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def plain(w: Params, x: Tensor) -> Tensor:
    hidden = F.linear(x, w["body.0.weight"], w["body.0.bias"])
    hidden = F.batch_norm(hidden, None, None, w[NORM[0]], w[NORM[1]], training=True)
    return F.linear(torch.tanh(hidden), w["head.weight"], w["head.bias"])


@pytest.mark.parametrize("v", [[1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]], ids=["all", "last"])
def test_first_order_holds_gradients_constant_and_nothing_else(
    v: list[float], episodes: Episode
) -> None:
    """Rates and norms learn in that phase too, as far as they do without second derivatives."""
    learner = learner_of(first_order_until=0.5, multi_step_until=0.1)
    params = jittered(learner)
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    losses = []
    for t in range(3):
        support, query = select(episodes, t)
        w = {name: p for name, p in leaves.items() if f"rates/{name}" in leaves}
        for step in range(3):
            norms = {name: norm_of(leaves, name, step) for name in NORM}
            inner = F.cross_entropy(plain({**w, **norms}, support.x), support.y)
            found = torch.autograd.grad(inner, list(w.values()))
            w = {
                name: p - leaves[f"rates/{name}"][step] * g
                for (name, p), g in zip(w.items(), found, strict=True)
            }
            losses.append(v[step] * F.cross_entropy(plain({**w, **norms}, query.x), query.y))
    expected = torch.autograd.grad(sum(losses) / 3, list(leaves.values()))
    assert float(expected[list(leaves).index("rates/head.weight")].abs().max()) > 1e-3
    for how in ("vmap", "loop"):
        engine = Vectorised(learner, vectorise=how)
        grads, _ = gradient(engine, params, episodes, 0.0 if v[0] else 0.3)
        torch.testing.assert_close(tuple(grads.values()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_after_meta_training_the_last_rates_and_norms_go_on(steps: int, episodes: Episode) -> None:
    """Fewer, as many and more steps than meta-training has."""
    learner = learner_of(inner_steps=2, eval_steps=steps)
    params = jittered(learner)
    state = Vectorised(learner).adapt(params, episodes.support, KEYS)
    assert set(state) == {"weights", "norms", "support"}
    support, query = select(episodes, 0)
    w = {name: p.requires_grad_() for name, p in params.items() if f"rates/{name}" in params}
    norms: Params = {}
    for step in (0, 1, 1, 1, 1)[:steps]:
        norms = {name: norm_of(params, name, step) for name in NORM}
        inner = F.cross_entropy(plain({**w, **norms}, support.x), support.y)
        found = torch.autograd.grad(inner, list(w.values()))
        w = {
            name: p - params[f"rates/{name}"][step] * g
            for (name, p), g in zip(w.items(), found, strict=True)
        }
    expected = plain({**w, **norms}, query.x).detach()
    ours = Vectorised(learner).predict(params, state, episodes.query)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_what_is_learned() -> None:
    shapes = {name: tuple(p.shape) for name, p in learner_of().init().items()}
    assert {n: s for n, s in shapes.items() if "/" in n} == {
        "rates/body.0.weight": (3,),
        "rates/body.0.bias": (3,),
        "rates/head.weight": (3,),
        "rates/head.bias": (3,),
        "norms/body.1.weight": (2, 5),
        "norms/body.1.bias": (2, 5),
    }
    assert not any(n.startswith("norms/") for n in learner_of(inner_steps=1).init())
    shared = learner_of(per_step_norm=False).init()
    assert not any(n.startswith("norms/") for n in shared)
    assert "rates/body.1.weight" in shared


def test_the_phases_of_meta_training() -> None:
    learner = learner_of(inner_steps=4, multi_step_until=0.2, first_order_until=0.5)
    names = [set(learner.schedule(done)) for done in (0.0, 0.19, 0.2, 0.49, 0.5, 0.99)]
    assert names == [
        {"first_order", "step_losses"},
        {"first_order", "step_losses"},
        {"first_order"},
        {"first_order"},
        set(),
        set(),
    ]
    for done, last in ((0.0, 0.25), (0.1, 0.625), (0.15, 0.8125)):
        v = learner.schedule(done)["step_losses"]
        torch.testing.assert_close(v[-1], torch.tensor(last).double())
        torch.testing.assert_close(v[:-1], torch.full((3,), (1 - last) / 3).double())
    assert learner_of(multi_step_until=0.0, first_order_until=0.0).schedule(0.0) == {}


def tasks(data: ClassDataset) -> FewShotTasks:
    double = replace(data, examples=data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2)


def test_stopped_in_any_phase_and_resumed(toy_data: ClassDataset, tmp_path: Path) -> None:
    """Ten iterations: two of all phases, three of first order, five of second."""
    learner = learner_of(multi_step_until=0.2, first_order_until=0.5)
    settings = Settings(
        10, 2, 0.01, outer_schedule="cosine", checkpoint_seconds=0, validate_every=1
    )
    source, engine = tasks(toy_data), Vectorised(learner)
    expected, _ = meta_train(engine, source, settings, run=Run(tmp_path / "a", {}))
    assert expected.keys() == learner.init().keys()
    for stop in (2, 5, 7):

        def interrupt(report: Progress, stop: int = stop) -> None:
            if report.iteration == stop:
                raise KeyboardInterrupt

        run = Run(tmp_path / "b", {})
        with pytest.raises(KeyboardInterrupt):
            meta_train(engine, source, settings, run=run, resume=stop > 2, progress=interrupt)
        assert load_checkpoint(run.checkpoint).iteration == stop - 1
    found, _ = meta_train(engine, source, settings, run=Run(tmp_path / "b", {}), resume=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    digests = {load_checkpoint(tmp_path / x / "checkpoint.safetensors").digest() for x in "ab"}
    assert len(digests) == 1


def test_each_phase_moves_the_parameters_as_its_own_gradient_says(toy_data: ClassDataset) -> None:
    """One update with Adam from zero state: the sign of the gradient, in units of outer_lr."""
    learner = learner_of(multi_step_until=0.2, first_order_until=0.5)
    episodes, params = tasks(toy_data).episodes(torch.arange(3)), jittered(learner)
    engine, seen = Vectorised(learner), []
    for done in (0.0, 0.3, 0.9):
        new, _, loss = engine.update(
            params, engine.outer_state(params), episodes, KEYS, outer_lr=0.1, done=done
        )
        assert new.keys() == params.keys()
        grads, value = gradient(engine, params, episodes, done)
        torch.testing.assert_close(loss, value)
        for name, g in grads.items():
            step = torch.where(g.abs() > 1e-5, -0.1 * g.sign(), new[name] - params[name])
            torch.testing.assert_close(new[name] - params[name], step, rtol=1e-1, atol=0)
        seen.append(float(grads["rates/head.weight"][0]))
    assert len(set(seen)) == 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"multi_step_until": 1.5}, r"multi_step_until is 1.5; expected 0 to 1"),
        ({"first_order_until": -0.1}, r"first_order_until is -0.1; expected 0 to 1"),
        ({"inner_optimiser": "adam"}, r"maml\+\+ with adam.*expected plain SGD"),
        ({"momentum": 0.9}, r"momentum 0.9.*expected plain SGD"),
        ({"carry": True}, "carry with sgd and MamlPlusPlus"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        learner_of(**settings)


def test_only_a_single_loss_can_be_checkpointed(episodes: Episode) -> None:
    with pytest.raises(InputError, match="checkpointed inner steps with MamlPlusPlus"):
        Vectorised(learner_of(), checkpoint=True)
    learner = learner_of(multi_step_until=0.0, first_order_until=0.5)
    params = jittered(learner)
    for done in (0.0, 0.9):
        found, expected = (
            gradient(Vectorised(learner, checkpoint=c), params, episodes, done)
            for c in (True, False)
        )
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_once_for_each_phase(episodes: Episode) -> None:
    learner = learner_of(inner_steps=2, multi_step_until=0.4, first_order_until=0.6)
    params, engine = jittered(learner), Vectorised(learner, compile=True)
    programs: Callable[[], int] = lambda: len(engine._fast_gradient._programs)  # noqa: E731
    for done, count in ((0.0, 1), (0.2, 1), (0.5, 2), (0.7, 3), (0.9, 3)):
        found = gradient(engine, params, episodes, done)
        expected = gradient(Vectorised(learner), params, episodes, done)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
        assert programs() == count
