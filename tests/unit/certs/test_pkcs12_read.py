"""Reading PKCS#12 of others: every form is read, and none may ask for more work than is allowed (RFC 7292, 8018, 9579)."""

import asyncio
import hashlib
import hmac
import subprocess

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.certs import pkcs12
from appliance.certs.ber import read_ber
from appliance.certs.der import DERError, context, integer, null, octets, oid, sequence, tlv
from appliance.certs.keychain import dump_keychain, load_key, load_keychain
from appliance.certs.pkcs12 import Bag
from appliance.certs.pkcs12_read import MAX_ROUNDS, read_pkcs12
from appliance.certs.profiles import build_certificate, subject_name
from appliance.certs.rc2 import decrypt_rc2_cbc
from appliance.errors import KeychainError
from tests.helpers.pki import DAY, NOW, PASSWORD, site, write_pem

HUGE = (1 << 31) - 1
TOO_MUCH = r"rounds|too much memory or time"
DATA = oid("1.2.840.113549.1.7.1")
ENCRYPTED_DATA = oid("1.2.840.113549.1.7.6")
SALT = octets(b"12345678")
SHA256 = sequence(oid("2.16.840.1.101.3.4.2.1"), null())
HMAC_SHA256 = sequence(oid("1.2.840.113549.2.9"), null())
AES = sequence(oid("2.16.840.1.101.3.4.1.42"), octets(bytes(16)))
KEY = site().client.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def openssl(path, *options: object) -> bytes:
    cert, key, ca = write_pem(path, site().client)
    out = path / "o.p12"
    subprocess.run(
        ["openssl", "pkcs12", "-export", "-inkey", key, "-in", cert, "-certfile", ca, "-out", out, *map(str, options)],
        check=True,
        capture_output=True,
        timeout=60,
    )  # fmt: skip
    return out.read_bytes()


def pbes2(rounds: int) -> bytes:
    function = sequence(oid("1.2.840.113549.1.5.12"), sequence(SALT, integer(rounds), HMAC_SHA256))
    return sequence(oid("1.2.840.113549.1.5.13"), sequence(function, AES))


def scrypt(n: int, r: int, p: int) -> bytes:
    function = sequence(oid("1.3.6.1.4.1.11591.4.11"), sequence(SALT, integer(n), integer(r), integer(p)))
    return sequence(oid("1.2.840.113549.1.5.13"), sequence(function, AES))


def pbes1(rounds: int) -> bytes:
    return sequence(oid("1.2.840.113549.1.12.1.3"), sequence(SALT, integer(rounds)))


def shrouded(algorithm: bytes, encrypted: bytes = bytes(32)) -> bytes:
    return sequence(oid("1.2.840.113549.1.12.10.1.2"), context(0, sequence(algorithm, octets(encrypted))))


def plain_safe(*bags: bytes) -> bytes:
    return sequence(DATA, context(0, octets(sequence(*bags))))


def encrypted_safe(algorithm: bytes, encrypted: bytes = bytes(32)) -> bytes:
    content = sequence(DATA, algorithm, context(0, encrypted, constructed=False))
    return sequence(ENCRYPTED_DATA, context(0, sequence(integer(0), content)))


def file(*safes: bytes, mac: bytes = b"") -> bytes:
    return sequence(integer(3), sequence(DATA, context(0, octets(sequence(*safes)))), mac)


def hidden(bag: bytes) -> bytes:
    """A bag that shows only when its safe is decrypted."""
    algorithm, encrypted = pkcs12._pbes2(sequence(bag), b"", 2048)
    return encrypted_safe(algorithm, encrypted)


def pbmac1(rounds: int, tag: bytes = bytes(32)) -> bytes:
    function = sequence(
        oid("1.2.840.113549.1.5.12"), sequence(SALT, integer(rounds), integer(32), HMAC_SHA256)
    )
    algorithm = sequence(oid("1.2.840.113549.1.5.14"), sequence(function, HMAC_SHA256))
    return sequence(sequence(algorithm, octets(tag)), octets(b"NOT USED"), integer(1))


NESTED = sequence(oid("1.2.840.113549.1.12.10.1.6"), context(0, sequence(shrouded(pbes2(HUGE)))))
PLACES = {
    "the MAC": file(mac=sequence(sequence(SHA256, octets(bytes(32))), SALT, integer(HUGE))),
    "PBMAC1": file(mac=pbmac1(HUGE)),
    "PBES2 of a shrouded key": file(plain_safe(shrouded(pbes2(HUGE)))),
    "PBES2 of a safe": file(encrypted_safe(pbes2(HUGE))),
    "the second safe": file(plain_safe(), encrypted_safe(pbes2(HUGE))),
    "PKCS#12's own scheme": file(plain_safe(shrouded(pbes1(HUGE)))),
    "PKCS#12's own scheme of a safe": file(encrypted_safe(pbes1(HUGE))),
    "a bag of bags": file(plain_safe(NESTED)),
    "a key inside an encrypted safe": file(hidden(shrouded(pbes2(HUGE)))),
    "a bag of bags inside an encrypted safe": file(hidden(NESTED)),
    "scrypt's N": file(plain_safe(shrouded(scrypt(1 << 30, 1, 1)))),
    "scrypt's r": file(plain_safe(shrouded(scrypt(1 << 10, 1 << 20, 1)))),
    "scrypt's p": file(encrypted_safe(scrypt(1 << 10, 8, 1 << 24))),
    "a number of 64 octets": file(plain_safe(shrouded(pbes2(1 << 511)))),
    "one more than is allowed": file(plain_safe(shrouded(pbes2(MAX_ROUNDS + 1)))),
}


@pytest.mark.timeout(60)  # the rounds that are asked for take a quarter of an hour and more
@pytest.mark.parametrize("place", PLACES)
def test_too_many_rounds_are_refused_wherever_they_stand(place):
    for read in (load_keychain, load_key):
        with pytest.raises(KeychainError, match=TOO_MUCH):
            read(PLACES[place])


@pytest.mark.timeout(60)
def test_many_bags_together_are_bounded_too():
    """Each below the bound: 40 keys of 400 000 rounds, of which 15 would be allowed."""
    with pytest.raises(KeychainError, match="rounds"):
        load_keychain(file(plain_safe(*[shrouded(*pkcs12._pbes2(KEY, b"", 400_000))] * 40)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("password", ["", "secret"])
def test_openssl_with_three_million_rounds_is_refused(tmp_path, password):
    data = openssl(tmp_path, "-iter", 3_000_000, "-nomaciter", "-passout", f"pass:{password}")
    with pytest.raises(KeychainError, match="more than 2000000 rounds"):
        load_keychain(data, password.encode())


async def test_a_file_of_many_rounds_does_not_hold_up_the_event_loop(tmp_path):
    data = openssl(tmp_path, "-iter", MAX_ROUNDS, "-nomaciter", "-passout", "pass:")
    loop = asyncio.get_running_loop()
    turns = 0
    reading = loop.run_in_executor(None, load_keychain, data)
    while not reading.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert (await reading)[1:] == site().client[1:]
    # Hundreds on an idle machine. If the reading kept the interpreter for itself, the loop would have a turn before it and one after.
    assert turns > 5


@pytest.mark.parametrize(
    "options",
    [
        ["-macalg", "sha1", "-keypbe", "AES-128-CBC", "-certpbe", "AES-192-CBC"],
        ["-macalg", "sha512", "-keypbe", "DES-EDE3-CBC", "-certpbe", "PBE-SHA1-3DES"],
        ["-macalg", "sha384", "-keypbe", "PBE-SHA1-2DES", "-certpbe", "AES-256-CBC", "-nomaciter"],
        ["-legacy", "-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-RC2-128"],
        ["-legacy", "-descert"],
        ["-legacy", "-nomac"],
        ["-noiter", "-nomaciter"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("password", ["", "pässwörd €"])
def test_what_openssl_writes_is_read(tmp_path, options, password):
    data = openssl(tmp_path, *options, "-passout", f"pass:{password}")
    assert load_keychain(data, password.encode())[1:] == site().client[1:]


def test_a_mac_of_pbmac1_is_checked():
    safe = plain_safe(sequence(oid("1.2.840.113549.1.12.10.1.1"), context(0, KEY)))
    key = hashlib.pbkdf2_hmac("sha256", PASSWORD, b"12345678", 1000, 32)
    good = file(safe, mac=pbmac1(1000, hmac.digest(key, sequence(safe), "sha256")))
    assert read_pkcs12(good, PASSWORD).key is not None
    with pytest.raises(KeychainError, match="password is wrong"):
        read_pkcs12(good, b"other")


def test_a_key_under_scrypt_is_read():
    key = hashlib.scrypt(PASSWORD, salt=b"12345678", n=1024, r=8, p=1, dklen=32)
    algorithm, encrypted = scrypt(1024, 8, 1), KEY
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    fill = 16 - len(encrypted) % 16
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(bytes(16))).encryptor()
    made = encryptor.update(encrypted + bytes((fill,)) * fill)
    assert read_pkcs12(file(plain_safe(shrouded(algorithm, made))), PASSWORD).key is not None


def in_pieces(data: bytes) -> bytes:
    """The same in BER: all lengths open, all strings in pieces, what is inside of strings too."""
    element = read_ber(data)
    if element.tag & 0x20:
        return bytes((element.tag, 0x80)) + b"".join(in_pieces(part.raw) for part in element.parts) + b"\0\0"
    if element.tag in (0x04, 0x80) and len(element.value) > 1:
        middle = len(element.value) // 2
        tag = 0x24 if element.tag == 0x04 else 0xA0
        return bytes((tag, 0x80)) + octets(element.value[:middle]) + octets(element.value[middle:]) + b"\0\0"
    return data


@pytest.mark.parametrize("password", [b"", PASSWORD])
def test_ber_is_read(password):
    data = in_pieces(dump_keychain(site().client, password))
    assert data.count(b"\x24\x80") > 1
    assert load_keychain(data, password)[1:] == site().client[1:]


@pytest.mark.timeout(60)
def test_ber_hides_no_rounds():
    for data in PLACES.values():
        with pytest.raises(KeychainError, match=TOO_MUCH):
            load_keychain(in_pieces(data))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "data",
    [b"\x30\x80" * 100_000, b"\x30\x80" + b"\x30\x00" * 100_000, b"\x24\x80" * 20 + b"\x04\x00" * 50_000],
)
def test_structures_without_end_are_refused_at_once(data):
    with pytest.raises(DERError):
        read_ber(data)
    with pytest.raises(KeychainError, match="not a PKCS#12"):
        load_keychain(data)


def test_a_key_whose_numbers_do_not_belong_together_is_refused():
    from appliance.certs.profiles import generate_key

    plain = generate_key("rsa-2048").private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    damaged = bytearray(plain)
    damaged[-10] ^= 1
    bag = sequence(oid("1.2.840.113549.1.12.10.1.1"), context(0, bytes(damaged)))
    with pytest.raises(KeychainError, match="key cannot be read"):
        load_key(file(plain_safe(bag)))


def test_of_certificates_for_one_key_the_linked_one_counts():
    first = site().ca.keychain("first")
    again = build_certificate(
        site().ca.issuer, subject=subject_name("second"), public_key=first.key.public_key(), usage="client",
        not_before=NOW - DAY, not_after=NOW + DAY, serial=77,
    )  # fmt: skip

    def bag(certificate) -> Bag:
        der = certificate.public_bytes(Encoding.DER)
        return Bag(der, local_key_id=hashlib.sha1(der).digest())

    plain = first.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    everything = [bag(first.certificate), bag(again), bag(site().ca.certificate)]
    for linked in (first.certificate, again):
        data = pkcs12.write_pkcs12(everything, Bag(plain, local_key_id=bag(linked).local_key_id), b"")
        assert load_keychain(data).certificate == linked


@pytest.mark.parametrize(
    ("key", "cipher", "plain"),
    [
        ("88bca90e90875a7f0f79c384627bafb2", "2269552ab0f85ca6", "0000000000000000"),
        ("ffffffffffffffff", "278b27e42e2f0d49", "ffffffffffffffff"),
        ("3000000000000000", "30649edf9be7d2c2", "1000000000000001"),
    ],
)
def test_rc2_gives_what_the_standard_says(key, cipher, plain):
    """RFC 2268 5, those with as many effective bits as the key has."""
    assert decrypt_rc2_cbc(bytes.fromhex(key), bytes(8), bytes.fromhex(cipher)).hex() == plain


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_octets_are_an_element_or_a_der_error(data):
    try:
        read_ber(data)
    except DERError:
        return


def test_a_high_tag_number_is_no_pkcs12():
    with pytest.raises(DERError):
        read_ber(tlv(0x1F, b""))
