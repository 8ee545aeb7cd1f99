"""Install the servers that `tests/test_real_servers.py` starts: `install.py FOLDER`.

Each has an environment of its own in FOLDER, because their requirements exclude each other.
"""

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "databricks": "databricks-ai-bridge[agent-server]==0.22.0",
    "devui": "agent-framework-devui==1.0.0b261022",
    "ogx": "ogx==1.5.0",
    "open_responses_server": "open-responses-server==0.4.1",
    "portkey": "@portkey-ai/gateway@1.15.2",
    "smg": "smg==1.13.0",
}
"""By dialect of the emulator: a package of PyPI, or of npm if it begins with an @."""

OLDEST = {"ogx==1.5.0": (3, 12)}
"""The oldest version of Python that a package runs on, if it is not ours."""


def find_python(oldest: tuple[int, int]) -> str | None:
    """Return a Python that is new enough, or None. pyenv also has commands for versions that it does not run."""
    pyenv = sorted(map(str, (Path.home() / ".pyenv" / "versions").glob("3.1[2-9].*/bin/python")))
    for python in (sys.executable, "python3.12", "python3.13", "python3.14", *pyenv):
        check = [python, "-c", f"import sys; sys.exit(sys.version_info < {oldest})"]
        if shutil.which(python) and subprocess.run(check, capture_output=True, check=False).returncode == 0:
            return python
    return None


def install(folder: Path, package: str) -> None:
    """Install a server, unless it needs npm or a newer Python, which is not there."""
    if not package.startswith("@"):
        oldest = OLDEST.get(package, (3, 11))
        python = find_python(oldest)
        if python is None:
            sys.stdout.write(f"{package} is skipped: it needs Python {'.'.join(map(str, oldest))}\n")
            return
        subprocess.run([python, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", package], check=True)
    elif npm := shutil.which("npm"):
        subprocess.run([npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", folder, package], check=True)
    else:
        sys.stdout.write(f"{package} is skipped: it needs npm\n")


if __name__ == "__main__":
    for name, package in PACKAGES.items():
        install(Path(sys.argv[1]) / name, package)
