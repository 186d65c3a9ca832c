"""Pictures: centered colors, shared scales, nothing hidden by one pixel."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxplain as jx

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_signed_maps_are_centered_at_zero_and_unsigned_start_there():
    ax = jx.plot.image(RNG.normal(size=(8, 8)) + 1)
    low, high = ax.images[0].get_clim()
    assert low == -high and ax.images[0].get_cmap().name == jx.plot.DIVERGING
    ax = jx.plot.image(RNG.random((8, 8, 3)), input=RNG.random((8, 8, 1)))
    assert ax.images[0].get_clim()[0] == 0 and ax.images[0].get_cmap().name.endswith("upper")


def test_one_pixel_does_not_hide_the_rest():
    values = RNG.normal(size=(28, 28))
    values[0, 0] = 1e4
    assert jx.plot.limit([values]) < 10


def test_the_percentile_can_be_chosen():
    values = RNG.random((1, 10, 10))
    for percentile in (50, 100):
        want = np.percentile(values, percentile)
        assert jx.plot.image(values[0], percentile=percentile).images[0].get_clim()[1] == want
        for share in (True, False):
            figure = jx.plot.grid({"a": values}, values, percentile=percentile, share=share)
            assert figure.axes[2].images[0].get_clim()[1] == want


def test_degenerate_maps_still_have_a_scale():
    assert jx.plot.limit([np.zeros((4, 4))]) == 1
    assert jx.plot.limit([np.full((4, 4), np.nan)]) == 1
    single = np.zeros((28, 28))
    single[3, 3] = 2
    assert jx.plot.limit([single]) == 2


def test_grid_shares_a_scale_within_each_row(tmp_path):
    maps = {"a": RNG.normal(size=(3, 8, 8, 1)), "b": RNG.random((3, 8, 8))}
    figure = jx.plot.grid(maps, RNG.random((3, 8, 8, 1)), titles=["0", "1", "2"], suptitle="all")
    figure.savefig(tmp_path / "grid.png")
    limits = [ax.images[0].get_clim() for ax in figure.axes if ax.images and ax.get_position().width > 0.1]
    assert len(limits) == 9 and len(set(limits[3:6])) == 1 and len(set(limits[6:9])) == 1


def test_rows_of_images_are_drawn_as_they_are(tmp_path):
    rows = {"gray": RNG.random((3, 8, 8, 1)) * 3, "colored": RNG.random((2, 8, 8, 3))}
    figure = jx.plot.images(rows, titles=["0", "1", "2"], suptitle="all", limits=(0, 2))
    figure.savefig(tmp_path / "images.png")
    drawn = [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]
    assert len(drawn) == 5
    np.testing.assert_allclose(drawn[0], np.clip(rows["gray"][0, ..., 0] / 2, 0, 1))
    each = jx.plot.images({"a": rows["gray"]}, limits=None)
    assert np.asarray(each.axes[1].images[0].get_array()).max() == 1
    with pytest.raises(jx.StructureError, match=r"row 'a'(.|\n)*\(8, 8, 2\)"):
        jx.plot.images({"a": RNG.random((1, 8, 8, 2))})
