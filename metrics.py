"""Measures of notes that need no trained classifier: are they in tune, clean, and varied?

    python metrics.py runs/0001              a run's fresh notes beside the real ones it never saw

    in tune   share of notes whose fundamental, by autocorrelation, is within a quarter tone (50
              cents) of the pitch asked for: an estimate that knows nothing of the networks
    clean     share of a note's energy within a quarter tone of a harmonic of that pitch
    variety   log-spectral distance between two notes of one pitch, in dB: low when all sound alike

Shapes:  N notes, L samples.  Waves are (N, L), pitches (N,) MIDI numbers.
"""

import argparse
import sys

import numpy as np
import torch

import gansynth
import nsynth
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


# ---------------------------------------------------------------------------------------------
# Phase coherence (paper Fig. 3)

HARMONICS = 10                            # looked at, from the fundamental up
PERIODS = 4                               # in a window: its neighbours are then 4 bins away
LAG = 0.032                               # seconds an advance spans: a hop of the paper's "+ H"


def advances(wave, f0, sample_rate):
    """The phase advances of a note's harmonics, (A, K) complex, and their amplitudes, (K,).

    Each harmonic is demodulated at k f0 in Hann windows of four periods, short enough to hold one
    that is detuned or stretched, and its phase compared with that LAG later (rounded up to hops of
    three quarters of a window, so that the two share next to nothing).  The span is in seconds,
    not in periods: phases drawn anew in every frame of an STFT still hardly turn in a few
    periods of a high note.  An advance d stands there as g exp(i d), where the weight g is the
    product of the two magnitudes: once a harmonic has died away, its phase says nothing.
    Onset and release are left out.  A is 0 if the note is too short, K if no harmonic fits.
    """
    x = np.asarray(wave, dtype=np.float64)
    x = x[len(x) // 10: len(x) * 17 // 20]
    window = round(PERIODS * sample_rate / f0)
    hop = max(1, 3 * window // 4)
    lag = int(np.ceil(LAG * sample_rate / hop))                     # in hops
    k = np.arange(1, 1 + min(HARMONICS, int(sample_rate / 2 / f0 - 0.25)))      # below Nyquist
    if len(x) < window + (lag + 1) * hop:                           # two advances
        return np.zeros((0, len(k))), np.zeros(len(k))
    frames = np.lib.stride_tricks.sliding_window_view(x, window)[::hop]         # (T, window)
    carrier = np.exp(-2j * np.pi * f0 / sample_rate * np.outer(np.arange(window), k))
    harmonics = (frames * np.hanning(window + 1)[:-1]) @ carrier    # (T, K)
    return harmonics[:-lag].conj() * harmonics[lag:], np.abs(harmonics).mean(0)


def phase_coherence(waves, pitches, sample_rate):
    """How steadily the harmonics of each note turn, (N,): 1 at constant speeds, 0 at random ones.

    R_k, the mean resultant length of harmonic k's advances d, is |mean exp(i d)|: a constant
    advance costs nothing, so neither does detuning; Gaussian jitter of standard deviation s gives
    exp(-s^2 / 2).  Its square is the mean of cos(d - d') over all pairs of advances, those of an
    advance with itself among them, which alone give A random ones 1 / A.  They are left out, so
    that white noise has 0 but for chance (on average 0.02 in notes of 4 s at 16 kHz, 0.05 in 0.5 s
    at 8 kHz).  A note has the root of the mean R_k^2, weighted by amplitude: a harmonic counts as
    far as it is heard.

    To be read beside that of real notes: vibrato and string sections lower it, and an STFT's
    overlapping windows lend some even to random phases (windows of 64 and 128 ms: 0.1 and 0.4 in
    notes of 4 s, 0.2 and 0.5 in 0.5 s).  Silence has 0; nan means a note too short for two
    advances, or a pitch too near Nyquist or above.
    """
    coherence = []
    for wave, f0 in zip(waves, frequency(pitches)):
        turns, amplitude = advances(wave, f0, sample_rate)
        weight = np.abs(turns)
        itself = (weight ** 2).sum(0)                               # (K,)
        others = weight.sum(0) ** 2 - itself
        R_squared = (np.abs(turns.sum(0)) ** 2 - itself) / np.maximum(others, 1e-300)
        mean = (amplitude * R_squared).sum() / max(amplitude.sum(), 1e-300)
        coherence.append(np.sqrt(np.clip(mean, 0, 1)) if turns.size else np.nan)
    return np.array(coherence)


def phase_picture(wave, pitch, sample_rate, samples=1028, height=192):
    """The waveform modulo its period, above its rainbowgram (paper, Fig. 3): (H, W, 3) uint8.

    One period runs from left to right; the cycles in the middle of the note, as many as cover
    `samples`, are drawn over each other: coherent ones meet in one bright line, others blur.  The
    period is the one measured around them, or the pitch's if that is over a quarter tone away.
    Each of the two pictures is `height` rows high and as wide as the rainbowgram.
    """
    wave = np.asarray(wave, dtype=np.float64)
    rainbow = spectral.rainbowgram(wave, sample_rate, height)       # (height, frames, 3)
    width, middle, period = rainbow.shape[1], len(wave) / 2, sample_rate / frequency(pitch)
    reach = max(samples, 4 * period) * 2 / 3                        # `tuning` leaves out a quarter
    around = wave[max(0, int(middle - reach)):int(middle + reach)]
    off = tuning([around], [pitch], sample_rate)[0]
    if abs(off) <= QUARTER_TONE:
        period /= 2 ** (off / 1200)
    cycles = max(1, int(min(np.ceil(samples / period), len(wave) / period)))
    time = np.arange(cycles)[:, None] + np.linspace(0, 1, 4 * width) - cycles / 2   # in periods
    fine = 8                              # points a sample: band-limited, then joined by lines
    curve = np.fft.irfft(np.fft.rfft(wave), fine * len(wave))
    curves = np.interp((middle + period * time) * fine, np.arange(len(curve)), curve)
    curves = 0.9 * curves / max(np.abs(curves).max(), 1e-12)        # (cycles, 4 width)
    return spectral.tile([spectral.overlay(curves, width, height), rainbow], columns=1)


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
