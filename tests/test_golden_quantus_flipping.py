"""Agreement of the metrics that remove features step by step with Quantus, on stored arrays.

Where Quantus departs from the papers, the relation between its number and ours is tested. Not comparable is irof with
the mean of the whole batch, because one example does not know the batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_quantus import BASELINES, agree, curves, examples, for_both_maps, measured, probability, score, stored
from jax import lax

import jaxplain as jx
from jaxplain import metrics
from jaxplain.metrics.removal import Removal

KEY = jax.random.key(0)
PIXELS = np.arange(144).reshape(12, 12)


def running_mean(turn, n_steps, counts=None):
    """Quantus' "mean": at each step that of the image as it is by then; a pixel goes at step `turn`."""

    def fill(x, mask, key):
        def step(point, k):
            return jnp.where(mask & (turn == k), jnp.average(point, weights=counts), point), None

        return lax.scan(step, x, jnp.arange(n_steps))[0]

    return Removal("running_mean", fill, stochastic=False)


def turns(heat, labels, n, *, mean=False):
    """For each pixel how many groups go before its own; groups that are empty go last."""
    total = functools.partial(jax.ops.segment_sum, segment_ids=jnp.ravel(labels), num_segments=n)
    sums = total(heat.ravel()) / (total(jnp.ones(heat.size)) if mean else 1)
    return jnp.argsort(jnp.argsort(-sums))[labels]


# --- Pixels -----------------------------------------------------------------------------------------------------------


@functools.cache
def flipped(step, baseline, of=score, order="most"):
    def curve(heat, x, label):
        n = 144 // step
        fill = running_mean(turns(heat, PIXELS, 144) // step, n) if baseline == "mean" else BASELINES[baseline]
        measure = metrics.pixel_flipping(of, order=order, baseline=fill, n_steps=n, chunk_size=25)
        return measure.curve(heat, x, label)

    return measured(curve)


@pytest.mark.parametrize(("step", "baseline"), [(1, "0.25"), (6, "0.25"), (6, "black"), (6, "white"), (6, "mean")])
def test_pixel_flipping(step, baseline):
    agree(flipped(step, baseline).score, curves(f"pixel_flipping/{{}}/step={step},baseline={baseline}"))


def test_pixel_flipping_of_probabilities():
    agree(flipped(6, "0.25", of=probability).score[..., 1:], "pixel_flipping_softmax/{}")


def test_the_area_is_quantus_and_the_first_step():
    """Quantus' begins after the first removal, and its steps have the length 1."""
    curve = flipped(6, "0.25")
    agree(24 * curve.area - (curve.score[..., 0] + curve.score[..., 1]) / 2, "pixel_flipping_auc/{}")


def test_from_the_least_relevant_and_backwards():
    """Quantus negates the map. Its curve, read backwards, is the insertion of the most relevant pixels."""
    want = curves("pixel_flipping_negated/{}")
    agree(flipped(6, "0.25", order="least").score, want)
    agree(measured(metrics.insertion(score, n_steps=24, baseline=0.25, chunk_size=25).curve).score, want[..., ::-1])


def test_monotonicity_is_pixel_flipping_backwards():
    """Quantus' own is no reference: it never inserts, and says yes to every map."""
    assert for_both_maps("monotonicity/{}").all()
    falls = np.diff(curves("pixel_flipping/{}/step=1,baseline=0.25")) <= 0
    agree(measured(metrics.monotonicity(score, baseline=0.25, chunk_size=25)), falls.mean(-1))


# --- Patches ----------------------------------------------------------------------------------------------------------


def regions(patch):
    """Patches as Quantus lays them: where the length does not divide 12, pixels at the edges count more than once."""
    missing = -12 % patch
    place = (np.arange(12) + missing // 2) // patch
    count = np.ones(12)
    count[0], count[-1] = 1 + missing // 2, 1 + missing - missing // 2
    return place[:, None] * (place[-1] + 1) + place, np.outer(count, count)


def curve_of_regions(metric, patch, baseline, **settings):
    labels, counts = regions(patch)
    n = int(labels.max()) + 1

    def curve(heat, x, label):
        fill = running_mean(turns(heat, labels, n), n, counts) if baseline == "mean" else BASELINES[baseline]
        groups = labels if patch == 5 else jx.patches(patch, patch)
        return metric(score, groups=groups, baseline=fill, chunk_size=25, **settings).curve(heat, x, label).score

    return measured(curve)


@pytest.mark.parametrize(
    ("patch", "order", "baseline"),
    [(4, "morf", "black"), (4, "lerf", "0.25"), (3, "morf", "mean"), (5, "morf", "0.25"), (5, "morf", "mean")],
)
def test_region_perturbation(patch, order, baseline):
    named = {"morf": "most", "lerf": "least"}[order]
    curve = curve_of_regions(metrics.region_perturbation, patch, baseline, order=named)
    agree(curve[..., :1] - curve[..., 1:], f"region_perturbation/{{}}/patch={patch},order={order},baseline={baseline}")


def test_the_area_over_the_curve_of_the_first_regions():
    """AOPC, which Quantus does not return; at the start, which it leaves out, the difference is 0."""
    settings = {"groups": jx.patches(3, 3), "baseline": 0.25, "n_steps": 5, "until": 5 / 16, "chunk_size": 25}
    want = for_both_maps("region_perturbation_first_five/{}").sum(-1) / 6
    agree(measured(metrics.region_perturbation(score, **settings)), want)


def test_region_perturbation_in_a_given_order():
    places = np.argsort(stored("faithfulness")["region_perturbation_random_order"], axis=1)
    measure = metrics.region_perturbation(score, groups=jx.patches(4, 4), baseline=0.25, chunk_size=25)
    curve = jax.jit(jax.vmap(measure.curve))(-1.0 * places[:, regions(4)[0]], *examples()).score
    agree(curve[..., :1] - curve[..., 1:], stored("faithfulness")["region_perturbation_random"])


@pytest.mark.parametrize(("patch", "baseline"), [(4, "black"), (3, "0.25"), (5, "mean")])
def test_quantus_selectivity_is_patch_flipping(patch, baseline):
    """The windows of ours slide, as those of the tutorial do."""
    curve = curve_of_regions(metrics.pixel_flipping, patch, baseline)
    agree(curve[..., 1:], f"selectivity/{{}}/patch={patch},baseline={baseline}")


@pytest.mark.parametrize("baseline", ["0.25", "mean"])
def test_irof(baseline):
    """Quantus: S - the area over steps 1 to S, of length 1. Ours has step 0, too, and divides by their number."""
    segments = stored("faithfulness")["irof_segments"]
    n, most = segments.max((1, 2)).astype(int) + 1, 12

    def both(heat, x, label, labels):
        fill = running_mean(turns(heat, labels, most, mean=True), most) if baseline == "mean" else BASELINES[baseline]
        measure = metrics.irof(probability, groups=labels, n_groups=most, baseline=fill)
        return measure(heat, x, label), measure.curve(heat, x, label).score

    ours, curve = measured(both, segments)
    ratio = curve / curve[..., :1]
    first_step = np.asarray(1 + ratio[..., 1]) / 2
    # Segments that an example lacks change nothing: its curve goes on at the height where it ended.
    np.testing.assert_array_equal(curve[:, np.arange(6), n], curve[..., -1])
    agree(n * np.asarray(ours) + first_step, f"irof/{{}}/baseline={baseline}")


# --- ROAD -------------------------------------------------------------------------------------------------------------


def test_road():
    """Quantus takes the integer part of 144 p / 100 pixels, we round: the same numbers are given here as shares."""
    shares = np.floor(144 * np.array([0.1, 0.3, 0.5, 0.7, 0.9])) / 144

    def is_right_or_score(x, label, which):
        is_right = jnp.argmax(jax.vmap(score, (None, 0))(x, jnp.arange(4))) == label
        return jnp.where(which, score(x, label), is_right.astype(float))

    measure = metrics.road(is_right_or_score, shares=shares, baseline=metrics.removal.impute(noise=0.0), key=KEY)
    both = measured(lambda *args: jax.vmap(lambda which: measure.curve(*args, which).score)(jnp.arange(2)))
    np.testing.assert_array_equal(both[:, :, 0], for_both_maps("road/{}"))
    images = np.stack([stored("imputation")[f"road_images/{p}"][:, 0] for p in (10, 50, 90)], 1)
    want = jax.jit(jax.vmap(jax.vmap(score, (0, None))))(images, examples()[1])
    np.testing.assert_allclose(both[1, :, 1, ::2], want, rtol=0, atol=1e-7)  # for the tolerance see below


@pytest.mark.parametrize(("image", "tolerance"), [("grey", None), ("grey", 1e-14), ("colour", 1e-14)])
def test_imputation(image, tolerance, monkeypatch):
    """Quantus solves directly, we by conjugate gradients to a residual of 1e-8; with a smaller one the two agree."""
    if tolerance is not None:
        solve = functools.partial(jax.scipy.sparse.linalg.cg, maxiter=1000)
        monkeypatch.setattr(jax.scipy.sparse.linalg, "cg", lambda *a, tol, maxiter: solve(*a, tol=tolerance))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: key)  # noise is passed in place of a key
    arrays, last = stored("imputation"), lambda a: np.moveaxis(a, -3, -1)
    x = last(arrays[f"image/{image}"])
    names = [name.removeprefix("mask/") for name in arrays if name.startswith(f"mask/{image}/")]
    masks = np.stack([*(arrays[f"mask/{name}"] for name in names), arrays[f"mask/{image}/few"]])
    noise = np.zeros((len(masks), *arrays[f"image/{image}"].shape))
    noise[-1][:, masks[-1]] = arrays[f"imputed_noisy_draws/{image}/few"]
    want = np.stack([*(arrays[f"imputed/{name}"] for name in names), arrays[f"imputed_noisy/{image}/few"]])
    fill = jax.jit(jax.vmap(metrics.removal.impute(noise=0.1).fill, in_axes=(None, 0, 0)))
    got = fill(x, np.broadcast_to(masks[..., None], (len(masks), *x.shape)), last(noise))
    np.testing.assert_allclose(got, last(want), rtol=0, atol=1e-7 if tolerance is None else 1e-12)
    assert (np.asarray(got) == x)[~masks].all()
