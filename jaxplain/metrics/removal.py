"""Replacements of features that a metric removes from the input.

The setting `baseline` of the metrics is a number, a pytree like x, a function of x, `jx.references(...)`, or one of
these. The choice matters: on a bright image, black pixels are evidence themselves, and the network may never have seen
such inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._arguments import Arguments
from jaxplain._checks import axes_of, checked, number
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._leaves import upcast
from jaxplain._references import References, pool_of
from jaxplain._types import Leaves, LikeInput, Masks, PyTree

__all__ = ["Removal", "blur", "channel_mean", "impute", "uniform"]

# fill(masks, key) -> x with the masked features replaced
Fill: TypeAlias = Callable[[Masks, Any], Leaves]


@dataclass(frozen=True)
class Removal:
    """A replacement that is not a fixed baseline; made by `uniform` and `impute`.

    Attributes:
        name: Name of the function that made it.
        fill: Function (x, mask, key) → x of one leaf, with its masked features replaced.
        stochastic: Whether it needs a key.
    """

    name: str
    fill: Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
    stochastic: bool

    def __repr__(self) -> str:
        return f"<jaxplain removal {self.name}>"


Replacement: TypeAlias = LikeInput | References | Removal
"""The setting `baseline` of a metric that removes features."""


@checked()
def uniform(low: float = 0.0, high: float = 1.0) -> Removal:
    r"""Replaces each feature by an independent draw from $\mathcal U(\text{low}, \text{high})$, in units of x."""

    def fill(x: jax.Array, mask: jax.Array, key: Any) -> jax.Array:
        return jnp.where(mask, jax.random.uniform(key, x.shape, x.dtype, low, high), x)

    return Removal("uniform", fill, True)


@checked()
def channel_mean(*, axes: Sequence[int] = (0, 1)) -> Callable[[PyTree], PyTree]:
    """Replaces features by the mean of x over `axes`: one color for an image (H, W, C). A function x → baseline."""
    return lambda x: jax.tree.map(lambda a: jnp.broadcast_to(jnp.mean(a, axis=tuple(axes), keepdims=True), a.shape), x)


@checked()
def blur(sigma: float, *, axes: Sequence[int] = (0, 1)) -> Callable[[PyTree], PyTree]:
    r"""Replaces features by x blurred with a Gaussian of σ = `sigma` features along each of `axes`.

    The Gaussian is cut off at 4σ, and x is extended by the values at its edges. A function x → baseline.
    """
    if not isinstance(sigma, int | float) or not sigma > 0:
        raise SettingError(
            explain_error("metrics.removal.blur: `sigma` must be a positive Python number.", got=repr(sigma))
        )
    radius = max(round(4 * sigma), 1)

    def blurred(x: jax.Array) -> jax.Array:
        weights = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1, dtype=x.dtype) / sigma) ** 2)
        weights = weights / jnp.sum(weights)
        for axis in axes:
            padded = jnp.pad(
                x, [(radius, radius) if a == axis % x.ndim else (0, 0) for a in range(x.ndim)], mode="edge"
            )
            x = sum(
                (w * lax.slice_in_dim(padded, k, k + x.shape[axis], axis=axis) for k, w in enumerate(weights)),
                start=jnp.zeros_like(x),
            )
        return x

    return lambda x: jax.tree.map(blurred, x)


@checked(noise=number(), axes=axes_of(2))
def impute(*, noise: float = 0.01, axes: tuple[int, int] = (0, 1)) -> Removal:
    r"""Noisy linear imputation (ROAD): each removed pixel is the weighted mean of its eight neighbors, all solved at
    once.

    $u_i = \sum_j w_{ij} u_j \big/ \sum_j w_{ij}$ over the neighbors j inside the image, with $w = \frac16$ for
    horizontal and vertical and $\frac1{12}$ for diagonal neighbors, and u = x at the remaining pixels. Then noise of
    standard deviation `noise` is added to the removed pixels. A constant would reveal the shape of the removed region;
    this does not.

    Arguments:
        noise: Standard deviation, in units of x.
        axes: The two axes of rows and columns. All other axes (channels) are imputed separately.

    Guarantees: remaining pixels are unchanged. The system is symmetric and positive definite, and solved by conjugate
    gradients to a relative residual of 1e-5 (float32) or 1e-8 (float64), in at most 10 (height + width) steps. If no
    pixel remains, the result is the mean of the channel, which is a solution, too.

    References:
        Rong et al., A consistent and efficient evaluation strategy for attribution methods, ICML 2022.
    """

    def fill(x: jax.Array, mask: jax.Array, key: Any) -> jax.Array:
        if x.ndim < 2:
            raise StructureError(
                explain_error(
                    "metrics.removal.impute: pixels are imputed from their neighbors, along two axes.",
                    got=f"an input of shape {x.shape}",
                    fix="baseline=0.0, baseline=jx.metrics.removal.uniform(), baseline=lambda x: …",
                )
            )
        first = jnp.moveaxis(x, axes, (0, 1))
        masked = jnp.moveaxis(mask, axes, (0, 1))
        planes = first.reshape(*first.shape[:2], -1)
        filled = jax.vmap(_impute_plane, in_axes=2, out_axes=2)(planes, masked.reshape(planes.shape))
        filled = jnp.moveaxis(filled.reshape(first.shape), (0, 1), axes)
        if key is not None:
            filled = filled + noise * jax.random.normal(key, x.shape, x.dtype)
        return jnp.where(mask, filled, x)

    return Removal("impute", fill, not isinstance(noise, int | float) or noise > 0)


_WEIGHTS = ((1 / 12, 1 / 6, 1 / 12), (1 / 6, 0.0, 1 / 6), (1 / 12, 1 / 6, 1 / 12))


def _impute_plane(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x (height, width) with the masked pixels imputed."""

    def of_neighbors(u: jax.Array) -> jax.Array:
        padded = jnp.pad(u, 1)
        rows = [lax.slice_in_dim(padded, i, i + u.shape[0], axis=0) for i in range(3)]
        return sum(
            (
                w * lax.slice_in_dim(row, j, j + u.shape[1], axis=1)
                for row, weights in zip(rows, _WEIGHTS, strict=True)
                for j, w in enumerate(weights)
                if w
            ),
            start=jnp.zeros_like(u),
        )

    weight = of_neighbors(jnp.ones_like(x))
    start = jnp.mean(x)
    shifted = jnp.where(mask, 0, x - start)  # without remaining pixels the solution is 0
    right = jnp.where(mask, of_neighbors(shifted), 0)

    def system(u: jax.Array) -> jax.Array:
        return jnp.where(mask, weight * u - of_neighbors(jnp.where(mask, u, 0)), u)

    tolerance = 1e-5 if x.dtype == jnp.float32 else 1e-8
    solution = jax.scipy.sparse.linalg.cg(system, right, tol=tolerance, maxiter=10 * sum(x.shape))[0]
    return jnp.where(mask, solution + start, x)


def draws(baseline: Replacement) -> bool:
    """Whether the replacement needs a key."""
    return isinstance(baseline, References) or (isinstance(baseline, Removal) and baseline.stochastic)


def filler(arguments: Arguments, baseline: Replacement) -> Fill:
    """Returns (masks, key) → x with the masked features replaced."""
    x = upcast(arguments.leaves)
    if isinstance(baseline, Removal):

        def fill(masks: Masks, key: Any) -> Leaves:
            keys = jax.random.split(key, len(x)) if baseline.stochastic else [None] * len(x)
            return tuple(baseline.fill(*parts) for parts in zip(x, masks, keys, strict=True))

        return fill
    is_pool = isinstance(baseline, References)
    if not isinstance(baseline, References):
        pool, size = pool_of(arguments, baseline, None)
    elif baseline.n is None:
        pool, size = baseline.leaves(arguments)
    else:
        raise SettingError(
            explain_error(
                f"{arguments.method}: one reference is drawn for each evaluation.",
                got=f"jx.references(…, n={baseline.n})",
                fix="baseline=jx.references(pool)",
            )
        )

    def replace(masks: Masks, key: Any) -> Leaves:
        which = jax.random.randint(key, (), 0, size) if is_pool else 0
        return tuple(jnp.where(mask, leaf[which], a) for mask, leaf, a in zip(masks, pool, x, strict=True))

    return replace
