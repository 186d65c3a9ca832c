r"""Randomization: does the explanation depend on the learned weights, and on the explained class?

An explanation that stays the same when the weights are replaced, or when another class is explained, does not explain
this model's decision, however good it looks. Both metrics compare two maps by a *similarity*, and low is good:

| `similarity` | | |
| --- | --- | --- |
| `"spearman"` | rank correlation, ties get their mean rank | of any maps |
| `"pearson"` | correlation | of any maps |
| `"cosine"` | $\langle a, b \rangle / \lVert a \rVert \lVert b \rVert$ | of any maps |
| `"ssim"` | structural similarity | of maps (height, width[, channels]) |
| a function | `similarity(a, b)` → a number | of whatever it accepts |

The first four are unchanged by positive factors on either map. They are NaN if a map is constant (for the cosine: zero)
or not finite.

Maps of two unrelated models need not be dissimilar. For example, input × gradient keeps the outline of the digit for
any weights. Compare with the level of an explanation that ignores the model, `lambda params: lambda x, *args: x`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain import _compat
from jaxplain._accumulate import evaluate
from jaxplain._analysis.weight_order import weights_in_order
from jaxplain._arguments import Arguments
from jaxplain._checks import checked, chunk_of, count, one_of
from jaxplain._errors import LabelError, LayerError, SettingError, StructureError, explain_error
from jaxplain._explainer import Explainer
from jaxplain._ir.program import Program
from jaxplain._types import Args, Explain, PyTree, traits
from jaxplain.metrics._protocol import ExplainerMeasure, explainer_key, float_map, require_explaining
from jaxplain.metrics.similarity import Similarity, comparison

Order: TypeAlias = Literal["cascading", "bottom_up", "independent", "all"]


@checked(order=None)
def parameter_randomization(
    make_explain: Callable[[PyTree], Explain],
    *,
    order: Order = "cascading",
    layers: Sequence[str] | None = None,
    similarity: Similarity = "spearman",
    absolute: bool = True,
    draw: Callable[[jax.Array, PyTree], PyTree] | None = None,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> "ParameterRandomization":
    r"""Model parameter randomization test: $\frac1L \sum_{l=1}^L s\left(R_{\theta}(x), R_{\theta^{(l)}}(x)\right)$,
    where
    $\theta^{(l)}$ are the weights with some layers randomized.

    Arguments:
        make_explain: `make_explain(params)` → an explainer of the model with these weights, for example
            `lambda params: jx.gradient(lambda x, y: apply(params, x)[y])`. Weights that the explainer closes over are
            not randomized.
        order: "cascading": from the last layer down, keeping earlier steps (the paper's). "bottom_up": the same from
            the first layer. "independent": one layer at a time, from the last. "all": everything in one step.
        layers: Path prefixes **from the input to the output**, each of which is one step:
            `["params/Conv_0", "params/Dense_0"]`. Other weights stay. `None`: arrays of params with the same parent
            path (kernel and bias) are one layer, in the order in which the traced explanation uses them on values that
            depend on x. Layers that it does not use (an auxiliary head) are left out; if it uses none, all count.
        similarity: Similarity s, see above.
        absolute: Whether to compare |R|, which is how maps are viewed; with signs, a last layer that changes sign
            counts as a change.
        draw: `draw(key, params)` → other weights of the same structure. `None` permutes the entries of each array,
            which destroys what was learned but keeps their distribution, including the sign of positive entries (the
            variances of a batch norm). **The paper's re-initialization** is
            `draw=lambda key, params: model.init(key, x)`.
        chunk_size: Steps explained together; each needs a copy of the weights.
        key: Random key shared by all examples; otherwise `measure(params, x, *args, key=key)`.

    Returns:
        `measure(params, x, *args, key=key)` → the mean similarity over all steps; low is good.
        `measure.curve(params, x, *args, key=key)` → one similarity for each step, and
        `measure.layers(params, x, *args)` → the names of the layers that the steps randomize.

    Params are any pytree: Linen variables, an `nnx.State`, an Equinox model. Only float arrays are randomized;
    integers, keys, Python numbers and functions stay.

    Guarantees: an explanation that does not depend on the weights has 1 at every step. All steps share one draw of the
    weights, made with `fold_in(key, 0)`, and the explainer's own key, `fold_in(key, 2**32 - 1)`. A step whose layer
    does not change (permuted constants) is NaN in the curve, and does not count in the mean. Under `vmap` over
    examples, one key for all of them (`key=` here) uses the same random model for all.
    Cost: 1 + steps explanations in one compiled program; three copies of the weights, and one more for each of
    `chunk_size`.
    Errors: `LayerError` for prefixes that match nothing; `SettingError` if the explainer reads no weight, but closes
    over arrays of their shapes.
    Differs from: the paper re-initializes. So does Quantus, in the order in which modules were registered, with the
    same seed for each layer.

    Example:
        >>> import jax, jax.numpy as jnp, jaxplain as jx
        >>> score = lambda params, x: jnp.tanh(x @ params["first"]) @ params["last"]
        >>> measure = jx.metrics.parameter_randomization(lambda params: jx.gradient(lambda x: score(params, x)))
        >>> one, two = jax.random.split(jax.random.key(0))
        >>> params = {"last": jax.random.normal(one, (8,)), "first": jax.random.normal(two, (5, 8))}
        >>> measure.layers(params, jnp.ones(5))
        ('last', 'first')
        >>> measure.curve(params, jnp.ones(5), key=jax.random.key(1)).shape
        (2,)

    References:
        Adebayo et al., Sanity checks for saliency maps, NeurIPS 2018.
    """
    return ParameterRandomization(make_explain, order, layers, similarity, absolute, draw, chunk_size, key)


class ParameterRandomization(ExplainerMeasure):
    """What `parameter_randomization` returns: call it for the mean similarity, and `curve` for that of each step."""

    def __init__(
        self,
        make_explain: Callable[[PyTree], Explain],
        order: Order,
        layers: Sequence[str] | None,
        similarity: Similarity,
        absolute: bool,
        draw: Callable[[jax.Array, PyTree], PyTree] | None,
        chunk_size: int | None,
        key: jax.Array | None,
    ):
        def mean(args: Args, key: Any) -> jax.Array:
            similarities, counts = self._steps(args, key)
            return jnp.mean(similarities, where=counts)

        super().__init__("parameter_randomization", mean, stochastic=True, key=key)
        if not callable(make_explain) or isinstance(make_explain, Explainer):
            raise SettingError(
                explain_error(
                    f"{self.method}: its first argument must make an explainer from weights.",
                    got=repr(make_explain) if isinstance(make_explain, Explainer) else type(make_explain).__name__,
                    why="weights that an explainer closes over cannot be replaced",
                    fix="lambda params: jx.gradient(lambda x, label: apply(params, x)[label])",
                )
            )
        one_of(self.method, "order", order, get_args(Order))
        if isinstance(layers, str) or (layers is not None and not layers):
            raise SettingError(
                explain_error(f"{self.method}: `layers` must be a sequence of path prefixes.", got=repr(layers))
            )
        if draw is not None and not callable(draw):
            raise SettingError(
                explain_error(
                    f"{self.method}: `draw` must be a function (key, params) -> params.",
                    got=type(draw).__name__,
                    fix="draw=lambda key, params: model.init(key, x)",
                )
            )
        self._make_explain, self._order, self._layers, self._draw = make_explain, order, layers, draw
        self._similarity = comparison(self.method, similarity, absolute)
        self._chunk = chunk_of(self.method, chunk_size)

    def curve(self, params: PyTree, *args: Any, key: jax.Array | None = None) -> jax.Array:
        """The similarity after each step, in the order of `layers`."""
        similarities, counts = self._steps((params, *args), self._key_of_call(key))
        return jnp.where(counts, similarities, jnp.nan)

    def layers(self, params: PyTree, *args: Any) -> tuple[str, ...]:
        """The layer that each step randomizes (cascades also keep those of earlier steps); nothing is run."""
        weights = _Weights(self.method, params)
        named = self._in_order(weights, self._staged(weights, args, jax.random.key(0))[0])
        return tuple(named) if self._order != "all" else ("all",)

    def _staged(self, weights: "_Weights", args: Args, key: Any) -> tuple[Program, Callable[[Sequence], Any]]:
        """The explanation as a program of the weights and the explained input, and as a function of the weights."""
        explain = self._explainer_of(weights.params)
        arguments = Arguments(self.method, args, traits(explain).argnums)

        def explained(values: tuple, leaves: tuple, keyword: dict) -> Any:
            attribution = self._explainer_of(weights.fill(values))(*arguments.fill(leaves), **keyword)
            float_map(self.method, "the explanation", attribution)
            return attribution

        keyword = explainer_key(explain, key)
        program = Program(self.method, explained, weights.values, arguments.leaves, keyword)
        return program, lambda values: program(tuple(values), arguments.leaves, keyword)

    def _explainer_of(self, params: PyTree) -> Explain:
        explain = self._make_explain(params)
        if not callable(explain):
            raise SettingError(
                explain_error(
                    f"{self.method}: make_explain(params) must return an explainer.",
                    got=type(explain).__name__,
                    fix="lambda params: jx.gradient(lambda x, label: apply(params, x)[label])",
                )
            )
        require_explaining(self.method, explain)
        return explain

    def _in_order(self, weights: "_Weights", program: Program) -> dict[str, list[int]]:
        """The layers in the order of the steps, each with the indices of its arrays."""
        used = weights_in_order(program.closed, len(weights.values))
        if not used:
            _refuse_closure(self.method, weights, program)
        if self._layers is None:
            groups: dict[str, list[int]] = {}
            for i, name in enumerate(weights.layer_names):
                groups.setdefault(name, []).append(i)
            rank = {i: position for position, i in enumerate(used)}
            first = {
                name: min(rank[i] for i in arrays if i in rank)
                for name, arrays in groups.items()
                if rank.keys() & arrays
            }
            # A layer that the explanation does not use tests nothing. If it uses none, that is the failure to be found.
            forward = sorted(first, key=lambda name: first[name]) or list(groups)
        else:
            groups = weights.groups(self._layers)
            forward = list(self._layers)
        steps = forward if self._order == "bottom_up" else forward[::-1]
        return {name: groups[name] for name in steps}

    def _steps(self, args: Args, key: Any) -> tuple[jax.Array, jax.Array]:
        """The similarity after each step, and whether the step changed anything."""
        if len(args) < 2:
            one_argument = explain_error(
                f"{self.method}: needs the weights and the input.", fix="measure(params, x, *args, key=key)"
            )
            raise SettingError(one_argument)
        weights = _Weights(self.method, args[0])
        program, explained = self._staged(weights, args[1:], key)
        layers = list(self._in_order(weights, program).values())
        n = len(layers)
        steps = {"independent": np.eye(n, dtype=bool), "all": np.ones((1, n), bool)}
        table = jnp.asarray(steps.get(self._order, np.tri(n, dtype=bool)))
        layer_of = {i: number for number, arrays in enumerate(layers) for i in arrays}

        draw_key = jax.random.fold_in(key, 0)
        fresh = weights.permuted(draw_key) if self._draw is None else weights.like(self._draw(draw_key, weights.params))
        pairs = list(zip(weights.values, fresh, strict=True))
        has_changed = jnp.array(
            [jnp.array([jnp.any(a != b) for a, b in map(pairs.__getitem__, s)]).any() for s in layers]
        )
        trained = explained(weights.values)

        def step(k: jax.Array) -> jax.Array:
            chosen = table[k]
            mixed = [
                jnp.where(chosen[layer_of[i]], new, old) if i in layer_of else old for i, (old, new) in enumerate(pairs)
            ]
            return self._similarity(trained, explained(mixed))

        counts = jnp.any(has_changed, keepdims=True) if self._order == "all" else has_changed
        return evaluate(step, len(table), self._chunk), counts


@checked(n_classes=count(2))
def random_logit(
    explain: Explain,
    *,
    n_classes: int,
    argnum: int = 1,
    average: bool = False,
    similarity: Similarity = "ssim",
    absolute: bool = True,
    chunk_size: int | None = None,
    key: jax.Array | None = None,
) -> ExplainerMeasure:
    r"""Random logit test: $s\left(R(x, c), R(x, c')\right)$, the similarity of the maps for class c and another class
    c′.

    Arguments:
        explain: An explainer of this library, or any function `(x, label, *args) -> map`; the label of the other class
            is traced.
        n_classes: Number of classes; labels are 0 … n − 1.
        argnum: Position of the label among the arguments of `explain`.
        average: Whether to take the mean over all other classes, instead of one drawn uniformly from them.
        similarity: Similarity s, see above. "ssim" is the paper's, and only takes images.
        absolute: Whether to compare |R|.
        chunk_size: Classes explained together, if `average`.
        key: Random key shared by all examples; otherwise `measure(x, label, key=key)`, if a class is drawn or the
            explainer is stochastic.

    Returns:
        `measure(x, label, *args, key=key)` → a number; low is good. 1 for a map that does not depend on the class.

    Guarantees: the class is drawn with `fold_in(key, 0)`: j = `jax.random.randint(..., 0, n − 1)`, then j + 1 if j ≥ c.
    The explainer's own key, `fold_in(key, 2**32 - 1)`, is the same for all classes. With two classes and contrasting
    scores, |R| is the same for both. A traced label out of range gives NaN.
    Cost: 2 explanations; `n_classes` with `average`.
    Errors: `LabelError` for a label that is not an integer, or out of range.
    Differs from: Quantus flattens the map first, so that its SSIM is that of a single row.

    References:
        Sixt, Granz, Landgraf, When explanations lie: why many modified BP attributions fail, ICML 2020.
    """
    method = "metrics.random_logit"
    require_explaining(method, explain)
    compare = comparison(method, similarity, absolute)
    chunk = chunk_of(method, chunk_size)
    of = traits(explain)

    def compute(args: Args, key: Any) -> jax.Array:
        if not -len(args) <= argnum < len(args):
            raise SettingError(
                explain_error(
                    f"{method}: there is no argument {argnum}, which should be the label.",
                    got=f"{len(args)} positional argument(s)",
                    fix="measure(x, label, key=key); argnum is the position of the label",
                )
            )
        place = argnum % len(args)
        if place in {a % len(args) for a in (of.argnums if isinstance(of.argnums, Sequence) else (of.argnums,))}:
            raise SettingError(
                explain_error(f"{method}: the label cannot be an explained argument.", got=f"argnum={argnum}")
            )
        arguments = Arguments(method, args, of.argnums)
        label = args[place]
        is_label = _require_label(method, label, n_classes)

        def explained(label: jax.Array, leaves: tuple, keyword: dict) -> Any:
            call_args = list(arguments.fill(leaves))
            call_args[place] = label
            attribution = explain(*call_args, **keyword)
            float_map(method, "the explanation", attribution)
            return attribution

        keyword = explainer_key(explain, key)
        label = jnp.asarray(label)
        program = Program(method, explained, label, arguments.leaves, keyword)
        here = program(label, arguments.leaves, keyword)

        def other(j: jax.Array) -> jax.Array:
            j = j.astype(label.dtype)
            another = j + (j >= label).astype(label.dtype)
            return compare(here, program(another, arguments.leaves, keyword))

        if average:
            value = jnp.mean(evaluate(other, n_classes - 1, chunk))
        else:
            value = other(jax.random.randint(jax.random.fold_in(key, 0), (), 0, n_classes - 1))
        return jnp.where(is_label, value, jnp.nan)

    return ExplainerMeasure("random_logit", compute, stochastic=not average or of.needs_key, key=key)


class _Weights:
    """The float arrays of params, by index; everything else is fixed."""

    def __init__(self, method: str, params: PyTree):
        self.method, self.params = method, params
        flat, self._tree = jax.tree_util.tree_flatten_with_path(params)
        self._rest = [leaf for _, leaf in flat]
        self._places = [i for i, (_, leaf) in enumerate(flat) if _is_weight(leaf)]
        self.values = tuple(jnp.asarray(flat[i][1]) for i in self._places)
        paths = [_path(flat[i][0]) for i in self._places]
        self.names = ["/".join(path) for path in paths]
        self.layer_names = ["/".join(path[:-1] or path) for path in paths]
        if not self.values:
            raise StructureError(
                explain_error(
                    f"{method}: params hold no float array.",
                    got=f"{len(flat)} leaves: {sorted({type(leaf).__name__ for _, leaf in flat})}",
                    fix="the order of arguments: measure(params, x, *args, key=key)",
                )
            )

    def fill(self, values: Sequence[Any]) -> Any:
        leaves = list(self._rest)
        for place, value in zip(self._places, values, strict=True):
            leaves[place] = value
        return jax.tree.unflatten(self._tree, leaves)

    def permuted(self, key: Any) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, len(self.values))
        return tuple(
            jax.random.permutation(k, jnp.ravel(value)).reshape(value.shape)
            for k, value in zip(keys, self.values, strict=True)
        )

    def like(self, drawn: PyTree) -> tuple[jax.Array, ...]:
        """The float arrays of drawn weights, which must have the same paths and shapes."""
        other = _Weights(self.method, drawn)
        got, need = (
            [f"{name} {list(v.shape)}" for name, v in zip(w.names, w.values, strict=True)] for w in (other, self)
        )
        if got != need:
            raise StructureError(
                explain_error(
                    f"{self.method}: `draw` must return weights of the same structure and shapes.",
                    got=", ".join(sorted(set(got) - set(need))) or "fewer arrays",
                    need=", ".join(sorted(set(need) - set(got))) or "no more arrays than params has",
                )
            )
        return tuple(new.astype(old.dtype) for new, old in zip(other.values, self.values, strict=True))

    def groups(self, prefixes: Sequence[str]) -> dict[str, list[int]]:
        found = {
            prefix: [i for i, name in enumerate(self.names) if f"{name}/".startswith(f"{prefix}/")]
            for prefix in prefixes
        }
        missing = [prefix for prefix, arrays in found.items() if not arrays]
        if missing:
            raise LayerError(
                explain_error(
                    f"{self.method}: `layers` does not match params.",
                    got=", ".join(map(repr, missing)),
                    need="prefixes of " + ", ".join(dict.fromkeys(self.layer_names)),
                )
            )
        everything = [i for arrays in found.values() for i in arrays]
        if len(set(everything)) < len(everything) or len(found) < len(prefixes):
            raise LayerError(
                explain_error(f"{self.method}: `layers` names some weights twice.", got=repr(list(prefixes)))
            )
        return found


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _path(path: tuple) -> tuple[str, ...]:
    parts = tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
    # An NNX variable is a separate node around its array.
    is_variable = len(path) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey) and parts[-1] == "value"
    return parts[:-1] if is_variable else parts


def _refuse_closure(method: str, weights: _Weights, program: Program) -> None:
    """Called if no weight is read: refuses an explainer that closes over arrays with the shapes of the weights."""
    shapes = {(v.shape, v.dtype) for v in weights.values if v.ndim > 1}
    held = [np.shape(c) for c in _constants(program.closed) if (np.shape(c), getattr(c, "dtype", None)) in shapes]
    if held:
        raise SettingError(
            explain_error(
                f"{method}: the explainer does not read its weights from params, but closes over others of the same "
                "shapes.",
                got=", ".join(map(str, map(list, held[:3]))),
                why="weights that are closed over cannot be randomized, so every similarity would be 1",
                fix=(
                    "lambda params: jx.gradient(lambda x, label: apply(params, x)[label])",
                    "NNX: graphdef, params = nnx.split(model); "
                    "lambda params: jx.gradient(jx.logit(nnx.merge(graphdef, params)))",
                ),
            )
        )


def _constants(closed: Any) -> Iterator[Any]:
    yield from _compat.constants(closed)
    for equation in _compat.open_jaxpr(closed).eqns:
        for body in _compat.closed_bodies(equation):
            yield from _constants(body)


def _require_label(method: str, label: Any, n_classes: int) -> jax.Array:
    """Whether a traced label is one of the classes; other labels are checked here."""
    if jnp.shape(label) != () or not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise LabelError(
            explain_error(
                f"{method}: the label must be one integer for one example.",
                got=f"{jnp.result_type(label)}{list(jnp.shape(label))}",
                fix="a batch: jax.vmap(measure)(images, labels, key=jax.random.split(key, len(images)))",
            )
        )
    if not isinstance(label, jax.core.Tracer) and not 0 <= int(label) < n_classes:
        raise LabelError(
            explain_error(f"{method}: there is no class {int(label)}.", need=f"0 to n_classes − 1 = {n_classes - 1}")
        )
    return (jnp.asarray(label) >= 0) & (jnp.asarray(label) < n_classes)
