"""Models, losses and tasks of one's own that do not fit together: what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tegu
from tegu.episodes import Episode, Examples
from tegu.errors import InputError


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
        r"Own with support.mask of shape \(4,\) for 64 episodes; expected tegu.Episode",
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
        r"inputs of shape \(4, 3\), which Mlp refuses \(mat1",
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
        r"the loss `mse_loss`, which fails .*lambda outputs, target: mse_loss\(outputs, target.y\)",
    ),
    "a loss of each row": (
        lambda: reptile(MLP, loss=lambda outputs, target: outputs.sum(-1)),
        Own,
        r"shape \(4,\) from the loss `<lambda>`; expected a tensor of one number",
    ),
    "a class": (lambda: reptile(MLP), lambda: Own, r"the class Own as tasks; .*Own\(...\)"),
    "no tasks": (lambda: reptile(MLP), lambda: [1], "a list as tasks"),
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


def test_what_fits_fails_in_its_own_words() -> None:
    class Failing(Own):
        def episodes(self, index: torch.Tensor) -> Any:
            raise LookupError("the shelf is empty")

    with pytest.raises(LookupError, match="the shelf is empty"):
        tegu.meta_train(reptile(MLP), Failing(), meta_iterations=2)


def test_a_score_that_cannot_judge() -> None:
    one = reptile(MLP)
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
