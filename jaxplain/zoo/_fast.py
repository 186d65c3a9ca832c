"""The same function, in operations that train quickly on a CPU.

XLA's CPU backend runs convolutions inside a loop, and the gradient of
max-pooling anywhere, one to two orders of magnitude slower than it could.
:func:`fast` rewrites a function's convolutions as matrix products and its
non-overlapping pooling as reshapes. The values stay the same up to rounding,
so the networks themselves can be written plainly. It is used for training
and nothing else: where maxima tie, the rewritten gradient is shared between
them, while that of ``lax.reduce_window`` goes to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain import _compat


def fast(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return ``fn`` with convolutions and pooling rewritten (see the module)."""

    def wrapped(*args: Any) -> jax.Array:
        (out,) = _run(jax.make_jaxpr(fn)(*args), jax.tree.leaves(args))
        return out

    return wrapped


def _run(closed: Any, args: list[Any]) -> list[Any]:
    jaxpr = _compat.open_jaxpr(closed)
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [_compat.read(values, atom) for atom in eqn.invars]
        primitive, params = eqn.primitive, eqn.params
        if primitive is _compat.JIT:
            outputs = _run(params["jaxpr"], inputs)
        elif primitive is _compat.CONV and _is_plain_conv(params):
            outputs = [_conv(inputs[0], inputs[1], params["window_strides"], params["padding"])]
        elif primitive is _compat.WINDOW_MAX and _is_plain_pool(params):
            outputs = [_pool(inputs[0], params, jnp.max, -jnp.inf)]
        elif primitive is _compat.WINDOW_SUM and _is_plain_pool(params):
            outputs = [_pool(inputs[0], params, jnp.sum, 0)]
        else:
            outputs = _compat.bind(eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [_compat.read(values, atom) for atom in jaxpr.outvars]


def _is_plain_conv(params: dict[str, Any]) -> bool:
    """Two-dimensional, NHWC and HWIO, no groups and no dilation."""
    layout = params["dimension_numbers"]
    return (
        (layout.lhs_spec, layout.rhs_spec, layout.out_spec) == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and {*params["lhs_dilation"], *params["rhs_dilation"]} == {1}
    )


def _is_plain_pool(params: dict[str, Any]) -> bool:
    """Windows that tile the array: stride equals size, and no dilation."""
    return params["window_dimensions"] == params["window_strides"] and {
        *params["base_dilation"],
        *params["window_dilation"],
    } == {1}


def _conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], ...],
) -> jax.Array:
    """Convolve ``(n, h, w, c)`` with ``(i, j, c, d)`` as one matrix product."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, cols, _, channels = kernel.shape
    high = (x.shape[1] - rows) // strides[0] + 1
    wide = (x.shape[2] - cols) // strides[1] + 1
    patches = [
        x[
            :,
            i : i + (high - 1) * strides[0] + 1 : strides[0],
            j : j + (wide - 1) * strides[1] + 1 : strides[1],
        ]
        for i in range(rows)
        for j in range(cols)
    ]
    columns = jnp.concatenate(patches, axis=-1).reshape(-1, kernel[..., 0].size)
    product = columns @ kernel.reshape(-1, channels)
    return product.reshape(x.shape[0], high, wide, channels)


def _pool(x: jax.Array, params: dict[str, Any], reduce: Callable[..., jax.Array], fill: float) -> jax.Array:
    """Reduce the tiles of ``x``: split every axis in (tiles, size), reduce sizes."""
    x = jnp.pad(x, params["padding"], constant_values=fill)
    sizes = params["window_dimensions"]
    tiles = [n // size for n, size in zip(x.shape, sizes, strict=True)]
    split = [k for pair in zip(tiles, sizes, strict=True) for k in pair]
    cut = x[tuple(slice(n * s) for n, s in zip(tiles, sizes, strict=True))]
    return reduce(cut.reshape(split), axis=tuple(range(1, 2 * x.ndim, 2)))
