"""Gaussian processes: kernels, draws, and the exact predictive against other implementations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    ExpSineSquared,
    Matern,
    WhiteKernel,
)
from torch import Tensor
from torch.testing import assert_close

from tegu.datasets.gaussian_processes import KERNELS, GaussianProcesses, Hyper, posterior
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.losses import gaussian, log_likelihood

SOME = torch.arange(12)


def sklearn_kernel(kernel: str, hyper: Hyper, t: int) -> Any:
    """The same covariance, as scikit-learn writes it."""
    length, scale, period = (float(values[t]) for values in hyper)
    shape = {
        "rbf": RBF(length),
        "matern52": Matern(length, nu=2.5),
        "periodic": ExpSineSquared(length, period),
    }[kernel]
    return ConstantKernel(scale**2) * shape


def points(episodes: Episode, t: int) -> tuple[Any, Any, Any, Any]:
    """Real support rows and queries of one episode, in float64 numpy."""
    one = select(episodes, t)
    real = one.support.mask
    halves = [one.support.x[real], one.support.y[real], one.query.x, one.query.y]
    return tuple(half.double().numpy() for half in halves)  # type: ignore[return-value]


@pytest.fixture
def double() -> Any:
    """Episodes in float64, so that they are what the reference saw."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariances_are_those_of_scikit_learn(kernel: str) -> None:
    tasks = GaussianProcesses(kernel=kernel)
    hyper, x = tasks.hyper(SOME), torch.linspace(-2, 2, 9, dtype=torch.float64)
    found = KERNELS[kernel](x[None, :, None] - x[None, None, :], hyper)
    for t in range(len(SOME)):
        expected = sklearn_kernel(kernel, hyper, t)(x[:, None].numpy())
        np.testing.assert_allclose(found[t].numpy(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_exact_predictive_is_that_of_scikit_learn(kernel: str) -> None:
    """Mean and deviation of each query, noise included, and the score from them by scipy."""
    tasks = GaussianProcesses("meta_test", kernel=kernel, n_query=7, seed=3)
    episodes, outputs, hyper = tasks.episodes(SOME), tasks.exact(SOME), tasks.hyper(SOME)
    for t in range(len(SOME)):
        x, y, query, target = points(episodes, t)
        kernels = sklearn_kernel(kernel, hyper, t) + WhiteKernel(tasks.noise**2)
        model = GaussianProcessRegressor(kernels, optimizer=None, alpha=0.0)
        mean, sd = model.fit(x, y[:, 0]).predict(query, return_std=True)
        np.testing.assert_allclose(outputs[t, :, 0].numpy(), mean, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(outputs[t, :, 1].exp().numpy(), sd, rtol=1e-6, atol=1e-9)
        score = float(log_likelihood(outputs[t], select(episodes, t).query))
        assert score == pytest.approx(norm(mean, sd).logpdf(target[:, 0]).mean(), abs=1e-6)


@pytest.mark.usefixtures("double")
def test_the_evidence_is_a_multivariate_normal_density() -> None:
    tasks = GaussianProcesses(n_support=(2, 9), n_query=1)
    episodes, hyper = tasks.episodes(SOME), tasks.hyper(SOME)
    support, kernel = episodes.support, KERNELS["rbf"]
    x, y = support.x[..., 0], support.y[..., 0]
    # What padding rows hold is nothing to the posterior.
    x, y = (torch.where(support.mask, values, 55.0) for values in (x, y))
    query = episodes.query.x[..., 0]
    found = posterior(x, y, support.mask, query, kernel, hyper, tasks.noise)
    for t in range(len(SOME)):
        at, seen, _, _ = points(episodes, t)
        covariance = sklearn_kernel("rbf", hyper, t)(at) + tasks.noise**2 * np.eye(len(at))
        expected = multivariate_normal(np.zeros(len(at)), covariance).logpdf(seen[:, 0])
        assert float(found.log_evidence[t]) == pytest.approx(expected, abs=1e-8)
    assert len(set(support.mask.sum(1).tolist())) > 1


@pytest.mark.usefixtures("double")
def test_inferred_hyper_parameters_weigh_their_grid_by_the_evidence() -> None:
    """A plain loop over the grid for each episode, densities by scipy."""
    tasks = GaussianProcesses(n_support=(2, 6), n_query=3)
    few = torch.arange(3)
    episodes, found = tasks.episodes(few), tasks.inferred_log_likelihood(few, grid=3)
    for t in range(3):
        x, y, query, target = points(episodes, t)
        total, weight = np.zeros(3), 0.0
        for i in range(3):
            for j in range(3):
                length = 0.1 + 0.5 * (i + 0.5) / 3
                scale = 0.1 + 0.9 * (j + 0.5) / 3
                kernel = ConstantKernel(scale**2) * RBF(length)
                known = kernel(x) + 0.02**2 * np.eye(len(x))
                evidence = multivariate_normal(np.zeros(len(x)), known).pdf(y[:, 0])
                cross = kernel(x, query)
                mean = cross.T @ np.linalg.solve(known, y[:, 0])
                spread = np.einsum("sq,sq->q", cross, np.linalg.solve(known, cross))
                sd = np.sqrt(scale**2 + 0.02**2 - spread)
                total = total + evidence * norm(mean, sd).pdf(target[:, 0])
                weight += evidence
        np.testing.assert_allclose(found[t].numpy(), np.log(total / weight), rtol=1e-6, atol=1e-8)


def score(outputs: Tensor, episodes: Episode) -> Tensor:
    """Log-likelihood of each episode."""
    return torch.stack(
        [log_likelihood(outputs[t], select(episodes, t).query) for t in range(len(outputs))]
    )


def test_no_prediction_is_better_on_average_than_the_exact_one() -> None:
    """Means or deviations moved either way score less; so does not knowing hyper-parameters."""
    index = torch.arange(300)
    tasks = GaussianProcesses("meta_val", n_query=10)
    episodes, exact = tasks.episodes(index), tasks.exact(index)
    best = score(exact, episodes)
    for mean, log_sd in [(0.02, 0.0), (-0.02, 0.0), (0.0, 0.2), (0.0, -0.2)]:
        moved = score(exact + torch.tensor([mean, log_sd], dtype=torch.float64), episodes)
        gain = moved - best
        assert gain.mean() < -2 * gain.std() / 300**0.5
    gain = tasks.inferred_log_likelihood(index[:100], grid=10).mean(1) - best[:100]
    assert -0.1 < gain.mean() < -0.01


def test_draws_have_the_covariance_of_their_kernel() -> None:
    """With one length and scale: the mean product of two values by their distance."""
    tasks = GaussianProcesses(length=(0.5, 0.5), scale=(0.8, 0.8), n_support=(1, 1), n_query=1)
    episodes = tasks.episodes(torch.arange(60_000))
    near = (episodes.support.x - episodes.query.x).abs()[:, 0, 0].double()
    product = (episodes.support.y * episodes.query.y)[:, 0, 0].double()
    for low in (0.0, 0.4, 0.9):
        inside = (near >= low) & (near < low + 0.1)
        expected = 0.64 * torch.exp(-0.5 * (near[inside] / 0.5) ** 2)
        off = product[inside] - expected
        assert abs(off.mean()) < 5 * off.std() / inside.sum() ** 0.5
    values = episodes.query.y.double().flatten()
    assert values.var().item() == pytest.approx(0.64 + 0.02**2, rel=0.03)


def test_hyper_parameters_inputs_and_sizes_cover_their_ranges() -> None:
    many, tasks = torch.arange(5_000), GaussianProcesses(n_query=1)
    for drawn, (low, high) in zip(
        tasks.hyper(many), [(0.1, 0.6), (0.1, 1.0), (0.1, 0.5)], strict=True
    ):
        assert low <= drawn.min() < low + 0.01
        assert high - 0.01 < drawn.max() <= high
        assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=0.02)
    episodes = tasks.episodes(many)
    sizes = episodes.support.mask.sum(1)
    assert sizes.bincount()[3:].min() > 5_000 / 44 / 2
    assert (int(sizes.min()), int(sizes.max())) == (3, 46)
    padding = ~episodes.support.mask
    assert not episodes.support.x[padding].any()
    assert not episodes.support.y[padding].any()
    assert episodes.support.x.dtype == torch.get_default_dtype()
    assert -2 <= episodes.query.x.min() < -1.99
    assert 1.99 < episodes.query.x.max() <= 2


def test_an_episode_is_a_function_of_seed_split_and_number() -> None:
    tasks = GaussianProcesses(n_query=4)
    whole, later = tasks.episodes(SOME), tasks.episodes(SOME[5:7])
    assert_close(select(whole, slice(5, 7)), later, rtol=0, atol=0)
    assert_close(tasks.exact(SOME)[5:7], tasks.exact(SOME[5:7]))
    for other in (GaussianProcesses("meta_test", n_query=4), GaussianProcesses(n_query=4, seed=1)):
        assert not torch.allclose(other.episodes(SOME).query.y, whole.query.y)


def test_a_score_is_the_mean_over_queries_of_the_log_density() -> None:
    tasks = GaussianProcesses(n_query=6)
    query, outputs = select(tasks.episodes(SOME), 0).query, tasks.exact(SOME)[0]
    total = 0.0
    for q in range(6):
        mean, log_sd = outputs[q].tolist()
        off = (float(query.y[q, 0]) - mean) / math.exp(log_sd)
        total += -0.5 * off**2 - log_sd - 0.5 * math.log(2 * math.pi)
    assert float(log_likelihood(outputs, query)) == pytest.approx(total / 6)
    assert float(gaussian(outputs, query)) == pytest.approx(-total / 6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"split": "test"}, "unknown split"),
        ({"kernel": "linear"}, "unknown kernel"),
        ({"n_support": (0, 5)}, "n_support is"),
        ({"n_support": (6, 5)}, "n_support is"),
        ({"n_query": 0}, "n_query is 0"),
        ({"noise": 0.0}, "noise is 0.0"),
        ({"length": (0.0, 1.0)}, "the range of length"),
        ({"scale": (1.0, 0.5)}, "the range of scale"),
        ({"x": (0.0, math.inf)}, "the range of x"),
    ],
)
def test_bad_requests_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        GaussianProcesses(**settings)


def test_the_periodic_kernel_has_no_inferred_reference() -> None:
    with pytest.raises(InputError, match="Take rbf or matern52"):
        GaussianProcesses(kernel="periodic").inferred_log_likelihood(SOME)


@pytest.mark.parametrize("kernel", ["rbf", "periodic"])
def test_the_least_noise_can_be_drawn(kernel: str) -> None:
    """For the smoothest functions, at many points."""
    tasks = GaussianProcesses(kernel=kernel, n_support=(40, 46), length=(9.0, 9.0), noise=1e-5)
    drawn = tasks.episodes(torch.arange(20))
    assert drawn.query.y.isfinite().all()
    with pytest.raises(InputError, match=r"noise is 1e-06; expected a number from 1e-05 on"):
        GaussianProcesses(noise=1e-6)
