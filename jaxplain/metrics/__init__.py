"""How good is an explanation? Measures of maps, of methods, and one table of both.

A metric is `metric(…, **settings) -> measure`, and a measure is a pure function of one example: `jax.vmap` and `jax.jit` do the rest. What it reads
shows in the name of its first argument:

- `metric(score)(attribution, x, *args)`: faithfulness, axioms: does the score agree with the map?
- `metric(explain)(x, *args)`: robustness: how much does the map change where the input hardly does?
- `metric(make_explain)(params, x, *args)`: randomization: does it change when the network forgets what it has learned?
- `metric()(attribution)`, `metric()(attribution, mask)`: complexity, localization: how long is the map, and is it where the object is?

Those that draw take `key=`. `compare` measures methods by metrics over many examples; `random_map` and `greedy` are controls.

Example:
    >>> import jax, jaxplain as jx
    >>> net = jx.zoo.load("gap_cluttered")
    >>> scenes = jax.vmap(jx.datasets.cluttered_mnist)(jax.random.split(jax.random.key(0), 8))
    >>> maps = jax.jit(jax.vmap(jx.grad_cam(jx.logit(net))))(scenes.image, scenes.labels[:, 0])
    >>> hits = jax.vmap(jx.metrics.pointing_game())(maps, scenes.digit_masks[:, 0])
    >>> hits.shape
    (8,)
"""

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
from jaxplain.metrics.controls import greedy, random_map
from jaxplain.metrics.neighbors import ascent, ball, drawn, gaussian, given, translations
from jaxplain.metrics.removal import blur, channel_mean, impute, uniform
from jaxplain.metrics.similarity import cosine, pearson, spearman, ssim

__all__ = [
    "Comparison",
    "Correlations",
    "Curve",
    "ascent",
    "attribution_auc",
    "avg_sensitivity",
    "ball",
    "blur",
    "channel_mean",
    "compare",
    "completeness",
    "complexity",
    "continuity",
    "cosine",
    "drawn",
    "effective_complexity",
    "energy_inside",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "gaussian",
    "given",
    "greedy",
    "impute",
    "infidelity",
    "input_invariance",
    "insertion",
    "intersection_over_union",
    "irof",
    "local_lipschitz_estimate",
    "max_sensitivity",
    "monotonicity",
    "monotonicity_correlation",
    "non_sensitivity",
    "parameter_randomization",
    "pearson",
    "pixel_flipping",
    "pointing_game",
    "random_logit",
    "random_map",
    "region_perturbation",
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
    "relevance_rank_accuracy",
    "road",
    "selectivity",
    "sensitivity_n",
    "sparseness",
    "spearman",
    "ssim",
    "sufficiency",
    "top_k_intersection",
    "translations",
    "uniform",
]
