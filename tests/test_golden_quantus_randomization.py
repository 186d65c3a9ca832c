"""Agreement of randomization with Quantus, on stored arrays, with the weights and classes that it drew."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from golden_quantus import agree, examples, explained, explainer, for_both_kinds, layers, score, stored, weights

from jaxplain.metrics import _randomization as randomization

KEY = jax.random.key(0)

# --- Other weights ----------------------------------------------------------------------------------------------------

ORDERS = {  # Quantus' and ours, whose independent steps begin with the last layer
    "top_down": ("cascading", ("dense", "conv2", "conv1"), slice(1, None)),
    "bottom_up": ("bottom_up", ("conv1", "conv2", "dense"), slice(1, None)),
    "independent": ("independent", ("dense", "conv2", "conv1"), slice(None, 0, -1)),
}


def randomization_of(**settings):
    make = lambda params: explainer(lambda x, label: layers(params, x)["dense"][label])
    drawn = weights("randomised", "randomisation")
    return randomization.parameter_randomization(make, draw=lambda key, params: drawn, key=KEY, **settings)


@pytest.mark.parametrize(("similarity", "absolute"), [("spearman", False), ("spearman", True), ("pearson", False)])
@pytest.mark.parametrize("order", ORDERS)
def test_parameter_randomization(order, similarity, absolute):
    ours, names, rows = ORDERS[order]
    measure = randomization_of(order=ours, similarity=similarity, absolute=absolute)
    want = for_both_kinds("randomisation", f"mprt/{{}}/order={order},similarity={similarity},abs={absolute}")
    agree(explained(partial(measure.curve, weights())), want[:, rows].swapaxes(1, 2))
    assert measure.layers(weights(), *(a[0] for a in examples()), False) == names


def test_the_mean_over_steps():
    """Quantus' counts the network itself, which is 1, as a step."""
    got = explained(partial(randomization_of(order="cascading", absolute=False), weights()))
    agree((3 * got + 1) / 4, for_both_kinds("randomisation", "mprt_average/{}"))


def rise_of_entropy(a, b):
    def entropy(heat):
        p = jnp.histogram(heat, 100)[0] / heat.size
        return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))

    return (entropy(b) - entropy(a)) / entropy(a)


def test_a_similarity_of_ones_own_and_all_layers_at_once():
    """The efficient test by the entropy of the map, in which the order does not matter."""
    got = explained(partial(randomization_of(order="all", similarity=rise_of_entropy, absolute=False), weights()))
    for order in ("bottom_up", "top_down"):
        agree(got, for_both_kinds("randomisation", f"efficient_mprt/{{}}/{order}"))


# --- Another class ----------------------------------------------------------------------------------------------------


def ssim_of_rows(a, b):
    """Quantus' SSIM: of the flattened maps, in windows of 7 numbers (ours is of images, on one scale)."""
    spread = jnp.maximum(jnp.max(a), jnp.max(b)) - jnp.minimum(jnp.min(a), jnp.min(b))
    a, b = (jnp.ravel(v)[jnp.arange(v.size - 6)[:, None] + jnp.arange(7)[None]] for v in (a, b))
    m, n, c, d = jnp.mean(a, 1), jnp.mean(b, 1), (0.01 * spread) ** 2, (0.03 * spread) ** 2
    covariance = jnp.sum((a - m[:, None]) * (b - n[:, None]), 1) / 6
    size = jnp.var(a, 1, ddof=1) + jnp.var(b, 1, ddof=1)
    return jnp.mean((2 * m * n + c) * (2 * covariance + d) / ((m**2 + n**2 + c) * (size + d)))


@pytest.mark.parametrize("similarity", ["spearman", "pearson", "ssim"])
def test_random_logit(similarity, monkeypatch):
    function = ssim_of_rows if similarity == "ssim" else similarity
    settings = {"n_classes": 4, "absolute": False, "similarity": function, "key": KEY}

    def measure(x, label, is_product, other):
        # What is drawn is the number of the class among the others.
        monkeypatch.setattr(
            jax.random, "randint", lambda key, shape, low, high: jnp.where(other > label, other - 1, other)
        )
        return randomization.random_logit(explainer(score), **settings)(x, label, is_product)

    got = explained(measure, stored("randomisation")["random_logit_class"])
    agree(got, for_both_kinds("randomisation", f"random_logit/{{}}/{similarity}"))
