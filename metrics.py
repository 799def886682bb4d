"""Measures of notes that need no trained classifier: are they in tune, clean, and varied?

    python metrics.py runs/0001              a run's fresh notes beside the real ones it never saw

    in tune   share of notes whose fundamental, by autocorrelation, is within a quarter tone (50
              cents) of the pitch asked for: an estimate that knows nothing of the networks
    clean     share of a note's energy within a quarter tone of a harmonic of that pitch
    variety   log-spectral distance between two notes of one pitch, in dB: low when all sound alike

Shapes:  N notes, L samples.  Waves are (N, L), pitches (N,) MIDI numbers.
"""

import argparse
import base64
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from random import Random
from string import Template

import numpy as np
import scipy.io.wavfile
import scipy.stats
import torch

import gansynth
import nsynth
import sample
import spectral

QUARTER_TONE = 50                         # cents


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
    high = max(2000.0, 2.2 * frequency(np.max(pitches)))
    found = np.array([fundamental(wave, sample_rate, high=high) for wave in waves])
    return cents(found, frequency(pitches))


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


def variety(waves, pitches, window=512, most=8):
    """Mean log-spectral distance in dB between notes of one pitch, over up to `most` a pitch."""
    waves, pitches = torch.as_tensor(np.asarray(waves)), np.asarray(pitches)
    distances = []
    for pitch in np.unique(pitches):
        same = waves[np.flatnonzero(pitches == pitch)[:most]]
        if len(same) > 1:
            distances.append(spectral.log_spectral_distance(same, same.roll(1, 0), window))
    return torch.cat(distances).mean().item() if distances else float("nan")


def row(waves, pitches, sample_rate):
    """The measures of a set of notes as a dict."""
    off = tuning(waves, pitches, sample_rate)
    return {"notes": len(waves), "in tune": np.mean(np.abs(off) <= QUARTER_TONE),
            "semitone": np.mean(np.abs(off) <= 2 * QUARTER_TONE),
            "clean": harmonic_share(waves, pitches, sample_rate).mean(),
            "variety": variety(waves, pitches)}


def fresh_notes(path, samples, seed, mel_inverse):
    """Notes of a checkpoint, its pitches in turn: waves (N, L), pitches (N,), contents."""
    G, contents = gansynth.load_generator(path)
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, G.arch.latent, generator=random)
    label = torch.arange(samples) % G.arch.pitches
    spectrum = spectral.Spectrum.restore(contents["spectrum"], mel_inverse)
    waves = gansynth.synthesise(G, spectrum, z, label, contents["progress"])
    if not waves.isfinite().all():
        raise gansynth.CheckpointError(f"{path}: makes NaN or infinity, so its training went "
                                       "astray: use an earlier checkpoint")
    return waves.numpy(), label.numpy() + contents["pitch_low"], contents


def held_out_notes(config, data):
    """The notes that a run's split kept from training: waves (N, L), pitches (N,)."""
    sources = [name.strip() for name in config["sources"].split(",") if name.strip() != "all"]
    notes = nsynth.load(data or config["data"], config["length"], config["sample_rate"],
                        (config["pitch_low"], config["pitch_high"]), tuple(filter(None, sources)),
                        skip_damaged=config.get("skip_damaged", False))
    _, notes = nsynth.split(notes, config["seed"], by=config.get("split", "random"))
    if len(notes) == 0:
        raise nsynth.NoteError(f"{data or config['data']}: no note is held out: give more of them")
    return notes.waves(range(len(notes))).numpy(), notes.pitch


# ---------------------------------------------------------------------------------------------
# Human evaluation

ANSWERS, ANSWERS_VERSION = "gansynth-listening-answers", 1
LEVEL = 0.05                              # of significance, after Holm's correction


class ListeningError(ValueError):
    """Notes no test can be made of, or answers that cannot be counted; the message says why."""


def check_notes(models):
    """{name: (waves, pitches)} as arrays; ListeningError for shapes, NaN, silence, two lengths."""
    models = {name: tuple(map(np.asarray, notes)) for name, notes in models.items()}
    lengths = {}
    for name, (waves, pitch) in models.items():
        if waves.ndim != 2 or 0 in waves.shape or pitch.shape != waves.shape[:1]:
            raise ListeningError(f"{name}: waves of shape {waves.shape} with pitches {pitch.shape}:"
                                 " expected (N, L) with (N,)")
        peak = np.abs(waves).max(axis=1)
        for bad, fault in ((~np.isfinite(peak), "holds NaN or infinity"),
                           (peak < 1 / 32768, "is silent")):
            if bad.any():
                raise ListeningError(f"note {bad.argmax()} of {name} {fault} ({bad.sum()} of its "
                                     f"{len(bad)} notes): leave such notes out")
        lengths[waves.shape[1]] = name
    if len(lengths) > 1:
        (l0, a), (l1, b) = list(lengths.items())[:2]
        raise ListeningError(f"notes of {a} have {l0} samples and those of {b} {l1}, which would "
                             "tell them apart: cut them to one length")
    return models


def draw_pairs(pitches, pairs, seed):
    """Which notes meet: a list of `pairs` (A, B), each a (name, index of note), in random order.

    pitches: {name: (N,) MIDI}.  The two of a pair have one pitch and different models.  All pairs
    of models come equally often, to within one, and so does each of the two as A.  No two notes
    meet twice, and the notes used least come first.  ListeningError where there are too few.
    """
    random = Random(seed)
    contests = [random.sample(pair, 2) for pair in itertools.combinations(pitches, 2)]
    if not contests:
        raise ListeningError("a listening test compares two models or more: name another one")
    if pairs < len(contests):
        raise ListeningError(f"{pairs} pairs are too few: {len(pitches)} models meet in "
                             f"{len(contests)} ways, so ask for {len(contests)} pairs or more")
    at = {name: {p: [(name, i) for i in np.flatnonzero(pitch == p).tolist()]
                 for p in np.unique(pitch).tolist()} for name, pitch in pitches.items()}
    free = {(a, b): {p: len(at[a][p]) * len(at[b][p]) for p in at[a] if p in at[b]}
            for a, b in contests}         # meetings left, by pitch
    for (a, b), left in free.items():
        if sum(left.values()) < -(-pairs // len(contests)):
            raise ListeningError(f"{a} and {b} have notes for {sum(left.values())} pairs of one "
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
    try:
        out = sample.out_folder(Path(out), None)
    except sample.SampleError as error:
        raise ListeningError(str(error)) from None
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
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        (part / "index.html").write_text(LISTENING_PAGE.substitute(
            test=json.dumps(test), pairs=pairs, minutes=max(1, round(minutes))), encoding="utf-8")
        if out.exists():
            out.rmdir()                   # empty: not every system renames onto a folder
        part.rename(out)
    except OSError as error:
        raise ListeningError(f"{out} cannot be written ({error.strerror}): name another folder"
                             ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out / "index.html"


def read_answers(path):
    """One rater's answers, as `write_listening_test` describes them; ListeningError if not."""
    try:
        contents = json.loads(Path(path).read_text(encoding="utf-8"))
        known = contents["format"] == ANSWERS and contents["version"] == ANSWERS_VERSION
    except OSError as error:
        raise ListeningError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ListeningError(f"{path}: not JSON: give the answers*.json that the page saves"
                             ) from None
    except (TypeError, KeyError):
        known = False
    if not known:
        raise ListeningError(f"{path}: no answers of a listening test (version {ANSWERS_VERSION}):"
                             " give the answers*.json that the page saves")
    answers = contents.get("answers")
    if not (isinstance(answers, list) and answers
            and all(isinstance(contents.get(name), str) for name in ("test", "rater"))):
        raise ListeningError(f"{path}: lacks its test, rater or answers: save it again")
    for i, answer in enumerate(answers, 1):
        if not (isinstance(answer, dict) and answer.get("pair") == i and answer.get("A") !=
                answer.get("B") and all(isinstance(answer.get(side), str) for side in "AB")):
            raise ListeningError(f"{path}: answer {i} does not name pair {i} and its two models: "
                                 "save it again")
        if type(answer.get("rating")) is not int or not 1 <= answer["rating"] <= 5:
            raise ListeningError(f"{path}: answer {i} has the rating {answer.get('rating')!r}: "
                                 "expected a whole number from 1 to 5")
    return contents


def read_raters(paths):
    """The answers of different raters to one test, a list; ListeningError says what is wrong."""
    files = {}
    for path in paths:
        new = read_answers(path)
        for other, old in files.items():
            if new == old:
                raise ListeningError(f"{path} and {other} are the same answers: give them once")
            if new["test"] != old["test"]:
                raise ListeningError(f"{path} and {other} are answers to different tests "
                                     f"({new['test']}, {old['test']}): score each test alone")
            if new["rater"] == old["rater"]:
                raise ListeningError(f"{path} and {other} are both by {new['rater']!r}: give one "
                                     "of them, or name two raters apart inside the files")
            asked, before = ([(answer["A"], answer["B"]) for answer in contents["answers"]]
                             for contents in (new, old))
            if asked != before:
                raise ListeningError(f"{path} and {other} name one test but other pairs of models:"
                                     " one was changed by hand, so save it again")
        files[path] = new
    if not files:
        raise ListeningError("no answers: give the answers*.json that the page saves")
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
    each rating counting for both its models.  ListeningError says what is wrong with the files.
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


def main(argv=None):
    parser = argparse.ArgumentParser(description="Are a run's notes in tune, clean and varied?")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or checkpoints")
    parser.add_argument("--data", help="real notes to compare with (default: the run's own)")
    parser.add_argument("--samples", type=int, default=240, help="notes a run (default: 240)")
    parser.add_argument("--seed", type=int, default=1, help="of the latents (default: 1)")
    parser.add_argument("--mel-inverse", choices=spectral.MEL_INVERSES, default="pseudo",
                        help="from mel bands back to frequencies, for if-mel (default: pseudo)")
    args = parser.parse_args(argv)
    if args.samples < 1:
        parser.error(f"--samples {args.samples}: at least one note is needed")
    if not 0 <= args.seed < 2 ** 63:
        parser.error(f"--seed {args.seed}: expected a whole number, 0 or more")
    print(f"{'':40}{'notes':>6}{'in tune':>9}{'semitone':>10}{'clean':>7}{'variety':>9}")
    try:
        for run in args.runs:
            path = gansynth.find_checkpoint(run)
            waves, pitches, contents = fresh_notes(path, args.samples, args.seed,
                                                    args.mel_inverse)
            config = contents["config"]
            rate = config["sample_rate"]
            real = row(*held_out_notes(config, args.data), rate)
            for name, r in ((f"held-out notes of {args.data or config['data']}", real),
                            (f"{path.parent.name}, {contents['images']:,} examples",
                             row(waves, pitches, rate))):
                print(f"{name[-38:]:40}{r['notes']:6}{r['in tune']:9.1%}{r['semitone']:10.1%}"
                      f"{r['clean']:7.2f}{r['variety']:6.1f} dB", flush=True)
    except (gansynth.CheckpointError, nsynth.NoteError, spectral.SpectrumError, OSError) as error:
        sys.exit(f"metrics.py: {error}")
    except KeyError as error:
        sys.exit(f"metrics.py: {path}: its settings lack {error}: use the program that wrote it")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
