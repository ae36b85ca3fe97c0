"""The diffusion transformer: noisy latent tokens and patch features of a picture in, the velocity of each token out."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib import flow, weights


class Size(NamedTuple):
    width: int
    depth: int
    heads: int


SIZES = {  # tiny is for a CPU and minutes; the others are the sizes of the DiT paper
    "tiny": Size(96, 4, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "XL": Size(1152, 28, 16),
}
FREQUENCIES = 128  # of the time's code
GLANCE = (8, 16)  # a picture at one glance: fields a side, numbers a field


class DiT(nn.Module):
    """Velocity of noisy tokens (B, T, C) at times (B,), given patch features (B, P, F) of the views that are kept."""

    def __init__(
        self,
        size: str,
        tokens: int,  # the most a shape has
        channels: int,  # numbers a token
        features: int,  # numbers a patch
        ordered: bool,  # does a token's place in the row mean something? If not, it must not be told
        branches: int = 1,  # equal parts of the row that are of different kinds: coarse and sharp
    ):
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size = {size!r}; wanted one of {', '.join(SIZES)}")
        if tokens % branches:
            raise ValueError(f"{tokens} tokens cannot be {branches} equal branches")
        width, depth, heads = SIZES[size]
        self.config = {"size": size, "tokens": tokens, "channels": channels, "features": features}
        self.config |= {"ordered": ordered, "branches": branches}
        self.checkpointing = False
        self.token_in = nn.Linear(channels, width)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width)) if ordered else None
        self.branch = nn.Parameter(0.02 * torch.randn(branches, width)) if branches > 1 else None
        self.time_in = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.patch_in = nn.Linear(features, width)
        self.patch_norm = nn.LayerNorm(width)
        self.glance_in = nn.Linear(width, GLANCE[1])
        self.mlp_glance = nn.Sequential(
            nn.Linear(GLANCE[0] ** 2 * GLANCE[1], 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.empty = nn.Parameter(0.02 * torch.randn(1, 1, width))  # what stands for a condition that is not there
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))  # shared, as in PixArt
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.last_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.last = nn.Linear(width, channels)
        for name, value in (("mean", 0.0), ("std", 1.0)):  # of latents and features, over the train split
            self.register_buffer(f"latent_{name}", torch.full((channels,), value))
            self.register_buffer(f"feature_{name}", torch.full((features,), value))
        self.start()

    def start(self) -> None:
        """Each block starts as nothing at all, and so does the whole (adaLN-zero, Peebles and Xie 2023)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nothing = [self.modulation[1], self.last_modulation[1], self.last, *(b.attn_cross.out for b in self.blocks)]
        for linear in nothing:
            nn.init.zeros_(linear.weight)

    def forward(self, x: Tensor, t: Tensor, features: Tensor, keep: Tensor | None = None) -> Tensor:
        n = x.shape[1]
        if n > self.config["tokens"] or n % self.config["branches"]:
            raise ValueError(f"{n} tokens came to a network for {self.config['tokens']}")
        context, whole = self.condition(features, keep)  # (B, P, W), (B, W)
        time = self.time_in(fourier(t)) + whole  # (B, W)
        c = self.modulation(time).view(len(x), 6, -1)  # (B, 6, W)
        x = self.token_in(x)  # (B, T, W), and on a GPU half precision from here to the end
        if self.place is not None:
            x = x + self.place[:n].to(x.dtype)
        if self.branch is not None:
            x = x + self.branch.repeat_interleave(n // len(self.branch), 0).to(x.dtype)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, c, context, use_reentrant=False)
            else:
                x = block(x, c, context)
        shift, scale = self.last_modulation(time).unsqueeze(1).chunk(2, -1)
        return self.last(modulated(x, shift, scale))  # (B, T, C)

    def condition(self, features: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the blocks look at, and what it is on the whole; the learned empty one where it is not kept.

        Features are (B, P, F) of one view, or (B, V, P, F) of several, whose patches stand in one row.
        """
        x = (features.float() - self.feature_mean) / self.feature_std
        x = self.patch_norm(self.patch_in(x) + self.grid(x.shape[-2]))  # (B, P, W) or (B, V, P, W)
        whole = self.glance(x.view(len(x), -1, *x.shape[-2:]))  # (B, W)
        x = x.flatten(1, -2)  # (B, P, W)
        if keep is not None:
            x = torch.where(keep.view(-1, 1, 1), x, self.empty.to(x.dtype))
            whole = torch.where(keep.view(-1, 1), whole, self.empty[0].to(whole.dtype))
        return x, whole

    def glance(self, x: Tensor) -> Tensor:
        """Each view (B, V, P, W) as a whole, what lies where in it, and the mean of the views: (B, W).

        Attention learns late where to look; until then a mean of patches, which tells no places, would be all there is.
        """
        side = math.isqrt(x.shape[2])
        fields = self.glance_in(x).flatten(0, 1).unflatten(1, (side, side)).movedim(-1, 1)  # (B x V, 16, side, side)
        if side != GLANCE[0]:
            fields = nnf.interpolate(fields, GLANCE[:1] * 2, mode="area")
        return self.mlp_glance(fields.flatten(1)).unflatten(0, x.shape[:2]).mean(1)

    def grid(self, patches: int) -> Tensor:
        """Where in its picture each patch lies, as sines and cosines: DINOv2 says so only faintly."""
        side, weight = math.isqrt(patches), self.patch_norm.weight
        if side * side != patches:
            raise ValueError(f"{patches} patches came, which are no square picture's")
        at = (torch.arange(side, device=weight.device) + 0.5) / side
        rates = math.pi * 2 ** torch.linspace(0, 4, len(weight) // 4, device=weight.device)
        codes = torch.cat([torch.sin(at[:, None] * rates), torch.cos(at[:, None] * rates)], 1)  # (side, W / 2)
        return torch.cat([codes.repeat_interleave(side, 0), codes.repeat(side, 1)], 1)  # (P, W)

    def normalise(self, latents: Tensor) -> Tensor:
        return (latents - self.latent_mean) / self.latent_std

    def denormalise(self, x: Tensor) -> Tensor:
        return x * self.latent_std + self.latent_mean


class Block(nn.Module):
    """Attention among tokens, attention to the picture, and an MLP; the first and last shifted, scaled and gated."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn_self = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.attn_cross = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.table = nn.Parameter(torch.zeros(6, width))  # what this block adds to the shared modulation

    def forward(self, x: Tensor, c: Tensor, context: Tensor) -> Tensor:
        c = (c + self.table).to(x.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = c.unsqueeze(2).unbind(1)  # each (B, 1, W)
        y = modulated(x, shift1, scale1)
        x = x + gate1 * self.attn_self(y, y)
        x = x + self.attn_cross(self.cross_norm(x), context)
        return x + gate2 * self.mlp(modulated(x, shift2, scale2))


class Attention(nn.Module):
    """Attention of x to a context, with normalised queries and keys, which keeps large models from diverging."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, W / H)
            for y in (
                together(x, self.q, self.k, self.v) if x is context else (self.q(x), *together(context, self.k, self.v))
            )
        )
        q, k = normed(self.q_norm, q), normed(self.k_norm, k)
        return self.out(nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # (B, T, W)


def together(x: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    """Several linears of one x as one product, which is faster than several small ones."""
    weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
    return nnf.linear(x, weight, bias).chunk(len(linears), -1)


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """In the precision of x: the fast kernel wants the weight in it too."""
    return nnf.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return nnf.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def fourier(t: Tensor) -> Tensor:
    """Times in [0, 1] as cosines and sines of falling frequency: (B, 2 x FREQUENCIES)."""
    rates = 1000 * torch.exp(-math.log(10_000) * torch.arange(FREQUENCIES, device=t.device) / FREQUENCIES)
    angles = t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


# -- sampling ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(
    model: DiT,
    features: Tensor,  # (B, P, F), or (B, V, P, F)
    tokens: int,
    steps: int = 25,
    guidance: float = 2.0,
    seed: int = 0,
    sampler: str = "euler",
    shift: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),  # of times that are guided
) -> Tensor:
    """Latents (B, T, C) of shapes that fit the features; the same from the same seed, whatever the batch."""
    if sampler not in flow.SAMPLERS:
        raise ValueError(f"sampler = {sampler!r}; wanted one of {', '.join(flow.SAMPLERS)}")
    device = model.last.weight.device
    shape = (tokens, model.config["channels"])
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + k)) for k in range(len(features))]
    features = features.to(device)

    def velocity(x: Tensor, t: Tensor, keep: Tensor) -> Tensor:
        seen = features if len(x) == len(features) else torch.cat([features, features])
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            return model(x, t, seen, keep).float()

    way = flow.schedule(steps, shift)
    return model.denormalise(
        flow.SAMPLERS[sampler](flow.guided(velocity, guidance, interval), torch.stack(noise).to(device), way)
    )


# -- what it costs ----------------------------------------------------------------------------------------------------


def flops(model: DiT, tokens: int, patches: int) -> int:
    """Floating-point operations of one sample's forward pass, in products of matrices."""
    (width, depth, _), config = SIZES[model.config["size"]], model.config
    T, P, W = tokens, patches, width
    once = T * config["channels"] * W * 2 + P * config["features"] * W  # in and out; patches
    once += P * W * GLANCE[1] + 2 * W * (GLANCE[0] ** 2 * GLANCE[1] + W)  # the glance
    once += W * (2 * FREQUENCIES + W + 6 * W + 2 * W)  # time, modulations
    linear = T * W * W * (4 + 2 + 8) + P * W * W * 2  # self, cross, MLP; keys and values of patches
    attention = 2 * T * T * W + 2 * T * P * W
    return 2 * (once + depth * (linear + attention))


# -- files ------------------------------------------------------------------------------------------------------------


def save(folder: str | Path, model: DiT, about: dict) -> None:
    """model.safetensors and config.json: everything needed to rebuild the network and to use it."""
    weights.write(folder, model.state_dict(), {"network": model.config} | about)


def load(folder: str | Path, device: str = "cpu") -> tuple[DiT, dict]:
    """The network that a run of 06 left in its folder, and what is written about it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder).expanduser()
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "network" not in about:
            raise ValueError("its config.json is another network's")
        model = DiT(**about["network"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        wanted = "wanted the folder <run>/06_train_dit of a run that has ended, with model.safetensors and config.json"
        raise ValueError(f"{folder} holds no diffusion transformer ({error}); {wanted}.") from None
    return model.to(device).eval(), about


def adopt(model: DiT, earlier: DiT) -> None:
    """Begin with an earlier network's weights, also one of fewer tokens: a curriculum goes on, it does not start anew.

    The statistics stay those of the data at hand.
    """
    mine, theirs = model.config, earlier.config
    different = [name for name in mine if mine[name] != theirs[name] and name != "tokens"]
    if different:
        told = "; ".join(f"{name} {theirs[name]!r} there, {mine[name]!r} here" for name in different)
        raise ValueError(f"the network to start from differs in more than its tokens: {told}")
    state, here = earlier.state_dict(), model.state_dict()
    state |= {name: value for name, value in here.items() if name.startswith(("latent_", "feature_"))}
    if mine["ordered"]:
        n = min(len(here["place"]), len(state["place"]))
        state["place"] = torch.cat([state["place"][:n], here["place"][n:]])
    model.load_state_dict(state)
