"""DINOv2 and what goes into it: pictures prepared as its makers do, patch tokens out, nothing else among them."""

import hashlib
import json
from pathlib import Path

import numpy as np

from lib.words import first_line

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colours it was trained on
PUBLISHED = 256, 224  # the shorter edge is resized to the first, the middle is cut out at the second
BACKGROUND = (255, 255, 255)  # under what is transparent: white, as behind a product and as the farthest depth
KINDS = ("dinov2", "dinov2_with_registers")
RANDOM = {  # what stands in for weights that cannot be had; "random" has the shape of dinov2-small
    "random": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "random-tiny": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3},
}
FAR = np.sqrt(3)  # reach of the box [-1, 1] about its middle: what the grey of a depth map spans


# -- the network ------------------------------------------------------------------------------------------------------


def load(weights: str, seed: int = 0, device: str = "cpu"):
    """The network from a hub id, a folder, or RANDOM made from the seed; bf16 on cuda, where it is fast, else fp32."""
    import torch

    model = make_random(weights, seed) if weights in RANDOM else read(weights)
    model.fingerprint = fingerprint(model)  # before it is cast
    model.requires_grad_(False).eval()
    return model.to(device, torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)


def make_random(name: str, seed: int):
    """A network that never saw a picture: the same from the same seed, whatever else drew random numbers."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Dinov2Model(Dinov2Config(image_size=518, patch_size=14, **RANDOM[name]))


def read(weights: str):
    """Published weights, complete and of the right kind; safetensors only, which run no code."""
    from transformers import AutoConfig, Dinov2Model, Dinov2WithRegistersModel
    from transformers.utils import logging

    is_path = Path(weights).expanduser().exists()
    where = str(Path(weights).expanduser()) if is_path else weights
    wanted = "a folder with the config.json and model.safetensors of a DINOv2, or the hub id of one"
    try:
        kind = AutoConfig.from_pretrained(where).model_type
    except (OSError, ValueError) as error:
        if is_path:
            raise ValueError(f"weights = {weights!r}: {sentence(error)} Wanted {wanted}.") from None
        raise ValueError(missing(weights, error)) from None
    if kind not in KINDS:
        raise ValueError(f"weights = {weights!r} is a {kind}; wanted {wanted}.")
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # we say it ourselves, and as an error
    try:
        network = Dinov2Model if kind == "dinov2" else Dinov2WithRegistersModel
        model, report = network.from_pretrained(where, use_safetensors=True, output_loading_info=True)
    except OSError as error:
        raise ValueError(f"weights = {weights!r}: {sentence(error)} Wanted {wanted}.") from None
    except Exception as error:  # safetensors and transformers each have their own for a damaged file
        raise ValueError(f"weights = {weights!r} cannot be read: {sentence(error)} Wanted {wanted}.") from None
    finally:
        logging.set_verbosity(told)
    lacks = sorted(key for key in report["missing_keys"] if "mask_token" not in key)
    if lacks or report["mismatched_keys"]:  # else these would silently stay random
        wrong = [*lacks, *sorted(map(str, report["mismatched_keys"]))]
        raise ValueError(f"weights = {weights!r} lacks {len(wrong)} tensors of its network, the first {wrong[0]}.")
    return model


def missing(weights: str, error: Exception) -> str:
    name = weights.rsplit("/", 1)[-1]
    return (
        f"weights = {weights!r} is no folder here, and the Hugging Face hub does not give it ({sentence(error)}) "
        f"Where there is a network, run `hf download {weights} --local-dir weights/{name}`, bring the folder here and "
        f'set weights to its path. To try the street without: weights = "random", a network that never saw a picture.'
    )


def sentence(error: Exception) -> str:
    return first_line(error).rstrip(".") + "."


def fingerprint(model) -> str:
    """A hash of the network and all its numbers: it stands in the facts, since what a path leads to may change."""
    config = model.config.to_dict()
    told = {key: config.get(key) for key in ("model_type", *RANDOM["random"], "patch_size", "num_register_tokens")}
    digest = hashlib.sha256(json.dumps(told).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()


def specials(model) -> int:
    """How many tokens come before the patches: CLS, and the registers where there are any."""
    return 1 + getattr(model.config, "num_register_tokens", 0)


def encode(model, pictures, chunk: int = 64) -> np.ndarray:
    """Patch tokens, after the last norm, of prepared pictures (n, 3, S, S) uint8: (n, patches, width) float16."""
    import torch

    n, _, height, width = pictures.shape
    patch = model.config.patch_size
    patches = (height // patch) * (width // patch)
    found = np.empty((n, patches, model.config.hidden_size), np.float16)
    with torch.inference_mode():
        for start in range(0, n, chunk):
            tokens = model(normalise(pictures[start : start + chunk], model)).last_hidden_state  # (c, 1 + R + P, W)
            tokens = tokens[:, specials(model) :]  # (c, P, W)
            if tokens.shape[1] != patches:
                raise RuntimeError(f"{tokens.shape[1]} tokens came for {patches} patches: what else is among them?")
            found[start : start + chunk] = tokens.to(torch.float16).cpu().numpy()
    if not np.isfinite(found).all():
        raise RuntimeError("features that are not finite in float16: the network's weights are damaged")
    return found


def normalise(pictures, model):
    """uint8 pictures as the network wants them, computed where it lives: a quarter of the bytes travel."""
    import torch

    x = torch.as_tensor(pictures).to(model.device)
    mean, std = (torch.tensor(v, device=model.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((x.float() * (1 / 255) - mean) / std).to(model.dtype)  # (n, 3, S, S)


def warning(weights: str) -> str:
    """The words of the banner where the network never saw a picture."""
    if weights not in RANDOM:
        return ""
    told = "the features come from a seeded random network that never saw a picture"
    return f"weights = {weights!r}: {told}. They tell views apart, and know nothing of what they show."


# -- pictures ---------------------------------------------------------------------------------------------------------


def prepare(picture, size: int = PUBLISHED[1], resize: int = PUBLISHED[0]) -> np.ndarray:
    """A picture as the published processor makes it, up to its normalisation: (3, size, size) uint8.

    The shorter edge becomes `resize` (bicubic), the middle is cut out. With resize = size nothing of a square is cut.
    """
    from PIL import Image

    check(size, resize)
    picture = flatten(picture)
    w, h = picture.size
    short = min(w, h)
    new = (resize, int(resize * h / short)) if w <= h else (int(resize * w / short), resize)
    if new != picture.size:
        picture = picture.resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return np.ascontiguousarray(np.asarray(picture)[top : top + size, left : left + size].transpose(2, 0, 1))


def check(size: int, resize: int, patch: int = 14) -> None:
    if size < patch or size % patch:
        raise ValueError(f"size = {size}; wanted a multiple of {patch}, the side of a patch: 112, 224, 518")
    if resize < size:
        raise ValueError(f"resize = {resize} is less than size = {size}, and nothing would be left to cut out")


def flatten(picture, background: tuple = BACKGROUND):
    """RGB of a picture of any mode; what is transparent lies over the background."""
    from PIL import Image

    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        under = Image.new("RGBA", picture.size, (*background, 255))
        return Image.alpha_composite(under, picture).convert("RGB")
    if picture.mode.startswith("I") or picture.mode == "F":  # PIL would clip 16 bits to 8, not scale them
        raise ValueError(f"a picture of mode {picture.mode}: wanted 8 bits a channel")
    return picture.convert("RGB")


def grey(depth: np.ndarray, camera: np.ndarray):
    """A metric depth map (0 = background) as a picture: black at the box's nearest point, white behind its farthest.

    The span follows from the camera's place (4, 4) alone, so that the same grey is the same depth in every view.
    """
    from PIL import Image

    middle = float(np.asarray(camera)[:3, 3] @ np.asarray(camera)[:3, 2])  # depth of the origin: the camera looks at -z
    share = np.clip((depth - (middle - FAR)) / (2 * FAR), 0, 1)
    return Image.fromarray(np.where(depth > 0, np.rint(share * 254), 255).astype(np.uint8)).convert("RGB")


# -- files ------------------------------------------------------------------------------------------------------------


def read_features(path: str | Path) -> np.ndarray:
    """One view's patch features (patches, width) float16; .pt files of older trees too."""
    path = Path(path)
    try:
        if path.suffix == ".pt":
            import torch

            return torch.load(path, map_location="cpu", weights_only=True).to(torch.float16).numpy()
        with np.load(path, allow_pickle=False) as file:
            return file["features"]
    except Exception as error:  # zipfile, numpy and torch each have their own
        raise ValueError(f"{path} cannot be read ({sentence(error)}) Run 04_features again.") from None
