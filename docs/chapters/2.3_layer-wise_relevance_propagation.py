# %% [markdown]
# # 2.3 Layer-wise relevance propagation
#
# **The question**: how much of the score did each pixel contribute, if every layer may say how much each of its inputs
# contributed to each of its outputs? The relevance of the score goes backwards, layer by layer, and should be
# conserved:
#
# $$R_i = \sum_j \frac{c_{ij}}{\sum_{i'} c_{i'j}} R_j .$$
#
# What counts as a contribution $c_{ij}$ is a *rule*. Part 1 does it by hand; part 2 lets the library find the layers.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import composites, datasets, rules, zoo

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
images, labels = digits.x_test, digits.y_test
ten = np.array([np.flatnonzero(labels == c)[0] for c in range(10)])
x, y = images[ten], labels[ten]
net = zoo.load("mlp")
score = jx.logit(net)
print(f"right on {zoo.accuracy(net, images, labels):.1%} of {len(labels):,} held-out digits")

# %% [markdown]
# ## Part 1: by hand
#
# A dense layer computes $z_j = \sum_i x_i w_{ij} + b_j$. Two classic rules, with $v^+ = \max(v, 0)$, $v^- = \min(v, 0)$
# and a stabilizer $\mathrm{stab}(z) = z + \varepsilon\, \mathrm{sign}(z)$:
#
# $$\text{LRP-}\varepsilon: \; R_i = \sum_j \frac{x_i w_{ij}}{\mathrm{stab}(z_j)} R_j, \qquad
# \text{LRP-}\alpha\beta: \; R_i = \sum_j \Big(\alpha \frac{(x_i w_{ij})^+}{z_j^+} - \beta \frac{(x_i w_{ij})^-}{z_j^-}\Big) R_j .$$
#
# Biases are in the denominators and take their share. Twenty lines for a network of three layers:

# %%
EPSILON = 1e-6


def stab(z):
    return z + jnp.where(z >= 0, EPSILON, -EPSILON)


def lrp_epsilon(x, w, b, R):
    return x * (w @ (R / stab(x @ w + b)))


def lrp_alpha_beta(x, w, b, R, alpha=2, beta=1):
    c = x[:, None] * w
    positive, negative = jnp.maximum(c, 0), jnp.minimum(c, 0)
    up = positive @ (R / stab(positive.sum(0) + jnp.maximum(b, 0)))
    down = negative @ (R / stab(negative.sum(0) + jnp.minimum(b, 0)))
    return alpha * up - beta * down


def by_hand(rule, image, label):
    inputs, x = [], image.ravel()
    layers = [(net.params[name]["kernel"], net.params[name]["bias"]) for name in ("dense1", "dense2", "dense3")]
    for w, b in layers:
        inputs.append(x)
        z = x @ w + b
        x = jnp.maximum(z, 0)
    R = jnp.where(jnp.arange(10) == label, z, 0)  # the score is the logit
    for x, (w, b) in zip(reversed(inputs), reversed(layers), strict=True):
        R = rule(x, w, b, R)
    return R.reshape(image.shape)


# %% [markdown]
# The same with the library, for any network, from the score alone. The two agree to rounding:

# %%
for name, mine, rule in (
    ("ε", lrp_epsilon, rules.epsilon(EPSILON)),
    ("α2β1", lrp_alpha_beta, rules.alpha_beta(2, 1, epsilon=EPSILON)),
):
    hand = jax.jit(jax.vmap(lambda i, c, mine=mine: by_hand(mine, i, c)))(x, y)
    library = jax.jit(jax.vmap(jx.lrp(score, rules=rule)))(x, y)
    difference = float(jnp.linalg.norm(hand - library) / jnp.linalg.norm(hand))
    print(f"LRP-{name:5} by hand and by library differ by {difference:.0e}")
    assert difference < 1e-4

# %% [markdown]
# ## Where the relevance goes
#
# Σ R is often printed as a proof, and often misses the score without an explanation. The ledger explains it: for
# each node, it lists the relevance that arrived, that was passed on, and that the bias kept.

# %%
print(jx.ledger(score, rules=rules.epsilon(EPSILON))(x[3], 3))

# %% [markdown]
# Without biases nothing is kept, for either rule, and ε-LRP equals input × gradient, because ReLU networks without
# biases are homogeneous, and the ratios $x_i w_{ij} / z_j$ telescope.

# %%
plain = jx.logit(zoo.load("mlp_no_bias"))
for name, rule in (("ε", rules.epsilon(1e-9)), ("α1β0", rules.alpha_beta(1, 0)), ("α2β1", rules.alpha_beta(2, 1))):
    R, info = jax.jit(jax.vmap(jx.with_info(jx.lrp(plain, rules=rule))))(x, y)
    print(f"LRP-{name:5} Σ R / f = {np.round(np.median(1 + info.gap / info.value), 4)}")
    assert np.abs(info.gap / info.value).max() < 5e-3
R = jax.jit(jax.vmap(jx.lrp(plain, rules=rules.epsilon(1e-9))))(x, y)
other = jax.jit(jax.vmap(jx.input_x_gradient(plain)))(x, y)
print(f"LRP-ε against input × gradient: {jnp.linalg.norm(R - other) / jnp.linalg.norm(other):.0e}")
assert jnp.linalg.norm(R - other) < 1e-4 * jnp.linalg.norm(other)

# %%
one = {
    "ε": rules.epsilon(EPSILON),
    "γ = 0.25": rules.gamma(0.25),
    "α2β1": rules.alpha_beta(2, 1),
    "α1β0 (z⁺)": rules.alpha_beta(1, 0),
}
jx.plot.grid(
    {name: jax.jit(jax.vmap(jx.lrp(score, rules=rule)))(x, y) for name, rule in one.items()},
    x,
    titles=[f"digit {c}" for c in y],
    suptitle="One rule for all layers of the multilayer perceptron",
)
plt.show()

# %% [markdown]
# ## Part 2: composites on a convolutional network
#
# One rule everywhere is rarely best. Near the output, layers mix many concepts and ε keeps both signs; convolutions
# want a rule that favors positive contributions (z⁺, γ, αβ); the first layer sees pixels, whose zero is no absence. A
# *composite* says which node gets which rule. `jx.plan` lists the rules without running the network:

# %%
cnn = jx.logit(zoo.load("cnn_maxpool"))
for row in jx.plan(cnn, rules=composites.epsilon_plus_flat())(x[0], 0):
    print(f"{row.kind:12} {row.shape!s:18} {row.position:6} {row.rule}")

# %%
sets = {
    "input × gradient": jx.input_x_gradient(cnn),
    "ε everywhere": jx.lrp(cnn, rules=rules.epsilon()),
    "ε⁺": jx.lrp(cnn, rules=composites.epsilon_plus()),
    "ε⁺-flat": jx.lrp(cnn, rules=composites.epsilon_plus_flat()),
    "εα2β1-flat": jx.lrp(cnn, rules=composites.epsilon_alpha2_beta1_flat()),
    "εγ-box": jx.lrp(cnn, rules=composites.epsilon_gamma_box(0.0, 1.0)),
}
maps = {name: jax.jit(jax.vmap(explain))(x, y) for name, explain in sets.items()}
jx.plot.grid(maps, x, titles=[f"digit {c}" for c in y], suptitle="Composites on the CNN with max-pooling")
plt.show()

# %% [markdown]
# ### Proof: what is conserved, what biases keep, and which class is meant
#
# For a hundred digits: the part of the score that reaches the pixels, and the control that every map should pass. Asked
# about the runner-up class instead, does the map change?

# %%
some, truth = images[:100], labels[:100]
net = zoo.load("cnn_maxpool")
runner_up = np.where(np.arange(10) == truth[:, None], -np.inf, jax.jit(net)(some)).argmax(1)


def cosine(a, b):
    a, b = (np.reshape(m, (len(m), -1)) for m in (a, b))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


print("                    Σ R / f: median (10 %, 90 %)     cosine with the runner-up's map")
for name in list(sets)[1:]:
    run = jax.jit(jax.vmap(jx.with_info(sets[name])))
    R, info = run(some, truth)
    low, median, high = np.percentile(1 + info.gap / info.value, [10, 50, 90])
    print(f"{name:18} {median:8.3f} ({low:.3f}, {high:.3f}) {cosine(R, run(some, runner_up)[0]).mean():28.2f}")
    if name in ("ε⁺", "ε⁺-flat"):
        assert abs(median - 1) < 0.05

# %% [markdown]
# ## When to use it, and when it misleads
#
# Use LRP when a sum should be divided: it costs about two gradients, is smooth where gradients are shattered, and
# conserves the score up to what `jx.ledger` accounts for. It misleads when the composite is chosen by the beauty of the
# picture. z⁺ everywhere gives clean maps that hardly depend on the class, since positive contributions alone forget
# what speaks against it; so print the control above next to the picture. Explain the logit: relevance of a probability
# goes through the softmax and is not conserved. And read the flat rule's map at the resolution of the first layer's
# kernel: it spreads evenly inside it by construction.
#
# ## References
#
# * S. Bach et al. *On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance propagation.*
#   PLoS ONE 10, 2015.
# * G. Montavon et al. *Layer-wise relevance propagation: an overview.* LNCS 11700, 2019.
# * M. Kohlbrenner et al. *Toward best practice in explaining neural network decisions with LRP.* IJCNN 2020.
# * L. Sixt, M. Granz, T. Landgraf. *When explanations lie: why many modified BP attributions fail.* ICML 2020.
