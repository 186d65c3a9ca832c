# %% [markdown]
# # 4.3 Grad-CAM++
#
# [Grad-CAM](4.2_grad-cam.ipynb) weighs a channel by its *mean* gradient over all places. Where the gradient vanishes
# off the object, a channel that sees a small object then counts less than one that sees a large object, and of several
# objects the smaller fade. Grad-CAM++ lets each place count for itself:
#
# $$M(p) = \mathrm{ReLU} \sum_k w_k A_k(p), \qquad w_k = \sum_p \alpha_k(p)\, \mathrm{ReLU}\, \frac{\partial Y}{\partial A_k(p)}, \qquad
# \alpha_k(p) = \frac{\partial_k^2 Y}{2\,\partial_k^2 Y + \sum_q A_k(q)\; \partial_k^3 Y},$$
#
# with $Y = e^f$ and derivatives with respect to $A_k(p)$.

# %%
import functools
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import datasets, metrics, zoo

plt.rcParams["figure.dpi"] = 90

N = int(os.environ.get("CHAPTER_SCENES", 1000))  # fewer when this page is only checked
digits = datasets.mnist()
held_out = functools.partial(datasets.cluttered_mnist, images=digits.x_test, labels=digits.y_test)
gap, flatten = zoo.load("gap_cluttered"), zoo.load("flatten_cluttered")


def interval(values):
    return f"{np.nanmean(values):.3f} ± {1.96 * np.nanstd(values) / np.sqrt(len(values)):.3f}"


# %% [markdown]
# ## The exponential cancels
#
# For a network that is piecewise linear up to $f$, with $g = \partial f/\partial A_k(p)$, the derivatives of $Y$ are
# $g\,Y$, $g^2 Y$ and $g^3 Y$. So
#
# $$\alpha_k(p) = \frac{g^2}{2 g^2 + g^3 \sum_q A_k(q)} = \frac{1}{2 + g \sum_q A_k(q)},$$
#
# and $Y$ is a factor common to all weights, which changes no normalized map. Implementations that keep $e^f$ have color
# bars of many powers of ten, and overflow for logits above 88. The library leaves it out. On the formula as printed, in
# float64 and normalized by the maximum:

# %%
scenes = jax.jit(jax.vmap(held_out))(jax.random.split(jax.random.key(41), N))
x, y, masks = scenes.image, scenes.labels[:, 0], scenes.digit_masks[:, 0]
score = jx.logit(flatten)
layer = jx.with_info(jx.grad_cam(score))(x[0], y[0])[1].layer
encode, decode = jx.split(score, lambda node: node.kind == layer.kind and node.shape == layer.shape)


def terms(image, label):
    A = encode(image, label)
    value, g = jax.value_and_grad(decode)(A, image, label)
    return value, A[0], g[0]


def as_printed(value, A, g):
    value, A, g = (np.asarray(v, np.float64) for v in (value, A, g))
    Y = np.exp(value)[:, None, None, None]
    second, third = Y * g**2, Y * g**3
    below = 2 * second + A.sum((1, 2), keepdims=True) * third
    alpha = np.divide(second, below, out=np.zeros_like(second), where=second != 0)
    weights = (alpha * np.maximum(Y * g, 0)).sum((1, 2), keepdims=True)
    return np.maximum((weights * A).sum(-1), 0)


plus = jax.jit(jax.vmap(jx.grad_cam_plus_plus(score, upsample=False)))
printed, ours = as_printed(*jax.jit(jax.vmap(terms))(x, y)), np.asarray(plus(x, y))
scaled = [m / m.max((1, 2), keepdims=True) for m in (printed, ours)]
print(
    f"maxima: as printed {printed.max((1, 2)).min():.0e} to {printed.max():.0e}, ours {ours.max((1, 2)).min():.0f} to {ours.max():.0f}"
)
print(f"normalized, they differ by {np.abs(scaled[0] - scaled[1]).max():.0e} at most")
assert np.abs(scaled[0] - scaled[1]).max() < 1e-4

sharp = jx.logit(lambda images: 10 * flatten(images))  # logits of about 100
heat = jax.jit(jx.grad_cam_plus_plus(sharp))(x[0], y[0])
print(
    f"10 × the logits: e^f = {jnp.exp(sharp(x[0], y[0])):.0e} in float32, the map is finite: {bool(jnp.isfinite(heat).all())}"
)
assert jnp.isfinite(heat).all()

# %% [markdown]
# ## Batches
#
# The sum $\sum_q A_k(q)$ belongs to one image. Written for a batch, it is easily broadcast along the wrong axis: sums
# of shape (batch, channels) meet maps of (batch, height, width, channels), which is right for a batch of 1, an error
# for most, and silently wrong where the batch is as large as the map is wide. Here a method is written for one example,
# and `vmap` makes the batch:

# %%
_, maps, g = (np.asarray(v, np.float64) for v in jax.jit(jax.vmap(terms))(x[:10], y[:10]))
below = 2 + g * maps.sum((1, 2))  # (10, 10, 10, 48) and (10, 48): no error, and the sums of other images
weights = (np.maximum(g, 0) / below).sum((1, 2), keepdims=True)
mistaken = np.maximum((weights * maps).sum(-1), 0)
batch, alone = plus(x[:10], y[:10]), np.stack([plus(x[i : i + 1], y[i : i + 1])[0] for i in range(10)])
relative = lambda heat: np.abs(heat - alone).max() / alone.max()
print(
    f"10 images together and alone differ by {relative(batch):.0e}, with the sums broadcast as they come by {relative(mistaken):.0e}"
)
assert relative(batch) < 1e-5 < relative(mistaken)

# %% [markdown]
# ## The reason: objects of different sizes
#
# The example of the paper: three channels see one object each, of different area, and the score has gradient 1 where
# they are on and 0 where they are off, $f = \sum_k \sum_p \mathrm{ReLU}(A_k(p))$. Grad-CAM's weights are the shares of
# the area. Those of Grad-CAM++ are $n/(2 + n)$ for an object of $n$ places, nearly equal:

# %%
A = np.zeros((24, 24, 3), np.float32)
A[2:12, 2:14, 0], A[15:19, 4:9, 1], A[16:18, 17:19, 2] = 1, 1, 1  # 120, 20 and 4 places
bright = lambda image: jnp.sum(jax.nn.relu(image @ jnp.eye(3)))  # the layer is the product, and equal to A
by_hand = {"Grad-CAM": lambda n: n / 24**2, "Grad-CAM++": lambda n: n / (2 + n)}
maps = {
    "Grad-CAM": jx.grad_cam(bright, at="last dense")(A),
    "Grad-CAM++": jx.grad_cam_plus_plus(bright, at="last dense")(A),
}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.4), layout="constrained")
axes[0].imshow(A.sum(-1), cmap="gray_r")
axes[0].set_title("three objects", fontsize=9)
axes[0].set_xticks([])
axes[0].set_yticks([])
for ax, (name, heat) in zip(axes[1:], maps.items(), strict=True):
    heights = np.array([heat[5, 5], heat[16, 6], heat[16, 17]])
    print(f"{name:11} heights of the map on 120, 20 and 4 places: {np.round(heights, 3)}")
    np.testing.assert_allclose(heights, [by_hand[name](n) for n in (120, 20, 4)], rtol=1e-5)
    jx.plot.image(heat, title=name, ax=ax)
plt.show()

# %% [markdown]
# ## Several digits
#
# Canvases of 80×80 with two digits that do not overlap. Only the GAP network takes images of any size (it was trained
# on one digit on 40×40; how often the two digits are its two highest logits is printed). *Two of a class*: of the
# positive evidence that is on digits, how much is on the weaker one (½ is even), and how often do both stand out, with
# at least half of the map's maximum on each? *Two classes*: explaining one of them, how much of the evidence on digits
# is on that one?

# %%
two = functools.partial(held_out, preset="two_digits", canvas=80)


@jax.jit
def kinds(keys):
    """For each key: are the two digits apart, are they of one class."""

    def kind(key):
        scene = two(key)
        return ~jnp.any(scene.digit_masks[0] & scene.digit_masks[1]), scene.labels[0] == scene.labels[1]

    return jax.lax.map(kind, keys, batch_size=100)


keys = jax.random.split(jax.random.key(43), 16 * N)
apart, same = (np.asarray(v) for v in kinds(keys))
of_one, of_two = (keys[np.flatnonzero(apart & which)[:N]] for which in (same, ~same))
one_class, two_classes = (jax.jit(jax.vmap(two))(chosen) for chosen in (of_one, of_two))

gap_score = jx.logit(gap)
methods = {
    "CAM": jx.cam(gap_score, relu=True),
    "Grad-CAM": jx.grad_cam(gap_score),
    "Grad-CAM++": jx.grad_cam_plus_plus(gap_score),
    "LayerCAM": jx.layer_cam(gap_score),
    "Eigen-CAM": jx.eigen_cam(gap_score),
    "|gradient|": lambda image, label: jnp.abs(jx.gradient(gap_score)(image, label))[..., 0],
}


@functools.partial(jax.jit, static_argnums=0)
def on_each(explain, scenes):
    """The evidence on the first and the second digit, and the height of the map there; the first one's class is explained."""

    def one(scene):
        heat = jnp.maximum(explain(scene.image, scene.labels[0]), 0)
        on = heat * scene.digit_masks
        return on.sum((1, 2)), on.max((1, 2)) / heat.max()

    return jax.lax.map(one, scenes, batch_size=20)


print(f"{len(of_one)} scenes of one class, {len(of_two)} of two classes")
every = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), one_class, two_classes)
top = np.sort(np.argsort(jax.jit(gap)(two_classes.image), -1)[:, -2:], -1)
print(
    f"both digits are the highest logits in {(top == np.sort(two_classes.labels, -1)).all(-1).mean():.0%} of the latter\n"
)
print(f"{'':12}{'share of the weaker':>21}{'both stand out':>18}{'share of the class asked for':>31}")
found = {}
for name, explain in methods.items():
    evidence, height = (np.asarray(v) for v in on_each(explain, every))
    share, n = evidence / evidence.sum(1, keepdims=True), len(of_one)
    found[name] = share[:n].min(1), (height[:n] > 0.5).all(1), share[n:, 0]
    print(f"{name:12}{interval(found[name][0]):>21}{interval(found[name][1]):>18}{interval(found[name][2]):>31}")
assert found["Grad-CAM++"][2].mean() < found["Grad-CAM"][2].mean()

# %%
chosen = np.argsort(found["Grad-CAM"][0])[: 2 * len(of_one) // 5 : max(1, len(of_one) // 20)][:4]  # from uneven ones
pick = lambda scenes, at: jax.tree.map(lambda leaf: leaf[at], scenes)
examples = [pick(one_class, chosen), pick(two_classes, np.arange(4))]
pictures = np.concatenate([e.image for e in examples])
asked = np.concatenate([e.labels[:, 0] for e in examples])
shown = {name: jax.jit(jax.vmap(methods[name]))(pictures, asked) for name in ("Grad-CAM", "Grad-CAM++", "Eigen-CAM")}
jx.plot.grid(shown, pictures, titles=[f"class {c}" for c in asked], size=1.15, share=False)
plt.show()

# %% [markdown]
# Left, two digits of a class, picked among those where Grad-CAM is uneven; right, two classes, of which the one in the
# title is explained. On a GAP network the gradient is the same at all places, so Grad-CAM has no area to divide by:
# both methods find both digits nearly as often. What differs is mainly that Grad-CAM++ drops negative gradients;
# LayerCAM, which does so too and has no α, spreads as far. Negative weights are evidence against another class: without
# them the map extends to the digit that was *not* asked for. Eigen-CAM, which is never told the class, is at one half.
#
# ## One digit, a flattened network: better, by which measure?
#
# Where dense layers follow, the gradient differs from place to place, and dropping its negative part keeps the mean
# from canceling. In the [localization table](4.2_grad-cam.ipynb) the peak of Grad-CAM++ is more often on the digit than
# Grad-CAM's, and less of its energy is. The paper's own measures are *average drop* and *increase*: multiply the image
# with the normalized map and see what becomes of the probability of the class,
#
# $$\text{drop} = \frac{\max(0, p(x) - p(x \odot M))}{p(x)}, \qquad \text{increase} = 1[p(x \odot M) > p(x)].$$

# %%
maps = {
    "constant (control)": lambda image, _: jnp.ones(image.shape[:2]),
    "Grad-CAM": jx.grad_cam(score),
    "Grad-CAM++": jx.grad_cam_plus_plus(score),
    "HiResCAM": jx.hires_cam(score, relu=True),
    "LayerCAM": jx.layer_cam(score),
    "Eigen-CAM": jx.eigen_cam(score),
}
pointing = metrics.pointing_game(tolerance=2)


def measures(explain):
    def one(image, label, mask):
        heat = jnp.maximum(jnp.nan_to_num(explain(image, label)), 0)
        kept = heat / jnp.maximum(heat.max(), 1e-12)
        before, after = (jax.nn.softmax(flatten(i))[label] for i in (image, image * kept[..., None]))
        drop = jnp.maximum(0, before - after) / before
        return jnp.nan_to_num(pointing(heat, mask)), drop, after > before, kept.mean()

    return jax.jit(lambda *args: jax.lax.map(lambda a: one(*a), args, batch_size=20))


print(f"{'':20}{'pointing, 2 px':>17}{'drop':>17}{'increase':>17}{'area kept':>17}")
figures = {}
for name, explain in maps.items():
    figures[name] = [np.asarray(v, float) for v in measures(explain)(x, y, masks)]
    print(f"{name:20}" + "".join(f"{interval(v):>17}" for v in figures[name]))
ahead = [a - b for a, b in zip(figures["Grad-CAM++"], figures["Grad-CAM"], strict=True)]
print(f"{'Grad-CAM++ − Grad-CAM':20}" + "".join(f"{interval(v):>17}" for v in ahead))
assert ahead[0].mean() > 0
assert figures["Grad-CAM++"][1].mean() < figures["Grad-CAM"][1].mean()

# %% [markdown]
# Grad-CAM++ drops less, as in the paper. But read the last column, and the control: a constant map, which says nothing,
# has no drop at all. *Drop* rewards maps that keep much, and those of Grad-CAM++ are broader; at best it ranks maps of
# one area. *Increase* is 1 to 2 % for every map here and tells little.
#
# ## When to use it, and when it misleads
#
# Where dense layers make Grad-CAM's mean cancel, the peak of Grad-CAM++ is nearer to the object; for several objects of
# a class it helps where the gradient vanishes off them, and a network with global average pooling has no need of it. To
# tell one class from another in the same picture it is the wrong map: it has thrown away the evidence against.
# `hires_cam` keeps places and signs.
#
# ## References
#
# * A. Chattopadhay et al. *Grad-CAM++: generalized gradient-based visual explanations for deep convolutional networks.*
#   WACV 2018.
# * M. Muhammad, M. Yeasin. *Eigen-CAM: class activation map using principal components.* IJCNN 2020.
