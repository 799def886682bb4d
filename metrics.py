"""Every measure of the paper's tables, and its rows beside ours (paper 3 and 4, Tables 1 and 2).

    python metrics.py runs/0001                    a run's fresh notes beside real ones, as a table
    python metrics.py runs/0001 notes/             any folder of WAVs counts as a run too
    python metrics.py --data DATA --controls       real notes, and three ways to fail
    python metrics.py --train-classifier --data DATA      the pitch classifier behind the measures

The paper's, from a classifier that was trained on real notes: NDB, FID, IS, and PA and PE (pitch
accuracy, and the entropy of the predicted pitch: is it sure?).  And ours, without a network:

    in tune   share of notes whose fundamental, by autocorrelation, is within a quarter tone (50
              cents) of the pitch asked for
    clean     share of a note's energy within a quarter tone of a harmonic of that pitch
    variety   log-spectral distance between two notes of one pitch, in dB: low when all sound alike
    steady    phase coherence (paper Fig. 3): do its harmonics' phases advance evenly?

Each is a function of arrays: N notes, L samples, F frequency bins, T frames, D features, K classes
or cells.  Waves (N, L), pitches (N,) MIDI, logits (N, K).  By ear: notebooks/listening_test.py."""

import signal
import sys

if __name__ == "__main__":                # Ctrl-C while the packages load: no traceback
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import html
import json
import math
import re
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2, vq
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy, norm
from torch import nn

import gansynth
import nsynth
import sample
import spectral

QUARTER_TONE = 50                         # cents
CELLS, NDB_LEVEL = 50, 0.05               # K of NDB, and its level of significance in each cell
VARIETY_NOTES = 8                         # of a pitch: every further one adds little

class MetricError(sample.SampleError):
    """Notes, a classifier or answers that cannot be measured with: why, and what to do about it."""

# ---- The paper's measures, on arrays --------------------------------------------------------
def frechet_distance(features_real, features_fake):
    """FID (Heusel et al. 2017) of features: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C C'.  Over all rows (code:
    only the first 128, by mistake).  It is too large for few rows: compare sets of one size."""
    a, b = np.asarray(features_real, np.float64), np.asarray(features_fake, np.float64)
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0))
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b) - 2 * roots.sum()
    return max(0.0, float(distance))

def inception_score(logits):
    """exp(mean KL(p(y|x) || p(y))), from logits (N, K), in one split (Salimans et al. 2016): from 1
    (all notes alike, or nothing recognised) to exp(entropy of the pitches played)."""
    p = softmax(np.asarray(logits, np.float64), axis=1)             # (N, K)  p(y|x)
    return float(np.exp(entropy(p, p.mean(0), axis=1).mean()))

def pitch_accuracy(logits, pitch, within=0):
    """Share of notes whose likeliest pitch, k of class k, is theirs, (N,), to `within` semitones.
    paper: exact.  code: to one."""
    return float(np.mean(np.abs(logits.argmax(1) - pitch) <= within))

def pitch_entropy(logits):
    """Mean entropy, in nats, of the pitch that the classifier hears: low when it is sure."""
    return float(entropy(softmax(np.asarray(logits, np.float64), axis=1), axis=1).mean())

def cell_centres(train, k=CELLS, seed=0):
    """K-means of training notes, (N, D) -> the centres of NDB's cells, those that hold any, (K, D);
    sought in a random sixth of more than 1000 dimensions, centred in all, as its authors do."""
    random, dims = np.random.default_rng(seed), train.shape[1]
    some = random.permutation(dims)[:dims // 6] if dims > 1000 else slice(None)
    with warnings.catch_warnings():       # k-means tells of cells without notes
        warnings.simplefilter("ignore")
        _, cells = kmeans2(train[:, some], k, iter=100, minit="++", seed=random)
    return np.stack([train[cells == c].mean(0) for c in np.unique(cells)])

def ndb(train, samples, centres):
    """Number of statistically different bins (Richardson and Weiss 2018), (N, D) and (M, D) rows.

    In each cell a z-test of two proportions (pooled) asks whether samples fall there as often as
    training notes do.  2.5 of 50 differ by chance; more in many dimensions, as the cells are fitted
    to `train` (36 for 500 of pure noise): real notes are the yardstick.  Both sets go to the centre
    nearest in all dimensions (the authors' training notes stay where k-means put them).

    -> number of such cells; js, the Jensen-Shannon divergence of the shares, in nats; and, (K,), of
    each cell, the fullest first: the shares `train` and `samples`, and p of the test."""
    n, m = (np.bincount(vq(rows, centres)[0], minlength=len(centres)) for rows in (train, samples))
    order = np.argsort(-n, kind="stable")
    n, m = n[order], m[order]
    p, q, both = n / len(train), m / len(samples), (n + m) / (len(train) + len(samples))
    spread = np.sqrt(both * (1 - both) * (1 / len(train) + 1 / len(samples)))
    z = np.divide(p - q, spread, out=np.zeros(len(p)), where=spread > 0)
    chance = 2 * norm.sf(np.abs(z))
    js = np.nan_to_num(jensenshannon(p, q) ** 2)        # the root of a rounding error is nan
    return SimpleNamespace(number=int((chance < NDB_LEVEL).sum()), js=float(js), train=p, samples=q,
                           p=chance)

# ---- Ours: in tune, clean, varied -----------------------------------------------------------
def frequency(pitch):
    """MIDI pitch -> Hz; 69 is 440 Hz."""
    return 440.0 * 2.0 ** ((np.asarray(pitch) - 69) / 12)

def cents(f, reference):
    """Distance of f from a reference frequency in cents, hundredths of a semitone."""
    return 1200 * np.log2(np.maximum(f, 1e-9) / reference)

def tuning(wave, pitch, sample_rate):
    """How far a note is from its pitch, in cents; beyond 12,000 where it has no fundamental."""
    f0 = frequency(pitch)
    low, high = min(25.0, f0 / 1.5), max(2000.0, 2.2 * f0)
    return cents(spectral.fundamental(wave, sample_rate, low, high), f0)

def harmonic_share(wave, pitch, sample_rate):
    """Share of a note's energy within a quarter tone of a harmonic of its pitch.  As the bands of
    high harmonics meet, even white noise has 0.7 at middle C (16 kHz), and more below."""
    wave, f0 = np.asarray(wave, dtype=np.float64), frequency(pitch)
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2              # (bins,)
    f = np.fft.rfftfreq(len(wave), 1 / sample_rate)
    near = np.abs(cents(f, np.maximum(np.rint(f / f0), 1) * f0)) <= QUARTER_TONE
    return power[near].sum() / max(power.sum(), 1e-12)

def variety(waves, pitches, window=512):
    """Mean log-spectral distance in dB between notes of one pitch, over VARIETY_NOTES of each."""
    waves, pitches = torch.as_tensor(np.asarray(waves)), np.asarray(pitches)
    distances = []
    for pitch in np.unique(pitches):
        same = waves[np.flatnonzero(pitches == pitch)[:VARIETY_NOTES]]
        if len(same) > 1:
            distances.append(spectral.log_spectral_distance(same, same.roll(1, 0), window))
    return torch.cat(distances).mean().item() if distances else float("nan")

# ---- Ours: phase coherence (paper Fig. 3) ---------------------------------------------------
HARMONICS = 10                            # looked at, from the fundamental up
PERIODS = 4                               # in a window: its neighbours are then 4 bins away
LAG = 0.032                               # seconds an advance spans: a hop of the paper's "+ H"

def phase_coherence(wave, pitch, sample_rate):
    """How steadily the harmonics of a note turn: 1 at constant speeds, 0 at random ones.

    Each is demodulated at k f0 in Hann windows of four periods, short enough to hold a detuned one,
    and its phase compared with that LAG later (in hops of three quarters of a window, which share
    next to nothing; in seconds, as random phases of an STFT's frames hardly turn in a few periods
    of a high note).  R_k = |mean exp(i d)| over these advances d: detuning costs nothing, Gaussian
    jitter of deviation s gives exp(-s^2 / 2).  R_k^2 is the mean of cos(d - d') over all pairs;
    those of an advance with itself are left out, so that white noise has 0 but for chance (0.02 in
    4 s at 16 kHz, 0.05 in 0.5 s at 8 kHz).  The root of the mean R_k^2, weighted by amplitude.

    To be read beside real notes: vibrato and string sections lower it, and an STFT's overlapping
    windows lend some to random phases.  Silence has 0; nan: too short, or too near Nyquist."""
    x, f0 = spectral.middle(wave), frequency(pitch)
    window = round(PERIODS * sample_rate / f0)
    hop = max(1, 3 * window // 4)
    lag = int(np.ceil(LAG * sample_rate / hop))                     # in hops
    k = np.arange(1, 1 + min(HARMONICS, int(sample_rate / 2 / f0 - 0.25)))      # below Nyquist
    if len(x) < window + (lag + 1) * hop or len(k) == 0:            # two advances
        return np.nan
    frames = np.lib.stride_tricks.sliding_window_view(x, window)[::hop]         # (T, window)
    carrier = np.exp(-2j * np.pi * f0 / sample_rate * np.outer(np.arange(window), k))
    harmonics = (frames * np.hanning(window + 1)[:-1]) @ carrier    # (T, K)
    amplitude = np.abs(harmonics).mean(0)
    turns = harmonics[:-lag].conj() * harmonics[lag:]               # exp(i d) by both magnitudes:
    weight = np.abs(turns)                                          # what has died away is silent
    itself = (weight ** 2).sum(0)                                   # (K,)
    others = weight.sum(0) ** 2 - itself
    R_squared = (np.abs(turns.sum(0)) ** 2 - itself) / np.maximum(others, 1e-300)
    return np.sqrt(np.clip((amplitude * R_squared).sum() / max(amplitude.sum(), 1e-300), 0, 1))

def phase_picture(wave, pitch, sample_rate, samples=1028, height=192):
    """The waveform modulo its period, above its rainbowgram (paper, Fig. 3): (H, W, 3) uint8.

    Cycles in the middle of the note, as many as cover `samples`, lie over each other: coherent ones
    meet in a bright line.  The period is measured there, or the pitch's if a quarter tone away."""
    wave = np.asarray(wave, dtype=np.float64)
    rainbow = spectral.rainbowgram(wave, sample_rate, height)       # (height, frames, 3)
    width, centre, period = rainbow.shape[1], len(wave) / 2, sample_rate / frequency(pitch)
    reach = max(samples, 4 * period) * 2 / 3                        # `middle` leaves out a quarter
    around = wave[max(0, int(centre - reach)):int(centre + reach)]
    off = tuning(around, pitch, sample_rate)
    if abs(off) <= QUARTER_TONE:
        period /= 2 ** (off / 1200)
    cycles = max(1, int(min(np.ceil(samples / period), len(wave) / period)))
    time = np.arange(cycles)[:, None] + np.linspace(0, 1, 4 * width) - cycles / 2   # in periods
    fine = 8                              # points a sample: band-limited, then joined by lines
    curve = np.fft.irfft(np.fft.rfft(wave), fine * len(wave))
    curves = np.interp((centre + period * time) * fine, np.arange(len(curve)), curve)
    curves = 0.9 * curves / max(np.abs(curves).max(), 1e-12)        # (cycles, 4 width)
    return spectral.tile([spectral.overlay(curves, width, height), rainbow], columns=1)

# ---- The pitch classifier -------------------------------------------------------------------
DEPTHS = (1, 1, 1, 2, 2, 2, 4, 4, 4)      # channels of the strided convolutions, x the width
WIDTHS = {"full": 128, "thin": 16}        # paper: 128; thin trains in a quarter of an hour on a CPU
HEADS = {"pitch": 128, "qualities": 10, "family": 11, "source": 3}          # as in nsynth.py
RANGE = 80                                # dB below a note's loudest bin that the classifier sees

def log_spectrogram(waves, sample_rate):
    """Log magnitude as the classifier sees it, (N, L) -> (N, 1, F, T), in windows of about 64 ms, a
    quarter apart: 512 x 256 of the paper's notes.  1 is a note's loudest bin and 0 is 80 dB or more
    below it: neither a model's level nor digital silence, which no network makes, tells."""
    bins = 2 ** round(math.log2(sample_rate * spectral.WINDOW_SECONDS[False])) // 2
    frames = 2 ** math.ceil(math.log2(max(1, waves.shape[1] * 2 / bins)))
    magnitude = spectral.stft(waves, frames, bins).abs().clamp(min=1e-7)        # (N, T, F)
    loudest = magnitude.amax(dim=(1, 2), keepdim=True).clamp(min=1e-2)          # silence stays 0
    decibels = 20 * torch.log10(magnitude / loudest)
    return (1 + decibels / RANGE).clamp(min=0).transpose(1, 2)[:, None]         # (N, 1, F, T)

class Classifier(nn.Module):
    """Log spectrogram -> features, and logits over pitch, qualities, family and source.

    paper (appendix; the NSynth paper's): nine strided convolutions, the first 5x5 and the others
    4x4, of stride 2 but for the last, which has it along frequency only; then 1x1 to 1024.  512 x
    256 becomes 1 x 1; of other sizes there are fewer convolutions, and what remains is averaged."""

    def __init__(self, sample_rate, width):
        super().__init__()
        bins = log_spectrogram(torch.zeros(1, sample_rate), sample_rate).shape[2]
        depths = DEPTHS[-min(int(math.log2(bins)), len(DEPTHS)):]
        channels, last = [1] + [width * depth for depth in depths], len(depths) - 1
        self.convs = nn.ModuleList([nn.Sequential(      # padded as TensorFlow's SAME: sizes are 2^n
            nn.ZeroPad2d((1, 2, 1, 2)),
            nn.Conv2d(channels[i], channels[i + 1], 4 if i else 5, (2, 1 if i == last else 2),
                      bias=False),
            nn.BatchNorm2d(channels[i + 1])) for i in range(len(depths))])
        self.hidden = nn.Linear(channels[-1], 8 * width)            # a 1x1 convolution of 1 x 1
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, n) for name, n in HEADS.items()})

    def forward(self, spectrogram):
        """(N, 1, F, T) -> features for FID (N, 4 width), the last strided convolution's before its
        leaky ReLU; a dict of logits (N, classes)."""
        x = spectrogram.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            features = conv(x)                                      # (N, C, F/2, T/2)
            x = F.leaky_relu(features, gansynth.LEAK)
        x = F.leaky_relu(self.hidden(x.mean(dim=(2, 3))), gansynth.LEAK)        # (N, 8 width)
        return features.mean(dim=(2, 3)), {name: head(x) for name, head in self.heads.items()}

def classifier_loss(logits, notes, indices):
    """The cross-entropies of notes, summed (paper: trained jointly); -1, not told, is left out."""
    loss, labels = 0, {"pitch": notes.pitch[indices], "qualities": notes.qualities[indices]}
    for name, known in ("family", nsynth.FAMILIES), ("source", nsynth.SOURCES):
        number = {word: i for i, word in enumerate(known)}
        labels[name] = [number.get(word, -1) for word in getattr(notes, name)[indices]]
    for name, label in labels.items():
        label = torch.as_tensor(label, device=logits[name].device)  # (n,), of qualities (n, 10)
        told = label >= 0
        own, label = logits[name][told], label[told]
        if len(label):
            loss = loss + (F.binary_cross_entropy_with_logits(own, label.float())
                           if name == "qualities" else F.cross_entropy(own, label))
    return loss

def train_classifier(notes, width, examples, seed=0, device="cpu", batch=32):
    """A classifier of `notes`, after so many examples.  Adam as the paper's, beta1 0.5, rate 1e-4 x
    128 / width; ours: that falls to 0 along a cosine."""
    torch.manual_seed(seed)
    classifier = Classifier(notes.sample_rate, width).to(device, memory_format=torch.channels_last)
    lr = 1e-4 * WIDTHS["full"] / width
    adam = torch.optim.Adam(classifier.parameters(), lr=lr, betas=(0.5, 0.999))
    steps = range(0, examples, batch)
    for position in nsynth.progress_bar(steps, "examples", each=batch):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * position / steps.stop)) / 2
        indices = nsynth.epoch_order(position, batch, len(notes), seed)
        _, logits = classifier(log_spectrogram(notes.waves(indices).to(device), notes.sample_rate))
        adam.zero_grad()
        classifier_loss(logits, notes, indices).backward()
        adam.step()
    return classifier

def find_classifier(setting, notes, args):
    """A setting's classifier, named, kept or trained now, and which; MetricError for a misfit."""
    names = sorted(zip(notes.name.tolist(), notes.pitch.tolist()))
    mark = zlib.crc32(f"{setting[1:5]} {names}".encode())           # tells training sets apart
    name = re.sub(r"[^\w.-]", "_", Path(setting.data).resolve().name)
    usual = max(8 * len(notes), 16_000)   # after fewer examples it is kept apart, as a trial
    name += f"-{mark:08x}-width-{args.width}" + "-trial" * (0 < args.examples < usual)
    path = args.classifier or Path("classifiers", f"{name}.pt")
    if args.train_classifier or not (args.classifier or path.exists()):
        path.parent.mkdir(exist_ok=True)
        print(f"training a classifier for {setting}, on {len(notes):,} notes of {setting.data}, to "
              f"be kept in {path}", file=sys.stderr, flush=True)
        classifier = train_classifier(notes, args.width, args.examples or usual, device=args.device)
        gansynth.save_checkpoint(path, {"classifier": classifier.state_dict(), "mark": mark,
                                        "width": args.width, "setting": setting._asdict()})
    try:
        kept = gansynth.load_checkpoint(path, args.device, {"classifier": dict, "width": int,
                                                            "setting": dict, "mark": int})
    except gansynth.CheckpointError:
        raise MetricError(f"{path} is no whole classifier: use --train-classifier") from None
    own = Setting(**kept["setting"])
    if own[1:3] != setting[1:3] or not own[3] <= setting[3] <= setting[4] <= own[4]:
        raise MetricError(f"{path} is a classifier for {own}: it does not fit notes of {setting}; "
                          "leave --classifier out, or give another")
    classifier = Classifier(own.sample_rate, kept["width"])
    classifier.load_state_dict(kept["classifier"])
    classifier.to(args.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return classifier, f"{path}" + ", trained on other notes than these" * (kept["mark"] != mark)

# =============================================================================================
# The measures end here.  The rest brings notes to them, and them to people.
class Setting(NamedTuple):
    """What a classifier and a table belong to: real notes, their form, and how they are split."""
    data: str = "orchestra"
    length: int = 64_000                  # samples
    sample_rate: int = 16_000             # Hz
    pitch_low: int = 24
    pitch_high: int = 84
    sources: str = "acoustic"
    split: str = "random"
    skip_damaged: bool = False
    seed: int = 0                         # of the split

    def count(self, asked):
        """Notes a row, where none are asked for.  paper: 12,800, of 4 s; here 1,000 of shorter."""
        return asked or (12_800 if self.length >= 64_000 else 1_000)

    def notes(self, pack):
        """(training notes, held-out ones); pack: where those of read-only data may be packed."""
        notes = nsynth.load(*self[:3], self[3:5], nsynth.names(self.sources), pack=pack,
                            skip_damaged=self.skip_damaged)
        train, held_out = nsynth.split(notes, self.seed, by=self.split)
        if len(held_out) < 2:
            raise MetricError(f"{self.data} has {len(held_out)} held-out notes: expected 2 or more")
        return train, held_out

    def __str__(self):
        return (f"{self.length:,} samples at {self.sample_rate:,} Hz, "
                f"pitches {self.pitch_low}-{self.pitch_high}")

class Run(NamedTuple):
    """N notes to measure, which need not be in memory all at once."""
    name: str
    pitch: np.ndarray                     # (N,) MIDI, as asked for
    waves: callable                       # a slice of them -> (n, L) float32
    paper: str = ""                       # its row in the paper's tables

    def batches(self):
        """Yield (a slice, waves (n, L)), 16 notes at a time, with a bar on stderr."""
        for i in nsynth.progress_bar(range(0, len(self.pitch), 16), f"notes: {self.name}", each=16):
            yield slice(i, i + 16), self.waves(slice(i, i + 16))

def real_run(name, notes, indices, paper=""):
    return Run(name, notes.pitch[indices], lambda some: notes.waves(indices[some]), paper)

def checkpoint_run(path, args):
    """Fresh notes of a checkpoint, at pitches as often as trained -> its setting, its run."""
    player = sample.Player(path, args)
    config = player.contents["config"]
    setting = Setting(args.data or config["data"], *(config[name] for name in Setting._fields[1:]))
    z, pitch = player.draw(setting.count(args.samples))
    return setting, Run(f"{path}, {player.contents['images']:,} examples", np.array(pitch),
                        lambda some: player.few(z[some], pitch[some]), paper_name(config))

def folder_run(folder, setting, args):
    """The WAVs of a folder, whoever made them, in the form of `setting`; names tell pitches."""
    wavs = [file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".wav"]
    wanted = range(setting.pitch_low, setting.pitch_high + 1)
    inside = [file for file in wavs if nsynth.pitch_of(file.stem) in wanted]
    if len(inside) < 2:
        raise MetricError(f"{folder}: no run, and {len(inside)} of its {len(wavs):,} WAVs tell a "
                          f"pitch in {wanted[0]}-{wanted[-1]}: expected two, such as note_C4.wav")
    sound, rate = nsynth.read_sound(inside[0])
    name = f"{folder}" + f", {len(inside):,} of its {len(wavs):,} WAVs" * (inside != wavs)
    if (len(sound), rate) != setting[1:3]:
        name += f", from {len(sound):,} samples at {rate:,} Hz"
    order = np.random.default_rng(args.seed).permutation(len(inside))
    files = [inside[i] for i in order[:setting.count(args.samples)]]
    wish = nsynth.Wish(setting.length, setting.sample_rate)
    return Run(name, np.array([nsynth.pitch_of(file.stem) for file in files]),
               lambda some: torch.from_numpy(np.stack(
                   [wish.fit(*nsynth.read_sound(file)) for file in files[some]])) / 32768)

def controls(train, held_out, length, count, seed):
    """Three deliberate failures, to see which measure catches what."""
    rng = np.random.default_rng(seed)
    real = rng.permutation(len(held_out))[:count]
    shuffled, pitch = rng.permutation(held_out.pitch[real]), rng.choice(train.pitch, count)
    return [Run("control: white noise", pitch, lambda some: torch.from_numpy(
                rng.normal(0, 0.1, (len(pitch[some]), length)).astype(np.float32))),
            real_run("control: one note repeated", train, np.zeros(count, np.int64)),
            real_run("control: shuffled pitches", held_out, real)._replace(pitch=shuffled)]

# ---- Rows -----------------------------------------------------------------------------------
NDB_SIZE = 8192                           # numbers of a note's spectrogram that NDB looks at
NOTES = {"off": tuning, "clean": harmonic_share, "steady": phase_coherence}      # of one note each

def hear(run, classifier, rate, device, measures=NOTES):
    """Go through a run's notes, 12,800 of any length -> what is kept: what the classifier finds,
    peaks, `measures` by their names, and waves of the first few of each pitch."""
    few, parts, pictures = np.zeros(len(run.pitch), bool), [], None
    for pitch in np.unique(run.pitch):
        few[np.flatnonzero(run.pitch == pitch)[:VARIETY_NOTES]] = True
    for some, waves in run.batches():
        spectrogram = log_spectrogram(waves.to(device), rate)                   # (n, 1, F, T)
        features, logits = classifier(spectrogram)
        pool = max(1, spectrogram[0].numel() // NDB_SIZE)           # along time: pitch stays sharp
        small = F.avg_pool2d(spectrogram, (1, pool)).flatten(1).cpu()
        if pictures is None:              # one large array: many small ones would keep apart, and
            pictures = np.empty((len(few), small.shape[1]), np.float32)     # in memory, the gaps
        pictures[some], waves = small, waves.numpy()
        own = {name: [measure(*note, rate) for note in zip(waves, run.pitch[some])]
               for name, measure in measures.items()}
        parts.append({"features": features.cpu(), "logits": logits["pitch"].cpu(), **own,
                      "peak": np.abs(waves).max(1), "waves": waves[few[some]]})
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return SimpleNamespace(pitch=run.pitch, pictures=pictures, few=few, **whole)

def row(heard, reference):
    """Measures of notes beside training notes -> a dict, None if too few or short; ndb's cells."""
    enough = reference.centres is not None and len(heard.pitch) >= CELLS
    cells = ndb(reference.pictures, heard.pictures, reference.centres) if enough else None
    steady = heard.steady[np.isfinite(heard.steady)]
    values = {"notes": len(heard.pitch),
              "NDB": cells and cells.number, "JS": cells and cells.js,
              "FID": frechet_distance(reference.features, heard.features),
              "IS": inception_score(heard.logits),
              "PA": pitch_accuracy(heard.logits, heard.pitch),
              "PA +-1": pitch_accuracy(heard.logits, heard.pitch, within=1),
              "PE": pitch_entropy(heard.logits),
              "in tune": float(np.mean(np.abs(heard.off) <= QUARTER_TONE)),
              "clean": float(heard.clean.mean()),
              "variety": variety(heard.waves, heard.pitch[heard.few]),
              "steady": float(steady.mean()) if len(steady) else None}
    return {name: None if value != value else value for name, value in values.items()}, cells

def remarks(run, heard, values, reference):
    """What one should know to read a run's row, in sentences."""
    many, features = min(len(heard.pitch), len(reference.pitch)), reference.features.shape[1]
    if run.paper == "Real data":
        ceiling = np.exp(entropy(np.bincount(heard.pitch)))
        yield f"IS can be {ceiling:.1f} at these pitches; NDB is {NDB_LEVEL * CELLS} by chance"
        # A hasty classifier names pitches right and is sure of none: IS = ceiling / exp(PE).
        if values["PA"] < 0.9 or values["IS"] < 0.6 * ceiling or values["PE"] > 0.5:
            yield ("the classifier is not sure even of real notes, so that PA, PE, IS and FID mean "
                   "little in all rows: train it for longer, with --train-classifier --examples")
    if many < 10 * features:
        yield f"FID comes out too large of fewer than {10 * features:,} notes, ten a feature"
    if many <= 10 * CELLS:
        yield f"NDB needs {CELLS} notes, and sees only large differences of {10 * CELLS} or fewer"
    sounding = heard.peak >= sample.SILENT
    if not sounding.all():
        yield f"{(~sounding).sum():,} notes are silent, and count all the same"
    off = heard.off[sounding & (np.abs(heard.off) < 12_000)]        # those with a fundamental
    shift = np.median(off) if len(off) >= 10 and not run.paper else 0
    if abs(shift) > 2 * QUARTER_TONE and np.mean(np.abs(off - shift) <= QUARTER_TONE) > 0.75:
        yield (f"they sound {shift / 100:+.1f} semitones beside their pitches: files whose C4 is "
               f"not 60, or of {2 ** (-shift / 1200):.2f} times the rate that they claim?")

# ---- The table, and its page ----------------------------------------------------------------
# notes, NDB, FID, IS, PA, PE (the paper's Tables 1 and 2)
PAPER = {name: dict(zip(("notes", "NDB", "FID", "IS", "PA", "PE"), (12_800, *values)))
         for name, values in {
    "Real data":                (2.2, 13, 47.1, 0.982, 0.22),
    "IF-Mel + H":              (29.3, 167, 38.1, 0.979, 0.40),
    "IF + H":                  (36.0, 104, 41.6, 0.983, 0.32),
    "Phase + H":               (37.6, 592, 36.2, 0.976, 0.44),
    "IF-Mel":                  (37.0, 600, 29.6, 0.941, 0.63),
    "IF":                      (37.0, 708, 36.3, 0.968, 0.44),
    "Phase":                   (41.4, 687, 24.4, 0.944, 0.77),
    "WaveGAN":                 (43.0, 461, 13.7, 0.827, 1.40),
    "Waveform GAN":            (45.0, 375, 2.5, 0.567, 3.59),
    "Waveform GAN, not grown": (48.2, 447, 14.8, 0.963, 1.61),
    "WaveNet 8-bit":           (44.8, 320, 29.1, 0.927, 0.70),
    "WaveNet 16-bit":          (45.9, 656, 9.5, 0.646, 1.71)}.items()}

# column: its format; the paper's first
COLUMNS = {"notes": "{:,}", "NDB": "{:.3g}", "JS": "{:.3f}", "FID": "{:.1f}", "IS": "{:.1f}",
           "PA": "{:.1%}", "PA +-1": "{:.1%}", "PE": "{:.2f}", "in tune": "{:.1%}",
           "clean": "{:.2f}", "variety": "{:.1f} dB", "steady": "{:.2f}"}

def paper_name(config):
    """The row of the paper's tables that a run's settings belong to."""
    if config["model"] != "gansynth":
        return {"mulaw8": "WaveNet 8-bit", "mol16": "WaveNet 16-bit"}.get(config.get("output"),
                                                                          "WaveGAN")
    if config["rep"] == spectral.WAVEFORM:
        return "Waveform GAN" + ", not grown" * (not config["progressive"])
    names = {"phase": "Phase", "if": "IF", "if-mel": "IF-Mel"}
    return names[config["rep"]] + " + H" * config["hires"]

def table_texts(rows):
    """The rows of a table (see `measure`) as texts, a heading first; the paper's beneath ours."""
    pairs = [pair for entry in rows for pair in (
        (entry["name"], entry["values"]),
        (f"paper: {entry['paper']}", PAPER.get(entry["paper"]))) if pair[1]]
    return [["", *COLUMNS]] + [
        [name] + ["-" if values.get(column) is None else form.format(values[column])
                  for column, form in COLUMNS.items()] for name, values in pairs]

def markdown(texts):
    """Rows of texts, a heading first -> the lines of a table of Markdown, whose columns are aligned
    for the eye: the first to the left, the others to the right."""
    texts = [[cell.replace("|", "\\|") for cell in row] for row in texts]
    widths = [max(3, *map(len, column)) for column in zip(*texts)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[first.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]
             for first, *cells in (texts[0], rule, *texts[1:])]
    return [f"| {' | '.join(cells)} |" for cells in lines]

def print_table(setting, runs, args):
    """Measure real notes and runs; print the table, and write its page, the paper's rows softer."""
    with sample.new_folder(args.out, Path("runs"), "metrics") as (part, out):
        table, figures = measure(setting, runs, args, part)
        texts = table_texts(table["rows"])
        (part / "table.json").write_text(json.dumps(table, indent=1), "utf-8")
        rows = [f"<tr{' class=soft' * cells[0].startswith('paper: ')}><td>"
                + "<td>".join(map(html.escape, cells)) for cells in texts]
        sample.write_page(part, "Measures", f"""\
<h1>Measures</h1>
<p>{html.escape(table["title"])}</p>
<div class="wide"><table>{"".join(rows)}</table></div>
<p class="soft">{"<br>".join(map(html.escape, table["remarks"]))}</p>
<p class="soft">Below, of each run: four notes from low to high; a note near middle C, its cycles
drawn over each other (a steady note draws one line) above its rainbowgram (a steady overtone is a
streak of one colour); and NDB's {CELLS} cells, the fullest first, with the share of
<b class="real">training notes</b> beside that of the run, <b class="alike">alike</b> or
<b class="differs">further apart than by chance</b>.</p>
{"".join(figures)}""", PAGE_STYLE)
    about = sys.stderr if args.markdown or args.json else sys.stdout
    print("", table["title"], "", sep="\n", file=about, flush=True)
    print(json.dumps(table, indent=1) if args.json else "\n".join(markdown(texts)), flush=True)
    print("", *table["remarks"], sep="\n", file=about, flush=True)
    print(f"\nlook at {out / 'index.html'}", file=sys.stderr)

def measure(setting, runs, args, folder):
    """Real notes and runs beside training notes -> a table fit for JSON; its figures, HTML."""
    train, held_out = setting.notes(args.pack)
    classifier, which = find_classifier(setting, train, args)
    count, rate = setting.count(args.samples), setting.sample_rate
    some, real = (np.sort(np.random.default_rng(args.seed).permutation(len(notes))[:count])
                  for notes in (train, held_out))
    reference = hear(real_run("training notes", train, some), classifier, rate, args.device, {})
    reference.centres = cell_centres(reference.pictures) if len(some) >= CELLS else None
    runs = [real_run(f"real: held out of {setting.data}", held_out, real, "Real data"), *runs]
    if args.controls:
        runs += controls(train, held_out, setting.length, count, args.seed)
    rows, told, figures = [], {}, []
    for number, run in enumerate(runs):
        heard = hear(run, classifier, rate, args.device)
        values, cells = row(heard, reference)
        for sentence in remarks(run, heard, values, reference):
            told.setdefault(sentence, []).append(run.name)
        figures.append(figure(folder / f"{number:02}", run.name, heard, cells, rate))
        rows.append({"name": run.name, "paper": run.paper, "values": values})
    title = (f"{setting}; NDB and FID beside {len(some):,} training notes of {setting.data}; "
             f"classifier: {which}")
    return {"title": title, "setting": setting._asdict(), "seed": args.seed, "rows": rows,
            "remarks": [f"{sentence} ({'; '.join(names) if len(names) < len(runs) else 'all rows'})"
                        for sentence, names in told.items()]}, figures

def figure(file, name, heard, cells, rate):
    """HTML of a run: FILE.wav, some notes; FILE.png, Fig. 3 of one near middle C; NDB's cells."""
    pitch = heard.pitch[heard.few]
    i = np.abs(pitch - 60).argmin()
    spectral.write_png(f"{file}.png", phase_picture(heard.waves[i], pitch[i], rate))
    first = np.unique(pitch, return_index=True)[1]
    few = heard.waves[first[np.linspace(0, len(first) - 1, 4).astype(int)]]
    nsynth.write_wav(f"{file}.wav", torch.from_numpy(few.ravel() / max(1, np.abs(few).max())), rate)
    cells = ndb_picture(cells) if cells else ""
    return sample.FIGURE.format(html.escape(name), f"{file.name}.png", f"{file.name}.wav", cells)

def ndb_picture(cells):
    """NDB's histogram, HTML: the share of training notes in each cell beside the samples'."""
    top, bars = max(cells.train.max(), cells.samples.max()), []
    for real, ours, p in zip(cells.train, cells.samples, cells.p):
        kind = "differs" if p < NDB_LEVEL else "alike"
        for share, colour in ((real, "real"), (ours, kind)):
            bars.append(f'<i class="{colour}" style="height: {share / top:.1%}"></i>')
    return f'<div class="cells"><span>{top:.1%}</span>{"".join(bars)}</div>'

PAGE_STYLE = """\
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
tr:first-child { font-weight: bold; }
td { padding: .2rem .4rem; text-align: right; border-bottom: 1px solid var(--line); }
td:first-child { min-width: 9rem; padding-left: 0; text-align: left; overflow-wrap: anywhere; }
figure { display: flex; flex-wrap: wrap; gap: 1rem; align-items: end; }
figcaption { order: -2; width: calc(100% - 17rem); }
audio { order: -1; width: 16rem; height: 2rem; }
.cells { display: flex; align-items: end; width: 44rem; max-width: 100%; height: 12rem;
  border-block: 1px solid var(--line); }
.cells span { align-self: start; width: 0; margin-top: -1.5em; white-space: nowrap; }
.cells i { flex: 1; background: currentColor; }
.cells i:nth-of-type(even) { margin-right: 3px; }
.real { color: #77777f; }
.alike { color: #2c8a4b; }
.differs { color: #e0483c; }
"""

# ---- Command line ---------------------------------------------------------------------------
def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add, at_least = parser.add_argument, sample.at_least
    add("runs", nargs="*", type=Path, metavar="RUN",
        help="run folders, checkpoints, or folders of WAVs with the pitch in each name")
    add("--data", help="real notes to compare with (default: the first run's own)")
    add("--pack", default="", metavar="DIR", help="where to pack them (default: beside them)")
    add("--samples", type=at_least(2), metavar="N",
        help="notes a row (default: 12,800 of 4 s, the paper's; 1,000 of shorter ones)")
    add("--controls", action="store_true", help="add rows of three deliberate failures")
    add("--markdown", action="store_true", help="print the table alone; stderr has the rest")
    add("--json", action="store_true", help="print JSON")
    sample.common_flags(parser, 1, "runs/metrics-0001, ...")
    add = parser.add_argument_group("what notes are like, where no run says it").add_argument
    add("--length", type=at_least(1000), metavar="N", help="samples (default 64,000)")
    add("--sample-rate", type=at_least(1000), metavar="HZ", help="default 16,000")
    add("--pitches", type=nsynth.span, metavar="LOW-HIGH", help="default: 24-84, or C1-C6")
    add = parser.add_argument_group("the classifier (trained on first use, and kept)").add_argument
    add("--train-classifier", action="store_true", help="train it anew, even if one was kept")
    add("--width", choices=WIDTHS, help="full: the paper's (default with a GPU), or thin (without)")
    add("--examples", type=at_least(1), default=0, metavar="N",
        help="to train it on (default: each note 8 times, 16,000 at least; fewer: kept as a trial)")
    add("--classifier", type=Path, metavar="FILE", help="use this one, trained before")
    args = parser.parse_args(argv)
    args.width = WIDTHS[args.width or ("full" if args.device.type == "cuda" else "thin")]
    if not (args.runs or args.data or args.train_classifier):
        parser.error("name a run, or give --data alone, for the row of real notes")
    if args.classifier and args.train_classifier or args.examples and not args.train_classifier:
        parser.error("--examples goes with --train-classifier, and --classifier does not")
    if (args.length or args.sample_rate or args.pitches) and any(map(is_run, args.runs)):
        parser.error("a run tells its notes' form: leave out --length, --sample-rate, --pitches")
    return args

def is_run(path):
    """Whether a path means a checkpoint, rather than a folder of WAVs."""
    return not path.is_dir() or gansynth.checkpoints(path) or (path / gansynth.EXPERIMENT).exists()

def gather(args):
    """The setting of the runs named, the first one's or the flags', and the runs, each once."""
    loaded = {path: checkpoint_run(path, args) for path in args.runs if is_run(path)}
    setting = next((setting for setting, _ in loaded.values()), Setting(
        args.data or "orchestra", args.length or 64_000, args.sample_rate or 16_000,
        *args.pitches or (24, 84)))
    runs = []
    for path in dict.fromkeys(args.runs):
        other, run = loaded.get(path) or (setting, folder_run(path, setting, args))
        if other[1:5] != setting[1:5]:
            raise MetricError(f"{path} makes notes of {other}, and the first run of {setting}: "
                              "measure them apart")
        if other != setting:              # what is held out here, it may have been trained on
            run = run._replace(name=f"{run.name}, another split")
        runs.append(run)
    return setting, runs

def main(argv=None):
    with nsynth.one_sentence("metrics.py", sample.ERRORS):
        args = parse(argv)
        print_table(*gather(args), args)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    main()
