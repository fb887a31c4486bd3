"""What is there once, and belongs to this process."""

from __future__ import annotations

from typing import Any, NoReturn, SupportsIndex

__all__ = ["Unique"]


class Unique:
    """An object with connections, threads or clients of its own. The end of a copy would end them for the original."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: it belongs to this process; make another one where it is needed"
        )

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)
