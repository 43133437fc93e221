"""Put what many tasks share into an ordinary job: features for a linear classifier.

    python examples/shared_features.py

A sensor gives 20 numbers, of which few matter; which, is what meta-training finds out. Then a
job of its own begins: eight new classes, four labelled examples each, a linear classifier. It is
fitted on the sensor's numbers, on features of an untrained network, and on the shared features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tegu


def readings(n_classes: int, each: int, seed: int) -> tuple[Tensor, list[int]]:
    """Readings (n_classes * each, 20) and their classes: only 4 numbers tell classes apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.zeros(n_classes, 1, 20)
    centres[..., :4] = 3 * torch.randn(n_classes, 1, 4, generator=generator)
    x = centres + 2 * torch.randn(n_classes, each, 20, generator=generator)
    return x.flatten(0, 1), [i // each for i in range(n_classes * each)]


def accuracy(x: Tensor, y: Tensor, new_x: Tensor, new_y: Tensor) -> float:
    """Of ridge regression on one column a class, on examples that it was not fitted to."""
    mean, sd = x.mean(0), x.std(0) + 1e-3
    x, new_x = (torch.nn.functional.pad((z - mean) / sd, (0, 1), value=1.0) for z in (x, new_x))
    onto = nn.functional.one_hot(y).to(x)
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ onto)
    return float(((new_x @ weights).argmax(-1) == new_y).double().mean())


def main(meta_iterations: int = 400) -> dict[str, float]:
    """Accuracy of the linear classifier on each kind of inputs."""
    estimator = tegu.ReptileEstimator(
        hidden_size=64, layers=2, learning_rate=0.005, meta_iterations=meta_iterations
    )
    estimator.fit(*readings(200, 15, seed=0))
    untrained = estimator.learner(20)
    found: dict[str, list[float]] = {"numbers": [], "untrained": [], "shared": []}
    for job in range(20):
        x, y = readings(8, 54, seed=1000 + job)
        known = torch.arange(len(x)) % 54 < 4
        labels = torch.tensor(y)
        inputs = {
            "numbers": x,
            "untrained": untrained.features(untrained.init(), x).detach(),
            "shared": estimator.features(x),
        }
        for name, z in inputs.items():
            found[name].append(accuracy(z[known], labels[known], z[~known], labels[~known]))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    print(", ".join(f"{name} {mean:.1%}" for name, mean in means.items()))
    return means


if __name__ == "__main__":
    main()
