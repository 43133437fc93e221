"""Many episodes at once: the same as a loop, whatever the model holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.trees import map_tensors
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Anil, Joint, Learner, Maml, ProtoNet, Reptile
from tegu.models import Conv4, Mlp
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(4))


class Fickle(nn.Module):
    """Chooses its activation by a value: what vmap cannot run."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        generator = torch.Generator().manual_seed(1)
        for p in self.parameters():
            p.data.uniform_(-0.5, 0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x))
        hidden = torch.tanh(hidden) if float(hidden.detach().sum()) > 0 else F.relu(hidden)
        out: Tensor = self.last(hidden)
        return out


class Foreign(nn.Module):
    """A user's network of torch's own layers, batch normalisation included."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 3)
        generator = torch.Generator().manual_seed(2)
        for tensor in [*self.parameters(), self.norm.running_mean, self.norm.running_var]:
            tensor.data.uniform_(0.1, 0.5, generator=generator)
        self.norm.num_batches_tracked.fill_(17)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.norm(self.conv(x))).flatten(1))
        return out


@pytest.mark.parametrize("normalisation", ["support", "transductive"])
def test_vmap_equals_a_loop_on_conv4(normalisation: str, images: Episode) -> None:
    learner = learner_of(Conv4(3, size=8, width=4), normalisation=normalisation)
    fast, slow = (run(Vectorised(learner, vectorise=how), images) for how in ("vmap", "loop"))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


def test_running_statistics_that_are_never_learned() -> None:
    """Conv-4 comes with none, and Reptile learns none."""
    with pytest.raises(InputError, match="'running' with Reptile, which learns no running"):
        learner_of(Conv4(3, size=8, width=4), normalisation="running")


def by_hand(model: Foreign, x: Tensor, mean: Tensor, var: Tensor, weights: Params) -> Tensor:
    """The same network with given statistics of each channel."""
    hidden = F.conv2d(x, weights["conv.weight"], weights["conv.bias"], stride=2, padding=1)
    hidden = (hidden - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    hidden = hidden * weights["norm.weight"][:, None, None] + weights["norm.bias"][:, None, None]
    return F.linear(F.relu(hidden).flatten(1), weights["head.weight"], weights["head.bias"])


def channels(x: Tensor, weights: Params) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of the convolution."""
    hidden = F.conv2d(x, weights["conv.weight"], weights["conv.bias"], stride=2, padding=1)
    return hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), unbiased=False)


def draw(data: ClassDataset) -> Episode:
    double = replace(data, examples=data.examples.double())
    return FewShotTasks(double, n_way=3, n_shot=2, n_query=2).episodes(torch.arange(4))


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    return draw(toy_data)


@pytest.fixture
def images(toy_images: ClassDataset) -> Episode:
    return draw(toy_images)


def learner_of(model: nn.Module, **settings: object) -> Reptile:
    own = {"inner_steps": 3, "inner_batch": 4, "eval_steps": 3, "eval_batch": 4, "inner_lr": 0.01}
    own["summed"] = False
    return Reptile(model=model.double(), **{**own, **settings})


def run(engine: Vectorised, episodes: Episode) -> tuple[Params, Tensor, Tensor]:
    """One outer step, then answers of the queries."""
    params, loss = engine.outer_step(engine.learner.init(), episodes, KEYS, outer_lr=0.5)
    state = engine.adapt(params, episodes.support, KEYS)
    return params, loss, engine.predict(params, state, episodes.query)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mlp(64, 3, hidden=(8,)),
        Foreign,
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(72, 3)
        ),
        lambda: nn.Sequential(nn.Flatten(1), nn.LayerNorm(64), nn.Linear(64, 3)),
    ],
    ids=["mlp", "batch norm", "group norm", "layer norm"],
)
@pytest.mark.parametrize("normalisation", ["support", "transductive", "running"])
def test_vmap_equals_a_loop(
    make: Callable[[], nn.Module], normalisation: str, images: Episode
) -> None:
    learner = learner_of(make(), normalisation=normalisation)
    fast, slow = (run(Vectorised(learner, vectorise=how), images) for how in ("vmap", "loop"))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
def test_what_vmap_cannot_run_is_looped_with_one_warning(norm: bool, episodes: Episode) -> None:
    learner = learner_of(Fickle(norm=norm))
    engine = Vectorised(learner)
    with pytest.warns(RuntimeWarning) as seen:
        found = run(engine, episodes)
    assert len(seen) == 1
    text = str(seen[0].message)
    assert text.startswith("tasks run one by one, since vmap cannot run this model: ")
    assert "vmap" in text.partition("model: ")[2]
    assert "\n" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(engine, episodes)
        expected = run(Vectorised(learner, vectorise="loop"), episodes)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="vmap"):
        run(Vectorised(learner, vectorise="vmap"), episodes)


class Huge(nn.Linear):
    """Runs out of memory, on whichever machine."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.empty(1 << 50, dtype=torch.float64).sum()


def test_a_lack_of_memory_is_no_reason_for_a_loop(episodes: Episode) -> None:
    engine = Vectorised(learner_of(Huge(6, 3)))
    with pytest.raises(InputError, match=r"4 tasks side by side.*Lower engine\.at_once"):
        run(engine, episodes)
    assert not engine.loop


def test_an_error_of_the_users_own_is_raised_and_no_warning_given(episodes: Episode) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        run(Vectorised(learner_of(nn.Linear(5, 3))), episodes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_the_buffers_of_a_users_model_stay(how: str, training: bool, images: Episode) -> None:
    model = Foreign().double().train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for normalisation in ("support", "transductive", "running"):
        run(Vectorised(learner_of(model, normalisation=normalisation), vectorise=how), images)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.training == training
    assert int(model.norm.num_batches_tracked) == 17


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_where_statistics_come_from(how: str, training: bool, images: Episode) -> None:
    """Answers with statistics computed by hand, and one inner step by torch's own layer."""
    model = Foreign().double().train(training)
    learner = learner_of(model, eval_steps=1, eval_batch=6, inner_optimiser="sgd", carry=False)
    engine = Vectorised(learner, vectorise=how)
    params = learner.init()
    state = engine.adapt(params, images.support, KEYS)
    for t in range(4):
        support, query = images.support.x[t], images.query.x[t]
        weights = {k: v[t] for k, v in state["weights"].items()}

        twin = Foreign().double().train()
        loss = F.cross_entropy(twin(support), images.support.y[t])
        for (name, p), g in zip(
            twin.named_parameters(),
            torch.autograd.grad(loss, list(twin.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(weights[name], p - 0.01 * g)

        rows = [torch.cat([support, q[None]]) for q in query]
        expected = {
            "transductive": by_hand(model, query, *channels(query, weights), weights),
            "support": torch.stack(
                [by_hand(model, row, *channels(row, weights), weights)[-1] for row in rows]
            ),
            "running": by_hand(
                model, query, model.norm.running_mean, model.norm.running_var, weights
            ),
        }
        for normalisation, outputs in expected.items():
            judge = replace(learner, normalisation=normalisation)
            found = engine.predict(params, state, images.query, learner=judge)
            torch.testing.assert_close(found[t], outputs, msg=normalisation)


def test_running_statistics_are_used_in_the_inner_loop_too(images: Episode) -> None:
    """As torch's layer in eval mode gives them."""
    learner = learner_of(
        Foreign(),
        eval_steps=1,
        eval_batch=6,
        inner_optimiser="sgd",
        normalisation="running",
    )
    state = Vectorised(learner).adapt(learner.init(), images.support, KEYS)
    twin = Foreign().double().eval()
    loss = F.cross_entropy(twin(images.support.x[0]), images.support.y[0])
    for (name, p), g in zip(
        twin.named_parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True
    ):
        torch.testing.assert_close(state["weights"][name][0], p - 0.01 * g)


def test_the_outer_gradient_is_that_of_autograd(episodes: Episode) -> None:
    """Through three inner steps of SGD, second derivatives and all."""
    learner = learner_of(Mlp(6, 3, hidden=(5,), activation="tanh"), inner_optimiser="sgd")
    params = learner.init()
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    losses = []
    for t in range(4):
        half = [Examples(*(field[t] for field in part)) for part in episodes]
        losses.append(learner.outer_loss(leaves, Episode(*half), KEYS[t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()))
    for how in ("vmap", "loop"):
        grads, value = Vectorised(learner, vectorise=how).outer_gradient(params, episodes, KEYS)
        torch.testing.assert_close(list(grads.values()), list(expected))
        torch.testing.assert_close(value, torch.stack(losses).mean().detach())


def test_bfloat16_rounds_passes_but_not_weights(episodes: Episode) -> None:
    made = learner_of(Mlp(6, 3, hidden=(8,)), inner_optimiser="sgd", inner_lr=0.1)
    learner = replace(made, model=Mlp(6, 3, hidden=(8,)))
    halves = [half._replace(x=half.x.float()) for half in episodes]
    single = Episode(*halves)
    rough, exact = (run(Vectorised(learner, precision=p), single) for p in ("bf16", "fp32"))
    assert {v.dtype for v in rough[0].values()} == {torch.float32}
    start, found, right = (
        torch.cat([p[name].flatten() for name in learner.init()])
        for p in (learner.init(), rough[0], exact[0])
    )
    assert 0 < (found - right).norm() < 0.1 * (right - start).norm()
    assert not torch.equal(found, found.bfloat16().float())
    assert not torch.equal(rough[2].float(), exact[2])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"vectorise": "vmapp"}, r"unknown vectorisation 'vmapp'.*Did you mean 'vmap'"),
        ({"precision": "bf61"}, r"unknown precision 'bf61'.*Did you mean 'bf16'"),
    ],
)
def test_unknown_settings(settings: dict[str, str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Vectorised(learner_of(Mlp(6, 3)), **settings)


def test_unknown_normalisation_and_frozen_models() -> None:
    with pytest.raises(InputError, match=r"unknown normalisation 'runing'.*'running'"):
        learner_of(Mlp(6, 3), normalisation="runing")
    with pytest.raises(InputError, match=r"without trainable parameters.*Unfreeze"):
        learner_of(Mlp(6, 3).requires_grad_(False))


def test_trees_of_tensors_keep_their_shape() -> None:
    tree = {"a": (torch.zeros(2), Examples(*torch.ones(3, 2))), "b": {}}
    found = map_tensors(torch.add, tree, tree)
    assert found["b"] == {}
    assert isinstance(found["a"][1], Examples)
    assert found["a"][1].mask.tolist() == [2, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_compiled_equals_eager(images: Episode, cuda_graphs: bool) -> None:
    learner = learner_of(Conv4(3, size=8, width=4))
    compiled = run(Vectorised(learner, compile=True, cuda_graphs=cuda_graphs), images)
    eager = run(Vectorised(learner), images)
    torch.testing.assert_close(compiled, eager, rtol=1e-8, atol=1e-10)


def test_what_an_engine_says_of_itself(images: Episode) -> None:
    learner = learner_of(Conv4(3, size=8, width=4))
    assert str(Vectorised(learner)) == "many tasks at once, not compiled, fp32"
    said = str(Vectorised(learner, vectorise="loop", compile=True, cuda_graphs=True))
    assert said == "task by task, compiled, fp32"  # graphs are a GPU's
    for cuda_graphs in (False, True):
        engine = Vectorised(learner, cuda_graphs=cuda_graphs)
        assert engine.of(learner).cuda_graphs == cuda_graphs


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Mlp(64, 3, hidden=(8,), activation="tanh"),
        lambda: Conv4(3, size=8, width=4),
        Foreign,
    ],
    ids=["mlp", "conv4", "batch norm"],
)
def test_checkpointed_steps_have_the_same_gradient(
    make: Callable[[], nn.Module], first_order: bool, steps: int, images: Episode
) -> None:
    learner = Maml(
        model=make().double(),
        inner_lr=0.2,
        inner_steps=steps,
        first_order=first_order,
        normalisation="transductive",
    )
    params = learner.init()
    expected = Vectorised(learner).outer_gradient(params, images, KEYS)
    assert max(float(g.abs().max()) for g in expected[0].values()) > 0.01
    found = Vectorised(learner, checkpoint=True).outer_gradient(params, images, KEYS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_checkpointed_mini_batches_have_the_same_gradient(images: Episode) -> None:
    """The order of the rows is state too, of whole numbers, and momentum of floats."""
    model = Mlp(64, 3, hidden=(8,), activation="tanh").double()
    learner = Maml(model=model, inner_lr=0.2, inner_steps=3, inner_batch=4, momentum=0.5)
    found, expected = (
        Vectorised(learner, checkpoint=c).outer_gradient(learner.init(), images, KEYS)
        for c in (True, False)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_checkpointed_steps_are_as_precise_as_others(images: Episode) -> None:
    """The features that ANIL begins with are in bf16 either way."""
    model = Mlp(64, 3, hidden=(8,), activation="tanh").float()
    learner = Anil(model=model, inner_lr=0.2, inner_steps=2)
    found, expected = (
        Vectorised(learner, checkpoint=c, precision="bf16").outer_gradient(
            learner.init(),
            Episode(*(half._replace(x=half.x.float()) for half in images)),
            KEYS,
        )
        for c in (True, False)
    )
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("cls", [Joint, ProtoNet, Reptile])
def test_steps_that_are_no_chain_cannot_be_checkpointed(cls: type[Learner]) -> None:
    text = f"checkpointed inner steps with {cls.__name__}; expected a learner whose outer loss"
    with pytest.raises(InputError, match=text):
        Vectorised(cls(model=Mlp(6, 3)), checkpoint=True)


def test_checkpointed_steps_need_tasks_side_by_side(images: Episode) -> None:
    learner = Maml(model=Mlp(64, 3, hidden=(8,)).double(), inner_steps=2)
    with pytest.raises(InputError, match="checkpointed inner steps, task by task"):
        Vectorised(learner, checkpoint=True, vectorise="loop")

    class Hungry(Maml):
        def step(self, *args: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    short = Hungry(model=learner.model, inner_steps=2)
    with pytest.raises(InputError, match="4 tasks side by side, which do not fit the memory"):
        Vectorised(short, checkpoint=True).outer_gradient(short.init(), images, KEYS)


def learners_of_every_way() -> dict[str, tuple[Learner, bool]]:
    """Learners with an update rule, steps, a head and running statistics; whether checkpointed."""
    own = {"inner_lr": 0.2, "inner_steps": 2, "normalisation": "transductive"}
    return {
        "reptile": (learner_of(Conv4(3, size=8, width=4)), False),
        "reptile, one by one": (learner_of(Conv4(3, size=8, width=4), serial=True), False),
        "maml": (Maml(model=Conv4(3, size=8, width=4).double(), **own), False),
        "maml, checkpointed": (Maml(model=Conv4(3, size=8, width=4).double(), **own), True),
        "protonet": (
            ProtoNet(model=Conv4(0, size=8, width=4).double(), normalisation="running"),
            False,
        ),
    }


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="the compiler of torch 2.11 fails on float64"
)
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("cls", [Reptile, Maml])
def test_a_small_compiled_update_equals_one_that_is_not(
    cls: type[Learner], episodes: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that compiles in seconds; those of `slow` are convolutions."""
    learner = cls(model=Mlp(6, 3, hidden=(4,)).double(), inner_lr=0.01)  # type: ignore[call-arg]
    ends, compiled, real = [], [], torch.compile
    monkeypatch.setattr("torch.compile", lambda f, **k: (compiled.append(f), real(f, **k))[1])
    for compile in (False, True):
        engine, params = Vectorised(learner, compile=compile), learner.init()
        outer = engine.outer_state(params)
        for _ in range(2):
            params, outer, loss = engine.update(params, outer, episodes, KEYS, outer_lr=0.1)
        ends.append((params, outer, loss))
        assert bool(compiled) is compile
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_update_equals_one_that_is_not(images: Episode) -> None:
    """Gradient, Adam and running statistics in one program, twice, at two step sizes."""
    model = Conv4(0, size=8, width=4).double()
    learner = ProtoNet(model=model, normalisation="running")
    ends = []
    for compile in (False, True):
        engine, params = Vectorised(learner, compile=compile), learner.init()
        outer = engine.outer_state(params)
        for rate in (0.1, 0.05):
            params, outer, loss = engine.update(params, outer, images, KEYS, outer_lr=rate)
        ends.append((params, outer, loss))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("which", learners_of_every_way())
def test_a_meta_batch_in_parts_gives_the_same_update(
    which: str, at_once: int, images: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four at once make parts of unequal size."""
    learner, checkpoint = learners_of_every_way()[which]
    together = Vectorised(learner, checkpoint=checkpoint)
    parts = Vectorised(learner, checkpoint=checkpoint, at_once=at_once)
    params, outer = learner.init(), together.outer_state(learner.init())
    expected = together.update(params, outer, images, KEYS, outer_lr=0.5)
    largest = []
    for name in ("_fast_gradient", "_checkpointed", "adapt"):
        original = getattr(parts, name)

        def watched(*args, original=original, **settings):  # type: ignore[no-untyped-def]
            largest.append(len(args[2]))
            return original(*args, **settings)

        monkeypatch.setattr(parts, name, watched)
    found = parts.update(params, outer, images, KEYS, outer_lr=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)
    assert any(not torch.equal(found[0][k], params[k]) for k in params)
    # One task alone is not vectorised.
    assert max(largest, default=1) == (1 if "one by one" in which else min(at_once, 4))
    assert parts.of(learner).at_once == at_once


def test_fewer_than_no_tasks_at_once() -> None:
    with pytest.raises(InputError, match=r"at_once is -1; expected at least 0"):
        Vectorised(learner_of(Mlp(6, 3)), at_once=-1)
