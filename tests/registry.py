"""METHODS and TRANSFORMS: with MODELS, the product that the whole library is held to.

The whole product runs with `pytest --full`. By default a covering part of it runs: every method on every model, and
every transform on every model and with every method (`covering`, whose completeness is tested). There the plain calls
are not compiled again but read from `golden/registry.npz` (see `golden/make_registry.py`).

A public method that is missing from METHODS fails a test. Transforms return what the explainer gives under them for the
whole batch, to be compared with plain calls, one example at a time.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from models import BATCH, MODELS, N_CLASSES

import jaxplain as jx


class Method(NamedTuple):
    make: Callable[..., jx.Explainer]  # make(score, x) -> explainer
    stochastic: bool = False
    reverse: bool = True  # whether reverse mode goes through it
    condition: float = 1.0  # how much rounding in the score is magnified
    may_be_empty: bool = False  # a map in which nothing is left is NaN
    refuses: dict[str, str] = {}  # noqa: RUF012 - models that it refuses, and words of the error
    like: str = ""  # the method that stands for its mechanism: by default, some of its own rows are only traced


def _pool(x: Any) -> Any:
    return jx.references(jax.tree.map(lambda leaf: jnp.stack([_zeros(leaf), leaf]), x))


def _zeros(leaf: Any) -> Any:
    """Zeros that vary over meshes as the leaf does."""
    return leaf & False if leaf.dtype == bool else leaf * 0


def _two(x: Any) -> Any:
    # Not zero, where networks without biases have a kink and finite differences no derivative.
    return jx.references(jax.tree.map(lambda *leaves: jnp.stack(leaves), scaled(0.4, x), scaled(0.7, x)))


def _four_groups(x: Any) -> Any:
    return jax.tree.map(lambda leaf: np.arange(leaf.size).reshape(leaf.shape) % 4, x)


# Models without a layer of places and channels, for class activation maps.
NO_MAP = dict.fromkeys(
    (
        *("dense", "dense_no_bias", "recurrent_scan", "scanned_remat"),
        *("branches_and_custom_rules", "bf16_compute", "pytree_input"),
    ),
    "does not pass through any layer",
)


def _layer_gradient(f: Callable, x: Any) -> Callable:
    """Input × gradient of a layer: both halves of `split`."""
    encode, decode = jx.split(f, "last activation")
    return lambda x, y, key=None: jx.input_x_gradient(decode)(encode(x, y), x, y)


# A stabilizer that keeps relevance smooth at the scale of the registry's finite differences.
EPSILON = 0.1

METHODS: dict[str, Method] = {
    "gradient": Method(lambda f, x: jx.gradient(f)),
    "saliency": Method(lambda f, x: jx.saliency(f), like="gradient"),
    "saliency_channels": Method(lambda f, x: jx.saliency(f, channel_axis=-1, reduction="norm"), like="gradient"),
    "sensitivity": Method(lambda f, x: jx.sensitivity(f), like="gradient"),
    "input_x_gradient": Method(lambda f, x: jx.input_x_gradient(f), like="gradient"),
    "taylor": Method(lambda f, x: jx.taylor(f), like="gradient"),
    "taylor_line_search": Method(
        lambda f, x: jx.taylor(_with_root(f, x), root=jx.line_search(lambda x: scaled(0.9, x), n_points=4)),
        condition=15,  # x − root is 7 % of x
    ),
    "integrated_gradients": Method(lambda f, x: jx.integrated_gradients(f, n_steps=3, chunk_size=2, baseline=0.1)),
    "integrated_gradients_complete": Method(lambda f, x: jx.integrated_gradients(f, n_steps=3, complete=True)),
    "integrated_gradients_tol": Method(
        lambda f, x: jx.integrated_gradients(f, n_steps=2, tol=1e-2, max_steps=60, chunk_size=4),
        reverse=False,
    ),
    "integrated_gradients_references": Method(
        lambda f, x: jx.integrated_gradients(f, baseline=_pool(x), n_steps=2, quadrature="midpoint"),
        like="expected_gradients",
    ),
    "expected_gradients": Method(
        lambda f, x: jx.expected_gradients(f, references=_pool(x), n_samples=3, chunk_size=2), stochastic=True
    ),
    "smoothgrad": Method(
        lambda f, x: jx.smoothgrad(jx.gradient(f), n_samples=3, noise=0.1, chunk_size=2), stochastic=True
    ),
    "smoothgrad_squared": Method(
        lambda f, x: jx.smoothgrad_squared(jx.integrated_gradients(f, n_steps=2), n_samples=2),
        stochastic=True,
        like="vargrad",
    ),
    "taylor_root": Method(lambda f, x: jx.taylor(f, root=lambda x: scaled(0.5, x)), like="gradient"),
    "vargrad": Method(lambda f, x: jx.vargrad(jx.input_x_gradient(f), n_samples=3), stochastic=True),
    "guided_backprop": Method(lambda f, x: jx.guided_backprop(f)),
    "deconvnet": Method(lambda f, x: jx.deconvnet(f), like="guided_backprop"),
    "deep_taylor": Method(lambda f, x: jx.deep_taylor(f, pooling="sum", epsilon=EPSILON)),
    "excitation_backprop": Method(lambda f, x: jx.excitation_backprop(f, epsilon=EPSILON), like="deep_taylor"),
    "lrp": Method(lambda f, x: jx.lrp(f, rules=jx.composites.epsilon_plus_flat(EPSILON))),
    "lrp_gamma_box": Method(
        lambda f, x: jx.lrp(f, rules=jx.composites.epsilon_gamma_box(-4.0, 4.0, epsilon=EPSILON)),
        # Their first layers read a normalization, and a square, of the input.
        refuses=dict.fromkeys(("attention", "pytree_input"), "units of the explained input"),
        like="lrp",
    ),
    "deeplift": Method(lambda f, x: jx.deeplift(f, baseline=lambda x: scaled(0.4, x))),
    "deeplift_reveal_cancel": Method(
        lambda f, x: jx.deeplift(f, baseline=_two(x), rule="reveal_cancel", fallback="rescale", chunk_size=2)
    ),
    "conductance": Method(lambda f, x: jx.conductance(f, at="last activation", baseline=0.1, n_steps=3, chunk_size=2)),
    "layer_gradient": Method(_layer_gradient, like="conductance"),
    "cam": Method(
        lambda f, x: jx.cam(f), refuses=NO_MAP | dict.fromkeys(("conv_maxpool", "equinox_conv"), "not a mean")
    ),
    "grad_cam": Method(lambda f, x: jx.grad_cam(f, relu=False), refuses=NO_MAP),
    "hires_cam": Method(lambda f, x: jx.hires_cam(f), refuses=NO_MAP, like="grad_cam"),
    "xgrad_cam": Method(lambda f, x: jx.xgrad_cam(f, relu=False), refuses=NO_MAP, like="grad_cam"),
    "grad_cam_plus_plus": Method(lambda f, x: jx.grad_cam_plus_plus(f), refuses=NO_MAP, may_be_empty=True),
    "layer_cam": Method(lambda f, x: jx.layer_cam(f), refuses=NO_MAP, may_be_empty=True, like="grad_cam_plus_plus"),
    "eigen_cam": Method(lambda f, x: jx.eigen_cam(f, upsample=False), condition=30, refuses=NO_MAP),
    "score_cam": Method(lambda f, x: jx.score_cam(f, baseline=0.2, chunk_size=3), refuses=NO_MAP),
    "ablation_cam": Method(lambda f, x: jx.ablation_cam(f, relu=False, upsample="nearest"), refuses=NO_MAP),
    "guided_grad_cam": Method(lambda f, x: jx.guided_grad_cam(f), refuses=NO_MAP, may_be_empty=True, like="grad_cam"),
    "occlusion": Method(
        lambda f, x: jx.occlusion(f, window=2, strides=2, baseline=lambda x: scaled(0.4, x), chunk_size=2)
    ),
    "ablation": Method(lambda f, x: jx.ablation(f, baseline=_two(x), chunk_size=5), like="occlusion"),
    "shapley_sampling": Method(
        lambda f, x: jx.shapley_sampling(
            f, groups=_four_groups(x), share=True, baseline=0.1, n_samples=3, chunk_size=4
        ),
        stochastic=True,
    ),
    "lrp_attention": Method(lambda f, x: jx.lrp(f, rules=jx.composites.attention(EPSILON), start=1.0)),
}


def scaled(factor: float, tree: Any) -> Any:
    return jax.tree.map(lambda a: a if a.dtype == bool else (factor * a).astype(a.dtype), tree)


def _with_root(f: Callable, x: Any) -> Callable:
    """f shifted so that it has a root on the line from x to 0.9 x, whatever the model: at 0.93 x."""
    return lambda p, *args: f(p, *args) - f(scaled(0.93, x), *args)


class Setup(NamedTuple):
    """One (model, method) pair as a transform sees it."""

    explain_with: Callable[..., Any]  # explain_with(weights, x, label, key) for one example
    weights: Any
    xs: Any
    labels: jax.Array
    keys: jax.Array


def setup(model: str, method: str) -> Setup:
    case, spec = MODELS[model](), METHODS[method]

    def explain_with(weights: Any, x: Any, label: Any, key: jax.Array) -> Any:
        explain = spec.make(lambda x, y: case.score(weights, x, y), x)
        return explain(x, label, key=key)

    keys = jax.random.split(jax.random.key(7), BATCH)
    return Setup(explain_with, case.weights, case.xs, case.labels, keys)


Transform = Callable[[Setup], Any]
TRANSFORMS: dict[str, Transform] = {}


def transform(function: Transform) -> Transform:
    TRANSFORMS[function.__name__] = function
    return function


def _closed(s: Setup) -> Callable:
    return lambda x, y, k: s.explain_with(s.weights, x, y, k)


def _row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def stack(parts: list) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


@transform
def plain(s: Setup) -> Any:
    """No transform at all, and Python labels. One example, since it runs equation by equation."""
    return jax.tree.map(lambda leaf: leaf[None], _closed(s)(_row(s.xs, 0), int(s.labels[0]), s.keys[0]))


def jit(s: Setup) -> Any:
    """The reference: one compiled example at a time."""
    explain = jax.jit(_closed(s))
    return stack([explain(_row(s.xs, i), s.labels[i], s.keys[i]) for i in range(BATCH)])


def scores(model: str) -> np.ndarray:
    """The scores of a model's examples: whether its weights are those of the stored references."""
    case = MODELS[model]()
    return np.asarray(jax.jit(jax.vmap(lambda x, y: case.score(case.weights, x, y)))(case.xs, case.labels), np.float64)


@functools.cache
def _stored() -> dict[str, np.ndarray]:
    with np.load(pathlib.Path(__file__).parent / "golden" / "registry.npz") as file:
        # NumPy's format does not know bfloat16.
        return {name: a.view(jnp.bfloat16) if a.dtype.kind == "V" else a for name, a in file.items()}


@functools.cache
def _is_stored(model: str) -> bool:
    """Whether the stored references are of these weights: initializers and random numbers belong to other libraries."""
    stored = _stored().get(f"{model}/scores")
    return stored is not None and np.allclose(stored, scores(model), rtol=MODELS[model]().rtol)


def stored(model: str, method: str) -> list[np.ndarray] | None:
    """The leaves of the stored reference, None where there is none."""
    if not _is_stored(model):
        return None
    leaves = []
    while (name := f"{model}/{method}/{len(leaves)}") in _stored():
        leaves.append(_stored()[name])
    return leaves or None


def shapes(transform: str, s: Setup) -> Any:
    """What the transform gives, traced and not run; None for those that move arrays between devices or batches."""
    if transform not in ("jit_vmap", "vmap_jit", "weights_as_argument", "all_classes", "lax_map", "checkpoint"):
        return None
    return jax.eval_shape(lambda: TRANSFORMS[transform](s))


@transform
def jit_vmap(s: Setup) -> Any:
    return jax.jit(jax.vmap(_closed(s)))(s.xs, s.labels, s.keys)


@transform
def vmap_jit(s: Setup) -> Any:
    return jax.vmap(jax.jit(_closed(s)))(s.xs, s.labels, s.keys)


@transform
def weights_as_argument(s: Setup) -> Any:
    return jax.jit(jax.vmap(s.explain_with, in_axes=(None, 0, 0, 0)))(s.weights, s.xs, s.labels, s.keys)


@transform
def all_classes(s: Setup) -> Any:
    explain = jax.vmap(_closed(s), in_axes=(None, 0, None))
    maps = jax.jit(jax.vmap(explain, in_axes=(0, None, 0)))(s.xs, jnp.arange(N_CLASSES), s.keys)
    return jax.tree.map(lambda leaf: leaf[jnp.arange(BATCH), s.labels], maps)


@transform
def lax_map(s: Setup) -> Any:
    # lax.map is a scan without a carry: this row stands for both.
    return jax.jit(lambda: lax.map(lambda a: _closed(s)(*a), (s.xs, s.labels, s.keys)))()


@transform
def checkpoint(s: Setup) -> Any:
    return jax.jit(jax.vmap(jax.checkpoint(_closed(s))))(s.xs, s.labels, s.keys)


def _four(s: Setup) -> tuple:
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1]]), (s.xs, s.labels, s.keys))


def _mesh(kind: Any) -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("data",), axis_types=(kind,))


def _sharded(s: Setup, kind: Any) -> Any:
    mesh, run = _mesh(kind), jax.vmap(_closed(s))
    with jax.set_mesh(mesh):
        args = jax.device_put(_four(s), jax.NamedSharding(mesh, jax.P("data")))
        out = jax.jit(run)(*args)
    assert all(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(out)), "the result left its devices"
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:BATCH], out)


@transform
def sharded_auto(s: Setup) -> Any:
    return _sharded(s, jax.sharding.AxisType.Auto)


@transform
def sharded_explicit(s: Setup) -> Any:
    return _sharded(s, jax.sharding.AxisType.Explicit)


@transform
def shard_map(s: Setup) -> Any:
    run = jax.shard_map(
        jax.vmap(_closed(s)), mesh=_mesh(jax.sharding.AxisType.Auto), in_specs=jax.P("data"), out_specs=jax.P("data")
    )
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:BATCH], jax.jit(run)(*_four(s)))


@transform
def batched(s: Setup) -> Any:
    explain = lambda x, y, k: _closed(s)(x, y, jax.random.wrap_key_data(k))
    run = jx.batched(explain, batch_size=2, progress=False, on_nan="mark")  # an empty map is NaN, and is compared
    return run(s.xs, s.labels, jax.random.key_data(s.keys))


def _is_empty(model: str, method: str) -> bool:
    """Whether nothing is left in the stored map of the first example."""
    name = f"{model}/{method}/0"
    return METHODS[method].may_be_empty and name in _stored() and bool(np.isnan(_stored()[name][0]).any())


def covering() -> list[tuple[str, str, str]]:
    """Triples in which every pair (model, method), (model, transform) and (method, transform) occurs.

    A call without any transform runs equation by equation, each a program of its own. So `plain` meets all methods on
    one model, where they share these programs, and all models with one method. The other transforms rotate over models
    and methods.
    """
    models, methods = list(MODELS), list(METHODS)
    others = [name for name in TRANSFORMS if name != "plain"]
    # Outside of `jit`, a map in which nothing is left is an error: methods that may have one meet a model that leaves
    # something.
    plain_on = {
        method: next(name for name in models if name not in METHODS[method].refuses and not _is_empty(name, method))
        for method in methods
    }
    rows = [(model, "gradient", "plain") for model in models]
    rows += [(plain_on[method], method, "plain") for method in methods if method != "gradient"]
    for j, method in enumerate(methods):
        rest = [model for model in models if (model, method, "plain") not in rows or method == "gradient"]
        # Refusals last, so that the transforms meet models that the method explains.
        rest.sort(key=lambda model: model in METHODS[method].refuses)
        rows += [(model, method, others[(i + j) % len(others)]) for i, model in enumerate(rest)]
    met = {(model, transform) for model, _, transform in rows}
    rows += [(model, "gradient", other) for model in models for other in others if (model, other) not in met]
    return list(dict.fromkeys(rows))
