"""DeepLIFT: each rule by hand, settings, derivatives, and what cannot be followed is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deeplift_cases import RULES, B, U, V, W, X, gap, layer_norm
from flax import nnx
from helpers import promoting, relative, relu_net, text
from jax import lax

import jaxplain as jx

# The single rules


def test_a_maximum_gives_a_rise_to_its_winner_and_a_fall_to_its_former_one():
    maximum = lambda x: jnp.max(x)
    rises = jx.deeplift(maximum, baseline=jnp.array([1.0, 2.0, 0.0]))
    assert np.allclose(rises(jnp.array([5.0, 1.5, 0.0])), [3, 0, 0])
    falls = jx.deeplift(maximum, baseline=jnp.array([5.0, 1.5, 0.0]))
    assert np.allclose(falls(jnp.array([1.0, 2.0, 0.0])), [-3, 0, 0])
    pooled = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "VALID") @ jnp.array([1.0, 10.0])
    found = jx.deeplift(pooled, baseline=jnp.array([0.0, 1.0, 0.0]))(jnp.array([0.5, 3.0, 5.0]))
    assert np.allclose(found, [0, 2, 40])
    assert np.allclose(jx.deeplift(jnp.min, baseline=jnp.array([0.0, 3.0]))(jnp.array([4.0, 1.0])), [1, 0])


def test_softmax_uses_the_logarithmic_mean_and_no_shift_matters():
    u, u0 = jnp.array([1.0, -2.0, 0.5]), jnp.array([-1.0, 0.3, 2.0])
    p, p0 = jax.nn.softmax(u), jax.nn.softmax(u0)
    mean = (p - p0) / (jnp.log(p) - jnp.log(p0))
    matrix = jnp.diag(mean) - jnp.outer(mean, mean) / mean.sum()
    spellings = {
        "jax": jax.nn.softmax,
        "by hand": lambda u: jnp.exp(u) / jnp.exp(u).sum(),
        "own maximum": lambda u: jnp.exp(u - u.max()) / jnp.exp(u - u.max()).sum(),
        "held maximum": lambda u: (
            jnp.exp(u - lax.stop_gradient(u.max())) / jnp.exp(u - lax.stop_gradient(u.max())).sum()
        ),
        "of its logarithm": lambda u: jnp.exp(u - jax.nn.logsumexp(u)),
        "shifted": lambda u: jax.nn.softmax(u + 7 * u.mean()),
    }
    for name, softmax in spellings.items():
        found = jx.deeplift(lambda u, softmax=softmax: softmax(u)[0], baseline=u0)(u)
        shifted = (u - u0) * (matrix[0] + (7 * matrix[0].sum() / 3 if name == "shifted" else 0))
        assert relative(found, shifted) < 1e-9, name


def test_equal_and_nearly_equal_values_have_the_local_derivative():
    # One unit does not move, although its inputs do: its multiplier is the derivative.
    weights = jnp.array([[1.0, 1.0], [1.0, -1.0]])
    score = lambda x: jnp.sum(jnp.tanh(x @ weights))
    x, x0 = jnp.array([2.0, 1.0]), jnp.array([1.0, 0.0])
    slope = 1 - jnp.tanh(1.0) ** 2
    secant = (jnp.tanh(3.0) - jnp.tanh(1.0)) / 2
    assert np.allclose(jx.deeplift(score, baseline=x0)(x), [secant + slope, secant - slope], rtol=1e-12)
    # From nearby, DeepLIFT is Δx × gradient: to second order in the step, to the rounding of a quotient, at last
    # exactly.
    for step in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9, 1e-11, 1e-13, 1e-15):
        near = jx.deeplift(score, baseline=x - step)(x) / (x - (x - step))
        limit = 10 * step**2 + 1e-14 / step if step > 1e-15 else 1e-14
        assert relative(near, jax.grad(score)(x - step / 2)) < limit


def test_sorting_has_small_multipliers_and_moves_nothing_that_stays():
    x0, x = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([5.0, 1.0, 2.0, 3.0])
    # The first of four moves past the others: every order statistic is its doing.
    for k, want in enumerate((1, 1, 1, 2)):
        assert np.allclose(jx.deeplift(lambda x, k=k: jnp.sort(x)[k], baseline=x0)(x), [want, 0, 0, 0])
    # Where the order is the same, it is a permutation.
    assert np.allclose(jx.deeplift(lambda x: jnp.sort(x) @ jnp.arange(4.0), baseline=x0)(x0 * 2 + 1), [0, 2, 6, 12])
    multipliers = jax.jit(jax.vmap(lambda x: jx.deeplift(lambda x: jnp.sort(x)[1], baseline=x0)(x) / (x - x0)))
    found = multipliers(jax.random.normal(jax.random.key(0), (200, 4)))
    assert found.min() >= -1 and found.max() <= 2


def test_a_product_is_shared_halfway():
    found = jx.deeplift(lambda x: x[0] * x[1], baseline=jnp.array([1.0, 2.0]))(jnp.array([3.0, 5.0]))
    assert np.allclose(found, [2 * 3.5, 3 * 2])
    quotient = jx.deeplift(lambda x: x[0] / x[1], baseline=jnp.array([1.0, 2.0]))(jnp.array([3.0, 5.0]))
    assert np.allclose(quotient, [2 / 3.5, -3 * (3 / 5 + 1 / 2) / 2 / 3.5])
    # A divisor that changes its sign: each one's part, averaged over which of them changes first.
    crossing = jx.deeplift(lambda x: x[0] / x[1], baseline=jnp.array([1.0, -2.0]))(jnp.array([3.0, 5.0]))
    assert np.allclose(crossing, [2 * (1 / 5 - 1 / 2) / 2, (3 + 1) / 2 * (1 / 5 + 1 / 2)])


BLOCKS = jax.random.normal(jax.random.key(0), (5, 4, 4))


def _llama(x):
    weights = BLOCKS.astype(x.dtype)
    norm = lambda h: h * lax.rsqrt(jnp.mean(h * h) + 1e-6)
    h = x @ weights[0]
    for i in range(4):
        h = h + jax.nn.silu(norm(h) @ weights[i]) @ weights[i + 1]
    return norm(h)[0]


NORMED = {
    "rms norms in a residual network": (_llama, jnp.array([1.0, 2.0, -0.5, 0.3])),
    "divided by a length": (lambda x: x[0] / jnp.sqrt(jnp.sum(x**2) + 1e-12), jnp.array([3.0, 4.0])),
    "flax layer norm": (promoting()(lambda x: _FLAX["layer"](x)[0]), jnp.array([3.0, 4.0, 1.0, -1.0])),
    "flax group norm": (promoting()(lambda x: _FLAX["group"](x[None])[0, 0]), jnp.array([3.0, 4.0, 1.0, -1.0])),
    "a factor that is a reciprocal": (
        lambda x: jnp.sum(jax.nn.silu(x) * lax.rsqrt(jnp.mean(x * x) + 1e-6)),
        jnp.array([3.0, 4.0, 1.0, -1.0]),
    ),
    "by einsum": (
        lambda x: jnp.einsum("ij,i->ij", x[None], lax.rsqrt(jnp.mean(x[None] ** 2, 1) + 1e-6))[0, 1],
        jnp.array([3.0, 4.0, 1.0, -1.0]),
    ),
    "standardized": (lambda x: jax.nn.standardize(x)[1], jnp.array([3.0, 4.0, 1.0, -1.0])),
}
_FLAX = {
    "layer": nnx.LayerNorm(4, param_dtype=jnp.float64, rngs=nnx.Rngs(0)),
    "group": nnx.GroupNorm(4, num_groups=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0)),
}


NORMS = [(name, rule) for name in NORMED for rule in ("rescale", "reveal_cancel")]


@pytest.mark.rows(("name", "rule"), NORMS, [row for i, row in enumerate(NORMS) if i % 4 in (0, 3)])
def test_a_norm_from_zero_does_not_explode(name, rule):
    """There 1/√(v + ε) is a thousand and more: shares of that size would cancel, with the digits of float32."""
    score, x = NORMED[name]
    for dtype, limit in ((jnp.float64, 1e-11), (jnp.float32, 1e-5)):
        explain = jx.with_info(jx.deeplift(score, rule=rule, fallback=dict(RULES)[rule]))
        attribution, info = jax.jit(explain)(x.astype(dtype))
        assert np.abs(attribution).sum() < 20
        assert abs(float(info.gap)) < limit


def test_a_value_that_is_never_read_gets_nothing():
    # An index that goes elsewhere is shared by the two values that it reads, not along the axis.
    picked = jx.deeplift(lambda x: jnp.take(x, jnp.argmax(x[:2])), baseline=jnp.array([2.0, 1.5, 1.2, -5.0]))
    assert np.array_equal(picked(jnp.array([1.0, 2.0, 1.0, 9.0]))[2:], [0, 0])
    largest = jx.deeplift(lambda x: lax.top_k(x, 1)[0][0], baseline=jnp.array([2.0, 1.5, 1.2, -5.0]))
    assert np.allclose(largest(jnp.array([1.0, 2.0, 1.0, 9.0])), [0, 0, 0, 7])


def test_a_shift_for_safety_is_followed_where_it_is_in_no_softmax():
    score = lambda x: jax.nn.logsumexp(x, b=jnp.roll(x, 1) ** 2)
    assert gap(score, X, baseline=B) < 1e-12
    by_hand = lambda x: jnp.log(jnp.sum(jnp.exp(x) * jnp.roll(x, 1) ** 2))
    assert gap(by_hand, X, baseline=B) < 1e-12

    def tempered(x):
        z = x - lax.stop_gradient(jnp.max(x))
        return (jnp.exp(z / 0.5) / jnp.exp(z / 0.5).sum()) @ jnp.arange(6.0)

    def online(x):
        def step(carry, v):
            m, s = carry
            new = lax.stop_gradient(jnp.maximum(m, v))
            return (new, s * jnp.exp(m - new) + jnp.exp(v - new)), None

        (m, s), _ = lax.scan(step, (x[0] - 1, 0.0), x)
        return m + jnp.log(s)

    def in_a_body(x):
        m = jnp.max(lax.stop_gradient(x))
        return m + jnp.log(lax.map(lambda v: jnp.exp(-m + v), x).sum())

    for score in (tempered, online, in_a_body):
        assert gap(score, X, baseline=B) < 1e-12


def test_reveal_cancel_sees_through_additions_and_loops():
    spellings = (
        lambda x: jax.nn.relu(x @ W) @ V,
        lambda x: jax.nn.relu(x @ W + 0 * x[:5]) @ V,
        lambda x: jax.nn.relu(x[:3] @ W[:3] + x[3:] @ W[3:]) @ V,
        lambda x: jax.nn.relu(x[:3] @ W[:3] - x[3:] @ -W[3:]) @ V,
    )
    settings = {"baseline": B, "rule": "reveal_cancel"}
    first, *others = jax.jit(lambda x: [jx.deeplift(score, **settings)(x) for score in spellings])(X)
    assert relative(jx.deeplift(spellings[0], baseline=B)(X), first) > 1e-2
    assert all(relative(other, first) < 1e-12 for other in others)

    def step(c, t):
        return jnp.tanh(c @ U + t @ W), None

    def unrolled(xs):
        c = jnp.zeros(5)
        for t in xs:
            c, _ = step(c, t)
        return c.sum()

    xs = jax.random.normal(jax.random.key(7), (3, 6))
    for rule in ("reveal_cancel", "genomics_default"):
        scanned = jx.deeplift(lambda xs: lax.scan(step, jnp.zeros(5), xs)[0].sum(), rule=rule)
        written_out = jx.deeplift(unrolled, rule=rule)
        assert relative(*jax.jit(lambda xs, a=scanned, b=written_out: (a(xs), b(xs)))(xs)) < 1e-12


def test_reveal_cancel_in_low_precision_keeps_both_parts():
    @jax.jit
    def explain(w, x):
        score = lambda x: jnp.sum(jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]))
        return jx.with_info(jx.deeplift(score, rule="reveal_cancel"))(x)

    for seed in range(5):
        weights = [jax.random.normal(jax.random.key(seed + i), (16, 16)).astype(jnp.bfloat16) / 4 for i in range(2)]
        x = jax.random.normal(jax.random.key(seed + 9), (16,)).astype(jnp.bfloat16)
        attribution, info = explain(weights, x)
        assert abs(float(info.gap)) < 0.04 * float(jnp.abs(attribution).sum())


def test_reveal_cancel_outside_of_a_domain_is_rescale():
    score = lambda x: jnp.sqrt(1 + x[0] - x[1])  # −x₁ alone has no root
    x = jnp.array([3.0, 2.0])
    found = jx.deeplift(score, rule="reveal_cancel")
    attribution, jacobian = jax.jit(lambda x: (found(x), jax.jacobian(found)(x)))(x)
    assert relative(attribution, jax.jit(jx.deeplift(score))(x)) < 1e-12
    assert np.isfinite(jacobian).all()


def test_the_users_stop_gradient_carries_nothing_and_the_gap_says_so():
    score = lambda x: jnp.sum(lax.stop_gradient(x @ W) * x[:5])
    attribution, info = jx.with_info(jx.deeplift(score, baseline=B))(X)
    assert np.allclose(attribution[:5], (X - B)[:5] * (X @ W + B @ W) / 2)
    lost = (X @ W - B @ W) * (X + B)[:5] / 2
    assert np.allclose(info.gap, -lost.sum())
    # Inside of one formula it is the formula that counts: a straight-through rounding is a staircase.
    rounded = lambda x: jnp.sum(x + lax.stop_gradient(jnp.round(x) - x))
    assert np.allclose(jx.deeplift(rounded, baseline=B)(X), jnp.round(X) - jnp.round(B))


# Settings, transforms, derivatives


def test_several_references_are_the_mean_and_need_a_key_only_to_draw():
    score = relu_net(jax.random.key(1), (6, 8, 1), bias=0.5)
    pool = jax.random.normal(jax.random.key(2), (5, 6))
    several, info = jax.jit(jx.with_info(jx.deeplift(score, baseline=jx.references(pool))))(X)
    single = jax.jit(lambda reference: jx.deeplift(score, baseline=reference)(X))
    singles = jnp.stack([single(reference) for reference in pool])
    assert relative(several, singles.mean(0)) < 1e-12
    assert np.allclose(info.baseline_value, jax.vmap(score)(pool).mean())
    assert abs(info.gap) < 1e-12 and info.n_gradients == info.n_evaluations == 5
    for chunk_size in (2, 5):
        chunked = jx.deeplift(score, baseline=jx.references(pool), chunk_size=chunk_size)
        assert relative(jax.jit(chunked)(X), several) < 1e-12
    drawn = jx.deeplift(score, baseline=jx.references(pool, n=3))
    with pytest.raises(jx.MissingKeyError):
        drawn(X)
    keys = jax.random.split(jax.random.key(0), 400)
    assert relative(jax.jit(jax.vmap(lambda key: drawn(X, key=key)))(keys).mean(0), several) < 0.1
    half = jax.jit(jx.deeplift(score, baseline=lambda x: x / 2))
    assert relative(half(X), single(X / 2)) < 1e-12
    pair = jax.jit(jx.deeplift(lambda a, b: score(a) * score(b), argnums=(0, 1), baseline=(B, None)))(X, X)
    assert np.array_equal(pair[1], 0 * X) and np.any(pair[0])


def test_derivatives_are_finite_behind_a_causal_mask():
    mask = jnp.tril(jnp.ones((4, 4), bool))
    score = lambda x: (jax.nn.softmax(jnp.where(mask, x @ x.T, -jnp.inf)) @ x)[2].sum()
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jx.deeplift(score)(x) ** 2)))(jnp.outer(X[:4], B[:4]) + jnp.eye(4))
    assert np.isfinite(gradient).all() and np.any(gradient)


@pytest.mark.rows("rule", dict(RULES), ("rescale", "reveal_cancel"))
def test_derivatives_of_the_explanation_are_those_of_finite_differences(rule):
    def score(w, x):
        h = jnp.tanh(x @ w)
        return (jax.nn.softmax(h @ U) * layer_norm(jax.nn.gelu(h))) @ V + jnp.max(h) + jnp.sort(h)[2]

    def explained(w, x, x0):
        return jx.deeplift(lambda x: score(w, x), baseline=x0, rule=rule, fallback="rescale")(x) @ jnp.arange(1.0, 7)

    arguments = (W, X, B.at[2].set(X[2]))  # one input without a change
    evaluate = jax.jit(jax.value_and_grad(explained, (0, 1, 2)))  # one program for all three points
    gradients = evaluate(*arguments)[1]
    direction = jax.tree.map(lambda a: jnp.sin(1 + jnp.arange(1.0 * a.size)).reshape(a.shape), arguments)
    step = 1e-5
    moved = [jax.tree.map(lambda a, d, s=s: a + s * d, arguments, direction) for s in (step, -step)]
    finite = (evaluate(*moved[0])[0] - evaluate(*moved[1])[0]) / (2 * step)
    exact = sum(jnp.sum(g * d) for g, d in zip(gradients, direction, strict=True))
    assert abs(finite - exact) < 1e-7 * abs(exact)


def test_it_nests_in_smoothgrad_and_shares_the_reference_over_a_batch():
    score = relu_net(jax.random.key(1), (6, 8, 1), bias=0.5)
    smooth = jx.smoothgrad(jx.deeplift(score), n_samples=4, noise=0.1)
    assert smooth(X, key=jax.random.key(0)).shape == (6,)
    # Under vmap, a constant reference is evaluated once: one product with the first weights for all, and one for each
    # example.
    program = str(jax.make_jaxpr(jax.vmap(jx.deeplift(lambda x: jnp.tanh(x @ W).sum())))(jnp.ones((7, 6))))
    assert program.count("f64[5] = dot_general") == 1
    assert program.count("f64[7,5] = dot_general") == 1


def test_a_reference_that_all_devices_share_is_used_on_each():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    xs = jax.random.normal(jax.random.key(0), (4, 6))
    explain = jax.vmap(jx.deeplift(lambda x: jnp.max(x) + jax.nn.softmax(x)[0] + jnp.sort(x)[2], baseline=B))
    spec = jax.P("data")
    assert (
        relative(jax.jit(jax.shard_map(explain, mesh=mesh, in_specs=spec, out_specs=spec))(xs), jax.jit(explain)(xs))
        < 1e-12
    )


# Refusals


def test_another_branch_is_an_error_and_nan_under_jit():
    def score(x):
        return lax.cond(x[0] > 0, lambda h: jnp.sum(h), lambda h: -jnp.sum(h), jnp.tanh(x))

    x = jnp.array([1.0, 2.0])
    explain = jx.deeplift(score, baseline=jnp.array([-1.0, 0.5]))
    with pytest.raises(jx.UnexplainedChangeError) as error:
        explain(x)
    for words in (
        "take different branches",
        "cond (branch)",
        "test_deeplift.py",
        "1 of 1 reference",
        "baseline=lambda",
    ):
        assert words in text(error)
    assert np.isnan(jax.jit(explain)(x)).all()
    maps = jax.vmap(explain)(jnp.stack([x, -x]))
    assert np.isnan(maps[0]).all() and np.isfinite(maps[1]).all()
    # A step that no derivative and no node tells of is seen by the sum.
    stairs = jx.deeplift(lambda x: jnp.sum(jnp.where(x > 1, x + 5, x)), baseline=jnp.ones(1, jnp.float32))
    with pytest.raises(jx.UnexplainedChangeError, match="do not sum"):
        stairs(jnp.array([1 + 1e-6], jnp.float32))
    held = lambda x: jnp.sum(x / lax.stop_gradient(jnp.linalg.norm(x)))
    with pytest.raises(jx.NonFiniteError, match="not finite at the reference"):
        jx.deeplift(held)(x)
    with pytest.raises(jx.NonFiniteError, match="not finite at the reference"):
        jx.deeplift(lambda x: jnp.sum(x / jnp.linalg.norm(x)) + x[0])(x)
    several = jx.deeplift(score, baseline=jx.references(jnp.array([[-1.0, 0.5], [3.0, 0.5], [-2.0, 1.0]])))
    with pytest.raises(jx.UnexplainedChangeError, match="2 of 3 references"):
        several(x)


JUMPS = {
    "a branch inside a loop": (
        lambda x: lax.scan(lambda c, t: (lax.cond(t > 0.9, jnp.sin, jnp.cos, c + t), None), 0.0, x)[0],
        "cond (branch)",
    ),
    "a mask from elsewhere": (lambda x: jnp.where(x[0] > 0, jnp.outer(x, V), 0).sum(), "select_n (structural)"),
    "a mask on an activation": (lambda x: jnp.sum(jnp.where(x[0] > 0, jnp.tanh(x), 0.0)), "select_n"),
    "rows of an array by an index": (lambda x: (U[jnp.argmax(x[:5])] * x[:5]).sum(), "reduce_sum (dense)"),
    "an index far off": (lambda x: (1e3 * jnp.arange(6.0) + x)[jnp.argmax(x)], "dynamic_slice (structural)"),
    "rounding": (lambda x: jnp.sum(jnp.round(x @ W) * jnp.cos(x[:5])), "reduce_sum (dense)"),
    "a gate of the largest logits": (
        lambda x: jax.nn.softmax(jnp.where(x >= jnp.sort(x)[-2], x, -jnp.inf))[5],
        "select_n (structural)",
    ),
    "what is sorted along": (lambda x: lax.sort((x, jnp.arange(6.0) ** 2), num_keys=1)[1][0] + x[0], "sort"),
    "a score without a derivative": (lambda x: jnp.round(x).sum(), "the score itself has no derivative"),
}


@pytest.mark.parametrize("name", JUMPS)
def test_what_jumps_between_reference_and_input_is_named(name):
    score, where = JUMPS[name]
    x, x0 = jnp.array([1.0, 0.3, -0.2, 0.1, 0.5, 2.0]), jnp.array([-1.0, 0.8, 0.3, -0.4, 0.2, 0.1])
    explain = jx.deeplift(score, baseline=x0)
    with pytest.raises(jx.UnexplainedChangeError) as error:
        explain(x)
    assert where in text(error)
    assert np.isnan(jax.jit(explain)(x)).all()
    # Where it stays the same, it is followed.
    assert gap(score, x, baseline=x * (1 + 1e-3)) < 1e-9 or name in ("rounding", "a score without a derivative")


@jax.custom_vjp
def _opaque(x):
    return lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x / 2, x)


_opaque.defvjp(lambda x: (_opaque(x), None), lambda _, g: (g,))

REFUSED = {
    "custom_vjp": lambda x: jnp.sum(_opaque(x)),
    "custom_linear_solve": lambda x: jnp.linalg.solve(U + jnp.diag(x[:5]), V).sum(),
    "cumprod": lambda x: jnp.cumprod(x).sum(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name):
    with pytest.raises(jx.UnknownNodeError) as error:
        jx.deeplift(REFUSED[name])(X)
    assert name in text(error) and "test_deeplift.py" in text(error)


def test_reveal_cancel_where_it_is_undefined_needs_a_fallback():
    score = lambda x: jax.nn.softmax(x @ W)[0] * jnp.max(x)
    with pytest.raises(jx.UnknownNodeError) as error:
        jx.deeplift(score, rule="reveal_cancel")(X)
    for words in ("3 nodes", "reduce_max (max)", "softmax", "mul", 'fallback="rescale"', 'rule="genomics_default"'):
        assert words in text(error)
    assert gap(score, X, baseline=B, rule="reveal_cancel", fallback="rescale") < 1e-12
    for wrong in ({"rule": "linear"}, {"fallback": "gradient"}, {"chunk_size": 0}):
        with pytest.raises(jx.SettingError):
            jx.deeplift(score, **wrong)
