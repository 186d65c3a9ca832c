"""Perturbation methods: what the score loses when features are replaced. No gradient is used, so the score may be any program.

Notation: x input, b baseline, $x_{S \\leftarrow b}$ is x with the features in S replaced by those of b. All methods evaluate the score at many such
points, which differ in S alone: S is a mask for each leaf, made from the number of the evaluation, so that no list of masks is ever stored.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain._accumulate import accumulate, evaluate
from jaxplain._arguments import Arguments
from jaxplain._checks import chunk_of, positive_int
from jaxplain._errors import SettingError, explain_error
from jaxplain._explainer import Call, Explainer, Info, make_explainer
from jaxplain._groups import groups_of, per_leaf, require_some
from jaxplain._references import References, pool_of
from jaxplain._types import Leaves, Masks
from jaxplain.methods._path import spread_scale, standard_error


def occlusion(
    f: Callable[..., Any],
    *,
    window: Any,
    strides: Any = None,
    baseline: Any = 0.0,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Occlusion: $R_i = \frac{1}{\lvert\mathcal W_i\rvert} \sum_{W \in \mathcal W_i} \left[f(x) - f(x_{W \leftarrow b})\right]$, $\mathcal W_i$ the windows that cover i.

    A window slides over the input; what the score loses when it is replaced is the value of the window, and a feature gets the mean
    over all windows that cover it.

    Arguments:
        f: the score, `f(x, *args) -> real scalar` for one example. It need not be differentiable: rounding, sorting, `while_loop` are fine.
        window: its lengths over the leading axes of x. **Axes that it does not name are spanned whole**: `(3, 3)` on an image (H, W, C) covers
            all channels, `1` on tokens (T, D) whole tokens. `None` in it spans an axis, too: `(None, 3, 3)` on (C, H, W). Name the channels to
            occlude them one by one: `(3, 3, 1)`. A pytree x has a pytree of windows, several argnums a tuple of them (`None`: that leaf or
            argument is left alone); windows slide over each leaf by itself.
        strides: step of the window on each axis that it names: an integer for all, or in the form of `window`. `None` is 1. The first window begins
            at index 0; where strides do not divide, the last one hangs over the edge and is cut off there.
        baseline: what features are replaced by: a number, a pytree like x, a function `x -> baseline` (a blurred x), or `jx.references(...)`
            for the mean over several. With several argnums a tuple (`None` leaves an argument alone).
        chunk_size: inputs evaluated together for each example; memory is that of so many forward passes, whatever their number. `None` is 1, the
            fastest measured under `vmap` over a batch on a CPU; raise it for single examples and on a GPU.
        argnums, allow_random: as in `gradient`. Only float leaves are replaced; for token ids see `shapley_sampling`.
        key: random key shared by all examples, if `jx.references(..., n=)` draws.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x; units of f.

    Guarantees: linear in f; a feature gets 0, to rounding, if f depends on nothing in the windows that cover it. For linear f with weights w, $R_i$ is the mean over the windows of
    $\sum_{j \in W} w_j (x_j - b_j)$: maps are blurred by the window, and do not sum to f(x) − f(b) where windows overlap.
    Cost: 1 + (windows × baselines) evaluations of f, no gradient. Info: value, n_gradients (which counts these evaluations).
    Errors: a window larger than x; strides larger than the window, which would leave features uncovered.
    Differs from: the same numbers as Captum's `Occlusion`, which also divides by the number of windows that cover a feature, has stride 1 and cuts
    the last window off, but wants every axis named. Zeiler and Fergus show f(x_{W ← b}) itself, at the center of W.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.occlusion(lambda x: x[0] + 2 * x[1] + 3 * x[2], window=2)
        >>> print(explain(jnp.ones(3)))  # the windows are worth 1 + 2 and 2 + 3
        [3. 4. 5.]

    References:
        Zeiler, Fergus, Visualizing and understanding convolutional networks, ECCV 2014.
    """
    method = "occlusion"
    chunk = chunk_of(method, chunk_size)

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        windows = _windows(call.arguments, window, strides)
        ends = np.cumsum([0 if w is None else w.n for w in windows]).tolist()
        game = _Game(call, baseline, key)

        def masks(k: jax.Array) -> Masks:
            return tuple(
                jnp.zeros(x.shape, bool) if w is None else w.mask(k - (end - w.n)) & (k >= end - w.n) & (k < end)
                for x, w, end in zip(call.x, windows, ends, strict=True)
            )

        value = call.value(call.x)
        losses = value - game.values(masks, ends[-1], chunk)
        leaves = tuple(
            jnp.zeros_like(x) if w is None else w.average(losses[end - w.n : end])
            for x, w, end in zip(call.x, windows, ends, strict=True)
        )
        evaluations = 1 + ends[-1] * game.n_baselines
        return leaves, Info(value=value, n_gradients=jnp.int32(evaluations)) if with_info else None

    return make_explainer(
        method,
        f,
        compute,
        argnums=argnums,
        allow_random=allow_random,
        stochastic=_draws(baseline),
        key=key,
        differentiated=False,
    )


def ablation(
    f: Callable[..., Any],
    *,
    groups: Any = None,
    n_groups: int | None = None,
    share: bool = False,
    baseline: Any = 0.0,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Feature ablation: $R_i = f(x) - f(x_{G \leftarrow b})$, G the group of features that i belongs to.

    Arguments:
        f: the score, `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        groups: an integer label ≥ 0 for each feature; features with the same label are replaced together. An array like x, in which axes of length 1
            broadcast (a segmentation (H, W, 1) of an image (H, W, C) takes all channels of a segment together), a number, or a function of x (`jx.patches(4, 4)`); for a pytree x a pytree of
            them, and a label may occur in several leaves. With several argnums a tuple. `None` within a pytree or tuple leaves that part alone; `None` for
            all of it makes every feature a group. Labels need not be contiguous.
        n_groups: needed if `groups` is traced (a segmentation of its own for each example: build the explainer inside `vmap`); labels are then 0 … n_groups − 1, and
            features with any other label become NaN.
        share: divide the value of a group equally among its features. Sums over features are then sums over groups, which is how metrics read a map.
        baseline, chunk_size, argnums, allow_random, key: as in `occlusion`.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x; units of f. **Every feature carries the value of its whole group**, so sums are over
        groups, not over features; with `share` an equal part of it.

    Guarantees: linear in f; a group that f does not depend on gets 0, to rounding. If f is additive over groups, the values sum to f(x) − f(b) and are the Shapley values;
    `Info.gap`, Σ over groups − (f(x) − f(b)), is the interaction between groups that ablation misses or counts twice.
    Cost: 1 + (groups × baselines) evaluations of f, no gradient; with info f(b) as well. Info: value, baseline_value, gap, n_gradients (which counts these evaluations).
    Errors: labels that are no integers, are negative, or have another shape than x.
    Differs from: the same numbers as Captum's `FeatureAblation`, where labels must be contiguous to cost nothing, and (H, W) is put beside the last axes.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.ablation(lambda x: x[0] * x[1] + x[2], groups=jnp.array([0, 0, 1]))
        >>> print(explain(jnp.array([2.0, 3.0, 5.0])))
        [6. 6. 5.]

    References:
        Zeiler, Fergus, Visualizing and understanding convolutional networks, ECCV 2014.
        Li, Monroe, Jurafsky, Understanding neural networks through representation erasure, arXiv:1612.08220, 2016.
    """
    method = "ablation"
    chunk = chunk_of(method, chunk_size)

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        labeled = groups_of(call.arguments, groups, n_groups)
        game = _Game(call, baseline, key)
        value = call.value(call.x)
        losses = value - game.values(labeled.masks, labeled.n, chunk)
        leaves = labeled.spread(labeled.per_feature(losses) if share else losses, alone=0)
        if not with_info:
            return leaves, None
        start = game.values(lambda _: labeled.everything(), 1, chunk)[0]
        return leaves, _info(value, start, losses, 1 + (labeled.n + 1) * game.n_baselines)

    return make_explainer(
        method,
        f,
        compute,
        argnums=argnums,
        allow_random=allow_random,
        stochastic=_draws(baseline),
        key=key,
        differentiated=False,
        repeats_groups=groups is not None and not share,
    )


def shapley_sampling(
    f: Callable[..., Any],
    *,
    groups: Any = None,
    n_groups: int | None = None,
    share: bool = False,
    baseline: Any = 0.0,
    n_samples: int = 25,
    antithetic: bool = True,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Shapley values by permutations: $R_g = \mathbb{E}_\pi\left[v(P_g \cup \{g\}) - v(P_g)\right]$, $P_g$ the groups before g in the order π.

    $v(S) = f(x_{\bar S \leftarrow b})$ is the score with the groups in S kept and all others replaced. Starting from the baseline, groups are put
    back in a random order, and each gets what the score gains at its turn.

    Arguments:
        f: the score, `f(x, *args) -> real scalar` for one example. It need not be differentiable: token ids, which cannot be replaced themselves, are
            explained by `lambda keep, ids: score(jnp.where(keep > 0, ids, PAD))` at `keep = jnp.ones(len(ids))`.
        groups, n_groups: the players of the game, as in `ablation`.
        share: as in `ablation`: divide the value of a group among its features, so that sums over features are complete, too.
        baseline, chunk_size, argnums, allow_random: as in `occlusion`. With several baselines v is the mean over all of them.
        n_samples: random orders drawn (Python integer).
        antithetic: go through each order backwards, too, and average the two: twice the evaluations for less than half the variance, where gains in an order and its
            reverse are negatively correlated, as they are if groups interact in pairs.
        key: random key shared by all examples; otherwise `explain(x, *args, key=key)`.

    Returns:
        `explain(x, *args, key=key)`, with the structure, shapes and dtypes of x; units of f. **Every feature carries the value of its whole group**; with `share`
        an equal part of it.

    Guarantees: unbiased; complete for each order, whatever `n_samples`: Σ over groups = f(x) − f(b) to rounding (`Info.gap`), because the gains telescope. A group that
    f does not depend on gets 0, to rounding. Exact if f is additive over groups, and with `antithetic` also if groups interact in pairs only. `Info.standard_error` is the
    Monte-Carlo error of each value (over orders, or pairs of them; NaN for one). Order k comes from `fold_in(split(key)[1], k)`: results do not depend on `chunk_size`.
    Cost: 1 + baselines · (1 + n_samples · (groups − 1)) evaluations of f, nearly twice that with `antithetic`, no gradient; one sample more with info.
    Info: value, baseline_value, gap, standard_error, n_gradients (which counts these evaluations).
    Errors: those of `ablation`; a missing key.
    Differs from: Captum's `ShapleyValueSampling` draws 25 orders without their reverses, reports no error, and adds up in float32 whatever the dtype of the input.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.shapley_sampling(lambda x: x[0] * x[1] + x[2], n_samples=2)
        >>> print(explain(jnp.array([2.0, 3.0, 5.0]), key=jax.random.key(0)))
        [3. 3. 5.]

    References:
        Štrumbelj, Kononenko, An efficient explanation of individual classifications using game theory, JMLR 11, 2010.
        Castro, Gómez, Tejada, Polynomial calculation of the Shapley value based on sampling, Computers & Operations Research 36, 2009.
        Mitchell et al., Sampling permutations for Shapley value estimation, JMLR 23, 2022 (antithetic orders).
    """
    method = "shapley_sampling"
    positive_int(method, "n_samples", n_samples)
    chunk = chunk_of(method, chunk_size)

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        labeled = groups_of(call.arguments, groups, n_groups)
        n, n_orders = labeled.n, 2 if antithetic else 1
        baseline_key, order_key = jax.random.split(key)
        game = _Game(call, baseline, baseline_key)
        value, start = call.value(call.x), game.values(lambda _: labeled.everything(), 1, chunk)[0]
        inside = n_orders * (n - 1)  # evaluations of one sample, which has f(b) and f(x) at its ends
        samples_at_once = max(1, min(n_samples, chunk // max(inside, 1)))

        def spread(values: jax.Array) -> Leaves:
            return labeled.spread(labeled.per_feature(values) if share else values, alone=0)

        def sample(k: jax.Array) -> jax.Array:
            turn = _turns(order_key, k, n)
            turns = jnp.stack([turn, n - 1 - turn][:n_orders])
            at_features = jax.vmap(lambda t: labeled.spread(t, alone=-1))(turns)

            def masks(j: jax.Array) -> Masks:
                order, kept = j // (n - 1), j % (n - 1) + 1
                return tuple(leaf[order] >= kept for leaf in at_features)

            between = game.values(masks, inside, chunk // samples_at_once).reshape(n_orders, n - 1)
            ends = (jnp.broadcast_to(end.astype(between.dtype), (n_orders, 1)) for end in (start, value))
            gains = jnp.diff(jnp.concatenate([next(ends), between, next(ends)], axis=1), axis=1)
            return jnp.mean(jnp.take_along_axis(gains, turns, axis=1), axis=0)

        if not with_info:
            mean = accumulate(sample, n_samples, samples_at_once) / n_samples
            return spread(mean), None
        # As in SmoothGrad: deviations from one sample keep the sums of squares accurate.
        shift = sample(jnp.int32(0))
        (scale,) = spread_scale((shift,))

        def moments(k: jax.Array) -> tuple[jax.Array, jax.Array]:
            deviation = (sample(k) - shift) / scale
            return deviation, deviation**2

        first, second = accumulate(moments, n_samples, samples_at_once)
        mean = shift + scale * first / n_samples
        (error,) = standard_error((first,), (second,), n_samples)
        info = _info(value, start, mean, 1 + game.n_baselines * (1 + (n_samples + 1) * inside))
        error_leaves = spread(scale * error)
        return spread(mean), info._replace(standard_error=call.arguments.attribution(error_leaves))

    return make_explainer(
        method,
        f,
        compute,
        argnums=argnums,
        allow_random=allow_random,
        stochastic=True,
        key=key,
        differentiated=False,
        repeats_groups=groups is not None and not share,
    )


def _turns(key: jax.Array, k: jax.Array, n: int) -> jax.Array:
    """Random order number k: the turn of each of n groups."""
    return jax.random.permutation(jax.random.fold_in(key, k), n)


def _info(value: jax.Array, start: jax.Array, of_groups: jax.Array, evaluations: int) -> Info:
    # Not `sum_gap`: a group's value stands at each of its features, but counts once.
    gap = jnp.sum(of_groups) - (value - start)
    return Info(value=value, baseline_value=start, gap=gap, n_gradients=jnp.int32(evaluations))


def _draws(baseline: Any) -> bool:
    return isinstance(baseline, References) and baseline.n is not None


class _Game:
    """The score as a function of which features are replaced: the mean over one or several baselines."""

    def __init__(self, call: Call, baseline: Any, key: Any):
        self._baselines, self.n_baselines = pool_of(call.arguments, baseline, key)
        self._call = call

    def _baseline(self, r: jax.Array) -> Leaves:
        return tuple(leaf[r] for leaf in self._baselines)

    def values(self, masks: Callable[[jax.Array], Masks], n: int, chunk: int) -> jax.Array:
        """The scores with the features in `masks(k)` replaced, for k < n, at most `chunk` evaluations at once."""

        def replaced(i: jax.Array) -> Leaves:
            parts = masks(i // self.n_baselines), self._baseline(i % self.n_baselines), self._call.x
            return tuple(jnp.where(*leaf) for leaf in zip(*parts, strict=True))

        scores = self._scores(replaced, n * self.n_baselines, chunk)
        return jnp.mean(scores.reshape(n, self.n_baselines), axis=1)

    def _scores(self, point: Callable[[jax.Array], Leaves], n: int, chunk: int) -> jax.Array:
        return evaluate(lambda i: self._call.value(point(i)), n, chunk)


class _Window(NamedTuple):
    """The positions of a window over one leaf, numbered in C order; on each axis its length, its step, and how many there are."""

    shape: tuple[int, ...]
    lengths: tuple[int, ...]
    strides: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def n(self) -> int:
        return math.prod(self.counts)

    def mask(self, k: jax.Array) -> jax.Array:
        """What window number k covers."""
        covered = jnp.ones(self.shape, bool)
        for axis in reversed(range(len(self.shape))):
            k, place = k // self.counts[axis], k % self.counts[axis]
            index = lax.broadcasted_iota(jnp.int32, self.shape, axis) - place * self.strides[axis]
            covered &= (index >= 0) & (index < self.lengths[axis])
        return covered

    def average(self, values: jax.Array) -> jax.Array:
        """For each feature the mean of `values` over the windows that cover it: windows are boxes, so axis after axis."""
        grid = values.reshape(self.counts)
        for axis, (size, length, stride, count) in enumerate(zip(*self, strict=True)):
            index = np.arange(size)
            first = np.maximum(-(-(index - length + 1) // stride), 0)
            last = np.minimum(index // stride, count - 1)
            which = first[:, None] + np.arange(np.max(last - first, initial=0) + 1)
            covers = (which <= last[:, None]).reshape(which.shape + (1,) * (grid.ndim - axis - 1))
            # A selection, not a product with zeros: a window whose score is NaN spoils what it covers and nothing else.
            grid = jnp.mean(jnp.take(grid, np.minimum(which, count - 1), axis=axis), axis=axis + 1, where=covers)
        return grid


def _windows(arguments: Arguments, window: Any, strides: Any) -> list[_Window | None]:
    method = arguments.method
    steps = [1 if s is None else s for *_, s in per_leaf(arguments, "strides", 1 if strides is None else strides)]
    windows = [
        None if lengths is None else _window(method, where, shape, lengths, step)
        for (where, shape, lengths), step in zip(per_leaf(arguments, "window", window), steps, strict=True)
    ]
    require_some(method, "window", windows, fix="window=(3, 3)")
    return windows


def _window(method: str, where: str, shape: tuple[int, ...], lengths: Any, strides: Any) -> _Window:
    where = f"{where}, shape {shape}"
    named = _integers(method, "window", lengths, where)
    if len(named) > len(shape):
        raise SettingError(
            explain_error(
                f"{method}: `window` names more axes than x has.",
                where=where,
                got=f"window={lengths!r}",
                why="x is one example, without a batch axis; axes at the end that the window does not name are spanned whole",
                fix="window=(3, 3) for images (H, W, C), window=(None, 3, 3) for (C, H, W), window=1 for tokens (T, D)",
            )
        )
    steps = _integers(method, "strides", strides, where)
    steps = steps if isinstance(strides, tuple | list) else steps * len(named)
    if len(steps) != len(named):
        raise SettingError(
            explain_error(
                f"{method}: `strides` must name the axes that `window` names.",
                where=where,
                got=f"strides={strides!r}, window={lengths!r}",
                fix="one integer for all axes: strides=2",
            )
        )
    rest = (None,) * (len(shape) - len(named))
    full: list[tuple[int, int, int]] = []
    for axis, (size, length, step) in enumerate(zip(shape, named + rest, steps + rest, strict=True)):
        length, step = size if length is None else length, 1 if step is None else step
        if length > size:
            raise SettingError(
                explain_error(
                    f"{method}: the window is larger than x.",
                    where=f"{where}, axis {axis}",
                    got=f"length {length} on an axis of {size}",
                    need=f"at most {size}; None spans the axis",
                )
            )
        if length < size and step > length:
            raise SettingError(
                explain_error(
                    f"{method}: strides larger than the window leave features uncovered.",
                    where=f"{where}, axis {axis}",
                    got=f"stride {step}, window {length}",
                    need=f"a stride of at most {length}",
                    why="a feature that no window covers has no attribution; a zero would say that it does not matter",
                )
            )
        full.append((length, step, -(-(size - length) // step) + 1))
    columns = tuple(zip(*full, strict=True)) or ((), (), ())
    return _Window(shape, *columns)


def _integers(method: str, name: str, value: Any, where: str) -> tuple[int | None, ...]:
    """The entries of a window or of strides: positive integers, or None."""
    try:
        entries = value if isinstance(value, tuple | list) else (value,)
        numbers = tuple(None if entry is None else operator.index(entry) for entry in entries)
    except TypeError:  # JAX's own error for a traced integer is a TypeError, too
        numbers = (0,)
    if any(number is not None and number < 1 for number in numbers):
        raise SettingError(
            explain_error(
                f"{method}: `{name}` must be positive Python integers.",
                where=where,
                got=repr(value),
                why="they fix the shape of the compiled program",
                fix=f"{name}=(3, 3)",
            )
        )
    return numbers
