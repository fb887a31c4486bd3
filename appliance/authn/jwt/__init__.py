"""JSON Web Tokens as proof of identity.

`verifier.JWTVerifier` judges a token for the certificate service. Everything that can be judged without input
or output is pure and lives in `strict_json`, `token`, `jwk`, `naming`, `uri` and `pattern`; `introspect` and
`jwks` ask the issuer through `fetch`, which bounds every request in time, size and destination.
"""
