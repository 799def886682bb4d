"""Plays a SoundFont note by note into a folder like NSynth's, to train on sampled instruments.

    python notebooks/render_soundfont.py FluidR3_GM.sf2 --out mini      681 notes of 12 instruments
    python notebooks/render_soundfont.py FluidR3_GM.sf2 --out rendered --instruments acoustic \\
        --velocities 50,75,100                                          8,742 notes of 59

NSynth was made by playing libraries of recorded instruments one note at a time. A SoundFont is such
a library in small, of the 128 instruments ("programs") of General MIDI; the program fluidsynth
plays it. On Debian and Ubuntu `apt install fluidsynth fluid-soundfont-gm` brings both, the file as
/usr/share/sounds/sf2/FluidR3_GM.sf2. Then `python train.py --data mini` and so on.
"""

import signal
import sys

if __name__ == "__main__":                # Ctrl-C while the packages load: no traceback
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections import Counter, namedtuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))      # where nsynth.py is

import numpy as np
import scipy.signal

import nsynth
from nsynth import FAMILIES, SOURCES, NoteError, span

# Family, source, then programs (from 0) and the keys each is played at. Those are the real
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
    nsynth.Wish(64000, 16000, tuple(pitch_range))  # its errors
    if not all(velocity in range(1, 128) for velocity in velocities):
        raise NoteError(f"velocities {velocities}: expected whole numbers, 1 to 127")
    _check_soundfont(soundfont)
    scales = [(i, velocity, range(max(low, i.low), min(high, i.high) + 1))
              for i in chosen for velocity in sorted(set(velocities))]
    try:
        if out.exists() and any(out.iterdir()):
            raise NoteError(f"{out} is not empty: name a new folder to write to")
        for i, velocity, pitches in nsynth.progress_bar(scales, "scales played", progress):
            split = next((s for s, programs in HELD_OUT.items() if i.program in programs), "train")
            folder = out / f"nsynth-{split}"
            for pitch, wave in zip(pitches, _scale(soundfont, i, velocity, pitches)):
                if np.abs(wave).max() < SILENT:
                    counts["silent"] += 1
                    continue
                entry = _describe_note(i, pitch, velocity)
                (folder / "audio").mkdir(parents=True, exist_ok=True)
                nsynth.write_wav(folder / "audio" / f"{entry['note_str']}.wav", wave, 16000)
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
            first, last = span(programs)
            for program in range(first, last + 1):
                yield Instrument(program, family, source, *span(keys))


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


def whole_numbers(text):
    return tuple(map(int, text.split(",")))


def main(argv=None):
    """The command line. Returns the exit status: 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(
        description="Play a General MIDI SoundFont with fluidsynth into a folder like NSynth's.")
    add = parser.add_argument
    add("soundfont", metavar="FILE.sf2", help="such as FluidR3_GM.sf2")
    add("--out", required=True, metavar="DIR", help="a new folder to write the notes to")
    add("--instruments", default="mini", metavar="NAME",
        help="mini (default: 12 of them), all, a source or a family")
    add("--velocities", type=whole_numbers, default=(100,), metavar="V[,V...]",
        help="how hard each key is struck, 1 to 127 (default 100)")
    add("--pitches", type=span, default=(24, 84), metavar="LOW-HIGH", help="MIDI (default 24-84)")
    args = parser.parse_args(argv)
    try:
        counts = render_soundfont(args.soundfont, args.out, args.instruments, args.pitches,
                                  args.velocities)
        print(", ".join(f"{count:,} {what}" for what, count in counts.items()), "in", args.out)
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
