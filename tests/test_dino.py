"""Preparation against the published processor; patch tokens and nothing else; weights that are wrong are refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig
from transformers import Dinov2WithRegistersModel as WithRegisters

from lib import dino

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 70, "patch_size": 14}


def noise(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with coarse and fine parts, so that both a shifted and a wrongly filtered one differ."""
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 4), np.uint8)).resize((width, height))
    pixels = np.asarray(coarse)[..., :bands] // 2 + rng.integers(0, 128, (height, width, bands), np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels)


def published(size: int = 224, resize: int = 256) -> BitImageProcessorPil:
    """As the preprocessor_config.json beside facebook/dinov2-small has it."""
    sizes = {"size": {"shortest_edge": resize}, "crop_size": {"height": size, "width": size}}
    return BitImageProcessorPil(**sizes, resample=3, image_mean=list(dino.MEAN), image_std=list(dino.STD))


def random_model(registers: int = 0, seed: int = 0):
    torch.manual_seed(seed)
    if registers:
        model = WithRegisters(Dinov2WithRegistersConfig(num_register_tokens=registers, **TINY))
        torch.nn.init.normal_(model.embeddings.register_tokens)
    else:
        model = Dinov2Model(Dinov2Config(**TINY))
    return model.eval().requires_grad_(False)


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, height", [(256, 256), (512, 512), (300, 201), (201, 300), (97, 640), (224, 224)])
@pytest.mark.parametrize("size, resize", [(224, 256), (112, 112), (70, 81)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_is_prepared_as_published(mode, width, height, size, resize):
    picture = noise(mode, width, height)
    wanted = published(size, resize)(picture, return_tensors="pt")["pixel_values"]
    found = dino.normalise(dino.prepare(picture, size, resize)[None], random_model())
    assert found.shape == wanted.shape == (1, 3, size, size)
    assert (found - wanted).abs().max() < 1e-6


def test_depth_and_normal_maps_are_prepared_as_published():
    camera = np.eye(4)
    camera[2, 3] = 4
    depth = np.random.default_rng(1).uniform(3, 5, (300, 300)) * (np.indices((300, 300)).sum(0) > 200)
    for picture in (dino.grey(depth, camera), noise("RGB", 300, 300)):
        wanted = published()(picture, return_tensors="pt")["pixel_values"]
        assert (dino.normalise(dino.prepare(picture)[None], random_model()) - wanted).abs().max() < 1e-6


def test_what_is_transparent_lies_over_white():
    picture = noise("RGBA", 64, 64)
    pixels = np.array(picture)
    pixels[:32, :, 3], pixels[32:, :, 3] = 0, 255
    flat = np.asarray(dino.flatten(Image.fromarray(pixels)))
    assert (flat[:32] == 255).all()
    assert (flat[32:] == pixels[32:, :, :3]).all()
    pixels[..., 3] = 51  # a fifth
    half = np.asarray(dino.flatten(Image.fromarray(pixels))).astype(float)
    assert np.abs(half - (0.2 * pixels[..., :3] + 0.8 * 255)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_any_picture_of_8_bits_becomes_rgb(mode):
    assert dino.prepare(noise("RGB", 40, 50).convert(mode), 28, 28).shape == (3, 28, 28)


def test_a_palette_may_have_a_hole():
    picture = Image.new("P", (30, 30), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.info["transparency"] = 1
    assert (np.asarray(dino.flatten(picture)) == 255).all()


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_sixteen_bits_are_refused_and_not_clipped(mode):
    with pytest.raises(ValueError, match="8 bits"):
        dino.prepare(Image.new(mode, (30, 30)), 28, 28)


@pytest.mark.parametrize("size, resize, word", [(100, 256, "multiple of 14"), (0, 256, "multiple"), (224, 200, "less")])
def test_sizes_that_cannot_be(size, resize, word):
    with pytest.raises(ValueError, match=word):
        dino.prepare(noise("RGB", 30, 30), size, resize)


def test_grey_is_metric_and_does_not_depend_on_the_view():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    greys = []
    for distance in (3.0, 4.5):
        camera = np.eye(4)
        camera[:3, :3] = turn
        camera[:3, 3] = turn[:, 2] * distance  # looks along -z at the origin
        heights = np.array([-1.7, -0.5, 0, 0.5, 1.7])  # of a surface over the plane through the origin
        greys.append(np.asarray(dino.grey((distance - heights)[None], camera))[0, :, 0])
    assert (greys[0] == greys[1]).all()
    assert np.abs(greys[0] - 127 * (1 - heights / np.sqrt(3))).max() <= 0.51
    assert (np.asarray(dino.grey(np.zeros((2, 2)), camera)) == 255).all(), "background is white, and farther than all"
    assert np.asarray(dino.grey(np.full((1, 1), 99.0), camera))[0, 0, 0] == 254


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [70, 42])
def test_patch_tokens_come_out_and_nothing_else(registers, size):
    model = random_model(registers)
    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, size, size), np.uint8)
    found = dino.encode(model, pictures, chunk=2)
    patches = (size // 14) ** 2
    assert found.shape == (5, patches, 48) and found.dtype == np.float16
    tokens = model(dino.normalise(pictures, model)).last_hidden_state
    assert tokens.shape[1] == 1 + registers + patches
    assert np.abs(found - tokens[:, -patches:].numpy()).max() < 2e-3


@pytest.mark.parametrize("registers", [0, 4])
def test_the_first_token_is_the_corner_patch(registers):
    """A change in one patch moves, through the first layer's values, that patch's token the most."""
    model = random_model(registers)
    pictures = np.full((2, 3, 70, 70), 128, np.uint8)
    pictures[1, :, :14, :14] = np.random.default_rng(0).integers(0, 256, (3, 14, 14), np.uint8)
    change = np.abs(np.diff(dino.encode(model, pictures).astype(float), axis=0)[0]).mean(1)
    assert change.argmax() == 0 and change[0] > 5 * np.sort(change)[-2]


def test_stray_tokens_are_noticed(monkeypatch):
    monkeypatch.setattr(dino, "specials", lambda model: 1)  # what left the registers among the patches elsewhere
    with pytest.raises(RuntimeError, match="29 tokens came for 25 patches"):
        dino.encode(random_model(4), np.zeros((1, 3, 70, 70), np.uint8))


def test_damaged_weights_give_no_features():
    model = random_model()
    model.layernorm.weight[3] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        dino.encode(model, np.zeros((1, 3, 70, 70), np.uint8))


def test_the_random_network_is_the_same_from_the_same_seed():
    torch.manual_seed(5)
    one = dino.load("random-tiny", 3)
    torch.manual_seed(6)
    before = torch.random.get_rng_state()
    same, other = dino.load("random-tiny", 3), dino.load("random-tiny", 4)
    assert (torch.random.get_rng_state() == before).all(), "nobody else's numbers change"
    assert one.fingerprint == same.fingerprint != other.fingerprint
    pictures = np.random.default_rng(0).integers(0, 256, (1, 3, 28, 28), np.uint8)
    assert (dino.encode(one, pictures) == dino.encode(same, pictures)).all()


@pytest.mark.parametrize("registers", [0, 4])
def test_a_folder_is_read_and_known_by_its_numbers(tmp_path, registers):
    model = random_model(registers)
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    a, b = dino.load(str(tmp_path / "a")), dino.load(str(tmp_path / "b"))
    assert dino.specials(a) == 1 + registers
    assert a.fingerprint == b.fingerprint == dino.fingerprint(model)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 70, 70), np.uint8)
    assert (dino.encode(a, pictures) == dino.encode(model, pictures)).all()
    tensors = load_file(tmp_path / "b" / "model.safetensors")
    tensors["embeddings.cls_token"] += 1e-3
    save_file(tensors, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    assert dino.load(str(tmp_path / "b")).fingerprint != a.fingerprint


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    random_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if "layer.1" in name)
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 tensors"):
        dino.load(str(tmp_path))


def test_weights_that_are_cut_short_pickled_or_of_another_kind_are_refused(tmp_path):
    random_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="Wanted a folder"):
        dino.load(str(tmp_path))
    weights.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Wanted a folder"):
        dino.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"is a vit; wanted .*DINOv2"):
        dino.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=str(tmp_path)):
        dino.load(str(tmp_path))


def test_without_weights_the_error_says_how_to_get_them(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"hf download nobody/dinov2-none --local-dir .* weights = \"random\""):
        dino.load("nobody/dinov2-none")


def test_the_banner_is_for_random_networks():
    assert "never saw a picture" in dino.warning("random")
    assert dino.warning("facebook/dinov2-small") == ""
