"""Drawing episodes, and learning one new task: what is done between and after training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rows import rivals
from rows.contest import Contest, Setup, check
from rows.metric import Loop
from rows.plain import PlainConv4, with_weights
from tegu import MetaLearned, recipes
from tegu.datasets.classes import ClassDataset
from tegu.inner import Params
from tegu.job import Job
from tegu.sampling import FewShotTasks

BLOCK = 10_000  # images that are drawn together, about as many as in meta-training
CLASSES = {1_000: 20, 100_000: 2}  # how many there are, and how many images each has


@contextmanager
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def data(classes: int) -> ClassDataset:
    """Characters of noise; with 100,000 classes, two images of each suffice for one shot."""
    each = CLASSES[classes]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (classes * each, 1, 28, 28), dtype=torch.uint8, generator=generator)
    names = tuple(map(str, range(classes)))
    return ClassDataset("noise", "meta_train", images, torch.full((classes,), each), names)


def sampling(setup: Setup) -> Iterator[Contest]:
    """Images into episodes, on one core: from few classes and from many, and by easyfsl.

    On a GPU tegu's images lie there. easyfsl's are collated on one core and moved there after,
    as its users do.
    """
    where = "one core" if setup.device == "cpu" else "on the GPU"
    work = f"a million 28x28 images into 5-way 1-shot episodes, {where}"

    def drawing(classes: int, queries: int) -> Callable[[int], Any]:
        tasks = FewShotTasks(data(classes).to(setup.device), 5, 1, queries)
        count = BLOCK // (5 * (1 + queries))

        def act(i: int) -> Any:
            with one_core():
                index = torch.arange(i * count, (i + 1) * count, device=setup.device)
                return tasks.episodes(index)

        return act

    few, many = drawing(1_000, 1), drawing(100_000, 1)
    yield Contest(
        f"{work}, 1 query, from 1,000 classes",
        "fp32",
        "tegu, from 100,000 classes",
        few,
        many,
        per=BLOCK / 1e6,
        each=10,
        alike=True,
    )
    yield Contest(
        f"{work}, 15 queries",
        "fp32",
        "easyfsl",
        drawing(1_000, 15),
        _easyfsl(data(1_000), setup.device) if rivals.have("easyfsl") else None,
        per=BLOCK / 1e6,
        part=5 * 16 / 1e6,
        each=10,
    )


def _easyfsl(source: ClassDataset, device: str) -> Callable[[int], Any]:
    """Its sampler and its collation in a data loader without workers, an episode a call."""
    base = rivals.module("easyfsl.datasets.few_shot_dataset").FewShotDataset
    shell: Any = sys.modules["easyfsl.datasets"]
    shell.FewShotDataset = base  # where its sampler looks for it
    sampler = rivals.module("easyfsl.samplers.task_sampler").TaskSampler
    images_of = source.tensor
    labels = torch.arange(source.n_classes).repeat_interleave(source.counts).tolist()

    class Images(base):  # type: ignore[misc, valid-type]
        def __getitem__(self, item: int) -> tuple[Tensor, int]:
            return images_of[item].float() / 255, labels[item]

        def __len__(self) -> int:
            return len(labels)

        def get_labels(self) -> list[int]:
            return labels

    class Started(sampler):  # type: ignore[misc, valid-type]
        """Its own start passes what torch's samplers do not take any more."""

        def __init__(self) -> None:
            kind: Any = torch.utils.data.Sampler
            old, kind.__init__ = kind.__init__, _nothing
            try:
                super().__init__(images, 5, 1, 15, 10_000_000)
            finally:
                kind.__init__ = old

    images = Images()
    tasks = Started()
    loader: Any = torch.utils.data.DataLoader(
        images, batch_sampler=tasks, collate_fn=tasks.episodic_collate_fn
    )
    drawn = iter(loader)

    def act(i: int) -> Any:
        with one_core():
            support_x, support_y, query_x, query_y, _ = next(drawn)
            return [x.to(device) for x in (support_x, support_y, query_x, query_y)]

    return act


def _nothing(self: Any, data_source: Any) -> None: ...


def one_task(setup: Setup) -> Iterator[Contest]:
    """A user's new task, from images and labels to answers, by what MAML and ProtoNet learned."""
    generator = torch.Generator().manual_seed(0)
    shown, asked = (torch.rand(n, 1, 28, 28, generator=generator).to(setup.device) for n in (5, 75))
    labels = ["a", "b", "c", "d", "e"]
    y = torch.arange(5, device=setup.device)
    there = {"engine.device": setup.device}
    wanted = {"learner.eval_steps": 5, **there}
    job = Job(recipes.load("maml-omniglot-5way", wanted), setup.data_dir)
    learner: Any = replace(job.learner, normalisation="transductive")
    params = learner.init()
    learned = MetaLearned(learner, params)
    network = with_weights(PlainConv4(5, tracks=False), params)

    def answered(network: nn.Module, shown: Tensor, asked: Tensor) -> Tensor:
        weights: Params = dict(network.named_parameters())
        for _ in range(learner.steps(training=False)):
            value = F.cross_entropy(functional_call(network, weights, (shown,)), y)
            grads = torch.autograd.grad(value, list(weights.values()))
            weights = {
                name: p - learner.inner_lr * g
                for (name, p), g in zip(weights.items(), grads, strict=True)
            }
        with torch.no_grad():
            answers: Tensor = functional_call(network, weights, (asked,))
            return answers

    work = "one new task, Omniglot 5-way 1-shot, 75 queries: learn it and answer"
    exact = {k: v.double() for k, v in params.items()}
    found = MetaLearned(learner, exact).adapt(shown.double(), labels).outputs(asked.double())
    plain = with_weights(PlainConv4(5, tracks=False), exact)
    right = answered(plain, shown.double(), asked.double())
    check(f"{work}, MAML", "tegu", "fp64", [found], [right])
    yield Contest(
        f"{work}, MAML of 5 steps",
        "fp32",
        "plain loop",
        lambda i: learned.adapt(shown, labels).outputs(asked),
        lambda i: answered(network, shown, asked),
    )

    # Both normalise support set and queries each by itself.
    headless = Job(recipes.load("protonet-omniglot", there), setup.data_dir).learner.for_ways(5)
    headless = replace(headless, normalisation="transductive")
    params = headless.init()
    known = MetaLearned(headless, params)
    exact = {k: v.double() for k, v in params.items()}

    def by(who: str, weights: Params) -> Loop:
        return Loop(
            with_weights(PlainConv4(0, pool=True, tracks=False), weights), by=who, apart=True
        )

    with torch.no_grad():
        right = by("plain loop", exact).scores(shown.double(), y, asked.double())
        check(
            f"{work}, ProtoNet",
            "tegu",
            "fp32",
            [known.adapt(shown, labels).outputs(asked)],
            [right],
        )
    theirs = None
    if rivals.have("easyfsl"):
        loop = by("easyfsl", params)

        def theirs(i: int) -> Tensor:
            with torch.no_grad():
                return loop.scores(shown, y, asked)

        check(f"{work}, ProtoNet", "easyfsl", "fp32", [theirs(0)], [right])

    yield Contest(
        f"{work}, ProtoNet",
        "fp32",
        "easyfsl",
        lambda i: known.adapt(shown, labels).outputs(asked),
        theirs,
    )
