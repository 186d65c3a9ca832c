"""Neighborhoods: the inputs that the metrics of robustness compare x with. Each function returns `Neighbors`."""

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxplain._arguments import Arguments
from jaxplain._checks import axes_of, checked, not_negative, number, one_of
from jaxplain._errors import SettingError, StructureError, TransformError, explain_error
from jaxplain._leaves import upcast
from jaxplain._types import Leaves, LikeInput, PyTree
from jaxplain.metrics._protocol import norm_of, require_function

__all__ = ["Neighbors", "ascent", "ball", "drawn", "gaussian", "given", "translations"]

# compare(x′) -> (the ratio, whether x′ counts as a neighbor)
Compare: TypeAlias = Callable[[Leaves], tuple[jax.Array, jax.Array]]

# point(k, key) -> x′
Point: TypeAlias = Callable[[jax.Array, Any], Leaves]

Shifts: TypeAlias = int | Sequence[int | Sequence[int]]


@dataclass(frozen=True)
class Neighbors:
    """Neighbors of x; made by `ball`, `gaussian`, `translations`, `given`, `drawn` and `ascent`.

    Attributes:
        n: Number of neighbors.
        stochastic: Whether they are drawn, neighbor k with the key `fold_in(key, k)`.
        visit: Function `visit(arguments, compare)` → a function of k and that key that returns the largest ratio found
            there, and whether it counts.
        is_search: Whether neighbors are chosen by their ratio.
    """

    n: int
    stochastic: bool
    visit: Callable[[Arguments, Compare], Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]]
    is_search: bool = False


@checked()
def ball(radius: LikeInput, *, n_samples: int = 10, norm: Literal["inf", "2"] = "inf") -> Neighbors:
    r"""Inputs drawn uniformly from a ball around x: $\lVert (x' - x) / r \rVert \le 1$.

    Arguments:
        radius: Radius r in units of x: a number, a pytree like x, or a function of x. With several argnums a tuple
            (`None`: fixed). Elements with radius 0 do not move, and are not counted as dimensions of the ball.
        n_samples: Number of neighbors drawn, a Python integer.
        norm: "inf": every element moves by its own draw from [−r, r). "2": the ball of the Euclidean norm over all
            leaves together (an ellipsoid, if radii differ). In d dimensions nearly all of it is close to its surface,
            where elements move by about r/√d.

    Notes:
        x′ is rounded to x's dtype, but not clipped to the range of the data: for that, see `drawn`.

        With "inf", leaf i of x moves by r · `jax.random.uniform(keys[i], minval=-1, maxval=1)`, in float32 or better,
        with `keys = jax.random.split(key, leaves)`. With "2", it moves by r · u · g/‖g‖, with
        `keys = split(key, leaves + 1)`, standard normal g from `keys[i]`, $u = v^{1/d}$, and uniform v from the last
        key.
    """
    unit = _Ball("metrics.neighbors.ball", radius, norm)

    def points(arguments: Arguments) -> Point:
        move, draw, _ = unit.at(arguments)
        return lambda _k, key: move(draw(key))

    return _sampled(n_samples, True, points)


@checked()
def gaussian(noise: LikeInput, *, n_samples: int = 10) -> Neighbors:
    r"""Inputs with noise: $x' = x + \epsilon$, $\epsilon \sim \mathcal N(0, \sigma^2)$.

    Arguments:
        noise: Standard deviation σ in units of x: a number, a pytree like x, or a function of x. With several argnums a
            tuple (`None`: no noise).
        n_samples: Number of neighbors drawn, a Python integer.

    Notes:
        Leaf i gets σ · `jax.random.normal(keys[i])`, `keys = jax.random.split(key, leaves)`; then x′ is rounded to x's
        dtype.
    """

    def points(arguments: Arguments) -> Point:
        x = upcast(arguments.leaves)
        sigma = arguments.like(noise, "noise", none=jnp.zeros_like, not_negative=True)
        return lambda _k, key: _shifted(x, sigma, _each(jax.random.normal, jax.random.split(key, len(x)), x))

    return _sampled(n_samples, True, points)


@checked()
def drawn(draw: Callable[[jax.Array, PyTree], PyTree], *, n_samples: int = 10) -> Neighbors:
    """Inputs drawn by the user's function `draw(key, x) -> x′`, like x (with several argnums, the tuple of them).

    For example rotations, other lighting, or a ball that is clipped to the range of the data.
    """
    method = "metrics.neighbors.drawn"
    require_function(method, "draw", draw)

    def points(arguments: Arguments) -> Point:
        x = arguments.explained

        def point(_k: jax.Array, key: Any) -> Leaves:
            value = draw(key, x)
            got, need = (jax.tree.map(jnp.shape, tree) for tree in (value, x))
            trees: list[Any] = [jax.tree.structure(tree) for tree in (value, x)]
            if trees[0] != trees[1] or got != need:
                raise StructureError(
                    explain_error(
                        f"{method}: `draw` must return a neighbor with the structure and shapes of x.",
                        got=got,
                        need=need,
                        fix="one neighbor at a time: draw(key, x) -> x′; n_samples says how many",
                    )
                )
            return arguments.float_leaves(value, "neighbor")

        return point

    return _sampled(n_samples, True, points)


def given(points: PyTree) -> Neighbors:
    """Given inputs: a pytree like x with an additional leading axis of neighbors (with several argnums, the tuple of
    them).

    For other neighbors for each example, build the measure inside `vmap`:
    `jax.vmap(lambda x, y, points: continuity(explain, neighbors=given(points))(x, y))`.
    """
    leaves = jax.tree.leaves(points)
    sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise SettingError(
            explain_error(
                "metrics.neighbors.given: all leaves of `points` need the same leading axis of neighbors.",
                got=f"leading axes {sorted(map(list, sizes))}",
                fix="jnp.stack([one, another]); a single one: point[None]",
            )
        )

    def at(arguments: Arguments) -> Point:
        stacked = arguments.float_leaves(points, "points", batched=True)
        return lambda k, _key: tuple(leaf[k] for leaf in stacked)

    return _sampled(jnp.shape(leaves[0])[0], False, at)


def translations(shifts: Shifts, *, axes: int | tuple[int, ...] = (0, 1), fill: LikeInput = 0.0) -> Neighbors:
    """All translations of x by the given numbers of positions, filled up with `fill` at the edges.

    Arguments:
        shifts: For one axis an integer m (−m … m) or a sequence of integers. For several axes one of these for each, of
            which all combinations are taken, or one integer for all. Positive shifts move the content to higher
            indices. The shift by zero is left out.
        axes: Axes along which x moves, of every explained leaf: an integer, or a tuple. (0, 1) are the rows and columns
            of an image.
        fill: A number, a pytree like x, or a function of x; of a pytree, the value at the filled position is taken.

    The tutorials of Montavon et al. move a digit sideways by up to 20 pixels: `translations(20, axes=1)`.
    """
    method = "metrics.neighbors.translations"
    table, named = _shift_table(method, shifts, axes)

    def points(arguments: Arguments) -> Point:
        x = upcast(arguments.leaves)
        fills = arguments.like(fill, "fill", none=lambda leaf: leaf)
        for leaf in x:
            if any(not -leaf.ndim <= axis < leaf.ndim for axis in named) or len({a % leaf.ndim for a in named}) < len(
                named
            ):
                raise SettingError(
                    explain_error(
                        f"{method}: every explained array must have the axes along which it moves, each named once.",
                        got=f"axes {named} of shape {list(leaf.shape)}",
                        fix="axes=0 for (time, channels), axes=(1, 2) for (channels, rows, columns)",
                    )
                )

        def point(k: jax.Array, _key: Any) -> Leaves:
            shift = jnp.asarray(table)[k]
            return tuple(_translate(leaf, other, shift, named) for leaf, other in zip(x, fills, strict=True))

        return point

    return _sampled(len(table), False, points)


@checked(step_size=number())
def ascent(
    radius: LikeInput,
    *,
    n_steps: int = 20,
    step_size: ArrayLike | None = None,
    n_starts: int = 5,
    norm: Literal["inf", "2"] = "inf",
) -> Neighbors:
    r"""The worst neighbor in a ball around x, found by projected gradient ascent on the ratio itself.

    Arguments:
        radius, norm: The ball, as in `ball`.
        n_steps: Number of steps from each start, a Python integer.
        step_size: Size of a step, in radii; `None` is 2.5 / `n_steps`. Steps follow the sign of the gradient ("inf") or
            the gradient ("2"), and are projected back into the ball.
        n_starts: Number of random starts, a Python integer. They are the draws of `ball`.

    Guarantees: a lower bound of the supremum, like every sample. It is no less than the maximum of `ball` with the same
    radius, norm, key and `n_samples=n_starts`, because the largest ratio on the whole path counts. It only finds more
    if the derivative of the explanation is informative. The gradient of a ReLU network is piecewise constant, so that
    its sensitivity has no slope and nothing moves (ratios per distance are pulled toward x), unless the explanation is
    multiplied by x or smoothed.
    Cost: `n_starts` · (1 + `n_steps` · (one explanation and its gradient)).
    Errors: `TransformError` if the explanation has no derivative in reverse mode.

    References:
        Madry et al., Toward deep learning models resistant to adversarial attacks, ICLR 2018 (the steps).
    """
    method = "metrics.neighbors.ascent"
    size = 2.5 / n_steps if step_size is None else step_size
    not_negative(method, "step_size", size)
    unit = _Ball(method, radius, norm)

    def visit(arguments: Arguments, compare: Compare) -> Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]:
        move, draw, project = unit.at(arguments)

        def height(offset: Leaves) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            found = compare(move(offset))
            return found[0], found

        def climb(carry: tuple, _: None) -> tuple[tuple, None]:
            offset, best, counted = carry
            (_, found), slope = _in_reverse(method, height, offset)
            # The ratio is 0/0 at x itself, and has no slope at a jump.
            slope = tuple(jnp.where(jnp.isfinite(s), s, 0) for s in slope)
            if norm == "inf":
                direction = tuple(map(jnp.sign, slope))
            else:
                length = norm_of(slope, 2)
                direction = tuple(s / jnp.where(length > 0, length, 1) for s in slope)
            offset = project(tuple(o + size * d.astype(o.dtype) for o, d in zip(offset, direction, strict=True)))
            return (offset, *_larger(best, counted, found)), None

        def one(_k: jax.Array, key: Any) -> tuple[jax.Array, jax.Array]:
            start = draw(key)
            first = compare(move(start))
            (offset, best, counted), _ = lax.scan(climb, (start, *_larger(-jnp.inf, False, first)), None, n_steps)
            return _larger(best, counted, compare(move(offset)))

        return one

    return Neighbors(n_starts, True, visit, is_search=True)


def _sampled(n: int, stochastic: bool, points: Callable[[Arguments], Point]) -> Neighbors:
    """Neighbors that do not depend on the ratio."""

    def visit(arguments: Arguments, compare: Compare) -> Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]:
        point = points(arguments)
        return lambda k, key: compare(point(k, key))

    return Neighbors(n, stochastic, visit)


def _larger(best: Any, counted: Any, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    value, counts = found
    return jnp.where(counts, jnp.maximum(best, value), jnp.asarray(best, value.dtype)), counted | counts


class _Ball:
    """The ball around x, in coordinates u of the unit ball: x′ = x + r u."""

    def __init__(self, method: str, radius: LikeInput, norm: str):
        one_of(method, "norm", norm, ("inf", "2"))
        if isinstance(radius, int | float):
            not_negative(method, "radius", radius)
        self.method, self.radius, self.norm = method, radius, norm

    def at(
        self, arguments: Arguments
    ) -> tuple[Callable[[Leaves], Leaves], Callable[[Any], Leaves], Callable[[Leaves], Leaves]]:
        """Three functions: u → x′, key → u, and the projection of u into the ball."""
        x = upcast(arguments.leaves)
        radius = arguments.like(self.radius, "radius", none=jnp.zeros_like)
        for r in radius:
            not_negative(self.method, "radius", r)

        def draw(key: Any) -> Leaves:
            if self.norm == "inf":
                keys = jax.random.split(key, len(x))
                return _each(lambda k, shape, dtype: jax.random.uniform(k, shape, dtype, -1, 1), keys, x)
            keys = jax.random.split(key, len(x) + 1)
            normal = _each(jax.random.normal, keys[:-1], x)
            normal = tuple(jnp.where(r > 0, g, 0) for r, g in zip(radius, normal, strict=True))
            length = norm_of(normal, 2)
            dimensions = sum(jnp.sum(r > 0, dtype=length.dtype) for r in radius)
            share = jax.random.uniform(keys[-1], (), length.dtype) ** (1 / jnp.maximum(dimensions, 1))
            return tuple((g * (share / jnp.where(length > 0, length, 1))).astype(g.dtype) for g in normal)

        def project(offset: Leaves) -> Leaves:
            if self.norm == "inf":
                return tuple(jnp.clip(o, -1, 1) for o in offset)
            length = jnp.maximum(norm_of(offset, 2), 1)
            return tuple((o / length).astype(o.dtype) for o in offset)

        return lambda offset: _shifted(x, radius, offset), draw, project


def _each(sample: Callable[[Any, tuple, Any], jax.Array], keys: Any, like: Leaves) -> Leaves:
    return tuple(sample(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, like, strict=True))


def _shifted(x: Leaves, scale: Leaves, offset: Leaves) -> Leaves:
    return tuple(a + s * o for a, s, o in zip(x, scale, offset, strict=True))


def _shift_table(method: str, shifts: Shifts, axes: int | tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """All combinations of shifts, one column for each axis, without the zero shift."""
    is_one = isinstance(axes, int | np.integer)
    named = axes_of()(method, "axes", [axes] if is_one else axes)
    is_number = isinstance(shifts, int | np.integer)
    try:
        parts: list[Any]
        parts = [shifts] * len(named) if is_one or is_number else list(shifts)  # type: ignore[arg-type]
        if len(parts) != len(named):
            raise TypeError
        ranges = [
            range(-int(part), int(part) + 1)
            if isinstance(part, int | np.integer)
            else [operator.index(s) for s in part]
            for part in parts
        ]
    except TypeError:
        raise SettingError(
            explain_error(
                f"{method}: `shifts` must be an integer, or a sequence of them, for each axis.",
                got=f"shifts={shifts!r}, axes={axes!r}",
                fix=(
                    "sideways by up to 20 places: translations(20, axes=1)",
                    "rows by 1, columns by 0, 2 or 4: translations([1, [0, 2, 4]], axes=(0, 1))",
                ),
            )
        ) from None
    table = [combined for combined in dict.fromkeys(itertools.product(*ranges)) if any(combined)]
    if not table:
        raise SettingError(
            explain_error(
                f"{method}: no shift is left that moves x.", got=f"shifts={shifts!r}", need="a shift other than 0"
            )
        )
    return np.array(table, np.int32), named


def _translate(leaf: jax.Array, fill: jax.Array, shift: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`leaf` moved by a traced number of positions along each of the axes."""
    inside = jnp.ones((), bool)
    for s, axis in zip(shift, axes, strict=True):
        size = leaf.shape[axis]
        source = jnp.arange(size, dtype=jnp.int32) - s
        leaf = jnp.take(leaf, jnp.clip(source, 0, max(size - 1, 0)), axis=axis)
        line = [1] * leaf.ndim
        line[axis] = size
        inside = inside & ((source >= 0) & (source < size)).reshape(line)
    return jnp.where(inside, leaf, fill)


def _in_reverse(method: str, height: Callable[[Leaves], Any], offset: Leaves) -> Any:
    """The value and gradient. The explanation has been staged before, so only its derivative can fail here."""
    try:
        return jax.value_and_grad(height, has_aux=True)(offset)
    except Exception as error:
        raise TransformError(
            explain_error(
                f"{method}: the explanation has no derivative in reverse mode, which ascent needs.",
                got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
                fix=(
                    "sample instead: neighbors=jx.metrics.neighbors.ball(radius, n_samples=100)",
                    "loops of a fixed length: lax.scan; integrated_gradients without tol",
                ),
            )
        ) from error
