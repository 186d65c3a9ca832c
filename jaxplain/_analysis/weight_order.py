"""The order in which a program uses its weights, for metrics that randomize a network layer by layer.

For example, in the gradient of `relu(x @ W1) @ W2` with respect to x,

    a = dot_general x W1     x is data: W1 is used here, in the forward pass
    t = transpose W2         depends on weights only: no use
    g = dot_general ones t   in the scope "transpose": W2 is used here, in the backward pass

the order is W1, W2. Weights that only the backward pass uses are met in the reverse order of the network.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from jaxplain import _compat
from jaxplain._ir.dataflow import Domain, forward
from jaxplain._ir.graph import Equation, flatten
from jaxplain._ir.primitives import Trait

# Indices of the weights that a value is computed from, in order of use; None if it also depends on data.
_Origin: TypeAlias = tuple[int, ...] | None
_DATA = None


def weights_in_order(closed: Any, n_weights: int) -> list[int]:
    """The weights that a program uses, in the order of the forward pass. Its first `n_weights` inputs are the weights.

    A weight is used where it first meets a value that depends on the data. Values of weights alone (casts of all of
    them at the start, norms of kernels) have no position in the network. A product of weights alone, for
    example the gradient of a linear network, uses them in the order in which its factors are multiplied.
    """
    of_data, of_weights = _Uses(), _Uses()
    results: set[int] = set()  # weights that were multiplied with each other before they met data, or the end

    def transfer(equation: Equation, before: list[_Origin]) -> list[_Origin]:
        joined = _join(before)
        if joined is _DATA:
            met = [origin for origin in before if origin is not _DATA]
            products = {i for origin in met if len(origin) > 1 for i in origin if i in of_weights}
            results.update(products)
            of_data.add(equation, [i for origin in met for i in origin if i not in products])
        else:
            met = [origin for origin in before if origin]
            # 1 * w scales a weight; w * v and a contraction are products of the network.
            if equation.has(Trait.WEIGHTED) or (equation.has(Trait.PRODUCT) and len(met) > 1):
                of_weights.add(equation, [origin[0] for origin in met if len(origin) == 1])
        return [joined] * len(equation.outputs)

    graph = flatten(closed, opens=lambda *_: True, all_bodies=True)
    inputs: list[_Origin] = [(i,) if i < n_weights else _DATA for i in range(len(graph.inputs))]
    facts = forward(graph, inputs, Domain(unknown=lambda _: (), transfer=transfer, join=lambda a, b: _join((a, b))))
    results.update(i for value in graph.outputs for i in facts.get(value) or ())
    used = of_data.in_order()
    return used + [i for i in of_weights.in_order() if i in results and i not in used]


class _Uses:
    """Weights in the order of the forward pass, from the equations that use them."""

    def __init__(self) -> None:
        self._in_forward: dict[int, None] = {}
        self._in_backward: dict[int, None] = {}

    def add(self, equation: Equation, weights: Sequence[int]) -> None:
        used = self._in_backward if _is_in_backward_pass(equation) else self._in_forward
        used.update(dict.fromkeys(weights))

    def __contains__(self, weight: int) -> bool:
        return weight in self._in_forward or weight in self._in_backward

    def in_order(self) -> list[int]:
        only_backward = [i for i in self._in_backward if i not in self._in_forward]
        return [*self._in_forward, *reversed(only_backward)]


def _join(origins: Sequence[_Origin]) -> _Origin:
    if any(origin is _DATA for origin in origins):
        return _DATA
    return tuple(dict.fromkeys(i for origin in origins if origin is not _DATA for i in origin))


def _is_in_backward_pass(equation: Equation) -> bool:
    is_back = False
    for entry in equation.scopes:
        # A transposed checkpoint runs forward again first. A user's scope may have the name of the transform.
        is_transpose = entry.name == "transpose" and not _compat.is_scope(entry)
        is_back = entry.name != "rematted_computation" and (is_back or is_transpose)
    return is_back
