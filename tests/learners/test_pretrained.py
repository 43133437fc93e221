"""Pre-training is plain classification: loss, gradient, and a whole run of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tegu
from tegu import keys
from tegu.datasets.classes import ClassDataset
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.learners import Baseline, BaselinePlusPlus, SimpleShot
from tegu.learners.pretrained import Pretrained
from tegu.sampling import ClassBatches, FewShotTasks

KEYS = keys.fold(keys.key(0), torch.arange(3))


def reference(features: Any, params: Params, batches: Episode, *, cosine: bool) -> Tensor:
    """Mean cross-entropy of the classifier, example by example."""
    losses = []
    for t in range(3):
        for half in select(batches, t):
            for x, y in zip(half.x, half.y, strict=True):
                f, rows = features(params, x[None])[0], params["classifier/weight"]
                if cosine:
                    scores = torch.stack([2 * (w @ f) / (w.norm() * f.norm()) for w in rows])
                else:
                    scores = rows @ f + params["classifier/bias"]
                losses.append(scores.exp().sum().log() - scores[y])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("kind", [Pretrained, Baseline, BaselinePlusPlus, SimpleShot])
@pytest.mark.parametrize("queries", [True, False])
def test_meta_gradient(
    kind: type[Pretrained],
    queries: bool,
    smooth: nn.Module,
    smooth_features: Any,
    slopes: Any,
    toy_data: ClassDataset,
    toy_episodes: Episode,
) -> None:
    """On batches as they are drawn, and on episodes with queries, which count alike."""
    double = replace(toy_data, examples=toy_data.examples.double())
    batches = toy_episodes if queries else ClassBatches(double, 9).episodes(torch.arange(3))
    learner = kind(model=smooth, n_way=3, n_classes=7, seed=2)
    params = {k: v for k, v in learner.init().items() if not k.startswith("statistics/")}
    cosine = kind is BaselinePlusPlus
    wrt = {k: v.clone().requires_grad_() for k, v in params.items()}
    loss = reference(smooth_features, wrt, batches, cosine=cosine)
    expected = dict(zip(wrt, torch.autograd.grad(loss, list(wrt.values())), strict=True))
    found, value = Vectorised(learner).outer_gradient(learner.init(), batches, KEYS)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(found, expected)
    by_gradient, by_differences = slopes(
        lambda p: reference(smooth_features, p, batches, cosine=cosine), params, found
    )
    torch.testing.assert_close(by_gradient, by_differences, rtol=1e-6, atol=1e-8)


def test_the_classifier_s_weights(smooth: nn.Module) -> None:
    one, other = (Pretrained(model=smooth, n_classes=7, seed=s).init() for s in (1, 2))
    assert one["classifier/weight"].shape == (7, 5)
    assert one["classifier/bias"].tolist() == [0] * 7
    assert not torch.equal(one["classifier/weight"], other["classifier/weight"])
    with pytest.raises(InputError, match=r"n_classes is 1; expected at least 2"):
        Pretrained(model=smooth, n_classes=1)


def test_two_phases_from_batches_to_tasks(toy_data: ClassDataset) -> None:
    """Pre-training learns the classes it sees, and tasks of classes it has not seen."""
    model = tegu.models.Mlp(6, 3, hidden=(16,))
    model.feature_width = 16
    learner = SimpleShot(model=model, n_way=3, n_classes=toy_data.n_classes)
    told: list[Any] = []
    learned = tegu.meta_train(
        learner,
        ClassBatches(toy_data, 16),
        meta_iterations=200,
        meta_batch=1,
        outer_lr=0.01,
        progress=lambda report: told.append(report.loss),
    )
    assert told[-1] < 0.3 * told[0]
    centres = torch.randn(5, 6, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(100, 6, generator=torch.Generator().manual_seed(10))
    examples = centres.repeat_interleave(20, 0) + 0.3 * noise
    counts, names = torch.tensor([20] * 5), tuple("vwxyz")
    unseen = ClassDataset("unseen", "meta_test", examples, counts, names)
    (result,) = learned.evaluate(FewShotTasks(unseen, 3, 5, 5), episodes=50)
    assert result.value > 0.8
    adapted = learned.adapt(examples[::20], list("vwx") + list("vw"))
    assert adapted.outputs(examples[:2]).shape == (2, 3)
