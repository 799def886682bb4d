"""Notes: where they come from, which are kept, and in what order they are read (paper 3.1).

A note here is what NSynth calls a note: one instrument playing one pitch at one velocity, held for
three seconds and released for one. GANSynth learns from the 70,379 of them that are acoustic and
lie between MIDI 24 and 84, shuffled and split again 80/20. This chapter has four parts:

    1. Notes        a table of notes: load, split, describe
    2. Order        which pitches to ask for, and which notes come next in training
    3. WAV files    read and write, with a plain sentence for every fault
    4. Orchestra    twenty instruments made by formula, so that everything runs without a download

Run `python nsynth.py [DATA]` to see what a folder, or the orchestra, holds; add `--out DIR` to
write it as WAV files. Shapes: N notes, L samples, n notes of a batch, P pitches, K partials.
"""

import argparse
import functools
import json
import math
import os
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from wave import Error as WaveError
from wave import open as open_wave

import numpy as np
import scipy.fft
import scipy.signal
import torch

FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string",
            "synth_lead", "vocal")
SOURCES = ("acoustic", "electronic", "synthetic")


class NoteError(ValueError):
    """Notes that cannot be read, made or written: one sentence saying what to do about it."""


# ---- 1. Notes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notes:
    """N notes of one length and one sample rate, and what is known of each.

    The audio stays int16, as in the files, at half the memory of float32; `waves` converts a batch.
    """
    audio: np.ndarray     # (N, L) int16
    pitch: np.ndarray     # (N,) int64, MIDI
    family: np.ndarray    # (N,) str, NSynth's family names
    source: np.ndarray    # (N,) str: acoustic, electronic, synthetic
    name: np.ndarray      # (N,) str: NSynth's note_str, e.g. guitar_acoustic_000-060-100
    sample_rate: int
    dropped: dict = field(default_factory=dict)  # what the filter left out: reason -> count

    def __len__(self):
        return len(self.name)

    def waves(self, indices) -> torch.Tensor:
        """The notes at `indices` (a sequence of n) as (n, L) float32 in [-1, 1)."""
        i = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(self.audio[i].astype(np.float32) / 32768)

    def subset(self, indices) -> "Notes":
        """The notes at `indices`, in that order, as Notes (a copy)."""
        i = np.asarray(indices, dtype=np.int64)
        return Notes(self.audio[i], self.pitch[i], self.family[i], self.source[i], self.name[i],
                     self.sample_rate, self.dropped)


class Entry(NamedTuple):
    """One note before it has sound: what examples.json says of it, and where its sound is."""
    name: str
    pitch: int
    family: str
    source: str
    rate: int         # Hz, of the sound before any resampling
    origin: object    # a WAV's path, or (timbre, velocity) of the orchestra


def load(data, length, sample_rate, pitch_range=(24, 84), sources=("acoustic",), families=(),
         progress=True) -> Notes:
    """The notes of a folder in NSynth's layout, or the built-in ones when `data` is "orchestra".

    A folder holds `examples.json` and `audio/NOTE_STR.wav`, or has sub-folders that do
    (nsynth-train, nsynth-valid, nsynth-test); those are pooled, since the paper splits again.
    Each note is resampled to `sample_rate` Hz, then cut or zero-padded to `length` samples.
    All are held in memory: 128 kB for a note of 4 s at 16 kHz. Empty `sources` or `families` mean
    all. Raises NoteError for any file that is not as it should be, and when the filter leaves
    nothing. `progress`: a line on stderr when it takes a while.
    """
    _check_request(length, sample_rate, pitch_range, sources, families)
    built_in = str(data) == "orchestra"
    entries = _orchestra_entries(sample_rate, pitch_range) if built_in else _read_folder(Path(data))
    kept, dropped = _filter(entries, pitch_range, sources, families)
    if not kept:
        raise NoteError(f"none of the {len(entries):,} notes of {data} is left: {_join(dropped)}; "
                        "change the sources, families or pitches asked for")
    try:
        audio = np.zeros((len(kept), length), np.int16)                # (N, L)
    except MemoryError:
        raise NoteError(f"{len(kept):,} notes need {len(kept) * length * 2 / 1e9:.1f} GB of "
                        "memory: ask for fewer pitches or families, or shorter notes") from None
    make = _play if built_in else _fetch
    for row, entry in _progress(list(zip(audio, kept)), "notes", progress):
        samples = make(entry, length, sample_rate)[:length]            # cut ...
        row[:len(samples)] = samples                                   # ... or leave zeros behind
    name, pitch, family, source = (np.array(column) for column in list(zip(*kept))[:4])
    return Notes(audio, pitch, family, source, name, sample_rate, dropped)


def split(notes, seed=0, share=0.8):
    """(train, held_out): a seeded shuffle of the notes, the first `share` of them for training.

    paper: notes are shuffled, not instruments, so that the networks hear every timbre; NSynth's
    own split holds out whole instruments.
    """
    if not 0 < share <= 1:
        raise NoteError(f"share is {share}: expected a part of the notes, above 0 and at most 1")
    order = _shuffle(len(notes), seed)
    cut = round(share * len(notes))
    return notes.subset(order[:cut]), notes.subset(order[cut:])


def describe(train, held_out) -> str:
    """What is in the two splits by source, family and pitch, and what the filter dropped.

    Worth reading before training: a filter that kept electronic instead of acoustic notes cost
    users weeks (magenta issue 1607). At most 100 columns wide.
    """
    def row(label, mine, theirs):
        return f"{label:18}{mine:9,}{theirs:10,}"

    kept, lost = len(train) + len(held_out), sum(train.dropped.values())
    seconds = train.audio.shape[1] / train.sample_rate
    lines = [f"kept {kept:,} of {kept + lost:,} notes, {seconds:g} s at {train.sample_rate:,} Hz"]
    lines += [f"  dropped {_join({reason: n})}" for reason, n in train.dropped.items()]
    lines += [f"{'':18}{'train':>9}{'held out':>10}", row("all", len(train), len(held_out))]
    for column in ("source", "family"):
        mine, theirs = getattr(train, column), getattr(held_out, column)
        lines += [row(f"{column} {value}", (mine == value).sum(), (theirs == value).sum())
                  for value in np.unique(np.concatenate([mine, theirs]))]

    lines += ["pitch             " + "".join(f"{'+' + str(i):>6}" for i in range(12))]
    pitches = np.concatenate([train.pitch, held_out.pitch])
    for low in range(pitches.min(), pitches.max() + 1, 12):             # an octave a line
        for label, part in ((f"{low:5}  train", train), ("       held out", held_out)):
            counts = pitch_counts(part, (low, min(low + 11, pitches.max())))
            lines += [f"{label:18}" + "".join(f"{count:6}" for count in counts.tolist())]
    return "\n".join(lines)


def _join(dropped):
    """{"reason": 3, ...} -> "3 because reason, ..."."""
    return ", ".join(f"{count:,} because {reason}" for reason, count in dropped.items())


def _check_request(length, sample_rate, pitch_range, sources, families):
    low, high = pitch_range
    if not 0 <= low <= high <= 127:
        raise NoteError(f"pitch range {low}-{high}: expected MIDI numbers with 0 <= low <= high "
                        "<= 127, such as 24-84")
    if length < 1 or sample_rate < 1:
        raise NoteError(f"{length} samples at {sample_rate} Hz: expected at least one of each")
    for option, values, known in (("sources", sources, SOURCES), ("families", families, FAMILIES)):
        for value in values:
            if value not in known:
                raise NoteError(f"unknown value {value!r} in {option}: expected some of "
                                f"{', '.join(known)}, or nothing for all")


def _filter(entries, pitch_range, sources, families):
    """The entries that pass, and how many did not for which reason (the first that applies)."""
    low, high = pitch_range
    kept, dropped = [], {}
    for entry in entries:
        if sources and entry.source not in sources:
            reason = f"the source is not {' or '.join(sources)}"
        elif not low <= entry.pitch <= high:
            reason = f"the pitch is outside {low}-{high}"
        elif families and entry.family not in families:
            reason = "the family is none of those asked for"
        else:
            kept.append(entry)
            continue
        dropped[reason] = dropped.get(reason, 0) + 1
    return kept, dropped


def _progress(items, what, wanted=True):
    """Yield the items; once that has taken two seconds, say on stderr how fast it goes."""
    on_screen = sys.stderr.isatty()
    start = time.monotonic()
    due, shown = start + 2, False
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if wanted and now > due:
                speed = done / (now - start)
                print(f"{done:,} of {len(items):,} {what}, {speed:,.0f} a second, "
                      f"{(len(items) - done) / speed if speed else 0:,.0f} s left    ",
                      end="\r" if on_screen else "\n", file=sys.stderr, flush=True)
                due, shown = now + (0.2 if on_screen else 5), True
            yield item
    finally:
        if shown and on_screen:
            print(file=sys.stderr)


# ---- NSynth's layout: examples.json beside audio/ ----


def _read_folder(folder):
    """Every Entry of a folder or, where it holds no examples.json itself, of its sub-folders."""
    here = folder / "examples.json"
    files = [here] if here.is_file() else sorted(folder.glob("*/examples.json"))
    if not files:
        what = "holds no examples.json" if folder.is_dir() else "is not a folder"
        raise NoteError(f"{folder} {what}: expected NSynth's layout (examples.json beside a folder "
                        "audio/ of WAV files), or the word orchestra for the built-in notes")
    entries = [entry for file in files for entry in _read_examples(file)]
    name, count = Counter(entry.name for entry in entries).most_common(1)[0]
    if count > 1:  # it could land in both splits, and flatter every number on held-out notes
        raise NoteError(f"note {name} is in {count} sub-folders of {folder}: keep it in one")
    return entries


def _read_examples(path):
    """The entries of one examples.json."""
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NoteError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise NoteError(f"{path} is not JSON ({error}): fetch or unpack it again") from None
    if not isinstance(examples, dict) or not examples:
        raise NoteError(f"{path} holds no notes: expected an object such as "
                        '{"guitar_acoustic_000-060-100": {"pitch": 60, ...}, ...}')
    return [_read_entry(path, name, about) for name, about in examples.items()]


def _read_entry(path, name, about):
    """One note of examples.json, its fields checked."""
    if not name or Path(name).name != name or not name.isprintable():  # it becomes a file's name
        raise NoteError(f"{path}: {name!r} is no name for a note: expected one like "
                        "guitar_acoustic_000-060-100")

    def get(key, kind, low=0, high=0):
        value = about.get(key) if isinstance(about, dict) else None
        if type(value) is not kind or kind is int and not low <= value <= high:
            raise NoteError(f"{path}: field {key} of note {name} is "
                            f"{'missing' if value is None else repr(value)}: expected "
                            f"{'a string' if kind is str else f'a whole number, {low} to {high}'}")
        return value

    return Entry(name, get("pitch", int, 0, 127), get("instrument_family_str", str),
                 get("instrument_source_str", str), get("sample_rate", int, 1, 10 ** 6),
                 path.parent / "audio" / f"{name}.wav")


def _fetch(entry, length, sample_rate):
    """The samples (int16) of an entry's WAV file, resampled where its rate is another."""
    samples, rate = read_wav(entry.origin, entry.rate)
    if rate == sample_rate:
        return samples
    common = math.gcd(rate, sample_rate)
    samples = scipy.signal.resample_poly(samples.astype(np.float32), sample_rate // common,
                                         rate // common)
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


def save(notes, folder, progress=True):
    """Write Notes in NSynth's layout, so that they can be listened to, and loaded again.

    Refuses a folder that holds anything (NoteError). examples.json comes last: a folder that has
    one is complete.
    """
    folder, examples = Path(folder), {}
    try:
        if folder.exists() and any(folder.iterdir()):
            raise NoteError(f"{folder} is not empty: name a new folder to write to")
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        for i in _progress(range(len(notes)), "notes written", progress):
            name = str(notes.name[i])
            write_wav(folder / "audio" / f"{name}.wav", notes.waves([i])[0], notes.sample_rate)
            examples[name] = {
                "note_str": name, "pitch": int(notes.pitch[i]), "sample_rate": notes.sample_rate,
                "instrument_family_str": str(notes.family[i]),
                "instrument_source_str": str(notes.source[i])}
        (folder / "examples.json").write_text(json.dumps(examples, indent=1), encoding="utf-8")
    except OSError as error:
        raise NoteError(f"cannot write to {folder}: {error.strerror}") from None


# ---- 2. Order ---------------------------------------------------------------------------------


def pitch_counts(notes, pitch_range) -> torch.Tensor:
    """How many notes there are of each pitch of the range: (P,) int64, P = high - low + 1."""
    low, high = pitch_range
    inside = notes.pitch[(notes.pitch >= low) & (notes.pitch <= high)]
    return torch.from_numpy(np.bincount(inside - low, minlength=high - low + 1).astype(np.int64))


def draw_pitches(counts, n, generator=None) -> torch.Tensor:
    """n pitch labels for fakes: (n,) int64, 0 for the lowest pitch, as often as `counts` has them.

    As the released code: D then sees each pitch as often among the fakes as among the real notes.
    """
    if counts.sum() <= 0:
        raise NoteError("no notes to draw pitches from: every count is 0")
    return torch.multinomial(counts.double(), n, replacement=True, generator=generator)


def epoch_order(position, n, count, seed) -> np.ndarray:
    """The notes (indices, (n,) int64) at positions position .. position + n - 1 of training.

    Training reads an endless stream in which each epoch is a new shuffle of all `count` notes,
    seeded by (seed, epoch). So the number of examples seen says what comes next, and a run that is
    resumed goes on with exactly the notes it would have had.

    The shuffle is over the whole set on purpose. NSynth's records are ordered by instrument, and
    reading them through a 1,000-note shuffle buffer showed the networks one or two instruments at a
    time: no diversity after four days (magenta issue 1732).
    """
    if position < 0 or count < 1:
        raise NoteError(f"position {position} in a stream of {count} notes: expected a position "
                        "of 0 or more and at least one note")
    pieces = [np.empty(0, np.int64)]
    while n > 0:
        epoch, offset = divmod(position, count)
        piece = _shuffle(count, seed, epoch)[offset:offset + n]
        pieces.append(piece)
        position, n = position + len(piece), n - len(piece)
    return np.concatenate(pieces)


@functools.lru_cache(maxsize=2)  # a step needs one epoch's shuffle, or two where it straddles
def _shuffle(count, seed, *more):
    """A permutation of `count`, the same for the same whole numbers."""
    if seed < 0:
        raise NoteError(f"seed {seed}: expected a whole number, 0 or more")
    return np.random.default_rng([seed, *more]).permutation(count)


# ---- 3. WAV files -----------------------------------------------------------------------------


def read_wav(path, sample_rate=None):
    """A 16-bit mono WAV file: ((L,) int16, its rate in Hz). Any fault is a NoteError.

    With `sample_rate`, a file of another rate is a fault too.
    """
    try:
        with open(path, "rb") as file, open_wave(file) as wav:
            channels, width, rate, frames = wav.getparams()[:4]
            data = wav.readframes(frames)
    except OSError as error:
        raise NoteError(f"cannot read {path}: {error.strerror}") from None
    except (WaveError, EOFError, RuntimeError) as error:
        raise NoteError(f"{path} is not a WAV file of 16-bit PCM mono "
                        f"({str(error) or 'it ends too early'}): convert or fetch it again"
                        ) from None
    if (channels, width) != (1, 2):
        raise NoteError(f"{path} has {channels} channels of {8 * width}-bit samples: expected one "
                        "of 16 bits (mono PCM), so convert it")
    if rate < 1 or rate != (sample_rate or rate):
        raise NoteError(f"{path} has a sample rate of {rate} Hz: expected "
                        f"{sample_rate or 'one above 0'}, as its examples.json says; convert it")
    if frames == 0:
        raise NoteError(f"{path} is empty: expected at least one sample, so fetch it again")
    if len(data) != 2 * frames:
        raise NoteError(f"{path} is cut short: its header promises {frames:,} samples and "
                        f"{len(data) // 2:,} are there, so fetch or unpack it again")
    return np.frombuffer(data, "<i2").astype(np.int16), rate


def write_wav(path, wave, sample_rate):
    """Write a wave, (L,) float in [-1, 1] (beyond that it is clipped), as 16-bit mono.

    The inverse of `read_wav(...)[0] / 32768`. Never leaves half a file: it is written beside its
    place and renamed. NoteError for NaN, infinities, other shapes, and places one cannot write to.
    """
    x = torch.as_tensor(wave).detach().cpu()
    if x.ndim != 1 or not len(x) or not x.is_floating_point():
        raise NoteError(f"cannot write {path}: expected a wave of floats with one axis, not "
                        f"{x.dtype} of shape {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise NoteError(f"cannot write {path}: the wave holds NaN or infinity, so what made it "
                        "has gone astray")
    samples = (x.double() * 32768).round().clamp(-32768, 32767).numpy().astype("<i2")
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with open(beside, "wb") as file, open_wave(file, "wb") as wav:
                wav.setparams((1, 2, sample_rate, len(samples), "NONE", None))
                wav.writeframes(samples.tobytes())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)  # still there only if something went wrong
    except OSError as error:
        raise NoteError(f"cannot write {path}: {error.strerror}") from None


# ---- 4. Orchestra -----------------------------------------------------------------------------
#
# Additive synthesis: a note is a sum of partials, f_k = k f0 for anything that is kept going by a
# bow, a breath or a bellows. What makes a timbre is how strong each partial is, how it starts and
# how it dies. Two facts give the notes their character. The partials of a string or pipe follow
# the pitch, but the box, bell or throat around it has resonances at fixed Hz, so an instrument's
# spectrum changes over its range. And what rings by itself loses its high partials first.
#
# The two tables below are the orchestra. Their common columns: `tilt` is how many dB are lost per
# octave above the fundamental, `corner` the Hz above which 12 more are lost, and `body` the
# resonances as (Hz, octaves wide, dB). The figures are chosen by hand to suggest each instrument.


class Ringing(NamedTuple):
    """An instrument struck or plucked once, then left to ring until a damper falls."""
    name: str
    tilt: float
    corner: float
    pluck: float      # where along the string, 0-1: harmonics with a node there are missing
    stiff: float      # inharmonicity B of f_k = k f0 sqrt(1 + B k^2), at middle C
    loss: float       # decay, 1/s, of a partial at 0 Hz ...
    loss_khz: float   # ... and what each kHz adds to it
    damper: float     # seconds for the damped sound to fall to 1/e
    thump: float      # noise of hammer, nail or mallet, dB
    thump_hz: float
    body: tuple
    modes: tuple = () # partials of a bar as (ratio, dB), in place of a string's


class Held(NamedTuple):
    """An instrument that is fed with energy for as long as its note is held."""
    name: str
    tilt: float
    corner: float
    even: float       # level of even harmonics, dB: a pipe closed at one end has hardly any
    attack: float     # seconds to full level ...
    bloom: float      # ... and to full brightness
    release: float    # seconds to fall to 1/e
    vibrato: float    # cents either way
    breath: float     # noise of breath or bow while it sounds, dB ...
    chiff: float      # ... and at its start
    noise_hz: float
    body: tuple


RINGING = (
    #                               tilt corner pluck stiff loss /kHz damper thump    Hz
    Ringing("guitar_acoustic_000",     5,  2200,  .21, 2e-5,  .8, 1.8,   .05,  -28,  400,
            ((105, .35, 9), (210, .3, 8), (420, .4, 4))),  # nylon guitar
    Ringing("string_acoustic_002",     8,  3000,  .47, 1e-5,  .6, 1.1,   .50,  -40,  900,
            ((190, .7, 5), (700, .8, 3))),  # harp
    Ringing("bass_acoustic_000",       7,   900,  .14, 4e-5, 1.8, 4.0,   .08,  -26,  180,
            ((65, .4, 8), (110, .3, 9), (230, .4, 5))),  # double bass, plucked
    Ringing("keyboard_acoustic_001",   1,  5500,  .11, 1e-5,  .9,  .6,   .04,  -24, 2500,
            ((150, .5, 4), (900, .6, 5), (3200, .6, 7))),  # harpsichord
    Ringing("keyboard_acoustic_000",   6,  2600,  .12, 2e-4,  .5,  .8,   .09,  -30,  250,
            ((110, .6, 6), (300, .9, 4), (1300, .8, 3))),  # piano
    Ringing("mallet_acoustic_000",     0,  6000,    0,    0, 3.0, 6.0,   .30,  -26,  700,
            ((300, .9, 3),), ((1, 0), (3.93, -13), (9.2, -22), (16.2, -32))),  # marimba
    Ringing("mallet_acoustic_001",     0,  8000,    0,    0,  .5,  .5,   .12,  -36, 2200,
            ((500, .9, 3),), ((1, 0), (4.0, -17), (10.1, -20), (17.6, -34))),  # vibraphone
    Ringing("mallet_acoustic_002",     0,  7000,    0,    0, 1.2, 2.2,   .25,  -22, 1500,
            ((420, .4, 6), (900, .4, 4)), ((1, 0), (5.4, -20), (6.3, -21), (14.7, -30))),  # kalimba
)

HELD = (
    #                          tilt corner even attack bloom release vib breath chiff    Hz
    Held("string_acoustic_000",   5,  4500,   0,   .09,  .18,    .12, 11,   -42,  -24, 3000,
         ((280, .2, 8), (460, .2, 8), (700, .25, 5), (2600, .5, 9))),  # violin
    Held("string_acoustic_001",   6,  2200,   0,   .12,  .22,    .16,  9,   -44,  -26, 1200,
         ((100, .3, 7), (190, .25, 8), (400, .3, 7), (1500, .5, 5))),  # cello
    Held("flute_acoustic_000",   11,  3500,  -2,   .07,  .12,    .07,  7,   -34,  -24, 2200,
         ((600, .6, 4), (1500, .6, 4))),  # flute
    Held("flute_acoustic_001",   14,  3000, -18,   .04,  .05,    .06,  0,   -26,  -12, 1300,
         ((900, .7, 5),)),  # pan pipe
    Held("reed_acoustic_000",     4,  1900, -24,   .05,  .09,    .06,  0,   -46,  -30, 1800,
         ((1500, .5, 6), (3200, .5, 5))),  # clarinet
    Held("reed_acoustic_001",     2,  4000,   0,   .04,  .06,    .05,  8,   -48,  -28, 2500,
         ((250, .5, -6), (1150, .4, 13), (3000, .35, 9))),  # oboe
    Held("brass_acoustic_000",    2,  2600,   0,   .04,  .16,    .06,  5,   -48,  -24, 2500,
         ((1200, .6, 10), (2300, .5, 5))),  # trumpet
    Held("brass_acoustic_001",    5,   900,   0,   .08,  .25,    .10,  0,   -50,  -30,  700,
         ((420, .5, 9), (750, .4, 5))),  # horn
    Held("organ_acoustic_000",    8,  6000,   4,   .05,  .05,    .09,  0,   -50,  -20, 1600,
         ((500, 1., 2), (3000, .6, 4))),  # principal
    Held("organ_acoustic_001",    1,  3200,  -3,   .03,  .04,    .07,  0,   -54,  -30,  900,
         ((650, .5, 7), (1900, .5, 8))),  # reed pipe
    Held("vocal_acoustic_000",    7,  5000,   0,   .10,  .15,    .12, 12,   -40,  -34, 2500,
         ((700, .25, 16), (1150, .22, 14), (2700, .25, 18))),  # voice, ah
    Held("vocal_acoustic_001",    8,  5000,   0,   .12,  .18,    .14, 10,   -40,  -36, 1500,
         ((320, .3, 14), (800, .2, 12), (2400, .2, 14))),  # voice, oo
)

VELOCITIES = {50: 0.5, 100: 1.0}  # MIDI velocity and how hard that is; softer is quieter and duller
PARTIALS = 120                    # at most: up to 4 kHz for the lowest note
HOLD = 0.75                       # of a note's length, as NSynth: held for 3 s of 4
EDGE = 0.02                       # seconds over which the very end is faded, against a click


def orchestra(length, sample_rate, pitch_range=(24, 84), progress=False) -> Notes:
    """Every built-in timbre at every pitch of the range and two velocities, (N, length) samples.

    Made by formula and the same at every call. Raises NoteError where a pitch is too high for the
    sample rate.
    """
    return load("orchestra", length, sample_rate, pitch_range, progress=progress)


def _orchestra_entries(sample_rate, pitch_range):
    low, high = pitch_range
    if _hertz(high) > 0.4 * sample_rate:
        raise NoteError(f"pitch {high} is {_hertz(high):.0f} Hz, too high for the orchestra at "
                        f"{sample_rate} Hz: ask for lower pitches or a higher sample rate")
    return [Entry(f"{timbre.name}-{pitch:03}-{velocity:03}", pitch, timbre.name.split("_")[0],
                  "acoustic", sample_rate, (timbre, velocity))
            for timbre in RINGING + HELD for pitch in range(low, high + 1)
            for velocity in VELOCITIES]


def _hertz(pitch):
    return 440 * 2 ** ((pitch - 69) / 12)


def _play(entry, length, sample_rate):
    """One note of the orchestra: (length,) int16."""
    timbre, velocity = entry.origin
    force = VELOCITIES[velocity]
    rng = np.random.default_rng(zlib.crc32(entry.name.encode()))  # chance, but the same every time
    t = np.arange(length, dtype=np.float32) / np.float32(sample_rate)   # (L,)  seconds
    method = _ring if isinstance(timbre, Ringing) else _hold
    x = method(timbre, _hertz(entry.pitch), force, t, sample_rate, rng) # (L,)
    x *= _rise((t[-1] - t) / EDGE)
    level = rng.uniform(0.6, 0.8) * force ** 0.8                        # 0.34-0.8 of full scale
    return np.rint(x * (32767 * level / max(np.abs(x).max(), 1e-9))).astype(np.int16)


def _ring(timbre, f0, force, t, sample_rate, rng):
    """A struck or plucked note: damped partials, a damper, and the thump of what set it going."""
    if timbre.modes:
        ratio, level = np.array(timbre.modes, dtype=float).T            # (K,) (K,)
    else:  # a stiff string's partials are sharp, the more so the shorter it is; / sqrt(1 + B) keeps
        k, B = np.arange(1, PARTIALS + 1), timbre.stiff * f0 / 261.6    # the first of them in tune
        ratio = k * np.sqrt((1 + B * k ** 2) / (1 + B))                 # (K,)
        level = 20 * np.log10(np.abs(np.sin(np.pi * k * timbre.pluck)) + 0.03)
    f = f0 * ratio
    level = level + _spectrum(timbre, ratio, f, force, rng)             # (K,)  dB
    heard = (f < 0.48 * sample_rate) & (level > level.max() - 70)
    f, a = f[heard], 10 ** (level[heard] / 20)
    x = _damped_sines(f, a, timbre.loss + timbre.loss_khz * f / 1000, len(t), sample_rate)
    x *= _rise(t / 0.002) * _fall(t, timbre.damper)                     # 2 ms: finger, hammer
    n = min(len(t), sample_rate // 4)                                   # the thump is over by then
    thump = _noise(rng, n, sample_rate, timbre.thump_hz) * np.exp(-t[:n] / 0.015)
    x[:n] += np.abs(x).max() * 10 ** (timbre.thump / 20) * force * thump * _rise(t[:n] / 0.002)
    return x


def _hold(timbre, f0, force, t, sample_rate, rng):
    """A bowed, blown or sung note: one period read over and over, and the noise of breath or bow.

    All harmonics move together, so one period drawn once into a table is enough, read at a phase
    that carries the vibrato. Two tables, a dull and a bright one: high harmonics start later, and
    sway with the vibrato as they slide along the body's resonances.
    """
    k = np.arange(1, 1 + min(PARTIALS, int(0.48 * sample_rate / f0)))
    level = timbre.even * (k % 2 == 0) + _spectrum(timbre, k, k * f0, force, rng)
    start = np.random.default_rng(zlib.crc32(timbre.name.encode())).uniform(0, 1, PARTIALS)[:len(k)]
    dull, bright = (_period(k, 10 ** (dB / 20), start) for dB in (level - 6 * np.log2(k), level))

    sway = np.sin(2 * np.pi * rng.uniform(5.0, 5.8) * t, dtype=np.float32) * _rise((t - 0.4) / 0.6)
    bend = (2 ** (timbre.vibrato / 1200) - 1) * sway                    # (L,)  of the frequency
    phase = np.cumsum(1 + bend, dtype=float) * f0 / sample_rate         # (L,)  cycles
    shine = _rise(t / timbre.bloom) * (1 + 0.01 * timbre.vibrato * (sway - 1))  # (L,)  0 .. 1
    x = _read(dull, phase) + _read(bright - dull, phase) * shine        # (L,)

    noise = _noise(rng, len(t), sample_rate, timbre.noise_hz)
    noise *= 10 ** (timbre.breath / 20) + 10 ** (timbre.chiff / 20) * np.exp(-t / 0.03)
    x += np.sqrt(np.mean(bright ** 2)) * noise
    return x * _rise(t / timbre.attack) * _fall(t, timbre.release)


def _spectrum(timbre, ratio, f, force, rng):
    """Level in dB of the partials at `ratio` times f0, which is `f` Hz: (K,).

    Softer is duller. The last term: no two strings or keys of an instrument are quite alike.
    """
    soft = 1 - force                                                    # 0 at full velocity
    level = -(timbre.tilt + 6 * soft) * np.log2(ratio)
    level -= 10 * np.log10(1 + (f / (timbre.corner * (1 - soft / 2))) ** 4)
    for hz, octaves, dB in timbre.body:
        level += dB * np.exp(-0.5 * (np.log2(f / hz) / octaves) ** 2)
    return level + rng.uniform(-1.5, 1.5, len(ratio))


def _damped_sines(f, a, loss, length, sample_rate):
    """Sum over partials of a exp(-loss t) sin(2 pi f t), (length,), as one matrix product.

    A damped sine is the imaginary part of exp(s t). With t = (row * 256 + column) / rate that is a
    product of one factor per row and one per column, so all partials of all samples come from
    (rows, 2K) @ (2K, 256), with no sine per sample.
    """
    s = (2j * np.pi * f - loss) / sample_rate                           # (K,)  per sample
    rows = np.exp(np.outer(256 * np.arange(-(-length // 256)), s)) * a  # (rows, K)
    columns = np.exp(np.outer(s, np.arange(256)))                       # (K, 256)
    # Im(uv) = Re u Im v + Im u Re v. In float64, so that the int16 notes are the same whatever the
    # number of threads, which changes the order in which a product is added up.
    x = np.hstack([rows.real, rows.imag]) @ np.vstack([columns.imag, columns.real])
    return x.reshape(-1)[:length].astype(np.float32)


def _period(k, a, start, points=4096):
    """One period of sum a sin(2 pi (k x + start)), x in [0, 1): (points,) float32."""
    spectrum = np.zeros(points // 2 + 1, complex)
    spectrum[k] = a * np.exp(2j * np.pi * start) * points / 2j
    return scipy.fft.irfft(spectrum).astype(np.float32)


def _read(period, phase):
    """A period of M = 2^m points read at phase (L,) in cycles, by straight lines between points."""
    place = phase * len(period)                                         # (L,)  in points
    left = place.astype(np.int64)
    rest = (place - left).astype(np.float32)
    left &= len(period) - 1                                             # whole cycles do not matter
    return period[left] + rest * (np.roll(period, -1) - period)[left]


def _noise(rng, length, sample_rate, hz):
    """Noise of unit power, (length,) float32, in a band 1.5 octaves or so around `hz`."""
    bins = length // 2 + 1
    f = np.maximum(np.arange(bins, dtype=np.float32), 1) * np.float32(sample_rate / length)
    parts = rng.standard_normal((2, bins), dtype=np.float32)            # real, imaginary
    parts *= np.exp(-np.log2(f / np.float32(hz)) ** 2)
    x = scipy.fft.irfft(parts[0] + 1j * parts[1], length)               # (L,)
    return x / np.sqrt(np.mean(x ** 2))


def _rise(x):
    """From 0 at x <= 0 to 1 at x >= 1 along a sine squared, which has no corner at either end."""
    return np.sin(np.clip(x, 0, 1) * np.float32(np.pi / 2)) ** 2


def _fall(t, seconds):
    """1 while the note is held, then falling to 1/e within `seconds`."""
    return np.exp(np.minimum(0, (HOLD * t[-1] - t) / np.float32(seconds)))


# ---- python nsynth.py -------------------------------------------------------------------------


def _span(text):
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _names(text):
    return () if text == "all" else tuple(text.split(","))


def main(argv=None):
    """The command line. Returns the exit status: 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description="Say which notes a folder holds, or write them.")
    parser.add_argument("data", nargs="?", default="orchestra",
                        help="a folder in NSynth's layout, or: orchestra (default)")
    parser.add_argument("--length", type=Fraction, default=4, metavar="SECONDS",
                        help="of each note (default 4)")  # a Fraction: unlike float, it has no nan
    parser.add_argument("--rate", type=int, default=16000, help="samples a second (default 16000)")
    parser.add_argument("--pitches", type=_span, default=(24, 84), metavar="LOW-HIGH",
                        help="MIDI pitches (default 24-84)")
    parser.add_argument("--sources", type=_names, default=("acoustic",), metavar="NAMES",
                        help="comma-separated, or: all (default acoustic)")
    parser.add_argument("--families", type=_names, default=(), metavar="NAMES",
                        help="comma-separated, or: all (default all)")
    parser.add_argument("--out", metavar="DIR", help="write the notes there, in NSynth's layout")
    args = parser.parse_args(argv)
    try:
        notes = load(args.data, round(args.length * args.rate), args.rate, args.pitches,
                     args.sources, args.families)
        print(describe(*split(notes)))
        if args.out:
            save(notes, args.out)
    except NoteError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
