"""The engines tell nobody that they ran: nothing is kept for them, nothing goes out."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.bundle import default_bundle
from pipeline.engine_libraries import import_openvino

ROOT = Path(__file__).parent.parent
FILES = sorted(p.relative_to(ROOT) for name in ("pipeline", "nodes", "benchmarks") for p in (ROOT / name).rglob("*.py"))


def home_after(session: str, home: Path, **variables: str) -> tuple[list[str], str]:
    """What a process that opened a session left in its home, and what it wrote; CI alone would silence it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "XDG_CACHE_HOME", "XDG_STATE_HOME")}
    script = f"from pathlib import Path\ngraph = Path({str(default_bundle() / 'decode.onnx')!r})\n{session}\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**kept, "HOME": str(home), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()), done.stdout + done.stderr


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("variables", [{}, {"ORT_DISABLE_TELEMETRY": "0"}], ids=["unset", "asked for"])
def test_a_session_leaves_nothing_behind(engine: str, variables: dict[str, str], tmp_path: Path) -> None:
    opened = f"from pipeline.runtime import open_session\nopen_session(graph, engine={engine!r}, threads=1)"
    assert home_after(opened, tmp_path, **variables) == ([], "")


def test_who_imported_the_reporter_before_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = ModuleType("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", reporter)
    import_openvino()
    assert sys.modules["openvino_telemetry"] is reporter


def test_no_other_file_imports_them() -> None:
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            found.update(str(path) for name in names if name.split(".")[0] in ("onnxruntime", "openvino"))
    assert found == {"pipeline/engine_libraries.py"}
