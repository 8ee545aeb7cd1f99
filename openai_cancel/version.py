"""The version of this package. Importing it imports nothing else."""

from typing import Final

__version__: Final = "1.0.0"
