"""A causal graph's belief: against enumeration of all graphs, plain loops and numbers by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tegu import keys
from tegu.datasets import CausalGraphs
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select
from tegu.errors import InputError
from tegu.learners import CausalGraph
from tegu.learners.causal_graph import (
    EDGES,
    FITTING,
    USUAL,
    cyclicity,
    draw,
    number_of,
    parent_sets,
    regret,
    sparsity,
)
from tegu.learners.learner import SCHEDULED
from tegu.models import MaskedMlps

GAMMA = torch.tensor([[0.0, 0.7, -1.1], [-0.4, 0.0, 1.3], [0.2, -0.9, 0.0]], dtype=torch.float64)


def graphs_of(k: int) -> Tensor:
    """All graphs without edges to oneself: (2^(k(k-1)), k, k)."""
    pairs = [(i, j) for i in range(k) for j in range(k) if i != j]
    every = torch.zeros(1 << len(pairs), k, k, dtype=torch.float64)
    for number, bits in enumerate(itertools.product((0.0, 1.0), repeat=len(pairs))):
        for (i, j), bit in zip(pairs, bits, strict=True):
            every[number, i, j] = bit
    return every


def probability(gamma: Tensor, graphs: Tensor) -> Tensor:
    """P(graph) by a plain product: (G,)."""
    belief, out = gamma.sigmoid(), []
    for one in graphs:
        p = gamma.new_ones(())
        for i, j in itertools.permutations(range(len(gamma)), 2):
            p = p * (belief[i, j] if one[i, j] else 1 - belief[i, j])
        out.append(p)
    return torch.stack(out)


def scores_of(graphs: Tensor) -> Tensor:
    """Some log-likelihoods that hang on a variable's own parents: (G, k)."""
    k = graphs.shape[-1]
    weight = torch.linspace(-1.0, 1.5, k * k, dtype=torch.float64).reshape(k, k)
    linear = (graphs * weight).sum(-1)
    return linear - 0.8 * linear.square()


def gradient(gamma: Tensor, graphs: Tensor) -> Tensor:
    """By autograd of the summed regret."""
    gamma = gamma.clone().requires_grad_()
    (found,) = torch.autograd.grad(regret(gamma, graphs, scores_of(graphs)).sum(), gamma)
    return found


def test_the_gradient_is_the_published_estimate() -> None:
    """g_ij = sum_c (sigma_ij - c_ij) L_i(c) / sum_c L_i(c), number by number."""
    graphs = draw(GAMMA, keys.key(2), 7)
    likelihood, belief = scores_of(graphs).exp(), GAMMA.sigmoid()
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for i, j in itertools.permutations(range(3), 2):
        above = sum(
            (belief[i, j] - c[i, j]) * n[i] for c, n in zip(graphs, likelihood, strict=True)
        )
        expected[i, j] = above / sum(n[i] for n in likelihood)
    torch.testing.assert_close(gradient(GAMMA, graphs), expected)


def test_the_estimate_has_the_enumerated_expectation() -> None:
    """Two draws a time: the mean over 60,000 keys against all pairs of graphs of two variables."""
    gamma = GAMMA[:2, :2]
    every = graphs_of(2)
    p = probability(gamma, every)
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for a, b in itertools.product(range(len(every)), repeat=2):
        expected += p[a] * p[b] * gradient(gamma, every[[a, b]])
    at = keys.fold(keys.key(5), torch.arange(60_000))
    drawn = torch.func.vmap(lambda key: draw(gamma, key, 2))(at)
    found = torch.func.vmap(
        torch.func.grad(lambda g, c: regret(g, c, scores_of(c)).sum()), (None, 0)
    )(gamma, drawn)
    error = found.std(0) / len(at) ** 0.5
    assert bool(((found.mean(0) - expected).abs() <= 4 * error).all())
    assert float(expected.abs().max()) > 20 * float(error.max())


def test_many_draws_give_the_gradient_of_the_marginal_likelihood() -> None:
    """- log sum over all 64 graphs of P(c) L_i(c), by autograd, for three variables."""
    gamma, every = GAMMA.clone().requires_grad_(), graphs_of(3)
    total = probability(gamma, every) @ scores_of(every).exp()
    (expected,) = torch.autograd.grad(-total.log().sum(), gamma)
    found = gradient(GAMMA, draw(GAMMA, keys.key(1), 200_000))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    assert float(expected.abs().max()) > 0.1


def test_the_regret_is_the_marginal_surprise() -> None:
    graphs = graphs_of(3)
    found = regret(torch.zeros(3, 3).double(), graphs, scores_of(graphs))
    expected = -scores_of(graphs).exp().mean(0).log()
    torch.testing.assert_close(found, expected)


def test_drawn_edges_have_the_believed_probabilities() -> None:
    shares = draw(GAMMA, keys.key(3), 40_000).mean(0)
    off = 1 - torch.eye(3).double()
    assert float((shares - GAMMA.sigmoid() * off).abs().max()) < 0.012
    assert not shares.diagonal().any()


def test_every_set_of_parents_by_its_number() -> None:
    for k in (2, 3, 4):
        sets, graphs = parent_sets(k), graphs_of(k)[:: 1 + k]
        numbers = number_of(graphs)
        for one, row in zip(graphs, numbers, strict=True):
            for i in range(k):
                torch.testing.assert_close(sets[row[i], i].double(), one[i])
        assert len({tuple(x.flatten().tolist()) for x in sets}) == 1 << (k - 1)


def test_regularisers_by_hand() -> None:
    """Beliefs 0.5 and 0.25 on one pair, 0.75 alone on another."""
    belief = torch.tensor([[0.5, 0.5, 1e-9], [0.25, 0.5, 1e-9], [1e-9, 0.75, 0.5]]).double()
    gamma = belief.logit()
    assert float(sparsity(gamma)) == pytest.approx(1.5)
    assert float(cyclicity(gamma)) == pytest.approx(math.cosh(0.125) - 1, abs=1e-9)
    slope = torch.func.grad(cyclicity)(gamma)[0, 1]
    assert float(slope) == pytest.approx(math.sinh(0.125) * 0.25 * 0.5 * 0.5, abs=1e-9)


class Table(nn.Module):
    """Three binary variables, 0 -> 1 -> 2: a child equals its parent with probability 0.9."""

    def __init__(self) -> None:
        super().__init__()
        self.variables, self.n_categories = 3, 2
        self.sharp = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))

    def forward(self, x: Tensor, graphs: Tensor) -> Tensor:
        out = []
        for graph in graphs:
            columns = []
            for i in range(3):
                known = graph[i, i - 1] if i else graph.new_zeros(())
                same = (x[:, i] == x[:, i - 1]).to(x)
                given = same * self.sharp + (1 - same) * (1 - self.sharp)
                columns.append((known * given + (1 - known) * 0.5).log())
            out.append(torch.stack(columns, 1))
        return torch.stack(out)


def toy(**settings: object) -> tuple[CausalGraph, dict[str, Tensor]]:
    learner = CausalGraph(model=Table(), **settings)  # type: ignore[arg-type]
    params = learner.init()
    sure = torch.full((3, 3), -100.0).double()
    sure[1, 0] = sure[2, 1] = 100.0
    usual = 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    return learner, {
        **params,
        EDGES: sure,
        USUAL: torch.tensor([math.log(0.5), usual, usual]).double(),
    }


def test_the_changed_variable_is_found() -> None:
    """1 no longer follows 0, while 2 still follows 1."""
    first = torch.tensor([0, 1] * 20).double()
    second = torch.tensor([0, 0, 1, 1] * 10).double()
    x = torch.stack([first, second, second], 1)
    examples = Examples.dense(x, torch.zeros(40).long())
    learner, params = toy()
    state = learner.adapt(params, examples, keys.key(0))
    assert state["target"].tolist() == [0, 1, 0]
    torch.testing.assert_close(state["distribution"], torch.tensor([0.5, 0.5]).double())
    means = learner._means(params, examples, state["graphs"])
    fall = params[USUAL] - means.mean(0)
    params = {**params, USUAL: params[USUAL] + torch.tensor([0.5, 0.0, 0.2]).double()}
    fall = params[USUAL] - means.mean(0)
    gap = float(fall[1] - fall[0])
    assert float(fall[0]) > 0.4  # so that the runner-up counts
    for margin, plain in ((gap - 0.01, 1.0), (gap + 0.01, 0.0)):
        _, found = replace(learner, margin=margin).target(params, means)
        assert float(found) == plain


def test_an_episode_without_a_plain_target_moves_no_belief_by_its_rows() -> None:
    x = torch.zeros(8, 3).double()
    half = Examples.dense(x, torch.zeros(8).long())
    learner, params = toy(margin=50.0, sparse=0.0, acyclic=0.0)
    params = {**params, EDGES: torch.zeros(3, 3).double()}
    engine = Vectorised(learner)
    batch = Episode(*(Examples(*(field[None] for field in half)) for half in (half, half)))
    at = keys.key(0)[None]
    assert not engine.outer_gradient(params, batch, at)[0][EDGES].any()
    engine = Vectorised(replace(learner, margin=0.0))
    assert engine.outer_gradient(params, batch, at)[0][EDGES].any()


@pytest.fixture
def episode() -> Episode:
    world = CausalGraphs(n_shot=7, n_query=6, family="chain")
    found = select(world.episodes(torch.arange(1)), 0)
    return Episode(*(half._replace(x=half.x.double()) for half in found))


@pytest.fixture
def learner() -> CausalGraph:
    model = MaskedMlps(3, 3, hidden=4).double()
    return CausalGraph(model=model, graphs=3, fit_graphs=2, margin=0.0)


@pytest.fixture
def params(learner: CausalGraph) -> dict[str, Tensor]:
    usual = torch.tensor([-1.0, -0.9, -0.8]).double()
    return {**learner.init(), EDGES: GAMMA / 5, USUAL: usual}


def test_fitting_is_the_likelihood_of_the_query_rows(
    learner: CausalGraph, params: dict[str, Tensor], episode: Episode
) -> None:
    """Under drawn graphs; its gradient by plain autograd; gamma has none."""
    staged = {**params, SCHEDULED + FITTING: torch.ones(())}
    grads = torch.func.grad(learner.outer_loss)(staged, episode, keys.key(4))
    graphs = draw(learner.gamma(params), keys.fold(keys.key(4), 2), 2)
    model = learner.model
    loss = -sum(model(episode.query.x, graphs[[g]]).sum() for g in range(2)) / (2 * 6)
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)
    assert not grads[EDGES].any()


def test_scoring_in_a_plain_loop(
    learner: CausalGraph, params: dict[str, Tensor], episode: Episode
) -> None:
    """Loss and gradient of gamma from the paper's steps; theta has none."""
    key = keys.key(4)
    grads, loss = torch.func.grad_and_value(learner.outer_loss)(params, episode, key)
    edges = params[EDGES].clone().requires_grad_()
    gamma = 5 * torch.tanh(edges)
    graphs = draw(gamma, keys.fold(key, 1), 3)
    with torch.no_grad():
        means = torch.stack([learner.model(episode.support.x, g[None])[0].mean(0) for g in graphs])
        target = int((params[USUAL] - means.mean(0)).argmax())
        likelihood, belief = (30 * means).exp(), gamma.sigmoid()
        estimate, value = torch.zeros(3, 3).double(), 0.0
        for i in range(3):
            if i == target:
                continue
            value -= math.log(float(likelihood[:, i].mean()))
            for j in range(3):
                if i != j:
                    weights = likelihood[:, i] / likelihood[:, i].sum()
                    estimate[i, j] = ((belief[i, j] - graphs[:, i, j]) * weights).sum()
    penalty = torch.zeros(()).double()
    for i, j in itertools.combinations(range(3), 2):
        a, b = gamma[i, j].sigmoid(), gamma[j, i].sigmoid()
        penalty = penalty + 0.1 * (a + b) + 10 * (torch.cosh(a * b) - 1)
    ((gamma * estimate).sum() + penalty).backward()
    torch.testing.assert_close(grads[EDGES], edges.grad)
    torch.testing.assert_close(loss, value + penalty.detach())
    assert not any(grads[name].any() for name, _ in learner.model.named_parameters())


def test_scores_by_set_of_parents_are_those_by_graph(
    learner: CausalGraph, params: dict[str, Tensor], episode: Episode
) -> None:
    graphs = draw(GAMMA, keys.key(1), 20)
    found = learner._scores(params, episode.support, graphs)
    torch.testing.assert_close(found, learner._means(params, episode.support, graphs).detach())


def test_answers_in_a_plain_loop(
    learner: CausalGraph, params: dict[str, Tensor], episode: Episode
) -> None:
    """Mean likelihood over the state's graphs; of the target the smoothed share of its category."""
    with torch.no_grad():
        state = learner.adapt(params, episode.support, keys.key(9))
        query = episode.query
        found = learner.predict(params, state, query.x, query.mask)
        target = int(state["target"].argmax())
        seen = episode.support.x[:, target].tolist()
        for q, row in enumerate(query.x):
            for i in range(3):
                each = [learner.model(row[None], g[None])[0, 0, i].exp() for g in state["graphs"]]
                expected = float(sum(each) / len(each))
                if i == target:
                    expected = (seen.count(float(row[i])) + 1) / (len(seen) + 3)
                assert float(found[q, i].exp()) == pytest.approx(expected)


def test_what_is_usual_is_a_running_mean(
    learner: CausalGraph, params: dict[str, Tensor], episode: Episode
) -> None:
    batch = Episode(*(Examples(*(field[None] for field in half)) for half in episode))
    engine, at = Vectorised(learner), keys.key(4)[None]
    new, _, _ = engine.update(params, engine.outer_state(params), batch, at, outer_lr=0.1, done=0.0)
    graphs = draw(learner.gamma(params), keys.fold(at[0], 2), 2)
    now = learner.model(episode.query.x, graphs).mean((0, 1)).detach()
    torch.testing.assert_close(new[USUAL], 0.9 * params[USUAL] + 0.1 * now)


def test_phases_alternate(learner: CausalGraph) -> None:
    shares = [0.0, 0.2, 0.3, 0.49, 0.5, 0.7, 0.8, 0.99]
    fits = [bool(learner.schedule(done)) for done in shares]
    assert fits == [True, True, False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"graphs": 1}, "graphs is 1"),
        ({"fitting": 1.5}, "fitting is 1.5"),
        ({"model": nn.Linear(2, 2)}, "Linear as the model"),
    ],
)
def test_refused_settings(settings: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        CausalGraph(**{"model": MaskedMlps(3, 3), **settings})  # type: ignore[arg-type]
