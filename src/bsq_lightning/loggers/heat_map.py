"""Bits of every layer over time, as a picture."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

ROW, COLUMN, LETTER = 18, 30, 7
EMPTY, FEW, MANY = (40, 40, 40), (255, 247, 220), (150, 30, 20)


def color(bits: int, most: int) -> tuple[int, int, int]:
    """Dark grey for a layer without bits, then from pale to red.

    Example:
        >>> color(0, 8), color(8, 8)
        ((40, 40, 40), (150, 30, 20))
    """
    if bits == 0:
        return EMPTY
    part = bits / most
    red, green, blue = (round(few + part * (many - few)) for few, many in zip(FEW, MANY, strict=True))
    return red, green, blue


def heat_map(bits: Mapping[str, Sequence[int]], columns: Sequence[str]) -> Image.Image:
    """A row for each layer and a column for each moment, with the bits written in.

    Example:
        >>> heat_map({"conv": [8, 3], "fc": [8, 0]}, ["0", "20"]).size
        (95, 54)
    """
    font = ImageFont.load_default(12)
    left = LETTER * (max(map(len, bits)) + 1)
    most = max(8, *(value for values in bits.values() for value in values))
    image = Image.new("RGB", (left + COLUMN * len(columns), ROW * (len(bits) + 1)), "white")
    draw = ImageDraw.Draw(image)
    for j, name in enumerate(columns):
        draw.text((left + COLUMN * (j + 0.5), ROW / 2), name, "black", font, anchor="mm")
    for i, (layer, values) in enumerate(bits.items(), start=1):
        draw.text((left - LETTER / 2, ROW * (i + 0.5)), layer, "black", font, anchor="rm")
        for j, value in enumerate(values):
            x, y = left + COLUMN * j, ROW * i
            draw.rectangle((x, y, x + COLUMN - 2, y + ROW - 2), color(value, most))
            ink = "white" if value == 0 or value > most / 2 else "black"
            draw.text((x + COLUMN / 2 - 1, y + ROW / 2 - 1), str(value), ink, font, anchor="mm")
    return image
