"""The wheel, and environments in which it is installed as a user would."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _succeed(*command: object) -> None:
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def site_packages(folder: Path) -> Path:
    """Where an environment has its packages."""
    return next(folder.rglob("site-packages"))


def _install(folder: Path, *what: object) -> None:
    pip = [python_of(folder), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    _succeed(*pip, *what)


@pytest.fixture(scope="session")
def wheel(made_once):
    """A wheel that is built from the source distribution, as a package index gets it."""
    folder = made_once(
        "wheel", lambda out: _succeed(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def environment(made_once, wheel):
    """Returns an environment with the wheel and one extra, or none, with the newest versions that are allowed.

    That without extras is complete; the others add to it what their extra brings, so that torch is installed once.
    """

    def plain(folder):
        venv.create(folder, with_pip=True)
        _install(folder, "torch==2.13.0", wheel)  # older ones, and those for GPUs, are too large a download

    def make(extra):
        if not extra:
            return made_once("environment", plain)
        shared = site_packages(make(""))

        def extended(folder):
            venv.create(folder, with_pip=True)
            (site_packages(folder) / "shared.pth").write_text(f"{shared}\n")
            _install(folder, f"{wheel}[{extra}]")

        return made_once(f"environment-{extra}", extended)

    return make
