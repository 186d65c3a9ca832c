"""DeepLIFT: the authors' formulas, written down once more, and Captum's numbers."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deeplift_cases import X
from helpers import relative, relu_net
from jax import lax
from test_golden import _cnn_avgpool, _dense, _distance, _mlp

import jaxplain as jx


def _activation_change(act, split, before, change, positive, negative):
    """Multipliers of Δz⁺ and Δz⁻ at an activation, by the formulas of the paper."""
    f = lambda z: np.asarray(act(jnp.asarray(z)))
    after = before + change
    # A part of nothing: what the authors' package gets by adding a tiny number to it.
    slope = sum(np.asarray(jax.vmap(jax.grad(act))(jnp.asarray(z))) for z in (before, after)) / 2

    def ratio(rise, run):
        return np.divide(rise, run, out=slope.copy(), where=run != 0)

    if not split:
        return (ratio(f(after) - f(before), change),) * 2
    up = (f(before + positive) - f(before) + f(after) - f(before + negative)) / 2
    down = (f(before + negative) - f(before) + f(after) - f(before + positive)) / 2
    return ratio(up, positive), ratio(down, negative)


def _multipliers_below(weights, change, positive, negative):
    """The authors' linear rule with its masks: the multiplier of a weight depends on the sign of its contribution."""
    up, down = np.maximum(weights, 0), np.minimum(weights, 0)
    rising = positive @ up.T + negative @ down.T
    falling = positive @ down.T + negative @ up.T
    return np.where(change > 0, rising, np.where(change < 0, falling, (positive + negative) @ weights.T / 2))


def _parts(weights, change):
    up, down = np.maximum(weights, 0), np.minimum(weights, 0)
    above, below = np.maximum(change, 0), np.minimum(change, 0)
    return above @ up + below @ down, above @ down + below @ up


def authors(layers, act, splits, x, x0):
    """Multipliers of a chain of (weights, bias) with activations between: masks and all four products, in NumPy."""
    changes, factors = [], []
    a, a0 = np.asarray(x), np.asarray(x0)
    for (weights, bias), split in zip(layers, splits, strict=True):
        changes.append(a - a0)
        z0, change = a0 @ weights + bias, (a - a0) @ weights
        positive, negative = _parts(weights, a - a0)
        multipliers = _activation_change(act, split, z0, change, positive, negative)
        factors.append(multipliers)
        a0, a = (np.asarray(act(jnp.asarray(z))) for z in (z0, z0 + change))
    m = np.ones(layers[-1][0].shape[1])
    factors[-1] = (1, 1)  # no activation after the last layer
    for (weights, _), change, (up, down) in zip(layers[::-1], changes[::-1], factors[::-1], strict=True):
        m = _multipliers_below(weights, change, m * up, m * down)
    return changes[0] * m


def _chain(seed, *sizes):
    draw = np.random.default_rng(seed)
    return [(draw.normal(size=(m, n)), draw.normal(size=n)) for m, n in itertools.pairwise(sizes)]


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("act", [jax.nn.relu, jnp.tanh, jax.nn.softplus], ids=["relu", "tanh", "softplus"])
def test_a_chain_of_dense_layers_is_the_authors_formula(rule, act):
    layers = _chain(3, 5, 7, 6, 1)

    def score(x):
        for weights, bias in layers[:-1]:
            x = act(x @ weights + bias)
        return (x @ layers[-1][0] + layers[-1][1])[0]

    draw = np.random.default_rng(4)
    explain = jax.jit(lambda x, x0: jx.deeplift(score, baseline=x0, rule=rule)(x))
    for _ in range(5):
        x, x0 = draw.normal(size=(2, 5))
        x[2] = x0[2]  # one input without a change
        want = authors(layers, act, [rule == "reveal_cancel"] * 3, x, x0)
        assert relative(explain(x, x0), want) < 1e-10


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel", "genomics_default"])
def test_a_convolution_and_a_dense_layer_are_the_authors_formula(rule):
    draw = np.random.default_rng(5)
    kernel, bias = draw.normal(size=(3, 3, 1, 2)), draw.normal(size=2)
    (hidden, end) = _chain(6, 32, 6, 1)

    def conv(x):
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x.reshape(1, 4, 4, 1), kernel, (1, 1), "SAME", dimension_numbers=dims)

    def score(x):
        x = jax.nn.relu(conv(x) + bias[None, None, None]).ravel()
        return (jax.nn.relu(x @ hidden[0] + hidden[1]) @ end[0] + end[1])[0]

    matrix = np.asarray(jax.jacobian(lambda x: conv(x).ravel())(jnp.zeros(16))).T
    layers = [(matrix, np.tile(bias, 16)), hidden, end]
    splits = {"rescale": (0, 0, 0), "reveal_cancel": (1, 1, 0), "genomics_default": (0, 1, 0)}[rule]
    x, x0 = draw.normal(size=(2, 16))
    want = authors(layers, jax.nn.relu, splits, x, x0)
    assert relative(jax.jit(jx.deeplift(score, baseline=jnp.asarray(x0), rule=rule))(x), want) < 1e-10


def test_reveal_cancel_of_a_residual_addition_is_that_of_one_layer():
    """relu(h W + b + h): the contributions w·Δh, and that of h itself with a weight of one."""
    (w1, b1), (w2, b2), (end, _) = _chain(7, 4, 5, 5, 1)

    def score(x):
        h = jax.nn.relu(x @ w1 + b1)
        return (jax.nn.relu(h @ w2 + b2 - 0.5 + h) @ end)[0]

    x, x0 = np.random.default_rng(8).normal(size=(2, 4))
    relu = lambda z: np.maximum(z, 0)
    z0, dz = x0 @ w1 + b1, (x - x0) @ w1
    h0, dh = relu(z0), relu(z0 + dz) - relu(z0)
    y0, dy = h0 @ w2 + b2 - 0.5, dh @ w2
    positive, negative = (v + sign(dh, 0) for v, sign in zip(_parts(w2, dh), (np.maximum, np.minimum), strict=True))
    up, down = _activation_change(jax.nn.relu, True, y0 + h0, dy + dh, positive, negative)
    up, down = up * end[:, 0], down * end[:, 0]
    m_h = np.where(dh > 0, up, np.where(dh < 0, down, (up + down) / 2)) + _multipliers_below(w2, dh, up, down)
    first, second = _activation_change(jax.nn.relu, True, z0, dz, *_parts(w1, x - x0))
    want = (x - x0) * _multipliers_below(w1, x - x0, m_h * first, m_h * second)
    assert relative(jx.deeplift(score, baseline=jnp.asarray(x0), rule="reveal_cancel")(jnp.asarray(x)), want) < 1e-9


def _activations(w, x):
    acts = (jnp.tanh, jax.nn.sigmoid, jax.nn.softplus, lambda z: jax.nn.leaky_relu(z, 0.1), jax.nn.elu)
    for i, act in enumerate(acts):
        x = act(_dense(x, w, f"{2 * i}"))
    return _dense(x, w, "10")


GOLDEN = pathlib.Path(__file__).parent / "golden" / "deeplift"
NETWORKS = {"mlp": _mlp, "cnn_avgpool": _cnn_avgpool, "activations": _activations}


@pytest.mark.parametrize("network", NETWORKS)
def test_float64_agrees_with_captum_where_captum_is_right(network):
    about = json.loads((GOLDEN / f"{network}.json").read_text())
    with np.load(GOLDEN / f"{network}.npz") as file:
        stored = {key: jnp.asarray(file[key]) for key in file.files}
    stored = {k: v.astype(jnp.float64) if v.dtype == jnp.float32 else v for k, v in stored.items()}
    weights = {key[8:]: value for key, value in stored.items() if key.startswith("weights/")}
    score = lambda x, label: NETWORKS[network](weights, x)[label]
    baselines = {
        "deeplift_zero": 0.0,
        "deeplift_baseline": stored["baseline"],
        "deeplift_references": jx.references(stored["references"]),
    }
    for name, baseline in baselines.items():
        maps = jax.jit(jax.vmap(jx.deeplift(score, baseline=baseline)))(stored["x"], stored["target"])
        assert _distance(maps, stored[name]) <= about["tolerance"]["float64"], name


def test_golden_arrays_say_where_they_come_from():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(NETWORKS)
    for network in NETWORKS:
        about = json.loads((GOLDEN / f"{network}.json").read_text())
        assert {"peer", "versions", "made_by", "date", "seed", "calls", "tolerance"} <= set(about)
        assert (GOLDEN.parents[2] / about["made_by"]).is_file()


@pytest.mark.parametrize("name", ["mlp_no_bias", "cnn_avgpool"])
def test_from_zero_it_is_input_times_gradient_on_relu_networks_without_biases(name):
    net = jx.zoo.load(name)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), net.params)
    digits = jnp.asarray(jx.datasets.mnist().x_test[:3], jnp.float64)
    score = lambda x: net.apply(params, x)[4]
    maps, gradients = jax.jit(jax.vmap(lambda x: (jx.deeplift(score)(x), jax.grad(score)(x))))(digits)
    for attribution, x, gradient in zip(maps, digits, gradients, strict=True):
        assert relative(attribution, x * gradient) < 1e-10


def test_from_zero_it_is_input_times_gradient_on_a_small_network_without_biases():
    small = relu_net(jax.random.key(0), (6, 8, 8, 1))
    assert relative(jx.deeplift(small)(X), X * jax.grad(small)(X)) < 1e-10
