"""The rules of layer-wise relevance propagation, one function each.

Notation: x_i inputs, w_ij weights, b_j bias, z_j = Σ_i x_i w_ij + b_j, R_j relevance of the outputs, v⁺ = max(v, 0),
v⁻ = min(v, 0), stab(z) = z + ε·sign(z) with sign(0) = +1. The weights are those of the whole node, for example of a
convolution with the batch norm after it. With `absorb_bias=True`, biases are in the denominators and take their share
of the relevance; with `absorb_bias=False`, they take none.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxplain._checks import checked
from jaxplain._engine.input_bounds import bound_like
from jaxplain._engine.node_view import Layer
from jaxplain._errors import SettingError, explain_error
from jaxplain._leaves import pulled_back
from jaxplain.rules._rule import Relevance, Rule, distribute, shown, stabilize, times

_WITH_WEIGHTS = ("dense", "convolution", "sum")  # whose weights have signs
_WITH_BIAS = (*_WITH_WEIGHTS, "fft", "scale_shift", "normalization")
_PROPORTIONAL = (*_WITH_BIAS, "add", "max", "unknown")
_ONE_TO_ONE = ("scale_shift", "normalization", "activation")


def _positive(v: jax.Array) -> jax.Array:
    return jnp.maximum(v, 0)


def _negative(v: jax.Array) -> jax.Array:
    return jnp.minimum(v, 0)


def _is_concrete_negative(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0


def _require(name: str, **settings: Any) -> None:
    for setting, value in settings.items():
        if _is_concrete_negative(value):
            raise SettingError(explain_error(f"rules.{name}: `{setting}` must not be negative.", got=value))


@checked()
def epsilon(epsilon: float = 1e-6, *, absorb_bias: bool = True) -> Rule:
    r"""LRP-ε: $R_i = x_i \sum_j w_{ij} R_j / \mathrm{stab}(z_j)$.

    A scale without a shift passes all relevance on.
    For ε → 0 it equals gradient × input on nets whose activations are positively homogeneous (ReLU, leaky ReLU, max).
    Conserves up to bias and ε. Bach et al., PLoS ONE 10, 2015, eq. 58.
    """
    _require("epsilon", epsilon=epsilon)

    def backward(layer: Layer, *relevance: Relevance) -> tuple[Relevance, ...]:
        if layer.node.only_scales:  # x w R / (x w) is R, where x is 0, too
            scale = layer.linear()(jnp.ones_like(layer.x))
            return (layer.pass_back(jnp.where(scale == 0, 0, relevance[0])),)
        has_bias = layer.node.kind in _WITH_BIAS
        shares = []
        for output, r in zip(layer.outputs, relevance, strict=True):
            z = layer.linear()(layer.x) if has_bias and not absorb_bias else output
            shares.append(r / stabilize(z, epsilon))
        if has_bias and absorb_bias:
            layer.to_bias = layer.to_bias + jnp.sum(times(layer.bias, shares[0]))
        return tuple(times(x, g) for x, g in zip(layer.inputs, layer.transpose(*shares), strict=True))

    return Rule(f"epsilon({shown(epsilon)})", _PROPORTIONAL, backward, epsilon)


@checked()
def norm(stabilizer: float = 1e-6) -> Rule:
    r"""LRP-ε under another name, for sums and averages, which have no bias."""
    return epsilon(stabilizer)._replace(name=f"norm({shown(stabilizer)})")


@checked()
def log_softmax(*, epsilon: float = 1e-6) -> Rule:
    r"""Log-softmax as a difference: $x_k$ and $-\mathrm{logsumexp}(x)$ share in proportion.

    The softmax distributes the part of the logsumexp.
    """
    _require("log_softmax", epsilon=epsilon)

    def backward(layer: Layer, relevance: Relevance) -> Relevance:
        share = relevance / stabilize(layer.output, epsilon)
        by_softmax = share - layer.transpose(share)[0]  # p · Σ share
        masked = jnp.isinf(layer.x)  # of probability 0. The operands are replaced, because ∞ − ∞ has no derivative.
        logsumexp = jnp.where(masked, 0, layer.x) - jnp.where(masked, 0, layer.output)
        return times(layer.x, share) - logsumexp * by_softmax

    return Rule("log_softmax", ("log_softmax",), backward, epsilon)


@checked()
def zplus(*, absorb_bias: bool = True, epsilon: float = 1e-6) -> Rule:
    r"""z⁺: $R_i = \sum_j (x_i w_{ij})^+ R_j / \mathrm{stab}(\sum_i (x_i w_{ij})^+ + b_j^+)$, for inputs of either sign.

    Positive relevance stays positive. Without bias it conserves (where some contribution is positive) and equals α1β0
    and the deep Taylor rule of hidden layers. At an addition, all contributions to the sum share, as in one layer.
    Montavon et al., Pattern Recognition 65, 2017.
    """
    _require("zplus", epsilon=epsilon)

    def backward(layer: Layer, relevance: Relevance) -> Relevance | tuple[Relevance, ...]:
        if layer.contributions is not None:
            return _at_addition(layer, relevance, epsilon)
        return _signed(layer, relevance, layer.sign, absorb_bias, epsilon)

    name = "zplus" if absorb_bias else "zplus(absorb_bias=False)"
    kinds = (*_WITH_WEIGHTS, "add")
    return Rule(name, kinds, backward, epsilon, splits_additions="all" if absorb_bias else "weights")


def _at_addition(layer: Layer, relevance: Relevance, epsilon: float) -> tuple[Relevance, ...]:
    """Relevance of the terms of a sum in proportion to the positive contributions that each of them carries."""
    parts = cast(tuple, layer.contributions)
    share = relevance / stabilize(layer.at(*parts)[0], epsilon)
    return tuple(times(part, s) for part, s in zip(parts, layer.transpose(share), strict=True))


def _signed(layer: Layer, relevance: Relevance, sign: int, absorb_bias: bool, epsilon: float) -> Relevance:
    """Relevance in proportion to the contributions of one sign."""
    same, other = ("positive", "negative") if sign > 0 else ("negative", "positive")
    # For an input that cannot be negative, max(x, 0) would be a copy.
    terms: list[Any] = [(layer.x, same)]
    if not layer.node.is_nonnegative:
        terms = [(_positive(layer.x), same), (_negative(layer.x), other)]
    bias = (_positive if sign > 0 else _negative)(layer.bias) if absorb_bias else 0.0
    return distribute(layer, relevance, terms, bias=bias, epsilon=epsilon)


@checked()
def alpha_beta(alpha: float = 2.0, beta: float = 1.0, *, absorb_bias: bool = True, epsilon: float = 1e-6) -> Rule:
    r"""αβ: $R_i = \sum_j (\alpha p_{ij} - \beta n_{ij}) R_j$, α − β = 1.

    $p_{ij} = (x_i w_{ij})^+ / \mathrm{stab}(z_j^+)$, $n_{ij} = (x_i w_{ij})^- / \mathrm{stab}(z_j^-)$, where $z_j^\pm$
    sum the contributions of one sign, with $b_j^\pm$. α1β0 treats additions as `zplus` does; the others leave them to
    another rule. Bach et al., PLoS ONE 10, 2015, eq. 60.
    """
    _require("alpha_beta", alpha=alpha, beta=beta, epsilon=epsilon)
    if isinstance(alpha, int | float) and isinstance(beta, int | float) and abs(alpha - beta - 1) > 1e-9:
        raise SettingError(
            explain_error(
                "rules.alpha_beta: α − β must be 1, or relevance is not conserved.",
                got=f"alpha={alpha}, beta={beta}",
                fix="alpha_beta(2, 1) or alpha_beta(1, 0)",
            )
        )

    if isinstance(beta, int | float) and beta == 0:
        return zplus(absorb_bias=absorb_bias, epsilon=epsilon)._replace(
            name=f"alpha_beta({shown(alpha)}, {shown(beta)})"
        )

    def backward(layer: Layer, relevance: Relevance) -> Relevance:
        positive = alpha * _signed(layer, relevance, +1, absorb_bias, epsilon)
        return positive - beta * _signed(layer, relevance, -1, absorb_bias, epsilon)

    return Rule(f"alpha_beta({shown(alpha)}, {shown(beta)})", _WITH_WEIGHTS, backward, epsilon)


@checked()
def gamma(gamma: float = 0.25, *, absorb_bias: bool = True, epsilon: float = 1e-6) -> Rule:
    r"""LRP-γ for inputs of either sign: contributions with the sign of $z_j$ count $1 + \gamma$ times.

    $R_i = \sum_j c_{ij} R_j / \mathrm{stab}(\sum_i c_{ij} + c_{bj})$, $c = x w + \gamma (x w)^+$ where $z_j > 0$ and
    $c = x w + \gamma (x w)^-$ where $z_j < 0$, and likewise for the bias. With a large γ and excluded biases, relevance
    grows without bound in deep nets. Montavon et al., LRP: an overview, 2019, generalized to inputs of either sign by
    Andéol et al., 2021, as in Zennit.
    """
    _require("gamma", gamma=gamma, epsilon=epsilon)

    def backward(layer: Layer, relevance: Relevance) -> Relevance:
        x = layer.x

        def side(sign: int) -> Relevance:
            same, other = ("positive", "negative") if sign > 0 else ("negative", "positive")
            part = _positive if sign > 0 else _negative
            terms: list[Any] = [(x, "full"), (gamma * x, same)]
            if not layer.node.is_nonnegative:
                terms[1:] = [(gamma * _positive(x), same), (gamma * _negative(x), other)]
            here = jnp.where(layer.output * sign > 0, relevance, 0)
            total = layer.bias + gamma * part(layer.bias) if absorb_bias else 0.0
            return distribute(layer, here, terms, bias=total, epsilon=epsilon)

        return side(+1) + side(-1)

    return Rule(f"gamma({shown(gamma)})", _WITH_WEIGHTS, backward, epsilon)


@checked()
def zbox(low: ArrayLike, high: ArrayLike, *, epsilon: float = 1e-6) -> Rule:
    r"""z^B, for inputs in a box: $R_i = \sum_j c_{ij} R_j / \mathrm{stab}(\sum_i c_{ij})$.

    $c_{ij} = x_i w_{ij} - l_i w_{ij}^+ - h_i w_{ij}^-$ for bounds $l \leq x \leq h$.
    For a first layer, `low` and `high` are bounds of the explained input in its own units and layout. They are followed
    through shifts, scales, padding and data movement before the layer; nonlinear preprocessing raises an error. For a
    later layer, they are bounds of the layer's own input. The bias takes no share. Positive relevance stays positive
    for low ≤ x ≤ high. Montavon et al., Pattern Recognition 65, 2017.
    """
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        raise SettingError(explain_error("rules.zbox: `low` is above `high`.", got=f"low={low}, high={high}"))
    _require("zbox", epsilon=epsilon)

    def backward(layer: Layer, relevance: Relevance) -> Relevance:
        x = layer.x
        bounds = layer.box or [bound_like(layer.node, bound, x, "input of the layer") for bound in (low, high)]
        terms: list[Any] = [(x, "full"), (-bounds[0], "positive"), (-bounds[1], "negative")]
        return distribute(layer, relevance, terms, epsilon=epsilon)

    return Rule("zbox", ("dense", "convolution"), backward, epsilon, box=(low, high))


@checked()
def wsquare(*, absorb_bias: bool = False, epsilon: float = 1e-6) -> Rule:
    r"""w²: $R_i = \sum_j w_{ij}^2 R_j / \mathrm{stab}(\sum_i w_{ij}^2)$, independent of x, for real-valued inputs.

    `absorb_bias=True` adds $b_j^2$ to the denominator, as Zennit does. Montavon et al., Pattern Recognition 65, 2017.
    """
    _require("wsquare", epsilon=epsilon)

    def backward(layer: Layer, relevance: Relevance) -> Relevance:
        bias = layer.bias**2 if absorb_bias else 0.0
        return distribute(layer, relevance, [(jnp.ones_like(layer.x), "squared")], bias=bias, epsilon=epsilon)

    return Rule("wsquare", _WITH_WEIGHTS, backward, epsilon)


@checked()
def flat(*, epsilon: float = 1e-6) -> Rule:
    """♭: R_i = Σ_j R_j / n_j, evenly over n_j inputs. Lapuschkin et al., Nature Communications 10, 2019."""
    _require("flat", epsilon=epsilon)

    def backward(layer: Layer, relevance: Relevance) -> Relevance:
        return distribute(layer, relevance, [(jnp.ones_like(layer.x), "ones")], epsilon=epsilon)

    return Rule("flat", _WITH_WEIGHTS, backward, epsilon)


def pass_through() -> Rule:
    """R_i = R_j for nodes that act on each element separately: activations, scale and shift, normalization."""
    return Rule("pass", _ONE_TO_ONE, lambda layer, relevance: layer.pass_back(relevance))


@checked()
def uniform(*, epsilon: float = 1e-6) -> Rule:
    """Products share equally: ½ R for each factor, or ½ x_i Σ_j (∂z_j/∂x_i) R_j / stab(z_j) in a matrix product.

    A quotient counts as the product with the reciprocal. Achtibat et al., AttnLRP, ICML 2024, eqs. 13–15.
    """

    def backward(layer: Layer, relevance: Relevance) -> tuple[Relevance, ...]:
        # One value may be both factors, as in x·x.
        n_factors = sum(value in layer.node.inputs for value in layer.node.equations[0].inputs)
        if layer.is_elementwise_product:
            shares = [relevance / n_factors for _ in layer.inputs]
            if len(shares) == 2:
                facts = zip(shares, layer.constant, reversed(layer.constant), strict=True)
                shares = [_where(own, 0, _where(other, 2 * share, share)) for share, own, other in facts]
            return tuple(layer.to_factor(i, share) for i, share in enumerate(shares))
        # The stabilizer belongs to the doubled product: 2z + ε.
        share = relevance / stabilize(n_factors * layer.output, epsilon)
        # The transpose to one factor multiplies by the other one, whose constant elements leave it their half.
        pairs = list(zip(layer.inputs, layer.constant, strict=True))
        _, pullback = jax.vjp(layer.at, *(_where(constant, 2 * x, x) for x, constant in pairs))
        gradients = pulled_back(lambda c: pullback([c]), [share], [layer.output.dtype])
        return tuple(times(_where(constant, 0, x), g) for (x, constant), g in zip(pairs, gradients, strict=True))

    return Rule("uniform", ("product", "gate"), backward, epsilon)


def _where(mask: jax.Array | None, new: ArrayLike, old: jax.Array) -> jax.Array:
    return old if mask is None else jnp.where(mask, new, old)


def signal_takes_all() -> Rule:
    """Signal-takes-all for gated products: all relevance goes to the signal. Arras et al., WASSA 2017.

    Where an element of the signal does not change with the explained input, the gate gets it.
    """

    def backward(layer: Layer, relevance: Relevance) -> tuple[Relevance, ...]:
        signal = cast(int, layer.node.signal)
        constant = layer.constant[signal]
        shares = [_where(constant, relevance, jnp.zeros_like(relevance))] * 2
        shares[signal] = _where(constant, 0, relevance)
        return tuple(layer.to_factor(i, share) for i, share in enumerate(shares))

    return Rule("signal_takes_all", ("gate",), backward)


def winner_takes_all() -> Rule:
    """Winner-takes-all: relevance goes to the maximum (logsumexp distributes by softmax). The node's own derivative."""
    return Rule("winner_takes_all", ("max", "logsumexp"), None)


@checked()
def proportional_pooling(*, epsilon: float = 1e-6) -> Rule:
    """Max-pooling as if it were a sum: R_i = x_i Σ_j R_j / stab(Σ_i x_i) over each window.

    For nonnegative inputs, as in the deep Taylor tutorials.
    """
    _require("proportional_pooling", epsilon=epsilon)

    def backward(layer: Layer, relevance: Relevance) -> tuple[Relevance, ...]:
        if layer.node.primitive in ("max", "min"):
            z = sum(layer.inputs[1:], layer.inputs[0])
            return tuple(times(x, relevance / stabilize(z, epsilon)) for x in layer.inputs)
        z, pullback = jax.vjp(layer.summed, layer.x)
        share = relevance / stabilize(z, epsilon)
        return (times(layer.x, pulled_back(pullback, [share], [z.dtype])[0]),)

    return Rule("proportional_pooling", ("max",), backward, epsilon)


def gradient_x_input() -> Rule:
    r"""Softmax: $R_i = x_i (R_i - p_i \sum_k R_k)$, its Taylor expansion at the input. AttnLRP, ICML 2024, eq. 12."""

    def backward(layer: Layer, relevance: Relevance) -> Relevance:
        # x ⊙ Jᵀ(R / p), without dividing by a probability that underflowed.
        share = jnp.where(layer.output != 0, relevance, 0)
        return times(layer.x, share - layer.output * layer.group_sum(share))

    return Rule("gradient_x_input", ("softmax",), backward)


def copy() -> Rule:
    """Data movement: each element of relevance goes back to the element that was copied."""
    return Rule("copy", ("structural",), None)
