"""Few-shot episodes: what they hold, that number i decides them, and bad requests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tegu.datasets import (
    CategoryPairs,
    CausalGraphs,
    ClassDataset,
    ContinuousPairs,
    GaussianProcesses,
    Grammars,
    MutualExclusivity,
    Scan,
    ScanStudy,
    Sinusoids,
    SyntheticTables,
)
from tegu.errors import InputError
from tegu.sampling import ClassBatches, FewShotTasks, Tasks


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


def digest(*tensors: Tensor) -> str:
    """The first digits of a SHA-256 of shapes, dtypes and bits."""
    total = hashlib.sha256()
    for x in tensors:
        total.update(f"{x.dtype} {tuple(x.shape)}".encode() + x.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("vectors", {"n_way": 2, "n_shot": 1}, "511a2888669f4fae"),
        ("vectors", {"n_way": 5, "n_shot": 2, "n_query": 2, "seed": 3}, "a85c2c5444d6004e"),
        ("images", {"n_way": 3, "n_shot": 1, "n_query": 0}, "c920cbeba03984e1"),
        ("images", {"n_way": 4, "n_shot": 3, "n_query": 1, "seed": -1}, "6d05aa413043ea7b"),
    ],
)
def test_episodes_are_what_they_were(
    numbered: ClassDataset, kind: str, settings: dict[str, int], expected: str
) -> None:
    """Published figures name episodes by seed and number: a change of theirs is an error."""
    data = numbered
    if kind == "images":
        images = (torch.arange(26 * 12) % 251).to(torch.uint8).reshape(26, 1, 4, 3)
        data = replace(numbered, examples=images, scale=1 / 255, split="meta_train")
    batch = FewShotTasks(data, **settings).episodes(torch.tensor([0, 1, 2, 77, 10**12]))
    assert digest(*batch.support, *batch.query) == expected


def test_floats_are_the_same_in_blocks_of_any_size(
    numbered: ClassDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.arange(26 * 4, dtype=torch.uint8).reshape(26, 1, 2, 2)
    data = replace(numbered, examples=images, scale=1 / 255)
    tasks, index = FewShotTasks(data, 3, 2, 1), torch.arange(7)
    whole = tasks.episodes(index).support.x
    for block in (1, images[:5].numel()):
        monkeypatch.setattr("tegu.sampling.BLOCK", block)
        assert torch.equal(tasks.episodes(index).support.x, whole)


def test_examples_of_no_numbers(numbered: ClassDataset) -> None:
    data = replace(numbered, examples=torch.empty(len(numbered.examples), 0, dtype=torch.uint8))
    assert FewShotTasks(data, 3, 2, 1).episodes(torch.arange(2)).support.x.shape == (2, 6, 0)


def test_rows_that_come_from_elsewhere_are_left_as_they_are(numbered: ClassDataset) -> None:
    class Held:
        """Gives one tensor out again and again."""

        device, dtype, out = torch.device("cpu"), torch.float32, torch.ones(2, 6, 3)
        shape = torch.Size([len(numbered.examples), 3])

        def __len__(self) -> int:
            return len(numbered.examples)

        def __getitem__(self, at: Tensor) -> Tensor:
            return self.out[:, : at.shape[1]]

    held: Any = Held()
    data = replace(numbered, examples=held, scale=0.5)
    assert bool((FewShotTasks(data, 3, 2, 1).episodes(torch.arange(2)).support.x == 0.5).all())
    assert bool((held.out == 1).all())


def test_channels_are_centred_and_scaled(numbered: ClassDataset) -> None:
    """Class by class the same rows, each channel with numbers of its own."""
    images = (torch.arange(26 * 2 * 3 * 4) % 251).to(torch.uint8).reshape(26, 2, 3, 4)
    plain = replace(numbered, examples=images, scale=1 / 255)
    data = replace(plain, mean=(0.5, 0.25), std=(2.0, 0.1))
    index = torch.arange(3)
    before, after = (
        FewShotTasks(d, n_way=2, n_shot=1).episodes(index).query.x for d in (plain, data)
    )
    assert after.dtype == before.dtype
    torch.testing.assert_close(after[:, :, 0], (before[:, :, 0] - 0.5) / 2)
    torch.testing.assert_close(after[:, :, 1], (before[:, :, 1] - 0.25) / 0.1)
    vectors = replace(numbered, mean=(3.0,), std=(2.0,))
    before, after = (
        FewShotTasks(d, n_way=2, n_shot=1).episodes(index).query.x for d in (numbered, vectors)
    )
    torch.testing.assert_close(after, (before - 3) / 2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mean": (0.5,)}, r"1 means and 0 deviations for 1 channels; expected one of each"),
        ({"mean": (0.5, 1), "std": (1, 1)}, r"2 means and 2 deviations for 1 channels"),
        ({"mean": (0.5,), "std": (0.0,)}, r"std \(0.0,\); expected finite numbers, and deviations"),
        ({"mean": (float("nan"),), "std": (1.0,)}, r"mean \(nan,\).*Take them from"),
        ({"groups": torch.zeros(4).long()}, r"groups of shape \(4,\) .*; expected an int64 for"),
        ({"groups": torch.zeros(5)}, r"groups of shape \(5,\) and torch.float32"),
    ],
)
def test_what_a_data_set_cannot_hold(
    numbered: ClassDataset, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        replace(numbered, **settings)


@pytest.fixture
def pictures(numbered: ClassDataset) -> ClassDataset:
    """The five classes as images of their row number."""
    images = torch.arange(26, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return replace(numbered, examples=images)


def test_augmentation_changes_images_and_nothing_else(pictures: ClassDataset) -> None:
    """It gets floats after scaling, and what it returns is centred."""
    seen: list[Tensor] = []

    def vary(images: Tensor, key: Tensor) -> Tensor:
        assert images.dtype == torch.get_default_dtype()
        seen.append(images)
        return images + 100

    data = replace(pictures, scale=0.5, mean=(2.0,), std=(4.0,))
    plain = FewShotTasks(data, n_way=3, n_shot=2, n_query=1, seed=2)
    index = torch.arange(4)
    before, after = (t.episodes(index) for t in (plain, replace(plain, augment=vary)))
    for half, old, given in zip(after, before, seen, strict=True):
        assert torch.equal(half.y, old.y)
        assert given.shape == (len(old.y.flatten()), 1, 2, 2)
        torch.testing.assert_close(given, old.x.flatten(0, 1) * 4 + 2)
        torch.testing.assert_close(half.x, old.x + 25)


def test_every_image_has_a_key_of_its_own(pictures: ClassDataset) -> None:
    """A function of seed, split, episode and place, whatever else is in the batch."""
    seen: list[Tensor] = []

    def note(images: Tensor, key: Tensor) -> Tensor:
        seen.append(key)
        return images

    tasks = FewShotTasks(pictures, n_way=3, n_shot=2, n_query=1, seed=2, augment=note)
    tasks.episodes(torch.tensor([7, 10**9, 0]))
    support, query = seen[0].reshape(3, 6), seen[1].reshape(3, 3)
    assert len(torch.cat(seen).unique()) == 27
    for t, i in enumerate((7, 10**9, 0)):
        seen.clear()
        tasks.episodes(torch.tensor([i]))
        assert torch.equal(torch.cat(seen), torch.cat([support[t], query[t]]))
    for other in (replace(tasks, seed=3), replace(tasks, data=replace(pictures, split="meta_val"))):
        seen.clear()
        other.episodes(torch.tensor([7]))
        assert not set(torch.cat(seen).tolist()) & set(support[0].tolist())
    seen.clear()
    assert replace(tasks, n_query=0).episodes(torch.arange(2)).query.x.shape == (2, 0, 1, 2, 2)
    assert len(seen) == 1


@pytest.fixture
def grouped() -> ClassDataset:
    """Ten classes of three examples in groups of 3, 1, 4 and 2 classes, numbered at will."""
    groups = torch.tensor([7, -1, 40, 7, 40, 2, 40, 7, 2, 40])
    rows = torch.arange(30.0).unsqueeze(1)
    names = tuple("abcdefghij")
    return ClassDataset("grouped", "meta_test", rows, torch.tensor([3] * 10), names, groups=groups)


def test_episodes_within_one_group(grouped: ClassDataset) -> None:
    """Groups of three or more take turns, whatever their size; so do their classes."""
    tasks = FewShotTasks(grouped, n_way=3, n_shot=1, n_query=1, within=True)
    batch = tasks.episodes(torch.arange(2000))
    classes = (batch.support.x.squeeze(-1) // 3).long()
    groups = grouped.groups[classes]
    assert bool((groups == groups[:, :1]).all())
    assert all(len(set(row)) == 3 for row in classes.tolist())
    first = groups[:, 0].tolist()
    assert set(first) == {7, 40}
    assert abs(first.count(7) - 1000) < 5 * 500**0.5
    for label in range(3):
        drawn = classes[:, label][groups[:, 0] == 40]
        counts = torch.bincount(drawn, minlength=10)[[2, 4, 6, 9]].double()
        assert bool(((counts - len(drawn) / 4).abs() < 5 * (len(drawn) / 4) ** 0.5).all())
    asked = (batch.query.x.squeeze(-1) // 3).long()
    assert bool((grouped.groups[asked] == groups[:, :1]).all())
    alone = tasks.episodes(torch.tensor([1234]))
    assert torch.equal(alone.support.x[0], batch.support.x[1234])


def test_groups_that_no_episode_asks_for_change_nothing(grouped: ClassDataset) -> None:
    index = torch.arange(50)
    settings = {"n_way": 3, "n_shot": 1}
    with_groups = FewShotTasks(grouped, **settings).episodes(index)
    without = FewShotTasks(replace(grouped, groups=None), **settings).episodes(index)
    assert torch.equal(with_groups.support.x, without.support.x)
    assert grouped.to("cpu").groups is not None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n_way": 5}, r"n_way is 5, but the largest group of grouped meta_test has 4 classes; "),
        (
            {"groups": None},
            r"within=True, but grouped meta_test has no groups .* Pass within=False",
        ),
    ],
)
def test_what_cannot_be_drawn_within_a_group(
    grouped: ClassDataset, settings: dict[str, Any], text: str
) -> None:
    data = replace(grouped, groups=settings.pop("groups", grouped.groups))
    with pytest.raises(InputError, match=text):
        FewShotTasks(data, **{"n_way": 2, "n_shot": 1, **settings}, within=True)


def test_vectors_cannot_be_augmented(grouped: ClassDataset) -> None:
    text = r"augmentation of grouped meta_test, whose examples have shape \(1,\); expected images"
    with pytest.raises(InputError, match=text):
        FewShotTasks(grouped, n_way=2, n_shot=1, augment=lambda images, key: images)


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


@pytest.mark.parametrize("kind", ["tasks", "batches"])
def test_a_draw_makes_nothing_as_large_as_the_classes_are_many(kind: str) -> None:
    """The second draw of a data set of 100,000 classes: no tensor has an axis of that length."""
    n = 100_000
    data = ClassDataset(
        "many", "meta_train", torch.zeros(2 * n, 1), torch.full((n,), 2), tuple(map(str, range(n)))
    )
    tasks = FewShotTasks(data, 5, 1) if kind == "tasks" else ClassBatches(data, 8)
    tasks.episodes(torch.arange(3))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.numel())
            return out

    with Watch():
        tasks.episodes(torch.arange(3))
    assert 0 < largest < 10_000


def in_groups(numbered: ClassDataset) -> ClassDataset:
    return replace(numbered, groups=torch.tensor([0, 0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda data: ClassBatches(data, 7), "aa129a03a76a1d95"),
        (lambda data: FewShotTasks(in_groups(data), 2, 1, 1, within=True), "a9c699fb110f3848"),
        (lambda _: Scan("add-jump", "meta_train"), "570c6e1665dfc0b8"),
        (lambda _: ScanStudy("add-jump", "meta_train"), "783b08b35f1e53b7"),
        (lambda _: MutualExclusivity("meta_train"), "be2c1cfdf1a73236"),
        (lambda _: Grammars("meta_train"), "8655b261e68bda61"),
    ],
)
def test_tasks_of_every_source_are_what_they_were(
    numbered: ClassDataset, make: Callable[[ClassDataset], Tasks], expected: str
) -> None:
    batch = make(numbered).episodes(torch.tensor([0, 1, 77, 10**12]))
    assert digest(*batch.support, *batch.query) == expected


def weighted(x: torch.Tensor) -> float:
    """A mean that tells orders apart."""
    return float((x.double().flatten() * torch.arange(1, x.numel() + 1)).mean())


@pytest.mark.parametrize(
    ("make", "means"),
    [
        (Sinusoids, (-7.697238, 17.14634, 42.5, 21.37966)),
        (GaussianProcesses, (1.47863, 4.011157, -8.261092, 7.27318)),
        (SyntheticTables, (-458.5608, 245.7057, 636.2766, 104.082)),
        (CategoryPairs, (381.6062, 381.6062, 4447.693, 4447.693)),
        (ContinuousPairs, (153.0453, 153.0453, -745.7572, -745.7572)),
        (CausalGraphs, (724.0456, 0, 330.2461, 0)),
    ],
)
def test_numbers_of_every_source_are_what_they_were(
    make: Callable[[], Tasks], means: tuple[float, float, float, float]
) -> None:
    """By their means: in other versions and on other processors the last digits may differ."""
    support, query = make().episodes(torch.tensor([0, 1, 77, 10**12]))
    found = [weighted(x) for x in (support.x, support.y, query.x, query.y)]
    assert found == pytest.approx(means, rel=1e-3, abs=1e-3)
