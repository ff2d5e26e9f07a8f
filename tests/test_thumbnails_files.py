"""From file to file, as FileStruct's callers know it: ImageMagick's sizes, whole targets, named refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from images import chart, compare, corpus, encoded, reference, with_orientation
from PIL import Image

from fsworker.errors import ImageError
from fsworker.thumbnails import Limits, normalize_file, resize_file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "upload.png"
    path.write_bytes(encoded(chart(), "PNG"))
    return path


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class TestResize:
    """``resize_file`` is ``convert -resize``."""

    def test_has_imagemagicks_size_for_every_vector(self, tmp_path: Path) -> None:
        vectors = json.loads(corpus("imagemagick-geometry.json").read_text())
        small = [
            vector for vector in vectors if vector[0] * vector[1] <= 20_000 and vector[2] not in ("0x100", "100x0")
        ]
        chosen = small[::3]
        assert len(chosen) > 50
        target = tmp_path / "out.png"
        for width, height, geometry, expected in chosen:
            path = tmp_path / f"{width}x{height}.png"
            if not path.exists():
                Image.new("L", (width, height), 99).save(path)
            size = resize_file(path, target, geometry)
            with Image.open(target) as made:
                assert "{}x{}".format(*made.size) == "{}x{}".format(*size) == expected, (width, height, geometry)

    @pytest.mark.parametrize("name", ["out.bmp", "out.TIFF", "out.heic"])
    def test_refuses_to_write_one_format_under_the_name_of_another(self, source: Path, name: str) -> None:
        with pytest.raises(ImageError, match=r"is not written; name the target .*\.jpg"):
            resize_file(source, source.with_name(name), "10x10")
        assert entries(source.parent) == [source.name]

    @pytest.mark.parametrize("geometry", ["0x100", "100x0", "", "100x100+1+1", "abc"])
    def test_refuses_a_geometry_that_makes_no_sense(self, source: Path, geometry: str) -> None:
        with pytest.raises(ImageError):
            resize_file(source, source.with_name("out.png"), geometry)
        assert entries(source.parent) == ["upload.png"]

    def test_enlarges_faithfully(self, source: Path) -> None:
        target = source.with_name("out.png")
        assert resize_file(source, target, "480x480") == (480, 320)
        with Image.open(target) as made:
            assert compare(made, reference(chart(), (480, 320))).good

    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("a.jpg", "JPEG"),
            ("a.JPEG", "JPEG"),
            ("a.png", "PNG"),
            ("a.gif", "GIF"),
            ("a.webp", "WEBP"),
            ("a.avif", "AVIF"),
            ("a", "PNG"),
            ("a.upload", "PNG"),
        ],
    )
    def test_the_format_follows_the_name_of_the_target(self, source: Path, target: str, expected: str) -> None:
        resize_file(source, source.with_name(target), "50x50")
        with Image.open(source.with_name(target)) as made:
            assert (made.format, made.size) == (expected, (50, 33))

    def test_applies_orientation(self, tmp_path: Path) -> None:
        stored, exif = with_orientation(chart(), 6)
        (tmp_path / "a.jpg").write_bytes(encoded(stored, "JPEG", exif=exif, quality=97))
        assert resize_file(tmp_path / "a.jpg", tmp_path / "b.png", "90x90") == (90, 60)
        with Image.open(tmp_path / "b.png") as made:
            assert compare(made, reference(chart(), (90, 60))).psnr_db > 34

    def test_follows_a_symbolic_link_to_a_stored_file(self, source: Path) -> None:
        source.with_name("link.png").symlink_to(source)
        assert resize_file(source.with_name("link.png"), source.with_name("out.png"), "50%") == (120, 80)

    def test_may_replace_its_source(self, source: Path) -> None:
        assert resize_file(source, source, "50%") == (120, 80)
        with Image.open(source) as made:
            assert made.size == (120, 80)
        assert entries(source.parent) == ["upload.png"]


class TestNormalize:
    """``normalize_file`` fills and cuts the centre."""

    @pytest.mark.parametrize(
        ("width", "height", "box"),
        [(80, 80, (40, 0, 200, 160)), (480, 160, (0, 40, 240, 120)), (1, 1, (40, 0, 200, 160))],
    )
    def test_has_exactly_the_size_and_shows_the_centre(
        self, source: Path, width: int, height: int, box: tuple[int, int, int, int]
    ) -> None:
        target = source.with_name("out.png")
        assert normalize_file(source, target, width, height) == (width, height)
        with Image.open(target) as made:
            assert compare(made, chart().resize((width, height), Image.Resampling.LANCZOS, box)).psnr_db > 36

    @pytest.mark.parametrize(("width", "height"), [(0, 10), (-1, 10), (10, 0), (100_000, 10)])
    def test_refuses_a_size_that_makes_no_sense(self, source: Path, width: int, height: int) -> None:
        with pytest.raises(ImageError):
            normalize_file(source, source.with_name("out.png"), width, height)
        assert entries(source.parent) == ["upload.png"]


class TestFailure:
    """The target appears whole or not at all."""

    def test_a_picture_that_is_none(self, source: Path) -> None:
        source.write_bytes(b"hello")
        with pytest.raises(ImageError, match=r"'upload.png' cannot be converted: not a picture"):
            resize_file(source, source.with_name("out.png"), "50x50")
        assert entries(source.parent) == ["upload.png"]

    def test_a_broken_one_leaves_what_was_there(self, source: Path) -> None:
        target = source.with_name("out.png")
        target.write_bytes(b"before")
        source.write_bytes(source.read_bytes()[:500])
        with pytest.raises(ImageError, match="broken"):
            resize_file(source, target, "50x50")
        assert target.read_bytes() == b"before"

    def test_a_target_that_cannot_be(self, source: Path) -> None:
        (source.parent / "out.png").mkdir()
        with pytest.raises(OSError):
            resize_file(source, source.parent / "out.png", "50x50")
        assert entries(source.parent) == ["out.png", "upload.png"]

    def test_a_source_that_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        for name in ("fifo", "."):
            with pytest.raises(ImageError, match="no regular file"):
                resize_file(tmp_path / name, tmp_path / "out.png", "50x50")
        with pytest.raises(FileNotFoundError):
            resize_file(tmp_path / "absent", tmp_path / "out.png", "50x50")

    def test_limits_hold(self, source: Path) -> None:
        with pytest.raises(ImageError, match="megapixels"):
            resize_file(source, source.with_name("out.png"), "50x50", Limits(max_pixels=1000))
