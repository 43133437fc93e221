"""Models, losses and tasks of one's own that do not fit together: what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tegu
from tegu import misfits, recipes
from tegu.compare import common
from tegu.episodes import Episode, Examples
from tegu.errors import InputError
from tegu.job import Job
from tegu.learners import LEARNERS
from tegu.sources import SOURCES


class Own:
    """Episodes as someone may write them."""

    split = "meta_train"

    def __init__(self, change: Callable[[Examples], Any] = lambda half: half) -> None:
        self.change = change

    def episodes(self, index: torch.Tensor) -> Any:
        x = torch.rand(len(index), 4, 3)
        y = torch.arange(4).expand(len(index), 4)
        half = self.change(Examples(x, y, torch.ones_like(y, dtype=torch.bool)))
        return Episode(half, half)


class Splitless:
    def episodes(self, index: torch.Tensor) -> Any:
        return Own().episodes(index)


class Asserting(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == 5, "five numbers"
        return super().forward(x)


class Twofold(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


def reptile(model: Any, **settings: Any) -> tegu.Reptile:
    return tegu.Reptile(model=model, **settings)


class Pair(Own):
    def episodes(self, index: torch.Tensor) -> Any:
        return tuple(super().episodes(index))


MLP = tegu.models.Mlp(3, 4, hidden=(8,))
MISFITS = {
    "no axis of tasks": (
        lambda: reptile(MLP),
        lambda: Own(lambda half: Examples(half.x[0], half.y[0], half.mask[0])),
        r"Own with support.mask of shape \(4,\) for 5 episodes; expected tegu.Episode",
    ),
    "a tuple": (lambda: reptile(MLP), Pair, "Pair with a tuple in place of tegu.Episode"),
    "no mask": (
        lambda: reptile(MLP),
        lambda: Own(lambda half: half._replace(mask=None)),  # type: ignore[arg-type]
        "with a NoneType as support.mask",
    ),
    "labels of 32 bits": (
        lambda: tegu.learners.ProtoNet(model=tegu.models.Mlp(3, 8, hidden=(8,))),
        lambda: Own(lambda half: half._replace(y=half.y.int())),
        r"with support.y of torch.int32; expected .* y \(T, S\) int64",
    ),
    "other inputs": (
        lambda: reptile(tegu.models.Mlp(5, 4, hidden=(8,))),
        Own,
        r"inputs of shape \(4, 3\), which Mlp refuses \(.*mat1",
    ),
    "a model of two answers": (
        lambda: reptile(Twofold(3, 4)),
        Own,
        "a tuple as the answer of Twofold; expected one tensor",
    ),
    "too few outputs": (
        lambda: reptile(tegu.models.Mlp(3, 3, hidden=(8,))),
        Own,
        "class number 3 for a model with 3 outputs",
    ),
    "torch's own loss": (
        lambda: reptile(MLP, loss=torch.nn.functional.mse_loss),
        Own,
        r"the loss `mse_loss`, which fails .*lambda outputs, target: YOURS\(outputs, target.y\)",
    ),
    "torch's loss for features": (
        lambda: tegu.learners.ProtoNet(model=MLP, body="", loss=torch.nn.functional.cross_entropy),
        Own,
        "the loss `cross_entropy`, which fails",
    ),
    "a loss that is a module": (
        lambda: reptile(MLP, loss=torch.nn.CrossEntropyLoss()),
        Own,
        "the loss `CrossEntropyLoss`, which fails",
    ),
    "a class of losses": (
        lambda: reptile(MLP, loss=torch.nn.CrossEntropyLoss),
        Own,
        r"the class CrossEntropyLoss as loss; expected a function. Write CrossEntropyLoss\(\)",
    ),
    "a model that asserts": (
        lambda: reptile(Asserting(3, 4)),
        Own,
        "which Asserting refuses .five numbers.",
    ),
    "whole numbers as inputs": (
        lambda: reptile(MLP),
        lambda: Own(lambda half: half._replace(x=half.x.long())),
        r"with support.x of torch.int64; expected .*",
    ),
    "a loss of each row": (
        lambda: reptile(MLP, loss=lambda outputs, target: outputs.sum(-1)),
        Own,
        r"shape \(4,\) from the loss `<lambda>`; expected a tensor of one number",
    ),
    "a class": (lambda: reptile(MLP), lambda: Own, r"the class Own as tasks; .*Own\(...\)"),
    "no tasks": (lambda: reptile(MLP), lambda: [1], "a list without episodes as tasks"),
    "no split": (lambda: reptile(MLP), lambda: Splitless(), "a Splitless without split as tasks"),
    "a class of learners": (lambda: tegu.Reptile, Own, "the class Reptile as learner"),
    "a model for a learner": (lambda: MLP, Own, "a Mlp as learner"),
    "a class of models": (
        lambda: reptile(tegu.models.Mlp),
        Own,
        "the model Mlp, a type; expected a torch.nn.Module",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_together_is_named(name: str) -> None:
    make, tasks, said = MISFITS[name]
    with pytest.raises(InputError, match=said):
        tegu.meta_train(make(), tasks(), meta_iterations=2)


def full(*_: Any) -> None:
    raise ValueError("the logger is full")


def test_what_fits_fails_in_its_own_words(toy_data: tegu.ClassDataset) -> None:
    class Failing(Own):
        def episodes(self, index: torch.Tensor) -> Any:
            raise LookupError("the shelf is empty")

    with pytest.raises(LookupError, match="the shelf is empty"):
        tegu.meta_train(reptile(MLP), Failing(), meta_iterations=2)

    class Gone(Own):
        gone = False

        def episodes(self, index: torch.Tensor) -> Any:
            if self.gone:
                raise OSError("the disk is gone")  # so that no cause can be found
            return super().episodes(index)

    gone = Gone()

    def leaving(*_: Any) -> None:
        gone.gone = True
        full()

    def padded(half: Examples) -> Examples:  # with any number where a row only pads
        last = torch.arange(4) == 3
        return half._replace(y=half.y.where(~last, 99), mask=half.mask & ~last)

    for tasks, progress in ((gone, leaving), (Own(padded), full)):
        with pytest.raises(ValueError, match="the logger is full"):
            tegu.meta_train(reptile(MLP), tasks, meta_iterations=1, progress=progress)

    def score(outputs: torch.Tensor, query: Examples) -> torch.Tensor:
        return (outputs - torch.ones(3)).mean() + query.x.shape[0]  # of three ways

    one = reptile(tegu.models.Mlp(6, 5, hidden=(8,)))
    learned = tegu.MetaLearned(one, one.init())
    with pytest.raises(ValueError, match="the logger is full"):
        learned.evaluate(
            tegu.FewShotTasks(toy_data, 3, 1, 1), episodes=2, score=score, progress=full
        )


@pytest.mark.parametrize("name", LEARNERS)
def test_what_every_learner_learns_fits(name: str, few_glyphs: None) -> None:
    data = next(source for source in common([name]) if SOURCES[source].downloads == 0)
    few = {"train.n_way": 3} if SOURCES[data].targets == "classes" else {}
    job = Job(recipes.starting(name, data, few))
    assert misfits._misfit(job.learner, job.training_tasks(), 2, job.measure.score) is None


@pytest.mark.parametrize("headless", [False, True])
def test_a_score_that_cannot_judge(headless: bool) -> None:
    one = tegu.learners.ProtoNet(model=MLP, body="") if headless else reptile(MLP)
    learned = tegu.MetaLearned(one, one.init())
    judge: Any = torch.nn.functional.mse_loss
    with pytest.raises(InputError, match="the score `mse_loss`, which fails"):
        learned.evaluate(Own(), episodes=2, score=judge)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((3, 9, 8), r"token \d+ in x for a model with n_inputs=3"),
        ((9, 3, 8), r"token \d+ in y for a model with n_outputs=3"),
        ((9, 9, 2), r"answers of \d+ tokens for a model with longest=2"),
    ],
)
def test_sequences_that_a_model_has_no_room_for(settings: tuple[int, int, int], said: str) -> None:
    n_inputs, n_outputs, longest = settings
    model = tegu.models.Seq2Seq(n_inputs, n_outputs, longest=longest, width=8)

    class Words(Own):
        def episodes(self, index: torch.Tensor) -> Any:
            x = torch.full((len(index), 4, 5), 7)
            half = Examples(x, x, torch.ones(len(index), 4, dtype=torch.bool))
            return Episode(half, half)

    one = reptile(model, loss=tegu.losses.token_cross_entropy)
    learned = tegu.MetaLearned(one, one.init())
    with pytest.raises(InputError, match=said):
        learned.evaluate(Words(), episodes=2)
