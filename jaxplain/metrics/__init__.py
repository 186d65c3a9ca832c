"""How good is an explanation? Measures of one map against what is known about its image.

Every metric is `metric(**settings) -> measure`, and `measure(attribution, mask)` is a pure function of one example: `jax.vmap` and
`jax.jit` do the rest. Maps are (height, width) or (height, width, channels), of which the channels are summed.

Example:
    >>> import jax, jaxplain as jx
    >>> net = jx.zoo.load("gap_cluttered")
    >>> scenes = jax.vmap(jx.datasets.cluttered_mnist)(jax.random.split(jax.random.key(0), 8))
    >>> maps = jax.jit(jax.vmap(jx.grad_cam(jx.logit(net))))(scenes.image, scenes.labels[:, 0])
    >>> hits = jax.vmap(jx.metrics.pointing_game())(maps, scenes.digit_masks[:, 0])
    >>> hits.shape
    (8,)
"""

from jaxplain.metrics.localisation import energy_inside, intersection_over_union, pointing_game

__all__ = ["energy_inside", "intersection_over_union", "pointing_game"]
