"""Figures that can be trusted: no leak, the right interval, no effect of how they were run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.distribute import Ranks
from tegu.engine.evaluate import evaluate
from tegu.engine.train import Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.episodes import select
from tegu.errors import InputError
from tegu.learners import Reptile
from tegu.losses import accuracy, cross_entropy
from tegu.models import BatchNorm, Conv4, Mlp
from tegu.sampling import FewShotTasks


class Blind(nn.Module):
    """Sees no input, only how many rows there are and which place each has."""

    def __init__(self, n_way: int, places: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(places, n_way))
        self.norm = BatchNorm(n_way)  # so that the normalisation mode bears on it

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.table[: len(x)])
        return out


@pytest.fixture
def tasks(toy_data: ClassDataset) -> FewShotTasks:
    return FewShotTasks(replace(toy_data, split="meta_test"), n_way=3, n_shot=2, n_query=2)


def learner_of(model: nn.Module, **settings: object) -> Reptile:
    own = {"inner_steps": 4, "inner_batch": 6, "eval_steps": 4, "eval_batch": 4, "inner_lr": 0.02}
    return Reptile(model=model, **{**own, **settings})


@pytest.mark.parametrize("normalisation", ["support", "transductive"])
def test_a_model_that_sees_no_input_scores_chance(normalisation: str, tasks: FewShotTasks) -> None:
    """Trained, and with an answer for each place in the batch; chance is 1/3."""
    model = Blind(3, places=12)
    # Its start is the best guess for queries that come class after class.
    model.table.data[:6] = torch.eye(3).repeat_interleave(2, 0)
    learner = learner_of(model, normalisation=normalisation)
    training = replace(tasks, data=replace(tasks.data, split="meta_train"), n_query=0)
    params, _ = meta_train(Vectorised(learner), training, Settings(20, 4, outer_lr=0.5))
    for start in (learner.init(), params):
        (result,) = evaluate(Vectorised(learner), start, tasks, episodes=2000, at_once=500)
        assert result.normalisation == normalisation
        assert result.ci95 < 0.02
        # Three standard errors; none where one answer for all queries is always a third right.
        assert abs(result.value - 1 / 3) <= max(1.5 * result.ci95, 1e-6)


def test_a_model_that_sees_scores_far_above_chance(tasks: FewShotTasks) -> None:
    learner = learner_of(Mlp(6, 3, hidden=(16,)), eval_steps=20, carry=False)
    (result,) = evaluate(Vectorised(learner), learner.init(), tasks, episodes=50)
    assert result.value > 0.9


def test_mean_and_interval_are_numpys(tasks: FewShotTasks) -> None:
    learner = learner_of(Mlp(6, 3, hidden=(8,)))
    engine, params = Vectorised(learner), learner.init()
    index = torch.arange(37)
    batch = tasks.episodes(index)
    state = engine.adapt(
        params, batch.support, keys.fold(keys.key(5, "evaluate", "meta_test"), index)
    )
    outputs = engine.predict(params, state, batch.query)
    scores = np.array([float(accuracy(outputs[t], select(batch, t).query)) for t in range(37)])
    (result,) = evaluate(engine, params, tasks, episodes=37, seed=5)
    assert result.value == pytest.approx(scores.mean(), abs=1e-12)
    interval = 1.96 * scores.std(ddof=1) / np.sqrt(37)
    assert result.ci95 == pytest.approx(interval, abs=1e-12)
    assert (result.metric, result.episodes, result.split) == ("accuracy", 37, "meta_test")


def test_scoring_ends_with_its_time_and_says_how_many_it_scored(tasks: FewShotTasks) -> None:
    learner = learner_of(Mlp(6, 3, hidden=(8,)))
    engine, params = Vectorised(learner), learner.init()
    (short,) = evaluate(engine, params, tasks, episodes=50, at_once=5, seconds=0)
    (same,) = evaluate(engine, params, tasks, episodes=10, at_once=5)
    assert short.episodes == 10  # two blocks
    assert (short.value, short.ci95) == (same.value, same.ci95)
    (whole,) = evaluate(engine, params, tasks, episodes=50, at_once=5, seconds=600)
    assert whole.episodes == 50


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_how_many_run_at_once_changes_nothing(at_once: int, tasks: FewShotTasks) -> None:
    double = replace(tasks.data, examples=tasks.data.examples.double())
    source, learner = replace(tasks, data=double), learner_of(Mlp(6, 3, hidden=(8,)).double())
    settings = {"episodes": 20, "score": cross_entropy, "metric": "loss"}
    (expected,) = evaluate(Vectorised(learner), learner.init(), source, **settings)
    (found,) = evaluate(Vectorised(learner), learner.init(), source, at_once=at_once, **settings)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert found.ci95 == pytest.approx(expected.ci95, rel=1e-12)
    assert replace(found, value=0.0, ci95=0.0) == replace(expected, value=0.0, ci95=0.0)


def test_each_normalisation_is_named_and_scored_from_one_adaptation(
    toy_images: ClassDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = FewShotTasks(toy_images, n_way=3, n_shot=1, n_query=1)
    learner, names = learner_of(Conv4(3, size=8, width=4)), ("support", "transductive")
    params, calls, adapt = learner.init(), [], Vectorised.adapt

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return adapt(*arguments)

    monkeypatch.setattr(Vectorised, "adapt", counted)
    both = evaluate(
        Vectorised(learner), params, tasks, episodes=30, at_once=10, normalisations=names
    )
    assert len(calls) == 3  # one for each block
    monkeypatch.undo()
    assert tuple(result.normalisation for result in both) == names
    assert both[0].value != both[1].value
    for name, result in zip(names, both, strict=True):
        judge = replace(learner, normalisation=name)
        assert evaluate(Vectorised(judge), params, tasks, episodes=30) == [result]


def test_no_task_at_once_is_refused(tasks: FewShotTasks) -> None:
    learner = learner_of(Mlp(6, 3))
    with pytest.raises(InputError, match="at_once is 0; expected at least 1"):
        evaluate(Vectorised(learner), learner.init(), tasks, episodes=2, at_once=0)


def test_several_ranks_do_not_end_by_the_clock(tasks: FewShotTasks) -> None:
    learner = learner_of(Mlp(6, 3))
    with pytest.raises(InputError, match="ends after 1 seconds, over 2 processes"):
        evaluate(
            Vectorised(learner), learner.init(), tasks, episodes=2, seconds=1, ranks=Ranks(0, 2)
        )


def test_a_model_without_statistics_names_no_normalisation(tasks: FewShotTasks) -> None:
    learner = learner_of(Mlp(6, 3))
    (result,) = evaluate(Vectorised(learner), learner.init(), tasks, episodes=2)
    assert result.normalisation == "none"


def test_evaluation_changes_nothing_and_tells_how_far_it_is(tasks: FewShotTasks) -> None:
    learner = learner_of(Mlp(6, 3))
    params = learner.init()
    before = {k: v.clone() for k, v in params.items()}
    told: list[tuple[int, float]] = []
    (result,) = evaluate(
        Vectorised(learner),
        params,
        tasks,
        episodes=10,
        at_once=4,
        progress=lambda done, mean: told.append((done, mean)),
    )
    torch.testing.assert_close(params, before, rtol=0, atol=0)
    assert [done for done, _ in told] == [4, 8, 10]
    assert told[-1][1] == pytest.approx(result.value)


def test_one_episode_has_no_interval(tasks: FewShotTasks) -> None:
    learner = learner_of(Mlp(6, 3))
    with pytest.raises(InputError, match=r"1 episodes; expected at least 2\. Ask for 600"):
        evaluate(Vectorised(learner), learner.init(), tasks, episodes=1)
