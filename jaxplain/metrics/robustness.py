r"""Robustness: how much does the explanation change when the input hardly does? Lower is better.

Every metric compares the explanation R at the input x with those at its neighbours x′: it takes the largest (or the mean) of a ratio, and is
`metric(explain, neighbours=..., **settings) -> measure`, `measure(x, *args, key=key)` → one number for one example. What a neighbour is, the user says: `ball`,
`gaussian`, `translations`, `given` (a list), `drawn` (any function) or `ascent`, which looks for the worst one.

All metrics hold the other arguments of the explainer (the label) fixed, and a stochastic explainer gets the same key everywhere: what changes is x alone. Inputs and maps
may be pytrees; norms run over all of their float leaves together. Neighbours equal to x (a radius below the resolution of x's dtype) do not count. The result is NaN if
there is none left, or if the explanation of x, or of one neighbour, is not finite.

A robust explanation is not a right one: a constant map is perfectly robust. Where the score itself jumps, a robust explanation would be wrong.
"""

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain._accumulate import evaluate
from jaxplain._errors import SettingError, StructureError, TransformError, explain_error
from jaxplain._explainer import chunk_of, positive_int
from jaxplain._tree import Arguments, Leaves, cast_like, require_not_negative, subtract, upcast
from jaxplain.graph.stage import Program
from jaxplain.metrics._explained import (
    ExplainerMeasure,
    all_finite,
    explainer_key,
    float_map,
    norm_of,
    require_explaining,
    require_function,
)

# compare(x′) -> (the ratio, whether x′ counts as a neighbour)
Compare: TypeAlias = Callable[[Leaves], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Neighbours:
    """Which inputs count as neighbours of x; made by `ball`, `gaussian`, `translations`, `given`, `drawn` and `ascent`.

    Attributes:
        n: how many there are.
        stochastic: whether they are drawn: neighbour k with the key `fold_in(key, k)`.
        visit: `visit(arguments, compare)` → a function of k and that key: the largest ratio found there, and whether it counts.
    """

    n: int
    stochastic: bool
    visit: Callable[[Arguments, Compare], Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]]
    is_search: bool = False


def ball(radius: Any, *, n_samples: int = 10, norm: Literal["inf", "2"] = "inf") -> Neighbours:
    r"""Inputs drawn uniformly from a ball around x: $\lVert (x' - x) / r \rVert \le 1$.

    Arguments:
        radius: r, in units of x; a number, a pytree like x, or a function of x. With several argnums a tuple (`None`: not moved). What has radius 0
            does not move, and is no dimension of the ball.
        n_samples: neighbours drawn (Python integer).
        norm: "inf": every element moves by a number of its own from [−r, r). "2": the ball of the Euclidean norm over all leaves together (an ellipsoid, if radii
            differ). In d dimensions nearly all of it is at its surface, where elements move by about r/√d.

    Draws: leaf i of x is moved by r · `jax.random.uniform(keys[i], minval=-1, maxval=1)` with `keys = jax.random.split(key, leaves)`, in float32 or better. "2":
    by r · u · g/‖g‖, with `keys = split(key, leaves + 1)`, g standard normal from `keys[i]`, $u = v^{1/d}$ and v uniform from the last. Then x′ is rounded to x's dtype. It is not clipped
    to the range of the data: see `drawn`.
    """
    positive_int("metrics.ball", "n_samples", n_samples)
    unit = _Ball("metrics.ball", radius, norm)

    def points(arguments: Arguments) -> Callable[[jax.Array, Any], Leaves]:
        move, draw, _ = unit.at(arguments)
        return lambda _k, key: move(draw(key))

    return _sampled(n_samples, True, points)


def gaussian(noise: Any, *, n_samples: int = 10) -> Neighbours:
    r"""Inputs with noise: $x' = x + \epsilon$, $\epsilon \sim \mathcal N(0, \sigma^2)$.

    Arguments:
        noise: σ in units of x; a number, a pytree like x, or a function of x. With several argnums a tuple (`None`: no noise there).
        n_samples: neighbours drawn (Python integer).

    Draws: leaf i gets σ · `jax.random.normal(keys[i])`, `keys = jax.random.split(key, leaves)`; then x′ is rounded to x's dtype.
    """
    positive_int("metrics.gaussian", "n_samples", n_samples)

    def points(arguments: Arguments) -> Callable[[jax.Array, Any], Leaves]:
        x = upcast(arguments.leaves)
        sigma = arguments.like(noise, "noise", none=jnp.zeros_like)
        return lambda _k, key: _shifted(x, sigma, _each(jax.random.normal, jax.random.split(key, len(x)), x))

    return _sampled(n_samples, True, points)


def drawn(draw: Callable[[jax.Array, Any], Any], *, n_samples: int = 10) -> Neighbours:
    """Inputs drawn by a function of the user's: `draw(key, x) -> x′`, like x (with several argnums, the tuple of them).

    Rotations, other lighting, or a ball that is clipped to the range of the data.
    """
    method = "metrics.drawn"
    positive_int(method, "n_samples", n_samples)
    require_function(method, "draw", draw)

    def points(arguments: Arguments) -> Callable[[jax.Array, Any], Leaves]:
        x = arguments.explained

        def point(_k: jax.Array, key: Any) -> Leaves:
            value = draw(key, x)
            got, need = (jax.tree.map(jnp.shape, tree) for tree in (value, x))
            trees: list[Any] = [jax.tree.structure(tree) for tree in (value, x)]
            if trees[0] != trees[1] or got != need:
                raise StructureError(
                    explain_error(
                        f"{method}: `draw` must return a neighbour with the structure and shapes of x.",
                        got=got,
                        need=need,
                        fix="one neighbour at a time: draw(key, x) -> x′; n_samples says how many",
                    )
                )
            return arguments.float_leaves(value, "neighbour")

        return point

    return _sampled(n_samples, True, points)


def given(points: Any) -> Neighbours:
    """Given inputs: a pytree like x with one more leading axis, of all neighbours (with several argnums, the tuple of them). No randomness.

    Other neighbours for each example: build the measure inside `vmap`, `jax.vmap(lambda x, y, points: continuity(explain, neighbours=given(points))(x, y))`.
    """
    leaves = jax.tree.leaves(points)
    sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise SettingError(
            explain_error(
                "metrics.given: the leaves of `points` need one leading axis, of the neighbours.",
                got=f"leading axes {sorted(map(list, sizes))}",
                fix="jnp.stack([one, another]); a single one: point[None]",
            )
        )

    def visit(arguments: Arguments) -> Callable[[jax.Array, Any], Leaves]:
        stacked = arguments.float_leaves(points, "points", batched=True)
        return lambda k, _key: tuple(leaf[k] for leaf in stacked)

    return _sampled(jnp.shape(leaves[0])[0], False, visit)


def translations(shifts: int | Sequence, *, axes: int | tuple[int, ...] = (0, 1), fill: Any = 0.0) -> Neighbours:
    """All translations of x by the given numbers of places; what comes in at the edge is `fill`. No randomness.

    Arguments:
        shifts: for one axis an integer m (−m … m) or a sequence of integers; for several axes one of these for each, of which all
            combinations are taken, or one integer for all of them. Positive shifts move the content to higher indices. The shift by zero is left out.
        axes: which axes of x move, of every explained leaf: an integer, or a tuple of them. (0, 1) are the rows and columns of an image.
        fill: a number, a pytree like x, or a function of x; from a pytree the value is taken at the place that it fills.

    The tutorials of Montavon et al. move a digit sideways by up to 20 places: `translations(20, axes=1)`.
    """
    method = "metrics.translations"
    table, named = _shift_table(method, shifts, axes)

    def points(arguments: Arguments) -> Callable[[jax.Array, Any], Leaves]:
        x = upcast(arguments.leaves)
        fills = arguments.like(fill, "fill", none=lambda leaf: leaf)
        for leaf in x:
            if any(not -leaf.ndim <= axis < leaf.ndim for axis in named) or len({a % leaf.ndim for a in named}) < len(
                named
            ):
                raise SettingError(
                    explain_error(
                        f"{method}: every explained array must have the axes that move, each named once.",
                        got=f"axes {named} of shape {list(leaf.shape)}",
                        fix="axes=0 for (time, channels), axes=(1, 2) for (channels, rows, columns)",
                    )
                )

        def point(k: jax.Array, _key: Any) -> Leaves:
            shift = jnp.asarray(table)[k]
            return tuple(_translate(leaf, other, shift, named) for leaf, other in zip(x, fills, strict=True))

        return point

    return _sampled(len(table), False, points)


def ascent(
    radius: Any,
    *,
    n_steps: int = 20,
    step_size: Any = None,
    n_starts: int = 5,
    norm: Literal["inf", "2"] = "inf",
) -> Neighbours:
    r"""The worst neighbour in a ball around x, looked for by projected gradient ascent on the ratio itself.

    Arguments:
        radius, norm: of the ball, as in `ball`.
        n_steps: steps from each start (Python integer).
        step_size: of a step, in radii; `None` is 2.5 / `n_steps`. Steps go along the sign of the gradient ("inf") or along the gradient ("2"), then back into the ball.
        n_starts: random starts (Python integer), which are the draws of `ball`.

    Guarantees: a lower bound of the supremum, like every sample; no less than `ball` with the same radius, norm, key and `n_samples=n_starts` finds, because the largest ratio
    on the whole path counts. It only finds more if the derivative of the explanation says where: the gradient of a ReLU network is piecewise constant, so that its
    sensitivity has no slope and nothing moves (ratios by the distance are pulled towards x), unless the explanation is multiplied by x or smoothed.
    Cost: `n_starts` · (1 + `n_steps` · (one explanation and its gradient)).
    Errors: `TransformError` if the explanation has no derivative in reverse mode.
    References: Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018 (of whom the steps are).
    """
    method = "metrics.ascent"
    positive_int(method, "n_steps", n_steps)
    positive_int(method, "n_starts", n_starts)
    size = 2.5 / n_steps if step_size is None else step_size
    require_not_negative(method, "step_size", size)
    unit = _Ball(method, radius, norm)

    def visit(arguments: Arguments, compare: Compare) -> Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]:
        move, draw, project = unit.at(arguments)

        def height(offset: Leaves) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            found = compare(move(offset))
            return found[0], found

        def climb(carry: tuple, _: None) -> tuple[tuple, None]:
            offset, best, counted = carry
            (_, found), slope = _in_reverse(method, height, offset)
            # 0/0 at x itself; at a jump there is no direction either.
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

    return Neighbours(n_starts, True, visit, is_search=True)


def max_sensitivity(
    explain: Callable[..., Any],
    *,
    neighbours: Neighbours,
    normalize: bool = True,
    predict: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Maximum sensitivity: $\max_{x'} \lVert R(x') - R(x) \rVert_2 \big/ \lVert R(x) \rVert_2$.

    Arguments:
        explain: an explainer of this library, or any function `(x, *args) -> map`; a map may have another shape than x.
        neighbours: the x′, e.g. `jx.metrics.ball(0.02)`; `jx.metrics.ascent(0.02)` looks for the largest value.
        normalize: divide by ‖R(x)‖₂, as Captum and Quantus do, so that methods with other units can be compared; `False` is the paper's.
        predict: `predict(x, *args) -> class`; then only neighbours of the same predicted class count.
        chunk_size: neighbours explained together; memory is that of so many explanations, whatever their number.
        key: random key shared by all examples; otherwise `measure(x, *args, key=key)`, if neighbours are drawn or the explainer is stochastic.

    Returns:
        `measure(x, *args, key=key)` → a number ≥ 0, lower is better. A share of ‖R(x)‖₂, or without `normalize` in units of R.

    Guarantees: 0 iff the explanation is the same at all neighbours. Normalised, unchanged by a factor on R; then NaN for R(x) = 0, of which nothing can be a share. A sample is a lower bound of
    the supremum. Neighbour k is drawn with `fold_in(key, k)`: results do not depend on `chunk_size`, and more neighbours only make it larger. The explainer's own key is
    `fold_in(key, 2**32 - 1)`, at x and at every neighbour.
    Cost: 1 + `neighbours.n` explanations (see `ascent`), none of which is stored.
    Errors: `SettingError` for `neighbours` of another type. `predict` and `explain` must be traceable.
    Differs from: Captum and Quantus give x the same label but a stochastic explainer other draws at each neighbour; Captum takes ‖R(x)‖ = 1 if it is 0.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> near = jx.metrics.ball(0.1, n_samples=50)
        >>> measure = jx.metrics.max_sensitivity(jx.gradient(lambda x: jnp.sum(x**2)), neighbours=near)
        >>> print(measure(jnp.array([3.0, 4.0]), key=jax.random.key(0)) < 0.1 * 2**0.5 / 5)
        True

    References:
        Yeh et al., On the (in)fidelity and sensitivity of explanations, NeurIPS 2019.
    """
    return _measure("max_sensitivity", explain, neighbours, _change(2, False, normalize), predict, chunk_size, key)


def avg_sensitivity(
    explain: Callable[..., Any],
    *,
    neighbours: Neighbours,
    normalize: bool = True,
    predict: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Average sensitivity: the mean over neighbours of $\lVert R(x') - R(x) \rVert_2 \big/ \lVert R(x) \rVert_2$.

    Arguments, guarantees and costs as in `max_sensitivity`, of whose samples it is the mean. An estimate of the expectation over the neighbours' distribution, so that `ascent` is refused.

    References:
        Yeh et al., On the (in)fidelity and sensitivity of explanations, NeurIPS 2019 (the maximum); Bhatt, Weller, Moura, Evaluating and
        aggregating feature-based model explanations, IJCAI 2020 (the mean).
    """
    if isinstance(neighbours, Neighbours) and neighbours.is_search:
        raise SettingError(
            explain_error(
                "metrics.avg_sensitivity: a mean needs neighbours that are drawn, not searched for.",
                got="ascent",
                fix="neighbours=jx.metrics.ball(radius, n_samples=50)",
            )
        )
    ratio = _change(2, False, normalize)
    return _measure("avg_sensitivity", explain, neighbours, ratio, predict, chunk_size, key, mean=True)


def local_lipschitz_estimate(
    explain: Callable[..., Any],
    *,
    neighbours: Neighbours,
    normalize: bool = False,
    predict: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Local Lipschitz estimate: $\max_{x'} \lVert R(x') - R(x) \rVert_2 \big/ \lVert x' - x \rVert_2$.

    Arguments, guarantees and costs as in `max_sensitivity`; `normalize` divides by ‖R(x)‖₂, which the paper does not. Units are those of R over those of x.

    Near x the ratio is that of rounding errors: neighbours should be further away than about √ε ‖x‖ (float32: 3·10⁻⁴ of it).

    Differs from: Quantus adds 1e-10 to the denominator.

    References:
        Alvarez-Melis, Jaakkola, On the robustness of interpretability methods, ICML workshop 2018 (arXiv:1806.08049).
    """
    ratio = _change(2, True, normalize)
    return _measure("local_lipschitz_estimate", explain, neighbours, ratio, predict, chunk_size, key)


def continuity(
    explain: Callable[..., Any],
    *,
    neighbours: Neighbours,
    normalize: bool = False,
    predict: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Explanation continuity: $\max_{x'} \lVert R(x') - R(x) \rVert_1 \big/ \lVert x' - x \rVert_2$.

    Arguments, guarantees and costs as in `max_sensitivity`. `normalize` divides by ‖R(x)‖₁ = Σ|R(x)|: both maps by the same number, so that one whose evidence fades away does count as
    changed. Without it methods of a larger scale lose by their units alone, and numbers of different methods cannot be compared. To divide each map by a sum of its own, let `explain` do so.

    The paper's maximum is over all pairs of inputs; take it over a data set's x, with the neighbours of each. Its series on MNIST is `translations(20, axes=1)`.

    Differs from: Quantus' Continuity divides each map by its own largest value, takes |R|, adds 1e-9 to the denominator, and moves by 28 steps until nothing of the image is left.

    References:
        Montavon, Samek, Müller, Methods for interpreting and understanding deep neural networks, Digital Signal Processing 73, 2018, section 7.1.
    """
    return _measure("continuity", explain, neighbours, _change(1, True, normalize), predict, chunk_size, key)


def relative_input_stability(
    explain: Callable[..., Any],
    *,
    neighbours: Neighbours,
    eps_min: float = 1e-6,
    predict: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Relative input stability: $\max_{x'} \lVert \tfrac{R(x) - R(x')}{R(x)} \rVert_2 \big/ \max(\lVert \tfrac{x - x'}{x} \rVert_2, \epsilon)$.

    Quotients inside the norms are entry by entry: each feature's change is a share of its own size. **Where R(x) or x is 0, `eps_min` stands in its place**: on images with a
    black background that moves, or on maps with zeros, those pixels decide the result.

    Arguments:
        explain, neighbours, chunk_size, key: as in `max_sensitivity`.
        eps_min: ε, the smallest denominator.
        predict: `predict(x, *args) -> class`; the paper takes only neighbours of the same predicted class.

    Returns:
        `measure(x, *args, key=key)` → a number ≥ 0 without units, lower is better.

    Guarantees: where no entry of x and of R is 0, unchanged by factors on R, one for each entry, and 1 for input × gradient of a linear score. Cost: 1 + `neighbours.n` explanations.
    Differs from: Quantus puts `eps_min` into the denominator only where that is 0, and gives NaN as soon as one prediction changes.

    References:
        Agarwal et al., Rethinking stability for attribution-based explanations, arXiv:2203.06877, 2022.
    """

    def ratio(here: "_Point", there: "_Point") -> jax.Array:
        change = norm_of(_relative_change(here.x, there.x, eps_min), 2)
        return norm_of(_relative_change(here.map, there.map, eps_min), 2) / jnp.maximum(change, eps_min)

    return _measure("relative_input_stability", explain, neighbours, ratio, predict, chunk_size, key, eps_min=eps_min)


def relative_output_stability(
    explain: Callable[..., Any],
    *,
    output: Callable[..., Any],
    neighbours: Neighbours,
    eps_min: float = 1e-6,
    predict: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Relative output stability: $\max_{x'} \lVert \tfrac{R(x) - R(x')}{R(x)} \rVert_2 \big/ \max(\lVert h(x) - h(x') \rVert_2, \epsilon)$.

    Arguments:
        output: h, `output(x, *args)` → the logits, all of them: `lambda x, label: model(x[None])[0]`.
        explain, neighbours, eps_min, predict, chunk_size, key: as in `relative_input_stability`.

    Returns, guarantees and costs as there; units are one over those of h. The change of h is not relative, as in the paper. Where the output does not change but the
    explanation does, the result is of the order 1/ε.

    References:
        Agarwal et al., Rethinking stability for attribution-based explanations, arXiv:2203.06877, 2022.
    """

    def ratio(here: "_Point", there: "_Point") -> jax.Array:
        change = norm_of(subtract(here.beside, there.beside), 2)
        return norm_of(_relative_change(here.map, there.map, eps_min), 2) / jnp.maximum(change, eps_min)

    name = "relative_output_stability"
    beside = ("output", output)
    return _measure(name, explain, neighbours, ratio, predict, chunk_size, key, eps_min=eps_min, beside=beside)


def relative_representation_stability(
    explain: Callable[..., Any],
    *,
    representation: Callable[..., Any],
    neighbours: Neighbours,
    eps_min: float = 1e-6,
    predict: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Relative representation stability: $\max_{x'} \lVert \tfrac{R(x) - R(x')}{R(x)} \rVert_2 \big/ \max(\lVert \tfrac{L(x) - L(x')}{L(x)} \rVert_2, \epsilon)$.

    Arguments:
        representation: L, `representation(x, *args)` → the values of a hidden layer, an array or a pytree: `encode` of `encode, decode = jx.split(score, at)`.
        explain, neighbours, eps_min, predict, chunk_size, key: as in `relative_input_stability`.

    Returns, guarantees and costs as there. Units that are 0 at x, as half of a ReLU layer's are, count with 1/ε as soon as they change: take the layer before its activation.

    References:
        Agarwal et al., Rethinking stability for attribution-based explanations, arXiv:2203.06877, 2022.
    """

    def ratio(here: "_Point", there: "_Point") -> jax.Array:
        change = norm_of(_relative_change(here.beside, there.beside, eps_min), 2)
        return norm_of(_relative_change(here.map, there.map, eps_min), 2) / jnp.maximum(change, eps_min)

    name = "relative_representation_stability"
    beside = ("representation", representation)
    return _measure(name, explain, neighbours, ratio, predict, chunk_size, key, eps_min=eps_min, beside=beside)


class _Point(NamedTuple):
    """What a ratio may look at: an input (as the model saw it), its map, what else was asked for, and its predicted class."""

    x: Leaves
    map: Leaves
    beside: Leaves
    label: Any


Ratio: TypeAlias = Callable[[_Point, _Point], jax.Array]


def _change(order: int, per_distance: bool, normalize: bool) -> Ratio:
    """‖R(x′) − R(x)‖ in the norm of that order, over ‖x′ − x‖₂, over ‖R(x)‖."""

    def ratio(here: _Point, there: _Point) -> jax.Array:
        change = norm_of(subtract(there.map, here.map), order)
        if per_distance:
            change = change / norm_of(subtract(there.x, here.x), 2)
        if normalize:
            size = norm_of(here.map, order)
            change = change / jnp.where(size > 0, size, jnp.nan)
        return change

    return ratio


def _measure(
    name: str,
    explain: Callable[..., Any],
    neighbours: Neighbours,
    ratio: Ratio,
    predict: Callable[..., Any] | None,
    chunk_size: int | None,
    key: jax.Array | None,
    *,
    mean: bool = False,
    eps_min: float = 1.0,
    beside: tuple[str, Callable[..., Any]] | None = None,
) -> ExplainerMeasure:
    """The largest (or mean) ratio over the neighbours; `beside`: what the ratio needs to know of a point beside its map."""
    method = f"metrics.{name}"
    require_explaining(method, explain)
    _require_neighbours(method, neighbours)
    if not eps_min > 0:
        raise SettingError(explain_error(f"{method}: `eps_min` must be positive.", got=repr(eps_min)))
    for setting, function in (("predict", predict), beside or ("", None)):
        if function is not None or setting in ("output", "representation"):
            require_function(method, setting, function)
    chunk = chunk_of(method, chunk_size)
    argnums = getattr(explain, "argnums", 0)

    def compute(args: tuple, key: Any) -> jax.Array:
        arguments = Arguments(method, args, argnums)

        def look(leaves: Leaves, keyword: dict) -> tuple[Leaves, Leaves, Any]:
            call_args = arguments.fill(leaves)
            relevance = float_map(method, "the explanation", explain(*call_args, **keyword))
            others = () if beside is None else float_map(method, f"`{beside[0]}`", beside[1](*call_args))
            return relevance, others, None if predict is None else predict(*call_args)

        keyword = explainer_key(explain, key)
        program = Program(method, look, arguments.leaves, keyword)

        def at(point: Leaves) -> _Point:
            # The model sees x′ in its own dtype: distances must be those of what it sees.
            native = cast_like(point, arguments.leaves)
            return _Point(upcast(native), *program(native, keyword))

        here = at(upcast(arguments.leaves))

        def compare(point: Leaves) -> tuple[jax.Array, jax.Array]:
            there = at(point)
            is_finite = all_finite(tuple(a for p in (here, there) for part in (p.x, p.map, p.beside) for a in part))
            has_moved = jnp.array([jnp.any(a != b) for a, b in zip(here.x, there.x, strict=True)]).any()
            same_class = [
                jnp.all(a == b) for a, b in zip(jax.tree.leaves(here.label), jax.tree.leaves(there.label), strict=True)
            ]
            return jnp.where(is_finite, ratio(here, there), jnp.nan), jnp.array([has_moved, *same_class]).all()

        visit = neighbours.visit(arguments, compare)

        def one(k: jax.Array) -> tuple[jax.Array, jax.Array]:
            return visit(k, jax.random.fold_in(key, k) if neighbours.stochastic else None)

        values, counted = evaluate(one, neighbours.n, chunk)
        if mean:
            value = jnp.sum(jnp.where(counted, values, 0)) / jnp.sum(counted)
        else:
            value = jnp.max(jnp.where(counted, values, -jnp.inf))
        return jnp.where(counted.any(), value, jnp.nan)

    stochastic = neighbours.stochastic or getattr(explain, "needs_key", False)
    return ExplainerMeasure(name, compute, stochastic=stochastic, key=key)


def _require_neighbours(method: str, neighbours: Any) -> None:
    if not isinstance(neighbours, Neighbours):
        raise SettingError(
            explain_error(
                f"{method}: `neighbours` says which inputs are near to x.",
                got=type(neighbours).__name__,
                fix=(
                    "drawn from a box around x: neighbours=jx.metrics.ball(0.02), in units of x",
                    "translations: neighbours=jx.metrics.translations(3)",
                    "your own: neighbours=jx.metrics.drawn(lambda key, x: …)",
                ),
            )
        )


def _sampled(n: int, stochastic: bool, points: Callable[[Arguments], Callable[[jax.Array, Any], Leaves]]) -> Neighbours:
    """Neighbours of which each is looked at as it is."""

    def visit(arguments: Arguments, compare: Compare) -> Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]:
        point = points(arguments)
        return lambda k, key: compare(point(k, key))

    return Neighbours(n, stochastic, visit)


def _larger(best: Any, counted: Any, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    value, counts = found
    return jnp.where(counts, jnp.maximum(best, value), jnp.asarray(best, value.dtype)), counted | counts


class _Ball:
    """The ball around x, in coordinates in which it is the unit ball: offsets u, with x′ = x + r u."""

    def __init__(self, method: str, radius: Any, norm: str):
        if norm not in ("inf", "2"):
            raise SettingError(
                explain_error(f"{method}: unknown `norm`.", got=repr(norm), need="'inf' (a box) or '2' (Euclidean)")
            )
        if isinstance(radius, int | float):
            require_not_negative(method, "radius", radius)
        self.method, self.radius, self.norm = method, radius, norm

    def at(
        self, arguments: Arguments
    ) -> tuple[Callable[[Leaves], Leaves], Callable[[Any], Leaves], Callable[[Leaves], Leaves]]:
        """u → x′, key → u, and u → the nearest one in the ball."""
        x = upcast(arguments.leaves)
        radius = arguments.like(self.radius, "radius", none=jnp.zeros_like)
        for r in radius:
            require_not_negative(self.method, "radius", r)

        def draw(key: Any) -> Leaves:
            if self.norm == "inf":
                keys = jax.random.split(key, len(x))
                return _each(lambda k, shape, dtype: jax.random.uniform(k, shape, dtype, -1, 1), keys, x)
            keys = jax.random.split(key, len(x) + 1)
            normal = _each(jax.random.normal, keys[:-1], x)
            normal = tuple(jnp.where(r > 0, g, 0) for r, g in zip(radius, normal, strict=True))
            length = norm_of(normal, 2)
            dimensions = sum(jnp.sum(r > 0) for r in radius)
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


def _relative_change(here: Leaves, there: Leaves, eps_min: float) -> Leaves:
    return tuple((a - b) / jnp.where(a == 0, eps_min, a) for a, b in zip(here, there, strict=True))


def _shift_table(
    method: str, shifts: int | Sequence, axes: int | tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """All combinations of shifts, one column for each axis, without the one that moves nothing."""
    named = (axes,) if isinstance(axes, int) else tuple(axes)
    parts = [shifts] if isinstance(axes, int) else [shifts] * len(named) if isinstance(shifts, int) else list(shifts)
    try:
        if len(parts) != len(named) or not named:
            raise TypeError
        ranges = [
            range(-part, part + 1) if isinstance(part, int) else [operator.index(s) for s in part] for part in parts
        ]
    except TypeError:
        raise SettingError(
            explain_error(
                f"{method}: `shifts` must be a number of places, or a sequence of them, for each axis.",
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
    """leaf, moved by a traced number of places along each of the axes."""
    inside = jnp.ones((), bool)
    for s, axis in zip(shift, axes, strict=True):
        size = leaf.shape[axis]
        source = jnp.arange(size) - s
        leaf = jnp.take(leaf, jnp.clip(source, 0, max(size - 1, 0)), axis=axis)
        line = [1] * leaf.ndim
        line[axis] = size
        inside = inside & ((source >= 0) & (source < size)).reshape(line)
    return jnp.where(inside, leaf, fill)


def _in_reverse(method: str, height: Callable[[Leaves], Any], offset: Leaves) -> Any:
    """The value and gradient; the explanation has been staged before, so that what fails here is its derivative."""
    try:
        return jax.value_and_grad(height, has_aux=True)(offset)
    except Exception as error:
        raise TransformError(
            explain_error(
                f"{method}: the explanation has no derivative in reverse mode, which ascent follows.",
                got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
                fix=(
                    "sample instead: neighbours=jx.metrics.ball(radius, n_samples=100)",
                    "loops of a fixed length: lax.scan; integrated_gradients without tol",
                ),
            )
        ) from error
