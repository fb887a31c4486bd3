"""A row of the table, and how the table is printed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Row(NamedTuple):
    what: str
    ours: float
    peer: float
    """The same of a peer, measured in the same run; 0 where there is none."""
    unit: str
    wanted: float
    """The ratio that is wanted: at least this for rates, at most this for times; 0 where only ``goal`` counts."""
    less_is_better: bool = False
    peer_name: str = "p4p"
    goal: float = 0.0
    """The figure itself that is wanted, at least or at most; 0 where only the ratio counts."""

    @property
    def ratio(self) -> float:
        return self.ours / self.peer if self.peer else float("inf")

    @property
    def good(self) -> bool:
        pairs = [(self.ratio, self.wanted)] * bool(self.wanted) + [(self.ours, self.goal)] * bool(self.goal)
        return all(got <= wanted if self.less_is_better else got >= wanted for got, wanted in pairs)


def show(rows: Iterable[Row]) -> str:
    lines = [f"{'what':<62} {'ours':>12} {'peer':>12} {'unit':<10} {'ratio':>7}  wanted"]
    for row in rows:
        sign = "<=" if row.less_is_better else ">="
        what = f"{row.what} ({row.peer_name})" if row.peer else row.what
        peer = figure(row.peer) if row.peer else "-"
        ratio = f"{row.ratio:.2f}x" if row.peer else "-"
        wanted = [f"{sign} {row.wanted:g}x"] * bool(row.wanted)
        wanted += [f"{sign} {figure(row.goal)} {row.unit}"] * bool(row.goal)
        lines.append(
            f"{what:<62} {figure(row.ours):>12} {peer:>12} {row.unit:<10} {ratio:>7}  "
            f"{', '.join(wanted)}{'' if row.good else '  MISSED'}"
        )
    return "\n".join(lines)


def figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def alternate(one: Callable[[], float], other: Callable[[], float], rounds: int = 3) -> tuple[float, float]:
    """Measure two things in turn, so that a machine that changes its speed changes it for both; medians."""
    ones, others = [], []
    for _ in range(rounds):
        ones.append(one())
        others.append(other())
    return statistics.median(ones), statistics.median(others)
