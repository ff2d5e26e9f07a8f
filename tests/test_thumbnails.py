"""Thumbnails are right: of every format and mode, upright, faithful, the same bytes each time, and nothing but the picture."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from images import chart, compare, corpus, encoded, reason, reference, thumbnail, thumbnails, with_orientation
from PIL import Image, ImageChops, ImageFilter, ImageOps, JpegImagePlugin

from fsworker.specification import FORMATS, Thumbnail
from fsworker.thumbnails import ENGINE_VERSION, Picture

try:
    import pillow_heif
except ImportError:
    HAS_HEIF = False
else:
    HAS_HEIF = True

pytestmark = pytest.mark.usefixtures("no_fork_server")

PNG = {"format": "png"}

CORPUS_SIZES = {
    **{f"orientation-landscape-{n}.jpg": ("image/jpeg", 1800, 1200) for n in range(1, 9)},
    **{f"orientation-portrait-{n}.jpg": ("image/jpeg", 1200, 1800) for n in (5, 6, 8)},
    "phone-12mp-mpo.jpg": ("image/jpeg", 4000, 3000),
    "orientation-6.webp": ("image/webp", 128, 128),
    "orientation-6.png": ("image/png", 100, 200),
    "rotated.avif": ("image/avif", 640, 427),
    "alpha.avif": ("image/avif", 64, 64),
    "tree.avif": ("image/avif", 320, 241),
    "progressive.jpg": ("image/jpeg", 600, 400),
    "cmyk.jpg": ("image/jpeg", 100, 100),
    "cmyk-no-profile.jpg": ("image/jpeg", 500, 333),
    "p3.png": ("image/png", 8, 8),
    "prophoto.png": ("image/png", 1, 1),
    "generic-rgb-profile.jpg": ("image/jpeg", 480, 640),
    "grey-icc.jpg": ("image/jpeg", 50, 50),
    "palette-alpha.png": ("image/png", 900, 600),
    "animated-palette.png": ("image/png", 128, 64),
    "multipage.tiff": ("image/tiff", 10, 10),
    "fax-3307x4677.tiff": ("image/tiff", 3307, 4677),
    "icon.ico": ("image/vnd.microsoft.icon", 16, 16),
    "small.heif": ("image/heic", 29, 100),
    "gps.jpg": ("image/jpeg", 8, 8),
    "grey-16bit.png": ("image/png", 32, 32),
    "interlaced.png": ("image/png", 1, 1),
    "animated.gif": ("image/gif", 32, 32),
}

WRITABLE = [
    ("JPEG", "L"),
    ("JPEG", "RGB"),
    ("JPEG", "CMYK"),
    ("PNG", "1"),
    ("PNG", "L"),
    ("PNG", "LA"),
    ("PNG", "P"),
    ("PNG", "RGB"),
    ("PNG", "RGBA"),
    ("GIF", "1"),
    ("GIF", "L"),
    ("GIF", "P"),
    ("GIF", "RGB"),
    ("GIF", "RGBA"),
    ("WEBP", "L"),
    ("WEBP", "P"),
    ("WEBP", "RGB"),
    ("WEBP", "RGBA"),
    ("AVIF", "L"),
    ("AVIF", "RGB"),
    ("AVIF", "RGBA"),
    ("TIFF", "1"),
    ("TIFF", "L"),
    ("TIFF", "LA"),
    ("TIFF", "P"),
    ("TIFF", "RGB"),
    ("TIFF", "RGBA"),
    ("TIFF", "CMYK"),
    ("TIFF", "YCbCr"),
    ("BMP", "1"),
    ("BMP", "L"),
    ("BMP", "P"),
    ("BMP", "RGB"),
    ("BMP", "RGBA"),
    ("ICO", "RGB"),
    ("ICO", "RGBA"),
    ("ICO", "P"),
]
if HAS_HEIF:
    pillow_heif.register_heif_opener()
    WRITABLE += [("HEIF", "RGB"), ("HEIF", "RGBA")]
LOSSLESS = {
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100},
    "JPEG": {"quality": 97},
    "ICO": {"sizes": [(240, 160)]},
}


class TestCorpus:
    """Every picture of the corpus."""

    @pytest.mark.parametrize("name", CORPUS_SIZES)
    def test_is_known_by_its_upright_size_and_made_into_thumbnails(self, name: str) -> None:
        if name.endswith(".heif"):
            pytest.importorskip("pillow_heif", reason="HEIC needs the extra 'heic'")
        media_type, width, height = CORPUS_SIZES[name]
        outcome = thumbnails(corpus(f"images/{name}"), small="100x100", webp={"geometry": "1600x", "format": "webp"})
        assert outcome.picture == Picture(media_type, width, height)
        assert outcome.failed == {}
        small, webp = outcome.made["small"], outcome.made["webp"]
        assert (small.width, small.height) == Thumbnail("100x100").size(width, height)
        assert (webp.width, webp.height, webp.media_type) == (*Thumbnail("1600x").size(width, height), "image/webp")

    def test_none_is_missing_here(self) -> None:
        assert {path.name for path in corpus("images").iterdir()} == set(CORPUS_SIZES)

    @pytest.mark.parametrize("name", [name for name in CORPUS_SIZES if "landscape" in name or "portrait" in name])
    def test_photographs_in_all_orientations_show_the_same(self, name: str) -> None:
        first = thumbnail(corpus(f"images/{name.rpartition('-')[0]}-{name[-5]}.jpg"), {"geometry": "256x256", **PNG})
        kind = "landscape-1" if "landscape" in name else "portrait-6"
        other = thumbnail(corpus(f"images/orientation-{kind}.jpg"), {"geometry": "256x256", **PNG})
        difference = ImageChops.difference(first.convert("L").resize((32, 32)), other.convert("L").resize((32, 32)))
        # Each file has its own number painted on it, so they are alike but for that.
        assert sum(difference.histogram()[64:]) < 60

    @pytest.mark.parametrize("geometry", ["100x100", "512x512", "1600x1600"])
    @pytest.mark.parametrize("name", ["phone-12mp-mpo.jpg", "orientation-landscape-6.jpg", "progressive.jpg"])
    def test_photographs_are_faithful_at_every_size(self, name: str, geometry: str) -> None:
        made = thumbnail(corpus(f"images/{name}"), {"geometry": geometry, **PNG})
        with Image.open(corpus(f"images/{name}")) as original:
            likeness = compare(made, reference(original, made.size))
        assert likeness.good, likeness


class TestFormatsAndModes:
    """Every format that is decoded, in every mode that can be written in it."""

    @pytest.mark.parametrize(("image_format", "mode"), WRITABLE)
    def test_looks_like_its_original(self, image_format: str, mode: str) -> None:
        data = encoded(chart(mode=mode), image_format, **LOSSLESS.get(image_format, {}))
        made = thumbnail(data, {"geometry": "90x90", **PNG})
        with Image.open(io.BytesIO(data)) as original:
            transparent = original.has_transparency_data
            expected = reference(original.convert("RGBA" if transparent else "RGB"), (90, 60))
        likeness = compare(made, expected)
        assert likeness.good, likeness

    @pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4"])
    def test_tiff_in_each_compression(self, compression: str) -> None:
        image = chart(mode="1" if compression == "group4" else "RGB")
        made = thumbnail(encoded(image, "TIFF", compression=compression), {"geometry": "90x90", **PNG})
        likeness = compare(made, reference(image.convert("RGB"), (90, 60)))
        assert likeness.psnr_db > (33 if compression == "jpeg" else 38)

    @pytest.mark.parametrize(("image_format", "mode"), [("TIFF", "F"), ("TIFF", "I")])
    def test_samples_without_an_agreed_range_are_refused_by_name(self, image_format: str, mode: str) -> None:
        assert f"mode {mode}" in reason(encoded(chart().convert("L").convert(mode), image_format))

    @pytest.mark.parametrize(
        "start",
        ["%PDF-1.7", "<svg xmlns='x'/>", "%!PS-Adobe-3.0 EPSF-3.0", "8BPS\0\1", "DDS |", "P6 1 1 255 ", "hello"],
    )
    def test_what_is_not_on_the_list_is_no_picture(self, start: str) -> None:
        outcome = thumbnails(start.encode() * 50, a="9x9", b="8x8")
        assert outcome.picture is None
        assert outcome.made == {}
        assert set(outcome.failed) == {"a", "b"}
        assert "not a picture" in outcome.failed["a"]

    def test_heic_without_its_extra_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fsworker.thumbnails.decode.HAS_HEIF", False)
        assert "pip install 'fsworker[heic]'" in reason(corpus("images/small.heif"))

    def test_loading_it_leaves_pillow_as_it_was(self) -> None:
        code = """
import sys
from PIL import AvifImagePlugin, Image
before = (Image.MAX_IMAGE_PIXELS, AvifImagePlugin.DEFAULT_MAX_THREADS)
import fsworker.thumbnails
sys.exit(before != (Image.MAX_IMAGE_PIXELS, AvifImagePlugin.DEFAULT_MAX_THREADS) or "HEIF" in Image.OPEN)
"""
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_an_empty_file_is_no_picture(self) -> None:
        assert thumbnails(b"", a="9x9").picture is None

    def test_without_specifications_the_headers_are_enough(self) -> None:
        data = encoded(chart(), "PNG")
        assert thumbnails(data[:300]).picture == Picture("image/png", 240, 160)


class TestOrientation:
    """EXIF's orientation is applied, whoever carries it, and reported sizes are upright."""

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", *["HEIF"][: int(HAS_HEIF)]])
    def test_stands_upright(self, image_format: str, orientation: int) -> None:
        stored, exif = with_orientation(chart(), orientation)
        data = encoded(stored, image_format, exif=exif, **LOSSLESS.get(image_format, {}))
        outcome = thumbnails(data, it={"geometry": "90x90", **PNG})
        assert outcome.picture is not None
        assert (outcome.picture.width, outcome.picture.height) == (240, 160)
        likeness = compare(Image.open(outcome.made["it"].open()), reference(chart(), (90, 60)))
        assert likeness.psnr_db > 30, likeness

    def test_a_box_binds_the_upright_picture(self) -> None:
        stored, exif = with_orientation(chart(), 6)
        data = encoded(stored, "JPEG", exif=exif)
        assert thumbnail(data, "60x").size == (60, 40)
        assert thumbnail(data, "60x30!").size == (60, 30)
        assert thumbnail(data, {"geometry": "30x50", "crop": True}).size == (30, 50)

    def test_a_png_may_tell_it_after_its_pixels(self) -> None:
        stored, exif = with_orientation(chart(), 6)
        data = encoded(stored, "PNG")
        body = exif.removeprefix(b"Exif\0\0")
        chunk = len(body).to_bytes(4, "big") + b"eXIf" + body + _crc(b"eXIf" + body)
        data = data[:-12] + chunk + data[-12:]
        assert thumbnails(data).picture == Picture("image/png", 240, 160)
        assert compare(thumbnail(data, {"geometry": "90x", **PNG}), reference(chart(), (90, 60))).good

    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
    )
    def test_broken_exif_is_none(self, exif: bytes) -> None:
        assert compare(
            thumbnail(encoded(chart(), "PNG", exif=exif), {"geometry": "90x", **PNG}), reference(chart(), (90, 60))
        ).good

    @pytest.mark.parametrize("value", [0, 9, 65535])
    def test_a_value_that_means_nothing_turns_nothing(self, value: int) -> None:
        _, exif = with_orientation(chart(), value)
        assert thumbnail(encoded(chart(), "JPEG", exif=exif), "90x90").size == (90, 60)


class TestGeometryInPixels:
    """What is shown: all of the picture, or the centre of it."""

    @pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
    @pytest.mark.parametrize(
        ("geometry", "size"), [("77x", (77, 51)), ("150x40!", (150, 40)), ("100x100^", (150, 100)), ("33.3%", (80, 53))]
    )
    def test_all_of_it(self, image_format: str, geometry: str, size: tuple[int, int]) -> None:
        data = encoded(chart(), image_format, **LOSSLESS.get(image_format, {}))
        with Image.open(io.BytesIO(data)) as original:
            expected = reference(original, size)
        assert compare(thumbnail(data, {"geometry": geometry, **PNG}), expected).good

    @pytest.mark.parametrize(
        ("geometry", "box"), [("80x80", (40, 0, 200, 160)), ("120x40", (0, 40, 240, 120)), ("40x80", (80, 0, 160, 160))]
    )
    def test_a_crop_shows_the_centre(self, geometry: str, box: tuple[int, int, int, int]) -> None:
        made = thumbnail(encoded(chart(), "PNG"), {"geometry": geometry, "crop": True})
        expected = chart().resize(made.size, Image.Resampling.LANCZOS, box)
        assert compare(made, expected).good

    def test_a_crop_of_a_picture_too_small_to_scale_copies_pixels(self) -> None:
        made = thumbnail(encoded(chart(101, 67), "PNG"), {"geometry": "200x200", "crop": True})
        assert ImageChops.difference(made, chart(101, 67).crop((17, 0, 84, 67))).getbbox() is None

    def test_enlarges_only_when_asked(self) -> None:
        data = encoded(chart(24, 16), "PNG")
        assert thumbnail(data, "240x240").size == (24, 16)
        enlarged = thumbnail(data, {"geometry": "240x240", "upscale": True})
        assert compare(enlarged, reference(chart(24, 16), (240, 160))).good

    @pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2), (2001, 3)])
    @pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
    def test_extreme_shapes_have_at_least_a_pixel(self, image_format: str, size: tuple[int, int]) -> None:
        data = encoded(Image.new("RGB", size, "orange"), image_format)
        for geometry in ("100x100", "7x7", "10x10^", "1x1!"):
            made = thumbnail(data, {"geometry": geometry, **PNG})
            assert made.size == Thumbnail(geometry).size(*size)
            assert abs(made.convert("RGB").getpixel((0, 0))[1] - 165) < 6


class TestOutput:
    """What comes out: the format that was asked for or a sensible one, the same bytes, and nothing but the picture."""

    @pytest.mark.parametrize(
        ("image_format", "mode", "expected"),
        [
            ("JPEG", "RGB", "JPEG"),
            ("PNG", "RGB", "PNG"),
            ("PNG", "RGBA", "PNG"),
            ("WEBP", "RGB", "WEBP"),
            ("GIF", "P", "PNG"),
            ("ICO", "RGBA", "PNG"),
            ("BMP", "RGB", "JPEG"),
            ("TIFF", "RGB", "JPEG"),
            ("TIFF", "RGBA", "PNG"),
            ("AVIF", "RGB", "JPEG"),
            ("AVIF", "RGBA", "PNG"),
        ],
    )
    def test_has_a_format_that_browsers_show(self, image_format: str, mode: str, expected: str) -> None:
        assert thumbnail(encoded(chart(mode=mode), image_format), "50x50").format == expected

    @pytest.mark.parametrize("output", FORMATS)
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
    def test_every_format_can_be_asked_for(self, output: str, mode: str) -> None:
        made = thumbnail(encoded(chart(mode=mode), "PNG"), {"geometry": "90x90", "format": output})
        expected = reference(chart(mode=mode), (90, 60))
        if output == "jpeg":
            below = Image.new("RGBA", expected.size, "white")
            expected = Image.alpha_composite(below, expected.convert("RGBA"))
        assert compare(made, expected).psnr_db > (20 if output == "gif" else 26)

    def test_quality_costs_bytes(self) -> None:
        data = encoded(chart(), "PNG")
        sizes = [
            thumbnails(data, it={"geometry": "200x", "format": name, "quality": quality}).made["it"].size
            for name in ("jpeg", "webp", "avif")
            for quality in (20, 60, 95)
        ]
        assert sizes[0] < sizes[1] < sizes[2]
        assert sizes[3] < sizes[4] < sizes[5]
        assert sizes[6] < sizes[7] < sizes[8]

    @pytest.mark.parametrize("output", FORMATS)
    def test_is_the_same_bytes_twice_and_in_any_company(self, output: str) -> None:
        data = encoded(chart(2600, 1700), "JPEG")
        alone = thumbnails(data, it={"geometry": "90x90", "format": output}).made["it"].read()
        company = thumbnails(data, big="2400x", middle="1200x", it={"geometry": "90x90", "format": output}, tiny="9x")
        assert company.failed == {}
        assert company.made["it"].read() == alone

    @pytest.mark.parametrize("output", FORMATS)
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF"])
    def test_carries_no_metadata(self, image_format: str, output: str) -> None:
        made = thumbnails(_talkative(image_format), it={"geometry": "120x", "format": output}).made["it"].read()
        for secret in (
            b"SECRET",
            b"Exif",
            b"ICC_PROFILE",
            b"iCCP",
            b"ICCP",
            b"http://ns.adobe.com",
            b"tEXt",
            b"eXIf",
            b"XMP ",
        ):
            assert secret not in made
        with Image.open(io.BytesIO(made)) as image:
            assert not image.getexif()
            assert set(image.info) <= {
                "jfif",
                "jfif_version",
                "jfif_unit",
                "jfif_density",
                "version",
                "background",
                "loop",
                "transparency",
                "timestamp",
                "duration",
                "dpi",
            }

    def test_gps_does_not_come_out_of_the_corpus(self) -> None:
        for output in FORMATS:
            assert not thumbnail(corpus("images/gps.jpg"), {"geometry": "100x100", "format": output}).getexif()

    def test_transparency_is_kept_or_filled(self) -> None:
        data = encoded(chart(mode="RGBA"), "PNG")
        assert thumbnail(data, {"geometry": "90x", "format": "webp"}).convert("RGBA").getpixel((5, 50))[3] == 0
        assert min(thumbnail(data, {"geometry": "90x", "format": "jpeg"}).getpixel((5, 50))) > 250
        for output in FORMATS:
            made = thumbnail(data, {"geometry": "90x", "format": output, "background": "#102030"}).convert("RGBA")
            assert all(abs(x - y) < 8 for x, y in zip(made.getpixel((5, 50)), (0x10, 0x20, 0x30, 255), strict=True))

    def test_an_invisible_colour_does_not_bleed_into_edges(self) -> None:
        image = Image.new("RGBA", (200, 200), (255, 0, 0, 0))
        image.paste((0, 255, 0, 255), (100, 0, 200, 200))
        made = thumbnail(encoded(image, "PNG"), "10x10")
        assert max(made.getpixel((x, 5))[0] for x in range(10) if made.getpixel((x, 5))[3] > 8) < 40

    def test_the_engine_has_a_version_that_names_its_codecs(self) -> None:
        assert json.dumps(ENGINE_VERSION).isascii()
        assert all(name in ENGINE_VERSION for name in ("pillow", "webp", "avif", "littlecms"))


class TestAnimation:
    """The first frame, or all of them where the specification asks."""

    @staticmethod
    def frames(count: int = 4) -> list[Image.Image]:
        return [ImageOps.expand(chart(200, 100).rotate(90 * n), border=2, fill="red") for n in range(count)]

    def animation(self, image_format: str, count: int = 4, **options: Any) -> bytes:
        first, *others = self.frames(count)
        return encoded(
            first,
            image_format,
            save_all=True,
            append_images=others,
            duration=[70, 80, 90, 100][:count],
            loop=3,
            **options,
        )

    @pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "AVIF"])
    def test_the_first_frame_by_default(self, image_format: str) -> None:
        data = self.animation(image_format)
        made = thumbnail(data, {"geometry": "102x", **PNG})
        assert getattr(made, "n_frames", 1) == 1
        assert compare(made, reference(self.frames()[0], made.size)).psnr_db > 20

    @pytest.mark.parametrize("output", ["gif", "webp", "png"])
    @pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
    def test_all_frames_when_asked(self, image_format: str, output: str) -> None:
        made = thumbnail(self.animation(image_format), {"geometry": "102x", "format": output, "animated": True})
        assert made.n_frames == 4
        plays = 4 if image_format == "GIF" else 3  # a GIF counts repetitions
        assert made.info["loop"] == (plays - 1 if output == "gif" else plays)
        for index, expected in enumerate(self.frames()):
            made.seek(index)
            made.load()
            assert made.info["duration"] == 70 + 10 * index
            assert compare(made, reference(expected, made.size)).psnr_db > 20

    @pytest.mark.parametrize(
        ("image_format", "expected"), [("GIF", "GIF"), ("WEBP", "WEBP"), ("PNG", "PNG"), ("AVIF", "WEBP")]
    )
    def test_keeps_a_format_that_can(self, image_format: str, expected: str) -> None:
        made = thumbnail(self.animation(image_format), {"geometry": "50x", "animated": True})
        assert (made.format, made.n_frames) == (expected, 4)

    def test_an_animated_png_may_have_a_picture_that_is_not_in_it(self) -> None:
        still = thumbnail(corpus("images/animated-palette.png"), "150x")
        assert still.convert("RGB").getpixel((9, 9)) == (255, 0, 0)
        moving = thumbnail(corpus("images/animated-palette.png"), {"geometry": "150x", "animated": True})
        assert moving.convert("RGB").getpixel((9, 9)) == (0, 255, 0)

    def test_runs_once_for_ever_or_as_often_as_it_did(self) -> None:
        first, *others = self.frames(2)
        for options, plays in (({}, 1), ({"loop": 0}, 0), ({"loop": 2}, 3)):
            data = encoded(first, "GIF", save_all=True, append_images=others, **options)
            for output in ("webp", "png"):
                made = thumbnail(data, {"geometry": "50x", "format": output, "animated": True})
                assert made.info["loop"] == plays
            assert thumbnail(data, {"geometry": "50x", "animated": True}).info.get("loop") == options.get("loop")

    def test_a_still_is_no_animation(self) -> None:
        made = thumbnail(encoded(chart(), "GIF"), {"geometry": "50x", "animated": True})
        assert (made.format, getattr(made, "n_frames", 1)) == ("PNG", 1)

    def test_the_pages_of_a_tiff_are_none(self) -> None:
        made = thumbnail(corpus("images/multipage.tiff"), {"geometry": "50x", "animated": True})
        assert made.format == "JPEG"

    def test_transparent_frames_do_not_show_through(self) -> None:
        frames = []
        for x in (0, 20, 40):
            frame = Image.new("RGBA", (60, 20), (0, 0, 0, 0))
            frame.paste((255, 0, 0, 255), (x, 0, x + 20, 20))
            frames.append(frame)
        data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=50, disposal=1)
        for output in ("gif", "webp", "png"):
            made = thumbnail(data, {"geometry": "30x", "format": output, "animated": True})
            for index in range(3):
                made.seek(index)
                alpha = made.convert("RGBA").getchannel("A")
                assert [alpha.getpixel((5 + 10 * n, 5)) > 128 for n in range(3)] == [n == index for n in range(3)]


class TestJudge:
    """The judge that the tests above rely on sees the mistakes that thumbnailers make."""

    @pytest.mark.parametrize("side", [100, 300])
    @pytest.mark.parametrize(
        "mistake",
        [
            lambda image: ImageChops.offset(image, 1, 0),
            lambda image: ImageChops.offset(image, 0, 1),
            ImageOps.mirror,
            ImageOps.flip,
            lambda image: image.point([round(255 * (value / 255) ** (1 / 1.1)) for value in range(256)] * 3),
            lambda image: image.point([min(255, value + 4) for value in range(256)] * 3),
            lambda image: image.filter(ImageFilter.GaussianBlur(1)),
            lambda image: Image.merge("RGB", image.split()[::-1]),
        ],
        ids=["right", "down", "mirrored", "flipped", "gamma", "brighter", "blurred", "bgr"],
    )
    def test_a_planted_mistake_is_seen(self, mistake: Any, side: int) -> None:
        with Image.open(corpus("images/orientation-landscape-1.jpg")) as original:
            right = reference(original, (side, side * 2 // 3))
        assert compare(right, right).good
        assert not compare(right, mistake(right)).good

    def test_nearest_neighbour_is_seen(self) -> None:
        with Image.open(corpus("images/orientation-landscape-1.jpg")) as original:
            wrong = original.resize((100, 67), Image.Resampling.NEAREST)
            assert not compare(reference(original, (100, 67)), wrong).good


def _crc(data: bytes) -> bytes:
    import zlib

    return zlib.crc32(data).to_bytes(4, "big")


def _talkative(image_format: str) -> bytes:
    """A picture that carries all the metadata its format has room for."""
    exif = Image.Exif()
    exif[0x010E] = "SECRET description"
    exif.get_ifd(0x8825)[1] = "N"
    options: dict[str, Any] = {"comment": b"SECRET comment"} if image_format in ("JPEG", "GIF") else {}
    if image_format != "GIF":
        options |= {"exif": exif.tobytes(), "xmp": b"<x:xmpmeta>SECRET</x:xmpmeta>", "icc_profile": _profile()}
    if image_format == "PNG":
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_text("Comment", "SECRET")
        text.add_itxt("XML:com.adobe.xmp", "SECRET")
        options["pnginfo"] = text
    return encoded(chart(), image_format, **options)


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_an_mpo_gives_its_first_picture(tmp_path: Path) -> None:
    path = tmp_path / "two.jpg"
    chart().save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (240, 160), "red")])
    with Image.open(path) as opened:
        assert not isinstance(opened, JpegImagePlugin.JpegImageFile) or opened.format == "MPO"
    outcome = thumbnails(path, it={"geometry": "90x", **PNG})
    assert outcome.picture == Picture("image/jpeg", 240, 160)
    assert compare(Image.open(outcome.made["it"].open()), reference(chart(), (90, 60))).psnr_db > 30
