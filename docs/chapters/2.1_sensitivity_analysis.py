# %% [markdown]
# # 2.1 Sensitivity analysis
#
# **Question.** Which pixels would change the score most if they changed a little?
#
# A trained network is a function $f$ of its input; what we call its *score* is one number, here the **logit** of one
# class, before the softmax. Sensitivity analysis squares the partial derivatives of the score at the input:
#
# $$R_i(x) = \left(\frac{\partial f}{\partial x_i}(x)\right)^2, \qquad \sum_i R_i(x) = \lVert \nabla f(x) \rVert^2 .$$
#
# The second equation says what is being divided among the pixels: the squared *slope* of $f$ at $x$. It is not the
# value $f(x)$, so the map answers "what would make this more or less of a 3?" rather than "what makes this a 3?".

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import datasets, zoo

plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## Two variables first
#
# $f(a, b) = a^2 + b^2 - 9$ is zero on the circle of radius 3. Three points show what the map sees and what it does not.


# %%
def bowl(point):
    return jnp.sum(point**2) - 9


for point in ([-4.0, -4.0], [3.0, 0.0], [0.0, 0.0]):
    R, info = jx.with_info(jx.sensitivity(bowl))(jnp.array(point))
    print(f"f{tuple(point)} = {info.value:5.1f}    R = {R}    ΣR = {R.sum():5.1f}")

assert bowl(jnp.array([-4.0, -4.0])) == 23  # 16 + 16 − 9
assert (jx.sensitivity(bowl)(jnp.array([-4.0, -4.0])) == 64).all()

# %% [markdown]
# At $(3, 0)$ the score is zero, yet the map is not; at the origin the score is $-9$, yet the map is empty. The map
# follows the arrows below, not the height.

# %%
a, b = jnp.meshgrid(jnp.linspace(-5, 5, 101), jnp.linspace(-5, 5, 101))
points = jnp.stack([a, b], -1)
arrows = points[5::10, 5::10].reshape(-1, 2)
slopes = jax.vmap(jx.gradient(bowl))(arrows)

figure, ax = plt.subplots(figsize=(3.9, 3.3), layout="constrained")
height = ax.contourf(a, b, jnp.sum(points**2, -1) - 9, levels=np.arange(-45, 46, 6), cmap="RdBu_r")
ax.contour(a, b, jnp.sum(points**2, -1) - 9, levels=[0], colors="0.2", linewidths=1)
ax.quiver(*arrows.T, *slopes.T, color="0.15", width=0.004)
ax.plot([-4, 3, 0], [-4, 0, 0], "o", color="white", markeredgecolor="black", markersize=6)
ax.set(xlabel="a", ylabel="b", aspect="equal", xticks=[-4, 0, 4], yticks=[-4, 0, 4])
ax.set_title("height: f;  arrows: ∇f;  line: f = 0", fontsize=9)
figure.colorbar(height, ticks=[-39, 0, 39], format="%d")
plt.show()

# %% [markdown]
# ## Ten digits
#
# The network is the library's small CNN with max-pooling; the digits are the first held-out one of each class. One call
# explains one digit, `jax.vmap` explains them all, and `jax.jit` compiles it.

# %%
digits = datasets.mnist()
ten = np.array([np.flatnonzero(digits.y_test == c)[0] for c in range(10)])
x, y = digits.x_test[ten], digits.y_test[ten]

net = zoo.load("cnn_maxpool")
score = jx.logit(net)  # score(image, label): the logit, a function of one image
sensitivity = jax.jit(jax.vmap(jx.sensitivity(score)))(x, y)
gradient = jax.jit(jax.vmap(jx.gradient(score)))(x, y)

logits = np.array(jax.jit(net)(digits.x_test))
print(f"right on {np.mean(logits.argmax(1) == digits.y_test):.1%} of {len(logits):,} held-out digits")
print("predicted:", logits[ten].argmax(1), "  labels:", y)

# %% [markdown]
# ### One bright pixel must not hide the rest
#
# Squaring stretches the range: a pixel whose derivative is ten times larger gets a hundred times the relevance. If the
# color scale ends at the largest value, that pixel is all one sees. `jx.plot` ends it at the 99.5th percentile of the
# row instead and lets the few pixels above it saturate. The bar next to the row gives the unit, so nothing is lost.

# %%
flat = np.sort(sensitivity.reshape(10, -1), axis=1)[:, ::-1]
share = flat / flat.sum(1, keepdims=True)
print("share of ΣR in the largest pixel:      ", " ".join(f"{s:4.0%}" for s in share[:, 0]))
print("share of ΣR in the largest 8 of 784:   ", " ".join(f"{s:4.0%}" for s in share[:, :8].sum(1)))

scales = {"scale ends at\nthe maximum": sensitivity.max(), "at the 99.5th\npercentile": jx.plot.limit(sensitivity)}
figure, axes = plt.subplots(2, 10, figsize=(10.5, 2.2), layout="constrained")
for row, (name, vmax) in zip(axes, scales.items(), strict=True):
    for ax, R, image in zip(row, sensitivity, x, strict=True):
        jx.plot.image(R, image, vmax=vmax, colorbar=False, ax=ax)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.colorbar(row[0].images[0], ax=list(row), format="%.2g", aspect=8, pad=0.01).ax.tick_params(labelsize=7)
figure.suptitle("Sensitivity, the same numbers on two color scales", fontsize=10)
plt.show()

# %% [markdown]
# ### The sign was there before it was squared
#
# The gradient itself says in which direction each pixel matters: red where more ink raises the score, blue where more
# ink lowers it. Sensitivity puts both in one color. (The regular dots on the empty background come from max-pooling:
# where all values of a window are equal, the first of them gets the whole derivative.)

# %%
jx.plot.grid(
    {"sensitivity\n(∂f/∂x)²": sensitivity, "gradient\n∂f/∂x": gradient},
    x,
    titles=[f"digit {c}" for c in y],
    suptitle="Which pixels move the logit of the right class",
)
plt.show()

# %% [markdown]
# ## The choice of score comes first
#
# The same network offers several scores for a class $c$, with logits $z$ and $p = \mathrm{softmax}(z)$: the logit
# $z_c$, the probability $p_c$, and the margin $z_c - \max_{j \ne c} z_j$. Since $\nabla p_c = p_c \, (\nabla z_c -
# \sum_j p_j \nabla z_j)$, the probability has almost no slope left once the network is sure: the map below is not
# wrong, it is a map of something that can no longer change.

# %%
scores = {of: jx.logit(net, of=of) for of in ("logit", "prob", "margin")}
maps = {of: jax.jit(jax.vmap(jx.sensitivity(f)))(x, y) for of, f in scores.items()}
jx.plot.grid(maps, x, titles=[f"digit {c}" for c in y], suptitle="Sensitivity of three scores; mind the color bars")
plt.show()

# %%
images, labels = digits.x_test[:300], digits.y_test[:300]
others = np.where(np.arange(10) == labels[:, None], -np.inf, logits[:300])
doubt = np.exp(np.logaddexp.reduce(others, 1) - np.logaddexp.reduce(logits[:300], 1))  # 1 − p, without cancellation

many = {of: jx.batched(jx.sensitivity(f), batch_size=100, progress=False)(images, labels) for of, f in scores.items()}
norms = {of: np.sqrt(R.sum((1, 2, 3))) for of, R in many.items()}

figure, ax = plt.subplots(figsize=(4.8, 3), layout="constrained")
for (of, norm), color in zip(norms.items(), ("#4878a8", "#c44e52", "#9a9a9a"), strict=True):
    ax.loglog(doubt, norm, ".", color=color, markersize=3.5, label=of, alpha=0.8)
ax.set(xlabel="1 − p of the right class", ylabel="‖∇f‖ = √ΣR", xlim=(1e-7, 2), ylim=(1e-7, 1e2))
ax.set_title("300 held-out digits: only the probability fades", fontsize=9)
ax.legend(frameon=False, markerscale=3, fontsize=8)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

sure = doubt < 1e-3
for of, norm in norms.items():
    print(f"median ‖∇f‖, {of:6}: {np.median(norm[sure]):8.2g} where p > 0.999, {np.median(norm[~sure]):6.2g} elsewhere")

# %% [markdown]
# From here on, and in every chapter, $f$ is the logit unless the text says otherwise.
#
# ## Proof: ΣR = ‖∇f‖²
#
# The map is computed by reverse mode. To check it against something else, the right-hand side is computed by forward
# mode, as the derivative of $f$ along its own gradient, $\nabla f \cdot \nabla f$. Everything in float64.

# %%
with jax.enable_x64(True):
    exact = dataclasses.replace(net, params=jax.tree.map(lambda w: w.astype("float64"), net.params))
    f = jx.logit(exact)

    def both_sides(image, label):
        slope = jx.gradient(f)(image, label)
        _, along = jax.jvp(lambda image: f(image, label), (image,), (slope,))
        return jx.sensitivity(f)(image, label).sum(), along

    summed, squared_norm = jax.jit(jax.vmap(both_sides))(x.astype("float64"), y)
    error = float(jnp.max(jnp.abs(summed - squared_norm) / squared_norm))

print(f"largest relative difference between ΣR and ‖∇f‖² over ten digits: {error:.1e}")
assert error < 1e-10

# %% [markdown]
# ## Does it depend on the class, and on what was learned?
#
# Two controls for every method of this book. The map of the *runner-up*, the wrong class with the largest logit, should
# differ from that of the right class. The map of the same network with *random weights* shows what the architecture
# alone would draw.

# %%
runner_up = others.argmax(1)
blank = jx.logit(zoo.randomized(net, jax.random.key(0)))
controls = {
    "right class": many["logit"],
    "runner-up": jx.batched(jx.sensitivity(score), batch_size=100, progress=False)(images, runner_up),
    "random weights": jx.batched(jx.sensitivity(blank), batch_size=100, progress=False)(images, labels),
}

few = [np.flatnonzero(labels == c)[0] for c in (2, 3, 4, 5, 7, 8)]
jx.plot.grid(
    {name: R[few] for name, R in controls.items()},
    images[few],
    titles=[f"{c}, runner-up {other}" for c, other in zip(labels[few], runner_up[few], strict=True)],
    suptitle="Sensitivity, each row on its own scale",
)
plt.show()


# %%
def cosine(maps, others):
    u, v = (np.reshape(m, (len(m), -1)) for m in (maps, others))
    return (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)


right = controls["right class"]
for name, R in {**controls, "another digit": np.roll(right, 1, axis=0)}.items():
    print(f"cosine with the right class's map: {cosine(right, R).mean():5.2f}  {name}")
assert cosine(right, controls["runner-up"]).mean() < 0.8
assert cosine(right, controls["random weights"]).mean() < 0.8

# %% [markdown]
# ## When to use it, and when it misleads
#
# Use it to ask what the score *reacts to*: one gradient, no baseline, no setting, defined for every differentiable
# score. It misleads when it is read as "the evidence for this class": it does not add up to the score, it cannot tell
# pixels that speak for from those that speak against, and it lights up background pixels that hold no ink at all,
# because putting ink there would matter. Where a network saturates (a probability near one, a dead ReLU) the map is
# empty although the evidence is there. Maps of deep ReLU networks are also rough: a small shift of the input changes
# which ReLUs are on, and the map with them ([chapter 3.5](3.5_smoothgrad.ipynb) averages this out). A common mistake is
# to square twice when ranking pixels; the map is a square already.
#
# ## References
#
# * J. Zurada, A. Malinowski, I. Cloete. *Sensitivity analysis for minimization of input data dimension for feedforward
#   neural network.* ISCAS 1994.
# * D. Baehrens et al. *How to explain individual classification decisions.* JMLR 11, 2010.
# * K. Simonyan, A. Vedaldi, A. Zisserman. *Deep inside convolutional networks.* arXiv:1312.6034, 2013.
# * G. Montavon, W. Samek, K.-R. Müller. *Methods for interpreting and understanding deep neural networks.* Digital
#   Signal Processing 73, 2018, §4.1.
# * J. Adebayo et al. *Sanity checks for saliency maps.* NeurIPS 2018.
