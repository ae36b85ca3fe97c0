"""What reading weights must refuse, and with which words."""

import pytest
import torch

from lib import weights


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "half.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"half\.ckpt is damaged"):
        weights.read(path)
