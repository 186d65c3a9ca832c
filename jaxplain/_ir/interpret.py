"""One interpreter: runs a program step by step with a hook, and rebuilds loops, branches and checkpoints.

Everything that runs an analyzed program is a hook. For example, LRP's replay evaluates equations unchanged and nodes
with the derivatives of their rules; DeepLIFT's hook evaluates each step at the input and at the reference; `split`
replaces some values.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._ir.graph import Equation, Value
from jaxplain._ir.primitives import Trait

Hook = Callable[[Any, list[Any]], Sequence[Any] | None]
RunBody = Callable[[Any, list[Any]], list[Any]]


def run_equation(equation: Equation, inputs: list[Any]) -> list[Any]:
    """An equation on new inputs, under the settings that it was written under."""
    with _compat.context(equation.origin):
        return _compat.bind(equation.origin, inputs)


def interpret(
    steps: Iterable[Any],
    values: dict[Value, Any],
    run: Hook = run_equation,
    given: Mapping[tuple[Any, Value], Any] | None = None,
) -> dict[Value, Any]:
    """Run steps in order with `run(step, inputs)`, and add their outputs to `values`.

    If `run` returns None, the outputs stay unknown, and so does everything that needs them. A value that a node made
    is not overwritten by the node's own equation, which also runs if another of its outputs is needed. `given` holds
    values that single steps read in place of the program's own.
    """
    given = {} if given is None else given
    for step in steps:
        if not all(value in values or (step, value) in given for value in step.reads):
            continue
        inputs = [given[step, value] if (step, value) in given else values[value] for value in step.reads]
        outputs = run(step, inputs)
        if outputs is None:
            continue
        for value, output in zip(step.writes, outputs, strict=True):
            if value not in values or not isinstance(step, Equation):
                values[value] = output
    return values


def rebuilt(equation: Equation, bodies: Sequence[Any], inputs: list[Any], run: RunBody) -> list[Any]:
    """The loop, branch or checkpoint of `equation`, around `run(body, inputs)` in place of its own bodies.

    Values may be pytrees. Outputs of `run` beyond those of a body are returned after the outputs, stacked by a loop.
    """
    with _compat.context(equation.origin):
        if equation.has(Trait.BRANCH):
            branches = [lambda *args, body=body: run(body, list(args)) for body in bodies]
            return lax.switch(inputs[0], branches, *inputs[1:])
        (body,) = bodies
        if equation.has(Trait.CHECKPOINT):
            return checkpointed(equation, lambda *args: run(body, list(args)))(*inputs)
        consts, carry, scanned = _compat.split_scan(equation.origin, inputs)
        carry, stacked = scan_part(equation, lambda *slices: run(body, [*consts, *slices]), carry, scanned)
        return [*carry, *stacked]


def checkpointed(equation: Equation, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function under the checkpoint of `equation`, with its policy."""
    params = equation.params
    return jax.checkpoint(function, prevent_cse=params["prevent_cse"], policy=params["policy"])


def scan_part(
    equation: Any, body: Callable[..., Any], carry: list[Any], scanned: Any, start: int = 0, stop: int | None = None
) -> tuple[list[Any], Any]:
    """Iterations `start` to `stop` of a scan in order of execution: the carry after them, and the stacked outputs.

    `body(*carry, *slices)` returns the carry, followed by the outputs to stack. `scanned` is stacked over all
    iterations.
    """
    length, reverse = equation.params["length"], equation.params["reverse"]
    stop = length if stop is None else stop
    low, high = (length - stop, length - start) if reverse else (start, stop)
    whole = (low, high) == (0, length)

    def step(carry: list[Any], slices: Any) -> tuple[list[Any], Any]:
        outputs = body(*carry, *slices)
        return list(outputs[: len(carry)]), list(outputs[len(carry) :])

    part = scanned if whole else jax.tree.map(lambda leaf: leaf[low:high], scanned)
    return lax.scan(step, carry, part, length=high - low, reverse=reverse, unroll=equation.params["unroll"])


def scan_once(
    equation: Any, body: Callable[..., Any], carry: list[Any], scanned: Any, time: int
) -> tuple[list[Any], list[Any]]:
    """Iteration `time` of a scan in order of execution, without a loop: the carry after it, and its other outputs."""
    at = equation.params["length"] - 1 - time if equation.params["reverse"] else time
    outputs = body(*carry, *jax.tree.map(lambda leaf: leaf[at], scanned))
    return list(outputs[: len(carry)]), list(outputs[len(carry) :])


def stacked(equation: Any, pieces: Sequence[Any]) -> Any:
    """The stacked outputs of consecutive pieces of a scan, given in order of execution, as one stack."""
    pieces = pieces[::-1] if equation.params["reverse"] else pieces
    return pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pieces)


# Peeling: the first iteration of a loop runs before the loop


def peeled(closed: Any, loops: list[Any]) -> Any:
    """The program with the first iteration of some scans moved out of them.

    The layers of that iteration are then first layers, as they would be in the same program without a loop. For
    example,

        c, ys = scan[length=3] body init xs
        =>  c0, y0 = body init xs[0];  c, y = scan[length=2] body c0 xs[1:];  ys = concatenate y0[None] y
    """

    def rewritten(closed: Any) -> Callable[..., list]:
        return lambda *inputs: _compat.evaluate(closed, inputs, run)

    def run(equation: Any, inputs: list[Any]) -> list[Any]:
        if any(equation is loop for loop in loops):
            return _first_and_rest(equation, inputs, rewritten)
        if not any(map(holds, _compat.inner_jaxprs(equation))):
            return _compat.bind(equation, inputs)
        if _compat.can_rewrite_inside(equation):
            return _compat.bind(equation, inputs, rewrite=rewritten)
        return rewritten(next(_compat.closed_bodies(equation)))(
            *inputs
        )  # a function with a derivative of its own, which the analysis opened

    def holds(jaxpr: Any) -> bool:
        return any(any(e is loop for loop in loops) or any(map(holds, _compat.inner_jaxprs(e))) for e in jaxpr.eqns)

    return jax.make_jaxpr(rewritten(closed))(*closed.in_avals)


def _first_and_rest(equation: Any, inputs: list[Any], rewritten: Callable[[Any], Callable[..., list]]) -> list[Any]:
    consts, carry, scanned = _compat.split_scan(equation, inputs)
    inner = rewritten(next(_compat.closed_bodies(equation)))

    def body(*slices: Any) -> list[Any]:
        return inner(*consts, *slices)

    carry, first = scan_once(equation, body, carry, scanned, 0)
    pieces = [[y[None] for y in first]]
    if equation.params["length"] > 1:
        carry, rest = scan_part(equation, body, carry, scanned, 1)
        pieces.append(rest)
    return [*carry, *stacked(equation, pieces)]
