"""Every rule against its formula on an explicit matrix; closed forms; derivatives of relevance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative
from jax import lax

import jaxplain as jx
from jaxplain import composites, rules

EPS = 1e-9
K = jnp.sin(1 + jnp.arange(36.0)).reshape(3, 3, 2, 2)
S = jnp.cos(1 + jnp.arange(6.0))


def _conv(x, k=K, dims=("NHWC", "HWIO", "NHWC"), strides=None, **settings):
    strides = strides or (1,) * (k.ndim - 2)
    return lax.conv_general_dilated(x[None], k, strides, "SAME", dimension_numbers=dims, **settings)[0]


# An affine layer, and the shape of its input.
LAYERS = {
    "dense": (lambda x: x @ jnp.sin(1 + jnp.arange(24.0)).reshape(4, 6) + 0.3 * S, (4,)),
    "no bias": (lambda x: x @ jnp.sin(1 + jnp.arange(24.0)).reshape(4, 6), (4,)),
    "conv": (lambda x: _conv(x) + 0.3 * S[None, None, :2], (4, 4, 2)),
    "depthwise": (lambda x: _conv(x, K[:, :, :1], feature_group_count=2) + 0.3 * S[None, None, :2], (4, 4, 2)),
    "strided, dilated": (lambda x: _conv(x, strides=(2, 2), rhs_dilation=(2, 2)), (5, 5, 2)),
    "1d": (lambda x: _conv(x, K[0], ("NWC", "WIO", "NWC")), (5, 2)),
    "3d": (lambda x: _conv(x, K[None], ("NHWDC", "HWDIO", "NHWDC")), (2, 3, 3, 2)),
    "batch_norm": (
        lambda x: (_conv(x) - 0.2) / jnp.sqrt(1.3) * jnp.array([[[-1.5, 0.7]]]) + S[None, None, :2],
        (4, 4, 2),
    ),
    "standardized": (lambda x: _conv((x - 0.2) * jnp.array([[[-1.5, 0.7]]])) + 0.1, (4, 4, 2)),
    "scaled over space": (lambda x: _conv(x) * jnp.sin(1 + jnp.arange(16.0)).reshape(4, 4, 1), (4, 4, 2)),
    "transposed": (
        lambda x: lax.conv_transpose(x[None], K, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0],
        (3, 3, 2),
    ),
    "weighted sum": (lambda x: jnp.sum(x * jnp.sin(1 + jnp.arange(6.0)).reshape(3, 2), 0) + 0.1, (3, 2)),
    "einsum, transposed": (lambda x: jnp.einsum("oi,hi->ho", K[0, 0], x).T * S[None, :3] + 0.1, (3, 2)),
}


def stab(z):
    return z + np.where(z >= 0, EPS, -EPS)


def share(q, bias, R):
    """R_i = Σ_j q_ij R_j / stab(Σ_i q_ij + bias_j)."""
    return q @ (R / stab(q.sum(0) + bias))


def up(v):
    return np.maximum(v, 0)


def down(v):
    return np.minimum(v, 0)


def _alpha_beta(alpha, beta):
    def by_hand(x, w, b, R):
        c = x[:, None] * w
        return alpha * share(up(c), up(b), R) - beta * share(down(c), down(b), R)

    return by_hand


def _gamma(gamma):
    def by_hand(x, w, b, R):
        c, z = x[:, None] * w, x @ w + b
        above = share(c + gamma * up(c), b + gamma * up(b), R * (z > 0))
        return above + share(c + gamma * down(c), b + gamma * down(b), R * (z < 0))

    return by_hand


# The rule, and its formula on x_i, w_ij, b_j, R_j.
FORMULAS = {
    "epsilon": (rules.epsilon(EPS), lambda x, w, b, R: share(x[:, None] * w, b, R)),
    "epsilon, no bias": (rules.epsilon(EPS, absorb_bias=False), lambda x, w, b, R: share(x[:, None] * w, 0, R)),
    "zplus": (rules.zplus(epsilon=EPS), lambda x, w, b, R: share(up(x[:, None] * w), up(b), R)),
    "zplus, no bias": (
        rules.zplus(absorb_bias=False, epsilon=EPS),
        lambda x, w, b, R: share(up(x[:, None] * w), 0, R),
    ),
    "alpha2_beta1": (rules.alpha_beta(2, 1, epsilon=EPS), _alpha_beta(2, 1)),
    "alpha1_beta0": (rules.alpha_beta(1, 0, epsilon=EPS), _alpha_beta(1, 0)),
    "gamma": (rules.gamma(0.4, epsilon=EPS), _gamma(0.4)),
    "zbox": (
        rules.zbox(-1.5, 2.0, epsilon=EPS),
        lambda x, w, b, R: share(x[:, None] * w + 1.5 * up(w) - 2.0 * down(w), 0, R),
    ),
    "wsquare": (rules.wsquare(epsilon=EPS), lambda x, w, b, R: share(w**2, 0, R)),
    "wsquare, bias": (rules.wsquare(absorb_bias=True, epsilon=EPS), lambda x, w, b, R: share(w**2, b**2, R)),
    "flat": (rules.flat(epsilon=EPS), lambda x, w, b, R: share(1.0 * (w != 0), 0, R)),
}


@functools.cache
def _written_out(layer):
    """x, v, and what the formulas read: the matrix, the bias and the arriving relevance. One program for all rules."""
    f, shape = LAYERS[layer]
    x = jnp.cos(2 + 1.3 * jnp.arange(float(np.prod(shape)))).reshape(shape)
    size = jax.eval_shape(f, x).size
    v = jnp.sin(3 + jnp.arange(float(size)))
    matrix, bias, out = jax.jit(lambda x: (jax.jacobian(f)(x), f(0 * x), jax.nn.leaky_relu(f(x))))(x)
    return x, v, np.asarray(matrix).reshape(size, -1).T, np.ravel(bias), np.ravel(out) * np.asarray(v)


def _by_every_rule(score, x, names=FORMULAS):
    """Relevance by each rule for the first layer, all of them in one program."""
    chosen = {rule: composites.compose(rules.epsilon(1e-14), {"first": FORMULAS[rule][0]}) for rule in names}
    return jax.jit(lambda x: {rule: jx.lrp(score, rules=each)(x) for rule, each in chosen.items()})(x)


@functools.cache
def _of_layer(layer):
    x, v, *_ = _written_out(layer)
    return _by_every_rule(lambda x: jnp.dot(jax.nn.leaky_relu(LAYERS[layer][0](x)).ravel(), v), x)


@pytest.mark.parametrize("rule", FORMULAS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_rule_is_its_formula(layer, rule):
    x, _, w, b, arriving = _written_out(layer)
    want = FORMULAS[rule][1](np.asarray(x).ravel(), w, b, arriving)
    np.testing.assert_allclose(_of_layer(layer)[rule].ravel(), want, rtol=1e-6, atol=1e-9)


def test_rules_are_their_formulas_behind_a_relu():
    """Where the input is known not to be negative, half of the terms are left out."""
    w, b, v = jnp.sin(1 + jnp.arange(24.0)).reshape(4, 6), 0.3 * S, jnp.sin(3 + jnp.arange(6.0))
    x = jnp.array([0.7, -0.4, 1.3, 0.2])
    score = lambda x: jax.nn.leaky_relu(jax.nn.relu(x) @ w + b) @ v
    h = np.asarray(jax.nn.relu(x))
    arriving = np.asarray(jax.nn.leaky_relu(h @ w + b) * v)
    behind = {rule: formula for rule, (_, formula) in FORMULAS.items() if rule != "zbox"}
    found = _by_every_rule(score, x, behind)
    for rule, by_hand in behind.items():
        want = by_hand(h, np.asarray(w), np.asarray(b), arriving)
        np.testing.assert_allclose(found[rule], want, rtol=1e-6, atol=1e-9, err_msg=rule)


P, Q, T = (jnp.sin(k + jnp.arange(16.0)).reshape(4, 4) for k in (1, 2, 3))


def _matrix_product(x):
    """AttnLRP eqs. 13–15: half of R in proportion, to each factor."""
    a, b = x @ P, x @ Q
    z = a @ b
    share = T * z / stab(2 * z)
    return a * (share @ b.T), b * (a.T @ share)


def _through_layers(a_and_b, x):
    """What two dense layers x @ P and x @ Q hand on by ε."""
    return sum(x * ((r / stab(x @ w)) @ w.T) for r, w in zip(a_and_b, (P, Q), strict=True))


PRODUCTS = {
    "matrix product": (lambda x: jnp.sum(((x @ P) @ (x @ Q)) * T), _matrix_product),
    "product": (lambda x: jnp.sum((x @ P) * (x @ Q) * T), lambda x: 2 * ((x @ P) * (x @ Q) * T / 2,)),
    "quotient": (lambda x: jnp.sum((x @ P) / (x @ Q) * T), lambda x: 2 * ((x @ P) / (x @ Q) * T / 2,)),
    "gate": (
        lambda x: jnp.sum((x @ P) * jax.nn.sigmoid(x @ Q) * T),
        lambda x: ((x @ P) * jax.nn.sigmoid(x @ Q) * T, 0 * x),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_their_formulas(name):
    score, by_hand = PRODUCTS[name]
    x = jnp.cos(5 + 1.7 * jnp.arange(16.0)).reshape(4, 4)
    got = jx.lrp(score, rules=composites.attention(EPS))(x)
    np.testing.assert_allclose(got, _through_layers(by_hand(x), x), rtol=1e-6, atol=1e-7)


def test_softmax_log_softmax_and_pooling_are_their_formulas():
    x, v = jnp.cos(5 + 1.7 * jnp.arange(4.0)), jnp.sin(3 + jnp.arange(4.0))
    epsilon = rules.epsilon(EPS)
    p = jax.nn.softmax(x)
    got = jx.lrp(lambda x: jax.nn.softmax(x) @ v, rules=epsilon)(x)
    np.testing.assert_allclose(got, x * (p * v - p * jnp.sum(p * v)), rtol=1e-6)
    share = jax.nn.log_softmax(x) * v / stab(jax.nn.log_softmax(x))
    got = jx.lrp(lambda x: jax.nn.log_softmax(x) @ v, rules=epsilon)(x)
    np.testing.assert_allclose(got, x * share - jax.nn.logsumexp(x) * p * jnp.sum(share), rtol=1e-6)
    got = jx.lrp(lambda x: jnp.max(x.reshape(2, 2), 1) @ v[:2], rules=epsilon)(x)
    windows = x.reshape(2, 2)
    winners = np.where(windows == windows.max(1, keepdims=True), windows, 0)
    np.testing.assert_allclose(got, (winners * v[:2, None]).ravel(), rtol=1e-6)
    pooled = composites.compose(epsilon, {"max": rules.proportional_pooling(epsilon=EPS)})
    got = jx.lrp(lambda x: jnp.max(jnp.exp(x).reshape(2, 2), 1) @ v[:2], rules=pooled)(x)
    e = np.exp(windows)
    want = e * (e.max(1) * v[:2] / stab(e.sum(1)))[:, None]
    np.testing.assert_allclose(got, want.ravel(), rtol=1e-6)


# Closed forms: two networks that compute max(x₁, x₂)

A = jnp.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]])
MAXIMA = {
    # ½(relu(x₁−x₂) + relu(x₂−x₁) + relu(x₁+x₂) − relu(−x₁−x₂)): relevance of |x₁−x₂| goes to the winner by z⁺
    "halves": lambda x: jax.nn.relu(x @ A) @ jnp.array([0.5, 0.5, 0.5, -0.5]),
    # relu(x₁−x₂) + relu(x₂) − relu(−x₂)
    "staircase": lambda x: jax.nn.relu(x @ jnp.array([[1.0, 0, 0], [-1, 1, -1]])) @ jnp.array([1.0, 1.0, -1.0]),
}


@pytest.mark.parametrize("rule", ["epsilon", "zplus"])
@pytest.mark.parametrize("form", MAXIMA)
def test_max_as_a_network_has_the_closed_form(form, rule):
    x = jnp.array([3.0, 1.0])
    assert MAXIMA[form](x) == 3.0
    chosen = {"epsilon": rules.epsilon(1e-12), "zplus": rules.zplus(epsilon=1e-12)}[rule]
    want = {
        ("halves", "epsilon"): [3.0, 0.0],
        # ½(x₁−x₂) and ½x₁ to x₁, ½x₂ to x₂
        ("halves", "zplus"): [2.5, 0.5],
        ("staircase", "epsilon"): [3.0, 0.0],
        ("staircase", "zplus"): [2.0, 1.0],
    }[form, rule]
    np.testing.assert_allclose(jx.lrp(MAXIMA[form], rules=chosen)(x), want, atol=1e-9)
    np.testing.assert_allclose(jx.lrp(lambda x: jnp.max(x), rules=chosen)(x), [3.0, 0.0], atol=1e-9)


RELUS = {
    "relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "mask": lambda x: x * (x > 0).astype(x.dtype),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "clip": lambda x: jnp.clip(x, 0),
}


@pytest.mark.parametrize("spelling", RELUS)
def test_the_table_of_backprop_deconvolution_and_guided_backprop(spelling):
    """Rows: input of the ReLU positive, negative; columns: what comes from above positive, negative."""
    x, above = jnp.array([1.0, 1.0, -1.0, -1.0]), jnp.array([2.0, -2.0, 2.0, -2.0])
    score = lambda x: RELUS[spelling](x) @ above
    np.testing.assert_array_equal(jx.gradient(score)(x), [2, -2, 0, 0])
    np.testing.assert_array_equal(jx.deconvnet(score)(x), [2, 0, 2, 0])
    np.testing.assert_array_equal(jx.guided_backprop(score)(x), [2, 0, 0, 0])


# Nets without bias

W1, W2 = jnp.sin(jnp.arange(30.0)).reshape(5, 6), jnp.cos(jnp.arange(36.0)).reshape(6, 6)
IMAGE = jnp.cos(jnp.arange(72.0)).reshape(6, 6, 2)


def _pooled(pool):
    def score(x):
        h = jax.nn.relu(_conv(x))
        return jnp.sum(jnp.sin(jnp.arange(18.0)) * pool(h).ravel())

    return score


def _windows(operation, start):
    return lambda h: lax.reduce_window(h, start, operation, (2, 2, 1), (2, 2, 1), "VALID")


BIAS_FREE = {
    "dense": (lambda x: jax.nn.relu(x @ W1) @ S, W1[:, 0]),
    "leaky": (lambda x: jax.nn.leaky_relu(x @ W1) @ S, W1[:, 0]),
    "residual": (lambda x: (lambda h: jax.nn.relu(h + jax.nn.relu(h @ W2)) @ S)(x @ W1), W1[:, 0]),
    "concatenated": (lambda x: jnp.concatenate([x @ W1, 2 * jax.nn.relu(x @ W1)]) @ jnp.tile(S, 2), W1[:, 0]),
    "average pool": (_pooled(lambda h: _windows(lax.add, 0.0)(h) / 4), IMAGE),
    "max pool": (_pooled(_windows(lax.max, -jnp.inf)), IMAGE),
    "batch_norm": (_pooled(lambda h: _windows(lax.add, 0.0)(h * jnp.array([[[-0.5, 2.0]]]))), IMAGE),
}
COMPOSITES = {
    "epsilon_plus": composites.epsilon_plus(1e-12),
    "epsilon_plus_flat": composites.epsilon_plus_flat(1e-12),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(1e-12),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-1.0, 1.0, epsilon=1e-12),
    "attention": composites.attention(1e-12),
    "deep_taylor": composites.deep_taylor(-1.0, 1.0, epsilon=1e-12),
}


@pytest.mark.parametrize("net", BIAS_FREE)
def test_epsilon_is_gradient_times_input_on_homogeneous_nets(net):
    score, x = BIAS_FREE[net]
    explain = jx.lrp(score, rules=rules.epsilon(1e-13))
    relevance, gradient = jax.jit(lambda x: (explain(x), jax.grad(score)(x)))(x)
    assert relative(relevance, x * gradient) < 1e-9
    relu6 = lambda x: jnp.minimum(jax.nn.relu(x @ W1), 0.5) @ S  # saturated: its gradient is zero, its value is not
    y = 3 * W1[:, 0]
    assert relative(jx.lrp(relu6, rules=rules.epsilon(1e-13))(y), y * jax.grad(relu6)(y)) > 1e-2


@functools.cache
def _ledgers(net):
    score, x = BIAS_FREE[net]
    ledgers = {name: jx.ledger(score, rules=composite) for name, composite in COMPOSITES.items()}
    return jax.jit(lambda x: {name: ledger(x) for name, ledger in ledgers.items()})(x)  # one program for all


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("net", BIAS_FREE)
def test_relevance_is_conserved_without_biases(net, composite):
    if (net, composite) == ("batch_norm", "deep_taylor"):
        pytest.skip("units without a positive contribution have nobody to hand on to")
    accounts = _ledgers(net)[composite]
    size = jnp.abs(accounts.arriving).max()
    for node, lost in zip(accounts.nodes, accounts.lost + accounts.to_bias, strict=True):
        assert abs(lost) < 1e-8 * size, node


def test_deep_taylor_and_excitation_are_not_negative():
    score = lambda x: jax.nn.relu(jax.nn.relu(x @ jnp.abs(W1) - 1) @ W2)[0]
    x = jnp.linspace(0.2, 1, 5)
    assert score(x) > 0
    for explain in (jx.deep_taylor(score, low=0.0, high=1.0), jx.deep_taylor(score), jx.excitation_backprop(score)):
        assert explain(x).min() >= 0
    assert jx.excitation_backprop(score)(x).sum() == pytest.approx(1, abs=1e-5)


def test_both_branches_get_the_first_rule():
    score = lambda x: jax.nn.leaky_relu(jnp.concatenate([x @ W1, (2 * x) @ W2[:5]])) @ jnp.tile(S, 2)
    x = W1[:, 0]
    rows = [row for row in jx.plan(score, rules=composites.epsilon_plus_flat())(x) if row.kind == "dense"]
    assert [row.rule for row in rows] == ["flat", "flat", "epsilon(1e-06)"]
    relevance = jx.lrp(score, rules=composites.epsilon_plus_flat())(x)
    np.testing.assert_allclose(relevance, relevance[0], rtol=1e-12)


# Derivatives of relevance

E = 0.1
SMOOTH = {
    "epsilon": rules.epsilon(E),
    "zplus": rules.zplus(epsilon=E),
    "alpha_beta": rules.alpha_beta(2, 1, epsilon=E),
    "gamma": rules.gamma(0.3, epsilon=E),
    "zbox": rules.zbox(-2.0, 2.0, epsilon=E),
    "wsquare": rules.wsquare(epsilon=E),
    "flat": rules.flat(epsilon=E),
    "proportional_pooling": composites.compose(
        composites.epsilon_plus(E), {"max": rules.proportional_pooling(epsilon=E)}
    ),
    "attention": composites.attention(E),
    "signal": composites.compose(composites.epsilon_plus(E), {"gate": rules.signal_takes_all()}),
}


def _everything(w, x):
    """A net with a convolution, max-pooling, a gate, attention, a normalization and log-softmax."""
    h = _windows(lax.max, -jnp.inf)(jnp.tanh(_conv(x, w["k"]) + w["b"][None, None])).reshape(9, 2)
    h = h * jax.nn.sigmoid(h @ w["g"])
    h = h + jax.nn.softmax(h @ w["q"] @ h.T) @ h
    h = (h - h.mean(0)[None]) / jnp.sqrt(h.var(0)[None] + 0.1)
    return jax.nn.log_softmax(h.ravel() @ w["o"])[1]


@pytest.mark.rows("name", SMOOTH, list(SMOOTH)[::2])
def test_the_gradient_of_relevance_is_its_derivative(name):
    keys = iter(jax.random.split(jax.random.key(0), 9))
    shapes = {"k": (3, 3, 2, 2), "b": (2,), "g": (2, 2), "q": (2, 2), "o": (18, 3)}
    w = {part: jax.random.normal(next(keys), shape) for part, shape in shapes.items()}
    x = jax.random.normal(next(keys), (6, 6, 2))

    # Compiling is what takes long: one program for the value and the gradients, at all three points.
    @jax.jit
    @jax.value_and_grad
    def explained(wx):
        w, x = wx
        return jnp.sum(jnp.sin(jx.lrp(lambda x: _everything(w, x), rules=SMOOTH[name])(x)))

    directions = jax.tree.map(lambda leaf: np.cos(np.arange(1.0 * leaf.size)).reshape(leaf.shape), (w, x))
    at = lambda t: explained(jax.tree.map(lambda a, d: np.asarray(a) + t * d, (w, x), directions))
    slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, at(0.0)[1], directions)))
    difference = (at(1e-6)[0] - at(-1e-6)[0]) / 2e-6
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-7)


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.epsilon(-1.0), "negative"),
        (lambda: rules.alpha_beta(2, 2), "must be 1"),
        (lambda: rules.zbox(1.0, 0.0), "above"),
        (lambda: composites.compose(composites.epsilon_plus(), {"first": rules.flat}), "calling it"),
        (lambda: composites.deep_taylor(low=0.0), "both"),
        (lambda: composites.deep_taylor(pooling="mean"), "pooling"),
        (lambda: jx.lrp(jnp.sum, rules="epsilon"), "composites.epsilon_plus_flat"),
        (lambda: jx.lrp(jnp.sum, rules=rules.epsilon(), on_missing="skip"), "on_missing"),
        (lambda: jx.deep_taylor(lambda x: x @ S, low=jnp.zeros(5), high=1.0)(jnp.ones(6)), "broadcast"),
        (
            lambda: jx.lrp(lambda x: x @ S, rules=composites.compose(rules.epsilon(), {"hed/*": rules.flat()}))(S),
            "matches",
        ),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(jx.SettingError, match=message):
        make()
