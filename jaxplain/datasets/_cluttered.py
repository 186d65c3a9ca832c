"""Cluttered MNIST: digits among pieces of other digits, with ground truth."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain._checks import one_key
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain.datasets._mnist import mnist

_SIDE = 28  # of a source digit
_KEYS = (
    "one image: cluttered_mnist(jax.random.key(0))",
    "many: jax.jit(jax.vmap(cluttered_mnist))(jax.random.split(jax.random.key(0), 1000))",
)


class Scene(NamedTuple):
    """An image with its ground truth, to which localization metrics compare an explanation.

    Attributes:
        image: Image of the clutter and the digits, (W, W, 1), float32 in [0, 1].
        labels: Class of each digit, (n_digits,), int32.
        digit_masks: Pixels where each digit has ink, i.e. is above zero, (n_digits, W, W), bool. If digits overlap, so
            do their masks.
        clutter_mask: Pixels where distractors have ink and digits do not, (W, W), bool.
        boxes: Top, left, bottom, right of each digit's ink, (n_digits, 4), int32, the last two exclusive:
            `image[top:bottom, left:right]`. The blank margin of the digit's 28×28 image is not included.
    """

    image: jax.Array
    labels: jax.Array
    digit_masks: jax.Array
    clutter_mask: jax.Array
    boxes: jax.Array


class _Setting(NamedTuple):
    canvas: int
    n_digits: int
    n_distractors: int
    distractor_size: int
    border: int = 0


_PRESETS = {
    "small": _Setting(canvas=40, n_digits=1, n_distractors=5, distractor_size=5),
    "large": _Setting(canvas=100, n_digits=1, n_distractors=8, distractor_size=8),
    "two_digits": _Setting(canvas=60, n_digits=2, n_distractors=5, distractor_size=5),
}


def cluttered_mnist(
    key: jax.Array,
    images: jax.Array | np.ndarray | None = None,
    labels: jax.Array | np.ndarray | None = None,
    *,
    preset: str = "small",
    canvas: int | None = None,
    n_digits: int | None = None,
    n_distractors: int | None = None,
    distractor_size: int | None = None,
    border: int = 0,
) -> Scene:
    """One random example of cluttered MNIST: an image, its labels, and the places of digits and clutter.

    On a black canvas, `n_distractors` square pieces of random digits are added at random positions, and the sum is
    clipped to 1. Then `n_digits` whole digits are added and the sum is clipped again. Every position where the piece or
    the 28×28 image fits is equally likely, including both ends, so the position of a digit does not depend on its
    class.

    | preset | canvas | digits | distractors |
    | --- | --- | --- | --- |
    | `"small"` | 40×40 | 1 | 5 of 5×5 |
    | `"large"` | 100×100 | 1 | 8 of 8×8 |
    | `"two_digits"` | 60×60 | 2 | 5 of 5×5 |

    This is the algorithm of `deepmind/mnist-cluttered`, with one difference. The original iterates over a permutation
    of the source digits, so that every digit is used once before any is reused. Here each image draws independently
    (its own digits are different source images), so any image can be made alone. A distractor may be cut from any
    source image, including the digit's own, and may be blank, so fewer than `n_distractors` may be visible.

    Digits may overlap: their ink does in 46 % of the images with `"two_digits"`, and in 23 % with `canvas=80`.

    The scene is a pure function of the key, in float32 and int32. It does not depend on `jax_enable_x64`.

    Arguments:
        key: One random key. For many examples: `jax.jit(jax.vmap(cluttered_mnist))(jax.random.split(key, 1000))`.
        images: Source digits, (n, 28, 28, 1) in [0, 1]. `None` uses the 9,000 training digits of `mnist()`; bind
            others, such as the held-out ones, with `functools.partial`.
        labels: Integer classes of the source digits, (n,).
        preset: `"small"`, `"large"` or `"two_digits"`. The following settings override the preset.
        canvas: Height and width W of the image, in pixels.
        n_digits: Number of digits, all from different source images.
        n_distractors: Number of pieces.
        distractor_size: Height and width of a piece, in pixels.
        border: Minimum distance, in pixels, from the edge of the canvas to a digit's 28×28 image. Distractors ignore
            it.

    Raises:
        MissingKeyError: `key` is not one random key.
        StructureError: The images or labels have a wrong shape, dtype or range (traced images may have any range).
        SettingError: A setting is out of range, or does not fit the canvas.

    Example:
        >>> import jax
        >>> from jaxplain import datasets
        >>> scenes = jax.vmap(datasets.cluttered_mnist)(jax.random.split(jax.random.key(0), 100))
        >>> scenes.image.shape, scenes.digit_masks.shape
        ((100, 40, 40, 1), (100, 1, 40, 40))

    References:
        Mnih, Heess, Graves, Kavukcuoglu: Recurrent Models of Visual Attention. NeurIPS 2014.
    """
    images, labels = _sources(images, labels)
    given = {
        "canvas": canvas,
        "n_digits": n_digits,
        "n_distractors": n_distractors,
        "distractor_size": distractor_size,
        "border": border,
    }
    setting = _setting(preset, {name: value for name, value in given.items() if value is not None}, len(images))
    return _scene(one_key("cluttered_mnist", key, fix=_KEYS), images, labels, setting)


@partial(jax.jit, static_argnames="setting")
def _scene(key: jax.Array, images: jax.Array, labels: jax.Array, setting: _Setting) -> Scene:
    return _compose(images[..., 0], labels, _draw(key, len(images), setting), setting)


class _Draws(NamedTuple):
    """The random parts of a scene. Positions are top left corners, (row, column)."""

    digits: jax.Array  # (n_digits,), which source images
    digits_at: jax.Array  # (n_digits, 2), on the canvas
    pieces: jax.Array  # (n_distractors,), which source images
    pieces_from: jax.Array  # (n_distractors, 2), in the source image
    pieces_at: jax.Array  # (n_distractors, 2), on the canvas


def _draw(key: jax.Array, n_sources: int, setting: _Setting) -> _Draws:
    canvas, n_digits, n_distractors, size, border = setting
    digit_key, piece_key = jax.random.split(key)

    # One row for each digit: its swap (see `_different`) and its position. Upper limits are exclusive.
    low = np.stack([np.arange(n_digits), *2 * [np.full(n_digits, border)]], axis=1)
    high = np.array([[n_sources] + 2 * [canvas - _SIDE - border + 1]])
    digit = jax.random.randint(digit_key, low.shape, low, high, jnp.int32)  # int32, because draws depend on the dtype

    # One row for each piece: its source, its position in the source, its position in the scene.
    high = np.array([[n_sources] + 2 * [_SIDE - size + 1] + 2 * [canvas - size + 1]])
    piece = jax.random.randint(piece_key, (n_distractors, 5), 0, high, jnp.int32)
    return _Draws(_different(digit[:, 0]), digit[:, 1:], piece[:, 0], piece[:, 1:3], piece[:, 3:])


def _different(swaps: jax.Array) -> jax.Array:
    """The first elements of a Fisher-Yates shuffle of 0, 1, 2, …, which swaps element i with element `swaps[i]` ≥ i.

    Instead of shuffling thousands to take one or two, this follows each element back to its place before the swaps.
    """
    chosen = []
    for i, place in enumerate(swaps):
        for j in reversed(range(i)):
            place = jnp.where(place == swaps[j], j, place)
        chosen.append(place)
    return jnp.stack(chosen)


def _compose(images: jax.Array, labels: jax.Array, draws: _Draws, setting: _Setting) -> Scene:
    blank = jnp.zeros((setting.canvas, setting.canvas), jnp.float32)

    def add(canvas: jax.Array, sprite: jax.Array, at: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(canvas, lax.dynamic_slice(canvas, at, sprite.shape) + sprite, at)

    def add_piece(canvas: jax.Array, draw: Any) -> tuple[jax.Array, None]:
        source, corner, at = draw
        piece = lax.dynamic_slice(images, (source, *corner), (1, setting.distractor_size, setting.distractor_size))[0]
        return add(canvas, piece, at), None

    clutter, _ = lax.scan(add_piece, blank, (draws.pieces, draws.pieces_from, draws.pieces_at))
    clutter = jnp.minimum(clutter, 1)
    digits = jax.vmap(partial(add, blank))(images[draws.digits], draws.digits_at)
    # No value is negative, so clipping once at the end is equivalent to clipping after each digit.
    image = jnp.minimum(clutter + digits.sum(0), 1)
    masks = digits > 0
    return Scene(
        image[..., None],
        labels[draws.digits],
        masks,
        (clutter > 0) & ~masks.any(0),
        jax.vmap(_box)(masks),
    )


def _box(mask: jax.Array) -> jax.Array:
    def first_and_end(line: jax.Array) -> tuple[jax.Array, jax.Array]:
        index = jnp.arange(len(line), dtype=jnp.int32)
        return jnp.where(line, index, len(line)).min(), jnp.where(line, index + 1, 0).max()

    top, bottom = first_and_end(mask.any(1))
    left, right = first_and_end(mask.any(0))
    return jnp.stack([top, left, bottom, right])


@functools.cache
def _training_digits() -> tuple[np.ndarray, np.ndarray]:
    digits = mnist()
    return digits.x_train, digits.y_train


def _sources(images: Any, labels: Any) -> tuple[Any, Any]:
    if images is None and labels is None:
        return _training_digits()
    if images is None or labels is None:
        raise StructureError(
            explain_error(
                "cluttered_mnist: needs both `images` and `labels`, or neither.",
                got=f"{'labels' if images is None else 'images'} alone",
                fix="cluttered_mnist(key, images, labels), or neither for the training digits that ship",
            )
        )
    shape, dtype = np.shape(images), jnp.result_type(images)
    if shape[1:] != (_SIDE, _SIDE, 1) or not shape[0] or not jnp.issubdtype(dtype, jnp.floating):
        raise StructureError(
            explain_error(
                "cluttered_mnist: `images` are not source images.",
                got=f"{dtype}{list(shape)}",
                need="float[n, 28, 28, 1] with values in [0, 1], n at least 1",
                fix="one channel last, bytes divided by 255: images[..., None] / 255",
            )
        )
    if not isinstance(images, jax.core.Tracer):
        low, high = np.min(images), np.max(images)
        if low < 0 or not 0 < high <= 1:
            raise StructureError(
                explain_error(
                    "cluttered_mnist: the source images exceed [0, 1], or are blank.",
                    got=f"from {low:.3g} to {high:.3g}",
                    need="[0, 1] with black as 0, because values above zero count as ink",
                    fix="for bytes, images / 255; do not subtract a mean",
                )
            )
    if np.shape(labels) != shape[:1] or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise StructureError(
            explain_error(
                "cluttered_mnist: `labels` are not the labels of the source images.",
                got=f"{jnp.result_type(labels)}{list(np.shape(labels))}",
                need=f"one integer for each image: int[{shape[0]}]",
            )
        )
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def _setting(preset: str, given: dict[str, Any], n_sources: int) -> _Setting:
    if preset not in _PRESETS:
        raise SettingError(
            explain_error(f"cluttered_mnist: unknown preset {preset!r}.", need=", ".join(map(repr, _PRESETS)))
        )
    setting = _PRESETS[preset]._replace(**given)

    # The border is checked first, because the range of the canvas depends on it.
    _require("border", setting.border, 0)
    _require(
        "canvas", setting.canvas, _SIDE + 2 * setting.border, why="a digit is 28×28, with the border on both sides"
    )
    _require("n_digits", setting.n_digits, 1, n_sources, why="the digits of an image are different source images")
    _require("n_distractors", setting.n_distractors, 0)
    _require("distractor_size", setting.distractor_size, 1, _SIDE, why="a distractor is a piece of a digit of 28×28")
    return setting


def _require(name: str, value: object, low: int, high: int | None = None, *, why: str | None = None) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)
    if not fits:
        raise SettingError(
            explain_error(
                f"cluttered_mnist: `{name}` is out of range.",
                got=f"{name}={value!r}",
                need=f"a Python integer, at least {low}" + (f" and at most {high}" if high is not None else ""),
                why=why,
            )
        )
