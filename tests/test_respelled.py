"""The same function written in another way gets the same explanation: the analysis recognizes meaning."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxplain as jx
from jaxplain import composites, rules
from jaxplain._analysis.analyze import analyze
from jaxplain._engine.replay import replay

rng = np.random.default_rng(7)


def _draw(*shape):
    return jnp.asarray(rng.normal(size=shape))


A, B, C, V = _draw(6, 6), _draw(6, 6), _draw(6, 6), _draw(6)
BIAS = V[None]
X = _draw(6, 6)  # as many tokens as features: a matrix product must not pass for an elementwise one
ROWS, COLUMNS = jnp.array([1.0, -2.0, 3.0, -0.5, 0.7, 1.3]), _draw(6)
KERNEL, MEAN, STD = _draw(3, 3, 2, 4), jnp.array([[[0.4, 0.5]]]), jnp.array([[[0.2, 0.3]]])
IMAGE = jnp.asarray(rng.uniform(size=(6, 6, 2)))
LAYERS = _draw(3, 6, 6)

METHODS = {
    "epsilon": lambda f: jx.lrp(f, rules=rules.epsilon(1e-9)),
    "zplus": lambda f: jx.lrp(f, rules=composites.compose(rules.epsilon(1e-9), {"layer": rules.zplus(epsilon=1e-9)})),
    "gamma": lambda f: jx.lrp(f, rules=composites.compose(rules.epsilon(1e-9), {"layer": rules.gamma(epsilon=1e-9)})),
    "attention": lambda f: jx.lrp(f, rules=composites.attention(1e-9)),
    "guided_backprop": jx.guided_backprop,
    "deconvnet": jx.deconvnet,
}
BOXED = {
    "flat": lambda f: jx.lrp(f, rules=composites.epsilon_plus_flat()),
    "box": lambda f: jx.lrp(f, rules=composites.epsilon_gamma_box(-4.0, 4.0)),
    "deep_taylor": lambda f: jx.deep_taylor(f, low=-4.0, high=4.0),
}


@jax.custom_vjp
def _clipped(x):
    return x


_clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


def _attend(softmax, axis=-1):
    return lambda x: jnp.sum((softmax((x @ A) @ (x @ B).T / 2) @ (x @ C))[-1] * V), axis


def _over(e):
    return e / e.sum(-1, keepdims=True)


def _conv(h, padding="SAME"):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(h[None], KERNEL, (1, 1), padding, dimension_numbers=numbers)[0]


def _normed(norm):
    return lambda x: jnp.sum(norm(x @ A) * BIAS)


def _activated(act):
    return lambda x: jnp.sum(act(x @ A) @ B * BIAS)


RMS = _normed(lambda h: h * lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6))
GATED = lambda x: jnp.sum((x @ A) * jax.nn.sigmoid(x @ B))
SOFTMAX, SOFTMAX_0 = jax.nn.softmax, lambda s: jax.nn.softmax(s, axis=0)

# name: (written so, and the plain way)
PAIRS = {
    "exp over its sum": (_attend(lambda s: _over(jnp.exp(s))), _attend(SOFTMAX)),
    "exp written twice": (_attend(lambda s: jnp.exp(s) / jnp.exp(s).sum(-1, keepdims=True)), _attend(SOFTMAX)),
    "vmapped softmax": (_attend(jax.vmap(SOFTMAX, in_axes=1, out_axes=1)), _attend(SOFTMAX_0)),
    "softmax with where": (_attend(lambda s: SOFTMAX(s, where=jnp.ones(s.shape, bool))), _attend(SOFTMAX)),
    "masked by a product": (
        _attend(lambda s: _over(jnp.exp(s) * jnp.tril(jnp.ones_like(A)))),
        _attend(lambda s: SOFTMAX(jnp.where(jnp.tril(jnp.ones((6, 6), bool)), s, -jnp.inf))),
    ),
    "exp of log_softmax": (_attend(lambda s: jnp.exp(jax.nn.log_softmax(s))), _attend(SOFTMAX)),
    "exp(s − logsumexp)": (
        _attend(lambda s: jnp.exp(s - jax.nn.logsumexp(s, -1, keepdims=True))),
        _attend(SOFTMAX),
    ),
    "logsumexp by hand": (
        (lambda x: jnp.log(jnp.exp(x @ A).sum(-1)) @ V, None),
        (lambda x: jax.nn.logsumexp(x @ A, -1) @ V, None),
    ),
    "padded heads": (
        (lambda x: jnp.sum(((x @ A) @ jnp.concatenate([x @ B, jnp.zeros((1, 6))]).T)[:, :6] * C), None),
        (lambda x: jnp.sum(((x @ A) @ (x @ B).T) * C), None),
    ),
    "rms, power −½": (_normed(lambda h: h * (jnp.mean(h**2, -1, keepdims=True) + 1e-6) ** -0.5), RMS),
    "rms, power ½": (_normed(lambda h: h / jnp.power(jnp.mean(h**2, -1, keepdims=True) + 1e-6, 0.5)), RMS),
    "safe norm": (
        _normed(lambda h: (lambda n: h / jnp.where(n == 0, 1, n))(jnp.linalg.norm(h, axis=-1, keepdims=True))),
        _normed(lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True)),
    ),
    "cosine": (
        lambda x: (x[0] @ V) / jnp.linalg.norm(x[0]),
        lambda x: (x[0] / jnp.linalg.norm(x[0])) @ V,
    ),
    "sigmoid": (_activated(lambda z: 1 / (1 + jnp.exp(-z))), _activated(jax.nn.sigmoid)),
    "softplus": (_activated(lambda z: jnp.log(1 + jnp.exp(z))), _activated(jax.nn.softplus)),
    "where(z > 0)": (_activated(lambda z: jnp.where(z > 0, z, 0)), _activated(jax.nn.relu)),
    "where, written twice": (lambda x: jnp.sum(jnp.where(x @ A > 0, x @ A, 0) @ B * BIAS), _activated(jax.nn.relu)),
    "gate by einsum": (
        lambda x: jnp.sum(jnp.einsum("td,d->td", x @ A, jax.nn.sigmoid(x[0] @ B))),
        lambda x: jnp.sum((x @ A) * jax.nn.sigmoid(x[:1] @ B)),
    ),
    "gate by division": (lambda x: jnp.sum((x @ A) / (1 + jnp.exp(-(x @ B)))), GATED),
    "gate of another height": (lambda x: jnp.sum((x @ A) * (2 * jax.nn.sigmoid(x @ B)) / 2), GATED),
    "named": (
        lambda x: jnp.sum(jax.nn.relu(checkpoint_name(x @ A, "h") + BIAS) @ B),
        lambda x: jnp.sum(jax.nn.relu(x @ A + BIAS) @ B),
    ),
    "barrier": (
        lambda x: jnp.sum(jax.nn.relu(lax.optimization_barrier(x @ A) + BIAS) @ B),
        lambda x: jnp.sum(jax.nn.relu(x @ A + BIAS) @ B),
    ),
    "1 − x": (
        lambda x: jnp.sum(jax.nn.relu((1 - x) @ A) @ B),
        lambda x: jnp.sum(jax.nn.relu((-x + 1) @ A) @ B),
    ),
    "b − xW": (lambda x: jnp.sum(jax.nn.relu(BIAS - x @ A) @ B), lambda x: jnp.sum(jax.nn.relu(x @ -A + BIAS) @ B)),
    "outer scale": (
        lambda x: jnp.sum(jax.nn.relu((x @ A) * jnp.outer(ROWS, COLUMNS)) @ B),
        lambda x: jnp.sum(jax.nn.relu((x @ A) * jnp.asarray(np.outer(ROWS, COLUMNS))) @ B),
    ),
    "broadcast bias": (
        lambda x: jnp.sum(jax.nn.relu(jnp.sum(x, 1, keepdims=True) + BIAS) @ B),
        lambda x: jnp.sum(jax.nn.relu(jnp.broadcast_to(jnp.sum(x, 1, keepdims=True), (6, 6)) + BIAS) @ B),
    ),
    "subtracted segments": (
        lambda x: jnp.zeros(3).at[jnp.array([0, 1, 1, 2, 0, 2])].subtract(jax.nn.relu(x[0] @ A)) @ V[:3],
        lambda x: -jnp.zeros(3).at[jnp.array([0, 1, 1, 2, 0, 2])].add(jax.nn.relu(x[0] @ A)) @ V[:3],
    ),
    "smallest of segments": (
        lambda x: jnp.sum(jax.ops.segment_min(x[0] @ A, jnp.array([0, 0, 1, 1, 2, 2]), 3) @ B[:3]),
        lambda x: jnp.sum(jnp.min((x[0] @ A).reshape(3, 2), 1) @ B[:3]),
    ),
}


def _function(entry):
    return entry[0] if isinstance(entry, tuple) else entry


# A quotient of two values is no activation, so in x / (1 + exp(−s)) the exponential is one of its own.
OTHER_ACTIVATIONS = {("gate by division", "guided_backprop"), ("gate by division", "deconvnet")}


SPELLED = [(pair, method) for pair in PAIRS for method in METHODS if (pair, method) not in OTHER_ACTIVATIONS]


def _thirds(rows):
    """Every third, so that each spelling meets two methods, and each method many spellings."""
    rows, firsts, seconds = list(rows), [], []
    for first, second in rows:
        firsts += [first] * (first not in firsts)
        seconds += [second] * (second not in seconds)
    return [(a, b) for a, b in rows if (firsts.index(a) + seconds.index(b)) % 3 == 0]


@pytest.mark.rows(("pair", "method"), SPELLED, _thirds(SPELLED))
def test_another_spelling_gets_the_same_map(pair, method):
    written, plain = map(_function, PAIRS[pair])
    assert relative(written(X), plain(X)) < 1e-12
    assert relative(METHODS[method](written)(X), METHODS[method](plain)(X)) < 1e-6


def test_an_identity_with_a_derivative_of_its_own_keeps_it_where_derivatives_are_taken():
    """For relevance it is transparent; guided back-propagation uses the author's derivative."""
    written = lambda x: jnp.sum(jax.nn.relu(_clipped(x @ A) + BIAS) @ B)
    plain = lambda x: jnp.sum(jax.nn.relu(x @ A + BIAS) @ B)
    explain = lambda f: jx.lrp(f, rules=composites.epsilon_plus())
    assert relative(explain(written)(X), explain(plain)(X)) < 1e-12

    @jax.custom_vjp
    def scaled(x):
        return x @ A

    scaled.defvjp(lambda x: (x @ A, None), lambda _, g: (7 * g @ A.T,))
    linear = lambda x: jnp.sum(scaled(x) * BIAS)
    assert relative(jx.guided_backprop(linear)(X), jax.grad(linear)(X)) < 1e-12


def _unrolled(x):
    for w in LAYERS:
        x = jax.nn.relu(x @ w + BIAS)
    return jnp.sum(x)


def _scanned(x):
    return jnp.sum(lax.scan(lambda h, w: (jax.nn.relu(h @ w + BIAS), None), x, LAYERS)[0])


def _reversed(x):
    return jnp.sum(lax.scan(lambda h, w: (jax.nn.relu(h @ w + BIAS), None), x, LAYERS[::-1], reverse=True)[0])


def _nested(x):
    def two(h, ws):
        return lax.scan(lambda h, w: (jax.nn.relu(h @ w + BIAS), None), h, ws)[0], None

    return jnp.sum(jax.jit(lambda x: lax.scan(two, x, LAYERS[:, None])[0])(x))


SCANS = {"scanned": _scanned, "reversed": _reversed, "nested": _nested}
SCANNED = list(itertools.product(SCANS, [*BOXED, *METHODS]))


@pytest.mark.rows(("scanned", "method"), SCANNED, _thirds(SCANNED))
def test_the_first_layer_of_a_scan_is_first(scanned, method):
    explain = {**BOXED, **METHODS}[method]
    assert relative(jax.jit(explain(SCANS[scanned]))(X), explain(_unrolled)(X)) < 1e-9


# A layer is one layer however its products are written and broadcast.
_layer = lambda x: x @ A
_whole = lambda v, shape: jnp.broadcast_to(v, shape)
SUMS = {
    "broadcast": (lambda x: jnp.sum(A.T[None] * x[:, None, :], -1), _layer),
    "broadcast, other order": (lambda x: jnp.sum(x[:, :, None] * A[None], 1), _layer),
    "einsum, then sum": (lambda x: jnp.einsum("tb,bc->tbc", x, A).sum(1), _layer),
    "einsum of a batch": (lambda x: jnp.sum(jnp.einsum("tb,tbc->ctb", x, _whole(A, (6, 6, 6))), -1).T, _layer),
    "of rows": (lambda x: jax.vmap(lambda row: jax.vmap(lambda w: jnp.sum(row * w))(A.T))(x), _layer),
    "lone einsum": (lambda x: jnp.einsum("t,td->td", x[0], A), lambda x: _whole(x[0][:, None], (6, 6)) * A),
    "outer": (lambda x: jnp.outer(x[0], V), lambda x: _whole(x[0][:, None], (6, 6)) * _whole(V[None], (6, 6))),
    "kron": (
        lambda x: jnp.kron(x[:2, :3], A[:3, :2]),
        lambda x: (
            _whole(x[:2, None, :3, None], (2, 3, 3, 2)) * _whole(A[:3, :2][None, :, None], (2, 3, 3, 2))
        ).reshape(6, 6),
    ),
    "number": (lambda x: jnp.sum(x) * A, lambda x: _whole(jnp.sum(x)[None, None], (6, 6)) * A),
}
ALONE = ("lone einsum", "outer", "kron", "number")  # products without a sum are no layer that a box may be for
SUMMED = [
    (name, method)
    for name in SUMS
    for method in [*BOXED, *METHODS, "alpha_beta", "deeplift"]
    if name not in ALONE or method not in ("box", "deep_taylor")
]


@pytest.mark.rows(("name", "method"), SUMMED, _thirds(SUMMED))
def test_a_layer_written_as_products_and_a_sum_is_a_layer(name, method):
    known = {**BOXED, **METHODS, "deeplift": jx.deeplift}
    explain = known.get(method) or (lambda f: jx.lrp(f, rules=composites.epsilon_alpha2_beta1(1e-9)))
    written, plain = (lambda x, layer=layer: jnp.sum(jax.nn.relu(layer(x) + BIAS) @ B * BIAS) for layer in SUMS[name])
    assert relative(written(X), plain(X)) < 1e-12
    assert relative(explain(written)(X), explain(plain)(X)) < 1e-8


def _gates_before_a_loop(x):
    cell = lambda h, part: (part[0] * h + part[1], None)
    return lax.scan(cell, jnp.zeros(6), (jax.nn.sigmoid(x @ A), x @ B))[0] @ V


def _gates_before_two_loops(x):
    def rows(h, part):
        return lax.scan(lambda h, p: (h * (1 - p[0]) + p[1], None), h, part)[0], None

    parts = (1 - jax.nn.sigmoid(x @ A)).reshape(3, 2, 6), (x @ B).reshape(3, 2, 6)
    return lax.scan(rows, jnp.zeros(6), parts)[0] @ V


def _gates_before_a_branch(x):
    gate, h = jax.nn.sigmoid(x[0] @ A), jnp.zeros(6)
    for row in x @ B:
        h = lax.cond(row[0] > 0, lambda h, g, row: g * h + row, lambda h, g, row: row + h * g, h, gate, row)
    return h @ V


def _a_gate_that_is_carried(x):
    def cell(carry, row):
        h, gate = carry
        h = gate * h + row @ B
        return (h, jax.nn.sigmoid(row @ A)), None

    return lax.scan(cell, (jnp.zeros(6), jnp.ones(6)), x)[0][0] @ V


def _associative(x):
    join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
    return lax.associative_scan(join, (jax.nn.sigmoid(x @ A), x @ B))[1][-1] @ V


def _by_hand(gates):
    def score(x):
        h, before = jnp.zeros(6), jnp.ones(6)
        for row, inner in zip(x, x @ B, strict=True):
            h, before = gates(x, row, before) * h + inner, jax.nn.sigmoid(row @ A)
        return h @ V

    return score


GATES = {
    _gates_before_a_loop: lambda x, row, _: jax.nn.sigmoid(row @ A),
    _gates_before_two_loops: lambda x, row, _: 1 - (1 - jax.nn.sigmoid(row @ A)),
    _gates_before_a_branch: lambda x, row, _: jax.nn.sigmoid(x[0] @ A),
    _a_gate_that_is_carried: lambda x, row, before: before,
}


@pytest.mark.parametrize("score", GATES, ids=lambda f: f.__name__)
def test_a_gate_is_a_gate_wherever_it_is_made(score):
    plain = _by_hand(GATES[score])
    explain = lambda f: jx.lrp(f, rules=composites.attention(1e-9))
    assert relative(score(X), plain(X)) < 1e-12
    assert relative(explain(score)(X), explain(plain)(X)) < 1e-6


PREPROCESSED = {
    "plain": lambda x: _conv((x - MEAN) / STD),
    "padded": lambda x: _conv(jnp.pad((x - MEAN) / STD, ((1, 1), (1, 1), (0, 0))), "VALID"),
    "shuffled": lambda x: _conv(((x - MEAN) / STD)[..., jnp.array([0, 1])]),
    "in two parts": lambda x: (lambda h: _conv(jnp.concatenate([h[:3], h[3:]])))((x - MEAN) / STD),
    "negated twice": lambda x: _conv((MEAN - x) / -STD),
    "shared": lambda x: (lambda h: (_conv(h) + _conv(h)) / 2)((x - MEAN) / STD),
}


@functools.cache
def _boxed(name):
    score = lambda x: jnp.sum(jax.nn.relu(PREPROCESSED[name](x)))
    explainers = {
        "lrp": jx.lrp(score, rules=composites.epsilon_gamma_box(0.0, 1.0)),
        "deep_taylor": jx.deep_taylor(score, low=jnp.zeros((6, 6, 2)), high=1.0),
    }
    return jax.jit(lambda x: {name: explain(x) for name, explain in explainers.items()})(IMAGE)


@pytest.mark.parametrize("name", [name for name in PREPROCESSED if name != "plain"])
def test_a_box_is_in_units_of_the_input_whatever_lies_before_the_layer(name):
    maps, plain = _boxed(name), _boxed("plain")
    assert relative(maps["lrp"], plain["lrp"]) < 1e-6
    assert relative(maps["deep_taylor"], plain["deep_taylor"]) < 1e-6
    assert jnp.all(maps["deep_taylor"] >= 0)


def test_a_box_beside_an_index_that_depends_on_the_input():
    def score(x, bend):
        picked = lax.dynamic_slice(x, (jnp.argmax(x),), (1,))[0]
        return bend(picked) + jax.nn.relu(jnp.pad((x - 0.4) / 2, (1, 0))[1:] @ A) @ V

    explain = lambda bend: jx.lrp(lambda x: score(x, bend), rules=composites.epsilon_gamma_box(-1.0, 1.0))(V / 3)
    alone = explain(lambda picked: 0.0 * picked)
    assert relative(explain(jnp.tanh).sum() - alone.sum(), jnp.tanh(V.max() / 3)) < 1e-5


def test_a_box_behind_a_nonlinear_preprocessing_is_refused():
    with pytest.raises(jx.JaxplainError, match="units of the explained input") as error:
        jx.deep_taylor(lambda x: jnp.sum(jax.nn.relu(jnp.sqrt(x) @ A)), low=0.0, high=1.0)(IMAGE[0, :, :1].T)
    assert "rules.flat()" in str(error.value)


def test_a_rule_for_first_layers_that_fits_none_is_refused():
    def score(x):
        cell = lambda h, part: (jnp.tanh(jnp.concatenate([part, h]) @ jnp.concatenate([A, B])), None)
        return jnp.sum(lax.scan(cell, x[0], x[1:])[0])

    with pytest.raises(jx.JaxplainError, match="no layer of the score is last"):
        jx.lrp(score, rules=composites.compose(composites.epsilon_plus(), {"last": rules.flat()}))(X)


def test_a_value_inside_an_activation_that_is_read_elsewhere_has_a_node():
    def score(x):
        doubled = 2.0 * x
        return jnp.sum(jax.nn.relu(x) + doubled) + jnp.sum(doubled @ A)

    assert relative(jx.lrp(score, rules=rules.epsilon(1e-13))(V), V * jax.grad(score)(V)) < 1e-9


def test_softmax_and_log_softmax_survive_extreme_logits():
    logits = jnp.array([0.0, 87.0, 0.0], jnp.float32)
    shared = jx.lrp(lambda x: -jnp.log(jax.nn.softmax(x)[0]), rules=rules.epsilon())(logits)
    assert relative(shared, [0.0, -(87.0**2), 0.0]) < 1e-6  # x_k (R_k − p_k ΣR) with R = 87 at the first
    masked = lambda x: jax.nn.log_softmax(x + jnp.array([0.0, -jnp.inf, 0.0], x.dtype))[0]
    assert jnp.all(jnp.isfinite(jx.lrp(masked, rules=rules.epsilon())(logits / 10)))


@pytest.mark.parametrize("low", [-1e9, -jnp.inf, float(np.finfo(np.float64).min)], ids=str)
def test_the_gradient_of_relevance_through_a_masked_softmax_is_its_derivative(low):
    def score(x):
        weights = SOFTMAX(jnp.where(jnp.tril(jnp.ones((6, 6), bool)), (x @ A) @ (x @ B).T, low))
        return jnp.sum((weights @ (x @ C))[-1])

    part = lambda x: jnp.sum(jx.lrp(score, rules=composites.attention(1e-3))(x)[0] * V)
    direction = _draw(6, 6)
    difference = (part(X / 3 + 1e-6 * direction) - part(X / 3 - 1e-6 * direction)) / 2e-6
    assert relative(jnp.sum(jax.grad(part)(X / 3) * direction), difference) < 1e-5


QUOTIENTS = {
    "constant over a number": lambda x: jnp.sum(V / jnp.sum(x[0] ** 2)),
    "array over a number": lambda x: jnp.sum((x @ A) / jnp.sum(jnp.tanh(x @ B))),
    "number times an array": lambda x: jnp.sum(jax.nn.relu(x[0, 0] * V)),
    "array times a number": lambda x: jnp.sum((x @ A) * jnp.sum(x @ B)),
}


@pytest.mark.parametrize("name", QUOTIENTS)
def test_quotients_and_products_with_a_number_conserve(name):
    for rule in (rules.epsilon(1e-12), rules.zplus(epsilon=1e-12)):
        without_layers = composites.compose(rules.epsilon(1e-12), {"any": rule})
        total = jnp.sum(jx.lrp(QUOTIENTS[name], rules=rules.epsilon(1e-12))(X))
        assert relative(total, QUOTIENTS[name](X)) < 1e-6
        jx.lrp(QUOTIENTS[name], rules=without_layers)(X)  # is not refused


def test_logsumexp_hands_on_all_of_its_relevance():
    score = lambda x: jax.nn.logsumexp(jax.nn.relu(x[0] @ A) @ B)
    assert relative(jnp.sum(jx.lrp(score, rules=rules.epsilon(1e-12))(X)), score(X)) < 1e-6


def test_epsilon_zero_is_no_relevance_where_there_is_none():
    score = lambda x: jax.nn.relu(x @ A) @ V
    assert jnp.all(jx.lrp(score, rules=rules.epsilon(0.0))(jnp.zeros(6)) == 0)


def test_a_long_chain_of_layers_is_analyzed_in_time():
    """The cost of the analysis grows in proportion to the program; deep programs meet no limit of recursion."""

    def score(x):
        for _ in range(300):
            x = x + jax.nn.gelu(RMS_PARTS(x) @ A)
        return jnp.sum(x * jax.nn.sigmoid(x))

    kinds = [node.kind for node in jx.layers(score)(X)]
    assert kinds.count("normalization") == 300 and kinds.count("activation") == 301


def RMS_PARTS(x):  # noqa: N802
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


TWO, Y = jnp.eye(2), jnp.array([0.5, 0.25])
U, ONES = jnp.array([1.0, 2.0]), jnp.ones(2)

# A literal next to a ReLU is not part of it, just as an array is not.
NUMBERS = {
    "reflected": (lambda x: jax.nn.relu(-(x @ TWO)) @ U, lambda x: jax.nn.relu((x @ TWO) * -ONES) @ U, -Y),
    "two relus": (
        lambda x: jax.nn.relu(1 - jax.nn.relu(x @ TWO)) @ U,
        lambda x: jax.nn.relu(ONES - jax.nn.relu(x @ TWO)) @ U,
        Y,
    ),
    "scaled and shifted": (
        lambda x: (2 * jax.nn.relu(x @ TWO) + 1) @ U,
        lambda x: (2 * ONES * jax.nn.relu(x @ TWO) + ONES) @ U,
        Y,
    ),
}


NUMBERED = list(itertools.product(NUMBERS, [*METHODS, "plus"]))


@pytest.mark.rows(("name", "method"), NUMBERED, _thirds(NUMBERED))
def test_a_number_beside_a_relu_is_like_an_array(name, method):
    written, plain, x = NUMBERS[name]
    explain = {**METHODS, "plus": lambda f: jx.lrp(f, rules=composites.epsilon_plus())}[method]
    np.testing.assert_allclose(explain(written)(x), explain(plain)(x), atol=1e-6)


def _bernoulli(x):
    p = jax.nn.sigmoid(x @ TWO)
    q = 1 - p
    return (p * q) @ U + q @ U


def _one_minus(x):
    s = 1 - jax.nn.relu(x @ TWO)
    return jnp.maximum(s, 0.1 * s) @ U + s @ U


def _reflected_silu(x):
    z = -x
    s = jax.nn.silu(z)
    return (s + z) @ U + s @ U


def _renormalized(x):
    p = jnp.exp(jax.nn.log_softmax(x)) * U
    return (p / p.sum()) @ U


def _twice(x):
    h = x - jax.nn.logsumexp(x)
    return (jnp.exp(h) / jnp.exp(h).sum()) @ U


@pytest.mark.parametrize("score", [_bernoulli, _one_minus, _reflected_silu, _renormalized, _twice])
def test_shared_parts_of_formulas_leave_no_gap(score):
    assert jnp.all(jnp.isfinite(jx.lrp(score, rules=composites.attention())(Y)))
    assert jnp.all(jnp.isfinite(jx.guided_backprop(score)(Y)))


def test_an_outer_product_with_itself_is_shared_by_both_factors():
    pick = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    got = jx.lrp(lambda x: jnp.sum(jnp.einsum("i,j->ij", x, x) * pick), rules=composites.attention(1e-9))(Y)
    np.testing.assert_allclose(got, [0.0625, 0.0625], atol=1e-7)


def test_a_softmax_with_one_more_term_has_its_own_derivative():
    def score(x, shift):
        e = jnp.exp(x - shift(x.max()))
        return (e / (1 + e.sum())) @ U

    # With a stopped shift it is a softmax; with a shift that has a derivative it is none, and is not taken for one.
    held = lambda x: score(x, lax.stop_gradient)
    p = jnp.exp(Y - Y.max()) / (1 + jnp.exp(Y - Y.max()).sum())
    np.testing.assert_allclose(jx.lrp(held, rules=composites.attention())(Y), Y * (p * U - p * (p @ U)), rtol=1e-4)
    assert "softmax" not in [node.kind for node in jx.layers(lambda x: score(x, lambda m: m))(Y)]
    floored = lambda x: (jnp.exp(x) / jnp.maximum(jnp.exp(x).sum(), 50.0)) @ U
    assert "softmax" not in [node.kind for node in jx.layers(floored)(Y)]


def test_a_box_goes_through_sums_of_either_sign_and_refuses_arrays_in_bodies():
    x = jnp.array([[0.2, 0.9], [0.5, 0.1]])
    head = lambda h: jax.nn.relu(h @ jnp.ones(2) + 1)
    written = lambda x: head(jnp.stack([x[:, 0], -x[:, 1]], -1).sum(-1))
    got = jx.lrp(written, rules=composites.epsilon_gamma_box(0.0, 1.0, epsilon=1e-9))(x)
    want = jx.lrp(head, rules=composites.epsilon_gamma_box(-1.0, 1.0, epsilon=1e-9))(x[:, 0] - x[:, 1])
    np.testing.assert_allclose(got.sum(1), want, atol=1e-6)
    block = jax.checkpoint(lambda x: jax.nn.relu(x @ jnp.ones((2, 1))))
    low = jnp.zeros((2, 2)).at[0, 1].set(-3.0)
    with pytest.raises(jx.JaxplainError, match="arrays, inside"):
        jx.lrp(lambda x: block(x).sum(), rules=composites.epsilon_gamma_box(low, 1.0))(x)


def test_empty_scans_and_scans_in_calls_with_a_derivative_of_their_own():
    empty = lambda x: lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, jnp.zeros((0, 2, 2)))[0].sum()
    np.testing.assert_array_equal(jx.guided_backprop(empty)(Y), ONES)
    two = jnp.stack([TWO, 2 * TWO])
    run = lambda x: lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, two)[0]
    block = jax.custom_vjp(run)
    block.defvjp(lambda x: (run(x), x), lambda x, g: (g,))
    want = jx.deep_taylor(lambda x: run(x) @ U)(Y)
    np.testing.assert_allclose(jx.deep_taylor(lambda x: block(x) @ U)(Y), want, rtol=1e-9)


def test_the_outputs_of_a_pattern_have_the_order_of_the_program():
    def score(x):
        with jax.named_scope("block"):
            h = jnp.tanh(x @ TWO)
            k = jnp.sin(h)
            both = h * k
            end = jnp.concatenate([h, k, both])
        return (h + k + both) @ U + end.sum()

    found = analyze(jax.make_jaxpr(score)(Y), patterns=[rules.scope("block", "mine")])
    (node,) = (n for n in found.nodes if n.kind == "mine")
    assert [v.source.primitive for v in node.outputs] == ["tanh", "sin", "mul", "concatenate"]


def _random_program(seed):
    """A random program of elementwise formulas, layers, sums and reuse; every value may be read several times."""
    draw = np.random.default_rng(seed)
    weights = jnp.asarray(draw.normal(size=(4, 4)))
    unary = [
        jax.nn.relu, jax.nn.silu, jnp.tanh, jax.nn.sigmoid, lambda v: -v, lambda v: 1 - v, lambda v: 2 * v + 1,
        jnp.square, lambda v: jnp.exp(-(v**2)), lambda v: v @ weights, jax.nn.softmax,
        lambda v: v / jnp.sqrt(jnp.mean(v**2) + 1e-5), lambda v: jnp.maximum(v, 0.1 * v),
        lambda v: v - jnp.mean(v), jax.nn.log_softmax, lambda v: v + weights[0],
    ]  # fmt: skip
    binary = [jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, lambda a, b: a * jax.nn.sigmoid(b)]
    steps = [
        (binary[draw.integers(len(binary))], draw.integers(0, n, 2))
        if draw.random() < 0.4
        else (unary[draw.integers(len(unary))], draw.integers(max(0, n - 3), n, 1))
        for n in range(1, 11)
    ]

    def score(x):
        values = [x]
        for function, operands in steps:
            values.append(function(*(values[i] for i in operands)))
        return jnp.sum(values[-1] * V[:4]) + jnp.sum(values[-2])

    return score


@pytest.mark.rows("seed", range(120), range(20))
def test_the_nodes_of_a_random_program_are_the_program(seed):
    """With every node's own transpose as its rule, propagation is the gradient: no value is lost or counted twice."""
    score, x = _random_program(seed), jnp.asarray(np.random.default_rng(seed).normal(size=4))
    analysis = analyze(jax.make_jaxpr(score)(x))
    transposed = lambda node: lambda layer, arriving: layer.transpose(*arriving)
    keeps = {"normalization"}  # holds its statistic constant

    def run(x):
        return replay(analysis, lambda node: None if node.kind in keeps else transposed(node))(x)[0]

    (value, gradient), want = jax.jit(lambda x: (jax.value_and_grad(run)(x), jax.value_and_grad(score)(x)))(x)
    assert relative(value, want[0]) < 1e-12
    assert relative(gradient, want[1]) < 1e-9


def test_bounds_behind_preprocessing_in_a_body_are_refused():
    rules = jx.composites.epsilon_gamma_box(-3.0, 3.0)
    score = lambda x: jnp.sum(jax.nn.relu(jax.checkpoint(lambda x: 2 * x - 1)(x) @ jnp.eye(4)))
    with pytest.raises(jx.SettingError, match="units of the explained input"):
        jx.lrp(score, rules=rules)(jnp.ones(4))
