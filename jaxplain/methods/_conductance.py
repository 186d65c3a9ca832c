"""Layer conductance: the flow of the score through the units of a hidden layer."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxplain._accumulate import accumulate
from jaxplain._analysis.evidence import require_derivative
from jaxplain._arguments import Arguments
from jaxplain._checks import checked, chunk_of, require_callable
from jaxplain._errors import LayerError, SettingError, explain_error
from jaxplain._explainer import Explainer, Info, sum_gap
from jaxplain._ir.graph import Value
from jaxplain._ir.program import Program, require_scalar
from jaxplain._leaves import cast_like, mapped_like, multiply, subtract, upcast
from jaxplain._quadrature import nodes_and_weights
from jaxplain._references import References
from jaxplain._split import stage_function
from jaxplain._types import ArgNums, Args, LayerSpecs, Leaves, LikeInput, PyTree, Score


@checked()
def conductance(
    f: Score,
    *,
    at: LayerSpecs,
    baseline: LikeInput = 0.0,
    n_steps: int = 50,
    quadrature: str = "gauss_legendre",
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Layer conductance: the part of $f(x) - f(b)$ that flows through each unit of a layer.

    $$R_j = \int_0^1 \frac{\partial f}{\partial h_j}(\gamma(\alpha))\, \frac{d h_j(\gamma(\alpha))}{d\alpha}\, d\alpha$$

    on the straight path $\gamma(\alpha) = b + \alpha (x - b)$, i.e. integrated gradients collected at the layer h
    instead of the input.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example.
        at: The layer, as in `split`. Several layers in a list or dict are computed independently of each other.
        baseline: One baseline of x: a number, an array like x, or a function of x.
        n_steps, quadrature, chunk_size, argnums, allow_random: As in `integrated_gradients`.

    Returns:
        `explain(x, *args)`, with the structure and shapes of the layer, as `split(f, at).encode` returns it; units of
        f.

    Guarantees: completeness, Σ R = f(x) − f(b) up to the quadrature error, if nothing bypasses the layer; otherwise
    `Info.gap` shows the part that does. Conductance of the input is integrated gradients. Implementation invariant.
    Cost: for each layer `n_steps` gradients of the part after it, and as many derivatives of the layer along the path.
    Info: value, baseline_value, gap (for a single layer), n_steps, n_gradients (one for each step and layer),
    n_evaluations (2: f at both ends of the path).
    Differs from: Captum replaces $dh/d\alpha$ by differences between steps, which is exact only in the limit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> score = lambda x: jax.nn.relu(x[0] - 1) * x[1] + jax.nn.relu(x[1])
        >>> explain = jx.conductance(score, at="last activation", n_steps=100)
        >>> print(round(float(explain(jnp.array([2.0, 3.0]))), 3))
        3.0

    References:
        Dhamdhere, Sundararajan, Yan, How important is a neuron?, ICLR 2019.
    """
    method = "conductance"
    require_callable(method, f)
    chunk = chunk_of(method, chunk_size)
    nodes, weights = nodes_and_weights(method, quadrature, n_steps)
    if isinstance(baseline, References):
        raise SettingError(
            explain_error(
                "conductance: takes one baseline.",
                got="jx.references(…)",
                fix="average over them: jax.vmap(lambda b: jx.conductance(f, at=…, baseline=b)(x))(pool).mean(0)",
            )
        )

    def evaluate(args: Args, _key: Any, with_info: bool) -> tuple[PyTree, Info | None]:
        arguments = Arguments(method, args, argnums)
        staged = stage_function(method, f, args, argnums=argnums, allow_random=allow_random)
        require_scalar(method, staged.program.out_shape)
        require_derivative(method, staged.program.closed)
        sites = staged.find(at)
        if stacked := [site.name for site in sites if site.is_stacked]:
            raise LayerError(
                explain_error(
                    f"{method}: `at` names all iterations of a scan at once.",
                    got=repr(stacked[0]),
                    why="the same flow passes through every iteration, so each iteration has its own conductance",
                    fix=f"name one of them, at='{stacked[0]}@-1', or several in a list",
                )
            )
        if integers := [site.name for site in sites if not all(_is_float(value) for value in site.values)]:
            raise LayerError(
                explain_error(
                    f"{method}: the layer holds integers.",
                    got=repr(integers[0]),
                    why="integers have no derivative, so nothing flows through them",
                    fix="name the value that they look up",
                )
            )
        structure = jax.tree.structure(at)
        end = upcast(arguments.leaves)
        start = mapped_like(end, arguments.like(baseline, "baseline", none=lambda x: x))
        delta = subtract(end, start)

        def arrays_at(point: Leaves) -> list[Any]:
            floats = iter(cast_like(point, arguments.leaves))
            return [next(floats) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in staged.arrays]

        def conducted(point: Leaves, direction: Leaves) -> Any:
            h, pull = jax.vjp(lambda point: staged.encode(sites, arrays_at(point)), point)
            # Forward mode by transposing the pullback, because functions with a custom_vjp have no other forward mode.
            (change,) = jax.vjp(lambda g: pull(g)[0], jax.tree.map(jnp.zeros_like, h))[1](direction)
            gradient = [
                jax.grad(lambda h, site=site: staged.decode([site], [h], arrays_at(point)))(h)
                for site, h in zip(sites, h, strict=True)
            ]
            return jax.tree.map(lambda g, c: multiply(*map(upcast, ((g,), (c,))))[0], gradient, change)

        program = Program(method, conducted, start, delta)

        def term(k: jax.Array) -> Any:
            alpha, weight = (jnp.asarray(rule, jnp.result_type(float))[k] for rule in (nodes, weights))
            point = tuple(b + alpha.astype(d.dtype) * d for b, d in zip(start, delta, strict=True))
            return jax.tree.map(lambda r: weight.astype(r.dtype) * r, program(point, delta))

        summed = accumulate(term, n_steps, chunk)
        shaped = [
            tuple(r.astype(s.dtype) for r, s in zip(rs, site.shapes, strict=True))
            for rs, site in zip(summed, sites, strict=True)
        ]
        attribution = jax.tree.unflatten(structure, [v[0] if len(v) == 1 else v for v in shaped])
        if not with_info:
            return attribution, None
        values = [upcast((staged.program(tuple(arrays_at(point))),))[0] for point in (end, start)]
        gap = sum_gap(tuple(jax.tree.leaves(summed)), *values) if len(sites) == 1 else None
        return attribution, Info(
            value=values[0],
            baseline_value=values[1],
            gap=gap,
            n_steps=jnp.int32(n_steps),
            n_gradients=jnp.int32(n_steps * len(sites)),
            n_evaluations=jnp.int32(2),
        )

    return Explainer(method, evaluate, argnums=argnums)


def _is_float(value: Value) -> bool:
    return jnp.issubdtype(value.aval.dtype, jnp.inexact)
