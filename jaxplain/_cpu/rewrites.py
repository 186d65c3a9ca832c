"""The same program in operations that run fast on a CPU.

XLA's CPU backend is slow on four operations of networks: the gradient of max-pooling (a scalar loop), grouped and
depthwise convolutions (a scalar loop), convolutions with few channels, and convolutions inside a loop whose axes are
not in the order (N, spatial, C) × (spatial, in, out), as in every gradient, because only the entry computation is
brought into that order. `faster` replaces these equations by others that are equal up to rounding. They consist of
native operations, so that the result can still be differentiated, batched and sharded. It is applied last, to programs
that have already been differentiated, because derivatives of a replacement may differ at ties. On GPU and TPU nothing
is replaced.
"""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain import _compat
from jaxplain._leaves import wide_dtype

FEW_CHANNELS = 4  # at most this many input or output channels: one matrix product over the window beats the convolution
# … and with few input channels in two dimensions, only for a small window, because XLA is fast on larger ones.
FEW_TAPS = 16
MANY_TAPS = 126  # the winning tap of a pooling window is counted in int8
MANY_PRODUCTS = 500_000  # of one example: from here on a second thread is worth a surplus row of outputs
SURPLUS = 0.15  # such rows, of all
FEW_PRODUCTS = 4  # at most this many weights per group and tap: shifted products beat one convolution per group


def faster(closed: Any) -> Callable[..., list]:
    """`closed` as a function of its flat inputs, with the replacements for the platform in use."""
    if jax.default_backend() != "cpu" or not _compat.contains(closed, _has_kernel):
        return _compat.jaxpr_as_function(closed)

    def run(*inputs: Any) -> list:
        return _compat.evaluate(closed, inputs, _equation)

    return run


def _has_kernel(equation: Any) -> bool:
    return equation.primitive in _KERNELS and _KERNELS[equation.primitive](equation) is not None


def _equation(equation: Any, inputs: list) -> list:
    if equation.primitive in _KERNELS:
        kernel = _KERNELS[equation.primitive](equation)
        return _compat.bind(equation, inputs) if kernel is None else [kernel(*inputs)]
    if _compat.can_rewrite_inside(equation) and any(
        _compat.contains(j, _has_kernel) for j in _compat.inner_jaxprs(equation)
    ):
        return _compat.bind(equation, inputs, rewrite=faster)
    return _compat.bind(equation, inputs)


# Windows: which elements of the input meet which tap at which output. Spatial axes only.


class _Window(NamedTuple):
    """A sliding window over spatial axes; hashable, so that equal layers share one trace."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    dilation: tuple[int, ...]

    def crops(self) -> bool:
        """Whether some padding is negative, as in the gradient of a padding wider than the window."""
        return min(edge for edges in self.padding for edge in edges) < 0

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            ((n - 1) * d + 1 + low + high - ((k - 1) * r + 1)) // s + 1
            for n, k, s, (low, high), d, r in zip(shape, *self, strict=True)
        )


class _Tap(NamedTuple):
    """One tap at one phase of an axis: outputs phase, phase + period, … read inputs start, start + step, …"""

    tap: int
    start: int
    step: int


def _phases(n_out: int, k: int, stride: int, padding: tuple[int, int], spread: int, dilation: int) -> list:
    """For each phase of one output axis: the number of outputs, and the taps that meet an input there.

    A gap between inputs (`spread` > 1, the gradient of a stride) makes outputs differ in which taps meet an input; the
    pattern repeats after `period` outputs.
    """
    period = spread // math.gcd(spread, stride)
    phases = []
    for phase in range(min(period, n_out)):
        places = [(tap, phase * stride + tap * dilation - padding[0]) for tap in range(k)]
        taps = [_Tap(tap, at // spread, period * stride // spread) for tap, at in places if at % spread == 0]
        phases.append((-(-(n_out - phase) // period), taps))
    return phases


def _shifted_sum(x: jax.Array, window: _Window, term: Callable[[jax.Array, tuple[int, ...]], jax.Array]) -> jax.Array:
    """Σ_tap term(inputs that meet this tap, tap), for x of (N, *spatial, …) and terms of (N, *some spatial, …)."""
    n_spatial = len(window.size)
    shape = x.shape[1 : 1 + n_spatial]
    out = window.output_shape(shape)
    axes = [_phases(*numbers) for numbers in zip(out, *window, strict=True)]
    low = [max(0, *(-t.start for _, taps in axis for t in taps), 0) for axis in axes]
    end = [max(0, *(t.start + (n - 1) * t.step + 1 for n, taps in axis for t in taps), 0) for axis in axes]
    rest = x.ndim - 1 - n_spatial
    edges = [(a, max(0, b - n), 0) for a, b, n in zip(low, end, shape, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, *[(0, 0, 0)] * rest])

    def cut(taps: tuple[_Tap, ...], counts: tuple[int, ...]) -> jax.Array:
        starts = [t.start + a for t, a in zip(taps, low, strict=True)]
        stops = [s + (n - 1) * t.step + 1 for s, n, t in zip(starts, counts, taps, strict=True)]
        tail = x.shape[1 + n_spatial :]
        return lax.slice(
            x, (0, *starts, *[0] * rest), (x.shape[0], *stops, *tail), (1, *(t.step for t in taps), *[1] * rest)
        )

    def at_phase(phase: tuple) -> jax.Array:
        counts = tuple(n for n, _ in phase)
        terms = [
            term(cut(taps, counts), tuple(t.tap for t in taps))
            for taps in itertools.product(*(taps for _, taps in phase))
        ]
        if terms:
            return sum(terms[1:], start=terms[0])
        # No tap meets an input at this phase (a stride longer than the window).
        like = jax.eval_shape(lambda x: term(x, (0,) * n_spatial), x[(slice(None), *[slice(1)] * n_spatial)])
        return jnp.zeros((x.shape[0], *counts, *like.shape[1 + n_spatial :]), like.dtype)

    parts = [at_phase(phase) for phase in itertools.product(*axes)]
    return _interleave(parts, [len(axis) for axis in axes], out)


def _interleave(parts: list[jax.Array], periods: list[int], shape: tuple[int, ...]) -> jax.Array:
    """Merges outputs phase, phase + period, … of each axis. `parts` is ordered like `itertools.product`."""
    for axis in reversed(range(len(shape))):
        period, n = periods[axis], -(-shape[axis] // periods[axis])
        parts = [_zip(parts[i : i + period], axis + 1, n, shape[axis]) for i in range(0, len(parts), period)]
    return parts[0]


def _zip(parts: list[jax.Array], axis: int, longest: int, n: int) -> jax.Array:
    if len(parts) == 1:
        return parts[0]
    even = [lax.pad(p, jnp.zeros((), p.dtype), _edges(p.ndim, axis, (0, longest - p.shape[axis], 0))) for p in parts]
    return lax.slice_in_dim(_merge(jnp.stack(even, axis + 1), axis), 0, n, axis=axis)


def _edges(ndim: int, axis: int, edge: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    return [edge if i == axis else (0, 0, 0) for i in range(ndim)]


def _merge(x: jax.Array, axis: int) -> jax.Array:
    """Merges two neighboring axes. An Explicit mesh allows only one pair in a reshape."""
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


# Convolutions, in the order (N, *spatial, C) × (*spatial, in, out).


def _convolution(equation: Any) -> Callable | None:
    p = equation.params
    x, kernel = (v.aval for v in equation.invars)
    if p["batch_group_count"] != 1 or not _real(x, kernel) or _is_spread_out(equation):
        return None
    numbers = p["dimension_numbers"]
    size = tuple(kernel.shape[axis] for axis in numbers.rhs_spec[2:])
    window = _Window(size, p["window_strides"], tuple(map(tuple, p["padding"])), p["lhs_dilation"], p["rhs_dilation"])
    out = equation.outvars[0].aval
    if 0 in (*x.shape, *kernel.shape, *out.shape):
        return None
    groups = p["feature_group_count"]
    n_in, n_out = kernel.shape[numbers.rhs_spec[1]], kernel.shape[numbers.rhs_spec[0]] // groups
    pointwise = (
        math.prod(size) == 1 and {*window.strides, *window.input_dilation} == {1} and not any(sum(window.padding, ()))
    )
    if math.prod(size) > 4 * math.prod(out.shape[axis] for axis in numbers.out_spec[2:]):
        method = "native"  # the gradient of a kernel: its window is an image
    elif groups > 1:
        method = "products" if n_in * n_out <= FEW_PRODUCTS else "split"
    elif pointwise or (_gathers_well(n_in, size) and {*window.input_dilation} == {1}):
        method = "columns"
    elif n_out <= FEW_CHANNELS:
        method = "scatter"
    else:
        method = "threads" if _runs_on_one_thread(window, x, kernel, numbers, out.dtype) else "native"
    data = [(spec[0], *spec[2:], spec[1]) for spec in (numbers.lhs_spec, numbers.out_spec)]
    orders = (*data, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    if method == "native" and all(order == tuple(sorted(order)) for order in orders) and not window.crops():
        return None
    return partial(
        _run_convolution,
        method=method,
        window=window,
        groups=groups,
        orders=orders,
        precision=p["precision"],
        dtype=out.dtype,
    )


def _runs_on_one_thread(window: _Window, x: Any, kernel: Any, numbers: Any, dtype: Any) -> bool:
    """Whether this XLA runs a convolution on one thread, where it could use more.

    It gives two-dimensional convolutions of stride 1, whose outputs are no larger than their inputs, to a library that
    does.
    """
    plain = len(window.size) == 2 and {*window.strides, *window.input_dilation} == {1} and not window.crops()
    if not plain or dtype not in (jnp.float32, jnp.float64) or not _compat.ONE_THREADED_CONVOLUTIONS:
        return False
    if _usable_cpus() == 1:
        return False
    shape = tuple(x.shape[axis] for axis in numbers.lhs_spec[2:])
    surplus, n = _surplus(window, shape), window.output_shape(shape)[0]
    is_work = kernel.size * math.prod(window.output_shape(shape)) >= MANY_PRODUCTS
    return is_work and 0 < surplus <= n * SURPLUS


def _surplus(window: _Window, shape: tuple[int, ...]) -> int:
    """Rows of output to add, so that there is one more of them than of input."""
    return shape[0] - window.output_shape(shape)[0] + 1


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gathers_well(n_in: int, size: tuple[int, ...]) -> bool:
    """Whether the inputs of a window are quickly placed side by side: a few runs of several channels."""
    return n_in <= FEW_CHANNELS and (len(size) != 2 or (n_in > 1 and math.prod(size) <= FEW_TAPS))


def _real(*avals: Any) -> bool:
    return all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals)


def _is_spread_out(equation: Any) -> bool:
    """Whether an operand is split over an Explicit mesh axis, where the equation's own sharding rule decides."""
    return any(_compat.is_sharded(v.aval) for v in equation.invars)


@partial(jax.jit, static_argnames=("method", "window", "groups", "orders", "precision", "dtype"))
def _run_convolution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    method: str,
    window: _Window,
    groups: int,
    orders: tuple,
    precision: Any,
    dtype: Any,
) -> jax.Array:
    x_order, out_order, kernel_order = orders
    x, kernel = x.transpose(x_order), kernel.transpose(kernel_order)
    if window.crops():
        # XLA's convolution (jaxlib 0.10.2, CPU) reads outside of its input when one edge is cropped and another padded.
        edges = zip(window.padding, window.input_dilation, strict=True)
        cropped = [(min(low, 0), min(high, 0), gap - 1) for (low, high), gap in edges]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *cropped, (0, 0, 0)])
        padding = tuple((max(low, 0), max(high, 0)) for low, high in window.padding)
        window = window._replace(padding=padding, input_dilation=(1,) * len(padding))
    # Sum in float32 or better, like the convolution.
    wide = wide_dtype(dtype)
    if method == "products":
        out = _products(x.astype(wide), kernel.astype(wide), window, groups)
    elif method == "columns":
        out = _columns(x, kernel, window, precision, wide)
    elif method == "scatter":
        out = _scatter(x, kernel, window, precision, wide)
    elif method == "threads":
        # A surplus row of outputs keeps the convolution out of that library.
        shape = x.shape[1:-1]
        (low, high), *others = window.padding
        taller = window._replace(padding=((low, high + _surplus(window, shape)), *others))
        out = _native(x, kernel, taller, precision, dtype)[:, : window.output_shape(shape)[0]]
    else:
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        out = jnp.concatenate([_native(a, b, window, precision, dtype) for a, b in parts], -1)
    back = tuple(out_order.index(axis) for axis in range(len(out_order)))
    return out.astype(dtype).transpose(back)


def _native(x: jax.Array, kernel: jax.Array, window: _Window, precision: Any, dtype: Any) -> jax.Array:
    last = x.ndim - 1
    spatial = tuple(range(1, last))
    numbers = lax.ConvDimensionNumbers((0, last, *spatial), (last, last - 1, *range(last - 1)), (0, last, *spatial))
    return lax.conv_general_dilated(
        x, kernel, window.strides, window.padding, window.input_dilation, window.dilation, numbers,
        precision=precision, preferred_element_type=dtype,
    )  # fmt: skip


def _products(x: jax.Array, kernel: jax.Array, window: _Window, groups: int) -> jax.Array:
    """Depthwise: a sum of shifted products, without a matrix product."""
    n_in, n_out = kernel.shape[-2], kernel.shape[-1] // groups
    taps = kernel.reshape(*window.size, n_in, groups, n_out)
    x = x.reshape(*x.shape[:-1], groups, n_in)

    def term(x: jax.Array, tap: tuple[int, ...]) -> jax.Array:
        weights = taps[tap].reshape(n_in, *(1,) * (x.ndim - 2), groups, n_out)
        return sum((x[..., i, None] * weights[i] for i in range(1, n_in)), start=x[..., 0, None] * weights[0])

    out = _shifted_sum(x, window, term)
    return out.reshape(*out.shape[:-2], groups * n_out)


def _columns(x: jax.Array, kernel: jax.Array, window: _Window, precision: Any, dtype: Any) -> jax.Array:
    """Few input channels: the window's inputs side by side, then one matrix product ("im2col")."""
    if math.prod(window.size) > 1 or set(window.strides) != {1} or any(sum(window.padding, ())):
        out = window.output_shape(x.shape[1:-1])
        x = jnp.pad(x, [(0, 0), *window.padding, (0, 0)])

        def cut(tap: tuple[int, ...]) -> jax.Array:
            starts = [t * r for t, r in zip(tap, window.dilation, strict=True)]
            stops = [a + (n - 1) * s + 1 for a, n, s in zip(starts, out, window.strides, strict=True)]
            return lax.slice(x, (0, *starts, 0), (x.shape[0], *stops, x.shape[-1]), (1, *window.strides, 1))

        x = jnp.concatenate([cut(tap) for tap in itertools.product(*map(range, window.size))], -1)
    return jnp.matmul(x, kernel.reshape(-1, kernel.shape[-1]), precision=precision, preferred_element_type=dtype)


def _scatter(x: jax.Array, kernel: jax.Array, window: _Window, precision: Any, dtype: Any) -> jax.Array:
    """Few output channels, as in the gradient of a first layer: a matrix product, then shifted sums of its columns."""
    n_in, n_out = kernel.shape[-2:]
    flat = kernel.reshape(-1, n_in, n_out).swapaxes(0, 1).reshape(n_in, -1)
    columns = jnp.matmul(x, flat, precision=precision, preferred_element_type=dtype)

    def term(part: jax.Array, tap: tuple[int, ...]) -> jax.Array:
        first = n_out * int(np.ravel_multi_index(tap, window.size))
        return lax.slice_in_dim(part, first, first + n_out, axis=-1)

    return _shifted_sum(columns, window, term)


# The gradient of max-pooling.


def _max_pool_gradient(equation: Any) -> Callable | None:
    p = equation.params
    operand = equation.invars[1].aval
    if p["select_prim"] is not lax.ge_p or not _real(operand) or _is_spread_out(equation):
        return None
    empty = 0 in (*operand.shape, *equation.invars[0].aval.shape)  # a window larger than its input has no outputs
    if empty or math.prod(p["window_dimensions"]) > MANY_TAPS:
        return None
    return partial(
        _place_in_windows,
        size=p["window_dimensions"],
        strides=p["window_strides"],
        padding=tuple(map(tuple, p["padding"])),
    )


@partial(jax.jit, static_argnames=("size", "strides", "padding"))
def _place_in_windows(
    source: jax.Array,
    operand: jax.Array,
    *,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
) -> jax.Array:
    """Each element of `source` goes to the first largest element of its window in `operand`: compare, then place."""
    shape = source.shape
    stops = [(n - 1) * s + 1 for n, s in zip(shape, strides, strict=True)]
    taps = list(itertools.product(*map(range, size)))
    padded = jnp.pad(operand, padding, constant_values=-jnp.inf)

    def cut(array: jax.Array, tap: tuple[int, ...]) -> jax.Array:
        return lax.slice(array, tap, [t + n for t, n in zip(tap, stops, strict=True)], strides)

    largest = cut(padded, taps[0])
    which = jnp.zeros(shape, jnp.int8)
    for number, tap in enumerate(taps[1:], 1):
        value = cut(padded, tap)
        keep = largest >= value
        largest = jnp.where(keep, largest, value)
        which = jnp.where(keep, which, jnp.int8(number))
    placed = _tile if all(k <= s for k, s in zip(size, strides, strict=True)) else _overlap
    out = placed(source, which, size, strides, padded.shape)
    return lax.slice(
        out, [low for low, _ in padding], [low + n for (low, _), n in zip(padding, operand.shape, strict=True)]
    )


def _tile(source: jax.Array, which: jax.Array, size: tuple, strides: tuple, shape: tuple) -> jax.Array:
    """Windows that do not overlap: every element belongs to at most one."""
    inner = tuple(range(1, 2 * len(size), 2))
    number = jnp.arange(math.prod(size), dtype=which.dtype).reshape([n for k in size for n in (1, k)])
    placed = jnp.where(lax.expand_dims(which, inner) == number, lax.expand_dims(source, inner), 0)
    zero = jnp.zeros((), source.dtype)
    tiles = lax.pad(
        placed, zero, [edge for k, s in zip(size, strides, strict=True) for edge in ((0, 0, 0), (0, s - k, 0))]
    )
    for axis in range(len(size)):
        tiles = _merge(tiles, axis)
    return lax.pad(tiles, zero, [(0, n - m, 0) for n, m in zip(shape, tiles.shape, strict=True)])


def _overlap(source: jax.Array, which: jax.Array, size: tuple, strides: tuple, shape: tuple) -> jax.Array:
    zero = jnp.zeros((), source.dtype)
    parts = []
    for number, tap in enumerate(itertools.product(*map(range, size))):
        edges = [
            (t, n - t - (m - 1) * s - 1, s - 1) for t, n, m, s in zip(tap, shape, source.shape, strides, strict=True)
        ]
        parts.append(lax.pad(jnp.where(which == number, source, 0), zero, edges))
    return sum(parts[1:], start=parts[0])


_KERNELS: dict[Any, Callable[[Any], Callable | None]] = {
    lax.conv_general_dilated_p: _convolution,
    _compat.SELECT_AND_SCATTER: _max_pool_gradient,
}
