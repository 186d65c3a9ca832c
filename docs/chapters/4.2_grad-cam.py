# %% [markdown]
# # 4.2 Grad-CAM
#
# A [class activation map](4.1_class_activation_mapping.ipynb) needs a network that averages its last maps. Grad-CAM
# takes any network, and puts the mean gradient in the place of the weights:
#
# $$M(p) = \mathrm{ReLU} \sum_k \alpha_k A_k(p), \qquad \alpha_k = \frac1Z \sum_p \frac{\partial f}{\partial A_k(p)}.$$
#
# On other networks the map misses the digit more often. This chapter measures how often, shows why, and compares all
# methods of this library on a thousand scenes.

# %%
import functools
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import composites, datasets, metrics, zoo

plt.rcParams["figure.dpi"] = 90

N = int(os.environ.get("CHAPTER_SCENES", 1000))  # fewer when this page is only checked
digits = datasets.mnist()
scene = functools.partial(datasets.cluttered_mnist, images=digits.x_test, labels=digits.y_test)
scenes = jax.jit(jax.vmap(scene))(jax.random.split(jax.random.key(41), N))
x, y, masks = scenes.image, scenes.labels[:, 0], scenes.digit_masks[:, 0]

networks = {"GAP": zoo.load("gap_cluttered"), "flatten": zoo.load("flatten_cluttered")}
scores = {name: jx.logit(net) for name, net in networks.items()}
for name, net in networks.items():
    print(f"{name:8} right on {zoo.accuracy(net, x, y):.1%} of {N:,} held-out scenes")


def interval(values):
    """The mean and its 95 % interval over scenes (not over trainings): Wilson's for hits and misses."""
    n, mean, z = len(values), np.mean(values), 1.96
    middle, half = mean, z * np.std(values) / np.sqrt(n)
    if set(np.unique(values)) <= {0, 1}:
        middle = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * np.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return mean, middle - half, middle + half


def shown(values):
    return "{:.3f} ({:.3f}–{:.3f})".format(*interval(values))


def batch(explain):
    return jax.jit(lambda x, y: jax.lax.map(lambda a: explain(*a), (x, y), batch_size=20))(x, y)


# %% [markdown]
# ## Proof: on a GAP network it is CAM
#
# There $\partial f / \partial A_k(p) = w_k / Z$ at every place, so $M = \mathrm{ReLU}(\mathrm{CAM})/Z$. On every scene:

# %%
cam = batch(jx.cam(scores["GAP"], upsample=False))
grad_cam = batch(jx.grad_cam(scores["GAP"], upsample=False))
want = jnp.maximum(cam, 0) / cam[0].size
difference = jnp.max(jnp.abs(grad_cam - want)) / jnp.max(want)
print(f"Grad-CAM − ReLU(CAM)/Z, the worst place of {N:,} scenes: {difference:.0e} of the largest")
assert difference < 1e-5

# %% [markdown]
# ## Ten scenes
#
# The second network has the same convolutions (the last has 48 channels instead of 128), but no average: its maps are
# flattened into dense layers, where every place has weights of its own. Guided Grad-CAM is the map times [guided
# back-propagation](3.3_guided_backpropagation.ipynb), which draws finer lines and explains no better.

# %%
ten = np.array([np.flatnonzero(y == c)[0] for c in range(10)])
pictures = {
    "Grad-CAM, GAP": jx.grad_cam(scores["GAP"]),
    "Grad-CAM, flattened": jx.grad_cam(scores["flatten"]),
    "guided, flattened": jx.guided_grad_cam(scores["flatten"]),
}
pictures = {name: jax.jit(jax.vmap(explain))(x[ten], y[ten]) for name, explain in pictures.items()}
jx.plot.grid(pictures, x[ten], titles=[f"digit {c}" for c in y[ten]], size=1.05)
plt.show()

# %% [markdown]
# ## Maps that miss the digit
#
# HiResCAM multiplies maps and gradients *place by place*, $\sum_k A_k(p)\, \partial f/\partial A_k(p)$, and averages
# nothing. The first scenes where Grad-CAM points more than 2 pixels away from the digit and HiResCAM does not:

# %%
on_digit = jax.vmap(metrics.pointing_game(tolerance=2))
methods = {
    "Grad-CAM": jx.grad_cam(scores["flatten"]),
    "HiResCAM": jx.hires_cam(scores["flatten"]),
    "LayerCAM": jx.layer_cam(scores["flatten"]),
    "Score-CAM": jx.score_cam(scores["flatten"]),
}
maps = {name: batch(explain) for name, explain in methods.items()}
hits = {name: np.nan_to_num(on_digit(found, masks)) > 0 for name, found in maps.items()}
beside = np.flatnonzero(~hits["Grad-CAM"] & hits["HiResCAM"])
reverse = np.flatnonzero(hits["Grad-CAM"] & ~hits["HiResCAM"])
print(f"Grad-CAM alone misses {len(beside) / N:.1%} of the digits, HiResCAM alone {len(reverse) / N:.1%}")
some = beside[:8]
jx.plot.grid(
    {name: found[some] for name, found in maps.items()}, x[some], titles=[f"digit {c}" for c in y[some]], size=1.05
)
plt.show()

# %% [markdown]
# ## Why
#
# **The mean forgets where.** Two places, one channel, and a score that likes the channel at the first place and
# dislikes it at the second, as dense layers after a flattening do: $f = A(1) - A(2)$. The mean gradient is zero, and so
# is the map, although the first place made the whole score:

# %%
two_places = lambda A: A[0, 0, 0] - A[0, 1, 0]
A = jnp.array([[[1.0], [0.1]]])  # (1, 2 places, 1 channel)
gradient = jax.grad(two_places)(A)
print("Grad-CAM", (A * gradient.mean((0, 1))).sum(-1)[0], "   HiResCAM", (A * gradient).sum(-1)[0])

# %% [markdown]
# In the trained networks: how much of the gradient's energy $\sum_p |g(p)|^2$ is left in its mean; at how many places a
# channel is silent, whose gradients the mean counts nevertheless; and an intervention: set the maps to zero at the
# place of the peak, and see what the logit loses. HiResCAM's value *is* this loss to first order, so it should win; the
# control is the place of the largest activation, whatever the class. A mean over the places where a channel is active
# tells which of the two hurts, averaging or counting the silent. `jx.split` gives the half of the network that starts
# from the maps.

# %%


print(f"{'':38}" + "".join(f"{name:>24}" for name in networks))
lines = {}
for name, score in scores.items():
    grid = jx.with_info(jx.grad_cam(score))(x[0], y[0])[1].layer.shape
    encode, decode = jx.split(score, lambda node, grid=grid: node.kind == "activation" and node.shape == grid)

    def measure(image, label, encode=encode, decode=decode):
        A = encode(image, label)
        value, g = jax.value_and_grad(decode)(A, image, label)
        mean, is_active = g.mean((1, 2), keepdims=True), A > 0
        mean_of_active = (g * is_active).sum((1, 2), keepdims=True) / jnp.maximum(
            is_active.sum((1, 2), keepdims=True), 1
        )
        heats = [(A * w).sum(-1)[0] for w in (mean, mean_of_active, g)] + [jnp.linalg.norm(A[0], axis=-1)]

        def loss(heat):
            row, column = jnp.unravel_index(jnp.argmax(heat), heat.shape)
            return value - decode(A.at[:, row, column].set(0), image, label)

        kept = (mean**2).sum() * heats[0].size / (g**2).sum()
        return kept, 1 - is_active.mean(), *map(loss, heats), jnp.stack([jnp.maximum(heat, 0) for heat in heats])

    *lines[name], heats = (np.asarray(values, float) for values in jax.jit(jax.vmap(measure))(x, y))
    if name == "flatten":
        large = jax.image.resize(heats, (*heats.shape[:2], 40, 40), "bilinear")
        near = [np.nan_to_num(on_digit(large[:, i], masks)) for i in range(4)]
for i, line in enumerate(
    (
        "energy of the gradient in its mean",
        "places where a channel is silent",
        "logit lost: Grad-CAM's peak to 0",
        "logit lost: peak by active places",
        "logit lost: HiResCAM's peak to 0",
        "logit lost: largest activation to 0",
    )
):
    print(f"{line:38}" + "".join(f"{shown(lines[name][i]):>24}" for name in networks))
names = ("Grad-CAM", "mean over active places", "HiResCAM", "largest activation")
print(
    "\nflattened, peak within 2 px:", ", ".join(f"{name} {shown(hit)}" for name, hit in zip(names, near, strict=True))
)
kept, _, by_mean, by_active, by_place, largest = lines["flatten"]
print("logit lost on the same scenes, HiResCAM − Grad-CAM:", shown(by_place - by_mean))
print("                         largest activation − Grad-CAM:", shown(largest - by_mean))
assert kept.mean() < 0.2
np.testing.assert_allclose(lines["GAP"][0], 1, atol=1e-3)
assert interval(by_place - by_mean)[1] > 0
assert near[1].mean() > near[0].mean()

# %% [markdown]
# On the GAP network the mean is all there is. On the flattened one it keeps a tenth of the gradient's energy, and its
# peak loses less of the logit than even the place of the largest activation. Most of that is the silent places: four
# fifths of all, with gradients that the activation never uses. A mean over the active places, still one weight per
# channel, is nearly as often on the digit as HiResCAM.
#
# **A shift.** A second reason is the way the picture is made. A cell of 10×10 covers 4×4 pixels, and its center is in
# the middle of them. Up-sampling with `align_corners=True`, as the TensorFlow tutorials on this data do, puts the
# centers of the outer cells on the corners of the image: maps are pulled outward by up to 1.5 pixels.


# %%
def aligned_corners(heat):
    at = jnp.linspace(0, 9, 40)
    low = jnp.clip(jnp.floor(at).astype(int), 0, 8)
    rows = lambda h: h[low] * (1 - (at - low))[:, None] + h[low + 1] * (at - low)[:, None]
    return rows(rows(heat).T).T


shifted = {}
for name, score in scores.items():
    small, centered = batch(jx.grad_cam(score, upsample=False)), batch(jx.grad_cam(score))
    shifted[name] = [np.nan_to_num(on_digit(m, masks)) for m in (centered, jax.vmap(aligned_corners)(small))]
    print(f"{name:8} peak within 2 px: centered {shown(shifted[name][0])}   aligned corners {shown(shifted[name][1])}")
    assert shifted[name][0].mean() >= shifted[name][1].mean()

# %% [markdown]
# ## The localization table
#
# All methods on both networks (one of each kind: the intervals are over scenes). Of gradients the absolute value is
# measured, of all others the positive part. A method that gives no map for a scene (no positive evidence) counts as a
# miss there; how many is in the last column. CAM is not defined on the flattened network. Controls that do not depend
# on the network: a constant map (chance), a blob in the middle of the canvas, where a digit of 28 pixels on 40 always
# is in part, the image, and the image at the resolution of the maps. *The mask at 10×10* is what a map of that
# resolution could reach.


# %%
def coarse(values):
    """A map averaged to 10×10 cells, and brought back."""
    return jax.image.resize(values.reshape(10, 4, 10, 4).mean((1, 3)), (40, 40), "bilinear")


row, column = jnp.meshgrid(jnp.arange(40), jnp.arange(40), indexing="ij")
middle = jnp.exp(-((row - 19.5) ** 2 + (column - 19.5) ** 2) / (2 * 6**2))


def all_methods(score):
    gradient = jx.gradient(score)
    smooth = jx.smoothgrad(gradient, n_samples=10, key=jax.random.key(0))
    return {
        "constant (control)": lambda image, _: jnp.ones(image.shape[:2]),
        "middle (control)": lambda *_: middle,
        "the image (control)": lambda image, _: image,
        "image, 10×10 (control)": lambda image, _: coarse(image[..., 0]),
        "|gradient|": lambda image, label: jnp.abs(gradient(image, label)),
        "|SmoothGrad|": lambda image, label: jnp.abs(smooth(image, label)),
        "input × gradient": jx.input_x_gradient(score),
        "integrated gradients": jx.integrated_gradients(score, n_steps=20),
        "DeepLIFT Rescale": jx.deeplift(score),
        "DeepLIFT RevealCancel": jx.deeplift(score, rule="reveal_cancel", fallback="rescale"),
        "LRP ε⁺-flat": jx.lrp(score, rules=composites.epsilon_plus_flat()),
        "LRP εγ-box": jx.lrp(score, rules=composites.epsilon_gamma_box(0.0, 1.0)),
        "deep Taylor": jx.deep_taylor(score, low=0.0, high=1.0),
        "excitation backprop": jx.excitation_backprop(score),
        "deconvolution": jx.deconvnet(score),
        "guided backprop": jx.guided_backprop(score),
        "guided Grad-CAM": jx.guided_grad_cam(score),
        "CAM": jx.cam(score),
        "Grad-CAM": jx.grad_cam(score),
        "Grad-CAM++": jx.grad_cam_plus_plus(score),
        "HiResCAM": jx.hires_cam(score),
        "XGrad-CAM": jx.xgrad_cam(score),
        "LayerCAM": jx.layer_cam(score),
        "Ablation-CAM": jx.ablation_cam(score),
        "Score-CAM": jx.score_cam(score),
        "Eigen-CAM": jx.eigen_cam(score),
    }


measures = {
    "pointing": metrics.pointing_game(),
    "pointing, 2 px": metrics.pointing_game(tolerance=2),
    "IoU": metrics.intersection_over_union(),
    "energy inside": metrics.energy_inside(),
}
measure = jax.jit(jax.vmap(lambda heat, mask: [m(heat, mask) for m in measures.values()]))
table, empty = {}, {}
for network, score in scores.items():
    for method, explain in all_methods(score).items():
        if (network, method) == ("flatten", "CAM"):
            continue
        values = measure(batch(explain), masks)
        table[network, method] = [np.nan_to_num(v) for v in values]
        empty[network, method] = int(np.isnan(values[0]).sum())
    print(f"\n{network:23}" + "".join(f"{name:>23}" for name in measures) + "  empty")
    for (of, method), values in table.items():
        if of == network:
            print(f"{method:23}" + "".join(f"{shown(v):>23}" for v in values) + f"{empty[of, method]:7}")
bound = [np.asarray(v) for v in measure(jax.vmap(coarse)(masks.astype(float)), masks)]
print(f"\n{'the mask at 10×10':23}" + "".join(f"{shown(v):>23}" for v in bound))

# %%
names = list(all_methods(scores["GAP"]))
figure, axes = plt.subplots(1, 3, figsize=(10, 5.2), sharey=True, layout="constrained")
for ax, (title, i) in zip(axes, (("pointing game, within 2 px", 1), ("IoU", 2), ("energy inside", 3)), strict=True):
    for network, color, offset in (("GAP", "#2166ac", 0.14), ("flatten", "#b2182b", -0.14)):
        rows = [(len(names) - j, table[network, n][i]) for j, n in enumerate(names) if (network, n) in table]
        means, halves = zip(*((v.mean(), 1.96 * v.std() / np.sqrt(N)) for _, v in rows), strict=True)
        at = [row + offset for row, _ in rows]
        ax.errorbar(means, at, xerr=halves, fmt="o", ms=3, lw=1, color=color, label=f"{network} network")
    ax.axvline(table["GAP", "constant (control)"][i].mean(), color="0.6", lw=0.8, ls=":")
    ax.set_title(title, fontsize=9)
    ax.set_yticks(range(len(names), 0, -1), names, fontsize=8)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="y", color="0.93")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
axes[0].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0.0, 0.86))
plt.show()


# %%
def mean(network, method, measure):
    return table[network, method][list(measures).index(measure)].mean()


assert mean("flatten", "Grad-CAM", "pointing, 2 px") < mean("flatten", "HiResCAM", "pointing, 2 px")
assert mean("GAP", "Grad-CAM", "IoU") > mean("flatten", "Grad-CAM", "IoU")
for method in ("CAM", "Score-CAM", "integrated gradients", "LRP ε⁺-flat"):
    for of in ("pointing", "IoU", "energy inside"):
        assert mean("GAP", method, of) > mean("GAP", "middle (control)", of), (method, of)

# %% [markdown]
# The dotted line is the constant map. What the table says, and what it does not:
#
# * On the GAP network CAM, Grad-CAM, HiResCAM and XGrad-CAM are one map; the other class activation maps are a little
#   nearer to the digit. On the flattened network Grad-CAM is the last of them within 2 px, and behind the blob in the
#   middle. It is not averaging as such: XGrad-CAM and Grad-CAM++ have one weight per channel, too.
# * Maps of 10×10 cells cannot follow a stroke 3 pixels wide, but could reach what the mask at 10×10 does (the last
#   line). That they do not is their receptive field of 26 pixels, and what the networks look at.
# * Whatever multiplies with the input is on ink nearly always, and most ink here is the digit's: compare with the
#   control "the image". That input × gradient has more of its energy on the digit says that it tells digit from
#   clutter; how far it is ahead of a map that shows places is a matter of the mask.
# * Localization is not faithfulness. Eigen-CAM does well without asking for a class at all: where one object is in the
#   picture, a good segmentation wins this game.
#
# ## When to use it, and when it misleads
#
# Grad-CAM is a good first look at networks that pool globally, where it is CAM. Where dense layers follow the maps, use
# `hires_cam`: the same price, no average, and it sums to f minus its offset where what follows is affine. `at=` chooses
# another layer: earlier ones are finer and know less; `layer_cam` is made for them. A map that is zero everywhere is an
# error here (NaN under `jit`): scaled to [0, 1], it would hide that there is nothing.
#
# ## References
#
# * R. Selvaraju et al. *Grad-CAM: visual explanations from deep networks via gradient-based localization.* ICCV 2017.
# * R. Draelos, L. Carin. *Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks.*
#   arXiv 2020.
# * P.-T. Jiang et al. *LayerCAM: exploring hierarchical class activation maps for localization.* IEEE TIP 30, 2021.
# * H. Wang et al. *Score-CAM: score-weighted visual explanations for convolutional neural networks.* CVPR workshops
#   2020.
# * J. Zhang et al. *Top-down neural attention by excitation backprop.* ECCV 2016. (The pointing game.)
# * R. Fu et al. *Axiom-based Grad-CAM: toward accurate visualization and explanation of CNNs.* BMVC 2020. (XGrad-CAM.)
# * S. Desai, H. Ramaswamy. *Ablation-CAM: visual explanations for deep convolutional network via gradient-free
#   localization.* WACV 2020.
# * M. Muhammad, M. Yeasin. *Eigen-CAM: class activation map using principal components.* IJCNN 2020.
