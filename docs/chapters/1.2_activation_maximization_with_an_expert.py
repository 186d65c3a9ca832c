# %% [markdown]
# # 1.2 Activation maximization with an expert
#
# **Question.** What image of a digit does a network look for, among images that are digits?
#
# In [1.1](1.1_activation_maximization.ipynb) a prototype was adversarial noise, the class mean, or something in
# between. What was missing is an *expert*, a density $p(x)$ of real images:
#
# $$x^\star_c = \arg\max_x\; \log p(c \mid x) + \beta\, \log p(x).$$
#
# With $\beta = 1$ that is the most probable image of the class, for $p(x \mid c) \propto p(c \mid x)\, p(x)$. The
# experts here are a Gaussian and a restricted Boltzmann machine (RBM) over binary images,
#
# $$p(x) = \frac{e^{-F(x)}}{Z}, \qquad F(x) = -b \cdot x - \sum_j \log\big(1 + e^{c_j + \sum_i W_{ij} x_i}\big).$$
#
# The maximization does not need $Z$.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxplain as jx
from jaxplain import datasets, experts, prototypes, zoo

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
classes = jnp.arange(10)
titles = [f"{c}" for c in range(10)]
means = jnp.stack([digits.x_train[digits.y_train == c].mean(0) for c in range(10)])
train = jnp.asarray(digits.x_train)

net, second = zoo.load("mlp"), zoo.load("cnn_maxpool")  # the second is of another architecture, and is never optimized
score = jx.logit(net, of="log_prob")
rbm = zoo.load_expert(
    "rbm"
)  # experts.rbm(digits.x_train, key=jax.random.key(0)): 30 epochs of persistent contrastive divergence

# %% [markdown]
# ## Is it an expert?
#
# Three questions. Is the gradient right? We compare it with central differences, in float64. Are held-out digits
# probable? We estimate $\log Z$ by annealed importance sampling, with a 95 % interval (of this estimate alone), and
# compare with the model in which all pixels are independent coins. And does it dream of digits? We run Gibbs chains
# that start from independent coins with the pixels' means.

# %%
with jax.enable_x64(True):
    wide = jax.tree.map(lambda w: w.astype("float64"), rbm)
    x, step = jnp.asarray(digits.x_test[0], "float64"), jax.random.normal(jax.random.key(0), (28, 28, 1), "float64")
    slope = jnp.vdot(jax.grad(wide.free_energy)(x), step)
    difference = (wide.free_energy(x + 1e-5 * step) - wide.free_energy(x - 1e-5 * step)) / 2e-5
    error = float(jnp.abs(slope - difference) / jnp.abs(slope))
print(f"gradient of the free energy against central differences: {error:.0e} relative")
assert error < 1e-7

binary = jnp.round(digits.x_test)
log_z = experts.log_partition(jax.random.key(1), rbm, n_chains=100, n_temperatures=2000)
free_energy = jax.jit(jax.vmap(rbm.free_energy))
log_likelihood = -free_energy(binary).mean() - log_z.estimate
low, high = (-free_energy(binary).mean() - bound for bound in (log_z.high, log_z.low))
frequency = (np.round(digits.x_train).sum(0) + 0.5) / (len(train) + 1)
coins = jnp.mean(jnp.sum(binary * np.log(frequency) + (1 - binary) * np.log(1 - frequency), (1, 2, 3)))
print(f"held-out log-likelihood, nats: RBM {log_likelihood:.1f} [{low:.1f}, {high:.1f}], coins {coins:.1f}")
assert low > coins + 80

starts = jax.random.bernoulli(jax.random.key(2), train.mean(0), (10, 28, 28, 1)).astype("float32")
dream = jax.jit(jax.vmap(lambda key, x: rbm.gibbs(key, x, 1000)))
dreams = dream(jax.random.split(jax.random.key(3), 10), starts)
jx.plot.images({"start": starts, "after 1,000 rounds": dreams}, suptitle="What the expert dreams of")
plt.show()

# %% [markdown]
# ## The strength of the expert
#
# Start from a dark gray image, and let pixels stay between 0 and 1.

# %%
box = prototypes.box(0, 1)
dark = jnp.full((28, 28, 1), 0.1)
gaussian = experts.gaussian(digits.x_train, n_components=100)
log_probs = {"Gaussian": gaussian.log_prob, "RBM": lambda x: -rbm.free_energy(x)}


def with_expert(log_prob, strength, label, start, key=None, transforms=()):
    run = jx.activation_maximization(
        score,
        penalties={"expert": prototypes.expert(strength, log_prob)},
        parametrization=box,
        transforms=transforms,
        optimizer=optax.adam(0.1),
        n_steps=300,
    )
    return run(start, label, key=key)


rows = {}
for name, log_prob in log_probs.items():
    for strength in (1e-3, 1e-2, 1e-1, 1.0):
        run = functools.partial(with_expert, log_prob, strength, start=dark)
        rows[f"{name}, β = {strength:g}"] = jax.jit(jax.vmap(run))(classes).x
jx.plot.images(rows, titles=titles, suptitle="From dark gray")
plt.show()

# %% [markdown]
# The Gaussian makes blurred images, which become more alike the stronger it is. With a weak RBM noise remains, with a
# strong one the class is gone, and in between there are specks. No strength is right, and the reason is worth knowing:

# %%
empty = jnp.zeros((28, 28, 1))
typical = -np.percentile(free_energy(binary), [95, 50, 5]) - log_z.estimate
print(f"log p of held-out digits, nats: 5 % {typical[0]:.0f}, median {typical[1]:.0f}, 95 % {typical[2]:.0f}")
print(f"log p of the empty image:       {-rbm.free_energy(empty) - log_z.estimate:.0f}")
over_strong = rows["RBM, β = 1"]
assert -rbm.free_energy(empty) - log_z.estimate > typical[2]
assert over_strong.mean() < 0.02

# %% [markdown]
# **An image that never occurs is more probable than 95 % of digits.** There is only one empty image, while there are
# very many digits, each improbable. Samples are found where probability is *mass*, in the typical set; a maximum of
# density is elsewhere. So the goal should not be *the* maximum of $p(x \mid c)$, but a maximum close to digits, and
# there are many.
#
# ## Start where digits are
#
# The expert provides such starts: coins with the class mean's probabilities, cleaned up by 20 rounds of Gibbs sampling.
# The nearest maximum of $\log p(c|x) + \beta \log p(x)$ under small movements of the image, at a $\beta$ that lets the
# class decide, is the prototype. Other coins give other prototypes.

# %%
N_MODES = 4
mean_keys, gibbs_keys, run_keys = (
    jax.random.split(key, (N_MODES, 10)) for key in jax.random.split(jax.random.key(4), 3)
)
shaken = (prototypes.jitter(2), prototypes.noise(0.3))


def dreamt(mean, mean_key, gibbs_key):
    coins = jax.random.bernoulli(mean_key, mean).astype(jnp.float32)
    return jnp.clip(rbm.visible(rbm.hidden(rbm.gibbs(gibbs_key, coins, 20))), 0.05, 0.95)


start = jax.jit(jax.vmap(jax.vmap(dreamt), in_axes=(None, 0, 0)))(means, mean_keys, gibbs_keys)
run = functools.partial(with_expert, log_probs["RBM"], 0.03, transforms=shaken)
climb = jax.jit(jax.vmap(jax.vmap(lambda start, label, key: run(label, start, key)), in_axes=(0, None, 0)))
found = climb(start, classes, run_keys).require_finite()
jx.plot.images(
    {f"start {i + 1}": images for i, images in enumerate(start[:2])}
    | {f"prototype {i + 1}": images for i, images in enumerate(found.x)},
    titles=titles,
    suptitle="Starts, and the prototypes of an RBM",
)
plt.show()

# %% [markdown]
# ## Are they any good?
#
# * **p(c|x)** of the network; **second**, that of another network, its mean over all prototypes, and the **least**. It
#   is of another architecture, but was trained on the same digits.
# * **from ref.** and **apart**: the least distance (root mean square over pixels) from a reference, the class mean or
#   $G$ of the mean code, and between two prototypes of a class; **nearest**: the mean distance to the nearest training
#   image.
# * **log p** under an independent masked autoencoder (trained on the same 9,000 digits), of the image rounded to black
#   and white. **usual**: the share inside the 5–95 % range of 1,000 held-out digits, so 0.9 is what digits have; **of
#   class**: the same, with the range of the digits of that class; **drawn**: as "usual", with pixels drawn as coins of
#   their gray value, for prototypes and for held-out digits, which punishes gray where digits have none. Rounding turns
#   noise below ½ into an empty image and a blend into a clean shape: so read the columns together.

# %%
judge = zoo.load_expert("made")
log_prob = jax.jit(lambda images: jax.vmap(judge.log_prob)(jnp.clip(images.reshape(-1, 28, 28, 1), 0, 1)))
held_out = log_prob(binary)
usual = np.percentile(held_out, [5, 95])
own = np.transpose([np.percentile(held_out[digits.y_test == c], [5, 95]) for c in range(10)])


def coins(images):
    return jax.random.bernoulli(jax.random.key(9), jnp.clip(images, 0, 1)).astype(jnp.float32)


usual_drawn = np.percentile(log_prob(coins(digits.x_test)), [5, 95])


def inside(values, low, high):
    return jnp.mean((values >= low) & (values <= high))


def rms(x, y):
    return jnp.sqrt(jnp.mean(jnp.square(x - y), axis=(-3, -2, -1)))


@jax.jit
def nearest(images, train):
    """The training image nearest to each image."""
    flat = images.reshape(-1, 28, 28, 1)
    return jax.lax.map(lambda x: train[jnp.argmin(rms(x, train))], flat).reshape(images.shape)


HEADER = ("p(c|x)", "second", "least", "from ref.", "apart", "nearest", "log p", "usual", "of class", "drawn")


def row(name, images, reference=means):
    """A line of the table; `images` is (modes, classes, 28, 28, 1)."""
    p, q = (jax.nn.softmax(jax.vmap(network)(images))[:, classes, classes] for network in (net, second))
    apart = rms(images[:, None], images[None])[jnp.triu_indices(len(images), 1)]
    judged, drawn = (log_prob(pixels(images)).reshape(-1, 10) for pixels in (jnp.round, coins))
    values = (
        p.mean(),
        q.mean(),
        q.min(),
        rms(images, reference).min(),
        apart.min() if len(images) > 1 else jnp.nan,
        rms(images, nearest(images, train)).mean(),
        judged.mean(),
        inside(judged, *usual),
        inside(judged, *own),
        inside(drawn, *usual_drawn),
    )
    print(f"{name:29}" + "".join(f"{float(value):10.3g}" for value in values))
    return dict(zip(HEADER, map(float, values), strict=True))


def header():
    print(f"{'':29}" + "".join(f"{name:>10}" for name in HEADER))


held = jnp.stack([digits.x_test[digits.y_test == c][:N_MODES] for c in range(10)], 1)
alone = functools.partial(with_expert, log_probs["RBM"], 0.0, transforms=shaken)
without = jax.jit(jax.vmap(jax.vmap(lambda start, label, key: alone(label, start, key)), in_axes=(0, None, 0)))
header()
row("β = 0.001, from gray", rows["RBM, β = 0.001"][None])
row("β = 1, from gray", rows["RBM, β = 1"][None])
row("Gaussian, β = 0.01", rows["Gaussian, β = 0.01"][None])
row("class mean", means[None])
row("start", start)
control = row("from the start, β = 0", without(start, classes, run_keys).x)
result = row("RBM prototypes", found.x)
row("held-out digits", held)
assert result["second"] > 0.9
assert result["from ref."] > 0.05
assert result["apart"] > 0.05
assert usual[0] < result["log p"] < usual[1]
assert result["usual"] > max(0.8, control["usual"] + 0.1)

# %% [markdown]
# The line "from the start, β = 0" is the control: the same starts without the expert. It convinces the second network
# as well, and its prototypes are as far apart: those columns come from the start and the movements. The expert makes
# them as probable as digits. Without it two in five are not, and none is if it is rounded to black and white.
#
# They are not perfect. They are nearly binary, because $-F$ is convex, so its maxima over a box are at corners. They
# are more probable than digits of their class, because they are maxima: three in eight are outside of the range of the
# class. Some are in pieces, because their start was poor; one of forty fails the second network. The expert of the
# [next chapter](1.3_activation_maximization_in_code_space.ipynb) solves the first two problems.
#
# ## See also
#
# * `help(jx.experts)`: densities and how they are trained; `help(jx.experts.rbm)`, `help(jx.experts.log_partition)`.
# * `jx.experts.rbm(..., visible="gaussian")`: the machine of real-valued pixels, $F(x) = \tfrac12 \lVert (x - b)/\sigma
#   \rVert^2 - \sum_j \log(1 + e^{\ldots})$.
#
# **References.** Montavon, Samek, Müller: Methods for interpreting and understanding deep neural networks, 2018
# (section 3.2). Hinton: Training products of experts by minimizing contrastive divergence, 2002. Tieleman: Training
# restricted Boltzmann machines using approximations to the likelihood gradient, ICML 2008. Salakhutdinov, Murray: On
# the quantitative analysis of deep belief networks, ICML 2008. Germain, Gregor, Murray, Larochelle: MADE, ICML 2015.
