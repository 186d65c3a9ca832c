"""Tracks which axes of an intermediate value come from rows, columns or tokens of the input, and which are channels.

Every axis of the input has an origin. Convolutions, poolings, data movement and elementwise equations keep the origins
of axes. A contraction with weights drops the origins of the axes that it sums over and makes an axis with origin
CHANNEL. A value whose axes have places of the input and channels as origins is a *map*, in any layout, and the part of
the input that an element of it stands for is known. For example, for an image x of shape (32, 32, 3):

    x[None]                   (1, 32, 32, 3)     None, row, column, color
    conv_general_dilated      (1, 16, 16, 64)    None, row in 16 steps, column in 16 steps, CHANNEL
    reshape                   (1, 256, 64)       None, (row, column) in 16 x 16 steps, CHANNEL
    concatenate a token       (1, 257, 64)       None, (row, column) from position 1 on, CHANNEL

An equation *mixes* places if an output element reads several of them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeGuard

from jaxplain import _compat
from jaxplain._analysis.activity import ACTIVE, CONSTANT, Activity
from jaxplain._ir.dataflow import Domain, forward
from jaxplain._ir.graph import Equation, Graph, Value, broadcast_axes, flatten
from jaxplain._ir.primitives import AxisRule, Trait


class AxisOrigin(NamedTuple):
    """The places of an input that the positions along an axis correspond to: a grid in row-major order.

    Attributes:
        of: Number of the input and its axis, for each axis of the grid.
        sizes: Sizes of the grid. Its axes may be coarser than those of the input.
        start: Index of the first grid cell. Positions outside the grid (for example class tokens) correspond to no
            place.
    """

    of: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    start: int = 0

    def fills(self, size: int) -> bool:
        """Whether all positions of an axis of this size correspond to places."""
        return self.start == 0 and math.prod(self.sizes) == size


CHANNEL = AxisOrigin((), ())  # the origin of an axis that a contraction with weights makes

Origins = tuple[AxisOrigin | None, ...]  # one for each axis of a value


class MapReading(NamedTuple):
    """How to read a value as a map of input number `input`.

    Attributes:
        input: Number of the input.
        channel: Axis of the channels.
        places: Axes that are places, with their origins.
        axes: Axes of the input that the places correspond to, in order.
    """

    input: int
    channel: int
    places: tuple[tuple[int, AxisOrigin], ...]
    axes: tuple[int, ...]


class AxisOrigins:
    """The origins of the axes of all values of a program and of its bodies, and which equations mix places."""

    def __init__(self, graph: Graph, activity: dict[Value, Activity], inputs: Sequence[Origins] | None = None):
        self.graph = graph
        self.activity = activity
        self.mixing: set[Equation] = set()
        starts = [
            tuple(AxisOrigin(((number, axis),), (n,)) for axis, n in enumerate(value.shape))
            for number, value in enumerate(graph.inputs)
        ]
        domain = Domain(
            unknown=_no_origins,
            transfer=self._transfer,
            join=lambda a, b: _common((a, b)),
            unstack=lambda origins: origins[1:],
            stack=lambda origins: (None, *origins),
            observe=self._observe,
        )
        self._origins = forward(graph, starts if inputs is None else inputs, domain)

    def __getitem__(self, value: Value) -> Origins:
        return self._origins.get(value, _no_origins(value))

    def map_of(self, value: Value) -> MapReading | None:
        """How to read a value as a map of one input; None if it has no places, or several axes of unknown origin."""
        origins = self[value]
        places = tuple((axis, origin) for axis, origin in enumerate(origins) if is_place(origin))
        taken = {axis for axis, _ in places}
        others = [axis for axis in range(len(origins)) if axis not in taken]
        wide = [axis for axis in others if value.shape[axis] > 1]
        axes = [of for _, origin in places for of in origin.of]
        if not places or not others or len(wide) > 1 or len({number for number, _ in axes}) > 1:
            return None
        if len(set(axes)) < len(axes):
            return None  # for example attention weights, whose two axes are tokens
        return MapReading(axes[0][0], (wide or others)[-1], places, tuple(axis for _, axis in axes))

    def _transfer(self, equation: Equation, operands: list[Origins]) -> list[Origins]:
        outputs, mixes = self._result(equation, operands)
        if mixes:
            self.mixing.add(equation)
        return outputs or [_no_origins(value) for value in equation.outputs]

    def _observe(self, equation: Equation, operands: list[Origins], outputs: Sequence[Origins]) -> None:
        mixes_inside = any(inner in self.mixing for body in equation.bodies for inner in body.equations)
        if mixes_inside or (not equation.has(Trait.PICK) and _lost(operands, outputs)):
            self.mixing.add(equation)

    def _result(self, equation: Equation, operands: list[Origins]) -> "_Result":
        """The origins of the outputs (None if unknown), and whether the equation mixes places."""
        if all(self.activity[value] is CONSTANT for value in equation.inputs):
            return None, False
        if equation.has(Trait.CUSTOM):
            body = flatten(next(_compat.closed_bodies(equation.origin)), opens=lambda *_: True)
            inside = AxisOrigins(body, _Everything(), operands)
            return [inside[value] for value in body.outputs], bool(inside.mixing)
        if equation.row.axes == "contract":
            return self._contraction(equation, operands)
        rule = None if equation.row.axes is None else _RULES[equation.row.axes]
        return rule(equation, operands) if rule is not None else (None, False)

    def _contraction(self, equation: Equation, operands: list[Origins]) -> "_Result":
        contracted, batch = equation.params["dimension_numbers"]
        shared = tuple(_one((operands[0][i], operands[1][j])) for i, j in zip(*batch, strict=True))
        free: list[AxisOrigin | None] = []
        for side, value in enumerate(equation.inputs):
            own = [axis for axis in range(len(value.shape)) if axis not in (*contracted[side], *batch[side])]
            is_weight = self.activity[value] is CONSTANT
            free += [CHANNEL if is_weight else operands[side][axis] for axis in own]
        summed = [operands[side][axis] for side in (0, 1) for axis in contracted[side]]
        return [(*shared, *free)], any(map(is_place, summed))


class _Everything(dict):
    """An activity that is ACTIVE for every value, for a body that is analyzed on its own."""

    def __missing__(self, _: Value) -> Activity:
        return ACTIVE


def _no_origins(value: Value) -> Origins:
    return (None,) * len(value.shape)


# How the axes of operands become those of the outputs: one function for each word of `Row.axes`. Each maps an equation
# and the origins of its operands to the origins of its outputs (None if unknown) and to whether it mixes places.

_Result = tuple[list[Origins] | None, bool]


def is_place(origin: AxisOrigin | None) -> TypeGuard[AxisOrigin]:
    return origin is not None and math.prod(origin.sizes) > 1


def _lost(operands: Iterable[Origins], outputs: Iterable[Origins]) -> bool:
    """Whether some axis of places is missing from all outputs."""
    kept = {of for origins in outputs for origin in origins if origin for of in origin.of}
    return any(is_place(origin) and not kept.issuperset(origin.of) for origins in operands for origin in origins)


def _common(several: Iterable[Origins]) -> Origins:
    return tuple(axis[0] if len(set(axis)) == 1 else None for axis in zip(*several, strict=True))


def _joined(several: Iterable[Origins]) -> Origins:
    """Origins of the elementwise combination of several values. An origin that one value lacks, another may have.

    An axis that is CHANNEL in one value and a place in another is CHANNEL (a residual branch added to the features of a
    token), unless another axis is CHANNEL already. Then it is a place (an MLP-Mixer, with layers across places).
    """
    columns = [{origin for origin in axis if origin is not None} for axis in zip(*several, strict=True)]
    has_channels = {CHANNEL} in columns
    return tuple(_one(known - {CHANNEL} if has_channels and len(known) > 1 else known) for known in columns)


def _one(origins: Iterable[AxisOrigin | None]) -> AxisOrigin | None:
    known = {origin for origin in origins if origin is not None}
    return CHANNEL if CHANNEL in known else known.pop() if len(known) == 1 else None


def _resized(origin: AxisOrigin | None, old: int, new: int) -> AxisOrigin | None:
    """The origin of an axis after a window slid along it: coarser or finer, over the same part of the input."""
    if origin is None or old == new:
        return origin
    return AxisOrigin(origin.of, (new,)) if len(origin.sizes) == 1 and origin.fills(old) and new > 1 else None


def _elementwise(equation: Equation, operands: list[Origins]) -> _Result:
    (output,) = equation.outputs
    return [_joined(origins for origins in operands if len(origins) == len(output.shape))], False


def _same(equation: Equation, operands: list[Origins]) -> _Result:
    return operands[: len(equation.outputs)], False


def _transpose(equation: Equation, operands: list[Origins]) -> _Result:
    return [tuple(operands[0][axis] for axis in equation.params["permutation"])], False


def _reshape(equation: Equation, operands: list[Origins]) -> _Result:
    # Split both shapes, without axes of size 1, into the shortest stretches with equal numbers of elements. For
    # example, (1, 32, 32, 3) -> (4, 8, 32, 3) has the stretches 32 -> (4, 8), 32 -> 32 and 3 -> 3, and `_regrouped`
    # maps each:     row        -> (row in 4 steps, None)    patches, and the rows in each
    #     column     -> column
    #     color      -> color
    # (16, 16, 64) -> (256, 64) has the stretches (16, 16) -> 256 and 64 -> 64, and 256 is a grid (row, column).
    (operand,), (output,) = equation.inputs[:1], equation.outputs
    if operand.aval.size == 0:
        return None, False
    old = [(origin, n) for origin, n in zip(operands[0], operand.shape, strict=True) if n > 1]
    new = [n for n in output.shape if n > 1]
    origins: list[AxisOrigin | None] = []
    i = j = 0
    while i < len(old):
        a, b, n, m = i + 1, j + 1, old[i][1], new[j]
        while n != m:
            if n < m:
                n, a = n * old[a][1], a + 1
            else:
                m, b = m * new[b], b + 1
        origins += _regrouped(old[i:a], new[j:b])
        i, j = a, b
    wide = iter(origins)
    return [tuple(next(wide) if n > 1 else None for n in output.shape)], False


def _regrouped(old: list[tuple[AxisOrigin | None, int]], new: list[int]) -> list[AxisOrigin | None]:
    """Origins of the axes that a stretch of axes becomes: unchanged, merged into one, or split from one."""
    if len(old) == len(new) == 1:
        return [old[0][0]]
    origins = [origin for origin, n in old if origin is not None and origin.fills(n)]
    if len(origins) < len(old) or min(len(old), len(new)) > 1:
        return [None] * len(new)
    if len(new) == 1:
        return [AxisOrigin(sum((origin.of for origin in origins), ()), sum((origin.sizes for origin in origins), ()))]
    (origin,) = origins
    if origin.sizes == tuple(new):
        return [AxisOrigin((of,), (n,)) for of, n in zip(origin.of, new, strict=True)]
    if len(origin.of) == 1:  # patches, and the positions inside each
        return [AxisOrigin(origin.of, (new[0],)), *[None] * (len(new) - 1)]
    return [None] * len(new)


def _broadcast(equation: Equation, operands: list[Origins]) -> _Result:
    return [tuple(broadcast_axes(equation, operands[0]))], False  # type: ignore[arg-type]


def _convolution(equation: Equation, operands: list[Origins]) -> _Result:
    numbers, output, window = equation.params["dimension_numbers"], equation.outputs[0], equation.inputs[1]
    origins: list[AxisOrigin | None] = [None] * len(output.shape)
    origins[numbers.out_spec[0]] = operands[0][numbers.lhs_spec[0]]
    origins[numbers.out_spec[1]] = CHANNEL
    mixes = False
    for old, tap, new in zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True):
        origin = operands[0][old]
        origins[new] = _resized(origin, equation.inputs[0].shape[old], output.shape[new])
        mixes |= origin is not None and window.shape[tap] > 1
    return [tuple(origins)], mixes


def _window(equation: Equation, operands: list[Origins]) -> _Result:
    operand, sizes = equation.inputs[0], equation.params["window_dimensions"]
    new = equation.outputs[0].shape
    origins = tuple(_resized(*of) for of in zip(operands[0], operand.shape, new, strict=True))
    mixes = any(origin is not None and n > 1 for origin, n in zip(operands[0], sizes, strict=True))
    return [origins] * len(equation.outputs), mixes


def _along(equation: Equation, operands: list[Origins]) -> _Result:
    return operands[:1], operands[0][equation.params["axis"]] is not None


def _reduction(equation: Equation, operands: list[Origins]) -> _Result:
    axes = equation.params["axes"]
    return [tuple(origin for axis, origin in enumerate(operands[0]) if axis not in axes)] * len(equation.outputs), False


def _slice(equation: Equation, operands: list[Origins]) -> _Result:
    params, old = equation.params, equation.inputs[0].shape
    strides = params["strides"] or (1,) * len(old)
    spans = zip(operands[0], old, params["start_indices"], params["limit_indices"], strides, strict=True)
    origins = tuple(_sliced(*span) for span in spans)
    # A slice with several places counts as mixing, because all of its places have a gradient.
    is_part = (
        is_place(a) and b is None and n > 1
        for a, b, n in zip(operands[0], origins, equation.outputs[0].shape, strict=True)
    )
    return [origins], any(is_part)


def _sliced(origin: AxisOrigin | None, n: int, start: int, stop: int, stride: int) -> AxisOrigin | None:
    if origin is None or (start, stop, stride) == (0, n, 1):
        return origin
    if stride == 1 and start <= origin.start and stop >= origin.start + math.prod(origin.sizes):
        return origin._replace(start=origin.start - start)  # class tokens cut off
    new = -(-(stop - start) // stride)
    covers = start < stride and n - stop < stride  # for example every second row, which still covers all of the input
    return _resized(origin, n, new) if covers else None


def _dynamic_slice(equation: Equation, operands: list[Origins]) -> _Result:
    old, new = equation.inputs[0].shape, equation.outputs[0].shape
    return [tuple(origin if n == m else None for origin, n, m in zip(operands[0], old, new, strict=True))], False


def _pad(equation: Equation, operands: list[Origins]) -> _Result:
    old, new = equation.inputs[0].shape, equation.outputs[0].shape
    origins = []
    for origin, n, m, (low, high, inner) in zip(operands[0], old, new, equation.params["padding_config"], strict=True):
        if origin is None or n == m:
            origins.append(origin)
        elif len(origin.sizes) > 1 and inner == 0 and min(low, high) >= 0:
            origins.append(origin._replace(start=origin.start + low))
        else:
            origins.append(_resized(origin, n, m))
    return [tuple(origins)], False


def _concatenate(equation: Equation, operands: list[Origins]) -> _Result:
    along = equation.params["dimension"]
    origins = list(_joined(operands))
    known, offset = [], 0
    for value, operand in zip(equation.inputs, operands, strict=True):
        if (origin := operand[along]) is not None:
            known.append(origin if origin == CHANNEL else origin._replace(start=origin.start + offset))
        offset += value.shape[along]
    origins[along] = known[0] if len(set(known)) == 1 else None
    return [tuple(origins)], False


def _gather(equation: Equation, operands: list[Origins]) -> _Result:
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    operand, output = equation.inputs[0], equation.outputs[0]
    if getattr(numbers, "operand_batching_dims", ()):
        return None, False
    whole = [axis for axis in range(len(operand.shape)) if axis not in numbers.collapsed_slice_dims]
    of_table = [CHANNEL] * len(operand.shape) if set(operands[0]) == {None} else operands[0]
    kept = iter([of_table[axis] if sizes[axis] == operand.shape[axis] else None for axis in whole])
    looked_up = iter(operands[1][:-1])  # an entry that is looked up at a place belongs to that place
    return [
        tuple(next(kept) if axis in numbers.offset_dims else next(looked_up) for axis in range(len(output.shape)))
    ], False


_RULES: dict[AxisRule, Callable[[Equation, list[Origins]], _Result]] = {
    "elementwise": _elementwise,
    "same": _same,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "convolve": _convolution,
    "window": _window,
    "along": _along,
    "reduce": _reduction,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "gather": _gather,
}
