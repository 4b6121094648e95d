import random
import subprocess
import sys

import pytest
from PIL import Image, ImageFont

from train.pages import FONTS, PagesConfig, draw_page, draw_pages


def test_pages_are_as_many_and_as_large_as_asked_for(tmp_path):
    draw_pages(PagesConfig(out=tmp_path / "new" / "pages", count=3, side=96))
    files = sorted((tmp_path / "new" / "pages").iterdir())
    assert [file.name for file in files] == ["page-000.png", "page-001.png", "page-002.png"]
    for file in files:
        with Image.open(file) as page:
            assert (page.format, page.mode, page.size) == ("PNG", "RGB", (96, 96))


def test_a_seed_makes_the_pages_and_each_is_another():
    def pages(seed: int) -> list[bytes]:
        return [draw_page(128, random.Random(f"{seed} {i}")).tobytes() for i in range(4)]

    assert pages(0) == pages(0)
    assert len({*pages(0), *pages(1)}) == 8


def test_pages_have_writing_with_smooth_edges():
    for i in range(8):
        page = draw_page(256, random.Random(i)).convert("L")
        dark, light = page.getextrema()
        assert light - dark > 100
        assert len(page.getcolors()) > 50  # ink, paper, and what lies between them


@pytest.mark.parametrize(
    "font", [font for family in FONTS.values() for font in family], ids=lambda font: font.stem
)
def test_all_fonts_have_letters(font):
    drawn = [bytes(ImageFont.truetype(font, 40).getmask(sign)) for sign in ("g", "&", "\uffff")]
    assert len(set(drawn)) == 3  # none is the box for what is missing


def test_every_family_has_fonts():
    assert all(FONTS.values())


@pytest.mark.parametrize("options", [{"count": 0}, {"side": 10}])
def test_senseless_options_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="must be at least"):
        PagesConfig(out=tmp_path, **options)


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "train.pages", str(tmp_path / "file" / "pages")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
