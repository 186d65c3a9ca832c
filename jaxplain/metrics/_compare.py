"""Methods × metrics over many examples: each map is computed once, and every number has an interval."""

import functools
import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain._batch import batched
from jaxplain._checks import checked, one_key, require_callable
from jaxplain._errors import MissingKeyError, SettingError, StructureError, explain_error
from jaxplain._explainer import Explainer
from jaxplain._types import Explain, PyTree, Score, traits
from jaxplain.metrics._comparison import Comparison


@checked()
def compare(
    score: Score,
    methods: Mapping[str, Callable[[Score], Explain]],
    metrics: Mapping[str, Callable[..., Any]],
    *,
    make_score: Callable[[PyTree], Score] | None = None,
    batch_size: int = 100,
    in_axes: int | None | Sequence[int | None] = 0,
    progress: bool = True,
) -> Callable[..., Comparison]:
    r"""Measures methods by metrics on many examples: `compare(score, methods, metrics)(xs, *args, key=key)` →
    `Comparison`.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example.
        methods: Name → `method(score) -> explain`: `jx.gradient`, `functools.partial(jx.lrp, rules=…)`,
            `lambda score: jx.smoothgrad(jx.gradient(score))`. Include the controls, `metrics.controls.random_map` and
            `metrics.controls.greedy`.
        metrics: Name → a metric, classified by the **name of its first argument**:

            * `score`: `functools.partial(metrics.pixel_flipping, groups=jx.patches(4, 4))`, `lambda score: …`
            * `explain`: `functools.partial(metrics.max_sensitivity, …)`
            * `make_explain`: `metrics.parameter_randomization`
            * `method`: `functools.partial(metrics.input_invariance, score=…)`
            * `attribution`: a finished measure, `metrics.sparseness()`, `metrics.pointing_game()` (with `masks`),
              `metrics.pixel_flipping(score)`
        make_score: `make_score(params) -> score`, for metrics that replace the weights:
            `lambda params: jx.logit(functools.partial(net.apply, params))`.
        batch_size: Explanations per compiled chunk, see `batched`. Measures of maps take the maps of all methods
            together, and fewer examples, at least one.
        in_axes: 0 or None for each of (x, *args), as in `batched`. None shares an argument, such as weights, between
            all examples.
        progress: Whether to show a progress bar.

    Returns:
        `run(xs, *args, masks=None, params=None, key=None)` → `Comparison`: values per example, means, intervals, paired
        differences, a table. Arguments have a leading axis of examples. `masks` are for metrics of a map and a mask,
        `params` for metrics of weights, and `key` if a method or a metric draws. As under `jax.jit`, weights that
        `score` closes over are those of the first call: after training build `run` again, or pass them as an argument.

    Guarantees: each method's maps are computed once. Example i and metric m have the same draws for every method, which
    only depend on `key`, i and the name of m. So another method or metric changes no other number except for rounding,
    and differences are paired. Random weights are drawn once for all examples, so that intervals are over examples
    alone. An explainer's own draws are shared, too: `random_map` has a max sensitivity of 0, because it ignores x.
    Cost: for each example and method one explanation and the costs of the metrics. Evaluations that only depend on the
    draws are shared by all methods (`sensitivity_n`, `faithfulness_correlation`, `infidelity`, `completeness`). Memory:
    the maps of all methods, on the host.
    Errors: a metric whose first argument has another name; missing masks, params or key; maps that repeat a group's
    value at each of its features (only detected for explainers of this library); those of methods and metrics. An
    example without a value (NaN) is left out of the mean, and the table shows how many have one.
    Differs from: Quantus' `evaluate` has neither intervals nor paired differences, and continues after an exception.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> score = lambda x: x @ jnp.array([1.0, 2.0, 3.0])
        >>> table = jx.metrics.compare(
        ...     score,
        ...     methods={"gradient": jx.gradient, "input × gradient": jx.input_x_gradient},
        ...     metrics={"sparseness": jx.metrics.sparseness(), "estimate": jx.metrics.faithfulness_estimate},
        ...     progress=False,
        ... )(jnp.array([[1.0, 2.0, 0.0], [3.0, 1.0, 1.0]]))
        >>> print(f"{table.mean('estimate', 'input × gradient'):.3f}")
        1.000
    """
    return scheduled(
        score,
        methods,
        metrics,
        make_score=make_score,
        batch_size=batch_size,
        in_axes=in_axes,
        progress=progress,
        cells=Cells(),
    )


class Cells:
    """Provides maps and cells, where a cell is the numbers of one method by one metric. This one computes them all.

    A subclass may look them up first, store them as soon as they are finished, or leave cells out.
    """

    def maps(self, method: str, compute: Callable[[], PyTree]) -> PyTree:
        """The maps of all examples."""
        del method
        return compute()

    def columns(self, metric: str, methods: Sequence[str], compute: "Columns") -> dict[str, np.ndarray]:
        """The cells of one metric. Metrics that explain again ask for one method at a time, others for all methods."""
        del metric
        return compute(methods)


Columns: TypeAlias = Callable[[Sequence[str]], dict[str, np.ndarray]]  # method → one number for each example


@checked()
def scheduled(
    score: Score,
    methods: Mapping[str, Callable[[Score], Explain]],
    metrics: Mapping[str, Callable[..., Any]],
    *,
    make_score: Callable[[PyTree], Score] | None,
    batch_size: int,
    in_axes: int | None | Sequence[int | None],
    progress: bool,
    cells: Cells,
) -> Callable[..., Comparison]:
    """`compare` whose maps and cells come from `cells`."""
    _require_functions(score, methods, metrics)
    kinds = {name: _kind(name, metric) for name, metric in metrics.items()}
    if "make_explain" in kinds.values():
        _require_maker(make_score, [name for name, kind in kinds.items() if kind == "make_explain"])
    of_maps = {
        name: OverMethods(metrics[name](score) if kind == "score" else metrics[name])
        for name, kind in kinds.items()
        if kind not in _AGAIN
    }
    explains = {name: method(score) for name, method in methods.items()}
    if of_maps:
        _require_values_of_features(explains)

    def axes(n_args: int) -> tuple[int | None, ...]:
        return (in_axes,) * n_args if in_axes is None or isinstance(in_axes, int) else tuple(in_axes)

    def over_examples(
        f: Callable[..., Any], mapped: Any, size: int, on_nan: Literal["mark", "keep"], draws_once: bool = False
    ) -> _OverExamples:
        run = batched(f, batch_size=size, in_axes=mapped, progress=progress, on_nan=on_nan)
        return _OverExamples(f, run, draws_once)

    # Everything is compiled once for the life of `run`.
    explainers = {name: over_examples(explain, in_axes, batch_size, "mark") for name, explain in explains.items()}

    @functools.cache
    def of_all(name: str, n_methods: int, n_args: int) -> _OverExamples:
        others = axes(n_args) if kinds[name] in ("score", "attribution, x") else (0,) * n_args
        return over_examples(of_maps[name], (0, *others), max(1, batch_size // n_methods), "keep")

    @functools.cache
    def of_one(name: str, method: str) -> _OverExamples:
        made = metrics[name](explains[method] if kinds[name] == "explain" else methods[method])
        return over_examples(made, in_axes, batch_size, "keep")

    @functools.cache
    def of_weights(name: str, method: str, n_args: int, fixed: _Fixed) -> _OverExamples:
        measure = metrics[name](lambda params: methods[method](make_score(params)))  # type: ignore[misc]
        needs_key = traits(measure).needs_key

        def with_weights(arrays: list[Any], key: Any, *args: Any) -> Any:
            params = fixed.filled(arrays)
            return measure(params, *args, key=key) if needs_key else measure(params, *args)

        return over_examples(with_weights, (None, None, *axes(n_args)), batch_size, "keep", draws_once=needs_key)

    def run(
        xs: PyTree, *args: Any, masks: PyTree = None, params: PyTree = None, key: jax.Array | None = None
    ) -> Comparison:
        others = {"attribution": (), "attribution, mask": (masks,), "score": (xs, *args), "attribution, x": (xs, *args)}
        n_args = 1 + len(args)
        _require_data(
            [a for a, axis in zip((xs, *args), axes(n_args), strict=False) if axis == 0], masks, params, kinds
        )
        arrays, fixed = _partition(params)
        again = {
            (n, m): of_weights(n, m, n_args, fixed) if kind == "make_explain" else of_one(n, m)
            for n, kind in kinds.items()
            if kind in _AGAIN
            for m in methods
        }
        drawing = [f"method {name!r}" for name, explain in explainers.items() if of_maps and explain.needs_key]
        drawing += [f"metric {name!r}" for name, measure in of_maps.items() if measure.needs_key]
        drawing += [f"metric {n!r} of {m!r}" for (n, m), f in again.items() if f.needs_key or f.draws_once]
        key = _key(key, drawing)

        @functools.cache
        def maps_of(method: str) -> PyTree:
            return cells.maps(method, lambda: explainers[method](xs, *args, key=_named(key, "explanation")))

        def of_maps_together(name: str, together: Sequence[str]) -> dict[str, np.ndarray]:
            found: dict[str, np.ndarray] = {}
            maps = {method: maps_of(method) for method in together}
            more = others[kinds[name]]
            for alike in stackable(maps):
                stacked = jax.tree.map(lambda *leaves: np.stack(leaves, 1), *(maps[m] for m in alike))
                columns = of_all(name, len(alike), len(more))(stacked, *more, key=_named(key, name))
                found |= zip(alike, np.moveaxis(_number_each(name, columns, 2), 1, 0), strict=True)
            return found

        def of_explainers(name: str, together: Sequence[str]) -> dict[str, np.ndarray]:
            of_name = _named(key, name)
            first = (arrays, of_name) if kinds[name] == "make_explain" else ()
            return {m: _number_each(name, again[name, m](*first, xs, *args, key=of_name), 1) for m in together}

        values: dict[str, dict[str, np.ndarray]] = {}
        for name in metrics:
            compute = functools.partial(of_maps_together if name in of_maps else of_explainers, name)
            found: dict[str, np.ndarray] = {}
            for together in [list(methods)] if name in of_maps else [[method] for method in methods]:
                found |= cells.columns(name, together, compute)
            values[name] = {method: found[method] for method in methods if method in found}
        return Comparison(values)

    return run


_AGAIN = ("explain", "method", "make_explain")  # kinds of metrics that explain again instead of reading a map


class _OverExamples:
    """A function of one example, run over all examples.

    Attributes:
        needs_key: Whether it draws for each example.
        draws_once: Whether it draws once for all examples; its key is then a positional argument.
    """

    def __init__(self, f: Callable[..., Any], run: Callable[..., Any], draws_once: bool):
        self.needs_key = traits(f).needs_key
        self.draws_once = draws_once
        self._run = run

    def __call__(self, *args: Any, key: jax.Array | None) -> Any:
        return self._run(*args, key=key if self.needs_key else None)


@dataclass(frozen=True)
class _Fixed:
    """The static part of weights: their structure, functions, Python numbers. Programs are compiled for it."""

    tree: Any
    leaves: tuple[Any, ...]  # None in place of an array

    def filled(self, arrays: Sequence[Any]) -> PyTree:
        left = iter(arrays)
        return jax.tree.unflatten(self.tree, [next(left) if leaf is None else leaf for leaf in self.leaves])


def _partition(params: PyTree) -> tuple[list[Any], _Fixed]:
    leaves, tree = jax.tree.flatten(params)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    fixed = tuple(None if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    return [leaf for leaf, array in zip(leaves, is_array, strict=True) if array], _Fixed(tree, fixed)


class OverMethods:
    """A measure of a map, applied to the maps of many methods, stacked along their first axis, with the same draws.

    Evaluations of the score that only depend on the draws, as in `sensitivity_n`, run once, because under `vmap` only
    the maps have an axis of methods.
    """

    def __init__(self, measure: Callable[..., Any]):
        self.measure = measure
        self.needs_key = self.stochastic = traits(measure).needs_key

    def __call__(self, maps: PyTree, *args: Any, **key: jax.Array) -> PyTree:
        return jax.vmap(lambda one: self.measure(one, *args, **key))(maps)


def stackable(maps: Mapping[str, PyTree]) -> list[list[str]]:
    """The names of maps in groups that can be stacked, with the same structure, shapes and dtypes."""
    groups: dict[Any, list[str]] = {}
    for name, tree in maps.items():
        leaves, structure = jax.tree.flatten(tree)
        groups.setdefault((structure, tuple((a.shape, a.dtype) for a in leaves)), []).append(name)
    return list(groups.values())


def _require_functions(score: object, methods: Mapping[str, object], metrics: Mapping[str, object]) -> None:
    require_callable("metrics.compare", score)
    for kind, found in (("methods", methods), ("metrics", metrics)):
        if not isinstance(found, Mapping):
            raise SettingError(
                explain_error(
                    f"metrics.compare: `{kind}` must be a dict, name → function.",
                    got=type(found).__name__,
                    fix='methods={"gradient": jx.gradient}, metrics={"sparseness": jx.metrics.sparseness()}',
                )
            )
    for name, method in methods.items():
        if not callable(method) or isinstance(method, Explainer):
            raise SettingError(
                explain_error(
                    f"metrics.compare: the method {name!r} must be a function score → explainer.",
                    got=repr(method) if isinstance(method, Explainer) else type(method).__name__,
                    why="all methods get the same score",
                    fix=("the method itself: jx.gradient", "with settings: lambda score: jx.lrp(score, rules=…)"),
                )
            )


def _require_maker(make_score: object, names: list[str]) -> None:
    if not callable(make_score):
        raise SettingError(
            explain_error(
                f"metrics.compare: {', '.join(names)} replaces the weights of the score.",
                got=f"make_score={make_score!r}",
                why="weights that a score closes over cannot be replaced",
                fix="compare(…, make_score=lambda params: jx.logit(partial(apply, params)))(xs, labels, params=params)",
            )
        )


def _require_values_of_features(explains: Mapping[str, Explain]) -> None:
    """Metrics sum a map over features, and would count the value of a group of 16 features 16 times."""
    for name, explain in explains.items():
        if traits(explain).repeats_groups:
            raise SettingError(
                explain_error(
                    f"metrics.compare: in the maps of {name!r} every feature carries the value of its whole group.",
                    why="metrics sum over features, and would count a group as often as it has features",
                    fix=f"functools.partial(jx.{getattr(explain, 'method', 'ablation')}, groups=…, share=True)",
                )
            )


def _require_data(mapped: Sequence[PyTree], masks: PyTree, params: PyTree, kinds: Mapping[str, str]) -> None:
    is_stream = any(isinstance(a, Iterator) for a in mapped)
    n = set() if is_stream else {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(mapped)}
    if not n or () in n:
        raise StructureError(
            explain_error(
                "metrics.compare: needs arrays with a leading axis of examples.",
                got="an iterator" if is_stream else "numbers without an axis",
                fix=(
                    "compare(score, methods, metrics)(xs, labels)",
                    "an argument shared by all examples: in_axes=(0, None)",
                ),
            )
        )
    for kind, setting, given, fix in (
        ("attribution, mask", "masks", masks, "compare(score, methods, metrics)(xs, labels, masks=masks)"),
        ("make_explain", "params", params, "compare(…, make_score=…)(xs, labels, params=params)"),
    ):
        names = [name for name, found in kinds.items() if found == kind]
        if names and given is None:
            raise SettingError(explain_error(f"metrics.compare: {', '.join(names)} needs `{setting}`.", fix=fix))
    if masks is not None and (lengths := {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(masks)}) != n:
        raise StructureError(
            explain_error(
                "metrics.compare: there must be a mask for each example.",
                got=f"masks of leading axes {sorted(map(list, lengths))}, examples of {sorted(map(list, n))}",
            )
        )


def _key(key: Any, drawing: Sequence[str]) -> Any:
    if key is None and not drawing:
        return None
    try:
        return one_key("metrics.compare", key)
    except MissingKeyError:
        raise MissingKeyError(
            explain_error(
                "metrics.compare: a random key is missing."
                if key is None
                else "metrics.compare: `key` must be one random key.",
                got="; ".join(f"{name}: random draws" for name in drawing) if key is None else repr(key),
                fix="compare(score, methods, metrics)(xs, labels, key=jax.random.key(0))",
            )
        ) from None


def _number_each(name: str, result: Any, ndim: int) -> np.ndarray:
    found = np.asarray(result, float) if isinstance(result, np.ndarray) else None
    if found is None or found.ndim != ndim:
        raise SettingError(
            explain_error(
                f"metrics.compare: the metric {name!r} must return one number for each example.",
                got=f"a {type(result).__name__}" if found is None else f"an array {list(found.shape[ndim:])} for each",
                fix="a mean, or one number of its curve: lambda attribution: measure(attribution).mean()",
            )
        )
    return found


def _named(key: jax.Array | None, name: str) -> jax.Array | None:
    """A key that only depends on the name, not on the other methods and metrics."""
    return None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))


def _kind(name: str, metric: Callable[..., Any]) -> str:
    """What a metric or a finished measure takes, by the names of its first arguments."""
    if not callable(metric):
        raise SettingError(
            explain_error(
                f"metrics.compare: the metric {name!r} must be a function.",
                got=repr(metric),
                fix=(
                    "jx.metrics.sparseness()",
                    "functools.partial(jx.metrics.pixel_flipping, groups=jx.patches(4, 4))",
                ),
            )
        )
    names = list(inspect.signature(metric).parameters)
    if names[:1] == ["attribution"]:
        kind = ", ".join(n for n in names[:2] if n in ("attribution", "x", "mask"))
    else:
        kind = names[0] if names else ""
    if kind not in ("score", *_AGAIN, "attribution", "attribution, x", "attribution, mask"):
        raise SettingError(
            explain_error(
                f"metrics.compare: the first argument of the metric {name!r} is unknown.",
                got=f"arguments {', '.join(names)}" if names else "no arguments",
                need="score, explain, make_explain, method or attribution as the first argument",
                why="metrics are classified by the name of their first argument",
                fix=(
                    "a measure, not its factory: jx.metrics.sparseness()",
                    "functools.partial(jx.metrics.pixel_flipping, groups=jx.patches(4, 4))",
                    "lambda score: jx.metrics.faithfulness_estimate(score, baseline=0.5)",
                    "lambda explain: jx.metrics.max_sensitivity(explain, …)",
                ),
            )
        )
    return kind
