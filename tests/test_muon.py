import pytest
import torch

from lib.muon import Muon, orthogonal

SHAPES = [(24, 24), (24, 24), (48, 16), (16, 48), (48, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_vectors_stay(shape):
    G = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    S = torch.linspace(0.1, 1, min(shape)).expand(3, -1)
    found = orthogonal(U @ torch.diag_embed(S) @ Vh)
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.35  # what the polynomial promises
    inner = U.mT @ found @ Vh.mT  # diagonal, if the singular vectors are G's
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4


def test_it_is_torchs_muon_but_for_rounding():
    """Both follow the same gradients for twenty steps; torch's rounds its sums to bfloat16."""
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k, shape in enumerate(SHAPES)]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimisers = [
        Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(20):
        for k, pair in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(pair[0].shape, generator=torch.Generator().manual_seed(100 * step + k))
            for matrix in pair:
                matrix.grad = gradient.clone()
        for optimiser in optimisers:
            optimiser.step()
    for before, a, b in zip(start, ours, theirs, strict=True):
        assert (a - b).norm() < 0.02 * (a - before).norm()


def test_a_matrix_without_a_gradient_stays_and_a_vector_is_refused():
    matrix = torch.nn.Parameter(torch.ones(3, 4))
    Muon([matrix]).step()
    assert (matrix == 1).all()
    with pytest.raises(ValueError, match="AdamW"):
        Muon([torch.nn.Parameter(torch.ones(3))])
