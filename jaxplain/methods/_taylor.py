"""Simple Taylor decomposition: the first-order expansion of the score about a root point."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._checks import checked
from jaxplain._errors import SettingError, explain_error
from jaxplain._explainer import Call, Explainer, Info, make_explainer
from jaxplain._leaves import common_dtype, mapped_like, multiply, same_dtype, subtract, total
from jaxplain._types import ArgNums, Leaves, LikeInput, Score


class Scaled(NamedTuple):
    """The root point εx, made by `scaled_input(ε)`."""

    epsilon: float | jax.Array


class LineSearch(NamedTuple):
    """A root point on a line from x, made by `line_search(...)`."""

    toward: LikeInput
    n_points: int
    n_bisections: int


@checked()
def scaled_input(epsilon: float | jax.Array = 1e-3) -> Scaled:
    """The root εx for `taylor`. For positively homogeneous scores f(εx) = εf(x) → 0, and the gradient is that at x."""
    return Scaled(epsilon)


@checked()
def line_search(toward: LikeInput = 0.0, *, n_points: int = 32, n_bisections: int = 40) -> LineSearch:
    """The root for `taylor` that is nearest to x on the line from x to `toward`.

    The score is evaluated at `n_points` equal steps. The first change of sign is then narrowed by bisection.

    Arguments:
        toward: The far end, like a `baseline` (a number, a pytree like x, a function of x). The sign of the score
            should differ between there and x.
        n_points: Number of steps (Python integer). Two crossings within one step are missed.
        n_bisections: Number of halvings of the bracket (Python integer).
    """
    return LineSearch(toward, n_points, n_bisections)


@checked()
def taylor(
    f: Score,
    *,
    root: Scaled | LineSearch | LikeInput | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Simple Taylor decomposition: $R_i = \partial_i f(\tilde x)\,(x_i - \tilde x_i)$ about a root, $f(\tilde x) = 0$.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example.
        root: The point of expansion:

            * `None` or `jx.scaled_input(ε)`: εx, the classical choice for ReLU networks without biases, for which
              R = (1 − ε) x ⊙ ∇f(x). Do not use it for networks with biases, because the gradient near zero says little
              about x, as the residual shows (`input_x_gradient` takes the gradient at x);
            * `jx.line_search(toward=…)`: the nearest zero of f on the line from x toward a point (default: zero);
            * a number, a pytree like x, or a function `x -> root`: a known root.
        argnums, allow_random: As in `gradient`.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x; units of f.

    Guarantees: f(x) = f(x̃) + Σ R + residual, an identity; `Info` holds all four (`value`, `baseline_value` = f(x̃),
    `residual`, and `root` itself). The residual is zero where f is linear between x̃ and x. A line search that finds no
    change of sign returns NaN (`Info.converged` is False), because there is no root. The gradient of the attribution
    through a found root is exact to first order (implicit function theorem).
    Cost: 1 gradient; a line search adds n_points + 1 + n_bisections evaluations of f and one gradient.
    Info: value, baseline_value, gap, residual, root, n_gradients, n_evaluations (with f(x)), converged (line search).

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> f = lambda x: jnp.sum(x**2) - 1.0
        >>> explain = jx.with_info(jx.taylor(f, root=jx.line_search()))
        >>> attribution, info = explain(jnp.array([3.0, 4.0]))
        >>> print(info.root.round(3), f"{attribution.sum():.2f} + {info.residual:.2f} = {info.value:.2f}")
        [0.6 0.8] 8.00 + 16.00 = 24.00

    References:
        Bach et al., On pixel-wise explanations for non-linear classifier decisions, PLoS ONE 10(7), 2015.
        Montavon, Samek, Müller, DSP 73, 2018, §4.2.
    """
    plan = scaled_input() if root is None else root
    if isinstance(plan, str):
        raise SettingError(
            explain_error(
                "taylor: `root` must be a point or a way to find one, not a name.",
                got=repr(plan),
                fix=("root=jx.scaled_input()", "root=jx.line_search(toward=0.0)", "root=0.0 or an array like x"),
            )
        )

    def compute(call: Call, _key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        converged, n_gradients, n_evaluations = None, 1, 1
        if isinstance(plan, Scaled):
            point = tuple(jnp.asarray(plan.epsilon, x.dtype) * x for x in call.x)
        elif isinstance(plan, LineSearch):
            point, converged = _search(call, plan)
            n_gradients, n_evaluations = 2, 1 + plan.n_points + 1 + plan.n_bisections
        else:
            point = mapped_like(call.x, call.arguments.like(plan, "root", none=lambda x: x))
        root_value, gradient = call.value_and_gradient(point)
        attribution = multiply(subtract(call.x, point), gradient)
        if not with_info:
            return attribution, None
        value = call.value(call.x)
        change, explained = same_dtype(value - root_value, total(attribution))
        residual = change - explained
        info = Info(
            value=value,
            baseline_value=root_value,
            gap=-residual,
            residual=residual,
            root=call.arguments.point(point),
            n_gradients=jnp.int32(n_gradients),
            n_evaluations=jnp.int32(n_evaluations),
            converged=converged,
        )
        return attribution, info

    return make_explainer("taylor", f, compute, argnums=argnums, allow_random=allow_random)


def _search(call: Call, plan: LineSearch) -> tuple[Leaves, jax.Array]:
    end = call.arguments.like(plan.toward, "toward", none=lambda x: x)
    way = subtract(call.x, end)

    def at(u: jax.Array) -> Leaves:
        """The point between the far end (u = 0) and x (u = 1). Near the far end u is small and keeps its precision."""
        return tuple(e + u.astype(w.dtype) * w for e, w in zip(end, way, strict=True))

    def along(u: jax.Array) -> jax.Array:
        return call.value(at(u))

    dtype = common_dtype(*call.x)
    values = lax.map(along, jnp.linspace(1, 0, plan.n_points + 1, dtype=dtype))
    sign = jnp.sign(values[0])
    crossed = sign * values <= 0
    found = jnp.any(crossed)
    first = jnp.argmax(crossed).astype(dtype)
    bracket = (1 - jnp.maximum(first - 1, 0) / plan.n_points, 1 - first / plan.n_points)

    def halve(ends: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        near, far = ends
        middle = (near + far) / 2
        beyond = sign * along(middle) <= 0
        return (jnp.where(beyond, near, middle), jnp.where(beyond, middle, far)), None

    # The end on x's side: where linear pieces meet at the root (for example at zero), take the gradient of x's piece.
    u = lax.stop_gradient(lax.scan(halve, bracket, length=plan.n_bisections)[0][0])
    u = jnp.where(found, u, jnp.nan)
    # One Newton step with a constant slope does not move the root, but gives it the right derivative.
    at_root, gradient = call.value_and_gradient(at(u))
    slope = lax.stop_gradient(total(multiply(gradient, way)))
    slope, offset = same_dtype(slope, at_root - lax.stop_gradient(at_root))
    u = u - jnp.where(slope == 0, 0, offset / jnp.where(slope == 0, 1, slope)).astype(dtype)
    return at(u), found
