"""Install the servers that `tests/test_real_servers.py` starts: `install.py FOLDER`.

Each has an environment of its own in FOLDER, because their requirements exclude each other.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = {
    "databricks": "databricks-ai-bridge[agent-server]==0.22.0",
    "devui": "agent-framework-devui==1.0.0b261022",
    "open_responses_server": "open-responses-server==0.4.1",
    "portkey": "@portkey-ai/gateway@1.15.2",
    "smg": "smg==1.13.0",
}
"""By dialect of the emulator: a package of PyPI, or of npm if it begins with an @."""


def install(folder: Path, package: str) -> None:
    """Install a server, unless it needs npm, which is not there."""
    if not package.startswith("@"):
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", package], check=True)
    elif npm := shutil.which("npm"):
        subprocess.run([npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", folder, package], check=True)
    else:
        sys.stdout.write(f"{package} is skipped: it needs npm\n")


if __name__ == "__main__":
    for name, package in PACKAGES.items():
        install(Path(sys.argv[1]) / name, package)
