"""What features are replaced by when a metric takes them out of the input.

Every setting `baseline` of the metrics takes, besides a number, a pytree like x and a function of x, one of these. Which it is decides what a
metric measures: black pixels are evidence themselves where the image is bright, and a network that has never seen them answers for them too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._arguments import Arguments
from jaxplain._checks import not_negative
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._groups import Masks
from jaxplain._leaves import upcast
from jaxplain._references import References, pool_of
from jaxplain._types import Leaves

__all__ = ["Removal", "blur", "channel_mean", "impute", "uniform"]

# fill(masks, key): x with the masked features replaced
Fill: TypeAlias = Callable[[Masks, Any], Leaves]


@dataclass(frozen=True)
class Removal:
    """A way to replace features that is more than a baseline; made by `uniform` and `impute`.

    Attributes:
        name: of the function that made it.
        fill: (x, mask, key) → x, one leaf with its masked features replaced.
        stochastic: whether it needs a key.
    """

    name: str
    fill: Callable[[jax.Array, jax.Array, Any], jax.Array]
    stochastic: bool

    def __repr__(self) -> str:
        return f"<jaxplain removal {self.name}>"


def uniform(low: float = 0.0, high: float = 1.0) -> Removal:
    r"""Replace each feature by a draw of its own from $\mathcal U(\text{low}, \text{high})$, in units of x."""
    return Removal(
        "uniform", lambda x, mask, key: jnp.where(mask, jax.random.uniform(key, x.shape, x.dtype, low, high), x), True
    )


def channel_mean(*, axes: Sequence[int] = (0, 1)) -> Callable[[Any], Any]:
    """Replace features by the mean of x over `axes`: for an image (H, W, C) one color. A function x → baseline."""
    return lambda x: jax.tree.map(lambda a: jnp.broadcast_to(jnp.mean(a, axis=tuple(axes), keepdims=True), a.shape), x)


def blur(sigma: float, *, axes: Sequence[int] = (0, 1)) -> Callable[[Any], Any]:
    r"""Replace features by a blurred x: a Gaussian of σ = `sigma` features along each of `axes`, cut off at 4σ. A function x → baseline.

    Outside of the input it continues with the values at its edge.
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


def impute(*, noise: float = 0.01, axes: tuple[int, int] = (0, 1)) -> Removal:
    r"""Noisy linear imputation (ROAD): each removed pixel is the weighted mean of its eight neighbors, all of them solved at once.

    $u_i = \sum_j w_{ij} u_j \big/ \sum_j w_{ij}$ over the neighbors j inside the image, $w = \frac16$ for the four beside and $\frac1{12}$ for the four
    across, with u = x at the pixels that are left; then noise of standard deviation `noise` is added to the removed ones. What is removed can thus not
    be told from its shape, which a constant would show.

    Arguments:
        noise: standard deviation, in units of x.
        axes: the two axes of places; all other axes (channels) are imputed by themselves.

    Guarantees: pixels that are left are unchanged. The system is symmetric and positive definite, and solved by conjugate gradients to a relative residual of 1e-5
    (float32) or 1e-8 (float64), in at most 10 (height + width) steps. Where nothing is left, the mean of the channel, which solves it too.

    References:
        Rong et al., A consistent and efficient evaluation strategy for attribution methods, ICML 2022.
    """
    not_negative("metrics.removal.impute", "noise", noise)

    def fill(x: jax.Array, mask: jax.Array, key: Any) -> jax.Array:
        if x.ndim < 2:
            raise StructureError(
                explain_error(
                    "metrics.removal.impute: pixels are imputed from their neighbors, on two axes.",
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
    """x (height, width) with its masked pixels imputed."""

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
    shifted = jnp.where(mask, 0, x - start)  # so that an isolated system has the solution 0
    right = jnp.where(mask, of_neighbors(shifted), 0)

    def system(u: jax.Array) -> jax.Array:
        return jnp.where(mask, weight * u - of_neighbors(jnp.where(mask, u, 0)), u)

    tolerance = 1e-5 if x.dtype == jnp.float32 else 1e-8
    solution = jax.scipy.sparse.linalg.cg(system, right, tol=tolerance, maxiter=10 * sum(x.shape))[0]
    return jnp.where(mask, solution + start, x)


def draws(baseline: Any) -> bool:
    """Whether the setting needs a key."""
    return isinstance(baseline, References) or (isinstance(baseline, Removal) and baseline.stochastic)


def filler(arguments: Arguments, baseline: Any) -> Fill:
    """x with masked features replaced, for what a user gives as `baseline`."""
    x = upcast(arguments.leaves)
    if isinstance(baseline, Removal):

        def fill(masks: Masks, key: Any) -> Leaves:
            keys = jax.random.split(key, len(x)) if baseline.stochastic else [None] * len(x)
            return tuple(baseline.fill(*parts) for parts in zip(x, masks, keys, strict=True))

        return fill
    is_drawn = isinstance(baseline, References)
    if is_drawn and baseline.n is not None:
        raise SettingError(
            explain_error(
                f"{arguments.method}: one reference is drawn for each evaluation.",
                got=f"jx.references(…, n={baseline.n})",
                fix="baseline=jx.references(pool)",
            )
        )
    pool, size = baseline.leaves(arguments) if is_drawn else pool_of(arguments, baseline, None)

    def replace(masks: Masks, key: Any) -> Leaves:
        which = jax.random.randint(key, (), 0, size) if is_drawn else 0
        return tuple(jnp.where(mask, leaf[which], a) for mask, leaf, a in zip(masks, pool, x, strict=True))

    return replace
