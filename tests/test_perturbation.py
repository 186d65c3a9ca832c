"""Occlusion, ablation and Shapley sampling: closed forms, enumeration, loops in NumPy, axioms, Captum's numbers."""

import functools
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative, relu_net, text
from jax import lax
from test_golden import _conv_smooth, _distance, _mlp

import jaxplain as jx
from jaxplain.methods import _perturbation as perturbation
from jaxplain.methods._perturbation import ablation, occlusion, shapley_sampling

N = 6
W = jax.random.normal(jax.random.key(0), (N,))
X = jax.random.normal(jax.random.key(1), (N,))
B = 0.3 * jax.random.normal(jax.random.key(2), (N,))
NET = relu_net(jax.random.key(3), (N, 12, 1), 0.3)
IMAGE = jax.random.normal(jax.random.key(4), (7, 6, 2))
IMAGE_NET = relu_net(jax.random.key(5), (84, 12, 1), 0.3, jnp.tanh)


def of_image(x):
    return IMAGE_NET(x.ravel())


def linear(x):
    return x @ W + 2.0


def run(explain, *args, key=None):
    """Compiled once: an un-jitted call compiles each of its loops."""
    return jax.jit(lambda *args: explain(*args, key=key))(*args)


def exact_shapley(v, n):
    """From v(S) of all 2ⁿ coalitions, given as sets."""
    values = {s: float(v(s)) for r in range(n + 1) for s in map(frozenset, itertools.combinations(range(n), r))}
    return np.array(
        [
            sum(
                math.factorial(len(s))
                * math.factorial(n - len(s) - 1)
                / math.factorial(n)
                * (values[s | {i}] - values[s])
                for s in values
                if i not in s
            )
            for i in range(n)
        ]
    )


def game(f, x, b):
    f = jax.jit(f)
    return lambda s: f(jnp.where(jnp.array([i in s for i in range(len(x))]), x, b))


def occluded(f, x, b, lengths, strides):
    """By loops: every window, cut off at the edge, and the mean over those that cover a feature."""
    f, total, covering = jax.jit(f), np.zeros(x.shape), np.zeros(x.shape)
    counts = [math.ceil((size - n) / s) + 1 for size, n, s in zip(x.shape, lengths, strides, strict=True)]
    for place in np.ndindex(*counts):
        box = tuple(slice(p * s, p * s + n) for p, s, n in zip(place, strides, lengths, strict=True))
        moved = np.array(x)
        moved[box] = b[box]
        total[box] += float(f(x) - f(moved))
        covering[box] += 1
    return total / covering, math.prod(counts)


# Closed forms


def test_on_a_linear_score_all_are_the_weights_times_the_change(key):
    want = W * (X - B)
    assert relative(run(ablation(linear, baseline=B), X), want) < 1e-13
    assert relative(run(occlusion(linear, window=1, baseline=B), X), want) < 1e-13
    assert relative(run(shapley_sampling(linear, baseline=B, n_samples=1, antithetic=False), X, key=key), want) < 1e-13
    windows = np.array([want[i : i + 3].sum() for i in range(4)])
    blurred = [windows[max(i - 2, 0) : i + 1].mean() for i in range(6)]
    assert relative(run(occlusion(linear, window=3, baseline=B), X), np.array(blurred)) < 1e-13


@pytest.mark.parametrize(
    ("window", "strides", "lengths", "steps"),
    [
        ((3, 3), None, (3, 3, 2), (1, 1, 1)),
        ((3, 3), 2, (3, 3, 2), (2, 2, 1)),  # 7 − 3 = 2 · 2, 6 − 3 is odd
        ((4, 4, 1), (3, 4, 1), (4, 4, 1), (3, 4, 1)),
        ((None, 5), (None, 3), (7, 5, 2), (1, 3, 1)),
        (2, 2, (2, 6, 2), (2, 1, 1)),
        ((7, 6), 9, (7, 6, 2), (1, 1, 1)),  # the whole image: strides are of no use
    ],
)
def test_occlusion_is_a_loop_over_windows(window, strides, lengths, steps):
    b = 0.1 * jnp.ones_like(IMAGE)
    want, n = occluded(of_image, IMAGE, np.asarray(b), lengths, steps)
    explain = jx.with_info(occlusion(of_image, window=window, strides=strides, baseline=0.1, chunk_size=4))
    got, info = jax.jit(explain)(IMAGE)
    assert relative(got, want) < 1e-12
    assert info.n_evaluations == 1 + n and info.n_gradients == 0 and relative(info.value, of_image(IMAGE)) < 1e-12


def test_ablation_is_the_loss_of_each_group():
    labels = np.array([7, 0, 7, 3, 3, 0])
    got, info = run(jx.with_info(ablation(NET, groups=labels, baseline=B)), X)
    losses = {g: NET(X) - NET(jnp.where(labels == g, B, X)) for g in (0, 3, 7)}
    assert relative(got, np.array([losses[g] for g in labels])) < 1e-12
    assert relative(info.baseline_value, NET(B)) < 1e-12
    assert relative(info.gap, sum(losses.values()) - (NET(X) - NET(B))) < 1e-10
    assert info.n_evaluations == 1 + 3 + 1  # labels that do not occur cost nothing


def test_labels_broadcast_over_axes_of_length_one():
    segments = np.arange(42).reshape(7, 6, 1) // 11
    full = np.broadcast_to(segments, IMAGE.shape)
    assert relative(run(ablation(of_image, groups=segments), IMAGE), run(ablation(of_image, groups=full), IMAGE)) == 0
    one = run(ablation(of_image, groups=0), IMAGE)
    assert relative(one, np.full(IMAGE.shape, of_image(IMAGE) - of_image(0 * IMAGE))) < 1e-12
    # Disjoint windows are groups.
    blocks = (np.arange(7)[:, None] // 3 * 2 + np.arange(6) // 3)[..., None]
    assert (
        relative(
            run(occlusion(of_image, window=(3, 3), strides=3), IMAGE), run(ablation(of_image, groups=blocks), IMAGE)
        )
        < 1e-12
    )


# Shapley values


def test_sampling_is_within_its_error_of_the_exact_values():
    f = lambda x: jnp.prod(x[:3] + 0.5) + jnp.sin(x[3] * x[4]) + jnp.maximum(x[5], x[0])
    exact = exact_shapley(game(f, X, B), N)
    keys = jax.random.split(jax.random.key(7), 50)
    variances = []
    for antithetic in (False, True):
        explain = jx.with_info(shapley_sampling(f, baseline=B, n_samples=40, antithetic=antithetic, chunk_size=64))
        maps, info = jax.jit(jax.vmap(lambda k, e=explain: e(X, key=k)))(keys)
        spread, stated = maps.std(axis=0, ddof=1), info.standard_error.mean(axis=0)
        assert (np.abs(maps.mean(axis=0) - exact) < 4 * spread / np.sqrt(50) + 1e-12).all()
        np.testing.assert_allclose(stated[spread > 1e-9], spread[spread > 1e-9], rtol=0.35)
        assert np.abs(info.gap).max() < 1e-12
        assert (info.n_evaluations == 1 + 1 + 41 * 5 * (1 + antithetic)).all()
        variances.append(np.sum(spread**2))
    assert variances[1] < variances[0] / 2


def test_antithetic_orders_are_exact_for_pairs(key):
    quadratic = jax.random.normal(jax.random.key(5), (N, N))
    pairs = lambda x: x @ quadratic @ x + x @ W
    got, info = run(jx.with_info(shapley_sampling(pairs, baseline=B, n_samples=2)), X, key=key)
    assert relative(got, exact_shapley(game(pairs, X, B), N)) < 1e-12
    assert info.standard_error.max() < 1e-12


def test_every_order_by_hand(key):
    """The documented draws: order k is fold_in(split(key)[1], k)."""
    labels, want = np.array([0, 1, 1, 2, 3, 0]), np.zeros(4)
    for k, backwards in itertools.product(range(3), (False, True)):
        turn = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.split(key)[1], k), 4))
        turn = 3 - turn if backwards else turn
        scores = [float(NET(jnp.where(turn[labels] < kept, X, B))) for kept in range(5)]
        want += np.diff(scores)[turn] / 6
    got = run(shapley_sampling(NET, groups=labels, baseline=B, n_samples=3), X, key=key)
    assert relative(got, want[labels]) < 1e-12


def test_shares_of_a_group_sum_to_its_value(key):
    groups, f = jnp.arange(len(W)) // 3, lambda x: jnp.sum(jnp.tanh(x * W)) + x[0] * x[-1]
    x = jnp.linspace(-1, 2, len(W))
    sizes = jnp.bincount(groups)[groups].astype(x.dtype)
    for method, settings in ((jx.ablation, {}), (jx.shapley_sampling, {"n_samples": 3})):
        whole, info = run(jx.with_info(method(f, groups=groups, **settings)), x, key=key)
        shared, same = run(jx.with_info(method(f, groups=groups, share=True, **settings)), x, key=key)
        assert relative(shared * sizes, whole) < 1e-12 and np.isclose(same.gap, info.gap)
        if method is jx.shapley_sampling:
            assert np.isclose(jnp.sum(shared), f(x) - f(0 * x), rtol=1e-12)
            assert relative(same.standard_error * sizes, info.standard_error) < 1e-9


def test_shares_of_traced_labels_and_of_several_leaves():
    f = lambda x: jnp.sum(x["a"]) + 2 * jnp.sum(x["b"])
    x = {"a": jnp.ones(3), "b": jnp.ones(2)}
    explain = lambda labels, x: jx.ablation(f, groups=labels, n_groups=4, share=True)(x)
    got = jax.jit(explain)({"a": jnp.array([0, 0, 1]), "b": jnp.array([1, 3])}, x)
    np.testing.assert_allclose(got["a"], [1, 1, 1.5])
    np.testing.assert_allclose(got["b"], [1.5, 2])


def test_the_axioms(key):
    f = lambda x: jnp.sin(x[0] * x[1] * x[2]) + x[0] ** 2 + x[3]  # 4 and 5 are dummies; 1 and 2 are symmetric
    x, b = X.at[2].set(X[1]), B.at[2].set(B[1])
    got, info = run(jx.with_info(shapley_sampling(f, baseline=b, n_samples=400, chunk_size=64)), x, key=key)
    assert np.abs(got[4:]).max() < 1e-12 and info.standard_error[4:].max() < 1e-12
    assert abs(got[1] - got[2]) < 4 * jnp.hypot(*info.standard_error[1:3])
    assert abs(got.sum() - (f(x) - f(b))) < 1e-12  # efficiency
    for explain in (ablation(f), occlusion(f, window=1)):
        assert np.abs(run(explain, x)[4:]).max() < 1e-12
    # Linearity, with the same orders.
    mixed = lambda x, c: c[0] * f(x) + c[1] * NET(x)
    explain = shapley_sampling(mixed, baseline=b, n_samples=3, key=key)
    one, two, both = jax.jit(jax.vmap(lambda c: explain(x, c)))(jnp.array([[1.0, 0], [0, 1], [2, -3]]))
    assert relative(both, 2 * one - 3 * two) < 1e-12


def test_one_group_and_one_sample(key):
    got, info = run(jx.with_info(shapley_sampling(NET, groups=np.zeros(N, int), n_samples=1)), X, key=key)
    assert relative(got, np.full(N, NET(X) - NET(0 * X))) < 1e-12
    assert np.isnan(info.standard_error).all()


# What all share


METHODS = {
    "occlusion": functools.partial(occlusion, window=2),
    "ablation": ablation,
    "shapley_sampling": functools.partial(shapley_sampling, n_samples=3),
}
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
def test_chunks_change_nothing(method, key):
    pool = jx.references(jnp.stack([0 * X, B]))
    explainers = [METHODS[method](NET, baseline=pool, chunk_size=n) for n in (None, 4, 1000)]
    *others, want = run(lambda x, key: [explain(x, key=key) for explain in explainers], X, key=key)
    assert all(relative(got, want) < 1e-12 for got in others)


@each_method
def test_several_references_are_averaged(method, key):
    pool = jnp.stack([0 * X, B, 2 * B])
    explain = lambda x, b, key: jx.with_info(METHODS[method](NET, baseline=b))(x, key=key)
    got, info = run(lambda x, key: explain(x, jx.references(pool), key), X, key=key)
    want = run(lambda x, key: jax.vmap(lambda b: explain(x, b, key)[0])(pool), X, key=key)
    assert relative(got, want.mean(axis=0)) < 1e-12
    evaluations = {"occlusion": 1 + 3 * 5, "ablation": 1 + 3 * (6 + 1), "shapley_sampling": 1 + 3 * (1 + 4 * 2 * 5)}
    assert info.n_evaluations == evaluations[method] and info.n_gradients == 0
    if info.baseline_value is not None:
        assert relative(info.baseline_value, np.mean([NET(b) for b in pool])) < 1e-12
    drawn = METHODS[method](NET, baseline=jx.references(pool, n=2))
    one, again, other = jax.jit(jax.vmap(lambda k: drawn(X, key=k)))(jax.random.split(key, 3)[jnp.array([0, 0, 1])])
    assert relative(one, again) == 0 and relative(one, other) > 1e-3
    with pytest.raises(jx.MissingKeyError):
        drawn(X)


@each_method
def test_the_score_need_not_be_differentiable(method, key):
    def score(x):
        steps = lax.while_loop(lambda s: s < jnp.max(x), lambda s: s + 0.1, -5.0)  # no reverse mode
        rounded = jnp.sum(jnp.round(4 * x).astype(jnp.int32) * jnp.arange(N, dtype=jnp.int32))
        return jnp.float64(jnp.argmax(x) == 1) + rounded.astype(x.dtype) + steps

    got = run(METHODS[method](score), X, key=key)
    assert jnp.abs(got).max() > 0.1
    if method == "ablation":
        want = [score(X) - score(X.at[i].set(0)) for i in range(N)]
        assert relative(got, np.array(want)) < 1e-12


def test_tokens_are_explained_by_which_are_kept(key):
    table = jax.random.normal(jax.random.key(8), (10, 4))
    score = lambda ids: jnp.sum(jnp.tanh(jnp.cumsum(table[ids], axis=0)))
    ids, pad = jnp.array([3, 1, 4, 1, 5]), 0
    of_kept = lambda keep, ids: score(jnp.where(keep > 0, ids, pad))
    got, info = run(jx.with_info(shapley_sampling(of_kept)), jnp.ones(5), ids, key=key)
    kept = lambda s: score(jnp.array([int(t) if i in s else pad for i, t in enumerate(ids)]))
    assert (np.abs(got - exact_shapley(kept, 5)) < 4 * info.standard_error + 1e-9).all()
    assert relative(got.sum(), score(ids) - score(0 * ids)) < 1e-12


TREE = {"image": IMAGE, "meta": (X[:3],), "count": jnp.int32(3), "bias": jnp.float64(0.5)}


def of_tree(x):
    return (
        of_image(x["image"]) * jnp.tanh(x["meta"][0]).sum()
        + x["count"].astype(jnp.float64) * x["meta"][0][0] * x["bias"]
    )


def test_pytrees_share_labels_and_have_windows_of_their_own(key):
    groups = {"image": np.arange(7).reshape(7, 1, 1) // 4, "meta": (np.array([0, 5, 5]),), "count": None, "bias": 5}
    got = run(ablation(of_tree, groups=groups), TREE)
    assert jax.tree.structure(got) == jax.tree.structure(TREE) and got["count"] == 0
    without_first = TREE | {"image": IMAGE.at[:4].set(0), "meta": (TREE["meta"][0].at[0].set(0),)}
    without_last = TREE | {"meta": (TREE["meta"][0].at[1:].set(0),), "bias": jnp.float64(0)}
    for value, point in ((got["meta"][0][0], without_first), (got["bias"], without_last)):
        assert relative(value, of_tree(TREE) - of_tree(point)) < 1e-12
    assert relative(got["image"][0], np.full((6, 2), got["meta"][0][0])) == 0
    assert relative(got["meta"][0][1:], np.full(2, got["bias"])) == 0
    # The sum is over groups: 0 (image), 1 (the rest of it), 5.
    shapley, info = run(jx.with_info(shapley_sampling(of_tree, groups=groups)), TREE, key=key)
    total = shapley["bias"] + shapley["image"][0, 0, 0] + shapley["image"][6, 0, 0]
    everything = jax.tree.map(lambda leaf: leaf * 0, TREE) | {"count": TREE["count"]}
    assert relative(total, of_tree(TREE) - of_tree(everything)) < 1e-12
    assert jax.tree.structure(info.standard_error) == jax.tree.structure(TREE)

    window = {"image": (3, 2), "meta": (2,), "count": None, "bias": ()}
    strides = {"image": (2, 2), "meta": (1,), "count": None, "bias": None}
    got = run(occlusion(of_tree, window=window, strides=strides), TREE)
    want, _ = occluded(lambda a: of_tree(TREE | {"image": a}), IMAGE, np.zeros(IMAGE.shape), (3, 2, 2), (2, 2, 1))
    assert relative(got["image"], want) < 1e-12
    want, _ = occluded(lambda a: of_tree(TREE | {"meta": (a,)}), X[:3], np.zeros(3), (2,), (1,))
    assert relative(got["meta"][0], want) < 1e-12
    assert relative(got["bias"], of_tree(TREE) - of_tree(TREE | {"bias": 0.0})) < 1e-12
    alone = run(occlusion(of_tree, window=window | {"image": None}), TREE)
    assert (alone["image"] == 0).all() and relative(alone["bias"], got["bias"]) < 1e-12


def test_several_arguments_and_one_that_is_left_alone(key):
    f = lambda a, scale, b: scale * NET(a) * jnp.sum(b**2)
    one = run(ablation(lambda a: f(a, 2.0, B), baseline=0.1), X)
    both = run(ablation(f, argnums=(0, 2), baseline=(0.1, None)), X, 2.0, B)
    assert relative(both[0], one) < 1e-12 and jnp.abs(both[1]).max() < 1e-12
    alone = run(ablation(f, argnums=(0, 2), groups=(np.arange(N), None), baseline=0.1), X, 2.0, B)
    assert relative(alone[0], one) < 1e-12 and (alone[1] == 0).all()
    got, info = run(jx.with_info(shapley_sampling(f, argnums=(0, 2))), X, 2.0, B, key=key)
    assert relative(got[0].sum() + got[1].sum(), f(X, 2.0, B)) < 1e-12 and abs(info.gap) < 1e-12
    windows = run(occlusion(f, argnums=(0, 2), window=(2, None)), X, 2.0, B)
    assert relative(windows[0], run(occlusion(lambda a: f(a, 2.0, B), window=2), X)) < 1e-12 and (windows[1] == 0).all()


def test_a_window_without_a_score_spoils_what_it_covers_and_nothing_else():
    f = lambda x: jnp.log(x[2]) + x.sum()
    got = run(occlusion(f, window=2), jnp.abs(X))  # the logarithm of 0
    assert np.isposinf(got[1:4]).all() and np.isfinite(got[np.array([0, 4, 5])]).all()
    got = run(ablation(lambda x: jnp.where(x[2] == 0, jnp.nan, x.sum())), X)
    assert np.isnan(got).tolist() == [False, False, True, False, False, False]


def test_low_precision_inputs_keep_their_dtype(key):
    x = X.astype(jnp.bfloat16)
    for make in METHODS.values():
        got, info = run(jx.with_info(make(lambda x: jnp.sum(x.astype(jnp.float32) ** 2))), x, key=key)
        assert got.dtype == jnp.bfloat16 and info.value.dtype == jnp.float32


# Transforms


@each_method
def test_transforms(method, key):
    explain = METHODS[method](lambda x, y: jnp.tanh(NET(x)) * y, baseline=0.1, chunk_size=2)
    xs, ys, keys = jax.random.normal(key, (3, N)), jnp.arange(1.0, 4), jax.random.split(key, 3)
    one = lambda x, y, k: explain(x, y, key=k)
    compiled = jax.jit(one)
    want = jnp.stack([compiled(*row) for row in zip(xs, ys, keys, strict=True)])
    assert relative(jax.vmap(compiled)(xs, ys, keys), want) < 1e-12
    assert relative(jax.jit(jax.vmap(one))(xs, ys, keys), want) < 1e-12
    assert relative(jax.jit(lambda: lax.map(lambda row: one(*row), (xs, ys, keys)))(), want) < 1e-12


@each_method
def test_the_attribution_has_derivatives_where_the_score_has(method, key):
    net = relu_net(jax.random.key(3), (N, 12, 1), 0.3, jnp.tanh)
    total = jax.jit(lambda x, b: jnp.sum(jnp.sin(METHODS[method](net, baseline=b, chunk_size=2)(x, key=key))))
    u, v = jax.random.normal(jax.random.key(11), (2, N))
    step = 1e-6
    slope = (total(X + step * u, B + step * v) - total(X - step * u, B - step * v)) / (2 * step)
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(X, B)
    assert relative(gradients[0] @ u + gradients[1] @ v, slope) < 1e-7
    if method == "ablation":  # forward mode
        assert relative(jax.jvp(total, (X, B), (u, v))[1], slope) < 1e-7


@pytest.mark.parametrize("method", ["ablation", "shapley_sampling"])
def test_memory_grows_neither_with_groups_nor_with_samples(method):
    f = relu_net(jax.random.key(0), (64, 256, 1), 0.1)
    make = {
        "ablation": lambda n: ablation(f, groups=np.arange(64) % n, chunk_size=4),
        "shapley_sampling": lambda n: shapley_sampling(f, groups=np.arange(64) % 4, n_samples=n, chunk_size=4),
    }[method]

    def temporary(n):
        explain = jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.sin(make(n)(x, key=k)))))
        return explain.lower(jnp.ones(64), jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    # A score is kept of each evaluation, and in reverse mode a sum over groups of each sample: not its activations, 256
    # numbers each.
    assert temporary(64) - temporary(8) < 0.2 * 56 * 256 * 8


def test_labels_of_each_example_may_be_traced(key):
    xs, segments = jax.random.normal(key, (2, N)), jnp.array([[0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 1, 2]])
    explain = jax.jit(jax.vmap(lambda x, g: ablation(NET, groups=g, n_groups=3)(x)))
    want = jnp.stack([run(ablation(NET, groups=g), x) for x, g in zip(xs, segments, strict=True)])
    assert relative(explain(xs, segments), want) < 1e-12
    for wrong in (-1, 3):  # labels that cannot be seen: NaN
        got = explain(xs, segments.at[0, 1].set(wrong))[0]
        assert np.isnan(got).tolist() == [False, True, False, False, False, False]
    keys = jax.random.split(key)
    sampled = lambda x, g, k: shapley_sampling(NET, groups=g, n_groups=3, n_samples=2)(x, key=k)
    got = jax.jit(jax.vmap(sampled))(xs, segments, keys)
    assert relative(got[0], run(shapley_sampling(NET, groups=segments[0], n_samples=2), xs[0], key=keys[0])) < 1e-12
    # Groups that do not occur are dummies.
    assert relative(run(ablation(NET, groups=segments[0], n_groups=9), xs[0]), want[0]) < 1e-12


# Refusals


PAIR = lambda a, b: a.sum() * b.sum()
REFUSED = {
    "a list of the features of each group": (
        lambda: ablation(NET, groups=[[0, 1], [2]])(X),
        ["one label for each feature", "jnp.array([0, 0, 1])"],
    ),
    "window larger than x": (
        lambda: occlusion(of_image, window=(3, 8))(IMAGE),
        ["larger than x", "axis 1", "8 on an axis of 6"],
    ),
    "window of more axes": (
        lambda: occlusion(of_image, window=(1, 3, 3, 2))(IMAGE),
        ["more axes", "without a batch axis"],
    ),
    "window of a float": (lambda: occlusion(NET, window=2.0)(X), ["`window`", "2.0", "compiled program"]),
    "window of nothing": (lambda: occlusion(NET, window=0)(X), ["`window`", "positive"]),
    "traced window": (lambda: jax.jit(lambda n: occlusion(NET, window=n)(X))(2), ["`window`", "Python integers"]),
    "no window": (lambda: occlusion(NET, window=None)(X), ["`window`", "unchanged"]),
    "strides that leave gaps": (
        lambda: occlusion(NET, window=2, strides=3)(X),
        ["uncovered", "stride 3, window 2", "at most 2"],
    ),
    "strides of other axes": (
        lambda: occlusion(of_image, window=(3, 3), strides=(1, 1, 1))(IMAGE),
        ["`strides` must name the axes"],
    ),
    "window of another tree": (
        lambda: occlusion(of_tree, window={"image": 2})(TREE),
        ["`window`", "structure", "argument 0"],
    ),
    "window of one argument": (lambda: occlusion(PAIR, window=(2,), argnums=(0, 1))(X, X), ["`window`", "2 entries"]),
    "float groups": (lambda: ablation(NET, groups=np.zeros(N))(X), ["integer labels", "float64", "astype(int)"]),
    "boolean groups": (lambda: ablation(NET, groups=X > 0)(X), ["integer labels", "bool"]),
    "groups of another shape": (lambda: ablation(NET, groups=np.arange(5))(X), ["`groups`", "(5,)", "(6,)"]),
    "groups without channels": (
        lambda: ablation(of_image, groups=np.zeros((7, 6), int))(IMAGE),
        ["(7, 6)", "segments[..., None]"],
    ),
    "groups of another tree": (lambda: ablation(of_tree, groups={"image": 2})(TREE), ["`groups`", "structure"]),
    "negative groups": (lambda: ablation(NET, groups=np.arange(N) - 1)(X), ["out of range", "-1", "None instead"]),
    "groups above n_groups": (
        lambda: ablation(NET, groups=np.arange(N), n_groups=5)(X),
        ["out of range", "n_groups − 1 = 4"],
    ),
    "traced groups": (
        lambda: jax.jit(lambda g: ablation(NET, groups=g)(X))(jnp.arange(N)),
        ["traced `groups`", "n_groups=n"],
    ),
    "all left alone": (lambda: ablation(PAIR, groups=(None, None), argnums=(0, 1))(X, X), ["`groups`", "unchanged"]),
    "no samples": (lambda: shapley_sampling(NET, n_samples=0), ["`n_samples`", "positive"]),
    "no chunk": (lambda: ablation(NET, chunk_size=0), ["`chunk_size`"]),
    "no key": (lambda: shapley_sampling(NET)(X), ["shapley_sampling", "key=jax.random.key(0)"]),
    "keys without vmap": (
        lambda: shapley_sampling(NET)(X, key=jax.random.split(jax.random.key(0))),
        ["one random key"],
    ),
    "integer input": (lambda: ablation(lambda x: 1.0 * x.sum())(jnp.arange(3)), ["no float array", "embeddings"]),
    "a prediction": (lambda: ablation(jnp.argmax)(X), ["real number", "logit"]),
    "many outputs": (lambda: occlusion(lambda x: x, window=2)(X), ["occlusion", "one number"]),
    "no function": (lambda: ablation(X), ["must be a function"]),
    "baseline shape": (lambda: ablation(NET, baseline=jnp.zeros(4))(X), ["`baseline`", "(4,)"]),
    "nothing to explain": (lambda: ablation(lambda x: 1.0)(jnp.zeros(0)), ["empty", "((0,),)"]),
    "dropout": (
        lambda: ablation(lambda x: NET(jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, (N,)), x, 0)))(X),
        ["random"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    call, words = REFUSED[what]
    with pytest.raises(jx.JaxplainError) as error:
        call()
    missing = [word for word in words if word not in text(error)]
    assert not missing, f"{missing} not in:\n{text(error)}"


# Captum


GOLDEN = pathlib.Path(__file__).parent / "golden" / "perturbation"
NETWORKS = {"mlp": _mlp, "conv_smooth": _conv_smooth}


@pytest.mark.parametrize("network", NETWORKS)
def test_float64_agrees_with_captum(network, monkeypatch):
    about = json.loads((GOLDEN / f"{network}.json").read_text())
    with np.load(GOLDEN / f"{network}.npz") as file:
        stored = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in file.items()}
    weights = {key[8:]: jnp.asarray(value) for key, value in stored.items() if key.startswith("weights/")}
    score = lambda x, label: NETWORKS[network](weights, x)[label]
    # The stored permutations list groups by turn; ours are turns by group.
    turns = jnp.argsort(jnp.asarray(stored["orders"]), axis=1).astype(jnp.int32)
    monkeypatch.setattr(perturbation, "_turns", lambda key, k, n: turns[k])
    options = {"baseline": jnp.asarray(stored["baseline"]), "chunk_size": 8}
    explainers = {
        "ablation_features": ablation(score, **options),
        "ablation_groups": ablation(score, groups=stored["groups"], **options),
        "shapley_groups": shapley_sampling(
            score, groups=stored["groups"], n_samples=len(turns), antithetic=False, key=jax.random.key(0), **options
        ),
    }
    for name, setting in about["windows"].items():
        window, strides = (tuple(setting[s]) for s in ("window", "strides"))
        explainers[f"occlusion_{name}"] = occlusion(score, window=window, strides=strides, **options)
    assert {key for key in stored if key.startswith(("ablation", "shapley", "occlusion"))} == set(explainers)
    run = jax.jit(lambda *args: {name: jax.vmap(explain)(*args) for name, explain in explainers.items()})
    for name, maps in run(stored["x"], stored["target"]).items():
        assert _distance(maps, stored[name]) <= about["tolerance"]["float64"], name


def test_golden_arrays_say_where_they_come_from():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(NETWORKS)
    for network in NETWORKS:
        about = json.loads((GOLDEN / f"{network}.json").read_text())
        assert {"peer", "versions", "made_by", "date", "seed", "calls", "tolerance"} <= set(about)
        assert (GOLDEN.parents[2] / about["made_by"]).is_file()


def test_what_is_left_alone_keeps_its_value(key):
    f = lambda a, m: a.sum() + m.sum()
    a, m = jnp.array([1.0, 2.0]), jnp.array([10.0])
    settings = {"argnums": (0, 1), "groups": (np.arange(2), None)}
    (of_a, of_m), info = run(jx.with_info(ablation(f, **settings)), a, m)
    assert relative(of_a, a) < 1e-12 and of_m == 0 and info.baseline_value == 10 and abs(info.gap) < 1e-12
    (of_a, of_m), info = run(jx.with_info(shapley_sampling(f, n_samples=3, **settings)), a, m, key=key)
    assert relative(of_a, a) < 1e-12 and of_m == 0 and abs(info.gap) < 1e-12
    # So do features whose traced label does not exist; narrow labels do not wrap around.
    x = jnp.array([1.0, 2, 10])
    got = jax.jit(lambda g: shapley_sampling(lambda x: x.sum(), groups=g, n_groups=2, n_samples=2)(x, key=key))
    np.testing.assert_allclose(got(jnp.array([0, 1, 5])), [1, 2, np.nan])
    bytes_ = jnp.array([0, 255, 3], jnp.uint8)
    assert relative(jax.jit(lambda g: ablation(lambda x: x.sum(), groups=g, n_groups=256)(x))(bytes_), x) < 1e-12


def test_the_standard_error_covers_the_draw_of_references():
    pool = jax.random.normal(jax.random.key(3), (50, 4))
    score = lambda x: jnp.tanh(x[0] * x[1]) + x[2] * x[3] * x[0]
    explain = jx.with_info(jx.shapley_sampling(score, baseline=jx.references(pool, n=3), n_samples=4))
    maps, info = jax.jit(jax.vmap(lambda k: explain(jnp.ones(4), key=k)))(jax.random.split(jax.random.key(0), 2000))
    stated = jnp.sqrt(jnp.mean(info.standard_error**2, axis=0))
    np.testing.assert_allclose(stated, jnp.std(maps, axis=0), rtol=0.1)
    one = jx.with_info(jx.shapley_sampling(score, baseline=jx.references(pool, n=1), n_samples=4))
    assert np.isnan(jax.jit(lambda k: one(jnp.ones(4), key=k)[1].standard_error)(jax.random.key(0))).all()
