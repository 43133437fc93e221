"""Few-shot episodes: what they hold, that number i decides them, and bad requests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tegu.datasets.classes import ClassDataset
from tegu.errors import InputError
from tegu.sampling import ClassBatches, FewShotTasks


@pytest.fixture
def numbered() -> ClassDataset:
    """Five classes of 4 to 7 examples; each example is its own row number."""
    counts = torch.tensor([4, 7, 5, 6, 4])
    rows = torch.arange(26.0).unsqueeze(1)
    return ClassDataset("numbered", "meta_test", rows, counts, tuple("abcde"))


def class_of(data: ClassDataset, x: Tensor) -> Tensor:
    """Class of each row number."""
    return torch.bucketize(x.squeeze(-1), data.counts.cumsum(0), right=True)


def test_an_episode_holds_what_was_asked_for(numbered: ClassDataset) -> None:
    tasks = FewShotTasks(numbered, n_way=3, n_shot=2, n_query=1)
    batch = tasks.episodes(torch.arange(200))
    assert batch.support.x.shape == (200, 6, 1)
    assert batch.query.x.shape == (200, 3, 1)
    assert bool(batch.support.mask.all())
    assert bool(batch.query.mask.all())
    for t in range(200):
        support, query = (
            class_of(numbered, batch.support.x[t]),
            class_of(numbered, batch.query.x[t]),
        )
        classes = []
        for label in range(3):
            own = torch.cat(
                [support[batch.support.y[t] == label], query[batch.query.y[t] == label]]
            )
            assert len(own) == 3
            assert len(own.unique()) == 1
            classes.append(int(own[0]))
        assert len(set(classes)) == 3
        drawn = torch.cat([batch.support.x[t], batch.query.x[t]]).flatten().tolist()
        assert len(set(drawn)) == 9, "an example is both learnt from and asked"


def test_all_classes_all_examples_and_all_labels_turn_up(numbered: ClassDataset) -> None:
    """Small classes use their last row, large ones too, and no label belongs to a class."""
    batch = FewShotTasks(numbered, n_way=2, n_shot=1).episodes(torch.arange(3000))
    x, y = batch.support.x.flatten(), batch.support.y.flatten()
    counts = torch.bincount(x.long(), minlength=26).double()
    expected = 6000 / 5 / numbered.counts.double().repeat_interleave(numbered.counts)
    assert bool(((counts - expected).abs() < 5 * expected.sqrt()).all())
    first = torch.bincount(class_of(numbered, x.unsqueeze(1))[y == 0], minlength=5).double()
    assert bool(((first - 600).abs() < 5 * 22).all())


def test_the_order_of_queries_tells_nothing(numbered: ClassDataset) -> None:
    batch = FewShotTasks(numbered, n_way=3, n_shot=1, n_query=2).episodes(torch.arange(3000))
    shares = torch.stack([(batch.query.y == label).double().mean(0) for label in range(3)])
    assert bool(((shares - 1 / 3).abs() < 5 * (2 / 9 / 3000) ** 0.5).all())


def test_an_episode_is_a_function_of_seed_split_and_number(numbered: ClassDataset) -> None:
    tasks = FewShotTasks(numbered, n_way=3, n_shot=2, n_query=2, seed=4)
    index = torch.tensor([10**9, 0, 7, 3])
    batch = tasks.episodes(index)
    for t, i in enumerate(index):
        alone = tasks.episodes(i.reshape(1))
        for ours, theirs in zip(batch, alone, strict=True):
            for field, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(field[t], other[0], rtol=0, atol=0)
    others = [
        replace(tasks, seed=5),
        replace(tasks, data=replace(numbered, split="meta_val")),
    ]
    for other in others:
        assert not torch.equal(other.episodes(index).support.x, batch.support.x)


def test_episodes_do_not_depend_on_the_size_of_the_batch(numbered: ClassDataset) -> None:
    tasks = FewShotTasks(numbered, n_way=3, n_shot=2)
    together = tasks.episodes(torch.arange(10)).support.x
    halves = [tasks.episodes(torch.arange(i, i + 5)).support.x for i in (0, 5)]
    torch.testing.assert_close(torch.cat(halves), together, rtol=0, atol=0)


def test_images_become_floats(numbered: ClassDataset) -> None:
    images = torch.arange(26, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    data = replace(numbered, examples=images, scale=1 / 255)
    x = FewShotTasks(data, n_way=2, n_shot=1).episodes(torch.arange(50)).support.x
    assert x.dtype == torch.get_default_dtype()
    assert x.shape == (50, 2, 1, 1, 1)
    torch.testing.assert_close((x * 255).round() / 255, x)
    assert 20 / 255 < float(x.max()) <= 25.001 / 255


def test_no_queries_are_possible(numbered: ClassDataset) -> None:
    batch = FewShotTasks(numbered, n_way=2, n_shot=4, n_query=0).episodes(torch.arange(3))
    assert batch.query.x.shape == (3, 0, 1)
    assert batch.query.mask.shape == (3, 0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n_way": 1}, r"n_way is 1; expected at least 2\. Pass n_way=2"),
        ({"n_shot": 0}, r"n_shot is 0; expected at least 1\. Pass n_shot=1"),
        ({"n_query": -1}, r"n_query is -1; expected at least 0"),
        ({"n_way": 6}, r"n_way is 6, but numbered meta_test has 5 classes.*Lower n_way"),
        (
            {"n_shot": 3, "n_query": 2},
            r"3 shots plus 2 queries make 5, but class 'a' of numbered meta_test has 4 examples; "
            r"expected no more .* Lower n_shot or n_query",
        ),
    ],
)
def test_what_cannot_be_drawn(numbered: ClassDataset, settings: dict[str, int], text: str) -> None:
    with pytest.raises(InputError, match=text):
        FewShotTasks(numbered, **{"n_way": 2, "n_shot": 1, **settings})


# Batches of all classes


def test_batches_hold_examples_under_the_numbers_of_their_classes(numbered: ClassDataset) -> None:
    batch = ClassBatches(numbered, 8).episodes(torch.arange(50))
    assert batch.support.x.shape == (50, 8, 1)
    assert bool(batch.support.mask.all())
    assert batch.query.x.shape == (50, 0, 1)
    assert batch.query.y.shape == batch.query.mask.shape == (50, 0)
    torch.testing.assert_close(batch.support.y, class_of(numbered, batch.support.x))


def test_every_example_is_dealt_once_an_epoch(numbered: ClassDataset) -> None:
    """26 examples in batches of 8: batches span the seam, and epochs differ in order."""
    dealt = ClassBatches(numbered, 8).episodes(torch.arange(13)).support.x.flatten()
    epochs = dealt.reshape(4, 26)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(26))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_a_batch_is_a_function_of_seed_split_and_number(numbered: ClassDataset) -> None:
    tasks, index = ClassBatches(numbered, 30, seed=4), torch.tensor([10**9, 0, 7, 3])
    together = tasks.episodes(index).support
    for t, i in enumerate(index):
        alone = tasks.episodes(i.reshape(1)).support
        torch.testing.assert_close((together.x[t], together.y[t]), (alone.x[0], alone.y[0]))
    for other in (
        replace(tasks, seed=5),
        replace(tasks, data=replace(numbered, split="meta_val")),
    ):
        assert not torch.equal(other.episodes(index).support.x, together.x)


def test_batches_of_images_are_floats(numbered: ClassDataset) -> None:
    images = torch.arange(26, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    data = replace(numbered, examples=images, scale=1 / 255)
    x = ClassBatches(data, 26).episodes(torch.arange(1)).support.x
    torch.testing.assert_close(x.flatten().sort().values * 255, torch.arange(26.0))


def test_no_batch_is_empty(numbered: ClassDataset) -> None:
    with pytest.raises(InputError, match=r"batch is 0; expected at least 1"):
        ClassBatches(numbered, 0)
