"""A hostile picture costs one thumbnail: bounded memory, time and output, and never the process that asked."""

from __future__ import annotations

import io
import os
import signal
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from engines import Limited, by_fork, by_spare, obedient_server, ordered
from images import chart, corpus, encoded, reason, thumbnail, thumbnails
from PIL import Image

from fsworker.specification import Thumbnail
from fsworker.thumbnails import Limits, Picture, make_thumbnails
from fsworker.thumbnails.child import collect
from fsworker.thumbnails.forkserver import ForkServer
from fsworker.thumbnails.jpeg import count_scans
from fsworker.thumbnails.outcome import MemoryFile, Reporter, read_report
from fsworker.thumbnails.webp import canvas_size

pytestmark = pytest.mark.usefixtures("no_fork_server")

HOSTILE: dict[str, tuple[Picture | None, str]] = {
    "bomb-65536x65536.png": (Picture("image/png", 65536, 65536), "4295.0 megapixels, at most 50 are allowed"),
    "bomb-44-bytes.gif": (Picture("image/gif", 65535, 66601), "megapixels, at most 50 are allowed"),
    "bomb-3000000x2000000.bmp": (Picture("image/bmp", 3000000, 2000000), "megapixels, at most 50 are allowed"),
    "bomb.ico": (None, "more than 50 megapixels"),
    "circle.svg": (None, "not a picture"),
    "sample.eps": (None, "not a picture"),
    "timeout.dds": (None, "not a picture"),
    "truncated.jpg": (Picture("image/jpeg", 290, 442), "broken: image file is truncated"),
    "short.gif": (Picture("image/gif", 2, 2), "broken: image file is truncated"),
    "fuzzed.tif": (Picture("image/tiff", 300, 225), "broken: decoder error"),
    "progressive-scan-bomb.jpg": (Picture("image/jpeg", 7000, 7000), "more than 100 scans"),
}
GOOD_AFTER_ALL = {"syntaxerror.png"}  # broken EXIF, sound pixels


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with obedient_server() as started:
        yield started


@pytest.fixture(params=["fork", "server", "spare"])
def limited(request: pytest.FixtureRequest, server: ForkServer) -> Limited:
    """Runs the engine that obeys its picture: in a fork of this process, of a fork server, and in the server's spare."""
    return {"fork": ordered, "server": by_fork(server), "spare": by_spare(server)}[request.param]


class TestHostileCorpus:
    """Each hostile file has its verdict, and no thumbnail of it is made at any size."""

    @pytest.mark.parametrize("name", HOSTILE)
    def test_is_refused_with_its_reason(self, name: str) -> None:
        picture, expected = HOSTILE[name]
        outcome = thumbnails(
            corpus(f"hostile/{name}"), a="100x100", b={"geometry": "5000x", "animated": True}, c="9x9!"
        )
        assert outcome.picture == picture
        assert outcome.made == {}
        assert set(outcome.failed) == {"a", "b", "c"}
        assert all(expected in why for why in outcome.failed.values()), outcome.failed

    def test_broken_exif_spoils_no_pixels(self) -> None:
        assert thumbnail(corpus("hostile/syntaxerror.png"), "9x9").size == (1, 1)

    def test_none_is_missing_here(self) -> None:
        assert {path.name for path in corpus("hostile").iterdir()} == {*HOSTILE, *GOOD_AFTER_ALL}

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "ICO"])
    def test_half_a_file_is_an_error_and_not_half_a_picture(self, image_format: str) -> None:
        data = encoded(chart(600, 400), image_format)
        assert reason(data[: len(data) // 2])

    def test_half_a_progressive_jpeg_is_too(self) -> None:
        data = encoded(chart(600, 400), "JPEG", progressive=True)
        assert "truncated" in reason(data[: len(data) // 2])


class TestPixels:
    """Pixels are counted before they are decoded."""

    def test_of_the_original(self) -> None:
        data = encoded(chart(200, 100), "PNG")
        assert thumbnail(data, "50x", Limits(max_pixels=20_000)).size == (50, 25)
        assert "at most 0.019999 are allowed" in reason(data, "50x", Limits(max_pixels=19_999))

    @pytest.mark.parametrize("image_format", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "ICO"])
    def test_in_every_format(self, image_format: str) -> None:
        data = encoded(chart(200, 100), image_format, **({"sizes": [(200, 100)]} if image_format == "ICO" else {}))
        assert "megapixels" in reason(data, "50x", Limits(max_pixels=10_000))

    @pytest.mark.parametrize(
        "options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*"}, {"save_all": True}], ids=str
    )
    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    @pytest.mark.parametrize("size", [(1, 1), (3, 300), (301, 2)])
    def test_of_a_webp_are_read_from_its_start(self, size: tuple[int, int], mode: str, options: dict[str, Any]) -> None:
        if "save_all" in options:
            options = {**options, "append_images": [Image.new(mode, size, "red")]}
        data = encoded(Image.new(mode, size, "blue"), "WEBP", **options)
        assert canvas_size(io.BytesIO(data)) == size
        assert canvas_size(io.BytesIO(data[:29])) == (0, 0)

    @pytest.mark.parametrize(
        "chunk",
        [
            b"VP8L\x0e\0\0\0\x2f" + b"\xff" * 13,
            b"VP8 \x0e\0\0\0\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(4),
            b"VP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(4),
        ],
        ids=lambda chunk: chunk[:4].decode(),
    )
    def test_of_a_webp_that_says_it_is_vast(self, chunk: bytes) -> None:
        data = b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk
        assert "megapixels, at most 50 are allowed" in reason(data)

    def test_a_jpeg_may_have_more_if_it_is_decoded_small(self) -> None:
        data = encoded(chart(9000, 4000), "JPEG", quality=30)
        limits = Limits(max_pixels=8_000_000)
        outcome = thumbnails(data, limits, small="200x", large="4000x")
        assert set(outcome.made) == {"small"}
        assert "36.0 megapixels, at most 8 are allowed" in outcome.failed["large"]
        assert "at most 4 are" in reason(data, "200x", Limits(max_pixels=500_000))
        progressive = encoded(chart(9000, 4000), "JPEG", quality=30, progressive=True)
        assert "at most 8 are allowed" in reason(progressive, "200x", limits)

    def test_of_the_thumbnail(self) -> None:
        data = encoded(chart(20, 10), "PNG")
        wish = Thumbnail("15000x", upscale=True)
        assert "at most 50 megapixels" in reason(data, wish)
        assert "a webp has at most 16383" in reason(encoded(chart(17000, 2), "PNG"), Thumbnail("17000x", format="webp"))

    def test_of_all_frames(self) -> None:
        first, *others = [chart(100, 100).rotate(n) for n in range(30)]
        data = encoded(first, "GIF", save_all=True, append_images=others)
        wish = Thumbnail("50x", animated=True)
        assert thumbnail(data, wish).n_frames == 30
        assert "more than 20 frames" in reason(data, wish, Limits(max_frames=20))
        assert "30 frames of 100 x 100 pixels" in reason(data, wish, Limits(max_pixels=30_000))
        assert "30 frames of 50 x 50 pixels" in reason(data, wish, Limits(max_pixels=60_000))


class TestScans:
    """Scans of a JPEG are counted before they are decoded: neither pixels nor bytes tell what they cost."""

    def test_a_normal_file_has_few(self, tmp_path: Path) -> None:
        for progressive, expected in ((False, 1), (True, 10)):
            path = tmp_path / "a.jpg"
            path.write_bytes(encoded(chart(), "JPEG", progressive=progressive))
            with path.open("rb") as stream:
                scans = count_scans(stream, 100)
            assert (scans.progressive, scans.count) == (progressive, expected)
            assert scans.single == (not progressive)

    def test_many_are_refused(self) -> None:
        data = many_scans(101)
        assert "more than 100 scans" in reason(data)
        assert thumbnail(many_scans(60), "50x").size == (50, 33)
        assert "more than 12 scans" in reason(data, limits=Limits(max_scans=12))

    def test_an_end_marker_in_a_comment_hides_none(self) -> None:
        comment = b"\xff\xd9\xff\xda" * 20
        assert "more than 100 scans" in reason(
            many_scans(110, b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment)
        )

    def test_what_comes_after_the_picture_does_not_count(self) -> None:
        data = encoded(chart(), "JPEG", progressive=True) + b"\xff\xda\0\x08" * 500
        assert thumbnail(data, "50x").size == (50, 33)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff\xd8",
            b"\xff\xd8\xff",
            b"\xff\xd8\xff\xc2",
            b"\xff\xd8\xff\xda\0\0",
            b"\xff\xd8" + b"\xff" * 70000,
        ],
    )
    def test_broken_bytes_end_the_count(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        path.write_bytes(data)
        with path.open("rb") as stream:
            assert count_scans(stream, 100).count <= 1

    def test_the_count_takes_linear_time(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        path.write_bytes(b"\xff\xd8" + b"\xff" * 20_000_000)
        with path.open("rb") as stream:  # quadratic, this would take hours
            assert count_scans(stream, 100).count == 0


@pytest.fixture
def small_server() -> Iterator[ForkServer]:
    """A fork server: its forks have no memory but what they are given, where those of this process find holes in its heap."""
    server = ForkServer()
    yield server
    server.stop()


class TestResources:
    """What a decoder takes is bounded by the kernel, and what kills it is told."""

    def test_memory(self) -> None:
        data = encoded(Image.new("RGB", (6000, 5000)), "PNG")
        outcome = thumbnails(data, Limits(memory_bytes=8 * 2**20), a="50x", b="60x")
        assert outcome.picture == Picture("image/png", 6000, 5000)
        assert outcome.failed == dict.fromkeys("ab", "needs more than 8 MiB of memory")

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "HEIF"])
    def test_no_memory_makes_a_good_picture_a_broken_one(self, image_format: str, small_server: ForkServer) -> None:
        options: dict[str, Any] = {"JPEG": {"progressive": True}, "AVIF": {"speed": 10}}.get(image_format, {})
        if image_format == "HEIF":
            heif = pytest.importorskip("pillow_heif", reason="HEIC needs the extra 'heic'")
            heif.register_heif_opener()
        data = encoded(Image.effect_noise((1600, 1200), 60).convert("RGB"), image_format, **options)
        fd, wish = os.memfd_create("picture", os.MFD_CLOEXEC), {"a": Thumbnail("800x")}
        os.pwrite(fd, data, 0)
        for mib in (2, 4, 6, 8, 10, 12, 15, 20, 30, 50):
            report, early = collect(small_server.run, fd, wish, Limits(memory_bytes=mib * 2**20))
            told = report.failed.get("a", early)
            assert told == (None if report.made else f"needs more than {mib} MiB of memory")
        os.close(fd)
        assert report.made

    def test_output(self) -> None:
        noise = Image.effect_noise((600, 600), 100)
        outcome = thumbnails(encoded(noise, "PNG"), Limits(output_bytes=50_000), a="50x", b="600x", c="60x")
        assert set(outcome.made) == {"a", "c"}
        assert "MiB together" in outcome.failed["b"]


class TestDeath:
    """What kills a decoder is told, and what it had finished counts."""

    def test_processor_time(self, limited: Limited) -> None:
        report, why = limited("reporter.failed('a', 'before')\nwhile True: pass", Limits(cpu_s=0.1))
        assert why == "took more than 1 s of processor time"
        assert report.failed == {"a": "before"}

    def test_wall_clock(self, limited: Limited) -> None:
        started_s = time.monotonic()
        _, why = limited("import time; time.sleep(60)", Limits(wall_s=0.2))
        assert why == "took longer than 0.2 s"
        assert time.monotonic() - started_s < 30

    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
    def test_a_crash(self, number: signal.Signals, limited: Limited) -> None:
        _, why = limited(f"import signal; signal.raise_signal({number:d})")
        assert why is not None
        assert ("was killed" if number == signal.SIGKILL else number.name) in why

    def test_an_exception_and_too_little_memory(self, limited: Limited) -> None:
        assert limited("1 / 0")[1] == "the decoder failed"
        assert limited("bytearray(2**27)", Limits(memory_bytes=2**26))[1] == "needs more than 64 MiB of memory"

    def test_what_was_made_before_a_death_counts(self, limited: Limited) -> None:
        report, why = limited(
            "import os; from fsworker.thumbnails import Picture\n"
            "reporter.picture(Picture('image/png', 3, 2)); reporter.made('a', b'abc', 'image/png', 2, 1)\n"
            "import signal; signal.raise_signal(9)"
        )
        assert report.picture == Picture("image/png", 3, 2)
        assert report.made["a"].read() == b"abc"
        assert why is not None

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
    def test_what_stops_the_worker_does_not_break_a_picture(self, number: signal.Signals, limited: Limited) -> None:
        """A terminal, systemd and init send these to all of a service's processes; a worker ends its task first."""
        report, why = limited(f"import signal; signal.raise_signal({number:d}); reporter.failed('a', 'went on')")
        assert (report.failed, why) == ({"a": "went on"}, None)


class TestConfinement:
    """The decoding process can reach nothing."""

    @pytest.mark.parametrize(
        "attempt",
        [
            "open('/etc/passwd')",
            "open('/dev/null', 'w')",
            "__import__('socket').socket()",
            "os.pipe()",
            "os.dup(0)",
            "os.memfd_create('x')",
            "os.unlink(victim)",
            "os.rename(victim, victim + '.moved')",
            "os.mkdir(victim + '.directory')",
            "os.symlink('/', victim + '.link')",
            "os.execv('/bin/true', ['true'])",
            "os.kill(os.getppid(), 0)",
            "os.kill(-1, 0)",
            "os.fork()",
            "os.posix_spawn('/bin/true', ['true'], {})",
            "__import__('multiprocessing').get_context('fork').Process().start()",
            "os.pwrite(reporter._output_fd, b'x', 2**30)",
            "resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))",
            "resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",  # nor root in a container
            "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (9, 9))",
            "os.setpriority(os.PRIO_PROCESS, os.getppid(), os.getpriority(os.PRIO_PROCESS, os.getppid()))",
            "os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))",
            "os.sched_setscheduler(os.getppid(), os.SCHED_OTHER, os.sched_param(0))",
            "os.sched_setparam(os.getppid(), os.sched_param(0))",
            "library(lambda c: c.shmget(0, 4096, 0o600))",  # it would stay
            "library(lambda c: c.semget(0, 1, 0o600))",
            "library(lambda c: c.msgget(0, 0o600))",
            "os.setgroups([])",
            "os.chroot('/')",
        ],
    )
    def test_it_cannot(self, attempt: str, tmp_path: Path, limited: Limited) -> None:
        victim = tmp_path / "victim"
        victim.write_bytes(b"here")
        if attempt.startswith(("os.unlink", "os.rename", "os.mkdir", "os.symlink")):
            _need_landlock(1)
        code = f"""
import ctypes, os, resource
victim = {str(victim)!r}
def library(call):
    if call(ctypes.CDLL(None)) == -1:
        raise OSError
try:
    {attempt}
except (OSError, ValueError, RuntimeError) as error:
    reporter.failed("a", f"refused: {{error}}")
else:
    reporter.failed("a", "allowed")
"""
        report, _ = limited(code)
        assert report.failed.get("a", "").startswith("refused"), report.failed
        assert [path.name for path in tmp_path.iterdir()] == ["victim"]

    def test_it_has_no_descriptors_but_its_own(self, limited: Limited) -> None:
        code = """
import os, resource
alive = []
for descriptor in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 500):
    try:
        os.fstat(descriptor)
    except OSError:
        continue
    alive.append(descriptor)
reporter.failed("a", len(alive))
"""
        with open("/etc/hostname", "rb"):
            report, _ = limited(code)
        assert report.failed["a"] == "6"  # three of /dev/null, the original, the report, the output

    def test_it_dies_with_its_parent(self) -> None:
        reading, writing = os.pipe()
        parent = os.fork()
        if parent == 0:
            os.write(writing, b"x")
            ordered("import time; time.sleep(600)", Limits(wall_s=600))
            os._exit(1)
        os.close(writing)
        os.read(reading, 1)
        deadline_s = time.monotonic() + 10
        while not (children := _children(parent)) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.1)  # it has asked the kernel for this by now
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.close(reading)
        while any(_alive(child) for child in children) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert children
        assert not any(_alive(child) for child in children)


class TestReport:
    """The report comes from a process that strangers' bytes may have taken over."""

    @pytest.mark.parametrize(
        "line",
        [
            b"not json",
            b"[]",
            b"1",
            b"null",
            b'{"picture": 1}',
            b'{"picture": ["text/html", 1, 1]}',
            b'{"picture": ["image/png", -1, 1]}',
            b'{"made": "a"}',
            b'{"made": "a", "at": 0, "size": 9999, "is": ["image/png", 1, 1]}',
            b'{"made": "a", "at": -5, "size": 1, "is": ["image/png", 1, 1]}',
            b'{"made": "a", "at": 4, "size": 1, "is": ["image/png", 1, 1]}',
            b'{"made": "b", "at": 0, "size": 1, "is": ["image/png", 1, 1]}',
            b'{"made": ["a"], "at": 0, "size": 1, "is": ["image/png", 1, 1]}',
            b'{"failed": "b", "reason": "x"}',
            b'{"failed": "a"}',
            b'{"input_error": "x"}',
            b"[" * 100_000,
            b"\xff\xfe",
        ],
    )
    def test_nonsense_is_nothing(self, line: bytes) -> None:
        report, output = MemoryFile("report"), MemoryFile("output")
        os.write(report.fd, line + b"\n")
        os.write(output.fd, b"four")
        read = read_report(report, output, frozenset("a"))
        assert (read.picture, read.made, read.failed, read.input_error) == (None, {}, {}, None)

    def test_a_thumbnail_that_is_something_else_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def taken_over(fd: int, specifications: Mapping[str, Thumbnail], limits: Limits, reporter: Reporter) -> None:
            reporter.made("a", b"<script>", "image/png", 9, 9)
            reporter.made("b", b"\x89PNG\r\n\x1a\n", "image/png", 9, 9)
            reporter.made("c", b"\x89PNG\r\n\x1a\n", "image/webp", 9, 9)

        monkeypatch.setattr("fsworker.thumbnails.make.render", taken_over)
        outcome = thumbnails(encoded(chart(), "PNG"), a="9x9", b="8x8", c="7x7")
        assert set(outcome.made) == {"b"}
        assert set(outcome.failed) == {"a", "c"}

    def test_a_reason_is_one_short_printable_line(self) -> None:
        report, output = MemoryFile("report"), MemoryFile("output")
        Reporter(report.fd, output.fd).failed("a", "\x1b[31m\n\0\u202e" + "x" * 5000)
        why = read_report(report, output, frozenset("a")).failed["a"]
        assert why.isprintable()
        assert len(why) < 400

    def test_a_thumbnail_is_read_whole_in_pieces_or_as_a_stream(self) -> None:
        made = thumbnails(encoded(chart(), "PNG"), a="50x", b="90x").made["b"]
        assert b"".join(made.chunks(100)) == made.read() == made.open().read()
        assert len(made.read()) == made.size


class TestOwnEnvironment:
    """Only what is wrong with this process or its disk is an exception."""

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(OSError):
                make_thumbnails(fd, {"a": Thumbnail("9x9")})
        finally:
            os.close(fd)

    def test_an_error_of_the_disk_is_no_verdict_on_the_picture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.preadv

        def fails(fd: int, buffers: list[bytearray], offset: int) -> int:
            if offset >= 2**16:
                raise OSError(5, "Input/output error")
            return real(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", fails)
        with pytest.raises(OSError, match="Input/output error"):
            thumbnails(encoded(Image.effect_noise((500, 500), 90), "PNG"), a="50x")


def many_scans(count: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan is repeated until there are ``count``."""
    data = encoded(chart(), "JPEG", progressive=True)
    positions = [at for at in range(len(data) - 1) if data[at] == 0xFF and data[at + 1] in (0xDA, 0xD9, 0xC4)]
    last = max(at for at in positions if data[at + 1] == 0xDA)
    scan = data[last:-2]
    return data[:-2] + (between + scan) * (count - 10) + data[-2:]


def _need_landlock(version: int) -> None:
    import ctypes

    has = ctypes.CDLL(None).syscall(444, None, 0, 1)
    if has < version:
        pytest.skip(f"CI-may-skip: the kernel's Landlock has version {has}, this needs {version}")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_a_png_of_endless_text_is_bounded() -> None:
    data = encoded(chart(), "PNG")
    body = b"zTXt" + b"k\0\0" + zlib.compress(b"x" * 50_000_000)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    outcome = thumbnails(data[:33] + chunk + data[33:], Limits(memory_bytes=64 * 2**20), a="50x")
    assert outcome.failed or outcome.made
