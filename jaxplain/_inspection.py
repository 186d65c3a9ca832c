"""Shows how the engine sees a score: its nodes, the rule of each, and where relevance goes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain._analysis.analyze import Analysis, analyze
from jaxplain._analysis.nodes import Node
from jaxplain._checks import checked, require_callable
from jaxplain._engine.node_view import Layer
from jaxplain._explainer import stage_call
from jaxplain._layers.table import Nodes, row, table
from jaxplain._leaves import common_dtype
from jaxplain._split import stage_function
from jaxplain._types import ArgNums, Leaves, Score
from jaxplain.methods._propagation import OnMissing, Start, analyzed, chosen_rules, propagated, rule_of, rules_setting
from jaxplain.rules._rule import Rule
from jaxplain.rules.composites import Composite


@checked()
def layers(f: Callable[..., Any], *, argnums: ArgNums = 0, allow_random: bool = False) -> Callable[..., Nodes]:
    """`layers(f)(x, *args)` lists the nodes of a function: path, kind, shape, position, source line.

    f may be any function and take integers. It is only traced, not run.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> w = jnp.ones((3, 2))
        >>> [node.kind for node in jx.layers(lambda x: jnp.sum(jax.nn.relu(x @ w)))(jnp.ones(3))]
        ['dense', 'activation', 'sum']
    """
    require_callable("layers", f)

    def run(*args: Any) -> Nodes:
        staged = stage_function("layers", f, args, argnums=argnums, allow_random=allow_random)
        analysis = analyze(staged.program.closed, look_ups=True)
        return Nodes(row(node, "") for node in analysis.all_nodes())

    return run


@checked()
def plan(
    f: Score, *, rules: Composite | Rule, argnums: ArgNums = 0, allow_random: bool = False
) -> Callable[..., Nodes]:
    """`plan(f, rules=…)(x, *args)` lists the nodes of a score and the rule that `lrp` would use for each, or "missing".

    The score is only traced, not run. Nodes without a rule are no error here.

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
        call = stage_call("plan", f, args, argnums=argnums, allow_random=allow_random)
        analysis = analyzed(call.program, composite)
        rules_of = ((node, rule_of(node, composite)) for node in analysis.all_nodes())
        return Nodes(row(node, "missing" if rule is None else rule.name) for node, rule in rules_of)

    return run


@jax.tree_util.register_pytree_node_class
class Ledger:
    """The path of relevance through one explanation, node by node. A pytree that prints as a table.

    Attributes:
        nodes: Nodes that the rows describe (static).
        arriving: Relevance at the node's outputs, summed; shape (n_nodes,), after `vmap` (batch, n_nodes). Units of f.
        leaving: Relevance passed on to the node's inputs.
        to_bias: Relevance kept by the node's bias.
        lost: arriving − leaving − to_bias, i.e. relevance taken by stabilizers, dropped by rules or sent to constants.
        relevance: Sum of the relevance of x.
        value: The score.
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


@checked()
def ledger(
    f: Score,
    *,
    rules: Composite | Rule,
    start: Start = "score",
    on_missing: OnMissing = "error",
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Callable[..., Ledger]:
    """`ledger(f, rules=…)(x, *args)` tells how much relevance arrives at, leaves and is lost at each node of `lrp`.

    Arguments as in `lrp`. Inside loops, the amounts of all iterations are summed. Works under `jit` and `vmap`.
    Cost: about 2 gradients.

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
        call = stage_call("ledger", f, args, argnums=argnums, allow_random=allow_random)
        analysis = analyzed(call.program, composite)
        chosen = chosen_rules("ledger", analysis, composite, on_missing)
        nodes = [node for node in analysis.all_nodes() if not node.bodies]
        value, relevance, tallies = _accounts(analysis, chosen, start, nodes, call.arguments.leaves)
        return Ledger(Nodes(row(node, chosen[node].name) for node in nodes), tallies, relevance, value)

    return run


def _accounts(
    analysis: Analysis, rules: dict[Node, Rule], start: Start, nodes: list[Node], leaves: Leaves
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The score, the sum of the relevance of x, and (arriving, leaving, to_bias) for each node."""

    def tally(layer: Layer, arriving: tuple[jax.Array, ...], leaving: tuple[jax.Array, ...]) -> jax.Array:
        amounts = [sum(jnp.sum(r) for r in arriving), sum(jnp.sum(r) for r in leaving), layer.to_bias]
        # A sum instead of a stack, because mapped and unmapped numbers do not stack on Explicit meshes.
        units = jnp.eye(len(amounts), dtype=dtype)
        return sum(
            (unit * jnp.real(amount).astype(dtype) for unit, amount in zip(units, amounts, strict=True)),
            jnp.zeros(3, dtype),
        )

    dtype = common_dtype(jnp.dtype(jnp.float32), *leaves)
    probes = {node: jnp.zeros(3, dtype) for node in nodes}
    value, relevance, tallies = propagated("ledger", analysis, rules, start, leaves, (probes, tally))(leaves)
    total = sum((jnp.sum(leaf, dtype=dtype) for leaf in relevance), jnp.zeros((), dtype))
    return value, total, jnp.stack(tallies)
