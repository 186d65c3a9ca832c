# %% [markdown]
# # 3.1 Deconvolution
#
# **The question**: which pattern in the image does a hidden channel respond to? Deconvolution sends the activation of a
# channel back to the pixels. Convolutions are transposed, max-pooling remembers where its maximum was (the "switches"),
# and a ReLU applies itself to what comes from above:
#
# $$g \leftarrow \max(g, 0), \qquad \text{where back-propagation has } g \leftarrow 1_{a > 0}\, g .$$

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import datasets, zoo

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
images, labels = digits.x_test, digits.y_test

# %% [markdown]
# ## Deconvolution of a hidden channel
#
# A score can be anything, so the sum of a channel of the third layer is one. The six most exciting digits of each of
# four channels:

# %%
net = zoo.load("cnn_maxpool")


def hidden(images):
    """The third layer's maps after pooling, (…, 4, 4, 128)."""
    for name in ("conv1", "conv2", "conv3"):
        kernel, bias = net.params[name]["kernel"], net.params[name]["bias"]
        images = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        images = jax.nn.relu(images + bias)
        images = jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    return images


def channel(image, k):
    return jnp.sum(hidden(image[None])[..., k])


excitement = jax.jit(lambda images: hidden(images).sum((1, 2)))(images)
chosen = np.argsort(-np.asarray(excitement.mean(0)))[:4]
deconvolve = jax.jit(jax.vmap(jx.deconvnet(channel)))
figure, axes = plt.subplots(4, 12, figsize=(9.6, 3.4), layout="compressed")
for row, k in zip(axes, chosen, strict=True):
    top = np.argsort(-excitement[:, k])[:6]
    patterns = deconvolve(images[top], jnp.full(6, k))
    for i in range(6):
        row[2 * i].imshow(images[top[i], ..., 0], cmap="gray_r")
        row[2 * i + 1].imshow(np.maximum(patterns[i, ..., 0], 0), cmap="Reds")
    for ax in row:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(linewidth=0.4, color="0.7")
    row[0].set_ylabel(f"channel {k}", rotation=0, ha="right", va="center", fontsize=8)
figure.suptitle("Digits that excite a channel most, and their deconvolutions (positive part)", fontsize=10)
plt.show()

# %% [markdown]
# ### Proof: what deconvolution knows of the image
#
# Nothing but the switches of max-pooling. In a network without max-pooling the map of a class is the *same* for all
# images:

# %%
averaging = jx.logit(zoo.load("cnn_avgpool"))
same = jax.jit(jax.vmap(jx.deconvnet(averaging), in_axes=(0, None)))(images[:20], 3)
switches = jax.jit(jax.vmap(jx.deconvnet(jx.logit(net)), in_axes=(0, None)))(images[:20], 3)
spread = lambda maps: float(jnp.abs(maps - maps[0]).max() / jnp.abs(maps).max())
print(
    f"maps of class 3 over 20 digits differ by {spread(same):.0%} (average pooling), {spread(switches):.0%} (max-pooling)"
)
assert spread(same) < 1e-6 < spread(switches)

# %% [markdown]
# ## Deconvolution and the gradient of the same channel

# %%
k = int(chosen[0])
top = np.argsort(-excitement[:, k])[:10]
gradient = jax.jit(jax.vmap(jx.gradient(channel)))
guided = jax.jit(jax.vmap(jx.guided_backprop(channel)))
which = jnp.full(10, k)
jx.plot.grid(
    {
        "gradient": gradient(images[top], which),
        "deconvolution": deconvolve(images[top], which),
        "guided": guided(images[top], which),
    },
    images[top],
    titles=[f"digit {c}" for c in labels[top]],
    suptitle=f"Channel {k} of the third layer, on the ten digits that excite it most",
)
plt.show()

# %% [markdown]
# ## When to use it, and when it misleads
#
# Use it to see which local pattern a hidden channel responds to, next to the images that excite the channel. It
# misleads as an explanation of a decision: nothing but the switches ties it to the image, and where a network has none
# it draws the same picture for all of them. It is not a derivative of anything: its values cannot be summed or compared
# between channels.
#
# ## References
#
# * M. Zeiler, R. Fergus. *Visualizing and understanding convolutional networks.* ECCV 2014.
# * J. Springenberg et al. *Striving for simplicity: the all convolutional net.* ICLR workshop 2015.
# * W. Nie, Y. Zhang, A. Patel. *A theoretical explanation for perplexing behaviors of backpropagation-based
#   visualizations.* ICML 2018.
