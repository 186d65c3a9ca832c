"""`layers`, `plan`, `ledger`, `nnx.named`, and the page "Write a rule in ten lines"."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import promoting, relative
from models import MODELS

import jaxplain as jx

ROOT = Path(__file__).parents[1]


def _score(case):
    return lambda x, y: case.score(case.weights, x, y)


@pytest.mark.rows("model", MODELS, list(MODELS)[1::2])
def test_the_ledger_balances_on_every_model(model):
    """What a node receives is what those that read its outputs hand on; the ends are the score and the attribution."""
    case = MODELS[model]()
    x = jax.tree.map(lambda leaf: leaf[0], case.xs)
    rules = jx.composites.epsilon_plus(1e-9)
    ledger, explain = jx.ledger(_score(case), rules=rules), jx.with_info(jx.lrp(_score(case), rules=rules))
    accounts, (attribution, info) = jax.jit(lambda x: (ledger(x, 1), explain(x, 1)))(x)
    size = float(jnp.abs(accounts.arriving).max())
    tolerance = 1e-2 if model == "bf16_compute" else 1e-6
    total = sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(attribution))
    assert abs(float(accounts.relevance) - total) <= tolerance * size
    assert float(accounts.value) == pytest.approx(float(info.value), rel=tolerance)
    # Σ over nodes of (arriving − leaving) is what the score gave and x did not get.
    missing = float(jnp.sum(accounts.arriving - accounts.leaving))
    assert missing == pytest.approx(float(info.value) - total, abs=10 * tolerance * size)


def test_the_ledger_names_what_the_bias_takes():
    w, b, v = jnp.array([[1.0, -2.0], [3.0, 1.0]]), jnp.array([0.5, -1.0]), jnp.array([1.0, 2.0])
    score = lambda x: jax.nn.relu(x @ w + b) @ v
    x = jnp.array([1.0, 2.0])
    accounts = jx.ledger(score, rules=jx.rules.epsilon(1e-12))(x)
    hidden = x @ w + b
    by_hand = jnp.sum(jnp.where(hidden > 0, b * v, 0))
    kinds = [node.kind for node in accounts.nodes]
    assert kinds == ["dense", "activation", "dense"]
    np.testing.assert_allclose(accounts.to_bias, [by_hand, 0, 0], atol=1e-10)
    np.testing.assert_allclose(accounts.lost, 0, atol=1e-10)


def test_the_ledger_of_a_fourier_transform_is_real():
    def score(x):
        filtered = jnp.fft.irfft(jnp.fft.rfft(x) * jnp.array([1.0, 0.5, 0.2, 1.0 + 0j]), 6)
        return jnp.sum(jax.nn.relu(filtered @ (1.5 + jnp.cos(jnp.arange(12.0))).reshape(6, 2)))

    x = 1 + jnp.sin(jnp.arange(6.0))
    accounts = jax.jit(jx.ledger(score, rules=jx.rules.epsilon(1e-12)))(x)
    assert accounts.tallies.dtype == jnp.float64 and {node.kind for node in accounts.nodes} >= {"fft", "dense"}
    assert float(accounts.relevance) > 0 and float(jnp.abs(accounts.lost).max()) < 1e-9


def test_the_ledger_under_vmap_and_jit():
    case = MODELS["nnx_residual_batchnorm"]()
    account = jx.ledger(_score(case), rules=jx.composites.epsilon_plus_flat())
    labels = jnp.arange(len(case.xs))
    batch = jax.jit(jax.vmap(account))(case.xs, labels)
    single = jax.jit(account)(case.xs[1], labels[1])
    assert batch.tallies.shape == (len(labels), len(single.nodes), 3)
    assert relative(batch.tallies[1], single.tallies) < 1e-12
    assert "mean of the batch" in repr(batch) and "convolution" in repr(single)


def test_plan_shows_what_no_rule_fits_and_runs_nothing():
    w = jnp.eye(3)
    score = lambda x: jnp.sum(jnp.linalg.inv(x @ w))
    rows = jx.plan(score, rules=jx.composites.epsilon_plus())(jnp.zeros((3, 3)))
    assert rows[0].kind == "dense" and "missing" in {row.rule for row in rows}
    assert "test_inspection.py" in rows[0].source
    with pytest.raises(jx.UnknownNodeError, match="on_missing"):
        jx.lrp(score, rules=jx.composites.epsilon_plus())(jnp.eye(3))


class _Block(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.dense = nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.mix(self.norm(x))

    def mix(self, x):
        return x + jax.nn.gelu(self.dense(x))


class _Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([_Block(rngs), _Block(rngs)])
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.tail = self.head

    @promoting()
    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_nnx_modules_get_paths_and_keep_their_values():
    model = _Net(nnx.Rngs(0))
    named = jx.nnx.named(model)
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(named(x), model(x))
    rows = jx.layers(lambda x: named(x)[0])(x)
    assert [row.path for row in rows if row.kind == "dense"] == ["blocks/0/dense", "blocks/1/dense", "head"]
    assert all(not row.path for row in jx.layers(lambda x: model(x)[0])(x))
    assert type(model.head) is nnx.Linear and isinstance(named.head, nnx.Linear) and named.tail is named.head
    chosen = jx.composites.compose(jx.composites.epsilon_plus(), {"blocks/1/*": jx.rules.zplus()})
    rules = {row.path: row.rule for row in jx.plan(lambda x: named(x)[0], rules=chosen)(x) if row.kind == "dense"}
    assert rules["blocks/1/dense"] == "zplus" and rules["blocks/0/dense"].startswith("epsilon")


def test_named_nnx_models_split_merge_jit_and_vmap():
    named = jx.nnx.named(_Net(nnx.Rngs(0)))
    graphdef, state = nnx.split(named)
    score = lambda state, x: nnx.merge(graphdef, state)(x)[0]
    explain = jax.jit(jax.vmap(lambda x: jx.lrp(lambda x: score(state, x), rules=jx.composites.attention())(x)))
    xs = jnp.arange(8.0).reshape(2, 4)
    plain = jax.vmap(jx.lrp(lambda x: named(x)[0], rules=jx.composites.attention()))(xs)
    assert relative(explain(xs), plain) < 1e-12


def test_named_refuses_what_is_no_nnx_module():
    with pytest.raises(jx.SettingError, match="named_scope"):
        jx.nnx.named(lambda x: x)


def test_the_rule_of_the_page_runs():
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "write_a_rule.md").read_text(), re.S))
    names: dict = {}
    exec(compile(code.replace(', "head/*": rules.epsilon(0.1)', ""), "write_a_rule.md", "exec"), names)
    w, v = jnp.array([[1.0, -2.0], [3.0, 1.0]]), jnp.array([1.0, 2.0])
    score = lambda x: jax.nn.relu(x @ w) @ v
    x = jnp.array([1.0, 2.0])
    explain = lambda first: jx.lrp(score, rules=jx.composites.compose(jx.composites.epsilon_plus(), {"first": first}))(
        x
    )
    want = (explain(jx.rules.epsilon()) + explain(jx.rules.flat())) / 2
    assert relative(jx.lrp(score, rules=names["mine"])(x), want) < 1e-12
    plan = jx.plan(score, rules=names["chosen"])(x)
    assert next(row.rule for row in plan if row.kind == "dense") == "flat"
    cumulated = lambda x: jnp.cumprod(x) @ v
    with pytest.raises(jx.JaxplainError, match="cumprod"):
        jx.lrp(cumulated, rules=jx.composites.epsilon_plus())(x)
    assert jnp.all(jnp.isfinite(jx.lrp(cumulated, rules=names["known"])(x)))


def _block_net(x):
    with jax.named_scope("block_1"), jax.named_scope("attention"):
        x = x + jax.nn.softmax(x @ x.T) @ jnp.sin(x)
    with jax.named_scope("head"):
        return jnp.sum(x**2)


def test_a_pattern_makes_a_block_one_node():
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "write_a_rule.md").read_text(), re.S))
    names: dict = {}
    exec(compile(code.replace(', "head/*": rules.epsilon(0.1)', ""), "write_a_rule.md", "exec"), names)
    x = jnp.sin(1 + jnp.arange(6.0)).reshape(3, 2)
    plan = jx.plan(_block_net, rules=names["blocks"])(x)
    assert [row.kind for row in plan] == ["attention_block", "activation", "sum"] and plan[0].rule == "block"
    relevance = jx.lrp(_block_net, rules=names["blocks"])(x)

    def attention(x):
        return x + jax.nn.softmax(x @ x.T) @ jnp.sin(x)

    z, pullback = jax.vjp(attention, x)
    share = z**2 / (z + jnp.where(z >= 0, 1e-6, -1e-6))
    assert relative(relevance, x * pullback(share)[0]) < 1e-6
    scanned = lambda x: jax.lax.scan(lambda x, _: (attention_in_scope(x), None), x, length=2)[0].sum()
    attention_in_scope = jax.named_scope("attention")(attention)
    assert "attention_block" in [row.kind for row in jx.plan(scanned, rules=names["blocks"])(x)]


def test_a_pattern_that_is_no_unit_is_refused():
    def find(graph, varies):
        yield [e for e in graph.equations if e.primitive in ("sin", "exp")]

    mine = jx.composites.compose(
        jx.composites.attention(), {"mine": jx.rules.epsilon()}, patterns=[jx.rules.Pattern("mine", find)]
    )
    with pytest.raises(jx.JaxplainError, match="not one unit"):
        jx.plan(lambda x: jnp.sum(jnp.exp(jnp.sin(x) * jnp.cos(x))), rules=mine)(jnp.ones(3))


def test_named_leaves_static_methods_and_properties_alone():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 2, rngs=rngs)
            self.inner = Inner(rngs)

        @promoting()
        def __call__(self, x):
            return self.inner(self.layer(x))

    class Inner(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(2, 1, rngs=rngs)

        @staticmethod
        def act(x):
            return jax.nn.relu(x)

        @property
        def width(self):
            return 2

        def __call__(self, x):
            return self.layer(self.act(x))[0] * self.width

    net = Net(nnx.Rngs(0))
    named = jx.nnx.named(net)
    assert named(jnp.ones(3)) == net(jnp.ones(3))
    assert [row.path for row in jx.layers(named)(jnp.ones(3)) if row.kind == "dense"] == ["layer", "inner/layer"]
