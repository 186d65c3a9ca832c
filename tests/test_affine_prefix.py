"""The affine head: taken out of path methods without a change in value, and only where it pays."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from helpers import relative
from models import MODELS

import jaxplain as jx
import jaxplain._engine.affine_prefix as head
import jaxplain.methods._noise as noise
import jaxplain.methods._path as path
from jaxplain._ir.program import stage_score


def _head(score, x):
    return head.affine_prefix(stage_score("test", lambda leaves: score(*leaves), (x,), allow_random=False), (x,))


def _dense(x):
    weights = jnp.sin(jnp.arange(800.0)).reshape(100, 8)
    return jnp.sum(jnp.tanh((x - 0.3) / 2 @ weights + 1) ** 2)


def test_a_dense_first_layer_is_the_head_and_a_small_convolution_is_not():
    x = jax.random.normal(jax.random.key(1), (100,))
    split = _head(_dense, x)
    (h,) = split.prefix((x,))
    assert h.shape == (8,)
    assert relative(split.rest((h,)), _dense(x)) < 1e-14
    cotangent = jnp.arange(8.0)
    (want,) = jax.vjp(lambda x: split.prefix((x,))[0], x)[1](cotangent)
    assert relative(split.pullback((x,), (cotangent,))[0], want) < 1e-14
    divided = lambda x: jnp.sum(jnp.tanh((1 / x) @ jnp.ones((100, 8))))
    assert _head(divided, x) is None  # a quotient is not affine in its divisor
    case = MODELS["conv_maxpool"]()
    assert _head(lambda x: case.score(case.weights, x, 1), case.xs[0]) is None


SETTINGS = {"fixed": {}, "complete": {"complete": True}, "tol": {"tol": 1e-4}}
WHOLE = list(itertools.product(MODELS, SETTINGS))
ROTATED = [row for i, row in enumerate(WHOLE) if (i + i // len(SETTINGS)) % len(SETTINGS) == 0]


@pytest.mark.rows(("model", "settings"), WHOLE, ROTATED)
def test_integrated_gradients_is_the_same_with_and_without_it(model, settings, monkeypatch):
    case, settings = MODELS[model](), SETTINGS[settings]
    x = jax.tree.map(lambda leaf: leaf[0], case.xs)

    def explain():
        return jax.jit(jx.integrated_gradients(lambda x: case.score(case.weights, x, 1), n_steps=6, **settings))(x)

    monkeypatch.setattr(head, "WORTH", 0)  # wherever there is one
    hoisted = explain()
    monkeypatch.setattr(path, "affine_prefix", lambda *_: None)
    assert relative(hoisted, explain()) < (1e-2 if model == "bf16_compute" else 1e-10)


@pytest.mark.rows("model", MODELS, list(MODELS)[::3])
def test_smoothgrad_is_the_same_with_and_without_it(model, monkeypatch):
    case = MODELS[model]()
    x = jax.tree.map(lambda leaf: leaf[0], case.xs)

    def explain():
        smooth = jx.smoothgrad(jx.gradient(lambda x: case.score(case.weights, x, 1)), n_samples=3, noise=0.1)
        return jax.jit(smooth)(x, key=jax.random.key(0))

    monkeypatch.setattr(head, "WORTH", 0)
    hoisted = explain()
    monkeypatch.setattr(noise, "affine_prefix", lambda *_: None)
    assert relative(hoisted, explain()) < (1e-2 if model == "bf16_compute" else 1e-10)


def test_smoothgrad_pulls_back_through_a_large_head_once():
    weights = jnp.ones((784, 512))
    smooth = jx.smoothgrad(jx.gradient(lambda x: jnp.sum(jnp.tanh(x @ weights))), n_samples=8)
    program = jax.make_jaxpr(lambda x: smooth(x, key=jax.random.key(0)))(jnp.ones(784))
    (loop,) = (e for e in program.eqns if e.primitive.name == "scan")
    assert str(loop.params["jaxpr"]).count("dot_general") == 1  # forwards; backwards it is outside of the loop


def test_a_derivative_of_the_users_own_stays_in_the_tail():
    @jax.custom_jvp
    def doubled_slope(x):
        return jnp.sum(x) * 1.0

    doubled_slope.defjvp(lambda primals, tangents: (doubled_slope(*primals), 2 * jnp.sum(tangents[0])))
    weights = jnp.ones((100, 2))
    score = lambda x: doubled_slope(x @ weights) + _dense(x)
    x = jax.random.normal(jax.random.key(1), (100,))
    (gradient,) = jax.vjp(score, x)[1](1.0)
    split = _head(score, x)
    h = split.prefix((x,))
    assert relative(split.pullback((x,), split.rest.value_and_gradient(h)[1])[0], gradient) < 1e-13
