"""What every test file may use."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

# One compilation cache for the session and the processes it starts: never the user's, and set
# before JAX is imported. pytest-xdist's workers inherit it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="lljax-tests-")
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
# Tests compile far more than they compute: LLVM's optimisation would be a third of their time. What
# is run as a user runs it (training, the end to end tests) is compiled as for a user.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """What a file's tests compiled is let go after it: gigabytes otherwise."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder of recorded outputs of the official programs: LLJAX_SHARED, or ../shared."""
    root = pathlib.Path(__file__).resolve().parents[1]
    folder = pathlib.Path(os.environ.get("LLJAX_SHARED", root.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no recorded outputs of the official programs: {folder}/reference is absent "
                    "(set LLJAX_SHARED)")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium; its network is off until `connect(True)`."""
    for program in ("chromedriver", "chromium"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    from tests.browser import Browser
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
