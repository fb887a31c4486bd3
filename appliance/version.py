"""The release; `appliance.__version__` for whoever imports the package."""

from typing import Final

__version__: Final = "0.1.0"
