"""The gradient, and maps that are simple functions of it."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxplain._checks import checked
from jaxplain._errors import SettingError, explain_error
from jaxplain._explainer import Call, Explainer, Info, make_explainer, sum_gap
from jaxplain._leaves import multiply, wide_dtype
from jaxplain._types import ArgNums, Args, Leaves, PyTree, Score


def _one_gradient(
    method: str,
    f: Score,
    attribution: Callable[[Leaves, Leaves], Leaves],
    argnums: ArgNums,
    allow_random: bool,
    *,
    conserves: bool = False,
    is_gradient: bool = False,
) -> Explainer:
    """A method whose attribution is a function of x and of one gradient."""

    def compute(call: Call, _key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        value, gradient = call.value_and_gradient(call.x)
        leaves = attribution(call.x, gradient)
        if not with_info:
            return leaves, None
        gap = sum_gap(leaves, value) if conserves else None
        return leaves, Info(value=value, gap=gap, n_gradients=jnp.int32(1), n_evaluations=jnp.int32(0))

    return make_explainer(method, f, compute, argnums=argnums, allow_random=allow_random, is_gradient=is_gradient)


@checked()
def gradient(f: Score, *, argnums: ArgNums = 0, allow_random: bool = False) -> Explainer:
    r"""The signed gradient: $R_i = \partial f(x) / \partial x_i$.

    The same numbers as `jax.grad(f)`, plus the checks of this library: one real score, no training mode, no hidden
    randomness. Leaves that are not floats are held constant.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example.
        argnums: Positions of the arguments to explain, as in `jax.grad`.
        allow_random: Whether to accept a score that draws random numbers.

    Returns:
        `explain(x, *args)`, an attribution with the structure, shapes and dtypes of `x`, in units of f per unit of x.

    Guarantees: linear in f; invariant to the implementation of f. Does not sum to the score.
    Cost: 1 gradient. Info: value, n_gradients, n_evaluations.
    Differs from: Captum's `Saliency` takes the absolute value by default; that is `saliency` here.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> print(jx.gradient(lambda x: jnp.sum(x**2))(jnp.array([1.0, -3.0])))
        [ 2. -6.]

    References:
        Baehrens et al., How to explain individual classification decisions, JMLR 11, 2010.
    """
    return _one_gradient("gradient", f, lambda _, g: g, argnums, allow_random, is_gradient=True)


@checked()
def sensitivity(f: Score, *, argnums: ArgNums = 0, allow_random: bool = False) -> Explainer:
    r"""Sensitivity analysis: $R_i = (\partial f(x) / \partial x_i)^2$.

    Arguments and shapes as in `gradient`. Units: (units of f per unit of x) squared.

    Guarantees: $R \ge 0$ and $\sum_i R_i = \lVert\nabla f(x)\rVert^2$. The map explains the steepness of the score, not
    its value. Cost: 1 gradient. Info: value, n_gradients, n_evaluations.
    Differs from: many tutorials square the gradient again when ranking pixels, but this map is already the square.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> print(jx.sensitivity(lambda x: jnp.sum(x**2))(jnp.array([1.0, -3.0])))
        [ 4. 36.]

    References:
        Montavon, Samek, Müller, Methods for interpreting and understanding deep neural networks, DSP 73, 2018, §4.1.
    """
    return _one_gradient("sensitivity", f, lambda _, g: multiply(g, g), argnums, allow_random)


@checked()
def input_x_gradient(f: Score, *, argnums: ArgNums = 0, allow_random: bool = False) -> Explainer:
    r"""Input × gradient: $R_i = x_i \, \partial f(x) / \partial x_i$.

    Arguments and shapes as in `gradient`. Units: units of f.

    Guarantees: $\sum_i R_i = f(x)$ for positively homogeneous scores (ReLU networks without biases), where it equals
    integrated gradients from zero, LRP-0 and DeepLIFT-Rescale; elsewhere `Info.gap` = $\sum_i R_i - f(x)$ shows the
    difference. Depends on the origin of the input's scale.
    Cost: 1 gradient. Info: value, gap, n_gradients, n_evaluations.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> print(jx.input_x_gradient(lambda x: 2 * x[0] - x[1])(jnp.array([1.0, 3.0])))
        [ 2. -3.]

    References:
        Shrikumar et al., Not just a black box, arXiv:1605.01713, 2016.
        Ancona et al., Toward better understanding of gradient-based attribution methods, ICLR 2018.
    """
    return _one_gradient("input_x_gradient", f, multiply, argnums, allow_random, conserves=True)


_REDUCTIONS: dict[str, Callable[..., jax.Array]] = {
    "max": jnp.max,
    "mean": jnp.mean,
    "sum": jnp.sum,
    "norm": jnp.linalg.norm,
}


@checked()
def saliency(
    f: Score,
    *,
    channel_axis: int | None = None,
    reduction: Literal["max", "mean", "sum", "norm"] = "max",
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Saliency map: $R_i = \lvert\partial f(x) / \partial x_i\rvert$, reduced over channels if asked.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example.
        channel_axis: Axis of every explained leaf to reduce (−1 for NHWC images). The map then lacks this axis, one of
            two exceptions to "the attribution has the shape of x". `None`: no reduction.
        reduction: "max" as in the paper, "mean", "sum", or "norm" (Euclidean), over the absolute values.
        argnums, allow_random: As in `gradient`.

    Returns:
        `explain(x, *args)`; units of f per unit of x.

    Guarantees: $R \ge 0$. Cost: 1 gradient. Info: value, n_gradients, n_evaluations.
    Differs from: Captum never reduces channels; tf-keras-vis normalizes to [0, 1], this function does not.

    Note: the map belongs to one class. Several published notebooks differentiate the sum of all logits instead, which
    belongs to none.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> image = jnp.ones((2, 2, 3))
        >>> weights = jnp.array([1.0, -5.0, 2.0])
        >>> print(jx.saliency(lambda x: jnp.sum(x * weights), channel_axis=-1)(image))
        [[5. 5.]
         [5. 5.]]

    References:
        Simonyan, Vedaldi, Zisserman, Deep inside convolutional networks, arXiv:1312.6034, 2013, §3.
    """
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise SettingError(
            explain_error("saliency: unknown `reduction`.", got=repr(reduction), need=", ".join(map(repr, _REDUCTIONS)))
        )
    explain = _one_gradient("saliency", f, lambda _, g: tuple(jnp.abs(leaf) for leaf in g), argnums, allow_random)
    if channel_axis is None:
        return explain
    reduce = _REDUCTIONS[reduction]

    def reduce_channels(leaf: jax.Array) -> jax.Array:
        if not -leaf.ndim <= channel_axis < leaf.ndim:
            raise SettingError(
                explain_error(
                    f"saliency: the explained argument has no axis channel_axis={channel_axis}.",
                    got=f"shape {leaf.shape}",
                    fix="channel_axis=-1 for one (height, width, channels) image; None for no reduction",
                )
            )
        return reduce(leaf.astype(wide_dtype(leaf)), axis=channel_axis).astype(leaf.dtype)

    def evaluate(args: Args, key: Any, with_info: bool) -> tuple[PyTree, Info | None]:
        attribution, info = explain.run(args, key, with_info=with_info)
        reduced = jax.tree.map(
            lambda a: reduce_channels(a) if jnp.issubdtype(a.dtype, jnp.floating) else a, attribution
        )
        return reduced, info

    return Explainer("saliency", evaluate, argnums=argnums)
