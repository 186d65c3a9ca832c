"""Reads a hidden layer as maps over the input: its place and channel axes, and its values with the channels last."""

import itertools
import math
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain import _compat
from jaxplain._analysis.analyze import Analysis
from jaxplain._analysis.evidence import require_derivative
from jaxplain._errors import LayerError, SettingError, explain_error
from jaxplain._explainer import LayerName
from jaxplain._ir.graph import Value
from jaxplain._ir.program import Program, require_scalar
from jaxplain._layers.axes import AxisOrigin, AxisOrigins, MapReading, is_place
from jaxplain._layers.default_map import last_maps
from jaxplain._layers.split import CutPoint
from jaxplain._leaves import upcast
from jaxplain._split import Splittable
from jaxplain._types import LayerSpecs


class Layout(NamedTuple):
    """The layout of a layer's axes, for layers whose layout the program does not determine. `None` means: infer it.

    Attributes:
        channel_axis: Axis of the channels (the features of a token).
        grid: Shape of the grid of tokens, in row-major order.
        class_tokens: Number of tokens before the grid that correspond to no place.
    """

    channel_axis: int | None = None
    grid: tuple[int, ...] | None = None
    class_tokens: int | None = None


def _is_count(value: Any, minimum: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= minimum


def layout_setting(method: str, name: str, value: Any) -> Layout:
    """A check for layouts."""
    if isinstance(value, Layout):
        axis, grid, tokens = value
        is_grid = grid is None or (isinstance(grid, tuple) and all(_is_count(n, 1) for n in grid))
        is_axis = axis is None or _is_count(axis, -sys.maxsize)
        if is_axis and is_grid and (tokens is None or _is_count(tokens, 0)):
            return value
    raise SettingError(
        explain_error(
            f"{method}: `{name}` must be a jx.Layout of integers.",
            got=repr(value),
            need="an axis, a tuple of lengths, a number of tokens; None for what the program determines",
            fix="layout=jx.Layout(channel_axis=-1)",
        )
    )


class MapLayer:
    """The layer of one call: its maps with the channels last, and the score as a function of it."""

    def __init__(self, staged: Splittable, at: LayerSpecs | None, layout: Layout):
        self.method = staged.method
        self.staged = staged
        require_scalar(self.method, staged.program.out_shape)
        self.axes = AxisOrigins(staged.graph, staged.activity)
        self.point = self._default() if at is None else self._named(at)
        self.map = self._read(layout)

    def _default(self) -> CutPoint:
        points = last_maps(self.axes)
        if len(points) > 1:
            raise LayerError(
                explain_error(
                    f"{self.method}: a map covers one input, but several inputs have a layer of their own.",
                    got=", ".join(f"{point.name} {list(point.values[0].shape)}" for point in points),
                    fix="choose one: argnums=0, or at=…",
                )
            )
        if not points:
            raise LayerError(
                explain_error(
                    f"{self.method}: the score does not pass through any layer that is a map over the input.",
                    why="a class activation map needs a layer with places (rows, columns, tokens) and channels: "
                    "convolutions or tokens, not dense layers of a flattened input or a recurrent state",
                    fix=(
                        "name the layer as in jx.split: at='last conv', at='encoder/Block_3'",
                        "list the layers: print(jx.layers(score)(x))",
                        "a method that needs no such layer: jx.input_x_gradient, jx.integrated_gradients, jx.lrp",
                    ),
                )
            )
        return points[0]

    def _named(self, at: LayerSpecs) -> CutPoint:
        points = self.staged.find(at)
        if len(points) != 1 or len(points[0].values) != 1:
            raise LayerError(
                explain_error(
                    f"{self.method}: `at` must name one value.",
                    got=f"{sum(len(point.values) for point in points)} values at {at!r}",
                    fix="one map for each layer: [jx.grad_cam(score, at=name) for name in names]",
                )
            )
        if points[0].is_stacked:
            raise LayerError(
                explain_error(
                    f"{self.method}: `at` names all iterations of a layer inside a scan at once.",
                    got=f"{at!r}, stacked to {list(points[0].shapes[0].shape)}",
                    fix=f"name one iteration; at='{at}@-1' is the last",
                )
            )
        return points[0]

    def _read(self, layout: Layout) -> MapReading:
        value = self.point.values[0]
        found = self.axes.map_of(value)
        if layout.channel_axis is not None:
            found = self._with_channels_at(value, layout.channel_axis, layout.grid)
        if found is None:
            raise LayerError(
                explain_error(
                    f"{self.method}: the layer is not a map over the input: its place and channel axes are unknown.",
                    where=self.point.name,
                    got=f"shape {list(value.shape)}",
                    need="places that come from rows, columns or tokens of the input, and one axis of channels",
                    fix=(
                        "another layer: at='last conv'",
                        "give it: layout=jx.Layout(channel_axis=-1), and grid=(14, 14), class_tokens=1 for tokens",
                    ),
                )
            )
        is_given = layout.grid is not None or layout.class_tokens is not None
        n_axes = len(found.places[0][1].of)
        if is_given and (len(found.places) > 1 or (layout.grid is not None and len(layout.grid) != n_axes)):
            raise SettingError(
                explain_error(
                    f"{self.method}: `layout` gives a grid or class tokens, but the layer has no such tokens.",
                    where=self.point.name,
                    got=f"grid={layout.grid}, class_tokens={layout.class_tokens} for shape {list(value.shape)}",
                    need=f"one axis of tokens over {n_axes} axes of the input"
                    if len(found.places) == 1
                    else "neither, for rows and columns",
                )
            )
        places = []
        for axis, origin in found.places:
            start = origin.start if layout.class_tokens is None else layout.class_tokens
            sizes = origin.sizes if layout.grid is None else tuple(layout.grid)
            end = start + math.prod(sizes)
            # A grid that the user gives must account for every token.
            if start < 0 or end > value.shape[axis] or (layout.grid is not None and end < value.shape[axis]):
                raise LayerError(
                    explain_error(
                        f"{self.method}: the layer does not contain that grid.",
                        where=self.point.name,
                        got=f"{value.shape[axis]} tokens",
                        need=f"{start} class tokens and {' × '.join(map(str, sizes))} places",
                        fix="layout=jx.Layout(grid=…, class_tokens=…)",
                    )
                )
            places.append((axis, origin._replace(start=start, sizes=sizes)))
        return found._replace(places=tuple(places))

    def _with_channels_at(self, value: Value, channel_axis: int, grid: tuple[int, ...] | None) -> MapReading | None:
        """The layer with its channels at `channel_axis`. Its places are the known ones, or else all other wide axes."""
        shape, origins = value.shape, self.axes[value]
        if not -len(shape) <= channel_axis < len(shape):
            raise SettingError(
                explain_error(f"{self.method}: the layer has no axis {channel_axis}.", got=f"shape {list(shape)}")
            )
        channel = channel_axis % len(shape)
        wide = [axis for axis, n in enumerate(shape) if n > 1 and axis != channel]
        known = {axis: origin for axis, origin in enumerate(origins) if is_place(origin)}
        if channel in known or (known and len(known) < len(wide)):
            raise SettingError(
                explain_error(
                    f"{self.method}: `layout` contradicts the known axes of the layer.",
                    where=self.point.name,
                    got=f"channel_axis={channel_axis} for shape {list(shape)}, whose axes {sorted(known)} are places",
                    need="one axis of channels in addition to the places",
                    fix="name the value before or after its features are split into several axes (heads)",
                )
            )
        if known:
            places = tuple(known.items())
            numbers = {number for origin in known.values() for number, _ in origin.of}
            axes = tuple(axis for origin in known.values() for _, axis in origin.of)
            return (
                MapReading(numbers.pop(), channel, places, axes)
                if len(numbers) == 1 and len(set(axes)) == len(axes)
                else None
            )
        sizes = [(shape[axis],) for axis in wide] if grid is None or len(wide) != 1 else [tuple(grid)]
        chosen = self._axes_of_input([n for size in sizes for n in size]) if wide else None
        if chosen is None:
            return None  # the axes of the input cannot be determined
        of = iter((0, axis) for axis in chosen)
        labels_of = [AxisOrigin(tuple(next(of) for _ in size), size) for size in sizes]
        return MapReading(0, channel, tuple(zip(wide, labels_of, strict=True)), chosen)

    def _axes_of_input(self, sizes: list[int]) -> tuple[int, ...] | None:
        """The axes of the only input that are at least `sizes` long, in order.

        None if there are several inputs or no such axes.
        """
        if len(self.staged.arrays) > 1:
            return None
        shape = self.staged.arrays[0].shape
        fits = [
            axes
            for axes in itertools.combinations([axis for axis, n in enumerate(shape) if n > 1], len(sizes))
            if all(shape[axis] >= n for axis, n in zip(axes, sizes, strict=True))
        ]
        if len(fits) > 1:
            raise LayerError(
                explain_error(
                    f"{self.method}: places of the layer fit several axes of the input.",
                    where=self.point.name,
                    got=f"{list(sizes)} places, input {list(shape)}: axes {' or '.join(map(str, fits))}",
                    why="the program does not determine the axes",
                    fix="a layer nearer to the input whose axes the analysis can follow: at='last conv'",
                )
            )
        return fits[0] if fits else None

    @cached_property
    def name(self) -> LayerName:
        value = self.point.values[0]
        if (source := value.source) is None:
            return LayerName(self.point.name, "", tuple(value.shape), "")
        nodes = Analysis(self.staged.graph, self.staged.activity).all_nodes()
        kind = next((node.kind for node in nodes if value in node.outputs), source.primitive)
        return LayerName(source.path, kind, tuple(value.shape), source.line)

    def evaluated(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The maps, their gradient, and the score. Differentiates only the part after the layer."""

        arrays = self.staged.arrays
        values = self.point.values

        def decode(given: tuple) -> Any:
            given = tuple(_compat.varying_like(g, value.aval) for g, value in zip(given, values, strict=True))
            return self.staged.decode([self.point], [given], arrays)

        after = Program(self.method, decode, tuple(jax.ShapeDtypeStruct(v.shape, v.aval.dtype) for v in values))
        require_derivative(self.method, after.closed)

        def run(arrays: tuple) -> tuple:
            (given,) = self.staged.encode([self.point], arrays)
            value, pullback = jax.vjp(lambda given: self.staged.decode([self.point], [given], arrays), given)
            return given[0], pullback(jnp.ones_like(value))[0][0], value

        maps, gradient, value = upcast(Program(self.method, run, self.staged.arrays)(self.staged.arrays))
        return self.folded(maps), self.folded(gradient), value

    def raw_and_value(self) -> tuple[jax.Array, jax.Array]:
        """The layer as the program computes it, and the score, in one forward pass."""

        def run(arrays: tuple) -> tuple:
            (given,) = self.staged.encode([self.point], arrays)
            return given[0], self.staged.decode([self.point], [given], arrays)

        raw, value = Program(self.method, run, self.staged.arrays)(self.staged.arrays)
        return raw, upcast((value,))[0]

    def value_at(self, x: jax.Array) -> jax.Array:
        """The score with x in place of the input that the map covers."""
        arrays = list(self.staged.arrays)
        arrays[self.map.input] = x.astype(arrays[self.map.input].dtype)
        return upcast((self.staged.program(tuple(arrays)),))[0]

    def tail(self, raw: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The score as a function of the layer as the program computes it."""

        def run(given: jax.Array, arrays: tuple) -> Any:
            return self.staged.decode([self.point], [(given,)], arrays)

        program = Program(self.method, run, raw, self.staged.arrays)
        return lambda given: upcast((program(given, self.staged.arrays),))[0]

    def among_floats(self) -> int:
        """Index, among the float inputs, of the input that the map covers."""
        return sum(jnp.issubdtype(a.dtype, jnp.floating) for a in self.staged.arrays[: self.map.input])

    def folded(self, layer: jax.Array) -> jax.Array:
        """The layer as (*grid, channels), with the grid in the order of the input's axes."""
        for axis, origin in self.map.places:
            layer = lax.slice_in_dim(layer, origin.start, origin.start + math.prod(origin.sizes), axis=axis)
        axes = [axis for axis, _ in self.map.places]
        rest = [axis for axis in range(layer.ndim) if axis not in (*axes, self.map.channel)]  # of size 1
        layer = jnp.transpose(layer, (*rest, *axes, self.map.channel))
        sizes = [n for _, origin in self.map.places for n in origin.sizes]
        layer = layer.reshape(*sizes, layer.shape[-1])
        order = sorted(range(len(sizes)), key=self.map.axes.__getitem__)
        return jnp.transpose(layer, (*order, len(sizes)))

    @property
    def input_axes(self) -> tuple[int, ...]:
        """The axes of the input that the map covers."""
        return tuple(sorted(self.map.axes))

    def up(self, maps: jax.Array, method: str) -> jax.Array:
        """Maps (*grid, …) resized to the places of the input."""
        shape = [self.staged.arrays[self.map.input].shape[axis] for axis in self.input_axes]
        return jax.image.resize(maps, (*shape, *maps.shape[len(shape) :]), method)

    def broadcastable(self, heat: jax.Array) -> jax.Array:
        """A map of the input's size with an axis of length 1 for every other axis of the input."""
        rank = self.staged.arrays[self.map.input].ndim
        return jnp.expand_dims(heat, [axis for axis in range(rank) if axis not in self.input_axes])
