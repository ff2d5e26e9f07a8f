"""The specification of a thumbnail: ImageMagick's geometry, one canonical form, and clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import corpus

from fsworker.errors import ImageError
from fsworker.geometry import MAX_ENLARGED_PX, Geometry
from fsworker.specification import FITS, FORMATS, Thumbnail

sides = st.integers(1, 20_000)
numbers = st.integers(1, 9_999)
boxes = st.one_of(
    st.builds("{}x{}".format, numbers, numbers),
    st.builds("{}x".format, numbers),
    st.builds("x{}".format, numbers),
    st.builds("{}".format, numbers),
)
geometries = st.one_of(
    st.builds("{}{}{}".format, boxes, st.sampled_from(["", "^", "!"]), st.sampled_from(["", ">", "<"])),
    st.builds("{}%".format, st.integers(1, 400)),
    st.builds("{}x{}%".format, st.integers(1, 400), st.decimals(1, 400, places=2)),
    st.builds("{}@{}".format, st.integers(1, 10**8), st.sampled_from(["", ">"])),
)


@st.composite
def wishes(draw: st.DrawFn) -> dict[str, Any]:
    """What a client might send: fields of a specification, most of them valid together."""
    image_format = draw(st.sampled_from([None, *FORMATS, "jpg", "WEBP"]))
    wish: dict[str, Any] = {"geometry": draw(geometries), "format": image_format}
    if draw(st.booleans()) and image_format not in ("png", "gif"):
        wish["quality"] = draw(st.integers(1, 100))
    for name in ("upscale", "crop", "animated"):
        if draw(st.booleans()):
            wish[name] = draw(st.booleans())
    if draw(st.booleans()):
        wish["fit"] = draw(st.sampled_from(FITS))
    if draw(st.booleans()):
        wish["background"] = draw(
            st.from_regex(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})\Z") | st.sampled_from(["white", "Black"])
        )
    return wish


@st.composite
def specifications(draw: st.DrawFn) -> Thumbnail:
    """A valid specification."""
    wish = draw(wishes())
    try:
        return Thumbnail(**wish)
    except ImageError:
        return Thumbnail(draw(boxes), format=draw(st.sampled_from(FORMATS)))


class TestGeometry:
    """Sizes as ImageMagick's ``convert -resize`` makes them."""

    def test_gives_the_size_of_every_vector_read_off_imagemagick(self) -> None:
        vectors = json.loads(corpus("imagemagick-geometry.json").read_text())
        usable = [vector for vector in vectors if vector[2] not in ("0x100", "100x0")]
        assert len(usable) > 300
        wrong = [
            (width, height, text, size, expected)
            for width, height, text, expected in usable
            if (size := "{}x{}".format(*Geometry.parse(text).size(width, height))) != expected
        ]
        assert wrong == []

    def test_a_thumbnail_that_may_be_enlarged_has_the_same_sizes(self) -> None:
        for width, height, text, expected in json.loads(corpus("imagemagick-geometry.json").read_text()):
            if text not in ("0x100", "100x0"):
                wish = Thumbnail(text, upscale=">" not in text)
                assert "{}x{}".format(*wish.size(width, height)) == expected, (width, height, text)

    @pytest.mark.parametrize("text", ["0x100", "100x0", "0", "0x0", "0%", "0@", "0.4x10"])
    def test_a_side_of_nothing_is_refused_where_imagemagick_makes_one_pixel(self, text: str) -> None:
        with pytest.raises(ImageError, match="out of range"):
            Geometry.parse(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "%",
            "abc",
            "100x100+5+5",
            "-5x10",
            "100 x 100",
            " 100",
            "100\n",
            "1e3",
            "3:2",
            "100x100#",
            "١٠٠",
            "1" * 80,
        ],
    )
    def test_what_is_no_geometry_is_quoted_and_the_forms_are_named(self, text: str) -> None:
        with pytest.raises(ImageError, match="is not a thumbnail's geometry: write '100x100'") as caught:
            Geometry.parse(text)
        assert ascii(text[:30])[1:-1] in str(caught.value)

    @pytest.mark.parametrize("text", ["100x100><", "100x100^!", "50%@"])
    def test_contradictions_are_refused(self, text: str) -> None:
        with pytest.raises(ImageError, match="contradicts itself"):
            Geometry.parse(text)

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("100", "100x"),
            ("100X50", "100x50"),
            ("50%x50%", "50%"),
            ("x25%", "25%"),
            ("99.6x10", "100x10"),
            ("7.50%", "7.5%"),
        ],
    )
    def test_has_one_text_for_what_means_the_same(self, text: str, canonical: str) -> None:
        assert str(Geometry.parse(text)) == canonical

    @given(geometries)
    def test_its_text_reads_back_as_itself(self, text: str) -> None:
        geometry = Geometry.parse(text)
        assert Geometry.parse(str(geometry)) == geometry

    @given(geometries, sides, sides)
    def test_no_size_is_empty_or_enlarged_out_of_bounds(self, text: str, width: int, height: int) -> None:
        new_width, new_height = Geometry.parse(text).size(width, height)
        assert 1 <= new_width <= max(width, MAX_ENLARGED_PX)
        assert 1 <= new_height <= max(height, MAX_ENLARGED_PX)


class TestSize:
    """A thumbnail is never larger than its original unless that is asked for."""

    @given(specifications(), sides, sides)
    def test_never_enlarges_unless_asked(self, wish: Thumbnail, width: int, height: int) -> None:
        new_width, new_height = wish.size(width, height)
        assert new_width >= 1
        assert new_height >= 1
        if not wish.upscale:
            assert new_width <= width
            assert new_height <= height

    @pytest.mark.parametrize(
        ("wish", "original", "expected"),
        [
            (Thumbnail("100x100"), (640, 480), (100, 75)),
            (Thumbnail("100x100"), (64, 48), (64, 48)),
            (Thumbnail("100x100", upscale=True), (64, 48), (100, 75)),
            (Thumbnail("100x100^"), (640, 480), (133, 100)),
            (Thumbnail("100x100^"), (150, 80), (150, 80)),
            (Thumbnail("100x100!"), (50, 200), (50, 100)),
            (Thumbnail("200%"), (64, 48), (128, 96)),
            (Thumbnail("64x64<"), (32, 16), (64, 32)),
            (Thumbnail("10000@"), (10, 10), (10, 10)),
            (Thumbnail("10000@", upscale=True), (10, 10), (100, 100)),
            (Thumbnail("100x100", crop=True), (640, 480), (100, 100)),
            (Thumbnail("100x50", crop=True), (50, 200), (50, 25)),
            (Thumbnail("100x50", crop=True, upscale=True), (50, 200), (100, 50)),
        ],
    )
    def test_follows_the_specification(
        self, wish: Thumbnail, original: tuple[int, int], expected: tuple[int, int]
    ) -> None:
        assert wish.size(*original) == expected

    @given(numbers, numbers, sides, sides)
    def test_a_crop_keeps_the_aspect_ratio_of_its_box(self, w: int, h: int, width: int, height: int) -> None:
        new_width, new_height = Thumbnail(f"{w}x{h}", crop=True).size(width, height)
        scale = min(1.0, width / w, height / h)
        assert abs(new_width - scale * w) <= 1
        assert abs(new_height - scale * h) <= 1


class TestCanonicalForm:
    """Equal wishes are equal values with equal JSON, so that one remembered thumbnail serves them all."""

    @given(specifications())
    def test_json_reads_back_as_the_same_specification(self, wish: Thumbnail) -> None:
        assert Thumbnail.parse(json.loads(json.dumps(wish.to_json()))) == wish

    @given(specifications(), specifications())
    def test_equal_specifications_and_no_others_have_equal_json(self, one: Thumbnail, other: Thumbnail) -> None:
        assert (one == other) == (one.key == other.key)
        if one == other:
            assert hash(one) == hash(other)

    @given(specifications())
    def test_making_it_again_of_its_fields_changes_nothing(self, wish: Thumbnail) -> None:
        assert replace(wish) == wish

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (Thumbnail("100x100^"), Thumbnail("100x100", fit="cover")),
            (Thumbnail("100x100!"), Thumbnail("100x100", fit="exact")),
            (Thumbnail("100x100>"), Thumbnail("100x100")),
            (Thumbnail("1600"), Thumbnail("1600x", quality=80)),
            (Thumbnail("9x9", format="webp", quality=80), Thumbnail("9x9", format="webp")),
            (Thumbnail("9x9", background="#FFF"), Thumbnail("9x9", background="white")),
            (Thumbnail("9x9^", crop=True), Thumbnail("9x9", crop=True)),
            (Thumbnail("200%", upscale=True), Thumbnail("200%")),
            (Thumbnail("50%", upscale=True), Thumbnail("50%")),
        ],
    )
    def test_the_same_wish_in_other_words_is_equal(self, one: Thumbnail, other: Thumbnail) -> None:
        assert one == other
        assert one.to_json() == other.to_json()

    def test_json_is_the_geometry_alone_where_that_says_all(self) -> None:
        assert Thumbnail("100x100").to_json() == "100x100"
        assert Thumbnail("100x100", fit="cover").to_json() == "100x100^"
        assert Thumbnail("1600x", format="webp", quality=70).to_json() == {
            "geometry": "1600x",
            "format": "webp",
            "quality": 70,
        }

    def test_fields_are_filled_in(self) -> None:
        wish = Thumbnail("1600x", format="webp")
        assert (wish.geometry, wish.format, wish.quality, wish.fit) == ("1600x", "webp", 80, "inside")


class TestRefusals:
    """A specification is read by the client and by the worker, so refusing says what is wrong and what is right."""

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"geometry": "9x9", "format": "bmp"}, r"format='bmp' is unknown: use one of jpeg, png, webp, avif, gif"),
            ({"geometry": "9x9", "quality": 0}, r"quality='0' is out of range"),
            ({"geometry": "9x9", "quality": True}, r"quality='True' is out of range"),
            ({"geometry": "9x9", "quality": "80"}, r"quality='80' is out of range"),
            ({"geometry": "9x9", "format": "png", "quality": 80}, r"means nothing for format='png'"),
            ({"geometry": "9x9", "fit": "fill"}, r"fit='fill' is unknown: use one of inside, cover, exact"),
            ({"geometry": "9x9", "upscale": 1}, r"upscale='1' is not true or false"),
            ({"geometry": "9x9", "background": "red"}, r"background='red' is not a colour"),
            ({"geometry": "9x9", "background": "#ffff"}, r"is not a colour"),
            ({"geometry": "9x9", "animated": True, "format": "jpeg"}, r"animated=True needs one of the formats"),
            ({"geometry": "9x", "crop": True}, r"crop=True needs a box with both sides"),
            ({"geometry": "50%", "crop": True}, r"crop=True needs a box with both sides"),
            ({"geometry": "9x9!", "crop": True}, r"crop=True keeps the aspect ratio"),
            ({"geometry": "9x9^", "fit": "exact"}, r"says fit='cover', and fit='exact' was given"),
            ({"geometry": "9x9>", "upscale": True}, r"says only shrink, and upscale=True"),
            ({"geometry": "9x9", "gravity": "north"}, r"has no 'gravity'; it has 'geometry', 'format'"),
            ({"format": "png"}, r"needs 'geometry'"),
            ({}, r"needs 'geometry'"),
            ({"geometry": 100}, r"'100' is not a thumbnail's geometry"),
            ({"geometry": ["9x9"]}, r"is not a thumbnail's geometry"),
            (100, r"'100' is not a thumbnail's specification"),
            (None, r"is not a thumbnail's specification"),
            (["9x9"], r"is not a thumbnail's specification"),
            (b"9x9", r"is not a thumbnail's specification"),
            ({1: 2}, r"has no '1'"),
        ],
    )
    def test_names_what_is_wrong_and_what_is_right(self, value: object, message: str) -> None:
        with pytest.raises(ImageError, match=message):
            Thumbnail.parse(value)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        )
    )
    def test_any_other_json_is_refused_and_raises_nothing_else(self, value: Any) -> None:
        for candidate in (value, {"geometry": value}, {"geometry": "9x9", "background": value, "fit": value}):
            message = _refusal(candidate)
            assert message.isprintable()
            assert len(message) < 500


def _refusal(value: object) -> str:
    """What is said against a specification; nothing if it is accepted. Raises what should not be raised."""
    try:
        Thumbnail.parse(value)
    except ImageError as error:
        return str(error)
    return ""


def test_reading_specifications_loads_no_decoder() -> None:
    code = "import sys, fsworker, fsworker.specification; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
