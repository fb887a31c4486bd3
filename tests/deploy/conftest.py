"""Deployment tests: they read the roles, render their templates and ask systemd about the units."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def project() -> Path:
    return ROOT
