"""Notes: where they come from, which are kept, and in what order training reads them (paper 2.1).

A note is what NSynth calls one: an instrument playing one pitch at one velocity, held for three
seconds and released for one. GANSynth learns from the 70,379 of them that are acoustic and lie
between MIDI 24 and 84, shuffled and split again 80/20. That comes first. Behind the ruled line are
the forms that notes come in, packing, WAV and MIDI files, and an orchestra that needs no download.

`python nsynth.py [DATA]` says what a folder, or the orchestra, holds; `--out DIR` writes it as WAV
files. Shapes: N notes, L samples, n notes of a batch, P pitches, K partials."""

import signal
import sys

if __name__ == "__main__":                # Ctrl-C while the packages load: no traceback
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import csv
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
from collections import Counter, namedtuple
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import product, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import scipy.io.wavfile
import scipy.signal
import torch

FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string",
            "synth_lead", "vocal")
SOURCES = ("acoustic", "electronic", "synthetic")
QUALITIES = ("bright", "dark", "distortion", "fast_decay", "long_release", "multiphonic",
             "nonlinear_env", "percussive", "reverb", "tempo-synced")
# The release's training notes of each pitch (TFDS nsynth/gansynth_subset), 24..84: 60,788.
# paper: 70,379 notes with those held out.
RELEASE_COUNTS = Counter(dict(zip(range(24, 85), map(int, """
    551 545 561 550 549 578 547 628 626 630 670 668 751 768 788 801 821 871 873 860 873 844 883
    865 1058 1036 1094 1065 1186 1200 1187 1346 1273 1320 1263 1283 1349 1285 1281 1332 1286 1301
    1220 1300 1209 1257 1288 1223 1258 1183 1178 1125 1171 1089 1024 1081 966 1043 991 959 977
    """.split()))))

class NoteError(ValueError):
    """Notes that cannot be read, made or written: one sentence saying what to do about it."""

    def __init__(self, text):
        super().__init__(_printable(text))

@dataclass(frozen=True)
class Notes:
    """N notes of one length and rate, and what is known of each. The audio, which may lie on disk,
    is shared by subsets: `row` says which of its rows is which note's."""
    audio: np.ndarray     # (M, L) int16, M >= N
    row: np.ndarray       # (N,) int64, of audio
    crc: np.ndarray       # (N,) int64, CRC-32 of the note's audio when it was made
    name: np.ndarray      # (N,) str: NSynth's note_str, e.g. guitar_acoustic_000-060-100
    pitch: np.ndarray     # (N,) int64, MIDI
    family: np.ndarray    # (N,) str, NSynth's family names
    source: np.ndarray    # (N,) str: acoustic, electronic, synthetic
    part: np.ndarray      # (N,) str: train, valid or test where the data is split already, or ""
    qualities: np.ndarray  # (N, 10) int64: 1 has it, 0 has it not, -1 where the data do not say
    sample_rate: int
    dropped: dict         # what was left out: reason -> count

    def __len__(self):
        return len(self.name)

    def waves(self, indices) -> torch.Tensor:
        """The notes at `indices`, (n,), as (n, L) float32 in [-1, 1); NoteError where damaged."""
        indices = np.asarray(indices, dtype=np.int64)
        audio = self.audio[self.row[indices]]                           # (n, L)  a copy
        for i, samples in zip(indices, audio):
            if zlib.crc32(samples) != self.crc[i]:
                raise NoteError(f"{self.audio.filename}: note {self.row[i]} ({self.name[i]}) is "
                                "damaged: delete its folder, and it will be packed again")
        return torch.from_numpy(audio.astype(np.float32) / 32768)

    def subset(self, indices) -> "Notes":
        """The notes at `indices`, in that order, as Notes; the audio is shared."""
        i = np.asarray(indices, dtype=np.int64)
        columns = ("row", "crc", "name", "pitch", "family", "source", "part", "qualities")
        return replace(self, **{column: getattr(self, column)[i] for column in columns})

def load(data, length, sample_rate, pitch_range=(24, 84), sources=("acoustic",), families=(),
         progress=True, skip_damaged=False, pack="") -> Notes:
    """The notes at `data`, resampled to `sample_rate` Hz and cut or padded to `length` samples.

    data: see FORMS; or a pattern such as "nsynth/*.tfrecord"; or a folder packed before. All but
    the built-in notes are packed on first use, beside the data or in the folder `pack`. Notes are
    pooled, since the paper splits again. Empty `sources` or `families` mean all. NoteError when
    nothing is left, and for any file that is not as it should be, unless `skip_damaged`, or if they
    are your own WAV files: then the notes lost are counted in `dropped`."""
    wish = Wish(length, sample_rate, tuple(pitch_range), tuple(sources), tuple(families))
    if str(data) == "orchestra":
        audio, found = [], progress_bar(_read_orchestra(wish), "notes made", progress)
        rows, dropped = _gather(found, audio.append, data, wish, skip_damaged)
        audio = np.stack(audio)
    else:
        audio, rows, dropped = _load_packed(str(data), wish, progress, skip_damaged, pack)
    return Notes(audio, np.arange(len(audio)), *map(np.array, zip(*rows)), sample_rate, dropped)

def split(notes, seed=0, share=0.8, by="random"):
    """(train, held_out): which notes to train on.

    by "random": a seeded shuffle: its first `share` is to train on, and all of pitches it lacks.
    paper: notes are shuffled, to hear every instrument; NSynth's own split holds some out.
    by "folders": as the data itself is split; valid and test are held out.
    by a CSV file's path: as a published list says, with columns id and split, or with ids alone,
    which are then those to train on; notes it does not name are in neither."""
    if by == "random":
        train, held_out = np.split(_shuffle(len(notes), seed), [round(share * len(notes))])
        lone = ~np.isin(notes.pitch[held_out], notes.pitch[train])
        return notes.subset(np.append(train, held_out[lone])), notes.subset(held_out[~lone])
    part = notes.part
    if by != "folders":
        listed = _read_list(by, _a_note_and_its_split, "a note's name, and its split if so headed")
        part = np.array([listed.get(name, "") for name in notes.name])
    train = np.flatnonzero(part == "train")
    if len(train) == 0:
        raise NoteError(f"no note is in the training part by {by!r}: expected folders nsynth-train "
                        "and so on, or a CSV list with a column headed id; or split by random")
    return notes.subset(train), notes.subset(np.flatnonzero((part != "train") & (part != "")))

def pitch_counts(notes, pitch_range) -> torch.Tensor:
    """How many notes there are of each pitch of the range: (P,) int64, P = high - low + 1."""
    low, high = pitch_range
    return torch.from_numpy(np.bincount(notes.pitch, minlength=128)[low:high + 1])

def draw_pitches(counts, n, generator=None) -> torch.Tensor:
    """n pitch labels for fakes: (n,) int64, 0 for the lowest pitch, as often as `counts` has them,
    as the released code: D then sees each pitch as often among fakes as among real notes."""
    return torch.multinomial(counts.double(), n, replacement=True, generator=generator)

def epoch_order(position, n, count, seed) -> np.ndarray:
    """The notes (indices, (n,) int64) at positions position .. position + n - 1 of training.

    Training reads an endless stream in which each epoch is a new shuffle of all `count` notes,
    seeded by (seed, epoch): the number of examples seen says what comes next, also after a resume.
    Of R processes rank r takes the n from position + r n, and the next step begins R n further.

    The shuffle is over the whole set: NSynth's records are ordered by instrument, and a buffer of
    1,000 notes shows one or two at a time: no diversity after four days (magenta issue 1732)."""
    first, last = position // count, (position + n) // count
    stream = np.concatenate([_shuffle(count, seed, epoch) for epoch in range(first, last + 1)])
    return stream[position - first * count:][:n]

@lru_cache(maxsize=2)  # a step needs one epoch's shuffle, or two where it straddles
def _shuffle(count, seed, *more):
    """A permutation of `count`, the same for the same whole numbers."""
    return np.random.default_rng([seed, *more]).permutation(count)

def describe(train, held_out, release=False) -> str:
    """What is in the two splits, and what was dropped; with `release`, beside paper and release.
    Read it: a filter that kept electronic notes cost users weeks (magenta issue 1607)."""
    kept, lost = len(train) + len(held_out), sum(train.dropped.values())
    seconds = train.audio.shape[1] / train.sample_rate
    lines = [f"kept {kept:,} of {kept + lost:,} notes, {seconds:g} s at {train.sample_rate:,} Hz",
             *(f"  dropped {reason}" for reason in _reasons(train.dropped, 40)),
             f"{'':18}{'train':>9}{'held out':>10}",
             f"{'all':18}{len(train):9,}{len(held_out):10,}"]
    if release:
        lines += ["paper: all           56,303    14,076", "release: all         60,788"]
    for column in ("source", "family", "pitch"):
        mine, theirs = (Counter(getattr(part, column).tolist()) for part in (train, held_out))
        if column != "pitch":
            lines += [f"{f'{column} {value}':18}{mine[value]:9,}{theirs[value]:10,}"
                      for value in sorted(mine | theirs)]
    lines += ["pitch             " + "".join(f"{f'+{i}':>6}" for i in range(12))]
    for low in range(min(mine | theirs), max(mine | theirs) + 1, 12):   # an octave a line
        for label, counts in ((f"{low:5}  train", mine), ("       held out", theirs),
                              *[("  release, train", RELEASE_COUNTS)] * release):
            lines += [f"{label:18}" + "".join(f"{counts[p]:6}" for p in range(low, low + 12))]
    return "\n".join(lines)

# =================================================================================================
# Behind this line: where the notes come from. Nothing of it is needed to follow training.
FORMS = ("a folder in NSynth's layout (examples.json beside audio/), of TFRecords, of TFDS or of "
         "your own WAV files; a TFRecord file; or the word orchestra for the built-in notes")
LONGEST = 600                     # seconds that a note may last, and that are read of a file

@contextmanager
def explained(what, cure, kinds=OSError):
    """Errors of these kinds become a NoteError: what cannot be done, why, and what to do then."""
    try:
        yield
    except FileNotFoundError:
        raise NoteError(f"{what}: the file, or its folder, is not there") from None
    except kinds as error:
        raise NoteError(f"{what}: {getattr(error, 'strerror', None) or error}; {cure}") from None

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
            raise NoteError(f"pitch range {low}-{high}: expected MIDI's 0 <= low <= high <= 127")
        if not (self.sample_rate >= 1 and 1 <= self.length <= LONGEST * self.sample_rate):
            raise NoteError(f"{self.length} samples at {self.sample_rate} Hz: expected at least "
                            f"one of each, and at most {LONGEST} seconds")
        for option, known in (("sources", SOURCES), ("families", FAMILIES)):
            for value in set(getattr(self, option)) - set(known):
                raise NoteError(f"{value!r} in {option}: expected all, or {', '.join(known)}")

    def why_not(self, entry):
        """Why a note is not wanted (the first reason that applies), or None."""
        low, high = self.pitch_range
        if self.sources and entry.source not in self.sources:
            return f"the source is not {' or '.join(self.sources)}"
        if not low <= entry.pitch <= high:
            return f"the pitch is outside {low}-{high}"
        if self.families and entry.family not in self.families:
            return "the family is none of those asked for"

    def fit(self, samples, rate):
        """Samples at their own rate -> (L,) int16 at ours: cut, resampled, cut or zero-padded."""
        if rate != self.sample_rate:      # its filter reaches ten samples of the slower rate
            ratio = Fraction(self.sample_rate, rate).limit_denominator(10_000)
            reach = self.length + 10 * max(1, self.sample_rate / rate)
            samples = samples[:math.ceil(reach / ratio) + 1].astype(np.float32)
            samples = scipy.signal.resample_poly(samples, ratio.numerator, ratio.denominator)
        samples = np.clip(np.rint(samples[:self.length]), -32768, 32767).astype("<i2")
        return np.pad(samples, (0, self.length - len(samples)))         # (L,)

def progress_bar(items, what, wanted=True, total=None, each=1):
    """Yield the items; once that has taken two seconds, show on stderr how far it is. An item is
    `each` of `what`; `total`: how many items there are, if they have no len()."""
    total = total or (len(items) if hasattr(items, "__len__") else 0)
    end, start, shown = "    \r" if sys.stderr.isatty() else "\n", time.monotonic(), 0
    for done, item in enumerate(items):
        seconds = time.monotonic() - start
        if wanted and seconds > max(2, shown + (5 if end == "\n" else 0.2)):
            left = f", {seconds * max(0, total / done - 1):,.0f} s left" if total and done else ""
            sys.stderr.write(f"{done * each:,} {what}, {done * each / seconds:,.0f}/s{left}{end}")
            shown = seconds
        yield item
    if shown and end != "\n":
        print(file=sys.stderr)

# ---- Readers: from the files of one form to an Entry for every note in them -----------------
# Or else a NoteError for what is wrong, which ends it all or, with skip_damaged, is counted; or the
# reason why a file is of no use, to count. `origin`: a note's file and record, for messages;
# `sound`: seconds needed -> samples, (L,), in int16's range, and their rate. The rest: see Notes.

Entry = namedtuple("Entry", "name pitch family source part qualities origin sound")
SOUNDS = (".wav", ".aif", ".aiff", ".caf", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wma")
UNTOLD = [-1] * 10                # qualities of a note of which they are not known
WORD = r"""(['"])[^/\\]+\1"""
FIELDS = {                        # of a note: a value's form in Python, and in words
    "note_str": (WORD, "a plain word"),
    "instrument_family_str": (WORD, "a plain word"),
    "instrument_source_str": (WORD, "a plain word"),
    "pitch": (r"\d\d?|1[01]\d|12[0-7]", "a whole number, 0 to 127"),
    "sample_rate": (r"[1-9]\d{3,5}", "a whole number, 1000 to 999999"),
    "qualities": (r"None|\[[01](, [01]){9}\]", "ten of 0 and 1, or no such field")}

def _gather(found, keep, data, wish, skip_damaged):
    """Of what a reader found, hand the samples, (L,) int16, of each note that is wanted to `keep`.
    Returns a row of each, its CRC-32 and an Entry's first six, and the rest as {reason: count}."""
    origins, rows, dropped = {}, [], Counter()
    for entry in found:
        try:
            if isinstance(entry, NoteError):
                raise entry
            reason = entry if isinstance(entry, str) else wish.why_not(entry)
            if reason:
                dropped[_printable(reason)] += 1
            elif entry.name in origins:   # it could land in both splits, and flatter held-out notes
                raise NoteError(f"note {entry.name} is in {origins[entry.name]} and in "
                                f"{entry.origin}: keep it in one")
            else:                         # 0.1 s more, for the resampler
                samples = wish.fit(*entry.sound(wish.length / wish.sample_rate + 0.1))
                keep(samples)
                rows.append([zlib.crc32(samples), *entry[:6]])
                origins[entry.name] = entry.origin
        except NoteError as error:
            if not skip_damaged:
                raise NoteError(f"{error}; or leave it out, with --skip-damaged") from None
            dropped[str(error)] += 1
    if not rows:
        why = ", ".join(_reasons(dropped, 3))
        raise NoteError(f"none of the {sum(dropped.values()):,} notes of {data} is left: {why}; "
                        "change the sources, families or pitches asked for, or the files" if why
                        else f"{data} holds no notes: expected {FORMS}")
    return rows, dropped

def _reasons(dropped, most):
    """{"reason": 3, ...} -> ["3 because reason", ...], no more than `most` and one for the rest."""
    reasons = [f"{n:,} because {reason}" for reason, n in dropped.items()]
    more = sum([*dropped.values()][most:])
    return reasons[:most] + [f"{more:,} for other reasons"] * (more > 0)

def _printable(text):
    """Text as one line that can be shown and kept; a name that is no UTF-8 is read as Latin-1."""
    text = re.sub("[\udc80-\udcff]", lambda byte: chr(ord(byte[0]) - 0xdc00), text)
    return "".join(c if c.isprintable() else "?" for c in text)

def _find(data):
    """What is at a path or pattern: (reader, tables, files); tables say what is in the files."""
    path = Path(data)
    if not path.is_dir():
        files = [Path(name) for name in sorted(glob.glob(data)) if os.path.isfile(name)]
        if files and all(".tfrecord" in file.name for file in files):
            return _read_records, [], files
        raise NoteError(f"{data} is {'of no use' if files else 'not there'}: expected {FORMS}")
    inside = sorted((file for file in path.rglob("*") if os.path.isfile(file)), key=str)
    sounds = [file for file in inside if file.suffix.lower() in SOUNDS]
    examples = list(path.glob("examples.json")) or sorted(path.glob("*/examples.json"))
    if examples:
        return _read_examples, examples, sounds
    tfds = r"gansynth_subset[^/\\]*[/\\]\d+\.\d+\.\d+$"             # it makes a folder a version
    folders = [file.parent for file in inside if ".tfrecord" in file.name and (
        file.parent == path or re.search(tfds, os.path.abspath(file.parent)))]
    if folders:                           # this one, or else the newest
        folder = max(folders, key=lambda folder: (
            folder == path, [int(number) for number in re.findall(r"\d+", folder.name)]))
        files = [file for file in inside if file.parent == folder and ".tfrecord" in file.name]
        return _read_records, [*folder.glob("dataset_info.json")], files
    return _read_recordings, list(path.glob("pitches.csv")), sounds

def _read(path, parse):
    """What a text file holds, by a function that knows its form, and may raise anything."""
    with explained(f"cannot read {path}", "save, fetch or unpack it again", Exception):
        return parse(Path(path).read_text(encoding="utf-8-sig"))

def _read_list(path, parse, expected):
    """A CSV file that says something of names, but for a heading: {name: what is said}. parse(row,
    cells), of a row and the same by its headings, gives both, or None where not as `expected`."""
    rows, listed = _read(path, lambda text: [*csv.reader(text.splitlines())]), {}
    rows = [[cell.strip() for cell in row] for row in rows if any(row)]
    for i, row in enumerate(rows):
        name, said = parse(row, dict(zip_longest(map(str.lower, rows[0]), row, fillvalue="")))
        if said is None and i == 0:
            continue
        if None in (name, said) or listed.setdefault(name, said) != said:
            raise NoteError(f"{path}, line {i + 1}, {','.join(row)[:80]!r}: expected {expected}, "
                            "and no other line that says otherwise")
    return listed

def _entry(about, place, origin, sound):
    """The Entry of a note, from a dict of what NSynth says about it; ValueError where that is not
    as it should be. Its folder or file, `place`, tells the part; `sound` still needs the rate."""
    name, family, source, pitch, rate, flags = map(about.get, FIELDS)
    for field, (form, expected) in FIELDS.items():
        if not re.fullmatch(form, repr(about.get(field))):
            raise ValueError(f"field {field} of note {str(name)!r:.80} is "
                             f"{about.get(field)!r:.80}: expected {expected}")
    said = re.fullmatch(r"(.+)_([a-z]+)_\d{3}-(\d{3})-\d{3}", name)   # to check them by
    if said and (said[1], said[2], int(said[3])) != (family, source, pitch):
        raise ValueError(f"note {name} is {family}, {source}, pitch {pitch}: expected as named")
    part = (re.findall(r"^(?:nsynth-)?(train|valid|test)(?:\.|$)", place) or [""])[0]
    return Entry(name, pitch, family, source, part, flags or UNTOLD, origin, partial(sound, rate))

def _attempt(origin, make, *args):
    """The Entry that make(*args) gives, or a NoteError for what is wrong there."""
    try:
        return make(*args)
    except ValueError as error:
        return NoteError(f"{origin}: {error}; fetch the file again")

def _read_examples(tables, sounds):
    """NSynth's layout: the notes of folders that hold an examples.json each, beside audio/."""
    unnamed = set(sounds)
    for table in tables:
        for name, about in _read(table, lambda text: dict(json.loads(text))).items():
            about = {**(about if isinstance(about, dict) else {}), "note_str": name}
            wav = table.parent / "audio" / f"{name}.wav"
            unnamed.discard(wav)
            yield _attempt(table, _entry, about, table.parent.name, wav, partial(read_sound, wav))
    yield from ["no examples.json names that file"] * len(unnamed)

# ---- TFRecord files: checksum, record, message, note ----------------------------------------
# A record of NSynth is a tf.train.Example, a protocol buffer, read here from its bytes up.
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

@lru_cache(maxsize=1)
def _remainders():
    """x^k mod P as uint32, from k = 8 FOLD - 1 down to 0; the lowest bit is that of x^31."""
    powers = [1 << 31]
    while len(powers) < 8 * FOLD:         # times x; x^32 is P's other terms
        powers.append(powers[-1] >> 1 ^ (0x82F63B78 if powers[-1] & 1 else 0))
    return np.array(powers[::-1], np.uint32)

def _records(path, count):
    """Yield the payload of every record of a file, plain or GZIP, or a ValueError where one is
    wrong. There should be `count`, if that is known. A record is a length in bytes (uint64), its
    CRC, the payload and its CRC; after a damaged length nothing says where the next begins."""
    number = 0
    try:
        with open(path, "rb") as disk:    # a length could begin like GZIP, but of 559,903 only
            file = gzip.open(disk) if disk.peek(3)[:3] == b"\x1f\x8b\x08" else disk
            while header := file.read(12):
                if _crc32c(header[:8]) != header[8:]:
                    raise EOFError("the checksum of its length does not match, or breaks off")
                length = int.from_bytes(header[:8], "little")
                data = file.read(min(length, 1 << 22) + 4)    # 4 MB: 16 times a note of NSynth
                if len(data) != length + 4:
                    raise EOFError("the file breaks off inside it, or it is longer than any note")
                number, right = number + 1, _crc32c(data[:-4]) == data[-4:]
                yield memoryview(data)[:-4] if right else ValueError("its checksum does not match")
        if count not in (None, number):   # cut between two records a file looks whole
            yield ValueError(f"the file holds {number} records: expected {count}")
    except (OSError, EOFError, zlib.error) as error:          # all three from GZIP, too
        yield ValueError(f"{getattr(error, 'strerror', None) or error}, so the rest is lost")

def _varints(data, at, count, order=1):
    """So many whole numbers from a place on, and the place behind them: seven bits a byte, lowest
    first (order -1: highest first); a top bit says that another byte follows."""
    found = re.compile(rb"([\x80-\xff]{0,9}[\0-\x7f])" * count).match(data, at)
    if not found:
        raise ValueError("its contents break off, or are not as they should be")
    return *(sum((byte & 127) << 7 * i for i, byte in enumerate(varint[::order]))
             for varint in found.groups()), found.end()

def _fields(message, kinds=(2,)):
    """Yield (number, value) of each field of a protocol buffer's message: tags and values in turn.
    A tag is 8 * number + kind: 0, a varint; 5, four bytes; 2, a length and that many bytes."""
    at = 0
    while at < len(message):
        tag, at = _varints(message, at, 1)
        value, at = (4, at) if tag & 7 == 5 else _varints(message, at, 1)
        if tag & 7 not in kinds or tag & 7 and value > len(message) - at:
            raise ValueError("its contents break off, or are not as they should be")
        if tag & 7:
            value, at = message[at:at + value], at + value
        yield tag >> 3, value

def _features(payload):
    """The features of a tf.train.Example, {name: value}: text, an int, a list of more than one, or
    an array of float32. What the fields' numbers mean is agreed elsewhere:

        Example     1: Features                   Feature   one of  1: BytesList,
        Features    1: entry (repeated)                     2: FloatList, 3: Int64List
        entry       1: name, 2: Feature           ...List   1: value (repeated, or all in one)"""
    found = {}
    for _, features in _fields(memoryview(payload)):
        for _, entry in _fields(features):
            pair = {1: b"", 2: b"", **dict(_fields(entry))}
            for kind, listed in _fields(pair[2]):
                value = b"".join(value for _, value in _fields(listed))
                if kind == 1:
                    value = str(value, "utf-8", "replace")
                elif kind == 2:           # ValueError if the last float is cut
                    value = np.frombuffer(value, "<f4")
                else:
                    *value, _ = _varints(value, 0, sum(byte < 128 for byte in value))
                    value = value[0] if len(value) == 1 else value
                found[str(pair[1], "utf-8", "replace")] = value
    return found

def _read_records(tables, files):
    """The notes of TFRecord files, in NSynth's own schema or, if there is a dataset_info.json, as
    TensorFlow Datasets (TFDS) has them; of a split that has a file, none may be missing."""
    def shards(text):                     # {file's name: how many records it holds}
        return {f"nsynth-{split['name']}.tfrecord-{i:05}-of-{len(split['shardLengths']):05}":
                int(count) for split in json.loads(text)["splits"]
                for i, count in enumerate(split["shardLengths"])}

    counts = _read(tables[0], shards) if tables else {}
    splits = {file.name.split("-0")[0] for file in files}
    told = {files[0].with_name(name) for name in counts if name.split("-0")[0] in splits}
    for path in files + sorted(told - set(files)):
        for number, payload in enumerate(_records(path, counts.get(path.name)), 1):
            origin = f"{path}, record {number}"
            yield _attempt(origin, _note, payload, path.name, origin)

def _note(payload, place, origin):
    """The Entry of a record; ValueError for a wrong one. NSynth's own schema has FIELDS, that of
    TFDS id, instrument/family (a place in FAMILIES), a feature for each quality, and no rate."""
    if isinstance(payload, ValueError):
        raise payload
    about = _features(payload)
    if "id" in about:
        about = {"note_str": about["id"], "sample_rate": 16000, **about}
    for what, known in (("family", FAMILIES), ("source", SOURCES)):
        number = about.get(f"instrument_{what}", about.get(f"instrument/{what}"))
        if type(number) is int and number < len(known):
            about.setdefault(f"instrument_{what}_str", known[number])
    each = [about.get(f"qualities/{quality}") for quality in QUALITIES]
    if each != [None] * 10:
        about["qualities"] = each
    floats = about.get("audio")
    if not isinstance(floats, np.ndarray) or not len(floats) or not np.isfinite(floats).all():
        raise ValueError("feature audio is not as it should be: expected floats, and at least one")
    return _entry(about, place, origin, lambda rate, _: (   # the floats are int16 / 32768, exactly
        np.rint(np.clip(floats, -1, 32767 / 32768) * 32768).astype(np.int16), rate))

def _a_note_and_its_split(row, cells):
    """For `_read_list`: the column id or note_str, or the first; and that named split, or train."""
    name, part = cells.get("id", cells.get("note_str", row[0])), cells.get("split", "train")
    return name, part if part and re.fullmatch(r"[^/]+-\d{3}-\d{3}", name) else None

# ---- A tensor bundle: where TensorFlow keeps a model's variables ----------------------------
# Their numbers are in model.ckpt-N.data-00000-of-00001, where each is in model.ckpt-N.index, a
# table: blocks of entries, sorted by name; a block of their handles (offset, size); and 48 bytes: a
# handle of no use, that of the block of handles, zeros, a mark. A variable's entry is a message: 1
# type, 2 shape, 3 data file, 4 offset, 5 size, 6 CRC; in the nameless first, 1 is how many files.

def read_bundle(index):
    """A tensor bundle's .index, a Path -> a function from a variable's name to its array. Both
    raise OSError, ValueError or KeyError for what is damaged or missing."""
    data = index.read_bytes()
    if data[-8:] != bytes.fromhex("57fb808b247547db"):
        raise ValueError(f"{index.name} is cut off, or no table")
    *_, offset, size, _ = _varints(data, len(data) - 48, 4)
    table = {name.decode(): dict(_fields(value, (0, 2, 5)))
             for _, handle in _entries(data, offset, size)
             for name, value in _entries(data, *_varints(handle, 0, 2)[:2])}

    def variable(name):
        kind, shape, shard, offset, _, crc = (table[name].get(i, 0) for i in range(1, 7))
        shape = [dict(_fields(size, (0,))).get(1, 0) for _, size in _fields(shape or b"")]
        path = index.with_suffix(f".data-{shard:05}-of-{table[''][1]:05}")
        array = np.fromfile(path, {1: "<f4", 9: "<i8"}[kind], math.prod(shape), offset=offset)
        if _crc32c(array.tobytes()) != crc:
            raise ValueError(f"{path.name}: the checksum of {name} does not match")
        return array.reshape(shape)

    return variable

def _entries(data, offset, size):
    """Yield (name, value), bytes, of each entry of a block. An entry: three varints (how many
    letters of its name are those of the name before, how many others follow, the size of its
    value), those letters, the value. Behind the last: places of whole names, and their number,
    uint32 each. Then, beyond `size`, a byte (0: not compressed) and a CRC of it all."""
    block = data[offset:offset + size + 5]
    if _crc32c(block[:-4]) != block[-4:] or block[-5]:
        raise ValueError("a block of its .index is damaged, or compressed, as TensorFlow's are not")
    at, name, end = 0, b"", size - 4 - 4 * int.from_bytes(block[size - 4:size], "little")
    while at < end:
        shared, fresh, length, at = _varints(block, at, 3)
        name = name[:shared] + block[at:at + fresh]
        at += fresh + length
        yield name, block[at - length:at]

# ---- Your own recordings: a folder of WAV files ---------------------------------------------
def _read_recordings(tables, sounds):
    """The notes of WAV files of any kind: the pitch from their names, or from pitches.csv. A file
    that cannot be used is left out, and counted: people's own folders hold other things as well."""
    known, pitches = {_printable(file.stem) for file in sounds}, {}

    def parse(row, _):
        name, told = re.sub(r"(?i)\.wav$", "", row[0]), "".join(row[1:2])
        pitch = int(told) if re.fullmatch(r"\d{1,3}", told) else pitch_of(told)
        return name if name in known and pitch in (None, *range(128)) else None, pitch

    for table in tables:
        pitches = _read_list(table, parse, "a file that is there, and its pitch: a.wav,60 or a,C4")
    root = os.path.commonpath([file.parent for file in sounds]) if sounds else ""
    for file in sounds:
        place = file.relative_to(root)
        pitch = pitches.get(_printable(file.stem), pitch_of(file.stem))
        if file.suffix.lower() != ".wav":
            yield f"it is a {file.suffix} file: convert it to WAV, with ffmpeg or sox"
        elif pitch is None:
            yield (f"{file} tells no pitch, or more than one: expected a name such as "
                   "note_060.wav, note_C4.wav or note-060-100.wav, or a line in pitches.csv")
        else:
            name = _printable("-".join(place.with_suffix("").parts))
            family = next((f for f in FAMILIES if f in place.as_posix().lower()), "other")
            yield Entry(name, pitch, family, "acoustic", "", UNTOLD, str(file),
                        partial(read_recording, file))

def pitch_of(name):
    """MIDI pitch that a file's name tells, or None if it tells none, or more than one:
    guitar-060-100 (NSynth's: pitch, velocity); a note such as C4 (60), F#3, Bb-1, C_4, A0v1; or
    else a number, 12 to 127, at the end or the beginning: take_060, m60, note60, 60-piano."""
    nsynth = re.search(r"-(\d{3})-\d{3}$", name)
    name = re.sub(r"\d{4}([-_.]?)\d\d\1\d\d([ T_-]+\d\d[-_.:]\d\d[-_.:]\d\d)?", "", name)   # a date
    notes, numbers = set(), set()
    for letter, accidental, octave in re.findall(
            r"(?<![^\W_])([A-Ga-g])([#b♯♭s]?)(-1|\d|-\d|_\d)(?:v\d+)?(?![^\W_])", name):
        if octave.isdigit() or letter.isupper():          # take_a_2 is no note
            scale = "C D EF G A B".index(letter.upper())
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
# Reading thousands of files each epoch would take longer than training: the first use packs what is
# wanted into one folder, which can be moved, and named by --data. audio.int16: (N, L) samples;
# packed.json: its own CRC-32, what was asked for and left out, and a row a note, with its CRC-32.

def _load_packed(data, wish, progress, skip_damaged, pack):
    """(audio, rows, dropped) of `data`; packed now if it is not yet, or was from other files."""
    path, asked = Path(data), json.loads(json.dumps(vars(wish)))        # as JSON has it
    if (path / "packed.json").is_file():
        return _open_packed(path, asked)
    reader, tables, files = _find(data)
    root = path if path.is_dir() else files[0].parent
    skip_damaged = asked["skip_damaged"] = skip_damaged or reader is _read_recordings
    mark = zlib.crc32(ascii([path.name, asked, pack and root.resolve()]).encode())
    folder = Path(pack or root / "packed", f"{wish.sample_rate}Hz-{wish.length}-{mark:08x}")
    stats = [file.stat() for file in tables + files]
    asked["files"] = zlib.crc32(ascii([(file.parent.name, file.name, stat.st_size, stat.st_mtime_ns)
                                       for file, stat in zip(tables + files, stats)]).encode())
    try:
        return _open_packed(folder, asked)
    except NoteError as error:            # not there yet, or of other files, or damaged
        if folder.exists():
            print(f"{error}; packing {_printable(data)} again", file=sys.stderr)
    size = sum(stat.st_size for stat in stats)          # a note takes 256 kB of a TFRecord
    found = progress_bar(reader(tables, files), "notes read", progress,
                         size >> 18 if reader is _read_records else len(files))
    with explained(f"cannot pack {data} into {folder}",
                   "make room there, or name another place with --pack DIR"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(".part", dir=folder.parent) as beside:  # renamed when it is whole
            part = Path(beside, "pack")
            part.mkdir()
            with open(part / "audio.int16", "wb") as audio:
                rows, dropped = _gather(found, audio.write, data, wish, skip_damaged)
            about = json.dumps({"asked": asked, "dropped": dropped, "rows": rows})
            (part / "packed.json").write_text(f"[{zlib.crc32(about.encode())}, {about}]")
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    return _open_packed(folder, asked)

def _open_packed(folder, asked):
    """The same of a packed folder. NoteError where it is damaged, or not what is asked for."""
    with explained(f"cannot read {folder}", "delete it, and it will be packed again", Exception):
        crc, about = json.loads((folder / "packed.json").read_text())
        if zlib.crc32(json.dumps(about).encode()) != crc:
            raise ValueError("the checksum of packed.json does not match")
        had, rows = about["asked"], about["rows"]
        audio = np.memmap(folder / "audio.int16", "<i2", "r").reshape(len(rows), had["length"])
    for key, value in asked.items():
        if had.get(key) != value:
            raise NoteError(f"{folder} was packed " + (
                "from files that have changed since" if key == "files" else
                f"with {key} {had.get(key)}, and {value} is asked for"))
    return audio, rows, about["dropped"]

# ---- WAV files in and out -------------------------------------------------------------------
def read_sound(path, rate=None, seconds=LONGEST):
    """A WAV file of any common kind, its first `seconds` at most: (L,) samples in int16's range,
    and their rate in Hz, which may have to be `rate`. Any fault is a NoteError. Mono of 16 bits is
    exact, int16; else float32: 8, 24 or 32 bits, floats up to 1 or 32,768, the mean of channels."""
    with explained(f"cannot read {path}", "fetch it again, or: ffmpeg -i FILE NEW.wav", Exception):
        with open(path, "rb") as file:
            found, x = scipy.io.wavfile.read(io.BytesIO(_first(file, seconds)))
        if rate not in (None, found):
            raise ValueError(f"its rate is {found} Hz: expected {rate}, as its examples.json says")
        if x.dtype == np.int16 and x.ndim == 1:
            return x.copy(), found
        kind, peak = x.dtype.kind, np.abs(x).max()
        if kind == "f" and not peak <= 32768:                           # or NaN
            raise ValueError(f"a sample of it is {peak:g}, and floats should be from -1 to 1")
    scale = {"u": 256, "i": 2.0 ** (16 - 8 * x.itemsize), "f": 32768 if peak <= 8 else 1}[kind]
    x = x.astype(np.float32).reshape(len(x), -1).mean(axis=1)           # (L,)
    return (x - 128 * (kind == "u")) * np.float32(scale), found         # 8 bits are unsigned

def _first(file, seconds):
    """The first seconds of a WAV file, as the bytes of a shorter one. ValueError where it is none.
    So a long file costs no memory, and one that was written to a pipe is read to its end."""
    start, form = file.read(12), b""
    if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
        raise ValueError("it is not a WAV file" if start else "it is empty")
    while len(head := file.read(8)) == 8 and head[:4] != b"data":  # chunks: tag, size, bytes
        size = int.from_bytes(head[4:], "little")
        end = file.tell() + size + size % 2
        form = file.read(min(size, 64)) if head[:4] == b"fmt " else form
        file.seek(end)
    size, there = int.from_bytes(head[4:], "little"), os.fstat(file.fileno()).st_size - file.tell()
    if len(head) < 8 or len(form) < 16 or there < size < 0x7FFF0000:  # more: written to a pipe
        raise ValueError(f"it is cut short: {max(0, there):,} of {size:,} bytes of sound are there")
    channels, rate, _, frame = struct.unpack("<HIIH", form[2:14])
    if not (1000 <= rate <= 384_000 and 1 <= channels <= frame):
        raise ValueError(f"it has {channels} channels at {rate:,} Hz: expected 1,000 to 384,000 Hz")
    data = file.read(min(size, there, math.ceil(seconds * rate) * frame, 1 << 28) // frame * frame)
    if not data:
        raise ValueError("it holds no sound")
    return struct.pack(f"<4sI4s4sI{len(form)}s4sI", b"RIFF", 20 + len(form) + len(data), b"WAVE",
                       b"fmt ", len(form), form, b"data", len(data)) + data

def write_wav(path, wave, sample_rate):
    """Write a wave, (L,) float in [-1, 1], clipped beyond, as 16-bit mono: the inverse of
    `read_sound(...)[0] / 32768`. NoteError for other waves, and places one cannot write to."""
    path, x = Path(path), torch.as_tensor(wave).detach().cpu()
    if x.ndim != 1 or not len(x) or not x.is_floating_point() or not x.isfinite().all():
        raise NoteError(f"cannot write {path}: expected a wave of floats with one axis and neither "
                        f"NaN nor infinity, not {x.dtype} of shape {tuple(x.shape)}")
    samples = (x.double() * 32768).round().clamp(-32768, 32767).numpy().astype(np.int16)
    with (explained(f"cannot write {path}", "make room there, or name another place"),
          TemporaryDirectory(".part", dir=path.parent) as beside):      # renamed when it is whole
        scipy.io.wavfile.write(f"{beside}/part", sample_rate, samples)
        os.replace(f"{beside}/part", path)

def save(notes, folder):
    """Write Notes in NSynth's layout, so that they can be listened to, and loaded again. Refuses a
    folder that holds anything (NoteError). A folder that has an examples.json is complete."""
    folder, examples = Path(folder), {}
    with explained(f"cannot write to {folder}", "make room there, or name another place"):
        if folder.exists() and any(folder.iterdir()):
            raise NoteError(f"{folder} is not empty: name a new folder to write to")
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(progress_bar(notes.name.tolist(), "notes written")):
            write_wav(folder / "audio" / f"{name}.wav", notes.waves([i])[0], notes.sample_rate)
            told = (name, str(notes.family[i]), str(notes.source[i]), int(notes.pitch[i]),
                    notes.sample_rate, notes.qualities[i].tolist())
            examples[name] = {key: said for key, said in zip(FIELDS, told) if said != UNTOLD}
        (folder / "examples.json").write_text(json.dumps(examples, indent=1), encoding="utf-8")

# ---- MIDI files ------------------------------------------------------------------------------
NOTE_OFF, NOTE_ON, CONTROL, META, TEMPO = 0x80, 0x90, 0xB0, 0xFF, 0x51      # TEMPO: one of META

def read_midi(path):
    """The notes of a standard MIDI file, of format 0 or 1, in order of their ends: a list of
    (start, end, pitch, velocity, channel), in seconds and as the file counts. A note ends when its
    key is up, and the pedal (controller 64), or is struck again, or with the file. Or NoteError."""
    with explained(f"cannot read {path}", "expected a MIDI file, of format 0 or 1", Exception):
        division, events = _midi_events(Path(path).read_bytes())
    strokes, pedals = [], set()           # a key: (channel, pitch)
    sounding, let_go = {}, set()          # keys' starts and velocities; those a pedal may hold
    seconds, last, tempo = 0.0, 0, 500_000              # microseconds a quarter note

    def end(key):
        let_go.discard(key)
        if key in sounding:
            start, velocity = sounding.pop(key)
            strokes.append((start, seconds, key[1], velocity, key[0]))

    for tick, status, data in sorted(events, key=lambda event: event[0]):
        seconds += (tick - last) * tempo / 1e6 / division
        last, kind, key = tick, status & 0xF0, (status & 0x0F, *data[:1])
        if status == META:                # of which there is only tempo
            tempo = int.from_bytes(data, "big")
        elif kind == NOTE_ON and data[1]:
            end(key)
            sounding[key] = seconds, data[1]
        elif kind in (NOTE_ON, NOTE_OFF):
            let_go.add(key)
        elif kind == CONTROL and data[0] == 64:
            (pedals.add if data[1] >= 64 else pedals.discard)(key[0])
        for key in sorted(key for key in let_go if key[0] not in pedals):
            end(key)
    for key in list(sounding):
        end(key)
    return strokes

def _midi_events(file):
    """A MIDI file's bytes -> ticks a quarter note, [(tick, status, data)] of channels and tempi."""
    whole, file = len(file), file + bytes(14)           # which no header or message reaches beyond
    tag, size, form, tracks, division = struct.unpack_from(">4sIHHH", file)
    if tag != b"MThd" or form > 1 or not 0 < division < 0x8000:
        raise ValueError("it is none, of another format, or counts frames of film")
    end, events = 8 + size, []
    while tracks and end <= whole:
        tag, size = struct.unpack_from(">4sI", file, end)
        at, end, tick, running = end + 8, end + 8 + size, 0, 0
        tracks -= tag == b"MTrk"          # there may be others
        while tag == b"MTrk" and at < end <= whole:
            ticks, at = _varints(file, at, 1, -1)
            status, at = (file[at], at + 1) if file[at] >= 0x80 else (running, at)
            if 0x80 <= status < 0xF0:
                running, kind, length = status, None, 1 if status & 0xE0 == 0xC0 else 2
            elif status in (0xF0, 0xF7, META):          # SysEx, and what is no message
                kind, at = (file[at], at + 1) if status == META else (0, at)
                length, at = _varints(file, at, 1, -1)
            else:
                raise ValueError(f"a message has the status {status}")
            tick, data, at = tick + ticks, file[at:at + length], at + length
            if at > end or kind is None and max(data) > 127 or kind == TEMPO and length != 3:
                raise ValueError("a message in it is damaged")
            if kind in (None, TEMPO):
                events.append((tick, status, data))
        events.append((tick, 0, b""))     # notes may last until its end
    if end > whole:
        raise ValueError(f"it is cut short, by {end - whole:,} bytes or more")
    return division, events

# ---- Orchestra ------------------------------------------------------------------------------
# A note is a sum of partials k f0. What makes a timbre is how strong each is, how it starts and how
# it dies. The partials of a string or pipe follow the pitch, but the box, bell or throat around it
# has resonances at fixed Hz. High partials come later and are gone sooner. Figures chosen by hand.

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

def _read_orchestra(wish):
    """An Entry for each note of the orchestra in the range of pitches, at two velocities."""
    low, high = wish.pitch_range
    if 440 * 2 ** ((high - 69) / 12) > 0.4 * wish.sample_rate:
        raise NoteError(f"pitch {high} is too high for the orchestra at {wish.sample_rate} Hz: ask "
                        "for lower pitches or a higher sample rate")
    for timbre, pitch, velocity in product(TIMBRES, range(low, high + 1), VELOCITIES):
        name = f"{timbre}-{pitch:03}-{velocity:03}"
        yield Entry(name, pitch, timbre.split("_")[0], "acoustic", "", UNTOLD, name, partial(
            _play, name, 440 * 2 ** ((pitch - 69) / 12), VELOCITIES[velocity], wish))

def _play(name, f0, force, wish, seconds):
    """One note of the orchestra: (L,) float64 in int16's range, and its rate. The sum of
    a_k sin(k phi) is the imaginary part of a polynomial in one complex number w = r exp(i phi) that
    turns at the note's frequency; r below 1 takes more from the high partials."""
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
def parse_pitch(text):
    """ "60", or "C4" -> 60: a type for argparse, with its error."""
    pitch = int(text) if re.fullmatch(r"\d{1,3}", text) else pitch_of(text)
    if pitch not in range(128):
        raise argparse.ArgumentTypeError(f"{text!r} is no pitch, such as 60, C4, F#3 or Bb4")
    return pitch

def span(text):
    """ "24-84" or "C1-C6" -> (24, 84), "60" -> (60, 60): a type for argparse."""
    low, _, high = text.partition("-")
    return parse_pitch(low), parse_pitch(high or low)

def names(text):
    """ "acoustic,electronic" -> a tuple of them, "all" -> none: a type for argparse."""
    return tuple(word for word in map(str.strip, text.split(",")) if word not in ("", "all"))

@contextmanager
def one_sentence(script, errors):
    """Errors of these kinds end a script with a sentence, and Ctrl-C without a traceback."""
    try:
        yield
    except errors as error:
        sys.exit(f"{script}: {error}")
    except KeyboardInterrupt:
        print(f"{script}: stopped before it was done", file=sys.stderr)
        sys.exit(130)

def main(argv=None):
    parser = argparse.ArgumentParser(usage="%(prog)s [PATH] [flags]; see --help",
                                     description="Say which notes there are; pack and write them.")
    add = parser.add_argument
    add("data", nargs="?", default="orchestra", help=f"{FORMS}; or of packed notes")
    add("--length", type=Fraction, default=4, metavar="SECONDS", help="of each note (default 4)")
    add("--rate", type=int, default=16000, help="samples a second (default 16000)")
    add("--pitches", type=span, default=(24, 84), metavar="LOW-HIGH", help="such as C1-C6, 24-84")
    add("--sources", type=names, default=("acoustic",), metavar="NAMES",
        help="comma-separated, or: all (default acoustic)")
    add("--families", type=names, default=(), metavar="NAMES", help="likewise (default all)")
    add("--split", default="random", metavar="BY", help="random (default; 80/20), folders (as the "
        "data is split already), or a CSV list of note ids")
    add("--skip-damaged", action="store_true", help="count bad notes, and go on (own WAVs: always)")
    add("--pack", default="", metavar="DIR", help="where to pack (default: packed, in the data)")
    add("--out", metavar="DIR", help="write the notes there, in NSynth's layout")
    args = parser.parse_args(argv)
    with one_sentence("nsynth.py", NoteError):
        notes = load(args.data, round(args.length * args.rate), args.rate, args.pitches,
                     args.sources, args.families, skip_damaged=args.skip_damaged, pack=args.pack)
        print(describe(*split(notes, by=args.split), release=args.data != "orchestra"))
        if args.out:
            save(notes, args.out)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    main()
