"""How an input is written as the parameters that are optimised."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logit
from jax.typing import ArrayLike

from jaxplain._errors import SettingError, StructureError, explain_error


class Parametrization(NamedTuple):
    """How an input is written as the parameters that are optimised.

    Attributes:
        decode: parameters -> input.
        encode: start -> parameters: of an input x, those with decode(encode(x)) = x.
    """

    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any]


def pixels() -> Parametrization:
    """The input itself."""
    return Parametrization(lambda x: x, lambda x: x)


def box(low: float = 0.0, high: float = 1.0, of: Parametrization | None = None) -> Parametrization:
    r"""Inputs between `low` and `high`: $x = l + (h - l)\,\sigma(u)$, u written as `of` (itself, unless told).

    Starts are moved inside by 1e-4 of the width, since the edges are at infinity.
    """
    if not low < high:
        raise SettingError(explain_error("box: `low` must be less than `high`.", got=f"low={low}, high={high}"))
    inner = pixels() if of is None else of

    def decode(u: Any) -> Any:
        return jax.tree.map(lambda u: low + (high - low) * jax.nn.sigmoid(u), inner.decode(u))

    def encode(x: Any) -> Any:
        share = jax.tree.map(lambda x: jnp.clip((x - low) / (high - low), 1e-4, 1 - 1e-4), x)
        return inner.encode(jax.tree.map(logit, share))

    return Parametrization(decode, encode)


def fourier(shape: Sequence[int], decay: float = 1.0) -> Parametrization:
    r"""Images (height, width, channels) by their spectrum, each frequency k scaled by $\max(|k|, 1/\max(H, W))^{-\text{decay}}$.

    A step of the optimiser then changes low frequencies, which photographs are made of, more than high ones: a change of basis and of
    metric, which makes no image impossible. Parameters are (height, width // 2 + 1, channels, 2), real and imaginary parts.

    References:
        Olah, Mordvintsev, Schubert: Feature visualization. Distill 2017.
    """
    height, width, _ = image_shape("fourier", shape)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    cycles = np.maximum(
        np.hypot(rows, columns), 1 / max(height, width)
    )  # per pixel; the mean gets those of the lowest other
    scale = (cycles**-decay * np.sqrt(height * width))[..., None]

    def decode(u: jax.Array) -> jax.Array:
        spectrum = lax.complex(u[..., 0], u[..., 1]) * scale.astype(u.dtype)
        return jnp.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))

    def encode(x: jax.Array) -> jax.Array:
        x = _of_shape("fourier", x, shape)
        spectrum = jnp.fft.rfft2(x, axes=(0, 1)) / scale.astype(x.dtype)
        return jnp.stack([spectrum.real, spectrum.imag], -1)

    return Parametrization(decode, encode)


def fixed_magnitude(images: ArrayLike) -> Parametrization:
    r"""MACO: images whose spectrum has the mean magnitude of `images` (n, height, width, channels); the phases alone are optimised.

    Starts keep their phases, and lose their magnitudes: decode(encode(x)) = x only for x of that spectrum.

    References:
        Fel et al.: Unlocking feature visualization for deeper networks with magnitude constrained optimization. NeurIPS 2023.
    """
    images = np.asarray(images)
    height, width, _ = shape = image_shape("fixed_magnitude", images.shape[1:])
    magnitude = np.abs(np.fft.rfft2(images, axes=(1, 2))).mean(0)

    def decode(phase: jax.Array) -> jax.Array:
        spectrum = magnitude.astype(phase.dtype) * jnp.exp(1j * phase)
        return jnp.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))

    def encode(x: jax.Array) -> jax.Array:
        return jnp.angle(jnp.fft.rfft2(_of_shape("fixed_magnitude", x, shape), axes=(0, 1)))

    return Parametrization(decode, encode)


def decoder(generate: Callable[[Any], Any]) -> Parametrization:
    """Inputs that a decoder makes of a code, x = G(z): activation maximisation in code space. The start is a code, not an input.

    References:
        Nguyen, Dosovitskiy, Yosinski, Brox, Clune: Synthesizing the preferred inputs for neurons in neural networks via deep
        generator networks. NeurIPS 2016.
    """
    return Parametrization(generate, lambda z: z)


def image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """`shape`, which must be (height, width, channels)."""
    if len(shape) != 3:
        raise StructureError(
            explain_error(f"{name}: images are (height, width, channels).", got=f"shape {tuple(shape)}")
        )
    height, width, channels = shape
    return height, width, channels


def _of_shape(name: str, x: jax.Array, shape: Sequence[int]) -> jax.Array:
    if jnp.shape(x) != tuple(shape):
        raise StructureError(
            explain_error(f"{name}: the start has another shape.", got=f"{jnp.shape(x)}", need=f"{tuple(shape)}")
        )
    return x
