"""Randomization: order of layers, curves by hand, maps that ignore weights or class, similarities as in SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen, nnx
from helpers import relative, text
from jax import lax

import jaxplain as jx
from jaxplain._analysis.weight_order import weights_in_order
from jaxplain.metrics import _randomization as rd

KEYS = jax.random.split(jax.random.key(0), 8)


def _array(i, *shape):
    return jax.random.normal(KEYS[i], shape)


# The order of the dict is not that of the forward pass: first → middle → behind → apex. The last two are linear.
PARAMS = {
    "first": {"kernel": _array(0, 6, 8), "bias": _array(1, 8)},
    "apex": {"kernel": _array(2, 5, 3), "bias": _array(3, 3)},
    "middle": {"kernel": _array(4, 8, 7), "bias": _array(5, 7), "steps": jnp.array([3, 4]), "key": KEYS[0]},
    "behind": {"kernel": _array(6, 7, 5)},
}
X = jnp.abs(_array(7, 6))


def _apply(params, x):
    for name in ("first", "middle"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["behind"]["kernel"] @ params["apex"]["kernel"] + params["apex"]["bias"]


def _gradient(params):
    return lambda x, label: jax.grad(lambda x: _apply(params, x)[label])(x)


TOP_DOWN = ("apex", "behind", "middle", "first")


def _cast(params, x):
    """Weights are touched before the network begins, in the order of the dict."""
    return _apply(jax.tree.map(lambda w: 1 * w if jnp.issubdtype(w.dtype, jnp.floating) else w, params), x)


def _scanned(params, x):
    return jax.lax.scan(lambda c, _: (jnp.tanh(_apply(params, c) @ jnp.ones((3, 6))), None), x, None, 2)[0][:3]


def _delayed(params, x):
    """The data reach the carry of the loop only after its first iteration."""
    return jax.lax.scan(lambda c, _: (x, _apply(params, c)), jnp.ones(6), None, 2)[1][1]


def _branches(params, x):
    return jax.lax.cond(x[0] > 0, lambda x: _apply(params, x), lambda x: x[:3], x)


@pytest.mark.parametrize(
    "apply", [_apply, _cast, jax.jit(_apply), jax.checkpoint(_apply), _scanned, _delayed, _branches]
)
@pytest.mark.parametrize(
    "method",
    [
        jax.grad,
        lambda f: f,
        jx.input_x_gradient,
        lambda f: jx.integrated_gradients(f, n_steps=2),
        lambda f: jx.integrated_gradients(f, n_steps=2, tol=0.1),  # a while loop
    ],
)
def test_layers_are_found_in_the_order_of_the_forward_pass(method, apply):
    make = lambda params: method(lambda x: apply(params, x)[1])
    assert rd.parameter_randomization(make).layers(PARAMS, X) == TOP_DOWN


def test_other_orders_and_given_layers():
    make = lambda params: jx.lrp(lambda x, c: _apply(params, x)[c], rules=jx.rules.epsilon())
    names = lambda **settings: rd.parameter_randomization(make, **settings).layers(PARAMS, X, 1)
    assert names() == names(order="independent") == TOP_DOWN
    assert names(order="bottom_up") == TOP_DOWN[::-1] and names(order="all") == ("all",)
    assert names(layers=["first", "middle/kernel"]) == ("middle/kernel", "first")
    flat = {"w": X, "v": X}  # at the root each is a layer by itself
    score = lambda p: lambda x: jax.grad(lambda x: jnp.tanh(x * p["w"]) @ p["v"])(x)
    assert rd.parameter_randomization(score).layers(flat, X) == ("v", "w")


def _floats(f, params):
    return jax.tree.map(lambda w: f(w) if jnp.issubdtype(w.dtype, jnp.floating) else w, params)


def _reversed(_, params):
    """Other weights, cheaper to compile than a permutation."""
    return _floats(lambda w: w.ravel()[::-1].reshape(w.shape), params)


_EXPLAIN = jax.jit(lambda params, x, label: _gradient(params)(x, label))


def _by_hand(order, layers=TOP_DOWN, x=X, label=1):
    """The curve by its definition: a loop over models."""
    fresh, trained, curve = _reversed(None, PARAMS), np.abs(_EXPLAIN(PARAMS, x, label)), []
    for i in range(len(layers)):
        chosen = layers[i : i + 1] if order == "independent" else layers[: i + 1]
        mixed = {name: (fresh if name in chosen else PARAMS)[name] for name in PARAMS}
        curve.append(scipy.stats.spearmanr(trained, np.abs(_EXPLAIN(mixed, x, label)))[0])
    return np.array(curve)


@pytest.mark.parametrize("order", ["cascading", "independent", "bottom_up", "all"])
def test_curves_are_their_definition(order, key):
    layers = TOP_DOWN[::-1] if order == "bottom_up" else TOP_DOWN
    want = _by_hand(order, layers)
    want = want[-1:] if order == "all" else want
    measure = rd.parameter_randomization(_gradient, order=order, draw=_reversed, chunk_size=3)
    assert relative(jax.jit(measure.curve)(PARAMS, X, 1, key=key), want) < 1e-10
    if order == "cascading":
        assert relative(jax.jit(measure)(PARAMS, X, 1, key=key), want.mean()) < 1e-10
        given = rd.parameter_randomization(_gradient, draw=_reversed, layers=["first", "middle"], key=key)
        # From the top of what is named: apex and behind stay.
        assert relative(jax.jit(given.curve)(PARAMS, X, 1), _by_hand(order, ("middle", "first"))) < 1e-10


def test_transforms(key):
    measure = rd.parameter_randomization(_gradient, draw=_reversed, key=key)
    xs, labels = jnp.stack([X, X[::-1]]), jnp.array([0, 2])
    want = [_by_hand("cascading", x=x, label=label) for x, label in zip(xs, labels, strict=True)]
    assert relative(jax.jit(jax.vmap(measure.curve, in_axes=(None, 0, 0)))(PARAMS, xs, labels), want) < 1e-10
    run = jx.batched(measure, in_axes=(None, 0, 0), progress=False, batch_size=2)
    assert relative(run(PARAMS, xs, labels), np.mean(want, axis=1)) < 1e-10


def test_permuted_weights_and_keys(key):
    """The default draw, by its definition: maps are the weights themselves here."""
    weights = {"w": _array(0, 3, 4), "b": _array(1, 5), "n": jnp.arange(3), "rate": 0.5, "act": jax.nn.gelu}
    as_map = lambda p: lambda x: {name: p[name] for name in ("w", "b", "n")}
    check = lambda test: rd.parameter_randomization(
        as_map, order="all", absolute=False, similarity=lambda a, b: jnp.where(jnp.all(test(a, b)), 1.0, 0.0)
    )
    first = dict(zip("bw", jax.random.split(jax.random.fold_in(key, 0), 2), strict=True))
    for test in (
        lambda a, b: jnp.array([jnp.any(a[n] != b[n]) for n in "wb"]),
        lambda a, b: jnp.array([jnp.all(jnp.sort(a[n].ravel()) == jnp.sort(b[n].ravel())) for n in "wb"]),
        lambda a, b: a["n"] == b["n"],
        lambda a, b: b["b"] == jax.random.permutation(first["b"], weights["b"]),
        lambda a, b: b["w"] == jax.random.permutation(first["w"], weights["w"].ravel()).reshape(3, 4),
    ):
        assert check(test)(weights, X, key=key) == 1
    one = jax.jit(rd.parameter_randomization(_gradient, order="all"))
    assert one(PARAMS, X, 1, key=key) == one(PARAMS, X, 1, key=key) != one(PARAMS, X, 1, key=jax.random.key(1))


def test_an_explanation_that_ignores_the_weights_is_the_same_at_every_step(key):
    for make in (lambda params: lambda x, label: x, lambda params: lambda x, label: x + 0 * _apply(params, x)[label]):
        measure = rd.parameter_randomization(make, draw=_reversed)
        assert len(measure.layers(PARAMS, X, 1)) == 4
        np.testing.assert_allclose(jax.jit(measure.curve)(PARAMS, X, 1, key=key), 1, rtol=1e-12)
    # A linear model with permuted weights: a permuted gradient.
    linear = rd.parameter_randomization(lambda w: jx.gradient(lambda x: x @ w), similarity="pearson", absolute=False)
    drawn = jax.random.split(jax.random.fold_in(key, 0), 1)[0]
    want = np.corrcoef(PARAMS["first"]["bias"], jax.random.permutation(drawn, PARAMS["first"]["bias"]))[0, 1]
    assert relative(linear(PARAMS["first"]["bias"], PARAMS["first"]["bias"], key=key), want) < 1e-12


def test_a_draw_of_the_users_own(key):
    draw = lambda key, params: _floats(lambda w: -2 * w, params)
    linear = lambda **s: rd.parameter_randomization(lambda w: jx.gradient(lambda x: x @ w), draw=draw, **s)(
        X, X, key=key
    )
    np.testing.assert_allclose(linear(), 1)
    np.testing.assert_allclose(linear(absolute=False), -1)
    np.testing.assert_allclose(linear(absolute=False, similarity="cosine"), -1)
    np.testing.assert_allclose(linear(similarity=lambda a, b: jnp.sum(b - a)), jnp.sum(jnp.abs(X)))
    # A step that changes nothing tests nothing.
    constant = {**PARAMS, "apex": jax.tree.map(jnp.ones_like, PARAMS["apex"])}
    curve = rd.parameter_randomization(_gradient, order="independent").curve(constant, X, 1, key=key)
    assert np.isnan(curve[0]) and np.isfinite(curve[1:]).all()
    assert (
        np.isnan(rd.parameter_randomization(_gradient).curve(constant, X, 1, key=key)).tolist() == [True] + [False] * 3
    )


def test_flax_models(key):
    x = X.astype(jnp.float32)

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(5, name="z_first")(x)
            x = linen.BatchNorm(use_running_average=True, name="norm")(nnx.relu(x))
            return linen.Dense(3, name="a_last")(x)

    model = Linen()
    variables = model.init(key, x[None])
    make = lambda v: jx.gradient(jx.logit(lambda x: model.apply(v, x)))
    given = ["params/z_first", "params/a_last"]
    measure = rd.parameter_randomization(make, layers=given, draw=lambda key, _: model.init(key, x[None]))
    assert measure.layers(variables, x, 1) == ("params/a_last", "params/z_first")
    assert np.isfinite(jax.jit(measure)(variables, x, 1, key=key))
    found = rd.parameter_randomization(make).layers(variables, x, 1)
    assert found[0] == "params/a_last" and found[3] == "params/z_first"
    assert set(found[1:3]) == {"params/norm", "batch_stats/norm"}  # one layer, in two collections

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.z_first, self.a_last = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
            self.noise = nnx.Dropout(0.5, rngs=rngs, deterministic=True)

        def __call__(self, x):
            return self.a_last(self.noise(nnx.relu(self.z_first(x))))

    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    measure = rd.parameter_randomization(lambda s: jx.gradient(jx.logit(nnx.merge(graph, s))))
    assert measure.layers(state, x, 1) == ("a_last", "z_first")
    assert np.isfinite(jax.jit(measure.curve)(state, x, 1, key=key)).all()


def test_equinox_models(key):
    import equinox as eqx

    model = eqx.nn.MLP(6, 3, 5, 1, key=key)
    measure = rd.parameter_randomization(lambda m: jx.gradient(lambda x, c: m(x)[c]))
    assert measure.layers(model, X, 1) == ("layers/1", "layers/0")  # beside them: functions, numbers
    assert np.isfinite(jax.jit(lambda x: measure.curve(model, x, 1, key=key))(X)).all()


def test_stochastic_explainers_have_one_key_for_all_steps(key):
    def noisy(x, c, *, key):
        return jax.random.normal(key, x.shape)

    noisy.needs_key = True
    measure = rd.parameter_randomization(lambda params: noisy, draw=_reversed)
    np.testing.assert_allclose(jax.jit(measure)(PARAMS, X, 1, key=key), 1)
    by_class = rd.random_logit(noisy, n_classes=3, similarity="spearman", average=True)
    assert by_class.needs_key
    np.testing.assert_allclose(jax.jit(by_class)(X, 1, key=key), 1)


def test_random_logit(key):
    explain = _gradient(PARAMS)
    cosine = lambda a, b: float(np.abs(a) @ np.abs(b) / np.linalg.norm(a) / np.linalg.norm(b))
    want = [[cosine(explain(X, c), explain(X, d)) for d in range(3)] for c in range(3)]
    for c in range(3):
        others = [want[c][d] for d in range(3) if d != c]
        average = rd.random_logit(explain, n_classes=3, average=True, similarity="cosine")
        assert not average.needs_key and relative(average(X, c), np.mean(others)) < 1e-10
    one = jax.jit(rd.random_logit(explain, n_classes=3, similarity="cosine"))
    drawn = jax.vmap(lambda k: one(X, 1, key=k))(jax.random.split(key, 40))
    np.testing.assert_allclose(np.unique(np.round(drawn, 10)), np.sort([want[1][0], want[1][2]]), rtol=1e-8)
    j = int(jax.random.randint(jax.random.fold_in(key, 0), (), 0, 2))
    assert relative(one(X, 1, key=key), want[1][j + (j >= 1)]) < 1e-10
    assert np.isnan(one(X, 3, key=key)) and np.isnan(one(X, -1, key=key))
    ignoring = rd.random_logit(lambda label, x: x, n_classes=4, argnum=0, similarity="spearman", average=True)
    with pytest.raises(jx.SettingError, match="cannot be an explained argument"):
        ignoring(2, X)
    second = lambda c, x: x
    second.argnums = 1
    np.testing.assert_allclose(
        rd.random_logit(second, n_classes=4, argnum=0, similarity="spearman", average=True)(2, X), 1
    )


ROW, COLUMN = np.mgrid[:9, :11]
A = np.sin(0.7 * ROW + 0.3 * COLUMN) + 0.1 * ROW
B = np.cos(0.5 * ROW * COLUMN) + 0.2 * A


def test_similarities():
    # scikit-image 0.26, structural_similarity of maps over their largest |value|, data_range of both together.
    np.testing.assert_allclose(jx.metrics.similarity.ssim(A, B), 0.10121221325563388, rtol=1e-10)
    np.testing.assert_allclose(jx.metrics.similarity.ssim(abs(A), abs(B)), 0.021479281539052306, rtol=1e-9)
    channels = np.stack([A, B], -1), np.stack([B, A**2], -1)
    np.testing.assert_allclose(jx.metrics.similarity.ssim(*channels), 0.058969822329140886, rtol=1e-10)
    ties = np.round(A), np.round(B)
    np.testing.assert_allclose(jx.metrics.similarity.spearman(*ties), 0.17622858731156366, rtol=1e-10)
    np.testing.assert_allclose(jx.metrics.similarity.pearson(A, B), 0.2354433154929017, rtol=1e-10)
    np.testing.assert_allclose(
        jx.metrics.similarity.cosine(A, B), (A * B).sum() / np.linalg.norm(A) / np.linalg.norm(B), rtol=1e-10
    )
    half = jx.metrics.similarity.spearman({"a": A[:4], "b": A[4:]}, {"a": B[:4], "b": B[4:]})
    np.testing.assert_allclose(half, jx.metrics.similarity.spearman(A, B), rtol=1e-12)


@pytest.mark.parametrize(
    "similarity",
    [
        jx.metrics.similarity.spearman,
        jx.metrics.similarity.pearson,
        jx.metrics.similarity.cosine,
        jx.metrics.similarity.ssim,
    ],
)
def test_similarities_of_any_scale_of_itself_and_of_constants(similarity):
    a, b = (jnp.asarray(v, jnp.float32) for v in (A, B))
    np.testing.assert_allclose(similarity(a, a), 1, rtol=1e-6)
    want = similarity(a, b)
    assert want == similarity(b, a) or similarity is not jx.metrics.similarity.spearman
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(similarity(a * jnp.float32(scale), b), want, rtol=2e-4)
    np.testing.assert_allclose(jax.jit(jax.vmap(similarity))(a[None], b[None])[0], want, rtol=1e-5)
    level = 0.0 if similarity is jx.metrics.similarity.cosine else 0.1  # whose mean is not 0.1
    assert np.isnan(similarity(a, jnp.full_like(a, level))) and np.isnan(similarity(jnp.full_like(a, level), a))
    assert similarity(a.astype(jnp.bfloat16), b).dtype == jnp.float32


def test_what_is_not_finite_or_constant_is_nan(key):
    for bad in (jnp.nan, jnp.inf, 0.0):
        make = lambda params, b=bad: (
            lambda x, c: jnp.where(params["apex"]["bias"][0] == PARAMS["apex"]["bias"][0], x, b)
        )
        away = lambda key, params: _floats(lambda w: w + 1, params)
        measure = rd.parameter_randomization(make, draw=away, layers=["first", "apex"], order="independent")
        curve = jax.jit(measure.curve)(PARAMS, X, 1, key=key)
        assert np.isnan(curve[0]) and np.isclose(curve[1], 1)
        lost = rd.random_logit(lambda x, c, b=bad: jnp.where(c == 1, x, b), n_classes=2, similarity="spearman")
        assert np.isnan(lost(X, 1, key=key))


def test_errors(key):
    gradient, near = jx.gradient(lambda x, c: _apply(PARAMS, x)[c]), dict(n_classes=3, similarity="spearman")
    randomize = rd.parameter_randomization
    for make, words in (
        (lambda: randomize(gradient), "must make an explainer from weights"),
        (lambda: randomize(PARAMS), "must make an explainer from weights"),
        (lambda: randomize(lambda p: gradient)(PARAMS, X, 1, key=key), "closes over others of the same shapes"),
        (lambda: randomize(lambda p: 3)(PARAMS, X, 1, key=key), "must return an explainer"),
        (lambda: randomize(_gradient, order="top_down"), "unknown `order`"),
        (lambda: randomize(_gradient, similarity="l2"), "unknown `similarity`"),
        (lambda: randomize(_gradient, layers="first"), "sequence of path prefixes"),
        (lambda: randomize(_gradient, draw=3), "`draw` must be a function"),
        (lambda: randomize(_gradient, layers=["fir"]).layers(PARAMS, X, 1), "prefixes of apex, behind, first, middle"),
        (lambda: randomize(_gradient, layers=["first", "first/bias"]).layers(PARAMS, X, 1), "some weights twice"),
        (lambda: randomize(_gradient)(PARAMS, X, 1), "needs a random key"),
        (lambda: randomize(_gradient)(PARAMS, key=key), "needs the weights and the input"),
        (lambda: randomize(_gradient)({"n": 3}, X, 1, key=key), "hold no float array"),
        (
            lambda: randomize(_gradient, draw=lambda k, p: p["first"])(PARAMS, X, 1, key=key),
            "the same structure and shapes",
        ),
        (lambda: randomize(_gradient, similarity=lambda a, b: a)(PARAMS, X, 1, key=key), "must return one number"),
        (lambda: randomize(_gradient, similarity="ssim")(PARAMS, X, 1, key=key), "similarity='spearman'"),
        (lambda: rd.random_logit(gradient, n_classes=1), "`n_classes`"),
        (lambda: rd.random_logit(gradient(X, 1), **near), "not its result"),
        (lambda: rd.random_logit(gradient, **near)(X, 3, key=key), "there is no class 3"),
        (lambda: rd.random_logit(gradient, **near)(X, 1.0, key=key), "one integer for one example"),
        (lambda: rd.random_logit(gradient, **near)(X, key=key), "no argument 1"),
        (lambda: rd.random_logit(gradient, **near)(X, 1), "needs a random key"),
        (lambda: jx.metrics.similarity.spearman(A, A[:3]), "different shapes"),
    ):
        with pytest.raises(jx.JaxplainError, match=words) as error:
            make()
        assert text(error).startswith("metrics.")


def test_layers_that_test_nothing_do_not_count(key):
    settings = {"draw": _reversed, "key": key}
    want = rd.parameter_randomization(_gradient, **settings)(PARAMS, X, 1)
    # A head that this explanation does not use.
    more = {**PARAMS, "another_head": {"kernel": _array(7, 3, 3)}}
    make = lambda params: _gradient({name: params[name] for name in PARAMS})
    assert relative(rd.parameter_randomization(make, **settings)(more, X, 1), want) < 1e-10
    # A layer of constants, wherever it comes.
    for order in ("cascading", "bottom_up", "independent"):
        constant = {**PARAMS, "middle": jax.tree.map(jnp.ones_like, PARAMS["middle"])}
        measure = rd.parameter_randomization(_gradient, order=order, **settings)
        curve = measure.curve(constant, X, 1)
        where = measure.layers(constant, X, 1).index("middle")
        assert np.isnan(curve).tolist() == [i == where for i in range(4)]
        assert relative(measure(constant, X, 1), np.nanmean(curve)) < 1e-12


@pytest.mark.parametrize("differentiated", [False, True])
def test_the_order_of_weights_is_found_inside_shard_map(differentiated):
    order = [2, 0, 3, 1]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def net(x, *weights):
        for i in order:
            x = jax.nn.relu(x @ weights[i])
        return lax.psum(x.sum(), "data")

    specs = {"in_specs": (jax.P("data"), *[jax.P()] * 4), "out_specs": jax.P()}
    score = lambda weights, x: jax.shard_map(net, mesh=mesh, **specs)(x, *weights)
    f = jax.grad(score, argnums=1) if differentiated else score
    closed = jax.make_jaxpr(f)([jnp.ones((3, 3))] * 4, jnp.ones((4, 3)))
    assert weights_in_order(closed, 4) == order


def test_a_scope_named_transpose_is_no_backward_pass():
    def score(weights, x):
        with jax.named_scope("transpose"):
            h = x @ weights[1]
        return jnp.tanh(h) @ weights[0]

    closed = jax.make_jaxpr(score)([jnp.ones(3), jnp.ones((3, 3))], jnp.ones(3))
    assert weights_in_order(closed, 2) == [1, 0]


def test_layers_of_maps_that_depend_on_weights_alone_are_in_the_order_of_the_network():
    shapes = {"stem": (4, 5), "body": (5, 5), "head": (5, 3), "aux": (5, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}

    def linear(p, x, y):
        return (x @ p["stem"] @ p["body"] @ p["head"])[y]

    def bent(p, x, y):
        return (jax.nn.relu(jax.nn.relu(x @ p["stem"]) @ p["body"]) @ p["head"])[y]

    epsilon = lambda f: jx.lrp(f, rules=jx.composites.epsilon_plus())
    for method in (jx.gradient, jx.input_x_gradient, jx.deconvnet, jx.guided_backprop, epsilon):
        for net in (linear, bent):
            measure = rd.parameter_randomization(lambda p, f=net, m=method: m(lambda x, y: f(p, x, y)))
            assert measure.layers(params, jnp.ones(4), 1) == ("head", "body", "stem")
