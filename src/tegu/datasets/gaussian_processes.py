"""Draws from Gaussian processes, and what the process itself predicts: an exact reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tegu import keys
from tegu.datasets.splits import check_split
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range, unknown


class Hyper(NamedTuple):
    """Hyper-parameters of a kernel, each of shape (T,), float64.

    Attributes:
        length: length scale, in the unit of x; of the periodic kernel, without unit.
        scale: standard deviation of the function.
        period: of the periodic kernel, in the unit of x.
    """

    length: Tensor
    scale: Tensor
    period: Tensor


def rbf(distance: Tensor, hyper: Hyper) -> Tensor:
    """Covariance exp(-d^2 / 2 l^2) times scale^2 for distances (T, A, B)."""
    d = distance / _wide(hyper.length)
    return _wide(hyper.scale).square() * torch.exp(-0.5 * d.square())


def matern52(distance: Tensor, hyper: Hyper) -> Tensor:
    """Covariance (1 + r + r^2 / 3) exp(-r) times scale^2, with r = sqrt(5) |d| / l."""
    r = math.sqrt(5.0) * distance.abs() / _wide(hyper.length)
    return _wide(hyper.scale).square() * (1 + r + r.square() / 3) * torch.exp(-r)


def periodic(distance: Tensor, hyper: Hyper) -> Tensor:
    """Covariance exp(-2 sin^2(pi d / p) / l^2) times scale^2."""
    wave = torch.sin(math.pi * distance / _wide(hyper.period)) / _wide(hyper.length)
    return _wide(hyper.scale).square() * torch.exp(-2.0 * wave.square())


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None]


LEAST_NOISE = 1e-5  # of the scale: what float64 can factor among neighbours that are alike
Kernel = Callable[[Tensor, Hyper], Tensor]
KERNELS: dict[str, Kernel] = {"rbf": rbf, "matern52": matern52, "periodic": periodic}


class Posterior(NamedTuple):
    """What a Gaussian process says of queries after some observations.

    Attributes:
        mean: shape (T, Q).
        sd: shape (T, Q), of each query's observation, noise included, by itself.
        log_evidence: shape (T,), log density of the observations.
    """

    mean: Tensor
    sd: Tensor
    log_evidence: Tensor


def posterior(
    x: Tensor, y: Tensor, mask: Tensor, query: Tensor, kernel: Kernel, hyper: Hyper, noise: float
) -> Posterior:
    """Exact predictive of T processes on one input, by Cholesky factors.

    Args:
        x, y: observations, shape (T, S), float64.
        mask: shape (T, S), False where a row only pads.
        query: shape (T, Q), float64.
        kernel: of a distance and hyper-parameters.
        hyper: of each process.
        noise: standard deviation of an observation about the function, above 0.

    Reference:
        Rasmussen, Williams (2006), Gaussian processes for machine learning,
        algorithm 2.1, with the noise added to the predictive variance.
    """
    both = mask[:, :, None] & mask[:, None, :]
    among = kernel(x[:, :, None] - x[:, None, :], hyper) * both
    # A padding row is an observation of nothing: variance 1, value 0, no covariance.
    own = torch.where(mask, noise**2, 1.0).to(x)
    factor = torch.linalg.cholesky(among + torch.diag_embed(own))
    cross = kernel(x[:, :, None] - query[:, None, :], hyper) * mask[:, :, None]  # (T, S, Q)
    right = torch.cat([cross, (y * mask)[:, :, None]], -1)
    solved = torch.linalg.solve_triangular(factor, right, upper=False)
    half, white = solved[:, :, :-1], solved[:, :, -1:]
    variance = hyper.scale.square()[:, None] - half.square().sum(1) + noise**2
    logs = factor.diagonal(dim1=1, dim2=2).log() * mask
    rows = mask.sum(1)
    evidence = -0.5 * white.square().sum((1, 2)) - logs.sum(1) - 0.5 * rows * math.log(2 * math.pi)
    return Posterior((half * white).sum(1), variance.sqrt(), evidence)


def _log_density(y: Tensor, of: Posterior) -> Tensor:
    return -0.5 * ((y - of.mean) / of.sd).square() - of.sd.log() - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianProcesses:
    """Tasks that are functions drawn from a Gaussian process, hyper-parameters included.

    Each episode draws a length scale and an output scale, then a function, which is observed at
    uniformly random inputs with noise. Support sizes differ from episode to episode.

    Args:
        split: "meta_train", "meta_val" or "meta_test"; their functions differ.
        n_support: fewest and most support points; an episode's number is drawn between
            them, both included, and the support set is padded to the most.
        n_query: query points.
        seed: of the whole sequence of episodes.
        kernel: "rbf", "matern52" or "periodic".
        length: range of the length scale.
        scale: range of the function's standard deviation.
        period: range of the periodic kernel's period.
        noise: standard deviation of an observation about the function.
        x: range of inputs.

    Raises:
        InputError: an unknown split or kernel, a count below 1, a noise below
            `LEAST_NOISE` of the largest scale, or a range that is not two finite numbers in order.

    Reference:
        Defaults are those of Nguyen and Grover (2022), arXiv:2207.04179, as its published
        code has them (from Lee et al. 2020, arXiv:2008.02956). Differs from them: the
        support size is drawn for each episode rather than for each batch, and the number of
        queries is fixed rather than drawn.

    Example:
        >>> batch = GaussianProcesses(n_support=(3, 5)).episodes(torch.arange(4))
        >>> batch.support.x.shape, batch.support.mask.sum(1).tolist()
        (torch.Size([4, 5, 1]), [5, 3, 3, 5])
    """

    split: str = "meta_train"
    n_support: tuple[int, int] = (3, 46)
    n_query: int = 32
    seed: int = 0
    _: KW_ONLY
    kernel: str = "rbf"
    length: tuple[float, float] = (0.1, 0.6)
    scale: tuple[float, float] = (0.1, 1.0)
    period: tuple[float, float] = (0.1, 0.5)
    noise: float = 0.02
    x: tuple[float, float] = (-2.0, 2.0)

    def __post_init__(self) -> None:
        check_split(self.split)
        if self.kernel not in KERNELS:
            raise unknown("kernel", self.kernel, KERNELS)
        if not 1 <= self.n_support[0] <= self.n_support[1]:
            raise InputError(
                f"n_support is {self.n_support}",
                "the fewest and the most support points, 1 or more",
                "Write n_support=(3, 46), say.",
            )
        check_range("n_query", self.n_query, 1)
        for name in ("length", "scale", "period", "x"):
            low, high = getattr(self, name)
            least = -math.inf if name == "x" else 0.0
            if not (least < low <= high < math.inf):
                raise InputError(
                    f"the range of {name} is {(low, high)}",
                    "two finite numbers, the lower first" + (", above 0" if least == 0 else ""),
                    f"Pass {name}=(low, high).",
                )
        if not (least := LEAST_NOISE * self.scale[1]) <= self.noise < math.inf:
            raise InputError(
                f"noise is {self.noise}",
                f"a number from {least:g} on, {LEAST_NOISE:g} of the largest scale",
                "Write 0.02, say: without noise nothing exact can be computed.",
            )

    def _keys(self, index: Tensor) -> Tensor:
        return keys.fold(keys.key(self.seed, "gp", self.split, device=index.device), index)

    def hyper(self, index: Tensor) -> Hyper:
        """The hyper-parameters of episodes `index`, shape (T,)."""
        at = self._keys(index)
        ranges = (self.length, self.scale, self.period)
        return Hyper(
            *(keys.uniform(keys.fold(at, i), 1, *r)[:, 0] for i, r in enumerate(ranges, 1))
        )

    def _draws(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs and observations (T, S + Q), support first, and the support's mask, in float64."""
        at, most = self._keys(index), self.n_support[1]
        sizes = self.n_support[0] + (
            keys.uniform(keys.fold(at, 4), 1, 0.0, most - self.n_support[0] + 1.0).long()
        )
        mask = torch.arange(most, device=index.device) < sizes
        rows = most + self.n_query
        x = keys.uniform(keys.fold(at, 5), rows, *self.x)
        covariance = KERNELS[self.kernel](x[:, :, None] - x[:, None, :], self.hyper(index))
        noise = self.noise**2 * torch.eye(rows, dtype=x.dtype, device=x.device)
        normal = keys.normal(keys.fold(at, 6), rows)
        y = (torch.linalg.cholesky(covariance + noise) @ normal[:, :, None])[:, :, 0]
        return x, y, mask

    def episodes(self, index: Tensor) -> Episode:
        """Episodes number `index`, shape (T,) int64, as one batch on its device.

        Returns:
            Inputs and targets of shape (T, S, 1) and (T, Q, 1), default dtype; support rows
            beyond an episode's own number are zero and masked.
        """
        (x, y, mask), most = self._draws(index), self.n_support[1]
        dtype = torch.get_default_dtype()
        x, y = (values.unsqueeze(-1).to(dtype) for values in (x, y))
        real = mask.unsqueeze(-1)
        support = Examples(x[:, :most] * real, y[:, :most] * real, mask)
        asked = torch.ones(y[:, most:, 0].shape, dtype=torch.bool, device=index.device)
        return Episode(support, Examples(x[:, most:], y[:, most:], asked))

    def exact(self, index: Tensor) -> Tensor:
        """What the process that drew episodes `index` predicts, with their true hyper-parameters.

        Each query by itself, as neural processes predict it: its own mean and standard
        deviation, noise included, and no correlation with other queries.

        Returns:
            Shape (T, Q, 2), float64: mean beside log standard deviation, as
            `tegu.losses.gaussian` takes them. No learner's expected log-likelihood is higher.
        """
        x, y, mask = self._draws(index)
        found = self._posterior(x, y, mask, self.hyper(index))
        return torch.stack([found.mean, found.sd.log()], -1)

    def inferred_log_likelihood(self, index: Tensor, *, grid: int = 20) -> Tensor:
        """Log-likelihood of the queries, hyper-parameters not known but inferred.

        The predictives of a grid of length and output scales (midpoints over their ranges),
        weighted by the evidence for each: what the best learner would reach, which knows
        how tasks are drawn and sees the support set, but is not told hyper-parameters. Not for
        the periodic kernel, which has one more.

        Returns:
            Shape (T, Q), float64, nats.
        """
        if self.kernel == "periodic":
            raise InputError(
                "inferred hyper-parameters of the periodic kernel",
                "a kernel with two of them",
                "Take rbf or matern52.",
            )
        (x, y, mask), most = self._draws(index), self.n_support[1]
        along = (torch.arange(grid, dtype=x.dtype, device=x.device) + 0.5) / grid
        found, weights = [], []
        ones = x.new_ones(len(x))
        for length in self.length[0] + (self.length[1] - self.length[0]) * along:
            for scale in self.scale[0] + (self.scale[1] - self.scale[0]) * along:
                one = self._posterior(x, y, mask, Hyper(length * ones, scale * ones, ones))
                found.append(_log_density(y[:, most:], one))
                weights.append(one.log_evidence)
        share = torch.stack(weights).log_softmax(0)[:, :, None]
        return (torch.stack(found) + share).logsumexp(0)

    def _posterior(self, x: Tensor, y: Tensor, mask: Tensor, hyper: Hyper) -> Posterior:
        most, kernel = self.n_support[1], KERNELS[self.kernel]
        return posterior(x[:, :most], y[:, :most], mask, x[:, most:], kernel, hyper, self.noise)
