"""Hidden layers: `split` cuts a function in two halves at a layer, and the staged function that it and others cut."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain._analysis.activity import ACTIVE, Activity, activities
from jaxplain._arguments import argument_positions
from jaxplain._checks import checked, require_callable
from jaxplain._errors import LayerError, SettingError, StructureError, explain_error
from jaxplain._ir.graph import Graph, Value, flatten
from jaxplain._ir.program import Program
from jaxplain._layers import split as cut
from jaxplain._layers.lookup import LayerLookup
from jaxplain._layers.split import CutPoint
from jaxplain._types import ArgNums, Args, LayerSpecs, PyTree


class Splittable:
    """A staged function of `arrays` whose values can be found, read and replaced."""

    def __init__(self, method: str, program: Program, arrays: Sequence[jax.Array]):
        self.method = method
        self.program = program
        self.arrays = tuple(arrays)

    @cached_property
    def graph(self) -> Graph:
        # Functions with a derivative of their own stay whole, because both halves may be differentiated.
        return flatten(self.program.closed, opens=lambda *_: False, each_call=True)

    @cached_property
    def activity(self) -> dict[Value, Activity]:
        return activities(self.graph, [ACTIVE] * len(self.graph.inputs), look_ups=True)

    def find(self, at: LayerSpecs) -> list[CutPoint]:
        names = jax.tree.leaves(at)
        if not names:
            raise SettingError(
                explain_error(
                    f"{self.method}: `at` names no layer.", got=repr(at), fix="at='last conv', at='encoder/Block_3'"
                )
            )
        points = LayerLookup(self.graph, self.activity, self.method)
        return [points.find(name) for name in names]

    def encode(self, points: Sequence[CutPoint], arrays: Sequence[Any]) -> list[tuple]:
        return cut.encode(self.graph, points, arrays)

    def decode(self, points: Sequence[CutPoint], given: Sequence[tuple], arrays: Sequence[Any]) -> Any:
        outputs = cut.decode(self.graph, points, given, arrays)
        return jax.tree.unflatten(jax.tree.structure(self.program.out_shape), map(jnp.asarray, outputs))


@checked()
def stage_function(
    method: str, f: Callable[..., Any], args: Args, *, argnums: ArgNums, allow_random: bool
) -> Splittable:
    """Stages one call of any function, as `stage_call` does for a score.

    All arrays in the named arguments are abstract, including integers, because layers of token ids have names, too.
    Other arguments are closed over unchanged.
    """
    positions = argument_positions(method, args, argnums)
    flat, tree = jax.tree.flatten([args[position] for position in positions])
    # Python integers and booleans may be meant for Python.
    chosen = [isinstance(leaf, float | complex) or hasattr(leaf, "dtype") for leaf in flat]
    arrays = tuple(jnp.asarray(leaf) for leaf, is_array in zip(flat, chosen, strict=True) if is_array)

    def run(arrays: tuple) -> Any:
        new = iter(arrays)
        values = [next(new) if is_array else leaf for leaf, is_array in zip(flat, chosen, strict=True)]
        filled = list(args)
        for position, value in zip(positions, jax.tree.unflatten(tree, values), strict=True):
            filled[position] = value
        return f(*filled)

    program = Program(method, run, arrays)
    return Splittable(method, program if allow_random else program.refuse_randomness(), arrays)


class Split(NamedTuple):
    """The two halves of a function; unpack them."""

    encode: Callable[..., Any]
    decode: Callable[..., Any]


@checked()
def split(f: Callable[..., Any], at: LayerSpecs, *, argnums: ArgNums = 0, allow_random: bool = False) -> Split:
    r"""`encode, decode = split(f, at)` cuts a function at a layer: `f(x, *args) = decode(encode(x, *args), x, *args)`.

    `encode(x, *args)` returns the layer's value h; `decode(h, x, *args)` continues from a value in its place. Paths
    that bypass the layer (skip connections) are computed from x, so the equation holds for every cut, and
    $\partial\,\mathrm{decode}/\partial h$ is the derivative with respect to that layer alone. Both halves are ordinary
    functions: apply any method to `decode` (attribution to a layer) or to a unit of `encode` (attribution of a neuron).

    Arguments:
        f: A function of arrays; a score, for the methods of this library.
        at: The layer. A string:

            * the path of a layer, its end, or a glob (`"encoder/Block_3"`, `"Block_3"`, `"*/attention"`): the value
              that *leaves* the layer, after its norm, activation and addition. Linen, Haiku and Equinox name layers
              themselves, Flax NNX with `jx.nnx.named(model)`, plain functions with `jax.named_scope`;
            * a tag: the name that `jax.ad_checkpoint.checkpoint_name` gave a value;
            * a position: `"last conv"`, `"first activation"`, with any kind that `jx.layers` lists;
            * any of these followed by `":in"`: the value that *enters*; other readers of that value keep theirs;
            * a path or tag followed by `"@1"`: its second execution (layers used again, iterations of a scan; `"@-1"`
              is the last). Without it, the values of a scanned layer are stacked along a leading axis; in `decode`,
              each iteration starts from its own value.

            Or a function of a row of `jx.layers` that is true for exactly one row, for example
            `lambda node: node.shape == (1, 7, 7, 512)`. Or a list or dict of these; h then has the same structure.
        argnums: Positions of the input arguments. Only layers that depend on them have names.
        allow_random: Whether to accept a function that draws random numbers.

    Returns:
        `(encode, decode)`. h has the layer's shape and dtype, and is a tuple if several values leave the layer.

    Guarantees: the equation above, to the last bit if both halves run equation by equation, to rounding if each is
    compiled. Derivatives that the model defines itself (`custom_jvp`, `custom_vjp`) are kept.
    Cost: `encode` runs the part before the layer, `decode` the part after it and whatever bypasses it. Each call traces
    f.
    Errors: `LayerError`, with the candidates, if no layer or more than one matches; `StructureError` if h is not like
    the value that `encode` returns. Layers inside `lax.cond`, `lax.while_loop` and functions with derivatives of their
    own cannot be cut.
    Differs from: hooks see modules and the last of their calls. `split` reaches any value, call and iteration.

    Note: a full path always means that layer, even if other paths end with it. Equinox names layers by their class
    alone: `"eqx.nn.Linear@2"`. If the layers follow one another, later ones no longer depend on earlier ones.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> w = jnp.array([[1.0, -1.0], [2.0, 0.5]])
        >>> score = lambda x: jnp.sum(jax.nn.relu(x @ w) ** 2) + x[0]
        >>> encode, decode = jx.split(score, "first activation")
        >>> x = jnp.array([1.0, 2.0])
        >>> h = encode(x)
        >>> print(h, decode(h, x) == score(x), jx.gradient(decode)(h, x))
        [25.  0.] True [1. 1.]
    """
    method = "split"
    require_callable(method, f)
    structure = jax.tree.structure(at)

    def stage(args: Args) -> tuple[Splittable, list[CutPoint]]:
        staged = stage_function(method, f, args, argnums=argnums, allow_random=allow_random)
        return staged, _require_distinct(staged.find(at))

    def encode(*args: Any) -> PyTree:
        staged, points = stage(args)
        values = staged.encode(points, staged.arrays)
        return jax.tree.unflatten(structure, [v[0] if len(v) == 1 else v for v in values])

    def decode(h: PyTree, *args: Any) -> Any:
        staged, points = stage(args)
        parts: list[Any] = []
        try:
            jax.tree.map(lambda _, part: parts.append(part), at, h)
        except ValueError as error:
            raise _other_h(f"{type(h).__name__}: {error}", f"the structure of at={at!r}") from error
        given = [_given(part, point) for part, point in zip(parts, points, strict=True)]
        return staged.decode(points, given, staged.arrays)

    return Split(encode, decode)


def _require_distinct(points: list[CutPoint]) -> list[CutPoint]:
    """Returns `points`; raises if two of them are the same value, because one of the two would be ignored."""
    for i, one in enumerate(points):
        for other in points[:i]:
            is_same = one.run == other.run or None in (one.run, other.run)
            if one.readers is None or other.readers is None:
                by_same = one.readers is other.readers
            else:
                by_same = not one.readers.isdisjoint(other.readers)
            if is_same and by_same and set(one.values) & set(other.values):
                raise LayerError(
                    explain_error(
                        "split: two of the layers in `at` are the same value.",
                        got=f"{other.name!r} and {one.name!r}",
                        why="decode can put only one value in its place and would ignore the other",
                        fix="name one of them (for a block and its last layer, either)",
                    )
                )
    return points


def _given(part: Any, point: CutPoint) -> tuple:
    """`part` as replacements for the values of a point, whose shapes and kinds it must have."""
    shapes = point.shapes
    values = (part,) if len(shapes) == 1 else part
    if not isinstance(values, tuple | list) or len(values) != len(shapes):
        raise _other_h(type(part).__name__, f"a tuple of {len(shapes)} arrays", point.name)
    for value, like in zip(values, shapes, strict=True):
        if not isinstance(value, float | int | complex) and not hasattr(value, "dtype"):
            raise _other_h(type(part).__name__, f"{like.dtype}{list(like.shape)}", point.name)
        shape, is_float = jnp.shape(value), jnp.issubdtype(jnp.result_type(value), jnp.inexact)
        if shape != like.shape or is_float != jnp.issubdtype(like.dtype, jnp.inexact):
            got, need = (
                f"{dtype}{list(of)}" for dtype, of in ((jnp.result_type(value), shape), (like.dtype, like.shape))
            )
            raise _other_h(got, need, point.name)
    return tuple(jnp.asarray(value).astype(like.dtype) for value, like in zip(values, shapes, strict=True))


def _other_h(got: object, need: object, where: str | None = None) -> StructureError:
    return StructureError(
        explain_error(
            "split: `h` is not what `encode` returns.",
            where=where,
            got=got,
            need=need,
            fix="decode(h, x, *args), with h like encode(x, *args) and the arguments of the function itself after it",
        )
    )
