"""Robustness: closed forms, plain NumPy over the documented draws, what does not count, what is not finite, errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative, relu_net, text

import jaxplain as jx
from jaxplain._arguments import Arguments


def _compiled(make):
    return lambda *args, **settings: jax.jit(make(*args, **settings))


max_sensitivity, avg_sensitivity = _compiled(jx.metrics.max_sensitivity), _compiled(jx.metrics.avg_sensitivity)
local_lipschitz_estimate, continuity = _compiled(jx.metrics.local_lipschitz_estimate), _compiled(jx.metrics.continuity)
relative_input_stability = _compiled(jx.metrics.relative_input_stability)
relative_output_stability = _compiled(jx.metrics.relative_output_stability)
relative_representation_stability = _compiled(jx.metrics.relative_representation_stability)

F = relu_net(jax.random.key(0), (4, 8, 1), 0.3, jnp.tanh)
X = jax.random.normal(jax.random.key(1), (4,))
W = jnp.array([2.0, -1.0, 0.5, 3.0])
LINEAR = lambda x: x @ W
EXPLAIN = jax.jit(lambda x: x * jax.grad(F)(x))
TIMES = lambda x: x * W  # input × gradient of the linear score
OUTPUT = lambda x: jnp.stack([F(x), F(2 * x)])
HIDDEN = lambda x: {"a": jnp.tanh(x) + 2, "b": x**2}

# Every metric: how it is made, and the same in NumPy: ratio(R, R', x, x').
NORM = np.linalg.norm
RELATIVE = lambda r, s: NORM((r - s) / r)
_H = lambda x: np.concatenate([np.asarray(HIDDEN(jnp.asarray(x))[k]) for k in "ab"])
METRICS = {
    "max_sensitivity": (max_sensitivity, {}, lambda r, s, x, y: NORM(r - s) / NORM(r)),
    "avg_sensitivity": (avg_sensitivity, {}, lambda r, s, x, y: NORM(r - s) / NORM(r)),
    "sensitivity of the paper": (max_sensitivity, dict(normalize=False), lambda r, s, x, y: NORM(r - s)),
    "local_lipschitz_estimate": (local_lipschitz_estimate, {}, lambda r, s, x, y: NORM(r - s) / NORM(x - y)),
    "continuity": (continuity, {}, lambda r, s, x, y: NORM(r - s, 1) / NORM(x - y)),
    "normalized continuity": (
        continuity,
        dict(normalize=True),
        lambda r, s, x, y: NORM(r - s, 1) / NORM(x - y) / NORM(r, 1),
    ),
    "relative_input_stability": (
        relative_input_stability,
        {},
        lambda r, s, x, y: RELATIVE(r, s) / RELATIVE(x, y),
    ),
    "relative_output_stability": (
        relative_output_stability,
        dict(output=OUTPUT),
        lambda r, s, x, y: RELATIVE(r, s) / NORM(np.asarray(OUTPUT(jnp.asarray(x)) - OUTPUT(jnp.asarray(y)))),
    ),
    "relative_representation_stability": (
        relative_representation_stability,
        dict(representation=HIDDEN),
        lambda r, s, x, y: RELATIVE(r, s) / RELATIVE(_H(x), _H(y)),
    ),
}


def _by_hand(name, explain, points, x=X):
    """The metric by its definition: a loop in NumPy over given neighbors."""
    ratio = METRICS[name][2]
    values = [ratio(*map(np.asarray, (explain(x), explain(p), x, p))) for p in points]
    return np.mean(values) if name == "avg_sensitivity" else np.max(values)


def _box(key, n, radius, x=X):
    """The documented draws of `ball`."""
    keys = (jax.random.split(jax.random.fold_in(key, k), 1)[0] for k in range(n))
    return [x + radius * jax.random.uniform(k, x.shape, x.dtype, -1, 1) for k in keys]


@pytest.mark.parametrize("name", METRICS)
def test_definitions(name):
    make, settings, _ = METRICS[name]
    points = X[None] + 0.3 * jax.random.normal(jax.random.key(5), (3, 4))
    got = make(EXPLAIN, neighbors=jx.metrics.neighbors.given(points), **settings)(X)
    assert relative(got, _by_hand(name, EXPLAIN, points)) < 1e-10


def test_draws_chunks_and_vmap(key):
    for chunk_size in (1, 2, 5):
        measure = avg_sensitivity(EXPLAIN, neighbors=jx.metrics.neighbors.ball(0.3, n_samples=5), chunk_size=chunk_size)
        assert relative(measure(X, key=key), _by_hand("avg_sensitivity", EXPLAIN, _box(key, 5, 0.3))) < 1e-12
    measure = jx.metrics.continuity(EXPLAIN, neighbors=jx.metrics.neighbors.ball(0.3, n_samples=5), chunk_size=2)
    xs, keys = jnp.stack([X, X + 1]), jax.random.split(key)
    got = jax.jit(jax.vmap(measure))(xs, key=keys)
    for value, x, k in zip(got, xs, keys, strict=True):
        want = _by_hand("continuity", EXPLAIN, _box(k, 5, 0.3, x), x)
        assert relative(value, want) < 1e-10
    assert relative(measure(x, key=k), want) < 1e-10  # not compiled


def test_other_draws_are_the_documented_ones(key):
    measure = lambda neighbors: continuity(EXPLAIN, neighbors=neighbors, key=key)
    folded = [jax.random.fold_in(key, k) for k in range(4)]
    points = [X + 0.2 * jax.random.normal(jax.random.split(k, 1)[0], X.shape, X.dtype) for k in folded]
    assert (
        relative(measure(jx.metrics.neighbors.gaussian(0.2, n_samples=4))(X), _by_hand("continuity", EXPLAIN, points))
        < 1e-10
    )
    points = []
    for k in folded:
        first, last = jax.random.split(k, 2)
        g = jax.random.normal(first, X.shape, X.dtype)
        points.append(X + 0.2 * g / NORM(g) * jax.random.uniform(last, (), X.dtype) ** (1 / 4))
    got = measure(jx.metrics.neighbors.ball(0.2, n_samples=4, norm="2"))(X)
    assert relative(got, _by_hand("continuity", EXPLAIN, points)) < 1e-10
    turned = jx.metrics.neighbors.drawn(lambda k, x: jnp.roll(x, jax.random.randint(k, (), 1, 4)), n_samples=4)
    points = [jnp.roll(X, jax.random.randint(k, (), 1, 4)) for k in folded]
    assert relative(measure(turned)(X), _by_hand("continuity", EXPLAIN, points)) < 1e-10


@pytest.mark.parametrize(("norm", "share"), [("inf", 0.5**3), ("2", 0.5**3)])
def test_balls_are_filled_uniformly(norm, share, key):
    # An ellipsoid, or box, in three of four dimensions: radius 0 is none.
    radius = jnp.array([2.0, 0.0, 1.0, 0.5])
    catch = lambda arguments: jx.metrics.neighbors.ball(radius, n_samples=1, norm=norm).visit(
        arguments, lambda p: (p[0], True)
    )
    one = catch(Arguments("test", (X,), 0))
    points = np.asarray(jax.vmap(lambda k: one(0, k)[0])(jax.random.split(key, 4000)))
    offsets = ((points - np.asarray(X)) / np.where(radius > 0, radius, 1)).round(12)
    assert (offsets[:, 1] == 0).all()
    size = np.abs(offsets).max(1) if norm == "inf" else NORM(offsets, axis=1)
    assert size.max() <= 1 and size.max() > 0.99
    assert abs((size < 0.5).mean() - share) < 0.02
    np.testing.assert_allclose(offsets.mean(0), 0, atol=0.03)


def _max_net(x):
    """max(x₁, x₂) of positive numbers, as a ReLU network: the example of Montavon et al."""
    a = jax.nn.relu(x @ jnp.array([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]))
    return jax.nn.relu(0.5 * jnp.sum(a))


def test_the_maximum_of_two_numbers_as_a_network(key):
    deep_taylor = jx.lrp(_max_net, rules=jx.rules.zplus(epsilon=1e-14))
    x = jnp.array([3.0, 2.0])
    np.testing.assert_allclose(deep_taylor(x), [3 - 2 / 2, 2 / 2], rtol=1e-12)
    np.testing.assert_allclose(deep_taylor(x[::-1]), [2 / 2, 3 - 2 / 2], rtol=1e-12)
    mirrored = jx.metrics.neighbors.drawn(lambda _, x: x[::-1], n_samples=1)
    value = lambda explain: continuity(explain, neighbors=mirrored, key=key)
    for explain, want in (
        (deep_taylor, lambda gap: np.sqrt(2)),
        (jx.gradient(_max_net), lambda gap: 2 / gap),
        (jx.input_x_gradient(_max_net), lambda gap: 2 * 2.0 / gap),
    ):
        measure = value(explain)
        for gap in (1e-1, 1e-3):
            near = jnp.array([2.0, 2.0 - gap / np.sqrt(2)])  # it and its mirror image are `gap` apart
            np.testing.assert_allclose(measure(near), want(gap), rtol=1e-8)
    # √2 everywhere, not just there: no search around the diagonal finds more.
    worst = continuity(
        deep_taylor, neighbors=jx.metrics.neighbors.ascent(0.5, n_starts=20, n_steps=10, norm="2"), key=key
    )(near)
    assert np.sqrt(2) * 0.999 < worst < np.sqrt(2) * (1 + 1e-8)


def test_linear_scores(key):
    for make, settings, _ in METRICS.values():
        assert make(jax.grad(LINEAR), neighbors=jx.metrics.neighbors.given(X[None] + jnp.eye(4)), **settings)(X) == 0
    # Input × gradient: closed suprema over the ball, which no sample exceeds and ascent reaches.
    radius = 0.5
    for norm, metric, settings, want in (
        ("inf", max_sensitivity, {}, radius * NORM(W) / NORM(X * W)),
        ("2", local_lipschitz_estimate, {}, 3),
        ("2", continuity, {}, NORM(W)),
    ):
        sampled = metric(
            TIMES, neighbors=jx.metrics.neighbors.ball(radius, n_samples=5, norm=norm), key=key, **settings
        )(X)
        climbed = metric(
            TIMES, neighbors=jx.metrics.neighbors.ascent(radius, n_steps=40, norm=norm), key=key, **settings
        )(X)
        assert sampled <= climbed <= want * (1 + 1e-12)
        assert sampled < 0.97 * want and climbed > 0.99 * want
    np.testing.assert_allclose(
        relative_input_stability(TIMES, neighbors=jx.metrics.neighbors.given(X[None] + jnp.eye(4)))(X), 1, rtol=1e-12
    )


def test_ascent_finds_no_less_than_its_starts_and_more(key):
    # Steepest in the outermost corner.
    x = jnp.array([1.0, -2.0])
    far = x + 0.5 * jnp.sign(x)
    explain = lambda x: 4 * x**3
    climbed = max_sensitivity(explain, neighbors=jx.metrics.neighbors.ascent(0.5), normalize=False, key=key)(x)
    assert relative(climbed, NORM(explain(far) - explain(x))) < 1e-10
    # A piecewise constant explanation gives no direction: what is left are the starts.
    steps = lambda x: jnp.round(3 * x)
    starts = jx.metrics.neighbors.ball(0.5, n_samples=5)
    assert max_sensitivity(steps, neighbors=jx.metrics.neighbors.ascent(0.5), key=key)(x) == (
        max_sensitivity(steps, neighbors=starts, key=key)(x)
    )
    # The worst point of a path counts, not the last: far too long steps jump about.
    jumping = jx.metrics.neighbors.ascent(0.5, n_steps=7, step_size=5.0)
    found = local_lipschitz_estimate(lambda x: jnp.sin(9 * x), neighbors=jumping, key=key)(x)
    assert found >= local_lipschitz_estimate(lambda x: jnp.sin(9 * x), neighbors=starts, key=key)(x)


def test_larger_balls_and_more_samples_find_more(key):
    value = lambda radius, n: max_sensitivity(
        jx.input_x_gradient(F), neighbors=jx.metrics.neighbors.ball(radius, n_samples=n), key=key
    )(X)
    for wide, narrow in itertools.pairwise((0.4, 0.2, 0.1, 0.05)):
        assert value(wide, 10) > value(narrow, 10)
    assert value(0.2, 3) <= value(0.2, 10) <= value(0.2, 30)  # the same draws and more


@pytest.mark.parametrize(
    ("shifts", "axes", "moves"),
    [
        (2, 1, [(0, -2), (0, -1), (0, 1), (0, 2)]),
        ([1, 3, 0, 1, 9], 0, [(1, 0), (3, 0), (9, 0)]),
        (1, (0, 1), [m for m in itertools.product((-1, 0, 1), repeat=2) if any(m)]),
        ([[2], 1], (1, 0), [(-1, 2), (0, 2), (1, 2)]),
        (-1, -2, []),
    ],
)
def test_translations(shifts, axes, moves):
    image = np.asarray(jax.random.normal(jax.random.key(3), (4, 5, 2)))
    explain = lambda x: jnp.sin(x[:, :, 0])
    if not moves:
        with pytest.raises(jx.SettingError, match="no shift is left"):
            jx.metrics.neighbors.translations(shifts, axes=axes)
        return
    for fill in (0.0, 7.0, image * 0.5):
        points = []
        for down, right in moves:
            point = np.broadcast_to(fill, image.shape).copy()
            for i, j in np.ndindex(4, 5):
                if 0 <= i - down < 4 and 0 <= j - right < 5:
                    point[i, j] = image[i - down, j - right]
            points.append(jnp.asarray(point))
        rows = jx.metrics.neighbors.translations(
            shifts, axes=axes, fill=fill if isinstance(fill, float) else lambda x: x * 0.5
        )
        assert rows.n == len(moves)
        got = continuity(explain, neighbors=rows, chunk_size=3)(image)
        want = max(
            NORM(np.ravel(explain(image) - explain(p)), 1) / NORM(np.ravel(image - np.asarray(p))) for p in points
        )
        assert relative(got, want) < 1e-12


def test_pytrees_argnums_and_maps_of_another_shape(key):
    def f(x, scale, y):
        return scale * (jnp.sum(x["a"] ** 3) + jnp.sum(x["b"]) ** 2) + jnp.sum(y**2)

    x = {"a": jnp.arange(1.0, 4.0), "b": jnp.ones((2, 2)), "n": jnp.array([1, 2])}
    y = jnp.array([5.0, 6.0])
    explain = jx.gradient(f, argnums=(0, 2))
    radius = ({"a": 0.3 * jnp.ones(3), "b": jnp.zeros((2, 2)), "n": jnp.zeros(2)}, 0.1)
    measure = continuity(explain, neighbors=jx.metrics.neighbors.ball(radius, n_samples=4), chunk_size=3)
    want = []
    for k in range(4):
        keys = jax.random.split(jax.random.fold_in(key, k), 3)
        da = 0.3 * jax.random.uniform(keys[0], (3,), y.dtype, -1, 1)
        dy = 0.1 * jax.random.uniform(keys[2], (2,), y.dtype, -1, 1)
        change = jnp.abs(2 * 3 * (x["a"] ** 2 - (x["a"] + da) ** 2)).sum() + 2 * jnp.abs(dy).sum()
        want.append(change / NORM(np.concatenate([da, dy])))
    assert relative(measure(x, 2.0, y, key=key), max(want)) < 1e-12
    # None leaves an argument alone.
    alone = jx.metrics.neighbors.ball((None, 0.1), n_samples=3)
    assert relative(local_lipschitz_estimate(explain, neighbors=alone, key=key)(x, 2.0, y), 2) < 1e-10
    pooled = lambda x: jnp.sum(x.reshape(2, 2), axis=1)  # a map coarser than x
    got = max_sensitivity(pooled, neighbors=jx.metrics.neighbors.ball(0.3, n_samples=4), key=key)(X)
    assert relative(got, _by_hand("max_sensitivity", pooled, _box(key, 4, 0.3))) < 1e-12


def test_a_stochastic_explainer_draws_the_same_at_x_and_its_neighbors(key):
    def noisy(x, *, key):
        return x**3 + jax.random.normal(key, x.shape)

    noisy.needs_key = True
    points = X[None] + 0.3 * jnp.eye(4)
    measure = jx.metrics.max_sensitivity(noisy, neighbors=jx.metrics.neighbors.given(points), chunk_size=3)
    own = jax.random.fold_in(key, np.uint32(2**32 - 1))
    want = _by_hand("max_sensitivity", lambda x: noisy(x, key=own), points)
    assert relative(jax.jit(measure)(X, key=key), want) < 1e-10
    assert (
        measure.needs_key
        and not jx.metrics.max_sensitivity(TIMES, neighbors=jx.metrics.neighbors.given(points)).needs_key
    )
    assert jx.metrics.max_sensitivity(TIMES, neighbors=jx.metrics.neighbors.ball(0.1)).needs_key
    run = jx.batched(measure, batch_size=2, progress=False)
    folded = jax.jit(measure)(X, key=jax.random.fold_in(key, 1))
    assert relative(run(jnp.stack([X] * 2), key=key)[1], folded) < 1e-12


def test_only_neighbors_of_the_same_class_count(key):
    x, points = jnp.array([0.05]), _box(key, 20, 0.3, jnp.array([0.05]))
    predict = lambda x: (x > 0).astype(int)
    explain = lambda x: jnp.where(x > 0, x**2, 100 + x)
    kept = [p for p in points if p > 0]
    assert 0 < len(kept) < 20
    for name in ("max_sensitivity", "avg_sensitivity", "relative_input_stability"):
        measure = METRICS[name][0](explain, neighbors=jx.metrics.neighbors.ball(0.3, n_samples=20), predict=predict)
        assert relative(measure(x, key=key), _by_hand(name, explain, kept, x)) < 1e-10
    other = max_sensitivity(
        explain, neighbors=jx.metrics.neighbors.drawn(lambda k, x: -x, n_samples=2), predict=predict
    )
    assert np.isnan(other(x, key=key))
    # In ascent, too, although what it climbs leads away.
    climbed = max_sensitivity(explain, neighbors=jx.metrics.neighbors.ascent(0.3), normalize=False, predict=predict)(
        x, key=key
    )
    assert relative(climbed, (x[0] + 0.3) ** 2 - x[0] ** 2) < 1e-6


@pytest.mark.parametrize(
    "neighbors", [jx.metrics.neighbors.ball(0.0), jx.metrics.neighbors.ascent(0.0), jx.metrics.neighbors.given(X[None])]
)
def test_x_itself_is_no_neighbor(neighbors, key):
    assert np.isnan(max_sensitivity(EXPLAIN, neighbors=neighbors, key=key)(X))


def test_what_is_not_finite_is_nan(key):
    near = jx.metrics.neighbors.ball(0.3, n_samples=40)
    infinite = lambda x: jnp.where(x > X + 0.29, jnp.inf, x)  # at some of the neighbors only
    missing = lambda x: jnp.where(x == X, jnp.nan, x)
    for name in ("avg_sensitivity", "continuity", "relative_input_stability"):
        assert np.isnan(METRICS[name][0](infinite, neighbors=near, key=key)(X)), name
    assert np.isnan(max_sensitivity(missing, neighbors=near, key=key)(X))
    assert np.isnan(max_sensitivity(infinite, neighbors=jx.metrics.neighbors.ascent(0.3, n_starts=40), key=key)(X))
    assert np.isnan(relative_output_stability(TIMES, output=infinite, neighbors=near, key=key)(X))
    nothing = lambda x: x - jax.lax.stop_gradient(x)
    assert np.isnan(max_sensitivity(nothing, neighbors=near, key=key)(X))  # no share of 0
    assert max_sensitivity(nothing, neighbors=near, normalize=False, key=key)(X) == 0


def test_dtypes_and_units(key):
    # In bf16 the neighbors that the model sees are rounded: distances are those of what it saw.
    x = jnp.array([1.0, 100.0], jnp.bfloat16)
    double = lambda x: 2 * x
    value = local_lipschitz_estimate(double, neighbors=jx.metrics.neighbors.ball(0.02, n_samples=20), key=key)(x)
    assert value.dtype == jnp.float32 and value == 2
    assert np.isnan(continuity(double, neighbors=jx.metrics.neighbors.ball(1e-4), key=key)(x))  # below its resolution
    x = jnp.arange(1.0, 5.0, dtype=jnp.float32)
    square = lambda x, unit: unit * x**2
    for name in ("max_sensitivity", "local_lipschitz_estimate", "relative_input_stability"):
        measure = METRICS[name][0](square, neighbors=jx.metrics.neighbors.ball(0.1), key=key)
        for unit in (1e-30, 1e30):
            scale = unit if name == "local_lipschitz_estimate" else 1
            assert relative(measure(x, jnp.float32(unit)), scale * measure(x, jnp.float32(1))) < 1e-5


def test_the_score_is_traced_once(key):
    count = []

    def f(x):
        count.append(1)
        return jnp.sum(x**3)

    for neighbors in (jx.metrics.neighbors.ball(0.1), jx.metrics.neighbors.ascent(0.1, n_steps=3)):
        count.clear()
        measure = jax.jit(
            jx.metrics.max_sensitivity(jx.gradient(f), neighbors=neighbors, chunk_size=4, predict=lambda x: x[0] > 0)
        )
        measure(X, key=key)
        measure(X + 1, key=key)
        assert len(count) == 1


def test_errors(key):
    gradient, near = jx.gradient(F), jx.metrics.neighbors.ball(0.1)
    for make, words in (
        (lambda: jx.metrics.max_sensitivity(gradient(X), neighbors=near), "not its result"),
        (lambda: jx.metrics.max_sensitivity(gradient, neighbors=0.1), "neighbors=jx.metrics.neighbors.ball"),
        (lambda: jx.metrics.max_sensitivity(jx.with_info(gradient), neighbors=near), "takes an explainer"),
        (lambda: jx.metrics.max_sensitivity(gradient, neighbors=near, predict=3), "`predict` must be a function"),
        (lambda: jx.metrics.max_sensitivity(gradient, neighbors=near, predict=F, key=key)(X), "the predicted class"),
        (
            lambda: jx.metrics.relative_output_stability(gradient, output=None, neighbors=near),
            "`output` must be a function",
        ),
        (
            lambda: jx.metrics.relative_input_stability(gradient, neighbors=near, eps_min=0.0),
            "`eps_min` must be positive",
        ),
        (lambda: jx.metrics.max_sensitivity(gradient, neighbors=near, chunk_size=0), "`chunk_size`"),
        (lambda: jx.metrics.avg_sensitivity(gradient, neighbors=jx.metrics.neighbors.ascent(0.1)), "not searched for"),
        (lambda: jx.metrics.neighbors.ball(-0.1), "`radius` must not be negative"),
        (lambda: jx.metrics.neighbors.ball(0.1, norm="1"), "unknown `norm`"),
        (lambda: jx.metrics.neighbors.ball(0.1, n_samples=0), "`n_samples`"),
        (lambda: jx.metrics.neighbors.ascent(0.1, n_steps=0), "`n_steps`"),
        (lambda: jx.metrics.neighbors.translations(1.5, axes=1), "translations\\(20, axes=1\\)"),
        (lambda: jx.metrics.neighbors.translations([1.5], axes=1), "`shifts` must be"),
        (lambda: jx.metrics.neighbors.translations([1, 2], axes=(0, 1, 2)), "`shifts` must be"),
        (
            lambda: jx.metrics.max_sensitivity(gradient, neighbors=jx.metrics.neighbors.translations(1), key=key)(X),
            "must have the axes",
        ),
        (
            lambda: jx.metrics.max_sensitivity(gradient, neighbors=jx.metrics.neighbors.ball(-X), key=key)(X),
            "`radius` must not be negative",
        ),
        (
            lambda: jx.metrics.max_sensitivity(gradient, neighbors=jx.metrics.neighbors.ball(X[:2]), key=key)(X),
            "`radius` does not match",
        ),
        (
            lambda: jx.metrics.max_sensitivity(
                gradient, neighbors=jx.metrics.neighbors.drawn(lambda k, x: x[:2]), key=key
            )(X),
            "draw\\(key, x\\)",
        ),
        (lambda: jx.metrics.max_sensitivity(lambda x: 3, neighbors=near, key=key)(X), "must be a real array"),
        (lambda: jx.metrics.max_sensitivity(gradient, neighbors=near)(X), "needs a random key"),
        (lambda: jx.metrics.max_sensitivity(gradient, neighbors=near, key=key)(jnp.arange(3)), "holds no float array"),
    ):
        with pytest.raises(jx.JaxplainError, match=words) as error:
            make()
        assert text(error).startswith("metrics.")


def test_ascent_says_when_there_is_no_derivative(key):
    def looping(x):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c + 1, x)

    for explain in (looping, jx.integrated_gradients(F, n_steps=2, tol=0.1)):
        sampled = jx.metrics.max_sensitivity(explain, neighbors=jx.metrics.neighbors.ball(0.1, n_samples=2), key=key)(X)
        assert np.isfinite(sampled)
        with pytest.raises(jx.JaxplainError, match="no derivative in reverse mode") as error:
            jx.metrics.max_sensitivity(explain, neighbors=jx.metrics.neighbors.ascent(0.1), key=key)(X)
        assert "sample instead: neighbors=jx.metrics.neighbors.ball" in text(error)
