"""The version of this package. Importing it imports nothing else."""

__version__ = "1.0.0"
