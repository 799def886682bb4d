"""GANSynth's networks, tricks and losses (paper 2.2 and appendix; Karras et al. 2018).

A generator G turns a latent vector and a pitch into a picture of two channels, log magnitude and
instantaneous frequency; a discriminator D scores pictures and names their pitch.  Both grow: a
network of B resolutions starts with one small block and fades in the others, one after another.

Shapes:  N pictures, C channels, T frames, F frequency bins, P pitches, b = 1..B blocks.
Pictures are (N, 2, T, F).  `progress` p runs from 0 (one block) to B - 1 (all blocks, stable);
between two whole numbers a new block fades in.  Everything is computed at the stage's own size:
block b works on pictures of start x 2^(b-1), and nothing is ever upsampled to full size (the
release does so from the first stage on; scores, losses and gradients are equal all the same).

    python gansynth.py             prints both networks layer by layer, as the paper's Table 3
"""

import argparse
import functools
import itertools
import json
import math
import os
import re
import sys
import warnings
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

LAYOUT = torch.channels_last              # of features in memory
LEAK = 0.2                                # slope of leaky ReLU below zero
RELU_GAIN = math.sqrt(2)                  # He's: of layers that a leaky ReLU follows

@dataclass(frozen=True)
class Architecture:
    """Everything that determines the networks; defaults: IF-Mel + H (paper, Table 3).

    Spectra are scaled into tanh's range by fixed numbers, as released, for every representation.
    paper: by the ranges of 100 notes, to +-0.8."""
    frames: int = 128                     # T at full size
    bins: int = 1024                      # F at full size
    resolutions: int = 7                  # B: blocks, each twice as large as the one before
    latent: int = 256                     # dimensions of z
    pitches: int = 61                     # P: MIDI 24..84
    channel_base: int = 4096              # channels(b) = min(base / 2^b, max)
    channel_max: int = 256
    growth: tuple = (2, 2)                # of each block's pictures, along T and F
    kernel: tuple = (3, 3)                # of the convolutions, along T and F; odd
    spectra: bool = True                  # pictures are spectra, scaled into tanh's range: of
    scale: tuple = (0.0661371661726, 0.8)               # log magnitude (mel: log power), phase or
    shift: tuple = (0.113718730221, 0.0)                # IF
    tanh: bool = True                     # G's pictures end in one

    def __post_init__(self):
        t, f = self.factor(self.resolutions - 1)
        if self.frames % t or self.bins % f:
            raise ArchitectureError(f"pictures of {self.frames} x {self.bins}: {self.resolutions} "
                                    f"resolutions need multiples of {t} and {f}")
        if self.channels(self.resolutions) < 1:
            raise ArchitectureError(f"channel_base {self.channel_base} leaves no channel for block "
                                    f"{self.resolutions}: the least is {2 ** self.resolutions}")

    @classmethod
    def of_pictures(cls, frames, bins, **more):
        """For pictures of this size: spectra or, one bin wide, waves (see WAVEFORM)."""
        return cls(frames, bins, **{**(WAVEFORM if bins == 1 else {}), **more})

    def channels(self, b):
        return int(min(self.channel_base / 2 ** b, self.channel_max))

    def factor(self, steps):
        """How many times longer and wider pictures are so many blocks on."""
        return self.growth[0] ** steps, self.growth[1] ** steps

    def size(self, b):
        """Frames and bins of block b's pictures."""
        shrink = self.factor(self.resolutions - b)
        return self.frames // shrink[0], self.bins // shrink[1]

# ---- Growing (paper 2.2; Karras et al. 2018, 2) ---------------------------------------------
def progress_at(images, resolutions, stable_images, fade_images):
    """Where training stands after so many examples (paper, appendix: 800k stable, 800k fade).

    -> (progress, stage, blocks).  Stages alternate stable, fade, stable, ...; the last one is
    stable and has no end.  Stage 2k trains blocks 1..k + 1 at progress k; stage 2k + 1 trains one
    more, which fades in while progress runs from k to k + 1."""
    cycle = stable_images + fade_images
    k, rest = divmod(images, cycle) if cycle else (resolutions - 1, 0)
    if k >= resolutions - 1:
        return float(resolutions - 1), 2 * (resolutions - 1), resolutions
    if rest < stable_images:
        return float(k), 2 * k, k + 1
    return k + (rest - stable_images) / fade_images, 2 * k + 1, k + 2

def grown(progress):
    """Progress -> (blocks in use, alpha): 0 -> (1, None), 0.37 -> (2, 0.37), 1 -> (2, None), ...

    alpha is the weight of the newest block's picture while it fades in (Karras et al. 2018, Fig.
    2); None: it has.  Training passes a pair, with alpha as a tensor: it stays so."""
    if isinstance(progress, tuple):
        return progress
    blocks = math.ceil(progress) + 1
    alpha = progress - (blocks - 2)
    return blocks, alpha if alpha < 1 else None

# ---- The tricks, one by one -----------------------------------------------------------------
class Equalised(nn.Module):
    """Equalised learning rate (Karras et al. 2018, 4.1).

    Weights start as N(0, 1) and are multiplied by He's constant at run time instead of at the
    start, so that Adam's steps, which know no scale, are equally large for every layer.
    `gain` is sqrt(2) before a leaky ReLU and 1 before tanh or nothing; biases are not scaled."""

    def __init__(self, shape, fan_in, gain, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = gain / math.sqrt(fan_in)

    def scaled(self, like):
        """The weight as it is used, in the number format of `like`."""
        return (self.weight * self.scale).to(like.dtype)

class EqualConv2d(Equalised):
    """Zero-padded convolution of stride 1 at an equalised rate (Karras et al. 2018, 4.1)."""

    def __init__(self, inputs, outputs, kernel=(3, 3), gain=RELU_GAIN):
        super().__init__((outputs, inputs, *kernel), inputs * math.prod(kernel), gain, outputs)

    def forward(self, x):
        return _Conv.apply(x, self.scaled(x), self.bias.to(x.dtype))

class EqualLinear(Equalised):
    """Dense layer at an equalised rate (Karras et al. 2018, 4.1)."""

    def __init__(self, inputs, outputs, gain=1.0):
        super().__init__((outputs, inputs), inputs, gain, outputs)

    def forward(self, x):                 # scales x: the weights are more numbers here
        return F.linear(x * self.scale, self.weight, self.bias)

class StartConv(Equalised):
    """A vector -> the first, smallest features, (N, inputs) -> (N, outputs, h, w).

    The release pads its 1 x 1 input with zeros and convolves it to this size, which is one dense
    layer.  He's constant (He et al. 2015) counts all its h w taps, although one is active."""

    def __init__(self, inputs, outputs, size):
        super().__init__((outputs, *size, inputs), math.prod(size) * inputs, RELU_GAIN, outputs)

    def forward(self, x):
        x = F.linear(x * self.scale, self.weight.flatten(0, 2))
        x = x.unflatten(1, self.weight.shape[:3]) + self.bias[:, None, None]    # (N, C, h, w)
        return x.contiguous(memory_format=LAYOUT)

def leaky(x):
    """Leaky ReLU (paper, Table 3), in place: x is gone afterwards."""
    return F.leaky_relu_(x, LEAK)

def pixel_norm(x):
    """Pixel norm (Karras et al. 2018, 4.2): every place's channel vector to mean square 1, so that
    G's activations cannot escalate in the contest with D.  (N, C, ...) -> (N, C, ...)."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)

def minibatch_stddev(x):
    """Minibatch standard deviation: lets D see that a batch of fakes lacks variety.

    (N, C, h, w) -> (N, C + 1, h, w).  Karras et al. 2018, 3: groups of 4; code: the whole batch.
    code: the batch mean counts as a constant (tf.nn.moments stops its gradient).  That changes no
    first derivative, as deviations sum to zero, but it does change the gradient of the penalty."""
    deviation = x - x.mean(dim=0).detach()                          # (N, C, h, w)
    std = (deviation.square().mean(dim=0) + 1e-6).sqrt()            # (C, h, w)  over the batch
    feature = std.mean().expand(x.shape[0], 1, *x.shape[2:])        # (N, 1, h, w)  one number
    return torch.cat([x, feature], dim=1)

def upsample(picture, factor):
    """Box (nearest-neighbour) upsampling, factors for T and F (Karras et al. 2018, 2)."""
    return picture if factor == (1, 1) else F.interpolate(picture, scale_factor=factor)

def downsample(picture, factor):
    """Box downsampling by a pair of factors: the mean of so many pixels (Karras et al. 2018, 2), in
    one step.  Step by step from upsampled copies would drift by 2.6e-4 in float32."""
    return picture if factor == (1, 1) else F.avg_pool2d(picture, factor)

def downsample_to(picture, size):
    """Box downsampling (Karras et al. 2018, 2) to the given frames and bins."""
    return downsample(picture, (picture.shape[2] // size[0], picture.shape[3] // size[1]))

@functools.lru_cache
def scaling(arch, device):
    """Scale and shift (paper 2.2) of both channels on a device, (2, 1, 1) each."""
    return [torch.tensor(pair, device=device).view(2, 1, 1) for pair in (arch.scale, arch.shift)]

def scale_picture(picture, arch):
    """Spectrum units -> the networks' [-1, 1] (paper 2.2), clipped.  Waves stay as they are."""
    scale, shift = scaling(arch, picture.device)
    return (picture * scale + shift).clamp(-1, 1) if arch.spectra else picture

def unscale_picture(picture, arch):
    """The networks' [-1, 1] (paper 2.2) -> spectrum units.  Waves stay as they are."""
    scale, shift = scaling(arch, picture.device)
    return (picture - shift) / scale if arch.spectra else picture

# ---- Networks (paper appendix, Table 3) -----------------------------------------------------
class Network(nn.Module):
    """What G and D have in common: blocks by their numbers in the paper's Table 3, blocks[1..B]."""

    def __init__(self, arch, block):
        super().__init__()
        self.arch, numbers = arch, range(1, arch.resolutions + 1)
        self.blocks = nn.ModuleList([nn.Identity(), *(block(arch, b) for b in numbers)])

    def built_parameters(self, blocks):
        """The parameters of the first so many blocks, and of what belongs to none: D's heads."""
        later = set(self.blocks[blocks + 1:].parameters())
        return [p for p in self.parameters() if p not in later]

class GeneratorBlock(nn.Module):
    """Block b of G (paper, Table 3): features -> features of twice their size, and a picture."""

    def __init__(self, arch, b):
        super().__init__()
        before, own = arch.channels(b - 1), arch.channels(b)
        self.conv0 = (StartConv(arch.latent + arch.pitches, own, arch.size(1)) if b == 1 else
                      UpConv2d(before, own, arch.kernel, arch.growth))
        self.conv1 = EqualConv2d(own, own, arch.kernel)
        self.to_picture = EqualConv2d(own, 2, (1, 1), gain=1.0)
        self.tanh = arch.tanh
        self.dtype = torch.float32        # or bfloat16: see `use_bfloat16`

    def forward(self, x):
        x = leaky_pixel_norm(self.conv0(x.to(self.dtype)))          # pixel_norm(leaky(...))
        return leaky_pixel_norm(self.conv1(x))                      # (N, C_b, h_b, w_b)

    def draw(self, x):
        """tanh first, then the mix (code); Progressive GAN has no tanh here."""
        picture = self.to_picture(x.float())
        return torch.tanh(picture) if self.tanh else picture

class Generator(Network):
    """Latent and pitch -> picture in spectrum units, at the stage's own size (paper 2.2)."""

    def __init__(self, arch):
        super().__init__(arch, GeneratorBlock)

    def forward(self, z, pitch, progress):
        """z (N, latent), pitch (N,) labels 0..P-1, progress (see `grown`) -> (N, 2, T', F')."""
        blocks, alpha = grown(progress)
        one_hot = torch.eye(self.arch.pitches, device=z.device)[pitch]          # (N, 61)
        x = pixel_norm(torch.cat([z, one_hot], dim=1))              # (N, 317)  onto a sphere
        for b in range(1, blocks + 1):
            before, x = x, self.blocks[b](x)                        # (N, C_b, h_b, w_b)
        picture = self.blocks[blocks].draw(x)                       # (N, 2, h_b, w_b)
        if alpha is not None:
            old = self.blocks[blocks - 1].draw(before)
            picture = torch.lerp(upsample(old, self.arch.growth), picture, alpha)
        return unscale_picture(picture, self.arch)

class DiscriminatorBlock(nn.Module):
    """Block b of D (paper, Table 3): a layer that reads pictures into features, and features ->
    features of half their size; the last block to be passed, b = 1, ends in a vector."""

    def __init__(self, arch, b):
        super().__init__()
        self.first, self.growth = b == 1, arch.growth
        own, narrow = arch.channels(b), arch.channels(b - 1)
        self.from_picture = EqualConv2d(2, own, (1, 1))
        self.conv0 = EqualConv2d(own + self.first, own, arch.kernel)
        # code: the width changes in the second convolution, before pooling (paper's table: after).
        # In block 1 that is a VALID convolution over all of the start size: one dense layer.
        self.conv1 = (EqualLinear(own * math.prod(arch.size(1)), narrow, RELU_GAIN) if self.first
                      else EqualConv2d(own, narrow, arch.kernel))
        self.dtype = torch.float32        # or bfloat16: see `use_bfloat16`

    def read(self, picture):
        return leaky(self.from_picture(picture.to(self.dtype)))     # (N, C_b, h_b, w_b)

    def forward(self, x):
        """-> what it got, what follows each of its convolutions, what it gives."""
        x = x.to(self.dtype)
        y0 = leaky(self.conv0(minibatch_stddev(x) if self.first else x))
        y1 = leaky(self.conv1(y0.flatten(1) if self.first else y0))
        return x, y0, y1, y1 if self.first else downsample(y1, self.growth)     # (N, C_(b-1), ...)

class Discriminator(Network):
    """Picture in spectrum units -> a Wasserstein score and logits over pitches (paper 2.2)."""

    def __init__(self, arch):
        super().__init__(arch, DiscriminatorBlock)
        self.score = EqualLinear(arch.channels(0), 1)
        self.pitch = EqualLinear(arch.channels(0), arch.pitches)

    def forward(self, picture, progress):
        """(N, 2, T, F), of the stage's size or larger -> scores (N,), pitch logits (N, P)."""
        *_, x = self.activations(scale_picture(picture, self.arch), progress)
        return self.score(x)[:, 0], self.pitch(x)

    def activations(self, scaled, progress):
        """What the layers that read pictures give, by block; what the blocks give; and the end."""
        blocks, alpha = grown(progress)
        # Clipped at the size it came in, then pooled once to the stage's size.
        scaled = downsample_to(scaled, self.arch.size(blocks)).contiguous(memory_format=LAYOUT)
        x = self.blocks[blocks].read(scaled)
        read, own = {blocks: x}, {}
        for b in range(blocks, 0, -1):
            *_, x = own[b] = self.blocks[b](x)
            if b == blocks and alpha is not None:
                read[b - 1] = self.blocks[b - 1].read(downsample(scaled, self.arch.growth))
                x = torch.lerp(read[b - 1], x.to(read[b - 1].dtype), alpha)
        return read, own, x

def blend(picture, progress, arch):
    """Real notes, of the stage's size or larger, as G could draw them now: of that size, faded like
    G's output (Karras et al. 2018, Fig. 2).  Else D would tell them by their sharpness alone."""
    blocks, alpha = grown(progress)
    picture = downsample_to(picture, arch.size(blocks))
    if alpha is None:
        return picture
    return torch.lerp(upsample(downsample(picture, arch.growth), arch.growth), picture, alpha)

# ---- Losses: Wasserstein, gradient penalty, drift, auxiliary classifier ---------------------
# Each comes with its terms by name, before their weights: `weights` has penalty (paper, appendix:
# 10), drift (0.001), pitch_weight (10) and penalty_units, as train.Config does.
def generator_loss(G, D, z, pitch, progress, weights):
    """G's loss (paper 2.2): (loss, named terms).  code: its pitch term is on fakes only."""
    score, logits = D(G(z, pitch, progress), progress)
    terms = {"G_score": -score.mean(), "G_pitch": F.cross_entropy(logits, pitch)}
    return terms["G_score"] + weights.pitch_weight * terms["G_pitch"], terms

def discriminator_losses(D, x_real, pitch_real, x_fake, mix, progress, weights):
    """D's loss (paper 2.2) as three parts, yielded one by one: (loss, named terms) each.

    Real, fake and mixed batches go through D separately (minibatch statistics).  The caller sends
    each part backward before the next is computed, so only one graph is ever in memory.
    code: the pitch term is on real notes for D, never on fakes."""
    score, logits = D(x_real, progress)
    terms = {"D_real": -score.mean(), "D_drift": score.square().mean(),
             "D_pitch": F.cross_entropy(logits, pitch_real)}
    yield (terms["D_real"] + weights.drift * terms["D_drift"]
           + weights.pitch_weight * terms["D_pitch"]), terms
    fake = D(x_fake, progress)[0].mean()
    yield fake, {"D_fake": fake}
    slope = penalty_slopes(D, x_real, x_fake, mix, progress, weights.penalty_units)
    penalty = (slope - 1).square().mean()
    yield weights.penalty * penalty, {"D_penalty": penalty}

def penalty_slopes(D, x_real, x_fake, mix, progress, units="raw"):
    """Slope of D at random mixtures of real and fake (Gulrajani et al. 2017); its squared distance
    to 1 is the gradient penalty, which keeps D near 1-Lipschitz.

    Pictures of the stage's size, mix (N, 1, 1, 1) uniform in [0, 1] -> slopes (N,).
    raw (code): the slope per unit of an unscaled *full-size* picture, before D's scaling and clip.
    A pixel here stands for s x s there, which share its gradient: the full-size norm is the native
    norm / s.  (Of waves a sample stands for s samples: / sqrt(s).)
    scaled: per unit of the scaled picture at its own size.  Scores then stay small beside the pitch
    loss from the first stage on, which short runs need; the workshop preset uses it."""
    scaled = scale_picture(x_real + mix * (x_fake - x_real), D.arch)
    slope, shared = slope_of(D, scaled, progress), 1
    if units == "raw":
        shared = D.arch.frames * D.arch.bins / math.prod(scaled.shape[2:])
        if D.arch.spectra:                # and through the scaling: nothing where it was clipped
            slope = slope * scaling(D.arch, slope.device)[0] * (scaled.abs() < 1)
    return slope.square().sum(dim=(1, 2, 3)).sqrt() / math.sqrt(shared)

# ---- Optimisation ---------------------------------------------------------------------------
class Adam:
    """Adam (Kingma and Ba 2015), beta1 = 0: without a first moment, in TensorFlow's form:

        v <- beta2 v + (1 - beta2) g^2        p <- p - lr sqrt(1 - beta2^t) g / (sqrt(v) + 1e-8)

    (torch's adds 1e-8 behind the correction of v.)  Made anew at every stage boundary, as released.
    A weight that took no part (a picture layer faded out) has gradient zero, as in TensorFlow."""

    def __init__(self, parameters, beta2=0.99):
        self.parameters, self.beta2 = list(parameters), beta2
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.t = torch.zeros((), dtype=torch.float64, device=self.v[0].device)
        self.ever = torch.full((), math.inf, device=self.v[0].device)

    def gradients(self):
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return [p.grad for p in self.parameters]

    @torch.no_grad()
    def step(self, lr):
        """One update at rate lr, a number or a tensor (); no gradients are left."""
        self.t += 1
        rate, g = (lr * (1 - self.beta2 ** self.t).sqrt()).float(), self.gradients()
        # torch's kernel: after infinitely many steps it corrects nothing; the first moment is g.
        torch._fused_adam_(self.parameters, g, g, self.v, [], [self.ever] * len(g), lr=rate,
                           beta1=0.0, beta2=self.beta2, weight_decay=0.0, eps=1e-8, amsgrad=False,
                           maximize=False)
        for p in self.parameters:
            p.grad = None

    def state_dict(self):
        return {"v": self.v, "t": self.t}

    def load_state_dict(self, state):
        for own, saved in zip([*self.v, self.t], [*state["v"], state["t"]], strict=True):
            own.copy_(saved)

@torch.no_grad()
def ema_update(averages, parameters, decay):
    """Moving average of G's weights (Karras et al. 2018, A.1): we listen to it, not the last step.
    code: a fixed decay per *step*, whatever the batch size, with no warm-up."""
    torch._foreach_lerp_(averages, parameters, 1 - decay)

# =============================================================================================
# Here the path through the paper ends.  Behind this line: D's slope, speed, checkpoints (ours and
# Magenta's), the table of layers, and the baselines.

# ---- Shapes that cannot be, and the waveform GAN's (paper's Table 2) ------------------------
class ArchitectureError(ValueError):
    """Networks that cannot be built; the message says which could."""

# Notes are pictures one bin wide, 65,536 x 1, that grow along time only.  No settings were
# published: these are ours.  Growth by 4: from 16 samples over the same seven blocks.  Kernel of 9:
# as many weights as 3 x 3; fewer taps would, after growth by 4, often see copies of one sample.
# No scaling: waves lie in tanh's range already.
WAVEFORM = {"growth": (4, 1), "kernel": (9, 1), "spectra": False}

# ---- The slope of D: D run backwards --------------------------------------------------------
# torch.autograd.grad(score.sum(), scaled, create_graph=True) would give the same.  Written out it
# is one more pass forward, of signs and weights: the penalty is differentiated like any other loss,
# with no derivative of a derivative.  Each function turns g, the gradient of the scores by what a
# layer gives, into that by what the layer gets.

def slope_of(D, scaled, progress):
    """Gradient (N, 2, t, f) of D's scores by scaled pictures of the stage's size."""
    blocks, alpha = grown(progress)
    read, own, _ = D.activations(scaled, progress)
    g, old = linear_backwards(D.score, scaled.new_ones(len(scaled), 1)), 0      # (N, C_0)
    for b in range(1, blocks + 1):
        if b == blocks and alpha is not None:
            old = read_backwards(D.blocks[b - 1], (1 - alpha) * g, read[b - 1])
            old, g = downsample_backwards(old, D.arch.growth), alpha * g
        g = block_backwards(D.blocks[b], g, *own[b])                # (N, C_b, h_b, w_b)
    return read_backwards(D.blocks[blocks], g, read[blocks]) + old

def block_backwards(block, g, x, y0, y1, _):
    """x, y0, y1, _: what a block of D's `forward` gave."""
    g = g.to(block.dtype)
    if block.first:
        g = linear_backwards(block.conv1, gate(g, y1)).view_as(y0).contiguous(memory_format=LAYOUT)
        return minibatch_stddev_backwards(conv_backwards(block.conv0, gate(g, y0)), x)
    g = conv_backwards(block.conv1, gate(downsample_backwards(g, block.growth), y1))
    return conv_backwards(block.conv0, gate(g, y0))

def read_backwards(block, g, y):
    return conv_backwards(block.from_picture, gate(g.to(block.dtype), y)).float()

def gate(g, y):
    """Of leaky, whose output y has its input's sign."""
    return torch.ops.aten.leaky_relu_backward(g, y.detach(), LEAK, True)

def conv_backwards(conv, g):
    return _Conv.apply(g, turned(conv.scaled(g)), None)

def turned(weight):
    """The kernel (out, in, ...) turned round, (in, out, ...): gradients are convolved with it."""
    return weight.flip(2, 3).transpose(0, 1)

def linear_backwards(linear, g):
    return F.linear(g * linear.scale, linear.weight.t())

def downsample_backwards(g, factor):
    return upsample(g / math.prod(factor), factor)

def minibatch_stddev_backwards(g, x):
    """(N, C + 1, h, w) -> (N, C, h, w): all deviations had a share in the last channel."""
    deviation = x - x.mean(dim=0).detach()
    std = (deviation.square().mean(dim=0) + 1e-6).sqrt()
    return g[:, :-1] + g[:, -1].sum() * deviation / std / deviation.numel()

# ---- Fast derivatives: none of this changes a result, only time and memory ------------------
def use_bfloat16(net, pixels=32 * 256):
    """Blocks of G or D with so many pixels or more compute in bfloat16; all else stays float32."""
    for b in range(1, net.arch.resolutions + 1):
        if math.prod(net.arch.size(b)) >= pixels:
            net.blocks[b].dtype = torch.bfloat16

class _Conv(torch.autograd.Function):
    """Same-size convolution of stride 1; or transposed, with stride `up`, by which the picture
    grows: both padded so that it is of exactly that size.  Differentiable once."""

    @staticmethod
    def forward(ctx, x, weight, bias, up=None):
        ctx.save_for_backward(x, weight)
        ctx.up, stride = up, up or (1, 1)
        ctx.how = stride, tuple((k - s) // 2 for k, s in zip(weight.shape[2:], stride))
        return (F.conv_transpose2d if up else F.conv2d)(x, weight, bias, *ctx.how)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x, weight), by_x, by_weight, by_bias = ctx.saved_tensors, None, None, None
        if ctx.needs_input_grad[0]:
            by_x = F.conv2d(g, weight if ctx.up else turned(weight), None, *ctx.how)
        if ctx.needs_input_grad[1]:
            by_weight = _weight_gradient(g, x, weight, *ctx.how, up=bool(ctx.up))
        if ctx.needs_input_grad[2]:
            by_bias = g.sum(dim=(0, 2, 3))
        return by_x, by_weight, by_bias, None

class UpConv2d(EqualConv2d):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution, in one.

    Upsampling repeats pixels: the nine taps of an output pixel see four different values, so their
    weights can be added first.  A transposed convolution of stride 2 with the 3x3 kernel summed
    over 2x2 neighbourhoods is equal in real arithmetic and needs 4 instead of 9 multiplications a
    pixel.  (Waves: stride 4 with 9 taps summed over 4s, 3 instead of 9.)"""

    def __init__(self, inputs, outputs, kernel=(3, 3), growth=(2, 2)):
        super().__init__(inputs, outputs, kernel)
        self.growth = growth

    def forward(self, x):
        (t, f), w = self.growth, self.scaled(x).flip(2, 3)
        w = F.pad(w, (f - 1, f - 1, t - 1, t - 1))                  # 5x5 with borders
        w = F.avg_pool2d(w, (t, f), stride=1, divisor_override=1)   # (out, in, 4, 4)
        return _Conv.apply(x, w.transpose(0, 1), self.bias.to(x.dtype), self.growth)

PLACES = 16384                            # so many, of some channels, fit into a cache
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"

def _weight_gradient(g, x, weight, stride, padding, up=False):
    """Gradient by the kernel (C, K, ...) of a convolution from x (N, K, ...) to what has the
    gradient g (N, C, ...); or of one transposed, from C channels to K.  On a CPU a matrix product,
    places x channels, per tap is up to 4 times as fast as torch, bar few channels on AVX-512."""
    if x.device.type != "cpu" or AVX512 and max(weight.shape[:2]) <= 64:
        return torch.ops.aten.convolution_backward(
            g, x, weight, None, stride, padding, (1, 1), up, (0, 0), 1, (False, True, False))[1]
    (t, f), (C, K, height, width) = stride, weight.shape
    taps, (wide, narrow) = weight.new_zeros(height, width, C, K), (g, x) if up else (x, g)
    few = max(1, PLACES // math.prod(narrow.shape[2:]))
    for narrow, wide in zip(narrow.split(few), wide.split(few)):
        wide = F.pad(wide, (padding[1], padding[1], padding[0], padding[0]))
        for i, j in itertools.product(range(t), range(f)):
            _add_taps(taps[i::t, j::f], narrow, wide[:, :, i::t, j::f])
    return taps.permute(2, 3, 0, 1)

def _add_taps(taps, x, y):
    """Add to taps (h, w, C, K) the sums of products of x (N, C, T, F) with y (N, K, T + h - 1,
    F + w - 1) moved by so many places.  Padded to the same size, each is one long matrix of places
    x channels, and a move along rows and lines is one along its places."""
    (h, w), line = taps.shape[:2], y.shape[3]
    x = F.pad(x, (0, w - 1, 0, h - 1)).permute(0, 2, 3, 1).flatten(0, 2)
    y = y.permute(0, 2, 3, 1).flatten(0, 2)
    for start in range(0, len(x), PLACES):
        few = x[start:start + PLACES].t()
        for i, j in itertools.product(range(h), range(w)):
            moved = y[start + i * line + j:][:few.shape[1]]
            taps[i, j].addmm_(few[:, :len(moved)], moved)

class _LeakyPixelNorm(torch.autograd.Function):
    """pixel_norm(leaky(x)) in place, keeping only the result for the way back; differentiable once.

    With y = a / r, a = leaky(x), r = sqrt(mean a^2 + eps): da = (dy - y mean(y dy)) / r."""

    @staticmethod
    def forward(ctx, x):
        y = leaky(x)
        r = (y.square().mean(dim=1, keepdim=True, dtype=torch.float32) + 1e-8).sqrt_()
        ctx.mark_dirty(x)
        y.div_(r)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        y, r = ctx.saved_tensors
        along = (y * g).mean(dim=1, keepdim=True, dtype=torch.float32).to(g.dtype)
        return gate(torch.addcmul(g, y, along, value=-1).div_(r), y)

leaky_pixel_norm = _LeakyPixelNorm.apply  # what follows every convolution of G but the last

# ---- Checkpoints ----------------------------------------------------------------------------
FORMAT, VERSION = "gansynth", 2           # 1 was before blocks had the paper's numbers
SAMPLE_PARTS = {"model": str, "config": dict, "architecture": dict, "spectrum": dict,
                "pitch_low": int, "progress": float, "counts": torch.Tensor, "images": int,
                "G_ema": dict}
EARLIER = "use an earlier one of the same run"

class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says which and what to do."""

def save_checkpoint(path, contents):
    """Write a dictionary of plain tensors and settings to one file, whole or not at all: it is made
    beside `path`, flushed (fsync) and renamed, so no full disk or power cut harms the last one."""
    temporary = f"{path}.part"
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **contents}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:            # torch's own writer raises the latter
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise CheckpointError(f"{path}: could not be saved ({reason}); earlier checkpoints are "
                              "untouched: free some space, and resume from the last") from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)

def check_whole(path):
    """CheckpointError unless a file is as it was written.  torch's files are zip archives with a
    CRC-32 of every tensor, which torch itself does not look at when it reads them."""
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}: give one that train.py wrote") from None
    except Exception:                     # zipfile raises many kinds for a damaged file
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint of train.py: give another")

def load_checkpoint(path, device="cpu", parts=()):
    """Read what `save_checkpoint` wrote, and check that it holds `parts`: SAMPLE_PARTS to be
    sampled from.  Only tensors and plain values are unpickled; CheckpointError for all else."""
    check_whole(path)
    try:
        with warnings.catch_warnings():                 # of pickles that are not ours
            warnings.simplefilter("ignore")
            contents = torch.load(path, map_location=device, weights_only=True)
    except Exception:                     # torch raises many kinds for what is not its own
        contents = None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not one of our checkpoints: give one that train.py wrote")
    if contents.get("version") != VERSION:
        raise CheckpointError(f"{path}: written by version {contents.get('version')} of these "
                              f"scripts, and this is version {VERSION}: use the one that wrote it")
    wrong = [name for name in parts if not isinstance(contents.get(name), parts[name])]
    if wrong:
        raise CheckpointError(f"{path}: lacks {', '.join(wrong)}: if saved to be heard only, it "
                              f"cannot be trained on; else it is damaged: {EARLIER}")
    return contents

def checkpoints(run):
    """The checkpoints in a run's folder, from the fewest examples to the most."""
    found = {path.stem[11:]: path for path in Path(run).glob("checkpoint-*.pt")}
    return [found[images] for images in sorted(filter(str.isdecimal, found), key=int)]

def find_checkpoint(path):
    """A checkpoint file, the newest whole one in a run's folder (damaged ones are passed over, and
    named on stderr), or experiment.json in Magenta's -> its path."""
    path = Path(path)
    path = path / EXPERIMENT if (path / EXPERIMENT).is_file() else path
    if path.is_file():
        return path
    for newest in reversed(checkpoints(path)):
        try:
            check_whole(newest)
            return newest
        except CheckpointError as error:
            print(f"passed over: {error}", file=sys.stderr)
    raise CheckpointError(f"{path}: no whole checkpoint there: expected a run's folder with "
                          f"checkpoint-*.pt files, one such file, or Magenta's with {EXPERIMENT}")

def load_generator(path, device="cpu", read_bundle=None):
    """The averaged generator of a checkpoint, ready to sample, and the checkpoint's contents, of
    which "progress" is where training stood: there an unfinished run is heard.  Magenta's
    experiment.json is one, too, for which `read_bundle` is nsynth's."""
    contents = (load_magenta(path, read_bundle) if Path(path).name == EXPERIMENT else
                load_checkpoint(path, device, SAMPLE_PARTS))
    try:
        build, shape = {"gansynth": (Generator, Architecture),
                        "wavegan": (WaveGANGenerator, WaveGANArchitecture),
                        "wavenet": (WaveNet, WaveNetArchitecture)}[contents["model"]]
        G = build(shape(**contents["architecture"])).to(device)
        G.load_state_dict(contents["G_ema"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise CheckpointError(f"{path}: weights do not fit the settings: {EARLIER}") from None
    return G.eval().requires_grad_(False), contents

RISE = 0.002                              # seconds

def synthesise(G, spectrum, z, pitch, progress, generator=None, show=lambda samples: None):
    """Latents and pitch labels -> notes: what one does with a trained G.

    z (N, latent), pitch (N,) labels 0..P-1; `spectrum` decodes pictures (spectral.Spectrum), at an
    early progress stretched to full size first.  A WaveNet, which has no latents, draws its samples
    from `generator`, and shows how many there are.  -> (N, L) float32 on the CPU; waves may exceed
    [-1, 1], and can be differentiated by z.
    ours: notes rise over RISE seconds, as G leaves energy in the zeros before a note, which cut off
    in full swing would be a tick.  code: they do not, nor with the release's inverse."""
    device = next(G.parameters()).device
    z, pitch = z.to(device), pitch.to(device)
    if isinstance(G, Generator):
        small = G(z, pitch, progress)
        full = G.arch.factor(G.arch.resolutions - grown(progress)[0])
        wave = spectrum.decode(upsample(small, full))                           # (N, L)
        if spectrum.mel_inverse != "transpose":
            t = torch.arange(wave.shape[1], device=device) / (RISE * spectrum.sample_rate)
            wave = wave * (t.clamp(max=1) * math.pi / 2).sin().square()
        return wave.cpu()
    wave = (G(z, pitch) if isinstance(G, WaveGANGenerator) else
            wavenet_generate(G, pitch, generator, show))
    return spectrum.decode(wave[:, None, :, None]).cpu()

# ---- Magenta's checkpoints: the release's folder as it was unpacked -------------------------
# experiment.json holds settings; stage_00012/ the variables, as TensorFlow keeps them.

EXPERIMENT = "experiment.json"
SETTINGS = {                              # what they may be; the first is the release's default
    "data_type": ("mel", "linear", "phase"), "to_rgb_activation": ("tanh", "linear"),
    "scale_mode": ("ALL",), "scale_base": (2,), "train_progressive": (True, False),
    "data_normalizer": ("specgrams_prespecified_normalizer",)}

def load_magenta(path, read_bundle):
    """experiment.json -> contents as of a checkpoint of ours, from the newest stage beside it.  It
    tells no pitches: labels count from MIDI 24, as if each had been trained once.  CheckpointError
    for what is damaged, missing, half-grown or of a kind that we do not have."""
    try:
        stage = max(path.parent.glob("stage_[0-9]*"), default=path.parent / "stage_*")
        listed = (stage / "checkpoint").read_text("utf-8")
        name = re.search(r'^model_checkpoint_path: "(?:.*[/\\])?(.+)"', listed)
        if name is None:                  # it may lie in a folder of the machine that wrote it
            raise ValueError(f"{stage.name}/checkpoint names none")
        tensor = read_bundle(stage / f"{name[1]}.index")
        pitches = len(tensor("Discriminator/discriminator_cond/classification_logits/bias"))
        told = json.loads(path.read_text("utf-8"))
        arch, spectrum = from_experiment(told, pitches)
        if told["train_progressive"] and int(stage.name[6:]) != 2 * arch.resolutions - 2:
            raise ValueError(f"{stage.name} is the newest, and not that of full-grown networks")
        config = {"model": "gansynth", "hires": 2 * arch.bins > 0.09 * spectrum["sample_rate"],
                  "pitch_low": 24, "pitch_high": 23 + pitches, "data": "nsynth", "seed": 0,
                  "sources": "acoustic", "split": "random", "skip_damaged": False, **spectrum}
        with torch.device("meta"):        # names and shapes, no numbers
            G, D = Generator(arch), Discriminator(arch)
        return {"model": "gansynth", "config": config, "architecture": asdict(arch),
                "spectrum": spectrum, "pitch_low": 24, "progress": arch.resolutions - 1.0,
                "counts": torch.ones(pitches), "images": int(tensor("global_step")),
                "G": released_weights(G, tensor), "D": released_weights(D, tensor),
                "G_ema": released_weights(G, tensor, "/ExponentialMovingAverage")}
    except Exception as error:            # what is damaged ends in many kinds
        reason = (f"it lacks {error}" if isinstance(error, KeyError) else error.strerror + ": "
                  + str(error.filename) if getattr(error, "filename", None) else error)
        raise CheckpointError(f"{path.parent}: not as Magenta's release leaves it ({reason}): "
                              "unpack its archive again") from None

def from_experiment(told, pitches):
    """experiment.json's settings -> Architecture, and settings of a spectral.Spectrum."""
    for name, known in SETTINGS.items():
        if told.setdefault(name, known[0]) not in known:
            raise ValueError(f"{name} is {told[name]!r}: expected {' or '.join(map(repr, known))}")
    blocks = told["num_resolutions"]
    arch = Architecture(
        told["start_height"] * 2 ** (blocks - 1), told["start_width"] * 2 ** (blocks - 1), blocks,
        told["latent_vector_size"], pitches, told["fmap_base"], told["fmap_max"],
        kernel=(told.get("kernel_size", 3),) * 2, tanh=told["to_rgb_activation"] == "tanh",
        scale=(told.get("mag_normalizer_a", Architecture.scale[0]),
               told.get("p_normalizer_a", Architecture.scale[1])),
        shift=(told.get("mag_normalizer_b", Architecture.shift[0]),
               told.get("p_normalizer_b", Architecture.shift[1])))
    rep = {"mel": "if-mel", "linear": "if", "phase": "phase"}[told["data_type"]]
    return arch, {"rep": rep, "frames": arch.frames, "bins": arch.bins, "mel_inverse": "transpose",
                  "length": told.get("audio_length", 64000),
                  "sample_rate": told.get("sample_rate", 16000)}

def released_weights(net, tensor, average=""):
    """A network's state_dict, from the release's variables by name."""
    state = {}
    for name, parameter in net.named_parameters():
        layer = net.get_submodule(name.rpartition(".")[0])
        theirs = release_name(net, name) + average
        array = torch.from_numpy(tensor(theirs))        # (h, w, in, out), (in, out) or (out,)
        if array.dim() < 4:
            array = array.t()
        elif isinstance(layer, StartConv):              # a padded convolution there, whose one
            array = array.flip(0, 1).permute(3, 0, 1, 2)            # active pixel meets the taps
        else:                                                       # in reverse
            array = array.permute(3, 2, 0, 1)
            array = array.flatten(1) if isinstance(layer, EqualLinear) else array
        if array.shape != parameter.shape:
            raise ValueError(f"{theirs} has another shape than {EXPERIMENT} tells")
        state[name] = array
    return state

def release_name(net, name):
    """The release's name for a weight of ours, such as blocks.2.conv0.weight."""
    *block, layer, kind = name.split(".")
    kind = "bias" if kind == "bias" else "conv2d/kernel" if block else "dense/kernel"
    if layer == "pitch":
        return f"Discriminator/discriminator_cond/classification_logits/{kind}"
    layer = layer.replace("picture", "rgb").replace("score", "logits")
    whole = "generator" if isinstance(net, Generator) else "discriminator"
    return (f"{whole.title()}/progressive_gan_{whole}/progressive_gan_block_"
            f"{block[1] if block else 1}/{layer}/{kind}")

# ---- Table 3: the networks block by block ---------------------------------------------------
def layer_table(arch):
    """Table 3's rows (net, layer, output F x T x C, kernel F x T, nonlinearity, parameters)."""
    rows, then = [], {"to_picture": "tanh", "score": "", "pitch": "softmax in the loss"}

    def row(net, name, x, *more):         # x: (N, C, T, F) or (N, C)
        name = name.replace("blocks.", "block ").replace(".", " ").replace("_", " ")
        rows.append((net, name, (*x.shape, 1, 1)[3:0:-1], *more))

    def note(net, name, layer, given, made):
        if name == "blocks.1.conv0":
            what, norm = ("z and one-hot pitch", "minibatch stddev"), ("pixel norm", "")
            row(net, what[net == "D"], *given, "", norm[net == "D"], 0)
        conv = isinstance(layer, EqualConv2d)
        kernel = "x".join(map(str, layer.weight.shape[:1:-1])) if conv else "dense"
        after = then.get(name.split(".")[-1], "leaky ReLU" + ", pixel norm" * (net == "G"))
        row(net, name, made, kernel, after, sum(p.numel() for p in layer.parameters()))

    last = arch.resolutions - 1.0
    with torch.device("meta"), torch.no_grad():         # shapes, no numbers
        G, D = Generator(arch), Discriminator(arch)
        for net, layers in ("G", G.named_modules()), ("D", D.named_modules()):
            for name, layer in layers:
                if isinstance(layer, Equalised):
                    layer.register_forward_hook(functools.partial(note, net, name))
        D(G(torch.zeros(2, arch.latent), torch.zeros(2, dtype=torch.int64), last), last)
    return rows

# ---- Baseline: WaveGAN (Donahue et al. 2018, tables 3 and 4), with a pitch ------------------
# As in WaveGAN's own code, but z is normal, and the pitch beside it and named by D, as in GANSynth.

@dataclass(frozen=True)
class WaveGANArchitecture:
    """Everything that determines WaveGAN's shapes; the defaults make the paper's notes, padded."""
    length: int = 65536                   # samples made: 16 x 4^k for k layers
    latent: int = 100                     # dimensions of z
    pitches: int = 61                     # P: MIDI 24..84
    channels: int = 64                    # d: channels beside the wave, doubled in every layer

    @property
    def widths(self):
        """Channels from the wave's end to the start's: 1, d, 2d, 4d, ..."""
        return [1] + [self.channels * 2 ** i for i in range(round(math.log2(self.length / 16) / 2))]

def glorot(net):
    for name, p in net.named_parameters():
        (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_uniform_)(p)

class WaveGANGenerator(nn.Module):
    """Latent and pitch -> wave: a dense layer to 16 samples, then each layer makes four of one."""

    def __init__(self, arch):
        super().__init__()
        self.arch, widths = arch, arch.widths[::-1]
        self.dense = nn.Linear(arch.latent + arch.pitches, 16 * widths[0])
        self.up = nn.ModuleList(nn.ConvTranspose1d(a, b, 25, stride=4, padding=10)
                                for a, b in zip(widths, widths[1:]))
        glorot(self)

    def forward(self, z, pitch):
        """z (N, latent), pitch (N,) labels 0..P-1 -> (N, length) in [-1, 1]."""
        one_hot = F.one_hot(pitch, self.arch.pitches).to(z.dtype)
        x = self.dense(torch.cat([z, one_hot], dim=1)).unflatten(1, (-1, 16))   # (N, C, 16)
        for up in self.up:                # D's convolution transposed: cuts off what that pads
            x = up(F.relu(x))[..., :-1]                             # (N, C/2, 4 L)
        return torch.tanh(x[:, 0])

class WaveGANDiscriminator(nn.Module):
    """Wave -> a Wasserstein score and logits over pitches."""

    def __init__(self, arch):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv1d(a, b, 25, stride=4)
                                  for a, b in zip(arch.widths, arch.widths[1:]))
        self.score = nn.Linear(16 * arch.widths[-1], 1)
        self.pitch = nn.Linear(16 * arch.widths[-1], arch.pitches)
        glorot(self)

    def forward(self, wave, shifts=()):
        """wave (N, length), shifts by -2..2 after the first layers -> scores (N,), logits (N, P).
        Phase shuffle moves features later, reflected at the ends: transposed convolutions leave
        artefacts of one phase, by which D would know fakes too easily.  code: at most four."""
        x = wave[:, None]                                           # (N, 1, L)
        for i, down in enumerate(self.down):
            x = F.leaky_relu(down(F.pad(x, (10, 11))), LEAK)        # TensorFlow's SAME padding
            if i < min(len(shifts), len(self.down) - 1):            # (N, 2 C, L/4)
                x = F.pad(x, (2, 2), mode="reflect").narrow(2, 2 - int(shifts[i]), x.shape[2])
        return self.score(x.flatten(1))[:, 0], self.pitch(x.flatten(1))

# ---- Baseline: WaveNet (van den Oord et al. 2016; paper appendix), with a pitch -------------
CONDITIONING = (2, 4, 8, 16, 32, 1, 1, 1)               # dilations: 5 layers "to 2^5", 3 plain
MIXTURES = 10                                           # logistics of the 16-bit output

@dataclass(frozen=True)
class WaveNetArchitecture:
    """Everything that determines WaveNet's shapes; the defaults are the paper's, 8-bit."""
    length: int = 64000                   # samples of a note
    hold: int = 48000                     # samples for which the pitch is on: 3 s of 4
    pitches: int = 61                     # P: MIDI 24..84
    stacks: int = 3
    layers: int = 10                      # per stack, dilations 2^0 .. 2^(layers - 1)
    channels: int = 512                   # of every path; paper: of all but the skips
    output: str = "mulaw8"                # or "mol16": a mixture of logistics on 16 bits
    latent = 0                            # no setting: a WaveNet has no z

    @property
    def dilations(self):
        return [2 ** i for i in range(self.layers)] * self.stacks

    @property
    def receptive_field(self):
        """How many samples before the one that is foretold have a say in it: 6,141."""
        return 3 + 2 * sum(self.dilations)

class WaveNet(nn.Module):
    """The past of a wave and its pitch -> the distribution of its next sample.

    ours, where the papers leave it open: a sample comes in as one number; no 1x1 has a bias that
    the next would repeat; the head is ReLU, 1x1, ReLU, 1x1; the conditioning's layers have ReLUs,
    add to what they are given (but for the first) and look ahead in time, too."""

    def __init__(self, arch):
        super().__init__()
        self.arch, self.mulaw8 = arch, arch.output == "mulaw8"
        C, outputs = arch.channels, 256 if self.mulaw8 else 3 * MIXTURES
        self.conditioning = nn.ModuleList(
            nn.Conv1d(C if i else arch.pitches, C, 3, dilation=d, padding=d)
            for i, d in enumerate(CONDITIONING))
        self.input = nn.Conv1d(1, C, 3, padding=2)                  # causal, once its end is cut
        self.dilated = nn.ModuleList(
            nn.Conv1d(C, 2 * C, 3, dilation=d, padding=2 * d) for d in arch.dilations)
        self.to_gates, self.residual, self.skip = (
            nn.ModuleList(nn.Conv1d(C, wide, 1, bias=False) for _ in arch.dilations[first:])
            for wide, first in ((2 * C, 0), (C, 1), (C, 0)))
        self.skip_bias = nn.Parameter(torch.zeros(C))
        self.head = nn.ModuleList([nn.Conv1d(C, C, 1), nn.Conv1d(C, outputs, 1)])
        # He's start (one of the P inputs is not zero), small beside what each layer adds to: with
        # nothing to add to, eight layers in a row never learnt to heed the pitch in a short run.
        for i, conv in enumerate(self.conditioning):
            nn.init.normal_(conv.weight, std=math.sqrt(2 / 3 / (8 * C if i else 1)))
            nn.init.zeros_(conv.bias)

    def compress(self, x):
        """Waves in [-1, 1] -> what the network takes in: mu-law codes over [-1, 1], or 16 bits."""
        return mu_law_encode(x).to(x.dtype) / 127.5 - 1 if self.mulaw8 else to_16_bits(x)

    def condition(self, pitch, offset, L):
        """pitch (N,) -> what the gates of each layer are given at the note's L times from `offset`
        on, a list of (N, 2 C, L); or of (N, 2 C, 1), equal at all that see no edge of the pitch."""
        reach = sum(CONDITIONING)                                   # samples, to either side
        t = torch.arange(offset - reach, offset + L + reach)
        on = (0 <= t) & (t < self.arch.hold)
        edges = on.diff().nonzero().flatten().tolist()              # columns far off are equal
        sides = (max(edges[0] - 2 * reach, 0), max(L - 2 - edges[-1], 0)) if edges else (L - 1, 0)
        on = on[sides[0]:len(on) - sides[1]].to(self.skip_bias)
        x = F.one_hot(pitch, self.arch.pitches)[..., None] * on     # (N, P, times)
        for i, conv in enumerate(self.conditioning):
            x = F.relu(conv(x)) + (x if i else 0)
        gates = [to_gates(x[..., reach:-reach]) for to_gates in self.to_gates]
        return [F.pad(g, sides, mode="replicate") for g in gates] if edges else gates

    def forward(self, x, pitch, offset=0):
        """x (N, L) in [-1, 1], a crop that begins at `offset` in the note (what was before counts
        as zero), pitch (N,) -> (N, outputs, L), of which those at t depend on x before t only."""
        L = x.shape[1]
        u = F.pad(self.compress(x)[:, None, :-1], (1, 0))           # (N, 1, L)  one sample late
        h, skip = self.input(u)[..., :L], self.skip_bias[:, None]   # (N, C, L)
        for i, (dilated, gates) in enumerate(zip(self.dilated, self.condition(pitch, offset, L))):
            a, b = (dilated(h)[..., :L] + gates).chunk(2, dim=1)
            y = torch.tanh(a) * torch.sigmoid(b)                    # (N, C, L)
            skip = skip + self.skip[i](y)
            if i < len(self.residual):
                h = h + self.residual[i](y)
        return self.head[1](F.relu(self.head[0](F.relu(skip))))

    def draw(self, parameters, random=None):
        """Distribution parameters (N, outputs) -> samples (N,), as `compress` gives them.
        random (2, N): two uniform numbers for each, or None for fresh ones."""
        u, v = (torch.rand(2, len(parameters)) if random is None else random).to(parameters)
        logits, *logistics = parameters.chunk(1 if self.mulaw8 else 3, dim=1)
        cumulative = torch.softmax(logits, dim=1).cumsum(dim=1)     # it may fall short of 1
        pick = torch.searchsorted(cumulative[:, :-1].contiguous(), u[:, None], right=True)
        if self.mulaw8:
            return pick[:, 0] / 127.5 - 1
        mean, log_scale = (p.gather(1, pick)[:, 0] for p in logistics)
        return to_16_bits(mean + log_scale.clamp(max=14).exp() * torch.logit(v, 1e-7))

def mu_law_encode(x):
    """Waves in [-1, 1] -> mu-law codes 0..255 (ITU-T G.711's curve): finer near zero."""
    y = x.sign() * torch.log1p(255 * x.abs().clamp(max=1)) / math.log(256)      # [-1, 1]
    return ((y + 1) * 127.5).round().long()

def mu_law_decode(code):
    """Mu-law codes -> waves in [-1, 1]."""
    y = code / 127.5 - 1
    return y.sign() * torch.expm1(y.abs() * math.log(256)) / 255

def to_16_bits(x):
    """Waves -> the nearest of the 65,536 values -1, ..., 1 - 2^-15 of 16-bit sound."""
    return (x * 32768).round().clamp(-32768, 32767) / 32768

def mol_log_likelihood(parameters, x):
    """Discretised mixture of logistics (PixelCNN++, Salimans 2017), (N, 3 M, L), of x (N, L) in
    [-1, 1] -> log probabilities (N, L): the mass within half a 16-bit step, or beyond the extremes.
    With s logistic, s(a) - s(b) = s(a) s(-b) (1 - e^(b - a)): its log cancels nothing afar."""
    logits, mean, log_scale = parameters.chunk(3, dim=1)            # (N, M, L) each
    x, half = to_16_bits(x)[:, None], 2.0 ** -16
    sharp = torch.exp(-log_scale.clamp(-14, 14))                    # beyond, nothing changes
    below = F.logsigmoid((x + half - mean) * sharp)                 # log s(a)
    above = F.logsigmoid((mean - (x - half)) * sharp)               # log s(-b)
    inside = below + above + torch.log(-torch.expm1(-2 * half * sharp))
    mass = torch.where(x == -1, below, torch.where(x == 1 - 2 * half, above, inside))
    return torch.logsumexp(F.log_softmax(logits, dim=1) + mass, dim=1)

@torch.no_grad()
def wavenet_generate(net, pitch, generator=None, show=lambda done: None):
    """Notes, sample by sample: pitch (N,) labels -> waves (N, L) in [-1, 1].  `show(samples done)`
    now and then; a generator of the CPU, whatever the network's device."""
    length, cache = net.arch.length, CachedWaveNet(net, pitch)
    u = net.skip_bias.new_zeros(len(pitch), length + 1)             # u[:, 0]: silence before
    random = torch.rand(length, 2, len(pitch), generator=generator).to(u.device)
    for t in range(length):
        u[:, t + 1] = net.draw(cache.step(u[:, t]), random[t])
        if (t + 1) % 256 == 0 or t + 1 == length:
            show(t + 1)
    return mu_law_decode((u[:, 1:] + 1) * 127.5) if net.mulaw8 else u[:, 1:]

class CachedWaveNet:
    """WaveNet one sample at a time: each layer keeps what it needs of its past, so that a sample
    costs one column of the network instead of the whole receptive field."""

    BLOCK = 256                           # samples whose conditioning is computed at once

    @torch.no_grad()
    def __init__(self, net, pitch):
        self.net, self.pitch, self.t, causal = net, pitch, 0, [net.input, *net.dilated]
        self.rings = [[conv.weight.new_zeros(len(pitch), conv.in_channels)] * 2 * conv.dilation[0]
                      for conv in causal]                           # inputs from t - 2 d to t - 1
        self.weights = [conv.weight.permute(2, 1, 0).flatten(0, 1) for conv in causal]
        self.residual = [conv.weight[..., 0].t() for conv in net.residual]
        self.skip = torch.cat([conv.weight[..., 0] for conv in net.skip], dim=1)
        self.head = [(conv.weight[..., 0], conv.bias) for conv in net.head]

    def convolve(self, i, bias, x):
        """x (N, inputs), given to the i-th causal layer now -> its output now, (N, outputs)."""
        ring, now = self.rings[i], self.t % len(self.rings[i])
        seen = torch.cat([ring[now], ring[now - len(ring) // 2], x], dim=1)     # t - 2 d, t - d, t
        ring[now] = x
        return torch.addmm(bias, seen, self.weights[i])

    @torch.no_grad()
    def step(self, u):
        """u (N,): the sample before, as `compress` gives it, at first 0 -> (N, outputs)."""
        net, now, ys = self.net, self.t % self.BLOCK, []
        if now == 0:
            self.gates = torch.stack([gates + dilated.bias[:, None] for gates, dilated in zip(
                net.condition(self.pitch, self.t, self.BLOCK), net.dilated)])
            self.gates = self.gates.expand(-1, -1, -1, self.BLOCK)  # (layers, N, 2 C, times)
        h = self.convolve(0, net.input.bias, u[:, None])            # (N, C)
        for i, gates in enumerate(self.gates[..., now]):
            a, b = self.convolve(i + 1, gates, h).chunk(2, dim=1)
            ys.append(a.tanh_() * b.sigmoid_())
            if i < len(self.residual):
                h = torch.addmm(h, ys[i], self.residual[i])
        self.t += 1
        x = F.linear(torch.cat(ys, dim=1), self.skip, net.skip_bias)            # every layer's skip
        for layer in self.head:
            x = F.linear(F.relu(x), *layer)
        return x

# ---- Command line ---------------------------------------------------------------------------
def main(argv=None):
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    print(f"{'':3}{'layer':28}{'output (F, T, C)':20}{'kernel':14}{'then':24}{'parameters':>10}")
    for net, name, shape, kernel, after, count in layer_table(Architecture()):
        print(f"{net:3}{name:28}{str(shape):20}{kernel:14}{after:24}{count or '':>10}")
    for net in Generator(Architecture()), Discriminator(Architecture()):
        print(f"{type(net).__name__}: {sum(p.numel() for p in net.parameters()):,} parameters, "
              "with the picture layers of all stages")

if __name__ == "__main__":
    main()
