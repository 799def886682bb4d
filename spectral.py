"""Spectra: a note's waveform as a picture of two channels, and back (paper 2.2).

    wave -> STFT -> log magnitude                                  channel 0
                 -> phase -> unwrap -> instantaneous frequency     channel 1
                 -> both channels on a mel scale                   (if-mel)

Three representations of the paper's tables, each at two frequency resolutions:

    phase    log magnitude and the raw phase angle
    if       log magnitude and instantaneous frequency, the derivative of unwrapped phase
    if-mel   the same on a mel frequency scale, as log power

Shapes:  N notes, L samples, T frames, F frequency bins, M mel bins (as many as F).
Waves are (N, L), pictures (N, 2, T, F), float32.  Phases are in units of pi throughout, so that
channel 1 lies in [-1, 1].  All functions are differentiable, on the device of their input.

    python spectral.py             what a round trip costs, for three built-in test notes
"""

import argparse
import colorsys
import math
import os
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch

EPS = 1e-6                                # floor in ln(|S| + EPS) and ln(power + EPS), as released
OVERLAP = 4                               # windows over each sample: 75 % overlap
HANN_SQUARED_SUM = 1.5                    # sum of squared periodic Hann windows at 75 % overlap

# The representations of the paper's tables: which scale, and what the second channel holds.
REPRESENTATIONS = {"phase": dict(mel=False, derivative=False),
                   "if": dict(mel=False, derivative=True),
                   "if-mel": dict(mel=True, derivative=True)}
MEL_INVERSES = ("pseudo", "transpose")    # ours, and the release's: see mel_inverse_matrix

# ---- Short-time Fourier transform -----------------------------------------------------------
def hann(n, device=None):
    """Periodic Hann window of n samples, (n,) (Harris 1978)."""
    angle = 2 * math.pi / n * torch.arange(n, dtype=torch.float64)
    return (0.5 - 0.5 * torch.cos(angle)).to(device, torch.float32)

def stft(wave, frames, bins):
    """Short-time Fourier transform, 75 % overlap (paper 2.2): (N, L) -> (N, T, F) complex.

    The window is 2 F samples long and the hop F / 2.  Of a window's F + 1 bins one goes to leave a
    power of two.  paper: drops Nyquist.  code: drops DC, which sound lacks anyway.  The zeros that
    fill T frames are all in front of the note (code), so that the last frame ends where it does."""
    window, hop = 2 * bins, 2 * bins // OVERLAP
    pad = (frames + OVERLAP - 1) * hop - wave.shape[-1]
    windows = torch.nn.functional.pad(wave, (pad, 0)).unfold(-1, window, hop)   # (N, T, 2F)
    return torch.fft.rfft(windows * hann(window, wave.device))[..., 1:]     # (N, T, F)

def istft(S, length):
    """Inverse of `stft`: (N, T, F) complex -> (N, L).  The dropped DC bin comes back as zero.

    Each frame is windowed again and overlap-added (Griffin and Lim 1984).  Squared Hann windows sum
    to 1.5 where four overlap; as released, the last three hops, where fewer do, are not
    compensated: they fade out, which ends every note without a click."""
    N, T, F = S.shape
    hop = 2 * F // OVERLAP
    S = torch.nn.functional.pad(S, (1, 0))                          # (N, T, F + 1)
    frames = torch.fft.irfft(S) * hann(2 * F, S.device) / HANN_SQUARED_SUM      # (N, T, 2F)
    quarters = frames.reshape(N, T, OVERLAP, hop)
    wave = sum(torch.nn.functional.pad(quarters[:, :, k], (0, 0, k, OVERLAP - 1 - k))
               for k in range(OVERLAP))                             # (N, T + 3, hop)
    return wave.reshape(N, -1)[:, -length:]

# ---- Phase and instantaneous frequency ------------------------------------------------------
def wrap(phase):
    """The same angle in [-1, 1]: whole turns, 2 in units of pi, come off (paper, Fig. 1)."""
    return phase - 2 * torch.round(phase / 2)

def instantaneous_frequency(phase):
    """Instantaneous frequency: the time derivative of the unwrapped phase (paper 2.2).

    A finite difference along time.  Unwrapping adds whole turns until no step exceeds half a turn,
    so the unwrapped phase's difference is the phase's own difference, wrapped.  The first frame
    keeps its phase, so that a cumulative sum inverts it.  (N, T, F), in units of pi -> the same."""
    return torch.cat([phase[:, :1], wrap(phase.diff(dim=1))], dim=1)

def integrate(frequency):
    """Inverse of `instantaneous_frequency`, up to whole turns: unwrapped phase (paper 2.2)."""
    return torch.cumsum(frequency, dim=1)

# ---- Mel scale ------------------------------------------------------------------------------
@lru_cache(maxsize=8)
def mel_matrix(bins, sample_rate):
    """Linear-to-mel matrix M (paper 2.2), (F, F) float64: linear bins in rows, mel in columns.

    HTK's scale, mel(f) = 1127 ln(1 + f / 700), with as many mel bins as linear ones: low bands
    would be far narrower than one bin.  The release widens those narrower than 1.5 bins, and in
    place: lower edge, centre and upper edge are views of ONE array, so each widening moves the
    neighbours' edges (852 of 1024 bands are touched, not 498).  It also lays bin k at
    k Nyquist / (F - 1) although, with DC dropped, it sits at (k + 1) Nyquist / F, and gives the
    first bin no weight.  Both are kept: the published networks were trained on this matrix."""
    nyquist = sample_rate / 2
    narrowest = 1.5 * nyquist / bins

    def hertz(mel):
        return 700.0 * (np.exp(mel / 1127.0) - 1.0)

    edges = np.linspace(0.0, 1127.0 * np.log(1.0 + nyquist / 700.0), bins + 2)
    for i in range(bins):
        if hertz(edges[i + 2]) - hertz(edges[i]) < narrowest:
            r = 0.5 * narrowest / (hertz(edges[i + 1]) + 700.0)
            half_width = 1127.0 * np.log(r + np.sqrt(1.0 + r * r))      # asinh, in mel
            edges[i] = edges[i + 1] - half_width
            edges[i + 2] = edges[i + 1] + half_width
    edges = hertz(edges)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    frequency = np.linspace(0.0, nyquist, bins)[1:, None]
    rising = (frequency - lower) / (centre - lower)
    falling = (upper - frequency) / (upper - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.vstack([np.zeros((1, bins)), triangles])

@lru_cache(maxsize=8)
def mel_inverse_matrix(bins, sample_rate, kind):
    """Mel-to-linear matrix (paper 2.2), (F, F) float64, of the kind "pseudo" or "transpose".

    transpose: the release's, M^T with each column divided by the column sums of M M^T.  It smears:
    every linear bin comes back as an average over its neighbours.
    pseudo: ours and the default, the one place where we leave the release.  M has rank 811 of 1024
    (405 of 512) and no small singular values, so the least-squares inverse amplifies no noise.  It
    lifts the round trip of five NSynth notes from 4 to 44 dB (medians), if applied to both
    channels: power, and unwrapped phase, which is projected to mel linearly as well."""
    M = mel_matrix(bins, sample_rate)
    if kind == "pseudo":
        return np.linalg.pinv(M, rcond=1e-4)
    sums = (M @ M.T).sum(axis=0)
    return M.T * np.divide(1.0, sums, out=np.zeros(bins), where=sums != 0)

def linear_to_mel(log_magnitude, frequency, sample_rate):
    """Log magnitude, IF (N, T, F) -> log mel power, mel IF (N, T, M) each (paper 2.2).

    The release projects the *unwrapped* phase and then differences it along time.  Both steps are
    linear, so the difference may be projected instead; wrapped phase may not, as that mixes angles
    whole turns apart (two public ports do).  A column's weights sum to as much as 2.76, and a step
    may then exceed half a turn, so it is wrapped again: the release unwraps a second time."""
    power = times_mel_matrix(torch.exp(2 * log_magnitude), sample_rate)
    frequency = times_mel_matrix(frequency, sample_rate)            # x M
    frequency = torch.cat([frequency[:, :1], wrap(frequency[:, 1:])], dim=1)
    return torch.log(power + EPS), frequency

def mel_to_linear(log_power, frequency, sample_rate, kind="pseudo"):
    """Inverse of `linear_to_mel`, by one of MEL_INVERSES; shapes as there (paper 2.2).

    The release floors the power a second time; ours takes the floor of `linear_to_mel` off again
    (silence comes back as silence) and clamps the least-squares power where it is negative."""
    W = mel_inverse_tensor(log_power.shape[-1], sample_rate, kind, log_power.device)
    if kind == "transpose":
        power = torch.exp(log_power) @ W + EPS
    else:
        power = ((torch.exp(log_power) - EPS) @ W).clamp(min=0) + EPS ** 2
    return 0.5 * torch.log(power), frequency @ W

# ---- A representation: wave to picture and back ---------------------------------------------
@dataclass(frozen=True)
class Spectrum:
    """A representation (paper 2.2) of notes of one length; `derive` finds frames and bins."""
    rep: str = "if-mel"                   # one of FORMS
    frames: int = 128                     # T
    bins: int = 1024                      # F; the window is 2 F samples, the hop F / 2
    length: int = 64000                   # L, samples a note
    sample_rate: int = 16000              # Hz
    mel_inverse: str = "pseudo"           # of MEL_INVERSES

    def __post_init__(self):
        check_spectrum(self)

    def encode(self, wave):
        """Wave (N, L) -> picture (N, 2, T, F): log magnitude (mel: log power), phase or IF."""
        if self.rep == WAVEFORM:
            return encode_waveform(self, wave)
        return self.encode_stft(stft(wave, self.frames, self.bins))

    def encode_stft(self, S):
        """Complex spectrum (N, T, F) -> picture (N, 2, T, F)."""
        kind = REPRESENTATIONS[self.rep]
        magnitude, phase = torch.log(S.abs() + EPS), S.angle() / math.pi
        if kind["derivative"]:
            phase = instantaneous_frequency(phase)
        if kind["mel"]:
            magnitude, phase = linear_to_mel(magnitude, phase, self.sample_rate)
        return torch.stack([magnitude, phase], dim=1)

    def decode(self, picture):
        """Picture (N, 2, T, F) -> wave (N, L)."""
        if self.rep == WAVEFORM:
            return decode_waveform(self, picture)
        return istft(self.decode_stft(picture), self.length)

    def decode_stft(self, picture):
        """Picture (N, 2, T, F) -> complex spectrum (N, T, F)."""
        kind = REPRESENTATIONS[self.rep]
        magnitude, phase = picture.unbind(dim=1)
        if kind["mel"]:
            magnitude, phase = mel_to_linear(magnitude, phase, self.sample_rate, self.mel_inverse)
        if kind["derivative"]:
            phase = integrate(phase)
        return torch.polar(torch.exp(magnitude), phase * math.pi)

# =============================================================================================
# Here the path through the paper ends.  Behind this line: shapes, batches, measures, pictures.

# ---- The shapes of pictures, and the mel matrix in blocks -----------------------------------
WAVEFORM = "waveform"                     # no spectrum at all: the baseline of the paper's Table 2
FORMS = (*REPRESENTATIONS, WAVEFORM)
WAVE_GROWTH = 4                           # of a waveform from one resolution to the next
WINDOW_SECONDS = {False: 0.064, True: 0.128}       # low and high ("+ H") frequency resolution

class SpectrumError(ValueError):
    """A representation or a shape that cannot work; the message says which could."""

def check_spectrum(spectrum):
    """SpectrumError for an unknown representation, or a picture too small for its note."""
    for name, value, known in (("representation", spectrum.rep, FORMS),
                               ("mel inverse", spectrum.mel_inverse, MEL_INVERSES)):
        if value not in known:
            raise SpectrumError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    needed = spectrum.length
    if spectrum.rep != WAVEFORM:
        needed = math.ceil(needed / (2 * spectrum.bins // OVERLAP)) - (OVERLAP - 1)
    elif spectrum.bins != 1:
        raise SpectrumError(f"a waveform of {spectrum.bins} bins: expected a picture one bin wide")
    if spectrum.frames < needed:
        raise SpectrumError(f"a {spectrum.frames} x {spectrum.bins} picture for {spectrum.length} "
                            f"samples: the nearest that can hold them is {needed} frames")

def derive(rep="if-mel", hires=True, length=64000, sample_rate=16000, resolutions=7,
           mel_inverse="pseudo"):
    """The Spectrum for notes of `length` samples, halved resolutions - 1 times at most.

    The window is the power of two nearest to the paper's 64 ms (128 ms for "+ H"); the frames are
    rounded up until they divide.  The paper's 64,000 samples at 16 kHz give 256 x 512 (128 x 1024
    for "+ H").  A waveform shrinks by fours: 65,536 x 1."""
    if length < 1 or sample_rate < 100:
        raise SpectrumError(f"a note of {length} samples at {sample_rate} Hz: expected at least "
                            "one sample, and 100 Hz or more")
    bins, hop, growth = 1, 1, WAVE_GROWTH
    if rep != WAVEFORM:
        bins = 2 ** round(math.log2(sample_rate * WINDOW_SECONDS[hires])) // 2
        hop, growth = 2 * bins // OVERLAP, 2
    needed = math.ceil(length / hop)

    def frames(resolutions):              # None: bins do not divide, or half would be padding
        unit = growth ** (resolutions - 1)
        whole = math.ceil(needed / unit) * unit
        return whole if whole < 2 * needed and (rep == WAVEFORM or bins % unit == 0) else None

    if not frames(resolutions):
        most = max(filter(frames, range(1, resolutions)))
        raise SpectrumError(
            f"{length} samples at {sample_rate} Hz fill {needed} frames x {bins} bins, too few for "
            f"{resolutions} resolutions (blocks): give a greater length, or {most} resolutions")
    return Spectrum(rep, frames(resolutions), bins, length, sample_rate, mel_inverse)

def restore(settings, mel_inverse=None):
    """A Spectrum from what `asdict` made of it, with another mel inverse if one is given."""
    return Spectrum(**{**settings, "mel_inverse": mel_inverse or settings["mel_inverse"]})

def encode_waveform(spectrum, wave):
    """(N, L) -> (N, 2, T, 1): zeros on both sides, in two equal channels (code)."""
    pad = spectrum.frames - spectrum.length
    wave = torch.nn.functional.pad(wave, (pad // 2, pad - pad // 2))            # (N, T)
    return wave[:, None, :, None].repeat(1, 2, 1, 1)

def decode_waveform(spectrum, picture):
    """(N, 2, T, 1) -> (N, L): the first channel is heard."""
    front = (spectrum.frames - spectrum.length) // 2
    return picture[:, 0, front:front + spectrum.length, 0]

@lru_cache(maxsize=16)
def mel_inverse_tensor(bins, sample_rate, kind, device):
    W = mel_inverse_matrix(bins, sample_rate, kind)
    return torch.tensor(W, dtype=torch.float32, device=device)

@lru_cache(maxsize=16)
def mel_blocks(bins, sample_rate, device):
    """M as float32 blocks of 128 columns, each with the range of rows that it uses: mel bands cover
    few linear bins, so most of a whole product would be with zeros."""
    M, blocks = mel_matrix(bins, sample_rate), []
    for i in range(0, bins, 128):
        rows = np.flatnonzero(M[:, i:i + 128].any(axis=1))
        low, high = (rows[0], rows[-1] + 1) if len(rows) else (0, 1)
        block = torch.tensor(M[low:high, i:i + 128], dtype=torch.float32, device=device)
        blocks.append((int(low), int(high), block))
    return blocks

def times_mel_matrix(x, sample_rate):
    """x M, (N, T, F) -> (N, T, M)."""
    return torch.cat([x[..., low:high] @ block for low, high, block
                      in mel_blocks(x.shape[-1], sample_rate, x.device)], dim=-1)

# ---- Notes' pictures, in batches ------------------------------------------------------------
class Pictures:
    """Note indices and a size -> the notes' pictures made smaller, (n, 2, t, f) on the device.

    notes: nsynth.Notes; shrink: gansynth.downsample_to.  On a GPU the notes' samples lie there as
    well, where they fit.  Where pictures of all notes fit in `memory` bytes, as the small ones of
    early stages do, they are kept: a note is transformed once a stage, not once an epoch."""
    # Notes transformed together, always the same ones: a resumed run's are equal to the last bit.
    GROUP = 8

    def __init__(self, notes, spectrum, shrink, device, memory=1 << 30):
        self.notes, self.spectrum, self.shrink, self.device = notes, spectrum, shrink, device
        self.memory, self.size, self.made, self.audio = memory, None, {}, None
        if device != "cpu" and (4 * len(notes) * notes.audio.shape[1]       # and as much on the way
                                < torch.cuda.mem_get_info()[0] / 2):
            self.audio = torch.cat([(notes.waves(few) * 32768).short().to(device)
                                    for few in torch.arange(len(notes)).split(512)])

    def __call__(self, indices, size):
        if len(self.notes) * 8 * math.prod(size) > self.memory:
            return self.transform(indices, size)
        if size != self.size:
            self.size, self.kept = size, {}
        for group in {int(i) // self.GROUP for i in indices} - self.kept.keys():
            members = range(len(self.notes))[group * self.GROUP:][:self.GROUP]
            self.kept[group] = self.transform(members, size)
        return torch.stack([self.kept[i // self.GROUP][i % self.GROUP] for i in map(int, indices)])

    def in_turn(self, turn, position, step, size):
        """Pictures of the notes turn(position); a GPU makes those of the next steps with them."""
        if (position, size) not in self.made:
            places = [position + i * step for i in range(1 if self.device == "cpu" else 16)]
            turns = [turn(place) for place in places]
            pictures = self(np.concatenate(turns), size).split(len(turns[0]))
            self.made = {(place, size): few for place, few in zip(places, pictures)}
        return self.made.pop((position, size))

    def transform(self, indices, size):
        waves = (self.notes.waves(indices).to(self.device) if self.audio is None else
                 self.audio[torch.as_tensor(indices, device=self.device)] / 32768)
        return self.shrink(self.spectrum.encode(waves), size)

# ---- How good is a round trip? --------------------------------------------------------------
def snr(wave, copy):
    """Signal-to-noise ratio in dB, (N, L), (N, L) -> (N,)."""
    noise = (wave - copy).square().sum(-1).clamp(min=1e-30)
    return 10 * torch.log10(wave.square().sum(-1) / noise)

def log_spectral_distance(wave, copy, window=1024):
    """Log-spectral distance in dB: root mean square over bins, mean over frames; -> (N,).
    Magnitudes are floored at 1e-4 (80 dB below one): silence is not compared with silence."""
    def decibels(x):
        frames = max(OVERLAP, math.ceil(x.shape[-1] / (window // OVERLAP)))
        return 20 * torch.log10(stft(x, frames, window // 2).abs().clamp(min=1e-4))

    return (decibels(wave) - decibels(copy)).square().mean(-1).sqrt().mean(-1)

# ---- Pitch ----------------------------------------------------------------------------------
def middle(wave):
    """A note without its onset and release, as float64."""
    return np.asarray(wave, dtype=np.float64)[len(wave) // 10: len(wave) * 17 // 20]

def fundamental(wave, sample_rate, low=25.0, high=2000.0, clear=0.0):
    """Fundamental frequency in Hz of a note (L,), or 0: if no lag has a normalised autocorrelation
    above `clear` (1: the wave repeats exactly).

    McLeod and Wyvill, "A smarter way to find pitch" (2005): the autocorrelation at each lag,
    divided by the energy of the two stretches it compares; the first peak that reaches nine tenths
    of the highest is the period.  Four lags a sample (the spectrum padded with zeros) and a
    parabola through the peak make it exact to a cent or two."""
    fine, x = 4, middle(wave)
    x, n = x - x.mean(), len(x)
    power = np.abs(np.fft.rfft(x, 4 * n)) ** 2
    correlation = fine * np.fft.irfft(power, 4 * n * fine)[:n * fine]
    energy = np.concatenate([[0.0], np.cumsum(x ** 2)])
    lags = np.arange(n)
    both = energy[n - lags] + energy[n] - energy[lags]
    both = np.interp(np.arange(n * fine) / fine, lags, both)
    similarity = 2 * correlation / np.maximum(both, 1e-12)

    first, last = int(fine * sample_rate / high), min(int(fine * sample_rate / low), n * fine - 2)
    s = similarity[first - 1:last + 1]
    peaks = 1 + np.flatnonzero((s[1:-1] > s[:-2]) & (s[1:-1] >= s[2:]) & (s[1:-1] > clear))
    if len(peaks) == 0:
        return 0.0
    peak = peaks[s[peaks] >= 0.9 * s[peaks].max()][0]
    a, b, c = s[peak - 1:peak + 2]
    return fine * sample_rate / (first - 1 + peak + 0.5 * (a - c) / (a - 2 * b + c))

# ---- Pictures -------------------------------------------------------------------------------
def rainbowgram(wave, sample_rate=16000, height=192, low=30.0):
    """A note as a picture: log frequency upwards, time to the right (paper, Figs. 3 and 4).

    Brightness is log magnitude (80 dB below the loudest is black), hue is instantaneous frequency:
    a steady harmonic is a streak of one colour, an incoherent one a speckle.
    wave (L,) -> (height, frames, 3) uint8; the axis runs from `low` Hz to Nyquist."""
    wave = torch.as_tensor(wave, dtype=torch.float32).reshape(1, -1)
    window = 2 ** round(math.log2(sample_rate * WINDOW_SECONDS[True]))
    hop = max(1, min(window // 16, wave.shape[-1] // 160))          # fine enough for the eye
    padded = torch.nn.functional.pad(wave, (window // 2, window // 2))
    S = torch.fft.rfft(padded.unfold(-1, window, hop) * hann(window))[..., 1:]
    frequency = instantaneous_frequency(S.angle() / math.pi)[0].numpy()              # (T, F)
    decibels = 20 * np.log10(S[0].abs().numpy() + EPS)
    loudest = max(decibels.max(), -20.0)                            # silence stays black
    brightness = np.clip(1 + (decibels - loudest) / 80, 0, 1)

    rows = np.geomspace(sample_rate / 2, low, height) * window / sample_rate - 1    # bin of a row
    below = np.clip(rows.astype(int), 0, window // 2 - 2)
    part = np.clip(rows - below, 0, 1)
    brightness = brightness[:, below] * (1 - part) + brightness[:, below + 1] * part
    hue = (frequency[:, np.clip(np.rint(rows).astype(int), 0, window // 2 - 1)] + 1) / 2 % 1
    wheel = np.array([colorsys.hsv_to_rgb(h / 256, 0.75, 1.0) for h in range(256)])
    rgb = wheel[(hue * 256).astype(int) % 256] * brightness[..., None]
    return np.rint(255 * rgb.transpose(1, 0, 2)).astype(np.uint8)

def overlay(curves, width, height, stroke=1.5):
    """Curves over each other, translucent: (n, points) in [-1, 1] -> (height, width, 3) uint8.

    A pixel is as bright as the root of the share of curves that cross it: one bright line where
    they agree, a haze where they differ.  A column is the mean over its points (there should be
    several), and each pixel takes the part of a stroke (in pixels) that covers it."""
    y = (1 - np.asarray(curves, dtype=np.float32)) / 2 * height     # downwards, in pixels
    top = np.minimum(y[:, :-1], y[:, 1:]) - stroke / 2              # (n, points - 1)
    bottom = np.maximum(y[:, :-1], y[:, 1:]) + stroke / 2
    edges = np.arange(height + 1, dtype=np.float32)[:, None]        # of pixels
    above = sum(np.clip(edges, t, b) for t, b in zip(top, bottom))  # grows by what a pixel holds
    starts = np.arange(width) * above.shape[1] // width
    share = np.add.reduceat(np.diff(above, axis=0), starts, axis=1)
    share /= len(y) * np.diff(starts, append=above.shape[1])        # (height, width)
    return np.rint(255 * np.sqrt(np.clip(share, 0, 1)))[..., None].repeat(3, 2).astype(np.uint8)

def tile(pictures, columns, gap=4):
    """Pictures of one size, a list of (H, W, 3) uint8 -> one contact sheet with black gaps."""
    height, width, _ = pictures[0].shape
    rows = math.ceil(len(pictures) / columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y:y + height, x:x + width] = picture
    return sheet

def write_png(path, rgb):
    """Write an (H, W, 3) uint8 array as a PNG file (RFC 2083), whole or not at all."""
    rows = np.ascontiguousarray(rgb, dtype=np.uint8).reshape(len(rgb), -1)
    rows = np.pad(rows, ((0, 0), (1, 0)))                           # 0: no filter
    size = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 8, 2, 0, 0, 0)
    temporary = f"{path}.part"
    try:
        with open(temporary, "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            for kind, body in ((b"IHDR", size), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")):
                crc = zlib.crc32(kind + body)
                file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc))
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)

# ---- The round-trip table -------------------------------------------------------------------
def example_notes():
    """Three decaying harmonic notes (MIDI 36, 60, 84) at 16 kHz, (3, 64000)."""
    def note(f0):
        return 0.3 * sum(torch.exp(-time * (1 + 0.3 * k)) * torch.sin(2 * math.pi * k * f0 * time)
                         / k for k in range(1, 20) if k * f0 < 7200)

    time = torch.arange(64000) / 16000
    return torch.stack([note(440 * 2 ** ((pitch - 69) / 12)) for pitch in (36, 60, 84)])

def main(argv=None):
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    waves = example_notes()
    print(f"Round trip of {len(waves)} notes of {waves.shape[-1]} samples at 16000 Hz, in dB")
    print("representation  mel inverse       picture  SNR median  SNR worst  LSD median")
    for hires, (rep, kind) in product((False, True), REPRESENTATIONS.items()):
        for inverse in MEL_INVERSES if kind["mel"] else ("pseudo",):
            spectrum = derive(rep, hires, waves.shape[-1], mel_inverse=inverse)
            copy = spectrum.decode(spectrum.encode(waves))
            ratio, distance = snr(waves, copy), log_spectral_distance(waves, copy).median()
            print(f"{rep + ' + H' * hires:16}{inverse if kind['mel'] else '-':13}"
                  f"{f'{spectrum.frames} x {spectrum.bins}':>12}{ratio.median():12.1f}"
                  f"{ratio.min():11.1f}{distance:12.1f}")

if __name__ == "__main__":
    main()
