"""Agreement with Captum and pytorch-grad-cam on stored arrays, made by `golden/make_cam.py` (versions: `cam.json`)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_nets import average_pool, dense
from helpers import relative
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxplain as jx

GOLDEN = pathlib.Path(__file__).parent / "golden" / "cam"


def _conv(w, x, name):
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x[None], w[f"{name}.kernel"], (1, 1), "SAME", dimension_numbers=layout)[0]
    return y + w[f"{name}.bias"][None, None]


def _maps(w, x, activation):
    x = average_pool(jax.nn.relu(_conv(w, x, "0")), 2, 2)
    return checkpoint_name(activation(_conv(w, x, "3")), "maps")


def _gap(w, x):
    return jnp.mean(_maps(w, x, jax.nn.relu), (0, 1)) @ w["7.kernel"]


def _flattened(w, maps):
    return dense(w, jax.nn.relu(dense(w, maps.ravel(), "6")), "8")


def _flatten(w, x):
    return _flattened(w, _maps(w, x, jax.nn.relu))


def _signed(w, x):
    return _flattened(w, _maps(w, x, jnp.tanh))


NETWORKS = {"gap": _gap, "flatten": _flatten, "signed": _signed}


def _layer_ig(score, baseline):
    encode, decode = jx.split(score, "maps")

    def explain(x, label):
        start = encode(jnp.broadcast_to(baseline, x.shape), label)
        return jx.integrated_gradients(decode, baseline=start, n_steps=50)(encode(x, label), x, label)

    return explain


def _internal_influence(score):
    """The mean gradient of the layer along the path from 0; with `split`, as there is no method of that name."""
    encode, decode = jx.split(score, "maps")
    nodes, weights = np.polynomial.legendre.leggauss(50)

    def explain(x, label):
        gradients = jax.vmap(lambda x: jax.grad(decode)(encode(x, label), x, label))(
            x[None] * (nodes[:, None, None, None] + 1) / 2
        )
        return jnp.tensordot(weights / 2, gradients, 1)

    return explain


# In float64, before any ReLU unless the name says so.
RAW = {"at": "maps", "relu": False, "upsample": False}
METHODS = {
    "captum_grad_cam": lambda score, _: jx.grad_cam(score, **RAW),
    "captum_grad_cam_relu": lambda score, _: jx.grad_cam(score, at="maps", relu=True, upsample=False),
    "guided_grad_cam": lambda score, _: jx.guided_grad_cam(score, at="maps"),
    "layer_ig_zero": lambda score, _: _layer_ig(score, 0.0),
    "layer_ig_baseline": _layer_ig,
    "internal_influence": lambda score, _: _internal_influence(score),
    "grad_cam": lambda score, _: jx.grad_cam(score, **RAW),
    "hires_cam": lambda score, _: jx.hires_cam(score, **RAW),
    "grad_cam_plus_plus": lambda score, _: jx.grad_cam_plus_plus(score, **RAW),
    "layer_cam": lambda score, _: jx.layer_cam(score, **RAW),
    "xgrad_cam": lambda score, _: jx.xgrad_cam(score, **RAW),
    "eigen_cam": lambda score, _: jx.eigen_cam(score, center=True, **RAW),
    "score_cam": lambda score, _: jx.score_cam(score, **RAW),
    "ablation_cam": lambda score, _: jx.ablation_cam(score, **RAW),
}
# What the peer also does up-sampled and scaled, without a deviation that would show in float32.
RETURNED = {"grad_cam": jx.grad_cam, "hires_cam": jx.hires_cam, "layer_cam": jx.layer_cam, "xgrad_cam": jx.xgrad_cam}

# Denominators are kept at 1 or more where maps are negative; every activation guides, where Captum knows ReLU modules.
BY_INTENT = {("signed", "grad_cam_plus_plus"), ("signed", "guided_grad_cam")}

each_network = pytest.mark.parametrize("network", NETWORKS)
each_method = pytest.mark.parametrize("method", METHODS)


@functools.cache
def _about():
    return json.loads((GOLDEN / "cam.json").read_text())


@functools.cache
def _stored(network):
    with np.load(GOLDEN / "cam.npz") as file:
        return {key.removeprefix(f"{network}/"): file[key] for key in file.files if key.startswith(f"{network}/")}


@functools.cache
def _arrays(network):
    """Weights under our names, inputs, targets and the baseline, in float64."""
    stored = _stored(network)
    weights = {
        key.removeprefix("weights/").replace("weight", "kernel"): jnp.asarray(stored[key], jnp.float64)
        for key in stored
        if key.startswith("weights/")
    }
    x, baseline = (jnp.asarray(stored[key], jnp.float64) for key in ("x", "baseline"))
    return weights, x, jnp.asarray(stored["target"]), baseline


def _score(network):
    weights, *_ = _arrays(network)
    return lambda x, label: NETWORKS[network](weights, x)[label]


@functools.cache
def _gradients(network):
    """Of the target's logit, at the stored maps."""
    encode, decode = jx.split(_score(network), "maps")
    _, x, target, _ = _arrays(network)
    maps = jax.vmap(encode)(x, target)
    assert relative(maps, _stored(network)["maps"]) < 1e-14
    return np.asarray(jax.vmap(jax.grad(decode))(maps, x, target))


def _batch(explain, network):
    """Explanations of all examples. A map in which nothing is left is zero with the peers, and NaN with us."""
    _, x, target, _ = _arrays(network)
    maps = np.asarray(jax.jit(jax.vmap(explain))(x, target))
    empty = np.isnan(maps).all(axis=tuple(range(1, maps.ndim)), keepdims=True)
    return np.where(empty, 0, maps)


def _scaled(maps):
    """From 0 to 1, each map; a map of zeros stays."""
    least = maps.min((1, 2), keepdims=True)
    ranges = maps.max((1, 2), keepdims=True) - least
    return (maps - least) / np.where(ranges > 0, ranges, 1)


@each_network
def test_the_rewritten_network_is_the_peers(network):
    weights, x, _, _ = _arrays(network)
    logits = jax.vmap(functools.partial(NETWORKS[network], weights))(x)
    assert relative(logits, _stored(network)["logits"]) < 1e-14


@each_network
@each_method
def test_float64_agrees_with_the_peer(network, method):
    *_, baseline = _arrays(network)
    ours = _batch(METHODS[method](_score(network), baseline), network)
    want = _stored(network)[method]
    if (network, method) in BY_INTENT:
        assert relative(ours, want) > 1e-4
        return
    assert ours.shape == want.shape and ours.dtype == want.dtype == np.float64
    if method == "eigen_cam":  # a singular vector has no sign
        ours = ours * np.sign(np.sum(ours * want, (1, 2), keepdims=True))
    if method == "ablation_cam":  # the peer divides by S, we by its absolute value
        want = want * np.sign(_stored(network)["ablation_cam_scores"])[:, None, None]
    assert relative(ours, want) <= _about()["tolerance"]["float64"]


@each_network
@pytest.mark.parametrize("method", RETURNED)
def test_relu_and_upsampling_are_the_peers(network, method):
    ours = _batch(RETURNED[method](_score(network), at="maps", relu=True, upsample=True), network)
    assert relative(_scaled(ours), _stored(network)[f"{method}_returned"]) <= _about()["tolerance"]["returned"]


STARTS = [(network, start) for network in NETWORKS for start in ("zero", "baseline")]


@pytest.mark.rows(("network", "start"), STARTS, STARTS[::3])
def test_conductance_agrees_with_captums_converged_sum(network, start):
    """Captum sums differences of the layer; we integrate its derivative, which jumps at kinks. Both converge as 1/n."""
    *_, baseline = _arrays(network)
    baseline = 0.0 if start == "zero" else baseline
    ours = _batch(jx.conductance(_score(network), at="maps", baseline=baseline, n_steps=500), network)
    want = _stored(network)[f"conductance_{start}"]
    assert ours.shape == want.shape
    assert relative(ours, want) <= _about()["tolerance"]["conductance"]


@each_network
def test_without_centering_eigen_cam_is_the_papers(network):
    ours = _batch(jx.eigen_cam(_score(network), center=False, **RAW), network)
    for one, maps in zip(ours, _stored(network)["maps"], strict=True):
        want = maps @ np.linalg.svd(maps.reshape(-1, maps.shape[-1]))[2][0]
        assert relative(one * np.sign(np.sum(one * want)), want) <= _about()["tolerance"]["float64"]


@each_network
def test_the_peers_epsilons_account_for_what_it_ships(network):
    """Why the arrays were made without them: they cost more than our tolerance. And they are all that was taken out."""
    stored, g = _stored(network), _gradients(network)
    maps = stored["maps"]
    sums = maps.sum((1, 2), keepdims=True)
    shares = np.where(g != 0, g**2 / (2 * g**2 + sums * g**3 + 1e-6), 0)
    weights = {"grad_cam_plus_plus": np.maximum(g, 0) * shares, "xgrad_cam": g * maps / (sums + 1e-7)}
    for name, each in weights.items():
        shipped = np.sum(each.sum((1, 2), keepdims=True) * maps, -1)
        assert relative(shipped, stored[f"{name}_as_shipped"]) < 1e-12
        assert relative(stored[f"{name}_as_shipped"], stored[name]) > _about()["tolerance"]["float64"]


@each_network
@pytest.mark.parametrize("align_corners", [False, True])
def test_score_cams_scores_are_those_of_the_masked_inputs(network, align_corners):
    """As shipped the peer aligns corners: position i of n is at i (m - 1) / (n - 1) of m, not (i + 1/2) m / n - 1/2."""
    score = _score(network)
    _, x, target, _ = _arrays(network)
    at = np.linspace(0, 5, 12) if align_corners else np.clip((np.arange(12) + 0.5) / 2 - 0.5, 0, 5)
    rows = np.maximum(1 - np.abs(at[:, None] - np.arange(6)), 0)
    masks = np.einsum("ih,nhwc,jw->ncij", rows, _stored(network)["maps"], rows)
    least = masks.min((2, 3), keepdims=True)
    masks = (masks - least) / (masks.max((2, 3), keepdims=True) - least + (1e-8 if align_corners else 0))
    masked = x[:, None] * masks[..., None]
    scores = jax.vmap(jax.vmap(score, (0, None)))(masked, target)
    assert relative(scores, _stored(network)[f"score_cam_scores{'_as_shipped' * align_corners}"]) < 1e-12


def test_the_arrays_tell_apart_what_is_easily_confused():
    """Methods that must differ do; under a global mean Grad-CAM, HiResCAM and XGrad-CAM are one."""
    names = [name for name in METHODS if _stored("gap")[name].shape == (4, 6, 6) and "captum" not in name]
    for network in ("flatten", "signed"):
        arrays = [_scaled(_stored(network)[name]) for name in names]
        assert all(relative(a, b) > 1e-2 for i, a in enumerate(arrays) for b in arrays[:i])
    gap = _stored("gap")
    assert relative(gap["hires_cam"], gap["grad_cam"]) < 1e-14
    assert relative(gap["xgrad_cam"], gap["grad_cam"]) < 1e-14
    assert relative(_stored("signed")["ablation_cam_as_shipped"], _stored("signed")["ablation_cam"]) > 1e6


def test_arrays_say_where_they_come_from():
    assert {"peer", "versions", "made_by", "date", "seed", "calls", "tolerance"} <= set(_about())
    assert (GOLDEN.parents[2] / _about()["made_by"]).is_file()
