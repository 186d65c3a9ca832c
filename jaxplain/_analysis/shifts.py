"""What is subtracted before an exponential for safety, where the exponential is part of no softmax that the analysis knows."""

from collections.abc import Collection

from jaxplain._ir import primitives
from jaxplain._ir.graph import Equation, Graph, Value, equations_inside

# What a shift may go through on its way from the maximum to the exponential.
_SHIFTING = (
    primitives.STRUCTURAL
    | primitives.MAXIMUM
    | primitives.PRODUCTS
    | {"clamp", "convert_element_type", "neg", "select_n"}
)


def unrecognized_shifts(graph: Graph, recognized: Collection[Equation]) -> set[Equation]:
    """Gradients stopped at a maximum that is subtracted, for safety, in an exponential; `recognized` are the equations of softmax nodes.

    Whoever stopped them knew that the shift cancels: to follow it is to follow the function.
    """
    equations = list(equations_inside(graph))
    users: dict[Value, list[Equation]] = {}
    within: dict[Value, list[Value]] = {}  # what a value is called in the bodies that read it
    for equation in equations:
        for value in equation.inputs:
            users.setdefault(value, []).append(equation)
        operands = equation.inputs[1:] if equation.primitive == "cond" else equation.inputs
        for body in equation.bodies:
            for value, inner in zip(operands, body.inputs, strict=True):
                within.setdefault(value, []).append(inner)
    maxima = {v for e in equations if e.primitive in primitives.MAXIMUM for v in e.outputs}

    def reached(value: Value, through: frozenset[str]) -> list[Value]:
        found = [value]
        for v in found:
            on = [e.outputs[0] for e in users.get(v, []) if e.primitive in through]
            found.extend(w for w in (*on, *within.get(v, [])) if w not in found)
        return found

    def is_behind_maximum(value: Value) -> bool:
        source = value.source
        return value in maxima or (
            source is not None and source.primitive in _SHIFTING and any(map(is_behind_maximum, source.inputs))
        )

    def is_shift(stop: Equation) -> bool:
        shifts = reached(stop.outputs[0], _SHIFTING)
        sums = {e for v in shifts for e in users.get(v, []) if e.primitive in primitives.SUMS and e not in recognized}
        exponents = (w for e in sums for w in reached(e.outputs[0], _SHIFTING))
        is_exponent = any(e.primitive in ("exp", "exp2", "expm1") for w in exponents for e in users.get(w, []))
        return is_exponent and (is_behind_maximum(stop.inputs[0]) or not maxima.isdisjoint(shifts))

    return {e for e in equations if e.primitive == "stop_gradient" and is_shift(e)}
