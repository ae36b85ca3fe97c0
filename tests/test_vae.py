"""The network against a plain reference of its own, its names against the published ones, its invariances."""

import json
import math

import pytest
import torch
from torch.nn import functional

from lib import vae
from lib.anchors import farthest, match, places, take
from lib.vae import sample

PUBLISHED = {"anchors": "farthest", "anchored": False, "qk_norm": False, "local": 0.0, "clip": 0.015}  # as in "dora"
SMALL = {"width": 24, "heads": 3, "encoder_layers": 2, "decoder_layers": 2, "channels": 5, "frequencies": 8}


def cloud(batch=2, count=128, seed=0):
    """Points in the box with unit normals, (batch, count, 6)."""
    random = torch.Generator().manual_seed(seed)
    P = torch.rand(batch, count, 3, generator=random) * 2 - 1
    return torch.cat([P, functional.normalize(torch.randn(batch, count, 3, generator=random), dim=-1)], -1)


def network(seed=0, **options):
    torch.manual_seed(seed)
    return vae.build("tiny", **options).eval()


@pytest.fixture
def dora():
    """The published network, small, in double precision."""
    return network(tokens=16, **SMALL, **PUBLISHED).double()


# -- a reference, written from the description alone ------------------------------------------------------------------


class Reference:
    """Dora-VAE in numpy-like steps, one head at a time, from a state dict, whose names say what departs from it.

    Where there is `local`, attention falls with distance: head by head at the rate local / 100 ... local.
    """

    def __init__(self, state, heads, local=0.0):
        self.state, self.heads, self.local = state, heads, local

    def linear(self, x, name):
        y = x @ self.state[name + ".weight"].T
        return y + self.state[name + ".bias"] if name + ".bias" in self.state else y

    def norm(self, x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * self.state[name + ".weight"] + self.state[name + ".bias"]

    def attention(self, x, data, name, at, there):
        """Packed: of each head all its parts one after the other."""
        width = x.shape[-1] // self.heads
        if data is None:
            packed = self.linear(x, name + ".c_qkv")
            part = [[packed[..., (3 * h + k) * width :][..., :width] for k in range(3)] for h in range(self.heads)]
        else:
            q, kv = self.linear(x, name + ".c_q"), self.linear(data, name + ".c_kv")
            part = [
                [q[..., h * width :][..., :width]] + [kv[..., (2 * h + k) * width :][..., :width] for k in range(2)]
                for h in range(self.heads)
            ]
        if name + ".q_norm.weight" in self.state:
            part = [[self.norm(q, name + ".q_norm"), self.norm(k, name + ".k_norm"), v] for q, k, v in part]
        heads = []
        for h, (q, k, v) in enumerate(part):
            likeness = q @ k.transpose(-1, -2) / math.sqrt(width)
            if self.local:
                apart = (at[:, :, None, :3] - there[:, None, :, :3]).square().sum(-1)
                likeness = likeness - self.local * 100 ** (h / (self.heads - 1) - 1) * apart
            heads.append(torch.softmax(likeness, -1) @ v)
        return self.linear(torch.cat(heads, -1), name + ".c_proj")

    def mlp(self, x, name):
        x = self.linear(x, name + ".c_fc")
        return self.linear(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), name + ".c_proj")

    def block(self, x, name, at=None):
        x = x + self.attention(self.norm(x, name + ".ln_1"), None, name + ".attn", at, at)
        return x + self.mlp(self.norm(x, name + ".ln_2"), name + ".mlp")

    def cross(self, x, data, name, at=None, there=None):
        data = self.norm(data, name + ".ln_2")
        x = x + self.attention(self.norm(x, name + ".ln_1"), data, name + ".attn", at, there)
        return x + self.mlp(self.norm(x, name + ".ln_3"), name + ".mlp")

    def embed(self, P):
        """x y z | sines of x at 1, 2 .. 128, then of y, of z | cosines likewise | normals."""
        waves = [f(P[..., axis] * 2**k) for f in (torch.sin, torch.cos) for axis in range(3) for k in range(8)]
        return torch.cat([P[..., :3], torch.stack(waves, -1), P[..., 3:]], -1)

    def encode(self, coarse, sharp, near, edge, anchors=None):
        C = self.linear(self.embed(coarse), "encoder.input_proj")
        S = self.linear(self.embed(sharp), "encoder.input_proj1")
        rows = torch.arange(len(C))[:, None]
        query = torch.cat([C[rows, near], S[rows, edge]], 1)
        if anchors is not None:
            anchors = anchors.expand(len(C), -1, -1)
            query = self.linear(self.embed(anchors), "anchor_query")
        x = self.cross(query, C, "encoder.cross_attn", anchors, coarse)
        x = x + self.cross(query, S, "encoder.cross_attn1", anchors, sharp)
        for k in range(2):
            x = self.block(x, f"encoder.self_attn.resblocks.{k}", anchors)
        x = self.linear(self.norm(x, "encoder.ln_post"), "pre_kl")
        return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :].clamp(-30, 20)

    def field(self, z, X, anchors=None):
        x = self.linear(z, "post_kl")
        if anchors is not None:
            anchors = anchors.expand(len(z), -1, -1)
            x = x + self.linear(self.embed(anchors), "anchor_proj")
        for k in range(2):
            x = self.block(x, f"transformer.resblocks.{k}", anchors)
        x = self.cross(self.linear(self.embed(X), "decoder.query_proj"), x, "decoder.cross_attn_decoder", X, anchors)
        return self.linear(self.norm(x, "decoder.ln_post"), "decoder.output_proj")[..., 0]


def close(found, wanted):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def stirred(network):
    """With biases and norms that are not at rest, so that a missing one shows."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return network


def test_the_network_is_the_published_one_number_by_number(dora):
    reference = Reference(stirred(dora).state_dict(), heads=3)
    coarse, sharp = cloud(seed=1).double(), cloud(seed=2, count=96).double()
    near, edge = torch.tensor([[3, 1, 4, 15], [9, 2, 6, 5]]), torch.tensor([[35, 8, 9, 7], [90, 3, 2, 38]])
    mean, logvar = dora.encode(coarse, sharp, indices=(near, edge))
    for found, wanted in zip((mean, logvar), reference.encode(coarse, sharp, near, edge), strict=True):
        close(found, wanted)
    z, X = mean + 0.1, cloud(seed=3, count=50)[..., :3].double()
    close(dora.query(dora.decode(z), X), reference.field(z, X))


@pytest.mark.parametrize("local", [0.0, 4.0])
def test_a_network_of_fixed_places_is_its_description_number_by_number(local):
    network_ = stirred(network(tokens=8, **SMALL, anchors="fixed", anchored=True, qk_norm=True, local=local).double())
    reference, P = Reference(network_.state_dict(), 3, local), places(8).double()
    coarse, sharp = cloud(seed=1).double(), cloud(seed=2, count=96).double()
    mean, logvar = network_.encode(coarse, sharp)
    none = torch.zeros(2, 4, dtype=torch.long)
    for found, wanted in zip((mean, logvar), reference.encode(coarse, sharp, none, none, P), strict=True):
        close(found, wanted)
    X = cloud(seed=3, count=50)[..., :3].double()
    close(network_.query(network_.decode(mean), X), reference.field(mean, X, P))


@pytest.mark.parametrize("local", [0.0, 4.0])
@pytest.mark.parametrize("anchors", ["farthest", "matched", "nearest"])
def test_tokens_that_move_are_told_where_they_are_by_their_latent(anchors, local):
    network_ = stirred(network(tokens=8, **SMALL, anchors=anchors, anchored=True, qk_norm=True, local=local).double())
    reference, z = Reference(network_.state_dict(), 3, local), cloud(count=8, seed=4)[..., :3].double()
    z = torch.cat([torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)).double(), z], -1)
    X = cloud(seed=3, count=50)[..., :3].double()
    close(network_.query(network_.decode(z), X), reference.field(z[..., :5], X, z[..., 5:]))


def test_the_last_head_sees_least_far_also_where_it_is_the_only_one():
    apart = torch.tensor([[[0.0, 0, 0], [0, 0.5, 0]]])
    for heads, rates in ((1, [4.0]), (3, [0.04, 0.4, 4.0])):
        found = network(width=24, heads=heads, local=4.0).nearness(apart, apart)[0, :, 0, 1]
        assert found.tolist() == pytest.approx([-rate / 4 for rate in rates])


def test_uncertainty_has_bounds(dora):
    with torch.no_grad():
        dora.pre_kl.bias[5:] = torch.tensor([-100.0, -29, 0, 19, 100])
        dora.pre_kl.weight[5:] = 0
        _, logvar = dora.encode(cloud().double(), cloud(seed=1).double())
    assert logvar[0, 0].tolist() == [-30, -29, 0, 19, 20]


def test_the_published_size_has_the_published_names_and_shapes():
    def layer(name, out, into, bias=True):
        return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})

    def norms(name, count):
        return {f"{name}.ln_{k}.{part}": (768,) for k in range(1, count + 1) for part in ("weight", "bias")}

    def ends(name):
        mlp = layer(f"{name}.mlp.c_fc", 3072, 768) | layer(f"{name}.mlp.c_proj", 768, 3072)
        return layer(f"{name}.attn.c_proj", 768, 768) | mlp

    def block(name):
        return layer(f"{name}.attn.c_qkv", 2304, 768, bias=False) | ends(name) | norms(name, 2)

    def cross(name):
        both = layer(f"{name}.attn.c_q", 768, 768, bias=False) | layer(f"{name}.attn.c_kv", 1536, 768, bias=False)
        return both | ends(name) | norms(name, 3)

    wanted = layer("encoder.input_proj", 768, 54) | layer("encoder.input_proj1", 768, 54)
    wanted |= cross("encoder.cross_attn") | cross("encoder.cross_attn1") | cross("decoder.cross_attn_decoder")
    for name in [f"encoder.self_attn.resblocks.{k}" for k in range(8)] + [
        f"transformer.resblocks.{k}" for k in range(16)
    ]:
        wanted |= block(name)
    for name in ("encoder.ln_post", "decoder.ln_post"):
        wanted |= {f"{name}.weight": (768,), f"{name}.bias": (768,)}
    wanted |= layer("pre_kl", 128, 768) | layer("post_kl", 768, 64)
    wanted |= layer("decoder.query_proj", 768, 51) | layer("decoder.output_proj", 1, 768)
    with torch.device("meta"):
        found = {name: tuple(tensor.shape) for name, tensor in vae.build("dora").state_dict().items()}
    assert found == wanted
    assert len(found) == 322 and sum(math.prod(shape) for shape in found.values()) == 191_591_553


def test_attention_and_mlp_begin_narrow_and_the_rest_as_torch_has_it():
    network = vae.build("tiny", width=192, heads=4)
    weight = network.state_dict()
    for name in (
        "transformer.resblocks.0.attn.c_qkv",
        "encoder.cross_attn.attn.c_kv",
        "transformer.resblocks.1.mlp.c_proj",
    ):
        assert weight[name + ".weight"].std() == pytest.approx(0.25 / math.sqrt(192), rel=0.03)
    assert not weight["transformer.resblocks.0.mlp.c_fc.bias"].any()
    assert weight["pre_kl.weight"].std() == pytest.approx(1 / math.sqrt(3 * 192), rel=0.1)


# -- invariances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", vae.ANCHORS)
def test_the_order_of_points_does_not_matter(anchors):
    vae_ = stirred(network(anchors=anchors, tokens=8)).double()
    coarse, sharp = cloud(seed=1).double(), cloud(seed=2).double()
    shuffle = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    near, edge = farthest(coarse[..., :3], 4), farthest(sharp[..., :3], 4)
    moved = torch.argsort(shuffle)
    one = vae_.encode(coarse, sharp, 8, indices=(near, edge))
    other = vae_.encode(coarse[:, shuffle], sharp[:, shuffle], 8, indices=(moved[near], moved[edge]))
    for a, b in zip(one, other, strict=True):
        close(a, b)


@pytest.mark.parametrize("anchors", ["farthest", "matched"])
@pytest.mark.parametrize("anchored", [False, True])
def test_the_order_of_tokens_does_not_matter_where_they_carry_what_they_are(anchors, anchored):
    vae_ = stirred(network(anchors=anchors, anchored=anchored, local=30.0 * anchored, tokens=8)).double()
    z, X = torch.randn(2, 8, vae_.channels).double(), cloud(count=40)[..., :3].double()
    close(vae_.query(vae_.decode(z.flip(1)), X), vae_.query(vae_.decode(z), X))


def test_matched_tokens_come_in_the_order_of_the_places():
    """The latents are those of the farthest points, in another order."""
    one, other = (stirred(network(anchors=anchors, tokens=8)) for anchors in ("farthest", "matched"))
    (mean, _), (sorted_mean, _) = (network_.encode(cloud(), cloud(seed=1)) for network_ in (one, other))
    close(sorted_mean, take(mean, match(mean[..., -3:])))


def test_nearest_tokens_move_as_little_as_the_shape_does():
    """Whichever points were drawn of a surface: what is nearest to a place is about the same."""
    vae_ = stirred(network(anchors="nearest", tokens=8))
    dense, thin = cloud(count=4000), cloud(count=4000)[:, ::2]
    one, other = (vae_.encode(points, points)[0][..., -3:] for points in (dense, thin))
    assert (one - other).abs().max() < 0.2 < (dense[:, :8, :3] - dense[:, 8:16, :3]).abs().mean()


@pytest.mark.parametrize("anchors", vae.ANCHORS)
def test_there_are_as_many_tokens_as_are_asked_for(anchors):
    vae_ = network(anchors=anchors, tokens=8)
    assert vae_.encode(cloud(), cloud())[0].shape == (2, 8, vae_.channels)
    for count in (2, 6, 20):
        mean, logvar = vae_.encode(cloud(), cloud(), count)
        assert mean.shape == logvar.shape == (2, count, vae_.channels)
        assert vae_.query(vae_.decode(mean), cloud()[..., :3]).shape == (2, 128)


def test_the_seed_chooses_the_points_of_both_sets():
    vae_ = network(anchors="farthest", tokens=8)
    (a, _), (b, _), (c, _) = (vae_.encode(cloud(), cloud(seed=1), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a[:, :4, -3:], c[:, :4, -3:]) and not torch.equal(a[:, 4:, -3:], c[:, 4:, -3:])


def test_fixed_places_give_tokens_an_order():
    vae_ = stirred(network(anchors="fixed"))
    z, X = torch.randn(1, 32, vae_.channels), cloud(1, 40)[..., :3]
    assert [anchors for anchors in vae.ANCHORS if not network(anchors=anchors).ordered] == ["farthest"]
    assert (vae_.query(vae_.decode(z.flip(1)), X) - vae_.query(vae_.decode(z), X)).abs().max() > 0.01


def test_a_query_in_pieces_is_the_query(dora):
    X, context = cloud(count=70)[..., :3].double(), dora.decode(torch.randn(2, 16, 5).double())
    close(torch.cat([dora.query(context, X[:, k : k + 9]) for k in range(0, 70, 9)], 1), dora.query(context, X))


def test_a_shape_does_not_depend_on_its_neighbours_in_the_batch():
    vae_ = network(anchors="farthest", tokens=8)
    both, alone = vae_.encode(cloud(), cloud(seed=1)), vae_.encode(cloud()[1:], cloud(seed=1)[1:])
    close(both[0][1:], alone[0])


@pytest.mark.parametrize("anchors", ["farthest", "matched", "nearest"])
def test_positions_come_back_from_the_latent(anchors):
    vae_ = network(anchors=anchors, anchored=True, tokens=8)
    coarse, sharp = cloud(seed=1), cloud(seed=2)
    near, edge = vae_.choose(coarse, sharp, 8, seed=0)
    mean, logvar = vae_.encode(coarse, sharp)
    wanted = torch.cat([take(coarse, near), take(sharp, edge)], 1)[..., :3]
    assert torch.equal(mean[..., -3:], take(wanted, match(wanted)) if anchors == "matched" else wanted)
    assert (logvar[..., -3:] == -30).all() and (sample(mean, logvar)[..., -3:] - mean[..., -3:]).abs().max() < 1e-5


# -- learning ---------------------------------------------------------------------------------------------------------


def loss(network, X=None):
    mean, logvar = network.encode(cloud(), cloud(seed=1))
    z = sample(mean, logvar, torch.Generator().manual_seed(0))
    field = network.query(network.decode(z), cloud(seed=2, count=64)[..., :3] if X is None else X)
    return (field - 0.5).square().mean() + 1e-3 * network.kl(mean, logvar)


@pytest.mark.parametrize("anchors", vae.ANCHORS)
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_every_kind_of_network_learns(anchors, anchored, qk_norm):
    network_ = network(anchors=anchors, anchored=anchored, qk_norm=qk_norm, local=30.0 * anchored, tokens=8).train()
    optimiser = torch.optim.SGD(network_.parameters(), 1e-2)
    before = loss(network_)
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network_.parameters())
    optimiser.step()
    assert loss(network_) < before


def test_forgetting_what_is_inside_the_layers_gives_the_same_gradients_and_keeps_less():
    network_ = network(tokens=8).train()
    found, kept = [], []

    def count(tensor):
        kept[-1] += tensor.numel()
        return tensor

    for network_.checkpointing in (False, True):
        network_.zero_grad()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            value = loss(network_)
        value.backward()
        found.append([p.grad.clone() for p in network_.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert kept[1] < kept[0] / 5


def test_places_and_distances_keep_their_precision_under_autocast():
    vae_ = stirred(network(anchors="farthest", anchored=True, tokens=8))
    coarse, sharp, X = cloud(seed=1), cloud(seed=2), cloud(seed=3)[..., :3]
    seen = []
    watched = (vae_.encoder.input_proj, vae_.encoder.input_proj1, vae_.anchor_proj, vae_.decoder.query_proj)
    for layer in watched:
        layer.register_forward_hook(lambda _, x, y: seen.append(y))
    mean, _ = vae_.encode(coarse, sharp)
    field = vae_.query(vae_.decode(mean), X)
    plain, seen[:] = list(seen), []
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = vae_.encode(coarse, sharp)
        rough_field = vae_.query(vae_.decode(mean), X)
    assert all(torch.equal(*pair) for pair in zip(plain, seen, strict=True)) and len(seen) == 4
    assert rough.dtype == rough_field.dtype == torch.float32
    assert torch.equal(rough[..., -3:], mean[..., -3:])
    assert 0 < (rough_field - field).abs().max() < 0.05 * field.abs().max()  # and the layers between do run in bf16


def test_points_in_half_precision_are_embedded_in_full():
    vae_, points = network(frequencies=8), cloud().half()
    assert torch.equal(vae_.embed(points), vae_.embed(points.float()))


def test_the_kl_is_that_of_two_normals_and_positions_do_not_count():
    vae_ = network(anchors="farthest", anchored=True)
    mean, logvar = torch.full((2, 4, 19), 0.7), torch.full((2, 4, 19), math.log(0.25))
    mean[..., -3:] = 1e3
    wanted = 0.5 * (0.7**2 + 0.25 - 1 - math.log(0.25))
    assert vae_.kl(mean, logvar).item() == pytest.approx(wanted)
    one, other = torch.distributions.Normal(0.7, 0.5), torch.distributions.Normal(0.0, 1.0)
    assert wanted == pytest.approx(torch.distributions.kl_divergence(one, other).item())


def test_a_sample_has_the_mean_and_the_spread_of_its_posterior():
    z = sample(torch.full((20000,), 3.0), torch.full((20000,), math.log(4.0)), torch.Generator().manual_seed(0))
    assert z.mean().item() == pytest.approx(3, abs=0.06) and z.std().item() == pytest.approx(2, abs=0.05)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vae.build("huge"), "size = 'huge'; wanted 'tiny' or 'small' or 'dora'"),
        (lambda: vae.build("tiny", depth=3), "no option 'depth'; it has width,"),
        (lambda: vae.build("tiny", anchors="learned"), "anchors = 'learned'; wanted 'farthest' or"),
        (lambda: vae.build("tiny", heads=5), "width = 64 cannot be shared by 5 heads"),
        (lambda: vae.build("tiny", width="64"), "width = '64'; wanted a whole number from 1 to"),
        (lambda: vae.build("tiny", tokens=10**9), "tokens = 1000000000; wanted a whole number from 1 to"),
        (lambda: vae.build("tiny", channels=True), "channels = True; wanted a whole number"),
        (lambda: vae.build("tiny", qk_norm="no"), "qk_norm = 'no'; wanted true or false"),
        (lambda: vae.build("tiny", clip=0), "clip = 0; wanted a distance above 0"),
        (lambda: vae.build("tiny", local=-1.0), "local = -1.0; wanted a number from 0"),
        (lambda: vae.build("tiny", anchored=False), "local = 30.0 needs anchored = true"),
        (lambda: network().encode(cloud(), cloud()[..., :3]), "sharp is (2, 128, 3); wanted (shapes, points, 6)"),
        (lambda: network().encode(cloud(), cloud()[:, :0]), "takes points of its surface there too"),
        (lambda: network().decode(torch.zeros(1, 4, 19)), "latents of 19 channels came; this VAE's have 16"),
        (lambda: network(anchors="farthest").encode(cloud(), cloud(), 7), "tokens = 7; wanted an even number"),
        (lambda: network(anchors="farthest").encode(cloud(), cloud(), 512), "at most twice the points: 128 of the"),
    ],
)
def test_mistakes_are_named_with_the_choices(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", vae.ANCHORS)
def test_every_kind_of_anchors_saves_and_loads_to_the_bit(anchors, tmp_path):
    network_ = network(anchors=anchors)
    vae.save(network_, tmp_path)
    again = vae.load(tmp_path)
    assert again.config == network_.config and not any(p.requires_grad for p in again.parameters())
    with torch.no_grad():
        for one, other in zip(
            network_.encode(cloud(), cloud(seed=1)), again.encode(cloud(), cloud(seed=1)), strict=True
        ):
            assert torch.equal(one, other) and one.shape == (2, 96, network_.channels)


def test_a_network_from_before_attention_could_be_local_loads(tmp_path):
    network_ = network(local=0)
    vae.save(network_, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["local"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vae.load(tmp_path).config == network_.config


@pytest.fixture
def published(monkeypatch):
    """A small network in the place of the published one, and what its checkpoint would hold."""
    monkeypatch.setitem(vae.SIZES, "dora", {"tokens": 16, **SMALL, **PUBLISHED})
    return vae.build("dora").state_dict()


def prefixed(state):
    return {"shape_model." + name: tensor for name, tensor in state.items()} | {"other.thing": torch.zeros(3)}


def renamed(state):
    return {
        name.replace("input_proj1", "input_proj_sharp").replace("cross_attn1", "cross_attn_sharp"): tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize(
    "form",
    [
        lambda state: {"state_dict": prefixed(state), "epoch": 3, "hyper_parameters": {"lr": 1e-5}},
        lambda state: {"state_dict": state},
        prefixed,
        dict,
        renamed,
        lambda state: {name: tensor.half() for name, tensor in state.items()},
    ],
    ids=["lightning", "lightning_bare", "prefixed", "bare", "renamed", "half"],
)
def test_a_published_checkpoint_loads_under_all_its_names(form, published, tmp_path):
    torch.save(form(published), tmp_path / "dora.ckpt")
    found = vae.load(tmp_path / "dora.ckpt").state_dict()
    assert found.keys() == published.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32 and torch.allclose(tensor, published[name], atol=1e-3)


def test_a_checkpoint_becomes_a_folder_of_safetensors(published, tmp_path):
    torch.save(prefixed(published), tmp_path / "dora.ckpt")
    vae.save(vae.load(tmp_path / "dora.ckpt"), tmp_path / "dora")
    again = vae.load(tmp_path / "dora")
    assert again.config["size"] == "dora"
    assert all(torch.equal(tensor, published[name]) for name, tensor in again.state_dict().items())


def test_what_does_not_fit_is_listed(published, tmp_path):
    state = prefixed(published)
    del state["shape_model.post_kl.bias"]
    state["shape_model.extra"] = torch.zeros(1)
    state["shape_model.pre_kl.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "dora.ckpt")
    with pytest.raises(ValueError) as error:
        vae.load(tmp_path / "dora.ckpt")
    for words in ("missing post_kl.bias", "unexpected extra", "pre_kl.bias is (7,), wanted (10,)", "dora.ckpt"):
        assert words in str(error.value)


def test_another_networks_folder_is_refused(tmp_path):
    vae.save(network(), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(ValueError, match=r"not one of a shape VAE; it lacks anchored"):
        vae.load(tmp_path)


def test_the_command_writes_a_checkpoint_as_safetensors(published, tmp_path):
    torch.save({"state_dict": prefixed(published)}, tmp_path / "dora.ckpt")
    vae.main([str(tmp_path / "dora.ckpt"), str(tmp_path / "out")])
    found = vae.load(tmp_path / "out")
    assert found.config["clip"] == 0.015 and found.state_dict().keys() == published.keys()
    assert all(torch.equal(tensor, published[name]) for name, tensor in found.state_dict().items())
    with pytest.raises(SystemExit, match=r"is not there\. Wanted a folder"):
        vae.main([str(tmp_path / "other.ckpt"), str(tmp_path / "out")])
