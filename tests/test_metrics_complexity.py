"""Complexity: closed forms, invariances, loops in NumPy, transforms, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import text
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxplain as jx
from jaxplain.metrics._complexity import complexity, effective_complexity, sparseness, sufficiency
from jaxplain.metrics.removal import uniform

# Compiled as a whole: one small program rather than one for each operation.
SPARSENESS, COMPLEXITY, NORMALIZED = map(jax.jit, (sparseness(), complexity(), complexity(normalize=True)))
MAPS_ALONE = {"sparseness": SPARSENESS, "complexity": COMPLEXITY, "normalized": NORMALIZED}


def _tree(flat):
    """The same twelve numbers as a pytree, beside an integer leaf, which no method explains."""
    return {"image": flat[:8].reshape(2, 2, 2), "rest": (flat[8:], jnp.zeros(3, int))}


# --- Of the map alone ------------------------------------------------------------------------------------------------


def _gini(heat):
    """Half of the mean difference over the mean."""
    sizes = [abs(float(r)) for r in np.ravel(heat)]
    differences = [abs(a - b) for a in sizes for b in sizes]
    return np.mean(differences) / (2 * np.mean(sizes))


def _entropy(heat):
    sizes = [abs(float(r)) for r in np.ravel(heat)]
    return sum(-s / sum(sizes) * np.log(s / sum(sizes)) for s in sizes if s)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), zeros=st.integers(0, 11))
def test_map_alone_against_loops(seed, zeros):
    heat = np.random.default_rng(seed).normal(size=12)
    heat[:zeros] = 0
    want = {"sparseness": _gini(heat), "complexity": _entropy(heat), "normalized": _entropy(heat) / np.log(12)}
    for name, measure in MAPS_ALONE.items():
        np.testing.assert_allclose(measure(heat), want[name], rtol=1e-12, atol=1e-15)


def test_closed_forms():
    one = np.zeros(7)
    one[3] = -5.0
    assert np.isclose(SPARSENESS(one), 1 - 1 / 7, rtol=1e-15) and COMPLEXITY(one) == 0 and NORMALIZED(one) == 0
    same = np.full((3, 4), -2.0)
    np.testing.assert_allclose(SPARSENESS(same), 0, atol=1e-16)
    np.testing.assert_allclose(COMPLEXITY(same), np.log(12))
    np.testing.assert_allclose(NORMALIZED(same), 1)
    np.testing.assert_allclose(jnp.exp(COMPLEXITY(np.r_[np.zeros(4), np.full(3, 0.2)])), 3)
    single = np.array([2.0])
    assert SPARSENESS(single) == 0 and COMPLEXITY(single) == 0 and NORMALIZED(single) == 0


def test_map_alone_without_jit():
    heat = np.array([1.0, -3.0, 0.0])
    for measure, jitted in ((sparseness(), SPARSENESS), (complexity(), COMPLEXITY)):
        np.testing.assert_allclose(measure(heat), jitted(heat), rtol=1e-14)


@pytest.mark.parametrize("name", MAPS_ALONE)
def test_map_alone_invariances_and_transforms(name, key):
    measure = MAPS_ALONE[name]
    maps = jax.random.normal(key, (5, 12))
    each = np.array([measure(heat) for heat in maps])
    assert each.std() > 0
    batch = jax.jit(jax.vmap(measure))
    for changed in (-maps, 1e-300 * maps, 1e300 * maps, maps[:, ::-1], jnp.abs(maps).reshape(5, 3, 4)):
        np.testing.assert_allclose(batch(changed), each, rtol=1e-12)
    np.testing.assert_allclose(measure(_tree(maps[0])), each[0], rtol=1e-12)
    doubled = SPARSENESS(jnp.concatenate([maps[0], maps[0]]))
    np.testing.assert_allclose(doubled, SPARSENESS(maps[0]), rtol=1e-12)
    half = maps[0].astype(jnp.bfloat16)
    assert measure(half).dtype == jnp.float32
    np.testing.assert_allclose(measure(half), measure(half.astype(jnp.float64)), rtol=1e-6)
    for nothing in (0 * maps[0], maps[0].at[3].set(jnp.nan), maps[0].at[3].set(-jnp.inf)):
        assert np.isnan(measure(nothing)) and np.isnan(measure(_tree(nothing)))
    with pytest.raises(jx.InputError) as error:
        measure(jnp.arange(3))
    assert f"metrics.{name if name != 'normalized' else 'complexity'}: the attribution" in text(error)


def test_a_large_map_in_single_precision(key):
    heat = np.asarray(jax.random.normal(key, (200_000,), jnp.float32))
    for measure in MAPS_ALONE.values():
        np.testing.assert_allclose(measure(heat), measure(heat.astype(np.float64)), rtol=3e-6)


# --- Effective complexity --------------------------------------------------------------------------------------------

X = jnp.array([1.0, -2.0, 0.5, 3.0, -1.0, 0.3])
W = jnp.array([0.5, 1.0, -4.0, 0.1, 0.0, 2.0])


def _score(x):
    return jnp.tanh(x @ W) + x[0] * x[3]


def _kept_errors(score, order, x, baselines):
    """errors[k]: with the first k of `order` kept."""
    errors = []
    for k in range(len(order) + 1):
        losses = []
        for b in baselines:
            point = np.array(b, float)
            for i in order[:k]:
                point[i] = x[i]
            losses.append(float(score(x) - score(jnp.asarray(point))) ** 2)
        errors.append(np.mean(losses))
    return np.array(errors)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_effective_complexity_against_a_loop(chunk_size, key):
    relevance = jax.random.normal(key, X.shape)
    order = np.argsort(-np.abs(relevance), kind="stable")
    errors = _kept_errors(_score, order, X, [np.full(6, 0.2)])
    measure = lambda t: effective_complexity(_score, tolerance=t, baseline=0.2, chunk_size=chunk_size)
    run = jax.jit(lambda t: measure(t)(relevance, X))
    for tolerance in (1e-9, 0.05, 0.5, 3.0, 100.0):
        want = next(k for k, error in enumerate(errors) if error < tolerance)
        np.testing.assert_allclose(run(tolerance), want / 6)
    kept = jax.jit(measure(1.0).curve)(relevance, X)
    np.testing.assert_allclose(kept.share, np.arange(7) / 6)
    np.testing.assert_allclose(kept.error, errors, rtol=1e-12, atol=1e-15)


def test_effective_complexity_takes_the_mean_over_draws(key):
    pool = jax.random.normal(key, (3, 6))
    measure = effective_complexity(_score, tolerance=0.5, baseline=jx.references(pool), n_samples=8)
    drawn = [int(jax.random.randint(jax.random.fold_in(key, j), (), 0, 3)) for j in range(8)]
    errors = _kept_errors(_score, np.argsort(-np.abs(W), kind="stable"), X, [pool[i] for i in drawn])
    np.testing.assert_allclose(jax.jit(measure.curve)(W, X, key=key).error, errors, rtol=1e-12, atol=1e-15)
    assert measure.needs_key
    with pytest.raises(jx.MissingKeyError):
        measure(W, X)
    noise = effective_complexity(_score, tolerance=0.5, baseline=uniform(-1, 1), key=key, chunk_size=7)
    assert 0 <= jax.jit(noise)(W, X) <= 1


def test_effective_complexity_closed_forms():
    of = lambda score, tolerance=1e-12: jax.jit(effective_complexity(score, tolerance=tolerance, baseline=0.0))
    linear = of(lambda x: x @ W)
    # The fifth feature has no weight, and comes last among five that are kept.
    assert np.isclose(linear(X * W, X), 5 / 6)
    assert np.isclose(linear(-3 * X * W, X), 5 / 6)  # the order of |R| alone
    assert linear(jnp.where(X * W == 0, -1.0, 0.0), X) == 1  # what is not needed goes first
    assert np.isclose(of(lambda x: x[2] * 2)(W, X), 1 / 6)
    assert of(lambda x: 0 * x[0])(W, X) == 0
    # Errors 1, 4, 0: not the k from which on all are small, the first.
    score = lambda x: x[0] - x[1] * 2
    assert of(score, 1.5)(jnp.array([1.0, 2]), jnp.ones(2)) == 0
    assert of(score, 0.5)(jnp.array([1.0, 2]), jnp.ones(2)) == 1
    # Of equal |R| the first in C order is kept first.
    ties = of(lambda x: x[0])
    assert ties(jnp.ones(4), jnp.ones(4)) == 1 / 4 and ties(jnp.array([1.0, 2, -2, 1]), jnp.ones(4)) == 3 / 4


def test_effective_complexity_groups_and_pytrees():
    def score(inputs, scale):
        return scale * (inputs["image"].sum() + inputs["rest"][0][0] * inputs["rest"][1][0].astype(float))

    x = _tree(jnp.arange(1.0, 13.0))
    x["rest"] = (x["rest"][0], jnp.ones(3, int))
    relevance = jax.tree.map(jnp.ones_like, x)
    measure = jax.jit(effective_complexity(score, tolerance=1e-9, baseline=0.0))
    assert measure(relevance, x, 2.0) == 9 / 12
    groups = {"image": jnp.array([[0], [1]])[..., None], "rest": (2, None)}
    grouped = effective_complexity(score, tolerance=1e-9, baseline=0.0, groups=groups)
    relevance["rest"] = (jnp.full(4, -2.0), relevance["rest"][1])  # |−8| is the largest total
    np.testing.assert_allclose(jax.jit(grouped.curve)(relevance, x, 2.0).error, [90.0**2, 72.0**2, 52.0**2, 0])
    image = jnp.arange(1.0, 13.0).reshape(2, 2, 3)
    pixels = effective_complexity(jnp.sum, tolerance=1.0, baseline=0.0, groups=jx.patches(1, 1))
    assert jax.jit(pixels.curve)(jnp.ones((2, 2)), image).share.shape == (5,)  # a map over the places
    second = effective_complexity(lambda y, x: x @ W + y, tolerance=1e-9, baseline=0.0, argnums=1)
    assert np.isclose(jax.jit(second)(X * W, 1.0, X), 5 / 6)


def test_effective_complexity_transforms_and_what_is_not_finite(key):
    measure = effective_complexity(_score, tolerance=0.3, baseline=0.0)
    run = jax.jit(measure)
    xs = jax.random.normal(key, (4, 6))
    relevance = xs * W[None]
    each = np.array([run(r, x) for r, x in zip(relevance, xs, strict=True)])
    assert each.std() > 0 and measure(relevance[0], xs[0]) == each[0]
    np.testing.assert_array_equal(jax.jit(jax.vmap(measure))(relevance, xs), each)
    traced = jax.jit(lambda t: effective_complexity(_score, tolerance=t, baseline=0.0)(relevance[0], xs[0]))
    np.testing.assert_array_equal(traced(0.3), each[0])
    assert np.isnan(traced(0.0)) and np.isnan(traced(-1.0)) and np.isnan(traced(jnp.nan))
    assert np.isnan(run(relevance[0].at[1].set(jnp.inf), xs[0]))
    for broken in (lambda x: jnp.log(x[0]), lambda x: x[0] * jnp.nan):
        assert np.isnan(jax.jit(effective_complexity(broken, tolerance=1.0, baseline=0.0))(W, X))
    half = effective_complexity(lambda x: x @ W.astype(x.dtype), tolerance=1e-3, baseline=0.0)
    value = jax.jit(half)((X * W).astype(jnp.bfloat16), X.astype(jnp.bfloat16))
    assert value.dtype == jnp.float32 and np.isclose(value, 5 / 6)


def test_effective_complexity_settings_are_checked():
    for bad, words in (
        (dict(tolerance=0.0), "`tolerance` must be positive"),
        (dict(tolerance=-0.1), "`tolerance` must be a finite real number, and must not be negative"),
        (dict(tolerance=float("nan")), "nan"),
        (dict(n_samples=0), "`n_samples` must be a positive Python integer"),
        (dict(chunk_size=0), "`chunk_size`"),
    ):
        with pytest.raises(jx.SettingError) as error:
            effective_complexity(_score, **(dict(tolerance=1.0, baseline=0.0) | bad))
        assert "metrics.effective_complexity" in text(error) and words in text(error)
    with pytest.raises(jx.StructureError, match="does not have the structure"):
        effective_complexity(_score, tolerance=1.0, baseline=0.0)(W[:3], X)


# --- Sufficiency -----------------------------------------------------------------------------------------------------


def _sufficiency(maps, labels, threshold):
    n = len(maps)
    spread = maps.std(0)
    distances = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            distances[i, j] = np.sqrt(sum(((maps[i] - maps[j])[spread > 0] / spread[spread > 0]) ** 2))
    result = []
    for i in range(n):
        near = [j for j in range(n) if j != i and distances[i, j] <= threshold * distances.max()]
        result.append(np.mean([labels[j] == labels[i] for j in near]) if near else np.nan)
    return np.array(result)


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_sufficiency_against_loops(threshold):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 12)
    maps = 0.7 * labels[:, None] + rng.normal(size=(12, 4)) * [1, 10, 0.1, 1]
    maps[:, 3] = 0.1  # a feature that never varies
    want = _sufficiency(maps, labels, threshold)
    measure = jax.jit(sufficiency(threshold=threshold))
    np.testing.assert_allclose(measure(maps, labels), want, rtol=1e-12)
    np.testing.assert_allclose(measure(maps * [1e-3, 1e200, -1e-200, 1], labels), want, rtol=1e-12)
    as_tree = {"a": maps[:, :2].reshape(12, 1, 2), "b": maps[:, 2:], "c": labels}
    np.testing.assert_allclose(measure(as_tree, labels), want, rtol=1e-12)
    sets = jax.vmap(measure)(jnp.stack([maps, maps[::-1]]), jnp.stack([labels, labels[::-1]]))
    np.testing.assert_allclose(sets, [want, want[::-1]], rtol=1e-12)


def test_sufficiency_closed_forms():
    measure = jax.jit(sufficiency())
    labels = np.array([0, 0, 1, 1])
    apart = np.array([0.0, 0.1, 5.0, 5.1])[:, None]
    np.testing.assert_array_equal(measure(apart, labels), 1)
    np.testing.assert_array_equal(measure(apart, np.array([0, 1, 0, 1])), 0)
    np.testing.assert_allclose(measure(0 * apart + 0.1, labels), 1 / 3)  # all alike
    np.testing.assert_array_equal(measure(np.array([0.0, 1.0, 9.0])[:, None], labels[:3]), [1, 1, np.nan])
    assert np.isnan(measure(apart[:1], labels[:1])).all()  # nothing to compare with
    for broken in (jnp.nan, jnp.inf):
        assert np.isnan(measure(jnp.asarray(apart).at[2].set(broken), labels)).all()
    # At a threshold of 0 only those that are the same.
    np.testing.assert_array_equal(
        jax.jit(sufficiency(threshold=0))(apart[[0, 0, 2, 3]], labels), [1, 1, np.nan, np.nan]
    )
    assert measure(jnp.asarray(apart, jnp.bfloat16), labels).dtype == jnp.float32


def test_sufficiency_refuses_what_does_not_fit():
    maps, labels = np.ones((4, 3)), np.arange(4)
    for bad_maps, bad_labels in (
        (maps, labels[:3]),
        (maps, labels * 1.0),
        (maps, np.eye(4, dtype=int)),
        ({"a": maps, "b": maps[:3]}, labels),
    ):
        with pytest.raises(jx.StructureError) as error:
            sufficiency()(bad_maps, bad_labels)
        assert "one leading axis for all, and integers (n,)" in text(error)
    with pytest.raises(jx.InputError, match="real array"):
        sufficiency()(labels, labels)
    for threshold in (-0.1, 1.1, float("nan"), True, "0.6"):
        with pytest.raises(jx.SettingError, match="share of the largest distance"):
            sufficiency(threshold=threshold)
