"""Nodes: the units of a program that rules act on, and their kinds.

For example, `jax.nn.relu(x @ W + a) @ V` has three nodes:

    x --dot_general W--> . --add a--> . --max 0--> . --dot_general V--> y

    Node("dense")       core dot_general, suffix [add]; a first layer
    Node("activation")  max
    Node("dense")       core dot_general; a last layer
"""

import enum
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from jaxplain._analysis.constancy import Varying
from jaxplain._analysis.gain import gain
from jaxplain._analysis.softmax import Group
from jaxplain._ir.graph import Equation, Value
from jaxplain._ir.primitives import Trait

if TYPE_CHECKING:
    from jaxplain._analysis.analyze import Analysis

# Kinds that distribute relevance by weights. The positions "first" and "last" are counted among them.
LAYERS = ("dense", "convolution")
CONTRACTIONS = (*LAYERS, "sum", "fft")
SOFTMAX = ("softmax", "log_softmax", "logsumexp")
WITH_BODIES = ("loop", "branch", "checkpoint")
KINDS = (
    *CONTRACTIONS,
    *("scale_shift", "normalization", "activation", *SOFTMAX),
    *("add", "product", "gate", "max", "structural", *WITH_BODIES, "custom", "unknown"),
)


class Behind(enum.IntEnum):
    """What lies between the explained input and a value. Where several paths meet, the maximum applies."""

    NOTHING = 0  # no path from the input
    MOVES = 1  # elements of the input, rearranged
    RESCALED = 2  # ... shifted, scaled, averaged: bounds of the input have an image here
    OTHER = 3  # no layer yet
    LAYER = 4


class Node:
    """One unit of a program: `outputs` from the active `inputs` and from `others`, by `equations` in program order.

    An affine node is prefix → core → suffix: scale and shift before the contraction, the contraction, scale and shift
    after it.

    Attributes:
        kind: One of KINDS, or a pattern's own kind.
        path: Name scopes of the model's layer, joined by "/"; empty where the model has none.
        behind: What lies between the explained input and the node's input.
        is_first: Whether it is a layer, and no other layer lies on any path from the explained input to it.
        is_last: Whether it is a layer, and no other layer lies on any path from it to the score.
        is_nonnegative: Whether its input cannot be negative, for example because it comes from a ReLU.
        signal: Index of a gate's input that is the signal.
        scale_axes: Axes of the core's output along which the suffix may scale differently; None if unknown.
        bodies: Analyses of the programs of a loop, a branch or a checkpoint.
        group: How a softmax sums over its groups.
        others_vary: Whether some of `others` change with the explained input, without a derivative.
        varying: For a product or a gate: which elements of each input change with the explained input.
        literals: Operands of an activation that are numbers known when the program is staged.
        statistic: Index of a product's input that is a reciprocal, or the size that a norm divides by.
    """

    def __init__(
        self,
        kind: str,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        equations: Iterable[Equation],
        order: dict[Equation, int],
        *,
        named: Equation | None = None,
        core: Equation | None = None,
        prefix: Sequence[Equation] = (),
        suffix: Sequence[Equation] = (),
        group: Group | None = None,
    ):
        self.kind = kind
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.equations = tuple(sorted(equations, key=order.__getitem__))
        made = {value for equation in self.equations for value in equation.outputs}
        read = dict.fromkeys(value for equation in self.equations for value in equation.inputs)
        self.others = tuple(v for v in read if v not in made and v not in self.inputs)
        self.named = named or core or self.equations[-1]
        self.core = core
        self.prefix = tuple(prefix)
        self.suffix = tuple(suffix)
        self.group = group
        self.behind = Behind.NOTHING
        self.is_last = False
        self.is_nonnegative = False
        self.signal: int | None = None
        self.scale_axes: frozenset[int] | None = None
        self.bodies: tuple[Analysis, ...] = ()
        self.others_vary = False
        self.statistic: int | None = None
        self.literals: dict[Value, float] = {}
        self.varying: tuple[Varying, ...] = ()

    @cached_property
    def gain(self) -> float | None:
        """The gain of an activation, from its values; None if it has operands that are not literals."""
        return gain(self.inputs[0], self.outputs[0], self.equations, self.literals)

    @property
    def path(self) -> str:
        return self.named.path

    @property
    def is_first(self) -> bool:
        return self.kind in LAYERS and Behind.NOTHING < self.behind < Behind.LAYER

    @property
    def only_scales(self) -> bool:
        """Whether it multiplies each element by a constant and adds nothing."""
        return self.kind == "scale_shift" and not any(equation.has(Trait.SUM) for equation in self.equations)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its (first) output."""
        return self.outputs[0].shape

    @property
    def source(self) -> str:
        """The user's source line, for messages."""
        return self.named.line

    @property
    def primitive(self) -> str:
        """The name of its primitive, for example "dot_general"."""
        return self.named.primitive

    def __repr__(self) -> str:
        return f"<{self.kind} {self.path or self.primitive} {list(self.shape)}>"

    # As a step of a program: see `dataflow.Step`. A loop, a branch or a checkpoint is run as a whole.

    @property
    def control(self) -> Equation:
        return self.equations[0]

    @property
    def reads(self) -> tuple[Value, ...]:
        return self.control.inputs if self.bodies else (*self.inputs, *self.others)

    @property
    def writes(self) -> tuple[Value, ...]:
        return self.control.outputs if self.bodies else self.outputs
