"""Muon: against its formula written out, against torch's own, and what it refuses."""

from __future__ import annotations

import pytest
import torch

import tegu
from tegu.engine.outer import Muon, at_rate, orthogonal, outer_optimiser
from tegu.engine.vectorise import Vectorised
from tegu.errors import InputError
from tegu.inner import Adam, Params
from tegu.learners.learner import Learner
from tegu.models import StudyTransformer

SHAPES = {"stacked": (12, 4), "wide": (3, 7), "tall": (8, 2), "bias": (5,), "table": (6, 4)}
MATRICES = {"stacked": 3, "wide": 1, "tall": 1}


def drawn(seed: int, dtype: torch.dtype = torch.float64) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=generator, dtype=dtype) for k, s in SHAPES.items()}


@pytest.mark.parametrize("shape", [(6, 6), (3, 7), (8, 2), (2, 5, 4)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ orthogonal(x) @ v.mT
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert bool(((values > 0.3) & (values < 1.3)).all())
    torch.testing.assert_close(inside, torch.diag_embed(values), rtol=0, atol=1e-9)


def plain(w: torch.Tensor, gs: list[torch.Tensor], lr: float, decay: float) -> torch.Tensor:
    """One matrix after so many gradients, by loops over Jordan's description."""
    buffer = torch.zeros_like(w)
    for g in gs:
        buffer = 0.95 * buffer + g
        x = g + 0.95 * buffer
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / (x.square().sum().sqrt() + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
        x = x.T if tall else x
        scale = max(1.0, w.shape[0] / w.shape[1]) ** 0.5
        w = w * (1 - 20 * lr * decay) - 20 * lr * scale * x
    return w


def test_three_updates_are_those_of_the_formula() -> None:
    params, grads = drawn(0), [drawn(seed) for seed in (1, 2, 3)]
    muon = Muon(MATRICES, weight_decay=0.3, lr=0.01)
    now, state = params, muon.init(params)
    for g in grads:
        now, state = muon.update(now, g, state)
    for name in ("wide", "tall"):
        expected = plain(params[name], [g[name] for g in grads], 0.01, 0.3)
        torch.testing.assert_close(now[name], expected, rtol=0, atol=1e-12)
    thirds = [
        plain(params["stacked"][i : i + 4], [g["stacked"][i : i + 4] for g in grads], 0.01, 0.3)
        for i in (0, 4, 8)
    ]
    torch.testing.assert_close(now["stacked"], torch.cat(thirds), rtol=0, atol=1e-12)
    adam, kept = Adam(0.01), {k: params[k] for k in ("bias", "table")}
    state = adam.init(kept)
    for g in grads:
        kept, state = adam.update(kept, {k: g[k] for k in kept}, state)
    for name, p in kept.items():
        torch.testing.assert_close(now[name], p, rtol=0, atol=0)


def test_a_matrix_moves_as_with_torch_in_bfloat16() -> None:
    params, g = drawn(0, torch.float32), drawn(1, torch.float32)
    w = torch.nn.Parameter(params["wide"].clone())
    theirs = torch.optim.Muon([w], lr=0.2, weight_decay=0.1)
    w.grad = g["wide"]
    theirs.step()
    muon = Muon({"wide": 1}, weight_decay=0.1, lr=0.01)
    ours, _ = muon.update(params, g, muon.init(params))
    moved = w.detach() - params["wide"]
    error = (ours["wide"] - params["wide"] - moved).norm() / moved.norm()
    assert float(error) < 0.05


def test_a_rate_decides_how_far_it_goes() -> None:
    params, g = drawn(0), drawn(1)
    muon = Muon(MATRICES)
    one, two = (
        at_rate(muon, torch.tensor(rate, dtype=torch.float64)).update(params, g, muon.init(params))
        for rate in (0.01, 0.02)
    )
    for name in params:
        torch.testing.assert_close(2 * (one[0][name] - params[name]), two[0][name] - params[name])


def mlc() -> Learner:
    model = StudyTransformer(12, 9, width=16, heads=2, feedforward=32, longest=7)
    return tegu.learners.Mlc(model=model)


def test_the_study_transformer_names_its_matrices() -> None:
    learner = mlc()
    muon = Vectorised(learner, outer_optimiser="muon").optimiser
    assert isinstance(muon, Muon)
    params = learner.init()
    assert all(params[name].ndim == 2 for name in muon.matrices)
    for name, count in muon.matrices.items():
        rows, columns = params[name].shape
        assert (count == 3) == (rows == 3 * columns)
    rest = {name for name, p in params.items() if p.ndim == 2} - set(muon.matrices)
    assert rest == {"word", "symbol", "out.weight"}


@pytest.mark.parametrize(
    ("name", "decay", "said"),
    [("moon", 0.0, "unknown outer optimiser"), ("adam", 0.1, "with Adam"), ("muon", -1, "-1")],
)
def test_bad_settings_are_refused(name: str, decay: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        outer_optimiser(name, mlc(), decay)


def test_networks_without_matrices_and_learners_with_a_rule_are_refused() -> None:
    network = tegu.models.Mlp(1, 1, hidden=(4,))
    loss = tegu.losses.squared_error
    reptile = tegu.Reptile(model=network, loss=loss, inner_lr=0.1)
    with pytest.raises(InputError, match="Muon with Reptile"):
        outer_optimiser("muon", reptile, 0.0)
    maml = tegu.learners.Maml(model=network, loss=loss, inner_lr=0.1)
    with pytest.raises(InputError, match="Muon with Mlp"):
        outer_optimiser("muon", maml, 0.0)
