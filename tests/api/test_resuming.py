"""Downloads over plain HTTP: curl cuts and goes on, and the ranges of RFC 9110."""

from __future__ import annotations

import os
import subprocess

import pytest

from valv.formats import hashtree
from valv.formats.crypt4gh import CIPHER_SEGMENT, SEGMENT, header_length, open_header

SIZE = 15_000_000


@pytest.fixture(scope="module")
def remote(node_world):
    """The address of a file that can be downloaded, its content, the key pair, and what is listed of it."""
    w = node_world
    content = os.urandom(SIZE)
    w.anonymised("resuming", {"large.bin": content})
    permit, (key, pair) = w.permit("resuming", mode="download"), w.key("rikard")
    [file] = w.person("rikard").get(f"/permits/{permit}/files")
    return f"/permits/{permit}/files/{file['file_id']}", key, content, pair, file


def curl(w, remote, target, *more):
    address = f"{w.server.url}/api/v1{remote[0]}?key={remote[1]}"
    token = f"Authorization: Bearer {w.person('rikard').token}"
    return subprocess.run(["curl", "-sS", "-f", "-H", token, "-o", target, *more, address], capture_output=True)


def opened(data, pair):
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    length = header_length(data[:10_000])
    [data_key] = open_header(data[:length], [pair.private]).data_keys
    aead, body = ChaCha20Poly1305(data_key), data[length:]
    parts = (body[at : at + CIPHER_SEGMENT] for at in range(0, len(body), CIPHER_SEGMENT))
    return b"".join(aead.decrypt(part[:12], part[12:], None) for part in parts)


def test_curl_goes_on_where_it_was_cut(w, remote, tmp_path):
    target = tmp_path / "large.bin.c4gh"
    whole = curl(w, remote, target)
    assert whole.returncode == 0, whole.stderr
    size = target.stat().st_size
    for cut in (1000, 1_000_000, size - 1):
        with target.open("r+b") as file:
            file.truncate(cut)
        ran = curl(w, remote, target, "-C", "-")
        assert ran.returncode == 0, ran.stderr
        assert target.stat().st_size == size
    assert opened(target.read_bytes(), remote[3]) == remote[2]
    slow = curl(w, remote, tmp_path / "slow", "--limit-rate", "1M", "--max-time", "3")
    assert slow.returncode == 28
    kept = (tmp_path / "slow").stat().st_size
    assert 1000 < kept < size
    assert curl(w, remote, tmp_path / "slow", "-C", "-").returncode == 0
    assert opened((tmp_path / "slow").read_bytes(), remote[3]) == remote[2]
    before = target.read_bytes()
    curl(w, remote, target, "-C", "-")  # there is nothing left to send
    assert target.read_bytes() == before


def get(w, remote, **headers):
    return w.person("rikard").ask("GET", remote[0], params={"key": remote[1]}, headers=headers)


def test_ranges(w, remote):
    whole = get(w, remote)
    assert whole.status_code == 200 and whole.headers["Accept-Ranges"] == "bytes"
    size, etag = len(whole.content), whole.headers["ETag"]
    for first, last in ((200, 299), (65_536, 200_000), (size - 1, size - 1), (1000, size + 1000)):
        part = get(w, remote, Range=f"bytes={first}-{last}")
        end = min(last, size - 1)
        assert part.status_code == 206 and part.headers["Content-Range"] == f"bytes {first}-{end}/{size}"
        assert part.content == whole.content[first : end + 1]
        assert int(part.headers["Content-Length"]) == end + 1 - first
    for behind in (size, size + 1, 10**14):
        wrong = get(w, remote, Range=f"bytes={behind}-")
        assert wrong.status_code == 416 and wrong.headers["Content-Range"] == f"bytes */{size}"
    for ignored in ("bytes=0-10,20-30", "bytes=300-200", "bytes=-500", "items=1-2", "bytes=x-", "bytes=1-2,"):
        answered = get(w, remote, Range=ignored)
        assert answered.status_code == 200 and len(answered.content) == size, ignored
    for tag, status in ((etag, 206), ('"other"', 200), ("Mon, 01 Jan 2024 00:00:00 GMT", 200), (f"W/{etag}", 200)):
        answered = get(w, remote, Range="bytes=300-399", **{"If-Range": tag})
        assert answered.status_code == status
    head = w.person("rikard").ask("HEAD", remote[0])
    assert head.status_code == 200 and head.headers["ETag"] == etag and head.content == b""
    with_parts = b"".join(
        get(w, remote, Range=f"bytes={at}-{at + 999_999}").content for at in range(1_000_000, size, 1_000_000)
    )
    assert with_parts == whole.content[1_000_000:]


def test_what_is_listed_is_what_comes(w, remote):
    whole = get(w, remote).content
    body = whole[header_length(whole[:10_000]) :]
    assert hashtree.tree_root(hashtree.hashes(body), len(body)).hex() == remote[4]["body_root"]
    assert len(body) > SIZE // SEGMENT * CIPHER_SEGMENT
