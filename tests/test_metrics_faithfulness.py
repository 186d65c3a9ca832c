"""Faithfulness metrics: loops in NumPy over the documented draws, closed forms; and `compare`."""

import functools
import inspect
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import relative, relu_net, text

import jaxplain as jx
from jaxplain.metrics.similarity import pearson, spearman

M = jx.metrics
N = 8
W = jax.random.normal(jax.random.key(0), (N,))
X = jax.random.normal(jax.random.key(1), (N,))
R = jax.random.normal(jax.random.key(2), (N,))
B = 0.3 * jax.random.normal(jax.random.key(3), (N,))
NET = jax.jit(relu_net(jax.random.key(4), (N, 12, 1), 0.3))
KEY = jax.random.key(5)
GROUPS = np.array([0, 0, 1, 2, 2, 3, 4, 4])


def run(measure, relevance=R, x=X, key=None):
    return float(jax.jit(lambda r, x: measure(r, x, key=key))(relevance, x))


def linear(x):
    return x @ W + 1.5


def subset(k, size, n):
    """The documented draw of set number k."""
    return np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.split(KEY)[0], k), n)) < size


def test_correlations_are_those_of_scipy():
    a, b = jnp.array([1.0, 3, 3, 0, -2, 3]), jnp.array([0.5, 0.1, 0.1, 7, 2, 2])
    assert relative(pearson(a, b), scipy.stats.pearsonr(a, b)[0]) < 1e-12
    assert relative(pearson(1e-200 * a, b), scipy.stats.pearsonr(a, b)[0]) < 1e-12
    assert relative(spearman(a, b), scipy.stats.spearmanr(a, b)[0]) < 1e-12
    assert np.isnan(pearson(a, jnp.full(6, 0.1))) and np.isnan(spearman(jnp.zeros(6), b))


def test_faithfulness_correlation_is_a_loop_over_sets():
    n = GROUPS.max() + 1
    sums, drops = [], []
    for k in range(12):
        chosen = subset(k, 2, n)[GROUPS]
        sums.append(float(R[chosen].sum()))
        drops.append(float(NET(X) - NET(jnp.where(chosen, B, X))))
    want = scipy.stats.pearsonr(sums, drops)[0]
    for chunk in (None, 5):
        measure = M.faithfulness_correlation(
            NET, subset_size=2, groups=GROUPS, baseline=B, n_samples=12, chunk_size=chunk
        )
        assert relative(run(measure, key=KEY), want) < 1e-10


def test_sensitivity_n_is_that_for_several_sizes():
    measure = M.sensitivity_n(NET, shares=(0.01, 0.25, 0.26, 0.5), baseline=B, n_samples=9, chunk_size=4)
    curve = jax.jit(lambda: measure.curve(R, X, key=KEY))()
    assert relative(curve.share, np.array([1, 2, 4]) / N) < 1e-12  # 2 and 2.08 are the same size
    for i, size in enumerate((1, 2, 4)):
        chosen = [subset(9 * i + k, size, N) for k in range(9)]
        sums = [float(R[c].sum()) for c in chosen]
        drops = [float(NET(X) - NET(jnp.where(c, B, X))) for c in chosen]
        assert relative(curve.correlation[i], scipy.stats.pearsonr(sums, drops)[0]) < 1e-9
    assert relative(run(measure, key=KEY), curve.correlation.mean()) < 1e-12


def test_faithfulness_estimate_is_a_loop_over_groups():
    drops = [float(NET(X) - NET(jnp.where(g == GROUPS, B, X))) for g in range(5)]
    sums = [float(R[g == GROUPS].sum()) for g in range(5)]
    assert (
        relative(run(M.faithfulness_estimate(NET, groups=GROUPS, baseline=B)), scipy.stats.pearsonr(sums, drops)[0])
        < 1e-10
    )
    ablation = jax.jit(jx.ablation(NET, baseline=B))(X)
    assert abs(run(M.faithfulness_estimate(NET, baseline=B), ablation) - 1) < 1e-12


def test_monotonicity_correlation_is_a_loop_over_draws():
    pool = jnp.stack([0 * X, B, X + 1, 2 * B])
    measure = M.monotonicity_correlation(NET, groups=GROUPS, baseline=jx.references(pool), n_samples=3, chunk_size=4)
    squares = []
    for g in range(5):
        drops = []
        for k in range(3):
            which = int(jax.random.randint(jax.random.fold_in(KEY, 3 * g + k), (), 0, 4))
            drops.append(float(NET(X) - NET(jnp.where(g == GROUPS, pool[which], X))))
        squares.append(np.mean(np.square(drops)))
    sums = [abs(float(R[g == GROUPS].sum())) for g in range(5)]
    assert relative(run(measure, key=KEY), scipy.stats.spearmanr(sums, squares)[0]) < 1e-10
    fixed = M.monotonicity_correlation(linear, baseline=0.0)
    assert not fixed.needs_key and abs(run(fixed, -W * X) - 1) < 1e-12  # signs do not count


def test_monotonicity_counts_the_steps_that_do_not_fall():
    order = np.argsort(R)
    scores = [float(NET(jnp.where(np.isin(np.arange(N), order[:k]), X, B))) for k in range(N + 1)]
    assert relative(run(M.monotonicity(NET, baseline=B)), np.mean(np.diff(scores) >= 0)) < 1e-12
    assert run(M.monotonicity(lambda x: 1 + 0 * x[0])) == 1  # no step falls where none changes anything
    rising = lambda x: jnp.sum(jnp.abs(W) * x)
    assert run(M.monotonicity(rising), x=jnp.abs(X)) == 1 and run(M.monotonicity(rising), x=-jnp.abs(X)) == 0


def test_infidelity():
    # Gaussian: draw k is fold_in(key, k), a key for each leaf.
    noise = lambda k: 0.2 * jax.random.normal(jax.random.split(jax.random.fold_in(KEY, k), 1)[0], (N,))
    pairs = np.array([(float(noise(k) @ R), float(NET(X) - NET(X - noise(k)))) for k in range(7)])
    want = np.mean((pairs[:, 0] - pairs[:, 1]) ** 2)
    assert relative(run(M.infidelity(NET, noise=0.2, n_samples=7, chunk_size=3), key=KEY), want) < 1e-10
    beta = pairs.prod(axis=1).sum() / (pairs[:, 0] ** 2).sum()
    want = np.mean((beta * pairs[:, 0] - pairs[:, 1]) ** 2)
    for factor in (1.0, -30.0):
        measure = M.infidelity(NET, noise=0.2, n_samples=7, scale=True)
        assert relative(run(measure, factor * R, key=KEY), want) < 1e-10
    # Removal: I = x − b on random sets.
    chosen = [subset(k, 2, 5)[GROUPS] for k in range(7)]
    changes = [np.where(c, X - B, 0) for c in chosen]
    want = np.mean([(i @ R - (NET(X) - NET(X - i))) ** 2 for i in changes])
    measure = M.infidelity(NET, subset_size=2, groups=GROUPS, baseline=B, n_samples=7)
    assert relative(run(measure, key=KEY), want) < 1e-10
    # The gradient of a linear score predicts every change; a multiple of it does, once scaled.
    assert run(M.infidelity(linear, noise=1.0), W, key=KEY) < 1e-20
    assert run(M.infidelity(linear, subset_size=3), W, key=KEY) < 1e-20
    assert run(M.infidelity(linear, noise=1.0, scale=True), 3 * W, key=KEY) < 1e-20
    assert run(M.infidelity(linear, noise=1.0), 3 * W, key=KEY) > 1


def test_what_the_linear_score_itself_says_is_faithful():
    exact = W * (X - B)
    for metric in (
        functools.partial(M.faithfulness_correlation, subset_size=3),
        M.sensitivity_n,
        M.faithfulness_estimate,
    ):
        assert abs(run(metric(linear, baseline=B), 7 * exact, key=KEY) - 1) < 1e-12
        assert abs(run(metric(linear, baseline=B), -exact, key=KEY) + 1) < 1e-12
        assert np.isnan(
            run(metric(linear, baseline=B), jnp.ones(N) if metric is M.faithfulness_estimate else 0 * R, key=KEY)
        )


MEASURES = {
    "faithfulness_correlation": functools.partial(M.faithfulness_correlation, subset_size=2, n_samples=4, chunk_size=3),
    "sensitivity_n": functools.partial(M.sensitivity_n, shares=(0.3, 0.6), n_samples=4),
    "faithfulness_estimate": functools.partial(M.faithfulness_estimate, baseline=M.removal.uniform()),
    "monotonicity": functools.partial(M.monotonicity, baseline=M.removal.uniform()),
    "monotonicity_correlation": functools.partial(
        M.monotonicity_correlation, baseline=M.removal.uniform(), n_samples=2
    ),
    "infidelity": functools.partial(M.infidelity, noise=0.3, n_samples=4),
    "infidelity of sets": functools.partial(M.infidelity, subset_size=2, n_samples=4),
}


@pytest.mark.parametrize("name", MEASURES)
def test_transforms_pytrees_and_not_finite_attributions(name):
    score = lambda x, y: NET(jnp.concatenate([x["a"], x["b"]])) * y
    measure = MEASURES[name](score)
    tree = lambda v: {"a": v[..., :3], "b": v[..., 3:]}
    xs, ys, keys = jnp.stack([X, -X, B]), jnp.arange(1.0, 4), jax.random.split(KEY, 3)
    one = jax.jit(lambda r, x, y, k: measure(tree(r), tree(x), y, key=k))
    want = jnp.stack([one(R, *row) for row in zip(xs, ys, keys, strict=True)])
    batch = jax.jit(jax.vmap(lambda r, x, y, k: measure(tree(r), tree(x), y, key=k), in_axes=(None, 0, 0, 0)))
    assert np.isfinite(want).all() and relative(batch(R, xs, ys, keys), want) < 1e-10
    assert np.isnan(one(R.at[4].set(jnp.nan), xs[0], ys[0], keys[0]))
    with pytest.raises(jx.MissingKeyError) as error:
        measure(tree(R), tree(X), 1.0)
    assert f"metrics.{name.split()[0]}" in text(error)


def test_traced_labels_that_do_not_exist_give_nan():
    bad = jnp.asarray(GROUPS).at[0].set(9)
    for metric in (
        functools.partial(M.faithfulness_correlation, subset_size=2),
        M.faithfulness_estimate,
        M.monotonicity,
        functools.partial(M.infidelity, subset_size=2),
    ):
        measure = lambda g, m=metric: m(NET, groups=g, n_groups=5)(R, X, key=KEY)
        assert np.isnan(jax.jit(measure)(bad)) and np.isfinite(jax.jit(measure)(jnp.asarray(GROUPS)))


REFUSED = {
    "all in one set": (
        lambda: M.faithfulness_correlation(NET, subset_size=N)(R, X, key=KEY),
        ["fewer groups", "8 of 8"],
    ),
    "subset": (lambda: M.faithfulness_correlation(NET, subset_size=0), ["`subset_size`"]),
    "two samples": (lambda: M.faithfulness_correlation(NET, subset_size=2, n_samples=2), ["`n_samples`", "at least 3"]),
    "shares": (lambda: M.sensitivity_n(NET, shares=(0.5, 1.0)), ["`shares`", "(0, 1)"]),
    "one group": (lambda: M.sensitivity_n(NET, groups=0)(R, X, key=KEY), ["fewer groups", "1 of 1"]),
    "no perturbation": (lambda: M.infidelity(NET), ["exactly one", "noise=0.1"]),
    "two perturbations": (lambda: M.infidelity(NET, noise=0.1, subset_size=1), ["exactly one"]),
    "negative noise": (lambda: M.infidelity(NET, noise=-0.1)(R, X, key=KEY), ["`noise`", "negative"]),
    "attribution": (lambda: M.faithfulness_estimate(NET)(R[:3], X), ["attribution", "(3,)", "jax.vmap"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, words = REFUSED[case]
    with pytest.raises(jx.JaxplainError) as error:
        call()
    assert all(word in text(error) for word in words), text(error)


# Comparison


def test_compare_measures_each_pair_with_shared_draws():
    xs, ys = jax.random.normal(jax.random.key(8), (7, N)), jnp.linspace(1, 2, 7)
    score = lambda x, y: NET(x) * y
    calls = []

    def counted(score):
        calls.append(score)
        return jx.input_x_gradient(score)

    methods = {
        "random": M.controls.random_map,
        "product": counted,
        "smooth": lambda s: jx.smoothgrad(jx.gradient(s), n_samples=2),
    }
    metrics = {
        "estimate": M.faithfulness_estimate,
        "correlation": lambda score: M.faithfulness_correlation(score, subset_size=2, n_samples=5),
        "finished": M.pixel_flipping(score),
        "largest": lambda attribution: jnp.max(jnp.abs(attribution)),
        "masked": lambda attribution, mask: jnp.sum(attribution, where=mask),
        "shift": lambda explain: lambda x, y: jnp.abs(explain(x, y, key=KEY) - explain(x + 0.1, y, key=KEY)).sum(),
        "of a method": lambda method: lambda x, y: method(score)(x, y, key=KEY).sum(),
    }
    masks = jnp.arange(7 * N).reshape(7, N) % 3 == 0
    run = M.compare(score, methods, metrics, batch_size=3, progress=False)
    table = run(xs, ys, masks=masks, key=KEY)
    maps = jax.jit(jax.vmap(jx.input_x_gradient(score)))(xs, ys)
    values = lambda name: table.values[name]["product"]
    assert relative(values("estimate"), jax.vmap(M.faithfulness_estimate(score))(maps, xs, ys)) < 1e-10
    assert relative(values("finished"), jax.vmap(M.pixel_flipping(score))(maps, xs, ys)) < 1e-10
    assert relative(values("largest"), np.abs(maps).max(axis=1)) < 1e-12
    assert relative(values("masked"), jnp.sum(maps, axis=1, where=masks)) < 1e-10
    assert relative(values("of a method"), maps.sum(axis=1)) < 1e-10
    moved = jax.vmap(jx.input_x_gradient(score))(xs + 0.1, ys)
    assert relative(values("shift"), np.abs(maps - moved).sum(axis=1)) < 1e-10
    # Neither the other methods nor the other metrics change a draw.
    alone = M.compare(score, {"smooth": methods["smooth"]}, {"correlation": metrics["correlation"]}, progress=False)
    assert (
        relative(alone(xs, ys, key=KEY).values["correlation"]["smooth"], table.values["correlation"]["smooth"]) < 1e-9
    )
    assert len(calls) == 2  # to explain, and by the metric of a method


def test_compare_asks_the_score_once_where_the_draws_decide_what_it_is_asked():
    asked = []

    def score(x):
        jax.debug.callback(lambda x: asked.append(x), x)
        return x @ jnp.arange(1.0, 4.0)

    methods = {f"random {i}": partial(M.controls.random_map, key=jax.random.key(i)) for i in range(3)}
    metrics = {"correlation": partial(M.faithfulness_correlation, subset_size=1, n_samples=5)}
    xs = jnp.array([[1.0, 2, 3], [3, 2, 2]])
    table = M.compare(score, methods, metrics, progress=False)(xs, key=KEY)
    jax.effects_barrier()
    per_chunk = inspect.signature(M.compare).parameters["batch_size"].default // 3  # filled up with repeats
    assert len(asked) == per_chunk * (1 + 5)
    assert np.isfinite([table.values["correlation"][name] for name in methods]).all()


def test_compare_with_maps_of_several_shapes_missing_values_and_shared_arguments():
    weights, xs = jnp.array([1.0, -2, 3]), jnp.array([[1.0, 2, 3], [3, 2, 2], [1, 1, 4]])
    score = lambda x, w: jnp.sum(w * x**2)
    methods = {
        "gradient": jx.gradient,
        "one number": lambda score: lambda x, w: jnp.sum(jax.grad(score)(x, w)),
        "sometimes": lambda score: lambda x, w: jnp.where(x[0] > 2, jnp.nan, jax.grad(score)(x, w)),
    }
    metrics = {"sum": lambda attribution: jnp.sum(attribution), "estimate of x": lambda attribution, x, w: w @ x}
    table = M.compare(score, methods, metrics, in_axes=(0, None), progress=False)(xs, weights)
    want = (2 * weights[None] * xs).sum(1)
    for name in ("gradient", "one number"):
        np.testing.assert_allclose(table.values["sum"][name], want)
        np.testing.assert_allclose(table.values["estimate of x"][name], xs @ weights)
    np.testing.assert_allclose(table.values["sum"]["sometimes"], np.where(xs[:, 0] > 2, np.nan, want))
    assert list(table.values["sum"]) == list(methods)


def test_compare_with_other_weights():
    xs, weights = jax.random.normal(jax.random.key(8), (4, N)), {"w": W, "v": 1 + jnp.arange(N) / N}
    make_score = lambda p: lambda x, c: jnp.tanh(x @ p["w"]) + c * jnp.sum(jnp.tanh(x * p["v"]))
    methods = {"gradient": jx.gradient, "smooth": lambda s: jx.smoothgrad(jx.gradient(s), n_samples=2)}
    metrics = {"weights": partial(M.parameter_randomization, order="all")}
    run = M.compare(make_score(weights), methods, metrics, make_score=make_score, in_axes=(0, None), progress=False)
    table = run(xs, 0.5, params=weights, key=KEY)
    key = jax.random.fold_in(KEY, zlib.crc32(b"weights"))
    for name, method in methods.items():
        measure = M.parameter_randomization(lambda p, method=method: method(make_score(p)), order="all")
        want = jax.jit(jax.vmap(lambda x, measure=measure: measure(weights, x, 0.5, key=key)))(
            xs
        )  # one draw of weights
        np.testing.assert_allclose(table.values["weights"][name], want, rtol=1e-6)
    other = run(xs, 0.5, params={"w": 3 * W, "v": weights["v"]}, key=KEY)
    assert not np.allclose(other.values["weights"]["gradient"], table.values["weights"]["gradient"])


def test_compare_with_weights_that_hold_functions_and_metrics_with_keys_of_their_own():
    xs, weights = jax.random.normal(jax.random.key(8), (4, N)), {"w": W, "act": jnp.tanh, "power": 2}
    make_score = lambda p: lambda x: jnp.sum(p["act"](x * p["w"]) ** p["power"])
    metrics = {
        "own key": partial(M.parameter_randomization, order="all", key=KEY),
        "own": lambda make_explain: lambda params, x: jnp.sum(make_explain(params)(x)),
    }
    run = M.compare(make_score(weights), {"gradient": jx.gradient}, metrics, make_score=make_score, progress=False)
    table = run(xs, params=weights)  # nothing asks for a key
    measure = M.parameter_randomization(lambda p: jx.gradient(make_score(p)), order="all", key=KEY)
    want = jax.jit(jax.vmap(lambda x: measure(weights, x)))(xs)
    np.testing.assert_allclose(table.values["own key"]["gradient"], want, rtol=1e-6)
    maps = jax.vmap(jx.gradient(make_score(weights)))(xs)
    np.testing.assert_allclose(table.values["own"]["gradient"], maps.sum(1), rtol=1e-6)


def test_compare_with_the_input_shared_and_the_arguments_mapped():
    x, ws, masks = jnp.arange(1.0, 7.0), jnp.ones((5, 6)), jnp.ones((5, 6), bool)
    score = lambda x, w: jnp.sum(w * x**2)
    inside = lambda attribution, mask: jnp.sum(attribution, where=mask)
    run = M.compare(score, {"g": jx.gradient}, {"inside": inside}, in_axes=(None, 0), progress=False)
    np.testing.assert_allclose(run(x, ws, masks=masks).values["inside"]["g"], 42.0)


def test_compare_refuses_maps_that_repeat_the_value_of_a_group():
    ablation = partial(jx.ablation, groups=jnp.arange(N) // 2)
    with pytest.raises(jx.SettingError) as error:
        M.compare(NET, {"ablation": ablation}, {"sum": M.completeness})
    assert "share=True" in text(error) and "'ablation'" in text(error)
    noisy = lambda score: jx.smoothgrad(ablation(score), n_samples=2)
    with pytest.raises(jx.SettingError, match="share=True"):
        M.compare(NET, {"noisy": noisy}, {"sum": M.completeness})
    measured = M.compare(NET, {"shares": partial(ablation, share=True)}, {"sum": lambda attribution: attribution.sum()})
    assert np.isfinite(measured(X[None]).mean("sum", "shares"))


def test_a_comparison_reports_intervals_differences_and_missing_values():
    a, b = np.array([1.0, 2, 3, 4, np.nan]), np.array([1.5, 2.4, 3.6, 4.5, 9])
    table = M.Comparison({"m": {"a": a, "b": b}, "empty": {"a": np.full(5, np.nan)}})
    assert table.mean("m", "a") == 2.5 and table.n("m", "a") == 4
    want = scipy.stats.t.interval(0.95, 3, loc=2.5, scale=scipy.stats.sem(a[:4]))
    np.testing.assert_allclose(table.interval("m", "a"), want)
    mean, (low, high) = table.difference("m", "a", "b")
    np.testing.assert_allclose(mean, -0.5)
    np.testing.assert_allclose(
        (low, high), scipy.stats.t.interval(0.95, 3, loc=-0.5, scale=scipy.stats.sem(a[:4] - b[:4]))
    )
    assert high - low < 0.4 < table.interval("m", "a")[1] - table.interval("m", "a")[0]
    assert str(table).splitlines() == [
        "| method | m             | empty         |",
        "| ------ | ------------- | ------------- |",
        "| a      | 2.5 ± 2.1 (4) | nan ± nan (0) |",
        "| b      | 4.2 ± 3.6     |               |",
    ]


def test_compare_refuses_what_it_cannot_tell():
    with pytest.raises(jx.SettingError) as error:
        M.compare(NET, {}, {"mine": lambda f: f})
    assert "'mine'" in text(error) and "lambda explain" in text(error)
    with pytest.raises(jx.SettingError) as error:
        M.compare(NET, {"g": jx.gradient}, {"game": M.pointing_game()})(X[None])
    assert "masks=masks" in text(error) and "game" in text(error)
    with pytest.raises(jx.SettingError) as error:
        M.compare(NET, {"g": jx.gradient}, {"map": lambda attribution: attribution}, progress=False)(X[None])
    assert "one number" in text(error) and "[8]" in text(error)
    gradient, estimate = {"g": jx.gradient}, {"e": M.faithfulness_estimate}
    for run, words in (
        (lambda: M.compare(NET, {"r": M.controls.random_map}, estimate)(X[None]), "method 'r': random draws"),
        (lambda: M.compare(NET, {"r": M.controls.random_map}, estimate)(X[None], key=3), "random key"),
        (lambda: M.compare(NET, gradient, estimate)(X[None], key=3), "`key` must be one random key"),
        (
            lambda: M.compare(NET, gradient, {"d": lambda attribution: {"a": attribution[0]}})(X[None]),
            "'d' must return one number",
        ),
        (lambda: M.compare(NET, {"g": jx.gradient(NET)}, estimate), "'g' must be a function score → explainer"),
        (lambda: M.compare(NET, gradient, [M.sparseness()]), "must be a dict"),
        (lambda: M.compare(NET, gradient, {"s": "sparseness"}), "the metric 's' must be a function"),
        (lambda: M.compare(NET, gradient, {"s": M.sparseness}), "jx.metrics.sparseness()"),
        (lambda: M.compare(NET, gradient, estimate, in_axes=None)(X), "arrays with a leading axis"),
        (lambda: M.compare(NET, gradient, estimate)(iter([X[None]])), "arrays with a leading axis"),
        (
            lambda: M.compare(NET, gradient, {"p": M.pointing_game()})(X[None], masks=jnp.ones((2, N), bool)),
            "a mask for each",
        ),
        (lambda: M.compare(NET, gradient, {"w": M.parameter_randomization}), "make_score=lambda params"),
        (
            lambda: M.compare(NET, gradient, {"w": M.parameter_randomization}, make_score=lambda p: NET)(X[None]),
            "needs `params`",
        ),
        (lambda: M.Comparison({"m": {"a": np.ones(2)}}).mean("m", "b"), "methods: 'a'"),
        (lambda: M.Comparison({"m": {"a": np.ones(2)}}).mean("a", "m"), "metrics: 'm'"),
    ):  # fmt: skip
        with pytest.raises(jx.JaxplainError) as error:
            run()
        assert words in text(error), text(error)


def test_traced_segmentations_may_have_fewer_groups_than_the_bound():
    labels = jnp.array([3, 3, 0, 5, 5, 0, 5, 3])  # of 0 … 8
    metrics = {
        "flipping": M.pixel_flipping,
        "in steps": functools.partial(M.pixel_flipping, n_steps=2),
        "insertion": M.insertion,
        "least": functools.partial(M.pixel_flipping, order="least"),
        "recomputed": lambda f, **s: M.pixel_flipping(f, recompute=jx.input_x_gradient(f), **s),
        "over": functools.partial(M.region_perturbation, baseline=0.0),
        "irof": lambda f, **s: M.irof(lambda x: jnp.exp(f(x)), baseline=0.0, **s),
        "estimate": M.faithfulness_estimate,
        "monotonicity": M.monotonicity,
        "ranks": functools.partial(M.monotonicity_correlation, baseline=0.0),
    }
    compacted = np.array([1, 1, 0, 2, 2, 0, 2, 1])
    for name, metric in metrics.items():
        got = jax.jit(lambda g, m=metric: m(NET, groups=g, n_groups=9)(R, X))(labels)
        assert relative(got, run(metric(NET, groups=compacted))) < 1e-10, name
    half = jax.jit(lambda g: M.pixel_flipping(NET, groups=g, n_groups=9, until=0.5).curve(R, X))(labels)
    want = jax.jit(M.pixel_flipping(NET, groups=compacted, until=0.5).curve)(R, X)
    assert relative(half.area, want.area) < 1e-10 and relative(half.share[:3], want.share) < 1e-12
    # Random sets hold only groups that there are: two of three, each of 2 or 3 features.
    removed = lambda x: jnp.sum(x == 0, dtype=float)
    pairs = jax.jit(
        lambda g: M.sensitivity_n(removed, groups=g, n_groups=9, n_samples=20).curve(jnp.ones(N), X, key=KEY)
    )
    curve = pairs(labels)
    assert (curve.share > 0.3).all() and (curve.share < 0.7).all()
    assert relative(curve.correlation, -np.ones(len(curve.share))) < 1e-9  # Σ R is the number of features removed


def test_a_score_that_is_not_finite_gives_nan():
    broken = lambda x: NET(x) + jnp.log(jnp.where(x[3] == 0, -1.0, 1.0))
    for metric in (
        M.monotonicity,
        M.faithfulness_estimate,
        functools.partial(M.monotonicity_correlation, baseline=0.0),
        M.pixel_flipping,
    ):
        assert np.isnan(run(metric(broken)))
    turns = np.asarray(jax.jit(M.controls.greedy(broken))(X))
    assert turns[3] == 1  # what makes it NaN is removed last


def test_a_removal_removes_something_and_areas_are_over_the_shares_reached():
    curve = jax.jit(M.pixel_flipping(NET, until=0.05).curve)(R, X)
    assert relative(curve.share, np.array([0, 1 / N])) < 1e-12
    flat = M.Curve(jnp.array([0.25, 0.75]), jnp.ones(2))
    assert flat.area == 1


def test_infidelity_is_of_the_perturbation_that_the_score_sees():
    x = jnp.ones(50, jnp.bfloat16)
    measure = M.infidelity(lambda x: jnp.sum(x.astype(jnp.float32)), noise=0.01, n_samples=20, key=KEY)
    assert jax.jit(measure)(jnp.ones(50, jnp.bfloat16), x) < 1e-9
