"""Values of corners: kept under their keys, asked in calls that fit the memory, refused where they are none."""

import math
import os
from collections import Counter

import pytest
import torch

from lib import corners, decode


def ball(X):
    return 0.6 - X.norm(dim=1)


def noise(X):
    """A value of its own for every corner, without any order."""
    return ((X * X.new_tensor([12345.7, 23456.8, 34567.9])).sum(1).sin() * 54321.9).sin()


# -- what is known ----------------------------------------------------------------------------------------------------


def test_keys_lead_back_to_their_indices():
    ijk = torch.tensor([[-1, -1, -1], [0, 0, 0], [2048, 5, 2049]])
    keys = ((ijk + corners.ORIGIN) * torch.tensor(corners.STEPS)).sum(1)
    assert torch.equal(corners.unpack(keys), ijk)


def test_known_keys_are_found_whatever_the_order_they_came_in():
    known, generator = corners.Known(torch.float32, "cpu"), torch.Generator().manual_seed(0)
    every = torch.randperm(5000, generator=generator) * 2
    for part in every.split([3000, 1, 999, 1000]):
        known.add(part.sort()[0], part.sort()[0] * 0.5)
    asked = torch.randint(0, 10_000, (77, 4), generator=generator)
    value, there = known.find(asked)
    assert torch.equal(there, asked % 2 == 0) and torch.equal(value[there], asked[there] * 0.5)
    value, there = known.find(asked, above=2)
    wanted = torch.stack([asked, asked + 2], -1)
    assert torch.equal(there, (wanted % 2 == 0) & (wanted < 10_000)) and torch.equal(value[there], wanted[there] * 0.5)
    assert Counter(torch.diff(known.all()[0]).tolist()) == {2: 4999}


# -- memory -----------------------------------------------------------------------------------------------------------


def taking(bytes_a_point, sizes):
    """A query that takes so much memory while it runs, and notes how many points each call had."""

    def query(X):
        sizes.append(len(X))
        block = torch.empty(len(X) * bytes_a_point, dtype=torch.uint8).fill_(1)  # touched, so that it is taken
        return ball(X) + 0 * block[0]

    return query


def asked(query, depth=6, chunk=0):
    """Every corner of a grid, as a field that was asked for them, and their values."""
    field = corners.Field(query, depth, "cpu", chunk)
    side = torch.arange(2**depth + 1) + corners.ORIGIN
    keys = (side[:, None, None] * corners.STEPS[0] + side[:, None] * corners.STEPS[1] + side).flatten()
    return field, field(keys)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are measured on Linux only")
@pytest.mark.parametrize("free", [64 << 30, 256 << 20, 64 << 20])
def test_calls_have_as_many_points_as_fit_into_a_quarter_of_the_free_memory(monkeypatch, free):
    monkeypatch.setattr(corners.memory, "free", lambda device: free)
    sizes = []  # a call takes more than malloc keeps for the next
    corners.memory.reset_peak()
    field, values = asked(taking(8000, sizes), depth=5)
    assert torch.equal(values, asked(ball, depth=5)[1]) and field.asked == sum(sizes) == 33**3
    assert sizes[0] == corners.FIRST
    if free > 1 << 30:
        assert max(sizes) == 33**3 - corners.FIRST and field.chunk == 1 << 15  # more are not faster
    else:
        assert 0.7 < max(sizes[1:]) * 8000 / (free / 4) < 1.05


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000 bytes."),
    ],
    ids=["python", "linux", "windows"],
)
@pytest.mark.parametrize("chunk", [0, 6000])
def test_what_the_memory_does_not_hold_is_asked_again_by_halves(error, chunk):
    sizes, held = [], 1000

    def query(X):
        sizes.append(len(X))
        if len(X) > held:
            raise error
        return ball(X)

    field, values = asked(query, chunk=chunk)
    assert torch.equal(values, asked(ball)[1])
    first = chunk or corners.FIRST
    failed = [first >> n for n in range(4) if first >> n > held]
    assert sizes[: len(failed)] == failed and max(sizes[len(failed) :]) == failed[-1] // 2 == field.chunk
    assert field.asked == sum(sizes[len(failed) :]) == 65**3  # what failed is not counted


def test_torchs_own_refusal_is_survived():
    def query(X):
        if len(X) > 3000:
            torch.empty(1 << 60, dtype=torch.uint8)  # no machine has so much
        return ball(X)

    assert asked(query)[0].chunk == corners.FIRST // 4


def test_when_the_fewest_points_are_too_many_or_it_is_another_error_it_is_told():
    def full(X):
        raise MemoryError("nothing left")

    with pytest.raises(MemoryError, match="nothing left"):
        asked(full)

    def broken(X):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        asked(broken)


def test_more_surface_than_memory_is_refused_with_a_reason(monkeypatch):
    monkeypatch.setattr(corners.memory, "free", lambda device: corners.CELL_BYTES * 50_000)
    with pytest.raises(MemoryError, match=r"depth 7: over [\d,]+ corners near the surface(.|\n)*trained"):
        decode.decode(noise, 7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused_with_its_place(value):
    def broken(X):
        return torch.where(X[:, 0] > 1.0, value, ball(X))

    with pytest.raises(ValueError, match=rf"gave {value} at [\d,]+ of [\d,]+ points, first at \(1\.05"):
        decode.decode(broken, 5)


def test_what_is_not_a_value_a_point_is_refused():
    with pytest.raises(ValueError, match="a value each"):
        decode.decode(lambda X: X, 4)
