"""Ways of running a recipe: held against float64 first, then timed in turn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tegu import bench, recipes, report
from tegu.bench import MOST, WAYS, Way, document, fastest, measure
from tegu.cli import main
from tegu.errors import InputError
from tegu.job import Job
from tegu.learners import Maml

PLAIN = tuple(way for way in WAYS if not way.compile)
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "by gradient": ("maml-sinusoids", {"train.meta_batch": 3}),
    "by a rule of its own": ("reptile-sinusoids", {"train.meta_batch": 3}),
    "sequences": (
        "seq2seq-scan-mutual-exclusivity",
        {"model.width": 8, "train.meta_batch": 2, "model.dropout": 0.0},
    ),
    "pre-trained": ("baseline-omniglot-5way", {"data.name": "glyphs", "model.width": 4}),
}


@pytest.fixture(autouse=True)
def _with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has it, or is taken to: the works here are small."""
    monkeypatch.setattr(bench, "half_pays", lambda device: True)


def job(name: str, changed: dict[str, Any]) -> Job:
    if changed.get("data.name") == "glyphs":
        return Job(recipes.starting("baseline", "glyphs", {"model.width": 4}))
    return Job(recipes.load(name, changed))


@pytest.mark.parametrize("which", RECIPES)
def test_every_way_gives_the_update_of_the_loop(which: str) -> None:
    found = measure(job(*RECIPES[which]), rounds=1, ways=PLAIN)
    assert [one.way for one in found] == list(PLAIN)
    for one in found:
        assert not one.why_not
        assert one.distance < MOST[one.way.precision]
        assert len(one.times) == 1
    assert found[0].distance < 1e-4


def test_a_way_that_gets_it_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MOST", {"fp32": 1e-2, "bf16": 0.0})
    one = job(*RECIPES["by gradient"])
    found = measure(one, rounds=1, ways=PLAIN)
    assert [bool(each.times) for each in found] == [True, True, False]
    made = document(one, found, command="tegu bench maml-sinusoids")
    report.check(made)
    assert len(made["cells"]) == 2
    assert "away from float64" in made["table"][3][2]
    assert fastest(found, "bf16") is None


def test_no_way_gets_it_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MOST", {"fp32": -1.0, "bf16": -1.0})
    one = job(*RECIPES["by gradient"])
    with pytest.raises(InputError, match=r"maml-sinusoids: .* away from float64"):
        document(one, measure(one, rounds=1, ways=PLAIN), command="")


def test_models_that_vmap_cannot_run_and_machines_that_cannot_compile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(self: Any, x: Any) -> Any:
        return plain(self, x) if float(x.sum()) < 1e9 else x

    one = job(*RECIPES["by gradient"])
    kind = type(one.learner.model)
    plain = kind.forward
    monkeypatch.setattr(kind, "forward", forward)
    monkeypatch.setattr(bench, "can_compile", lambda: False)
    assert isinstance(one.learner, Maml)
    task, many, compiled = measure(one, rounds=1, ways=WAYS[:3])
    assert task.times
    assert "item" in many.why_not
    assert compiled.why_not == "no C++ compiler"


def test_bf16_is_left_out_where_it_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole network in it could take minutes for an iteration."""
    monkeypatch.setattr(bench, "half_pays", lambda device: False)
    asked: list[str] = []
    limit = bench.timing.limit
    monkeypatch.setattr(
        bench.timing, "limit", lambda name, device: (asked.append(name), limit(name, device))[1]
    )
    one = job(*RECIPES["by gradient"])
    found = measure(one, rounds=1, ways=PLAIN)
    assert [bool(each.times) for each in found] == [True, True, False]
    assert "slower here" in document(one, found, command="")["table"][3][2]
    assert asked == ["fp32"]


def test_the_fastest() -> None:
    slow, fast = (
        bench.Found(way, lambda i: None, times=times)
        for way, times in ((WAYS[0], (2.0, 2.0, 9.0)), (WAYS[1], (1.0, 1.0, 99.0)))
    )
    assert fastest([slow, fast], "fp32") == WAYS[1]
    assert Way("", "vmap", True, "bf16").settings == (
        "--set engine.vectorise=vmap --set engine.compile=on --set engine.precision=bf16"
    )


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "WAYS", PLAIN)
    output = tmp_path / "bench.json"
    words = ["bench", "maml-sinusoids", "--seconds", "0.1", "--set", "train.meta_batch=2"]
    assert main([*words, "--output", str(output)]) == 0
    told = capsys.readouterr().out
    assert "fastest in fp32: --set engine.vectorise=" in told
    made = json.loads(output.read_text())
    assert made["command"] == "tegu bench maml-sinusoids --set train.meta_batch=2"
    assert made["table"][0][:3] == ["way", "precision", "ms"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "bench-maml-sinusoids"
    assert main([*words, "--seconds", "-1"]) == 2
    assert "--seconds -1.0" in capsys.readouterr().err


def test_on_a_gpu_graphs_are_a_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command leaves no way out, and names the graphs where they are the default."""
    asked: dict[str, Any] = {}

    def measured(job: Job, **settings: Any) -> list[Any]:
        asked.update(settings)
        raise InputError("enough", "", "")

    monkeypatch.setattr(bench, "measure", measured)
    assert main(["bench", "maml-sinusoids"]) == 2
    assert asked["ways"] == WAYS
    one = job("maml-sinusoids", {})
    engine = replace(one.recipe.engine, device="cuda")
    on_gpu: Any = SimpleNamespace(recipe=replace(one.recipe, engine=engine))
    assert bench.ways_of(on_gpu) == bench.ON_GPU
    assert all("engine.cuda_graphs=" in way.settings for way in bench.ON_GPU)
