"""SmoothGrad and its kin against direct sums, and their error estimates against repetition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative, relu_net

import jaxplain as jx

F = relu_net(jax.random.key(0), (6, 16, 1), 0.3)
X = jax.random.normal(jax.random.key(1), (6,))


def samples(key, n, sigma, explain=jax.grad(F)):  # noqa: B008 - a constant
    """The documented draws, by hand."""
    out = []
    for k in range(n):
        noise_key, _ = jax.random.split(jax.random.fold_in(key, k))
        out.append(explain(X + sigma * jax.random.normal(jax.random.split(noise_key, 1)[0], X.shape, X.dtype)))
    return np.asarray(out)


def test_statistics_are_their_definitions(key):
    drawn = samples(key, 7, 0.4)
    options = dict(n_samples=7, noise=0.4, relative=False, chunk_size=3)
    for wrapper, want in (
        (jx.smoothgrad, drawn.mean(0)),
        (jx.smoothgrad_squared, (drawn**2).mean(0)),
        (jx.vargrad, drawn.var(0, ddof=1)),
    ):
        explain = wrapper(jx.gradient(F), **options)
        assert relative(explain(X, key=key), want) < 1e-12
        with_info, info = jx.with_info(explain)(X, key=key)
        assert relative(with_info, want) < 1e-12
        assert info.n_gradients == 7 + 1 and info.n_evaluations == 0
    _, info = jx.with_info(jx.smoothgrad(jx.gradient(F), **options))(X, key=key)
    assert relative(info.standard_error, drawn.std(0, ddof=1) / np.sqrt(7)) < 1e-10
    _, info = jx.with_info(jx.vargrad(jx.gradient(F), **options))(X, key=key)
    centered = drawn - drawn.mean(0)
    want = np.sqrt(((centered**4).mean(0) - (centered**2).mean(0) ** 2) / 7)
    assert relative(info.standard_error, want) < 1e-8


def test_relative_noise_is_a_share_of_the_range(key):
    share = jx.smoothgrad(jx.gradient(F), n_samples=5, noise=0.2)(X, key=key)
    absolute = jx.smoothgrad(jx.gradient(F), n_samples=5, noise=0.2 * (X.max() - X.min()), relative=False)(X, key=key)
    assert relative(share, absolute) < 1e-13


def test_without_noise_it_is_the_explanation(key):
    inner = jx.integrated_gradients(F, n_steps=5)
    assert relative(jx.smoothgrad(inner, n_samples=4, noise=0.0)(X, key=key), inner(X)) < 1e-10
    assert relative(jx.smoothgrad_squared(inner, n_samples=4, noise=0.0)(X, key=key), inner(X) ** 2) < 1e-10
    assert jnp.abs(jx.vargrad(inner, n_samples=4, noise=0.0)(X, key=key)).max() < 1e-20


def test_standard_error_is_calibrated():
    options = dict(n_samples=60, noise=0.3, chunk_size=60)
    keys = jax.random.split(jax.random.key(5), 400)
    for wrapper, tolerance in ((jx.smoothgrad, 0.2), (jx.smoothgrad_squared, 0.25), (jx.vargrad, 0.4)):
        explain = jx.with_info(wrapper(jx.gradient(relu_net(jax.random.key(0), (6, 16, 1), 0.3, jnp.tanh)), **options))
        maps, info = jax.vmap(lambda k, e=explain: e(X, key=k))(keys)
        ratio = np.asarray(maps.std(axis=0) / info.standard_error.mean(axis=0))
        np.testing.assert_allclose(ratio, 1, atol=tolerance)


@pytest.mark.parametrize("chunk_size", [1, 2, 6, 100])
def test_chunks_change_nothing(key, chunk_size):
    want = jx.vargrad(jx.gradient(F), n_samples=6, chunk_size=6)(X, key=key)
    assert relative(jx.vargrad(jx.gradient(F), n_samples=6, chunk_size=chunk_size)(X, key=key), want) < 1e-12


def test_any_function_is_an_explainer_and_wrappers_nest(key):
    plain = jx.smoothgrad(lambda x: jax.grad(F)(x), n_samples=3)
    assert relative(plain(X, key=key), jx.smoothgrad(jx.gradient(F), n_samples=3)(X, key=key)) == 0
    pool = jx.references(jnp.zeros((2, 6)), n=1)
    nested = jx.smoothgrad(jx.vargrad(jx.integrated_gradients(F, baseline=pool, n_steps=2), n_samples=2), n_samples=3)
    attribution, info = jx.with_info(nested)(X, key=key)
    assert attribution.shape == X.shape and np.isfinite(attribution).all()
    # (3 + 1) outer × (2 + 1) inner samples, where one more centers the sums, × 2 steps
    assert info.n_gradients == info.n_evaluations == 4 * 3 * 2


def test_errors_of_tiny_attributions_do_not_underflow(key):
    for scale in (1.0, 1e-12, 1e-25):
        f = lambda x, s=scale: jnp.float32(s) * jnp.sum(x**3)
        _, info = jx.with_info(jx.smoothgrad(jx.gradient(f), n_samples=8))(jnp.arange(1, 4, dtype=jnp.float32), key=key)
        assert (info.standard_error > 0.01 * scale).all()
    f = lambda x: jnp.float32(1e-12) * jnp.sum(x**3)
    variance, info = jx.with_info(jx.vargrad(jx.gradient(f), n_samples=8))(jnp.arange(1, 4, dtype=jnp.float32), key=key)
    assert (info.standard_error > 0.01 * variance).all()


def test_inner_convergence_is_passed_on(key):
    for tol, want in ((1e-1, True), (1e-15, False)):
        inner = jx.integrated_gradients(F, n_steps=8, tol=tol, max_steps=30)
        _, info = jx.with_info(jx.smoothgrad(inner, n_samples=3))(X, key=key)
        assert bool(info.converged) is want


def test_noise_for_each_argument(key):
    f = lambda a, b: jnp.sum(a**3) + jnp.sum(b**3)
    a, b = jnp.arange(3.0), jnp.arange(4.0)
    smooth = jx.smoothgrad(jx.gradient(f, argnums=(0, 1)), n_samples=4, noise=(0.3, None))(a, b, key=key)
    assert relative(smooth[1], 3 * b**2) < 1e-14 and relative(smooth[0], 3 * a**2) > 1e-3


def test_a_key_at_building_time_is_shared(key):
    explain = jx.smoothgrad(jx.gradient(F), n_samples=3, key=key)
    maps = jax.vmap(explain)(jnp.stack([X, X]))
    assert relative(maps[0], maps[1]) == 0
    assert relative(maps[0], jx.smoothgrad(jx.gradient(F), n_samples=3)(X, key=key)) < 1e-14
    assert relative(explain(X, key=jax.random.key(9)), maps[0]) > 1e-6
