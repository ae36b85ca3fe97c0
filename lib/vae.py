"""The shape VAE: points on a surface become a set of latent tokens, and those a field that is positive inside.

Size "dora" is the published Dora-VAE 1.1 (191.6 M parameters) under its own names, so that its checkpoint loads. The
other sizes are the same network, smaller, with what makes it learn from few shapes; each departure is an option.
"""

import argparse
import contextlib
import copy
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from lib import weights
from lib.anchors import farthest, match, nearest, places, take

SMALLER = {"anchored": True, "qk_norm": True, "clip": 0.05, "local": 0.0}
SIZES = {
    "tiny": {
        **{"width": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": 3, "channels": 16, "frequencies": 6},
        **{"tokens": 96, **SMALLER, "anchors": "fixed", "local": 30.0},
    },
    "small": {
        **{"width": 384, "heads": 6, "encoder_layers": 4, "decoder_layers": 8, "channels": 32, "frequencies": 8},
        **{"tokens": 512, **SMALLER, "anchors": "fixed", "clip": 0.03},
    },
    "dora": {
        **{"width": 768, "heads": 12, "encoder_layers": 8, "decoder_layers": 16, "channels": 64, "frequencies": 8},
        **{"tokens": 2048, "anchors": "farthest", "anchored": False, "qk_norm": False, "clip": 0.015},
        **{"local": 0.0},
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
    "anchors": "where tokens look from: 'farthest' points of the shape (published); 'matched', those in the order of "
    "fixed places (a second a shape at 2048 tokens); 'nearest', what is nearest to each place; or 'fixed', the places "
    "themselves, the same for every shape, of which many lie far from its surface. The last two are easy to generate",
    "anchored": "after the bottleneck a token is told again where it looks from",
    "qk_norm": "queries and keys are normalised",
    "local": "how fast attention falls with the square of a distance, in the last head, which sees least far; the "
    "first sees ten times as far; 0: no distance counts",
    "clip": "distance at which the field is cut off; it is given in this unit",
}
ANCHORS = ("farthest", "matched", "nearest", "fixed")
MOST = 1 << 17  # of any count in a config: a slip must not ask for the whole memory
CERTAIN = -30.0  # logvar of what is not uncertain, and the least there is


class Context(NamedTuple):
    """What a decoded shape is asked through: keys and values of its tokens, computed once for any number of queries."""

    keys: torch.Tensor  # (B, heads, T, width / heads)
    values: torch.Tensor  # (B, heads, T, width / heads)
    anchors: torch.Tensor | None  # (B, T, 3) where the tokens look from, as far as that is known


def build(size: str, **options) -> "VAE":
    """A network with fresh weights. Options replace single numbers of the size."""
    if size not in SIZES:
        raise ValueError(f"size = {size!r}; wanted {' or '.join(map(repr, SIZES))}")
    if unknown := set(options) - set(MEANING):
        raise ValueError(f"the network has no option {sorted(unknown)[0]!r}; it has {', '.join(MEANING)}")
    return VAE({"size": size} | SIZES[size] | options)


def check(c: dict) -> None:
    """What a person or a config.json asks for is a network that can be."""
    if c["anchors"] not in ANCHORS:
        raise ValueError(f"anchors = {c['anchors']!r}; wanted {' or '.join(map(repr, ANCHORS))}")
    for name in ("anchored", "qk_norm"):
        if not isinstance(c[name], bool):
            raise ValueError(f"{name} = {c[name]!r}; wanted true or false")
    for name in ("width", "heads", "encoder_layers", "decoder_layers", "channels", "frequencies", "tokens"):
        least = 0 if "layers" in name or name == "frequencies" else 1
        if type(c[name]) is not int or not least <= c[name] < MOST:
            raise ValueError(f"{name} = {c[name]!r}; wanted a whole number from {least} to {MOST - 1:,}")
    if not isinstance(c["local"], int | float) or not 0 <= c["local"] < math.inf:
        raise ValueError(f"local = {c['local']!r}; wanted a number from 0")
    if c["local"] and not c["anchored"]:
        raise ValueError(f"local = {c['local']!r} needs anchored = true: what decodes must know where tokens look from")
    if not isinstance(c["clip"], int | float) or not 0 < c["clip"] < math.inf:
        raise ValueError(f"clip = {c['clip']!r}; wanted a distance above 0")
    if c["width"] % c["heads"]:
        raise ValueError(f"width = {c['width']} cannot be shared by {c['heads']} heads; wanted a multiple")


class VAE(nn.Module):
    """The network. `config` is all that is needed to build it again."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = c = dict(config)
        check(c)
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
        self.checkpointing = False  # True: less memory, more work, the same gradients

    # -- shape to latents

    @property
    def channels(self) -> int:
        """Of a latent token, as it is stored: the bottleneck's, and its position where the shape decides that."""
        return self.config["channels"] + (3 if self.moving else 0)

    @property
    def moving(self) -> bool:
        return self.config["anchored"] and self.config["anchors"] != "fixed"

    def look_from(self, anchors: str) -> "VAE":
        """The same network, whose tokens look from elsewhere than in training: the set may so get an order."""
        kinds = [kind for kind in ANCHORS if (kind == "fixed") == (self.config["anchors"] == "fixed")]
        if anchors not in kinds:
            wanted = f"a VAE that learned {self.config['anchors']!r} ones takes {' or '.join(map(repr, kinds))}"
            raise ValueError(f"anchors = {anchors!r}; {wanted}")
        other = copy.copy(self)  # with the same weights
        other.config = self.config | {"anchors": anchors}
        return other

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
        for name, points in (("coarse", coarse), ("sharp", sharp)):
            if points.ndim != 3 or points.shape[-1] != 6 or not points.shape[1]:
                raise ValueError(
                    f"{name} is {tuple(points.shape)}; wanted (shapes, points, 6), a position and a normal each, and "
                    "one point at least; a shape without sharp edges takes points of its surface there too"
                )
        tokens = tokens or self.config["tokens"]
        C = exact(self.encoder.input_proj, self.embed(coarse))  # (B, N, width)
        S = exact(self.encoder.input_proj1, self.embed(sharp))  # (B, M, width)
        if self.config["anchors"] == "fixed":
            anchors = places(tokens).to(coarse).expand(len(coarse), -1, -1)  # (B, T, 3)
            x = exact(self.anchor_query, self.embed(anchors))  # (B, T, width)
        else:
            of_coarse, of_sharp = indices or self.choose(coarse, sharp, tokens, seed)
            x = torch.cat([take(C, of_coarse), take(S, of_sharp)], 1)  # (B, T, width)
            anchors = torch.cat([take(coarse, of_coarse), take(sharp, of_sharp)], 1)[..., :3]  # (B, T, 3)
            if self.config["anchors"] == "matched":
                order = match(anchors)  # (B, T)
                x, anchors = take(x, order), take(anchors, order)
        near = self.through(self.encoder.cross_attn, x, C, self.nearness(anchors, coarse))
        # the token itself counts twice
        x = near + self.through(self.encoder.cross_attn1, x, S, self.nearness(anchors, sharp))
        nearness = self.nearness(anchors, anchors)
        for block in self.encoder.self_attn.resblocks:
            x = self.through(block, x, nearness)
        mean, logvar = exact(self.pre_kl, self.encoder.ln_post(x)).chunk(2, -1)  # (B, T, channels) each
        if self.moving:  # known for certain, and part of the latent, so that decoding needs nothing else
            mean = torch.cat([mean, anchors], -1)
            logvar = torch.cat([logvar, torch.full_like(anchors, CERTAIN)], -1)
        return mean, logvar.clamp(CERTAIN, 20)

    def choose(self, coarse: torch.Tensor, sharp: torch.Tensor, tokens: int, seed: int) -> tuple:
        """Half of the tokens from either set, as far from one another as can be."""
        if tokens % 2 or not 0 < tokens // 2 <= min(coarse.shape[1], sharp.shape[1]):
            raise ValueError(
                f"tokens = {tokens}; wanted an even number, at most twice the points: "
                f"{coarse.shape[1]} of the surface and {sharp.shape[1]} of sharp edges came"
            )
        if self.config["anchors"] == "nearest":
            return tuple(map(nearest, places(tokens).chunk(2), (coarse[..., :3], sharp[..., :3])))
        if coarse.shape == sharp.shape:  # a GPU looks for both in the time it takes for one
            return farthest(torch.cat([coarse, sharp])[..., :3], tokens // 2, seed).chunk(2)
        return farthest(coarse[..., :3], tokens // 2, seed), farthest(sharp[..., :3], tokens // 2, seed)

    def embed(self, points: torch.Tensor) -> torch.Tensor:
        """Fourier features of the first three numbers, then the others (normals) as they are."""
        points = points.to(torch.promote_types(points.dtype, torch.float32))  # half knows no angle of 128 radians
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
        nearness, anchors = None, None
        if self.config["anchored"]:
            anchors = z[..., -3:] if self.moving else places(z.shape[1]).to(z).expand(len(z), -1, -1)  # (B, T, 3)
            x = x + exact(self.anchor_proj, self.embed(anchors))
            nearness = self.nearness(anchors, anchors)
        for block in self.transformer.resblocks:
            x = self.through(block, x, nearness)
        return Context(*self.decoder.cross_attn_decoder.remember(x), anchors)

    def nearness(self, X: torch.Tensor, anchors: torch.Tensor | None) -> torch.Tensor | None:
        """What attention of X (B, N, 3 or more) to anchors (B, T, 3 or more) loses by distance: (B, heads, N, T)."""
        if not self.config["local"]:
            return None
        with torch.no_grad():  # places are given; and flash attention would fall back to a slow one for a gradient here
            X, anchors = (P[..., :3].to(torch.promote_types(P.dtype, torch.float32)) for P in (X, anchors))
            rates = self.config["local"] * torch.logspace(0, -2, self.config["heads"]).flip(0).to(X)
            return torch.cdist(X, anchors).square()[:, None] * -rates[:, None, None]

    def query(self, context: Context, X: torch.Tensor) -> torch.Tensor:
        """The field (B, N) at points (B, N, 3), positive inside, in units of config["clip"]; not cut off."""
        x = exact(self.decoder.query_proj, self.embed(X))  # (B, N, width)
        with any_length(x):
            nearness = self.nearness(X, context.anchors)
            x = self.through(self.decoder.cross_attn_decoder.ask, x, context.keys, context.values, nearness)
        return exact(self.decoder.output_proj, self.decoder.ln_post(x))[..., 0]

    def through(self, block, *x: torch.Tensor) -> torch.Tensor:
        """What a block makes of x; what is inside it is forgotten, if so wished, and computed again on the way back."""
        again = self.checkpointing and torch.is_grad_enabled()
        return checkpoint(block, *x, use_reentrant=False) if again else block(*x)

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

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        bias = bias if bias is None else bias.to(q.dtype)
        x = functional.scaled_dot_product_attention(q, k, v, bias)  # (B, heads, N, width / heads)
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

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = self.attn.split(self.attn.c_qkv(self.ln_1(x)), 3)
        if self.attn.norm:
            q, k = self.attn.q_norm(q), self.attn.k_norm(k)
        x = x + self.attn.attend(q, k, v, bias)
        return x + self.mlp(self.ln_2(x))


class Cross(nn.Module):
    """Queries attend to data."""

    def __init__(self, width: int, heads: int, norm: bool):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads, norm, cross=True), MLP(width)
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(width) for _ in range(3))  # of query, data, before the MLP

    def forward(self, x: torch.Tensor, data: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.ask(x, *self.remember(data), bias)

    def remember(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.attn.split(self.attn.c_kv(self.ln_2(data)), 2)
        return (self.attn.k_norm(k) if self.attn.norm else k), v

    def ask(self, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        (q,) = self.attn.split(self.attn.c_q(self.ln_1(x)), 1)
        x = x + self.attn.attend(self.attn.q_norm(q) if self.attn.norm else q, k, v, bias)
        return x + self.mlp(self.ln_3(x))


class Stack(nn.Module):
    """Only a name: the published tensors lie under `resblocks`."""

    def __init__(self, layers: int, width: int, heads: int, norm: bool):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, norm) for _ in range(layers))


def exact(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """A layer in its own precision, under autocast too: bf16 knows a coordinate to 0.004, a quarter of the clip."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(layer.weight.dtype))


def any_length(x: torch.Tensor):
    """Attention that takes queries as many as come: cuDNN's would be planned anew for each number, and decoding asks
    in many. Training asks in one, for which cuDNN's is the faster."""
    if torch.is_grad_enabled() or not x.is_cuda:
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """As attention and MLP have them; what stands outside of blocks keeps torch's own beginning."""
    layer = nn.Linear(inputs, outputs, bias)
    width = min(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.25 / math.sqrt(width))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


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
    config = {"local": 0.0} | (config or {"size": "dora"} | SIZES["dora"])  # those of before had not that option
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


def main(words: list[str] | None = None) -> None:
    """`python -m lib.vae CHECKPOINT FOLDER`"""
    parser = argparse.ArgumentParser(description="Write a published checkpoint as a folder of safetensors and config.")
    parser.add_argument("checkpoint", help="a path, or an id on the hub")
    parser.add_argument("folder", help="where model.safetensors and config.json go")
    parser.add_argument("--strangers", action="store_true", help="empty classes stand in for those that it names")
    asked = parser.parse_args(words)
    try:
        save(load(asked.checkpoint, strangers=asked.strangers), asked.folder)
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
