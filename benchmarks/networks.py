"""Networks as lists of layers, and how our side applies them. Peers import this without JAX."""

from collections.abc import Callable
from typing import Any

KINDS = {
    "conv": "[conv, name, stride], odd size, padded by half of it; as many groups as its kernel's input axis asks for",
    "dense": "[dense, name]",
    "batch_norm": "[batch_norm, name], after a convolution, by stored statistics",
    "residual": "[residual, layers]: their input is added to their output",
    "max_pool": "2x2, SAME",
    "global_mean": "over both spatial axes",
    "relu": "",
    "relu6": "",
    "flatten": "",
}
NORM_EPS = 1e-3  # of batch_norm


def apply_layers(
    layers: list[list[Any]], weights: Any, x: Any, observe: Callable[[str, Any], None] | None = None
) -> Any:
    """The output of the layers. `observe` is called with the name and input of each batch-norm before it is applied."""
    import jax.numpy as jnp

    for kind, *rest in layers:
        if kind == "conv":
            x = _conv(x, weights[f"{rest[0]}/kernel"], rest[1])
            x = x + weights[f"{rest[0]}/bias"] if f"{rest[0]}/bias" in weights else x
        elif kind == "dense":
            x = x @ weights[f"{rest[0]}/kernel"] + weights[f"{rest[0]}/bias"]
        elif kind == "batch_norm":
            if observe:
                observe(rest[0], x)
            gamma, beta, mean, var = (weights[f"{rest[0]}/{part}"] for part in ("gamma", "beta", "mean", "var"))
            x = (x - mean) * (gamma / jnp.sqrt(var + NORM_EPS)) + beta
        elif kind == "residual":
            x = x + apply_layers(rest[0], weights, x, observe)
        else:
            x = _without_weights(kind, x)
    return x


def _without_weights(kind: str, x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    match kind:
        case "relu":
            return jax.nn.relu(x)
        case "relu6":
            return jax.nn.relu6(x)
        case "flatten":
            return x.reshape(x.shape[0], -1)
        case "global_mean":
            return jnp.mean(x, (1, 2))
        case "max_pool":
            return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    raise ValueError(kind)


def _conv(x: Any, kernel: Any, stride: int) -> Any:
    from jax import lax

    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    numbers, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
    )
