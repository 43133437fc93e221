"""Batch normalisation: statistics of the rows that count, tegu's layer and torch's."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tegu.errors import InputError
from tegu.models.norm import BatchNorm, _named, converted, statistics


def draw(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2 + 1


def randomised(layer: nn.Module) -> nn.Module:
    """The layer with parameters and buffers that are neither 0 nor 1."""
    layer.double()
    for i, tensor in enumerate([*layer.parameters(), *layer.buffers()]):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(i))
    return layer


@pytest.mark.parametrize("shape", [(7, 3), (5, 4, 6, 3)])
def test_own_layer_equals_torch_with_channels_last(shape: tuple[int, ...]) -> None:
    layer, x = randomised(BatchNorm(3)), draw(*shape)
    with statistics("batch", foreign=False):
        found = layer(x)
    first = x.movedim(-1, 1)
    expected = F.batch_norm(first, None, None, layer.weight, layer.bias, training=True, eps=1e-3)
    torch.testing.assert_close(found, expected.movedim(1, -1))
    torch.testing.assert_close(layer(x), found)  # with nobody to say otherwise: the batch


def test_own_layer_by_hand() -> None:
    """Values 1 and 3: mean 2, variance 1; eps of 3 makes the root 2."""
    layer = BatchNorm(1, eps=3.0)
    with torch.no_grad():
        layer.weight.fill_(10.0)
        layer.bias.fill_(0.5)
    assert layer(torch.tensor([[1.0], [3.0]])).tolist() == [[-4.5], [5.5]]


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "own": (lambda: BatchNorm(3), draw(6, 4, 4, 3)),
    "own, flat": (lambda: BatchNorm(3), draw(6, 3)),
    "1d": (lambda: nn.BatchNorm1d(3), draw(6, 3)),
    "1d, sequences": (lambda: nn.BatchNorm1d(3), draw(6, 3, 5)),
    "2d": (lambda: nn.BatchNorm2d(3), draw(6, 3, 4, 4)),
    "3d": (lambda: nn.BatchNorm3d(3), draw(6, 3, 2, 2, 2)),
    "without weights": (lambda: nn.BatchNorm2d(3, affine=False), draw(6, 3, 4, 4)),
    "without buffers": (lambda: nn.BatchNorm2d(3, track_running_stats=False), draw(6, 3, 4, 4)),
    "average of all": (lambda: nn.BatchNorm1d(3, momentum=None, eps=0.1), draw(6, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_rows_that_do_not_count_have_no_say(name: str, training: bool) -> None:
    make, x = LAYERS[name]
    layer, mask = randomised(make()).train(training), torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    with statistics("batch", mask, foreign=True):
        found = layer(x)
        loud = torch.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 1e3)
        torch.testing.assert_close(layer(loud)[mask], found[mask])
    with statistics("batch", foreign=True):
        torch.testing.assert_close(found[mask], layer(x[mask]))
        assert not torch.allclose(found, layer(x))


@pytest.mark.parametrize("name", [name for name in LAYERS if "own" not in name])
@pytest.mark.parametrize("training", [True, False])
def test_torchs_layers_obey(name: str, training: bool) -> None:
    """ "batch" is what training mode computes, "running" what evaluation mode does."""
    make, x = LAYERS[name]
    layer = randomised(make()).train(training)
    before = {k: v.clone() for k, v in layer.state_dict().items() if k != "num_batches_tracked"}
    outputs = {}
    for source in ("batch", "running"):
        with statistics(source, foreign=True):
            outputs[source] = layer(x)
    after = {k: v for k, v in layer.state_dict().items() if k != "num_batches_tracked"}
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.testing.assert_close(outputs["running"], randomised(make()).eval()(x))
    torch.testing.assert_close(outputs["batch"], randomised(make()).train()(x))


def test_layers_are_found_by_name() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2)))
    assert converted(model) == ["0", "1.1"]
    assert converted(nn.Sequential(BatchNorm(2), nn.LayerNorm(2))) == []


def test_blocks_nest_and_end_with_an_error_too() -> None:
    layer, x = randomised(BatchNorm(3)), draw(6, 3)
    plain = layer(x)
    outer, inner = torch.arange(6) < 4, torch.arange(6) < 2
    with statistics("batch", outer, foreign=False):
        first = layer(x)
        with statistics("batch", inner, foreign=True):
            assert not torch.allclose(layer(x), first)
        with pytest.raises(RuntimeError), statistics("batch", inner, foreign=True):
            layer(x[:, :2])
        torch.testing.assert_close(layer(x), first, rtol=0, atol=0)
    torch.testing.assert_close(layer(x), plain, rtol=0, atol=0)
    assert _named.mask == [None]
    torchs = nn.BatchNorm1d(3).double().eval()
    torch.testing.assert_close(torchs(x), x / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("make", [lambda: BatchNorm(3), lambda: nn.BatchNorm1d(3)])
def test_gradients_are_right(make: Callable[[], nn.Module]) -> None:
    layer, x = randomised(make()), draw(5, 3).requires_grad_()
    mask = torch.tensor([True, True, True, True, False])

    def forward(x: Tensor) -> Tensor:
        with statistics("batch", mask, foreign=True):
            out: Tensor = layer(x)
        return out

    assert torch.autograd.gradcheck(forward, x)
    assert torch.autograd.gradgradcheck(forward, x)


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_both_orders(masked: bool) -> None:
    """Against finite differences: the variance is written so that a gradient is cheap."""
    layer, x = randomised(BatchNorm(2)), draw(5, 3, 2).requires_grad_()
    mask = torch.tensor([True, True, False, True, True]) if masked else None

    def run(x: Tensor) -> Tensor:
        with statistics("batch", mask, foreign=False):
            out: Tensor = layer(x)
        return out

    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradgradcheck(run, (x,))


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    layer, x = BatchNorm(3), draw(50, 3).float()
    with torch.no_grad():
        torch.testing.assert_close(layer(x + 1000), layer(x), rtol=0, atol=1e-3)


def test_what_one_thread_says_another_does_not_hear() -> None:
    layer, x = BatchNorm(3).double(), draw(7, 3)
    expected, found = layer(x), []
    with statistics("running", torch.zeros(7, dtype=torch.bool), foreign=False):
        thread = threading.Thread(target=lambda: found.append(layer(x)))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], expected)


def test_rows_may_be_folded_into_the_batch() -> None:
    """A model may look at parts of each example: a mask of examples counts for all their parts."""
    mask = torch.tensor([True, False, True])
    x, layer = draw(3, 4, 5), nn.BatchNorm1d(5).double()
    with statistics("batch", mask, foreign=True):
        found = layer(x.flatten(0, 1)).unflatten(0, (3, 4))
    with statistics("batch", foreign=True):
        expected = layer(x[mask].flatten(0, 1)).unflatten(0, (2, 4))
    torch.testing.assert_close(found[mask], expected)
    with (
        statistics("batch", mask, foreign=True),
        pytest.raises(InputError, match="sees 7 rows of 3 examples"),
    ):
        layer(draw(7, 5))
