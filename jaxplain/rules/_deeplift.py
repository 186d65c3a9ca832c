"""The rules of DeepLIFT: for each kind of node, a linear map M with M·Δx = Δy exactly, from two evaluations of it.

Notation: x, y at the input, x₀, y₀ at the reference, Δx = x − x₀; J is the node's own derivative. Rounding alone can
make |Δx| ≤ 10·eps·max(|x|, |x₀|). The quotient Δy/Δx is meaningless there, and the derivative takes its place.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._analysis.nodes import Node
from jaxplain._analysis.softmax import Group
from jaxplain._engine.node_view import Layer
from jaxplain._engine.paired import LinearMap, PairedRule, Parts, difference, wide
from jaxplain._ir.graph import is_elementwise
from jaxplain._ir.primitives import Trait
from jaxplain._leaves import same_dtype

Linear = Callable[..., list[jax.Array]]  # takes one array for each input
Rescale = Callable[[Layer, Layer], Linear]

_AFFINE = ("dense", "convolution", "sum", "fft", "scale_shift", "add")
_SPLITTING = ("dense", "convolution", "sum", "add")


def _rule(node: Node) -> Rescale | None:
    # The first case that matches applies, and special cases come before general ones: a top_k with k = 1 is also
    # structural; a quotient of two values and a product with a statistic are also products; the other elementwise
    # nodes, for example x / x, are treated as any function of at most two values.
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
    is_product = node.kind in ("product", "gate") and equation.has(Trait.PRODUCT)
    if is_product and node.statistic is not None and not node.others:
        return _normalized
    if node.kind in ("product", "gate") and equation.op is not lax.div_p:
        return _midpoint
    if node.kind in ("product", "gate", "unknown") and is_elementwise(equation) and len(node.inputs) <= 2:
        return _secant
    if node.kind == "max" and equation.row.winner is not None:
        return _cross_maximum
    return {"softmax": _softmax, "log_softmax": _log_softmax, "logsumexp": _logsumexp}.get(node.kind)


def rescale(node: Node) -> PairedRule | None:
    """The Rescale rule of a node, with one change for each value; None if its kind is not supported."""
    known = _rule(node)
    if known is None:
        return None

    def rule(layer: Layer, reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, None]:
        linear = known(layer, reference)
        return lambda parts: [(out,) for out in linear(*(d for (d,) in parts))], None

    return rule


def _may_choose(node: Node) -> bool:
    """Whether a structural node may copy different elements at the input and at the reference."""
    return node.others_vary or node.named.op in (lax.sort_p, lax.top_k_p)


# Affine nodes, for which the derivative is exact


def _derivative(layer: Layer, _reference: Layer) -> Linear:
    return layer.push_forward


def _mean_derivative(layer: Layer, reference: Layer) -> Linear:
    """½(J + J₀), for weights that differ between input and reference. The effect of their change is not explained."""
    return lambda *d: [(a + b) / 2 for a, b in zip(layer.push_forward(*d), reference.push_forward(*d), strict=True)]


# Elementwise functions of one value, or of two


def _secant(layer: Layer, reference: Layer) -> Linear:
    """Δy/Δx at every element. Of two values, each gets its part of Δy, averaged over which of them changes first."""
    y, xs, x0s = layer.output, layer.inputs, reference.inputs
    rises = _rises(layer, xs, x0s)
    if layer.node.others_vary:  # for example a mask: the mean of the functions with the mask of either point
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
    """The derivatives of an elementwise node at a point; zero where they are not finite, for example of √ at zero."""
    values, pullback = jax.vjp(layer.at, *point)
    slopes = pullback([jnp.ones_like(v) for v in values])
    return tuple(jnp.where(jnp.isfinite(s), s, 0) for s in slopes)


def _middle(x: jax.Array, x0: jax.Array) -> jax.Array:
    """The midpoint, where the derivative equals the quotient Δy/Δx to second order."""
    return (x / 2 + x0 / 2).astype(x.dtype)


def _exceeds_rounding(change: jax.Array, *sizes: jax.Array) -> jax.Array:
    """Whether a change is larger than rounding can make it when numbers of these sizes are added."""
    largest = reduce(jnp.maximum, map(jnp.abs, sizes))
    size, limit = same_dtype(jnp.abs(change), 10 * jnp.finfo(largest.dtype).eps * largest)
    return size > limit


def _quotient(rise: jax.Array, run: jax.Array, slope: jax.Array, *sizes: jax.Array) -> jax.Array:
    """rise / run, or the slope where the run is too small."""
    exceeds = _exceeds_rounding(run, *sizes)
    rise, run, slope = same_dtype(rise, run, slope)
    return jnp.where(exceeds, rise / jnp.where(exceeds, run, 1), slope)


def _scaled(v: jax.Array, factor: jax.Array) -> jax.Array:
    return v.astype(factor.dtype) * factor


# Products, maxima, choices


def _midpoint(layer: Layer, reference: Layer) -> Linear:
    """Δ(ab) = ½(b + b₀)Δa + ½(a + a₀)Δb, i.e. the derivative of a product at the midpoint."""
    point = tuple(_middle(x, x0) for x, x0 in zip(layer.inputs, reference.inputs, strict=True))
    if not layer.node.others_vary:
        return layer.with_inputs(point).push_forward
    return _mean_derivative(layer.with_inputs(point), reference.with_inputs(point))


def _quotient_rule(layer: Layer, reference: Layer) -> Linear:
    """For y = a/b: Δy = (Δa − ȳΔb)/b̄, the midpoint rule of a = y·b with the means ȳ, b̄ of both evaluations.

    It stays bounded if one b is tiny, for example the size that a norm divides by, at a reference of zero. Where b
    changes its sign, b̄ may be zero; the rule for any function of two values applies there.
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
    """For y = s·r with a reciprocal r: the quotient rule for s divided by 1/r, Δy = (2rr₀/(r + r₀))Δs + (ȳ/r̄)Δr.

    For example, s = 3, r = 1/2 at the input and s₀ = 1, r₀ = 1/10 at the reference: y = 3/2 and y₀ = 1/10, so Δy = 7/5.
    With Δs = 2, Δr = 2/5, r̄ = 3/10, ȳ = 4/5, the signal gets (2 · 1/20 / (6/10)) · 2 = 1/3 and the statistic
    (4/5 / (3/10)) · 2/5 = 16/15; together 7/5. The midpoint rule would give 3/5 and 4/5. Where r changes its sign, the
    factors are those of the midpoint rule.
    """
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
    """A maximum that rises is explained by its winner at the input, one that falls by its winner at the reference.

    So Δy/Δx of the winner is between 0 and 1. For example, max(x) rises from 2 to 5 for x = (1, 5) and x₀ = (2, 0): the
    winner at the input is the second element, with Δy/Δx = 3/5.
    """
    y, y0 = layer.output, reference.output
    (equation,) = layer.node.equations
    falls = y > y0 if equation.row.winner == "smallest" else y < y0
    rise = difference(y, y0).astype(y.dtype)
    changes = [difference(x, x0) for x, x0 in zip(layer.inputs, reference.inputs, strict=True)]
    differs = [_exceeds_rounding(c, x, x0) for c, x, x0 in zip(changes, layer.inputs, reference.inputs, strict=True)]
    runs = [jnp.where(m, c, 1).astype(x.dtype) for m, c, x in zip(differs, changes, layer.inputs, strict=True)]

    def linear(*d: jax.Array) -> list[jax.Array]:
        shares = [jnp.where(m, v, 0) / run for m, v, run in zip(differs, d, runs, strict=True)]
        still = [jnp.where(m, 0, v) for m, v in zip(differs, d, strict=True)]
        (won,), (was_won,) = layer.push_forward(*shares), reference.push_forward(*shares)
        return [rise * jnp.where(falls, was_won, won) + layer.push_forward(*still)[0]]

    return linear


def _choice(layer: Layer, reference: Layer) -> Linear:
    """Each output copies one element, J·x at the input and J₀·x₀ at the reference, where J and J₀ may differ.

    Where they do, each of the two elements explains half of its own change, and the rest is shared in proportion to
    |Δx| among the candidates: all elements along the axis of a sort or permutation, otherwise the two. Sorting changes
    no value by more than the largest |Δx|, so the multipliers are small numbers. A jump (another index, with a value
    far away) is left unexplained, and the evaluation reports it.
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
    """The sum along the axis that a node chooses along, at each element; None if it does not choose along one axis."""
    (equation,) = node.equations
    axis = equation.params.get("dimension" if equation.op is lax.sort_p else "axis", -1)
    if equation.op is lax.gather_p:
        indexed = equation.params["dimension_numbers"].start_index_map
        n_read = equation.outputs[0].aval.size // max(1, math.prod(_kept(equation.inputs[0].shape, indexed)))
        if len(indexed) != 1 or n_read != equation.inputs[0].shape[indexed[0]]:
            return None  # not a permutation of all elements
        (axis,) = indexed
    elif equation.op not in (lax.sort_p, lax.top_k_p):
        return None
    return lambda v: jnp.broadcast_to(jnp.sum(v, axis, keepdims=True), v.shape)


def _kept(shape: tuple[int, ...], left_out: Sequence[int]) -> list[int]:
    return [n for axis, n in enumerate(shape) if axis not in left_out]


# Softmax and its logarithms, by the logarithmic mean
#
# Let L = (p − p₀)/(ln p − ln p₀), which lies between p and p₀, and ℓ = logsumexp(u). Because ln p = u − ℓ, we have
# Δp_k = L_k (Δu_k − Δℓ). Because p and p₀ both sum to one, 0 = Σ L_k (Δu_k − Δℓ), and so Δℓ = Σ L_k Δu_k / Σ L_k. The
# map L·(I − 1 Lᵀ/ΣL) is the softmax's own derivative with p replaced by L. It does not depend on a stabilizing shift of
# u.


def _logarithmic_mean(p: jax.Array, p0: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """(p − p₀) / (ln p − ln p₀), or p where the two are equal. Always between p and p₀."""
    differs = jnp.abs(log_ratio) > jnp.sqrt(jnp.finfo(p.dtype).eps)
    mean = jnp.where(differs, (p - p0) / jnp.where(differs, log_ratio, 1), (p + p0) / 2)
    return jnp.clip(mean, jnp.minimum(p, p0), jnp.maximum(p, p0))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, or 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def _softmax(layer: Layer, reference: Layer) -> Linear:
    p, p0 = wide(layer.output), wide(reference.output)
    change = difference(layer.x, reference.x)
    # Δℓ = Δu_k − ln(p_k/p₀_k) for every k. Take the mean over all k whose p_k and p₀_k are both greater than zero.
    common = jnp.minimum(p, p0)
    log_ratio = jnp.log(jnp.where(common > 0, p, 1)) - jnp.log(jnp.where(common > 0, p0, 1))
    weight = layer.group_sum(common)
    shift = jnp.where(
        weight > 0,
        _ratio(layer.group_sum(common * (change - log_ratio)), weight),
        _logsumexp_of(layer, p) - _logsumexp_of(reference, p0),
    )
    mean = _logarithmic_mean(p, p0, jnp.where(common > 0, log_ratio, change - shift))
    total = layer.group_sum(mean) + _rest(layer, p, p0, shift)

    def linear(d: jax.Array) -> list[jax.Array]:
        v = d.astype(mean.dtype)
        return [(mean * (v - _ratio(layer.group_sum(mean * v), total))).astype(layer.output.dtype)]

    return linear


def _logsumexp_of(layer: Layer, p: jax.Array) -> jax.Array:
    """ℓ = Σ p_k (u_k − ln p_k), because every term in parentheses is ℓ."""
    some = p > 0
    u, p = jnp.where(some, wide(layer.x), 0), jnp.where(some, p, 1)
    return layer.group_sum(jnp.where(some, p * (u - jnp.log(p)), 0))


def _rest(layer: Layer, p: jax.Array, p0: jax.Array, shift: jax.Array) -> jax.Array | float:
    """For exp(x) / (1 + Σ exp(x)), whose outputs do not sum to one: the logarithmic mean of the remainder."""
    _, equations = cast(Group, layer.node.group)
    if not any(e.op is lax.add_p for e in equations):
        return 0.0
    rest, rest0 = (jnp.maximum(1 - layer.group_sum(v), 0) for v in (p, p0))
    return jnp.clip(_logarithmic_mean(rest, rest0, -shift), jnp.minimum(rest, rest0), jnp.maximum(rest, rest0))


def _log_softmax(layer: Layer, reference: Layer) -> Linear:
    y, y0 = wide(layer.output), wide(reference.output)
    mean = _logarithmic_mean(jnp.exp(y), jnp.exp(y0), difference(y, y0))
    weights = _ratio(mean, layer.group_sum(mean))
    return lambda d: [d - layer.group_sum(weights * d.astype(weights.dtype)).astype(d.dtype)]


def _logsumexp(layer: Layer, reference: Layer) -> Linear:
    """Its derivatives are p and p₀. Elements with p ≥ p₀ are weighted through J, the others through J₀."""
    (p,), (p0,) = (_slopes(at, at.x) for at in (layer, reference))
    p, p0 = wide(p), wide(p0)
    rise = difference(layer.output, reference.output).astype(layer.output.dtype)
    here = p >= p0
    spread = jnp.where(here, _ratio(layer.transpose(rise)[0], p), _ratio(reference.transpose(rise)[0], p0))
    mean = _logarithmic_mean(p, p0, difference(layer.x, reference.x) - spread)
    at_input = jnp.where(here, _ratio(mean, p), 0).astype(layer.x.dtype)
    at_reference = jnp.where(here, 0, _ratio(mean, p0)).astype(layer.x.dtype)

    def weighted(d: jax.Array) -> jax.Array:
        return layer.push_forward(at_input * d)[0] + reference.push_forward(at_reference * d)[0]

    total = weighted(jnp.ones_like(layer.x))
    return lambda d: [_ratio(weighted(d), total)]


# RevealCancel: positive and negative parts of each change


def is_split(node: Node) -> bool:
    """Whether RevealCancel is defined for a node."""
    if node.kind == "structural":
        return not _may_choose(node)
    return node.kind in (*_SPLITTING, "activation", "scale_shift") and not node.others_vary


def by_sign(change: jax.Array, v: jax.Array) -> Parts:
    """v split into a part of positive changes and a part of negative changes, half each where nothing changes."""
    return _halves(v, jnp.sign(change).astype(v.dtype) * v)


def _halves(total: jax.Array, size: jax.Array) -> Parts:
    """The positive and the negative part, from their sum `total` and their difference `size`."""
    return (total + size) / 2, (total - size) / 2


def _net(parts: Parts) -> jax.Array:
    return parts[0] + parts[1]


def reveal_cancel(node: Node, splits: Callable[[Node], bool]) -> PairedRule | None:
    """The rule of a node with two changes for each value, Δ⁺ and Δ⁻; None if not even Rescale supports its kind.

    The change of a layer that does not split is all in the part of its sign, so that the next activation is Rescale.
    """
    known = _rule(node)
    if known is None or not is_split(node):
        return None if known is None else partial(_whole, known)
    if node.kind == "structural":
        return _copied
    if node.kind == "scale_shift":
        return _scaled_parts
    if node.kind == "activation":
        return _revealed
    if node.kind == "add":
        return _added
    return _split_weights if splits(node) else partial(_whole, known)


def _whole(known: Rescale, layer: Layer, reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, list[Parts]]:
    """Rescale of the net change of the inputs; the change of the outputs is in the part of its sign."""
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


def _scaled_parts(layer: Layer, _reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, None]:
    """Scales and shifts map each part to one part; a negative factor exchanges the two."""
    keeps = layer.push_forward(jnp.ones_like(layer.x))[0] >= 0

    def scaled(parts: Sequence[Parts]) -> list[Parts]:
        (up,), (down,) = (layer.push_forward(side) for side in parts[0])
        return [(jnp.where(keeps, up, down), jnp.where(keeps, down, up))]

    return scaled, None


def _split_weights(layer: Layer, reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, list[Parts]]:
    """Δy⁺ sums the positive contributions w·Δx of the net change, and Δy⁻ the negative ones: Δy⁺ − Δy⁻ = |w|·|Δx|."""
    change = difference(layer.x, reference.x).astype(layer.x.dtype)
    weights, sizes = layer.linear(), layer.linear("absolute")

    def split(parts: Sequence[Parts]) -> list[Parts]:
        d = _net(parts[0])
        return [_halves(weights(d), sizes(jnp.sign(change) * d).astype(layer.output.dtype))]

    rise = difference(layer.output, reference.output).astype(layer.output.dtype)
    return split, [_halves(rise, sizes(jnp.abs(change)).astype(rise.dtype))]


def _added(layer: Layer, _reference: Layer, _changes: Sequence[Parts]) -> tuple[LinearMap, None]:
    """A sum of layers exceeds as one layer: their parts add up, and those of a subtracted layer exchange signs."""
    (equation,) = layer.node.equations
    subtracted = equation.inputs[-1] if equation.op in (lax.sub_p, lax.scatter_sub_p) else None

    def added(parts: Sequence[Parts]) -> list[Parts]:
        signed = [p[::-1] if v is subtracted else p for p, v in zip(parts, layer.node.inputs, strict=True)]
        (up,), (down,) = (layer.push_forward(*side) for side in zip(*signed, strict=True))
        return [(up, down)]

    return added, None


def _revealed(layer: Layer, reference: Layer, changes: Sequence[Parts]) -> tuple[LinearMap, list[Parts]]:
    """Δy⁺ is the effect of Δx⁺, averaged over the cases that it comes before and after Δx⁻; likewise Δy⁻.

    For example, y = relu(x) with x₀ = 0, Δx⁺ = 3, Δx⁻ = −1, so that Δy = 2:

        Δx⁺ first: relu(3) − relu(0) =  3     Δx⁺ last: relu(2) − relu(−1) =  2    Δy⁺ =  5/2, multiplier 5/6
        Δx⁻ first: relu(−1) − relu(0) = 0     Δx⁻ last: relu(2) − relu(3)  = −1    Δy⁻ = −1/2, multiplier 1/2

    After the activation, Δy⁺ and Δy⁻ are one change again, in the part of its sign. Where x₀ + Δx⁺ or x₀ + Δx⁻ leaves
    the domain of the function (for example a variance below zero), Rescale applies.
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
    # The slope is the limit of a multiplier for a part that vanishes. Where the slope is so large that rounding errors
    # times it would matter (1/√v near zero), the secant takes its place.
    size = reduce(jnp.maximum, map(jnp.abs, (x, x0, up, down)))
    is_exact = wide(jnp.abs(slope) * size) <= 100 * jnp.abs(difference(y, y0))
    slope = jnp.where(is_exact, wide(slope), secant)
    # If one part is no larger than rounding errors, it gets the slope, and the other part the rest of Δy.
    runs, sizes = [wide(v) for v in (up, down)], (x, x0, up, down)
    exceeds = [_exceeds_rounding(v, *sizes) for v in runs]
    rises = [
        jnp.where(exceeds[1], rise, difference(y, y0) - slope * runs[1]),
        jnp.where(exceeds[0], fall, difference(y, y0) - slope * runs[0]),
    ]
    parts = zip(rises, runs, strict=True)
    factors = [jnp.where(inside, _quotient(r, v, slope, *sizes), secant) for r, v in parts]
    change = difference(y, y0).astype(y.dtype)

    def revealed(parts: Sequence[Parts]) -> list[Parts]:
        return [by_sign(change, reduce(jnp.add, map(_scaled, parts[0], factors)).astype(y.dtype))]

    return revealed, [by_sign(change, change)]
