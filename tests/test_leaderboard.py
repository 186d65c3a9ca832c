"""The leaderboard: stored cells and their fingerprints, the cost that is printed first, tables and figures."""

import dataclasses
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxplain as jx
from jaxplain.metrics._comparison import Comparison
from leaderboard import board, cells, controls, report
from leaderboard.__main__ import main
from leaderboard.cells import Cell, entry
from leaderboard.examples import digits
from leaderboard.store import Store
from tour.rows import ROWS

METRICS = ("correlation", "sparseness", "random class")
METHODS = ("gradient", "input × gradient")
COSTS = {  # gradients and evaluations of one explanation
    "gradient": (1, 0),
    "integrated gradients": (50, 0),
    "occlusion": (0, 170),
    "ablation": (0, 51),
    "greedy": (0, 49**2),
    "random": (0, 1),
}
SETTINGS = [
    *("--network", "mlp", "--digits", "12", "--robust", "3"),
    *("--methods", *METHODS, "--metrics", *METRICS),
]


@pytest.fixture(autouse=True)
def _float32():
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny board, and what was printed."""
    folder = tmp_path_factory.mktemp("board")
    with jax.enable_x64(False), pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words: printed.append(" ".join(map(str, words))))
        main([*SETTINGS, "--output", str(folder), "--dry-run", "--metrics", "correlation"])
        assert not list(folder.rglob("*"))  # nothing but the cost
        dry = "\n".join(printed)
        printed.clear()
        main([*SETTINGS, "--output", str(folder)])
    return folder, dry, "\n".join(printed)


@pytest.fixture
def measured(monkeypatch):
    """The cells that are measured from here on; no figures are drawn."""
    monkeypatch.setattr(report, "write", lambda *_: [])
    found = []
    write = Store.write

    def recorded(self, entry, values):
        if not entry.names[0].startswith("maps of"):
            found.append(entry.names[::-1])
        write(self, entry, values)

    monkeypatch.setattr(Store, "write", recorded)
    return found


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "board")


def again(folder, *more):
    main([*SETTINGS, "--output", str(folder), *more])


def test_the_cost_is_printed_before(made):
    folder, dry, printed = made
    assert "0 of 2 cells" in dry and "0 of 6 cells" in printed
    for text in (dry, printed):
        assert re.search(r"faithfulness: correlation +0 +101 +12 × 2", text)
        assert re.search(rf"digits +all of them +0 +0 +101 +0 +{12 * 101:,} ", text)  # once, not for each method
    assert re.search(r"randomization: random class +2 +0 +3 × 2", printed)
    # 2 methods, 12 digits: correlation takes 101 evaluations, and each map 1 gradient; 3 digits: 2 explanations.
    n = 2 * (12 + 2 * 3)
    assert f"in all {n} explanations, {n} gradients and {12 * 101:,} evaluations" in printed
    assert "compiling 6 programs" in printed  # 2 explanations, 2 measures of maps, and 2 of explainers
    assert str(folder / "methods.md") in printed


def test_numbers_are_those_of_compare(made):
    folder, _, _ = made
    examples = digits("mlp", 12)
    specs = {metric.name: metric.spec for metric in board.METRICS}
    want = jx.metrics.compare(
        jx.logit(examples.network),
        {"gradient": jx.gradient},
        {"correlation": lambda score: specs["correlation"](score), "sparseness": specs["sparseness"]()},
        progress=False,
    )(examples.x, examples.y, key=jax.random.key(0))
    (gradient,) = (m for m in board.methods(examples) if m.name == "gradient")
    for name in METRICS[:2]:
        (metric,) = (m for m in board.METRICS if m.name == name)
        cell = Cell(gradient, metric)
        got = Store(folder / "cells").read(entry(cell, examples))
        np.testing.assert_allclose(got, want.values[name]["gradient"], rtol=1e-5, atol=1e-5)
        mean = f"{want.mean(name, 'gradient'):.2f}"[:-1].replace("-", "−")
        assert re.search(rf"\| gradient \|.*{mean}", (folder / "methods.md").read_text())


def test_the_table_says_what_was_measured(made):
    folder, _, _ = made
    text = (folder / "methods.md").read_text()
    for words in (
        "12 held-out digits, network `mlp`",
        "3 held-out digits",
        "| method | correlation ↑ |",
        "random class ↓",
    ):
        assert words in text
    assert "`faithfulness_correlation(subset_size=10, groups=patches(4, 4), baseline=0.0, n_samples=100)`" in text
    names = {path.name for path in folder.glob("*.png")}
    assert names == {"ranks.png", "faithfulness.png", "complexity.png", "randomization.png"}


def test_nothing_is_measured_twice(made, measured, capsys):
    again(made[0])
    assert not measured
    out = capsys.readouterr().out
    assert "6 of 6 cells" in out and "nothing is left to measure" in out


def test_a_changed_setting_measures_its_cells_alone(copied, measured, monkeypatch, capsys):
    (old,) = (m for m in board.METRICS if m.name == "correlation")
    settings = old.spec.settings | {"n_samples": 7}
    new = dataclasses.replace(old, spec=dataclasses.replace(old.spec, settings=settings))
    monkeypatch.setattr(board, "METRICS", tuple(new if m is old else m for m in board.METRICS))
    again(copied)
    assert measured == [(method, "correlation") for method in METHODS]
    assert "2 cells there have other settings" in capsys.readouterr().out


def test_a_file_that_was_cut_off_is_measured_again(copied, measured, capsys):
    path = next((copied / "cells").rglob("sparseness__input*"))
    before = np.load(path)["values"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again(copied, "--metrics", "sparseness")
    assert measured == [("input × gradient", "sparseness")]
    assert f"{path} cannot be read" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(path)["values"], before, rtol=1e-6)  # measured alone: another order of sums
    assert not list(path.parent.glob("*.tmp"))


def test_a_failure_says_where_and_keeps_what_was_finished(tmp_path, monkeypatch):
    def complexity():
        def measure(attribution):
            raise ValueError("no")

        return measure

    failing = {"complexity": board.spec(complexity)}
    replaced = [dataclasses.replace(m, spec=failing.get(m.name, m.spec)) for m in board.METRICS]
    monkeypatch.setattr(board, "METRICS", tuple(replaced))
    with pytest.raises(ValueError, match="no") as error:
        again(tmp_path, "--metrics", "complexity", "sparseness")
    assert "'complexity' of gradient, input × gradient" in error.value.__notes__[-1]
    kept = sorted(path.name[:10] for path in (tmp_path / "cells").rglob("*.npz"))
    assert kept == ["maps_of_lo"] * 2 + ["sparseness"] * 2


def test_maps_of_several_shapes(tmp_path):
    chosen = ("--methods", "gradient", "Grad-CAM", "--metrics", "sparseness", "--network", "cnn_avgpool")
    main(["--digits", "2", "--output", str(tmp_path), *chosen])
    assert len(list((tmp_path / "cells").rglob("sparseness*"))) == 2


def test_maps_are_kept_too(copied, monkeypatch):
    for path in (copied / "cells").rglob("sparseness*"):
        path.unlink()
    monkeypatch.setattr(report, "write", lambda *_: [])
    written, write = [], Store.write
    monkeypatch.setattr(Store, "write", lambda *args: (written.append(args[1].names[0]), write(*args)))
    again(copied, "--metrics", "sparseness")
    assert written == ["sparseness"] * 2  # no maps


def test_what_decides_a_number_is_in_its_fingerprint():
    examples = digits("mlp", 3)
    methods = {m.name: m for m in board.methods(examples)}
    metric = board.METRICS[0]
    decided_by = lambda *cell_and_examples: entry(*cell_and_examples).decided_by
    first = decided_by(Cell(methods["gradient"], metric), examples)
    shaken = dataclasses.replace(examples.network, params=jax.tree.map(lambda w: 2 * w, examples.network.params))
    others = [
        decided_by(Cell(methods["saliency"], metric), examples),
        decided_by(Cell(methods["gradient"], board.METRICS[1]), examples),
        decided_by(Cell(methods["gradient"], metric), digits("mlp", 4)),
        decided_by(Cell(methods["gradient"], metric), dataclasses.replace(examples, network=shaken)),
    ]
    assert len({first, *others}) == 5 and first == decided_by(Cell(methods["gradient"], metric), digits("mlp", 3))
    assert repr(methods["SmoothGrad"].spec) == "smoothgrad(gradient(score))"
    assert repr(methods["DeepLIFT, 20 references"].spec) == "deeplift(score, baseline=references(background[:20]))"
    for text in (*(m.text for m in (*board.METRICS, *board.PROTOCOLS)), *(repr(m.spec) for m in methods.values())):
        assert " at 0x" not in text  # an address would change it with every run
    names = {path.relative_to(path.parents[1]).as_posix() for path in cells._deciding()}
    assert {"metrics/_flipping.py", "leaderboard/controls.py", "leaderboard/cells.py", "tour/spec.py"} <= names
    assert not names & {"leaderboard/report.py", "leaderboard/board.py", "jaxplain/plot.py"}


@pytest.mark.parametrize("option", [("--methods", "gradiant"), ("--metrics", "sparsness"), ("--digits", "1")])
def test_what_matches_nothing_is_refused(tmp_path, option, capsys):
    with pytest.raises(SystemExit) as error:
        again(tmp_path, *option)
    said = f"{error.value} {capsys.readouterr().err}"
    assert "known: " in said or "at least 2" in said


def test_no_entry_of_the_tables_is_dead():
    names = [m.name for m in (*board.methods(digits("cnn_maxpool", 2)), *board.PROTOCOL_METHODS)]
    assert set(names) >= {row.name for row in ROWS}
    metrics = (*board.METRICS, *board.PROTOCOLS)
    assert len({m.name for m in metrics}) == len(metrics) == len(board.METRICS) + 2 * (2 * 3 * 2 * 5 + 3)
    patterns = [*board.IN_UNITS_OF_F, *(p for e in board.EXCLUDED for p in e.methods)]
    for pattern in patterns:
        assert any(fnmatchcase(name, pattern) for name in names), pattern
    for pattern in (p for e in board.EXCLUDED for p in e.metrics):
        assert any(m.matches((pattern,)) for m in metrics), pattern
    assert board.why_not("greedy", board.METRICS[0]) is None and "turns" in board.why_not("greedy", metrics[4])


def test_costs_are_those_that_methods_report():
    some = digits("mlp", 2)
    each = {m.name: cells.cost_of_map(m, some) for m in board.methods(some) if m.name in COSTS}
    assert set(each) == set(COSTS)
    for name, (_, gradients, evaluations) in each.items():  # `Info` itself may ask for the score or two of its values
        assert 0 <= gradients + evaluations - sum(COSTS[name]) <= 2, name
    (gradient,) = (m for m in board.methods(some) if m.name == "gradient")
    metrics = {m.name: m for m in board.METRICS}
    found = cells.cost([Cell(gradient, metrics[name]) for name in METRICS], some)
    assert found == cells.Cost(3, 3, 0)  # one map for two metrics; the evaluations of correlation are shared


def comparison(**values):
    return Comparison({"m": {name: np.asarray(v, float) for name, v in values.items()}})


def test_the_best_are_those_that_do_not_differ_from_the_best():
    noise, rng = np.random.default_rng(0).normal(size=200), np.random.default_rng(1)
    few = np.where(np.arange(200) < 150, -9.0, np.nan)
    found = comparison(
        a=noise,  # examples differ by 1, methods by 0.05: only pairs tell
        b=noise + 0.05 + 0.01 * rng.normal(size=200),
        c=noise + 0.05 * rng.normal(size=200),
        few=few,  # the mean of a selection
        greedy=noise - 5,
        random=noise - 4,
    )
    low = dataclasses.replace(board.METRICS[0], name="m", good="low")
    high = dataclasses.replace(low, good="high")
    assert set(report.alike(found, low)) == {"a", "c"} and report.alike(found, high) == ["b"]
    rows = {line.split(" | ")[0].strip("|* "): line for line in report.table(found, [low]).split("\n")}
    assert "**" in rows["a"] and "**" in rows["c"] and "**" not in rows["b"] + rows["few"] + rows["greedy"]
    assert "(150)" in rows["few"] and list(rows)[-3:] == ["few", "greedy", "random"]
    assert report.order(comparison(a=noise, b=noise + 0.05 + 0.01 * noise), low) == "a > b"
    assert report.order(comparison(a=noise, b=noise + 0.01 * rng.normal(size=200)), low).count("=") == 1


def test_axes_are_logarithmic_where_means_span_decades():
    metric = dataclasses.replace(board.METRICS[0], name="m")
    for small, scale in ((1e-7, "log"), (0.1, "linear"), (-1e-7, "linear")):
        figure = report.panels(comparison(a=[small, 2 * small], b=[1.0, 2.0], greedy=[1e-8, 1e-8]), [metric])
        assert figure.axes[0].get_xscale() == scale
        assert not any(word in figure.get_supxlabel() for word in ("hollow", "dashed"))
        plt.close(figure)


def test_the_published_boards_are_of_these_methods_metrics_and_settings():
    folder = Path(jx.__file__).parents[1] / "docs/leaderboard"
    methods, protocols = [(folder / name).read_text() for name in ("methods.md", "protocols.md")]
    for method in board.methods(digits("cnn_maxpool", 2)):
        name = f"*{method.name}*" if method.name in report.CONTROLS else method.name
        assert f"| {name} |" in methods
    for metric in board.METRICS:
        assert f"| {metric.name} | `{metric.spec!r}` |" in methods
    for metric in board.PROTOCOLS:
        assert f"| {metric.name} | {metric.good} |" in protocols


def test_wins_are_counted_by_factor():
    noise, rng = np.random.default_rng(0).normal(size=50), np.random.default_rng(1)
    small = lambda: 0.01 * rng.normal(size=50)
    metrics = [m for m in board.PROTOCOLS if m.name.startswith("static") and ", logit, patches" in m.name]
    # Deep Taylor has the lower curves wherever black is the removal, and ties with Taylor elsewhere.
    found = Comparison(
        {
            m.name: {"Taylor (x·∇f)": noise + small(), "deep Taylor": noise - 1.0 * ("black" in m.name) + small()}
            for m in metrics
        }
    )
    rows = {line.split(" | ")[0].strip("| "): line for line in report.wins(found, metrics).split("\n")}
    # With the least relevant first, low is bad.
    assert rows["removal: black"].endswith("| 2 | 1 / 0 / 1 |") and rows["removal: blur"].split(" | ")[1] == "2"
    assert rows["order: most"].split(" | ")[1] == "5"
    assert "deep Taylor > Taylor (x·∇f)" in report.protocol_table(found, metrics)


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (1.23456, 0.0123, "1.235 ± 0.012"),
        (-3.0, 12.0, "−3 ± 12"),
        (2.0, 0.0, "2"),
        (np.nan, np.nan, "–"),
        (1e-7, 2e-8, "1.00e-07 ± 2e-08"),
    ],
)
def test_numbers_have_the_digits_of_their_interval(mean, half, text):
    assert report._number(mean, half).replace("\N{NO-BREAK SPACE}", " ") == text


def test_boards_of_several_networks_do_not_overwrite_each_other(copied, measured):
    again(copied, "--network", "cnn_avgpool", "--metrics", "sparseness")
    again(copied, "--digits", "3", "--metrics", "sparseness")
    assert len(measured) == 4
    again(copied, "--metrics", "sparseness")
    assert len(measured) == 4


def test_controls_have_new_draws_when_the_score_changes():
    weights = jnp.arange(1.0, 5.0)
    score = lambda x, scale: scale * x @ weights
    x = jnp.array([1.0, 0.0, 2.0, 3.0])
    plain, times_input = controls.noise(score), controls.noise(score, times_input=True)
    assert jnp.array_equal(plain(x, 1.0), plain(x, 1.0)) and not jnp.array_equal(plain(x, 1.0), plain(x, 2.0))
    assert jnp.array_equal(times_input(x, 1.0), x * plain(x, 1.0))


def test_a_protocol_that_explains_again(tmp_path):
    name = "recomputed, most, relu(logit), patches, black"
    main(["--metrics", name, "--methods", "sensitivity", "--protocols", "2", "--output", str(tmp_path)])
    text = (tmp_path / "protocols.md").read_text()
    assert f"| {name} | low |" in text and (tmp_path / "protocols.png").exists()
