"""Crypt4GH 1.0 (GA4GH, hts-specs `crypt4gh`): the header, and the sizes of the body.

A Crypt4GH file is a header followed by a body of segments. The header holds packets, each sealed to one reader;
together they tell the data keys and, at most once, an edit list. The body is the plain bytes in segments of 64 KiB,
each as nonce (12 bytes), ciphertext, tag (16 bytes), by ChaCha20-Poly1305 (IETF) without associated data.

    header   "crypt4gh" | version u32 = 1 | number of packets u32 | packets
    packet   length u32, itself included | method u32 = 0 | writer's public key 32 | nonce 12 | ciphertext | tag 16
    payload  type u32 = 0 | data method u32 = 0 | data key 32
             type u32 = 1 | number of lengths u32 | lengths u64 ...

All integers are little-endian. The packet's key is the first half of BLAKE2b-512(X25519 secret | reader's public key |
writer's public key). Packets that do not open with our keys are meant for others and are ignored.

Everything here is bytes in, bytes out. What breaks the format raises `FormatFault`, before anything large is read:
no header is longer than `MAX_HEADER` nor has more than `MAX_PACKETS` packets.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from valv.errors import FormatFault, InputFault, KeyFault

MAGIC: Final = b"crypt4gh"
VERSION: Final = 1
NONCE: Final = 12
TAG: Final = 16
OVERHEAD: Final = NONCE + TAG
SEGMENT: Final = 65536
"""Plain bytes of a full segment."""
CIPHER_SEGMENT: Final = SEGMENT + OVERHEAD
"""Stored bytes of a full segment."""
KEY: Final = 32
MAX_PACKETS: Final = 1024
MAX_HEADER: Final = 1 << 20

_PREAMBLE: Final = struct.Struct("<8sII")
_SEALED: Final = KEY + NONCE + TAG
_PACKET_MIN: Final = 4 + 4 + _SEALED + 4
_X25519_CHACHA20: Final = 0
_DATA_KEY: Final = 0
_EDIT_LIST: Final = 1
_CHACHA20: Final = 0


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair, 32 raw bytes each. The private half never shows in a repr."""

    private: bytes = field(repr=False)
    public: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """What a header says. `data_keys`: one or more, 32 bytes each, any of which may have sealed a segment.
    `edit_list`: lengths in plain bytes, alternately skipped and kept, beginning with a skip; None where all is kept."""

    data_keys: tuple[bytes, ...] = field(repr=False)
    edit_list: tuple[int, ...] | None = None


class Keys:
    """Our private keys, ready for many headers. A key is loaded when the first packet is tried with it, and once: that
    costs a quarter of re-sealing a header, and mostly the first of several keys fits."""

    __slots__ = ("_readers",)

    def __init__(self, private_keys: Sequence[bytes]) -> None:
        """`private_keys`: raw X25519 keys, those that likely fit first."""
        self._readers = [_Reader(key) for key in private_keys]

    def open(self, header: bytes) -> Opened:
        """As `open_header`."""
        keys: list[bytes] = []
        edit_list: tuple[int, ...] | None = None
        opened = 0
        for packet in _packets(header):
            payload = self._open_packet(packet)
            if payload is None:
                continue
            opened += 1
            kind = int.from_bytes(payload[:4], "little")
            if kind == _DATA_KEY:
                key = _data_key(payload)
                if key not in keys:
                    keys.append(key)
            elif kind == _EDIT_LIST:
                if edit_list is not None:
                    raise FormatFault("the Crypt4GH header has two edit lists; one is possible")
                edit_list = _edit_list(payload)
            else:
                raise FormatFault(f"the Crypt4GH header has a packet of unknown type {kind}")
        if not keys:
            ours = ", ".join(fingerprint(reader.load()[1]) for reader in self._readers) or "none"
            if opened:
                raise KeyFault(f"the Crypt4GH header gives no data key to our keys ({ours})")
            raise KeyFault(
                f"the Crypt4GH header was not made for any of our keys ({ours})",
                "encrypt or re-seal the file for one of these public keys",
            )
        return Opened(tuple(keys), edit_list)

    def reseal(self, header: bytes, recipients: Sequence[bytes], *, keep_others: bool = False) -> bytes:
        """As the function `reseal`."""
        opened = self.open(header)
        others = self._foreign(header) if keep_others else ()
        return _build(opened.data_keys, recipients, opened.edit_list, others)

    def _open_packet(self, packet: bytes) -> bytes | None:
        """The payload, or None where the packet is not for us."""
        if int.from_bytes(packet[:4], "little") != _X25519_CHACHA20:
            return None
        writer, nonce, sealed = packet[4:36], packet[36:48], packet[48:]
        for reader in self._readers:
            private, public = reader.load()
            try:
                key = _packet_key(private, writer, reader=public, writer=writer)
                return ChaCha20Poly1305(key).decrypt(nonce, sealed, None)
            except (InvalidTag, ValueError):  # ValueError: a writer's key of low order, which yields no secret
                continue
        return None

    def _foreign(self, header: bytes) -> list[bytes]:
        """The packets that do not open with our keys, with their length field."""
        return [
            struct.pack("<I", 4 + len(packet)) + packet
            for packet in _packets(header)
            if self._open_packet(packet) is None
        ]


def generate_keypair() -> KeyPair:
    private = secrets.token_bytes(KEY)
    return KeyPair(private, public_key(private))


def public_key(private: bytes) -> bytes:
    """The public half of a raw private key. Raises `InputFault` where it is not 32 bytes."""
    _check_key(private, "private")
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def fingerprint(public: bytes) -> str:
    """How a public key is shown to people, in OpenSSH's manner: `SHA256:` and unpadded base64 of its SHA-256."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).rstrip(b"=").decode()


def header_length(prefix: bytes) -> int | None:
    """How many bytes the header at the start of `prefix` has; None where more of it is needed to tell.

    Raises `FormatFault` as soon as `prefix` cannot begin a Crypt4GH file or the header passes a limit.
    """
    ends = _ends(prefix)
    return ends[-1] if ends else None


def open_header(header: bytes, private_keys: Sequence[bytes]) -> Opened:
    """Open a header with whichever of our keys fits.

    `header` is the header alone, `private_keys` raw X25519 keys. Raises `FormatFault` where the header breaks the
    format, `KeyFault` where no packet opens.
    """
    return Keys(private_keys).open(header)


def build_header(data_key: bytes, recipients: Sequence[bytes], edit_list: Sequence[int] | None = None) -> bytes:
    """A header that gives `data_key` (32 bytes) and the edit list to each of `recipients` (raw public keys)."""
    _check_key(data_key, "data")
    return _build((data_key,), recipients, edit_list)


def reseal(
    header: bytes, private_keys: Sequence[bytes], recipients: Sequence[bytes], *, keep_others: bool = False
) -> bytes:
    """The same data keys and edit list, sealed to `recipients` and nobody else. `keep_others`: packets that do not open
    with our keys stay as they are, so that their readers can read on. Faults as `open_header`."""
    return Keys(private_keys).reseal(header, recipients, keep_others=keep_others)


def rearrange(
    header: bytes, private_keys: Sequence[bytes], recipients: Sequence[bytes], edit_list: Sequence[int]
) -> bytes:
    """The same data keys with another edit list, sealed to `recipients` and nobody else. Faults as `open_header`."""
    return _build(open_header(header, private_keys).data_keys, recipients, edit_list)


def writers(header: bytes) -> tuple[bytes, ...]:
    """The public keys that a header's packets were written with, each once. Most writers make one for the occasion, so
    that it says nothing; where it is a lasting one, it says whom to ask. Raises `FormatFault`."""
    return tuple(dict.fromkeys(packet[4:36] for packet in _packets(header)))


def plain_size(cipher_size: int) -> int:
    """Plain bytes in a body of `cipher_size` bytes. Raises `FormatFault` where no body has that size: each segment,
    the last one too, has at least one plain byte beside its nonce and tag."""
    segments, rest = divmod(cipher_size, CIPHER_SEGMENT)
    if 0 < rest <= OVERHEAD:
        raise FormatFault("the Crypt4GH body is truncated: its last segment has no data", "send the whole file again")
    return segments * SEGMENT + (rest - OVERHEAD if rest else 0)


def cipher_size(plain_size: int) -> int:
    """Bytes of the body that `plain_size` plain bytes make, header not counted."""
    return plain_size + segments(plain_size) * OVERHEAD


def segments(plain_size: int) -> int:
    """Number of segments of `plain_size` plain bytes; none for an empty file."""
    return -(-plain_size // SEGMENT)


def _check_key(key: bytes, kind: str) -> None:
    if len(key) != KEY:
        raise InputFault(f"a {kind} key has {KEY} bytes, not {len(key)}")


def _ends(prefix: bytes) -> list[int]:
    """Where the preamble and each packet end; empty where more of the header is needed. Faults as `header_length`."""
    if not MAGIC.startswith(prefix[:8]):
        raise FormatFault("this is not a Crypt4GH file: it does not begin with 'crypt4gh'")
    if len(prefix) < _PREAMBLE.size:
        return []
    _, version, packets = _PREAMBLE.unpack_from(prefix)
    if version != VERSION:
        raise FormatFault(f"Crypt4GH version {version} is not known", "write the file as Crypt4GH version 1")
    if not 0 < packets <= MAX_PACKETS:
        raise FormatFault(f"the Crypt4GH header claims {packets} packets; 1 to {MAX_PACKETS} are possible")
    end = _PREAMBLE.size
    ends = [end]
    for number in range(packets):
        if len(prefix) < end + 4:
            return []
        length = int.from_bytes(prefix[end : end + 4], "little")
        if length < _PACKET_MIN or end + length > MAX_HEADER:
            raise FormatFault(f"packet {number} of the Crypt4GH header claims {length} bytes, which cannot be")
        end += length
        ends.append(end)
    return ends if len(prefix) >= end else []


def _packets(header: bytes) -> list[bytes]:
    """The packets without their length field."""
    ends = _ends(header)
    if not ends:
        raise FormatFault("the Crypt4GH header is truncated", "send the whole file again")
    if ends[-1] != len(header):
        raise FormatFault(f"{len(header) - ends[-1]} bytes follow the Crypt4GH header")
    return [header[start + 4 : end] for start, end in pairwise(ends)]


class _Reader:
    """One of our private keys, loaded when it is first asked for."""

    __slots__ = ("_loaded", "_raw")

    def __init__(self, private: bytes) -> None:
        _check_key(private, "private")
        self._raw = private
        self._loaded: tuple[X25519PrivateKey, bytes] | None = None

    def load(self) -> tuple[X25519PrivateKey, bytes]:
        """The key, and its raw public half."""
        if self._loaded is None:
            private = X25519PrivateKey.from_private_bytes(self._raw)
            self._loaded = private, private.public_key().public_bytes_raw()
        return self._loaded


def _packet_key(private: X25519PrivateKey, peer: bytes, *, reader: bytes, writer: bytes) -> bytes:
    secret = private.exchange(X25519PublicKey.from_public_bytes(peer))
    return hashlib.blake2b(secret + reader + writer).digest()[:KEY]


def _data_key(payload: bytes) -> bytes:
    if len(payload) != 8 + KEY:
        raise FormatFault(f"a data key packet of the Crypt4GH header has {len(payload)} bytes, not {8 + KEY}")
    method = int.from_bytes(payload[4:8], "little")
    if method != _CHACHA20:
        raise FormatFault(f"the Crypt4GH body is encrypted by an unknown method {method}")
    return payload[8:]


def _edit_list(payload: bytes) -> tuple[int, ...]:
    count = int.from_bytes(payload[4:8], "little")
    if len(payload) < 8 or len(payload) != 8 + 8 * count:
        raise FormatFault(f"the edit list of the Crypt4GH header claims {count} lengths in {len(payload)} bytes")
    return struct.unpack_from(f"<{count}Q", payload, 8)


def _build(
    data_keys: Sequence[bytes],
    recipients: Sequence[bytes],
    edit_list: Sequence[int] | None,
    others: Sequence[bytes] = (),
) -> bytes:
    if not recipients:
        raise InputFault("a Crypt4GH header needs at least one recipient")
    payloads = [struct.pack("<II", _DATA_KEY, _CHACHA20) + key for key in data_keys]
    if edit_list is not None:
        if any(not 0 <= length < 1 << 64 for length in edit_list):
            raise InputFault("a length of an edit list lies between 0 and 2^64 - 1")
        payloads.append(struct.pack(f"<II{len(edit_list)}Q", _EDIT_LIST, len(edit_list), *edit_list))
    packets = [_seal_packet(payload, recipient) for recipient in recipients for payload in payloads]
    packets += others
    number = len(packets)
    header = _PREAMBLE.pack(MAGIC, VERSION, number) + b"".join(packets)
    if number > MAX_PACKETS or len(header) > MAX_HEADER:
        raise InputFault(f"the Crypt4GH header would have {number} packets and {len(header)} bytes, over the limit")
    return header


def _seal_packet(payload: bytes, recipient: bytes) -> bytes:
    """One packet under a writer's key pair of its own, which is forgotten at once."""
    _check_key(recipient, "public")
    private = X25519PrivateKey.generate()
    writer = private.public_key().public_bytes_raw()
    try:
        key = _packet_key(private, recipient, reader=recipient, writer=writer)
    except ValueError:
        raise InputFault(f"{fingerprint(recipient)} is not a usable public key") from None
    nonce = secrets.token_bytes(NONCE)
    sealed = writer + nonce + ChaCha20Poly1305(key).encrypt(nonce, payload, None)
    return struct.pack("<II", 8 + len(sealed), _X25519_CHACHA20) + sealed
