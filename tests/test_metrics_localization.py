"""Localization: closed forms, ties, controls, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jx
from jaxplain.metrics import _localization as metrics

MASK = np.zeros((6, 8), bool)
MASK[1:3, 2:6] = True  # 8 of 48 pixels
INSIDE, BESIDE, FAR = (1, 2), (1, 6), (5, 0)
MEASURES = {
    "pointing_game": metrics.pointing_game(),
    "energy_inside": metrics.energy_inside(),
    "intersection_over_union": metrics.intersection_over_union(),
    "top_k_intersection": metrics.top_k_intersection(k=5),
    "relevance_rank_accuracy": metrics.relevance_rank_accuracy(),
    "attribution_auc": metrics.attribution_auc(),
}


def _peak(*places, values=None):
    heat = np.zeros((6, 8))
    for place, value in zip(places, values or [1.0] * len(places), strict=True):
        heat[place] = value
    return heat


def test_pointing_game():
    point = metrics.pointing_game()
    assert point(_peak(INSIDE), MASK) == 1 and point(_peak(BESIDE), MASK) == 0
    assert point(_peak(INSIDE, FAR, values=[1.0, 2.0]), MASK) == 0
    assert point(_peak(INSIDE, FAR), MASK) == 0.5  # a tie
    assert point(np.ones((6, 8)), MASK) == 8 / 48
    assert point(_peak(INSIDE, FAR, values=[1.0, -9.0]), MASK) == 1  # evidence for, not the largest number
    near = metrics.pointing_game(tolerance=1)
    assert near(_peak(BESIDE), MASK) == 1 and near(_peak((0, 1)), MASK) == 1 and near(_peak(FAR), MASK) == 0


def test_energy_inside():
    energy = metrics.energy_inside()
    assert energy(_peak(INSIDE, FAR, values=[1.0, 3.0]), MASK) == 0.25
    assert energy(_peak(INSIDE, FAR, values=[1.0, -3.0]), MASK) == 1
    assert np.isclose(energy(np.ones((6, 8)), MASK), 8 / 48)
    assert np.isclose(energy(np.ones((6, 8, 3)), MASK), 8 / 48)


def test_intersection_over_union():
    iou = metrics.intersection_over_union()
    assert iou(MASK.astype(float), MASK) == 1
    assert np.isclose(iou(_peak(INSIDE), MASK), 1 / 8)  # one pixel with evidence, on it
    shifted = np.roll(MASK, 2, axis=1).astype(float)
    assert np.isclose(iou(shifted, MASK), 4 / 12)
    assert np.isclose(iou(np.exp(shifted) - 1, MASK), 4 / 12)  # an increasing function that keeps 0
    # All tie for 8 places: each of 48 counts 1/6, 8/6 of them inside.
    assert np.isclose(iou(np.ones((6, 8)), MASK), (8 / 6) / (16 - 8 / 6))
    fifth = metrics.intersection_over_union(threshold=0.2)
    assert np.isclose(fifth(_peak(INSIDE, FAR, (1, 3), values=[1.0, 0.3, 0.1]), MASK), 1 / 9)


def test_top_k_intersection():
    top = metrics.top_k_intersection
    assert top(k=2)(_peak(INSIDE, FAR, values=[1.0, 3.0]), MASK) == 0.5
    assert top(k=1)(_peak(INSIDE, FAR, values=[1.0, 3.0]), MASK) == 0
    assert top(k=3)(_peak(INSIDE, FAR, (1, 3), BESIDE, values=[2.0, 3.0, 1.0, 1.0]), MASK) == (1 + 0.5) / 3  # a tie
    assert top(k=4)(_peak(INSIDE, (1, 3), values=[1.0, -9.0]), MASK) == 0.25  # no evidence, not among them
    assert np.isclose(top(k=5)(np.ones((6, 8)), MASK), 8 / 48)
    assert top(k=8)(MASK * 1.0, MASK) == 1
    assert top(k=48)(MASK + 0.5, MASK) == 8 / 48  # no more than that is possible


def test_relevance_rank_accuracy(key):
    rank = metrics.relevance_rank_accuracy()
    assert rank(MASK * 1.0, MASK) == 1 and rank(MASK + 0.5, MASK) == 1
    assert rank(np.roll(MASK, 2, axis=1) * 1.0, MASK) == 0.5
    assert rank(_peak(INSIDE), MASK) == 1 / 8
    assert np.isclose(rank(np.ones((6, 8)), MASK), 8 / 48)
    heat = jax.random.uniform(key, (6, 8))
    assert rank(heat, MASK) == metrics.top_k_intersection(k=8)(heat, MASK)
    iou = metrics.intersection_over_union()(heat, MASK)
    assert np.isclose(rank(heat, MASK), 2 * iou / (1 + iou))


def _area(heat, mask):
    """Every pair of a pixel inside and one outside."""
    heat = np.maximum(np.asarray(heat, float), 0)
    pairs = [(p > q) + 0.5 * (p == q) for p in heat[mask] for q in heat[~mask]]
    return np.mean(pairs)


def test_attribution_auc(key):
    area = metrics.attribution_auc()
    assert area(MASK * 1.0, MASK) == 1 and area(~MASK * 1.0, MASK) == 0 and area(np.ones((6, 8)), MASK) == 0.5
    assert area(_peak(INSIDE), MASK) == 1 / 8 + 7 / 8 / 2
    for digits in (0, 1, 6):  # many ties, few, none
        heat = np.round(np.asarray(jax.random.normal(key, (6, 8))), digits)
        assert np.isclose(area(heat, MASK), _area(heat, MASK), rtol=1e-12)
        assert np.isclose(area(heat, ~MASK), 1 - area(heat, MASK), rtol=1e-12)
        shifted = heat - heat.min() + 1  # then all are ranked
        assert np.isclose(area(shifted, MASK), _area(shifted, MASK), rtol=1e-12)
        assert np.isclose(area(np.exp(shifted), MASK), _area(shifted, MASK), rtol=1e-12)
    large = jax.random.uniform(key, (300, 300), jnp.float32)
    inside = jnp.zeros((300, 300), bool).at[:290].set(True)
    exact = area(large.astype(float), inside)
    assert np.isclose(area(large, inside), exact, rtol=1e-5)
    with pytest.raises(jx.StructureError, match="nothing outside"):
        area(np.ones((6, 8)), MASK | True)
    assert np.isnan(jax.jit(area)(np.ones((6, 8)), MASK | True))


@pytest.mark.parametrize("name", MEASURES)
def test_transforms_scale_and_nothing_to_place(name, key):
    measure = MEASURES[name]
    maps = jax.random.normal(key, (5, 6, 8))
    one_by_one = jnp.stack([measure(heat, MASK) for heat in maps])
    masks = jnp.broadcast_to(MASK, maps.shape)
    np.testing.assert_allclose(jax.jit(jax.vmap(measure))(maps, masks), one_by_one, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(measure)(1e6 * maps, masks), one_by_one, rtol=1e-12)
    assert ((one_by_one >= 0) & (one_by_one <= 1)).all() and (one_by_one.std() > 0 or name == "pointing_game")
    closed_over = jax.jit(lambda heat: measure(heat, masks[0]))(maps[0])
    np.testing.assert_allclose(closed_over, one_by_one[0], rtol=1e-12)
    assert np.isnan(jax.jit(measure)(maps[0], masks[0] & False))
    for nothing in (0 * maps[0], -jnp.abs(maps[0]), jnp.full((6, 8), jnp.nan)):
        assert np.isnan(measure(nothing, MASK))
    assert measure(maps[0].astype(jnp.bfloat16), MASK).dtype == jnp.float32


@pytest.mark.parametrize("name", MEASURES)
def test_what_does_not_fit_is_refused(name):
    measure, heat = MEASURES[name], np.ones((6, 8))
    for bad_heat, bad_mask, words in (
        (np.ones((2, 6, 8)), MASK, rf"metrics.{name}: needs a map(.|\n)*jax.vmap\(measure\)\(attributions, masks\)"),
        (heat, MASK.astype(float), "of bool"),
        (heat, MASK.T, "map and a mask"),
        (heat, MASK & False, "mask is empty"),
    ):
        with pytest.raises(jx.StructureError, match=words):
            measure(bad_heat, bad_mask)


def test_settings_are_checked():
    for make in (
        lambda: metrics.pointing_game(tolerance=-1),
        lambda: metrics.pointing_game(tolerance=1.5),
        lambda: metrics.intersection_over_union(threshold=0),
        lambda: metrics.intersection_over_union(threshold=20),
        lambda: metrics.top_k_intersection(k=0),
        lambda: metrics.top_k_intersection(k=2.0),
    ):
        with pytest.raises(jx.SettingError):
            make()
    with pytest.raises(jx.StructureError, match="k=49, map of 48 pixels"):
        metrics.top_k_intersection(k=49)(np.ones((6, 8)), MASK)
