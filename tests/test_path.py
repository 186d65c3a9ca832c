"""Path methods: quadrature, completeness, error control, references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative, relu_net, text
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxplain as jx
from jaxplain._quadrature import RULES, nodes_and_weights


def cubic(x):
    return x[0] * x[1] ** 2 + jnp.sum(x**3)


X = jnp.array([1.0, -2.0, 0.5])
B = jnp.array([0.5, 1.0, -1.0])


def test_rules_are_their_definitions():
    for name in RULES:
        for n in (1, 2, 3, 10, 51):
            nodes, weights = nodes_and_weights("test", name, n)
            assert nodes.shape == weights.shape == (n,) and nodes.dtype == weights.dtype == np.float64
            assert abs(weights.sum() - 1) < 1e-13 and ((nodes >= 0) & (nodes <= 1)).all()
    # Exact up to the degree that each rule promises.
    degrees = {"gauss_legendre": 9, "trapezoid": 1, "midpoint": 1, "left": 0, "right": 0}
    for name, degree in degrees.items():
        nodes, weights = nodes_and_weights("test", name, 5)
        errors = [abs((weights * nodes**k).sum() - 1 / (k + 1)) for k in range(degree + 2)]
        assert max(errors[: degree + 1]) < 1e-14 and errors[degree + 1] > 1e-6, name


def test_integral_of_a_cubic_is_exact():
    # ∂f along the path is a quadratic in α, which two Gauss–Legendre nodes integrate exactly.
    alphas = np.linspace(0, 1, 200_001)
    points = np.asarray(B) + alphas[:, None] * np.asarray(X - B)
    gradients = 3 * points**2
    gradients[:, 0] += points[:, 1] ** 2
    gradients[:, 1] += 2 * points[:, 0] * points[:, 1]
    want = np.asarray(X - B) * np.trapezoid(gradients, alphas, axis=0)
    got, info = jx.with_info(jx.integrated_gradients(cubic, baseline=B, n_steps=2))(X)
    assert relative(got, want) < 1e-9
    assert abs(info.gap) < 1e-13
    np.testing.assert_allclose(info.value, cubic(X))
    np.testing.assert_allclose(info.baseline_value, cubic(B))
    assert info.n_steps == info.n_gradients == info.n_evaluations == 2


@pytest.mark.parametrize("rule", RULES)
def test_rules_converge_to_the_same_map(rule):
    f = relu_net(jax.random.key(0), (6, 8, 8, 1), 0.2, jnp.tanh)
    x = jax.random.normal(jax.random.key(1), (6,))
    want = jx.integrated_gradients(f, n_steps=100)(x)
    assert relative(jx.integrated_gradients(f, n_steps=2000, quadrature=rule)(x), want) < 2e-3


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    n_steps=st.sampled_from([1, 2, 7]),
    rule=st.sampled_from(["gauss_legendre", "midpoint", "right"]),
)
def test_without_biases_ig_from_zero_is_input_x_gradient(seed, n_steps, rule):
    key = jax.random.key(seed)
    f = relu_net(key, (5, 7, 6, 1))
    x = jax.random.normal(jax.random.fold_in(key, 1), (5,))
    ig = jx.integrated_gradients(f, n_steps=n_steps, quadrature=rule)(x)
    assert relative(ig, jx.input_x_gradient(f)(x)) < 1e-10


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 50, 1000])
def test_chunks_change_nothing(chunk_size):
    f = relu_net(jax.random.key(0), (6, 8, 8, 1), 0.2)
    want = jx.integrated_gradients(f, n_steps=11, chunk_size=11)(jnp.ones(6))
    assert relative(jx.integrated_gradients(f, n_steps=11, chunk_size=chunk_size)(jnp.ones(6)), want) < 1e-14
    refined = [
        jx.with_info(jx.integrated_gradients(f, n_steps=4, tol=1e-4, chunk_size=c))(jnp.ones(6))
        for c in (3, chunk_size)
    ]
    assert relative(refined[1][0], refined[0][0]) < 1e-13 and refined[0][1].n_steps == refined[1][1].n_steps


def test_baselines_in_every_form():
    want = jx.integrated_gradients(cubic, baseline=jnp.full(3, 0.3))(X)
    for baseline in (0.3, np.float64(0.3), lambda x: jnp.full_like(x, 0.3), np.full(3, 0.3)):
        assert relative(jx.integrated_gradients(cubic, baseline=baseline)(X), want) == 0
    per_example = jax.vmap(lambda x, b: jx.integrated_gradients(cubic, baseline=b)(x))(
        jnp.stack([X, X]), jnp.stack([B, X])
    )
    assert relative(per_example[0], jx.integrated_gradients(cubic, baseline=B)(X)) < 1e-14
    assert not per_example[1].any()


def test_baselines_of_several_arguments():
    f = lambda a, b: jnp.sum(a * b)
    a, b = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    both = jx.integrated_gradients(f, argnums=(0, 1))(a, b)
    assert relative(both, (a * b / 2, a * b / 2)) < 1e-14
    alone = jx.integrated_gradients(f, argnums=(0, 1), baseline=(0.0, None))(a, b)
    assert relative(alone[0], a * b) < 1e-14 and not alone[1].any()
    mixed = jx.integrated_gradients(f, argnums=(0, 1), baseline=(lambda a: a - 1, jnp.zeros(2)))(a, b)
    _, info = jx.with_info(jx.integrated_gradients(f, argnums=(0, 1), baseline=(lambda a: a - 1, jnp.zeros(2))))(a, b)
    assert abs(info.gap) < 1e-14 and relative(mixed[0], b / 2) < 1e-14


def test_references_average_over_the_pool():
    pool = jax.random.normal(jax.random.key(0), (5, 3))
    explain = jx.with_info(jx.integrated_gradients(cubic, baseline=jx.references(pool), n_steps=4, chunk_size=3))
    got, info = explain(X)
    each = [jx.integrated_gradients(cubic, baseline=b, n_steps=4)(X) for b in pool]
    assert relative(got, np.mean(each, axis=0)) < 1e-14
    np.testing.assert_allclose(info.baseline_value, np.mean([cubic(b) for b in pool]))
    assert info.n_gradients == 20 and abs(info.gap) < 1e-13
    refined, info = jx.with_info(jx.integrated_gradients(cubic, baseline=jx.references(pool), n_steps=1, tol=1e-4))(X)
    assert info.converged and relative(refined, got) < 1e-3


def test_drawn_references_need_a_key_and_use_it(key):
    pool = jax.random.normal(jax.random.key(0), (5, 3))
    explain = jx.integrated_gradients(cubic, baseline=jx.references(pool, n=200), n_steps=3)
    with pytest.raises(jx.MissingKeyError, match="needs a random key"):
        explain(X)
    whole = jx.integrated_gradients(cubic, baseline=jx.references(pool), n_steps=3)(X)
    assert relative(explain(X, key=key), whole) < 0.3
    assert relative(explain(X, key=key), explain(X, key=jax.random.key(1))) > 1e-6


@pytest.mark.parametrize("act", [jax.nn.relu, jnp.tanh])
def test_complete_closes_the_gap_and_leaves_smooth_maps_alone(act):
    f = relu_net(jax.random.key(3), (20, 32, 32, 1), 0.2, act)
    xs = jax.random.normal(jax.random.key(1), (10, 20))
    plain, info = jax.vmap(jx.with_info(jx.integrated_gradients(f)))(xs)
    whole, whole_info = jax.vmap(jx.with_info(jx.integrated_gradients(f, complete=True)))(xs)
    assert np.max(np.abs(whole_info.gap) / np.abs(plain).sum(axis=1)) < 1e-13
    exact = jax.vmap(jx.integrated_gradients(f, n_steps=1000, chunk_size=100))(xs)
    if act is jnp.tanh:
        assert relative(whole, plain) < 1e-9
    else:
        assert np.median(np.abs(info.gap) / np.abs(plain).sum(axis=1)) > 1e-5
        assert relative(whole, exact) < 1.3 * relative(plain, exact)


def test_complete_leaves_the_gap_open_where_the_nodes_cannot_tell():
    f = relu_net(jax.random.key(3), (20, 32, 32, 1), 0.2)
    xs = jax.random.normal(jax.random.key(1), (20, 20))
    exact = jax.vmap(jx.integrated_gradients(f, n_steps=1000))(xs)
    plain = jax.vmap(jx.integrated_gradients(f, n_steps=3))(xs)
    whole = jax.vmap(jx.integrated_gradients(f, n_steps=3, complete=True))(xs)
    error = lambda maps: np.abs(maps - exact).sum(axis=1)
    assert (error(whole) < 3 * error(plain)).all()
    assert not np.array_equal(whole, plain)


def test_complete_is_exact_in_float32_beside_a_steep_trend():
    kinks = jnp.array([0.31, 0.97, 2.13], jnp.float32)
    g = lambda x: 100 * jnp.sum(x) + 0.3 * jnp.sum(jax.nn.relu(x - kinks))
    x = jnp.array([1, 2, 3], jnp.float32)
    for n in (5, 20):
        _, before = jx.with_info(jx.integrated_gradients(g, n_steps=n))(x)
        _, after = jx.with_info(jx.integrated_gradients(g, n_steps=n, complete=True))(x)
        assert abs(after.gap) <= 2 * np.spacing(np.float32(600)) < abs(before.gap)


def test_tol_never_ends_worse_than_it_began():
    f = lambda x: jnp.sum(jnp.sin(3 * x) * jnp.array([1, 0.7, 0.2], jnp.float32)) + jnp.prod(x)
    xs = jax.random.normal(jax.random.key(0), (6, 3), jnp.float32)
    _, plain = jax.vmap(jx.with_info(jx.integrated_gradients(f)))(xs)
    _, tried = jax.vmap(jx.with_info(jx.integrated_gradients(f, tol=1e-9, max_steps=500)))(xs)
    assert (np.abs(tried.gap) <= np.abs(plain.gap) + 1e-6).all()


def test_one_nan_does_not_keep_the_batch_running():
    f = lambda x: jnp.sum(jnp.sqrt(x))
    explain = jx.with_info(jx.integrated_gradients(f, tol=1e-12, max_steps=10**6))
    _, info = explain(jnp.array([-1.0, 1.0]))
    assert not info.converged and info.n_steps == 50


def test_complete_on_a_linear_score_has_nothing_to_solve_for():
    got, info = jx.with_info(jx.integrated_gradients(lambda x: jnp.sum(2 * x), complete=True))(X)
    assert relative(got, 2 * X) < 1e-14 and abs(info.gap) < 1e-14


def test_tolerance_is_reached_for_each_example():
    f = relu_net(jax.random.key(3), (20, 32, 32, 1), 0.2)
    xs = jax.random.normal(jax.random.key(1), (12, 20))
    explain = jx.with_info(jx.integrated_gradients(f, n_steps=10, tol=1e-3, atol=1e-2))
    maps, info = jax.jit(jax.vmap(explain))(xs)
    delta = info.value - info.baseline_value
    assert info.converged.all()
    assert (np.abs(info.gap) <= 1e-3 * np.maximum(np.abs(delta), 1e-2) * (1 + 1e-9)).all()
    assert (np.abs(maps.sum(axis=1) - delta) <= 1e-3 * np.maximum(np.abs(delta), 1e-2) * (1 + 1e-6)).all()
    assert len(set(info.n_steps.tolist())) > 1, "every example took the same number of steps"
    # The threefold midpoint rules that it may stop at: 10, then 10 + 20, 10 + 60, 10 + 180, …
    assert set(info.n_steps.tolist()) <= {10, *(10 + 20 * 3**k for k in range(8))}
    exact = jax.vmap(jx.integrated_gradients(f, n_steps=1000, chunk_size=100))(xs)
    plain = jax.vmap(jx.integrated_gradients(f, n_steps=10))(xs)
    assert relative(maps, exact) < 0.5 * relative(plain, exact)


def test_refinement_is_the_best_of_the_midpoint_rules():
    f = relu_net(jax.random.key(3), (20, 32, 32, 1), 0.2)
    x = jax.random.normal(jax.random.key(1), (20,))
    rules = {10: jx.integrated_gradients(f, n_steps=10)(x)}
    rules |= {n: jx.integrated_gradients(f, n_steps=n, quadrature="midpoint")(x) for n in (20, 60, 180)}
    miss = {n: abs(r.sum() - (f(x) - f(0 * x))) for n, r in rules.items()}
    for n, budget in ((20, 30), (60, 70), (180, 190)):
        got, info = jx.with_info(jx.integrated_gradients(f, n_steps=10, tol=0.0, max_steps=budget, chunk_size=7))(x)
        assert info.n_steps == budget and not info.converged
        best = min((m for m in rules if m <= n), key=miss.get)
        assert relative(got, rules[best]) < 1e-12
    assert min(miss, key=miss.get) != 10, "no refinement was ever kept"


def test_a_smooth_score_converges_at_once_and_a_hopeless_one_says_so():
    f = relu_net(jax.random.key(3), (20, 32, 32, 1), 0.2, jnp.tanh)
    _, info = jx.with_info(jx.integrated_gradients(f, tol=1e-6))(jnp.ones(20))
    assert info.converged and info.n_steps == 50
    step = lambda x: jnp.sum(jnp.where(x > 0.3, 1.0, 0.0) + x)  # no gradient sees the step: no rule can integrate it
    _, info = jx.with_info(jx.integrated_gradients(step, tol=1e-3, max_steps=500))(jnp.ones(20))
    assert not info.converged
    assert 50 < info.n_steps <= 500
    assert abs(info.gap + 20) < 1e-12


def test_expected_gradients_agree_with_ig_over_the_pool_within_their_error(key):
    pool = jax.random.normal(jax.random.key(0), (5, 3))
    whole = jx.integrated_gradients(cubic, baseline=jx.references(pool), n_steps=4)(X)
    explain = jx.with_info(jx.expected_gradients(cubic, references=jx.references(pool), n_samples=4000, chunk_size=500))
    got, info = explain(X, key=key)
    assert (np.abs(got - whole) < 4 * info.standard_error).all()
    np.testing.assert_allclose(
        jx.expected_gradients(cubic, references=jx.references(pool), n_samples=4000)(X, key=key), got, rtol=1e-10
    )


def test_standard_error_is_calibrated():
    pool = jax.random.normal(jax.random.key(0), (5, 3))
    whole = jx.integrated_gradients(cubic, baseline=jx.references(pool), n_steps=4)(X)
    explain = jx.with_info(jx.expected_gradients(cubic, references=jx.references(pool), n_samples=100, chunk_size=100))
    maps, info = jax.vmap(lambda k: explain(X, key=k))(jax.random.split(jax.random.key(5), 400))
    # Over 400 repetitions: the spread that is seen against the one that is estimated, and no bias.
    np.testing.assert_allclose(maps.std(axis=0) / jnp.sqrt(jnp.mean(info.standard_error**2, axis=0)), 1, atol=0.12)
    assert (np.abs(maps.mean(axis=0) - whole) < 4 * maps.std(axis=0) / 20).all()


def test_references_from_a_distribution(key):
    uniform = lambda key: jax.random.uniform(key, (3,))
    got = jx.expected_gradients(lambda x: jnp.sum(x), references=uniform, n_samples=2000, chunk_size=100)(X, key=key)
    np.testing.assert_allclose(got, X - 0.5, atol=0.03)


def test_reverse_mode_through_tol_is_refused_and_forward_mode_is_not():
    explain = jx.integrated_gradients(cubic, tol=1e-3)
    for wrap in (lambda f: f, jax.jit):
        with pytest.raises(jx.TransformError) as error:
            jax.grad(wrap(lambda x: jnp.sum(explain(x) ** 2)))(X)
        assert "n_steps" in text(error)
    with pytest.raises(jx.TransformError):
        jax.vmap(jax.grad(lambda x: jnp.sum(explain(x) ** 2)))(jnp.stack([X, B]))
    _, tangent = jax.jvp(jax.vmap(explain), (X[None],), (X[None],))
    _, want = jax.jvp(jax.vmap(jx.integrated_gradients(cubic)), (X[None],), (X[None],))
    assert relative(tangent, want) < 1e-2
