# %% [markdown]
# # 3.4 Integrated gradients
#
# **Question.** How much does each pixel contribute to the difference between the score of this image and that of a
# baseline?
#
# Walk in a straight line from a baseline $b$ to the input $x$ and add up, pixel by pixel, what each one's slope
# contributes on the way:
#
# $$R_i = (x_i - b_i) \int_0^1 \frac{\partial f}{\partial x_i}\bigl(b + \alpha (x - b)\bigr)\, d\alpha,
# \qquad \sum_i R_i = f(x) - f(b).$$
#
# The second equation, *completeness*, is the fundamental theorem of calculus along the line. It holds for the integral;
# a computer has a sum over a few steps. So every call leaves a gap, $\sum_i R_i - (f(x) - f(b))$, and the gap can be
# printed. As in every chapter $f$ is the **logit** of one class unless the text says otherwise.

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
ten = np.array([np.flatnonzero(digits.y_test == c)[0] for c in range(10)])  # the first held-out digit of each class
x, y = digits.x_test[ten], digits.y_test[ten]

net = zoo.load("cnn_maxpool")
score = jx.logit(net)
explain = jax.jit(jax.vmap(jx.with_info(jx.integrated_gradients(score, n_steps=50))))  # baseline: black
R, info = explain(x, y)

print("digit     f(x)   f(black)       ΣR       gap   gap / Δf")
for c in range(10):
    delta = info.value[c] - info.baseline_value[c]
    print(
        f"{c:5} {info.value[c]:8.3f} {info.baseline_value[c]:10.3f} {R[c].sum():8.3f}"
        f" {info.gap[c]:9.4f} {info.gap[c] / delta:10.2%}"
    )

# %%
gradient = jax.jit(jax.vmap(jx.gradient(score)))(x, y)
jx.plot.grid(
    {"gradient": gradient, "input × gradient": gradient * x, "integrated\ngradients": R},
    x,
    titles=[f"digit {c}" for c in y],
    suptitle="The gradient at x, and the gradients on the way to x",
)
plt.show()

# %% [markdown]
# ## Proof on a network where the integral is known
#
# Without biases a ReLU network is a straight line on the ray from black: the integrand is constant and the integral is
# $x \cdot \nabla f(x)$ whatever the number of steps. In float64, on the CNN with average pooling and no biases:

# %%
with jax.enable_x64(True):
    bias_free = zoo.load("cnn_avgpool")
    bias_free = dataclasses.replace(bias_free, params=jax.tree.map(lambda w: w.astype("float64"), bias_free.params))
    f64, x64 = jx.logit(bias_free), x[:4].astype("float64")
    product = jax.jit(jax.vmap(jx.input_x_gradient(f64)))(x64, y[:4])
    for n in (1, 10):
        ig, exact = jax.jit(jax.vmap(jx.with_info(jx.integrated_gradients(f64, n_steps=n))))(x64, y[:4])
        error, gap = float(jnp.abs(ig - product).max()), float(jnp.abs(exact.gap).max())
        print(f"{n:2} steps: largest |IG − x·∇f| = {error:.1e}, largest completeness gap = {gap:.1e}")
        assert error < 1e-10
        assert gap < 1e-10

# %% [markdown]
# ## Which sum for the integral?
#
# With biases the slope jumps wherever the path crosses a ReLU's kink. Five quadrature rules, 10 to 200 gradients, 100
# held-out digits, on the multilayer perceptron with biases, which is quick enough to compute a reference with 5,000
# steps. Left: what completeness misses. Right: what the *map* misses, its relative distance to the reference.

# %%
mlp = jx.logit(zoo.load("mlp"))
images, labels = digits.x_test[:100], digits.y_test[:100]


def integrate(**settings):
    R, info = jax.jit(jax.vmap(jx.with_info(jx.integrated_gradients(mlp, **settings))))(images, labels)
    return np.asarray(R), info, np.abs(info.gap / (info.value - info.baseline_value))


def distance(R, to):
    return np.sqrt(((R - to) ** 2).sum((1, 2, 3)) / (to**2).sum((1, 2, 3)))


reference, _, gap = integrate(n_steps=5000, quadrature="midpoint", chunk_size=50)
print(f"reference, 5,000 steps: largest relative gap {gap.max():.1e}")
steps = (10, 20, 50, 200)
rules = ("left", "right", "trapezoid", "midpoint", "gauss_legendre")
gaps, distances = {}, {}
for rule in rules:
    for n in steps:
        R, _, gap = integrate(n_steps=n, quadrature=rule)
        gaps[rule, n], distances[rule, n] = np.median(gap), np.median(distance(R, reference))

# %%
print("median relative gap over 100 digits")
print("steps          " + "".join(f"{n:>10}" for n in steps))
for rule in rules:
    print(f"{rule:15}" + "".join(f"{gaps[rule, n]:10.1e}" for n in steps))
for n in steps:
    assert gaps["gauss_legendre", n] == min(gaps[rule, n] for rule in rules)

colors = dict(zip(rules, ("#d9a441", "#8c564b", "#9a9a9a", "#4878a8", "#c44e52"), strict=True))
figure, axes = plt.subplots(1, 2, figsize=(7.6, 3), sharey=True, layout="constrained")
titles = ("completeness: |gap| / |Δf|", "map: distance to 5,000 steps")
for ax, numbers, title in zip(axes, (gaps, distances), titles, strict=True):
    for rule in rules:
        values = [numbers[rule, n] for n in steps]
        ax.loglog(steps, values, "o-", color=colors[rule], markersize=3.5, linewidth=1.3, label=rule.replace("_", "–"))
    ax.set(xlabel="gradients per digit", xticks=steps, xticklabels=steps)
    ax.minorticks_off()
    ax.set_title(title + ", median of 100", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# All rules fall like one over the number of steps, which is all a kinked integrand allows; Gauss–Legendre, the default,
# starts and stays lowest. A common mistake is the right-hand sum without a look at its gap. On the other side of the
# scale, no fixed number of steps suits every digit, so ask for the accuracy instead:

# %%
R, info, gap = integrate(tol=1e-3, chunk_size=25)
used, count = np.unique(info.n_steps, return_counts=True)
for n, k in zip(used, count, strict=True):
    print(f"{n:5} steps were enough for {k:3} of 100 digits")
print(f"largest relative gap {gap.max():.1e}, median distance of the map {np.median(distance(R, reference)):.1e}")
assert bool(info.converged.all())
assert gap.max() <= 1.001e-3

# %% [markdown]
# ### A sum that is right by construction, and what that does not mean
#
# `complete=True` tilts the weights of the steps so that the sum is exactly $f(x) - f(b)$, at no cost. That mends the
# sum. Does it mend the pixels?

# %%
print("steps   gap       gap, complete=True   map distance   map distance, complete=True")
for n in (10, 50, 200):
    R, _, gap = integrate(n_steps=n, complete=True)
    plain, mended = distances["gauss_legendre", n], np.median(distance(R, reference))
    print(
        f"{n:5}   {gaps['gauss_legendre', n]:.1e}   {np.median(gap):.1e}              {plain:.1e}        {mended:.1e}"
    )
    assert np.median(gap) < 1e-6
    assert abs(mended / plain - 1) < 0.25  # neither better nor worse

# %% [markdown]
# It does not: the maps are as far from the integral as before. A gap of zero by construction certifies nothing, while a
# small gap reached by taking steps does. Use `complete=True` where something downstream needs the sum, `tol` where
# the pixels matter.
#
# ## Four baselines, four questions
#
# The baseline is half of the question: the map explains $f(x) - f(b)$. Where $x_i = b_i$ the answer is zero whatever
# the network does, so a black baseline can never credit an absent stroke, and a white one gives nothing to the
# brightest ink. With `jx.references` the question is averaged over several baselines, here 50 training digits. All four
# are complete, each for its own difference.

# %%
few = np.array([2, 3, 4, 7, 8])


@jax.jit
@jax.vmap
def from_baseline(image, label, baseline):  # a baseline may be an argument like any other
    return jx.with_info(jx.integrated_gradients(score, baseline=baseline, n_steps=50))(image, label)


pool = jx.integrated_gradients(score, baseline=jx.references(digits.x_train[:50]), n_steps=6)
points = {"black": 0 * x[few], "white": 0 * x[few] + 1, "mean image": 0 * x[few] + digits.x_train.mean(0)}
results = {name: from_baseline(x[few], y[few], point) for name, point in points.items()}
results["50 training\ndigits"] = jax.jit(jax.vmap(jx.with_info(pool)))(x[few], y[few])

maps = {}
for name, (R, info) in results.items():
    maps[name], delta = R, info.value - info.baseline_value
    gap = jnp.abs(info.gap / delta).max()
    values = ", ".join(f"{d:4.1f}" for d in delta)
    print(f"{name.replace(chr(10), ' '):19} f(x) − f(b) = {values}   largest relative gap {gap:.1e}")
    assert gap < 0.05

# %%
jx.plot.grid(maps, x[few], titles=[f"digit {c}" for c in few], suptitle="Integrated gradients from four baselines")
plt.show()

# %% [markdown]
# ## Logit or probability?
#
# The probability is often integrated instead. It saturates: along the path it leaps from nothing to one in a short
# stretch, and the stretches before and after count for nothing. The map then describes the network in that stretch, on
# images that are still dim, and the sum needs more steps to be right.

# %%
alphas = jnp.linspace(0, 1, 101)
prob = jx.logit(net, of="prob")
figure, axes = plt.subplots(1, 2, figsize=(7, 2.7), sharey=True, layout="constrained")
for ax, f, title in zip(axes, (score, prob), ("logit", "probability"), strict=True):
    path = jax.jit(jax.vmap(lambda image, label, f=f: jax.lax.map(lambda a: f(a * image, label), alphas)))
    curve = np.asarray(path(x, y))
    done = (curve - curve[:, :1]) / (curve[:, -1:] - curve[:, :1])
    ax.plot(alphas, done.T, color="#4878a8", linewidth=1)
    stretch = np.mean((done > 0.1) & (done < 0.9), axis=1)
    print(f"{title:11} share of the path that carries the middle 80 % of f(x) − f(b): {np.median(stretch):.0%}")
    ax.set(xlabel="α", title=f"{title} along the path, ten digits")
    ax.title.set_fontsize(9)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("share of f(x) − f(b)")
plt.show()

# %%
print("steps   median relative gap: logit   probability")
for n in (10, 50):
    both = []
    for of in ("logit", "prob"):
        f = jx.logit(zoo.load("mlp"), of=of)
        _, info = jax.jit(jax.vmap(jx.with_info(jx.integrated_gradients(f, n_steps=n))))(images, labels)
        both.append(np.median(np.abs(info.gap / (info.value - info.baseline_value))))
    print(f"{n:5} {both[0]:28.1e} {both[1]:13.1e}")
    assert both[0] < both[1]

ig_prob = jax.jit(jax.vmap(jx.integrated_gradients(prob, n_steps=100)))(x[few], y[few])
jx.plot.grid(
    {"logit": maps["black"], "probability": ig_prob},
    x[few],
    titles=[f"digit {c}" for c in few],
    suptitle="Integrated gradients from black, of two scores",
)
plt.show()

# %% [markdown]
# ## Does it depend on the class, and on what was learned?

# %%
sample, truth = digits.x_test[:20], digits.y_test[:20]
runner_up = np.where(np.arange(10) == truth[:, None], -np.inf, jax.jit(net)(sample)).argmax(1)


def score_of(image, params, label):  # the weights as an argument: one compiled program for both networks
    return net.apply(params, image[None])[0, label]


explain = jax.jit(jax.vmap(jx.integrated_gradients(score_of, n_steps=20), in_axes=(0, None, 0)))
controls = {
    "right class": explain(sample, net.params, truth),
    "runner-up": explain(sample, net.params, runner_up),
    "random weights": explain(sample, zoo.randomized(net, jax.random.key(0)).params, truth),
}
shown = np.array([np.flatnonzero(truth == c)[0] for c in (2, 3, 4, 7, 8)])
jx.plot.grid(
    {name: R[shown] for name, R in controls.items()},
    sample[shown],
    titles=[f"{c}, runner-up {other}" for c, other in zip(truth[shown], runner_up[shown], strict=True)],
    suptitle="Integrated gradients from black, each row on its own scale",
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
# As with every method that multiplies by $x - b$, the absolute values of a random network's map still look like the
# digit; the signed map does not.
#
# ## When to use it, and when it misleads
#
# Use it when you can name a baseline that means "nothing there", and want an attribution that adds up and does not
# depend on how the network is written. Report the baseline, the score and the gap with the picture. It misleads when
# the baseline was taken by habit: zero in an input that was centered is the mean image, and a ghost of that mean
# appears in every map. It is blind where $x_i = b_i$. It leaves the data on the way: half-bright digits are not digits,
# and on a saturating score most of the answer comes from them. And a gap forced to zero, or never looked at, says
# nothing on whether enough steps were taken.
#
# ## References
#
# * M. Sundararajan, A. Taly, Q. Yan. *Axiomatic attribution for deep networks.* ICML 2017.
# * P. Sturmfels, S. Lundberg, S.-I. Lee. *Visualizing the impact of feature attribution baselines.* Distill, 2020.
# * G. Erion, J. Janizek, P. Sturmfels, S. Lundberg, S.-I. Lee. *Improving performance of deep learning models with
#   axiomatic attribution priors and expected gradients.* Nature Machine Intelligence 3, 2021.
# * J. Adebayo et al. *Sanity checks for saliency maps.* NeurIPS 2018.
