"""Learners by metric: meta-training a ProtoNet, and transductive heads on ready features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rows import rivals
from rows.contest import (
    Contest,
    Drawn,
    Setup,
    answer,
    check,
    double,
    draw,
    engine_of,
    gradient,
    told,
)
from rows.plain import PlainConv4, Rounded, with_weights
from tegu import keys, timing
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, moved
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Learner, ProtoNet, PtMap, Tim
from tegu.models import Conv4
from tegu.sampling import FewShotTasks

OUTER_LR = 1e-3
WAYS, SHOTS, QUERIES = 20, 1, 5


class Loop:
    """Episode after episode by easyfsl's ProtoNet, or by plain PyTorch.

    easyfsl passes support set and queries through the network one after the other, so that
    batch normalisation sees each alone; tegu passes both at once, as the paper's code does. A plain
    loop does either, so that each is held against its own: `apart`.
    """

    def __init__(
        self, network: PlainConv4, *, by: str, apart: bool = False, rounded: bool = False
    ) -> None:
        self.network = network
        backbone: nn.Module = Rounded(network) if rounded else network
        self.model: Any = squared(backbone) if by == "easyfsl" else backbone
        self.by, self.apart = by, apart
        self.optimiser = torch.optim.Adam(network.parameters(), lr=OUTER_LR)

    def scores(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        if self.by == "easyfsl":
            self.model.process_support_set(support, labels)
            out: Tensor = self.model(query)
            return out
        if self.apart:
            known, asked = self.model(support), self.model(query)
        else:
            known, asked = self.model(torch.cat([support, query])).tensor_split([len(support)])
        centres = torch.stack([known[labels == c].mean(0) for c in labels.unique()])
        return -(torch.cdist(asked, centres) ** 2)

    def backward(self, episodes: Episode) -> None:
        self.optimiser.zero_grad()
        (x, y, _), (query_x, query_y, _) = episodes
        F.cross_entropy(self.scores(x[0], y[0], query_x[0]), query_y[0]).backward()

    def gradient(self, episodes: Episode) -> Params:
        """By tegu's names."""
        self.backward(episodes)
        grads = {n: p.grad for n, p in self.network.named_parameters() if p.grad is not None}
        return self.network.named(grads)

    def __call__(self, episodes: Episode) -> None:
        self.backward(episodes)
        self.optimiser.step()


def squared(backbone: nn.Module) -> Any:
    """easyfsl's ProtoNet with squared distances, as the paper has them."""
    methods: Any = rivals.module("easyfsl.methods.prototypical_networks")

    class Squared(methods.PrototypicalNetworks):  # type: ignore[misc]
        def l2_distance_to_prototypes(self, samples: Tensor) -> Tensor:
            distances: Tensor = super().l2_distance_to_prototypes(samples)
            return -(distances**2)

    return Squared(backbone)


def protonet(setup: Setup) -> Iterator[Contest]:
    """20-way 1-shot, 5 queries of each class, Conv-4 with max-pooling, one episode an update."""
    from tegu.datasets import load_omniglot

    device = setup.device
    data = load_omniglot("meta_train", partition="vinyals", data_dir=setup.data_dir).to(device)
    tasks, root = FewShotTasks(data, WAYS, SHOTS, QUERIES), keys.key(0, "speed")
    drawn = draw(tasks, root, per=1, batches=16, device=device)
    model = Conv4(0, pool=True).to(device)
    learner = ProtoNet(model=model, n_way=WAYS, normalisation="transductive")
    params, (some, at) = learner.init(), drawn[0]
    some = uneven(some)
    work = "ProtoNet, Omniglot 20-way 1-shot, 100 queries, an outer update"
    exact = {k: v.double() for k, v in params.items()}

    def network(weights: Params) -> PlainConv4:
        return with_weights(PlainConv4(0, pool=True, tracks=False), weights)

    right = {
        apart: Loop(network(exact), by="plain loop", apart=apart).gradient(double(some))
        for apart in (False, True)
    }

    def checked(who: str, precision: str, grads: Params) -> None:
        own = right[who == "easyfsl"]
        check(work, who, precision, [grads[k] for k in own], list(own.values()))

    plain = Loop(network(params), by="plain loop")
    flops = timing.operations(lambda: plain.gradient(some))
    acts: dict[tuple[str, bool, bool], Callable[[int], None]] = {}
    contests = [
        ("fp32", False, "easyfsl"),
        ("fp32", True, "easyfsl"),
        ("fp32", True, "plain loop"),
        ("bf16", True, "easyfsl, bf16"),
        ("bf16", True, "easyfsl, fp32"),
    ]
    for graphs, (precision, compiled, rival) in product(setup.graphs, setup.worth(contests)):
        way = precision, compiled, graphs
        if way not in acts:
            engine = engine_of(learner, precision, compiled=compiled, graphs=graphs)
            found = answer(partial(gradient, engine, params, some, at), graphs)
            checked("tegu", precision, found)
            acts[way] = _training(engine, params, drawn)
        who, _, said = rival.partition(", ")
        yield Contest(
            told(work if compiled else f"{work}, not compiled", graphs),
            precision,
            rival,
            acts[way],
            _rival(who, network(params), drawn, checked, rounded=said == "bf16"),
            flops=flops,
        )


def uneven(episodes: Episode) -> Episode:
    """The same images with noise on them, for the comparison of answers.

    Where an image is even, max-pooling has several largest values or one, as rounding has it,
    and its gradient is not one number.
    """
    generator = torch.Generator().manual_seed(0)
    halves = (
        half._replace(x=half.x + 0.1 * torch.rand(half.x.shape, generator=generator).to(half.x))
        for half in episodes
    )
    return Episode(*halves)


def _training(engine: Vectorised, params: Params, drawn: Drawn) -> Callable[[int], None]:
    outer = engine.outer_state(params)

    def act(i: int) -> None:
        nonlocal params, outer
        episodes, at = drawn[i]
        params, outer, _ = engine.update(params, outer, episodes, at, outer_lr=OUTER_LR)

    return act


def _rival(
    who: str,
    network: PlainConv4,
    drawn: Drawn,
    checked: Callable[[str, str, Params], None],
    *,
    rounded: bool,
) -> Callable[[int], None] | None:
    if not rivals.have(who):
        return None
    loop = Loop(network, by=who, rounded=rounded)
    checked(who, "bf16" if rounded else "fp32", loop.gradient(uneven(drawn[0][0])))
    return lambda i: loop(drawn[i][0])


class Scaled(nn.Module):
    """Its inputs; one weight, as every model has one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Ready(nn.Module):
    """Features that are there already."""

    feature_width = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


TASKS, AT_ONCE, FEW, AGREE = 1000, 250, 20, 0.9


def features(n: int) -> Episode:
    """5-way 1-shot tasks, 15 queries of each class: features as a network with ReLU has them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(n, 5, 1, 64, generator=generator)
    noise = torch.randn(n, 5, 16, 64, generator=generator)
    x = (centres + noise).relu()
    x = x / x.sum(-1, keepdim=True)  # easyfsl's PT-MAP takes them as long as they are
    y = torch.arange(5)[:, None].expand(n, 5, 16)
    halves = []
    for shots in (slice(0, 1), slice(1, 16)):
        one, labels = x[:, :, shots].flatten(1, 2), y[:, :, shots].flatten(1, 2)
        halves.append(Examples(one, labels, torch.ones_like(labels, dtype=torch.bool)))
    return Episode(*halves)


def transductive(setup: Setup) -> Iterator[Contest]:
    """TIM and PT-MAP over 1,000 tasks whose features are there; easyfsl does 20 in a round."""
    episodes = moved(features(TASKS), torch.device(setup.device))
    at = keys.fold(keys.key(0, "speed"), torch.arange(TASKS)).to(setup.device)
    ready = Ready().to(setup.device)
    # Rounds as easyfsl has them; it goes on with a plan until that moves no more.
    heads = (Tim(model=ready, n_classes=5), PtMap(model=ready, n_classes=5, rounds=10))
    mine: list[tuple[str, Learner, str, str, str]] = [
        ("TIM, alternating steps", heads[0], "tim", "TIM", "by gradient"),
        ("PT-MAP, plans of 50 normalisations", heads[1], "pt_map", "PTMAP", "until they rest"),
    ]
    for graphs, (name, learner, module, kind, how) in product(setup.graphs, mine):
        engine = Vectorised(learner, vectorise="vmap", cuda_graphs=graphs)
        params = learner.init()
        work = f"{name}, 1,000 tasks, 5-way 1-shot, 75 queries; milliseconds of 1,000"

        def ours(i: int, engine: Vectorised = engine, params: Params = params) -> Tensor:
            first = AT_ONCE * i % TASKS
            rows = slice(first, first + AT_ONCE)
            support, query = (Examples(*(x[rows] for x in half)) for half in episodes)
            state = engine.adapt(params, support, at[rows])
            return engine.predict(params, state, query)

        few = double(Episode(*(Examples(*(x[:FEW] for x in half)) for half in episodes)))
        exact = {k: v.double() for k, v in params.items()}
        loop = Vectorised(learner, vectorise="loop")
        right = loop.predict(exact, loop.adapt(exact, few.support, at[:FEW]), few.query)
        found = answer(lambda: ours(0), graphs)[:FEW]
        check(work, "tegu", "fp32", list(found.softmax(-1)), list(right.softmax(-1)))
        theirs = None
        if rivals.have("easyfsl"):
            theirs = _head(getattr(rivals.module(f"easyfsl.methods.{module}"), kind), episodes)
            _compare(work, theirs(0), right, few.query.y)
        yield Contest(
            told(work, graphs),
            "fp32",
            f"easyfsl, {how} (from {FEW} tasks a round)",
            ours,
            theirs,
            per=AT_ONCE / TASKS,
            part=FEW / TASKS,
        )


def _head(kind: Any, episodes: Episode) -> Callable[[int], Tensor]:
    support, query = episodes

    def act(i: int) -> Tensor:
        found = []
        for task in range(FEW * i % TASKS, FEW * i % TASKS + FEW):
            head = kind(nn.Identity())
            head.process_support_set(support.x[task], support.y[task])
            found.append(head(query.x[task]))
        return torch.stack(found)

    return act


def _compare(work: str, theirs: Tensor, right: Tensor, y: Tensor) -> None:
    """The methods differ in detail, so that only the labels can be compared."""
    same = float((theirs.argmax(-1) == right.argmax(-1)).double().mean())
    shares = [float((one.argmax(-1) == y).double().mean()) for one in (right, theirs)]
    print(
        f"  {work}: easyfsl says the same of {same:.1%} of the queries; right are "
        f"{shares[0]:.1%} of tegu's and {shares[1]:.1%} of easyfsl's answers"
    )
    if same < AGREE:
        raise InputError(
            f"{work}: easyfsl gives the same label to {same:.1%} of the queries only",
            f"{AGREE:.0%}",
            "Nothing was timed. Look for what differs.",
        )
