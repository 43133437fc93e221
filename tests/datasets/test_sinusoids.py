"""Sinusoids: the waves that are drawn, that number i decides them, and bad requests."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tegu.datasets.sinusoids import Sinusoids
from tegu.episodes import select
from tegu.errors import InputError

MANY = torch.arange(20_000)


def test_an_episode_is_points_of_its_own_wave() -> None:
    tasks = Sinusoids("meta_test", n_shot=7, n_query=11)
    batch, (amplitude, phase) = tasks.episodes(MANY[:5]), tasks.waves(MANY[:5])
    for half, n in ((batch.support, 7), (batch.query, 11)):
        assert half.x.shape == half.y.shape == (5, n, 1)
        assert half.mask.shape == (5, n)
        assert bool(half.mask.all())
        assert half.x.dtype == half.y.dtype == torch.get_default_dtype()
        wave = amplitude[:, None] * torch.sin(half.x.double() + phase[:, None])
        assert_close(half.y.double(), wave, atol=5e-6, rtol=0)


@pytest.mark.parametrize("phase", [(0.0, 2 * math.pi), (0.0, math.pi)])
def test_waves_and_inputs_are_uniform_over_their_ranges(phase: tuple[float, float]) -> None:
    """Mean, variance and ends of each, within five standard errors."""
    tasks = Sinusoids(n_shot=1, phase=phase)
    amplitude, angle = tasks.waves(MANY)
    x = tasks.episodes(MANY).support.x.double()
    for drawn, (low, high) in ((amplitude, (0.1, 5.0)), (angle, phase), (x, (-5.0, 5.0))):
        unit = (drawn.flatten() - low) / (high - low)
        assert 0 <= float(unit.min()) < 0.001
        assert 0.999 < float(unit.max()) <= 1
        root = len(MANY) ** 0.5
        assert float(unit.mean()) == pytest.approx(1 / 2, abs=5 * (1 / 12) ** 0.5 / root)
        assert float(unit.var()) == pytest.approx(1 / 12, abs=5 * (1 / 180) ** 0.5 / root)


def test_amplitude_phase_and_inputs_are_independent() -> None:
    tasks = Sinusoids(n_shot=2, n_query=1, grid_query=False)
    batch = tasks.episodes(MANY)
    drawn = torch.cat([*tasks.waves(MANY), batch.support.x[..., 0], batch.query.x[..., 0]], -1)
    apart = torch.corrcoef(drawn.T) - torch.eye(5)
    assert_close(apart, torch.zeros_like(apart), atol=5 / len(MANY) ** 0.5, rtol=0)


def test_queries_are_a_grid_or_are_drawn() -> None:
    grid = Sinusoids(n_query=5).episodes(MANY[:2]).query.x[..., 0]
    assert grid.tolist() == [[-5.0, -2.5, 0.0, 2.5, 5.0]] * 2
    drawn = Sinusoids(n_query=5, grid_query=False).episodes(MANY[:2]).query.x
    assert len(drawn.unique()) == 10
    assert float(drawn.abs().max()) <= 5


def test_number_i_alone_decides_an_episode() -> None:
    """Alone, in another order, or from an equal source: the same bits."""
    tasks = Sinusoids(n_shot=3, n_query=4, seed=9, grid_query=False)
    whole = tasks.episodes(torch.arange(6))
    again = Sinusoids(n_shot=3, n_query=4, seed=9, grid_query=False).episodes(torch.arange(6))
    assert_close(again, whole, atol=0, rtol=0)
    turned = tasks.episodes(torch.arange(5, -1, -1))
    for i in range(6):
        alone = tasks.episodes(torch.tensor([i]))
        assert_close(select(alone, 0), select(whole, i), atol=0, rtol=0)
        assert_close(select(turned, 5 - i), select(whole, i), atol=0, rtol=0)


def test_splits_and_seeds_have_other_waves() -> None:
    sources = [Sinusoids(split) for split in ("meta_train", "meta_val", "meta_test")]
    sources.append(Sinusoids(seed=1))
    amplitudes = torch.cat([source.waves(torch.arange(100))[0] for source in sources])
    assert len(amplitudes.unique()) == 400


def test_more_shots_keep_the_wave() -> None:
    few, more = Sinusoids(n_shot=5), Sinusoids(n_shot=10)
    assert_close(few.waves(MANY[:9]), more.waves(MANY[:9]), atol=0, rtol=0)
    first = more.episodes(MANY[:9]).support.x[:, :5]
    assert_close(few.episodes(MANY[:9]).support.x, first, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n_shot": 0}, "n_shot is 0; expected at least 1. Raise n_shot."),
        ({"n_query": -2}, "n_query is -2; expected at least 1. Raise n_query."),
        ({"split": "meta_tests"}, "unknown split 'meta_tests'; .*Did you mean 'meta_test'?"),
        ({"amplitude": (5.0, 0.1)}, r"range of amplitude is \(5.0, 0.1\); .*the lower first"),
        ({"phase": (1.0, 1.0)}, r"range of phase is \(1.0, 1.0\); .*Pass phase=\(low, high\)"),
        ({"x": (0.0, math.inf)}, r"range of x is \(0.0, inf\); expected two finite numbers"),
        ({"x": (math.nan, 1.0)}, r"range of x is \(nan, 1.0\); expected two finite numbers"),
        ({"x": (1.0, 2.0, 3.0)}, r"range of x is \(1.0, 2.0, 3.0\); expected two finite"),
    ],
)
def test_bad_requests(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Sinusoids(**settings)


def test_waves_of_other_lengths() -> None:
    """Amplitude, phase and points are as without; only how fast a wave goes is drawn, too."""
    index = torch.arange(400)
    plain, other = (Sinusoids(n_shot=4, frequency=f) for f in ((1.0, 1.0), (0.8, 1.2)))
    one, two = (data.episodes(index).support for data in (plain, other))
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.y, two.y)
    amplitude, phase = plain.waves(index)
    x, y = two.x[..., 0].double(), two.y[..., 0].double()
    tries = torch.linspace(0.8, 1.2, 4001, dtype=torch.float64)
    off = amplitude[..., None] * torch.sin(tries * x[..., None] + phase[..., None]) - y[..., None]
    best = off.square().sum(1)
    assert float(best.amin(-1).max()) < 1e-5
    found = tries[best.argmin(-1)]
    assert float(found.mean()) == pytest.approx(1.0, abs=0.02)
    assert 0.8 <= float(found.min()) < 0.81
    assert 1.19 < float(found.max()) <= 1.2
    with pytest.raises(InputError, match="the range of frequency is"):
        Sinusoids(frequency=(1.2, 0.8))
