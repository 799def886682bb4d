"""Every measure of the paper's tables, and its rows beside ours (paper 4; PAPER's Tables 1 and 2).

    python metrics.py runs/0001                    a run's fresh notes beside real ones, as a table
    python metrics.py runs/0001 notes/ --data DATA        any folder of WAVs counts as a run too
    python metrics.py --data DATA --controls       real notes, and three ways to fail
    python metrics.py --train-classifier --data DATA      the pitch classifier behind the measures
    python metrics.py --listening-test RUN RUN --out DIR  people compare: a page of blind pairs
    python metrics.py --score-test answers*.json          what they said

The paper's measures, from a classifier that was trained on the real notes:

    NDB       number of statistically different bins (Richardson and Weiss 2018): of 50 cells of the
              space of spectrograms, how many have another share of the notes than of the real ones
    FID       Frechet distance between real and fake features (Heusel et al. 2017)
    IS        Inception score over pitch (Salimans et al. 2016)
    PA, PE    pitch accuracy, and the entropy of the predicted pitch: does it know the note?

and ours, which need no classifier:

    in tune   share of notes whose fundamental, by autocorrelation, is within a quarter tone (50
              cents) of the pitch asked for: an estimate that knows nothing of the networks
    clean     share of a note's energy within a quarter tone of a harmonic of that pitch
    variety   log-spectral distance between two notes of one pitch, in dB: low when all sound alike
    steady    phase coherence (paper Fig. 3): do its harmonics' phases advance evenly?

Each measure is a function of arrays.  Shapes: N notes, L samples, F frequency bins, T frames, D
features, K classes or cells.  Waves are (N, L), pitches (N,) MIDI numbers, logits (N, K).
"""

import os

# As in train.py: threads that wait for each other soon sleep, which matters beside other programs.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import argparse
import base64
import hashlib
import html
import io
import itertools
import json
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from random import Random
from string import Template
from typing import NamedTuple

import numpy as np
import scipy.io.wavfile
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn

import gansynth
import nsynth
import sample
import spectral

QUARTER_TONE = 50                         # cents


class MetricError(ValueError):
    """Notes or a classifier that cannot be measured with; the message says why and what to do."""


# ---------------------------------------------------------------------------------------------
# The paper's measures, on arrays


def _finite(array, name):
    """As float64, two axes, and nothing but numbers in it."""
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2:
        raise MetricError(f"{name} of shape {array.shape}: expected (N, D) with two rows or more")
    if not np.isfinite(array).all():
        raise MetricError(f"{name}: holds NaN or infinity, so what made it has gone astray")
    return array


def frechet_distance(features_real, features_fake):
    """Frechet distance between the Gaussians fitted to two sets of features (N, D), (M, D).

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), "FID" (Heusel et al. 2017).  The trace of the root is
    the sum of the roots of the eigenvalues of C C', which are those of the symmetric
    C^(1/2) C' C^(1/2): no root of a matrix without one is ever needed.  In float64, over all rows:
    code: only the first 128, by mistake.  It is biased upwards for few rows, the more so where
    there are no more rows than features; compare sets of one size.
    """
    a, b = _finite(features_real, "real features"), _finite(features_fake, "fake features")
    if a.shape[1] != b.shape[1]:
        raise MetricError(f"features of {a.shape[1]} and {b.shape[1]} dimensions: expected those "
                          "of one classifier")
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)
    distance = (np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b)
                - 2 * np.sqrt(product).sum())
    return max(0.0, float(distance))


def _log_softmax(logits):
    return scipy.special.log_softmax(_finite(logits, "logits"), axis=1)


def inception_score(logits):
    """exp(mean KL(p(y|x) || p(y))), from logits (N, K) over pitches; in one split.

    From 1 (all notes alike, or nothing recognised) to exp(entropy of the pitches played), which is
    58.9 for the release's pitch counts.  Salimans et al. 2016.
    """
    log_p = _log_softmax(logits)                                    # (N, K)  p(y|x)
    log_mean = scipy.special.logsumexp(log_p, axis=0) - np.log(len(log_p))      # (K,)  p(y)
    return float(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(1).mean()))


def pitch_accuracy(logits, pitch, within=0):
    """Share of notes whose likeliest pitch is the one asked for, to `within` semitones.

    paper: exact.  code: counts a semitone's error as right (within=1).  Class k is MIDI pitch k.
    """
    heard, pitch = _finite(logits, "logits").argmax(1), np.asarray(pitch)
    if pitch.shape != heard.shape:
        raise MetricError(f"pitches of shape {pitch.shape}: expected one for each of "
                          f"{len(heard)} notes")
    return float(np.mean(np.abs(heard - pitch) <= within))


def pitch_entropy(logits):
    """Mean entropy, in nats, of the pitch that the classifier hears: low when it is sure."""
    log_p = _log_softmax(logits)
    return float(-(np.exp(log_p) * log_p).sum(1).mean())


# NDB


class NDB(NamedTuple):
    """What `ndb` found.  Shares and p are (K,), cells from the fullest with real notes on."""
    number: int           # of cells whose share differs
    expected: float       # how many would by chance, if both sets were of one kind
    js: float             # Jensen-Shannon divergence of the two sets of shares, in nats
    train: np.ndarray     # share of the training notes in each cell
    samples: np.ndarray   # share of the samples
    p: np.ndarray         # of the two-proportion z-test


NDB_LEVEL = 0.05                          # of significance in each cell


def ndb(train, samples, k=50, seed=0, level=NDB_LEVEL):
    """Number of statistically different bins (Richardson and Weiss 2018), (N, D) and (M, D) rows.

    The space is cut into k cells around the k-means of `train`.  In each a z-test of two
    proportions (pooled) asks whether the samples fall there as often as the training notes do.
    Of one kind, level x k = 2.5 of 50 cells are expected to differ by chance; paper's real test
    notes: 2.2.  As the cells are fitted to `train` it can be more where rows have many dimensions
    of their own (36 of 50 for 500 of pure noise), so that real notes are the yardstick.
    As the authors do, clusters are sought on a random sixth of the dimensions where there are more
    than 1000, and centred in all of them.  Both sets are then sorted in by the nearest centre.
    """
    train, samples = np.asarray(train, np.float32), np.asarray(samples, np.float32)
    if train.ndim != 2 or samples.ndim != 2 or train.shape[1] != samples.shape[1]:
        raise MetricError(f"NDB of arrays of shapes {train.shape} and {samples.shape}: expected "
                          "(N, D) and (M, D)")
    for rows, name in ((train, "training notes"), (samples, "samples")):
        if len(rows) < k:
            raise MetricError(f"{len(rows)} {name} for the {k} cells of NDB: expected at least "
                              f"{k}; some {20 * k:,} make a test worth having")
        if not np.isfinite(rows).all():
            raise MetricError(f"{name}: hold NaN or infinity, so what made them has gone astray")
    dims = train.shape[1]
    some = np.random.default_rng(seed).permutation(dims)[:dims // 6] if dims > 1000 else slice(None)
    cells = k_means(train[:, some], k, seed)
    centres = np.stack([train[cells == c].mean(0) for c in np.unique(cells)])
    n, m = (np.bincount(nearest(rows, centres), minlength=k) for rows in (train, samples))
    order = np.argsort(-n, kind="stable")
    n, m = n[order], m[order]
    p, q, both = n / len(train), m / len(samples), (n + m) / (len(train) + len(samples))
    spread = np.sqrt(both * (1 - both) * (1 / len(train) + 1 / len(samples)))
    z = np.divide(p - q, spread, out=np.zeros(k), where=spread > 0)
    chance = 2 * scipy.stats.norm.sf(np.abs(z))
    js = scipy.stats.entropy((p + q) / 2) - (scipy.stats.entropy(p) + scipy.stats.entropy(q)) / 2
    return NDB(int((chance < level).sum()), level * k, float(max(js, 0)), p, q, chance)


def k_means(x, k, seed=0, rounds=100):
    """The cluster, 0..k-1, of each row of x (N, D): Lloyd's rounds from k-means++ seeds.

    k-means++ (Arthur and Vassilvitskii 2007) draws each next centre with a chance that grows with
    the squared distance to those there are, so that no two start in one heap.
    """
    rng = np.random.default_rng(seed)
    centres = x[rng.integers(len(x))][None]
    distance = np.full(len(x), np.inf)
    while len(centres) < k:
        distance = np.minimum(distance, np.square(x - centres[-1]).sum(1))
        chance = distance / distance.sum() if distance.any() else None      # None: all alike
        centres = np.vstack([centres, x[rng.choice(len(x), p=chance)]])
    cells = nearest(x, centres)
    for _ in range(rounds):
        for c in np.unique(cells):        # a centre that lost all its rows stays where it is
            centres[c] = x[cells == c].mean(0)
        before, cells = cells, nearest(x, centres)
        if (cells == before).all():
            break
    return cells


def nearest(x, centres, rows=1024):
    """The nearest of centres (K, D) to each row of x (N, D), as its index (N,)."""
    size = np.square(centres).sum(1)      # |x - c|^2 without |x|^2, which is the same for all c
    return np.concatenate([np.argmin(size - 2 * x[i:i + rows] @ centres.T, axis=1)
                           for i in range(0, len(x), rows)])


# ---------------------------------------------------------------------------------------------
# Ours: in tune, clean, varied


def frequency(pitch):
    """MIDI pitch -> Hz; 69 is 440 Hz."""
    return 440.0 * 2.0 ** ((np.asarray(pitch) - 69) / 12)


def cents(f, reference):
    """Distance of f from a reference frequency in cents, hundredths of a semitone."""
    return 1200 * np.log2(np.maximum(f, 1e-9) / reference)


def fundamental(wave, sample_rate, low=25.0, high=2000.0):
    """Fundamental frequency in Hz of one note (L,), by normalised autocorrelation; 0 if none.

    McLeod and Wyvill, "A smarter way to find pitch" (2005): the autocorrelation at each lag,
    divided by the energy of the two stretches it compares; the first peak that reaches nine tenths
    of the highest is the period.  Four lags a sample (the spectrum padded with zeros) and a
    parabola through the peak make it exact to a cent or two.  Onset and release are left out.
    """
    fine = 4
    x = np.asarray(wave, dtype=np.float64)
    x = x[len(x) // 10: len(x) * 17 // 20]
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
    peaks = 1 + np.flatnonzero((s[1:-1] > s[:-2]) & (s[1:-1] >= s[2:]) & (s[1:-1] > 0))
    if len(peaks) == 0:
        return 0.0
    peak = peaks[s[peaks] >= 0.9 * s[peaks].max()][0]
    a, b, c = s[peak - 1:peak + 2]
    return fine * sample_rate / (first - 1 + peak + 0.5 * (a - c) / (a - 2 * b + c))


def tuning(waves, pitches, sample_rate):
    """How far each note is from its pitch, in cents; (N,)."""
    found = [fundamental(wave, sample_rate, low=min(25.0, f0 / 1.5), high=max(2000.0, 2.2 * f0))
             for wave, f0 in zip(waves, frequency(pitches))]
    return cents(np.array(found), frequency(pitches))


def harmonic_share(waves, pitches, sample_rate):
    """Share of each note's energy within a quarter tone of a harmonic of its pitch; (N,).

    To be read beside that of real notes: the bands of high harmonics meet, so that even white noise
    has 0.7 at middle C (16 kHz), and more at lower pitches.
    """
    waves = np.asarray(waves, dtype=np.float64)
    power = np.abs(np.fft.rfft(waves * np.hanning(waves.shape[1]))) ** 2        # (N, bins)
    f = np.fft.rfftfreq(waves.shape[1], 1 / sample_rate)
    shares = []
    for row, f0 in zip(power, frequency(pitches)):
        harmonic = np.maximum(np.rint(f / f0), 1) * f0
        near = np.abs(cents(f, harmonic)) <= QUARTER_TONE
        shares.append(row[near].sum() / max(row.sum(), 1e-12))
    return np.array(shares)


VARIETY_NOTES = 8                         # of a pitch: every further one adds little


def variety(waves, pitches, window=512, most=VARIETY_NOTES):
    """Mean log-spectral distance in dB between notes of one pitch, over up to `most` a pitch."""
    waves, pitches = torch.as_tensor(np.asarray(waves)), np.asarray(pitches)
    distances = []
    for pitch in np.unique(pitches):
        same = waves[np.flatnonzero(pitches == pitch)[:most]]
        if len(same) > 1:
            distances.append(spectral.log_spectral_distance(same, same.roll(1, 0), window))
    return torch.cat(distances).mean().item() if distances else float("nan")


# ---------------------------------------------------------------------------------------------
# Phase coherence (paper Fig. 3)

HARMONICS = 10                            # looked at, from the fundamental up
PERIODS = 4                               # in a window: its neighbours are then 4 bins away
LAG = 0.032                               # seconds an advance spans: a hop of the paper's "+ H"


def advances(wave, f0, sample_rate):
    """The phase advances of a note's harmonics, (A, K) complex, and their amplitudes, (K,).

    Each harmonic is demodulated at k f0 in Hann windows of four periods, short enough to hold one
    that is detuned or stretched, and its phase compared with that LAG later (rounded up to hops of
    three quarters of a window, so that the two share next to nothing).  The span is in seconds,
    not in periods: phases drawn anew in every frame of an STFT still hardly turn in a few
    periods of a high note.  An advance d stands there as g exp(i d), where the weight g is the
    product of the two magnitudes: once a harmonic has died away, its phase says nothing.
    Onset and release are left out.  A is 0 if the note is too short, K if no harmonic fits.
    """
    x = np.asarray(wave, dtype=np.float64)
    x = x[len(x) // 10: len(x) * 17 // 20]
    window = round(PERIODS * sample_rate / f0)
    hop = max(1, 3 * window // 4)
    lag = int(np.ceil(LAG * sample_rate / hop))                     # in hops
    k = np.arange(1, 1 + min(HARMONICS, int(sample_rate / 2 / f0 - 0.25)))      # below Nyquist
    if len(x) < window + (lag + 1) * hop:                           # two advances
        return np.zeros((0, len(k))), np.zeros(len(k))
    frames = np.lib.stride_tricks.sliding_window_view(x, window)[::hop]         # (T, window)
    carrier = np.exp(-2j * np.pi * f0 / sample_rate * np.outer(np.arange(window), k))
    harmonics = (frames * np.hanning(window + 1)[:-1]) @ carrier    # (T, K)
    return harmonics[:-lag].conj() * harmonics[lag:], np.abs(harmonics).mean(0)


def phase_coherence(waves, pitches, sample_rate):
    """How steadily the harmonics of each note turn, (N,): 1 at constant speeds, 0 at random ones.

    R_k, the mean resultant length of harmonic k's advances d, is |mean exp(i d)|: a constant
    advance costs nothing, so neither does detuning; Gaussian jitter of standard deviation s gives
    exp(-s^2 / 2).  Its square is the mean of cos(d - d') over all pairs of advances, those of an
    advance with itself among them, which alone give A random ones 1 / A.  They are left out, so
    that white noise has 0 but for chance (on average 0.02 in notes of 4 s at 16 kHz, 0.05 in 0.5 s
    at 8 kHz).  A note has the root of the mean R_k^2, weighted by amplitude: a harmonic counts as
    far as it is heard.

    To be read beside that of real notes: vibrato and string sections lower it, and an STFT's
    overlapping windows lend some even to random phases (windows of 64 and 128 ms: 0.1 and 0.4 in
    notes of 4 s, 0.2 and 0.5 in 0.5 s).  Silence has 0; nan means a note too short for two
    advances, or a pitch too near Nyquist or above.
    """
    coherence = []
    for wave, f0 in zip(waves, frequency(pitches)):
        turns, amplitude = advances(wave, f0, sample_rate)
        weight = np.abs(turns)
        itself = (weight ** 2).sum(0)                               # (K,)
        others = weight.sum(0) ** 2 - itself
        R_squared = (np.abs(turns.sum(0)) ** 2 - itself) / np.maximum(others, 1e-300)
        mean = (amplitude * R_squared).sum() / max(amplitude.sum(), 1e-300)
        coherence.append(np.sqrt(np.clip(mean, 0, 1)) if turns.size else np.nan)
    return np.array(coherence)


def phase_picture(wave, pitch, sample_rate, samples=1028, height=192):
    """The waveform modulo its period, above its rainbowgram (paper, Fig. 3): (H, W, 3) uint8.

    One period runs from left to right; the cycles in the middle of the note, as many as cover
    `samples`, are drawn over each other: coherent ones meet in one bright line, others blur.  The
    period is the one measured around them, or the pitch's if that is over a quarter tone away.
    Each of the two pictures is `height` rows high and as wide as the rainbowgram.
    """
    wave = np.asarray(wave, dtype=np.float64)
    rainbow = spectral.rainbowgram(wave, sample_rate, height)       # (height, frames, 3)
    width, middle, period = rainbow.shape[1], len(wave) / 2, sample_rate / frequency(pitch)
    reach = max(samples, 4 * period) * 2 / 3                        # `tuning` leaves out a quarter
    around = wave[max(0, int(middle - reach)):int(middle + reach)]
    off = tuning([around], [pitch], sample_rate)[0]
    if abs(off) <= QUARTER_TONE:
        period /= 2 ** (off / 1200)
    cycles = max(1, int(min(np.ceil(samples / period), len(wave) / period)))
    time = np.arange(cycles)[:, None] + np.linspace(0, 1, 4 * width) - cycles / 2   # in periods
    fine = 8                              # points a sample: band-limited, then joined by lines
    curve = np.fft.irfft(np.fft.rfft(wave), fine * len(wave))
    curves = np.interp((middle + period * time) * fine, np.arange(len(curve)), curve)
    curves = 0.9 * curves / max(np.abs(curves).max(), 1e-12)        # (cycles, 4 width)
    return spectral.tile([spectral.overlay(curves, width, height), rainbow], columns=1)


# ---------------------------------------------------------------------------------------------
# Settings: which notes, in what form


@dataclass(frozen=True)
class Setting:
    """What a classifier and a table belong to: real notes, their form, and how they are split."""

    data: str = "orchestra"
    length: int = 64000                   # samples
    sample_rate: int = 16000              # Hz
    pitch_low: int = 24
    pitch_high: int = 84
    sources: str = "acoustic"
    split: str = "random"
    skip_damaged: bool = False
    seed: int = 0                         # of the split

    @classmethod
    def of_run(cls, config, **given):
        """That of a checkpoint's config, but for what is `given`."""
        return cls(**{**{f.name: config[f.name] for f in fields(cls)}, **given})

    def notes(self):
        """(training notes, held-out ones).  NoteError where none is left to hold out."""
        sources = [name.strip() for name in self.sources.split(",") if name.strip() != "all"]
        notes = nsynth.load(self.data, self.length, self.sample_rate,
                            (self.pitch_low, self.pitch_high), tuple(filter(None, sources)),
                            skip_damaged=self.skip_damaged)
        train, held_out = nsynth.split(notes, self.seed, by=self.split)
        if len(held_out) == 0:
            raise nsynth.NoteError(f"{self.data}: no note is held out: give more of them")
        return train, held_out

    def __str__(self):
        return (f"{self.length:,} samples at {self.sample_rate:,} Hz, "
                f"pitches {self.pitch_low}-{self.pitch_high}")


# ---------------------------------------------------------------------------------------------
# The pitch classifier


DEPTHS = (1, 1, 1, 2, 2, 2, 4, 4, 4)      # channels of the strided convolutions, x the width
WIDTHS = {"full": 128, "thin": 16}        # paper: 128; thin trains in a quarter of an hour on a CPU
HEADS = {"pitch": 128, "qualities": 10, "family": len(nsynth.FAMILIES),
         "source": len(nsynth.SOURCES)}
RANGE = 80                                # dB below a note's loudest bin that the classifier sees


def log_spectrogram(waves, sample_rate):
    """Log magnitude as the classifier sees it, (N, L) -> (N, 1, F, T), from 0 to 1.

    Windows of about 64 ms, a quarter apart: 512 frequencies x 256 frames of the paper's notes, the
    frames zero-padded to a power of two.  1 is the note's loudest bin and 0 is 80 dB below it or
    less, so that neither a model's level nor digital silence, which no network makes, tells.
    """
    bins = 2 ** round(math.log2(sample_rate * spectral.WINDOW_SECONDS[False])) // 2
    frames = 2 ** math.ceil(math.log2(max(1, waves.shape[1] * 2 / bins)))
    magnitude = spectral.stft(waves, frames, bins).abs().clamp(min=1e-7)        # (N, T, F)
    loudest = magnitude.amax(dim=(1, 2), keepdim=True).clamp(min=1e-2)          # silence stays 0
    decibels = 20 * torch.log10(magnitude / loudest)
    return (1 + decibels / RANGE).clamp(min=0).transpose(1, 2)[:, None]         # (N, 1, F, T)


class StridedConv(nn.Module):
    """Convolution with zero padding as TensorFlow's SAME, batch norm."""

    def __init__(self, inputs, outputs, kernel, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        pads = []
        for n, k, s in zip(x.shape[:1:-1], self.conv.kernel_size[::-1], self.conv.stride[::-1]):
            pad = max(0, (math.ceil(n / s) - 1) * s + k - n)        # the last axis comes first
            pads += [pad // 2, pad - pad // 2]
        return self.norm(self.conv(F.pad(x, pads)))


class Classifier(nn.Module):
    """Log spectrogram -> features, and logits over pitch, qualities, family and source.

    paper (appendix; the classifier of the NSynth paper): nine strided convolutions, the first 5x5
    and the others 4x4, of stride 2 but for the last, which has it along frequency only; then 1x1
    to 1024.  512 x 256 becomes 1 x 1.  Fewer frequencies take as many convolutions less; what
    remains of other sizes is averaged.
    """

    def __init__(self, sample_rate, width):
        super().__init__()
        self.sample_rate, self.width = sample_rate, width
        bins = log_spectrogram(torch.zeros(1, sample_rate), sample_rate).shape[2]
        depths = DEPTHS[-min(int(math.log2(bins)), len(DEPTHS)):]
        channels = [1] + [width * depth for depth in depths]
        last = len(depths) - 1
        self.convs = nn.ModuleList([
            StridedConv(channels[i], channels[i + 1], 4 if i else 5, (2, 1 if i == last else 2))
            for i in range(len(depths))])
        self.hidden = nn.Linear(channels[-1], 8 * width)            # a 1x1 convolution of 1 x 1
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, classes)
                                    for name, classes in HEADS.items()})

    def forward(self, waves):
        """(N, L) -> features (N, 4 width), a dict of logits (N, classes).

        The features, for FID, are the last strided convolution's, normed, before its leaky ReLU.
        """
        return self.judge(log_spectrogram(waves, self.sample_rate))

    def judge(self, spectrogram):
        """The same for a log spectrogram, (N, 1, F, T)."""
        x = spectrogram.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            features = conv(x)                                      # (N, C, F/2, T/2)
            x = F.leaky_relu(features, gansynth.LEAK)
        x = F.leaky_relu(self.hidden(x.mean(dim=(2, 3))), gansynth.LEAK)        # (N, 8 width)
        return features.mean(dim=(2, 3)), {name: head(x) for name, head in self.heads.items()}


def targets(notes, indices):
    """What the classifier should say of the notes at indices: {head: labels}, -1 for not told."""
    def places(words, known):
        return torch.tensor([known.index(word) if word in known else -1 for word in words])

    return {"pitch": torch.from_numpy(notes.pitch[indices]),                    # (n,)
            "qualities": torch.from_numpy(notes.qualities[indices]),            # (n, 10)
            "family": places(notes.family[indices], nsynth.FAMILIES),           # (n,)
            "source": places(notes.source[indices], nsynth.SOURCES)}            # (n,)


def classifier_loss(logits, target):
    """The four cross-entropies, summed (paper: trained jointly); labels of -1 count for nothing."""
    loss = 0
    for name, label in target.items():
        label, told = label.to(logits[name].device), label.ge(0).to(logits[name].device)
        if name == "qualities":           # ten questions of yes or no
            each = F.binary_cross_entropy_with_logits(
                logits[name], label.clamp(min=0).float(), reduction="none")
        else:
            each = F.cross_entropy(logits[name], label.clamp(min=0), reduction="none")
        loss = loss + (each * told).sum() / told.sum().clamp(min=1)
    return loss


def train_classifier(notes, held_out, width, examples=0, seed=0, device="cpu", batch=32):
    """Train on `notes`, all of one form; -> the classifier and its accuracy on the held-out ones.

    examples: how many to look at, all notes in turn (0: each of them 8 times, 16,000 at least).

    Adam as the paper's, beta1 0.5, rate 1e-4 at full width, and as much more as the layers are
    thinner: 8e-4 for the thin one.  ours: the rate falls to 0 along a cosine.
    """
    torch.manual_seed(seed)
    classifier = Classifier(notes.sample_rate, width).to(device, memory_format=torch.channels_last)
    lr = 1e-4 * WIDTHS["full"] / width
    adam = torch.optim.Adam(classifier.parameters(), lr=lr, betas=(0.5, 0.999))
    steps = range(0, examples or max(8 * len(notes), 16_000), batch)
    for position in nsynth.progress_bar(steps, "examples", each=batch):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * position / steps.stop)) / 2
        indices = nsynth.epoch_order(position, batch, len(notes), seed)
        _, logits = classifier(notes.waves(indices).to(device))
        adam.zero_grad()
        classifier_loss(logits, targets(notes, indices)).backward()
        adam.step()
    classifier.eval().requires_grad_(False)
    heard = [classifier(waves.to(device))[1]["pitch"].argmax(1).cpu()
             for waves, _ in batches(held_out, range(len(held_out)))]
    return classifier, float(np.mean(torch.cat(heard).numpy() == held_out.pitch))


# A classifier on disk


class Trained(NamedTuple):
    """A classifier, and what is known of it."""

    classifier: Classifier
    accuracy: float       # share of the held-out notes whose pitch it names
    held_out: int         # how many those were
    mark: int             # of the notes it was trained on


CLASSIFIER_PARTS = {"classifier": dict, "width": int, "setting": dict, "accuracy": float,
                    "held_out": int, "mark": int}


def mark(setting, notes):
    """A number that tells training sets apart: the form of the notes, and which they are."""
    form = (setting.length, setting.sample_rate, setting.pitch_low, setting.pitch_high)
    return zlib.crc32(f"{form} {sorted(zip(notes.name.tolist(), notes.pitch.tolist()))}".encode())


def classifier_path(setting, notes, width):
    """Where a classifier of these training notes is kept."""
    name = re.sub(r"[^\w.-]", "_", Path(setting.data).resolve().name)
    return Path("classifiers") / (f"{name}-{setting.sample_rate}Hz-{setting.length}-pitch-"
                                  f"{setting.pitch_low}-{setting.pitch_high}-width-{width}-"
                                  f"{mark(setting, notes):08x}.pt")


def make_classifier(setting, train, held_out, width, examples, device):
    """Train a classifier and keep it for later; -> Trained."""
    path = classifier_path(setting, train, width)
    path.parent.mkdir(exist_ok=True)
    print(f"training a classifier for {setting}, on {len(train):,} notes of {setting.data}, to be "
          f"kept in {path}", file=sys.stderr, flush=True)
    classifier, accuracy = train_classifier(train, held_out, width, examples, device=device)
    trained = Trained(classifier, accuracy, len(held_out), mark(setting, train))
    gansynth.save_checkpoint(path, {**trained._asdict(), "classifier": classifier.state_dict(),
                                    "width": width, "setting": asdict(setting)})
    return trained


def load_classifier(path, setting, device):
    """The classifier in a file, for notes of this setting; -> Trained.

    MetricError where it cannot be read, or was trained on notes of another form.
    """
    try:
        contents = gansynth.load_checkpoint(path, device, CLASSIFIER_PARTS)
        own = Setting(**contents["setting"])
        classifier = Classifier(own.sample_rate, contents["width"])
        classifier.load_state_dict(contents["classifier"])
    except (gansynth.CheckpointError, TypeError, ValueError, RuntimeError):
        raise MetricError(f"{path}: no classifier that can be read: train one with "
                          "--train-classifier") from None
    if ((own.length, own.sample_rate) != (setting.length, setting.sample_rate)
            or not own.pitch_low <= setting.pitch_low <= setting.pitch_high <= own.pitch_high):
        raise MetricError(f"{path} is a classifier for {own}: it does not fit notes of {setting}; "
                          "leave --classifier out, or give another")
    classifier.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Trained(classifier, *(contents[part] for part in Trained._fields[1:]))


def find_classifier(setting, train, held_out, args):
    """The classifier of this setting: the one named, or kept from before, or trained now."""
    path = args.classifier or classifier_path(setting, train, args.width)
    if args.classifier or path.exists() and not args.train_classifier:
        return load_classifier(path, setting, args.device)
    return make_classifier(setting, train, held_out, args.width, args.examples, args.device)


# ---------------------------------------------------------------------------------------------
# Runs: where notes to be measured come from


@dataclass
class Run:
    """A set of notes to measure: `batches()` yields (waves (n, L) float32, pitches (n,)) of it."""

    name: str
    setting: Setting
    count: int
    batches: Callable
    paper: str = None                     # its row in the paper's tables
    claims: bool = False                  # its files say what rate they have, and may be wrong


def batches(notes, indices, size=32):
    """Yield (waves, pitches) of notes at indices, some at a time."""
    for i in range(0, len(indices), size):
        yield notes.waves(indices[i:i + size]), notes.pitch[indices[i:i + size]]


def real_run(name, notes, setting, most, seed):
    """Up to `most` real notes, drawn with the seed."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(notes))[:most])
    return Run(name, setting, len(chosen), lambda: batches(notes, chosen), "Real data")


def checkpoint_run(run, args):
    """Fresh notes of a checkpoint, at pitches as often as it was trained on them."""
    path = gansynth.find_checkpoint(run)
    G, contents = gansynth.load_generator(path, args.device)
    try:
        setting = Setting.of_run(contents["config"], **({"data": args.data} if args.data else {}))
    except KeyError as error:
        raise gansynth.CheckpointError(f"{path}: its settings lack {error}: use the program that "
                                       "wrote it") from None
    spectrum = spectral.restore(contents["spectrum"], args.mel_inverse)
    count, low = args.samples or default_samples(setting), contents["pitch_low"]

    def fresh():
        z, pitch = sample.draw(count, G.arch.latent, contents["counts"].cpu(), low, args.seed)
        random = torch.Generator().manual_seed(args.seed)           # a WaveNet draws its samples
        for i in range(0, count, 32):
            label = torch.tensor(pitch[i:i + 32]) - low
            waves = gansynth.synthesise(G, spectrum, z[i:i + 32], label, contents["progress"],
                                        generator=random)
            if not waves.isfinite().all():
                raise gansynth.CheckpointError(f"{path}: makes NaN or infinity, so its training "
                                               "went astray: use an earlier checkpoint")
            yield waves, np.array(pitch[i:i + 32])

    name = f"{run}, {contents['images']:,} examples"
    return Run(name, setting, count, fresh, paper_name(contents["config"]))


def folder_run(folder, args, settings):
    """The WAVs of a folder, whoever made them; their pitches are in their names.

    Their form is that of the first of `settings` with their rate, or what the flags say; else what
    most of them have.
    """
    files = [(file, nsynth.pitch_of(file.stem)) for file in sorted(folder.iterdir())
             if file.suffix.lower() == ".wav"]
    if not files:
        raise MetricError(f"{folder}: neither a run nor a folder of WAVs: expected checkpoint-*.pt "
                          "or files such as note-060.wav in it")
    forms = Counter()
    for file, pitch in nsynth.progress_bar(files, "files looked at"):
        if pitch is None:
            raise MetricError(f"{file} tells no pitch: expected a name such as note_060.wav, "
                              "note_C4.wav or note-060-100.wav")
        x, rate = nsynth.read_sound(file)
        forms[len(x), rate] += 1
    setting = form_of(folder, forms, args, settings)
    span = f"{setting.pitch_low}-{setting.pitch_high}"
    inside = [(file, pitch) for file, pitch in files
              if setting.pitch_low <= pitch <= setting.pitch_high]
    if not inside:
        raise MetricError(f"{folder}: none of its {len(files):,} notes is of pitch {span}: measure "
                          "it by itself, and say which with --pitches")
    if len(inside) < len(files):
        print(f"{folder}: {len(files) - len(inside):,} of {len(files):,} notes are left out: their "
              f"pitches are not {span}", file=sys.stderr)
    order = np.random.default_rng(args.seed).permutation(len(inside))
    inside = [inside[i] for i in order[:args.samples or default_samples(setting)]]
    wish = nsynth.Wish(setting.length, setting.sample_rate)

    def read():
        for i in range(0, len(inside), 32):
            some = inside[i:i + 32]
            waves = np.stack([wish.fit(*nsynth.read_sound(file)) for file, _ in some])
            yield (torch.from_numpy(waves.astype(np.float32) / 32768),
                   np.array([pitch for _, pitch in some]))

    return Run(str(folder), setting, len(inside), read, claims=True)


def form_of(folder, forms, args, settings):
    """The setting of a folder's notes; forms: how many files have each (length, rate)."""
    (length, rate), _ = forms.most_common(1)[0]
    setting = next((s for s in settings if s.sample_rate == rate), None)
    if setting is None:
        data = args.data or next((s.data for s in settings), None)
        if data is None:
            raise MetricError(f"{folder}: say which real notes to compare it with: --data DATA")
        setting = Setting(data, args.length or length, args.sample_rate or rate,
                          *args.pitches or (24, 84))
    if setting.length < setting.sample_rate // 10:
        raise MetricError(f"{folder}: notes of {setting.length:,} samples are too short: expected "
                          "a tenth of a second or more; say how long with --length")
    other = forms.total() - forms[setting.length, setting.sample_rate]
    if other:
        print(f"{folder}: {other:,} of {forms.total():,} notes are cut, padded or resampled to "
              f"{setting.length:,} samples at {setting.sample_rate:,} Hz", file=sys.stderr)
    return setting


def controls(train, held_out, setting, count, seed):
    """Three deliberate failures, to see which measure catches what."""
    rng = np.random.default_rng(seed)
    one = np.zeros(count, np.int64)       # the first training note, over and over
    real = rng.permutation(len(held_out))[:count]
    shuffled = replace(held_out.subset(real), pitch=rng.permutation(held_out.pitch[real]))

    def noise():
        draw = np.random.default_rng(seed)
        for i in range(0, count, 32):
            n = min(32, count - i)
            yield (torch.from_numpy(draw.normal(0, 0.1, (n, setting.length)).astype(np.float32)),
                   draw.choice(train.pitch, n))

    return [Run("control: white noise", setting, count, noise),
            Run("control: one note repeated", setting, count, lambda: batches(train, one)),
            Run("control: shuffled pitches", setting, len(real),
                lambda: batches(shuffled, np.arange(len(real))))]


# ---------------------------------------------------------------------------------------------
# Rows


class Heard(NamedTuple):
    """What is kept of N notes once their waves have gone by; n waves, the first of each pitch."""

    features: np.ndarray      # (N, D)
    logits: np.ndarray        # (N, 128)  over pitch
    pictures: np.ndarray      # (N, F T / pool)  log spectrograms, for NDB
    pitch: np.ndarray         # (N,)  asked for
    peak: np.ndarray          # (N,)
    off: np.ndarray           # (N,)  cents beside the pitch
    clean: np.ndarray         # (N,)
    steady: np.ndarray        # (N,)
    waves: np.ndarray         # (n, L)
    waves_pitch: np.ndarray   # (n,)
    waves_steady: np.ndarray  # (n,)


CELLS = 50                                # K of NDB
NDB_SIZE = 8192                           # numbers of a note's spectrogram that NDB looks at
SILENT = 1e-3                             # a peak below it: -60 dB of full scale


def hear(run, classifier, device="cpu", alone=True):
    """Go through a run's notes in batches, so that any length and 12,800 of them fit in memory.

    alone: whether the run is measured for itself, and not only there to be compared with.
    """
    if run.count < 2:
        raise MetricError(f"{run.name}: one note only: expected two or more, and {10 * CELLS} for "
                          "a row worth reading")
    columns, rate, seen, pictures = [], run.setting.sample_rate, Counter(), None
    for waves, pitch in nsynth.progress_bar(run.batches(), f"notes ({run.name})", each=32,
                                            total=math.ceil(run.count / 32)):
        spectrogram = log_spectrogram(waves.to(device), rate)                   # (n, 1, F, T)
        features, logits = classifier.judge(spectrogram)
        pool = max(1, spectrogram[0].numel() // NDB_SIZE)           # along time: pitch stays sharp
        small, done = F.avg_pool2d(spectrogram, (1, pool)).flatten(1), seen.total()
        if pictures is None:              # one large array: many small ones would keep apart, and
            pictures = np.empty((run.count, small.shape[1]), np.float32)    # in memory, the gaps
        pictures[done:done + len(pitch)] = small.cpu()
        waves, few = waves.numpy(), np.zeros(len(pitch), bool)
        for i, p in enumerate(pitch):
            few[i] = alone and seen[p] < VARIETY_NOTES
            seen[p] += 1
        own = [measure(waves, pitch, rate) if alone else pitch
               for measure in (tuning, harmonic_share, phase_coherence)]
        columns.append([features.cpu(), logits["pitch"].cpu(), pitch, np.abs(waves).max(1), *own,
                        waves[few], pitch[few], own[2][few]])
    features, logits, *others = map(np.concatenate, zip(*columns))
    return Heard(features, logits, pictures, *others)


def row(heard, reference):
    """The measures of notes beside those of `reference`, training notes; -> (a dict, NDB or None).

    What cannot be measured is None: NDB of fewer notes than there are cells, variety where no two
    have one pitch, steadiness of notes too short for it.
    """
    enough = min(len(heard.pitch), len(reference.pitch)) >= CELLS
    cells = ndb(reference.pictures, heard.pictures, CELLS) if enough else None
    steady = heard.steady[np.isfinite(heard.steady)]
    values = {"notes": len(heard.pitch),
              "NDB": cells and cells.number, "JS": cells and cells.js,
              "FID": frechet_distance(reference.features, heard.features),
              "IS": inception_score(heard.logits),
              "PA": pitch_accuracy(heard.logits, heard.pitch),
              "PA +-1": pitch_accuracy(heard.logits, heard.pitch, within=1),
              "PE": pitch_entropy(heard.logits),
              "in tune": float(np.mean(np.abs(heard.off) <= QUARTER_TONE)),
              "clean": float(heard.clean.mean()),
              "variety": variety(heard.waves, heard.waves_pitch),
              "steady": float(steady.mean()) if len(steady) else None}
    return {name: None if value != value else value for name, value in values.items()}, cells


def remarks(counts, reference):
    """What one should know to read rows of so many notes, {name: n}, in sentences."""
    many, features = reference.features.shape
    for low, high, sentence in (
            (0, features, f"FID: no more notes than the {features} features, so that the "
             "covariance lacks rank and the distance comes out too large"),
            (features, 10 * features, "FID: fewer than ten notes a feature, so that the distance "
             "comes out too large"),
            (0, CELLS - 1, f"NDB: {CELLS} notes, and as many training notes, are needed"),
            (CELLS - 1, 10 * CELLS, f"NDB: no more than {10 * CELLS} notes, so that the test sees "
             "only large differences")):
        few = [name for name, n in counts.items() if low < min(n, many) <= high]
        if few:
            yield f"{sentence} ({'; '.join(few) if len(few) < len(counts) else 'all rows'})"


def check_sound(run, heard):
    """What is wrong with the notes themselves, in sentences.

    MetricError for silence only, and for WAVs that all sound alike beside their pitches: of a rate
    not as said.  An octave may also be a habit of naming, or the model's fault.
    """
    sounding = heard.peak >= SILENT
    if not sounding.any():
        raise MetricError(f"{run.name}: all of its {len(sounding):,} notes are silent: nothing to "
                          "measure")
    if not sounding.all():
        yield (f"{run.name}: {(~sounding).sum():,} of {len(sounding):,} notes are silent, and "
               "count all the same")
    off = heard.off[sounding & (np.abs(heard.off) < 12_000)]        # those with a fundamental
    if not run.claims or len(off) < 10:
        return
    shift = np.median(off)
    agree = np.mean(np.abs(off - shift) <= QUARTER_TONE)
    if abs(shift) <= 2 * QUARTER_TONE or agree <= 0.75:
        return
    says = (f"{run.name}: {agree:.0%} of its notes sound {shift / 100:+.1f} semitones beside the "
            "pitches in their names")
    if abs((shift + 600) % 1200 - 600) <= QUARTER_TONE:
        yield f"{says}: are they named by other octaves (C4 is 60)?"
    else:
        raise MetricError(f"{says}: if their rate is not what the files claim but "
                          f"{2 ** (-shift / 1200):.2f} times that, write them with the right one; "
                          "else name them as they sound (C4 is 60)")


# ---------------------------------------------------------------------------------------------
# Tables


# notes, NDB, FID, IS, PA, PE (the paper's Tables 1 and 2)
PAPER = {name: dict(zip(("notes", "NDB", "FID", "IS", "PA", "PE"), (12_800, *values)))
         for name, values in {
    "Real data":                (2.2, 13, 47.1, 0.982, 0.22),
    "IF-Mel + H":              (29.3, 167, 38.1, 0.979, 0.40),
    "IF + H":                  (36.0, 104, 41.6, 0.983, 0.32),
    "Phase + H":               (37.6, 592, 36.2, 0.976, 0.44),
    "IF-Mel":                  (37.0, 600, 29.6, 0.941, 0.63),
    "IF":                      (37.0, 708, 36.3, 0.968, 0.44),
    "Phase":                   (41.4, 687, 24.4, 0.944, 0.77),
    "WaveGAN":                 (43.0, 461, 13.7, 0.827, 1.40),
    "Waveform GAN":            (45.0, 375, 2.5, 0.567, 3.59),
    "Waveform GAN, not grown": (48.2, 447, 14.8, 0.963, 1.61),
    "WaveNet 8-bit":           (44.8, 320, 29.1, 0.927, 0.70),
    "WaveNet 16-bit":          (45.9, 656, 9.5, 0.646, 1.71)}.items()}

# column: its format; the paper's first
COLUMNS = {"notes": "{:,}", "NDB": "{:.3g}", "JS": "{:.3f}", "FID": "{:.1f}", "IS": "{:.1f}",
           "PA": "{:.1%}", "PA +-1": "{:.1%}", "PE": "{:.2f}", "in tune": "{:.1%}",
           "clean": "{:.2f}", "variety": "{:.1f} dB", "steady": "{:.2f}"}


def paper_name(config):
    """The row of the paper's tables that a run's settings belong to, or None."""
    model, rep = config.get("model", "gansynth"), config["rep"]
    if model == "wavenet":
        return f"WaveNet {'8' if config['output'] == 'mulaw8' else '16'}-bit"
    if model == "wavegan":
        return "WaveGAN"
    if rep == "waveform":
        return "Waveform GAN" + ", not grown" * (not config["progressive"])
    names = {"phase": "Phase", "if": "IF", "if-mel": "IF-Mel"}
    return names[rep] + " + H" * config["hires"]


def table_rows(table):
    """A table (see `measure`) as rows of texts, a heading first; the paper's are beneath ours."""
    named = []
    for entry in table["rows"]:
        named.append((entry["name"], entry["values"]))
        if entry["paper"]:
            named.append((f"  paper: {entry['paper']}", PAPER[entry["paper"]]))
    return [["", *COLUMNS]] + [
        [name] + [form.format(values[column]) if values.get(column) is not None else "-"
                  for column, form in COLUMNS.items()] for name, values in named]


def format_table(table, markdown=False):
    """A table as lines of text."""
    rows = table_rows(table)
    if markdown:
        lines = ["| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"
                 for cells in rows]
        return [lines[0], "| --- " + "| ---: " * len(COLUMNS) + "|", *lines[1:]]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [cells[0].ljust(widths[0]) + "".join(cell.rjust(width + 2) for cell, width
                                                in zip(cells[1:], widths[1:])) for cells in rows]


def measure(setting, runs, args):
    """Measure runs of one setting beside its real notes.

    -> a table, a dict fit for JSON; and what there is to look at, a list of (caption, (H, W, 3)).
    """
    train, held_out = setting.notes()
    trained = find_classifier(setting, train, held_out, args)
    most = args.samples or default_samples(setting)
    reference = hear(real_run("training notes", train, setting, most, args.seed),
                     trained.classifier, args.device, alone=False)
    table = {"setting": asdict(setting), "seed": args.seed, "reference": len(reference.pitch),
             "title": f"{setting}; NDB and FID beside {len(reference.pitch):,} training notes of "
                      f"{setting.data}",
             "classifier": {"width": trained.classifier.width, "accuracy": trained.accuracy,
                            "held_out": trained.held_out},
             "rows": [], "remarks": [*about_classifier(trained, setting, train)]}
    pictures, counts, faults = [], {}, []
    real = real_run(f"real: held out of {setting.data}", held_out, setting, most, args.seed)
    if args.controls:
        runs = [*runs, *controls(train, held_out, setting, most, args.seed)]
    for run in (real, *runs):
        heard = hear(run, trained.classifier, args.device)
        faults += check_sound(run, heard)
        values, cells = row(heard, reference)
        counts[run.name] = values["notes"]
        table["rows"].append({"name": run.name, "paper": run.paper, "values": values})
        if cells:
            pictures.append((f"{run.name}: NDB", ndb_picture(cells)))
        pictures.append((f"{run.name}: phase", phase_example(heard, setting.sample_rate)))
    table["remarks"] += [*remarks(counts, reference), *faults]
    return table, pictures


def about_classifier(trained, setting, train):
    """What one should know of the classifier, in sentences."""
    yield (f"the classifier, {trained.classifier.width} channels wide, names the pitch of "
           f"{trained.accuracy:.1%} of {trained.held_out:,} held-out notes")
    if trained.accuracy < 0.9:
        yield ("that is too few for PA, PE, IS and FID to mean much: train it on more notes, or "
               "for longer, with --train-classifier")
    if trained.mark != mark(setting, train):
        yield ("it was trained on other notes than those of this table: held-out ones may be among "
               "them")
    ceiling = np.exp(scipy.stats.entropy(np.bincount(train.pitch)))
    yield (f"IS of the training notes, were all recognised: {ceiling:.1f}; NDB expected of notes "
           f"of one kind: {NDB_LEVEL * CELLS} of {CELLS}")


# ---------------------------------------------------------------------------------------------
# Pictures


def ndb_picture(cells, height=160, bar=4):
    """NDB's histogram: each cell's share of training notes (grey) beside the samples' (green, or
    red where they differ), fullest first.  -> (H, W, 3) uint8."""
    most, step = max(cells.train.max(), cells.samples.max()), 2 * bar + 4
    picture = np.zeros((height, step * len(cells.p), 3), np.uint8)
    for i, (a, b, p) in enumerate(zip(cells.train, cells.samples, cells.p)):
        left = step * i + 2
        ours = (230, 70, 60) if p < NDB_LEVEL else (80, 190, 110)
        for share, x, colour in ((a, left, (150, 150, 160)), (b, left + bar, ours)):
            picture[height - max(1, round(share / most * (height - 4))):, x:x + bar] = colour
    return picture


def phase_example(heard, rate):
    """`phase_picture` (the paper's Fig. 3) of a note near middle C that is as steady as most."""
    off = np.abs(heard.waves_pitch - 60)
    near = np.flatnonzero(off == off.min())
    i = near[np.argsort(heard.waves_steady[near])[len(near) // 2]]
    return phase_picture(heard.waves[i], heard.waves_pitch[i], rate)


PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Measures - GANSynth</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 75rem; padding: clamp(1rem, 4vw, 3rem);
  font: 1rem/1.5 system-ui, sans-serif; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
td:first-child { text-align: left; }
tr { border-top: 1px solid #8884; }
.paper, .soft { opacity: .7; }
figure { display: inline-block; margin: 1rem 1rem 0 0; }
figure img { display: block; max-width: 100%; }
</style>
<h1>Measures</h1>
<p class="soft">The pictures below each table: NDB, of each of the $cells cells of real spectrograms
the share of training notes (grey) beside that of the run (green, or red where the two differ by
more than chance); and phase, a note near middle C, its cycles drawn over each other (a steady note
draws one line) above its rainbowgram (a steady overtone is a streak of one colour).</p>
$body
</html>
""")


def write_page(folder, tables, pictures):
    """Tables, and each one's pictures, in a folder: index.html, table.md, table.json and PNGs."""
    body, markdown, number = [], [], 0
    for table, shown in zip(tables, pictures):
        markdown += [table["title"], "", *format_table(table, markdown=True), "",
                     *(f"- {remark}" for remark in table["remarks"]), ""]
        heading, *rows = table_rows(table)
        body += [f"<h2>{html.escape(table['title'])}</h2><div class=wide><table><tr>"
                 + "".join(f"<th>{column}" for column in heading)]
        body += ["<tr" + ' class="paper"' * cells[0].startswith("  paper: ") + ">"
                 + "".join(f"<td>{html.escape(cell)}" for cell in cells) for cells in rows]
        body += ["</table></div>"]
        body += [f'<p class="soft">{html.escape(remark)}' for remark in table["remarks"]]
        body += ["<div>"]
        for caption, rgb in shown:
            spectral.write_png(folder / f"{number:02}.png", rgb)
            body += [f'<figure><img src="{number:02}.png" alt=""><figcaption>'
                     f"{html.escape(caption)}</figcaption></figure>"]
            number += 1
        body += ["</div>"]
    (folder / "table.md").write_text("\n".join(markdown), encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(tables, indent=1), encoding="utf-8")
    (folder / "index.html").write_text(PAGE.substitute(body="\n".join(body), cells=CELLS),
                                       encoding="utf-8", errors="replace")


# ---------------------------------------------------------------------------------------------
# Human evaluation

ANSWERS, ANSWERS_VERSION = "gansynth-listening-answers", 1
LEVEL = 0.05                              # of significance, after Holm's correction


def check_notes(models):
    """{name: (waves, pitches)} as arrays; MetricError for shapes, NaN, silence, two lengths."""
    models = {name: tuple(map(np.asarray, notes)) for name, notes in models.items()}
    lengths = {}
    for name, (waves, pitch) in models.items():
        if waves.ndim != 2 or 0 in waves.shape or pitch.shape != waves.shape[:1]:
            raise MetricError(f"{name}: waves of shape {waves.shape} with pitches {pitch.shape}:"
                                 " expected (N, L) with (N,)")
        peak = np.abs(waves).max(axis=1)
        for bad, fault in ((~np.isfinite(peak), "holds NaN or infinity"),
                           (peak < 1 / 32768, "is silent")):
            if bad.any():
                raise MetricError(f"note {bad.argmax()} of {name} {fault} ({bad.sum()} of its "
                                     f"{len(bad)} notes): leave such notes out")
        lengths[waves.shape[1]] = name
    if len(lengths) > 1:
        (l0, a), (l1, b) = list(lengths.items())[:2]
        raise MetricError(f"notes of {a} have {l0} samples and those of {b} {l1}, which would "
                             "tell them apart: cut them to one length")
    return models


def draw_pairs(pitches, pairs, seed):
    """Which notes meet: a list of `pairs` (A, B), each a (name, index of note), in random order.

    pitches: {name: (N,) MIDI}.  The two of a pair have one pitch and different models.  All pairs
    of models come equally often, to within one, and so does each of the two as A.  No two notes
    meet twice, and the notes used least come first.  MetricError where there are too few.
    """
    random = Random(seed)
    contests = [random.sample(pair, 2) for pair in itertools.combinations(pitches, 2)]
    if not contests:
        raise MetricError("a listening test compares two models or more: name another one")
    if pairs < len(contests):
        raise MetricError(f"{pairs} pairs are too few: {len(pitches)} models meet in "
                             f"{len(contests)} ways, so ask for {len(contests)} pairs or more")
    at = {name: {p: [(name, i) for i in np.flatnonzero(pitch == p).tolist()]
                 for p in np.unique(pitch).tolist()} for name, pitch in pitches.items()}
    free = {(a, b): {p: len(at[a][p]) * len(at[b][p]) for p in at[a] if p in at[b]}
            for a, b in contests}         # meetings left, by pitch
    for (a, b), left in free.items():
        if sum(left.values()) < -(-pairs // len(contests)):
            raise MetricError(f"{a} and {b} have notes for {sum(left.values())} pairs of one "
                                 f"pitch, and {-(-pairs // len(contests))} are needed: give both "
                                 "more notes of the same pitches, or ask for fewer pairs")
    random.shuffle(contests)              # the first ones come once more where it does not divide
    used, met, drawn = Counter(), Counter(), []
    for turn in range(pairs):
        a, b = contests[turn % len(contests)]
        left = free[a, b]
        pitch = min((p for p in left if left[p]), key=lambda p: (
            min(used[note] for note in at[a][p]) + min(used[note] for note in at[b][p]),
            met[a, b, p], random.random()))
        pair = min(itertools.product(at[a][pitch], at[b][pitch]), key=lambda pair: (
            met[pair], used[pair[0]] + used[pair[1]], random.random()))
        used.update(pair)
        met.update([pair, (a, b, pitch)])
        left[pitch] -= 1
        drawn.append(pair[::-1] if turn // len(contests) % 2 else pair)
    random.shuffle(drawn)
    return drawn


def level_notes(waves, sample_rate):
    """(N, L) floats -> int16, all of one RMS, by one factor for all so that none clips.

    An end that was cut, beyond a hundredth of the note's peak, is faded over 5 ms: a click there
    is no fault of the model.
    """
    waves = np.array(waves, dtype=np.float64)
    ramp = np.linspace(0, 1, min(int(0.005 * sample_rate), waves.shape[1] // 2), endpoint=False)
    for wave in waves:
        for end in (wave, wave[::-1]):    # views: both change the wave itself
            if abs(end[0]) > 0.01 * np.abs(wave).max():
                end[:len(ramp)] *= ramp
    waves /= np.sqrt(np.mean(waves ** 2, axis=1, keepdims=True))
    return np.rint(waves * (0.9 * 32767 / np.abs(waves).max())).astype("<i2")


def write_listening_test(models, sample_rate, out, pairs=40, seed=0):
    """The paper's human evaluation as one page, `out`/index.html; returns its path.

    models: {name: (waves (N, L) of floats, pitches (N,) MIDI)}, two or more.  The page needs
    nothing but itself; raters open it, compare `pairs` pairs of notes, and send the file of
    answers that it saves, for `score_test`:

        {"format": ANSWERS, "version": 1, "test": hash of the test, "rater": name, "answers":
         [{"pair": 1, "A": model, "B": model, "pitch": MIDI, "rating": 1 to 5}, ...]}

    A rating is how far one agrees that A has better audio quality / fewer distortions than B: 1
    strongly agree, 3 neutral, 5 strongly disagree.  Which model is which stands in the page in
    base64 only: nobody reads it by chance, but who wants to cheat can.
    """
    models = check_notes(models)
    drawn = draw_pairs({name: pitch for name, (_, pitch) in models.items()}, pairs, seed)
    out = sample.out_folder(Path(out), None)
    notes = list(dict.fromkeys(note for pair in drawn for note in pair))    # each once
    waves = level_notes([models[name][0][i] for name, i in notes], sample_rate)
    sounds = []
    for wave in waves:
        scipy.io.wavfile.write(file := io.BytesIO(), sample_rate, wave)
        sounds.append(base64.b64encode(file.getvalue()).decode())
    key = json.dumps([[a[0], b[0]] for a, b in drawn])
    test = {"format": ANSWERS, "version": ANSWERS_VERSION, "notes": sounds,
            "pairs": [[notes.index(a), notes.index(b), int(models[a[0]][1][a[1]])]
                      for a, b in drawn],
            "key": base64.b64encode(key.encode()).decode()}
    test["id"] = hashlib.sha256(json.dumps(test).encode()).hexdigest()[:16]
    minutes = pairs * (2 * waves.shape[1] / sample_rate + 4) / 60
    try:
        with sample.whole_folder(out) as part:
            (part / "index.html").write_text(LISTENING_PAGE.substitute(
                test=json.dumps(test), pairs=pairs, minutes=max(1, round(minutes))),
                encoding="utf-8")
    except OSError as error:
        raise MetricError(f"{out} cannot be written ({error.strerror}): name another folder"
                          ) from None
    return out / "index.html"


def read_answers(path):
    """One rater's answers, as `write_listening_test` describes them; MetricError if not."""
    try:
        contents = json.loads(Path(path).read_text(encoding="utf-8"))
        known = contents["format"] == ANSWERS and contents["version"] == ANSWERS_VERSION
    except OSError as error:
        raise MetricError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise MetricError(f"{path}: not JSON: give the answers*.json that the page saves"
                             ) from None
    except (TypeError, KeyError):
        known = False
    if not known:
        raise MetricError(f"{path}: no answers of a listening test (version {ANSWERS_VERSION}):"
                             " give the answers*.json that the page saves")
    answers = contents.get("answers")
    if not (isinstance(answers, list) and answers
            and all(isinstance(contents.get(name), str) for name in ("test", "rater"))):
        raise MetricError(f"{path}: lacks its test, rater or answers: save it again")
    for i, answer in enumerate(answers, 1):
        if not (isinstance(answer, dict) and answer.get("pair") == i and answer.get("A") !=
                answer.get("B") and all(isinstance(answer.get(side), str) for side in "AB")):
            raise MetricError(f"{path}: answer {i} does not name pair {i} and its two models: "
                                 "save it again")
        if type(answer.get("rating")) is not int or not 1 <= answer["rating"] <= 5:
            raise MetricError(f"{path}: answer {i} has the rating {answer.get('rating')!r}: "
                                 "expected a whole number from 1 to 5")
    return contents


def read_raters(paths):
    """The answers of different raters to one test, a list; MetricError says what is wrong."""
    files = {}
    for path in paths:
        new = read_answers(path)
        for other, old in files.items():
            if new == old:
                raise MetricError(f"{path} and {other} are the same answers: give them once")
            if new["test"] != old["test"]:
                raise MetricError(f"{path} and {other} are answers to different tests "
                                     f"({new['test']}, {old['test']}): score each test alone")
            if new["rater"] == old["rater"]:
                raise MetricError(f"{path} and {other} are both by {new['rater']!r}: give one "
                                     "of them, or name two raters apart inside the files")
            asked, before = ([(answer["A"], answer["B"]) for answer in contents["answers"]]
                             for contents in (new, old))
            if asked != before:
                raise MetricError(f"{path} and {other} name one test but other pairs of models:"
                                     " one was changed by hand, so save it again")
        files[path] = new
    if not files:
        raise MetricError("no answers: give the answers*.json that the page saves")
    return list(files.values())


def signed_rank(d):
    """Wilcoxon's signed-rank test: two-sided p for differences d (n,) around 0, zeros left out.

    Exact up to 100, by the share of all 2^n patterns of signs that give each rank sum.  Ratings
    of five levels are full of ties, for which scipy's exact table does not hold; and the normal
    approximation gives five unanimous ones p = 0.025, where 2 patterns in 2^5 are 0.0625.
    """
    d = np.asarray(d, dtype=np.float64)
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    if len(d) > 100:
        return float(scipy.stats.wilcoxon(d).pvalue)
    ranks = np.rint(2 * scipy.stats.rankdata(np.abs(d))).astype(int)    # ties have half ranks
    share = np.eye(1, ranks.sum() + 1)[0]                               # of patterns, per sum
    for rank in ranks:
        share = (share + np.roll(share, rank)) / 2                      # minus, or plus
    plus = ranks[d > 0].sum()
    return float(min(1.0, 2 * min(share[:plus + 1].sum(), share[plus:].sum())))


def holm(p):
    """Holm (1979): p (n,) corrected for n tests: the smallest times n, the next times n - 1, ..."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected


def least_ratings(tests):
    """Ratings a pair, none neutral, before even unanimous ones, p = 2^(1 - n), are significant at
    Holm's first step among so many tests."""
    return math.floor(math.log2(tests / LEVEL)) + 2


def ratings_for_power(tests, preference=0.6, power=0.8):
    """Ratings a pair, none neutral, to detect a preference of 60:40 four times in five.

    The sign test in its normal approximation, at Holm's first and strictest step, LEVEL / tests;
    ratings are taken as independent.
    """
    z0, z1 = scipy.stats.norm.isf([LEVEL / tests / 2, 1 - power])
    spread = z0 / 2 + z1 * math.sqrt(preference * (1 - preference))
    return math.ceil((spread / (preference - 0.5)) ** 2)


def score_test(paths):
    """Answers of several raters to one test, counted and tested, as a dict for `format_scores`.

    models: wins, ties and losses by name, the best first; pairs: the same from the first one's
    side, with Wilcoxon's p and Holm's correction of it; kruskal: H and p of all models' ratings,
    each rating counting for both its models.  MetricError says what is wrong with the files.
    """
    def count(scores):
        sign = np.sign(scores)
        return {"ratings": len(sign), "wins": int((sign > 0).sum()),
                "ties": int((sign == 0).sum()), "losses": int((sign < 0).sum())}

    files = read_raters(paths)
    sides, duels = {}, {}                 # scores by model, and by a model and its opponent
    for answer in (answer for contents in files for answer in contents["answers"]):
        a, b, score = answer["A"], answer["B"], 3 - answer["rating"]    # 2: A strongly, to -2
        for own, other, score in ((a, b, score), (b, a, -score)):
            sides.setdefault(own, []).append(score)
            duels.setdefault((own, other), []).append(score)
    models = sorted(((name, count(scores)) for name, scores in sides.items()),
                    key=lambda row: (-row[1]["wins"] / row[1]["ratings"], row[0]))
    models = dict(models)
    pairs = {pair: count(duels[pair]) | {"p": signed_rank(duels[pair])}
             for pair in itertools.combinations(models, 2) if pair in duels}
    for row, p in zip(pairs.values(), holm([row["p"] for row in pairs.values()])):
        row["p_holm"] = float(p)
    alike = len(set().union(*sides.values())) == 1                  # scipy gives NaN, or fails
    h, p = (0.0, 1.0) if alike else map(float, scipy.stats.kruskal(*sides.values()))
    return {"test": files[0]["test"], "raters": [contents["rater"] for contents in files],
            "ratings": sum(row["ratings"] for row in pairs.values()), "models": models,
            "pairs": pairs, "kruskal": {"H": h, "p": p}}


def format_scores(result):
    """What `score_test` found, as text."""
    models, pairs, tests = result["models"], result["pairs"], len(result["pairs"])
    paper = {"ratings": 800, "wins": 549}
    wide = max(len("paper: real data"), *(len(f"{a}, {b}") for a, b in pairs))
    lines = [f"Models: {len(models)}, raters: {len(result['raters'])}, ratings: "
             f"{result['ratings']:,} (paper: 3,600 of nine models)", "",
             f"{'model':{wide}}{'ratings':>9}{'wins':>14}{'ties':>14}{'losses':>14}"]
    for name, row in [*models.items(), ("paper: real data", paper)]:
        cells = [f"{row[k]:7}{row[k] / row['ratings']:7.1%}" for k in ("wins", "ties", "losses")
                 if k in row]
        lines.append(f"{name:{wide}}{row['ratings']:9}{''.join(cells)}")
    lines += ["", f"{'pair':{wide}}{'ratings':>9}{'first wins':>14}{'ties':>14}{'second wins':>14}"
                  f"{'p':>9}{'Holm':>9}"]
    lines += [f"{f'{a}, {b}':{wide}}{row['ratings']:9}{row['wins']:14}{row['ties']:14}"
              f"{row['losses']:14}{row['p']:9.2g}{row['p_holm']:9.2g}"
              for (a, b), row in pairs.items()]
    lines += ["", f"p: Wilcoxon signed-rank; Holm: p corrected for the number of pairs ({tests}), "
                  f"significant below {LEVEL}.", f"Kruskal-Wallis over all models: H = "
                  f"{result['kruskal']['H']:.2f}, p = {result['kruskal']['p']:.2g}."]
    least = least_ratings(tests)
    few = sum(row["wins"] + row["losses"] < least for row in pairs.values())
    if few:
        lines.append(f"Too few ratings in {few} of the pairs: {least} that are not neutral are "
                     "needed before\neven unanimous ones can be significant.")
    lines.append(f"To detect a preference of 60:40 in a pair four times in five takes about "
                 f"{ratings_for_power(tests)}\nratings of it that are not neutral (sign test at "
                 f"{LEVEL} / {tests}; all ratings taken as independent).")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------
# Command line


def default_samples(setting):
    """paper: 12,800 a measure; 1,000 of notes shorter than its 4 s at 16 kHz."""
    return 12_800 if setting.length >= 64_000 else 1_000


def span(text):
    """A type for argparse: "24-84" -> (24, 84)."""
    match = re.fullmatch(r"(\d{1,3})-(\d{1,3})", text)
    if not match or not int(match[1]) <= int(match[2]) <= 127:
        raise argparse.ArgumentTypeError(f"{text!r}: expected MIDI pitches such as 24-84")
    return int(match[1]), int(match[2])


def parse(argv):
    parser = argparse.ArgumentParser(description="Measure runs as the paper does, beside real "
                                     "notes and the paper's own rows.")
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="RUN",
        help="run folders, checkpoints, or folders of WAVs with the pitch in each name")
    add("--data", help="real notes to compare with (default: each run's own)")
    add("--samples", type=sample.at_least(2), metavar="N",
        help="notes a row (default: 12,800 of 4 s, the paper's; 1,000 of shorter ones)")
    add("--seed", type=sample.at_least(0), default=1, help="of latents and choices (default 1)")
    add("--mel-inverse", choices=spectral.MEL_INVERSES, default="pseudo",
        help="from mel bands back to frequencies, for if-mel (default: pseudo)")
    add("--device", type=sample.device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--controls", action="store_true", help="add three deliberate failures: white noise, one "
        "note repeated, real notes with shuffled pitches")
    add("--markdown", action="store_true", help="print Markdown")
    add("--json", action="store_true", help="print JSON")
    add("--out", type=Path, metavar="DIR", help="a new or empty folder for the page and pictures "
        "(default: runs/metrics-0001, ...), or for the listening test")

    group = parser.add_argument_group("the classifier (trained on first use, and kept)")
    group.add_argument("--train-classifier", action="store_true",
                       help="train it, print how good it is, and stop; for the paper's notes, "
                       "for those of the runs given, or as these say:")
    group.add_argument("--length", type=sample.at_least(1), metavar="N", help="samples a note")
    group.add_argument("--sample-rate", type=sample.at_least(1000), metavar="HZ")
    group.add_argument("--pitches", type=span, metavar="LOW-HIGH")
    group.add_argument("--width", choices=WIDTHS, help="full: the paper's, 128 channels and more "
                       "(default with a GPU); thin: 16 (default without)")
    group.add_argument("--examples", type=sample.at_least(1), default=0, metavar="N",
                       help="to train on, with --train-classifier (default: each note 8 times, "
                       "but at least 16,000)")
    group.add_argument("--classifier", type=Path, metavar="FILE",
                       help="one trained before (default: the one of these notes)")

    group = parser.add_argument_group("people's ears (paper 4.1)")
    group.add_argument("--listening-test", action="store_true",
                       help="write a page of blind pairs of the runs' notes to --out")
    group.add_argument("--pairs", type=sample.at_least(1), default=40, help="of it (default 40)")
    group.add_argument("--score-test", nargs="+", type=Path, metavar="FILE",
                       help="what answers*.json, saved by that page, say")
    args = parser.parse_args(argv)
    args.width = WIDTHS[args.width or ("full" if args.device.type == "cuda" else "thin")]
    check_usage(parser, args)
    return args


def is_run(path):
    """Whether a path means a checkpoint, rather than a folder of WAVs."""
    return not path.is_dir() or gansynth.newest_checkpoint(path) is not None


def check_usage(parser, args):
    """Refuse flags that contradict each other, or would do nothing."""
    actions = [args.train_classifier, args.listening_test, bool(args.score_test)]
    if sum(actions) > 1 or args.score_test and args.runs:
        parser.error("--train-classifier, --listening-test and --score-test (which takes no runs) "
                     "are done one at a time")
    if not (args.runs or args.data or args.train_classifier or args.score_test):
        parser.error("name a run: a folder that train.py wrote, a checkpoint, or a folder of WAVs; "
                     "or --data alone, for the row of real notes")
    if args.listening_test and not (args.runs and args.out):
        parser.error("--listening-test needs runs to compare, and --out DIR, a new folder")
    if args.train_classifier and args.classifier:
        parser.error("--train-classifier trains one, and --classifier names another: leave one out")
    if args.examples and not args.train_classifier:
        parser.error("--examples goes with --train-classifier")
    if (args.length or args.sample_rate or args.pitches) and any(map(is_run, args.runs)):
        parser.error("--length, --sample-rate and --pitches say what notes are like where no run "
                     "does: leave them out")


def gather(args):
    """The runs named, each once, in their order; folders of WAVs take the form of the others'."""
    paths = list(dict.fromkeys(args.runs))
    own = {path: checkpoint_run(path, args) for path in paths if is_run(path)}
    first = {}                            # runs that differ in their seed only share one split
    for run in own.values():
        run.setting = first.setdefault(replace(run.setting, seed=0), run.setting)
    settings = [run.setting for run in own.values()]
    return [own.get(path) or folder_run(path, args, settings) for path in paths]


def settings_of(runs, args):
    """Those of the runs, each once; of none, the paper's but for what the flags say."""
    asked = Setting(args.data or "orchestra", args.length or 64_000, args.sample_rate or 16_000,
                    *args.pitches or (24, 84))
    return list(dict.fromkeys([run.setting for run in runs] or [asked]))


def train_classifiers(runs, args):
    """--train-classifier: one for each setting, with a line on how good it is."""
    for setting in settings_of(runs, args):
        train, held_out = setting.notes()
        trained = find_classifier(setting, train, held_out, args)
        print(f"{classifier_path(setting, train, args.width)}: {trained.accuracy:.1%} of "
              f"{trained.held_out:,} held-out notes named right; {setting}")


def print_tables(runs, args):
    """Each setting's table: its real notes, its runs, and the paper's rows."""
    out, tables, pictures = sample.out_folder(args.out, Path("runs"), "metrics"), [], []
    with sample.whole_folder(out) as part:
        for setting in settings_of(runs, args):
            table, shown = measure(setting, [r for r in runs if r.setting == setting], args)
            tables.append(table)
            pictures.append(shown)
            if not args.json:
                print("", table["title"], "", *format_table(table, args.markdown), "",
                      *table["remarks"], sep="\n", flush=True)
        if args.json:
            print(json.dumps(tables, indent=1))
        write_page(part, tables, pictures)
    print(f"\nlook at {out / 'index.html'}", file=sys.stderr)


def listening_test(runs, args):
    """--listening-test: the runs' notes, and with --data real ones, on a page of blind pairs."""
    sample.out_folder(args.out, None)     # now, and not after minutes of work
    if args.data:
        setting = runs[0].setting
        runs = [real_run("real notes", setting.notes()[1], setting, args.samples, args.seed), *runs]
    forms = {(run.setting.length, run.setting.sample_rate): run for run in runs}
    if len(forms) > 1:
        raise MetricError("the runs' notes differ: " + ", but ".join(
            f"{length:,} samples at {rate:,} Hz in {run.name}"
            for (length, rate), run in forms.items()) + "; listeners would tell them apart by that")
    models = {}
    for run in runs:
        heard = nsynth.progress_bar(run.batches(), f"notes ({run.name})", each=32,
                                    total=math.ceil(run.count / 32))
        waves, pitch = map(np.concatenate, zip(*heard))
        sounding = np.abs(waves).max(1) >= SILENT
        if not sounding.all():
            print(f"{run.name}: {(~sounding).sum():,} silent notes are left out", file=sys.stderr)
        models[run.name] = waves[sounding], pitch[sounding]
    write_listening_test(models, runs[0].setting.sample_rate, args.out, args.pairs, args.seed)
    print(f"open {args.out / 'index.html'} in a browser; when people have rated, score what it "
          "saved with: python metrics.py --score-test answers*.json")


def main(argv=None):
    args = parse(argv)
    if args.listening_test:
        args.samples = args.samples or 200              # of each run, to choose pairs from
    try:
        if args.score_test:
            return print(format_scores(score_test(args.score_test)))
        runs = gather(args)
        action = (listening_test if args.listening_test else
                  train_classifiers if args.train_classifier else print_tables)
        action(runs, args)
    except (MetricError, sample.SampleError, gansynth.CheckpointError,
            nsynth.NoteError, spectral.SpectrumError, OSError) as error:
        sys.exit(f"metrics.py: {error}")
    except KeyboardInterrupt:
        print("metrics.py: stopped before it was done; classifiers trained before are kept",
              file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------------------------------------
# The listening test's page


LISTENING_PAGE = Template(r"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Listening test - GANSynth</title>
<style>
:root { color-scheme: light dark; --paper: #f7f6f3; --card: #fff; --ink: #1d1d22; --soft: #62626c;
  --line: #d9d7d0; --accent: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16161a; --card: #222228; --ink: #ececf0;
  --soft: #a0a0ac; --line: #3a3a44; --accent: #ff8a75; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; max-width: 48rem; padding: clamp(1rem, 4vw, 3rem); background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .3em; font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.2; outline: none; }
p { margin: .7em 0; }
.soft, small { color: var(--soft); font-size: .85rem; }
kbd { padding: 0 .3em; border: 1px solid var(--line); border-radius: .3em; font: inherit; }
button, input { font: inherit; color: inherit; background: var(--card); padding: .5rem 1rem;
  border: 1px solid var(--line); border-radius: .6rem; }
input { display: block; width: 20rem; max-width: 100%; margin: .2rem 0 1.2rem;
  border-color: var(--soft); }
button { cursor: pointer; }
button:hover { border-color: var(--soft); }
button:disabled { opacity: .5; cursor: default; border-color: var(--line); }
:is(button, input):focus-visible { outline: 3px solid var(--ink); outline-offset: 2px; }
[aria-pressed=true] { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.main { background: var(--accent); color: var(--paper); font-weight: 600; }
progress { display: block; width: 100%; height: .5rem; accent-color: var(--accent); }
fieldset { margin: 1.5rem 0 0; padding: 0; border: 0; min-width: 0; }
legend { padding: 0; margin-bottom: .6rem; font-weight: 600; }
.notes, .scale { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin-top: 1.5rem; }
.notes button { padding: 1.2rem .5rem; }
.notes b { display: block; font-size: 2.2rem; line-height: 1.2; }
.notes b::before { content: "\25B6\FE0E"; color: var(--soft); margin-right: .4em; font-size: .6em;
  vertical-align: .15em; }
.notes [aria-pressed=true] b::before { content: "\25A0"; color: var(--accent); }
.scale { grid-template-columns: repeat(5, 1fr); gap: .5rem; margin: 0; }
.scale button { padding: .6rem .3rem; }
.scale small { display: block; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.2rem; }
.last { margin-left: auto; }
@media (max-width: 36rem) { .scale { grid-template-columns: 1fr; }
  .scale button { display: flex; justify-content: space-between; padding: .5rem 1rem; } }
@media (pointer: coarse) { .keys { display: none; } }
</style>
<main>
<section id="start" hidden>
<h1>Listening test</h1>
<p>You will hear $pairs pairs of notes, A and B, and say which of the two sounds better. It takes
about $minutes minutes.</p>
<p>Please use headphones, in a quiet room, and set a comfortable volume with the first pair. Rate
the <b>audio quality</b>: noise, roughness, warbling and other distortions. Do not rate taste:
which instrument you like better is not asked.</p>
<p>Listen to both notes to the end, as often as you like, then answer; you can go back and change
an answer. Your answers stay in this browser, also if the page is closed; at the end they are saved
as a file to send back.</p>
<p class="soft keys">Keys: <kbd>A</kbd> <kbd>B</kbd> or <kbd>&larr;</kbd> <kbd>&rarr;</kbd> play,
<kbd>1</kbd> to <kbd>5</kbd> answer, <kbd>Enter</kbd> or <kbd>Space</kbd> next pair,
<kbd>Backspace</kbd> back.</p>
<form id="form"><label for="name">Your name (optional; the file of answers will have it)</label>
<input id="name" maxlength="40" autocomplete="off"> <button class="main">Start</button></form>
</section>
<section id="rate" hidden>
<h1 id="count" tabindex="-1"></h1>
<progress id="bar" aria-label="Pairs answered" max="$pairs" value="0"></progress>
<div class="notes"><button id="A"><b>A</b> <small></small></button>
<button id="B"><b>B</b> <small></small></button></div>
<fieldset><legend>&ldquo;A has better audio quality / fewer distortions than B.&rdquo;</legend>
<div class="scale">
<button value="1"><span>1 &middot; Strongly agree</span> <small>A clearly better</small></button>
<button value="2"><span>2 &middot; Agree</span> <small>A better</small></button>
<button value="3"><span>3 &middot; Neutral</span> <small>no difference</small></button>
<button value="4"><span>4 &middot; Disagree</span> <small>B better</small></button>
<button value="5"><span>5 &middot; Strongly disagree</span> <small>B clearly better</small></button>
</div></fieldset>
<p class="soft" id="hint" role="status"></p>
<div class="row"><button id="back">Back</button> <button class="main" id="next">Next</button>
<button class="last" id="over">Start over</button></div>
</section>
<section id="end" hidden>
<h1 id="thanks" tabindex="-1">Thank you!</h1>
<p>Your answers were saved as <b id="file"></b>, most likely among your downloads. Please send this
file to the person who asked you.</p>
<div class="row"><button id="again">Save the answers again</button>
<button class="last" id="fresh">Next rater</button></div>
</section>
<p id="lost" role="alert" hidden>This browser stores nothing for this page: please do not close or
reload it before the end.</p>
</main>
<noscript><p>This page needs JavaScript.</p></noscript>
<script>
const test = $test;                       // its key, in base64, tells which model is which
const storage = "gansynth-listening-" + test.id, total = test.pairs.length, player = new Audio();
const page = Object.fromEntries([...document.querySelectorAll("[id]")].map(e => [e.id, e]));
const scale = [...document.querySelectorAll(".scale button")];
let state = null;                         // {rater, order: of pairs, at, ratings: by pair}
let heard = {}, playing = null;           // of this pair: {A, B}; "A", "B" or null
const pair = () => state.order[state.at];
const file = () => "answers-" + state.rater.replace(/[^\p{L}\p{N}]+/gu, "-") + ".json";

function keep() {
  try {
    if (state) localStorage.setItem(storage, JSON.stringify(state));
    else localStorage.removeItem(storage);
  } catch { page.lost.hidden = false; }
}

function play(side) {                     // or stop, if it plays already
  player.pause();
  playing = playing === side ? null : side;
  refresh();
  if (!playing) return;
  player.src = "data:audio/wav;base64," + test.notes[test.pairs[pair()][side === "A" ? 0 : 1]];
  player.play().catch(error => {
    if (error.name === "AbortError") return;            // another one was started
    playing = null;
    refresh("This browser cannot play the note: " + error.message);
  });
}

player.onended = () => {
  heard[playing] = true;
  playing = null;
  refresh();
};

function answer(rating) {
  if (!heard.A || !heard.B) return refresh("Please listen to both notes to the end first.");
  state.ratings[pair()] = rating;
  keep();
  refresh();
  page.next.focus();                      // where Enter and Space go on
}

function move(step) {
  if (state.at + step < 0 || step > 0 && !state.ratings[pair()]) return;
  state.at += step;
  keep();
  show();
  if (state.at === total) save();
}

function show() {                         // the screen that the state asks for
  player.pause();
  playing = null;
  const done = state && state.at === total;
  page.start.hidden = state;
  page.rate.hidden = !state || done;
  page.end.hidden = !done;
  if (done) {
    page.file.textContent = file();
    page.thanks.focus();
  } else if (state) {
    heard = {A: pair() in state.ratings, B: pair() in state.ratings};
    page.count.textContent = "Pair " + (state.at + 1) + " of " + total;
    refresh();
    page.count.focus();
  }
}

function refresh(message) {               // what changes within a pair
  const rating = state.ratings[pair()], ready = heard.A && heard.B;
  for (const side of "AB") {
    page[side].setAttribute("aria-pressed", playing === side);
    page[side].lastElementChild.textContent =
      playing === side ? "playing" : heard[side] ? "heard" : "not yet heard";
  }
  for (const button of scale) {
    button.disabled = !ready;
    button.setAttribute("aria-pressed", button.value == rating);
  }
  page.back.disabled = state.at === 0;
  page.next.disabled = !rating;
  page.next.textContent = state.at + 1 < total ? "Next" : "Finish";
  page.bar.value = Object.keys(state.ratings).length;
  page.hint.textContent = message || (rating ? "Your answer is " + rating + "." : ready
    ? "How far do you agree?" : "Listen to both notes to the end, then answer.");
}

function save() {
  const names = JSON.parse(atob(test.key)), {format, version, id} = test;
  const answers = test.pairs.map(([a, b, pitch], i) =>
    ({pair: i + 1, A: names[i][0], B: names[i][1], pitch, rating: state.ratings[i]}));
  const text = JSON.stringify({format, version, test: id, rater: state.rater, answers}, null, 1);
  const href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  Object.assign(document.createElement("a"), {href, download: file()}).click();
}

page.form.onsubmit = event => {
  event.preventDefault();
  const order = test.pairs.map((_, i) => i);
  for (let i = total - 1; i > 0; i--) {   // another order for every rater
    const j = Math.floor(Math.random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  const rater = page.name.value.trim() || "anonymous-" + Math.random().toString(36).slice(2, 8);
  state = {rater, order, at: 0, ratings: {}};
  keep();
  show();
};

page.over.onclick = page.fresh.onclick = () => {
  if (!confirm("Erase the answers of " + state.rater + " from this page and start over?")) return;
  state = null;
  page.form.reset();
  keep();
  show();
};
page.again.onclick = save;
page.back.onclick = () => move(-1);
page.next.onclick = () => move(1);
for (const side of "AB") page[side].onclick = () => play(side);
for (const button of scale) button.onclick = () => answer(Number(button.value));

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || page.rate.hidden) return;
  const key = event.key.toLowerCase(), number = ["1", "2", "3", "4", "5"].indexOf(key) + 1;
  if (key === "a" || key === "arrowleft") play("A");
  else if (key === "b" || key === "arrowright") play("B");
  else if (number) answer(number);
  else if (key === "backspace") move(-1);
  else if ([" ", "enter"].includes(key) && document.activeElement.tagName !== "BUTTON") move(1);
  else return;                            // a button in focus takes Enter and Space itself
  event.preventDefault();
});

// Not before the first frame: Chromium may find the storage of a local file empty until then.
requestAnimationFrame(() => setTimeout(() => {
  try { state = JSON.parse(localStorage.getItem(storage)); } catch { }
  show();
}));
</script>
</html>
""")


if __name__ == "__main__":
    main()
