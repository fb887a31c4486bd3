"""Ports that tests choose before a daemon takes them."""

import subprocess
import sys

from tests.helpers import ports
from tests.helpers.tools import ROOT


def test_a_port_is_given_once_here_and_to_no_other_process() -> None:
    mine = [ports.free_port() for _ in range(50)]
    assert len(set(mine)) == 50
    code = f"from tests.helpers import ports; print([port for port in {mine} if ports._claim(port)])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
