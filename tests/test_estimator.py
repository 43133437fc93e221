"""The estimator on arrays: it learns what tasks share, keeps it, and says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import model_selection as selection
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tegu
from tegu.errors import InputError

SMALL = {"hidden_size": 8, "layers": 1, "meta_iterations": 2}


def arrays(n_classes: int, seed: int, each: int = 20) -> tuple[NDArray[Any], list[str]]:
    """Classes that differ in 3 of 12 numbers, which is what there is to meta-learn."""
    rng = np.random.default_rng(seed)
    centres = np.zeros((n_classes, 1, 12))
    centres[..., :3] = 2 * rng.normal(size=(n_classes, 1, 3))
    x = centres + rng.normal(size=(n_classes, each, 12))
    return x.reshape(-1, 12), [f"{seed}/{i // each}" for i in range(n_classes * each)]


def test_meta_learning_helps_on_unseen_classes() -> None:
    one = tegu.ReptileEstimator(
        hidden_size=32, layers=2, learning_rate=0.003, meta_iterations=300, steps=20
    )
    x, y = arrays(60, seed=0)
    unseen = arrays(20, seed=1)
    learner = one.learner(12)
    start = tegu.MetaLearned(learner, learner.init())
    (before,) = start.evaluate(one.tasks(*unseen, training=False), episodes=300)
    after = one.fit(x, y).evaluate(*unseen, episodes=300)
    assert after.split == "meta_test"
    assert after.value - after.ci95 > before.value + before.ci95 + 0.03


def test_an_estimator_is_its_parts() -> None:
    """The same bits as the learner and the tasks that it stands for."""
    x, y = arrays(6, seed=0, each=4)
    one = tegu.ReptileEstimator(**SMALL).fit(x, y)
    tasks = tegu.FewShotTasks(tegu.grouped(x, y), 5, 4, 0)
    learned = tegu.meta_train(one.learner(12), tasks, meta_iterations=2, meta_batch=5)
    assert one.learned is not None
    torch.testing.assert_close(one.learned.params, learned.params, rtol=0, atol=0)
    assert one.features(x).shape == (24, 8)


def test_settings_of_numpy_can_be_kept(tmp_path: Path) -> None:
    x, y = arrays(6, seed=0, each=4)
    small = {name: np.int64(value) for name, value in SMALL.items()}
    one = tegu.ReptileEstimator(**small, learning_rate=np.float64(0.01)).fit(x, y)
    one.save(tmp_path / "one")
    assert tegu.ReptileEstimator.load(tmp_path / "one").learning_rate == 0.01


def test_a_number_for_each_label_is_no_row() -> None:
    with pytest.raises(InputError, match=r"x has shape \(20,\);.*x\[:, None\]"):
        tegu.ReptileEstimator(**SMALL).fit(np.zeros(20), list(range(10)) * 2)


def test_labels_need_not_lie_side_by_side() -> None:
    x, y = arrays(6, seed=0, each=4)
    order = np.random.default_rng(0).permutation(len(x))
    data = tegu.grouped(x[order], [y[i] for i in order], split="meta_val")
    assert data.counts.tolist() == [4] * 6
    for i, name in enumerate(data.class_names):
        rows = x[[j for j in order if y[j] == name]]
        np.testing.assert_allclose(data.examples[4 * i : 4 * i + 4], rows, rtol=1e-6)
    assert data.split == "meta_val"


def test_save_and_load(tmp_path: Path) -> None:
    x, y = arrays(6, seed=0, each=4)
    one = tegu.ReptileEstimator(**SMALL, n_way=3).fit(x, y)
    one.save(tmp_path / "one")
    again = tegu.ReptileEstimator.load(tmp_path / "one")
    assert (again.n_way, again.hidden_size, again.steps) == (3, 8, 50)
    found, expected = (each.adapt(x[:2], "ab").outputs(x) for each in (again, one))
    assert torch.equal(found, expected)
    one.adapt(x[:2], "ab").save(tmp_path / "task")
    kept = tegu.Adapted.load(tmp_path / "task", one.learner(12))
    assert kept.labels == ("a", "b")
    assert torch.equal(kept.outputs(x), expected)
    with pytest.raises(InputError, match=r"task holds no estimator; expected a file of Reptile"):
        tegu.ReptileEstimator.load(tmp_path / "task")
    with pytest.raises(InputError, match=r"one holds no learned task; expected a file of Adapted"):
        tegu.Adapted.load(tmp_path / "one", one.learner(12))
    with pytest.raises(InputError, match=r"label .*tuple.* in a file; expected labels of text or"):
        one.adapt(x[:2], [(1, 2), (3, 4)]).save(tmp_path / "pairs")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"layers": 0}, "layers is 0; expected at least 1"),
        ({"n_way": 1}, "n_way is 1; expected at least 2"),
        ({"hidden_size": 0}, "hidden_size is 0"),
    ],
)
def test_settings(settings: dict[str, int], text: str) -> None:
    with pytest.raises(InputError, match=text):
        tegu.ReptileEstimator(**settings)


def test_bad_input() -> None:
    x, y = arrays(6, seed=0, each=4)
    one = tegu.ReptileEstimator(**SMALL)
    for act in (one.adapt, one.evaluate):
        with pytest.raises(InputError, match=r"an estimator before fit.*Call fit first"):
            act(x, y)
    with pytest.raises(InputError, match="24 examples and 23 labels"):
        one.fit(x, y[1:])
    with pytest.raises(InputError, match="n_way is 5, but arrays meta_train has 4 classes"):
        one.fit(x[:16], y[:16])
    x[3, 2] = np.nan
    with pytest.raises(InputError, match="x holds NaN or infinity in row 3"):
        one.fit(x, y)
    one.fit(np.ones((24, 12)), y)
    with pytest.raises(InputError, match=r"x has shape \(24, 5\); expected rows of 12 numbers"):
        one.evaluate(np.ones((24, 5)), y)
    with pytest.raises(InputError, match="1 shots plus 1 queries make 2"):
        one.evaluate(np.ones((6, 12)), "abcdef")


def test_settings_after_fit(tmp_path: Path) -> None:
    """Steps count at once; what the network was built by stays, in the file too."""
    x, y = arrays(6, seed=0, each=4)
    one = tegu.ReptileEstimator(**SMALL).fit(x, y)
    few = one.adapt(x[:8], y[:8]).outputs(x[:8])
    one.steps, one.n_way, one.hidden_size = 200, 3, 64
    many = one.adapt(x[:8], y[:8]).outputs(x[:8])
    assert not torch.equal(few, many)
    assert one.evaluate(*arrays(3, seed=1), episodes=5).episodes == 5
    one.save(tmp_path / "one")
    again = tegu.ReptileEstimator.load(tmp_path / "one")
    assert (again.steps, again.n_way) == (200, 3)
    torch.testing.assert_close(again.adapt(x[:8], y[:8]).outputs(x[:8]), many, rtol=0, atol=0)
    again.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again.n_way = 7
    with pytest.raises(InputError, match="tasks of 7 ways for a model with 5 outputs"):
        again.evaluate(*arrays(8, seed=1), episodes=5)


@pytest.mark.parametrize("scaled", [False, True])
def test_searches_of_scikit_learn(scaled: bool) -> None:
    """Settings are tried out on classes that training has not seen, in a pipeline too."""
    x, y = arrays(24, seed=0, each=4)
    grid = {"learning_rate": [1e-9, 0.01], "steps": [20]}
    one = tegu.ReptileEstimator(**{**SMALL, "meta_iterations": 20})
    whole: Any = one
    if scaled:
        whole = make_pipeline(StandardScaler(), one)
        grid = {f"reptileestimator__{name}": values for name, values in grid.items()}
    cv = selection.GroupKFold(3)
    search = selection.GridSearchCV(whole, grid, cv=cv, error_score="raise")
    search.fit(x, y, groups=y)
    assert list(search.best_params_.values()) == [0.01, 20]
    assert search.best_score_ > 0.3  # chance is 0.2
    assert one.learned is None  # searches work on copies
    unseen = arrays(6, seed=1)
    best = search.best_estimator_
    if scaled:
        unseen, best = (best[0].transform(unseen[0]), unseen[1]), best[-1]
    assert best.score(*unseen) == best.evaluate(*unseen).value


def test_small_classes_take_no_shots_from_others() -> None:
    x, y = arrays(20, seed=0, each=12)
    one = tegu.ReptileEstimator(**SMALL)
    assert one.tasks(x, y, training=True).n_shot == 10
    few = [*range(len(y) - 11)]  # one example of the last class
    with pytest.warns(UserWarning, match="1 of 20 classes have fewer than 10 examples .*: 0/19"):
        tasks = one.tasks(x[few], [y[i] for i in few], training=True)
    assert (tasks.n_shot, tasks.data.n_classes) == (10, 19)
    assert "0/19" not in tasks.data.class_names
    rows = tasks.data.examples[torch.arange(12 * 18, 12 * 19)]
    np.testing.assert_allclose(rows, x[12 * 18 : 12 * 19], rtol=1e-6)
    five = [i for i in few if int(y[i][2:]) >= 15]  # all are needed for tasks of five ways
    assert one.tasks(x[five], [y[i] for i in five], training=True).n_shot == 1


def test_classes_that_fit_has_seen() -> None:
    x, y = arrays(6, seed=0, each=4)
    one = tegu.ReptileEstimator(**SMALL).fit(x, y)
    with pytest.warns(UserWarning, match=r"1 of 6 classes have names that fit has seen, '0/5' say"):
        one.evaluate(x[20:].repeat(6, 0), y[20:] + [f"new {i % 5}" for i in range(20)], episodes=5)


def test_settings_are_asked_for_and_changed_by_name() -> None:
    one = tegu.ReptileEstimator(layers=3)
    assert one.get_params()["layers"] == 3
    assert "learned" not in one.get_params()
    assert one.set_params(layers=2, steps=7) is one
    assert (one.layers, one.steps) == (2, 7)
    assert tegu.ReptileEstimator(**one.get_params()) == one
    with pytest.raises(InputError, match=r"unknown setting 'layer'.* Did you mean 'layers'"):
        one.set_params(layer=2)
    with pytest.raises(InputError, match=r"layers is 1\.5; expected a whole number"):
        one.set_params(layers=1.5)
