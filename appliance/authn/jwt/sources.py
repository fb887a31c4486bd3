"""Where an authenticator's token comes from."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

__all__ = ["TokenSource"]


class TokenSource(Protocol):
    """Something that gives the present token."""

    async def fetch(self, *, better_than: datetime | None = None) -> str:
        """Return a token that ends after ``better_than`` and was not returned before; empty if there is none yet.

        Raises:
            ApplianceError: The source cannot be asked; the text says why.
        """
        ...
