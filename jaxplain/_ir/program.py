"""Stages a function once into a program, and refuses programs that cannot be explained correctly.

Because a call is staged once, every method traces the score once per compilation: path steps, noise samples and forward
values all replay the staged program, never the user's Python. Only the explained leaves are abstract. All other
arguments are closed over unchanged, so that a Python label stays a Python number inside the score.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain import _compat
from jaxplain._cpu.rewrites import faster
from jaxplain._errors import ModelModeError, ScoreError, TransformError, explain_error


class Program:
    """A staged function: called with arrays of the staged shapes, it replays the recorded equations.

    A replay uses the kernels of `_cpu.rewrites`; `gradient` differentiates the recorded equations, not the kernels.
    """

    def __init__(self, method: str, function: Callable, *args: Any):
        with _causes_named(method):
            closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        self.method = method
        self.out_shape = shape
        self.closed = closed = _compat.without_dead_code(closed)
        self._args = args
        self._recorded = _compat.jaxpr_as_function(closed)
        self._faster = faster(closed)
        self._out_tree = jax.tree.structure(shape)

    def _outputs(self, run: Callable[..., list], args: tuple) -> Any:
        # A constant output may be a Python number.
        return jax.tree.unflatten(self._out_tree, map(jnp.asarray, run(*jax.tree.leaves(args))))

    def __call__(self, *args: Any) -> Any:
        return self._outputs(self._faster, args)

    @cached_property
    def value_and_gradient(self) -> "Program":
        """The program `(f(x), ∇f(x))` of a program `f` with one real output, with one backward pass."""

        def run(x: Any) -> tuple[Any, Any]:
            out, pullback = jax.vjp(lambda x: self._outputs(self._recorded, (x,)), x)
            return out, pullback(jnp.ones_like(out))[0]

        return Program(self.method, run, *self._args)

    def refuse_randomness(self) -> "Program":
        """Raise if a random draw reaches the output, because the explanation would change from call to call."""
        # Only draws that reach the output count, because models also split keys and draw numbers that nothing uses.
        draws = (_find(e, _compat.is_random) for e in _compat.live_equations(self.closed))
        where, draw = next((found for found in draws if found), (None, None))
        if draw is not None:
            raise ModelModeError(
                explain_error(
                    f"{self.method}: the score draws random numbers.",
                    where=_compat.source_line(where, draw),
                    got=f"primitive {draw.primitive}",
                    why="with dropout or noise, explanations of the same input differ (unless the key is fixed)",
                    fix=(
                        "switch the model to evaluation: model.eval(), nnx.view(model, deterministic=True), "
                        "train=False or deterministic=True",
                        "if the randomness is intended, pass allow_random=True",
                    ),
                )
            )
        return self

    def refuse_while_in_reverse(self) -> "Program":
        """Raise if the derivative would have to go backwards through a `while_loop`."""
        loops = (_find(e, _is_while) for e in _compat.open_jaxpr(self.closed).eqns)
        loop = next((found[0] for found in loops if found), None)
        if loop is None:
            return self
        try:
            self.value_and_gradient  # noqa: B018 - staging it is the test
        except ValueError as error:
            raise TransformError(
                explain_error(
                    f"{self.method}: the score has no reverse-mode derivative through a while loop.",
                    where=_compat.source_line(loop),
                    got="lax.while_loop, or lax.fori_loop with a bound known only at run time",
                    why="the number of iterations to store is unknown when the program is compiled",
                    fix=(
                        "lax.scan, or lax.fori_loop with Python integers as bounds",
                        "lax.scan over the largest count, with lax.cond inside to stop early",
                        "give the loop a derivative of its own with jax.custom_vjp",
                    ),
                )
            ) from error
        return self


def stage_score(
    method: str, score: Callable[[Any], Any], leaves: Any, *, allow_random: bool, differentiated: bool = True
) -> Program:
    """Stage `score(leaves) -> real scalar`, checking everything that can be checked without running it."""
    program = Program(method, score, leaves)
    require_scalar(method, program.out_shape)
    if not allow_random:
        program.refuse_randomness()
    return program.refuse_while_in_reverse() if differentiated else program


def require_scalar(method: str, shape: Any) -> None:
    leaf = shape
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        raise ScoreError(
            explain_error(
                f"{method}: the score must return one number, not a {type(shape).__name__}.",
                got=jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", shape),
                need="a real scalar",
                fix="return the number alone: lambda x, *args: f(x, *args)[0]",
            )
        )
    if leaf.shape != ():
        raise ScoreError(
            explain_error(
                f"{method}: the score must be one number for one example, but it is an array.",
                got=f"{leaf.dtype}{list(leaf.shape)}",
                need="a real scalar",
                fix=(
                    "pick the output to explain, for one example:\n"
                    "          score = lambda x, label: model(x[None])[0, label]\n"
                    "          maps = jax.vmap(explain)(xs, labels)        # the batch comes from vmap",
                    "for a batched classifier: score = jx.logit(model)",
                ),
            )
        )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ScoreError(
            explain_error(
                f"{method}: the score must be a real number.",
                got=str(leaf.dtype),
                need="a float scalar",
                why="a class index or a comparison does not measure evidence, and its derivative is zero",
                fix="explain the logit or the probability, not the prediction",
            )
        )


_FLAX_TRAINING = ("TraceContextError", "ModifyScopeVariableError", "InvalidRngError")


# A cache of a model is not its training mode, and counters of random streams may belong to an RNN's first carry.
_OWN_STATE = re.compile(r"Cannot (?:mutate (?!BatchStat)\w+|extract graph node) from (?:a )?different trace level")


@contextmanager
def _causes_named(method: str) -> Iterator[None]:
    """Turns errors of Flax and JAX about state, random streams and values in Python into ones that name the cause."""
    try:
        yield
    except jax.errors.ConcretizationTypeError as error:
        raise _control_flow(method, error) from error
    except (jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError) as error:
        raise _control_flow(method, error) from error
    except Exception as error:
        kind = type(error)
        if _OWN_STATE.match(str(error)):
            raise ModelModeError(
                explain_error(
                    f"{method}: the model changes or scans variables of its own while it is explained.",
                    got=f"{kind.__name__}: {str(error).splitlines()[0][:100]}",
                    why="a cache, the first state of an RNN, dropout, or nnx.scan over layers that were made outside",
                    fix=(
                        "a copy of the model for each call: jx.logit(lambda x: nnx.clone(model)(x))",
                        "if it is dropout: model.eval()",
                    ),
                )
            ) from error
        if not kind.__module__.startswith("flax") or kind.__name__ not in _FLAX_TRAINING:
            raise
        raise ModelModeError(
            explain_error(
                f"{method}: the model changes its own state or asks for randomness while it is explained: "
                "it is in training mode.",
                got=f"{kind.__name__}: {str(error).splitlines()[0]}",
                why="batch statistics and dropout make the score of one example depend on the batch and on chance",
                fix=(
                    "Flax NNX: model.eval(), or nnx.view(model, deterministic=True, use_running_average=True)",
                    "Flax Linen: model.apply(variables, x, train=False), without mutable=",
                ),
            )
        ) from error


def _control_flow(method: str, error: Exception) -> ScoreError:
    return ScoreError(
        explain_error(
            f"{method}: the score needs the value of an array in Python, for `if`, `float`, `int` or NumPy.",
            where=_compat.line_of(error),
            got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            why="it is traced once, without values, as under jax.jit",
            fix=(
                "a choice between values: jnp.where(x[0] > 0, a, b)",
                "a choice between programs: jax.lax.cond(x[0] > 0, f, g, x)",
                "functions of jax.numpy in place of NumPy's, and x.astype(float) in place of float(x)",
            ),
        )
    )


def _find(equation: Any, wanted: Callable[[Any], bool]) -> tuple[Any, Any] | None:
    """`equation`, which has the user's line, and the first wanted equation in it or its bodies."""
    if wanted(equation):
        return equation, equation
    for jaxpr in _compat.inner_jaxprs(equation):
        for inner in jaxpr.eqns:
            if found := _find(inner, wanted):
                return equation, found[1]
    return None


def _is_while(equation: Any) -> bool:
    return equation.primitive is lax.while_p
