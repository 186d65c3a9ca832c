r"""Class activation maps: the places in a layer of maps that hold the evidence for a score.

Notation: $A_k(p)$ is channel k of the layer at place p, $g_k(p) = \partial f / \partial A_k(p)$ the gradient, Z
the number of places. Every map is a weighted sum of the channels; the methods differ in the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._arguments import Arguments
from jaxplain._cam_layer import Layout, MapLayer, layout_setting
from jaxplain._checks import checked, one_of, positive_int, require_callable
from jaxplain._errors import InputError, LayerError, SettingError, explain_error
from jaxplain._explainer import Call, Explainer, Info, make_explainer
from jaxplain._ir.graph import opens_activations
from jaxplain._layers.cam_form import unlike_pooling
from jaxplain._leaves import upcast
from jaxplain._split import Splittable, stage_function
from jaxplain._types import ArgNums, Args, LayerSpec, Leaves, LikeInput, Score
from jaxplain.methods._propagation import computed
from jaxplain.rules import _backprop as backprop

MASKS_AT_ONCE = 16  # masked inputs, or ablated layers, evaluated together for each example
RESIZING = ("nearest", "linear", "bilinear", "cubic", "bicubic", "lanczos3", "lanczos5")

Weighting = Callable[..., tuple[jax.Array, Info]]  # `(layer)`, or `(arguments, layer)`, -> (map over its grid, info)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The settings that every class activation map has; see `grad_cam`."""

    at: LayerSpec | None
    relu: bool
    upsample: bool | str
    layout: Layout | None

    def layer_of(self, staged: Splittable) -> MapLayer:
        return MapLayer(staged, self.at, self.layout or Layout())

    def resizing(self, method: str) -> str | None:
        """The name of the resizing method; None leaves the map at the layer's size."""
        one_of(method, "upsample", self.upsample, (True, False, *RESIZING))
        if isinstance(self.upsample, bool):
            return "bilinear" if self.upsample else None
        return self.upsample


def _cam(
    method: str,
    f: Score,
    weighted: Weighting,
    settings: _Settings,
    *,
    argnums: ArgNums,
    allow_random: bool,
    reads_input: bool = False,
    sums: Callable[[jax.Array], jax.Array] | None = None,
) -> Explainer:
    """A class activation map. `sums` is what of the returned map, before up-sampling, is compared with the score."""
    require_callable(method, f)
    settings.resizing(method)

    def evaluate(args: Args, _key: Any, with_info: bool) -> tuple[jax.Array, Info | None]:
        layer = settings.layer_of(stage_function(method, f, args, argnums=argnums, allow_random=allow_random))
        run = weighted
        if reads_input:
            _require_floats(layer)
            run = partial(weighted, Arguments(method, args, argnums))
        heat, info = _heat(layer, run, settings, sums)
        return heat, info if with_info else None

    return Explainer(method, evaluate, argnums=argnums)


def _heat(
    layer: MapLayer,
    weighted: Weighting,
    settings: _Settings,
    sums: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, Info]:
    heat, info = weighted(layer)
    heat = jnp.maximum(heat, 0) if settings.relu else heat
    if sums is not None and info.value is not None:
        info = info._replace(gap=sums(heat) - info.value.astype(heat.dtype))
    heat = _not_empty(layer, heat)
    resizing = settings.resizing(layer.method)
    heat = heat if resizing is None else layer.up(heat, resizing)
    dtype = layer.staged.arrays[layer.map.input].dtype
    heat = heat.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else heat
    return heat, info._replace(layer=layer.name)


def _require_floats(layer: MapLayer) -> None:
    given = layer.staged.arrays[layer.map.input]
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise InputError(
            explain_error(
                f"{layer.method}: it masks the input, which must be floats.",
                got=f"{given.dtype}{list(given.shape)}",
                why="a token cannot be partially masked",
                fix="mask their embedding: "
                f"encode, decode = jx.split(f, 'embedding'); jx.{layer.method}(decode)(encode(ids), ids)",
            )
        )


def _not_empty(layer: MapLayer, heat: jax.Array) -> jax.Array:
    """The map if it is not all zero, else an error, or NaN while tracing."""
    if not isinstance(heat, jax.core.Tracer) and not jnp.any(heat):
        raise LayerError(
            explain_error(
                f"{layer.method}: the map is zero everywhere.",
                where=f"{layer.point.name}, {list(layer.point.values[0].shape)}",
                why="none of these places speaks for the score: the layer has no gradient there (after a class "
                "token's last block, or a dead ReLU), or all evidence is negative and `relu` removed it",
                fix=(
                    "relu=False shows negative evidence",
                    "an earlier layer: at=…",
                    "under jit the map is NaN instead",
                ),
            )
        )
    return jnp.where(jnp.any(heat != 0), heat, jnp.nan)


def _by_gradient(weight: Callable[[jax.Array, jax.Array], jax.Array]) -> Weighting:
    """Σ_k weight_k(A, g) ⊙ A_k."""

    def weighted(layer: MapLayer) -> tuple[jax.Array, Info]:
        maps, gradient, value = layer.evaluated()
        return jnp.sum(weight(maps, gradient) * maps, axis=-1), _one_gradient(value)

    return weighted


def _one_gradient(value: jax.Array) -> Info:
    return Info(value=value, n_gradients=jnp.int32(1), n_evaluations=jnp.int32(0))


def _without_gradient(value: jax.Array, n_evaluations: int) -> Info:
    return Info(value=value, n_gradients=jnp.int32(0), n_evaluations=jnp.int32(n_evaluations))


def _over_places(function: Callable[..., jax.Array], values: jax.Array) -> jax.Array:
    return function(values, axis=tuple(range(values.ndim - 1)), keepdims=True)


def _sum_of_channels(weights: jax.Array, maps: jax.Array) -> jax.Array:
    """Σ_k weights_k A_k."""
    weights = weights.astype(maps.dtype).reshape((1,) * (maps.ndim - 1) + (-1,))
    return jnp.sum(weights * maps, axis=-1)


@checked(layout=layout_setting)
def grad_cam(
    f: Score,
    *,
    at: LayerSpec | None = None,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Grad-CAM: $M(p) = \mathrm{ReLU} \sum_k \alpha_k A_k(p)$ with $\alpha_k = \frac{1}{Z} \sum_p g_k(p)$.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example. Use the logit: the gradient of the probability
            vanishes.
        at: The layer A, as in `split`. `None` is the last map through which the whole score passes: the value that
            enters the node that collapses the places (global pooling, flattening). If only one place has a gradient
            there (the class token of a transformer), it is the value that enters the last node that mixes places.
            `Info.layer` names the layer.
        relu: Whether to keep only evidence for the score.
        upsample: How to resize the map to the input: `True` for "bilinear", or a method of `jax.image.resize`; `False`
            leaves it at the size of the layer.
        layout: `jx.Layout(channel_axis, grid, class_tokens)` for layers whose place and channel axes cannot be inferred
            from the program. Mostly they can: rows, columns and tokens are followed from the input to the layer in any
            layout, tokens of patches are folded to their grid, and class tokens are left out.
        argnums, allow_random: As in `gradient`; x may be integers (token ids).

    Returns:
        `explain(x, *args)`, a map over the axes of x for which the layer has places: (height, width) of an image in any
        layout, (length,) of a sequence; dtype of x. In units of f. It is not normalized: to compare pictures, divide
        each by its maximum.

    Guarantees: on a network with global average pooling followed only by linear layers it is exactly ReLU(CAM)/Z.
    Elsewhere, averaging the gradient over places ignores that later layers treat places differently, so that evidence
    may appear next to its object; `hires_cam` does not average. Does not sum to the score.
    Cost: 1 forward pass, 1 gradient of the part after the layer. Info: value, layer, n_gradients, n_evaluations.
    Errors: `LayerError` if no layer fits, or if the map is zero everywhere (NaN under `jit`, which cannot raise).
    Differs from: Captum and pytorch-grad-cam need the layer (and for transformers a reshaping function); the latter
    scales every map to [0, 1], which hides missing evidence.

    Example:
        >>> import jax, jaxplain as jx
        >>> digits, net = jx.datasets.mnist(), jx.zoo.load("gap")
        >>> heat, info = jx.with_info(jx.grad_cam(jx.logit(net)))(digits.x_test[0], digits.y_test[0])
        >>> print(heat.shape, info.layer.shape)
        (28, 28) (1, 7, 7, 128)

    References:
        Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization, ICCV 2017.
    """
    settings = _Settings(at=at, relu=relu, upsample=upsample, layout=layout)
    weighted = _by_gradient(lambda _, g: _over_places(jnp.mean, g))
    return _cam("grad_cam", f, weighted, settings, argnums=argnums, allow_random=allow_random)


@checked(layout=layout_setting)
def cam(
    f: Score,
    *,
    at: LayerSpec | None = None,
    relu: bool = False,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Class activation mapping: $M(p) = \sum_k w_k A_k(p)$ for a score $f = \frac{1}{Z} \sum_p \sum_k w_k A_k(p) + b$.

    For networks that average (or sum) their last maps over all places and continue linearly: the map shows how the
    score is composed, place by place. Arguments and returns as in `grad_cam`; units of f.

    Guarantees: the mean of the map is exactly f − b (before up-sampling). The program of the score is checked to have
    this form; if it does not, a `LayerError` names the operation that breaks it and the methods that do not need it.
    Cost: 1 forward pass (and the gradient of a linear layer). Info: value, gap (mean of the map − f; −b without a
    ReLU), layer, n_gradients, n_evaluations.
    Differs from: torch-cam takes the weights of the last linear module, however the network uses them.

    References:
        Zhou et al., Learning deep features for discriminative localization, CVPR 2016.
    """

    def weighted(layer: MapLayer) -> tuple[jax.Array, Info]:
        _require_pooling(layer)
        maps, gradient, value = layer.evaluated()
        heat = jnp.sum(gradient * maps, axis=-1)
        return heat * heat.size, _one_gradient(value)

    settings = _Settings(at=at, relu=relu, upsample=upsample, layout=layout)
    return _cam("cam", f, weighted, settings, argnums=argnums, allow_random=allow_random, sums=jnp.mean)


def _require_pooling(layer: MapLayer) -> None:
    breaks = layer.point.loops or unlike_pooling(layer.axes, layer.point.values[0])
    if breaks:
        equation = breaks[0] if isinstance(breaks, tuple) else breaks
        raise LayerError(
            explain_error(
                f"{layer.method}: the score is not a mean of the layer's places, "
                "linear in it and with equal weights everywhere.",
                where=f"{equation.primitive} at {equation.line}",
                got=f"layer: {layer.name.kind} {layer.name.path or 'without a name'}, {list(layer.name.shape)}",
                need="global average pooling of the layer, then linear layers, then the logit",
                why="a class activation map consists of the weights that only such networks have",
                fix=(
                    "jx.grad_cam (equal to it on such networks), jx.hires_cam",
                    "explain the logit, not the probability",
                ),
            )
        )


@checked(layout=layout_setting)
def hires_cam(
    f: Score,
    *,
    at: LayerSpec | None = None,
    relu: bool = False,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""HiResCAM: $M(p) = \sum_k \frac{\partial f}{\partial A_k(p)} A_k(p)$, input × gradient of the layer, summed.

    Arguments and returns as in `grad_cam`; units of f.

    Guarantees: sums to f − b (before up-sampling) if the part after the layer is affine with offset b; it then shows
    the contribution of each place. Equal to Grad-CAM on networks with global average pooling.
    Cost: as `grad_cam`. Info: value, gap (Σ M − f, after the ReLU if there is one), layer, n_gradients, n_evaluations.
    Differs from: pytorch-grad-cam applies a ReLU, after which the map no longer sums to the score.

    References:
        Draelos, Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks,
        arXiv 2020.
    """
    settings = _Settings(at=at, relu=relu, upsample=upsample, layout=layout)
    weighted = _by_gradient(lambda _, g: g)
    return _cam("hires_cam", f, weighted, settings, argnums=argnums, allow_random=allow_random, sums=jnp.sum)


@checked(layout=layout_setting)
def layer_cam(
    f: Score,
    *,
    at: LayerSpec | None = None,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""LayerCAM: $M(p) = \mathrm{ReLU} \sum_k \mathrm{ReLU}\!\left(\frac{\partial f}{\partial A_k(p)}\right) A_k(p)$.

    Weights each place separately, and therefore also works at early layers, which have finer maps. Arguments and
    returns as in `grad_cam`; units of f.

    Guarantees: none beyond its definition; non-negative where A is, even without the outer ReLU.
    Cost: as `grad_cam`. Info: value, layer, n_gradients, n_evaluations.

    References:
        Jiang et al., LayerCAM: exploring hierarchical class activation maps for localization, IEEE TIP 30, 2021.
    """
    settings = _Settings(at=at, relu=relu, upsample=upsample, layout=layout)
    weighted = _by_gradient(lambda _, g: jnp.maximum(g, 0))
    return _cam("layer_cam", f, weighted, settings, argnums=argnums, allow_random=allow_random)


@checked(layout=layout_setting)
def xgrad_cam(
    f: Score,
    *,
    at: LayerSpec | None = None,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""XGrad-CAM: $\alpha_k = \sum_p A_k(p)\, g_k(p) \big/ \sum_p A_k(p)$ instead of Grad-CAM's mean gradient.

    Arguments and returns as in `grad_cam`; units of f.

    Guarantees: without the ReLU the map sums to Σ A ⊙ g, like HiResCAM, and thus to f − b if the part after the layer
    is affine. A channel whose sum is 0 has weight 0.
    Cost: as `grad_cam`. Info: value, gap (Σ M − f, after the ReLU), layer, n_gradients, n_evaluations.

    References:
        Fu et al., Axiom-based Grad-CAM: toward accurate visualization and explanation of CNNs, BMVC 2020.
    """

    def weight(maps: jax.Array, gradient: jax.Array) -> jax.Array:
        total = _over_places(jnp.sum, maps)
        is_empty = total == 0
        return jnp.where(is_empty, 0, _over_places(jnp.sum, maps * gradient) / jnp.where(is_empty, 1, total))

    settings = _Settings(at=at, relu=relu, upsample=upsample, layout=layout)
    weighted = _by_gradient(weight)
    return _cam("xgrad_cam", f, weighted, settings, argnums=argnums, allow_random=allow_random, sums=jnp.sum)


@checked(layout=layout_setting)
def grad_cam_plus_plus(
    f: Score,
    *,
    at: LayerSpec | None = None,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Grad-CAM++: $w_k = \sum_p \alpha_k(p)\, g_k^+(p)$ with $\alpha_k(p) = 1 / (2 + g_k^+(p) \sum_q A_k(q))$.

    If the gradient vanishes off an object, each place counts for itself instead of by the object's share of the area,
    so that small objects of a class are found next to large ones. Negative gradients are dropped, and with them the
    evidence against the class. Arguments and returns as in `grad_cam`; units of f, up to a factor for each image.

    Guarantees: α is in (0, ½] for A ≥ 0 (after a ReLU); where Σ A < 0 the denominator is kept at 1 or more.
    Cost: as `grad_cam`. Info: value, layer, n_gradients, n_evaluations.
    Differs from: pytorch-grad-cam adds 1e-6 to $2g^2 + g^3 \sum A$, which affects small gradients.

    Note: the paper explains $Y = \exp(f)$ of a network that is piecewise linear up to f. All derivatives of Y are then
    powers of g times Y. The factor Y is common to all weights and cancels once a map is normalized; leaving it out
    avoids overflow.

    References:
        Chattopadhay et al., Grad-CAM++: generalized gradient-based visual explanations for deep convolutional networks,
        WACV 2018.
    """

    def weight(maps: jax.Array, gradient: jax.Array) -> jax.Array:
        positive = jnp.maximum(gradient, 0)
        return _over_places(jnp.sum, positive / jnp.maximum(2 + positive * _over_places(jnp.sum, maps), 1))

    settings = _Settings(at=at, relu=relu, upsample=upsample, layout=layout)
    return _cam("grad_cam_plus_plus", f, _by_gradient(weight), settings, argnums=argnums, allow_random=allow_random)


@checked(layout=layout_setting)
def eigen_cam(
    f: Score,
    *,
    at: LayerSpec | None = None,
    center: bool = False,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Eigen-CAM: $M = A v_1$ with the first right singular vector $v_1$ of the matrix A (places × channels).

    Shows the dominant pattern of the layer's activity, whatever the class; f only serves to find the layer. Arguments
    and returns as in `grad_cam`; `center` subtracts the mean of each channel first. In units of A. Of the two possible
    signs of $v_1$, the one that makes Σ M positive is taken (with `center`: Σ M³).

    Guarantees: the same for all classes; non-negative where A is, without `center`. Differentiable where the largest
    singular value is simple.
    Cost: 1 forward pass and one eigenvector. Info: value, layer, n_gradients, n_evaluations.
    Differs from: pytorch-grad-cam centers the channels, unlike the paper, and keeps the sign that the SVD returns.

    References:
        Muhammad, Yeasin, Eigen-CAM: class activation map using principal components, IJCNN 2020.
    """

    def weighted(layer: MapLayer) -> tuple[jax.Array, Info]:
        raw, value = layer.raw_and_value()
        (maps,) = upcast((layer.folded(raw),))
        rows = maps.reshape(-1, maps.shape[-1])
        rows = rows - jnp.mean(rows, axis=0, keepdims=True) if center else rows
        heat = _first_component(rows)
        sign = jnp.sum(heat**3 if center else heat)
        return jnp.where(sign < 0, -heat, heat).reshape(maps.shape[:-1]), _without_gradient(value, 1)

    settings = _Settings(at=at, relu=relu, upsample=upsample, layout=layout)
    return _cam("eigen_cam", f, weighted, settings, argnums=argnums, allow_random=allow_random)


def _first_component(rows: jax.Array) -> jax.Array:
    """A v₁, from the smaller Gram matrix of A: AᵀA has the eigenvector v₁, A Aᵀ has u₁, and A v₁ = σ₁ u₁."""
    n, channels = rows.shape
    if channels < n:
        return rows @ _first_eigenvector(rows.T @ rows)
    gram = rows @ rows.T
    u = _first_eigenvector(gram)
    return u * jnp.sqrt(u @ gram @ u)


@jax.custom_jvp
def _first_eigenvector(matrix: jax.Array) -> jax.Array:
    """The unit vector of the largest eigenvalue of a symmetric matrix.

    Its derivative only needs that eigenvalue to be simple. Others may coincide, as they do for dead channels, for which
    the derivative of `eigh` is NaN.
    """
    return jnp.linalg.eigh(matrix)[1][:, -1]


@_first_eigenvector.defjvp
def _first_eigenvector_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    ((matrix,), (change,)) = primals, tangents
    v = _first_eigenvector(matrix)
    value = v @ matrix @ v
    # (λ − M) dv = (dM − dλ) v, with dv ⊥ v.
    pushed = change @ v
    pushed = pushed - v * (v @ pushed)
    outer = value * jnp.outer(v, v)
    return v, jnp.linalg.solve(value * jnp.eye(len(v), dtype=v.dtype) - matrix + outer, pushed)


@checked(layout=layout_setting)
def score_cam(
    f: Score,
    *,
    at: LayerSpec | None = None,
    baseline: LikeInput = 0.0,
    relu: bool = True,
    upsample: bool | str = True,
    chunk_size: int | None = None,
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Score-CAM: $M(p) = \mathrm{ReLU} \sum_k \alpha_k A_k(p)$ with $\alpha = \mathrm{softmax}_k\, f(x \odot H_k)$.

    $H_k$ is channel k, up-sampled to the input and scaled to [0, 1]: the weight of a channel is the score of the part
    of the input that it covers. Uses no gradient.

    Arguments:
        f, at, relu, upsample, layout, argnums, allow_random: As in `grad_cam`; x must be floats.
        baseline: Replacement of the input where a mask is 0, $x \odot H + b \odot (1 - H)$; as in
            `integrated_gradients`.
        chunk_size: Number of masks evaluated together for each example; peak memory is that of `chunk_size` forward
            passes. `None` is 16.

    Returns as `grad_cam`. In units of A, weighted by a softmax: a channel that raises the score by 1 counts e times as
    much, so the scale of f matters.

    Guarantees: none beyond its definition.
    Cost: 1 forward pass and one more for each channel of the layer. Info: value, layer, n_gradients, n_evaluations.
    Differs from: pytorch-grad-cam up-samples masks with aligned corners, which shifts them by up to half a pixel of the
    layer.

    References:
        Wang et al., Score-CAM: score-weighted visual explanations for convolutional neural networks, CVPR workshops
        2020.
    """
    method = "score_cam"
    chunk = positive_int(method, "chunk_size", MASKS_AT_ONCE if chunk_size is None else chunk_size)
    settings = _Settings(at=at, relu=relu, upsample=upsample, layout=layout)
    resizing = settings.resizing(method) or "bilinear"

    def weighted(arguments: Arguments, layer: MapLayer) -> tuple[jax.Array, Info]:
        raw, value = layer.raw_and_value()
        (maps,) = upcast((layer.folded(raw),))
        which = layer.among_floats()
        x = upcast(arguments.leaves)[which]
        start = arguments.like(baseline, "baseline", none=lambda x: x)[which]

        def score(channel: jax.Array) -> jax.Array:
            mask = layer.up(channel, resizing)
            low, high = jnp.min(mask), jnp.max(mask)
            is_flat = high == low
            mask = jnp.where(is_flat, 0, (mask - low) / jnp.where(is_flat, 1, high - low))
            return layer.value_at(start + layer.broadcastable(mask).astype(x.dtype) * (x - start))

        scores = lax.map(score, jnp.moveaxis(maps, -1, 0), batch_size=chunk)
        return _sum_of_channels(jax.nn.softmax(scores), maps), _without_gradient(value, 1 + maps.shape[-1])

    return _cam(method, f, weighted, settings, argnums=argnums, allow_random=allow_random, reads_input=True)


@checked(layout=layout_setting)
def ablation_cam(
    f: Score,
    *,
    at: LayerSpec | None = None,
    relu: bool = True,
    upsample: bool | str = True,
    chunk_size: int | None = None,
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Ablation-CAM: $M(p) = \mathrm{ReLU} \sum_k w_k A_k(p)$ with $w_k = \frac{f - f_{\setminus k}}{\lvert f \rvert}$.

    $f_{\setminus k}$ is the score with channel k set to 0. Uses no gradient. Arguments and returns as in `grad_cam`,
    `chunk_size` as in `score_cam`. In units of A.

    Guarantees: if the part after the layer is affine in it, $w_k = \sum_p g_k(p) A_k(p) / \lvert f \rvert$, i.e.
    XGrad-CAM's weight times Σ A over |f|. (The paper divides by f, which is the same for f > 0 and would turn evidence
    into counter-evidence for f < 0.)
    Cost: 1 forward pass, and the part after the layer once for each channel. Info: value, layer, n_gradients,
    n_evaluations.

    References:
        Desai, Ramaswamy, Ablation-CAM: visual explanations for deep convolutional network via gradient-free
        localization, WACV 2020.
    """
    method = "ablation_cam"
    chunk = positive_int(method, "chunk_size", MASKS_AT_ONCE if chunk_size is None else chunk_size)

    def weighted(layer: MapLayer) -> tuple[jax.Array, Info]:
        raw, value = layer.raw_and_value()
        (maps,) = upcast((layer.folded(raw),))
        tail = layer.tail(raw)

        def ablated(k: jax.Array) -> jax.Array:
            kept = lax.broadcasted_iota(jnp.int32, raw.shape, layer.map.channel) != k
            return tail(jnp.where(kept, raw, 0))

        channels = jnp.arange(maps.shape[-1], dtype=jnp.int32)
        scores = lax.map(ablated, channels, batch_size=chunk)
        weights = (value - scores) / jnp.where(value == 0, 1, jnp.abs(value))
        return _sum_of_channels(weights, maps), _without_gradient(value, 1 + len(channels))

    settings = _Settings(at=at, relu=relu, upsample=upsample, layout=layout)
    return _cam(method, f, weighted, settings, argnums=argnums, allow_random=allow_random)


@checked(layout=layout_setting)
def guided_grad_cam(
    f: Score,
    *,
    at: LayerSpec | None = None,
    upsample: str = "bilinear",
    layout: Layout | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Guided Grad-CAM: $R = \mathrm{GuidedBackprop}(x) \odot \mathrm{up}(\mathrm{GradCAM}(x))$.

    The fine lines of guided back-propagation, where Grad-CAM is positive. Arguments as in `grad_cam`. Returns
    `explain(x, *args)` with the structure and shapes of x; units of f² per unit of x.

    Guarantees: none; the caveat of `guided_backprop` applies here, too.
    Cost: 2 gradients. Info: value, layer, n_gradients, n_evaluations.

    References:
        Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization, ICCV 2017.
    """
    method = "guided_grad_cam"
    settings = _Settings(at=at, relu=True, upsample=upsample, layout=layout)
    if settings.resizing(method) is None:
        raise SettingError(
            explain_error(f"{method}: `upsample` is needed.", got=repr(upsample), need=", ".join(RESIZING))
        )
    guided = computed(method, backprop.GUIDED, 1.0, "error", opens_activations)
    weighted = _by_gradient(lambda _, g: _over_places(jnp.mean, g))

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        leaves, _ = guided(call, key, False)
        layer = settings.layer_of(Splittable(method, call.program, call.arguments.leaves))
        heat, info = _heat(layer, weighted, settings)
        (heat,) = upcast((layer.broadcastable(heat),))
        leaves = tuple(leaf * heat if i == layer.map.input else leaf * 0 for i, leaf in enumerate(leaves))
        return leaves, info._replace(n_gradients=jnp.int32(2)) if with_info else None

    return make_explainer(method, f, compute, argnums=argnums, allow_random=allow_random)
