# %% [markdown]
# # 4.1 Class activation mapping
#
# **The question**: where in the image is the evidence for a class? In one kind of network the answer can be read off.
# If the last maps $A_k$ are averaged over their $Z$ places and go into one linear layer,
#
# $$f_c = \sum_k w_{kc} \, \frac1Z \sum_p A_k(p) = \frac1Z \sum_p \underbrace{\sum_k w_{kc} A_k(p)}_{M_c(p)},$$
#
# then the two sums may be exchanged: the logit *is* the mean of the class activation map $M_c$. Nothing is
# approximated, no gradient is taken, and evidence against the class is negative.

# %%
import functools
import os
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import datasets, metrics, zoo

plt.rcParams["figure.dpi"] = 90

N = int(os.environ.get("CHAPTER_SCENES", 1000))  # fewer when this page is only checked

# %% [markdown]
# ## Digits among clutter
#
# On a digit that fills its image, any map looks right. `cluttered_mnist` puts a digit anywhere on a larger canvas,
# among pieces of other digits, and returns masks and boxes of everything. All positions are equally likely; but a digit
# of 28 pixels on a canvas of 40 always covers the middle, and a control below says what that is worth. The scenes are
# made of held-out digits.

# %%
digits = datasets.mnist()
scene = functools.partial(datasets.cluttered_mnist, images=digits.x_test, labels=digits.y_test)
scenes = jax.jit(jax.vmap(scene))(jax.random.split(jax.random.key(41), N))
x, y, masks = scenes.image, scenes.labels[:, 0], scenes.digit_masks[:, 0]

net = zoo.load("gap_cluttered")
score = jx.logit(net)
print(f"{net}: right on {zoo.accuracy(net, x, y):.1%} of {N:,} scenes")

# %% [markdown]
# ## By hand, and the proof
#
# `jx.split` cuts any function at a layer: here at the last activation, whose maps are 10×10 with 128 channels. `jx.cam`
# finds that layer, and checks in the program that what follows is a mean over places and linear. The mean of the map is
# the logit, on every scene:

# %%
encode, _ = jx.split(score, "last activation")


def by_hand(image, label):
    A = encode(image, label)[0]  # (10, 10, 128)
    return A @ net.params["dense"]["kernel"][:, label]


explain = jx.cam(score, upsample=False)
hand = jax.jit(jax.vmap(by_hand))(x, y)
library, info = jax.jit(jax.vmap(jx.with_info(explain)))(x, y)
print(f"layer: {info.layer.kind}, {info.layer.shape}")
print(f"by hand and by library differ by {jnp.max(jnp.abs(hand - library)) / jnp.max(jnp.abs(hand)):.0e}")
gap = jnp.max(jnp.abs(library.mean((1, 2)) - info.value)) / jnp.max(jnp.abs(info.value))
print(f"mean of the map − logit, the worst of {N:,}: {gap:.0e} of the largest logit")
assert gap < 1e-5
np.testing.assert_allclose(hand, library, rtol=1e-4, atol=1e-4)

# %% [markdown]
# ## Ten scenes
#
# The map of the true class, at the layer and brought to the size of the input; gray lines are the input. Red is
# evidence for the class, blue against it. The scale is that of logits times places: a map of mean 10 makes a logit of
# 10.

# %%
ten = np.array([np.flatnonzero(y == c)[0] for c in range(10)])
large = jax.jit(jax.vmap(jx.cam(score)))(x[ten], y[ten])
jx.plot.grid({"CAM": large}, x[ten], titles=[f"digit {c}" for c in y[ten]], size=1.05)
plt.show()

# %% [markdown]
# The map follows the digit. It is coarse: a place is 4 pixels wide, and each has seen 26×26 pixels. The peak is
# where a place saw what decides, often inside the digit's outline rather than on its ink.
#
# ## All classes of one scene
#
# A class activation map exists for every class, right or wrong, and their means are the logits. The difference of two
# maps has the margin as its mean: it shows what made the runner-up plausible, and where it lost.

# %%
probabilities = jax.nn.softmax(net(x))
is_right = np.asarray(jnp.argmax(probabilities, -1) == y)
second = np.sort(np.asarray(probabilities), -1)[:, -2]
hard = int(np.argmax(np.where(is_right, second, 0)))  # right, but nearly not
every = jax.jit(jax.vmap(jx.cam(score), in_axes=(None, 0)))(x[hard], jnp.arange(10))
logits = np.asarray(net(x[hard]))
repeated = np.broadcast_to(x[hard], (10, *x.shape[1:]))
best = int(logits.argmax())
titles = [f"{c}: {logits[c]:+.1f}" for c in range(10)]
jx.plot.grid({"CAM": every, f"CAM of {best} −": every[best] - every}, repeated, titles=titles, size=1.05)
plt.show()

# %% [markdown]
# ## Is it where the digit is?
#
# Three measures against the digit's ink. *Pointing game*: is the largest pixel on it (or at most 2 pixels away)? *IoU*:
# of the map's strongest pixels, as many as the digit has, and the digit. *Energy inside*: the share of the positive
# evidence that is on the digit. Intervals are ±1.96 standard errors, over scenes. Three controls do not depend on the
# network: a constant map, which is the level of chance, a blob in the middle of the canvas, and the image itself.

# %%
gradient = jx.gradient(score)
rows, columns = jnp.meshgrid(jnp.arange(40), jnp.arange(40))
middle = jnp.exp(-((rows - 19.5) ** 2 + (columns - 19.5) ** 2) / (2 * 6**2))
methods = {
    "constant (control)": lambda image, _: jnp.ones(image.shape[:2]),
    "middle (control)": lambda *_: middle,
    "the image (control)": lambda image, _: image,
    "CAM": jx.cam(score),
    "|gradient|": lambda image, label: jnp.abs(gradient(image, label)),
}
measures = {
    "pointing": metrics.pointing_game(),
    "pointing, 2 px": metrics.pointing_game(tolerance=2),
    "IoU": metrics.intersection_over_union(),
    "energy inside": metrics.energy_inside(),
}
print(f"{'':20}" + "".join(f"{name:>19}" for name in measures))
found = {}
for method, make in methods.items():
    maps = jax.jit(jax.vmap(make))(x, y)
    found[method] = {name: np.asarray(jax.vmap(m)(maps, masks)) for name, m in measures.items()}
    cells = (f"{v.mean():.3f} ± {1.96 * v.std() / np.sqrt(N):.3f}" for v in found[method].values())
    print(f"{method:20}" + "".join(f"{cell:>19}" for cell in cells))
assert found["CAM"]["pointing, 2 px"].mean() > 0.9
for name in measures:
    assert found["CAM"][name].mean() > found["middle (control)"][name].mean(), name

evidence = jnp.maximum(jax.jit(jax.vmap(jx.cam(score)))(x, y), 0)
on_clutter = (evidence * scenes.clutter_mask).sum() / evidence.sum()
print(
    f"\nof the positive evidence {on_clutter:.1%} is on clutter, which is {scenes.clutter_mask.mean():.1%} of the area"
)

# %% [markdown]
# The peak of the class activation map is on the digit or next to it nearly always, and a gradient's too; on the very
# ink less often: the map knows places of 4 pixels, not strokes, and a gradient is largest next to the ink, where a
# change would matter. The blob in the middle is not far behind the map: on this canvas a digit is never far from there.
# Clutter gets no more than its area. The image itself scores high because most of its ink *is* the digit's: a method is
# not good at localization merely because it multiplies with the input. The [next chapter](4.2_grad-cam.ipynb) has the
# table of all methods.
#
# ## Where it does not apply
#
# Libraries that multiply "the weights of the last linear layer" with "the last maps" return a picture wherever the
# sizes happen to fit. Here it is an error that names the operation that violates the assumption:

# %%
try:
    jx.cam(jx.logit(zoo.load("flatten_cluttered")))(x[0], y[0])
except jx.LayerError as error:
    print(re.sub(r"\S*(?=jaxplain/)", "", str(error)))  # without the folders of this machine
else:
    raise AssertionError("this network has no class activation map")

# %% [markdown]
# ## When to use it, and when it misleads
#
# On a network with global average pooling it is the only exact map: the score, place by place, for one forward pass.
# Others are nearer to the digit ([4.2](4.2_grad-cam.ipynb)), but do not add up to the score. It shows *places*, not
# pixels: what a place has seen is its whole receptive field. Bilinear up-sampling by a whole factor keeps the mean;
# other up-sampling makes a picture.
#
# ## References
#
# * B. Zhou et al. *Learning deep features for discriminative localization.* CVPR 2016.
# * V. Mnih et al. *Recurrent models of visual attention.* NeurIPS 2014. (Cluttered MNIST.)
