"""
Which module may import which: this file is the table that CONTRIBUTING.md prints.

A module stands in one layer and one room. The room is its folder, or itself where it lies directly in the package.

- Imports run downward: to a lower layer.
- Within a layer, modules of one room may import each other; in layers 0 and 1 any module may import any other.
  So `labeling/` and `prm/` do not import each other (they meet at the dataset row), nor do `policy/`, `evaluation/`
  and `compat`; what they need of each other stands in files of layer 0.
- No imports in a circle.
- Only `trainer.py` and `*_trainer.py` import TRL trainers, only `verify.py` imports math_verify, nothing imports
  recipes or tests, and no module imports a public name from the top of the package (`__version__` excepted).

The imports are read from the source, also those inside functions, so nothing is executed.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "trl_erprm"

# The first match counts: a file named in layer 0 is taken out of its folder's layer. "rollout" is the whole folder.
LAYERS: list[tuple[str, int]] = [
    # pure functions, math first
    ("choices", 0),
    ("steps", 0),
    ("verify", 0),
    ("wording", 0),
    ("worker", 0),
    ("labeling.estimators", 0),
    ("prm.aggregation", 0),
    ("prm.metrics", 0),
    ("policy.advantages", 0),
    ("policy.generalized_advantages", 0),
    ("policy.guards", 0),
    ("policy.perturbations", 0),
    ("policy.selection", 0),
    ("evaluation.best_of_n", 0),
    ("evaluation.calibration", 0),
    ("evaluation.intervals", 0),
    ("evaluation.curves", 0),
    ("evaluation.paired", 0),
    ("evaluation.step_metrics", 0),
    ("evaluation.step_pairs", 0),
    # runs on disk, data, the embedded task, arguments, engines
    ("manifest", 1),
    ("data", 1),
    ("arithmetic", 1),
    ("arguments", 1),
    ("parsing", 1),
    ("trained_weights", 1),
    ("rollout", 1),
    # labels and the reward model
    ("labeling", 2),
    ("prm", 2),
    # what uses the reward model
    ("policy", 3),
    ("evaluation", 3),
    ("compat", 3),
]
# In these layers a module may import any other of its layer.
OPEN_LAYERS = {0, 1}
# The top of the package re-exports the public names, so it may import everything.
TOP_LAYER = 4


def layer_of(module: str) -> int | None:
    """Layer of `module`, `None` where it stands in none. Names lack the package: "prm.trainer"; "" is its top."""
    if module == "":
        return TOP_LAYER
    for name, layer in LAYERS:
        if module == name or module.startswith(name + "."):
            return layer
    return None


def room_of(module: str) -> str:
    return module.partition(".")[0]


def is_trainer_file(module: str) -> bool:
    return module.rpartition(".")[2] == "trainer" or module.endswith("_trainer")


def read_modules(root: Path) -> dict[str, Path]:
    """Modules under the package folder `root`, name -> file. A folder's `__init__` has the folder's name."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def iterate_imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[str, str | None, int, bool]]:
    """Yield (absolute module name, imported name or `None`, line, whether it is needed at run time) of each import."""
    type_checking_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    here = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    for node in ast.walk(tree):
        at_run_time = id(node) not in type_checking_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno, at_run_time
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # one dot is the package that holds this module, which a package's `__init__` is itself
                parent = here[: len(here) - node.level + is_package]
                base = ".".join([*parent, base]) if base else ".".join(parent)
            for alias in node.names:
                yield base, alias.name, node.lineno, at_run_time


def iterate_trl_trainers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield (name, line) of each TRL trainer that a module imports or reaches as an attribute (`trl.SFTTrainer`)."""
    trl_names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "trl":
                    trl_names.add(alias.asname or "trl")
                    if alias.name.endswith("_trainer"):
                        yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "trl":
            for alias in node.names:
                if alias.name.endswith("Trainer") or f"{node.module}.{alias.name}".find("_trainer") >= 0:
                    yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.endswith("Trainer"):
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in trl_names:
                yield ast.unparse(node), node.lineno


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A circle in the import graph as a path whose first and last module are the same, or `None`."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            circle = path[path.index(module) :]
            first = circle.index(min(circle))  # so that one circle has one name
            return [*circle[first:], *circle[:first], circle[first]]
        if module in finished:
            return None
        for target in sorted(graph.get(module, ())):
            if cycle := visit(target, [*path, module]):
                return cycle
        finished.add(module)
        return None

    for module in sorted(graph):
        if cycle := visit(module, []):
            return cycle
    return None


def find_violations(root: Path) -> list[str]:
    """Every breach of the table by the package folder `root`, one readable line each."""
    modules = read_modules(root)
    violations = []
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        layer = layer_of(module)
        if layer is None:
            violations.append(
                f"{path.relative_to(root)}: stands in no layer. Give it one in LAYERS of tests/test_import_layers.py "
                "and in CONTRIBUTING.md."
            )
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        is_package = path.name == "__init__.py"

        for name, line in iterate_trl_trainers(tree):
            if not is_trainer_file(module):
                violations.append(
                    f"{path.relative_to(root)}:{line}: imports {name}; only trainer files import TRL trainers."
                )

        for base, name, line, at_run_time in iterate_imports(tree, module, is_package):
            where = f"{path.relative_to(root)}:{line}"
            top, _, rest = base.partition(".")
            if top == "math_verify" and module != "verify":
                violations.append(f"{where}: imports math_verify; only verify.py does, use its functions.")
            if top in ("recipes", "tests"):
                violations.append(f"{where}: imports {top}; the package does not know its recipes and tests.")
            if top != PACKAGE:
                continue
            # `from trl_erprm.prm import aggregation` imports the module of that name, where there is one.
            target = f"{rest}.{name}".strip(".") if name else rest
            if target not in modules:
                target = rest
            if target == module or (target == "" and name == "__version__"):
                continue
            target_layer = layer_of(target)
            if target_layer is None:
                continue  # reported once, at that module itself
            if target_layer > layer:
                violations.append(
                    f"{where}: {module} (layer {layer}) imports {target or PACKAGE} (layer {target_layer}); "
                    "imports run downward."
                )
            elif target_layer == layer and layer not in OPEN_LAYERS and room_of(target) != room_of(module):
                violations.append(
                    f"{where}: {module} imports {target}; {room_of(module)} and {room_of(target)} share layer {layer} "
                    "and do not import each other."
                )
            if at_run_time and not is_package and modules.get(target, path).name != "__init__.py":
                graph.setdefault(module, set()).add(target)
    if cycle := find_cycle(graph):
        violations.append(f"imports in a circle: {' -> '.join(cycle)}.")
    return violations


def test_package_keeps_to_the_table():
    root = Path(__file__).resolve().parents[1] / PACKAGE
    assert read_modules(root), f"no modules under {root}"
    violations = find_violations(root)
    assert not violations, "\n" + "\n".join(violations)


def test_every_name_of_the_table_can_be_reached():
    """An entry below a wider one would never match."""
    for name, layer in LAYERS:
        assert layer_of(name) == layer, name


@pytest.fixture
def write_package(tmp_path):
    def write(files: dict[str, str]) -> Path:
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path

    return write


ALLOWED = {
    "__init__.py": "from .prm import trainer\nfrom trl_erprm.policy.advantages import x",
    "steps.py": "import re",
    "verify.py": "from math_verify import parse\nfrom .steps import split_steps",
    "data.py": "from trl_erprm.steps import split_steps\nfrom trl_erprm import __version__",
    "arithmetic.py": "from . import data",
    "labeling/__init__.py": "from .monte_carlo import MonteCarloLabeler",
    "labeling/estimators.py": "import torch",
    "labeling/monte_carlo.py": "from ..rollout.engine import Engine\nfrom trl_erprm.labeling.estimators import x",
    "rollout/engine.py": "from trl_erprm.data import x",
    "prm/__init__.py": "",
    "prm/aggregation.py": "from trl_erprm.labeling.estimators import x",
    "prm/config.py": "from trl import RewardConfig",
    "prm/formats.py": "from trl_erprm.prm.config import x\nfrom transformers import Trainer",
    "prm/trainer.py": "from trl import RewardTrainer\nimport trl\ntrl.RewardTrainer\nfrom .formats import x",
    "policy/advantages.py": "",
    "policy/rft_trainer.py": "def f():\n    from ..evaluation.best_of_n import x\n    from ..prm import formats",
    "policy/process_reward.py": "from trl_erprm.prm.aggregation import aggregate",
    "evaluation/best_of_n.py": "",
    "evaluation/report.py": "from trl_erprm.policy import advantages",
    "compat.py": "from trl_erprm.prm.trainer import ERPRMTrainer",
}


def test_allowed_imports_pass(write_package):
    assert find_violations(write_package(ALLOWED)) == []


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("steps.py", "from .arguments import x", "steps (layer 0) imports arguments (layer 1)"),
        ("prm/aggregation.py", "from .formats import x", "prm.aggregation (layer 0) imports prm.formats (layer 2)"),
        ("prm/aggregation.py", "from trl_erprm.prm import x", "prm.aggregation (layer 0) imports prm (layer 2)"),
        ("rollout/engine.py", "import trl_erprm.labeling.config", "imports labeling.config (layer 2)"),
        ("rollout/engine.py", "def f():\n    from ..prm.formats import x", "engine.py:2: rollout.engine (layer 1)"),
        ("prm/formats.py", "from ..labeling.monte_carlo import x", "prm and labeling share layer 2"),
        ("labeling/monte_carlo.py", "from trl_erprm.prm import formats", "labeling and prm share layer 2"),
        ("prm/trainer.py", "from ..policy.rft_trainer import x", "(layer 2) imports policy.rft_trainer (layer 3)"),
        ("policy/rft_trainer.py", "from ..evaluation.report import x", "policy and evaluation share layer 3"),
        ("evaluation/report.py", "from ..policy.process_reward import x", "evaluation and policy share layer 3"),
        ("compat.py", "from .policy.process_reward import x", "compat and policy share layer 3"),
        ("data.py", "from trl_erprm import ERPRMTrainer", "data (layer 1) imports trl_erprm (layer 4)"),
        ("prm/formats.py", "if TYPE_CHECKING:\n    from ..compat import x", "(layer 2) imports compat (layer 3)"),
        ("prm/formats.py", "import math_verify.parser", "only verify.py does"),
        ("prm/formats.py", "from recipes.prm import main", "imports recipes"),
        ("prm/formats.py", "import tests.conftest", "imports tests"),
        ("prm/formats.py", "from trl import SFTTrainer", "trl.SFTTrainer; only trainer files"),
        ("prm/formats.py", "from trl.trainer.sft_trainer import x", "only trainer files"),
        ("prm/formats.py", "from trl.trainer import sft_trainer", "only trainer files"),
        ("prm/formats.py", "import trl.trainer.sft_trainer", "only trainer files"),
        ("prm/formats.py", "import trl as t\nt.trainer.SFTTrainer", "formats.py:2: imports t.trainer.SFTTrainer"),
        ("data.py", "from . import arithmetic", "in a circle: arithmetic -> data -> arithmetic"),
        ("prm/config.py", "from .formats import x", "in a circle: prm.config -> prm.formats -> prm.config"),
        ("utils.py", "", "utils.py: stands in no layer"),
        ("helpers/__init__.py", "", "helpers/__init__.py: stands in no layer"),
        ("prmx.py", "", "prmx.py: stands in no layer"),
    ],
)  # fmt: skip
def test_each_breach_is_found(write_package, file, source, expected):
    violations = find_violations(write_package(ALLOWED | {file: source}))
    assert len(violations) == 1, violations
    assert expected in violations[0]


def test_a_circle_for_type_checkers_only_is_none(write_package):
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .formats import x"
    assert find_violations(write_package(ALLOWED | {"prm/config.py": source})) == []
