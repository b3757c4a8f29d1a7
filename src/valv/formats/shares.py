"""Shares of a secret, m of n, for people: SLIP-39 words, each sealed to one person's public key.

A sealed share is a small Crypt4GH file, so that the field's own tools open it too. Fewer shares than the threshold tell
nothing of the secret (Shamir 1979); a wrong one among them is found by the digest that SLIP-39 carries.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

import shamir_mnemonic
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from valv.errors import FormatFault, KeyFault
from valv.formats.crypt4gh import NONCE, build_header, header_length, open_header

SECRET: Final = 32
"""Bytes of a secret that is split."""


def split(secret: bytes, threshold: int, count: int) -> list[str]:
    """`count` shares of 32 bytes, as words, of which any `threshold` (2 or more) give it back."""
    if len(secret) != SECRET:
        raise ValueError(f"a secret to be split has {SECRET} bytes")
    # The words need no passphrase: each share is sealed. The cost of stretching an empty one would protect nothing.
    groups = shamir_mnemonic.generate_mnemonics(1, [(threshold, count)], secret, iteration_exponent=0)
    return list(groups[0])


def check(words: str) -> None:
    """Raises `KeyFault` for what is no share (SLIP-39 words carry a checksum) or none that `split` made."""
    _read(words)


def combine(words: Sequence[str]) -> bytes:
    """The secret, 32 bytes. More shares than the threshold are welcome, and each one is tried. Raises `KeyFault` where
    they are too few, wrong, or of different secrets."""
    found = list(dict.fromkeys(map(_read, words)))
    most = found[0].member_threshold if found else 0
    secrets_found = {_combine([*found[: most - 1], one]) for one in found[max(most - 1, 0) :]}
    if len(secrets_found) != 1:
        raise _unfit()
    return secrets_found.pop()


def _read(words: str) -> shamir_mnemonic.Share:
    try:
        share = shamir_mnemonic.Share.from_mnemonic(words)
    except (shamir_mnemonic.MnemonicError, ValueError):
        raise KeyFault("this is not a share: a word is wrong, missing or too much", "read its words again") from None
    # Others are never made here; one that claims a high exponent would be stretched for minutes.
    if share.iteration_exponent or share.group_count != 1 or len(share.value) != SECRET:
        raise KeyFault("this is a share of something else", "take that of the node's last ceremony")
    return share


def _combine(found: Sequence[shamir_mnemonic.Share]) -> bytes:
    try:
        return bytes(shamir_mnemonic.combine_mnemonics([share.mnemonic() for share in found]))
    except (shamir_mnemonic.MnemonicError, ValueError):
        raise _unfit() from None


def _unfit() -> KeyFault:
    return KeyFault("the shares do not fit together", "take those of one ceremony, as many as its threshold says")


def seal(words: str, public: bytes) -> bytes:
    """A share for the holder of a raw X25519 public key: a whole Crypt4GH file."""
    data_key, nonce = secrets.token_bytes(32), secrets.token_bytes(NONCE)
    sealed = ChaCha20Poly1305(data_key).encrypt(nonce, words.encode(), None)
    return build_header(data_key, [public]) + nonce + sealed


def unseal(sealed: bytes, private: bytes) -> str:
    """The words of a sealed share. Raises `KeyFault` where the key is another person's, `FormatFault` for no share."""
    length = header_length(sealed)
    if length is None:
        raise FormatFault("this is not a sealed share", "take the file that the ceremony wrote")
    opened = open_header(sealed[:length], [private])
    nonce, body = sealed[length : length + NONCE], sealed[length + NONCE :]
    if len(nonce) < NONCE:
        raise _altered()
    for data_key in opened.data_keys:
        try:
            return ChaCha20Poly1305(data_key).decrypt(nonce, body, None).decode()
        except (InvalidTag, UnicodeDecodeError):
            continue
    raise _altered()


def _altered() -> FormatFault:
    return FormatFault("the sealed share was altered", "take the file that the ceremony wrote")
