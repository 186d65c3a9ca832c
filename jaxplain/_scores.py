"""`logit` turns a batched classifier into a score of one example; `check` tests whether a model can be explained."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxplain._checks import checked, one_of, require_callable
from jaxplain._errors import LabelError, ModelModeError, NonFiniteError, ScoreError, SettingError, explain_error
from jaxplain._ir.program import Program
from jaxplain._leaves import same_dtype
from jaxplain._types import PyTree


def logit(
    apply: Callable[..., jax.Array],
    *,
    of: Literal["logit", "log_prob", "prob", "margin", "contrast", "centered"] = "logit",
) -> Callable[..., jax.Array]:
    r"""The score of one class of a batched classifier: `apply(x_batch, *rest)` → `score(x, label, *rest)`.

    With z the classifier's output for `x[None]`, shape (1, classes):

    | `of` | score | |
    | --- | --- | --- |
    | `"logit"` | $z_c$ | the usual choice; maps of different classes are comparable |
    | `"log_prob"` | $z_c - \log\sum_j e^{z_j}$ | includes the evidence against the other classes |
    | `"prob"` | softmax | saturates: its gradient vanishes where the model is certain |
    | `"margin"` | $z_c - \max_{j \ne c} z_j$ | why c rather than the runner-up |
    | `"contrast"` | $z_a - z_b$ | why a rather than b: `score(x, a, b, *rest)` |
    | `"centered"` | $z_c - \frac1n\sum_j z_j$ | invariant to adding a constant to all logits |

    Arguments:
        apply: `apply(x_batch, *rest)` → outputs of shape (batch, classes). A Flax NNX or Equinox model can be passed
            directly; for Linen, `lambda x: model.apply(variables, x)`. x may be a pytree, in which every leaf gets the
            batch axis.
        of: The score, see the table.

    Returns:
        `score(x, label, *rest)` for one example; label is an integer. A label outside [0, classes) raises `LabelError`
        if its value is known, and gives NaN if it is traced (JAX's indexing would silently clamp class 12 of 10 to
        class 9).

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> weights = jnp.array([[1.0, 2.0], [3.0, 5.0]])
        >>> score = jx.logit(lambda x: x @ weights)
        >>> print(jx.gradient(score)(jnp.array([1.0, 1.0]), 1))
        [2. 5.]
    """
    require_callable("logit", apply)
    one_of("logit", "of", of, _SCORES)

    def outputs(x: PyTree, rest: tuple) -> jax.Array:
        out = apply(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], x), *rest)
        if not hasattr(out, "shape") or len(out.shape) != 2 or out.shape[0] != 1:
            raise ScoreError(
                explain_error(
                    "logit: the classifier must return one row of class scores for each example.",
                    got=(f"shape {out.shape}" if hasattr(out, "shape") else type(out).__name__)
                    + f" for x of shape {', '.join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(x))}",
                    need="shape (1, classes), x being one example, to which logit adds the batch axis",
                    fix=(
                        "if x is a batch: jax.vmap(explain)(xs, labels), or explain(xs[0], labels[0])",
                        "for several outputs: jx.logit(lambda x: model(x)[0])",
                        "for other outputs, your own score: score = lambda x: model(x[None])[…]",
                    ),
                )
            )
        return out[0]

    if of == "contrast":

        def contrast(x: PyTree, a: ArrayLike, b: ArrayLike, *rest: PyTree) -> jax.Array:
            return _SCORES[of](outputs(x, rest), a, b)

        return contrast

    def score(x: PyTree, label: ArrayLike, *rest: PyTree) -> jax.Array:
        return _SCORES[of](outputs(x, rest), label)

    return score


def _pick(values: jax.Array, label: int | jax.Array) -> jax.Array:
    """values[label]. Out of range, an error, or NaN (also in its derivative) if the label is traced."""
    n = values.shape[0]
    shape, dtype = getattr(label, "shape", ()), getattr(label, "dtype", type(label))
    if shape != () or not jnp.issubdtype(dtype, jnp.integer):
        raise LabelError(
            explain_error(
                "logit: the label must be one integer for one example.",
                got=f"{dtype}{list(shape)}" if hasattr(label, "dtype") else repr(label),
                need=f"0 to {n - 1}: the model has {n} classes",
                fix=(
                    "a batch of labels: jax.vmap(explain)(images, labels)",
                    "a class by its name: explain(image, names.index(name))",
                ),
            )
        )
    if not isinstance(label, jax.core.Tracer):
        if not 0 <= int(label) < n:
            raise LabelError(
                explain_error(
                    f"logit: there is no class {int(label)}.",
                    got=f"label {int(label)}",
                    need=f"0 to {n - 1}: the model has {n} classes",
                    fix=_ONE_LOGIT if n == 1 else (),
                )
            )
        return values[int(label)]
    # A factor rather than a `where`, because the derivative of an unselected branch would silently be zero.
    valid = jnp.where((label >= 0) & (label < n), 1.0, jnp.nan).astype(values.dtype)
    return values[jnp.clip(label, 0, n - 1)] * valid


_ONE_LOGIT = (
    "one logit z of two classes: jx.logit(lambda x: jnp.concatenate([-model(x), model(x)], axis=-1) / 2), "
    "whose probabilities are those of the sigmoid",
    "class 1 against class 0: label 0, whose logit is z itself",
)


def _margin(z: jax.Array, label: int | jax.Array) -> jax.Array:
    if z.shape[0] < 2:
        raise ScoreError(explain_error("logit: a margin needs at least two classes.", got=f"{z.shape[0]} class"))
    picked = _pick(z, label)
    classes, label = same_dtype(jnp.arange(z.shape[0]), label)
    return picked - jnp.max(jnp.where(classes == label, -jnp.inf, z))


_SCORES: dict[str, Callable[..., jax.Array]] = {
    "logit": _pick,
    "log_prob": lambda z, label: _pick(jax.nn.log_softmax(z), label),
    "prob": lambda z, label: _pick(jax.nn.softmax(z), label),
    "margin": _margin,
    "contrast": lambda z, a, b: _pick(z, a) - _pick(z, b),
    "centered": lambda z, label: _pick(z, label) - jnp.mean(z),
}


@checked()
def check(apply: Callable[..., PyTree], xs: PyTree, *rest: PyTree, n_examples: int = 4, rtol: float = 1e-3) -> None:
    """Checks that `apply(xs, *rest)` processes every example independently and deterministically.

    Run it once on a few examples before you explain a model. It traces `apply` (which reveals state changes of training
    mode and dropout, without touching the model's state), looks for random draws, and runs the batch twice through
    separate traces. Then it compares each example's output in its batch with its output

    * in a batch of copies of itself. Batch statistics and any other mixing of examples change it. Shapes and program
      are the same, so the outputs must agree in every digit;
    * in a batch of its own. Operations that depend on the batch size change it.

    Arguments:
        apply: The batched model; its outputs are a pytree with a leading batch axis.
        xs: Inputs with a leading batch axis of length at least 2. Use real, distinct examples.
        *rest: Further arguments of `apply`, the same for all examples.
        n_examples: Number of examples to compare.
        rtol: Largest accepted difference between an example in its batch and alone, relative to the range of the
            outputs. 16 units in the last place of the largest output are accepted in addition, because sums are rounded
            differently in batches of another size. Smaller dependences on the batch size go unnoticed.

    Raises:
        NonFiniteError: The output contains NaN or infinity.
        ModelModeError: The outputs differ. The error says where, by how much, and how to fix it.
    """
    require_callable("check", apply)
    size = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(xs)}
    if len(size) != 1 or next(iter(size)) in ((), (0,), (1,)):
        raise SettingError(
            explain_error(
                "check: needs a batch of at least two examples along the leading axis of every leaf.",
                got=f"leading axes {sorted(map(list, size))}",
            )
        )
    xs = jax.tree.map(jnp.asarray, xs)
    run = Program("check", lambda x: apply(x, *rest), xs).refuse_randomness()
    together = run(xs)
    if any(jnp.shape(leaf)[:1] != next(iter(size)) for leaf in jax.tree.leaves(together)) or together is None:
        raise SettingError(
            explain_error(
                "check: the model must return one row for each example.",
                got=", ".join(f"{list(jnp.shape(leaf))}" for leaf in jax.tree.leaves(together)) or "no array",
                need=f"{next(iter(size))[0]} along the leading axis of every output",
            )
        )
    _require_finite(together)
    repeated = Program("check", lambda x: apply(x, *rest), xs)(xs)
    _compare(
        "two runs of the same batch differ", together, repeated, "it keeps state or draws random numbers in Python"
    )
    alone = Program("check", lambda x: apply(x, *rest), _example(xs, 0)).refuse_randomness()
    allowed = [_allowed(leaf, rtol) for leaf in jax.tree.leaves(together)]
    for i in range(min(n_examples, next(iter(size))[0])):
        expected = _example(together, i)
        _compare(
            f"example {i} changes with the other examples of its batch",
            expected,
            _example(run(_copies(xs, i)), i),
            "batch statistics (batch norm in training mode), or an operation across the batch axis",
        )
        _compare(
            f"example {i} alone and in the batch differ",
            expected,
            alone(_example(xs, i)),
            "something depends on the size of the batch",
            allowed,
        )
    rows = [_wide(leaf) for leaf in jax.tree.leaves(xs)]
    if all((row == row[:1]).all() for row in rows):
        raise SettingError(
            explain_error(
                "check: all examples are equal, so nothing can be seen of a model that mixes them.",
                fix="xs: a batch of different examples",
            )
        )


def _example(batch: PyTree, i: int) -> PyTree:
    """Example i as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[i : i + 1], batch)


def _copies(batch: PyTree, i: int) -> PyTree:
    """The batch with every example replaced by example i."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[i], leaf.shape), batch)


def _require_finite(outputs: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if not np.isfinite(_wide(leaf)).all():
            raise NonFiniteError(
                explain_error(
                    "check: the model's output contains NaN or infinity.",
                    where=f"output{jax.tree_util.keystr(path)}",
                    got=f"{np.sum(~np.isfinite(_wide(leaf)))} of {leaf.size} numbers",
                    fix=("look for NaN in xs and in the weights", "find its origin: jax.debug_nans(True)"),
                )
            )


def _wide(leaf: ArrayLike) -> np.ndarray:
    """The leaf in double precision, so that bfloat16 and differences of unsigned integers are exact."""
    array = np.asarray(leaf)
    return array.astype(np.promote_types(array.dtype, np.float64))


def _allowed(leaf: jax.Array, rtol: float) -> float:
    """Tolerance between two batch sizes: `rtol` times the outputs' range, plus rounding of the largest."""
    values = _wide(leaf)
    rounding = 16 * jnp.finfo(leaf.dtype).eps if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
    return float(rtol * np.ptp(values) + rounding * np.max(np.abs(values))) if values.size else 0.0


def _compare(what: str, expected: PyTree, got: PyTree, why: str, allowed: list[float] | None = None) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, a), b, limit in zip(leaves, jax.tree.leaves(got), allowed or [0.0] * len(leaves), strict=True):
        a, b = _wide(a), _wide(b)
        difference = np.max(np.abs(a - b), initial=0.0) if a.shape == b.shape else np.inf
        if not difference <= limit:
            raise ModelModeError(
                explain_error(
                    f"check: {what}.",
                    where=f"output{jax.tree_util.keystr(path)}",
                    got=f"largest difference {difference:.2e}",
                    need=f"at most {limit:.2e}",
                    why=why,
                    fix="model.eval(), nnx.view(model, deterministic=True, use_running_average=True), or train=False",
                )
            )
