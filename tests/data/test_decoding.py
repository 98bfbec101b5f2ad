"""Every mode of image as 8 bits of grey or RGB."""

import numpy as np
import pytest
from PIL import Image

from leenet_fx import InputError, make_transform
from leenet_fx.data.decoding import BACKGROUND, readable_extensions, to_eight_bits
from leenet_fx.data.images import open_files

GREY = np.array([[0, 1, 64, 128, 200, 255]], dtype=np.uint8).repeat(3, 0)


def reopened(image, path, **options):
    image.save(path, **options)
    with Image.open(path) as found:
        found.load()
        return found


def array(image):
    return np.asarray(to_eight_bits(image)).astype(int)


@pytest.mark.parametrize("extension", ["png", "tif", "pgm", "jp2"])
def test_16_bit_grey_is_scaled(tmp_path, extension):
    image = Image.fromarray(GREY.astype(np.uint16) * 257)
    options = {"irreversible": False} if extension == "jp2" else {}
    found = to_eight_bits(reopened(image, tmp_path / f"x.{extension}", **options))
    assert found.mode == "L"
    assert np.array_equal(np.asarray(found), GREY)


def test_16_bit_grey_of_either_byte_order_and_from_memory():
    values = GREY.astype(np.uint16) * 256 + 255
    for mode, order in (("I;16", "<u2"), ("I;16B", ">u2")):
        image = Image.frombytes(mode, (6, 3), values.astype(order).tobytes())
        assert np.array_equal(array(image), GREY), mode


def test_12_bit_and_inverted_tiff_have_the_range_of_their_tags(tmp_path):
    def written(bits, photometric):
        image = Image.fromarray(GREY.astype(np.uint16) * (16 if bits == 12 else 256))
        image.save(tmp_path / "x.tif")
        with Image.open(tmp_path / "x.tif") as found:
            found.load()
        found.tag_v2[258], found.tag_v2[262] = bits, photometric
        return found

    assert np.array_equal(array(written(12, 1)), GREY)
    assert np.array_equal(array(written(16, 0)), 255 - GREY.astype(int))


def test_16_bit_colour_is_scaled_as_grey_is(tmp_path):
    """A colour PNG of 16 bits, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(
        b"\0" + np.repeat(row.astype(">u2") * 257, 3).tobytes() for row in GREY.astype(int)
    )
    header = struct.pack(">IIBBBBB", 6, 3, 16, 2, 0, 0, 0)
    path = tmp_path / "x.png"
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with Image.open(path) as found:
        assert np.array_equal(array(found)[:, :, 0], GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGBa", "La"])
def test_transparent_images_are_composited_on_the_background(tmp_path, mode):
    colour = {"LA": (100, 100, 100), "La": (100, 100, 100)}.get(mode, (200, 100, 0))
    image = Image.new("RGBA", (3, 1), (*colour, 255))
    image.putpixel((1, 0), (*colour, 0))
    image.putpixel((2, 0), (*colour, 102))
    if mode == "P":
        image.putpixel((2, 0), (*colour, 0))
        image = reopened(image, tmp_path / "x.gif")
        assert image.mode == "P"
    elif mode == "PA":
        indices = Image.new("P", (3, 1))
        indices.putpalette(list(colour) * 256)
        alpha = image.getchannel("A")
        image = indices.convert("PA")
        image.putalpha(alpha)
    elif mode in ("RGBa", "La"):
        image = (image.convert("LA") if mode == "La" else image).convert(mode)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    found = array(image)[0]
    assert np.array_equal(found[0], colour)
    assert np.array_equal(found[1], BACKGROUND)
    blended = np.round(0.4 * np.array(colour) + 0.6 * np.array(BACKGROUND))
    assert np.abs(found[2] - (BACKGROUND if mode == "P" else blended)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "I;16"])
def test_a_colour_that_a_png_declares_transparent_is_the_background(tmp_path, mode):
    key = {"RGB": (10, 20, 30), "P": 1, "1": 0, "L": 10, "I;16": 2570}[mode]
    image = Image.new(mode, (2, 1), key)
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 20, 30, 50, 50, 50])
    other = {"RGB": (50, 50, 50), "P": 2, "1": 255, "L": 50, "I;16": 12850}[mode]
    image.putpixel((1, 0), other)
    found = np.asarray(
        to_eight_bits(reopened(image, tmp_path / "x.png", transparency=key)).convert("RGB")
    )
    assert np.array_equal(found[0, 0], BACKGROUND)
    assert np.array_equal(found[0, 1], [255 if mode == "1" else 50] * 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_are_converted_as_pillow_does(mode):
    noise = Image.effect_noise((8, 8), 90).convert("RGB")
    image = noise.convert("RGBA").convert("RGBX") if mode == "RGBX" else noise.convert(mode)
    found = to_eight_bits(image)
    assert found.mode == ("L" if mode in ("1", "L") else "RGB")
    assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(image.convert("RGB")))


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for extension in ("gif", "tif", "png", "webp"):
        path = tmp_path / f"x.{extension}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        with Image.open(path) as image:
            assert image.n_frames == 2
            assert np.abs(array(image) - (250, 0, 0)).max() <= 1, extension


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_without_a_defined_range_are_refused(tmp_path, mode):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / label / "1.png")
    Image.new(mode, (4, 4)).save(tmp_path / "cat" / "2.tif")
    with pytest.raises(InputError, match=rf"cat/2.tif .*mode '{mode}' have no defined range"):
        open_files(tmp_path)[1]
    assert len(open_files(tmp_path, skip_bad=True)) == 2


def test_a_transform_takes_any_mode():
    from torch import nn

    transform = make_transform(nn.Identity(), (3, 3, 6), mean=[0.0], std=[1.0])
    grey = make_transform(nn.Identity(), (1, 3, 6), mean=[0.0], std=[1.0])
    image = Image.fromarray(GREY.astype(np.uint16) * 257)
    for made in (transform(image), grey(image)):
        assert np.allclose(made.numpy() * 255, GREY, atol=1e-3)


def test_exif_orientation_is_applied_on_request(tmp_path):
    image = Image.new("RGB", (6, 4))
    image.paste((255, 255, 255), (0, 0, 3, 4))
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / label / "1.png", exif=exif)
    plain, turned = open_files(tmp_path), open_files(tmp_path, exif=True)
    assert plain[0][0].size == plain.size_of(0) == (6, 4)
    assert turned[0][0].size == turned.size_of(0) == (4, 6)
    assert np.array_equal(np.asarray(plain[0][0]), np.asarray(image))
    # 6: the stored left side is the top when the image is upright.
    assert np.array_equal(np.asarray(turned[0][0]), np.rot90(np.asarray(image), -1))


def test_formats_that_pillow_only_names_or_writes_are_no_images():
    extensions = readable_extensions()
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".jp2", ".ppm"} <= extensions
    assert not {".pdf", ".mpg", ".h5", ".grib", ".bufr"} & extensions
