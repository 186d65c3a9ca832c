"""The one-gradient methods against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import promoting, relative, relu_net
from hypothesis import given, settings
from hypothesis import strategies as st
from registry import METHODS

import jaxplain as jx


def quadratic(x):
    return jnp.sum(x**3) + x[0] * x[1]


X = jnp.array([1.0, -2.0, 0.5])
G = np.array([3 - 2, 12 + 1, 0.75])


def test_every_method_counts_its_gradients_and_evaluations(key):
    kernel, weights = jax.random.normal(key, (2, 4)), jax.random.normal(key, (4, 3))

    def score(x, y):
        return (jnp.mean(jax.nn.relu(x @ kernel), 0) @ weights)[y]

    x = jax.random.normal(key, (5, 2))
    for name, method in METHODS.items():
        explain = jx.with_info(method.make(score, x))
        if isinstance(explain.explain, jx.Explainer):
            info = jax.eval_shape(lambda x, key, explain=explain: explain(x, 1, key=key)[1], x, key)
            assert info.n_gradients.dtype == info.n_evaluations.dtype == jnp.int32, name


def test_formulas():
    assert relative(jx.gradient(quadratic)(X), G) < 1e-14
    assert relative(jx.saliency(quadratic)(X), np.abs(G)) < 1e-14
    assert relative(jx.sensitivity(quadratic)(X), G**2) < 1e-14
    assert relative(jx.input_x_gradient(quadratic)(X), np.asarray(X) * G) < 1e-14


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), bias=st.sampled_from([0.0, 0.3]))
def test_gradient_is_jax_grad_and_sensitivity_sums_to_its_squared_norm(seed, bias):
    key = jax.random.key(seed)
    f = relu_net(key, (5, 7, 6, 1), bias)
    x = jax.random.normal(jax.random.fold_in(key, 1), (5,))
    gradient = jax.grad(f)(x)
    np.testing.assert_array_equal(jx.gradient(f)(x), gradient)
    np.testing.assert_allclose(jnp.sum(jx.sensitivity(f)(x)), jnp.linalg.norm(gradient) ** 2, rtol=1e-10)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_without_biases_input_x_gradient_conserves(seed):
    key = jax.random.key(seed)
    f = relu_net(key, (5, 7, 6, 1))
    x = jax.random.normal(jax.random.fold_in(key, 1), (5,))
    attribution, info = jx.with_info(jx.input_x_gradient(f))(x)
    assert abs(jnp.sum(attribution) - f(x)) <= 1e-10 * max(abs(f(x)), jnp.abs(attribution).sum())
    assert abs(info.gap) <= 1e-10 * max(abs(f(x)), jnp.abs(attribution).sum())


def test_with_biases_the_gap_says_what_is_missing():
    f = lambda x: jnp.sum(x) + 5.0
    _, info = jx.with_info(jx.input_x_gradient(f))(X)
    np.testing.assert_allclose(info.gap, -5.0)
    np.testing.assert_allclose(info.value, f(X))


@pytest.mark.parametrize(("reduction", "want"), [("max", 3.0), ("mean", 2.0), ("sum", 6.0), ("norm", np.sqrt(14.0))])
def test_saliency_reduces_channels(reduction, want):
    image = jnp.ones((2, 4, 3))
    explain = jx.saliency(lambda x: jnp.sum(x * jnp.array([[[1.0, -2.0, 3.0]]])), channel_axis=-1, reduction=reduction)
    np.testing.assert_allclose(explain(image), np.full((2, 4), want))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_attribution_has_the_dtype_of_x_and_the_model_sees_it(dtype):
    seen = []

    def f(x):
        seen.append(x.dtype)
        return jnp.sum(x * x)

    for explain in (jx.gradient(f), jx.integrated_gradients(f, n_steps=4), jx.taylor(f)):
        assert explain(jnp.ones(3, dtype)).dtype == dtype
    assert set(seen) == {jnp.dtype(dtype)}


def test_sums_are_float32_even_for_bf16():
    # In bf16, 1 + 1/256 is 1: a running sum of 1000 terms in bf16 would stop at 256.
    x = jnp.ones(4, jnp.bfloat16)
    attribution = jx.integrated_gradients(lambda x: jnp.sum(x), n_steps=1000, quadrature="midpoint")(x)
    np.testing.assert_array_equal(attribution.astype(np.float32), np.ones(4))


def test_channels_are_reduced_in_float32():
    explain = jx.saliency(lambda x: 300 * x[0] + 400 * x[1], channel_axis=-1, reduction="norm")
    np.testing.assert_array_equal(explain(jnp.ones(2, jnp.float16)), np.float16(500))


def test_a_constant_score_has_a_zero_gradient():
    np.testing.assert_array_equal(jx.gradient(lambda x: 3.0)(X), np.zeros(3))


def test_argnums_and_pytrees():
    def f(a, label, b):
        return jnp.sum(a["u"] * b) * (1 + label) + jnp.sum(a["v"] ** 2)

    a = {"u": jnp.array([1.0, 2.0]), "v": jnp.array([3.0]), "count": jnp.array([7])}
    b = jnp.array([5.0, 6.0])
    ga, gb = jx.gradient(f, argnums=(0, 2))(a, 1, b)
    np.testing.assert_allclose(ga["u"], 2 * b)
    np.testing.assert_allclose(ga["v"], [6.0])
    np.testing.assert_array_equal(ga["count"], [0])
    np.testing.assert_allclose(gb, 2 * a["u"])
    assert relative(jx.gradient(f, argnums=-1)(a, 1, b), gb) == 0


def test_python_arguments_stay_python():
    def f(x, label, mode):
        assert isinstance(label, int) and mode == "sum"
        return x[label] * 2 if label == 1 else x[0]

    np.testing.assert_array_equal(jx.gradient(f)(jnp.ones(2), 1, "sum"), [0.0, 2.0])


def test_linear_in_f():
    f, g = quadratic, lambda x: jnp.sum(jnp.sin(x))
    both = lambda x: 2 * f(x) - 3 * g(x)
    for method in (jx.gradient, jx.input_x_gradient, jx.integrated_gradients):
        assert relative(method(both)(X), 2 * method(f)(X) - 3 * method(g)(X)) < 1e-13


def test_invariant_to_spelling():
    w = jax.random.normal(jax.random.key(0), (6, 5))
    spellings = [
        lambda x: jnp.sum(jax.nn.relu(x @ w)),
        lambda x: jnp.sum(jax.nn.relu(jnp.einsum("i,ij->j", x, w))),
        jax.jit(lambda x: jnp.sum(jax.nn.relu(w.T @ x))),
        lambda x: jax.vmap(lambda x: jnp.sum(jax.nn.relu(x @ w)))(x[None])[0],
        jax.checkpoint(lambda x: jnp.sum(jnp.maximum(x @ w, 0))),
    ]
    x = jax.random.normal(jax.random.key(1), (6,))
    for method in (jx.gradient, lambda f: jx.integrated_gradients(f, baseline=0.1), jx.taylor):
        maps = [method(f)(x) for f in spellings]
        assert max(relative(m, maps[0]) for m in maps) < 1e-13


def test_weights_changed_in_place_are_seen():
    from flax import nnx

    net = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    score = promoting()(lambda x: net(x)[0])
    explain = jx.gradient(score)
    before = explain(jnp.ones(3))
    net.kernel[...] = 2 * net.kernel[...]
    np.testing.assert_allclose(explain(jnp.ones(3)), 2 * before, rtol=1e-6)
    np.testing.assert_allclose(jx.integrated_gradients(score)(jnp.ones(3)), 2 * before, rtol=1e-6)
