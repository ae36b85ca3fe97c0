"""Where the tokens of a shape look from: points of it far from one another, or places that are the same for all."""

import functools
from collections.abc import Callable

import numpy as np
import torch


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
    if P.is_cuda:
        return recorded(B, N, count, P.device)(P, first)
    chosen = torch.full((B, count), first)
    search(P, chosen)
    return chosen


def search(P: torch.Tensor, chosen: torch.Tensor) -> None:
    """Fill in `chosen` (B, count) after its first column."""
    nearest = torch.full_like(P[:, 0], torch.inf)  # (B, N) squared distance to the closest of the chosen
    apart = torch.empty_like(P)
    for k in range(1, chosen.shape[1]):
        last = P.gather(2, chosen[:, None, k - 1 : k].expand(-1, 3, -1))  # (B, 3, 1)
        torch.sub(P, last, out=apart).square_()
        torch.minimum(nearest, apart[:, 0].add_(apart[:, 1]).add_(apart[:, 2]), out=nearest)
        chosen[:, k] = nearest.argmax(1)


@functools.lru_cache(16)
@torch.inference_mode(False)
def recorded(B: int, N: int, count: int, device: torch.device) -> Callable:
    """The search as one CUDA graph: started one by one, its thousands of small kernels take four times as long."""
    P = torch.zeros((B, 3, N), device=device)
    chosen = torch.zeros((B, count), dtype=torch.long, device=device)
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        search(P, chosen[:, :3])  # finds its kernels, which must not happen while it is recorded
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        search(P, chosen)

    def replay(points: torch.Tensor, first: int) -> torch.Tensor:
        P.copy_(points)
        chosen.fill_(first)
        graph.replay()
        return chosen.clone()

    return replay


def places(count: int) -> torch.Tensor:
    """The first places (count, 3) of a sequence that fills the box evenly however many are taken (Roberts' R3)."""
    root = 1.2207440846057596  # of x^4 = x + 1
    steps = np.arange(1, count + 1)[:, None] / root ** np.arange(1, 4)  # (count, 3)
    return torch.tensor(((steps + 0.5) % 1 * 2 - 1) * 0.95, dtype=torch.float32)


@torch.no_grad()
def match(anchors: torch.Tensor) -> torch.Tensor:
    """The order (B, T) in which anchors (B, T, 3) lie nearest to the fixed places, in squares over all of a shape."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(places(anchors.shape[1]).to(anchors).expand_as(anchors), anchors).square()
    order = [linear_sum_assignment(matrix)[1] for matrix in cost.cpu().numpy()]
    return torch.tensor(np.stack(order), device=anchors.device)


@torch.no_grad()
def nearest(places: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Indices (B, T) of the points (B, N, 3) nearest to places (T, 3)."""
    return torch.cdist(places.expand(len(points), -1, -1), points.to(places)).argmin(2)
