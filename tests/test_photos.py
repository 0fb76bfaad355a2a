"""Image folders and archives: every file is used or counted, a name means one class, and an image stands upright."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from datafiles import assert_same_set, encoded, folder_files, picture, write_folder, write_tar, write_zip
from PIL import Image

from zspag.lab.data import labelled_folder, load
from zspag.lab.data.listing import class_of, files_in, in_order, read_classes, unpack
from zspag.lab.data.pictures import IMAGE_SUFFIXES, decode, grey
from zspag.preflight import inputs

WIDE = picture(0, size=(6, 4))
ODD = {"ant/odd.png": encoded(picture(9, size=(6, 5)))}


def saved(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(pixels, orientation, kind="PNG"):
    """Encode pixels as a camera does that was held another way: stored as they are, with a note of how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(pixels, kind, exif=exif)


def pixels_of(contents, tmp_path):
    return decode(contents, place="a", source=tmp_path, image_size=None).pixels


def people(counts, *, kind="PNG", sizes=((4, 4),)):
    """Return path and bytes of a folder with one class per person; sizes take turns, every third image is grey."""
    files = {}
    for name, count in counts.items():
        for number in range(count):
            seed = 1000 * sum(map(ord, name)) + number
            pixels = picture(seed, size=sizes[number % len(sizes)], grey=number % 3 == 2)
            files[f"{name}/{name}_{number:02d}.{kind.lower()}"] = encoded(pixels, kind)
    return files


PETS = people({"ant": 10, "bee": 12})


def photos(*names, seed=0):
    return {name: encoded(picture(seed + index)) for index, name in enumerate(names)}


def read(root, files, **options):
    """Write a folder of files and load it as a data set."""
    return load(write_folder(root / "pets", files), root=root, **options)


def rows(split, label):
    """Return the images of a class as a set of bytes."""
    return {image.numpy().tobytes() for image in split.images[split.labels == label]}


# One picture


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


def test_damaged_exif_does_not_hide_whole_pixels(tmp_path):
    contents = saved(WIDE, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert np.array_equal(pixels_of(contents, tmp_path), WIDE)


def test_of_several_frames_the_first_is_read(tmp_path):
    frames = [picture(seed, grey=True) for seed in range(3)]
    contents = saved(frames[0], "GIF", save_all=True, append_images=list(map(Image.fromarray, frames[1:])))
    assert np.array_equal(pixels_of(contents, tmp_path)[..., 0], frames[0])


def test_images_are_known_by_their_usual_suffixes(tmp_path):
    kinds = {".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG", ".tif": "TIFF", ".webp": "WEBP", ".gif": "GIF"}
    found = labelled_folder(write_folder(tmp_path, {f"3/a{end}": encoded(WIDE[:, :4], kinds[end]) for end in kinds}))
    assert len(found.images) == len(kinds)
    assert found.remarks == ("folder 3 is class 3: 6 images",)


LOSSY = saved(picture(5), "WEBP", quality=50)
CODINGS = {
    "plain": ("x.png", encoded(picture(5)), ".png files"),
    "under another name": ("x.png", encoded(picture(5), "JPEG"), ".png files, JPEG-coded (lossy)"),
    "lossless": ("x.webp", encoded(picture(5), "WEBP"), ".png and .webp files"),
    "lossy": ("x.webp", LOSSY, ".png and .webp files, WebP-coded (lossy)"),
}


def test_photos_to_forget_need_not_be_square_if_the_model_takes_them_so(tmp_path):
    files = {f"3/{place}.png": encoded(WIDE) for place in range(2)}
    found = labelled_folder(write_folder(tmp_path, files))
    assert found.images.shape[-2:] == WIDE.shape[:2] == (4, 6)
    with pytest.raises(ValueError, match="1.png in .* is 4x4 pixels, but 3/0.png is 6x4"):
        labelled_folder(write_folder(tmp_path, {"3/1.png": encoded(WIDE[:, :4])}))


@pytest.mark.parametrize("case", CODINGS)
def test_loss_is_recognized_by_contents_and_not_by_the_name_of_a_file(tmp_path, case):
    name, contents, words = CODINGS[case]
    found = read(tmp_path, folder_files() | {f"train/ant/{name}": contents})
    assert found.data_source == f"image folder of {words}"


@pytest.mark.skipif(".avif" not in IMAGE_SUFFIXES, reason="this build of Pillow reads no AVIF")
def test_avif_is_read_and_counts_as_lossy(tmp_path):
    found = decode(encoded(picture(2), "AVIF"), place="a.avif", source=tmp_path, image_size=None)
    assert (found.pixels.shape, found.lossy) == ((4, 4, 3), "AVIF")


def test_grey_is_what_pillow_calls_grey():
    pixels = picture(4, size=(9, 7))
    images = torch.tensor(pixels).permute(2, 0, 1)[None]
    assert np.array_equal(grey(images)[0, 0].numpy(), np.asarray(Image.fromarray(pixels).convert("L")))
    same = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(grey(same), same[:, :1])  # a grey image comes back from three equal channels


def test_grey_images_stay_grey_and_become_colours_among_colours(tmp_path):
    files = folder_files()
    assert read(tmp_path / "grey", folder_files(grey=files)).train.images.shape == (4, 1, 4, 4)
    one = folder_files(grey=("train/ant/ant_1.png",))
    mixed = read(tmp_path / "mixed", one).train.images
    assert mixed.shape == (4, 3, 4, 4)
    pixels = pixels_of(one["train/ant/ant_1.png"], tmp_path)
    assert all(np.array_equal(mixed[1, channel].numpy(), pixels) for channel in range(3))
    assert not torch.equal(mixed[0, 0], mixed[0, 1])


def test_a_size_crops_the_middle_square(tmp_path):
    wide = np.zeros((4, 8, 3), dtype=np.uint8)
    wide[:, 2:6] = 200  # the middle square
    folder = write_folder(tmp_path, {"3/a.png": encoded(wide), "3/b.png": encoded(wide.transpose(1, 0, 2))})
    images = labelled_folder(folder, image_size=4).images
    assert images.shape == (2, 3, 4, 4)
    assert (images == 200).all()
    data = {name: encoded(wide) for name in folder_files()}
    assert (read(tmp_path, data, image_size=4).train.images == 200).all()
    assert read(tmp_path, data, image_size=5).train.images.shape == (4, 3, 5, 5)  # not the cache of size 4


# Names and numbers


def test_folders_that_are_numbers_are_in_the_order_of_the_numbers(tmp_path):
    names = [str(number) for number in range(11)]
    assert in_order(sorted(names), source=tmp_path) == tuple(names)  # as text, 10 would be class 2
    assert in_order(["b", "s10", "s2", "1", "0"], source=tmp_path) == ("0", "1", "b", "s10", "s2")


@pytest.mark.parametrize(
    ("names", "odd", "number"),
    [(["0", "2"], "2", 1), (["1", "01", "0"], "1", 2), (["1998", "1999"], "1998", 0)],
)
def test_a_number_that_would_be_another_class_is_refused(tmp_path, names, odd, number):
    files = {f"{split}/{name}/0.png": encoded(picture(0)) for name in names for split in ("train", "test")}
    with pytest.raises(ValueError, match=rf"class folder '{odd}', which would be class {number}: .*number the folders"):
        read(tmp_path, files)


def test_the_number_of_a_folder_is_its_class_for_both_readers(tmp_path):
    classes = [str(number) for number in range(11)]
    files = {f"{split}/{name}/0.png": encoded(picture(int(name))) for name in classes for split in ("train", "test")}
    data = read(tmp_path, files)
    forget = labelled_folder(write_folder(tmp_path / "forget", {"10/0.png": files["train/10/0.png"]}))
    assert data.classes == tuple(classes)
    assert forget.labels.tolist() == [10]
    assert torch.equal(data.train.images[data.train.labels == 10], forget.images)


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


# Data sets of one's own


@pytest.mark.parametrize("files", [folder_files(), PETS], ids=["published split", "split by seed"])
def test_a_folder_and_its_archives_give_the_same_set(tmp_path, files):
    first = read(tmp_path, files)
    assert (first.name, first.classes) == ("pets", ("ant", "bee"))
    backwards = [(f"pets/{name}", contents) for name, contents in reversed(files.items())]
    write_zip(tmp_path / "two.zip", files.items())
    for source in (write_tar(tmp_path / "one.tar.gz", backwards, "w:gz"), tmp_path / "two.zip", "two", "pets"):
        assert_same_set(first, load(source, root=tmp_path))


def test_images_are_sorted_by_class_and_name(tmp_path):
    files = folder_files()
    train = read(tmp_path, files).train
    assert train.labels.tolist() == [0, 0, 0, 1]  # a class with one image is a class
    names = [f"train/ant/ant_{number}.png" for number in range(3)] + ["train/bee/bee_0.png"]
    expected = np.stack([pixels_of(files[name], tmp_path) for name in names])
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), expected)


def test_a_folder_of_classes_is_split_within_each_and_says_so(tmp_path):
    found = read(tmp_path, people({"cat": 20, "ant": 11, "bee": 10}))
    assert found.classes == ("ant", "bee", "cat")
    assert found.train.labels.bincount().tolist() == [9, 8, 16]
    assert found.test.labels.bincount().tolist() == [2, 2, 4]
    for label, count in enumerate([11, 10, 20]):
        assert not rows(found.train, label) & rows(found.test, label)
        assert len(rows(found.train, label) | rows(found.test, label)) == count
    assert found.data_source == "image folder of .png files, split by seed 0 with 20 % for the test"


def test_the_split_depends_on_its_seed_and_share_and_on_no_other_class(tmp_path):
    first = read(tmp_path, PETS)
    assert_same_set(first, load(tmp_path / "pets", root=tmp_path / "elsewhere"))
    other = read(tmp_path, PETS, split_seed=1)
    assert rows(other.test, 0) != rows(first.test, 0)
    assert rows(other.test, 0) | rows(other.train, 0) == rows(first.test, 0) | rows(first.train, 0)
    assert read(tmp_path, PETS, test_share=0.5).test.labels.bincount().tolist() == [5, 6]
    more = read(tmp_path, people({"aardvark": 10}))
    assert [rows(more.test, 1), rows(more.test, 2)] == [rows(first.test, 0), rows(first.test, 1)]


def test_facescrub_takes_crops_of_any_size_and_makes_them_64_pixels(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"links only, so fetch .* yourself .*{tmp_path}/facescrub/<person>/"):
        load("facescrub", root=tmp_path)
    files = people({"Ann_Lee": 12, "Bo Oh": 10}, kind="JPEG", sizes=((90, 70), (33, 64), (64, 64)))
    write_folder(tmp_path / "facescrub", files)
    faces = load("facescrub", root=tmp_path)
    assert faces.train.images.shape == (18, 3, 64, 64)  # grey ones among colours become colours
    assert (faces.name, faces.classes, len(faces.test)) == ("facescrub", ("Ann_Lee", "Bo Oh"), 4)
    words = "image folder of .jpeg files, JPEG-coded (lossy), resized to 64x64, split by seed 0 with 20 % for the test"
    assert faces.data_source == words
    assert load("facescrub", root=tmp_path, image_size=32).image_size == 32


BAD_SETS = {
    "cut file": (
        folder_files() | {"train/bee/bee_0.png": encoded(picture(1))[:-40]},
        "^train/bee/bee_0.png in .*pets is not a readable",
    ),
    "16 bits": (
        folder_files() | {"test/ant/a.png": saved(np.full((4, 4), 40_000, dtype=np.uint16), "PNG")},
        "test/ant/a.png in .* has mode I;16; only 8 bits",
    ),
    "class without test": (
        folder_files() | {"train/cow/c.png": encoded(picture(1))},
        "class 'cow' .* only one of train/ and test/",
    ),
    "one class": (photos("train/ant/a.png", "test/ant/a.png"), "holds only the class 'ant'; unlearning needs two"),
    "no test split": (photos("train/ant/a.png", "train/bee/a.png"), "holds no image under test/<class>/"),
    "another size": (PETS | ODD, r"ant/odd.png in .*pets is 6x5 .*ant/ant_00.png is 4x4; give image_size \(--image"),
    "not square": ({f"{name}/{i}.png": encoded(WIDE) for name in "ab" for i in range(10)}, "are 6x4, not square; give"),
    "several too few": (
        people({"ant": 10, "bee": 3, "cow": 1, "dog": 2}),
        r"'bee' in .* has 3 images, fewer than 10 \(and so have 2 other classes\)",
    ),
    "no classes": (people({"train": 20, "test": 20}), "has no class folders in train/ and test/"),
    "no image": (
        {"ant/notes.txt": b"x"},
        "holds no image under train/<class>/ and test/<class>/, nor under <class>/; left out 1",
    ),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_a_data_set_that_cannot_work_names_what_is_wrong(tmp_path, case):
    files, message = BAD_SETS[case]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, files)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("cats", {}, FileNotFoundError, r"no data set 'cats': .*digits, mnist, .*facescrub .*cats/train/<class>/"),
        ("notes.txt", {}, ValueError, "notes.txt is neither a folder nor an archive"),
        ("svhn", {"split_seed": 0}, ValueError, "split_seed=0 is for image folders; svhn has its own size and split"),
        ("cats", {"image_size": 0}, ValueError, "image_size must be at least 1 pixel, got 0"),
        ("cats", {"test_share": 1.0}, ValueError, r"test_share must lie between 0 and 1, got 1\.0"),
        ("cats", {"min_per_class": 1}, ValueError, "min_per_class must be at least 2, .*got 1"),
        ("cats", {"size": 8}, TypeError, "size"),
    ],
)
def test_names_and_options_that_do_not_exist_are_named(tmp_path, name, options, error, message):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(error, match=message):
        load(name, root=tmp_path, **options)


def test_a_data_set_counts_what_it_leaves_out_alike_from_a_folder_and_an_archive(tmp_path):
    others = photos("val/ant/a.png", "train/ant/.ipynb_checkpoints/a.png", "train/ant/more/a.png")
    files = folder_files() | others | {"train/ant/.DS_Store": b"x", "train/ant/notes.txt": b"x"}
    words = (
        "image folder of .png files, left out 4 files: 1 hidden (train/ant/.ipynb_checkpoints/a.png), 1 not an image"
        " that can be read, by its name (train/ant/notes.txt), 2 outside of train/<class>/ and test/<class>/"
        " (train/ant/more/a.png, val/ant/a.png)"
    )
    found = read(tmp_path, files)
    assert found.data_source == words
    assert load(write_tar(tmp_path / "packed.tar", files.items(), "w"), root=tmp_path).data_source == words
    assert_same_set(found, read(tmp_path / "clean", folder_files()))
    undivided = read(tmp_path / "undivided", PETS | photos("a.png", "ant/more/b.png"))
    assert len(undivided.train) + len(undivided.test) == len(PETS)
    assert undivided.data_source.endswith(
        "left out 2 files: 1 deeper than a class folder (ant/more/b.png), 1 outside of a class folder (a.png)"
    )


# Archives


def member(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "data/first"
    return info


def zip_member(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


NAMES = dict.fromkeys(("data/../../evil", "data\\..\\..\\evil"), "leaves the folder through '..'")
NAMES |= dict.fromkeys(("/etc/evil", "C:\\evil"), "has an absolute path")
ATTACKS = [
    *[(write, name, message) for name, message in NAMES.items() for write in (write_tar, write_zip)],
    (write_tar, member("data/evil", tarfile.SYMTYPE), "is a link"),
    (write_tar, member("data/evil", tarfile.LNKTYPE), "is a link"),
    (write_tar, member("data/evil", tarfile.CHRTYPE), "is a device or a pipe"),
    (write_tar, member("data/evil", tarfile.FIFOTYPE), "is a device or a pipe"),
    (write_zip, zip_member("data/evil", 0o120777), "is a link"),
    (write_zip, zip_member("data/evil", 0o020666), "is a device or a pipe"),
]


@pytest.mark.parametrize(("write", "evil", "message"), ATTACKS)
def test_an_archive_that_attacks_is_refused_and_leaves_nothing(tmp_path, write, evil, message):
    contents = b"" if write is write_tar else b"evil"
    archive = write(tmp_path / f"attack.{write.__name__[6:]}", [("data/first", b"harmless"), (evil, contents)])
    folder = tmp_path / "inside"
    folder.mkdir()
    for act in (lambda: list(files_in(archive)), lambda: unpack(archive, folder / "data"), lambda: load(archive)):
        with pytest.raises(ValueError, match=rf"{archive.name} is refused: its member .*evil' {message}"):
            act()
    assert list(folder.iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("suffix", ["tar.xz", "tar.gz", "zip"])
def test_an_honest_archive_is_unpacked_and_a_cut_one_leaves_nothing(tmp_path, suffix):
    contents = np.random.default_rng(0).bytes(50_000)
    members = [("data/a", contents), ("data/sub/b", b"second")]
    archive = tmp_path / f"honest.{suffix}"
    write_zip(archive, members) if suffix == "zip" else write_tar(archive, members, f"w:{suffix[4:]}")
    unpack(archive, tmp_path / "data")
    assert (tmp_path / "data" / "a").read_bytes() == contents
    assert (tmp_path / "data" / "sub" / "b").read_bytes() == b"second"

    archive.write_bytes(archive.read_bytes()[:20_000])
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=rf"honest.{suffix} is not a whole archive .*fetch it again"):
        unpack(archive, tmp_path / "other" / "data")
    assert list((tmp_path / "other").iterdir()) == []


def test_an_archive_of_something_else_is_named(tmp_path):
    archive = write_tar(tmp_path / "mnist.tar.xz", [("letters/a", b"a")])
    with pytest.raises(ValueError, match=r"holds no folder MNIST/ at its top"):
        unpack(archive, tmp_path / "MNIST")
    members = [(f"{top}/{name}", contents) for top in ("a", "b") for name, contents in folder_files().items()]
    with pytest.raises(ValueError, match=r"more than one image folder: \['a', 'b'\]"):
        load(write_tar(tmp_path / "both.tar.xz", members), root=tmp_path)


# Photos to forget


def test_photos_and_their_classes_come_in_the_order_of_their_names(tmp_path):
    files = photos("12/b.png", "3/c.png", "12/a.png")
    found = labelled_folder(write_folder(tmp_path, files))
    expected = [pixels_of(files[name], tmp_path) for name in ("12/a.png", "12/b.png", "3/c.png")]
    assert found.images.dtype == torch.uint8
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert found.labels.tolist() == [12, 12, 3]
    assert found.remarks == ("folder 3 is class 3: 1 image", "folder 12 is class 12: 2 images")


def test_of_more_photos_than_the_limit_equally_many_of_each_class_are_read(tmp_path, monkeypatch):
    root = write_folder(tmp_path, photos(*(f"3/{index}.png" for index in range(8)), "12/a.png", "12/b.png"))
    whole, some = labelled_folder(root), labelled_folder(root, limit=5)
    assert (some.labels.tolist(), some.left_out) == ([12, 12, 3, 3, 3], 5)
    assert some.remarks[-1] == "5 of 10 images are read, equally many of each class (--limit)"
    assert (whole.left_out, len(whole.remarks)) == (0, 2)
    assert all(any(torch.equal(image, other) for other in whole.images) for image in some.images)
    monkeypatch.setattr(inputs, "FORGET_BYTES", 5 * 4 * some.images[0].numel())
    assert torch.equal(labelled_folder(root).images, some.images)  # nobody set a limit: what fits is read
    with pytest.raises(ValueError, match="--limit 1 is less than the 2 classes to forget: give 2"):
        labelled_folder(root, limit=1)


def test_every_file_that_is_left_out_is_counted_and_named_but_the_litter_of_file_managers(tmp_path):
    others = photos(
        "a.png", "3/more/a.png", "3/more/b.png", "val/3/a.png", "3/.ipynb_checkpoints/a.png", "__MACOSX/3/a.png"
    )
    others |= {"3/live.heic": b"x", "3/notes.txt": b"x"}
    litter = {"3/.DS_Store": b"x", "3/Thumbs.db": b"x", "3/._a.png": b"x", "desktop.ini": b"x"}
    found = labelled_folder(write_folder(tmp_path / "all", photos("3/a.png", seed=9) | others | litter))
    assert len(found.images) == 1
    assert found.remarks[1] == (
        "left out 8 files: 3 deeper than a class folder (3/more/a.png, 3/more/b.png, val/3/a.png), 2 hidden"
        " (3/.ipynb_checkpoints/a.png, __MACOSX/3/a.png), 2 not an image that can be read, by its name (3/live.heic,"
        " 3/notes.txt), 1 outside of a class folder (a.png)"
    )
    littered = labelled_folder(write_folder(tmp_path / "littered", photos("3/a.png") | litter))
    assert littered.remarks == ("folder 3 is class 3: 1 image",)


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_folder(tmp_path / "elsewhere", photos("a.png", "b.png"))
    (tmp_path / "forget").mkdir()
    (tmp_path / "forget" / "3").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    assert labelled_folder(tmp_path / "forget").remarks == ("folder 3 is class 3: 2 images",)


@pytest.mark.parametrize(("label", "classes", "number"), [("3", None, 3), ("bee", ("ant", "bee"), 1)])
def test_photos_of_one_class_lie_in_the_folder_itself(tmp_path, label, classes, number):
    found = labelled_folder(write_folder(tmp_path, photos("a.png", "b.png", "4/c.png")), label=label, classes=classes)
    assert found.labels.tolist() == [number] * 2
    assert found.remarks == (f"{tmp_path} is class {number}: 2 images", "left out 1 file: 1 deeper in it (4/c.png)")


SEVERAL_BROKEN = {f"3/{i}.png": b"x" for i in range(5)} | photos("3/a.png")
BAD = {
    "missing": ({}, {}, "there is no folder .*photos"),
    "empty": ({"3/notes.txt": b"x"}, {}, r"holds no image in the folder of a class: .*; left out 1 file: 1 not an"),
    "one class": (photos("a.png", "b.png"), {}, r"give their class \(--label\); left out 2 files: 2 outside of a"),
    "named": (photos("cat/a.png"), {}, "the folder .*cat must be named by the number of its class, such as 3, or give"),
    "label beside folders": (
        photos("3/a.png"),
        {"label": "3"},
        r"leave out the label \(--label 3\), or give the folder .*photos/3",
    ),
    "label": (photos("a.png"), {"label": "cat"}, "the label 'cat' must be named by the number of its class"),
    "broken": ({"3/a.png": b"x"}, {}, "^3/a.png in .* is not a readable image .*; replace or remove it$"),
    "no image": ({"3/a.png": b"no picture"}, {}, r"3/a.png in .* \([^<>]* no image format that is known\); replace"),
    "several broken": (
        SEVERAL_BROKEN,
        {},
        r"^5 of 6 images cannot be used \(3/0.png, 3/1.png, 3/2.png, ...\): 3",
    ),
    "sizes": (ODD | photos("ant/a.png"), {"classes": ["ant"]}, "ant/odd.png in .* is 6x5 pixels, but ant/a.png is 4x4"),
    "no size": (photos("3/a.png"), {"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_photos_that_cannot_work_say_why(tmp_path, case):
    files, options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        labelled_folder(write_folder(tmp_path / "photos", files), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_photo_that_may_not_be_read_is_named(tmp_path):
    write_folder(tmp_path, photos("3/a.png"))
    (tmp_path / "3" / "a.png").chmod(0)
    with pytest.raises(ValueError, match="Permission denied"):
        labelled_folder(tmp_path)
