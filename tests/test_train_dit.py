"""Training on shapes made of numbers: what is learned, what is kept over a curriculum, what is the same again."""

import json
from unittest import mock

import numpy as np
import pytest
import torch

from lib import dataset, dit, journal, pairs, train_dit, vae

TOKENS, CHANNELS, PATCHES, WIDTH, VIEWS = 4, 3, 4, 8, 3
FLOWS = {"views": 1, "posterior": "mean", "dropout": 0.1, "time_mean": 0.0, "time_std": 1.0, "shift": 1.0}
RECIPE = {"steps": 4, "batch_size": 8, "warmup": 5}


def shapes(count: int, seed: int = 0, tokens: int = TOKENS, told: float = 1.0) -> pairs.Pairs:
    """Shapes whose features tell their latents by a fixed linear map, as far as `told`; the rest is noise."""
    rng = np.random.default_rng(seed)
    plan = np.random.default_rng(99).normal(size=(TOKENS * CHANNELS, PATCHES * WIDTH)) / 3
    x = 3 + 2 * rng.normal(size=(count, TOKENS * CHANNELS))
    features = (x - 3) @ plan / 2
    features = told * features[:, None] + 0.05 * rng.normal(size=(count, VIEWS, PATCHES * WIDTH))
    latents = np.tile(x.reshape(count, TOKENS, CHANNELS), (1, -(-tokens // TOKENS), 1))[:, :tokens].astype(np.float16)
    return pairs.Pairs(
        names=[f"shape_{seed}_{k}" for k in range(count)],
        mean=latents,
        logvar=np.full_like(latents, -2.0),
        views=[[f"{k}_{v}" for v in range(VIEWS)] for k in range(count)],
        held=features.reshape(count * VIEWS, PATCHES, WIDTH).astype(np.float16),
    )


def about(**changes) -> dict:
    stats = {"mean": [3.0] * CHANNELS, "std": [2.0] * CHANNELS, "tokens": TOKENS, "sha256": "v1", "ordered": True}
    made = {"fingerprint": "f1", "size": 28, "resize": 28, "weights": "random", "seed": 0, "map": "image"}
    return {"latents": stats | changes.pop("latents", {}), "features": made | changes.pop("features", {})}


def run(folder, train=None, val=None, said=None, options=None, **recipe):
    """The stage on pairs in memory, as if they had been read from a tree."""
    parts = {"train": shapes(12) if train is None else train, "val": shapes(3, seed=1) if val is None else val}
    given = {"size": "tiny", "draws": 2, "workers": 1, "recipe": RECIPE | recipe} | (options or {})
    with mock.patch.object(pairs, "read", return_value=(parts, said or about())):
        return train_dit.train_dit([], folder, **given)


def losses(result) -> list[float]:
    return [row["loss"] for row in journal.read_curve(result.folder)]


def batch(data, samples, stats=None, seed=0, **flows) -> dict:
    stats = stats or about()["latents"]
    return train_dit.batch(0, samples, pairs=data, stats=stats, seed=seed, flows=FLOWS | flows)


def same(a: dit.DiT, b: dit.DiT) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_its_numbers():
    data = shapes(12)
    whole = batch(data, range(16, 32))
    halves = [batch(data, part) for part in (range(16, 24), range(24, 32))]
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([half[name] for half in halves])), f"{name}: two processes are one"
    other = batch(data, range(16, 32), seed=1)
    assert not torch.equal(whole["noise"], other["noise"])
    assert len({float(x) for x in whole["noise"][:, 0, 0]}) == 16, "each sample has its own noise"


def test_latents_are_normalised_channel_by_channel():
    data = shapes(64)
    stats = {"mean": [3.0, 1.0, -1.0], "std": [2.0, 1.0, 0.5]}
    found = batch(data, range(64), stats)["x"]
    order = train_dit.loop.deal(range(64), 64, 0)
    wanted = (data.mean[order].astype(np.float32) - stats["mean"]) / stats["std"]
    assert np.allclose(found, wanted, atol=1e-5)


def test_the_posterior_may_be_sampled():
    data = shapes(1)
    many = batch(data, range(4000), {"mean": [0.0] * 3, "std": [1.0] * 3}, posterior="sample")["x"]
    assert torch.allclose(many.mean(0), torch.from_numpy(data.mean[0]).float(), atol=0.05)
    assert many.std(0).sub(np.exp(-1.0)).abs().max() < 0.03, "logvar is -2"


def test_times_dropout_and_views_follow_what_is_asked():
    found = batch(shapes(4), range(8000), dropout=0.25, time_mean=0.5, time_std=0.7, shift=2.0)
    assert found["keep"].float().mean().item() == pytest.approx(0.75, abs=0.02)
    logits = torch.logit(found["t"].double())
    assert logits.mean().item() == pytest.approx(0.5 + np.log(2), abs=0.03)
    assert logits.std().item() == pytest.approx(0.7, rel=0.03)
    by_batch = found["keep"].view(-1, 8).sum(1).float()
    assert by_batch.var().item() == pytest.approx(8 * 0.75 * 0.25, rel=0.15), "each sample for itself"
    assert batch(shapes(4), range(2), views=2)["features"].shape[1] == 2


def test_the_loss_is_that_of_the_flow_and_told_by_time():
    model = dit.DiT("tiny", TOKENS, CHANNELS, WIDTH, True)  # says nothing yet: its error is the velocity's square
    given = batch(shapes(12), range(32))
    terms = train_dit.loss(model, given)
    each = (given["noise"] - given["x"]).square().mean((1, 2))
    assert terms["loss"].item() == pytest.approx(each.mean().item(), rel=1e-5)
    sums = [terms[f"sum_{k}"].item() for k in range(train_dit.BINS)]
    counts = [terms[f"count_{k}"].item() for k in range(train_dit.BINS)]
    assert sum(sums) == pytest.approx(terms["loss"].item(), rel=1e-5) and sum(counts) == pytest.approx(1)
    early = given["t"] < 0.2
    assert sums[0] / counts[0] == pytest.approx(each[early].mean().item(), rel=1e-5)


# -- what is learned --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_shapes_are_learned_by_heart(tmp_path):
    data = shapes(2)
    result = run(
        tmp_path,
        data,
        data,
        options={"dropout": 0.0, "draws": 32},
        steps=200,
        batch_size=16,
        lr=1e-2,
        adam_lr=5e-3,
        ema=0.98,
    )
    last = result.validation.iloc[-1]
    assert last["own"] < 0.1 and last["nothing"] > 1.5
    assert last["gap_low"] > 0.5
    features = torch.from_numpy(np.stack([data.features(k, 0) for k in range(2)]))
    found = dit.sample(dit.load(tmp_path)[0], features, TOKENS, steps=20, guidance=1.0, shift=3.0)
    assert (found - torch.from_numpy(data.mean).float()).abs().max() < 0.5, "of shapes that lie some 3 apart"


def test_the_gap_is_zero_for_features_that_tell_nothing(tmp_path):
    """The interval of the bootstrap holds zero, which a network that looks at nothing must give."""
    model = dit.DiT("tiny", TOKENS, CHANNELS, WIDTH, True)
    found = train_dit.examine(model, shapes(6), FLOWS, 4, 0)
    assert found["gap"] == found["gap_low"] == found["gap_high"] == 0
    assert found["own"] > 1


def test_own_features_are_told_from_shuffled_ones():
    """A network that reads the shape off the features: no error with its own, a large one with another's."""

    class Knows(torch.nn.Module):
        def __init__(self, data):
            super().__init__()
            self.last = torch.nn.Linear(1, 1)
            self.known = torch.from_numpy(data.mean.astype(np.float32))
            self.seen = torch.from_numpy(data.held.astype(np.float32)).view(len(data), VIEWS, -1)

        def normalise(self, x):
            return x

        def forward(self, x, t, features):
            far = (self.seen[None] - features.float().flatten(1)[:, None, None]).norm(dim=-1).amin(-1)
            return (x - self.known[far.argmin(1)]) / t.view(-1, 1, 1)

    data = shapes(9)
    found = train_dit.examine(Knows(data), data, FLOWS, 6, 0)
    assert found["own"] < 1e-6 and found["shuffled"] > 1 and found["gap"] > found["gap_low"] > 0


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [low < 1 < high for low, high in (train_dit.bootstrap(rng.normal(1, 2, 60), 500, k) for k in range(300))]
    assert 0.89 < np.mean(hits) < 0.98


# -- going on ---------------------------------------------------------------------------------------------------------


def test_going_on_is_the_same_to_the_bit(tmp_path):
    straight = run(tmp_path, steps=8, save_every=4)
    model, curve = dit.load(tmp_path)[0], losses(straight)
    first, last = sorted((tmp_path / "resume").glob("*.pt"))
    last.unlink()  # as if it had been killed after step 4
    again = run(tmp_path, steps=8, save_every=4)
    assert first.exists() and same(dit.load(tmp_path)[0], model)
    assert losses(again) == curve and again.validation.equals(straight.validation)


def test_a_curriculum_goes_on_from_its_weights(tmp_path):
    run(tmp_path / "a", steps=12)
    longer = {"train": shapes(12, tokens=2 * TOKENS), "val": shapes(3, seed=1, tokens=2 * TOKENS)}
    first, second = dit.load(tmp_path / "a")[0], train_dit.make(longer["train"], about(), "tiny", str(tmp_path / "a"))
    assert second.config["tokens"] == 2 * TOKENS
    x, t = torch.randn(2, TOKENS, CHANNELS), torch.rand(2)
    features = torch.from_numpy(longer["train"].held[:2])
    assert torch.allclose(second.eval()(x, t, features), first(x, t, features), atol=1e-5)
    begun = losses(run(tmp_path / "b", **longer, options={"start": str(tmp_path / "a")}))
    assert begun[0] < losses(run(tmp_path / "c", **longer))[0], "what was learned is not lost"


@pytest.mark.parametrize("what, key", [("latents", "sha256"), ("features", "fingerprint")])
def test_a_start_on_foreign_latents_or_features_is_refused(tmp_path, what, key):
    run(tmp_path / "a")
    with pytest.raises(ValueError, match=f"was trained on {what} of another network"):
        run(tmp_path / "b", said=about(**{what: {key: "other"}}), options={"start": str(tmp_path / "a")})
    with pytest.raises(ValueError, match="made otherwise"):
        run(tmp_path / "a", said=about(**{what: {key: "other"}}))


def test_a_start_on_latents_of_the_vae_that_this_one_began_as_is_taken(tmp_path):
    run(tmp_path / "a")
    finer = about(latents={"sha256": "v2", "ancestors": ["v1", "v0"]})
    run(tmp_path / "b", said=finer, options={"start": str(tmp_path / "a")})
    with pytest.raises(ValueError, match="was trained on latents of another network"):  # there is no way back
        run(tmp_path / "c", options={"start": str(tmp_path / "b")})


@pytest.mark.slow
def test_what_is_written_is_enough_to_use_it(tmp_path):
    run(tmp_path, said=about(latents={"vae": "no/where"}))
    model, told = dit.load(tmp_path)
    assert told["latents"]["sha256"] == "v1" and told["features"]["weights"] == "random"
    assert told["flow"]["shift"] == 3.0 and told["trained"]["step"] == 4
    assert torch.allclose(model.latent_mean, torch.full((CHANNELS,), 3.0))
    assert model.feature_std.std() > 0, "measured, not assumed"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"options": {"posterior": "median"}}, "wanted 'mean' or 'sample'"),
        ({"train": shapes(0)}, "no mesh of the train split"),
        ({"said": about(latents={"mean": [0.0] * 5, "std": [1.0] * 5})}, "3 channels, their statistics 5"),
        ({"options": {"size": "huge"}}, "wanted one of tiny"),
        ({"options": {"start": "nowhere"}}, "holds no diffusion transformer"),
    ],
)
def test_what_cannot_be_trained(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run(tmp_path, **options)


def test_without_a_val_split_the_table_says_so(tmp_path):
    facts = run(tmp_path, val=shapes(1, seed=1)).facts.set_index("what")["number"]
    assert facts["shapes to validate on"] == "12 of train, as val has 1"
    assert facts["tokens x channels"] == f"{TOKENS} x {CHANNELS}" and facts["steps"] == 4
    assert facts["TFLOP a second"] > 0 and "MFU" not in " ".join(facts.index)


# -- through the tree -------------------------------------------------------------------------------------------------


def tree(folder, count: int = 24) -> list[dataset.Item]:
    """Shapes as 04, 05 and 11 leave them, with a VAE that was never trained."""
    torch.manual_seed(0)
    vae.save(vae.build("tiny", tokens=TOKENS, channels=CHANNELS, anchors="fixed"), folder / "vae")
    data = shapes(count)
    items = [dataset.Item(f"mesh_{k}", "", "", str(folder / "tree"), 64) for k in range(count)]
    for k, item in enumerate(items):
        with item.writing("_latent_sample.npy") as path:
            np.save(path, data.mean[k])
        outputs = {"05_latents": dict(item.written)}
        item.written.clear()
        for view in range(VIEWS):
            with item.writing(f"_view_{view:03d}_dinov2_features.npz") as path:
                np.savez(path, features=data.features(k, view))
        outputs["04_features"] = dict(item.written)
        given = {"04_features": about()["features"], "05_latents": {"sha256": "v1"}}
        records = {s: {"version": 1, "inputs": {}, "outputs": outputs[s], "parameters": given[s]} for s in given}
        records["04_features"]["facts"] = {"weights": "random", "seed": 0}
        records["05_latents"]["facts"] = {}
        dataset.write_facts(item, records)
    stats = about()["latents"] | {"vae": str(folder / "vae")}
    (folder / "tree" / "64_latent_stats.json").write_text(json.dumps(stats))
    return items


@pytest.mark.slow
def test_samples_are_drawn_on_the_way_and_two_processes_are_one(tmp_path):
    items = tree(tmp_path)
    options = {"size": "tiny", "draws": 2, "workers": 1, "recipe": RECIPE}
    result = train_dit.train_dit(items, tmp_path / "one", **options)
    made = sorted(path.name for path in (tmp_path / "one" / "samples").iterdir())
    parts = dataset.splits([item.name for item in items], items[0].dataset)
    val = [name for name in parts if parts[name] == "val"]
    assert len(made) == min(len(val), 4) and {name.split("_step_")[0] for name in made} <= set(val)
    assert all(name.endswith(f"_step_{4:09d}.obj") for name in made)
    check_two(items, tmp_path, result, options)


@pytest.mark.slow
def test_two_processes_that_share_the_weights_are_one(tmp_path):
    items = tree(tmp_path)
    options = {"size": "tiny", "draws": 2, "workers": 1, "recipe": RECIPE}
    check_two(items, tmp_path, train_dit.train_dit(items, tmp_path / "one", **options), options | {"sharded": True})


def check_two(items, tmp_path, result, options):
    both = train_dit.train_dit(items, tmp_path / "two", processes=2, **options)
    assert losses(both) == pytest.approx(losses(result), rel=1e-4)
    states = [dit.load(tmp_path / name)[0].state_dict() for name in ("one", "two")]
    assert all(torch.allclose(states[0][key], states[1][key], atol=1e-4) for key in states[0])
    assert both.validation["own"].iloc[-1] == pytest.approx(result.validation["own"].iloc[-1], rel=1e-4)


def test_curves_are_a_picture(tmp_path):
    result = run(tmp_path, steps=8, options={"validate_every": 4})
    assert train_dit.curves(result.folder).format == "png"
