r"""Robustness: how much does the explanation change when the input hardly changes? Lower is better.

Every metric compares the explanation R at the input x with those at its neighbors x′, and takes the largest (or the
mean) ratio: `metric(explain, neighbors=..., **settings) -> measure`, `measure(x, *args, key=key)` → one number for one
example. The neighbors come from `metrics.neighbors`: `ball`, `gaussian`, `translations`, `given` (a list), `drawn` (any
function) or `ascent`, which searches for the worst one.

All metrics hold the other arguments of the explainer (the label) fixed, and a stochastic explainer gets the same key
everywhere, so that only x changes. Inputs and maps may be pytrees; norms run over all of their float leaves together.
Neighbors equal to x (a radius below the resolution of x's dtype) do not count. The result is NaN if no neighbor counts,
or if the explanation of x, or of a neighbor, is not finite.

A robust explanation need not be right: a constant map is perfectly robust. Where the score itself jumps, a robust
explanation would be wrong.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxplain._accumulate import evaluate
from jaxplain._arguments import Arguments
from jaxplain._checks import checked, chunk_of
from jaxplain._errors import SettingError, explain_error
from jaxplain._ir.program import Program
from jaxplain._leaves import cast_like, subtract, upcast
from jaxplain._types import Args, Explain, Leaves, PyTree, traits
from jaxplain.metrics._protocol import (
    ExplainerMeasure,
    all_finite,
    explainer_key,
    float_map,
    norm_of,
    require_explaining,
    require_function,
)
from jaxplain.metrics.neighbors import Neighbors


@checked()
def max_sensitivity(
    explain: Explain,
    *,
    neighbors: Neighbors,
    normalize: bool = True,
    predict: Callable[..., ArrayLike] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Maximum sensitivity: $\max_{x'} \lVert R(x') - R(x) \rVert_2 \big/ \lVert R(x) \rVert_2$.

    Arguments:
        explain: An explainer of this library, or any function `(x, *args) -> map`. The map may have another shape than
            x.
        neighbors: The x′, for example `jx.metrics.neighbors.ball(0.02)`; `ascent(0.02)` searches for the largest value.
        normalize: Whether to divide by ‖R(x)‖₂, as Captum and Quantus do, so that methods with other units can be
            compared; `False` is the paper's.
        predict: `predict(x, *args) -> class`. If given, only neighbors of the same predicted class count.
        chunk_size: Neighbors explained together; peak memory is that of `chunk_size` explanations.
        key: Random key shared by all examples; otherwise `measure(x, *args, key=key)`, if neighbors are drawn or the
            explainer is stochastic.

    Returns:
        `measure(x, *args, key=key)` → a number ≥ 0, lower is better. A share of ‖R(x)‖₂, or in units of R without
        `normalize`.

    Guarantees: 0 iff the explanation is the same at all neighbors. If normalized, unchanged by a factor on R, and NaN
    for R(x) = 0. A sample is a lower bound of the supremum. Neighbor k is drawn with `fold_in(key, k)`, so that results
    do not depend on `chunk_size`, and more neighbors only increase the value. The explainer's own key is
    `fold_in(key, 2**32 - 1)`, at x and at every neighbor.
    Cost: 1 + `neighbors.n` explanations (see `ascent`), none of which is stored.
    Errors: `SettingError` for `neighbors` of another type. `predict` and `explain` must be traceable.
    Differs from: Captum and Quantus give x the same label, but a stochastic explainer other draws at each neighbor;
    Captum takes ‖R(x)‖ = 1 if it is 0.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> near = jx.metrics.neighbors.ball(0.1, n_samples=50)
        >>> measure = jx.metrics.max_sensitivity(jx.gradient(lambda x: jnp.sum(x**2)), neighbors=near)
        >>> print(measure(jnp.array([3.0, 4.0]), key=jax.random.key(0)) < 0.1 * 2**0.5 / 5)
        True

    References:
        Yeh et al., On the (in)fidelity and sensitivity of explanations, NeurIPS 2019.
    """
    return _measure("max_sensitivity", explain, neighbors, _change(2, False, normalize), predict, chunk_size, key)


@checked()
def avg_sensitivity(
    explain: Explain,
    *,
    neighbors: Neighbors,
    normalize: bool = True,
    predict: Callable[..., ArrayLike] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Average sensitivity: the mean over neighbors of $\lVert R(x') - R(x) \rVert_2 \big/ \lVert R(x) \rVert_2$.

    Arguments, guarantees and costs are those of `max_sensitivity`. As an estimate of the expectation over the
    neighbors' distribution it refuses `ascent`.

    References:
        Yeh et al., On the (in)fidelity and sensitivity of explanations, NeurIPS 2019 (the maximum).
        Bhatt, Weller, Moura, Evaluating and aggregating feature-based model explanations, IJCAI 2020 (the mean).
    """
    if isinstance(neighbors, Neighbors) and neighbors.is_search:
        raise SettingError(
            explain_error(
                "metrics.avg_sensitivity: a mean needs neighbors that are drawn, not searched for.",
                got="ascent",
                fix="neighbors=jx.metrics.neighbors.ball(radius, n_samples=50)",
            )
        )
    ratio = _change(2, False, normalize)
    return _measure("avg_sensitivity", explain, neighbors, ratio, predict, chunk_size, key, mean=True)


@checked()
def local_lipschitz_estimate(
    explain: Explain,
    *,
    neighbors: Neighbors,
    normalize: bool = False,
    predict: Callable[..., ArrayLike] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Local Lipschitz estimate: $\max_{x'} \lVert R(x') - R(x) \rVert_2 \big/ \lVert x' - x \rVert_2$.

    Arguments, guarantees and costs are those of `max_sensitivity`. `normalize` divides by ‖R(x)‖₂, which the paper does
    not. Units are those of R divided by those of x.

    Too close to x, the ratio is that of rounding errors. Neighbors should be further away than about √ε ‖x‖, in float32
    3·10⁻⁴ ‖x‖.

    Differs from: Quantus adds 1e-10 to the denominator.

    References:
        Alvarez-Melis, Jaakkola, On the robustness of interpretability methods, ICML workshop 2018 (arXiv:1806.08049).
    """
    ratio = _change(2, True, normalize)
    return _measure("local_lipschitz_estimate", explain, neighbors, ratio, predict, chunk_size, key)


@checked()
def continuity(
    explain: Explain,
    *,
    neighbors: Neighbors,
    normalize: bool = False,
    predict: Callable[..., ArrayLike] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Explanation continuity: $\max_{x'} \lVert R(x') - R(x) \rVert_1 \big/ \lVert x' - x \rVert_2$.

    Arguments, guarantees and costs are those of `max_sensitivity`. `normalize` divides both maps by the same number,
    ‖R(x)‖₁ = Σ|R(x)|, so that a loss of evidence counts as a change. Without it, numbers of methods with different
    units cannot be compared. To divide each map by its own sum, let `explain` do so.

    The paper's maximum is over all pairs of inputs: take it over the x of a data set, with the neighbors of each. Its
    series on MNIST is `translations(20, axes=1)`.

    Differs from: Quantus' Continuity divides each map by its own largest value, takes |R|, adds 1e-9 to the
    denominator, and moves by 28 steps until nothing of the image is left.

    References:
        Montavon, Samek, Müller, Methods for interpreting and understanding deep neural networks, Digital Signal
        Processing 73, 2018, section 7.1.
    """
    return _measure("continuity", explain, neighbors, _change(1, True, normalize), predict, chunk_size, key)


@checked()
def relative_input_stability(
    explain: Explain,
    *,
    neighbors: Neighbors,
    eps_min: float = 1e-6,
    predict: Callable[..., ArrayLike] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Relative input stability:
    $\max_{x'} \lVert \tfrac{R(x) - R(x')}{R(x)} \rVert_2 \big/ \max(\lVert \tfrac{x - x'}{x} \rVert_2, \epsilon)$.

    Quotients inside the norms are entry by entry: each feature's change is a share of its own size. **Where R(x) or x
    is 0, `eps_min` takes its place.** On images with a black background that moves, or on maps with zeros, those pixels
    dominate the result.

    Arguments:
        explain, neighbors, chunk_size, key: As in `max_sensitivity`.
        eps_min: Smallest denominator ε.
        predict: `predict(x, *args) -> class`; the paper only takes neighbors of the same predicted class.

    Returns:
        `measure(x, *args, key=key)` → a number ≥ 0 without units, lower is better.

    Guarantees: if no entry of x and R is 0, unchanged by a separate factor on each entry of R, and 1 for input ×
    gradient of a linear score.
    Cost: 1 + `neighbors.n` explanations.
    Differs from: Quantus uses `eps_min` in the denominator only where that is 0, and gives NaN as soon as one
    prediction changes.

    References:
        Agarwal et al., Rethinking stability for attribution-based explanations, arXiv:2203.06877, 2022.
    """

    name = "relative_input_stability"
    ratio = _relative(name, lambda here, there: _relative_change(here.x, there.x, eps_min), eps_min)
    return _measure(name, explain, neighbors, ratio, predict, chunk_size, key)


@checked()
def relative_output_stability(
    explain: Explain,
    *,
    output: Callable[..., PyTree],
    neighbors: Neighbors,
    eps_min: float = 1e-6,
    predict: Callable[..., ArrayLike] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Relative output stability:
    $\max_{x'} \lVert \tfrac{R(x) - R(x')}{R(x)} \rVert_2 \big/ \max(\lVert h(x) - h(x') \rVert_2, \epsilon)$.

    Arguments:
        output: Function h, `output(x, *args)` → all logits: `lambda x, label: model(x[None])[0]`.
        explain, neighbors, eps_min, predict, chunk_size, key: As in `relative_input_stability`.

    Returns, guarantees and costs are the same, but units are one over those of h. As in the paper, the change of h is
    not relative. If the explanation changes but the output does not, the result is of the order 1/ε.

    References:
        Agarwal et al., Rethinking stability for attribution-based explanations, arXiv:2203.06877, 2022.
    """

    name = "relative_output_stability"
    ratio = _relative(name, lambda here, there: subtract(here.extra, there.extra), eps_min)
    return _measure(name, explain, neighbors, ratio, predict, chunk_size, key, extra=("output", output))


@checked()
def relative_representation_stability(
    explain: Explain,
    *,
    representation: Callable[..., PyTree],
    neighbors: Neighbors,
    eps_min: float = 1e-6,
    predict: Callable[..., ArrayLike] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Relative representation stability:
    $\max_{x'} \lVert \tfrac{R(x) - R(x')}{R(x)} \rVert_2 \big/ \max(c, \epsilon)$ with
    $c = \lVert \tfrac{L(x) - L(x')}{L(x)} \rVert_2$.

    Arguments:
        representation: Function L, `representation(x, *args)` → the values of a hidden layer, an array or a pytree, for
            example `encode` of `encode, decode = jx.split(score, at)`.
        explain, neighbors, eps_min, predict, chunk_size, key: As in `relative_input_stability`.

    Returns, guarantees and costs are the same. Units that are 0 at x, as half of the units of a ReLU layer are, count
    with 1/ε as soon as they change: take the layer before its activation.

    References:
        Agarwal et al., Rethinking stability for attribution-based explanations, arXiv:2203.06877, 2022.
    """

    name = "relative_representation_stability"
    ratio = _relative(name, lambda here, there: _relative_change(here.extra, there.extra, eps_min), eps_min)
    extra = ("representation", representation)
    return _measure(name, explain, neighbors, ratio, predict, chunk_size, key, extra=extra)


class _Point(NamedTuple):
    """Everything that a ratio may read at one input.

    Attributes:
        x: The input, as the model saw it.
        map: Its explanation.
        extra: The output or the representation there, if the metric needs one.
        label: The predicted class, if only neighbors of the same class count.
    """

    x: Leaves
    map: Leaves
    extra: Leaves
    label: PyTree


Ratio: TypeAlias = Callable[[_Point, _Point], jax.Array]


def _change(order: int, per_distance: bool, normalize: bool) -> Ratio:
    """‖R(x′) − R(x)‖ in the norm of that order, divided by ‖x′ − x‖₂ (`per_distance`) and by ‖R(x)‖ (`normalize`)."""

    def ratio(here: _Point, there: _Point) -> jax.Array:
        change = norm_of(subtract(there.map, here.map), order)
        if per_distance:
            change = change / norm_of(subtract(there.x, here.x), 2)
        if normalize:
            size = norm_of(here.map, order)
            change = change / jnp.where(size > 0, size, jnp.nan)
        return change

    return ratio


def _relative(name: str, change: Callable[[_Point, _Point], Leaves], eps_min: float) -> Ratio:
    """The relative change of the map, divided by the norm of another change."""
    if not eps_min > 0:
        raise SettingError(explain_error(f"metrics.{name}: `eps_min` must be positive.", got=repr(eps_min)))

    def ratio(here: _Point, there: _Point) -> jax.Array:
        size = norm_of(_relative_change(here.map, there.map, eps_min), 2)
        return size / jnp.maximum(norm_of(change(here, there), 2), eps_min)

    return ratio


def _relative_change(here: Leaves, there: Leaves, eps_min: float) -> Leaves:
    return tuple((a - b) / jnp.where(a == 0, eps_min, a) for a, b in zip(here, there, strict=True))


def _measure(
    name: str,
    explain: Explain,
    neighbors: Neighbors,
    ratio: Ratio,
    predict: Callable[..., ArrayLike] | None,
    chunk_size: int | None,
    key: jax.Array | None,
    *,
    mean: bool = False,
    extra: tuple[str, Callable[..., PyTree]] | None = None,
) -> ExplainerMeasure:
    """The largest (or mean) ratio over the neighbors; `extra`: name and function of a setting that the ratio needs."""
    method = f"metrics.{name}"
    require_explaining(method, explain)
    _require_neighbors(method, neighbors)
    if predict is not None:
        require_function(method, "predict", predict)
    if extra is not None:
        require_function(method, *extra)
    chunk = chunk_of(method, chunk_size)
    of = traits(explain)

    def compute(args: Args, key: Any) -> jax.Array:
        arguments = Arguments(method, args, of.argnums)

        def look(leaves: Leaves, keyword: dict) -> tuple[Leaves, Leaves, PyTree]:
            call_args = arguments.fill(leaves)
            relevance = float_map(method, "the explanation", explain(*call_args, **keyword))
            others = () if extra is None else float_map(method, f"`{extra[0]}`", extra[1](*call_args))
            return relevance, others, None if predict is None else _require_class(method, predict(*call_args))

        keyword = explainer_key(explain, key)
        program = Program(method, look, arguments.leaves, keyword)

        def at(point: Leaves) -> _Point:
            # The model sees x′ in its own dtype, so distances must be computed after rounding.
            native = cast_like(point, arguments.leaves)
            return _Point(upcast(native), *program(native, keyword))

        here = at(upcast(arguments.leaves))

        def compare(point: Leaves) -> tuple[jax.Array, jax.Array]:
            there = at(point)
            is_finite = all_finite(tuple(a for p in (here, there) for part in (p.x, p.map, p.extra) for a in part))
            has_moved = jnp.array([jnp.any(a != b) for a, b in zip(here.x, there.x, strict=True)]).any()
            same_class = [
                jnp.all(a == b) for a, b in zip(jax.tree.leaves(here.label), jax.tree.leaves(there.label), strict=True)
            ]
            return jnp.where(is_finite, ratio(here, there), jnp.nan), jnp.array([has_moved, *same_class]).all()

        visit = neighbors.visit(arguments, compare)

        def one(k: jax.Array) -> tuple[jax.Array, jax.Array]:
            return visit(k, jax.random.fold_in(key, k) if neighbors.stochastic else None)

        values, counted = evaluate(one, neighbors.n, chunk)
        if mean:
            value = jnp.sum(jnp.where(counted, values, 0)) / jnp.sum(counted, dtype=values.dtype)
        else:
            value = jnp.max(jnp.where(counted, values, -jnp.inf))
        return jnp.where(counted.any(), value, jnp.nan)

    return ExplainerMeasure(name, compute, stochastic=neighbors.stochastic or of.needs_key, key=key)


def _require_class(method: str, found: PyTree) -> PyTree:
    """Refuses logits: they differ between any two inputs, so that no neighbor would count."""
    for leaf in jax.tree.leaves(found):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise SettingError(
                explain_error(
                    f"{method}: `predict` must return the predicted class.",
                    got=f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}",
                    need="an integer",
                    fix="predict=lambda x, *args: jnp.argmax(model(x[None])[0])",
                )
            )
    return found


def _require_neighbors(method: str, neighbors: object) -> None:
    if not isinstance(neighbors, Neighbors):
        raise SettingError(
            explain_error(
                f"{method}: `neighbors` must come from `jx.metrics.neighbors`.",
                got=type(neighbors).__name__,
                fix=(
                    "drawn from a box around x: neighbors=jx.metrics.neighbors.ball(0.02), in units of x",
                    "translations: neighbors=jx.metrics.neighbors.translations(3)",
                    "your own: neighbors=jx.metrics.neighbors.drawn(lambda key, x: …)",
                ),
            )
        )
