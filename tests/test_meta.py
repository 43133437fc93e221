"""Two phases in two calls: learn to learn, then learn a task and answer."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tegu
from tegu.engine.checkpoint import load_checkpoint, save_checkpoint
from tegu.engine.run import Run
from tegu.engine.train import Progress
from tegu.episodes import Examples
from tegu.errors import InputError
from tegu.learners import Maml
from tegu.losses import accuracy, gaussian, squared_error
from tegu.threads import alone

LABELS = {
    "numbers": [7, 3, 7, 3],
    "names": ["cat", "dog", "cat", "dog"],
    "pairs": [("a", 1), ("b", 2), ("a", 1), ("b", 2)],
    "None and a name": [None, "x", None, "x"],
    "truth": [True, False, True, False],
    "bytes": [b"a", b"b", b"a", b"b"],
}


def learner(**settings: Any) -> tegu.Reptile:
    model = tegu.models.Mlp(6, 3, hidden=(8,))
    own = {"inner_steps": 2, "inner_batch": 3, "eval_steps": 30, "inner_lr": 0.02}
    return tegu.Reptile(model=model, **{**own, **settings})


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def learned(toy_data: tegu.ClassDataset) -> tegu.MetaLearned:
    tasks = tegu.FewShotTasks(toy_data, 3, 2, 0)
    return tegu.meta_train(learner(), tasks, meta_iterations=20, meta_batch=2)


@pytest.fixture(scope="module")
def task(toy_data: tegu.ClassDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes far apart: their first two examples to learn from, the next two to ask."""
    rows = toy_data.examples
    return rows[[0, 9, 1, 10]], rows[[2, 11, 3, 12]]


def test_the_two_phases(learned: tegu.MetaLearned, task: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, queries = task
    adapted = learned.adapt(x, ["b", "a", "b", "a"])
    assert adapted.labels == ("b", "a")  # as they come
    assert adapted.predict(queries) == ["b", "a", "b", "a"]
    scores = adapted.outputs(queries)
    assert scores.shape == (4, 2)
    assert not scores.requires_grad
    probabilities = adapted.predict_proba(queries)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4))
    torch.testing.assert_close(probabilities, scores.softmax(-1))


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_come_back(
    kind: str, learned: tegu.MetaLearned, task: tuple[torch.Tensor, torch.Tensor]
) -> None:
    labels, (x, queries) = LABELS[kind], task
    assert learned.adapt(x, labels).predict(queries) == labels


@pytest.mark.parametrize(
    "form",
    [
        torch.tensor,
        np.array,
        tuple,
        lambda y: map(int, y),
        lambda y: [torch.tensor(i) for i in y],
        lambda y: list(np.array(y)),
    ],
    ids=["tensor", "array", "tuple", "iterator", "list of tensors", "list of numpy's numbers"],
)
def test_labels_in_any_form(
    form: Callable[[list[int]], Any],
    learned: tegu.MetaLearned,
    task: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, queries = task
    predicted = learned.adapt(x, form([7, 3, 7, 3])).predict(queries)
    assert predicted == [7, 3, 7, 3]
    assert all(type(label) is int for label in predicted)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: x.double(),
        lambda x: list(x.numpy()),
        lambda x: x.clone().requires_grad_(),
    ],
    ids=["array", "lists", "float64", "list of arrays", "with gradient"],
)
def test_inputs_in_any_form(
    form: Callable[[torch.Tensor], Any],
    learned: tegu.MetaLearned,
    task: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, queries = task
    expected = learned.adapt(x, "abab").outputs(queries)
    found = learned.adapt(form(x), "abab").outputs(form(queries))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(learned.features(form(x)), learned.features(x))


def test_whole_numbers_are_inputs_too(learned: tegu.MetaLearned) -> None:
    pixels = torch.tensor([[255] * 6, [0] * 6], dtype=torch.uint8)
    expected = learned.adapt(pixels.float(), "ab").outputs(pixels.float())
    torch.testing.assert_close(learned.adapt(pixels, "ab").outputs(pixels), expected)


def test_adapting_repeats_and_changes_nothing(
    learned: tegu.MetaLearned, task: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, queries = task
    before = {name: value.clone() for name, value in learned.params.items()}
    first, again, other = (
        learned.adapt(x, "abab", seed=seed).outputs(queries) for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    torch.testing.assert_close(learned.params, before, rtol=0, atol=0)


def test_fewer_classes_than_outputs_are_never_mistaken(
    learned: tegu.MetaLearned, task: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """The third output of the model belongs to no class of this task."""
    x, _ = task
    assert set(learned.adapt(x, "abab").predict(100 * numbers(50, 6))) <= {"a", "b"}


def test_regression() -> None:
    model = tegu.models.Mlp(1, 1, hidden=(20,), activation="tanh")
    waves = tegu.Reptile(model=model, loss=squared_error, inner_lr=0.02, eval_steps=200)
    learned = tegu.meta_train(waves, tegu.Sinusoids(), meta_iterations=5)
    x = torch.linspace(-1, 1, 5)[:, None]
    adapted = learned.adapt(x, x.sin())
    assert adapted.labels == ()
    assert adapted.predict(x).shape == (5, 1)
    torch.testing.assert_close(adapted.predict(x), adapted.outputs(x))
    torch.testing.assert_close(adapted.predict(x), x.sin(), rtol=0, atol=0.2)
    (result,) = learned.evaluate(tegu.Sinusoids("meta_test"), episodes=3)
    assert (result.metric, result.episodes) == ("mse", 3)


def test_features_are_the_model_s_body(learned: tegu.MetaLearned) -> None:
    x = numbers(4, 6)
    weights = {k: v for k, v in learned.params.items() if "/" not in k}
    body = x @ weights["body.1.weight"].T + weights["body.1.bias"]
    torch.testing.assert_close(learned.features(x), body.relu())


def test_running_statistics_are_those_of_meta_training(toy_images: tegu.ClassDataset) -> None:
    """A task is learnt and answered, and features are made, with what was tracked."""
    model = tegu.models.Conv4(0, size=8, width=4)
    protonet = tegu.learners.ProtoNet(model=model, n_way=3, normalisation="running")
    tasks = tegu.FewShotTasks(toy_images, 3, 2, 2)
    found = tegu.meta_train(protonet, tasks, meta_iterations=2, outer_lr=0.001)
    x = toy_images.examples[[0, 9, 14]]
    features = found.features(x)
    torch.testing.assert_close(found.features(x[:1]), features[:1])
    apart = torch.cdist(features, features).square()
    torch.testing.assert_close(found.adapt(x, ["a", "b", "c"]).outputs(x), -apart)


def test_tasks_of_more_ways_than_the_learner_has(toy_images: tegu.ClassDataset) -> None:
    learner = tegu.learners.ProtoNet(model=tegu.models.Conv4(0, size=8, width=4), n_way=2)
    with pytest.raises(InputError, match="tasks of 3 ways for ProtoNet with n_way=2"):
        tegu.meta_train(learner, tegu.FewShotTasks(toy_images, 3, 2, 2), meta_iterations=1)


def test_a_run_with_augmentation_is_another(toy_images: tegu.ClassDataset, tmp_path: Path) -> None:
    """A run is not gone on with under other images."""
    learner = tegu.Reptile(model=tegu.models.Mlp(64, 3, hidden=(4,)), inner_steps=1)
    plain = tegu.FewShotTasks(toy_images, n_way=3, n_shot=1)
    for tasks in (plain, replace(plain, augment=tegu.datasets.augment.flip)):
        run = tmp_path / str(tasks.augment is None)
        tegu.meta_train(learner, tasks, meta_iterations=1, run=run)
        other = replace(tasks, augment=None if tasks.augment else tegu.datasets.augment.flip)
        with pytest.raises(InputError, match=r"with other settings \(tasks"):
            tegu.meta_train(learner, other, meta_iterations=1, run=run, resume=True)


def test_a_run_of_tasks_that_keep_tensors_of_their_own(
    toy_images: tegu.ClassDataset, tmp_path: Path
) -> None:
    """What a source of tasks remembers of its draws says nothing about a run."""
    grouped = replace(toy_images, groups=torch.arange(toy_images.n_classes) // 2)
    tasks = tegu.FewShotTasks(grouped, n_way=2, n_shot=1, within=True)
    one = tegu.Reptile(model=tegu.models.Mlp(64, 3, hidden=(4,)), inner_steps=1)
    for resume in (False, True):
        run = {"run": tmp_path / "own", "resume": resume}
        tegu.meta_train(one, tasks, meta_iterations=1, **run)
    source = tegu.datasets.MutualExclusivity(n_query=2)
    scan = tegu.datasets.Scan(n_support=2, n_query=2)
    for number, words in enumerate((source, scan)):
        model = tegu.models.MemorySeq2Seq(
            words.n_inputs, words.n_outputs, longest=words.steps, width=4
        )
        made = tegu.learners.MetaSeq2Seq(model=model)
        tegu.meta_train(made, words, meta_iterations=1, run=tmp_path / str(number))


def test_features_of_a_model_without_a_body() -> None:
    plain = tegu.Reptile(model=torch.nn.Linear(3, 2))
    with pytest.raises(InputError, match="Linear without a module or method named body"):
        tegu.MetaLearned(plain, plain.init()).features([[1, 2, 3]])


def test_evaluate_is_adapting_and_asking(
    learned: tegu.MetaLearned, toy_data: tegu.ClassDataset
) -> None:
    tasks = tegu.FewShotTasks(toy_data, 3, 2, 2, seed=1)
    (result,) = learned.evaluate(tasks, episodes=4, at_once=3)
    assert (result.metric, result.episodes, result.split) == ("accuracy", 4, "meta_train")
    assert result.value > 0.6
    (other,) = learned.evaluate(tasks, episodes=4, score=lambda o, t: 1 - accuracy(o, t))
    assert other.value == pytest.approx(1 - result.value)


def test_evaluate_with_fewer_ways_is_adapting_and_asking(toy_data: tegu.ClassDataset) -> None:
    """A learned task of two classes cannot answer with the model's other outputs."""
    tasks = tegu.FewShotTasks(toy_data, 2, 1, 3)
    learned = tegu.MetaLearned(maml(8, inner_lr=0.001), maml(8).init())
    (found,) = learned.evaluate(tasks, episodes=40)
    episodes, right = tasks.episodes(torch.arange(40)), []
    for support, query in zip(
        zip(episodes.support.x, episodes.support.y, strict=True),
        zip(episodes.query.x, episodes.query.y, strict=True),
        strict=True,
    ):
        answers = learned.adapt(support[0], support[1]).predict(query[0])
        right.append(sum(a == b for a, b in zip(answers, query[1].tolist(), strict=True)) / 6)
    assert found.value == pytest.approx(sum(right) / 40)


def test_evaluate_takes_the_ways_of_the_tasks(toy_images: tegu.ClassDataset) -> None:
    """As adapting does, where the learner has no output for each class."""
    model = tegu.models.Conv4(0, size=8, width=4)
    few = tegu.learners.ProtoNet(model=model, n_way=2, normalisation="transductive")
    params, tasks = few.init(), tegu.FewShotTasks(toy_images, 3, 2, 2, seed=1)
    (found,) = tegu.MetaLearned(few, params).evaluate(tasks, episodes=4)
    (wanted,) = tegu.MetaLearned(replace(few, n_way=3), params).evaluate(tasks, episodes=4)
    assert found == wanted


def test_what_no_task_with_labels_is_learnt_by() -> None:
    model = tegu.models.MaskedMlps(3, 2)
    causes = tegu.MetaLearned(one := tegu.learners.CausalGraph(model=model), one.init())
    with pytest.raises(InputError, match="for causal-graph, which learns what causes what"):
        causes.adapt([[0.0, 1.0, 0.0]], [0])
    reads = tegu.learners.Mlc(model=tegu.models.StudyTransformer(5, 4, width=8, heads=2))
    with pytest.raises(InputError, match="50"):
        tegu.MetaLearned(reads, reads.init()).adapt([[50]], [[3]])


def test_save_and_load(
    learned: tegu.MetaLearned, task: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    x, queries = task
    learned.save(tmp_path / "kept" / "reptile.safetensors")
    again = tegu.MetaLearned.load(str(tmp_path / "kept" / "reptile.safetensors"), learner())
    torch.testing.assert_close(again.params, learned.params, rtol=0, atol=0)
    expected = learned.adapt(x, "abab").outputs(queries)
    torch.testing.assert_close(again.adapt(x, "abab").outputs(queries), expected, rtol=0, atol=0)
    with pytest.raises(InputError, match="holds other parameters than this learner has"):
        tegu.MetaLearned.load(tmp_path / "kept" / "reptile.safetensors", learner(carry=False))


@pytest.mark.parametrize("kind", ["maml", "reptile", "baseline"])
def test_a_task_is_learnt_in_inference_mode_too(kind: str, toy_data: tegu.ClassDataset) -> None:
    """As a server has it: torch 2.11 found gradients of zero there, and nothing was learnt."""
    learner: Any = maml()
    if kind == "reptile":
        learner = tegu.Reptile(model=tegu.models.Mlp(6, 3, hidden=(8,)))
    if kind == "baseline":
        body = tegu.models.Mlp(6, 0, hidden=(8,))
        learner = tegu.learners.Baseline(model=body, n_way=3, n_classes=toy_data.n_classes)
    params, x, y = learner.init(), toy_data.examples[:12], list("abcabcabcabc")
    expected = tegu.MetaLearned(learner, params).adapt(x, y).outputs(x)
    with torch.inference_mode():
        of_it = {name: p.clone() for name, p in params.items()}
        for kept in (params, of_it):
            found = tegu.MetaLearned(learner, kept).adapt(x.clone(), y).outputs(x)
            torch.testing.assert_close(found, expected)


def test_frozen_parts_are_those_that_something_was_learned_beside(
    toy_data: tegu.ClassDataset, tmp_path: Path
) -> None:
    """No file holds them, so another draw of them would answer otherwise, in silence."""

    def reptile(seed: int, **settings: Any) -> tegu.Reptile:
        torch.manual_seed(seed)
        frozen = torch.nn.Linear(6, 8).requires_grad_(False)
        trained = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
        model = torch.nn.Sequential(frozen, *trained)
        model.register_buffer("mean", torch.randn(3))
        model[1].running_mean += seed  # which is read by nobody
        return tegu.Reptile(model=model, inner_steps=1, **settings)

    tasks, run = tegu.FewShotTasks(toy_data, 3, 2, 0), {"run": tmp_path / "run"}
    learned = tegu.meta_train(reptile(0), tasks, meta_iterations=2, **run)
    task, x = learned.adapt(toy_data.examples[:6], list("ababab")), toy_data.examples[:9]
    learned.save(tmp_path / "learned")
    task.save(tmp_path / "task")
    same, other = reptile(0), reptile(1)
    same.model[1].running_mean += 5
    assert torch.equal(tegu.Adapted.load(tmp_path / "task", same).outputs(x), task.outputs(x))
    tegu.MetaLearned.load(tmp_path / "learned", replace(same, model=same.model.double()))
    tegu.meta_train(reptile(0), tasks, meta_iterations=2, resume=True, **run)
    for again in (
        lambda: tegu.Adapted.load(tmp_path / "task", other),
        lambda: tegu.MetaLearned.load(tmp_path / "learned", other),
        lambda: tegu.MetaLearned.load(tmp_path / "run" / "checkpoint.safetensors", other),
        lambda: tegu.meta_train(other, tasks, meta_iterations=2, resume=True, **run),
    ):
        with pytest.raises(InputError, match="was learned beside another 'mean'"):
            again()


def test_tied_weights_are_trained_under_both_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert tegu.Reptile(model=model).fixed() == {}


class Twice(torch.nn.Module):
    """A layer under two names, and weights in two layers, with `together` both at once."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 6)
        self.second = torch.nn.Linear(6, 6) if kind == "tied" else self.first
        self.third = torch.nn.Linear(6, 6) if kind == "both" else self.second
        self.third.weight = self.first.weight
        self.norm = self.again = torch.nn.BatchNorm1d(6)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).tanh()
        return self.head(self.third(self.again(self.second(x)).tanh()))


@pytest.mark.parametrize("kind", ["shared", "tied", "both"])
@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_layers_and_weights_under_several_names(
    kind: str, vectorise: str, toy_data: tegu.ClassDataset
) -> None:
    """A pass is one of the model with these weights, and leaves the model's own in it."""
    model = Twice(kind)
    one = tegu.learners.Maml(model=model, normalisation="transductive")
    own = dict(model.named_parameters(remove_duplicate=False))
    params = {k: v + 0.1 for k, v in one.init().items()}
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = one.forward(params, x)
        expected = copy.deepcopy(model)
        for name, value in expected.named_parameters():
            value.copy_(params[name])
        torch.testing.assert_close(found, expected(x))
    tasks = tegu.FewShotTasks(toy_data, 3, 2, 1)
    tegu.meta_train(one, tasks, meta_iterations=2, vectorise=vectorise)
    now = dict(model.named_parameters(remove_duplicate=False))
    assert now.keys() == own.keys()
    assert all(now[name] is value for name, value in own.items())


def test_running_statistics_that_are_read_are_fixed() -> None:
    """MAML under `running` reads the model's own, which nothing follows."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    one = tegu.learners.Maml(model=model, normalisation="running")
    before, tracked = one.fixed(), replace(one, normalisation="transductive").fixed()
    model(torch.randn(4, 2))
    names = ["1.running_mean", "1.running_var"]
    assert [name for name, digest in one.fixed().items() if before[name] != digest] == names
    assert tracked == {}


def test_a_run_can_be_resumed_and_loaded(toy_data: tegu.ClassDataset, tmp_path: Path) -> None:
    tasks, told = tegu.FewShotTasks(toy_data, 3, 2, 0), []

    def stop(report: Progress) -> None:
        told.append(report.iteration)
        if len(told) == 1:
            raise KeyboardInterrupt

    whole = tegu.meta_train(learner(), tasks, meta_iterations=40, meta_batch=2)
    settings = {"meta_iterations": 40, "meta_batch": 2, "run": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        tegu.meta_train(learner(), tasks, progress=stop, **settings)
    again = tegu.meta_train(learner(), tasks, progress=stop, resume=True, **settings)
    assert told == [32, 32, 40]  # nothing had been kept
    torch.testing.assert_close(again.params, whole.params, rtol=0, atol=0)
    loaded = tegu.MetaLearned.load(tmp_path / "run" / "checkpoint.safetensors", learner())
    torch.testing.assert_close(loaded.params, whole.params, rtol=0, atol=0)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").iteration == 40
    tanh = tegu.models.Mlp(6, 3, hidden=(8,), activation="tanh")
    for other in (learner(inner_lr=0.1), replace(learner(), model=tanh)):
        with pytest.raises(InputError, match=r"other settings \(learner"):
            tegu.meta_train(other, tasks, resume=True, **settings)
    few = toy_data.where(lambda name: name != "a")
    with pytest.raises(InputError, match=r"other settings \(tasks"):
        tegu.meta_train(learner(), tegu.FewShotTasks(few, 3, 2, 0), resume=True, **settings)


def test_arrays_that_are_mirrored(learned: tegu.MetaLearned) -> None:
    """A view with a negative stride, which torch takes none of."""
    x = np.random.default_rng(0).normal(size=(4, 6))
    task = learned.adapt(x[:, ::-1], "abab")
    assert task.predict(x[:, ::-1]) == task.predict(x[:, ::-1].copy())


def test_probabilities_are_of_classes() -> None:
    model = tegu.models.Mlp(1, 1, hidden=(4,))
    waves = tegu.Reptile(model=model, loss=tegu.losses.squared_error, eval_steps=1)
    task = tegu.MetaLearned(waves, waves.init()).adapt([[0.0]], [[1.0]])
    with pytest.raises(InputError, match="probabilities from Reptile on a task without classes"):
        task.predict_proba([[0.0]])


def test_examples_and_queries_may_be_of_any_number(
    learned: tegu.MetaLearned, task: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, queries = task
    adapted = learned.adapt(x[:3], "aba")
    assert adapted.predict(queries[:1]) == ["a"]
    assert adapted.outputs(queries.repeat(5, 1)).shape == (20, 2)


def test_a_loss_of_ones_own(toy_data: tegu.ClassDataset) -> None:
    """Any function of outputs and examples; labels are classes then."""

    def cold(outputs: torch.Tensor, target: Examples) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(2 * outputs, target.y)

    tasks = tegu.FewShotTasks(toy_data, 3, 2, 0)
    found = tegu.meta_train(learner(loss=cold), tasks, meta_iterations=2)
    assert found.adapt(toy_data.examples[[0, 9]], "ab").labels == ("a", "b")


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_a_loss_of_ones_own_on_numbers(kind: Callable[..., Any]) -> None:
    """Two quantiles of each target, say: as many outputs as the loss wants."""

    def pinball(outputs: torch.Tensor, target: Examples) -> torch.Tensor:
        over = target.y - outputs
        share = torch.tensor([0.1, 0.9])
        return torch.maximum(share * over, (share - 1) * over).mean()

    model = tegu.models.Mlp(1, 2, hidden=(8,))
    one = tegu.Reptile(model=model, loss=pinball, inner_lr=0.01)
    found = tegu.meta_train(one, tegu.Sinusoids(), meta_iterations=2)
    task = found.adapt(kind(np.array([[0.0], [1.0]])), kind(np.array([[0.0], [0.8]])))
    assert task.labels == ()
    assert task.predict([[0.5]]).shape == (1, 2)


@pytest.mark.parametrize(("make", "usual"), [(tegu.Reptile, 1.0), (tegu.learners.Maml, 0.001)])
def test_the_outer_step_is_the_learner_s_usual_one(
    make: Any, usual: float, toy_data: tegu.ClassDataset
) -> None:
    learner = make(model=tegu.models.Mlp(6, 3, hidden=(4,)), inner_steps=1)
    tasks = tegu.FewShotTasks(toy_data, n_way=3, n_shot=2, n_query=1)
    usually, named = (
        tegu.meta_train(learner, tasks, meta_iterations=2, meta_batch=2, outer_lr=rate).params
        for rate in (None, usual)
    )
    torch.testing.assert_close(usually, named, rtol=0, atol=0)
    other = tegu.meta_train(learner, tasks, meta_iterations=2, meta_batch=2, outer_lr=usual / 3)
    assert not torch.equal(other.params["head.weight"], named["head.weight"])


class Dropping(torch.nn.Module):
    """Every kind of layer that drops or scales activations at random."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.RReLU())
        kinds = (
            torch.nn.LSTM,
            torch.nn.GRU,
            torch.nn.RNN,
            partial(torch.nn.RNN, nonlinearity="relu"),
        )
        self.cells = torch.nn.ModuleList(kind(8, 8, num_layers=2, dropout=0.5) for kind in kinds)
        self.drop = torch.nn.Dropout(0.5)
        self.attention = torch.nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.last = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.drop(self.first(x))[:, None]
        for cells in self.cells:
            out = out + cells(out)[0]
        out = torch.nn.functional.scaled_dot_product_attention(out, out, out, None, 0.5)
        return self.last(self.attention(out, out, out, need_weights=False)[0][:, 0])


def test_layers_of_dropout_drop_nothing(toy_data: tegu.ClassDataset) -> None:
    """Else the same seed would give other weights, and the same query other answers."""
    tasks = tegu.FewShotTasks(toy_data, 3, 2, 0)
    found = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model = Dropping()
        torch.manual_seed(seed)
        one = tegu.Reptile(model=model, inner_steps=2, eval_steps=2)
        found.append(tegu.meta_train(one, tasks, meta_iterations=2, vectorise="loop"))
        assert model.drop.training
    torch.testing.assert_close(found[0].params, found[1].params, rtol=0, atol=0)
    x = toy_data.examples[:6]
    task = found[0].adapt(x, list("ababab"))
    assert torch.equal(task.outputs(x), task.outputs(x))


@pytest.mark.parametrize("kind", ["dropout", "rrelu", "lstm"])
def test_one_kind_of_random_layer_is_enough(kind: str) -> None:
    """Each is looked for by itself: where there is none, a pass is left as it is."""
    first = {
        "dropout": torch.nn.Dropout(0.5),
        "rrelu": torch.nn.RReLU(),
        "lstm": torch.nn.LSTM(6, 6, num_layers=2, dropout=0.5),
    }[kind]

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = first, torch.nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.first(x[None])
            return self.last((out[0] if isinstance(out, tuple) else out)[0])

    learner = tegu.Reptile(model=Model())
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    outputs = [learner.forward(learner.init(), x) for _ in range(2)]
    assert torch.equal(*outputs)


def test_a_refused_training_leaves_its_folder_free(
    toy_data: tegu.ClassDataset, tmp_path: Path
) -> None:
    for queries in (0, 1):
        tasks = tegu.FewShotTasks(toy_data, 3, 1, queries)
        call = partial(tegu.meta_train, maml(), tasks, meta_iterations=1, run=tmp_path / "run")
        if queries:
            call()
        else:
            with pytest.raises(InputError, match="without queries"):
                call()


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Which did not know of frequencies."""
    one = tegu.Reptile(model=tegu.models.Mlp(1, 1, hidden=(8,)), loss=squared_error)
    call = partial(tegu.meta_train, one, meta_iterations=2, run=tmp_path / "run", resume=True)
    call(tegu.Sinusoids())
    file, checkpoint = (tmp_path / "run" / n for n in ("recipe.json", "checkpoint.safetensors"))
    recipe = json.loads(file.read_text())
    del recipe["tasks"]["frequency"]
    file.write_text(json.dumps(recipe))
    saved = load_checkpoint(checkpoint)
    digest = Run(tmp_path / "other", recipe).digest()
    save_checkpoint(checkpoint, replace(saved, recipe=digest))
    call(tegu.Sinusoids())
    with pytest.raises(InputError, match="other settings"):
        call(tegu.Sinusoids(frequency=(0.8, 1.2)))


def maml(outputs: int = 3, **settings: Any) -> tegu.learners.Maml:
    return tegu.learners.Maml(model=tegu.models.Mlp(6, outputs, hidden=(8,)), **settings)


def test_tasks_that_a_learner_cannot_learn(toy_data: tegu.ClassDataset) -> None:
    batches = tegu.sampling.ClassBatches(toy_data, 8)
    few = tegu.FewShotTasks(toy_data, 3, 1, 1)
    model = tegu.models.Mlp(6, 8, hidden=(8,))
    classifier = tegu.learners.SimpleShot(model=model, n_way=3, n_classes=toy_data.n_classes + 1)
    for one, tasks, said in (
        (maml(), tegu.FewShotTasks(toy_data, 3, 1, 0), r"without queries for Maml.*n_query=5"),
        (maml(2), few, r"tasks of 3 ways for a model with 2 outputs"),
        (maml(), batches, r"batches of \d+ classes for Maml; expected few-shot tasks"),
        (classifier, few, r"few-shot tasks for SimpleShot with n_classes=\d+; .*ClassBatches"),
        (classifier, batches, r"batches of \d+ classes for SimpleShot with n_classes=\d+"),
    ):
        with pytest.raises(InputError, match=said):
            tegu.meta_train(one, tasks, meta_iterations=1)


def test_numbers_are_no_classes() -> None:
    one = tegu.Reptile(model=tegu.models.Mlp(1, 1, hidden=(8,)))
    with pytest.raises(InputError, match=r"targets of torch.float32 .*squared_error"):
        tegu.meta_train(one, tegu.Sinusoids(), meta_iterations=1)


def test_nothing_to_be_scored_on(learned: tegu.MetaLearned, toy_data: tegu.ClassDataset) -> None:
    with pytest.raises(InputError, match="episodes without queries; expected some to be scored on"):
        learned.evaluate(tegu.FewShotTasks(toy_data, 3, 2, 0), episodes=2)


class Words(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.words(x.long()).mean(-2))


def test_numbers_that_a_model_does_not_take_are_told_each_time() -> None:
    one = tegu.Reptile(model=Words())
    known = tegu.MetaLearned(one, one.init())
    for x, wrong in (([[9.0]], True), ([[8.0]], False), ([[9.0]], True)):
        if wrong:
            with pytest.raises(InputError, match=r"x has shape \(1, 1\).*index out of range"):
                known.adapt(x, ["a"])
        else:
            known.adapt(x, ["a"])


def test_inputs_that_no_model_takes(learned: tegu.MetaLearned) -> None:
    task = learned.adapt(torch.rand(4, 6), list("abab"))
    for call in (
        lambda x: learned.adapt(x, list("abab")),
        learned.features,
        task.predict,
        task.predict_proba,
    ):
        for x in (torch.rand(4), torch.rand(4, 7)):
            with pytest.raises(InputError, match=r"x has shape \(4.*of the shape that the model"):
                call(x)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_bytes_for_a_task_of_floats(
    learned: tegu.MetaLearned, kind: Callable[..., Any], tmp_path: Path
) -> None:
    """As images on other scales, which are answered at chance."""
    rng = np.random.default_rng(0)
    floats = kind(rng.random((4, 6), "f4"))
    bytes_ = kind(rng.integers(0, 256, (4, 6), "u1"))
    task = learned.adapt(floats, "abab")
    task.save(tmp_path / "task")
    for one in (task, tegu.Adapted.load(tmp_path / "task", learned.learner)):
        with pytest.raises(InputError, match=r"x in bytes for what was learned from floats"):
            one.predict(bytes_)
        with pytest.raises(InputError, match=r"x in bytes for what was learned from floats"):
            one.predict(list(bytes_))
    with pytest.raises(InputError, match="x in floats for what was learned from bytes"):
        learned.adapt(bytes_, "abab").predict(floats)
    open_ = [[0, 1, 0, 1, 0, 1]]
    right = task.outputs(torch.tensor(open_, dtype=torch.float32))
    for other in (open_, kind(np.array(open_, "u1")), kind(np.array(open_, bool))):
        assert torch.equal(task.outputs(other), right)
    assert torch.equal(task.outputs(floats.tolist()), task.outputs(floats))
    taken = learned.adapt(bytes_.tolist(), "abab").outputs(bytes_)
    assert torch.equal(taken, learned.adapt(bytes_, "abab").outputs(bytes_))


def test_one_class_is_no_task_by_metric(learned: tegu.MetaLearned) -> None:
    x, labels = torch.rand(2, 6), ["a", "a"]
    made = tegu.learners.ProtoNet(model=tegu.models.Mlp(6, 8, hidden=(8,)))
    with pytest.raises(InputError, match="labels of one class only, 'a'; expected two classes"):
        tegu.MetaLearned(made, made.init()).adapt(x, labels)
    assert learned.adapt(x, labels).predict(x) == labels


def test_a_missing_label_of_pandas(learned: tegu.MetaLearned) -> None:
    class Missing:
        """As pandas' NA: comparisons give itself, and it is neither true nor false."""

        __hash__ = object.__hash__

        def __ne__(self, other: object) -> Any:
            return self

        def __bool__(self) -> bool:
            raise TypeError("boolean value of NA is ambiguous")

    with pytest.raises(InputError, match="y holds NaN in row 1"):
        learned.adapt(torch.rand(2, 6), ["a", Missing()])


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.int64])
def test_data_of_any_dtype(kind: torch.dtype, toy_data: tegu.ClassDataset) -> None:
    data = replace(toy_data, examples=(10 * toy_data.tensor).to(kind))
    found: list[float] = []
    learned = tegu.meta_train(maml(), tegu.FewShotTasks(data, 3, 2, 1), meta_iterations=1)
    whole = replace(toy_data, examples=data.tensor.float())
    for one in (data, whole):
        (result,) = learned.evaluate(tegu.FewShotTasks(one, 3, 2, 1), episodes=20)
        found.append(result.value)
    assert found[0] == pytest.approx(found[1], abs=0.1)


def test_settings_of_the_engine_arrive(
    monkeypatch: pytest.MonkeyPatch, toy_data: tegu.ClassDataset
) -> None:
    seen: dict[str, Any] = {}
    real = tegu.meta.Vectorised

    def noted(*args: Any, **settings: Any) -> Any:
        seen.update(settings)
        return real(*args, **settings)

    monkeypatch.setattr(tegu.meta, "Vectorised", noted)
    wanted: dict[str, Any] = {"precision": "bf16", "at_once": 1, "vectorise": "vmap"}
    tasks = tegu.FewShotTasks(toy_data, 3, 2, 1)
    tegu.meta_train(maml(), tasks, meta_iterations=1, meta_batch=2, compile=False, **wanted)
    assert {name: seen[name] for name in wanted} == wanted
    assert not seen["compile"]


IMPORTING = """
import os, torch, warnings

def state():
    numbers = torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype()
    return numbers, list(warnings.filters), dict(os.environ)

before = state()
import tegu
assert state() == before
"""


def test_to_import_tegu_changes_nothing_around_it() -> None:
    subprocess.run([sys.executable, "-c", IMPORTING], check=True)


def test_ctrl_c_without_a_run_is_python_s_own(toy_data: tegu.ClassDataset) -> None:
    def press(_: Progress) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as info:
            tegu.meta_train(
                learner(), tegu.FewShotTasks(toy_data, 3, 2, 0), meta_iterations=2, progress=press
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert type(info.value) is KeyboardInterrupt


def test_a_home_folder_and_whole_numbers_of_numpy(
    toy_data: tegu.ClassDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tasks = tegu.FewShotTasks(toy_data, 3, 2, 0, seed=np.int64(3))
    two = np.int64(2)
    learned = tegu.meta_train(
        learner(), tasks, meta_iterations=two, meta_batch=two, seed=two, run="~/runs/a"
    )
    assert (tmp_path / "runs/a/checkpoint.safetensors").is_file()
    learned.save("~/learned")
    again = tegu.MetaLearned.load("~/learned", learner())
    torch.testing.assert_close(again.params, learned.params, rtol=0, atol=0)


def test_a_task_keeps_a_copy(toy_images: tegu.ClassDataset) -> None:
    """Its examples may be needed to answer, and the caller's array be filled anew."""
    one = Maml(model=tegu.models.Conv4(3, size=8, width=4), inner_lr=0.1)
    learned = tegu.MetaLearned(one, one.init())
    buffer = toy_images.tensor[:4].float().numpy().copy()
    task = learned.adapt(buffer, ["a", "b", "a", "b"])
    before = task.outputs(buffer[:2].copy())
    queries = buffer[:2].copy()
    buffer[:] = 0
    torch.testing.assert_close(task.outputs(queries), before, rtol=0, atol=0)


def test_threads_share_a_model(toy_data: tegu.ClassDataset) -> None:
    """Weights of a task stand in the one module while it is called."""
    one = Maml(model=Slow(6, 3), inner_lr=0.1)
    learned = tegu.MetaLearned(one, one.init())
    tasks = [learned.adapt(toy_data.tensor[i : i + 2], [0, 1]) for i in range(4)]
    alone = [task.outputs(toy_data.tensor[:3]) for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(lambda t: t.outputs(toy_data.tensor[:3]), tasks))
            torch.testing.assert_close(together, alone, rtol=0, atol=0)
    assert {k: v.shape for k, v in one.init().items()} == {
        k: v.shape for k, v in learned.params.items()
    }


def test_threads_learn_load_and_answer(toy_data: tegu.ClassDataset, tmp_path: Path) -> None:
    """What is built for a task looks at the model, too, which another thread may be in."""
    one = tegu.learners.ProtoNet(model=Slow(6, 3), n_way=3, body="")
    learned, x = tegu.MetaLearned(one, one.init()), toy_data.tensor
    learned.save(tmp_path / "learned")
    learned.adapt(x[:2], [0, 1]).save(tmp_path / "task")

    def work(i: int) -> tuple[torch.Tensor, ...]:
        again = tegu.MetaLearned.load(tmp_path / "learned", one)
        tasks = again.adapt(x[i : i + 2], [0, 1]), tegu.Adapted.load(tmp_path / "task", one)
        return tuple(task.outputs(x[:3]) for task in tasks)

    alone = [work(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(work, range(8))), alone, rtol=0, atol=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_holds_no_lock_of_a_thread() -> None:
    model, held, done = Slow(6, 3), threading.Event(), threading.Event()

    def hold() -> None:
        with alone(model):
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends it where it would wait for ever
        with alone(model):
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    done.set()
    thread.join()


class Slow(torch.nn.Module):
    """Gives other threads time between two layers."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(width, 4), torch.nn.Linear(4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).relu()
        time.sleep(0.002)
        out: torch.Tensor = self.last(hidden)
        return out


def test_inputs_as_a_list_of_tensors(
    learned: tegu.MetaLearned, toy_data: tegu.ClassDataset
) -> None:
    x = toy_data.tensor[:2]
    rows = [row.clone().requires_grad_() for row in x]
    expected = learned.adapt(x, ["a", "b"]).outputs(x)
    torch.testing.assert_close(learned.adapt(rows, ["a", "b"]).outputs(rows), expected)
    with pytest.raises(InputError, match="x is a Tensor that is no table of numbers"):
        learned.adapt(x.to(torch.complex64), ["a", "b"])


def test_evaluate_refuses_more_ways_than_outputs(toy_images: tegu.ClassDataset) -> None:
    one = Maml(model=tegu.models.Conv4(2, size=8, width=4), inner_lr=0.1)
    with pytest.raises(InputError, match="tasks of 3 ways for a model with 2 outputs"):
        tegu.MetaLearned(one, one.init()).evaluate(tegu.FewShotTasks(toy_images, 3, 1, 1))


def test_running_statistics_that_a_layer_does_not_keep() -> None:
    network = torch.nn.Sequential(
        torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4, track_running_stats=False)
    )
    tegu.learners.ProtoNet(model=network, body="", normalisation="support")
    with pytest.raises(InputError, match="with the layer '1', which keeps no statistics"):
        tegu.learners.ProtoNet(model=network, body="", normalisation="running")


def test_several_components_learn_tasks_too() -> None:
    model = tegu.models.Mlp(1, 4, hidden=(8,))
    waves = Maml(model=model, loss=gaussian, inner_lr=0.01)
    learned = tegu.meta_train(waves, tegu.Sinusoids(n_query=5), meta_iterations=1)
    task = learned.adapt(torch.zeros(3, 1), torch.zeros(3, 1))
    mean, deviation = task.predict_distribution(torch.zeros(2, 1))
    assert mean.shape == deviation.shape == (2, 1)
    with pytest.raises(InputError, match=r"4 outputs for targets of 3 numbers|y has 3 columns"):
        learned.adapt(torch.zeros(3, 1), torch.zeros(3, 3))


def test_data_that_the_model_cannot_take(toy_data: tegu.ClassDataset) -> None:
    wrong = Maml(model=tegu.models.Mlp(7, 3, hidden=(8,)))
    with pytest.raises(InputError, match=r"x has shape .* the model said"):
        tegu.meta_train(wrong, tegu.FewShotTasks(toy_data, 3, 1, 1), meta_iterations=1)


def test_numbers_too_large_for_the_model(learned: tegu.MetaLearned) -> None:
    large = torch.full((2, 6), 1e300, dtype=torch.float64)
    with pytest.raises(InputError, match="x holds NaN or infinity in row 0"):
        learned.adapt(large, "ab")
    with pytest.raises(InputError, match="x holds NaN or infinity in row 0"):
        learned.features(large)


def test_arrays_as_people_have_them(learned: tegu.MetaLearned) -> None:
    plain = np.arange(12.0).reshape(2, 6)
    expected = learned.features(plain)
    fixed = plain.astype(np.float32)
    fixed.flags.writeable = False
    for one in (plain.astype(">f4"), plain.astype(object), fixed):
        torch.testing.assert_close(learned.features(one), expected)
    with pytest.raises(InputError, match="no table of numbers"):
        learned.features(np.array([["1"] * 6, ["2"] * 6], dtype=object))


def test_learned_tasks_can_be_told_apart(learned: tegu.MetaLearned) -> None:
    one, other = (learned.adapt(np.eye(2, 6), "ab") for _ in range(2))
    assert one in {one}
    assert one != other
    assert learned != learned.adapt
