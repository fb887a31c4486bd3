"""What we sign, judged by a linter that nobody here wrote (pkilint, RFC 5280 and RFC 6960 profiles)."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.certs.ocsp import OCSPSigner, OCSPState
from tests.helpers import pki
from tests.helpers.hand_made import hand_made

SITE = pki.site()
WITH_STATUS = SITE.ca.keychain("softioc", "ioc", status=True).certificate
CERTIFICATES = {
    "with status": WITH_STATUS,
    "authority": SITE.server.chain[-1],
    "server": SITE.server.certificate,
    "client": SITE.client.certificate,
    "ioc": SITE.ioc.certificate,
}


def findings(tool: str, file: Path) -> list[str]:
    """Everything that is worse than a remark."""
    done = subprocess.run(
        [Path(sys.executable).with_name(tool), "lint", "-f", "JSON", "-s", "NOTICE", file],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    report = json.loads(done.stdout)
    return [
        f"{finding['code']}: {finding.get('message', '')}"
        for result in report["results"]
        for finding in result["finding_descriptions"]
    ]


@pytest.mark.parametrize("name", CERTIFICATES)
def test_certificates_have_no_finding(name, tmp_path):
    file = tmp_path / "certificate.pem"
    file.write_bytes(CERTIFICATES[name].public_bytes(Encoding.PEM))
    assert findings("lint_pkix_cert", file) == []


@pytest.mark.parametrize("state", [OCSPState.GOOD, OCSPState.REVOKED, OCSPState.UNKNOWN])
def test_status_answers_have_no_finding(state, tmp_path):
    issuer = SITE.ca
    signer = OCSPSigner(issuer.signer, issuer.certificate)
    now = pki.NOW.replace(microsecond=0)
    answer = signer.sign(
        SITE.client.certificate.serial_number,
        state,
        this_update=now,
        next_update=now + timedelta(minutes=30),
        revocation_date=now if state is OCSPState.REVOKED else None,
    )
    file = tmp_path / "answer.ors"
    file.write_bytes(answer)
    assert findings("lint_ocsp_response", file) == []


def test_the_linter_does_find_faults(tmp_path):
    """Without this the tests above could not fail."""
    file = tmp_path / "faulty.pem"
    file.write_bytes(hand_made().certificate.public_bytes(Encoding.PEM))
    assert findings("lint_pkix_cert", file)
