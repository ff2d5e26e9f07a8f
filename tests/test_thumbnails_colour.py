"""Colours are right: profiles are applied, deep and indexed pixels scaled, inks mixed."""

from __future__ import annotations

import io
import struct

import pytest
from images import chart, compare, corpus, encoded, reference, thumbnail
from PIL import Image, ImageCms

from fsworker.specification import Thumbnail

PNG = {"geometry": "90x90", "format": "png"}


def matrix_profile(primaries: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """A minimal ICC v2 display profile: where red, green and blue lie (XYZ, D50), and one gamma."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    for name, primary in zip("rgb", primaries, strict=True):
        tags[f"{name}XYZ".encode()] = xyz(primary)
        tags[f"{name}TRC".encode()] = curve
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def ink_profile(mix: str) -> bytes:
    """A minimal ICC v2 printer profile: a table of two steps for each ink, whose paper is white and whose K is black.

    ``mix`` names the Lab colour that full cyan makes: so a profile that is ignored is seen.
    """
    cyan = {"green": (128, 40, 200), "blue": (80, 150, 20)}[mix]
    table = bytearray()
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for k in (0, 1):
                    dark = k or (c and m and y)
                    lab = (
                        (0, 128, 128)
                        if dark
                        else cyan
                        if c
                        else (170, 200, 128)
                        if m
                        else (230, 120, 220)
                        if y
                        else (255, 128, 128)
                    )
                    table += bytes(lab)
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + bytes(table) + ramp * 3
    return _profile(
        b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut, b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)}
    )


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", **tags}
    at = 128 + 4 + 12 * len(tags)
    directory, body = b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        directory += name + struct.pack(">II", at + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, kind, space, connection)
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + directory + body


WIDE = matrix_profile(((0.61, 0.31, 0.02), (0.205, 0.626, 0.061), (0.149, 0.064, 0.744)), 2.2)
LINEAR = matrix_profile(((0.436, 0.222, 0.014), (0.385, 0.717, 0.097), (0.143, 0.061, 0.714)), 1.0)


def converted(image: Image.Image, profile: bytes) -> Image.Image:
    """The whole picture in sRGB, by the colour library itself."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(
        image,
        source,
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


class TestProfiles:
    """ICC profiles are applied, since none is written."""

    @pytest.mark.parametrize("profile", [WIDE, LINEAR], ids=["wide", "linear"])
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
    def test_a_display_profile_in_every_format_that_carries_one(self, image_format: str, profile: bytes) -> None:
        lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 98}}.get(image_format, {})
        data = encoded(chart(), image_format, icc_profile=profile, **lossless)
        with Image.open(io.BytesIO(data)) as original:
            assert original.info["icc_profile"] == profile
            stored = original.convert("RGB")
        made = thumbnail(data, PNG)
        assert compare(made, converted(reference(stored, (90, 60)), profile)).good
        assert not compare(made, reference(stored, (90, 60))).good  # so ignoring it would be seen

    def test_with_transparency(self) -> None:
        made = thumbnail(encoded(chart(mode="RGBA"), "PNG", icc_profile=WIDE), PNG)
        expected = reference(chart(mode="RGBA"), (90, 60))
        colours = converted(expected.convert("RGB"), WIDE)
        colours.putalpha(expected.getchannel("A"))
        assert compare(made, colours).good

    def test_an_srgb_profile_changes_nothing(self) -> None:
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        plain = thumbnail(encoded(chart(), "PNG"), PNG)
        assert thumbnail(encoded(chart(), "PNG", icc_profile=srgb), PNG).tobytes() == plain.tobytes()

    def test_a_grey_picture_with_a_display_profile(self) -> None:
        grey = chart(mode="L")
        made = thumbnail(encoded(grey, "PNG", icc_profile=LINEAR), PNG)
        assert made.mode == "L"
        assert compare(made, converted(reference(grey, (90, 60)).convert("RGB"), LINEAR)).good

    @pytest.mark.parametrize("broken", [b"x" * 300, WIDE[:200], WIDE[:128] + bytes(400), b"", bytes(128)])
    def test_a_broken_profile_is_none(self, broken: bytes) -> None:
        made = thumbnail(encoded(chart(), "PNG", icc_profile=broken), PNG)
        assert compare(made, reference(chart(), (90, 60))).good

    def test_a_profile_of_another_colour_space_is_none(self) -> None:
        made = thumbnail(encoded(chart(), "PNG", icc_profile=ink_profile("blue")), PNG)
        assert compare(made, reference(chart(), (90, 60))).good

    @pytest.mark.parametrize("name", ["p3.png", "prophoto.png", "grey-icc.jpg", "generic-rgb-profile.jpg"])
    def test_the_corpus_profiles(self, name: str) -> None:
        with Image.open(corpus(f"images/{name}")) as original:
            profile = original.info["icc_profile"]
            expected = converted(original, profile)
        made = thumbnail(corpus(f"images/{name}"), Thumbnail("700x700", format="png"))
        likeness = compare(made, expected)
        assert likeness.psnr_db > 38
        assert likeness.mean_difference < 2.5


class TestInks:
    """CMYK becomes light."""

    @pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
    def test_without_a_profile_inks_subtract(self, image_format: str) -> None:
        options = {"quality": 98} if image_format == "JPEG" else {}
        inks = Image.new("CMYK", (80, 40), (255, 0, 0, 0))
        inks.paste((0, 0, 0, 255), (40, 0, 80, 40))
        made = thumbnail(encoded(inks, image_format, **options), {"geometry": "8x4", "format": "png"})
        assert all(abs(x - y) < 6 for x, y in zip(made.getpixel((1, 1)), (0, 255, 255), strict=True))
        assert max(made.getpixel((6, 1))) < 6

    @pytest.mark.parametrize("mix", ["green", "blue"])
    def test_a_profile_says_what_inks_look_like(self, mix: str) -> None:
        profile = ink_profile(mix)
        inks = Image.new("CMYK", (80, 40), (255, 0, 0, 0))
        inks.paste((0, 0, 0, 0), (40, 0, 80, 40))
        made = thumbnail(encoded(inks, "JPEG", quality=98, icc_profile=profile), {"geometry": "8x4", "format": "png"})
        red, green, blue = made.getpixel((1, 1))
        assert (green > blue + 50) if mix == "green" else (blue > green + 50)
        assert red < 120
        assert min(made.getpixel((6, 1))) > 248

    def test_the_corpus_photograph(self) -> None:
        with Image.open(corpus("images/cmyk-no-profile.jpg")) as original:
            expected = reference(original, (100, 67)).convert("RGB")
        assert compare(thumbnail(corpus("images/cmyk-no-profile.jpg"), Thumbnail("100x", format="png")), expected).good


class TestDepthAndIndex:
    """What is not eight bits of red, green and blue."""

    @pytest.mark.parametrize(("image_format", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
    def test_a_deep_grey_ramp_stays_a_ramp(self, image_format: str, mode: str) -> None:
        ramp = Image.new("I;16", (256, 4))
        for x in range(256):
            for y in range(4):
                ramp.putpixel((x, y), x * 257)
        data = encoded(ramp if mode == "I;16" else ramp.convert("I").convert(mode), image_format)
        made = thumbnail(data, {"geometry": "256x4", "format": "png"})
        assert [made.getpixel((x, 2)) for x in range(256)] == list(range(256))

    def test_a_deep_grey_colour_key_is_transparent(self) -> None:
        image = Image.new("I;16", (20, 10), 1000)
        for index in range(100):
            image.putpixel((10 + index % 10, index // 10), 30000)
        made = thumbnail(encoded(image, "PNG", transparency=1000), "20x")
        assert made.mode == "LA"
        assert made.getpixel((2, 5))[1] == 0
        assert made.getpixel((15, 5)) == (117, 255)

    @pytest.mark.parametrize(("mode", "key", "solid"), [("L", 10, 200), ("RGB", (1, 2, 3), (9, 200, 9)), ("1", 0, 1)])
    def test_a_colour_key_is_transparent(self, mode: str, key: object, solid: object) -> None:
        image = Image.new(mode, (20, 10), key)
        image.paste(solid, (10, 0, 20, 10))
        made = thumbnail(encoded(image, "PNG", transparency=key), "20x").convert("RGBA")
        assert made.getpixel((2, 5))[3] == 0
        assert made.getpixel((15, 5))[3] == 255

    def test_a_palette_with_alpha(self) -> None:
        image = chart(mode="RGBA").quantize(128, method=Image.Quantize.FASTOCTREE)
        data = encoded(image, "PNG")
        with Image.open(io.BytesIO(data)) as original:
            expected = reference(original.convert("RGBA"), (90, 60))
        assert compare(thumbnail(data, PNG), expected).good

    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    def test_palettes_of_all_depths(self, bits: int) -> None:
        image = chart().quantize(2**bits)
        made = thumbnail(encoded(image, "PNG", bits=bits), PNG)
        assert compare(made, reference(image.convert("RGB"), (90, 60))).good

    def test_an_opaque_alpha_channel_is_dropped(self) -> None:
        image = chart()
        image.putalpha(255)
        assert thumbnail(encoded(image, "PNG"), "90x").mode == "RGB"
        assert thumbnail(encoded(image, "TIFF"), "90x").format == "JPEG"

    def test_a_fax_is_grey_when_small(self) -> None:
        made = thumbnail(corpus("images/fax-3307x4677.tiff"), Thumbnail("300x", format="png"))
        with Image.open(corpus("images/fax-3307x4677.tiff")) as original:
            assert compare(made, reference(original.convert("L"), made.size)).good
        assert made.mode == "L"

    def test_lab(self) -> None:
        lab = Image.new("LAB", (40, 40), (150, 200, 60))
        made = thumbnail(encoded(lab, "TIFF"), {"geometry": "4x", "format": "png"})
        red, green, blue = made.getpixel((1, 1))
        assert blue > red > green
