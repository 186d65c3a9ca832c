"""Methods that go backwards through the program by rules: LRP and its kin, guided back-propagation, deconvolution."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxplain import _compat
from jaxplain._analysis.analyze import LOOPS_TAKEN_APART, Analysis, analyze
from jaxplain._analysis.nodes import Node
from jaxplain._engine.input_bounds import bounds_at
from jaxplain._engine.node_view import Layer
from jaxplain._engine.replay import Backward, Tally, replay
from jaxplain._errors import SettingError, UnknownNodeError, explain_error
from jaxplain._explainer import Call, Compute, Explainer, Info, make_explainer, sum_gap
from jaxplain._ir.graph import Opens, is_opened, opens_activations
from jaxplain._ir.program import Program
from jaxplain._leaves import cast_like, upcast, wide_dtype
from jaxplain._types import Leaves
from jaxplain.rules import _backprop as backprop
from jaxplain.rules import composites
from jaxplain.rules._rule import Rule
from jaxplain.rules.composites import Composite

Start = Literal["score"] | float | Callable[[jax.Array], Any]
OnMissing = Literal["error", "gradient"]


def _explainer(
    method: str,
    f: Callable[..., Any],
    composite: Composite,
    start: Start,
    on_missing: OnMissing,
    argnums: int | Sequence[int],
    allow_random: bool,
    opens: Opens = is_opened,
) -> Explainer:
    compute = computed(method, composite, start, on_missing, opens)
    return make_explainer(method, f, compute, argnums=argnums, allow_random=allow_random)


def computed(
    method: str, composite: Composite, start: Start, on_missing: OnMissing, opens: Opens = is_opened
) -> Compute:
    """The mathematics of a method that goes backwards by the rules of a composite."""
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
        return leaves, Info(value=value, gap=gap, n_gradients=jnp.int32(1))

    return compute


def analyzed(program: Program, composite: Composite, opens: Opens = is_opened) -> Analysis:
    """The analysis of a score as a composite needs it."""
    depth = LOOPS_TAKEN_APART if composite.asks_for_first else 0
    return analyze(program.closed, patterns=composite.patterns, opens=opens, depth=depth)


def propagated(
    method: str,
    analysis: Analysis,
    rules: dict[Node, Rule],
    start: Start,
    leaves: Leaves,
    accounts: tuple[dict[Node, jax.Array], Tally] | None = None,
) -> Program:
    """The staged program `leaves -> (f, relevance of the leaves, tally of each node of accounts)`."""
    probes, tally = accounts or ({}, None)

    def relevance(leaves: Leaves) -> tuple[jax.Array, Leaves, list[jax.Array]]:
        bounded = {node: rule.box for node, rule in rules.items() if rule.box is not None}
        found = {node: bounds_at(analysis, node, box, leaves) for node, box in bounded.items()}
        boxes = {node: box for node, box in found.items() if box is not None}

        def run(leaves: Leaves, zeros: list[jax.Array]) -> jax.Array:
            probe = dict(zip(probes, zeros, strict=True))
            return replay(analysis, lambda node: _backward(rules[node]), probe, tally, boxes)(*leaves)[0]

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
    rules: dict[Node, Rule] = {}
    missing = []
    for node in nodes:
        rule = rule_of(node, composite)
        if rule is None and on_missing == "gradient":
            rule = composite.fallback
        if rule is None:
            missing.append(node)
        else:
            rules[node] = rule
    if missing:
        raise UnknownNodeError(_missing(method, missing))
    return rules


def rules_setting(method: str, rules: Any) -> Composite:
    """`rules` as a composite, or an error that pastes the presets."""
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


def _missing(method: str, nodes: list[Node]) -> str:
    listed = "".join(f"\n          {node.primitive} ({node.kind}): {node.source}" for node in nodes)
    loops = any(node.primitive == "while" for node in nodes)
    return explain_error(
        f"{method}: no rule is known for {len(nodes)} node{'s' if len(nodes) > 1 else ''} of the score.",
        where=listed.lstrip(),
        why="a plain gradient there would be a wrong explanation without a word",
        fix=(
            *(("a while loop: lax.scan, or lax.fori_loop with Python integers as bounds",) if loops else ()),
            "write that part with operations that are known (an elementwise formula of any kind is one activation)",
            "give it a rule: composites.compose(rules, {lambda node: node.primitive == …: my_rule})",
            'accept gradient × input there: on_missing="gradient"',
        ),
    )


def lrp(
    f: Callable[..., Any],
    *,
    rules: Composite | Rule,
    start: Start = "score",
    on_missing: OnMissing = "error",
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Layer-wise relevance propagation: $R_i = \sum_j (c_{ij} / \sum_{i'} c_{i'j}) R_j$, node by node from the score to x.

    The contributions $c_{ij}$ are the rules' business (`jx.rules`); which node gets which rule is the composite's (`jx.composites`). Nodes
    are found in the traced program, whatever framework wrote it: dense layers and convolutions with their batch-norm,
    activations, additions, products, normalizations, softmax, loops.

    Arguments:
        f: the score, `f(x, *args) -> real scalar` for one example. A logit rather than a probability: relevance that goes
            through a softmax is not conserved.
        rules: a composite, or one rule for every contraction, e.g. `jx.rules.epsilon(1e-6)`.
        start: relevance of the score: "score" (its value), a number, or a function of the value.
        on_missing: "error" lists every node that has no rule; "gradient" uses gradient × input there.
        argnums, allow_random: as in `gradient`.

    Returns:
        `explain(x, *args)`, relevance with the structure, shapes and dtypes of `x`, in units of f.

    Guarantees: a node hands on what it receives, but for what its bias and stabilizer take: `jx.ledger` tells how much, node by
    node; `Info.gap` is what is missing at x. Without biases $\sum_i R_i = f(x)$ for ε → 0. ε-LRP alone is then input × gradient.
    Cost: about 2 gradients. Info: value, gap (for start="score"), n_gradients.
    Differs from: Zennit and iNNvestigate hook modules, and miss what is not one; Captum knows a fixed list of modules. Zennit's
    rules agree with these to rounding, but it marks a single first layer, we every layer that no other precedes.

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


def deep_taylor(
    f: Callable[..., Any],
    *,
    low: Any = None,
    high: Any = None,
    pooling: Literal["winner", "sum"] = "winner",
    epsilon: float = 1e-9,
    on_missing: OnMissing = "error",
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Deep Taylor decomposition: each layer's relevance expanded at a root point of its own, $R_i = \sum_j \frac{q_{ij}}{\sum_{i'} q_{i'j}} R_j$.

    Hidden layers, whose inputs are ≥ 0: $q_{ij} = x_i w_{ij}^+$ (z⁺). The first layers: $q_{ij} = x_i w_{ij} - l_i w_{ij}^+ - h_i w_{ij}^-$
    (z^B) if the input lies in the box [`low`, `high`], $q_{ij} = w_{ij}^2$ (w²) if it is real-valued. Biases take no relevance.

    Arguments:
        f: the score; positive, for the derivation to hold.
        low, high: bounds of the input, in units of x: numbers or arrays that broadcast to it. Both or none.
        pooling: "winner": the maximum takes the relevance of its window; "sum": max-pooling is treated as sum-pooling, as in the
            tutorials of the authors.
        epsilon: the stabilizer of the denominators.
        on_missing, argnums, allow_random: as in `lrp`.

    Returns:
        `explain(x, *args)`; units of f.

    Guarantees: for ReLU networks and positive f: $R \ge 0$ (with low ≤ 0 ≤ high), and $\sum_i R_i = f(x)$ where every unit has some
    positive contribution; `Info.gap` tells. Cost: about 2 gradients. Info: value, gap, n_gradients.
    Differs from: implementations that ignore a missing non-negativity: z⁺ here counts contributions of negative inputs by
    their sign.

    Example: the closed form of max(x₁, x₂) as a ReLU network, (x₁ − x₂/2, x₂/2) for x₁ > x₂:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> w = jnp.array([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
        >>> maximum = lambda x: jnp.sum(jax.nn.relu(x @ w)) / 2
        >>> explain = jx.lrp(maximum, rules=jx.composites.compose(jx.composites.deep_taylor(), {"layer": jx.rules.zplus()}))
        >>> print(explain(jnp.array([3.0, 1.0])).round(3))
        [2.5 0.5]

    References:
        Montavon et al., Explaining nonlinear classification decisions with deep Taylor decomposition, Pattern Recognition 65, 2017.
    """
    composite = composites.deep_taylor(low, high, pooling=pooling, epsilon=epsilon)
    return _explainer("deep_taylor", f, composite, "score", on_missing, argnums, allow_random)


def excitation_backprop(
    f: Callable[..., Any],
    *,
    start: Start = 1.0,
    epsilon: float = 1e-6,
    on_missing: OnMissing = "error",
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Excitation back-propagation: marginal winning probabilities, $P_i = \sum_j \frac{x_i w_{ij}^+}{\sum_{i'} x_{i'} w_{i'j}^+} P_j$.

    Arguments as in `lrp`; `start` is the probability of the score, 1; `epsilon` the stabilizer of the denominators.

    Guarantees: for non-negative activations $P \ge 0$, and $\sum_i P_i$ = start where every unit has some excitation. No units: shares of
    `start`. Cost: about 2 gradients. Info: value, gap (for start="score"), n_gradients.
    Differs from: Zennit's composite keeps positive biases in the denominators and back-propagates through activations.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> explain = jx.excitation_backprop(lambda x: jax.nn.relu(x) @ jnp.array([2.0, 2.0, -3.0]))
        >>> print(explain(jnp.ones(3)).round(3))
        [0.5 0.5 0. ]

    References:
        Zhang et al., Top-down neural attention by excitation backprop, ECCV 2016.
    """
    return _explainer(
        "excitation_backprop",
        f,
        composites.excitation_backprop(epsilon=epsilon),
        start,
        on_missing,
        argnums,
        allow_random,
    )


def guided_backprop(
    f: Callable[..., Any],
    *,
    on_missing: OnMissing = "error",
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Guided back-propagation: at every activation $g \leftarrow \sigma'(x) \cdot \max(g, 0)$; elsewhere the ordinary derivative.

    Every elementwise nonlinearity is an activation, however it is written; gates (x·σ(y)), softmax and normalization are not.

    Arguments and errors as in `lrp`. Returns `explain(x, *args)`; units of f per unit of x, though not a gradient of f.

    Guarantees: non-negative at every activation; invariant to how the activation is spelled. It resembles edge detection: it changes little when
    the weights of upper layers are drawn anew, so look at that control beside it. Cost: 1 gradient. Info: value, n_gradients.
    Differs from: Captum looks for `nn.ReLU` modules and returns the plain gradient for a model with ReLU6 or functional ReLUs.

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


def deconvnet(
    f: Callable[..., Any],
    *,
    on_missing: OnMissing = "error",
    argnums: int | Sequence[int] = 0,
    allow_random: bool = False,
) -> Explainer:
    r"""Deconvolution: at every activation $g \leftarrow \max(g, 0)$, whatever the activation was; elsewhere the ordinary derivative.

    Max-pooling sends to the maximum of its window (the "switches"). Arguments and errors as in `lrp`. Returns
    `explain(x, *args)`; units of f per unit of x, though not a gradient of f.

    Guarantees: non-negative at every activation; without max-pooling the map of a score depends on x by nothing at all.
    Cost: 1 gradient. Info: value, n_gradients.
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
