"""The package as a whole: imports go one way, docstrings run, names are documented."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

import tfpvae

FOLDER = Path(tfpvae.__file__).parent
MODULES = sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]))

# Each module and what of ours it may import: a floor rests on the floors below.
ALLOWED = {
    "noise": set(),
    "serialization": set(),
    "checks": set(),
    "blocks": {"checks", "noise", "serialization"},
    "distributions": set(),
    "layers": {"blocks", "checks", "serialization"},
    "losses": set(),
    "discrete": {"distributions"},
    "regularizers": {"blocks", "checks", "discrete", "noise", "serialization"},
    "schedules": {"checks", "regularizers"},
    "objectives": {
        "blocks",
        "checks",
        "density_ratio",  # which it loads on use
        "discrete",
        "noise",
        "regularizers",
        "replicas",
        "schedules",
    },
    "inputs": {"checks"},
    "execution": set(),
    "replicas": set(),
    "saving": {"checks", "serialization"},
    "streams": {"checks", "inputs", "saving"},
    "guards": {"blocks", "execution", "noise"},
    "resuming": {"checks", "guards", "inputs", "replicas", "saving"},
    "training": {
        "blocks",
        "checks",
        "execution",
        "guards",
        "inputs",
        "noise",
        "replicas",
        "resuming",
        "saving",
    },
    "density_ratio": {"blocks", "checks", "execution", "noise", "replicas", "training"},
    "datasets": set(),
    "networks": {"blocks", "checks", "noise"},
    "plotting": set(),
    "flows": {"blocks", "checks"},
    "priors": {"blocks", "checks", "distributions", "flows", "layers", "noise", "serialization"},
    "posteriors": {"blocks", "checks", "distributions", "flows", "layers"},
    "likelihoods": {"blocks", "checks", "distributions", "layers"},
    "serving": {
        "blocks",
        "checks",
        "distributions",
        "execution",
        "flows",
        "layers",
        "likelihoods",
        "noise",
        "saving",
    },
    "regression": {
        "arviz_export",
        "blocks",
        "checks",
        "flows",
        "inputs",
        "likelihoods",
        "losses",
        "noise",
        "posteriors",
        "priors",
        "regularizers",
        "serving",
        "training",
    },
    "mixed_effects": {"blocks", "checks", "inputs", "noise", "posteriors", "priors", "regression"},
    "estimators": {
        "checks",
        "likelihoods",
        "models",
        "objectives",
        "posteriors",
        "priors",
        "regression",
        "schedules",
    },
    "arviz_export": {"checks", "likelihoods", "noise"},
    "weights": {"blocks", "checks", "noise", "posteriors", "priors", "regularizers"},
    "latent_space": {"checks", "flows", "noise", "priors"},
    "evaluation": {"checks", "noise", "objectives", "schedules", "training"},
    "marginal_likelihood": {"blocks", "checks", "discrete", "execution", "noise"},
    "semi_supervised": {
        "blocks",
        "checks",
        "conditional",
        "inputs",
        "noise",
        "objectives",
        "priors",
        "replicas",
        "serving",
    },
    "conditional": {"blocks", "checks", "guards", "models", "noise", "priors", "serving"},
    "local_inference": {
        "blocks",
        "checks",
        "execution",
        "inputs",
        "models",
        "noise",
        "priors",
        "replicas",
    },
    "diagnostics": {
        "checks",
        "execution",
        "layers",
        "local_inference",
        "marginal_likelihood",
        "noise",
        "plotting",
        "regularizers",
    },
    "hierarchical": {
        "blocks",
        "checks",
        "discrete",
        "distributions",
        "models",
        "noise",
        "objectives",
        "priors",
        "regularizers",
    },
    "reproduce": {
        "checks",
        "datasets",
        "diagnostics",
        "hierarchical",
        "likelihoods",
        "models",
        "objectives",
        "posteriors",
        "priors",
    },
    "family": {
        "blocks",
        "checks",
        "hierarchical",
        "likelihoods",
        "models",
        "networks",
        "posteriors",
        "priors",
    },
    "simulators": {
        "blocks",
        "checks",
        "density_ratio",
        "execution",
        "flows",
        "noise",
        "priors",
        "replicas",
        "training",
    },
    "specs": {
        "blocks",
        "flows",
        "layers",
        "likelihoods",
        "objectives",
        "posteriors",
        "priors",
        "schedules",
        "words",
    },
    "tables": {"saving"},
    "dense": {"checks", "likelihoods", "models", "networks", "specs", "words"},
    "words": set(),
    "quiet": set(),
    "actions": {
        "checks",
        "conditional",
        "datasets",
        "dense",
        "diagnostics",
        "likelihoods",
        "local_inference",
        "models",
        "plotting",
        "priors",
        "saving",
        "specs",
        "tables",
    },
    # It loads actions, reproduce and specs on use, and TensorFlow with them.
    "commands": {"quiet", "words"},
    "explore": {
        "blocks",
        "checks",
        "conditional",
        "diagnostics",
        "execution",
        "explore_page",  # which it loads on use
        "hierarchical",
        "latent_space",
        "likelihoods",
        "local_inference",
        "models",
        "noise",
        "regularizers",
        "saving",
        "semi_supervised",
    },
    "explore_page": {"explore"},
    "cli": {"commands"},
    "summaries": {
        "checks",
        "diagnostics",
        "execution",
        "local_inference",
        "noise",
        "plotting",
        "replicas",
        "schedules",
    },
    "__main__": {"cli"},
    "models": {
        "blocks",
        "checks",
        "discrete",
        "execution",
        "inputs",
        "likelihoods",
        "losses",
        "marginal_likelihood",
        "noise",
        "objectives",
        "priors",
        "regularizers",
        "replicas",
        "schedules",
        "serving",
        "training",
    },
}


def imports_of(module):
    """The modules of ours that a module imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tfpvae":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfpvae."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("tfpvae.")}
    return found


def test_every_module_has_its_floor():
    assert set(MODULES) == set(ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    assert imports_of(module) <= ALLOWED[module]


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_blocks_load_no_model_code():
    """Nor what draws or downloads; but all that a saved model's layers are made of."""
    loaded = run("import sys, tfpvae; print(*sys.modules)")
    assert {name.split(".")[1] for name in loaded if name.startswith("tfpvae.")} == {
        "blocks",
        "checks",
        "discrete",
        "distributions",
        "flows",
        "layers",
        "likelihoods",
        "losses",
        "networks",
        "noise",
        "objectives",
        "posteriors",
        "priors",
        "regularizers",
        "replicas",
        "schedules",
        "serialization",
        "weights",
    }


@pytest.mark.parametrize(
    ("program", "words", "is_ours"),
    [
        ("/usr/bin/tfpvae", ["python", "/usr/bin/tfpvae", "--help"], True),
        ("-m", ["python", "-m", "tfpvae", "--help"], True),
        ("-m", ["python", "-Im", "tfpvae"], True),
        ("-m", ["python", "-m", "mine", "tfpvae"], False),  # a package `mine` that imports tfpvae
        ("-m", ["python", "-m", "pytest"], False),
        ("-c", ["python", "-c", "import tfpvae"], False),
        ("train_tfpvae.py", ["python", "train_tfpvae.py"], False),
        ("", ["python"], False),
    ],
)
def test_the_command_line_alone_loads_no_blocks(program, words, is_ours, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "orig_argv", words)
    assert tfpvae._is_command_line() == is_ours


def test_modules_are_loaded_on_first_use():
    """In the command line, which has loaded none of them."""
    code = """
import sys
sys.argv[0] = "tfpvae"
import tfpvae
assert "tensorflow" not in sys.modules
assert {"likelihoods", "DistributionLayer"} <= {*dir(tfpvae)}
assert "tensorflow" not in sys.modules
print(tfpvae.likelihoods.Bernoulli.__name__, tfpvae.negative_log_prob.__name__)
from tfpvae import posteriors
import tfpvae.priors
print(posteriors.DiagonalNormal.__name__, tfpvae.priors.StandardNormal.__name__)
"""
    names = ["Bernoulli", "negative_log_prob", "DiagonalNormal", "StandardNormal"]
    assert run(code) == names


def test_public_names_are_there_and_listed():
    for name in tfpvae.__all__:
        assert getattr(tfpvae, name) is not None
        assert name in dir(tfpvae)
    with pytest.raises(AttributeError, match="has no attribute 'VEA'"):
        _ = tfpvae.VEA


def test_version_is_stated_once():
    written = [path for path in FOLDER.glob("*.py") if tfpvae.__version__ in path.read_text()]
    assert [path.name for path in written] == ["__init__.py"]
    changelog = (FOLDER.parent / "CHANGELOG.md").read_text()
    assert f"## {tfpvae.__version__}" in changelog


def public(module):
    """The public classes and functions that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isclass(value) or inspect.isfunction(value))
    }


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name):
    module = importlib.import_module(f"tfpvae.{name}")
    assert module.__doc__
    for title, value in public(module).items():
        assert value.__doc__, f"{name}.{title} has no docstring"
        first = value.__doc__.strip().split("\n\n")[0]
        assert first.endswith("."), f"{name}.{title}: its first paragraph is no sentence"
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert function.__doc__, f"{name}.{title}.{method} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(name):
    module = importlib.import_module(f"tfpvae.{name}")
    names = {"np": np, "tf": tf, "tfp": tfp, "tfd": tfp.distributions, "keras": keras}
    result = doctest.testmod(
        module,
        extraglobs=names,
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
        raise_on_error=False,
    )
    assert result.failed == 0


BLOCKS = ["priors", "posteriors", "likelihoods"]


@pytest.mark.parametrize(
    "name", [*BLOCKS, "regularizers", "objectives", "losses", "models", "family"]
)
def test_public_names_have_an_example_and_an_equation(name):
    for title, value in public(importlib.import_module(f"tfpvae.{name}")).items():
        if title.endswith(("weight", "weight_config", "from_config")):
            continue
        assert ">>>" in value.__doc__, f"{name}.{title} has no example"
        if title not in ("Likelihood",):
            assert "$$" in value.__doc__, f"{name}.{title} has no equation"
