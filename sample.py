"""Listen to a checkpoint: notes as WAV files, rainbowgrams, a table, and one page to hear them on.

    python sample.py runs/0001                    16 random notes of a run's newest checkpoint
    python sample.py runs/0001 --pitch C4,Eb4,G4  the same timbres at chosen pitches, in turn
    python sample.py runs/0001 --scale            one timbre over all pitches
    python sample.py runs/0001 --interpolate      from one timbre to another (paper Fig. 4)
    python sample.py runs/0001 --latents runs/0001/samples-0001/latents.npz      the same again
    python sample.py acoustic_only --scale        Magenta's published weights, as unpacked
    python sample.py --bench                      seconds a note, of each of the paper's models

The notes of a seed never change: more of them begin with the same ones, --scale plays the timbre
of the first, --interpolate goes from the first to the second.  The averaged generator is heard, at
the size it has grown to by then.  A WaveNet has no latents, but draws every sample: there is
nothing to interpolate, and a seed means the same notes only where as many are asked for.

Shapes:  N notes, L samples.  z is (N, latent), waves are (N, L).  Pitches are MIDI numbers (60 is
C4), apart from the labels 0..P-1 that the networks use: MIDI numbers less the lowest trained one.
"""

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
import re
import shutil
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.benchmark import Timer

import gansynth
import nsynth
import spectral

SHARPS = "C C# D D# E F F# G G# A A# B".split()
FLATS = "C Db D Eb E F Gb G Ab A Bb B".split()
PAGE_NOTES = 64                           # embedded at most: 12-30 MB at the paper's size


class SampleError(ValueError):
    """A request that this checkpoint or folder cannot meet; the message says what it can."""


def note_name(pitch, names=SHARPS):
    """60 -> "C4", 61 -> "C#4"."""
    return f"{names[pitch % 12]}{pitch // 12 - 1}"


def parse_pitches(text):
    """ "60", "C4", "F#3,Bb4" -> MIDI numbers, a list: a type for argparse, with its error."""
    known = {name: p for p in range(128) for name in (str(p), note_name(p), note_name(p, FLATS))}
    try:
        return [known[part.strip().capitalize()] for part in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error} is no pitch, such as 60, C4, F#3 or Bb4")


def draw(n, latent, counts, low, seed):
    """n random notes: latents (n, latent), and MIDI pitches, a list of n, as often as `counts`
    (P,), from `low` up, has them.  One by one: many notes begin with the same ones as few."""
    random = torch.Generator().manual_seed(seed)
    notes = [(torch.randn(latent, generator=random), nsynth.draw_pitches(counts, 1, random))
             for _ in range(n)]
    z, label = zip(*notes)
    return torch.stack(z), (torch.cat(label) + low).tolist()


def slerp(z0, z1, steps):
    """Spherical interpolation from z0 to z1, (latent,) each -> (steps, latent), ends included.

    Normal latents of many dimensions lie near a sphere.  A straight line cuts through it, and its
    middle is too short by about sqrt 2; as G norms latent and pitch together onto a sphere of
    their own, that would not even out but turn the pitch up.  An arc keeps the typical length.
    """
    t = torch.linspace(0, 1, steps)[:, None]                        # (steps, 1)
    angle = torch.acos(torch.cosine_similarity(z0, z1, dim=0).clamp(-1, 1))
    if angle.sin() < 1e-4:                                          # parallel: the arc is a line
        return torch.lerp(z0, z1, t)
    return (((1 - t) * angle).sin() * z0 + (t * angle).sin() * z1) / angle.sin()


def read_latents(path, latent):
    """The latents.npz of an earlier run: z (n, latent) and MIDI pitches, a list of n."""
    try:
        with np.load(path) as file:
            z, pitch = torch.from_numpy(file["z"].astype(np.float32)), file["pitch"]
    except Exception as error:            # numpy raises many kinds for a damaged file
        fault = getattr(error, "strerror", None) or "not an .npz file with numbers z and pitch"
        raise SampleError(f"{path}: {fault}: give the latents.npz of an earlier run") from None
    if z.ndim != 2 or len(z) == 0 or z.shape[1] != latent or not z.isfinite().all():
        raise SampleError(f"{path}: z has shape {tuple(z.shape)}: this checkpoint takes "
                          f"(n, {latent}), finite numbers")
    if pitch.shape != (len(z),) or pitch.dtype.kind not in "iu":
        raise SampleError(f"{path}: pitch is not ({len(z)},) whole numbers, one for each latent")
    return z, pitch.tolist()


def choose(args, latent, counts, low):
    """What to play: latents (N, latent), and MIDI pitches, a list of N, of those that were trained:
    counts (P,) from `low` up."""
    needed = 1 if args.scale else 2 if args.interpolate else args.count or 1
    if args.latents:
        z, pitch = read_latents(args.latents, latent)
    else:
        z, pitch = draw(max(2, args.count or 16), latent, counts, low, args.seed)
    if len(z) < needed:
        raise SampleError(f"{args.latents} holds {len(z)} latents, and this needs {needed}")
    high = low + len(counts) - 1
    if args.scale:
        pitch = args.pitch or range(low, high + 1)
        z = z[:1].repeat(args.count or len(pitch), 1)
    elif args.interpolate:
        pitch = args.pitch or [(low + high) // 2]
        z = slerp(z[0], z[1], args.count or 9)
    else:
        z, pitch = z[:args.count], args.pitch or pitch
    for p in pitch:
        if not low <= p <= high:
            raise SampleError(f"pitch {p} was never trained: this checkpoint plays {low} to {high} "
                              f"({note_name(low)} to {note_name(high)})")
    return z, list(islice(cycle(pitch), len(z)))


def sample(args):
    """Make and write what the command line asks for -> the page's path."""
    path = gansynth.find_checkpoint(args.checkpoint)
    G, contents = gansynth.load_generator(path, args.device, nsynth.read_bundle)
    spectrum = spectral.restore(contents["spectrum"], args.mel_inverse)
    if contents["model"] == "wavenet" and (args.interpolate or args.latents):
        raise SampleError(f"{path}: is a WaveNet, which has no latents for --interpolate and "
                          "--latents: use --pitch or --scale")
    if args.mel_inverse and spectrum.rep != "if-mel":
        raise SampleError(f"{path}: was trained on {spectrum.rep}, which has no mel scale: leave "
                          "out --mel-inverse, which is for if-mel")
    low = contents["pitch_low"]
    z, pitch = choose(args, G.arch.latent, contents["counts"].cpu(), low)
    out = out_folder(args.out, path.parent)
    with whole_folder(out) as part:       # before the notes, as a WaveNet takes hours
        waves = gansynth.synthesise(
            G, spectrum, z, torch.tensor(pitch) - low, contents["progress"],
            show=lambda done: sys.stderr.isatty() and print(        # each over the one before
                f"{round(done, 2):,} of {len(z):,} notes", end="\r", file=sys.stderr, flush=True),
            generator=torch.Generator().manual_seed(args.seed))
        peak = waves.abs().max().item()
        if not peak < math.inf:
            raise SampleError(f"{path}: makes NaN or infinity: use an earlier checkpoint")
        if peak > 1:                      # one factor for all: their balance is G's doing
            waves /= peak
            print(f"The loudest note peaks at {peak:.3g}: all were divided by it, not to clip.")
        names = write_notes(part, waves, z, pitch, spectrum.sample_rate)
        np.savez(part / "latents.npz", z=z.numpy(), pitch=np.array(pitch), seed=args.seed)
        text = notes_page(part, names, pitch, args, path, contents, spectrum)
        (part / "index.html").write_text(text, encoding="utf-8", errors="replace")
    return out / "index.html"


# =============================================================================================
# From here on what that needs: files, pages, the benchmark and the command line

def save(args):
    """Write a checkpoint, which may be Magenta's, to a file of ours."""
    if args.save.exists():
        raise SampleError(f"{args.save} is there already: name a new file")
    path = gansynth.find_checkpoint(args.checkpoint)
    _, contents = gansynth.load_generator(path, read_bundle=nsynth.read_bundle)
    gansynth.save_checkpoint(args.save, contents)
    print(f"{args.save}: python sample.py plays it, python train.py --init starts from it")


def out_folder(out, beside, kind="samples"):
    """The folder to make: `out`, if new or empty, or beside/samples-0001 and so on (of `kind`)."""
    if out is None:
        taken = sorted(beside.glob(f"{kind}-[0-9][0-9][0-9][0-9]")) or [f"{kind}-0000"]
        return beside / f"{kind}-{int(str(taken[-1])[-4:]) + 1:04}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SampleError(f"{out} is there already and not an empty folder: name a new one")
    return out.absolute()                 # "." has no name to put another beside


@contextlib.contextmanager
def whole_folder(out):
    """Make `out`, of `out_folder`, whole or not at all: -> a folder beside it to fill, which is
    renamed in the end.  Enter before long work: a folder that cannot be made is told at once."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise SampleError(f"{out} cannot be made ({error.strerror}): name another folder") from None
    try:
        yield part
        if out.exists():
            out.rmdir()                   # empty: not every system renames onto a folder
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_notes(folder, waves, z, pitch, sample_rate):
    """WAVs and rainbowgrams of waves (N, L), and notes.csv -> the files' names, without .wav."""
    digits = max(3, len(str(len(pitch) - 1)))
    names = [f"{i:0{digits}}-{note_name(p).replace('#', 's')}-{p:03}" for i, p in enumerate(pitch)]
    with open(folder / "notes.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "pitch", "note", *(f"z{i}" for i in range(z.shape[1]))])
        for name, p, wave, row in zip(names, pitch, waves, z.tolist()):
            nsynth.write_wav(folder / f"{name}.wav", wave, sample_rate)
            spectral.write_png(folder / f"{name}.png", spectral.rainbowgram(wave, sample_rate))
            table.writerow([f"{name}.wav", p, note_name(p), *(f"{x:.9g}" for x in row)])  # exact
    return names


# ---- Pages ----------------------------------------------------------------------------------

def page(title, body, style="", script=""):
    """A whole HTML document that needs no other file: title is text, body is HTML.  `style` adds to
    the look that all pages share; a wide table goes into <div class="wide">."""
    return f"""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)} - GANSynth</title>
<style>{LOOK}{style}</style>
{body}
<script>{script}</script>
"""


LOOK = """\
:root { color-scheme: light dark; --paper: #f7f6f3; --card: #fff; --ink: #1d1d22; --soft: #62626c;
  --line: #d9d7d0; --accent: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16161a; --card: #222228; --ink: #ececf0;
  --soft: #a0a0ac; --line: #3a3a44; --accent: #ff8a75; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; max-width: 80rem; padding: clamp(1rem, 4vw, 3rem); background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0 0 .3em; font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.2; }
p { max-width: 44rem; margin: .5em 0; }
.soft, small, figcaption { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
:is(th, td):first-child { padding-left: 0; text-align: left; }
figure { margin: 1rem 0; }
img { max-width: 100%; }
button { padding: .4rem 1rem; font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; cursor: pointer; }
button:disabled { opacity: .5; cursor: default; }
[aria-pressed=true] { border-color: var(--accent); box-shadow: 0 0 0 2px var(--accent); }
:focus-visible { outline: 3px solid var(--ink); outline-offset: 2px; }
"""


def notes_page(folder, names, pitch, args, path, contents, spectrum):
    """A page with the sounds and pictures of these names in `folder` inside it."""
    def data(kind, name):
        return f"data:{kind};base64,{base64.b64encode((folder / name).read_bytes()).decode()}"

    title = ("Notes drawn sample by sample" if contents["model"] == "wavenet" else
             "One timbre at many pitches" if args.scale else
             "From one timbre to another" if args.interpolate else "Notes, each of its own timbre")
    shape, seconds = contents["architecture"], spectrum.length / spectrum.sample_rate
    facts = [f"{path.resolve().parent.name}/{path.name}", contents["model"],
             f"{contents['images']:,} examples trained", shape.get("output", spectrum.rep),
             f"{seconds:g} s at {spectrum.sample_rate:,} Hz",
             f"notes of {args.latents.name}" if args.latents else f"seed {args.seed}"]
    if "resolutions" in shape:
        blocks = gansynth.grown(contents["progress"])[0]
        facts[1] += f", {blocks} of {shape['resolutions']} blocks"
    if len(names) > PAGE_NOTES:
        facts.append(f"the first {PAGE_NOTES} of {len(names):,} notes")
    cards = "\n".join(
        f'<button class="card" aria-pressed="false" data-pitch="{p}" '
        f'data-wav="{data("audio/wav", f"{name}.wav")}">'
        f'<img alt="" src="{data("image/png", f"{name}.png")}">'
        f"<b>{note_name(p)}</b><small>{name}</small></button>"
        for name, p in zip(names[:PAGE_NOTES], pitch))
    return page(title, f"""\
<h1>{title}</h1>
<p class="soft">{html.escape(" · ".join(facts))}</p>
<p>Click a note to hear it. The pictures are rainbowgrams: time runs to the right and pitch upwards,
bright is loud, and a steady overtone is a streak of one colour.</p>
<p{"" if args.scale else " hidden"}>Or play A W S E D F ... as a piano; Z and X move an octave.</p>
<p><label><input type="checkbox" id="onward"> After a note, play the next</label></p>
<main style="--seconds: {seconds:g}s">
{cards}
</main>
""", NOTES_STYLE, NOTES_SCRIPT + PIANO_SCRIPT * args.scale)


NOTES_STYLE = """\
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
.card { position: relative; padding: 0 0 .5rem; overflow: hidden; text-align: left; }
.card img { display: block; width: 100%; height: 8rem; margin-bottom: .4rem; background: #000; }
.card :is(b, small) { display: block; padding: 0 .7rem; }
.card[aria-pressed=true]::after { content: ""; position: absolute; top: 0; width: 2px;
  height: 8rem; background: #fff; animation: play var(--seconds) linear; }
@keyframes play { from { left: 0; } to { left: 100%; } }
"""

NOTES_SCRIPT = """\
const cards = [...document.querySelectorAll(".card")], player = new Audio();
let now = -1;                             // the number of the card that plays

function play(number) {                   // or stop, where there is no such card
  now = number in cards ? number : -1;
  cards.forEach(card => card.setAttribute("aria-pressed", false));
  player.pause();
  if (now < 0) return;
  requestAnimationFrame(() => cards[now]?.setAttribute("aria-pressed", true));   // starts the line
  cards[now].scrollIntoView({block: "nearest"});
  player.src = cards[now].dataset.wav;
  player.play().catch(error => error.name === "AbortError" || play(-1));   // unless by another
}
player.onended = () => play(document.getElementById("onward").checked ? now + 1 : -1);
cards.forEach((card, i) => card.onclick = () => play(i === now ? -1 : i));
"""

PIANO_SCRIPT = """\
const keys = [..."awsedftgyhujkolp"], pitches = cards.map(card => Number(card.dataset.pitch));
const octaves = [...new Set(pitches.map(pitch => Math.floor(pitch / 12)))].sort((a, b) => a - b);
let on = octaves.length >> 1;             // of those that hold notes: Z and X find no others

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase(), place = keys.indexOf(key);
  if (key === "z") on = Math.max(on - 1, 0);
  if (key === "x") on = Math.min(on + 1, octaves.length - 1);
  if (place >= 0) play(pitches.indexOf(12 * octaves[on] + place));
});
"""


# ---- Benchmark: the paper's claim of 54,000 times -------------------------------------------

@torch.no_grad()
def bench(device, budget=5.0, arch=gansynth.Architecture(), spectrum=spectral.Spectrum(),
          wavegan=gansynth.WaveGANArchitecture(), wavenet=gansynth.WaveNetArchitecture()):
    """Print the seconds that a note takes, of each model at the paper's size, with random weights.
    A WaveNet's are those of one sample times their number: with a cache all cost the same; without,
    the first have less past to look at."""
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
            crop = torch.zeros(1, past, device=device)
            row("WaveNet, naive", lambda: net.draw(net(crop, pitch)[..., -1]),
                wavenet.length - past / 2)
    print("paper, Titan X: GANSynth 0.020 s, WaveNet 1077.53 s a note, 53,880 x")
    # Which sampler took those 16.8 ms a sample?  The naive one needs 6,141 columns a sample of 63M
    # multiply-adds each, or half of them without those that no longer matter: 35 to 70 ms at that
    # card's 11 TFLOP/s.  The cached one reads 250 MB of weights, less than 1 ms, and launches a few
    # hundred kernels at some 10 us each, beside a call from Python: so it was likely this one.


# ---- Command line ---------------------------------------------------------------------------

def at_least(low):
    """A type for argparse: whole numbers from `low` on that a seed can hold."""
    def whole_number(text):
        if not re.fullmatch(r"\s*[0-9]{1,18}\s*", text) or int(text) < low:
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


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, what = parser.add_argument, parser.add_mutually_exclusive_group()
    add("checkpoint", type=Path, nargs="?", help="a file, or a run's folder (its newest one), or "
        "Magenta's, with experiment.json in it")
    what.add_argument("--scale", action="store_true", help="one timbre over all trained pitches")
    what.add_argument("--interpolate", action="store_true", help="from one timbre to another")
    what.add_argument("--save", type=Path, metavar="FILE", help="write Magenta's as a file of ours")
    what.add_argument("--bench", action="store_true", help="time the paper's models, without one")
    add("--pitch", type=parse_pitches, metavar="P,...", help="of the notes in turn: 60, C4, Bb4")
    add("--count", type=at_least(1), metavar="N",
        help="notes (default 16, or all of --latents or --scale, or 9 of --interpolate)")
    add("--seed", type=at_least(0), default=0, help="of latents and pitches (default 0)")
    add("--latents", type=Path, metavar="FILE", help="an earlier run's latents.npz, to hear again")
    add("--mel-inverse", choices=spectral.MEL_INVERSES,
        help="of if-mel: pseudo, by least squares, or transpose, the release's, which smears "
             "over neighbouring bands (default: as trained)")
    add("--out", type=Path, metavar="DIR", help="new or empty (samples-0001, ... of the run)")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if not given & {"checkpoint", "bench"} or args.bench and given - {"bench", "device"}:
        parser.error("expected a checkpoint to listen to, or --bench, with --device at most")
    return args


def main(argv=None):
    try:
        args = parse(argv)
        if args.bench:
            return bench(args.device)
        if args.save:
            return save(args)
        print(f"{sample(args)}: all notes on one page; WAVs, pictures and tables are beside it")
    except (SampleError, gansynth.CheckpointError, nsynth.NoteError, spectral.SpectrumError,
            OSError) as error:
        sys.exit(f"sample.py: {error}")
    except KeyboardInterrupt:
        print("sample.py: stopped; nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    main()
