# %% [markdown]
# # 3.5 SmoothGrad
#
# **Question.** What does the gradient look like in the neighborhood of this image, rather than exactly at it?
#
# The gradient of a ReLU network jumps whenever a unit switches on or off, which happens all the time: two images that
# look the same have different gradient maps. SmoothGrad averages the map $R$ over noisy copies of the image,
#
# $$\bar R(x) = \mathbb{E}_{\varepsilon} \, R(x + \varepsilon) \approx \frac1n \sum_{k=1}^n R(x + \varepsilon_k),
# \qquad \varepsilon_k \sim \mathcal N(0, \sigma^2).$$
#
# There are two settings, and they play different roles. The number of samples $n$ only decides how well the sum on the
# right estimates the expectation, and that has a standard error that can be printed. The noise $\sigma$ decides *which*
# expectation it is: it is part of the question. As in every chapter $f$ is the **logit** of one class.

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
few = np.array([np.flatnonzero(digits.y_test == c)[0] for c in (2, 3, 4, 5, 7, 8)])  # first held-out digit of a class
x, y = digits.x_test[few], digits.y_test[few]
names = [f"digit {c}" for c in y]
key = jax.random.key(0)
keys = jax.random.split(key, len(x))  # one key for each digit

net = zoo.load("cnn_maxpool")
score = jx.logit(net)
gradient = jx.gradient(score)
smooth = jx.smoothgrad(gradient, n_samples=50, noise=0.15)  # σ = 15 % of the image's range

plain = jax.jit(jax.vmap(gradient))(x, y)
R, info = jax.jit(jax.vmap(jx.with_info(smooth)))(x, y, key=keys)
jx.plot.grid(
    {"gradient": plain, "SmoothGrad,\n50 samples": R, "its standard\nerror": info.standard_error},
    x,
    titles=names,
    suptitle="The gradient, its local average, and what 50 samples leave uncertain",
)
plt.show()

# %% [markdown]
# ## Proofs
#
# In float64, on the library's multilayer perceptron: without noise SmoothGrad is the explanation itself; and the three
# statistics of the same draws, the mean (SmoothGrad), the mean of squares (squared SmoothGrad) and the variance
# (VarGrad), obey $\overline{R^2} = \bar R^2 + \frac{n-1}{n} \mathrm{Var}(R)$.

# %%
mlp = zoo.load("mlp")
with jax.enable_x64(True):
    exact = dataclasses.replace(mlp, params=jax.tree.map(lambda w: w.astype("float64"), mlp.params))
    gradient64, x64, n = jx.gradient(jx.logit(exact)), x.astype("float64"), 10

    @jax.jit
    def four(images, labels, keys):
        settings = {"n_samples": n, "chunk_size": n}
        still = jx.smoothgrad(gradient64, noise=0.0, **settings)
        averages = [method(gradient64, **settings) for method in (jx.smoothgrad, jx.smoothgrad_squared, jx.vargrad)]
        return [jax.vmap(explain)(images, labels, key=keys) for explain in (still, *averages)]

    still, mean, square, variance = four(x64, y, keys)
    errors = {
        "σ = 0: SmoothGrad − gradient": still - jax.vmap(gradient64)(x64, y),
        "squared − (mean² + (n−1)/n · variance)": square - (mean**2 + (n - 1) / n * variance),
    }
    for name, error in errors.items():
        print(f"{name:40} {float(jnp.abs(error).max()):.1e}")
        assert float(jnp.abs(error).max()) < 1e-10

# %% [markdown]
# ## How many samples?
#
# By eye, little changes after ten. By numbers: the standard error that `with_info` reports, against the distance to a
# reference of 2,000 other samples, for ten held-out digits and the multilayer perceptron. A mean of independent
# draws must improve like $n^{-1/2}$, a slope of −½ on logarithmic axes, whatever the network.

# %%
images, labels = digits.x_test[:10], digits.y_test[:10]


def many(n, seed):
    explain = jx.with_info(jx.smoothgrad(jx.gradient(jx.logit(mlp)), n_samples=n, noise=0.15, chunk_size=25))
    R, info = jax.jit(jax.vmap(explain))(images, labels, key=jax.random.split(jax.random.key(seed), len(images)))
    return np.reshape(R, (len(R), -1)), np.reshape(info.standard_error, (len(R), -1))


def cosine(u, v):
    return (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)


reference, reference_error = many(2000, seed=1)
samples = np.array([5, 20, 100, 500])
reported, actual, similar = [], [], []
for n in samples:
    R, error = many(int(n), seed=2)
    size = np.linalg.norm(reference, axis=1)
    reported.append(np.mean(np.linalg.norm(error, axis=1) / size))
    actual.append(np.mean(np.linalg.norm(R - reference, axis=1) / size))
    similar.append(cosine(R, reference).mean())

slope = np.polyfit(np.log(samples), np.log(reported), 1)[0]
print("samples                 " + "".join(f"{n:8}" for n in samples))
print("reported standard error " + "".join(f"{e:8.3f}" for e in reported) + f"   slope {slope:.3f}")
print("distance to reference   " + "".join(f"{e:8.3f}" for e in actual))
print("cosine with reference   " + "".join(f"{c:8.3f}" for c in similar))
assert abs(slope + 0.5) < 0.03
combined = np.hypot(reported, np.mean(np.linalg.norm(reference_error, axis=1) / size))  # the reference has noise too
assert np.allclose(actual, combined, rtol=0.3)

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
axes[0].loglog(samples, reported, "o-", color="#4878a8", markersize=3.5, label="reported standard error")
axes[0].loglog(samples, actual, "s", color="#c44e52", markersize=4, fillstyle="none", label="distance to the reference")
axes[0].loglog(samples, reported[0] * np.sqrt(samples[0] / samples), color="0.6", linestyle=":", label="slope −½")
axes[0].set_title("error relative to the map", fontsize=9)
axes[0].legend(frameon=False, fontsize=8)
axes[1].semilogx(samples, similar, "o-", color="#4878a8", markersize=3.5)
axes[1].set_title("cosine with the reference", fontsize=9)
axes[1].set_ylim(None, 1)
for ax in axes:
    ax.set(xlabel="samples n", xticks=samples, xticklabels=samples)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_yticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
for axis in (axes[0].xaxis, axes[0].yaxis, axes[1].xaxis):
    axis.set_minor_locator(plt.NullLocator())
plt.show()

# %% [markdown]
# The reported error predicts the actual one, so it can be trusted where no reference is at hand. Ten times the samples
# buy a third of the error; the few dozen samples that are usual give a map that is right to some five per cent.
#
# ## How much noise?
#
# $\sigma$ is not a matter of accuracy, so there is no reference to be close to. What does it do to the explanation? The
# noise may be a traced value, so one compiled function serves the whole sweep, here on the CNN.

# %%
sigmas = (0.0, 0.05, 0.15, 0.3, 0.5, 1.0)


def score_of(image, label, params):  # the weights as an argument: one compiled program for other weights too
    return net.apply(params, image[None])[0, label]


@jax.jit
def at_noise(params, sigma, images, labels, keys):
    explain = jx.smoothgrad(jx.gradient(score_of), n_samples=50, noise=sigma)
    return jax.vmap(lambda image, label, key: explain(image, label, params, key=key))(images, labels, keys)


sweep = {sigma: at_noise(net.params, sigma, x, y, keys) for sigma in sigmas}
jx.plot.grid({f"σ = {s:.0%}": R for s, R in sweep.items()}, x, titles=names, suptitle="SmoothGrad, 50 samples")
plt.show()

# %% [markdown]
# Three numbers, each a mean cosine over the digits above:
#
# * *stable*: between the maps of the image and of the same image under 2 % noise, with other draws (should be high);
# * *image-blind*: between the maps of the image and of another image, for the same class (should be low);
# * *class-blind*: between the maps of the right class and of the runner-up (should be low);
#
# and the accuracy of the network on noisy digits tells whether it still recognizes what it is asked about.

# %%
logits = np.array(jax.jit(net)(x))
runner_up = np.where(np.arange(10) == y[:, None], -np.inf, logits).argmax(1)
nudged = x + 0.02 * jax.random.normal(key, x.shape)
more_keys = jax.random.split(jax.random.key(1), len(x))
variants = {
    "stable": (nudged, y, more_keys),
    "image-blind": (x[::-1], y, more_keys),
    "class-blind": (x, runner_up, more_keys),
}
curves = {
    name: [
        cosine(np.reshape(R, (len(x), -1)), np.reshape(at_noise(net.params, s, *arguments), (len(x), -1))).mean()
        for s, R in sweep.items()
    ]
    for name, arguments in variants.items()
}
images, labels = digits.x_test[:200], digits.y_test[:200]
seen = jax.jit(lambda s: net(images + s * jax.random.normal(key, images.shape)).argmax(1))
curves["accuracy"] = [np.mean(seen(s) == labels) for s in sigmas]

assert curves["stable"][2] > curves["stable"][0]
assert curves["image-blind"][-1] > 2 * curves["image-blind"][2]

print("σ / range    " + "".join(f"{s:7.2f}" for s in sigmas))
for name, curve in curves.items():
    print(f"{name:13}" + "".join(f"{c:7.2f}" for c in curve))

figure, ax = plt.subplots(figsize=(6, 2.9), layout="constrained")
ax.axvspan(0.1, 0.2, color="0.93", zorder=0)
colors = {"accuracy": "0.6", "stable": "#4878a8", "image-blind": "#c44e52", "class-blind": "#d9a441"}
for name, color in colors.items():
    ax.plot(sigmas, curves[name], marker="o", color=color, markersize=3.5, label=name)
ax.set(xlabel="σ / range of the image", ylabel="mean cosine, accuracy", ylim=(None, 1.02))
ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# A little noise buys the stability; past 15 % there is none left to gain. What keeps growing is the price: the network
# no longer recognizes what it is asked about, and the map turns into a template of the class that hardly depends on the
# image. The gray band, 10 % to 20 % of the range, is the usual choice, and here it is a sound one.

# %% [markdown]
# ### σ is relative to the range of the image
#
# "σ = 0.2" means nothing before the units of the image are known. The library's `noise` is a share of each image's
# range (`relative=False` for units of x). Proof: the same network fed with pixels from 0 to 255 gives the same map.

# %%
f = jx.logit(mlp)
on_bytes = jx.smoothgrad(jx.gradient(lambda image, label: f(image / 255, label)), n_samples=10)
here = jax.vmap(jx.smoothgrad(jx.gradient(f), n_samples=10))(x, y, key=keys)
same = jax.vmap(on_bytes)(255 * x, y, key=keys)
error = float(jnp.linalg.norm(255 * same - here) / jnp.linalg.norm(here))
print(f"relative difference of the two maps: {error:.1e} (float32)")
assert error < 1e-2

# %% [markdown]
# ## Other statistics, other explanations
#
# VarGrad keeps what averaging throws away, the variance; squared SmoothGrad mixes both, as proved above. And because an
# explainer is a function, `smoothgrad` goes around any of them, such as integrated gradients.

# %%
n = 50
mean = sweep[0.15]
variance = jax.jit(jax.vmap(jx.vargrad(gradient, n_samples=n, noise=0.15)))(
    x, y, key=keys
)  # the same keys: the same draws
integrated = jx.smoothgrad(jx.integrated_gradients(score, n_steps=6), n_samples=25, noise=0.15)
maps = {
    "SmoothGrad": mean,
    "VarGrad": variance,
    "squared\nSmoothGrad": mean**2 + (n - 1) / n * variance,  # = jx.smoothgrad_squared, as proved
    "SmoothGrad of\nint. gradients": jax.jit(jax.vmap(integrated))(x, y, key=keys),
}
jx.plot.grid(maps, x, titles=names, suptitle="Statistics of noisy gradients, and noise around another method")
plt.show()

# %% [markdown]
# ## Does it depend on the class, and on what was learned?


# %%
controls = {
    "right class": sweep[0.15],
    "runner-up": at_noise(net.params, 0.15, x, runner_up, keys),
    "random weights": at_noise(zoo.randomized(net, key).params, 0.15, x, y, keys),
}
jx.plot.grid(
    controls,
    x,
    titles=[f"{c}, runner-up {other}" for c, other in zip(y, runner_up, strict=True)],
    suptitle="SmoothGrad, each row on its own scale",
)
plt.show()

right = controls["right class"].reshape(len(x), -1)
for name, R in controls.items():
    R = R.reshape(len(x), -1)
    print(f"{name:15} cosine with the right class's map {np.mean(cosine(right, R)):5.2f}")
assert np.mean(cosine(right, controls["random weights"].reshape(len(x), -1))) < 0.3

# %% [markdown]
# ## When to use it, and when it misleads
#
# Use it around a gradient-based map that is too rough to read, and report $n$ with the standard error and $\sigma$ with
# its unit. It misleads when a smoother picture is taken for a truer one: the average is an explanation of the noisy
# neighborhood, in which there are no clean digits, and with enough noise it is a class template that hardly depends on
# the image. It cannot mend what is wrong with the inner map: a SmoothGrad of a map that ignores the class ignores it
# too. VarGrad and squared SmoothGrad have no sign, so they show where the map varies or is large, never for or against.
# A common mistake is a $\sigma$ in absolute units, copied from
# images scaled otherwise; another is choosing $n$ by looking.
#
# ## References
#
# * D. Smilkov, N. Thorat, B. Kim, F. Viégas, M. Wattenberg. *SmoothGrad: removing noise by adding noise.*
#   arXiv:1706.03825, 2017.
# * J. Adebayo, J. Gilmer, I. Goodfellow, B. Kim. *Local explanation methods for deep neural networks lack sensitivity
#   to parameter values.* ICLR workshop, 2018.
# * S. Hooker, D. Erhan, P.-J. Kindermans, B. Kim. *A benchmark for interpretability methods in deep neural networks.*
#   NeurIPS 2019.
# * J. Adebayo et al. *Sanity checks for saliency maps.* NeurIPS 2018.
