"""The figure of a run: smoothing, gaps, no curve."""

import matplotlib.image
import numpy as np

from inf_jax.evaluation import figure


def test_smoothed_curve():
    # half-life 1: each earlier value counts half as much as the next one
    found = figure.smooth(np.array([np.nan, 4.0, 2.0, np.nan, 2.0]), half_life=1)
    expected = [np.nan, 4, (2 + 2) / 1.5, (1 + 1) / 0.75, (0.5 + 0.5 + 2) / 1.375]
    # the last: 4 * 1/8 + 2 * 1/4 + 2 over 1/8 + 1/4 + 1
    np.testing.assert_allclose(found, expected)


def test_figure_without_a_curve_and_with_gaps(tmp_path):
    bars = [("nDCG@10", 70.0, 80.0), ("p-MRR", -12.0, 40.0)]
    images = []
    for losses in (
        [],
        [(0, 1.0), (1, float("nan")), (2, 0.5)],
        [(n, 1 / (n + 1)) for n in range(50)],
    ):
        figure.draw(tmp_path / "x.png", title="a title", losses=losses, bars=bars)
        images.append(matplotlib.image.imread(tmp_path / "x.png"))
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
    half = images[0].shape[1] // 3  # the left third: curves alone
    assert not np.array_equal(images[0][:, :half], images[1][:, :half])
    assert not np.array_equal(images[1][:, :half], images[2][:, :half])
