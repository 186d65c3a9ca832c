"""Evidence that no derivative sees: numbers of the input that reach the score as rounded values or integers.

For example, with constant weights w and a constant table,

    q = round(x / s);  y = (q @ w) * s      y depends on x through q: the derivative sees s alone
    m = x > 0;         y = where(m, x, 0)   m only selects: the derivative of x passes
    e = table[int(x)]; y = sum(e)           y depends on x through the integers, and there is no derivative at all

A rounded value is *followed* to the score. It is lost on the way where it only selects: in comparisons, as the index of
a branch, of an update or of values that carry a derivative themselves. It is also lost in its own remainder v − ⌊v⌋,
whose derivative is that of v, and in `stop_gradient`, with which an author says that it is to be held.

The outcome of a comparison (or a sign) selects, too: as a mask, it multiplies, counts or is added before a softmax. It
counts as a rounded value once constant weights multiply and sum it, as in a binary network.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._analysis.activity import ACTIVE, CONSTANT, Activity, activities
from jaxplain._errors import UnexplainedChangeError, explain_error
from jaxplain._ir.dataflow import Domain, forward, sliced
from jaxplain._ir.graph import Equation, Graph, Value, equations_inside, flatten
from jaxplain._ir.primitives import Trait


class Steps(NamedTuple):
    """The equations whose results a value carries: those that compare, and those that round."""

    compared: frozenset[Equation] = frozenset()
    rounded: frozenset[Equation] = frozenset()

    def and_also(self, other: "Steps") -> "Steps":
        return Steps(self.compared | other.compared, self.rounded | other.rounded)


NONE = Steps()


def require_derivative(method: str, closed: Any) -> None:
    """Raise if some evidence of a staged score, all of whose inputs are explained, passes where no derivative does."""
    closed = _compat.without_dead_code(closed)
    # Calls with derivatives of their own stay whole, because their authors chose what passes.
    graph = flatten(closed, opens=lambda *_: False, all_bodies=True)
    activity = activities(graph, [ACTIVE] * len(graph.inputs))
    (end,) = graph.outputs
    if activity[end] is CONSTANT:
        return
    if activity[end] is not ACTIVE:
        raise UnexplainedChangeError(
            explain_error(
                f"{method}: no path with a derivative leads from the explained input to the score.",
                where=_listed(_ends(graph, activity), closed),
                why="the attribution would be zero everywhere",
                fix=_WAYS_ON,
            )
        )
    if rounded := _followed(graph, activity).get(end, NONE).rounded:
        raise UnexplainedChangeError(
            explain_error(
                f"{method}: a part of the score passes through rounded values or integers, which have no derivative.",
                where=_listed(rounded, closed),
                why="what the input contributes there would get no attribution",
                fix=_WAYS_ON,
            )
        )


_WAYS_ON = (
    "the model's switch for full precision, or its quantization as training passes it: "
    "v + jax.lax.stop_gradient(jnp.round(v) - v)",
    "token ids: pass them as integers, and explain what they look up: "
    'encode, decode = jx.split(score, "embed"); jx.gradient(decode)(encode(ids), ids)',
    "a value that is to be held constant: jax.lax.stop_gradient(…) around it",
    "a method without gradients: jx.ablation, jx.occlusion, jx.shapley_sampling",
)


def _listed(equations: Iterable[Equation], closed: Any) -> str:
    lines = dict.fromkeys(
        f"{e.primitive} → {e.outputs[0].aval.str_short()}: {_compat.line_inside(closed, e.origin)}" for e in equations
    )
    return "\n          ".join(list(lines)[:5])


def _ends(graph: Graph, activity: dict[Value, Activity]) -> Iterator[Equation]:
    """The equations at which derivatives end, among those that the outputs depend on."""
    for equation in sliced(graph.equations, graph.outputs):
        arrives = any(activity[value] is ACTIVE for value in equation.inputs)
        if arrives and not any(activity[value] is ACTIVE for value in equation.outputs):
            inside = [end for body in equation.bodies for end in _ends(body, activity)]
            yield from inside or [equation]


_ROUNDING = (lax.floor_p, lax.ceil_p, lax.round_p)
_COMPARING = (lax.lt_p, lax.le_p, lax.gt_p, lax.ge_p, lax.sign_p)
_SELECTING = (lax.argmax_p, lax.argmin_p, lax.eq_p, lax.ne_p, lax.stop_gradient_p)
_SCATTERS = (
    *(lax.scatter_p, lax.scatter_add_p, lax.scatter_sub_p),
    *(lax.scatter_mul_p, lax.scatter_min_p, lax.scatter_max_p),
)


def _rounds(equation: Equation) -> bool:
    if equation.op is lax.convert_element_type_p:
        return bool(jnp.issubdtype(equation.outputs[0].aval.dtype, jnp.integer))
    return equation.op in _ROUNDING


def _followed(graph: Graph, activity: dict[Value, Activity]) -> dict[Value, Steps]:
    """For every value, the comparisons and the rounding of active values that it carries the results of."""
    remainders = {e: rounded for e in equations_inside(graph) if (rounded := _remainder(e, activity))}
    interpolated: frozenset[Equation] = frozenset().union(*remainders.values())

    def transfer(equation: Equation, before: list[Steps]) -> list[Steps]:
        op, n = equation.op, len(equation.outputs)
        is_active = [activity[value] is ACTIVE for value in equation.inputs]
        if op in _SELECTING:
            return [NONE] * n
        if op in _COMPARING:
            return [Steps(compared=frozenset({equation})) if any(is_active) else NONE] * n
        if op is lax.sort_p:
            return before
        if op is lax.top_k_p:
            return [before[0], NONE]
        if op is lax.select_n_p and any(is_active[1:]):
            before = before[1:]
        elif op is lax.select_n_p:
            before = [Steps(compared=before[0].compared), *before[1:]]
        elif op in _SCATTERS:
            before = [before[0], *before[2:]]
        elif op is lax.dynamic_update_slice_p:
            before = before[:2]
        elif op in (lax.gather_p, lax.dynamic_slice_p):
            # Of a constant table the indices choose what the score gets; what they choose of an active one is active.
            # A table between whose entries the score interpolates has a derivative, too.
            indices = _joined(before[1:]).rounded - interpolated
            before = [before[0]] if is_active[0] else [before[0], Steps(rounded=indices)]
        compared, rounded = _joined(before)
        rounded -= remainders.get(equation, frozenset())
        if _rounds(equation) and any(is_active):
            rounded |= {equation}
        if equation.has(Trait.CONTRACTION) or any(is_active):
            is_weighted = equation.has(Trait.WEIGHTED) and not any(is_active)
            compared, rounded = frozenset(), rounded | compared if is_weighted else rounded
        return [Steps(compared, rounded)] * n

    domain: Domain[Steps] = Domain(
        unknown=lambda _: NONE,
        transfer=transfer,
        join=Steps.and_also,
        # A mask carries no numbers.
        narrow=lambda value, steps: Steps(steps.compared) if value.aval.dtype == bool else steps,
    )
    return forward(graph, [NONE] * len(graph.inputs), domain)


def _joined(several: Sequence[Steps]) -> Steps:
    return reduce(Steps.and_also, several, NONE)


def _remainder(equation: Equation, activity: dict[Value, Activity]) -> frozenset[Equation]:
    """For v − ⌊v⌋ and its like (⌊v⌋ + 1 − v, v − L ⌊v / L + ½⌋, the nearer of two), the equations that round v."""
    if equation.op is not lax.sub_p:
        return frozenset()
    a, b = equation.inputs
    pairs = [(whole, rounded) for whole, rounded in ((a, b), (b, a)) if activity[whole] is ACTIVE]
    steps = (_rounding_of(rounded, _ancestors(whole, activity), activity) for whole, rounded in pairs)
    return frozenset(next(filter(None, steps), ()))


def _ancestors(value: Value, activity: dict[Value, Activity]) -> set[Value]:
    """A value, and what it is scaled and shifted from."""
    found = {value}
    while value.source is not None and value.source.has(Trait.AFFINE):
        varying = [v for v in value.source.inputs if activity[v] is not CONSTANT]
        if len(varying) != 1:
            break
        (value,) = varying
        found.add(value)
    return found


def _rounding_of(value: Value, roots: set[Value], activity: dict[Value, Activity]) -> list[Equation]:
    """The equations that round, if a value is made of `roots` by nothing but rounding, scales, bounds and choices."""
    steps, seen, ahead = [], {*roots}, [value]
    while ahead:
        value = ahead.pop()
        if value in seen or activity[value] is CONSTANT:
            continue
        seen.add(value)
        source = value.source
        if source is None:
            return []
        is_scaled = source.has(Trait.AFFINE) and source.op is not lax.neg_p
        if _rounds(source):
            steps.append(source)
        elif not (is_scaled or source.op in (lax.clamp_p, lax.max_p, lax.min_p, lax.select_n_p)):
            return []
        ahead.extend(source.inputs[1:] if source.op is lax.select_n_p else source.inputs)
    return steps
