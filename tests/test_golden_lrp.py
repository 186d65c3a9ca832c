"""Agreement with Zennit and LXT on stored arrays, made by `golden/make_lrp.py` (versions: `lrp.json`)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_nets import NETS
from helpers import relative

import jaxplain as jx

GOLDEN = pathlib.Path(__file__).parent / "golden" / "lrp"

COMPOSITES = {
    "epsilon_plus": lambda: jx.composites.epsilon_plus(),
    "epsilon_plus_flat": lambda: jx.composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": lambda: jx.composites.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": lambda: jx.composites.epsilon_alpha2_beta1_flat(),
    "epsilon_gamma_box": lambda: jx.composites.epsilon_gamma_box(-1.0, 1.0),
    "excitation_backprop": lambda: _zennits_excitation_backprop(),
    "attention": lambda: jx.composites.attention(epsilon=1e-16),
}


def _zennits_excitation_backprop():
    """Zennit keeps biases in the denominators, and differentiates activations (what a saturated ReLU6 gets is lost)."""
    ours = jx.composites.excitation_backprop(absorb_bias=True)
    return jx.composites.compose(ours, {"activation": jx.rules.derivative()})


def _composite(net, name):
    if (net, name) == ("mlp", "epsilon_gamma_box"):
        # Zennit boxes a first convolution only; we box a first dense layer too.
        return jx.composites.compose(COMPOSITES[name](), {"dense": jx.rules.epsilon()})
    return COMPOSITES[name]()


ROWS = [
    (net, composite) for net in NETS for composite in COMPOSITES if (net == "attention") == (composite == "attention")
]
each_row = pytest.mark.parametrize(("net", "composite"), ROWS, ids=["-".join(row) for row in ROWS])


@functools.cache
def _about():
    return json.loads((GOLDEN / "lrp.json").read_text())


@functools.cache
def _stored(net):
    with np.load(GOLDEN / "lrp.npz") as file:
        return {key.removeprefix(f"{net}/"): file[key] for key in file.files if key.startswith(f"{net}/")}


def _arrays(net, dtype):
    """The stored weights and inputs in that dtype, and the targets."""
    stored = _stored(net)
    weights = {key.removeprefix("weights/"): jnp.asarray(stored[key], dtype) for key in stored if "weights/" in key}
    if "norm_eps" in stored:
        weights["norm_eps"] = jnp.asarray(stored["norm_eps"], dtype)
    return weights, jnp.asarray(stored["x"], dtype), jnp.asarray(stored["target"])


def _ours(net, dtype, rules):
    weights, x, target = _arrays(net, dtype)

    def explain(x, label):
        return jx.lrp(lambda x: NETS[net].score(weights, x, label), rules=rules)(x)

    relevance = jax.jit(jax.vmap(explain))(x, target)
    assert relevance.dtype == dtype and relevance.shape == x.shape
    return relevance


@pytest.mark.parametrize("net", NETS)
def test_the_rewritten_network_is_the_peers(net):
    weights, x, _ = _arrays(net, "float64")
    logits = jax.vmap(functools.partial(NETS[net].logits, weights))(x)
    assert relative(logits, _stored(net)["logits"]) < 1e-14


@each_row
def test_float64_agrees_with_the_peer(net, composite):
    ours = _ours(net, "float64", _composite(net, composite))
    assert relative(ours, _stored(net)[composite]) <= _about()["tolerance"]["float64"]


@pytest.mark.rows(("net", "composite"), ROWS, ROWS[::3])
def test_float32_is_near_the_peers_float64(net, composite):
    stored = _stored(net)
    ours = _ours(net, "float32", _composite(net, composite))
    allowed = max(_about()["tolerance"]["float32"], float(stored[f"{composite}_float32_distance"]))
    assert relative(ours, stored[composite]) <= allowed


def test_lxts_own_epsilons_matter_no_more_to_us_than_to_lxt():
    """LXT adds its epsilons (1e-6, 1e-8) without a sign, so its defaults agree only up to the size of their effect."""
    stored = _stored("attention")
    effect = relative(stored["attention_default"], stored["attention"])
    ours = _ours("attention", "float64", jx.composites.attention(epsilon=1e-6))
    assert relative(ours, stored["attention_default"]) <= 3 * effect


def test_the_arrays_tell_apart_what_is_easily_confused():
    """Composites differ by far more than the tolerance; on the MLP, which has no convolutions, three are equal."""
    for net in ("residual", "separable"):
        arrays = [_stored(net)[name] for name in COMPOSITES if name != "attention"]
        assert all(relative(a, b) > 1e-2 for i, a in enumerate(arrays) for b in arrays[:i])
    mlp = _stored("mlp")
    for name in ("epsilon_alpha2_beta1", "epsilon_gamma_box"):
        assert np.array_equal(mlp[name], mlp["epsilon_plus"])


def test_arrays_say_where_they_come_from():
    assert {"peer", "versions", "made_by", "date", "seed", "calls", "tolerance"} <= set(_about())
    assert (GOLDEN.parents[2] / _about()["made_by"]).is_file()
