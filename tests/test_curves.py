import re

import pytest
from test_page import Page

from lib import curves


@pytest.fixture
def folder(tmp_path):
    """A training that went well: its loss falls a thousandfold."""
    folder = tmp_path / "11_train <b>"
    folder.mkdir()
    lines = [f"{step},{1000 / step},{step}" for step in range(1, 1001)]
    (folder / "curve.csv").write_text("step,loss,norm\n" + "\n".join(lines) + "\n")
    (folder / "validation.csv").write_text("step,iou,gap,gap_low,gap_high\n500,0.25,3,2,4\n1000,0.5,4,3,5\n")
    return folder


def test_curves_are_drawn_and_told_in_words(folder):
    found = Page(curves.curves(folder))
    assert found.open == []
    told = [tag["aria-label"] for tag in found.all("svg")]
    assert told[0] == ("loss, learned: 1e+03 at step 1, 1 at step 1,000; least 1 at step 1,000, most 1e+03 at step 1")
    assert [words.partition(":")[0] for words in told] == ["loss, learned", "iou, unseen", "gap, unseen"]
    assert "500 0.25 3 2 4 1,000 0.5 4 3 5" in found.text, "the intervals are in the table"


def test_a_curve_stays_in_its_frame_and_is_small(folder):
    source = curves.curves(folder)
    for points in re.findall(r'points="([^"]+)"', source):
        pairs = [tuple(map(float, pair.split(","))) for pair in points.split()]
        assert all(0 <= x <= curves.WIDTH and 0 <= y <= curves.HEIGHT for x, y in pairs)
        assert [x for x, _ in pairs] == sorted(x for x, _ in pairs)
    assert len(source) < 20_000


def test_a_factor_is_a_distance_where_a_curve_spans_many(folder):
    ys = {step: y for step, y in zip((1, 10, 100, 1000), heights(folder, (1, 10, 100, 1000)), strict=True)}
    assert ys[10] - ys[1] == pytest.approx(ys[1000] - ys[100], abs=0.2)


def heights(folder, steps):
    (folder / "curve.csv").write_text("step,loss\n" + "".join(f"{step},{1000 / step}\n" for step in steps))
    points = re.search(r'points="([^"]+)"', curves.curves(folder))[1].split()
    return [float(point.split(",")[1]) for point in points[: len(steps)]]


@pytest.mark.parametrize(
    "content", ["", "step,loss\n", "a,b\n1,2\n", "step,loss\nx,y\n", "step,loss\n1,nan\n2,inf\n", "\0"]
)
def test_what_is_damaged_or_empty_costs_nothing(tmp_path, content):
    assert curves.curves(tmp_path / "nowhere") == ""
    (tmp_path / "curve.csv").write_text(content)
    assert curves.curves(tmp_path) == ""


def test_one_point_and_equal_points_are_curves_too(tmp_path):
    (tmp_path / "curve.csv").write_text("step,loss\n0,0\n")
    assert "0 at step 0" in curves.curves(tmp_path)
    (tmp_path / "curve.csv").write_text("step,loss\n1,5\n2,5\n")
    assert Page(curves.curves(tmp_path)).open == []
