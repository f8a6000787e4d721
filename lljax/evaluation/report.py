"""Pictures of results: contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def contact_sheet(columns: Mapping[str, Sequence[np.ndarray]], width: int = 320) -> np.ndarray:
    """Pictures side by side, one column a label, one row a scene.

    Args:
      columns: label -> pictures uint8 [H, W, 3], equally many each; those of a row share H and W.
      width: of a column, px.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: columns of unequal length, or none.
    """
    lengths = {label: len(pictures) for label, pictures in columns.items()}
    if not lengths or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"every column needs the same number of pictures, at least 1: {lengths}")
    gap, bar = 6, 22
    rows = [max(1, round(width * picture.shape[0] / picture.shape[1]))
            for picture in next(iter(columns.values()))]
    sheet = Image.new("RGB", (len(columns) * (width + gap) + gap,
                              bar + sum(height + gap for height in rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (label, pictures) in enumerate(columns.items()):
        left, top = gap + column * (width + gap), bar
        draw.text((left, 3), label, "black", font)
        for picture, height in zip(pictures, rows, strict=True):
            scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(scaled, (left, top))
            top += height + gap
    return np.asarray(sheet)


def spread(count: int, shown: int) -> list[int]:
    """At most `shown` indices spread evenly over range(count)."""
    return sorted({i * count // min(shown, count) for i in range(min(shown, count))})


def write_png(path: str, picture: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as a PNG."""
    Image.fromarray(picture).save(path, "PNG")
