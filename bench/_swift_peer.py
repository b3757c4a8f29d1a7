"""Swift's own client, as a process of the peers' environment: `python _swift_peer.py HEADER URL CONTAINER` reads lines
`upload FILE NAME` and `download NAME`, and answers each with `done`. It compares digests, as `swift` does."""

from __future__ import annotations

import sys
from pathlib import Path

from swiftclient.service import SwiftService, SwiftUploadObject


def main() -> None:
    header, url, container = sys.argv[1:]
    token = Path(header).read_text().split()[1]
    with SwiftService(options={"os_storage_url": url, "os_auth_token": token}) as service:
        for line in sys.stdin:
            what, *words = line.split()
            if what == "upload":
                answers = service.upload(container, [SwiftUploadObject(words[0], object_name=words[1])])
            else:
                answers = service.download(container, words, options={"out_file": "/dev/null"})
            for answer in answers:
                if not answer["success"]:
                    raise SystemExit(str(answer["error"]))
            print("done", flush=True)


if __name__ == "__main__":
    main()
