# %% [markdown]
# # 2.2 Simple Taylor decomposition
#
# **Question.** How much did each pixel contribute to the value of the score?
#
# Expand the score $f$ (here, as in every chapter, the **logit** of one class) to first order about a point $\tilde x$:
#
# $$f(x) = f(\tilde x) + \sum_i \underbrace{\frac{\partial f}{\partial x_i}(\tilde x)\,(x_i - \tilde x_i)}_{R_i}
# + \text{residual}.$$
#
# At a *root*, $f(\tilde x) = 0$, the first term is gone: what is to be explained, $f(x)$, is the sum of the $R_i$, up
# to the residual. Everything therefore depends on two things that a picture alone does not show: is $\tilde x$ a root,
# and how large is the residual? This chapter prints the answers.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import datasets, zoo

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
images, labels = digits.x_test, digits.y_test
ten = np.array([np.flatnonzero(labels == c)[0] for c in range(10)])  # the first held-out digit of each class
x, y = images[ten], labels[ten]

# %% [markdown]
# ## Networks without biases: an exact decomposition
#
# A ReLU network without biases is positively homogeneous: $f(tx) = t f(x)$ for $t > 0$. On the ray from black to $x$ it
# is a straight line through zero, so the gradient is the same everywhere on that ray, and $\tilde x = \varepsilon x$
# with $\varepsilon \to 0$ is as good a root as one can wish for:
#
# $$R_i = x_i \, \frac{\partial f}{\partial x_i}(x), \qquad \sum_i R_i = f(x) \quad \text{(Euler's theorem)}.$$
#
# We take two multilayer perceptrons, the same but for their biases, and walk along the ray.

# %%
bias_free, biased = zoo.load("mlp_no_bias"), zoo.load("mlp")
f, g = jx.logit(bias_free), jx.logit(biased)
for net in (bias_free, biased):
    print(f"{net.name:12} right on {zoo.accuracy(net, images, labels):.1%} of {len(labels):,} held-out digits")

t = np.linspace(0, 1, 101)
figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), sharey=True, layout="constrained")
for ax, score, title in zip(axes, (f, g), ("no biases", "with biases"), strict=True):
    along = jax.vmap(lambda image, label, score=score: jax.vmap(lambda s: score(s * image, label))(jnp.asarray(t)))
    ax.plot(t, along(x, y).T, color="0.55", linewidth=0.8)
    ax.plot(t, along(x[[3, 8]], y[[3, 8]]).T, linewidth=1.8, label=["digit 3", "digit 8"])
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set(xlabel="t", title=f"f(t·x), {title}")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("logit of the right class")
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# On the left, straight lines through the origin. On the right the ray is bent, starts where the biases say, and may
# cross zero somewhere on the way or not at all.

# %%
R, info = jax.vmap(jx.with_info(jx.taylor(f, root=jx.scaled_input(1e-6))))(x, y)
print("digit      f(x)   f(root)        ΣR   residual")
for c in range(10):
    print(f"{c:5} {info.value[c]:9.4f} {info.baseline_value[c]:9.1e} {R[c].sum():9.4f} {info.residual[c]:10.1e}")

# %% [markdown]
# ### Proof
#
# In float64, for ten digits: the sum is the score, and integrated gradients from black
# ([chapter 3.4](3.4_integrated_gradients.ipynb)) give the same map with any number of steps, because the integrand is
# constant.


# %%
def in_float64(net):
    return dataclasses.replace(net, params=jax.tree.map(lambda w: w.astype("float64"), net.params))


with jax.enable_x64(True):
    f64, x64 = jx.logit(in_float64(bias_free)), x.astype("float64")
    R = jax.vmap(jx.input_x_gradient(f64))(x64, y)
    value = jax.vmap(f64)(x64, y)
    errors = {"Σ x·∇f − f": jnp.abs(R.sum((1, 2, 3)) - value).max()}
    for n in (1, 2, 7, 50):
        ig = jax.vmap(jx.integrated_gradients(f64, n_steps=n))(x64, y)
        errors[f"integrated gradients, {n} steps, − x·∇f"] = jnp.abs(ig - R).max()
    for name, error in errors.items():
        print(f"{name:40} {error:.1e}")
        assert error < 1e-10

# %% [markdown]
# ## With biases: the residual
#
# With biases the same formula still gives a picture, and nothing in the picture says that its sum is no longer the
# score. What is missing has a name. A ReLU network is homogeneous in the input *and its biases together*, so
#
# $$f(x) = \sum_i x_i \frac{\partial f}{\partial x_i} + \sum_k b_k \frac{\partial f}{\partial b_k} :$$
#
# the residual of $x \cdot \nabla f$ is the share of the biases. To the library a bias is just another argument:

# %%
with jax.enable_x64(True):
    twin = in_float64(biased)

    def score_of_both(image, params, label):
        return twin.apply(params, image[None])[0, label]

    explain = jx.with_info(jx.input_x_gradient(score_of_both, argnums=(0, 1)))
    (R, shares), both = jax.vmap(explain, in_axes=(0, None, 0))(x64, twin.params, y)
    from_input = R.sum((1, 2, 3))
    from_biases = sum(shares[layer]["bias"].sum(1) for layer in shares)
    error = jnp.abs(from_input + from_biases - both.value).max()

    print("digit     f(x)    Σ x·∇f    Σ b·∂f/∂b")
    for row in zip(range(10), both.value, from_input, from_biases, strict=True):
        print("{:5} {:8.3f} {:9.3f} {:12.3f}".format(*row))
    print(f"largest |Σ x·∇f + Σ b·∂f/∂b − f| = {error:.1e}")
    assert error < 1e-10

# %% [markdown]
# ## A true root
#
# For the biased network $\varepsilon x$ is not a root: the score there is the effect of the biases on a black image.
# The library can look for a root instead. `jx.line_search(toward)` walks from $x$ toward a point, black by default, and
# narrows down the first sign change; if there is none it returns NaN, because there is no point to expand about.
# (Without biases the only root on that line is black itself; the search stops just before it, and gives what
# $\varepsilon x$ gives.)

# %%
choices = {"root εx": jx.scaled_input(1e-6), "line search": jx.line_search()}
found = {}
for name, root in choices.items():
    explain = jx.with_info(jx.taylor(g, root=root))
    found[name] = jax.jit(jax.vmap(explain))(images, labels)

for c in (3, 7, 8):
    print(f"digit {c}")
    for name, (R, info) in found.items():
        i = ten[c]
        print(
            f"   {name:12} f(x) {info.value[i]:6.2f}   f(root) {info.baseline_value[i]:8.1e}"
            f"   ΣR {R[i].sum():6.2f}   residual {info.residual[i]:6.2f}"
        )

rooted = np.asarray(found["line search"][1].converged)
roots = found["line search"][1].baseline_value[rooted]
print(
    f"{rooted.mean():.0%} of 1,000 digits have a root between x and black; there |f(root)| ≤ {np.abs(roots).max():.0e}"
)
assert np.abs(roots).max() < 1e-4

# %% [markdown]
# Over all digits that have a root, how much of the score does each sum miss?

# %%
value = jax.jit(jax.vmap(g))(images, labels)
sums = {"x·∇f at x": jax.jit(jax.vmap(jx.input_x_gradient(g)))(images, labels).sum((1, 2, 3))}
sums |= {name: R.sum((1, 2, 3)) for name, (R, _) in found.items()}

figure, ax = plt.subplots(figsize=(5.2, 3), layout="constrained")
share = np.arange(1, rooted.sum() + 1) / rooted.sum()
for (name, total), color in zip(sums.items(), ("#9a9a9a", "#4878a8", "#c44e52"), strict=True):
    size = np.sort(np.abs((total / value - 1)[rooted]))
    ax.plot(size, share, color=color, label=name)
    print(f"{name:12} median |f − ΣR| / |f| = {np.median(size):.2f}")
ax.set(xlim=(0, 3), ylim=(0, 1), xlabel="|f − ΣR| / |f|", ylabel="share of digits")
ax.set_title("With biases: unexplained part of the score", fontsize=9)
ax.legend(frameon=False, fontsize=8, loc="lower right")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
maps = {
    "no biases, x·∇f": jax.vmap(jx.input_x_gradient(f))(x, y),
    "biases, x·∇f at x": jax.vmap(jx.input_x_gradient(g))(x, y),
    "biases, root εx": found["root εx"][0][ten],
    "biases, line search": found["line search"][0][ten],
}
jx.plot.grid(
    maps,
    x,
    titles=[f"digit {c}" if rooted[ten[c]] else f"{c}: no root" for c in y],
    suptitle="Four Taylor decompositions of the same digits",
)
plt.show()

# %% [markdown]
# For this network the least principled map has the best sum. At $\varepsilon x$ nothing is a root and the gradient is
# that of an almost black image, which says little about the digit; the line search finds true roots, but deep in the
# dark, beyond the bends of the ray; $x \cdot \nabla f$ uses the slope at $x$, and its straight line happens to end near
# zero because the biases of this network account for little of the score. That is a property of the network, to be
# checked and not assumed: print the residual.
#
# All four live strictly inside the strokes: the factor $x_i - \tilde x_i$ is zero on a black background, whatever the
# network thinks of it. NaN marks a digit without a root on its line, which the library says rather than hides.
#
# ## Does it depend on the class, and on what was learned?

# %%
logits = np.asarray(bias_free(images))
runner_up = np.where(np.arange(10) == labels[:, None], -np.inf, logits).argmax(1)
blank = jx.logit(zoo.randomized(bias_free, jax.random.key(0)))
controls = {
    "right class": jax.vmap(jx.input_x_gradient(f))(images, labels),
    "runner-up": jax.vmap(jx.input_x_gradient(f))(images, runner_up),
    "random weights": jax.vmap(jx.input_x_gradient(blank))(images, labels),
}
few = ten[[2, 3, 4, 5, 7, 8]]
jx.plot.grid(
    {name: R[few] for name, R in controls.items()},
    images[few],
    titles=[f"{c}, runner-up {other}" for c, other in zip(labels[few], runner_up[few], strict=True)],
    suptitle="x·∇f without biases, each row on its own scale",
)
plt.show()


# %%
def cosine(maps, others):
    u, v = (np.reshape(m, (len(m), -1)) for m in (maps, others))
    return (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)


right = controls["right class"]
for name, R in controls.items():
    print(
        f"{name:15} cosine with the right class's map {cosine(right, R).mean():5.2f},"
        f"  cosine of |R| with it {cosine(np.abs(right), np.abs(R)).mean():.2f}"
    )
assert cosine(right, controls["random weights"]).mean() < 0.3

# %% [markdown]
# The second column is a warning. Without its signs the map of random weights looks alike, because both are the input
# times something: comparing absolute values, or looking at where the ink is, mistakes the digit for the explanation.
#
# ## When to use it, and when it misleads
#
# Use $x \cdot \nabla f$ on ReLU networks without biases, where it is exact, costs one gradient and equals several
# other methods (LRP-0, DeepLIFT-Rescale and integrated gradients from black); and use it as the control that a
# costlier method has to beat. It misleads on networks with biases if the residual is not looked at: above it was 3 % of
# the score or more than all of it, depending only on where the gradient was taken. It misleads on inputs whose zero
# means something (an absent stroke can be the reason for a 7, yet gets nothing), and wherever the score is strongly
# bent between $x$ and $\tilde x$. A real root with a small residual says that the sum is right, not that each pixel is:
# another root, equally good, spreads the same score differently. Neighboring pixels of opposite sign, so frequent
# above, are mostly the roughness of the gradient, not opposing evidence.
#
# ## References
#
# * S. Bach, A. Binder, G. Montavon, F. Klauschen, K.-R. Müller, W. Samek. *On pixel-wise explanations for non-linear
#   classifier decisions by layer-wise relevance propagation.* PLoS ONE 10(7), 2015.
# * A. Shrikumar, P. Greenside, A. Shcherbina, A. Kundaje. *Not just a black box: learning important features through
#   propagating activation differences.* arXiv:1605.01713, 2016.
# * G. Montavon, W. Samek, K.-R. Müller. *Methods for interpreting and understanding deep neural networks.* Digital
#   Signal Processing 73, 2018, §4.2.
# * M. Ancona, E. Ceolini, C. Öztireli, M. Gross. *Toward better understanding of gradient-based attribution methods for
#   deep neural networks.* ICLR 2018.
