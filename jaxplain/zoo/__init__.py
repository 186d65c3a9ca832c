"""Small trained networks, for examples and tests.

All of them ship with their weights. Those in `NAMES` take raw digits, 28×28:

| name | network |
| --- | --- |
| `"mlp"` | 784-256-256-10, ReLU |
| `"mlp_no_bias"` | the same without biases, hence positively homogeneous |
| `"cnn_maxpool"` | three convolutions with max-pooling, two dense layers |
| `"cnn_avgpool"` | the same with average pooling and without biases |
| `"cnn_strided"` | two strided convolutions, two dense layers: the digit experiment of DeepLIFT's authors |
| `"all_conv"` | strided convolutions only; written in Flax Linen |
| `"gap"` | convolutions, global average pooling, one dense layer (CAM) |

Those in `SCENE_NAMES` take scenes of `jaxplain.datasets.cluttered_mnist`, 40×40, a digit among clutter:

| name | network |
| --- | --- |
| `"gap_cluttered"` | four convolutions, global average pooling, one dense layer (CAM) |
| `"flatten_cluttered"` | the same convolutions with fewer filters, two dense layers, no average over space |

Those in `EXPERT_NAMES` are density models of the digits, loaded by `load_expert`:

| name | expert |
| --- | --- |
| `"rbm"` | restricted Boltzmann machine, 400 hidden units |
| `"vae"` | variational autoencoder with codes of 16 numbers |
| `"made"` | masked autoencoder, exact probabilities of binary images |

`python -m jaxplain.zoo` retrains them; `train` trains one; `held_out` returns the data for reporting accuracies.

Example:
    >>> import jaxplain as jx
    >>> digits = jx.datasets.mnist()
    >>> net = jx.zoo.load("cnn_maxpool")
    >>> net(digits.x_test[:5]).shape
    (5, 10)
    >>> net.apply(net.params, digits.x_test[:5]).shape  # the same, as a pure function
    (5, 10)
"""

from jaxplain.zoo._experts import EXPERT_NAMES, load_expert, save_expert, train_expert
from jaxplain.zoo._network import (
    NAMES,
    SCENE_NAMES,
    Network,
    accuracy,
    held_out,
    load,
    randomized,
    save,
    train,
)
from jaxplain.zoo._training import shift

__all__ = [
    "EXPERT_NAMES",
    "NAMES",
    "SCENE_NAMES",
    "Network",
    "accuracy",
    "held_out",
    "load",
    "load_expert",
    "randomized",
    "save",
    "save_expert",
    "shift",
    "train",
    "train_expert",
]
