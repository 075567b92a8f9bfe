"""The version, in the one place where it stands: pyproject.toml reads it from here.

The model's code, which travels without the package, has a copy that a test holds equal.
"""

__version__ = "0.2.0"
