"""How good is an explanation? Metrics for single maps and for methods, and `compare`, which tabulates both.

A metric is `metric(…, **settings) -> measure`, and a measure is a pure function of one example, so that `jax.vmap` and
`jax.jit` apply to it. The name of a metric's first argument says what it reads:

- `metric(score)(attribution, x, *args)`: faithfulness and axioms. Does the score agree with the map?
- `metric(explain)(x, *args)`: robustness. How much does the map change when the input hardly changes?
- `metric(make_explain)(params, x, *args)`: randomization. Does it change when the network forgets what it has learned?
- `metric()(attribution)`, `metric()(attribution, mask)`: complexity and localization. How complex is the map, and does
  it lie on the object?

Measures that draw random numbers take `key=`. `compare` evaluates many methods by many metrics over many examples.
The ingredients have modules of their own: `removal` (what replaces removed features), `neighbors` (which inputs
are near to x), `similarity` (of two maps), and `controls` (what a method should be compared with first).

Example:
    >>> import jax, jaxplain as jx
    >>> net = jx.zoo.load("gap_cluttered")
    >>> scenes = jax.vmap(jx.datasets.cluttered_mnist)(jax.random.split(jax.random.key(0), 8))
    >>> maps = jax.jit(jax.vmap(jx.grad_cam(jx.logit(net))))(scenes.image, scenes.labels[:, 0])
    >>> hits = jax.vmap(jx.metrics.pointing_game())(maps, scenes.digit_masks[:, 0])
    >>> hits.shape
    (8,)
"""

from jaxplain.metrics import controls, neighbors, removal, similarity
from jaxplain.metrics._axioms import completeness, input_invariance, non_sensitivity
from jaxplain.metrics._compare import compare
from jaxplain.metrics._comparison import Comparison
from jaxplain.metrics._complexity import complexity, effective_complexity, sparseness, sufficiency
from jaxplain.metrics._faithfulness import (
    Correlations,
    faithfulness_correlation,
    faithfulness_estimate,
    infidelity,
    monotonicity,
    monotonicity_correlation,
    sensitivity_n,
)
from jaxplain.metrics._flipping import (
    Curve,
    insertion,
    irof,
    pixel_flipping,
    region_perturbation,
    road,
    selectivity,
)
from jaxplain.metrics._localization import (
    attribution_auc,
    energy_inside,
    intersection_over_union,
    pointing_game,
    relevance_rank_accuracy,
    top_k_intersection,
)
from jaxplain.metrics._randomization import parameter_randomization, random_logit
from jaxplain.metrics._robustness import (
    avg_sensitivity,
    continuity,
    local_lipschitz_estimate,
    max_sensitivity,
    relative_input_stability,
    relative_output_stability,
    relative_representation_stability,
)

# fmt: off
__all__ = [
    "Comparison", "Correlations", "Curve", "attribution_auc", "avg_sensitivity", "compare", "completeness",
    "complexity", "continuity", "controls", "effective_complexity", "energy_inside", "faithfulness_correlation",
    "faithfulness_estimate", "infidelity", "input_invariance", "insertion", "intersection_over_union", "irof",
    "local_lipschitz_estimate", "max_sensitivity", "monotonicity", "monotonicity_correlation", "neighbors",
    "non_sensitivity", "parameter_randomization", "pixel_flipping", "pointing_game", "random_logit",
    "region_perturbation", "relative_input_stability", "relative_output_stability",
    "relative_representation_stability", "relevance_rank_accuracy", "removal", "road", "selectivity",
    "sensitivity_n", "similarity", "sparseness", "sufficiency", "top_k_intersection",
]
# fmt: on
