"""Folders of photos: every file is used or counted, a name means one class, and an image stands upright."""

import io
import os

import numpy as np
import pytest
import torch
from datafiles import encoded, folder_files, picture, write_folder, write_tar
from PIL import Image

from zspag.lab.data import load
from zspag.lab.data.folders import labelled_folder
from zspag.lab.data.listing import class_of, in_order, read_classes
from zspag.lab.data.pictures import IMAGE_SUFFIXES, decode, grey

WIDE = picture(0, size=(6, 4))


# ---- One picture


def turned(pixels, orientation, kind="PNG"):
    """Encode pixels as a camera does that was held another way: stored as they are, with a note of how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def pixels_of(contents, tmp_path, **options):
    return decode(contents, place="a", source=tmp_path, image_size=None, **options).pixels


UPRIGHT = {  # what a viewer shows, by the EXIF standard: rows and columns of the stored image
    1: WIDE,
    2: WIDE[:, ::-1],
    3: WIDE[::-1, ::-1],
    4: WIDE[::-1],
    5: WIDE.transpose(1, 0, 2),
    6: WIDE[::-1].transpose(1, 0, 2),
    7: WIDE[::-1, ::-1].transpose(1, 0, 2),
    8: WIDE[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_photo_that_was_stored_turned_comes_out_upright(tmp_path, orientation, kind):
    found = pixels_of(turned(WIDE, orientation, kind), tmp_path)
    assert np.array_equal(found, UPRIGHT[orientation])
    assert orientation == 1 or not np.array_equal(found, WIDE)


def test_a_folder_of_turned_photos_is_read_upright_by_both_readers(tmp_path):
    square = picture(1)
    files = {name: turned(square, 6) for name in folder_files()}
    data = load(write_folder(tmp_path / "data", files), root=tmp_path)
    forget = labelled_folder(write_folder(tmp_path / "forget", {"3/a.png": turned(square, 6)}))
    expected = torch.tensor(square[::-1].transpose(1, 0, 2).copy()).permute(2, 0, 1)
    assert torch.equal(data.train.images[0], expected)
    assert torch.equal(forget.images[0], expected)


def test_damaged_exif_does_not_hide_whole_pixels(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(WIDE).save(buffer, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert np.array_equal(pixels_of(buffer.getvalue(), tmp_path), WIDE)


def test_of_several_frames_the_first_is_read(tmp_path):
    frames = [Image.fromarray(picture(seed, grey=True)) for seed in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels_of(buffer.getvalue(), tmp_path)[..., 0], np.asarray(frames[0]))


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".tif", ".webp", ".bmp", ".gif"])
def test_kinds_of_images_are_known_by_their_usual_suffixes(tmp_path, suffix):
    kinds = {".tif": "TIFF", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
    contents = encoded(picture(2), kinds.get(suffix, "JPEG"))
    found = labelled_folder(write_folder(tmp_path, {f"3/a{suffix}": contents, "3/b.png": encoded(picture(3))}))
    assert len(found.images) == 2
    assert found.remarks == ("folder 3 is class 3: 2 images",)


@pytest.mark.skipif(".avif" not in IMAGE_SUFFIXES, reason="this build of Pillow reads no AVIF")
def test_avif_is_read_and_counts_as_lossy(tmp_path):
    found = decode(encoded(picture(2), "AVIF"), place="a.avif", source=tmp_path, image_size=None)
    assert (found.pixels.shape, found.lossy) == ((4, 4, 3), "AVIF")


def test_grey_is_what_pillow_calls_grey():
    pixels = picture(4, size=(9, 7))
    images = torch.tensor(pixels).permute(2, 0, 1)[None]
    assert np.array_equal(grey(images)[0, 0].numpy(), np.asarray(Image.fromarray(pixels).convert("L")))
    same = torch.tensor(pixels[..., 0]).expand(1, 3, 7, 9)
    assert torch.equal(grey(same)[:, 0], same[:, 0])  # a grey image comes back from three equal channels


# ---- Names and numbers


def test_folders_that_are_numbers_are_in_the_order_of_the_numbers(tmp_path):
    names = [str(number) for number in range(11)]
    assert in_order(sorted(names), source=tmp_path) == tuple(names)  # as text, 10 would be class 2
    assert in_order(["b", "1", "a", "0"], source=tmp_path) == ("0", "1", "a", "b")
    assert in_order(["s10", "s2", "s1"], source=tmp_path) == ("s1", "s10", "s2")


@pytest.mark.parametrize(
    ("names", "odd", "number"),
    [(["1", "2", "3"], "1", 0), (["0", "2"], "2", 1), (["1", "01", "0"], "1", 2), (["10", "cat", "ant"], "10", 0)],
)
def test_a_number_that_would_be_another_class_is_refused(tmp_path, names, odd, number):
    with pytest.raises(ValueError, match=rf"class folder '{odd}', which would be class {number}: .*number the folders"):
        in_order(names, source=tmp_path)


def test_the_number_of_a_folder_is_its_class_for_both_readers(tmp_path):
    classes = [str(number) for number in range(11)]
    files = {f"{split}/{name}/0.png": encoded(picture(int(name))) for name in classes for split in ("train", "test")}
    data = load(write_folder(tmp_path / "data", files), root=tmp_path)
    forget = labelled_folder(write_folder(tmp_path / "forget", {"10/0.png": files["train/10/0.png"]}))
    assert data.classes == tuple(classes)
    assert forget.labels.tolist() == [10]
    assert torch.equal(data.train.images[data.train.labels == 10], forget.images)


def test_a_folder_of_years_is_no_data_set(tmp_path):
    files = {f"{split}/{year}/0.png": encoded(picture(0)) for year in (1998, 1999) for split in ("train", "test")}
    with pytest.raises(ValueError, match="class folder '1998', which would be class 0"):
        load(write_folder(tmp_path / "years", files), root=tmp_path)


def test_names_stand_for_the_lines_of_the_file_however_umlauts_are_spelled(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffAnn\n Jörg \r\n7\n\n", encoding="utf-8")
    classes = read_classes(path)
    assert classes == ("Ann", "Jörg", "7")
    assert class_of("Jo\u0308rg", classes=classes, place="x") == 1
    assert class_of("7", classes=classes, place="x") == 2  # with a file a name is a name
    assert class_of("7", classes=None, place="x") == 7
    with pytest.raises(ValueError, match="the folder Bo is none of the 3 class names given: Ann, Jörg, 7; rename it"):
        class_of("Bo", classes=classes, place="the folder Bo")


@pytest.mark.parametrize("name", ["cat", "-1", "²", "3.0", "3 "])
def test_without_a_file_a_class_is_a_number(name):
    with pytest.raises(ValueError, match=r"the folder must be named by the number .*--classes-file"):
        class_of(name, classes=None, place="the folder")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is empty: write one class name a line"),
        (b"ant\n\nbee\n", "line 2 of .* is empty"),
        (b"ant\nbee\nant\n", "names the class 'ant' twice, in lines 1 and 3"),
        (b"\xff\xfe\xfa", "is not a text file in UTF-8"),
    ],
)
def test_a_file_of_class_names_that_cannot_work_says_why(tmp_path, contents, message):
    (tmp_path / "names.txt").write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / "names.txt")


# ---- Photos to forget


def photos(*names, seed=0):
    return {name: encoded(picture(seed + index)) for index, name in enumerate(names)}


def test_photos_and_their_classes_come_in_the_order_of_their_names(tmp_path):
    files = photos("12/b.png", "3/c.png", "12/a.png")
    found = labelled_folder(write_folder(tmp_path, files))
    expected = [np.asarray(Image.open(io.BytesIO(files[name]))) for name in ("12/a.png", "12/b.png", "3/c.png")]
    assert found.images.dtype == torch.uint8
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert found.labels.tolist() == [12, 12, 3]
    assert found.remarks == ("folder 3 is class 3: 1 image", "folder 12 is class 12: 2 images")


def test_every_file_that_is_left_out_is_counted_and_named(tmp_path):
    others = photos(
        "a.png", "3/more/a.png", "3/more/b.png", "val/3/a.png", "3/.ipynb_checkpoints/a.png", "__MACOSX/3/a.png"
    )
    others |= {"3/live.heic": b"x", "3/notes.txt": b"x"}
    litter = {"3/.DS_Store": b"x", "3/Thumbs.db": b"x", "3/._a.png": b"x", "desktop.ini": b"x"}
    found = labelled_folder(write_folder(tmp_path, photos("3/a.png", seed=9) | others | litter))
    assert len(found.images) == 1
    assert found.remarks[1] == (
        "left out 8 files: 3 deeper than a class folder (3/more/a.png, 3/more/b.png, val/3/a.png), 2 hidden"
        " (3/.ipynb_checkpoints/a.png, __MACOSX/3/a.png), 2 not an image that can be read, by its name (3/live.heic,"
        " 3/notes.txt), 1 outside of a class folder (a.png)"
    )


def test_what_file_managers_leave_behind_is_not_worth_a_word(tmp_path):
    litter = {"3/.DS_Store": b"x", "3/Thumbs.db": b"x", "3/._a.png": b"x", "desktop.ini": b"x"}
    found = labelled_folder(write_folder(tmp_path, photos("3/a.png") | litter))
    assert found.remarks == ("folder 3 is class 3: 1 image",)


def test_a_data_set_counts_what_it_leaves_out_alike_from_a_folder_and_an_archive(tmp_path):
    others = photos("val/ant/a.png", "train/ant/.ipynb_checkpoints/a.png", "train/ant/more/a.png")
    files = folder_files() | others | {"train/ant/.DS_Store": b"x", "train/ant/notes.txt": b"x"}
    words = (
        "image folder of .png files, left out 4 files: 1 hidden (train/ant/.ipynb_checkpoints/a.png), 1 not an image"
        " that can be read, by its name (train/ant/notes.txt), 2 outside of train/<class>/ and test/<class>/"
        " (train/ant/more/a.png, val/ant/a.png)"
    )
    assert load(write_folder(tmp_path / "data", files), root=tmp_path).data_source == words
    archive = write_tar(tmp_path / "packed.tar", files.items(), "w")
    assert load(archive, root=tmp_path).data_source == words
    assert load(archive, root=tmp_path).data_source == words  # from the cache


def test_a_data_set_without_a_split_counts_too(tmp_path):
    files = {f"{name}/{number}.png": encoded(picture(number)) for name in ("ant", "bee") for number in range(10)}
    found = load(write_folder(tmp_path / "data", files | photos("a.png", "ant/more/b.png")), root=tmp_path)
    assert len(found.train) + len(found.test) == 20
    assert found.data_source.endswith(
        "left out 2 files: 1 deeper than a class folder (ant/more/b.png), 1 outside of a class folder (a.png)"
    )


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_folder(tmp_path / "elsewhere", photos("a.png", "b.png"))
    (tmp_path / "forget").mkdir()
    (tmp_path / "forget" / "3").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    found = labelled_folder(tmp_path / "forget")
    assert len(found.images) == 2
    assert found.remarks == ("folder 3 is class 3: 2 images",)


def test_names_of_folders_become_classes_by_a_file(tmp_path):
    found = labelled_folder(
        write_folder(tmp_path, photos("bee/a.png", "ant/a.png", "ant/b.png")), classes=("cat", "bee", "ant")
    )
    assert found.labels.tolist() == [2, 2, 1]
    assert found.remarks == ("folder bee is class 1: 1 image", "folder ant is class 2: 2 images")


@pytest.mark.parametrize(("label", "classes", "number"), [("3", None, 3), ("bee", ("ant", "bee"), 1)])
def test_photos_of_one_class_lie_in_the_folder_itself(tmp_path, label, classes, number):
    found = labelled_folder(write_folder(tmp_path, photos("a.png", "b.png", "4/c.png")), label=label, classes=classes)
    assert found.labels.tolist() == [number] * 2
    assert found.remarks == (f"{tmp_path} is class {number}: 2 images", "left out 1 file: 1 deeper in it (4/c.png)")


def test_grey_photos_stay_grey_and_become_colours_among_colours(tmp_path):
    plain = {f"3/{index}.png": encoded(picture(index, grey=True)) for index in range(2)}
    assert labelled_folder(write_folder(tmp_path / "grey", plain)).images.shape == (2, 1, 4, 4)
    mixed = labelled_folder(write_folder(tmp_path / "mixed", plain | photos("3/x.png"))).images
    assert mixed.shape == (3, 3, 4, 4)
    assert torch.equal(mixed[0, 0], mixed[0, 2])


def test_a_size_crops_the_middle_square(tmp_path):
    wide = np.zeros((4, 8, 3), dtype=np.uint8)
    wide[:, 2:6] = 200
    folder = write_folder(tmp_path, {"3/a.png": encoded(wide), "3/b.png": encoded(wide.transpose(1, 0, 2))})
    images = labelled_folder(folder, image_size=4).images
    assert images.shape == (2, 3, 4, 4)
    assert (images == 200).all()


BAD = {
    "empty": ({"3/notes.txt": b"x"}, {}, r"holds no image: put .* under .*<class>/; left out 1 file: 1 not an image"),
    "one class": (photos("a.png", "b.png"), {}, r"holds 2 images but no folder of a class: .*\(--label\), or put them"),
    "labelled folders": (photos("3/a.png"), {"label": "3"}, r"holds no image directly: .*; left out 1 file: 1 deeper"),
    "named": (
        photos("cat/a.png"),
        {},
        r"the folder .*cat must be named by the number of its class, such as 3, or give",
    ),
    "label": (photos("a.png"), {"label": "cat"}, r"the label 'cat' must be named by the number of its class"),
    "broken": ({"3/a.png": b"x"}, {}, r"^3/a.png in .* is not a readable image .*; replace or remove it$"),
    "several broken": (
        {f"3/{i}.png": b"x" for i in range(5)} | photos("3/a.png"),
        {},
        r"^5 of 6 images cannot be used \(3/0.png, 3/1.png, 3/2.png, ...\): 3/0.png in .* is not a readable image",
    ),
    "sizes": (
        photos("3/a.png") | {"3/b.png": encoded(picture(0, size=(6, 5)))},
        {},
        r"3/b.png in .* is 6x5 pixels, but 3/a.png is 4x4; give image_size \(--image-size\)",
    ),
    "not square": (
        {"3/b.png": encoded(picture(0, size=(6, 5)))},
        {},
        r"are 6x5, not square; give image_size \(--image-size\) to resize all of them to one square size",
    ),
    "no size": (photos("3/a.png"), {"image_size": 0}, r"image_size must be at least 1 pixel, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_photos_that_cannot_work_say_why(tmp_path, case):
    files, options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        labelled_folder(write_folder(tmp_path, files), **options)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*absent"):
        labelled_folder(tmp_path / "absent")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_photo_that_may_not_be_read_is_named(tmp_path):
    write_folder(tmp_path, photos("3/a.png"))
    (tmp_path / "3" / "a.png").chmod(0)
    with pytest.raises(ValueError, match="Permission denied"):
        labelled_folder(tmp_path)
