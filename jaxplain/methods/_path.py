"""Path methods: integrated gradients with error control, and expected gradients.

Notation: input x, baseline b, Δ = x − b, slope of the score along the path s(α) = ∇f(b + αΔ)·Δ, so that
∫ s dα = f(x) − f(b) = Δf.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._accumulate import accumulate
from jaxplain._checks import checked, chunk_of
from jaxplain._engine.affine_prefix import affine_prefix
from jaxplain._errors import SettingError, explain_error, warn
from jaxplain._explainer import Call, Explainer, Info, make_explainer, sum_gap
from jaxplain._leaves import common_dtype, mapped_like, multiply, same_dtype, subtract, total
from jaxplain._quadrature import nodes_and_weights
from jaxplain._references import References, draw, is_drawn, pool_of
from jaxplain._types import ArgNums, Baseline, Leaves, PyTree, Score


class _Paths:
    """The straight lines from one or several baselines to x; leaves of `baselines` have a leading axis.

    Each node contributes a *summand*, and `attribution` turns their weighted sum into an attribution. With several
    baselines, a summand is Δ⊙∇f. With one baseline, it is the gradient with respect to the output h of the affine
    prefix of the score. As h also moves along a straight line, the prefix and its pullback run only once.
    """

    def __init__(self, call: Call, baselines: Leaves, n: int, *, hoist: bool = True):
        self.n = n
        self.baselines = baselines
        self._call = call
        self._prefix = affine_prefix(call.program, call.x) if n == 1 and hoist else None
        if self._prefix is not None:
            self._start = self._prefix.prefix(tuple(b[0] for b in baselines))
            self._delta = subtract(self._prefix.prefix(call.x), self._start)

    def summand(self, which: jax.Array | int, alpha: jax.Array) -> tuple[Leaves, jax.Array]:
        """The summand of the node at `alpha` on path number `which`, and the slope s there."""
        if self._prefix is not None:
            gradient = self._prefix.rest.value_and_gradient(_along(self._start, self._delta, alpha))[1]
            return gradient, self.total(gradient)
        baseline = tuple(leaf[which] for leaf in self.baselines)
        delta = subtract(self._call.x, baseline)
        contribution = multiply(delta, self._call.gradient(_along(baseline, delta, alpha)))
        return contribution, total(contribution)

    def total(self, summed: Leaves) -> jax.Array:
        """The sum of the attribution that belongs to `summed`."""
        return total(summed if self._prefix is None else multiply(self._delta, summed))

    def attribution(self, summed: Leaves) -> Leaves:
        if self._prefix is None:
            return summed
        x = self._call.x
        return multiply(subtract(x, tuple(b[0] for b in self.baselines)), self._prefix.pullback(x, summed))


def _along(start: Leaves, delta: Leaves, alpha: jax.Array) -> Leaves:
    return tuple(b + alpha.astype(d.dtype) * d for b, d in zip(start, delta, strict=True))


@checked()
def integrated_gradients(
    f: Score,
    *,
    baseline: Baseline = 0.0,
    n_steps: int = 50,
    quadrature: str = "gauss_legendre",
    complete: bool = False,
    tol: float | jax.Array | None = None,
    atol: float | jax.Array = 1e-2,
    max_steps: int = 10_000,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Integrated gradients: $R_i = (x_i - b_i) \int_0^1 \partial_i f(b + \alpha(x - b))\, d\alpha$.

    The integral is a quadrature sum over `n_steps` gradients. Two settings make the sum better than a fixed rule does:

    * `tol=1e-3` adds steps, separately for each example and inside `jit`, until the completeness gap
      $\lvert\sum_i R_i - \Delta f\rvert \le \mathrm{tol} \cdot \max(\lvert\Delta f\rvert, \mathrm{atol})$ with
      $\Delta f = f(x) - f(b)$. Use it if single pixels matter.
    * `complete=True` reweights the nodes, at no further cost, so that the sum is exactly $\Delta f$.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example.
        baseline: Start of the path: a number, a pytree like x, a function `x -> baseline`, or `jx.references(...)` for
            the mean over several. With several argnums a tuple, where `None` leaves an argument unchanged.
        n_steps: Number of gradients per path (Python integer).
        quadrature: "gauss_legendre" (exact for polynomials of degree 2n−1, the best rule for smooth scores),
            "trapezoid", "midpoint", "left", "right". For positively homogeneous scores (ReLU nets without biases) and a
            zero baseline, use an open rule ("gauss_legendre", "midpoint", "right"), because JAX's gradient at zero is
            0.
        complete: Whether to match the sum to f(x) − f(b) by reweighting. Excludes `tol`.
        tol, atol, max_steps: Error control as above, with `atol` in units of f. After `n_steps` nodes of `quadrature`,
            midpoint rules of 2·n_steps, 6·n_steps, 18·n_steps … nodes follow, each reusing the previous nodes, while
            the total stays within `max_steps`. The rule with the smallest gap wins; `Info.converged` tells whether it
            suffices.
        chunk_size: Number of gradients evaluated together for each example, which determines peak memory. `None` is 1,
            the fastest measured under `vmap` over a batch; raise it for single examples on a GPU.
        argnums, allow_random: As in `gradient`.
        key: Random key shared by all examples, if `jx.references(..., n=)` draws.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x; units of f. Needs `key=` only if references are
        drawn.

    Guarantees: completeness, Σ R = f(x) − f(b), up to `Info.gap`; sensitivity and implementation invariance; linear in
    f (not with `complete` or `tol`, whose weights depend on f).
    Warns: `JaxplainWarning`, once for each line that calls, if an un-jitted call with one baseline misses the change of
    the score by more than 10 % (or, where that is small, by 1 % of Σ |R|). `with_info` returns the gap and does not
    warn.
    Cost: `n_steps` gradients per baseline; with `tol` as many as needed (under `vmap` as many as the slowest example of
    the batch needs). Info: value, baseline_value, gap, n_steps, n_gradients, n_evaluations (f at x and at each
    baseline), and with `tol` or `complete` converged.
    Errors: reverse mode through a `tol=` explainer, whose loop has no fixed length; use `n_steps`.
    Differs from: Captum has the same default rule, but its weights are float32 even for float64 inputs, which limits
    completeness to about 1e-7. No other library controls the error.

    Note: with `complete=True` each node's weight $w_k$ becomes $w_k (1 + \lambda (s_k - \bar s))$, where $s_k$ is the
    slope of the score along the path and $\lambda$ closes the gap. On smooth scores $\lambda$ is zero to rounding. This
    corrects the sum, not each pixel: on ReLU networks with 20 steps or more, the distance of a map to the exact
    integral stays the same on average, and changes by up to 1.4 times for a single map. With few nodes the gap can
    exceed the spread of the slopes; it is then left open. So is a gap that is larger than the kinks and the curvature
    that the slopes show, because the score then jumps, and no other feature may get the value of the jump.
    `Info.converged` tells whether the gap was closed.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.integrated_gradients(lambda x: x[0] * x[1] ** 2, baseline=1.0, n_steps=4)
        >>> a, b = explain(jnp.array([2.0, 3.0]))
        >>> print(f"{a:.3f} + {b:.3f} = 18 - 1")
        4.333 + 12.667 = 18 - 1

    References:
        Sundararajan, Taly, Yan, Axiomatic attribution for deep networks, ICML 2017.
        Erion et al., Improving performance of deep learning models with axiomatic attribution priors and expected
        gradients, Nature Machine Intelligence 3, 2021 (several baselines).
    """
    method = "integrated_gradients"
    chunk = chunk_of(method, chunk_size)
    if complete and tol is not None:
        raise SettingError(
            explain_error(
                f"{method}: `complete` and `tol` exclude each other.",
                why="complete=True closes the gap that tol measures",
                fix=("tol=1e-3 for an accurate map", "complete=True for an exact sum at a fixed cost"),
            )
        )
    nodes, weights = nodes_and_weights(method, quadrature, n_steps)
    if tol is not None and max_steps < n_steps:
        raise SettingError(explain_error(f"{method}: max_steps={max_steps} is below n_steps={n_steps}."))

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        paths = _paths(call, baseline, key)
        dtype = common_dtype(*call.x)
        alphas, w = jnp.asarray(nodes, dtype), jnp.asarray(weights / paths.n, dtype)

        value = start = jnp.zeros((), dtype)
        is_known = with_info or complete or tol is not None
        is_watched = paths.n == 1 and not any(isinstance(leaf, jax.core.Tracer) for leaf in call.x)
        if is_known or is_watched:
            value = call.value(call.x)
        if is_watched:
            start = call.value(tuple(b[0] for b in paths.baselines))
        elif is_known:
            start = accumulate(lambda r: call.value(tuple(b[r] for b in paths.baselines)), paths.n, chunk) / paths.n

        # Not a scalar, because JAX cannot map a scan over a scalar on an Explicit mesh axis.
        mean = (value - start)[None]

        def term(k: jax.Array) -> tuple[Any, ...]:
            summand, slope = paths.summand(k // n_steps, alphas[k % n_steps])
            weight = w[k % n_steps]
            if not complete:
                return (_scale(weight, summand),)
            weight, slope, delta_f = same_dtype(weight, slope, mean)
            tilted = weight * (slope - delta_f)
            placed = slope * (jnp.arange(paths.n * n_steps, dtype=k.dtype) == k).astype(slope.dtype)
            return _scale(weight, summand), _scale(tilted[0], summand), tilted, tilted * (slope - delta_f), placed

        summed, *moments = accumulate(term, paths.n * n_steps, chunk)
        if not is_known:
            attribution = paths.attribution(summed)
            if is_watched:
                _warn_of_gap(method, attribution, value, start)
            return attribution, None
        steps, converged = jnp.int32(n_steps), None
        if complete:
            tilted, gap, square, slopes = moments
            unresolved = _unresolved(slopes.reshape(paths.n, n_steps), w.astype(slopes.dtype), quadrature)
            rounding = _rounding(call, jnp.abs(value) + jnp.abs(start)).astype(unresolved.dtype)
            summed, closed = _complete(summed, tilted, gap[0], square[0], unresolved + rounding)
            converged = closed | (jnp.abs(gap[0]) <= rounding)
        elif tol is not None:
            summed, steps, converged = _refine(paths, summed, value - start, tol, atol, n_steps, max_steps, chunk)
        attribution = paths.attribution(summed)
        if not with_info and is_watched:
            _warn_of_gap(method, attribution, value, start)
        info = Info(
            value=value,
            baseline_value=start,
            gap=sum_gap(attribution, value, start),
            n_steps=steps,
            n_gradients=steps * paths.n,
            n_evaluations=jnp.int32(1 + paths.n),
            converged=converged,
        )
        return attribution, info

    drawn = is_drawn(baseline)
    return make_explainer(method, f, compute, argnums=argnums, allow_random=allow_random, stochastic=drawn, key=key)


LARGE_GAP = 0.1  # of the change of the score (or, if that is small, of a tenth of all that is attributed)


def _warn_of_gap(method: str, attribution: Leaves, value: jax.Array, start: jax.Array) -> None:
    """Warns if the numbers are known and the sum of the attribution is far from the change of the score."""
    gap = sum_gap(attribution, value, start)
    if isinstance(gap, jax.core.Tracer):
        return
    change, size = float(value) - float(start), float(total(tuple(map(jnp.abs, attribution))))
    if abs(float(gap)) > LARGE_GAP * max(abs(change), 0.1 * size):
        warn(
            f"{method}: the attribution misses the change of the score by more than {LARGE_GAP:.0%}.",
            got=f"Σ R = {float(gap) + change:.4g}, f(x) − f(baseline) = {change:.4g}",
            why="the slope changes fast on the path (a norm near a baseline of zero, many kinks), or the score jumps",
            fix=(
                "as many steps as it takes: tol=1e-3",
                "a baseline that is an input, too, for example the embedding of a mask token, or jx.references(data)",
                "a method without steps: jx.deeplift(score, baseline=…)",
                "jx.with_info(explain) returns the gap of each example, also under jit, and does not warn",
            ),
        )


def _paths(call: Call, baseline: Baseline, key: jax.Array | None) -> _Paths:
    pool, size = pool_of(call.arguments, baseline, key)
    return _Paths(call, mapped_like(call.x, pool), size)


def _scale(weight: jax.Array, leaves: Leaves) -> Leaves:
    return tuple(weight.astype(leaf.dtype) * leaf for leaf in leaves)


def _complete(
    summed: Leaves, tilted: Leaves, gap: jax.Array, square: jax.Array, explained: jax.Array
) -> tuple[Leaves, jax.Array]:
    """The sum Σ w c with its gap closed, given Σ w d c, Σ w d and Σ w d² over the nodes; and whether it was closed.

    c is a node's summand and d = s − Δf its slope minus the known mean, so that Σ w d is the gap itself. Tilting the
    weights by d changes the sum by the tilt times Var(d) (a control variate). A gap of more than one standard deviation
    of the slopes means that there are too few nodes, and one of more than `explained` that the score jumps; both are
    left open.
    """
    variance = jnp.maximum(square - gap**2, 0)
    is_known = jnp.abs(gap) <= explained
    solvable = (variance > 0) & (jnp.abs(gap) <= jnp.sqrt(variance)) & is_known
    tilt = jnp.where(solvable, -gap / jnp.where(solvable, variance, 1), 0)
    closed = tuple(
        a + tilt.astype(a.dtype) * (t - gap.astype(a.dtype) * a) for a, t in zip(summed, tilted, strict=True)
    )
    return closed, solvable


_ORDER = {"left": 1, "right": 1, "midpoint": 2, "trapezoid": 2, "gauss_legendre": 4}


def _rounding(call: Call, size: jax.Array) -> jax.Array:
    """What rounding may add to a sum of this size: of the score's dtype and of that of its input."""
    dtypes = (call.program.out_shape.dtype, *(leaf.dtype for leaf in call.arguments.leaves))
    return 64 * max(float(jnp.finfo(dtype).eps) for dtype in dtypes) * size


def _unresolved(slopes: jax.Array, weights: jax.Array, quadrature: str) -> jax.Array:
    """An upper estimate of a rule's error on a continuous score, from the slopes at the nodes of each path.

    Along the nodes, differences of high order vanish where the slope is smooth. A kink, across which the slope changes
    by D, makes them 2ᵐ⁻¹ D in sum, and the error at most D times the weight of a node. A jump of the score itself,
    between two nodes, leaves no trace in the slopes. `slopes` is (paths, nodes); m is the order of the rule, but at
    most a quarter of the nodes, so that several kinks do not cancel.
    """
    n = slopes.shape[1]
    if n == 1:
        return jnp.zeros((), slopes.dtype)
    order = max(1, min(_ORDER[quadrature], n // 4))
    sizes = jnp.abs(jnp.diff(slopes, order, axis=1))
    widths = jnp.stack([weights[i : i + sizes.shape[1]] for i in range(order + 1)]).max(axis=0)
    return jnp.sum(widths[None] * sizes) / 2 ** (order - 1)


_NO_REVERSE = explain_error(
    "integrated_gradients: reverse mode cannot go through a `tol=` explainer.",
    why="it chooses its number of steps while it runs, so the size of the values to store is unknown",
    fix=(
        "for a gradient of the attribution, fix the steps: integrated_gradients(f, n_steps=200)",
        "forward mode (jax.jvp, jax.jacfwd) works with tol=",
    ),
)


def _refine(
    paths: _Paths,
    first: Leaves,
    delta_f: jax.Array,
    tol: float | jax.Array,
    atol: float | jax.Array,
    n_steps: int,
    max_steps: int,
    chunk: int,
) -> tuple[Leaves, jax.Array, jax.Array]:
    """Midpoint rules of 2n, 6n, 18n … nodes until the gap is within tolerance.

    Each rule splits every cell of the previous one in three and reuses its node, which lies in the middle third:

        |     x     |     x     |        2 cells
        | o | x | o | o | x | o |        6 cells: evaluates o, at 1/6 and 5/6 of the old cells, and reuses x
    """
    dtype = common_dtype(*first)
    bound = tol * jnp.maximum(jnp.abs(delta_f), atol)
    # Not jnp.int32(0), because JAX cannot map a loop over an Explicit mesh axis if its carry was made without a mesh.
    zero = jnp.zeros(1, jnp.int32)[0]

    def miss(summed: Leaves) -> jax.Array:
        reached, wanted = same_dtype(paths.total(summed), delta_f)
        return jnp.abs(reached - wanted)

    def fresh_nodes(cells: jax.Array, first_round: jax.Array) -> Callable[[jax.Array], jax.Array]:
        def node(j: jax.Array) -> jax.Array:
            cell = jnp.where(first_round, j, j // 2).astype(dtype)
            offset = jnp.where(first_round, 0.5, jnp.where(j % 2 == 0, 1 / 6, 5 / 6)).astype(dtype)
            return (cell + offset) / cells.astype(dtype)

        return node

    def round_(state: "_Round") -> "_Round":
        first_round = state.cells == 0
        old = jnp.where(first_round, 2 * n_steps, state.cells)
        fresh = jnp.where(first_round, old, 2 * old)
        node = fresh_nodes(old, first_round)
        share = jnp.where(first_round, 1.0, 2 / 3).astype(dtype) / (fresh * paths.n).astype(dtype)

        def add_chunk(i: jax.Array, sums: Leaves) -> Leaves:
            def term(k: jax.Array) -> Leaves:
                j, which = (i * chunk + k) % fresh, (i * chunk + k) // fresh
                summand, _ = paths.summand(jnp.minimum(which, paths.n - 1), node(j))
                return _scale(jnp.where(which < paths.n, share, 0), summand)

            return tuple(map(jnp.add, sums, accumulate(term, chunk, chunk)))

        kept = jnp.where(first_round, 0.0, 1 / 3)
        start = tuple(kept.astype(leaf.dtype) * leaf for leaf in state.midpoint)
        midpoint = lax.fori_loop(zero, -(-fresh * paths.n // chunk), add_chunk, start)
        better = miss(midpoint) < miss(state.best)
        best = tuple(jnp.where(better, m, b) for m, b in zip(midpoint, state.best, strict=True))
        return _Round(midpoint, best, old + jnp.where(first_round, 0, fresh), state.steps + fresh)

    def unfinished(state: "_Round") -> jax.Array:
        upcoming = jnp.where(state.cells == 0, 2 * n_steps, 2 * state.cells)
        affordable = state.steps + upcoming <= max_steps
        # A NaN cannot improve, and would keep its whole batch running without the last condition.
        return jnp.greater(*same_dtype(miss(state.best), bound)) & affordable & jnp.isfinite(delta_f)

    end = lax.while_loop(unfinished, round_, _Round(first, first, zero, zero + n_steps))
    summed = tuple(_compat.forward_only(leaf, _NO_REVERSE) for leaf in end.best)
    return summed, end.steps, jnp.less_equal(*same_dtype(miss(end.best), bound))


class _Round(NamedTuple):
    midpoint: Leaves  # the last midpoint rule's estimate, which the next round reuses
    best: Leaves  # the estimate of the rule with the smallest gap so far
    cells: jax.Array  # cells of that midpoint rule; 0 before the first round
    steps: jax.Array


@checked()
def expected_gradients(
    f: Score,
    *,
    references: References | Callable[[jax.Array], PyTree],
    n_samples: int = 100,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Expected gradients: $R_i = \mathbb{E}_{b, \alpha \sim U(0,1)} [(x_i - b_i)\, \partial_i f(b + \alpha(x - b))]$.

    Integrated gradients averaged over a distribution of baselines. Each draw of a baseline and a position on its path
    costs one gradient. (Known as GradientSHAP in Captum and SHAP.)

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example.
        references: Source of the baselines: `jx.references(data)` (drawn with replacement) or a function
            `key -> reference`.
        n_samples: Number of draws (Python integer).
        chunk_size: Number of gradients evaluated together, as in `integrated_gradients`.
        argnums, allow_random: As in `gradient`.
        key: Random key shared by all examples; otherwise pass `explain(x, *args, key=key)`.

    Returns:
        `explain(x, *args, key=key)`, with the structure, shapes and dtypes of x; units of f.

    Guarantees: unbiased, with Σ R = f(x) − E f(b) in expectation. `Info.standard_error` is the Monte-Carlo error of
    each entry, and `Info.gap` compares Σ R with f(x) minus the mean of f over the drawn baselines.
    Cost: `n_samples` gradients; with info one more, and as many evaluations of f. Info: value, baseline_value, gap,
    standard_error, n_gradients, n_evaluations.
    Differs from: Captum draws 5 samples by default and can add noise to x; here, use `smoothgrad` for noise. For a
    deterministic mean over few references, use `integrated_gradients(f, baseline=jx.references(data))`.

    References:
        Erion et al., Improving performance of deep learning models with axiomatic attribution priors and expected
        gradients, Nature Machine Intelligence 3, 2021. Lundberg and Lee, NeurIPS 2017 (SHAP).
    """
    method = "expected_gradients"
    chunk = chunk_of(method, chunk_size)

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        sample = draw(references, call.arguments)
        dtype = common_dtype(*call.x)

        def one(k: jax.Array) -> tuple[Leaves, Leaves]:
            reference_key, alpha_key = jax.random.split(jax.random.fold_in(key, k))
            reference = sample(reference_key)
            paths = _Paths(call, tuple(leaf[None] for leaf in reference), 1, hoist=False)
            alpha = jax.random.uniform(alpha_key, (), dtype)
            return paths.summand(0, alpha)[0], reference

        if not with_info:
            sums = accumulate(lambda k: one(k)[0], n_samples, chunk)
            return tuple(leaf / n_samples for leaf in sums), None
        shift, _ = one(jnp.int32(0))
        scale = spread_scale(shift)

        def moments(k: jax.Array) -> tuple[Leaves, Leaves, jax.Array]:
            attribution, reference = one(k)
            deviation = tuple((a - s) / c for a, s, c in zip(attribution, shift, scale, strict=True))
            return deviation, multiply(deviation, deviation), call.value(reference)

        first, second, start = accumulate(moments, n_samples, chunk)
        mean = tuple(s + c * d / n_samples for s, c, d in zip(shift, scale, first, strict=True))
        value = call.value(call.x)
        info = Info(
            value=value,
            baseline_value=start / n_samples,
            gap=sum_gap(mean, value, start / n_samples),
            standard_error=call.arguments.attribution(multiply(scale, standard_error(first, second, n_samples))),
            n_gradients=jnp.int32(n_samples + 1),
            n_evaluations=jnp.int32(n_samples + 1),
        )
        return mean, info

    return make_explainer(method, f, compute, argnums=argnums, allow_random=allow_random, stochastic=True, key=key)


def spread_scale(shift: Leaves) -> Leaves:
    """The size of each leaf; divided by it, attributions have fourth powers that do not under- or overflow."""
    largest = (jnp.max(jnp.abs(leaf), initial=0) for leaf in shift)
    return tuple(jnp.where(m > 0, m, 1) for m in largest)


def standard_error(first: Leaves, second: Leaves, n: int) -> Leaves:
    """Standard error of a mean, from Σd and Σd² of the deviations d from any one sample; NaN for n = 1."""
    if n == 1:
        return tuple(jnp.full_like(d, jnp.nan) for d in first)
    return tuple(jnp.sqrt(jnp.maximum(d2 - d * d / n, 0) / (n * (n - 1))) for d, d2 in zip(first, second, strict=True))
