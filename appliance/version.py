"""The release; `appliance.__version__` for whoever imports the package."""

__version__ = "0.1.0"
