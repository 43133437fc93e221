"""Reptile against a plain loop over plain tensors, written from the paper and its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.train import Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.episodes import select
from tegu.errors import InputError
from tegu.learners import Reptile
from tegu.learners.finetune import cycle
from tegu.models import Conv4, Mlp
from tegu.sampling import FewShotTasks

EXACT = {"rtol": 0.0, "atol": 1e-10}


class PlainAdam:
    """TensorFlow's Adam with beta1 = 0, as it was: variables changed in place, one state."""

    def __init__(self, variables: list[Tensor], lr: float) -> None:
        self.variables, self.lr, self.t = variables, lr, 0
        self.v = [torch.zeros_like(x) for x in variables]

    def minimise(self, grads: tuple[Tensor, ...]) -> None:
        self.t += 1
        rate = self.lr * (1 - 0.999**self.t) ** 0.5
        for x, v, g in zip(self.variables, self.v, grads, strict=True):
            v.mul_(0.999).add_(0.001 * g * g)
            x.data.sub_(rate * g / (v.sqrt() + 1e-8))

    def export(self) -> tuple[int, list[Tensor]]:
        return self.t, [v.clone() for v in self.v]

    def restore(self, saved: tuple[int, list[Tensor]]) -> None:
        self.t, self.v = saved[0], [v.clone() for v in saved[1]]


class PlainSgd:
    """Gradient descent in place; it has no state."""

    def __init__(self, variables: list[Tensor], lr: float) -> None:
        self.variables, self.lr = variables, lr

    def minimise(self, grads: tuple[Tensor, ...]) -> None:
        for x, g in zip(self.variables, grads, strict=True):
            x.data.sub_(self.lr * g)

    def export(self) -> None:
        return None

    def restore(self, saved: None) -> None:
        pass


class PlainReptile:
    """The published loop on one network, whose weights are exported, trained, put back."""

    def __init__(self, network: Callable[[list[Tensor], Tensor], Tensor], weights: list[Tensor]):
        self.network = network
        self.variables = [w.clone().requires_grad_() for w in weights]
        self.optimiser: Any = None

    def export(self) -> list[Tensor]:
        return [x.detach().clone() for x in self.variables]

    def put(self, values: list[Tensor]) -> None:
        for x, value in zip(self.variables, values, strict=True):
            x.data.copy_(value)

    def train_on(self, x: Tensor, y: Tensor, batches: list[list[int]]) -> None:
        for rows in batches:
            # Summed over the rows, as published; 5 is the size in training, for epsilon's sake.
            outputs = self.network(self.variables, x[rows])
            loss = F.cross_entropy(outputs, y[rows], reduction="sum") / 5
            self.optimiser.minimise(torch.autograd.grad(loss, self.variables))

    def meta_step(self, tasks: list[tuple[Tensor, Tensor, list[list[int]]]], rate: float) -> None:
        old, new = self.export(), []
        for x, y, batches in tasks:
            self.train_on(x, y, batches)
            new.append(self.export())
            self.put(old)
        average = [sum(values) / len(values) for values in zip(*new, strict=True)]
        self.put([o + (a - o) * rate for o, a in zip(old, average, strict=True)])

    def answer(
        self, x: Tensor, y: Tensor, batches: list[list[int]], query: Tensor, transductive: bool
    ) -> Tensor:
        old, state = self.export(), self.optimiser.export()
        self.train_on(x, y, batches)
        with torch.no_grad():
            if transductive:
                out = self.network(self.variables, query)
            else:
                rows = [torch.cat([x, q[None]]) for q in query]
                out = torch.stack([self.network(self.variables, row)[-1] for row in rows])
        self.put(old)
        self.optimiser.restore(state)
        return out


def plain_mlp(w: list[Tensor], x: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(x, w[0], w[1])), w[2], w[3])


def plain_conv4(w: list[Tensor], x: Tensor) -> Tensor:
    """Weights in Conv4's order: 4 kernels, 4 pairs of scale and shift, head."""
    for layer in range(4):
        kernel = w[layer].reshape(3, 3, x.shape[1], -1).permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, stride=2, padding=1)
        scale, shift = w[4 + 2 * layer], w[5 + 2 * layer]
        x = F.relu(F.batch_norm(x, None, None, scale, shift, training=True, eps=1e-3))
    return F.linear(x.permute(0, 2, 3, 1).flatten(1), w[12], w[13])


NETWORKS = {
    "mlp": (lambda: Mlp(6, 3, hidden=(8,), activation="tanh").double(), plain_mlp),
    "conv4": (lambda: Conv4(3, size=8, width=4).double(), plain_conv4),
}
RULES = {
    "sgd": ({"inner_optimiser": "sgd", "inner_lr": 0.05}, PlainSgd),
    "adam": ({"inner_optimiser": "adam", "inner_lr": 0.01}, PlainAdam),
}


@pytest.fixture
def tasks(toy_data: ClassDataset, toy_images: ClassDataset) -> dict[str, FewShotTasks]:
    return {
        name: FewShotTasks(
            replace(data, examples=data.examples.double()), n_way=3, n_shot=3, n_query=1
        )
        for name, data in (("mlp", toy_data), ("conv4", toy_images))
    }


def batches(key: Tensor, mask: Tensor, batch: int, steps: int) -> list[list[int]]:
    found: list[list[int]] = cycle(key, mask, batch=batch, steps=steps).tolist()
    return found


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_serial_mode_equals_a_plain_loop(
    network: str, rule: str, tasks: dict[str, FewShotTasks]
) -> None:
    """Four meta-steps of three tasks, then three evaluation tasks, twice."""
    make, plain = NETWORKS[network]
    settings, plain_rule = RULES[rule]
    learner = Reptile(
        model=make(),
        serial=True,
        inner_steps=4,
        inner_batch=5,  # 9 rows: batches span the seam
        eval_steps=6,
        eval_batch=4,
        **settings,
    )
    engine, source = Vectorised(learner), tasks[network]
    params, _ = meta_train(engine, source, Settings(4, 3, outer_lr=0.8, outer_lr_final=0.1, seed=5))

    reference = PlainReptile(plain, list(make().parameters()))
    reference.optimiser = plain_rule(reference.variables, settings["inner_lr"])
    for step, rate in enumerate((0.8, 0.625, 0.45, 0.275)):
        index = torch.arange(3 * step, 3 * step + 3)
        drawn = []
        for t, i in enumerate(index.tolist()):
            x, y, mask = (field[t] for field in source.episodes(index).support)
            drawn.append((x, y, batches(keys.key(5, "meta_train", i), mask, 5, 4)))
        reference.meta_step(drawn, rate)

    for (name, _), value in zip(make().named_parameters(), reference.variables, strict=True):
        torch.testing.assert_close(params[name], value.detach(), **EXACT, msg=name)
    if rule == "adam":
        assert float(params["inner/step"]) == reference.optimiser.t == 48
        for (name, _), v in zip(make().named_parameters(), reference.optimiser.v, strict=True):
            torch.testing.assert_close(params[f"inner/v/{name}"], v, **EXACT)
    else:
        assert not any(name.startswith("inner/") for name in params)

    index = torch.arange(100, 103)
    at = keys.fold(keys.key(0), index)
    unseen = source.episodes(index)
    for normalisation in ("support", "transductive") * 2:
        judge = replace(learner, normalisation=normalisation)
        state = Vectorised(judge).adapt(params, unseen.support, at)
        ours = Vectorised(judge).predict(params, state, unseen.query)
        for t in range(3):
            one = select(unseen, t)
            rows = batches(at[t], one.support.mask, 4, 6)
            theirs = reference.answer(
                *one.support[:2], rows, one.query.x, normalisation == "transductive"
            )
            torch.testing.assert_close(ours[t], theirs, **EXACT)


@pytest.mark.parametrize(
    "settings",
    [
        {"inner_optimiser": "sgd", "momentum": 0.9},
        {"inner_optimiser": "adam", "beta1": 0.0},
        {"inner_optimiser": "adam", "beta1": 0.8},
    ],
    ids=["momentum", "adam without a mean", "adam"],
)
def test_parallel_mode_carries_what_the_same_gradients_leave_in_turn(
    settings: dict[str, Any], tasks: dict[str, FewShotTasks]
) -> None:
    """Tasks start from one state; their gradients, replayed in order, give the next one."""
    model = NETWORKS["mlp"][0]()
    learner = Reptile(model=model, inner_lr=0.02, inner_steps=3, inner_batch=4, **settings)
    rule = learner.optimiser
    weights, names = learner.init(), dict(model.named_parameters())
    carried = rule.init(names)
    for step in range(3):
        index = torch.arange(4 * step, 4 * step + 4)
        episodes, at = tasks["mlp"].episodes(index), keys.fold(keys.key(1), index)
        weights, _ = Vectorised(learner).outer_step(weights, episodes, at, outer_lr=0.5)

        start = {name: p.detach() for name, p in names.items()}
        seen, ends = [], []
        for t in range(4):
            x, y, mask = (field[t] for field in episodes.support)
            current, own = start, carried
            for rows in batches(at[t], mask, 4, 3):
                leaves = {k: v.detach().requires_grad_() for k, v in current.items()}
                loss = F.cross_entropy(functional_call(model, leaves, (x[rows],)), y[rows])
                found = torch.autograd.grad(loss, list(leaves.values()))
                seen.append(dict(zip(leaves, found, strict=True)))
                current, own = rule.update(
                    {k: v.detach() for k, v in leaves.items()}, seen[-1], own
                )
            ends.append(current)
        for gradients in seen:
            _, carried = rule.update(start, gradients, carried)
        names = {
            k: (0.5 * p + 0.5 * sum(end[k] for end in ends) / 4).detach() for k, p in names.items()
        }
        expected = {**names, **{f"inner/{k}": v for k, v in carried.items()}}
        torch.testing.assert_close(weights, expected, **EXACT)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"inner_steps": 0}, "inner_steps is 0; expected at least 1"),
        ({"inner_batch": -1}, "inner_batch is -1; expected at least 0"),
        ({"eval_steps": -1}, "eval_steps is -1; expected at least 0"),
        ({"momentum": 1.0}, "momentum is 1.0; expected at least 0 and below 1"),
        ({"beta1": -0.1}, "beta1 is -0.1; expected at least 0 and below 1"),
        ({"inner_lr": float("nan")}, "inner_lr is nan; expected a number above 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Reptile(model=NETWORKS["mlp"][0](), **settings)


def test_without_carry_each_task_starts_afresh(tasks: dict[str, FewShotTasks]) -> None:
    learner = Reptile(model=NETWORKS["mlp"][0](), inner_steps=2, inner_batch=4, carry=False)
    params = learner.init()
    assert not any(name.startswith("inner/") for name in params)
    index = torch.arange(4)
    episodes, at = tasks["mlp"].episodes(index), keys.fold(keys.key(1), index)
    results = [
        Vectorised(replace(learner, serial=serial)).outer_step(params, episodes, at, outer_lr=1.0)
        for serial in (False, True)
    ]
    torch.testing.assert_close(results[0], results[1], **EXACT)


def test_evaluation_starts_from_the_carried_state(tasks: dict[str, FewShotTasks]) -> None:
    """A state with huge mean squares all but stops the first steps."""
    learner = Reptile(model=NETWORKS["mlp"][0](), eval_steps=1, eval_batch=9)
    params, support = learner.init(), select(tasks["mlp"].episodes(torch.arange(1)), 0).support
    heavy = {k: torch.full_like(v, 1e12) if "/v/" in k else v for k, v in params.items()}
    moved = []
    for start in (params, heavy):
        before = {k: v.clone() for k, v in start.items()}
        state = learner.adapt(start, support, keys.key(0))
        torch.testing.assert_close(start, before, rtol=0, atol=0)
        moved.append(float((state["weights"]["body.1.weight"] - start["body.1.weight"]).norm()))
    assert moved[0] > 1e-3
    assert moved[1] < 1e-6 * moved[0]


@pytest.mark.parametrize("n_pad", [0, 3])
def test_mini_batches_deal_every_real_row_before_any_again(n_pad: int) -> None:
    mask = torch.cat([torch.ones(6, dtype=torch.bool), torch.zeros(n_pad, dtype=torch.bool)])
    orders = set()
    for i in range(50):
        rows = cycle(keys.key(i), mask, batch=4, steps=5)  # 20 rows: three rounds of 6, and 2
        assert rows.shape == (5, 4)
        rounds = rows.flatten()[:18].reshape(3, 6)
        assert rounds.sort(-1).values.tolist() == [list(range(6))] * 3
        assert len(set(rows.flatten()[18:].tolist())) == 2
        assert int(rows.max()) == 5
        orders |= {tuple(row) for row in rounds.tolist()}
    assert len(orders) > 100  # 150 rounds out of 720 orders: shuffled anew each time


def test_padding_anywhere_is_never_dealt() -> None:
    mask = torch.tensor([False, True, False, True, True, False, False])
    rows = cycle(keys.key(0), mask, batch=2, steps=30).flatten()
    assert rows.bincount(minlength=7).tolist() == [0, 20, 0, 20, 20, 0, 0]


def test_trailing_padding_changes_no_mini_batch() -> None:
    mask = torch.ones(9, dtype=torch.bool)
    mask[6:] = False
    for i in range(20):
        key = keys.key(i)
        padded, dense = (cycle(key, m, batch=4, steps=5) for m in (mask, mask[:6]))
        assert padded.tolist() == dense.tolist()


def test_a_mini_batch_larger_than_the_support_repeats_rows() -> None:
    rows = cycle(keys.key(0), torch.ones(2, dtype=torch.bool), batch=5, steps=2)
    assert rows.flatten().bincount().tolist() == [5, 5]
