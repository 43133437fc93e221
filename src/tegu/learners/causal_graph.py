"""A causal graph of several variables, from interventions on unknown ones.

Ke, Bilaniuk, Goyal, Bauer, Larochelle, Pal, Bengio (2019), Learning neural causal
models from unknown interventions, arXiv:1910.01075. What is meta-learned:

    theta   a small network for each variable, given any set of parents
    gamma   (k, k); sigma(gamma[i, j]) is the belief that j is a direct cause of i

Phase 1 (`fit`): theta follows observational data, under graphs c drawn from sigma(gamma).
Phase 2 (`predict`): after an intervention, the variable whose log-likelihood fell most is
taken for the one that was changed. Phase 3 (`score`): graphs drawn from sigma(gamma) are
scored by the likelihoods L_i of all other variables, and gamma descends

    g[i, j] = sum_c (sigma(gamma[i, j]) - c[i, j]) L_i(c) / sum_c L_i(c)

plus regularisers against edges and against pairs of edges that point both ways.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from tegu import keys
from tegu.episodes import Episode, Examples
from tegu.errors import InputError, check_range
from tegu.inner import Params
from tegu.learners.learner import SCHEDULED, TRACKED, Learner, State, record

EDGES = "belief/edges"
USUAL = TRACKED + "likelihood"  # of each variable without an intervention
FITTING = "fitting"


def draw(gamma: Tensor, key: Tensor, n: int) -> Tensor:
    """n graphs (n, k, k), each edge there with probability sigma(gamma), none to itself."""
    k = len(gamma)
    uniform = keys.uniform(key, n * k * k).reshape(n, k, k).to(gamma)
    return (uniform < gamma.detach().sigmoid()).to(gamma) * _others(gamma)


def _others(like: Tensor) -> Tensor:
    """1 off the diagonal, 0 on it."""
    return 1 - torch.eye(len(like), dtype=like.dtype, device=like.device)


def parent_sets(k: int, device: torch.device | None = None) -> Tensor:
    """Every set of parents of every variable: (2^(k-1), k, k); row i of number b holds the
    bits of b, in the order of the other variables.

    Example:
        >>> parent_sets(2).tolist()
        [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]
    """
    numbers = torch.arange(1 << (k - 1), device=device)
    bits = (numbers[:, None] >> numbers[: k - 1]) & 1  # (2^(k-1), k-1)
    return bits[:, _place(k, device)] * (1.0 - torch.eye(k, device=device))


def _place(k: int, device: torch.device | None) -> Tensor:
    """[i, j] is the place of j among the variables other than i; anything on the diagonal."""
    every = torch.arange(k, device=device)
    return (every - (every > every[:, None]).long()).clamp(max=k - 2)


def number_of(graphs: Tensor) -> Tensor:
    """Which of `parent_sets` each variable of each graph has: (G, k, k) to (G, k) int64."""
    return (graphs.long() << _place(graphs.shape[-1], graphs.device)).sum(-1)


def regret(gamma: Tensor, graphs: Tensor, scores: Tensor) -> Tensor:
    """Minus the log of the mean likelihood over graphs, for each variable.

    Its gradient by gamma is the estimate g above: with log P(c) the log-probability of
    variable i's parents, exp(log P - detached log P) is 1 with the gradient of log P,
    which is c - sigma(gamma).

    Args:
        gamma: (k, k).
        graphs: (G, k, k) drawn from it.
        scores: (G, k), log L_i(c) up to a constant of i.

    Returns:
        Shape (k,).
    """
    each = graphs * logsigmoid(gamma) + (1 - graphs) * logsigmoid(-gamma)
    logp = (each * _others(gamma)).sum(-1)  # (G, k)
    terms = scores.detach() + logp - logp.detach()
    return math.log(len(graphs)) - terms.logsumexp(0)


def sparsity(gamma: Tensor) -> Tensor:
    """Expected number of edges."""
    return (gamma.sigmoid() * _others(gamma)).sum()


def cyclicity(gamma: Tensor) -> Tensor:
    """Sum over pairs of cosh(sigma(gamma_ij) sigma(gamma_ji)) - 1: 0 without cycles of two."""
    belief = gamma.sigmoid()
    return ((belief * belief.T).cosh() - 1).tril(-1).sum()


@dataclass(frozen=True, kw_only=True)
class CausalGraph(Learner):
    """Graph and mechanisms of one world, over episodes that are an intervention each.

    An episode's support set are rows after an intervention on one variable, its query set
    while meta-training rows without (`tegu.datasets.CausalGraphs`; `tegu.graphs.TableTasks`
    for a table of yours). The model answers as `tegu.models.MaskedMlps` does.

    A state is which variable was changed, how its categories are distributed now, and a
    sample of graphs. With it `predict` gives the log-likelihood of each variable of a query
    that comes after the same intervention, (Q, k), likelihoods averaged over the graphs.

    Args:
        graphs: drawn in each episode to find the target, and to score.
        fit_graphs: drawn in each episode to fit theta.
        evidence: rows that an episode's mean log-likelihood counts for in L_i.
        margin: nats by which the likeliest target's log-likelihood must have fallen deeper
            than any other's, or the episode says nothing about the graph.
        sparse: weight of `sparsity`.
        acyclic: weight of `cyclicity`.
        rounds: how often fitting and scoring alternate.
        fitting: share of each round that fits.
        belief_rate: gamma's step size in units of theta's (Adam makes steps of the same
            size of any gradient).
        bound: gamma stays within plus and minus this.

    Reference:
        arXiv:1910.01075, section 3, and the code published with it. Differs from these:
        a fall is measured from the usual log-likelihood of a variable, a running mean,
        where the code takes the lowest log-likelihood; episodes without a plain target are
        left out, since a wrong one speaks strongly for edges turned round; the regulariser
        against cycles is far stronger (10, where the code's README has 0.5), since a
        variable's children predict it as well as its parents do; the graphs that score are
        the graphs that found the target; L_i is that of one episode's rows, where the code
        weighs ten batches of an episode; a changed variable's own row of gamma gets no
        gradient at all; gamma is bound by a tanh, not cut off; one Adam moves theta and
        gamma, so that the first steps of a phase carry on the last one's; its rate for gamma is
        `belief_rate` times that for theta, where the code's is a tenth of it; gamma begins at 0,
        the code's at random within 0.1; batches there have 256 rows.
    """

    name: ClassVar[str] = "causal-graph"
    targets: ClassVar[tuple[str, ...]] = ("samples",)
    start: ClassVar[Mapping[str, Any]] = {
        "train.outer_lr": 0.02,
        "train.meta_batch": 8,
        "train.n_shot": 64,
        "train.n_query": 64,
    }

    graphs: int = 32
    fit_graphs: int = 4
    evidence: float = 30.0
    margin: float = 0.1
    sparse: float = 0.1
    acyclic: float = 10.0
    rounds: int = 2
    fitting: float = 0.5
    belief_rate: float = 5.0
    bound: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("graphs", 2), ("fit_graphs", 1), ("rounds", 1)):
            check_range(name, getattr(self, name), least)
        for name in ("evidence", "belief_rate", "bound"):
            check_range(name, getattr(self, name), above=0)
        for name in ("margin", "sparse", "acyclic"):
            check_range(name, getattr(self, name), 0)
        check_range("fitting", self.fitting, 0, 1, todo="Write 0.5, say.")
        if not (hasattr(self.model, "variables") and hasattr(self.model, "n_categories")):
            raise InputError(
                f"{type(self.model).__name__} as the model of a causal graph",
                "a network of each variable given any set of parents",
                "Take tegu.models.MaskedMlps; in a recipe model.name=masked-mlps.",
            )

    def init(self) -> Params:
        own = super().init()
        some = next(iter(own.values()))
        k = self.variables
        return {**own, EDGES: some.new_zeros(k, k), USUAL: some.new_zeros(k)}

    @property
    def variables(self) -> int:
        """k."""
        model: Any = self.model
        return int(model.variables)

    @property
    def categories(self) -> int:
        """N."""
        model: Any = self.model
        return int(model.n_categories)

    def schedule(self, done: float) -> Params:
        """Phase 1 in the first part of each round."""
        first = done * self.rounds % 1 < self.fitting
        return {FITTING: torch.ones(())} if first else {}

    def gamma(self, params: Params) -> Tensor:
        """gamma (k, k), within the bound."""
        return self.bound * torch.tanh(params[EDGES] * (self.belief_rate / self.bound))

    def belief(self, params: Params) -> Tensor:
        """sigma(gamma) (k, k): row i, column j for j causing i; 0 on the diagonal."""
        gamma = self.gamma(params)
        return gamma.sigmoid() * _others(gamma)

    def likelihood(self, params: Params, x: Tensor, graphs: Tensor) -> Tensor:
        """Log-likelihood of each variable of each row: (S, k) and (G, k, k) to (G, S, k)."""
        out: Tensor = self.call("forward", params, x, graphs)
        return out

    def _scores(self, params: Params, examples: Examples, graphs: Tensor) -> Tensor:
        """`_means` of many graphs without a gradient.

        A variable's log-likelihood hangs on its own parents alone. Where there are fewer
        sets of parents than graphs, each set is looked at once.
        """
        params = {name: p.detach() for name, p in params.items()}
        k = self.variables
        if 1 << (k - 1) >= len(graphs):
            return self._means(params, examples, graphs)
        sets = parent_sets(k, graphs.device).to(graphs.dtype)
        return self._means(params, examples, sets).gather(0, number_of(graphs))

    def _means(self, params: Params, examples: Examples, graphs: Tensor) -> Tensor:
        """Mean log-likelihoods over real rows (G, k)."""
        weight = examples.mask.to(graphs)[:, None]
        values = self.likelihood(params, examples.x, graphs) * weight
        return values.sum(1) / weight.sum().clamp(min=1)

    def target(self, params: Params, means: Tensor) -> tuple[Tensor, Tensor]:
        """Phase 2: the variable whose log-likelihood fell most, and whether that is plain.

        Args:
            params: with what the log-likelihoods usually are.
            means: (G, k) after the intervention.

        Returns:
            One-hot (k,); and 1 where it fell `margin` deeper than any other, else 0 (0-d).
        """
        fall = params[USUAL] - means.mean(0)
        first, second = fall.topk(2).values
        hit = one_hot(fall.argmax(), self.variables).to(means)
        return hit, (first - second >= self.margin).to(means)

    def begin(self, params: Params, support: Examples, key: Tensor, *, training: bool) -> State:
        graphs = draw(self.gamma(params), keys.fold(key, 1), self.graphs)
        target, _ = self.target(params, self._scores(params, support, graphs))
        value = support.x @ target  # of the changed variable
        places = torch.arange(self.categories, device=value.device)
        member = (value[:, None] == places).to(value)
        counts = (member * support.mask.to(value)[:, None]).sum(0) + 1  # one of each seen before
        return {"target": target, "distribution": counts / counts.sum(), "graphs": graphs}

    def predict(self, params: Params, state: State, query: Tensor, mask: Tensor) -> Tensor:
        values = self.likelihood(params, query, state["graphs"])  # (G, Q, k)
        mean = values.logsumexp(0) - math.log(len(values))
        target, logs = state["target"], state["distribution"].log()
        chosen = (query @ target)[:, None] == torch.arange(len(logs), device=query.device)
        changed = (chosen.to(logs) * logs).sum(-1, keepdim=True)
        return torch.where(target > 0.5, changed, mean)

    def outer_loss(self, params: Params, episode: Episode, key: Tensor) -> Tensor:
        """Phase 1: minus the log-likelihood of the query set. Phases 2 and 3: the regret."""
        gamma = self.gamma(params)
        graphs = draw(gamma, keys.fold(key, 2), self.fit_graphs)
        usual = self._means(params, episode.query, graphs).mean(0)
        record({USUAL: usual})
        if SCHEDULED + FITTING in params:
            return -usual.sum()
        graphs = draw(gamma, keys.fold(key, 1), self.graphs)
        means = self._scores(params, episode.support, graphs)
        target, plain = self.target(params, means)
        lost = regret(gamma, graphs, self.evidence * means)
        found = plain * (lost * (1 - target)).sum()
        return found + self.sparse * sparsity(gamma) + self.acyclic * cyclicity(gamma)
