"""What is told of a public key without its private half (SP 800-89 5.3.3)."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from appliance.certs.profiles import check_public_key, generate_key
from appliance.certs.public_keys import composite_steps, key_identity, rsa_problem

KEY = generate_key("rsa-2048")
N = KEY.public_key().public_numbers().n
P = KEY.private_numbers().p
MERSENNE = (1 << 2203) - 1


def composite(modulus):
    steps = composite_steps(modulus)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("bits", [2048, 3072])
def test_good_keys_are_good(bits):
    modulus = rsa.generate_private_key(65537, bits).public_key().public_numbers().n
    assert rsa_problem(modulus, 65537) is None
    assert composite(modulus) is None


@pytest.mark.parametrize(
    ("modulus", "exponent", "why"),
    [
        (N + 1, 65537, "even"),
        (N * 3, 65537, "factor below"),
        (N * 751, 65537, "factor below"),
        ((1 << 2047) + 1, 65537, "factor below"),
        ((1 << 2048) - 1942289, 65537, "power of two"),
        (P * P, 65537, "close together"),
        (N, 65536, "exponent 65536"),
        (N, 3, "exponent 3"),
        (N, 1, "exponent 1"),
        (N, (1 << 256) + 1, "exponent of 257 bits"),
        (N, (1 << 2000) + 1, "exponent of 2001 bits"),
    ],
    # The numbers are drawn anew in each process, so they cannot name the cases.
    ids=["even", "3", "751", "2^2047+1", "2^2048-1942289", "square", "65536", "e3", "e1", "e257", "e2001"],
)
def test_what_is_seen_at_once(modulus, exponent, why):
    assert why in (rsa_problem(modulus, exponent) or "")


def test_the_largest_exponent_and_the_smallest_are_accepted():
    assert rsa_problem(N, 65537) is None
    assert rsa_problem(N, (1 << 255) + 1) is None


def test_primes_and_powers_of_primes_are_found():
    assert "prime" in composite(MERSENNE)
    assert "power of a prime" in composite(P**3)
    assert "power of a prime" in composite(P**2)


def test_primes_that_lie_close_together_are_found():
    from math import isqrt

    close = next(q for q in range(P + 2, P + 100_000, 2) if pow(2, q - 1, q) == 1)
    assert "close together" in rsa_problem(P * close, 65537)
    assert isqrt(P * close) >= P


def test_points_of_small_order_are_no_ed25519_keys():
    p = (1 << 255) - 19
    for y in (0, 1, p - 1, p, p + 1):
        for sign in (0, 1 << 255):
            raw = (y | sign).to_bytes(32, "little")
            key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
            assert "small order" in check_public_key(key)
    order_eight = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"
    assert "small order" in check_public_key(
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(order_eight))
    )
    assert check_public_key(generate_key("ed25519").public_key()) is None


def test_a_key_is_known_in_every_form():
    numbers = KEY.public_key().public_numbers()
    assert key_identity(rsa.RSAPublicNumbers(65539, numbers.n).public_key()) == key_identity(KEY.public_key())
    point = generate_key("ec-p256").public_key().public_numbers()
    p256 = (1 << 256) - (1 << 224) + (1 << 192) + (1 << 96) - 1
    opposite = ec.EllipticCurvePublicNumbers(point.x, p256 - point.y, point.curve).public_key()
    assert key_identity(opposite) == key_identity(point.public_key())
    assert len({key_identity(generate_key(a).public_key()) for a in ("ec-p256", "ec-p384", "ed25519")}) == 3
