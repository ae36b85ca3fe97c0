"""Muon: momentum whose matrices are made orthogonal before they are applied, all of one shape at once."""

from collections import defaultdict

import torch

from lib import fsdp

# Keller Jordan's polynomial: singular values between 0 and 1 come near 1 in five steps.
A, B, C, STEPS = 3.4445, -4.775, 2.0315, 5


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with match_rms_adamw, for many small matrices.

    torch takes them one by one, and on a CPU the calls cost more than the sums; here those of one shape are a batch.
    """

    def __init__(self, params, lr: float = 5e-3, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            if any(matrix.ndim != 2 for matrix in group["params"]):
                raise ValueError("Muon is for matrices; give vectors and embeddings to AdamW")

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape, matrix.device].append(matrix)
            for (shape, _), matrices in alike.items():
                pushed = [self.push(matrix, group["momentum"]) for matrix in matrices]
                update = orthogonal(torch.stack(fsdp.gathered(pushed)))  # of whole matrices, by every process
                scale = 0.2 * max(shape) ** 0.5  # an update's size is then AdamW's
                update, own = fsdp.divided(update.to(pushed[0].dtype).unbind(), matrices), fsdp.local(matrices)
                torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(own, update, alpha=-group["lr"] * scale)

    def push(self, matrix: torch.Tensor, momentum: float) -> torch.Tensor:
        """The gradient enters the momentum; what Nesterov makes of both comes back."""
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(state["momentum"], momentum)


def orthogonal(G: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz: U V^T of each G = U S V^T (k, m, n), roughly; bfloat16 will do where it is fast."""
    X = G.bfloat16() if G.is_cuda else G.float()
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT.contiguous() if tall else X
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        S = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(S, S, S, beta=B, alpha=C), X, beta=A)
    return X.mT if tall else X
