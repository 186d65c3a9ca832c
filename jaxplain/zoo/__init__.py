"""Small trained networks that the documentation, the tests and you can share.

Every one takes raw 28x28 digits and ships with its weights::

    from jaxplain import datasets, zoo

    digits = datasets.mnist()
    net = zoo.load("cnn_maxpool")
    logits = net(digits.x_test[:5])                 # (5, 10)
    logits = net.apply(net.params, digits.x_test[:5])   # the same, as a pure function

=============  ==========================================================
name           network
=============  ==========================================================
mlp            784-256-256-10, ReLU
mlp_no_bias    the same without biases: positively homogeneous
cnn_maxpool    three convolutions with max-pooling, two dense layers
cnn_avgpool    the same with average pooling and without biases
all_conv       strided convolutions only; written in Flax Linen
gap            convolutions, global average pooling, one dense layer (CAM)
=============  ==========================================================

``python -m jaxplain.zoo`` trains them anew; :func:`train` trains one.
"""

from jaxplain.zoo._network import (
    NAMES,
    Network,
    accuracy,
    load,
    randomized,
    save,
    train,
)
from jaxplain.zoo._training import shift

__all__ = [
    "NAMES",
    "Network",
    "accuracy",
    "load",
    "randomized",
    "save",
    "shift",
    "train",
]
