"""From latents to the mesh they stand for: the same way for what is encoded, learned, generated and scored."""

import numpy as np
import torch

from lib import memory
from lib.decode import Watch, decode
from lib.vae import VAE


def half(device):
    """bfloat16 on a GPU; on CPUs it is slower."""
    return torch.autocast("cuda", torch.bfloat16, enabled=str(device).startswith("cuda"))


def field(model: VAE, z: np.ndarray | torch.Tensor):
    """The field of latents (T, C) as `decode` asks it: their keys and values are computed once."""
    device = next(model.parameters()).device
    with torch.inference_mode(), half(device):
        context = model.decode(torch.as_tensor(z, dtype=torch.float32, device=device)[None])

    def query(X: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), half(device):
            return model.query(context, X[None])[0].float()

    return query


def surface(
    model: VAE, z: np.ndarray | torch.Tensor, depth: int, exact: bool = False
) -> tuple[np.ndarray, np.ndarray, dict]:
    """The mesh of latents (T, C) at an octree depth, in the frame of 01: V (n, 3), F (m, 3), and what it all took."""
    device = next(model.parameters()).device
    watch = Watch(device)
    query = field(model, z)
    watch("context")
    peaks = memory.peaks(device)
    V, F, facts = decode(query, depth, exact=exact, clip=model.config["clip"], device=device)
    facts |= watch.seconds | {name: max(peak, facts[name]) for name, peak in peaks.items()}
    return V.cpu().numpy(), F.cpu().numpy(), facts
