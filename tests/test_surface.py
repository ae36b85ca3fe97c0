import numpy as np
import torch

from lib import decode, surface, vae


def model_and_latents():
    torch.manual_seed(0)
    model = vae.build("tiny").eval()
    return model, np.random.default_rng(0).standard_normal((64, model.channels)).astype(np.float16)


def test_the_field_is_the_vaes():
    model, z = model_and_latents()
    X = torch.rand(50, 3)
    wanted = model.query(model.decode(torch.from_numpy(z.astype(np.float32))[None]), X[None])[0]
    assert torch.equal(surface.field(model, z)(X), wanted)


def test_the_surface_is_that_fields():
    model, z = model_and_latents()
    with torch.no_grad():
        model.decoder.output_proj.bias += 0.2  # else so few steps of no training might leave no sign change
    V, F, facts = surface.surface(model, z, 4, exact=True)
    wanted = decode.dense(surface.field(model, z), 4)
    assert len(F) and facts["depth"] == 4
    assert facts["seconds_context"] >= 0 and facts["peak_gib"] > 0
    assert len(F) == len(wanted[1]) and np.isclose(V.sum(), wanted[0].double().sum(), rtol=1e-4)


def test_the_peak_is_the_most_of_both_steps(monkeypatch):
    """Keys and values of many tokens may take more than all queries after them."""
    model, z = model_and_latents()
    peaks = iter([{"peak_gib": 7.0}, {"peak_gib": 2.0}])
    monkeypatch.setattr(surface.memory, "peaks", lambda device: next(peaks))
    assert surface.surface(model, z, 3)[2]["peak_gib"] == 7.0


def test_numbers_are_halved_on_a_gpu_only():
    with surface.half("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    if torch.cuda.is_available():
        with surface.half("cuda:0"):
            assert (torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype == torch.bfloat16
