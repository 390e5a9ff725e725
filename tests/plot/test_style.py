"""The common look, and the import that brings no matplotlib."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from sde import plot
from sde.plot.style import as_limits, common_limits, pick, run_limits


def test_the_room_is_imported_without_matplotlib():
    code = "import sde.plot, sys; assert 'matplotlib' not in sys.modules; assert sde.plot.animate.__name__ == 'animate'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_style_ends_with_its_block_even_after_an_error():
    before = dict(mpl.rcParams)
    with plot.style(font_size=17, axes_labelsize=5):
        assert mpl.rcParams["font.size"] == 17
        assert mpl.rcParams["axes.labelsize"] == 5
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(plot.COLOURS[:6])
    assert dict(mpl.rcParams) == before
    with pytest.raises(RuntimeError), plot.style():
        raise RuntimeError
    assert dict(mpl.rcParams) == before


def test_style_refuses_what_matplotlib_does_not_know():
    with pytest.raises(ValueError, match=r"style has no setting fontsize: pass an rcParam"), plot.style(fontsize=3):
        pass


def test_colours_are_those_of_okabe_and_ito():
    published = {(0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
                 (204, 121, 167)}  # fmt: skip
    assert {tuple(round(255 * c) for c in mpl.colors.to_rgb(colour)) for colour in plot.COLOURS} == published


def test_limits_are_one_square_that_holds_every_sample():
    a, b = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[4.0, -1.0], [5.0, np.nan]])
    left, right, bottom, top = common_limits([a, b], keep=1.0)
    assert right - left == pytest.approx(top - bottom)
    assert (left, right) == pytest.approx((2 - 4 * 0.54, 2 + 4 * 0.54))
    assert bottom < -1 < 1 < top
    with pytest.raises(ValueError, match="x must hold at least one finite point"):
        common_limits([np.full((3, 2), np.nan)])


def test_limits_of_a_run_stay_with_the_data_where_the_noise_is_far_wider(run):
    narrow, wide = run((500, 2), noise=0.3), run((500, 2), noise=50.0)
    for r, reach in ((narrow, 1.2), (wide, 1.0)):
        left, right, _, _ = run_limits([(r.t.numpy(), r.x.double().numpy())])
        assert (right - left) / 2 < reach
    assert wide.x[-1].abs().max() < right


@pytest.mark.parametrize("bounds", [(1, 0, 0, 1), (1, 2), 0.0, -2.0, (0, float("inf"), 0, 1), (0, 1, 0, float("nan"))])
def test_bad_bounds_are_refused_by_name(bounds):
    with pytest.raises(ValueError, match="limits must be a radius or"):
        as_limits("limits", bounds)


def test_times_are_picked_by_number_or_by_nearness():
    t = np.linspace(1, 0, 11)
    assert pick(t, 3) == [0, 5, 10]
    assert pick(t, 99) == list(range(11))
    assert pick(t, [0.0, 0.32, 1.0]) == [10, 7, 0]
    with pytest.raises(ValueError, match="times must be at least 1, got 0"):
        pick(t, 0)
    for bad in ([1.2], [-0.1], [], [float("nan")]):
        with pytest.raises(ValueError, match="times must lie between 0 and 1"):
            pick(t, bad)
