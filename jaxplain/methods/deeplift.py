"""DeepLIFT: the change of a score from a reference to the input, handed down node by node."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain._accumulate import accumulate
from jaxplain._errors import SettingError, UnexplainedChangeError, UnknownNodeError, explain_error
from jaxplain._explainer import Call, Explainer, Info, make_explainer, positive_int, sum_gap
from jaxplain._references import References, pool_of
from jaxplain._tree import Leaves, cast_like, hidden, multiply, subtract, upcast
from jaxplain.graph.analysis import Analysis, Node, analyse
from jaxplain.graph.stage import Program
from jaxplain.graph.twin import Twin, TwinRule, difference, twin_replay
from jaxplain.rules.deeplift import by_sign, is_split, rescale, rescale_rule, reveal_cancel

# Which layers split a change into its positive and negative contributions. Where none does, RevealCancel is Rescale.
_SPLITS: dict[str, Callable[[Node], bool]] = {
    "rescale": lambda node: False,
    "reveal_cancel": lambda node: True,
    "genomics_default": lambda node: node.kind == "dense",
}
DEFAULT_CHUNK = 1


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
    method = "deeplift"
    for name, value, known in (("rule", rule, tuple(_SPLITS)), ("fallback", fallback, (None, "rescale"))):
        if value not in known:
            raise SettingError(
                explain_error(
                    f"{method}: unknown `{name}`.", got=repr(value), need=", ".join(repr(word) for word in known)
                )
            )
    chunk = positive_int(method, "chunk_size", DEFAULT_CHUNK if chunk_size is None else chunk_size)

    def compute(call: Call, key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        analysis = analyse(call.program.closed, depth=0, statistics="followed")
        rules = _chosen_rules(method, analysis, rule, fallback)
        references, n = pool_of(call.arguments, baseline, key)
        references = hidden(references, call.x)
        native = cast_like(call.x, call.arguments.leaves)
        staged = _multipliers(method, analysis, rules, native, split=rule != "rescale")

        def term(r: jax.Array) -> tuple[Leaves, jax.Array, jax.Array]:
            reference = tuple(leaf[r] for leaf in references)
            multipliers, _, value0, jump = staged(native, cast_like(reference, native))
            contributions = multiply(subtract(call.x, reference), upcast(multipliers))
            return contributions, _wide(value0), jax.nn.one_hot(jump, len(analysis.all_nodes()) + 2)

        summed, start, jumps = accumulate(term, n, chunk)
        jumps = jnp.asarray(jumps)[1:]
        _require_followed(method, analysis, jumps, n)
        is_followed = jnp.sum(jumps) == 0
        leaves = tuple(jnp.where(is_followed, leaf / n, jnp.nan) for leaf in summed)
        if not with_info:
            return leaves, None
        value, start = call.value(call.x), start / n
        return leaves, Info(
            value=value, baseline_value=start, gap=sum_gap(leaves, value, start), n_gradients=jnp.int32(n)
        )

    drawn = isinstance(baseline, References) and baseline.n is not None
    return make_explainer(method, f, compute, argnums=argnums, allow_random=allow_random, stochastic=drawn, key=key)


def _wide(value: jax.Array) -> jax.Array:
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def _multipliers(
    method: str, analysis: Analysis, rules: dict[Node, TwinRule], leaves: Leaves, *, split: bool
) -> Program:
    """The staged program `x, x₀ -> (multipliers, f(x), f(x₀), the number of a node that jumps)`."""
    run = twin_replay(analysis, rules.__getitem__, 2 if split else 1)

    def multipliers(x: Leaves, x0: Leaves) -> tuple[Leaves, jax.Array, jax.Array, jax.Array]:
        changes = tuple(difference(a, b).astype(a.dtype) for a, b in zip(x, x0, strict=True))

        def linear(variables: Leaves) -> tuple[jax.Array, tuple]:
            twins = [
                Twin(a, b, by_sign(c, c), by_sign(c, d)) if split else Twin(a, b, (), (d,))
                for a, b, c, d in zip(x, x0, changes, variables, strict=True)
            ]
            end, jump = run(twins)
            return sum(end.linear[1:], end.linear[0]), (end.x, end.x0, jump)

        out, pullback, (value, value0, jump) = jax.vjp(linear, changes, has_aux=True)
        return pullback(jnp.ones_like(out))[0], value, value0, jump

    return Program(method, multipliers, leaves, leaves)


def _chosen_rules(method: str, analysis: Analysis, rule: str, fallback: str | None) -> dict[Node, TwinRule]:
    """The rule of every node that has one of its own; an error that lists all nodes without one."""
    nodes = [node for node in analysis.all_nodes() if not node.bodies]
    if unknown := [node for node in nodes if rescale_rule(node) is None]:
        raise UnknownNodeError(
            explain_error(
                f"{method}: no rule is known for {len(unknown)} node{'s' if len(unknown) > 1 else ''} of the score.",
                where=_listed(unknown),
                why="their change from the reference to the input cannot be handed down exactly",
                fix=(
                    "a while loop: lax.scan, or lax.fori_loop with Python integers as bounds",
                    "write that part with operations that are known (an elementwise formula of any kind is one activation)",
                    "a function with a derivative of its own (custom_vjp): explain it without, or use integrated_gradients",
                ),
            )
        )
    if rule == "rescale":
        return {node: rescale(node) for node in nodes}
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
    return {node: reveal_cancel(node, _SPLITS[rule]) for node in nodes}


def _listed(nodes: list[Node]) -> str:
    return "".join(f"\n          {node.primitive} ({node.kind}): {node.source}" for node in nodes).lstrip()


def _require_followed(method: str, analysis: Analysis, jumps: jax.Array, n: int) -> None:
    """Raise if input and reference take different ways somewhere; `jumps` counts references for each node, last for the output."""
    if isinstance(jumps, jax.core.Tracer) or not np.any(np.asarray(jumps)):
        return  # while tracing, the attribution becomes NaN
    nodes = [node for node, count in zip(analysis.all_nodes(), np.asarray(jumps), strict=False) if count]
    is_branch = any(node.kind == "branch" for node in nodes)
    raise UnexplainedChangeError(
        explain_error(
            f"{method}: input and reference take different {'branches' if is_branch else 'ways'} through the score.",
            where=_listed(nodes) or "the score itself has no derivative",
            got=f"{int(np.max(np.asarray(jumps)))} of {n} reference{'s' if n > 1 else ''} for which an index, a mask or a branch is another one",
            why="that changes the score, and no input's change accounts for it; under jit the attribution is NaN",
            fix=(
                "a baseline that takes the same way: baseline=lambda x: …, jx.references(…)",
                "pass masks and indices as arguments, so that they are the same for both",
            ),
        )
    )
