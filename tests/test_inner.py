"""Inner optimisers against torch's, against formulas, and under differentiation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import vmap

from tegu.errors import InputError
from tegu.inner import Adam, InnerOptimiser, Params, Sgd, gradient, optimiser

OURS = {
    "sgd": Sgd(0.1),
    "momentum": Sgd(0.1, momentum=0.9),
    "adam": Adam(0.01, eps=1e-30),
    "adam without a mean": Adam(0.01, beta1=0.0, beta2=0.99, eps=1e-30),
}
# With eps out of the way, TensorFlow's form of Adam and torch's are the same.
THEIRS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-30),
    "adam without a mean": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.99), eps=1e-30),
}


def draw(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 2, generator=generator, dtype=torch.float64),
        "b": torch.randn(2, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", OURS)
def test_seven_updates_equal_those_of_torch(name: str) -> None:
    params, ours = draw(0), OURS[name]
    state = ours.init(params)
    theirs = {k: v.clone().requires_grad_() for k, v in params.items()}
    reference = THEIRS[name](list(theirs.values()))
    for i in range(7):
        grads = draw(1 + i)
        for k, v in theirs.items():
            v.grad = grads[k]
        reference.step()
        params, state = ours.update(params, grads, state)
    for k, v in theirs.items():
        torch.testing.assert_close(params[k], v.detach(), rtol=1e-12, atol=1e-12)


def test_adam_keeps_epsilon_outside_the_correction() -> None:
    """Second update by hand, with an epsilon that shows where it stands."""
    g, lr, b2, eps = (2.0, -3.0), 0.1, 0.9, 0.5
    adam = Adam(lr, beta1=0.0, beta2=b2, eps=eps)
    p: Params = {"w": torch.tensor(1.0, dtype=torch.float64)}
    state, w, v = adam.init(p), 1.0, 0.0
    for t, grad in enumerate(g, 1):
        p, state = adam.update(p, {"w": torch.tensor(grad, dtype=torch.float64)}, state)
        v = b2 * v + (1 - b2) * grad**2
        w -= lr * math.sqrt(1 - b2**t) * grad / (math.sqrt(v) + eps)
    assert float(p["w"]) == pytest.approx(w, rel=1e-12)
    assert float(state["v/w"]) == pytest.approx(v, rel=1e-12)
    assert float(state["step"]) == 2
    assert "m/w" not in state


def test_the_correction_is_exact_after_many_steps_in_fp32() -> None:
    """1 - beta^t for t from 1 to a million, where powers in fp32 would lose digits."""
    adam, p = Adam(1.0, beta1=0.0, beta2=0.999999), {"w": torch.tensor(0.0)}
    for t in (1, 10, 1_000_000):
        state = {"v/w": torch.tensor(0.0), "step": torch.tensor(float(t - 1))}
        moved = -float(adam.update(p, {"w": torch.tensor(1.0)}, state)[0]["w"])
        expected = math.sqrt((1 - 0.999999**t) / 1e-6)
        assert moved == pytest.approx(expected, rel=1e-4)


def test_gradients_are_the_same_alone_and_under_a_transform() -> None:
    weights = draw(0)
    unused = {**weights, "unused": torch.ones(2).double()}

    def loss(w: Params) -> torch.Tensor:
        return sum((w[name] ** 3).sum() for name in weights)  # type: ignore[return-value]

    transformed, value = gradient(loss, unused)
    with torch.no_grad():
        alone, same = gradient(loss, unused)
    assert not any(g.requires_grad for g in alone.values())
    torch.testing.assert_close(alone, transformed)
    torch.testing.assert_close(same, value)
    for name, w in weights.items():
        torch.testing.assert_close(alone[name], 3 * w**2)
    assert not alone["unused"].any()

    with torch.inference_mode():  # of a server, say
        served = gradient(loss, unused)[0]
        kept = {name: w.clone() for name, w in unused.items()}
    torch.testing.assert_close(served, alone)
    with torch.no_grad():
        torch.testing.assert_close(gradient(loss, kept)[0], alone)

    with torch.no_grad():
        nothing, value = gradient(lambda w: torch.ones(()), unused)
    assert value == 1
    assert not any(g.any() for g in nothing.values())

    def second(w: Params) -> torch.Tensor:
        return sum(g.sum() for g in gradient(loss, w)[0].values())  # type: ignore[return-value]

    with torch.no_grad():  # whose own derivative is wanted all the same
        twice = torch.func.grad(second)(unused)
    for name, w in weights.items():
        torch.testing.assert_close(twice[name], 6 * w)


@pytest.mark.parametrize("ours", OURS.values(), ids=list(OURS))
def test_an_update_changes_none_of_its_arguments(ours: InnerOptimiser) -> None:
    params, grads = draw(0), draw(1)
    _, state = ours.update(params, grads, ours.init(params))
    arguments = (params, grads, state)
    before = [{k: v.clone() for k, v in tree.items()} for tree in arguments]
    first = ours.update(*arguments)
    torch.testing.assert_close(list(arguments), before, rtol=0, atol=0)
    torch.testing.assert_close(ours.update(*arguments), first, rtol=0, atol=0)


@pytest.mark.parametrize("ours", OURS.values(), ids=list(OURS))
def test_states_shrink_by_the_decay_that_is_told(ours: InnerOptimiser) -> None:
    params = draw(0)
    _, state = ours.update(params, draw(1), ours.init(params))
    zeros = {k: torch.zeros_like(v) for k, v in params.items()}
    _, after = ours.update(params, zeros, state)
    for name in state.keys() - {"step"}:
        factor = ours.decay()[name.split("/")[0]]
        torch.testing.assert_close(after[name], factor * state[name])


def test_updates_can_be_differentiated() -> None:
    """d (w - lr g(w)) / dw with g = w^2 / 2 is 1 - lr; checked by differences for Adam."""
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    new, _ = Sgd(0.1).update({"w": w}, {"w": w}, {})
    assert torch.autograd.grad(new["w"], w)[0].item() == pytest.approx(0.9)

    def two_steps(w: torch.Tensor) -> torch.Tensor:
        adam, p = Adam(0.1), {"w": w}
        state = adam.init(p)
        for _ in range(2):
            p, state = adam.update(p, {"w": p["w"] ** 3}, state)
        return p["w"]

    assert torch.autograd.gradcheck(two_steps, w)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_a_gradient_of_zero_has_a_derivative(beta1: float) -> None:
    """A dead unit's: the root of its mean square has an infinite slope, which nothing reaches."""
    adam, w = Adam(0.1, beta1), torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
    p, state = {"w": w}, adam.init({"w": w})
    for _ in range(2):
        p, state = adam.update(p, {"w": p["w"].relu() ** 3}, state)
    assert torch.equal(p["w"][1], w[1])
    (slope,) = torch.autograd.grad(p["w"].sum(), w)
    assert slope[1] == 1
    assert slope.isfinite().all()


@pytest.mark.parametrize("ours", OURS.values(), ids=list(OURS))
def test_vmap_equals_one_by_one(ours: InnerOptimiser) -> None:
    params = [draw(i) for i in range(3)]
    grads = [draw(10 + i) for i in range(3)]
    alone = [ours.update(p, g, ours.init(p)) for p, g in zip(params, grads, strict=True)]
    stacked = [{k: torch.stack([t[k] for t in trees]) for k in "wb"} for trees in (params, grads)]
    together = vmap(lambda p, g: ours.update(p, g, ours.init(p))[0])(*stacked)
    for i, (one, _) in enumerate(alone):
        torch.testing.assert_close({k: v[i] for k, v in together.items()}, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ours", OURS.values(), ids=list(OURS))
def test_dtype_is_kept(ours: InnerOptimiser, dtype: torch.dtype) -> None:
    params = {k: v.to(dtype) for k, v in draw(0).items()}
    new, state = ours.update(params, params, ours.init(params))
    assert {v.dtype for v in [*new.values(), *state.values()]} == {dtype}


def test_optimisers_by_name() -> None:
    settings = {"lr": 0.1, "momentum": 0.5, "beta1": 0.2}
    assert optimiser("sgd", **settings) == Sgd(0.1, 0.5)
    assert optimiser("adam", **settings) == Adam(0.1, 0.2)
    with pytest.raises(InputError, match=r"unknown inner optimiser 'adm'.*Did you mean 'adam'"):
        optimiser("adm", **settings)
