"""Canaille, the identity provider behind pytest-iam, as a process: prints its URL and a client's credentials as JSON.

A process of its own, so that its web framework shares neither event loop nor warnings filters with our tests.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"


def main() -> None:
    from canaille import create_app
    from canaille.backends import Backend
    from canaille.oidc import provider
    from joserfc import jwt
    from joserfc.jwk import JWKRegistry
    from pytest_iam import Server

    subject, redirect_uri, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    key = JWKRegistry.generate_key("RSA", 2048)
    key.ensure_kid()
    issue = provider.generate_access_token

    def as_jwt(client: Any, grant_type: str, user: Any, scope: str) -> str:
        # Canaille gives a host's own account a random string, and says in a comment that it could be a JWT (RFC 9068).
        if grant_type != "client_credentials" or client.client_id == "opaque":
            return issue(client, grant_type, user, scope)
        jwk, alg = provider._get_signing_key(client)
        now = int(time.time())
        claims = {
            "iss": provider.get_issuer(),
            "sub": client.client_id,
            "aud": "cms",
            "iat": now,
            "exp": now + 300,
            "jti": str(uuid.uuid4()),
        }
        return jwt.encode({"alg": alg, "typ": "at+jwt", "kid": jwk.kid}, claims, jwk, algorithms=[alg])

    provider.generate_access_token = as_jwt
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
        clients = {}
        for name in ("cms", "softioc", "opaque"):
            clients[name] = client = server.models.Client(
                client_id=name,
                client_secret="client-secret-of-a-test",
                client_name=name,
                client_id_issued_at=datetime.now(UTC),
                redirect_uris=[redirect_uri],
                grant_types=["authorization_code", "refresh_token", "client_credentials"],
                response_types=["code"],
                scope=["openid", "profile"],
                token_endpoint_auth_method="client_secret_basic",
            )
            server.backend.save(client)
            client.audience = [client]
            server.backend.save(client)
        client = clients["cms"]
        server.consent(user, client)
        server.login(user)
        print(
            json.dumps({"url": server.url.rstrip("/"), "client": "cms", "secret": "client-secret-of-a-test"}),
            flush=True,
        )
        server.httpd.serve_forever()


if __name__ == "__main__":
    main()
