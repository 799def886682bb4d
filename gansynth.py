"""GANSynth's networks, tricks and losses (paper 2.1, 3 and appendix; Karras et al. 2018).

A generator G turns a latent vector and a pitch into a picture of two channels, log magnitude and
instantaneous frequency; a discriminator D scores pictures and names their pitch.  Both grow: a
network of B resolutions starts with one small block and fades in the others, one after another.

Shapes:  N pictures, C channels, T frames, F frequency bins, P pitches, b = 1..B blocks.
Pictures are (N, 2, T, F).  `progress` p runs from 0 (one block) to B - 1 (all blocks, stable);
between two whole numbers a new block fades in.  Everything is computed at the stage's own size:
block b works on pictures of start x 2^(b-1), and nothing is ever upsampled to full size (the
release does so from the first stage on; scores, losses and gradients are equal all the same).

    python gansynth.py             prints both networks layer by layer, as the paper's Table 3

To be read from the top to the ruled line: shapes, growing, the tricks one by one, the networks, the
losses, the optimiser.  Behind it: fast derivatives, checkpoints, the table, and the baselines.
"""

import signal
import sys

if __name__ == "__main__":                # Ctrl-C while the packages load: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import math
import os
import warnings
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

LEAK = 0.2                                # slope of leaky ReLU below zero
RELU_GAIN = math.sqrt(2)                  # He's: of layers that a leaky ReLU follows

# Spectra are scaled into tanh's range by fixed numbers, as released, for every representation: the
# log magnitude (or mel log power), and phase or IF.  paper: by the ranges of 100 notes, to +-0.8.
SCALE = torch.tensor([0.0661371661726, 0.8]).view(2, 1, 1)
SHIFT = torch.tensor([0.113718730221, 0.0]).view(2, 1, 1)


@dataclass(frozen=True)
class Architecture:
    """Everything that determines the networks' shapes; the defaults are the paper's, IF-Mel + H."""

    frames: int = 128                     # T at full size
    bins: int = 1024                      # F at full size
    resolutions: int = 7                  # B: blocks, each twice as large as the one before
    latent: int = 256                     # dimensions of z
    pitches: int = 61                     # P: MIDI 24..84
    channel_base: int = 4096              # channels(b) = min(base / 2^b, max)
    channel_max: int = 256
    growth: tuple = (2, 2)                # of each block's pictures, along T and F
    kernel: tuple = (3, 3)                # of the convolutions, along T and F; odd
    spectra: bool = True                  # pictures are spectra, scaled into tanh's range

    def __post_init__(self):
        check_architecture(self)

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


# ---- Growing (paper 3; Karras et al. 2018, 2) -----------------------------------------------


def progress_at(images, resolutions, stable_images, fade_images):
    """Where training stands after so many examples (paper: 800k stable, 800k fade).

    -> (progress, stage, blocks).  Stages alternate stable, fade, stable, ...; the last one is
    stable and has no end.  Stage 2k trains blocks 1..k + 1 at progress k; stage 2k + 1 trains one
    more, which fades in while progress runs from k to k + 1.
    """
    cycle = stable_images + fade_images
    k, rest = divmod(images, cycle) if cycle else (resolutions - 1, 0)
    if k >= resolutions - 1:
        return float(resolutions - 1), 2 * (resolutions - 1), resolutions
    if rest < stable_images:
        return float(k), 2 * k, k + 1
    return k + (rest - stable_images) / fade_images, 2 * k + 1, k + 2


def active_blocks(progress):
    """Blocks that have a say at this progress: 0 -> 1, 0.37 -> 2, 1 -> 2, ...  (In the very first
    step of a fade the new block's weight is 0: one less than the stage trains.)"""
    return math.ceil(progress) + 1


def fade(progress, b):
    """Weight of block b's picture: a triangle; the weights sum to 1 at every moment."""
    return max(0.0, min(progress - (b - 2), b - progress))


# ---- The tricks, one by one -----------------------------------------------------------------


class Equalised(nn.Module):
    """Equalised learning rate (Karras et al. 2018, 4.1).

    Weights start as N(0, 1) and are multiplied by He's constant at run time instead of at the
    start, so that Adam's steps, which know no scale, are equally large for every layer.
    `gain` is sqrt(2) before a leaky ReLU and 1 before tanh or nothing; biases are not scaled.
    """

    def __init__(self, shape, fan_in, gain, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = gain / math.sqrt(fan_in)


class EqualConv2d(Equalised):
    """Convolution of stride 1 with zero padding to the same size, at an equalised rate."""

    def __init__(self, inputs, outputs, kernel=(3, 3), gain=RELU_GAIN):
        super().__init__((outputs, inputs, *kernel), inputs * math.prod(kernel), gain, outputs)

    def forward(self, x):
        return _Conv.apply(x, self.weight * self.scale, self.bias)


class EqualLinear(Equalised):
    """Dense layer at an equalised rate."""

    def __init__(self, inputs, outputs, gain=1.0):
        super().__init__((outputs, inputs), inputs, gain, outputs)

    def forward(self, x):                 # scales x: the weights are more numbers here
        return F.linear(x * self.scale, self.weight, self.bias)


class StartConv(Equalised):
    """A vector -> the first, smallest features, (N, inputs) -> (N, outputs, h, w).

    The release pads its 1 x 1 input with zeros and convolves it to this size, which is one dense
    layer.  He's constant counts all h w taps of that convolution although one is active.
    """

    def __init__(self, inputs, outputs, size):
        h, w = size
        super().__init__((outputs, h, w, inputs), h * w * inputs, RELU_GAIN, outputs)

    def forward(self, x):
        x = F.linear(x * self.scale, self.weight.flatten(0, 2))
        x = x.unflatten(1, self.weight.shape[:3]) + self.bias[:, None, None]    # (N, C, h, w)
        return x.contiguous(memory_format=torch.channels_last)


def leaky(x):
    """Leaky ReLU, in place: x is gone afterwards."""
    return _Leaky.apply(x)


def pixel_norm(x):
    """Pixel norm: every place's channel vector to mean square 1, so that G's activations cannot
    escalate in the contest with D.  (N, C, ...) -> the same."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def minibatch_stddev(x):
    """Minibatch standard deviation: lets D see that a batch of fakes lacks variety.

    (N, C, h, w) -> (N, C + 1, h, w).  Progressive GAN takes groups of 4; code: the whole batch.
    code: the batch mean counts as a constant (tf.nn.moments stops its gradient).  That changes no
    first derivative, as deviations sum to zero, but it does change the gradient of the penalty.
    """
    deviation = x - x.mean(dim=0).detach()                          # (N, C, h, w)
    std = (deviation.square().mean(dim=0) + 1e-6).sqrt()            # (C, h, w)  over the batch
    feature = std.mean().expand(x.shape[0], 1, *x.shape[2:])        # (N, 1, h, w)  one number
    return torch.cat([x, feature], dim=1)


def upsample(picture, factor):
    """Box (nearest-neighbour) upsampling by whole factors, a pair for T and F."""
    return picture if factor == (1, 1) else _Repeat.apply(picture, factor)


def downsample(picture, factor):
    """Box downsampling by a pair of factors: the mean of so many pixels, in one step.  Step by
    step from upsampled copies would drift by 2.6e-4 in float32."""
    return picture if factor == (1, 1) else _Pool.apply(picture, factor)


def downsample_to(picture, size):
    """Box downsampling to the given frames and bins."""
    return downsample(picture, (picture.shape[2] // size[0], picture.shape[3] // size[1]))


def scale_picture(picture):
    """Spectrum units -> the networks' [-1, 1], clipped.  D begins with it."""
    return (picture * SCALE.to(picture) + SHIFT.to(picture)).clamp(-1, 1)


def unscale_picture(picture):
    """The networks' [-1, 1] -> spectrum units.  G ends with it."""
    return (picture - SHIFT.to(picture)) / SCALE.to(picture)


# ---- Networks (paper appendix, Table 3) -----------------------------------------------------


class Blocks(nn.ModuleDict):
    """Blocks by the paper's numbers: blocks[b], b = 1..B."""

    def __init__(self, kind, arch):
        super().__init__({str(b): kind(arch, b) for b in range(1, arch.resolutions + 1)})

    def __getitem__(self, b):
        return super().__getitem__(str(b))


class GeneratorBlock(nn.Module):
    """Block b of G: features of the block before -> features of twice their size, and a layer that
    draws them as a picture."""

    def __init__(self, arch, b):
        super().__init__()
        before, own = arch.channels(b - 1), arch.channels(b)
        self.conv0 = (StartConv(arch.latent + arch.pitches, own, arch.size(1)) if b == 1 else
                      UpConv2d(before, own, arch.kernel, arch.growth))
        self.conv1 = EqualConv2d(own, own, arch.kernel)
        self.to_picture = EqualConv2d(own, 2, (1, 1), gain=1.0)

    def forward(self, x):
        x = leaky_pixel_norm(self.conv0(x))                         # pixel_norm(leaky(...))
        return leaky_pixel_norm(self.conv1(x))                      # (N, C_b, h_b, w_b)


class Generator(nn.Module):
    """Latent and pitch -> picture in spectrum units, at the stage's own size."""

    def __init__(self, arch):
        super().__init__()
        self.arch = arch
        self.blocks = Blocks(GeneratorBlock, arch)

    def forward(self, z, pitch, progress):
        """z (N, latent), pitch (N,) labels 0..P-1 -> (N, 2, T', F'), the size of the last active
        block's pictures."""
        one_hot = F.one_hot(pitch, self.arch.pitches).to(z.dtype)
        x = pixel_norm(torch.cat([z, one_hot], dim=1))              # (N, 317)  onto a sphere
        active, picture = active_blocks(progress), 0
        for b in range(1, active + 1):
            x = self.blocks[b](x)                                   # (N, C_b, h_b, w_b)
            weight = fade(progress, b)
            if weight > 0:
                # tanh first, then the mix (code); Progressive GAN has no tanh here.
                small = torch.tanh(self.blocks[b].to_picture(x))    # (N, 2, h_b, w_b)
                picture = picture + weight * upsample(small, self.arch.factor(active - b))
        return unscale_picture(picture) if self.arch.spectra else picture

    def built_parameters(self, blocks):
        """The parameters of the first so many blocks."""
        return [p for b in range(1, blocks + 1) for p in self.blocks[b].parameters()]


class DiscriminatorBlock(nn.Module):
    """Block b of D: a layer that reads pictures into features, and features -> features of half
    their size; the last block to be passed, b = 1, ends in a vector."""

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

    def forward(self, x):
        if self.first:
            x = leaky(self.conv0(minibatch_stddev(x)))
            return leaky(self.conv1(x.flatten(1)))                  # (N, C_0)
        x = leaky(self.conv1(leaky(self.conv0(x))))
        return downsample(x, self.growth)                           # (N, C_(b-1), h/2, w/2)


class Discriminator(nn.Module):
    """Picture in spectrum units -> a Wasserstein score and logits over pitches."""

    def __init__(self, arch):
        super().__init__()
        self.arch = arch
        self.blocks = Blocks(DiscriminatorBlock, arch)
        self.score = EqualLinear(arch.channels(0), 1)
        self.pitch = EqualLinear(arch.channels(0), arch.pitches)

    def forward(self, picture, progress):
        """(N, 2, T, F), of the stage's size or larger -> scores (N,), pitch logits (N, P)."""
        return self.judge_scaled(self.scale(picture), progress)

    def scale(self, picture):
        """Spectra are scaled and clipped; waves come as they are."""
        return scale_picture(picture) if self.arch.spectra else picture

    def judge_scaled(self, scaled, progress):
        """`forward` of a picture that `scale` has been over."""
        active = active_blocks(progress)
        # Clipped at the size it came in, then pooled once to the stage's size.
        scaled = downsample_to(scaled, self.arch.size(active))
        scaled = scaled.contiguous(memory_format=torch.channels_last)
        x = None
        for b in range(active, 0, -1):
            mix = min(max(b - progress, 0.0), 1.0)                  # 1 at the top, 0 once faded in
            if mix > 0:
                small = downsample(scaled, self.arch.factor(active - b))
                small = leaky(self.blocks[b].from_picture(small))   # (N, C_b, h_b, w_b)
                x = small if x is None else mix * small + (1 - mix) * x
            x = self.blocks[b](x)
        return self.score(x)[:, 0], self.pitch(x)

    def built_parameters(self, blocks):
        """The parameters of the first so many blocks, and the heads'."""
        modules = [self.blocks[b] for b in range(1, blocks + 1)] + [self.score, self.pitch]
        return [p for m in modules for p in m.parameters()]


def blend(picture, progress, arch):
    """Real notes as G could draw them now: of the stage's size, faded like G's output.

    The sum over blocks of the fade's weight times a box-downsampled copy.  One port forgot it, and
    D told real from fake by sharpness alone.  picture: of the stage's size or larger.
    """
    active = active_blocks(progress)
    return sum(fade(progress, b) * upsample(downsample_to(picture, arch.size(b)),
                                            arch.factor(active - b))
               for b in range(1, active + 1) if fade(progress, b) > 0)


# ---------------------------------------------------------------------------------------------
# Losses: Wasserstein with gradient penalty, drift and an auxiliary pitch classifier.  The terms
# that come with a loss are as the paper names them, before their weights.


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses' terms (paper 3 and appendix) and the penalty's units."""

    penalty: float = 10.0                 # gradient penalty
    drift: float = 0.001                  # mean square of real scores
    pitch: float = 10.0                   # cross-entropy of the pitch classifier
    penalty_units: str = "raw"            # "raw": the release's; "scaled": see penalty_slopes


def generator_loss(G, D, z, pitch, progress, weights):
    """G's loss on fresh fakes: (loss, named terms).  code: G's pitch term is on fakes only."""
    score, logits = D(G(z, pitch, progress), progress)
    terms = {"G_score": -score.mean(), "G_pitch": F.cross_entropy(logits, pitch)}
    return terms["G_score"] + weights.pitch * terms["G_pitch"], terms


def discriminator_losses(D, x_real, pitch_real, x_fake, mix, progress, weights):
    """D's loss as three parts, yielded one after another: (loss, named terms) each.

    Real, fake and mixed batches go through D separately (minibatch statistics).  The caller
    sends each part backward before the next is computed, so only one graph is ever in memory.
    code: the pitch term is on real notes for D, never on fakes.
    """
    score, logits = D(x_real, progress)
    terms = {"D_real": -score.mean(), "D_drift": score.square().mean(),
             "D_pitch": F.cross_entropy(logits, pitch_real)}
    yield (terms["D_real"] + weights.drift * terms["D_drift"] + weights.pitch * terms["D_pitch"],
           terms)
    score, _ = D(x_fake, progress)
    terms = {"D_fake": score.mean()}
    yield terms["D_fake"], terms
    slope = penalty_slopes(D, x_real, x_fake, mix, progress, weights.penalty_units)
    terms = {"D_penalty": (slope - 1).square().mean()}
    yield weights.penalty * terms["D_penalty"], terms


def penalty_slopes(D, x_real, x_fake, mix, progress, units="raw"):
    """Slope of D at random mixtures of real and fake (Gulrajani et al. 2017); its squared distance
    to 1 is the gradient penalty, which keeps D near 1-Lipschitz.

    mix (N, 1, 1, 1) uniform in [0, 1] -> slopes (N,), differentiable once more.
    raw (code): the slope per unit of an unscaled *full-size* picture, before D's scaling and clip.
    A pixel here stands for s x s pixels there, which share its gradient: the full-size norm is
    the native norm / s.  (Of waves a sample stands for s samples: / sqrt(s).)
    scaled: the slope per unit of the scaled picture at its own size.  Scores then stay small beside
    the pitch loss from the first stage on, which short runs need; the workshop preset uses it.
    """
    x_hat = x_real + mix * (x_fake - x_real)
    if units == "scaled":
        x_hat, judge, pixels = D.scale(x_hat), D.judge_scaled, 1
    else:
        judge, pixels = D, D.arch.frames * D.arch.bins / math.prod(x_hat.shape[2:])
    x_hat = x_hat.detach().requires_grad_()
    score, _ = judge(x_hat, progress)
    gradient, = torch.autograd.grad(score.sum(), x_hat, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).sqrt() / math.sqrt(pixels)


# ---- Optimisation ---------------------------------------------------------------------------


def make_adam(parameters, betas=(0.0, 0.99)):
    """Adam with the paper's betas and t, a count of its updates; made anew at every stage boundary,
    as released."""
    return torch.optim.Adam([{"params": list(parameters), "t": 0}], betas=betas, fused=True)


def adam_step(adam, lr):
    """One update, and no gradients left.

    TensorFlow adds eps = 1e-8 outside the bias correction of sqrt(v), torch inside: dividing it by
    sqrt(1 - beta2^t) makes them equal.  A weight that took no part (of a block about to fade in,
    or a picture layer faded out) counts as having gradient zero, as it does in TensorFlow.
    """
    group, = adam.param_groups
    group["t"], group["lr"] = group["t"] + 1, lr
    group["eps"] = 1e-8 / math.sqrt(1 - group["betas"][1] ** group["t"])
    for p in group["params"]:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    adam.step()
    adam.zero_grad(set_to_none=True)


@torch.no_grad()
def ema_update(averages, parameters, decay):
    """Exponential moving average of G's weights: we listen to it, not to the last step.
    code: a fixed decay per *step*, whatever the batch size, with no warm-up."""
    torch._foreach_lerp_(averages, parameters, 1 - decay)


# =============================================================================================
# Here the path through the paper ends.  Behind this line: how it is made fast, checkpoints, the
# table of layers, and the baselines.
# =============================================================================================


# ---- Shapes that cannot be, and those of the waveform GAN (paper's Table 2) -----------------


class ArchitectureError(ValueError):
    """Networks that cannot be built; the message says which could."""


def check_architecture(arch):
    """ArchitectureError for networks that cannot be built."""
    check_counts(arch)
    unit, (t, f) = arch.factor(arch.resolutions - 1), arch.kernel
    if t % 2 == 0 or f % 2 == 0:
        raise ArchitectureError(f"a kernel of {t} x {f} has no middle: both must be odd")
    if arch.frames % unit[0] or arch.bins % unit[1]:
        raise ArchitectureError(
            f"a picture of {arch.frames} x {arch.bins} cannot be made {arch.growth[0]} x "
            f"{arch.growth[1]} times smaller {arch.resolutions - 1} times: its sides must be "
            f"multiples of {unit[0]} and {unit[1]}")
    if arch.channels(arch.resolutions) < 1:
        raise ArchitectureError(
            f"channel_base {arch.channel_base} leaves no channel for block {arch.resolutions}: "
            f"the least that does is {2 ** arch.resolutions}")


def check_counts(arch, zero=()):
    """ArchitectureError unless the numbers of an architecture are at least 1, or 0 for `zero`."""
    for name, value in asdict(arch).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(type(n) is int and n < (name not in zero) for n in numbers):
            raise ArchitectureError(f"{name} is {value}: expected at least {int(name not in zero)}")


# What differs for the paper's waveform GAN: notes are pictures one bin wide, 65,536 x 1, that grow
# along time only.  No settings were published: these are ours.  Growth by 4: from 16 samples over
# the same seven blocks fits the release's options.  Kernel of 9: as many weights as 3 x 3, and
# about the least beside growth by 4, after which fewer than 8 or 9 taps would often see copies of
# one or two samples only; WaveGAN's 25 would cost 2.8 times as much.  No scaling: waves lie in
# tanh's range already.
WAVEFORM = {"growth": (4, 1), "kernel": (9, 1), "spectra": False}


# ---------------------------------------------------------------------------------------------
# Fast derivatives: what the functions above call.  None of this changes a result, only time and
# memory.


class _Conv(torch.autograd.Function):
    """Same-size convolution of stride 1, whose second derivative is as fast as its first.

    The gradient by the input is a convolution again, with the kernel turned round; so the gradient
    penalty, which differentiates that once more, needs nothing new.  (torch's own double backward
    computes the weights' part as a convolution with kernels as large as the picture, several
    times slower.)  Where a graph of the gradient itself is asked for, the weights' part is left
    out: the penalty differentiates by the picture first, and by the weights only then.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=_middle(weight))

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = _Conv.apply(g, weight.flip(2, 3).transpose(0, 1), None)
        if ctx.needs_input_grad[1] and not torch.is_grad_enabled():
            by_weight = _weight_gradient(x, g, weight, _middle(weight))
        if ctx.needs_input_grad[2]:
            by_bias = g.sum(dim=(0, 2, 3))
        return by_x, by_weight, by_bias


def _middle(weight, stride=(1, 1)):
    """The padding that keeps a picture's size, or multiplies it by exactly the stride."""
    return (weight.shape[2] - stride[0]) // 2, (weight.shape[3] - stride[1]) // 2


class UpConv2d(EqualConv2d):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution, in one.

    Upsampling only repeats pixels, so the nine taps that fall on an output pixel see four
    different values: their weights can be added first.  A transposed convolution of stride 2 with
    the 3x3 kernel summed over 2x2 neighbourhoods is equal in real arithmetic and needs 4 instead
    of 9 multiplications a pixel.  (Waves: stride 4 with 9 taps summed over 4s, 3 instead of 9.)
    """

    def __init__(self, inputs, outputs, kernel=(3, 3), growth=(2, 2)):
        super().__init__(inputs, outputs, kernel)
        self.growth = growth

    def forward(self, x):
        (t, f), w = self.growth, (self.weight * self.scale).flip(2, 3)
        w = F.pad(w, (f - 1, f - 1, t - 1, t - 1))                  # 5x5 with borders
        w = F.avg_pool2d(w, (t, f), stride=1, divisor_override=1)   # (out, in, 4, 4)
        return _UpConv.apply(x, w.transpose(0, 1), self.bias, self.growth)


class _UpConv(torch.autograd.Function):
    """Transposed 4x4 convolution of stride 2 (of waves 12x1, stride 4), differentiable once: all
    that G needs."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride):
        ctx.save_for_backward(x, weight)
        ctx.how = _middle(weight, stride), stride
        return F.conv_transpose2d(x, weight, bias, stride, ctx.how[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        x, weight = ctx.saved_tensors     # the gradient by x is a plain convolution of stride 2
        padding, stride = ctx.how
        by_weight = _weight_gradient(x, g, weight, padding, stride, up=True)
        return F.conv2d(g, weight, None, stride, padding), by_weight, g.sum(dim=(0, 2, 3)), None


def _weight_gradient(x, g, weight, padding, stride=(1, 1), up=False):
    """Gradient of a convolution by its weights.  On a CPU this, unlike all else, is faster with the
    channels first, so x and g are turned round: a few examples at a time, as copies of all would
    be large."""
    def gradient(x, g):
        return torch.ops.aten.convolution_backward(
            g, x, weight, None, stride, padding, (1, 1), up, (0, 0), 1, (False, True, False))[1]

    if x.device.type != "cpu":
        return gradient(x, g)
    few = max(1, 2 ** 22 // x[0].numel())
    return sum(gradient(channels_first(a), channels_first(b))
               for a, b in zip(x.split(few), g.split(few)))


def channels_first(x):
    """(N, C, T, F) laid out with the channels last -> with the channels first.

    torch's copy of a transposed matrix is three times as fast as `contiguous()` on large pictures.
    """
    if x[0].numel() < 2 ** 18:
        return x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    for i in range(len(x)):
        y[i].flatten(1).copy_(x[i].permute(1, 2, 0).flatten(0, 1).t())
    return y


class _Leaky(torch.autograd.Function):
    """Leaky ReLU in place: no convolution needs its own output again, which saves its memory."""

    @staticmethod
    def forward(ctx, x):
        y = F.leaky_relu_(x, LEAK)
        ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return _Gate.apply(g, *ctx.saved_tensors)


class _Gate(torch.autograd.Function):
    """Gradient of leaky ReLU, linear in g; its derivative by y, zero, costs nothing here (torch's
    own holds a tensor of zeros for every layer until the penalty is through)."""

    @staticmethod
    def forward(ctx, g, y):
        ctx.save_for_backward(y)
        return torch.ops.aten.leaky_relu_backward(g, y, LEAK, True)

    @staticmethod
    def backward(ctx, g):
        return _Gate.apply(g, *ctx.saved_tensors), None


def leaky_pixel_norm(x):
    """pixel_norm(leaky(x)), in place: what follows every convolution of G but the last."""
    return _LeakyPixelNorm.apply(x)


class _LeakyPixelNorm(torch.autograd.Function):
    """pixel_norm(leaky(x)) in place, keeping only the result for the way back.

    With y = a / r, a = leaky(x), r = sqrt(mean a^2 + eps), the derivative is
    da = (dy - y mean(y dy)) / r, and y has the sign of x.  First derivative only: all that G needs.
    """

    @staticmethod
    def forward(ctx, x):
        y = F.leaky_relu_(x, LEAK)
        r = (y.square().mean(dim=1, keepdim=True) + 1e-8).sqrt_()
        ctx.mark_dirty(x)
        y.div_(r)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        y, r = ctx.saved_tensors
        along = (y * g).mean(dim=1, keepdim=True)
        g = torch.addcmul(g, y, along, value=-1).div_(r)
        return torch.ops.aten.leaky_relu_backward(g, y, LEAK, True)


class _Pool(torch.autograd.Function):
    """Mean over factor x factor pixels.  Pooling and repeating pixels are each other's gradients
    up to the pixels' number, so that each needs nothing but the other, to any order."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return F.avg_pool2d(x, factor)

    @staticmethod
    def backward(ctx, g):
        return _Repeat.apply(g / math.prod(ctx.factor), ctx.factor), None


class _Repeat(torch.autograd.Function):
    """Every pixel factor x factor times."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return F.interpolate(x, scale_factor=factor, mode="nearest")

    @staticmethod
    def backward(ctx, g):
        return _Pool.apply(g, ctx.factor) * math.prod(ctx.factor), None


# ---- Checkpoints ----------------------------------------------------------------------------


FORMAT, VERSION = "gansynth", 2           # 1 was before blocks had the paper's numbers
# What a checkpoint must hold to be sampled from, and of which type it is; to go on, a run needs
# what else train.py puts in.
SAMPLE_PARTS = {"model": str, "architecture": dict, "spectrum": dict, "pitch_low": int,
                "progress": float, "counts": torch.Tensor, "images": int, "G_ema": dict}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says which and what to do."""


def save_checkpoint(path, contents):
    """Write a dictionary of plain tensors and settings to one file, whole or not at all.

    It goes to a temporary file beside `path`, is flushed to the disk (fsync) and then renamed, so
    a full disk or a power cut leaves the previous checkpoint as it was.
    """
    temporary = f"{path}.part"
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **contents}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:            # torch's own writer raises the latter
        reason = getattr(error, "strerror", None) or "the disk may be full"
        raise CheckpointError(f"{path}: the checkpoint could not be saved ({reason}); earlier "
                              "checkpoints are untouched: free some space, and resume from the "
                              "last one") from None
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
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}): give a checkpoint that "
                              "train.py wrote") from None
    except Exception:                     # zipfile raises many kinds for a damaged file
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint: use an earlier one of the "
                              "same run")


def load_checkpoint(path, device="cpu", parts=()):
    """Read what `save_checkpoint` wrote, and check that it holds `parts` (SAMPLE_PARTS, ...).

    Only tensors and plain values are unpickled.  CheckpointError for all that is not as expected.
    """
    check_whole(path)
    try:
        with warnings.catch_warnings():                 # of pickles that are not ours
            warnings.simplefilter("ignore")
            contents = torch.load(path, map_location=device, weights_only=True)
    except Exception:                     # torch raises many kinds for what is not its own
        contents = None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not one of our checkpoints: give a file that train.py "
                              "wrote")
    if contents.get("version") != VERSION:
        raise CheckpointError(f"{path}: written by version {contents.get('version')} of these "
                              f"scripts, and this is version {VERSION}: use the one that wrote it")
    wrong = [name for name in parts if not isinstance(contents.get(name), parts[name])]
    if wrong:
        raise CheckpointError(f"{path}: lacks {', '.join(wrong)}, or they are not as they should "
                              "be: use an earlier one of the same run")
    return contents


def checkpoints(run):
    """The checkpoints in a run's folder, from the fewest examples to the most."""
    found = [path for path in Path(run).glob("checkpoint-*.pt")
             if path.stem.split("-")[1].isdecimal()]
    return sorted(found, key=lambda path: int(path.stem.split("-")[1]))


def newest_checkpoint(run):
    """The checkpoint of the most examples in a run's folder, or None."""
    return (checkpoints(run) or [None])[-1]


def find_checkpoint(path):
    """A checkpoint file, or the newest whole one in a run's folder -> its path.

    Of a folder, newer ones that are damaged are passed over, and named on stderr.
    """
    path = Path(path)
    if path.is_file():
        return path
    for newest in reversed(checkpoints(path)):
        try:
            check_whole(newest)
            return newest
        except CheckpointError as error:
            print(f"passed over: {error}", file=sys.stderr)
    raise CheckpointError(f"{path}: no whole checkpoint there: expected a run's folder with "
                          "checkpoint-*.pt files, or one such file")


def load_generator(path, device="cpu"):
    """The averaged generator of a checkpoint, ready to sample, and the checkpoint's contents.

    `contents["progress"]` is where training stood: an unfinished run is heard at that progress.
    `contents["model"]` says which network it is (see the baselines); those do not grow.
    """
    contents = load_checkpoint(path, device, SAMPLE_PARTS)
    try:
        build, shape = {"gansynth": (Generator, Architecture),
                        "wavegan": (WaveGANGenerator, WaveGANArchitecture),
                        "wavenet": (WaveNet, WaveNetArchitecture)}[contents["model"]]
        G = build(shape(**contents["architecture"])).to(device)
        G.load_state_dict(contents["G_ema"])
        most = G.arch.resolutions - 1 if isinstance(G, Generator) else 0
        if not (0 <= contents["progress"] <= most
                and contents["counts"].shape == (G.arch.pitches,)):
            raise ValueError
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise CheckpointError(f"{path}: the checkpoint's weights do not fit its settings: use an "
                              "earlier one of the same run") from None
    return G.eval().requires_grad_(False), contents


@torch.no_grad()
def synthesise(G, spectrum, z, pitch, progress, batch=16, show=lambda done: None, generator=None):
    """Latents and pitch labels -> notes: what one does with a trained G.

    z (N, latent), pitch (N,) labels 0..P-1; `spectrum` decodes pictures (spectral.Spectrum).  At an
    early progress the small picture is stretched to full size first.  `batch` notes at a time, and
    `show(done)` after each.  A WaveNet, which has no latents, draws its samples from `generator`,
    and shows parts of notes.  -> (N, L) float32 on the CPU; waves may exceed [-1, 1].
    """
    device, waves = next(G.parameters()).device, []
    for i in range(0, len(z), batch):
        z_few, pitch_few = z[i:i + batch].to(device), pitch[i:i + batch].to(device)
        if isinstance(G, Generator):
            small = G(z_few, pitch_few, progress)
            picture = upsample(small, G.arch.factor(                            # (n, 2, T, F)
                G.arch.resolutions - active_blocks(progress)))
        elif isinstance(G, WaveGANGenerator):
            picture = G(z_few, pitch_few)[:, None, :, None]                     # (n, 1, T, 1)
        else:
            length = G.arch.length
            picture = wavenet_generate(                                         # (n, 1, L, 1)
                G, pitch_few, length, generator,
                lambda done: done < length and show(i + len(z_few) * done / length)
            )[:, None, :, None]
        waves.append(spectrum.decode(picture).cpu())                            # (n, L)
        show(i + len(z_few))
    return torch.cat(waves)


# ---- Table 3: the networks block by block ---------------------------------------------------


def layer_table(arch):
    """Rows (net, layer, shape F x T x C, kernel, nonlinearity, parameters), as in Table 3."""
    rows = [("G", "z and one-hot pitch", (1, 1, arch.latent + arch.pitches), "", "pixel norm", 0)]

    def row(net, name, size, channels, kernel, after, module=None):
        count = sum(p.numel() for p in module.parameters()) if module else 0
        rows.append((net, name, (size[1], size[0], channels), kernel, after, count))

    G, D, C = Generator(arch), Discriminator(arch), arch.channels
    kernel, growth = (f"{f}x{t}" for t, f in (arch.kernel, arch.growth))
    start = f"{arch.size(1)[1]}x{arch.size(1)[0]} (dense)"
    for b in range(1, arch.resolutions + 1):
        block, size, after = G.blocks[b], arch.size(b), "leaky ReLU, pixel norm"
        if b > 1:
            row("G", f"block {b} upsample {growth}", size, C(b - 1), "", "")
        row("G", f"block {b} conv0", size, C(b), start if b == 1 else kernel, after, block.conv0)
        row("G", f"block {b} conv1", size, C(b), kernel, after, block.conv1)
        row("G", f"block {b} to picture", size, 2, "1x1", "tanh", block.to_picture)
    for b in range(arch.resolutions, 0, -1):
        block, size, after = D.blocks[b], arch.size(b), "leaky ReLU"
        row("D", f"block {b} from picture", size, C(b), "1x1", after, block.from_picture)
        if b == 1:
            row("D", "block 1 minibatch stddev", size, C(1) + 1, "", "")
        row("D", f"block {b} conv0", size, C(b), kernel, after, block.conv0)
        row("D", f"block {b} conv1", size if b > 1 else (1, 1), C(b - 1),
            kernel if b > 1 else start, after, block.conv1)
        if b > 1:
            row("D", f"block {b} downsample {growth}", arch.size(b - 1), C(b - 1), "", "")
    row("D", "score", (1, 1), 1, "dense", "", D.score)
    row("D", "pitch", (1, 1), arch.pitches, "dense", "softmax in the loss", D.pitch)
    return rows


# ---- Baseline: WaveGAN (Donahue et al. 2018, tables 3 and 4), with a pitch ------------------


@dataclass(frozen=True)
class WaveGANArchitecture:
    """Everything that determines WaveGAN's shapes; the defaults make the paper's notes.

    paper: WaveGAN with the pitch added, and no more settings.  Chosen here: notes padded from
    64,000 to 65,536 samples, made by WaveGAN's own variant for that length (a layer more, 32 d
    channels at the start); z normal, as GANSynth's (WaveGAN: uniform), so that latents are walked
    through alike; the pitch as one-hot beside z, and D naming it by a second dense head, both as in
    GANSynth, as is the weight of 10 for it; Glorot's start and zero biases, TensorFlow's.
    """

    length: int = 65536                   # samples made: 16 x 4^k for k layers
    latent: int = 100                     # dimensions of z
    pitches: int = 61                     # P: MIDI 24..84
    channels: int = 64                    # d: channels beside the wave, doubled in every layer
    kernel: int = 25
    phase_shuffle: int = 2                # n: D's activations move by -n..n samples

    def __post_init__(self):
        check_counts(self, zero=("phase_shuffle",))
        if self.layers < 1 or self.length != 16 * 4 ** self.layers:
            k = max(1, math.ceil(math.log(self.length / 16, 4)))
            raise ArchitectureError(f"WaveGAN cannot make {self.length} samples: expected 16 x "
                                    f"4^k, such as {16 * 4 ** k}; pad the notes")
        if self.kernel < 4:
            raise ArchitectureError(f"kernel is {self.kernel}: expected at least the stride, 4")
        if self.phase_shuffle >= 64:
            raise ArchitectureError(f"phase_shuffle is {self.phase_shuffle}: expected less than "
                                    "64, the fewest samples it is done on")

    @property
    def layers(self):
        return (self.length.bit_length() - 5) // 2

    def widths(self):
        """Channels from the wave's end to the start's: 1, d, 2d, 4d, ..."""
        return [1] + [self.channels * 2 ** i for i in range(self.layers)]


def _glorot(net):
    for name, p in net.named_parameters():
        (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_uniform_)(p)


class WaveGANGenerator(nn.Module):
    """Latent and pitch -> wave: a dense layer to 16 samples, then each layer makes four of one."""

    def __init__(self, arch):
        super().__init__()
        self.arch = arch
        widths = arch.widths()[::-1]
        padding = (arch.kernel - 3) // 2                            # so that 1 sample becomes 4
        self.dense = nn.Linear(arch.latent + arch.pitches, 16 * widths[0])
        self.up = nn.ModuleList([
            nn.ConvTranspose1d(a, b, arch.kernel, stride=4, padding=padding,
                               output_padding=2 * padding + 4 - arch.kernel)
            for a, b in zip(widths, widths[1:])])
        _glorot(self)

    def forward(self, z, pitch):
        """z (N, latent), pitch (N,) labels 0..P-1 -> (N, length) in [-1, 1]."""
        one_hot = F.one_hot(pitch, self.arch.pitches).to(z.dtype)
        x = self.dense(torch.cat([z, one_hot], dim=1)).unflatten(1, (-1, 16))   # (N, C, 16)
        for up in self.up:
            x = up(F.relu(x))                                       # (N, C/2, 4 L)
        return torch.tanh(x[:, 0])


class WaveGANDiscriminator(nn.Module):
    """Wave -> a Wasserstein score and logits over pitches."""

    def __init__(self, arch):
        super().__init__()
        self.arch = arch
        widths, padding = arch.widths(), (arch.kernel - 3) // 2
        self.down = nn.ModuleList([nn.Conv1d(a, b, arch.kernel, stride=4, padding=padding)
                                   for a, b in zip(widths, widths[1:])])
        self.score = nn.Linear(16 * widths[-1], 1)
        self.pitch = nn.Linear(16 * widths[-1], arch.pitches)
        _glorot(self)

    def forward(self, wave, shift=None):
        """(N, length) and shifts of `draw_phase_shuffle`, or None for none -> scores (N,), pitch
        logits (N, P)."""
        x = wave[:, None]                                           # (N, 1, L)
        for i, down in enumerate(self.down):
            x = F.leaky_relu(down(x), LEAK)                         # (N, 2 C, L/4)
            if shift is not None and i < len(self.down) - 1:
                x = phase_shuffle(x, shift[i])
        x = x.flatten(1)
        return self.score(x)[:, 0], self.pitch(x)


def draw_phase_shuffle(arch, n, generator=None):
    """Shifts for one pass of n waves through D: (layers - 1, n) integers in [-phase_shuffle,
    phase_shuffle], one for each wave and each layer but the last."""
    most = arch.phase_shuffle
    return torch.randint(-most, most + 1, (arch.layers - 1, n), generator=generator)


def phase_shuffle(x, shift):
    """Phase shuffle: each example's activations moved later by its shift, the gap filled by
    reflection.  Transposed convolutions leave artefacts of one phase, by which D would know
    fakes too easily.  x (N, C, L), shift (N,) integers -> (N, C, L)."""
    L = x.shape[2]
    place = torch.arange(L, device=x.device) - shift.to(x.device)[:, None]      # (N, L)
    place = (L - 1) - ((L - 1) - place.abs()).abs()                 # reflected at both ends
    return x.gather(2, place[:, None].expand_as(x))


def wavegan_generator_loss(G, D, z, pitch, shift, weights=LossWeights()):
    """G's loss on fresh fakes: (loss, named terms)."""
    score, logits = D(G(z, pitch), shift)
    terms = {"G_score": -score.mean(), "G_pitch": F.cross_entropy(logits, pitch)}
    return terms["G_score"] + weights.pitch * terms["G_pitch"], terms


def wavegan_discriminator_loss(D, x_real, pitch_real, x_fake, mix, shifts,
                               weights=LossWeights()):
    """D's loss (WGAN-GP, Gulrajani et al. 2017; pitch on real notes only, no drift): (loss, named
    terms).

    x_real, x_fake (N, length); mix (N, 1) uniform in [0, 1]; shifts: three of
    `draw_phase_shuffle`, for the passes of real, fake and mixed waves.  WaveGAN takes five such
    steps for one of G's, batches of 64 and Adam with 1e-4 and betas (0.5, 0.9).
    """
    real, logits = D(x_real, shifts[0])
    fake, _ = D(x_fake, shifts[1])
    x_hat = (x_real + mix * (x_fake - x_real)).detach().requires_grad_()
    score, _ = D(x_hat, shifts[2])
    gradient, = torch.autograd.grad(score.sum(), x_hat, create_graph=True)
    terms = {"D_real": -real.mean(), "D_fake": fake.mean(),
             "D_pitch": F.cross_entropy(logits, pitch_real),
             "D_penalty": (gradient.norm(dim=1) - 1).square().mean()}
    return (terms["D_real"] + terms["D_fake"] + weights.pitch * terms["D_pitch"]
            + weights.penalty * terms["D_penalty"]), terms


# ---------------------------------------------------------------------------------------------
# Baseline: WaveNet (van den Oord et al. 2016; paper appendix), sample by sample, with a pitch


@dataclass(frozen=True)
class WaveNetArchitecture:
    """Everything that determines WaveNet's shapes; the defaults are the paper's, 8-bit."""

    length: int = 64000                   # samples of a note
    sample_rate: int = 16000              # Hz it is played at; the network has no use for it
    pitches: int = 61                     # P: MIDI 24..84
    stacks: int = 3
    layers: int = 10                      # per stack, dilations 2^0 .. 2^(layers - 1)
    channels: int = 512                   # of the residual path and of each half of the gates
    skip: int = 512                       # of the skip path and the head; not in the paper
    filter: int = 3                       # taps of every convolution in time
    conditioning_layers: int = 5          # dilations 2^1 .. 2^5: "5 dilated layers (to 2^5)"
    conditioning_plain: int = 3           # then so many of dilation 1
    conditioning_channels: int = 512
    output: str = "mulaw8"                # or "mol16": a mixture of logistics on 16 bits
    mixtures: int = 10                    # logistics in it
    hold: float = 0.75                    # share of the note that the pitch is on: 3 s of 4

    latent = 0                            # no setting: a WaveNet has no z

    def __post_init__(self):
        check_counts(self, zero=("conditioning_layers", "conditioning_plain"))
        if self.output not in ("mulaw8", "mol16"):
            raise ArchitectureError(f"output is {self.output!r}: expected 'mulaw8' or 'mol16'")
        if not 0 < self.hold <= 1:
            raise ArchitectureError(f"hold is {self.hold}: expected a share of the note, above 0 "
                                    "and at most 1")

    @property
    def dilations(self):
        return [2 ** i for i in range(self.layers)] * self.stacks

    @property
    def conditioning_dilations(self):
        return [2 ** (i + 1) for i in range(self.conditioning_layers)] + (
            [1] * self.conditioning_plain)

    @property
    def receptive_field(self):
        """How many samples before the one that is foretold have a say in it: 6,141."""
        return 1 + (self.filter - 1) * (1 + sum(self.dilations))

    @property
    def outputs(self):
        """Numbers that describe one sample's distribution."""
        return 256 if self.output == "mulaw8" else 3 * self.mixtures


class WaveNet(nn.Module):
    """The past of a wave and its pitch -> the distribution of its next sample.

    Where the papers leave it open: the wave comes in as one number a sample (its mu-law code over
    [-1, 1], or its 16-bit value) through a first causal convolution; the residual and skip 1x1s
    have no biases, which those of the next gates and of the head would only repeat; the head is
    ReLU, 1x1, ReLU, 1x1.  The layers of the conditioning stack have ReLUs and, but for the first,
    add to what they are given; the stack looks both ways in time: when the pitch goes on and off
    is known beforehand, so that it need not be causal.
    """

    def __init__(self, arch):
        super().__init__()
        self.arch = arch
        C, S, taps, depth = arch.channels, arch.skip, arch.filter, len(arch.dilations)
        inputs = [arch.pitches] + [arch.conditioning_channels] * len(arch.conditioning_dilations)
        self.conditioning = nn.ModuleList([
            nn.Conv1d(a, b, taps, dilation=d)
            for a, b, d in zip(inputs, inputs[1:], arch.conditioning_dilations)])
        self.input = nn.Conv1d(1, C, taps)
        self.dilated = nn.ModuleList([nn.Conv1d(C, 2 * C, taps, dilation=d)
                                      for d in arch.dilations])
        self.to_gates = nn.ModuleList([nn.Conv1d(inputs[-1], 2 * C, 1, bias=False)
                                       for _ in range(depth)])
        self.residual = nn.ModuleList([nn.Conv1d(C, C, 1, bias=False) for _ in range(depth - 1)])
        self.skip = nn.ModuleList([nn.Conv1d(C, S, 1, bias=False) for _ in range(depth)])
        self.skip_bias = nn.Parameter(torch.zeros(S))
        self.head = nn.ModuleList([nn.Conv1d(S, S, 1), nn.Conv1d(S, arch.outputs, 1)])
        # He's start, made small beside what each layer adds to.  (With nothing to add to, eight
        # layers in a row, a short run never learnt to heed the pitch.)  At the first layer one of
        # the P inputs is not zero.
        for i, conv in enumerate(self.conditioning):
            fan_in = taps * (inputs[i] * len(self.conditioning) if i else 1)
            nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_in))
            nn.init.zeros_(conv.bias)

        # A note's conditioning hardly ever changes: `condition` makes the columns that differ, for
        # a note held so short that only one of them sees the pitch on from end to end.
        span = (taps - 1) * sum(arch.conditioning_dilations)
        self.before = span // 2                                     # samples seen to the left
        self.hold = round(arch.hold * arch.length)
        self.short_hold = min(self.hold, span + 1)
        self.span = span

    def compress(self, x):
        """Waves in [-1, 1] -> what the network takes in, as exact as its output is."""
        if self.arch.output == "mulaw8":
            return mu_law_encode(x).to(x.dtype) / 127.5 - 1
        return to_16_bits(x)

    def expand(self, u):
        """The inverse of `compress`."""
        if self.arch.output == "mulaw8":
            return mu_law_decode(((u + 1) * 127.5).round().long()).to(u.dtype)
        return u

    def condition(self, pitch):
        """pitch (N,) -> the different columns of the conditioning, in order (N, C, columns)."""
        columns = self.short_hold + self.before + 1
        on = self.skip_bias.new_zeros(columns + self.span)
        on[self.before:self.before + self.short_hold] = 1           # the note begins at `before`
        x = F.one_hot(pitch, self.arch.pitches)[:, :, None] * on    # (N, P, columns + span)
        for i, conv in enumerate(self.conditioning):
            y = F.relu(conv(x))                                     # shorter than x at both ends
            cut = (x.shape[2] - y.shape[2]) // 2
            x = y + x[..., cut:cut + y.shape[2]] if i else y
        return x

    def column(self, t):
        """Which of those columns is that of time t."""
        surplus = self.hold - self.short_hold
        t -= min(max(t - self.before, 0), surplus)
        return min(t, self.short_hold + self.before)

    def spread(self, columns, offset, L):
        """(N, C, columns) -> (N, C, L): times offset .. offset + L - 1 of the note."""
        pieces, surplus = [], self.hold - self.short_hold
        edges = (0, self.before, self.before + surplus, self.before + self.hold, offset + L)
        for start, stop in zip(edges, edges[1:]):                   # runs of one column, or of many
            start, stop = max(start, offset), min(stop, offset + L)
            if start < stop:
                run = columns[..., self.column(start):self.column(stop - 1) + 1]
                pieces.append(run.expand(-1, -1, stop - start))
        return torch.cat(pieces, dim=2)

    def forward(self, x, pitch, offset=0):
        """x (N, L) waves in [-1, 1], pitch (N,) labels -> (N, outputs, L) distribution parameters.

        Those at t depend on x before t only.  x is a crop that begins at `offset` in the note;
        what was before it counts as zero.
        """
        u = F.pad(self.compress(x)[:, None, :-1], (1, 0))           # (N, 1, L)  one sample late
        h, skip = causal(self.input, u), self.skip_bias[:, None]    # (N, C, L)
        conditioning = self.condition(pitch)
        for i, (dilated, to_gates) in enumerate(zip(self.dilated, self.to_gates)):
            gates = causal(dilated, h) + self.spread(to_gates(conditioning), offset, x.shape[1])
            a, b = gates.chunk(2, dim=1)
            y = torch.tanh(a) * torch.sigmoid(b)                    # (N, C, L)
            skip = skip + self.skip[i](y)                           # (N, S, L)
            if i < len(self.residual):
                h = h + self.residual[i](y)
        return self.head[1](F.relu(self.head[0](F.relu(skip))))     # (N, outputs, L)

    def draw(self, parameters, generator=None):
        """Distribution parameters (N, outputs) -> samples (N,), as `compress` gives them."""
        if self.arch.output == "mol16":
            return mol_sample(parameters, generator)
        return draw_index(parameters, generator) / 127.5 - 1


def causal(conv, x):
    """A convolution in time that sees the present and the past, of which zeros precede x."""
    return conv(F.pad(x, ((conv.kernel_size[0] - 1) * conv.dilation[0], 0)))


def wavenet_loss(net, x, pitch, offset=0):
    """Negative log likelihood of waves (N, L): (loss in nats a sample, terms in nats and bits).

    The first samples of a crop from within the note lack their past and do not count, up to half of
    the crop.
    """
    skip = min(offset, net.arch.receptive_field, x.shape[1] // 2)
    parameters, x = net(x, pitch, offset)[..., skip:], x[:, skip:]
    if net.arch.output == "mulaw8":
        nats = F.cross_entropy(parameters, mu_law_encode(x))
    else:
        nats = -mol_log_likelihood(parameters, x).mean()
    return nats, {"nats": nats, "bits": nats / math.log(2)}


# What a sample may be: one of 256 mu-law codes, or one of 65,536 values under a density


def mu_law_encode(x, codes=256):
    """Waves in [-1, 1] -> mu-law codes 0 .. codes - 1 (ITU-T G.711's curve): finer near zero."""
    mu = codes - 1
    y = x.sign() * torch.log1p(mu * x.abs().clamp(max=1)) / math.log1p(mu)      # [-1, 1]
    return ((y + 1) / 2 * mu + 0.5).floor().long()


def mu_law_decode(code, codes=256):
    """Mu-law codes -> waves in [-1, 1]."""
    mu = codes - 1
    y = 2 * code / mu - 1
    return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu


def to_16_bits(x):
    """Waves -> the nearest of the 65,536 values -1, ..., 1 - 2^-15 of 16-bit sound."""
    return (x * 32768).round().clamp(-32768, 32767) / 32768


def _mixture(parameters):
    """(N, 3 M, ...) -> logits, means and log scales, each (N, M, ...).  Scales from e^-14, far
    below a step of the 16-bit values, to e^14, far above their range: beyond, nothing changes."""
    logits, mean, log_scale = parameters.chunk(3, dim=1)
    return logits, mean, log_scale.clamp(-14, 14)


def mol_log_likelihood(parameters, x):
    """Discretised mixture of logistics (PixelCNN++, Salimans et al. 2017) on 16-bit values.

    parameters (N, 3 M, L), x (N, L) in [-1, 1] -> log probabilities (N, L) of x's 16-bit values.
    A value has the mass from half a step below to half a step above it; the least and the
    greatest have all that lies beyond, too.  With s the logistic function and a > b,
    s(a) - s(b) = s(a) s(-b) (1 - e^(b - a)), in whose logarithm nothing cancels, however far from
    the mean.
    """
    logits, mean, log_scale = _mixture(parameters)                  # (N, M, L) each
    x, half = to_16_bits(x)[:, None], 2.0 ** -16
    below = F.logsigmoid((x + half - mean) * torch.exp(-log_scale))           # log s(a)
    above = F.logsigmoid((mean - (x - half)) * torch.exp(-log_scale))         # log s(-b)
    width = torch.log(-torch.expm1(-2 * half * torch.exp(-log_scale)))
    least, greatest = x == -1, x == 1 - 2 * half
    inside = torch.where(least, below, torch.where(greatest, above, below + above + width))
    return torch.logsumexp(F.log_softmax(logits, dim=1) + inside, dim=1)


def mol_sample(parameters, generator=None):
    """parameters (N, 3 M) -> 16-bit values (N,): picks a logistic, then draws from it."""
    logits, mean, log_scale = _mixture(parameters)
    pick = draw_index(logits, generator)[:, None]
    u = _uniform(logits, generator)[:, 0].clamp(1e-7, 1 - 1e-7)
    x = mean.gather(1, pick)[:, 0] + log_scale.gather(1, pick)[:, 0].exp() * torch.logit(u)
    return to_16_bits(x)


def draw_index(logits, generator=None):
    """Logits (N, K) -> indices (N,), by the inverse of the cumulative distribution (one random
    number a note; torch.multinomial takes K and several times as long)."""
    cumulative = torch.softmax(logits, dim=1).cumsum(dim=1)
    index = torch.searchsorted(cumulative, _uniform(logits, generator), right=True)[:, 0]
    return index.clamp(max=logits.shape[1] - 1)                     # the sum may fall short of 1


def _uniform(like, generator):
    """One random number in [0, 1) for each row: (N, 1)."""
    return torch.rand(len(like), 1, generator=generator, device=like.device, dtype=like.dtype)


# Sampling: fast, with every layer's past at hand, and naive


@torch.no_grad()
def wavenet_generate(net, pitch, length=None, generator=None, show=None):
    """Notes from the first sample on: pitch (N,) labels -> waves (N, length) in [-1, 1].

    Every sample is a step of `CachedWaveNet`.  `show(done)` now and then, in samples.
    """
    cache = CachedWaveNet(net, pitch)
    return _generate(net, len(pitch), length, generator, show, lambda u, t: cache.step(u[:, t]))


@torch.no_grad()
def wavenet_generate_naive(net, pitch, length=None, generator=None, show=None):
    """The same notes by a whole forward pass over the receptive field for every sample."""
    def parameters(u, t):
        start = max(0, t - net.arch.receptive_field)
        return net(net.expand(u[:, start + 1:t + 2]), pitch, start)[..., -1]
    return _generate(net, len(pitch), length, generator, show, parameters)


def _generate(net, notes, length, generator, show, parameters):
    """u[:, t] is the sample before t: column 0 stands for the silence before the note."""
    length, device = length or net.arch.length, net.skip_bias.device
    if generator and generator.device != device:        # no copy from the CPU for every sample
        seed = int(torch.randint(2 ** 62, (), generator=generator, device=generator.device))
        generator = torch.Generator(device).manual_seed(seed)
    u = net.skip_bias.new_zeros(notes, length + 2)
    for t in range(length):
        u[:, t + 1] = net.draw(parameters(u, t), generator)
        if show and ((t + 1) % 256 == 0 or t + 1 == length):
            show(t + 1)
    return net.expand(u[:, 1:-1])


class CachedWaveNet:
    """WaveNet one sample at a time: each layer keeps what it needs of its past, so that a sample
    costs one column of the network instead of the whole receptive field.

    A layer is four operations, none of which allocates: gates, tanh, product, residual.  One tanh
    serves both halves of the gates, as sigmoid(b) = (1 + tanh(b / 2)) / 2: the halves are put into
    the weights.  All skips together are one more product.
    """

    @torch.no_grad()
    def __init__(self, net, pitch):
        arch, N = net.arch, len(pitch)
        C, depth, new = arch.channels, len(arch.dilations), net.skip_bias.new_empty
        halve = new(2 * C).fill_(1)
        halve[C:] = 0.5                                             # the sigmoid's half
        self.net, self.t, self.at = net, 0, None
        self.rings = [Ring(net.input.weight, 1, N)] + [
            Ring(conv.weight * halve[:, None, None], d, N)
            for conv, d in zip(net.dilated, arch.dilations)]
        self.columns = net.condition(pitch).permute(2, 0, 1).contiguous()       # (columns, N, C)
        self.to_gates = torch.cat([conv.weight[..., 0].t() * halve for conv in net.to_gates], 1)
        self.gate_bias = torch.cat([conv.bias * halve for conv in net.dilated])
        self.conditioned = new(N, depth * 2 * C)                    # every layer's, at this column
        self.conditioned_of = self.conditioned.split(2 * C, dim=1)
        self.gates = new(N, 2 * C)
        self.halves = self.gates.chunk(2, dim=1)
        self.y = new(N, depth * C)                                  # every layer's, for the skips
        self.y_of = self.y.split(C, dim=1)
        self.residual = [conv.weight[..., 0].t().contiguous() / 2 for conv in net.residual]
        self.skip = torch.cat([conv.weight[..., 0].t() for conv in net.skip]) / 2
        self.head = [(conv.bias, conv.weight[..., 0].t().contiguous()) for conv in net.head]

    @torch.no_grad()
    def step(self, u):
        """u (N,): the sample before, as `compress` gives it, at first 0 -> (N, outputs)."""
        t, column = self.t, self.net.column(self.t)
        if column != self.at:                                       # hardly ever
            torch.addmm(self.gate_bias, self.columns[column], self.to_gates, out=self.conditioned)
            self.at = column
        first, *layers = self.rings
        first.newest(t).copy_(u[:, None])
        h = torch.addmm(self.net.input.bias, first.past(t), first.turned(t),
                        out=layers[0].newest(t))                    # (N, C)
        for i, ring in enumerate(layers):
            torch.addmm(self.conditioned_of[i], ring.past(t), ring.turned(t), out=self.gates)
            self.gates.tanh_()
            torch.addcmul(self.halves[0], *self.halves, out=self.y_of[i])       # twice the product
            if i < len(self.residual):
                h = torch.addmm(h, self.y_of[i], self.residual[i], out=layers[i + 1].newest(t))
        self.t += 1
        x = torch.addmm(self.net.skip_bias, self.y, self.skip).relu_()
        x = torch.addmm(self.head[0][0], x, self.head[0][1]).relu_()
        return torch.addmm(self.head[1][0], x, self.head[1][1])


class Ring:
    """The past of one causal convolution, weight (outputs, inputs, f), and the weights to match.

    With dilation d the output at t needs the inputs at t, t - d, ..., t - (f - 1) d.  Row t mod d
    holds just those, side by side.  The newest takes the place of the oldest, so that their order
    turns round as time goes on, and the weights turn with it: f views of one matrix.
    """

    def __init__(self, weight, dilation, N):
        _, C, f = weight.shape
        ring = weight.new_zeros(dilation, N, f * C)
        matrix = weight.permute(2, 1, 0).flatten(0, 1)              # (f C, outputs)  oldest first
        matrix = torch.cat([matrix, matrix[:-C]])
        self.f, self.d, self.rows = f, dilation, list(ring)
        self.turns = [matrix[(f - 1 - r) * C:(2 * f - 1 - r) * C] for r in range(f)]
        self.places = [ring[t % dilation, :, t // dilation * C:(t // dilation + 1) * C]
                       for t in range(f * dilation)]

    def newest(self, t):
        """Where the input at t goes (N, C)."""
        return self.places[t % (self.f * self.d)]

    def past(self, t):
        """The f inputs that the output at t depends on (N, f C)."""
        return self.rows[t % self.d]

    def turned(self, t):
        """The weights in the order of `past` (f C, outputs)."""
        return self.turns[t // self.d % self.f]


# ---- Command line ---------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description="Print both networks, layer by layer (Table 3).")
    parser.add_argument("--waveform", action="store_true", help="the waveform GAN's instead")
    waveform = parser.parse_args().waveform
    rows = layer_table(Architecture.of_pictures(65536, 1) if waveform else Architecture())
    for net, title in (("G", "Generator"), ("D", "Discriminator")):
        own = [row for row in rows if row[0] == net]
        print(f"{title}, {sum(row[-1] for row in own):,} parameters")
        print(f"  {'layer':28}{'output (F, T, C)':20}{'kernel':14}{'then':24}{'parameters':>10}")
        for _, name, shape, kernel, after, count in own:
            print(f"  {name:28}{str(shape):20}{kernel:14}{after:24}{count or '':>10}")


if __name__ == "__main__":
    main()
