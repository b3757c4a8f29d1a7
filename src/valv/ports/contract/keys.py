"""The contract of `valv.ports.keys.Keyring` and its root keys as tests: a backend's test class inherits
`RootKeyContract`.

    class TestMine(RootKeyContract):
        @pytest.fixture
        def keyring(self): return MyKeyring(...)        # its root key not made yet

        @pytest.fixture
        def other(self): return MyKeyring(...)          # for another root key

        elsewhere = True                                # where the root key does not lie in the folder itself

It needs pytest, which the node itself does not.
"""

from __future__ import annotations

import pickle
import secrets
import threading
import traceback
from pathlib import Path
from typing import ClassVar, Final

import pytest

from valv.errors import ConflictFault, Fault, FormatFault, InputFault, KeyFault, MissingFault, SealedFault
from valv.ports.keys import Keyring, OpenRoot

WRONG: Final = b"not the passphrase"
ANOTHER: Final = b"battery horse correct"
CONTEXT: Final = b"what this key is for"


def works(root: OpenRoot) -> bool:
    return root.unwrap(root.wrap(b"secret", CONTEXT), CONTEXT) == b"secret"


def told(fault: BaseException) -> str:
    """All that a fault tells, its traceback with it."""
    return repr(fault) + str(fault) + "".join(traceback.format_exception(fault))


class RootKeyContract:
    """Every test gets a `keyring` and an `other` one, whose root keys are not made yet, and empty folders for both."""

    elsewhere: ClassVar[bool] = False
    """Whether the root key is kept elsewhere than in the folder, so that a copy of the folder is not enough."""

    @pytest.fixture
    def passphrase(self) -> bytes:
        """What `keyring` and `other` open with. Override it where it must be a given one."""
        return b"correct horse battery"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "keys"
        folder.mkdir(mode=0o700)
        return folder

    @pytest.fixture
    def other_folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "other"
        folder.mkdir(mode=0o700)
        return folder

    @pytest.fixture
    def next_folder(self, tmp_path: Path) -> Path:
        """Where the files of the root key go that follows."""
        folder = tmp_path / "next"
        folder.mkdir(mode=0o700)
        return folder

    @pytest.fixture
    def root(self, keyring: Keyring, folder: Path, passphrase: bytes) -> OpenRoot:
        return keyring.create(folder, passphrase)

    def test_what_was_wrapped_comes_back(self, root: OpenRoot) -> None:
        for length in (0, 1, 31, 32, 33, 64, 1000):
            for context in (b"", CONTEXT, bytes(5000)):
                secret = secrets.token_bytes(length)
                wrapped = root.wrap(secret, context)
                assert root.unwrap(wrapped, context) == secret
                assert length < 8 or secret not in wrapped

    def test_no_two_wrappings_are_alike(self, root: OpenRoot) -> None:
        assert len({root.wrap(bytes(32), CONTEXT) for _ in range(200)}) == 200

    def test_another_context_is_refused(self, root: OpenRoot) -> None:
        wrapped = root.wrap(bytes(32), CONTEXT)
        for context in (b"", CONTEXT[:-1], CONTEXT + b"\0", CONTEXT.upper(), b"\0" + CONTEXT):
            with pytest.raises(KeyFault):
                root.unwrap(wrapped, context)
        with pytest.raises(KeyFault):
            root.unwrap(root.wrap(bytes(32), b""), CONTEXT)

    def test_altered_bytes_are_refused(self, root: OpenRoot) -> None:
        wrapped = root.wrap(bytes(range(32)), CONTEXT)
        for bit in range(8 * len(wrapped)):
            bent = bytearray(wrapped)
            bent[bit // 8] ^= 1 << bit % 8
            with pytest.raises(KeyFault):
                root.unwrap(bytes(bent), CONTEXT)
        for bad in (*(wrapped[:length] for length in range(len(wrapped))), wrapped + b"\0", bytes(len(wrapped))):
            with pytest.raises(KeyFault):
                root.unwrap(bad, CONTEXT)
        assert root.unwrap(wrapped, CONTEXT) == bytes(range(32))

    def test_another_root_key_does_not_unwrap(
        self, root: OpenRoot, other: Keyring, other_folder: Path, passphrase: bytes
    ) -> None:
        stranger = other.create(other_folder, passphrase)
        with pytest.raises(KeyFault):
            stranger.unwrap(root.wrap(bytes(32), CONTEXT), CONTEXT)
        with pytest.raises(KeyFault):
            root.unwrap(stranger.wrap(bytes(32), CONTEXT), CONTEXT)
        stranger.wipe()
        assert root.unwrap(root.wrap(b"still here", CONTEXT), CONTEXT) == b"still here"

    def test_it_opens_again(self, keyring: Keyring, root: OpenRoot, folder: Path, passphrase: bytes) -> None:
        wrapped = root.wrap(bytes(range(32)), CONTEXT)
        root.wipe()
        for _ in range(3):
            again = keyring.open(folder, passphrase)
            assert again.unwrap(wrapped, CONTEXT) == bytes(range(32))
            again.wipe()

    def test_after_wiping_it_is_sealed(self, root: OpenRoot) -> None:
        wrapped = root.wrap(bytes(32), CONTEXT)
        root.wipe()
        root.wipe()
        with pytest.raises(SealedFault):
            root.unwrap(wrapped, CONTEXT)
        with pytest.raises(SealedFault):
            root.wrap(bytes(32), CONTEXT)

    def test_one_opening_does_not_end_with_another(
        self, keyring: Keyring, root: OpenRoot, folder: Path, passphrase: bytes
    ) -> None:
        wrapped = root.wrap(b"secret", CONTEXT)
        keyring.open(folder, passphrase).wipe()
        second = keyring.open(folder, passphrase)
        root.wipe()
        assert second.unwrap(wrapped, CONTEXT) == b"secret"

    def test_a_wrong_passphrase_is_told_as_such(
        self, keyring: Keyring, root: OpenRoot, folder: Path, passphrase: bytes
    ) -> None:
        """Whether the root key is open already or not."""
        wrapped = root.wrap(b"secret", CONTEXT)
        for _ in range(2):
            for wrong in (WRONG, b"", passphrase[:-1], passphrase + b"x", b"\xff\xfe"):
                with pytest.raises(KeyFault) as caught:
                    keyring.open(folder, wrong)
                assert any(word in str(caught.value) for word in ("passphrase", "PIN"))
            root.wipe()
        assert keyring.open(folder, passphrase).unwrap(wrapped, CONTEXT) == b"secret"

    def test_a_root_key_is_never_overwritten(
        self, keyring: Keyring, root: OpenRoot, folder: Path, passphrase: bytes
    ) -> None:
        wrapped = root.wrap(b"secret", CONTEXT)
        with pytest.raises(ConflictFault):
            keyring.create(folder, passphrase)
        assert root.unwrap(wrapped, CONTEXT) == b"secret"
        root.wipe()
        assert keyring.open(folder, passphrase).unwrap(wrapped, CONTEXT) == b"secret"

    def test_a_root_key_and_those_that_follow_stand_apart(
        self, keyring: Keyring, root: OpenRoot, folder: Path, next_folder: Path, other_folder: Path, passphrase: bytes
    ) -> None:
        """What one wrapped opens with no other; wiping and discarding one leaves the others as they are."""
        second = root.renew(next_folder)
        third = second.renew(other_folder, passphrase)
        roots = (root, second, third)
        wrapped = [each.wrap(bytes(range(32)), CONTEXT) for each in roots]
        for opener, each in enumerate(roots):
            for number, one in enumerate(wrapped):
                if number == opener:
                    assert each.unwrap(one, CONTEXT) == bytes(range(32))
                else:
                    with pytest.raises(KeyFault):
                        each.unwrap(one, CONTEXT)
        second.discard(next_folder)
        assert works(root) and works(third)
        root.wipe()
        assert works(third)
        again = keyring.open(folder, passphrase)
        third.wipe()
        assert again.unwrap(wrapped[0], CONTEXT) == bytes(range(32))
        assert keyring.open(other_folder, passphrase).unwrap(wrapped[2], CONTEXT) == bytes(range(32))

    def test_after_a_crash_between_renewing_and_discarding_both_open(
        self, keyring: Keyring, root: OpenRoot, folder: Path, next_folder: Path, passphrase: bytes
    ) -> None:
        following = root.renew(next_folder)
        before, after = root.wrap(b"before", CONTEXT), following.wrap(b"after", CONTEXT)
        root.wipe()
        following.wipe()
        old, new = keyring.open(folder, passphrase), keyring.open(next_folder, passphrase)
        assert old.unwrap(before, CONTEXT) == b"before"
        assert new.unwrap(after, CONTEXT) == b"after"
        old.discard(folder)
        new.wipe()
        with pytest.raises(MissingFault):
            keyring.open(folder, passphrase)
        assert keyring.open(next_folder, passphrase).unwrap(after, CONTEXT) == b"after"

    def test_what_was_discarded_never_opens_again(
        self, keyring: Keyring, root: OpenRoot, folder: Path, passphrase: bytes
    ) -> None:
        wrapped = root.wrap(b"secret", CONTEXT)
        second = keyring.open(folder, passphrase)
        for each in (root, root, second, root, second):
            each.discard(folder)
            with pytest.raises(SealedFault):
                each.unwrap(wrapped, CONTEXT)
            with pytest.raises(SealedFault):
                each.wrap(b"secret", CONTEXT)
            with pytest.raises(MissingFault):
                keyring.open(folder, passphrase)
        root.wipe()
        fresh = keyring.create(folder, passphrase)
        with pytest.raises(KeyFault):
            fresh.unwrap(wrapped, CONTEXT)
        assert works(fresh)

    def test_a_copy_of_the_folder_does_not_bring_it_back(
        self, keyring: Keyring, root: OpenRoot, folder: Path, next_folder: Path, passphrase: bytes
    ) -> None:
        """Where the root key lies in the folder, it does."""
        wrapped = root.wrap(b"secret", CONTEXT)
        for path in folder.iterdir():
            (next_folder / path.name).write_bytes(path.read_bytes())
        root.discard(folder)
        if self.elsewhere:
            with pytest.raises(MissingFault):
                keyring.open(next_folder, passphrase)
        else:
            assert keyring.open(next_folder, passphrase).unwrap(wrapped, CONTEXT) == b"secret"

    def test_a_folder_is_cleared_without_its_root_key_open(
        self, keyring: Keyring, root: OpenRoot, folder: Path, next_folder: Path, other_folder: Path, passphrase: bytes
    ) -> None:
        """Also where nobody knows what it opens with, where there is nothing, and where the files were overwritten in
        the middle of being removed."""
        wrapped = root.wrap(b"secret", CONTEXT)
        root.renew(next_folder, ANOTHER if keyring.sets_passphrase else passphrase).wipe()
        for _ in range(2):
            keyring.discard(next_folder, passphrase)
            keyring.discard(other_folder, passphrase)
            with pytest.raises(MissingFault):
                keyring.open(next_folder, ANOTHER if keyring.sets_passphrase else passphrase)
        kept = {path: path.stat().st_size for path in folder.iterdir()}
        assert keyring.open(folder, passphrase).unwrap(wrapped, CONTEXT) == b"secret"
        root.wipe()
        keyring.discard(folder, passphrase)
        for path, size in kept.items():
            path.write_bytes(bytes(size))
        keyring.discard(folder, passphrase)
        with pytest.raises(MissingFault):
            keyring.open(folder, passphrase)

    def test_no_root_key_follows_into_a_folder_that_has_one(
        self, keyring: Keyring, root: OpenRoot, folder: Path, next_folder: Path, passphrase: bytes
    ) -> None:
        following = root.renew(next_folder)
        before = root.wrap(b"before", CONTEXT)
        after = following.wrap(b"after", CONTEXT)
        for each, taken in ((root, folder), (root, next_folder), (following, folder)):
            for given in (None, passphrase):
                with pytest.raises(ConflictFault):
                    each.renew(taken, given)
        root.wipe()
        following.wipe()
        assert keyring.open(folder, passphrase).unwrap(before, CONTEXT) == b"before"
        assert keyring.open(next_folder, passphrase).unwrap(after, CONTEXT) == b"after"

    def test_the_next_root_key_under_another_passphrase(
        self, keyring: Keyring, root: OpenRoot, folder: Path, next_folder: Path, passphrase: bytes
    ) -> None:
        """Where the backend can set one. Elsewhere nothing is made."""
        if keyring.sets_passphrase:
            following = root.renew(next_folder, ANOTHER)
            wrapped = following.wrap(b"secret", CONTEXT)
            for _ in range(2):
                with pytest.raises(KeyFault):
                    keyring.open(next_folder, passphrase)
                following.wipe()
            with pytest.raises(KeyFault):
                keyring.open(folder, ANOTHER)
            assert keyring.open(next_folder, ANOTHER).unwrap(wrapped, CONTEXT) == b"secret"
        else:
            for wrong in (ANOTHER, b"", passphrase[:-1], passphrase + b"x", b"\xff\xfe"):
                with pytest.raises(InputFault):
                    root.renew(next_folder, wrong)
            assert list(next_folder.iterdir()) == []
            with pytest.raises(MissingFault):
                keyring.open(next_folder, passphrase)
        assert works(root)

    def test_a_wiped_root_key_has_none_that_follows(self, root: OpenRoot, next_folder: Path, passphrase: bytes) -> None:
        root.wipe()
        for given in (None, passphrase):
            with pytest.raises(SealedFault):
                root.renew(next_folder, given)
        assert list(next_folder.iterdir()) == []

    def test_an_empty_or_altered_folder_does_not_open(
        self, keyring: Keyring, root: OpenRoot, folder: Path, other_folder: Path, passphrase: bytes
    ) -> None:
        root.wipe()
        with pytest.raises(MissingFault):
            keyring.open(other_folder, passphrase)
        for path in folder.iterdir():
            whole = path.read_bytes()
            for bad in (b"", b"{}", whole[:-1], whole.swapcase(), secrets.token_bytes(300)):
                path.write_bytes(bad)
                with pytest.raises((KeyFault, FormatFault)):
                    keyring.open(folder, passphrase)
            path.write_bytes(whole)
        keyring.open(folder, passphrase).wipe()

    def test_several_threads(self, root: OpenRoot) -> None:
        wrong: list[object] = []

        def work(number: int) -> None:
            context = b"thread %d" % number
            try:
                for _ in range(40):
                    secret = secrets.token_bytes(32)
                    wrapped = root.wrap(secret, context)
                    if root.unwrap(wrapped, context) != secret:
                        wrong.append("another secret came back")
                    with pytest.raises(KeyFault):
                        root.unwrap(wrapped, context + b"!")
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_wiping_while_others_work(self, root: OpenRoot) -> None:
        """They get their answer or `SealedFault`, and nothing else happens."""
        wrong: list[BaseException] = []
        begun = threading.Barrier(5)

        def work() -> None:
            begun.wait()
            try:
                while True:
                    assert root.unwrap(root.wrap(b"secret", CONTEXT), CONTEXT) == b"secret"
            except SealedFault:
                pass
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        begun.wait()
        root.wrap(b"one more", CONTEXT)
        root.wipe()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_renewing_and_discarding_while_others_work(
        self, keyring: Keyring, root: OpenRoot, folder: Path, next_folder: Path, passphrase: bytes
    ) -> None:
        """Who works with the old root key gets an answer or `SealedFault`; the next one works from its beginning."""
        wrong: list[BaseException] = []
        done = threading.Event()
        begun = threading.Barrier(5)

        def work(own: OpenRoot) -> None:
            begun.wait()
            try:
                while not done.is_set():
                    assert works(own)
            except SealedFault:
                pass
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(root,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            begun.wait()
            following = root.renew(next_folder)
            wrapped = following.wrap(b"secret", CONTEXT)
            root.discard(folder)
            assert following.unwrap(wrapped, CONTEXT) == b"secret"
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not wrong
        following.wipe()
        assert keyring.open(next_folder, passphrase).unwrap(wrapped, CONTEXT) == b"secret"

    def test_secrets_do_not_show(
        self,
        keyring: Keyring,
        root: OpenRoot,
        folder: Path,
        next_folder: Path,
        other_folder: Path,
        passphrase: bytes,
    ) -> None:
        secret = b"canary-" + secrets.token_hex(16).encode()
        wrapped = root.wrap(secret, CONTEXT)
        given = ANOTHER if keyring.sets_passphrase else passphrase
        following = root.renew(next_folder, given)
        texts = [repr(each) + str(each) for each in (keyring, root, following)]
        faults: list[Fault] = []
        for act in (
            lambda: root.unwrap(wrapped[:-1], CONTEXT),
            lambda: root.unwrap(wrapped, secret),
            lambda: keyring.open(folder, WRONG),
            lambda: keyring.open(other_folder, passphrase),
            lambda: keyring.create(folder, passphrase),
            lambda: root.renew(folder),
            lambda: root.renew(next_folder, passphrase),
            lambda: root.renew(next_folder, ANOTHER),
            lambda: following.unwrap(wrapped, CONTEXT),
        ):
            with pytest.raises(Fault) as caught:
                act()
            faults.append(caught.value)
        for each in (root, following):
            with pytest.raises(TypeError):
                pickle.dumps(each)
        texts += [told(fault) for fault in faults]
        for word in (secret, passphrase, WRONG, ANOTHER):
            assert not any(word.decode() in text for text in texts)
        for path in (*folder.iterdir(), *next_folder.iterdir()):
            assert passphrase not in path.read_bytes() and given not in path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0
