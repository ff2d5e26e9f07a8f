"""The durable write and its parts, on real files."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsworker import copying, durable

MIB = copying.BUFFER_BYTES


@pytest.fixture
def directory_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def no_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without O_TMPFILE, as NFS is."""
    real = os.open

    def refusing(path: str, flags: int, *args: object, **kwargs: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)


def both_kinds_of_filesystem(test: object) -> object:
    return pytest.mark.parametrize("kind", ["O_TMPFILE", "without O_TMPFILE"])(test)


@pytest.fixture
def unnamed(request: pytest.FixtureRequest, kind: str, directory_fd: int) -> Iterator[int]:
    if kind != "O_TMPFILE":
        request.getfixturevalue("no_tmpfile")
    fd = durable.open_unnamed(directory_fd, ".")
    os.write(fd, b"content")
    yield fd
    durable.close_unnamed(fd)


@both_kinds_of_filesystem
def test_an_unnamed_file_gets_its_name_whole(unnamed: int, directory_fd: int, tmp_path: Path) -> None:
    durable.link_unnamed(unnamed, "name", directory_fd)
    assert (tmp_path / "name").read_bytes() == b"content"


@both_kinds_of_filesystem
def test_publishing_never_replaces(unnamed: int, directory_fd: int, tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"first")
    with pytest.raises(FileExistsError):
        durable.link_unnamed(unnamed, "name", directory_fd)
    assert (tmp_path / "name").read_bytes() == b"first"


@pytest.mark.parametrize("kind", ["O_TMPFILE", "without O_TMPFILE"])
@pytest.mark.parametrize("link", [True, False])
def test_closing_leaves_the_published_name_and_nothing_else(
    request: pytest.FixtureRequest, kind: str, link: bool, directory_fd: int, tmp_path: Path
) -> None:
    if kind != "O_TMPFILE":
        request.getfixturevalue("no_tmpfile")
    fd = durable.open_unnamed(directory_fd, ".")
    if link:
        durable.link_unnamed(fd, "name", directory_fd)
    durable.close_unnamed(fd)
    assert os.listdir(tmp_path) == (["name"] if link else [])
    with pytest.raises(OSError):
        os.fstat(fd)


@given(st.lists(st.binary(max_size=20)), st.binary(max_size=20))
def test_a_copy_is_hashed_as_it_is_written(parts: list[bytes], head: bytes) -> None:
    content = b"".join(parts)
    fd = os.memfd_create("target")
    try:
        copied = copying.copy_hashed(copying.reader_into(io.BytesIO(content)), fd, head=head)
        assert copied == copying.Copied(hashlib.sha1(head + content).hexdigest(), len(head) + len(content))
        assert os.pread(fd, 10**6, 0) == head + content
        assert copying.hash_descriptor(fd) == copied
        assert os.lseek(fd, 0, os.SEEK_CUR) == copied.size_bytes
    finally:
        os.close(fd)


def test_progress_is_told_and_the_limit_is_met_early() -> None:
    class Endless:
        reads = 0

        def read(self, size: int, /) -> bytes:
            self.reads += 1
            return b"x" * size

    stream, told, fd = Endless(), [], os.memfd_create("target")
    try:
        with pytest.raises(copying.TooLargeError):
            copying.copy_hashed(copying.reader_into(stream), fd, 3 * MIB, told.append)
    finally:
        os.close(fd)
    assert told == [MIB, 2 * MIB, 3 * MIB]
    assert stream.reads == 4


@pytest.mark.parametrize("wrong", ["text", None, 5])
def test_a_stream_of_something_else_than_bytes_is_a_type_error(wrong: object) -> None:
    class Stream:
        def read(self, size: int, /) -> object:
            return wrong

    with pytest.raises(TypeError, match="must return bytes"):
        copying.reader_into(Stream())(memoryview(bytearray(10)))  # type: ignore[arg-type]


def test_a_loan_inside_a_loan_is_another_buffer() -> None:
    with copying.borrowed_buffer() as outer, copying.borrowed_buffer() as inner:
        assert outer.obj is not inner.obj
        assert len(outer) == len(inner) == MIB
    with copying.borrowed_buffer() as again:
        assert again.obj in (outer.obj, inner.obj)


@pytest.mark.parametrize("size", [0, 1, 100, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 5])
def test_comparison_sees_every_difference(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    others = [data + b"x", data[:-1] if data else b"y"]
    if data:
        others += [bytes([data[0] ^ 1]) + data[1:], data[:-1] + bytes([data[-1] ^ 1])]
    fds = []
    for content in (data, data, *others):
        fds.append(os.memfd_create("content"))
        durable.write_all(fds[-1], content)
    try:
        assert copying.same_bytes(fds[0], fds[1])
        assert copying.equals(fds[0], data)
        for fd, other in zip(fds[2:], others, strict=True):
            assert not copying.same_bytes(fds[0], fd)
            assert not copying.same_bytes(fd, fds[0])
            assert not copying.equals(fds[0], other)
            assert not copying.equals(fd, data)
    finally:
        for fd in fds:
            os.close(fd)


def test_a_small_file_is_replaced_whole_with_its_mode(directory_fd: int, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        durable.replace_small_file("f", b"one", directory_fd, 0o644)
        durable.replace_small_file("f", b"two", directory_fd, 0o644)
    finally:
        os.umask(old)
    assert (tmp_path / "f").read_bytes() == b"two"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["f"]


def test_a_link_is_replaced_not_followed(directory_fd: int, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "f").symlink_to("other")
    durable.replace_small_file("f", b"new", directory_fd)
    assert (tmp_path / "other").read_bytes() == b"other"
    assert not (tmp_path / "f").is_symlink()


def test_a_failed_replacement_leaves_the_old_and_no_litter(directory_fd: int, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError):
        durable.replace_small_file("f", b"new", directory_fd)
    assert os.listdir(tmp_path) == ["f"]


def test_rename_new_never_replaces(directory_fd: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError):
        durable.rename_new("a", "b", directory_fd)
    durable.rename_new("a", "c", directory_fd)
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]


def test_sync_errors_are_raised() -> None:
    with pytest.raises(OSError) as caught:
        durable.syncfs(-1)
    assert caught.value.errno == errno.EBADF
