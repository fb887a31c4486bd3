"""What commands print, by way of a function: for a terminal, which must not get what clients wrote into records as it is."""

from __future__ import annotations

import codecs
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from appliance.ioc.dbcore.streams import line_stream, prints_to

__all__ = ["printed_through"]

_PIECE: Final = 65536


@contextmanager
def printed_through(write: Callable[[str], None]) -> Iterator[None]:
    """Give what the commands of this thread print to a function, as it comes; all of it has been given at the end of the block.

    A thread of its own calls the function, with one or more lines, or a part of one.
    """
    reading, writing = os.pipe()

    def pass_on() -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        while piece := os.read(reading, _PIECE):
            # The command must not wait for ever because nobody can be shown anything.
            with suppress(OSError, ValueError):
                write(decoder.decode(piece))
        with suppress(OSError, ValueError):
            write(decoder.decode(b"", final=True))

    thread = threading.Thread(target=pass_on, name="shell output", daemon=True)
    with ExitStack() as ending:
        ending.callback(os.close, reading)
        try:
            thread.start()
            ending.callback(thread.join)
            stream = ending.enter_context(line_stream(writing))
        finally:
            # Now only the stream can write, and the thread sees its end.
            os.close(writing)
        with prints_to(output=stream):
            yield
