"""Agreement with Captum on stored arrays: `golden/make_captum.py` says how they were made, the json files with what."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxplain as jx

GOLDEN = pathlib.Path(__file__).parent / "golden" / "captum"


def _dense(x, w, name):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def _conv(x, w, name, stride=1, padding=0, groups=1):
    y = lax.conv_general_dilated(
        x[None],
        w[f"{name}.weight"],
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        feature_group_count=groups,
    )[0]
    return y + w[f"{name}.bias"][:, None, None]


def _average_pool(x):
    channels, height, width = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))


def _batch_norm(x, w, name, eps=1e-5):
    mean, variance, scale, shift = (
        w[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / jnp.sqrt(variance + eps) * scale + shift


def _mlp(w, x):
    x = jax.nn.relu(_dense(x, w, "0"))
    x = jax.nn.relu(_dense(x, w, "2"))
    return _dense(x, w, "4")


def _cnn_avgpool(w, x):
    x = _average_pool(jax.nn.relu(_conv(x, w, "0", padding=1)))
    x = _average_pool(jax.nn.relu(_conv(x, w, "3")))
    return _dense(x.ravel(), w, "7")


def _conv_smooth(w, x):
    x = jax.nn.gelu(_conv(x, w, "0", stride=2, padding=1), approximate=False)
    x = jnp.tanh(_batch_norm(_conv(x, w, "2", padding=1, groups=8), w, "3"))
    x = jax.nn.gelu(_conv(x, w, "5", stride=2), approximate=False)
    return _dense(_average_pool(x).ravel(), w, "9")


NETWORKS = {"mlp": _mlp, "cnn_avgpool": _cnn_avgpool, "conv_smooth": _conv_smooth}
METHODS = ("gradient", "input_x_gradient", "ig_zero", "ig_baseline")

each_network = pytest.mark.parametrize("network", NETWORKS)
each_method = pytest.mark.parametrize("method", METHODS)


def _stored(network):
    with np.load(GOLDEN / f"{network}.npz") as file:
        return dict(file), json.loads((GOLDEN / f"{network}.json").read_text())


def _distance(a, b):
    """Relative L2 distance of a to b, computed in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def _arrays(network, dtype):
    """The stored weights, inputs, targets and baseline in that dtype; call it where x64 is on."""
    stored, _ = _stored(network)
    weights = {key[8:]: jnp.asarray(stored[key], dtype) for key in stored if key.startswith("weights/")}
    return (
        weights,
        jnp.asarray(stored["x"], dtype),
        jnp.asarray(stored["target"]),
        jnp.asarray(stored["baseline"], dtype),
    )


@functools.cache
def _ours(network, dtype):
    """All methods in one compiled program, so that a network compiles once for each dtype."""
    with jax.enable_x64(True):
        weights, x, target, baseline = _arrays(network, dtype)
        score = jx.logit(jax.vmap(functools.partial(NETWORKS[network], weights)))
        explainers = {
            "gradient": jx.gradient(score),
            "input_x_gradient": jx.input_x_gradient(score),
            "ig_zero": jx.integrated_gradients(score, n_steps=50),
            "ig_baseline": jx.integrated_gradients(score, baseline=baseline, n_steps=50),
        }
        assert set(explainers) == set(METHODS)
        out = jax.jit(lambda *args: {name: jax.vmap(explain)(*args) for name, explain in explainers.items()})(x, target)
        assert all(leaf.dtype == dtype for leaf in out.values())
        return jax.tree.map(np.asarray, out)


@each_network
def test_the_rewritten_network_is_the_peers(network):
    stored, _ = _stored(network)
    with jax.enable_x64(True):
        weights, x, _, _ = _arrays(network, "float64")
        logits = jax.vmap(lambda one: NETWORKS[network](weights, one))(x)
        assert _distance(logits, stored["logits_float64"]) < 1e-14


@each_network
@each_method
def test_float64_agrees_with_captum(network, method):
    stored, about = _stored(network)
    ours = _ours(network, "float64")[method]
    assert _distance(ours, stored[f"{method}_float64"]) <= about["tolerance"]["float64"]


@each_network
@each_method
def test_float32_is_as_near_to_float64_as_captums(network, method):
    stored, about = _stored(network)
    exact = stored[f"{method}_float64"]
    captums = _distance(stored[f"{method}_float32"], exact)
    assert _distance(_ours(network, "float32")[method], exact) <= about["tolerance"]["float32"] * captums


@each_network
@pytest.mark.parametrize("method", ["ig_zero", "ig_baseline"])
def test_captum_as_shipped_is_limited_by_its_float32_weights(network, method):
    """Why the float64 arrays were made with full weights: Captum's cast to float32 costs more than our tolerance."""
    stored, about = _stored(network)
    exact, shipped = stored[f"{method}_float64"], stored[f"{method}_float64_as_shipped"]
    assert about["tolerance"]["float64"] < _distance(shipped, exact) < 1e-8
    # The same sum over our own gradients with weights rounded to float32: it is that cast and nothing else.
    nodes, full = np.polynomial.legendre.leggauss(50)
    with jax.enable_x64(True):
        weights, x, target, baseline = _arrays(network, "float64")
        start = baseline if method == "ig_baseline" else 0 * baseline
        rounded = jnp.asarray((full / 2).astype(np.float32), "float64")

        def explain(one, label):
            gradient = jax.grad(lambda z: NETWORKS[network](weights, z)[label])
            gradients = jax.vmap(lambda alpha: gradient(start + alpha * (one - start)))(jnp.asarray((nodes + 1) / 2))
            return jnp.tensordot(rounded, gradients, 1) * (one - start)

        assert _distance(jax.jit(jax.vmap(explain))(x, target), shipped) < 1e-13


def test_arrays_say_where_they_come_from():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(NETWORKS)
    for network in NETWORKS:
        _, about = _stored(network)
        assert {"peer", "versions", "made_by", "date", "seed", "calls", "tolerance"} <= set(about)
        assert (GOLDEN.parents[2] / about["made_by"]).is_file()
