"""Notes: where they come from, which are kept, and in what order training reads them (paper 3.1).

A note is what NSynth calls one: an instrument playing one pitch at one velocity, held for three
seconds and released for one. GANSynth learns from the 70,379 of them that are acoustic and lie
between MIDI 24 and 84, shuffled and split again 80/20. That comes first: `Notes`, `load`, `split`,
the order of training, a report. Behind the ruled line is where notes come from, form by form, how
they are packed, WAV files in and out, MIDI files, and an orchestra made by formula.

`python nsynth.py [DATA]` says what a folder, or the orchestra, holds; `--out DIR` writes it as WAV
files. Shapes: N notes, L samples, n notes of a batch, P pitches, K partials.
"""

import signal
import sys

if __name__ == "__main__":                # Ctrl-C while the packages load: no traceback
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import csv
import functools
import glob
import gzip
import io
import json
import math
import os
import re
import shutil
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io.wavfile
import scipy.signal
import torch

FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string",
            "synth_lead", "vocal")
SOURCES = ("acoustic", "electronic", "synthetic")
QUALITIES = ("bright", "dark", "distortion", "fast_decay", "long_release", "multiphonic",
             "nonlinear_env", "percussive", "reverb", "tempo-synced")


class NoteError(ValueError):
    """Notes that cannot be read, made or written: one sentence saying what to do about it."""

    def __init__(self, text):
        super().__init__(_printable(text))


@dataclass(frozen=True)
class Notes:
    """N notes of one length and one sample rate, and what is known of each.

    The audio stays int16, as in the files; `waves` converts a batch. It may lie on disk, memory-
    mapped; `row` says which of its rows is which note's, so that a subset copies no sound.
    """
    audio: np.ndarray     # (M, L) int16, M >= N
    row: np.ndarray       # (N,) int64, of audio
    pitch: np.ndarray     # (N,) int64, MIDI
    family: np.ndarray    # (N,) str, NSynth's family names
    source: np.ndarray    # (N,) str: acoustic, electronic, synthetic
    name: np.ndarray      # (N,) str: NSynth's note_str, e.g. guitar_acoustic_000-060-100
    part: np.ndarray      # (N,) str: train, valid or test where the data is split already, or ""
    qualities: np.ndarray  # (N, 10) int8: 1 has it, 0 has it not, -1 where the data do not say
    sample_rate: int
    dropped: dict = field(default_factory=dict)  # what was left out: reason -> count
    crc: np.ndarray = None  # (N,) int64, CRC-32 of each note's bytes where they lie on disk
    file: str = ""          # the file they lie in

    def __len__(self):
        return len(self.name)

    def waves(self, indices) -> torch.Tensor:
        """The notes at `indices` (a sequence of n) as (n, L) float32 in [-1, 1).

        NoteError where what was read from disk is not what was packed.
        """
        indices = np.asarray(indices, dtype=np.int64)
        audio = self.audio[self.row[indices]]                           # (n, L)  a copy
        for i, samples in zip(indices, audio if self.crc is not None else ()):
            if zlib.crc32(samples) != self.crc[i]:
                raise NoteError(f"{self.file}: note {self.row[i]} ({self.name[i]}) is damaged: "
                                "delete its folder, and it will be packed again")
        return torch.from_numpy(audio.astype(np.float32) / 32768)

    def subset(self, indices) -> "Notes":
        """The notes at `indices`, in that order, as Notes; the audio is shared."""
        i = np.asarray(indices, dtype=np.int64)
        columns = ("row", "pitch", "family", "source", "name", "part", "qualities", "crc")
        return replace(self, **{c: getattr(self, c)[i] for c in columns
                                if getattr(self, c) is not None})


def load(data, length, sample_rate, pitch_range=(24, 84), sources=("acoustic",), families=(),
         progress=True, skip_damaged=False, pack="") -> Notes:
    """The notes at `data`, resampled to `sample_rate` Hz and cut or padded to `length` samples.

    data: "orchestra" for the built-in notes; a folder in NSynth's layout, of TFRecords, of TFDS, or
    of your own WAV files; a TFRecord file, or a pattern such as "nsynth/*.tfrecord"; or a folder
    packed before. All but the built-in notes are packed on first use, beside the data or in the
    folder `pack`. Notes are pooled, since the paper splits again. Empty `sources` or `families`
    mean all. NoteError for any file that is not as it should be, unless `skip_damaged`: then the
    notes lost are counted in `dropped`; and when nothing is left. `progress`: shown on stderr.
    """
    wish = Wish(length, sample_rate, tuple(pitch_range), tuple(sources), tuple(families))
    if str(data) != "orchestra":
        return _load_packed(str(data), wish, progress, skip_damaged, pack)
    dropped = Counter()
    kept = list(_wanted(_read_orchestra(wish), data, wish, dropped, None, progress))
    return _table(np.stack([samples for _, samples in kept]), [entry[:6] for entry, _ in kept],
                  wish, dropped)


def split(notes, seed=0, share=0.8, by="random"):
    """(train, held_out): which notes to train on.

    by "random": a seeded shuffle of the notes, the first `share` of them for training. paper: notes
    are shuffled, not instruments, so that the networks hear every timbre; NSynth's own split holds
    out whole instruments.
    by "folders": as the data itself is split; valid and test are held out.
    by a CSV file's path: as a published list says, with columns id and split, or with ids alone,
    which are then those to train on; notes it does not name are in neither.
    """
    if by == "random":
        order = _shuffle(len(notes), seed)
        cut = round(share * len(notes))
        return notes.subset(order[:cut]), notes.subset(order[cut:])
    part = notes.part
    if by != "folders":
        listed = _read_ids(by)
        part = np.array([listed.get(name, "") for name in notes.name])
    train = np.flatnonzero(part == "train")
    if len(train) == 0:
        raise NoteError(f"no note is in the training part by {by!r}: expected data whose folders "
                        "are split (nsynth-train, ...), or a CSV list of note ids; or split by "
                        "random")
    return notes.subset(train), notes.subset(np.flatnonzero((part != "train") & (part != "")))


def pitch_counts(notes, pitch_range) -> torch.Tensor:
    """How many notes there are of each pitch of the range: (P,) int64, P = high - low + 1."""
    low, high = pitch_range
    inside = notes.pitch[(notes.pitch >= low) & (notes.pitch <= high)]
    return torch.from_numpy(np.bincount(inside - low, minlength=high - low + 1).astype(np.int64))


def draw_pitches(counts, n, generator=None) -> torch.Tensor:
    """n pitch labels for fakes: (n,) int64, 0 for the lowest pitch, as often as `counts` has them,
    as the released code: D then sees each pitch as often among fakes as among real notes."""
    return torch.multinomial(counts.double(), n, replacement=True, generator=generator)


def epoch_order(position, n, count, seed) -> np.ndarray:
    """The notes (indices, (n,) int64) at positions position .. position + n - 1 of training.

    Training reads an endless stream in which each epoch is a new shuffle of all `count` notes,
    seeded by (seed, epoch). So the number of examples seen says what comes next, and a run that is
    resumed goes on with exactly the notes it would have had. Of R processes (ranks) that train
    together with n notes each, rank r takes the n from position + r n, and the next step begins at
    position + R n.

    The shuffle is over the whole set on purpose. NSynth's records are ordered by instrument, and
    reading them through a 1,000-note shuffle buffer showed the networks one or two instruments at a
    time: no diversity after four days (magenta issue 1732).
    """
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
    return np.random.default_rng([seed, *more]).permutation(count)


# The release's training notes of each pitch (TFDS nsynth/gansynth_subset), 24..84: 60,788.
# paper: 70,379 notes with those held out.
RELEASE_COUNTS = [0] * 24 + [int(count) for count in """
    551 545 561 550 549 578 547 628 626 630 670 668 751 768 788 801 821 871 873 860 873 844 883
    865 1058 1036 1094 1065 1186 1200 1187 1346 1273 1320 1263 1283 1349 1285 1281 1332 1286 1301
    1220 1300 1209 1257 1288 1223 1258 1183 1178 1125 1171 1089 1024 1081 966 1043 991 959 977
    """.split()] + [0] * 60


def describe(train, held_out, release=False) -> str:
    """What is in the two splits by source, family and pitch, and what was dropped; with `release`,
    beside the numbers of the paper and of the released code.

    Worth reading before training: a filter that kept electronic instead of acoustic notes cost
    users weeks (magenta issue 1607).
    """
    kept, lost = len(train) + len(held_out), sum(train.dropped.values())
    seconds = train.audio.shape[1] / train.sample_rate
    lines = [f"kept {kept:,} of {kept + lost:,} notes, {seconds:g} s at {train.sample_rate:,} Hz",
             *(f"  dropped {reason}" for reason in _reasons(train.dropped, 40)),
             f"{'':18}{'train':>9}{'held out':>10}",
             f"{'all':18}{len(train):9,}{len(held_out):10,}"]
    if release:
        lines += [f"{'paper: all':18}{0.8 * 70_379:9,.0f}{0.2 * 70_379:10,.0f}",
                  f"{'release: all':18}{sum(RELEASE_COUNTS[24:85]):9,}"]
    for column in ("source", "family"):
        mine, theirs = (Counter(getattr(part, column).tolist()) for part in (train, held_out))
        lines += [f"{f'{column} {value}':18}{mine[value]:9,}{theirs[value]:10,}"
                  for value in sorted(mine | theirs)]
    lines += ["pitch             " + "".join(f"{f'+{i}':>6}" for i in range(12))]
    tables = [pitch_counts(part, (0, 143)).tolist() for part in (train, held_out)]
    pitches = np.concatenate([train.pitch, held_out.pitch])
    for low in range(pitches.min(), pitches.max() + 1, 12):             # an octave a line
        for label, counts in zip((f"{low:5}  train", "       held out", "  release, train"),
                                 tables + [RELEASE_COUNTS] * release):
            lines += [f"{label:18}" + "".join(f"{n:6}" for n in counts[low:low + 12])]
    return "\n".join(lines)


# =================================================================================================
# Behind this line: where the notes come from. Nothing of it is needed to follow training.
# =================================================================================================

FORMS = ("a folder in NSynth's layout (examples.json beside a folder audio/ of WAV files), of "
         "TFRecords, of TFDS or of your own WAV files; a TFRecord file; or the word orchestra for "
         "the built-in notes")
RATES = range(1000, 384_001)      # samples a second that a file may have
LONGEST = 600                     # seconds that a note may last, and that are read of a file


@dataclass(frozen=True)
class Wish:
    """Which notes are wanted, and in what form. Empty `sources` or `families` mean all."""
    length: int           # samples a note
    sample_rate: int      # Hz
    pitch_range: tuple = (24, 84)
    sources: tuple = ("acoustic",)
    families: tuple = ()

    def __post_init__(self):
        low, high = self.pitch_range
        if not 0 <= low <= high <= 127:
            raise NoteError(f"pitch range {low}-{high}: expected MIDI numbers with 0 <= low <= "
                            "high <= 127, such as 24-84")
        if not (self.sample_rate >= 1 and 1 <= self.length <= LONGEST * self.sample_rate):
            raise NoteError(f"{self.length} samples at {self.sample_rate} Hz: expected at least "
                            f"one of each, and at most {LONGEST} seconds")
        for option, known in (("sources", SOURCES), ("families", FAMILIES)):
            for value in set(getattr(self, option)) - set(known):
                raise NoteError(f"unknown value {value!r} in {option}: expected some of "
                                f"{', '.join(known)}, or nothing for all")

    def why_not(self, pitch, family, source):
        """Why a note is not wanted (the first reason that applies), or None."""
        low, high = self.pitch_range
        if self.sources and source not in self.sources:
            return f"the source is not {' or '.join(self.sources)}"
        if not low <= pitch <= high:
            return f"the pitch is outside {low}-{high}"
        return "the family is none of those asked for" * (family not in (self.families or [family]))

    def fit(self, samples, rate):
        """Samples at their own rate -> (L,) int16 at ours: cut, resampled, cut or zero-padded."""
        if rate != self.sample_rate:      # its filter reaches ten samples of the slower rate
            ratio = Fraction(self.sample_rate, rate).limit_denominator(10_000)
            reach = self.length + 10 * max(1, self.sample_rate / rate)
            samples = samples[:math.ceil(reach / ratio) + 1].astype(np.float32)
            samples = scipy.signal.resample_poly(samples, ratio.numerator, ratio.denominator)
        samples = np.clip(np.rint(samples[:self.length]), -32768, 32767).astype(np.int16)
        return np.pad(samples, (0, self.length - len(samples)))         # (L,)


def progress_bar(items, what, wanted=True, total=None, each=1):
    """Yield the items; once that has taken two seconds, show on stderr how far it is.

    An item stands for `each` of `what`. `total`: how many items there are, if they have no len().
    """
    total = total or (len(items) if hasattr(items, "__len__") else 0)
    end, start, shown = "    \r" if sys.stderr.isatty() else "\n", time.monotonic(), 0
    for done, item in enumerate(items):
        seconds = time.monotonic() - start
        if wanted and seconds > max(2, shown + (5 if end == "\n" else 0.2)):
            left = f", {seconds * max(0, total / done - 1):,.0f} s left" if total and done else ""
            print(f"{done * each:,} {what}, {done * each / seconds:,.0f} a second{left}", end=end,
                  file=sys.stderr, flush=True)
            shown = seconds
        yield item
    if shown and end != "\n":
        print(file=sys.stderr)


# ---- Readers: from the files of one form to an Entry for every note in them -----------------
#
# What is wrong goes to fault(error), which raises it or, with skip_damaged, counts it; what is
# merely of no use is counted in `dropped`.

SOUNDS = (".wav", ".aif", ".aiff", ".caf", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wma")
AGAIN = "fetch the file again, or go on without what is damaged with --skip-damaged"


class Entry(NamedTuple):
    """One note as a reader finds it: what is said of it, and how to get its sound."""
    name: str
    pitch: int
    family: str
    source: str
    part: str             # train, valid, test or ""
    qualities: list       # ten of 0 and 1, as QUALITIES are ordered, or of -1 where not told
    origin: str           # file and record, for messages
    sound: Callable       # seconds that are needed -> (samples (L,), in int16's range; their rate)


def _wanted(entries, data, wish, dropped, fault, progress, total=None):
    """Yield (entry, its samples, (L,) int16) of those that are wanted, and count the others."""
    origins = {}
    for entry in progress_bar(entries, "notes read", progress, total):
        reason = wish.why_not(entry.pitch, entry.family, entry.source)
        try:
            if entry.name in origins:     # it could land in both splits, and flatter held-out notes
                raise NoteError(f"note {entry.name} is in {origins[entry.name]} and in "
                                f"{entry.origin}: keep it in one")
            if reason:
                dropped[reason] += 1
            else:                         # 0.1 s more, for the resampler
                yield entry, wish.fit(*entry.sound(wish.length / wish.sample_rate + 0.1))
                origins[entry.name] = entry.origin
        except NoteError as error:
            fault(error)
    if not origins:
        why = ", ".join(_reasons(dropped, 3))
        raise NoteError(f"none of the {sum(dropped.values()):,} notes of {data} is left: {why}; "
                        "change the sources, families or pitches asked for, or the files" if why
                        else f"{data} holds no notes: expected {FORMS}")


def _table(audio, rows, wish, dropped, **more):
    """Notes of audio, (N, L), and rows of (name, pitch, family, source, part, qualities)."""
    *columns, flags = (np.array(column) for column in zip(*rows))
    columns = dict(zip(("name", "pitch", "family", "source", "part"), columns))
    return Notes(audio, np.arange(len(audio)), **columns, qualities=flags.astype(np.int8),
                 sample_rate=wish.sample_rate, dropped=dict(dropped), **more)


def _reasons(dropped, most):
    """{"reason": 3, ...} -> ["3 because reason", ...], no more than `most` and one for the rest."""
    reasons = [f"{n:,} because {_printable(reason)}" for reason, n in dropped.items()]
    more = sum(list(dropped.values())[most:])
    return reasons[:most] + [f"{more:,} for other reasons"] * (more > 0)


def _printable(text):
    """Text as one line that can be shown and kept; a name that is no UTF-8 is read as Latin-1."""
    text = re.sub("[\udc80-\udcff]", lambda byte: chr(ord(byte[0]) - 0xdc00), text)
    return "".join(c if c.isprintable() else "?" for c in text)


def _find(data):
    """What is at a path or pattern: (reader, its files)."""
    path = Path(data)
    if not path.is_dir():
        files = [Path(name) for name in sorted(glob.glob(data)) if os.path.isfile(name)]
        if files and all(".tfrecord" in file.name for file in files):
            return _read_records, files
        raise NoteError(f"{data} is {'no data that can be read' if files else 'not there'}: "
                        f"expected {FORMS}")
    names = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    inside = [Path(name) for name in sorted(names) if os.path.isfile(name)]
    sounds = [file for file in inside if file.suffix.lower() in SOUNDS]
    examples = [path / "examples.json"] if (path / "examples.json").is_file() else sorted(
        path.glob("*/examples.json"))
    if examples:
        return _read_examples, examples + sounds

    def rank(folder):                     # this folder, or else the newest version TFDS made
        tfds = re.search(r"gansynth_subset[^/\\]*[/\\](\d+)\.(\d+)\.(\d+)$",
                         os.path.abspath(folder))
        return folder == path, [int(n) for n in tfds.groups()] if tfds else []

    folder = max((f.parent for f in inside if ".tfrecord" in f.name), key=rank, default=None)
    if folder and any(rank(folder)):
        return _read_records, [file for file in inside if file.parent == folder and (
            ".tfrecord" in file.name or file.name == "dataset_info.json")]
    return _read_recordings, [file for file in inside if file == path / "pitches.csv"] + sounds


def _read(path, parse):
    """What a text file holds, by a function that knows its form."""
    try:
        return parse(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise NoteError(f"cannot read {path} ({reason}): save, fetch or unpack it again") from None


def _rows(text):
    """The rows of CSV that are not empty, each a list of texts."""
    rows = csv.reader(io.StringIO(text, newline=""))
    return [[cell.strip() for cell in row] for row in rows if any(row)]


def _entry(about, part, origin, sound):
    """The Entry of a note, from a dict of what NSynth says about it; ValueError where that is not
    as it should be. `sound` still needs the rate."""
    words = ("note_str", "instrument_family_str", "instrument_source_str")
    name, family, source, pitch, rate, flags = (
        about.get(key) for key in (*words, "pitch", "sample_rate", "qualities"))
    checks = [(key, "a plain word", type(about.get(key)) is str and about[key].isprintable()
               and Path(about[key]).name == about[key] != "") for key in words] + [
        ("pitch", "a whole number, 0 to 127", type(pitch) is int and pitch in range(128)),
        ("sample_rate", "1000 to 384000", type(rate) is int and rate in RATES),
        ("qualities", "ten of 0 and 1, or no such field", flags is None or type(flags) is list and
         len(flags) == 10 and all(type(flag) is int and flag in (0, 1) for flag in flags))]
    for key, expected, right in checks:
        if not right:
            raise ValueError(f"field {key} of note {str(name)!r:.80} is {about.get(key)!r:.80}: "
                             f"expected {expected}")
    return Entry(name, pitch, family, source, part, flags or [-1] * 10, origin,
                 functools.partial(sound, rate))


def _read_examples(files, fault, dropped):
    """NSynth's layout: the notes of folders that hold an examples.json each, beside audio/. All
    sound files there are come last of `files`."""
    unnamed = {file for file in files if file.name != "examples.json"}
    for file in files[:len(files) - len(unnamed)]:
        examples = _read(file, json.loads)
        if not isinstance(examples, dict) or not examples:
            raise NoteError(f"{file} holds no notes: expected an object such as "
                            '{"guitar_acoustic_000-060-100": {"pitch": 60, ...}, ...}')
        part = file.parent.name.removeprefix("nsynth-")
        part = part if part in ("train", "valid", "test") else ""
        for name, about in examples.items():
            about = {**(about if isinstance(about, dict) else {}), "note_str": name}
            wav = file.parent / "audio" / f"{name}.wav"
            unnamed.discard(wav)
            try:
                entry = _entry(about, part, str(wav), functools.partial(read_sound, wav))
                # NSynth's names say it once more, which tells when a file has been damaged.
                said = re.fullmatch(r"(.+)_([a-z]+)_\d{3}-(\d{3})-\d{3}", name)
                if said and (said[1], said[2], int(said[3])) != (*entry[2:4], entry.pitch):
                    raise ValueError(f"note {name} is said to be {entry.family}, {entry.source}, "
                                     f"pitch {entry.pitch}: expected what its name says")
                yield entry
            except ValueError as error:
                fault(NoteError(f"{file}: {error}; {AGAIN}"))
    if unnamed:
        dropped[f"no examples.json names that file (such as {min(unnamed)})"] += len(unnamed)


# ---- TFRecord files: checksum, record, message, note ----------------------------------------
#
# A record of NSynth is a tf.train.Example, which is a protocol buffer; both are read from their
# bytes up, without TensorFlow.
#
# A CRC is the remainder of a division. The bits of a message are the coefficients of a polynomial,
# highest power first, in arithmetic where 1 + 1 = 0: adding is XOR. CRC-32C is what is left of it
# after division by a fixed polynomial P of degree 32: the XOR, over all bits that are 1, of the
# remainder of that bit alone, x^k mod P, which a table holds. To be fast, the message is shortened
# first. P divides x^5685 + x^1362 + x^426 + 1 (found by search), so any bit may be cleared if the
# three that lie 5685 - 1362, 5685 - 426 and 5685 places behind it are flipped instead. P divides
# that sum squared, too, which is itself with its exponents doubled (mixed terms cancel): squared
# three times it tells the same of bytes, six times of words of 64 bits, thousands in one XOR.

FOLD, NEAR, FAR = 5685, 5685 - 1362, 5685 - 426


def _crc32c(data) -> bytes:
    """The CRC-32C of bytes, as TFRecord writes it. (zlib's CRC divides by another P.)"""
    x = np.zeros((len(data) + 11) // 8 * 8, np.uint8)    # zeros in front change nothing; four bytes
    first = len(x) - 4 - len(data)                       # of them have to follow the message;
    x[first:-4] = np.frombuffer(data, np.uint8)
    x[first:first + 4] ^= 255                            # its first 32 bits are flipped
    for unit in (np.uint64, np.uint8):
        x = x.view(unit)
        for start in range(0, len(x) - FOLD, NEAR):      # so many at once do not reach each other
            head = x[start:min(start + NEAR, len(x) - FOLD)]
            for places in (NEAR, FAR, FOLD):
                x[start + places:][:len(head)] ^= head
        x = x[-FOLD:]
    bits = np.unpackbits(x, bitorder="little")           # the lowest bit of a byte is its first
    crc = int(np.bitwise_xor.reduce(bits * _remainders()[-len(bits):])) ^ 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)   # its mask


@functools.lru_cache(maxsize=1)
def _remainders():
    """x^k mod P as uint32, from k = 8 FOLD - 1 down to 0; the lowest bit is that of x^31."""
    table, power = np.empty(8 * FOLD, np.uint32), 1 << 31
    for k in range(1, len(table) + 1):
        table[-k] = power
        power = power >> 1 ^ (0x82F63B78 if power & 1 else 0)  # times x; x^32 is P's other terms
    return table


def _records(path, count, fault):
    """Yield (number from 1, payload) for every sound record of a file, plain or GZIP.

    A record is a length in bytes (uint64), the CRC of those 8 bytes, the payload and its CRC. After
    a damaged payload comes the next record; after a damaged length, or where the file breaks off,
    nothing says where that begins. `count`: how many there should be, or None where not known.
    """
    number = 0
    try:
        with open(path, "rb") as disk:
            zipped = disk.read(3) == b"\x1f\x8b\x08"     # or a length, but of 559,903 only
            disk.seek(0)
            file = gzip.open(disk) if zipped else disk
            while header := file.read(12):
                number, length = number + 1, int.from_bytes(header[:8], "little")
                if _crc32c(header[:8]) != header[8:]:
                    raise EOFError("the checksum of its length does not match, or breaks off")
                data = file.read(min(length, 1 << 22) + 4)    # 4 MB: 16 times a note of NSynth
                if len(data) != length + 4:
                    raise EOFError("the file breaks off inside it, or it is longer than any note")
                if _crc32c(data[:-4]) == data[-4:]:
                    yield number, memoryview(data)[:-4]
                else:
                    fault(NoteError(f"{path}, record {number}: its checksum does not match; "
                                    f"{AGAIN}"))
        if count not in (None, number):   # cut between two records a file looks whole
            fault(NoteError(f"{path} holds {number} records: expected {count}; {AGAIN}"))
    except (OSError, EOFError, zlib.error) as error:          # all three from GZIP, too
        reason = getattr(error, "strerror", None) or error
        fault(NoteError(f"{path}, record {number}: {reason}, so the rest of the file is lost; "
                        f"{AGAIN}"))


def _varint(data, at):
    """The whole number written at `at`, seven bits a byte, lowest first, and where it ends."""
    number = 0
    for i, byte in enumerate(data[at:at + 10]):
        number |= (byte & 127) << 7 * i
        if byte < 128:                    # the top bit says that another byte follows
            return number, at + i + 1
    raise ValueError("a number in it breaks off or does not end")


def _fields(message):
    """Yield (number, value as bytes) of each field of a protocol buffer's message.

    That is a row of tag, value, tag, value. A tag is 8 * the field's number + its wire type; all of
    an Example's are of type 2: a length, and that many bytes.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        size, at = _varint(message, at)
        if tag & 7 != 2 or size > len(message) - at:
            raise ValueError("its contents are no tf.train.Example")
        yield tag >> 3, message[at:at + size]
        at += size


def _features(payload):
    """The features of a tf.train.Example: {name: list of bytes or ints, or float32 array}.

    What the fields' numbers mean is agreed elsewhere:

        Example     1: Features                   Feature   one of  1: BytesList,
        Features    1: entry (repeated)                     2: FloatList, 3: Int64List
        entry       1: name, 2: Feature           ...List   1: value (repeated, or all in one)
    """
    found = {}
    for _, features in _fields(memoryview(payload)):
        for _, entry in _fields(features):
            pair, kind, values = {1: b"", 2: b"", **dict(_fields(entry))}, 1, []
            for kind, listed in _fields(pair[2]):
                values = [bytes(value) for _, value in _fields(listed)]
            if kind == 2:
                values = np.frombuffer(b"".join(values), "<f4")  # ValueError if the last one is cut
            elif kind == 3:
                packed, values, at = b"".join(values), [], 0
                while at < len(packed):
                    value, at = _varint(packed, at)
                    values.append(value)
            found[str(pair[1], "utf-8", "replace")] = values
    return found


def _read_records(files, fault, dropped):
    """The notes of TFRecord files, in NSynth's own schema or, if dataset_info.json is the first of
    the files, as TensorFlow Datasets (TFDS) has them; a split of which no file is there is none."""
    words, counts = {"family": FAMILIES, "source": SOURCES}, {}
    if files[0].name == "dataset_info.json":
        info, *files = files
        about = _read(info, json.loads)
        try:
            counts = {f"nsynth-{split['name']}.tfrecord-{i:05}-of-{len(split['shardLengths']):05}":
                      int(count) for split in about["splits"]
                      for i, count in enumerate(split["shardLengths"])}
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise NoteError(f"{info} is not TFDS's ({error!r}): fetch it again") from None
        for name in sorted(set(counts) - {file.name for file in files}):
            if any(file.name.startswith(name.split("-0")[0]) for file in files):
                fault(NoteError(f"{info.parent} lacks {name}; {AGAIN}"))
        words = {key: _read(info.with_name(f"instrument-{key}.labels.txt"), str.split)
                 for key in words}
    for path in files:
        part = re.match(r"nsynth-(train|valid|test)\.", path.name)
        for number, payload in _records(path, counts.get(path.name), fault):
            origin = f"{path}, record {number}"
            try:
                yield _note(_features(payload), words, part[1] if part else "", origin)
            except ValueError as error:
                fault(NoteError(f"{origin}: {error}; {AGAIN}"))


def _note(features, words, part, origin):
    """The Entry of one record. ValueError for what is missing or not as it should be.

    NSynth's own schema has note_str, instrument_family_str and so on; that of TFDS id,
    instrument/family (a place in `words`), a feature for each quality, and no sample rate.
    """
    about = {name.replace("instrument/", "instrument_"): str(values[0], "utf-8", "replace")
             if isinstance(values[0], bytes) else values[0]
             for name, values in features.items() if len(values) == 1}
    if "id" in about:
        about = {"note_str": about["id"], "sample_rate": 16000, **about}
    for what, known in words.items():
        place = about.get(f"instrument_{what}")
        if type(place) is int and place < len(known):
            about.setdefault(f"instrument_{what}_str", known[place])
    each = [about.get(f"qualities/{quality}") for quality in QUALITIES]
    about["qualities"] = features.get("qualities") if each == [None] * 10 else each
    floats = features.get("audio")
    if not isinstance(floats, np.ndarray) or not len(floats) or not np.isfinite(floats).all():
        raise ValueError("feature audio is not as it should be: expected floats, and at least one")

    def sound(rate, seconds):             # the floats are int16 / 32768, exactly
        samples = np.rint(np.clip(floats, -1, 32767 / 32768) * 32768).astype(np.int16)
        return samples, rate

    return _entry(about, part, origin, sound)


def _read_ids(path):
    """A published list of notes, in CSV: {name: its split, or train where the list tells none}.
    Names are in the column headed id or note_str, else in the first; splits in one headed split."""
    rows, ids, a_note = _read(path, _rows), {}, r"[^/]+-\d{3}-\d{3}"
    if rows and re.fullmatch(a_note, rows[0][0]):         # a list may have no heading
        rows = [["id"], *rows]
    for row in rows[1:]:
        cells = dict(zip(map(str.lower, rows[0]), row))
        name = cells.get("id", cells.get("note_str", row[0]))
        where = cells.get("split", "train" * ("split" not in map(str.lower, rows[0])))
        if not re.fullmatch(a_note, name) or ids.setdefault(name, where) != where or not where:
            raise NoteError(f"{path}: {','.join(row)[:80]!r} names no note and its split, or one "
                            "that is in another: expected guitar_acoustic_000-060-100,train")
    if not ids:
        raise NoteError(f"{path} names no notes: expected a column headed id")
    return ids


# ---- Your own recordings: a folder of WAV files ---------------------------------------------

def _read_recordings(files, fault, dropped):
    """The notes of WAV files of any kind: the pitch from their names, or from pitches.csv. A file
    that cannot be used is left out, and counted: people's own folders hold other things as well."""
    sounds = [file for file in files if file.name != "pitches.csv"]
    pitches = _read_pitches(files[0], sounds) if len(sounds) < len(files) else {}
    root = os.path.commonpath([file.parent for file in sounds]) if sounds else ""
    for file in sounds:
        place = file.relative_to(root)
        pitch = pitches.get(_printable(file.stem), pitch_of(file.stem))
        if file.suffix.lower() != ".wav":
            dropped[f"it is a {file.suffix} file: convert it to WAV, with ffmpeg or sox"] += 1
        elif pitch is None:
            fault(NoteError(f"{file} tells no pitch, or more than one: expected a name such as "
                            "note_060.wav, note_C4.wav or note-060-100.wav, or a line in "
                            "pitches.csv"))
        else:
            name = _printable("-".join(place.with_suffix("").parts))
            family = next((f for f in FAMILIES if f in place.as_posix().lower()), "other")
            yield Entry(name, pitch, family, "acoustic", "", [-1] * 10, str(file),
                        functools.partial(read_recording, file))


def _read_pitches(path, sounds):
    """pitches.csv: {file's name without .wav: MIDI pitch}; lines such as take1.wav,60 or a.wav,C4.
    """
    pitches, known = {}, {_printable(file.stem) for file in sounds}
    for i, row in enumerate(_read(path, _rows)):
        name, told = re.sub(r"(?i)\.wav$", "", row[0]), "".join(row[1:2])
        pitch = int(told) if re.fullmatch(r"\d{1,3}", told) else pitch_of(told)
        if pitch is None and i == 0:      # a title
            continue
        if pitch not in range(128) or name not in known or name in pitches:
            raise NoteError(f"{path}, line {i + 1}, {','.join(row)[:80]!r}: expected a file that "
                            "is there and in no other line, and its pitch, as in take1.wav,60 or "
                            "take1.wav,C4")
        pitches[name] = pitch
    return pitches


def pitch_of(name):
    """MIDI pitch that a file's name tells, or None if it tells none, or more than one.

    guitar-060-100 (NSynth's: pitch, velocity); a note such as C4 (60), F#3, Bb-1, C_4, A0v1; or
    else a number, 12 to 127, at the end or the beginning: take_060, m60, note60, 60-piano.
    """
    nsynth = re.search(r"-(\d{3})-\d{3}$", name)
    name = re.sub(r"\d{4}([-_.]?)\d\d\1\d\d([ T_-]+\d\d[-_.:]\d\d[-_.:]\d\d)?", "", name)   # a date
    notes, numbers = set(), set()
    for letter, accidental, octave in re.findall(
            r"(?<![^\W_])([A-Ga-g])([#b♯♭s]?)(-1|\d|-\d|_\d)(?:v\d+)?(?![^\W_])", name):
        if octave.isdigit() or letter.isupper():          # take_a_2 is no note
            scale = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}[letter.upper()]
            sharp = {"": 0, "b": -1, "♭": -1}.get(accidental, 1)
            notes.add(scale + sharp + 12 * (0 if octave == "-1" else int(octave[-1]) + 1))
    for pattern in (r"(?i)(?<![^\W_])(?:m|midi|n|note|pitch|key)?(\d{2,3})$",
                    r"^(\d{2,3})[-_](?=.*[A-Za-z])"):
        numbers |= {int(number) for number in re.findall(pattern, name) if 12 <= int(number)}
    told = {int(nsynth[1])} if nsynth else notes or numbers
    return told.pop() if len(told) == 1 and min(told) in range(128) else None


def read_recording(path, seconds):
    """A recording as `read_sound` reads it, without the silence before the note, which may begin in
    its first minute: at the first 2 ms within 40 dB of the loudest, less 5 ms."""
    x, rate = read_sound(path, None, 60 + seconds)
    x, n = x.astype(np.float32), rate // 500
    if np.abs(x).max() < 33:                                            # -60 dB of full scale
        raise NoteError(f"{path} is silent for its first {len(x) / rate:.0f} s")
    power = np.square(np.pad(x, (0, -len(x) % n))).reshape(-1, n).mean(axis=1)
    onset = int(np.argmax(power > 1e-4 * power.max())) * n
    return x[max(0, onset - rate // 200):], rate


# ---- Packed notes ---------------------------------------------------------------------------
#
# Reading thousands of files, or records of floats, for every epoch would take longer than training.
# So the first use packs the wanted notes into one folder, which can be moved, and named by --data:
# audio.int16 is (N, L) samples and nothing else, read memory-mapped; packed.json its own CRC-32,
# then what was asked for, what was left out, and a row for each note, with its samples' CRC-32.


def _load_packed(data, wish, progress, skip_damaged, pack):
    """The packed notes of `data`; packed now if they are not yet, or were from other files."""
    path = Path(data)
    asked = json.loads(json.dumps(asdict(wish)))                        # as JSON has it
    if (path / "packed.json").is_file():
        return _open_packed(path, wish, asked)
    reader, files = _find(data)
    root = path if path.is_dir() else files[0].parent
    asked["skip_damaged"] = skip_damaged
    mark = zlib.crc32(ascii([path.name, asked, pack and root.resolve()]).encode())
    folder = Path(pack or root / "packed", f"{wish.sample_rate}Hz-{wish.length}-{mark:08x}")
    stats = [(file.parent.name, file.name, file.stat()) for file in files]
    asked["files"] = zlib.crc32(ascii([(*names, stat.st_size, stat.st_mtime_ns)
                                       for *names, stat in stats]).encode())
    try:
        return _open_packed(folder, wish, asked)
    except NoteError as error:            # not there yet, or of other files, or damaged
        if folder.exists():
            print(f"{error}; packing {_printable(data)} again", file=sys.stderr)

    def fault(error):
        if not skip_damaged and reader is not _read_recordings:
            raise error
        dropped[str(error)] += 1

    # How many notes there may be, to tell the time left: a record of one takes some 256 kB.
    total = len(files) if reader is not _read_records else sum(
        stat.st_size for *_, stat in stats) >> 18
    dropped, rows = Counter(), []
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")        # renamed when it is whole
    try:
        part.mkdir(parents=True, exist_ok=True)
        with open(part / "audio.int16", "wb") as audio:
            for entry, samples in _wanted(reader(files, fault, dropped), data, wish, dropped, fault,
                                          progress, total):
                audio.write(samples.astype("<i2"))
                rows.append([*entry[:6], zlib.crc32(samples.astype("<i2"))])
        about = json.dumps({"asked": asked, "dropped": dropped, "notes": rows})
        (part / "packed.json").write_text(f"[{zlib.crc32(about.encode())}, {about}]")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        raise NoteError(f"cannot pack {data} into {folder} ({error.strerror or error}): make room "
                        "there, or name another place with --pack DIR") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return _open_packed(folder, wish, asked)


def _open_packed(folder, wish, asked):
    """Notes of a packed folder. NoteError where it is damaged, or not what is asked for."""
    file = folder / "audio.int16"
    try:
        crc, about = json.loads((folder / "packed.json").read_text())
        if zlib.crc32(json.dumps(about).encode()) != crc:
            raise ValueError("the checksum of packed.json does not match")
        *columns, crc = zip(*about["notes"])
        audio = np.memmap(file, "<i2", "r").reshape(len(crc), about["asked"]["length"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise NoteError(f"{folder} holds no packed notes that can be read ({error}): delete it, "
                        "and it will be packed again") from None
    for key, value in asked.items():
        had = about["asked"].get(key)
        if had != value:
            raise NoteError(f"{folder} was packed " + (
                "from files that have changed since" if key == "files" else
                f"with {key} {had}, and {value} is asked for"))
    return _table(audio, zip(*columns), wish, about["dropped"], crc=np.array(crc), file=str(file))


# ---- WAV files in and out -------------------------------------------------------------------

OTHERS = {b"FORM": "AIFF", b"fLaC": "FLAC", b"ID3": "MP3", b"\xff\xfb": "MP3", b"OggS": "Ogg",
          b"ftyp": "MPEG-4"}  # how files begin that are no WAV files


def read_sound(path, rate=None, seconds=LONGEST):
    """A WAV file of any common kind, its first `seconds` at most: (L,) samples in int16's range,
    and their rate in Hz, which may have to be `rate`. Any fault is a NoteError.

    int16 for a mono file of 16 bits, which is exact; float32 for 8, 24 or 32-bit integers, floats,
    and more channels, which are averaged. Floats may reach 1 or, as some write them, 32,768.
    """
    try:
        with open(path, "rb") as file:
            found, x = scipy.io.wavfile.read(io.BytesIO(_first(file, seconds)))
        if rate not in (None, found):
            raise ValueError(f"its rate is {found} Hz: expected {rate}, as its examples.json says")
        if x.dtype == np.int16 and x.ndim == 1:
            return x.copy(), found
        kind, peak = x.dtype.kind, np.abs(x).max()
        if kind == "f" and not peak <= 32768:                           # or NaN
            raise ValueError(f"a sample of it is {peak:g}, and floats should be from -1 to 1")
    except OSError as error:
        raise NoteError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:            # scipy raises many kinds for a damaged header
        raise NoteError(f"{path} cannot be used ({error}): fetch it again, or make a WAV file of "
                        "it (ffmpeg -i FILE NEW.wav, or sox FILE NEW.wav)") from None
    scale = {"u": 256, "i": 2.0 ** (16 - 8 * x.itemsize), "f": 32768 if peak <= 8 else 1}[kind]
    x = x.astype(np.float32).reshape(len(x), -1).mean(axis=1)           # (L,)
    return (x - 128 * (kind == "u")) * np.float32(scale), found         # 8 bits are unsigned


def _first(file, seconds):
    """The first seconds of a WAV file, as the bytes of a shorter one. ValueError where it is none.
    So a long file costs no memory, and one that was written to a pipe is read to its end."""
    start, form = file.read(12), b""
    if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
        kinds = [kind for sign, kind in OTHERS.items() if sign in start[:8]]
        raise ValueError("it is not a WAV file" + "".join(f", but looks like {k}" for k in kinds))
    while len(head := file.read(8)) == 8 and head[:4] != b"data":  # chunks: tag, size, bytes
        size = int.from_bytes(head[4:], "little")
        end = file.tell() + size + size % 2
        form = file.read(min(size, 64)) if head[:4] == b"fmt " else form
        file.seek(end)
    size, there = int.from_bytes(head[4:], "little"), os.fstat(file.fileno()).st_size - file.tell()
    if len(head) < 8 or len(form) < 16 or there < size < 0x7FFF0000:  # more: written to a pipe
        raise ValueError(f"it is cut short: {max(0, there):,} of {size:,} bytes of sound are there")
    channels, rate, _, frame = struct.unpack("<HIIH", form[2:14])
    if rate not in RATES or not 1 <= channels <= frame:
        raise ValueError(f"it states {channels} channels at {rate:,} Hz: expected {RATES[0]:,} to "
                         f"{RATES[-1]:,} Hz")
    data = file.read(min(size, there, math.ceil(seconds * rate) * frame, 1 << 28) // frame * frame)
    if not data:
        raise ValueError("it holds no sound")
    return struct.pack(f"<4sI4s4sI{len(form)}s4sI", b"RIFF", 20 + len(form) + len(data), b"WAVE",
                       b"fmt ", len(form), form, b"data", len(data)) + data


def write_wav(path, wave, sample_rate):
    """Write a wave, (L,) float in [-1, 1] (beyond that it is clipped), as 16-bit mono: the inverse
    of `read_sound(...)[0] / 32768`. Written beside its place and renamed, so never half a file.
    NoteError for NaN, infinities, other shapes, and places one cannot write to."""
    path, x = Path(path), torch.as_tensor(wave).detach().cpu()
    if x.ndim != 1 or not len(x) or not x.is_floating_point() or not x.isfinite().all():
        raise NoteError(f"cannot write {path}: expected a wave of floats with one axis and neither "
                        f"NaN nor infinity, not {x.dtype} of shape {tuple(x.shape)}")
    samples = (x.double() * 32768).round().clamp(-32768, 32767).numpy().astype(np.int16)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        scipy.io.wavfile.write(beside, sample_rate, samples)
        os.replace(beside, path)
    except OSError as error:
        raise NoteError(f"cannot write {path}: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)    # still there only if something went wrong


def save(notes, folder, progress=True):
    """Write Notes in NSynth's layout, so that they can be listened to, and loaded again. Refuses a
    folder that holds anything (NoteError). A folder that has an examples.json is complete."""
    folder, examples = Path(folder), {}
    try:
        if folder.exists() and any(folder.iterdir()):
            raise NoteError(f"{folder} is not empty: name a new folder to write to")
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(progress_bar(notes.name.tolist(), "notes written", progress)):
            write_wav(folder / "audio" / f"{name}.wav", notes.waves([i])[0], notes.sample_rate)
            flags = notes.qualities[i].tolist()
            examples[name] = {
                "note_str": name, "pitch": int(notes.pitch[i]), "sample_rate": notes.sample_rate,
                "instrument_family_str": str(notes.family[i]), "instrument_source_str": str(
                    notes.source[i]), **({"qualities": flags} if min(flags) >= 0 else {})}
        (folder / "examples.json").write_text(json.dumps(examples, indent=1), encoding="utf-8")
    except OSError as error:
        raise NoteError(f"cannot write to {folder}: {error.strerror}") from None


# ---- MIDI files ------------------------------------------------------------------------------

def read_midi(path):
    """The notes of a standard MIDI file, of format 0 or 1, in order of their ends: a list of
    (start, end, pitch, velocity, channel), in seconds and as the file counts.

    A note ends when its key is let go and the pedal (controller 64) is up, when its key is struck
    again, or with the file.
    """
    try:
        with open(path, "rb") as file:
            division, events = _midi_events(file.read(1 << 24))
    except OSError as error:
        raise NoteError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, IndexError, struct.error) as error:
        raise NoteError(f"{path}: expected a MIDI file, of format 0 or 1 ({error})") from None
    strokes, sounding, pedals = [], {}, set()           # sounding: starts and velocities
    let_go = [set() for _ in range(16)]                 # pitches that a pedal may hold, by channel
    seconds, last, tempo = 0.0, 0, 500_000              # microseconds a quarter note

    def end(channel, pitch):
        let_go[channel].discard(pitch)
        if (channel, pitch) in sounding:
            start, velocity = sounding.pop((channel, pitch))
            strokes.append((start, seconds, pitch, velocity, channel))

    for tick, status, data in sorted(events, key=lambda event: event[0]):
        seconds += (tick - last) * tempo / 1e6 / division
        last, kind, channel = tick, status & 0xF0, status & 0x0F
        if status == META:                # of which there is only tempo
            tempo = int.from_bytes(data, "big")
        elif kind == NOTE_ON and data[1]:
            end(channel, data[0])
            sounding[channel, data[0]] = seconds, data[1]
        elif kind in (NOTE_ON, NOTE_OFF):
            let_go[channel].add(data[0])
        elif kind == CONTROL and data[0] == 64:
            (pedals.add if data[1] >= 64 else pedals.discard)(channel)
        while let_go[channel] and channel not in pedals:
            end(channel, min(let_go[channel]))
    for channel, pitch in list(sounding):
        end(channel, pitch)
    return strokes


NOTE_OFF, NOTE_ON, CONTROL, META = 0x80, 0x90, 0xB0, 0xFF
TEMPO = 0x51                              # a kind of META


def _midi_events(file):
    """A MIDI file's bytes -> its ticks a quarter note, and (tick, status, data) of each message to
    a channel and each tempo, track by track."""
    tag, size, form, tracks, division = struct.unpack_from(">4sIHHH", file)
    if tag != b"MThd" or form > 1 or not 0 < division < 0x8000:
        raise ValueError("it is none, or counts no ticks of a quarter note")
    at, events = 8 + size, []

    def number():                         # seven bits a byte; the last is below 128
        nonlocal at
        value = 0
        for byte in file[at:at + 4]:
            at, value = at + 1, value << 7 | byte & 0x7F
            if byte < 0x80:
                return value
        raise ValueError("a number in it has no end")

    while tracks:
        tag, size = struct.unpack_from(">4sI", file, at)
        at, tick, running = at + 8, 0, 0
        end = at + size
        if len(file) < end:
            raise ValueError(f"it is cut short, by {end - len(file):,} bytes or more")
        tracks -= tag == b"MTrk"          # there may be others
        while tag == b"MTrk" and at < end:
            tick += number()
            status, at = (file[at], at + 1) if file[at] >= 0x80 else (running, at)
            if 0x80 <= status < 0xF0:
                running, kind, length = status, None, 1 if status & 0xE0 == 0xC0 else 2
            elif status in (0xF0, 0xF7, META):          # SysEx, and what is no message
                kind, at = (file[at], at + 1) if status == META else (0, at)
                length = number()
            else:
                raise ValueError(f"a message has the status {status}")
            data, at = file[at:at + length], at + length
            if at > end or kind is None and max(data) > 127 or kind == TEMPO and length != 3:
                raise ValueError("a message in it is damaged")
            if kind in (None, TEMPO):
                events.append((tick, status, data))
        events.append((tick, 0, b""))     # notes may last until its end
        at = end
    return division, events


# ---- Orchestra ------------------------------------------------------------------------------
#
# A note is a sum of partials k f0. What makes a timbre is how strong each is, how it starts and how
# it dies. The partials of a string or pipe follow the pitch, but the box, bell or throat around it
# has resonances at fixed Hz, so an instrument's spectrum changes over its range. And high partials
# come later and are gone sooner. The figures are chosen by hand to suggest each instrument.

TIMBRES = {
    # tilt: dB lost per octave above the fundamental; even: level of even harmonics, dB; attack: s
    # to full level; loss: decay, 1/s, of a partial at 0 Hz, and what each kHz adds; release: s to
    # fall to 1/e; vibrato: cents; noise: dB while the note lasts, dB at its start, around which Hz;
    # body: resonances, half an octave wide, Hz and dB of each
    #                        tilt even attack loss  /kHz release vib  noise   at   Hz   body
    "guitar_acoustic_000":   (6,   0, .002,  .8, 1.8,  .05,  0, -90, -26,  400, (105, 9, 420, 5)),
    "bass_acoustic_000":     (9,   0, .002, 1.8, 4.0,  .08,  0, -90, -24,  180, (110, 9, 230, 5)),
    "string_acoustic_000":   (6,   0,  .09,   0,   0,  .12, 11, -42, -24, 3000, (460, 8, 2600, 9)),
    "string_acoustic_001":   (9, -14, .002,  .6, 1.1,  .50,  0, -90, -40,  900, (190, 5, 700, 3)),
    "keyboard_acoustic_000": (7,   0, .003,  .5,  .8,  .09,  0, -90, -28,  250, (300, 4, 1300, 3)),
    "keyboard_acoustic_001": (1,   0, .002,  .9,  .6,  .04,  0, -90, -22, 2500, (900, 5, 3200, 7)),
    "mallet_acoustic_000":   (5,   0, .002, 3.0, 2.0,  .30,  0, -90, -24,  700, (300, 3)),
    "mallet_acoustic_001":   (9,   0, .002,  .5,  .2,  .12,  0, -90, -34, 2200, (500, 3)),
    "flute_acoustic_000":   (12,  -2,  .07,   0,   0,  .07,  7, -34, -24, 2200, (600, 4, 1500, 4)),
    "flute_acoustic_001":   (15, -18,  .04,   0,   0,  .06,  0, -26, -12, 1300, (900, 5)),
    "reed_acoustic_000":     (6, -24,  .05,   0,   0,  .06,  0, -46, -30, 1800, (1500, 6, 3200, 5)),
    "reed_acoustic_001":     (3,   0,  .04,   0,   0,  .05,  8, -48, -28, 2500, (1150, 13, 3e3, 9)),
    "brass_acoustic_000":    (4,   0,  .04,   0,   0,  .06,  5, -48, -24, 2500, (1200, 10, 2e3, 5)),
    "brass_acoustic_001":   (12,   0,  .08,   0,   0,  .10,  0, -50, -30,  700, (420, 9, 750, 5)),
    "organ_acoustic_000":    (8,   4,  .05,   0,   0,  .09,  0, -50, -20, 1600, (500, 2, 3000, 4)),
    "organ_acoustic_001":    (2,  -3,  .03,   0,   0,  .07,  0, -54, -30,  900, (650, 7, 1900, 8)),
    "vocal_acoustic_000":    (8,   0,  .10,   0,   0,  .12, 12, -40, -34, 2500, (700, 16, 2700, 9)),
    "vocal_acoustic_001":   (10,   0,  .12,   0,   0,  .14, 10, -40, -36, 1500, (320, 14, 800, 12)),
}
VELOCITIES = {50: 0.5, 100: 1.0}  # MIDI velocity and how hard that is; softer is quieter and duller
HOLD = 0.75                       # of a note's length, as NSynth: held for 3 s of 4
orchestra = functools.partial(load, "orchestra", progress=False)


def _read_orchestra(wish):
    """An Entry for each note of the orchestra in the range of pitches, at two velocities."""
    low, high = wish.pitch_range
    hertz = {pitch: 440 * 2 ** ((pitch - 69) / 12) for pitch in range(low, high + 1)}
    if hertz[high] > 0.4 * wish.sample_rate:
        raise NoteError(f"pitch {high} is {hertz[high]:.0f} Hz, too high for the orchestra at "
                        f"{wish.sample_rate} Hz: ask for lower pitches or a higher sample rate")
    for timbre in TIMBRES:
        for pitch, f0 in hertz.items():
            for velocity, force in VELOCITIES.items():
                name = f"{timbre}-{pitch:03}-{velocity:03}"
                yield Entry(name, pitch, timbre.split("_")[0], "acoustic", "", [-1] * 10, name,
                            functools.partial(_play, name, f0, force, wish))


def _play(name, f0, force, wish, seconds):
    """One note of the orchestra: (L,) float64 in int16's range, and its rate.

    The sum of a_k sin(k phi) is the imaginary part of a polynomial in one complex number w =
    r exp(i phi) that turns at the note's frequency; r below 1 takes more from the high partials.
    """
    tilt, even, attack, loss, loss_khz, release, vibrato, breath, chiff, hz, body = TIMBRES[
        name.split("-")[0]]
    rng = np.random.default_rng(zlib.crc32(name.encode()))  # chance, but the same every time
    k = np.arange(1, 1 + min(120, int(0.48 * wish.sample_rate / f0)))   # 120: 4 kHz of the lowest
    dB = even * (k % 2 == 0) - (tilt + 6 * (1 - force)) * np.log2(k)    # (K,)  softer is duller
    for centre, rise in zip(body[::2], body[1::2]):
        dB += rise * np.exp(-8 * np.log2(k * f0 / centre) ** 2)
    dB += rng.uniform(-1.5, 1.5, len(k)) - 10 * np.log10(1 + (k * f0 / 3000 / force) ** 4)
    a = 10 ** (dB / 20) * np.exp(2j * np.pi * rng.uniform(size=len(k)))
    if name.startswith("mallet"):         # a bar is tuned to have these partials only
        a[~np.isin(k, (1, 4, 10))] = 0
    a = a[:1 + np.flatnonzero(dB > dB.max() - 70)[-1]].astype(np.complex64)

    t = np.arange(wish.length, dtype=np.float32) / np.float32(wish.sample_rate)     # (L,)  s
    sway = np.sin(2 * np.pi * rng.uniform(5.0, 5.8) * t) * _rise((t - 0.4) / 0.6)
    cycles = np.cumsum(2 ** (vibrato / 1200 * sway), dtype=float) * f0 / wish.sample_rate
    phi = 2 * np.pi * (cycles % 1).astype(np.float32)
    lost = loss_khz * t + 1 - _rise(t / (2 * attack))                   # (L,)  nepers a kHz
    w = np.exp(-lost * np.float32(f0 / 1000)) * (np.cos(phi) + 1j * np.sin(phi))
    x = np.zeros_like(w)
    for level in a[::-1]:                 # Horner's rule: a_1 w + a_2 w^2 + ...
        x += level
        x *= w
    noise = np.convolve(rng.standard_normal(len(t)), np.hanning(3 + int(
        wish.sample_rate / hz)), "same") * np.cos(2 * np.pi * hz * t)   # a band around `hz`
    noise *= 10 ** (breath / 20) + 10 ** (chiff / 20) * np.exp(-t / 0.02)
    x = x.imag * np.exp(-loss * t) + noise * np.linalg.norm(a)
    x *= _rise(t / attack) * _rise((t[-1] - t) / 0.02)                  # the very end: no click
    x *= np.exp(np.minimum(0, (HOLD * t[-1] - t) / release))
    level = rng.uniform(0.6, 0.8) * force ** 0.8                        # 0.34-0.8 of full scale
    return x * (32767 * level / max(np.abs(x).max(), 1e-9)), wish.sample_rate


def _rise(x):
    """From 0 at x <= 0 to 1 at x >= 1 along a sine squared, which has no corner at either end."""
    return np.sin(np.clip(x, 0, 1) * (np.pi / 2)) ** 2


# ---- python nsynth.py -----------------------------------------------------------------------

def span(text):
    """ "24-84" -> (24, 84), "60" -> (60, 60): a type for argparse."""
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def names(text):
    """ "acoustic,electronic" -> a tuple of them, "all" -> none: a type for argparse."""
    words = [word.strip() for word in text.split(",")]
    return tuple(word for word in words if word not in ("", "all"))


def main(argv=None):
    """The command line. Returns the exit status: 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(
        description="Say which notes there are, pack them for training, write them as WAV files.")
    add = parser.add_argument
    add("data", nargs="?", default="orchestra", help=f"{FORMS}; or of packed notes")
    add("--length", type=Fraction, default=4, metavar="SECONDS", help="of each note (default 4)")
    add("--rate", type=int, default=16000, help="samples a second (default 16000)")
    add("--pitches", type=span, default=(24, 84), metavar="LOW-HIGH", help="MIDI (default 24-84)")
    add("--sources", type=names, default=("acoustic",), metavar="NAMES",
        help="comma-separated, or: all (default acoustic)")
    add("--families", type=names, default=(), metavar="NAMES", help="likewise (default all)")
    add("--split", default="random", metavar="BY", help="random (default; 80/20), folders (as the "
        "data is split already), or a CSV list of note ids")
    add("--skip-damaged", action="store_true", help="leave out what cannot be read, and count it")
    add("--pack", default="", metavar="DIR", help="where to pack (default: packed, in the data)")
    add("--out", metavar="DIR", help="write the notes there, in NSynth's layout")
    args = parser.parse_args(argv)
    try:
        notes = load(args.data, round(args.length * args.rate), args.rate, args.pitches,
                     args.sources, args.families, skip_damaged=args.skip_damaged, pack=args.pack)
        print(describe(*split(notes, by=args.split), release=args.data != "orchestra"))
        if args.out:
            save(notes, args.out)
    except NoteError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    sys.exit(main())
