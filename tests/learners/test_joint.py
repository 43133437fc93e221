"""Joint training against a plain loop, which also tries the engine's gradient path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tegu.datasets import Sinusoids
from tegu.engine.checkpoint import load_checkpoint
from tegu.engine.run import Run
from tegu.engine.train import Settings, meta_train
from tegu.engine.vectorise import Vectorised
from tegu.learners import Joint
from tegu.losses import squared_error
from tegu.models import Mlp

TASKS = Sinusoids("meta_train", n_shot=4, n_query=3)


def learner() -> Joint:
    return Joint(model=Mlp(1, 1, hidden=(5,), activation="tanh").double(), loss=squared_error)


def test_joint_training_is_gradient_descent_on_the_pooled_examples() -> None:
    """Four iterations of two tasks against torch's autograd and Adam written out by hand."""
    torch.set_default_dtype(torch.float64)
    try:
        joint = learner()
        settings = Settings(4, meta_batch=2, outer_lr=0.01, outer_lr_final=0.01)
        params, _ = meta_train(Vectorised(joint), TASKS, settings)

        model = learner().model
        weights = list(model.parameters())
        means = [torch.zeros_like(w) for w in weights]
        squares = [torch.zeros_like(w) for w in weights]
        for i in range(4):
            batch = TASKS.episodes(torch.arange(2 * i, 2 * i + 2))
            x = torch.cat([batch.support.x, batch.query.x], 1).reshape(-1, 1)
            y = torch.cat([batch.support.y, batch.query.y], 1).reshape(-1, 1)
            grads = torch.autograd.grad((model(x) - y).square().mean(), weights)
            with torch.no_grad():
                for w, g, m, v in zip(weights, grads, means, squares, strict=True):
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g * g)
                    rate = 0.01 * (1 - 0.999 ** (i + 1)) ** 0.5 / (1 - 0.9 ** (i + 1))
                    w.sub_(rate * m / (v.sqrt() + 1e-8))
        expected: dict[str, Tensor] = dict(model.named_parameters())
        assert params.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(params[name], value.detach(), rtol=0, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_outer_optimiser_is_resumed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    joint = Joint(model=Mlp(1, 1, hidden=(5,)), loss=squared_error)
    digests = []
    for name, stops in (("straight", []), ("halved", [3])):
        folder = tmp_path / name
        for stop in stops:
            run = Run(folder, {"name": "joint"})
            seen: list[int] = []

            def interrupt(report: object, stop: int = stop, seen: list[int] = seen) -> None:
                seen.append(stop)
                if len(seen) == stop:
                    raise KeyboardInterrupt

            settings = Settings(6, checkpoint_seconds=0, validate_every=1)
            with pytest.raises(KeyboardInterrupt):
                meta_train(Vectorised(joint), TASKS, settings, run=run, progress=interrupt)
            assert load_checkpoint(run.checkpoint).iteration == stop - 1
        run = Run(folder, {"name": "joint"})
        settings = Settings(6, checkpoint_seconds=0, validate_every=1)
        meta_train(Vectorised(joint), TASKS, settings, run=run, resume=bool(stops))
        checkpoint = load_checkpoint(run.checkpoint)
        assert checkpoint.outer["step"] == 6
        digests.append(checkpoint.digest())
    assert digests[0] == digests[1]
