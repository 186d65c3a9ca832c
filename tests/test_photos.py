"""MobileNetV2 on photographs: the network is the one that others use, and its maps are where the objects are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import promoting

import jaxplain as jx
from examples.photos.network import load, photos


def _exact(dtype):
    """The photographs, whose files hold bytes, without the rounding of float32."""
    return jnp.asarray(np.round(photos().x * 255.0), dtype) / 255


@promoting()
def test_the_espresso_is_found_in_the_cup_with_the_score_of_the_original_network():
    label = photos().classes.index("espresso")
    explain = jax.jit(jx.with_info(jx.grad_cam(jx.logit(load(jnp.float64)))))
    heat, info = explain(_exact(jnp.float64)[1], label)
    np.testing.assert_allclose(info.value, photos().logits[1, label], atol=1e-9)
    row, column = np.unravel_index(np.argmax(heat), heat.shape)
    assert 40 < row < 120 and 60 < column < 160


@pytest.mark.rows(("dtype", "limit"), [("float64", 1e-9), ("float32", 1e-4)], [])
@promoting()
def test_logits_are_those_of_the_network_that_the_weights_come_from(dtype, limit):
    logits = jax.jit(load(dtype))(_exact(dtype))
    assert logits.dtype == dtype
    np.testing.assert_allclose(logits, photos().logits, atol=limit)
    names = [photos().classes[i] for i in np.argmax(logits, 1)]
    assert names == ["Egyptian cat", "espresso", "obelisk", "palace", "honeycomb"]
