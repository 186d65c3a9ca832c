"""The shape of the package: import direction, one door to JAX's internals, complete registries and documents."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import as_users_run
from registry import METHODS

import jaxplain as jx

ROOT = Path(jx.__file__).parent
REPOSITORY = ROOT.parent

# Each layer imports only from those above it (and from itself).
LAYERS = [
    ["_errors", "_types"],
    ["_compat", "_checks", "_leaves"],
    ["_arguments"],
    ["_cpu"],
    ["_accumulate", "_ir"],
    ["_analysis"],
    ["_engine"],
    ["_layers"],
    ["_explainer", "rules"],
    ["_groups", "_references", "_quadrature", "_batch"],
    ["_split", "prototypes"],
    ["_cam_layer"],
    ["metrics", "_scores", "methods", "experts"],
    ["_inspection", "nnx", "plot"],
    ["datasets"],
    ["zoo"],
    ["__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _layer(name):
    """The layer's longest name that `name` starts with."""
    parts = name.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in LEVEL), None)


def _modules():
    return {path.relative_to(ROOT).with_suffix("").parts: path for path in ROOT.rglob("*.py")}


def _imports(path):
    """What a file imports, except for type checkers."""
    tree = ast.parse(path.read_text())
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_go_one_way():
    for parts, path in _modules().items():
        here = _layer(".".join(parts))
        assert here, f"{path} is in no layer: add it to LAYERS"
        for name in _imports(path):
            if name.startswith("jaxplain."):
                there = _layer(name.removeprefix("jaxplain.")) or "__init__"
                assert there == here or LEVEL[there] < LEVEL[here], f"{'.'.join(parts)} imports {name}"


def test_only_compat_touches_jax_internals():
    inside = re.compile(r"jax\._src|jax\.extend|jax\.interpreters|jax\.core\.(?!Tracer\b)")
    for parts, path in _modules().items():
        if parts != ("_compat",):
            assert not inside.search(path.read_text()), path


def test_peers_are_never_imported():
    for folder in (ROOT, REPOSITORY / "tests"):
        for path in folder.rglob("*.py"):
            if path.name.startswith("make_"):  # the scripts that made golden arrays
                continue
            assert not {"torch", "captum", "zennit", "lxt", "quantus", "pytorch_grad_cam"} & {
                name.split(".")[0] for name in _imports(path)
            }, path


def test_importing_the_package_is_light_and_starts_no_backend():
    code = (
        "import sys, jaxplain, jax; from jax._src import xla_bridge; "
        "heavy = {'matplotlib', 'scipy.stats', 'optax', 'flax', 'jaxplain.datasets', 'jaxplain.experts', "
        "'jaxplain.zoo'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert not xla_bridge._backends, 'a backend was started'; "
        "assert {'datasets', 'experts', 'zoo'} <= set(dir(jaxplain)); "
        "jaxplain.datasets.mnist, jaxplain.experts.vae, jaxplain.zoo.load"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _public_methods():
    for name in dir(jx):
        thing = getattr(jx, name)
        is_method = inspect.isfunction(thing) and thing.__module__.startswith("jaxplain.methods")
        if is_method and name not in NOT_METHODS:
            yield name, thing


# Public in the modules of methods, without being one: what `taylor` takes as its root.
NOT_METHODS = {"line_search", "scaled_input"}


def test_methods_holds_methods_only():
    names = {name for name, _ in _public_methods()}
    for path in (ROOT / "methods").glob("_[!_]*.py"):
        defined = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert defined & names, f"{path.name} defines no public method: it belongs elsewhere"


# Modules that users name, in `jaxplain.metrics.removal` say; all others begin with an underscore.
PUBLIC = {
    *("datasets", "experts", "methods", "metrics", "nnx", "plot", "prototypes", "rules", "zoo"),
    *("metrics.controls", "metrics.neighbors", "metrics.removal", "metrics.similarity", "rules.composites"),
}


def test_private_modules_begin_with_an_underscore():
    public = {".".join(parts).removesuffix(".__init__") for parts in _modules()} - {"__init__"}
    public = {name for name in public if not any(part.startswith("_") for part in name.split("."))}
    assert public == PUBLIC


def test_every_method_is_in_the_registry():
    missing = {name for name, _ in _public_methods()} - set(METHODS)
    assert not missing, f"add to METHODS in tests/registry.py: {missing}"


@pytest.mark.parametrize("name", [n for n, _ in _public_methods()])
def test_docstrings_say_what_they_must(name):
    doc = inspect.getdoc(getattr(jx, name))
    headings = ["$", "References:"]
    if name not in ("smoothgrad_squared", "vargrad"):  # which refer to smoothgrad
        headings += ["Guarantees", "Cost", "Returns:" if name in ("gradient", "saliency") else "units"]
    for heading in headings:
        assert heading in doc, f"{name}: no {heading}"
    parameters = inspect.signature(getattr(jx, name)).parameters
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[1:]), f"{name}: settings are keyword-only"


def _with_examples():
    """The modules whose docstrings hold examples."""
    for module in pkgutil.walk_packages(jx.__path__, "jaxplain."):
        path = ROOT.parent / module.name.replace(".", "/")
        source = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
        if ">>>" in source.read_text():
            yield module.name


@pytest.mark.parametrize("module", list(_with_examples()))
def test_docstring_examples_run(module):
    with as_users_run():
        result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


def test_the_readme_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S).group(1)
    code = code.replace("[:64]", "[:2]")  # the same program on fewer digits
    with as_users_run():
        exec(compile(code, "README.md", "exec"), {})
    import matplotlib.pyplot as plt

    plt.close("all")


def test_relative_links_of_the_documents_exist():
    for document in [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "benchmarks").glob("*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#:\s]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
