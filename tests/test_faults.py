"""Faults that outside trials found, each with neighbors: what holds now."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative, text

import jaxplain as jx

# Numbers that are not finite


def _norm_behind_where(x):
    return jnp.where(x[0] > 0, jnp.linalg.norm(x[1:]), 0.0) + x[0]


NOT_FINITE = {
    "norm": (_norm_behind_where, jnp.zeros(3), "_norm_behind_where"),
    "root": (lambda x: jnp.sum(jnp.sqrt(x)), jnp.array([0.0, 1.0]), "test_faults.py"),
    "quotient": (lambda x: jnp.where(x[0] == 0, 1.0, jnp.sin(x[0]) / x[0]), jnp.zeros(1), "test_faults.py"),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_a_slope_that_does_not_exist_is_an_error_that_names_the_line(name):
    score, x, where = NOT_FINITE[name]
    assert not np.isfinite(jax.jit(jx.gradient(score))(x)).all()  # nothing can be raised there
    for method in (jx.gradient, jx.saliency, jx.input_x_gradient):
        with pytest.raises(jx.NonFiniteError) as error:
            method(score)(x)
        assert all(word in text(error) for word in (where, "norm", "root", "division", "finite")), text(error)
        assert "label" not in text(error)


def test_a_score_that_is_not_finite_is_named_as_such():
    with pytest.raises(jx.NonFiniteError, match="the score is not finite") as error:
        jx.gradient(lambda x: jnp.log(x[0]) + x[1])(jnp.array([0.0, 1.0]))
    assert "test_faults.py" in text(error) and "f(x) = -inf" in text(error)
    with pytest.raises(jx.NonFiniteError, match="contains NaN or infinity"):  # at the baseline only
        jx.occlusion(lambda x: jnp.sum(jnp.log(x)), window=1)(jnp.array([2.0, 1.0]))


def test_a_result_that_says_of_itself_that_it_failed_is_returned():
    explain = jx.taylor(lambda x: jnp.sum(x**2) + 1.0, root=jx.line_search())
    attribution, info = jx.with_info(explain)(jnp.array([1.0, 2.0]))
    assert np.isnan(attribution).all() and not info.converged
    with pytest.raises(jx.NonFiniteError, match="taylor"):
        explain(jnp.array([1.0, 2.0]))


# A gap that is closed


JUMPS = {
    "beside a wave": (lambda x: jnp.where(x[0] > 0.5, 1.0, 0.0) + jnp.sin(6 * x[1]), 2),
    "small": (lambda x: jnp.where(x[0] > 0.5, 0.05, 0.0) + jnp.sin(6 * x[1]), 2),
    "beside kinks": (lambda x: jnp.where(x[0] > 0.3, 2.0, 0.0) + jnp.abs(x[1] - 0.4) + jnp.maximum(x[2], 0.2), 3),
    "steep": (lambda x: jax.nn.sigmoid(1e5 * (x[0] - 0.5)) + jnp.sin(6 * x[1]), 2),
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_is_not_booked_on_another_feature(name):
    score, n = JUMPS[name]
    x = jnp.ones(n)
    run = lambda complete: jx.with_info(jx.integrated_gradients(score, complete=complete))
    (plain, before), (whole, info) = jax.jit(lambda x: (run(False)(x), run(True)(x)))(x)
    np.testing.assert_array_equal(whole, plain)
    assert not info.converged and abs(info.gap - before.gap) < 1e-12 and abs(info.gap) > 0.04


def test_a_gap_of_kinks_or_of_the_rule_is_closed():
    kinks = lambda x: jnp.sum(jax.nn.relu(jnp.sin(jnp.arange(1.0, 9)) + x[0] * jnp.cos(7 * jnp.arange(8.0)) + x[1]))
    rules = ("gauss_legendre", "midpoint", "trapezoid", "left", "right")

    @jax.jit
    def gaps(x):
        explainers = [
            jx.with_info(jx.integrated_gradients(f, complete=True, quadrature=rule, n_steps=20, baseline=-1.0))
            for f in (kinks, lambda x: jnp.exp(x[0]) * x[1])
            for rule in rules
        ]
        infos = [explain(x)[1] for explain in explainers]
        return jnp.stack([i.gap for i in infos]), jnp.stack([i.converged for i in infos])

    gap, converged = gaps(jnp.array([0.9, 1.1]))
    assert np.abs(gap).max() < 1e-12 and converged.all()


# What a map's gap is the gap of


def test_the_gap_of_a_map_is_that_of_the_map_that_is_returned():
    w = jnp.array([[1.0, -2.0], [0.5, 1.5]])
    score = lambda x: jnp.mean(jnp.tanh(x @ w), axis=(0, 1)) @ jnp.array([1.0, -1.0]) + 0.3
    x = jnp.sin(jnp.arange(18.0)).reshape(3, 3, 2)
    for method, total in ((jx.hires_cam, np.sum), (jx.xgrad_cam, np.sum), (jx.cam, np.mean)):
        for relu in (True, False):
            heat, info = jx.with_info(method(score, relu=relu, upsample=False))(x)
            assert abs(info.gap - (total(heat) - info.value)) < 1e-12
            assert np.asarray(heat).min() >= 0 or not relu


# Half precision


def test_a_stabilizer_is_a_number_of_the_dtype_that_it_guards():
    keys = jax.random.split(jax.random.key(0), 3)
    w1, w2 = (0.3 * jax.random.normal(k, s) for k, s in zip(keys, ((3, 3, 1, 8), (8, 4)), strict=False))

    def score(x):
        w = w1.astype(x.dtype)
        h = jax.lax.conv_general_dilated(x[None], w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        h = jax.nn.relu(h + jnp.asarray([[[[-0.1, 0.1, 0.2, 0.0, 0.0, 0.1, 0.0, 0.3]]]], x.dtype))
        return (jnp.sum(h, axis=(0, 1, 2)) @ w2.astype(x.dtype))[0]

    x = jax.nn.relu(jax.random.normal(keys[2], (6, 6, 1))).at[:3].set(0)  # a black area
    methods = (
        jx.deep_taylor(score, low=0.0, high=3.0),
        jx.deep_taylor(score),
        jx.lrp(score, rules=jx.composites.epsilon_plus(1e-9)),
        jx.lrp(score, rules=jx.composites.epsilon_alpha2_beta1(1e-12)),
        jx.lrp(score, rules=jx.rules.epsilon(0)),
        jx.excitation_backprop(score),
    )
    run = jax.jit(lambda x: [method(x) for method in methods])
    for half, full in zip(run(x.astype(jnp.float16)), run(x.astype(jnp.float32)), strict=True):
        assert half.dtype == jnp.float16 and np.isfinite(half).all() and relative(half, full) < 2e-2
