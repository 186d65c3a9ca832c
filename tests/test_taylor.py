"""Simple Taylor decomposition: identities, and roots that are roots."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import relative, relu_net
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxplain as jx


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_scaled_input_without_biases(seed):
    key = jax.random.key(seed)
    f = relu_net(key, (5, 7, 6, 1))
    x = jax.random.normal(jax.random.fold_in(key, 1), (5,))
    for epsilon in (1e-3, 1e-6):
        got, info = jx.with_info(jx.taylor(f, root=jx.scaled_input(epsilon)))(x)
        assert relative(got, (1 - epsilon) * jx.input_x_gradient(f)(x)) < 1e-10
        scale = max(abs(f(x)), jnp.abs(got).sum())
        assert abs(info.residual) <= 1e-10 * scale
        assert abs(info.baseline_value - epsilon * f(x)) <= 1e-10 * scale


def test_the_identity_holds_with_biases_too():
    f = relu_net(jax.random.key(0), (5, 7, 6, 1), 0.5)
    x = jnp.arange(5.0)
    for root in (None, 0.0, jnp.ones(5), lambda x: x / 2, jx.line_search(-3.0)):
        got, info = jx.with_info(jx.taylor(f, root=root))(x)
        np.testing.assert_allclose(info.baseline_value + got.sum() + info.residual, info.value, rtol=1e-12)
        assert relative(got, (x - info.root) * jax.grad(f)(info.root)) < 1e-13


def test_line_search_finds_the_nearest_root():
    f = lambda x: (x[0] - 1) * (x[0] - 2) * (x[0] - 3)
    for start, root in ((4.0, 3.0), (2.7, 2.0), (1.5, 1.0)):
        _, info = jx.with_info(jx.taylor(f, root=jx.line_search()))(jnp.array([start]))
        assert info.converged
        np.testing.assert_allclose(info.root, [root], rtol=1e-12)
        assert abs(info.baseline_value) < 1e-11


def test_line_search_in_float32_ends_at_rounding():
    f = lambda x: jnp.sum(x**2) - 1.0
    _, info = jx.with_info(jx.taylor(f, root=jx.line_search()))(jnp.array([3.0, 4.0], jnp.float32))
    assert abs(info.baseline_value) < 1e-6 and info.root.dtype == jnp.float32


def test_a_root_at_zero_keeps_the_gradient_of_the_piece_that_x_is_on():
    net = relu_net(jax.random.key(0), (5, 7, 6, 1))
    f = lambda x: net(x.astype(jnp.float64))
    for x in (jnp.arange(1.0, 6), jnp.arange(1, 6, dtype=jnp.float32)):
        got, info = jx.with_info(jx.taylor(f, root=jx.line_search()))(x)
        assert info.converged
        assert relative(got, x * jax.grad(f)(x)) < 1e-5


def test_the_root_keeps_constant_leaves():
    f = lambda x: jnp.sum(jnp.where(x["mask"], x["image"], 0))
    x = {"image": jnp.ones(3), "mask": jnp.array([True, True, False])}
    _, info = jx.with_info(jx.taylor(f, root=0.0))(x)
    np.testing.assert_array_equal(info.root["mask"], x["mask"])


def test_no_root_is_nan_not_a_guess():
    got, info = jx.with_info(jx.taylor(lambda x: jnp.sum(x**2) + 1.0, root=jx.line_search()))(jnp.ones(2))
    assert not info.converged and np.isnan(got).all()


def test_gradient_through_a_found_root():
    def explained(x, w):
        return jnp.sum(jnp.sin(jx.taylor(lambda x: jnp.sum(w * x**3) - 1.0, root=jx.line_search())(x)))

    x, w = jnp.array([1.0, 2.0]), jnp.array([0.7, 0.4])
    grads = jax.grad(explained, argnums=(0, 1))(x, w)
    for i, at in enumerate(((x, w), (x, w))):
        for j in range(2):
            step = [jnp.zeros(2), jnp.zeros(2)]
            step[i] = step[i].at[j].set(1e-6)
            up, down = explained(at[0] + step[0], at[1] + step[1]), explained(at[0] - step[0], at[1] - step[1])
            np.testing.assert_allclose(grads[i][j], (up - down) / 2e-6, rtol=1e-6)
