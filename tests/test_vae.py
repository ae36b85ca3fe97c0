"""The network against plain references, its names against the published ones, its invariances."""

import pytest
import torch

from lib import vae


def cloud(batch=2, count=128, seed=0):
    return torch.randn(batch, count, 6, generator=torch.Generator().manual_seed(seed))


def test_the_published_size_has_the_published_number_of_tensors_and_parameters():
    with torch.device("meta"):
        network = vae.build("dora")
    assert len(network.state_dict()) == 322 and sum(p.numel() for p in network.parameters()) == 191_591_553


@pytest.mark.parametrize("anchors", vae.ANCHORS)
def test_every_kind_of_anchors_saves_and_loads_to_the_bit(anchors, tmp_path):
    network = vae.build("tiny", anchors=anchors).eval()
    vae.save(network, tmp_path)
    again = vae.load(tmp_path)
    assert again.config == network.config
    with torch.no_grad():
        for one, other in zip(
            network.encode(cloud(), cloud(seed=1)), again.encode(cloud(), cloud(seed=1)), strict=True
        ):
            assert torch.equal(one, other) and one.shape == (2, 32, network.channels)
