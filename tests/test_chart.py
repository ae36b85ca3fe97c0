"""Figures in one style: their size, the marks on a rising curve, nothing left behind in matplotlib's settings."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pixels

from lib import chart


def test_a_figure_has_the_notebooks_width_and_an_alt_text():
    with chart.canvas(2, 1, 3) as (figure, axes):
        assert axes.shape == (1, 3)
        axes[0, 0].plot([1, 2, 3])
    image = chart.image(figure, "three panels")
    assert Pixels.open(io.BytesIO(image.data)).size == (chart.WIDTH, 300)
    assert image.alt == "three panels" and len(image.data) < 40_000


def test_the_style_ends_with_the_block():
    import matplotlib

    before = matplotlib.rcParams["axes.facecolor"]
    with chart.canvas(2):
        assert matplotlib.rcParams["axes.facecolor"] == chart.PAPER
    assert matplotlib.rcParams["axes.facecolor"] == before


@pytest.mark.parametrize("count", [0, 1, 7, 200])
def test_a_rising_curve_names_the_median_and_the_ninety_percent_mark(count):
    values = pd.Series(np.random.default_rng(0).permutation(count) * 100.0)
    with chart.canvas(2) as (_, axes):
        chart.rising(axes[0, 0], values, "seconds")
    curve = axes[0, 0].lines[0].get_ydata()
    assert list(curve) == sorted(values)
    told = [text.get_text().replace(",", "") for text in axes[0, 0].texts]
    assert [float(text) for text in told] == pytest.approx(np.percentile(values, [50, 90]) if count else [], rel=1e-2)
