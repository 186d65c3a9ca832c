"""The order in which a program uses its weights, for metrics that randomize a network layer by layer.

For example, in the gradient of `relu(x @ W1) @ W2` with respect to x,

    a = dot_general x W1     x is data: W1 is used here, in the forward pass
    t = transpose W2         made of weights alone: no use
    g = dot_general ones t   in the scope "transpose": W2 is used here, on the way back

the order is W1, W2. Weights that only the way back uses are met in the opposite order of the network.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from jaxplain._ir.dataflow import Domain, forward
from jaxplain._ir.graph import Equation, flatten

# The weights that a value is made of (their indices, in order of use), or None if it is made of data, too.
_Origin: TypeAlias = tuple[int, ...] | None
_DATA = None


def weights_in_order(closed: Any, n_weights: int) -> list[int]:
    """The weights that a program uses, in the order of the forward pass. Its first `n_weights` inputs are the weights.

    A weight is used where it first meets a value that depends on the data. Values of weights alone (casts of all of them at the
    start, norms of kernels) have no position in the network.
    """
    there: dict[int, None] = {}
    back: dict[int, None] = {}

    def transfer(equation: Equation, before: list[_Origin]) -> list[_Origin]:
        joined = _joined(before)
        if joined is _DATA:
            met = back if _is_on_the_way_back(equation) else there
            met.update((i, None) for origin in before if origin is not _DATA for i in origin)
        return [joined] * len(equation.outputs)

    graph = flatten(closed, opens=lambda *_: True, while_bodies=True)
    inputs: list[_Origin] = [(i,) if i < n_weights else _DATA for i in range(len(graph.inputs))]
    forward(graph, inputs, Domain(unknown=lambda _: (), transfer=transfer, join=lambda a, b: _joined((a, b))))
    return [*there, *reversed([i for i in back if i not in there])]


def _joined(origins: Sequence[_Origin]) -> _Origin:
    if any(origin is _DATA for origin in origins):
        return _DATA
    return tuple(dict.fromkeys(i for origin in origins if origin is not _DATA for i in origin))


def _is_on_the_way_back(equation: Equation) -> bool:
    is_back = False
    for entry in equation.scopes:
        # A transposed checkpoint runs forward again first.
        is_back = entry.name != "rematted_computation" and (is_back or entry.name == "transpose")
    return is_back
