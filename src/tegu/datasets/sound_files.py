"""One recording as a tensor of a given form: a picture of its pitches over time.

    short-time Fourier transform, 32 ms windows every 10 ms -> power in bands of mel -> decibels

Loudness does not matter: decibels are counted from the loudest band of the recording.
"""

from __future__ import annotations

import math
import wave
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tegu.errors import InputError
from tegu.files import check_file

LARGEST_FILE = 256 << 20  # bytes
EXTENSIBLE = 0xFFFE  # how a header says that its form is told further on
RATES = (1_000, 192_000)  # samples a second
LOWEST = 60.0  # hertz
NARROWEST = 2.0  # hertz from a band's lower end to its upper one
STREAMED = 0x7FFF0000  # bytes of sound, or more, as headers say that were written before it
WINDOW, HOP = 0.032, 0.010  # seconds
RANGE = 80.0  # decibels from the loudest band down to what counts as silence


@dataclass(frozen=True)
class Spectrum:
    """What every recording becomes.

    Args:
        size: bands of pitch, and moments in time: the picture is (1, size, size).
        seconds: of a recording. Of a longer one the loudest stretch is taken; a shorter one has
            silence on both sides.
        highest: upper end of the highest band, hertz. Above half of a recording's samples a
            second, bands are silent.
    """

    kind: ClassVar[str] = "recording"
    suffixes: ClassVar[frozenset[str]] = frozenset({".wav"})
    channels: ClassVar[int] = 1

    size: int = 32
    seconds: float = 1.0
    highest: float = 4000.0

    def __post_init__(self) -> None:
        if not 4 <= self.size <= 512:
            raise InputError(f"pictures of {self.size} bands", "4 to 512", "Pass size=32, say.")
        if not 0.1 <= self.seconds <= 60:
            raise InputError(
                f"recordings of {self.seconds:g} seconds", "0.1 to 60", "Pass seconds=1, say."
            )
        if not 2 * LOWEST <= self.highest <= RATES[1] / 2:
            raise InputError(
                f"bands up to {self.highest:g} hertz",
                f"{2 * LOWEST:g} to {RATES[1] // 2:,}",
                "Pass highest=4000, say.",
            )
        if (width := self.narrowest()) < NARROWEST:
            raise InputError(
                f"{self.size} bands up to {self.highest:g} hertz, the lowest {width:.2g} wide",
                f"bands of {NARROWEST:g} hertz at least",
                "Lower size, or raise highest.",
            )

    def narrowest(self) -> float:
        """Width of the lowest band, hertz."""
        edges = mel_edges(self.size, self.highest)
        return float(edges[2] - edges[0])

    @property
    def bytes(self) -> int:
        """Of one picture."""
        return self.size**2

    def decode(self, file: str) -> Tensor:
        """A file in the WAV format as bytes (1, size, size), low pitches first.

        Raises:
            InputError: the file is no recording, damaged, or too large.
        """
        samples, rate = read_wav(file)
        return self.picture(samples, rate)

    def picture(self, samples: Tensor, rate: int) -> Tensor:
        """Samples (N,), floating, as bytes (1, size, size)."""
        samples = stretch(samples, round(self.seconds * rate))
        window, hop = round(WINDOW * rate), max(1, round(HOP * rate))
        least = max(4 * window, math.ceil(2 * rate / self.narrowest()))
        points = 1 << (least - 1).bit_length()  # two frequencies in the narrowest band
        spectrum = torch.stft(
            samples,
            points,
            hop,
            window,
            torch.hann_window(window, dtype=samples.dtype),
            pad_mode="constant",
            return_complex=True,
        )
        bands = mel_bands(self.size, points, rate, self.highest, like=samples)
        power = bands @ spectrum.abs().square()  # (size, moments)
        power = F.adaptive_avg_pool1d(power, self.size)
        loudest = power.amax()
        if loudest <= 0:
            return torch.zeros(1, self.size, self.size, dtype=torch.uint8)
        decibels = 10 * (power / loudest).clamp(min=10 ** (-RANGE / 10)).log10()
        return (255 * (1 + decibels / RANGE)).round().to(torch.uint8)[None]


def read_wav(file: str) -> tuple[Tensor, int]:
    """Samples (N,) from -1 to 1, channels averaged, and how many there are a second.

    Raises:
        InputError: the file is no WAV file of whole numbers, damaged, or too large.
    """
    try:
        size = check_file(file, LARGEST_FILE)
        with wave.open(file, "rb") as opened:
            width, channels, rate = (
                opened.getsampwidth(),
                opened.getnchannels(),
                opened.getframerate(),
            )
            frames, wide = opened.getnframes(), width * channels
            data = opened.readframes(min(frames, size // wide))
            if len(data) < frames * wide < STREAMED:
                raise ValueError(f"cut short: {len(data):,} bytes of sound of {frames * wide:,}")
            data = data[: len(data) // wide * wide]
        if not RATES[0] <= rate <= RATES[1]:
            raise ValueError(f"{rate:,} samples a second")
        samples = _numbers(data, width).reshape(-1, channels).mean(1)
        if not len(samples):
            raise ValueError("no samples")
        return torch.from_numpy(samples), rate
    except (OSError, EOFError, ValueError, wave.Error) as failure:
        told = str(failure) or type(failure).__name__
        if told == f"unknown format: {EXTENSIBLE}":
            told = "in the extensible form of WAV, which takes Python 3.12 or later"
        raise InputError(
            f"{file} cannot be read as a recording ({told})",
            f"a whole WAV file of whole numbers, {RATES[0]:,} to {RATES[1]:,} samples a second",
            "Replace, convert or remove it.",
        ) from failure


def _numbers(data: bytes, width: int) -> NDArray[np.float32]:
    """Samples of 1 to 4 bytes, little-endian, from -1 to 1; those of one byte are unsigned."""
    raw = np.frombuffer(data, np.uint8)
    if width == 1:
        return (raw.astype(np.float32) - 128) / np.float32(128)
    # The upper bytes of a whole number of 32 bits.
    padded = np.zeros((len(raw) // width, 4), np.uint8)
    padded[:, 4 - width :] = raw.reshape(-1, width)
    return padded.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)


def stretch(samples: Tensor, length: int) -> Tensor:
    """So many samples: the stretch with the most energy, or all with silence on both sides."""
    missing = length - len(samples)
    if missing >= 0:
        return F.pad(samples, (missing // 2, missing - missing // 2))
    step = max(1, len(samples) >> 24)  # of long recordings not every place is tried
    parts = samples[: len(samples) // step * step].reshape(-1, step).square()
    energy = F.pad(parts.sum(1, dtype=torch.float64).cumsum(0), (1, 0))
    wide = max(1, length // step)
    start = step * int((energy[wide:] - energy[:-wide]).argmax())
    return samples[start : start + length]


def mel_bands(count: int, points: int, rate: int, highest: float, *, like: Tensor) -> Tensor:
    """Triangles over the frequencies of a transform of `points`: (count, points / 2 + 1).

    Their middles lie evenly on the mel scale, 2595 log10(1 + f / 700), and each reaches to
    its neighbours'. (O'Shaughnessy 1987, Speech Communication: Human and Machine.)
    """

    edges = mel_edges(count, highest)
    at = torch.arange(points // 2 + 1, dtype=torch.float64) * rate / points
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (at - left) / (middle - left), (right - at) / (right - middle)
    return torch.minimum(rising, falling).clamp(min=0).to(like)


def mel_edges(count: int, highest: float) -> Tensor:
    """Where bands begin, peak and end, hertz: (count + 2,), float64, even on the mel scale."""

    def mel(hertz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hertz / 700)

    low, high = mel(torch.tensor([LOWEST, highest], dtype=torch.float64)).tolist()
    edges: Tensor = torch.linspace(low, high, count + 2, dtype=torch.float64)
    return 700 * (10 ** (edges / 2595) - 1)
