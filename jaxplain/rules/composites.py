"""Composites: tables that give each node of a program its rule.

A composite is a list of (selector, rule). A node gets the rule of the last entry whose selector matches and whose rule
supports the node's kind. A selector is

- a kind: "dense", "convolution", "sum" (average pooling, means), "fft", "scale_shift", "normalization", "activation",
  "softmax", "log_softmax", "logsumexp", "add", "product", "gate", "max" or "unknown";
- a group: "layer" (dense and convolution), "contraction" (layer, sum and fft) or "any";
- a position: "first" or "last", the layers that no other layer precedes or follows;
- a layer's path as a glob, for example "encoder/*" or "*/Dense_1";
- a function of the node, for example `lambda node: node.path.endswith("head")`;
- a tuple of these, all of which must match, for example `("first", "convolution")`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

from jaxplain._analysis.nodes import CONTRACTIONS, KINDS, LAYERS, Node
from jaxplain._analysis.patterns import Pattern
from jaxplain._errors import SettingError, explain_error
from jaxplain.rules import _lrp as lrp
from jaxplain.rules._rule import Rule

Selector: TypeAlias = str | Callable[[Node], bool] | tuple


class Composite(NamedTuple):
    """A named list of (selector, rule), of which the last matching entry applies.

    Attributes:
        name: Name for tables and messages.
        entries: Pairs of a selector and a rule.
        fallback: Rule of nodes that no entry matches, if the user asks for gradient × input there.
        patterns: Stretches of the program that become one node each.
    """

    name: str
    entries: tuple[tuple[Selector, Rule], ...]
    fallback: Rule = lrp.epsilon()
    patterns: tuple[Pattern, ...] = ()

    def rule(self, node: Node) -> Rule | None:
        """The rule that a node gets, or None if no entry matches."""
        matching = (r for selector, r in reversed(self.entries) if node.kind in r.kinds and _matches(selector, node))
        return next(matching, None)

    @property
    def asks_for_first(self) -> bool:
        """Whether some selector may ask which layers are first."""
        return any(callable(part) or part == "first" for selector, _ in self.entries for part in _parts(selector))

    def require_matches(self, method: str, nodes: Iterable[Node]) -> None:
        """Raise if a path matches no node, because a misspelled layer would silently keep its default rule."""
        nodes = list(nodes)
        layers = [node for node in nodes if node.kind in LAYERS]
        for selector, rule in self.entries:
            for position in {"first", "last"}.intersection(p for p in _parts(selector) if isinstance(p, str)):
                if layers and not any(_matches_part(position, node) for node in layers):
                    raise SettingError(
                        explain_error(
                            f"{method}: no layer of the score is {position}, so rule {rule.name} would not apply.",
                            where=layers[0].source,
                            got="layers that read the input and outputs of other layers, for example in a loop",
                            fix=(
                                "name the layers: composites.compose(base, {'path/of/layer': rule}); "
                                "print(jx.layers(score)(x)) lists them",
                                f"a composite without a rule for the {position} layers",
                            ),
                        )
                    )
            globs = [part for part in _parts(selector) if isinstance(part, str) and part not in _WORDS]
            for glob in globs:
                if not any(_matches(glob, node) for node in nodes if node.kind in rule.kinds):
                    paths = sorted({node.path for node in nodes if node.kind in rule.kinds} - {""})
                    raise SettingError(
                        explain_error(
                            f"{method}: no node matches the selector {glob!r} of rule {rule.name}.",
                            got=f"paths {', '.join(paths)}" if paths else "a model without layer names",
                            need=f"a path, a glob, or one of {', '.join(_WORDS)}",
                            fix="list the nodes: print(jx.layers(score)(x))",
                        )
                    )

    def __repr__(self) -> str:
        return f"composites.{self.name}"


_GROUPS: dict[str, tuple[str, ...]] = {"layer": LAYERS, "contraction": CONTRACTIONS, "any": KINDS}
_WORDS = (*KINDS, *_GROUPS, "first", "last")


def _parts(selector: Selector) -> tuple:
    return selector if isinstance(selector, tuple) else (selector,)


def _matches(selector: Selector, node: Node) -> bool:
    return all(_matches_part(part, node) for part in _parts(selector))


def _matches_part(part: Any, node: Node) -> bool:
    if callable(part):
        return bool(part(node))
    if part in ("first", "last"):
        return node.is_first if part == "first" else node.is_last
    if part == node.kind or part in _WORDS:
        return node.kind in _GROUPS.get(part, (part,))
    return fnmatchcase(node.path, part)


def compose(
    base: "Composite | Rule", rules: Mapping[Any, Rule], name: str = "compose", *, patterns: Sequence[Pattern] = ()
) -> Composite:
    """`base` with further entries, which take precedence over those of base, and later ones over earlier ones.

    Each of the `patterns` (`rules.scope`, `rules.Pattern`) turns stretches of the program into single nodes of a new
    kind, which needs a rule in `rules`.

    Example:
        >>> from jaxplain import composites, rules
        >>> mine = composites.compose(composites.epsilon_plus(), {"first": rules.flat(), "*/head": rules.epsilon(0.1)})
    """
    for selector, rule in rules.items():
        if not isinstance(rule, Rule):
            raise SettingError(
                explain_error(
                    f"composites.{name}: the entry for {selector!r} is not a rule.",
                    got=repr(rule),
                    fix="build the rule by calling it, for example rules.epsilon() and not rules.epsilon",
                )
            )
        kinds = [set(_GROUPS.get(part, (part,))) for part in _parts(selector) if part in KINDS or part in _GROUPS]
        possible = set(rule.kinds).intersection(*kinds)
        if kinds and not possible:
            raise SettingError(
                explain_error(
                    f"composites.{name}: the rule {rule.name} cannot apply to {selector!r}.",
                    need=f"a node of kind {', '.join(rule.kinds)}, or another rule",
                    why="a node that a rule does not support keeps its default rule",
                )
            )
    for pattern in patterns:
        if pattern.kind in _WORDS:
            raise SettingError(
                explain_error(
                    f"composites.{name}: a pattern's kind must be a new word.",
                    got=repr(pattern.kind),
                    need=f"a word other than {', '.join(_WORDS)}",
                )
            )
    base = as_composite(base)
    return Composite(name, (*base.entries, *rules.items()), base.fallback, (*base.patterns, *patterns))


def as_composite(rules: "Composite | Rule") -> Composite:
    """A composite unchanged, or one rule as a composite for all contractions and shifts that it supports.

    The others get LRP-ε with the rule's ε.
    """
    if isinstance(rules, Composite):
        return rules
    proportional = lrp.epsilon(rules.epsilon)
    return Composite(
        rules.name,
        (
            *_base(rules.epsilon).entries,
            ("contraction", proportional),
            ("scale_shift", proportional),
            ("contraction", rules),
            ("scale_shift", rules),
            *([("add", rules)] if rules.splits_additions else []),
        ),
    )


def _base(epsilon: float) -> Composite:
    """The entries that all composites share: rules for everything except layers."""
    entries: tuple[tuple[Selector, Rule], ...] = (
        ("sum", lrp.norm(epsilon)),
        ("fft", lrp.epsilon(epsilon)),
        ("scale_shift", lrp.pass_through()),
        ("normalization", lrp.epsilon(epsilon)),
        ("activation", lrp.pass_through()),
        ("softmax", lrp.gradient_x_input()),
        ("log_softmax", lrp.log_softmax(epsilon=epsilon)),
        ("logsumexp", lrp.winner_takes_all()),
        ("add", lrp.norm(epsilon)),
        ("product", lrp.uniform(epsilon=epsilon)),
        ("gate", lrp.signal_takes_all()),
        ("max", lrp.winner_takes_all()),
        ("structural", lrp.copy()),
    )
    return Composite("base", entries)


def epsilon_plus(epsilon: float = 1e-6) -> Composite:
    """z⁺ for convolutions, ε for dense layers."""
    entries = {"dense": lrp.epsilon(epsilon), "convolution": lrp.zplus(epsilon=epsilon)}
    return compose(_base(epsilon), entries, "epsilon_plus")


def epsilon_plus_flat(epsilon: float = 1e-6) -> Composite:
    """`epsilon_plus` with the flat rule for the first layers: the usual choice for image classifiers."""
    return compose(epsilon_plus(epsilon), {"first": lrp.flat(epsilon=epsilon)}, "epsilon_plus_flat")


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Composite:
    """α2β1 for convolutions, ε for dense layers."""
    entries = {"dense": lrp.epsilon(epsilon), "convolution": lrp.alpha_beta(2, 1, epsilon=epsilon)}
    return compose(_base(epsilon), entries, "epsilon_alpha2_beta1")


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Composite:
    """`epsilon_alpha2_beta1` with the flat rule for the first layers."""
    return compose(epsilon_alpha2_beta1(epsilon), {"first": lrp.flat(epsilon=epsilon)}, "epsilon_alpha2_beta1_flat")


def epsilon_gamma_box(low: Any, high: Any, gamma: float = 0.25, epsilon: float = 1e-6) -> Composite:
    """γ for convolutions, ε for dense layers, z^B for the first layers; `low` and `high` bound the input."""
    entries = {
        "dense": lrp.epsilon(epsilon),
        "convolution": lrp.gamma(gamma, epsilon=epsilon),
        "first": lrp.zbox(low, high, epsilon=epsilon),
    }
    return compose(_base(epsilon), entries, "epsilon_gamma_box")


def excitation_backprop(*, absorb_bias: bool = False, epsilon: float = 1e-6) -> Composite:
    """z⁺ for all layers, without biases: probabilities of winning, passed down. Zhang et al., ECCV 2016.

    As in Zennit, the terms of an addition share in proportion to their values, which may have both signs. The method
    `jx.excitation_backprop` has z⁺ at additions, too: `compose(excitation_backprop(), {"add": rules.zplus()})`.
    """
    rule = lrp.zplus(absorb_bias=absorb_bias, epsilon=epsilon)
    return compose(_base(epsilon), {"layer": rule}, "excitation_backprop")


def deep_taylor(low: Any = None, high: Any = None, *, pooling: str = "winner", epsilon: float = 1e-9) -> Composite:
    """z⁺ without biases in hidden layers; in the first, z^B if the input is bounded and w² if it is not."""
    if pooling not in ("winner", "sum"):
        raise SettingError(
            explain_error("composites.deep_taylor: unknown `pooling`.", got=repr(pooling), need="'winner' or 'sum'")
        )
    if (low is None) != (high is None):
        raise SettingError(
            explain_error(
                "composites.deep_taylor: give both bounds of the input, or none.",
                got=f"low={low!r}, high={high!r}",
                fix=("low=0.0, high=1.0 for pixels", "neither, for real-valued inputs: the w² rule"),
            )
        )
    first = lrp.wsquare(epsilon=epsilon) if low is None else lrp.zbox(low, high, epsilon=epsilon)
    pool = lrp.winner_takes_all() if pooling == "winner" else lrp.proportional_pooling(epsilon=epsilon)
    rule = lrp.zplus(absorb_bias=False, epsilon=epsilon)
    entries = {"layer": rule, "add": rule, "max": pool, "first": first}
    return compose(_base(epsilon), entries, "deep_taylor")


def attention(epsilon: float = 1e-6) -> Composite:
    """AttnLRP for transformers: ε for layers, half for each factor of a matrix product, gradient × input for softmax.

    Achtibat et al., ICML 2024.
    """
    entries = {"layer": lrp.epsilon(epsilon), "scale_shift": lrp.epsilon(epsilon)}
    return compose(_base(epsilon), entries, "attention")
