import torch

from lib.place import Place


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Place.here("auto").on_gpu == torch.cuda.is_available()
    place = Place.here("cpu")
    assert place.first and place.world == 1 and not place.on_gpu and place.peak_gib() == 0
    assert place.any(True, False) == [True, False]
    assert place.mean({"loss": 6.0, "half": 3.0, "n": 4}) == {"loss": 1.5, "half": 0.75}
    place.wait()
