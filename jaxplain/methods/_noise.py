"""Averages over noisy copies of the input, around any explainer: SmoothGrad, squared SmoothGrad, VarGrad."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain._accumulate import accumulate
from jaxplain._arguments import Arguments
from jaxplain._checks import checked, chunk_of, count
from jaxplain._engine.affine_prefix import AffinePrefix, affine_prefix
from jaxplain._explainer import Call, Explainer, Info, require_explainer
from jaxplain._ir.program import Program
from jaxplain._leaves import cast_like, multiply, upcast
from jaxplain._types import Args, Explain, Leaves, LikeInput, PyTree, traits
from jaxplain.methods._path import spread_scale, standard_error


class _Moments(NamedTuple):
    """Sums over n samples of the requested powers of d = (attribution − shift) / scale: d, d², d³, d⁴."""

    n: int
    shift: Leaves
    scale: Leaves
    powers: tuple[Leaves, ...]


@checked()
def smoothgrad(
    explain: Explain,
    *,
    n_samples: int = 50,
    noise: LikeInput = 0.15,
    relative: bool = True,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> Explainer:
    r"""SmoothGrad around any explainer: $\frac1n \sum_k R(x + \epsilon_k)$, $\epsilon_k \sim \mathcal N(0, \sigma^2)$.

    Arguments:
        explain: An explainer of this library, or any function `(x, *args) -> like x`. Wrappers nest.
        n_samples: Number of noisy copies to explain (Python integer).
        noise: σ: a number, a pytree like x, or a function of x. With several argnums a tuple (`None`: no noise there).
        relative: Whether σ is `noise` × (max x − min x), taken over each leaf of each example, as in the paper (which
            uses 10 % to 20 %); a constant input then gets no noise. With `False`, σ is `noise` itself, in units of x.
        chunk_size: Number of copies explained together, as in `integrated_gradients`.
        key: Random key shared by all examples; otherwise pass `explain(x, *args, key=key)`.

    Returns:
        `explain(x, *args, key=key)`, with the structure, shapes and dtypes of x.

    Guarantees: unbiased for the mean; `Info.standard_error` is its Monte-Carlo error, entry by entry. Without noise it
    is the explanation itself. Draw k uses `fold_in(key, k)`, so results do not depend on `chunk_size`.
    Cost: `n_samples` explanations (one more with info); around `gradient`, the pullback through a large dense first
    layer runs only once.
    Info: standard_error, n_gradients, n_evaluations (sums over all explanations), converged (whether all of them did).
    Differs from: Captum's noise is absolute with σ = 1, and it uses 5 samples by default; zennit leaves its last sample
    noise-free.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.smoothgrad(jx.gradient(lambda x: jnp.sum(x**2)), n_samples=8, noise=0.0)
        >>> print(explain(jnp.array([1.0, -3.0]), key=jax.random.key(0)))
        [ 2. -6.]

    References:
        Smilkov et al., SmoothGrad: removing noise by adding noise, arXiv:1706.03825, 2017.
    """
    return _noisy("smoothgrad", _MEAN, explain, n_samples, noise, relative, chunk_size, key)


@checked()
def smoothgrad_squared(
    explain: Explain,
    *,
    n_samples: int = 50,
    noise: LikeInput = 0.15,
    relative: bool = True,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Squared SmoothGrad around any explainer: $\frac1n \sum_k R(x + \epsilon_k)^2$.

    Arguments, cost and info as in `smoothgrad`; the units are those of the inner explanation, squared. Non-negative.
    Equal to SmoothGrad² + (n−1)/n · VarGrad of the same draws.

    References:
        Hooker et al., A benchmark for interpretability methods in deep neural networks, NeurIPS 2019.
    """
    return _noisy("smoothgrad_squared", _MEAN_SQUARE, explain, n_samples, noise, relative, chunk_size, key)


@checked(n_samples=count(2))
def vargrad(
    explain: Explain,
    *,
    n_samples: int = 50,
    noise: LikeInput = 0.15,
    relative: bool = True,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> Explainer:
    r"""VarGrad around any explainer: the variance of $R(x + \epsilon_k)$ over the noise, entry by entry.

    The unbiased estimate, $\frac{1}{n-1} \sum_k (R_k - \bar R)^2$; needs `n_samples` ≥ 2. Other arguments, cost and
    info as in `smoothgrad`, but one more explanation centers the sums. The units are those of the inner explanation,
    squared. Non-negative; zero where the explanation does not react to the noise. `Info.standard_error` is the
    large-sample error of the variance, from the fourth moment.

    References:
        Adebayo et al., Local explanation methods for deep neural networks lack sensitivity to parameter values,
        ICLR workshop 2018.
    """
    return _noisy("vargrad", _VARIANCE, explain, n_samples, noise, relative, chunk_size, key)


def _mean(m: _Moments) -> Leaves:
    return tuple(s + c * d / m.n for s, c, d in zip(m.shift, m.scale, m.powers[0], strict=True))


def _mean_error(m: _Moments) -> Leaves:
    return multiply(m.scale, standard_error(m.powers[0], m.powers[1], m.n))


def _variance(m: _Moments) -> Leaves:
    return tuple(
        c * c * jnp.maximum(d2 - d * d / m.n, 0) / (m.n - 1)
        for c, d, d2 in zip(m.scale, m.powers[0], m.powers[1], strict=True)
    )


def _variance_error(m: _Moments) -> Leaves:
    """sqrt((μ₄ − σ⁴) / n), with the central fourth moment from the shifted sums."""
    errors = []
    for scale, d1, d2, d3, d4 in zip(m.scale, *m.powers, strict=True):
        a, b, c, d = (power / m.n for power in (d1, d2, d3, d4))
        fourth = d - 4 * a * c + 6 * a * a * b - 3 * a**4
        errors.append(scale * scale * jnp.sqrt(jnp.maximum(fourth - (b - a * a) ** 2, 0) / m.n))
    return tuple(errors)


_Counts = tuple[jax.Array | None, ...]  # n_gradients, n_evaluations, number of explanations that did not converge
_NO_COUNTS: _Counts = (None, None, None)


class _Statistic(NamedTuple):
    """A moment of transform(R_k) of the noisy attributions R_k, and its standard error."""

    transform: Callable[[jax.Array], jax.Array]
    estimate: Callable[[_Moments], Leaves]
    error: Callable[[_Moments], Leaves]
    powers: int  # number of sums in `_Moments` that the estimate needs
    error_powers: int  # and that its error needs


_MEAN = _Statistic(lambda r: r, _mean, _mean_error, 1, 2)
_MEAN_SQUARE = _Statistic(jnp.square, _mean, _mean_error, 1, 2)
_VARIANCE = _Statistic(lambda r: r, _variance, _variance_error, 2, 4)


def _gradient(call: Call, prefix: AffinePrefix | None, leaves: Leaves, _key: jax.Array) -> tuple[Leaves, _Counts]:
    """The gradient, with respect to the output of the affine prefix if there is one."""
    if prefix is None:
        return call.gradient(leaves), _NO_COUNTS
    return prefix.rest.value_and_gradient(prefix.prefix(leaves))[1], _NO_COUNTS


def _noisy(
    method: str,
    statistic: _Statistic,
    explain: Explain,
    n_samples: int,
    noise: LikeInput,
    relative: bool,
    chunk_size: int | None,
    key: jax.Array | None,
) -> Explainer:
    require_explainer(method, explain)
    chunk = chunk_of(method, chunk_size)
    of_inner = traits(explain)

    def evaluate(args: Args, key: Any, with_info: bool) -> tuple[PyTree, Info | None]:
        arguments = Arguments(method, args, of_inner.argnums)
        x = upcast(arguments.leaves)
        sigma = arguments.like(noise, "noise", none=jnp.zeros_like, not_negative=True)
        if relative:
            sigma = tuple(s * jnp.ptp(leaf) if leaf.size else s for s, leaf in zip(sigma, x, strict=True))

        def inner(leaves: Leaves, inner_key: jax.Array) -> tuple[Leaves, _Counts]:
            call_args = arguments.fill(cast_like(leaves, arguments.leaves))
            keyword = {"key": inner_key} if of_inner.needs_key else {}
            if with_info and isinstance(explain, Explainer):
                attribution, info = explain.run(call_args, keyword.get("key"), with_info=True)
            else:
                attribution, info = explain(*call_args, **keyword), None
            fix = (
                f"an explainer, not the score: jx.{method}(jx.gradient(score))",
                "smooth first, reduce channels after: saliency without channel_axis inside, then .max(axis=-1)",
            )
            leaves = arguments.float_leaves(attribution, "inner attribution", fix=fix)
            transformed = tuple(map(statistic.transform, leaves))
            if info is None:
                return transformed, _NO_COUNTS
            failed = None if info.converged is None else jnp.logical_not(info.converged).astype(jnp.int32)
            return transformed, (info.n_gradients, info.n_evaluations, failed)

        # A mean of gradients stages the score, and goes back through its affine prefix, only once.
        stage = getattr(explain, "gradient_call", None) if statistic is _MEAN and not with_info else None
        call = None if stage is None else stage(args)
        prefix = None if call is None else affine_prefix(call.program, x)

        explained = inner if call is None else partial(_gradient, call, prefix)
        program = Program(method, explained, x, key)

        def sample(k: jax.Array) -> tuple[Leaves, _Counts]:
            noise_key, inner_key = jax.random.split(jax.random.fold_in(key, k))
            keys = jax.random.split(noise_key, len(x))
            moved = tuple(
                leaf + s * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
                for leaf, s, leaf_key in zip(x, sigma, keys, strict=True)
            )
            return program(moved, inner_key)

        powers = statistic.error_powers if with_info else statistic.powers
        if powers > 1:  # Sums of powers use deviations from one sample, because sums of raw powers lose precision.
            shift, counts_of_shift = sample(jnp.int32(0))
        else:
            shift = tuple(map(jnp.zeros_like, x if prefix is None else prefix.prefix(x)))
        scale = spread_scale(shift)

        def term(k: jax.Array) -> tuple[tuple[Leaves, ...], _Counts]:
            attribution, counts = sample(k)
            deviations = [tuple((a - s) / c for a, s, c in zip(attribution, shift, scale, strict=True))]
            for _ in range(powers - 1):
                deviations.append(multiply(deviations[-1], deviations[0]))
            return tuple(deviations), counts

        sums, counts = accumulate(term, n_samples, chunk)
        moments = _Moments(n_samples, shift, scale, sums)
        leaves = statistic.estimate(moments)
        attribution = arguments.attribution(leaves if prefix is None else prefix.pullback(x, leaves))
        if not with_info:
            return attribution, None
        # `jnp.sum` made int64 of int32.
        both = jax.tree.map(lambda a, b: a.astype(jnp.int32) + b, counts, counts_of_shift)
        n_gradients, n_evaluations, failed = both
        return attribution, Info(
            standard_error=arguments.attribution(statistic.error(moments)),
            n_gradients=n_gradients,
            n_evaluations=n_evaluations,
            converged=None if failed is None else failed == 0,
            held=arguments.held,
        )

    return Explainer(
        method,
        evaluate,
        argnums=of_inner.argnums,
        stochastic=True,
        key=key,
        repeats_groups=of_inner.repeats_groups,
    )
