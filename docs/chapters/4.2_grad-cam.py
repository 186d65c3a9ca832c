# %% [markdown]
# # 4.2 Grad-CAM
#
# A [class activation map](4.1_class_activation_mapping.ipynb) needs a network that averages its last maps. Grad-CAM takes any network, and puts the mean
# gradient in the place of the weights:
#
# $$M(p) = \mathrm{ReLU} \sum_k \alpha_k A_k(p), \qquad \alpha_k = \frac1Z \sum_p \frac{\partial f}{\partial A_k(p)}.$$
#
# On other networks the map often sits *beside* the digit. This chapter measures how often, shows why, and compares all methods of this library on a
# thousand scenes.

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
# ## Beside the digit
#
# The second network has the same convolutions but no average: its maps are flattened into dense layers, where every place has weights of its
# own. HiResCAM multiplies maps and gradients *place by place*, $\sum_k A_k(p)\, \partial f/\partial A_k(p)$, and averages nothing. The first scenes where
# Grad-CAM points more than 2 pixels away from the digit and HiResCAM does not:

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
shown = beside[:8]
jx.plot.grid(
    {name: found[shown] for name, found in maps.items()}, x[shown], titles=[f"digit {c}" for c in y[shown]], size=1.05
)
plt.show()

# %% [markdown]
# ## Why
#
# **The mean forgets where.** Two places, one channel, and a score that likes the channel at the first place and dislikes it at the second, as dense
# layers after a flattening do: $f = A(1) - A(2)$. The mean gradient is zero, and so is the map, although the first place made the whole score:

# %%
two_places = lambda A: A[0, 0, 0] - A[0, 1, 0]
A = jnp.array([[[1.0], [0.1]]])  # (1, 2 places, 1 channel)
gradient = jax.grad(two_places)(A)
print("Grad-CAM", (A * gradient.mean((0, 1))).sum(-1)[0], "   HiResCAM", (A * gradient).sum(-1)[0])

# %% [markdown]
# In the trained networks: how much of the gradient's energy $\sum_p |g(p)|^2$ is left in its mean; how often the map peaks at the same place as
# HiResCAM; and a test by intervention, which takes neither map's word: set the maps to zero at the place of the peak, and see what the logit
# loses. `jx.split` gives the half of the network that starts from the maps.

# %%


def interval(values):
    return f"{np.nanmean(values):.3f} ± {1.96 * np.nanstd(values) / np.sqrt(len(values)):.3f}"


print(f"{'':38}" + "".join(f"{name:>18}" for name in networks))
lines = {}
for name, score in scores.items():
    grid = jx.with_info(jx.grad_cam(score))(x[0], y[0])[1].layer.shape
    encode, decode = jx.split(score, lambda node, grid=grid: node.kind == "activation" and node.shape == grid)

    def measure(image, label, encode=encode, decode=decode):
        A = encode(image, label)
        value, g = jax.value_and_grad(decode)(A, image, label)
        mean = g.mean((1, 2), keepdims=True)
        by_mean, by_place = (A * mean).sum(-1)[0], (A * g).sum(-1)[0]

        def loss(heat):
            row, column = jnp.unravel_index(jnp.argmax(heat), heat.shape)
            return value - decode(A.at[:, row, column].set(0), image, label)

        kept = (mean**2).sum() * by_mean.size / (g**2).sum()
        return kept, jnp.argmax(by_mean) == jnp.argmax(by_place), loss(by_mean), loss(by_place)

    lines[name] = [np.asarray(values, float) for values in jax.jit(jax.vmap(measure))(x, y)]
for i, line in enumerate(
    (
        "energy of the gradient in its mean",
        "same peak",
        "logit lost: Grad-CAM's peak to 0",
        "logit lost: HiResCAM's peak to 0",
    )
):
    print(f"{line:38}" + "".join(f"{interval(lines[name][i]):>18}" for name in networks))
kept, _, loss, loss_by_place = lines["flatten"]
assert kept.mean() < 0.2
np.testing.assert_allclose(lines["GAP"][0], 1, atol=1e-3)
assert loss.mean() < loss_by_place.mean()

# %% [markdown]
# On the GAP network the mean is all there is. On the flattened one it keeps a tenth of the gradient's energy, the two maps mostly disagree on the
# peak, and the intervention sides with HiResCAM.
#
# **Half a cell of shift.** The other reason is the picture. A cell of 10×10 covers 4×4 pixels, and its centre is in the middle of them. Up-sampling with
# `align_corners=True`, as many implementations do, puts the centres of the outer cells on the corners of the image: maps are pulled
# outward by up to 1.5 pixels.


# %%
def aligned_corners(heat):
    at = jnp.linspace(0, 9, 40)
    low = jnp.clip(jnp.floor(at).astype(int), 0, 8)
    rows = lambda h: h[low] * (1 - (at - low))[:, None] + h[low + 1] * (at - low)[:, None]
    return rows(rows(heat).T).T


shifted = {}
for name, score in scores.items():
    small, centred = batch(jx.grad_cam(score, upsample=False)), batch(jx.grad_cam(score))
    shifted[name] = [np.nan_to_num(on_digit(m, masks)) for m in (centred, jax.vmap(aligned_corners)(small))]
    print(
        f"{name:8} peak within 2 px: centred {interval(shifted[name][0])}   aligned corners {interval(shifted[name][1])}"
    )
    assert shifted[name][0].mean() >= shifted[name][1].mean()

# %% [markdown]
# ## The localisation table
#
# All methods on both networks. Gradients carry a sign that means nothing for localisation, so their absolute value is measured; of all
# others the positive part. A method that gives no map for a scene (no positive evidence) counts as a miss there. CAM is not defined on the
# flattened network.


# %%
def all_methods(score):
    gradient = jx.gradient(score)
    smooth = jx.smoothgrad(gradient, n_samples=10, key=jax.random.key(0))
    return {
        "constant (control)": lambda image, _: jnp.ones(image.shape[:2]),
        "the image (control)": lambda image, _: image,
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
table = {}
for network, score in scores.items():
    for method, explain in all_methods(score).items():
        if (network, method) == ("flatten", "CAM"):
            continue
        table[network, method] = [np.nan_to_num(values) for values in measure(batch(explain), masks)]
    print(f"\n{network:22}" + "".join(f"{name:>17}" for name in measures))
    for (of, method), values in table.items():
        if of == network:
            print(f"{method:22}" + "".join(f"{interval(v):>17}" for v in values))

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
for network in networks:
    for method in ("integrated gradients", "LRP ε⁺-flat", "Grad-CAM++", "HiResCAM"):
        for measure in ("pointing", "IoU", "energy inside"):
            assert mean(network, method, measure) > mean(network, "constant (control)", measure), (
                network,
                method,
                measure,
            )

# %% [markdown]
# What the table says, and what it does not:
#
# * Among class activation maps the order follows the averaging: on the GAP network all are alike; on the flattened one those that keep the gradient
#   of each place (HiResCAM, LayerCAM, XGrad-CAM) or need none (Score-CAM, Eigen-CAM) stay on the digit, and Grad-CAM does not.
# * Maps of 10×10 cells cannot follow a stroke 3 pixels wide. Their IoU and energy are bounded by their resolution, not by what they know.
# * Whatever multiplies with the input is on ink nearly always, and most ink here is the digit's: compare with the control "the image". That input ×
#   gradient has more of its energy on the digit says that it tells digit from clutter; how far it is ahead of a map that shows places is a matter of the mask.
# * Localisation is not faithfulness. Eigen-CAM does well without asking for a class at all, and excitation backprop is good at finding the digit whatever
#   the network made of it. Where one object is in the picture, a good segmentation wins this game.
#
# ## When to use it, and when it misleads
#
# Grad-CAM is a good first look at networks that pool globally, where it is CAM. Where dense or attention layers follow the maps, use `hires_cam`: the
# same price, no average, and it sums to the score where what follows is affine. A map that is zero everywhere is an error here (NaN under `jit`), since
# min–max scaling would turn rounding noise into a picture.
#
# ## References
#
# * R. Selvaraju et al. *Grad-CAM: visual explanations from deep networks via gradient-based localization.* ICCV 2017.
# * R. Draelos, L. Carin. *Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks.* arXiv 2020.
# * P.-T. Jiang et al. *LayerCAM: exploring hierarchical class activation maps for localization.* IEEE TIP 30, 2021.
# * H. Wang et al. *Score-CAM: score-weighted visual explanations for convolutional neural networks.* CVPR workshops 2020.
# * J. Zhang et al. *Top-down neural attention by excitation backprop.* ECCV 2016. (The pointing game.)
