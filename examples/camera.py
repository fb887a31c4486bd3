"""A simulated camera: images as NTNDArray, only while somebody looks.

    python examples/camera.py --prefix demo:

It runs until Ctrl-C. Look at ``demo:image`` with the image widget of Phoebus, or with ``pvxget demo:image``.
"""

import argparse
import contextlib
import threading
import time

import numpy as np

from appliance.p4p.nt import NTNDArray
from appliance.p4p.server import Server
from appliance.p4p.server.thread import SharedPV

watched = threading.Event()


def image(width: int, height: int, number: int) -> np.ndarray:
    """Make a picture: a spot on a circle."""
    angle = number / 10
    x = np.arange(width) - width * (0.5 + 0.3 * np.cos(angle))
    y = np.arange(height) - height * (0.5 + 0.3 * np.sin(angle))
    spot = np.exp(-(x[np.newaxis, :] ** 2 + y[:, np.newaxis] ** 2) / (width * height / 50))
    return np.asarray(spot * 255, dtype=np.uint8)


def main(prefix: str, width: int, height: int, rate: float) -> None:
    """Serve the images."""
    pv = SharedPV(nt=NTNDArray(), initial=image(width, height, 0))
    pv.onFirstConnect(lambda _pv: watched.set())
    pv.onLastDisconnect(lambda _pv: watched.clear())
    with Server(providers=[{prefix + "image": pv}]):
        print(f"serving {prefix}image", flush=True)
        number = 0
        while True:
            watched.wait()
            number += 1
            pv.post(image(width, height, number), timestamp=time.time())
            time.sleep(1 / rate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A simulated camera, until Ctrl-C.")
    parser.add_argument("--prefix", default="demo:", help="begin of the PV's name (default: demo:)")
    parser.add_argument("--size", default="640x480", help="width x height in pixels (default: 640x480)")
    parser.add_argument("--rate", type=float, default=10.0, help="images per second (default: 10)")
    arguments = parser.parse_args()
    columns, rows = map(int, arguments.size.split("x"))
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the program
        main(arguments.prefix, columns, rows, arguments.rate)
