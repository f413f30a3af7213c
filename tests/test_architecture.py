"""The shape of the code base: direction of imports, sizes, a test per file, a camera without torch."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter import api, cli

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p.relative_to(ROOT) for name in ("pipeline", "nodes") for p in (ROOT / name).rglob("*.py"))
TESTS = {p.name for p in (ROOT / "tests").rglob("test_*.py")}
FILE_LINES, FUNCTION_LINES = 400, 40


def contract(contract_id: str) -> dict[str, list[str]]:
    contracts = api.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    return next(c for c in contracts if c["id"] == contract_id)


def modules_of_layers(contract_id: str) -> set[str]:
    rows = contract(contract_id)["layers"]
    return {name.strip(" ()") for row in rows for name in row.replace("|", ":").split(":")}


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse((ROOT / path).read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_imports_keep_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.lint_imports(no_cache=True, no_logo=True) == cli.EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("package", ["pipeline", "nodes"])
def test_every_module_has_its_row_in_the_contract(package: str) -> None:
    modules = {".".join(p.with_suffix("").parts[:2]) for p in SOURCES if p.parts[0] == package}
    assert modules - {f"{package}.__init__"} <= modules_of_layers("layers")


def test_every_pipeline_module_is_online_or_offline() -> None:
    modules = {".".join(p.with_suffix("").parts[:2]) for p in SOURCES if p.parts[0] == "pipeline"}
    assert modules - {"pipeline.__init__"} <= modules_of_layers("online")


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name not in ("__init__.py", "errors.py")], ids=str)
def test_every_file_has_its_mirrored_test(path: Path) -> None:
    # A family under one contract test (transport/, models/) may share the test named after its folder.
    assert {f"test_{path.stem}.py", f"test_{path.parent.name}.py"} & TESTS


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_and_functions_are_small(path: Path) -> None:
    lines = (ROOT / path).read_text().count("\n")
    assert lines <= FILE_LINES
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path)}
    assert {name: size for name, size in long.items() if size > FUNCTION_LINES} == {}


@pytest.mark.parametrize("module", ["nodes.camera", "nodes.gateway", "nodes.worker", "nodes.viewer", "nodes.demo"])
def test_a_node_loads_no_torch(module: str) -> None:
    loaded = modules_loaded_by(module)
    assert module in loaded
    assert not loaded & {"torch", "torchvision", "compressai", "pipeline.models", "pipeline.training"}


def test_the_command_starts_without_torch() -> None:
    assert not modules_loaded_by("pipeline.cli") & {"torch", "compressai", "pipeline.models", "onnx"}


def test_a_gateway_loads_neither_model_nor_codec() -> None:
    heavy = {"numba", "onnxruntime", "openvino", "pipeline.codec", "pipeline.runtime", "pipeline.bundle"}
    assert not modules_loaded_by("nodes.gateway") & heavy


def modules_loaded_by(module: str) -> set[str]:
    """Import the module in a fresh interpreter and return the names of all modules it then holds."""
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_imports(path: Path) -> None:
    importlib.import_module(f"benchmarks.{path.stem}")
