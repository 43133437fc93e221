"""Neural processes: networks against loops over points, the bound, and what is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

import tegu
from tegu import keys
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select, size
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Anp, Cnp, Learner, Maml, Np, Process, Tnp
from tegu.learners.latentnp import divergence
from tegu.losses import gaussian, log_likelihood
from tegu.models import Mlp, NeuralProcess, TransformerProcess

HEADS, LEAST = 2, 0.01
KEYS = keys.fold(keys.key(1, "processes"), torch.arange(3))


def network(**settings: Any) -> nn.Module:
    return NeuralProcess(2, 2, width=6, heads=HEADS, encoder_layers=3, **settings).double()


def transformer(**settings: Any) -> nn.Module:
    return TransformerProcess(2, 2, width=6, heads=HEADS, layers=3, hidden=5, **settings).double()


MAKE: dict[str, Callable[[], Process]] = {
    "cnp": lambda: Cnp(model=network(path="mean")),
    "cnp, self-attention": lambda: Cnp(model=network(path="mean", self_attention=True)),
    "cnp, attention": lambda: Cnp(model=network(path="attention")),
    "np": lambda: Np(model=network(path="", latent=3), samples=4),
    "np, waves": lambda: Np(model=network(path="", latent=3, frequencies=2), samples=4),
    "cnp, attention, waves": lambda: Cnp(model=network(path="attention", frequencies=2)),
    "anp": lambda: Anp(model=network(path="attention", latent=3, self_attention=True), samples=4),
    "tnp": lambda: Tnp(model=transformer()),
    "tnp, waves": lambda: Tnp(model=transformer(frequencies=3)),
}


@pytest.fixture(params=MAKE)
def learner(request: pytest.FixtureRequest) -> Process:
    return MAKE[request.param]()


@pytest.fixture
def episodes() -> Episode:
    """Three episodes of 5, 4 and 2 support points and three queries, two numbers to two."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(2, 3, 8, 2, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [4], [2]])
    asked = torch.tensor([[True, True, True], [True, True, True], [True, False, True]])
    return Episode(Examples(x[:, :5], y[:, :5], mask), Examples(x[:, 5:], y[:, 5:], asked))


# The networks again, a point at a time.


def layers(params: Params, name: str, value: Tensor) -> Tensor:
    """Dense layers NAME.0, NAME.2 and so on, with ReLU between them."""
    numbers = sorted(int(k.split(".")[-2]) for k in params if k.startswith(f"{name}."))
    for i in sorted(set(numbers)):
        if i:
            value = value.clamp(min=0)
        value = params[f"{name}.{i}.weight"] @ value + params[f"{name}.{i}.bias"]
    return value


def looked(query: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One query attends to keys and values, head by head."""
    width, parts = len(query) // HEADS, []
    for h in range(HEADS):
        own = slice(h * width, (h + 1) * width)
        alike = [torch.exp(query[own] @ key[own] / width**0.5) for key, _ in pairs]
        mixed = sum(a * value[own] for a, (_, value) in zip(alike, pairs, strict=True))
        parts.append(mixed / sum(alike))
    return torch.cat(parts)


def represented(params: Params, kind: str, support: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    items = [layers(params, f"read{kind}", torch.cat(pair)) for pair in support]
    mixer = params.get(f"look{kind}.mixer.weight")
    if mixer is None:
        return items
    width = len(items[0])
    told = [(mixer @ item).split(width) for item in items]
    seen = [looked(query, [(key, value) for _, key, value in told]) for query, _, _ in told]
    weight, bias = params[f"look{kind}.out.weight"], params[f"look{kind}.out.bias"]
    return [item + weight @ one + bias for item, one in zip(items, seen, strict=True)]


def split(raw: Tensor) -> Tensor:
    mean, rest = raw.chunk(2)
    return torch.cat([mean, (LEAST + (1 - LEAST) * torch.log1p(rest.exp())).log()])


def latent_of(
    learner: Process, params: Params, support: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    count: int = learner.model.frequencies  # type: ignore[assignment]
    support = [(waved(x, count), y) for x, y in support]
    items = represented(params, "_latent", support)
    mean, raw = layers(params, "to_latent", sum(items) / len(items)).chunk(2)
    return mean, 0.1 + 0.9 / (1 + torch.exp(-raw))


def by_process(
    params: Params, support: list[tuple[Tensor, Tensor]], query: Tensor, z: Tensor | None
) -> Tensor:
    parts = [query]
    if "read.0.weight" in params:
        items = represented(params, "", support)
        if "place.0.weight" in params:
            name = "{}.weight".format
            pairs = [
                (params[name("key")] @ layers(params, "place", x), params[name("value")] @ item)
                for (x, _), item in zip(support, items, strict=True)
            ]
            seen = looked(params[name("query")] @ layers(params, "place", query), pairs)
            parts.append(params[name("out")] @ seen + params["out.bias"])
        else:
            parts.append(sum(items) / len(items))
    return split(layers(params, "decoder", torch.cat(parts if z is None else [*parts, z])))


def normed(params: Params, name: str, value: Tensor) -> Tensor:
    centred = value - value.mean()
    value = centred / (centred.square().mean() + 1e-5).sqrt()
    return value * params[f"{name}.weight"] + params[f"{name}.bias"]


def by_transformer(
    params: Params, support: list[tuple[Tensor, Tensor]], query: Tensor, z: Tensor | None
) -> Tensor:
    """All tokens in one list; the support's are the first, and the only ones looked at."""
    zeros, one = torch.zeros_like(support[0][1]), torch.ones(1, dtype=query.dtype)
    read = [torch.cat([x, y, one]) for x, y in support] + [torch.cat([query, zeros, 0 * one])]
    tokens = [layers(params, "embed", token) for token in read]
    for i in range(3):
        at = f"blocks.{i}"
        inside = [normed(params, f"{at}.norm", token) for token in tokens]
        told = [params[f"{at}.key_value.weight"] @ token for token in inside]
        pairs = [tuple(one.chunk(2)) for one in told[: len(support)]]
        after = []
        for token, normal in zip(tokens, inside, strict=True):
            seen = looked(params[f"{at}.query.weight"] @ normal, pairs)  # type: ignore[arg-type]
            token = token + params[f"{at}.out.weight"] @ seen + params[f"{at}.out.bias"]
            hidden = normed(params, f"{at}.norm_network", token)
            after.append(token + layers(params, f"{at}.network", hidden))
        tokens = after
    return split(layers(params, "head", normed(params, "norm", tokens[-1])))


def waved(x: Tensor, count: int) -> Tensor:
    angles = [math.pi * float(v) / 2 * 2**k for v in x for k in range(count)]
    return torch.cat(
        [x, x.new_tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])]
    )


def reference(learner: Process) -> Callable[..., Tensor]:
    """The loop over points for the learner's network, inputs waved first."""
    run = by_transformer if isinstance(learner, Tnp) else by_process
    count: int = learner.model.frequencies  # type: ignore[assignment]

    def waved_first(
        params: Params, support: list[tuple[Tensor, Tensor]], query: Tensor, z: Tensor | None
    ) -> Tensor:
        return run(params, [(waved(x, count), y) for x, y in support], waved(query, count), z)

    return waved_first


def real(half: Examples) -> list[tuple[Tensor, Tensor]]:
    return [(x, y) for x, y, there in zip(*half, strict=True) if there]


def test_outputs_are_those_of_a_loop_over_points(learner: Process, episodes: Episode) -> None:
    params = learner.init()
    for t in range(size(episodes)):
        one = select(episodes, t)
        state = learner.adapt(params, one.support, KEYS[t])
        found = learner.predict(params, state, one.query.x, one.query.mask)
        draws = [None]
        if isinstance(learner, Np):
            mean, sd = latent_of(learner, params, real(one.support))
            draws = [
                mean + sd * keys.normal(keys.fold(KEYS[t], k), 3) for k in range(learner.samples)
            ]
        for q in range(3):
            run = reference(learner)
            expected = [run(params, real(one.support), one.query.x[q], z) for z in draws]
            assert_close(found[q], torch.cat(expected), rtol=1e-10, atol=1e-12)


def test_the_network_alone_answers_with_the_mean_of_its_latent_variable(
    learner: Process, episodes: Episode
) -> None:
    params, one = learner.init(), select(episodes, 1)
    found = learner.model(*one.support, one.query.x)
    z = latent_of(learner, params, real(one.support))[0] if isinstance(learner, Np) else None
    for q in range(3):
        expected = reference(learner)(params, real(one.support), one.query.x[q], z)
        assert_close(found[q].detach(), expected, rtol=1e-10, atol=1e-12)


def plain_loss(learner: Process, params: Params, episode: Episode, key: Tensor) -> Tensor:
    """The outer loss of one episode, written out with torch's own distributions."""
    support, query = real(episode.support), real(episode.query)
    z, apart = None, torch.zeros((), dtype=torch.float64)
    if isinstance(learner, Np):
        prior, told = (
            latent_of(learner, params, support),
            latent_of(learner, params, support + query),
        )
        z = told[0] + told[1] * keys.normal(key, 3)
        apart = kl_divergence(Independent(Normal(*told), 1), Independent(Normal(*prior), 1))
    total = torch.zeros((), dtype=torch.float64)
    for x, y in query:
        mean, log_sd = reference(learner)(params, support, x, z).chunk(2)
        total = total + Normal(mean, log_sd.exp()).log_prob(y).sum()
    return (apart - total) / len(query)


def test_the_outer_gradient_is_that_of_the_loop(
    learner: Process, episodes: Episode, slopes: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    params = learner.init()
    grads, loss = Vectorised(learner, vectorise="vmap").outer_gradient(params, episodes, KEYS)
    moving = {name: p.requires_grad_() for name, p in params.items()}

    def mean(at: Params) -> Tensor:
        each = [plain_loss(learner, at, select(episodes, t), KEYS[t]) for t in range(3)]
        return torch.stack(each).mean()

    expected = mean(moving)
    assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-12)
    plain = torch.autograd.grad(expected, list(moving.values()), materialize_grads=True)
    assert_close(grads, dict(zip(moving, plain, strict=True)), rtol=1e-8, atol=1e-11)
    with torch.no_grad():
        by_gradient, by_differences = slopes(mean, params, grads, count=2)
    assert_close(by_gradient, by_differences, rtol=1e-5, atol=1e-7)


def test_the_divergence_is_torchs_own() -> None:
    generator = torch.Generator().manual_seed(4)
    mean, prior_mean = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    sd, prior_sd = torch.rand(2, 7, generator=generator, dtype=torch.float64) + 0.1
    expected = kl_divergence(Normal(mean, sd), Normal(prior_mean, prior_sd)).sum()
    assert_close(divergence(mean, sd, prior_mean, prior_sd), expected)
    assert float(divergence(mean, sd, mean, sd)) == pytest.approx(0, abs=1e-14)


def test_what_a_likelihood_is_made_of_is_not_rounded() -> None:
    """Means, spreads and the divergence are in fp32 where the layers before are in bf16."""
    network = NeuralProcess(1, 1, width=8, latent=4)
    x = torch.linspace(-1, 1, 6)[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        found = network.encode(x, x.sin(), torch.ones(6, dtype=torch.bool))
        outputs = network.decode(found, x)
        mean, sd = found["latent_mean"].detach(), found["latent_sd"].detach()
        apart = divergence(mean, sd, mean, sd)
    assert outputs.dtype == apart.dtype == torch.float32
    assert not torch.equal(outputs, outputs.bfloat16().float())
    assert float(apart) == 0


@pytest.mark.parametrize("name", ["np", "anp"])
def test_the_bound_lies_below_the_likelihood_of_all_queries(name: str, episodes: Episode) -> None:
    """Joint likelihood of the queries by 20,000 draws given the support set."""
    learner, one = MAKE[name](), select(episodes, 0)
    assert isinstance(learner, Np)
    generator = torch.Generator().manual_seed(8)
    params = {
        k: p + 0.4 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for k, p in learner.init().items()
    }
    many = replace(learner, samples=20_000)
    state = many.adapt(params, one.support, KEYS[0])
    outputs = many.predict(params, state, one.query.x, one.query.mask).unflatten(1, (-1, 2, 2))
    each = Normal(outputs[:, :, 0], outputs[:, :, 1].exp()).log_prob(one.query.y[:, None])
    joint = each.sum((0, 2)).logsumexp(0) - math.log(20_000)
    draws = keys.fold(keys.key(5), torch.arange(2_000))
    bounds = -3 * torch.func.vmap(lambda key: learner.outer_loss(params, one, key))(draws)
    assert bounds.std() > 0
    below = joint - bounds.mean()
    assert 3 * bounds.std() / 2_000**0.5 < below < 10


def test_latent_values_are_drawn_from_what_the_support_set_says(episodes: Episode) -> None:
    learner, one = replace(MAKE["np"](), samples=30_000), select(episodes, 1)
    params = learner.init()
    z = learner.adapt(params, one.support, KEYS[1])["z"]
    mean, sd = latent_of(learner, params, real(one.support))
    assert_close(z.mean(0), mean, rtol=0, atol=0.02)
    assert_close(z.std(0), sd, rtol=0.02, atol=0)
    assert_close(torch.corrcoef(z.T), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.03)


def test_a_state_is_enough_and_small(learner: Process, episodes: Episode) -> None:
    """Means for averaging, keys and values for attention; nothing else of the support set."""
    state = learner.adapt(learner.init(), select(episodes, 0).support, KEYS[0])
    kinds = {"cnp": {"mean"}, "np": {"z"}, "anp": {"key", "value", "mask", "z"}}
    layered = {f"{part}.{i}" for part in ("key", "value") for i in range(3)} | {"mask"}
    attentive = {"key", "value", "mask"} if "key" in state else {"mean"}
    expected = {**kinds, "cnp": attentive, "tnp": layered}[learner.name]
    assert set(state) == expected


TASKS = tegu.GaussianProcesses(n_support=(3, 10), n_query=10, length=(0.6, 1.0), noise=0.1)
SMALL: dict[str, Callable[[], Learner]] = {
    "cnp": lambda: Cnp(model=NeuralProcess(width=32, path="mean")),
    "np": lambda: Np(model=NeuralProcess(width=32, path="", latent=16)),
    "anp": lambda: Anp(model=NeuralProcess(width=32, path="attention", latent=16)),
    "tnp": lambda: Tnp(model=TransformerProcess(width=16, layers=2, hidden=32)),
}


@pytest.mark.parametrize("name", SMALL)
def test_they_learn_to_learn_functions(name: str) -> None:
    """Better than the best guess without a support set; worse than the process itself."""
    learned = tegu.meta_train(
        SMALL[name](),
        TASKS,
        meta_iterations=250,
        meta_batch=8,
        outer_lr=0.003,
        outer_schedule="cosine",
    )
    test = replace(TASKS, split="meta_test")
    (result,) = learned.evaluate(test, episodes=200)
    assert result.metric == "log-likelihood"
    index = torch.arange(200)
    asked = test.episodes(index).query
    blind = Normal(asked.y.mean(), asked.y.std()).log_prob(asked.y).mean()
    exact = torch.func.vmap(log_likelihood)(test.exact(index), asked).mean()
    assert blind + 2 * result.ci95 < result.value < exact


@pytest.mark.parametrize("name", SMALL)
def test_the_two_phases_on_numbers(name: str, tmp_path: Any) -> None:
    learned = tegu.meta_train(SMALL[name](), TASKS, meta_iterations=2, meta_batch=2)
    task = learned.adapt([[0.0], [0.5], [1.0]], [[0.0], [0.4], [0.8]])
    query = [[0.2], [0.7]]
    mean, sd = task.predict_distribution(query)
    assert mean.shape == sd.shape == (2, 1)
    assert bool((sd > LEAST * 0.9).all())
    assert_close(task.predict(query), mean)
    components = task.outputs(query).unflatten(1, (-1, 2))
    assert_close(mean[:, 0], components[:, :, 0].mean(1))
    learned.save(tmp_path / "learned.safetensors")
    again = tegu.MetaLearned.load(tmp_path / "learned.safetensors", SMALL[name]())
    same = again.adapt([[0.0], [0.5], [1.0]], [[0.0], [0.4], [0.8]]).predict(query)
    assert_close(same, mean, rtol=0, atol=0)


def test_any_learner_of_numbers_may_predict_distributions() -> None:
    """MAML around a network of two outputs: mean beside log standard deviation."""
    learner = Maml(model=Mlp(1, 2, hidden=(8,)), loss=gaussian, inner_steps=2)
    learned = tegu.meta_train(learner, tegu.Sinusoids(), meta_iterations=2, meta_batch=2)
    task = learned.adapt([[0.0], [0.5]], [[0.0], [0.4]])
    outputs = task.outputs([[0.3]])
    mean, sd = task.predict_distribution([[0.3]])
    assert_close(torch.cat([mean, sd.log()], -1), outputs)
    assert_close(task.predict([[0.3]]), mean)


def adapted(name: str) -> tegu.MetaLearned:
    learner = SMALL[name]()
    return tegu.MetaLearned(learner, learner.init())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        ([[0.0, 1.0]], [[0.0]], "x has shape"),
        ([[0.0]], [[0.0, 1.0]], "y has 2 columns for a model of 1 targets"),
        ([[0.0]], [0.0], "y has shape"),
        ([], [], "x is empty"),
        ([[0.0], [1.0]], [[0.0]], "2 inputs and 1 labels"),
    ],
)
def test_bad_support_sets_are_refused(name: str, x: Any, y: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        adapted(name).adapt(x, y)


def test_queries_of_another_width_and_features_are_refused() -> None:
    learned = adapted("cnp")
    with pytest.raises(InputError, match="x has shape"):
        learned.adapt([[0.0]], [[0.0]]).predict([[0.0, 1.0]])
    with pytest.raises(InputError, match="features of single inputs from Cnp"):
        learned.features([[0.0]])


def test_a_learner_of_squared_errors_has_no_distribution() -> None:
    learner = Maml(model=Mlp(1, 1), loss=tegu.losses.squared_error)
    task = tegu.MetaLearned(learner, learner.init()).adapt([[0.0]], [[0.0]])
    with pytest.raises(InputError, match="a distribution from Maml"):
        task.predict_distribution([[0.0]])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Cnp(model=Mlp(1, 2)), "Mlp, which has no `in_width`"),
        (lambda: Np(model=NeuralProcess(path="mean")), "has no latent variable"),
        (lambda: Np(model=NeuralProcess(latent=2), samples=0), "samples is 0"),
        (lambda: NeuralProcess(path="max"), "unknown path"),
        (lambda: NeuralProcess(path=""), "neither path nor latent"),
        (
            lambda: NeuralProcess(width=10, heads=4, path="attention"),
            "width is 10 with 4 heads",
        ),
        (
            lambda: NeuralProcess(path="", latent=4, self_attention=True),
            "examples that look at each other, and no path",
        ),
        (lambda: TransformerProcess(width=10, heads=4), "width is 10 with 4 heads"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()
