"""The shape VAE: points on a surface become a set of latent tokens, and those a field that is positive inside.

Size "dora" is the published Dora-VAE 1.1 (191.6 M parameters) under its own names, so that its checkpoint loads. The
other sizes are the same network, smaller, with what makes it learn from few shapes; each departure is an option.
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lib import weights

SMALLER = {"anchors": "fixed", "anchored": True, "qk_norm": True, "clip": 0.05}
SIZES = {
    "tiny": {
        **{"width": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": 3, "channels": 16, "frequencies": 6},
        **{"tokens": 32, **SMALLER},
    },
    "small": {
        **{"width": 384, "heads": 6, "encoder_layers": 4, "decoder_layers": 8, "channels": 32, "frequencies": 8},
        **{"tokens": 512, **SMALLER, "clip": 0.03},
    },
    "dora": {
        **{"width": 768, "heads": 12, "encoder_layers": 8, "decoder_layers": 16, "channels": 64, "frequencies": 8},
        **{"tokens": 2048, "anchors": "farthest", "anchored": False, "qk_norm": False, "clip": 0.015},
    },
}
MEANING = {
    "width": "of a token inside the network",
    "heads": "of attention",
    "encoder_layers": "of self-attention before the bottleneck",
    "decoder_layers": "of self-attention after it",
    "channels": "that a token has in the bottleneck",
    "frequencies": "of the Fourier features: 1, 2, 4 ...",
    "tokens": "that a shape usually becomes",
    "anchors": "where tokens look from: 'farthest' points of the shape (published), 'matched' = those in the order of "
    "fixed places, 'fixed' = the places themselves, an ordered set that is the same for every shape",
    "anchored": "after the bottleneck a token is told again where it looks from",
    "qk_norm": "queries and keys are normalised",
    "clip": "distance at which the field is cut off; it is given in this unit",
}
ANCHORS = ("farthest", "matched", "fixed")
CERTAIN = -30.0  # logvar of what is not uncertain, and the least there is


class Context(NamedTuple):
    """What a decoded shape is asked through: keys and values of its tokens, computed once for any number of queries."""

    keys: torch.Tensor  # (B, heads, T, width / heads)
    values: torch.Tensor  # (B, heads, T, width / heads)


def build(size: str, **options) -> "VAE":
    """A network with fresh weights. Options replace single numbers of the size."""
    if size not in SIZES:
        raise ValueError(f"size = {size!r}; wanted {' or '.join(map(repr, SIZES))}")
    if unknown := set(options) - set(MEANING):
        raise ValueError(f"the network has no option {sorted(unknown)[0]!r}; it has {', '.join(MEANING)}")
    return VAE({"size": size} | SIZES[size] | options)


class VAE(nn.Module):
    """The network. `config` is all that is needed to build it again."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = c = dict(config)
        if c["anchors"] not in ANCHORS:
            raise ValueError(f"anchors = {c['anchors']!r}; wanted {' or '.join(map(repr, ANCHORS))}")
        if c["width"] % c["heads"]:
            raise ValueError(f"width = {c['width']} cannot be shared by {c['heads']} heads; wanted a multiple")
        width, norm, embedded = c["width"], c["qk_norm"], 3 + 6 * c["frequencies"]
        self.encoder = nn.Module()
        self.encoder.input_proj = nn.Linear(embedded + 3, width)  # of points anywhere on the surface
        self.encoder.input_proj1 = nn.Linear(embedded + 3, width)  # of points on its sharp edges
        self.encoder.cross_attn = Cross(width, c["heads"], norm)
        self.encoder.cross_attn1 = Cross(width, c["heads"], norm)
        self.encoder.self_attn = Stack(c["encoder_layers"], width, c["heads"], norm)
        self.encoder.ln_post = nn.LayerNorm(width)
        self.pre_kl = nn.Linear(width, 2 * c["channels"])
        self.post_kl = nn.Linear(c["channels"], width)
        self.transformer = Stack(c["decoder_layers"], width, c["heads"], norm)
        self.decoder = nn.Module()
        self.decoder.query_proj = nn.Linear(embedded, width)
        self.decoder.cross_attn_decoder = Cross(width, c["heads"], norm)
        self.decoder.ln_post = nn.LayerNorm(width)
        self.decoder.output_proj = nn.Linear(width, 1)
        if c["anchors"] == "fixed":
            self.anchor_query = nn.Linear(embedded, width)  # a place as the first thought of its token
        if c["anchored"]:
            self.anchor_proj = nn.Linear(embedded, width)
        self.checkpointing = False  # forget what is inside the layers and compute it again backwards: less memory

    # -- shape to latents

    @property
    def channels(self) -> int:
        """Of a latent token, as it is stored: the bottleneck's, and its position where the shape decides that."""
        return self.config["channels"] + (3 if self.moving else 0)

    @property
    def moving(self) -> bool:
        return self.config["anchored"] and self.config["anchors"] != "fixed"

    @property
    def ordered(self) -> bool:
        """Is token 7 of one shape about the same thing as token 7 of another?"""
        return self.config["anchors"] != "farthest"

    def encode(
        self,
        coarse: torch.Tensor,  # (B, N, 6) points of the surface with normals
        sharp: torch.Tensor,  # (B, M, 6) points of its sharp edges with normals
        tokens: int = 0,  # of both branches together, 0 = as many as the size usually has
        seed: int = 0,  # of the first of the farthest points
        indices: tuple | None = None,  # the chosen points themselves, (B, tokens / 2) of coarse and of sharp
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and logvar of the latents, both (B, tokens, channels)."""
        tokens = tokens or self.config["tokens"]
        C = self.encoder.input_proj(self.embed(coarse))  # (B, N, width)
        S = self.encoder.input_proj1(self.embed(sharp))  # (B, M, width)
        if self.config["anchors"] == "fixed":
            anchors = places(tokens).to(coarse).expand(len(coarse), -1, -1)  # (B, T, 3)
            x = self.anchor_query(self.embed(anchors))  # (B, T, width)
        else:
            near, edge = indices or self.choose(coarse, sharp, tokens, seed)
            x = torch.cat([take(C, near), take(S, edge)], 1)  # (B, T, width)
            anchors = torch.cat([take(coarse, near), take(sharp, edge)], 1)[..., :3]  # (B, T, 3)
            if self.config["anchors"] == "matched":
                order = match(anchors)  # (B, T)
                x, anchors = take(x, order), take(anchors, order)
        x = self.encoder.cross_attn(x, C) + self.encoder.cross_attn1(x, S)  # the token itself counts twice
        x = self.encoder.ln_post(self.encoder.self_attn(x, self.checkpointing))
        mean, logvar = self.pre_kl(x).chunk(2, -1)  # (B, T, channels) each
        if self.moving:  # known for certain, and part of the latent, so that decoding needs nothing else
            mean = torch.cat([mean, anchors.to(mean)], -1)
            logvar = torch.cat([logvar, torch.full_like(anchors, CERTAIN, dtype=logvar.dtype)], -1)
        return mean, logvar.clamp(CERTAIN, 20)

    def choose(self, coarse: torch.Tensor, sharp: torch.Tensor, tokens: int, seed: int) -> tuple:
        """Half of the tokens from either set, as far from one another as can be."""
        if tokens % 2 or not 0 < tokens // 2 <= min(coarse.shape[1], sharp.shape[1]):
            raise ValueError(
                f"tokens = {tokens}; wanted an even number, at most twice the points: "
                f"{coarse.shape[1]} of the surface and {sharp.shape[1]} of sharp edges came"
            )
        return farthest(coarse[..., :3], tokens // 2, seed), farthest(sharp[..., :3], tokens // 2, seed)

    def embed(self, points: torch.Tensor) -> torch.Tensor:
        """Fourier features of the first three numbers, then the others (normals) as they are."""
        P = points[..., :3]  # (..., 3)
        angles = P[..., None] * 2.0 ** torch.arange(self.config["frequencies"], device=P.device)  # (..., 3, k), no pi
        waves = angles.flatten(-2)  # all of x, all of y, all of z
        return torch.cat([P, waves.sin(), waves.cos(), points[..., 3:]], -1)

    # -- latents to field

    def decode(self, z: torch.Tensor) -> Context:
        """Latents (B, T, channels) as what `query` asks."""
        if z.shape[-1] != self.channels:
            raise ValueError(f"latents of {z.shape[-1]} channels came; this VAE's have {self.channels}")
        x = self.post_kl(z[..., : self.config["channels"]])  # (B, T, width)
        if self.config["anchored"]:
            anchors = z[..., -3:] if self.moving else places(z.shape[1]).to(z)  # (B, T, 3) or (T, 3)
            x = x + self.anchor_proj(self.embed(anchors))
        x = self.transformer(x, self.checkpointing)
        return Context(*self.decoder.cross_attn_decoder.remember(x))

    def query(self, context: Context, X: torch.Tensor) -> torch.Tensor:
        """The field (B, N) at points (B, N, 3), positive inside, in units of config["clip"]; not cut off."""
        x = self.decoder.query_proj(self.embed(X))  # (B, N, width)
        x = self.decoder.cross_attn_decoder.ask(x, *context)
        return self.decoder.output_proj(self.decoder.ln_post(x))[..., 0]

    def kl(self, mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        """Of the posterior to a standard normal, the mean over tokens and channels; positions are not the network's."""
        mean, logvar = mean[..., : self.config["channels"]], logvar[..., : self.config["channels"]]
        return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


def sample(mean: torch.Tensor, logvar: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Latents drawn from the posterior."""
    noise = torch.randn(mean.shape, generator=generator, device=generator.device if generator else mean.device)
    return mean + noise.to(mean) * (0.5 * logvar).exp()


# -- blocks -----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Its linears, for itself (c_qkv) or for other data (c_q, c_kv). What a linear gives is packed head by head."""

    def __init__(self, width: int, heads: int, norm: bool, cross: bool):
        super().__init__()
        self.heads = heads
        if cross:
            self.c_q = linear(width, width, bias=False)
            self.c_kv = linear(width, 2 * width, bias=False)
        else:
            self.c_qkv = linear(width, 3 * width, bias=False)
        self.c_proj = linear(width, width)
        if norm:
            self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.norm = norm

    def split(self, packed: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """(B, N, parts * width) as that many (B, heads, N, width / heads)."""
        B, N, wide = packed.shape
        return packed.view(B, N, self.heads, wide // self.heads).transpose(1, 2).chunk(parts, -1)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        x = functional.scaled_dot_product_attention(q, k, v)  # (B, heads, N, width / heads)
        return self.c_proj(x.transpose(1, 2).flatten(2))  # (B, N, width)


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc, self.c_proj = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(functional.gelu(self.c_fc(x)))  # the exact GELU; tanh's shows in the fourth digit


class Block(nn.Module):
    """Tokens attend to one another."""

    def __init__(self, width: int, heads: int, norm: bool):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads, norm, cross=False), MLP(width)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attn.split(self.attn.c_qkv(self.ln_1(x)), 3)
        if self.attn.norm:
            q, k = self.attn.q_norm(q), self.attn.k_norm(k)
        x = x + self.attn.attend(q, k, v)
        return x + self.mlp(self.ln_2(x))


class Cross(nn.Module):
    """Queries attend to data."""

    def __init__(self, width: int, heads: int, norm: bool):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads, norm, cross=True), MLP(width)
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(width) for _ in range(3))  # of query, data, before the MLP

    def forward(self, x: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        return self.ask(x, *self.remember(data))

    def remember(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.attn.split(self.attn.c_kv(self.ln_2(data)), 2)
        return (self.attn.k_norm(k) if self.attn.norm else k), v

    def ask(self, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        (q,) = self.attn.split(self.attn.c_q(self.ln_1(x)), 1)
        x = x + self.attn.attend(self.attn.q_norm(q) if self.attn.norm else q, k, v)
        return x + self.mlp(self.ln_3(x))


class Stack(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, norm: bool):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, norm) for _ in range(layers))

    def forward(self, x: torch.Tensor, forget: bool = False) -> torch.Tensor:
        for block in self.resblocks:
            again = forget and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """As attention and MLP have them; what stands outside of blocks keeps torch's own beginning."""
    layer = nn.Linear(inputs, outputs, bias)
    width = min(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.25 / math.sqrt(width))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


# -- where tokens look from -------------------------------------------------------------------------------------------


def take(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows of (B, N, k) at indices (B, T)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


@torch.no_grad()
def farthest(points: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Indices (B, count) of points (B, N, 3): each the farthest from all before it, the first by the seed.

    What is chosen from a cloud depends on it and the seed alone, not on its neighbours in the batch.
    """
    B, N, _ = points.shape
    P = points.float().transpose(1, 2).contiguous()  # (B, 3, N): sums over three of a row are slow
    first = int(torch.randint(N, (), generator=torch.Generator().manual_seed(seed)))
    chosen = torch.full((B, count), first, dtype=torch.long, device=P.device)
    nearest = torch.full((B, N), torch.inf, device=P.device)  # squared distance to the closest of the chosen
    apart = torch.empty_like(P)
    for k in range(1, count):
        last = P.gather(2, chosen[:, None, k - 1 : k].expand(-1, 3, -1))  # (B, 3, 1)
        torch.sub(P, last, out=apart).square_()
        torch.minimum(nearest, apart[:, 0].add_(apart[:, 1]).add_(apart[:, 2]), out=nearest)
        chosen[:, k] = nearest.argmax(1)
    return chosen


def places(count: int) -> torch.Tensor:
    """The first places (count, 3) of a sequence that fills the box evenly however many are taken (Roberts' R3)."""
    root = 1.2207440846057596  # of x^4 = x + 1
    steps = np.arange(1, count + 1)[:, None] / root ** np.arange(1, 4)  # (count, 3)
    return torch.tensor(((steps + 0.5) % 1 * 2 - 1) * 0.95, dtype=torch.float32)


def match(anchors: torch.Tensor) -> torch.Tensor:
    """The order (B, T) in which anchors (B, T, 3) lie nearest to the fixed places, in squares over all of a shape."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(places(anchors.shape[1]).to(anchors).expand_as(anchors), anchors).square()
    order = [linear_sum_assignment(matrix)[1] for matrix in cost.cpu().numpy()]
    return torch.tensor(np.stack(order), device=anchors.device)


# -- weights ----------------------------------------------------------------------------------------------------------

PREFIX = "shape_model."  # of the published checkpoint's names
OTHERS_NAMES = {"input_proj_sharp": "input_proj1", "cross_attn_sharp": "cross_attn1"}  # another repo's copy of them


def save(vae: VAE, folder: str | Path) -> None:
    """model.safetensors and config.json: what `load` takes."""
    weights.write(folder, vae.state_dict(), vae.config)


def load(where: str | Path, device: str = "cpu", strangers: bool = False) -> VAE:
    """A VAE from a folder that `save` wrote, from a checkpoint of size "dora", or from a hub id of either.

    With strangers, classes that a checkpoint names besides its tensors are replaced by empty ones instead of refused.
    """
    state, config = weights.read(where, strangers)
    state = {rename(name): tensor.float() for name, tensor in state.items() if ours(name, state)}
    config = config or {"size": "dora"} | SIZES["dora"]
    if missing := {"size", *MEANING} - config.keys():
        raise ValueError(f"{where}: its config.json is not one of a shape VAE; it lacks {', '.join(sorted(missing))}")
    with torch.device("meta"):
        vae = VAE(config)
    weights.compare(where, state, {name: tensor.shape for name, tensor in vae.state_dict().items()})
    vae.load_state_dict(state, assign=True)
    return vae.to(device).eval().requires_grad_(False)


def ours(name: str, state: dict) -> bool:
    """Some checkpoints hold more than the network; then the prefix says what is the network's."""
    return name.startswith(PREFIX) or not any(other.startswith(PREFIX) for other in state)


def rename(name: str) -> str:
    parts = name.removeprefix(PREFIX).split(".")
    return ".".join(OTHERS_NAMES.get(part, part) for part in parts)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m lib.vae CHECKPOINT FOLDER    (a published checkpoint as safetensors)")
    save(load(sys.argv[1]), sys.argv[2])
