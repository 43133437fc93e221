"""Meta-learn on your own examples, with your own model.

    python examples/own_data.py

Here each class is a direction in 20 dimensions, seen through noise; a class has
as many examples as it happens to have.
"""

from __future__ import annotations

import torch
from torch import nn

import tegu


def classes(split: str, n_classes: int, seed: int) -> tegu.ClassDataset:
    """Examples (M, 20) of classes that differ in size."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(15, 30, (n_classes,), generator=generator)
    # What classes share, and a learner can find out: only 4 of the 20 dimensions differ.
    centres = torch.zeros(n_classes, 20)
    centres[:, :4] = 3 * torch.randn(n_classes, 4, generator=generator)
    examples = centres.repeat_interleave(counts, 0)
    examples = examples + 2 * torch.randn(examples.shape, generator=generator)
    names = tuple(f"class {i}" for i in range(n_classes))
    return tegu.ClassDataset("directions", split, examples, counts, names)


def main(meta_iterations: int = 400) -> tuple[float, float]:
    """Accuracy on unseen classes before and after meta-training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
    learner = tegu.Reptile(model=model, inner_lr=0.005, eval_steps=20)
    train, test = classes("meta_train", 200, seed=0), classes("meta_test", 50, seed=1)

    tasks = tegu.FewShotTasks(train, n_way=5, n_shot=10, n_query=0)
    learned = tegu.meta_train(learner, tasks, meta_iterations=meta_iterations)
    unseen = tegu.FewShotTasks(test, n_way=5, n_shot=1, n_query=5)
    start = tegu.MetaLearned(learner, learner.init())
    before, after = (one.evaluate(unseen, episodes=600)[0] for one in (start, learned))
    print(f"before {before.value:.1%} ± {before.ci95:.1%}, after {after.value:.1%}, chance 20 %")
    return before.value, after.value


if __name__ == "__main__":
    main()
