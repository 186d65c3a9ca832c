"""The protocol that every method keeps: `method(f, **settings) -> explain`, `explain(x, *args) -> attribution`.

A method is written as one function `compute(call, key, with_info) -> (leaves, Info | None)` over a `Call`: the
explained leaves of one call and the score as a function of them. Everything else, from arguments and dtypes to keys
and `with_info`, is here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax

from jaxplain._arguments import Arguments
from jaxplain._checks import one_key, require_callable
from jaxplain._errors import SettingError, explain_error
from jaxplain._ir.program import Program, stage_score
from jaxplain._leaves import cast_like, total, upcast, wide_dtype
from jaxplain._types import Leaves


@jax.tree_util.register_static
@dataclass(frozen=True)
class LayerName:
    """The layer that a map is of; static, so that it passes through `jit` and `vmap` as it is.

    Attributes:
        path: its name, where it has one.
        kind: the operation that makes it.
        shape: of the value.
        source: the user's source line.
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
    """

    value: jax.Array | None = None
    baseline_value: jax.Array | None = None
    gap: jax.Array | None = None
    residual: jax.Array | None = None
    root: Any = None
    standard_error: Any = None
    n_steps: jax.Array | None = None
    n_gradients: jax.Array | None = None
    n_evaluations: jax.Array | None = None
    converged: jax.Array | None = None
    layer: LayerName | None = None


def sum_gap(leaves: Leaves, value: jax.Array, baseline_value: jax.Array | float = 0.0) -> jax.Array:
    """Σ attribution − (value − baseline_value), in the attribution's precision (a bf16 score has 3 digits)."""
    summed = total(leaves)
    return summed - (value.astype(summed.dtype) - baseline_value)


class Call:
    """One call of an explainer: the explained leaves, and the score staged as a function of them."""

    def __init__(self, arguments: Arguments, program: Program):
        self.arguments = arguments
        self.program = program
        self.x: Leaves = upcast(arguments.leaves)

    def _native(self, point: Leaves) -> Leaves:
        # The model sees the dtype it was given; paths and sums around it are float32 or better.
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
    f: Callable[..., Any],
    args: tuple,
    *,
    argnums: int | Sequence[int],
    allow_random: bool,
    differentiated: bool = True,
) -> Call:
    """The score `f` at `args`, staged as a function of the explained leaves."""
    arguments = Arguments(method, args, argnums)

    def score(leaves: Leaves) -> Any:
        return f(*arguments.fill(leaves))

    program = stage_score(method, score, arguments.leaves, allow_random=allow_random, differentiated=differentiated)
    return Call(arguments, program)


class Compute(Protocol):
    def __call__(self, call: Any, key: Any, with_info: bool, /) -> tuple[Any, Info | None]: ...


class Explainer:
    """What every method returns: call it as `explain(x, *args)` to get the attribution of `x`.

    It is a pure function of its arguments: `jit`, `vmap`, `grad` and `shard_map` apply to it as to any other. Arguments
    are those of the explained function. `key` is the random key of stochastic methods (others ignore it).
    """

    def __init__(
        self,
        method: str,
        evaluate: Callable[[tuple, Any, bool], tuple[Any, Info | None]],
        *,
        argnums: int | Sequence[int],
        stochastic: bool = False,
        key: jax.Array | None = None,
        gradient_call: Callable[[tuple], "Call"] | None = None,
        repeats_groups: bool = False,
    ):
        """`repeats_groups`: every feature carries the value of its whole group, which sums over features count many times."""
        self.method = method
        self.gradient_call = gradient_call  # of `gradient` itself: its staged call, for methods that average gradients
        self.argnums = argnums
        self.stochastic = stochastic
        self.needs_key = stochastic and key is None
        self.repeats_groups = repeats_groups
        self._evaluate = evaluate
        self._key = key if stochastic else None
        self.__name__ = self.__qualname__ = method

    def __call__(self, *args: Any, key: jax.Array | None = None) -> Any:
        return self.run(args, key, with_info=False)[0]

    def run(self, args: tuple, key: jax.Array | None, *, with_info: bool) -> tuple[Any, Info | None]:
        """The attribution, with `Info` if asked for. Wrappers call this; users call `with_info(explain)`."""
        if self.stochastic:
            key = one_key(self.method, self._key if key is None else key)
        return self._evaluate(args, key, with_info)

    def __repr__(self) -> str:
        return f"<jaxplain explainer {self.method}>"


def make_explainer(
    method: str,
    f: Callable[..., Any],
    compute: Compute,
    *,
    argnums: int | Sequence[int],
    allow_random: bool,
    stochastic: bool = False,
    key: jax.Array | None = None,
    is_gradient: bool = False,
    differentiated: bool = True,
    repeats_groups: bool = False,
) -> Explainer:
    """An explainer of the score `f` from `compute`, the method's mathematics over a `Call`; `is_gradient`: it is ∇f.

    With `differentiated=False` it takes scores without a reverse-mode derivative, too.
    """
    require_callable(method, f)

    def stage(args: tuple) -> Call:
        return stage_call(method, f, args, argnums=argnums, allow_random=allow_random, differentiated=differentiated)

    def evaluate(args: tuple, key: Any, with_info: bool) -> tuple[Any, Info | None]:
        call = stage(args)
        leaves, info = compute(call, key, with_info)
        return call.arguments.attribution(leaves), info

    gradient_call = stage if is_gradient else None
    return Explainer(
        method,
        evaluate,
        argnums=argnums,
        stochastic=stochastic,
        key=key,
        gradient_call=gradient_call,
        repeats_groups=repeats_groups,
    )


class with_info:  # noqa: N801 - used as a function: with_info(explain)(x, *args)
    """`with_info(explain)(x, *args)` returns `(attribution, Info)` where `explain` returns the attribution alone.

    The attribution is the same; `Info` is a NamedTuple of arrays, so the pair passes through `jit` and `vmap`:
    `jax.jit(jax.vmap(jx.with_info(explain)))(xs, labels)`. A plain function as `explain` has an `Info` of `None`s.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.integrated_gradients(lambda x: jnp.sum(x**3), n_steps=4)
        >>> attribution, info = jx.with_info(explain)(jnp.array([1.0, 2.0]))
        >>> print(attribution, info.value, abs(info.gap) < 1e-5)
        [1. 8.] 9.0 True
    """

    def __init__(self, explain: Callable[..., Any]):
        require_callable("with_info", explain)
        behind = explainer_behind(explain)
        if behind is not None and (behind is not explain or isinstance(explain, with_info)):
            raise SettingError(
                explain_error(
                    "with_info: takes the explainer itself, before any JAX transform.",
                    got=f"{type(explain).__name__} around an explainer, whose info is out of reach",
                    fix="jax.jit(jax.vmap(jx.with_info(explain)))",
                )
            )
        self.explain = explain
        self.method = getattr(explain, "method", "with_info")
        self.argnums = getattr(explain, "argnums", 0)
        self.needs_key = getattr(explain, "needs_key", False)
        self.stochastic = getattr(explain, "stochastic", False)

    def __call__(self, *args: Any, key: jax.Array | None = None) -> tuple[Any, Info]:
        if not isinstance(self.explain, Explainer):
            return self.explain(*args) if key is None else self.explain(*args, key=key), Info()
        attribution, info = self.explain.run(args, key, with_info=True)
        return attribution, info or Info()


def explainer_behind(f: Any) -> Any:
    """The explainer (or `with_info`) that jit, vmap, partial … were applied to, or None for a function of the user's."""
    while f is not None and not isinstance(f, Explainer | with_info):
        f = getattr(f, "__wrapped__", None) or getattr(f, "func", None)
    return f


def require_explainer(method: str, explain: Any) -> None:
    """Refuse what would hide the explainer's argnums and key: a partial around it, or `with_info`, which returns a pair."""
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
