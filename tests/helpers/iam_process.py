"""Canaille, the identity provider behind pytest-iam, as a process: prints its URL and a client's credentials as JSON.

A process of its own, so that its web framework shares neither event loop nor warnings filters with our tests.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import uuid
from datetime import UTC, datetime

os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"


def main() -> None:
    from canaille import create_app
    from canaille.backends import Backend
    from joserfc.jwk import JWKRegistry
    from pytest_iam import Server

    subject, redirect_uri = sys.argv[1:3]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = JWKRegistry.generate_key("RSA", 2048)
    key.ensure_kid()
    app = create_app(
        config={
            "TESTING": True,
            "ENV_FILE": None,
            "SECRET_KEY": str(uuid.uuid4()),
            "WTF_CSRF_ENABLED": False,
            "PREFERRED_URL_SCHEME": "http",
            "SERVER_NAME": f"localhost:{port}",
            "CANAILLE": {
                "DATABASE": "memory",
                "JAVASCRIPT": False,
                "ACL": {"DEFAULT": {"PERMISSIONS": ["use_oidc", "manage_oidc"]}},
            },
            "CANAILLE_OIDC": {
                "DYNAMIC_CLIENT_REGISTRATION_OPEN": True,
                "ACTIVE_JWKS": [key.as_dict(private=True)],
            },
        }
    )
    logging.disable(logging.CRITICAL)
    server = Server(app, port, Backend.instance)
    with app.app_context():
        user = server.models.User(
            user_name=subject,
            formatted_name="Soft IOC",
            family_name="IOC",
            emails=["ioc@example.org"],
            password="x",
        )
        server.backend.save(user)
        client = server.models.Client(
            client_id="cms",
            client_secret="client-secret-of-a-test",
            client_name="CMS",
            client_id_issued_at=datetime.now(UTC),
            redirect_uris=[redirect_uri],
            grant_types=["authorization_code"],
            response_types=["code"],
            scope=["openid", "profile"],
            token_endpoint_auth_method="client_secret_basic",
        )
        server.backend.save(client)
        client.audience = [client]
        server.backend.save(client)
        server.consent(user, client)
        server.login(user)
        print(
            json.dumps({"url": server.url.rstrip("/"), "client": "cms", "secret": "client-secret-of-a-test"}),
            flush=True,
        )
        server.httpd.serve_forever()


if __name__ == "__main__":
    main()
