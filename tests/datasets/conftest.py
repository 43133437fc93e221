"""Each test has its own cache folder, no TEGU_DATA, and no network."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty."""

    def no_network(url: str, timeout: float) -> NoReturn:
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.delenv("TEGU_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tegu"


@pytest.fixture(scope="session")
def kept_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole session."""
    return tmp_path_factory.mktemp("kept_cache")


@pytest.fixture
def kept_cache(cache: Path, kept_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that the session's tests share: what is slow is made once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept_folder))
