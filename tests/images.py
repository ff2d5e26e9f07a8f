"""Pictures for tests: the corpus, charts made on the spot, and a judge of how alike two pictures are.

The judge's bounds are those of the project's measurements: a lossless thumbnail has a PSNR of at least 38 dB and a luma
SSIM of at least 0.985 against its reference, and each channel's mean is within 2.5.
"""

from __future__ import annotations

import io
import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageMath, ImageOps, ImageStat

from fsworker.specification import Thumbnail
from fsworker.thumbnails import Limits, PictureOutcome, make_thumbnails

CORPUS = Path(__file__).parents[2] / "shared" / "corpus"
MIN_PSNR_DB, MIN_SSIM, MAX_MEAN_DIFFERENCE = 38.0, 0.985, 2.5


def corpus(name: str = "") -> Path:
    """A file of the shared corpus. Where there is none the test is skipped, but under ``CI=true`` it fails."""
    path = CORPUS / name
    if not path.exists():
        import pytest  # not by the fuzz run, whose processes fork for each picture: the less is in them, the better

        reason = f"the shared corpus is not here (looked for {name or 'it'} beside the repository)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def thumbnails(
    source: bytes | Path, limits: Limits | None = None, **specifications: str | Thumbnail | Mapping[str, Any]
) -> PictureOutcome:
    """What becomes of a picture, by the path that the worker takes."""
    parsed = {name: Thumbnail.parse(value) for name, value in specifications.items()}
    if isinstance(source, Path):
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    else:
        fd = os.memfd_create("picture", os.MFD_CLOEXEC)
        os.pwrite(fd, source, 0)
    try:
        return make_thumbnails(fd, parsed, limits)
    finally:
        os.close(fd)


def thumbnail(
    source: bytes | Path, specification: str | Thumbnail | Mapping[str, Any], limits: Limits | None = None
) -> Image.Image:
    """The one thumbnail of a picture, decoded; fails the test if there is none."""
    outcome = thumbnails(source, limits, it=specification)
    assert not outcome.failed, outcome.failed
    made = outcome.made["it"]
    image = Image.open(made.open())
    image.load()
    assert image.size == (made.width, made.height)
    assert f"image/{(image.format or '').lower()}" == made.media_type
    return image


def reason(source: bytes | Path, specification: str | Thumbnail = "100x100", limits: Limits | None = None) -> str:
    """Why a thumbnail was refused; fails the test if it was not."""
    outcome = thumbnails(source, limits, it=specification)
    assert not outcome.made
    return outcome.failed["it"]


def chart(width: int = 240, height: int = 160, mode: str = "RGB") -> Image.Image:
    """A picture that is no two ways round alike: four different corners, gradients, a circle, lines and a letter."""
    image = Image.new("RGB", (width, height))
    image.paste(
        Image.merge(
            "RGB",
            (
                _ramp(width, height),
                _ramp(height, width).transpose(Image.Transpose.ROTATE_90),
                Image.new("L", (width, height), 90),
            ),
        )
    )
    draw = ImageDraw.Draw(image)
    side = min(width, height) // 5
    for x, y, colour in ((0, 0, "red"), (width - side, 0, "lime"), (0, height - side, "blue")):
        draw.rectangle((x, y, x + side, y + side), fill=colour)
    draw.ellipse(
        (width // 3, height // 4, width // 3 + side * 2, height // 4 + side * 2), fill="orange", outline="black"
    )
    for step in range(5):
        draw.line((width // 2, height * step // 5, width - 1, height // 2), fill="white", width=1 + side // 12)
    if mode in ("LA", "RGBA", "PA"):
        alpha = Image.new("L", image.size, 255)
        ImageDraw.Draw(alpha).rectangle((0, height // 2, width // 3, height), fill=0)
        ImageDraw.Draw(alpha).rectangle((width // 3, height // 2, width // 2, height), fill=128)
        image.putalpha(alpha)
    if mode == "P":
        return image.quantize(64)
    return image if mode == image.mode else image.convert(mode)


def _ramp(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize((width, height))


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """The bytes of a picture's file."""
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def with_orientation(image: Image.Image, orientation: int) -> tuple[Image.Image, bytes]:
    """The picture as a camera would store it that was held so, and the EXIF data that tells."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(inverse[orientation]) if orientation in inverse else image
    return stored, exif.tobytes()


def reference(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An upright picture brought to a size without any short cut: whole decode, no reduction, weighted by alpha."""
    upright = ImageOps.exif_transpose(image)
    return upright.resize(size, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Likeness:
    """How alike two pictures of one size are."""

    psnr_db: float
    ssim: float
    mean_difference: float

    @property
    def good(self) -> bool:
        """Whether this is the likeness of a faithful lossless thumbnail."""
        return self.psnr_db >= MIN_PSNR_DB and self.ssim >= MIN_SSIM and self.mean_difference <= MAX_MEAN_DIFFERENCE


def compare(left: Image.Image, right: Image.Image) -> Likeness:
    """Measure likeness; what is transparent is compared as it looks on grey."""
    assert left.size == right.size
    a, b = _on_grey(left), _on_grey(right)
    difference = ImageStat.Stat(ImageChops.difference(a, b))
    error = sum(difference.sum2) / (3 * a.width * a.height)
    means = zip(ImageStat.Stat(a).mean, ImageStat.Stat(b).mean, strict=True)
    return Likeness(
        psnr_db=99.0 if error == 0 else 10 * math.log10(255**2 / error),
        ssim=_ssim(a.convert("L"), b.convert("L")),
        mean_difference=max(abs(x - y) for x, y in means),
    )


def _on_grey(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    below = Image.new("RGBA", image.size, (128, 128, 128, 255))
    return Image.alpha_composite(below, image).convert("RGB")


def _ssim(left: Image.Image, right: Image.Image) -> float:
    """Mean structural similarity (Wang 2004), with plain windows of 8 x 8 pixels in place of Gaussian ones."""
    x, y = left.convert("F"), right.convert("F")

    def mean(expression: Any, **images: Image.Image) -> Image.Image:
        whole = ImageMath.lambda_eval(expression, **images)
        return whole.reduce((min(8, whole.width), min(8, whole.height)))

    mx, my = mean(lambda a: a["x"] + 0, x=x), mean(lambda a: a["y"] + 0, y=y)
    mxx, myy = mean(lambda a: a["x"] * a["x"], x=x), mean(lambda a: a["y"] * a["y"], y=y)
    mxy = mean(lambda a: a["x"] * a["y"], x=x, y=y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ImageMath.lambda_eval(
        lambda a: (
            (2 * a["mx"] * a["my"] + c1)
            * (2 * (a["mxy"] - a["mx"] * a["my"]) + c2)
            / (
                (a["mx"] * a["mx"] + a["my"] * a["my"] + c1)
                * (a["mxx"] - a["mx"] * a["mx"] + a["myy"] - a["my"] * a["my"] + c2)
            )
        ),
        mx=mx,
        my=my,
        mxx=mxx,
        myy=myy,
        mxy=mxy,
    )
    return float(similarity.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))  # ImageStat cannot read mode F


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A picture with a few bytes changed, removed, repeated or cut off; the first four stay, so that it is decoded."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(4, max(5, min(len(changed), chance.choice((64, 512, len(changed))))))
        kind = chance.randrange(6)
        if kind == 0:
            changed[at : at + 1] = bytes((chance.randrange(256),))
        elif kind == 1:
            changed[at : at + 1] = bytes((changed[min(at, len(changed) - 1)] ^ (1 << chance.randrange(8)),))
        elif kind == 2:
            changed[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
        elif kind == 3:
            del changed[at : at + chance.randrange(1, 40)]
        elif kind == 4:
            changed[at:at] = changed[at : at + chance.randrange(1, 40)]
        elif len(changed) > 200:
            del changed[chance.randrange(len(changed) // 2, len(changed)) :]
    return bytes(changed)


def seeds() -> list[bytes]:
    """Small pictures of every format to mutate, those of the corpus among them where it is here."""
    small = chart(60, 40)
    frames = [small.rotate(90 * n) for n in range(3)]
    made = [encoded(small, name) for name in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "ICO")]
    made += [encoded(small, "JPEG", progressive=True), encoded(small, "TIFF", compression="tiff_lzw")]
    made += [encoded(frames[0], name, save_all=True, append_images=frames[1:]) for name in ("GIF", "WEBP", "PNG")]
    files = sorted(CORPUS.glob("*/*.*")) if CORPUS.exists() else []
    return made + [path.read_bytes() for path in files if path.stat().st_size < 20_000 and path.suffix != ".pdf"]
