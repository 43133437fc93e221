"""Recordings: what is read, the picture of pitches against a plain computation, what is refused."""

from __future__ import annotations

import math
import struct
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tegu
from tegu import keys
from tegu.datasets import load_sounds, sound_files
from tegu.datasets.augment import spectral
from tegu.datasets.sound_files import LOWEST, Spectrum, mel_bands, read_wav, stretch
from tegu.errors import InputError

RATE = 8_000


def save(path: Path, samples: np.ndarray, rate: int = RATE, width: int = 2) -> Path:
    """Samples (N,) or (N, channels) from -1 to 1 as a WAV file of `width` bytes a sample."""
    scaled = np.round(samples * (2 ** (8 * width - 1) - 1)).astype("<i8")
    if width == 1:
        scaled += 128
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(scaled.reshape(-1, 1).view(np.uint8)[:, :width].tobytes())
    return path


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE, loud: float = 0.5) -> np.ndarray:
    return loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def noise(seed: int, n: int = RATE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n)


Words = Callable[..., Path]


@pytest.fixture
def words(tmp_path: Path) -> Words:
    """Makes a folder of recordings: a class is a tone, in noise of its own."""

    def make(classes: int = 10, each: int = 4) -> Path:
        for i in range(classes):
            place = tmp_path / "words" / f"word{i:02d}"
            place.mkdir(parents=True)
            for j in range(each):
                save(place / f"{j}.wav", tone(150 * 1.3**i, 0.3) + 0.1 * noise(9 * i + j, 2400))
        return tmp_path / "words"

    return make


# Files


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width(tmp_path: Path, width: int) -> None:
    samples = noise(0, 100)
    found, rate = read_wav(str(save(tmp_path / "a.wav", samples, width=width)))
    assert rate == RATE
    np.testing.assert_allclose(found, samples, rtol=0, atol=max(2.0 ** (1 - 8 * width), 1e-7) * 2)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = noise(0, 50), noise(1, 50)
    found, _ = read_wav(str(save(tmp_path / "a.wav", np.stack([left, right], 1))))
    np.testing.assert_allclose(found, (left + right) / 2, rtol=0, atol=1e-4)


def test_files_that_are_no_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "good.wav", noise(0, 100))
    data = good.read_bytes()
    floats = data[:20] + b"\x03\x00" + data[22:]  # the format's number for floating-point samples
    for name, content, reason in (
        ("text.wav", b"hello", "EOFError|RIFF"),
        ("riff.wav", b"RIFFxxxxAVI ", "not a WAVE file"),
        ("cut.wav", data[:20], "EOFError|chunk missing"),
        ("floats.wav", floats, "unknown.*format"),
        ("stub.wav", data[:-100], r"cut short: 100 bytes of sound of 200"),
        ("empty.wav", data[:40] + b"\0\0\0\0", "no samples"),
        ("slow.wav", data[:24] + b"\x01\0\0\0" + data[28:], "1 samples a second"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} cannot be read as a recording .*{reason}"):
            read_wav(str(tmp_path / name))
    samples = data[44:]
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 0)
    form += bytes.fromhex("0100000000001000800000aa00389b71")  # whole numbers
    chunks = b"WAVEfmt " + struct.pack("<I", 40) + form + b"data"
    chunks += struct.pack("<I", len(samples)) + samples
    extensible = tmp_path / "extensible.wav"
    extensible.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    if sys.version_info >= (3, 12):
        assert torch.equal(read_wav(str(extensible))[0], read_wav(str(good))[0])
    else:
        with pytest.raises(InputError, match=r"extensible form of WAV, which takes Python 3\.12"):
            read_wav(str(extensible))
    with pytest.raises(InputError, match=r"no such file.*a whole WAV file"):
        read_wav(str(tmp_path / "absent.wav"))
    (tmp_path / "link.wav").symlink_to(tmp_path / "absent.wav")
    with pytest.raises(InputError, match="a broken link"):
        read_wav(str(tmp_path / "link.wav"))
    monkeypatch.setattr(sound_files, "LARGEST_FILE", 100)
    with pytest.raises(InputError, match=r"244 bytes, more than 100"):
        read_wav(str(good))


# Pictures


def plainly(samples: np.ndarray, rate: int, size: int, highest: float) -> np.ndarray:
    """Decibels below the loudest band, in float64, one window after another."""
    window, hop = round(0.032 * rate), round(0.010 * rate)
    points = 2 ** math.ceil(math.log2(4 * window))
    padded = np.concatenate([np.zeros(points // 2), samples, np.zeros(points // 2)])
    weights = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectra = []
    for start in range(0, len(samples) + 1, hop):
        piece = padded[start + (points - window) // 2 :][:window] * weights
        spectra.append(np.abs(np.fft.rfft(piece, points)) ** 2)
    mel = [2595 * math.log10(1 + f / 700) for f in (LOWEST, highest)]
    edges = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(mel[0], mel[1], size + 2)]
    powers = np.zeros((size, len(spectra)))
    for band in range(size):
        low, middle, high = edges[band : band + 3]
        for k in range(points // 2 + 1):
            f = k * rate / points
            if low < f < high:
                share = (f - low) / (middle - low) if f < middle else (high - f) / (high - middle)
                powers[band] += [share * spectrum[k] for spectrum in spectra]
    moments = len(spectra)
    means = np.stack(
        [
            powers[:, i * moments // size : -(-(i + 1) * moments // size)].mean(1)
            for i in range(size)
        ],
        1,
    )
    return 10 * np.log10(np.maximum(means / means.max(), 1e-8))


@pytest.mark.parametrize(("rate", "size"), [(8_000, 32), (11_025, 20)])
def test_the_picture_is_that_of_a_plain_computation(rate: int, size: int) -> None:
    samples = noise(3, rate) * np.linspace(0, 1, rate) ** 3 + tone(700, rate=rate)
    form = Spectrum(size, 1.0, 3000.0)
    expected = 255 * (1 + plainly(samples, rate, size, 3000.0) / 80)
    found = form.picture(torch.from_numpy(samples), rate)
    assert found.shape == (1, size, size)
    assert found.dtype == torch.uint8
    assert np.abs(found[0].numpy() - expected).max() <= 0.51


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 3000.0])
def test_a_tone_is_loudest_in_its_band(hertz: float) -> None:
    form = Spectrum()
    picture = form.picture(torch.from_numpy(tone(hertz)), RATE)[0]
    mels = 2595 * np.log10(1 + np.array([LOWEST, 4000.0, hertz]) / 700)
    band = (mels[2] - mels[0]) / (mels[1] - mels[0]) * 33 - 1
    assert abs(int(picture[:, 16].argmax()) - band) <= 0.5


def test_neighbouring_bands_share_every_frequency() -> None:
    bands = mel_bands(32, 1024, RATE, 4000.0, like=torch.zeros((), dtype=torch.float64))
    first, last = (int(row.argmax()) for row in (bands[0], bands[-1]))
    ones = bands.sum(0)[first + 1 : last]
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=0, atol=1e-9)


def test_every_band_hears_something() -> None:
    """The narrowest that are allowed, at a rate whose frequencies lie far apart."""
    loud = torch.from_numpy(noise(0, 96_000)).float()
    picture = Spectrum(512, 0.5, 4000.0).picture(loud, 192_000)
    assert int(picture[0].amax(1).min()) > 0


@pytest.mark.parametrize("unknown", [0xFFFFFFFF, 0x7FFFF000], ids=["as ffmpeg", "as SoX"])
def test_a_recording_of_unknown_length_is_read_to_its_end(unknown: int, tmp_path: Path) -> None:
    data, length = save(tmp_path / "a.wav", noise(0, 100)).read_bytes(), struct.pack("<I", unknown)
    streamed = data[:4] + length + data[8:40] + length + data[44:]
    (tmp_path / "b.wav").write_bytes(streamed)
    whole, rate = read_wav(str(tmp_path / "a.wav"))
    found, same = read_wav(str(tmp_path / "b.wav"))
    assert rate == same
    torch.testing.assert_close(found, whole)


def test_loudness_and_rate_do_not_matter() -> None:
    def picture(rate: int, loud: float) -> Tensor:
        chirp = loud * np.sin(2 * np.pi * 300 * np.exp(np.arange(rate) / rate * 2))
        return Spectrum().picture(torch.from_numpy(chirp), rate).float()

    assert (picture(8_000, 0.5) - picture(8_000, 0.01)).abs().max() <= 1
    assert (picture(16_000, 0.5) - picture(8_000, 0.5)).abs().mean() < 3


def test_silence_is_black() -> None:
    assert Spectrum(8).picture(torch.zeros(100), RATE).unique().tolist() == [0]


def test_the_loudest_stretch_or_silence_around() -> None:
    assert stretch(torch.tensor([1.0, 2.0]), 5).tolist() == [0, 1, 2, 0, 0]
    assert stretch(torch.tensor([1.0, -3.0, 3.0, 0.0, 1.0]), 2).tolist() == [-3, 3]
    assert stretch(torch.ones(3), 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"size": 3}, "pictures of 3 bands; expected 4 to 512"),
        ({"seconds": 0.0}, "recordings of 0 seconds; expected 0.1 to 60"),
        ({"seconds": float("nan")}, "recordings of nan seconds"),
        ({"highest": 100.0}, "bands up to 100 hertz; expected 120 to 96,000"),
        ({"size": 512, "highest": 120.0}, "the lowest 0.23 wide; expected bands of 2 hertz"),
    ],
)
def test_forms_that_are_refused(settings: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Spectrum(**settings)  # type: ignore[arg-type]


# Folders


def test_a_folder_of_recordings(words: Words) -> None:
    folder = words()
    (folder / "word00" / "notes.txt").write_text("passed over")
    parts = {s: load_sounds(folder, s) for s in ("meta_train", "meta_val", "meta_test")}
    assert [part.n_classes for part in parts.values()] == [6, 2, 2]
    train = parts["meta_train"]
    assert train.examples.shape == (24, 1, 32, 32)
    first = [folder / train.class_names[0] / f"{j}.wav" for j in range(4)]
    assert torch.equal(tegu.read_sounds(first), train.tensor[:4] / 255)
    smaller = load_sounds(folder, "meta_test", size=8, seconds=0.3, hold=0)
    assert smaller.examples.shape == (8, 1, 8, 8)


def test_what_is_said_of_folders(words: Words, tmp_path: Path) -> None:
    folder = words(2, 1)
    with pytest.raises(InputError, match=r"no class of .* has 2 recordings, the largest has 1"):
        load_sounds(folder, "meta_train", least=2)
    (folder / "word01" / "0.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"word01.0\.wav cannot be read as a recording"):
        load_sounds(folder, "meta_train", shares=(1, 0, 0))
    (tmp_path / "none" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no recordings.*endin.* in \.wav"):
        load_sounds(tmp_path / "none", "meta_train")
    with pytest.raises(InputError, match="no files; expected at least one recording"):
        tegu.read_sounds([])


# Variations


def test_a_picture_is_varied_alone_as_among_others() -> None:
    images = torch.rand(16, 1, 12, 10, generator=torch.Generator().manual_seed(0)) + 0.1
    each = keys.fold(keys.key(0), torch.arange(16))
    varied = spectral(images, each)
    assert torch.equal(varied[5:6], spectral(images[5:6], each[5:6]))
    assert not torch.equal(varied[0], spectral(images[:1], each[1:2])[0])
    assert varied.shape == images.shape


def test_shifts_and_stripes() -> None:
    images = torch.arange(1, 11.0).expand(64, 1, 12, 10)
    each = keys.fold(keys.key(1), torch.arange(64))
    assert torch.equal(spectral(images, each, shift=0, bands=0, moments=0), images)
    moved = spectral(images, each, shift=0.3, bands=0, moments=0)
    firsts = set()
    for row in moved[:, 0, 0].tolist():
        kept = [v for v in row if v]
        assert kept == sorted(kept)
        assert len(kept) >= 7
        firsts.add(row[0])
    assert firsts == {0.0, 1.0, 2.0, 3.0, 4.0}
    striped = spectral(images, each, shift=0, bands=0.25, moments=0)
    silent = (striped == 0).all(-1)[:, 0]  # (64, 12)
    assert torch.equal((striped == 0).any(-1)[:, 0], silent)
    assert set(silent.sum(1).tolist()) == {0, 1, 2, 3}
    for row in silent.int().tolist():
        assert sum(abs(a - b) for a, b in zip([0, *row], [*row, 0], strict=True)) in (0, 2)
    timed = spectral(images, each, shift=0, bands=0, moments=0.2)
    assert set((timed == 0).all(-2)[:, 0].sum(1).tolist()) == {0, 1, 2}
    with pytest.raises(InputError, match="shares from 0 to 1"):
        spectral(images, each, bands=2)
