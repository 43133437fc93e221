"""The picture of learnt graphs."""

from pathlib import Path

import torch
from PIL import Image

from tegu.pictures import recovery


def test_a_picture_shows_distances_and_both_graphs(tmp_path: Path) -> None:
    truth = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    distances = {"2 variables": torch.tensor([[2, 2], [1, 2], [0, 1]])}
    made = []
    for name, belief in (("right", truth), ("wrong", truth.T)):
        path = tmp_path / f"{name}.png"
        recovery(distances, truth, belief, path, meta_batch=4)
        made.append(Image.open(path).convert("L"))
    width, height = made[0].size
    assert width > 1000
    halves = [
        [
            one.crop((a, 0, b, height)).tobytes()
            for a, b in ((0, width * 3 // 4), (width * 3 // 4, width))
        ]
        for one in made
    ]
    assert halves[0][0] == halves[1][0]  # the curve and the true graph
    assert halves[0][1] != halves[1][1]  # the belief
