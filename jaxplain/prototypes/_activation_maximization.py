"""Activation maximization: finds the input to which a score responds most."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from tqdm import tqdm

from jaxplain._checks import checked, instance, one_key, require_callable
from jaxplain._errors import (
    InputError,
    JaxplainError,
    NonFiniteError,
    ScoreError,
    SettingError,
    StructureError,
    TransformError,
    explain_error,
)
from jaxplain._ir.program import Program, require_scalar
from jaxplain._leaves import upcast, wide_dtype
from jaxplain._types import PyTree, Score
from jaxplain.prototypes._parametrizations import Parametrization, pixels
from jaxplain.prototypes._penalties import Penalty
from jaxplain.prototypes._transforms import Transform

if TYPE_CHECKING:
    import optax

_METHOD = "activation_maximization"
_LONG = 1000  # number of steps from which a progress bar is shown
_PIECES = 20  # updates of that bar


class History(NamedTuple):
    """The terms of the objective at each step, before its update and under its transforms.

    Attributes:
        score: Scores, (n_steps,).
        penalties: Penalties of x and of the code, {name: (n_steps,)}.
        watched: Values of `watch`, which are not optimized, {name: (n_steps,)}.
    """

    score: jax.Array
    penalties: dict[str, jax.Array]
    watched: dict[str, jax.Array]

    @property
    def objective(self) -> jax.Array:
        """The score minus the penalties, (n_steps,)."""
        terms = upcast((self.score, *self.penalties.values()))
        dtype = max((term.dtype for term in terms), key=lambda dtype: dtype.itemsize)
        score, *penalties = (term.astype(dtype) for term in terms)
        return sum((-penalty for penalty in penalties), score)


class Prototype(NamedTuple):
    """An optimized input.

    Attributes:
        x: The input.
        parameters: Parameters of its parametrization; for a decoder, the code.
        score: Score of x, without transforms.
        history: Terms of the objective at all steps.
    """

    x: PyTree
    parameters: PyTree
    score: jax.Array
    history: History

    def require_finite(self) -> "Prototype":
        """Returns this prototype, or raises an error that names the first term that is not finite, and its step.

        Call it on the result of `jit` or `vmap`, under which the optimization cannot raise.
        """
        if any(_is_traced(leaf) for leaf in jax.tree.leaves(self)):
            raise TransformError(
                explain_error(
                    "require_finite: the numbers are not known yet.",
                    why="this runs inside jit, vmap or grad",
                    fix="call it on the result of the compiled function",
                )
            )
        _require_finite(self.history, (self.score, self.x, self.parameters), 0)
        return self


@checked(watch=instance(Mapping))
def activation_maximization(
    f: Score,
    *,
    penalties: Mapping[str, Penalty] | None = None,
    code_penalties: Mapping[str, Penalty] | None = None,
    parametrization: Parametrization | None = None,
    transforms: Sequence[Transform] = (),
    optimizer: "optax.GradientTransformation | None" = None,
    n_steps: int = 256,
    watch: Mapping[str, Callable[..., ArrayLike]] | None = None,
    progress: bool | None = None,
    allow_random: bool = False,
) -> Callable[..., Prototype]:
    r"""Activation maximization: $\max_u\; f(T(x(u))) - \sum_m P_m(x(u)) - \sum_n Q_n(u)$ over parameters u of an input.

    Arguments:
        f: The score to maximize, `f(x, *args) -> real scalar`: a logit, a channel's mean (`split(f, at)[0]`), a neuron,
            a direction, a difference.
        penalties: Penalties $P_m$ of x before the transforms, {name: function `(x, *args) -> scalar`}:
            `jx.prototypes.l2`, `total_variation`, `expert`, ….
        code_penalties: Penalties $Q_n$ of the parameters, {name: function `(u, *args) -> scalar`}: for example
            `jx.prototypes.shell()` for the code of a decoder with a Gaussian prior.
        parametrization: The parametrization x(u): `jx.prototypes.pixels()` (the default), `box`, `fourier`,
            `fixed_magnitude`, `decoder`.
        transforms: Functions `(key, x) -> x`, T, applied in order with new random draws at each step:
            `jx.prototypes.jitter`, `rotate`, `scale`, `crop`, `noise`.
        optimizer: An optimizer of optax (including `optax.lbfgs()`); `None` is `optax.adam(0.05)`.
        n_steps: Number of steps of the optimizer (Python integer).
        watch: Functions to record at each step, {name: function `(x, *args) -> number`}, for example the confidence of
            another network.
        progress: Whether to show a progress bar and to stop early when a term is not finite. `None`: from 1,000 steps
            on.
        allow_random: As in `gradient`.

    Returns:
        `maximize(start, *args, key=None) -> Prototype(x, parameters, score, history)`. `start` is an input like x (for
        a decoder, a code), a pytree of floats. The computation uses float32 or better; f receives the dtype of `start`.
        A key is needed with transforms. All classes, strengths and seeds at once:
        `jax.vmap(maximize, in_axes=(None, 0))(start, classes)`, with `key=jax.random.split(key, 10)` if there are
        transforms.

    Guarantees: the same result for the same key, under `jit` and `vmap` to rounding. At best a stationary point of the
    objective, not its maximum; no completeness. x and its penalties are in the units of the network's input.
    Cost: `n_steps` gradients in one compiled loop, which each call outside `jit` compiles again.
    Errors: `NonFiniteError` names the step and the first term that is not finite. Under `jit` and `vmap`, which cannot
    raise, the history holds the NaN and `.require_finite()` of the result raises. `StructureError` if the score cannot
    take the output of the parametrization.
    Differs from: Lucid and tf-explain need graphs of one framework and a loop in Python, and they normalize gradients,
    which is left to `optax.normalize_by_update_norm` here.

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx, optax
        >>> w = jnp.array([1.0, -2.0])
        >>> maximize = jx.activation_maximization(
        ...     lambda x: w @ x, penalties={"l2": jx.prototypes.l2(0.5)}, optimizer=optax.sgd(1.0), n_steps=100
        ... )
        >>> print(maximize(jnp.zeros(2)).x)  # w / λ
        [ 2. -4.]

    References:
        Erhan, Bengio, Courville, Vincent: Visualizing higher-layer features of a deep network. Montréal 2009.
        Simonyan, Vedaldi, Zisserman: Deep inside convolutional networks. ICLR workshop 2014.
        Montavon, Samek, Müller: Methods for interpreting and understanding deep neural networks. DSP 73, 2018.
    """
    import optax  # here, because it takes half as long to import as all of jaxplain

    require_callable(_METHOD, f)
    written = pixels() if parametrization is None else parametrization
    if not isinstance(written, Parametrization):
        raise SettingError(
            explain_error(
                f"{_METHOD}: `parametrization` must be a Parametrization.",
                got=repr(parametrization),
                fix="jx.prototypes.box(0, 1), jx.prototypes.Parametrization(decode, encode), …",
            )
        )
    descend = optax.adam(0.05) if optimizer is None else optimizer
    if not (hasattr(descend, "init") and hasattr(descend, "update")):  # `optax.MultiSteps` is no GradientTransformation
        raise SettingError(
            explain_error(f"{_METHOD}: `optimizer` must be one of optax.", got=repr(optimizer), fix="optax.adam(0.05)")
        )
    descend = optax.with_extra_args_support(descend)
    shaken = _shakes(transforms)
    of_x, of_code, watched = (
        _functions(setting, given)
        for setting, given in (("penalties", penalties), ("code_penalties", code_penalties), ("watch", watch))
    )
    if twice := of_x.keys() & of_code.keys():
        raise SettingError(
            explain_error(f"{_METHOD}: a penalty and a code penalty have the same name.", got=repr(min(twice)))
        )

    def maximize(start: Any, *args: Any, key: jax.Array | None = None) -> Prototype:
        key = one_key(_METHOD, key) if shaken or key is not None else jax.random.key(0)
        start = _floats(start)
        # As for attributions, compute in float32 or better, but give f the dtype of the start.
        parameters = written.encode(jax.tree.map(lambda leaf: leaf.astype(wide_dtype(leaf)), start))

        def as_given(x: Any) -> Any:
            same = jax.tree.map(jnp.shape, x) == jax.tree.map(jnp.shape, start)
            return jax.tree.map(lambda x, given: x.astype(given.dtype), x, start) if same else x

        x = _tried("the parametrization failed on", "the start", partial(jax.eval_shape, written.decode), parameters)
        for number, transform in enumerate(shaken):
            _require_like(f"transforms[{number}]", jax.eval_shape(transform, key, x), x)
        score = _staged("the score", lambda p: f(as_given(written.decode(p)), *args), parameters, x)
        require_scalar(_METHOD, score.out_shape)
        score.refuse_while_in_reverse()
        if not allow_random:
            score.refuse_randomness()
        for setting, functions, decode in (
            ("penalties", of_x, written.decode),
            ("code_penalties", of_code, lambda p: p),
            ("watch", watched, written.decode),
        ):
            for name, function in functions.items():
                term = f"{setting}[{name!r}]"
                given = x if setting != "code_penalties" else parameters
                program = _staged(term, lambda p, g=function, decode=decode: g(decode(p), *args), parameters, given)
                _require_number(term, program.out_shape, watched=setting == "watch")
                if setting != "watch":
                    program.refuse_while_in_reverse()

        def loss(parameters: Any, key: jax.Array) -> tuple[jax.Array, History]:
            x = written.decode(parameters)
            each = {name: jnp.asarray(function(x, *args)) for name, function in of_x.items()}
            each |= {name: jnp.asarray(function(parameters, *args)) for name, function in of_code.items()}
            seen = {name: jnp.asarray(function(x, *args)) for name, function in watched.items()}
            for number, transform in enumerate(shaken):
                x = transform(jax.random.fold_in(key, number), x)
            value = jnp.asarray(f(as_given(x), *args))
            history = History(value, each, seen)
            return -history.objective.astype(wide_dtype(value)), history

        gradient = Program(_METHOD, jax.value_and_grad(loss, has_aux=True), parameters, key)

        def step(carry: tuple, number: jax.Array) -> tuple[tuple, History]:
            parameters, state = carry
            now = jax.random.fold_in(key, number)
            (value, history), slope = gradient(parameters, now)
            # optax itself relies on promotion. Line-search optimizers need the last three arguments.
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                updates, state = descend.update(
                    slope, state, parameters, value=value, grad=slope, value_fn=lambda p: loss(p, now)[0]
                )
                return (optax.apply_updates(parameters, updates), state), history

        (parameters, _), history = _loop(step, (parameters, descend.init(parameters)), n_steps, progress)
        found = Prototype(as_given(written.decode(parameters)), parameters, score(parameters), history)
        return found if any(map(_is_traced, jax.tree.leaves(found))) else found.require_finite()

    return maximize


def _shakes(transforms: Any) -> tuple[Callable[..., Any], ...]:
    """The transforms, each callable."""
    if callable(transforms) or not isinstance(transforms, Iterable) or hasattr(transforms, "shape"):
        raise SettingError(
            explain_error(
                f"{_METHOD}: `transforms` must be a sequence of functions (key, x) -> x.",
                got=getattr(transforms, "__name__", repr(transforms)),
                fix="transforms=(jx.prototypes.jitter(2),)",
            )
        )
    transforms = tuple(transforms)
    for number, transform in enumerate(transforms):
        if not callable(transform):
            raise SettingError(
                explain_error(
                    f"{_METHOD}: `transforms[{number}]` must be a function (key, x) -> x.", got=repr(transform)
                )
            )
    return transforms


def _floats(start: Any) -> Any:
    """The start as arrays, which must be real floats."""
    leaves = jax.tree_util.tree_leaves_with_path(start)
    wrong = [(path, leaf) for path, leaf in leaves if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    if wrong or not leaves:
        where, leaf = wrong[0] if wrong else ((), None)
        raise InputError(
            explain_error(
                f"{_METHOD}: the start must contain only real floats.",
                where="start" + jax.tree_util.keystr(where),
                got=str(jnp.result_type(leaf)) if wrong else "no array at all",
                why="the optimizer follows derivatives, which other numbers do not have",
                fix=(
                    "photos: start.astype(jnp.float32) / 255",
                    "pass masks and token ids as further arguments: maximize(start, mask)",
                ),
            )
        )
    # Not weakly typed, because the first step would then change the type and be compiled twice.
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), start)


def _require_like(term: str, got: Any, x: Any) -> None:
    described = [jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", tree) for tree in (got, x)]
    if described[0] != described[1]:
        raise StructureError(
            explain_error(
                f"{_METHOD}: `{term}` must keep the structure, shape and dtype of x.",
                got=f"{described[0]}",
                need=f"{described[1]}",
            )
        )


def _functions(setting: str, given: Mapping[str, Any] | None) -> dict[str, Callable[..., Any]]:
    """The functions of a setting by name, each callable."""
    if given is not None and not isinstance(given, Mapping):
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


def _staged(term: str, function: Callable, parameters: Any, given: Any) -> Program:
    return _tried(f"{term} failed on", "x", lambda _: Program(_METHOD, function, parameters), given)


def _require_number(term: str, shape: Any, *, watched: bool) -> None:
    wanted = jnp.number if watched else jnp.floating
    if not (
        isinstance(shape, jax.ShapeDtypeStruct)
        and shape.shape == ()
        and ((watched and shape.dtype == bool) or jnp.issubdtype(shape.dtype, wanted))
    ):
        raise ScoreError(
            explain_error(
                f"{_METHOD}: {term} must return one {'' if watched else 'real '}number.",
                got=jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", shape),
                fix="sum its outputs, or pick one",
            )
        )


def _tried(what: str, name: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """`function(argument)`, with its shapes added to errors, which are mostly about shapes."""
    try:
        return function(argument)
    except JaxplainError:
        raise
    except (TypeError, ValueError) as error:
        shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), argument)
        raise StructureError(
            explain_error(
                f"{_METHOD}: {what} {name}.",
                got=f"{name} of shape {shapes}",
                why=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            )
        ) from error


def _is_traced(leaf: Any) -> bool:
    return isinstance(leaf, jax.core.Tracer)


def _loop(step: Callable, carry: tuple, n_steps: int, progress: bool | None) -> tuple[tuple, History]:
    """Runs the steps in compiled pieces, so that a long run shows its progress and stops when a term is not finite."""
    shown = n_steps >= _LONG if progress is None else progress
    size = -(-n_steps // _PIECES) if shown else n_steps
    run = jax.jit(lambda carry, steps: lax.scan(step, carry, steps))
    carry = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), carry)
    pieces: list[History] = []
    bar = None
    first = 0
    while first < n_steps:
        steps = jnp.arange(first, min(first + size, n_steps))
        carry, history = run(carry, steps)
        pieces.append(history)
        if _is_traced(history.score):
            size = n_steps  # all remaining steps
        else:
            _require_finite(history, (carry[0],), first)
            bar = tqdm(total=n_steps, unit="step", disable=not shown) if bar is None else bar
            bar.update(len(steps))
        first += len(steps)
    if bar is not None:
        bar.close()
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *pieces)


def _require_finite(history: History, after: Any, first: int) -> None:
    """Raises for the first term that is not finite.

    `first` is the number of the history's first step, and `after` the parameters after its last step.
    """
    terms = {"the score": history.score} | {f"the penalty {name!r}": p for name, p in history.penalties.items()}
    broken = [
        (at, name, tuple(run), np.asarray(values)[*run, at])
        for name, values in terms.items()
        for *run, at in np.argwhere(~np.isfinite(np.asarray(values))).tolist()
    ]
    if broken:
        at, name, run, value = min(broken, key=lambda found: (found[0], found[2]))
        where = f"step {first + at}" + (f" of run {run}" if run else "")
    elif not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(after)):
        at, name, value = 1, "its result", "not finite: a gradient is not, or the score is undefined there"
        where = f"step {first + history.score.shape[-1] - 1}"
    else:
        return
    raise NonFiniteError(
        explain_error(
            f"{_METHOD}: the objective is not finite.",
            where=where,
            got=f"{name} is {value}",
            fix=(
                "smaller steps: optimizer=optax.adam(0.01)",
                "a penalty or box that keeps x where the score is defined",
            )
            if first + at
            else "another start, because this one is not finite",
        )
    )
