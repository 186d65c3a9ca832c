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


PHOTO = RNG.random((16, 16, 3))


def test_a_photograph_stays_visible_where_the_map_is_zero():
    values = np.zeros((16, 16))
    values[4, 5] = 2.0
    for sign, name in ((1, jx.plot.SEQUENTIAL), (-1, jx.plot.DIVERGING)):
        photo, heat = jx.plot.image(sign * values, PHOTO, percentile=100).images
        assert np.asarray(photo.get_array()).shape == (16, 16)  # in gray: all colors are the map's
        assert heat.get_cmap().name == name and heat.get_clim() == ((0, 2) if sign > 0 else (-2, 2))
        opacity = heat.to_rgba(heat.get_array())[..., 3]
        assert opacity[0, 0] < 0.01 and opacity[4, 5] == pytest.approx(0.85)
    (shown,) = jx.plot.image(values, PHOTO, percentile=100, style="mask").images
    np.testing.assert_allclose(shown.get_array()[4, 5], PHOTO[4, 5])
    np.testing.assert_allclose(shown.get_array()[0, 0], 1)
    photo, heat = jx.plot.image(values[::4, ::4], PHOTO, style="beside").images
    np.testing.assert_allclose(photo.get_array(), PHOTO)
    assert heat.get_extent()[0] > 15  # a coarse map is as large as the photograph


def test_channels_and_colors_are_undone():
    values = np.stack([np.full((4, 4), 1.0), np.full((4, 4), -3.0), np.full((4, 4), 0.5)], 0)
    for channels, want in (("sum", -1.5), ("abs", 4.5), ("max", -3.0)):
        (shown,) = jx.plot.image(values, channels=channels, channel_axis=0).images
        assert np.all(shown.get_array() == want)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    photo, _ = jx.plot.image(PHOTO, (PHOTO - mean) / std, mean=mean, std=std, style="beside").images
    np.testing.assert_allclose(photo.get_array(), PHOTO)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: jx.plot.image(np.zeros((6, 64, 64))), "one example of a batch"),
        (lambda: jx.plot.image(np.zeros((3, 64, 64))), "channel_axis=0"),
        (lambda: jx.plot.image(np.zeros((16, 16, 16))), "plot.volume"),
        (lambda: jx.plot.image(np.zeros((2, 8, 8, 3))), "plot.grid"),
        (lambda: jx.plot.image(np.zeros((8, 8)), np.zeros((8, 8, 2))), "1 or 3"),
        (lambda: jx.plot.image(np.zeros((8, 8)), 3 * PHOTO), "mean="),
        (lambda: jx.plot.image(np.zeros((8, 8)), style="mask"), "needs the input"),
        (lambda: jx.plot.image(np.zeros((8, 8)), PHOTO, style="jet"), "'overlay'"),
        (lambda: jx.plot.image(PHOTO, channels="mean"), "'sum'"),
        (lambda: jx.plot.grid({"a": np.zeros((6, 8, 8))}, np.zeros((3, 8, 8))), "6 of 'a' for 3 inputs"),
        (lambda: jx.plot.grid({"a": np.zeros((3, 8, 8))}, np.zeros((3, 8, 8)), titles=["b"]), "1 of 'titles'"),
        (lambda: jx.plot.series(np.zeros((8, 2)), np.zeros((8, 2))), "one shape"),
        (lambda: jx.plot.volume(np.zeros((8, 8))), "depth"),
    ],
)
def test_what_would_be_nonsense_is_refused(draw, words):
    with pytest.raises(jx.JaxplainError) as error:
        draw()
    assert words in str(error.value)


def test_series_volumes_and_layers(tmp_path):
    ax = jx.plot.series(np.sin(np.arange(30.0)), np.cos(np.arange(30.0)), vmax=1.0)
    assert ax.collections[0].get_clim() == (-1, 1)
    figure = jx.plot.volume(RNG.normal(size=(9, 8, 8)), RNG.random((9, 8, 8)), n_slices=3)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["slice 2", "slice 4", "slice 6"]
    assert len({ax.images[0].get_clim() for ax in figure.axes[:3]}) == 1
    figure = jx.plot.layers({"stem": RNG.normal(size=(8, 8, 2)), "head": RNG.random((4, 4))}, PHOTO)
    assert [ax.get_title().split("\n")[0] for ax in figure.axes] == ["input", "stem", "head"]
    figure = jx.plot.grid({"a": RNG.random((1, 4, 4))}, PHOTO[None], share=False)
    assert figure.axes[2].texts[0].get_text() == f"{jx.plot.limit(figure.axes[2].images[-1].get_array()):.2g}"
    figure.savefig(tmp_path / "grid.png")
