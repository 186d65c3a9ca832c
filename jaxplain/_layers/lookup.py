"""Resolves a layer specification (name scope, tag, position or predicate) to values of the traced program."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxplain import _compat
from jaxplain._analysis.activity import CONSTANT, Activity
from jaxplain._analysis.analyze import Analysis
from jaxplain._analysis.nodes import KINDS, LAYERS, Node
from jaxplain._errors import LayerError, SettingError, explain_error
from jaxplain._ir.graph import Equation, Graph, Value, equations_inside, flatten
from jaxplain._ir.primitives import Trait
from jaxplain._layers.split import CutPoint
from jaxplain._layers.table import NodeRow, row

_GRAMMAR = re.compile(r"(?P<name>.+?)(?:@(?P<run>-?\d+))?(?P<entering>:in)?")
_POSITION = re.compile(r"(first|last) (\w+)")
_SHORT = {"conv": ("convolution",), "norm": ("normalization",), "layer": LAYERS, **{kind: (kind,) for kind in KINDS}}
_LISTED = 20  # candidates in a message


class _Call(NamedTuple):
    """The equations of one call of a layer in the program."""

    loops: tuple[Equation, ...]
    graph: Graph
    equations: tuple[Equation, ...]


class LayerLookup:
    """Looks up values of a program by layer name. `method` and `setting` only appear in error messages."""

    def __init__(self, graph: Graph, activity: dict[Value, Activity], method: str, setting: str = "at"):
        self.graph = graph
        self.activity = activity
        self.method = method
        self.setting = setting

    def find(self, at: Any) -> CutPoint:
        """The one cut point that `at` names; otherwise an error that lists the candidates."""
        if callable(at):
            return self._of_nodes(at, "the predicate", entering=False)
        if isinstance(at, str) and at in self._scopes | self._tags:  # taken literally, including special characters
            return self._of_name(at, at, None, "")
        if not isinstance(at, str) or not (parts := _GRAMMAR.fullmatch(at)):
            raise SettingError(
                explain_error(
                    f"{self.method}: `{self.setting}` must name a layer.",
                    got=repr(at),
                    need="a path or glob ('encoder/Block_3', 'Block_3:in', 'Block_3@1'), a tag, 'last conv', "
                    "or a function of a row of jx.layers",
                )
            )
        name, run, entering = parts["name"], parts["run"], parts["entering"] or ""
        if position := _POSITION.fullmatch(name):
            end, kind = position.groups()
            if run is not None:
                raise SettingError(
                    explain_error(
                        f"{self.method}: a position has no number in `{self.setting}`.",
                        got=repr(at),
                        why="'first' and 'last' already select a run",
                        fix=f"'{name}', or the path of the layer with @{run}",
                    )
                )
            if kind not in _SHORT:
                raise SettingError(
                    explain_error(
                        f"{self.method}: unknown kind of layer in `{self.setting}`.",
                        got=repr(at),
                        need=", ".join(_SHORT),
                    )
                )
            return self._of_nodes(lambda node: node.kind in _SHORT[kind], at, entering=bool(entering), end=end)
        return self._of_name(at, name, None if run is None else int(run), entering)

    def _of_nodes(
        self, wanted: Callable[[NodeRow], Any], at: str, *, entering: bool, end: str | None = None
    ) -> CutPoint:
        analysis = Analysis(self.graph, self.activity).with_positions()
        everything = list(_nodes(analysis))
        found = [(loops, node) for loops, node in everything if wanted(row(node, ""))]
        if not found or (end is None and len(found) > 1):
            rows = [row(node, "") for _, node in (found or everything)]
            raise self._not_one(
                at,
                several=bool(found),
                there_are=[f"{r.kind} {list(r.shape)} {r.path or r.source}" for r in rows],
                fix=(
                    "narrow it by kind, shape, path or source: "
                    "lambda node: node.kind == 'convolution' and node.shape == (1, 7, 7, 512)",
                    "'first activation', 'last conv' take the first or last of a kind",
                ),
            )
        loops, node = found[0 if end == "first" else -1]
        lengths = [e.params["length"] for e in loops if e.has(Trait.LOOP)]
        # "last" means the last one that runs.
        run = None if end is None else tuple(0 if end == "first" else n - 1 for n in lengths)
        values = (node.inputs or self._varying(node.others)) if entering else node.outputs
        return self._cut_point(at, loops, values, run, frozenset(node.equations) if entering else None)

    def _of_name(self, at: str, name: str, run: int | None, suffix: str) -> CutPoint:
        target = self._the_one(at, name, run, suffix)
        calls = list(self._calls(self.graph, (), target))
        if run is None and len(calls) > 1:
            n_runs = len(list(_runs(self.graph, calls)))
            raise self._not_one(
                at,
                several=True,
                need=[f"{target.name}@{k}{suffix}" for k in range(n_runs)],
                how="it runs several times",
            )
        iteration = None
        if run is not None:
            runs = list(_runs(self.graph, calls))
            if not -len(runs) <= run < len(runs):
                raise LayerError(
                    explain_error(
                        f"{self.method}: `{self.setting}` asks for a run that does not take place.",
                        got=repr(at),
                        need=f"{target.name} runs {len(runs)} time{'s' * (len(runs) > 1)}: @0 to @{len(runs) - 1}",
                    )
                )
            number, iteration = runs[run]
        loops, graph, equations = calls[number if run is not None else 0]
        inside = frozenset(equations)
        if suffix:
            made = {value for equation in equations for value in equation.outputs}
            values = [v for equation in equations for v in equation.inputs if v not in made]
        else:
            read = {v for equation in graph.equations if equation not in inside for v in equation.inputs}
            values = [v for e in equations for v in e.outputs if v in read or v in graph.outputs]
        return self._cut_point(at, loops, self._varying(values), iteration, inside if suffix else None)

    def _varying(self, values: Iterable[Value]) -> list[Value]:
        """The values that depend on the input. Integers (masks, indices) are included only if there are no floats."""
        varying = [value for value in dict.fromkeys(values) if self.activity[value] is not CONSTANT]
        return [value for value in varying if jnp.issubdtype(value.aval.dtype, jnp.inexact)] or varying

    def _cut_point(
        self,
        name: str,
        loops: tuple[Equation, ...],
        values: Sequence[Value],
        run: tuple[int, ...] | None,
        readers: frozenset[Equation] | None,
    ) -> CutPoint:
        branch = next((equation for equation in loops if equation.has(Trait.BRANCH)), None)
        if branch is not None:
            raise LayerError(
                explain_error(
                    f"{self.method}: cannot cut inside a branch of lax.cond.",
                    where=branch.line,
                    got=repr(name),
                    why="the layer may not run at all",
                    fix="cut before or after the branch; if both sides are cheap, use jnp.where instead of lax.cond",
                )
            )
        return CutPoint(name, tuple(values), loops, run, readers)

    # Scopes and tags

    @cached_property
    def _scopes(self) -> dict[str, None]:
        return dict.fromkeys(scope for equation in self._varying_equations(self.graph) for scope in _around(equation))

    @cached_property
    def _tags(self) -> dict[str, None]:
        return dict.fromkeys(e.params["name"] for e in self._varying_equations(self.graph) if e.op is _compat.NAME)

    def _the_one(self, at: str, name: str, run: int | None, suffix: str) -> "_Name":
        if name in self._scopes and name not in self._tags:
            return _under(name)
        if name in self._tags and name not in self._scopes:
            return _tagged(name)
        found = [scope for scope in self._scopes if fnmatchcase(scope, name) or fnmatchcase(scope, f"*/{name}")]
        # `Block_*` means the blocks, not the scopes inside them.
        found = [s for s in found if not any(s.startswith(f"{outer}/") for outer in found)]
        tags = [tag for tag in self._tags if fnmatchcase(tag, name)]
        if len(found) + len(tags) == 1:
            return _tagged(tags[0]) if tags else _under(found[0])
        if found or tags:
            end = ("" if run is None else f"@{run}") + suffix
            raise self._not_one(
                at, several=True, need=[*(f + end for f in found), *(f"{t}{end} (a tag)" for t in tags)]
            )
        if why := self._out_of_reach(name):
            raise LayerError(
                explain_error(
                    f"{self.method}: the layer cannot be cut.",
                    got=repr(at),
                    why=why,
                    fix="a layer before or around it",
                )
            )
        everything = [*self._scopes, *self._tags]
        last = {path.split("/")[-1]: path for path in reversed(everything)}
        close = [last[word] for word in get_close_matches(name.split("/")[-1], last, n=3)]
        raise self._not_one(at, several=False, need=list(dict.fromkeys([*close, *everything])))

    def _out_of_reach(self, name: str) -> str | None:
        """Why a layer of that name cannot be cut, if the program has one."""

        def is_meant(equation: Equation) -> bool:
            tag = equation.params["name"] if equation.op is _compat.NAME else ""
            return tag == name or any(s == name or s.endswith(f"/{name}") for s in _around(equation))

        for equation in equations_inside(self.graph):
            if is_meant(equation):
                return "it does not depend on the explained input (the arguments in `argnums`, by default the first)"
            bodies = () if equation.bodies else _compat.closed_bodies(equation.origin)
            if any(is_meant(e) for body in bodies for e in equations_inside(flatten(body, equation.scopes))):
                return f"it is inside {equation.primitive} at {equation.line}, which runs as a whole"
        return None

    def _varying_equations(self, graph: Graph) -> Iterator[Equation]:
        for equation in graph.equations:
            if any(self.activity[value] is not CONSTANT for value in equation.outputs):
                yield equation
                for body in equation.bodies:
                    yield from self._varying_equations(body)

    def _calls(self, graph: Graph, loops: tuple[Equation, ...], target: "_Name") -> Iterator[_Call]:
        """Each call of a layer, including calls in bodies. Equations on weights alone belong to no call."""
        calls: dict[object, list[Equation]] = {}
        inner = []
        for equation in graph.equations:
            if all(self.activity[value] is CONSTANT for value in equation.outputs):
                continue
            if target.has(equation):
                calls.setdefault(target.call_of(equation), []).append(equation)
            else:
                inner += [c for body in equation.bodies for c in self._calls(body, (*loops, equation), target)]
        yield from (_Call(loops, graph, tuple(equations)) for equations in calls.values())
        yield from inner

    def _not_one(
        self,
        at: str,
        *,
        several: bool,
        need: Sequence[str] = (),
        there_are: Sequence[str] = (),
        how: str | None = None,
        fix: Sequence[str] = (),
    ) -> LayerError:
        """The error for a name of no or several layers. `need` are names that work, `there_are` lines about layers."""
        candidates = need or there_are
        listed = [f"\n          {line}" for line in candidates[:_LISTED]]
        if len(candidates) > _LISTED:
            listed.append(f"\n          … and {len(candidates) - _LISTED} more")
        which = why = None
        if need:
            which = "".join(("one of", *listed))
            fix = ("one of these names", *(("several at once: a list or dict of names",) if several else ()))
        elif there_are:
            why = "".join(("there are", *listed))
        else:
            why = "no layer of this program has a name"
            fix = (
                "Flax NNX models leave no names: score = jx.logit(jx.nnx.named(model))",
                "name a value in the model: h = jax.ad_checkpoint.checkpoint_name(h, 'h'), or jax.named_scope('h')",
                "by position: 'last conv', 'last activation'; print(jx.layers(score)(x, *args)) lists the kinds",
            )
        return LayerError(
            explain_error(
                f"{self.method}: {'several layers answer' if several else 'no layer answers'} to `{self.setting}`.",
                got=repr(at) + (f"; {how or f'{len(candidates)} layers do'}" if several else ""),
                need=which,
                why=why,
                fix=tuple(fix),
            )
        )


def _around(equation: Equation) -> Iterator[str]:
    """The scopes around an equation, outermost first."""
    parts = equation.path.split("/") if equation.path else []
    return ("/".join(parts[: i + 1]) for i in range(len(parts)))


class _Name(NamedTuple):
    """A name of a layer: the test whether an equation belongs to it, and the call that an equation belongs to."""

    name: str
    has: Callable[[Equation], bool]
    call_of: Callable[[Equation], object]


def _under(scope: str) -> _Name:
    return _Name(
        scope,
        lambda equation: equation.path == scope or equation.path.startswith(f"{scope}/"),
        lambda equation: equation.call_of(scope),
    )


def _tagged(tag: str) -> _Name:
    return _Name(
        tag,
        lambda equation: equation.op is _compat.NAME and equation.params["name"] == tag,
        lambda equation: equation,
    )


def _nodes(analysis: Analysis, loops: tuple[Equation, ...] = ()) -> Iterator[tuple[tuple[Equation, ...], Node]]:
    for node in analysis.nodes:
        yield loops, node
        for body in node.bodies:
            yield from _nodes(body, (*loops, node.equations[0]))


def _runs(graph: Graph, calls: list[_Call]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The executions of calls, in order: the number of the call, and the iteration of each scan around it."""
    starts = {call.equations[0]: number for number, call in enumerate(calls)}
    around = {equation for call in calls for equation in call.loops}

    def run(graph: Graph, iteration: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
        for equation in graph.equations:
            if equation in starts:
                yield starts[equation], iteration
            elif equation in around:
                times = equation.params["length"] if equation.has(Trait.LOOP) else 0
                for time in range(times):
                    yield from run(equation.bodies[0], (*iteration, time))
                if not times:
                    for body in equation.bodies:
                        yield from run(body, iteration)

    return run(graph, ())
