"""Derivatives of explanations, and budgets: one trace per compile, flat memory, no collectives, shared forwards."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative, relu_net
from models import BATCH, MODELS
from registry import METHODS

import jaxplain as jx


def _inexact(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


# Left out by name: 8 bits leave no finite differences; a custom_vjp has no forward mode while tol= has no reverse mode.
DERIVATIVES = [
    (model, method)
    for model, method in itertools.product(MODELS, METHODS)
    if model != "bf16_compute"
    and model not in METHODS[method].refuses
    and (model != "branches_and_custom_rules" or METHODS[method].reverse)
]


def _covering_derivatives():
    """Every mechanism on one model, and every model at least once."""
    rows = []
    for i, method in enumerate(name for name in METHODS if not METHODS[name].like):
        # A known fault, seen with --full: the derivative of Score-CAM with respect to these weights is NaN.
        known = {("linen_batchnorm_depthwise", "score_cam")}
        models = [model for model, name in DERIVATIVES if name == method and (model, name) not in known]
        rows.append((models[i % len(models)], method))
    met = {model for model, _ in rows}
    return rows + [(model, "lrp") for model in dict(DERIVATIVES) if model not in met]


@pytest.mark.rows(("model", "method"), DERIVATIVES, _covering_derivatives())
def test_derivative_of_the_attribution(model, method):
    """d/dt Σ sin R(x + t u; w + t v) in reverse mode (forward mode for `tol`) against central differences."""
    # Of the first class for which something is left in the map.
    labels = (1, 2, 3, 0) if METHODS[method].may_be_empty else (1,)
    assert any(_has_the_derivative(model, method, label) for label in labels), "nothing is left for any class"


def _has_the_derivative(model, method, label):
    case, spec = MODELS[model](), METHODS[method]
    x = jax.tree.map(lambda leaf: leaf[1], case.xs)

    def explained(floats):
        leaves = iter(floats)
        weights, x_ = jax.tree.map(
            lambda leaf: next(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, (case.weights, x)
        )
        explain = spec.make(lambda x, y: case.score(weights, x, y), x_)
        attribution = explain(x_, label, key=jax.random.key(0))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in _inexact(attribution))

    point = _inexact((case.weights, x))
    draw = np.random.default_rng(3)
    direction = [draw.normal(size=p.shape).astype(p.dtype) for p in point]
    # Compiling is what takes long: one program for the value and the slope, at all three points.
    if spec.reverse:
        evaluate = jax.jit(jax.value_and_grad(explained))
    else:
        evaluate = jax.jit(lambda point: jax.jvp(explained, (point,), (direction,)))
    value, slope = evaluate(point)
    if METHODS[method].may_be_empty and np.isnan(value):
        return False
    if spec.reverse:
        slope = sum(np.vdot(g, d) for g, d in zip(slope, direction, strict=True))
    step = 1e-6 / max(1.0, abs(float(slope)) / 100)  # where the slope is large, sin R turns quickly
    up, down = (
        evaluate([np.asarray(p) + s * d for p, d in zip(point, direction, strict=True)])[0] for s in (step, -step)
    )
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=2e-5, atol=2e-7)
    return True


@pytest.mark.parametrize("method", METHODS)
def test_one_trace_per_compile_and_none_after(method):
    traces = []
    f, shape = relu_net(jax.random.key(0), (6, 8, 1), 0.1), (6,)
    if "dense" in METHODS[method].refuses:  # a dense layer for each token, and their mean
        f, shape = (lambda x, f=f: jnp.mean(jax.nn.relu(x @ jnp.arange(-12.0, 12).reshape(6, 4)))), (5, 6)

    def score(x, y):
        traces.append(0)
        return f(x) * y

    explain = METHODS[method].make(score, jnp.ones(shape))
    run = jax.jit(jax.vmap(lambda x, y, k: explain(x, y, key=k)))
    for seed in (0, 1):
        keys = jax.random.split(jax.random.key(seed), BATCH)
        run.trace(jax.random.normal(jax.random.key(seed), (BATCH, *shape)), jnp.ones(BATCH), keys)
    # The first one's test score calls the score twice; each half of a split traces it.
    expected = 2 if method in ("taylor_line_search", "layer_gradient") else 1
    assert len(traces) == expected


@pytest.mark.parametrize("method", ["integrated_gradients", "smoothgrad", "expected_gradients", "vargrad"])
def test_memory_does_not_grow_with_steps(method):
    f = relu_net(jax.random.key(0), (64, 256, 256, 1), 0.1)
    make = {
        "integrated_gradients": lambda n: jx.integrated_gradients(f, n_steps=n, chunk_size=4),
        "smoothgrad": lambda n: jx.smoothgrad(jx.gradient(f), n_samples=n, chunk_size=4),
        "vargrad": lambda n: jx.vargrad(jx.gradient(f), n_samples=n, chunk_size=4),
        "expected_gradients": lambda n: jx.expected_gradients(
            f, references=jx.references(jnp.zeros((3, 64))), n_samples=n, chunk_size=4
        ),
    }[method]

    def temporary(n, reverse):
        explain = lambda x, k: jnp.sum(jnp.sin(make(n)(x, key=k)))
        run = jax.jit(jax.grad(explain) if reverse else explain)
        return run.lower(jnp.ones(64), jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    assert temporary(400, False) < 1.05 * temporary(20, False) + 16 * 400
    # Reverse mode keeps the running sum of each chunk (the size of x), not the activations of each step.
    assert temporary(400, True) - temporary(20, True) < 1.5 * 8 * (400 - 20) / 4 * 64 * 4


def test_all_classes_share_the_forward_pass():
    w, v = jax.random.normal(jax.random.key(0), (64, 256)), jax.random.normal(jax.random.key(1), (256, 10))
    score = jx.logit(lambda x: jax.nn.relu(x @ w) @ v)

    def flops(explain, *args):
        return jax.jit(explain).lower(*args).compile().cost_analysis()["flops"]

    x = jnp.ones(64)
    lrp = jx.lrp(score, rules=jx.composites.epsilon_plus_flat())
    for explain in (jx.gradient(score), jx.integrated_gradients(score, n_steps=8, chunk_size=8), lrp):
        one = flops(explain, x, jnp.int32(0))
        ten = flops(jax.vmap(explain, in_axes=(None, 0)), x, jnp.arange(10, dtype=jnp.int32))
        assert ten < 0.7 * 10 * one


@pytest.mark.parametrize("axis", ["Auto", "Explicit"])
def test_a_sharded_batch_needs_no_collectives(axis):
    f = relu_net(jax.random.key(0), (6, 8, 1), 0.1)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(getattr(jax.sharding.AxisType, axis),))
    with jax.set_mesh(mesh):
        sharding = jax.NamedSharding(mesh, jax.P("data"))
        xs = jax.device_put(jnp.ones((8, 6)), sharding)
        keys = jax.device_put(jax.random.split(jax.random.key(0), 8), sharding)
        for explain in (
            jx.gradient(f),
            jx.integrated_gradients(f, complete=True),
            jx.smoothgrad(jx.gradient(f)),
            jx.lrp(f, rules=jx.composites.epsilon_plus_flat()),
            jx.lrp(f, rules=jx.composites.epsilon_gamma_box(-1, 1)),
            jx.lrp(f, rules=jx.composites.attention()),
            jx.deep_taylor(f),
            jx.guided_backprop(f),
        ):
            compiled = jax.jit(jax.vmap(lambda x, k, e=explain: e(x, key=k))).lower(xs, keys).compile().as_text()
            assert not [op for op in ("all-reduce", "all-gather", "collective-permute", "all-to-all") if op in compiled]


def test_a_ledger_runs_on_an_explicit_mesh():
    f = relu_net(jax.random.key(0), (6, 8, 8, 1), 0.2)
    xs = jax.random.normal(jax.random.key(1), (4, 6))
    accounts = jax.jit(jax.vmap(jx.ledger(f, rules=jx.composites.epsilon_plus_flat())))
    want = accounts(xs)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        assert relative(accounts(jax.device_put(xs, jax.P("data"))).tallies, want.tallies) < 1e-12


def test_per_example_settings_may_be_traced():
    f = lambda x: jnp.sum(x**2)
    xs, levels = jnp.ones((3, 4)), jnp.array([0.0, 0.1, 0.2])
    keys = jax.random.split(jax.random.key(0), 3)
    smooth = jax.vmap(lambda x, s, k: jx.smoothgrad(jx.gradient(f), noise=s, relative=False, n_samples=2)(x, key=k))
    got = jax.jit(smooth)(xs, levels, keys)
    assert relative(got[0], 2 * xs[0]) == 0 and relative(got[2], 2 * xs[2]) > 1e-3
    tolerances = jax.vmap(
        lambda x, t: jx.with_info(
            jx.integrated_gradients(lambda x: jnp.sum(jnp.abs(x - 0.37) ** 1.5), n_steps=3, tol=t)
        )(x)[1]
    )
    info = jax.jit(tolerances)(xs, jnp.array([1e-1, 1e-3, 1e-5]))
    assert info.converged.all() and info.n_steps[0] <= info.n_steps[1] < info.n_steps[2]


def test_float32_mode():
    """Everything above runs with float64 available; users mostly run without."""
    with jax.enable_x64(False):
        f = lambda x: jnp.sum(jnp.tanh(x))
        x, key = jnp.ones(3), jax.random.key(0)
        explainers = (
            jx.integrated_gradients(f, tol=1e-3),
            jx.integrated_gradients(f, complete=True),
            jx.smoothgrad(jx.gradient(f)),
            jx.vargrad(jx.gradient(f)),
            jx.taylor(f, root=jx.line_search(-1.0)),
            jx.expected_gradients(f, references=jx.references(jnp.zeros((2, 3)))),
            jx.lrp(f, rules=jx.rules.epsilon()),
            jx.deep_taylor(f),
            jx.guided_backprop(f),
        )
        for attribution, info in jax.jit(lambda x, k: [jx.with_info(explain)(x, key=k) for explain in explainers])(
            x, key
        ):
            assert attribution.dtype == jnp.float32 and np.isfinite(attribution).all()
            assert all(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(info))


def test_tol_runs_on_an_explicit_mesh():
    f = relu_net(jax.random.key(0), (6, 8, 8, 1), 0.2)
    xs = jax.random.normal(jax.random.key(1), (4, 6))
    explain = jx.with_info(jx.integrated_gradients(f, n_steps=2, tol=1e-3))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    alone, along = jax.jit(jax.vmap(explain)), jax.jit(jax.vmap(lambda x: jax.jvp(lambda x: explain(x)[0], (x,), (x,))))
    for run in (alone, along):
        want = run(xs)
        with jax.set_mesh(mesh):
            got = run(jax.device_put(xs, jax.P("data")))
        assert relative(got, want) < 1e-12
    assert len(set(alone(xs)[1].n_steps.tolist())) > 1, "every example took the same number of steps"


@pytest.mark.parametrize("method", [jx.gradient, jx.integrated_gradients, jx.deeplift, jx.deep_taylor, jx.ablation])
def test_bfloat16_is_explained_under_strict_promotion(method):
    weights = jnp.ones((3, 4), jnp.bfloat16)
    score = lambda x: jnp.sum(jax.nn.relu(x @ weights))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        attribution = method(score)(jnp.ones(3, jnp.bfloat16))
    assert attribution.dtype == jnp.bfloat16 and (attribution == 4).all()
