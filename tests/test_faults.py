"""Faults that outside trials found, each with neighbors: what holds now."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import as_users_run, promoting, relative, text
from jax import lax

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


# Evidence without a derivative


W = jnp.cos(jnp.arange(64.0)).reshape(16, 4)
TABLE = jnp.sin(jnp.arange(40.0)).reshape(10, 4)


def _scale(x):
    return jnp.max(jnp.abs(x)) / 127


def _int8(x):
    q, w = jnp.round(x / _scale(x)).astype(jnp.int8), jnp.round(10 * W).astype(jnp.int8)
    return (lax.dot(q, w, preferred_element_type=jnp.int32).astype(x.dtype) * _scale(x))[0]


def _quantized_loop(x):
    return lax.scan(lambda c, t: (0.5 * c + jnp.round(4 * t) / 4, None), 0.0, x)[0] + jnp.sum(x)


def _quantized_branch(x):
    return lax.cond(x[0] > 0, lambda x: jnp.sum(jnp.round(x) + x), jnp.sum, x)


WITHOUT_DERIVATIVE = {  # score, and the primitive that is named
    "int8 with a scale of x": (_int8, "round"),
    "int8 with a fixed scale": (lambda x: (jnp.clip(jnp.round(x / 0.1), -127, 127) @ W)[0], "round"),
    "ids as floats": (lambda x: TABLE[x.astype(int)].sum(), "convert_element_type"),
    "ids as floats, next to floats": (lambda x: TABLE[x.astype(int)].sum() + x.sum(), "convert_element_type"),
    "one-hot of ids as floats": (lambda x: (jax.nn.one_hot(x.astype(int), 10) @ TABLE).sum(), "convert_element_type"),
    "floors and floats": (lambda x: jnp.sum(jnp.floor(x)) + jnp.sum(x), "floor"),
    "a binary layer": (lambda x: (jnp.sign(x) @ W * jnp.mean(jnp.abs(x)))[0], "sign"),
    "a binary layer by comparison": (lambda x: (jnp.where(x >= 0, 1.0, -1.0) @ W + x @ W)[0], "ge"),
    "in a loop": (_quantized_loop, "round"),
    "in a branch": (_quantized_branch, "round"),
    "the nearest code": (lambda x: TABLE[jnp.argmin(jnp.sum((TABLE - x[:4]) ** 2, -1))].sum(), "argmin"),
    "stopped": (lambda x: jnp.sum(lax.stop_gradient(x) ** 2), "stop_gradient"),
    "a count": (lambda x: jnp.sum(jnp.where(x > 0, 1.0, 0.0)), "gt"),
}


def _attention_with_masks(x):
    h = x.reshape(4, 4)
    there = jnp.any(h != 0, -1) & (jnp.sum(h, -1) > -9)
    a = jax.nn.softmax(h @ h.T + jnp.where(there, 0.0, -1e9))
    return jnp.sum(a @ h * there[:, None]) / jnp.maximum(jnp.sum(there.astype(h.dtype)), 1)


def _experts(x):
    gates, chosen = lax.top_k(jax.nn.softmax(x @ W), 2)
    each = [x[:4] @ TABLE[i] + TABLE[i, 1] for i in chosen]
    above = jax.nn.softmax(x @ W) >= gates[-1]
    return jnp.sum(gates * jnp.stack(each)) + jnp.sum(jnp.where(above, x @ W, 0) / jnp.sum(above))


def _sampled(x):
    at = [jnp.clip(x[:4], 0, 3), jnp.clip(x[4:8], 0, 3)]
    return jax.scipy.ndimage.map_coordinates(x.reshape(4, 4), at, order=1).sum()


def _look_up_between(x):
    t = jnp.clip(2 * x + 5, 0, 8.9)
    i, rest = jnp.floor(t).astype(int), t - jnp.floor(t)
    return jnp.sum(TABLE[i, 0] * (jnp.floor(t) + 1 - t) + TABLE[i + 1, 0] * rest)


def _voxels(x):
    cell = jnp.clip(jnp.floor(x), 0, 3).astype(int)
    return jnp.sum(jnp.zeros(4).at[cell].add(x) / jnp.maximum(jnp.zeros(4).at[cell].add(1.0), 1))


def _resized(x):
    image = x.reshape(4, 4)
    return sum(jnp.sum(jax.image.resize(image, (7, 7), how) ** 2) for how in ("nearest", "bilinear", "cubic"))


def _watched(x):
    jax.debug.print("{}", jnp.round(x[0]))
    drawn = jax.random.normal(jax.random.key(0), x.shape)  # unused
    return jnp.sum(jnp.tanh(x)) + 0.0 * drawn.size


def _solved(x):
    a = x.reshape(4, 4) + 4 * jnp.eye(4)
    return jnp.linalg.slogdet(a)[1] + jnp.linalg.solve(a, jnp.ones(4)).sum()


WITH_DERIVATIVE = {
    "straight through": lambda x: jnp.sum(x + lax.stop_gradient(jnp.round(x) - x)) ** 2,
    "the rest of a floor": lambda x: jnp.sum(jnp.sin(x - jnp.floor(x)) + x % 2 + jnp.modf(x)[0] ** 2),
    "in a periodic box": lambda x: jnp.sum((x - 4 * jnp.round(x / 4)) ** 2 + (x / 4 - jnp.floor(x / 4 + 0.5)) ** 2),
    "interpolated": lambda x: jnp.interp(x, jnp.linspace(-3, 3, 7), jnp.sin(jnp.arange(7.0))).sum(),
    "sampled between pixels": _sampled,
    "looked up between entries": _look_up_between,
    "routed to experts": _experts,
    "masked attention": _attention_with_masks,
    "a sign times a size": lambda x: jnp.sum(jnp.sign(x) * jnp.log1p(jnp.abs(x))),
    "the largest": lambda x: x[jnp.argmax(x)] + jnp.take(x, jnp.argsort(x))[3] + jnp.sort(x)[2] + jnp.max(x),
    "means of cells": _voxels,
    "resized": _resized,
    "other floats": lambda x: (x.astype(jnp.bfloat16) @ W.astype(jnp.bfloat16)).astype(jnp.float32)[0],
    "statistics": lambda x: jnp.std(x) + jnp.median(x) + jnp.quantile(x, 0.3) + jax.nn.logsumexp(x),
    "positions": lambda x: jnp.sum(x * jnp.floor(jnp.arange(16) / 3)) + jnp.sum(TABLE[jnp.arange(4)] * x[:4]),
    "kinks": lambda x: jnp.sum(
        jax.nn.relu6(x) + jax.nn.hard_swish(x) + jnp.where(x > 0, x, 0.1 * x) + jnp.clip(x, 0, 1)
    ),
    "solved": _solved,
    "printed": _watched,
    "a loop that counts": lambda x: lax.fori_loop(0, 3, lambda i, c: c + jnp.sin(c) * x[i], x[0]),
    "a step beside a wave": lambda x: jnp.where(x[0] > 0.5, 1.0, 0.0) + jnp.sin(x[1]),
    "a constant": lambda x: 2.0,
}


@pytest.mark.parametrize("around", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"])
def test_evidence_without_a_derivative_is_refused_and_what_selects_is_not(around):
    x = jax.ShapeDtypeStruct((16,), jnp.float64)
    gradient = lambda score: jax.eval_shape(jx.gradient(around(score)), x)
    with promoting():
        for name, (score, primitive) in WITHOUT_DERIVATIVE.items():
            with pytest.raises(jx.UnexplainedChangeError) as error:
                gradient(score)
            said = text(error)
            assert f" {primitive} →" in said and "test_faults.py" in said, (name, said)
            assert all(word in said for word in ("switch", "stop_gradient", 'jx.split(score, "embed")', "ablation"))
        for score in WITH_DERIVATIVE.values():
            gradient(score)


def test_every_method_with_derivatives_refuses_evidence_without_one():
    noisy = dict(noise=0.1, n_samples=2, key=jax.random.key(0))
    pool = jx.references(jnp.zeros((2, 16)))
    methods = [
        *(jx.gradient, jx.saliency, jx.sensitivity, jx.input_x_gradient, jx.integrated_gradients, jx.taylor),
        *(jx.guided_backprop, jx.deconvnet, jx.excitation_backprop, jx.deep_taylor),
        lambda f: jx.lrp(f, rules=jx.rules.epsilon()),
        lambda f: jx.expected_gradients(f, references=pool, key=jax.random.key(0)),
        lambda f: jx.smoothgrad(jx.gradient(f), **noisy),
        lambda f: jx.vargrad(jx.integrated_gradients(f), **noisy),
        lambda f: jx.conductance(f, at="first dense"),
    ]
    x = jnp.sin(jnp.arange(16.0))
    for method in methods:
        with pytest.raises(jx.UnexplainedChangeError, match="rounded values or integers"):
            jax.eval_shape(method(_int8), x)
    head = lambda x: _int8(jnp.tanh(x.reshape(4, 4, 2) @ W[:2, :2]).mean((0, 1)).repeat(8))
    with pytest.raises(jx.UnexplainedChangeError, match="grad_cam: a part of the score passes through rounded values"):
        jax.eval_shape(jx.grad_cam(head, at="first activation"), jnp.ones((4, 4, 2)))
    jax.eval_shape(jx.ablation(_int8), x)  # which needs none
    jax.eval_shape(jx.deeplift(_int8), x)  # which follows steps


# Leaves that are held


def test_info_names_the_leaves_that_are_held_constant():
    score = lambda x, y: jnp.sum(jnp.where(x["mask"], x["image"], 0)) + TABLE[x["ids"]].sum() + y[0]
    x = {"image": jnp.ones(3), "mask": jnp.array([True, False, True]), "ids": jnp.arange(2)}
    held = {"image": False, "mask": True, "ids": True}
    noisy = jx.smoothgrad(jx.gradient(score), noise=0.1, n_samples=2, key=jax.random.key(0))
    for explain in (jx.gradient(score), jx.ablation(score), noisy):
        info = jax.eval_shape(lambda x, explain=explain: jx.with_info(explain)(x, jnp.ones(1))[1], x)
        assert jax.tree.map(lambda leaf: leaf.dtype, info.held) == dict.fromkeys(held, jnp.dtype(bool))
    both, info = jax.jit(jx.with_info(jx.gradient(score, argnums=(0, 1))))(x, jnp.ones(1))
    assert jax.tree.map(bool, info.held) == (held, False) and not both[0]["ids"].any()
    assert jx.with_info(jx.gradient(jnp.sum))(x["image"])[1].held is None


# Warnings


def _behind_a_norm(x):
    return x / jnp.sqrt(jnp.mean(x**2) + 1e-12) @ jnp.arange(1.0, 5.0)


def test_a_large_gap_warns_once_for_each_line_that_calls_and_never_under_jit():
    explain, x = jx.integrated_gradients(_behind_a_norm), jnp.array([3.0, -1.0, 2.0, 5.0])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            explain(x)
        n_after_one_line = len(seen)
        explain(2 * x)
    assert (n_after_one_line, len(seen)) == (1, 2)
    assert {w.category for w in seen} == {jx.JaxplainWarning} and {w.filename for w in seen} == {__file__}
    said = str(seen[0].message)
    assert said.startswith("integrated_gradients: the attribution misses the change of the score by more than 10%.\n")
    assert all(
        word in said for word in ("  got   Σ R =", "  why   ", "  fix 1 ", "tol=1e-3", "mask token", "jx.deeplift")
    )
    with pytest.raises(jx.JaxplainWarning):  # as everywhere in these tests
        explain(x)
    jax.jit(explain)(x)
    assert abs(jx.with_info(explain)(x)[1].gap) > 1  # who asks is told


def test_a_small_gap_does_not_warn():
    kinks = lambda x: jnp.sum(jax.nn.relu(x - jnp.array([0.3, 1.1, -0.2, 2.2])))
    x = jnp.array([3.0, -1.0, 2.0, 5.0])
    jx.integrated_gradients(kinks)(x)
    jx.integrated_gradients(lambda x: jnp.sin(x[0]) * x[1] - jnp.sin(x[1]) * x[0])(jnp.array([2.0, 2.0]))  # Δf = 0
    jx.integrated_gradients(_behind_a_norm, baseline=x / 2)(x)


# Constants that are equal in value


def _segment_softmax(u, ids, n=2, back=lambda ids: ids):
    e = jnp.exp(u - jax.ops.segment_max(u, ids, n)[ids])
    return e / jax.ops.segment_sum(e, ids, n)[back(ids)]


IDS = (0, 1, 1, 0, 1)
EDGES = jnp.cos(jnp.arange(15.0)).reshape(3, 5)


def _graph(ids, **settings):
    return lambda x: _segment_softmax(x @ EDGES, ids, **settings) @ jnp.arange(5.0)


def test_a_softmax_over_segments_is_one_node_whatever_holds_its_ids():
    x = jnp.array([1.0, 2.0, -0.5])
    scores = {
        "numpy": _graph(np.array(IDS)),
        "jax": _graph(jnp.array(IDS)),
        "short": _graph(np.array(IDS, np.int32)),
        "padded": _graph(np.array(IDS), n=4),
        "jitted": jax.jit(_graph(np.array(IDS))),
        "in a loop": lambda x: lax.scan(lambda c, _: (c, _graph(np.array(IDS))(c)), x, None, 1)[1][0],
    }
    rules = jx.composites.attention()
    kinds = {name: [n.kind for n in jx.layers(score)(x) if n.kind != "loop"] for name, score in scores.items()}
    assert all("softmax" in found and "max" not in found for found in kinds.values()), kinds
    maps = jax.jit(lambda x: {name: jx.lrp(score, rules=rules)(x) for name, score in scores.items()})(x)
    assert all(relative(found, maps["jax"]) < 1e-12 for found in maps.values())
    # Divided by the sum of another segment, it is none.
    other = jx.layers(_graph(jnp.array(IDS), back=lambda ids: 1 - ids))(x)
    assert "softmax" not in [node.kind for node in other]


# Refusals that name the true cause


def _explained(call):
    with pytest.raises(jx.JaxplainError) as error:
        call()
    return text(error)


def _branches(x):
    if x[0] > 0:
        return jnp.sum(x)
    return jnp.prod(x)


CAUSES = {
    "if": (lambda: jx.gradient(_branches)(jnp.ones(3)), ["jnp.where", "jax.lax.cond", "_branches"]),
    "float()": (lambda: jx.gradient(lambda x: float(x[0]) * x[1])(jnp.ones(3)), ["float", "test_faults.py"]),
    "NumPy": (lambda: jx.gradient(lambda x: np.sin(x).sum())(jnp.ones(3)), ["jax.numpy", "test_faults.py"]),
    "index": (lambda: jx.gradient(lambda x: [1.0, 2.0][x[0].astype(int)])(jnp.ones(3)), ["jnp.where"]),
    "keyword": (lambda: jx.gradient(jnp.sum)(x=jnp.ones(3)), ["positional", "x=…"]),
    "setting of the score": (lambda: jx.gradient(jnp.sum)(jnp.ones(3), scale=2), ["positional", "scale=…"]),
    "one logit": (
        lambda: jx.gradient(jx.logit(lambda x: jnp.sum(x, -1, keepdims=True)))(jnp.ones(3), 1),
        ["concatenate([-model(x), model(x)]", "sigmoid"],
    ),
    "names of groups": (
        lambda: jx.ablation(jnp.sum, groups=np.array(["a", "b", "a"]))(jnp.ones(3)),
        ["np.unique(names, return_inverse=True)[1]"],
    ),
    "a pool of baselines": (
        lambda: jx.integrated_gradients(jnp.sum, baseline=np.zeros((9, 3)))(jnp.ones(3)),
        ["jx.references(pool)"],
    ),
    "a baseline of NaN": (lambda: jx.integrated_gradients(jnp.sum, baseline=np.nan)(jnp.ones(3)), ["NaN"]),
    "jit around batched": (
        lambda: jax.jit(jx.batched(jx.gradient(jnp.sum), progress=False))(jnp.ones((2, 3))),
        ["jax.jit(jax.vmap(explain))"],
    ),
    "vmap around batched": (
        lambda: jax.vmap(jx.batched(jx.gradient(jnp.sum), progress=False))(jnp.ones((2, 2, 3))),
        ["outside of JAX transforms"],
    ),
    "no devices": (lambda: jx.batched(jnp.sum, devices=[]), ["different devices"]),
    "one device": (lambda: jx.batched(jnp.sum, devices=jax.devices()[0]), ["devices=jax.devices()"]),
    "a device twice": (lambda: jx.batched(jnp.sum, devices=jax.devices()[:1] * 2), ["different devices"]),
    "no mask": (lambda: jx.metrics.energy_inside()(jnp.ones((3, 3)), None), ["needs a mask"]),
    "half a shift": (lambda: jx.metrics.neighbors.translations(1.5), ["integer"]),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_refusal_names_the_cause(name):
    call, words = CAUSES[name]
    message = _explained(call)
    assert all(word in message for word in words), message


def test_the_fixes_for_one_logit_and_for_names_of_groups_work():
    model = lambda x: jnp.sum(x, -1, keepdims=True)
    two = jx.logit(lambda x: jnp.concatenate([-model(x), model(x)], axis=-1) / 2)
    x = jnp.array([0.2, -0.3, 0.7])
    assert abs(jax.nn.softmax(jnp.stack([two(x, 0), two(x, 1)]))[1] - jax.nn.sigmoid(x.sum())) < 1e-12
    groups = np.unique(np.array(["a", "b", "a"]), return_inverse=True)[1]
    np.testing.assert_allclose(jx.ablation(jnp.sum, groups=groups)(x), [0.9, -0.3, 0.9])


class _Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.rnn(x)[:, -1])


class _Cached(nnx.Module):
    def __init__(self, rngs):
        sizes = {"in_features": 3, "qkv_features": 4, "out_features": 2}
        self.attention = nnx.MultiHeadAttention(num_heads=1, **sizes, decode=True, rngs=rngs)
        self.attention.init_cache((1, 1, 3))

    def __call__(self, x):
        return self.attention(x[:, :1])[:, 0]


class _Scanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Linear(3, 3, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(h, layer):
            return jnp.tanh(layer(h))

        return run(x[:, 0], self.layers)


@pytest.mark.parametrize("module", [_Recurrent, _Cached, _Scanned])
@as_users_run()
def test_a_model_with_variables_of_its_own_is_refused_with_the_line_that_helps(module):
    model = module(nnx.Rngs(0))
    model.eval()
    x = jnp.ones((5, 3), jnp.float32)
    message = _explained(lambda: jx.gradient(jx.logit(model))(x, 1))
    assert "jx.logit(lambda x: nnx.clone(model)(x))" in message and "training mode" not in message, message
    assert np.isfinite(jx.gradient(jx.logit(lambda x: nnx.clone(model)(x)))(x, 1)).all()
