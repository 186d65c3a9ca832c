"""Agreement of localisation, complexity, sufficiency and non-sensitivity with Quantus, on stored arrays.

Left out are Quantus' `effective_complexity`, which counts |R| > ε without a model, and its `focus`. Its completeness
and input invariance are yes or no.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_quantus import GOLDEN, agree, examples, measured, score, stored

from jaxplain.metrics._axioms import non_sensitivity
from jaxplain.metrics._complexity import complexity, sparseness, sufficiency
from jaxplain.metrics._localization import (
    attribution_auc,
    energy_inside,
    pointing_game,
    relevance_rank_accuracy,
    top_k_intersection,
)

KINDS = ("random", "input_x_gradient", "positive")
MASKS = stored("localisation")["mask"][:, 0] > 0


def maps_of(kind):
    family = "localisation" if kind == "positive" else "network"
    return stored(family)[f"maps/{kind}"][:, 0]


def with_signs(measure):
    """Quantus ranks negative values, too: here they are made positive, in the same order."""
    return lambda heat, mask: measure(heat - jnp.min(heat) + 1, mask)


def over_chance(measure):
    return lambda heat, mask: measure(heat, mask) / jnp.mean(mask, dtype=heat.dtype)


LOCALISATION = {
    "top_k_intersection/{}/10": with_signs(top_k_intersection(k=10)),
    "top_k_intersection/{}/30,concept": over_chance(with_signs(top_k_intersection(k=30))),
    "relevance_rank_accuracy/{}": with_signs(relevance_rank_accuracy()),
    "attribution_localisation/{}/abs": lambda heat, mask: energy_inside()(jnp.abs(heat), mask),
    "attribution_localisation/{}/positive": energy_inside(),
    "auc/{}": with_signs(attribution_auc()),
}


@pytest.mark.parametrize("name", LOCALISATION)
def test_localization(name):
    measure = jax.jit(jax.vmap(LOCALISATION[name]))
    for kind in KINDS:
        agree(measure(maps_of(kind), MASKS), stored("localisation")[name.format(kind)], rtol=1e-9)  # 1e-9 on a sum


def test_relevance_mass_accuracy_of_positive_maps():
    agree(
        jax.vmap(energy_inside())(maps_of("positive"), MASKS),
        stored("localisation")["relevance_mass_accuracy/positive"],
    )


def test_pointing_game_and_its_ties():
    """Of two maxima either is a hit for Quantus, half a hit for us."""
    measure = jax.jit(jax.vmap(pointing_game()))
    for kind in KINDS:
        np.testing.assert_array_equal(measure(maps_of(kind), MASKS), stored("localisation")[f"pointing_game/{kind}"])
    tied = maps_of("positive").copy()
    for row, column in stored("localisation")["tied_peaks"]:
        tied[:, row, column] = maps_of("positive").max(axis=(1, 2)) + 1
    hits = np.asarray(measure(tied, MASKS))
    np.testing.assert_array_equal(hits > 0, stored("localisation")["pointing_game_tied"])
    assert (hits == 0.5).any()


@pytest.mark.parametrize("kind", KINDS)
def test_complexity(kind):
    sizes, want = np.abs(maps_of(kind)), stored("localisation")
    # Quantus adds 1e-7 to |R|, in the second case after a division by the largest of all, and 1e-12 to each share.
    measure = jax.jit(jax.vmap(sparseness()))
    agree(measure(sizes + 1e-7), want[f"sparseness/{kind}"])
    agree(measure(sizes + 1e-7 * sizes.max()), want[f"sparseness_normalised/{kind}"])
    agree(jax.jit(jax.vmap(complexity()))(maps_of(kind)), want[f"complexity/{kind}"], rtol=1e-9)


@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_sufficiency(threshold):
    predictions = stored("network")["logits"].argmax(axis=1)
    measure = jax.jit(sufficiency(threshold=threshold))
    for kind in ("random", "input_x_gradient"):
        got = np.nan_to_num(measure(maps_of(kind), predictions))  # 0 where there is no neighbor
        agree(got, stored("faithfulness")[f"sufficiency/{kind}/{threshold}"])


def test_non_sensitivity():
    """Quantus has one absolute threshold for both sides; as ours are relative, the map is brought to 0 and 1 before."""
    about = json.loads((GOLDEN / "faithfulness.json").read_text())["arrays"]
    (eps,) = {about[f"non_sensitivity/{kind}"]["settings"]["eps"] for kind in ("random", "input_x_gradient")}

    def drops(x, label):
        points = jnp.where(jnp.eye(144, dtype=bool).reshape(144, 12, 12), 0.25, x)
        return jnp.abs(jax.vmap(score, in_axes=(0, None))(points, label) - score(x, label))

    def measure(heat, x, label, tolerance):
        metric = non_sensitivity(score, baseline=0.25, tolerance=tolerance, chunk_size=144)
        return 144 * metric((jnp.abs(heat) >= eps).astype(float), x, label)

    largest = jax.jit(jax.vmap(drops))(*examples()).max(axis=1)
    got = measured(measure, eps / largest)
    np.testing.assert_allclose(
        got, [stored("faithfulness")[f"non_sensitivity/{kind}"] for kind in ("random", "input_x_gradient")], rtol=1e-12
    )
