"""Meta-learn on characters, then learn a task of your own from arrays and names.

python examples/new_task.py
"""

from __future__ import annotations

import torch

import tegu


def main(meta_iterations: int = 300) -> float:
    """Meta-trains, adapts to five new characters, and returns the share of right answers."""
    learner = tegu.Reptile(model=tegu.models.Conv4(5, width=32), inner_lr=0.003, eval_steps=20)
    tasks = tegu.FewShotTasks(tegu.load_glyphs("meta_train"), n_way=5, n_shot=10, n_query=0)
    learned = tegu.meta_train(learner, tasks, meta_iterations=meta_iterations)

    # Five characters that meta-training never saw: one example to learn from, nine to name.
    unseen = tegu.load_glyphs("meta_test")
    images = unseen.examples.float().mul(unseen.scale)
    names = [name.split(" ", 1)[1] for name in unseen.class_names[:5]]
    first = [int(start) for start in unseen.starts[:5]]
    task = learned.adapt(images[first], names)

    rows = torch.cat([torch.arange(start + 1, start + 10) for start in first])
    truth = [name for name in names for _ in range(9)]
    answers = task.predict(images[rows])
    right = sum(a == b for a, b in zip(answers, truth, strict=True)) / len(truth)
    print(f"{right:.0%} of {len(truth)} drawings named after one example of each")
    return right


if __name__ == "__main__":
    main()
