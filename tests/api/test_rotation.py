"""Rotations through the API: ordered, followed, stopped; a download that was begun before is not continued after."""

from __future__ import annotations

CONTENT = bytes(range(256)) * 1000


def order(w, name, aim="rotate", who="olle", **more):
    body = {"dataset": name, "aim": aim, "reason": "It is time.", **more}
    [ident] = w.person(who).post("/rotations", body)["rotation_ids"]
    return ident


def finish(w, ident):
    for _ in range(20):
        w.work()
        view = w.person("olle").get(f"/rotations/{ident}")
        if view["state"]["phase"] not in ("going", "retiring"):
            return view
    raise AssertionError(view)


def test_from_the_order_to_the_end(w):
    w.deposit("rotated", {"a": b"1", "b": b"22"})
    ident = order(w, "rotated")
    view = w.person("carin").get(f"/rotations/{ident}")
    assert (view["dataset"], view["files"], view["done"], view["by"]) == ("rotated", 2, 0, "Olle Operator")
    assert w.person("olle").refused("POST", "/rotations", {"dataset": "rotated", "aim": "rekey", "reason": "x"}) == (
        409,
        "rotation_going",
    )
    view = finish(w, ident)
    assert (view["state"]["phase"], view["done"], view["may_stop"]) == ("done", 2, False)
    assert ident in [one["state"]["rotation_id"] for one in w.person("audun").get("/rotations")]
    tags = [entry["event"] for entry in w.person("audun").get("/datasets/rotated/history")]
    assert [tag for tag in tags if tag.startswith("rotation.")] == [
        "rotation.started",
        "rotation.pair_made",
        "rotation.settled",
        "rotation.retired",
    ]
    rekeyed = finish(w, order(w, "rotated", "rekey", who="carin", version=1))
    assert rekeyed["state"]["bodies"] == 2 and rekeyed["state"]["pair"] == 3


def test_stopped(w):
    w.deposit("stopped", {"a": b"1"})
    ident = order(w, "stopped")
    assert w.person("carin").refused("POST", f"/rotations/{ident}/stop") == (403, "not_yours")
    w.person("olle").post(f"/rotations/{ident}/stop")
    assert finish(w, ident)["state"]["phase"] == "stopped"
    assert w.person("olle").refused("POST", f"/rotations/{ident}/stop") == (409, "wrong_phase")


def test_orders_of_the_wrong_form(w):
    olle = w.person("olle")
    for body in (
        {"aim": "rotate", "reason": "x"},
        {"dataset": "rotated", "every": True, "aim": "rotate", "reason": "x"},
        {"dataset": "rotated", "aim": "destroy", "reason": "x"},
        {"dataset": "rotated", "aim": "rotate"},
        {"dataset": "rotated", "aim": "rotate", "reason": "x", "version": -1},
    ):
        assert olle.refused("POST", "/rotations", body) == (400, "fault.input")
    assert olle.refused("POST", "/rotations", {"dataset": "nowhere", "aim": "rotate", "reason": "x"})[0] == 404


def test_a_part_of_a_body_that_was_replaced_is_not_continued(w):
    w.anonymised("anew", {"f": CONTENT})
    rikard, permit = w.person("rikard"), w.permit("anew", mode="download")
    key, _ = w.key("rikard")
    [listed] = rikard.get(f"/permits/{permit}/files")
    url = f"/permits/{permit}/files/{listed['file_id']}"

    def get(**headers):
        return rikard.good(rikard.ask("GET", url, params={"key": key}, headers=headers))

    whole = get()
    tag = whole.headers["etag"]
    rest = {"Range": "bytes=100000-"}
    assert tag == f'"{listed["etag"]}"' == rikard.ask("HEAD", url).headers["etag"]
    assert get(**rest).status_code == 206
    continued = get(**rest, **{"If-Range": tag})
    assert continued.status_code == 206 and continued.content == whole.content[100_000:]
    for other in ('"' + "0" * 32 + '"', f"W/{tag}", "Mon, 01 Jan 2029 10:00:00 GMT", "*"):
        assert get(**rest, **{"If-Range": other}).status_code == 200
    assert finish(w, order(w, "anew"))["state"]["phase"] == "done"
    assert get(**rest, **{"If-Range": tag}).status_code == 206, "other headers, the same body"
    assert finish(w, order(w, "anew", "rekey"))["state"]["phase"] == "done"
    for headers in (rest, rest | {"If-Range": tag}):
        again = get(**headers)
        assert again.status_code == 200 and len(again.content) == len(whole.content)
        assert again.headers["etag"] not in (tag, "") and "content-range" not in again.headers
        assert again.content[200:] != whole.content[200:]
    assert get(**rest, **{"If-Range": again.headers["etag"]}).content == again.content[100_000:]
