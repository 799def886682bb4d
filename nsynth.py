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
import contextlib
import csv
import functools
import glob
import gzip
import hashlib
import http.client
import io
import itertools
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import warnings
import zlib
from collections import Counter, namedtuple
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from wave import Error as WaveError
from wave import open as open_wave

import numpy as np
import scipy.fft
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


# ---- 1. Notes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notes:
    """N notes of one length and one sample rate, and what is known of each.

    The audio stays int16, as in the files; `waves` converts a batch. It may lie on disk (memory-
    mapped, see Packed), and `row` says which of its rows belongs to which note, so that a subset
    copies no sound.
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
        if self.crc is not None:
            for i, samples in zip(indices, audio):
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


class Entry(NamedTuple):
    """One note as a reader finds it: what is said of it, and how to get its sound."""
    name: str
    pitch: int
    family: str
    source: str
    part: str             # train, valid, test or ""
    qualities: str        # ten of 0 and 1, as QUALITIES are ordered, or "" where not told
    origin: str           # file and record, for messages
    audio: Callable       # no arguments -> (samples (L,) int16 or float32, their rate in Hz)
    share: float          # of the whole source read so far, 0..1


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
        if self.length < 1 or self.sample_rate < 1:
            raise NoteError(f"{self.length} samples at {self.sample_rate} Hz: expected at least "
                            "one of each")
        for option, known in (("sources", SOURCES), ("families", FAMILIES)):
            for value in getattr(self, option):
                if value not in known:
                    raise NoteError(f"unknown value {value!r} in {option}: expected some of "
                                    f"{', '.join(known)}, or nothing for all")

    def plain(self):
        """As JSON has it, to be compared with what was written."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}

    def why_not(self, entry):
        """Why a note is not wanted (the first reason that applies), or None."""
        low, high = self.pitch_range
        if self.sources and entry.source not in self.sources:
            return f"the source is not {' or '.join(self.sources)}"
        if not low <= entry.pitch <= high:
            return f"the pitch is outside {low}-{high}"
        if self.families and entry.family not in self.families:
            return "the family is none of those asked for"
        return None

    def fit(self, samples, rate):
        """Samples at their own rate -> (L,) int16 at ours: resampled, then cut or zero-padded."""
        if rate != self.sample_rate:
            common = math.gcd(rate, self.sample_rate)
            samples = scipy.signal.resample_poly(samples.astype(np.float32),
                                                 self.sample_rate // common, rate // common)
        samples = samples[:self.length]
        if samples.dtype != np.int16:
            samples = np.clip(np.rint(samples), -32768, 32767).astype(np.int16)
        return np.pad(samples, (0, self.length - len(samples)))         # (L,)


def load(data, length, sample_rate, pitch_range=(24, 84), sources=("acoustic",), families=(),
         progress=True, skip_damaged=False) -> Notes:
    """The notes at `data`, resampled to `sample_rate` Hz and cut or padded to `length` samples.

    data: "orchestra" for the built-in notes; a folder in NSynth's layout, of TFRecords, of TFDS, or
    of your own WAV files; a TFRecord file, or a pattern such as "nsynth/*.tfrecord"; or a folder
    packed before (see `FORMS`). All but the built-in notes are packed on first use. Notes are
    pooled, since the paper splits again. Empty `sources` or `families` mean all.

    Raises NoteError for any file that is not as it should be, unless `skip_damaged`: then the notes
    lost are counted in `dropped`. NoteError too when nothing is left. `progress`: a bar on stderr.
    """
    wish = Wish(length, sample_rate, tuple(pitch_range), tuple(sources), tuple(families))
    if str(data) != "orchestra":
        return _load_packed(str(data), wish, progress, skip_damaged)
    entries = list(_orchestra_entries(sample_rate, wish.pitch_range, length))
    kept = [entry for entry in entries if not wish.why_not(entry)]
    dropped = Counter(reason for reason in map(wish.why_not, entries) if reason)
    _check_any_left(len(kept), dropped, data)
    try:
        audio = np.zeros((len(kept), length), np.int16)                # (N, L)
    except MemoryError:
        raise NoteError(f"{len(kept):,} notes need {len(kept) * length * 2 / 1e9:.1f} GB of "
                        "memory: ask for fewer pitches or families, or shorter notes") from None
    for row, entry in progress_bar(list(zip(audio, kept)), "notes", progress):
        row[:] = wish.fit(*entry.audio())
    return Notes(audio, np.arange(len(kept)), *_columns(kept), sample_rate, dict(dropped))


def _columns(entries):
    """Pitch, family, source, name and part of entries, as arrays (N,), and qualities, (N, 10)."""
    return [*(np.array([getattr(entry, column) for entry in entries])
              for column in ("pitch", "family", "source", "name", "part")),
            _flags(entry.qualities for entry in entries)]


def _flags(texts):
    """N texts such as "0010000000", or "" where not told: (N, 10) int8, as Notes has qualities."""
    return np.array([tuple(map(int, text)) or (-1,) * 10 for text in texts], np.int8)


def _check_any_left(kept, dropped, data):
    if not kept and not dropped:
        raise NoteError(f"{data} holds no notes: expected {FORMS}")
    if not kept:
        raise NoteError(f"none of the {sum(dropped.values()):,} notes of {data} is left: "
                        f"{_join(dropped)}; change the sources, families or pitches asked for")


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
        if not 0 < share <= 1:
            raise NoteError(f"share is {share}: expected a part of the notes, above 0, at most 1")
        order = _shuffle(len(notes), seed)
        cut = round(share * len(notes))
        return notes.subset(order[:cut]), notes.subset(order[cut:])
    part = notes.part
    if by != "folders":
        listed = _read_ids(by)            # without a column split, to None
        part = np.array([listed.get(name, "") or "train" * (name in listed) for name in notes.name])
    train = np.flatnonzero(part == "train")
    held_out = np.flatnonzero((part != "train") & (part != ""))
    if len(train) == 0:
        raise NoteError(f"no note is in the training part by {by!r}: expected data whose folders "
                        "are split (nsynth-train, ...), or a CSV list of note ids; or split by "
                        "random")
    return notes.subset(train), notes.subset(held_out)


# The release's training notes of each pitch, 24..84 (TFDS nsynth/gansynth_subset): 60,788.
# paper: 70,379 notes with those held out.
RELEASE_COUNTS = [int(count) for count in """
    551 545 561 550 549 578 547 628 626 630 670 668 751 768 788 801 821 871 873 860 873 844 883
    865 1058 1036 1094 1065 1186 1200 1187 1346 1273 1320 1263 1283 1349 1285 1281 1332 1286 1301
    1220 1300 1209 1257 1288 1223 1258 1183 1178 1125 1171 1089 1024 1081 966 1043 991 959 977
    """.split()]


def describe(train, held_out, release=False) -> str:
    """What is in the two splits by source, family and pitch, and what was dropped; with `release`,
    beside the numbers of the paper and of the released code.

    Worth reading before training: a filter that kept electronic instead of acoustic notes cost
    users weeks (magenta issue 1607). At most 100 columns wide.
    """
    def row(label, mine, theirs):
        return f"{label:18}{mine:9,}{theirs:10,}"

    kept, lost = len(train) + len(held_out), sum(train.dropped.values())
    seconds = train.audio.shape[1] / train.sample_rate
    lines = [f"kept {kept:,} of {kept + lost:,} notes, {seconds:g} s at {train.sample_rate:,} Hz"]
    reasons = [f"  dropped {_join({reason: n})}" for reason, n in train.dropped.items()]
    lines += reasons[:40]                 # a folder of one's own may hold thousands of other files
    if len(reasons) > 40:
        lines += [f"  and more, for {len(reasons) - 40:,} other reasons"]
    lines += [f"{'':18}{'train':>9}{'held out':>10}", row("all", len(train), len(held_out))]
    if release:
        lines += [row("paper: all", round(0.8 * 70_379), round(0.2 * 70_379)),
                  f"{'release: all':18}{sum(RELEASE_COUNTS):9,}"]
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
        if release:
            theirs = (RELEASE_COUNTS[p - 24] if 24 <= p <= 84 else 0 for p in range(low, low + 12))
            lines += [f"{'  release, train':18}" + "".join(f"{count:6}" for count in theirs)]
    return "\n".join(lines)


def _join(dropped):
    """{"reason": 3, ...} -> "3 because reason, ..."."""
    return ", ".join(f"{count:,} because {reason}" for reason, count in dropped.items())


def progress_bar(items, what, wanted=True, share=None, total=None, each=1):
    """Yield the items; once that has taken two seconds, show on stderr how far it is.

    share(item): how much is done with it, 0..1; or they count alike, of `total` (default: their
    number). An item stands for `each` of `what`.
    """
    on_screen = sys.stderr.isatty()
    start = time.monotonic()
    due, shown = start + 2, False
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if wanted and now > due:
                part = share(item) if share else done / (total or len(items))
                speed = done * each / (now - start)
                left = (now - start) * (1 / part - 1) if part else 0
                bar = f"[{'#' * int(20 * part):20}] {part:4.0%}"
                print(f"{bar} {done * each:,} {what}, {speed:,.0f} a second, {left:,.0f} s left",
                      end=" " * 4 + "\r" if on_screen else "\n", file=sys.stderr, flush=True)
                due, shown = now + (0.2 if on_screen else 5), True
            yield item
    finally:
        if shown and on_screen:
            print(file=sys.stderr)


# ---- 2. Readers -------------------------------------------------------------------------------
#
# Each takes the files of one form and yields an Entry for every note in them. What is wrong goes
# to fault(error), which raises it, or counts it and lets the reader go on (skip_damaged).


def _find(data):
    """What is at a path or pattern: (reader, its files)."""
    path = Path(data)
    if not path.is_dir():
        files = sorted(Path(name) for name in glob.glob(data) if Path(name).is_file())
        if files and all(".tfrecord" in file.name for file in files):
            return _read_tfrecords, files
        raise NoteError(f"{data} is {'no data that can be read' if files else 'not there'}: "
                        f"expected {FORMS}")
    examples = [path / "examples.json"] if (path / "examples.json").is_file() else sorted(
        path.glob("*/examples.json"))
    if examples:
        return _read_examples, examples
    tfds = _tfds_files(path)
    if tfds:
        return _read_tfds, tfds
    records = sorted(file for file in path.iterdir() if ".tfrecord" in file.name)
    if records:
        return _read_tfrecords, records
    recordings = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".wav")
    if recordings:
        table = path / "pitches.csv"
        return _read_recordings, [table] * table.is_file() + recordings
    raise NoteError(f"{data} holds no notes: expected {FORMS}")


FORMS = ("a folder in NSynth's layout (examples.json beside a folder audio/ of WAV files), of "
         "TFRecords, of TFDS or of your own WAV files; a TFRecord file; or the word orchestra for "
         "the built-in notes")


# ---- NSynth's layout: examples.json beside audio/ ----


def _read_examples(files, fault):
    """The notes of folders that hold an examples.json each."""
    for i, file in enumerate(files):
        examples = _parse_examples(file)
        part = re.sub("^nsynth-", "", file.parent.name)
        part = part if part in ("train", "valid", "test") else ""
        for j, (name, about) in enumerate(examples.items()):
            try:
                pitch, family, source, rate, qualities = _check_example(file, name, about)
                # NSynth's names say it once more, which tells when a file has been damaged.
                said = re.fullmatch(r"(.+)_([a-z]+)_\d{3}-(\d{3})-\d{3}", name)
                if said and (said[1], said[2], int(said[3])) != (family, source, pitch):
                    raise NoteError(f"{file}: note {name} is said to be {family}, {source}, pitch "
                                    f"{pitch}: expected what its name says, so fetch it again")
            except NoteError as error:
                fault(error)
                continue
            wav = file.parent / "audio" / f"{name}.wav"
            share = (i + j / len(examples)) / len(files)
            yield Entry(name, pitch, family, source, part, qualities, str(wav),
                        functools.partial(read_wav, wav, rate), share)


def _parse_examples(path):
    """What one examples.json holds: {note_str: fields}."""
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NoteError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise NoteError(f"{path} is not JSON ({error}): fetch or unpack it again") from None
    if not isinstance(examples, dict) or not examples:
        raise NoteError(f"{path} holds no notes: expected an object such as "
                        '{"guitar_acoustic_000-060-100": {"pitch": 60, ...}, ...}')
    return examples


def _check_example(path, name, about):
    """Pitch, family, source, rate and qualities of one note of examples.json."""
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

    known = (get("pitch", int, 0, 127), get("instrument_family_str", str),
             get("instrument_source_str", str), get("sample_rate", int, 1, 10 ** 6))
    flags = about.get("qualities")        # may be missing
    if flags is not None and not (type(flags) is list and len(flags) == len(QUALITIES) and all(
            type(flag) is int and flag in (0, 1) for flag in flags)):
        raise NoteError(f"{path}: field qualities of note {name} is {flags!r:.80}: expected ten "
                        "whole numbers, each 0 or 1, or no such field")
    return *known, "".join(map(str, flags or []))


# ---- TFRecord files ----
#
# NSynth also comes as TFRecord: files of many records, each with two checksums, and in each record
# a tf.train.Example, which is a protocol buffer. Both formats are small enough to be read from
# their bytes up, without TensorFlow. From the outside inwards: checksum, record, message, note.

AGAIN = "fetch the file again, or go on without what is damaged with --skip-damaged"
MOST = 4 << 20            # bytes of a record at most, 16 times what a note of NSynth takes

# A CRC is the remainder of a division. The bits of a message are the coefficients of a polynomial,
# highest power first, in arithmetic where 1 + 1 = 0: adding is XOR. CRC-32C is what is left of it
# after division by a fixed polynomial P of degree 32. Done bit by bit that is far too slow in
# Python; two facts turn it into a few dozen operations on whole arrays:
#
#   1. The remainder of a sum is the sum of the remainders: the XOR, over all bits that are 1, of
#      the remainder of that bit alone, x^k mod P, which a table holds.
#   2. P divides x^5685 + x^1362 + x^426 + 1 (found by search). So any bit may be cleared if the
#      three that lie 5685 - 1362, 5685 - 426 and 5685 places behind it are flipped instead. And P
#      divides the square of that sum, which is itself with all exponents doubled (mixed terms come
#      twice and cancel). Squared three times it tells the same of whole bytes, squared six times
#      of words of 64 bits, so that one XOR of two arrays deals with thousands of words.

FOLD, NEAR, FAR = 5685, 5685 - 1362, 5685 - 426


def _crc32c(data) -> int:
    """The CRC-32C of bytes: 0.1 ms for a note of 256 kB. (zlib's CRC divides by another P.)"""
    x = np.zeros((len(data) + 11) // 8 * 8, np.uint8)    # zeros in front change nothing; four bytes
    first = len(x) - 4 - len(data)                       # of them have to follow the message;
    x[first:-4] = np.frombuffer(data, np.uint8)
    x[first:first + 4] ^= 255                            # its first 32 bits are flipped
    x = _fold(_fold(x.view(np.uint64)).view(np.uint8))   # (up to FOLD,) bytes
    bits = np.unpackbits(x, bitorder="little")           # the lowest bit of a byte is its first
    return int(np.bitwise_xor.reduce(bits * _remainders()[-len(bits):])) ^ 0xFFFFFFFF


def _fold(x):
    """The last FOLD units of x (all where it is shorter), with the remainder that all of x had."""
    for start in range(0, len(x) - FOLD, NEAR):          # so many at once do not reach each other
        head = x[start:min(start + NEAR, len(x) - FOLD)]
        for places in (NEAR, FAR, FOLD):
            x[start + places:][:len(head)] ^= head
    return x[-FOLD:]


@functools.lru_cache(maxsize=1)
def _remainders():
    """x^k mod P as uint32, from k = 8 FOLD - 1 down to 0; the lowest bit is that of x^31."""
    table, power = np.empty(8 * FOLD, np.uint32), 1 << 31
    for k in range(1, len(table) + 1):
        table[-k] = power
        power = power >> 1 ^ (0x82F63B78 if power & 1 else 0)  # times x; x^32 is P's other terms
    return table


def _masked(crc):
    """A CRC as TFRecord writes it: that of data followed by its own CRC is always the same."""
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF


def _records(path, fault, count=None):
    """Yield (number from 1, payload, share of the file read so far) for every sound record of a
    file, plain or GZIP.

    What is wrong goes as a NoteError to `fault`, which raises it or, to go on without, returns.
    After a damaged payload comes the next record; after a damaged length, or where the file breaks
    off, nothing says where that begins, and the rest is lost. `count`: of records, where known.
    """
    try:
        disk, size = open(path, "rb"), max(1, os.path.getsize(path))
        packed = disk.read(3) == b"\x1f\x8b\x08"         # or a length, but of 559,903 only
        disk.seek(0)
        file = gzip.open(disk) if packed else disk
    except OSError as error:
        fault(NoteError(f"cannot read {path}: {error.strerror}"))
        return
    with disk:
        for number in itertools.count(1):
            try:
                payload, sound = _record(file)
            except (ValueError, OSError, EOFError, zlib.error) as error:  # the last two from GZIP
                fault(NoteError(f"{path}, record {number}: {error}, so the rest of the file is "
                                f"lost; {AGAIN}"))
                return
            if payload is None:
                break
            if sound:
                yield number, payload, disk.tell() / size
            else:
                fault(NoteError(f"{path}, record {number}: its checksum does not match; {AGAIN}"))
    if count not in (None, number - 1):                  # cut between two records it looks whole
        fault(NoteError(f"{path} holds {number - 1} records: expected {count}; {AGAIN}"))


def _record(file):
    """The next (payload, whether its checksum matches), or (None, True) at the end of the file.

    A record is a length in bytes (uint64), the masked CRC of those 8 bytes (uint32), the payload
    and its masked CRC (uint32), all little-endian. ValueError where the next one cannot be found.
    """
    header = file.read(12)
    if not header:
        return None, True
    if len(header) < 12:
        raise ValueError("the file breaks off inside its header")
    length, check = struct.unpack("<QI", header)
    if check != _masked(_crc32c(header[:8])):
        raise ValueError("the checksum of its length does not match")
    if length > MOST:
        raise ValueError(f"it is {length:,} bytes long, where {MOST:,} are the most")
    data = file.read(length + 4)
    if len(data) < length + 4:
        raise ValueError("the file breaks off inside it")
    payload = memoryview(data)[:length]
    return payload, _masked(_crc32c(payload)) == int.from_bytes(data[length:], "little")


# ---- Protocol buffers: what a record says ----
#
# A message is a row of fields: tag, value, tag, value. A tag is 8 * the field's number + its wire
# type, which tells how long the value is, so that fields one does not know can be skipped. What
# the numbers mean is agreed elsewhere; for tf.train.Example:
#
#     Example     1: Features                       Feature   one of  1: BytesList,
#     Features    1: entry (repeated)                         2: FloatList, 3: Int64List
#     entry       1: name, 2: Feature               ...List   1: value (repeated)


def _varint(data, at):
    """The whole number (below 2^64) written at `at`, and where it ends.

    Seven bits a byte, lowest first; the top bit of a byte says that another one follows.
    """
    number = 0
    for i, byte in enumerate(data[at:at + 10]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number & (1 << 64) - 1, at + i + 1
    raise ValueError("a number in it breaks off or does not end")


def _fields(message):
    """Yield (number, wire type, value as bytes) of each field of a message.

    Wire types: 0 a varint, 1 eight bytes, 2 a length (varint) and that many bytes, 5 four bytes;
    3 and 4 begin and end a group, long out of use: what is between them is skipped.
    """
    at, groups = 0, 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            size = _varint(message, at)[1] - at
        elif wire == 2:
            size, at = _varint(message, at)
        else:
            size = {1: 8, 3: 0, 4: 0, 5: 4}.get(wire, len(message))  # no 6 or 7: too long for any
        groups += (wire == 3) - (wire == 4)
        if not 0 < number < 1 << 29 or size > len(message) - at or groups < 0:
            raise ValueError("its contents are no tf.train.Example")
        if not groups and wire != 4:
            yield number, wire, message[at:at + size]
        at += size
    if groups:
        raise ValueError("its contents break off inside a group")


def _parts(message, *numbers):
    """Yield (number, value) of the fields of these numbers that are strings or messages."""
    return ((number, value) for number, wire, value in _fields(message)
            if number in numbers and wire == 2)


def _features(payload):
    """The features of a tf.train.Example: {name: values}; of two with one name, the last.

    Values are a list of bytes, or an int64 or float32 array, (n,) each. ValueError if malformed.
    """
    found = {}
    for _, features in _parts(memoryview(payload), 1):
        for _, entry in _parts(features, 1):
            pair = {1: b"", 2: b"", **dict(_parts(entry, 1, 2))}
            found[str(pair[1], "utf-8", "replace")] = _values(pair[2])
    return found


def _values(feature):
    """The values of one Feature; should its lists be of several kinds, those of the last."""
    kind, pieces = 0, []
    for number, values in _parts(feature, 1, 2, 3):
        pieces = pieces if number == kind else []
        kind = number
        wires = {1: (2,), 2: (5, 2), 3: (0, 2)}[kind]    # one number a field or, by 2, many in one
        pieces += [bytes(value) for n, wire, value in _fields(values) if n == 1 and wire in wires]
    if kind < 2:
        return pieces
    packed, numbers, at = b"".join(pieces), [], 0
    if kind == 2:
        return np.frombuffer(packed, "<f4")              # ValueError if the last one is cut
    while at < len(packed):
        number, at = _varint(packed, at)
        numbers.append(number)
    return np.array(numbers, np.uint64).view(np.int64)   # a negative number n is written 2^64 + n


# ---- Notes: which features make one ----


def _read_tfrecords(files, fault):
    """The notes of files in NSynth's own schema."""
    for i, path in enumerate(files):
        yield from _notes(path, fault, ("note_str", "instrument_", FAMILIES, SOURCES),
                          span=(i, len(files)))


def _read_tfds(files, fault):
    """The notes of a folder of TensorFlow Datasets (TFDS), dataset_info.json first of its files.

    F0 and loudness are skipped if there. Of the parts train, valid and test those without any file
    are left out.
    """
    folder = files[0].parent
    names = [_read_text(folder / f"instrument-{label}.labels.txt").split()
             for label in ("family", "source")]
    shards = list(_shards(folder, fault))
    for i, (path, part, count) in enumerate(shards):
        yield from _notes(path, fault, ("id", "instrument/", *names, 16000), part, count,
                          (i, len(shards)))


def _notes(path, fault, schema, part="", count=None, span=(0, 1)):
    """Each sound note of a file, an Entry.

    schema: `_note`'s last arguments; count: of records, where known; span: which of how many files.
    """
    for number, payload, share in _records(path, fault, count):
        origin = f"{path}, record {number}"
        try:
            entry = _note(_features(payload), origin, *schema)
        except ValueError as error:
            text = str(error) if isinstance(error, NoteError) else f"{origin}: {error}"
            fault(NoteError(f"{text}; {AGAIN}"))
        else:
            yield entry._replace(part=part, share=(span[0] + share) / span[1])


def _note(features, origin, key, instrument, families, sources, rate=None):
    """The Entry of one record. ValueError for what is missing or not as it should be.

    `key` is the feature that names the note, and `instrument` how those begin that tell family and
    source, as places in `families` and `sources`. `rate`, in Hz, for schemas that do not tell it.
    """
    about = {name: str(values[0], "utf-8", "surrogateescape") if isinstance(values, list)
             else values[0].item() for name, values in features.items() if len(values) == 1}
    for what, words in (("family", families), ("source", sources)):
        place = about.get(instrument + what)
        if type(place) is int and 0 <= place < len(words):
            about.setdefault(f"instrument_{what}_str", words[place])   # the original schema has it
    about.setdefault("sample_rate", rate)
    flags = features.get("qualities")     # ten in one feature or, in TFDS, one in each of ten
    flags = flags.tolist() if isinstance(flags, np.ndarray) else flags
    about["qualities"] = [about.get(f"qualities/{quality}") for quality in QUALITIES
                          if f"qualities/{quality}" in features] or flags
    name = about.get(key) if isinstance(about.get(key), str) else ""
    pitch, family, source, rate, qualities = _check_example(origin, name, about)

    sound = features.get("audio", [])
    if isinstance(sound, list) or sound.dtype.kind != "f" or not len(sound):
        raise ValueError("feature audio is missing or empty: expected floats")
    if not np.isfinite(sound).all():
        raise ValueError("feature audio holds NaN or infinity")
    def audio():                          # the floats are int16 / 32768, exactly
        return np.rint(np.clip(sound, -1, 32767 / 32768) * 32768).astype(np.int16), rate

    return Entry(name, pitch, family, source, "", qualities, origin, audio, 0)


# ---- What lies around the records: TFDS's folders, and lists of notes ----


def _tfds_files(folder):
    """dataset_info.json and all beside it, of this folder or, up to three below, of the newest
    version of gansynth_subset; [] where there is none."""
    found = [path for between in ("*", "*/*", "*/*/*")
             for path in sorted(folder.glob(f"{between}/dataset_info.json"))
             if path.parent.parent.name.startswith("gansynth_subset")  # or ....f0_and_loudness
             and re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)]
    if (folder / "dataset_info.json").is_file():
        found = [folder / "dataset_info.json"]
    if not found:
        return []
    info = max(found, key=lambda path: [int(p) for p in re.findall(r"\d+", path.parent.name)])
    return [info, *sorted(path for path in info.parent.iterdir() if path != info)]


def _shards(folder, fault):
    """Yield (path, split, number of records) of each file of a TFDS version that is there.

    A split lies in files nsynth-train.tfrecord-00000-of-00002 and so on. Some missing: a fault.
    """
    info = folder / "dataset_info.json"
    text = _read_text(info)
    try:
        splits = [(split["name"], [int(count) for count in split["shardLengths"]])
                  for split in json.loads(text)["splits"]]
    except (LookupError, TypeError, ValueError):
        raise NoteError(f"{info} is not as TensorFlow Datasets writes it: fetch it again") from None
    nothing = True
    for split, counts in splits:
        paths = [folder / f"nsynth-{split}.tfrecord-{i:05}-of-{len(counts):05}"
                 for i in range(len(counts))]
        missing = [path.name for path in paths if not path.is_file()]
        if len(missing) < len(paths):
            nothing = False
            if missing:
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                fault(NoteError(f"{folder} lacks {', '.join(missing[:3])}{more}; {AGAIN}"))
            yield from ((path, split, count) for path, count in zip(paths, counts)
                        if path.name not in missing)
    if nothing:
        raise NoteError(f"{folder} holds no files such as nsynth-train.tfrecord-00000-of-00002: "
                        "fetch them again")


def _read_ids(path):
    """A published list of notes, in CSV: {name: its split, or None if the list does not tell}.

    Names are in the column headed id or note_str, else in the first; splits in one headed split.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(_read_text(path))) if any(row)]
    except csv.Error as error:
        raise NoteError(f"{path} is not CSV ({error}): fetch it again") from None
    head = [cell.strip().lower() for cell in rows[0]] if rows else [""]
    column = next((head.index(key) for key in ("id", "note_str") if key in head), 0)
    split = head.index("split") if "split" in head else None
    a_note, ids = re.compile(r"[^/]+-\d{3}-\d{3}"), {}
    for row in rows[0 if a_note.fullmatch(head[column]) else 1:]:      # a list may have no heading
        cells = dict(enumerate(cell.strip() for cell in row))
        name, where = cells.get(column, ""), split is not None and cells.get(split)
        if not a_note.fullmatch(name) or where in (None, ""):
            raise NoteError(f"{path}: {','.join(row)[:80]!r} lacks a note or its split: expected "
                            "rows such as guitar_acoustic_000-060-100,train")
        if ids.setdefault(name, where or None) != (where or None):
            raise NoteError(f"{path}: {name} is in {ids[name]} and in {where}: keep it in one")
    if not ids:
        raise NoteError(f"{path} names no notes: expected a column headed id")
    return ids


def _read_text(path):
    """A text file's contents, NoteError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NoteError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise NoteError(f"{path} is not text: fetch it again") from None


# ---- your own recordings: a folder of WAV files ----


def _read_recordings(files, fault):
    """The notes of WAV files of any kind: the pitch from their names, or from pitches.csv.

    Mixed down to mono, and begun 5 ms before the onset. A file that cannot be used is left out,
    and the report says why (see _pack): people's own folders hold other things as well.
    """
    pitches = {}
    if files[0].name == "pitches.csv":
        pitches, files = _read_pitches(files[0]), files[1:]
    root = Path(os.path.commonpath([file.parent for file in files]))
    for i, file in enumerate(files):
        place = file.relative_to(root)
        name = "-".join(place.with_suffix("").parts)
        pitch = pitches.get(file.name, pitches.get(file.stem, pitch_of(file.stem)))
        if pitch is None:
            fault(NoteError(f"{file} tells no pitch: expected a name such as note_060.wav, "
                            "note_C4.wav or note-060-100.wav, or a line in pitches.csv"))
            continue
        family = next((f for f in FAMILIES if f in place.as_posix().lower()), "other")
        yield Entry(name, pitch, family, "acoustic", "", "", str(file),
                    functools.partial(read_recording, file), i / len(files))


def _read_pitches(path):
    """pitches.csv: {file name: MIDI pitch}, from lines such as "take1.wav,60" or "take1.wav,C4"."""
    pitches = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise NoteError(f"cannot read {path}: {error}") from None
    for i, row in enumerate(csv.reader(lines)):
        pitch = pitch_of(f"_{row[1].strip()}") if len(row) > 1 else None
        if pitch is not None:
            pitches[row[0].strip()] = pitch
        elif i > 0 and row:               # the first line may be a title
            raise NoteError(f"{path}, line {i + 1}: expected a file name and a pitch, such as "
                            f"take1.wav,60 or take1.wav,C4, found {','.join(row)!r}")
    return pitches


def pitch_of(name):
    """MIDI pitch that a file's name tells, or None: guitar-060-100 (NSynth's: pitch, velocity),
    take_C4, F#3, Bb-1 (C4 is 60), or a number of two or three digits at its end, take_060."""
    nsynth = re.search(r"-(\d{3})-(\d{3})$", name)
    note = re.findall(r"(?:^|[^A-Za-z])([A-Ga-g])([#b♯♭s]?)(-1|\d)(?![0-9A-Za-z])", name)
    number = re.search(r"(?:^|[^0-9A-Za-z])(\d{2,3})$", name)
    if nsynth or not note and number:
        pitch = int((nsynth or number)[1])
    elif note:
        letter, accidental, octave = note[-1]
        pitch = (12 * (int(octave) + 1) + {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
                 [letter.upper()] + {"": 0, "b": -1, "♭": -1}.get(accidental, 1))
    else:
        return None
    return pitch if 0 <= pitch <= 127 else None


def read_recording(path):
    """A recording as a note: as `read_sound` reads it, but silence before the note is cut, and a
    silent file is a NoteError."""
    x, rate = read_sound(path)
    if np.abs(x).max() < 33:                                            # -60 dB of full scale
        raise NoteError(f"{path} is silent")
    return x[_onset(x, rate):], rate


def read_sound(path):
    """A WAV file of any common kind: ((L,) float32 in int16's range, its rate in Hz).

    8, 16, 24 or 32-bit integers or floats; channels are averaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                     # chunks that editors add
            warnings.filterwarnings("error", "Reached EOF")     # cut short
            rate, data = scipy.io.wavfile.read(path)
    except OSError as error:
        raise NoteError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:            # scipy raises many kinds for a damaged file
        reason = error if isinstance(error, ValueError) else "it breaks off"
        raise NoteError(f"{path} is no WAV file that can be read ({reason})") from None
    if data.size == 0 or not 0 < rate <= 10 ** 6:
        raise NoteError(f"{path} holds no sound ({data.size} samples at {rate} Hz)")
    x = data.astype(np.float32)
    if data.dtype.kind == "u":                                          # 8 bits
        x = (x - 128) / 128
    elif data.dtype.kind == "i":
        x /= -float(np.iinfo(data.dtype).min)
    if not np.isfinite(x).all():
        raise NoteError(f"{path} holds NaN or infinity")
    return x.reshape(len(x), -1).mean(axis=1) * 32768, rate             # (L,)


def _onset(x, rate):
    """Where the sound begins, less 5 ms: the first 2 ms that are within 40 dB of the loudest."""
    n = max(1, rate // 500)
    power = np.square(np.pad(x, (0, -len(x) % n))).reshape(-1, n).mean(axis=1)
    return max(0, int(np.argmax(power > 1e-4 * power.max())) * n - rate // 200)


# ---- 3. Packed notes --------------------------------------------------------------------------
#
# Reading thousands of files, or records of floats, for every epoch would take longer than training.
# So the first use packs the wanted notes into one folder, packed/... beside the data:
#
#     audio.int16      (N, L) samples, row by row, nothing else; read memory-mapped
#     notes.csv        a line a note: name, pitch, family, source, part, qualities, CRC-32
#     packed.json      what was asked for, what the data were, what was left out; written last
#
# Rows are appended to NAME.part, which is renamed when it is whole: an interrupted run goes on
# where it stopped, and a folder without .part is complete. It can be moved, and named by --data.

FORMAT = 2                # of the three files; 1, which packed.json does not name, had no qualities


def _load_packed(data, wish, progress, skip_damaged):
    """The packed notes of `data`; packed now if they are not yet, or were from other files."""
    path = Path(data)
    if (path / "packed.json").is_file():
        return _open_packed(path, wish.plain())
    reader, files = _find(data)
    wanted = {**wish.plain(), "skip_damaged": skip_damaged, "files": _fingerprint(files)}
    folder = _packed_folder(path if path.is_dir() else files[0].parent, path.name, wanted)
    try:
        return _open_packed(folder, wanted)
    except NoteError as error:            # not there yet, or of other files, or damaged
        if folder.exists():
            print(f"{error}; packing {data} again", file=sys.stderr)
    try:
        _pack(data, reader, files, folder, wish, wanted, progress)
    except OSError as error:
        raise NoteError(f"cannot pack {data} into {folder}: {error.strerror or error}; what is "
                        "packed so far stays, and the next run goes on from there") from None
    return _open_packed(folder, wanted)


def _fingerprint(files):
    """A text that changes when any of the files does, or any WAV of an examples.json."""
    seen = hashlib.sha256()
    for file in files:
        beside = os.scandir(file.parent / "audio") if file.name == "examples.json" and (
            file.parent / "audio").is_dir() else ()
        for name, stat in sorted([(file.name, file.stat())] + [(e.name, e.stat()) for e in beside]):
            seen.update(f"{file.parent.name}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return seen.hexdigest()


def _packed_folder(root, name, wanted):
    """Where to pack: in the data's own folder, or in the user's cache where that is read-only."""
    settings = {key: value for key, value in wanted.items() if key not in ("format", "files")}
    mark = zlib.crc32(f"{name} {settings}".encode())
    low, high = wanted["pitch_range"]
    own = f"{wanted['sample_rate']}Hz-{wanted['length']}-pitch-{low}-{high}-{mark:08x}"
    if os.access(root, os.W_OK):
        return root / "packed" / own
    place = f"{root.name}-{zlib.crc32(str(root.resolve()).encode()):08x}"
    return Path.home() / ".cache" / "gansynth" / place / own


def _pack(data, reader, files, folder, wish, wanted, progress):
    """Read all notes that are wanted and write them to `folder`, going on from its .part."""
    part, dropped, origins = folder.with_name(folder.name + ".part"), Counter(), {}

    def fault(error):
        if not wanted["skip_damaged"] and reader is not _read_recordings:
            raise error
        dropped[f"{error}"] += 1

    with _claim(part) as busy:
        done = _begun(part, wanted)
        with open(part / "audio.int16", "ab") as audio, open(
                part / "notes.csv", "a", newline="", encoding="utf-8") as table:
            for entry in progress_bar(reader(files, fault), "notes read", progress,
                                   lambda entry: entry.share):
                reason = wish.why_not(entry)
                if reason:
                    dropped[reason] += 1
                    continue
                try:
                    if entry.name in origins:   # it could land in both splits, and flatter every
                        raise NoteError(f"note {entry.name} is in {origins[entry.name]} and in "
                                        f"{entry.origin}: keep it in one")      # held-out number
                    origins[entry.name] = entry.origin
                    if entry.name in done:
                        continue
                    samples = wish.fit(*entry.audio()).astype("<i2")
                except NoteError as error:
                    fault(error)
                    continue
                audio.write(samples)
                csv.writer(table).writerow([*entry[:6], zlib.crc32(samples)])
                if len(origins) % 256 == 0:
                    audio.flush()
                    table.flush()
                    os.utime(busy)
            audio.flush()
            _check_any_left(os.path.getsize(part / "audio.int16"), dropped, data)
        lines = (part / "notes.csv").read_bytes()
        about = {**wanted, "dropped": dropped, "notes.csv": zlib.crc32(lines)}
        (part / "packed.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        (part / "begun.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


@contextlib.contextmanager
def _claim(part):
    """Make the .part folder ours: two programs must not append to one file."""
    part.mkdir(parents=True, exist_ok=True)
    busy = part / "busy"
    if busy.exists() and time.time() - busy.stat().st_mtime < 60:
        raise NoteError(f"{part} is being written by another program, or was by one killed less "
                        "than a minute ago: wait for it, or for a minute")
    busy.touch()
    try:
        yield busy
    finally:
        busy.unlink(missing_ok=True)


def _begun(part, wanted):
    """The names of the notes that are packed already; whatever is more of one file is cut off."""
    begun, audio, table = part / "begun.json", part / "audio.int16", part / "notes.csv"
    plain = json.dumps(wanted)
    if not begun.exists() or begun.read_text(encoding="utf-8") != plain:
        for file in (audio, table):       # begun for other files or settings, or not at all
            file.unlink(missing_ok=True)
        begun.write_text(plain, encoding="utf-8")
    audio.touch()
    table.touch()
    lines = table.read_bytes().splitlines(keepends=True)
    whole = min(sum(line.endswith(b"\n") for line in lines),
                audio.stat().st_size // (2 * wanted["length"]))
    os.truncate(audio, whole * 2 * wanted["length"])
    table.write_bytes(b"".join(lines[:whole]))
    return {row[0] for row in csv.reader(line.decode() for line in lines[:whole])}


def _open_packed(folder, wanted):
    """Notes of a packed folder. NoteError where it is damaged, or not what is wanted."""
    again = f"delete {folder}, and it will be packed again"
    try:
        about = {"format": 1, **json.loads((folder / "packed.json").read_text(encoding="utf-8"))}
        lines = (folder / "notes.csv").read_bytes()
        size = (folder / "audio.int16").stat().st_size
        for key, value in wanted.items():
            if about[key] != value:
                raise NoteError(f"{folder} was packed " + (
                    "from files that have changed since" if key == "files" else
                    "by another version of this program, so it has to be packed again from its data"
                    if key == "format" else
                    f"with {key} {about[key]}, and {value} is asked for"))
        if zlib.crc32(lines) != about["notes.csv"]:
            raise NoteError(f"{folder / 'notes.csv'} is damaged: {again}")
        rows = list(csv.reader(lines.decode().splitlines()))
        if size != len(rows) * 2 * wanted["length"]:
            raise NoteError(f"{folder / 'audio.int16'} has {size:,} bytes, not those of "
                            f"{len(rows):,} notes: {again}")
        dropped = {str(reason): int(n) for reason, n in about["dropped"].items()}
    except NoteError:                     # a ValueError, too
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoteError(f"{folder} holds no packed notes that can be read ({error!r}): {again}"
                        ) from None
    name, pitch, family, source, part, qualities, crc = map(np.array, zip(*rows))
    audio = np.memmap(folder / "audio.int16", "<i2", "r", shape=(len(rows), wanted["length"]))
    return Notes(audio, np.arange(len(rows)), pitch.astype(np.int64), family, source, name, part,
                 _flags(qualities), wanted["sample_rate"], dropped, crc.astype(np.int64),
                 str(folder / "audio.int16"))


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
        for i in progress_bar(range(len(notes)), "notes written", progress):
            name = str(notes.name[i])
            write_wav(folder / "audio" / f"{name}.wav", notes.waves([i])[0], notes.sample_rate)
            examples[name] = {
                "note_str": name, "pitch": int(notes.pitch[i]), "sample_rate": notes.sample_rate,
                "instrument_family_str": str(notes.family[i]),
                "instrument_source_str": str(notes.source[i])}
            if notes.qualities[i].min() >= 0:
                examples[name]["qualities"] = notes.qualities[i].tolist()
        (folder / "examples.json").write_text(json.dumps(examples, indent=1), encoding="utf-8")
    except OSError as error:
        raise NoteError(f"cannot write to {folder}: {error.strerror}") from None


# ---- 4. Order ---------------------------------------------------------------------------------


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

    Several processes that train together (ranks) share the stream: of R with n notes each, rank r
    takes the n from position + r n, and the next step begins at position + R n.

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


# ---- 5. WAV files -----------------------------------------------------------------------------


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


# ---- 6. Orchestra -----------------------------------------------------------------------------
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


def _orchestra_entries(sample_rate, pitch_range, length):
    low, high = pitch_range
    if _hertz(high) > 0.4 * sample_rate:
        raise NoteError(f"pitch {high} is {_hertz(high):.0f} Hz, too high for the orchestra at "
                        f"{sample_rate} Hz: ask for lower pitches or a higher sample rate")
    for timbre in RINGING + HELD:
        for pitch in range(low, high + 1):
            for velocity in VELOCITIES:
                name = f"{timbre.name}-{pitch:03}-{velocity:03}"
                yield Entry(name, pitch, timbre.name.split("_")[0], "acoustic", "", "", name,
                            functools.partial(_play, name, timbre, pitch, velocity, length,
                                              sample_rate), 0)


def _hertz(pitch):
    return 440 * 2 ** ((pitch - 69) / 12)


def _play(name, timbre, pitch, velocity, length, sample_rate):
    """One note of the orchestra: (length,) int16, and its rate."""
    force = VELOCITIES[velocity]
    rng = np.random.default_rng(zlib.crc32(name.encode()))  # chance, but the same every time
    t = np.arange(length, dtype=np.float32) / np.float32(sample_rate)   # (L,)  seconds
    method = _ring if isinstance(timbre, Ringing) else _hold
    x = method(timbre, _hertz(pitch), force, t, sample_rate, rng)       # (L,)
    x *= _rise((t[-1] - t) / EDGE)
    level = rng.uniform(0.6, 0.8) * force ** 0.8                        # 0.34-0.8 of full scale
    return np.rint(x * (32767 * level / max(np.abs(x).max(), 1e-9))).astype(np.int16), sample_rate


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


# ---- 7. SoundFont -----------------------------------------------------------------------------
#
# NSynth was made by playing libraries of recorded instruments one note at a time. A SoundFont is
# such a library in small, of the 128 instruments ("programs") of General MIDI; the program
# fluidsynth plays it.
#
# Below: family, source, then programs (from 0) and the keys each is played at. Those are the real
# instrument's and, as NSynth too goes on where that ends, an octave more either way, short of where
# FluidR3_GM no longer sounds the key's own pitch. Left out are programs without one clear pitch
# (bells, drums, effects) and those that sound a fifth or an octave beside their key.

GENERAL_MIDI = """
    bass acoustic         32 16-79
    brass acoustic        56 40-99, 57 22-89, 58 12-77, 59 40-96, 60 22-89, 61 22-96
    flute acoustic        72 62-120, 73-74 48-108, 75 43-108, 76-77 43-96, 78 60-108, 79 48-98
    guitar acoustic       24-25 28-96, 104 36-96, 105-106 36-93
    keyboard acoustic     0-1 9-120, 3 9-120, 6 17-101
    mallet acoustic       8 48-120, 10 48-108, 11 41-101, 12 24-108, 13 53-120, 108 43-96, 114 40-96
    organ acoustic        19 12-69, 20 17-101
    reed acoustic         21 29-105, 22 36-108, 23 24-107, 64 44-100, 65 37-93, 66 32-88, 67 24-81
    reed acoustic         68 46-103, 69 40-93, 70 22-87, 71 38-103, 111 46-96
    string acoustic       15 38-98, 40 43-112, 41 36-103, 42 24-93, 43 16-69, 44-45 16-108, 46 12-81
    string acoustic       48-49 16-108, 107 31-96, 110 43-112
    vocal acoustic        52-53 24-96
    bass electronic       33-37 16-79
    guitar electronic     26 28-96, 27 28-98, 28 28-91, 29-30 28-98
    keyboard electronic   2 9-120, 4-5 16-115, 7 17-100
    bass synthetic        38-39 12-84
    brass synthetic       62-63 22-96
    string synthetic      50-51 16-108
    synth_lead synthetic  80-85 24-108, 87 24-108
    vocal synthetic       54 24-96"""
# Every acoustic family: piano, harpsichord, marimba, church organ, guitar, double bass, cello,
# harp, choir, horns, bassoon and flute. 681 notes from 24 to 84, in some 10 s of one core.
MINI = {0, 6, 12, 19, 24, 32, 42, 46, 52, 60, 70, 73}
# Whole instruments are held out, as in NSynth; the rest is nsynth-train. None of these shares
# recordings with another program, as the fiddle does with the violin.
HELD_OUT = {"valid": {5, 15, 25, 28, 35, 46, 58, 68, 83}, "test": {13, 27, 36, 43, 56, 71, 73, 82}}

# Notes follow one another in slots of ms: when the key goes up, all sound stops, the next begins. A
# slot is a whole number of fluidsynth's 64-sample blocks: a note is the same whatever came before.
SLOT, PROBE = (3000, 4020, 4096), (1000, 1000, 1024)  # a note; one played for its level alone
LEVEL, CEILING, SILENT = 0.55, 0.95, 0.001  # peaks: the loudest probe's, at most, at least
OVER = 3              # fluidsynth plays at 3 * 16 kHz, so that what it folds over is filtered out

Instrument = namedtuple("Instrument", "program family source low high")  # an entry of the table


def render_soundfont(soundfont, out, instruments="mini", pitch_range=(24, 84), velocities=(100,),
                     progress=True) -> dict:
    """Play a General MIDI SoundFont (.sf2) note by note, with fluidsynth, into NSynth's layout.

    The folders nsynth-train, -valid and -test of `out` each get examples.json and audio/: 4 s at
    16 kHz, 16-bit mono, held for 3 s. `instruments`: "mini", "all", or one of SOURCES or FAMILIES.
    A note depends on its instrument, pitch and velocity alone, not on what else is asked for.
    NSynth's ten `qualities` are left out: nobody has listened. Returns how many notes were silent,
    and left out, and how many each folder holds: {"silent": 0, "nsynth-train": 586, ...}.

    NoteError where fluidsynth or the SoundFont is not as it should be, or `out` holds anything.
    examples.json comes last: a folder that has one is complete.
    """
    out, (low, high), counts, examples = Path(out), pitch_range, Counter(silent=0), {}
    chosen = [i for i in _instruments() if instruments in ("all", i.source, i.family)
              or instruments == "mini" and i.program in MINI]
    if not chosen:
        raise NoteError(f"unknown instruments {instruments!r}: expected mini, all, or one of "
                        f"{', '.join(SOURCES + FAMILIES)}")
    Wish(64000, 16000, tuple(pitch_range))  # its errors
    if not all(velocity in range(1, 128) for velocity in velocities):
        raise NoteError(f"velocities {velocities}: expected whole numbers, 1 to 127")
    _check_soundfont(soundfont)
    scales = [(i, velocity, range(max(low, i.low), min(high, i.high) + 1))
              for i in chosen for velocity in sorted(set(velocities))]
    try:
        if out.exists() and any(out.iterdir()):
            raise NoteError(f"{out} is not empty: name a new folder to write to")
        for i, velocity, pitches in progress_bar(scales, "scales played", progress):
            split = next((s for s, programs in HELD_OUT.items() if i.program in programs), "train")
            folder = out / f"nsynth-{split}"
            for pitch, wave in zip(pitches, _scale(soundfont, i, velocity, pitches)):
                if np.abs(wave).max() < SILENT:
                    counts["silent"] += 1
                    continue
                entry = _describe_note(i, pitch, velocity)
                (folder / "audio").mkdir(parents=True, exist_ok=True)
                write_wav(folder / "audio" / f"{entry['note_str']}.wav", wave, 16000)
                examples.setdefault(folder, {})[entry["note_str"]] = entry
        if not examples:
            raise NoteError(f"{soundfont} has no sound for {instruments} at pitches {low}-{high}: "
                            "expected a General MIDI SoundFont, such as FluidR3_GM.sf2")
        for folder, entries in examples.items():
            (folder / "examples.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
            counts[folder.name] = len(entries)
    except OSError as error:
        raise NoteError(f"cannot write to {out}: {error.strerror}") from None
    return dict(counts)


def _instruments():
    """The table's rows, one by one."""
    for line in GENERAL_MIDI.strip().splitlines():
        family, source, entries = line.split(maxsplit=2)
        for programs, keys in map(str.split, entries.split(", ")):
            first, last = _span(programs)
            for program in range(first, last + 1):
                yield Instrument(program, family, source, *_span(keys))


def _describe_note(i, pitch, velocity):
    """What NSynth's examples.json says of a note. Instruments are numbered by their programs."""
    name = f"{i.family}_{i.source}_{i.program:03}"
    return {"note": (i.program * 128 + pitch) * 128 + velocity,
            "note_str": f"{name}-{pitch:03}-{velocity:03}", "pitch": pitch, "velocity": velocity,
            "sample_rate": 16000, "instrument": i.program, "instrument_str": name,
            "instrument_family": FAMILIES.index(i.family), "instrument_family_str": i.family,
            "instrument_source": SOURCES.index(i.source), "instrument_source_str": i.source}


def _check_soundfont(path):
    """NoteError unless there is something that looks like a SoundFont, and a fluidsynth for it."""
    try:
        with open(path, "rb") as file:
            start, why = file.read(12), "it does not start as one"
    except OSError as error:
        start, why = b"", error.strerror
    if start[:4] + start[8:] != b"RIFFsfbk":
        raise NoteError(f"{path} is not a SoundFont ({why}): expected a General MIDI .sf2 file, "
                        "such as /usr/share/sounds/sf2/FluidR3_GM.sf2, which apt install "
                        "fluid-soundfont-gm brings on Debian and Ubuntu")
    if not shutil.which("fluidsynth"):
        raise NoteError("the program fluidsynth is not on the PATH: install it with apt install "
                        "fluidsynth (Debian, Ubuntu), brew install fluid-synth (macOS) or choco "
                        "install fluidsynth (Windows)")


def _scale(soundfont, instrument, velocity, pitches):
    """An instrument's notes at some pitches: (n, 64000) float32, zeros where it has no sound."""
    if not pitches:
        return np.zeros((0, 64000), np.float32)
    probes = np.linspace(instrument.low, instrument.high, 6).astype(int).tolist()
    slots = [(pitch, 100, *PROBE) for pitch in probes]
    slots += [(pitch, velocity, *SLOT) for pitch in pitches]
    x = _fluidsynth(soundfont, _midi(instrument.program, slots))
    x = scipy.signal.resample_poly(x, 1, OVER)                           # 16 samples a millisecond
    begin = 16 * PROBE[2] * len(probes)
    length = begin + 16 * SLOT[2] * len(pitches)
    x = np.pad(x[:length], (0, max(0, length - len(x))))
    notes = x[begin:].reshape(len(pitches), -1)[:, :64000]               # (n, 64000)
    notes = notes * (LEVEL / max(np.abs(x[:begin]).max(), 1e-9))
    return notes * np.minimum(1, CEILING / np.maximum(np.abs(notes).max(1, keepdims=True), 1e-9))


def _midi(program, slots):
    """A MIDI file, as bytes, of notes (pitch, velocity, and the three times of SLOT).

    500 ticks a quarter note, of which MIDI's own tempo has 120 a minute: a tick is a millisecond.
    """
    events, start = [(0, bytes([0xC0, program]))], 0                     # choose the instrument
    for pitch, velocity, release, stop, following in slots:
        events += [(start, bytes([0x90, pitch, velocity])),              # key down
                   (start + release, bytes([0x80, pitch, 0])),           # key up
                   (start + stop, bytes([0xB0, 120, 0]))]                # all sound off
        start += following
    events.append((start, b"\xff\x2f\x00"))                              # end of track
    track, now = b"", 0
    for when, message in events:  # each says how long after the last, in two groups of 7 bits
        track += bytes([0x80 | (when - now) >> 7, (when - now) & 0x7F]) + message
        now = when
    header = struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, 500, b"MTrk", len(track))
    return header + track


def _fluidsynth(soundfont, midi):
    """What fluidsynth makes of a MIDI file, without reverb and chorus: mono float32 at 48 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        notes, sound = Path(folder, "notes.mid"), Path(folder, "notes.raw")
        notes.write_bytes(midi)
        ran = subprocess.run(
            ["fluidsynth", "-ni", "-f", os.devnull, "-R", "0", "-C", "0", "-g", "0.5", "-r",
             str(16000 * OVER), "-o", "synth.dynamic-sample-loading=1", "-o",
             "synth.default-soundfont=", "-O", "float", "-T", "raw", "-F", sound,
             os.path.abspath(soundfont), notes],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if "substituted" in ran.stderr:  # it would play a piano for an instrument that is missing,
            return np.zeros(0, np.float32)   # and calls it no failure to have loaded nothing
        if ran.returncode or "Failed to load" in ran.stderr or not sound.exists():
            why = [line for line in ran.stderr.splitlines() if "error" in line.lower()]
            raise NoteError(f"fluidsynth cannot play {soundfont} "
                            f"({why[0] if why else f'status {ran.returncode}'}): expected a whole "
                            "General MIDI SoundFont, so fetch it again")
        return np.fromfile(sound, np.float32).reshape(-1, 2)[64:].mean(1)  # a block late


# ---- 8. Download ------------------------------------------------------------------------------

SITE = "http://download.magenta.tensorflow.org/datasets/nsynth"
PARTS = {"test": 4_096, "valid": 12_678, "train": 289_205}  # notes. The large one comes last, so
NOTE_ON_DISK = 2 ** 17  # that trouble shows early. A WAV is 128,044 bytes, in blocks of 4,096


def download(out="nsynth", parts=tuple(PARTS), site=SITE, keep=False, progress=True):
    """Fetch NSynth and unpack it to out/nsynth-test, out/nsynth-valid and out/nsynth-train.

    All three take some 62 GB of disk on the way and 40 GB in the end. Whatever goes wrong, run it
    again: finished folders are skipped, and an archive goes on from where it stopped. Archives are
    deleted once unpacked, unless they are to `keep`. NoteError without a part, or room for it.
    """
    if not set(parts) <= set(PARTS):
        raise NoteError(f"parts {', '.join(parts)}: expected some of {', '.join(PARTS)}")
    out, sizes = Path(out), {}
    for name in [f"nsynth-{part}" for part in PARTS if part in parts]:
        if not (out / name).exists():
            with _answer(f"{site}/{name}.jsonwav.tar.gz", "HEAD") as answer:
                sizes[name] = int(answer.headers.get("Content-Length", 0))
                if not sizes[name]:
                    raise OSError("the server tells no length")
    if not sizes:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        _check_room(out, sizes, keep, progress)
        for name, size in sizes.items():
            archive = out / f"{name}.jsonwav.tar.gz"
            _fetch_archive(f"{site}/{archive.name}", archive, size, progress)
            _unpack(archive, out / name, progress)
            if not keep:
                archive.unlink()
    except OSError as error:
        raise NoteError(f"cannot write to {out} ({error.strerror}): put that right, and run this "
                        "again to go on from here") from None


@contextlib.contextmanager
def _answer(url, method="GET", **headers):
    """A server's answer, to be read in a `with` whose every failure becomes a NoteError."""
    try:
        request = urllib.request.Request(url, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            yield answer
    except (OSError, http.client.HTTPException) as error:  # no such file, no network, a full disk
        raise NoteError(f"cannot fetch {url} ({error}): check the address, the connection and the "
                        "disk, and run this again to go on from here") from None


def _check_room(out, sizes, keep, progress):
    """Say how much disk archives of these sizes need on the way; NoteError if it is not there."""
    archives = (sum if keep else max)(sizes.values())   # the last of them, beside all the notes
    notes = NOTE_ON_DISK * sum(PARTS[name.split("-")[1]] for name in sizes)
    there = sum(path.stat().st_size for path in out.glob("nsynth-*.jsonwav.tar.gz")
                if path.name.split(".")[0] in sizes)
    free = shutil.disk_usage(out).free
    need = (f"{', '.join(sizes)} in {out}: {archives / 1e9:,.1f} GB for archives, of which "
            f"{there / 1e9:,.1f} are there, and {notes / 1e9:,.1f} for notes; "
            f"{free / 1e9:,.1f} GB are free")
    if archives + notes > there + free:
        raise NoteError(f"no room for {need}: name a folder on another disk, or fewer parts")
    if progress:
        print(need, file=sys.stderr)


def _fetch_archive(url, path, size, progress):
    """Fetch what the file at `path` lacks of the `size` bytes at `url`."""
    have = path.stat().st_size if path.exists() else 0
    if have == size:
        return
    have = have if have < size else 0                   # longer: it is of something else
    with _answer(url, Range=f"bytes={have}-") as answer:
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0                                    # no ranges here: all of it is sent again
        with open(path, "ab" if have else "wb") as file:
            megabytes = range(-(-(size - have) // 10 ** 6))
            for _ in progress_bar(megabytes, f"MB of {path.name}", progress):
                file.write(answer.read(10 ** 6))
        if path.stat().st_size != size:
            raise OSError(f"it ended at {path.stat().st_size:,} of {size:,} bytes")


def _unpack(archive, folder, progress):
    """Unpack an archive to `folder`, which is there once all of it is.

    Only files of NSynth's layout are taken, so that none can land anywhere else.
    """
    beside = folder.with_name(f".{folder.name}.part")
    wanted = re.compile(rf"(\./)?{folder.name}/(examples\.json|audio/[\w-]+\.wav)")
    shutil.rmtree(beside, ignore_errors=True)           # of a run that was killed
    (beside / folder.name / "audio").mkdir(parents=True)
    ticks = progress_bar(range(archive.stat().st_size // 10 ** 6 + 1), "MB unpacked", progress)
    try:
        with (open(archive, "rb") as packed, gzip.open(packed) as plain,
              tarfile.open(fileobj=plain, mode="r|") as tar):
            tick = next(ticks)
            for member in tar:
                if member.isreg() and wanted.fullmatch(member.name):
                    (beside / member.name).write_bytes(tar.extractfile(member).read())
                while tick < packed.tell() // 10 ** 6:
                    tick = next(ticks)
            while plain.read(10 ** 6):                  # to the checksum at the end
                pass
        if not (beside / folder.name / "examples.json").exists():
            raise tarfile.TarError("it holds no examples.json")
        os.replace(beside / folder.name, folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        archive.unlink()
        raise NoteError(f"{archive} was damaged ({error}) and is deleted: run this again to fetch "
                        "it anew") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# ---- python nsynth.py -------------------------------------------------------------------------


def _span(text):
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _names(text):
    return () if text == "all" else tuple(text.split(","))


def _velocities(text):
    return tuple(map(int, text.split(",")))


def main(argv=None):
    """The command line. Returns the exit status: 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(
        description="Say which notes there are, pack them for training, and make or fetch more.")
    add = parser.add_argument
    add("data", nargs="?", default="orchestra", help="a folder of notes (NSynth's JSON and WAVs, "
        "TFRecords, TFDS, or WAVs of your own), a TFRecord file, or: orchestra (default)")
    add("--length", type=Fraction, default=4, metavar="SECONDS",
        help="of each note (default 4)")  # a Fraction: unlike float, it has no nan
    add("--rate", type=int, default=16000, help="samples a second (default 16000)")
    add("--pitches", type=_span, default=(24, 84), metavar="LOW-HIGH",
        help="MIDI pitches (default 24-84)")
    add("--sources", type=_names, default=("acoustic",), metavar="NAMES",
        help="comma-separated, or: all (default acoustic)")
    add("--families", type=_names, default=(), metavar="NAMES",
        help="comma-separated, or: all (default all)")
    add("--split", default="random", metavar="BY", help="random (default; 80/20), folders (as the "
        "data is split already), or a CSV list of note ids")
    add("--skip-damaged", action="store_true",
        help="leave out what cannot be read, and count it")
    add("--out", metavar="DIR", help="write the notes there, in NSynth's layout")
    add("--soundfont", metavar="FILE",
        help="play a General MIDI SoundFont (.sf2) to --out, with fluidsynth")
    add("--instruments", default="mini", metavar="NAME",
        help="of --soundfont: mini (default: 12 of them), all, a source or a family")
    add("--velocities", type=_velocities, default=(100,), metavar="V[,V...]",
        help="of --soundfont: how hard each key is struck, 1 to 127 (default 100)")
    add("--download", nargs="?", const=",".join(PARTS), metavar="PARTS",
        help="fetch NSynth to --out (default nsynth): test, valid, train or, by default, all of "
        "them (62 GB on the way)")
    args = parser.parse_args(argv)
    if args.soundfont and not args.out:
        parser.error("--soundfont needs --out DIR, a new folder to write the notes to")
    try:
        if args.download:
            download(args.out or "nsynth", args.download.split(","))
        elif args.soundfont:
            counts = render_soundfont(args.soundfont, args.out, args.instruments, args.pitches,
                                      args.velocities)
            print(", ".join(f"{count:,} {what}" for what, count in counts.items()), "in", args.out)
        else:
            notes = load(args.data, round(args.length * args.rate), args.rate, args.pitches,
                         args.sources, args.families, skip_damaged=args.skip_damaged)
            print(describe(*split(notes, by=args.split), release=args.data != "orchestra"))
            if args.out:
                save(notes, args.out)
    except NoteError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
