"""Class activation maps: where in a layer of maps the evidence for a score is.

Notation: A_k(p) is channel k of the layer at place p, g = ∂f/∂A its gradient, Z the number of places. Every map is a sum of the channels with
weights, and the methods differ in the weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._arguments import Arguments
from jaxplain._cam_layer import Layout, MapLayer
from jaxplain._checks import positive_int, require_callable
from jaxplain._errors import InputError, LayerError, SettingError, explain_error
from jaxplain._explainer import Call, Explainer, Info, make_explainer
from jaxplain._ir.graph import opens_activations
from jaxplain._leaves import upcast
from jaxplain._split import Inside, staged
from jaxplain._types import Leaves
from jaxplain.methods._propagation import computed
from jaxplain.rules import _backprop as backprop

MASKS_AT_ONCE = 16  # masked inputs, or ablated layers, evaluated together for each example
RESIZING = ("nearest", "linear", "bilinear", "cubic", "bicubic", "lanczos3", "lanczos5")

# From the layer to (map over its grid, info)
Weighting = Callable[..., tuple[jax.Array, Info]]


def _cam(
    method: str,
    f: Callable[..., Any],
    weighted: Weighting,
    at: Any,
    relu: bool,
    upsample: bool | str,
    layout: Layout | None,
    argnums: int | Sequence[int],
    allow_random: bool,
    *,
    reads_input: bool = False,
) -> Explainer:
    require_callable(method, f)
    resizing = _resizing(method, upsample)

    def evaluate(args: tuple, _key: Any, with_info: bool) -> tuple[jax.Array, Info | None]:
        layer = MapLayer(staged(method, f, args, argnums, allow_random), at, layout or Layout())
        run = weighted
        if reads_input:
            _require_floats(layer)
            run = partial(weighted, Arguments(method, args, argnums))
        heat, info = _heat(layer, run, relu, resizing)
        return heat, info._replace(layer=layer.name) if with_info else None

    return Explainer(method, evaluate, argnums=argnums)


def _heat(layer: MapLayer, weighted: Weighting, relu: bool, resizing: str | None) -> tuple[jax.Array, Info]:
    heat, info = weighted(layer)
    heat = jnp.maximum(heat, 0) if relu else heat
    heat = _not_empty(layer, heat)
    dtype = layer.inside.arrays[layer.map.input].dtype
    heat = heat if resizing is None else layer.up(heat, resizing)
    heat = heat.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else heat
    return heat, info


def _require_floats(layer: MapLayer) -> None:
    given = layer.inside.arrays[layer.map.input]
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise InputError(
            explain_error(
                f"{layer.method}: it masks the input, which must be floats.",
                got=f"{given.dtype}{list(given.shape)}",
                why="half a token is none",
                fix=f"mask their embedding: encode, decode = jx.split(f, 'embedding'); jx.{layer.method}(decode)(encode(ids), ids)",
            )
        )


def _not_empty(layer: MapLayer, heat: jax.Array) -> jax.Array:
    """The map, if anything is in it: an error if not, or NaN where that is not known yet."""
    if not isinstance(heat, jax.core.Tracer) and not jnp.any(heat):
        raise LayerError(
            explain_error(
                f"{layer.method}: the map is zero everywhere.",
                where=f"{layer.site.name}, {list(layer.site.values[0].shape)}",
                why="nothing at these places speaks for the score: the layer has no gradient there (behind a class token's last "
                "block, a dead ReLU), or all evidence is negative and `relu` removed it",
                fix=(
                    "relu=False shows negative evidence",
                    "an earlier layer: at=…",
                    "under jit the map is NaN instead",
                ),
            )
        )
    return jnp.where(jnp.any(heat != 0), heat, jnp.nan)


def _resizing(method: str, upsample: bool | str) -> str | None:
    name = "bilinear" if upsample is True else upsample or None
    if name is not None and name not in RESIZING:
        raise SettingError(
            explain_error(
                f"{method}: unknown `upsample`.", got=repr(upsample), need=f"True, False, {', '.join(RESIZING)}"
            )
        )
    return name


def _by_gradient(weight: Callable[[jax.Array, jax.Array], jax.Array], *, sums: bool = False) -> Weighting:
    """Σ_k weight_k(A, g) ⊙ A_k; with `sums`, the map sums to the score up to what bypasses it."""

    def weighted(layer: MapLayer) -> tuple[jax.Array, Info]:
        maps, gradient, value = layer.evaluated()
        heat = jnp.sum(weight(maps, gradient) * maps, axis=-1)
        gap = jnp.sum(heat) - value.astype(heat.dtype) if sums else None
        return heat, Info(value=value, gap=gap, n_gradients=jnp.int32(1))

    return weighted


def _over_places(function: Callable[..., jax.Array], values: jax.Array) -> jax.Array:
    return function(values, axis=tuple(range(values.ndim - 1)), keepdims=True)


def grad_cam(
    f: Callable[..., Any],
    *,
    at: Any = None,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Grad-CAM: $M(p) = \mathrm{ReLU} \sum_k \alpha_k A_k(p)$ with $\alpha_k = \frac{1}{Z} \sum_p \partial f / \partial A_k(p)$.

    Arguments:
        f: the score, `f(x, *args) -> real scalar` for one example. The logit, rather than the probability, whose gradient vanishes.
        at: the layer A, as in `split`. `None` is the last map that all of the score passes through: the value entering the node that
            collapses the places (global pooling, flattening); where only one place has a gradient there (the class token of a
            transformer), the one before the last node that mixes places. `Info.layer` tells which.
        relu: keep what speaks for the score alone.
        upsample: bring the map to the size of the input: `True` for "bilinear", or a method of `jax.image.resize`; `False`
            leaves it at the size of the layer.
        layout: `jx.Layout(channel_axis, grid, class_tokens)` where the program does not tell which axes of the layer are places and
            channels. It mostly does: rows, columns and tokens are followed from the input to the layer, in any layout; tokens
            of patches are folded to their grid, class tokens left out.
        argnums, allow_random: as in `gradient`; x may be integers (token ids).

    Returns:
        `explain(x, *args)`, a map over those axes of x that the layer has places for: (height, width) of an image in any layout, (length,) of
        a sequence; dtype of x. In units of f. It is not normalized: divide by its maximum to compare pictures.

    Guarantees: on a network with global average pooling (and nothing but linear layers after it) it is ReLU(CAM)/Z exactly. Elsewhere the mean of
    gradients over places ignores that later layers treat places differently, and evidence may be shown beside its object:
    `hires_cam` does not average. Sums to nothing.
    Cost: 1 forward pass, 1 gradient of what comes after the layer. Info: value, layer, n_gradients.
    Errors: `LayerError` if no layer fits, or the map is zero everywhere (NaN under `jit`, where nothing can be raised).
    Differs from: Captum and pytorch-grad-cam need the layer (and for transformers a reshaping function); the latter scales every map to
    [0, 1], which hides that there was no evidence.

    Example:
        >>> import jax, jaxplain as jx
        >>> digits, net = jx.datasets.mnist(), jx.zoo.load("gap")
        >>> heat, info = jx.with_info(jx.grad_cam(jx.logit(net)))(digits.x_test[0], digits.y_test[0])
        >>> print(heat.shape, info.layer.shape)
        (28, 28) (1, 7, 7, 128)

    References:
        Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization, ICCV 2017.
    """
    weighted = _by_gradient(lambda _, g: _over_places(jnp.mean, g))
    return _cam("grad_cam", f, weighted, at, relu, upsample, layout, argnums, allow_random)


def cam(
    f: Callable[..., Any],
    *,
    at: Any = None,
    relu: bool = False,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Class activation mapping: $M(p) = \sum_k w_k A_k(p)$ for a score that is $f = \frac{1}{Z} \sum_p \sum_k w_k A_k(p) + b$.

    For networks that average (or sum) their last maps over all places and go on linearly: the map is how the score is made, place by place.
    Arguments and returns as in `grad_cam`; units of f.

    Guarantees: the mean of the map is f − b, exactly (before up-sampling). That the score is of this form is checked in its program; if it
    is not, a `LayerError` names what breaks it and the methods that need no such form.
    Cost: 1 forward pass (and the gradient of a linear layer). Info: value, gap (mean of the map − f, which is −b), layer.
    Differs from: torch-cam takes the weights of the last linear module, whatever the network does with them.

    References:
        Zhou et al., Learning deep features for discriminative localization, CVPR 2016.
    """
    method = "cam"

    def weighted(layer: MapLayer) -> tuple[jax.Array, Info]:
        _require_pooling(layer)
        maps, gradient, value = layer.evaluated()
        heat = jnp.sum(gradient * maps, axis=-1)
        heat = heat * heat.size
        return heat, Info(value=value, gap=jnp.mean(heat) - value.astype(heat.dtype), n_gradients=jnp.int32(1))

    return _cam(method, f, weighted, at, relu, upsample, layout, argnums, allow_random)


def _require_pooling(layer: MapLayer) -> None:
    breaks = layer.site.loops or layer.places.unlike_pooling(layer.site.values[0])
    if breaks:
        equation = breaks[0] if isinstance(breaks, tuple) else breaks
        raise LayerError(
            explain_error(
                f"{layer.method}: the score is not a mean of the layer's places, linear in it and with equal weights everywhere.",
                where=f"{equation.primitive} at {equation.line}",
                got=f"layer: {layer.name.kind} {layer.name.path or 'without a name'}, {list(layer.name.shape)}",
                need="global average pooling of the layer, then linear layers, then the logit",
                why="a class activation map is read off the weights, which exist in such networks only",
                fix=(
                    "jx.grad_cam (equal to it on such networks), jx.hires_cam",
                    "explain the logit, not the probability",
                ),
            )
        )


def hires_cam(
    f: Callable[..., Any],
    *,
    at: Any = None,
    relu: bool = False,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""HiResCAM: $M(p) = \sum_k \frac{\partial f}{\partial A_k(p)} A_k(p)$: input × gradient of the layer, summed over channels.

    Arguments and returns as in `grad_cam`; units of f.

    Guarantees: sums to f − b (before up-sampling) if what comes after the layer is affine with offset b: it shows the places that the score was
    made from. Equal to Grad-CAM up to the factor Z on networks with global average pooling.
    Cost: as `grad_cam`. Info: value, gap (Σ M − f), layer, n_gradients.
    Differs from: pytorch-grad-cam applies a ReLU, after which nothing sums to the score.

    References:
        Draelos, Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks, arXiv 2020.
    """
    weighted = _by_gradient(lambda _, g: g, sums=True)
    return _cam("hires_cam", f, weighted, at, relu, upsample, layout, argnums, allow_random)


def layer_cam(
    f: Callable[..., Any],
    *,
    at: Any = None,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""LayerCAM: $M(p) = \mathrm{ReLU} \sum_k \mathrm{ReLU}\!\left(\frac{\partial f}{\partial A_k(p)}\right) A_k(p)$.

    Weights place by place, so it may be used at early layers, with finer maps. Arguments and returns as in `grad_cam`; units of f.

    Guarantees: none beyond its definition; non-negative where A is, even without the outer ReLU. Cost: as `grad_cam`. Info: value, layer, n_gradients.

    References:
        Jiang et al., LayerCAM: exploring hierarchical class activation maps for localization, IEEE TIP 30, 2021.
    """
    weighted = _by_gradient(lambda _, g: jnp.maximum(g, 0))
    return _cam("layer_cam", f, weighted, at, relu, upsample, layout, argnums, allow_random)


def xgrad_cam(
    f: Callable[..., Any],
    *,
    at: Any = None,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""XGrad-CAM: $\alpha_k = \sum_p A_k(p) \frac{\partial f}{\partial A_k(p)} \Big/ \sum_p A_k(p)$ in place of Grad-CAM's mean gradient.

    Arguments and returns as in `grad_cam`; units of f.

    Guarantees: without the ReLU the map sums to Σ A ⊙ g, as HiResCAM does: to f − b if what comes after the layer is affine. For a channel whose sum
    is 0 the weight is 0. Cost: as `grad_cam`. Info: value, gap (without the ReLU: Σ M − f), layer, n_gradients.

    References:
        Fu et al., Axiom-based Grad-CAM: toward accurate visualization and explanation of CNNs, BMVC 2020.
    """

    def weight(maps: jax.Array, gradient: jax.Array) -> jax.Array:
        total = _over_places(jnp.sum, maps)
        is_empty = total == 0
        return jnp.where(is_empty, 0, _over_places(jnp.sum, maps * gradient) / jnp.where(is_empty, 1, total))

    weighted = _by_gradient(weight, sums=not relu)
    return _cam("xgrad_cam", f, weighted, at, relu, upsample, layout, argnums, allow_random)


def grad_cam_plus_plus(
    f: Callable[..., Any],
    *,
    at: Any = None,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Grad-CAM++: $w_k = \sum_p \alpha_k(p)\, \mathrm{ReLU}(g_k(p))$ with $\alpha_k(p) = \frac{1}{2 + g_k(p) \sum_q A_k(q)}$.

    The paper explains $Y = \exp(f)$ of a network that is piecewise linear up to f. Then all derivatives of Y are powers of g times
    Y, the factor Y is common to all weights and cancels once a map is normalized; it is left out, so nothing overflows. Where the
    gradient vanishes off an object, each place counts for itself instead of by the object's share of the area, so that small objects of a class are found
    beside large ones. Negative gradients are dropped, and with them the evidence against the class.

    Arguments and returns as in `grad_cam`; units of f, up to a factor for each image.

    Guarantees: α is in (0, ½] for A ≥ 0 (behind a ReLU); where Σ A < 0 the denominator is kept at 1 or more.
    Cost: as `grad_cam`. Info: value, layer, n_gradients.
    Differs from: pytorch-grad-cam adds 1e-6 to $2g^2 + g^3 \sum A$, which acts on small gradients.

    References:
        Chattopadhay et al., Grad-CAM++: generalized gradient-based visual explanations for deep convolutional networks, WACV 2018.
    """

    def weight(maps: jax.Array, gradient: jax.Array) -> jax.Array:
        positive = jnp.maximum(gradient, 0)
        return _over_places(jnp.sum, positive / jnp.maximum(2 + positive * _over_places(jnp.sum, maps), 1))

    return _cam("grad_cam_plus_plus", f, _by_gradient(weight), at, relu, upsample, layout, argnums, allow_random)


def eigen_cam(
    f: Callable[..., Any],
    *,
    at: Any = None,
    center: bool = False,
    relu: bool = True,
    upsample: bool | str = True,
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Eigen-CAM: $M = A v_1$ with the first right singular vector $v_1$ of the matrix A (places × channels).

    The pattern that most of the layer's activity follows, whatever the class: f only serves to find the layer.
    Arguments and returns as in `grad_cam`; `center` subtracts the mean of each channel first. In units of A. The sign of $v_1$, which
    is arbitrary, is the one that makes Σ M positive (with `center`: Σ M³).

    Guarantees: the same for all classes; non-negative where A is, without `center`. Cost: 1 forward pass and one eigenvector. Info: value, layer.
    Its derivative exists where the largest singular value is simple.
    Differs from: pytorch-grad-cam centers the channels (which the paper does not) and keeps whatever sign the SVD returns.

    References:
        Muhammad, Yeasin, Eigen-CAM: class activation map using principal components, IJCNN 2020.
    """

    def weighted(layer: MapLayer) -> tuple[jax.Array, Info]:
        (maps,) = upcast((layer.folded(layer.raw()),))
        rows = maps.reshape(-1, maps.shape[-1])
        rows = rows - jnp.mean(rows, axis=0) if center else rows
        heat = _first_component(rows)
        sign = jnp.sum(heat**3 if center else heat)
        return jnp.where(sign < 0, -heat, heat).reshape(maps.shape[:-1]), Info(value=layer.value())

    return _cam("eigen_cam", f, weighted, at, relu, upsample, layout, argnums, allow_random)


def _first_component(rows: jax.Array) -> jax.Array:
    """A v₁, from the smaller of the two Gram matrices of A: AᵀA has the eigenvector v₁, A Aᵀ has u₁, and A v₁ = σ₁ u₁."""
    n, channels = rows.shape
    if channels < n:
        return rows @ _first_eigenvector(rows.T @ rows)
    gram = rows @ rows.T
    u = _first_eigenvector(gram)
    return u * jnp.sqrt(u @ gram @ u)


@jax.custom_jvp
def _first_eigenvector(matrix: jax.Array) -> jax.Array:
    """Of a symmetric matrix: the unit vector of its largest eigenvalue. Other eigenvalues may coincide, as they do for dead channels."""
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


def score_cam(
    f: Callable[..., Any],
    *,
    at: Any = None,
    baseline: Any = 0.0,
    relu: bool = True,
    upsample: bool | str = True,
    chunk_size: int | None = None,
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Score-CAM: $M(p) = \mathrm{ReLU} \sum_k \alpha_k A_k(p)$ with $\alpha = \mathrm{softmax}_k\, f(x \odot H_k)$.

    $H_k$ is channel k, up-sampled to the input and scaled to [0, 1]: each channel is worth what the score makes of the part of
    the input that it covers. No gradient is used.

    Arguments:
        f, at, relu, upsample, layout, argnums, allow_random: as in `grad_cam`; x must be floats.
        baseline: what is left of the input where a mask is 0: $x \odot H + b \odot (1 - H)$; as in `integrated_gradients`.
        chunk_size: masks evaluated together for each example; memory is that of so many forward passes. `None` is 16.

    Returns as `grad_cam`. In units of A, weighted by a softmax: a channel that raises the score by 1 counts e times as much, so the scale of f matters.

    Guarantees: none beyond its definition. Cost: as many forward passes as the layer has channels. Info: value, layer.
    Differs from: pytorch-grad-cam up-samples masks with aligned corners, which shifts them by up to half a pixel of the layer.

    References:
        Wang et al., Score-CAM: score-weighted visual explanations for convolutional neural networks, CVPR workshops 2020.
    """
    method = "score_cam"
    chunk = positive_int(method, "chunk_size", MASKS_AT_ONCE if chunk_size is None else chunk_size)
    resizing = _resizing(method, upsample) or "bilinear"

    def weighted(arguments: Arguments, layer: MapLayer) -> tuple[jax.Array, Info]:
        (maps,) = upcast((layer.folded(layer.raw()),))
        which = layer.among_floats()
        x, start = (
            leaves[which]
            for leaves in (upcast(arguments.leaves), arguments.like(baseline, "baseline", none=lambda x: x))
        )

        def score(channel: jax.Array) -> jax.Array:
            mask = layer.up(channel, resizing)
            low, high = jnp.min(mask), jnp.max(mask)
            is_flat = high == low
            mask = jnp.where(is_flat, 0, (mask - low) / jnp.where(is_flat, 1, high - low))
            return layer.value_at(start + layer.beside_input(mask) * (x - start))

        scores = lax.map(score, jnp.moveaxis(maps, -1, 0), batch_size=chunk)
        return jnp.sum(jax.nn.softmax(scores).astype(maps.dtype) * maps, axis=-1), Info(value=layer.value())

    return _cam(method, f, weighted, at, relu, upsample, layout, argnums, allow_random, reads_input=True)


def ablation_cam(
    f: Callable[..., Any],
    *,
    at: Any = None,
    relu: bool = True,
    upsample: bool | str = True,
    chunk_size: int | None = None,
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Ablation-CAM: $M(p) = \mathrm{ReLU} \sum_k w_k A_k(p)$ with $w_k = \frac{f - f_{\setminus k}}{\lvert f \rvert}$, $f_{\setminus k}$ the score with channel k set to 0.

    No gradient is used. Arguments and returns as in `grad_cam`, `chunk_size` as in `score_cam`. In units of A.

    Guarantees: if what comes after the layer is affine in it, $w_k = \sum_p g_k(p) A_k(p) / \lvert f \rvert$: XGrad-CAM's weight times Σ A over |f|.
    The paper divides by f, which is the same for f > 0 and would turn evidence into counter-evidence for f < 0.
    Cost: what comes after the layer, once for each channel; 1 forward pass. Info: value, layer.

    References:
        Desai, Ramaswamy, Ablation-CAM: visual explanations for deep convolutional network via gradient-free localization, WACV 2020.
    """
    method = "ablation_cam"
    chunk = positive_int(method, "chunk_size", MASKS_AT_ONCE if chunk_size is None else chunk_size)

    def weighted(layer: MapLayer) -> tuple[jax.Array, Info]:
        raw, channel = layer.raw(), layer.map.channel
        (maps,), value = upcast((layer.folded(raw),)), layer.value()

        tail = layer.tail(raw)

        def ablated(k: jax.Array) -> jax.Array:
            kept = lax.broadcasted_iota(jnp.int32, raw.shape, channel) != k
            return tail(jnp.where(kept, raw, 0))

        scores = lax.map(ablated, jnp.arange(maps.shape[-1], dtype=jnp.int32), batch_size=chunk)
        is_zero = value == 0
        weights = (value - scores) / jnp.where(is_zero, 1, jnp.abs(value))
        return jnp.sum(weights.astype(maps.dtype) * maps, axis=-1), Info(value=value)

    return _cam(method, f, weighted, at, relu, upsample, layout, argnums, allow_random)


def guided_grad_cam(
    f: Callable[..., Any],
    *,
    at: Any = None,
    upsample: str = "bilinear",
    layout: Layout | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Guided Grad-CAM: $R = \mathrm{GuidedBackprop}(x) \odot \mathrm{up}(\mathrm{GradCAM}(x))$.

    The fine lines of guided back-propagation, where Grad-CAM is positive. Arguments as in `grad_cam`. Returns `explain(x, *args)` with the structure
    and shapes of x; units of f² per unit of x.

    Guarantees: none; what `guided_backprop` says about its sanity holds here, too. Cost: 2 gradients. Info: value, layer, n_gradients.

    References:
        Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization, ICCV 2017.
    """
    method = "guided_grad_cam"
    resizing = _resizing(method, upsample)
    if resizing is None:
        raise SettingError(
            explain_error(f"{method}: `upsample` is needed.", got=repr(upsample), need=", ".join(RESIZING))
        )
    guided = computed(method, backprop.GUIDED, 1.0, "error", opens_activations)
    weighted = _by_gradient(lambda _, g: _over_places(jnp.mean, g))

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        leaves, _ = guided(call, key, False)
        layer = MapLayer(Inside(method, call.program, call.arguments.leaves), at, layout or Layout())
        heat, info = _heat(layer, weighted, True, resizing)
        heat = layer.beside_input(heat)
        leaves = tuple(leaf * heat if i == layer.map.input else leaf * 0 for i, leaf in enumerate(leaves))
        return leaves, info._replace(n_gradients=jnp.int32(2), layer=layer.name) if with_info else None

    return make_explainer(method, f, compute, argnums=argnums, allow_random=allow_random)
