"""Small data sets in the official formats, written by the tests themselves."""

import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
from functools import cache

import numpy as np
import scipy.io
import torch
from PIL import Image


def picture(seed, *, size=(4, 4), grey=False):
    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, kind="PNG"):
    buffer, options = io.BytesIO(), {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def folder_files(*, grey=(), classes=("ant", "bee"), train=3, test=2):
    """Return path and bytes of a small image folder; the classes have unequal counts, the last one a single image."""
    files, seed = {}, 0
    for split, count in (("train", train), ("test", test)):
        for position, name in enumerate(classes):
            for number in range(1 if position == len(classes) - 1 else count):
                path = f"{split}/{name}/{name}_{number}.png"
                files[path] = encoded(picture(seed, grey=path in grey))
                seed += 1
    return files


def write_folder(root, files):
    for name, contents in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    return root


def packed(members, mode="w:xz"):
    """Return the bytes of a tar archive of (name, bytes) or of ready ``TarInfo`` members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, contents in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
    return buffer.getvalue()


def write_tar(path, members, mode="w:xz"):
    path.write_bytes(packed(members, mode))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in members:
            archive.writestr(name, contents)
    return path


def assert_same_set(first, second):
    assert first.classes == second.classes
    assert first.sha256 == second.sha256
    for one, other in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def idx_files():
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 13), ("t10k", 11)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files


IDX_LOADERS = {"mnist": "MNIST", "fashion": "FashionMNIST"}
CIFAR_BATCHES = {
    10: {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
    100: {"train": ["train"], "test": ["test"]},
}
CIFAR_FOLDERS = {10: "cifar-10-batches-py", 100: "cifar-100-python"}


def cifar_classes(num_classes):
    """Return alphabetical class names: those of CIFAR-10, or a hundred made up."""
    ten = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return ten if num_classes == 10 else tuple(f"plant_{number:02d}" for number in range(100))


@cache
def cifar_entries(num_classes):
    """Return split, batch, label, file name and pixels of every image, in an order that is not alphabetical."""
    rng, entries = np.random.default_rng(0), []
    for split, batches in CIFAR_BATCHES[num_classes].items():
        for place, batch in enumerate(batches):
            for _ in range(num_classes + 1 if split == "test" or num_classes == 100 else 5 + place):
                label = 3 * len(entries) % num_classes
                name = f"{cifar_classes(num_classes)[label][:4]}_s_{rng.integers(10**6):06d}"
                entries.append((split, batch, label, name, picture(len(entries), size=(32, 32))))
    return entries


def cifar_files(num_classes):
    """Return the pickled batches by their path under the data root."""
    entries, files = cifar_entries(num_classes), {}
    for batch in (batch for batches in CIFAR_BATCHES[num_classes].values() for batch in batches):
        rows = [entry for entry in entries if entry[1] == batch]
        labels = "labels" if num_classes == 10 else "fine_labels"
        contents = {
            "data": np.stack([pixels.transpose(2, 0, 1).reshape(-1) for *_, pixels in rows]),
            labels: [label for _, _, label, _, _ in rows],
            "filenames": [f"{name}.png" for *_, name, _ in rows],
        }
        files[batch] = pickle.dumps(contents)
    meta, key = ("batches.meta", "label_names") if num_classes == 10 else ("meta", "fine_label_names")
    files[meta] = pickle.dumps({key: list(cifar_classes(num_classes))})
    return {f"{CIFAR_FOLDERS[num_classes]}/{name}": contents for name, contents in files.items()}


def cifar_members(num_classes, kind):
    """Yield path and bytes of the same images as an image folder, backwards."""
    for split, _, label, name, pixels in reversed(cifar_entries(num_classes)):
        folder = f"cifar{num_classes}/{split}/{cifar_classes(num_classes)[label]}"
        yield f"{folder}/{name}.{kind.lower()}", encoded(pixels, kind)


SVHN_LABELS = {"train": [10, 1, 2, 9, 10, 5, 7], "test": [3, 10, 4, 1, 6]}


def svhn_pixels(part):
    return np.stack([picture(100 + 10 * len(part) + i, size=(32, 32)) for i in range(len(SVHN_LABELS[part]))])


def svhn_files():
    """Return the two .mat files: images (32, 32, 3, n), labels (n, 1) on 1..10."""
    files = {}
    for part, labels in SVHN_LABELS.items():
        buffer = io.BytesIO()
        images = svhn_pixels(part).transpose(1, 2, 3, 0)
        scipy.io.savemat(buffer, {"X": images, "y": np.array(labels, dtype=np.uint8)[:, None]})
        files[f"{part}_32x32.mat"] = buffer.getvalue()
    return files


def md5(contents):
    return hashlib.md5(contents).hexdigest()


def official_files(name, monkeypatch):
    """Return the small files of a set, by their path under the data root, and what a server would send.

    torchvision takes them for the real ones, for it is told their checksums.
    """
    from torchvision import datasets

    if name in IDX_LOADERS:
        loader = getattr(datasets, IDX_LOADERS[name])
        sent = {f"{file}.gz": gzip.compress(contents) for file, contents in idx_files().items()}
        monkeypatch.setattr(loader, "resources", [(file, md5(contents)) for file, contents in sent.items()])
        return {f"{loader.__name__}/raw/{file}": contents for file, contents in idx_files().items()}, sent
    if name == "svhn":
        files = svhn_files()
        parts = {part: [f"http://there/{part}_32x32.mat", f"{part}_32x32.mat"] for part in SVHN_LABELS}
        known = {part: [*entry, md5(files[entry[1]])] for part, entry in parts.items()}
        monkeypatch.setattr(datasets.SVHN, "split_list", known)
        return files, files
    number = int(name.removeprefix("cifar"))
    loader, files = getattr(datasets, name.upper()), cifar_files(number)
    sums = {path.rpartition("/")[2]: md5(contents) for path, contents in files.items()}
    for part, batches in CIFAR_BATCHES[number].items():
        monkeypatch.setattr(loader, f"{part}_list", [[batch, sums[batch]] for batch in batches])
    monkeypatch.setattr(loader, "meta", loader.meta | {"md5": sums[loader.meta["filename"]]})
    sent = {loader.filename: packed(files.items(), "w:gz")}
    monkeypatch.setattr(loader, "tgz_md5", md5(sent[loader.filename]))
    return files, sent


def served(monkeypatch, files, *, broken_at=None):
    """Serve ``files`` by the last part of their address in place of the network.

    ``broken_at`` interrupts the process in the middle of a file, after so many whole ones.
    """
    read = []  # the answers whose body was read; others were asked for redirections only

    class Answer(io.BytesIO):
        length = url = None
        headers = {"Content-Length": "0"}

        def read(self, *size):
            if self not in read:
                read.append(self)
            if len(read) - 1 != broken_at:
                return super().read(*size)
            if self.tell() > 0:
                raise KeyboardInterrupt
            return super().read(100)

    monkeypatch.setattr(
        "urllib.request.urlopen", lambda request, **_: Answer(files[request.full_url.rpartition("/")[2]])
    )
