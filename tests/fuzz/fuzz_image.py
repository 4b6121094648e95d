"""Fuzzing of open_image and of the way from there through the pixels to a written file.

    pip install atheris && mkdir /tmp/found
    python -m tests.fuzz.fuzz_image /tmp/found tests/fuzz/corpus -max_total_time=600

New inputs that reach new code go to the first folder; an input that ends in anything but a picture
or an ImageError is written to the working folder and ends the run. All options are libFuzzer's
(`-help=1`). Only the Python code is instrumented: srgan, Pillow's and pillow-heif's plugins.

`python -m tests.fuzz.fuzz_image --replay FILE…` runs files once, without atheris, as
tests/test_hostile.py does with the corpus. That holds `valid_files()` of tests/hostile_files.py and
small files that once ended in something else.
"""

import io
import sys
from contextlib import nullcontext
from pathlib import Path

if __name__ == "__main__" and "--replay" not in sys.argv:
    import atheris
    import torch  # noqa: F401  before, and so without instruments

    instruments = atheris.instrument_imports(include=["PIL", "pillow_heif", "srgan"])
else:
    instruments = nullcontext()

with instruments:
    import pillow_heif  # noqa: F401  rather than at the first HEIC
    from PIL import Image

    from srgan.errors import ImageError
    from srgan.image import enlarge_bicubic, map_pixels, notices, open_image, save_image

    Image.init()

CORPUS = Path(__file__).resolve().parent / "corpus"
MAX_PIXELS = 2**16


def try_image(data: bytes) -> str:
    """What came of it: "picture" or the text of an ImageError; anything else is a finding."""
    try:
        image = open_image(data, max_pixels=MAX_PIXELS)
        assert 0 < image.width * image.height <= MAX_PIXELS
        assert all(notice.endswith(".") for notice in notices(image))
        same = map_pixels(image, lambda pixels: pixels.clone())
        large = enlarge_bicubic(image)
        assert same.size == image.size
        assert large.size == (4 * image.width, 4 * image.height)
        assert same.mode == large.mode
        save_image(same, file := io.BytesIO(), "png")
        assert open_image(file.getvalue()).size == image.size
    except ImageError as error:
        text = str(error)
        assert 10 < len(text) < 250 and text.endswith(".") and text.isprintable(), text
        return text
    return "picture"


def main() -> None:
    if sys.argv[1:2] == ["--replay"]:
        for path in sys.argv[2:]:
            print(f"{path}: {try_image(Path(path).read_bytes())}")
        return
    atheris.Setup(sys.argv, lambda data: try_image(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
