"""The rules of DeepLIFT: for each kind of node, a linear map M with M·Δx = Δy exactly, from two evaluations of it.

Notation: x, y at the input, x₀, y₀ at the reference, Δx = x − x₀; J is the node's own derivative. Where |Δx| ≤ 10·eps·max(|x|, |x₀|), which
rounding alone can make, the quotient Δy/Δx means nothing, and the derivative takes its place.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._analysis.activations import is_elementwise
from jaxplain._analysis.nodes import Node
from jaxplain._analysis.softmax import Group
from jaxplain._engine.node_view import Layer
from jaxplain._engine.paired import LinearMap, PairedRule, Parts, difference, wide
from jaxplain._ir.graph import is_elementwise_product
from jaxplain._leaves import same_dtype

Linear = Callable[..., list[jax.Array]]  # of one array for each input
Rescale = Callable[[Layer, Layer], Linear]

_AFFINE = ("dense", "convolution", "sum", "fft", "scale_shift", "add")
_SPLITTING = ("dense", "convolution", "sum", "add")


def _rule(node: Node) -> Rescale | None:
    (*_, equation) = node.equations
    if node.kind in _AFFINE:
        return _mean_derivative if node.others_vary else _derivative
    if equation.op is lax.top_k_p and equation.params["k"] == 1:
        return _cross_maximum
    if node.kind == "structural":
        return _choice if _may_choose(node) else _derivative
    if node.kind == "activation":
        return _secant
    if node.kind in ("product", "gate") and len(node.inputs) == 2 and equation.op is lax.div_p:
        return _quotient_rule
    if (
        node.kind in ("product", "gate")
        and node.statistic is not None
        and not node.others
        and is_elementwise_product(equation)
    ):
        return _normalized
    if node.kind in ("product", "gate") and equation.op is not lax.div_p:
        return _midpoint
    if node.kind in ("product", "gate", "unknown") and is_elementwise(equation) and len(node.inputs) <= 2:
        return _secant
    if node.kind == "max" and equation.row.winner is not None:
        return _cross_maximum
    return {"softmax": _softmax, "log_softmax": _log_softmax, "logsumexp": _logsumexp}.get(node.kind)


def rescale(node: Node) -> PairedRule | None:
    """The Rescale rule of a node, one change for each value; None if there is none for its kind."""
    known = _rule(node)
    if known is None:
        return None

    def rule(layer: Layer, reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, None]:
        linear = known(layer, reference)
        return lambda parts: [(out,) for out in linear(*(d for (d,) in parts))], None

    return rule


def _may_choose(node: Node) -> bool:
    """Whether a structural node may copy other elements at the input than at the reference."""
    return node.others_vary or node.named.op in (lax.sort_p, lax.top_k_p)


# Affine nodes: the derivative is exact


def _derivative(layer: Layer, _reference: Layer) -> Linear:
    return layer.push_forward


def _mean_derivative(layer: Layer, reference: Layer) -> Linear:
    """½(J + J₀): the weights may differ between input and reference; what their own change does is not explained."""
    return lambda *d: [(a + b) / 2 for a, b in zip(layer.push_forward(*d), reference.push_forward(*d), strict=True)]


# Elementwise functions of one value, or of two


def _secant(layer: Layer, reference: Layer) -> Linear:
    """Δy/Δx at every element. For two values: each one's part of Δy, averaged over which of them changes first."""
    y, xs, x0s = layer.output, layer.inputs, reference.inputs
    rises = _rises(layer, xs, x0s)
    if layer.node.others_vary:  # a mask from elsewhere: the same function at both points, one and the other on average
        rises = [(a + b) / 2 for a, b in zip(rises, _rises(reference, xs, x0s), strict=True)]
    slopes = _slopes(layer, *(_middle(x, x0) for x, x0 in zip(xs, x0s, strict=True)))
    factors = [
        _quotient(rise, difference(x, x0), slope, x, x0)
        for rise, x, x0, slope in zip(rises, xs, x0s, slopes, strict=True)
    ]
    return lambda *d: [reduce(jnp.add, map(_scaled, d, factors)).astype(y.dtype)]


def _rises(layer: Layer, xs: Sequence[jax.Array], x0s: Sequence[jax.Array]) -> list[jax.Array]:
    (y,), (y0,) = layer.at(*xs), layer.at(*x0s)
    if len(xs) == 1:
        return [difference(y, y0)]
    (only_first,), (only_second,) = layer.at(xs[0], x0s[1]), layer.at(x0s[0], xs[1])
    return [
        (difference(y, only_second) + difference(only_first, y0)) / 2,
        (difference(y, only_first) + difference(only_second, y0)) / 2,
    ]


def _slopes(layer: Layer, *point: jax.Array) -> tuple[jax.Array, ...]:
    """The derivatives of an elementwise node at a point; zero where they are not finite, as √ at zero."""
    values, pullback = jax.vjp(layer.at, *point)
    slopes = pullback([jnp.ones_like(v) for v in values])
    return tuple(jnp.where(jnp.isfinite(s), s, 0) for s in slopes)


def _middle(x: jax.Array, x0: jax.Array) -> jax.Array:
    """Halfway: there the derivative is the quotient to second order."""
    return (x / 2 + x0 / 2).astype(x.dtype)


def _is_moved(change: jax.Array, *sizes: jax.Array) -> jax.Array:
    """Whether a change is more than rounding can make, where numbers of these sizes are added."""
    largest = reduce(jnp.maximum, map(jnp.abs, sizes))
    size, limit = same_dtype(jnp.abs(change), 10 * jnp.finfo(largest.dtype).eps * largest)
    return size > limit


def _quotient(rise: jax.Array, run: jax.Array, slope: jax.Array, *sizes: jax.Array) -> jax.Array:
    """rise / run, or the slope where the run is too small."""
    moved = _is_moved(run, *sizes)
    rise, run, slope = same_dtype(rise, run, slope)
    return jnp.where(moved, rise / jnp.where(moved, run, 1), slope)


def _scaled(v: jax.Array, factor: jax.Array) -> jax.Array:
    return v.astype(factor.dtype) * factor


# Products, maxima, choices


def _midpoint(layer: Layer, reference: Layer) -> Linear:
    """Δ(ab) = ½(b + b₀)Δa + ½(a + a₀)Δb: the derivative of a product halfway."""
    point = tuple(_middle(x, x0) for x, x0 in zip(layer.inputs, reference.inputs, strict=True))
    if not layer.node.others_vary:
        return layer.moved(point).push_forward
    return _mean_derivative(layer.moved(point), reference.moved(point))


def _quotient_rule(layer: Layer, reference: Layer) -> Linear:
    """y = a/b: Δy = (Δa − ȳΔb)/b̄, which is the product rule of a = y·b with the means ȳ, b̄ of both evaluations.

    It stays bounded if one b is tiny, as the size that a norm divides by is at a reference of zero. Where b changes its sign, and b̄ may be
    zero, it is the rule of any function of two values.
    """
    y, b, b0 = layer.output, layer.inputs[1], reference.inputs[1]
    total = (y + reference.output) / 2
    keeps = b * b0 > 0
    middle = jnp.where(keeps, (b + b0) / 2, 1)
    general = _secant(layer, reference)

    def linear(da: jax.Array, db: jax.Array) -> list[jax.Array]:
        (other,) = general(jnp.where(keeps, 0, da), jnp.where(keeps, 0, db))
        return [jnp.where(keeps, (da - total * db) / middle, 0) + other]

    return linear


def _normalized(layer: Layer, reference: Layer) -> Linear:
    """y = s·r, where r is a reciprocal: the quotient rule for s divided by 1/r, Δy = (2rr₀/(r + r₀))Δs + (ȳ/r̄)Δr."""
    which = cast(int, layer.node.statistic)
    r, r0 = layer.inputs[which], reference.inputs[which]
    signal, mean = (_middle(layer.inputs[i], reference.inputs[i]) for i in (1 - which, which))
    middle = _middle(layer.output, reference.output)
    keeps = r * r0 > 0
    safe = jnp.where(keeps, mean, 1)
    of_signal = jnp.where(keeps, r * (r0 / safe), mean)

    def product(s: jax.Array, r: jax.Array) -> jax.Array:
        return layer.at(*((r, s) if which == 0 else (s, r)))[0]

    ones = jnp.ones_like(signal)
    everywhere = product(ones, keeps.astype(r.dtype)) > 0

    def linear(*d: jax.Array) -> list[jax.Array]:
        of_statistic = jnp.where(everywhere, middle * product(ones, d[which] / safe), product(signal, d[which]))
        return [product(d[1 - which], of_signal) + of_statistic]

    return linear


def _cross_maximum(layer: Layer, reference: Layer) -> Linear:
    """A maximum that rises belongs to its winner at the input, one that falls to its winner at the reference.

    So Δy/Δx of the winner is between 0 and 1, since it is ahead of, or behind, by at least Δy.
    """
    y, y0 = layer.output, reference.output
    (equation,) = layer.node.equations
    falls = y > y0 if equation.row.winner == "smallest" else y < y0
    rise = difference(y, y0).astype(y.dtype)
    changes = [difference(x, x0) for x, x0 in zip(layer.inputs, reference.inputs, strict=True)]
    moved = [_is_moved(c, x, x0) for c, x, x0 in zip(changes, layer.inputs, reference.inputs, strict=True)]
    runs = [jnp.where(m, c, 1).astype(x.dtype) for m, c, x in zip(moved, changes, layer.inputs, strict=True)]

    def linear(*d: jax.Array) -> list[jax.Array]:
        shares = [jnp.where(m, v, 0) / run for m, v, run in zip(moved, d, runs, strict=True)]
        still = [jnp.where(m, 0, v) for m, v in zip(moved, d, strict=True)]
        (won,), (was_won,) = layer.push_forward(*shares), reference.push_forward(*shares)
        return [rise * jnp.where(falls, was_won, won) + layer.push_forward(*still)[0]]

    return linear


def _choice(layer: Layer, reference: Layer) -> Linear:
    """Each output copies one element: at the input J·x, at the reference J₀·x₀, perhaps another one.

    Where they differ, half of the change is each one's, and what is still missing is shared in proportion to |Δx| among those that
    the choice is between: all along the axis of a sort or of an order, else the two. Sorting changes no value by more than the
    largest |Δx|, so the multipliers are small numbers. A choice that jumps (another index of values far apart) is not followed: it is
    left unexplained, and the evaluation says so.
    """
    changes = [difference(x, x0).astype(x.dtype) for x, x0 in zip(layer.inputs, reference.inputs, strict=True)]
    pooled = _pooling(layer.node)

    def candidates(values: Sequence[jax.Array]) -> list[jax.Array]:
        if pooled is not None:
            return layer.push_forward(*map(pooled, values))
        return [a + b for a, b in zip(layer.push_forward(*values), reference.push_forward(*values), strict=True)]

    half = _mean_derivative(layer, reference)
    rises = [difference(y, y0) for y, y0 in zip(layer.outputs, reference.outputs, strict=True)]
    missing = [rise - part.astype(rise.dtype) for rise, part in zip(rises, half(*changes), strict=True)]
    sizes = candidates([jnp.abs(c) for c in changes])
    shares = [
        jnp.where(size > 0, jnp.clip(m / jnp.where(size > 0, size, 1), -1, 1), 0).astype(size.dtype)
        for m, size in zip(missing, sizes, strict=True)
    ]

    def linear(*d: jax.Array) -> list[jax.Array]:
        signed = candidates([jnp.sign(c) * v for c, v in zip(changes, d, strict=True)])
        return [a + share * b for a, share, b in zip(half(*d), shares, signed, strict=True)]

    return linear


def _pooling(node: Node) -> Callable[[jax.Array], jax.Array] | None:
    """For a choice along one axis: the sum along it, at each of its elements."""
    (equation,) = node.equations
    axis = equation.params.get("dimension" if equation.op is lax.sort_p else "axis", -1)
    if equation.op is lax.gather_p:
        indexed = equation.params["dimension_numbers"].start_index_map
        n_read = equation.outputs[0].aval.size // max(1, math.prod(_kept(equation.inputs[0].shape, indexed)))
        if len(indexed) != 1 or n_read != equation.inputs[0].shape[indexed[0]]:
            return None  # not an order of all of them
        (axis,) = indexed
    elif equation.op not in (lax.sort_p, lax.top_k_p):
        return None
    return lambda v: jnp.broadcast_to(jnp.sum(v, axis, keepdims=True), v.shape)


def _kept(shape: tuple[int, ...], left_out: Sequence[int]) -> list[int]:
    return [n for axis, n in enumerate(shape) if axis not in left_out]


# Softmax and its logarithms, by the logarithmic mean
#
# With L = (p − p₀)/(ln p − ln p₀), between p and p₀: Δp_k = L_k (Δu_k − Δℓ) for ℓ = logsumexp(u), since ln p = u − ℓ; and as the p sum to
# one before and after, 0 = Σ L_k (Δu_k − Δℓ), so that Δℓ = Σ L_k Δu_k / Σ L_k. The map L·(I − 1 Lᵀ/ΣL) is the softmax's own derivative with
# p replaced by L. It does not depend on what is subtracted from u for safety.


def _logarithmic_mean(p: jax.Array, p0: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """(p − p₀) / (ln p − ln p₀), p where they are equal: always between p and p₀."""
    apart = jnp.abs(log_ratio) > jnp.sqrt(jnp.finfo(p.dtype).eps)
    mean = jnp.where(apart, (p - p0) / jnp.where(apart, log_ratio, 1), (p + p0) / 2)
    return jnp.clip(mean, jnp.minimum(p, p0), jnp.maximum(p, p0))


def _over(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, zero where b is."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def _softmax(layer: Layer, reference: Layer) -> Linear:
    p, p0 = wide(layer.output), wide(reference.output)
    change = difference(layer.x, reference.x)
    # Δℓ = Δu_k − ln(p_k/p₀_k) for every k; the mean over those that neither evaluation has rounded to zero.
    common = jnp.minimum(p, p0)
    log_ratio = jnp.log(jnp.where(common > 0, p, 1)) - jnp.log(jnp.where(common > 0, p0, 1))
    weight = layer.group_sum(common)
    shift = jnp.where(
        weight > 0,
        _over(layer.group_sum(common * (change - log_ratio)), weight),
        _logsumexp_of(layer, p) - _logsumexp_of(reference, p0),
    )
    mean = _logarithmic_mean(p, p0, jnp.where(common > 0, log_ratio, change - shift))
    total = layer.group_sum(mean) + _rest(layer, p, p0, shift)

    def linear(d: jax.Array) -> list[jax.Array]:
        v = d.astype(mean.dtype)
        return [(mean * (v - _over(layer.group_sum(mean * v), total))).astype(layer.output.dtype)]

    return linear


def _logsumexp_of(layer: Layer, p: jax.Array) -> jax.Array:
    """ℓ = Σ p_k (u_k − ln p_k), as every term in brackets is ℓ."""
    some = p > 0
    u, p = jnp.where(some, wide(layer.x), 0), jnp.where(some, p, 1)
    return layer.group_sum(jnp.where(some, p * (u - jnp.log(p)), 0))


def _rest(layer: Layer, p: jax.Array, p0: jax.Array, shift: jax.Array) -> jax.Array | float:
    """The logarithmic mean of what a softmax with one more term in its sum, exp(x) / (1 + Σ exp(x)), leaves over."""
    _, equations = cast(Group, layer.node.group)
    if not any(e.op is lax.add_p for e in equations):
        return 0.0
    rest, rest0 = (jnp.maximum(1 - layer.group_sum(v), 0) for v in (p, p0))
    return jnp.clip(_logarithmic_mean(rest, rest0, -shift), jnp.minimum(rest, rest0), jnp.maximum(rest, rest0))


def _log_softmax(layer: Layer, reference: Layer) -> Linear:
    y, y0 = wide(layer.output), wide(reference.output)
    mean = _logarithmic_mean(jnp.exp(y), jnp.exp(y0), difference(y, y0))
    weights = _over(mean, layer.group_sum(mean))
    return lambda d: [d - layer.group_sum(weights * d.astype(weights.dtype)).astype(d.dtype)]


def _logsumexp(layer: Layer, reference: Layer) -> Linear:
    """Its derivative is p, which says which elements a group has: what an element of p₀ has lost is weighed by J₀."""
    (p,), (p0,) = (_slopes(at, at.x) for at in (layer, reference))
    p, p0 = wide(p), wide(p0)
    rise = difference(layer.output, reference.output).astype(layer.output.dtype)
    here = p >= p0
    spread = jnp.where(here, _over(layer.transpose(rise)[0], p), _over(reference.transpose(rise)[0], p0))
    mean = _logarithmic_mean(p, p0, difference(layer.x, reference.x) - spread)
    at_input = jnp.where(here, _over(mean, p), 0).astype(layer.x.dtype)
    at_reference = jnp.where(here, 0, _over(mean, p0)).astype(layer.x.dtype)

    def weighed(d: jax.Array) -> jax.Array:
        return layer.push_forward(at_input * d)[0] + reference.push_forward(at_reference * d)[0]

    total = weighed(jnp.ones_like(layer.x))
    return lambda d: [_over(weighed(d), total)]


# RevealCancel: positive and negative parts of each change


def is_split(node: Node) -> bool:
    """Whether RevealCancel is defined for a node."""
    if node.kind == "structural":
        return not _may_choose(node)
    return node.kind in (*_SPLITTING, "activation", "scale_shift") and not node.others_vary


def by_sign(change: jax.Array, v: jax.Array) -> Parts:
    """What belongs to a positive change, and to a negative one; half each where there is none."""
    return _halves(v, jnp.sign(change).astype(v.dtype) * v)


def _halves(total: jax.Array, size: jax.Array) -> Parts:
    """The positive and the negative part of something, from their sum and their difference."""
    return (total + size) / 2, (total - size) / 2


def _net(parts: Parts) -> jax.Array:
    return parts[0] + parts[1]


def reveal_cancel(node: Node, splits: Callable[[Node], bool]) -> PairedRule | None:
    """Two changes for each value, Δ⁺ and Δ⁻; None if there is no rule, of Rescale either, for a node of this kind.

    A layer that does not split leaves its change in the part of its sign, and Rescale follows.
    """
    known = _rule(node)
    if known is None or not is_split(node):
        return None if known is None else partial(_whole, known)
    if node.kind == "structural":
        return _copied
    if node.kind == "scale_shift":
        return _carried
    if node.kind == "activation":
        return _revealed
    if node.kind == "add":
        return _added
    return _split_weights if splits(node) else partial(_whole, known)


def _whole(known: Rescale, layer: Layer, reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, list[Parts]]:
    """Rescale: the net change of the inputs, and that of the outputs by its sign."""
    linear = known(layer, reference)
    rises = [difference(y, y0).astype(y.dtype) for y, y0 in zip(layer.outputs, reference.outputs, strict=True)]

    def whole(parts: Sequence[Parts]) -> list[Parts]:
        return [by_sign(rise, out) for rise, out in zip(rises, linear(*map(_net, parts)), strict=True)]

    return whole, [by_sign(rise, rise) for rise in rises]


def _copied(layer: Layer, _reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, None]:
    def copied(parts: Sequence[Parts]) -> list[Parts]:
        up, down = (layer.push_forward(*side) for side in zip(*parts, strict=True))
        return list(zip(up, down, strict=True))

    return copied, None


def _carried(layer: Layer, _reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, None]:
    """One value to one: a negative factor makes a fall of a rise."""
    keeps = layer.push_forward(jnp.ones_like(layer.x))[0] >= 0

    def carried(parts: Sequence[Parts]) -> list[Parts]:
        (up,), (down,) = (layer.push_forward(side) for side in parts[0])
        return [(jnp.where(keeps, up, down), jnp.where(keeps, down, up))]

    return carried, None


def _split_weights(layer: Layer, reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, list[Parts]]:
    """Δy⁺ is the sum of the contributions w·Δx above zero, Δx being net; Δy⁻ of those below. So Δy⁺ − Δy⁻ = |w|·|Δx|."""
    change = difference(layer.x, reference.x).astype(layer.x.dtype)
    weights, sizes = layer.linear(), layer.linear("absolute")

    def split(parts: Sequence[Parts]) -> list[Parts]:
        d = _net(parts[0])
        return [_halves(weights(d), sizes(jnp.sign(change) * d).astype(layer.output.dtype))]

    rise = difference(layer.output, reference.output).astype(layer.output.dtype)
    return split, [_halves(rise, sizes(jnp.abs(change)).astype(rise.dtype))]


def _added(layer: Layer, _reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, None]:
    """A sum of layers is one layer: their parts add up, those of what is subtracted with the other sign."""
    (equation,) = layer.node.equations
    subtracted = equation.inputs[-1] if equation.op in (lax.sub_p, lax.scatter_sub_p) else None

    def added(parts: Sequence[Parts]) -> list[Parts]:
        turned = [p[::-1] if v is subtracted else p for p, v in zip(parts, layer.node.inputs, strict=True)]
        (up,), (down,) = (layer.push_forward(*side) for side in zip(*turned, strict=True))
        return [(up, down)]

    return added, None


def _revealed(layer: Layer, reference: Layer, changes: Sequence[Parts]) -> tuple[LinearMap, list[Parts]]:
    """Δy⁺: what Δx⁺ does alone, and what it does after Δx⁻, on average; Δy⁻ likewise. Then they are one change again.

    Where one alone leaves the domain of the function (a variance below zero), Rescale.
    """
    x, x0, y, y0 = layer.x, reference.x, layer.output, reference.output
    ((up, down),) = changes
    alone = [(x0 + v).astype(x0.dtype) for v in (up, down)]
    inside = reduce(jnp.logical_and, (jnp.isfinite(reference.at(point)[0]) for point in alone))
    (only_up,), (only_down,) = (reference.at(jnp.where(inside, point, x0)) for point in alone)
    rise = (difference(only_up, y0) + difference(y, only_down)) / 2
    fall = (difference(only_down, y0) + difference(y, only_up)) / 2
    slope = (_slopes(layer, x)[0] + _slopes(reference, x0)[0]) / 2
    secant = _quotient(difference(y, y0), difference(x, x0), slope, x, x0)
    # The limit for a part of nothing; but where rounding, times that slope, would count (1/√v beside zero), the secant.
    size = reduce(jnp.maximum, map(jnp.abs, (x, x0, up, down)))
    slope = jnp.where(jnp.abs(slope) * size <= 100 * jnp.abs(difference(y, y0)), slope, secant)
    # Of a part that rounding could have made the slope, of the other what is left: together Δy.
    runs, sizes = [wide(v) for v in (up, down)], (x, x0, up, down)
    moved = [_is_moved(v, *sizes) for v in runs]
    rises = [
        jnp.where(moved[1], rise, difference(y, y0) - slope * runs[1]),
        jnp.where(moved[0], fall, difference(y, y0) - slope * runs[0]),
    ]
    parts = zip(rises, runs, strict=True)
    factors = [jnp.where(inside, _quotient(r, v, slope, *sizes), secant) for r, v in parts]
    change = difference(y, y0).astype(y.dtype)

    def revealed(parts: Sequence[Parts]) -> list[Parts]:
        return [by_sign(change, reduce(jnp.add, map(_scaled, parts[0], factors)).astype(y.dtype))]

    return revealed, [by_sign(change, change)]
