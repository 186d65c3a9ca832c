"""Activation maximisation: what input does a score look for?"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm import tqdm

from jaxplain._errors import (
    JaxplainError,
    MissingKeyError,
    NonFiniteError,
    SettingError,
    StructureError,
    explain_error,
)
from jaxplain._explainer import positive_int, require_callable
from jaxplain.graph.stage import Program, require_scalar
from jaxplain.prototypes import Parametrization, pixels

_METHOD = "activation_maximization"
_LONG = 1000  # steps from which a bar shows how far they are
_PIECES = 20


class History(NamedTuple):
    """What was optimised at each step: before it, and under its transforms.

    Attributes:
        score: (n_steps,).
        penalties: {name: (n_steps,)}, those of x and those of the code.
        watched: {name: (n_steps,)}, of `watch`: recorded, not optimised.
    """

    score: jax.Array
    penalties: dict[str, jax.Array]
    watched: dict[str, jax.Array]

    @property
    def objective(self) -> jax.Array:
        """The score minus the penalties, (n_steps,)."""
        return sum((-penalty for penalty in self.penalties.values()), self.score)


class Prototype(NamedTuple):
    """An input that was optimised.

    Attributes:
        x: the input.
        parameters: of its parametrisation: the code, for a decoder.
        score: of x, without transforms.
        history: of all steps.
    """

    x: Any
    parameters: Any
    score: jax.Array
    history: History

    def require_finite(self) -> "Prototype":
        """This prototype, or the error that says which term broke first, and when. For those made under `jit` or `vmap`, which cannot stop."""
        _require_finite(self.history, 0)
        return self


def activation_maximization(
    f: Callable[..., Any],
    *,
    penalties: Mapping[str, Callable[..., Any]] | None = None,
    code_penalties: Mapping[str, Callable[..., Any]] | None = None,
    parametrization: Parametrization | None = None,
    transforms: Sequence[Callable[..., Any]] = (),
    optimizer: optax.GradientTransformation | None = None,
    n_steps: int = 256,
    watch: Mapping[str, Callable[..., Any]] | None = None,
    allow_random: bool = False,
) -> Callable[..., Prototype]:
    r"""Activation maximisation: $\max_u\; f(T(x(u))) - \sum_m P_m(x(u)) - \sum_n Q_n(u)$ over the parameters u of an input.

    Arguments:
        f: what to maximise, `f(x, *args) -> real scalar`: a logit, a channel's mean (`split(f, at)[0]`), a neuron, a direction, a difference.
        penalties: {name: function `(x, *args) -> scalar`}, $P_m$, of x before the transforms: `jx.prototypes.l2`, `total_variation`, `expert`, ….
        code_penalties: {name: function `(u, *args) -> scalar`}, $Q_n$: `jx.prototypes.shell()` for the code of a decoder with a Gaussian prior.
        parametrization: how x is written; `jx.prototypes.pixels()` (the default), `box`, `fourier`, `fixed_magnitude`, `decoder`.
        transforms: functions `(key, x) -> x`, T, drawn anew at each step and applied in order: `jx.prototypes.jitter`, `rotate`, `scale`, `crop`, `noise`.
        optimizer: any of optax (`optax.lbfgs()`, too); `None` is `optax.adam(0.05)`.
        n_steps: steps of the optimiser (Python integer).
        watch: {name: function `(x, *args) -> scalar`}, recorded at each step: the confidence of another network, say.
        allow_random: as in `gradient`.

    Returns:
        `maximize(start, *args, key=None) -> Prototype(x, parameters, score, history)`. `start` is an input like x (for a decoder: a code), a
        pytree of floats; a key is needed with transforms. All classes, strengths and seeds at once: `jax.vmap(maximize, in_axes=(None, 0))(start, classes)`.

    Guarantees: the same for the same key, under `jit` and `vmap` to rounding. A stationary point of the objective at best, not its maximum; no
        completeness. x and its penalties are in the units that the network takes.
    Cost: `n_steps` gradients, in one compiled loop; outside of `jit` that loop is compiled by each call, and long runs show a bar.
    Errors: `NonFiniteError` names the step and the term that broke; under `jit` and `vmap`, where nothing can stop, the history holds the NaN and
        `.require_finite()` of the result says the same. `StructureError` when the score cannot take what the parametrisation makes.
    Differs from: Lucid and tf-explain need graphs of one framework and a loop in Python, and normalise gradients; nothing is normalised here
        (`optax.normalize_by_update_norm` does).

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx, optax
        >>> w = jnp.array([1.0, -2.0])
        >>> maximize = jx.activation_maximization(
        ...     lambda x: w @ x, penalties={"l2": jx.prototypes.l2(0.5)}, optimizer=optax.sgd(1.0), n_steps=100
        ... )
        >>> print(maximize(jnp.zeros(2)).x)  # w / λ
        [ 2. -4.]

    References:
        Erhan, Bengio, Courville, Vincent: Visualizing higher-layer features of a deep network. Technical report, Montréal 2009.
        Simonyan, Vedaldi, Zisserman: Deep inside convolutional networks. ICLR workshop 2014.
        Montavon, Samek, Müller: Methods for interpreting and understanding deep neural networks. Digital Signal Processing 73, 2018.
    """
    require_callable(_METHOD, f)
    positive_int(_METHOD, "n_steps", n_steps)
    written = pixels() if parametrization is None else parametrization
    descend = optax.with_extra_args_support(optax.adam(0.05) if optimizer is None else optimizer)
    of_x, of_code, watched = (
        _functions(setting, given)
        for setting, given in (("penalties", penalties), ("code_penalties", code_penalties), ("watch", watch))
    )
    if twice := of_x.keys() & of_code.keys():
        raise SettingError(
            explain_error(f"{_METHOD}: a penalty and a code penalty have one name.", got=repr(min(twice)))
        )

    def maximize(start: Any, *args: Any, key: jax.Array | None = None) -> Prototype:
        if transforms and key is None:
            raise MissingKeyError(
                explain_error(
                    f"{_METHOD}: transforms are drawn at random.", fix="maximize(start, *args, key=jax.random.key(0))"
                )
            )
        key = jax.random.key(0) if key is None else key
        parameters = jax.tree.map(jnp.asarray, written.encode(start))
        x = _tried("the parametrisation does not take the start", "start", written.decode, parameters)
        score = _scalar("the score", lambda x: f(x, *args), x)
        if not allow_random:
            score.refuse_randomness()
        for setting, functions, given in (
            ("penalties", of_x, x),
            ("code_penalties", of_code, parameters),
            ("watch", watched, x),
        ):
            for name, function in functions.items():
                _scalar(f"{setting}[{name!r}]", lambda v, function=function: function(v, *args), given)

        def loss(parameters: Any, key: jax.Array) -> tuple[jax.Array, History]:
            x = written.decode(parameters)
            each = {name: jnp.asarray(function(x, *args)) for name, function in of_x.items()}
            each |= {name: jnp.asarray(function(parameters, *args)) for name, function in of_code.items()}
            seen = {name: jnp.asarray(function(lax.stop_gradient(x), *args)) for name, function in watched.items()}
            for number, transform in enumerate(transforms):
                x = transform(jax.random.fold_in(key, number), x)
            value = jnp.asarray(f(x, *args))
            history = History(value, each, seen)
            return -history.objective.astype(value.dtype), history

        gradient = Program(_METHOD, jax.value_and_grad(loss, has_aux=True), parameters, key)

        def step(carry: tuple, number: jax.Array) -> tuple[tuple, History]:
            parameters, state = carry
            now = jax.random.fold_in(key, number)
            (value, history), slope = gradient(parameters, now)
            # The last three are for optimisers that search along a line.
            updates, state = descend.update(
                slope, state, parameters, value=value, grad=slope, value_fn=lambda p: loss(p, now)[0]
            )
            return (optax.apply_updates(parameters, updates), state), history

        carry = (parameters, descend.init(parameters))
        # What the functions close over may be traced too: strengths, under vmap.
        given = jax.tree.leaves((parameters, key, gradient.closed.consts))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in given):
            carry, history = lax.scan(step, carry, jnp.arange(n_steps))
        else:
            carry, history = _in_pieces(step, carry, n_steps)
        x = written.decode(carry[0])
        return Prototype(x, carry[0], score(x), history)

    return maximize


def _functions(setting: str, given: Mapping[str, Any] | None) -> dict[str, Callable[..., Any]]:
    """The functions of a setting by name, each callable."""
    if not isinstance(given or {}, Mapping):
        raise SettingError(
            explain_error(
                f"{_METHOD}: `{setting}` must be a dictionary of functions.",
                got=type(given).__name__,
                fix=f"{setting}={{'l2': jx.prototypes.l2(0.1)}}",
            )
        )
    for name, function in (given or {}).items():
        if not callable(function):
            raise SettingError(
                explain_error(
                    f"{_METHOD}: `{setting}[{name!r}]` must be a function (x, *args) -> scalar.",
                    got=type(function).__name__,
                    fix="jx.prototypes.l2(0.1), jx.prototypes.total_variation(1e-3)",
                )
            )
    return dict(given or {})


def _scalar(term: str, function: Callable, x: Any) -> Program:
    program = _tried(
        f"{term} does not take what the parametrisation makes", "x", partial(Program, _METHOD, function), x
    )
    require_scalar(f"{_METHOD}: {term}", program.out_shape)
    return program


def _tried(what: str, name: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """`function(argument)`; an error about shapes names the argument's."""
    try:
        return function(argument)
    except JaxplainError:
        raise
    except (TypeError, ValueError) as error:
        shapes = jax.tree.map(jnp.shape, argument)
        raise StructureError(
            explain_error(
                f"{_METHOD}: {what}.",
                got=f"{name} of shape {shapes}",
                why=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            )
        ) from error


def _in_pieces(step: Callable, carry: tuple, n_steps: int) -> tuple[tuple, History]:
    """The loop in compiled pieces: what broke is known where it broke, and a long run shows a bar."""
    n = -(-n_steps // _PIECES) if n_steps >= _LONG else n_steps
    run = jax.jit(lambda carry, steps: lax.scan(step, carry, steps))
    pieces = []
    with tqdm(total=n_steps, unit="step", disable=n_steps < _LONG) as bar:
        for first in range(0, n_steps, n):
            steps = jnp.arange(first, min(first + n, n_steps))
            carry, history = run(carry, steps)
            _require_finite(history, first)
            pieces.append(history)
            bar.update(len(steps))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *pieces)


def _require_finite(history: History, first: int) -> None:
    """Raise for the term that broke first; `first` is the number of the history's first step."""
    terms = {"the score": history.score} | {f"penalties[{name!r}]": p for name, p in history.penalties.items()}
    broken = [
        (at, name, tuple(run))
        for name, values in terms.items()
        for *run, at in np.argwhere(~np.isfinite(np.asarray(values))).tolist()
    ]
    if broken:
        at, name, run = min(broken)
        raise NonFiniteError(
            explain_error(
                f"{_METHOD}: the objective is not finite.",
                where=f"step {first + at}" + (f" of run {run}" if run else ""),
                got=f"{name} is {np.asarray(terms[name])[*run, at]}",
                fix=(
                    "smaller steps: optimizer=optax.adam(0.01)",
                    "a penalty or a box that keeps x where the score is defined",
                ),
            )
        )
