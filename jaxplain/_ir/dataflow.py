"""One dataflow engine: facts about the values of a program, forwards from its inputs or backwards from its outputs.

An analysis is a `Domain`: the fact of a constant, the transfer of facts through a step without bodies, and the join of
facts where two paths meet. Only the engine knows how facts pass through scans, branches, while loops and checkpoints.
It visits their bodies, and repeats the body of a loop until the facts of the carry stop changing. For example, with
`join=max` over 0 (constant) < 1 (active),

    scan[ body: (w, c, x) -> (c * w + x, c) ]  on facts (w: 0, carry: 0, xs: 1)
    visit 1: c 0, x 1  ->  carry 1, ys 0       the carry became active
    visit 2: c 1, x 1  ->  carry 1, ys 1       nothing changes

A program is anything with `inputs`, `outputs`, `constants` and `steps`: a `Graph` of equations, or an analysis with its
nodes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Generic, Protocol, TypeVar

from jax import lax

from jaxplain import _compat
from jaxplain._ir.graph import Equation, Value
from jaxplain._ir.primitives import Trait

F = TypeVar("F")


class Step(Protocol):
    """A part of a program. If it has bodies, `control` is the loop, branch or checkpoint itself."""

    @property
    def reads(self) -> Sequence[Value]: ...
    @property
    def writes(self) -> Sequence[Value]: ...
    @property
    def bodies(self) -> Sequence[Any]: ...
    @property
    def control(self) -> Equation: ...


class Steps(Protocol):
    """A program as the engine sees it."""

    @property
    def inputs(self) -> Sequence[Value]: ...
    @property
    def outputs(self) -> Sequence[Value]: ...
    @property
    def constants(self) -> Iterable[Value]: ...
    @property
    def steps(self) -> Sequence[Any]: ...


def _same(fact: Any) -> Any:
    return fact


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True)
class Domain(Generic[F]):
    """An analysis, without the walk through the program.

    Attributes:
        unknown: The fact of a constant, of a value that nothing in the program makes, and (backwards) of an unread
            output.
        transfer: Forwards, the facts of a step's outputs from those of its inputs; backwards, the other way around.
        join: The fact where two paths meet.
        widen: The fact of a loop's carry, from those before and after an iteration; `join` if it is not given. It must
            stop changing after a few iterations.
        narrow: Limits a fact to what its value allows, for example because an integer carries no derivative.
        unstack, stack: Map the fact of a scanned operand into the body, and the fact of a body's output out of it.
        branch: The fact of a branch's output, from the fact of its index and the joined facts of its bodies.
        observe: Called with a step and the facts of its inputs and outputs, after each visit of the step, bodies
            included.
        visited: Called with a loop and the number of a visit after each visit of its body.
    """

    unknown: Callable[[Value], F]
    transfer: Callable[[Any, list[F]], Sequence[F]]
    join: Callable[[F, F], F]
    widen: Callable[[F, F], F] | None = None
    narrow: Callable[[Value, F], F] = lambda _, fact: fact
    unstack: Callable[[F], F] = _same
    stack: Callable[[F], F] = _same
    branch: Callable[[F, F], F] = lambda _, fact: fact
    observe: Callable[[Any, list[F], Sequence[F]], None] = _nothing
    visited: Callable[[Any, int], None] = _nothing


def forward(program: Steps, inputs: Iterable[F], domain: Domain[F]) -> dict[Value, F]:
    """The fact of every value of a program and of its bodies, from the facts of its inputs."""
    facts: dict[Value, F] = {}

    def visit(program: Steps, inputs: Iterable[F]) -> list[F]:
        facts.update((value, domain.unknown(value)) for value in program.constants)
        write(program.inputs, inputs)
        for step in program.steps:
            before = [fact_of(value) for value in step.reads]
            after = through(step, before) if step.bodies else domain.transfer(step, before)
            domain.observe(step, before, after)
            write(step.writes, after)
        return [fact_of(value) for value in program.outputs]

    def fact_of(value: Value) -> F:
        return facts[value] if value in facts else domain.unknown(value)

    def write(values: Sequence[Value], new: Iterable[F]) -> None:
        facts.update((value, domain.narrow(value, fact)) for value, fact in zip(values, new, strict=True))

    def through(step: Any, before: list[F]) -> Sequence[F]:
        if step.control.has(Trait.LOOP):
            return loop(step, *_compat.split_scan(step.control.origin, before))
        if step.control.has(Trait.BRANCH):
            index, *operands = before
            several = [visit(body, operands) for body in step.bodies]
            return [domain.branch(index, reduce(domain.join, facts)) for facts in zip(*several, strict=True)]
        if step.control.op is lax.while_p:
            return while_loop(step, before)
        return visit(step.bodies[0], before)

    def loop(step: Any, consts: list[F], carry: list[F], scanned: list[F]) -> Sequence[F]:
        n_visits = 0
        while True:
            after = visit(step.bodies[0], [*consts, *carry, *map(domain.unstack, scanned)])
            domain.visited(step, n_visits)
            n_visits += 1
            joined = list(map(domain.widen or domain.join, carry, after))
            if joined == carry:
                return [*carry, *map(domain.stack, after[len(carry) :])]
            carry = joined

    def while_loop(step: Any, before: list[F]) -> Sequence[F]:
        of_condition, of_body, carry = _compat.split_while(step.control.origin, before)
        condition, body = step.bodies
        while True:
            visit(condition, [*of_condition, *carry])
            joined = list(map(domain.widen or domain.join, carry, visit(body, [*of_body, *carry])))
            if joined == carry:
                return carry
            carry = joined

    visit(program, inputs)
    return facts


def backward(program: Steps, outputs: Iterable[F], domain: Domain[F]) -> dict[Value, F]:
    """The fact of every value of a program and of its bodies, from the facts of its outputs."""
    facts: dict[Value, F] = {}

    def visit(program: Steps, outputs: Iterable[F]) -> list[F]:
        made = [*program.inputs, *(value for step in program.steps for value in step.writes)]
        facts.update((value, domain.unknown(value)) for value in made)
        meet(program.outputs, outputs)
        for step in reversed(program.steps):
            after = [facts[value] for value in step.writes]
            before = through(step, after) if step.bodies else domain.transfer(step, after)
            domain.observe(step, list(before), after)
            meet(step.reads, before)
        return [facts[value] for value in program.inputs]

    def meet(values: Sequence[Value], new: Iterable[F]) -> None:
        for value, fact in zip(values, new, strict=True):
            facts[value] = domain.join(facts[value], fact) if value in facts else fact

    def through(step: Any, after: list[F]) -> Sequence[F]:
        if step.control.has(Trait.LOOP):
            return loop(step, after)
        if step.control.has(Trait.BRANCH):
            several = [visit(body, after) for body in step.bodies]
            return [
                domain.unknown(step.reads[0]),
                *(reduce(domain.join, facts) for facts in zip(*several, strict=True)),
            ]
        return visit(step.bodies[0], after)

    def loop(step: Any, after: list[F]) -> Sequence[F]:
        (body,) = step.bodies
        n_carry = len(_compat.split_scan(step.control.origin, list(body.inputs))[1])
        carry, stacked = after[:n_carry], after[n_carry:]
        while True:
            before = visit(body, [*carry, *map(domain.unstack, stacked)])
            consts, back, scanned = _compat.split_scan(step.control.origin, before)
            joined = list(map(domain.widen or domain.join, carry, back))
            if joined == carry:
                return [*consts, *carry, *map(domain.stack, scanned)]
            carry = joined

    visit(program, outputs)
    return facts


def sliced(equations: Sequence[Equation], ends: Iterable[Value]) -> list[Equation]:
    """The equations that `ends` depend on, in order."""
    needed = set(ends)
    kept = []
    for equation in reversed(equations):
        if needed.intersection(equation.outputs):
            kept.append(equation)
            needed.update(equation.inputs)
    return kept[::-1]
