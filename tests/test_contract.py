"""What every learner promises, from one table.

A new learner adds a row to `ROWS`. Tests ask the row, never a learner's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tegu import keys
from tegu.adapted import Adapted
from tegu.datasets import CausalGraphs, Sinusoids
from tegu.datasets.causal_pairs import CategoryPairs
from tegu.datasets.classes import ClassDataset
from tegu.datasets.tokens import END, PAD, WORDS
from tegu.engine.trees import map_tensors
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, Examples, select, stack
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import LEARNERS, FineTune, Learner
from tegu.losses import squared_error, token_cross_entropy
from tegu.models import (
    BatchNorm,
    MaskedMlps,
    MemorySeq2Seq,
    NeuralProcess,
    Seq2Seq,
    StudyTransformer,
    TableTransformer,
    TransformerProcess,
    category_pair,
    mixture_pair,
)
from tegu.models.lstm import Lstm
from tegu.models.norm import layers
from tegu.sampling import FewShotTasks

N_WAY = 3


@dataclass(frozen=True)
class Row:
    """A learner and its own promises.

    Args:
        make: the learner around a model of its kind.
        support_order_matters: whether another order of the support set may
            change what is learnt.
        renaming_permutes: whether renaming classes permutes the scores and
            changes nothing else.
        queries_together: whether the answer to a query may depend on the other
            queries, under a normalisation that leaves them out.
        causal: whether it predicts each support example from those before it alone.
        asks: whether it asks the device for values on the way, so that a GPU cannot replay it.
        eliminates: whether it solves systems by elimination, for which torch below 2.12 takes
            a library on a GPU that cannot be recorded.
        kind: of tasks that it is held to, one of `KINDS`.
    """

    make: Callable[[nn.Module], Learner]
    support_order_matters: bool
    renaming_permutes: bool
    queries_together: bool = False
    causal: bool = False
    asks: bool = False
    eliminates: bool = False
    kind: str = "classes"


def wide(model: nn.Module) -> nn.Module:
    """The model with the width of its features, where it does not tell it itself."""
    if not hasattr(model, "feature_width"):
        model.feature_width = 8
    return model


def wider(model: nn.Module, extra: int) -> nn.Module:
    """The model with more inputs: its first dense layer is made anew in place."""
    path, first = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear))
    parent, _, leaf = path.rpartition(".")
    layer = nn.Linear(first.in_features + extra, first.out_features).to(first.weight.dtype)
    generator = torch.Generator().manual_seed(4)
    for p in layer.parameters():
        p.data.uniform_(-0.5, 0.5, generator=generator)
    setattr(model.get_submodule(parent), leaf, layer)
    return model


def packed(model: nn.Module) -> nn.Module:
    """The model with the recurrence that leaves padding out."""
    for part in model.modules():
        if isinstance(part, Lstm):
            part.packed = True
    return model


ROWS = {
    "anil": Row(
        lambda model: LEARNERS["anil"](model=model, inner_steps=2, inner_lr=0.1),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "anil, mini-batches of first order": Row(
        lambda model: LEARNERS["anil"](
            model=model, inner_steps=2, inner_batch=4, eval_batch=5, first_order=True
        ),
        support_order_matters=True,
        renaming_permutes=False,
    ),
    "anp": Row(
        lambda model: LEARNERS["anp"](model=model, samples=3),
        support_order_matters=False,
        renaming_permutes=False,
        kind="sets with a latent variable",
    ),
    "baseline": Row(
        lambda model: LEARNERS["baseline"](
            model=wide(model), n_way=N_WAY, n_classes=7, eval_steps=5, head_lr=0.1
        ),
        support_order_matters=True,
        renaming_permutes=False,
    ),
    "baseline++": Row(
        lambda model: LEARNERS["baseline++"](
            model=wide(model), n_way=N_WAY, n_classes=7, eval_steps=3, head_lr=0.1
        ),
        support_order_matters=True,
        renaming_permutes=False,
    ),
    "baseline, whole support set in each step": Row(
        lambda model: LEARNERS["baseline"](
            model=wide(model), n_way=N_WAY, n_classes=7, eval_steps=3, eval_batch=0
        ),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "boil": Row(
        lambda model: LEARNERS["boil"](model=model, inner_steps=2, inner_lr=0.1),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "causal-transfer": Row(
        lambda model: LEARNERS["causal-transfer"](
            model=model, inner_steps=2, inner_batch=4, eval_batch=4
        ),
        support_order_matters=True,
        renaming_permutes=False,
        kind="pairs",
    ),
    "causal-transfer, encoder, EM": Row(
        lambda model: LEARNERS["causal-transfer"](
            model=model,
            inner_batch=0,
            eval_batch=0,
            inner_optimiser="adam",
            inner_lr=0.01,
            encoder=True,
            refit=True,
            first_order=False,
            evidence="mean",
            em=2,
        ),
        support_order_matters=False,
        renaming_permutes=False,
        kind="pairs",
    ),
    "causal-graph": Row(
        lambda model: LEARNERS["causal-graph"](model=model, graphs=3, fit_graphs=2, margin=0.0),
        support_order_matters=False,
        renaming_permutes=False,
        kind="samples",
    ),
    "causal-graph, fewer sets of parents than graphs": Row(
        lambda model: LEARNERS["causal-graph"](model=model, graphs=9, margin=0.0),
        support_order_matters=False,
        renaming_permutes=False,
        kind="samples",
    ),
    "cavia": Row(
        lambda model: LEARNERS["cavia"](
            model=wider(model, 3), context=3, inner_steps=2, inner_lr=0.5
        ),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "cavia, first order": Row(
        lambda model: LEARNERS["cavia"](
            model=wider(model, 2), context=2, inner_steps=2, eval_steps=3, first_order=True
        ),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "cnp": Row(
        lambda model: LEARNERS["cnp"](model=model),
        support_order_matters=False,
        renaming_permutes=False,
        kind="sets",
    ),
    "feat": Row(
        lambda model: LEARNERS["feat"](model=wide(model), n_way=N_WAY, temperature=4.0),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "feat, without the regulariser": Row(
        lambda model: LEARNERS["feat"](model=wide(model), n_way=N_WAY, balance=0.0),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "fomaml": Row(
        lambda model: LEARNERS["fomaml"](model=model, inner_steps=2, inner_lr=0.1),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "fomaml, shared tail": Row(
        lambda model: LEARNERS["fomaml"](
            model=model, inner_steps=2, inner_batch=4, inner_lr=0.1, tail="shared"
        ),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "imaml": Row(
        lambda model: LEARNERS["imaml"](
            model=model, inner_steps=3, eval_steps=4, solver_steps=3, inner_lr=0.1
        ),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "imaml, neumann, adam": Row(
        lambda model: LEARNERS["imaml"](
            model=model,
            inner_steps=2,
            eval_steps=3,
            inner_optimiser="adam",
            inner_lr=0.01,
            pull="last",
            strength=20.0,
            damping=5.0,
            solver="neumann",
            solver_steps=2,
        ),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "in-context": Row(
        lambda model: LEARNERS["in-context"](
            model=wide(model), n_way=N_WAY, width=8, layers=2, heads=2
        ),
        support_order_matters=True,
        renaming_permutes=False,
        causal=True,
    ),
    "in-context, one layer, loss on queries": Row(
        lambda model: LEARNERS["in-context"](
            model=wide(model), n_way=N_WAY, width=8, layers=1, heads=2, every=0.0
        ),
        support_order_matters=False,
        renaming_permutes=False,
        causal=True,
    ),
    "in-context, three views": Row(
        lambda model: LEARNERS["in-context"](
            model=wide(model), n_way=N_WAY, width=8, layers=2, heads=2, views=3
        ),
        support_order_matters=True,
        renaming_permutes=False,
        causal=True,
    ),
    "in-context, numbers": Row(
        lambda model: LEARNERS["in-context"](
            model=wide(model), numbers=1, width=8, layers=2, heads=2, loss=squared_error
        ),
        support_order_matters=True,
        renaming_permutes=False,
        kind="numbers",
        causal=True,
    ),
    "joint": Row(
        lambda model: LEARNERS["joint"](
            model=model, inner_steps=2, inner_batch=4, eval_steps=3, inner_lr=0.01
        ),
        support_order_matters=True,
        renaming_permutes=False,
    ),
    "laplacianshot": Row(
        lambda model: LEARNERS["laplacianshot"](
            model=wide(model), n_way=N_WAY, n_classes=7, rounds=5
        ),
        support_order_matters=False,
        renaming_permutes=True,
        queries_together=True,
    ),
    "laplacianshot, rectified": Row(
        lambda model: LEARNERS["laplacianshot"](
            model=wide(model), n_way=N_WAY, n_classes=7, rounds=5, rectify=True
        ),
        support_order_matters=False,
        renaming_permutes=True,
        queries_together=True,
    ),
    "lrd2": Row(
        lambda model: LEARNERS["lrd2"](model=model, n_way=N_WAY, regulariser=0.5),
        support_order_matters=False,
        renaming_permutes=True,
        eliminates=True,
    ),
    "lrd2, fixed regulariser": Row(
        lambda model: LEARNERS["lrd2"](model=model, n_way=N_WAY, learn_regulariser=False),
        support_order_matters=False,
        renaming_permutes=True,
        eliminates=True,
    ),
    "lstm": Row(
        lambda model: LEARNERS["lstm"](model=wide(model), n_way=N_WAY, width=8, hidden=7),
        support_order_matters=True,
        renaming_permutes=False,
        causal=True,
    ),
    "lstm, numbers": Row(
        lambda model: LEARNERS["lstm"](
            model=wide(model), numbers=1, width=8, hidden=7, layers=1, loss=squared_error
        ),
        support_order_matters=True,
        renaming_permutes=False,
        kind="numbers",
        causal=True,
    ),
    "maml": Row(
        lambda model: LEARNERS["maml"](model=model, inner_steps=2, inner_lr=0.1),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "maml++": Row(
        lambda model: LEARNERS["maml++"](model=model, inner_steps=2, eval_steps=3),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "maml++, one norm": Row(
        lambda model: LEARNERS["maml++"](
            model=model, inner_steps=2, eval_steps=2, per_step_norm=False, first_order=True
        ),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "maml, sequences": Row(
        lambda model: LEARNERS["maml"](
            model=model, loss=token_cross_entropy, inner_steps=2, inner_lr=0.1
        ),
        support_order_matters=False,
        renaming_permutes=False,
        kind="sequences",
    ),
    "maml, first order": Row(
        lambda model: LEARNERS["maml"](model=model, inner_steps=2, first_order=True),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "matchingnet": Row(
        lambda model: LEARNERS["matchingnet"](model=model, n_way=N_WAY, scale=3.0),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "matchingnet, in turns": Row(
        lambda model: LEARNERS["matchingnet"](model=model, n_way=N_WAY, scale=3.0, turns=3),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "meta-curvature": Row(
        lambda model: LEARNERS["meta-curvature"](model=model, inner_steps=2, inner_lr=0.1),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "meta-curvature, diagonal, first order": Row(
        lambda model: LEARNERS["meta-curvature"](
            model=model, inner_steps=2, inner_lr=0.1, largest=6, first_order=True
        ),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "meta-sgd": Row(
        lambda model: LEARNERS["meta-sgd"](model=model, inner_steps=2, eval_steps=3),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "meta-sgd, first order": Row(
        lambda model: LEARNERS["meta-sgd"](
            model=model, initial="same", inner_lr=0.1, inner_steps=2, first_order=True
        ),
        support_order_matters=False,
        renaming_permutes=False,
    ),
    "mlc": Row(
        lambda model: LEARNERS["mlc"](model=model),
        support_order_matters=False,
        renaming_permutes=False,
        kind="study",
    ),
    "mlc, some examples asked again, no dropout": Row(
        lambda model: LEARNERS["mlc"](model=model, recall=3, dropout=0.0),
        support_order_matters=False,
        renaming_permutes=False,
        kind="study",
    ),
    "np": Row(
        lambda model: LEARNERS["np"](model=model, samples=2),
        support_order_matters=False,
        renaming_permutes=False,
        kind="sets with a latent variable",
    ),
    "pfn": Row(
        lambda model: LEARNERS["pfn"](model=model),
        support_order_matters=False,
        renaming_permutes=False,
        kind="tables",
    ),
    "pfn, three views": Row(
        lambda model: LEARNERS["pfn"](model=model, views=3),
        support_order_matters=False,
        renaming_permutes=False,
        kind="tables",
    ),
    "proto-maml": Row(
        lambda model: LEARNERS["proto-maml"](
            model=model, n_way=N_WAY, inner_steps=2, eval_steps=3, inner_lr=0.1
        ),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "proto-maml, first order": Row(
        lambda model: LEARNERS["proto-maml"](
            model=model, n_way=N_WAY, inner_steps=2, inner_lr=0.1, first_order=True
        ),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "protonet": Row(
        lambda model: LEARNERS["protonet"](model=model, n_way=N_WAY),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "protonet, in turns": Row(
        lambda model: LEARNERS["protonet"](model=model, n_way=N_WAY, turns=3),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "pt-map": Row(
        lambda model: LEARNERS["pt-map"](
            model=wide(model), n_way=N_WAY, n_classes=7, rounds=4, sinkhorn=10
        ),
        support_order_matters=False,
        renaming_permutes=True,
        queries_together=True,
    ),
    "dsn": Row(
        lambda model: LEARNERS["dsn"](model=model, n_way=N_WAY),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "dsn, discriminative": Row(
        lambda model: LEARNERS["dsn"](model=model, n_way=N_WAY, discriminative=0.03),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    # Random networks leave few live features, so that alpha is not unique.
    "metaoptnet-svm": Row(
        lambda model: LEARNERS["metaoptnet-svm"](model=model, n_way=N_WAY, gap=1e-9),
        support_order_matters=False,
        renaming_permutes=True,
        eliminates=True,
    ),
    "metaoptnet-ridge": Row(
        lambda model: LEARNERS["metaoptnet-ridge"](model=model, n_way=N_WAY, regulariser=0.5),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "r2d2": Row(
        lambda model: LEARNERS["r2d2"](model=model, n_way=N_WAY, regulariser=0.1),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "r2d2, fixed regulariser": Row(
        lambda model: LEARNERS["r2d2"](model=model, n_way=N_WAY, learn_regulariser=False),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "relationnet": Row(
        lambda model: LEARNERS["relationnet"](model=wide(model), n_way=N_WAY, hidden=6),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "relationnet, cross-entropy of means": Row(
        lambda model: LEARNERS["relationnet"](
            model=wide(model), n_way=N_WAY, hidden=6, pool="mean", objective="cross-entropy"
        ),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "reptile": Row(
        lambda model: LEARNERS["reptile"](
            model=model, inner_steps=3, inner_batch=4, eval_steps=4, eval_batch=5, inner_lr=0.01
        ),
        support_order_matters=True,
        renaming_permutes=False,
    ),
    "reptile, serial": Row(
        lambda model: LEARNERS["reptile"](
            model=model, inner_steps=2, eval_steps=3, serial=True, inner_lr=0.01
        ),
        support_order_matters=True,
        renaming_permutes=False,
    ),
    "reptile, sgd": Row(
        lambda model: LEARNERS["reptile"](
            model=model,
            inner_steps=2,
            eval_steps=3,
            inner_optimiser="sgd",
            momentum=0.5,
            inner_lr=0.1,
        ),
        support_order_matters=True,
        renaming_permutes=False,
    ),
    "reptile, sequences": Row(
        lambda model: LEARNERS["reptile"](
            model=model,
            loss=token_cross_entropy,
            inner_steps=2,
            inner_batch=4,
            eval_steps=3,
            eval_batch=5,
            inner_lr=0.01,
        ),
        support_order_matters=True,
        renaming_permutes=False,
        kind="sequences",
    ),
    "seq2seq": Row(
        lambda model: LEARNERS["seq2seq"](model=model),
        support_order_matters=False,
        renaming_permutes=False,
        kind="sequences",
    ),
    "seq2seq, packed, support not asked again": Row(
        lambda model: LEARNERS["seq2seq"](model=packed(model), rehearse=False),
        support_order_matters=False,
        renaming_permutes=False,
        kind="sequences",
        asks=True,
    ),
    "simpleshot": Row(
        lambda model: LEARNERS["simpleshot"](model=wide(model), n_way=N_WAY, n_classes=7),
        support_order_matters=False,
        renaming_permutes=True,
    ),
    "snail": Row(
        lambda model: LEARNERS["snail"](
            model=wide(model),
            n_way=N_WAY,
            width=8,
            filters=4,
            length=10,
            key_width=(4, 5, 6),
            value_width=(3, 4, 5),
        ),
        support_order_matters=True,
        renaming_permutes=False,
        causal=True,
    ),
    "snail, numbers, beyond its convolutions": Row(
        lambda model: LEARNERS["snail"](
            model=wide(model),
            numbers=1,
            width=8,
            filters=4,
            length=3,
            loss=squared_error,
            key_width=(4, 5, 6),
            value_width=(3, 4, 5),
            every=0.5,
        ),
        support_order_matters=True,
        renaming_permutes=False,
        kind="numbers",
        causal=True,
    ),
    "tim": Row(
        lambda model: LEARNERS["tim"](model=wide(model), n_way=N_WAY, n_classes=7, rounds=5),
        support_order_matters=False,
        renaming_permutes=True,
        queries_together=True,
    ),
    "tnp": Row(
        lambda model: LEARNERS["tnp"](model=model),
        support_order_matters=False,
        renaming_permutes=False,
        kind="sets",
    ),
}


class Normed(nn.Module):
    """Two layers with batch normalisation, a frozen layer and a parameter without a use."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        layers = (nn.Linear(6, 8), BatchNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(8, N_WAY)
        self.unused = nn.Parameter(torch.ones(2))
        for p in self.parameters():
            p.data.uniform_(-0.5, 0.5, generator=generator)
        self.body[3].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class Plain(nn.Module):
    """Two layers and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, N_WAY)
        generator = torch.Generator().manual_seed(2)
        for p in self.parameters():
            p.data.uniform_(-0.5, 0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def table_network() -> nn.Module:
    """Reads tables of six columns; no weight is at its first value of zero."""
    model = TableTransformer(N_WAY, 12, width=8, layers=2, heads=2, hidden=8)
    generator = torch.Generator().manual_seed(6)
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def partly_frozen_table_network() -> nn.Module:
    model = table_network()
    model.unused = nn.Parameter(torch.ones(2))
    model.vote_key.requires_grad_(False)
    return model


def of_classes(toy: ClassDataset) -> Episode:
    """Four episodes, 3-way 3-shot, two queries a class."""
    double = replace(toy, examples=toy.examples.double())
    return FewShotTasks(double, n_way=N_WAY, n_shot=3, n_query=2).episodes(torch.arange(4))


def tables() -> nn.Module:
    """Tables of three categories, no longer uniform."""
    model = category_pair(3)
    generator = torch.Generator().manual_seed(8)
    for p in model.parameters():
        p.data.normal_(generator=generator)
    return model


def partly_frozen() -> nn.Module:
    """Mixtures of which one part is frozen, and a parameter without a use."""
    model = mixture_pair(components=3, hidden=4, spread=2.0)
    model.b_given_a.weight.requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(2))
    return model


def partly_frozen_mlps() -> nn.Module:
    """Of each variable's network the last bias is frozen; and a parameter without a use."""
    model = MaskedMlps(3, 3, hidden=5)
    model.outer_bias.requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(2))
    return model


def of_pairs(toy_data: ClassDataset) -> Episode:
    """Four episodes of pairs of three categories, which are numbers as well."""
    tasks = CategoryPairs(n_shot=9, n_query=6, n_categories=3)
    halves = [half._replace(x=half.x.double()) for half in tasks.episodes(torch.arange(4))]
    return Episode(*halves)


def of_graphs(toy: ClassDataset) -> Episode:
    """Four interventions in a world of three variables."""
    found = CausalGraphs(n_shot=9, n_query=6, family="chain").episodes(torch.arange(4))
    return Episode(*(half._replace(x=half.x.double()) for half in found))


class Studying(StudyTransformer):
    """A transformer over study examples, with a frozen layer and a parameter without a use."""

    def __init__(self) -> None:
        super().__init__(8, 7, width=8, heads=2, feedforward=6, decoder=2, longest=4)
        self.unused = nn.Parameter(torch.ones(2))
        self.out.requires_grad_(False)


def writing(cls: type[Seq2Seq], dropout: float = 0.0) -> Seq2Seq:
    """A sequence network with a frozen weight and a parameter without a use."""
    net = cls(8, 7, longest=4, width=6, dropout=dropout, packed=False)
    net.unused = nn.Parameter(torch.ones(2))
    net.out.weight.requires_grad_(False)
    return net


def of_words(toy: ClassDataset) -> Episode:
    """Four episodes of commands of up to three words and outputs of up to three symbols."""
    generator = torch.Generator().manual_seed(8)
    halves = []
    for rows in (9, 6):
        x, y = (torch.randint(WORDS, 7, (4, rows, 4), generator=generator) for _ in range(2))
        sizes = torch.randint(1, 4, (2, 4, rows, 1), generator=generator)
        at = torch.arange(4)
        x = torch.where(at < sizes[0], x, PAD)
        y = torch.where(at < sizes[1], y, torch.where(at == sizes[1], END, PAD))
        halves.append(Examples(x, y, torch.ones(4, rows, dtype=torch.bool)))
    return Episode(*halves)


@dataclass(frozen=True)
class Kind:
    """A kind of tasks: toy models for it, and four episodes of 9 support rows and 6 queries.

    Args:
        models: by name; called without arguments.
        episodes: from the toy classes, or from nothing but seeds.
        frozen: a model with a frozen parameter and one named "unused" that has no use,
            and the frozen one's name.
        padding: what rows that only pad hold in the tests; any value must do.
        featured: whether the models have a `body` that gives features.
    """

    models: dict[str, Callable[[], nn.Module]]
    episodes: Callable[[ClassDataset], Episode]
    frozen: tuple[Callable[[], nn.Module], str]
    padding: float = 100.0
    featured: bool = True


class Numbers(nn.Module):
    """From one number to one; a frozen layer and a parameter without a use."""

    def __init__(self) -> None:
        super().__init__()
        dense = (nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.body, self.head = nn.Sequential(*dense), nn.Linear(8, 1)
        self.unused = nn.Parameter(torch.ones(2))
        generator = torch.Generator().manual_seed(2)
        for p in self.parameters():
            p.data.uniform_(-0.5, 0.5, generator=generator)
        self.body[2].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def of_numbers(_toy: ClassDataset) -> Episode:
    """Four waves, nine points and six queries each."""
    waves = Sinusoids(n_shot=9, n_query=6, grid_query=False).episodes(torch.arange(4))
    double: Episode = map_tensors(lambda v: v.double() if v.is_floating_point() else v, waves)
    return double


def of_sets(toy: ClassDataset) -> Episode:
    """Four episodes of two numbers to two: 9 support rows and 6 queries."""
    x = keys.uniform(keys.fold(keys.key(3), torch.arange(4)), 30, -1.0, 1.0).unflatten(1, (15, 2))
    y = torch.stack([(3 * x).sin().sum(-1), x.prod(-1)], -1)
    dense = [Examples.dense(x[:, rows], y[:, rows]) for rows in (slice(9), slice(9, 15))]
    return Episode(*dense)


def process(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: NeuralProcess(2, 2, width=8, heads=2, **settings)


def transformer() -> nn.Module:
    return TransformerProcess(2, 2, width=8, heads=2, layers=2, hidden=8)


def part_frozen(make: Callable[[], nn.Module], frozen: str) -> tuple[Callable[[], nn.Module], str]:
    """The model with one parameter frozen, and one that has no use."""

    def made() -> nn.Module:
        model = make()
        model.get_parameter(frozen).requires_grad_(False)
        model.unused = nn.Parameter(torch.ones(3))
        return model

    return made, frozen


MEAN, LATENT = process(path="mean"), process(path="", latent=4)
ATTENTION: dict[str, Any] = {"path": "attention", "self_attention": True}
KINDS = {
    "classes": Kind({"plain": Plain, "normed": Normed}, of_classes, (Normed, "body.3.weight")),
    "pairs": Kind(
        {
            "tables": tables,
            "mixtures": lambda: mixture_pair(components=3, hidden=4, spread=2.0),
        },
        of_pairs,
        (partly_frozen, "b_given_a.weight"),
        featured=False,
    ),
    "samples": Kind(
        {"masked mlps": lambda: MaskedMlps(3, 3, hidden=5)},
        of_graphs,
        (partly_frozen_mlps, "outer_bias"),
        featured=False,
    ),
    "study": Kind(
        {"transformer": Studying},
        of_words,
        (Studying, "out.weight"),
        padding=5.0,
        featured=False,
    ),
    "sequences": Kind(
        {
            "writer": lambda: writing(Seq2Seq),
            "memory": lambda: writing(MemorySeq2Seq, 0.5),
        },
        of_words,
        (lambda: writing(MemorySeq2Seq), "out.weight"),
        padding=5.0,
        featured=False,
    ),
    "numbers": Kind({"plain": Numbers}, of_numbers, (Numbers, "body.2.weight")),
    "sets": Kind(
        {"mean": MEAN, "attention": process(**ATTENTION), "transformer": transformer},
        of_sets,
        part_frozen(MEAN, "decoder.0.weight"),
        featured=False,
    ),
    "sets with a latent variable": Kind(
        {"latent": LATENT, "attention": process(latent=4, **ATTENTION)},
        of_sets,
        part_frozen(LATENT, "decoder.0.weight"),
        featured=False,
    ),
    "tables": Kind(
        {"rows": table_network},
        of_classes,
        (partly_frozen_table_network, "vote_key"),
        featured=False,
    ),
}
PAIRS = {
    f"{model}-{name}": (row, KINDS[row.kind].models[model])
    for name, row in ROWS.items()
    for model in KINDS[row.kind].models
}
classes = pytest.mark.parametrize("pair", [n for n in PAIRS if PAIRS[n][0].kind == "classes"])
causal = pytest.mark.parametrize("pair", [n for n in PAIRS if PAIRS[n][0].causal])
featured = pytest.mark.parametrize("pair", [n for n in PAIRS if KINDS[PAIRS[n][0].kind].featured])


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def row(pair: str) -> Row:
    return PAIRS[pair][0]


@pytest.fixture
def learner(pair: str) -> Learner:
    """In float64, so that another order of sums is no excuse."""
    row, model = PAIRS[pair]
    return row.make(model().double())


@pytest.fixture
def episodes(row: Row, toy_data: ClassDataset) -> Episode:
    return KINDS[row.kind].episodes(toy_data)


KEYS = keys.fold(keys.key(0, "contract"), torch.arange(4))


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a pytree, in order."""
    found: list[Tensor] = []
    map_tensors(lambda x: found.append(x) or x, tree)
    return found


def updated(engine: Vectorised, params: Params, episodes: Episode) -> Any:
    """One outer step by the rule, or the outer gradient where there is no rule."""
    if type(engine.learner).outer_update is None:
        return engine.outer_gradient(params, episodes, KEYS)
    return engine.outer_step(params, episodes, KEYS, outer_lr=0.5)


def answers(engine: Vectorised, params: Params, episodes: Episode) -> Tensor:
    """Adapts, as after meta-training, and answers the queries."""
    return engine.predict(params, engine.adapt(params, episodes.support, KEYS), episodes.query)


def trained(learner: Learner, episodes: Episode) -> Params:
    """Parameters that are no longer the initial ones."""
    params, engine = learner.init(), Vectorised(learner)
    outer = engine.outer_state(params)
    new: Params = engine.update(params, outer, episodes, KEYS, outer_lr=0.5)[0]
    return new


def test_a_state_is_carried_where_there_is_a_rule_for_it(
    learner: Learner, episodes: Episode
) -> None:
    """Then a task starts from it, and what begins a step is learned as weights are."""
    for name in ("sgd", "adam") if isinstance(learner, FineTune) else ():
        settings: dict[str, Any] = {"inner_optimiser": name, "carry": True}
        if name not in learner.carries:
            with pytest.raises(InputError, match=rf"carry with {name} and|\bwith {name}\b"):
                replace(learner, **settings)
            continue
        carried = replace(learner, **settings)
        try:
            carried = replace(carried, momentum=0.5, beta1=0.5)
        except InputError:  # takes steps without momentum alone, which have nothing to carry
            assert not any(n.startswith("inner/") for n in carried.init())
            continue
        params, engine = carried.init(), Vectorised(carried)
        moving = {n: p for n, p in params.items() if n.startswith("inner/m/")}
        assert moving
        pushed = {**params, **{n: torch.full_like(p, 0.3) for n, p in moving.items()}}
        assert not torch.equal(*(answers(engine, p, episodes) for p in (params, pushed)))
        if type(learner).outer_update is None:
            grads = engine.outer_gradient(pushed, episodes, KEYS)[0]
            assert any(bool(grads[n].any()) for n in moving)


def test_every_learner_has_a_row() -> None:
    named = {row.make(model()).name for row, model in PAIRS.values()}
    assert named == set(LEARNERS)


def test_the_same_input_and_key_give_the_same_bits(learner: Learner, episodes: Episode) -> None:
    params = trained(learner, episodes)
    for act in (updated, answers):
        first = act(Vectorised(learner), params, episodes)
        again = act(Vectorised(learner), params, episodes)
        torch.testing.assert_close(again, first, rtol=0, atol=0)


def changed(value: Any) -> Any:
    """Another value of a setting, which a learner that has it accepts."""
    if isinstance(value, str):
        return {"sgd": "adam", "adam": "sgd"}[value]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 or 0.5


# Settings that change no answer: Adam has no momentum, and normalisation behind the first layer
# takes away what is the same for all inputs.
IDLE = {
    **{f"{model}-joint": {"momentum"} for model in ("plain", "normed")},
    **{f"normed-cavia{kind}": {"eval_steps", "eval_batch"} for kind in ("", ", first order")},
    # Of two views with different answers this network, untrained, is surer of the first.
    **{
        f"transformer-mlc{kind}": {"views"}
        for kind in ("", ", some examples asked again, no dropout")
    },
}


def test_later_settings_are_not_of_meta_training(
    pair: str, learner: Learner, episodes: Episode
) -> None:
    """Bit for bit, so that a run can be evaluated under others than it was trained with."""
    params, before = learner.init(), updated(Vectorised(learner), learner.init(), episodes)
    for name in learner.later:
        other = replace(learner, **{name: changed(getattr(learner, name))})
        torch.testing.assert_close(other.init(), params, rtol=0, atol=0)
        after = updated(Vectorised(other), params, episodes)
        for a, b in zip(tensors(after), tensors(before), strict=True):
            assert torch.equal(a, b)
        one, two = (answers(Vectorised(each), params, episodes) for each in (learner, other))
        idle = one.shape == two.shape and torch.equal(one, two)
        assert idle == (name in IDLE.get(pair, ())), f"{name} {'does nothing' * idle}"


def test_a_learned_task_can_be_kept(learner: Learner, episodes: Episode, tmp_path: Path) -> None:
    """Read again, it is the same to the last bit; answers differ by strides at most."""
    params, one = trained(learner, episodes), select(episodes, 0)
    task = Adapted(learner, params, learner.adapt(params, one.support, KEYS[0]), ())
    task.save(tmp_path / "task")
    found = Adapted.load(tmp_path / "task", learner)
    given = one.query.x, one.query.mask
    torch.testing.assert_close(found.state, task.state, rtol=0, atol=0)
    torch.testing.assert_close(found.params, params, rtol=0, atol=0)
    expected = learner.predict(params, task.state, *given)
    torch.testing.assert_close(learner.predict(found.params, found.state, *given), expected)


def test_arguments_and_model_are_unchanged(learner: Learner, episodes: Episode) -> None:
    params = trained(learner, episodes)
    model = {**learner.model.state_dict()}
    before = map_tensors(Tensor.clone, (params, episodes, model, KEYS))
    versions = [x._version for x in tensors((params, episodes, model))]
    modes = [m.training for m in learner.model.modules()]
    random = torch.get_rng_state()
    engine = Vectorised(learner)
    updated(engine, params, episodes)
    state = engine.adapt(params, episodes.support, KEYS)
    kept = map_tensors(Tensor.clone, state)
    engine.predict(params, state, episodes.query)
    torch.testing.assert_close(state, kept, rtol=0, atol=0)
    torch.testing.assert_close((params, episodes, model, KEYS), before, rtol=0, atol=0)
    assert [x._version for x in tensors((params, episodes, model))] == versions
    assert [m.training for m in learner.model.modules()] == modes
    assert all(p.grad is None for p in learner.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_is_meta_learned_shares_no_memory_with_the_model(learner: Learner) -> None:
    own = {p.data_ptr() for p in learner.model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in learner.init().values())


def test_episodes_at_once_equal_one_by_one(learner: Learner, episodes: Episode) -> None:
    for normalisation in ("support", "transductive") if layers(learner.model) else ("support",):
        judge = replace(learner, normalisation=normalisation)
        params = trained(judge, episodes)
        together = answers(Vectorised(judge, vectorise="vmap"), params, episodes)
        for t in range(4):
            one = select(episodes, t)
            state = judge.adapt(params, one.support, KEYS[t])
            alone = judge.predict(params, state, one.query.x, one.query.mask)
            torch.testing.assert_close(together[t], alone, rtol=1e-10, atol=1e-12)
        fast, slow = (Vectorised(judge, vectorise=how) for how in ("vmap", "loop"))
        torch.testing.assert_close(
            answers(slow, params, episodes), together, rtol=1e-10, atol=1e-12
        )
        by = [updated(engine, params, episodes) for engine in (fast, slow)]
        torch.testing.assert_close(by[0], by[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(learner: Learner, episodes: Episode, dtype: torch.dtype) -> None:
    learner.model.to(dtype)
    episodes = map_tensors(lambda v: v.to(dtype) if v.is_floating_point() else v, episodes)
    params, engine = learner.init(), Vectorised(learner)
    state = engine.adapt(params, episodes.support, KEYS)
    made = [params, state, updated(engine, params, episodes), answers(engine, params, episodes)]
    for x in tensors(tuple(made)):
        assert x.dtype == dtype or not x.is_floating_point()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_the_cpu_gives(learner: Learner, episodes: Episode) -> None:
    params = trained(learner, episodes)
    expected = answers(Vectorised(learner), params, episodes)
    learner.model.cuda()
    params, there = map_tensors(Tensor.cuda, (params, episodes))
    state = Vectorised(learner).adapt(params, there.support, KEYS.cuda())
    found = Vectorised(learner).predict(params, state, there.query)
    assert found.is_cuda
    assert all(x.is_cuda for x in tensors((state,)))
    torch.testing.assert_close(found.cpu(), expected)


class Asking(TorchDispatchMode):
    """Notes operations for which a GPU would have to be waited for: they end a recording."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [x for x in args[1] if x is not None] if name == "index" else []
        waits = {"_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal"}
        if name in waits or any(mask.dtype == torch.bool for mask in masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_what_counts_as_asking() -> None:
    x = torch.ones(3)
    for ask in (
        lambda: torch.tensor([1.0]),
        lambda: x.new_tensor(2.0),
        lambda: x.sum().item(),
        lambda: bool(x.all()),
        lambda: x[x > 0],
    ):
        with Asking() as asking:
            ask()
        assert asking.found
    with Asking() as asking:
        torch.full((), 3), x[torch.arange(2)], 2 * x**2
    assert not asking.found


def test_a_task_is_learnt_without_asking_for_values(
    row: Row, learner: Learner, episodes: Episode
) -> None:
    engine, params = Vectorised(learner, vectorise="vmap"), learner.init()
    outer, rate = engine.outer_state(params), torch.full((), 0.5, dtype=torch.float64)
    with Asking() as asking:
        if type(learner).outer_update is None:
            engine._gradient_update(params, outer, episodes, KEYS, rate)
        else:
            engine._rule(params, episodes, KEYS, rate)
        engine.adapt(params, episodes.support, KEYS)
    assert bool(asking.found) == row.asks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_replayed_update_is_the_update(row: Row, learner: Learner, episodes: Episode) -> None:
    if row.asks or (row.eliminates and torch.__version__ < "2.12"):
        pytest.skip("it cannot be recorded")
    learner.model.cuda()
    params, there = map_tensors(Tensor.cuda, (learner.init(), episodes))
    found = []
    for cuda_graphs in (False, True):
        engine = Vectorised(learner, cuda_graphs=cuda_graphs)
        now, outer = params, engine.outer_state(params)
        kept = []
        for _ in range(4):  # called, recorded, replayed
            now, outer, loss = engine.update(now, outer, there, KEYS.cuda(), outer_lr=0.01)
            kept += [now, loss, engine.adapt(now, there.support, KEYS.cuda())]
        found.append(kept)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def with_noise(examples: Examples, padding: float) -> Examples:
    """Numbers of no meaning in the rows that the mask leaves out: inputs, and 1 as target."""

    def filled(values: Tensor, noise: float) -> Tensor:
        mask = examples.mask.reshape(*examples.mask.shape, *[1] * (values.ndim - 2))
        return torch.where(mask, values, torch.full_like(values, noise))

    return examples._replace(x=filled(examples.x, padding), y=filled(examples.y, 1))


def test_padding_changes_nothing(row: Row, learner: Learner, episodes: Episode) -> None:
    """Episodes of 5, 8, 7 and 9 support rows and 4, 6, 3 and 5 queries in one batch."""
    params, sizes = trained(learner, episodes), [(5, 4), (8, 6), (7, 3), (9, 5)]
    ragged = []
    for t, (n_support, n_query) in enumerate(sizes):
        support, query = select(episodes, t)
        # From the last row back, since the first rows are all of one class.
        support = Examples(*(field[-n_support:] for field in support))
        ragged.append(Episode(support, Examples(*(field[:n_query] for field in query))))
    batch = stack(ragged)
    batch = Episode(*(with_noise(half, KINDS[row.kind].padding) for half in batch))
    for normalisation in ("support", "transductive"):
        judge = replace(learner, normalisation=normalisation)
        together = answers(Vectorised(judge, vectorise="vmap"), params, batch)
        for t, one in enumerate(ragged):
            state = judge.adapt(params, one.support, KEYS[t])
            alone = judge.predict(params, state, one.query.x, one.query.mask)
            torch.testing.assert_close(
                together[t, : len(alone)], alone, rtol=1e-9, atol=1e-11, msg=normalisation
            )
    by = [updated(Vectorised(learner, vectorise=how), params, batch) for how in ("vmap", "loop")]
    torch.testing.assert_close(by[0], by[1], rtol=1e-10, atol=1e-12)
    dense = [updated_alone(learner, params, one, t) for t, one in enumerate(ragged)]
    padded = [updated_alone(learner, params, select(batch, t), t) for t in range(4)]
    torch.testing.assert_close(padded, dense, rtol=1e-9, atol=1e-11)


def updated_alone(learner: Learner, params: Params, episode: Episode, t: int) -> Any:
    """What one episode, in a batch of its own, makes of the parameters."""
    batch, engine = stack([episode]), Vectorised(learner)
    if type(learner).outer_update is None:
        return engine.outer_gradient(params, batch, KEYS[t : t + 1])
    return engine.outer_step(params, batch, KEYS[t : t + 1], outer_lr=0.5)


@pytest.mark.parametrize("name", ROWS)
def test_frozen_and_unused_parameters(name: str, toy_data: ClassDataset) -> None:
    """A frozen weight stays the model's own and an unused one as it was."""
    row, kind = ROWS[name], KINDS[ROWS[name].kind]
    model, frozen = kind.frozen
    learner, episodes = row.make(model().double()), kind.episodes(toy_data)
    params = learner.init()
    assert frozen not in params
    new = trained(learner, episodes)
    assert new.keys() == params.keys()
    torch.testing.assert_close(new["unused"], params["unused"], rtol=0, atol=0)
    before = answers(Vectorised(learner), new, episodes)
    with torch.no_grad():
        learner.model.get_parameter(frozen).mul_(2)
    assert not torch.allclose(answers(Vectorised(learner), new, episodes), before)


@featured
def test_shared_features_are_those_of_the_body(learner: Learner, episodes: Episode) -> None:
    """Under new parameters, and under the model's own they equal a plain call.

    Inputs that the learner adds are zero before any task.
    """
    x, model = episodes.query.x[0], learner.model
    seen = F.pad(x, (0, learner.extra_inputs(vars(learner))))
    with torch.no_grad():
        torch.testing.assert_close(learner.features(learner.init(), x), model.body(seen))
        new = trained(learner, episodes)
        found = learner.features(new, x)
        assert not torch.allclose(found, model.body(seen))
        names = dict(model.named_parameters())
        for name, value in new.items():
            if name in names:
                names[name].copy_(value)
        torch.testing.assert_close(found, model.body(seen))
    assert found.shape == (6, 8)


@featured
def test_features_leave_the_buffers_of_a_users_model_alone(row: Row, episodes: Episode) -> None:
    model = nn.Module()
    inputs = episodes.query.x.shape[-1]
    model.body = nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8))
    model.double()
    learner = row.make(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learner.features(learner.init(), episodes.query.x[0])
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_support_order(row: Row, learner: Learner, episodes: Episode) -> None:
    params = trained(learner, episodes)
    back = Examples(*(field.flip(1) for field in episodes.support))
    found = answers(Vectorised(learner), params, Episode(back, episodes.query))
    expected = answers(Vectorised(learner), params, episodes)
    same = torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert same != row.support_order_matters


@classes
def test_renaming_classes(row: Row, learner: Learner, episodes: Episode) -> None:
    params = trained(learner, episodes)
    renamed = episodes.support._replace(y=(episodes.support.y + 1) % N_WAY)
    found = answers(Vectorised(learner), params, Episode(renamed, episodes.query))
    expected = answers(Vectorised(learner), params, episodes).roll(1, -1)
    same = torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert same == row.renaming_permutes


def test_other_queries(row: Row, learner: Learner, episodes: Episode) -> None:
    """Half of the queries get the answers that they get among all, or are told not to."""
    params = trained(learner, episodes)
    half = Episode(episodes.support, Examples(*(field[:, :3] for field in episodes.query)))
    found = answers(Vectorised(learner), params, half)
    expected = answers(Vectorised(learner), params, episodes)[:, :3]
    same = torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert same != row.queries_together
    assert learner.transductive == row.queries_together


def test_query_order(learner: Learner, episodes: Episode) -> None:
    """Another order of the queries is the same order of the answers."""
    params = trained(learner, episodes)
    order = torch.tensor([4, 0, 3, 5, 1, 2])
    shuffled = Episode(episodes.support, Examples(*(field[:, order] for field in episodes.query)))
    found = answers(Vectorised(learner), params, shuffled)
    expected = answers(Vectorised(learner), params, episodes)[:, order]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@causal
def test_a_position_sees_nothing_later(learner: Any, episodes: Episode) -> None:
    """What is predicted for a support example stays, whatever comes after it."""
    params, support = trained(learner, episodes), select(episodes, 0).support
    before = learner.positions(params, support)
    for t in (0, 4, 7):
        order = torch.cat([torch.arange(t + 1), torch.arange(t + 1, 9).flip(0)])
        other = Examples(support.x[order], support.y.flip(0), support.mask)
        other.y[:t] = support.y[:t]
        after = learner.positions(params, other)
        torch.testing.assert_close(after[: t + 1], before[: t + 1], rtol=1e-10, atol=1e-12)
        assert not torch.allclose(after[t + 1 :], before[t + 1 :], rtol=1e-10, atol=1e-12)
