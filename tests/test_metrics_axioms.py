"""Axioms: methods that keep them and methods that do not, loops in NumPy, transforms, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relu_net, text

import jaxplain as jx
from jaxplain.metrics._axioms import completeness, input_invariance, non_sensitivity
from jaxplain.metrics.removal import uniform

X = jnp.array([1.0, -2.0, 0.5, 3.0])
W = jnp.array([2.0, 0.0, -4.0, 1.0])


def linear(x):
    return x @ W + 5.0


def smooth(x):
    return jnp.sin(x[0] * x[1]) + x[2] ** 3 - x[3]


# --- Completeness ----------------------------------------------------------------------------------------------------


def test_methods_that_are_complete(key):
    net = relu_net(key, (4, 8, 1), bias=0.3)
    for baseline in (0.0, X[::-1], lambda x: x * 0.5):
        explain = jx.integrated_gradients(smooth, baseline=baseline, n_steps=100)
        assert jax.jit(lambda x: completeness(smooth, baseline=baseline)(explain(x), x))(X) < 1e-9  # noqa: B023
    measure = jax.jit(completeness(net))
    assert measure(jax.jit(jx.shapley_sampling(net, n_samples=4))(X, key=key), X) < 1e-14
    assert measure(jax.jit(jx.deeplift(net))(X), X) < 1e-14
    assert measure(jax.jit(jx.gradient(net))(X), X) > 0.1


def test_completeness_closed_forms():
    measure = jax.jit(completeness(linear))
    assert measure(X * W, X) == 0
    np.testing.assert_allclose(measure(2 * X * W, X), 3 / 14)  # Σ R = 6, f(x) − f(b) = 3, Σ|R| = 14
    absolute = jax.jit(completeness(linear, relative=False))
    np.testing.assert_allclose(absolute(2 * X * W, X), 3)
    np.testing.assert_allclose(absolute(-X * W, X), 6)
    assert measure(0 * X, X) == 1
    no_change = jax.jit(completeness(linear, baseline=lambda x: x))
    assert no_change(0 * X, X) == 0  # nothing to explain, nothing explained
    assert no_change(X * W, X) == 3 / 7
    large, want = 1e8 * X * W + jnp.array([1.0, 0, 0, 0]), 1 / 7e8  # the scale where terms cancel
    np.testing.assert_allclose(completeness(lambda x: 1e8 * linear(x))(large, X), want, rtol=1e-6)
    np.testing.assert_allclose(measure(-X * W, X), 6 / 7)
    worst = completeness(lambda x: x[0])
    assert worst(jnp.array([-1.0, 0]), jnp.ones(2)) == 2


def test_completeness_over_references(key):
    pool = jax.random.normal(key, (7, 4))
    everything = jx.references(pool)
    want = smooth(X) - np.mean([smooth(b) for b in pool])
    for chunk_size in (None, 3, 10):
        measure = jax.jit(completeness(smooth, baseline=everything, relative=False, chunk_size=chunk_size))
        np.testing.assert_allclose(measure(0 * X, X), abs(want), rtol=1e-12)
    drawn = jx.references(pool, n=3)
    measure = completeness(smooth, baseline=drawn)
    relevance = jax.jit(jx.integrated_gradients(smooth, baseline=drawn))(X, key=key)
    run = jax.jit(measure)
    assert run(relevance, X, key=key) < 1e-6 < run(relevance, X, key=jax.random.key(1))
    with pytest.raises(jx.MissingKeyError, match=r"metrics\.completeness"):
        measure(relevance, X)


def test_completeness_pytrees_dtypes_and_transforms(key):
    def score(a, b, label):
        return (a["x"] @ W + jnp.sum(b**2)) * label

    inputs = ({"x": X, "n": jnp.arange(2)}, jnp.array([1.0, 2.0]))
    explain = jx.integrated_gradients(score, argnums=(0, 1), baseline=(0.0, None))
    relevance = jax.jit(explain)(*inputs, 3.0)
    kept, both = (completeness(score, argnums=(0, 1), baseline=b) for b in ((0.0, None), 0.0))
    assert jax.jit(kept)(relevance, *inputs, 3.0) < 1e-12
    assert jax.jit(both)(relevance, *inputs, 3.0) > 0.1  # the other argument has changed, too
    image = jax.random.normal(key, (2, 3, 4))
    places = jax.jit(completeness(lambda x: jnp.sum(x**2)))(jnp.sum(image**2, axis=-1), image)
    assert places < 1e-14

    xs = jax.random.normal(key, (3, 4))
    measure = completeness(smooth)
    run = jax.jit(measure)
    each = [measure(xs[0], xs[0]), *(run(x, x) for x in xs[1:])]
    np.testing.assert_allclose(jax.jit(jax.vmap(measure))(xs, xs), each, rtol=1e-12)
    half = X.astype(jnp.bfloat16)
    value = jax.jit(completeness(lambda x: x @ W.astype(x.dtype)))(half * W.astype(half.dtype), half)
    assert value.dtype == jnp.float32 and value == 0
    assert np.isnan(run(X.at[0].set(jnp.nan), X))
    for broken in (lambda x: jnp.log(x[1]), lambda x: jnp.where(x[0] > 0, 1.0, jnp.nan)):  # at x, at the baseline
        assert np.isnan(jax.jit(completeness(broken))(X, X))


def test_completeness_refuses_what_does_not_fit():
    with pytest.raises(jx.StructureError, match=r"metrics\.completeness: `baseline` does not match"):
        completeness(linear, baseline=jnp.zeros(3))(X, X)
    with pytest.raises(jx.SettingError) as error:
        completeness(linear, baseline=uniform())
    assert "got   <jaxplain removal uniform>" in text(error) and "jx.references" in text(error)
    with pytest.raises(jx.StructureError, match=r"jax\.vmap\(measure\)\(attributions"):
        completeness(linear)(jnp.stack([X, X]), X)
    with pytest.raises(jx.SettingError, match=r"metrics\.completeness.*function"):
        completeness(3.0)


# --- Non-sensitivity -------------------------------------------------------------------------------------------------


TOLERANCES = (0.0, 1e-5, 0.1, 0.2, 0.5, 0.9)


def _non_sensitivity(score, relevance, x, baselines, tolerance):
    drops = []
    for i in range(len(x)):
        squares = []
        for b in baselines:
            point = np.array(x)
            point[i] = b[i]
            squares.append(float(score(x) - score(jnp.asarray(point))) ** 2)
        drops.append(np.sqrt(np.mean(squares)))
    silent = np.array(drops) <= tolerance * max(drops)
    sizes = np.abs(relevance)
    return np.mean((sizes <= tolerance * max(sizes)) != silent)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_non_sensitivity_against_a_loop(chunk_size, key):
    weights = jax.random.normal(key, (8,)) * jnp.where(jnp.arange(8) % 3 > 0, 1.0, 0.0)
    score = lambda x: jnp.tanh(x @ weights) + 0.1 * x[0] * x[1]
    x, relevance = jax.random.normal(jax.random.fold_in(key, 1), (2, 8))
    measure = jax.jit(lambda t: non_sensitivity(score, baseline=0.3, tolerance=t, chunk_size=chunk_size)(relevance, x))
    want = [_non_sensitivity(score, relevance, x, [np.full(8, 0.3)], t) for t in TOLERANCES]
    np.testing.assert_allclose([measure(t) for t in TOLERANCES], want)
    assert len(set(want)) > 3


def test_non_sensitivity_closed_forms(key):
    measure = jax.jit(non_sensitivity(linear, baseline=0.0))
    assert measure(X * W, X) == 0 == measure(1e-200 * X * W, X)
    assert measure(X, X) == 1 / 4  # relevance where there is no weight
    assert measure(X * W * jnp.array([0.0, 1, 1, 1]), X) == 1 / 4  # none where there is
    assert measure(0 * X, X) == 3 / 4 and measure(jnp.where(W == 0, 1.0, 0.0), X) == 1
    assert measure(X * W + jnp.array([0, 2.9e-5, 0, 0]), X) == 0  # nothing, beside 3
    assert measure(X * W + jnp.array([0, 3.1e-5, 0, 0]), X) == 1 / 4
    # The mean of several squares, which would all be 0.
    scaled = jax.jit(non_sensitivity(lambda x: 1e-200 * linear(x), baseline=uniform(), n_samples=2, key=key))
    assert scaled(X * W, X) == 0 and scaled(X, X) == 1 / 4
    constant = jax.jit(non_sensitivity(lambda x: jnp.sum(0 * x), baseline=0.0))
    assert constant(0 * X, X) == 0 and constant(X, X) == 1
    # A feature that is at the baseline already cannot be seen to matter, unless the baseline is drawn.
    at = X.at[2].set(0.0)
    assert measure(W, at) == 1 / 4
    assert jax.jit(non_sensitivity(linear, baseline=uniform(), key=key))(W, at) == 0


def test_non_sensitivity_takes_the_mean_over_draws(key):
    pool = jax.random.normal(key, (3, 4))
    score = lambda x: x @ jnp.array([1.0, 0.3, 0.0, 0.1])
    drawn = [pool[jax.random.randint(jax.random.fold_in(key, j), (), 0, 3)] for j in range(6)]
    settings = dict(baseline=jx.references(pool), n_samples=6)
    run = jax.jit(lambda t: non_sensitivity(score, **settings, tolerance=t)(X, X, key=key))
    for tolerance in TOLERANCES:
        assert run(tolerance) == _non_sensitivity(score, X, X, drawn, tolerance)
    measure = non_sensitivity(score, **settings)
    with pytest.raises(jx.MissingKeyError, match=r"metrics\.non_sensitivity"):
        measure(X, X)


def test_rounding_of_the_score_is_no_dependence(key):
    # The second feature changes a score of 1000 by one unit in the last place, the third by nothing.
    score = lambda x: x[0] + 4e-5 * x[1] + 1000
    measure = jax.jit(non_sensitivity(score, baseline=0.0))
    assert abs(score(jnp.ones(3, jnp.float32)) - score(jnp.array([1.0, 0, 0], jnp.float32))) > 5e-5
    assert measure(jnp.array([1.0, 0, 0]), jnp.ones(3, jnp.float32)) == 0
    assert measure(jnp.array([1.0, 4e-5, 0]), jnp.ones(3)) == 0  # float64 can tell
    # Large terms that cancel round by more than that: f(x) comes from the program that makes the others.
    keys = jax.random.split(key, 3)
    w1, b, w2 = (jax.random.normal(k, s, jnp.float32) for k, s in zip(keys, ((49, 64), (64,), (64,)), strict=True))
    w1 = 1e-3 * w1.at[::7].set(0)
    x = jax.random.normal(jax.random.key(3), (49,), jnp.float32)
    net = lambda x: jnp.tanh(x @ w1 + b) @ (100 * w2)
    root = net(x)
    score = lambda x: net(x) - root
    relevance = jax.jit(jx.input_x_gradient(score))(x)
    assert jax.jit(non_sensitivity(score, baseline=0.0))(relevance, x) == 0


def test_non_sensitivity_groups_transforms_and_what_is_not_finite(key):
    image = jax.random.normal(key, (4, 4, 2))
    left = lambda x: jnp.sum(x[:, :2] ** 2)
    measure = jax.jit(non_sensitivity(left, baseline=0.0, groups=jx.patches(2, 2)))
    assert measure(jnp.ones((4, 4)), image) == 2 / 4
    assert measure(jnp.ones((4, 4)).at[:, 2:].set(0), image) == 0

    xs = jax.random.normal(key, (3, 4))
    measure = jax.jit(non_sensitivity(linear, baseline=0.0, tolerance=0.3))
    each = [measure(r, x) for r, x in zip(xs**2, xs, strict=True)]
    assert np.std(each) > 0
    np.testing.assert_array_equal(jax.jit(jax.vmap(measure))(xs**2, xs), each)
    assert non_sensitivity(linear, baseline=0.0, tolerance=0.3)(xs[0] ** 2, xs[0]) == each[0]
    half = X.astype(jnp.bfloat16)
    value = jax.jit(non_sensitivity(lambda x: x @ W.astype(x.dtype), baseline=0.0))(half * W.astype(half.dtype), half)
    assert value.dtype == jnp.float32 and value == 0
    assert np.isnan(measure(X.at[0].set(jnp.inf), X))
    assert np.isnan(jax.jit(non_sensitivity(lambda x: jnp.log(x[0]) + x[1], baseline=0.0))(X, X))  # at one point
    for bad in (dict(tolerance=-1.0), dict(n_samples=0), dict(chunk_size=True)):
        with pytest.raises(jx.SettingError, match=r"metrics\.non_sensitivity"):
            non_sensitivity(linear, baseline=0.0, **bad)


# --- Input invariance ------------------------------------------------------------------------------------------------


def test_which_methods_are_invariant(key):
    net = relu_net(key, (4, 8, 1), bias=0.3)
    lowest = partial(jx.integrated_gradients, baseline=lambda x: jnp.full_like(x, x.min()), n_steps=7)
    from_zero = (jx.input_x_gradient, jx.integrated_gradients, partial(jx.lrp, rules=jx.rules.epsilon()))
    uneven = jnp.array([0.1, 0.2, -0.3, 0.4])
    for method, shift, is_invariant in (
        *((jx.gradient, shift, True) for shift in (-1.0, uneven, lambda x: x.max() + 0 * x)),
        (lowest, -1.0, True),
        (lowest, uneven, False),
        *((method, -1.0, False) for method in from_zero),
        (jx.input_x_gradient, 0.0, True),
    ):
        value = jax.jit(input_invariance(method, net, shift=shift))(X)
        assert (value < 1e-12) == is_invariant and (value > 1e-2) != is_invariant, (method, shift)


def test_input_invariance_closed_forms(key):
    product = lambda shift: jax.jit(input_invariance(jx.input_x_gradient, linear, shift=shift))
    np.testing.assert_allclose(product(shift=-2.0)(X), 2 * jnp.linalg.norm(W) / jnp.linalg.norm(X * W), rtol=1e-12)
    np.testing.assert_allclose(product(shift=3 * X)(X), 3, rtol=1e-12)
    assert product(shift=jnp.array([0.0, 9.0, 0.0, 0.0]))(X) == 0  # along what has no weight
    # A function of x is evaluated at x, not at what is shifted.
    np.testing.assert_allclose(product(shift=lambda x: -2.0 * x)(X), 2, rtol=1e-12)
    tiny = input_invariance(jx.input_x_gradient, lambda x: 1e-200 * linear(x), shift=X)
    np.testing.assert_allclose(tiny(X), 1, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding_of_the_shift_is_not_measured(dtype, key):
    """x + 100 has lost most of what x was; a gradient method is invariant all the same."""
    score = lambda x: jnp.sum(jnp.sin(10 * x))
    x = jax.random.normal(key, (16,), dtype)
    measure = input_invariance(jx.gradient, score, shift=100.0)
    for value in (measure(x), jax.jit(measure)(x)):
        assert value.dtype == jnp.float32 and value == 0


def test_input_invariance_arguments_keys_and_transforms(key):
    def score(label, inputs):
        return label * jnp.sum(inputs["x"] ** 2) + jnp.sum(inputs["n"], dtype=float)

    inputs = {"x": X, "n": jnp.arange(3)}
    method = partial(jx.input_x_gradient, argnums=1)
    value = jax.jit(input_invariance(method, score, shift=1.0))(2.0, inputs)
    np.testing.assert_allclose(value, _x_gradient_change(X, 1.0), rtol=1e-12)
    shift = {"x": X, "n": inputs["n"]}  # of the integers nothing is shifted
    np.testing.assert_allclose(jax.jit(input_invariance(method, score, shift=shift))(2.0, inputs), 1, rtol=1e-12)
    two = partial(jx.input_x_gradient, argnums=(0, 1))
    both = jax.jit(input_invariance(two, lambda a, b: jnp.sum(a**2) + jnp.sum(b**2), shift=(None, 1.0)))(X, X)
    np.testing.assert_allclose(both, _x_gradient_change(X, 1.0) / np.sqrt(2), rtol=1e-12)

    xs = jax.random.normal(key, (3, 4))
    measure = input_invariance(jx.input_x_gradient, smooth, shift=1.0)
    run = jax.jit(measure)
    np.testing.assert_allclose(jax.jit(jax.vmap(measure))(xs), [run(x) for x in xs], rtol=1e-12)

    noisy = lambda f: jx.smoothgrad(jx.gradient(f), n_samples=3, noise=0.5)
    measure = input_invariance(noisy, smooth, shift=1.0)
    assert measure.needs_key and jax.jit(measure)(X, key=key) < 1e-12  # the same draws for both
    assert jax.jit(input_invariance(noisy, smooth, shift=1.0, key=key))(X) < 1e-12
    with pytest.raises(jx.MissingKeyError, match=r"metrics\.input_invariance"):
        measure(X)
    plain = lambda f: lambda x: x * jax.grad(f)(x)
    np.testing.assert_allclose(jax.jit(input_invariance(plain, smooth, shift=1.0))(X), run(X), rtol=1e-12)


def _x_gradient_change(x, shift):
    """For x ⊙ ∇Σx²: 2x(x + s) beside 2x²."""
    return jnp.linalg.norm(x * shift) / jnp.linalg.norm(x**2)


def test_input_invariance_of_nothing_and_of_what_is_not_finite():
    assert np.isnan(jax.jit(input_invariance(jx.gradient, lambda x: 0 * x[0], shift=1.0))(X))
    broken = jax.jit(input_invariance(jx.input_x_gradient, lambda x: jnp.sum(jnp.log(x)), shift=-1.0))
    assert np.isfinite(broken(jnp.array([1.0, 2.0])))
    assert np.isnan(broken(jnp.array([0.0, 2.0])))


def test_input_invariance_refuses_what_is_no_method():
    for method in (jx.gradient(linear), jax.jit(jx.gradient(linear)), 3.0):
        with pytest.raises(jx.SettingError) as error:
            input_invariance(method, linear, shift=1.0)
        assert "fix   jx.metrics.input_invariance(jx.gradient, score, shift=…)" in text(error)
    with pytest.raises(jx.SettingError, match="`score` must be a function"):
        input_invariance(jx.gradient, X, shift=1.0)
    with pytest.raises(jx.SettingError, match="a function that explains"):
        input_invariance(lambda f: X, linear, shift=1.0)
    with pytest.raises(jx.StructureError, match="`shift` does not match"):
        input_invariance(jx.gradient, linear, shift=X[:2])(X)
