import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_points import of_a_box
from test_points import write as write_points

from lib import points, train_vae, vae
from lib.dataset import Item, sha256, split, write_facts
from lib.journal import read_curve
from lib.train_vae import batch, choose, divide, judged, losses, samples

torch.set_num_threads(1)
QUICK = {"points": 32, "supervision": [16, 16, 32], "tokens": [8], "batch_size": 2, "warmup": 2}
ASKED = {
    "points": 32,
    "supervision": [16, 16, 32],
    "tokens": [8, 12],
    "odds": [0.25, 0.75],
    "sharp_weight": 2.0,
    "kl": 0.5,
}


def named(part, count):
    """Names that their hash puts into a part."""
    return [name for name in map("box_{:08x}".format, range(1000)) if split(name) == part][:count]


@pytest.fixture
def tree(tmp_path):
    """Six shapes to learn from, two of val and one of test, as 02 leaves them."""
    return [made(tmp_path, name, k) for k, name in enumerate(named("train", 6) + named("val", 2) + named("test", 1))]


def made(folder, name, seed):
    item = Item(name, f"{folder}/{name}.obj", "", str(folder / "dataset"), 32)
    item.path("").parent.mkdir(parents=True)
    path = write_points(item.path("_sample_points.npz"), of_a_box(seed=seed))
    outputs = {"_sample_points.npz": {"size": path.stat().st_size, "sha256": sha256(path)}}
    record = {"version": 1, "parameters": {}, "inputs": {}, "outputs": outputs, "facts": {}}
    write_facts(item, {"02_sharp_sample": record})
    return item


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(train_vae, "DEPTH", 4)


def run(tree, folder, **changes):
    given = {"size": "tiny", "steps": 4, "recipe": QUICK, "unseen": 3, "validate_every": 4} | changes
    return train_vae.train_vae(tree, folder, **given)


# -- the whole --------------------------------------------------------------------------------------------------------


def test_from_samples_to_a_model_with_its_scores(tree, tmp_path):
    first = run(tree, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "config.json", "curve.csv", "validation.csv", "scores.csv", "resume"} <= names
    assert len(first.scores) == 3 and np.isfinite(first.scores.drop(columns="item")).all(axis=None)
    assert list(first.scores["f_05"]) == sorted(first.scores["f_05"]), "the worst first"
    assert set(first.scores["item"]) == set(named("val", 2) + named("test", 1))
    own = first.baselines.set_index("in its place")["f_05"]
    assert own["the shape itself"] == pytest.approx(own["the nearest learned shape"], abs=0.1), "all are one box here"
    read = vae.load(tmp_path / "run")
    last = read_curve(tmp_path / "run", "validation")[-1]
    asked = dict(choose("tiny", QUICK))
    ask = partial(train_vae.losses, asked=asked, clip=read.config["clip"])
    shelf = points.Shelf([train_vae.samples(item) for item in train_vae.divide(tree)[1]], 1)
    draw = partial(train_vae.batch, asked=asked, edges=True, seed=0, channels=read.channels, shelf=shelf, how="none")
    terms = train_vae.unseen_losses(read, ask, draw, 3, asked["batch_size"])
    assert terms and all(last[name] == pytest.approx(value, rel=1e-4) for name, value in terms.items())
    again = run(tree, tmp_path / "run")  # the same call: nothing is trained, all is there
    assert again.scores.equals(first.scores)
    assert all(
        torch.equal(a, b)
        for a, b in zip(read.state_dict().values(), vae.load(tmp_path / "run").state_dict().values(), strict=True)
    )


def test_another_runs_weights_begin_a_curriculum(tree, tmp_path):
    run(tree, tmp_path / "low")
    high = run(tree, tmp_path / "high", start=str(tmp_path / "low"), recipe=QUICK | {"lr": 1e-9, "adam_lr": 1e-9})
    low, high = (vae.load(folder).state_dict() for folder in (tmp_path / "low", high.folder))
    assert all(torch.allclose(low[name], high[name], atol=1e-6) for name in low)
    with pytest.raises(ValueError, match="anchors = 'matched' is asked for and 'fixed' came"):
        run(tree, tmp_path / "other", start=str(tmp_path / "low"), network={"anchors": "matched"})
    began = json.loads((tmp_path / "high" / "config.json").read_text())["ancestors"]
    assert began == [sha256(tmp_path / "low" / "model.safetensors")]
    with pytest.raises(ValueError, match="start was"):
        run(tree, tmp_path / "high", recipe=QUICK | {"lr": 1e-9, "adam_lr": 1e-9})


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_make_the_model_of_one(tree, tmp_path, sharded):
    one, two = (run(tree, tmp_path / str(k), processes=k, sharded=sharded) for k in (1, 2))
    a, b = (vae.load(result.folder).state_dict() for result in (one, two))
    moved = [name for name in a if not name.endswith("k_norm.bias")]  # keys shifted alike change nothing: all rounding
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in moved)


def test_other_data_is_another_run(tree, tmp_path):
    run(tree, tmp_path / "run")
    with pytest.raises(ValueError, match=r"data was '6 shapes, .* and is '5 shapes"):
        run(tree[1:], tmp_path / "run")


def test_two_shapes_are_learned_by_heart(tree, tmp_path):
    """The encoder, the bottleneck and the decoder can, and the loop does: near to zero loss on what it has seen."""
    recipe = QUICK | {"points": 128, "supervision": [64, 64, 128], "adam_lr": 3e-3, "kl": 1e-6, "warmup": 20}
    two = [*tree[:2], *tree[6:]]
    result = run(two, tmp_path / "run", steps=150, recipe=recipe, validate_every=150)
    curve = read_curve(tmp_path / "run")
    assert curve[0]["rest"] > 0.3 and np.mean([row["rest"] for row in curve[-20:]]) < 0.03
    assert result.scores["iou"].min() > 0.9, "unseen ones are the same box"


# -- batches and the loss ---------------------------------------------------------------------------------------------


def source(tree, **changes):
    shelf = points.Shelf([train_vae.samples(item) for item in tree[:6]], 1.0)
    given = {"shelf": shelf, "asked": ASKED, "channels": 4, "edges": True, "how": "flip", "seed": 3}
    return partial(batch, **(given | changes))


def test_a_batch_comes_from_its_numbers_alone_and_parts_add_up(tree):
    make = source(tree)
    whole, again = make(5, range(20, 24)), source(tree)(5, range(20, 24))
    halves = make(5, range(20, 22)), make(5, range(22, 24))
    for name in ("coarse", "sharp", "queries", "noise"):
        assert torch.equal(whole[name], again[name])
        assert torch.equal(whole[name], torch.cat([half[name] for half in halves]))
    assert whole["tokens"] == halves[0]["tokens"] and not torch.equal(whole["coarse"], make(5, range(24, 28))["coarse"])
    assert whole["queries"].shape == (4, 64, 4) and whole["noise"].shape == (4, whole["tokens"], 4)
    assert not torch.equal(whole["noise"], source(tree, seed=4)(5, range(20, 24))["noise"])


def test_numbers_of_tokens_are_drawn_as_often_as_asked(tree):
    drawn = [source(tree)(step, range(step, step + 1))["tokens"] for step in range(400)]
    assert set(drawn) == {8, 12} and drawn.count(12) / 400 == pytest.approx(0.75, abs=0.06)


def test_the_loss_is_doras():
    """Known errors in, the sum of its three terms out."""
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 8, 4, generator=generator), torch.randn(2, 8, 4, generator=generator)
    noise, X = torch.randn(2, 8, 4, generator=generator), torch.rand(2, 64, 3, generator=generator)
    distance = torch.linspace(-0.1, 0.1, 64).expand(2, -1)
    seen = {}
    model = SimpleNamespace(
        encode=lambda coarse, sharp, tokens, seed: (mean, logvar),
        decode=lambda z: seen.update(z=z),
        query=lambda context, X: X[..., 0],
        kl=lambda mean, logvar: 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean(),
    )
    asked = {"supervision": [16, 16, 32], "sharp_weight": 2.0, "kl": 0.5}
    given = {"coarse": None, "sharp": None, "tokens": 8, "step": 1, "noise": noise}
    found = losses(model, given | {"queries": torch.cat([X, distance[..., None]], -1)}, asked, 0.05)
    target = (distance / 0.05).clamp(-1, 1)
    assert target[0, 0] == -1 and target[0, -1] == 1
    sharp, rest = (X[:, :16, 0] - target[:, :16]).pow(2).mean(), (X[:, 16:, 0] - target[:, 16:]).pow(2).mean()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    ).mean()
    assert torch.allclose(found["loss"], rest + 2 * sharp + 0.5 * kl)
    assert torch.allclose(seen["z"], mean + (0.5 * logvar).exp() * noise)


# -- judging ----------------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """A VAE that knows the box: what the scores are at best."""

    def __init__(self, half):
        super().__init__()
        self.side, self.config = torch.nn.Parameter(torch.tensor(half)), {"clip": 0.05}

    def encode(self, coarse, sharp, tokens, seed):
        self.saw = len(coarse[0]), len(sharp[0])
        return torch.zeros(1, tokens, 4), None

    def decode(self, z):
        return None

    def query(self, context, X):
        q = X.abs() - self.side
        return -(q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)) / 0.05


@torch.no_grad()
def test_a_perfect_field_has_perfect_scores_and_a_wrong_one_has_not(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(train_vae, "DEPTH", 6)
    write_points(tree[0].path("_sample_points.npz"), of_a_box(n=8000))
    judge, oracle = partial(judged, tokens=8, edges=True), Oracle([1.0, 0.5, 0.25])
    right = judge(oracle, tree[0], tmp_path / "made" / "box.obj")
    shape = points.read(*samples(tree[0]))
    assert oracle.saw == (len(shape.coarse), len(shape.sharp))  # all there are, as 05 shows the VAE
    assert right["iou"] > 0.99 and right["f_05"] > 0.99 and right["edge_gap"] < 0.03
    assert right["edge_error"] < 1e-3 and right["error"] < 1e-3  # of half precision
    assert (tmp_path / "made" / "box.obj").stat().st_size > 1000
    wrong = judge(Oracle([0.5, 0.5, 0.25]), tree[0], None)  # half as long
    assert wrong["iou"] == pytest.approx(0.5, abs=0.1) and wrong["f_05"] < 0.8 and wrong["edge_gap"] > 0.1
    nothing = judge(Oracle([-1.0, -1.0, -1.0]), tree[0], tmp_path / "made" / "nothing.obj")
    assert (tmp_path / "made" / "nothing.obj").stat().st_size == 0  # the run goes on, and its picture says so
    assert nothing["iou"] == nothing["f_05"] == 0 and nothing["edge_gap"] == 1


def test_who_is_left_out_is_told_why(tree, tmp_path):
    tree[3].path("_sample_points.npz").unlink()
    train, held_out, aside = divide(tree)
    assert len(train) == 5 and len(held_out) == 3 and list(aside["item"]) == [tree[3].name]
    assert "02_sharp_sample at 32" in aside["reason"][0]
    with pytest.raises(ValueError, match=r"2 shapes to learn from and 0 to validate with, of 2.*split.json"):
        divide(tree[:2])
    with pytest.raises(ValueError, match="no items"):
        divide([])
    names = {"train": [tree[0].name], "val": [tree[1].name], "test": []}
    (tmp_path / "dataset" / "split.json").write_text(json.dumps(names))
    assert [len(part) for part in divide(tree[:2])] == [1, 1, 0]


def test_a_recipe_is_the_sizes_but_for_what_is_given():
    assert choose("dora", {})["supervision"] == [21384, 10000, 10000] and choose("dora", {})["kl"] == 1e-3
    assert choose("tiny", {"kl": 0.0, "tokens": [16, 64], "points": 7}) | {"odds": 0} == choose("tiny", {}) | {
        "tokens": [16, 64], "points": 7, "odds": 0
    }  # fmt: skip
    assert choose("tiny", {"tokens": [16, 64]})["odds"] == [0.5, 0.5]
    with pytest.raises(ValueError, match="unknown rate"):
        choose("tiny", {"rate": 1})
    with pytest.raises(ValueError, match="one of odds for each"):
        choose("tiny", {"tokens": [16], "odds": [0.5, 0.5]})
