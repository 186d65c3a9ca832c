"""From what a user calls a layer to the values of a program: scopes, tags, positions, predicates."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxplain._errors import LayerError, SettingError, explain_error
from jaxplain.graph.activity import CONSTANT, Activity
from jaxplain.graph.analysis import KINDS, LAYERS, Analysis, Node
from jaxplain.graph.cut import Site
from jaxplain.graph.flat import Equation, Graph, Value
from jaxplain.graph.listing import NodeRow, row

_GRAMMAR = re.compile(r"(?P<name>.+?)(?:@(?P<run>-?\d+))?(?P<entering>:in)?")
_POSITION = re.compile(r"(first|last) (\w+)")
_SHORT = {"conv": ("convolution",), "norm": ("normalisation",), "layer": LAYERS, **{kind: (kind,) for kind in KINDS}}
_LISTED = 20  # candidates in a message


class _Stretch(NamedTuple):
    """Equations of one graph that run one after the other: one call of a layer in the program's text."""

    loops: tuple[Equation, ...]
    graph: Graph
    equations: tuple[Equation, ...]


class Sites:
    """The places of a program by their names; `method` and `setting` are what messages speak of."""

    def __init__(self, graph: Graph, activity: dict[Value, Activity], method: str, setting: str = "at"):
        self.graph = graph
        self.activity = activity
        self.method = method
        self.setting = setting

    def find(self, at: Any) -> Site:
        """The one place that `at` names; an error that lists the candidates otherwise."""
        if callable(at):
            return self._of_nodes(at, "the predicate", ":in", entering=False)
        if not isinstance(at, str) or not (parts := _GRAMMAR.fullmatch(at)):
            raise SettingError(
                explain_error(
                    f"{self.method}: `{self.setting}` must name a layer.",
                    got=repr(at),
                    need="a path or glob ('encoder/Block_3', 'Block_3:in', 'Block_3@1'), a tag, 'last conv', or a function of a row of jx.layers",
                )
            )
        name, run, entering = parts["name"], parts["run"], bool(parts["entering"])
        if position := _POSITION.fullmatch(name):
            end, kind = position.groups()
            if run is not None:
                raise SettingError(
                    explain_error(
                        f"{self.method}: a position has no number in `{self.setting}`.",
                        got=repr(at),
                        why="'first' and 'last' say which run is meant",
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
            return self._of_nodes(lambda node: node.kind in _SHORT[kind], name, at, entering=entering, end=end)
        return self._of_scope(at, name, None if run is None else int(run), entering)

    def _of_nodes(
        self, wanted: Callable[[NodeRow], Any], what: str, name: str, *, entering: bool, end: str | None = None
    ) -> Site:
        analysis = Analysis(self.graph, self.activity).with_positions()
        everything = list(_nodes(analysis))
        found = [(loops, node) for loops, node in everything if wanted(row(node, ""))]
        if not found or (end is None and len(found) > 1):
            rows = [row(node, "") for _, node in (found or everything)]
            lines = [f"{r.kind} {'×'.join(map(str, r.shape))} {r.path or r.source}" for r in rows]
            raise self._not_one(what, bool(found), lines)
        loops, node = found[0 if end == "first" else -1]
        lengths = [e.params["length"] for e in loops if e.primitive == "scan"]
        # Whoever says "last" means the last that runs.
        run = None if end is None else tuple(0 if end == "first" else n - 1 for n in lengths)
        values = (node.inputs or self._varying(node.others)) if entering else node.outputs
        return self._site(name, loops, values, run, frozenset(node.equations) if entering else None)

    def _of_scope(self, at: str, name: str, run: int | None, entering: bool) -> Site:
        belongs = self._the_one(name)
        stretches = list(self._stretches(self.graph, (), belongs.holds))
        if run is None and len(stretches) > 1:
            names = [f"{belongs.name}@{number}" for number in range(len(list(_runs(self.graph, stretches))))]
            raise self._not_one(name, True, names, "it runs several times")
        iteration = None
        if run is not None:
            runs = list(_runs(self.graph, stretches))
            if not -len(runs) <= run < len(runs):
                raise LayerError(
                    explain_error(
                        f"{self.method}: `{self.setting}` asks for a run that does not take place.",
                        got=repr(at),
                        need=f"{belongs.name} runs {len(runs)} time{'s' * (len(runs) > 1)}: @0 to @{len(runs) - 1}",
                    )
                )
            number, iteration = runs[run]
        loops, graph, equations = stretches[number if run is not None else 0]
        inside = frozenset(equations)
        if entering:
            made = {value for equation in equations for value in equation.outputs}
            values = [v for equation in equations for v in equation.inputs if v not in made]
        else:
            read = {v for equation in graph.equations if equation not in inside for v in equation.inputs}
            values = [v for e in equations for v in e.outputs if v in read or v in graph.outputs]
        return self._site(at, loops, self._varying(values), iteration, inside if entering else None)

    def _varying(self, values: Iterable[Value]) -> list[Value]:
        """Of some values, those that depend on the input; integers (masks, indices) only if there is nothing else."""
        varying = [value for value in dict.fromkeys(values) if self.activity[value] is not CONSTANT]
        return [value for value in varying if jnp.issubdtype(value.aval.dtype, jnp.inexact)] or varying

    def _site(
        self,
        name: str,
        loops: tuple[Equation, ...],
        values: Sequence[Value],
        run: tuple[int, ...] | None,
        readers: frozenset[Equation] | None,
    ) -> Site:
        branch = next((equation for equation in loops if equation.primitive == "cond"), None)
        if branch is not None:
            raise LayerError(
                explain_error(
                    f"{self.method}: cannot cut inside a branch of lax.cond.",
                    where=branch.line,
                    got=repr(name),
                    why="the layer may not run at all",
                    fix="cut before or after the branch; where both sides are cheap, jnp.where instead of lax.cond",
                )
            )
        return Site(name, tuple(values), loops, run, readers)

    # Scopes and tags

    def _the_one(self, name: str) -> "_Belongs":
        scopes: dict[str, None] = {}
        tags: dict[str, None] = {}
        for equation in self._varying_equations(self.graph):
            parts = equation.path.split("/") if equation.path else []
            scopes.update(("/".join(parts[: i + 1]), None) for i in range(len(parts)))
            if equation.primitive == "name":
                tags[equation.params["name"]] = None
        if name in scopes and name not in tags:
            return _Belongs(name, _under(name))
        found = [scope for scope in scopes if fnmatchcase(scope, name) or fnmatchcase(scope, f"*/{name}")]
        # `Block_*` means the blocks, not what is in them.
        found = [s for s in found if not any(s.startswith(f"{outer}/") for outer in found)]
        found_tags = [tag for tag in tags if fnmatchcase(tag, name)]
        if len(found) + len(found_tags) == 1:
            return (
                _Belongs(found_tags[0], _tagged(found_tags[0])) if found_tags else _Belongs(found[0], _under(found[0]))
            )
        if found or found_tags:
            raise self._not_one(name, True, [*found, *(f"{tag} (a tag)" for tag in found_tags)])
        everything = [*scopes, *tags]
        last = {path.split("/")[-1]: path for path in reversed(everything)}
        close = [last[word] for word in get_close_matches(name.split("/")[-1], last, n=3)]
        raise self._not_one(name, False, list(dict.fromkeys([*close, *everything])))

    def _varying_equations(self, graph: Graph) -> Iterator[Equation]:
        for equation in graph.equations:
            if any(self.activity[value] is not CONSTANT for value in equation.outputs):
                yield equation
                for body in equation.bodies:
                    yield from self._varying_equations(body)

    def _stretches(
        self, graph: Graph, loops: tuple[Equation, ...], holds: Callable[[Equation], bool]
    ) -> Iterator[_Stretch]:
        current: list[Equation] = []
        for equation in graph.equations:
            if all(self.activity[value] is CONSTANT for value in equation.outputs):
                continue  # weights that are prepared in between
            if holds(equation):
                current.append(equation)
                continue
            yield from self._calls(loops, graph, current)
            current = []
            for body in equation.bodies:
                yield from self._stretches(body, (*loops, equation), holds)
        yield from self._calls(loops, graph, current)

    def _calls(self, loops: tuple[Equation, ...], graph: Graph, equations: list[Equation]) -> Iterator[_Stretch]:
        """One stretch for each call: a layer that is applied twice in a row does the same with the same weights again."""
        n = len(equations)
        for period in (p for p in range(1, n // 2 + 1) if n % p == 0):
            pairs = list(zip(equations, equations[period:], strict=False))
            if all(self._is_again(a, b) for a, b in pairs) and any(self._weights(a) for a, _ in pairs[:period]):
                for start in range(0, n, period):
                    yield _Stretch(loops, graph, tuple(equations[start : start + period]))
                return
        if equations:
            yield _Stretch(loops, graph, tuple(equations))

    def _is_again(self, one: Equation, other: Equation) -> bool:
        return (
            (one.primitive, one.path) == (other.primitive, other.path)
            and [v.aval for v in one.outputs] == [v.aval for v in other.outputs]
            and self._weights(one) == self._weights(other)
        )

    def _weights(self, equation: Equation) -> list[Value]:
        return [v for v in equation.inputs if self.activity[v] is CONSTANT and v.aval.size > 1]

    def _not_one(self, name: str, several: bool, candidates: Sequence[str], how: str | None = None) -> LayerError:
        listed = [f"\n          {line}" for line in candidates[:_LISTED]]
        if len(candidates) > _LISTED:
            listed.append(f"\n          … and {len(candidates) - _LISTED} more")
        number = how or f"{len(candidates)} layers do"
        unnamed = (
            ("one of them",)
            if candidates
            else (
                "Flax NNX models leave no names: score = jx.logit(jx.nnx.named(model))",
                "name a value in the model: h = checkpoint_name(h, 'h'), from jax.ad_checkpoint, or with jax.named_scope('h'):",
                "by position: 'last conv', 'last activation'; print(jx.layers(score)(x, *args)) lists the kinds",
            )
        )
        return LayerError(
            explain_error(
                f"{self.method}: {'several layers answer' if several else 'no layer answers'} to `{self.setting}`.",
                got=f"{name!r}" + (f"; {number}" if several else ""),
                need="one of" + "".join(listed) if candidates else None,
                why=None if candidates else "no layer of this program has a name",
                fix=("a name that fits one of them", "several at once: a list or dict of names")
                if several
                else unnamed,
            )
        )


class _Belongs(NamedTuple):
    name: str
    holds: Callable[[Equation], bool]


def _under(scope: str) -> Callable[[Equation], bool]:
    return lambda equation: equation.path == scope or equation.path.startswith(f"{scope}/")


def _tagged(tag: str) -> Callable[[Equation], bool]:
    return lambda equation: equation.primitive == "name" and equation.params["name"] == tag


def _nodes(analysis: Analysis, loops: tuple[Equation, ...] = ()) -> Iterator[tuple[tuple[Equation, ...], Node]]:
    for node in analysis.nodes:
        yield loops, node
        for body in node.bodies:
            yield from _nodes(body, (*loops, node.equations[0]))


def _runs(graph: Graph, stretches: list[_Stretch]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each time that a stretch runs, in order of execution: its number, and the iteration of each scan around it."""
    starts = {stretch.equations[0]: number for number, stretch in enumerate(stretches)}
    around = {equation for stretch in stretches for equation in stretch.loops}

    def run(graph: Graph, iteration: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
        for equation in graph.equations:
            if equation in starts:
                yield starts[equation], iteration
            elif equation in around:
                times = equation.params["length"] if equation.primitive == "scan" else 0
                for time in range(times):
                    yield from run(equation.bodies[0], (*iteration, time))
                if not times:
                    for body in equation.bodies:
                        yield from run(body, iteration)

    return run(graph, ())
