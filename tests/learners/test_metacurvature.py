"""Meta-Curvature against the matrix that it stands for, written out in full."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Maml, MetaCurvature
from tegu.models import Conv4, Mlp
from tegu.sampling import FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(3))


def doubled(episodes: Episode) -> Episode:
    return Episode(*(half._replace(x=half.x.double()) for half in episodes))


@pytest.fixture
def episodes(toy_data: ClassDataset) -> Episode:
    tasks = FewShotTasks(toy_data, n_way=3, n_shot=2, n_query=2)
    return doubled(tasks.episodes(torch.arange(3)))


@pytest.fixture
def images(toy_images: ClassDataset) -> Episode:
    tasks = FewShotTasks(toy_images, n_way=3, n_shot=2, n_query=2)
    return doubled(tasks.episodes(torch.arange(3)))


def learner(**settings: object) -> MetaCurvature:
    model = Mlp(6, 3, hidden=(5,), activation="tanh").double()
    return MetaCurvature(model=model, **{"inner_lr": 0.3, **settings})


def stirred(made: MetaCurvature) -> Params:
    """Parameters with matrices that are no longer identities, nor symmetric."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: p + 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        if name.startswith("curvature/")
        else p
        for name, p in made.init().items()
    }


def whole(params: Params, name: str) -> Tensor:
    """The matrix over all weights of one tensor: the Kronecker product of those of its axes."""
    parts, axis = [], 0
    while (key := f"curvature/{name}/{axis}") in params:
        m = params[key]
        parts.append(torch.diag(m) if m.ndim == 1 else m)
        axis += 1
    return reduce(torch.kron, parts)


def network(weights: Params, x: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(x, weights["body.1.weight"], weights["body.1.bias"]))
    return F.linear(hidden, weights["head.weight"], weights["head.bias"])


def plain(params: Params, episode: Episode, *, steps: int, first_order: bool = False) -> Tensor:
    """Query loss after steps with full matrices, a loop over names and no torch.func."""
    (x, y, _), (query_x, query_y, _) = episode
    weights = {name: p for name, p in params.items() if "/" not in name}
    for _ in range(steps):
        loss = F.cross_entropy(network(weights, x), y)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order)
        weights = {
            name: w - 0.3 * (whole(params, name) @ g.flatten()).reshape(w.shape)
            for (name, w), g in zip(weights.items(), grads, strict=True)
        }
    return F.cross_entropy(network(weights, query_x), query_y)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(("steps", "largest"), [(1, 512), (3, 512), (2, 5), (2, 0)])
def test_the_meta_gradient_is_that_of_full_matrices(
    steps: int, largest: int, first_order: bool, as_plain: Any, episodes: Episode
) -> None:
    made = learner(inner_steps=steps, largest=largest, first_order=first_order)
    loop = partial(plain, steps=steps, first_order=first_order)
    as_plain(made, stirred(made), episodes, loop, rtol=1e-9)


def test_the_meta_gradient_is_that_of_central_differences(
    as_differences: Any, episodes: Episode
) -> None:
    """Weights and matrices moved together, along random directions."""
    made = learner(inner_steps=2, largest=5)
    as_differences(made, stirred(made), episodes, partial(plain, steps=2))


def test_checkpointed_steps_give_the_same_gradient(episodes: Episode) -> None:
    made = learner(inner_steps=3)
    params = stirred(made)
    uncut, cut = (
        Vectorised(made, checkpoint=how).outer_gradient(params, episodes, KEYS)
        for how in (False, True)
    )
    torch.testing.assert_close(cut, uncut, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: Conv4(3, size=8, width=4), lambda: Mlp(64, 3)])
@pytest.mark.parametrize("largest", [512, 8])
def test_identities_are_maml_to_the_bit(make: object, largest: int, images: Episode) -> None:
    model = make().double()  # type: ignore[operator]
    made = MetaCurvature(model=model, inner_steps=3, inner_lr=0.2, largest=largest)
    maml = Maml(model=model, inner_steps=3, inner_lr=0.2)
    states = [
        Vectorised(learner).adapt(learner.init(), images.support, KEYS) for learner in (made, maml)
    ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    found, loss = Vectorised(made).outer_gradient(made.init(), images, KEYS)
    expected, same = Vectorised(maml).outer_gradient(maml.init(), images, KEYS)
    assert loss == same
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g, rtol=1e-12, atol=1e-15)


def test_low_precision_is_for_passes_alone(toy_data: ClassDataset) -> None:
    """Identities in bf16 would round every gradient; here they leave it as it is."""
    episodes = FewShotTasks(toy_data, n_way=3, n_shot=2).episodes(torch.arange(3))
    model = Mlp(6, 3, hidden=(5,))
    states = [
        Vectorised(made, precision="bf16").adapt(made.init(), episodes.support, KEYS)
        for made in (MetaCurvature(model=model), Maml(model=model))
    ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_the_axes_of_kernels() -> None:
    """Tap 4 is the centre: scaled by ten, the centres of all kernels move ten times as far."""
    model = Conv4(2, size=8, width=3).double()
    made = MetaCurvature(model=model, inner_lr=0.1)
    params, name = made.init(), "body.convs.1.weight"
    assert made.axes(name, params[name]) == (9, 3, 3)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    support = Examples.dense(x, torch.tensor([0, 1, 0, 1]))

    def moved(params: Params) -> Tensor:
        state = made.begin(params, support, KEYS[0], training=True)
        after = made.step(params, state, support, torch.tensor(0))["weights"][name]
        return (after - params[name]).reshape(3, 3, 3, 3)  # rows, columns, inputs, outputs

    before = moved(params)
    taps = torch.eye(9, dtype=torch.float64)
    taps[4, 4] = 10.0
    after = moved({**params, f"curvature/{name}/0": taps})
    torch.testing.assert_close(after[1, 1], 10 * before[1, 1])
    torch.testing.assert_close(after[0], before[0])
    swap = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    for axis, by in ((1, 2), (2, 3)):
        after = moved({**params, f"curvature/{name}/{axis}": swap})
        order = torch.tensor([1, 0, 2])
        torch.testing.assert_close(after, before.index_select(by, order))


def test_torch_s_own_kernels_and_scalars() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, (3, 5)), nn.Conv1d(4, 4, 3, groups=2))
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    made = MetaCurvature(model=model)
    named = dict(model.named_parameters())
    assert made.axes("0.weight", named["0.weight"]) == (4, 2, 15)
    assert made.axes("1.weight", named["1.weight"]) == (4, 2, 3)
    assert made.axes("scale", named["scale"]) == (1,)
    assert made.init()["curvature/scale/0"].tolist() == [[1.0]]
    assert made.init()["curvature/0.weight/2"].shape == (15, 15)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InputError, match="largest is -1; expected at least 0"):
        learner(largest=-1)


def test_a_carried_momentum_has_no_curvature() -> None:
    made = learner(momentum=0.5, carry=True)
    params = made.init()
    assert "inner/m/head.weight" in params
    own = {name.split("/")[1] for name in params if name.startswith("curvature/")}
    assert own == {name for name, _ in made.model.named_parameters()}
