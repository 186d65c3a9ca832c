"""Random transforms `(key, x) -> x`, under which a prototype keeps its score, so that no exact pixel pattern matters.

All keep the shape of x. All but `noise` take images (height, width, channels) and extend their edges outward.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import ndimage
from jax.typing import ArrayLike

from jaxplain._checks import checked, number
from jaxplain._errors import SettingError, explain_error
from jaxplain._types import PyTree
from jaxplain.prototypes._parametrizations import image_shape

Transform = Callable[[jax.Array, PyTree], PyTree]


def jitter(pixels: int) -> Transform:
    """Moves an image by up to `pixels` in each direction."""
    if not isinstance(pixels, int) or pixels < 1:
        raise SettingError(explain_error("jitter: `pixels` must be a positive integer.", got=repr(pixels)))

    def transform(key: jax.Array, x: jax.Array) -> jax.Array:
        image_shape("jitter", jnp.shape(x))
        padded = jnp.pad(x, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
        rows, columns = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return lax.dynamic_slice(padded, (rows, columns, 0), x.shape)

    return transform


@checked(degrees=number())
def rotate(degrees: float) -> Transform:
    """Rotates an image about its center by up to `degrees` in each direction (bilinear)."""

    def transform(key: jax.Array, x: jax.Array) -> jax.Array:
        angle = jnp.deg2rad(jax.random.uniform(key, minval=-degrees, maxval=degrees))
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return _resampled("rotate", x, jnp.array([[cos, -sin], [sin, cos]]))

    return transform


@checked(low=number(traced=False), high=number(traced=False))
def scale(low: float, high: float) -> Transform:
    """Enlarges an image about its center by a factor between `low` and `high` (bilinear)."""
    if not 0 < low <= high:
        raise SettingError(explain_error("scale: needs 0 < low ≤ high.", got=f"low={low}, high={high}"))

    def transform(key: jax.Array, x: jax.Array) -> jax.Array:
        return _resampled("scale", x, jnp.eye(2) / jax.random.uniform(key, minval=low, maxval=high))

    return transform


@checked(share=number(0.0, 1.0, traced=False))
def crop(share: float) -> Transform:
    """Enlarges a random window with a `share` of the height and width to the size of the image (bilinear)."""
    if not 0 < share <= 1:
        raise SettingError(explain_error("crop: `share` must be in (0, 1].", got=repr(share)))

    def transform(key: jax.Array, x: jax.Array) -> jax.Array:
        height, width, _ = image_shape("crop", jnp.shape(x))
        room = (1 - share) * jnp.array([height, width], float) / 2
        return _resampled("crop", x, jnp.eye(2) * share, jax.random.uniform(key, (2,), minval=-room, maxval=room))

    return transform


@checked(sigma=number())
def noise(sigma: float) -> Transform:
    """Adds Gaussian noise of standard deviation σ, in units of x."""

    def transform(key: jax.Array, x: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(x)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            leaf + sigma * jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)

    return transform


def _resampled(name: str, x: jax.Array, matrix: jax.Array, offset: ArrayLike = 0.0) -> jax.Array:
    """The image whose pixel p is the pixel of x at `matrix` (p − middle) + middle + `offset`."""
    height, width, _ = image_shape(name, jnp.shape(x))
    middle = jnp.array([[[(height - 1) / 2, (width - 1) / 2]]])
    places = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1).astype(middle.dtype)
    source = (places - middle) @ matrix.T + middle + jnp.broadcast_to(offset, middle.shape)
    sample = partial(ndimage.map_coordinates, coordinates=[source[..., 0], source[..., 1]], order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(x.astype(source.dtype)).astype(x.dtype)
