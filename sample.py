"""Listen to a checkpoint: notes as WAV files, rainbowgrams, a table, and one page to hear them on.

    python sample.py runs/0001                    16 random notes of a run's newest checkpoint
    python sample.py runs/0001 --pitch C4,Eb4,G4  the same timbres at chosen pitches, in turn
    python sample.py runs/0001 --scale            one timbre over all pitches
    python sample.py runs/0001 --interpolate      from one timbre to another (paper Fig. 4)
    python sample.py runs/0001 --latents runs/0001/samples-0001/latents.npz      the same again
    python sample.py --bench                      seconds a note, of each of the paper's models

The notes of a seed never change: more of them begin with the same ones, --scale plays the timbre
of the first, --interpolate goes from the first to the second.  The averaged generator is heard, at
the size it has grown to by then.  A WaveNet has no latents, but draws every sample: there is
nothing to interpolate, and a seed means the same notes only where as many are asked for.

Shapes:  N notes, L samples.  z is (N, latent), waves are (N, L).  Pitches are MIDI numbers (60 is
C4), apart from the labels 0..P-1 that the networks use: MIDI numbers less the lowest trained one.
"""

import argparse
import base64
import contextlib
import csv
import html
import math
import os
import re
import shutil
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from string import Template

import numpy as np
import torch

import gansynth
import nsynth
import spectral

PAGE_NOTES = 64                           # embedded at most: 12-30 MB at the paper's size
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


class SampleError(ValueError):
    """A request that this checkpoint or folder cannot meet; the message says what it can."""


# ---------------------------------------------------------------------------------------------
# Pitches


def note_name(pitch):
    """60 -> "C4", 61 -> "C#4"."""
    return f"{NAMES[pitch % 12]}{pitch // 12 - 1}"


def parse_pitches(text):
    """ "60", "C4", "F#3,Bb4" -> MIDI numbers, a list: a type for argparse, with its error."""
    pitches = []
    for part in text.split(","):
        match = re.fullmatch(r"([A-G])([#b]?)(-1|\d)|(\d{1,3})", part.strip().capitalize())
        if match is None:
            raise argparse.ArgumentTypeError(f"{part!r} is no pitch, such as 60, C4, F#3 or Bb4")
        letter, accidental, octave, number = match.groups()
        shift = {"": 0, "#": 1, "b": -1}
        pitches.append(int(number) if number else
                       NAMES.index(letter) + shift[accidental] + 12 * (int(octave) + 1))
    return pitches


# ---------------------------------------------------------------------------------------------
# Latents


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
    """The latents.npz of an earlier run: z (n, latent) and MIDI pitches, a list of n, or None.

    SampleError for anything but finite numbers `z` of this width and whole numbers `pitch`.
    """
    try:
        with np.load(path) as file:
            z = torch.from_numpy(file["z"].astype(np.float32))
            pitch = file["pitch"] if "pitch" in file else None
    except OSError as error:
        raise SampleError(f"{path}: cannot be read ({error.strerror or error}): give the "
                          "latents.npz of an earlier run") from None
    except Exception:                     # numpy raises many kinds for a damaged file
        raise SampleError(f"{path}: not an .npz file with numbers z: give the latents.npz of an "
                          "earlier run") from None
    if z.ndim != 2 or len(z) == 0 or z.shape[1] != latent:
        raise SampleError(f"{path}: z has shape {tuple(z.shape)}: this checkpoint's latents are "
                          f"(n, {latent})")
    if not z.isfinite().all():
        raise SampleError(f"{path}: z holds NaN or infinity: give the latents.npz of an earlier "
                          "run")
    if pitch is None:
        return z, None
    if pitch.shape != (len(z),) or pitch.dtype.kind not in "iu":
        raise SampleError(f"{path}: pitch has shape {pitch.shape} and type {pitch.dtype}: expected "
                          f"({len(z)},), MIDI numbers")
    return z, pitch.tolist()


def choose(args, latent, counts, low):
    """What to play: latents (N, latent), and MIDI pitches, a list of N.

    counts (P,): the notes trained on at each pitch from `low` up.  SampleError for pitches out of
    that range, and for too few latents.
    """
    needed = 1 if args.scale else 2 if args.interpolate else args.count
    if args.latents:
        z, pitch = read_latents(args.latents, latent)
        if len(z) < (needed or 1):
            raise SampleError(f"{args.latents} holds {len(z)} latents, and this needs {needed}")
    else:
        z, pitch = draw(needed or 16, latent, counts, low, args.seed)

    high = low + len(counts) - 1
    if args.scale:
        pitch = args.pitch or range(low, high + 1)
        z = z[:1].repeat(len(pitch), 1)
    elif args.interpolate:
        pitch = args.pitch or [(low + high) // 2]
        z = slerp(z[0], z[1], args.count or 9)
    else:
        z = z[:args.count]
        pitch = args.pitch or pitch or draw(len(z), latent, counts, low, args.seed)[1]
    for p in pitch:
        if not low <= p <= high:
            raise SampleError(f"pitch {p} was never trained: this checkpoint plays {low} to {high} "
                              f"({note_name(low)} to {note_name(high)})")
    return z, list(islice(cycle(pitch), len(z)))


# ---------------------------------------------------------------------------------------------
# Files


def count_up(done, total, what, most=32):
    """One line on stderr that counts, where there is a terminal and something to wait for: more
    than `most`."""
    if total > most and sys.stderr.isatty():
        print(f"\r{round(done, 2):,} of {total:,} {what}", end="\n" if done == total else "",
              file=sys.stderr, flush=True)


def out_folder(out, beside, kind="samples"):
    """The folder to make: `out`, which must be new or empty, or the next of `kind` in `beside`:
    samples-0001, ..."""
    if out is None:
        taken = [int(match[1]) for file in (beside.iterdir() if beside.is_dir() else ())
                 if (match := re.fullmatch(rf"{kind}-([0-9]+)", file.name))]
        return beside / f"{kind}-{max(taken, default=0) + 1:04}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SampleError(f"{out} is there already and not an empty folder: name a new one")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)   # now, and not after minutes of work
    except OSError as error:
        raise SampleError(f"{out} cannot be made ({error.strerror}): name another folder") from None
    return out


@contextlib.contextmanager
def whole_folder(out):
    """Make `out`, a new or empty folder, whole or not at all: -> a folder beside it to fill, which
    is renamed in the end."""
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


def write_all(part, waves, z, pitch, sample_rate, origin, page):
    """Fill the folder `part`.

    waves (N, L), z (N, latent), pitch a list of N MIDI numbers; origin: what else latents.npz
    holds; page: what `render_page` is told besides the notes.
    """
    digits = max(3, len(str(len(pitch) - 1)))
    names = [f"{i:0{digits}}-{note_name(p).replace('#', 's')}-{p:03}" for i, p in enumerate(pitch)]
    for i, (name, wave) in enumerate(zip(names, waves)):
        nsynth.write_wav(part / f"{name}.wav", wave, sample_rate)
        spectral.write_png(part / f"{name}.png", spectral.rainbowgram(wave, sample_rate))
        count_up(i + 1, len(names), "notes written")
    np.savez(part / "latents.npz", z=z.numpy(), pitch=np.array(pitch), **origin)
    with open(part / "notes.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "pitch", "note", *(f"z{i}" for i in range(z.shape[1]))])
        for name, p, row in zip(names, pitch, z.tolist()):          # nine digits are exact
            table.writerow([f"{name}.wav", p, note_name(p), *(f"{x:.9g}" for x in row)])
    (part / "index.html").write_text(render_page(part, names, pitch, **page),
                                     encoding="utf-8", errors="replace")


# ---------------------------------------------------------------------------------------------
# The look of every page


def page(title, body, style="", script=""):
    """A whole HTML document that needs no other file: title is text, body is HTML.

    The look is shared by the page of samples, the page of measures and the listening test; `style`
    comes after it, so that it may add and override.  A wide table goes into <div class="wide">.
    """
    return f"""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)} - GANSynth</title>
<style>
{LOOK}{style}</style>
{body}
<script>
{script}</script>
</html>
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
.soft, figcaption { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; }
:is(th, td):first-child { padding-left: 0; text-align: left; }
tr + tr, tbody tr { border-top: 1px solid var(--line); }
figure { margin: 1rem 0; }
img { max-width: 100%; }
button { padding: .4rem 1rem; font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; cursor: pointer; }
button:hover { border-color: var(--soft); }
button:disabled { opacity: .5; cursor: default; }
[aria-pressed=true] { border-color: var(--accent); box-shadow: 0 0 0 2px var(--accent); }
:focus-visible { outline: 3px solid var(--ink); outline-offset: 2px; }
"""


# ---------------------------------------------------------------------------------------------
# The page


def render_page(folder, names, pitch, title, intro, facts, piano):
    """The notes in `folder` as one HTML text, sounds and pictures inside it.

    names: of the files, without .wav; facts: a dict to show; piano: whether letter keys play.
    """
    def data(kind, name):
        return f"data:{kind};base64,{base64.b64encode((folder / name).read_bytes()).decode()}"

    cards = [CARD.substitute(pitch=p, note=note_name(p), name=name,
                             wav=data("audio/wav", f"{name}.wav"),
                             png=data("image/png", f"{name}.png"))
             for name, p in zip(names[:PAGE_NOTES], pitch)]
    if len(names) > PAGE_NOTES:
        intro += f" The first {PAGE_NOTES} of {len(names):,} are on this page."
    facts = [f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd></div>"
             for key, value in facts.items()]
    return PAGE.substitute(title=html.escape(title), intro=html.escape(intro),
                           facts="\n".join(facts), cards="\n".join(cards),
                           piano="" if piano else "hidden")


CARD = Template("""\
<button class="card" aria-pressed="false" data-pitch="$pitch" data-wav="$wav">
<span class="picture"><img alt="" src="$png"></span>
<span class="name">$note</span> <span class="file">$name</span></button>""")

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title - GANSynth</title>
<style>
:root { color-scheme: light dark; --paper: #f7f6f3; --card: #fff; --ink: #1d1d22; --soft: #62626c;
  --line: #d9d7d0; --accent: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16161a; --card: #222228; --ink: #ececf0;
  --soft: #a0a0ac; --line: #3a3a44; --accent: #ff8a75; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: clamp(1rem, 4vw, 3rem); background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .3em; font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.2; }
p { max-width: 44rem; margin: .5em 0; }
.soft, dt, .file { color: var(--soft); font-size: .85rem; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 1.2rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.bar { position: sticky; top: 0; z-index: 1; display: flex; gap: 1rem; align-items: center;
  margin-bottom: .5rem; padding: .6rem 0; background: var(--paper); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; cursor: pointer; }
button:focus-visible { outline: 3px solid var(--ink); outline-offset: 2px; }
#all { padding: .4rem 1rem; flex: none; }
.card { padding: 0 0 .5rem; scroll-margin-top: 4rem; overflow: hidden; text-align: left; }
.card:hover { border-color: var(--soft); }
.card[aria-pressed=true] { border-color: var(--accent); box-shadow: 0 0 0 2px var(--accent); }
.picture { position: relative; display: block; margin-bottom: .4rem; background: #000; }
.picture img { display: block; width: 100%; height: 8rem; }
[aria-pressed=true] .picture::after { content: ""; position: absolute; inset: 0 auto 0
  calc(100% * var(--at, 0)); width: 2px; background: #fff; }
.name { padding-left: .7rem; font-weight: 600; }
.name::before { content: "\\25B6\\FE0E"; color: var(--soft); margin-right: .4em; font-size: .8em; }
[aria-pressed=true] .name::before { content: "\\25A0"; color: var(--accent); }
.file { display: block; padding-left: .7rem; }
@media (pointer: coarse) { #piano { display: none; } }
</style>
<h1>$title</h1>
<p>$intro</p>
<p class="soft">Click a note to hear it, or move with the arrow keys and press space. The pictures
are rainbowgrams: time runs to the right and pitch upwards, bright is loud, and the colour is the
instantaneous frequency, so that a steady overtone is a streak of one colour.</p>
<p class="soft" id="piano" $piano></p>
<dl>
$facts
</dl>
<div class="bar"><button id="all">Play all in order</button>
<span class="soft" id="status" role="status"></span>
</div>
<main class="cards">
$cards
</main>
<noscript><p>The sounds need JavaScript; they are also WAV files beside this page.</p></noscript>
<script>
const cards = [...document.querySelectorAll(".card")], player = new Audio();
const [all, piano, status] = ["all", "piano", "status"].map(id => document.getElementById(id));
let now = null, onward = false;           // the card that plays; whether the next one follows

function stop() {
  player.pause();
  if (now) now.setAttribute("aria-pressed", "false");
  now = null;
  all.textContent = "Play all in order";
  status.textContent = "";
}

function play(card, inOrder) {
  stop();
  [now, onward] = [card, inOrder];
  card.setAttribute("aria-pressed", "true");
  card.scrollIntoView({block: "nearest"});
  if (inOrder) all.textContent = "Stop";
  status.textContent = card.querySelector(".name").textContent + ", note "
    + (cards.indexOf(card) + 1) + " of " + cards.length;
  player.src = card.dataset.wav;
  player.play().catch(error => { if (error.name !== "AbortError") stop(); });
}

function follow() {                       // the line over the picture
  if (now) now.style.setProperty("--at", player.currentTime / player.duration || 0);
  requestAnimationFrame(follow);
}
follow();

player.onended = () => {
  const next = onward && cards[cards.indexOf(now) + 1];
  if (next) play(next, true); else stop();
};
for (const card of cards) card.onclick = () => card === now ? stop() : play(card, false);
all.onclick = () => now && onward ? stop() : play(cards[0], true);

document.addEventListener("keydown", event => {
  const here = cards.indexOf(document.activeElement);
  const columns = cards.filter(card => card.offsetTop === cards[0].offsetTop).length;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
  const next = cards[here < 0 ? 0 : here + step];
  if (next) {
    next.focus();
    event.preventDefault();
  }
});

const keys = [..."awsedftgyhujkolp"];      // a piano, A for C, where all pitches are there
let base = 12 * Math.floor(cards[cards.length >> 1].dataset.pitch / 12);
function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase(), place = keys.indexOf(key);
  base += {z: -12, x: 12}[key] || 0;
  piano.textContent = "Piano keys: A W S E D F ... from C" + (base / 12 - 1)
    + " up; Z and X move an octave.";
  const card = place >= 0 && cards.find(card => card.dataset.pitch == base + place);
  if (card) play(card, false);
}
if (!piano.hidden) {
  document.addEventListener("keydown", pressed);
  pressed(new KeyboardEvent("keydown"));  // no key: only says how
}
</script>
</html>
""")


def describe(args, path, contents, spectrum, pitch):
    """What the page says of these notes, as `render_page` takes it."""
    at = " at " + ", ".join(map(note_name, args.pitch)) if args.pitch else ""
    model, blocks = contents["model"], contents["architecture"].get("resolutions")
    if model == "wavenet":
        title = f"{len(pitch)} note{'s' * (len(pitch) > 1)}{at or ' up the scale' * args.scale}"
        intro = "Each note is drawn sample by sample: only its pitch was asked for."
    elif args.scale:
        title = "One timbre" + (at or " over all pitches")
        intro = "One latent vector for all notes: they should sound like one instrument."
    elif args.interpolate:
        title = f"Interpolation between two timbres at {note_name(pitch[0])}"
        intro = (f"{len(pitch)} steps along the arc between two latent vectors (slerp): each "
                 "should sound like a note, not like two mixed.")
    else:
        title = f"{len(pitch)} {'' if args.latents else 'random '}note{'s' * (len(pitch) > 1)}{at}"
        intro = "Each note has a latent vector, and so a timbre, of its own."
    return {"title": title, "intro": intro, "piano": args.scale, "facts": {
        "Checkpoint": f"{path.resolve().parent.name}/{path.name}",
        "Examples trained": f"{contents['images']:,}",
        "Model": {"wavegan": "WaveGAN", "wavenet": "WaveNet", "gansynth":
                  f"{'Waveform GAN' if spectrum.rep == spectral.WAVEFORM else 'GANSynth'}, "
                  f"{gansynth.active_blocks(contents['progress'])} of {blocks} blocks"}[model],
        "Drawn from": args.latents.name if args.latents else f"seed {args.seed}",
        "Representation": contents["architecture"].get("output", spectrum.rep),
        "Sound": f"{spectrum.length / spectrum.sample_rate:g} s at {spectrum.sample_rate:,} Hz"}}


# ---------------------------------------------------------------------------------------------
# Benchmark: the paper's claim of 54,000 times


def seconds(function, device, budget):
    """Median seconds of a call; calls go on for about `budget` seconds, two at least and one
    before them to warm up."""
    taken = []
    while len(taken) < 3 or sum(taken) < budget and len(taken) < 30:
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return sorted(taken[1:])[len(taken[1:]) // 2]


@torch.no_grad()
def bench(device, budget=20.0, arch=gansynth.Architecture(), spectrum=spectral.Spectrum(),
          wavegan=gansynth.WaveGANArchitecture(), wavenet=gansynth.WaveNetArchitecture()):
    """Print the seconds that a note takes, of each model at the paper's size, with random weights.

    A note of GANSynth's is the network and the inverse spectra.  A WaveNet is timed over some
    samples, and the rest extrapolated: all cost the same with a cache; without, the first have
    less past than the receptive field.
    """
    rows, of_one = [], torch.zeros(1, dtype=torch.int64, device=device)

    def add(name, notes, taken, remark=""):
        rows.append(taken / notes)
        print(f"{name:18}{notes:6}{taken / notes:12.4g} s{rows[-1] / rows[0]:12,.1f} x  {remark}",
              flush=True)

    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    print(f"notes of {spectrum.length:,} samples on {device}{threads}, torch {torch.__version__}, "
          f"random weights\n{'':18}{'notes':>6}{'a note':>14}{'of the first':>14}")
    for name, G in (("GANSynth", gansynth.Generator(arch).to(device)),
                    ("WaveGAN", gansynth.WaveGANGenerator(wavegan).to(device))):
        form = spectrum if name == "GANSynth" else spectral.Spectrum(
            spectral.WAVEFORM, wavegan.length, 1, spectrum.length, spectrum.sample_rate)
        for n in (1, 8):
            z, progress = torch.randn(n, G.arch.latent), float(arch.resolutions - 1)
            add(name, n, seconds(lambda: gansynth.synthesise(G, form, z, of_one.repeat(n),
                                                             progress), device, budget))
    net = gansynth.WaveNet(wavenet).to(device)
    for n in (1, 8):
        cache, u = gansynth.CachedWaveNet(net, of_one.repeat(n)), torch.zeros(n, device=device)

        def draw(samples):
            nonlocal u
            for _ in range(samples):
                u = net.draw(cache.step(u))

        draw(net.before + 1)              # while the pitch goes on, a sample costs more
        step = seconds(lambda: draw(16), device, budget) / 16
        add("WaveNet, cached", n, step * wavenet.length, "extrapolated from "
            f"{step * 1e3:.3g} ms a sample")
    past = min(wavenet.receptive_field, wavenet.length)
    crop = torch.zeros(1, past, device=device)
    step = seconds(lambda: net.draw(net(crop, of_one)[..., -1]), device, budget)
    add("WaveNet, naive", 1, step * (wavenet.length - past / 2),
        f"extrapolated from {step:.3g} s a sample")
    print(PAPER_LATENCY)


# Which sampler took the paper's 1077.53 s, 16.8 ms a sample?  A column of its WaveNet at our sizes
# is 63M multiply-adds.  The naive one needs a receptive field of 6,141 columns a sample, 0.8 TFLOP,
# or about half of that where columns that no longer matter are left out: 35 to 70 ms at a Titan X's
# 11 TFLOP/s, two to four times too long.  The cached one reads
# 250 MB of weights a sample, less than 1 ms at that card's 340 to 480 GB/s, and launches a few
# hundred kernels one after another at some 10 us each in TensorFlow, beside a call from Python:
# milliseconds in all.  So the cached one, as in the sampler that NSynth's authors released.
PAPER_LATENCY = """\
paper, Titan X: GANSynth 0.020 s, WaveNet 1077.53 s a note, 53,880 x.  Those 16.8 ms a sample are
likely the cached sampler's: the naive one's arithmetic alone takes 35 to 70 ms on that card."""


# ---------------------------------------------------------------------------------------------
# Command line


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
    parser = argparse.ArgumentParser(
        description="Listen to a checkpoint: WAV files, rainbowgrams, and a page to hear them on.")
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?",
        help="a checkpoint file, or a run folder (its newest one)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--scale", action="store_true",
                      help="one timbre over all trained pitches, or those of --pitch")
    what.add_argument("--interpolate", action="store_true",
                      help="from one timbre to another at one pitch (default: the middle one)")
    what.add_argument("--bench", action="store_true",
                      help="without a checkpoint: time each of the paper's models at its size")
    add("--pitch", type=parse_pitches, metavar="P[,P...]",
        help="MIDI numbers or names (60, C4, F#3, Bb4) for the notes in turn")
    add("--count", type=at_least(1), metavar="N",
        help="notes (default 16, or all of --latents), or steps of --interpolate (default 9)")
    add("--seed", type=at_least(0), default=0, help="of latents and pitches (default 0)")
    add("--latents", type=Path, metavar="FILE.npz",
        help="latents.npz of an earlier run: its notes again, or its timbres at other pitches")
    add("--mel-inverse", choices=spectral.MEL_INVERSES, default="pseudo",
        help="for if-mel, from mel bands back to frequencies: pseudo, the least-squares inverse "
             "(default), or transpose, the release's, which smears over neighbouring bands")
    add("--out", type=Path, metavar="DIR",
        help="a new or empty folder (default: samples-0001, ... beside the checkpoint)")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    args = parser.parse_args(argv)
    if args.bench == (args.checkpoint is not None):
        parser.error("expected either a checkpoint to listen to, or --bench")
    if args.bench and (args.pitch or args.count or args.latents or args.out or args.seed
                       or args.mel_inverse != "pseudo"):
        parser.error("of the other flags, --bench goes with --device only")
    if args.scale and args.count:
        parser.error("--count does not go with --scale: it plays every pitch once")
    if args.interpolate and (args.count == 1 or args.pitch and len(args.pitch) > 1):
        parser.error("--interpolate takes two steps or more, at one pitch")
    return args


def sample(args):
    """Make and write what the command line asks for; returns the page's path and its title."""
    path = gansynth.find_checkpoint(args.checkpoint)
    G, contents = gansynth.load_generator(path, args.device)
    if contents["model"] == "wavenet" and (args.interpolate or args.latents):
        raise SampleError(f"{path}: is a WaveNet, which has no latents, so --interpolate and "
                          "--latents mean nothing to it: use --pitch or --scale")
    out = out_folder(args.out, path.parent)
    spectrum = spectral.Spectrum.restore(contents["spectrum"], args.mel_inverse)
    low = contents["pitch_low"]
    z, pitch = choose(args, G.arch.latent, contents["counts"].cpu(), low)
    most = 0 if contents["model"] == "wavenet" else 32  # notes that take no patience
    waves = gansynth.synthesise(G, spectrum, z, torch.tensor(pitch) - low, contents["progress"],
                                show=lambda done: count_up(done, len(z), "notes made", most),
                                generator=torch.Generator().manual_seed(args.seed))
    peak = waves.abs().max().item()
    if not math.isfinite(peak):
        raise SampleError(f"{path}: makes NaN or infinity, so its training went astray: use an "
                          "earlier checkpoint")
    if peak > 1:                          # one factor for all: their balance is G's doing
        waves /= peak
        print(f"The loudest note peaks at {peak:.3g}: all were divided by it, so as not to clip.")
    page = describe(args, path, contents, spectrum, pitch)
    with whole_folder(out) as part:
        write_all(part, waves, z, pitch, spectrum.sample_rate,
                  {"seed": args.seed, "checkpoint": path.name}, page)
    return out / "index.html", page["title"]


def main(argv=None):
    args = parse(argv)
    try:
        if args.bench:
            return bench(torch.device(args.device))
        page, title = sample(args)
    except (SampleError, gansynth.CheckpointError, nsynth.NoteError, spectral.SpectrumError,
            OSError) as error:
        sys.exit(f"sample.py: {error}")
    except KeyboardInterrupt:
        print("sample.py: stopped; nothing was written", file=sys.stderr)
        sys.exit(130)
    print(f"{page}: {title}, as one page; beside it the WAVs, rainbowgrams, latents.npz, notes.csv")


if __name__ == "__main__":
    main()
