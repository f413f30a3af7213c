"""Compiled code: it works wherever the package is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_coder_works_where_nothing_can_be_cached(tmp_path: Path) -> None:
    """Files where numba would make its directories: beside the source and in the user's home."""
    package = tmp_path / "pipeline"
    package.mkdir()
    for module in (ROOT / "pipeline").glob("*.py"):
        shutil.copy(module, package)
    (package / "__pycache__").write_text("not a directory")
    home = tmp_path / "home"
    home.write_text("not a directory")
    names = {"NUMBA_CACHE_DIR", "PYTHONPYCACHEPREFIX"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(tmp_path)}
    code = "from pipeline import entropy; entropy.warm_up(); print(entropy.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(package / "entropy.py")
