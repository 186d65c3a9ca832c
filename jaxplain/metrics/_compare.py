"""Methods × metrics over many examples: each map is computed once, every number has an interval."""

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
from jaxplain._checks import one_key, require_callable
from jaxplain._errors import MissingKeyError, SettingError, StructureError, explain_error
from jaxplain._explainer import Explainer
from jaxplain.metrics._comparison import Comparison


def compare(
    score: Callable[..., Any],
    methods: Mapping[str, Callable[..., Any]],
    metrics: Mapping[str, Callable[..., Any]],
    *,
    make_score: Callable[[Any], Callable[..., Any]] | None = None,
    batch_size: int = 100,
    in_axes: int | None | Sequence[int | None] = 0,
    progress: bool = True,
) -> Callable[..., Comparison]:
    r"""Measure methods by metrics on many examples: `compare(score, methods, metrics)(xs, *args, key=key)` → `Comparison`.

    Arguments:
        score: `f(x, *args) -> real scalar` for one example.
        methods: name → `method(score) -> explain`: `jx.gradient`, `functools.partial(jx.lrp, rules=…)`, `lambda score: jx.smoothgrad(jx.gradient(score))`. Include the
            controls, `metrics.controls.random_map` and `metrics.controls.greedy`.
        metrics: name → a metric, told apart by the **name of its first argument**:
            `score`: `functools.partial(metrics.pixel_flipping, groups=jx.patches(4, 4))`, `lambda score: …`;
            `explain`: `functools.partial(metrics.max_sensitivity, …)`; `make_explain`: `metrics.parameter_randomization`; `method`: `functools.partial(metrics.input_invariance, score=…)`;
            `attribution`: a finished measure, `metrics.sparseness()`, `metrics.pointing_game()` (with `masks`), `metrics.pixel_flipping(score)`.
        make_score: `make_score(params) -> score`, for metrics that put in other weights: `lambda params: jx.logit(functools.partial(net.apply, params))`.
        batch_size: explanations per compiled chunk; see `batched`. Measures of maps take all methods together, and fewer examples, at least
            one.
        in_axes: for each of (x, *args) 0 or None, as in `batched`: weights as an argument are the same for all examples.
        progress: show a progress bar.

    Returns:
        `run(xs, *args, masks=None, params=None, key=None)`: arguments with a leading axis of examples; `masks` for metrics of a map and a mask; `params` for those of weights;
        `key` where a method or a metric draws. It returns a `Comparison`: values per example, means, intervals, paired differences, a table. Weights that `score` closes over
        are those of the first call, as under `jax.jit`: after training build `run` again, or make them an argument.

    Guarantees: each method's maps are computed once. Example i and metric m have the same draws for every method, derived from `key`, i and the name of m
    alone: adding a method or a metric changes no other number but for rounding, and differences are paired. Random weights are drawn once for all examples, so that intervals are over
    examples alone. An explainer's own draws are shared, too: that `random_map` has a max sensitivity of 0 says that it does not look at x.
    Cost: Σ over methods of (one explanation + Σ of the metrics' costs), for each example; less what depends on the draws alone, which is evaluated once for all
    methods (`sensitivity_n`, `faithfulness_correlation`, `infidelity`, `completeness`). Memory: the maps of all methods, on the host.
    Errors: a metric whose first argument has another name; masks, params or a key that are needed and missing; maps that repeat the value of a group at each of its
    features (seen of this library's explainers, not through a function of yours); those of methods and metrics. An example for which a metric has no value (NaN) is left out of its mean, and the table shows how many have one.
    Differs from: Quantus' `evaluate` has neither intervals nor paired differences, and goes on after an exception.

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

    def maps(self, method: str, compute: Callable[[], Any]) -> Any:
        """The maps of all examples."""
        del method
        return compute()

    def columns(self, metric: str, methods: Sequence[str], compute: "Columns") -> dict[str, np.ndarray]:
        """The cells of one metric. Metrics that explain again ask for one method at a time, others for all methods."""
        del metric
        return compute(methods)


Columns: TypeAlias = Callable[[Sequence[str]], dict[str, np.ndarray]]  # method → one number for each example


def scheduled(
    score: Callable[..., Any],
    methods: Mapping[str, Callable[..., Any]],
    metrics: Mapping[str, Callable[..., Any]],
    *,
    make_score: Callable[[Any], Callable[..., Any]] | None,
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
        beside = axes(n_args) if kinds[name] in ("score", "attribution, x") else (0,) * n_args
        return over_examples(of_maps[name], (0, *beside), max(1, batch_size // n_methods), "keep")

    @functools.cache
    def of_one(name: str, method: str) -> _OverExamples:
        made = metrics[name](explains[method] if kinds[name] == "explain" else methods[method])
        return over_examples(made, in_axes, batch_size, "keep")

    @functools.cache
    def of_weights(name: str, method: str, n_args: int, fixed: _Fixed) -> _OverExamples:
        measure = metrics[name](lambda params: methods[method](make_score(params)))  # type: ignore[misc]
        needs_key = getattr(measure, "needs_key", False)

        def with_weights(arrays: Any, key: Any, *args: Any) -> Any:
            params = fixed.filled(arrays)
            return measure(params, *args, key=key) if needs_key else measure(params, *args)

        return over_examples(with_weights, (None, None, *axes(n_args)), batch_size, "keep", draws_once=needs_key)

    def run(xs: Any, *args: Any, masks: Any = None, params: Any = None, key: jax.Array | None = None) -> Comparison:
        beside = {"attribution": (), "attribution, mask": (masks,), "score": (xs, *args), "attribution, x": (xs, *args)}
        n_args = 1 + len(args)
        _require_data(
            [a for a, axis in zip((xs, *args), axes(n_args), strict=False) if axis == 0], masks, params, kinds
        )
        arrays, fixed = _apart(params)
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
        def maps_of(method: str) -> Any:
            return cells.maps(method, lambda: explainers[method](xs, *args, key=_named(key, "explanation")))

        def of_maps_together(name: str, together: Sequence[str]) -> dict[str, np.ndarray]:
            found: dict[str, np.ndarray] = {}
            maps = {method: maps_of(method) for method in together}
            others = beside[kinds[name]]
            for alike in stackable(maps):
                stacked = jax.tree.map(lambda *leaves: np.stack(leaves, 1), *(maps[m] for m in alike))
                columns = of_all(name, len(alike), len(others))(stacked, *others, key=_named(key, name))
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


_AGAIN = ("explain", "method", "make_explain")  # kinds of metrics that explain again, and read no map


class _OverExamples:
    """A function of one example over all of them, with a key if it draws; if it draws once for all of them, its key is an argument."""

    def __init__(self, f: Callable[..., Any], run: Callable[..., Any], draws_once: bool):
        self.needs_key = getattr(f, "needs_key", False)
        self.draws_once = draws_once
        self._run = run

    def __call__(self, *args: Any, key: jax.Array | None) -> Any:
        return self._run(*args, key=key if self.needs_key else None)


@dataclass(frozen=True)
class _Fixed:
    """What is no array in weights: the structure, functions, Python numbers. Programs are compiled for it."""

    tree: Any
    leaves: tuple[Any, ...]  # None where there is an array

    def filled(self, arrays: Sequence[Any]) -> Any:
        left = iter(arrays)
        return jax.tree.unflatten(self.tree, [next(left) if leaf is None else leaf for leaf in self.leaves])


def _apart(params: Any) -> tuple[list[Any], _Fixed]:
    leaves, tree = jax.tree.flatten(params)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    fixed = tuple(None if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    return [leaf for leaf, array in zip(leaves, is_array, strict=True) if array], _Fixed(tree, fixed)


class OverMethods:
    """A measure of a map, of the maps of many methods at once, stacked along their first axis.

    With the same draws for all of them. Where what the score is asked depends on the draws alone, as in `sensitivity_n`, it is asked once: under `vmap` only
    the maps have an axis of methods.
    """

    def __init__(self, measure: Callable[..., Any]):
        self.measure = measure
        self.needs_key = self.stochastic = getattr(measure, "needs_key", False)

    def __call__(self, maps: Any, *args: Any, **key: Any) -> Any:
        return jax.vmap(lambda one: self.measure(one, *args, **key))(maps)


def stackable(maps: Mapping[str, Any]) -> list[list[str]]:
    """The names of maps that can be stacked: of the same structure, shapes and dtypes."""
    groups: dict[Any, list[str]] = {}
    for name, tree in maps.items():
        leaves, structure = jax.tree.flatten(tree)
        groups.setdefault((structure, tuple((a.shape, a.dtype) for a in leaves)), []).append(name)
    return list(groups.values())


def _require_functions(score: Any, methods: Any, metrics: Any) -> None:
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


def _require_maker(make_score: Any, names: list[str]) -> None:
    if not callable(make_score):
        raise SettingError(
            explain_error(
                f"metrics.compare: {', '.join(names)} puts other weights into the score.",
                got=f"make_score={make_score!r}",
                why="weights that a score closes over cannot be replaced",
                fix="compare(…, make_score=lambda params: jx.logit(functools.partial(apply, params)))(xs, labels, params=params)",
            )
        )


def _require_values_of_features(explains: Mapping[str, Any]) -> None:
    """Metrics sum a map over features: the value of a group of 16 would count 16 times."""
    for name, explain in explains.items():
        if getattr(explain, "repeats_groups", False):
            raise SettingError(
                explain_error(
                    f"metrics.compare: in the maps of {name!r} every feature carries the value of its whole group.",
                    why="metrics sum over features, and would count a group as often as it has features",
                    fix=f"functools.partial(jx.{explain.method}, groups=…, share=True)",
                )
            )


def _require_data(mapped: Sequence[Any], masks: Any, params: Any, kinds: Mapping[str, str]) -> None:
    is_stream = any(isinstance(a, Iterator) for a in mapped)
    n = set() if is_stream else {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(mapped)}
    if not n or () in n:
        raise StructureError(
            explain_error(
                "metrics.compare: needs arrays with a leading axis of examples.",
                got="an iterator" if is_stream else "numbers without an axis",
                fix=(
                    "compare(score, methods, metrics)(xs, labels)",
                    "what is the same for all examples: in_axes=(0, None)",
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
                fix="a mean, or a number of its curve: lambda attribution: measure(attribution).mean()",
            )
        )
    return found


def _named(key: jax.Array | None, name: str) -> jax.Array | None:
    """A key that depends on the name alone, not on what else is measured."""
    return None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))


def _kind(name: str, metric: Callable[..., Any]) -> str:
    """What a metric is made from, or what a finished measure reads, by the names of its first arguments."""
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
                f"metrics.compare: cannot tell what the metric {name!r} takes.",
                got=f"arguments {', '.join(names)}" if names else "no arguments",
                need="score, explain, make_explain, method or attribution as the first one",
                why="a metric is told apart by the name of its first argument",
                fix=(
                    "what has to be called first: jx.metrics.sparseness()",
                    "functools.partial(jx.metrics.pixel_flipping, groups=jx.patches(4, 4))",
                    "lambda score: jx.metrics.faithfulness_estimate(score, baseline=0.5)",
                    "lambda explain: jx.metrics.max_sensitivity(explain, …)",
                ),
            )
        )
    return kind
