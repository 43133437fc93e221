"""Labelled texts: files and columns, vectors that need nothing fitted, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import tegu
from tegu.datasets import load_sentences, read_sentences, sentences
from tegu.datasets.sentences import read_lines, read_texts
from tegu.datasets.splits import SPLITS
from tegu.errors import InputError

ROWS = [("where is my card", "card"), ('say "hi", please', "talk"), ("pay, now", "pay")]


def saved(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def many(path: Path, classes: int = 10, each: int = 3) -> Path:
    rows = [
        f"please do thing{i} for number {j},thing{i:02d}"
        for i in range(classes)
        for j in range(each)
    ]
    return saved(path, "\n".join(["text,label", *rows]) + "\n")


# Files


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    quoted = "\n".join('"' + t.replace('"', '""') + '",' + n for t, n in ROWS)
    lines = [json.dumps({"sentence": t, "intent": n, "more": 1}) for t, n in ROWS]
    files = [
        saved(tmp_path / "a.csv", f"text,category\n{quoted}\n"),
        saved(tmp_path / "b.csv", f"\ufeffquery,Class\r\n{quoted}".replace("\n", "\r\n")),
        saved(tmp_path / "c.tsv", "label\ttext\n" + "\n".join(f"{n}\t{t}" for t, n in ROWS[:1])),
        saved(tmp_path / "d.jsonl", "\n\n".join(lines)),
    ]
    for file in files:
        expected = ROWS[:1] if file.suffix == ".tsv" else ROWS
        assert list(read_texts(file)) == expected, file
    own = saved(tmp_path / "own.csv", "no,words,kind,label\n1,a b,k,x\n")
    assert list(read_texts(own, text="words", label="kind")) == [("a b", "k")]
    assert list(read_texts(own, text="words")) == [("a b", "x")]
    numbered = saved(tmp_path / "numbered.csv", ",text,label\n0,a b,x\n")  # as pandas writes it
    assert list(read_texts(numbered)) == [("a b", "x")]


def test_a_text_over_two_lines_and_separators_within(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.csv", 'text,label\n"one\ntwo\u2028three",x\n')
    assert list(read_texts(file)) == [("one\ntwo\u2028three", "x")]
    line = json.dumps({"text": "a\u2028b", "label": 3}, ensure_ascii=False)
    assert list(read_texts(saved(tmp_path / "a.jsonl", line))) == [("a\u2028b", "3")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "words,label\na,b\n", "columns words, label; expected one column called text"),
        ("a.csv", "text,query,label\na,b,c\n", "one column called text, sentence"),
        ("a.csv", "text,label\na,b\nc\n", "line 3 of .* more or fewer cells than the header"),
        ("a.csv", "text,label\na,b,c\n", "line 2 of .* more or fewer cells"),
        ("a.csv", "text,label\n ,b\n", "line 2 of .* holds ' ' as its text"),
        ("a.csv", "text,label\na,\n", "line 2 of .* holds '' as its label"),
        ("a.jsonl", "[]", r"line 1 of .* is no JSON object \(a list\)"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text', "line 2 of .* is no JSON object"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"}', "holds None as its label"),
        ("a.jsonl", '{"text": ["a"], "label": "b"}', r"holds \['a'\] as its text"),
    ],
)
def test_what_is_said_of_bad_files(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(read_texts(saved(tmp_path / name, text)))


def test_what_is_said_of_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.csv").write_bytes("text,label\ncaf\xe9,x\n".encode("latin-1"))
    file = many(tmp_path / "a.csv")
    for path, said in (
        (tmp_path / "absent.csv", "there is no file"),
        (tmp_path, "is a folder"),
        (tmp_path / "latin.csv", "is not text in UTF-8"),
    ):
        with pytest.raises(InputError, match=said):
            load_sentences(path, "meta_train")
    with pytest.raises(InputError, match=r"a column 'words'.*data\.text=COLUMN"):
        load_sentences(file, "meta_train", text="words")
    monkeypatch.setattr(sentences, "LARGEST", 10)
    with pytest.raises(InputError, match="bytes; expected at most 10"):
        load_sentences(file, "meta_train")


def test_small_classes_are_left_out(tmp_path: Path) -> None:
    """Of ten classes, the first has three texts and the others four."""
    rows = many(tmp_path / "a.csv", each=4).read_text().splitlines()
    file = saved(tmp_path / "b.csv", "\n".join(rows[:1] + rows[2:]) + "\n")
    parts = [load_sentences(file, s, size=64, least=4) for s in SPLITS]
    assert sum(part.n_classes for part in parts) == 9
    assert "thing00" not in {name for part in parts for name in part.class_names}
    with pytest.raises(InputError, match=r"has 5 texts, the largest has 4;.*Lower"):
        load_sentences(file, "meta_train", size=64, least=5)


# Classes and vectors


def test_classes_are_divided_by_name(tmp_path: Path) -> None:
    file = many(tmp_path / "a.csv")
    parts = {s: load_sentences(file, s, size=64) for s in ("meta_train", "meta_val", "meta_test")}
    assert [part.n_classes for part in parts.values()] == [6, 2, 2]
    assert sorted(n for part in parts.values() for n in part.class_names) == [
        f"thing{i:02d}" for i in range(10)
    ]
    train = parts["meta_train"]
    assert train.examples.shape == (18, 64)
    number = int(train.class_names[1][-2:])
    texts = [f"please do thing{number} for number {j}" for j in range(3)]
    assert torch.equal(tegu.read_sentences(texts, size=64), train.tensor[3:6])
    assert load_sentences(file, "meta_train", size=64, seed=1).class_names != train.class_names
    with pytest.raises(InputError, match=r"no class of .* is in meta_val"):
        load_sentences(file, "meta_val", shares=(1, 0, 0))


def test_vectors_say_what_is_in_a_text() -> None:
    a, b, c, none = tegu.read_sentences(
        ["lost my card", "my card is lost", "weather in rome", " "], size=1024
    )
    assert float(a @ b) > 3 * abs(float(a @ c))
    torch.testing.assert_close(a.square().mean(), torch.ones(()))
    assert none.unique().tolist() == [0]
    alone = tegu.read_sentences(["weather in rome"], size=1024)[0]
    assert torch.equal(alone, c)
    assert float(tegu.read_sentences(["Lost MY card"], size=1024)[0] @ a) > 0.99 * 1024


def test_a_text_is_read_up_to_its_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "LONGEST", 9)
    long, short = tegu.read_sentences(["one two three", "one two t"], size=64)
    assert torch.equal(long, short)


def test_many_texts_are_hashed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {i}" for i in range(7)]
    whole = tegu.read_sentences(texts, size=64)
    monkeypatch.setattr(sentences, "ROWS", 3)
    assert torch.equal(tegu.read_sentences(texts, size=64), whole)


@pytest.mark.parametrize("size", [0, 63, 65, 1 << 17])
def test_sizes_that_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"vectors of {size} numbers"):
        tegu.read_sentences(["a"], size=size)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences._hashers.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(InputError, match=r"pip install scikit-learn"):
        tegu.read_sentences(["a"])
    with pytest.raises(InputError, match="no texts"):
        tegu.read_sentences([])


def test_half_an_emoji_is_no_obstacle(tmp_path: Path) -> None:
    """As JavaScript leaves it where a text is cut."""
    file = tmp_path / "texts.jsonl"
    rows = [{"text": f"thanks {i} \ud83d", "label": f"kind{i % 3} \ud83d"} for i in range(9)]
    file.write_text("\n".join(map(json.dumps, rows)))
    data = load_sentences(file, "meta_train", size=64, shares=(1, 0, 0))
    assert data.counts.tolist() == [3, 3, 3]
    assert data.tensor.isfinite().all()


def test_a_line_ends_where_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_bytes("one\u2028still one\r\ntwo\x0b too\n".encode())
    assert read_lines(tmp_path / "asked.txt") == ["one\u2028still one", "two\x0b too"]


def test_one_text_is_no_list_of_texts() -> None:
    with pytest.raises(InputError, match="a text in place of a list"):
        read_sentences("Where is my card?")
    with pytest.raises(InputError, match="a text that is a float, nan"):
        read_sentences(["a", float("nan")])  # type: ignore[list-item]


def test_too_many_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tegu.datasets.sentences.MOST_BYTES", 4 * 64 * 2)
    assert read_sentences(["a", "b"], size=64).shape == (2, 64)
    with pytest.raises(InputError, match=r"3 texts of 64 numbers"):
        read_sentences(["a", "b", "c"], size=64)


def test_a_quote_that_never_ends_swallows_no_rows(tmp_path: Path) -> None:
    table = saved(tmp_path / "t.csv", 'label,text\na,"one\nb,two\n')
    with pytest.raises(InputError, match=r"t\.csv"):
        load_sentences(table, "meta_train", shares=(1, 0, 0))


def test_accents_in_either_form_are_one_class(tmp_path: Path) -> None:
    both = "text,label\none,caf\u00e9\ntwo,cafe\u0301\n"
    data = load_sentences(saved(tmp_path / "t.csv", both), "meta_train", shares=(1, 0, 0))
    assert data.class_names == ("caf\u00e9",)
