"""Parametrizations: inputs as functions of the parameters that are optimized."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logit
from jax.typing import ArrayLike

from jaxplain._checks import checked, instance, number, numeric
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._types import PyTree


class Parametrization(NamedTuple):
    """An input as a function of the parameters that are optimized.

    Attributes:
        decode: Function from parameters to an input.
        encode: Function from the start to parameters; for an input x, decode(encode(x)) = x.
        of_code: Whether the start is a code instead of an input; encode then returns it unchanged.
    """

    decode: Callable[[PyTree], PyTree]
    encode: Callable[[PyTree], PyTree]
    of_code: bool = False


def pixels() -> Parametrization:
    """The input itself."""
    return Parametrization(lambda x: x, lambda x: x)


@checked(of=instance(Parametrization, fix="of=jx.prototypes.fourier((28, 28, 1))"))
def box(low: ArrayLike = 0.0, high: ArrayLike = 1.0, of: Parametrization | None = None) -> Parametrization:
    r"""Inputs between `low` and `high`: $x = l + (h - l)\,\sigma(u)$, where u itself may have a parametrization `of`.

    `low` and `high` may be arrays, one for each channel. Starts are moved inside by 1e-4 of the width, because the
    edges are at infinite u. Start well inside, because x hardly moves near the edges.
    """
    if not any(isinstance(edge, jax.core.Tracer) for edge in (low, high)) and not np.all(np.asarray(low) < high):
        raise SettingError(explain_error("box: `low` must be less than `high`.", got=f"low={low}, high={high}"))
    inner = pixels() if of is None else of

    def edges(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
        bottom, top = (jnp.broadcast_to(jnp.asarray(edge, leaf.dtype), leaf.shape) for edge in (low, high))
        return bottom, top - bottom

    def inside(u: jax.Array) -> jax.Array:
        bottom, width = edges(u)
        return bottom + width * jax.nn.sigmoid(u)

    def outside(x: jax.Array) -> jax.Array:
        bottom, width = edges(x)
        return logit(jnp.clip((x - bottom) / width, 1e-4, 1 - 1e-4))

    def encode(x: PyTree) -> PyTree:
        return inner.encode(x if inner.of_code else jax.tree.map(outside, x))

    return Parametrization(lambda u: jax.tree.map(inside, inner.decode(u)), encode, inner.of_code)


@checked(decay=number(), covariance=numeric)
def fourier(shape: Sequence[int], decay: float = 1.0, covariance: ArrayLike | None = None) -> Parametrization:
    r"""Images (height, width, channels) by their spectrum, each frequency k scaled by $\max(|k|, 1/\max(H, W))^{-d}$.

    d is the `decay`. A step of the optimizer then changes low frequencies, which dominate in photographs, more than
    high ones. This changes the basis and the metric, but excludes no image. With `decay=0` the metric is that of
    pixels. Parameters are the real and imaginary parts, (height, width // 2 + 1, channels, 2). A `covariance`
    (channels, channels) of the colors of your images decorrelates them, by mixing channels with its square root.

    References:
        Olah, Mordvintsev, Schubert: Feature visualization. Distill 2017.
    """
    height, width, channels = image_shape("fourier", shape)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    # Cycles per pixel; the mean gets those of the lowest other frequency.
    cycles = np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    # An inner column also represents its mirror image, and would change the image twice as much.
    paired = np.full(width // 2 + 1, np.sqrt(0.5))
    paired[0] = 1
    paired[-1] = 1 if width % 2 == 0 else paired[-1]
    scale = (cycles**-decay * paired * np.sqrt(height * width))[..., None]
    mix = _root(covariance, channels)
    unmix = np.linalg.inv(mix)

    def decode(u: jax.Array) -> jax.Array:
        scaled = u * scale[..., None].astype(u.dtype)
        return jnp.fft.irfft2(lax.complex(scaled[..., 0], scaled[..., 1]), s=(height, width), axes=(0, 1)) @ mix.astype(
            u.dtype
        )

    def encode(x: jax.Array) -> jax.Array:
        x = _of_shape("fourier", x, shape)
        spectrum = jnp.fft.rfft2(x @ unmix.astype(x.dtype), axes=(0, 1))
        return jnp.stack([spectrum.real, spectrum.imag], -1) / scale[..., None].astype(x.dtype)

    return Parametrization(decode, encode)


def fixed_magnitude(images: ArrayLike) -> Parametrization:
    r"""MACO: images with the mean spectral magnitude of `images` (n, height, width, channels).

    Only phases are optimized. Starts keep their phases, but lose their magnitudes, so decode(encode(x)) = x only for x
    with that spectrum. The up to four real coefficients, such as the mean, have a sign instead of a phase and stay
    those of the mean image.

    References:
        Fel et al.: Unlocking feature visualization for deeper networks with magnitude constrained optimization. NeurIPS
        2023.
    """
    images = np.asarray(images)
    height, width, _ = shape = image_shape("fixed_magnitude", images.shape[1:])
    if not len(images):
        raise StructureError(explain_error("fixed_magnitude: `images` is empty.", got=f"shape {images.shape}"))
    spectra = np.fft.rfft2(images, axes=(1, 2))
    magnitude = np.abs(spectra).mean(0)
    real = np.ix_(*([0, n // 2] if n % 2 == 0 else [0] for n in (height, width)))
    signed = np.zeros_like(magnitude)
    signed[real] = magnitude[real] * np.where(spectra.mean(0).real[real] < 0, -1, 1)
    magnitude[real] = 0

    def decode(phase: jax.Array) -> jax.Array:
        size, fixed = magnitude.astype(phase.dtype), signed.astype(phase.dtype)
        spectrum = lax.complex(size * jnp.cos(phase) + fixed, size * jnp.sin(phase))
        return jnp.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))

    def encode(x: jax.Array) -> jax.Array:
        return jnp.angle(jnp.fft.rfft2(_of_shape("fixed_magnitude", x, shape), axes=(0, 1)))

    return Parametrization(decode, encode)


def decoder(generate: Callable[[PyTree], PyTree]) -> Parametrization:
    """Outputs of a decoder, x = G(z): activation maximization in code space. The start is a code, not an input.

    References:
        Nguyen, Dosovitskiy, Yosinski, Brox, Clune: Synthesizing the preferred inputs for neurons in neural networks via
        deep generator networks. NeurIPS 2016.
    """
    return Parametrization(generate, lambda z: z, of_code=True)


def image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """`shape`, which must be (height, width, channels)."""
    if np.ndim(shape) != 1 or len(shape) != 3 or min(shape) < 1:
        raise StructureError(
            explain_error(
                f"{name}: images are (height, width, channels).",
                got=f"shape {shape}",
                fix=(
                    "a gray image: x[..., None]",
                    "several at once: jax.vmap of the function, or of its decode and encode",
                ),
            )
        )
    height, width, channels = shape
    return height, width, channels


def _root(covariance: ArrayLike | None, channels: int) -> np.ndarray:
    """The symmetric square root of a covariance of channels."""
    if covariance is None:
        return np.eye(channels)
    matrix = np.asarray(covariance, np.float64)
    if matrix.shape != (channels, channels):
        raise StructureError(
            explain_error(
                "fourier: `covariance` must have a row and a column for each channel.",
                got=f"shape {matrix.shape}",
                need=f"{(channels, channels)}",
                fix="np.cov(images.reshape(-1, channels).T)",
            )
        )
    variances, directions = np.linalg.eigh(matrix)
    if not variances[0] > 0:
        raise SettingError(
            explain_error("fourier: `covariance` must be positive definite.", got=f"eigenvalues {variances}")
        )
    return (directions * np.sqrt(variances)) @ directions.T


def _of_shape(name: str, x: jax.Array, shape: Sequence[int]) -> jax.Array:
    if jnp.shape(x) != tuple(shape):
        raise StructureError(
            explain_error(f"{name}: the start has a different shape.", got=f"{jnp.shape(x)}", need=f"{tuple(shape)}")
        )
    return x
