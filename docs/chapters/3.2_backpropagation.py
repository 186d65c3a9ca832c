# %% [markdown]
# # 3.2 Back-propagation: class model images and saliency maps
#
# **Two questions**, both answered by the gradient of a class score with respect to the image. What does the network
# consider a perfect 3? And which pixels of *this* image should change least to change its score most?
#
# As in every chapter the score $f_c$ is the **logit** of one class $c$. The network is the library's CNN with average
# pooling and without biases.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxplain as jx
from jaxplain import datasets, zoo

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
images, labels = digits.x_test, digits.y_test
net = zoo.load("cnn_avgpool")
score = jx.logit(net)
print(f"right on {zoo.accuracy(net, images, labels):.1%} of {len(labels):,} held-out digits")

# %% [markdown]
# ## The class model image
#
# Search for the image that maximizes
#
# $$J(x) = f_c(x) - \tfrac{\lambda}{2} \lVert x \rVert^2 \qquad \text{over } x \in [0, 1]^{784},$$
#
# by gradient ascent: Adam with a learning rate that falls to zero, each step followed by a projection onto the box. The
# ten classes are one `vmap`.


# %%
def class_models(start, optimizer, n_steps, lam, low=0.0, high=1.0):
    """Ten images, one for each class, and J at every step."""

    def climb(image, label):
        def objective(image):
            return score(image, label) - lam / 2 * jnp.sum(image**2)

        def step(carry, _):
            image, state = carry
            value, slope = jax.value_and_grad(objective)(image)
            update, state = optimizer.update(-slope, state)
            return (jnp.clip(image + update, low, high), state), value

        (image, _), values = jax.lax.scan(step, (image, optimizer.init(image)), length=n_steps)
        return image, values

    return jax.jit(jax.vmap(climb))(jnp.asarray(start), jnp.arange(10))


lam, n_steps = 1.0, 250
adam = optax.adam(optax.cosine_decay_schedule(0.03, n_steps))
mean_image = jnp.broadcast_to(digits.x_train.mean(0), (10, 28, 28, 1))
models, climbed = class_models(mean_image, adam, n_steps, lam)

# %% [markdown]
# ### Proof that it converged
#
# "It looks like a digit" is not a stopping rule. Here there is an exact one. Without biases the logit is homogeneous,
# $f_c(tx) = t f_c(x)$, so along the ray through $x$ the objective is the parabola $t f_c - \frac{\lambda}{2} t^2
# \lVert x \rVert^2$. At a maximum that has not run into the upper wall it must be at its top for $t = 1$:
#
# $$f_c(\hat x) = \lambda \lVert \hat x \rVert^2, \qquad J(\hat x) = \tfrac12 f_c(\hat x).$$
#
# (It also follows that $\lambda$ sets the brightness of the picture and nothing else.) The last column is another
# control: the increase in the second half of the optimization.

# %%
logit_of = jax.vmap(score)(models, jnp.arange(10))
certificate = logit_of / (lam * jnp.sum(models**2, (1, 2, 3)))
late = 1 - climbed[:, n_steps // 2] / climbed[:, -1]
print("class   logit   brightest pixel   f / (λ‖x‖²)   gained in the second half")
for c in range(10):
    print(f"{c:5} {logit_of[c]:7.2f} {models[c].max():17.2f} {certificate[c]:13.4f} {late[c]:27.1%}")
assert models.max() < 1  # the upper wall is not touched
assert jnp.abs(certificate - 1).max() < 2e-3
assert late.max() < 0.05

# %% [markdown]
# A common mistake is to climb without walls, with hardly any penalty, and to stop when the budget ends. Adam moves each
# pixel by about its learning rate per step, so the picture is then as large as the budget is long: twice the steps,
# twice the pixels, and an objective that grows and grows.

# %%
careless, growing = {}, {}
for budget in (100, 200, 400):
    careless[budget], growing[budget] = class_models(mean_image, optax.adam(1e-2), budget, 0.01, -np.inf, np.inf)
    print(
        f"{budget} steps: largest |pixel| {jnp.abs(careless[budget]).max():4.1f},"
        f" mean objective {growing[budget][:, -1].mean():6.1f}"
    )
assert growing[400][:, -1].mean() > 1.5 * growing[200][:, -1].mean()

figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), layout="constrained")
axes[0].plot(climbed.T, color="#4878a8", linewidth=1)
axes[0].set_title("λ = 1 in the box: ten classes converge", fontsize=9)
axes[1].plot(growing[400].T, color="#c44e52", linewidth=1)
axes[1].set_title("λ = 0.01, no box: set by the budget", fontsize=9)
for ax in axes:
    ax.set(xlabel="step", ylabel="objective J")
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
noise = 0.2 * jax.random.uniform(jax.random.key(1), mean_image.shape)
again, _ = class_models(noise, adam, n_steps, lam)
class_means = np.stack([digits.x_train[digits.y_train == c].mean(0) for c in range(10)])
rows = {
    "mean digit": class_means,
    "class model,\nfrom the mean image": models,
    "class model,\nfrom noise": again,
    "400 careless\nsteps": careless[400],
}
figure, axes = plt.subplots(4, 10, figsize=(9.6, 4.1), layout="compressed")
for row, (name, pictures) in zip(axes, rows.items(), strict=True):
    for c, (ax, picture) in enumerate(zip(row, pictures, strict=True)):
        low = -float(picture.max()) if picture.min() < 0 else 0
        ax.imshow(picture[..., 0], cmap="RdBu_r" if low else "gray_r", vmin=low)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(linewidth=0.4, color="0.7")
        if row is axes[0]:
            ax.set_title(str(c), fontsize=9)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
figure.suptitle("What the network takes for a digit (each panel on its own scale)", fontsize=10)
plt.show()

# %% [markdown]
# The climb ends at *a* maximum; from noise it ends at another. How much of either is a digit, and how much is specific
# to this network? Ask networks that were not optimized.

# %%
judges = {"this network": net, "CNN, max-pooling": zoo.load("cnn_maxpool"), "multilayer perceptron": zoo.load("mlp")}
print("mean probability of the intended class, and J reached")
for name, pictures in (("mean image", models), ("noise", again)):
    p = {
        judge: jax.nn.softmax(other(pictures))[jnp.arange(10), jnp.arange(10)].mean() for judge, other in judges.items()
    }
    reached = jax.vmap(score)(pictures, jnp.arange(10)) / 2
    print(f"from {name:10}  J {reached.mean():.2f}  " + "  ".join(f"{judge}: {q:.2f}" for judge, q in p.items()))

# %% [markdown]
# ## The saliency map
#
# For one image the score is nearly linear, $f_c(x + \delta) \approx f_c(x) + \nabla f_c(x) \cdot \delta$, so the size
# of each derivative ranks the pixels:
#
# $$R_i = \left| \frac{\partial f_c}{\partial x_i}(x) \right| .$$
#
# A common mistake is to differentiate the whole row of logits. Automatic differentiation takes a scalar; given a
# vector, many frameworks silently sum it, and the map becomes $|\nabla \sum_j f_j|$. No error, a plausible picture, and
# not a trace of the class in it. (JAX refuses to differentiate a vector, and so does this library.)

# %%
saliency = jx.saliency(score)


def mistaken(image, _label):  # the label is asked for, and never used
    return jnp.abs(jax.grad(lambda image: net(image[None]).sum())(image))


margin = jx.saliency(jx.logit(net, of="margin"))  # z_c minus the largest other logit

image = images[np.flatnonzero(labels == 3)[0]]
ask_all = {
    name: jax.jit(jax.vmap(method, in_axes=(None, 0)))(image, jnp.arange(10))
    for name, method in {"saliency |∇f_c|": saliency, "margin": margin, "mistaken |∇Σf|": mistaken}.items()
}
jx.plot.grid(
    ask_all,
    [image] * 10,
    titles=[f"class {c}" for c in range(10)],
    suptitle="One image, asked about each of ten classes",
)
plt.show()

# %%
for name, R in ask_all.items():
    flat = R.reshape(10, -1)
    unit = flat / jnp.linalg.norm(flat, axis=1, keepdims=True)
    between = (unit @ unit.T)[jnp.triu_indices(10, 1)]
    apart = jnp.abs(flat[:, None] - flat[None]).max()
    print(
        f"{name:16} largest difference between two classes {apart:.3f}, mean cosine between them {between.mean():.2f}"
    )
assert (ask_all["mistaken |∇Σf|"] == ask_all["mistaken |∇Σf|"][0]).all()
assert (ask_all["saliency |∇f_c|"] != ask_all["saliency |∇f_c|"][0]).any(axis=(1, 2, 3))[1:].all()

# %% [markdown]
# ### Proof against finite differences
#
# Nudge a pixel up and down and look at the logit: no gradients involved. In float64, for the ten most salient pixels of
# the stroke, the saliency is right and the mistaken map is not; and $\nabla \sum_j f_j$ is what it is, the sum of the
# ten gradients. (Of the stroke, because on the black background this network without biases sits exactly on the kinks
# of its ReLUs, where up and down differ and there is no derivative: the map there is one of several that could be
# drawn.)

# %%
with jax.enable_x64(True):
    exact = dataclasses.replace(net, params=jax.tree.map(lambda w: w.astype("float64"), net.params))
    x64, h = jnp.asarray(image, "float64"), 1e-7
    R = jx.saliency(jx.logit(exact))(x64, 3).ravel()
    top = jnp.argsort(jnp.where(x64.ravel() > 0, R, 0))[-10:]
    nudges = h * jax.nn.one_hot(top, 784, dtype="float64").reshape(10, 28, 28, 1)
    measured = jnp.abs(exact(x64 + nudges)[:, 3] - exact(x64 - nudges)[:, 3]) / (2 * h)
    all_at_once = jax.grad(lambda image: exact(image[None]).sum())(x64)
    one_by_one = jax.vmap(jx.gradient(jx.logit(exact)), in_axes=(None, 0))(x64, jnp.arange(10)).sum(0)
    errors = {
        "saliency against measurement, relative": jnp.abs(R[top] / measured - 1).max(),
        "mistaken map against measurement, relative": jnp.abs(jnp.abs(all_at_once).ravel()[top] / measured - 1).max(),
        "∇Σf − Σ∇f": jnp.abs(all_at_once - one_by_one).max(),
    }
    right, wrong, identity = (float(error) for error in errors.values())
for name, error in zip(errors, (right, wrong, identity), strict=True):
    print(f"{name:44} {error:.1e}")
assert right < 1e-6
assert wrong > 0.1
assert identity < 1e-10

# %%
ten = np.array([np.flatnonzero(labels == c)[0] for c in range(10)])
x, y = images[ten], labels[ten]
jx.plot.grid(
    {
        "saliency |∇f_c|": jax.jit(jax.vmap(saliency))(x, y),
        "margin": jax.jit(jax.vmap(margin))(x, y),
        "mistaken |∇Σf|": jax.jit(jax.vmap(mistaken))(x, y),
    },
    x,
    titles=[f"digit {c}" for c in y],
    suptitle="Saliency of the right class, of its margin, and of no class at all",
)
plt.show()

# %% [markdown]
# The mistaken maps look as good as the others, which is why the mistake lives on. What they show is the direction that
# raises all ten logits together, and the softmax does not even notice that.
#
# ## Does it depend on the class, and on what was learned?

# %%
some, truth = images[:200], labels[:200]
runner_up = np.where(np.arange(10) == truth[:, None], -np.inf, jax.jit(net)(some)).argmax(1)
blank = jx.saliency(jx.logit(zoo.randomized(net, jax.random.key(0))))
run, run_blank, run_mistaken = (jx.batched(m, batch_size=100, progress=False) for m in (saliency, blank, mistaken))
controls = {
    "right class": run(some, truth),
    "runner-up": run(some, runner_up),
    "random weights": run_blank(some, truth),
    "mistaken": run_mistaken(some, truth),
}
few = np.array([np.flatnonzero(truth == c)[0] for c in (2, 3, 4, 5, 7, 8)])
jx.plot.grid(
    {name: R[few] for name, R in controls.items() if name != "mistaken"},
    some[few],
    titles=[f"{c}, runner-up {other}" for c, other in zip(truth[few], runner_up[few], strict=True)],
    suptitle="Saliency, each row on its own scale",
)
plt.show()


# %%
def cosine(maps, others):
    u, v = (np.reshape(m, (len(m), -1)) for m in (maps, others))
    return (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)


for name, R in {**controls, "another digit": np.roll(controls["right class"], 1, axis=0)}.items():
    print(
        f"{name:15} cosine with the right class's map {cosine(controls['right class'], R).mean():.2f}, mean of 200 digits"
    )
assert cosine(controls["right class"], controls["runner-up"]).mean() < 0.9

# %% [markdown]
# Mind the size of these numbers. Absolute values share so much (they are positive, and large near the stroke) that maps
# of different classes, and even of random weights, are far from orthogonal. The signed gradient of
# [chapter 2.1](2.1_sensitivity_analysis.ipynb) separates them better.
#
# ## When to use it, and when it misleads
#
# Use a class model image to see what a network responds to beyond the data, with the objective, its convergence and a
# second network's opinion printed next to it; if it must look natural, it needs a prior, and then the prior paints too.
# Use saliency as the first look at one decision: one gradient, no settings. It misleads when read as evidence, for it
# has no sign and sums to nothing in particular; when the class was lost on the way to the derivative; and when two maps
# are compared by eye, since any two maps of the same digit look related. For the question "why $c$ rather than the
# runner-up?" take the margin.
#
# ## References
#
# * K. Simonyan, A. Vedaldi, A. Zisserman. *Deep inside convolutional networks: visualizing image classification models
#   and saliency maps.* arXiv:1312.6034, 2013.
# * D. Erhan, Y. Bengio, A. Courville, P. Vincent. *Visualizing higher-layer features of a deep network.* Technical
#   report 1341, University of Montreal, 2009.
# * J. Adebayo et al. *Sanity checks for saliency maps.* NeurIPS 2018.
# * D. Kingma, J. Ba. *Adam: a method for stochastic optimization.* ICLR 2015.
