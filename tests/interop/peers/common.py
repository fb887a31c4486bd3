"""The peers' side of the protocol of ``tests.helpers.peers``; imports nothing of the package under test."""

import json
import os
import sys
import threading

_lock = threading.Lock()


def say(**document):
    with _lock:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


def serve(commands, ready=True):
    """Answer requests until standard input ends; then leave without waiting for threads of a library."""
    say(ready=ready)
    for line in sys.stdin:
        request = json.loads(line)
        number = request.pop("id")
        try:
            result = commands[request.pop("op")](**request)
            say(id=number, result=result)
        except Exception as error:
            say(id=number, error=f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    os._exit(0)
