"""DeepLIFT: the change of a score from a reference to the input, handed down node by node."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain import _compat
from jaxplain._accumulate import accumulate
from jaxplain._analysis.activity import ACTIVE, STOPPED
from jaxplain._analysis.analyze import Analysis, analyze
from jaxplain._analysis.nodes import SOFTMAX, Node
from jaxplain._checks import chunk_of
from jaxplain._engine.paired import Paired, PairedRule, difference, paired_replay, wide
from jaxplain._errors import NonFiniteError, SettingError, UnexplainedChangeError, UnknownNodeError, explain_error
from jaxplain._explainer import Call, Explainer, Info, make_explainer, sum_gap
from jaxplain._ir.program import Program
from jaxplain._leaves import cast_like, multiply, subtract, total, upcast
from jaxplain._references import References, hidden, pool_of
from jaxplain._types import Leaves
from jaxplain.rules._deeplift import by_sign, is_split, rescale, reveal_cancel

# Which layers split a change into its positive and negative contributions. Where none does, RevealCancel is Rescale.
_SPLITS: dict[str, Callable[[Node], bool]] = {
    "rescale": lambda _: False,
    "reveal_cancel": lambda _: True,
    "genomics_default": lambda node: node.kind == "dense",
}


def deeplift(
    f: Callable[..., Any],
    *,
    baseline: Any = 0.0,
    rule: Literal["rescale", "reveal_cancel", "genomics_default"] = "rescale",
    fallback: Literal["rescale"] | None = None,
    chunk_size: int | None = None,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
    key: jax.Array | None = None,
) -> Explainer:
    r"""DeepLIFT: $R_i = m_i\,(x_i - b_i)$, with multipliers $m$ such that $\sum_i R_i = f(x) - f(b)$.

    The score is evaluated at the input x and at the reference b. Each node of the program explains the change of its output by the changes of its
    inputs, by a linear map with $M\,\Delta x = \Delta y$ exactly, and $m$ is the product of these maps, transposed:

    * layers, sums, moves: their derivative;
    * activations: $\Delta y / \Delta x$ at every element (Rescale); where $|\Delta x| \le 10\,\varepsilon \max(|x|, |x_0|)$, with ε
      the rounding of the dtype, the derivative halfway;
    * products: $\Delta(ab) = \bar b\,\Delta a + \bar a\,\Delta b$ with the means of both evaluations; a quotient y = a/b by the same rule for
      a = yb, which stays bounded where b is tiny at one of them; other functions of two values: each one's share, averaged over which
      of them changes first;
    * maxima: a rise belongs to the winner at the input, a fall to the winner at the reference;
    * softmax: its own derivative with p replaced by the logarithmic mean $(p - p_0) / \ln(p / p_0)$, so that no shift of the logits
      matters; log-softmax and logsumexp likewise; normalizations: as quotients, the change of the statistic followed;
    * sorting and indices in another order: half by each order, what is left in proportion to |Δx|.

    RevealCancel splits the change before an activation into the sum of positive and that of negative contributions w·Δx of the layer, or the sum
    of layers, before it, and gives each the mean of what it does alone and what it does after the other: so inputs that cancel each
    other are both seen. Where one alone is outside of the activation's domain, it is Rescale.

    Arguments:
        f: the score, `f(x, *args) -> real scalar` for one example. For a classifier, the logit; to see what speaks for one class and
            not for all, `jx.logit(model, of="centered")` (its logit minus the mean) or `of="contrast"`. A probability is handled
            (the softmax has a rule), but its changes are small where it saturates.
        baseline: the reference: a number, a pytree like x, a function `x -> reference` (a blurred x), or `jx.references(...)` for
            the mean over several (DeepSHAP). With several argnums a tuple (`None` leaves an argument alone).
        rule: "rescale"; "reveal_cancel", behind all layers; "genomics_default", the default of the authors' package: RevealCancel
            behind dense layers and sums of branches, Rescale behind convolutions and wherever RevealCancel is not defined.
        fallback: "rescale" lets "reveal_cancel" use Rescale for nodes that it is not defined for: maxima, products, softmax,
            sorting. None: they are an error.
        chunk_size: references evaluated together for each example.
        argnums, allow_random: as in `gradient`.
        key: random key shared by all examples, if `jx.references(..., n=)` draws.

    Returns:
        `explain(x, *args)`, with the structure, shapes and dtypes of x; units of f. Needs `key=` only if references are drawn.

    Guarantees: summation to delta, $\sum_i R_i = f(x) - f(b)$, to rounding; it is checked on every call, and what fails is refused.
    `Info.gap` is what is missing. (A program that computes in bfloat16 sums to bfloat16's rounding.) The exception: a user's
    `stop_gradient` between layers carries nothing, and the gap shows how much. On ReLU networks without biases and from a reference of zero, Rescale is input × gradient.
    Cost: 1 gradient and an evaluation at the reference, which all examples share if the reference is a constant; RevealCancel 2 to 3.5
    gradients. Times the number of references. Info: value, baseline_value, gap, n_gradients (one for each reference).
    Errors: operations without a rule (`while`, linear solvers, `jnp.prod`, a `custom_vjp` that cannot be read), all listed at once.
    `UnexplainedChangeError` where input and reference take different branches of a `cond`, or read through different indices or masks
    values that differ; under `jit` and `vmap` the attribution is NaN then. (Piecewise functions by table look-up, `jnp.interp`, too.)
    Misleads: Rescale does not see inputs that cancel each other, and depends on how the score computes its function: chapter 2.5.
    Differs from: Captum and SHAP override modules that they know: a function instead of a module, a module used twice, ReLU6 or a
    max-pool make the sum wrong there. The authors' package reads Keras 1 and 2 files and knows no additions of branches. None
    of them has RevealCancel on residual networks, attention by a rule that does not depend on the softmax's shift, or loops.

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
        Shrikumar, Greenside, Kundaje, Learning important features through propagating activation differences, ICML 2017.
        Lundberg, Lee, A unified approach to interpreting model predictions, NeurIPS 2017 (several references: DeepSHAP).
    """
    method = "deeplift"
    for name, value, known in (("rule", rule, tuple(_SPLITS)), ("fallback", fallback, (None, "rescale"))):
        if value not in known:
            raise SettingError(
                explain_error(
                    f"{method}: unknown `{name}`.", got=repr(value), need=", ".join(repr(word) for word in known)
                )
            )
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
            value=value, baseline_value=start, gap=sum_gap(leaves, value, start), n_gradients=jnp.int32(n)
        )

    drawn = isinstance(baseline, References) and baseline.n is not None
    return make_explainer(method, f, compute, argnums=argnums, allow_random=allow_random, stochastic=drawn, key=key)


def _tolerance(analysis: Analysis) -> tuple[float, float]:
    """How much of the sum rounding may miss in a program of this precision, and at least; infinite if the user stopped a gradient."""
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
    """Whether contributions are finite and sum to the change of the score, as far as its rounding tells."""
    gap = jnp.abs(sum_gap(contributions, value, value0))
    if tolerance == float("inf"):
        return jnp.isfinite(gap)
    distributed = total(tuple(map(jnp.abs, contributions)))
    size = jnp.maximum(distributed, jnp.abs(value - value0))
    rounding = jnp.maximum(jnp.abs(value), jnp.abs(value0))  # of the score's own two values
    return gap <= tolerance * size + tolerance**2 * 10 * rounding + smallest  # and not NaN


def _multipliers(
    method: str, analysis: Analysis, rules: dict[Node, PairedRule], leaves: Leaves, *, split: bool
) -> Program:
    """The staged program `x, x₀ -> (multipliers, f(x), f(x₀), the number of a node that jumps)`."""
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
    """The rule of every node that has one of its own; an error that lists all nodes without one."""
    nodes = [node for node in analysis.all_nodes() if not node.bodies]
    whole = {node: rescale(node) for node in nodes}
    if unknown := [node for node, known in whole.items() if known is None]:
        raise UnknownNodeError(
            explain_error(
                f"{method}: no rule is known for {len(unknown)} node{'s' if len(unknown) > 1 else ''} of the score.",
                where=_listed(unknown),
                why="their change from the reference to the input cannot be handed down exactly",
                fix=_ways_on({node.primitive for node in unknown}),
            )
        )
    if rule == "rescale":
        return {node: known for node, known in whole.items() if known is not None}
    undefined = [node for node in nodes if not is_split(node)]
    if rule == "reveal_cancel" and fallback is None and undefined:
        raise UnknownNodeError(
            explain_error(
                f"{method}: RevealCancel is not defined for {len(undefined)} node{'s' if len(undefined) > 1 else ''} of the score.",
                where=_listed(undefined),
                why="positive and negative parts of a change mean something in sums and in functions of one value only",
                fix=(
                    'the Rescale rule there: fallback="rescale"',
                    'the authors\' default, RevealCancel after dense layers and Rescale elsewhere: rule="genomics_default"',
                ),
            )
        )
    split = {node: reveal_cancel(node, _SPLITS[rule]) for node in nodes}
    return {node: known for node, known in split.items() if known is not None}


def _listed(nodes: list[Node]) -> str:
    return "".join(f"\n          {node.primitive} ({node.kind}): {node.source}" for node in nodes).lstrip()


def _ways_on(primitives: set[str]) -> tuple[str, ...]:
    known = {
        "while": "a while loop: lax.scan, or lax.fori_loop with Python integers as bounds",
        "reduce_prod": "jnp.prod: functools.reduce(jnp.multiply, …), or the exponential of a sum of logarithms",
        "custom_vjp_call": "a function with a derivative of its own (custom_vjp): explain the function itself",
    }
    return (
        *(text for name, text in known.items() if name in primitives),
        "write that part with operations that are known (an elementwise formula of any kind is one activation)",
        "a method that needs no rules: jx.integrated_gradients(score, baseline=…)",
    )


def _require_followed(method: str, analysis: Analysis, jumps: jax.Array, values: dict[str, jax.Array], n: int) -> None:
    """Raise if input and reference take different ways somewhere. `jumps` counts references: for each node, the output, the sum."""
    if isinstance(jumps, jax.core.Tracer) or not np.any(np.asarray(jumps)):
        return  # while tracing, the attribution becomes NaN
    for name, value in values.items():
        if not np.isfinite(value):
            raise NonFiniteError(
                explain_error(
                    f"{method}: the score is not finite at the {name}.",
                    got=f"f({name}) = {value}",
                    why="such as 0/0 in a norm at a reference of zero",
                    fix=(
                        "another reference: baseline=lambda x: …, jx.references(…)",
                        "a small number under the root or quotient",
                    ),
                )
            )
    *by_node, _, by_sum = np.asarray(jumps)
    nodes = [node for node, count in zip(analysis.all_nodes(), by_node, strict=True) if count]
    count = int(np.sum(np.asarray(jumps)))
    several = f"{count} of {n} reference{'s' if n > 1 else ''}"
    fixes = (
        "a reference that takes the same way: baseline=lambda x: …, jx.references(…)",
        "pass masks and indices as arguments, so that they are the same for both",
        "a method that follows the score from one to the other: jx.integrated_gradients(score, baseline=…)",
    )
    if by_sum and not nodes:
        raise UnexplainedChangeError(
            explain_error(
                f"{method}: the contributions do not sum to f(x) − f(reference).",
                got=f"{several} for which more is missing than rounding explains",
                why="large numbers that cancel in the score (E[x²] − E[x]²), an overflow, or a step that no derivative tells of",
                fix=('more digits: jax.config.update("jax_enable_x64", True) and float64 weights', *fixes[::2]),
            )
        )
    way = "branches" if any(node.kind == "branch" for node in nodes) else "ways"
    raise UnexplainedChangeError(
        explain_error(
            f"{method}: input and reference take different {way} through the score.",
            where=_listed(nodes) if nodes else "the score itself has no derivative",
            got=f"{several} for which an index, a mask or a branch is another one",
            why="that changes the score, and no input's change accounts for it; under jit the attribution is NaN",
            fix=fixes,
        )
    )
