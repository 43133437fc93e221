"""Blocks that are run again on the way back: same values, same derivatives of every order."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples
from tegu.learners import Learner, Maml, ProtoNet, Reptile
from tegu.models import ResNet12, ViT
from tegu.models.norm import statistics
from tegu.models.recompute import recomputed
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(3))
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet12": lambda n, **own: ResNet12(n, channels=1, size=16, widths=(2, 3, 3, 4), **own),
    "vit": lambda n, **own: ViT(n, channels=1, size=16, patch=8, width=6, blocks=2, **own),
}


@pytest.fixture(scope="module")
def episodes() -> Episode:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 1, 16, 16, generator=generator, dtype=torch.float64)
    data = ClassDataset("images", "meta_train", x, torch.tensor([6] * 4), tuple("abcd"))
    return FewShotTasks(data, 3, 2, 2).episodes(torch.arange(3))


def both(make: Callable[..., nn.Module], n: int) -> list[nn.Module]:
    """The network, plain and with its blocks run again."""
    return [make(n, checkpoint=checkpoint).double() for checkpoint in (False, True)]


LEARNERS: dict[str, Callable[[nn.Module], Learner]] = {
    "maml": lambda m: Maml(model=m, inner_lr=0.1, inner_steps=2, normalisation="transductive"),
    "maml, each query alone": lambda m: Maml(model=m, inner_lr=0.1, inner_steps=1),
    "maml, first order": lambda m: Maml(model=m, inner_lr=0.1, first_order=True),
    "reptile": lambda m: Reptile(model=m, inner_steps=2, inner_batch=3),
    "protonet": lambda m: ProtoNet(model=m, normalisation="running"),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("which", LEARNERS)
def test_learners_get_the_same_update(which: str, network: str, episodes: Episode) -> None:
    """Padding included, and the running statistics that meta-training tracks."""
    shown = torch.tensor([True] * 5 + [False])
    support = episodes.support
    padded = Episode(support._replace(mask=support.mask & shown), episodes.query)
    found: list[Any] = []
    for model in both(NETWORKS[network], 0 if which == "protonet" else 3):
        engine = Vectorised(LEARNERS[which](model), vectorise="vmap")
        params = engine.learner.init()
        if engine.learner.outer_update is None:
            grads, seen, loss = engine._outer(params, padded, KEYS)
            found.append((grads, seen, loss))
            assert (which == "protonet" and network == "resnet12") == bool(seen)
        else:
            found.append(engine.outer_step(params, padded, KEYS, outer_lr=1.0))
        state = engine.adapt(params, padded.support, KEYS)
        found[-1] = (*found[-1], engine.predict(params, state, padded.query))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("network", NETWORKS)
def test_in_half_precision(network: str, episodes: Episode) -> None:
    """What is run again is rounded as it was, also where the gradient comes after the pass."""
    single = Episode(*(half._replace(x=half.x.float()) for half in episodes))
    found = [
        Vectorised(
            LEARNERS["maml, first order"](NETWORKS[network](3, checkpoint=c)),
            precision=precision,
            vectorise="vmap",
        )
        for precision, c in (("fp32", False), ("bf16", False), ("bf16", True))
    ]
    exact, plain, again = (e.outer_gradient(e.learner.init(), single, KEYS) for e in found)
    torch.testing.assert_close(again[1], plain[1], rtol=1e-6, atol=0)
    flat = [torch.cat([g.flatten() for g in one[0].values()]) for one in (exact, plain, again)]
    assert float((flat[2] - flat[1]).norm()) < 0.02 * float(flat[0].norm())
    assert not torch.equal(flat[1], flat[0])


def peak(make: Callable[..., nn.Module], checkpoint: bool, at_once: int, folder: Path) -> int:
    """Bytes of tensors at the peak of an outer gradient of second order above those before."""
    learner = Maml(model=make(checkpoint), inner_lr=0.1, inner_steps=1)
    engine = Vectorised(replace(learner, normalisation="transductive"), at_once=at_once)
    x = torch.randn(3, 10, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    half = Examples(x, torch.arange(10).expand(3, 10) % 5, torch.ones(3, 10, dtype=torch.bool))
    init = learner.init()
    gc.collect()
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        engine.outer_gradient(init, Episode(half, half), KEYS)
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    told = [e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
    first = min(told, key=lambda e: float(e["ts"]))["args"]
    before = int(first["Total Allocated"]) - int(first["Bytes"])
    return max(int(e["args"]["Total Allocated"]) for e in told) - before


@pytest.mark.parametrize(
    "make",
    [
        lambda c: ResNet12(5, channels=1, size=16, widths=(32, 32, 48, 48), checkpoint=c),
        lambda c: ViT(5, channels=1, size=16, patch=2, width=48, blocks=5, checkpoint=c),
    ],
    ids=["resnet12", "vit"],
)
def test_memory_falls(make: Callable[..., nn.Module], tmp_path: Path) -> None:
    """As the allocator counts it, so that other work and what it keeps change nothing."""
    least, again, plain = (peak(make, *c, tmp_path) for c in ((True, 1), (True, 0), (False, 0)))
    assert least < 0.5 * again
    assert again < 0.5 * plain


@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_of_plain_autograd(order: int) -> None:
    """Without torch.func, and beyond the second order: of sum sin(w x)^2 by w."""
    layer = nn.Linear(3, 2, bias=False).double()
    layer.weight.data = torch.linspace(-0.8, 0.7, 6, dtype=torch.float64).reshape(2, 3)

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(self.layer(x)) ** 2

    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    squared = Squared()
    for run in (squared, lambda x: recomputed(squared, x)):
        value = run(x).sum()
        for _ in range(order):
            (g,) = torch.autograd.grad(value, layer.weight, create_graph=True)
            value = (g * torch.arange(1.0, 7, dtype=g.dtype).reshape(2, 3)).sum()
        results.append(value.detach())
    assert abs(float(results[0])) > 0.01
    torch.testing.assert_close(results[1], results[0])


def test_foreign_batch_normalisation_counts_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with statistics("batch", foreign=True):
        expected = torch.autograd.grad(model(x).pow(3).sum(), list(model.parameters()))
    before = {k: v.clone() for k, v in model.named_buffers()}
    with statistics("batch", foreign=True):
        out = recomputed(model, x)
    found = torch.autograd.grad(out.pow(3).sum(), list(model.parameters()))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
