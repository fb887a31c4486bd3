"""RC2 in CBC mode, decryption only (RFC 2268).

Keychains of Windows, of Java before 2021 and of ``openssl pkcs12 -legacy`` encrypt their certificates with it, with a key of
40 bits. It protects nothing, and nothing here is written with it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["decrypt_rc2_cbc"]

_TABLE: Final = bytes.fromhex(
    "d978f9c419ddb5ed28e9fd794aa0d89dc67e37832b76538e624c6488448bfba2"
    "179a59f587b34f1361456d8d09817d32bd8f40eb86b77b0bf09521225c6b4e82"
    "54d66593ce60b21c7356c014a78cf1dc1275ca1f3bbee4d1423dd430a33cb626"
    "6fbf0eda4669075727f21d9bbc944303f811c7f690ef3ee706c3d52fc8661ed7"
    "08e8eade8052eef784aa72ac354d6a2a961ad2715a1549744b9fd05e0418a4ec"
    "c2e0416e0f51cbcc2491af50a1f47039997c3a8523b8b47afc02365b25559731"
    "2d5dfa98e38a92ae05df2910676cbac9d300e6cfe19ea82c6316013f58e289a9"
    "0d38341bab33ffb0bb480c5fb9b1cd2ec5f3db47e5a59c770aa62068fe7fc1ad"
)
_SHIFTS: Final = (1, 2, 3, 5)


def decrypt_rc2_cbc(key: bytes, iv: bytes, data: bytes) -> bytes:
    """Decrypt whole blocks of 8 bytes; the effective length is that of the key.

    Raises:
        ValueError: The data is not whole blocks, or the key is not one of RC2.
    """
    if len(data) % 8 or len(iv) != 8 or not 1 <= len(key) <= 128:
        msg = "not whole blocks, or not a key of RC2"
        raise ValueError(msg)
    words = _expand(key)
    plain = bytearray()
    for start in range(0, len(data), 8):
        block = data[start : start + 8]
        plain += bytes(a ^ b for a, b in zip(_decrypt(words, block), iv, strict=True))
        iv = block
    return bytes(plain)


def _expand(key: bytes) -> list[int]:
    size = len(key)
    octets = bytearray(key) + bytearray(128 - size)
    for i in range(size, 128):
        octets[i] = _TABLE[(octets[i - 1] + octets[i - size]) & 0xFF]
    octets[128 - size] = _TABLE[octets[128 - size]]
    for i in range(127 - size, -1, -1):
        octets[i] = _TABLE[octets[i + 1] ^ octets[i + size]]
    return [octets[i] | octets[i + 1] << 8 for i in range(0, 128, 2)]


def _decrypt(words: list[int], block: bytes) -> bytes:
    r = [int.from_bytes(block[i : i + 2], "little") for i in range(0, 8, 2)]
    at = 63
    for turn in range(16):
        for i in (3, 2, 1, 0):
            shift = _SHIFTS[i]
            value = r[i] >> shift | (r[i] << (16 - shift) & 0xFFFF)
            value -= words[at] + (r[i - 1] & r[i - 2]) + (~r[i - 1] & r[i - 3])
            r[i] = value & 0xFFFF
            at -= 1
        if turn in (4, 10):
            for i in (3, 2, 1, 0):
                r[i] = (r[i] - words[r[i - 1] & 63]) & 0xFFFF
    return b"".join(value.to_bytes(2, "little") for value in r)
