"""Hidden layers: a score in two halves, and what flows through a layer between a baseline and the input."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain._accumulate import accumulate
from jaxplain._analysis.activity import ACTIVE, Activity, activities
from jaxplain._arguments import Arguments
from jaxplain._checks import chunk_of, positive_int, require_callable
from jaxplain._errors import InputError, LayerError, SettingError, StructureError, explain_error
from jaxplain._explainer import Explainer, Info, sum_gap
from jaxplain._ir.graph import Graph, Value, flatten
from jaxplain._ir.program import Program, require_scalar
from jaxplain._layers import split as cut
from jaxplain._layers.lookup import Sites
from jaxplain._layers.split import Site
from jaxplain._leaves import cast_like, mapped_like, multiply, subtract, upcast
from jaxplain._quadrature import nodes_and_weights
from jaxplain._references import References
from jaxplain._types import Leaves


class Inside:
    """A staged function in which values can be found and replaced; `arrays` are what it is a function of."""

    def __init__(self, method: str, program: Program, arrays: Sequence[Any]):
        self.method = method
        self.program = program
        self.arrays = tuple(arrays)

    @cached_property
    def graph(self) -> Graph:
        # Calls with a derivative of their own stay whole: both halves may be differentiated.
        return flatten(self.program.closed, opens=lambda *_: False, each_call=True)

    @cached_property
    def activity(self) -> dict[Value, Activity]:
        return activities(self.graph, [ACTIVE] * len(self.graph.inputs), look_ups=True)

    def find(self, at: Any) -> list[Site]:
        names = jax.tree.leaves(at)
        if not names:
            raise SettingError(
                explain_error(
                    f"{self.method}: `at` names no layer.", got=repr(at), fix="at='last conv', at='encoder/Block_3'"
                )
            )
        sites = Sites(self.graph, self.activity, self.method)
        return [sites.find(name) for name in names]

    def encode(self, sites: Sequence[Site], arrays: Sequence[Any]) -> list[tuple]:
        return cut.encode(self.graph, sites, arrays)

    def decode(self, sites: Sequence[Site], given: Sequence[tuple], arrays: Sequence[Any]) -> Any:
        outputs = cut.decode(self.graph, sites, given, arrays)
        return jax.tree.unflatten(jax.tree.structure(self.program.out_shape), map(jnp.asarray, outputs))


def staged(method: str, f: Callable[..., Any], args: tuple, argnums: int | Sequence[int], allow_random: bool) -> Inside:
    """One call of a function. All arrays of the named arguments are abstract, integers too; the rest is closed over as it is."""
    named = argnums if isinstance(argnums, Sequence) else (argnums,)
    if not named or any(not isinstance(position, int) or not -len(args) <= position < len(args) for position in named):
        raise InputError(
            explain_error(
                f"{method}: argnums={argnums!r} does not name arguments of this call.",
                got=f"{len(args)} positional argument(s)",
                fix="count from 0"
                + (", without h: argnums are those of the function that is split" if method == "split" else ""),
            )
        )
    positions = tuple(position % len(args) for position in named)
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
    return Inside(method, program if allow_random else program.refuse_randomness(), arrays)


class Split(NamedTuple):
    """The two halves of a function; unpack them."""

    encode: Callable[..., Any]
    decode: Callable[..., Any]


def split(f: Callable[..., Any], at: Any, *, argnums: int | Sequence[int] = 0, allow_random: bool = False) -> Split:
    r"""`encode, decode = split(f, at)`: a function cut at a layer, `f(x, *args) = decode(encode(x, *args), x, *args)`.

    `encode(x, *args)` returns the value h of the layer, `decode(h, x, *args)` goes on from a value in its place. What bypasses
    the layer (skip connections) is computed from x, so the equation holds for every cut, and $\partial\,\mathrm{decode}/\partial h$ is the
    derivative with respect to that layer alone. Both are ordinary functions: every method applies to `decode` (attribution to a layer)
    and to a unit of `encode` (attribution of a neuron).

    Arguments:
        f: any function of arrays; a score, for the methods of this library.
        at: which layer. A string:

            * the path of a layer, or its end, or a glob: `"encoder/Block_3"`, `"Block_3"`, `"*/attention"`: the value that *leaves* it
              (after its norm, activation and addition). Linen, Haiku and Equinox name layers themselves, Flax NNX with
              `jx.nnx.named(model)`, plain functions with `jax.named_scope`;
            * a tag: the name that `jax.ad_checkpoint.checkpoint_name` gave a value;
            * a position: `"last conv"`, `"first activation"`, with any kind that `jx.layers` lists;
            * any of them followed by `":in"`: the value that *enters*; others that read it keep theirs;
            * a path or tag followed by `"@1"`: the second time that it runs (layers used again, iterations of a scan; `"@-1"`: the last).
              Without it, the values of a scanned layer are stacked along a leading axis; in `decode` each iteration starts anew from its own.

            A full path is that layer, whatever else ends so. Equinox names layers by their classes alone: `"eqx.nn.Linear@2"`.

            Or a function of a row of `jx.layers` that is true for one of them: `lambda node: node.shape == (1, 7, 7, 512)`. Or a list or
            dict of these: h has the same structure. Several in a row: what follows no longer depends on what came before.
        argnums: the arguments that count as input: names of layers are those of what depends on them.
        allow_random: accept a function that draws random numbers.

    Returns:
        `(encode, decode)`. h is an array, or a tuple of them where several leave (in order of the program), of the layer's shape and dtype.

    Guarantees: the equation above, to the last bit where both halves run equation by equation, to rounding where each is compiled;
    derivatives that the model defines itself (`custom_jvp`, `custom_vjp`) stay.
    Cost: `encode` runs what comes before the layer, `decode` what comes after it and what bypasses it. Each call traces f.
    Errors: `LayerError` where no layer or more than one answers, with the candidates; `StructureError` for another h than
    `encode` returns. Layers inside `lax.cond`, `lax.while_loop` and functions with derivatives of their own cannot be cut.
    Differs from: hooks know modules and the last of their calls; this knows any value of the program, each call, each iteration.

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

    def encode(*args: Any) -> Any:
        inside = staged(method, f, args, argnums, allow_random)
        values = inside.encode(_apart(inside.find(at)), inside.arrays)
        return jax.tree.unflatten(structure, [v[0] if len(v) == 1 else v for v in values])

    def decode(h: Any, *args: Any) -> Any:
        inside = staged(method, f, args, argnums, allow_random)
        sites = _apart(inside.find(at))
        parts: list[Any] = []
        try:
            jax.tree.map(lambda _, part: parts.append(part), at, h)
        except ValueError as error:
            raise _other_h(f"{type(h).__name__}: {error}", f"the structure of at={at!r}") from error
        return inside.decode(
            sites, [_given(part, site) for part, site in zip(parts, sites, strict=True)], inside.arrays
        )

    return Split(encode, decode)


def _apart(sites: list[Site]) -> list[Site]:
    """The sites of one split: no value is given twice, or one of the two would be ignored."""
    for i, one in enumerate(sites):
        for other in sites[:i]:
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
                        why="only one can be put in its place: what decode got for the other would be ignored",
                        fix="one of them; of a block and its last layer, either",
                    )
                )
    return sites


def _given(part: Any, site: Site) -> tuple:
    """What is put in place of the values of a site; it must be like them."""
    shapes = site.shapes
    values = (part,) if len(shapes) == 1 else part
    if not isinstance(values, tuple | list) or len(values) != len(shapes):
        raise _other_h(type(part).__name__, f"a tuple of {len(shapes)} arrays", site.name)
    for value, like in zip(values, shapes, strict=True):
        if not isinstance(value, float | int | complex) and not hasattr(value, "dtype"):
            raise _other_h(type(part).__name__, f"{like.dtype}{list(like.shape)}", site.name)
        shape, is_float = jnp.shape(value), jnp.issubdtype(jnp.result_type(value), jnp.inexact)
        if shape != like.shape or is_float != jnp.issubdtype(like.dtype, jnp.inexact):
            got, need = (
                f"{dtype}{list(of)}" for dtype, of in ((jnp.result_type(value), shape), (like.dtype, like.shape))
            )
            raise _other_h(got, need, site.name)
    return tuple(jnp.asarray(value).astype(like.dtype) for value, like in zip(values, shapes, strict=True))


def _is_float(value: Value) -> bool:
    return jnp.issubdtype(value.aval.dtype, jnp.inexact)


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


def conductance(
    f: Callable[..., Any],
    *,
    at: Any,
    baseline: Any = 0.0,
    n_steps: int = 50,
    quadrature: str = "gauss_legendre",
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Layer conductance: how much of $f(x) - f(b)$ flows through each unit of a layer.

    $R_j = \int_0^1 \frac{\partial f}{\partial h_j}(\gamma(\alpha))\, \frac{d h_j(\gamma(\alpha))}{d\alpha}\, d\alpha$ on the straight path
    $\gamma(\alpha) = b + \alpha (x - b)$: integrated gradients, collected at the layer h instead of the input.

    Arguments:
        f: the score, `f(x, *args) -> real scalar` for one example.
        at: the layer, as in `split`; several as a list or dict, each on its own: its conductance does not depend on what else is asked for.
        baseline: one baseline of x: a number, an array like x, or a function of x.
        n_steps, quadrature, chunk_size, argnums, allow_random: as in `integrated_gradients`.

    Returns:
        `explain(x, *args)`, with the structure and shapes of the layer, as `split(f, at).encode` returns it; units of f.

    Guarantees: completeness, Σ R = f(x) − f(b) up to the quadrature, where nothing bypasses the layer; `Info.gap` tells what bypasses it.
    Conductance of the input is integrated gradients. Implementation invariant.
    Cost: for each layer `n_steps` gradients of what comes after it, and as many derivatives of it along the path. Info: value,
    baseline_value, gap (of a single layer), n_steps, n_gradients.
    Differs from: Captum replaces $dh/d\alpha$ by differences between steps, which is exact in the limit only.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> score = lambda x: jax.nn.relu(x[0] - 1) * x[1] + jax.nn.relu(x[1])
        >>> explain = jx.conductance(score, at="last activation", n_steps=100)
        >>> print(round(float(explain(jnp.array([2.0, 3.0]))), 3))
        3.0

    References:
        Dhamdhere, Sundararajan, Yan, How important is a neuron?, ICLR 2019.
    """
    method = "conductance"
    require_callable(method, f)
    positive_int(method, "n_steps", n_steps)
    chunk = chunk_of(method, chunk_size)
    nodes, weights = nodes_and_weights(method, quadrature, n_steps)
    if isinstance(baseline, References):
        raise SettingError(
            explain_error(
                "conductance: takes one baseline.",
                got="jx.references(…)",
                fix="their mean: jax.vmap(lambda b: jx.conductance(f, at=…, baseline=b)(x))(pool).mean(0)",
            )
        )

    def evaluate(args: tuple, _key: Any, with_info: bool) -> tuple[Any, Info | None]:
        arguments = Arguments(method, args, argnums)
        inside = staged(method, f, args, argnums, allow_random)
        require_scalar(method, inside.program.out_shape)
        sites = inside.find(at)
        if stacked := [site.name for site in sites if site.is_stacked]:
            raise LayerError(
                explain_error(
                    f"{method}: `at` names all iterations of a scan at once.",
                    got=repr(stacked[0]),
                    why="what flows through one flows through the next: each has a conductance of its own",
                    fix=f"one of them, at='{stacked[0]}@-1'; several as a list",
                )
            )
        if integers := [site.name for site in sites if not all(_is_float(value) for value in site.values)]:
            raise LayerError(
                explain_error(
                    f"{method}: the layer holds integers.",
                    got=repr(integers[0]),
                    why="nothing flows through what has no derivative",
                    fix="the value that they look up",
                )
            )
        structure = jax.tree.structure(at)
        end = upcast(arguments.leaves)
        start = mapped_like(end, arguments.like(baseline, "baseline", none=lambda x: x))
        delta = subtract(end, start)

        def arrays_at(point: Leaves) -> list[Any]:
            floats = iter(cast_like(point, arguments.leaves))
            return [next(floats) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in inside.arrays]

        def conducted(point: Leaves, direction: Leaves) -> Any:
            h, pull = jax.vjp(lambda point: inside.encode(sites, arrays_at(point)), point)
            # Forward mode, by transposing the pullback: functions with a backward rule of their own have no other.
            (change,) = jax.vjp(lambda g: pull(g)[0], jax.tree.map(jnp.zeros_like, h))[1](direction)
            gradient = [
                jax.grad(lambda h, site=site: inside.decode([site], [h], arrays_at(point)))(h)
                for site, h in zip(sites, h, strict=True)
            ]
            return jax.tree.map(lambda g, c: multiply(*map(upcast, ((g,), (c,))))[0], gradient, change)

        program = Program(method, conducted, start, delta)

        def term(k: jax.Array) -> Any:
            alpha, weight = (jnp.asarray(rule, jnp.result_type(float))[k] for rule in (nodes, weights))
            point = tuple(b + alpha.astype(d.dtype) * d for b, d in zip(start, delta, strict=True))
            return jax.tree.map(lambda r: weight.astype(r.dtype) * r, program(point, delta))

        summed = accumulate(term, n_steps, chunk)
        shaped = [
            tuple(r.astype(s.dtype) for r, s in zip(rs, site.shapes, strict=True))
            for rs, site in zip(summed, sites, strict=True)
        ]
        attribution = jax.tree.unflatten(structure, [v[0] if len(v) == 1 else v for v in shaped])
        if not with_info:
            return attribution, None
        values = [upcast((inside.program(tuple(arrays_at(point))),))[0] for point in (end, start)]
        gap = sum_gap(tuple(jax.tree.leaves(summed)), *values) if len(sites) == 1 else None
        n_gradients = jnp.int32(n_steps * len(sites))
        info = Info(
            value=values[0], baseline_value=values[1], gap=gap, n_steps=jnp.int32(n_steps), n_gradients=n_gradients
        )
        return attribution, info

    return Explainer(method, evaluate, argnums=argnums)
