"""MLC's loss against a plain one, its gradient against differences, its dropout by its rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

import tegu
from tegu import keys, recipes
from tegu.datasets import Grammars
from tegu.datasets.tokens import END, WORDS
from tegu.engine.vectorise import Vectorised
from tegu.episodes import Episode, select
from tegu.errors import InputError
from tegu.inner import Params
from tegu.job import Job
from tegu.learners import Mlc
from tegu.learners.mlc import _dropout, agreed
from tegu.losses import exact_match
from tegu.models import StudyTransformer

KEY = keys.key(3)
Slopes = Callable[..., tuple[Tensor, Tensor]]


def made(**settings: object) -> Mlc:
    model = StudyTransformer(12, 9, width=8, heads=2, feedforward=12, decoder=2, longest=7).double()
    return Mlc(model=model, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def episodes() -> Episode:
    return Grammars(n_support=5, n_query=3, longest=6).episodes(torch.arange(2))


def plain(learner: Mlc, episode: Episode, asked: list[tuple[Tensor, Tensor]]) -> float:
    """Mean over all tokens of -log p, one query and one token after another."""
    model, total, count = learner.model, 0.0, 0
    for x, y in asked:
        study = model.study(*episode.support)
        for at in range(int((y > 0).sum())):
            prefix = y[: at + 1].clone()
            prefix[at] = 1  # what stands here must not matter
            scores = model.answer(study, x[None], prefix[None])[0, at]
            total -= float(F.log_softmax(scores, 0)[y[at]].detach())
            count += 1
    return total / count


def test_loss_is_that_of_queries_and_study_examples(episodes: Episode) -> None:
    learner, episode = made(dropout=0.0), select(episodes, 0)
    support, query = episode
    pairs = [*zip(support.x, support.y, strict=True), *zip(query.x, query.y, strict=True)]
    found = learner.outer_loss(learner.init(), episode, KEY)
    assert float(found) == pytest.approx(plain(learner, episode, pairs), rel=1e-10)


def test_loss_without_recall_is_that_of_queries(episodes: Episode) -> None:
    learner, episode = made(dropout=0.0, recall=0), select(episodes, 1)
    pairs = list(zip(episode.query.x, episode.query.y, strict=True))
    found = learner.outer_loss(learner.init(), episode, KEY)
    assert float(found) == pytest.approx(plain(learner, episode, pairs), rel=1e-10)


def test_some_examples_are_recalled_and_each_key_draws_its_own(episodes: Episode) -> None:
    learner, episode = made(dropout=0.0, recall=1), select(episodes, 0)
    support, query = episode
    asked = list(zip(query.x, query.y, strict=True))
    possible = [
        plain(learner, episode, [*asked, pair]) for pair in zip(support.x, support.y, strict=True)
    ]
    drawn = set()
    for seed in range(30):
        found = float(learner.outer_loss(learner.init(), episode, keys.key(seed)))
        (place,) = (i for i, value in enumerate(possible) if found == pytest.approx(value))
        drawn.add(place)
    assert drawn == set(range(5))


def test_padding_is_recalled_by_nobody(episodes: Episode) -> None:
    learner, episode = made(dropout=0.0, recall=2), select(episodes, 0)
    support = episode.support._replace(mask=torch.tensor([True, True, False, False, False]))
    part = type(support)(*(field[:2] for field in support))
    found = learner.outer_loss(learner.init(), Episode(support, episode.query), KEY)
    dense = learner.outer_loss(learner.init(), Episode(part, episode.query), KEY)
    torch.testing.assert_close(found, dense)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_is_the_slope(episodes: Episode, slopes: Slopes, dropout: float) -> None:
    """Along random directions; dropout masks are the same at both ends."""
    learner, episode = made(dropout=dropout), select(episodes, 0)

    def loss(params: Params) -> Tensor:
        return learner.outer_loss(params, episode, KEY)

    params = learner.init()
    found, expected = slopes(loss, params, grad(loss)(params))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    drop = _dropout(0.1, keys.fold(KEY, torch.arange(50)))
    once, again = drop(torch.ones(50, 4, 101)), drop(torch.ones(50, 4, 101))
    assert float((once == 0).double().mean()) == pytest.approx(26 / 256, abs=0.01)
    assert float(once.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(((once == 0) & (again == 0)).double().mean()) == pytest.approx(0.0103, abs=0.003)


def test_dropout_of_a_row_is_a_function_of_its_key() -> None:
    rows = keys.fold(KEY, torch.arange(4))
    many = _dropout(0.5, rows)(torch.ones(4, 3, 5))
    alone = _dropout(0.5, rows[2:3])(torch.ones(1, 3, 5))
    assert torch.equal(many[2:3], alone)
    batched = vmap(lambda row: _dropout(0.5, row[None])(torch.ones(1, 3, 5)))(rows)
    assert torch.equal(batched[:, 0], many)


def test_it_learns_an_episode(episodes: Episode) -> None:
    """A hundred updates on two episodes answer their queries."""
    model = StudyTransformer(12, 9, width=16, heads=2, feedforward=32, longest=7)
    learner = Mlc(model=model, dropout=0.0)
    engine, at = Vectorised(learner), keys.fold(KEY, torch.arange(2))
    params = learner.init()
    outer = engine.outer_state(params)
    for _ in range(100):
        params, outer, _ = engine.update(params, outer, episodes, at, outer_lr=0.01)
    outputs = engine.predict(params, engine.adapt(params, episodes.support, at), episodes.query)
    assert float(vmap(exact_match)(outputs, episodes.query).mean()) == 1.0


def test_the_recipe_asks_about_the_people_s_grammar() -> None:
    for test, split in (("gold", "gold"), ("human", "human"), ("meta_test", "meta_test")):
        job = Job(recipes.load("mlc-grammars", {"data.test": test}))
        job.check()
        for asked, expected in (("meta_test", split), ("meta_val", "meta_val")):
            tasks = job.tasks(asked, n_shot=14, n_query=10, seed=0)
            assert tasks.split == expected
        assert job.training_tasks().split == "meta_train"


@pytest.mark.parametrize("data", ["scan", "scan-study", "grammars", "mutual-exclusivity"])
def test_settings_to_start_from(data: str) -> None:
    one = Job(recipes.starting("mlc", data))
    one.check()
    assert isinstance(one.learner.model, StudyTransformer)


def test_every_second_layer_of_the_encoder_reaches_over_the_episode() -> None:
    for layers, reach in ((3, ("example", "episode", "example")), (4, ("example", "episode") * 2)):
        one = Job(recipes.load("mlc-grammars", {"model.encoder": layers}))
        model: Any = one.learner.model
        assert model.encoder_reach == reach
        assert len(model.encoder) == layers


def test_errors() -> None:
    with pytest.raises(InputError, match="Linear without `study`"):
        Mlc(model=torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"data\.test"):
        recipes.load("mlc-grammars", {"data.test": "train"})
    with pytest.raises(InputError, match="dropout is 1"):
        made(dropout=1.0)
    for rate in (0.999, 0.001, float("nan")):
        with pytest.raises(InputError, match=r"dropout is .*; expected 0, or a share from 0\.002"):
            made(dropout=rate)
    with pytest.raises(InputError, match="recall is -2"):
        made(recall=-2)


class Dropping(StudyTransformer):
    """A network of a user's, with a layer that drops half of what is asked."""

    def __init__(self) -> None:
        super().__init__(12, 9, width=8, heads=2, feedforward=12, decoder=2, longest=7)
        self.drop = torch.nn.Dropout(0.5)

    def study(self, *given: Any) -> Any:
        found = super().study(*given)
        return found._replace(layers=tuple(self.drop(one) for one in found.layers))


def test_layers_of_dropout_drop_nothing(episodes: Episode) -> None:
    learner, episode = Mlc(model=Dropping(), dropout=0.0), select(episodes, 0)
    params = learner.init()
    first, again = (learner.outer_loss(params, episode, KEY) for _ in range(2))
    assert float(first) == float(again)


def test_answers_longer_than_the_network_writes(episodes: Episode) -> None:
    """They could never be right."""
    learned = tegu.MetaLearned(made(), made().init())
    assert learned.adapt([[3, 4]], [[3] * 6]).predict([[3]])
    with pytest.raises(InputError, match="at most 6"):
        learned.adapt([[3, 4]], [[3] * 7])


def test_the_answer_that_most_views_have_is_taken() -> None:
    """Three views of one query: tokens a END x, a END y, b END z; what follows END is no answer."""
    a, b = WORDS, WORDS + 1
    tokens = torch.tensor([[[b, END, 0]], [[a, END, 1]], [[a, END, 2]]])
    scores = F.one_hot(tokens, 5).double() * torch.tensor([5.0, 3.0, 2.0])[:, None, None, None]
    assert torch.equal(agreed(scores), scores[1]), "two views of three, the surer of both"
    assert torch.equal(agreed(scores[:2]), scores[0]), "one view each: the surer"
    assert torch.equal(agreed(scores[1:2]), scores[1])


def test_views_are_other_names_of_one_task(episodes: Episode) -> None:
    """Each view by hand: words and symbols renamed, answered, and named back."""
    views, episode = 3, select(episodes, 0)
    learner = made(views=views)
    params, key = learner.init(), keys.key(11)
    state = learner.begin(params, episode.support, key, training=False)
    found = learner.predict(params, state, episode.query.x, episode.query.mask)
    answers = []
    for words, symbols in zip(state["words"], state["symbols"], strict=True):
        assert sorted(words.tolist()) == list(range(12))
        assert words[:WORDS].tolist() == symbols[:WORDS].tolist() == list(range(WORDS))
        x, y, mask = episode.support
        study = learner.model.study(words[x], symbols[y], mask)
        answers.append(learner.model.generate(study, words[episode.query.x])[..., symbols])
    assert torch.equal(state["words"][0], torch.arange(12))
    assert not torch.equal(state["words"][1], state["words"][2])
    for query in range(3):
        assert any(torch.allclose(found[query], a[query], atol=1e-12) for a in answers)


def test_no_views_are_refused() -> None:
    with pytest.raises(InputError, match="views is 0"):
        made(views=0)


class Noisy(StudyTransformer):
    """A network that would drop activations and normalise by what it has seen."""

    def __init__(self) -> None:
        super().__init__(12, 9, width=8, heads=2, feedforward=12, decoder=2, longest=7)
        self.extra = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))

    def study(self, *args: Any) -> Any:
        found = super().study(*args)
        return found._replace(memory=self.extra(found.memory))


def test_a_network_with_layers_of_torch_s_is_neither_changed_nor_random(
    episodes: Episode,
) -> None:
    learner, episode = Mlc(model=Noisy()), select(episodes, 0)
    before = {name: b.clone() for name, b in learner.model.named_buffers()}
    params = learner.init()
    found = [
        learner.begin(params, episode.support, KEY, training=True)["study"].memory for _ in range(2)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    for name, buffer in learner.model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def telling() -> Mlc:
    model = StudyTransformer(12, 9, width=8, heads=2, feedforward=12, longest=7, tells=6)
    return Mlc(model=model.double(), dropout=0.0, recall=0, told=0.5)


def told_plainly(learner: Mlc, episode: Episode) -> float:
    """The second loss, one token of one study example after another."""
    model = learner.model
    study = model.study(*episode.support)
    means: dict[int, int] = {}
    rows = [
        (
            [token for token in x.tolist() if token >= WORDS],
            [token for token in y.tolist() if token >= WORDS],
        )
        for x, y in zip(episode.support.x, episode.support.y, strict=True)
    ]
    for command, output in rows:
        if len(command) == len(output) == 1:
            means[command[0]] = output[0]
    words_of = {symbol: word for word, symbol in means.items()}
    width = episode.support.x.shape[1]
    each = width + episode.support.y.shape[1]
    scores = [part.detach() for part in model.tell(study)]
    losses: list[list[float]] = [[], [], []]
    for number, (command, output) in enumerate(rows):
        for at, symbol in enumerate(output):
            row = number * each + width + at
            if symbol not in words_of:
                continue
            word = words_of[symbol]
            losses[0].append(-float(F.log_softmax(scores[0][row], 0)[word]))
            places = [i for i, other in enumerate(command) if other == word]
            if places:
                log = F.log_softmax(scores[2][row], 0)
                losses[2].append(-sum(float(log[i]) for i in places) / len(places))
        for at, word in enumerate(command):
            if word in means:
                row = number * each + at
                losses[1].append(-float(F.log_softmax(scores[1][row], 0)[means[word]]))
    return sum(sum(some) / max(1, len(some)) for some in losses)


@pytest.mark.parametrize("study", ["simple", "random"])
def test_study_examples_tell_what_they_mean(study: str) -> None:
    learner, without = telling(), 0
    params = learner.init()
    batch = Grammars(n_support=7, n_query=3, longest=6, study=study).episodes(torch.arange(8))
    for t in range(8):
        episode = select(batch, t)
        plainly = told_plainly(learner, episode)
        without += not plainly
        pairs = list(zip(episode.query.x, episode.query.y, strict=True))
        expected = plain(learner, episode, pairs) + 0.5 * plainly
        found = learner.outer_loss(params, episode, KEY)
        assert float(found) == pytest.approx(expected, rel=1e-10)
    assert (without > 0) == (study == "random")  # chosen so that some have no word alone


def test_padded_study_examples_tell_nothing() -> None:
    learner = telling()
    episode = select(Grammars(n_support=6, n_query=3, longest=6).episodes(torch.arange(1)), 0)
    support, query = episode
    more = Episode(
        type(support)(
            F.pad(support.x, (0, 0, 0, 2)),
            F.pad(support.y, (0, 0, 0, 2)),
            F.pad(support.mask, (0, 2)),
        ),
        query,
    )
    one, two = (learner.outer_loss(learner.init(), some, KEY) for some in (episode, more))
    torch.testing.assert_close(one, two)


def test_telling_needs_a_model_that_tells() -> None:
    with pytest.raises(InputError, match="does not tell"):
        made(told=0.3)
    with pytest.raises(InputError, match="told is -1"):
        Mlc(model=telling().model, told=-1)
