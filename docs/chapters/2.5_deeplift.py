# %% [markdown]
# # 2.5 DeepLIFT
#
# **The question**: the score is $f(x)$ and would be $f(x_0)$ if nothing were there. How much of the *difference* is due
# to each pixel? A gradient measures the effect of an infinitesimal step, which is zero where a unit is saturated.
# DeepLIFT measures the effect of the whole step: every unit of the network is evaluated at the input and at a
# *reference* $x_0$, and explains its own change $\Delta y = y - y_0$ by the changes of its inputs,
#
# $$\Delta y = \sum_i m_i \, \Delta x_i, \qquad R_i = m_i\,(x_i - x_{0,i}), \qquad \sum_i R_i = f(x) - f(x_0).$$
#
# The multipliers $m$ of the whole network are products of those of its parts, like a gradient's. For a layer they are
# its weights. For an activation the *Rescale* rule takes $m = \Delta y / \Delta x$, the slope of the secant. The sum is
# right by construction ("summation to delta"): the same promise as that of integrated gradients, at the cost of one
# gradient.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import composites, datasets, zoo

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
images, labels = digits.x_test, digits.y_test
ten = np.array([np.flatnonzero(labels == c)[0] for c in range(10)])
x, y = images[ten], labels[ten]
net = zoo.load("cnn_strided")  # the architecture of the authors' experiment: two strided convolutions, two dense layers
score = jx.logit(net)
print(f"right on {zoo.accuracy(net, images, labels):.1%} of {len(labels):,} held-out digits")

# %% [markdown]
# ## By hand
#
# For a multilayer perceptron Rescale takes ten lines. The library finds the layers and activations of any program; the
# two agree to rounding.

# %%
mlp = zoo.load("mlp")


def by_hand(image, reference, label):
    layers = [(mlp.params[name]["kernel"], mlp.params[name]["bias"]) for name in ("dense1", "dense2", "dense3")]
    a, a0, slopes = image.ravel(), reference.ravel(), []
    for w, b in layers:
        z, z0 = a @ w + b, a0 @ w + b
        a, a0 = jnp.maximum(z, 0), jnp.maximum(z0, 0)
        moved = jnp.abs(z - z0) > 1e-6 * jnp.maximum(jnp.abs(z), jnp.abs(z0))
        slopes.append(jnp.where(moved, (a - a0) / jnp.where(moved, z - z0, 1), z > 0))
    m = layers[-1][0][:, label]
    for (w, _), slope in zip(layers[-2::-1], slopes[-2::-1], strict=True):
        m = w @ (slope * m)
    return (image - reference) * m.reshape(image.shape)


blank = jnp.zeros_like(x[0])
hand = jax.jit(jax.vmap(lambda image, label: by_hand(image, blank, label)))(x, y)
library = jax.jit(jax.vmap(jx.deeplift(jx.logit(mlp))))(x, y)
difference = float(jnp.linalg.norm(hand - library) / jnp.linalg.norm(hand))
print(f"Rescale by hand and by library differ by {difference:.0e}")
assert difference < 1e-5

# %% [markdown]
# ## Proof: summation to delta
#
# The gap $\sum_i R_i - (f(x) - f(x_0))$ is in `with_info`, for every explainer that promises a sum. Relative to what
# was distributed, $\max(|\Delta f|, \sum_i |R_i|)$, the largest of a hundred digits, on five networks, in float32,
# compared with integrated gradients with ten steps.

# %%
some, truth = images[:100], labels[:100]


def worst_gap(explain):
    R, info = jax.jit(jax.vmap(jx.with_info(explain)))(some, truth)
    size = np.maximum(np.abs(info.value - info.baseline_value), np.abs(R).sum((1, 2, 3)))
    return float(np.max(np.abs(info.gap) / size))


print(f"{'':14}{'Rescale':>10}{'RevealCancel':>14}{'IG, 10 steps':>14}")
for name in ("mlp", "cnn_strided", "cnn_maxpool", "all_conv", "gap"):
    one = jx.logit(zoo.load(name))
    rescale = worst_gap(jx.deeplift(one))
    reveal = worst_gap(jx.deeplift(one, rule="reveal_cancel", fallback="rescale"))
    path = worst_gap(jx.integrated_gradients(one, n_steps=10))
    print(f"{name:14}{rescale:10.0e}{reveal:14.0e}{path:14.0e}")
    assert max(rescale, reveal) < 1e-5

# %% [markdown]
# ## RevealCancel: what cancels is not nothing
#
# Take $\min(x_1, x_2)$, written with a ReLU as $x_1 - \max(x_1 - x_2, 0)$, from a reference of zero to $(3, 1)$.
# Gradients, integrated gradients and Rescale all give the whole of it to the smaller one: the larger could be anything.
# Yet without it the minimum would be zero. *RevealCancel* keeps what pushes a unit up and what pushes it down apart,
# $\Delta x = \Delta x^+ + \Delta x^-$, and gives each the mean of what it does alone and what it does after the other:
#
# $$\Delta y^+ = \tfrac12\big[f(x_0 + \Delta x^+) - f(x_0)\big] + \tfrac12\big[f(x_0 + \Delta x^- + \Delta x^+) - f(x_0 + \Delta x^-)\big].$$


# %%
def minimum(x):
    return x[0] - jax.nn.relu(x[0] - x[1])


point = jnp.array([3.0, 1.0])
for name, explain in {
    "input × gradient": jx.input_x_gradient(minimum),
    "integrated gradients": jx.integrated_gradients(minimum),
    "DeepLIFT, Rescale": jx.deeplift(minimum),
    "DeepLIFT, RevealCancel": jx.deeplift(minimum, rule="reveal_cancel"),
}.items():
    print(f"{name:24}", np.round(explain(point), 3))
assert np.allclose(jx.deeplift(minimum, rule="reveal_cancel")(point), 0.5, atol=1e-5)

# %% [markdown]
# ## Which reference?
#
# A reference should be an input that shows nothing to the network. For digits on black that is black, so no black pixel
# gets anything: "there is no stroke here" is never a reason. Against the mean image, or averaged over a sample of
# digits (DeepSHAP), it is: the hole of the 0 and the gap of the 3 speak. Against a blurred copy, only edges are left.

# %%
mean_image = jnp.asarray(digits.x_train.mean(0))
sample = jx.references(jnp.asarray(digits.x_train[:50]))


def blurred(image):
    line = jnp.exp(-0.5 * (jnp.arange(-6, 7) / 2.0) ** 2)
    rows = jax.vmap(lambda row: jnp.convolve(row, line / line.sum(), "same"))
    return rows(rows(image[..., 0]).T).T[..., None]


sets = {
    "input × gradient": jx.input_x_gradient(score),
    "integrated gradients": jx.integrated_gradients(score),
    "Rescale": jx.deeplift(score),
    "RevealCancel": jx.deeplift(score, rule="reveal_cancel"),
    "Rescale, mean image": jx.deeplift(score, baseline=mean_image),
    "Rescale, 50 digits": jx.deeplift(score, baseline=sample),
    "RevealCancel, 50 digits": jx.deeplift(score, baseline=sample, rule="reveal_cancel"),
    "Rescale, blurred": jx.deeplift(score, baseline=blurred),
}
maps = {name: jax.jit(jax.vmap(explain))(x, y) for name, explain in sets.items()}
jx.plot.grid(maps, x, titles=[f"digit {c}" for c in y], suptitle="DeepLIFT on the strided CNN")
plt.show()

# %% [markdown]
# ## The authors' experiment: turn an 8 into a 3
#
# Explain the logits of 8 and of 3, and erase the pixels that speak most for 8 and against 3, at most 157 (a fifth of
# the image). If the explanation is right about which pixels make the difference, the log-odds $\mathrm{logit}_8 -
# \mathrm{logit}_3$ fall far. All held-out digits of a class; random pixels as a control.

# %%
ERASED = 157
gradient = jx.gradient(score)
contenders = {
    "random pixels": None,
    "guided backprop": jx.guided_backprop(score),
    "gradient": gradient,
    "SmoothGrad": jx.smoothgrad(gradient, n_samples=25, key=jax.random.key(0)),
    "LRP ε⁺-flat": jx.lrp(score, rules=composites.epsilon_plus_flat()),
    "input × gradient": jx.input_x_gradient(score),
    "integrated gradients": jx.integrated_gradients(score, n_steps=10),
    "DeepLIFT Rescale": jx.deeplift(score),
    "DeepLIFT genomics default": jx.deeplift(score, rule="genomics_default"),
    "DeepLIFT RevealCancel": jx.deeplift(score, rule="reveal_cancel"),
}


@jax.jit
@jax.vmap
def erase(image, difference):
    order = jnp.argsort(-difference.ravel())
    rank = jnp.zeros(order.size, jnp.int32).at[order].set(jnp.arange(order.size, dtype=jnp.int32))
    chosen = (rank < ERASED) & (difference.ravel() > 0)
    return jnp.where(chosen.reshape(image.shape), 0, image)


def log_odds(batch, source, target):
    logits = net(batch)
    return np.asarray(logits[:, source] - logits[:, target])


compiled = {name: explain and jax.jit(jax.vmap(explain, in_axes=(0, None))) for name, explain in contenders.items()}
tasks = ((8, 3), (8, 6), (9, 1), (4, 1))
drops, shown = {}, {}
for source, target in tasks:
    batch = images[labels == source]
    for name, explain in compiled.items():
        noise = jax.random.normal(jax.random.key(1), batch.shape)
        difference = noise if explain is None else explain(batch, source) - explain(batch, target)
        erased = erase(batch, difference)
        drops[name, source, target] = log_odds(batch, source, target) - log_odds(erased, source, target)
        shown[name, source, target] = np.asarray(difference[0]), np.asarray(erased[0])

print("fall of the log-odds: mean ± 95 % confidence of the mean")
print(f"{'':26}" + "".join(f"{f'{a} → {b}':>14}" for a, b in tasks))
for name in contenders:
    cells = [drops[name, *task] for task in tasks]
    print(f"{name:26}" + "".join(f"{c.mean():8.1f} ±{1.96 * c.std(ddof=1) / len(c) ** 0.5:4.1f}" for c in cells))
print(f"{'digits':26}" + "".join(f"{len(drops['gradient', *task]):14}" for task in tasks))

# %% [markdown]
# The intervals of two methods overlap, since digits differ; but all methods see the same digits, and so their
# *differences* are known much better. RevealCancel against each of the others, digit by digit:

# %%
best = "DeepLIFT RevealCancel"
print(f"{best} minus …{'':6}" + "".join(f"{f'{a} → {b}':>14}" for a, b in tasks))
for name in contenders:
    if name != best:
        paired = [drops[best, *task] - drops[name, *task] for task in tasks]
        print(f"{name:26}" + "".join(f"{c.mean():8.1f} ±{1.96 * c.std(ddof=1) / len(c) ** 0.5:4.1f}" for c in paired))
        assert all(c.mean() > 1.96 * c.std(ddof=1) / len(c) ** 0.5 for c in paired)
ratio = drops[best, 8, 3].mean() / drops["input × gradient", 8, 3].mean()
print(f"\n8 → 3: RevealCancel falls {ratio:.2f} times as far as input × gradient")

# %%
rows = [name for name in contenders if name not in ("random pixels", "SmoothGrad", "gradient")]
figure = plt.figure(figsize=(11, 3.8), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
axes = left.subplots(2, len(rows) // 2 + 1)
original = images[labels == 8][0]
for ax, name in zip(axes.ravel(), [None, *rows], strict=False):
    picture = original if name is None else shown[name, 8, 3][1]
    ax.imshow(picture[..., 0], cmap="gray_r", vmin=0, vmax=1)
    ax.set_title(
        "an 8" if name is None else name.replace("DeepLIFT ", "").replace("integrated gradients", "IG"), fontsize=8
    )
for ax in axes.ravel():
    ax.set_axis_off()
left.suptitle("What is left of it when 157 pixels are erased, to make it a 3", fontsize=9)
ax = right.subplots()
order = list(contenders)[::-1]
ax.boxplot(
    [drops[name, 8, 3] for name in order],
    orientation="horizontal",
    tick_labels=order,
    showfliers=False,
    medianprops={"color": "#b2182b"},
)
ax.set_xlabel("fall of logit(8) − logit(3), 99 held-out digits", fontsize=8)
ax.tick_params(labelsize=8)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The order is the authors': guided back-propagation is last, input × gradient, integrated gradients and Rescale are
# close to each other, and RevealCancel is first in every task. (On their network, fed with raw 0–255 pixels, it fell
# 1.27 times as far as input × gradient.) The genomics default, RevealCancel behind dense layers only, hardly differs
# from Rescale: in this network the canceling happens in the convolutions.
#
# ## When to use it, and when it misleads
#
# Use DeepLIFT when a difference should be divided and you can only afford the cost of one gradient: it sees through
# saturated units, and its sum is exact on any network. Rescale misleads in three ways:
#
# * **It is blind to cancellation**, like the gradient: of $\min(x_1, x_2)$ it shows one. RevealCancel is made for that.
# * **It depends on how the network computes its function**, not on the function alone. Two networks that agree
#   everywhere may be explained differently, since every secant is taken inside; integrated gradients has no such
#   freedom. And the path from $x_0$ to $x$ that each secant spans is never evaluated, so that a unit that rises and
#   falls again between is a unit that did nothing.
# * **The reference is half of the question.** Behind a layer norm an image of zeros is noise divided by ε, something
#   the network has never seen, and every secant leads there. Take a reference of the same kind as the data: a mean, a
#   blur, a sample.
#
# Like every method with a reference, it gives nothing to a pixel that has the same value in the reference.
#
# ## References
#
# * A. Shrikumar, P. Greenside, A. Kundaje. *Learning important features through propagating activation differences.*
#   ICML 2017.
# * S. Lundberg, S.-I. Lee. *A unified approach to interpreting model predictions.* NeurIPS 2017.
# * M. Ancona, E. Ceolini, C. Öztireli, M. Gross. *Toward better understanding of gradient-based attribution methods.*
#   ICLR 2018.
