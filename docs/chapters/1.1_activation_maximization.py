# %% [markdown]
# # 1.1 Activation maximization
#
# **Question.** What image does a network look for when it says "3"?
#
# We look for an image $x$ that makes the class likely, and that is not far from real images:
#
# $$x^\star_c = \arg\max_x\; \log p(c \mid x) - \frac{\lambda}{2} \lVert x - \bar x_c \rVert_2^2,$$
#
# with $\bar x_c$ the mean training image of the class. Up to a constant, the second term is the log density of a
# Gaussian, the simplest of the *experts* of [the next chapter](1.2_activation_maximization_with_an_expert.ipynb). The
# optimization is one compiled loop, here vmapped over ten classes and six strengths $\lambda$.

# %%
import functools
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxplain as jx
from jaxplain import datasets, prototypes, zoo

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
classes = jnp.arange(10)
titles = [f"{c}" for c in range(10)]
means = jnp.stack([digits.x_train[digits.y_train == c].mean(0) for c in range(10)])
blank = jnp.zeros((28, 28, 1))

net, second = zoo.load("mlp"), zoo.load("cnn_maxpool")  # the second is of another architecture, and is never optimized
score = jx.logit(net, of="log_prob")
confidence = jx.logit(second, of="prob")


def maximize(strength, label, watch=None):
    run = jx.activation_maximization(
        score,
        penalties={"l2": prototypes.l2(strength, center=lambda label: means[label])},
        optimizer=optax.adam(0.01),
        n_steps=600,
        watch=watch,
    )
    return run(blank, label)


strengths = jnp.array([0.0, 1e-3, 3e-3, 1e-2, 1e-1, 1.0])
sweep = jax.jit(jax.vmap(jax.vmap(maximize, in_axes=(None, 0)), in_axes=(0, None)))(strengths, classes)
sweep.require_finite()
jx.plot.images(
    {f"λ = {strength:g}": images for strength, images in zip(strengths, sweep.x, strict=True)} | {"class mean": means},
    titles=titles,
    limits=(-0.2, 1),
    suptitle="From adversarial noise to the class mean",
)
plt.show()

# %% [markdown]
# ## What do these pictures prove?
#
# Less than it seems. For each strength, the table shows the following numbers for the ten classes: the probability that
# the network gives; the probability that a second network gives, which has another architecture but was trained on the
# same digits; the distance (root mean square over pixels) of the prototype from the class mean, and from the nearest of
# the 9,000 training images; and its log-probability, rounded to black and white, under an independent density model, a
# masked autoencoder, with the share inside the 5–95 % range of 1,000 held-out digits ("usual"), and of the held-out
# digits of the class ("of class").

# %%
judge = zoo.load_expert("made")
log_prob = jax.jit(jax.vmap(lambda x: judge.log_prob(jnp.round(jnp.clip(x, 0, 1)))))
held_out = log_prob(digits.x_test)
low, high = np.percentile(held_out, [5, 95])
own_low, own_high = np.transpose([np.percentile(held_out[digits.y_test == c], [5, 95]) for c in range(10)])
train = jnp.asarray(digits.x_train)


def rms(x, y):
    return jnp.sqrt(jnp.mean(jnp.square(x - y), axis=(-3, -2, -1)))


@jax.jit
def distances(images, train):
    return jax.lax.map(lambda x: jnp.min(rms(x, train)), images)


def nearest(images):
    return distances(images, train)


def row(name, images):
    p, q = (jnp.diagonal(jax.nn.softmax(network(images))) for network in (net, second))
    judged = log_prob(images)
    usual = jnp.mean((judged >= low) & (judged <= high))
    own = jnp.mean((judged >= own_low) & (judged <= own_high))
    print(
        f"{name:12}{p.mean():9.3f}{q.mean():9.3f}{rms(images, means).mean():12.3f}{nearest(images).mean():10.3f}"
        f"{judged.mean():10.0f}{usual:8.0%}{own:10.0%}"
    )
    return q


print(f"{'':12}{'p(c|x)':>9}{'second':>9}{'from mean':>12}{'nearest':>10}{'log p(x)':>10}{'usual':>8}{'of class':>10}")
for strength, images in zip(strengths, sweep.x, strict=True):
    q = row(f"λ = {strength:g}", images)
    if strength == 0:
        adversarial = q
row("class mean", means)
others = nearest(digits.x_test[:200]).mean()
print(
    f"{'held-out':12}{'':9}{'':9}{'':12}{others:10.3f}{held_out.mean():10.0f}{0.9:8.0%}{0.9:10.0%}   ({low:.0f} to {high:.0f} nats)"
)

everyone = {
    "second network": jax.vmap(lambda x: jnp.diagonal(jax.nn.softmax(second(x)))),
    "distance to the nearest": jax.vmap(nearest),
    "log p(x)": jax.vmap(log_prob),
}
for name, measure in everyone.items():
    print(f"\n{name + ', each class':34}" + "".join(f"{c:>7}" for c in range(10)))
    for strength, values in zip(strengths, measure(sweep.x), strict=True):
        print(f"{f'λ = {strength:g}':34}" + "".join(f"{value:7.3g}" for value in values))

distance = rms(sweep.x, means).mean(-1)
assert (jnp.exp(sweep.score) > 0.99).all()
assert (distance[:-1] > distance[1:]).all()
assert adversarial.mean() < 0.5
assert distance[-2] < 0.005
assert distance[-1] < 0.002

# %% [markdown]
# All of them satisfy the network: $p(c \mid x) > 0.99$ for each class and strength. So a high probability proves
# nothing, and neither does the look of a picture.
#
# * With $\lambda = 0$ the prototype is an adversarial pattern. It answers the question, because the network does find
#   digits there; the second network does not. (Other pairs of networks do share such patterns, so a second network
#   alone is not a proof.) Rounded, it is an empty image, which is more probable than any digit.
# * With $\lambda \ge 0.1$ it is the class mean, to 0.004 per pixel. $\nabla \log p(c|x)$ vanishes where the network is
#   sure, and it is sure at eight of the ten means, or very close to them. The tutorial that this series follows ([1.1
#   of Understanding-NN](https://github.com/1202kbs/Understanding-NN)) is here: its objective is λ = 1 for each image.
#   And the mean is a blend: rounded, it is smoother than nearly all digits of its class, and more probable.
# * In between, at λ = 0.01, the picture is the class mean with a slight pattern on it. No number in the table tells us
#   which distance is right.
#
# The distance to the nearest training image does not measure quality either: it is 0.15 for adversarial noise, and 0.17
# for class means and held-out digits alike.
#
# ## Proofs
#
# Closed forms: a linear score $w \cdot x$ ends at $w/\lambda$. And a prototype of the network is where the two forces
# are equal, $\nabla \log p(c|x) = \lambda\,(x - \bar x_c)$, which a quasi-Newton optimizer reaches to the accuracy of
# float64.

# %%
with jax.enable_x64(True):
    w = jax.random.normal(jax.random.key(0), (784,), jnp.float64)
    linear = jx.activation_maximization(
        lambda x: w @ x, penalties={"l2": prototypes.l2(0.5)}, optimizer=optax.sgd(1.0), n_steps=100
    )(jnp.zeros(784))
    exact = float(jnp.abs(linear.x - w / 0.5).max())

    wide = jax.tree.map(lambda p: p.astype("float64"), net.params)
    score64 = jx.logit(functools.partial(net.apply, wide), of="log_prob")
    pulled = jx.activation_maximization(
        score64,
        penalties={"l2": prototypes.l2(0.1, center=lambda label: means[label].astype("float64"))},
        optimizer=optax.lbfgs(),
        n_steps=40,
    )
    found = jax.jit(pulled)(blank.astype("float64"), 3)
    pull = 0.1 * (found.x - means[3])
    balance = float(jnp.abs(jax.grad(score64)(found.x, 3) - pull).max())
    print(f"|x − w/λ| = {exact:.0e}    |∇ log p − λ (x − mean)| = {balance:.0e}, each up to {jnp.abs(pull).max():.0e}")
assert exact < 1e-12
assert balance < 1e-8

# %% [markdown]
# ## Without any data
#
# What can we require without training images? For example, that pixels stay between 0 and 1 (`box`), that neighbors are
# similar and ink is rare (`total_variation`, `lp`), that low frequencies change first (`fourier`), and that the class
# survives small movements and noise (`transforms`, redrawn at each step). Each of these is a plain function. The score
# itself matters, too: $\log p(c|x)$ has no gradient left once the network is sure, whereas the logit keeps growing.

# %%
box = prototypes.box(0, 1)
smooth = prototypes.box(0, 1, of=prototypes.fourier((28, 28, 1)))
shaken = (prototypes.jitter(2), prototypes.rotate(10), prototypes.scale(0.9, 1.1), prototypes.noise(0.3))
sparse = {"total variation": prototypes.total_variation(0.05), "ink": prototypes.lp(0.02, 1)}
logit = jx.logit(net)
settings = {
    "log p": (score, {"parametrization": box}),
    "log p, transforms": (score, {"parametrization": box, "transforms": shaken}),
    "logit": (logit, {"parametrization": box}),
    "logit, transforms": (logit, {"parametrization": box, "transforms": shaken}),
    "logit, transforms,\nTV, little ink": (logit, {"parametrization": box, "transforms": shaken, "penalties": sparse}),
    "the same, Fourier": (logit, {"parametrization": smooth, "transforms": shaken, "penalties": sparse}),
    "MACO, transforms": (
        logit,
        {"parametrization": prototypes.fixed_magnitude(digits.x_train), "transforms": shaken},
    ),
}
keys = jax.random.split(jax.random.key(0), 10)
start = jnp.full((28, 28, 1), 0.1) + 0.01 * jax.random.normal(jax.random.key(1), (28, 28, 1))
without_data, transfer = {}, {}
for name, (f, setting) in settings.items():
    run = jx.activation_maximization(f, n_steps=300, **setting)
    images = jax.jit(jax.vmap(lambda c, key, run=run: run(start, c, key=key).x))(classes, keys)
    transfer[name] = float(jnp.diagonal(jax.nn.softmax(second(images))).mean())
    without_data[f"{name} ({transfer[name]:.2f})"] = images
jx.plot.images(
    without_data,
    titles=titles,
    suptitle="No data (MACO: the mean spectrum of the digits); in brackets, the second network's confidence",
)
plt.show()
assert transfer["log p"] < 0.3 < 0.5 < transfer["log p, transforms"]
assert transfer["logit, transforms"] > transfer["logit"] + 0.2

# %% [markdown]
# The logit and robustness each take the second network from 0.13 to about 0.6, together to 0.96 (on digits it is 0.99):
# a pattern that must work wherever it is put cannot rely on one network's accidents. (Both networks were trained on the
# same digits, shifted by up to two pixels, so they share patterns that survive movements.) These are good pictures of
# the strokes that a class needs, and of the ink that must be absent. They are not digits: for these we need a model of
# digits, an expert.
#
# ## Channels of a hidden layer
#
# Any score will do. Here it is a channel of a convolution in the second network: its mean over the places of the image,
# before the ReLU. Next to each prototype are the training images (of 3,000) that excite the channel most, at most one
# from each class, so that one can see whether a channel serves one class or several.

# %%
encode, _ = jx.split(jx.logit(second), "last conv")
activity = jax.jit(lambda images: jax.lax.map(lambda x: encode(x, 0)[0].mean((0, 1)), images, batch_size=100))
excited = activity(train[:3000])
channels = np.argsort(-np.var(excited, axis=0))[:8]


def channel_score(x, channel):
    return encode(x, 0)[0].mean((0, 1))[channel]


feature = jx.activation_maximization(
    channel_score,
    parametrization=smooth,
    penalties={"total variation": prototypes.total_variation(0.01)},
    transforms=(prototypes.jitter(2),),
    n_steps=100,
)
features = jax.jit(jax.vmap(lambda channel, key: feature(start, channel, key=key)))(channels, keys[:8])

best = {}
for channel in channels:
    order = np.argsort(-excited[:, channel])
    first = [next(i for i in order if digits.y_train[i] == c) for c in range(10)]
    best[int(channel)] = sorted(first, key=lambda i: -excited[i, channel])[:5]
rows = {
    f"channel {channel}": [features.x[i], *train[np.array(best[int(channel)])]] for i, channel in enumerate(channels)
}
jx.plot.images(
    rows, titles=["prototype", "1st class", "2nd", "3rd", "4th", "5th"], suptitle="What excites a channel, and who does"
)
plt.show()
strongest = excited.max(0)[channels]
for channel, made, seen in zip(channels, features.score, strongest, strict=True):
    print(f"channel {channel:3}: {made:6.3f} by its prototype, at most {seen:6.3f} by 3,000 training images")
assert (features.score > strongest).all()

# %% [markdown]
# ## In seconds
#
# The ten classes of the objective at the top: one compiled loop over all steps, compared with a hand-written loop over
# a compiled step.

# %%
objective = jax.vmap(lambda x, c: score(x, c) - 0.05 * jnp.sum(jnp.square(x - means[c])))
optimizer = optax.adam(0.01)


@jax.jit
def hand_step(x, state):
    slope = jax.grad(lambda x: -objective(x, classes).sum())(x)
    updates, state = optimizer.update(slope, state)
    return optax.apply_updates(x, updates), state


def by_hand():
    x = jnp.zeros((10, 28, 28, 1))
    state = optimizer.init(x)
    for _ in range(600):
        x, state = hand_step(x, state)
    return x.block_until_ready()


compiled = jax.jit(jax.vmap(functools.partial(maximize, 0.1)))


def seconds(function):
    function()
    tic = time.perf_counter()
    out = function()
    return time.perf_counter() - tic, out


ours, prototype = seconds(lambda: jax.block_until_ready(compiled(classes)))
hand, x = seconds(by_hand)
print(f"600 steps of 10 classes: {ours:.2f} s, {600 / ours:.0f} steps/s; by hand {600 / hand:.0f} steps/s")
print(f"greatest difference of the two results: {float(jnp.abs(prototype.x - x).max()):.0e}")
assert jnp.abs(prototype.x - x).max() < 1e-3

# %% [markdown]
# ## See also
#
# * `help(jx.activation_maximization)`: all settings, guarantees and errors; `help(jx.prototypes)`: the parts.
# * [1.2](1.2_activation_maximization_with_an_expert.ipynb): a Boltzmann machine in place of the Gaussian.
#   [1.3](1.3_activation_maximization_in_code_space.ipynb): in the code of a decoder.
#
# **References.** Erhan, Bengio, Courville, Vincent: Visualizing higher-layer features of a deep network, 2009.
# Simonyan, Vedaldi, Zisserman: Deep inside convolutional networks, ICLR workshop
# 2014. Olah, Mordvintsev, Schubert: Feature visualization, Distill 2017. Fel et al.: MACO, NeurIPS 2023. Montavon,
#       Samek, Müller: Methods for interpreting and understanding deep neural networks, 2018.
