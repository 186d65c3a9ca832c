"""What the engine sees of a score: its nodes, the rule that each gets, and where relevance goes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain._analysis.analyze import Analysis, Node, analyze
from jaxplain._arguments import Arguments
from jaxplain._checks import require_callable
from jaxplain._engine.node_view import Layer
from jaxplain._ir.program import Program, stage_score
from jaxplain._layers.table import Nodes, row, table
from jaxplain._split import staged
from jaxplain._types import Leaves
from jaxplain.methods._propagation import OnMissing, Start, analyzed, chosen_rules, propagated, rule_of, rules_setting
from jaxplain.rules._rule import Rule
from jaxplain.rules.composites import Composite


def layers(
    f: Callable[..., Any], *, argnums: int | Sequence[int] = 0, allow_random: bool = False
) -> Callable[..., Nodes]:
    """`layers(f)(x, *args)` lists the nodes of the score: path, kind, shape, position, source line.

    From shapes alone: nothing runs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> w = jnp.ones((3, 2))
        >>> [node.kind for node in jx.layers(lambda x: jnp.sum(jax.nn.relu(x @ w)))(jnp.ones(3))]
        ['dense', 'activation', 'sum']
    """
    require_callable("layers", f)

    def run(*args: Any) -> Nodes:
        # Of any function, of arrays of any type: names are wanted before there is anything to explain.
        analysis = analyze(staged("layers", f, args, argnums, allow_random).program.closed, look_ups=True)
        return Nodes(row(node, "") for node in analysis.all_nodes())

    return run


def plan(
    f: Callable[..., Any],
    *,
    rules: Composite | Rule,
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Callable[..., Nodes]:
    """`plan(f, rules=…)(x, *args)`: the nodes of the score and the rule that `lrp` would use for each, or "missing".

    From shapes alone: nothing runs, and nothing is refused.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> w = jnp.ones((3, 2))
        >>> score = lambda x: jnp.sum(jax.nn.relu(x @ w))
        >>> [node.rule for node in jx.plan(score, rules=jx.composites.epsilon_plus_flat())(jnp.ones(3))]
        ['flat', 'pass', 'norm(1e-06)']
    """
    require_callable("plan", f)
    composite = rules_setting("plan", rules)

    def run(*args: Any) -> Nodes:
        analysis = analyzed(_stage("plan", f, args, argnums, allow_random)[0], composite)
        chosen = ((node, rule_of(node, composite)) for node in analysis.all_nodes())
        return Nodes(row(node, "missing" if rule is None else rule.name) for node, rule in chosen)

    return run


@jax.tree_util.register_pytree_node_class
class Ledger:
    """Where the relevance of one explanation went, node by node. A pytree; prints as a table.

    Attributes:
        nodes: what the rows are (static).
        arriving: relevance at the node's outputs, summed; shape (n_nodes,), after `vmap` (batch, n_nodes). Units of f.
        leaving: relevance handed on to its inputs.
        to_bias: relevance that its bias kept.
        lost: arriving − leaving − to_bias: what stabilizers took, rules dropped, or constants received.
        relevance: the sum of the relevance of x.
        value: the score.
    """

    def __init__(self, nodes: Nodes, tallies: jax.Array, relevance: jax.Array, value: jax.Array):
        self.nodes = nodes
        self.tallies = tallies
        self.relevance = relevance
        self.value = value

    @property
    def arriving(self) -> jax.Array:
        return self.tallies[..., 0]

    @property
    def leaving(self) -> jax.Array:
        return self.tallies[..., 1]

    @property
    def to_bias(self) -> jax.Array:
        return self.tallies[..., 2]

    @property
    def lost(self) -> jax.Array:
        return self.arriving - self.leaving - self.to_bias

    def tree_flatten(self) -> tuple[tuple, Nodes]:
        return (self.tallies, self.relevance, self.value), self.nodes

    @classmethod
    def tree_unflatten(cls, nodes: Nodes, children: tuple) -> "Ledger":
        return cls(nodes, *children)

    def __repr__(self) -> str:
        if not all(isinstance(part, jax.Array | np.ndarray) for part in self.tree_flatten()[0]):
            return f"<ledger of {len(self.nodes)} nodes>"
        if isinstance(self.tallies, jax.core.Tracer):
            return f"<ledger of {len(self.nodes)} nodes, traced>"
        columns = [
            np.asarray(c).reshape(-1, len(self.nodes)).mean(0)
            for c in (self.arriving, self.leaving, self.to_bias, self.lost)
        ]
        rows = [
            (node.path, node.kind, node.rule, *(f"{column[i]:.6g}" for column in columns))
            for i, node in enumerate(self.nodes)
        ]
        listed = table(("path", "kind", "rule", "arriving", "leaving", "to bias", "lost"), rows)
        mean = "mean of the batch: " if np.ndim(self.value) else ""
        return f"{listed}\n{mean}score {np.mean(self.value):.6g}, relevance of x {np.mean(self.relevance):.6g}"


def ledger(
    f: Callable[..., Any],
    *,
    rules: Composite | Rule,
    start: Start = "score",
    on_missing: OnMissing = "error",
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Callable[..., Ledger]:
    """`ledger(f, rules=…)(x, *args)`: for every node of `lrp(f, rules=…)`, what relevance arrived, went on, and was lost.

    Arguments as in `lrp`. Inside loops the amounts of all iterations are summed. Works under `jit` and `vmap`. Cost: about 2 gradients.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> w, b = jnp.ones((3, 2)), jnp.array([1.0, 0.0])
        >>> score = lambda x: jnp.sum(jax.nn.relu(x @ w + b))
        >>> accounts = jx.ledger(score, rules=jx.rules.epsilon(1e-9))(jnp.ones(3))
        >>> [(node.kind, round(float(kept), 3)) for node, kept in zip(accounts.nodes, accounts.to_bias)]
        [('dense', 1.0), ('activation', 0.0), ('sum', 0.0)]
    """
    require_callable("ledger", f)
    composite = rules_setting("ledger", rules)

    def run(*args: Any) -> Ledger:
        program, leaves = _stage("ledger", f, args, argnums, allow_random)
        analysis = analyzed(program, composite)
        chosen = chosen_rules("ledger", analysis, composite, on_missing)
        nodes = [node for node in analysis.all_nodes() if not node.bodies]
        value, relevance, tallies = _accounts(analysis, chosen, start, nodes, leaves)
        return Ledger(Nodes(row(node, chosen[node].name) for node in nodes), tallies, relevance, value)

    return run


def _accounts(
    analysis: Analysis, rules: dict[Node, Rule], start: Start, nodes: list[Node], leaves: Leaves
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The score, the sum of its relevance at x, and the tally of each node: (arriving, leaving, to the bias)."""

    def tally(layer: Layer, arriving: tuple[jax.Array, ...], leaving: tuple[jax.Array, ...]) -> jax.Array:
        amounts = [sum(jnp.sum(r) for r in arriving), sum(jnp.sum(r) for r in leaving), layer.to_bias]
        # A sum rather than a stack: on Explicit meshes mapped and unmapped numbers do not stack.
        places = jnp.eye(len(amounts), dtype=dtype)
        return sum((place * amount for place, amount in zip(places, amounts, strict=True)), jnp.zeros(3, dtype))

    dtype = jnp.result_type(jnp.float32, *leaves)
    probes = {node: jnp.zeros(3, dtype) for node in nodes}
    value, relevance, tallies = propagated("ledger", analysis, rules, start, leaves, (probes, tally))(leaves)
    total = sum((jnp.sum(leaf, dtype=dtype) for leaf in relevance), jnp.zeros((), dtype))
    return value, total, jnp.stack(tallies)


def _stage(
    method: str, f: Callable[..., Any], args: tuple, argnums: int | Sequence[int], allow_random: bool
) -> tuple[Program, Leaves]:
    arguments = Arguments(method, args, argnums)

    def score(leaves: Leaves) -> Any:
        return f(*arguments.fill(leaves))

    return stage_score(method, score, arguments.leaves, allow_random=allow_random), arguments.leaves
