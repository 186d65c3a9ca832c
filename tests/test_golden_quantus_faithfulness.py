"""Agreement of the metrics that remove sets of features with Quantus, on stored arrays, with its own draws.

Quantus' `sensitivity_n` draws no sets and is left out. Ours is compared with its faithfulness correlation, which is the
paper's for one n.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_quantus import BASELINES, MAPS, agree, examples, for_both_maps, measured, score, stored

import jaxplain as jx
from jaxplain import metrics
from jaxplain.metrics import _faithfulness as faithfulness

KEY = jax.random.key(0)
CORRELATIONS = {"pearson": faithfulness.correlation, "spearman": faithfulness.rank_correlation}
SETTINGS = [(1, "0.25", "pearson"), (6, "black", "pearson"), (6, "mean", "spearman")]
SIZES = (4, 16, 72)


def by_rank(heat, step):
    """Labels of Quantus' groups: `step` pixels each, the least relevant first."""
    ranks = jnp.argsort(jnp.argsort(heat.ravel())).reshape(heat.shape)
    return {"groups": ranks // step, "n_groups": heat.size // step, "chunk_size": 25}


def use_sets(monkeypatch, masks):
    """Set number k is the k-th of `masks`."""
    monkeypatch.setattr(faithfulness.Sets, "_chosen", lambda self, key, k, size: masks[k])


def subsets(size):
    """As masks (example, run, pixel)."""
    indices = stored("faithfulness")[f"faithfulness_correlation_subsets/{size}"].swapaxes(0, 1)
    return (indices[..., None].astype(int) == np.arange(144)).any(2)


# --- Groups, one by one -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "baseline", "similarity"), SETTINGS)
def test_faithfulness_estimate(step, baseline, similarity, monkeypatch):
    monkeypatch.setattr(faithfulness, "correlation", CORRELATIONS[similarity])

    def measure(heat, x, label):
        settings = by_rank(heat, step) if step > 1 else {"chunk_size": 25}
        return metrics.faithfulness_estimate(score, baseline=BASELINES[baseline], **settings)(heat, x, label)

    agree(measured(measure), f"faithfulness_estimate/{{}}/step={step},baseline={baseline},similarity={similarity}")


@pytest.mark.parametrize(("step", "baseline", "similarity"), SETTINGS)
def test_monotonicity_correlation(step, baseline, similarity, monkeypatch):
    """Quantus sums |map| over a group, we take |sum|; its factor 1 / f(x)² changes no correlation."""
    monkeypatch.setattr(faithfulness, "rank_correlation", CORRELATIONS[similarity])

    def measure(heat, x, label):
        heat = jnp.abs(heat)
        settings = by_rank(heat, step) if step > 1 else {"chunk_size": 25}
        return metrics.monotonicity_correlation(score, baseline=BASELINES[baseline], **settings)(heat, x, label)

    agree(measured(measure), f"monotonicity_correlation/{{}}/step={step},baseline={baseline},similarity={similarity}")


def test_monotonicity_correlation_with_stored_draws(monkeypatch):
    """Quantus draws one number for all pixels of a group, we one for each: the numbers it drew are put in."""

    def measure(heat, x, label, values):  # (group, sample)
        heat = jnp.abs(heat)

        def without(sets, is_removed, key, k):
            (removed,) = sets.labeled.spread(is_removed.astype(float), alone=0)
            return (jnp.where(removed > 0, values.ravel()[k], x),)

        monkeypatch.setattr(faithfulness.Sets, "without", without)
        settings = {"baseline": metrics.removal.uniform(), "n_samples": 4, "key": KEY, **by_rank(heat, 12)}
        return metrics.monotonicity_correlation(score, **settings)(heat, x, label)

    values = stored("faithfulness")["monotonicity_correlation_uniform_values"].transpose(2, 0, 1)
    agree(measured(measure, values)[1], stored("faithfulness")["monotonicity_correlation_uniform"])


# --- Random sets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_faithfulness_correlation(size, monkeypatch):
    def measure(heat, x, label, masks):
        use_sets(monkeypatch, masks)
        settings = {"subset_size": size, "n_samples": 20, "chunk_size": 25, "key": KEY}
        return metrics.faithfulness_correlation(score, **settings)(heat, x, label)

    agree(measured(measure, subsets(size)), f"faithfulness_correlation/{{}}/subset={size}")


def test_sensitivity_n_is_the_faithfulness_correlation_of_each_size(monkeypatch):
    measure = metrics.sensitivity_n(score, shares=[n / 144 for n in SIZES], n_samples=20, chunk_size=25, key=KEY)

    def curve(heat, x, label, masks):
        use_sets(monkeypatch, masks)
        return measure.curve(heat, x, label)

    got = measured(curve, np.concatenate([subsets(size) for size in SIZES], axis=1))
    np.testing.assert_allclose(got.share[0, 0], np.array(SIZES) / 144, rtol=1e-15)
    agree(got.correlation, np.stack([for_both_maps(f"faithfulness_correlation/{{}}/subset={n}") for n in SIZES], -1))


# --- Infidelity -------------------------------------------------------------------------------------------------------


def test_infidelity_with_stored_noise(monkeypatch):
    def measure(heat, x, label, noise):
        monkeypatch.setattr(faithfulness, "_noisy", lambda call, sigma, key: lambda k: (call.x[0] - noise[k],))
        return metrics.infidelity(score, noise=0.2, n_samples=5, key=KEY)(heat, x, label)

    noise = stored("faithfulness")["infidelity_noise"][:, :, 0].swapaxes(0, 1)
    agree(measured(measure, noise), "infidelity_noise/{}")


def test_the_factor_of_infidelity_is_the_least_squares_one(monkeypatch):
    """Which Quantus lacks: the scaled number is the residual of the regression on the same stored perturbations."""
    net, noise = stored("network"), stored("faithfulness")["infidelity_noise"][:, :, 0].swapaxes(0, 1)
    x, label = examples()

    def measure(heat, x, label, noise):
        monkeypatch.setattr(faithfulness, "_noisy", lambda call, sigma, key: lambda k: (call.x[0] - noise[k],))
        return metrics.infidelity(score, noise=0.2, n_samples=5, scale=True, key=KEY)(heat, x, label)

    drops = jax.jit(jax.vmap(lambda x, y, noise: score(x, y) - jax.vmap(score, (0, None))(x[None] - noise, y)))(
        x, label, noise
    )
    got = measured(measure, noise)
    for i, kind in enumerate(MAPS):
        sums = np.einsum("enhw,ehw->en", noise, net[f"maps/{kind}"][:, 0])
        left = [
            np.linalg.lstsq(s[:, None], d, rcond=None)[1][0] / 5 for s, d in zip(sums, np.asarray(drops), strict=True)
        ]
        agree(got[i], np.array(left))


def test_infidelity_of_patches(monkeypatch):
    """Quantus removes its patches one on top of the other, and each counts once: those are the sets used here."""

    def over(patch):
        n = (12 // patch) ** 2
        use_sets(monkeypatch, jnp.tri(n, dtype=bool))
        settings = {"groups": jx.patches(patch, patch), "subset_size": 1, "baseline": 0.25, "n_samples": n, "key": KEY}
        return measured(metrics.infidelity(score, chunk_size=25, **settings))

    by_four = over(4)
    agree(by_four, "infidelity_patches/{}/patches=[4]")
    agree((over(3) + by_four) / 2, "infidelity_patches/{}/patches=[3, 4]")
