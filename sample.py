"""Listen to a checkpoint: notes as WAV files, rainbowgrams, a table, and one page to hear them on.

    python sample.py                              16 random notes of the model that comes with it
    python sample.py runs/0001                    those of a run's newest checkpoint
    python sample.py runs/0001 --pitch C4,Eb4,G4  the same timbres at chosen pitches, in turn
    python sample.py runs/0001 --scale            one timbre over all pitches, as a page to play on
    python sample.py runs/0001 --interpolate      from one timbre to another (paper Fig. 4)
    python sample.py runs/0001 --timbres 12       timbres far apart: --timbre t03 then picks one
    python sample.py runs/0001 --midi demo        a piece of music, or that of a MIDI file
    python sample.py runs/0001 --like note.wav    the timbre that is nearest to a recording
    python sample.py acoustic_only --scale        Magenta's published weights, as unpacked
    python sample.py --bench                      seconds a note, of each of the paper's models

The notes of a seed never change: more of them begin with the same ones, --scale plays the timbre
of the first, --interpolate goes from the first to the second.  Timbres are the different latents
of a latents.npz: t00, t01, ... in their order, all of which --scale plays.  The averaged generator
is heard, at the size it has grown to by then.  A WaveNet has no latents, but draws every sample:
there is nothing to interpolate, and a seed means the same notes only where as many are asked for.

Shapes:  N notes, L samples.  z is (N, latent), waves are (N, L).  Pitches are MIDI numbers (60 is
C4), apart from the labels 0..P-1 of the networks: MIDI numbers less the lowest trained one."""

import signal
import sys

if __name__ == "__main__":                # Ctrl-C while the packages load: no traceback
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import base64
import contextlib
import csv
import html
import math
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.benchmark import Timer

import gansynth
import nsynth
import spectral

MODEL = Path(__file__).parent / "notebooks" / "media" / "model.pt"       # comes with the scripts
NAMES = "C C# D D# E F F# G G# A A# B".split()
PEAK, SILENT = 10 ** (-1 / 20), 1e-3      # of what is heard, -1 dBFS; below -60 it stays silent

class SampleError(ValueError):
    """A request that this checkpoint or folder cannot meet; the message says what it can."""

def note_name(pitch):
    """60 -> "C4", 61 -> "C#4"."""
    return f"{NAMES[pitch % 12]}{pitch // 12 - 1}"

def parse_pitches(text):
    """ "60", "C4", "F#3,Bb4" -> MIDI numbers, a list: a type for argparse, with its error."""
    return [nsynth.parse_pitch(part.strip()) for part in text.split(",")]

def slerp(z0, z1, steps):
    """Spherical interpolation from z0 to z1, (latent,) each -> (steps, latent), ends included.

    Normal latents of many dimensions lie near a sphere.  A straight line cuts through it, and its
    middle is too short by about sqrt 2; as G norms latent and pitch together, that would not even
    out but turn the pitch up.  An arc keeps the typical length."""
    t = torch.linspace(0, 1, steps)[:, None]                        # (steps, 1)
    angle = torch.acos(torch.cosine_similarity(z0, z1, dim=0).clamp(-1, 1))
    if angle.sin() < 1e-4:                                          # parallel: the arc is a line
        return torch.lerp(z0, z1, t)
    return (((1 - t) * angle).sin() * z0 + (t * angle).sin() * z1) / angle.sin()

def read_latents(path, latent):
    """The latents.npz of an earlier run: z (n, latent) and MIDI pitches (n,)."""
    what = f"cannot read latents, as --timbres 12 makes them, from {path}"
    with nsynth.explained(what, "expected an .npz of z, pitch", Exception), np.load(path) as file:
        z, pitch = file["z"].astype(np.float32), file["pitch"]
    if (z.ndim != 2 or z.shape != (*pitch.shape, latent) or len(z) == 0
            or not np.isfinite(z).all() or pitch.dtype.kind not in "iu"):
        raise SampleError(f"{path}: z has shape {z.shape}, pitch {pitch.shape}: this checkpoint "
                          f"takes (n, {latent}) finite numbers and (n,) whole ones")
    return z, pitch

ERRORS = (SampleError, gansynth.CheckpointError, nsynth.NoteError, spectral.SpectrumError, OSError)

class Player:
    """A checkpoint that is ready to play: its averaged generator, and what belongs to it."""

    def __init__(self, path, args):
        self.path = gansynth.find_checkpoint(path)
        box = self.path.resolve() == MODEL.resolve()
        self.home = Path("runs/model") if box else self.path.parent             # for what is made
        self.G, self.contents = gansynth.load_generator(self.path, args.device, nsynth.read_bundle)
        self.spectrum = spectral.restore(self.contents["spectrum"], args.mel_inverse)
        if args.mel_inverse and self.spectrum.rep != "if-mel":
            raise SampleError(f"{self.path}: has no mel scale, but {self.spectrum.rep}: leave "
                              "--mel-inverse out")
        self.latent, self.rate = self.G.arch.latent, self.spectrum.sample_rate
        self.low, self.counts = self.contents["pitch_low"], self.contents["counts"].cpu()
        self.pitches = [self.low + i for i, notes in enumerate(self.counts) if notes]   # trained
        self.three = [self.pitches[(len(self.pitches) - 1) * n // 6] for n in (1, 3, 5)]
        self.seed, self.random = args.seed, torch.Generator().manual_seed(args.seed)

    def draw(self, n):
        """n random notes: latents (n, latent), and MIDI pitches, a list of n, as often as they were
        trained.  One by one: many notes begin with the same ones as few."""
        random, z, pitch = torch.Generator().manual_seed(self.seed), [], []
        for _ in range(n):
            z.append(torch.randn(self.latent, generator=random))
            pitch.append(self.low + nsynth.draw_pitches(self.counts, 1, random).item())
        return torch.stack(z), pitch

    def few(self, z, pitch):
        """The notes (N, L) of latents (N, latent) at trained MIDI pitches, a list of N, at once."""
        def show(samples):                # of a WaveNet, whose notes take minutes
            if sys.stderr.isatty():
                sys.stderr.write(f"{samples:,} of {self.spectrum.length:,} samples   \r")

        waves = gansynth.synthesise(self.G, self.spectrum, z, torch.tensor(pitch) - self.low,
                                    self.contents["progress"], self.random, show)
        if not waves.isfinite().all():
            raise SampleError(f"{self.path}: makes NaN or infinity: use an earlier checkpoint")
        return waves

    def each(self, z, pitch):
        """Yield the same one by one, (L,), made 16 at a time, at any pitches that are trained."""
        for p in set(pitch) - set(self.pitches):
            low, high, many = self.pitches[0], self.pitches[-1], len(self.pitches)
            raise SampleError(f"pitch {p} was never trained: this checkpoint plays {low} to {high} "
                              f"({note_name(low)} to {note_name(high)}), {many} pitches")
        for i in nsynth.progress_bar(range(0, len(z), 16), "notes", each=16):
            yield from self.few(z[i:i + 16], pitch[i:i + 16])

    def play(self, z, pitch):
        """The same in one, (N, L)."""
        return torch.stack(list(self.each(z, pitch)))

    def grid(self, title, z, pitch, *more):
        """Each timbre, a row of z, at each pitch, as a Result."""
        names = [f"t{k:02}" for k in range(len(z)) for _ in pitch]
        z, pitch = z.repeat_interleave(len(pitch), 0), [*pitch] * len(z)
        return Result(title, z, pitch, self.play(z, pitch), names, *more)

# What a command made: a title, latents z (N, latent), N MIDI pitches, waves (N, L), N names of
# timbres or "", more sounds by their names, and phrases about it all.
Result = namedtuple("Result", "title z pitch waves timbre more facts", defaults=({}, ()))

def choose(args, player, n):
    """The latents that the command line means, or n that its seed draws: z (N, latent), and a list
    of N MIDI pitches.  But for plain notes they are timbres, each only once."""
    file = args.latents
    if args.timbre and not file:
        run = player.home
        file = max(run.glob("timbres-[0-9]*/latents.npz"), default=run / "timbres-0001/latents.npz")
    if not file:
        return player.draw(n)
    z, pitch = read_latents(file, player.latent)
    rows = np.arange(len(z))
    if args.timbre or args.scale or args.interpolate or args.midi:
        rows = np.sort(np.unique(z, axis=0, return_index=True)[1])
    if args.timbre:
        known = {f"t{k:02}": row for k, row in enumerate(rows)}
        for name in set(args.timbre) - set(known):
            raise SampleError(f"{file} has {len(rows)} timbres from t00 on, and no {name}")
        rows = [known[name] for name in args.timbre]
    return torch.from_numpy(z[rows]), pitch[rows].tolist()

def notes(args, player):
    """Random notes, timbres over all pitches, or an arc from one timbre to another."""
    n = 2 if args.interpolate else args.count or (1 if args.scale else 16)
    z, pitch = choose(args, player, n)
    if args.scale:
        return player.grid("A page to play on", z[:args.count], args.pitch or player.pitches)
    if args.interpolate:
        if len(z) < 2:
            raise SampleError("--interpolate needs 2 timbres: name two, as by --timbre t00,t01")
        z, pitch = slerp(z[0], z[1], args.count or 9), args.pitch or [player.three[1]]
        return player.grid("From one timbre to another", z, pitch)
    pitch = args.pitch or pitch
    many = args.count or max(len(z), len(pitch))
    z, pitch = z[torch.arange(many) % len(z)], [pitch[i % len(pitch)] for i in range(many)]
    return Result("Notes", z, pitch, player.play(z, pitch), [""] * many)

def sample(args):
    """Make and write what the command line asks for -> the page's path."""
    player = Player(args.checkpoint, args)
    of_latents = "interpolate", "latents", "timbre", "timbres", "like", "seconds_per_timbre"
    if not player.latent and any(vars(args)[name] for name in of_latents):
        raise SampleError(f"{player.path}: a WaveNet has no latents: use --pitch, --scale, --midi")
    make = midi if args.midi else like if args.like else timbres if args.timbres else notes
    with new_folder(args.out, player.home, "timbres" if args.timbres else "samples") as (part, out):
        result = make(args, player)       # inside, as a WaveNet takes hours
        for fact in result.facts:
            print(f"{result.title}: {fact}")
        names = write_sounds(part, result, player)
        np.savez(part / "latents.npz", z=result.z, pitch=result.pitch, seed=args.seed)
        write_notes_page(part, names, result, args, player)
    return out / "index.html"

# =============================================================================================
# From here on what that needs: files, pages, the benchmark and the command line
def save(args):
    """Write what is heard of a run, in half precision; or all of Magenta's, as a file of ours."""
    if args.save.exists() or not args.save.parent.is_dir():
        raise SampleError(f"{args.save} is there already, or its folder is not: name a new file")
    player = Player(args.checkpoint, args)
    contents = player.contents
    if player.path.name != gansynth.EXPERIMENT:
        contents = {name: contents[name] for name in gansynth.SAMPLE_PARTS}
        contents["G_ema"] = {name: p.half() for name, p in contents["G_ema"].items()}
    gansynth.save_checkpoint(args.save, contents)
    print(f"{args.save}: {args.save.stat().st_size / 1e6:.1f} MB, which sample.py plays")

@contextlib.contextmanager
def new_folder(out, beside, kind):
    """Make a folder whole or not at all: `out`, if new or empty, or beside/KIND-0001 and so on.
    -> a folder to fill, renamed in the end, and its name then.  Enter before long work."""
    if out is None:
        taken = sorted(beside.glob(f"{kind}-[0-9][0-9][0-9][0-9]")) or [f"{kind}-0000"]
        out = beside / f"{kind}-{int(str(taken[-1])[-4:]) + 1:04}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SampleError(f"{out} is there already and not an empty folder: name a new one")
    part = out.absolute()                 # "." has no name to put another beside
    part = part.with_name(f".{part.name}.{os.getpid()}.part")
    with nsynth.explained(f"{out} cannot be made", "name another folder"):
        part.mkdir(parents=True)
    try:
        yield part, out
        if out.exists():
            out.rmdir()                   # empty: not every system renames onto a folder
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)

def write_sounds(folder, result, player):
    """WAVs and rainbowgrams of a result, and notes.csv -> the notes' names, without .wav."""
    digits = max(3, len(str(len(result.pitch) - 1)))
    names = [f"{i:0{digits}}-{timbre}-{note_name(p)}-{p:03}".replace("--", "-").replace("#", "s")
             for i, (timbre, p) in enumerate(zip(result.timbre, result.pitch))]
    sounds, peaks = [*zip(names, result.timbre, result.waves)], {}
    sounds += [(name, "more", wave) for name, wave in result.more.items()]
    for _, timbre, wave in sounds:        # one factor a timbre: its notes' balance is G's doing
        peaks[timbre] = max(peaks.get(timbre, SILENT), wave.abs().max().item())
    for name, timbre, wave in sounds:
        nsynth.write_wav(folder / f"{name}.wav", wave * (PEAK / peaks[timbre]), player.rate)
        picture = spectral.rainbowgram(wave[:12 * player.rate], player.rate)    # 12 s at most
        spectral.write_png(folder / f"{name}.png", picture)
    gains = dict.fromkeys(f"{PEAK / peak(peaks.values()):.3g}" for peak in (max, min))
    print(f"Multiplied by {' to '.join(gains)}, one factor a timbre: the loudest peaks at -1 dBFS.")
    with open(folder / "notes.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "pitch", "note", *(f"z{i}" for i in range(player.latent))])
        for name, p, row in zip(names, result.pitch, result.z.tolist()):
            table.writerow([f"{name}.wav", p, note_name(p), *(f"{x:.9g}" for x in row)])  # exact
    return names

# ---- A sound of one's own, and timbres to choose from ----------------------------------------
CANDIDATES, STARTS, STEPS = 1024, 4, 300  # random latents, those to descend from, and how far

def like(args, player):
    """The timbre whose note is nearest to a recording, also at other pitches: Adam's descent by the
    difference of what is heard, from the best of many random latents."""
    seconds = player.spectrum.length / player.rate
    shortest, (x, rate) = min(0.1, seconds / 5), nsynth.read_recording(args.like, seconds)
    if len(x) < shortest * rate:
        raise SampleError(f"{args.like} lasts {len(x) / rate:.2g} s: expected {shortest:g} or more")
    pitch = args.pitch
    if not pitch:
        f = spectral.fundamental(x[:2 * rate], rate, high=4200.0, clear=0.7)
        pitch = [round(69 + 12 * math.log2(f / 440))] if f else [-1]
        if pitch[0] not in player.pitches:
            raise SampleError(f"{args.like} seems to have no pitch of {player.pitches[0]} to "
                              f"{player.pitches[-1]}, which are played: say one, as by --pitch C4")
    target = nsynth.Wish(player.spectrum.length, player.rate).fit(x, rate)
    target = torch.from_numpy(target / np.float32(32768))           # (L,)
    magnitude, frequency = heard(target[None], player.rate)
    weight = magnitude.exp() / magnitude.exp().sum()                # IF counts where it is loud

    def distance(waves):                  # (N, L) -> (N,)
        ours, turns = heard(waves, player.rate)
        turns = spectral.wrap(turns - frequency)
        return (ours - magnitude).square().mean((1, 2)) + (weight * turns ** 2).sum((1, 2))

    z, _ = player.draw(CANDIDATES)
    waves = player.play(z, pitch[:1] * CANDIDATES)
    away = torch.cat([distance(few) for few in waves.split(64)])
    z, least = z[away.argsort()[:STARTS]].requires_grad_(), math.inf
    optimiser = torch.optim.Adam([z])
    for step in nsynth.progress_bar(range(STEPS), "steps"):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / STEPS)
        away = distance(player.few(z, pitch[:1] * STARTS))          # (STARTS,)
        if away.min() < least:
            nearest, least = z[away.argmin()][None].detach().clone(), away.min().item()
        optimiser.zero_grad()
        away.sum().backward()
        optimiser.step()
    result = player.grid(f"Like {args.like.stem}", nearest, pitch + player.three)
    match = result.waves[0]
    target *= match.norm() / target.norm()              # as loud
    lsd, random = (spectral.log_spectral_distance(*pair).mean() for pair in (
        (target[None], match[None]), (waves[:16], waves[16:32])))
    return result._replace(more={"target": target, "match": match}, facts=[
        f"log-spectral distance {lsd:.1f} dB, of random notes {random:.1f} dB"])

def heard(waves, rate):
    """Log magnitude and IF, (N, T, F) each, of notes (N, L) made equally loud."""
    waves = waves / waves.square().mean(1, keepdim=True).clamp(min=1e-10).sqrt()
    spectrum = spectral.derive("if", False, waves.shape[1], rate, resolutions=1)
    magnitude, frequency = spectrum.encode(waves).unbind(1)
    return magnitude.clamp(min=-3), frequency           # a loud overtone has some +5

def timbres(args, player):
    """Timbres at three pitches: each, of many, has the log magnitudes farthest from all before."""
    z, _ = player.draw(max(CANDIDATES // 4, 4 * args.timbres))
    waves = player.play(z, [player.three[1]] * len(z))
    sounds = torch.cat([adaptive_avg_pool2d(heard(few, player.rate)[0], (16, 64)).flatten(1)
                        for few in waves.split(64)])                # (n, 1024)
    chosen = [0]
    while len(chosen) < args.timbres:
        chosen.append(torch.cdist(sounds, sounds[chosen]).amin(1).argmax().item())
    return player.grid(f"{len(chosen)} timbres, far apart", z[chosen], args.pitch or player.three)

# ---- MIDI -----------------------------------------------------------------------------------
ATTACK, RELEASE = 0.010, 0.3              # seconds
LONGEST = 3600                            # seconds of a piece
ARC = 10                                  # latents on the way from one timbre to the next

def midi(args, player):
    """A piece: a timbre a channel or, with --seconds-per-timbre, arcs from each to the next."""
    piece = prelude() if str(args.midi) == "demo" else nsynth.read_midi(args.midi)
    strokes = [stroke for stroke in piece if stroke[-1] != 9]       # the channel of drums
    length = max((end for _, end, *_ in strokes), default=0)
    if not 0 < length < LONGEST:
        raise SampleError(f"{args.midi} has {len(strokes):,} notes over {length:,.0f} s, and "
                          f"{len(piece) - len(strokes):,} beats of drums, which are left out: "
                          f"expected notes, over {LONGEST:,} s at most")
    channels, every = sorted({channel for *_, channel in strokes}), args.seconds_per_timbre
    count = int(length / every) + 2 if every else len(channels)
    z = choose(args, player, count)[0][:count]
    turns = z[torch.arange(count) % len(z)]                         # (count, latent)
    if every:
        turns = torch.cat([slerp(*pair, ARC + 1)[:-1] for pair in zip(turns, turns[1:])])
    whole = player.spectrum.length / player.rate        # seconds
    uses, moved, late = {}, 0, 0          # number among `turns` -> pitch -> where it is played
    for start, end, asked, velocity, channel in strokes:
        turn = int(start / every * ARC) if every else channels.index(channel)
        octaves = [p for p in player.pitches if (p - asked) % 12 == 0]
        pitch = min(octaves, key=lambda p: abs(p - asked), default=asked)
        uses.setdefault(turn, {}).setdefault(pitch, []).append((start, end - start, velocity))
        moved += pitch != asked
        late += end - start > whole - min(RELEASE, whole / 2)
    wave = torch.zeros(math.ceil((length + RELEASE) * player.rate) + 1)          # rounded
    for turn, pitches in nsynth.progress_bar(uses.items(), "timbres"):
        waves = player.play(turns[turn].expand(len(pitches), -1), [*pitches])
        waves /= waves.abs().max().clamp(min=SILENT)    # all timbres have one peak
        for note, where in zip(waves, pitches.values()):
            for start, seconds, velocity in where:
                part, at = shaped(note, seconds, player.rate), int(start * player.rate)
                wave[at:at + len(part)] += (velocity / 127) ** 2 * part
    facts = [f"{number:,} {what}" for number, what in (
        (len(strokes), "notes"), (moved, "moved by octaves"), (late, "fade before their end"),
        (len(piece) - len(strokes), "drum beats left out")) if number]
    return player.grid(args.midi.stem, z, [player.three[1]], {"piece": wave}, facts)

def shaped(wave, seconds, rate):
    """A note of the model, (L,), as its key was down for so many seconds: it rises over ATTACK, and
    falls over RELEASE, or half of it if that is shorter, once let go or before it would end."""
    attack, release = (min(span * rate, len(wave) / 2) for span in (ATTACK, RELEASE))
    end = min(seconds * rate + release, len(wave))
    t = torch.arange(math.ceil(end))
    gain = (t / attack).clamp(max=1) * ((end - t) / release).clamp(max=1)
    return wave[:len(t)] * (gain * math.pi / 2).sin().square()

PRELUDE = """\
C4,E4,G4,C5,E5 C4,D4,A4,D5,F5 B3,D4,G4,D5,F5 C4,E4,G4,C5,E5 C4,E4,A4,E5,A5 C4,D4,F#4,A4,D5
B3,D4,G4,D5,G5 B3,C4,E4,G4,C5 A3,C4,E4,G4,C5 D3,A3,D4,F#4,C5 G3,B3,D4,G4,B4 G3,Bb3,E4,G4,C#5
F3,A3,D4,A4,D5 F3,Ab3,D4,F4,B4 E3,G3,C4,G4,C5 E3,F3,A3,C4,F4 D3,F3,A3,C4,F4 G2,D3,G3,B3,F4
C3,E3,G3,C4,E4"""

def prelude(sixteenth=0.22):
    """The first part of Bach's prelude in C, BWV 846: each chord is broken twice, with its two
    lowest notes held; these are one channel, the others another."""
    strokes = []
    for i, pitch in enumerate(map(parse_pitches, PRELUDE.split())):
        for j, voice in enumerate((0, 1, 2, 3, 4, 2, 3, 4) * 2):
            ends = 16 * i + j, 16 * i + (j + 1 if voice > 1 else 8 + 8 * (j >= 8))
            start, end = (sixteenth * at for at in ends)
            strokes.append((start, end, pitch[voice], 90 - 5 * voice, int(voice > 1)))
    return strokes

# ---- Pages ----------------------------------------------------------------------------------
def write_page(folder, title, body, style="", script=""):
    """folder/index.html: a title, body as HTML, style beyond LOOK.  It needs no network."""
    (folder / "index.html").write_text(f"""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)} - GANSynth</title>
<style>{LOOK}{style}</style>
{body}
<script>{script}</script>
""", "utf-8", "replace")

LOOK = """\
:root { color-scheme: light dark; --paper: #f7f6f3; --card: #fff; --ink: #1d1d22; --soft: #62626c;
  --line: #d9d7d0; --accent: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16161a; --card: #222228; --ink: #ececf0;
  --soft: #a0a0ac; --line: #3a3a44; --accent: #ff8a75; } }
* { box-sizing: border-box; }
[hidden], label:has(option:only-child) { display: none !important; }
body { margin: 0 auto; max-width: 80rem; padding: clamp(1rem, 4vw, 3rem); background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0 0 .3em; font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.2; }
p { max-width: 44rem; margin: .5em 0; }
.soft, figcaption { color: var(--soft); font-size: .85rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }
.figures :is(img, audio) { width: 100%; height: 10rem; background: #000; }
.figures audio { height: 2.5rem; background: none; }
figure { margin: 1rem 0; }
img, audio { max-width: 100%; }
button { padding: .4rem 1rem; font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; cursor: pointer; }
:focus-visible { outline: 3px solid var(--ink); outline-offset: 2px; }
main { display: grid; grid-template-columns: repeat(12, 1fr); gap: 2px; touch-action: none;
  user-select: none; }
.card { padding: 0 0 .5rem; overflow: hidden; font-size: clamp(.6rem, 2vw, 1rem); }
.card img { display: block; width: 100%; height: 4rem; margin-bottom: .4rem; background: #000; }
.card[aria-pressed=true] { border-color: var(--accent); box-shadow: 0 0 0 2px var(--accent); }
"""

FIGURE = """\
<figure><figcaption>{}</figcaption>
<img alt="" src="{}"><audio src="{}" controls></audio>{}</figure>
"""

PAGE_NOTES = 64                           # heard on a page at most, if it is no keyboard
PAGE_BYTES = 9_500_000                    # of sounds inside a keyboard's page: 13 MB as text

def inside(file, kind="audio/wav"):
    """A file as a part of a page."""
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"

def write_notes_page(folder, names, result, args, player):
    """A page of a result, with --scale to play on, otherwise with each of the notes of these names,
    sound and picture, inside it.  Further sounds stay files beside it."""
    contents, seconds = player.contents, player.spectrum.length / player.rate
    facts = [*result.facts, f"{player.path.resolve().parent.name}/{player.path.name}",
             contents["model"], f"{contents['images']:,} examples trained",
             contents["architecture"].get("output", player.spectrum.rep),
             f"{seconds:g} s at {player.rate:,} Hz",
             f"from {args.latents.name}" if args.latents else
             "timbres chosen before" if args.timbre else f"seed {args.seed}"]
    if contents["model"] == "gansynth":
        blocks = gansynth.grown(contents["progress"])[0]
        facts.append(f"{blocks} of {contents['architecture']['resolutions']} blocks")
    if args.scale:
        body = keyboard(folder, names, result, player.rate)
    else:
        figures = [FIGURE.format(name, f"{name}.png", f"{name}.wav", "") for name in result.more]
        for name in names[:PAGE_NOTES]:
            files = inside(folder / f"{name}.png", "image/png"), inside(folder / f"{name}.wav")
            figures.append(FIGURE.format(name, *files, ""))
        body = f'<div class="figures">{"".join(figures)}</div>'
        if len(names) > PAGE_NOTES:
            facts.append(f"the first {PAGE_NOTES} of {len(names):,} notes")
    write_page(folder, result.title, f"""\
<h1>{html.escape(result.title)}</h1>
<p class="soft">{html.escape(" · ".join(facts))}</p>
<p>The pictures are rainbowgrams: time runs to the right and pitch upwards, bright is loud, and a
steady overtone is a streak of one colour.</p>
{body}""", script=KEYBOARD_SCRIPT if args.scale else "")

def keyboard(folder, names, result, rate):
    """HTML of timbres over all pitches, to play on, with their sounds: as many as fit, or one."""
    timbres, cards = list(dict.fromkeys(result.timbre)), []
    keys = len(names) // len(timbres)
    fit = max(1, PAGE_BYTES // keys // (folder / f"{names[0]}.wav").stat().st_size)
    for name, p, timbre in zip(names[:fit * keys], result.pitch, result.timbre):
        cards.append(f"""\
<button class="card" aria-pressed="false" data-pitch="{p}" data-timbre="{timbre}" \
style="grid-area: {11 - p // 12} / {p % 12 + 1}" data-wav="{inside(folder / f'{name}.wav')}">\
<img alt="" loading="lazy" src="{name}.png">{note_name(p)}</button>
""")
    return f"""\
<p>Play them by pointer, or A W S E D F ... as a piano; Z and X move an octave.
{f"The first {fit} of {len(timbres)} timbres fit in here." if fit < len(timbres) else ""}</p>
<p><label>Timbre <select id="timbre">{"".join(f"<option>{t}" for t in timbres[:fit])}</select>
</label> <button id="midi">Use a MIDI keyboard</button></p>
<main data-rate="{rate}">
{"".join(cards)}</main>
"""

KEYBOARD_SCRIPT = """\
const main = document.querySelector("main"), voices = new Map();
const cards = [...document.querySelectorAll(".card")];
const [timbre, midi] = ["timbre", "midi"].map(id => document.getElementById(id));
let context;                              // begins with the first touch, as browsers ask

function bufferOf(card) {                 // a WAV file of 16 bits, behind its head of 44 bytes
  const bytes = Uint8Array.from(atob(card.dataset.wav.split(",")[1]), c => c.charCodeAt(0));
  const samples = Float32Array.from(new Int16Array(bytes.buffer, 44), x => x / 32768);
  const buffer = new AudioBuffer({length: samples.length, sampleRate: main.dataset.rate});
  buffer.copyToChannel(samples, 0);
  return buffer;
}

function begin(by, card, loudness = 0.3) {              // by: a pointer, a key, a MIDI note
  end(by);
  if (!card) return;
  context ??= new AudioContext({sampleRate: main.dataset.rate});
  context.resume();
  const gain = new GainNode(context, {gain: 0});
  const source = new AudioBufferSourceNode(context, {buffer: card.buffer ??= bufferOf(card)});
  source.connect(gain).connect(context.destination);
  gain.gain.setTargetAtTime(loudness, context.currentTime, 0.002);
  source.start();
  source.onended = () => voices.get(by)?.source === source && end(by);
  voices.set(by, {card, source, gain});
  card.setAttribute("aria-pressed", true);
}

function end(by) {                        // it fades in some 0.3 s
  if (!voices.has(by)) return;
  const {card, source, gain} = voices.get(by);
  gain.gain.setTargetAtTime(0, context.currentTime, 0.06);
  source.stop(context.currentTime + 0.5);
  voices.delete(by);
  card.setAttribute("aria-pressed", false);
}

const keys = [..."awsedftgyhujkolp"], octaves = [...new Set(cards.map(
  card => Math.floor(card.dataset.pitch / 12)))].sort((a, b) => a - b);
const cardAt = pitch => cards.find(card => card.dataset.pitch == pitch && !card.hidden);
let on = octaves.length >> 1;             // of those that hold notes: Z and X find no others
document.onkeydown = event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase(), place = keys.indexOf(key);
  if (key === "z") on = Math.max(on - 1, 0);
  if (key === "x") on = Math.min(on + 1, octaves.length - 1);
  if (place >= 0) begin(key, cardAt(12 * octaves[on] + place));
};
document.onkeyup = event => end(event.key.toLowerCase());
cards.forEach(card => {
  card.onpointerdown = event => begin(event.pointerId, card);
  card.onclick = event => {               // by Enter or Space; pointers have played it already
    const again = voices.get("click")?.card === card;
    if (!event.detail) begin("click", again ? null : card);
  };
});
document.onpointerup = document.onpointercancel = event => {
  end(event.pointerId);
  context?.resume();                      // a touch allows sound once it ends
};
window.onblur = () => [...voices.keys()].forEach(end);
timbre.onchange = () => {
  cards.forEach(card => card.hidden = card.dataset.timbre !== timbre.value);
  timbre.blur();                          // its letters are keys
};
timbre.onchange();
midi.hidden = !navigator.requestMIDIAccess;
midi.onclick = () => navigator.requestMIDIAccess().then(access => {
  access.inputs.forEach(input => input.onmidimessage = ({data: [status, note, velocity]}) => {
    const kind = status >> 4, loudness = 0.3 * (velocity / 127) ** 2;       // 0.3: of several
    if (kind === 9 && velocity) begin("midi" + note, cardAt(note), loudness);
    else if (kind === 8 || kind === 9) end("midi" + note);
  });
}).catch(error => midi.textContent = error.message);
"""

# ---- Benchmark: the paper's claim of 54,000 times -------------------------------------------
@torch.no_grad()
def bench(device, budget=5.0, arch=gansynth.Architecture(), spectrum=spectral.Spectrum(),
          wavegan=gansynth.WaveGANArchitecture(), wavenet=gansynth.WaveNetArchitecture()):
    """Print the seconds that a note takes, of each model at the paper's size, with random weights.
    A WaveNet's: of one sample, times their number (naive: the first have less past to look at)."""
    times, threads = [], torch.get_num_threads()
    print(f"notes of {spectrum.length:,} samples on {device}, {threads} threads, torch "
          f"{torch.__version__}, random weights\n{'':18} notes        a note  of the first")

    def row(name, function, samples=1):
        timer = Timer("f()", globals={"f": function}, num_threads=threads)
        once = timer.blocked_autorange(min_run_time=budget).median
        times.append(once * samples / n)
        print(f"{name:18}{n:6}{times[-1]:12.4g} s{times[-1] / times[0]:12,.1f} x"
              + f"  extrapolated from {once * 1e3:.3g} ms a sample" * (samples > 1), flush=True)

    G, wave_G, net = (net.to(device) for net in (
        gansynth.Generator(arch), gansynth.WaveGANGenerator(wavegan), gansynth.WaveNet(wavenet)))
    for n in (1, 8):
        pitch, x = torch.zeros(n, dtype=torch.int64, device=device), torch.zeros(n, device=device)
        z, cache = torch.randn(n, arch.latent, device=device), gansynth.CachedWaveNet(net, pitch)
        row("GANSynth", lambda: gansynth.synthesise(G, spectrum, z, pitch, arch.resolutions - 1.0))
        row("WaveGAN", lambda: wave_G(torch.randn(n, wavegan.latent, device=device), pitch))
        row("WaveNet, cached", lambda: net.draw(cache.step(x)), wavenet.length)
        if n == 1:
            past = min(wavenet.receptive_field, wavenet.length)
            crop, samples = torch.zeros(1, past, device=device), wavenet.length - past / 2
            row("WaveNet, naive", lambda: net.draw(net(crop, pitch)[..., -1]), samples)
    print("paper, Titan X: GANSynth 0.020 s, WaveNet 1077.53 s a note, 53,880 x")
    # Which sampler took those 16.8 ms a sample?  The naive one has 3,000 to 6,141 columns of 63M
    # multiply-adds: 35 to 70 ms at that card's 11 TFLOP/s.  The cached one reads 250 MB of weights,
    # in under 1 ms, and launches a few hundred kernels of some 10 us: so it was likely this one.

# ---- Command line ---------------------------------------------------------------------------
def at_least(low):
    """A type for argparse: whole numbers from `low` on that a seed can hold."""
    def whole_number(text):
        if not text.isdecimal() or not low <= int(text) < 10 ** 18:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {low}")
        return int(text)
    return whole_number

def device(text):
    """A type for argparse: a device that is there."""
    try:
        torch.zeros(1, device=text).item()
    except Exception:                     # torch raises many kinds
        raise argparse.ArgumentTypeError(f"{text!r} is no device of this machine") from None
    return torch.device(text)

def common_flags(parser, seed, out):
    """The flags of every script that plays checkpoints."""
    parser.usage = "%(prog)s [PATH] [flags]; see --help"            # shown with every error
    add = parser.add_argument
    add("--seed", type=at_least(0), default=seed, help=f"of all that is drawn (default {seed})")
    add("--mel-inverse", choices=spectral.MEL_INVERSES,
        help="of if-mel: ours, or the release's, which smears over bands (default: as trained)")
    add("--out", type=Path, metavar="DIR", help=f"new or empty (default: {out})")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")

# The flags that mean something beside one that says what to do, or beside none.
ALWAYS = {"checkpoint", "device"}
OF_NOTES = ALWAYS | {"seed", "mel_inverse", "out", "pitch"}
BESIDE = {"bench": {"device"}, "save": ALWAYS, "like": OF_NOTES, "timbres": OF_NOTES,
          "midi": OF_NOTES - {"pitch"} | {"latents", "timbre", "seconds_per_timbre"},
          "notes": OF_NOTES | {"count", "latents", "timbre", "scale", "interpolate"}}

def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, number = parser.add_argument, at_least(1)
    mode = parser.add_mutually_exclusive_group().add_argument
    add("checkpoint", type=Path, nargs="?", default=MODEL, help="a file, or a run's folder (its "
        "newest one), or Magenta's, with experiment.json in it (default: the model in the box)")
    mode("--scale", action="store_true", help="a timbre (--count 4: four), as keys to play on")
    mode("--interpolate", action="store_true", help="from one timbre to another")
    mode("--midi", type=Path, metavar="FILE", help="a piece of music, each channel in its own "
         "timbre; or demo, some of Bach's")
    mode("--like", type=Path, metavar="WAV", help="the timbre nearest to a recording")
    mode("--timbres", type=number, metavar="N", help="timbres that sound different, for --timbre")
    mode("--save", type=Path, metavar="FILE", help="write what is heard (of Magenta's, all)")
    mode("--bench", action="store_true", help="time the paper's models, without one")
    add("--pitch", type=parse_pitches, metavar="P,...", help="of the notes in turn: 60, C4, Bb4")
    add("--count", type=number, metavar="N", help="notes (default 16, all of --latents, 9 of "
        "--interpolate), or timbres of --scale (default 1)")
    add("--latents", type=Path, metavar="FILE", help="an earlier run's latents.npz, to hear again")
    add("--timbre", type=lambda text: text.split(","), metavar="t00,...",
        help="of --latents (default: of the run's newest --timbres)")
    add("--seconds-per-timbre", type=number, metavar="S", help="--midi moves from one to the next")
    common_flags(parser, 0, "samples-0001, ... of the run")
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    mode = next((mode for mode in BESIDE if mode in given), "notes")
    for idle in given - {mode} - BESIDE[mode]:
        parser.error(f"{idle.replace('_', '-')} " + (
            "goes with --midi" if mode == "notes" else f"means nothing beside --{mode}"))
    return args

def main(argv=None):
    with nsynth.one_sentence("sample.py", ERRORS):
        args = parse(argv)
        if args.bench:
            bench(args.device)
        elif args.save:
            save(args)
        else:
            print(f"{sample(args)}: all notes on one page; WAVs, pictures and tables are beside it")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    main()
