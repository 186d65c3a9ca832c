"""Agreement of robustness with Quantus, on stored arrays, with the inputs that it drew as our neighbors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_quantus import (
    KINDS,
    agree,
    examples,
    explained,
    explainer,
    for_both_kinds,
    layers,
    logits,
    score,
    stored,
    weights,
)

from jaxplain import metrics as robustness


def neighbors():
    """(example, neighbor, height, width)"""
    return examples()[0][:, None] + stored("robustness")["noise"][:, :, 0].swapaxes(0, 1)


ROBUSTNESS = {
    "max_sensitivity": robustness.max_sensitivity,
    "avg_sensitivity": robustness.avg_sensitivity,
    "local_lipschitz": robustness.local_lipschitz_estimate,  # Quantus adds 1e-10 to the distance, which is about 1.4
    "relative_input_stability": robustness.relative_input_stability,
    "relative_output_stability": partial(robustness.relative_output_stability, output=lambda x, *_: logits(x)),
}
LAYERS = {
    "all": ("conv1", "tanh", "pool1", "conv2", "silu", "pool2", "flat", "dense"),
    "pool1": ("pool1",),
    "pool2+dense": ("pool2", "dense"),
}


def at_neighbors(metric, **settings):
    """The measure at the stored neighbors."""

    def measure(*args):
        *args, points = args
        return metric(explainer(score), neighbors=robustness.neighbors.given(points), **settings)(*args)

    return measure


@pytest.mark.parametrize("names", LAYERS)
def test_relative_representation_stability(names):
    of = lambda x, *_: [layers(weights(), x)[name] for name in LAYERS[names]]
    measure = at_neighbors(robustness.relative_representation_stability, representation=of)
    agree(
        explained(measure, neighbors()),
        for_both_kinds("robustness", f"relative_representation_stability/{{}}/{names}"),
    )


def norm(a):
    return np.linalg.norm(a.reshape(*a.shape[:2], -1), axis=-1)


def ratios(name, kind):
    """(neighbor, example), from the stored gradients."""
    x, there = examples()[0][None], neighbors().swapaxes(0, 1)
    here, moved = stored("network")["gradient"][None, :, 0], stored("robustness")["gradient_perturbed"][:, :, 0]
    if kind == "input_x_gradient":
        here, moved = here * x, moved * there
    if not name.startswith("relative"):
        return norm(moved - here) / norm(x - there if name == "local_lipschitz" else here)
    both = [np.asarray(jax.jit(jax.vmap(jax.vmap(logits)))(points)) for points in (x, there)]
    change = norm(both[0] - both[1]) if "output" in name else norm((x - there) / x)
    return norm((here - moved) / here) / change


@pytest.mark.parametrize("name", ROBUSTNESS)
def test_robustness(name):
    """With `predict`, neighbors of another class are left out, as in the papers; Quantus' result is then NaN."""
    predict = lambda x, label, is_product, strict: jnp.where(strict, jnp.argmax(logits(x)), 0)
    measure = at_neighbors(ROBUSTNESS[name], predict=predict)
    both = lambda *args: jax.vmap(lambda strict: measure(*args[:-1], strict, args[-1]))(jnp.array([False, True]))
    free, strict = np.moveaxis(explained(both, neighbors()), -1, 0)
    agree(free, for_both_kinds("robustness", f"{name}/{{}}"))

    same, each = stored("robustness")["same_class"], np.stack([ratios(name, kind) for kind in KINDS])
    reduce = np.nanmean if name.startswith("avg") else np.nanmax
    agree(reduce(each, axis=1), for_both_kinds("robustness", f"{name}/{{}}"))
    agree(strict, reduce(np.where(same, each, np.nan), axis=1))
    assert 0 < same.all(0).sum() < 6
    want = for_both_kinds("robustness", f"{name}/{{}}/nan_when_class_changes")
    agree(np.where(same.all(0), strict, np.nan), want)


def test_continuity():
    """Quantus adds 1e-9 to the distance: by so much ours is larger."""
    moves = robustness.neighbors.translations(range(-9, 13, 3), axes=1, fill=lambda x: jnp.full_like(x, jnp.min(x)))
    got = explained(robustness.continuity(explainer(score), neighbors=moves))
    agree(got, for_both_kinds("robustness", "continuity/{}"), rtol=1e-9)
