"""Additions: rules that split signs see a skip and a layer as one affine map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative
from jax import lax

import jaxplain as jx

METHODS = {
    "deep_taylor": lambda f: jx.deep_taylor(f, low=0.0, high=1.0, epsilon=1e-12),
    "zplus": lambda f: jx.lrp(f, rules=jx.rules.zplus(epsilon=1e-12)),
    "alpha1_beta0": lambda f: jx.lrp(f, rules=jx.rules.alpha_beta(1, 0, epsilon=1e-12)),
    "excitation_backprop": lambda f: jx.excitation_backprop(f, start="score", epsilon=1e-12),
}


def _residual_network(seed):
    """A random ReLU network without biases: dense or convolutional, skips in skips, activations before or after."""
    draw = np.random.default_rng(seed)
    is_conv = seed % 2 == 1
    channels = 4

    def layer(rectify=jax.nn.relu):
        shape = (3, 3, channels, channels) if is_conv else (channels, channels)
        kernel = jnp.asarray(draw.normal(size=shape) / np.sqrt(np.prod(shape[:-1])))
        settings = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        apply = (lambda h: lax.conv_general_dilated(h, kernel, **settings)) if is_conv else (lambda h: h @ kernel)
        return lambda h: apply(rectify(h))

    def block(depth):
        first, second = layer(), layer()
        inner = block(depth - 1) if depth and draw.random() < 0.7 else lambda h: h
        shape, sign = draw.integers(4), 1 if draw.random() < 0.7 else -1
        if shape == 0:  # activation after the addition
            return lambda h: jax.nn.relu(h + sign * second(inner(first(h))))
        if shape == 1:  # before the layers
            return lambda h: h + inner(second(first(h)))
        if shape == 2:  # a projection on the skip, and a difference
            return lambda h: jax.nn.relu(first(h) - second(h))
        return lambda h: jax.nn.relu((inner(h) + first(h)) + (h + second(h)))

    stem, blocks = layer(lambda x: x), [block(1) for _ in range(draw.integers(1, 3))]
    shape = (1, 4, 4, channels) if is_conv else (channels,)
    x = jnp.asarray(draw.random(shape))

    def features(x):
        h = jax.nn.relu(stem(x))
        for each in blocks:
            h = each(h)
        return jax.nn.relu(h)

    head = jnp.asarray(draw.normal(size=x.size))
    head = head * jnp.where(jnp.vdot(features(x), head) < 0, -1, 1)
    return lambda x: jnp.vdot(features(x), head), x


@pytest.mark.rows("seed", range(200), range(4))
def test_relevance_of_residual_networks_is_nonnegative_and_sums_to_the_score(seed):
    score, x = _residual_network(seed)

    @jax.jit
    def explained(x):
        return score(x), {name: make(score)(x) for name, make in METHODS.items()}

    value, maps = explained(x)
    assert value >= 0
    for name, relevance in maps.items():
        assert np.min(relevance) >= -1e-9 * max(value, 1e-300), name
        assert abs(jnp.sum(relevance) - value) <= 1e-6 * value, name


def test_contributions_share_as_in_one_layer():
    w, v = jnp.array([[-0.8, 0.5], [0.3, 0.2]]), jnp.array([1.0, 1.0])
    x = jnp.array([1.0, 1.0])
    explain = jax.jit(lambda f, x: jx.lrp(f, rules=jx.rules.zplus(epsilon=1e-12))(x), static_argnums=0)
    joined = jnp.concatenate([jnp.eye(2), w])  # of [h, h]
    want = explain(lambda x: jax.nn.relu(jnp.concatenate([x, x]) @ joined) @ v, x)
    for spelling in (
        lambda x: jax.nn.relu(x + x @ w) @ v,
        lambda x: jax.nn.relu(x @ w + x) @ v,
        lambda x: jax.nn.relu(x - x @ -w) @ v,
        lambda x: jax.nn.relu(x + (x[None] @ w)[0]) @ v,
        lambda x: jax.nn.relu(0.5 * x + (x @ w + 0.5 * x)) @ v,
        lambda x: lax.scan(lambda c, _: (jax.nn.relu(c + c @ w), None), x, None, 1)[0] @ v,
    ):
        assert relative(explain(spelling, x), want) < 1e-9


def test_the_derivative_of_relevance_goes_through_contributions():
    w, v = jnp.array([[-0.8, 0.5], [0.3, 0.2]]), jnp.array([1.0, 1.0])
    total = lambda x: jnp.sum(jnp.sin(3 * jx.lrp(lambda x: jax.nn.relu(x + x @ w) @ v, rules=jx.rules.zplus())(x)))
    evaluate = jax.jit(jax.value_and_grad(total))
    x, step = jnp.array([1.0, 1.3]), jnp.array([0.3, -0.7])
    slope = (evaluate(x + 1e-6 * step)[0] - evaluate(x - 1e-6 * step)[0]) / 2e-6
    np.testing.assert_allclose(jnp.vdot(evaluate(x)[1], step), slope, rtol=1e-6)


def test_an_entry_that_can_apply_to_no_node_is_refused():
    for selector, rule in (
        ("add", jx.rules.flat()),
        (("first", "add"), jx.rules.zbox(0, 1)),
        ("max", jx.rules.gamma()),
    ):
        with pytest.raises(jx.SettingError, match="cannot apply"):
            jx.composites.compose(jx.rules.epsilon(), {selector: rule})
    jx.composites.compose(jx.composites.epsilon_plus(), {"add": jx.rules.zplus()})
