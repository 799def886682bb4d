"""Tests of GANSynth, file by file: spectral, gansynth, nsynth, train, sample, metrics.

    pytest -m "not slow"        two or three minutes on one core
    pytest                      the command lines as well, from notes to measures

Every test compares with something outside the code: numpy, scipy, a closed form, the paper's
figures, or arrays made by running the original release (TensorFlow) on one NSynth note and on a
small network, cut down to what is in test_gansynth.npz:

    clip                        a note, 4 s at 16 kHz; `128x1024/...` and `256x512/...` are its
                                spectra (some bins, all frames) and what came back from them (every
                                16th sample), beside the mel matrices' nonzero entries
    A/..., B/..., forward/...   inputs of the small network.  Pictures are multiples of 1/8, kept
                                as int16 with the channel first, (2, N, T, F)
    p0.37/...                   its outputs at that progress; of pictures some pixels, and a sketch
    stage07/...                 losses, and sketches of all gradients, at that stage
    two_steps/...               every 8th weight after two steps of training both networks
    paper/...                   pixels and sound of a generator of the paper's size
    magenta/...                 a checkpoint of the small network as TensorFlow's writer wrote it,
                                but for the weights, and its sound (every 4th sample)
    tfrecord                    two notes of 4000 samples, as TensorFlow's writer wrote them
    midi/...                    240 random MIDI files (many tracks, running pedals and tempos, keys
                                struck again, unknown chunks) and 2,000 mutations of one, as they
                                follow each other in `bytes`; and what mido 1.3 reads of them
A sketch is sixteen random projections of a large array (see `sketch`).  Weights are not stored:
the arrays were made with random ones, by a recipe (see `recipe`).  Where a tolerance is said to be
measured, it is how far the release's float32 arrays lie from the same in float64, at worst; what
is asked leaves some five to ten times as much.
"""

import ast
import base64
import contextlib
import copy
import csv
import gc
import gzip
import hashlib
import html
import io
import itertools
import json
import math
import operator
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tokenize
import tracemalloc
import weakref
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.linalg
import scipy.signal
import scipy.spatial
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gansynth
import metrics
import nsynth
import sample
import spectral
import train
from gansynth import CheckpointError
from nsynth import NoteError
from spectral import Spectrum, SpectrumError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "notebooks"))             # two scripts that import ours

import listening_test
import render_soundfont

torch.set_num_threads(1)                  # the arrays are small: more threads only wait

REFERENCE = np.load(HERE / "test_gansynth.npz")
CLIP = torch.from_numpy(REFERENCE["clip"])[None]                    # (1, 64000)
SIZES = ((128, 1024), (256, 512))         # the paper's pictures: frames and bins
PIXELS = (..., slice(2, None, 5), slice(3, None, 7))        # of full-size pictures, what is stored
BINS = slice(5, None, 61)                 # of spectra, likewise

@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Every test begins in an empty folder of its own, with the same random numbers."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

def refuses(error, says, function, *args, **more):
    """A call raises this error, whose message says so -> the message."""
    with pytest.raises(error, match=says) as caught:
        function(*args, **more)
    return str(caught.value)

def refusal(script, *argv, status=1):
    """The one sentence that a refused command line ends with: of status 2 where it is usage."""
    said, name = io.StringIO(), Path(script.__file__).name
    with pytest.raises(SystemExit) as stopped, contextlib.redirect_stderr(said):
        sys.exit(script.main([str(word) for word in argv]))
    code, said = stopped.value.code, said.getvalue()
    if isinstance(code, str):             # which Python prints, and ends with 1
        code, said = 1, f"{code}\n"
        assert said.startswith(f"{name}: ")
    sentence = said.splitlines()[-1]
    assert code == status and (said == f"{sentence}\n" if status == 1 else
                               re.match(rf"{name}: |[^:]+: error: ", sentence)), said
    return sentence

def stored(name):
    return torch.from_numpy(REFERENCE[name])

def hertz(pitch):
    return 440 * 2 ** ((pitch - 69) / 12)

def sketch(array, rows=16):
    """Random projections of an array, (rows,): linear, and as long as the array itself, to some
    18 %, so that the distance of two sketches is that of the arrays, likewise."""
    x = np.asarray(array, dtype=np.float64).ravel()
    signs = np.random.RandomState(x.size).randint(0, 2, (rows, x.size)) * 2 - 1
    return signs @ x / math.sqrt(rows)

def test_the_readme_counts_the_lines_of_every_file():
    counted = re.findall(r"\| `(\w+\.py)` \| (\d+) \|", (HERE / "README.md").read_text("utf-8"))
    assert len(counted) == 6
    for name, lines in counted:
        assert len((HERE / name).read_text("utf-8").splitlines()) == int(lines), name

def relative(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)

# ---- spectral.py ----------------------------------------------------------------------------
def sine(hz, length=64000, rate=16000):
    return 0.5 * torch.sin(2 * math.pi * hz / rate * torch.arange(length).double()).float()[None]

def modulo2(difference):
    """How far two phases in units of pi are apart on the circle."""
    return np.abs((np.asarray(difference) + 1) % 2 - 1)

def scipy_stft(T, bins):
    """scipy's spectrum of the clip, in float64: (T, F)."""
    padded = np.pad(CLIP[0].numpy().astype(float), ((T + 3) * bins // 2 - 64000, 0))
    _, _, S = scipy.signal.stft(padded, window="hann", nperseg=2 * bins, boundary=None,
                                noverlap=3 * bins // 2, padded=False)
    return S[1:].T * bins                                           # scipy divides by the sum

@pytest.mark.parametrize("T, bins", SIZES)
def test_stft_agrees_with_scipy_and_the_release(T, bins):
    ours, theirs = spectral.stft(CLIP, T, bins)[0].numpy(), scipy_stft(T, bins)
    peak = np.abs(theirs).max()
    assert ours.shape == (T, bins)
    assert np.abs(ours - theirs).max() < 1e-6 * peak                # measured: 1.7e-7
    assert np.abs(ours[:, BINS] - REFERENCE[f"{T}x{bins}/stft"]).max() < 1e-6 * peak

@pytest.mark.parametrize("T, bins", SIZES)
def test_istft_inverts_but_for_the_last_three_hops_and_dc(T, bins):
    wave = sine(1000) + sine(2500)
    back = spectral.istft(spectral.stft(wave, T, bins), 64000)
    hop = bins // 2
    # No bin but the dropped one is lost, so a wave without DC comes back up to rounding.
    assert (back - wave)[:, 2 * bins:-3 * hop].abs().max() < 1e-5
    # At the end fewer windows overlap; the release divides by their usual sum all the same.
    window = np.pad(scipy.signal.get_window("hann", 2 * bins) ** 2 / 1.5, (0, 2 * hop))
    left = sum(window[k * hop:(k + 3) * hop] for k in (1, 2, 3))
    assert back[0, -3 * hop:].numpy() == pytest.approx(wave[0, -3 * hop:].numpy() * left, abs=2e-3)

def test_integrated_frequency_is_numpys_unwrapped_phase():
    phase = np.random.default_rng(0).uniform(-13, 13, (2, 300, 20))         # in units of pi
    phase[:, 3:6] = np.array([0, 1, 0])[:, None]                            # half turns
    ours = spectral.integrate(spectral.instantaneous_frequency(torch.from_numpy(phase)))
    np.testing.assert_allclose(ours, np.unwrap(np.pi * phase, axis=1) / np.pi, atol=1e-9)

@pytest.mark.parametrize("T, bins", SIZES)
def test_spectra_equal_the_release(T, bins):
    S = stored(f"{T}x{bins}/stft")[None]
    ours, theirs = Spectrum("if", T, bins).encode_stft(S)[0].numpy(), REFERENCE[f"{T}x{bins}/if"]
    assert np.abs(ours[0] - theirs[0]).max() < 1e-5                 # measured: 1.2e-6
    assert modulo2(ours[1] - theirs[1]).max() < 2e-4                # measured: 2.3e-5
    ours = Spectrum("phase", T, bins).encode_stft(S)[0, 1].numpy()
    assert modulo2(ours - np.angle(S[0]) / np.pi).max() < 1e-6
    # Mel bins need all linear ones, from scipy: how far float32's rounding of one's own goes
    # depends on the processor.  Compared where the note sounds.
    S = torch.from_numpy(scipy_stft(T, bins)[None].astype(np.complex64))
    picture = Spectrum("if-mel", T, bins).encode_stft(S)[0].numpy()
    ours, theirs = picture[..., BINS], REFERENCE[f"{T}x{bins}/if-mel"]
    loud = theirs[0] > picture[0].max() + math.log(1e-6)
    assert loud.sum() > 40
    assert np.abs(ours[0] - theirs[0])[loud].max() < 4e-4           # measured: 7.8e-5
    assert modulo2(ours[1] - theirs[1])[loud].max() < 1e-3          # measured: 1.7e-4
    # No step is longer than half a turn, but for the first frame, which holds phases.
    assert 0.99 < np.abs(picture[1, 1:]).max() <= 1 + 1e-4

@pytest.mark.parametrize("T, bins, rank", [(128, 1024, 811), (256, 512, 405)])
def test_mel_matrices_equal_the_release_and_meet_the_penrose_conditions(T, bins, rank):
    M, P = spectral.mel_matrix(bins, 16000), spectral.mel_inverse_matrix(bins, 16000, "pseudo")
    transpose = spectral.mel_inverse_matrix(bins, 16000, "transpose")
    rows, columns = REFERENCE[f"{T}x{bins}/matrix_at"]
    for kind, ours in (("matrix", M), ("inverse", transpose.T)):
        theirs = np.zeros((bins, bins))
        theirs[rows, columns] = REFERENCE[f"{T}x{bins}/{kind}"]
        assert np.abs(ours - theirs).max() < 1e-12                  # measured: 0, in float64
    assert np.linalg.matrix_rank(M, tol=1e-4) == rank
    for a, b in ((M @ P @ M, M), (P @ M @ P, P), ((M @ P).T, M @ P), ((P @ M).T, P @ M)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)

@pytest.mark.parametrize("T, bins", SIZES)
@pytest.mark.parametrize("rep, inverse, low, high", [
    ("phase", "pseudo", 60, 200), ("if", "pseudo", 60, 200),
    ("if-mel", "pseudo", 25, 60), ("if-mel", "transpose", -5, 10)])
def test_round_trip_of_a_note(rep, inverse, low, high, T, bins):
    wave = F.pad(CLIP[:, :48000], (8000, 8000))                     # silence, which has no phase
    spectrum = Spectrum(rep, T, bins, mel_inverse=inverse)
    back = spectrum.decode(spectrum.encode(wave)).double()
    snr = 10 * math.log10(wave.square().sum() / (back - wave).square().sum())
    assert low < snr < high and spectral.snr(wave, back).item() == pytest.approx(snr, abs=0.01)

@pytest.mark.parametrize("T, bins", SIZES)
def test_sound_after_a_round_trip_equals_the_release(T, bins):
    S = torch.from_numpy(scipy_stft(T, bins)[None].astype(np.complex64))
    for rep in ("phase", "if", "if-mel"):
        spectrum = Spectrum(rep, T, bins, mel_inverse="transpose")
        ours = spectrum.decode(spectrum.encode_stft(S))[:, ::16]
        theirs = stored(f"{T}x{bins}/wave_from_{rep}")[None]
        assert spectral.snr(theirs, ours) > 60                      # measured: 77 dB (mel)

def test_a_chirp_survives_mel_as_wrapped_phase_would_not():
    time = np.arange(64000) / 16000
    sweep = 0.5 * scipy.signal.chirp(time, 100, time[-1], 2000)
    spectrum, wave = Spectrum("if-mel"), torch.from_numpy(sweep.astype(np.float32))[None]
    picture = spectrum.encode(wave)
    assert spectral.snr(wave, spectrum.decode(picture)) > 18
    M = torch.from_numpy(spectral.mel_matrix(1024, 16000)).float()
    wrapped = spectral.stft(wave, 128, 1024).angle() / math.pi
    picture[:, 1] = spectral.instantaneous_frequency(wrapped @ M)   # as in two public ports
    assert spectral.snr(wave, spectrum.decode(picture)) < 5

@pytest.mark.parametrize("length, rate, resolutions, frames, front", [
    (64000, 16000, 7, 65536, 768), (4096, 8000, 3, 4096, 0), (999, 2000, 4, 1024, 12)])
def test_a_waveform_is_a_picture_one_bin_wide_with_zeros_at_both_ends(
        length, rate, resolutions, frames, front):
    wave = torch.randn(2, length)
    spectrum = spectral.derive("waveform", True, length, rate, resolutions)
    picture = spectrum.encode(wave)
    assert picture.shape == (2, 2, frames, 1) and frames % 4 ** (resolutions - 1) == 0
    padded = np.pad(wave.numpy(), ((0, 0), (front, frames - length - front)))
    assert (picture[..., 0].numpy() == padded[:, None]).all()       # in both channels
    picture[:, 1] = 0                                               # channel 0 is the sound
    assert torch.equal(spectrum.decode(picture), wave)
    assert spectral.restore(asdict(spectrum)) == spectrum

@pytest.mark.parametrize("rep, hires", [("if", False), ("if", True), ("waveform", True)])
@pytest.mark.parametrize("rate", [500, 8000, 44100])
def test_an_impossible_picture_is_refused_and_what_is_named_instead_works(rep, hires, rate):
    refused, growth = 0, 4 if rep == "waveform" else 2
    for length, resolutions in itertools.product((1, 100, 1000, 4000, 64000), (2, 4, 7, 10)):
        unit = growth ** (resolutions - 1)
        try:
            spectrum = spectral.derive(rep, hires, length, rate, resolutions)
            assert spectrum.frames % unit == 0 and (spectrum.bins % unit == 0 or rep == "waveform")
        except SpectrumError as error:
            refused += 1
            bins, fits = map(int, re.search(r"x (\d+) bins.*or (\d+) resolutions",
                                            str(error)).groups())
            assert spectral.derive(rep, hires, length, rate, fits).bins == bins
    assert 0 < refused < 20

def test_settings_give_the_papers_shapes_or_name_what_can_be():
    assert spectral.derive("if", False) == Spectrum("if", 256, 512)
    assert spectral.derive("if-mel", True) == Spectrum("if-mel", 128, 1024)
    assert spectral.derive("if", True, 4000, 8000, 4) == Spectrum("if", 16, 512, 4000, 8000)
    Spectrum("if", frames=122, bins=1024)
    for wrong, says in ((dict(rep="if", frames=121), "nearest that can hold them is 122 frames"),
                        (dict(rep="mfcc"), "choose one of"), (dict(mel_inverse="x"), "choose one"),
                        (dict(rep="waveform", frames=64, bins=2, length=64), "one bin wide"),
                        (dict(rep="waveform", frames=64, bins=1, length=65), "is 65 frames")):
        refuses(SpectrumError, says, Spectrum, **wrong)
    refuses(SpectrumError, "at least one sample", spectral.derive, length=0)

def test_silence_and_noise_have_finite_gradients():
    spectrum = Spectrum("if-mel", frames=8, bins=64, length=300, sample_rate=8000)
    wave = torch.stack([torch.zeros(300), torch.randn(300)])
    back = spectrum.decode(spectrum.encode(wave.requires_grad_()))
    assert back[0].abs().max() < 1e-4
    back.square().sum().backward()
    assert wave.grad.isfinite().all() and wave.grad[1].any()

@pytest.mark.parametrize("hz", [110.0, 440.0, 3000.0])
def test_rainbowgram_is_brightest_at_a_sines_frequency(hz):
    picture = spectral.rainbowgram(sine(hz)[0])
    frequencies = np.geomspace(8000, 30, 192)
    row = picture.max(axis=2).astype(int).sum(axis=1).argmax()
    assert abs(math.log2(frequencies[row] / hz)) < 0.07             # the picture's rows and bins
    assert picture[row, 20:-20].std(axis=0).max() < 12              # steady: one colour

def read_png(data):
    """A PNG's picture by its specification, for pictures without filters or interlacing."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body, (check,) = data[at + 8:at + 8 + size], struct.unpack_from(">I", data, at + 8 + size)
        assert check == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + size
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour, rest) == (8, 2, [0, 0, 0]) and list(chunks)[-1] == b"IEND"
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)

def test_png_holds_the_picture():
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    for picture in (rgb, rgb.transpose(1, 0, 2)):                   # not contiguous
        spectral.write_png("a.png", picture)
        assert np.array_equal(read_png(Path("a.png").read_bytes()), picture)
    assert os.listdir() == ["a.png"]

def test_overlaid_curves_are_as_bright_as_the_root_of_their_share():
    flat = np.zeros((4, 41))              # in the middle of row 2 of 5, and half of its neighbours
    wide = spectral.overlay(flat, width=10, height=5, stroke=2.0)
    half = round(255 * math.sqrt(0.5))
    assert wide.shape == (5, 10, 3) and wide[:, 0, 0].tolist() == [0, half, 255, half, 0]
    flat[0] = 0.8                         # one of the four in the middle of row 0
    assert spectral.overlay(flat, 10, 5, stroke=1.0)[:, 3, 0].tolist() == [
        round(255 * math.sqrt(0.25)), 0, round(255 * math.sqrt(0.75)), 0, 0]
    # A slope that falls 4 rows in 10 columns: its light is the stroke's height plus the fall.
    slope = np.linspace(0.8, -0.8, 401)[None]
    share = (spectral.overlay(slope, 10, 5, stroke=1.0)[..., 0] / 255) ** 2
    assert np.abs(share.sum(0) - 1.01).max() < 0.02
    assert np.abs(share.T @ np.arange(5) - np.linspace(0.2, 3.8, 10)).max() < 0.05

def test_tile_puts_pictures_in_rows():
    pictures = [np.full((2, 3, 3), i + 1, np.uint8) for i in range(3)]
    sheet = spectral.tile(pictures, columns=2, gap=1)
    assert sheet[..., 0].tolist() == [[1, 1, 1, 0, 2, 2, 2], [1, 1, 1, 0, 2, 2, 2], [0] * 7,
                                      [3, 3, 3, 0, 0, 0, 0], [3, 3, 3, 0, 0, 0, 0]]

def test_log_spectral_distance_of_a_gain_is_that_gain():
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 8000))).float()
    distance = spectral.log_spectral_distance(noise, noise / 2)
    assert distance.tolist() == pytest.approx([20 * math.log10(2)] * 2, abs=0.02)

def test_spectral_command_prints_a_table(capsys):
    spectral.main([])
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert "3 notes of 64000 samples at 16000 Hz" in title and len(rows) == 8
    medians = {tuple(row.split()[:-6]): float(row.split()[-3]) for row in rows}
    assert medians["if", "-"] > 40 and medians["phase", "+", "H", "-"] > 40

# ---- gansynth.py ----------------------------------------------------------------------------
SMALL = gansynth.Architecture(frames=128, bins=256, resolutions=7, latent=16, pitches=5,
                              channel_base=1024, channel_max=20)
FEW = dict(resolutions=3, latent=5, pitches=3, channel_base=24, channel_max=6)
TINY = gansynth.Architecture(16, 32, **FEW)
WAVES = gansynth.Architecture.of_pictures(64, 1, **FEW)

def release_arrays(net, averaged=False, seed=1234):
    """The weights that the arrays were made with, by the release's names: normal numbers from a
    seed made of the name; the averaged ones (EMA) lie a little beside them.  There kernels are
    (h, w, in, out), dense layers (in, out), and the one over all of the start size a convolution.
    """
    def draw(kind, name, shape):
        random = np.random.RandomState(zlib.crc32(f"{seed}:{kind}:{name}".encode()))
        small = 0.3 if name.endswith("/bias") else 1
        return (random.standard_normal(shape) * small).astype(np.float32)

    arrays, (h, w) = {}, net.arch.size(1)
    for ours, parameter in net.named_parameters():
        shape, what = parameter.shape, gansynth.release_name(net, ours)
        if ours == f"blocks.1.conv{int(isinstance(net, gansynth.Discriminator))}.weight":
            shape = (shape[0], shape[-1] // (h * w) if len(shape) == 2 else shape[3], h, w)
        shape = tuple(shape[i] for i in {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[len(shape)])
        arrays[what] = draw("w", what, shape)
        if averaged:
            arrays[what] += np.float32(0.1) * draw("ema", what, shape)
    return arrays

def recipe(net, averaged=False):
    """Give a network those weights."""
    arrays = release_arrays(net, averaged)
    net.load_state_dict(gansynth.released_weights(net, arrays.__getitem__))
    return net

def small_networks():
    return recipe(gansynth.Generator(SMALL)), recipe(gansynth.Discriminator(SMALL))

def inputs(which):
    """The release's inputs A or B: z, fake labels, real pictures and labels, the penalty's mix."""
    given = {key: stored(f"{which}/{key}") for key in
             ("z", "fake_labels", "real", "real_labels", "gp_alpha")}
    given["real"] = given["real"].transpose(0, 1) / 8               # (4, 2, 128, 256)
    return SimpleNamespace(**given)

def full_size(picture, arch=SMALL):
    return gansynth.upsample(picture, (arch.frames // picture.shape[2],
                                       arch.bins // picture.shape[3]))

def compare_pictures(ours, key, rel, most):
    """Of a picture by its pixels and its sketch: relative distance and largest difference."""
    ours, theirs = full_size(ours), REFERENCE[key]
    assert np.abs(ours[PIXELS].numpy() - theirs).max() < most
    assert relative(sketch(ours), REFERENCE[f"{key}_sketch"]) < rel

@pytest.mark.parametrize("p", ["0", "0.37", "1", "3.5", "6"])
@torch.no_grad()
def test_networks_equal_the_release(p):
    G, D = small_networks()
    z, labels = stored("forward/z"), stored("forward/labels")
    picture = stored("forward/d_input").transpose(0, 1) / 8
    drawn = gansynth.scale_picture(G(z, labels, float(p)), SMALL)[:2]
    compare_pictures(drawn, f"p{p}/G", 1e-5, 3e-4)                  # measured: 5e-7, 4.1e-5
    score, logits = D(picture, float(p))
    assert (score - stored(f"p{p}/D_score")).abs().max() < 1e-5    # measured: 5.4e-7
    assert (logits - stored(f"p{p}/D_pitch")).abs().max() < 1e-5
    blended = gansynth.blend(picture[:1], float(p), SMALL)
    assert blended.shape[2:] == SMALL.size(gansynth.grown(float(p))[0])
    compare_pictures(blended, f"p{p}/blend", 1e-6, 1e-5)

def compare_gradients(net, progress, key):
    """Of every built weight: how far its gradient is from the release's, and how long that is.
    A picture layer faded out has none here and zeros there."""
    built = {id(p) for p in net.built_parameters(gansynth.grown(progress)[0])}
    ours = np.array([sketch(torch.zeros_like(p) if p.grad is None else p.grad)
                     for p in net.parameters() if id(p) in built])
    return np.linalg.norm(ours - REFERENCE[key], axis=1), np.linalg.norm(REFERENCE[key], axis=1)

@pytest.mark.parametrize("stage", ["00", "01", "07", "12"])
def test_losses_and_gradients_equal_the_release(stage):
    (G, D), given = small_networks(), inputs("A")
    progress, weights = float(REFERENCE[f"stage{stage}/progress"]), train.Config()

    def near(ours, name, **tolerance):
        theirs = float(REFERENCE[f"stage{stage}/{name}"])
        assert ours.item() == pytest.approx(theirs, **tolerance), name

    loss, terms = gansynth.generator_loss(G, D, given.z, given.fake_labels, progress, weights)
    loss.backward()
    near(loss, "gen_loss", rel=3e-5)                                        # measured: 3.5e-6
    near(terms["G_pitch"], "fake_ac", rel=3e-5)
    # measured: 3.8e-5 for one fake's score at stage 0, less than 1e-6 at the late ones
    near(terms["G_score"], "wass_gen", abs=5e-5)
    off, size = compare_gradients(G, progress, f"stage{stage}/grad_G")
    assert (off <= 2e-4 * size).all()                                       # measured: 1.6e-5

    D.zero_grad()
    with torch.no_grad():
        fake = G(given.z, given.fake_labels, progress)
        real = gansynth.blend(given.real, progress, SMALL)
    losses, parts = zip(*gansynth.discriminator_losses(D, real, given.real_labels, fake,
                                                       given.gp_alpha, progress, weights))
    sum(losses).backward()
    terms = {name: term for part in parts for name, term in part.items()}
    near(sum(losses), "dis_loss", rel=3e-5)
    near(terms["D_drift"], "real_score_penalty", rel=3e-5)
    near(terms["D_pitch"], "real_ac", rel=3e-5)
    near(terms["D_penalty"], "gradient_penalty", rel=3e-5)
    near(terms["D_fake"], "fake_score", abs=5e-5)
    near(-terms["D_real"], "real_score", abs=1e-5)
    slopes = gansynth.penalty_slopes(D, real, fake, given.gp_alpha, progress).detach()
    np.testing.assert_allclose(slopes, REFERENCE[f"stage{stage}/gp_slopes"], rtol=2e-5)
    off, size = compare_gradients(D, progress, f"stage{stage}/grad_D")
    # measured: 9e-6 over all and 9e-5 for the worst weight; at stage 12 other weights reach
    # 4.5e-4 and 1.2e-3, where a leaky ReLU flips by rounding.  An exact second derivative of the
    # minibatch deviation would be off by 1e-4 (stage 0) to 8.5e-3 (stage 12) over all.
    over_all, worst = (1.5e-3, 4e-3) if stage == "12" else (5e-5, 1e-3)
    assert np.linalg.norm(off) < over_all * np.linalg.norm(size) and (off <= worst * size).all()

def test_two_training_steps_equal_the_release():
    A, B = inputs("A"), inputs("B")
    nets = train.Nets(SMALL)
    recipe(nets.G), recipe(nets.D), recipe(nets.G_ema, averaged=True)
    nets.start_stage(7)
    # G(A), D(B), G(B), D(A): what would be random is what the release was given.
    for own, other in ((A, B), (B, A)):
        draws = train.Draws(own.z, own.fake_labels, other.z, other.fake_labels, other.gp_alpha)
        train.train_step(nets, draws, other.real, other.real_labels, 6.0, train.Config())
    for net in ("G", "D"):
        ours = torch.cat([p.detach().flatten() for p in getattr(nets, net).parameters()])[::8]
        off = np.abs(ours.numpy() - REFERENCE[f"two_steps/{net}"])
        # measured: 0.08 %, at most 1.1e-4; the sign of a gradient near zero can give 1.6e-3
        assert (off > 1e-5).mean() < 0.01 and off.max() < 3.3e-3
    ours = torch.cat([p.flatten() for p in nets.G_ema.parameters()])[::8].numpy()
    assert np.abs(ours - REFERENCE["two_steps/G_ema"]).max() < 3e-6         # measured: 2.9e-7

@torch.no_grad()
def test_the_papers_generator_equals_the_release_in_picture_and_sound():
    arch = gansynth.Architecture()
    G, z, label = gansynth.Generator(arch), stored("paper/z"), stored("paper/labels")
    recipe(G)
    for p in ("0.37", "6"):                                         # measured: 4.4e-6
        ours = full_size(gansynth.scale_picture(G(z[:1], label[:1], float(p)), arch), arch)
        assert np.abs(ours[PIXELS].numpy() - REFERENCE[f"paper/p{p}"]).max() < 5e-5
    recipe(G, averaged=True)
    wave = gansynth.synthesise(G, Spectrum("if-mel", mel_inverse="transpose"), z[1:], label[1:], 6)
    assert spectral.snr(stored("paper/wave")[None], wave[:, ::16]) > 55     # measured: 73 dB

def test_scaling_equals_the_release_and_inverts():
    picture = stored("norm/input")
    ours = gansynth.scale_picture(picture, SMALL)
    np.testing.assert_allclose(ours, REFERENCE["norm/scaled"], atol=1e-6)
    assert (ours.abs() == 1).float().mean() > 0.05                  # the clip was tried
    np.testing.assert_allclose(gansynth.unscale_picture(ours, SMALL), REFERENCE["norm/unscaled"],
                               rtol=1e-5, atol=1e-5)

def test_norm_deviation_and_resampling_agree_with_numpy():
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 12))
    given = torch.from_numpy(x)
    norm = np.sqrt((x ** 2).mean(axis=1, keepdims=True) + 1e-8)
    np.testing.assert_allclose(gansynth.pixel_norm(given), x / norm)
    ours = gansynth.minibatch_stddev(given).numpy()
    assert ours.shape == (4, 4, 8, 12) and np.array_equal(ours[:, :3], x)
    np.testing.assert_allclose(ours[:, 3], np.sqrt(x.var(axis=0) + 1e-6).mean())
    means = x.reshape(4, 3, 8, 4, 3).mean(axis=4)
    np.testing.assert_allclose(gansynth.downsample(given, (1, 3)), means)
    np.testing.assert_allclose(gansynth.downsample_to(given, (8, 4)), means)
    np.testing.assert_array_equal(gansynth.upsample(given, (4, 1)), np.kron(x, np.ones((4, 1))))

def test_weights_start_normal_and_are_scaled_by_hes_constant():
    for net in (gansynth.Generator(TINY), gansynth.Discriminator(TINY)):
        assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))
    conv = gansynth.EqualConv2d(64, 64)
    assert conv.weight.std().item() == pytest.approx(1, abs=0.02)
    assert conv.scale == pytest.approx(math.sqrt(2 / (9 * 64)))

@pytest.mark.parametrize("kernel, growth", [((3, 3), (2, 2)), ((9, 1), (4, 1)), ((5, 3), (3, 2))])
def test_folded_upsampling_convolution_equals_upsample_then_convolve(kernel, growth):
    layer = gansynth.UpConv2d(3, 4, kernel, growth)
    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    layer.bias.data.normal_()
    slow = F.conv2d(F.interpolate(x, scale_factor=growth), layer.weight * layer.scale, layer.bias,
                    padding=(kernel[0] // 2, kernel[1] // 2))
    torch.testing.assert_close(layer(x), slow)
    g = torch.randn_like(slow)
    torch.testing.assert_close(*(torch.autograd.grad(y, (x, layer.weight, layer.bias), g)
                                 for y in (layer(x), slow)))

@pytest.mark.parametrize("kernel", [(3, 3), (9, 1), (1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("avx512", [False, True])
def test_derivatives_of_our_convolution_are_torchs(avx512, layout, kernel, monkeypatch):
    monkeypatch.setattr(gansynth, "AVX512", avx512)
    x = torch.randn(3, 4, 70, 101).contiguous(memory_format=layout).requires_grad_()
    W, b = torch.randn(7, 4, *kernel, requires_grad=True), torch.randn(7, requires_grad=True)
    y = F.conv2d(x, W, b, padding=(kernel[0] // 2, kernel[1] // 2))
    g = torch.randn_like(y)
    theirs = torch.autograd.grad(y, (x, W, b), g)
    ours = torch.autograd.grad(gansynth._Conv.apply(x, W, b), (x, W, b), g)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)

@pytest.mark.parametrize("arch", [TINY, WAVES], ids=["pictures", "waves"])
@pytest.mark.parametrize("progress", [0.0, 0.6, 1.0, 1.25, 2.0])
def test_d_run_backwards_is_its_derivative_and_once_differentiable(progress, arch, monkeypatch):
    D, size = gansynth.Discriminator(arch), arch.size(gansynth.grown(progress)[0])
    real, fake = 6 * torch.randn(2, 4, 2, *size)                    # some of it is clipped
    mix, parameters = torch.rand(4, 1, 1, 1), list(D.parameters())
    x_hat, ours = real + mix * (fake - real), {}
    for units in ("raw", "scaled"):
        slopes = gansynth.penalty_slopes(D, real, fake, mix, progress, units)
        loss = (slopes - 1).square().mean()
        ours[units] = slopes, *torch.autograd.grad(loss, parameters, materialize_grads=True,
                                                   allow_unused=True)
    # torch's own derivative, and the derivative of that; raw: at full size, by copies of pixels.
    monkeypatch.setattr(gansynth._Conv, "apply", lambda x, weight, bias: F.conv2d(
        x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2)))
    for units, x in (("raw", full_size(x_hat, arch)), ("scaled",
                      gansynth.scale_picture(x_hat, arch))):
        if units == "scaled":
            monkeypatch.setattr(gansynth, "scale_picture", lambda x, _: x)
        score, _ = D(x.requires_grad_(), progress)
        slope, = torch.autograd.grad(score.sum(), x, create_graph=True)
        slopes = slope.square().sum(dim=(1, 2, 3)).sqrt()
        loss = (slopes - 1).square().mean()
        torch.testing.assert_close(ours[units], (slopes, *torch.autograd.grad(
            loss, parameters, materialize_grads=True, allow_unused=True)), rtol=1e-3, atol=1e-5)

@pytest.mark.parametrize("progress", [0.5, 4.0])
def test_bfloat16_blocks_agree_to_its_eight_bits(progress):
    arch = gansynth.Architecture(32, 256, resolutions=5, latent=64, pitches=12, channel_base=1024,
                                 channel_max=64)
    nets, pitch, weights = train.Nets(arch), torch.arange(8), train.Config()
    z, real, mix = torch.randn(8, 64), torch.randn(8, 2, 32, 256), torch.rand(8, 1, 1, 1)
    real = gansynth.blend(real, progress, arch)
    fake, low, results = nets.G(z, pitch, progress).detach(), copy.deepcopy(nets), []
    for net in (low.G, low.D):
        gansynth.use_bfloat16(net, pixels=math.prod(arch.size(2 if progress < 1 else 4)))
    for G, D in ((nets.G, nets.D), (low.G, low.D)):
        for loss, part in (gansynth.generator_loss(G, D, z, pitch, progress, weights),
                           *gansynth.discriminator_losses(D, real, pitch, fake, mix, progress,
                                                          weights)):
            parameters = list((G if "G_score" in part else D).parameters())
            gradient = torch.autograd.grad(loss, parameters, materialize_grads=True,
                                           allow_unused=True)
            assert {x.dtype for x in (loss, *gradient)} == {torch.float32}
            results.append((loss.item(), torch.cat([x.flatten() for x in gradient])))
    for (loss, gradient), (rough_loss, rough) in zip(results[:4], results[4:]):     # measured: 1e-3
        assert rough_loss == pytest.approx(loss, rel=0.01, abs=0.01)
        assert 1e-4 < relative(rough, gradient) < 0.25              # measured: 0.004 to 0.11

def test_progress_follows_the_releases_formula():
    for images in [*range(0, 12_000_000, 12_345), *range(0, 12_000_000, 800_000)]:
        i = min(images, 13 * 800_000 - 1)
        expected = i // 1_600_000 + max(0, (i % 1_600_000 - 800_000) / 800_000)
        progress, stage, blocks = gansynth.progress_at(images, 7, 800_000, 800_000)
        assert progress == pytest.approx(expected, abs=1e-9)
        assert stage == min(images // 800_000, 12) and blocks == (stage + 1) // 2 + 1
        assert blocks - gansynth.grown(progress)[0] == (stage % 2 and progress % 1 == 0)
    assert gansynth.progress_at(10 ** 7, 1, 5, 5) == (0.0, 0, 1)
    assert gansynth.progress_at(0, 4, 0, 0) == (3.0, 6, 4)
    assert gansynth.progress_at(4, 3, 0, 4) == (1.0, 3, 3)          # nothing stable, or no fade
    assert gansynth.progress_at(4, 3, 4, 0) == (1.0, 2, 2)

# The paper's Table 3: width, height (frequency, time) and channels after each layer.
TABLE_3 = [(16, 2, 256), (16, 2, 256), (32, 4, 256), (32, 4, 256), (64, 8, 256), (64, 8, 256),
           (128, 16, 256), (128, 16, 256), (256, 32, 128), (256, 32, 128), (512, 64, 64),
           (512, 64, 64), (1024, 128, 32), (1024, 128, 32)]

def test_networks_have_the_papers_shapes():
    rows = gansynth.layer_table(gansynth.Architecture())
    shapes = [[shape for net, name, shape, *_ in rows if net == which and " conv" in name]
              for which in "GD"]
    assert shapes[0] == TABLE_3
    narrowed = [(w, h, c) for b in range(12, -1, -2) for w, h, _ in [TABLE_3[b]]
                for c in (TABLE_3[b][2], TABLE_3[max(b - 1, 0)][2])]
    assert shapes[1] == [*narrowed[:-1], (1, 1, 256)]
    earlier = 4 * 514 + 258 + 130, 4 * 768 + 384 + 192              # stages' picture layers
    assert [sum(r[-1] for r in rows if r[0] == net) for net in "GD"] == [
        7_311_246 - earlier[0], 6_831_230 - earlier[1]]
    multiply_adds = 16 * 2 * 317 * 256 + sum(                       # the start, then 3 x 3
        9 * w * h * before * after
        for (*_, before), (w, h, after) in zip(TABLE_3, TABLE_3[1:]))
    assert train.multiply_adds(gansynth.Architecture(), 7) == multiply_adds
    low = gansynth.Architecture(frames=256, bins=512)
    assert (low.size(1), low.size(7)) == ((4, 8), (256, 512))

def test_the_waveform_gan_grows_along_time_only_by_four():
    paper = gansynth.Architecture.of_pictures(65536, 1)
    assert [paper.size(b) for b in range(1, 8)] == [(16 * 4 ** k, 1) for k in range(7)]
    for wrong, says in (({"frames": 1000}, "multiples of 4096 and 1"),
                        ({"channel_base": 64}, "no channel for block 7: the least is 128")):
        refuses(gansynth.ArchitectureError, says, gansynth.Architecture.of_pictures,
                **{"frames": 65536, "bins": 1, **wrong})

@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0, 1.75, 2.0])
@torch.no_grad()
def test_waveform_networks_at_every_stage(progress):
    G, D, blocks = gansynth.Generator(WAVES), gansynth.Discriminator(WAVES), math.ceil(progress) + 1
    picture = G(torch.randn(4, 5), torch.arange(4) % 3, progress)
    assert picture.shape == (4, 2, 4 ** blocks, 1) and picture.abs().max() <= 1     # no unscaling
    for given in (picture, full_size(picture, WAVES)):
        score, logits = D(given, progress)
        assert score.shape == (4,) and logits.shape == (4, 3)
        torch.testing.assert_close(score, D(picture, progress)[0])
    assert not torch.allclose(score, D(picture + 9, progress)[0])   # no clip either
    wave = torch.randn(2, 2, 64, 1)
    blended = gansynth.blend(wave, progress, WAVES)       # against numpy's means
    expected = sum(max(0, min(progress - (b - 2), b - progress)) * np.repeat(       # a triangle
        wave.numpy().reshape(2, 2, 4 ** b, 4 ** (3 - b)).mean(axis=3), 4 ** (blocks - b), axis=2)
        for b in range(1, blocks + 1))
    np.testing.assert_allclose(blended[..., 0], expected, atol=1e-6)

def test_adam_agrees_with_tensorflows():
    random = np.random.default_rng(0)
    start = random.standard_normal((3, 5)).astype(np.float32)
    p = [torch.nn.Parameter(torch.tensor(row)) for row in start]
    adam, w = gansynth.Adam(p), start.astype(float)
    v = np.zeros_like(w)
    for t in range(1, 6):
        g = random.standard_normal((3, 5)) * np.array([[1], [1e-7], [1]])   # eps matters in one
        g[2] *= t in (2, 4)                                         # one is without, at times
        for parameter, row in zip(p[:2 + (t in (2, 4))], g):
            parameter.grad = torch.tensor(row, dtype=torch.float32)
        adam.step(8e-4 if t % 2 else torch.tensor(8e-4))
        v = 0.99 * v + 0.01 * g ** 2                                # beta1 is zero
        w -= 8e-4 * np.sqrt(1 - 0.99 ** t) * g / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(torch.stack(p).detach(), w, atol=3e-7)
        assert all(parameter.grad is None for parameter in p)
        again = gansynth.Adam(p)
        again.load_state_dict(copy.deepcopy(adam.state_dict()))
        adam = again

def checkpoint(path, contents=None):
    gansynth.save_checkpoint(path, contents or {"weights": torch.arange(1000.0), "images": 3})
    return Path(path)

def test_checkpoint_round_trip():
    path = checkpoint("checkpoint-3.pt")
    contents = gansynth.load_checkpoint(path)
    assert torch.equal(contents["weights"], torch.arange(1000.0)) and contents["images"] == 3
    assert os.listdir() == ["checkpoint-3.pt"]
    newest = checkpoint("checkpoint-20.pt")
    Path("checkpoint-best.pt").write_text("not counted")
    assert gansynth.find_checkpoint(".") == newest and gansynth.find_checkpoint(path) == path

@pytest.mark.parametrize("contents, says", [
    ([1, 2], "not one of our"), ({"a": 1}, "not one of our"),
    ({"format": "gansynth", "version": 1}, "version 1 of these scripts.*version 2"),
    ({"format": "gansynth", "version": 2, "an object": SMALL}, "not one of our")])
def test_what_is_no_checkpoint_of_ours_is_named(contents, says):
    torch.save(contents, "bad.pt")
    refuses(CheckpointError, f"bad.pt.*{says}", gansynth.load_checkpoint, "bad.pt")
    for look in (gansynth.load_checkpoint, gansynth.find_checkpoint):
        refuses(CheckpointError, "none.pt.*[Nn]o", look, Path("none.pt"))

def mutate(data, rng):
    """Bytes with a stretch left out, doubled, overwritten or zero, the end cut off, or a bit
    flipped."""
    a, b = sorted(rng.integers(0, len(data), 2))
    b = min(b, a + rng.choice([8, len(data)]))          # every second one is short
    return [data[:a] + data[b:], data[:b] + data[a:], data[:a] + rng.bytes(int(b - a)) + data[b:],
            data[:a] + bytes(b - a) + data[b:], data[:a],
            data[:a] + bytes([data[a] ^ 1 << rng.integers(8)]) + data[a + 1:]][rng.integers(6)]

def damage(path, turns, look, right, error, says, head=None):
    """Damage a file, or its first bytes, in so many ways: what `look()` gives is right, or it
    raises the error, which says so -> how often it does."""
    whole, rng, errors = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(turns):
        path.unlink()                     # some disks wait when a file is written over
        path.write_bytes(mutate(whole[:head], rng) + whole[len(whole[:head]):])
        try:
            assert right(look())
        except error as fault:
            assert says in str(fault)
            errors += 1
    path.write_bytes(whole)
    return errors

def test_no_damage_of_a_checkpoint_gives_other_weights(tmp_path, capsys):
    weights = {"weights": torch.randn(3000)}
    good, bad = (checkpoint(tmp_path / f"checkpoint-{i}.pt", weights) for i in (3, 4))

    def look():
        passed_over = gansynth.find_checkpoint(tmp_path) == good    # a run's newest good one
        assert passed_over == (f"passed over: {bad}" in capsys.readouterr().err)
        return {**gansynth.load_checkpoint(bad), "passed over": passed_over}

    right = {"format": "gansynth", "version": 2, "passed over": False, **weights}
    assert damage(bad, 200, look, lambda found: same(found, right), CheckpointError,
                  "checkpoint-4.pt: ") > 150                        # the rest was padding
    good.unlink()
    bad.write_bytes(bad.read_bytes()[:-99])
    refuses(CheckpointError, "no whole checkpoint", gansynth.find_checkpoint, tmp_path)

def test_weights_that_do_not_fit_are_refused():
    good = {"model": "gansynth", "config": {}, "architecture": asdict(TINY), "spectrum": {},
            "G_ema": gansynth.Generator(TINY).state_dict(), "pitch_low": 60, "progress": 0.5,
            "counts": torch.ones(3), "images": 8}
    gansynth.load_generator(checkpoint("a.pt", good))
    for wrong, says in (({"architecture": asdict(SMALL)}, "do not fit"),
                        ({"architecture": {"depth": 3}}, "do not fit"), ({"G_ema": {}}, "not fit"),
                        ({"counts": 3}, "lacks counts"), ({"images": "8"}, "lacks images")):
        path = checkpoint("a.pt", {**good, **wrong})
        refuses(CheckpointError, says, gansynth.load_generator, path)

@pytest.mark.parametrize("module, function", [(os, "fsync"), (torch, "save"), (os, "replace")])
def test_a_full_disk_leaves_the_checkpoint_before(monkeypatch, module, function):
    before = checkpoint("a.pt").read_bytes()
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(module, function, full)
    refuses(CheckpointError, "could not be saved.*No space left", checkpoint, "a.pt",
            {"weights": torch.zeros(5)})
    assert os.listdir() == ["a.pt"] and Path("a.pt").read_bytes() == before

def test_table_3_is_printed(capsys):
    gansynth.main([])
    out = capsys.readouterr().out
    assert "Generator: 7,311,246" in out and "D  minibatch stddev  " in out
    assert "(1024, 128, 32)" in out
    waves = gansynth.layer_table(gansynth.Architecture.of_pictures(65536, 1))
    assert ("D", "block 7 from picture", (1, 65536, 32), "1x1", "leaky ReLU", 96) in waves

# ---- gansynth.py: Magenta's checkpoints ----
def bundle_block(entries, kind=0):
    """A block of (name, value), bytes, with its trailer."""
    body, before = b"", b""
    for name, value in entries:
        shared = len(os.path.commonprefix([before, name]))
        body += varint(shared) + varint(len(name) - shared) + varint(len(value))
        body, before = body + name[shared:] + value, name
    body += struct.pack("<II", 0, 1) + bytes([kind])
    return body + nsynth._crc32c(body)

def write_bundle(stage, variables, kind=0):
    """A stage's folder as TensorFlow leaves it, with these variables, in blocks of twenty."""
    stage.mkdir(parents=True)
    entries, data, table, handles = [(b"", b"\x08\x01")], b"", b"", []
    for name, array in sorted(variables.items()):
        shape = b"".join(proto(2, b"\x08" + varint(size)) for size in array.shape)
        entries.append((name.encode(), b"\x08" + varint({"f": 1, "i": 9}[array.dtype.kind])
                        + proto(2, shape) + b"\x20" + varint(len(data)) + b"\x28"
                        + varint(array.nbytes) + b"\x35" + nsynth._crc32c(array.tobytes())))
        data += array.tobytes()
    for start in range(0, len(entries), 20):
        few = entries[start:start + 20]
        handles.append((few[-1][0], varint(len(table)) + varint(len(bundle_block(few)) - 5)))
        table += bundle_block(few, kind)
    last = bundle_block(handles)
    footer = varint(0) * 2 + varint(len(table)) + varint(len(last) - 5)
    (stage / "model.ckpt-500.index").write_bytes(
        table + last + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db"))
    (stage / "model.ckpt-500.data-00000-of-00001").write_bytes(data)
    (stage / "checkpoint").write_text('model_checkpoint_path: "/tmp/train/model.ckpt-500"\n')

def weights_of_both(arch):
    """The networks' weights and G's averages, by the release's names."""
    G, D = gansynth.Generator(arch), gansynth.Discriminator(arch)
    averages = release_arrays(G, averaged=True)
    return {**release_arrays(G), **release_arrays(D),
            **{f"{name}/ExponentialMovingAverage": averages[name] for name in averages}}

def write_magenta(folder, arch=TINY, length=250, rate=8000, **settings):
    """A folder such as the release's, of networks of that architecture -> the folder."""
    write_bundle(folder / f"stage_{2 * arch.resolutions - 2:05}",
                 {**weights_of_both(arch), "global_step": np.array(500)})
    h, w = arch.size(1)
    (folder / "experiment.json").write_text(json.dumps({
        "num_resolutions": arch.resolutions, "latent_vector_size": arch.latent, "start_height": h,
        "start_width": w, "fmap_base": arch.channel_base, "fmap_max": arch.channel_max,
        "audio_length": length, "sample_rate": rate, **settings}))
    return folder

def write_released(folder):
    """The release's own small checkpoint: settings and table are its bytes, the weights are made
    again, and lie in the order of the names, as they do there.  The optimisers' are left zero."""
    arrays, slots = weights_of_both(SMALL), "progressive_gan_train_ops"
    arrays |= {f"{slots}/{name}/Adam{more}": np.zeros_like(array) for more in ("", "_1")
               for name, array in arrays.items() if not name.endswith("Average")}
    arrays |= {f"{slots}/{whole}_train/beta{i}_power": np.float32(0)
               for whole in ("generator", "discriminator") for i in (1, 2)}
    arrays |= {"global_step": np.int64(11_000_000), "Variable": np.float32(0)}
    stage = folder / "stage_00012"
    stage.mkdir(parents=True)
    (folder / "experiment.json").write_bytes(stored("magenta/experiment").numpy())
    (stage / "model.ckpt-11000000.index").write_bytes(stored("magenta/index").numpy())
    (stage / "model.ckpt-11000000.data-00000-of-00001").write_bytes(
        b"".join(arrays[name].tobytes() for name in sorted(arrays)))
    (stage / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-11000000"\n')
    return folder

def load_released(folder):
    return gansynth.load_generator(gansynth.find_checkpoint(folder), "cpu", nsynth.read_bundle)

def test_magentas_checkpoint_sounds_as_the_release(tmp_path):
    folder = write_released(tmp_path / "tiny")
    stage = folder / "stage_00012"
    (stage / "checkpoint").write_text(
        'model_checkpoint_path: "/home/someone/stage_00012/model.ckpt-11000000"\n'
        'all_model_checkpoint_paths: "/home/someone/stage_00012/model.ckpt-9"\n')
    shutil.copytree(stage, folder / "stage_00003")                  # older, and a higher number
    (stage / "model.ckpt-99000000.index").write_bytes(b"that `checkpoint` does not name")
    latents, labels = tmp_path / "latents.npz", REFERENCE["magenta/labels"]
    np.savez(latents, z=REFERENCE["magenta/z"], pitch=24 + labels)
    wavs, _, pitch, page = run_sample(folder, tmp_path / "out", "--latents", latents)
    assert pitch == [24, 28, 26, 25, 27] and "11,000,000 examples trained" in page
    assert "tiny/experiment.json" in page and "7 of 7 blocks" in page
    waves = np.stack([scipy.io.wavfile.read(tmp_path / "out" / wav)[1] for wav in wavs]) / 32768
    theirs = stored("magenta/waves")                                # divided by one factor, to clip
    waves = torch.from_numpy(waves[:, ::4]).float()                 # nothing
    assert spectral.snr(theirs, waves * theirs.abs().max() / waves.abs().max()).min() > 55
    assert waves.shape == theirs.shape                              # measured: 74.6 dB, 16-bit WAVs

    run_sample(folder, tmp_path / "pseudo", "--latents", latents, "--mel-inverse", "pseudo")
    ours = scipy.io.wavfile.read(tmp_path / "pseudo" / wavs[0])[1]
    assert spectral.snr(theirs[:1], torch.from_numpy(ours[None, ::4]).float()) < 10

def test_magentas_weights_become_a_file_of_ours(tmp_path, capsys):
    folder, file = write_released(tmp_path / "tiny"), tmp_path / "model.pt"
    sample.main([str(folder), "--save", str(file)])
    assert "which sample.py plays" in capsys.readouterr().out
    contents = gansynth.load_checkpoint(file, parts=gansynth.SAMPLE_PARTS)
    for name, net in (*zip("GD", small_networks()),
                      ("G_ema", recipe(gansynth.Generator(SMALL), averaged=True))):
        assert same(contents[name], net.state_dict())
    assert gansynth.load_generator(file)[0].arch == SMALL and contents["images"] == 11_000_000
    wavs, *_ = run_sample(folder, tmp_path / "a", "--count", 3)
    assert run_sample(file, tmp_path / "b", "--count", 3)[0] == wavs
    for wav in wavs:
        assert (tmp_path / "a" / wav).read_bytes() == (tmp_path / "b" / wav).read_bytes()
    before = file.read_bytes()
    for wrong in (file, tmp_path / "none" / "model.pt"):
        assert "is there already, or its folder is not" in refusal(sample, folder, "--save", wrong)
    assert file.read_bytes() == before
    for more in (["--scale"], ["--count", 3]):
        refusal(sample, folder, *more, "--save", tmp_path / "b.pt", status=2)

def test_what_is_heard_of_a_run_fits_a_small_file_and_one_comes_in_the_box(monkeypatch):
    checkpoint = tiny_checkpoint()
    sample.main([str(checkpoint), "--save", "small.pt"])
    small = gansynth.load_checkpoint("small.pt", parts=gansynth.SAMPLE_PARTS)
    whole = gansynth.load_checkpoint(checkpoint)
    assert all(p.dtype == torch.float16 for p in small["G_ema"].values()) and "D" not in small
    for name, p in gansynth.load_generator("small.pt")[0].state_dict().items():
        torch.testing.assert_close(p, whole["G_ema"][name], rtol=1e-3, atol=1e-6)
    box = gansynth.load_checkpoint(sample.MODEL, parts=gansynth.SAMPLE_PARTS)
    assert sample.MODEL.stat().st_size < 6e6 and len(box["counts"]) >= 25
    assert box["spectrum"]["length"] >= box["spectrum"]["sample_rate"]
    monkeypatch.setattr(sample, "MODEL", Path("small.pt"))
    sample.main(["--count", "2"])
    assert os.listdir("runs/model/samples-0001").count("index.html") == 1

def test_settings_of_the_release_are_heeded(tmp_path):
    plain = load_released(write_magenta(tmp_path / "a"))[0]
    assert plain.arch == TINY
    G, contents = load_released(write_magenta(
        tmp_path / "b", data_type="linear", to_rgb_activation="linear", mag_normalizer_a=0.5,
        mag_normalizer_b=0.25, p_normalizer_a=2, p_normalizer_b=-1))
    assert contents["spectrum"] == {"rep": "if", "frames": 16, "bins": 32, "length": 250,
                                    "sample_rate": 8000, "mel_inverse": "transpose"}
    z, pitch = torch.randn(2, 5), torch.tensor([0, 2])
    picture = G(z, pitch, 2.0)
    scaled = torch.stack([picture[:, 0] * 0.5 + 0.25, picture[:, 1] * 2 - 1], dim=1)
    usual = gansynth.scale_picture(plain(z, pitch, 2.0), TINY)
    torch.testing.assert_close(scaled.tanh(), usual, rtol=1e-4, atol=1e-5)
    assert scaled.abs().max() > 1                                   # no tanh
    torch.testing.assert_close(gansynth.scale_picture(picture, G.arch), scaled.clamp(-1, 1))
    wide = replace(TINY, kernel=(5, 5))
    assert load_released(write_magenta(tmp_path / "c", wide, kernel_size=5))[0].arch == wide
    older = {name: value for name, value in asdict(TINY).items()
             if name not in ("scale", "shift", "tanh")}             # of our own checkpoints
    assert gansynth.Architecture(**older) == TINY

@pytest.mark.parametrize("settings, says", [
    ({"data_type": "wave"}, "data_type is 'wave': expected 'mel' or"),
    ({"to_rgb_activation": "relu"}, "to_rgb_activation is 'relu': expected 'tanh' or 'linear'"),
    ({"scale_mode": "H"}, "scale_mode is 'H': expected 'ALL'"),
    ({"scale_base": 3}, "scale_base is 3"), ({"data_normalizer": "none"}, "_normalizer is 'none'"),
    ({"fmap_max": 5}, "has another shape"), ({"latent_vector_size": 10 ** 9}, "has another shape"),
    ({"num_resolutions": 2}, "not that of full-grown"), ({"num_resolutions": 4}, "of full-grown"),
    ({"num_resolutions": 4, "train_progressive": False}, "it lacks '.*block_4"),
    ({"fmap_base": 1}, "leaves no channel"), ({"kernel_size": 5}, "has another shape"),
    ({"num_resolutions": "7"}, "unsupported operand"), ({"start_width": None}, "unsupported op")])
def test_settings_that_cannot_be_read_are_named(tmp_path, settings, says):
    folder = write_magenta(tmp_path / "m", **settings)
    refuses(CheckpointError, f"^{folder}: .*{says}.*: unpack its archive again$", load_released,
            folder)

@pytest.mark.parametrize("path, contents, says", [
    ("experiment.json", b"{", "Expecting"), ("experiment.json", b"[1]", "list"),
    ("experiment.json", b"{}", "it lacks 'num_resolutions'"),
    ("stage_00004/checkpoint", b"", "stage_00004/checkpoint names none"),
    ("stage_00004/checkpoint", b'model_checkpoint_path: "x"', "No such file.*/x.index"),
    ("stage_00004/checkpoint", None, "No such file.*stage_00004/checkpoint"),
    ("stage_00005/checkpoint", None, "No such file.*stage_00005/checkpoint"),
    ("stage_00004/model.ckpt-500.index", None, "No such file.*500.index"),
    ("stage_00004/model.ckpt-500.index", b"", "500.index is cut off, or no table"),
    ("stage_00004/model.ckpt-500.data-00000-of-00001", None, "No such file.*500.data-00000"),
    ("stage_00004/model.ckpt-500.data-00000-of-00001", b"", "500.data-.*checksum of .*not match"),
    ("stage_00004", None, "No such file.*stage_")])
def test_parts_of_magentas_folder_that_are_not_there_are_named(tmp_path, path, contents, says):
    folder = write_magenta(tmp_path / "m")
    path = folder / path
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if contents is not None:
        path.write_bytes(contents)
    says = f"^sample.py: {folder}: .*{says}.*: unpack its archive again$"
    assert re.search(says, refusal(sample, folder, "--device", "cpu"))

def test_a_compressed_table_is_refused(tmp_path):
    folder = write_magenta(tmp_path / "m")
    shutil.rmtree(folder / "stage_00004")
    write_bundle(folder / "stage_00004", {"global_step": np.array(500)}, kind=1)
    refuses(CheckpointError, "a block of its .index is damaged, or compressed", load_released,
            folder)

@pytest.mark.slow
@pytest.mark.parametrize("kind", ["index", "data"])
def test_no_damage_of_magentas_files_gives_other_weights(tmp_path, kind):
    folder = write_magenta(tmp_path / "m")
    good = gansynth.load_magenta(folder / "experiment.json", nsynth.read_bundle)
    file, = (folder / "stage_00004").glob(f"*.{kind}*")
    assert damage(file, 1000, lambda: gansynth.load_magenta(
        folder / "experiment.json", nsynth.read_bundle), lambda found: same(found, good),
        CheckpointError, f"{folder}: ") > 900

def test_training_starts_from_magentas_weights(tmp_path, capsys):
    cfg = train.Config(length=1000, sample_rate=4000, resolutions=3, latent=4, channel_base=32,
                       channel_max=8, pitch_low=24, pitch_high=27)
    folder = write_magenta(tmp_path / "m", cfg.architecture(), 1000, 4000)
    run, flags = tmp_path / "run", ["--preset", "workshop", "--batch", "2", "--device", "cpu"]
    train.main(["--init", str(folder), "--images", "6", "--lr", "1e-8", "--out", str(run), *flags])
    assert f"weights of {folder}/experiment.json, preset workshop" in capsys.readouterr().out
    ours = gansynth.load_checkpoint(gansynth.find_checkpoint(run))
    theirs = gansynth.load_magenta(folder / "experiment.json", nsynth.read_bundle)
    for name in ("G", "D", "G_ema"):
        for key, weight in theirs[name].items():                    # three steps of next to nothing
            if name == "G_ema":                                     # move the average all the same
                weight = torch.lerp(theirs["G"][key], weight, 0.998 ** 3)
            torch.testing.assert_close(ours[name][key], weight, atol=2e-6, rtol=0)
    assert ours["adam_G"]["t"] == 3 and ours["progress"] == 2 and ours["images"] == 6
    assert ours["architecture"] == theirs["architecture"] and ours["pitch_low"] == 24
    again = tmp_path / "again"                                      # from a run of ours
    train.main(["--init", str(run), "--images", "2", "--out", str(again), *flags])
    assert gansynth.load_checkpoint(gansynth.find_checkpoint(again))["adam_G"]["t"] == 1
    for more, says in ((["--channel-max", "4"], "its networks are none that --model gansynth"),
                       (["--model", "wavegan"], "are none that --model wavegan"),
                       (["--resume", str(run)], "--init contradict --resume")):
        assert says in refusal(train, "--init", folder, "--out", tmp_path / "x", *more, status=2)
    refusal(train, "--resume", folder, status=2)
    assert not (tmp_path / "x").exists()

def test_magentas_folder_can_be_measured(tmp_path):
    folder = write_magenta(tmp_path / "m")
    args = metrics.parse([str(folder), "--samples", "3", "--data", "orchestra", "--device", "cpu"])
    setting, (run,) = metrics.gather(args)
    assert setting[:5] == ("orchestra", 250, 8000, 24, 26) and "500 examples" in run.name
    assert run.waves(slice(0, 3)).shape == (3, 250) and run.paper == "IF-Mel"

# ---- gansynth.py: WaveGAN and WaveNet ----
def tiny_wavenet(**more):
    """A small WaveNet in float64, whose outputs are far enough from uniform to be told apart."""
    torch.manual_seed(1)
    settings = dict(length=300, hold=225, pitches=3, stacks=2, layers=3, channels=8)
    net = gansynth.WaveNet(gansynth.WaveNetArchitecture(**{**settings, **more})).double()
    for layer in net.head:
        layer.weight.data *= 4
    return net.requires_grad_(False)

# WaveGAN's tables 3 and 4, d = 64: channels beside 16, 64, ... samples.
@pytest.mark.parametrize("length, widths", [
    (16384, [1024, 512, 256, 128, 64, 1]), (65536, [2048, 1024, 512, 256, 128, 64, 1])])
def test_wavegan_has_its_papers_layers(length, widths):
    arch = gansynth.WaveGANArchitecture(length=length)
    with torch.device("meta"):
        G, D = gansynth.WaveGANGenerator(arch), gansynth.WaveGANDiscriminator(arch)
    shapes = [(a, b, 25) for a, b in zip(widths, widths[1:])]
    assert [up.weight.shape for up in G.up] == shapes
    assert [down.weight.shape for down in D.down] == shapes[::-1]
    assert G.dense.weight.shape == (16 * widths[0], 100 + 61)

def same_convolution(x, weight):
    """TensorFlow's convolution of x (in, L) with stride 4 and padding SAME -> (out, L/4): of the
    zeros that lack half go before x, and the odd one after."""
    L, taps = x.shape[1], weight.shape[2]
    lack = max((L // 4 - 1) * 4 + taps - L, 0)
    windows = F.pad(x, (lack // 2, lack - lack // 2)).unfold(1, taps, 4)        # (in, L/4, taps)
    return torch.einsum("oik,itk->ot", weight, windows)

def test_wavegan_pads_and_shuffles_as_its_authors_do_in_tensorflow():
    arch = gansynth.WaveGANArchitecture(length=1024, latent=4, pitches=3, channels=4)
    G, D = gansynth.WaveGANGenerator(arch).double(), gansynth.WaveGANDiscriminator(arch).double()
    for p in itertools.chain(G.parameters(), D.parameters()):       # biases, too
        torch.nn.init.normal_(p, std=0.2)
    z, wave = torch.randn(1, 4).double(), torch.randn(1, 1024).double()
    x = G.dense(torch.cat([z[0], torch.eye(3).double()[2]])).view(-1, 16)
    for up in G.up:                       # the gradient of a convolution with the same weights
        y = torch.zeros(up.weight.shape[1], 4 * x.shape[1]).double().requires_grad_()
        gradient, = torch.autograd.grad(same_convolution(y, up.weight), y, x.relu())
        x = gradient + up.bias[:, None]
    torch.testing.assert_close(G(z, torch.tensor([2])), torch.tanh(x))
    for shift in ([], [0, 0], [2, 0], [0, 1], [-1, 2, 1, 2]):        # never after the last layer
        x = wave
        for i, down in enumerate(D.down):
            x = F.leaky_relu(same_convolution(x, down.weight) + down.bias[:, None], 0.2)
            if i < min(len(shift), 2):
                padded = np.pad(x.detach(), ((0, 0), (3, 3)), mode="reflect")
                x = torch.from_numpy(np.roll(padded, shift[i], axis=1)[:, 3:-3])
        torch.testing.assert_close(D(wave, torch.tensor(shift)),
                                   (D.score(x.flatten()), D.pitch(x.view(1, -1))))

def test_wavegans_loss_of_a_linear_score():
    w, seen = torch.randn(64), []

    def D(x, shift):
        seen.append(shift)
        return x @ w, x[:, :3]                                      # logits: all equal

    pitch, fake, weights = torch.tensor([0, 2]), torch.ones(2, 64) / 9, train.Config()
    loss, terms = train.wavegan_discriminator_loss(
        D, torch.zeros(2, 64), pitch, fake, torch.rand(2, 1), "rfm", weights)
    torch.testing.assert_close(terms["D_penalty"], (w.norm() - 1) ** 2)
    torch.testing.assert_close(
        loss, w.sum() / 9 + weights.penalty * (w.norm() - 1) ** 2
        + weights.pitch_weight * math.log(3))
    assert seen == ["r", "f", "m"]        # each pass has its own shuffle

def test_wavenet_has_the_papers_size():
    arch, C = gansynth.WaveNetArchitecture(), 512
    assert arch.receptive_field == 1 + 2 * (1 + 3 * 1023) and len(arch.dilations) == 30
    with torch.device("meta"):
        net, mixture = (gansynth.WaveNet(replace(arch, output=output))
                        for output in ("mulaw8", "mol16"))
    assert sum(p.numel() for p in net.parameters()) == (
        (3 * C + C) + 30 * (3 * C * 2 * C + 2 * C)                  # first, gates
        + (61 * 3 * C + C) + 7 * (3 * C * C + C) + 30 * C * 2 * C   # conditioning, to the gates
        + 29 * C * C + 30 * C * C + C                               # residual, skip
        + (C * C + C) + (C * 256 + 256))                            # head
    assert mixture.head[1].weight.shape == (3 * 10, C, 1)

@pytest.mark.parametrize("more", [{}, dict(stacks=1, layers=4), dict(stacks=1, output="mol16")])
def test_wavenet_sees_its_receptive_field_and_nothing_after(more):
    net, L = tiny_wavenet(**more), 60
    x = torch.rand(L).double() - 0.5
    changed = x + 0.5 * torch.eye(L)                                # row s: sample s is another
    pitch = torch.zeros(L, dtype=torch.int64)
    seen = (net(changed, pitch) - net(x.expand(L, L), pitch)).abs().amax(dim=1) > 1e-12
    s, t = torch.arange(L)[:, None], torch.arange(L)
    assert torch.equal(seen, (s < t) & (t - s <= net.arch.receptive_field))
    assert net.arch.receptive_field < L - 1
    assert (net(x[None], pitch[:1]) - net(x[None], pitch[:1] + 1)).abs().min() > 0  # listens to it

@pytest.mark.parametrize("hold", [225, 15, 150, 300])
def test_conditioning_equals_that_of_every_sample_of_the_note(hold):
    net, reach = tiny_wavenet(hold=hold), 2 + 4 + 8 + 16 + 32 + 1 + 1 + 1
    pitch, L = torch.tensor([2, 0]), 500
    x = torch.zeros(2, 3, L + 2 * reach).double()
    x[[0, 1], pitch, reach:reach + hold] = 1                        # on, then off; 0 is at `reach`
    for i, (conv, d) in enumerate(zip(net.conditioning, (2, 4, 8, 16, 32, 1, 1, 1))):
        y = F.conv1d(x, conv.weight, conv.bias, dilation=d).relu()
        x = y + x[..., d:-d] if i else y  # the middle of what it saw
    for offset, length in ((0, L), (0, 3), (5, 60), (60, 1), (70, 80), (100, 200), (400, 100)):
        found = net.condition(pitch, offset, length)
        for gates, to_gates in zip(found, net.to_gates, strict=True):
            torch.testing.assert_close(gates.expand(-1, -1, length),
                                       to_gates(x[..., offset:offset + length]))
    assert found[0].shape[2] == 1         # long after it

@pytest.mark.parametrize("offset", [1, 40, 240])
def test_a_crop_is_foretold_as_in_its_note_once_its_past_is_known(offset):
    net, pitch = tiny_wavenet(), torch.tensor([0, 2])
    x, known = torch.rand(2, 300).double() - 0.5, net.arch.receptive_field
    whole, crop = net(x, pitch), net(x[:, offset:], pitch, offset)
    torch.testing.assert_close(whole[..., offset + known:], crop[..., known:])
    loss, terms = train.wavenet_loss(net, x[:, offset:], pitch, offset)
    skip = min(offset, known, (300 - offset) // 2)
    codes = gansynth.mu_law_encode(x[:, offset + skip:]).numpy()[:, None]
    log_p = scipy.special.log_softmax(crop[..., skip:].numpy(), axis=1)
    nats = -np.take_along_axis(log_p, codes, axis=1).mean()
    np.testing.assert_allclose([loss, terms["nats"], terms["bits"] * np.log(2)], nats)

@pytest.mark.parametrize("more", [
    {}, dict(output="mol16"), dict(hold=15), dict(stacks=1, layers=10, channels=2)])
def test_cached_sampling_equals_a_forward_pass_for_every_sample(more):
    net, pitch, done = tiny_wavenet(**more), torch.tensor([1, 0, 2]), []
    cached = gansynth.wavenet_generate(net, pitch, torch.Generator().manual_seed(0), done.append)
    assert cached.shape == (3, 300) and cached.abs().max() <= 1 and cached.std() > 0.1
    assert done == [256, 300]
    # From the distributions along these very notes, foretold at once, the same draws follow.
    random = torch.rand(300, 2, 3, generator=torch.Generator().manual_seed(0))
    foretold = net(cached, pitch)
    drawn = torch.stack([net.draw(foretold[..., t], random[t]) for t in range(300)], dim=1)
    torch.testing.assert_close(drawn.double(), net.compress(cached), rtol=0, atol=1e-6)
    # The distributions themselves, along given notes, for as long as the longest past of the four.
    x = torch.rand(3, 2300).double() * 2 - 1
    cache, before = gansynth.CachedWaveNet(net, pitch), net.compress(x)
    steps = [cache.step(torch.zeros(3))] + [cache.step(u) for u in before.t()[:-1]]
    torch.testing.assert_close(torch.stack(steps, dim=2), net(x, pitch), rtol=0, atol=1e-9)

def test_mu_law_agrees_with_the_standards_formula():
    x, every = np.linspace(-1, 1, 10001), np.arange(256)
    y = np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)      # ITU-T G.711, mu = 255
    codes = gansynth.mu_law_encode(torch.from_numpy(x)).numpy()
    assert np.abs(codes - (y + 1) * 127.5).max() <= 0.5 + 1e-9
    waves = gansynth.mu_law_decode(torch.from_numpy(every))
    inverse = (256.0 ** np.abs(every / 127.5 - 1) - 1) / 255 * np.sign(every / 127.5 - 1)
    np.testing.assert_allclose(waves, inverse, atol=1e-6)
    assert np.array_equal(gansynth.mu_law_encode(waves), every)
    assert gansynth.mu_law_encode(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]      # clipped

VALUES = torch.arange(-32768, 32768) / 32768                        # of 16-bit sound
MIXTURES = {                                                        # logits, means, log scales
    "random": (torch.randn(4, generator=torch.Generator().manual_seed(0)),
               torch.linspace(-0.9, 0.8, 4), torch.tensor([-8.0, -3.0, -5.0, -1.0])),
    "sharp": (torch.zeros(3), torch.tensor([-1.0, 0.3, 1.0]), torch.tensor([-14.0, -200.0, -11.0])),
    "beyond": (torch.tensor([0.0, 30.0]), torch.tensor([-5.0, 7.0]), torch.tensor([-9.0, -2.0])),
    "flat": (torch.tensor([0.0, -3.0]), torch.tensor([0.0, 100.0]), torch.tensor([12.0, 3.0])),
    "flatter": (torch.tensor([0.0, 9.0]), torch.tensor([0.0, 0.5]), torch.tensor([200.0, 80.0]))}

@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_the_mixture_sums_to_one_and_has_finite_gradients(kind, dtype, tolerance):
    parameters = torch.cat(MIXTURES[kind]).to(dtype)[None, :, None].requires_grad_()
    log_p = gansynth.mol_log_likelihood(parameters, VALUES.to(dtype)[None])
    assert float(log_p.exp().sum().detach()) == pytest.approx(1, abs=tolerance)
    gradient, = torch.autograd.grad(log_p.sum(), parameters)
    assert log_p.isfinite().all() and gradient.isfinite().all()

def test_the_mixture_and_its_samples_agree_with_scipys_logistic():
    logits, mean, log_scale = (p.double().numpy() for p in MIXTURES["random"])
    weights = scipy.special.softmax(logits)

    def cdf(at):
        return scipy.stats.logistic.cdf(at[:, None], mean, np.exp(log_scale)) @ weights

    edges = np.concatenate([[-np.inf], (np.arange(-32768, 32767) + 0.5) / 32768, [np.inf]])
    p, mixture = np.diff(cdf(edges)), torch.cat(MIXTURES["random"])
    ours = gansynth.mol_log_likelihood(mixture.double()[None, :, None], VALUES.double()[None])[0]
    likely = p > 1e-9                     # scipy's difference of two near 1 is not exact elsewhere
    np.testing.assert_allclose(ours.exp()[likely], p[likely], rtol=1e-5)
    assert likely.sum() > 1000
    n, uniform = 20000, torch.rand(2, 20000)
    x = tiny_wavenet(output="mol16").draw(mixture.expand(n, -1), uniform).numpy()
    assert np.array_equal(x * 32768, np.round(x * 32768)) and -1 <= x.min() and x.max() < 1
    inside = x[np.abs(x) < 0.99]                                    # the ends hold what lies beyond
    low, high = cdf(np.array([-0.99, 0.99]))
    test = scipy.stats.kstest(inside, lambda at: (cdf(at) - low) / (high - low))
    assert test.pvalue > 0.001 and len(inside) / n == pytest.approx(high - low, abs=0.015)
    codes = (tiny_wavenet().draw(mixture[:4].expand(n, -1), uniform) + 1) * 127.5
    counts = np.bincount(codes.round().int(), minlength=4)
    assert scipy.stats.chisquare(counts, n * weights).pvalue > 0.001

# ---- nsynth.py ------------------------------------------------------------------------------
def add_note(folder, name, samples=None, rate=16000, **about):
    """Add one note to a folder in NSynth's layout, made with scipy rather than nsynth."""
    family, source, _ = name.rsplit("_", 2)
    pitch = int(name[-7:-4])
    fields = {"note_str": name, "pitch": pitch, "sample_rate": rate,
              "instrument_family_str": family, "instrument_source_str": source, **about}
    path = folder / "examples.json"
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    examples = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**examples, name: fields}))
    if samples is None:
        samples = pitch + np.arange(100, dtype=np.int16)
    scipy.io.wavfile.write(folder / "audio" / f"{name}.wav", rate, samples)

def twelve_notes(folder):
    for i in range(12):
        add_note(folder, f"guitar_acoustic_{i:03}-{60 + i:03}-100")
    return folder

def test_load_filters_cuts_pads_and_counts(tmp_path):
    for name in ("guitar_acoustic_000-060-100", "guitar_acoustic_000-090-100",
                 "organ_electronic_001-060-100", "flute_acoustic_000-024-050",
                 "flute_synthetic_000-023-050", "reed_acoustic_000-084-050"):
        add_note(tmp_path, name)
    notes = nsynth.load(tmp_path, 64, 16000)
    assert sorted(notes.name) == ["flute_acoustic_000-024-050", "guitar_acoustic_000-060-100",
                                  "reed_acoustic_000-084-050"]
    assert notes.dropped == {"the source is not acoustic": 2, "the pitch is outside 24-84": 1}
    sounds = notes.pitch[:, None] + np.arange(100)
    assert np.array_equal(notes.audio, sounds[:, :64])
    padded = nsynth.load(tmp_path, 103, 16000).audio
    assert np.array_equal(padded, np.pad(sounds, ((0, 0), (0, 3))))
    assert len(nsynth.load(str(tmp_path), 64, 16000, (0, 127), sources=())) == 6
    only = nsynth.load(tmp_path, 64, 16000, (0, 127), (), ("guitar", "organ"))
    assert sorted(only.family) == ["guitar", "guitar", "organ"]
    assert nsynth.pitch_counts(notes, (60, 84)).tolist() == [1] + [0] * 23 + [1]
    refuses(NoteError, "none of the 6 notes.* 4 because the pitch is outside 1-2, 2 because the "
            "source is not", nsynth.load, tmp_path, 64, 16000, (1, 2))

def test_sub_folders_are_pooled_and_tell_the_split(tmp_path):
    for i, part in enumerate(("train", "train", "valid", "test")):
        add_note(tmp_path / f"nsynth-{part}", f"guitar_acoustic_{i:03}-{60 + i:03}-100")
    train_, held_out = nsynth.split(nsynth.load(tmp_path, 64, 16000), by="folders")
    assert sorted(train_.pitch) == [60, 61] and sorted(held_out.pitch) == [62, 63]
    refuses(NoteError, "no note is in the training part by 'folders'", nsynth.split,
            nsynth.load(tmp_path / "nsynth-test", 64, 16000), by="folders")
    for more, says in (({}, "guitar_acoustic_000-060-100 is in .*-t.* and in"),
                       ({"pitch": 61}, "pitch 61: expected as named")):
        add_note(tmp_path / "nsynth-test", "guitar_acoustic_000-060-100", **more)
        refuses(NoteError, says, nsynth.load, tmp_path, 64, 16000)

@pytest.mark.parametrize("rate", [2000, 8000, 44100, 44099])
def test_load_resamples_and_misses_nothing_of_what_it_cuts(tmp_path, rate):
    sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    add_note(tmp_path, "flute_acoustic_000-069-100", (sine * 32768).astype(np.int16), rate)
    ours = nsynth.load(tmp_path, 16000, 16000).waves([0])[0].numpy()
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(ours - want)[200:].max() < 2e-3   # same frequency, level and time, to the end

@pytest.mark.parametrize("wish, says", [
    ({"pitch_range": (84, 24)}, "84-24"), ({"pitch_range": (0, 128)}, "0-128"),
    ({"length": 0}, "0 samples"), ({"sample_rate": 0}, "0 Hz"),
    ({"sources": ("acustic",)}, "acustic.*sources.*acoustic, electronic"),
    ({"families": ("guitars",)}, "guitars.*families"),
    ({"sources": ("electronic",)}, "none of the .* notes of orchestra"),
    ({"pitch_range": (60, 127)}, "too high for the orchestra"),
    ({"length": 10 ** 13}, "at most 600 seconds")])
def test_load_refuses(wish, says):
    refuses(NoteError, says, nsynth.load, "orchestra",
            **{"length": 400, "sample_rate": 8000, "pitch_range": (60, 60), **wish})

def test_split_is_of_notes_seeded_and_complete(orchestras):
    octave = orchestras[0]
    train, held_out = nsynth.split(octave, seed=3)
    assert len(train) == round(0.8 * len(octave))
    assert sorted([*train.name, *held_out.name]) == sorted(octave.name)
    instruments = [{name.rsplit("-", 2)[0] for name in part.name} for part in (train, held_out)]
    assert instruments[0] == instruments[1]  # notes are split, not instruments
    assert np.array_equal(nsynth.split(octave, seed=3)[0].name, train.name)
    assert not np.array_equal(nsynth.split(octave, seed=4)[0].name, train.name)
    rare = octave.subset([*np.flatnonzero(octave.pitch == 60)[:9], np.argmax(octave.pitch)])
    for seed in range(9):                 # a pitch with notes has one to learn from
        train, held_out = nsynth.split(rare, seed)
        assert 71 in train.pitch and len(train) + len(held_out) == 10

def test_describe_counts(tmp_path):
    for i, family in enumerate(nsynth.FAMILIES):
        add_note(tmp_path, f"{family}_acoustic_000-{24 + 5 * i:03}-100")
        add_note(tmp_path, f"{family}_electronic_000-060-100")
    report = nsynth.describe(*nsynth.split(nsynth.load(tmp_path, 64, 16000)), release=True)
    assert "kept 11 of 22 notes" in report
    assert "dropped 11 because the source is not acoustic" in report
    words = [line.split() for line in report.splitlines()]
    assert ["all", "11", "0"] in words and ["source", "acoustic", "11", "0"] in words
    assert len([row for row in words if row[0] == "family"]) == 11
    table = words[[row[0] for row in words].index("pitch") + 1:]
    assert sum(int(n) for row in table if row[0] != "release," for n in row[2:]) == 11
    assert sum(int(n) for row in table if row[0] == "release," for n in row[2:]) == 60_788 - 977

def test_each_epoch_is_a_fresh_permutation_and_any_position_continues():
    stream = nsynth.epoch_order(0, 60, 7, seed=5)  # eight epochs and a half
    epochs = stream[:56].reshape(8, 7)
    assert (np.sort(epochs) == np.arange(7)).all() and len({tuple(epoch) for epoch in epochs}) == 8
    assert not np.array_equal(stream, nsynth.epoch_order(0, 60, 7, seed=6))
    nsynth.epoch_order(0, 7, 7, 5)[:] = 0  # the caller's copy: it must not change the stream
    for position, n in itertools.product(range(40), (0, 1, 7, 20)):
        assert np.array_equal(nsynth.epoch_order(position, n, 7, 5), stream[position:position + n])

def test_pitches_are_drawn_as_often_as_counted():
    counts = torch.tensor([5, 0, 10, 40, 45])
    draw, again = (nsynth.draw_pitches(counts, 20000, torch.Generator().manual_seed(0))
                   for _ in range(2))
    seen = torch.bincount(draw, minlength=5).numpy()
    assert seen[1] == 0 and seen.sum() == 20000 and torch.equal(draw, again)
    some = [0, 2, 3, 4]
    assert scipy.stats.chisquare(seen[some], counts.numpy()[some] * 200).pvalue > 0.01

# ---- nsynth.py: JSON + WAV, and packed notes ----
@pytest.mark.parametrize("text, says", [
    (None, "holds no notes"), ("{", "cannot read"), ("[]", "no notes"), ("{}", "no notes"),
    ("[" * 100_000, "cannot read .*recursion"), ('{"a-060-100": 3}', "field instr.* of .*'a-060"),
    ('{"a": {"pitch": 1e999}}', "note 'a'"), ('{"../../a": {}}', "field note_str"),
    ('{"": {}}', "field note_str"), ('{"a\\u2028b": {}}', "field note_str")])
def test_load_names_damaged_json(tmp_path, text, says):
    if text is not None:
        (tmp_path / "examples.json").write_text(text)
    assert str(tmp_path) in refuses(NoteError, says, nsynth.load, tmp_path, 64, 16000)

@pytest.mark.parametrize("field, values", [
    ("pitch", (None, "60", 60.5, True, -1, 128)), ("sample_rate", (None, 0, 10 ** 9, "16k")),
    ("instrument_family_str", (None, 3)), ("instrument_source_str", (None, 0)),
    ("qualities", ([0] * 9, [], [2] + [0] * 9, [-1] * 10, [True] * 10, "0000000000", {}))])
def test_load_names_note_and_field(tmp_path, field, values):
    for value in values:
        add_note(tmp_path, "guitar_acoustic_000-060-100", **{field: value})
        refuses(NoteError, f"examples.json: field {field} of note 'guitar", nsynth.load, tmp_path,
                64, 16000)

def test_what_is_saved_is_loaded_again(tmp_path):
    flags = np.eye(10, dtype=int).tolist()
    for i, quality in enumerate([*flags, None]):
        add_note(tmp_path, f"guitar_acoustic_{i:03}-{60 + i:03}-100", qualities=quality)
    add_note(tmp_path, "reed_acoustic_011-071-100")                 # has no such field
    notes = nsynth.load(tmp_path, 64, 16000)
    assert np.array_equal(notes.qualities, [*flags, [-1] * 10, [-1] * 10])
    turned = notes.subset(range(11, -1, -1))
    nsynth.save(turned, tmp_path / "new" / "notes")
    saved = json.loads((tmp_path / "new" / "notes" / "examples.json").read_text())
    assert [entry.get("qualities") for entry in saved.values()] == [None, None, *flags[::-1]]
    back = nsynth.load(tmp_path / "new", 64, 16000)
    assert np.array_equal(back.audio, notes.audio[::-1])
    for key in ("pitch", "family", "source", "name", "qualities"):
        assert np.array_equal(getattr(back, key), getattr(notes, key)[::-1]), key
    (tmp_path / "file").write_text("")
    refuses(NoteError, "not empty", nsynth.save, notes, tmp_path / "new")
    refuses(NoteError, "cannot write", nsynth.save, notes, tmp_path / "file" / "notes")

def test_damaged_notes_are_named_or_skipped_and_counted(tmp_path):
    twelve_notes(tmp_path)
    wav = sorted((tmp_path / "audio").iterdir())
    wav[3].write_bytes(wav[3].read_bytes()[:60])
    wav[5].unlink()
    scipy.io.wavfile.write(wav[7], 8000, np.ones(50, np.int16))
    for i, says in ((3, "is cut short"), (5, "is not there"), (7, "8000 Hz: expected 16000")):
        refuses(NoteError, f"{wav[i].name}.*{says}.*--skip-damaged", nsynth.load, tmp_path, 64,
                16000, (i + 59, i + 60))                            # a good one first
    assert not list((tmp_path / "packed").iterdir())                # no half a pack
    for name in ("a_060.wav", "nsynth-test/b_061.WAV", "audio/more.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    notes = nsynth.load(tmp_path, 64, 16000, skip_damaged=True)
    assert sorted(notes.pitch) == [60, 61, 62, 64, 66, 68, 69, 70, 71]
    report = nsynth.describe(*nsynth.split(notes))
    assert "kept 9 of 15 notes" in report and "is cut short" in report
    assert "dropped 3 because no examples.json names" in report

def test_notes_are_packed_once_and_again_when_their_files_change(tmp_path, monkeypatch, capsys):
    twelve_notes(tmp_path)
    reads, first_seconds = [], nsynth._first
    monkeypatch.setattr(nsynth, "_first", lambda *args: reads.append(0) or first_seconds(*args))
    for _ in range(2):
        notes = nsynth.load(tmp_path, 64, 16000)
        assert len(reads) == 12 and isinstance(notes.audio, np.memmap)
    [folder] = (tmp_path / "packed").iterdir()
    assert len(nsynth.load(folder, 64, 16000)) == 12                # by its own name, too
    refuses(NoteError, "^[^ ]* was packed with length 64, and 65 is asked for$", nsynth.load,
            folder, 65, 16000)
    nsynth.load(tmp_path, 32, 16000)                                # other settings: beside it
    assert len(list((tmp_path / "packed").iterdir())) == 2 and len(reads) == 24
    for _ in range(2):
        nsynth.main([str(tmp_path), "--length", "1", "--pack", str(tmp_path / "here")])
        assert len(list((tmp_path / "here").iterdir())) == 1 and len(reads) == 36
    refuses(NoteError, "cannot pack .*; make room there, or name .*--pack", nsynth.load, tmp_path,
            64, 16000, pack=tmp_path / "examples.json")
    assert capsys.readouterr().err == ""
    add_note(tmp_path, "flute_acoustic_000-070-100")
    assert len(nsynth.load(tmp_path, 64, 16000)) == 13
    wav = tmp_path / "audio" / "flute_acoustic_000-070-100.wav"
    scipy.io.wavfile.write(wav, 16000, np.full(60, 7, np.int16))    # examples.json is the same
    assert nsynth.load(tmp_path, 64, 16000).audio[-1].tolist() == [7] * 60 + [0] * 4
    assert capsys.readouterr().err.count("from files that have changed since; packing") == 2

def test_a_damaged_pack_is_never_a_wrong_note(tmp_path):
    data = twelve_notes(tmp_path)
    sound = nsynth.load(data, 64, 16000).waves(range(12))
    [folder] = (data / "packed").iterdir()

    def look():
        notes = nsynth.load(folder, 64, 16000)
        return notes.waves(range(len(notes))), notes.pitch.tolist()

    assert sum(damage(path, 500, look, lambda found: same(found, (sound, [*range(60, 72)])),
                      NoteError, str(folder)) for path in [*folder.iterdir()]) > 700
    for absurd in ("[" * 100_000, '[1, {"notes": 1e999}]', "[1, 2, 3]"):
        (folder / "packed.json").write_text(absurd)                 # of data that are there:
        assert torch.equal(nsynth.load(data, 64, 16000).waves(range(12)), sound)    # packed again

# ---- nsynth.py: WAV files, and your own recordings ----
def wav_bytes(samples, rate=16000):
    file = io.BytesIO()
    scipy.io.wavfile.write(file, rate, samples)
    return file.getvalue()

GOOD = wav_bytes(np.arange(1000, dtype=np.int16))

def test_wav_round_trip_agrees_with_scipy_and_what_is_no_wave_is_refused():
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    nsynth.write_wav("a.wav", torch.from_numpy(samples / 32768), 16000)
    rate, theirs = scipy.io.wavfile.read("a.wav")
    assert rate == 16000 and theirs.dtype == np.int16 and np.array_equal(theirs, samples)
    scipy.io.wavfile.write("a.wav", 22050, samples)
    ours, rate = nsynth.read_sound("a.wav")
    assert rate == 22050 and ours.dtype == np.int16 and np.array_equal(ours, samples)
    assert np.array_equal(nsynth.read_sound("a.wav", seconds=0.1)[0], samples[:2205])
    nsynth.write_wav("a.wav", torch.tensor([2.0, -2.0, 1.0, -1.0, 0.5]), 8000)
    assert nsynth.read_sound("a.wav")[0].tolist() == [32767, -32768, 32767, -32768, 16384]
    os.mkdir("b.wav")
    for path, wave, says in (
            *(("c.wav", wave, "c.wav: expected a wave of floats with one axis") for wave in (
                torch.tensor([0.0, float("nan")]), np.array([np.inf, 0.0]), torch.zeros(2, 3),
                torch.zeros(0), np.zeros(4, np.int16))),
            ("nowhere/c.wav", torch.zeros(4), "c.wav"), ("b.wav", torch.zeros(4), "b.wav")):
        refuses(NoteError, says, nsynth.write_wav, path, wave, 8000)
    assert sorted(os.listdir()) == ["a.wav", "b.wav"]               # no .part left

@pytest.mark.parametrize("data, says", [
    (b"", "it is empty"), (b"ID3 this is an mp3" * 9, "not a WAV.*ffmpeg -i"),
    (GOOD[:20], "cut short"), (GOOD[:-500], "is cut short: 1,500 of 2,000"),
    (wav_bytes(np.zeros(0, np.int16)), "no sound"), (wav_bytes(np.array([0.5, np.nan])), "nan"),
    (wav_bytes(np.array([4e4])), "from -1 to 1"), (GOOD[:20] + b"\7" + GOOD[21:], "MULAW"),
    *((GOOD[:24] + struct.pack("<II", rate, 2 * rate) + GOOD[32:], f"at {rate:,} Hz: expected")
      for rate in (0, 999, 10 ** 9))])
def test_read_sound_names_file_and_fault(tmp_path, data, says):
    (tmp_path / "damaged.wav").write_bytes(data)
    refuses(NoteError, f"damaged.wav: .*{says}", nsynth.read_sound, tmp_path / "damaged.wav")
    for path, says in ((tmp_path / "none.wav", "is not there$"), (tmp_path, "cannot read")):
        refuses(NoteError, says, nsynth.read_sound, path)

@pytest.mark.parametrize("head, size", [(b"RIFF", 2 ** 32 - 1), (b"RIFF", 0x7FFFF000),
                                        (b"RF64", 2 ** 32 - 1)])
def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end(tmp_path, head, size):
    size = struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(head + size + GOOD[8:40] + size + GOOD[44:])
    assert nsynth.read_sound(tmp_path / "a.wav")[0].tolist() == list(range(1000))

def test_a_long_file_costs_no_memory(tmp_path):
    size, start = 600 * 44100 * 4, wav_bytes(np.full((44100, 2), 9999, np.int16), 44100)
    with open(tmp_path / "a_060.wav", "wb") as file:    # ten minutes of stereo, mostly a hole
        file.write(start[:40] + struct.pack("<I", size) + start[44:])
        file.truncate(44 + size)
    tracemalloc.start()
    notes = nsynth.load(tmp_path, 64000, 16000)
    assert tracemalloc.get_traced_memory()[1] < 1.2e8 and notes.audio[0, 100:15000].min() > 9000
    tracemalloc.stop()

def test_read_sound_survives_any_damage(tmp_path):
    (tmp_path / "a.wav").write_bytes(GOOD)
    damage(tmp_path / "a.wav", 1000, lambda: nsynth.read_sound(tmp_path / "a.wav"), lambda found: (
        len(found[0]) and np.isfinite(found[0]).all() and 1000 <= found[1] <= 384_000),
        NoteError, "a.wav", head=48)

@pytest.mark.parametrize("names, pitch", [
    ("guitar_acoustic_000-060-100 take_060 take_C4 m60 note60 60-piano C-4 C_4 000-060 b_4_060 "
     "2021-03-04_060 079-C4-060 01-take-060", 60),
    ("F#3", 54), ("Bb-1", 10), ("piano-a4-loud A4v3", 69), ("Cello_Gs2_3", 44), ("take-12", 12),
    ("A0v1", 21), ("D#4v12", 63), ("x_G9", 127), ("take1_c♯5", 73),
    ("note_7 Cello A440 x_G#9 x_200 take_2 take_02 2021-03-04 2021-03-04_12-30-55 20210304 mix3 "
     "mix60 C4_to_E4 C4_take_A1 sulG.G3B3 E4_mic_B2 60-take-72 take_a_4 v2.0", None)])
def test_pitch_is_read_from_a_files_name(names, pitch):
    for name in names.split():
        assert nsynth.pitch_of(name) == pitch, name
    for name in ("C4 take A1", "E4 mic B2", "Recording 2021-03-04 12-30-55"):
        assert nsynth.pitch_of(name) is None

def test_own_recordings_of_every_kind_become_notes(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    late = np.concatenate([np.zeros(22050), tone])                  # after half a second
    (tmp_path / "flute").mkdir()
    for name, data in (("a_C4.wav", (late * 32767).astype(np.int16)),
                       ("flute/b-061-100.WAV", (late * 127 + 128).astype(np.uint8)),
                       ("c_062.wav", np.stack([late, late], 1).astype(np.float32)),
                       ("d_063.wav", (late * (2 ** 31 - 1)).astype(np.int32)), ("e.wav", late),
                       ("g_066.wav", (late * 32768).astype(np.float32)), ("no pitch.wav", late),
                       ("low_012.wav", late), ("silent_067.wav", np.zeros(100))):
        scipy.io.wavfile.write(tmp_path / name, 44100, data)
    pcm24 = b"".join(int(x * 2 ** 23).to_bytes(3, "little", signed=True) for x in late)
    header = struct.pack("<4sI4s4sIHHIIHH4sI4s4sI", b"RIFF", 48 + len(pcm24), b"WAVE", b"fmt ", 16,
                         1, 1, 44100, 3 * 44100, 3, 24, b"bext", 3, b"odd", b"data", len(pcm24))
    (tmp_path / "f_065.wav").write_bytes(header + pcm24)           # with what an editor adds
    (tmp_path / "cut_068.wav").write_bytes((tmp_path / "a_C4.wav").read_bytes()[:9999])
    (tmp_path / "h_070.flac").write_bytes(b"fLaC")
    (tmp_path / "pitches.csv").write_text("file,pitch\ne.wav,E4\n")
    notes = nsynth.load(tmp_path, 8000, 16000)
    assert sorted(zip(notes.pitch, notes.family)) == [
        (60, "other"), (61, "flute"), *((pitch, "other") for pitch in range(62, 67))]
    assert (notes.qualities == -1).all()
    for x in notes.waves(range(7)).numpy():
        first = np.flatnonzero(np.abs(x) > 0.05)[0] / 16000         # 5 ms, and a 2 ms frame
        assert 0.004 < first < 0.009 and abs(spectral_peak(x[400:], 16000, 440) - 440) < 0.1
        assert np.abs(x).max() == pytest.approx(0.5, abs=0.02)
    report = nsynth.describe(*nsynth.split(notes, share=1))
    for reason in (".*cut_068.wav: .*cut short", ".*silent_067.wav is silent", "the pitch is out",
                   ".*no pitch.wav tells no pitch", "it is a .flac file: convert it"):
        assert re.search(f"dropped 1 because {reason}", report), reason
    for i in range(300):                                            # still a short sentence
        (tmp_path / f"file-{i}.wav").write_bytes(b"?")
    assert len(refuses(NoteError, "none of the 312 .* for other reasons", nsynth.load, tmp_path,
                       64, 16000, (1, 2))) < 1500

@pytest.mark.parametrize("table, says", [
    ("file,pitch\na.wav,high", "line 2, 'a.wav,high'"), ("a.wav,60\nb.wav,200", "line 2"),
    ("a.wav,60\nbb.wav,61", "line 2, 'bb.wav,61': expected a file that is there"),
    ("a.wav,60\nb,61\na,62", "line 3, 'a,62': .*no other line"),
    ('a,"' + "x" * 200_000, "cannot read .*field larger"), ("caf\udce9.wav,60", "cannot read")])
def test_pitches_csv_is_checked(tmp_path, table, says):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(GOOD)
    (tmp_path / "pitches.csv").write_bytes(os.fsencode(table))
    refuses(NoteError, says, nsynth.load, tmp_path, 800, 16000)
    (tmp_path / "pitches.csv").write_text("a.wav, 60\nb,C5\n")
    assert sorted(nsynth.load(tmp_path, 800, 16000).pitch) == [60, 72]

def test_file_names_of_any_bytes_are_read_and_packed(tmp_path, capsys):
    for name in (b"caf\xe9_060.wav", "a\u2028b_061.wav".encode(), b"a\nb_062.wav", b"\xe9.wav"):
        try:
            (tmp_path / os.fsdecode(name)).write_bytes(GOOD)
        except OSError:
            pytest.skip("this disk takes no such names")
    for _ in range(2):                    # packed, and opened again
        notes = nsynth.load(tmp_path, 800, 16000)
        assert sorted(notes.name) == ["a?b_061", "a?b_062", "café_060"]
    nsynth.main([str(tmp_path), "--length", "0.05"])
    assert "/é.wav tells no pitch" in capsys.readouterr().out

# ---- nsynth.py: the orchestra ----
def spectral_peak(x, rate, near):
    """The strongest peak within a semitone of `near`, in Hz, by a parabola through its top."""
    size = 2 ** 18
    power = np.log(np.abs(np.fft.rfft(x * np.blackman(len(x)), size)) + 1e-12)
    low, high = (int(near * ratio * size / rate) for ratio in (2 ** (-1 / 12), 2 ** (1 / 12)))
    i = low + power[low:high].argmax()
    assert low < i < high - 1, "no peak, only a slope"
    a, b, c = power[i - 1:i + 2]
    return (i + 0.5 * (a - c) / (a - 2 * b + c)) * rate / size

def repeats(x, rate, hz):
    """How well a sound repeats after 1 / hz s: its autocorrelation there over that at 0."""
    power = np.abs(np.fft.rfft(x * np.blackman(len(x)))) ** 2
    turns = np.arange(len(power)) * rate / len(x) / hz
    return power @ np.cos(2 * np.pi * turns) / power.sum()

def cents(f, pitch):
    return 1200 * np.log2(f / hertz(pitch))

@pytest.fixture(scope="module")
def orchestras():
    """Notes of an octave, short; then full notes at pitches spread over the range."""
    return [nsynth.load("orchestra", 4000, 8000, (60, 71)), *(
        nsynth.load("orchestra", 64000, 16000, (p, p)) for p in (24, 37, 50, 63, 76, 84))]

def test_orchestra_has_many_instruments_and_is_the_same_every_time(orchestras):
    octave = orchestras[0]
    np.random.seed(1)
    torch.manual_seed(1)
    some = nsynth.load("orchestra", 4000, 8000, (64, 64), families=("reed",))
    assert len(some) == 4
    for i, name in enumerate(some.name):  # nor does a note depend on what it is made with
        assert np.array_equal(some.audio[i], octave.audio[octave.name == name][0])
    assert set(octave.family) == set(nsynth.FAMILIES) - {"synth_lead"}
    timbres = {name.rsplit("-", 2)[0] for name in octave.name}
    assert len(timbres) >= 12 and len(set(octave.name)) == len(octave) == len(timbres) * 12 * 2

def test_orchestra_is_in_tune(orchestras):
    for notes in orchestras:
        held = notes.audio[:, :notes.audio.shape[1] * 3 // 4] / 32768
        for name, pitch, x in zip(notes.name, notes.pitch, held):
            peak = spectral_peak(x, notes.sample_rate, hertz(pitch))
            assert abs(cents(peak, pitch)) < 5, name
            assert repeats(x, notes.sample_rate, hertz(pitch)) > 0.7, name      # no octave below

def test_orchestra_levels_and_edges(orchestras):
    for notes in orchestras:
        x = notes.audio / 32768
        peak = np.abs(x).max(1)
        assert 0.3 < peak.min() and peak.max() < 0.85 and peak.std() > 0.05
        soft = np.array([name.endswith("050") for name in notes.name])
        assert peak[soft].max() < peak[~soft].min()
        assert np.abs(x.mean(1)).max() < 2e-3                       # no DC
        assert not x[:, 0].any() and np.abs(x[:, -4:]).max() < 1e-3  # no click at either end
        tail = notes.sample_rate // 50
        assert (np.abs(x[:, -tail:]).max(1) < 0.6 * peak).all()
        assert (x[:, :tail * 10].std(1) > 0.02).all()               # sounding at once

def test_held_notes_last_and_struck_ones_fade(orchestras):
    for notes in orchestras[1:]:
        early, late, end = (notes.audio[:, part].std(1) for part in (
            slice(8000, 16000), slice(36000, 44000), slice(62000, 64000)))
        rings = np.array([nsynth.TIMBRES[name.split("-")[0]][3] > 0 for name in notes.name])
        assert (late < 0.7 * early)[rings].all()
        assert (np.abs(np.log(late / early)) < np.log(1.25))[~rings].all()
        assert (end < 0.06 * early).all()                           # released at 3 s

def test_timbres_differ_and_soft_is_duller(orchestras):
    middle, k = orchestras[4], np.arange(1, 25)
    power = np.abs(np.fft.rfft(middle.audio[:, :48000])) ** 2       # in bins of 1/3 Hz
    harmonics = np.rint(hertz(63) * k * 3).astype(int)
    power = power[:, harmonics[:, None] + np.arange(-30, 31)].sum(2)
    power = power / power.sum(1, keepdims=True)                     # (N, 24)
    soft = np.array([name.endswith("050") for name in middle.name])
    distance = scipy.spatial.distance.pdist(10 * np.log10(power[~soft] + 1e-7)) / math.sqrt(24)
    assert distance.min() > 2 and distance.mean() > 10
    assert (power[soft] @ k < power[~soft] @ k + 0.05).all()

def test_nsynth_command(tmp_path, capsys):
    flags = ["--length", "0.1", "--rate", "8000", "--pitches", "C4-61"]
    nsynth.main([*flags, "--families", "reed,organ", "--out", str(tmp_path / "o")])
    nsynth.main([str(tmp_path / "o"), *flags, "--sources", "all"])
    assert "kept 16 of 16 notes, 0.1 s at 8,000 Hz" in capsys.readouterr().out
    assert re.search("none is not there", refusal(nsynth, tmp_path / "none"))
    assert capsys.readouterr().out == ""
    for bad in (["--length", "nan"], ["--pitches", "high"]):
        refusal(nsynth, *bad, status=2)

# ---- nsynth.py: TFRecord files ----
# Their writer here shares nothing with the reader: messages from their fields, a CRC bit by bit.

def slow_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF

def masked(crc):
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2 ** 32)

def record(payload):
    head = struct.pack("<Q", len(payload))
    return head + masked(slow_crc(head)) + payload + masked(slow_crc(payload))

def varint(number):
    number %= 2 ** 64                     # negative ones as + 2^64, in ten bytes
    *more, last = [number >> k & 127 for k in range(0, max(number.bit_length(), 1), 7)]
    return bytes(128 + part for part in more) + bytes([last])

def proto(number, value):
    """One field of bytes, with their length before them."""
    return varint(number * 8 + 2) + varint(len(value)) + value

def feature(*values):
    """A Feature of bytes, ints or floats."""
    kind = {bytes: 1, float: 2, int: 3}[type(values[0])]
    if kind > 1:
        values = [struct.pack(f"<{len(values)}f", *values) if kind == 2
                  else b"".join(map(varint, values))]
    return proto(kind, b"".join(proto(1, value) for value in values))

def message(features):
    """A tf.train.Example of {name: Feature}; a feature that is None is left out."""
    return proto(1, b"".join(proto(1, proto(1, name.encode()) + proto(2, value))
                             for name, value in features.items() if value is not None))

def original(pitch=60, audio=(0.5, -0.25), /, **more):
    """A record of a note in the schema of NSynth's own files, with `more` features or others."""
    return record(message({
        "note_str": feature(f"guitar_acoustic_000-{pitch:03}-100".encode()),
        "pitch": feature(pitch), "sample_rate": feature(16000), "audio": feature(*audio),
        "instrument_family_str": feature(b"guitar"), "instrument_family": feature(3),
        "instrument_source_str": feature(b"acoustic"), "instrument_source": feature(0),
        "qualities": feature(0, 1, *[0] * 8), "qualities_str": feature(b"dark"), **more}))

def read(path):
    """The notes, and the faults, that are found at a path."""
    reader, *files = nsynth._find(str(path))
    found = list(reader(*files))
    return [[one for one in found if isinstance(one, kind)] for kind in (nsynth.Entry, NoteError)]

def test_crc_has_the_published_values_and_those_of_one_bit_by_bit():
    for data, crc in ((b"", 0), (b"123456789", 0xE3069283),         # the catalogue of CRCs
                      (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43),    # RFC 3720, B.4
                      (bytes(range(32)), 0x46DD794E), (bytes(range(31, -1, -1)), 0x113FDB5C)):
        assert slow_crc(data) == crc and nsynth._crc32c(data) == masked(crc)
    rng = np.random.default_rng(0)
    for n in (1, 4, 7, 8, 9, 5680, 5681, 5682, 45475, 45476, 45477, 80061):
        data = rng.bytes(n)               # where another fold begins, and some in between
        assert nsynth._crc32c(data) == masked(slow_crc(data)), n

def test_records_of_tensorflow_are_read(tmp_path):
    data = REFERENCE["tfrecord"].tobytes()
    (tmp_path / "a.tfrecord").write_bytes(data)
    (tmp_path / "nsynth-valid.tfrecord.gz").write_bytes(gzip.compress(data))
    for path in tmp_path.iterdir():
        (a, b), faults = read(path)
        part = "valid" * ("valid" in path.name)
        assert a[:7] == ("brass_acoustic_004-061-100", 61, "brass", "acoustic", part, [0] * 10,
                         f"{path}, record 1") and not faults
        assert b[:4] == ("reed_acoustic_009-042-100", 42, "reed", "acoustic")
        for entry, sha in ((a, "2698efda9a385b15050e2f36798df7be"),
                           (b, "8d1a9761b92d748e0008e575b1d9dbc4")):
            audio, rate = entry.sound(4)
            assert rate == 16000 and audio.dtype == np.int16 and audio.shape == (4000,)
            floats = (audio / 32768).astype("<f4").tobytes()
            assert hashlib.sha256(floats).hexdigest()[:32] == sha  # as TensorFlow reads them
    assert len(nsynth.load(f"{tmp_path}/*.tfrecord", 4000, 16000)) == 2     # a pattern

def test_what_a_record_says_is_read_whole():
    samples = np.arange(-32768, 32768)
    floats = [*(samples / 32768).tolist(), 1.0, -3.0, 3e38, 0.4 / 32768, 0.6 / 32768]
    # As TensorFlow wrote the flags of a note that has fast_decay and long_release.
    flags = b"\x1a\x0c\n\n\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00"
    numbers = {"instrument_family_str": None, "instrument_family": feature(7),
               "instrument_source_str": None, "instrument_source": feature(2),
               "note_str": feature(b"reed_synthetic_000-062-100")}
    Path("a.tfrecord").write_bytes(original(60, floats) + original(61, qualities=flags)
                                   + original(62, qualities=None, **numbers))
    (a, b, c), _ = read("a.tfrecord")
    assert samples_of(a) == [*samples, 32767, -32768, 32767, 0, 1]
    assert a.qualities == [0, 1] + [0] * 8 and b.qualities == [0, 0, 0, 1, 1] + [0] * 5
    assert (c.family, c.source, c.qualities) == ("reed", "synthetic", [-1] * 10)

@pytest.mark.parametrize("features, says", [
    ({"pitch": None}, "pitch.*None"), ({"pitch": feature(-1)}, "pitch.*expected a whole"),
    ({"pitch": feature(60, 61)}, r"pitch.*\[60, 61\]"), ({"pitch": feature(b"60")}, "pitch"),
    ({"audio": None}, "audio"), ({"audio": feature(1, 2)}, "audio.*expected floats"),
    ({"audio": proto(2, b"")}, "audio"), ({"audio": proto(2, proto(1, bytes(7)))}, "buffer size"),
    ({"audio": feature(0.0, float("nan"))}, "audio"), ({"qualities": feature(b"1")}, "qualities"),
    ({"qualities": feature(*[0] * 9)}, r"qualities of note 'guitar.* is \[0.*: expected ten"),
    ({"qualities/dark": feature(1)}, r"qualities.* is \[None, 1"),
    ({"instrument_family_str": None, "instrument_family": feature(11)}, "instrument_family_str")])
def test_a_note_that_is_not_as_it_should_be_is_named_and_left_out(tmp_path, features, says):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(original(50) + original(60, **features) + original(70))
    notes, faults = read(path)
    assert [note.pitch for note in notes] == [50, 70]
    assert re.search(f"a.tfrecord, record 2: .*{says}.*; fetch the file", str(*faults))

def test_damage_is_named_and_what_is_sound_is_read(tmp_path):
    one, two, three = (original(pitch) for pitch in (50, 60, 70))
    packed, head = gzip.compress(one + two + three, mtime=0), struct.pack("<Q", 2 ** 60)
    huge = one + head + masked(slow_crc(head))
    nsynth._remainders()                  # a table made once
    for data, pitches, says in (
            (one + two.replace(b"guitar", b"sitar!") + three, [50, 70], "record 2: its checksum"),
            (one + b"?" + two[1:], [50], "record 2: the checksum of its length.* is lost"),
            (one + two[:5], [50], "record 2: .*breaks off"),
            (one + two[:90], [50], "record 2: the file breaks off.*lost"),
            (huge + one, [50], "record 2: .* longer than any note"),
            (packed[:-12], [50, 60], "record 3: .*end-of-stream"),
            (packed[:-8] + b"????" + packed[-4:], [50, 60, 70], "record 4: CRC check failed"),
            (gzip.compress(huge + bytes(2 ** 26)), [50], "record 2: the file breaks off"),
            (b"This is not a TFRecord file.", [], "record 1: the checksum of its length")):
        path = tmp_path / "damaged.tfrecord"
        path.write_bytes(data)
        tracemalloc.start()
        notes, faults = read(path)
        assert [note.pitch for note in notes] == pitches
        assert tracemalloc.get_traced_memory()[1] < 16e6            # what is there, and no more
        tracemalloc.stop()
        assert re.search(f"damaged.tfrecord, {says}.*; fetch the file again", str(*faults))
    refuses(NoteError, "record 1.* with --skip-damaged", nsynth.load, path, 4, 16000)

def test_no_mutation_of_a_file_gives_a_wrong_note(tmp_path):
    rng, path, silent = np.random.default_rng(0), tmp_path / "a.tfrecord", 0
    plain = b"".join(original(pitch, rng.uniform(-1, 1, 20).tolist()) for pitch in range(50, 53))
    packed = gzip.compress(plain, mtime=0)
    path.write_bytes(plain)
    right = [(*note[:6], samples_of(note)) for note in read(path)[0]]
    for turn in range(3000):
        path.unlink()                     # some disks wait when a file is written over
        path.write_bytes(record(mutate(original()[12:-4], rng)) if turn % 3 == 0 else
                         mutate(plain if turn % 3 == 1 else packed, rng))
        notes, faults = read(path)
        notes = [(*note[:6], samples_of(note)) for note in notes]
        if turn % 3:
            assert all(note in right for note in notes)
            silent += not faults
        else:                             # here the checksums are right, and the contents are not
            assert all(note[1] in range(128) and {*note[5]} <= {-1, 0, 1} for note in notes)
        assert all(f"{path}, record " in str(fault) for fault in faults)
    assert silent < 100                   # cut between records, or only GZIP's header changed

def tfds(folder, splits, version="2.3.3", config="gansynth_subset"):
    """A TFDS folder: {split: [pitches of a file, ...]} -> the folder of the version.

    A note has one quality, by its pitch's last digit, as NSynth's own page numbers them.
    """
    qualities = ("bright dark distortion fast_decay long_release multiphonic nonlinear_env "
                 "percussive reverb tempo-synced".split())
    folder = folder / "nsynth" / config / version
    folder.mkdir(parents=True)
    for split, shards in splits.items():
        for i, pitches in enumerate(shards):
            path = folder / f"nsynth-{split}.tfrecord-{i:05}-of-{len(shards):05}"
            path.write_bytes(b"".join(record(message({
                **{f"qualities/{quality}": feature(int(k == pitch % 10))
                   for k, quality in reversed([*enumerate(qualities)])},
                "id": feature(f"reed_synthetic_000-{pitch:03}-100".encode()),
                "pitch": feature(pitch), "audio": feature(pitch / 128), "f0/hz": feature(1.0, 2.0),
                "instrument/family": feature(7), "instrument/source": feature(2)}))
                for pitch in pitches))
    info = {"splits": [{"name": split, "shardLengths": [str(len(pitches)) for pitches in shards]}
                       for split, shards in splits.items()]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder

def samples_of(entry):
    return entry.sound(4)[0].tolist()

def test_a_tfds_folder_is_read_from_any_level(tmp_path):
    folder = tfds(tmp_path, {"train": [[50, 51, 52, 53], [54, 55, 56]], "test": [[57, 58, 59]],
                             "valid": [[]]}, "2.10.0", "gansynth_subset.f0_and_loudness")
    tfds(tmp_path, {"train": [[70]]}, "2.9.9")
    tfds(tmp_path, {"train": [[71]]}, "3.0.0", "full")
    tfds(tmp_path, {"train": [[72]]}, "3.0.0.incompleteX")     # as TFDS calls what it is writing
    for above in (folder, folder.parent, tmp_path / "nsynth", tmp_path):
        notes = sorted(read(above)[0], key=lambda entry: entry.pitch)
        assert [(entry.pitch, samples_of(entry), entry.part) for entry in notes] == [
            (pitch, [256 * pitch], "train" if pitch < 57 else "test") for pitch in range(50, 60)]
        assert np.array_equal([entry.qualities for entry in notes], np.eye(10))
        assert notes[1][:4] == ("reed_synthetic_000-051-100", 51, "reed", "synthetic")
    notes = nsynth.load(tmp_path, 4, 16000, sources=())
    assert [len(part) for part in nsynth.split(notes, by="folders")] == [7, 3]
    (tmp_path / "ids.csv").write_text("id\nreed_synthetic_000-052-100\nreed_synthetic_000-099-100")
    mine, rest = nsynth.split(notes, by=tmp_path / "ids.csv")
    assert mine.pitch.tolist() == [52] and len(rest) == 0

def test_what_a_tfds_folder_lacks_is_named(tmp_path):
    folder = tfds(tmp_path, {"train": [[50, 51], [52], [53]], "test": [[60]]})
    (folder / "nsynth-test.tfrecord-00000-of-00001").unlink()  # a split that was not fetched
    assert len(read(folder)[0]) == 4
    first, second = (folder / f"nsynth-train.tfrecord-0000{i}-of-00003" for i in (0, 1))
    data = first.read_bytes()
    first.write_bytes(data[:len(data) // 2])                   # cut between two records
    second.unlink()
    notes, faults = read(folder)
    assert [entry.pitch for entry in notes] == [50, 53]
    short, lacks = map(str, faults)
    assert f"{second}, record 1: No such file" in lacks
    assert f"{first.name}, record 2: the file holds 1 records: expected 2" in short
    for text in ("{", "[]", '{"splits": [{"name": "train", "shardLengths": [1e999]}]}'):
        (folder / "dataset_info.json").write_text(text)
        refuses(NoteError, "dataset_info.json", read, folder)

A, B = "guitar_acoustic_000-060-100", "reed_acoustic_001-061-050"

@pytest.mark.parametrize("text, parts", [
    (f"id,split\n{A},train\n{B},test\n", ["train", "test"]),
    (f'\ufeffsplit,pitch,"note_str"\r\ntrain,60,{A}\r\n\r\ntrain,60, {A} \r\ntest,61,"{B}"\r\n',
     ["train", "test"]),
    (f"{A}\n{B}\n", ["train", "train"]), (f"note,why\n{A},good\n", ["train"])])
def test_lists_of_notes_in_csv(text, parts):
    for name in (A, B, "reed_acoustic_001-062-050"):
        add_note(Path("notes"), name)
    Path("ids.csv").write_text(text, encoding="utf-8", newline="")
    split = nsynth.split(nsynth.load("notes", 64, 16000), by="ids.csv")
    for part, notes in zip(("train", "test"), split):
        assert notes.name.tolist() == [name for name, its in zip((A, B), parts) if its == part]

@pytest.mark.parametrize("data, says", [
    (b"id,split\n", "no note is in the training part"), (b"\x89PNG\r\n\xff", "cannot read"),
    (f"id,split\n{A},train\n{B}\n".encode(), f"line 3, '{B}': expected a note's name, and its"),
    (f"id,split\n{A},train\n,test\n".encode(), "line 3, ',test': expected"),
    (f"id\n{A}\n../{B}\n".encode(), "line 3, '../reed"), (f"{A}\nhello\n".encode(), "2, 'hello'"),
    (f"id,split\n{A},train\n{A},test\n".encode(), "line 3.*no other line that says otherwise")])
def test_a_list_that_cannot_be_used_is_named(orchestras, data, says):
    Path("ids.csv").write_bytes(data)
    assert "ids.csv" in refuses(NoteError, says, nsynth.split, orchestras[0], by="ids.csv")

# ---- notebooks/render_soundfont.py ----
FLUIDR3 = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
needs_fluidsynth = pytest.mark.skipif(not shutil.which("fluidsynth"), reason="needs fluidsynth")

@needs_fluidsynth
@pytest.mark.skipif(not FLUIDR3.exists(), reason=f"needs {FLUIDR3}")
def test_soundfont_becomes_a_folder_like_nsynths_and_is_in_tune(tmp_path):
    done = subprocess.run([sys.executable, render_soundfont.__file__, FLUIDR3, "--out", "out",
                           "--pitches", "60-62"], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split(" in ")[0].split(", ")) == [
        "0 silent", "3 nsynth-test", "3 nsynth-valid", "30 nsynth-train"]
    notes = nsynth.load("out", 64000, 16000)
    assert len(set(notes.family)) == 10 and set(notes.part) == {"train", "valid", "test"}
    for name, pitch, x in zip(notes.name, notes.pitch, notes.audio / 32768):
        assert 0.3 < np.abs(x).max() < 0.8, name
        assert abs(cents(spectral_peak(x[4000:44000], 16000, hertz(pitch)), pitch)) < 30, name
        assert repeats(x[4000:12000], 16000, hertz(pitch)) > 0.7, name          # no octave below
    # A note is the same, whatever is beside it.
    assert render_soundfont.main([str(FLUIDR3), "--out", str(tmp_path / "b"), "--instruments",
                                  "flute", "--pitches", "62"]) == 0
    a, b = tmp_path / "out" / "nsynth-test", tmp_path / "b" / "nsynth-test"
    note = "flute_acoustic_073-062-100"
    assert (a / f"audio/{note}.wav").read_bytes() == (b / f"audio/{note}.wav").read_bytes()
    entry = json.loads((b / "examples.json").read_text())[note]     # numbered as NSynth does
    assert [entry[key] for key in ("note", "instrument", "instrument_family", "instrument_source",
                                   "velocity")] == [(73 * 128 + 62) * 128 + 100, 73, 2, 0, 100]

@needs_fluidsynth
def test_what_cannot_be_rendered_is_named(tmp_path):
    (tmp_path / "cut.sf2").write_bytes(b"RIFF\xff\0\0\0sfbk")
    for argv, says in (([tmp_path / "none.sf2"], "none.sf2 is not a SoundFont .No such file"),
                       ([__file__], "is not a SoundFont .it does not start"),
                       ([tmp_path / "cut.sf2", "--pitches", "60"], "fluidsynth cannot play .*cut"),
                       (["a.sf2", "--instruments", "piano"], "'piano': expected mini, all"),
                       (["a.sf2", "--velocities", "0"], "velocities")):
        assert re.search(says, refusal(render_soundfont, *argv, "--out", tmp_path / "out")), argv
        assert not (tmp_path / "out").exists()

# ---- train.py -------------------------------------------------------------------------------
def tiny_settings(out="", **more):
    """A whole run in a second: notes of 256 samples at 2 kHz, three pitches, pictures of 8 x 64,
    stages that change at 16, 32, 48 and 64 examples."""
    return {"rep": "if", "hires": False, "length": 256, "sample_rate": 2000, "pitch_low": 60,
            "pitch_high": 62, "resolutions": 3, "latent": 4, "channel_base": 16, "channel_max": 8,
            "images": 72, "stable_images": 16, "fade_images": 16, "batch": 4, "tick_images": 16,
            "snapshot_images": 32, "checkpoint_images": 8, "device": "cpu", "out": str(out), **more}

def tiny_run(out, **more):
    return train.train(train.Config(**tiny_settings(out, **more)))

def tiny_notes(length=256):
    return nsynth.load("orchestra", length, 2000, (60, 62))

def tiny_state(images=0, **more):
    state = train.State(train.Config(**tiny_settings(**more)), tiny_notes())
    state.images = images
    return state

def flags(settings):
    """Settings as the command line has them."""
    return [f"--{'no-' * (value is False)}{name.replace('_', '-')}" + (
        "" if isinstance(value, bool) else f"={value}") for name, value in settings.items()]

def stop_after(monkeypatch, images, how, kind=train.State):
    """Let `how(state)` happen within the training step that comes to so many examples."""
    step = kind.step

    def wrapped(self):
        terms = step(self)
        if self.images == images:
            how(self)
        return terms

    monkeypatch.setattr(kind, "step", wrapped)

def same(a, b):
    """Whether two checkpoints' contents are equal to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

def last_checkpoint(run):
    contents = gansynth.load_checkpoint(gansynth.find_checkpoint(run))
    return {key: value for key, value in contents.items() if key != "config"}

def log_lines(run):
    return [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished tiny run."""
    return tiny_run(tmp_path_factory.mktemp("runs") / "finished")

# ---- train.py: one step ----
def test_draws_depend_on_seed_and_examples_only():
    cfg, counts = train.Config(batch=2000, latent=3), torch.tensor([1, 0, 3])
    draws = train.draw(cfg, counts, 8)
    assert same(draws, train.draw(cfg, counts, 8)) and draws.mix.shape == (2000, 1, 1, 1)
    for other in (train.draw(cfg, counts, 16), train.draw(replace(cfg, seed=1), counts, 8)):
        assert not any(torch.equal(a, b) for a, b in zip(draws, other))
    assert not torch.equal(draws.z_G, draws.z_D)
    weights, others = (tiny_state(seed=seed).nets.G.state_dict() for seed in (0, 1))
    assert not same(weights, others)
    for z, pitch in ((draws.z_G, draws.pitch_G), (draws.z_D, draws.pitch_D)):
        assert scipy.stats.kstest(z.flatten(), "norm").pvalue > 1e-3
        shares = np.bincount(pitch, minlength=3) / 2000
        np.testing.assert_allclose(shares, [0.25, 0, 0.75], atol=0.04)
    assert scipy.stats.kstest(draws.mix.flatten(), "uniform").pvalue > 1e-3

@pytest.mark.parametrize("images, progress, in_G, in_D", [
    (0, 0, "1.conv0 1.conv1 1.to_picture", "1.from_picture 1.conv0 1.conv1"),
    (24, 0.5, "1.conv0 1.conv1 1.to_picture 2.conv0 2.conv1 2.to_picture",
     "1.from_picture 1.conv0 1.conv1 2.from_picture 2.conv0 2.conv1"),
    (56, 1.5, "1.conv0 1.conv1 2.conv0 2.conv1 2.to_picture 3.conv0 3.conv1 3.to_picture",
     "1.conv0 1.conv1 2.from_picture 2.conv0 2.conv1 3.from_picture 3.conv0 3.conv1")])
def test_a_step_moves_every_parameter_that_takes_part_and_no_other(images, progress, in_G, in_D):
    state = tiny_state(images, ema=0.9)
    assert state.cfg.where(images)[0] == progress
    expected = {"G": in_G, "G_ema": in_G, "D": in_D}
    nets = {net: getattr(state.nets, net) for net in expected}
    before = {net: {name: p.clone() for name, p in nets[net].named_parameters()} for net in nets}
    state.step()
    for net, parts in expected.items():
        moving = {f"blocks.{part}" for part in parts.split()} | {"score", "pitch"}
        for name, p in nets[net].named_parameters():
            moved = not torch.equal(p, before[net][name])
            assert moved == (name.rsplit(".", 1)[0] in moving), (net, name)
    assert not any(p.requires_grad for p in state.nets.G_ema.parameters())

def test_real_notes_fade_with_the_network(monkeypatch):
    state, losses = tiny_state(20), Mock(wraps=gansynth.discriminator_losses)
    monkeypatch.setattr(gansynth, "discriminator_losses", losses)
    state.step()                          # progress 0.25, two blocks
    waves = state.notes.waves(nsynth.epoch_order(20, 4, len(state.notes), 0))
    real = state.cfg.spectrum().encode(waves).numpy()
    coarse = real.reshape(4, 2, 2, 4, 16, 4).mean(axis=(3, 5))
    fine = real.reshape(4, 2, 4, 2, 32, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(losses.call_args.args[1], 0.75 * np.kron(coarse, np.ones((2, 2)))
                               + 0.25 * fine, atol=1e-5)

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

@gpu
@pytest.mark.parametrize("images", [0, 24, 64])
def test_a_gpu_takes_the_same_steps(images, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    terms = {}
    for device in ("cpu", "cuda"):
        state = train.State(train.Config(**tiny_settings()), tiny_notes(), device)
        state.images = images
        terms[device] = [state.step() for _ in range(2)]
    for ours, theirs in zip(terms["cuda"], terms["cpu"]):
        for name in theirs:
            assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-3, abs=1e-4)

@gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_cuda_graph_takes_the_same_steps_to_the_last_bit(precision, monkeypatch, capsys):
    cfg = train.Config(**tiny_settings(stable_images=32, fade_images=32, precision=precision))
    device, ends = train.prepare(replace(cfg, device="cuda")), []
    for eager in (math.inf, 3):
        monkeypatch.setattr(train.Recorded, "EAGER", eager)
        state, losses = train.State(cfg, tiny_notes(), device), []
        while state.images < 160:                                   # both ends of both fades
            losses.append([term.item() for term in state.step().values()])
        ends.append((losses, [part.state_dict() for part in vars(state.nets).values()]))
    assert state.run.parts and same(*ends) and not capsys.readouterr().err

class Tape(TorchDispatchMode):
    """Does on a CPU what a CUDA graph does: keeps each kernel that runs while it is open, with its
    tensors, and runs them again."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.kernels.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, result in self.kernels:
            assert function is not torch.ops.aten._local_scalar_dense.default   # waits for a GPU
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

@pytest.fixture
def gpu_in_name(monkeypatch):
    """A device, cpu:0, that the code takes for a GPU: graphs are tapes, and recording a step leaves
    weights and averages as they were, since on a GPU it does not run it."""
    def record(recorded, inputs, record=train.Recorded.record):
        tensors = [x for part in vars(recorded.nets).values()
                   for x in tree_leaves(part.state_dict()) if isinstance(x, torch.Tensor)]
        before = [x.clone() for x in tensors]
        record(recorded, inputs)
        for x, old in zip(tensors, before):
            x.detach().copy_(old)

    monkeypatch.setattr(train.Recorded, "record", record)
    for name in ("graph_pool_handle", "current_stream", "set_device", "set_stream", "Stream",
                 "synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *of: None)
    for name, stand_in in (("graph", lambda tape, pool, stream: tape), ("CUDAGraph", Tape),
                           ("max_memory_allocated", lambda: 3e6),
                           ("mem_get_info", lambda: (1e12, 1e12))):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return "cpu:0"

def test_what_runs_on_a_gpu_only_trains_the_same_run(gpu_in_name, capsys):
    tiny_run("cpu")
    capsys.readouterr()
    tiny_run("gpu", device=gpu_in_name)
    said = capsys.readouterr()
    assert "the last stage will take 3 MB of cpu:0's memory" in said.out and not said.err
    assert same(last_checkpoint("cpu"), last_checkpoint("gpu"))
    lines = [[{**line, "seconds": 0, "examples_per_s": 0} for line in log_lines(run)]
             for run in ("cpu", "gpu")]
    assert lines[0] == lines[1]

def test_a_benchmark_on_a_gpu_has_a_row_for_every_way(gpu_in_name, monkeypatch, capsys):
    monkeypatch.setattr(train, "yardsticks", lambda *of: {"product": 1e11, "conv": 2e11})
    monkeypatch.setattr(train, "measure",
                        lambda *task, measure=train.measure: measure(*task[:-1], budget=0))
    monkeypatch.setattr(gansynth, "LAYOUT", gansynth.LAYOUT)        # and back
    train.main(["--bench", "--json", *flags(tiny_settings(device=gpu_in_name))])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ways = [(row["number"], row["kernels"], row["channels"]) for row in rows]
    assert ways == [way for way in itertools.product(
        ("tf32", "bf16"), ("eager", "graph"), ("last", "first")) for _ in range(3)]
    assert all(row["peak MB"] == 3 and 0 < row["% data"] < 100 for row in rows)

@pytest.mark.parametrize("ranks", [train.Ranks(), train.Ranks(size=2)], ids=["one", "two"])
def test_a_recorded_step_replays_as_it_ran(ranks, monkeypatch, gpu_in_name):
    """What can be seen of recording without a GPU: over five stages all that varies from step to
    step is read from tensors that stay where they are, and gradients are averaged in between."""
    state = train.State(train.Config(**tiny_settings(images=160)), tiny_notes(), "cpu", ranks)
    eager = train.State(state.cfg, tiny_notes(), "cpu", ranks)
    monkeypatch.setattr(train.Ranks, "average", lambda self, tensors: [x.mul_(0.5) for x in tensors]
                        if self.size == 2 else None)                # of two, one has none
    stages, replayed = set(), 0
    while state.images < 160:
        state.start_stage()
        if state.stage not in stages:
            state.run.eager = 1
        stages.add(state.stage)
        terms = {name: term.clone() for name, term in state.step().items()}
        assert same(terms, eager.step())
        for name, part in vars(state.nets).items():
            assert same(part.state_dict(), vars(eager.nets)[name].state_dict())
        replayed += bool(state.run.parts)
        assert len(state.run.parts) in (0, 1 if ranks.size == 1 else 5)
    assert len(stages) == 5 and replayed >= (30 if ranks.size == 1 else 10)

def test_a_gpu_has_a_number_and_is_freed_of_what_was_tried(monkeypatch):
    for name, stand_in in (("set_device", torch.cuda._utils._get_device_index), ("Stream", Mock()),
                           ("set_stream", Mock()), ("is_available", lambda: True)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(()))
    for device, name in (("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3")):
        assert train.prepare(train.Config(device=device)) == name
    assert train.prepare(train.Config(), 1) == "cuda:1"
    refuses(train.ConfigError, "'mps' is not there", train.prepare, train.Config(device="mps"))
    monkeypatch.undo()
    state = tiny_state()
    state.step()
    seen = weakref.ref(state)
    gc.disable()
    try:
        del state
        assert seen() is None             # nothing waits for Python's collector
    finally:
        gc.enable()

def test_where_no_graph_can_be_recorded_steps_go_on(monkeypatch, capsys):
    fault = "operation not permitted when stream is capturing\n"
    refuse = Mock(side_effect=RuntimeError(f"{fault}more"))
    for name, stand_in in (("graph_pool_handle", int), ("current_stream", int),
                           ("CUDAGraph", refuse)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    state, eager = tiny_state(), tiny_state()
    state.run.eager = 2
    for _ in range(4):                    # all of the first stage
        assert same(state.step(), eager.step())
    assert capsys.readouterr().err == f"no CUDA graph, so slower steps: {fault}"

def test_pictures_are_kept_at_the_stages_size_and_made_once(monkeypatch):
    state, made, encode = tiny_state(), [], Spectrum.encode
    notes, form = state.notes, (state.cfg.spectrum(), gansynth.downsample_to, "cpu")
    monkeypatch.setattr(Spectrum, "encode",
                        lambda self, wave: made.append(len(wave)) or encode(self, wave))
    keeping, fresh, other = (spectral.Pictures(notes, *form, memory) for memory in (1e9, 0, 1e9))
    order = torch.tensor([5, 64, 5, len(notes) - 1])                # the first of a group, too
    for size in map(state.cfg.architecture().size, (1, 2, 3)):
        kept = keeping(order, size)
        torch.testing.assert_close(kept, fresh(order, size), rtol=0, atol=1e-5)
        made.clear()
        assert torch.equal(keeping(order.flip(0), size), kept.flip(0)) and made == []
    assert torch.equal(other([6, 5, 70], size)[1:], keeping([5, 70], size))     # in any company

# ---- train.py: a run, stopped and resumed ----
def test_a_run_writes_log_checkpoints_pictures_and_sound(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        "checkpoint-00000056.pt", "checkpoint-00000064.pt", "checkpoint-00000072.pt",
        "log.jsonl", "snapshots"]                                   # the last three are kept
    assert sorted(path.name for path in (finished / "snapshots").iterdir()) == [
        f"{images:08}.{kind}" for images in (32, 64, 72) for kind in ("png", "wav")]
    sheet = read_png((finished / "snapshots" / "00000072.png").read_bytes())
    assert sheet.shape[0] == 4 * 192 + 3 * 4 and sheet.max() > 100  # 4 x 4 notes
    rate, samples = scipy.io.wavfile.read(finished / "snapshots" / "00000072.wav")
    assert len(samples) == 16 * 256 and rate == 2000 and samples.any()

    log = log_lines(finished)
    assert [line["images"] for line in log] == [8, 16, 24, 32, 40, 48, 56, 64, 72]
    for line in log:
        expected = gansynth.progress_at(line["images"], 3, 16, 16)
        assert (line["progress"], line["stage"]) == expected[:2]
        assert {"G_score", "G_pitch", "D_real", "D_fake", "D_drift", "D_pitch", "D_penalty"} < {
            *line} and all(math.isfinite(value) for value in line.values())
    adam = last_checkpoint(finished)["adam_G"]                      # fresh since 64, a new stage
    assert adam["t"] == 2 and len(adam["v"]) == 18

def test_notes_from_disk_train_as_the_built_in_ones_do():
    nsynth.save(tiny_notes(), "notes")
    disk = tiny_run("a", data="notes", images=24, pack="pack")
    assert same(last_checkpoint(disk), last_checkpoint(tiny_run("b", images=24)))   # every bit
    assert Path("pack").is_dir() and not Path("notes/packed").exists()
    wav = next(Path("notes/audio").iterdir())
    wav.write_bytes(wav.read_bytes()[:-9])
    refuses(NoteError, wav.stem, tiny_run, "c", data="notes", images=8)
    assert not Path("c").exists()

@pytest.mark.parametrize("more", [{}, {"progressive": False, "penalty_units": "scaled"}])
def test_the_waveform_gan_trains_resumes_and_is_heard(tmp_path, more):
    run = tiny_run("run", rep="waveform", **more)
    tiny_run("half", rep="waveform", **{**more, "images": 40})
    train.main(["--resume", "half", "--images", "72"])
    assert same(last_checkpoint(run), last_checkpoint("half"))
    assert all(math.isfinite(line["D_penalty"]) for line in log_lines(run))
    assert last_checkpoint(run)["architecture"]["growth"] == (4, 1)
    assert len(run_sample(run, tmp_path / "notes", "--scale")[0]) == 3

@pytest.mark.parametrize("at, number, status", [        # mid-fade, boundary, between checkpoints
    (24, signal.SIGINT, "130"), (32, signal.SIGTERM, "143"), (36, signal.SIGINT, "130")])
def test_an_interrupted_run_resumes_bit_for_bit(finished, monkeypatch, capsys, at, number, status):
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=status):
        stop_after(patch, at, lambda state: os.kill(os.getpid(), number))
        tiny_run("run")
    assert Path("run", f"checkpoint-{at:08}.pt").exists()
    assert "python train.py --resume run" in capsys.readouterr().out
    train.main(["--resume", "run"])
    assert same(last_checkpoint("run"), last_checkpoint(finished))

def test_a_finished_run_goes_on_bit_for_bit_however_it_is_looked_at(finished):
    run = tiny_run("run", images=32, snapshot_images=8, tick_images=4)
    assert "examples: add --images with more" in refusal(train, "--resume", run, status=2)
    train.main(["--resume", "run", "--images", "72"])
    assert same(last_checkpoint(run), last_checkpoint(finished))
    assert [line["images"] for line in log_lines(run)] == [*range(4, 76, 4)]

def test_resuming_takes_the_newest_good_checkpoint_and_drops_the_log_behind_it(finished, capsys):
    run = Path(shutil.copytree(finished, "run"))
    damaged = run / "checkpoint-00000072.pt"
    damaged.write_bytes(damaged.read_bytes()[:-999])
    with open(run / "log.jsonl", "a", encoding="utf-8") as log:
        log.write('{"ima')
    train.main(["--resume", str(run)])                              # from 64
    said = capsys.readouterr()
    assert f"passed over: {damaged}" in said.err and "is set aside as checkpoint-00" in said.out
    assert (run / "checkpoint-00000072.pt.old").exists()
    assert same(last_checkpoint(run), last_checkpoint(finished))
    assert [line["images"] for line in log_lines(run)] == [8, 16, 24, 32, 40, 48, 56, 64, 72]

def test_what_cannot_be_resumed_is_one_sentence(finished):
    contents = gansynth.load_checkpoint(gansynth.find_checkpoint(finished))
    config = {key: value for key, value in contents["config"].items() if key != "lr"}
    path = Path("checkpoint-00000064.pt")
    for wrong, says in (({"config": config}, "settings are not those"),
                        ({"config": None}, "lacks config"),
                        ({"counts": contents["counts"] + 1}, "have changed since"),
                        ({"adam_G": {}}, "do not fit together"), ({"stage": "x"}, "lacks stage"),
                        ({"D": contents["G"]}, "do not fit together")):
        torch.save({**contents, **wrong}, path)
        assert says in refusal(train, "--resume", path, "--images", 96)
    path.write_bytes(b"no")
    assert "damaged, or not a checkpoint" in refusal(train, "--resume", path)
    assert "no whole checkpoint" in refusal(train, "--resume", "none")
    for wrong in ("--batch=8", "--rep=phase", "--lr=1e-3", "--model=wavenet", "--preset=workshop",
                  "--out=elsewhere"):
        assert "contradict" in refusal(train, "--resume", finished, wrong, status=2)

def test_a_second_interrupt_acts_at_once():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)           # as under nohup
    try:
        with pytest.raises(KeyboardInterrupt), train.interruptible() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals == [signal.SIGINT]
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

@pytest.mark.parametrize("script", ["nsynth", "train", "sample", "metrics"])
def test_ctrl_c_while_packages_load_is_no_traceback(tmp_path, script):
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "torch.py").write_text("import numpy\n")
    done = subprocess.run([sys.executable, HERE / f"{script}.py"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert done.returncode in (130, -signal.SIGINT) and not done.stderr

def test_numbers_that_are_none_stop_the_run_and_are_never_saved(monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 20, lambda state: state.nets.G.blocks[1].conv0.weight.data.fill_(np.nan))
        assert ("steps 5 to 6: the loss term G_score reached nan; the last good checkpoint is "
                "run/checkpoint-00000016.pt; start a new run") in refusal(
                    train, *flags(tiny_settings("run")))
    assert len(gansynth.checkpoints("run")) == 2
    stop_after(monkeypatch, 16, lambda state: state.nets.D.score.bias.data.fill_(np.nan))
    refuses(train.TrainingError, "16 examples D holds NaN.*checkpoint-00000008", tiny_run, "other")
    assert len(gansynth.checkpoints("other")) == 1

# ---- train.py: many processes ----
def torchrun(ranks, settings):
    """Start train.py so, in as many processes; one more start if one of them dies."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(ranks), "--max-restarts", "1", "--monitor-interval", "0.2", HERE / "train.py",
         "--preset", "paper", *flags(settings)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)

def ended(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err

def in_one_process(cfg, ranks):
    """What so many ranks come to: each loss is the mean over their groups of notes."""
    notes = nsynth.split(tiny_notes(), cfg.seed)[0]
    state = train.State(cfg, notes)
    nets, weights = state.nets, train.Config()
    for images in range(0, cfg.images, ranks * cfg.batch):
        progress, stage, blocks = cfg.where(images)
        if stage != state.stage:
            state.stage = stage
            nets.start_stage(blocks)
        groups = range(images, images + ranks * cfg.batch, cfg.batch)
        given = [(train.draw(cfg, state.counts, at), state.turn(at)) for at in groups]
        growth = blocks, progress - (blocks - 2) if stage % 2 else None
        nets.D.requires_grad_(False)
        for draws, _ in given:
            loss, _ = gansynth.generator_loss(nets.G, nets.D, draws.z_G, draws.pitch_G, growth,
                                              weights)
            (loss / ranks).backward()
        nets.adam_G.step(cfg.lr)
        gansynth.ema_update(nets.G_ema.built_parameters(blocks), nets.G.built_parameters(blocks),
                            cfg.ema ** ranks)
        nets.D.requires_grad_(True)
        for draws, turn in given:
            real = gansynth.blend(state.pictures(turn, nets.G.arch.size(blocks)), growth,
                                  nets.G.arch)
            fake = nets.G(draws.z_D, draws.pitch_D, growth).detach()
            for loss, _ in gansynth.discriminator_losses(
                    nets.D, real, state.labels[turn], fake, draws.mix, growth, weights):
                (loss / ranks).backward()
        nets.adam_D.step(cfg.lr)
    return nets

@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_are_one_process_that_averages_their_groups(ranks):
    settings = tiny_settings("run", images=20 * ranks, stable_images=4 * ranks,
                             fade_images=4 * ranks)
    out, err = ended(torchrun(ranks, settings))         # weights are compared at each checkpoint
    assert out.count("done: ") == 1 and "Traceback" not in err
    nets, contents = in_one_process(train.Config(**settings), ranks), last_checkpoint("run")
    for name in ("G", "D", "G_ema"):
        for ours, theirs in zip(contents[name].values(), vars(nets)[name].parameters()):
            off = (ours - theirs.detach()).abs()        # Adam makes much of gradients near zero
            assert (off > 1e-6).float().mean() < 0.01 and off.max() < 1e-5
    assert log_lines("run")[-1]["images"] == 20 * ranks

@pytest.mark.slow
def test_a_rank_that_dies_is_restarted_and_the_end_is_the_same():
    settings = tiny_settings("a", images=2000, stable_images=400, fade_images=400,
                             checkpoint_images=80, tick_images=80, snapshot_images=2000)
    ended(torchrun(2, settings))
    settings["out"] = "b"
    process = torchrun(2, settings)
    while len(gansynth.checkpoints("b")) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True,
                              check=True).stdout.split()
    os.kill(int(children[1]), signal.SIGKILL)
    assert "resuming" in ended(process)[0]
    assert same(*map(last_checkpoint, "ab"))
    lines = [[line["images"] for line in log_lines(run)] for run in "ab"]
    assert lines[0] == lines[1]
    # The same command once more has nothing to do; and with other ranks a run goes on.
    assert torchrun(1, settings).wait(120) != 0
    ended(torchrun(1, {**settings, "images": 2040}))
    assert gansynth.find_checkpoint("b").name == "checkpoint-00002040.pt"

def test_torchrun_needs_a_folder_and_the_papers_model(monkeypatch):
    monkeypatch.setattr(train.Ranks, "join", lambda: train.Ranks(size=2, elastic=True))
    for argv, says in ((flags(tiny_settings()), "add --out, so that it is found again"),
                       (["--model=wavegan", "--out=run"], "torchrun are for GANSynth's stages")):
        assert says in refusal(train, *argv, status=2)

# ---- train.py: settings, folders, the benchmark ----
def test_settings_layer_defaults_preset_flags(monkeypatch):
    paper = train.Config()
    assert (paper.rep, paper.hires, paper.progressive) == ("if-mel", True, True)
    assert (paper.lr, paper.batch, paper.ema, paper.images) == (8e-4, 8, 0.999, 11_000_000)
    assert (paper.penalty, paper.drift, paper.pitch_weight) == (10, 0.001, 10)
    assert paper.stable_images == paper.fade_images == 800_000
    assert paper.architecture() == gansynth.Architecture()

    workshop = train.PRESETS["workshop"]["gansynth"]
    cfg, line = train.new_settings("gansynth", "workshop", {"batch": 3})
    assert cfg == train.Config(**{**workshop, "batch": 3}) and "workshop (as asked)" in line
    assert train.new_settings("gansynth", "paper", {"progressive": False})[0].images == 5_000_000
    for given, blocks in (({}, 2), ({"rep": "if"}, 2), ({"rep": "phase"}, 3),
                          ({"rep": "waveform"}, 3), ({"progressive": False}, 3)):
        cfg = train.new_settings("gansynth", "workshop", given)[0]
        assert cfg.where(cfg.images - 1)[2] == blocks
    for gpu, changes in ((True, {}), (False, workshop)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        cfg, line = train.new_settings("gansynth", None, {})
        assert cfg == train.Config(**changes) and "GPU was found" in line

@pytest.mark.parametrize("wrong, says, status", [
    ("--batch 0", "batch is 0: expected a number of at least 1", 2), ("--seed=-1", "seed is", 2),
    ("--pitch-low 70 --pitch-high 62", "from 70 to 62", 2), ("--device abacus", "abacus", 2),
    ("--rep if --no-hires --length 256 --sample-rate 2000 --resolutions 9",
     "greater length, or 4 resolutions", 2), ("--length 100", "length, or 1 resolutions", 2),
    ("--batch 2.5", "--batch: invalid int", 2), ("--out /dev/null/x", "cannot be made", 2),
    ("--sources banana", "banana", 1), ("--data nowhere", "nowhere is not there", 1),
    ("--pitch-high 127", "too high for the orchestra", 1), ("--rep mfcc", "invalid choice", 2),
    ("--batch many", "invalid int", 2),
    ("--colour red", "unrecognized arguments: --colour red", 2),
    ("--model wavenet --rep if", "--rep does nothing for --model wavenet", 2),
    ("--model wavegan --output mol16", "--output does nothing", 2),
    ("--rep waveform --hires", "--hires does nothing for --model gansynth", 2),
    ("--model wavenet --bench", "torchrun are for GANSynth's stages", 2),
    ("--json", "--json is for --bench and --plan", 2),
    ("--model wavenet --channels 0", "channels is 0: expected a number of at least 1", 2)])
def test_settings_that_cannot_work_are_one_sentence(wrong, says, status):
    argv = ["--preset=workshop", "--out=run", *wrong.split()]
    assert says in refusal(train, *argv, status=status) and not os.listdir()

def test_a_folder_that_holds_something_is_never_written_to():
    Path("mine.txt").write_text("keep")
    for out in (".", "mine.txt"):
        assert "exists already and is not an empty folder" in refusal(
            train, *flags(tiny_settings(out)), status=2)
    assert os.listdir() == ["mine.txt"]
    cfg = train.Config(**tiny_settings(images=4))
    with train.claim_run(cfg) as first, train.claim_run(cfg) as second:     # begun together
        assert (first.name, second.name) == ("0001-if", "0002-if")
        (first / "log.jsonl").touch(), (second / "log.jsonl").touch()
    with pytest.raises(KeyboardInterrupt), train.claim_run(cfg):
        raise KeyboardInterrupt
    with train.claim_run(cfg, resume=Path("mine.txt").resolve()):   # locked until the end
        refuses(train.ConfigError, "still being trained", train.claim_run(
            cfg, resume=Path("mine.txt").resolve()).__enter__)
    # Under torchrun a run that died before its first checkpoint is begun anew, and nothing else.
    elastic = train.Ranks(elastic=True)
    Path("died/snapshots").mkdir(parents=True)
    Path("died/log.jsonl").write_text('{"images": 16}\n')
    Path("died/checkpoint-00000008.pt.part").write_text("half")
    with train.claim_run(replace(cfg, out="died"), elastic) as died:
        assert not (died / "log.jsonl").read_text()
    refuses(train.ConfigError, "not an empty folder", train.claim_run(
        replace(cfg, out="."), elastic).__enter__)
    assert sorted(os.listdir("runs")) == ["0001-if", "0002-if"]
    assert (train.train(cfg) / "checkpoint-00000004.pt").parent == Path("runs/0003-if")

@pytest.mark.parametrize("task", ["--bench", "--plan"])
def test_costs_are_rows_for_people_or_programs(task, monkeypatch, capsys):
    monkeypatch.setattr(train, "yardsticks", lambda *of: {"product": 1e11, "conv": 2e11})
    monkeypatch.setattr(train, "measure",
                        lambda *task, measure=train.measure: measure(*task[:-1], budget=0))
    train.main([task, "--json", *flags(tiny_settings())])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    table = [row for row in rows if "stage" in row]
    assert [(row["stage"], row["blocks"]) for row in table] == (
        [(1, 1), (3, 2), (5, 3)] if task == "--bench" else [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
    for row in table:
        assert row["s/step"] == pytest.approx(4 / row["ex/s"])
        assert row["of conv"] == pytest.approx(row["of product"] / 2)
        assert row["of product"] == pytest.approx(row["GFLOP"] * 1e9 / row["s/step"] / 1e11)
        assert 0 < row["% data"] < 100
        steps = (16 if row["stage"] < 5 else 8) / 4
        assert row["hours"] == pytest.approx(steps * row["s/step"] / 3600)
    if task == "--plan":
        whole, *elsewhere = rows[5:]
        assert whole["hours"] == pytest.approx(sum(row["hours"] for row in table))
        assert whole["peak MB"] > 100 and {row["at least"] for row in elsewhere} == {*train.GPUS}
        assert all(row["of eight"] == pytest.approx(row["hours"] / 8) for row in elsewhere)
    train.main([task, *flags(tiny_settings())])
    head, *lines = [line.split() for line in capsys.readouterr().out.splitlines()
                    if re.match(r" +(stage|\d)", line)]
    assert head[:3] == ["stage", "blocks", "s/step"] and len(lines) == len(table)

def test_what_is_left_counts_each_stage_at_its_cost():
    cfg = train.Config(**tiny_settings())
    first, later = (train.work(cfg, at, at + 4) for at in (0, 16))
    assert train.work(cfg, 12, 20) == first + later and later > first   # across a boundary
    assert train.work(cfg, 0, 16) == 4 * first and train.work(cfg, 72, 76) == 0

def test_the_papers_run_is_planned_stage_by_stage():
    rows = list(train.stages(train.Config()))
    assert [end - start for start, end, *_ in rows] == [800_000] * 12 + [1_400_000]
    assert [stage for *_, stage, _ in rows] == [*range(13)]
    assert [blocks for *_, blocks in rows] == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert list(train.stages(train.Config(progressive=False))) == [(0, 11_000_000, 12, 7)]

# ---- train.py: the baselines ----
def tiny_baseline(model, out, **more):
    """Settings of a run of a baseline in a second: notes of 250 samples, three pitches."""
    settings = {"length": 250, "sample_rate": 2000, "pitch_low": 60, "pitch_high": 62,
                "channels": 4, "images": 48, "batch": 4, "tick_images": 8, "snapshot_images": 24,
                "checkpoint_images": 4, "device": "cpu", "out": str(out)}
    own = {"wavegan": {"latent": 3, "critic_steps": 3, "ema": 0.0},
           "wavenet": {"stacks": 1, "layers": 3, "crop": 64}}[model]
    return train.MODELS[model][0](**{**settings, **own, **more})

def baseline_state(model, **more):
    return train.MODELS[model][1](tiny_baseline(model, "", **more), tiny_notes(250))

@pytest.mark.parametrize("model, more, terms", [
    ("wavegan", {}, {"G_score", "G_pitch", "D_real", "D_fake", "D_pitch", "D_penalty"}),
    ("wavenet", {}, {"nats", "bits"}), ("wavenet", {"output": "mol16"}, {"nats", "bits"})])
def test_baselines_train_resume_bit_for_bit_and_are_heard(
        tmp_path, monkeypatch, capsys, model, more, terms):
    run = train.train(tiny_baseline(model, "run", **more))
    names = set().union(*log_lines(run))
    assert names - {"images", "stage", "progress", "seconds", "examples_per_s"} == terms
    rate, samples = scipy.io.wavfile.read(run / "snapshots" / "00000048.wav")
    assert len(samples) == 16 * 250 and rate == 2000 and samples.any()

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        stop_after(patch, 28, lambda state: os.kill(os.getpid(), signal.SIGINT),
                   train.MODELS[model][1])                          # between two steps of G
        train.train(tiny_baseline(model, "again", **more))
    assert "--resume again" in capsys.readouterr().out
    train.main(["--resume", "again"])
    assert same(last_checkpoint("again"), last_checkpoint(run))

    wavs, z, pitch, page = run_sample(run, tmp_path / "notes", "--scale")
    assert len(wavs) == 3 and pitch == [60, 61, 62] and z.shape == (3, 3 * (model == "wavegan"))
    metrics.main(["run", "--train-classifier", "--examples", "64", "--device", "cpu"])
    table = measured(capsys, run, "--samples", "6", "--classifier", *Path("classifiers").iterdir())
    assert table["rows"][1]["name"] == "run, 48 examples"

def test_the_rate_falls_in_the_last_stage_that_a_run_gets_to():
    cfg = train.Config(resolutions=3, stable_images=20, fade_images=10, lr=1.0, lr_decay=0.2)
    for images, rates in ((100, {0: 1, 60: 1, 80: 0.6, 100: 0.2}), (50, {30: 1, 40: 0.6, 50: 0.2})):
        for seen, rate in rates.items():
            assert replace(cfg, images=images).learning_rate(seen) == pytest.approx(rate)

@pytest.mark.parametrize("model, betas", [("wavegan", (0.5, 0.9)), ("wavenet", (0.9, 0.999))])
def test_a_baselines_optimiser_has_its_own_betas_and_a_rate_that_falls(model, betas):
    state = baseline_state(model, lr=1e-3, lr_decay=0.1, images=40)
    for step in range(9):
        state.step()
        adam = vars(state.nets)["adam_D" if model == "wavegan" else "adam_G"]
        group, = adam.param_groups
        assert tuple(group["betas"]) == betas
        assert group["lr"] == pytest.approx(1e-3 * (1 - 0.9 * step * 4 / 40))

@pytest.mark.parametrize("critic_steps", [1, 3])
def test_wavegan_steps_d_every_time_and_g_now_and_then(critic_steps, monkeypatch):
    state, shifts = baseline_state("wavegan", critic_steps=critic_steps), set()
    D = Mock(wraps=state.nets.D.forward)
    monkeypatch.setattr(state.nets.D, "forward", D)
    for i in range(7):
        before = {net: [p.clone() for p in vars(state.nets)[net].parameters()] for net in "GD"}
        terms, G_steps = state.step(), i % critic_steps == 0
        for net, steps in (("G", G_steps), ("D", True)):
            for (name, p), old in zip(vars(state.nets)[net].named_parameters(), before[net]):
                moves = steps and name != "score.bias"              # scores have no natural zero
                assert torch.equal(p, old) != moves, (net, name, i)
        assert {"G_score", "D_penalty"} < {*terms} and D.call_count == 3 + G_steps
        shifts |= {tuple(call.args[1].tolist()) for call in D.call_args_list}
        indices = nsynth.epoch_order(4 * i, 4, len(state.notes), 0)
        assert torch.equal(D.call_args_list[G_steps].args[0],       # D's real notes, padded
                           F.pad(state.notes.waves(indices), (3, 3)))
        assert same(state.nets.G_ema.state_dict(), state.nets.G.state_dict())   # ema 0: G itself
        D.reset_mock()
    assert len(shifts) > 20               # every pass of D has its own: 4 places, -2 to 2
    assert {place for shift in shifts for place in shift} == {-2, -1, 0, 1, 2}

def test_wavenet_learns_from_crops_of_every_place(monkeypatch):
    state, loss = baseline_state("wavenet"), Mock(wraps=train.wavenet_loss)
    monkeypatch.setattr(train, "wavenet_loss", loss)
    start = [p.clone() for p in state.nets.G.parameters()]
    state.step()
    for average, old, p in zip(state.nets.G_ema.parameters(), start, state.nets.G.parameters()):
        torch.testing.assert_close(average, 0.999 * old + 0.001 * p)
    for _ in range(39):
        state.step()
    places = [call.args[3] for call in loss.call_args_list]
    for i, (call, offset) in enumerate(zip(loss.call_args_list, places)):
        notes = state.notes.waves(nsynth.epoch_order(4 * i, 4, len(state.notes), 0))
        assert torch.equal(call.args[1], notes[:, offset:offset + 64])
    assert min(places) == 0 and max(places) == 250 - 64 and len(set(places)) > 20
    for (name, p), old in zip(state.nets.G.named_parameters(), start):
        assert not torch.equal(p, old), name

def test_the_baselines_presets_and_shapes():
    for model, own, arch in (
            ("wavegan", {"batch": 64, "lr": 1e-4, "critic_steps": 5},
             gansynth.WaveGANArchitecture()),
            ("wavenet", {"batch": 32, "images": 150_000 * 32}, gansynth.WaveNetArchitecture())):
        paper, workshop = (train.new_settings(model, p, {})[0] for p in ("paper", "workshop"))
        assert {name: getattr(paper, name) for name in own} == own
        assert paper.architecture() == arch and workshop.architecture().length >= 4096

    def hold(**more):                     # a WaveNet's pitch is on for three seconds
        return train.WaveNetConfig(**more).architecture().hold

    assert hold() == hold(data="notes") == hold(data="notes", length=80000) == 3 * 16000
    assert hold(data="notes", length=32000) == 32000
    assert hold(length=4096) == 3072      # the orchestra's

# ---- all together ----
@pytest.mark.slow
def test_command_lines_from_notes_to_sound():
    for script, argv in (("train.py", "--preset workshop --images 2000 --out run"),
                         ("sample.py", "run --count 4 --out notes"),
                         ("metrics.py", "run notes --train-classifier --examples 64 --width thin "
                          "--samples 6 --out page")):
        subprocess.run([sys.executable, HERE / script, "--device", "cpu", *argv.split()],
                       check=True)
    wavs = sorted(Path("notes").glob("*.wav"))
    assert len(wavs) == 4
    for path in wavs:
        rate, samples = scipy.io.wavfile.read(path)
        assert rate == 8000 and samples.shape == (4096,) and samples.std() > 0
        assert read_png(path.with_suffix(".png").read_bytes()).shape[::2] == (192, 3)
    assert Path("notes/index.html").read_text("utf-8").count("audio/wav") == 4
    assert "real: held out" in Path("page/index.html").read_text("utf-8")

# ---- sample.py ------------------------------------------------------------------------------
def tiny_checkpoint(path="c.pt", model="gansynth", images=8, counts=(1, 2, 3, 2, 1)):
    """A checkpoint of random weights: MIDI 60..64, at 8 kHz notes of 200 samples, or of 60."""
    torch.manual_seed(0)
    spectrum = Spectrum("waveform", 64 if model == "wavegan" else 60, 1, 60, 8000)
    if model == "gansynth":
        net = gansynth.Generator(gansynth.Architecture(
            8, 64, resolutions=2, latent=4, pitches=len(counts), channel_base=16, channel_max=8))
        spectrum = Spectrum("if-mel", 8, 64, 200, 8000)
    elif model == "wavegan":
        net = gansynth.WaveGANGenerator(gansynth.WaveGANArchitecture(64, 4, 5, 2))
    else:
        net = gansynth.WaveNet(gansynth.WaveNetArchitecture(60, 45, 5, 1, 2, 4))
    gansynth.save_checkpoint(path, {
        "model": model, "config": {"model": model}, "architecture": asdict(net.arch),
        "spectrum": asdict(spectrum), "pitch_low": 60, "progress": float(model == "gansynth"),
        "counts": torch.tensor(counts), "images": images, "G_ema": net.state_dict()})
    return path

def run_sample(checkpoint, out, *flags):
    """Run the command line, and read the folder it wrote: WAV names, z, MIDI pitches, page."""
    sample.main([str(checkpoint), "--device", "cpu", "--out", str(out), *map(str, flags)])
    with np.load(f"{out}/latents.npz") as file:
        z, pitch = file["z"], file["pitch"].tolist()
    wavs = sorted(file.name for file in Path(out).glob("*.wav"))
    return wavs, z, pitch, Path(out, "index.html").read_text(encoding="utf-8")

def in_browser(folder, script):
    """What `script`, at the end of a folder's page in headless Chromium, tells: a list."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium or Chrome")
    page = Path(folder, "index.html").resolve()
    driven = page.with_name("driven.html")
    driven.write_text(page.read_text("utf-8") + """<pre id="told"></pre><script>
        const press = key => document.dispatchEvent(new KeyboardEvent("keydown", {key}));
        const tell = list => document.getElementById("told").textContent = JSON.stringify(list);
        context = new OfflineAudioContext(1, 8000, 8000);           // that plays without a sound
        """ + script + "</script>", "utf-8")
    run = subprocess.run([program, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                          "--virtual-time-budget=5000", f"--user-data-dir={page.parent / 'user'}",
                          driven.as_uri()], capture_output=True, timeout=120)
    if not run.stdout:
        pytest.skip(f"{program} does not start here")
    told = re.search('<pre id="told">(.+?)</pre>', run.stdout.decode(), re.S)
    return json.loads(html.unescape(told[1]))

def test_pitches_have_names_and_numbers_and_are_drawn_as_often_as_trained():
    assert sample.parse_pitches("60, C4,f#3,Bb4,C-1,db4") == [60, 60, 54, 70, 0, 61]
    assert all(sample.parse_pitches(sample.note_name(p)) == [p] for p in range(128))
    _, pitch = sample.Player.draw(SimpleNamespace(
        latent=4, low=60, counts=torch.tensor([0, 3, 1]), seed=0), 400)
    assert pitch.count(60) == 0 and 0.65 < pitch.count(61) / 400 < 0.85

def test_slerp_keeps_the_length_and_both_ends():
    z0, z1 = torch.tensor([3.0, 0, 0]), torch.tensor([0, 3.0, 0])
    arc = sample.slerp(z0, z1, 5)
    torch.testing.assert_close(arc.norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(arc[[0, 2, 4]], torch.stack([z0, (z0 + z1) / 2 ** 0.5, z1]))
    assert torch.equal(sample.slerp(z0, 2 * z0, 3), z0 * torch.tensor([[1], [1.5], [2]]))

def test_synthesised_notes_rise_in_2_ms_and_do_not_depend_on_the_batch():
    G, contents = gansynth.load_generator(tiny_checkpoint())
    spectrum, z, pitch = Spectrum(**contents["spectrum"]), torch.randn(7, 4), torch.arange(7) % 5
    for progress in (0.0, 0.5, 1.0):      # young pictures are enlarged
        waves = gansynth.synthesise(G, spectrum, z, pitch, progress)
        threes = torch.cat([gansynth.synthesise(G, spectrum, *few, progress)
                            for few in zip(z.split(3), pitch.split(3))])
        assert waves.shape == (7, 200) and spectral.snr(waves, threes).min() > 40    # rounding
    rise = np.sin(np.minimum(np.arange(200) / 16, 1) * np.pi / 2) ** 2          # at 8 kHz
    decoded = spectrum.decode(G(z, pitch, 1.0)).numpy()
    np.testing.assert_allclose(waves, decoded * rise, rtol=1.3e-6, atol=1e-5)
    G, contents = gansynth.load_generator(tiny_checkpoint("g.pt", "wavegan"))
    waves = gansynth.synthesise(G, Spectrum(**contents["spectrum"]), z, pitch, 0.0)
    torch.testing.assert_close(waves, G(z, pitch)[:, 2:62])         # 60 of 64 samples

def test_random_notes_with_table_page_and_pictures():
    wavs, z, pitch, page = run_sample(tiny_checkpoint(), "out")
    assert len(wavs) == 16 and z.shape == (16, 4) and set(pitch) <= set(range(60, 65))
    assert wavs[3] == f"003-{sample.note_name(pitch[3]).replace('#', 's')}-{pitch[3]:03}.wav"
    pngs = [wav[:-3] + "png" for wav in wavs]
    assert set(os.listdir("out")) == {"index.html", "latents.npz", "notes.csv", *wavs, *pngs}
    with open("out/notes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], int(row["pitch"])) for row in rows] == list(zip(wavs, pitch))
    assert np.array_equal([[np.float32(row[f"z{i}"]) for i in range(4)] for row in rows], z)
    for kind, names in (("audio/wav", wavs), ("image/png", pngs)):
        inside = re.findall(f'"data:{kind};base64,([^"]+)"', page)
        assert [*map(base64.b64decode, inside)] == [Path("out", n).read_bytes() for n in names]
    assert not re.search("https?:|src=\"/|href=", page)

def test_a_seed_is_the_same_notes_a_scale_its_first_and_an_interpolation_its_first_two():
    def notes(out, flags):
        return run_sample("c.pt", out, *flags.split())

    tiny_checkpoint("c.pt")
    few, z, pitch, _ = notes("few", "--count 5")
    _, more, more_pitch, _ = notes("many", "--count 9")
    assert np.array_equal(more[:5], z) and more_pitch[:5] == pitch
    assert not np.array_equal(notes("other", "--count 5 --seed 1")[1], z)
    again, scale, first = "--latents few/latents.npz", [60, 61, 62, 63, 64], z[:1].repeat(5, axis=0)
    for i, (flags, latents, pitches) in enumerate((
            (again, z, pitch), ("--count 5 --pitch C4,62", z, [60, 62, 60, 62, 60]),
            (f"--scale {again}", z.repeat(5, axis=0), scale * 5), ("--scale", first, scale),
            ("--scale --count 2", z[:2].repeat(5, axis=0), scale * 2),
            (f"--scale {again} --timbre t00", first, scale),
            ("--scale --pitch 64,C4", first[:2], [64, 60]))):
        _, found, played, page = notes(str(i), flags)
        assert np.array_equal(found, latents) and played == pitches, flags
        assert ("Play them" in page) == ("--scale" in flags), flags
    for name in few:
        assert Path("few", name).read_bytes() == Path("0", name).read_bytes()
    for i, flags in enumerate(("--interpolate", f"--interpolate {again}")):
        _, found, played, page = notes(f"arc{i}", flags)
        assert played == [62] * 9 and "Play them" not in page
        np.testing.assert_allclose(found[[0, -1]], z[:2], rtol=1e-6)
    assert notes("at", "--interpolate --count 3 --pitch Eb4")[2] == [63] * 3

def test_a_run_folder_means_its_newest_checkpoint_and_numbered_samples(tmp_path, capsys):
    run = tmp_path / "<b> & run"                                    # a name to escape
    (run / "samples-0007").mkdir(parents=True)
    tiny_checkpoint(run / "checkpoint-9.pt", images=9)
    tiny_checkpoint(run / "checkpoint-10.pt", images=1234)
    for number, count, words in ((8, 1, "1,234 examples"), (9, 65, "the first 64 of 65")):
        sample.main([str(run), "--count", str(count), "--device", "cpu"])
        page = run / f"samples-000{number}" / "index.html"
        assert str(page) in capsys.readouterr().out
        text = page.read_text(encoding="utf-8")
        assert "&lt;b&gt; &amp; run/checkpoint-10.pt" in text and "<b> &" not in text
        assert words in text and text.count("<figure>") == min(count, 64)

def test_notes_are_levelled_by_one_factor_a_timbre_and_a_failure_leaves_nothing(
        monkeypatch, capsys):
    checkpoint, waves = tiny_checkpoint(), torch.ones(4, 200)
    monkeypatch.setattr(gansynth, "synthesise", lambda *args, **more: waves)
    for flags, levels, heard, said in (   # 29,205: -1 dBFS
            ("--count 4", (8, 4, 2, 1), (29205, 14602, 7301, 3651), "0.111"),
            ("--count 4", (.04, .03, .02, .01), (29205, 21903, 14602, 7301), "22.3"),
            ("--count 4", (1e-5, 0, 0, 0), (292, 0, 0, 0), "891"),          # as good as silent
            ("--scale --pitch 60,61 --count 2", (4, 1, .1, .02), (29205, 7301, 29205, 5841),
             "0.223 to 8.91")):
        waves[:] = torch.tensor(levels)[:, None]
        shutil.rmtree("a", ignore_errors=True)
        for wav, level in zip(run_sample(checkpoint, "a", *flags.split())[0], heard):
            rate, samples = scipy.io.wavfile.read(f"a/{wav}")
            assert rate == 8000 and (samples == level).all() and samples.shape == (200,)
        assert f"Multiplied by {said}, one factor a timbre: the" in capsys.readouterr().out
    monkeypatch.setattr(spectral, "write_png", lambda path, rgb: open(path.parent))
    for words in ("Is a directory", "NaN"):
        assert words in refusal(sample, checkpoint, "--count", 4, "--out", "b")
        waves[1] = torch.nan
    assert sorted(os.listdir()) == ["a", "c.pt"]

def test_what_a_model_has_is_heard_and_what_it_lacks_refused():
    checkpoint, mel = tiny_checkpoint(), ("--mel-inverse", "transpose")
    a, b = (run_sample(checkpoint, f"{len(more)}", "--count", 1, "--pitch", 60, *more)
            for more in ((), mel))
    assert a[0] == b[0] == ["000-C4-060.wav"] and a[3] != b[3]      # the page holds the sounds
    assert "no mel scale" in refusal(sample, tiny_checkpoint("g.pt", "wavegan"), *mel)
    checkpoint = tiny_checkpoint("n.pt", "wavenet")
    wavs, z, pitch, page = run_sample(checkpoint, "c", "--pitch", "60,64", "--count", 3)
    assert len(wavs) == 3 and z.shape == (3, 0) and pitch == [60, 64, 60] and "mulaw8" in page
    for flags in ("--interpolate", "--latents=c/latents.npz", "--timbres=3", "--timbre=t00",
                  f"--like=c/{wavs[0]}"):
        assert "has no latents" in refusal(sample, checkpoint, flags)
    assert len(run_sample(checkpoint, "d", "--scale")[0]) == 5
    piece = write_piece("a.mid", (0, 20, 60, 99, 0), (10, 30, 64, 99, 1))
    assert run_sample(checkpoint, "e", "--midi", piece)[0][-1] == "piece.wav"

def test_what_cannot_be_played_is_one_sentence_and_leaves_nothing(tmp_path):
    tiny_checkpoint()
    tiny_checkpoint("gap.pt", counts=(1, 2, 0, 2, 1))
    Path("text").write_bytes(b"MThd, not really, nor a zip; and long enough to look like one")
    z = np.ones((1, 4))
    for name, pitch, z in (("one", [60], z), ("wide", [60], np.ones((1, 5))), ("none", [], z[:0]),
                           ("nan", [60], z * np.nan), ("two", [60, 61], z), ("half", [60.5], z)):
        np.savez(f"{name}.npz", z=z, pitch=pitch)
    for name, *strokes in (("drums", (0, 9, 60, 100, 9)), ("none",), ("high", (0, 9, 71, 100, 0)),
                           ("long", (0, 9_000_000, 60, 100, 0)), ("short", (0, 9, 60, 100, 0))):
        write_piece(f"{name}.mid", *strokes)
    Path("short.mid").write_bytes(Path("short.mid").read_bytes()[:-1])
    before = sorted(tmp_path.rglob("*"))
    for words, line in (
            ("no whole checkpoint there", "nowhere"), ("no whole checkpoint there", "."),
            ("damaged, or not a checkpoint", "text"), ("60 to 64 (C4", "c.pt --pitch 60,C5"),
            ("62 was never trained: this checkpoint plays 60 to 64 (C4 to E4), 4 pitches",
             "gap.pt --pitch C4,D4"),
            (". is there already and not an empty folder", "c.pt --out ."),
            ("cannot be made: Not a directory", "c.pt --out c.pt/below"),
            *((words, f"c.pt --interpolate --latents {name}") for words, name in (
                ("needs 2", "one.npz"), ("z has", "wide.npz"), ("z has", "none.npz"),
                ("z has", "nan.npz"), ("whole ones", "two.npz"), ("whole ones", "half.npz"),
                ("expected an .npz", "text"), ("is not there", "gone"))),
            *((words, f"c.pt --midi {name}") for words, name in (
                ("is not there", "gone"), ("expected a MIDI file", "text"),
                ("expected a MIDI file", "c.pt"), ("cut short", "short.mid"),
                ("1 beats of drums, which are left", "drums.mid"), ("0 notes", "none.mid"),
                ("3,600 s at most", "long.mid"), ("never trained", "high.mid")))):
        assert words in refusal(sample, *line.split())
    assert sorted(tmp_path.rglob("*")) == before

def test_contradictions_are_usage_errors():
    for script, lines in (
            (sample, ("c.pt --bench", "--bench --seed 3", "c.pt --count 0", "c.pt --pitch H4",
                      "c.pt --scale --interpolate", "c.pt --seed 9" + 19 * "9",
                      "c.pt --device meta", "c.pt --midi demo --count 3",
                      "c.pt --like a.wav --timbre t00", "c.pt --seconds-per-timbre 3")),
            (metrics, ("", "run --samples 1", "run --pitches 84-24", "run --pitches 24-84",
                       "run --examples 9", "run --train-classifier --classifier a.pt")),
            (listening_test, ("--out page", "run"))):
        for line in lines:
            assert "unrecognized" not in refusal(script, *line.split(), status=2)

def test_bench_prints_a_row_for_every_way_to_make_a_note(capsys):
    arch = gansynth.Architecture(frames=8, bins=64, resolutions=2, channel_base=16)
    sample.bench(torch.device("cpu"), 1e-3, arch, Spectrum("if-mel", 8, 64, 200, 8000),
                 gansynth.WaveGANArchitecture(256, channels=2), gansynth.WaveNetArchitecture(
                     200, stacks=1, layers=3, channels=4))
    rows = re.findall(r"(\w+(?:, \w+)?) +([18]) +[\d.e-]+ s +[\d,.]+ x", capsys.readouterr().out)
    names = ["GANSynth", "WaveGAN", "WaveNet, cached", "WaveNet, naive"]
    assert rows == [(name, "1") for name in names] + [(name, "8") for name in names[:3]]

# ---- sample.py: the page ----
def sing(monkeypatch):
    """Let every model sing: its notes become cosines of their pitch, 0.5 s at 8 kHz; -> a list that
    will tell of each note made (latent, pitch)."""
    made = []

    def cosines(G, spectrum, z, label, *args, **more):
        made.extend(zip(map(tuple, z.tolist()), (label + 60).tolist()))
        turns = hertz(60 + label[:, None]) * torch.arange(4000) / 8000
        return z[:, :1].tanh().abs() * torch.cos(2 * math.pi * turns)       # some are soft

    monkeypatch.setattr(gansynth, "synthesise", cosines)
    return made

def heard_pitches(wave):
    """The pitches whose peaks in the spectrum of a wave at 8 kHz reach 0.3 of the highest."""
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 16 * len(wave)))
    peaks = scipy.signal.find_peaks(power, height=0.3 * power.max())[0]
    return [round(69 + 12 * math.log2(peak * 500 / len(wave) / 440), 1) for peak in peaks]

def test_a_key_sounds_its_pitch_with_others_and_fades_without_a_click(monkeypatch):
    sing(monkeypatch)
    run_sample(tiny_checkpoint(counts=[1] * 24), "out", "--scale")
    held, wave = in_browser("out", """
        press("z"), press("a"), press("g"), press("h");
        const held = document.querySelectorAll("[aria-pressed=true]").length;
        context.suspend(0.256).then(() => {
          [..."agh"].forEach(key => document.dispatchEvent(new KeyboardEvent("keyup", {key})));
          context.resume();
        });
        context.startRendering().then(buffer => tell([held, [...buffer.getChannelData(0)]]));""")
    assert held == 3 and heard_pitches(np.array(wave[:2048])) == [60, 67, 69]
    slope = 3 * 2 * math.pi * hertz(69) / 8000 * 0.267              # of three cosines at -11.5 dB
    assert np.abs(np.diff(wave, prepend=0)).max() < slope and np.abs(wave[4500:]).max() < 0.009

def test_the_pages_keys_stay_at_octaves_that_hold_notes():
    run_sample(tiny_checkpoint(counts=[1] * 24), "out", "--scale", "--pitch", "C4,E4,C5,Eb5")
    asked, held, off, menu = in_browser("out", """
        const asked = [], sounding = () => [...voices.values()].map(one => cards.indexOf(one.card));
        for (const key of "zzzzaedxxxxaezd") {
          press(key);
          asked.push(...sounding());
          document.dispatchEvent(new KeyboardEvent("keyup", {key}));
        }
        press("a"), press("d");
        const held = sounding();
        window.dispatchEvent(new Event("blur"));
        tell([asked, held, sounding(), timbre.offsetParent]);""")
    assert asked == [0, 1, 2, 3, 1] and held == [0, 1] and off == [] and menu is None

def test_a_page_is_played_by_pointers_and_midi_in_the_timbre_chosen():
    run_sample(tiny_checkpoint(), "out", "--scale", "--count", "2")
    shown, *seen = in_browser("out", """
        const input = {}, seen = [], look = () => seen.push([...voices.values()].map(
          voice => voice.card.dataset.timbre + voice.card.dataset.pitch));
        const point = (kind, card) => card.dispatchEvent(
          new PointerEvent(kind, {pointerId: 7, bubbles: true}));
        navigator.requestMIDIAccess = async () => ({inputs: new Map([[0, input]])});
        seen.push([...timbre.options].map(option => option.text));
        point("pointerdown", cards[2]), look();
        timbre.value = "t01";
        timbre.onchange();
        point("pointerdown", cards[9]), look(), point("pointerup", main), look();
        cards[9].click(), look(), cards[9].click(), look();     // as Enter does
        midi.click();
        setTimeout(() => {
          for (const data of [[144, 61, 99], [145, 63, 1], [144, 61, 0], [129, 63, 64]]) {
            input.onmidimessage({data});
            look();
          }
          tell(seen);
        }, 500);""")
    assert shown == ["t00", "t01"] and seen == [
        ["t0062"], ["t0164"], [], ["t0164"], [], ["t0161"], ["t0161", "t0163"], ["t0163"], []]

def test_a_keyboard_of_the_papers_size_fits_into_its_page(monkeypatch):
    monkeypatch.setattr(gansynth, "synthesise", lambda G, s, z, *args, **more: (
        torch.rand(len(z), 64_000) - 0.5))
    monkeypatch.setattr(spectral, "rainbowgram", lambda *args: np.zeros((2, 2, 3), np.uint8))
    checkpoint = tiny_checkpoint(counts=[1] * 61)
    for count, more, fit in ((1, "", 1), (2, "", 1), (3, "--pitch C4", 3),
                             (3, "--pitch 60" + 29 * ",61", 2)):
        wavs, _, _, page = run_sample(checkpoint, "out", "--scale", "--count", count, *more.split())
        keys = re.findall(r'data-timbre="(t\d\d)" style="[^"]+" data-wav="data:audio/wav', page)
        assert len(keys) == fit * len(wavs) // count and keys == sorted(keys) and len(page) < 15e6
        assert len(set(keys)) == page.count("<option>") == fit
        assert (f"The first {fit} of {count} timbres fit" in page) == (fit < count)
        shutil.rmtree("out")

# ---- sample.py: MIDI ----
def test_midi_files_and_damaged_ones_are_read_as_mido_reads_them():
    """240 random files, all read; then mutations of one, where mido is laxer at times, or stricter:
    what both read is the same."""
    def in_order(strokes):
        return sorted(map(tuple, strokes), key=lambda s: (*s[2:], round(s[0], 6), round(s[1], 6)))

    files, strokes = (np.split(REFERENCE[f"midi/{of}"], REFERENCE[f"midi/{of}_end"])
                      for of in ("bytes", "strokes"))
    both = []
    for data, theirs, mido_reads in zip(files, strokes, REFERENCE["midi/read"]):
        Path("a.mid").write_bytes(data.tobytes())
        with contextlib.suppress(NoteError):
            ours = nsynth.read_midi("a.mid")
            if mido_reads:
                assert len(ours) == len(theirs)
                np.testing.assert_allclose(in_order(ours), in_order(theirs), 1e-9, 1e-9)
                both.append(data)
    assert all(map(np.array_equal, both[:240], files)) and 200 < len(both[240:]) < 1800

def test_a_note_of_a_piece_rises_lasts_and_fades():
    rate, ones = 8000, torch.ones(8000)
    held = sample.shaped(ones, 0.5, rate)
    assert held.shape == (6400,) and (held[80:4001] == 1).all()     # and 0.3 s of release
    assert held[0] == 0 and held[-1] < 1e-5 and abs(held[40] - 0.5) < 1e-6
    assert abs(held[5200] - 0.5) < 1e-6 and held.diff().abs().max() < 1.01 * math.pi / 2 / 80
    for seconds in (0, 1e-4, 0.01, 0.69, 0.7, 1, 9):    # from none to longer than the model's
        part = sample.shaped(ones, seconds, rate)
        assert len(part) == min(math.ceil(seconds * rate + 2400), 8000)
        assert part[0] == 0 and part[-1] < 1e-5 and part.diff().abs().max() < 1.01 * math.pi / 160
    assert sample.shaped(torch.ones(60), 0.5, rate)[[0, -1]].max() < 0.003      # a very short one

def write_piece(path, *strokes, ticks=1000):
    """A MIDI file of (start, end, pitch, velocity, channel), in ticks of half a ms."""
    events = sorted(event for start, end, pitch, velocity, channel in strokes for event in (
        (start, 1, 0x90 + channel, pitch, velocity), (end, 0, 0x80 + channel, pitch, 0)))
    track, last = b"", 0
    for tick, _, *event in events:
        waits = [tick - last >> k & 127 for k in (21, 14, 7, 0)]
        track, last = track + bytes(np.add(waits, (128, 128, 128, 0)).tolist() + event), tick
    track += b"\0\xff\x2f\0"
    Path(path).write_bytes(
        struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, ticks, b"MTrk", len(track)) + track)
    return path

def read_wav(path):
    return scipy.io.wavfile.read(path)[1] / 32768

def test_a_piece_is_arranged_as_it_is_written(monkeypatch, capsys):
    made, checkpoint = sing(monkeypatch), tiny_checkpoint(counts=[1] * 12)
    piece = write_piece(
        "piece.mid", (0, 600, 60, 127, 0), (2000, 2600, 64, 64, 0), (4000, 4600, 43, 127, 3),
        (6000, 6600, 108, 127, 3), (8000, 9000, 62, 127, 9), (10000, 12000, 65, 127, 0),
        *[(14000, 14600, p, 127, 5) for p in (60, 64, 67, 71)],
        (16000, 16600, 60, 127, 0), (18000, 18600, 60, 127, 3))
    wavs, z, pitch, page = run_sample(checkpoint, "out", "--midi", piece)
    wave, told = read_wav("out/piece.wav"), capsys.readouterr().out
    assert wavs[-1] == "piece.wav" and z.shape == (3, 4) and pitch == [65] * 3
    assert len(wave) - 76_800 in (0, 1, 2)              # 9.3 s, and 0.3 of release
    parts = [wave[8000 * i:8000 * i + 2400] for i in range(10)]     # one a second
    for i, notes in enumerate(([60], [64], [67], [60], [], [65], [], [60, 64, 67, 71], [60], [60])):
        assert np.abs(parts[i]).max() < 1e-3 if notes == [] else (
            heard_pitches(parts[i][800:]) == notes)
    loud = [np.abs(part).max() for part in parts]
    assert abs(loud[1] / loud[0] - (64 / 127) ** 2) < 0.01 and abs(max(loud) - 0.891) < 0.009
    assert loud[2] == pytest.approx(loud[0], rel=0.01)              # another channel's timbre
    assert np.abs(wave[:8000][4804:]).max() == 0        # 0.3 s, and 0.3 s of release
    assert abs(wave[-1]) < 1e-3 and np.abs(np.diff(wave, prepend=0)).max() < 1.6
    for words in ("11 notes", "2 moved by octaves", "1 drum beats left out",
                  "11 fade before their end", "Multiplied"):       # which it says has 25 ms
        assert words in told, words
    asked = made[:-3]                     # without the three of the page
    assert len(asked) == len(set(asked)) == 9 and 'src="piece.wav"' in page

def test_a_pieces_timbres_are_channels_or_move_along_an_arc(monkeypatch):
    checkpoint, flags = tiny_checkpoint(counts=[1] * 12), ("--midi", "demo")
    _, drawn, _, _ = run_sample(checkpoint, "drawn", "--count", 30)
    made = sing(monkeypatch)
    _, z, _, _ = run_sample(checkpoint, "two", *flags)
    assert np.array_equal(z, drawn[:2]) and {m[0] for m in made} == set(map(tuple, z.tolist()))
    assert len(made[:-2]) == len(set(made)) <= 2 * 12   # once each, but for the page's
    flags += ("--latents", "drawn/latents.npz")
    assert np.array_equal(run_sample(checkpoint, "b", *flags, "--timbre", "t04,t01")[1],
                          drawn[[4, 1]])
    made.clear()
    _, z, _, _ = run_sample(checkpoint, "arc", *flags[:2], "--seconds-per-timbre", 5)
    assert np.array_equal(z, drawn[:15])                # 66.88 s
    steps = np.array(list(dict.fromkeys(m[0] for m in made[:-15])))
    assert len(steps) > 100 and np.abs(np.diff(steps, axis=0)).max() < 0.6
    near = np.abs(steps[:, None] - z[:14]).max(-1).min(0)
    assert near.max() < 0.6 and near[0] == 0            # it passes all of them
    with np.errstate(all="raise"):
        run_sample(checkpoint, "one", *flags, "--timbre", "t02", "--seconds-per-timbre", 30)

def test_the_demo_is_bachs_prelude():
    strokes = sample.prelude(1.0)
    assert len(strokes) == 19 * 16 and max(end for _, end, *_ in strokes) == 19 * 16
    first = [sample.note_name(p) for _, _, p, _, _ in sorted(strokes)[:8]]
    assert first == "C4 E4 G4 C5 E5 G4 C5 E5".split()
    for at in range(19 * 16):             # the chord's bass is held under what moves
        sounding = [p for start, end, p, *_ in strokes if start <= at < end]
        assert len(sounding) <= 3 and min(sounding) in [p for *_, p, _, c in strokes if c == 0]

@pytest.mark.parametrize("strokes", [[(0, 1, 60, 1, 0)], [(0, 0, 60, 100, 0)],
                                     [(0, 11000, 62, 100, 1)], [(0, 24000, 24, 100, 2)]])
def test_short_soft_and_long_pieces_are_finite(strokes):
    run_sample(tiny_checkpoint(counts=[1] * 12), "out", "--midi",
               write_piece("a.mid", (0, 2, 61, 100, 0), *strokes))
    wave = read_wav("out/piece.wav")
    assert len(wave) >= 0.3 * 8000 and 0 < np.abs(wave).max() <= 1

# ---- sample.py: a sound of one's own, timbres to choose from ----
def lsd(a, b):
    return spectral.log_spectral_distance(*torch.tensor(np.array([a, b]))[:, None].float()).item()

@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_note_that_the_model_made_comes_back(trained):
    pitch, checkpoint = (66, "run") if trained else (62, tiny_checkpoint("g.pt", "wavegan"))
    if trained:
        train.main("--preset workshop --images 1000 --batch 4 --lr 3e-3 --out run".split())
    wavs, *_ = run_sample(checkpoint, "notes", "--count", 8, "--pitch", pitch)
    notes = [read_wav(f"notes/{wav}") for wav in wavs]
    random = np.mean([lsd(a, b) for a, b in itertools.combinations(notes, 2)])
    (wav, *_), *_ = run_sample(checkpoint, "note", "--seed", 9, "--count", 1, "--pitch", pitch)
    _, found, played, page = run_sample(checkpoint, "out", "--pitch", pitch, "--like",
                                        f"note/{wav}")
    target, match = read_wav("out/target.wav"), read_wav("out/match.wav")
    assert lsd(target, match) < random / 4 and (found == found[0]).all()
    assert played[0] == pitch and len(played) == 4
    name = f"000-t00-{sample.note_name(pitch).replace('#', 's')}-{pitch:03}.wav"
    for shown, note in ((target, read_wav(f"note/{wav}")), (match, read_wav(f"out/{name}"))):
        level = np.abs(shown).max() / np.abs(note).max()
        np.testing.assert_allclose(shown, note * level, atol=1e-3)
    said = float(re.search(r"log-spectral distance ([\d.]+) dB", page)[1])
    assert abs(said - lsd(target, match)) < 0.1 and page.count("<audio") == 6
    _, again, _, _ = run_sample(checkpoint, "again", "--scale", "--latents", "out/latents.npz")
    assert (again == found[0]).all()

def test_a_recordings_pitch_is_heard_or_asked_for(monkeypatch):
    checkpoint = tiny_checkpoint()
    monkeypatch.setattr(sample, "STEPS", 2)
    for rate, seconds, hz, pitch in ((8000, 0.5, hertz(63.4), 63), (44100, 2, hertz(61.7), 62)):
        sound = np.concatenate([np.zeros(rate // 4), 0.3 * harmonic_note(hz, rate, seconds)])
        nsynth.write_wav("a.wav", torch.from_numpy(sound), rate)
        assert run_sample(checkpoint, f"{rate}", "--like", "a.wav")[2][0] == pitch
        target = read_wav(f"{rate}/target.wav")         # without the silence before it
        assert len(target) == 200 and np.abs(target[:60]).max() > 0.1 * np.abs(target).max()
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 4000))
    for sound, words in ((noise, "to have no pitch"), (noise[:900] * 0 + 0.1, "to have no pitch"),
                         (noise * 0, "silent"), (noise[:30], "lasts 0.0037 s: expected 0.005"),
                         (torch.from_numpy(harmonic_note(hertz(72))), "of 60 to 64")):
        nsynth.write_wav("a.wav", sound, 8000)
        assert words in refusal(sample, checkpoint, "--like", "a.wav", "--out", "x")
    nsynth.write_wav("a.wav", noise, 8000)
    assert run_sample(checkpoint, "asked", "--like", "a.wav", "--pitch", "C4")[2][0] == 60
    for name, words in (("gone.wav", "is not there"), ("c.pt", "it is not a WAV file")):
        assert words in refusal(sample, checkpoint, "--like", name)

def test_timbres_differ_and_are_picked_in_every_command():
    run = Path("run")
    run.mkdir()
    checkpoint = tiny_checkpoint(run / "checkpoint-8.pt")
    assert "timbres-0001" in refusal(sample, run, "--timbre", "t00")
    for number in (1, 2):
        sample.main(["run", "--device", "cpu", "--timbres", "6", "--seed", str(number)])
    with np.load("run/timbres-0002/latents.npz") as file:
        z, pitch = file["z"][::3], file["pitch"].tolist()
    assert len(np.unique(z, axis=0)) == 6 and pitch == [60, 62, 63] * 6
    assert ">017-t05-Ds4-063<" in Path("run/timbres-0002/index.html").read_text("utf-8")
    assert np.array_equal(z[0], run_sample(run, "first", "--seed", 2)[1][0])

    def nearest(latents):                 # the least distance between two of their notes
        out = f"n{latents[-1, 0]}"
        np.savez("some.npz", z=latents, pitch=[62] * 6)
        waves = [read_wav(f"{out}/{wav}")
                 for wav in run_sample(run, out, "--latents", "some.npz")[0]]
        waves = [wave / np.sqrt(np.mean(wave ** 2)) for wave in waves]
        return min(lsd(a, b) for a, b in itertools.combinations(waves, 2))

    random = [nearest(np.random.default_rng(seed).normal(size=(6, 4))) for seed in range(8)]
    assert nearest(z) > max(random)
    # The demo has notes that this checkpoint lacks.
    write_piece("a.mid", (0, 99, 60, 99, 0), (0, 99, 60, 99, 1))
    for flags, rows in (("--timbre t03 --pitch C4,D4", [3, 3]), ("--timbre t04", [4]),
                        ("--timbre t05,t01 --scale", [5] * 5 + [1] * 5),
                        ("--timbre t02 --midi a.mid", [2])):
        assert np.array_equal(run_sample(run, f"of {rows}", *flags.split())[1], z[rows]), flags
    _, arc, *_ = run_sample(run, "arc", "--timbre", "t05,t00", "--interpolate")
    np.testing.assert_allclose(arc[[0, -1]], z[[5, 0]], rtol=1e-6)
    older = run / "timbres-0001" / "latents.npz"
    with np.load(older) as file:
        assert np.array_equal(run_sample(run, "older", "--timbre", "t01", "--latents", older)[1],
                              file["z"][3:4])
    for flags, words in ((["--timbre", "t06"], "6 timbres from t00 on, and no t06"),
                         (["--timbre", "t1,3"], "and no "),
                         (["--timbre", "t00", "--interpolate"], "needs 2")):
        assert words in refusal(sample, checkpoint, *flags)

# ---- metrics.py -----------------------------------------------------------------------------
def harmonic_note(f0, rate=8000, seconds=0.5, slope=1.0):
    """Harmonics of f0 below Nyquist, the k-th with amplitude k^-slope, (L,)."""
    time = np.arange(int(rate * seconds)) / rate
    return 0.3 * sum(np.sin(2 * np.pi * k * f0 * time + k) / k ** slope
                     for k in range(1, int(rate / 2 / f0)))

def each(measure, waves, pitches, rate):
    """A measure of every note, (N,)."""
    return np.array([measure(wave, pitch, rate) for wave, pitch in zip(waves, pitches)])

def test_the_tuning_of_harmonic_notes_is_found_to_three_cents_and_noise_has_none():
    for rate, pitches in ((8000, range(48, 85, 6)), (16000, range(12, 97, 7))):
        for off in (-40, 0, 30):                                    # cents
            notes = [harmonic_note(hertz(p + off / 100), rate, seconds=1.0) for p in pitches]
            assert np.abs(each(metrics.tuning, notes, pitches, rate) - off).max() < 3, (rate, off)
    weak = harmonic_note(220.0) - 0.29 * np.sin(2 * np.pi * 220 * np.arange(4000) / 8000 + 1)
    assert abs(metrics.cents(spectral.fundamental(weak, 8000), 220.0)) < 5
    noise = np.random.RandomState(0).randn(100, 4000) * 0.1
    assert np.mean(np.abs(each(metrics.tuning, noise, np.full(100, 60), 8000)) <= 50) < 0.1
    assert abs(metrics.tuning(np.zeros(4000), 60, 8000)) > 1200

def test_clean_and_variety_are_the_closed_forms():
    f0 = metrics.frequency(72)
    assert metrics.harmonic_share(harmonic_note(f0), 72, 8000) > 0.999
    off = metrics.harmonic_share(harmonic_note(f0 * 2 ** (1 / 12)), 72, 8000)
    assert off < 0.3                      # a semitone away, only high harmonics come near others
    noise = np.random.RandomState(1).randn(200, 4000).astype(np.float32)
    f = np.linspace(1, 4000, 4000)        # white: the share is that of the bands, 2^(+-1/24) wide
    near = np.abs(1200 * np.log2(f / (np.maximum(np.rint(f / f0), 1) * f0))) <= 50
    assert abs(each(metrics.harmonic_share, noise, [72] * 200, 8000).mean() - near.mean()) < 0.02
    assert metrics.variety(noise[[0, 0]], [60, 60]) < 1e-4
    assert abs(metrics.variety(np.stack([noise[0], noise[0] * 0.1]), [60, 60]) - 20) < 0.1   # dB
    assert np.isnan(metrics.variety(noise[:2], [60, 61]))

def jumping(random, f0, hold, harmonics=(1,)):
    """Harmonics of f0 at 16 kHz, (4 s), whose phases are drawn anew every `hold` samples."""
    k, n = np.array(harmonics)[:, None], np.arange(64000)
    phase = random.uniform(0, 2 * np.pi, (len(k), 64000 // hold))[:, n // hold]
    return np.sin(2 * np.pi * k * f0 * n / 16000 + phase).sum(0)

@pytest.mark.parametrize("rate, seconds, pitches", [(8000, 0.5, (60, 65, 71, 90)),
                                                    (16000, 4.0, (24, 48, 84, 97))])
def test_steady_notes_are_coherent_whatever_their_tuning_and_level(rate, seconds, pitches):
    for pitch in pitches:
        for off in (-30, 0, 30):                                    # cents
            note = harmonic_note(hertz(pitch + off / 100), rate, seconds)
            found = each(metrics.phase_coherence, [note, 1e-4 * note], [pitch] * 2, rate)
            assert 0.99 < found[0] <= 1 and abs(found[0] - found[1]) < 1e-6, (pitch, off)

@pytest.mark.parametrize("s", [0.25, 0.5, 1.0, 1.5])
def test_coherence_of_diffusing_phases_is_the_closed_form(s):
    """The advance is Gaussian, of standard deviation s, and so has mean exp(-s^2 / 2)."""
    random, k = np.random.RandomState(0), np.arange(1, 6)[:, None]
    turns = 2 * np.pi * k * hertz(84) / 16000 + np.zeros(64000)
    notes = [np.sin((turns + s / math.sqrt(metrics.LAG * 16000) * random.randn(5, 64000))
                    .cumsum(1)).sum(0) for _ in range(10)]
    R_squared = each(metrics.phase_coherence, notes, [84] * 10, 16000) ** 2    # this is unbiased
    assert abs(math.sqrt(R_squared.mean()) - math.exp(-s ** 2 / 2)) < 0.03

def test_phases_drawn_anew_and_white_noise_have_no_coherence():
    random = np.random.RandomState(0)
    note = jumping(random, hertz(72), 512, (1, 2, 3, 4, 5))
    assert metrics.phase_coherence(note, 72, 16000) < 0.2
    long = each(metrics.phase_coherence, random.randn(120, 64000), 24 + np.arange(120) % 61, 16000)
    short = each(metrics.phase_coherence, random.randn(120, 4000), 60 + np.arange(120) % 12, 8000)
    assert long.mean() < 0.03 and short.mean() < 0.07               # measured: 0.02 and 0.05
    # No bias is left before the root: about half of the means were below 0 and clipped.
    assert 0.3 < np.mean(long == 0) < 0.7 and 0.3 < np.mean(short == 0) < 0.7

def test_a_harmonic_counts_as_far_as_it_is_heard():
    """One steady and one random, of amplitudes 1 and a: the mean R_k^2 is 1 / (1 + a)."""
    random, time = np.random.RandomState(0), np.arange(64000) / 16000
    second = jumping(random, hertz(84), 256, (2,))
    for a in (0.1, 0.5, 1.0):
        note = np.sin(2 * np.pi * hertz(84) * time) + a * second
        found = metrics.phase_coherence(note, 84, 16000)
        assert abs(found - (1 + a) ** -0.5) < 0.03, a
    dying = harmonic_note(hertz(60), 16000, 4.0) * np.exp(-8 * time)     # 60 dB in 0.9 s
    noise = 1e-4 * random.randn(64000)    # all that is left then
    found = each(metrics.phase_coherence, [dying + noise, noise, 0 * noise], [60] * 3, 16000)
    assert found[0] > 0.99 and found[1] < 0.2 and found[2] == 0
    assert np.isnan(metrics.phase_coherence(noise[:1000], 24, 8000))    # too short, and
    assert np.isnan(metrics.phase_coherence(noise[:4000], 127, 8000))   # beyond Nyquist

@pytest.mark.parametrize("rate, pitch, off", [(16000, 60, 30), (16000, 24, -30), (8000, 71, 20)])
def test_cycles_of_a_steady_note_fall_on_each_other_and_those_of_noise_do_not(rate, pitch, off):
    note = harmonic_note(hertz(pitch + off / 100), rate, seconds=1.0, slope=2.0)
    pictures = [metrics.phase_picture(wave, pitch, rate)
                for wave in (note, np.random.RandomState(0).randn(rate))]
    assert (pictures[0][196:] == spectral.rainbowgram(note, rate)).all()
    steady, blurred = (picture[:192, :, 0] / 255.0 for picture in pictures)
    assert np.median((steady > 0.1).sum(0)) < 6 < 12 < np.median((blurred > 0.1).sum(0))
    # The line is the note's own waveform: one cycle, from half the cycles before the middle.
    period = rate / hertz(pitch + off / 100)
    cycles = math.ceil(1028 / period)
    when = rate / 2 + (np.linspace(0, 1, steady.shape[1]) - cycles / 2) * period
    line = 95.5 - 0.5 * 192 * 0.9 * np.interp(when, np.arange(rate), note) / np.abs(note).max()
    found = (steady ** 2 * np.arange(192)[:, None]).sum(0) / (steady ** 2).sum(0)
    assert np.median(np.abs(found - line)) < 1.5
    for length in (8000, 100):            # silence, and not one period
        assert not metrics.phase_picture(np.zeros(length), 24, 8000)[:90].any()

# ---- metrics.py, the paper's measures ----
def test_fid_is_the_closed_form_and_what_scipys_root_gives():
    a = np.random.RandomState(0).randn(50, 3)
    for x in (a, a[:, :1]):               # covariances that commute: the distance of their roots
        expected = np.square(x.mean(0) + 1).sum() + x.var(0, ddof=1).sum()
        assert metrics.frechet_distance(x, 2 * x + 1) == pytest.approx(expected, rel=1e-9)
    for n in (400, 12):                   # or fewer rows than features
        r = np.random.RandomState(n)
        a, b = r.randn(n, 20) @ r.randn(20, 20), r.randn(n, 20) @ r.randn(20, 20) + 1
        cov_a, cov_b = np.cov(a.T), np.cov(b.T)
        trace = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)).real
        theirs = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b) - 2 * trace
        assert metrics.frechet_distance(a, b) == pytest.approx(theirs, rel=1e-5)

def test_inception_score_pitch_entropy_and_accuracy_are_scipys_and_their_bounds():
    logits = np.random.RandomState(0).randn(50, 7)
    p = scipy.special.softmax(logits, axis=1)
    score = np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p]))
    assert metrics.inception_score(logits + 1e4) == pytest.approx(score)
    assert metrics.pitch_entropy(logits) == pytest.approx(scipy.stats.entropy(p, axis=1).mean())
    assert metrics.inception_score(np.zeros((10, 61))) == pytest.approx(1)
    assert metrics.pitch_entropy(np.zeros((3, 128))) == pytest.approx(math.log(128))    # nats
    counts = np.array([*nsynth.RELEASE_COUNTS.values()]) // 5     # the ceiling of the paper's IS
    sure = 1e3 * np.eye(len(counts))[np.repeat(np.arange(len(counts)), counts)]
    assert metrics.inception_score(sure) == pytest.approx(58.9, abs=0.05)
    logits, pitch = np.eye(128)[[60, 61, 62, 63, 24]], np.array([60, 60, 60, 60, 24])
    assert metrics.pitch_accuracy(logits, pitch) == pytest.approx(2 / 5)
    assert metrics.pitch_accuracy(logits, pitch, within=1) == pytest.approx(3 / 5)

def ndb(train, samples, k=50, seed=0):
    return metrics.ndb(train, samples, metrics.cell_centres(train, k, seed))

def test_ndb_of_two_halves_of_one_set_is_what_chance_gives():
    found = []
    for seed in range(8):
        x = np.random.RandomState(seed).randn(6000, 4)
        found.append(ndb(x[:3000], x[3000:], seed=seed).number)
    assert 1 < np.mean(found) < 4.5       # 2.5 of 50; the mean of 8 has a deviation of 0.5
    alike = ndb(np.zeros((9, 2)), np.zeros((7, 2)), k=3)            # two cells are left empty
    assert alike.number == alike.js == 0 and alike.train.tolist() == alike.samples.tolist() == [1]

@pytest.mark.parametrize("dims, used", [(8, 8), (1200, 200)])
def test_ndb_flags_a_removed_cluster_and_seeks_it_in_a_sixth_of_many_dimensions(
        dims, used, monkeypatch):
    kmeans2 = Mock(wraps=metrics.kmeans2)
    monkeypatch.setattr(metrics, "kmeans2", kmeans2)
    r = np.random.RandomState(0)
    heaps = 20 * r.randn(10, 1, dims) + r.randn(10, 60, dims)
    train, samples = heaps.reshape(600, dims), heaps[:-1].reshape(540, dims)
    centres = metrics.cell_centres(train, k=10)
    np.testing.assert_allclose(sorted(centres[:, 0]), sorted(heaps.mean(1)[:, 0]))
    seen, = kmeans2.call_args.args[:1]
    assert seen.shape == (600, used) and set(seen[0]) <= set(train[0])
    result = metrics.ndb(train, samples, centres)
    gone = result.samples == 0
    assert gone.sum() == 1 and result.p[gone] < 1e-6 and result.train[gone] == pytest.approx(0.1)
    assert result.number == 1             # 60 of 540 beside 60 of 600 is no difference

def test_ndbs_test_and_divergence_are_scipys():
    train = np.repeat([[0.0], [9.0]], [30, 370], axis=0)
    samples = np.repeat([[0.0], [9.0]], [18, 132], axis=0)
    result = ndb(train, samples, k=2)
    chi2 = scipy.stats.chi2_contingency([[30, 370], [18, 132]], correction=False)
    np.testing.assert_allclose(result.p, chi2.pvalue, rtol=1e-9)    # z squared
    p, q = result.train, result.samples
    js = scipy.stats.entropy((p + q) / 2) - (scipy.stats.entropy(p) + scipy.stats.entropy(q)) / 2
    assert result.js == pytest.approx(js) and result.number == 0 and p[0] > p[1]

# ---- metrics.py, the classifier ----
def test_the_classifier_sees_what_scipys_spectrogram_shows():
    wave = harmonic_note(440.0, rate=16000, seconds=4.0).astype(np.float32)
    ours = metrics.log_spectrogram(torch.from_numpy(np.stack([wave, wave / 50])), 16000)
    assert ours.shape == (2, 1, 512, 256)                           # paper, appendix
    assert (ours[0] - ours[1]).abs().max() < 0.01                   # the level does not tell
    padded = np.pad(wave, (2304, 0))      # as in spectral.stft
    _, _, S = scipy.signal.stft(padded, 16000, nperseg=1024, noverlap=768, padded=False,
                                boundary=None, scaling="spectrum")
    decibels = 20 * np.log10(np.abs(S[1:]) / np.abs(S[1:]).max() + 1e-12)
    np.testing.assert_allclose(ours[0, 0], np.clip(1 + decibels / 80, 0, 1), atol=2e-3)
    silence = metrics.log_spectrogram(torch.zeros(1, 4096), 8000)
    assert silence.shape == (1, 1, 256, 32) and silence.max() == 0

def test_the_full_classifier_is_the_papers_and_pads_as_tensorflow():
    classifier = metrics.Classifier(16000, 128).eval().requires_grad_(False)
    x = torch.randn(1, 1, 512, 256)
    widths = [1, 128, 128, 128, 256, 256, 256, 512, 512, 512]
    for conv, a, b in zip(classifier.convs, widths, widths[1:]):
        weight, stride, k = conv[1].weight, conv[1].stride, 5 if a == 1 else 4
        assert weight.shape == (b, a, k, k)
        pad = [max(0, (math.ceil(n / s) - 1) * s + k - n) for n, s in zip(x.shape[2:], stride)]
        same = [side for total in pad[::-1] for side in (total // 2, total - total // 2)]
        ours = conv(x)
        torch.testing.assert_close(ours, F.conv2d(F.pad(x, same), weight, stride=stride),
                                   rtol=1e-3, atol=1e-4)
        x = ours / ours.std()
    assert x.shape == (1, 512, 1, 1)
    features, logits = classifier(metrics.log_spectrogram(torch.zeros(2, 64000), 16000))
    assert features.shape == (2, 512) and classifier.hidden.out_features == 1024
    assert {name: y.shape[1] for name, y in logits.items()} == {
        "pitch": 128, "qualities": 10, "family": 11, "source": 3}

def test_what_is_not_told_does_not_count_in_the_loss():
    torch.manual_seed(0)
    logits = {name: torch.randn(6, k) for name, k in metrics.HEADS.items()}
    families = np.array([0, -1, 3, -1, 10, 2])
    quality = np.full((6, 10), -1, np.int8)
    quality[2] = np.arange(10) % 2
    notes = SimpleNamespace(pitch=np.arange(60, 66), source=np.full(6, ""), qualities=quality,
                            family=np.array([*nsynth.FAMILIES, ""])[families])
    told = families >= 0
    theirs = (F.cross_entropy(logits["pitch"], torch.arange(60, 66))
              + F.cross_entropy(logits["family"][told], torch.from_numpy(families[told]))
              + F.binary_cross_entropy_with_logits(logits["qualities"][2],
                                                   torch.from_numpy(quality[2]).float()))
    torch.testing.assert_close(metrics.classifier_loss(logits, notes, np.arange(6)), theirs)

SHORT = metrics.Setting(length=2048, sample_rate=8000, pitch_low=60, pitch_high=63)
FORM = "--length 2048 --sample-rate 8000 --pitches 60-63 --data orchestra --device cpu".split()

def find_classifier(setting=SHORT, notes=None, **more):
    args = {"classifier": None, "train_classifier": False, "width": 16, "examples": 0,
            "device": "cpu", **more}
    return metrics.find_classifier(setting, notes or SHORT.notes("")[0], SimpleNamespace(**args))

@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A folder in which a classifier of SHORT was trained, and its file."""
    folder = tmp_path_factory.mktemp("classified")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trial = folder / find_classifier(examples=3200)[1]          # enough for these
        return folder, trial.rename(str(trial).replace("-trial", ""))

def short_run(out, **more):
    """A run of SHORT's notes, as good as untrained."""
    form = {f: getattr(SHORT, f) for f in ("length", "sample_rate", "pitch_low", "pitch_high")}
    return tiny_run(out, **form, images=8, **more)

def write_notes(folder, waves, pitches, rate=8000):
    folder.mkdir()
    for i, (wave, pitch) in enumerate(zip(waves, pitches)):
        nsynth.write_wav(folder / f"{i:03}-{pitch:03}.wav", torch.as_tensor(wave).float(), rate)
    return folder

def measured(capsys, *argv):
    """The table of one command, from its JSON."""
    capsys.readouterr()
    metrics.main([*map(str, argv), "--json", "--device", "cpu"])
    return json.loads(capsys.readouterr().out)

def test_a_classifier_is_kept_and_found_again_and_refused_where_it_does_not_fit(
        classified, tmp_path, monkeypatch, capsys):
    folder, path = classified
    monkeypatch.chdir(folder)
    (kept, which), (named, _) = find_classifier(), find_classifier(classifier=path)
    waves = torch.randn(3, 1, 256, 16)
    assert torch.equal(kept(waves)[1]["pitch"], named(waves)[1]["pitch"])
    assert str(folder / which) == str(path) and capsys.readouterr().err == ""   # none was trained
    trial = find_classifier(train_classifier=True, examples=32)[1]
    assert trial == which.replace(".pt", "-trial.pt") and find_classifier()[1] == which
    assert torch.equal(find_classifier()[0](waves)[1]["pitch"], kept(waves)[1]["pitch"])
    few = SHORT.notes("")[0].subset(range(9))
    assert "on other notes" in find_classifier(notes=few, classifier=path)[1]
    find_classifier(SHORT._replace(pitch_high=62), classifier=path)
    for form in ({"length": 4096}, {"sample_rate": 16000}, {"pitch_high": 64}):
        refuses(metrics.MetricError, "2,048 samples at 8,000 Hz, pitches 60-63", find_classifier,
                SHORT._replace(**form), classifier=path)
    tiny_checkpoint(tmp_path / "gan.pt")
    for name in ("gan.pt", "nowhere.pt"):
        refuses(metrics.MetricError, f"{name} is no whole classifier", find_classifier,
                classifier=tmp_path / name)

def test_one_command_one_table(classified, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(classified[0])
    run, other = short_run(tmp_path / "run"), short_run(tmp_path / "other", seed=3)
    notes, held_out = SHORT.notes("")
    copies = write_notes(tmp_path / "copies", notes.waves(range(80)), notes.pitch[:80])
    argv = [run, other, run, copies, "--samples", "60", "--controls"]
    table = measured(capsys, *argv, "--out", tmp_path / "out")
    rows = {entry["name"]: entry["values"] for entry in table["rows"]}
    assert list(rows) == ["real: held out of orchestra", f"{run}, 8 examples",
                          f"{other}, 8 examples, another split", str(copies),
                          "control: white noise", "control: one note repeated",
                          "control: shuffled pitches"]
    truth, fake, _, real, noise, one, shuffled = rows.values()
    assert truth["notes"] == len(held_out) and fake["notes"] == real["notes"] == 60
    assert truth["PA"] > 0.8 and real["PA"] > 0.8 and truth["in tune"] == 1
    assert truth["PE"] < fake["PE"] and truth["FID"] < fake["FID"] and real["FID"] < fake["FID"]
    assert fake["NDB"] > real["NDB"] and truth["NDB"] is None       # fewer notes than cells
    # each failure is caught by one measure at least, and not by others
    assert noise["PA"] < 0.5 and noise["FID"] > truth["FID"] and noise["steady"] < 0.5
    assert one["PA"] > 0.9 and one["IS"] < 1.1 and one["variety"] < 0.1 and one["JS"] > 0.5
    assert shuffled["PA"] < 0.5 and shuffled["FID"] == pytest.approx(truth["FID"])
    assert any("fewer than 640 notes" in remark for remark in table["remarks"])
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for name in (f"{number:02}" for number in range(7)):
        assert f'src="{name}.png"' in page and (tmp_path / "out" / f"{name}.png").exists()
        assert f'<audio src="{name}.wav"' in page
        assert len(nsynth.read_sound(tmp_path / "out" / f"{name}.wav")[0]) == 4 * 2048
    assert page.count('class="cells"') == 5             # of 60 notes, not of 40
    metrics.main([*map(str, argv), "--markdown", "--device", "cpu", "--out", str(tmp_path / "b")])
    assert json.loads((tmp_path / "b" / "table.json").read_text()) == table     # the same seed
    printed, told = capsys.readouterr()
    assert table["title"] in told and table["remarks"] and all(
        remark in told for remark in table["remarks"])
    _, _, real, paper, *_ = re.sub(" +", " ", printed).splitlines()
    assert real.startswith(f"| real: held out of orchestra | {len(held_out)} |")
    assert f"| {truth['PA']:.1%} |" in real and paper.startswith("| paper: Real data | 12,800 |")

def test_a_hasty_classifier_is_warned_of():
    """It names real notes right, and is sure of none: IS and PE are far from what they could be."""
    pitch = np.repeat(np.arange(60, 72), 20)
    heard = SimpleNamespace(pitch=pitch, peak=np.ones(240), off=np.zeros(240),
                            features=np.zeros((240, 3)))
    for height, warned in ((9, False), (1, True)):
        logits = 9 * np.eye(128)[60:72].sum(0) + height * np.eye(128)[pitch]
        values = {"PA": metrics.pitch_accuracy(logits, pitch),
                  "IS": metrics.inception_score(logits), "PE": metrics.pitch_entropy(logits)}
        told = " ".join(metrics.remarks(metrics.Run("real", pitch, None, "Real data"), heard,
                                        values, heard))
        assert values["PA"] == 1 and "IS can be 12.0" in told
        assert ("the classifier is not sure even of real notes" in told) == warned

def test_ndb_looks_at_all_frequencies_and_sixteen_stretches_of_time():
    run = metrics.Run("sine", np.array([83, 83]), lambda some: sine(1000).repeat(2, 1)[some])
    classifier = metrics.Classifier(16000, 16).eval().requires_grad_(False)
    heard = metrics.hear(run, classifier, 16000, "cpu")
    loudest = heard.pictures[0].reshape(512, 16).argmax(0)
    assert (loudest == 1000 / 16000 * 1024 - 1).all()               # bin 0 is dropped
    # FID's features are those before the activation: what follows gives the logits
    features = torch.from_numpy(heard.features)
    hidden = F.leaky_relu(classifier.hidden(F.leaky_relu(features, 0.2)), 0.2)
    np.testing.assert_allclose(classifier.heads["pitch"](hidden), heard.logits, atol=1e-4)
    assert metrics.Setting().count(None) == 12_800                  # the paper's

def test_a_row_of_the_paper_belongs_to_every_kind_of_run():
    def name(**more):
        return metrics.paper_name({"model": "gansynth", **asdict(train.Config()), **more})

    kinds = [{"rep": rep, "hires": hires} for rep in spectral.REPRESENTATIONS
             for hires in (False, True)]
    kinds += [{"model": "wavegan"}, {"rep": "waveform"}, {"rep": "waveform", "progressive": False},
              {"model": "wavenet", "output": "mulaw8"}, {"model": "wavenet", "output": "mol16"}]
    assert {"Real data", *(name(**kind) for kind in kinds)} == set(metrics.PAPER)
    assert metrics.PAPER[name()] == {"notes": 12_800, "NDB": 29.3, "FID": 167, "IS": 38.1,
                                     "PA": 0.979, "PE": 0.40}

def test_what_cannot_be_measured_is_one_sentence(classified, tmp_path, monkeypatch):
    monkeypatch.chdir(classified[0])
    one = write_notes(tmp_path / "one", np.full((1, 2048), 0.1), [60])
    nan = write_notes(tmp_path / "nan", np.full((3, 99), 0.1), [60] * 3)
    scipy.io.wavfile.write(nan / "0-060.wav", 8000, np.full(99, np.nan, np.float32))
    run, other = short_run(tmp_path / "a"), tiny_run(tmp_path / "b", images=8)
    for says, *argv in (
            ("1 of its 1 WAVs tell a pitch in 60-63", one, *FORM),
            ("nan/0-060.wav", nan, *FORM), ("nowhere: no whole checkpoint there", "nowhere"),
            ("b makes notes of 256 samples at 2,000 Hz, pitches 60-62, and the", run, other),
            ("no mel scale, but if: leave --mel-inverse", run, "--mel-inverse", "transpose"),
            ("one/000-060.wav/new cannot be made", run, "--out", one / "000-060.wav" / "new")):
        assert says in refusal(metrics, *argv)
    assert not list(Path("runs").glob(".*.part"))       # nothing half-written

def test_what_is_odd_about_wavs_is_told(classified, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(classified[0])
    waves = [harmonic_note(hertz(72), seconds=0.2)] * 12 + [np.zeros(1600)] * 2
    octave = write_notes(tmp_path / "octave", waves, [60] * 12 + [90, 61])
    (octave / "000-060.wav").rename(octave / "000-060.WAV")
    waves = [harmonic_note(hertz(p), seconds=0.3) for p in (60, 61)] * 6
    slow = write_notes(tmp_path / "slow", waves, [60, 61] * 6, rate=10079)
    table = measured(capsys, octave, slow, *FORM)
    name = f"{octave}, 13 of its 14 WAVs, from 1,600 samples at 8,000 Hz"
    assert [row["name"] for row in table["rows"][1:]] == [
        name, f"{slow}, from 2,400 samples at 10,079 Hz"]
    remarks = "\n".join(table["remarks"])
    assert f"1 notes are silent, and count all the same ({name})" in remarks
    assert "sound +12.0 semitones beside their pitches" in remarks
    assert "sound +4.0 semitones" in remarks and "of 0.79 times the rate" in remarks

# ---- notebooks/listening_test.py ----
def listening_models():
    """Three runs of noise at levels from 0.01 to 0.1, pitches 60 to 63 in turn."""
    waves = np.random.RandomState(3).randn(3, 20, 400) * np.geomspace(0.01, 0.1, 20)[:, None]
    return [metrics.Run(name, 60 + np.arange(20) % 4, torch.from_numpy(wave).float().__getitem__)
            for name, wave in zip(("model-alpha", "model-beta", "model-gamma"), waves)]

def listening_page(out, runs, pairs, seed=0):
    """Write a test; -> its page, the key [(A, B, pitch)], and the notes, (pairs, 2, L) int16."""
    args = SimpleNamespace(out=out, data=None, samples=20, seed=seed, pairs=pairs)
    listening_test.listening_test(SHORT, runs, args)
    text = (out / "index.html").read_text(encoding="utf-8")
    wavs = [scipy.io.wavfile.read(io.BytesIO(base64.b64decode(note)))
            for note in re.findall(r"data:audio/wav;base64,([^\"]+)", text)]
    assert {rate for rate, _ in wavs} == {8000} and len(wavs) == 2 * pairs
    key = json.loads(base64.b64decode(re.search(r'data-key="([^"]+)', text)[1]))
    return text, key, np.stack([wave for _, wave in wavs]).reshape(pairs, 2, -1)

def test_a_listening_test_is_balanced_blind_and_matched_in_level(tmp_path):
    runs = listening_models()
    text, key, notes = listening_page(tmp_path / "test", runs, pairs=28, seed=3)
    names = [run.name for run in runs]
    assert not any(name in text for name in names) and "://" not in text
    meetings = {pair: [(a, b) for a, b, _ in key if {a, b} == set(pair)]
                for pair in itertools.combinations(names, 2)}
    assert sorted(map(len, meetings.values())) == [9, 9, 10]
    for (a, b), met in meetings.items():
        assert abs(met.count((a, b)) - met.count((b, a))) <= 1
    assert len(np.unique(notes.reshape(56, -1), axis=0)) == 56      # of 60: none comes twice
    for (*models, pitch), pair in zip(key, notes):                  # each is what the key says
        for model, note in zip(models, pair):
            run = runs[names.index(model)]
            waves = run.waves(slice(None)).numpy()
            alike = waves @ note / np.linalg.norm(waves, axis=1) / np.linalg.norm(note)
            assert alike.max() > 0.99 and run.pitch[alike.argmax()] == pitch
    rms = np.sqrt(np.mean((notes / 32768.0) ** 2, axis=-1))
    assert np.ptp(20 * np.log10(rms)) < 0.01                        # dB
    assert abs(np.abs(notes).max() / 32768 - 0.9) < 1e-3
    assert listening_page(tmp_path / "again", runs, 28, seed=3)[0] == text
    other, test = listening_page(tmp_path / "other", runs, 28)[0], 'data-test="([^"]+)'
    assert re.search(test, other)[1] != re.search(test, text)[1]

def test_few_notes_repeat_evenly_but_never_in_the_same_pair():
    pitches = {"a": np.array([60, 60, 60, 61]), "b": np.array([60, 60, 61, 62])}
    drawn = listening_test.draw_pairs(pitches, 7, 0)                # 3 x 2 + 1 x 1: all there are
    assert len({frozenset(pair) for pair in drawn}) == 7
    drawn = [note for pair in listening_test.draw_pairs(pitches, 3, 0) for note in pair]
    assert len(set(drawn)) == 6           # 2 pairs of 60 and one of 61 repeat no note
    for models, says in ((pitches, "a and b have notes for 7 pairs of one pitch, and 8"),
                         ({"a": pitches["a"]}, "two models or more")):
        refuses(metrics.MetricError, says, listening_test.draw_pairs, models, 8, 0)

def test_a_listening_test_of_a_run_and_real_notes(capsys):
    argv = ["--data", "orchestra", "--pairs", "6", str(short_run("a")), "--out", "page"]
    listening_test.main(argv)
    assert Path("page/index.html").read_text(encoding="utf-8").count("UklGR") == 12
    for wrong, says in ((argv, "page is there already"), (["--score", "n*.json"],
                                                                 "n*.json is not there")):
        assert says in refusal(listening_test, *wrong)
    answers_file("answers-Ann.json", [("x", "y", 1)])
    listening_test.main(["--score", "answers*.json"])   # as where the shell does not expand it
    assert "1 raters, 1 ratings" in capsys.readouterr().out

def answers_file(path, ratings, rater="Ann", **changes):
    """ratings: [(A, B, 1 to 5), ...]"""
    answers = [{"pair": i, "A": a, "B": b, "pitch": 60, "rating": rating}
               for i, (a, b, rating) in enumerate(ratings, 1)]
    path = Path(path)
    path.write_text(json.dumps({"format": "gansynth-listening-answers", "version": 1, "test": "t",
                                "rater": rater, "answers": answers} | changes))
    return path

def test_wins_ties_and_losses_are_counted_from_both_sides():
    ann = [("x", "y", 1), ("y", "x", 5), ("x", "z", 3), ("z", "y", 4), ("y", "z", 2)]
    ben = [(a, b, r) for (a, b, _), r in zip(ann, (2, 1, 4, 3, 5))]
    found = listening_test.score_test([answers_file("1", ann), answers_file("2", ben, "Ben")])
    raters, models, pairs = found
    # x against y: 1, 5, 2, 1; z: 3, 4.  y against x: from the other side; z: 4, 2, 3, 5
    assert raters == 2 and models == {"x": [3, 1, 2], "y": [3, 1, 4], "z": [2, 2, 2]}
    assert list(models) == ["x", "y", "z"]              # 3/6, 3/8, 2/6
    assert {pair: row[:3] for pair, row in pairs.items()} == {
        ("x", "y"): [3, 0, 1], ("x", "z"): [0, 1, 1], ("y", "z"): [2, 1, 1]}
    assert pairs["x", "y"][3:] == pytest.approx([10 / 16, 1])       # 3 of 4 or further from 2
    text = listening_test.format_scores(*found)
    assert re.search(r"^\| x +\| +6 \| +3 +50\.0% \| +1 +16\.7% \| +2 +33\.3% \|$", text, re.M)
    assert "2 raters, 10 ratings" in text and "needs 7 such ratings" in text    # 3 x 2^-6 < 0.05
    neutral = listening_test.score_test([answers_file("1", [("x", "y", 3)] * 8)])
    assert neutral[2]["x", "y"] == [0, 8, 0, 1, 1]

def test_holm_is_the_worked_example_and_the_closure_of_bonferroni():
    assert np.allclose(listening_test.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    p = np.random.RandomState(1).rand(6) ** 3
    sets = [s for k in range(1, 7) for s in itertools.combinations(range(6), k)]
    closed = [max(min(1, len(s) * p[list(s)].min()) for s in sets if i in s) for i in range(6)]
    assert np.allclose(listening_test.holm(p), closed)

def test_needed_ratings_have_the_power_they_promise():
    def power(n):                         # by scipy's own test of every outcome
        wins = np.arange(n // 2, n + 1)
        least = next(w for w in wins if scipy.stats.binomtest(w, n).pvalue <= 0.05 / 3)
        return scipy.stats.binom.pmf([*range(n - least + 1), *range(least, n + 1)], n, 0.6).sum()

    n = listening_test.ratings_for_power(3)
    assert power(n - 1) < 0.8 <= min(power(more) for more in range(n, n + 40))

def test_answers_that_cannot_be_counted_are_refused():
    none, different = "no answers to a listening test", "different tests"
    good = answers_file("good", [("x", "y", 1)])
    Path("bytes").write_bytes(b"\xff\xfe\x00")
    refuses(metrics.MetricError, none, listening_test.score_test, [good, Path("bytes")])
    for says, rating, changes in (
            (none, ("x", "y", 1), {"format": "else"}), (none, ("x", "y", 1), {"version": 2}),
            (none, ("x", "y", 1), {"answers": []}), (none, ("x", "y", 1), {"answers": 3}),
            (none, ("x", "y", 6), {}), (none, ("x", "y", True), {}), (different, ("y", "x", 1), {}),
            (different, ("x", "y", 1), {"test": "u"}), ("'Ann'", ("x", "y", 1), {"rater": "Ann"})):
        bad = answers_file("bad", [rating], **{"rater": "Ben", **changes})
        refuses(metrics.MetricError, says, listening_test.score_test, [good, bad])

def test_a_rater_answers_by_keys_and_is_scored(tmp_path):
    _, key, _ = listening_page(tmp_path / "test", listening_models(), pairs=4)
    page = tmp_path / "test" / "index.html"
    page.write_text(page.read_text("utf-8").replace("const form", """
        localStorage.setItem("gansynth-listening-" + document.forms[0].dataset.test,
                             '{"1": "2", "rater": "Z"}');       // as if closed before
        const form""", 1), "utf-8")
    before, locked, count, stored, ready, focus, saved = in_browser(page.parent, """
        const seen = [];
        URL.createObjectURL = blob => (blob.text().then(text => tell([...seen, text])), "#");
        setTimeout(() => {
          seen.push(answers(), save.disabled, document.querySelector("progress").value);
          document.querySelectorAll("audio")[2].focus();
          [..."543"].forEach(press);
          seen.push(localStorage.getItem(storage), save.disabled, document.activeElement.id);
          form.elements.rater.value = "Zoë B.";
          save.click();
        }, 500);""")
    assert before == {"1": "2", "rater": "Z"} and locked and count == 1
    assert json.loads(stored) == {"1": "2", "2": "5", "3": "4", "4": "3", "rater": "Z"}
    assert ready is False and focus == "save"           # all are given: on to the button
    (tmp_path / "answers.json").write_text(saved, "utf-8")
    assert listening_test.score_test([tmp_path / "answers.json"])[0] == 1
    saved = json.loads(saved)
    assert saved["rater"] == "Zoë B."
    assert [(*a.values(),) for a in saved["answers"]] == [
        (i, *pair, rating) for i, (pair, rating) in enumerate(zip(key, (2, 5, 4, 3)), 1)]

# ---- notebooks: the paper map ---------------------------------------------------------------
def mapped(text):
    """Names in backticks, as `gansynth.Adam`; `.step` is a method of the name before."""
    names = [""]
    for name in re.findall(r"`([a-z_]*\.(?!py`|md`)\w[\w.]*)`", text):
        names.append(re.match(r"\w+\.\w+", names[-1])[0] + name if name[0] == "." else name)
    return set(names[1:])

def test_the_paper_map_has_the_reading_paths_whole_and_every_difference_that_is_marked():
    text = (HERE / "notebooks" / "paper.md").read_text("utf-8")
    names, told = mapped(text), mapped(text.split("\n## 3.")[1])
    for name in names:
        operator.attrgetter(name.partition(".")[2])(globals()[name.partition(".")[0]])
    for module in (spectral, gansynth, train, nsynth, sample, metrics):
        script = Path(module.__file__).read_text("utf-8")
        end = script.find("\n# ====") if module in (spectral, gansynth, train) else 0
        nodes, ends = ast.parse(script[:end]).body, ast.parse(script).body
        for node in (n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))):
            inside = node.body * isinstance(node, ast.ClassDef)     # methods, no inner functions
            public = [f".{node.name}.{f.name}" for f in inside if isinstance(f, ast.FunctionDef)]
            assert names >= {module.__name__ + name for name in (f".{node.name}", *public)
                             if "._" not in name}
            assert re.search(r"aper(,|'s)? (\d\.\d|appendix|Table \d|Fig\. \d)|\b(19|20)\d\d\b",
                             ast.get_docstring(node)), f"{node.name} names no section or article"
        for token in tokenize.generate_tokens(io.StringIO(script).readline):
            if token.type == tokenize.COMMENT or token.string.startswith('"""'):
                for i, line in enumerate(token.string.split("\n"), token.start[0]):
                    if re.search(r"(?<!-)\b(paper|code|ours): ", line):
                        node = next(node for node in ends if i <= node.end_lineno)
                        at = re.match(r"(class |def )?(\w+)", script.split("\n")[node.lineno - 1])
                        assert any(f"{name}.".startswith(f"{module.__name__}.{at[2]}.")
                                   for name in told), line

# ---- notebooks ----
NOTEBOOK = json.loads((HERE / "notebooks" / "exercises.ipynb").read_text("utf-8"))["cells"]
CELLS = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK}
CODE = [cell["id"] for cell in NOTEBOOK if cell["cell_type"] == "code"]
SOLUTIONS = {name[:-5]: re.search(r"Solution</summary>.*?```python\n(.*?)```", text, re.S)[1]
             for name, text in CELLS.items() if name.endswith("-help")}

def said(*cells):
    """What Jupyter shows of the checks among code cells, run in a process of their own."""
    done = subprocess.run([sys.executable, "-c", """if True:
        import json, sys
        space, said = {}, []
        for cell in json.load(sys.stdin):
            try:
                exec(cell, space)
                said += ["right"] * cell.startswith("# ")           # as all checks do
            except AssertionError as error:
                said += error._render_traceback_()
        print(json.dumps(said))"""], input=json.dumps(cells), capture_output=True, text=True,
        cwd=HERE / "notebooks", env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

def test_the_exercises_fail_as_given_each_in_its_sentence_and_pass_when_solved():
    given = said(*(CELLS[name] for name in CODE))
    for name, sentence in zip([*SOLUTIONS, "ex1"], given, strict=True):     # all parts come last
        stub = re.search(r"(def|class) (\w+)", CELLS[name])[2] + " is still to be written"
        assert sentence.startswith("not yet: " + stub * name.startswith("ex"))
    assert len(set(given)) == len(SOLUTIONS) == 16
    solved = said(*(SOLUTIONS.get(name, CELLS[name]) for name in CODE))
    assert solved == ["right"] * 17

def test_the_exercises_name_the_usual_mistakes():
    mistakes = [                          # of a solution: what is there, what instead, the sentence
        ("ex1", "[..., 1:]", "[..., :-1]", "dropped the highest bin"),
        ("ex2", "torch.cat", "math.pi * torch.cat", "phases are not in units of pi"),
        ("ex3a", "(0, nyquist, bins)", "(nyquist / bins, nyquist, bins)", "a slip of the release"),
        ("ex3b", "- 2 * torch", "- 0 * torch", "some steps are longer than half a turn"),
        ("ex4", " * 3 * 3", "", "fan-in is more than the inputs"),
        ("ex5a", "mean(dim=1", "mean(dim=(2, 3)", "you took the mean over places"),
        ("ex5b", "().mean(dim=0)", "().sum(dim=0) / (len(x) - 1)", "you divided by n - 1"),
        ("ex6a", "resolutions - 1", "99", "it goes on for ever"),
        ("ex6b", "if alpha:", "if 0:", "the new block has all the weight already"),
        ("ex7", ", create_graph=True", "", "do not reach D's weights"),
        ("ex8a", "scipy.linalg.sqrtm(A @ B)", "np.sqrt(A @ B)", "the root of each number"),
        ("ex8b", "2 * scipy.stats", "scipy.stats", "you took one side only"),
        ("bug1", "(coarse, sharp", "(sharp, coarse", "the wrong way round"),
        ("bug2", "(unwrapped @ M", "(phase @ M", "still rough: angles such as 0.99 and -0.99"),
        ("bug3", "x, create_graph=True", "x", "the penalty does not reach w"),
        ("bug4", "len(x_real), 1", "1, 1", "all pictures have the same epsilon")]
    cells = [CELLS[name] for name in CODE[:3]]
    for name, piece, instead, _ in mistakes:
        assert piece in SOLUTIONS[name]
        cells += [SOLUTIONS[name].replace(piece, instead), CELLS[f"{name}-check"]]
    for (*_, sentence), shown in zip(mistakes, said(*cells), strict=True):
        assert shown.startswith("not yet: ") and sentence in shown

@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "1_spectra", "2_gan", "3_listening", "4_measuring", "5_workshop"])
def test_a_notebook_runs_and_shows_what_is_kept_of_it(name):
    nbclient, nbformat = map(pytest.importorskip, ("nbclient", "nbformat"))
    path = HERE / "notebooks" / f"{name}.ipynb"
    kept, fresh = nbformat.read(path, 4), nbformat.read(path, 4)
    told = [cell.source for cell in kept.cells] + [
        output.get("text", "") for cell in kept.cells for output in cell.get("outputs", ())]
    assert path.stat().st_size < 1e6 and not re.search(r"/(home|tmp|work|root)/", " ".join(told))
    nbclient.execute(fresh, str(HERE / "notebooks"), timeout=600, kernel_name="python3")

    def kinds(notebook):
        return [[sorted(output["data"]) for output in cell.get("outputs", ()) if "data" in output]
                for cell in notebook.cells]

    assert kinds(fresh) == kinds(kept)
