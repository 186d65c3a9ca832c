"""The protocol that every method follows: `method(f, **settings) -> explain`, `explain(x, *args) -> attribution`.

A method is written as one function `compute(call, key, with_info) -> (leaves, Info | None)` over a `Call`, i.e. the
explained leaves of one call and the score as a function of them. This module handles everything else: arguments,
dtypes, keys and `with_info`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax

from jaxplain._analysis.evidence import require_derivative
from jaxplain._arguments import Arguments
from jaxplain._checks import one_key, require_callable
from jaxplain._errors import SAFE_FORMULAS, WHY_NOT_FINITE, InputError, NonFiniteError, SettingError, explain_error
from jaxplain._ir.not_finite import is_finite, source_of_nan
from jaxplain._ir.program import Program, stage_score
from jaxplain._leaves import cast_like, same_dtype, total, upcast, wide_dtype
from jaxplain._types import ArgNums, Args, Explain, Leaves, PyTree, Score, traits


@jax.tree_util.register_static
@dataclass(frozen=True)
class LayerName:
    """The layer that a class activation map was computed at. A static pytree, which `jit` and `vmap` leave unchanged.

    Attributes:
        path: Name of the layer, or "".
        kind: Operation that computes it.
        shape: Shape of the layer's output.
        source: The user's source line.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    source: str


class Info(NamedTuple):
    """Diagnostics of an attribution. Fields that a method does not report are `None`.

    Attributes:
        value: The score f(x).
        baseline_value: f(baseline), or its mean over several references.
        gap: Σ attribution − (value − baseline_value), the error of completeness or conservation (units of f).
        residual: Remainder of a Taylor expansion, f(x) − f(root) − Σ attribution (units of f).
        root: Root point of a Taylor expansion, with the structure of x.
        standard_error: Monte-Carlo standard error of each attribution, with the structure of x.
        n_steps: Number of path steps.
        n_gradients: Number of gradients of the score computed for one example, each with its forward pass.
        n_evaluations: Number of further evaluations of the score, i.e. forward passes without a gradient.
        converged: Whether the requested accuracy was reached.
        layer: Layer of a class activation map.
        held: Which leaves of x were held constant, because they hold no floats, and therefore got zeros: with the
            structure of x, True or False for each leaf. `None` if all were explained.
    """

    value: jax.Array | None = None
    baseline_value: jax.Array | None = None
    gap: jax.Array | None = None
    residual: jax.Array | None = None
    root: PyTree = None
    standard_error: PyTree = None
    n_steps: jax.Array | None = None
    n_gradients: jax.Array | None = None
    n_evaluations: jax.Array | None = None
    converged: jax.Array | None = None
    layer: LayerName | None = None
    held: PyTree = None


def sum_gap(leaves: Leaves, value: jax.Array, baseline_value: jax.Array | float = 0.0) -> jax.Array:
    """Σ attribution − (value − baseline_value), in the attribution's precision, because a bf16 score has 3 digits."""
    summed = total(leaves)
    summed, value, baseline = same_dtype(summed, value.astype(summed.dtype), baseline_value)
    return summed - (value - baseline)


class Call:
    """One call of an explainer: the explained leaves and the score, staged as a function of them."""

    def __init__(self, arguments: Arguments, program: Program):
        self.arguments = arguments
        self.program = program
        self.x: Leaves = upcast(arguments.leaves)

    def _native(self, point: Leaves) -> Leaves:
        # The model gets the dtype it was given, although paths and sums around it are in float32 or better.
        return cast_like(point, self.arguments.leaves)

    def value(self, point: Leaves) -> jax.Array:
        """f(point), in float32 or better."""
        out = self.program(self._native(point))
        return out.astype(wide_dtype(out))

    def value_and_gradient(self, point: Leaves) -> tuple[jax.Array, Leaves]:
        """f(point) and ∇f(point), both in float32 or better; one backward pass."""
        out, gradient = self.program.value_and_gradient(self._native(point))
        return out.astype(wide_dtype(out)), upcast(gradient)

    def gradient(self, point: Leaves) -> Leaves:
        return self.value_and_gradient(point)[1]


def stage_call(
    method: str,
    f: Score,
    args: Args,
    *,
    argnums: ArgNums,
    allow_random: bool,
    differentiated: bool = True,
    follows_steps: bool = False,
) -> Call:
    """The score `f` at `args`, staged as a function of the explained leaves; see `make_explainer`."""
    arguments = Arguments(method, args, argnums)

    def score(leaves: Leaves) -> jax.Array:
        return f(*arguments.fill(leaves))

    program = stage_score(method, score, arguments.leaves, allow_random=allow_random, differentiated=differentiated)
    if differentiated and not follows_steps:
        require_derivative(method, program.closed)
    return Call(arguments, program)


class Compute(Protocol):
    """The mathematics of a method: the attribution's leaves and, `with_info`, its diagnostics.

    `key` is a random key if the method is stochastic, and `None` otherwise.
    """

    def __call__(self, call: Call, key: Any, with_info: bool, /) -> tuple[Leaves, Info | None]: ...


class Explainer:
    """The result of every method: call it as `explain(x, *args)` to get the attribution of `x`.

    An explainer is a pure function of its arguments, so `jit`, `vmap`, `grad` and `shard_map` apply to it. It takes the
    arguments of the explained function. `key` is the random key of stochastic methods; others ignore it.

    Attributes:
        method: Name of the method.
        argnums: Positions of the explained arguments.
        stochastic: Whether it uses a random key.
        needs_key: Whether each call needs a `key`, i.e. it is stochastic and was built without one.
        repeats_groups: Whether every feature carries its whole group's value, so that a sum over features counts each
            group several times.
        gradient_call: For `gradient` only, its staged call, for methods that average gradients.

    An attribution that is not finite is an error, if its numbers are known. Under `jit` and `vmap` it is returned;
    `batched` finds it there.
    """

    def __init__(
        self,
        method: str,
        evaluate: Callable[[Args, Any, bool], tuple[PyTree, Info | None]],
        *,
        argnums: ArgNums,
        stochastic: bool = False,
        key: jax.Array | None = None,
        gradient_call: Callable[[Args], Call] | None = None,
        staged: Callable[[Args], Call] | None = None,
        repeats_groups: bool = False,
    ):
        self.method = method
        self.gradient_call = gradient_call
        self.argnums = argnums
        self.stochastic = stochastic
        self.needs_key = stochastic and key is None
        self.repeats_groups = repeats_groups
        self._evaluate = evaluate
        self._staged = staged
        self._key = key if stochastic else None
        self.__name__ = self.__qualname__ = method

    def __call__(self, *args: PyTree, key: jax.Array | None = None, **named: Any) -> PyTree:
        if named:
            raise InputError(
                explain_error(
                    f"{self.method}: arguments of the score are positional.",
                    got=", ".join(f"{name}=…" for name in named),
                    why="`argnums` counts them, and `vmap` maps keyword arguments over their leading axis",
                    fix=(
                        "explain(x, label)",
                        "a fixed setting belongs to the score: lambda x, label: f(x, label, scale=2)",
                    ),
                )
            )
        return self.run(args, key, with_info=False)[0]

    def run(self, args: Args, key: jax.Array | None, *, with_info: bool) -> tuple[PyTree, Info | None]:
        """The attribution, with `Info` if asked for. Wrappers call this; users call `with_info(explain)`."""
        if self.stochastic:
            key = one_key(self.method, self._key if key is None else key)
        attribution, info = self._evaluate(args, key, with_info)
        if not all(map(is_finite, jax.tree.leaves(attribution))) and not _says_failed(info):
            raise NonFiniteError(_not_finite(self.method, None if self._staged is None else self._staged(args)))
        return attribution, info

    def __repr__(self) -> str:
        return f"<jaxplain explainer {self.method}>"


def _says_failed(info: Info | None) -> bool:
    """Whether the info says that the method found no result, for example no root."""
    return info is not None and info.converged is not None and not bool(info.converged)


def _not_finite(method: str, call: Call | None) -> str:
    """The text of the error for an attribution with NaN or infinity, with the line that makes it if it is made at x."""
    going_on = "to get the numbers as they are: jax.jit(explain)(x)"
    value = None if call is None else call.value(call.x)
    if call is not None and value is not None and not is_finite(value):
        return explain_error(
            f"{method}: the score is not finite at the explained input.",
            where=source_of_nan(call.program.closed, call.arguments.leaves),
            got=f"f(x) = {value}",
            why="x or a weight is not finite, or the score has 0/0, log(0) or an overflow",
            fix=("check x, the label and the weights; in half precision try float32", going_on),
        )
    return explain_error(
        f"{method}: the attribution contains NaN or infinity.",
        where=None if call is None else _source_of_slope(call),
        got=None if value is None else f"f(x) = {value}, finite",
        why=f"{WHY_NOT_FINITE}; or the method visits a point (a baseline, a root) where the score is not finite",
        fix=(*SAFE_FORMULAS, going_on),
    )


def _source_of_slope(call: Call) -> str | None:
    """The user's line at which the derivative of a score stops being finite, if it does at x."""
    try:
        program = call.program.value_and_gradient
    except Exception:
        return None
    return source_of_nan(program.closed, call.arguments.leaves)


def make_explainer(
    method: str,
    f: Score,
    compute: Compute,
    *,
    argnums: ArgNums,
    allow_random: bool,
    stochastic: bool = False,
    key: jax.Array | None = None,
    is_gradient: bool = False,
    differentiated: bool = True,
    follows_steps: bool = False,
    repeats_groups: bool = False,
) -> Explainer:
    """An explainer of the score `f` from `compute`.

    Arguments:
        is_gradient: Whether the attribution is ∇f.
        differentiated: Whether the method needs a reverse-mode derivative of `f`; if so, scores without one are
            refused.
        follows_steps: Whether the method itself finds out what the score changes without a derivative; otherwise,
            scores whose evidence passes through rounded values or integers are refused.
    """
    require_callable(method, f)

    def stage(args: Args) -> Call:
        return stage_call(
            method,
            f,
            args,
            argnums=argnums,
            allow_random=allow_random,
            differentiated=differentiated,
            follows_steps=follows_steps,
        )

    def evaluate(args: Args, key: jax.Array | None, with_info: bool) -> tuple[PyTree, Info | None]:
        call = stage(args)
        leaves, info = compute(call, key, with_info)
        info = info and info._replace(held=call.arguments.held)
        return call.arguments.attribution(leaves), info

    gradient_call = stage if is_gradient else None
    return Explainer(
        method,
        evaluate,
        argnums=argnums,
        stochastic=stochastic,
        key=key,
        gradient_call=gradient_call,
        staged=stage,
        repeats_groups=repeats_groups,
    )


class with_info:  # noqa: N801 - used as a function: with_info(explain)(x, *args)
    """`with_info(explain)(x, *args)` returns `(attribution, Info)`, while `explain` returns the attribution alone.

    The attribution is the same. `Info` is a NamedTuple of arrays, so the pair passes through `jit` and `vmap`:
    `jax.jit(jax.vmap(jx.with_info(explain)))(xs, labels)`. If `explain` is a plain function, all of its `Info` is
    `None`.

    Arguments:
        explain: The explainer itself, not a JAX transform of it.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.integrated_gradients(lambda x: jnp.sum(x**3), n_steps=4)
        >>> attribution, info = jx.with_info(explain)(jnp.array([1.0, 2.0]))
        >>> print(attribution, info.value, abs(info.gap) < 1e-5)
        [1. 8.] 9.0 True
    """

    def __init__(self, explain: Explain):
        require_callable("with_info", explain)
        behind = explainer_behind(explain)
        if behind is not None and (behind is not explain or isinstance(explain, with_info)):
            raise SettingError(
                explain_error(
                    "with_info: needs the explainer itself, before any JAX transform.",
                    got=f"{type(explain).__name__} around an explainer, which hides its info",
                    fix="jax.jit(jax.vmap(jx.with_info(explain)))",
                )
            )
        self.explain = explain
        self.method = getattr(explain, "method", "with_info")
        self.argnums, self.stochastic, self.needs_key, self.repeats_groups = traits(explain)

    def __call__(self, *args: PyTree, key: jax.Array | None = None) -> tuple[PyTree, Info]:
        if not isinstance(self.explain, Explainer):
            return self.explain(*args) if key is None else self.explain(*args, key=key), Info()
        attribution, info = self.explain.run(args, key, with_info=True)
        return attribution, info or Info()


def explainer_behind(f: Any) -> Explainer | with_info | None:
    """The explainer (or `with_info`) that jit, vmap, partial … were applied to, or None for a user's own function."""
    while f is not None and not isinstance(f, Explainer | with_info):
        f = getattr(f, "__wrapped__", None) or getattr(f, "func", None)
    return f


def require_explainer(method: str, explain: Explain) -> None:
    """Refuses a partial of an explainer, which hides its argnums and key, and `with_info`, which returns a pair."""
    require_callable(method, explain)
    behind = explainer_behind(explain)
    if isinstance(behind, with_info) or (behind is not None and isinstance(explain, partial)):
        raise SettingError(
            explain_error(
                f"{method}: takes an explainer, not something built around one.",
                got=f"{type(explain).__name__} around {behind!r}",
                fix=(
                    f"bind arguments in the score: jx.{method}(jx.gradient(lambda x: f(x, bound)))",
                    f"info goes outside: jx.with_info(jx.{method}(explain))",
                ),
            )
        )
