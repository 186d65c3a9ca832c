"""The faster kernels are the equations they replace: values, derivatives, in bodies, and nothing else is touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative
from jax import lax

import jaxplain as jx
from jaxplain import _compat
from jaxplain._cpu import rewrites as kernels

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")]


def programs(f, *args):
    """A function as it is, and with kernels; and how many equations have one."""
    closed = jax.make_jaxpr(f)(*args)
    plain = jax.jit(lambda *args: _compat.jaxpr_as_function(closed)(*args))
    fast = jax.jit(lambda *args: kernels.faster(closed)(*args))
    return plain, fast, sum(map(kernels._has_kernel, closed.eqns))


def value_and_pullback(f):
    def run(x, *args):
        out, pullback = jax.vjp(lambda x: f(x, *args), x)
        return out, pullback(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))[0]

    return run


def random_convolution(rng):
    """Any strides, dilations, asymmetric (and cropping) padding, groups, layout, and 1 to 3 spatial axes."""
    n = int(rng.integers(1, 4))
    groups, n_in, n_out = int(rng.choice([1, 1, 2, 4])), int(rng.choice([1, 2, 5])), int(rng.choice([1, 2, 6]))
    sizes = [int(k) for k in rng.integers(6, 10, n)]
    pick = lambda low, high: tuple(int(k) for k in rng.integers(low, high, n))
    window, strides = pick(1, 4), pick(1, 4)
    spread, dilation = (pick(1, 3) if rng.random() < 0.3 else (1,) * n for _ in range(2))
    padding = list(zip(pick(-1, 3), pick(0, 3), strict=True))
    last = bool(rng.integers(2))
    numbers = lax.ConvDimensionNumbers(
        (0, n + 1, *range(1, n + 1)) if last else tuple(range(n + 2)),
        (n + 1, n, *range(n)) if last else tuple(range(n + 2)),
        (0, n + 1, *range(1, n + 1)) if last else tuple(range(n + 2)),
    )
    x = rng.normal(size=(2, *sizes, groups * n_in) if last else (2, groups * n_in, *sizes))
    kernel = rng.normal(size=(*window, n_in, groups * n_out) if last else (groups * n_out, n_in, *window))

    def f(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, padding, spread, dilation, numbers, feature_group_count=groups
        )

    return f, x, kernel


@pytest.mark.parametrize(
    ("size", "padding"), [(9, "SAME"), (9, ((0, 0), (2, 1))), (30, "VALID"), (8, ((1, 2), (0, 0)))]
)
def test_a_surplus_row_of_outputs_changes_nothing(size, padding, monkeypatch):
    """It keeps convolutions from a library that runs them on one thread (jaxlib 0.10)."""
    monkeypatch.setattr(_compat, "ONE_THREADED_CONVOLUTIONS", True)
    monkeypatch.setattr(kernels, "_usable_cpus", lambda: 2)
    monkeypatch.setattr(kernels, "MANY_PRODUCTS", 0)
    monkeypatch.setattr(kernels, "SURPLUS", 1.0)
    x, kernel = (
        jnp.cos(jnp.arange(2.0 * size * 9 * 6)).reshape(2, size, 9, 6),
        jnp.sin(jnp.arange(270.0)).reshape(3, 3, 6, 5),
    )
    numbers = ("NHWC", "HWIO", "NHWC")
    f = lambda x: lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers)
    for run in (f, value_and_pullback(f)):
        plain, fast, replaced = programs(run, x)
        assert replaced or padding == ((1, 2), (0, 0))  # there are more outputs than inputs already
        for got, want in zip(jax.tree.leaves(fast(x)), jax.tree.leaves(plain(x)), strict=True):
            assert got.shape == want.shape and relative(got, want) < 1e-12


@pytest.mark.rows("seed", range(30), range(12))
def test_convolutions_and_their_gradients(seed):
    f, x, kernel = random_convolution(np.random.default_rng(seed))
    plain, fast, n = programs(value_and_pullback(f), x, kernel)
    assert n > 0
    for got, want in zip(fast(x, kernel), plain(x, kernel), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


@pytest.mark.rows("seed", range(20), range(8))
def test_max_pooling_places_its_gradient_where_xla_does(seed):
    rng = np.random.default_rng(seed)
    window, strides = ((1, *map(int, rng.integers(1, 4, 2)), 1) for _ in range(2))
    padding = [(0, 0), *((int(rng.integers(k)), int(rng.integers(k))) for k in window[1:3]), (0, 0)]
    x = np.round(2 * rng.normal(size=(2, *rng.integers(5, 9, 2), 3)))  # many ties
    x[0, 2:4] = -np.inf

    def f(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)

    plain, fast, n = programs(value_and_pullback(f), x)
    assert n == 1
    for got, want in zip(fast(x), plain(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_a_pooling_window_larger_than_its_input_has_no_gradient():
    def score(x):
        pooled = lax.reduce_window(x, -jnp.inf, lax.max, (3, 3), (2, 2), "VALID")
        return jnp.sum(pooled) + jnp.sum(x**2)

    x = jnp.array([[1.0, -2.0, 3.0]])
    assert (jx.gradient(score)(x) == 2 * x).all()


def test_a_cropped_and_padded_convolution_stays_inside_its_input():
    # XLA's own float32 convolution reads beyond its input here (jaxlib 0.10.2, CPU): the gradient was garbage memory.
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 9, 9, 1)), rng.normal(size=(2, 2, 1, 2))

    def score(x, kernel):
        y = lax.conv_general_dilated(x, kernel, (1, 1), [(2, 0), (1, 1)], dimension_numbers=LAYOUTS[0])
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    single = [a.astype(np.float32) for a in (x, kernel)]
    want = jx.gradient(score)(x, kernel)
    assert relative(jax.jit(jx.gradient(score))(*single), want) < 1e-5


def depthwise_block(x, kernel):
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUTS[0], feature_group_count=3)
    return lax.reduce_window(jnp.tanh(y), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")


BODIES = {
    "scan": lambda x, k: lax.scan(lambda c, k: (depthwise_block(c, k), None), x, jnp.stack([k, 2 * k]))[0],
    "remat": jax.checkpoint(depthwise_block),
    "jit": jax.jit(depthwise_block),
    "cond": lambda x, k: lax.cond(x[0, 0, 0, 0] > 0, depthwise_block, lambda x, k: 2 * depthwise_block(x, k), x, k),
    "while": lambda x, k: lax.fori_loop(0, jnp.int32(k.shape[0]), lambda _, c: depthwise_block(c, k), x),
}


@pytest.mark.parametrize("body", BODIES)
def test_bodies_are_rewritten_too(body):
    x, kernel = jax.random.normal(jax.random.key(0), (1, 6, 6, 3)), jax.random.normal(jax.random.key(1), (3, 3, 1, 3))
    f = BODIES[body] if body == "while" else value_and_pullback(BODIES[body])
    closed = jax.make_jaxpr(f)(x, kernel)
    rewritten = jax.make_jaxpr(kernels.faster(closed))(x, kernel)
    assert "feature_group_count=3" in str(closed)
    assert "feature_group_count=3" not in str(rewritten)
    assert "select_and_scatter_add" not in str(rewritten)
    for got, want in zip(kernels.faster(closed)(x, kernel), jax.tree.leaves(f(x, kernel)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_a_derivative_of_the_users_own_stays():
    @jax.custom_vjp
    def f(x):
        return jnp.sum(depthwise_block(x, jnp.ones((3, 3, 1, 3))))

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (jnp.full_like(x, 7.0) * ct,))
    x = jnp.ones((1, 6, 6, 3))
    assert jnp.all(jx.gradient(f)(x) == 7)
    assert jnp.all(jax.grad(lambda x: jx.with_info(jx.gradient(f))(x)[1].value)(x) == 7)


def test_second_derivatives_are_those_of_the_function():
    x, kernel = jax.random.normal(jax.random.key(0), (1, 6, 6, 3)), jax.random.normal(jax.random.key(1), (3, 3, 1, 3))

    def score(x, kernel):
        return jnp.sum(jnp.sin(depthwise_block(x, kernel)) ** 2)

    for argument in (0, 1):
        got = jax.grad(lambda *args: jnp.sum(jx.gradient(score)(*args) ** 2), argnums=argument)(x, kernel)
        want = jax.grad(lambda *args: jnp.sum(jax.grad(score)(*args) ** 2), argnums=argument)(x, kernel)
        assert relative(got, want) < 1e-12


def test_low_precision_sums_in_float32():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16), jnp.bfloat16)
    for groups, shape in ((16, (5, 5, 1, 16)), (1, (5, 5, 16, 2))):
        kernel = jax.random.normal(jax.random.key(1), shape, jnp.bfloat16)

        def f(x, kernel, groups=groups):
            return lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUTS[0], feature_group_count=groups
            )

        plain, fast, n = programs(f, x, kernel)
        exact = f(x.astype(float), kernel.astype(float))
        assert n == 1
        assert fast(x, kernel)[0].dtype == jnp.bfloat16
        assert relative(fast(x, kernel), exact) < 1.5 * relative(plain(x, kernel), exact)


def test_other_platforms_keep_their_own(monkeypatch):
    x, kernel = jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 1, 3))
    closed = jax.make_jaxpr(value_and_pullback(depthwise_block))(x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert str(jax.make_jaxpr(kernels.faster(closed))(x, kernel)) == str(closed)
