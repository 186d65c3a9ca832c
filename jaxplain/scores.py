"""From a batched classifier to a score for one example, and a check that the model may be explained at all."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain._errors import LabelError, ModelModeError, ScoreError, SettingError, explain_error
from jaxplain._explainer import require_callable
from jaxplain.graph.stage import Program


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
    | `"log_prob"` | $z_c - \log\sum_j e^{z_j}$ | includes the evidence against all others |
    | `"prob"` | softmax | saturates: its gradient vanishes where the model is sure |
    | `"margin"` | $z_c - \max_{j \ne c} z_j$ | why c rather than the runner-up |
    | `"contrast"` | $z_a - z_b$ | why a rather than b: `score(x, a, b, *rest)` |
    | `"centered"` | $z_c - \frac1n\sum_j z_j$ | invariant to adding a constant to all logits |

    Arguments:
        apply: `apply(x_batch, *rest)` → outputs of shape (batch, classes). A Flax NNX or Equinox model works as it is; for Linen,
            `lambda x: model.apply(variables, x)`. x may be a pytree: every leaf gets the batch axis.
        of: which score, as above.

    Returns:
        `score(x, label, *rest)` for one example; label is an integer. A label outside [0, classes) is a `LabelError`
        if its value is known and NaN if it is traced (JAX's own indexing would clamp 12 of 10 to class 9 silently).

    Example:
        >>> import jax.numpy as jnp, jaxplain as jx
        >>> weights = jnp.array([[1.0, 2.0], [3.0, 5.0]])
        >>> score = jx.logit(lambda x: x @ weights)
        >>> print(jx.gradient(score)(jnp.array([1.0, 1.0]), 1))
        [2. 5.]
    """
    require_callable("logit", apply)
    if of not in _SCORES:
        raise SettingError(explain_error("logit: unknown `of`.", got=repr(of), need=", ".join(map(repr, _SCORES))))

    def outputs(x: Any, rest: tuple) -> jax.Array:
        out = apply(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], x), *rest)
        if not hasattr(out, "shape") or len(out.shape) != 2 or out.shape[0] != 1:
            raise ScoreError(
                explain_error(
                    "logit: the classifier must return one row of class scores for each example.",
                    got=f"shape {out.shape}" if hasattr(out, "shape") else type(out).__name__,
                    need="shape (1, classes) for the batch of one that logit passes",
                    fix=(
                        "select it: jx.logit(lambda x: model(x)[0])",
                        "another kind of output: write the score yourself, score = lambda x: model(x[None])[…]",
                    ),
                )
            )
        return out[0]

    if of == "contrast":

        def contrast(x: Any, a: Any, b: Any, *rest: Any) -> jax.Array:
            z = outputs(x, rest)
            return _pick(z, a) - _pick(z, b)

        return contrast

    def score(x: Any, label: Any, *rest: Any) -> jax.Array:
        return _SCORES[of](outputs(x, rest), label)

    return score


def _pick(values: jax.Array, label: Any) -> jax.Array:
    """values[label]; out of range an error, or NaN (in its derivative too) for a traced label."""
    n = values.shape[0]
    if jnp.shape(label) != () or not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise LabelError(
            explain_error(
                "logit: the label must be one integer for one example.",
                got=f"{jnp.result_type(label)}{list(jnp.shape(label))}",
                fix="map over the batch: jax.vmap(explain)(images, labels)",
            )
        )
    if not isinstance(label, jax.core.Tracer):
        if not 0 <= int(label) < n:
            raise LabelError(
                explain_error(
                    f"logit: there is no class {int(label)}.",
                    got=f"label {int(label)}",
                    need=f"0 to {n - 1}: the model has {n} classes",
                )
            )
        return values[int(label)]
    # A factor, not a `where`: the derivative of an unselected branch would be a silent zero.
    valid = jnp.where((label >= 0) & (label < n), 1.0, jnp.nan).astype(values.dtype)
    return values[jnp.clip(label, 0, n - 1)] * valid


def _margin(z: jax.Array, label: Any) -> jax.Array:
    if z.shape[0] < 2:
        raise ScoreError(explain_error("logit: a margin needs at least two classes.", got=f"{z.shape[0]} class"))
    picked = _pick(z, label)
    return picked - jnp.max(jnp.where(jnp.arange(z.shape[0]) == label, -jnp.inf, z))


_SCORES: dict[str, Callable[..., jax.Array]] = {
    "logit": _pick,
    "log_prob": lambda z, label: _pick(jax.nn.log_softmax(z), label),
    "prob": lambda z, label: _pick(jax.nn.softmax(z), label),
    "margin": _margin,
    "contrast": _pick,  # the difference of two picks; see `logit`
    "centered": lambda z, label: _pick(z, label) - jnp.mean(z),
}


def check(apply: Callable[..., Any], xs: Any, *rest: Any, n_examples: int = 4, rtol: float = 1e-3) -> None:
    """Check that `apply(xs, *rest)` treats every example on its own and the same way each time.

    Run it once on a few examples before explaining a model. It traces `apply` (training-mode state changes and dropout
    surface there, without touching the model's state), looks for random draws, runs the batch twice through separate
    traces, and compares examples run alone with the same examples run together: batch statistics and any other mixing of
    examples differ.

    Arguments:
        apply: the batched model: outputs with a leading batch axis (any pytree).
        xs: inputs with a leading batch axis of at least 2; take real, different examples.
        *rest: further arguments of `apply`, the same for all examples.
        n_examples: how many examples are also run alone.
        rtol: largest difference accepted, relative to the largest output (float32 sums differ by about 1e-6 between
            batch sizes, bf16 models by about 1e-2).

    Raises:
        ModelModeError: naming what was found, the size of the difference, and the fix.
    """
    require_callable("check", apply)
    size = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(xs)}
    if len(size) != 1 or next(iter(size)) in ((), (0,), (1,)):
        raise SettingError(
            explain_error(
                "check: needs a batch of at least two examples on the leading axis of every leaf.",
                got=f"leading axes {sorted(map(list, size))}",
            )
        )
    xs = jax.tree.map(jnp.asarray, xs)
    together = Program("check", lambda x: apply(x, *rest), xs).refuse_randomness()(xs)
    again = Program("check", lambda x: apply(x, *rest), xs)(xs)
    _compare(
        "two runs of the same batch differ", together, again, 0.0, "it keeps state or draws random numbers in Python"
    )
    alone = Program("check", lambda x: apply(x, *rest), _example(xs, 0)).refuse_randomness()
    for i in range(min(n_examples, next(iter(size))[0])):
        _compare(
            f"example {i} alone and in the batch differ",
            _example(together, i),
            alone(_example(xs, i)),
            rtol,
            "batch statistics (batch-norm in training mode), or an operation across the batch axis",
        )


def _example(batch: Any, i: int) -> Any:
    """Example i as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[i : i + 1], batch)


def _compare(what: str, expected: Any, got: Any, rtol: float, why: str) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        difference = np.max(np.abs(a.astype(float) - b.astype(float)), initial=0.0) if a.shape == b.shape else np.inf
        if not difference <= rtol * np.max(np.abs(a.astype(float)), initial=0.0):
            raise ModelModeError(
                explain_error(
                    f"check: {what}.",
                    where=f"output{jax.tree_util.keystr(path)}",
                    got=f"largest difference {difference:.2e}",
                    need=f"at most {rtol:g} of the largest output",
                    why=why,
                    fix="model.eval(), nnx.view(model, deterministic=True, use_running_average=True), or train=False",
                )
            )
