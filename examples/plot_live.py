"""Plot a number as it changes.

    python examples/plot_live.py demo:temperature
    python examples/plot_live.py demo:temperature --points 100 --save picture.png

It ends with Ctrl-C, when the window is closed, or after ``--points`` updates. It needs matplotlib.
"""

import argparse
import contextlib
import queue
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from appliance.p4p.client.thread import Context


def main(name: str, points: int | None, save: Path | None) -> None:
    """Plot the PV until there are enough points."""
    updates: queue.Queue[Any] = queue.Queue()
    times: list[float] = []
    values: list[float] = []
    figure, axes = plt.subplots()
    axes.set_title(name)
    (line,) = axes.plot([], [])
    plt.show(block=False)
    print(f"plotting {name}", flush=True)
    # A thread of the context puts updates into the queue. Only this thread, which owns the window, draws.
    with Context("pva") as ctx, ctx.monitor(name, updates.put):
        while (points is None or len(values) < points) and plt.fignum_exists(figure.number):
            plt.pause(0.05)
            while not updates.empty():
                value = updates.get()
                times.append(value.timestamp)
                values.append(value)
            line.set_data([moment - times[0] for moment in times], values)
            axes.relim()
            axes.autoscale_view()
    if save is not None:
        figure.savefig(save)
        print(f"{len(values)} points of {name} in {save}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Plot a number as it changes.")
    parser.add_argument("pv", help="name of the PV")
    parser.add_argument("--points", type=int, help="updates after which the program ends")
    parser.add_argument(
        "--save", type=Path, help="file for the picture; its name says the format, for instance .png"
    )
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the program
        main(arguments.pv, arguments.points, arguments.save)
