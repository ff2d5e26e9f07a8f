"""One HTML page with every picture of a directory beside its thumbnails, for a person to look at.

    python tools/contact_sheet.py ../shared/corpus contact-sheet.html

Originals are shown by the browser itself, so what it cannot show (TIFF, HEIC) is a broken picture there. What was refused
is listed with its reason. A chequered ground shows what is transparent.
"""

from __future__ import annotations

import base64
import html
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fsworker.specification import Thumbnail
from fsworker.thumbnails import ENGINE_VERSION, Limits, make_thumbnails

SPECIFICATIONS = {
    "200x200": Thumbnail("200x200"),
    "120x120 cropped": Thumbnail("120x120", crop=True),
    "200x200 WebP": Thumbnail("200x200", format="webp"),
    "100x100 JPEG, enlarged": Thumbnail("100x100", format="jpeg", upscale=True),
    "150x animated": Thumbnail("150x", animated=True),
}
MAX_SHOWN_BYTES = 4 * 2**20
STYLE = """
body { font: 14px sans-serif; margin: 2em }
td, th { padding: 6px 12px; vertical-align: top; text-align: left; border-bottom: 1px solid #ccc }
img { max-width: 240px; max-height: 240px;
      background: repeating-conic-gradient(#ddd 0 25%, #fff 0 50%) 0 0 / 16px 16px }
.refused { color: #a00; max-width: 16em }
"""


def picture(data: bytes, media_type: str) -> str:
    """An ``img`` element with the picture in it."""
    return f'<img src="data:{media_type};base64,{base64.b64encode(data).decode()}">'


def row(path: Path) -> str:
    """One file: its original, and each thumbnail or the reason why there is none."""
    fd = os.open(path, os.O_RDONLY)
    try:
        outcome = make_thumbnails(fd, SPECIFICATIONS, Limits())
    finally:
        os.close(fd)
    found = outcome.picture
    about = f"{found.media_type}<br>{found.width} × {found.height}" if found else "no picture"
    shown = found is not None and path.stat().st_size <= MAX_SHOWN_BYTES
    cells = [
        f"<b>{html.escape(path.name)}</b><br>{about}",
        picture(path.read_bytes(), found.media_type) if found and shown else "",
    ]
    for name in SPECIFICATIONS:
        if name in outcome.made:
            made = outcome.made[name]
            cells.append(
                f"{picture(made.read(), made.media_type)}<br>{made.width} × {made.height}, {made.size:,} bytes"
            )
        else:
            cells.append(f'<span class="refused">{html.escape(outcome.failed[name])}</span>')
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix not in (".md", ".json", ".pdf"))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("file", "original", *SPECIFICATIONS))
    rows = "\n".join(row(path) for path in files)
    page = f"<!doctype html><meta charset=utf-8><title>Contact sheet</title><style>{STYLE}</style>"
    target.write_text(f"{page}<p>{html.escape(ENGINE_VERSION)}</p><table><tr>{head}</tr>\n{rows}</table>\n")
    print(f"{len(files)} files in {target}")


if __name__ == "__main__":
    main()
