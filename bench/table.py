"""A row of the table, and how the table is printed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Row(NamedTuple):
    what: str
    ours: float
    peer: float
    unit: str
    wanted: float
    """The ratio that is wanted: at least this for rates, at most this for times."""
    less_is_better: bool = False
    peer_name: str = "p4p"

    @property
    def ratio(self) -> float:
        return self.ours / self.peer if self.peer else float("inf")

    @property
    def good(self) -> bool:
        return self.ratio <= self.wanted if self.less_is_better else self.ratio >= self.wanted


def show(rows: Iterable[Row]) -> str:
    lines = [f"{'what':<62} {'ours':>12} {'peer':>12} {'unit':<10} {'ratio':>7}  wanted"]
    for row in rows:
        sign = "<=" if row.less_is_better else ">="
        lines.append(
            f"{row.what + ' (' + row.peer_name + ')':<62} {figure(row.ours):>12} {figure(row.peer):>12} {row.unit:<10} "
            f"{row.ratio:>6.2f}x  {sign} {row.wanted:g}x {'' if row.good else '  MISSED'}"
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
