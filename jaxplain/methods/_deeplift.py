"""DeepLIFT: distributes the change of a score from a reference to the input, node by node."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain import _compat
from jaxplain._accumulate import accumulate
from jaxplain._analysis.activity import ACTIVE, STOPPED
from jaxplain._analysis.analyze import Analysis, analyze
from jaxplain._analysis.nodes import SOFTMAX, Node
from jaxplain._checks import checked, chunk_of, one_of
from jaxplain._engine.paired import Paired, PairedRule, difference, paired_replay, wide
from jaxplain._errors import NonFiniteError, UnexplainedChangeError, UnknownNodeError, explain_error
from jaxplain._explainer import Call, Explainer, Info, make_explainer, sum_gap
from jaxplain._ir.program import Program
from jaxplain._leaves import cast_like, multiply, same_dtype, subtract, total, upcast
from jaxplain._references import hidden, is_drawn, pool_of
from jaxplain._types import ArgNums, Baseline, Leaves, Score
from jaxplain.methods._propagation import count_of, listed, require_rules
from jaxplain.rules._deeplift import by_sign, is_split, rescale, reveal_cancel

# The layers that split a change into its positive and negative contributions. Without any, RevealCancel is Rescale.
_SPLITS: dict[str, Callable[[Node], bool]] = {
    "rescale": lambda _: False,
    "reveal_cancel": lambda _: True,
    "genomics_default": lambda node: node.kind == "dense",
}


@checked()
def deeplift(
    f: Score,
    *,
    baseline: Baseline = 0.0,
    rule: Literal["rescale", "reveal_cancel", "genomics_default"] = "rescale",
    fallback: Literal["rescale"] | None = None,
    chunk_size: int | None = None,
    argnums: ArgNums = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""DeepLIFT: $R_i = m_i\,(x_i - b_i)$, with multipliers $m$ such that $\sum_i R_i = f(x) - f(b)$.

    The score is evaluated at the input x and at the reference b. Each node of the program attributes the change of its
    output to its inputs by a linear map with $M\,\Delta x = \Delta y$, and $m$ is the transposed product of these maps.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example. For a classifier, use the logit; to see the evidence
            for one class as opposed to all, `jx.logit(model, of="centered")` (the logit minus the mean) or
            `of="contrast"`. Probabilities work (the softmax has a rule), but change little where they saturate.
        baseline: The reference: a number, a pytree like x, a function `x -> reference` (a blurred x), or
            `jx.references(...)` for the mean over several (DeepSHAP). With several argnums a tuple, where `None` leaves
            an argument unchanged.
        rule: "rescale"; "reveal_cancel" after all layers; or "genomics_default", the default of the authors' package:
            RevealCancel after dense layers and sums of branches, Rescale after convolutions and wherever RevealCancel
            is undefined.
        fallback: "rescale" lets "reveal_cancel" use Rescale for nodes for which it is undefined (maxima, products,
            softmax, sorting). With None they are an error.
        chunk_size: Number of references evaluated together for each example.
        argnums, allow_random: As in `gradient`.
        key: Random key shared by all examples, if `jx.references(..., n=)` draws.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x; units of f. Needs `key=` only if references are
        drawn.

    Guarantees: summation to delta, $\sum_i R_i = f(x) - f(b)$, to the rounding of the program. Every call checks this,
    and refuses if it fails; `Info.gap` is the difference. Exception: a `stop_gradient` of the user between layers
    carries nothing, and the gap shows how much. On ReLU networks without biases and with a reference of zero, Rescale
    is input × gradient.
    Cost: for each reference, 1 gradient and 1 evaluation at the reference, which all examples share if the reference is
    a constant; RevealCancel costs 2 to 3.5 gradients. Info: value, baseline_value, gap, n_gradients and n_evaluations
    (one of each for each reference).
    Errors: operations without a rule (`while`, linear solvers, `jnp.prod`, an opaque `custom_vjp`), all listed at once.
    `UnexplainedChangeError` if input and reference take different branches of a `cond`, or read different values
    through different indices or masks (as `jnp.interp` does); under `jit` and `vmap` the attribution is then NaN.
    Misleads: Rescale misses inputs that cancel each other, and depends on how the score computes its function: chapter
    2.5.
    Differs from: Captum and SHAP override known modules, so that a function instead of a module, a module used twice,
    ReLU6 or a max-pool makes the sum wrong. The authors' package reads Keras 1 and 2 files and has no rule for
    additions of branches. None of them has RevealCancel on residual networks, attention by a rule that is invariant to
    shifts of the logits, or loops.

    Note: the linear maps of the nodes are

    * layers, sums, data movement: the derivative;
    * activations (Rescale): $\Delta y / \Delta x$ for every element, or the derivative halfway if
      $|\Delta x| \le 10\,\varepsilon \max(|x|, |x_0|)$ with the rounding error ε of the dtype;
    * products: $\Delta(ab) = \bar b\,\Delta a + \bar a\,\Delta b$ with the means of both evaluations. A quotient y =
      a/b uses the same rule for a = yb, which stays bounded if b is tiny at one of them. Other functions of two values:
      the effect of each, averaged over both orders in which they can change;
    * maxima: a rise belongs to the winner at the input, a fall to the winner at the reference;
    * softmax: its derivative with p replaced by the logarithmic mean $(p - p_0) / \ln(p / p_0)$, so that shifts of the
      logits have no effect; log-softmax and logsumexp likewise. Normalizations: as quotients, including the change of
      the statistic;
    * sorting and indices that differ: half by each order, the remainder in proportion to |Δx|.

    RevealCancel splits the change before an activation into the sums of the positive and of the negative contributions
    w·Δx of the preceding layer (or sum of layers). Each sum gets the mean of its effect alone and its effect after the
    other, so that inputs that cancel each other both count. If one sum alone is outside the activation's domain, it is
    Rescale.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> score = lambda x: 1 - jax.nn.relu(1 - x[0] - x[1])  # saturates: no gradient at (3, 1)
        >>> print(jx.deeplift(score)(jnp.array([3.0, 1.0])))
        [0.75 0.25]
        >>> minimum = lambda x: x[0] - jax.nn.relu(x[0] - x[1])
        >>> x = jnp.array([3.0, 1.0])
        >>> print(jx.deeplift(minimum)(x), jx.deeplift(minimum, rule="reveal_cancel")(x).round(3))
        [0. 1.] [0.5 0.5]

    References:
        Shrikumar, Greenside, Kundaje, Learning important features through propagating activation differences, ICML
        2017.
        Lundberg, Lee, A unified approach to interpreting model predictions, NeurIPS 2017 (DeepSHAP).
    """
    method = "deeplift"
    for name, value, known in (("rule", rule, tuple(_SPLITS)), ("fallback", fallback, (None, "rescale"))):
        one_of(method, name, value, known)
    chunk = chunk_of(method, chunk_size)

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        analysis = analyze(call.program.closed, depth=0, statistics="followed")
        rules = _chosen_rules(method, analysis, rule, fallback)
        references, n = pool_of(call.arguments, baseline, key)
        references = hidden(references, call.x)
        native = cast_like(call.x, call.arguments.leaves)
        staged = _multipliers(method, analysis, rules, native, split=rule != "rescale")
        n_nodes, tolerance = len(analysis.all_nodes()), _tolerance(analysis)
        references = tuple(_compat.varying_like(b, jax.typeof(a)) for a, b in zip(native, references, strict=True))

        def term(r: jax.Array) -> tuple[Leaves, jax.Array, jax.Array, jax.Array]:
            reference = tuple(leaf[r] for leaf in references)
            multipliers, value, value0, jump = staged(native, cast_like(reference, native))
            value, value0 = wide(value), wide(value0)
            contributions = multiply(subtract(call.x, reference), upcast(multipliers))
            is_summed = _sums(contributions, value, value0, *tolerance)
            jump = jnp.where((jump == 0) & ~is_summed, n_nodes + 2, jump)
            return contributions, value / n, value0, jax.nn.one_hot(jump, n_nodes + 3)

        summed, value, start, jumps = accumulate(term, n, chunk)
        start = start / n
        jumps = jumps[1:]
        _require_followed(method, analysis, jumps, {"input": value, "reference": start}, n)
        is_followed = jnp.sum(jumps) == 0
        leaves = tuple(jnp.where(is_followed, leaf / n, jnp.nan) for leaf in summed)
        if not with_info:
            return leaves, None
        return leaves, Info(
            value=value,
            baseline_value=start,
            gap=sum_gap(leaves, value, start),
            n_gradients=jnp.int32(n),
            n_evaluations=jnp.int32(n),
        )

    drawn = is_drawn(baseline)
    return make_explainer(
        method, f, compute, argnums=argnums, allow_random=allow_random, stochastic=drawn, key=key, follows_steps=True
    )


def _tolerance(analysis: Analysis) -> tuple[float, float]:
    """Relative and absolute tolerance of the sum at the program's precision; infinite with a user's stop_gradient."""
    activity = analysis.activity
    dtypes = [
        v.aval.dtype for node in analysis.all_nodes() for v in (*node.inputs, *node.outputs) if activity[v] is ACTIVE
    ]
    coarsest = max(map(jnp.finfo, dtypes), key=lambda known: float(known.eps), default=jnp.finfo(jnp.float32))
    stopped = any(activity[v] is STOPPED for v in analysis.graph.outputs)
    for node in analysis.all_nodes():
        read = node.equations[0].inputs if node.bodies else node.others
        stopped |= node.kind not in SOFTMAX and any(activity[v] is STOPPED for v in read)
    return (float("inf") if stopped else float(coarsest.eps) ** 0.5), float(coarsest.tiny)


def _sums(contributions: Leaves, value: jax.Array, value0: jax.Array, tolerance: float, smallest: float) -> jax.Array:
    """Whether contributions are finite and sum to the change of the score, up to rounding."""
    gap = jnp.abs(sum_gap(contributions, value, value0))
    if tolerance == float("inf"):
        return jnp.isfinite(gap)
    distributed, value, value0 = same_dtype(total(tuple(map(jnp.abs, contributions))), value, value0)
    size = jnp.maximum(distributed, jnp.abs(value - value0))
    rounding = jnp.maximum(jnp.abs(value), jnp.abs(value0))  # of the score's own two values
    return gap <= tolerance * size + tolerance**2 * 10 * rounding + smallest  # and not NaN


def _multipliers(
    method: str, analysis: Analysis, rules: dict[Node, PairedRule], leaves: Leaves, *, split: bool
) -> Program:
    """The staged program `x, x₀ -> (multipliers, f(x), f(x₀), number of a node that jumps)`."""
    run = paired_replay(analysis, rules.__getitem__, 2 if split else 1)

    def multipliers(x: Leaves, x0: Leaves) -> tuple[Leaves, jax.Array, jax.Array, jax.Array]:
        changes = tuple(difference(a, b).astype(a.dtype) for a, b in zip(x, x0, strict=True))

        def linear(variables: Leaves) -> tuple[jax.Array, tuple]:
            points = [
                Paired(a, b, by_sign(c, c), by_sign(c, d)) if split else Paired(a, b, (), (d,))
                for a, b, c, d in zip(x, x0, changes, variables, strict=True)
            ]
            end, jump = run(points)
            return sum(end.linear[1:], end.linear[0]), (end.x, end.x0, jump)

        out, pullback, (value, value0, jump) = jax.vjp(linear, changes, has_aux=True)
        return pullback(jnp.ones_like(out))[0], value, value0, jump

    return Program(method, multipliers, leaves, leaves)


def _chosen_rules(method: str, analysis: Analysis, rule: str, fallback: str | None) -> dict[Node, PairedRule]:
    """The rule of every node without bodies; an error that lists all nodes without a rule."""
    nodes = [node for node in analysis.all_nodes() if not node.bodies]
    whole = require_rules(
        method,
        {node: rescale(node) for node in nodes},
        why="their change from the reference to the input cannot be distributed exactly",
        fix=("a method that needs no rules: jx.integrated_gradients(score, baseline=…)",),
    )
    if rule == "rescale":
        return whole
    undefined = [node for node in nodes if not is_split(node)]
    if rule == "reveal_cancel" and fallback is None and undefined:
        raise UnknownNodeError(
            explain_error(
                f"{method}: RevealCancel is not defined for {count_of(undefined)} of the score.",
                where=listed(undefined),
                why="only sums and functions of one value can be split into a positive and a negative part",
                fix=(
                    'use the Rescale rule there: fallback="rescale"',
                    'the authors\' default, RevealCancel only after dense layers: rule="genomics_default"',
                ),
            )
        )
    split = {node: reveal_cancel(node, _SPLITS[rule]) for node in nodes}
    return {node: known for node, known in split.items() if known is not None}


def _require_followed(method: str, analysis: Analysis, jumps: jax.Array, values: dict[str, jax.Array], n: int) -> None:
    """Raises if input and reference take different paths through the score.

    `jumps` counts references: for each node, for the output, and for the sum.
    """
    if isinstance(jumps, jax.core.Tracer) or not np.any(np.asarray(jumps)):
        return  # under tracing the attribution is NaN instead
    for name, value in values.items():
        if not np.isfinite(value):
            raise NonFiniteError(
                explain_error(
                    f"{method}: the score is not finite at the {name}.",
                    got=f"f({name}) = {value}",
                    why="for example 0/0 in a norm at a reference of zero",
                    fix=(
                        "another reference: baseline=lambda x: …, jx.references(…)",
                        "add a small number inside the root or quotient",
                    ),
                )
            )
    *by_node, _, by_sum = np.asarray(jumps)
    nodes = [node for node, count in zip(analysis.all_nodes(), by_node, strict=True) if count]
    count = int(np.sum(np.asarray(jumps)))
    several = f"{count} of {n} reference{'s' if n > 1 else ''}"
    fixes = (
        "a reference that takes the same path: baseline=lambda x: …, jx.references(…)",
        "pass masks and indices as arguments, so that both use the same",
        "a method that follows the score between the two: jx.integrated_gradients(score, baseline=…)",
    )
    if by_sum and not nodes:
        raise UnexplainedChangeError(
            explain_error(
                f"{method}: the contributions do not sum to f(x) − f(reference).",
                got=f"{several} with a gap that rounding does not explain",
                why="the score cancels large numbers (E[x²] − E[x]²), overflows, or has a step without a derivative",
                fix=('more precision: jax.config.update("jax_enable_x64", True) and float64 weights', *fixes[::2]),
            )
        )
    paths = "branches" if any(node.kind == "branch" for node in nodes) else "paths"
    raise UnexplainedChangeError(
        explain_error(
            f"{method}: input and reference take different {paths} through the score.",
            where=listed(nodes) if nodes else "the score itself has no derivative",
            got=f"{several} with a different index, mask or branch",
            why="this changes the score, but no change of an input accounts for it; under jit the attribution is NaN",
            fix=fixes,
        )
    )
