"""Localisation: closed forms, ties, controls, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jx
from jaxplain import metrics

MASK = np.zeros((6, 8), bool)
MASK[1:3, 2:6] = True  # 8 of 48 pixels
INSIDE, BESIDE, FAR = (1, 2), (1, 6), (5, 0)
MEASURES = {
    "pointing_game": metrics.pointing_game(),
    "energy_inside": metrics.energy_inside(),
    "intersection_over_union": metrics.intersection_over_union(),
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
        (np.ones((2, 6, 8)), MASK, rf"jax.vmap\(jx.metrics.{name}\(\)\)"),
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
    ):
        with pytest.raises(jx.SettingError):
            make()
