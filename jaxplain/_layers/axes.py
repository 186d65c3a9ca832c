"""Which axes of a value are places of the input: rows, columns and tokens that came through the layers in between.

Every axis of the input has a label. Convolutions, poolings and whatever moves or treats elements one by one hand labels on, a
contraction with weights drops those it sums over and makes an axis without a label: the channels. So a value whose axes are places and
channels is a *map* of the input, and what part of the input an element of it stands for is known, in any layout.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp

from jaxplain import _compat
from jaxplain._analysis.activity import ACTIVE, CONSTANT, Activity
from jaxplain._engine.affine_prefix import is_affine_in
from jaxplain._ir import primitives
from jaxplain._ir.graph import Equation, Graph, Value, broadcast_axes, flatten, varying_axes
from jaxplain._layers.split import Site


class Label(NamedTuple):
    """What the positions along an axis stand for: a grid over axes of an input, in row-major order.

    Attributes:
        of: (number of the input, its axis) for each axis of the grid.
        sizes: of the grid; its axes may be coarser than those of the input.
        start: the position of the first; those before it, and behind the grid, stand for nothing (class tokens).
    """

    of: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    start: int = 0

    def fills(self, size: int) -> bool:
        """Whether all positions of an axis of that size stand for something."""
        return self.start == 0 and math.prod(self.sizes) == size


CHANNEL = Label((), ())  # of an axis that weights have made

Labels = tuple[Label | None, ...]  # one for each axis of a value


class Map(NamedTuple):
    """How to read a value as a map of input number `input`.

    Attributes:
        channel: the axis of its channels.
        places: the axes that are places, with their labels.
        axes: the axes of the input that the places stand for, in order.
    """

    input: int
    channel: int
    places: tuple[tuple[int, Label], ...]
    axes: tuple[int, ...]


class Places:
    """The labels of the values of a program and of its bodies."""

    def __init__(self, graph: Graph, activity: dict[Value, Activity], inputs: Sequence[Labels] | None = None):
        self.graph = graph
        self._activity = activity
        self._labels: dict[Value, Labels] = {}
        self._mixing: set[Equation] = set()
        starts = [
            tuple(Label(((number, axis),), (n,)) for axis, n in enumerate(value.shape))
            for number, value in enumerate(graph.inputs)
        ]
        self.outputs = self._visit(graph, starts if inputs is None else inputs)

    def map_of(self, value: Value) -> Map | None:
        """How a value is a map of one input; None if it is none: no places, or more than one axis that is neither."""
        labels = self.labels(value)
        places = tuple((axis, label) for axis, label in enumerate(labels) if is_place(label))
        taken = {axis for axis, _ in places}
        others = [axis for axis in range(len(labels)) if axis not in taken]
        wide = [axis for axis in others if value.shape[axis] > 1]
        axes = [of for _, label in places for of in label.of]
        if not places or not others or len(wide) > 1 or len({number for number, _ in axes}) > 1:
            return None
        if len(set(axes)) < len(axes):
            return None  # as in the table of who attends to whom
        return Map(axes[0][0], (wide or others)[-1], places, tuple(axis for _, axis in axes))

    def labels(self, value: Value) -> Labels:
        return self._labels.get(value, (None,) * len(value.shape))

    def last_maps(self) -> list[Site]:
        """For each input that has one, the last map that all of its way to the score passes through.

        The gradient is not zero by structure but at one place there.
        """
        return [site for value in self.graph.inputs if (site := self._last_map(self.graph, value)) is not None]

    def _last_map(self, graph: Graph, start: Value) -> Site | None:
        relevant = _between(graph, start, self._activity)
        waists = _waists(graph, start, relevant)
        mixes = False  # whether places mix behind this equation; else only what is selected there has a gradient
        reduced = None  # a layer whose rows, say, are summed already: there may be one before it that has them
        for equation in reversed(relevant):
            waist = waists.get(equation)
            if mixes and waist is not None and self._is_layer(waist):
                found = Site(_name(waist), (waist,))
                if not self._is_reduced(waist):
                    return found
                reduced = reduced or found
            if equation in self._mixing and not mixes:
                mixes = True
                if equation.bodies and (site := self._in_body(equation, waists, start)) is not None:
                    return site
        if mixes and self._is_layer(start):
            return Site(_name(start), (start,))
        return reduced

    def _is_reduced(self, value: Value) -> bool:
        """Whether a value is a reduction over places, but for a factor."""
        while (source := value.source) is not None:
            if source.primitive in _REDUCING:
                return source in self._mixing
            active = [v for v in source.inputs if self._activity[v] is ACTIVE]
            if (
                source.primitive not in primitives.PRODUCTS | primitives.IDENTITY | _FORM | {"convert_element_type"}
                or len(active) != 1
            ):
                return False
            (value,) = active
        return False

    def _is_layer(self, value: Value) -> bool:
        """Whether a value is a map with channels that weights have made: not the input itself, however arranged."""
        return CHANNEL in self._labels[value] and self.map_of(value) is not None

    def _in_body(self, equation: Equation, waists: dict[Equation, Value], start: Value) -> Site | None:
        """The same inside a checkpoint, or the last iteration of a scan, that all passes through in one (carried) value."""
        read = [v for v in equation.inputs if self._activity[v] is ACTIVE]
        if equation.primitive == "cond" or len(read) != 1 or read[0] not in {start, *waists.values()}:
            return None
        (body,) = equation.bodies
        is_scan = equation.primitive == "scan"
        n_consts, n_carry = _compat.scan_counts(equation.origin) if is_scan else (0, len(body.inputs))
        carried = [v for v in body.inputs[n_consts : n_consts + n_carry] if self._activity[v] is ACTIVE]
        site = self._last_map(body, carried[0]) if len(carried) == 1 else None
        if site is None:
            return None
        last = (equation.params["length"] - 1,) if is_scan else ()
        return site._replace(loops=(equation, *site.loops), run=(*last, *(site.run or ())) or None)

    def unlike_pooling(self, value: Value) -> Equation | None:
        """The first equation that keeps the score from being a sum over the places of a map, with equal weights at all of them."""
        pooled = {value: False}
        for equation in _between(self.graph, value, self._activity):
            active = [v for v in equation.inputs if self._activity[v] is ACTIVE]
            states = {pooled.get(v) for v in active}
            if len(states) > 1 or None in states or not self._is_affine(equation, active):
                return equation
            was_pooled, labels = states.pop(), [self._labels[v] for v in equation.outputs]
            still_map = any(is_place(label) for of in labels for label in of)
            if not was_pooled and not self._treats_alike(equation, active[0]):
                return equation
            pooled.update(dict.fromkeys(equation.outputs, was_pooled or not still_map))
        return None if all(pooled.get(v) for v in self.graph.outputs) else value.source

    def _is_affine(self, equation: Equation, active: list[Value]) -> bool:
        """Whether an equation is affine in its active operands whatever x is; which class is looked up may depend on x."""
        held = [v for v in equation.inputs if self._activity[v] not in (ACTIVE, CONSTANT)]
        are_indices = all(jnp.issubdtype(v.aval.dtype, jnp.integer) for v in held)
        looks_up = equation.primitive in ("gather", "dynamic_slice") and are_indices
        is_cast = equation.primitive == "convert_element_type"
        return (not held or looks_up) and (is_cast or is_affine_in(equation, active))

    def _treats_alike(self, equation: Equation, operand: Value) -> bool:
        """Whether an affine equation does the same at each place, or sums over all places (of an axis)."""
        name, output, labels = equation.primitive, equation.outputs[0], self._labels[operand]
        places = [axis for axis, label in enumerate(labels) if is_place(label)]
        if name == "reduce_sum":
            return all(labels[axis].fills(operand.shape[axis]) for axis in places if axis in equation.params["axes"])  # type: ignore[union-attr]
        if name == "reduce_window_sum":
            return _tiles(equation)
        if name not in _ALIKE or equation in self._mixing or _grid(labels) != _grid(self._labels[output]):
            return False
        after = {axis for axis, label in enumerate(self._labels[output]) if is_place(label)}
        varies = name in primitives.PRODUCTS | {"select_n"}
        return not varies or all(v is operand or not v.shape or not varying_axes(v) & after for v in equation.inputs)

    def _visit(self, graph: Graph, inputs: Sequence[Labels]) -> list[Labels]:
        labels = self._labels
        labels.update((value, (None,) * len(value.shape)) for value in graph.constants)
        labels.update(zip(graph.inputs, inputs, strict=True))
        for equation in graph.equations:
            operands = [labels[value] for value in equation.inputs]
            varying = [self._activity[value] is not CONSTANT for value in equation.inputs]
            outputs, mixes = self._through(equation, operands) if any(varying) else (None, False)
            outputs = outputs or [(None,) * len(value.shape) for value in equation.outputs]
            labels.update(zip(equation.outputs, outputs, strict=True))
            if mixes or (equation.primitive not in _SELECTING and _lost(operands, outputs)):
                self._mixing.add(equation)
        return [labels[value] for value in graph.outputs]

    def _through(self, equation: Equation, operands: list[Labels]) -> tuple[list[Labels] | None, bool]:
        """The labels of the outputs of an equation (None: no labels), and whether it mixes places."""
        name = equation.primitive
        if name == "scan":
            return self._loop(equation, operands)
        if name == "cond":
            branches = [self._visit(body, operands[1:]) for body in equation.bodies]
            return [_common(outputs) for outputs in zip(*branches, strict=True)], self._any_mixing(equation.bodies)
        if name in primitives.CUSTOM:
            body = flatten(next(_compat.closed_bodies(equation.origin)), opens=lambda *_: True)
            inside = Places(body, _Everything(), operands)
            return inside.outputs, bool(inside._mixing)
        if equation.bodies:
            return self._visit(equation.bodies[0], operands), self._any_mixing(equation.bodies)
        if name == "dot_general":
            return self._product(equation, operands)
        rule = _RULES.get(name)
        return rule(equation, operands) if rule is not None else (None, False)

    def _product(self, equation: Equation, operands: list[Labels]) -> tuple[list[Labels], bool]:
        contracted, batch = equation.params["dimension_numbers"]
        shared = tuple(_one((operands[0][i], operands[1][j])) for i, j in zip(*batch, strict=True))
        free: list[Label | None] = []
        for side, value in enumerate(equation.inputs):
            own = [axis for axis in range(len(value.shape)) if axis not in (*contracted[side], *batch[side])]
            is_weight = self._activity[value] is CONSTANT
            free += [CHANNEL if is_weight else operands[side][axis] for axis in own]
        summed = [operands[side][axis] for side in (0, 1) for axis in contracted[side]]
        return [(*shared, *free)], any(map(is_place, summed))

    def _any_mixing(self, bodies: Iterable[Graph]) -> bool:
        return any(equation in self._mixing for body in bodies for equation in body.equations)

    def _loop(self, equation: Equation, operands: list[Labels]) -> tuple[list[Labels], bool]:
        """A carry keeps the labels that each iteration leaves as they are: repeat until nothing changes."""
        n_consts, n_carry = _compat.scan_counts(equation.origin)
        consts, carry, scanned = (
            operands[:n_consts],
            operands[n_consts : n_consts + n_carry],
            operands[n_consts + n_carry :],
        )
        while True:
            outputs = self._visit(equation.bodies[0], [*consts, *carry, *(labels[1:] for labels in scanned)])
            kept = [_common(pair) for pair in zip(carry, outputs[:n_carry], strict=True)]
            if kept == carry:
                return [*kept, *((None, *labels) for labels in outputs[n_carry:])], self._any_mixing(equation.bodies)
            carry = kept


class _Everything(dict):
    """The activity of a body that is looked at on its own."""

    def __missing__(self, _: Value) -> Activity:
        return ACTIVE


def _tiles(equation: Equation) -> bool:
    """Whether the windows of a pooling lie side by side and leave nothing out."""
    params, (operand, *_), (output, *_) = equation.params, equation.inputs, equation.outputs
    axes = zip(operand.shape, output.shape, params["window_dimensions"], params["window_strides"], strict=True)
    spread = (*params["base_dilation"], *params["window_dilation"])
    is_plain = all(n == 1 for n in spread) and not any(map(any, params["padding"]))
    return is_plain and all(m * width == n and (stride == width or m == 1) for n, m, width, stride in axes)


def _grid(labels: Labels) -> dict[tuple[int, int], int]:
    """Which axes of inputs are places of a value, and how many there are along each."""
    return {of: n for label in labels if is_place(label) for of, n in zip(label.of, label.sizes, strict=True)}


def _name(value: Value) -> str:
    source = value.source
    return "what enters" if source is None else source.path or source.primitive


def _between(graph: Graph, start: Value, activity: dict[Value, Activity]) -> list[Equation]:
    """The equations on the ways that a derivative takes from `start` to the outputs; from its look-ups, if it is no float."""
    reached, on_the_way = {start}, set()
    for equation in graph.equations:
        active = [v for v in equation.inputs if activity[v] is ACTIVE]
        # What changes with a float, without a derivative, is no way; what is looked up by an integer is where one begins.
        from_integers = not active and activity[start] is not ACTIVE and reached.intersection(equation.inputs)
        if from_integers or reached.intersection(active):
            on_the_way.add(equation)
            reached.update(v for v in equation.outputs if from_integers or activity[v] is ACTIVE)
    ahead = set(graph.outputs)
    relevant = []
    for equation in reversed(graph.equations):
        if equation in on_the_way and ahead.intersection(equation.outputs):
            relevant.append(equation)
            ahead.update(v for v in equation.inputs if activity[v] is ACTIVE)
    return relevant[::-1]


def _waists(graph: Graph, start: Value, relevant: list[Equation]) -> dict[Equation, Value]:
    """Equations after which a single value is all that is left to read of what came before it: every way goes through it."""
    last = {v: index for index, equation in enumerate(relevant) for v in equation.inputs}
    last.update(dict.fromkeys(graph.outputs, len(relevant)))
    alive = {start} if start in last else set()
    waists = {}
    for index, equation in enumerate(relevant):
        alive.update(v for v in equation.outputs if v in last)
        alive = {v for v in alive if last[v] > index}
        if len(alive) == 1:
            (waists[equation],) = alive
    return waists


# How each kind of equation hands labels on: from (equation, labels of its operands) to (labels of its outputs, whether it mixes).

_FORM = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim"})
# What may do the same at every place.
_ALIKE = (
    primitives.AFFINE | primitives.IDENTITY | primitives.WEIGHTED.keys() | _FORM | {"select_n", "optimization_barrier"}
)
_REDUCING = frozenset(
    {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"}
)
_SELECTING = frozenset({"slice", "dynamic_slice", "gather", "squeeze", "split", "unstack", "select_n"})
_Result = tuple[list[Labels] | None, bool]


def is_place(label: Label | None) -> TypeGuard[Label]:
    return label is not None and math.prod(label.sizes) > 1


def _lost(operands: Iterable[Labels], outputs: Iterable[Labels]) -> bool:
    """Whether some axis of places is in no output any more."""
    kept = {of for labels in outputs for label in labels if label for of in label.of}
    return any(is_place(label) and not kept.issuperset(label.of) for labels in operands for label in labels)


def _common(several: Iterable[Labels]) -> Labels:
    return tuple(axis[0] if len(set(axis)) == 1 else None for axis in zip(*several, strict=True))


def _joined(several: Iterable[Labels]) -> Labels:
    """Labels of values that are combined element by element: what one does not tell, another may.

    What is added to channels is one: the features of a token, where a residual branch adds to them. If there are channels besides, then
    what a layer across places has made is added to the places (an MLP-Mixer).
    """
    columns = [{label for label in axis if label is not None} for axis in zip(*several, strict=True)]
    has_channels = {CHANNEL} in columns
    return tuple(_one(known - {CHANNEL} if has_channels and len(known) > 1 else known) for known in columns)


def _one(labels: Iterable[Label | None]) -> Label | None:
    known = {label for label in labels if label is not None}
    return CHANNEL if CHANNEL in known else known.pop() if len(known) == 1 else None


def _resized(label: Label | None, old: int, new: int) -> Label | None:
    """The label of an axis after a window went along it: coarser or finer, but over the same part of the input."""
    if label is None or old == new:
        return label
    return Label(label.of, (new,)) if len(label.sizes) == 1 and label.fills(old) and new > 1 else None


def _elementwise(equation: Equation, operands: list[Labels]) -> _Result:
    (output,) = equation.outputs
    return [_joined(labels for labels in operands if len(labels) == len(output.shape))], False


def _same(equation: Equation, operands: list[Labels]) -> _Result:
    return operands[: len(equation.outputs)], False


def _transpose(equation: Equation, operands: list[Labels]) -> _Result:
    return [tuple(operands[0][axis] for axis in equation.params["permutation"])], False


def _reshape(equation: Equation, operands: list[Labels]) -> _Result:
    (operand,), (output,) = equation.inputs[:1], equation.outputs
    if operand.aval.size == 0:
        return None, False
    old = [(label, n) for label, n in zip(operands[0], operand.shape, strict=True) if n > 1]
    new = [n for n in output.shape if n > 1]
    labels: list[Label | None] = []
    i = j = 0
    while i < len(old):  # the shortest stretches of axes that hold equally many elements
        a, b, n, m = i + 1, j + 1, old[i][1], new[j]
        while n != m:
            if n < m:
                n, a = n * old[a][1], a + 1
            else:
                m, b = m * new[b], b + 1
        labels += _regrouped(old[i:a], new[j:b])
        i, j = a, b
    wide = iter(labels)
    return [tuple(next(wide) if n > 1 else None for n in output.shape)], False


def _regrouped(old: list[tuple[Label | None, int]], new: list[int]) -> list[Label | None]:
    """Labels of the axes that a stretch of axes becomes: the same, one of several, or several of one."""
    if len(old) == len(new) == 1:
        return [old[0][0]]
    labels = [label for label, n in old if label is not None and label.fills(n)]
    if len(labels) < len(old) or min(len(old), len(new)) > 1:
        return [None] * len(new)
    if len(new) == 1:
        return [Label(sum((label.of for label in labels), ()), sum((label.sizes for label in labels), ()))]
    (label,) = labels
    if label.sizes == tuple(new):
        return [Label((of,), (n,)) for of, n in zip(label.of, new, strict=True)]
    if len(label.of) == 1:  # patches, and what is inside of each
        return [Label(label.of, (new[0],)), *[None] * (len(new) - 1)]
    return [None] * len(new)


def _broadcast(equation: Equation, operands: list[Labels]) -> _Result:
    return [tuple(broadcast_axes(equation, operands[0]))], False  # type: ignore[arg-type]


def _convolution(equation: Equation, operands: list[Labels]) -> _Result:
    numbers, output, window = equation.params["dimension_numbers"], equation.outputs[0], equation.inputs[1]
    labels: list[Label | None] = [None] * len(output.shape)
    labels[numbers.out_spec[0]] = operands[0][numbers.lhs_spec[0]]
    labels[numbers.out_spec[1]] = CHANNEL
    mixes = False
    for old, tap, new in zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True):
        label = operands[0][old]
        labels[new] = _resized(label, equation.inputs[0].shape[old], output.shape[new])
        mixes |= label is not None and window.shape[tap] > 1
    return [tuple(labels)], mixes


def _window(equation: Equation, operands: list[Labels]) -> _Result:
    operand, sizes = equation.inputs[0], equation.params["window_dimensions"]
    new = equation.outputs[0].shape
    labels = tuple(_resized(*of) for of in zip(operands[0], operand.shape, new, strict=True))
    mixes = any(label is not None and n > 1 for label, n in zip(operands[0], sizes, strict=True))
    return [labels] * len(equation.outputs), mixes


def _along(equation: Equation, operands: list[Labels]) -> _Result:
    return operands[:1], operands[0][equation.params["axis"]] is not None


def _reduction(equation: Equation, operands: list[Labels]) -> _Result:
    axes = equation.params["axes"]
    return [tuple(label for axis, label in enumerate(operands[0]) if axis not in axes)] * len(equation.outputs), False


def _slice(equation: Equation, operands: list[Labels]) -> _Result:
    params, old = equation.params, equation.inputs[0].shape
    strides = params["strides"] or (1,) * len(old)
    spans = zip(operands[0], old, params["start_indices"], params["limit_indices"], strides, strict=True)
    labels = tuple(_sliced(*span) for span in spans)
    # Several places of a part that is cut out have a gradient, like all places of a whole.
    is_part = (
        is_place(a) and b is None and n > 1
        for a, b, n in zip(operands[0], labels, equation.outputs[0].shape, strict=True)
    )
    return [labels], any(is_part)


def _sliced(label: Label | None, n: int, start: int, stop: int, stride: int) -> Label | None:
    if label is None or (start, stop, stride) == (0, n, 1):
        return label
    if stride == 1 and start <= label.start and stop >= label.start + math.prod(label.sizes):
        return label._replace(start=label.start - start)  # class tokens cut off
    new = -(-(stop - start) // stride)
    covers = start < stride and n - stop < stride  # every second row, say: still all of the input
    return _resized(label, n, new) if covers else None


def _dynamic_slice(equation: Equation, operands: list[Labels]) -> _Result:
    old, new = equation.inputs[0].shape, equation.outputs[0].shape
    return [tuple(label if n == m else None for label, n, m in zip(operands[0], old, new, strict=True))], False


def _pad(equation: Equation, operands: list[Labels]) -> _Result:
    old, new = equation.inputs[0].shape, equation.outputs[0].shape
    labels = []
    for label, n, m, (low, high, inner) in zip(operands[0], old, new, equation.params["padding_config"], strict=True):
        if label is None or n == m:
            labels.append(label)
        elif len(label.sizes) > 1 and inner == 0 and min(low, high) >= 0:
            labels.append(label._replace(start=label.start + low))
        else:
            labels.append(_resized(label, n, m))
    return [tuple(labels)], False


def _concatenate(equation: Equation, operands: list[Labels]) -> _Result:
    along = equation.params["dimension"]
    labels = list(_joined(operands))
    known, offset = [], 0
    for value, operand in zip(equation.inputs, operands, strict=True):
        if (label := operand[along]) is not None:
            known.append(label if label == CHANNEL else label._replace(start=label.start + offset))
        offset += value.shape[along]
    labels[along] = known[0] if len(set(known)) == 1 else None
    return [tuple(labels)], False


def _gather(equation: Equation, operands: list[Labels]) -> _Result:
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    operand, output = equation.inputs[0], equation.outputs[0]
    if getattr(numbers, "operand_batching_dims", ()):
        return None, False
    whole = [axis for axis in range(len(operand.shape)) if axis not in numbers.collapsed_slice_dims]
    of_table = [CHANNEL] * len(operand.shape) if set(operands[0]) == {None} else operands[0]
    kept = iter([of_table[axis] if sizes[axis] == operand.shape[axis] else None for axis in whole])
    looked_up = iter(operands[1][:-1])  # what is looked up at a place belongs to that place
    return [
        tuple(next(kept) if axis in numbers.offset_dims else next(looked_up) for axis in range(len(output.shape)))
    ], False


_RULES: dict[str, Any] = {
    **dict.fromkeys(primitives.ELEMENTWISE, _elementwise),
    **dict.fromkeys(primitives.IDENTITY | {"optimization_barrier"}, _same),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along),
    **dict.fromkeys(_REDUCING, _reduction),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), _window),
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _same,
    "pad": _pad,
    "concatenate": _concatenate,
    "gather": _gather,
}
