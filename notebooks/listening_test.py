"""People compare runs by ear: the paper's human evaluation (paper 3), as a page of blind pairs.

    python notebooks/listening_test.py RUN RUN --out runs/test        a page that opens from disk
    python notebooks/listening_test.py --score answers*.json          what people said

With --data real notes take part.  All flags by which metrics.py chooses notes work here, too.
"""

import signal
import sys

if __name__ == "__main__":                # Ctrl-C while the packages load: no traceback
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import base64
import glob
import io
import itertools
import json
import math
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import scipy.io.wavfile
from scipy.stats import binom, binomtest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))      # where metrics.py is

import metrics
import nsynth
import sample
from metrics import MetricError, markdown, real_run

ANSWERS = "gansynth-listening-answers"    # the format of a file of answers, version 1
LEVEL = 0.05                              # of significance, after Holm's correction


def draw_pairs(pitches, pairs, seed):
    """Which notes meet: a list of `pairs` (A, B), each a (name, index of note), in random order.

    pitches: {name: (N,) MIDI}.  The two of a pair have one pitch and different models.  All pairs
    of models come equally often, to within one, and so does each of the two as A.  No two notes
    meet twice, and the notes and pitches used least come first.
    """
    random, used, drawn = np.random.default_rng(seed), Counter(), []
    contests = list(itertools.combinations(pitches, 2))
    if not contests:
        raise MetricError("a listening test compares two models or more: name another one")
    need = math.ceil(pairs / len(contests))
    meetings = {}                         # of each two models, in random order
    for a, b in contests:
        met = np.argwhere(pitches[a][:, None] == pitches[b])
        if len(met) < need:
            raise MetricError(f"{a} and {b} have notes for {len(met)} pairs of one pitch, and "
                              f"{need} are needed: raise --samples, or ask for fewer --pairs")
        meetings[a, b] = [((a, i), (b, j)) for i, j in random.permutation(met).tolist()]
    random.shuffle(contests)
    for turn in range(pairs):
        a, b = contest = contests[turn % len(contests)]
        best = min(meetings[contest], key=lambda met: (
            used[met[0]] + used[met[1]], used[contest, pitches[a][met[0][1]]]))
        meetings[contest].remove(best)
        used.update([*best, (contest, pitches[a][best[0][1]])])
        drawn.append(best[::(-1) ** (turn // len(contests))])
    return [drawn[i] for i in random.permutation(pairs)]


def listening_test(setting, runs, args):
    """The paper's human evaluation as a page: blind pairs of the runs' notes, and with --data of
    real ones.  All have one RMS, by one factor for all so that none clips.

    The page needs nothing but itself; each rater sends the file that it saves:

        {"format": ANSWERS, "version": 1, "test": hash of the test, "rater": name, "answers":
         [{"pair": 1, "A": model, "B": model, "pitch": MIDI, "rating": 1 to 5}, ...]}

    A rating is how far one agrees that A has better audio quality / fewer distortions than B: 1
    strongly agree, 3 neutral, 5 strongly disagree.  Which model is which stands in the page in
    base64 only: nobody reads it by chance, but who wants to cheat can.
    """
    models = {}
    with sample.new_folder(args.out, None, "") as (part, out):
        if args.data:
            held_out = setting.notes(args.pack)[1]
            some = np.random.default_rng(args.seed).permutation(len(held_out))[:args.samples]
            runs = [real_run("real notes", held_out, some), *runs]
        for run in runs:
            waves = np.concatenate([waves for _, waves in run.batches()])
            sounding = np.abs(waves).max(1) >= sample.SILENT
            models[run.name] = waves[sounding], run.pitch[sounding]
        pairs = draw_pairs({name: notes[1] for name, notes in models.items()}, args.pairs,
                           args.seed)
        waves = np.stack([models[name][0][i] for pair in pairs for name, i in pair])
        waves /= np.sqrt(np.square(waves).mean(1, keepdims=True))
        waves = np.rint(waves * (0.9 * 32767 / np.abs(waves).max())).astype(np.int16)
        key = [(a, b, int(models[a][1][i])) for (a, i), (b, _) in pairs]
        listening_page(part, key, waves, setting.sample_rate)
    print(f"open {out / 'index.html'} in a browser; when people have rated, score what it saved "
          "with: python notebooks/listening_test.py --score answers*.json")


def listening_page(folder, key, waves, sample_rate):
    """Write the page of pairs; key: each one's (A, B, pitch); waves (2 pairs, L) int16, A and B."""
    sounds, forms = [], []
    for wave in waves:
        scipy.io.wavfile.write(file := io.BytesIO(), sample_rate, wave)
        sounds.append("data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode())
    for i, (a, b) in enumerate(zip(sounds[::2], sounds[1::2]), 1):
        levels = [f'<label><input type="radio" name="{i}" value="{n}"> {n} {level}</label>'
                  for n, level in enumerate(LEVELS, 1)]
        forms.append(PAIR.format(i=i, n=len(key), A=a, B=b, levels="\n".join(levels)))
    key = json.dumps(key).encode()
    body = LISTENING.format(test=f"{zlib.crc32(key + waves.tobytes()):08x}", n=len(forms),
                            key=base64.b64encode(key).decode(), pairs="\n".join(forms))
    sample.write_page(folder, "Listening test", body, LISTENING_STYLE, LISTENING_SCRIPT)


LISTENING = """\
<h1>Listening test</h1>
<p>Please use headphones, in a quiet room. You will hear {n} pairs of notes, A and B. Rate their
<b>audio quality</b>: noise, roughness, warbling and other distortions. Do not rate taste: which
instrument you like better is not asked. Listen to both to the end, as often as you like.</p>
<p class="soft">Your answers stay in this browser, also if the page is closed; when all are given,
save them as a file and send it back. Within a pair, space plays and the keys 1 to 5 answer.</p>
<form data-test="{test}" data-key="{key}">
<label>Your name (the file will have it) <input name="rater" maxlength="40"></label>
{pairs}
<p class="bar"><progress max="{n}" value="0"></progress>
<button type="button" id="save">Save the answers</button> <button type="reset">Next rater</button>
</p></form>
"""

PAIR = """\
<fieldset><legend>Pair {i} of {n}: A has better audio quality / fewer distortions than B.</legend>
<label>A <audio controls src="{A}"></audio></label>
<label>B <audio controls src="{B}"></audio></label>
<p>{levels}</fieldset>"""
LEVELS = ("Strongly agree", "Agree", "Neutral", "Disagree", "Strongly disagree")

LISTENING_STYLE = """\
body { max-width: 48rem; }
fieldset { margin: 1rem 0; border: 1px solid var(--line); border-radius: .6rem; }
audio { width: 16rem; max-width: 80%; height: 2.4rem; vertical-align: middle; }
fieldset p { font-size: .9rem; }
fieldset label { margin-right: .4rem; white-space: nowrap; }
input { max-width: 100%; font: inherit; }
button:disabled { opacity: .5; cursor: default; }
.bar { position: sticky; bottom: 0; padding: .6rem 0; background: var(--paper); }
"""

LISTENING_SCRIPT = """\
const form = document.forms[0], storage = "gansynth-listening-" + form.dataset.test;
const key = JSON.parse(atob(form.dataset.key)), save = document.getElementById("save");
const answers = () => Object.fromEntries(new FormData(form));

function keep() {                         // the answers in this browser, and how many there are
  const given = Object.keys(answers()).length - 1;      // and the name
  document.querySelector("progress").value = given;
  save.disabled = given < key.length;
  try { localStorage.setItem(storage, JSON.stringify(answers())); } catch { }   // it may be barred
}
form.oninput = keep;
form.onsubmit = () => false;              // Enter in the name's field
form.onreset = () => { setTimeout(keep); return confirm("Erase the answers from this page?"); };
form.addEventListener("play", event => {  // one at a time
  for (const audio of form.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);

document.onkeydown = event => {           // 1 to 5: rate the pair in focus, on to the next one
  const pair = document.activeElement.closest("fieldset");
  const choice = pair?.querySelector(`[value="${CSS.escape(event.key)}"]`);
  if (!choice || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  choice.click();
  pair.nextElementSibling.querySelector("audio, button").focus();
};

save.onclick = () => {
  form.rater.value = form.rater.value.trim() || "anonymous-" + Math.random().toString(36).slice(2);
  keep();                                 // the same name, should it be saved again
  const given = answers(), {test} = form.dataset, {rater} = given;
  const text = JSON.stringify({format: "gansynth-listening-answers", version: 1, test, rater,
    answers: key.map(([A, B, pitch], i) =>
      ({pair: i + 1, A, B, pitch, rating: Number(given[i + 1])}))}, null, 1);
  const href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  const download = "answers-" + rater.replace(/[^\\p{L}\\p{N}]+/gu, "-") + ".json";
  Object.assign(document.createElement("a"), {href, download}).click();
};

// Not before the first frame: Chromium may find the storage of a local file empty until then.
requestAnimationFrame(() => setTimeout(() => {
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(storage)) || {}; } catch { }
  for (const name in kept) form.elements.namedItem(name).value = kept[name];
  keep();
}));
"""


def read_answers(paths):
    """The answers of different raters to one test, a list; MetricError says what is wrong."""
    files = {}
    for path in paths:
        try:
            new = json.loads(path.read_text(encoding="utf-8"))
            test = new["test"], [(answer["A"], answer["B"]) for answer in new["answers"]]
            ratings = [answer["rating"] for answer in new["answers"]]
            if ((new["format"], new["version"]) != (ANSWERS, 1) or not ratings
                    or any(type(r) is not int or not 1 <= r <= 5 for r in ratings)):
                raise ValueError
            rater = new["rater"]
        except FileNotFoundError:
            raise MetricError(f"{path} is not there: give the answers-NAME.json that the page "
                              "saved, and the folder it is in") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise MetricError(f"{path}: no answers to a listening test: give the answers-NAME.json "
                              "that its page saved, unchanged") from None
        for other, (old_test, old_rater, _) in files.items():
            if test != old_test:
                raise MetricError(f"{path} and {other} are answers to different tests: score each "
                                  "test alone")
            if rater == old_rater:
                raise MetricError(f"{path} and {other} are both by {rater!r}: give one of them, or "
                                  "name two raters apart inside the files")
        files[path] = test, rater, new["answers"]
    return [answers for _, _, answers in files.values()]


def holm(p):
    """Holm (1979): p (n,) corrected for n tests: the smallest times n, the next times n - 1, ..."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return corrected


def ratings_for_power(tests, preference=0.6, power=0.8):
    """Ratings a pair, none neutral, from which on a preference of 60:40 is found four times in
    five: by the exact sign test at Holm's first and strictest step, LEVEL / tests."""
    n = np.arange(1, 10_000)
    needed = binom.isf(LEVEL / tests / 2, n, 0.5) + 1   # wins, or as many losses
    found = binom.sf(needed - 1, n, preference) + binom.cdf(n - needed, n, preference)
    return int(n[found < power].max()) + 1


def score_test(paths):
    """Answers of several raters to one test, counted and tested.

    -> raters, their number; models, {name: [wins, ties, losses]}, the best first; pairs, {(a, b):
    [wins of a, ties, losses, p, p corrected]}.  p is the exact sign test's, of wins among ratings
    that are not neutral.
    """
    files = read_answers(paths)
    models, pairs = {}, {}
    for answer in itertools.chain(*files):
        outcome = 1 + int(np.sign(answer["rating"] - 3))            # 0: A wins, 1: a tie, 2: B wins
        for own, other, place in ((answer["A"], answer["B"], outcome),
                                  (answer["B"], answer["A"], 2 - outcome)):
            models.setdefault(own, [0, 0, 0])[place] += 1
            pairs.setdefault((own, other), [0, 0, 0])[place] += 1
    models = dict(sorted(models.items(), key=lambda row: (-row[1][0] / sum(row[1]), row[0])))
    pairs = {pair: pairs[pair] for pair in itertools.combinations(models, 2) if pair in pairs}
    for row in pairs.values():
        won, _, lost = row
        row.append(binomtest(won, won + lost).pvalue if won + lost else 1.0)
    for row, corrected in zip(pairs.values(), holm([row[3] for row in pairs.values()])):
        row.append(corrected)
    return len(files), models, pairs


def format_scores(raters, models, pairs):
    """What `score_test` found, as text."""
    def percent(count, of):
        return f"{count} {count / of:6.1%}"

    total, tests = sum(sum(row[:3]) for row in pairs.values()), len(pairs)
    table = [["model", "ratings", "wins", "ties", "losses"]]
    for name, row in models.items():
        table.append([name, f"{sum(row)}", *(percent(count, sum(row)) for count in row)])
    table.append(["paper: real data", "800", percent(549, 800), "", ""])
    duels = [["pair", "ratings", "first wins", "ties", "second wins", "p", "Holm"]]
    for (a, b), (*row, p, corrected) in pairs.items():
        duels.append([f"{a}, {b}", *map(str, (sum(row), *row)), f"{p:.2g}", f"{corrected:.2g}"])
    least = math.floor(math.log2(tests / LEVEL)) + 2    # unanimous: p = 2^(1 - n)
    return "\n".join([
        f"{raters} raters, {total:,} ratings (paper: 3,600 of nine models)", "", *markdown(table),
        "", *markdown(duels), "",
        "p: exact sign test of the ratings that are not neutral; Holm: corrected for the number of "
        f"pairs, significant\nbelow {LEVEL}.  A pair needs {least} such ratings before unanimous "
        f"ones can be significant, and {ratings_for_power(tests)} to\nfind a preference of 60:40 "
        "four times in five (all ratings taken as independent)."])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     epilog="RUN and all other flags: see python metrics.py -h")
    parser.add_argument("--pairs", type=sample.at_least(1), default=40, help="default: 40")
    parser.add_argument("--score", nargs="+", metavar="FILE", help="answers*.json")
    own, rest = parser.parse_known_args(argv)
    with nsynth.one_sentence("listening_test.py", sample.ERRORS):
        if own.score:
            paths = [Path(path) for pattern in own.score       # not every shell expands a *
                     for path in sorted(glob.glob(pattern)) or [pattern]]
            print(format_scores(*score_test(paths)))
            return
        args = metrics.parse(rest)
        if not (args.runs and args.out):
            parser.error("expected runs to compare, and --out DIR, a new folder")
        args.pairs, args.samples = own.pairs, args.samples or 200   # of each, to choose pairs from
        listening_test(*metrics.gather(args), args)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    main()
