# %% [markdown]
# # 5.1 Explanation continuity
#
# If two inputs are nearly the same and the score treats them nearly the same, their explanations should be nearly the
# same, too. The measure of Montavon, Samek and Müller is the steepest slope of the explanation R:
#
# $$C = \max_{x \ne x'} \frac{\lVert R(x) - R(x') \rVert_1}{\lVert x - x' \rVert_2}, \qquad \text{low is good.}$$
#
# The tutorial that this series follows shows curves instead and never computes C. **This chapter computes it**: in
# closed form for a function of two variables, then for digits: over translations, over random neighbors, and over the
# worst neighbors that gradient ascent finds.

# %%
import os
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import datasets, metrics, rules, zoo

plt.rcParams["figure.dpi"] = 90
n = int(os.environ.get("CHAPTER_SCENES", "500")) // 5

# %% [markdown]
# ## Part 1: the maximum of two numbers
#
# $\max(x_1, x_2)$ on positive inputs, as a network of ReLUs: $\tfrac12 \left[(x_1 - x_2)^+ + (x_2 - x_1)^+ + (x_1 +
# x_2)^+\right]$. For $x_1 > x_2$
#
# | | R | at the diagonal |
# | --- | --- | --- |
# | sensitivity | $(1, 0)$ | jumps to $(0, 1)$ |
# | simple Taylor | $(x_1, 0)$ | jumps to $(0, x_2)$ |
# | deep Taylor (z⁺) | $(x_1 - \tfrac12 x_2,\ \tfrac12 x_2)$ | continuous: both sides give $(\tfrac12 x, \tfrac12 x)$ |

# %%
fold = jnp.array([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
maximum = lambda x: jax.nn.relu(jnp.sum(jax.nn.relu(x @ fold)) / 2)
toy = {
    "sensitivity": jx.sensitivity(maximum),
    "simple Taylor": jx.input_x_gradient(maximum),
    "deep Taylor": jx.lrp(maximum, rules=rules.zplus(epsilon=1e-9)),
}
grid = jnp.stack(jnp.meshgrid(*2 * [jnp.linspace(0.1, 2.1, 13)]), axis=-1).reshape(-1, 2)
fine = np.linspace(0, 2.2, 200)
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
for ax, (name, explain) in zip(axes, toy.items(), strict=True):
    field = jax.vmap(explain)(grid)
    ax.contour(fine, fine, np.maximum(fine[:, None], fine), colors="0.85", zorder=0)
    ax.quiver(*grid.T, *field.T, angles="xy", scale=40 if name != "sensitivity" else 22, width=0.006)
    ax.set_title(name)
    ax.set_xlabel("$x_1$")
    ax.set_aspect("equal")
axes[0].set_ylabel("$x_2$")
figure.suptitle("R as a vector at each point; lines of equal max(x₁, x₂)")
plt.show()

# %% [markdown]
# ### Check: √2, and no bound
#
# Pairs that straddle the diagonal, closer and closer: the slope of deep Taylor is $\sqrt 2$ at every distance, those of
# the others grow as $2/\varepsilon$ and $2 \max(x)/\varepsilon$ (here max x = 1). No other pair has more than $\sqrt
# 2$.

# %%
print(f"{'distance':>9} {'sensitivity':>12} {'simple Taylor':>14} {'deep Taylor':>12}")
for epsilon in (1e-1, 1e-2, 1e-3):
    here, there = jnp.array([1.0, 1 - epsilon / 2**0.5]), jnp.array([1 - epsilon / 2**0.5, 1.0])
    slopes = [
        float(metrics.continuity(explain, neighbors=metrics.neighbors.given(there[None]))(here))
        for explain in toy.values()
    ]
    print(f"{epsilon:9g} {slopes[0]:12.1f} {slopes[1]:14.1f} {slopes[2]:12.4f}")
    np.testing.assert_allclose(slopes[:2], 2 / epsilon, rtol=0.08)
    assert slopes[2] <= 2**0.5 + 1e-4

some = jax.random.uniform(jax.random.key(0), (300, 2), minval=0.2, maxval=2.0)
near = metrics.neighbors.ball(0.1, n_samples=30)
for name, explain in toy.items():
    keys = jax.random.split(jax.random.key(1), len(some))
    found = jax.jit(jax.vmap(metrics.continuity(explain, neighbors=near)))(some, key=keys)
    print(f"{name:14} steepest slope over 9,000 random pairs: {float(found.max()):8.3f}")
assert abs(float(found.max()) - 2**0.5) < 0.01

# %% [markdown]
# ## Part 2: a digit on the move
#
# The tutorial's experiment: a 2 is shifted sideways by −20 … 20 pixels, and relevance is summed over the four quarters
# of the image. The score comes and goes smoothly; does its explanation?

# %%
digits = datasets.mnist()
net = zoo.load("cnn_avgpool")  # average pooling, no biases: the network of the tutorial
score = lambda x, label: jax.nn.relu(jx.logit(net)(x, label))
methods = {
    "sensitivity": jx.sensitivity,
    "simple Taylor": jx.input_x_gradient,
    "deep Taylor": partial(jx.deep_taylor, low=0.0, high=1.0),
}
two = digits.x_train[np.flatnonzero(digits.y_train == 2)[2]]
shifts = np.arange(-20, 21)


def moved(shift):
    padded = np.pad(two, ((0, 0), (20, 20), (0, 0)))
    return padded[:, 20 - shift : 48 - shift]


positions = np.stack([moved(s) for s in shifts])
values = jax.jit(jax.vmap(lambda x: score(x, 2)))(positions)
quarters = {}
for name, method in methods.items():
    maps = jax.jit(jax.vmap(method(score), in_axes=(0, None)))(positions, 2)
    sums = np.asarray(maps).reshape(41, 2, 14, 2, 14).sum((2, 4)).reshape(41, 4)
    quarters[name] = sums / np.abs(sums).max()

figure, axes = plt.subplots(1, 4, figsize=(11, 2.4), sharex=True)
axes[0].plot(shifts, values, "k")
axes[0].set_title("score f")
for ax, (name, sums) in zip(axes[1:], quarters.items(), strict=True):
    lines = ax.plot(shifts, sums)
    ax.set_title(name)
    print(f"{name:14} largest step of a quarter: {np.abs(np.diff(sums, axis=0)).max():.2f} of the largest value")
figure.legend(
    lines,
    ["top left", "top right", "bottom left", "bottom right"],
    loc="center left",
    bbox_to_anchor=(0.91, 0.5),
    frameon=False,
)
figure.supxlabel("shift in pixels", y=-0.08, fontsize=10)
plt.show()

# %% [markdown]
# ## Part 3: C, for digits
#
# Three sets of neighbors, the label held fixed. R is divided by ‖R(x)‖₁ (`normalize`): a method whose numbers are
# larger would lose by its units alone, as the raw figures show.
#
# - **translations** by up to 3 pixels in each direction: differences that a reader of digits would not see;
# - a **ball** of radius 0.5, in the Euclidean norm: changes at random, invisible ones;
# - **ascent**: in the same ball, the worst change that projected gradient ascent on the ratio finds. It needs the
#   derivative *of the explanation*, which is a function like any other here.

# %%
x, y = digits.x_test[:n], digits.y_test[:n]
key = jax.random.key(0)
radius = 0.5
neighborhoods = {
    "translations": metrics.neighbors.translations(3, axes=(0, 1)),
    "ball": metrics.neighbors.ball(radius, n_samples=10, norm="2"),
    "ascent": metrics.neighbors.ascent(radius, n_steps=10, n_starts=1, norm="2"),
}
rows = methods | {
    "integrated gradients": partial(jx.integrated_gradients, n_steps=10),
    "DeepLIFT": jx.deeplift,
    "LRP ε⁺-flat": lambda score: jx.lrp(score, rules=jx.composites.epsilon_plus_flat()),
    "SmoothGrad": lambda score: jx.smoothgrad(jx.gradient(score), n_samples=10),
    "guided backprop": jx.guided_backprop,
}
slopes = {f"{name}": partial(metrics.continuity, neighbors=who, normalize=True) for name, who in neighborhoods.items()}
slopes["raw, ball"] = partial(metrics.continuity, neighbors=neighborhoods["ball"])
table = metrics.compare(score, rows, slopes, progress=False, batch_size=min(n, 100))(x, y, key=key)
print(f"medians over {n} digits of max ‖R(x) − R(x′)‖₁ / (‖x − x′‖₂ ‖R(x)‖₁)")
print(f"{'':22}", *(f"{name:>13}" for name in slopes))
medians = {}
for method in rows:
    medians[method] = [float(np.nanmedian(table.values[name][method])) for name in slopes]
    print(f"{method:22}", *(f"{m:13.3f}" for m in medians[method]))
for name in neighborhoods:
    mean, interval = table.difference(name, "deep Taylor", "simple Taylor")
    print(f"{name}: deep − simple Taylor {mean:+.3f}, 95 % interval [{interval[0]:+.3f}, {interval[1]:+.3f}]")
    assert interval[1] < 0

# %% [markdown]
# ## What to take home
#
# - The paper's ordering holds on digits under every neighborhood: deep Taylor decomposition is the most continuous of
#   the three. On this network, without biases or max-pooling, integrated gradients and DeepLIFT from black *are* simple
#   Taylor decomposition.
# - C is a maximum: what is found depends on where one looks. Random neighbors find a fraction of what ascent finds.
#   State the neighborhood with the number.
# - Where R jumps there is no largest slope. The gradient of a ReLU network jumps (sensitivity, guided
#   back-propagation): ascent walks to a kink, and its huge number says only how near it came, as in the table of part
#   1.
# - Raw numbers compare units, not methods. Normalize.
# - Continuity is not truth: a constant map has C = 0. Read it together with
#   [selectivity](5.2_explanation_selectivity.ipynb).
