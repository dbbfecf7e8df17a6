from __future__ import annotations

import gzip
import os
import random
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from deepclust.datasets import Dataset, load, load_digits

DATA = Path(
    os.environ.get("DEEPCLUST_DATA") or Path(__file__).parents[1].parent / "shared" / "data"
)


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not there: set DEEPCLUST_DATA to the folder that holds it")
    return path


def refused(source, match, error=ValueError, **arguments):
    """`load` ends in one line that matches."""
    with pytest.raises(error, match=match) as caught:
        load(source, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def idx(array, code=0x08):
    return struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 5, 4)).astype(np.uint8)


@pytest.fixture
def rows():
    return np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)


class TestByName:
    def test_digits(self):
        digits = load_digits()
        assert digits.X.shape == (1797, 64)
        assert digits.X.dtype == np.float32
        assert (digits.X.min(), digits.X.max()) == (0, 16)
        assert digits.y.dtype == np.int64
        assert np.bincount(digits.y).shape == (10,)
        assert digits.image_shape == (8, 8)
        assert digits.name == "digits"
        assert len(digits) == 1797

    def test_digits_by_name(self):
        digits = load("digits")
        np.testing.assert_array_equal(digits.X, load_digits().X)
        assert (digits.name, digits.image_shape) == ("digits", (8, 8))
        assert load("digits", labels=range(1797)).y[-1] == 1796

    def test_dataset_is_frozen(self):
        with pytest.raises(AttributeError):
            load_digits().name = "other"

    def test_name_comes_before_a_file_of_that_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "digits").mkdir()
        assert len(load("digits")) == 1797
        refused("./digits", "digits: no PNG or JPEG images")
        refused(Path("./mnist"), "mnist: no such file", FileNotFoundError)

    @pytest.mark.parametrize(
        ("name", "number", "shape", "dtype"),
        [
            ("mnist", 554, (28, 28), np.uint8),
            ("fashion-mnist", 40996, (28, 28), np.uint8),
            ("usps", 41082, (16, 16), np.float32),
        ],
    )
    def test_download(self, monkeypatch, name, number, shape, dtype):
        asked = []

        def fetch(**arguments):
            asked.append(arguments)
            return np.full((3, shape[0] * shape[1]), 200.0), np.array(["5", "0", "9"], dtype=object)

        monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
        data = load(name)
        assert [arguments["data_id"] for arguments in asked] == [number]
        assert not asked[0]["as_frame"]
        assert (data.X.dtype, data.X.shape) == (dtype, (3, shape[0] * shape[1]))
        assert (data.X == 200).all()
        assert data.y.tolist() == [5, 0, 9]
        assert (data.image_shape, data.name) == (shape, name)

    @pytest.mark.parametrize("reason", [urllib.error.URLError("no route"), TimeoutError("late")])
    def test_no_network(self, monkeypatch, reason):
        def fetch(**_):
            raise reason

        monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
        message = "mnist: cannot be downloaded from OpenML .*; give the path of a file instead"
        refused("mnist", message, ConnectionError)

    def test_unwritable_cache_stays_a_permission_error(self, monkeypatch):
        def fetch(**_):
            raise PermissionError(13, "Permission denied", "cache")

        monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
        refused("mnist", "cache", PermissionError)

    def test_unknown_name(self):
        refused("mnits", "mnits: no such file or folder .*digits, mnist, usps", FileNotFoundError)

    def test_no_path(self):
        refused(np.ones((2, 2)), "source: ndarray; a path or one of", TypeError)


class TestNpy:
    def test_is_mapped(self, tmp_path, rows):
        np.save(tmp_path / "a.npy", rows)
        data = load(tmp_path / "a.npy")
        assert isinstance(data.X, np.memmap)
        np.testing.assert_array_equal(data.X, rows)
        assert (data.y, data.image_shape, data.name) == (None, None, "a")

    def test_images_are_rows_and_stay_mapped(self, tmp_path, images):
        np.save(tmp_path / "a.npy", images)
        data = load(str(tmp_path / "a.npy"))
        assert isinstance(data.X, np.memmap)
        assert data.X.dtype == np.uint8
        assert data.image_shape == (5, 4)
        assert all(type(size) is int for size in data.image_shape)
        np.testing.assert_array_equal(data.X, images.reshape(6, 20))

    def test_colour(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((2, 5, 4, 3)))
        assert load(tmp_path / "a.npy").image_shape == (5, 4, 3)

    @pytest.mark.parametrize("dtype", [">f4", ">i2", "f2", "i8", "u2"])
    def test_types(self, tmp_path, dtype):
        array = np.arange(6).reshape(3, 2).astype(dtype)
        np.save(tmp_path / "a.npy", array)
        X = load(tmp_path / "a.npy").X
        assert X.dtype.isnative
        np.testing.assert_array_equal(X, array)

    def test_booleans_are_0_and_1(self, tmp_path):
        np.save(tmp_path / "a.npy", np.eye(3, dtype=bool))
        X = load(tmp_path / "a.npy").X
        assert X.dtype == np.uint8
        np.testing.assert_array_equal(X, np.eye(3))

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros(5), r"a.npy: shape \(5,\); \(N, D\), or images"),
            (np.float64(5), r"a.npy: shape \(\); "),
            (np.zeros((1, 1, 1, 1, 1)), r"a.npy: shape \(1, 1, 1, 1, 1\); "),
            (np.zeros((0, 5)), r"a.npy: no samples: shape \(0, 5\)"),
            (np.zeros((0, 5, 4)), r"a.npy: no samples: shape \(0, 5, 4\)"),
            (np.zeros((5, 0)), r"a.npy: no features: shape \(5, 0\)"),
            (np.array([["a"]]), "a.npy: values of type <U1; numbers"),
            (np.ones((2, 2), dtype=complex), "a.npy: values of type complex128; numbers"),
            (np.zeros(2, dtype=[("a", "f4")]), "a.npy: values of type"),
        ],
    )
    def test_other_arrays(self, tmp_path, array, message):
        np.save(tmp_path / "a.npy", array)
        refused(tmp_path / "a.npy", message)

    def test_objects_are_not_unpickled(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return pytest.fail, ("unpickled",)

        np.save(tmp_path / "a.npy", np.array([[Trap()]]), allow_pickle=True)
        refused(tmp_path / "a.npy", "a.npy: cannot be read as .npy: .*Python objects")
        np.savez(tmp_path / "b.npz", X=np.array([[Trap()]]))
        refused(tmp_path / "b.npz", "b.npz: cannot be read as .npz: Object arrays cannot be loaded")

    def test_archive_under_a_wrong_name(self, tmp_path, rows):
        np.savez(tmp_path / "a.npz", X=rows)
        (tmp_path / "a.npz").rename(tmp_path / "a.npy")
        refused(tmp_path / "a.npy", "it is an archive; its ending should be .npz")


class TestNpz:
    @pytest.mark.parametrize("name", ["X", "x", "data", "E", "embeddings", "images", "arr_0"])
    def test_names_of_data(self, tmp_path, rows, name):
        np.savez(tmp_path / "a.npz", **{name: rows})
        data = load(tmp_path / "a.npz")
        np.testing.assert_array_equal(data.X, rows)
        assert data.y is None

    @pytest.mark.parametrize("name", ["y", "labels", "target"])
    def test_names_of_labels(self, tmp_path, images, name):
        np.savez_compressed(tmp_path / "a.npz", X=images, **{name: np.arange(6, dtype=np.int16)})
        data = load(tmp_path / "a.npz")
        assert data.X.shape == (6, 20)
        assert data.image_shape == (5, 4)
        assert data.y.dtype == np.int64
        assert data.y.tolist() == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("scale", [np.float32(0.25), np.array([0.5, 2.0, 0.25])])
    def test_scale(self, tmp_path, scale):
        codes = np.array([[-128, 0, 127], [1, 2, 3]], dtype=np.int8)
        np.savez(tmp_path / "a.npz", X=codes, scale=scale)
        data = load(tmp_path / "a.npz")
        assert data.X.dtype == np.float32
        np.testing.assert_array_equal(data.X, codes.astype(np.float64) * scale)

    def test_scale_that_does_not_fit(self, tmp_path):
        np.savez(tmp_path / "a.npz", X=np.ones((2, 3), dtype=np.int8), scale=np.ones((4, 1, 1)))
        refused(tmp_path / "a.npz", "a.npz: cannot be read as .npz: non-broadcastable")

    def test_no_entry_fits(self, tmp_path, rows):
        np.savez(tmp_path / "a.npz", train=rows, test=rows)
        refused(tmp_path / "a.npz", "a.npz: .* no entry X, x, data, .*; it has train, test")

    def test_nothing_in_it(self, tmp_path):
        np.savez(tmp_path / "a.npz")
        refused(tmp_path / "a.npz", "it has nothing")

    def test_labels_of_another_number(self, tmp_path, rows):
        np.savez(tmp_path / "a.npz", X=rows, y=np.arange(5))
        refused(tmp_path / "a.npz", "a.npz: 5 labels, but .*a.npz has 6 samples")

    def test_single_array_under_a_wrong_name(self, tmp_path, rows):
        np.save(tmp_path / "a.npy", rows)
        (tmp_path / "a.npy").rename(tmp_path / "a.npz")
        refused(tmp_path / "a.npz", "it is a single array; its ending should be .npy")


class TestSparse:
    @pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr"])
    @pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csr_array])
    def test_comes_as_csr(self, tmp_path, form, kind):
        matrix = kind(scipy.sparse.random(8, 5, 0.4, random_state=0, dtype=np.float32))
        scipy.sparse.save_npz(tmp_path / "a.npz", matrix.asformat(form))
        data = load(tmp_path / "a.npz")
        assert data.X.format == "csr"
        assert data.X.dtype == np.float32
        np.testing.assert_array_equal(data.X.toarray(), matrix.toarray())
        assert (data.y, data.image_shape) == (None, None)
        assert len(data) == 8

    def save(self, path, y=None, **changes):
        matrix = scipy.sparse.csr_matrix(np.eye(3))
        parts = {
            "format": b"csr",
            "shape": matrix.shape,
            "data": matrix.data,
            "indices": matrix.indices,
            "indptr": matrix.indptr,
        }
        np.savez(path, **(parts | changes), **({} if y is None else {"y": y}))

    def test_with_labels(self, tmp_path):
        self.save(tmp_path / "a.npz", y=["b", "a", "b"])
        data = load(tmp_path / "a.npz")
        np.testing.assert_array_equal(data.X.toarray(), np.eye(3))
        assert data.y.tolist() == ["b", "a", "b"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"indices": np.array([0, 1, 99])},
            {"indices": np.array([0, 1, -1])},
            {"indptr": np.array([0, 5, 2, 3])},
            {"format": b"new"},
        ],
    )
    def test_damaged(self, tmp_path, changes):
        self.save(tmp_path / "a.npz", **changes)
        refused(tmp_path / "a.npz", "a.npz: cannot be read as .npz: ")

    def test_no_samples(self, tmp_path):
        scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.csr_matrix((0, 4)))
        refused(tmp_path / "a.npz", r"a.npz: no samples: shape \(0, 4\)")


class TestCsv:
    def load(self, folder, text, encoding="utf-8"):
        (folder / "a.csv").write_text(text, encoding=encoding)
        return load(folder / "a.csv")

    def refused(self, folder, text, match):
        (folder / "a.csv").write_text(text)
        message = refused(folder / "a.csv", match)
        assert message.startswith(f"{folder / 'a.csv'}: ")

    def test_numbers_alone(self, tmp_path):
        data = self.load(tmp_path, "1,2.5\n-3e1,4\n")
        assert data.X.tolist() == [[1, 2.5], [-30, 4]]
        assert data.y is None

    def test_header(self, tmp_path):
        assert self.load(tmp_path, "a,b\n1,2\n3,4\n").X.tolist() == [[1, 2], [3, 4]]

    @pytest.mark.parametrize("name", ["label", "class", "target", "y", "Label", " CLASS "])
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_column_of_labels(self, tmp_path, name, place):
        lines = [["a", "b"], ["1", "2"], ["3", "4"], ["5", "6"]]
        for line, label in zip(lines, [name, "cat", "dog", "cat"], strict=True):
            line.insert(place, label)
        data = self.load(tmp_path, "\n".join(map(",".join, lines)))
        assert data.X.tolist() == [[1, 2], [3, 4], [5, 6]]
        assert data.y.tolist() == ["cat", "dog", "cat"]

    def test_labels_that_are_whole_numbers(self, tmp_path):
        data = self.load(tmp_path, "a,label\n1,-5\n2,100000000000000000\n")
        assert data.y.dtype == np.int64
        assert data.y.tolist() == [-5, 10**17]

    def test_labels_that_only_look_like_numbers(self, tmp_path):
        assert self.load(tmp_path, "a,label\n1,01\n2,1\n").y.tolist() == ["01", "1"]
        assert self.load(tmp_path, "a,label\n1,1.0\n2,2\n").y.tolist() == ["1.0", "2"]

    def test_first_name_of_the_list_wins(self, tmp_path):
        data = self.load(tmp_path, "x,y,label\n1,2,a\n3,4,b\n")
        assert data.X.tolist() == [[1, 2], [3, 4]]
        assert data.y.tolist() == ["a", "b"]

    @pytest.mark.parametrize("numbers", ["0,1", "1,2"])
    def test_columns_named_by_numbers(self, tmp_path, numbers):
        data = self.load(tmp_path, f"label,{numbers}\n7,5,6\n8,7,8\n")
        assert data.X.tolist() == [[5, 6], [7, 8]]
        assert data.y.tolist() == [7, 8]

    def test_a_label_y_is_not_a_header(self, tmp_path):
        self.refused(tmp_path, "1.5,3.5,y\n2.5,4.5,n\n", "line 1, column 3: 'y' is not a number")

    def test_quotes_spaces_blank_lines_and_line_ends(self, tmp_path):
        text = '"a,1" , b,"class"\r\n\r\n1 , 2,"red, big"\r\n" 3",4, blue \r\n\r\n'
        data = self.load(tmp_path, text)
        assert data.X.tolist() == [[1, 2], [3, 4]]
        assert data.y.tolist() == ["red, big", "blue"]

    def test_byte_order_mark_and_accents(self, tmp_path):
        data = self.load(tmp_path, "label,a\né,1\nü,2\n", encoding="utf-8-sig")
        assert data.y.tolist() == ["é", "ü"]

    def test_hash_is_no_comment(self, tmp_path):
        assert self.load(tmp_path, "a,label\n1,#1\n2,#2\n").y.tolist() == ["#1", "#2"]

    def test_one_column(self, tmp_path):
        assert self.load(tmp_path, "1\n2\n").X.tolist() == [[1], [2]]

    def test_no_line_end_at_the_end(self, tmp_path):
        assert self.load(tmp_path, "a,b\n1,2").X.tolist() == [[1, 2]]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no samples"),
            ("\n\n", "no samples"),
            ("a,label\n", "no samples"),
            ("label\n1\n2\n", "no features"),
            ("a,b\n1,2\n3\n", "line 3 has 1 values, the first has 2"),
            ("a,label\n1,2\n3,4,5\n", "line 3 has 3 values, the first has 2"),
            ("a,b\n\n1,2\n3,x\n", "line 4, column 2: 'x' is not a number .labels go in a column"),
            ("a,label\n1,u\n,v\n", "line 3, column 1: '' is not a number$"),
            ("1;2\n3;4\n", "line 2, column 1: '3;4' is not a number"),
            ("a,b,species\n1,2,cat\n", "line 2, column 3: 'cat' is not a number .labels go in"),
            ("a,label\n1,u\n2,\n", "row 1 has the label ''; all need one"),
            (",a,b\n0,1,2\n1,3,4\n", "a column without a name in the header"),
            ("a,b\n1,1_000\n", "cannot be read as CSV"),
        ],
    )
    def test_bad_text(self, tmp_path, text, message):
        self.refused(tmp_path, text, message)

    def test_not_text(self, tmp_path):
        (tmp_path / "a.csv").write_bytes(b"a,b\n1,\xff\xfe\x00")
        refused(tmp_path / "a.csv", "a.csv: cannot be read as CSV: 'utf-8' codec")


class TestIdx:
    @pytest.mark.parametrize("name", ["a-idx3-ubyte", "a.idx3-ubyte", "a.idx", "a.idx3", "A.IDX"])
    def test_images(self, tmp_path, images, name):
        (tmp_path / name).write_bytes(idx(images))
        data = load(tmp_path / name)
        np.testing.assert_array_equal(data.X, images.reshape(6, 20))
        assert data.X.dtype == np.uint8
        assert (data.y, data.image_shape) == (None, (5, 4))

    @pytest.mark.parametrize(
        ("code", "dtype"),
        [(0x08, "u1"), (0x09, "i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")],
    )
    def test_types(self, tmp_path, code, dtype):
        array = np.arange(-3, 3).reshape(3, 2).astype(dtype)
        (tmp_path / "a.idx").write_bytes(idx(array, code))
        X = load(tmp_path / "a.idx").X
        assert X.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(X, array)

    @pytest.mark.parametrize("end", ["", ".gz"])
    @pytest.mark.parametrize("end_of_labels", ["", ".gz"])
    @pytest.mark.parametrize("dash", ["-", "."])
    def test_labels_beside(self, tmp_path, images, end, end_of_labels, dash):
        def write(name, array):
            raw = idx(array)
            (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)

        write(f"train-images{dash}idx3-ubyte{end}", images)
        write(
            f"train-labels{dash}idx1-ubyte{end_of_labels}", np.array([5, 0, 4, 1, 9, 2], np.uint8)
        )
        write(f"t10k-labels{dash}idx1-ubyte", np.zeros(9, np.uint8))
        data = load(tmp_path / f"train-images{dash}idx3-ubyte{end}")
        assert data.y.tolist() == [5, 0, 4, 1, 9, 2]
        np.testing.assert_array_equal(data.X, images.reshape(6, 20))

    def test_labels_beside_of_another_number(self, tmp_path, images):
        (tmp_path / "t-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / "t-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
        refused(tmp_path / "t-images-idx3-ubyte", "4 labels, but .* has 6 samples")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda raw: b"", "it does not begin as an IDX file does"),
            (lambda raw: raw[:3], "it does not begin as an IDX file does"),
            (lambda raw: b"\1" + raw[1:], "it does not begin as an IDX file does"),
            (lambda raw: raw[:2] + b"\7" + raw[3:], "it does not begin as an IDX file does"),
            (lambda raw: raw[:10], "it ends within its header"),
            (lambda raw: raw[:-1], r"shape \(6, 5, 4\) takes 136 bytes, it has 135"),
            (lambda raw: raw + b"\0", r"shape \(6, 5, 4\) takes 136 bytes, it has 137"),
            (lambda raw: raw[:4] + b"\xff" + raw[5:], r"shape .* takes \S* bytes, it has 136"),
        ],
    )
    def test_damaged(self, tmp_path, images, change, message):
        (tmp_path / "a.idx").write_bytes(change(idx(images)))
        refused(tmp_path / "a.idx", "a.idx: cannot be read as IDX: " + message)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda raw: raw[:-9], "Compressed file ended"),
            (lambda raw: raw[:30], "Compressed file ended"),
            (lambda raw: b"no gzip", "Not a gzipped file"),
        ],
    )
    def test_damaged_gzip(self, tmp_path, images, change, message):
        (tmp_path / "a.idx.gz").write_bytes(change(gzip.compress(idx(images))))
        refused(tmp_path / "a.idx.gz", "a.idx.gz: cannot be read as IDX: " + message)

    def test_labels_are_no_samples(self, tmp_path):
        (tmp_path / "t-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
        refused(tmp_path / "t-labels-idx1-ubyte", r"shape \(4,\); \(N, D\), or images")


class TestFolder:
    @pytest.fixture(autouse=True)
    def image(self):
        self.Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

    def save(self, path, array, **arguments):
        path.parent.mkdir(exist_ok=True)
        self.Image.fromarray(array).save(path, **arguments)

    def test_images_alone(self, tmp_path, images):
        for i in (2, 0, 1):
            self.save(tmp_path / "set" / f"{i}.{['png', 'PNG', 'Png'][i]}", images[i])
        (tmp_path / "set" / "readme.txt").write_text("not an image")
        (tmp_path / "set" / "._0.png").write_text("nor this")
        data = load(tmp_path / "set")
        np.testing.assert_array_equal(data.X, images[:3].reshape(3, 20))
        assert data.X.dtype == np.uint8
        assert (data.y, data.image_shape, data.name) == (None, (5, 4), "set")

    def test_folders_are_classes(self, tmp_path, images):
        for i, name in enumerate(["dog", "cat", "dog", "cat", "cat"]):
            self.save(tmp_path / name / f"{i}.png", images[i])
        (tmp_path / "empty").mkdir()
        self.save(tmp_path / ".hidden" / "0.png", images[5])
        data = load(tmp_path)
        assert data.y.tolist() == ["cat", "cat", "cat", "dog", "dog"]
        np.testing.assert_array_equal(data.X, images[[1, 3, 4, 0, 2]].reshape(5, 20))

    def test_folders_named_by_numbers(self, tmp_path, images):
        for i in (0, 7):
            self.save(tmp_path / str(i) / "a.png", images[0])
        assert load(tmp_path).y.tolist() == [0, 7]

    def test_colour(self, tmp_path):
        colour = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
        self.save(tmp_path / "a.png", colour)
        data = load(tmp_path)
        assert data.image_shape == (5, 4, 3)
        np.testing.assert_array_equal(data.X[0], colour.ravel())

    def test_jpeg(self, tmp_path):
        self.save(tmp_path / "a.jpg", np.full((8, 8), 100, np.uint8))
        self.save(tmp_path / "b.jpeg", np.full((8, 8), 200, np.uint8))
        data = load(tmp_path)
        assert data.image_shape == (8, 8)
        np.testing.assert_allclose(data.X, [[100] * 64, [200] * 64], atol=2)

    @pytest.mark.parametrize(
        ("mode", "shape", "dtype"),
        [
            ("1", (5, 4), np.uint8),
            ("P", (5, 4, 3), np.uint8),
            ("LA", (5, 4, 4), np.uint8),
            ("RGBA", (5, 4, 4), np.uint8),
        ],
    )
    def test_modes(self, tmp_path, images, mode, shape, dtype):
        self.Image.fromarray(images[0]).convert(mode).save(tmp_path / "a.png")
        data = load(tmp_path)
        assert data.image_shape == shape
        assert data.X.dtype == dtype

    def test_16_bits(self, tmp_path):
        deep = np.arange(20, dtype=np.uint16).reshape(5, 4) * 3000
        self.save(tmp_path / "a.png", deep)
        np.testing.assert_array_equal(load(tmp_path).X[0], deep.ravel())

    @pytest.mark.parametrize(
        ("odd", "message"),
        [
            (
                np.zeros((5, 3), np.uint8),
                "c.png: 5 x 3 uint8, but a.png is 5 x 4 uint8; all images",
            ),
            (np.zeros((5, 4, 3), np.uint8), "c.png: 5 x 4 x 3 uint8, but a.png is 5 x 4 uint8"),
            (np.zeros((5, 4), np.uint16), "c.png: 5 x 4 .*16, but a.png is 5 x 4 uint8"),
        ],
    )
    def test_first_image_of_another_size_is_named(self, tmp_path, images, odd, message):
        for name, array in {"a": images[0], "b": images[1], "c": odd, "d": odd}.items():
            self.save(tmp_path / f"{name}.png", array)
        refused(tmp_path, message)

    def test_no_images(self, tmp_path):
        (tmp_path / "set" / "deep" / "deeper").mkdir(parents=True)
        refused(
            tmp_path / "set", "set: no PNG or JPEG images in the folder or in the folders in it"
        )

    def test_images_on_two_levels(self, tmp_path, images):
        self.save(tmp_path / "a.png", images[0])
        self.save(tmp_path / "cat" / "a.png", images[0])
        refused(tmp_path, "images both in the folder and in cat in it")

    @pytest.mark.parametrize("kind", ["png", "jpg"])
    def test_damaged(self, tmp_path, images, kind):
        self.save(tmp_path / f"a.{kind}", images[0])
        self.save(tmp_path / f"b.{kind}", images[1])
        whole = (tmp_path / f"b.{kind}").read_bytes()
        for size in (0, 10, len(whole) // 2):
            (tmp_path / f"b.{kind}").write_bytes(whole[:size])
            refused(tmp_path, f"b.{kind}: cannot be read as an image: ")

    def test_without_pillow(self, tmp_path, images, monkeypatch):
        self.save(tmp_path / "a.png", images[0])
        monkeypatch.setitem(__import__("sys").modules, "PIL", None)
        message = r"a.png: images need Pillow: pip install 'deepclust\[plots\]'"
        refused(tmp_path, message, ImportError)


class TestLabels:
    NAMES = ("red", "blue", "red", "green", "blue", "red")

    @pytest.fixture
    def source(self, tmp_path, rows):
        np.savez(tmp_path / "data.npz", X=rows, y=np.zeros(6))
        return tmp_path / "data.npz"

    @pytest.mark.parametrize(
        "labels",
        [
            [3, 1, 4, 1, 5, 9],
            np.array([3, 1, 4, 1, 5, 9], dtype=np.uint8),
            np.array([[3], [1], [4], [1], [5], [9]]),
            np.array([3.0, 1, 4, 1, 5, 9]),
            torch.tensor([3, 1, 4, 1, 5, 9]),
            ["3", "1", "4", "1", "5", "9"],
            np.array([3, 1, 4, 1, 5, 9], dtype=object),
        ],
    )
    def test_whole_numbers_are_int64(self, source, labels):
        y = load(source, labels=labels).y
        assert y.dtype == np.int64
        assert y.tolist() == [3, 1, 4, 1, 5, 9]

    @pytest.mark.parametrize(
        "labels",
        [NAMES, np.array(NAMES), np.array(NAMES, dtype=object), np.array(NAMES, dtype="S5")],
    )
    def test_names(self, source, labels):
        assert load(source, labels=labels).y.tolist() == list(self.NAMES)

    def test_other_numbers(self, source):
        labels = [0.5, 1.5, 1e300, 2, 3, 4]
        assert load(source, labels=labels).y.tolist() == labels

    def test_negative_numbers(self, source):
        assert load(source, labels=[-1, 0, 1, -1, 0, 1]).y.tolist() == [-1, 0, 1, -1, 0, 1]

    def test_npy(self, source, tmp_path):
        np.save(tmp_path / "l.npy", np.arange(6))
        assert load(source, labels=tmp_path / "l.npy").y.tolist() == [0, 1, 2, 3, 4, 5]

    def test_npz(self, source, tmp_path):
        np.savez(tmp_path / "l.npz", other=np.ones(2), labels=np.array(self.NAMES))
        assert load(source, labels=str(tmp_path / "l.npz")).y.tolist() == list(self.NAMES)

    def test_npz_without_labels(self, source, tmp_path):
        np.savez(tmp_path / "l.npz", a=np.ones(6))
        refused(source, "l.npz: .*no entry y, .*; it has a$", labels=tmp_path / "l.npz")

    @pytest.mark.parametrize(
        "text", ["\n".join(NAMES), "\n".join(NAMES) + "\n\n", " \r\n".join(NAMES)]
    )
    def test_txt(self, source, tmp_path, text):
        (tmp_path / "l.txt").write_bytes(text.encode())
        assert load(source, labels=tmp_path / "l.txt").y.tolist() == list(self.NAMES)

    def test_txt_with_a_gap(self, source, tmp_path):
        (tmp_path / "l.txt").write_text("a\nb\n\nd\ne\nf\n")
        refused(source, "l.txt: row 2 has the label ''; all need one", labels=tmp_path / "l.txt")

    def test_txt_that_is_not_text(self, source, tmp_path):
        (tmp_path / "l.txt").write_bytes(b"\xff\xff")
        refused(source, "l.txt: cannot be read as text in UTF-8", labels=tmp_path / "l.txt")

    @pytest.mark.parametrize(
        "lines",
        [
            NAMES,
            ("label", *NAMES),
            ("id,class", *(f"{i},{name}" for i, name in enumerate(NAMES))),
        ],
    )
    def test_csv(self, source, tmp_path, lines):
        (tmp_path / "l.csv").write_text("\n".join(lines))
        assert load(source, labels=tmp_path / "l.csv").y.tolist() == list(self.NAMES)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1,a\n2,b\n", "l.csv: .*2 columns, none named label, class, target or y"),
            ("id,label\n1,a\n2\n", "l.csv: .*its lines have different numbers of values"),
            ("", "l.csv: 0 labels, but .*data.npz has 6 samples"),
        ],
    )
    def test_bad_csv(self, source, tmp_path, text, message):
        (tmp_path / "l.csv").write_text(text)
        refused(source, message, labels=tmp_path / "l.csv")

    @pytest.mark.parametrize("name", ["l-idx1-ubyte", "l.idx.gz", "L.IDX.GZ"])
    def test_idx(self, source, tmp_path, name):
        raw = idx(np.arange(6, dtype=np.uint8))
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.lower().endswith("gz") else raw)
        assert load(source, labels=tmp_path / name).y.tolist() == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([1, 2, 3], "labels: 3 labels, but .*data.npz has 6 samples"),
            (np.eye(6), r"labels: labels of shape \(6, 6\); one a sample"),
            ([[1], [2, 3]], "labels: nested lists"),
            ([0, 1, 2, float("nan"), 4, 5], "labels: row 3 has the label 'nan'; all need one"),
            (["a", "", "c", "d", "e", "f"], "labels: row 1 has the label ''; all need one"),
            ([1j] * 6, "labels: labels of type complex128; numbers or strings"),
            ([None] * 6, "labels: labels of type object; numbers or strings"),
        ],
    )
    def test_bad_labels(self, source, labels, message):
        refused(source, message, labels=labels)

    def test_missing_file(self, source, tmp_path):
        refused(source, "l.txt: no such file", FileNotFoundError, labels=tmp_path / "l.txt")

    def test_unknown_ending(self, source, tmp_path):
        (tmp_path / "l.mat").write_text("")
        refused(source, r"l.mat: unknown ending '.mat' .*\.npy, .*IDX", labels=tmp_path / "l.mat")

    def test_damaged_file(self, source, tmp_path):
        (tmp_path / "l.npy").write_bytes(b"no array")
        refused(source, "l.npy: cannot be read as .npy", labels=tmp_path / "l.npy")


class TestPaths:
    def test_missing(self, tmp_path):
        refused(tmp_path / "a.npy", "a.npy: no such file or folder", FileNotFoundError)

    @pytest.mark.parametrize("name", ["a.xyz", "a", "a.npy.gz", "a.pkl"])
    def test_unknown_ending(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name, r"unknown ending .*; known are \.npy, \.npz, \.csv, IDX .*folder")

    def test_home(self, tmp_path, monkeypatch, rows):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        np.save(tmp_path / "a.npy", rows)
        assert len(load("~/a.npy")) == 6

    @pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.csv", "a.idx"])
    def test_permission_error_stays_as_it_is(self, tmp_path, monkeypatch, name):
        (tmp_path / name).write_bytes(b"")

        def refuse(file, *_, **__):
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr("builtins.open", refuse)
        refused(tmp_path / name, name, PermissionError)


def write_all(folder, images):
    np.save(folder / "a.npy", images)
    np.savez(folder / "b.npz", X=images, y=np.arange(6))
    np.savez_compressed(folder / "c.npz", X=images.astype(np.int8), scale=np.float32(0.5))
    scipy.sparse.save_npz(folder / "d.npz", scipy.sparse.csr_matrix(images.reshape(6, 20)))
    (folder / "e-images-idx3-ubyte").write_bytes(idx(images))
    (folder / "f.idx.gz").write_bytes(gzip.compress(idx(images)))
    (folder / "g.csv").write_text('a,b,label\n1,2,x\n3,4,y\n5,6.5,"z z"\n')
    return sorted(folder.iterdir())


def test_damage_of_any_kind_ends_in_one_line_or_in_a_data_set(tmp_path, images):
    rng = random.Random(0)
    for path in write_all(tmp_path, images):
        whole = path.read_bytes()
        for trial in range(60):
            raw = bytearray(whole)
            if trial % 3 == 0:
                raw = raw[: rng.randrange(len(raw))]
            else:
                # The first bytes, and the last of an archive, say how to read the rest.
                place = rng.choice([0, len(raw) - 40]) + rng.randrange(40)
                raw[min(place, len(raw) - 1)] ^= rng.randrange(1, 256)
            path.write_bytes(raw)
            try:
                data = load(path)
            except ValueError as error:
                message = str(error)
                assert message.startswith(str(path))
                assert "\n" not in message
            else:
                assert isinstance(data, Dataset)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "image_shape", "n_classes"),
    [
        ("optdigits.npz", (5620, 64), np.uint8, (8, 8), 10),
        ("usps.npz", (9298, 256), np.float32, (16, 16), 10),
        ("usps_11000.npz", (11000, 256), np.uint8, (16, 16), 10),
        ("mnist.npz", (70000, 784), np.uint8, (28, 28), 10),
        ("reuters21578_r8_tfidf2000.npz", (7674, 2000), np.float32, None, 8),
        ("emb_minilm_stackoverflow.npz", (20000, 384), np.float32, None, 20),
    ],
)
def test_real_files(name, shape, dtype, image_shape, n_classes):
    data = load(real(name))
    assert data.X.shape == shape
    assert data.X.dtype == dtype
    assert data.image_shape == image_shape
    assert data.y.dtype == np.int64
    assert np.unique(data.y).size == n_classes
    assert data.name == name.removesuffix(".npz")


def test_real_embeddings_are_scaled():
    path = real("emb_minilm_stackoverflow.npz")
    with np.load(path) as file:
        expected = file["X"][:100].astype(np.float64) * file["scale"]
    np.testing.assert_allclose(load(path).X[:100], expected, rtol=1e-6)


def test_real_sparse_text_has_unit_rows():
    data = load(real("reuters21578_r8_tfidf2000.npz"))
    norms = np.sqrt(data.X.multiply(data.X).sum(axis=1))
    assert np.median(norms) == pytest.approx(1, abs=1e-3)
