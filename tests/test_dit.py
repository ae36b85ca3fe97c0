"""The transformer: nothing at the start, blind to the order of what has none, and the same again from its files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib import dit, flow

B, T, C, P, F = 3, 8, 5, 9, 7


def make(ordered=True, branches=1, tokens=T, awake=True, seed=0) -> dit.DiT:
    """A tiny network; awake, its zeros are random numbers, as if it had been trained."""
    torch.manual_seed(seed)
    model = dit.DiT("tiny", tokens, C, F, ordered, branches).eval()
    if awake:
        with torch.no_grad():
            for weight in model.parameters():
                if not weight.any():
                    weight.normal_(0, 0.05)
    return model


def batch(seed=1, n=B):
    generator = torch.Generator().manual_seed(seed)
    x, features = torch.randn(n, T, C, generator=generator), torch.randn(n, P, F, generator=generator)
    return x, torch.rand(n, generator=generator), features


# -- the start --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "S"])
def test_it_starts_as_nothing(size):
    model = dit.DiT(size, T, C, F, ordered=True)
    assert not model(*batch()).any()
    x, c = torch.randn(2, T, dit.SIZES[size].width), model.modulation(torch.randn(2, dit.SIZES[size].width))
    context = torch.randn(2, P, dit.SIZES[size].width)
    for block in model.blocks:
        assert torch.equal(block(x, c.view(2, 6, -1), context), x), "each block passes on what it gets"


def test_all_of_it_wakes_up():
    """After few steps every weight has moved: no part is cut off by its zeros."""
    model = make(branches=2, awake=False).train()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0)
    for step in range(4):
        x, t, features = batch(step)
        optimiser.zero_grad()
        (model(x, t, features, torch.tensor([True, False, True])) - torch.randn(B, T, C)).square().mean().backward()
        optimiser.step()
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []


# -- order ------------------------------------------------------------------------------------------------------------


def test_tokens_without_an_order_may_be_permuted():
    model, (x, t, features) = make(ordered=False), batch()
    order = torch.randperm(T)
    assert (model(x[:, order], t, features) - model(x, t, features)[:, order]).abs().max() < 1e-5
    assert (model(x[:, order], t, features) - model(x, t, features)).abs().max() > 1e-3


def test_a_shape_sampled_from_permuted_noise_is_the_same_shape():
    model, (noise, _, features) = make(ordered=False), batch()
    order = torch.randperm(T)
    v = flow.guided(lambda x, t, keep: model(x, t, features[:1].expand(len(x), -1, -1), keep), 2.0)
    times = flow.schedule(5)
    assert (flow.euler(v, noise[:, order], times) - flow.euler(v, noise, times)[:, order]).abs().max() < 1e-4


def test_branches_may_be_permuted_within_and_not_across():
    model, (x, t, features) = make(ordered=False, branches=2), batch()
    within = torch.cat([torch.randperm(T // 2), T // 2 + torch.randperm(T // 2)])
    assert (model(x[:, within], t, features) - model(x, t, features)[:, within]).abs().max() < 1e-5
    across = torch.arange(T).roll(T // 2)
    assert (model(x[:, across], t, features) - model(x, t, features)[:, across]).abs().max() > 1e-3


def test_the_order_of_tokens_is_told_where_there_is_one():
    model, (x, t, features) = make(ordered=True), batch()
    order = torch.arange(T).roll(1)
    assert (model(x[:, order], t, features) - model(x, t, features)[:, order]).abs().max() > 1e-3


def test_a_patch_is_known_by_its_place():
    model, (x, t, features) = make(), batch()
    assert (model(x, t, features.flip(1)) - model(x, t, features)).abs().max() > 1e-3
    codes = model.grid(16)
    assert torch.pdist(codes).min() > 0.5, "no two places are alike"
    with pytest.raises(ValueError, match="no square"):
        model(x, t, features[:, :8])


def test_a_glance_knows_what_lies_where_and_not_how_fine_it_was_drawn():
    model = make()
    x = torch.randn(2, 1, 64, dit.SIZES["tiny"].width, generator=torch.Generator().manual_seed(0))
    assert (model.glance(x.flip(2)) - model.glance(x)).abs().max() > 1e-3
    finer = x.unflatten(2, (8, 8)).repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(2, 3)  # 16 x 16 patches
    assert torch.allclose(model.glance(finer), model.glance(x), atol=1e-5)


def test_several_views_are_patches_in_one_row():
    model, (x, t, features) = make(), batch()
    views = torch.stack([features, batch(2)[2]], 1)  # (B, 2, P, F)
    context, _ = model.condition(views, None)
    assert torch.allclose(context, torch.cat([model.condition(views[:, k], None)[0] for k in (0, 1)], 1))
    assert model(x, t, views).shape == x.shape
    assert torch.allclose(model(x, t, views.flip(1)), model(x, t, views), atol=1e-5), "views have no order"


# -- the condition ----------------------------------------------------------------------------------------------------


def test_what_is_dropped_is_not_seen_sample_by_sample():
    model, (x, t, features) = make(), batch()
    keep = torch.tensor([True, False, True])
    found, other = model(x, t, features, keep), model(x, t, batch(5)[2], keep)
    assert torch.equal(found[1], other[1])
    assert (found[0] - other[0]).abs().max() > 1e-3 and (found[2] - other[2]).abs().max() > 1e-3
    assert torch.allclose(found[keep], model(x, t, features)[keep], atol=1e-6)


def test_a_sample_does_not_depend_on_its_company():
    model, (x, t, features) = make(), batch()
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], features[i : i + 1]) for i in range(B)])
    assert torch.allclose(alone, model(x, t, features), atol=1e-5)


def test_statistics_are_taken_off_and_put_back():
    model, (x, t, features) = make(), batch()
    plain = model(x, t, features)
    model.feature_mean.normal_(), model.feature_std.uniform_(0.5, 2)
    assert torch.allclose(model(x, t, features * model.feature_std + model.feature_mean), plain, atol=1e-4)
    model.latent_mean.normal_(), model.latent_std.uniform_(0.5, 2)
    normal = model.normalise(x)
    assert torch.allclose(normal * model.latent_std + model.latent_mean, x, atol=1e-5)
    assert torch.allclose(model.denormalise(normal), x, atol=1e-5)


def test_attention_is_the_textbooks():
    attention, x, y = dit.Attention(96, 3), torch.randn(2, 6, 96), torch.randn(2, 4, 96)
    q, k, v = (linear(z).view(2, -1, 3, 32) for linear, z in ((attention.q, x), (attention.k, y), (attention.v, y)))
    q, k = (z / z.square().mean(-1, keepdim=True).sqrt() for z in (q, k))
    weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / 32**0.5, -1)
    wanted = attention.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
    assert torch.allclose(attention(x, y), wanted, atol=1e-5)


def test_checkpointing_gives_the_same_gradients():
    found = []
    for checkpointing in (False, True):
        model = make().train()
        model.checkpointing = checkpointing
        model(*batch()).square().mean().backward()
        found.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


# -- cost and files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, tokens, patches", [("tiny", 32, 16), ("S", 48, 64)])
def test_operations_are_counted_right(size, tokens, patches):
    model = dit.DiT(size, tokens, C, F, ordered=True).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.randn(1, tokens, C), torch.rand(1), torch.randn(1, patches, F))
    assert dit.flops(model, tokens, patches) == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("ordered", [False, True])
def test_it_is_the_same_again_from_its_files(tmp_path, ordered):
    model = make(ordered)
    model.latent_mean.normal_()
    dit.save(tmp_path, model, {"features": {"size": 112}})
    again, about = dit.load(tmp_path)
    assert about["features"] == {"size": 112}
    assert torch.equal(again(*batch()), model(*batch()))


@pytest.mark.parametrize("damage", ["nothing there", "no network", "cut short", "a tensor lacks", "a list"])
def test_what_is_no_network_is_refused(tmp_path, damage):
    if damage != "nothing there":
        dit.save(tmp_path, make(), {})
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "no network":
        config.write_text("{}")
    elif damage == "a list":
        config.write_text("[]")
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "a tensor lacks":
        state = load_file(weights)
        save_file({name: state[name] for name in list(state)[1:]}, weights)
    with pytest.raises(ValueError, match=f"{tmp_path} holds no diffusion transformer"):
        dit.load(tmp_path)
    with pytest.raises(ValueError, match="wanted one of tiny, S, B, L, XL"):
        dit.DiT("huge", T, C, F, True)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_curriculum_keeps_its_weights(ordered):
    earlier, later = make(ordered), make(ordered, tokens=2 * T, seed=1)
    later.latent_mean += 1
    dit.adopt(later, earlier)
    assert torch.equal(later(*batch()), earlier(*batch())), "on the tokens it knew it does what it did"
    assert later(torch.randn(1, 2 * T, C), torch.rand(1), torch.randn(1, P, F)).shape == (1, 2 * T, C)
    assert (later.latent_mean == 1).all(), "statistics are the data's at hand"
    shorter = make(ordered, tokens=T // 2, seed=2)
    dit.adopt(shorter, earlier)
    x, t, features = batch()
    assert torch.equal(shorter(x[:, : T // 2], t, features), earlier(x[:, : T // 2], t, features))


def test_a_curriculum_refuses_another_network():
    other = dit.DiT("tiny", T, C + 1, F, True)
    with pytest.raises(ValueError, match="channels 6 there, 5 here"):
        dit.adopt(make(), other)


def test_the_config_is_plain_json():
    assert json.loads(json.dumps(make().config)) == make().config


def test_more_tokens_than_it_was_made_for():
    with pytest.raises(ValueError, match="16 tokens came to a network for 8"):
        make()(torch.randn(1, 16, C), torch.rand(1), torch.randn(1, P, F))
