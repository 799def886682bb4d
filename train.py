"""Train GANSynth: notes -> spectra -> progressive GAN -> checkpoint, and sound along the way.

    python train.py                          15 minutes on a laptop, on built-in notes
    python train.py --preset paper --data nsynth        the paper's run
    python train.py --resume runs/0001       goes on exactly where a run stopped
    python train.py --init acoustic_only     a new run from weights, such as Magenta's

Every schedule counts training examples, never a clock or steps.
"""

import os
import signal
import sys

if __name__ == "__main__":                # Ctrl-C while the packages load: no traceback
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

# Both are read when torch is imported, and ignored where they mean nothing.  Large tensors in huge
# pages: else a full-size step spends a quarter of its time in page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Threads that wait spin, which on an idle machine makes small pictures half as fast again.  Beside
# other programs, where it would take two to ten times as long, they soon sleep.
if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.4 * os.cpu_count():
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import argparse
import contextlib
import copy
import functools
import itertools
import json
import math
import re
import textwrap
import time
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.utils.benchmark import Timer, timer

import gansynth
import nsynth
import spectral

# ---- Settings: a field, its default and its help; each is a flag of the command line --------
def setting(default, help, choices=None, low=0, high=math.inf):
    """A field of settings (paper, appendix): one of choices, or a number from low to high."""
    return field(default=default, metadata=dict(help=help, choices=choices, low=low, high=high))

@dataclass
class Config:
    """All settings of a run; the defaults: IF-Mel + H, progressive (paper 2.2 and appendix)."""
    # what is learnt
    rep: str = setting("if-mel", "representation", spectral.FORMS)
    hires: bool = setting(True, "high frequency resolution, the paper's + H")
    progressive: bool = setting(True, "grow the networks; otherwise all blocks from the start")
    # data
    data: str = setting("orchestra", "built-in notes, or a folder or file of notes (nsynth.py)")
    length: int = setting(64000, "samples a note", low=1)
    sample_rate: int = setting(16000, "Hz", low=1)
    pitch_low: int = setting(24, "lowest MIDI pitch", high=127)
    pitch_high: int = setting(84, "highest MIDI pitch", high=127)
    sources: str = setting("acoustic", "sources to keep, with commas; all keeps every one")
    split: str = setting("random", "random 80/20; folders, as the data is; or a CSV list of ids")
    skip_damaged: bool = setting(False, "leave out notes that cannot be read, and count them")
    pack: str = setting("", "folder to pack the notes into (default: packed, inside the data)")
    # networks
    resolutions: int = setting(7, "blocks, each twice the size of the one before", low=1)
    latent: int = setting(256, "dimensions of z", low=1)
    channel_base: int = setting(4096, "channels of block b: min(base / 2^b, max)", low=1)
    channel_max: int = setting(256, "most channels of any block", low=1)
    # schedule, in examples
    images: int = setting(11_000_000, "examples to train on", low=1)
    stable_images: int = setting(800_000, "examples between two fades")
    fade_images: int = setting(800_000, "examples over which a block fades in")
    batch: int = setting(8, "examples a step", low=1)
    # losses and optimiser
    lr: float = setting(8e-4, "Adam's learning rate, G and D", low=1e-8, high=1)
    lr_decay: float = setting(1.0, "share of lr left at the end, from the last block on", high=1)
    penalty: float = setting(10.0, "weight of the gradient penalty")
    penalty_units: str = setting("raw", "as released; or at the stage's size", ["raw", "scaled"])
    drift: float = setting(0.001, "weight of the drift term")
    pitch_weight: float = setting(10.0, "weight of the pitch classifier's loss")
    ema: float = setting(0.999, "decay per step of the averaged generator", high=1)
    seed: int = setting(0, "of weights, order, latents and everything else random", high=2 ** 62)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    precision: str = setting("auto", "of networks: fp32; tf32 on a GPU, as auto; or bf16 where "
                             "pictures are large", ["auto", "fp32", "tf32", "bf16"])
    out: str = setting("", "the run's folder, new or empty (default: the next number under runs/); "
                       "torchrun needs it, and goes on with what is there")
    # reports, in examples
    tick_images: int = setting(10_000, "examples between two lines of the log", low=1)
    snapshot_images: int = setting(50_000, "examples between two pictures and WAVs", low=1)
    checkpoint_images: int = setting(50_000, "examples between two checkpoints", low=1)

    model = "gansynth"                    # no setting but a name, in checkpoints
    unused = ()                           # settings that a baseline has no use for

    def __post_init__(self):
        check_settings(self)

    @property
    def pitches(self):
        return self.pitch_high - self.pitch_low + 1

    def spectrum(self):
        return spectral.derive(self.rep, self.hires, self.length, self.sample_rate,
                               self.resolutions)

    def architecture(self):
        spectrum = self.spectrum()
        return gansynth.Architecture.of_pictures(
            spectrum.frames, spectrum.bins, resolutions=self.resolutions, latent=self.latent,
            pitches=self.pitches, channel_base=self.channel_base, channel_max=self.channel_max)

    def where(self, images):
        """(progress, stage, blocks) after so many examples: see gansynth.progress_at."""
        schedule = (self.stable_images, self.fade_images) if self.progressive else (0, 0)
        return gansynth.progress_at(images, self.resolutions, *schedule)

    def learning_rate(self, images):
        """`lr` until the last block that comes is in, then in a line to its `lr_decay`-th part.
        paper: constant.  A short run takes long steps, and short ones to settle in the end."""
        cycle = self.progressive * (self.stable_images + self.fade_images)
        last = cycle * min(self.resolutions - 1, (self.images - 1) // max(cycle, 1))
        share = min(max(images - last, 0) / max(self.images - last, 1), 1)
        return self.lr * (1 - share * (1 - self.lr_decay))

# ---- One step -------------------------------------------------------------------------------
class Draws(NamedTuple):
    """All that is random in one step (paper 2.2): for G's part, then afresh for D's."""
    z_G: torch.Tensor                     # (N, latent) standard normal
    pitch_G: torch.Tensor                 # (N,) labels, as often as real notes have them
    z_D: torch.Tensor
    pitch_D: torch.Tensor
    mix: torch.Tensor                     # (N, 1, 1, 1) uniform, of the gradient penalty

def draw(cfg, counts, position, device="cpu"):
    """The draws (paper 2.2) of a step whose first example is at this position of training: made on
    the CPU from (seed, position) alone, they are the same on every device and in a resumed run."""
    random = random_at(cfg.seed, position)

    def fakes():
        z = torch.randn(cfg.batch, cfg.latent, generator=random)
        return z.to(device), nsynth.draw_pitches(counts, cfg.batch, generator=random).to(device)

    return Draws(*fakes(), *fakes(), torch.rand(cfg.batch, 1, 1, 1, generator=random).to(device))

class Nets:
    """What a step changes (paper 2.2): networks, the average of G we hear, their optimisers."""

    def __init__(self, arch, device="cpu"):
        self.G = gansynth.Generator(arch).to(device)
        self.D = gansynth.Discriminator(arch).to(device)
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False)

    def start_stage(self, blocks):
        """Fresh optimisers: Adam's moments start anew at every stage boundary, as released."""
        self.adam_G = gansynth.Adam(self.G.built_parameters(blocks))
        self.adam_D = gansynth.Adam(self.D.built_parameters(blocks))

    def weights(self):
        return [p.detach() for net in (self.G, self.D, self.G_ema) for p in net.parameters()]

def train_step(nets, draws, x_real, pitch_real, progress, weights, lr=8e-4, ema=0.999,
               meet=lambda gradients: None):
    """The algorithm: G once, then D once with fresh latents and the just-updated G (code's order;
    Gulrajani et al. 2017 and Progressive GAN have D first).

    nets: Nets with a stage begun; x_real (N, 2, t, f): pictures of the stage's size or larger;
    pitch_real (N,): labels; progress: see gansynth.grown; weights: a Config; `meet(gradients)` may
    average them with those of other processes.  -> named loss terms, before their weights.
    Nothing in it depends on a tensor's value, so that a GPU can record it."""
    G, D, blocks = nets.G, nets.D, gansynth.grown(progress)[0]

    D.requires_grad_(False)               # spares G's step the gradients of D's weights
    loss, terms = gansynth.generator_loss(G, D, draws.z_G, draws.pitch_G, progress, weights)
    loss.backward()
    meet(nets.adam_G.gradients())
    nets.adam_G.step(lr)
    gansynth.ema_update(nets.G_ema.built_parameters(blocks), G.built_parameters(blocks), ema)
    D.requires_grad_(True)
    del loss                              # and with it the graph, before D's are made

    with torch.no_grad():
        x_fake = G(draws.z_D, draws.pitch_D, progress)
        x_real = gansynth.blend(x_real, progress, G.arch)
    for loss, part in gansynth.discriminator_losses(D, x_real, pitch_real, x_fake, draws.mix,
                                                    progress, weights):
        loss.backward()
        terms |= part
        del loss
    meet(nets.adam_D.gradients())
    nets.adam_D.step(lr)
    return {name: term.detach() for name, term in terms.items()}

# ---- The run --------------------------------------------------------------------------------
class State:
    """A run (paper, appendix): its networks, its notes, how many examples they have seen."""

    def __init__(self, cfg, notes, device="cpu", ranks=None):
        torch.manual_seed(cfg.seed)
        self.cfg, self.notes, self.device, self.ranks = cfg, notes, device, ranks or Ranks()
        self.images, self.stage = 0, None
        self.counts = nsynth.pitch_counts(notes, (cfg.pitch_low, cfg.pitch_high))
        self.labels = torch.from_numpy(notes.pitch) - cfg.pitch_low
        self.examples = cfg.batch * self.ranks.size                 # of a step
        self.nets = self.build()
        self.start_stage()

    def build(self):
        self.pictures = spectral.Pictures(self.notes, self.cfg.spectrum(), gansynth.downsample_to,
                                          self.device)
        nets = Nets(self.cfg.architecture(), self.device)
        if self.cfg.precision == "bf16":  # what is heard, the average, keeps float32
            gansynth.use_bfloat16(nets.G)
            gansynth.use_bfloat16(nets.D)
        return nets

    def start_stage(self):
        """Fresh optimisers where a new stage begins, and a step for its number of blocks."""
        _, stage, blocks = self.cfg.where(self.images)
        if stage == self.stage:
            return
        self.stage, self.run = stage, None              # frees what was recorded of the last stage
        self.nets.start_stage(blocks)
        nets, cfg, ema = self.nets, self.cfg, self.cfg.ema ** self.ranks.size

        def step(*inputs, meet):          # with `self` in it: a cycle, whose memory would stay
            *draws, x_real, pitch_real, alpha, lr = inputs          # what varies, tensors all
            progress = (blocks, alpha if stage % 2 else None)
            return train_step(nets, Draws(*draws), x_real, pitch_real, progress, cfg, lr, ema, meet)

        self.run = Recorded(step, nets, self.ranks, self.device)

    def turn(self, position):
        """The notes whose turn it is at this position of training: indices (N,)."""
        return nsynth.epoch_order(position, self.cfg.batch, len(self.notes), self.cfg.seed)

    def inputs(self):
        """What the stage's step takes at this position, tensors all."""
        progress, _, blocks = self.cfg.where(self.images)
        position = self.images + self.ranks.rank * self.cfg.batch
        alpha, lr = (torch.full((), number, device=self.device)
                     for number in (progress - (blocks - 2), self.cfg.learning_rate(self.images)))
        x_real = self.pictures.in_turn(self.turn, position, self.examples,
                                       self.nets.G.arch.size(blocks))
        pitch_real = self.labels[self.turn(position)].to(self.device)
        return (*draw(self.cfg, self.counts, position, self.device), x_real, pitch_real, alpha, lr)

    def step(self):
        """Train on the notes whose turn it is; -> named loss terms."""
        self.start_stage()
        terms = self.run(*self.inputs())
        self.images += self.examples
        return terms

def train(cfg, resume=None, ranks=None, init=None):
    """Train as `cfg` says (paper, appendix), from weights `init` (G, D and G_ema's) if given, or go
    on from the checkpoint file `resume`; -> the run's folder."""
    ranks = ranks or Ranks()
    device = prepare(cfg, ranks.local)
    with claim_run(cfg, ranks, resume) as run:
        with ranks.one_first():           # and what it packs, the others find
            notes, held_out = nsynth.split(nsynth.load(
                cfg.data, cfg.length, cfg.sample_rate, (cfg.pitch_low, cfg.pitch_high),
                nsynth.names(cfg.sources), skip_damaged=cfg.skip_damaged, pack=cfg.pack),
                cfg.seed, by=cfg.split)
        print(nsynth.describe(notes, held_out))
        probe(cfg, notes, device)
        state = MODELS[cfg.model][1](cfg, notes, device, ranks)
        if resume:
            restore(state, resume)
        for name, weights in (init or {}).items():
            getattr(state.nets, name).load_state_dict(weights)
        ranks.start_alike(state.nets)
        print(f"run {run}: {run_name(cfg)}, {cfg.images:,} examples of {cfg.length:,} samples, on "
              f"{device}" + f", {ranks.size} of them" * (ranks.size > 1), flush=True)
        go_on(state, run)
    return run

def go_on(state, run):
    """The loop (paper appendix) to the end, or to Ctrl-C; reports and checkpoints on the way."""
    cfg, ranks, monitor = state.cfg, state.ranks, Monitor(state, run)
    with interruptible() as signals:
        while state.images < cfg.images:
            monitor.add(state.step())
            done = state.images >= cfg.images
            tick, listen, keep = (state.images % every < state.examples for every in (
                cfg.tick_images, cfg.snapshot_images, cfg.checkpoint_images))
            stop = (tick or ranks.size == 1) and int(ranks.largest(torch.tensor(sum(signals))))
            if tick or keep or stop or done:
                monitor.tick()            # also checks the losses
            if keep or stop or done:
                checkpoint = save(state, run)
            if listen or done:
                heard = snapshot(state, run)
            if stop and not done:
                print(f"stopped after {state.images:,} examples, saved {checkpoint}; "
                      f"go on with: python train.py --resume {run}")
                raise SystemExit(128 + stop)
    print(f"done: {checkpoint}\nlook at {heard}.png, listen to {heard}.wav\n"
          f"more notes: python sample.py {run}")

# =============================================================================================
# Here the path through the paper ends.  Behind this line: CUDA graphs and many GPUs, reports, runs
# and their checkpoints, the baselines, what a run will cost, and the command line.

# ---- Full scale: CUDA graphs and many GPUs --------------------------------------------------
def prepare(cfg, number=0):
    """Set up the device of this process -> its name, such as cuda:0: each rank has its own."""
    device = cfg.device
    if device == "cuda" or device == "auto" and torch.cuda.is_available():
        device = f"cuda:{number}"         # torch.cuda.set_device needs one
    device = "cpu" if device == "auto" else device
    torch.backends.cudnn.allow_tf32 = cfg.precision != "fp32"       # of convolutions
    try:
        if device != "cpu":
            torch.cuda.set_device(device)
            torch.cuda.set_stream(torch.cuda.Stream())  # a graph is recorded where its steps ran
        torch.zeros(1, device=device).item()
    except Exception:                     # torch raises many kinds
        raise ConfigError(f"device {device!r} is not there: give auto, cpu or cuda:N") from None
    return device

class Recorded:
    """A step that on a GPU is recorded as a CUDA graph the fourth time, and replayed from then on.

    A step is a thousand kernels of microseconds: launched one by one they leave the GPU idle."""

    EAGER = 3                             # steps before, real ones too: libraries get ready in them

    def __init__(self, step, nets, ranks, device):
        self.step, self.nets, self.ranks, self.parts = step, nets, ranks, []
        self.eager = math.inf if device == "cpu" else self.EAGER    # steps until it is recorded

    def __call__(self, *inputs):
        if self.eager == 0:
            self.record(inputs)
        self.eager -= 1
        if not self.parts:
            return self.step(*inputs, meet=self.ranks.average)
        for here, new in zip(self.inputs, inputs):
            here.copy_(new)               # to where the recording reads it
        for part in self.parts:
            part()
        return self.terms

    def record(self, inputs):
        """Kernels of a step, into one graph; with several ranks into three, before, between and
        behind the exchanges of gradients, which are not to be recorded."""
        self.inputs, parts, recording = [x.clone() for x in inputs], [], contextlib.ExitStack()
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.current_stream()

        def begin():
            graph = torch.cuda.CUDAGraph()
            recording.enter_context(torch.cuda.graph(graph, pool, stream))
            parts.append(graph.replay)

        def meet(gradients):
            if self.ranks.size > 1:
                recording.close()
                parts.append(functools.partial(self.ranks.average, gradients))
                begin()

        try:
            with recording:
                begin()
                self.terms = self.step(*self.inputs, meet=meet)
            self.parts = parts
        except RuntimeError as error:     # going on with steps as they were
            self.nets.G.zero_grad()
            self.nets.D.zero_grad()
            print(f"no CUDA graph, so slower steps: {str(error).splitlines()[0]}", file=sys.stderr)

@dataclass(frozen=True)
class Ranks:
    """The processes that train together, a GPU each, as torchrun starts them; or one by itself."""
    rank: int = 0                         # of all
    local: int = 0                        # of those on this machine
    size: int = 1
    elastic: bool = False                 # may be started again, by the same command

    @classmethod
    def join(cls):
        """As torchrun has set the environment."""
        get = os.environ.get
        ranks = cls(int(get("RANK", 0)), int(get("LOCAL_RANK", 0)), int(get("WORLD_SIZE", 1)),
                    "TORCHELASTIC_RUN_ID" in os.environ)
        if ranks.size > 1:
            # torchrun's store keeps addresses of dead processes: so each start has keys of its own.
            store, rank, size = next(distributed.rendezvous("env://"))
            key = f"start {get('TORCHELASTIC_RESTART_COUNT', 0)} of {size}"
            store, packing = distributed.PrefixStore(key, store), timedelta(hours=6)    # of NSynth
            distributed.init_process_group(store=store, rank=rank, world_size=size, timeout=packing)
        if ranks.rank:
            sys.stdout = open(os.devnull, "w")
        return ranks

    def leave(self):
        if self.size > 1:                 # else its threads may abort the process as it ends
            self.wait()
            distributed.destroy_process_group()

    def wait(self):
        """Until all have come.  `distributed.barrier` would do it with GPUs, used or not."""
        self.largest(torch.zeros(()))

    def average(self, tensors):
        """Replace tensors by their means over all ranks: as one, in one exchange."""
        if self.size > 1:
            flat = torch.cat([x.flatten() for x in tensors])
            distributed.all_reduce(flat)
            parts = (flat / self.size).split([x.numel() for x in tensors])
            torch._foreach_copy_(tensors, [part.view_as(x) for part, x in zip(parts, tensors)])

    def largest(self, tensor):
        """The largest of each number over all ranks."""
        if self.size > 1:
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor

    @contextlib.contextmanager
    def one_first(self):
        """One process of each machine does it before the others."""
        if self.local:
            self.wait()
        yield
        if not self.local:
            self.wait()

    def start_alike(self, nets):
        if self.size > 1:
            for p in nets.weights():
                distributed.broadcast(p, 0)

# ---- Reports: a line and a JSON line a tick; a picture and a WAV now and then ---------------
class TrainingError(ValueError):
    """A run that cannot go on; the message says why and from where to resume."""

EXPLODED = 1e7                            # no term of a healthy run comes near it

class Monitor:
    """Collects each step's loss terms, and reports their means once a tick."""

    def __init__(self, state, run):
        self.state, self.run, self.steps, self.images = state, run, 0, state.images
        self.began = self.last = time.time()

    def add(self, terms):
        """Sums on the device: nothing waits for a GPU here."""
        self.names, terms = list(terms), torch.stack(list(terms.values())).double()
        self.total = terms + (self.total if self.steps else 0)
        self.steps += 1

    def means(self):
        """Means of the terms since the last tick; one that is not finite stops the run."""
        self.state.ranks.average([self.total])
        means = dict(zip(self.names, (self.total / self.steps).tolist()))
        for name, mean in means.items():
            if not abs(mean) < EXPLODED:  # true for NaN as well
                last = self.state.images // self.state.examples
                raise TrainingError(
                    f"steps {last - self.steps + 1} to {last}: the loss term {name} reached "
                    f"{mean:g}; {last_good(self.run)}; start a new run with a lower --lr")
        return means

    def tick(self):
        images, cfg, now = self.state.images, self.state.cfg, time.time()
        means, (progress, stage, _) = self.means(), cfg.where(images)
        rate = (images - self.images) / max(now - self.last, 1e-9)
        left = timedelta(seconds=int((now - self.last) * work(cfg, images, cfg.images)
                                     / work(cfg, self.images, images)))
        grown = f"{cfg.where(images - 1)[2]} of {cfg.resolutions} blocks" * (cfg.resolutions > 1)
        grown += f", fading {100 * (progress % 1):.0f} %" * (progress % 1 > 0)
        print(f"{grown} {images:>10,}/{cfg.images:,} "
              + " ".join(f"{name} {value:.3g}" for name, value in means.items())
              + f"  {rate:.1f} ex/s, {left} left", flush=True)
        record = {"images": images, "stage": stage, "progress": progress,
                  "seconds": round(now - self.began, 1), "examples_per_s": round(rate, 2), **means}
        log = os.devnull if self.state.ranks.rank else self.run / "log.jsonl"
        try:
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise TrainingError(f"{log}: {error.strerror}: put that right, and --resume") from None
        self.steps, self.last, self.images = 0, now, images

def last_good(run):
    found = gansynth.checkpoints(run)
    return f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was saved"

def multiply_adds(arch, blocks):
    """Multiplications of one pass through G's convolutions at so many blocks, as in the paper's
    network, whatever is folded or skipped: 14.06 G at full size; D's are as many."""
    taps = math.prod(arch.kernel)
    total = arch.channels(1) * math.prod(arch.size(1)) * (
        arch.latent + arch.pitches + taps * arch.channels(1))
    for b in range(2, blocks + 1):
        total += taps * arch.channels(b) * math.prod(arch.size(b)) * (
            arch.channels(b - 1) + arch.channels(b))
    return total

def work(cfg, start, end):
    """What training from so many examples to so many costs, in no unit: later ones cost more."""
    def cost(blocks):                     # the constant stands for fixed costs
        return (1 if cfg.model != "gansynth" else multiply_adds(cfg.architecture(), blocks) + 4e6)
    return sum(cost(blocks) * max(0, min(end, last) - max(start, first))
               for first, last, _, blocks in stages(cfg))

def stages(cfg):
    """(first example, last + 1, stage, blocks) of each stage of a run."""
    start = 0
    while start < cfg.images:
        _, stage, blocks = cfg.where(start)
        last = not cfg.progressive or stage == 2 * (cfg.resolutions - 1)
        end = cfg.images if last else start + (cfg.fade_images if stage % 2 else cfg.stable_images)
        yield start, min(end, cfg.images), stage, blocks
        start = end

def snapshot(state, run, notes=16):
    """A picture and a WAV of the same latents and pitches each time, to watch the model grow."""
    cfg, G, path = state.cfg, state.nets.G_ema, run / "snapshots" / f"{state.images:08d}"
    if state.ranks.rank:
        return path
    path.parent.mkdir(exist_ok=True)
    random = random_at(cfg.seed + 1)
    z = torch.randn(notes, G.arch.latent, generator=random)
    pitch = torch.linspace(0, cfg.pitch_high - cfg.pitch_low, notes).round().long()
    waves = gansynth.synthesise(G, cfg.spectrum(), z, pitch, cfg.where(state.images)[0], random)
    pictures = [spectral.rainbowgram(wave, cfg.sample_rate) for wave in waves]
    spectral.write_png(f"{path}.png", spectral.tile(pictures, 4))
    nsynth.write_wav(f"{path}.wav", waves.flatten(), cfg.sample_rate)
    return path

def random_at(*numbers):
    """A generator of random numbers, seeded by whole ones."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))

# ---- Runs and their checkpoints -------------------------------------------------------------
KEEP = 3                                  # checkpoints kept; older ones are deleted
BEGUN = "snapshots", "log.jsonl", ".part"           # in a folder without checkpoints

def run_name(cfg):
    """What a run's folder is called after."""
    if cfg.model != "gansynth":
        return cfg.model + "-mol16" * (getattr(cfg, "output", "") == "mol16")
    return cfg.rep + "-hires" * cfg.hires

def new_run(cfg, ranks):
    """Make a run's folder: `out`, which must be new or empty, or the next number under runs/.
    Under torchrun what a run left there that died before its first checkpoint is begun anew."""
    numbers = [int(p.name[:4]) for p in Path("runs").glob("[0-9][0-9][0-9][0-9]*")]
    for number in itertools.count(max(numbers, default=0) + 1):
        run = Path(cfg.out or f"runs/{number:04d}-{run_name(cfg)}")
        try:
            run.mkdir(parents=True, exist_ok=bool(cfg.out))
            if not all(ranks.elastic and path.name.endswith(BEGUN) for path in run.iterdir()):
                raise FileExistsError
            return run
        except FileExistsError:           # or another run was faster
            if cfg.out:
                raise ConfigError(f"{run} exists already and is not an empty folder: give another "
                                  "--out, or --resume it") from None
        except OSError as error:
            raise ConfigError(f"{run} cannot be made ({error.strerror}): try another") from None

@contextlib.contextmanager
def claim_run(cfg, ranks=Ranks(), resume=None):
    """The run's folder, that of the checkpoint `resume` or a new one, for us alone while what is
    done `with` it lasts; if nothing came to lie in it by then, it goes again."""
    run = resume.parent if resume else new_run(cfg, ranks)
    if ranks.rank:
        yield run
        return
    with contextlib.ExitStack() as end:
        # Locked is the folder itself: that leaves no file, and goes with a process that is killed.
        with contextlib.suppress(ImportError, OSError):     # Windows and some disks have no locks
            import fcntl
            end.callback(os.close, folder := os.open(run, os.O_RDONLY))
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{run} is still being trained by another process: stop that "
                                  "first, or wait for it") from None
        end.callback(lambda: any(run.iterdir()) or run.rmdir())
        if not resume:
            trim_log(run, 0)
        yield run

def save(state, run):
    """Write a checkpoint, and delete those older than the last KEEP; -> its path."""
    cfg, path = state.cfg, run / f"checkpoint-{state.images:08d}.pt"
    if state.ranks.rank:
        return path
    parts = {name: part.state_dict() for name, part in vars(state.nets).items()}
    for name in ("G", "G_ema", "D"):      # losses tell of the weights before the last step
        if not all(p.isfinite().all() for p in parts.get(name, {}).values()):
            raise TrainingError(f"after {state.images:,} examples {name} holds NaN or infinity; "
                                f"{last_good(run)}; start a new run with a lower --lr")
    # Settings first: sample.py needs the checkpoint and nothing else.
    gansynth.save_checkpoint(path, {
        "model": cfg.model, "config": {"model": cfg.model, **asdict(cfg)},
        "architecture": asdict(state.nets.G.arch), "spectrum": asdict(cfg.spectrum()),
        "pitch_low": cfg.pitch_low, "progress": cfg.where(state.images)[0],
        "counts": state.counts, "images": state.images, "stage": state.stage, **parts})
    for old in gansynth.checkpoints(run)[:-KEEP]:
        old.unlink()
    return path

def restore(state, path):
    """Go on from a checkpoint that `save` wrote; CheckpointError for what does not fit together.
    Newer checkpoints of its folder are set aside: they would win when resuming again."""
    contents = gansynth.load_checkpoint(path, parts=RESUME_PARTS)
    if not torch.equal(state.counts, contents["counts"]):
        raise gansynth.CheckpointError(
            f"the notes of {state.cfg.data} have changed since {path} ({state.counts.sum():,} to "
            f"train on, not {contents['counts'].sum():,}): bring the old ones back, or start anew")
    state.images = contents["images"]
    state.start_stage()
    try:
        for name, part in vars(state.nets).items():
            # Saved at the end of a stage, the next one's optimisers are fresh in any case.
            if not name.startswith("adam") or contents["stage"] == state.stage:
                part.load_state_dict(contents[name])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).split("\n")[0][:100]
        raise gansynth.CheckpointError(f"{path}: its parts do not fit together ({reason}): "
                                       f"{gansynth.EARLIER}") from None
    if state.ranks.rank:
        return
    found = gansynth.checkpoints(path.parent)
    for newer in found[found.index(path) + 1:] if path in found else []:
        newer.rename(f"{newer}.old")
        print(f"{newer} is set aside as {newer.name}.old")
    trim_log(path.parent, state.images)

def trim_log(run, images):
    """Drop the log's lines after the checkpoint that a run resumes, and one a crash cut short."""
    log, part = run / "log.jsonl", run / "log.part"
    if log.exists():
        whole = re.finditer(r'^\{"images": (\d+).*\}\n', log.read_text("utf-8", "replace"), re.M)
        part.write_text("".join(line[0] for line in whole if int(line[1]) <= images), "utf-8")
        part.replace(log)

@contextlib.contextmanager
def interruptible():
    """Ctrl-C and SIGTERM wait until a step is done, a second acts at once -> those that came."""
    came = []

    def note(number, frame):
        came.append(number)
        os.write(2, b"stopping: first this step, and a checkpoint; once more: at once, unsaved\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

# ---- The baselines: other networks, another step, one stage that never ends -----------------
@dataclass
class BaselineConfig(Config):
    """What the baselines have in common: notes are waves, and nothing grows.  See PRESETS."""
    resolutions: int = setting(1, "none")
    progressive: bool = setting(False, "never")
    channels: int = setting(64, "WaveGAN: first layer's, then doubled; WaveNet: all, 512", low=1)

    unused = ("rep", "hires", "progressive", "resolutions", "channel_base", "channel_max",
              "stable_images", "fade_images", "penalty_units", "drift")

    def spectrum(self):                   # the wave itself, padded to what the network makes
        return spectral.Spectrum(spectral.WAVEFORM, self.architecture().length, 1, self.length,
                                 self.sample_rate)

@dataclass
class WaveGANConfig(BaselineConfig):
    critic_steps: int = setting(5, "WaveGAN: steps of D for one of G", low=1)
    model = "wavegan"

    def architecture(self):
        layers = max(1, math.ceil(math.log2(self.length / 16) / 2))
        return gansynth.WaveGANArchitecture(16 * 4 ** layers, self.latent, self.pitches,
                                            self.channels)

@dataclass
class WaveNetConfig(BaselineConfig):
    channels: int = setting(512, "", low=1)
    output: str = setting("mulaw8", "WaveNet: 8-bit codes, 16-bit mixture", ["mulaw8", "mol16"])
    stacks: int = setting(3, "WaveNet: stacks of dilated layers", low=1)
    layers: int = setting(10, "WaveNet: a stack's, with dilations 1, 2, 4, ...", low=1, high=16)
    crop: int = setting(12288, "WaveNet: samples of an example, up to half mere past", low=1)

    model = "wavenet"
    unused = (*BaselineConfig.unused, "latent", "penalty", "pitch_weight")

    def architecture(self):               # the orchestra holds a key for a share of any length
        hold = 3 * self.length // 4 if self.data == "orchestra" else 3 * self.sample_rate
        return gansynth.WaveNetArchitecture(
            self.length, min(hold, self.length), self.pitches, self.stacks, self.layers,
            self.channels, self.output)

def wavegan_discriminator_loss(D, x_real, pitch_real, x_fake, mix, shifts, weights):
    """D's loss (WGAN-GP, Gulrajani et al. 2017, and the pitch of real notes): (loss, named terms).
    x_real, x_fake (N, length), mix (N, 1) uniform in [0, 1], shifts for real, fake and mixed."""
    real, logits = D(x_real, shifts[0])
    fake, _ = D(x_fake, shifts[1])
    x_hat = (x_real + mix * (x_fake - x_real)).detach().requires_grad_()
    score, _ = D(x_hat, shifts[2])
    gradient, = torch.autograd.grad(score.sum(), x_hat, create_graph=True)
    terms = {"D_real": -real.mean(), "D_fake": fake.mean(),
             "D_pitch": cross_entropy(logits, pitch_real),
             "D_penalty": (gradient.norm(dim=1) - 1).square().mean()}
    return (terms["D_real"] + terms["D_fake"] + weights.pitch_weight * terms["D_pitch"]
            + weights.penalty * terms["D_penalty"]), terms

def wavenet_loss(net, x, pitch, offset=0):
    """Negative log likelihood of waves (N, L): (loss in nats a sample, terms in nats and bits).
    The first samples of a crop from within the note lack their past: up to half do not count."""
    skip = min(offset, net.arch.receptive_field, x.shape[1] // 2)
    parameters, x = net(x, pitch, offset)[..., skip:], x[:, skip:]
    nats = (cross_entropy(parameters, gansynth.mu_law_encode(x)) if net.mulaw8
            else -gansynth.mol_log_likelihood(parameters, x).mean())
    return nats, {"nats": nats, "bits": nats / math.log(2)}

class BaselineState(State):
    """A run of a baseline: networks from `NETS` by name, G the one heard, and Adam's betas."""

    def build(self):
        self.terms, parts = {}, {}
        for name, network in self.NETS.items():
            net = parts[name] = network(self.cfg.architecture()).to(self.device)
            parts[f"adam_{name}"] = torch.optim.Adam(net.parameters(), betas=self.BETAS, fused=True)
        return SimpleNamespace(**parts, G_ema=copy.deepcopy(parts["G"]).requires_grad_(False))

    def start_stage(self):
        self.stage = 0

    def update(self, adam, loss, terms):
        """One step of a network, and the named terms of its loss for the report."""
        loss.backward()
        adam.param_groups[0]["lr"] = self.cfg.learning_rate(self.images)
        adam.step()
        adam.zero_grad()
        if adam is self.nets.adam_G:
            gansynth.ema_update(list(self.nets.G_ema.parameters()),
                                list(self.nets.G.parameters()), self.cfg.ema)
        self.terms = {**self.terms, **{name: term.detach() for name, term in terms.items()}}

    def step(self):
        """Train on the notes whose turn it is -> named loss terms, G's of its last step."""
        turn = self.turn(self.images)
        self.learn(self.notes.waves(turn).to(self.device), self.labels[turn].to(self.device))
        self.images += self.cfg.batch
        return self.terms

class WaveGANState(BaselineState):
    NETS = {"G": gansynth.WaveGANGenerator, "D": gansynth.WaveGANDiscriminator}
    BETAS = (0.5, 0.9)

    def learn(self, waves, pitch):
        """One step of D; every `critic_steps`-th time, the first among them, one of G before it."""
        cfg, nets, G, D = self.cfg, self.nets, self.nets.G, self.nets.D
        draws = draw(cfg, self.counts, self.images, self.device)
        shifts = torch.randint(-2, 3, (4, 4), generator=random_at(cfg.seed, self.images, 1))
        if self.images // cfg.batch % cfg.critic_steps == 0:
            D.requires_grad_(False)
            self.update(nets.adam_G, *gansynth.generator_loss(
                lambda z, pitch, _: G(z, pitch), D, draws.z_G, draws.pitch_G, shifts[3], cfg))
            D.requires_grad_(True)
        x_real = cfg.spectrum().encode(waves)[:, 0, :, 0]           # (N, L), padded
        with torch.no_grad():
            x_fake = G(draws.z_D, draws.pitch_D)
        self.update(nets.adam_D, *wavegan_discriminator_loss(
            D, x_real, pitch, x_fake, draws.mix.flatten(1), shifts, cfg))

class WaveNetState(BaselineState):
    NETS = {"G": gansynth.WaveNet}
    BETAS = (0.9, 0.999)

    def learn(self, waves, pitch):
        """One step on crops of notes, all from one random place.  Places half a crop beyond either
        end are moved to it: else the beginning, where notes set out, would hardly be learnt."""
        cfg, crop = self.cfg, min(self.cfg.crop, self.cfg.length)
        last, random = cfg.length - crop, random_at(cfg.seed, self.images)
        place = torch.randint(-(crop // 2), last + crop // 2 + 1, (), generator=random)
        offset = int(place.clamp(0, last))
        self.update(self.nets.adam_G, *wavenet_loss(
            self.nets.G, waves[:, offset:offset + crop], pitch, offset))

MODELS = {"gansynth": (Config, State), "wavegan": (WaveGANConfig, WaveGANState),
          "wavenet": (WaveNetConfig, WaveNetState)}

# ---- What a step costs, and a run -----------------------------------------------------------
PASSES = 19                               # of the network in one step, as the release makes them
TOUCHES = 140                             # of each feature in one step, to read or write it
GPUS = {                                  # operations/s of TF32 (V100: of float32), bytes/s
    "H100": (494e12, 3.35e12), "A100": (156e12, 2.0e12), "V100": (15.7e12, 0.9e12),
    "RTX 4090": (82.6e12, 1.01e12)}

def estimate(row, operations, moved):
    """Seconds of a step on a GPU of so many operations/s and bytes/s, if 40 % of the one and 70 %
    of the other are reached in turn, and a kernel takes 2.5 us more."""
    kernels = 300 + 170 * row["blocks"]
    return (row["GFLOP"] / operations / 0.4 + row["GB"] / moved / 0.7) * 1e9 + 2.5e-6 * kernels

def measure(cfg, whole_run, as_json, budget):
    """Print what steps cost, timed for about `budget` seconds each: at every number of blocks that
    comes, on a GPU in every way; or of each stage and a whole run, elsewhere by estimate."""
    device, hours, elsewhere = prepare(cfg), 0, dict.fromkeys(GPUS, 0)
    form = cfg.length, cfg.sample_rate, (cfg.pitch_low, min(cfg.pitch_low + 1, cfg.pitch_high))
    notes, ways = nsynth.load("orchestra", *form, (), progress=False), [("", "graph", "last")]
    if device != "cpu" and not whole_run:
        ways = itertools.product(("tf32", "bf16"), ("eager", "graph"), ("last", "first"))
    for precision, launched, channels in ways:
        gansynth.LAYOUT = torch.channels_last if channels == "last" else torch.contiguous_format
        Recorded.EAGER = math.inf if launched == "eager" else 3
        way = replace(cfg, precision=precision or cfg.precision)
        state = State(way, notes, prepare(way))
        # As much of the notes' pictures is kept as would be of the paper's training notes.
        state.pictures.memory *= len(notes) / 56_303
        for start, end, stage, blocks in stages(cfg):
            if stage % 2 and not whole_run:
                continue
            row = {"stage": stage + 1, "blocks": blocks, **costs(state, start, end, budget)}
            if precision:
                row |= {"number": precision, "kernels": launched, "channels": channels}
            steps = (end - start) / cfg.batch / 3600
            row["hours"] = steps * row["s/step"]
            show(row, as_json, start == 0)
            hours += row["hours"]
            for name, rates in GPUS.items():
                elsewhere[name] += steps * estimate(row, *rates)
    if whole_run:
        show({"all": device, "hours": hours, "peak MB": peak_memory(device)}, as_json)
        for name, hours in elsewhere.items():
            show({"at least": name, "hours": hours, "of eight": hours / 8}, as_json, name == "H100")

def show(row, as_json, head=True):
    """Print a row of a table, if need be beneath its head, or as JSON."""
    if head and not as_json:
        print(" ".join(f"{name:>9}" for name in row))
    texts = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values())
    line = " ".join(f"{text:>{max(9, len(name))}}" for name, text in zip(row, texts))
    print(json.dumps(row) if as_json else line, flush=True)

def costs(state, start, end, budget):
    """What a step costs after so many examples, as a row.  Operations, PASSES x multiply_adds x 2,
    are set against the rates of a matrix product and of the newest block's own convolution."""
    cfg, device, times, state.images = state.cfg, state.device, [], start
    arch, blocks = cfg.architecture(), cfg.where(start)[2]
    warm = 1 if device == "cpu" else 4    # then it is recorded
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    state.start_stage()
    while len(times) <= warm or sum(sum(pair) for pair in times) < budget and len(times) < 36:
        begun = timer()                   # waits for a GPU
        inputs = state.inputs()
        made = timer()
        state.run(*inputs)
        times.append((made - begun, timer() - made))
        following = state.images + state.examples
        state.images = following if following < end else start
    made, ran = zip(*times[warm:])
    data = np.mean(made)                  # a GPU makes the pictures of many steps at once
    whole = data + np.median(ran)
    operations = 2 * PASSES * multiply_adds(arch, blocks) * cfg.batch
    features = sum(2 * arch.channels(b) * math.prod(arch.size(b)) for b in range(1, blocks + 1))
    return {"s/step": whole, "ex/s": cfg.batch / whole, "% data": 100 * data / whole,
            "peak MB": peak_memory(device), "GFLOP": operations / 1e9,
            "GB": 4 * TOUCHES * features * cfg.batch / 1e9,
            **{f"of {name}": operations / whole / rate
               for name, rate in yardsticks(arch, blocks, cfg.batch, device).items()}}

def yardsticks(arch, blocks, batch, device, n=2048):
    """Operations/s of a matrix product, and of a convolution as block `blocks` has it."""
    matrix, channels = torch.randn(n, n, device=device), arch.channels(blocks)
    x = torch.randn(batch, channels, *arch.size(blocks), device=device)
    x = x.contiguous(memory_format=gansynth.LAYOUT)
    kernel = torch.randn(channels, channels, *arch.kernel, device=device)
    names = {"matrix": matrix, "x": x, "kernel": kernel, "conv2d": torch.nn.functional.conv2d}
    return {name: operations / Timer(code, globals=names, num_threads=torch.get_num_threads())
            .blocked_autorange(min_run_time=0.1).median for name, code, operations in (
                ("product", "matrix @ matrix", 2 * n ** 3),
                ("conv", "conv2d(x, kernel, padding='same')", 2 * x.numel() * kernel[0].numel()))}

def peak_memory(device):
    """Most memory the process has held so far, in MB (on a GPU: the GPU's)."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        import resource                   # not on Windows
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin"
                                                                 else 1e3)

def probe(cfg, notes, device):
    """ConfigError now, not on day three, if a GPU's memory is too small for the last stage."""
    if device == "cpu" or cfg.model != "gansynth":
        return
    try:
        state = State(cfg, notes, device)
        state.images = cfg.images - 1
        state.step()
    except torch.cuda.OutOfMemoryError:
        raise ConfigError(f"the last stage does not fit into {device}'s memory at --batch "
                          f"{cfg.batch}: try a smaller one, or --precision bf16") from None
    print(f"the last stage will take {peak_memory(device):,.0f} MB of {device}'s memory")

# ---- Settings that cannot work --------------------------------------------------------------
class ConfigError(ValueError):
    """A setting that cannot work; the message says which values could."""

INHERITED = ("rep", "hires", "length", "sample_rate", "pitch_low", "pitch_high", "resolutions",
             "latent", "channel_base", "channel_max", "progressive")            # with --init
RESUME_PARTS = {**gansynth.SAMPLE_PARTS, "stage": int}

def check_settings(cfg):
    """ConfigError for a value that is none of the choices, out of range or of another type."""
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        choices, low, high = (f.metadata[name] for name in ("choices", "low", "high"))
        if choices and value not in choices:
            raise ConfigError(f"{f.name} is {value!r}: choose one of {', '.join(choices)}")
        if f.type in (int, float) and not (math.isfinite(value) and low <= value <= high):
            raise ConfigError(f"{f.name} is {value}: expected a number of at least {low:g}"
                              + (f" and at most {high:g}" if high < math.inf else ""))
    if cfg.pitch_low > cfg.pitch_high:
        raise ConfigError(f"pitches from {cfg.pitch_low} to {cfg.pitch_high}: give the lower first")
    if cfg.rep == spectral.WAVEFORM:
        cfg.hires = False                 # a wave has no frequencies
    cfg.architecture()                    # says itself what cannot be

# ---- Command line: Config's defaults < preset < flags given ---------------------------------

# What presets change in the defaults, by preset and model.  paper: WaveGAN as its authors trained
# it, 200,000 steps of G and no average; WaveNet for 150,000 steps of 32, as GANSynth's paper says,
# while the learning rate, its fall, the average and the crop, two receptive fields, are ours.
WORKSHOP = dict(length=4096, sample_rate=8000, pitch_low=60, pitch_high=71, ema=0.998)
PRESETS = {
    "paper": {
        "gansynth": {},
        "wavegan": dict(latent=100, batch=64, lr=1e-4, ema=0.0, images=64_000_000,
                        tick_images=64_000, snapshot_images=640_000, checkpoint_images=320_000),
        "wavenet": dict(batch=32, lr=2e-4, lr_decay=0.1, ema=0.9999, images=4_800_000,
                        tick_images=32_000, snapshot_images=480_000, checkpoint_images=96_000),
    },
    "workshop": {
        # The last of three blocks never comes: it takes two thirds of the time, and adds little.
        "gansynth": dict(
            WORKSHOP, resolutions=3, latent=8, channel_base=128, channel_max=32,
            images=41_500, stable_images=20_000, fade_images=1_500, lr=4e-3, lr_decay=0.03,
            penalty_units="scaled", tick_images=1_000, snapshot_images=5_000,
            checkpoint_images=2_500),
        "wavegan": dict(
            WORKSHOP, latent=8, channels=16, batch=16, critic_steps=3, lr=3e-4, lr_decay=0.1,
            images=256_000, tick_images=8_000, snapshot_images=32_000, checkpoint_images=32_000),
        # Short: two periods of a note are all it sees.  With a longer past (2^8, 1,025 samples) it
        # learns to go on with what it hears, the pitch asked for or not, and by heart.
        "wavenet": dict(
            WORKSHOP, channels=64, stacks=1, layers=5, crop=1024, batch=8, lr=2e-3, lr_decay=0.05,
            images=72_000, tick_images=2_000, snapshot_images=8_000, checkpoint_images=8_000),
    },
}
# Of a workshop's run with all blocks: on phase or waves, which do not stretch, or not growing.
WHOLE = dict(images=16_000, stable_images=1_200, fade_images=2_000, batch=4, lr=3e-3)

def flag(name):
    return "--" + name.replace("_", "-")

def parse(argv):
    """What the command line asks for: a namespace, and the settings given, by name."""
    changes = [textwrap.fill(f"--model {model} --preset {preset}: " + ", ".join(
        f"{name} {value}" for name, value in changed.items()), break_on_hyphens=False)
        for preset, models in PRESETS.items() for model, changed in models.items() if changed]
    parser = argparse.ArgumentParser(
        usage="train.py [options], which --help lists", allow_abbrev=False,
        description="Train GANSynth, or a baseline of its paper.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n\n".join(["Presets change these defaults:", *changes]))
    add = parser.add_argument
    add("--model", choices=MODELS, help="gansynth, or a baseline of the paper (default: gansynth)")
    add("--preset", choices=PRESETS, help="workshop: 15 minutes on a laptop; default without a GPU")
    add("--resume", metavar="RUN", help="go on with a run (folder or checkpoint) and its settings")
    add("--init", metavar="PATH", help="begin with full-grown weights, a run's or Magenta's")
    add("--bench", action="store_true", help="time each stage's step, and stop")
    add("--plan", action="store_true", help="what the run will cost, and stop")
    add("--json", action="store_true", help="--bench or --plan, a JSON line a row")
    settings = {f.name: f for kind in (WaveNetConfig, WaveGANConfig, Config) for f in fields(kind)}
    for name, f in settings.items():
        choices, text = f.metadata["choices"], f.metadata["help"]
        how = dict(action=argparse.BooleanOptionalAction) if f.type is bool else dict(
            type=f.type, choices=choices, metavar=None if choices else f.type.__name__.upper())
        text += f" (default: {f.default})" * (f.default != "")
        add(flag(name), default=argparse.SUPPRESS, help=text.replace("%", "%%"), **how)
    asked = vars(parser.parse_args(argv))
    given = {name: asked.pop(name) for name in settings if name in asked}
    if asked["json"] and not (asked["bench"] or asked["plan"]):
        parser.error("--json is for --bench and --plan: add one of them")
    return SimpleNamespace(**asked), given

def new_settings(model, preset, given):
    """Layers of a new run's settings, and the line that says which preset and why."""
    gpu = torch.cuda.is_available()
    why = "as asked" if preset else f"{'a' if gpu else 'no'} GPU was found"
    preset = preset or ("paper" if gpu else "workshop")
    other, = PRESETS.keys() - {preset}
    layers, grown = dict(PRESETS[preset][model]), given.get("progressive", True)
    if preset == "paper" and not grown:
        layers |= {"images": 5_000_000}   # paper: 5M examples without growing
    whole = not grown or given.get("rep") in ("phase", spectral.WAVEFORM)
    if preset == "workshop" and model == "gansynth" and whole:
        layers |= WHOLE
    kind, line = MODELS[model][0], f"preset {preset} ({why}); for the other: --preset {other}"
    return kind(**{**layers, **given}), line

def initial(path, model, preset, given):
    """A new run from a checkpoint, ours or Magenta's -> settings, a line that tells of them, and
    weights.  Networks and notes' form are the checkpoint's, and all blocks there from the start."""
    path = gansynth.find_checkpoint(path)
    contents = gansynth.load_generator(path, read_bundle=nsynth.read_bundle)[1]
    known = {**contents["architecture"], **contents["config"], "progressive": False}
    known = {name: known[name] for name in INHERITED if name in known}
    cfg, line = new_settings(model, preset, {**known, **given})
    if (contents["model"] != "gansynth" or not contents.keys() >= {"G", "D"}
            or gansynth.Architecture(**contents["architecture"]) != cfg.architecture()
            or contents["progress"] < cfg.resolutions - 1):
        raise ConfigError(f"--init {path}: its networks are none that --model {model} makes with "
                          "these settings (leave out flags of networks and notes), are half-grown, "
                          "or lack D, saved to be heard only")
    return cfg, f"weights of {path}, {line}", {name: contents[name] for name in ("G", "D", "G_ema")}

def resumed_settings(path, given):
    """The settings in a checkpoint; ConfigError for a flag that contradicts them.  Some may differ:
    the device, where the data and their pack lie (`restore` compares the notes' counts), and more
    `images`, for a finished run to go on; lr_decay then counts to the new end."""
    contents = gansynth.load_checkpoint(path, parts=RESUME_PARTS)
    kind, saved = MODELS[contents["model"]][0], contents["config"]
    if saved.keys() != {"model", *(f.name for f in fields(kind))}:
        raise gansynth.CheckpointError(f"{path}: its settings are not those that this program has: "
                                       "resume with the program that wrote it, or start a new run")
    if "out" in given and Path(given["out"]).resolve() != path.parent.resolve():
        raise ConfigError(f"--out {given['out']} contradicts --resume: it goes on in {path.parent}")
    for name, value in given.items():
        free = (name in ("device", "precision", "out", "data", "pack")
                or name == "images" and value > saved[name])
        before = saved.get(name, "no such setting")
        if not free and value != before:
            raise ConfigError(f"{flag(name)} {value} contradicts {path}, which was trained with "
                              f"{before}: leave it out, or start a new run")
    if contents["images"] >= given.get("images", saved["images"]):
        raise ConfigError(f"{path} has its {saved['images']:,} examples: add --images with more")
    return kind(**{name: value for name, value in {**saved, **given}.items() if name != "model"})

def start(asked, given):
    """Do what the command line asks for."""
    ranks, run, model, init = Ranks.join(), asked.resume, asked.model or "gansynth", None
    if ranks.elastic and run is None:
        if not given.get("out"):
            raise ConfigError("torchrun may restart a run: add --out, so that it is found again")
        run = given["out"] if gansynth.checkpoints(given["out"]) else None
    elif run is not None and (asked.preset or asked.model or asked.init):
        raise ConfigError("--preset, --model and --init contradict --resume: leave them out")
    path = None if run is None else gansynth.find_checkpoint(run)
    if path and path.name == gansynth.EXPERIMENT:
        raise ConfigError(f"{path} is no run that --resume can go on with: begin one with --init")
    if path:
        cfg, line = resumed_settings(path, given), f"resuming {path} with its settings"
    else:
        kind, waves = MODELS[model][0], given.get("rep") == spectral.WAVEFORM
        for name in given:
            if name in kind.unused or not hasattr(kind, name) or waves and name == "hires":
                raise ConfigError(f"{flag(name)} does nothing for --model {model}"
                                  + " --rep waveform" * waves + ": leave it out")
        if asked.init is not None:
            cfg, line, init = initial(asked.init, model, asked.preset, given)
        else:
            cfg, line = new_settings(model, asked.preset, given)
    if cfg.model != "gansynth" and (ranks.size > 1 or asked.bench or asked.plan):
        raise ConfigError("--bench, --plan and torchrun are for GANSynth's stages: leave them out")
    print(line, file=sys.stderr if asked.json else sys.stdout, flush=True)
    if asked.bench or asked.plan:
        measure(cfg, asked.plan, asked.json, 2 if asked.plan else 20)
    else:
        train(cfg, path, ranks, init)
        ranks.leave()

def main(argv=None):
    with nsynth.one_sentence("train.py", (TrainingError, nsynth.NoteError,
                                          gansynth.CheckpointError, OSError)):
        try:
            start(*parse(argv))
        except (ConfigError, spectral.SpectrumError, gansynth.ArchitectureError) as error:
            print(f"train.py: {error}", file=sys.stderr)
            sys.exit(2)                   # settings that cannot work

if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    main()
