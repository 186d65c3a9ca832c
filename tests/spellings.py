"""Ways to write one thing: each entry of a table lists programs of equal value, the plainest first."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

# Elementwise functions z -> f(z)

_ROOT = float(np.sqrt(2 / np.pi))

ACTIVATIONS = {
    "tanh": [
        jnp.tanh,
        lambda z: 1 - 2 / (jnp.exp(2 * z) + 1),
        lambda z: 2 * jax.nn.sigmoid(2 * z) - 1,
        lambda z: (jnp.exp(z) - jnp.exp(-z)) / (jnp.exp(z) + jnp.exp(-z)),
        lambda z: -jnp.tanh(-z),
        lambda z: 2 / (1 + jnp.exp(-2 * z)) - 1,
        lambda z: (1 - jnp.exp(-2 * z)) / (1 + jnp.exp(-2 * z)),
        lambda z: jnp.sinh(z) / jnp.cosh(z),
    ],
    "1 - exp(-z)": [lambda z: 1 - jnp.exp(-z), lambda z: -jnp.expm1(-z)],
    "1 - exp(z)": [lambda z: 1 - jnp.exp(z), lambda z: -jnp.expm1(z)],
    "expm1": [jnp.expm1, lambda z: jnp.exp(z) - 1],
    "relu": [
        jax.nn.relu,
        lambda z: -jnp.minimum(-z, 0),
        lambda z: (z + jnp.abs(z)) / 2,
        lambda z: jnp.where(z > 0, z, 0),
        lambda z: z * (z > 0).astype(z.dtype),
        lambda z: jnp.maximum(z, 0.0),
        lambda z: -0.5 * jnp.minimum(-2 * z, 0),
        lambda z: jnp.clip(z, 0),
        lambda z: 0.5 * (jnp.abs(z) + z),
        lambda z: z - jnp.minimum(z, 0),
    ],
    "silu": [
        jax.nn.silu,
        lambda z: z * (1 + jnp.tanh(z / 2)) / 2,
        lambda z: z / (1 + jnp.exp(-z)),
        lambda z: -(jax.nn.sigmoid(z) * -z),
    ],
    "sigmoid": [
        jax.nn.sigmoid,
        lambda z: 1 / (1 + jnp.exp(-z)),
        lambda z: (1 + jnp.tanh(z / 2)) / 2,
        lambda z: 1 - jax.nn.sigmoid(-z),
        lambda z: jnp.exp(z) / (1 + jnp.exp(z)),
        lambda z: jnp.exp(-jax.nn.softplus(-z)),
        lambda z: 1 - 1 / (1 + jnp.exp(z)),
        lambda z: 0.5 * jnp.tanh(0.5 * z) + 0.5,
    ],
    "softplus": [
        jax.nn.softplus,
        lambda z: jnp.log(1 + jnp.exp(z)),
        lambda z: -jnp.log(jax.nn.sigmoid(-z)),
        lambda z: jnp.log1p(jnp.exp(z)),
        lambda z: -jax.nn.log_sigmoid(-z),
        lambda z: jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z))),
    ],
    "log_sigmoid": [
        jax.nn.log_sigmoid,
        lambda z: jnp.log(jax.nn.sigmoid(z)),
        lambda z: -jax.nn.softplus(-z),
        lambda z: -jnp.log1p(jnp.exp(-z)),
    ],
    "gelu": [
        jax.nn.gelu,
        lambda z: 0.5 * z * (1 + jnp.tanh(_ROOT * (z + 0.044715 * z**3))),
        lambda z: z * jax.nn.sigmoid(2 * _ROOT * (z + 0.044715 * z**3)),
    ],
    "leaky relu": [
        lambda z: jax.nn.leaky_relu(z, 0.1),
        lambda z: jnp.maximum(z, 0.1 * z),
        lambda z: jnp.where(z > 0, z, 0.1 * z),
        lambda z: 0.55 * z + 0.45 * jnp.abs(z),
        lambda z: jax.nn.relu(z) - 0.1 * jax.nn.relu(-z),
    ],
    "elu": [
        jax.nn.elu,
        lambda z: jnp.where(z > 0, z, jnp.exp(z) - 1),
        lambda z: jnp.where(z > 0, z, -(1 - jnp.exp(z))),
    ],
    "hard sigmoid": [
        jax.nn.hard_sigmoid,
        lambda z: jnp.clip((z + 3) / 6, 0, 1),
        lambda z: jnp.minimum(jnp.maximum(z + 3, 0), 6) / 6,
    ],
    "hard swish": [
        jax.nn.hard_swish,
        lambda z: z * jnp.clip(z / 6 + 0.5, 0, 1),
        lambda z: z * jax.nn.relu6(z + 3) / 6,
    ],
    "abs": [
        jnp.abs,
        lambda z: jnp.maximum(z, -z),
        lambda z: jnp.where(z > 0, z, -z),
        lambda z: jax.nn.relu(z) + jax.nn.relu(-z),
        lambda z: jnp.abs(-z),
    ],
    "mish": [jax.nn.mish, lambda z: z * jnp.tanh(jnp.log(1 + jnp.exp(z)))],
    "1 - sigmoid": [
        lambda z: 1 - jax.nn.sigmoid(z),
        lambda z: 1 / (1 + jnp.exp(z)),
        lambda z: 1 - 1 / (1 + jnp.exp(-z)),
        lambda z: (1 - jnp.tanh(z / 2)) / 2,
    ],
    "square": [
        jnp.square,
        lambda z: z * z,
        lambda z: z**2,
        lambda z: jnp.power(z, 2),
        lambda z: (-z) ** 2,
    ],
    "min(z, 0)": [lambda z: jnp.minimum(z, 0), lambda z: -jax.nn.relu(-z), lambda z: jnp.where(z < 0, z, 0)],
    "relu6": [
        jax.nn.relu6,
        lambda z: jnp.clip(z, 0, 6),
        lambda z: jnp.minimum(jnp.maximum(z, 0), 6),
        lambda z: jnp.where(z < 0, 0, jnp.where(z > 6, 6, z)),
    ],
}

GROWING = ("1 - exp(-z)", "1 - exp(z)", "expm1", "square")  # of which two in a row may overflow

# Layers (x, w) -> x @ w, for x of shape (n, m)

LAYERS = [
    lambda x, w: x @ w,
    lambda x, w: jnp.einsum("nm,mk->nk", x, w),
    lambda x, w: (w.T @ x.T).T,
    lambda x, w: jnp.sum(w.T[None] * x[:, None, :], -1),
    lambda x, w: jnp.sum(x[:, :, None] * w[None], 1),
    lambda x, w: jnp.einsum("nm,mk->nmk", x, w).sum(1),
    lambda x, w: jax.vmap(lambda row: jax.vmap(lambda column: jnp.dot(row, column))(w.T))(x),
    lambda x, w: lax.dot_general(x, w.T, (((1,), (1,)), ((), ()))),
    lambda x, w: -(x @ -w),
    lambda x, w: (x @ (2 * w)) / 2,
    lambda x, w: jnp.tensordot(x, w, 1),
    lambda x, w: jax.jit(jnp.matmul)(x, w),
]

# Biases (x, b) -> x + b

BIASES = [
    lambda x, b: x + b[None],
    lambda x, b: b[None] + x,
    lambda x, b: x - -b[None],
    lambda x, b: x + jnp.broadcast_to(b, x.shape),
    lambda x, b: jax.vmap(jnp.add, (0, None))(x, b),
]

# Skips (x, y) -> x + y

SKIPS = [
    lambda x, y: x + y,
    lambda x, y: y + x,
    lambda x, y: jnp.add(x, y),
    lambda x, y: lax.add(*lax.optimization_barrier((x, y))),
    lambda x, y: jax.checkpoint(jnp.add)(x, y),
]

# Normalizations over the last axis

NORMS = {
    "rms": [
        lambda x: x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6),
        lambda x: x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6),
        lambda x: x * (jnp.mean(x * x, -1, keepdims=True) + 1e-6) ** -0.5,
        lambda x: jax.vmap(lambda row: row * lax.rsqrt(jnp.mean(row * row) + 1e-6))(x),
    ],
    "layer norm": [
        lambda x: (x - jnp.mean(x, -1, keepdims=True)) * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-6),
        lambda x: (lambda c: c / jnp.sqrt(jnp.mean(c**2, -1, keepdims=True) + 1e-6))(x - x.mean(-1, keepdims=True)),
        lambda x: jax.nn.standardize(x, axis=-1, epsilon=1e-6),
    ],
    "softmax": [
        lambda x: jax.nn.softmax(x, -1),
        lambda x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(x)),
        lambda x: jnp.exp(jax.nn.log_softmax(x, -1)),
        lambda x: jnp.exp(x - jax.nn.logsumexp(x, -1, keepdims=True)),
        lambda x: jax.vmap(jax.nn.softmax)(x),
    ],
}

# Identities: what lies around a block changes nothing

_PAD = ((0, 1), (0, 0))

AROUND = [
    lambda block: block,
    jax.jit,
    jax.checkpoint,
    lambda block: lambda x: block(x.T.T),
    lambda block: lambda x: block(x.reshape(-1).reshape(x.shape)),
    lambda block: lambda x: block(checkpoint_name(x, "h")),
    lambda block: lambda x: block(lax.optimization_barrier(x)),
    lambda block: lambda x: block(jnp.flip(jnp.flip(x, 0), 0)),
    lambda block: lambda x: block(jnp.concatenate([x[:1], x[1:]])),
    lambda block: lambda x: block(jnp.concatenate([x, jnp.ones_like(x)])[: len(x)]),
    lambda block: lambda x: block(jnp.pad(x, _PAD)[:-1]),
    lambda block: lambda x: jax.vmap(lambda row: block(row[None])[0])(x),
    lambda block: lambda x: lax.scan(lambda h, _: (block(h), None), x, None, length=1)[0],
    lambda block: lambda x: lax.cond(x.shape[0] > 0, block, block, x),
    lambda block: lambda x: lax.fori_loop(0, 1, lambda _, h: block(h), x),
    lambda block: lambda x: lax.map(lambda row: block(row[None])[0], x),
]

WAYS = (
    sum(map(len, ACTIVATIONS.values())) + sum(map(len, NORMS.values())) + sum(map(len, (LAYERS, BIASES, SKIPS, AROUND)))
)


def network(seed: int, *, plain: bool):
    """A drawn network of (n, m) -> number; its parts are written plainly, or each in a drawn way."""
    rng = np.random.default_rng(seed)
    how = np.random.default_rng(None if plain else seed + 1)
    pick = lambda ways: ways[0] if plain else ways[how.integers(len(ways))]
    size = 4
    blocks = []
    n_blocks = rng.integers(1, 4)
    for number in range(n_blocks):
        w, b = jnp.asarray(rng.normal(size=(size, size)) / 1.5), jnp.asarray(0.3 * rng.normal(size=size))
        names = [name for name in ACTIVATIONS if name not in GROWING or number == n_blocks - 1]
        act = pick(ACTIVATIONS[names[rng.integers(len(names))]])
        norm = pick(list(NORMS.values())[rng.integers(len(NORMS))]) if rng.random() < 0.3 else None
        skip = pick(SKIPS) if rng.random() < 0.4 else None
        layer, bias, around = pick(LAYERS), pick(BIASES), pick(AROUND)
        blocks.append(functools.partial(_block, around, skip, norm, act, layer, bias, w, b))
    layer, v = pick(LAYERS), jnp.asarray(rng.normal(size=(size, 1)))
    x = jnp.asarray(rng.normal(size=(3, size)))

    def score(x):
        for block in blocks:
            x = block(x)
        return jnp.sum(layer(x, v))

    return score, x


def _block(around, skip, norm, act, layer, bias, w, b, x):
    def inner(x):
        h = act(bias(layer(x if norm is None else norm(x), w), b))
        return h if skip is None else skip(x, h)

    return around(inner)(x)
