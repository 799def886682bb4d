"""Train GANSynth: notes -> spectra -> progressive GAN -> checkpoint, and sound along the way.

    python train.py                          15 minutes on a laptop, on built-in notes
    python train.py --preset paper --data nsynth        the paper's run
    python train.py --model wavenet          one of the paper's baselines instead
    python train.py --resume runs/0001       goes on exactly where a run stopped

The file reads top to bottom: settings, data, state, one step, the loop, the command line.
Every schedule counts training examples, never a clock or steps.
"""

import os

# Both are read when torch is imported, and ignored where they mean nothing.
# Large tensors in huge pages: else a full-size step spends a quarter of its time in page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Threads that wait for each other soon sleep instead of spinning: as fast on an idle machine, and
# up to ten times as fast beside another program, which would keep one thread from its core.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import argparse
import contextlib
import copy
import json
import math
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

import gansynth
import nsynth
import spectral


# ---------------------------------------------------------------------------------------------
# Settings


GANSYNTH, WAVEGAN, WAVENET = ("gansynth",), ("wavegan",), ("wavenet",)
MODELS = GANSYNTH + WAVEGAN + WAVENET


def setting(default, help, choices=None, of=MODELS):
    """A field of Config; `of` are the models that it matters to."""
    return field(default=default, metadata={"help": help, "choices": choices, "of": of})


class ConfigError(ValueError):
    """A setting that cannot work; the message says which values could."""


RANGES = {                                # of numbers; where not said, 0 or more
    **dict.fromkeys(("length", "sample_rate", "resolutions", "latent", "channel_base",
                     "channel_max", "channels", "critic_steps", "stacks", "crop", "images",
                     "batch", "tick_images", "snapshot_images", "checkpoint_images"),
                    (1, math.inf)),
    "lr": (1e-8, 1), "lr_decay": (0, 1), "ema": (0, 1), "seed": (0, 2 ** 62),
    "pitch_low": (0, 127), "pitch_high": (0, 127), "layers": (1, 16),
}


@dataclass
class Config:
    """All settings of a run.  The defaults are the paper's best model, IF-Mel + H, progressive."""

    # what is learnt
    model: str = setting("gansynth", "gansynth, or a baseline of the paper", MODELS)
    rep: str = setting("if-mel", "representation",
                       [*spectral.REPRESENTATIONS, spectral.WAVEFORM], GANSYNTH)
    hires: bool = setting(True, "high frequency resolution, the paper's + H", of=GANSYNTH)
    progressive: bool = setting(True, "grow the networks; otherwise all blocks from the start",
                                of=GANSYNTH)
    output: str = setting("mulaw8", "a sample is one of 256 codes, or a mixture over 16 bits",
                          ["mulaw8", "mol16"], WAVENET)
    # data
    data: str = setting("orchestra", "built-in notes, or a folder or file of notes (nsynth.py)")
    length: int = setting(64000, "samples a note")
    sample_rate: int = setting(16000, "Hz")
    pitch_low: int = setting(24, "lowest MIDI pitch")
    pitch_high: int = setting(84, "highest MIDI pitch")
    sources: str = setting("acoustic", "sources to keep, with commas; all keeps every one")
    split: str = setting("random", "random 80/20; folders, as the data is; or a CSV list of ids")
    skip_damaged: bool = setting(False, "leave out notes that cannot be read, and count them")
    # networks
    resolutions: int = setting(7, "blocks, each twice the size of the one before", of=GANSYNTH)
    latent: int = setting(256, "dimensions of z", of=GANSYNTH + WAVEGAN)
    channel_base: int = setting(4096, "channels of block b: min(base / 2^b, max)", of=GANSYNTH)
    channel_max: int = setting(256, "most channels of any block", of=GANSYNTH)
    channels: int = setting(64, "beside the wave (WaveGAN), or of every layer (WaveNet)",
                            of=WAVEGAN + WAVENET)
    stacks: int = setting(3, "stacks of dilated layers", of=WAVENET)
    layers: int = setting(10, "layers a stack, with dilations 1, 2, 4, ...", of=WAVENET)
    # schedule, in examples
    images: int = setting(11_000_000, "examples to train on")
    stable_images: int = setting(800_000, "examples between two fades", of=GANSYNTH)
    fade_images: int = setting(800_000, "examples over which a block fades in", of=GANSYNTH)
    batch: int = setting(8, "examples a step")
    critic_steps: int = setting(5, "steps of D for one of G", of=WAVEGAN)
    crop: int = setting(12288, "samples of a note in an example; the first half of them is past "
                        "that the others are foretold from", of=WAVENET)
    # losses and optimiser
    lr: float = setting(8e-4, "Adam's learning rate, G and D")
    lr_decay: float = setting(1.0, "share of lr left at the end; it falls once all blocks are in")
    penalty: float = setting(10.0, "weight of the gradient penalty", of=GANSYNTH + WAVEGAN)
    penalty_units: str = setting("raw", "raw: as released; scaled: at the stage's own size",
                                 ["raw", "scaled"], GANSYNTH)
    drift: float = setting(0.001, "weight of the drift term", of=GANSYNTH)
    pitch_weight: float = setting(10.0, "weight of the pitch classifier's loss",
                                  of=GANSYNTH + WAVEGAN)
    ema: float = setting(0.999, "decay per step of the averaged generator")
    seed: int = setting(0, "of weights, order, latents and everything else random")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    out: str = setting("", "run folder (default: a fresh numbered one under runs/)")
    # reports, in examples
    tick_images: int = setting(10_000, "examples between two lines of the log")
    snapshot_images: int = setting(50_000, "examples between two pictures and WAVs")
    checkpoint_images: int = setting(50_000, "examples between two checkpoints")

    def __post_init__(self):
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            low, high = RANGES.get(f.name, (0, math.inf))
            if choices and value not in choices:
                raise ConfigError(f"{f.name} is {value!r}: choose one of {', '.join(choices)}")
            if f.type in (int, float) and not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{f.name} is {value}: expected a number of at least {low:g}"
                                  + (f" and at most {high:g}" if high < math.inf else ""))
        if self.pitch_low > self.pitch_high:
            raise ConfigError(f"pitches from {self.pitch_low} to {self.pitch_high}: the lowest "
                              "must not be above the highest")

    @property
    def pitch_range(self):
        return self.pitch_low, self.pitch_high

    @property
    def source_names(self):
        names = [name.strip() for name in self.sources.split(",") if name.strip()]
        return () if names in ([], ["all"]) else tuple(names)

    @property
    def name(self):
        """What a run's folder is called after."""
        if self.model != "gansynth":
            return self.model + "-mol16" * (self.output == "mol16")
        return self.rep + "-hires" * (self.hires and self.rep != spectral.WAVEFORM)

    @property
    def grown(self):
        """Examples after which no block is still to come."""
        fades = (self.resolutions - 1) * self.progressive * (self.model == "gansynth")
        return fades * (self.stable_images + self.fade_images)

    def spectrum(self):
        if self.model != "gansynth":      # the wave itself, padded to what the network makes
            layers = max(1, math.ceil(math.log2(self.length / 16) / 2))
            frames = 16 * 4 ** layers if self.model == "wavegan" else self.length
            return spectral.Spectrum(spectral.WAVEFORM, frames, 1, self.length, self.sample_rate)
        return spectral.Spectrum.derive(self.rep, self.hires, self.length, self.sample_rate,
                                        self.resolutions)

    def architecture(self):
        spectrum, pitches = self.spectrum(), self.pitch_high - self.pitch_low + 1
        if self.model == "wavegan":
            return gansynth.WaveGANArchitecture(spectrum.frames, self.latent, pitches,
                                                self.channels)
        if self.model == "wavenet":       # the orchestra holds a key for a share of any length
            hold = 0.75 if self.data == "orchestra" else min(1, 3 * self.sample_rate / self.length)
            return gansynth.WaveNetArchitecture(
                self.length, self.sample_rate, pitches, self.stacks, self.layers, self.channels,
                skip=self.channels, conditioning_channels=self.channels, output=self.output,
                hold=hold)
        waveform = gansynth.WAVEFORM if self.rep == spectral.WAVEFORM else {}
        return gansynth.Architecture(spectrum.frames, spectrum.bins, self.resolutions, self.latent,
                                     pitches, self.channel_base, self.channel_max, **waveform)

    def loss_weights(self):
        return gansynth.LossWeights(self.penalty, self.drift, self.pitch_weight,
                                    self.penalty_units)


PRESETS = {
    "paper": {},
    "workshop": dict(
        length=4096, sample_rate=8000, pitch_low=60, pitch_high=71, resolutions=3, latent=8,
        channel_base=128, channel_max=32, images=16_000, stable_images=1_200, fade_images=2_000,
        batch=4, lr=3e-3, lr_decay=0.03, ema=0.998, penalty_units="scaled", tick_images=500,
        snapshot_images=2_000, checkpoint_images=2_000),
}


# What the baselines change in a preset.  paper's WaveGAN: as its authors trained it (Adam at 1e-4,
# batch 64, 200,000 steps of G: 64M examples, no average of G).  paper's WaveNet: 150,000 steps of
# 32, as GANSynth's paper says; the learning rate, its fall, the average and the crop, two receptive
# fields, are ours.
BASELINES = {
    "wavegan": {
        "paper": dict(latent=100, channels=64, batch=64, lr=1e-4, ema=0.0, images=64_000_000,
                      tick_images=64_000, snapshot_images=640_000, checkpoint_images=320_000),
        "workshop": dict(latent=8, channels=16, batch=16, critic_steps=3, lr=3e-4, lr_decay=0.1,
                         ema=0.998, images=256_000, tick_images=8_000, snapshot_images=32_000,
                         checkpoint_images=32_000),
    },
    "wavenet": {
        "paper": dict(channels=512, batch=32, lr=2e-4, lr_decay=0.1, ema=0.9999, images=4_800_000,
                      tick_images=32_000, snapshot_images=480_000, checkpoint_images=96_000),
        # Short: two periods of a note are all it sees.  With a longer past (2^8, 1,025 samples) it
        # learns to go on with what it hears, the pitch asked for or not, and by heart.
        "workshop": dict(channels=64, stacks=1, layers=5, crop=1024, batch=8, lr=2e-3,
                         lr_decay=0.05, ema=0.998, images=72_000, tick_images=2_000,
                         snapshot_images=8_000, checkpoint_images=8_000),
    },
}


def preset_settings(preset, model):
    """A preset's settings for one of the models."""
    if model == "gansynth":
        return PRESETS[preset]
    return {**PRESETS[preset], "model": model, **BASELINES[model][preset]}


# ---------------------------------------------------------------------------------------------
# Data


class Pictures:
    """Note indices -> their pictures at the size of so many blocks, (n, 2, t, f) on the device.

    Spectra are computed in batches on the training device.  Early stages need small pictures, and
    little time beside them: where those of all notes fit in `memory` bytes they are kept, and
    each note is transformed once a stage and not once an epoch.
    """

    GROUP = 8                             # notes transformed together, always the same ones: so a
                                          # resumed run has the same pictures to the last bit
    def __init__(self, notes, spectrum, arch, device, memory=1 << 30):
        self.notes, self.spectrum, self.arch = notes, spectrum, arch
        self.device, self.memory, self.blocks = device, memory, None

    def __call__(self, indices, blocks):
        t, f = size = self.arch.size(blocks)
        if len(self.notes) * 8 * t * f > self.memory:
            return self.transform(indices, size)
        if blocks != self.blocks:
            self.blocks = blocks
            self.kept = torch.empty(len(self.notes), 2, t, f, device=self.device)
            self.known = set()
        for group in {int(i) // self.GROUP for i in indices} - self.known:
            span = range(group * self.GROUP, min((group + 1) * self.GROUP, len(self.notes)))
            self.kept[span.start:span.stop] = self.transform(span, size)
            self.known.add(group)
        return self.kept[torch.as_tensor(indices, device=self.device)]

    def transform(self, indices, size):
        picture = self.spectrum.encode(self.notes.waves(indices).to(self.device))
        return gansynth.downsample_to(picture, size)


# ---------------------------------------------------------------------------------------------
# State: everything that a checkpoint holds


def where(cfg, images):
    """Progress, stage and built blocks of a run after so many examples."""
    progress, stage = float(cfg.resolutions - 1), 2 * (cfg.resolutions - 1)
    if cfg.progressive:
        progress, stage = gansynth.progress_at(images, cfg.resolutions, cfg.stable_images,
                                               cfg.fade_images)
    return progress, stage, built_blocks(stage)


def built_blocks(stage):
    """Blocks of a stage: 0 -> 1, 1 -> 2 (fading in), 2 -> 2, 3 -> 3, ..."""
    return (stage + 1) // 2 + 1


class State:
    """Networks, optimisers, counters and random state of a run of GANSynth; see Baseline for the
    other models."""

    TRAINED = ("G", "D")                  # networks; G_ema, which is heard, follows G

    def __init__(self, cfg, counts, device):
        torch.manual_seed(cfg.seed)
        self.cfg, self.counts, self.device = cfg, counts, device
        for name, net in self.networks(cfg.architecture()).items():
            setattr(self, name, net.to(device))
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False)
        # All that is random while training comes from this generator, on the CPU, so that a run
        # draws the same numbers on every device; reports have one of their own.
        self.random = torch.Generator().manual_seed(cfg.seed)
        self.images = 0
        self.start_stage(self.where()[1])

    def networks(self, arch):
        return {"G": gansynth.Generator(arch), "D": gansynth.Discriminator(arch)}

    def examples(self, notes):
        """A function of note indices: the notes as training takes them at this moment."""
        pictures = Pictures(notes, self.cfg.spectrum(), self.G.arch, self.device)
        return lambda indices: pictures(indices, gansynth.active_blocks(self.where()[0]))

    def step(self, x_real, pitch_real):
        return train_step(self, x_real, pitch_real)

    def where(self):
        return where(self.cfg, self.images)

    def work(self, blocks):
        """Relative cost of one example at so many blocks; the constant stands for fixed costs."""
        return self.G.arch.multiply_adds(blocks) + 4e6

    def stage_text(self):
        progress, stage, _ = self.where()
        kind = f"fade {progress % 1:.2f}" if stage % 2 else "stable"
        return f"stage {stage + 1}/{2 * self.cfg.resolutions - 1} {kind:9}"

    def start_stage(self, stage):
        """Fresh optimisers: Adam's moments start anew at every stage boundary, as released."""
        blocks = built_blocks(stage)
        self.stage, self.stage_steps = stage, 0
        self.adam_G = gansynth.make_adam(self.G.built_parameters(blocks), self.cfg.lr)
        self.adam_D = gansynth.make_adam(self.D.built_parameters(blocks), self.cfg.lr)

    def parts(self):
        """Networks and optimisers by name."""
        names = *self.TRAINED, "G_ema", *(f"adam_{name}" for name in self.TRAINED)
        return {name: getattr(self, name) for name in names}

    def contents(self):
        # Settings first: sample.py needs the checkpoint and nothing else.
        return {"config": asdict(self.cfg), "model": self.cfg.model,
                "architecture": asdict(self.G.arch),
                "spectrum": asdict(self.cfg.spectrum()), "pitch_low": self.cfg.pitch_low,
                "progress": self.where()[0], "counts": self.counts, "images": self.images,
                "stage": self.stage, "stage_steps": self.stage_steps,
                "random": self.random.get_state(),
                **{name: part.state_dict() for name, part in self.parts().items()}}

    def restore(self, contents):
        """Go on from what `contents` returned.  CheckpointError for what does not fit together."""
        if not torch.equal(self.counts, contents["counts"].cpu()):
            raise gansynth.CheckpointError(
                f"the notes of {self.cfg.data} have changed since the checkpoint was saved "
                f"({self.counts.sum():,} to train on, not {contents['counts'].sum():,}): bring "
                "back those it was trained on, or start a new run")
        lacks = [name for name in self.parts() if not isinstance(contents.get(name), dict)]
        if lacks:
            raise gansynth.CheckpointError(f"the checkpoint lacks {', '.join(lacks)}: resume from "
                                           "an earlier one of the same run")
        try:
            self.images = contents["images"]
            self.start_stage(contents["stage"])
            self.stage_steps = contents["stage_steps"]
            self.random.set_state(contents["random"].cpu())
            for name, part in self.parts().items():
                part.load_state_dict(contents[name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).split("\n")[0][:100]
            raise gansynth.CheckpointError(
                f"the checkpoint's parts do not fit together ({reason}): resume from an earlier "
                "one of the same run") from None


# ---------------------------------------------------------------------------------------------
# One step


def draw_fakes(state):
    """Latents (N, latent) and pitch labels (N,), drawn from the real notes' counts."""
    cfg = state.cfg
    z = torch.randn(cfg.batch, cfg.latent, generator=state.random)
    pitch = nsynth.draw_pitches(state.counts, cfg.batch, generator=state.random)
    return z.to(state.device), pitch.to(state.device)


def learning_rate(cfg, images):
    """`lr` while the networks grow, then in a straight line to its `lr_decay`-th part.

    The paper's is constant.  A short run takes long steps, and short ones to settle in the end.
    """
    share = min(max(images - cfg.grown, 0) / max(cfg.images - cfg.grown, 1), 1)
    return cfg.lr * (1 - share * (1 - cfg.lr_decay))


def train_step(state, x_real, pitch_real, lap=lambda part: None):
    """G once, then D once with fresh latents and the just-updated G (code's order).

    x_real (N, 2, t, f) pictures of the stage's size or larger, pitch_real (N,) labels -> named
    loss terms.
    `lap(part)` is called after each part, for the benchmark.
    """
    cfg, weights = state.cfg, state.cfg.loss_weights()
    progress, stage, blocks = state.where()
    if stage != state.stage:
        state.start_stage(stage)
    state.stage_steps += 1
    for adam in (state.adam_G, state.adam_D):
        adam.param_groups[0]["lr"] = learning_rate(cfg, state.images)

    z, pitch = draw_fakes(state)
    state.D.requires_grad_(False)         # spares G's step the gradients of D's weights
    loss, terms = gansynth.generator_loss(state.G, state.D, z, pitch, progress, weights)
    loss.backward()
    gansynth.adam_step(state.adam_G, state.stage_steps)
    gansynth.ema_update(state.G_ema, state.G, cfg.ema, blocks)
    state.D.requires_grad_(True)
    del loss
    lap("G")

    z, pitch = draw_fakes(state)
    mix = torch.rand(cfg.batch, 1, 1, 1, generator=state.random).to(state.device)
    with torch.no_grad():
        x_fake = state.G(z, pitch, progress)
        active, arch = gansynth.active_blocks(progress), state.G.arch
        x_real = gansynth.downsample_to(x_real, arch.size(active))
        x_real = gansynth.blend(x_real, progress, active, arch.growth)
    for loss, part in gansynth.discriminator_losses(state.D, x_real, pitch_real, x_fake, mix,
                                                    progress, weights):
        loss.backward()
        terms |= part
        lap("penalty" if "D_penalty" in part else "D")
        del loss
    gansynth.adam_step(state.adam_D, state.stage_steps)
    state.images += cfg.batch
    lap("D")
    return {name: term.detach() for name, term in terms.items()}


# ---------------------------------------------------------------------------------------------
# The baselines: the same run with other networks and another step


class Baseline(State):
    """What a baseline's state has in common: one stage that never ends, as nothing grows."""

    BETAS = (0.9, 0.999)

    def start_stage(self, stage):
        self.stage, self.stage_steps = stage, 0
        for name in self.TRAINED:
            adam = gansynth.make_adam(getattr(self, name).parameters(), self.cfg.lr, self.BETAS)
            setattr(self, f"adam_{name}", adam)

    def where(self):
        return 0.0, 0, 1

    def work(self, blocks):
        return 1

    def stage_text(self):
        return self.cfg.model

    def update(self, name, loss, step):
        """The `step`-th step (1, 2, ...) of one network."""
        adam = getattr(self, f"adam_{name}")
        adam.param_groups[0]["lr"] = learning_rate(self.cfg, self.images)
        loss.backward()
        gansynth.adam_step(adam, step)
        if name == "G":
            with torch.no_grad():
                for average, p in zip(self.G_ema.parameters(), self.G.parameters()):
                    average.lerp_(p, 1 - self.cfg.ema)


class WaveGANState(Baseline):
    """A run of WaveGAN: several steps of D for one of G, on whole waves."""

    BETAS = (0.5, 0.9)

    def networks(self, arch):
        return {"G": gansynth.WaveGANGenerator(arch), "D": gansynth.WaveGANDiscriminator(arch)}

    def examples(self, notes):
        spectrum = self.cfg.spectrum()
        return lambda indices: spectrum.encode(notes.waves(indices).to(self.device))[:, 0, :, 0]

    def step(self, x_real, pitch_real):
        """One step of D on waves (N, L) with labels (N,); every `critic_steps`-th time, the first
        among them, one of G before it.  -> named loss terms, G's only where it stepped."""
        cfg, arch, weights, terms = self.cfg, self.G.arch, self.cfg.loss_weights(), {}

        def shift():
            return gansynth.draw_phase_shuffle(arch, cfg.batch, self.random)

        if self.stage_steps % cfg.critic_steps == 0:
            self.D.requires_grad_(False)
            loss, terms = gansynth.wavegan_generator_loss(self.G, self.D, *draw_fakes(self),
                                                          shift(), weights)
            self.update("G", loss, self.stage_steps // cfg.critic_steps + 1)
            self.D.requires_grad_(True)
        self.stage_steps += 1
        with torch.no_grad():
            x_fake = self.G(*draw_fakes(self))
        mix = torch.rand(cfg.batch, 1, generator=self.random).to(self.device)
        loss, part = gansynth.wavegan_discriminator_loss(
            self.D, x_real, pitch_real, x_fake, mix, [shift() for _ in range(3)], weights)
        self.update("D", loss, self.stage_steps)
        self.images += cfg.batch
        return {name: term.detach() for name, term in (terms | part).items()}


class WaveNetState(Baseline):
    """A run of WaveNet: the likelihood of crops of waves."""

    TRAINED = ("G",)                      # by the name of what is heard in the other models

    def networks(self, arch):
        return {"G": gansynth.WaveNet(arch)}

    def examples(self, notes):
        return lambda indices: notes.waves(indices).to(self.device)

    def step(self, x, pitch):
        """One step on crops of notes (N, L) with labels (N,), all from one random place.

        Places half a crop beyond either end are moved to it: else the beginning, from which every
        sampled note sets out, would hardly ever be learnt.
        """
        cfg = self.cfg
        crop = min(cfg.crop, cfg.length)
        last, half = cfg.length - crop, crop // 2
        offset = torch.randint(-half, last + half + 1, (), generator=self.random)
        offset = int(offset.clamp(0, last))
        loss, terms = gansynth.wavenet_loss(self.G, x[:, offset:offset + crop], pitch, offset)
        self.stage_steps += 1
        self.update("G", loss, self.stage_steps)
        self.images += cfg.batch
        return {name: term.detach() for name, term in terms.items()}


STATES = dict(zip(MODELS, (State, WaveGANState, WaveNetState)))


# ---------------------------------------------------------------------------------------------
# Reports: a line and a JSON line per tick, a picture and a WAV of the same latents now and then


class TrainingError(ValueError):
    """A run that cannot go on; the message says why and from where to resume."""


EXPLODED = 1e7                            # no term of a healthy run comes near it


class Monitor:
    """Collects each step's loss terms, and reports their means once a tick."""

    def __init__(self, state, run):
        self.state, self.run, self.steps = state, run, []
        self.began = self.last = time.time()
        self.images = state.images

    def add(self, terms):
        self.steps.append(terms)          # tensors: nothing waits for the GPU here

    def means(self):
        """Means of the terms since the last tick, over the steps that have them; a term that is
        not finite stops the run."""
        names = list(dict.fromkeys(n for s in self.steps for n in s))
        zero = torch.zeros((), device=self.state.device)
        counts = torch.tensor([sum(n in s for s in self.steps) for n in names])
        values = torch.stack([torch.stack([s.get(n, zero).float() for n in names])
                              for s in self.steps])
        bad = ~(values.abs() < EXPLODED)                            # true for NaN as well
        if bad.any():
            row, column = bad.nonzero()[0].tolist()
            step = self.state.images // self.state.cfg.batch - len(self.steps) + row + 1
            good = gansynth.newest_checkpoint(self.run)
            raise TrainingError(
                f"step {step}: the loss term {names[column]} is {values[row, column]:g}; "
                + (f"the last good checkpoint is {good}; " if good else "no checkpoint was saved; ")
                + "start a new run with a lower --lr")
        return dict(zip(names, (values.sum(dim=0).cpu() / counts).tolist()))

    def tick(self):
        """One line for people, one JSON line for programs."""
        state, cfg, now = self.state, self.state.cfg, time.time()
        means = self.means()
        progress, stage, blocks = state.where()
        rate = (state.images - self.images) / max(now - self.last, 1e-9)
        left = work_left(state) / (state.work(blocks) * rate)
        print(f"{state.stage_text()} {state.images:>10,}/{cfg.images:,} "
              + " ".join(f"{name} {value:.3g}" for name, value in means.items())
              + f"  {rate:.1f} ex/s, {clock(left)} left", flush=True)
        record = {"images": state.images, "stage": stage, "progress": progress,
                  "seconds": round(now - self.began, 1), "examples_per_s": round(rate, 2), **means}
        try:
            with open(self.run / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise TrainingError(f"{self.run / 'log.jsonl'} cannot be written ({error.strerror}): "
                                "put that right, and resume the run") from None
        self.steps, self.last, self.images = [], now, state.images


def work_left(state):
    """Cost of the examples still to come, stage by stage."""
    cfg, images, total = state.cfg, state.images, 0
    piece = max(cfg.batch, (cfg.images - images) // 200)
    for at in range(images, cfg.images, piece):
        blocks = where(cfg, at)[2]
        total += state.work(blocks) * min(piece, cfg.images - at)
    return total


def clock(seconds):
    """1h02m, 3m04s"""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{seconds:02}s"


def snapshot(state, run, notes=16):
    """A picture and a WAV of the same latents and pitches each time, to watch the model grow.

    Drawn from a generator of their own, so that looking does not change the run.
    """
    cfg = state.cfg
    random = torch.Generator().manual_seed(cfg.seed + 1)
    z = torch.randn(notes, state.G.arch.latent, generator=random)
    pitch = torch.linspace(0, cfg.pitch_high - cfg.pitch_low, notes).round().long()
    waves = gansynth.synthesise(state.G_ema, cfg.spectrum(), z, pitch, state.where()[0],
                                generator=random)
    path = run / "snapshots" / f"{state.images:08d}"
    pictures = [spectral.rainbowgram(wave, cfg.sample_rate) for wave in waves]
    spectral.write_png(f"{path}.png", spectral.tile(pictures, 4))
    nsynth.write_wav(f"{path}.wav", waves.flatten(), cfg.sample_rate)
    return path


# ---------------------------------------------------------------------------------------------
# Runs and their checkpoints


KEEP = 3                                  # checkpoints kept; older ones are deleted


@contextlib.contextmanager
def claim_run(cfg):
    """Make the run's folder: `out`, or the next number under runs/.  Never one that holds anything,
    and ours from the start: of two runs begun together, one gets the next number.  If what is done
    `with` it fails, it goes again.
    """
    taken = [int(p.name[:4]) for p in Path("runs").glob("[0-9][0-9][0-9][0-9]*")]
    number = max(taken, default=0) + 1
    run = Path(cfg.out or f"runs/{number:04d}-{cfg.name}")
    new = not run.exists()
    try:
        if not new and (not run.is_dir() or any(run.iterdir())):
            raise FileExistsError
        run.mkdir(parents=True, exist_ok=True)
        (run / "snapshots").mkdir()       # fails where another run was faster
    except FileExistsError:
        if cfg.out:
            raise ConfigError(f"{run} exists already and is not an empty folder: give another "
                              "--out, or --resume it") from None
        with claim_run(cfg) as run:
            yield run
        return
    except OSError as error:
        raise ConfigError(f"{run}: the run's folder cannot be made ({error.strerror}): give "
                          "another --out") from None
    try:
        yield run
    except BaseException:
        for folder in [run / "snapshots"] + [run] * new:
            with contextlib.suppress(OSError):
                folder.rmdir()            # empty, or it stays
        raise


def save(state, run):
    """Write a checkpoint, and delete those older than the last KEEP; -> its path."""
    path = run / f"checkpoint-{state.images:08d}.pt"
    for name in (*state.TRAINED, "G_ema"):      # losses tell of the weights before the last step
        if not all(p.isfinite().all() for p in getattr(state, name).parameters()):
            raise TrainingError(f"after {state.images:,} examples {name} holds NaN or infinity; "
                                f"the last good checkpoint is {gansynth.newest_checkpoint(run)}; "
                                "start a new run with a lower --lr")
    gansynth.save_checkpoint(path, state.contents())
    for old in gansynth.checkpoints(run)[:-KEEP]:
        old.unlink()
    return path


def set_aside_newer(run, path):
    """Rename checkpoints newer than the one to resume from: they would win when resuming again."""
    found = gansynth.checkpoints(run)
    for newer in found[found.index(path) + 1:] if path in found else []:
        newer.rename(f"{newer}.old")
        print(f"{newer} is set aside as {newer.name}.old")


class Interrupt:
    """Remembers Ctrl-C and SIGTERM until the current step is done; a second one acts at once."""

    def __enter__(self):
        self.signal = None
        self.before = {s: signal.signal(s, self.note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number, frame):
        self.signal = number
        self.__exit__()                   # the next one finds the usual handlers

    def __exit__(self, *exception):
        for s, handler in self.before.items():
            signal.signal(s, handler)


# ---------------------------------------------------------------------------------------------
# The run


def pick_device(name):
    """The device of that name; auto is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except Exception:                     # torch raises many kinds
        raise ConfigError(f"device {name!r} is not there: expected auto, cpu, or cuda (cuda:1, "
                          "...) where PyTorch finds a GPU") from None
    return name


def train(cfg, resume=None):
    """Train as `cfg` says, or go on from the checkpoint file `resume`; returns the run's folder."""
    # settings
    device, spectrum = pick_device(cfg.device), cfg.spectrum()
    contents = gansynth.load_checkpoint(resume, parts=gansynth.TRAIN_PARTS) if resume else None
    if contents and contents["images"] >= cfg.images:
        raise ConfigError(f"{resume} has finished its {cfg.images:,} examples: add --images with "
                          "more of them to go on")
    with contextlib.nullcontext(resume.parent) if resume else claim_run(cfg) as run:
        state, examples, labels = prepare(cfg, device, contents)
    if resume:
        set_aside_newer(run, resume)
        trim_log(run, state.images)
    (run / "snapshots").mkdir(exist_ok=True)
    shape = (f"waves of {cfg.length} samples" if spectrum.rep == spectral.WAVEFORM else
             f"{spectrum.frames} x {spectrum.bins} pictures")
    print(f"run {run}: {cfg.name}, {shape}, {cfg.images:,} examples, on {device}", flush=True)
    loop(cfg, run, state, examples, labels)
    return run


def prepare(cfg, device, contents):
    """Data and state of a run, new or as a checkpoint's contents have it.

    -> state, examples (a function of note indices), labels (N,) of the training notes.
    """
    notes, held_out = nsynth.split(nsynth.load(
        cfg.data, cfg.length, cfg.sample_rate, cfg.pitch_range, cfg.source_names,
        skip_damaged=cfg.skip_damaged), cfg.seed, by=cfg.split)
    print(nsynth.describe(notes, held_out))
    counts = nsynth.pitch_counts(notes, cfg.pitch_range)
    labels = torch.from_numpy(notes.pitch) - cfg.pitch_low

    state = STATES[cfg.model](cfg, counts, device)
    if contents:
        state.restore(contents)
    return state, state.examples(notes), labels


def loop(cfg, run, state, examples, labels):
    """Steps, and every so often a line, a checkpoint, and a picture with sound."""
    def due(every):
        return state.images % every < cfg.batch

    monitor = Monitor(state, run)
    with Interrupt() as interrupt:
        while state.images < cfg.images:
            batch = nsynth.epoch_order(state.images, cfg.batch, len(labels), cfg.seed)
            monitor.add(state.step(examples(batch), labels[batch].to(state.device)))
            stop, done = interrupt.signal, state.images >= cfg.images
            if stop or done or due(cfg.tick_images) or due(cfg.checkpoint_images):
                monitor.tick()            # also checks the losses
            if stop or done or due(cfg.checkpoint_images):
                checkpoint = save(state, run)
            if done or due(cfg.snapshot_images):
                heard = snapshot(state, run)
            if stop and not done:
                print(f"stopped after {state.images:,} examples, saved {checkpoint}; "
                      f"go on with: python train.py --resume {run}")
                raise SystemExit(128 + stop)
    print(f"done: {checkpoint}\nlook at {heard}.png, listen to {heard}.wav\n"
          f"more notes: python sample.py {run}")


def trim_log(run, images):
    """Drop the log's lines after the checkpoint that a run resumes from: they will come again.
    A line that a crash cut short is dropped as well."""
    log = run / "log.jsonl"

    def before(line):
        try:
            return json.loads(line)["images"] <= images
        except (ValueError, KeyError, TypeError):
            return False

    if log.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        log.with_suffix(".part").write_text("".join(filter(before, lines)), encoding="utf-8")
        log.with_suffix(".part").replace(log)


# ---------------------------------------------------------------------------------------------
# Benchmark


PASSES = 19                               # of the network in one step, as the release makes them


def peak_memory(device):
    """Most memory the process has held so far, in MB (on a GPU: the GPU's)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        import resource                   # not on Windows
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin"
                                                                 else 1e3)


def product_rate(device, size=2048, times=7):
    """Operations/s of a float32 matrix product with this run's threads, the median of a few."""
    a, seconds = torch.randn(size, size, device=device), []
    for _ in range(times + 1):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * size ** 3 / sorted(seconds[1:])[times // 2]


def bench(cfg, budget=20.0):
    """Print what a step costs at every number of blocks; each is timed for about `budget` seconds.

    Operations are counted as 19 passes x the multiply-adds of the network's convolutions x 2 per
    example, whatever is folded or skipped, and set against a matrix product before and after.
    """
    if cfg.model != "gansynth":
        raise ConfigError(f"--bench times GANSynth's stages, which --model {cfg.model} has not: "
                          "leave one of the two out")
    device = pick_device(cfg.device)
    threads = "" if device.startswith("cuda") else f", {torch.get_num_threads()} threads"
    # Packed on disk, as a real set would be.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        pitches = (cfg.pitch_low, min(cfg.pitch_low + 1, cfg.pitch_high))
        made = nsynth.load("orchestra", cfg.length, cfg.sample_rate, pitches, ())
        nsynth.save(made, f"{folder}/notes")
        notes = nsynth.load(f"{folder}/notes", cfg.length, cfg.sample_rate, pitches, ())
        bench_steps(cfg, notes, device, threads, budget)


def bench_steps(cfg, notes, device, threads, budget):
    """The rows of `bench`, and what rate the data could feed."""
    # As much of them is kept as would be of the paper's training notes.
    pictures = Pictures(notes, cfg.spectrum(), cfg.architecture(), device,
                        memory=2 ** 30 * len(notes) / 56_303)
    counts = torch.ones(cfg.pitch_high - cfg.pitch_low + 1, dtype=torch.int64)
    state = State(cfg, counts, device)
    arch = state.G.arch
    print(f"batch {cfg.batch} on {device}{threads}, torch {torch.__version__}; medians of steps")
    print(f"{'blocks':>6} {'s/step':>8} {'examples/s':>11} {'data':>6} {'G':>6} {'D':>6} "
          f"{'penalty':>8} {'peak MB':>8} {'of the product':>15}")
    for blocks in range(1 if cfg.progressive else cfg.resolutions, cfg.resolutions + 1):
        state.images = (blocks - 1) * (cfg.stable_images + cfg.fade_images)
        before, steps = product_rate(device), []
        while len(steps) < 2 or sum(map(lambda s: s["all"], steps)) < budget and len(steps) < 30:
            steps.append(timed_step(state, pictures, len(notes), device))
        steps = steps[1:]                 # the first one warms up
        median = {k: sorted(s[k] for s in steps)[len(steps) // 2] for k in steps[0]}
        whole = median["all"]
        product = (before + product_rate(device)) / 2
        rate = 2 * PASSES * state.G.arch.multiply_adds(blocks) * cfg.batch / whole
        print(f"{blocks:6} {whole:8.3f} {cfg.batch / whole:11.2f} "
              + " ".join(f"{median[k] / whole:{w}.0%}" for k, w in
                         (("data", 6), ("G", 6), ("D", 6), ("penalty", 8)))
              + f" {peak_memory(device):8.0f} {rate / product:15.0%}", flush=True)
    print(f"the product: {product / 1e9:.0f} GFLOP/s, float32, 2048 x 2048")
    read, made = (notes_rate(f, cfg.batch, len(notes), device) for f in (
        notes.waves, lambda indices: pictures.transform(indices, arch.size(arch.resolutions))))
    print(f"the data could feed {made:,.0f} notes/s as spectra, and {read:,.0f} as waves from the "
          "disk; early stages keep their small spectra")


def notes_rate(function, batch, count, device, times=20):
    """Notes/s of a function of note indices, the median of a few batches."""
    seconds = []
    for i in range(times):
        start = time.perf_counter()
        function([(i * batch + k) % count for k in range(batch)])
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return batch / sorted(seconds)[times // 2]


def timed_step(state, pictures, count, device):
    """Seconds of one step's parts: data, G, D, penalty, and all."""
    seconds = {"data": 0.0, "G": 0.0, "D": 0.0, "penalty": 0.0}
    last = start = time.perf_counter()

    def lap(part):
        nonlocal last
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds[part] += now - last
        last = now

    images = state.images
    blocks = gansynth.active_blocks(state.where()[0])
    x_real = pictures(nsynth.epoch_order(images, state.cfg.batch, count, 0), blocks)
    pitch = torch.zeros(state.cfg.batch, dtype=torch.int64, device=device)
    lap("data")
    train_step(state, x_real, pitch, lap)
    state.images = images                 # stay at this stage
    return {**seconds, "all": time.perf_counter() - start}


# ---------------------------------------------------------------------------------------------
# Command line: Config's defaults < preset < flags given


def parse_arguments(argv=None):
    """The flags given (and only those), preset and resume among them."""
    parser = argparse.ArgumentParser(
        description="Train GANSynth, or a baseline of its paper.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Defaults are the paper's. What presets change:\n" + "\n".join(
            f"  {preset}, {model}: " + (", ".join(
                f"{name} {value}" for name, value in preset_settings(preset, model).items()
                if name != "model") or "nothing") for model in MODELS for preset in PRESETS))
    parser.add_argument("--preset", choices=PRESETS, help="paper, or workshop: 15 minutes on a "
                        "laptop (default: paper where there is a GPU, else workshop)")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run (folder or checkpoint); "
                        "settings come from its checkpoint")
    parser.add_argument("--bench", action="store_true", help="time each stage's step, and stop")
    for f in fields(Config):
        text = f"{f.metadata['help']} (default: {f.default if f.default != '' else 'none'})"
        if f.metadata["of"] != MODELS:
            text = f"{', '.join(f.metadata['of'])}: {text}"
        kind = dict(action=argparse.BooleanOptionalAction) if f.type is bool else dict(
            type=f.type, choices=f.metadata["choices"],
            metavar=None if f.metadata["choices"] else f.type.__name__.upper())
        parser.add_argument("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS,
                            help=text.replace("%", "%%"), **kind)
    given = vars(parser.parse_args(argv))
    return parser, given.pop("preset"), given.pop("resume"), given.pop("bench"), given


def settings(preset, given):
    """Layers of a new run's settings, and the line that says which preset and why."""
    why = "as asked"
    if preset is None:
        preset = "paper" if torch.cuda.is_available() else "workshop"
        why = f"{'a' if preset == 'paper' else 'no'} GPU was found"
    other = next(p for p in PRESETS if p != preset)
    cfg = {**preset_settings(preset, given.get("model", "gansynth")), **given}
    refuse_idle(cfg, given)
    if preset == "paper" and not given.get("progressive", True):
        cfg.setdefault("images", 5_000_000)             # paper: 5M examples without growing
    return Config(**cfg), f"preset {preset} ({why}); for the other: --preset {other}"


# Settings that checkpoints of before the baselines lack: they were made with the defaults.
LATER = ("model", "output", "channels", "stacks", "layers", "critic_steps", "crop")


def refuse_idle(cfg, given):
    """ConfigError for a flag given that would do nothing in a run of these settings."""
    model = cfg.get("model", "gansynth")
    for f in fields(Config):
        if f.name in given and model not in f.metadata["of"]:
            raise ConfigError(f"--{f.name.replace('_', '-')} does nothing for --model {model}, "
                              f"only for {' and '.join(f.metadata['of'])}: leave it out")
    if "hires" in given and cfg.get("rep") == spectral.WAVEFORM:
        raise ConfigError("--hires does nothing for --rep waveform, which has no frequencies: "
                          "leave it out")


def resumed_settings(parser, resume, preset, given):
    """The settings in a checkpoint; a flag that contradicts them is an error.

    Three may differ: the device, where the data lie (State.restore compares their counts), and more
    `images`, which lets a finished run go on; a learning rate that falls (lr_decay) then falls
    towards the new end.
    """
    path = gansynth.find_checkpoint(resume)
    saved = gansynth.load_checkpoint(path, parts=gansynth.TRAIN_PARTS)["config"]
    saved = {**{name: getattr(Config, name) for name in LATER}, **saved}
    if saved.keys() != {f.name for f in fields(Config)}:
        raise gansynth.CheckpointError(f"{path}: its settings are not those that this program has: "
                                       "resume with the program that wrote it, or start a new run")
    if "out" in given and Path(given["out"]).resolve() != path.parent.resolve():
        parser.error(f"--out {given['out']} contradicts --resume, which goes on in {path.parent}")
    refuse_idle(saved, given)
    presets = {p: preset_settings(p, saved["model"]) for p in PRESETS}
    named = {name: getattr(Config, name) for changes in presets.values() for name in changes}
    for name, value in {**named, **presets[preset]}.items() if preset else ():
        if name not in given and value != saved[name]:
            parser.error(f"--preset {preset} contradicts {path}, which was trained with {name} "
                         f"{saved[name]}: leave it out, or start a new run")
    for name, value in given.items():
        free = name in ("device", "out", "data") or name == "images" and value > saved["images"]
        if not free and value != saved[name]:
            parser.error(f"--{name.replace('_', '-')} {value} contradicts {path}, which was "
                         f"trained with {saved[name]}: leave it out, or start a new run")
    return Config(**{**saved, **given}), path


def main(argv=None):
    parser, preset, resume, benchmark, given = parse_arguments(argv)
    try:
        if resume is not None:
            cfg, resume = resumed_settings(parser, resume, preset, given)
            print(f"resuming {resume} with its own settings", flush=True)
        else:
            cfg, line = settings(preset, given)
            print(line, flush=True)
        bench(cfg) if benchmark else train(cfg, resume)
    except (ConfigError, spectral.SpectrumError, gansynth.ArchitectureError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)                       # settings that cannot work
    except (TrainingError, nsynth.NoteError, gansynth.CheckpointError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:             # while loading; the loop has its own way to stop
        print("train.py: stopped before training began", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
