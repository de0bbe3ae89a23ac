import gzip
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from reference.data.images import read_idx, read_images, read_npz
from reference.errors import DtypeError, InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
DRAWN = st.sampled_from(list(CODES)).flatmap(
    lambda code: npst.arrays(f">{code}", npst.array_shapes(max_dims=4, max_side=5))
)


def idx(array):
    """The bytes of an idx file, as its description has them."""
    code = CODES[array.dtype.str[1:]]
    sizes = b"".join(struct.pack(">I", n) for n in array.shape)
    return (
        bytes([0, 0, code, array.ndim])
        + sizes
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def written(folder, content, name="images-idx3-ubyte"):
    path = folder / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    return path


def pair(folder, images, labels):
    return written(folder, idx(images), "images"), written(folder, idx(labels), "labels")


def refused(path, message, read=read_idx, *args, **options):
    with pytest.raises(InputError, match=message) as raised:
        read(path, *args, **options)
    assert str(path) in str(raised.value)


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 2), np.uint8)
LABELS = np.array([2, 0, 1, 1, 3], np.uint8)


# idx


@FOLDER
@given(DRAWN, st.sampled_from(["a", "a.gz"]))
def test_arrays_are_those_that_were_written(tmp_path, array, name):
    """Turns red if the bytes are taken in the other order."""
    found = read_idx(written(tmp_path, idx(array), name))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype and found.shape == array.shape
    assert not found.flags.writeable


@FOLDER
@given(DRAWN, st.sampled_from(["a", "a.gz"]), st.data())
def test_a_file_cut_short_or_too_long_is_refused(tmp_path, array, name, data):
    """Turns red if the numbers are taken for as many as there are, or what follows is ignored."""
    whole = idx(array)
    short = whole[: data.draw(st.integers(0, len(whole) - 1))]
    long = whole + bytes(data.draw(st.integers(1, 9)))
    for content in (short, long):
        refused(written(tmp_path, content, name), "has less|has more|ends within|begins with")


def test_what_is_wrong_with_the_length_is_said(tmp_path):
    whole = idx(IMAGES)
    message = "more than the 30 bytes of its shape .5, 3, 2., uint8: it is torn"
    refused(written(tmp_path, whole + b"x"), "has " + message)
    refused(written(tmp_path, whole[:-1]), "has less than the 30 bytes")
    refused(written(tmp_path, whole[:-1], "a.gz"), "has less than the 30 bytes")
    refused(written(tmp_path, whole[:9]), "ends within its header")


@pytest.mark.parametrize(
    "magic",
    [
        "",
        "0000",
        "00000801"[:6],
        "01000803",
        "00010803",
        "00000a03",
        "00000003",
        "00000800",
        "000008ff",
    ],
)
def test_another_magic_number_is_refused(tmp_path, magic):
    content = bytes.fromhex(magic) + (bytes(40) if len(magic) == 8 else b"")
    refused(
        written(tmp_path, content), "begins with the bytes '.*', and must with 00 00, one of 08"
    )


def test_a_packed_file_without_its_ending_is_refused(tmp_path):
    path = written(tmp_path, gzip.compress(idx(IMAGES)))
    refused(path, "begins with the bytes '1f 8b 08 00'.*its name must end in .gz")
    refused(written(tmp_path, idx(IMAGES), "a").rename(tmp_path / "b.gz"), "cannot be unpacked")


def test_an_array_of_nothing_is_refused(tmp_path):
    header = bytes([0, 0, 8, 3]) + struct.pack(">III", 0, 2**32 - 1, 2**32 - 1)
    refused(written(tmp_path, header), "has the shape .0, .*, in which there are no numbers")


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_no_memory_is_taken_for_what_a_header_only_says(tmp_path, name):
    """Turns red if the bytes are asked for in one go."""
    header = bytes([0, 0, 14, 3]) + struct.pack(">III", *[2**11] * 3)
    path = written(tmp_path, header + bytes(1000), name)
    tracemalloc.start()
    try:
        refused(path, "has less than the 68,719,476,736 bytes")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_what_is_not_packed_stays_on_the_disk(tmp_path):
    path = written(tmp_path, idx(np.zeros((4096, 32, 32), np.uint8)))
    tracemalloc.start()
    try:
        found = read_idx(path)
        assert isinstance(found, np.memmap) and found[-1].sum() == 0
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_what_holds_more_than_it_says_is_not_unpacked_to_its_end(tmp_path):
    path = written(tmp_path, idx(IMAGES) + bytes(2**26), "a.gz")
    tracemalloc.start()
    try:
        refused(path, "has more than the 30 bytes")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_file_that_is_not_there_is_named(tmp_path):
    for read in (read_idx, lambda path: read_npz(path, ["a"])):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(tmp_path / "nowhere")


# npz


def test_arrays_are_read_by_name(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", images=IMAGES, labels=LABELS, other=np.array([{}], object))
        found = read_npz(tmp_path / "a.npz", ["labels", "images"])
        assert list(found) == ["labels", "images"]
        np.testing.assert_array_equal(found["images"], IMAGES)
        np.testing.assert_array_equal(found["labels"], LABELS)


def test_what_is_no_array_of_numbers_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES, objects=np.array([{}], object))
    refused(path, "the array 'objects' is torn, or holds objects", read_npz, ["objects"])
    refused(path, "has no array 'x'; it has .'images', 'objects'.", read_npz, ["images", "x"])


def test_an_array_that_says_to_be_larger_than_it_is_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        content = file.read("images.npy")
    path = tmp_path / "b.npz"
    for shape in (
        b"(6, 3, 2)",
        b"(999999, 3, 2)",
        b"(99999999999999, 3, 2)",
        b"(%d, 3, 2)" % 2**70,
    ):
        with zipfile.ZipFile(path, "w") as file:
            grown = content.replace(b"(5, 3, 2), }" + b" " * (len(shape) - 9), shape + b", }")
            assert grown != content and len(grown) == len(content)
            file.writestr("images.npy", grown)
        refused(path, "the array 'images' is torn", read_npz, ["images"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_torn_npz_is_refused(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, images=IMAGES)
    whole = path.read_bytes()
    changed = [whole[:place] for place in range(len(whole))]
    for place, byte in enumerate(whole):
        changed += [whole[:place] + bytes([byte ^ flip]) + whole[place + 1 :] for flip in (1, 255)]
    refusals = 0
    for content in changed:
        path.write_bytes(content)
        try:
            found = read_npz(path, ["images"])
        except InputError as error:
            assert str(path) in str(error)
            refusals += 1
        else:  # a byte that does not matter, such as of a date
            np.testing.assert_array_equal(found["images"], IMAGES)
    assert refusals > len(changed) / 2


def test_other_files_are_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    refused(tmp_path / "a.npy", "is torn, or no .npz file .*np.savez", read_npz, ["images"])


# Images with labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32])
def test_idx_images_are_paired_with_labels(tmp_path, dtype):
    images, labels = read_images(*pair(tmp_path, IMAGES, LABELS.astype(dtype)))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32) and labels.dtype.isnative


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_npz_images_are_paired_with_labels(tmp_path, dtype):
    colour = np.stack([IMAGES, IMAGES], axis=-1).astype(dtype)
    np.savez(tmp_path / "a.npz", x=colour, y=LABELS.astype(np.int64))
    images, labels = read_images(tmp_path / "a.npz", names=("x", "y"))
    np.testing.assert_array_equal(images, colour)
    np.testing.assert_array_equal(labels, LABELS)
    assert (images.dtype, labels.dtype) == (dtype, np.int32)
    refused(tmp_path / "a.npz", "has no array 'images'", read_images)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (IMAGES, LABELS[:4], InputError, "images has 5 images and .*labels 4 labels: give two"),
        (IMAGES[0], LABELS, InputError, r"images has the shape \(3, 2\), and must be \(N, H, W\)"),
        (IMAGES[None, None], LABELS, InputError, r"images has the shape \(1, 1, 5, 3, 2\)"),
        (IMAGES[:0], LABELS[:0], InputError, r"images has the shape \(0, 3, 2\)"),
        (
            IMAGES.astype(np.int32),
            LABELS,
            DtypeError,
            "images is of int32, and must be of uint8 or",
        ),
        (IMAGES > 9, LABELS, DtypeError, "images is of bool"),
        (IMAGES, LABELS[:, None], InputError, r"labels has the shape \(5, 1\), and must be \(N,\)"),
        (IMAGES, LABELS / 2, DtypeError, "labels is of float64, and must be of integers"),
        (IMAGES, LABELS - 1.0, DtypeError, "labels is of float64"),
        (IMAGES, LABELS > 0, DtypeError, "labels is of bool"),
        (
            IMAGES,
            LABELS.astype(np.int64) - 1,
            InputError,
            r"labels\[1\] is -1, and must be a class",
        ),
        (IMAGES, LABELS.astype(np.uint64) + 2**31 - 3, InputError, r"labels\[4\] is 2147483648"),
        (IMAGES, LABELS.astype(str), DtypeError, "labels is of <U"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(tmp_path, images, labels, error, message):
    path = tmp_path / "a.npz"
    np.savez(path, images=images, labels=labels)
    with pytest.raises(error, match=f"{path}, {message}"):
        read_images(path)


def test_misfits_in_idx_files_are_named_by_file(tmp_path):
    one, other = pair(tmp_path, IMAGES, LABELS.astype(np.int16) - 1)
    refused(other, r"labels\[1\] is -1", lambda path: read_images(one, path))
    refused(other, "labels has the shape .5,., and must be .N, H, W.", read_images, one)
    refused(one, "images has the shape .5, 3, 2., and", lambda path: read_images(path, path))


def test_labels_come_from_one_place(tmp_path):
    one, other = pair(tmp_path, IMAGES, LABELS)
    refused(one, "has the images alone: give the idx file of their labels", read_images)
    refused(tmp_path / "a.npz", "must have the labels too: give no other file", read_images, other)


@pytest.mark.parametrize(("name", "number"), [("train", 60_000), ("t10k", 10_000)])
def test_mnist_is_read(name, number):
    folder = SHARED / "mnist"
    if not folder.exists():
        pytest.skip("mnist is not beside the checkout")
    images, labels = read_images(
        folder / f"{name}-images-idx3-ubyte.gz", folder / f"{name}-labels-idx1-ubyte.gz"
    )
    assert images.shape == (number, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (number,) and set(labels.tolist()) == set(range(10))
    assert labels[:5].tolist() == {"train": [5, 0, 4, 1, 9], "t10k": [7, 2, 1, 0, 4]}[name]
