"""What `golden/make_quantus.py` has stored, and its network in plain JAX, for one image (12, 12)."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_nets import average_pool
from jax import lax

import jaxplain as jx

GOLDEN = pathlib.Path(__file__).parent / "golden" / "quantus"


@functools.cache
def stored(family: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{family}.npz") as file:
        return {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in file.items()}


def weights(prefix: str = "weights", family: str = "network") -> dict[str, dict[str, np.ndarray]]:
    """Of each layer, in the peer's layout: kernels (out, in, height, width), matrices (out, in)."""
    names = ("conv1", "conv2", "dense")
    return {name: {part: stored(family)[f"{prefix}/{name}.{part}"] for part in ("weight", "bias")} for name in names}


def _conv(w: Any, x: jax.Array, padding: int) -> jax.Array:
    kernel, layout = w["weight"].transpose(2, 3, 1, 0), ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x[None], kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=layout)[0]
    return y + w["bias"][None, None]


def layers(w: Any, x: jax.Array) -> dict[str, jax.Array]:
    """The outputs of all layers by the peer's names, the logits last."""
    out = {"conv1": _conv(w["conv1"], x[..., None], 1)}
    out["tanh"] = jnp.tanh(out["conv1"])
    out["pool1"] = average_pool(out["tanh"], 2, 2)
    out["conv2"] = _conv(w["conv2"], out["pool1"], 0)
    out["silu"] = jax.nn.silu(out["conv2"])
    out["pool2"] = average_pool(out["silu"], 2, 2)
    out["flat"] = out["pool2"].transpose(2, 0, 1).ravel()
    out["dense"] = w["dense"]["weight"] @ out["flat"] + w["dense"]["bias"]
    return out


def logits(x: jax.Array) -> jax.Array:
    return layers(weights(), x)["dense"]


def score(x: jax.Array, label: jax.Array) -> jax.Array:
    return logits(x)[label]


def probability(x: jax.Array, label: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits(x))[label]


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Six images and their labels."""
    return stored("network")["x"][:, 0], stored("network")["y"]


MAPS = ("random", "input_x_gradient")
# By the peer's names: numbers of the whole image.
BASELINES = {
    "0.25": 0.25,
    "black": lambda x: jnp.full_like(x, jnp.min(x)),
    "white": lambda x: jnp.full_like(x, jnp.max(x)),
    "mean": lambda x: jnp.full_like(x, jnp.mean(x)),
}


def measured(function: Callable[..., Any], *others: Any) -> Any:
    """function(map, x, label, *others of the example) under one jit: for both kinds of map, of the six examples."""
    maps = np.stack([stored("network")[f"maps/{kind}"][:, 0] for kind in MAPS])
    inside = jax.vmap(jax.vmap(function), in_axes=(0, None, None, *(None for _ in others)))
    return jax.jit(inside)(maps, *examples(), *others)


def agree(got: Any, want: Any, rtol: float = 1e-10) -> None:
    """Both in float64. A string stands for the array of that name for both kinds of map, where it says {}."""
    if isinstance(want, str):
        want = for_both_maps(want)
    assert got.dtype == want.dtype == np.float64 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-12)


def for_both_maps(name: str) -> np.ndarray:
    return np.stack([stored("faithfulness")[name.format(kind)] for kind in MAPS])


def curves(name: str) -> np.ndarray:
    """Of the logit, for both maps, with the point that the peer leaves out: where nothing has been removed."""
    later = for_both_maps(name)
    start = stored("network")["logits"][np.arange(6), examples()[1], None]
    return np.concatenate([np.broadcast_to(start, (*later.shape[:2], 1)), later], -1)


KINDS = ("gradient", "input_x_gradient")


def explainer(score: Callable[..., Any]) -> Callable[..., Any]:
    """explain(x, label, is_product, …), the gradient or x ⊙ gradient: one program for both kinds of explanation."""
    gradient = jx.gradient(score)
    return lambda x, label, is_product, *_: gradient(x, label) * jnp.where(is_product, x, 1)


def explained(function: Callable[..., Any], *others: Any) -> Any:
    """function(x, label, is_product, *others of the example) under one jit: for both kinds, of the six examples."""
    inside = jax.vmap(function, in_axes=(0, 0, None, *(0 for _ in others)))
    inside = jax.vmap(inside, in_axes=(None, None, 0, *(None for _ in others)))
    return jax.jit(inside)(*examples(), np.array([False, True]), *others)


def for_both_kinds(family: str, name: str) -> np.ndarray:
    return np.stack([stored(family)[name.format(kind)] for kind in KINDS])
