"""What each of JAX's primitives is to the analysis. A test fails when JAX gains one that no table names."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Opened in place.
CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "call"})
# Calls with a derivative of the user's own.
CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call"})
# Kept as they are outside, analyzed and replayed inside.
CHECKPOINT = frozenset({"checkpoint", "remat", "remat2"})
WITH_BODIES = CHECKPOINT | {"scan", "cond"}

# Every output element depends on the input elements at the same place alone.
SUMS = frozenset({"add", "sub", "add_any"})
PRODUCTS = frozenset({"mul", "div"})
AFFINE = SUMS | PRODUCTS | {"neg", "real", "imag", "convert_element_type", "reduce_precision", "copy", "copy_p"}
CURVED = _words(
    """abs acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp cos cosh digamma erf erf_inv erfc
    exp exp2 expm1 floor igamma igamma_grad_a igammac integer_pow lgamma log log1p log2 logistic max min nextafter one_minus_square polygamma polynomial pow
    random_gamma_grad regularized_incomplete_beta rem round rsqrt select_n sign sin sinh sqrt square stop_gradient tan tanh
    zeta"""
)
_LOGICAL = _words(
    """and or not xor eq ne lt le gt ge eq_to le_to lt_to is_finite population_count clz shift_left shift_right_arithmetic
    shift_right_logical"""
)
ELEMENTWISE = AFFINE | CURVED | _LOGICAL
# No derivative: what comes out of an active value is dependent, not active.
NO_DERIVATIVE = frozenset({"floor", "ceil", "round", "sign", "stop_gradient", "nextafter"}) | _LOGICAL

# The value itself, elsewhere or under another type: `shard_map` puts them around constants too.
IDENTITY = _words("copy copy_p device_put layout_constraint mesh_cast name pcast pvary reshard sharding_constraint")
# Every element of the output is one of the operand, and every element of the operand is in the output.
MOVES = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "copy_p"})
# Every output element is a copy of at most one input element.
STRUCTURAL = MOVES | _words(
    """broadcast_in_dim concatenate device_put dynamic_slice dynamic_update_slice gather layout_constraint mesh_cast name
    optimization_barrier pad pcast pvary reshard scatter select_and_gather_add sharding_constraint slice sort split stack tile
    top_k unstack"""
)
# Linear in one operand, the others held; an output element sums over input elements.
WEIGHTED = {"dot_general": "dense", "ragged_dot_general": "dense", "conv_general_dilated": "convolution"}
# … with weights 0 and 1.
SUMMING = _words("cumsum psum psum2 psum_invariant reduce_sum reduce_window_sum scatter-add scatter_add")
CONTRACTION = frozenset(WEIGHTED) | SUMMING | {"fft"}
MAXIMUM = _words(
    """cummax cummin max min pmax pmin reduce_max reduce_min reduce_window_max reduce_window_min scatter-max scatter-min
    scatter_max scatter_min"""
)
KNOWN = CALLS | CUSTOM | WITH_BODIES | ELEMENTWISE | STRUCTURAL | CONTRACTION | MAXIMUM | {"scatter-sub"}
