"""Result documents, tables and pictures: what they hold, and what they refuse."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tegu import origin, report
from tegu.engine.evaluate import Result
from tegu.errors import InputError

ONE = Result("accuracy", 0.9541, 0.0012, 10_000, "meta_test", "support")
TRAINING = {"seconds": 3725.0, "meta_iterations": 100, "peak_bytes": 1 << 30}
TIMING = dict.fromkeys(report.TIMING, 2.0) | {"work": "a|b", "rival": "loop", "precision": "fp32"}


@pytest.fixture
def document() -> dict[str, Any]:
    """One figure of accuracy."""
    cells = [
        report.cell(
            ONE, published=0.9539, source="p", data="omniglot", n_way=5, n_shot=1, n_query=1
        )
    ]
    return report.result_document(
        name="one", command="tegu reproduce one", seed=3, training=TRAINING, cells=cells
    )


def test_a_document_has_the_keys_that_readers_expect(
    document: dict[str, Any], tmp_path: Path
) -> None:
    assert list(document) == (
        ["name", "command", "commit", "seed", "versions", "hardware", "training", "cells"]
    )
    assert set(document["versions"]) == {"python", "torch", "numpy", "tegu"}
    assert set(document["hardware"]) == {
        "cpu",
        "instructions",
        "cores",
        "threads",
        "memory_bytes",
        "gpu",
    }
    (cell,) = document["cells"]
    assert cell == {
        "protocol": {
            "data": "omniglot",
            "split": "meta_test",
            "n_way": 5,
            "n_shot": 1,
            "n_query": 1,
            "normalisation": "support",
        },
        "metric": "accuracy",
        "value": 0.9541,
        "ci95": 0.0012,
        "episodes": 10_000,
        "published": 0.9539,
        "source": "p",
    }
    report.write_result(tmp_path / "results" / "one.json", document)
    assert json.loads((tmp_path / "results" / "one.json").read_text()) == document


def test_protocol_keys_that_make_no_sense_are_left_out() -> None:
    wave = Result("mse", 0.05, 0.01, 1000, "meta_test", "none")
    cell = report.cell(wave, data="sinusoids", n_way=None, n_shot=10)
    assert cell["protocol"] == {"data": "sinusoids", "split": "meta_test", "n_shot": 10}
    alike = report.cell(ONE, data="omniglot", within="group", n_way=20, n_shot=1)
    assert list(alike["protocol"])[:3] == ["data", "split", "within"]
    assert "omniglot  meta_test  group    20     1" in report.table([alike])
    assert cell["published"] is None


def test_figures_that_rest_on_other_queries_say_so() -> None:
    one = report.cell(ONE, data="omniglot", n_shot=1, transductive=True)
    assert list(one["protocol"]) == ["data", "split", "n_shot", "normalisation", "transductive"]
    header, row = report.table([one]).splitlines()
    assert "normalisation  transductive  episodes" in header
    assert row.split()[3:5] == ["support", "yes"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["cells"][0].update(value=95.4), "value of cell 0 is 95.4; .* from 0 to 1"),
        (lambda d: d["cells"][0].update(published=98), "published of cell 0 is 98; .*per cent"),
        (lambda d: d["cells"][0].update(ci95=-0.1), "ci95 of cell 0 is -0.1; expected at least 0"),
        (lambda d: d["cells"][0].update(value=math.nan), "value of cell 0 is nan; .*finite"),
        (lambda d: d["cells"][0].update(value="0.9"), "value of cell 0 is '0.9'; .*finite"),
        (lambda d: d["cells"][0].pop("source"), "cell 0 lacks source; expected the keys protocol"),
        (lambda d: d["cells"][0]["protocol"].update(nway=5), "'nway'; .*Did you mean 'n_way'"),
        (lambda d: d.update(note=""), "the document has the unknown note"),
        (lambda d: d["training"].pop("seconds"), "its training lacks seconds"),
        (lambda d: d["cells"].clear(), "'one' has no cells"),
    ],
)
def test_bad_documents_are_not_written(
    document: dict[str, Any], change: Any, text: str, tmp_path: Path
) -> None:
    bad = copy.deepcopy(document)
    change(bad)
    with pytest.raises(InputError, match=text):
        report.write_result(tmp_path / "bad.json", bad)
    assert list(tmp_path.iterdir()) == []


def test_commit_is_that_of_the_packages_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None outside a checkout and in one that does not track the file; else its head."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # signatures and hooks of one's own
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    own = tmp_path / "origin.py"
    own.write_text("1\n")
    monkeypatch.setattr(origin, "__file__", str(own))
    assert origin.commit() is None
    git("init")
    git("commit", "--allow-empty", "-m", "somebody else's work")
    assert origin.commit() is None
    git("add", "origin.py")
    git("commit", "-m", "first")
    assert origin.commit() == git("rev-parse", "HEAD")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("words")
    assert origin.commit() == git("rev-parse", "HEAD")
    own.write_text("2\n")
    assert origin.commit() == git("rev-parse", "HEAD") + "-dirty"


def test_tables(document: dict[str, Any]) -> None:
    document["commit"] = "0123456789abcdef"
    text = report.markdown_table(document)
    assert text.splitlines()[:3] == [
        "| data | split | way | shot | query | normalisation | episodes | accuracy | published |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| omniglot | meta_test | 5 | 1 | 1 | support | 10,000 | 95.41 ± 0.12 % | 95.39 % |",
    ]
    assert "`tegu reproduce one`; seed 3; commit 0123456789ab; torch" in text
    document["commit"] += "-dirty"
    document["training"]["commits"] = ["fedcba9876543210", "unknown"]
    told = "; commit 0123456789ab-dirty, trained at fedcba987654, unknown; torch"
    assert told in report.markdown_table(document)
    document["training"]["commits"] = [document["commit"]]
    assert "; commit 0123456789ab-dirty; torch" in report.markdown_table(document)
    assert "training 1 h 02 min." in text
    wave = report.cell(Result("mse", 0.0512, 0.0034, 1000, "meta_test", "none"), learner="joint")
    lines = report.table([*document["cells"], wave]).splitlines()
    assert lines[2].split() == ["joint", "meta_test", "1,000", "mse", "0.0512", "±", "0.0034"]
    assert lines[1].index("95.41") == lines[2].index("0.0512")


def test_timings_have_a_table_too(document: dict[str, Any]) -> None:
    document["cells"] = [TIMING]
    assert "| a\\|b | loop | fp32 | 2 | 2 | 2.00 (2.00 to 2.00) | 200 % |" in (
        report.markdown_table(document)
    )


def test_figures_and_timings_make_a_table_each(document: dict[str, Any]) -> None:
    document["cells"] = [TIMING, *document["cells"]]
    lines = report.markdown_table(document).splitlines()
    ends = lines.index("")
    assert "accuracy" in lines[0]
    assert "95.41" in lines[ends - 1]
    assert "times as fast" in lines[ends + 1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(41.2, "41 s"), (725, "12 min"), (3590, "1 h 00 min"), (4080, "1 h 08 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origin, "used_gpu", lambda: None)
    held = np.ones(100_000_000)  # 800 MB
    assert origin.peak_bytes() > held.nbytes
    code = "from tegu import origin; print(origin.peak_bytes())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert 0 < int(told.stdout) < held.nbytes
