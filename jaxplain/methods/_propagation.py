"""Methods that propagate backwards through the program by rules: LRP and its variants, guided backprop, deconvnet."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxplain import _compat
from jaxplain._analysis.analyze import MAX_PEELING_DEPTH, Analysis, analyze
from jaxplain._analysis.nodes import Node
from jaxplain._checks import checked
from jaxplain._engine.input_bounds import bounds_at
from jaxplain._engine.node_view import Layer
from jaxplain._engine.replay import Backward, Tally, replay
from jaxplain._errors import SettingError, UnknownNodeError, explain_error
from jaxplain._explainer import Call, Compute, Explainer, Info, make_explainer, sum_gap
from jaxplain._ir.graph import Opens, is_opened, opens_activations
from jaxplain._ir.program import Program
from jaxplain._leaves import cast_like, upcast, wide_dtype
from jaxplain._types import ArgNums, Leaves, Score
from jaxplain.rules import _backprop as backprop
from jaxplain.rules import composites
from jaxplain.rules._lrp import zplus
from jaxplain.rules._rule import Rule
from jaxplain.rules.composites import Composite

Start = Literal["score"] | float | Callable[[jax.Array], Any]
OnMissing = Literal["error", "gradient"]


def _explainer(
    method: str,
    f: Score,
    composite: Composite,
    start: Start,
    on_missing: OnMissing,
    argnums: ArgNums,
    allow_random: bool,
    opens: Opens = is_opened,
) -> Explainer:
    compute = computed(method, composite, start, on_missing, opens)
    return make_explainer(method, f, compute, argnums=argnums, allow_random=allow_random)


def computed(
    method: str, composite: Composite, start: Start, on_missing: OnMissing, opens: Opens = is_opened
) -> Compute:
    """The mathematics of a method that propagates backwards by the rules of a composite."""
    if on_missing not in ("error", "gradient"):
        raise SettingError(
            explain_error(f"{method}: unknown `on_missing`.", got=repr(on_missing), need="'error', 'gradient'")
        )

    def compute(call: Call, _key: Any, with_info: bool) -> tuple[Leaves, Info | None]:
        analysis = analyzed(call.program, composite, opens)
        rules = chosen_rules(method, analysis, composite, on_missing)
        native = cast_like(call.x, call.arguments.leaves)
        value, leaves, _ = propagated(method, analysis, rules, start, native)(native)
        leaves = upcast(leaves)
        if not with_info:
            return leaves, None
        value = value.astype(wide_dtype(value))
        gap = sum_gap(leaves, value) if start == "score" else None
        return leaves, Info(value=value, gap=gap, n_gradients=jnp.int32(1), n_evaluations=jnp.int32(0))

    return compute


def analyzed(program: Program, composite: Composite, opens: Opens = is_opened) -> Analysis:
    """The analysis of a score that a composite needs."""
    depth = MAX_PEELING_DEPTH if composite.asks_for_first else 0
    return analyze(program.closed, patterns=composite.patterns, opens=opens, depth=depth)


def propagated(
    method: str,
    analysis: Analysis,
    rules: dict[Node, Rule],
    start: Start,
    leaves: Leaves,
    accounts: tuple[dict[Node, jax.Array], Tally] | None = None,
) -> Program:
    """The staged program `leaves -> (f, relevance of the leaves, tally of each node in accounts)`."""
    probes, tally = accounts or ({}, None)

    def relevance(leaves: Leaves) -> tuple[jax.Array, Leaves, list[jax.Array]]:
        splitting = {node: rule.splits_additions for node, rule in rules.items() if node.kind == "add"}
        additions = {node: biases == "all" for node, biases in splitting.items() if biases}
        bounded = {node: rule.box for node, rule in rules.items() if rule.box is not None}
        found = {node: bounds_at(analysis, node, box, leaves) for node, box in bounded.items()}
        boxes = {node: box for node, box in found.items() if box is not None}

        def run(leaves: Leaves, zeros: list[jax.Array]) -> jax.Array:
            probe = dict(zip(probes, zeros, strict=True))
            return replay(analysis, lambda node: _backward(rules[node]), probe, tally, boxes, additions)(*leaves)[0]

        value, pullback = jax.vjp(run, leaves, list(probes.values()))
        return value, *pullback(_started(start, value))

    return Program(method, relevance, leaves)


def _started(start: Start, value: jax.Array) -> jax.Array:
    if start == "score":
        return value
    given = jnp.asarray(start(value) if callable(start) else start, value.dtype)
    return _compat.zeros_like(value) + jnp.broadcast_to(given, value.shape)


def _backward(rule: Rule) -> Backward | None:
    function = rule.backward
    if function is None:
        return None

    def backward(layer: Layer, arriving: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        leaving = function(layer, *arriving)
        return leaving if isinstance(leaving, tuple) else (leaving,)

    return backward


_BODIES = Rule("inside", ("loop", "branch", "checkpoint"), None)


def rule_of(node: Node, composite: Composite) -> Rule | None:
    return _BODIES if node.bodies else composite.rule(node)


def chosen_rules(
    method: str, analysis: Analysis, composite: Composite, on_missing: OnMissing = "error"
) -> dict[Node, Rule]:
    """The rule of every node; an error that lists all nodes without one."""
    nodes = analysis.all_nodes()
    composite.require_matches(method, nodes)
    fallback = composite.fallback if on_missing == "gradient" else None
    return require_rules(
        method,
        {node: rule_of(node, composite) or fallback for node in nodes},
        why="using the gradient there would silently give a wrong explanation",
        fix=(
            "give it a rule: composites.compose(rules, {lambda node: node.primitive == …: my_rule})",
            'accept gradient × input there: on_missing="gradient"',
        ),
    )


AnyRule = TypeVar("AnyRule")
_REPLACEMENTS = {
    "while": "a while loop: lax.scan, or lax.fori_loop with Python integers as bounds",
    "reduce_prod": "jnp.prod: functools.reduce(jnp.multiply, …), or the exponential of a sum of logarithms",
    "custom_vjp_call": "a function with a derivative of its own (custom_vjp): explain the function itself",
}


def require_rules(
    method: str, rules: dict[Node, AnyRule | None], *, why: str, fix: tuple[str, ...]
) -> dict[Node, AnyRule]:
    """`rules`, or an error that lists the nodes that have none, with `fix` as additional suggestions."""
    missing = [node for node, rule in rules.items() if rule is None]
    if missing:
        primitives = {node.primitive for node in missing}
        raise UnknownNodeError(
            explain_error(
                f"{method}: no rule is known for {count_of(missing)} of the score.",
                where=listed(missing),
                why=why,
                fix=(
                    *(text for name, text in _REPLACEMENTS.items() if name in primitives),
                    "write that part with known operations (an elementwise formula of any kind is one activation)",
                    *fix,
                ),
            )
        )
    return {node: rule for node, rule in rules.items() if rule is not None}


def count_of(nodes: list[Node]) -> str:
    return "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"


def listed(nodes: Iterable[Node]) -> str:
    """The nodes as lines of an error."""
    return "".join(f"\n          {node.primitive} ({node.kind}): {node.source}" for node in nodes).lstrip()


def rules_setting(method: str, rules: Composite | Rule) -> Composite:
    """`rules` as a composite, or an error that suggests presets."""
    if not isinstance(rules, Composite | Rule):
        raise SettingError(
            explain_error(
                f"{method}: `rules` must be a composite or a rule.",
                got=repr(rules),
                fix=(
                    "images: rules=jx.composites.epsilon_plus_flat(), or epsilon_gamma_box(low, high)",
                    "transformers: rules=jx.composites.attention()",
                    "one rule for every layer: rules=jx.rules.epsilon(1e-6)",
                ),
            )
        )
    return composites.as_composite(rules)


@checked()
def lrp(
    f: Score,
    *,
    rules: Composite | Rule,
    start: Start = "score",
    on_missing: OnMissing = "error",
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Layer-wise relevance propagation: $R_i = \sum_j (c_{ij} / \sum_{i'} c_{i'j}) R_j$, from the score to x.

    The rules define the contributions $c_{ij}$ (`jx.rules`), and a composite selects a rule for each node
    (`jx.composites`). Nodes are found in the traced program, whatever framework wrote it: dense layers and convolutions
    with their batch-norm, activations, additions, products, normalizations, softmax, loops.

    Arguments:
        f: The score, `f(x, *args) -> real scalar` for one example. Use a logit rather than a probability, because a
            softmax does not conserve relevance.
        rules: A composite, or one rule for every contraction, for example `jx.rules.epsilon(1e-6)`.
        start: Relevance of the score: "score" (its value), a number, or a function of the value.
        on_missing: Treatment of nodes without a rule: "error" lists them; "gradient" uses gradient × input there.
        argnums, allow_random: As in `gradient`.

    Returns:
        `explain(x, *args)`, relevance with the structure, shapes and dtypes of `x`, in units of f.

    Guarantees: a node passes on the relevance that it receives, except for the part that its bias and stabilizer take
    (listed node by node by `jx.ledger`); `Info.gap` is the total loss. Without biases $\sum_i R_i = f(x)$ for ε → 0,
    and ε-LRP alone is input × gradient.
    Cost: about 2 gradients. Info: value, gap (for start="score"), n_gradients (1), n_evaluations (0).
    Differs from: Zennit and iNNvestigate hook modules and miss operations outside them; Captum knows a fixed list of
    modules. Zennit's rules agree with these to rounding, but it marks a single first layer, and `lrp` every layer that
    no other precedes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> w, v = jnp.array([[1.0, -1.0], [2.0, 1.0]]), jnp.array([1.0, 1.0])
        >>> explain = jx.lrp(lambda x: jax.nn.relu(x @ w) @ v, rules=jx.rules.zplus())
        >>> print(explain(jnp.array([1.0, 2.0])).round(3))
        [1. 5.]

    References:
        Bach et al., On pixel-wise explanations for non-linear classifier decisions by LRP, PLoS ONE 10, 2015.
        Montavon et al., Layer-wise relevance propagation: an overview, LNCS 11700, 2019.
    """
    return _explainer("lrp", f, rules_setting("lrp", rules), start, on_missing, argnums, allow_random)


@checked()
def deep_taylor(
    f: Score,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    pooling: Literal["winner", "sum"] = "winner",
    epsilon: float = 1e-9,
    on_missing: OnMissing = "error",
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Deep Taylor decomposition: $R_i = \sum_j \frac{q_{ij}}{\sum_{i'} q_{i'j}} R_j$, each layer expanded at a root.

    Hidden layers, whose inputs are ≥ 0, use $q_{ij} = x_i w_{ij}^+$ (z⁺). The first layers use
    $q_{ij} = x_i w_{ij} - l_i w_{ij}^+ - h_i w_{ij}^-$ (z^B) if the input lies in the box [`low`, `high`], and
    $q_{ij} = w_{ij}^2$ (w²) if it is real-valued. Biases take no relevance.

    Arguments:
        f: The score; the derivation assumes that it is positive.
        low, high: Bounds of the input, in units of x: numbers, or arrays that broadcast to x. Give both or neither.
        pooling: "winner" gives the relevance of a window to its maximum; "sum" treats max-pooling as sum-pooling, as in
            the authors' tutorials.
        epsilon: Stabilizer of the denominators.
        on_missing, argnums, allow_random: As in `lrp`.

    Returns:
        `explain(x, *args)`; units of f.

    Guarantees: for ReLU networks and positive f: $R \ge 0$ (with low ≤ 0 ≤ high), and $\sum_i R_i = f(x)$ where every
    unit has some positive contribution; `Info.gap` shows it.
    Cost: about 2 gradients. Info: value, gap, n_gradients (1), n_evaluations (0).
    Differs from: implementations that assume non-negative inputs without checking; here, z⁺ counts contributions of
    negative inputs by their sign.

    Example: the closed form of max(x₁, x₂) as a ReLU network, (x₁ − x₂/2, x₂/2) for x₁ > x₂:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> w = jnp.array([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
        >>> maximum = lambda x: jnp.sum(jax.nn.relu(x @ w)) / 2
        >>> rules = jx.composites.compose(jx.composites.deep_taylor(), {"layer": jx.rules.zplus()})
        >>> explain = jx.lrp(maximum, rules=rules)
        >>> print(explain(jnp.array([3.0, 1.0])).round(3))
        [2.5 0.5]

    References:
        Montavon et al., Explaining nonlinear classification decisions with deep Taylor decomposition, Pattern
        Recognition 65, 2017.
    """
    composite = composites.deep_taylor(low, high, pooling=pooling, epsilon=epsilon)
    return _explainer("deep_taylor", f, composite, "score", on_missing, argnums, allow_random)


@checked()
def excitation_backprop(
    f: Score,
    *,
    start: Start = 1.0,
    epsilon: float = 1e-6,
    on_missing: OnMissing = "error",
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Excitation back-propagation: $P_i = \sum_j \frac{x_i w_{ij}^+}{\sum_{i'} x_{i'} w_{i'j}^+} P_j$.

    P are marginal winning probabilities. Arguments as in `lrp`; `start` is the probability of the score, and `epsilon`
    the stabilizer of the denominators.

    Guarantees: for non-negative activations $P \ge 0$, and $\sum_i P_i$ = start if every unit has some excitation. The
    map has no units, because it consists of shares of `start`.
    Cost: about 2 gradients. Info: value, gap (for start="score"), n_gradients (1), n_evaluations (0).
    Differs from: Zennit's composite keeps positive biases in the denominators, back-propagates through activations, and
    gives the terms of an addition shares that may be negative.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.excitation_backprop(lambda x: jax.nn.relu(x) @ jnp.array([2.0, 2.0, -3.0]))
        >>> print(explain(jnp.ones(3)).round(3))
        [0.5 0.5 0. ]

    References:
        Zhang et al., Top-down neural attention by excitation backprop, ECCV 2016.
    """
    additions = {"add": zplus(absorb_bias=False, epsilon=epsilon)}
    return _explainer(
        "excitation_backprop",
        f,
        composites.compose(composites.excitation_backprop(epsilon=epsilon), additions, "excitation_backprop"),
        start,
        on_missing,
        argnums,
        allow_random,
    )


@checked()
def guided_backprop(
    f: Score,
    *,
    on_missing: OnMissing = "error",
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Guided back-propagation: $g \leftarrow \sigma'(x) \cdot \max(g, 0)$ at activations, otherwise the derivative.

    Every elementwise nonlinearity is an activation, however it is written; gates (x·σ(y)), softmax and normalization
    are not.

    Arguments and errors as in `lrp`. Returns `explain(x, *args)`; units of f per unit of x, although it is not a
    gradient of f.

    Guarantees: non-negative at every activation; invariant to the implementation of the activation.
    Cost: 1 gradient. Info: value, n_gradients, n_evaluations (0).
    Misleads: it resembles edge detection and changes little when upper layers get random weights, so compare it with
    that control (`jx.metrics.parameter_randomization`).
    Differs from: Captum looks for `nn.ReLU` modules, and returns the plain gradient of a model with ReLU6 or functional
    ReLUs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> score = lambda x: jnp.sum(jax.nn.relu(x) * jnp.array([1.0, -1.0, 1.0]))
        >>> print(jx.guided_backprop(score)(jnp.array([1.0, 1.0, -1.0])))
        [1. 0. 0.]

    References:
        Springenberg et al., Striving for simplicity: the all convolutional net, ICLR workshop 2015.
        Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018.
    """
    return _explainer("guided_backprop", f, backprop.GUIDED, 1.0, on_missing, argnums, allow_random, opens_activations)


@checked()
def deconvnet(
    f: Score,
    *,
    on_missing: OnMissing = "error",
    argnums: ArgNums = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Deconvolution: $g \leftarrow \max(g, 0)$ at activations, whatever their value, otherwise the derivative.

    Max-pooling sends everything to the maximum of its window (the "switches"). Arguments and errors as in `lrp`.
    Returns `explain(x, *args)`; units of f per unit of x, although it is not a gradient of f.

    Guarantees: non-negative at every activation; without max-pooling, the map does not depend on x.
    Cost: 1 gradient. Info: value, n_gradients, n_evaluations (0).
    Differs from: Captum, as in `guided_backprop`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> score = lambda x: jnp.sum(jax.nn.relu(x) * jnp.array([1.0, -1.0, 1.0]))
        >>> print(jx.deconvnet(score)(jnp.array([1.0, 1.0, -1.0])))
        [1. 0. 1.]

    References:
        Zeiler, Fergus, Visualizing and understanding convolutional networks, ECCV 2014.
    """
    return _explainer("deconvnet", f, backprop.DECONVOLVED, 1.0, on_missing, argnums, allow_random, opens_activations)
