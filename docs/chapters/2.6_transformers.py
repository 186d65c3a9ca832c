# %% [markdown]
# # 2.6 A small transformer, explained patch by patch
#
# Attention multiplies two things that both depend on the input, its softmax couples all tokens, and every block divides
# by the norm of its input. Rules for dense layers say nothing about these. **AttnLRP** does:
#
# | node | rule |
# | --- | --- |
# | dense layer | $\varepsilon$ |
# | matrix product $z = AV$ | half to each factor, in proportion to its contributions |
# | softmax $p = s(x)$ | its Taylor expansion, $R_i = x_i (R_i - p_i \sum_k R_k)$ |
# | layer norm | the statistics are held; the rest is linear |
# | GELU | pass |
#
# The library finds these nodes in the traced program. The network below is plain `jax.numpy`, without modules, hooks or
# a special softmax.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxplain as jx
from jaxplain import composites, datasets

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
images, labels = digits.x_test, digits.y_test
WIDTH, HEADS, LAYERS, PATCH = 32, 4, 2, 7
EPOCHS = 4 if "CHAPTER_SCENES" in os.environ else 16  # fewer when this page is only checked
N = (28 // PATCH) ** 2

# %% [markdown]
# ## A vision transformer of 30,000 weights
#
# Patches of 7×7 pixels are tokens; two equal layers run as one `lax.scan`; the mean of the tokens is classified.


# %%
def patches(image):
    """(28, 28, 1) -> (16, 49)"""
    grid = image.reshape(28 // PATCH, PATCH, 28 // PATCH, PATCH)
    return grid.transpose(0, 2, 1, 3).reshape(N, PATCH * PATCH)


def norm(x, scale):
    return scale * (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def block(x, w):
    h = norm(x, w["norm1"])
    q, k, v = (jnp.reshape(h @ w[name], (N, HEADS, -1)) for name in ("q", "k", "v"))
    attention = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / (WIDTH / HEADS) ** 0.5)
    x = x + jnp.einsum("hqk,khd->qhd", attention, v).reshape(N, WIDTH) @ w["out"]
    return x + jax.nn.gelu(norm(x, w["norm2"]) @ w["up"] + w["bias"]) @ w["down"], None


def transformer(w, tokens):
    x = tokens @ w["embed"] + w["position"]
    x, _ = jax.lax.scan(block, x, w["blocks"])
    return norm(x, w["norm"]).mean(0) @ w["head"]


def initial(key):
    keys = iter(jax.random.split(key, 12))
    dense = lambda *shape: jax.random.normal(next(keys), shape) / shape[-2] ** 0.5
    square = {name: dense(LAYERS, WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    ones = jnp.ones((LAYERS, WIDTH))
    blocks = square | {"up": dense(LAYERS, WIDTH, 4 * WIDTH), "down": dense(LAYERS, 4 * WIDTH, WIDTH)}
    blocks |= {"bias": jnp.zeros((LAYERS, 4 * WIDTH)), "norm1": ones, "norm2": ones}
    position = 0.1 * jax.random.normal(next(keys), (N, WIDTH))
    ends = {"embed": dense(PATCH * PATCH, WIDTH), "head": dense(WIDTH, 10), "norm": jnp.ones(WIDTH)}
    return ends | {"position": position, "blocks": blocks}


def train(w, x, y, epochs=EPOCHS, batch=100):
    steps = len(x) // batch
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, epochs * steps))

    def loss(w, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(
            jax.vmap(transformer, (None, 0))(w, jax.vmap(patches)(x)), y
        ).mean()

    @jax.jit
    def step(w, state, x, y):
        update, state = optimizer.update(jax.grad(loss)(w, x, y), state)
        return optax.apply_updates(w, update), state

    rng, state = np.random.default_rng(0), optimizer.init(w)
    for _ in range(epochs):
        for rows in rng.permutation(len(x)).reshape(steps, batch):
            w, state = step(w, state, x[rows], y[rows])
    return w


w = train(initial(jax.random.key(0)), digits.x_train[: len(digits.x_train) // 100 * 100], digits.y_train)
logits = jax.jit(jax.vmap(lambda image: transformer(w, patches(image))))
print(f"right on {np.mean(logits(images).argmax(1) == labels):.1%} of {len(labels):,} held-out digits")

# %% [markdown]
# ## What the library sees
#
# One loop, and inside of it every node of the attention block, with the rule that it gets:

# %%
score = lambda image, label: transformer(w, patches(image))[label]
rules = composites.attention()
for row in jx.plan(score, rules=rules)(images[0], 0):
    if row.kind != "structural":
        print(f"{row.kind:14} {row.shape!s:16} {row.position:6} {row.rule}")

# %% [markdown]
# ## The maps, patch by patch

# %%
ten = np.array([np.flatnonzero(labels == c)[0] for c in range(10)])
x, y = images[ten], labels[ten]
methods = {
    "input × gradient": jx.input_x_gradient(score),
    "integrated gradients": jx.integrated_gradients(score, n_steps=30),
    "attention LRP": jx.lrp(score, rules=rules),
}
run = {name: jax.jit(jax.vmap(explain)) for name, explain in methods.items()}


def by_patch(maps):
    """The sum over each patch, painted on it."""
    shape = (len(maps), 28 // PATCH, PATCH, 28 // PATCH, PATCH)
    sums = np.reshape(maps, shape).sum((2, 4), keepdims=True)
    return np.broadcast_to(sums, shape).reshape(len(maps), 28, 28, 1)


rows = {name: explain(x, y) for name, explain in run.items()}
rows |= {f"{name},\nby patch": by_patch(maps) for name, maps in rows.items() if name != "input × gradient"}
jx.plot.grid(rows, x, titles=[f"digit {c}" for c in y], suptitle="A transformer on ten digits")
plt.show()

# %% [markdown]
# ### Proof: where the relevance goes
#
# Position embeddings are constants that are added to the input, like a bias: their contribution is relevance
# that no pixel can have. The ledger lists it, together with the share that the softmax does not conserve.

# %%
accounts = jax.jit(jax.vmap(jx.ledger(score, rules=rules)))(x, y)
value = accounts.value.mean()
for kind in ("dense", "softmax", "normalization", "product", "add"):
    mine = np.array([node.kind == kind for node in accounts.nodes])
    missing = (accounts.arriving - accounts.leaving)[:, mine].sum(1).mean()
    print(f"{kind:14} {mine.sum()} nodes keep {missing / value:7.1%} of the score")
total = (accounts.arriving - accounts.leaving).sum(1)
print(f"{'all':14} together {np.mean(total) / value:7.1%}; the pixels get {accounts.relevance.mean() / value:.1%}")
assert np.abs(total + accounts.relevance - accounts.value).max() < 1e-2 * np.abs(accounts.value).max()

# %% [markdown]
# ### Control: take the patches away
#
# Paint the patches black in the order of their relevance and watch the logit. The map that knows best which patches
# carry the decision brings it down fastest. (Black is a digit's background here, hence a fair "nothing".)

# %%
some, truth = images[:200], labels[:200]
counts = np.arange(0, 13)


def deletion(maps):
    sums = np.asarray(by_patch(maps))[:, ::PATCH, ::PATCH, 0].reshape(len(maps), N)
    rank = np.argsort(np.argsort(-sums, axis=1), axis=1).reshape(len(maps), 28 // PATCH, 28 // PATCH)
    rank = np.repeat(np.repeat(rank, PATCH, axis=1), PATCH, axis=2)[..., None]
    pick = lambda left: np.take_along_axis(np.asarray(logits(left)), truth[:, None], axis=1)[:, 0]
    return np.array([pick(np.where(rank < n, 0, some)) for n in counts])


curves = {name: deletion(explain(some, truth)) for name, explain in run.items()}
random = np.asarray(jax.random.normal(jax.random.key(1), some.shape))
curves["random order"] = deletion(random)
figure, ax = plt.subplots(figsize=(4.8, 3), layout="constrained")
for name, curve in curves.items():
    ax.plot(counts, curve.mean(1), label=name, linestyle="--" if name == "random order" else "-")
ax.set(xlabel="patches removed, most relevant first", ylabel="logit of the true class, mean of 200 digits")
ax.legend(fontsize=8, frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
for name, curve in curves.items():
    area = curve.mean(0)
    error = area.std() / len(area) ** 0.5
    print(f"{name:22} mean logit under deletion {area.mean():6.2f} ± {error:.2f}")
assert curves["attention LRP"].mean() < curves["input × gradient"].mean() < curves["random order"].mean()

# %% [markdown]
# On this network LRP, at the cost of two gradients, is well ahead of input × gradient, and behind integrated gradients
# at the cost of thirty. Such a ranking holds for one network, one control and one way of removing patches; make your
# own.
#
# ## When to use it, and when it misleads
#
# Use the attention composite for transformers: one backward pass, and products and softmax are treated as what they
# are. Sum over a token's features before reading it. It misleads when Σ R is read as the score: biases, position
# embeddings and the softmax all keep a part, which the ledger shows. And attention *weights* are not used here at all:
# they say where a head looked, rather than what it made of it.
#
# ## References
#
# * R. Achtibat et al. *AttnLRP: attention-aware layer-wise relevance propagation for transformers.* ICML 2024.
# * A. Ali et al. *XAI for transformers: better explanations through conservative propagation.* ICML 2022.
# * S. Jain, B. Wallace. *Attention is not explanation.* NAACL 2019.
