"""Pieces of the HTML page."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image, ImageChops

from reidguard.attacks import SMA, ColorAttack
from reidguard.errors import InputError
from reidguard.report import (
    amplified,
    as_image,
    color_cube,
    figure,
    page,
    paragraph,
    perturbation,
    rank_list,
    save_page,
    section,
    subsection,
    swatches,
    table,
)

IMAGE = Image.new("RGB", (6, 4), (200, 10, 30))
NASTY = '<script>"&'


def distance(pixel: tuple[int, ...], color: tuple[float, ...]) -> float:
    """Largest difference of an opaque pixel from a colour."""
    *channels, opacity = pixel
    assert opacity == 255
    return max(abs(a - b) for a, b in zip(channels, color, strict=True))


def sources(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]*)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.mark.parametrize(
    "made",
    [
        paragraph(NASTY),
        section(NASTY),
        subsection(NASTY),
        swatches([(NASTY, "#000", "#000", "#000")]),
        table([NASTY], [[[NASTY]]], NASTY),
        figure(IMAGE, NASTY, NASTY),
        rank_list(NASTY, (IMAGE, NASTY), [(IMAGE, NASTY, True)]),
        page(NASTY),
    ],
)
def test_text_is_escaped(made):
    assert "<script" not in made
    assert "&lt;script&gt;" in made
    assert '""' not in made


def test_pictures_are_stored_without_loss():
    pixels = torch.randint(0, 256, (3, 8, 5), dtype=torch.uint8)
    (image,) = sources(figure(as_image(pixels), "noise", "noise"))
    assert image.format == "PNG"
    assert image.tobytes() == bytes(pixels.permute(1, 2, 0).flatten().tolist())


@pytest.mark.parametrize("alt", ["", "  "])
def test_a_picture_without_alt_text_is_refused(alt):
    with pytest.raises(InputError, match="alt text"):
        figure(IMAGE, alt, "caption")


def test_correct_and_wrong_matches_differ_without_colour():
    html = rank_list("list", (IMAGE, "A"), [(IMAGE, "A", True), (IMAGE, "B", False)])
    assert "1 ✓" in html
    assert "2 ✗" in html
    assert 'alt="rank 1, correct: A"' in html
    assert 'alt="rank 2, wrong: B"' in html
    style = page("", html)
    assert "4px solid var(--correct)" in style
    assert "4px dashed var(--wrong)" in style


def test_tables_need_rows_as_long_as_their_head():
    html = table(["what", "mAP"], [[["clean", "7.5"]], [["x", "1.0"], ["y", "2.0"]]], "metrics")
    assert html.count("<tbody") == 2
    assert '<th scope="row" class="text">clean</th><td>7.5</td>' in html
    with pytest.raises(InputError, match="2 cells"):
        table(["what", "mAP"], [[["clean"]]], "metrics")


def test_no_change_is_grey_and_a_change_is_amplified():
    change = torch.zeros(3, 1, 2)
    change[0, 0, 1] = 8 / 255
    image = amplified(change, 8)
    assert image.getpixel((0, 0)) == (128, 128, 128)
    assert image.getpixel((1, 0)) == (round(127.5 + 64), 128, 128)


def test_images_need_three_channels():
    with pytest.raises(InputError, match=r"\(3, H, W\)"):
        as_image(torch.zeros(1, 3, 4, 4))


def test_the_cube_shows_its_corners_where_they_are():
    """From white: white in the middle, red on top; the others at 60° steps, clockwise."""
    size = 201
    for dark, middle in ((False, (255, 255, 255)), (True, (0, 0, 0))):
        image = color_cube(size=size, dark=dark)
        centre = (image.width // 2, size // 2)
        assert distance(image.getpixel(centre), middle) <= 4
        corners = {
            (0.0, -0.98): (255, 0, 0),
            (0.849, -0.49): (255, 0, 255),
            (0.849, 0.49): (0, 0, 255),
            (0.0, 0.98): (0, 255, 255),
            (-0.849, 0.49): (0, 255, 0),
            (-0.849, -0.49): (255, 255, 0),
        }
        for (x, y), colour in corners.items():
            at = (round(centre[0] + x * size / 2), round(centre[1] + y * size / 2))
            assert distance(image.getpixel(at), colour) <= 12
        assert image.getpixel((0, 0))[3] == 0  # outside is transparent


def test_the_cube_shows_what_the_attack_does_to_colours():
    attack = ColorAttack(resolution=5)
    same = ImageChops.difference(color_cube(attack.lut), color_cube())
    assert max(high for _, high in same.getextrema()) <= 1  # rounding, where the edge is averaged
    torch.nn.init.constant_(attack.offset, -8 / 255)
    middle = (69, 80)  # white becomes a little darker
    assert distance(color_cube(attack.lut, size=160).getpixel(middle), (246, 246, 246)) <= 2
    shown = color_cube(attack.lut, gain=8, size=160).getpixel(middle)
    assert distance(shown, (127.5 - 64,) * 3) <= 1
    with pytest.raises(InputError, match="at least 8"):
        color_cube(size=7)


def test_a_color_attack_is_shown_on_colours_of_clothes():
    attack = ColorAttack(resolution=5)
    torch.nn.init.constant_(attack.offset, 8 / 255)
    attack.offset.data[1:] = 0  # red alone rises
    (html,) = perturbation(attack)
    assert html.count("colour cube seen from its") == 6
    navy = re.search(r"<li>((?:<span[^>]*></span>)+)navy</li>", html)[1]
    assert re.findall("background:(#[0-9a-f]{6})", navy) == ["#202a58", "#282a58", "#602a58"]


def test_an_attack_that_learns_nothing_has_no_such_figures():
    assert perturbation(SMA()) == []


def test_a_page_fits_dark_screens_and_paper():
    style = page("")
    assert "@media screen and (prefers-color-scheme: dark)" in style
    assert "@media print" in style
    names = set(re.findall(r"(--[a-z0-9-]+):", style)) - {"--value", "--series"}
    dark = re.search(r"prefers-color-scheme: dark\) \{ :root \{(.*?)\}", style, re.S)[1]
    assert set(re.findall(r"(--[a-z0-9-]+):", dark)) == names  # each colour has a dark one
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", style)) - {"--value", "--series"} == names


def test_images_enlarge_without_a_script():
    html = figure(IMAGE, "alt", "caption")
    assert re.search(r'<label class="zoom"><input type="checkbox"[^>]*><img ', html)
    assert ".zoom input:checked + img" in page("")


def test_a_page_holds_nothing_that_cannot_be_printed(tmp_path):
    save_page(tmp_path / "page.html", page("a\x00\udcff", paragraph("\x1b[31m\u202e")))
    text = (tmp_path / "page.html").read_text("utf-8")
    assert r"<p>\x1b[31m\u202e</p>" in text
    assert r"a\x00\udcff" in text
    assert all(c.isprintable() or c in "\n\t" for c in text)


def test_a_page_asks_for_nothing(tmp_path):
    save_page(tmp_path / "page.html", page("Title ε", paragraph("text")))
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "://" not in text
    assert "default-src 'none'" in text
    assert "Title ε" in text
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_jinja2_is_imported_only_for_a_page():
    code = "import sys, reidguard.report; assert 'jinja2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
