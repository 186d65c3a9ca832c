"""Perturbation methods: the loss of score when features are replaced. Without gradients, so any program will do.

Notation: input x, baseline b, and $x_{S \\leftarrow b}$ for x with the features in S replaced by those of b. All
methods evaluate the score at many such points. S is a mask for each leaf, computed from the number of the evaluation,
so that no list of masks is stored.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain._accumulate import accumulate, evaluate
from jaxplain._arguments import Arguments
from jaxplain._checks import checked, chunk_of
from jaxplain._errors import SettingError, explain_error
from jaxplain._explainer import Call, Explainer, Info, make_explainer
from jaxplain._groups import groups_of, per_leaf, require_some
from jaxplain._references import is_drawn, pool_of
from jaxplain._types import ArgNums, Baseline, GroupLabels, Leaves, Masks, PyTree, Score
from jaxplain.methods._path import spread_scale, standard_error

Lengths: TypeAlias = int | tuple[int | None, ...] | PyTree | None
"""One length for each of the leading axes of x, where `None` spans an axis; a pytree of these for a pytree x."""


@checked()
def occlusion(
    f: Score,
    *,
    window: Lengths,
    strides: Lengths = None,
    baseline: Baseline = 0.0,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Occlusion: $R_i$ is the mean of $f(x) - f(x_{W \leftarrow b})$ over the windows W that cover feature i.

    A window slides over the input. Its value is the loss of score when its features are replaced.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example. It need not be differentiable: rounding, sorting and
            `while_loop` are fine.
        window: Lengths of the window over the leading axes of x. **It spans the axes that it does not name**: `(3, 3)`
            on an image (H, W, C) covers all channels, `1` on tokens (T, D) whole tokens. `None` spans an axis, too:
            `(None, 3, 3)` on (C, H, W). Name the channels to occlude them one by one: `(3, 3, 1)`. For a pytree x, a
            pytree of windows, each sliding over its leaf; for several argnums, a tuple. `None` leaves a leaf or
            argument unchanged.
        strides: Step of the window on each axis that it names: one integer for all axes, or in the form of `window`.
            `None` is 1. The first window starts at index 0; the last one is cut off at the edge if it overhangs.
        baseline: Replacement of the features: a number, a pytree like x, a function `x -> baseline` (a blurred x), or
            `jx.references(...)` for the mean over several. With several argnums a tuple, where `None` leaves an
            argument unchanged.
        chunk_size: Number of inputs evaluated together for each example; peak memory is that of `chunk_size` forward
            passes. `None` is 1, the fastest measured under `vmap` over a batch on a CPU; raise it for single examples
            and on a GPU.
        argnums, allow_random: As in `gradient`. Only float leaves are replaced; for token ids see `shapley_sampling`.
        key: Random key shared by all examples, if `jx.references(..., n=)` draws.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x; units of f.

    Guarantees: linear in f; a feature gets 0, to rounding, if f does not depend on the windows that cover it. For
    linear f with weights w, $R_i$ is the mean of $\sum_{j \in W} w_j (x_j - b_j)$ over these windows: the window blurs
    the map, and the map does not sum to f(x) − f(b) if windows overlap.
    Cost: 1 + (windows × baselines) evaluations of f. Info: value, n_gradients (0), n_evaluations.
    Errors: a window larger than x; strides larger than the window, which would leave features uncovered.
    Differs from: the same numbers as Captum's `Occlusion`, which needs a length for every axis. Zeiler and Fergus show
    f(x_{W ← b}) itself, at the center of W.

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
        return leaves, _info(value, evaluations) if with_info else None

    return make_explainer(
        method,
        f,
        compute,
        argnums=argnums,
        allow_random=allow_random,
        stochastic=is_drawn(baseline),
        key=key,
        differentiated=False,
    )


@checked()
def ablation(
    f: Score,
    *,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    share: bool = False,
    baseline: Baseline = 0.0,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Feature ablation: $R_i = f(x) - f(x_{G \leftarrow b})$, G the group of features that i belongs to.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example. It need not be differentiable.
        groups: An integer label ≥ 0 for each feature; features with the same label are replaced together. An array like
            x, in which axes of length 1 broadcast (a segmentation (H, W, 1) of an image (H, W, C) groups all channels
            of a segment), a number, or a function of x (`jx.patches(4, 4)`). For a pytree x a pytree of these, whose
            leaves may share labels; for several argnums a tuple. `None` in a pytree or tuple leaves that part
            unchanged; `None` alone makes every feature a group. Labels need not be contiguous.
        n_groups: Number of groups, which is needed if `groups` is traced (build the explainer inside `vmap` for a
            different segmentation of each example). Labels are then 0 … n_groups − 1; features with other labels become
            NaN.
        share: Whether to divide the value of a group equally among its features. Sums over features are then sums over
            groups, as metrics expect of a map.
        baseline, chunk_size, argnums, allow_random, key: As in `occlusion`.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x; units of f. **Every feature carries its whole
        group's value**, or with `share` an equal part of it.

    Guarantees: linear in f; a group on which f does not depend gets 0, to rounding. If f is additive over groups, the
    values sum to f(x) − f(b) and are the Shapley values. `Info.gap`, Σ over groups − (f(x) − f(b)), is the interaction
    between groups that ablation misses or counts twice.
    Cost: 1 + (groups × baselines) evaluations of f; with info also f(b). Info: value, baseline_value, gap,
    n_gradients (0), n_evaluations.
    Errors: labels that are not integers, are negative, or differ from x in shape.
    Differs from: the same numbers as Captum's `FeatureAblation`, where gaps between labels cost evaluations and (H, W)
    is aligned with the last axes.

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
        return leaves, _complete_info(value, start, losses, 1 + (labeled.n + 1) * game.n_baselines)

    return make_explainer(
        method,
        f,
        compute,
        argnums=argnums,
        allow_random=allow_random,
        stochastic=is_drawn(baseline),
        key=key,
        differentiated=False,
        repeats_groups=groups is not None and not share,
    )


@checked()
def shapley_sampling(
    f: Score,
    *,
    groups: GroupLabels = None,
    n_groups: int | None = None,
    share: bool = False,
    baseline: Baseline = 0.0,
    n_samples: int = 25,
    antithetic: bool = True,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""Shapley values by permutations: $R_g = \mathbb{E}_\pi\left[v(P_g \cup \{g\}) - v(P_g)\right]$.

    $v(S) = f(x_{\bar S \leftarrow b})$ is the score with the groups in S kept and all others replaced, and $P_g$ are
    the groups before g in the random order π. Starting from the baseline, groups are restored in this order, and each
    gets the gain of score at its turn.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example. It need not be differentiable. For token ids, which
            cannot be replaced themselves, explain `lambda keep, ids: score(jnp.where(keep > 0, ids, PAD))` at
            `keep = jnp.ones(len(ids))`.
        groups, n_groups: The players of the game, as in `ablation`.
        share: Whether to divide the value of a group among its features, as in `ablation`.
        baseline, chunk_size, argnums, allow_random: As in `occlusion`. With several baselines, v is the mean over them.
        n_samples: Number of random orders (Python integer).
        antithetic: Whether to average each order with its reverse. Twice the evaluations give less than half the
            variance if gains in an order and in its reverse are negatively correlated, as for groups that interact in
            pairs.
        key: Random key shared by all examples; otherwise pass `explain(x, *args, key=key)`.

    Returns:
        `explain(x, *args, key=key)`, with the structure, shapes and dtypes of x; units of f. **Every feature carries
        its whole group's value**, or with `share` an equal part of it.

    Guarantees: unbiased; complete for each order, because the gains telescope: Σ over groups = f(x) − f(b) to rounding
    (`Info.gap`). A group on which f does not depend gets 0, to rounding. Exact if f is additive over groups, and with
    `antithetic` also if groups interact only in pairs. `Info.standard_error` is the Monte-Carlo error of each value:
    over orders, or pairs of orders, and over drawn references; NaN for one of them. Order k uses
    `fold_in(split(key)[1], k)`, so results do not depend on `chunk_size`.
    Cost: 1 + baselines · (1 + n_samples · (groups − 1)) evaluations of f, nearly twice that with `antithetic`; with
    info one sample more. Info: value, baseline_value, gap, standard_error, n_gradients (0), n_evaluations.
    Errors: those of `ablation`; a missing key.
    Differs from: Captum's `ShapleyValueSampling` draws 25 orders without their reverses, reports no error, and sums in
    float32 even for float64 inputs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.shapley_sampling(lambda x: x[0] * x[1] + x[2], n_samples=2)
        >>> print(explain(jnp.array([2.0, 3.0, 5.0]), key=jax.random.key(0)))
        [3. 3. 5.]

    References:
        Štrumbelj, Kononenko, An efficient explanation of individual classifications using game theory, JMLR 11, 2010.
        Castro, Gómez, Tejada, Polynomial calculation of the Shapley value based on sampling, Computers & Operations
        Research 36, 2009.
        Mitchell et al., Sampling permutations for Shapley value estimation, JMLR 23, 2022
        (antithetic orders).
    """
    method = "shapley_sampling"
    chunk = chunk_of(method, chunk_size)

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        labeled = groups_of(call.arguments, groups, n_groups)
        n, n_orders = labeled.n, 2 if antithetic else 1
        baseline_key, order_key = jax.random.split(key)
        game = _Game(call, baseline, baseline_key)
        value, starts = call.value(call.x), game.each(lambda _: labeled.everything(), 1, chunk)[0]
        start = jnp.mean(starts)
        inside = n_orders * (n - 1)  # evaluations of one sample, which has f(b) and f(x) at its ends
        samples_at_once = max(1, min(n_samples, chunk // max(inside, 1)))

        def spread(values: jax.Array) -> Leaves:
            return labeled.spread(labeled.per_feature(values) if share else values, alone=0)

        def sample(k: jax.Array) -> jax.Array:
            """The gains of all groups in order number k (and its reverse), for each baseline."""
            turn = _turns(order_key, k, n)
            turns = jnp.stack([turn, n - 1 - turn][:n_orders])
            at_features = jax.vmap(lambda t: labeled.spread(t, alone=-1))(turns)

            def masks(j: jax.Array) -> Masks:
                order, kept = j // (n - 1), j % (n - 1) + 1
                return tuple(leaf[order] >= kept for leaf in at_features)

            between = game.each(masks, inside, chunk // samples_at_once).reshape(n_orders, n - 1, game.n_baselines)
            ends = (
                jnp.broadcast_to(end.astype(between.dtype), (n_orders, 1, game.n_baselines)) for end in (starts, value)
            )
            gains = jnp.diff(jnp.concatenate([next(ends), between, next(ends)], axis=1), axis=1)
            return jnp.mean(jnp.take_along_axis(gains, turns[..., None], axis=1), axis=0).T

        if not with_info:
            mean = accumulate(lambda k: jnp.mean(sample(k), axis=0), n_samples, samples_at_once) / n_samples
            return spread(mean), None
        # As in SmoothGrad, sums of squares use deviations from one sample, because sums of raw squares lose precision.
        shift = jnp.mean(sample(jnp.int32(0)), axis=0)
        (scale,) = spread_scale((shift,))

        def moments(k: jax.Array) -> tuple[jax.Array, jax.Array]:
            deviation = (sample(k) - shift[None]) / scale
            return deviation, jnp.mean(deviation, axis=0) ** 2

        first, second = accumulate(moments, n_samples, samples_at_once)
        of_baselines, first = first / n_samples, jnp.mean(first, axis=0)
        mean = shift + scale * first / n_samples
        (error,) = standard_error((first,), (second,), n_samples)
        if is_drawn(baseline):  # orders and references are drawn independently: their variances add
            among = jnp.sum((of_baselines - jnp.mean(of_baselines, axis=0, keepdims=True)) ** 2, axis=0)
            j = game.n_baselines
            error = jnp.sqrt(error**2 + among / (j * (j - 1))) if j > 1 else jnp.full_like(error, jnp.nan)
        info = _complete_info(value, start, mean, 1 + game.n_baselines * (1 + (n_samples + 1) * inside))
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
    """Random order number k, as the turn of each of n groups."""
    return jax.random.permutation(jax.random.fold_in(key, k), n).astype(jnp.int32)


def _info(value: jax.Array, n_evaluations: int) -> Info:
    return Info(value=value, n_gradients=jnp.int32(0), n_evaluations=jnp.int32(n_evaluations))


def _complete_info(value: jax.Array, start: jax.Array, of_groups: jax.Array, n_evaluations: int) -> Info:
    # Not `sum_gap`, because a group's value counts only once, although each of its features carries it.
    gap = jnp.sum(of_groups) - (value - start)
    return _info(value, n_evaluations)._replace(baseline_value=start, gap=gap)


class _Game:
    """The score as a function of the set of replaced features, averaged over one or several baselines."""

    def __init__(self, call: Call, baseline: Baseline, key: jax.Array | None):
        self._baselines, self.n_baselines = pool_of(call.arguments, baseline, key)
        self._call = call

    def _baseline(self, r: jax.Array) -> Leaves:
        return tuple(leaf[r] for leaf in self._baselines)

    def values(self, masks: Callable[[jax.Array], Masks], n: int, chunk: int) -> jax.Array:
        """The scores with the features in `masks(k)` replaced, for k < n, at most `chunk` evaluations at once."""
        return jnp.mean(self.each(masks, n, chunk), axis=1)

    def each(self, masks: Callable[[jax.Array], Masks], n: int, chunk: int) -> jax.Array:
        """The same for each baseline, (n, baselines)."""

        def replaced(i: jax.Array) -> Leaves:
            parts = masks(i // self.n_baselines), self._baseline(i % self.n_baselines), self._call.x
            return tuple(jnp.where(*leaf) for leaf in zip(*parts, strict=True))

        scores = evaluate(lambda i: self._call.value(replaced(i)), n * self.n_baselines, chunk)
        return scores.reshape(n, self.n_baselines)


class _Window(NamedTuple):
    """The positions of a window over one leaf, numbered in C order: length, step and count on each axis."""

    shape: tuple[int, ...]
    lengths: tuple[int, ...]
    strides: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def n(self) -> int:
        return math.prod(self.counts)

    def mask(self, k: jax.Array) -> jax.Array:
        """The features that window number k covers."""
        covered = jnp.ones(self.shape, bool)
        for axis in reversed(range(len(self.shape))):
            k, place = k // self.counts[axis], k % self.counts[axis]
            index = lax.broadcasted_iota(jnp.int32, self.shape, axis) - place * self.strides[axis]
            covered &= (index >= 0) & (index < self.lengths[axis])
        return covered

    def average(self, values: jax.Array) -> jax.Array:
        """For each feature the mean of `values` over the windows that cover it, axis by axis."""
        grid = values.reshape(self.counts)
        for axis, (size, length, stride, count) in enumerate(zip(*self, strict=True)):
            index = np.arange(size)
            first = np.maximum(-(-(index - length + 1) // stride), 0)
            last = np.minimum(index // stride, count - 1)
            which = first[:, None] + np.arange(np.max(last - first, initial=0) + 1)
            covers = (which <= last[:, None]).reshape(which.shape + (1,) * (grid.ndim - axis - 1))
            # A selection, not a product with zeros, so that a window whose score is NaN only affects what it covers.
            grid = jnp.mean(jnp.take(grid, np.minimum(which, count - 1), axis=axis), axis=axis + 1, where=covers)
        return grid


def _windows(arguments: Arguments, window: Lengths, strides: Lengths) -> list[_Window | None]:
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
                why="x is one example, without a batch axis; the window spans trailing axes that it does not name",
                fix="window=(3, 3) for images (H, W, C), (None, 3, 3) for (C, H, W), 1 for tokens (T, D)",
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
                    why="a feature that no window covers has no attribution, and 0 would mean that it has no effect",
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
    except TypeError:  # JAX's own error for a traced integer is also a TypeError
        numbers = (0,)
    if any(number is not None and number < 1 for number in numbers):
        raise SettingError(
            explain_error(
                f"{method}: `{name}` must be positive Python integers.",
                where=where,
                got=repr(value),
                why="they determine the shapes of the compiled program",
                fix=f"{name}=(3, 3)",
            )
        )
    return numbers
