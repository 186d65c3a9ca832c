"""Cluttered MNIST: the published algorithm, drawn uniformly, with a truth that is the image's own."""

from functools import cache, partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import text

from jaxplain import datasets
from jaxplain._errors import MissingKeyError, SettingError, StructureError
from jaxplain.datasets import Scene, _cluttered, cluttered_mnist

DIGITS = datasets.mnist()
SOURCES = (DIGITS.x_test[:50], DIGITS.y_test[:50])
KEYS = jax.random.split(jax.random.key(1), 40)
SETTINGS = {
    "small": {},
    "large": {"preset": "large"},
    "two digits": {"preset": "two_digits"},
    "crowded": {"n_digits": 5, "n_distractors": 40, "distractor_size": 11, "canvas": 45, "border": 3},
    "no clutter": {"n_distractors": 0},
    "tight": {"canvas": 28, "distractor_size": 28, "n_distractors": 1},
}
every_setting = pytest.mark.parametrize("name", SETTINGS)
PAIRS = list(permutations(range(6), 2))


@cache
def example(name: str) -> Scene:
    return scenes(**SETTINGS[name])


def scenes(**settings) -> Scene:
    make = jax.jit(jax.vmap(partial(cluttered_mnist, images=SOURCES[0], labels=SOURCES[1], **settings)))
    return jax.tree.map(np.asarray, make(KEYS))


def by_hand(images, labels, draws, canvas, size) -> Scene:
    """The algorithm of deepmind/mnist-cluttered in loops, and the truth pixel by pixel."""
    image = np.zeros((canvas, canvas), np.float32)
    for source, (row, column), (top, left) in zip(draws.pieces, draws.pieces_from, draws.pieces_at, strict=True):
        image[top : top + size, left : left + size] += images[source, row : row + size, column : column + size, 0]
    image[image >= 1] = 1
    clutter = image > 0
    masks, boxes = [], []
    for source, (top, left) in zip(draws.digits, draws.digits_at, strict=True):
        window = image[top : top + 28, left : left + 28]
        window += images[source, :, :, 0]
        np.clip(window, 0, 1, out=window)
        mask = np.zeros((canvas, canvas), bool)
        mask[top : top + 28, left : left + 28] = images[source, :, :, 0] > 0
        clutter &= ~mask
        rows, columns = np.nonzero(mask)
        masks.append(mask)
        boxes.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
    return Scene(image[..., None], labels[draws.digits], np.stack(masks), clutter, np.array(boxes))


@every_setting
def test_scenes_are_those_of_the_published_algorithm(name) -> None:
    settings, got = SETTINGS[name], example(name)
    setting = _cluttered._PRESETS[settings.get("preset", "small")]
    setting = setting._replace(**{name: value for name, value in settings.items() if name != "preset"})
    draws = jax.vmap(lambda key: _cluttered._draw(key, len(SOURCES[0]), setting))(KEYS)
    draws = jax.tree.map(np.asarray, draws)
    for i in range(len(KEYS)):
        draw = jax.tree.map(lambda leaf, i=i: leaf[i], draws)
        want = by_hand(*SOURCES, draw, setting.canvas, setting.distractor_size)
        assert np.allclose(got.image[i], want.image, rtol=0, atol=1e-6)
        for field in ("labels", "digit_masks", "clutter_mask", "boxes"):
            assert np.array_equal(getattr(got, field)[i], getattr(want, field)), field


@every_setting
def test_the_truth_is_that_of_the_image(name) -> None:
    scene = example(name)
    image, any_digit = scene.image[..., 0], scene.digit_masks.any(1)
    assert image.min() == 0 and image.max() == 1
    assert np.array_equal(image > 0, any_digit | scene.clutter_mask)
    assert not np.any(any_digit & scene.clutter_mask)
    assert scene.clutter_mask.any() == (name != "no clutter")
    for masks, boxes in zip(scene.digit_masks, scene.boxes, strict=True):
        for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
            inside = mask[top:bottom, left:right]
            assert inside.sum() == mask.sum() > 0
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_without_clutter_the_digit_is_the_source_image() -> None:
    scene = scenes(n_distractors=0, canvas=28)
    source = {image.tobytes(): label for image, label in zip(*SOURCES, strict=True)}
    assert [source[image.tobytes()] for image in scene.image] == scene.labels[:, 0].tolist()


def test_draws_are_uniform_and_both_ends_are_included() -> None:
    setting = _cluttered._Setting(canvas=37, n_digits=2, n_distractors=3, distractor_size=25, border=3)
    keys = jax.random.split(jax.random.key(2), 4800)
    draws = jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: _cluttered._draw(key, 6, setting)))(keys))
    for which in range(2):
        assert uniform((draws.digits_at[:, which] - 3) @ [4, 1], 16)
    for which in range(3):
        assert uniform(draws.pieces[:, which], 6)
        assert uniform(draws.pieces_from[:, which] @ [4, 1], 16)
        assert uniform(draws.pieces_at[:, which] @ [13, 1], 169)
    # The digits of an image are different sources, and any two of them are as likely as any others.
    assert uniform(np.array([PAIRS.index(pair) for pair in map(tuple, draws.digits.tolist())]), len(PAIRS))


def test_as_many_digits_as_there_are_sources_are_all_of_them() -> None:
    setting = _cluttered._PRESETS["small"]._replace(n_digits=6)
    orders = jax.vmap(lambda key: _cluttered._draw(key, 6, setting).digits)(KEYS)
    assert np.array_equal(np.sort(orders), np.tile(np.arange(6), (len(KEYS), 1)))
    assert len({*map(tuple, orders.tolist())}) > 30


def uniform(values: np.ndarray, n: int) -> bool:
    """Are integers below `n` equally likely? By a chi-square test that chance fails once in 30,000 (4 deviations)."""
    counts = np.bincount(values, minlength=n)
    assert len(counts) == n
    expected = len(values) / n
    return bool(np.sum((counts - expected) ** 2) / expected < n - 1 + 4 * np.sqrt(2 * (n - 1)))


def test_a_key_decides_the_scene_however_it_is_run() -> None:
    batch = example("two digits")
    make = partial(cluttered_mnist, images=SOURCES[0], labels=SOURCES[1], preset="two_digits")
    eager, jitted, raw = make(KEYS[3]), jax.jit(make)(KEYS[3]), make(jax.random.key_data(KEYS[3]))
    with jax.enable_x64(False):
        single = make(KEYS[3])
    for name, want in batch._asdict().items():
        for got in (eager, jitted, raw, single):
            assert getattr(got, name).dtype == want.dtype
            assert np.array_equal(getattr(got, name), want[3]), name
    assert [leaf.dtype for leaf in single] == [jnp.float32, jnp.int32, bool, bool, jnp.int32]
    assert len({image.tobytes() for image in batch.image}) == len(KEYS)


def test_by_default_the_training_digits_are_the_source() -> None:
    _cluttered._training_digits.cache_clear()
    scene = jax.jit(cluttered_mnist)(KEYS[0])  # the first load, while tracing, leaves no tracer behind
    assert [leaf.shape for leaf in scene] == [(40, 40, 1), (1,), (1, 40, 40), (40, 40), (1, 4)]
    again = cluttered_mnist(KEYS[0], DIGITS.x_train, DIGITS.y_train)
    assert jax.tree.all(jax.tree.map(np.array_equal, cluttered_mnist(KEYS[0]), again))
    assert jax.tree.all(jax.tree.map(np.array_equal, scene, again))


def test_sources_may_be_of_other_dtypes() -> None:
    want = cluttered_mnist(KEYS[0], *SOURCES)
    got = cluttered_mnist(KEYS[0], jnp.asarray(SOURCES[0], jnp.float64), jnp.asarray(SOURCES[1], jnp.int64))
    assert jax.tree.map(lambda leaf: leaf.dtype, got) == jax.tree.map(lambda leaf: leaf.dtype, want)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, want))


@pytest.mark.parametrize(
    "key", [None, 0, KEYS, KEYS[:1], jax.random.key_data(KEYS), jnp.zeros(2, jnp.int32)], ids=lambda key: str(type(key))
)
def test_anything_but_one_key_is_refused(key) -> None:
    with pytest.raises(MissingKeyError, match="random key") as error:
        cluttered_mnist(key)
    assert "jax.vmap(cluttered_mnist))(jax.random.split(" in text(error)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"preset": "huge"}, ["'huge'", "'small', 'large', 'two_digits'"]),
        ({"canvas": 27}, ["canvas=27", "at least 28"]),
        ({"canvas": 40, "border": 7}, ["canvas=40", "at least 42", "border"]),
        ({"canvas": 40.0}, ["canvas=40.0", "integer"]),
        ({"border": -1}, ["border=-1", "at least 0"]),
        ({"border": "2"}, ["border='2'", "integer"]),
        ({"n_digits": 0}, ["n_digits=0", "at least 1"]),
        ({"n_digits": True}, ["n_digits=True"]),
        ({"n_digits": 51}, ["n_digits=51", "at most 50", "different source images"]),
        ({"n_distractors": -1}, ["n_distractors=-1", "at least 0"]),
        ({"distractor_size": 29}, ["distractor_size=29", "at most 28"]),
    ],
)
def test_settings_out_of_their_range_are_refused(settings, parts) -> None:
    with pytest.raises(SettingError) as error:
        cluttered_mnist(KEYS[0], *SOURCES, **settings)
    assert all(part in text(error) for part in parts), text(error)


@pytest.mark.parametrize(
    ("sources", "parts"),
    [
        ((SOURCES[0], None), ["images alone", "neither"]),
        ((None, SOURCES[1]), ["labels alone"]),
        ((SOURCES[0][..., 0], SOURCES[1]), ["float32[50, 28, 28]", "float[n, 28, 28, 1]"]),
        ((SOURCES[0][:0], SOURCES[1][:0]), ["[0, 28, 28, 1]", "at least 1"]),
        ((SOURCES[0].astype(np.uint8), SOURCES[1]), ["uint8[50, 28, 28, 1]", "/ 255"]),
        ((SOURCES[0], SOURCES[1][:9]), ["int32[9]", "int[50]"]),
        ((SOURCES[0], SOURCES[1] / 2), ["float", "int[50]"]),
    ],
)
def test_sources_that_are_none_are_refused(sources, parts) -> None:
    with pytest.raises(StructureError) as error:
        cluttered_mnist(KEYS[0], *sources)
    assert all(part in text(error) for part in parts), text(error)


def test_sources_outside_of_their_range_are_refused():
    images, labels = np.zeros((3, 28, 28, 1), np.float32), np.arange(3)
    for bad in (images, images + 255, images - 0.5):
        with pytest.raises(StructureError, match=r"exceed \[0, 1\], or are blank"):
            cluttered_mnist(jax.random.key(0), bad, labels)
