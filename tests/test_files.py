from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from deepclust import __version__
from deepclust._files import (
    atomic_path,
    load_tree,
    npy_to_fill,
    parts,
    picked,
    save_tree,
    write_json,
    write_npy,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestAtomicPath:
    def test_file_takes_its_name_at_the_end(self, tmp_path):
        target = tmp_path / "plot.png"
        with atomic_path(target) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".png"
            temporary.write_bytes(b"new")
            assert not target.exists()
        assert target.read_bytes() == b"new"
        assert names(tmp_path) == ["plot.png"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_any_exception_leaves_the_old_file_and_nothing_else(self, tmp_path, error):
        target = tmp_path / "a.txt"
        target.write_text("old")

        def write():
            with atomic_path(target) as temporary:
                temporary.write_text("half")
                raise error

        with pytest.raises(error):
            write()
        assert target.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]

    def test_content_is_on_the_disk_before_the_name(self, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("sync", os.fstat(fd).st_size)))
        replace = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("name"), replace(a, b)))
        write_text(tmp_path / "a.txt", "four")
        assert calls == [("sync", 4), "name"]

    @pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
    def test_mode_is_the_one_of_a_file_written_plainly(self, tmp_path):
        (tmp_path / "plain").write_text("")
        save_tree(tmp_path / "tree", {"x": torch.zeros(2)}, kind="model")
        write_text(tmp_path / "text", "")
        modes = {name: (tmp_path / name).stat().st_mode for name in names(tmp_path)}
        assert len(set(modes.values())) == 1, modes

    @pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
    def test_link_is_followed(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "link.txt").symlink_to(tmp_path / "disk" / "real.txt")
        write_text(tmp_path / "link.txt", "content")
        assert (tmp_path / "disk" / "real.txt").read_text() == "content"
        assert (tmp_path / "link.txt").is_symlink()

    def test_relative_path_and_long_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        name = "n" * 250 + ".txt"
        write_text(name, "content")
        assert names(tmp_path) == [name]

    def test_missing_directory_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"b\.txt: cannot be written: there is no dir"):
            write_text(tmp_path / "a" / "b.txt", "")
        assert names(tmp_path) == []

    def test_directory_is_not_replaced(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(OSError, match="a: cannot be written: it exists and is not a file"):
            write_text(tmp_path / "a", "")

    @pytest.mark.skipif(not Path(os.devnull).exists(), reason="no null device in the file system")
    def test_device_is_not_replaced(self):
        with pytest.raises(OSError, match="cannot be written: it exists and is not a file"):
            write_text(os.devnull, "")

    def test_unwritable_directory_is_named(self, tmp_path, monkeypatch):
        def refuse(self, **_):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "touch", refuse)
        message = r"a\.txt: cannot be written: Permission denied$"
        with pytest.raises(PermissionError, match=message):
            write_text(tmp_path / "a.txt", "")

    def test_full_disk_is_named(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"a\.txt: cannot be written: No space left on device$"):
            write_text(tmp_path / "a.txt", "content")
        assert names(tmp_path) == []

    def test_error_about_another_file_stays_as_it_is(self, tmp_path):
        with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.txt"):
            (tmp_path / "other").read_text()
        assert caught.value.filename == str(tmp_path / "other")


class TestTextAndArrays:
    def test_text_is_utf8_with_plain_line_ends(self, tmp_path):
        write_text(tmp_path / "a.html", "ν = 1\n∝\n")
        assert (tmp_path / "a.html").read_bytes() == "ν = 1\n∝\n".encode()

    def test_json_is_strict_and_takes_numbers_of_all_kinds(self, tmp_path):
        obj = {
            "cluster/kl": [(0, 0.5), (20, math.nan), (40, -math.inf)],
            3: np.float32(0.5),
            "np": [np.int64(2), np.bool_(True), np.array([[1.0, np.inf]])],
            "torch": [torch.tensor(2), torch.tensor([1.5], requires_grad=True)],
            "rest": (None, False, "ν\ud800"),
        }
        write_json(tmp_path / "a.json", obj)

        def refuse(constant):
            raise AssertionError(constant)

        assert json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse) == {
            "cluster/kl": [[0, 0.5], [20, None], [40, None]],
            "3": 0.5,
            "np": [2, True, [[1.0, None]]],
            "torch": [2, [1.5]],
            "rest": [None, False, "ν\ud800"],
        }

    def test_json_with_indent(self, tmp_path):
        write_json(tmp_path / "a.json", {"a": 1}, indent=2)
        assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'

    @pytest.mark.parametrize(
        ("obj", "message"),
        [
            ({"a": [0, {1}]}, r"obj\['a'\]\[1\]: set is not a type"),
            ({"a": {(1, 2): 0}}, r"obj\['a'\]: key \(1, 2\) is tuple"),
            (np.array([1j]), r"obj\[0\]: complex is not a type"),
        ],
    )
    def test_json_of_another_type_is_named_and_leaves_the_old_file(self, tmp_path, obj, message):
        (tmp_path / "a.json").write_text("old")
        with pytest.raises(TypeError, match=message):
            write_json(tmp_path / "a.json", obj)
        assert (tmp_path / "a.json").read_text() == "old"

    @pytest.mark.parametrize("name", ["labels.npy", "labels"])
    def test_npy_keeps_its_name(self, tmp_path, name):
        write_npy(tmp_path / name, np.arange(6).reshape(2, 3).T)
        assert names(tmp_path) == [name]
        assert np.load(tmp_path / name).tolist() == [[0, 3], [1, 4], [2, 5]]

    @pytest.mark.parametrize("shape", [(3000,), (3000, 7), (1, 4)])
    def test_npy_of_a_memory_map(self, tmp_path, shape, monkeypatch):
        monkeypatch.setattr("deepclust._files._PART_BYTES", 1000)
        array = np.arange(np.prod(shape), dtype=">i4").reshape(shape)
        mapped = np.memmap(tmp_path / "raw", array.dtype, "w+", shape=shape)
        mapped[:] = array
        for rows in (mapped, mapped[1:], mapped.T):
            write_npy(tmp_path / "copy.npy", rows)
            found = np.load(tmp_path / "copy.npy")
            np.testing.assert_array_equal(found, rows)
            assert found.dtype == array.dtype

    def test_picked_rows_of_a_memory_map(self, tmp_path):
        np.save(tmp_path / "a.npy", np.arange(4000).reshape(1000, 4))
        rows = np.random.default_rng(0).integers(1000, size=700)
        for mode in ("r", "c"):
            mapped = np.load(tmp_path / "a.npy", mmap_mode=mode)
            if mode == "c":
                mapped[5:500] = -1  # which is nowhere but in the map
            np.testing.assert_array_equal(picked(mapped, rows), np.array(mapped)[rows])
            assert sum(len(part) for part in parts(mapped)) == 1000
            assert mapped[7, 0] == (-1 if mode == "c" else 28)

    def test_npy_of_objects_is_refused(self, tmp_path):
        with pytest.raises(TypeError, match="array: dtype object holds Python objects"):
            write_npy(tmp_path / "a.npy", np.array([{}]))
        assert names(tmp_path) == []


class TestNpyToFill:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
    def test_what_is_filled_in_is_read_back(self, tmp_path, dtype):
        with npy_to_fill(tmp_path / "a.npy", (5, 3), dtype) as array:
            assert names(tmp_path) != ["a.npy"]
            array[:] = np.arange(15).reshape(5, 3)
        found = np.load(tmp_path / "a.npy")
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.arange(15).reshape(5, 3))
        assert names(tmp_path) == ["a.npy"]

    def test_an_error_leaves_the_old_file(self, tmp_path):
        np.save(tmp_path / "a.npy", np.ones(2))

        def fill():
            with npy_to_fill(tmp_path / "a.npy", (5, 3), "float32") as array:
                array[:2] = 1
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fill()
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [1, 1])
        assert names(tmp_path) == ["a.npy"]

    @pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="not POSIX")
    def test_a_full_disk_is_found_before_anything_is_filled_in(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)

        def fill():
            with npy_to_fill(tmp_path / "a.npy", (5, 3), "float32"):
                pytest.fail("there is no room")

        with pytest.raises(OSError, match=r"a\.npy: cannot be written: No space left on device"):
            fill()
        assert names(tmp_path) == []


def assert_same(a, b):
    assert type(a) is type(b), (a, b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        assert [type(key) for key in a] == [type(key) for key in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)
    elif isinstance(a, (np.ndarray, np.generic)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, float):
        assert repr(a) == repr(b)
    else:
        assert a == b


def round_trip(folder, tree):
    save_tree(folder / "tree", tree, kind="test")
    return load_tree(folder / "tree", kind="test")


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
]


class TestTree:
    values = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(exclude_categories=[])),
        st.sampled_from([torch.tensor(2.5), np.arange(3), np.float32(0.1), np.bool_(True)]),
    )
    trees = st.recursive(
        values,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
        ),
        max_leaves=8,
    )

    @given(tree=trees)
    @settings(max_examples=25, deadline=None)
    def test_any_tree_comes_back(self, tmp_path_factory, tree):
        folder = tmp_path_factory.getbasetemp()
        assert_same(round_trip(folder, tree), tree)

    def test_every_kind_of_value(self, tmp_path):
        tree = {
            "": None,
            "0": [],
            0: (),
            -1: {},
            "a['b']": 1,
            "a": {"b": 2, 10**30: True},
            "__metadata__": torch.ones(1),
            "tag": {"tuple": [1], "tensor": "tree[0]"},
            "numbers": (1, 1.0, True, -0.0, math.inf, -math.inf, math.nan, 0.1, 5e-324),
            "text": 'ν "quoted"\n\ud800',
        }
        assert_same(round_trip(tmp_path, tree), tree)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 2)])
    def test_tensors(self, tmp_path, dtype, shape):
        tensor = (torch.arange(math.prod(shape)).reshape(shape) + 1).to(dtype)
        assert_same(round_trip(tmp_path, tensor), tensor)

    @pytest.mark.parametrize("dtype", [*"bhiqBHIQefd?", ">f4", ">i8"])
    @pytest.mark.parametrize("shape", [(), (0, 4), (3, 2)])
    def test_arrays(self, tmp_path, dtype, shape):
        array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
        loaded = round_trip(tmp_path, array)
        assert_same(loaded, array.astype(array.dtype.newbyteorder("=")))
        loaded[...] = 1  # as an array of one's own

    @pytest.mark.parametrize("dtype", [*"bhilBHILefd?"])
    def test_scalars(self, tmp_path, dtype):
        scalar = np.dtype(dtype).type(1)
        assert_same(round_trip(tmp_path, {"a": [scalar]}), {"a": [scalar]})

    def test_tensors_in_any_memory(self, tmp_path):
        base = torch.arange(12.0).reshape(3, 4)
        tree = {
            "base": base,
            "again": base,
            "transposed": base.T,
            "row": base[1],
            "column": base[:, 1],
            "stepped": base[::2],
            "repeated": base[:1].expand(3, 4),
            "negated": torch.complex(base, base).conj().imag,
        }
        assert_same(round_trip(tmp_path, tree), tree)

    def test_parameters_come_back_as_tensors(self, tmp_path):
        loaded = round_trip(tmp_path, [nn.Parameter(torch.ones(2))])
        assert_same(loaded, [torch.ones(2)])
        assert not loaded[0].requires_grad

    def test_arrays_in_any_memory(self, tmp_path):
        base = np.arange(12.0).reshape(3, 4)
        np.save(tmp_path / "map.npy", base)
        frozen = base.copy()
        frozen.flags.writeable = False
        tree = [base, base, base.T, base[::-1, ::2], np.broadcast_to(base[0], (2, 4)), frozen]
        assert_same(round_trip(tmp_path, tree), tree)
        mapped = np.load(tmp_path / "map.npy", mmap_mode="r")
        assert_same(round_trip(tmp_path, mapped), base)

    def test_sizes_and_ordered_dicts_come_back_plain(self, tmp_path):
        state = nn.Linear(2, 1).state_dict()
        loaded = round_trip(tmp_path, {"state": state, "size": torch.Size([2, 1])})
        assert_same(loaded, {"state": dict(state), "size": (2, 1)})

    def test_optimizer_goes_on_where_it_was(self, tmp_path):
        def run(steps, state=None):
            torch.manual_seed(0)
            net = nn.Linear(3, 2)
            optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
            if state:
                net.load_state_dict(state["net"])
                optimizer.load_state_dict(state["optimizer"])
            for _ in range(steps):
                optimizer.zero_grad()
                net(torch.ones(4, 3)).square().sum().backward()
                optimizer.step()
            return {"net": net.state_dict(), "optimizer": optimizer.state_dict()}

        state = round_trip(tmp_path, run(3))
        assert torch.equal(run(2, state)["net"]["weight"], run(5)["net"]["weight"])

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_gpu_tensors_come_back_on_the_cpu(self, tmp_path):
        tensor = torch.arange(6, device="cuda").reshape(2, 3)
        assert_same(round_trip(tmp_path, [tensor, tensor.T]), [tensor.cpu(), tensor.cpu().T])

    def test_same_tree_gives_the_same_bytes(self, tmp_path):
        tree = {str(i): torch.full((i,), i) for i in range(20)} | {"step": 1}
        save_tree(tmp_path / "a", tree, kind="test")
        save_tree(tmp_path / "b", tree, kind="test")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_what_is_loaded_does_not_hang_on_the_file(self, tmp_path):
        first = round_trip(tmp_path, torch.ones(1000))
        with open(tmp_path / "tree", "r+b") as file:
            file.truncate(0)
        assert torch.equal(first, torch.ones(1000))

    def test_other_programs_can_read_the_tensors(self, tmp_path):
        save_tree(tmp_path / "tree", {"net": {"weight": torch.ones(2)}}, kind="model")
        with safe_open(tmp_path / "tree", framework="pt") as file:
            assert list(file.keys()) == ["tree['net']['weight']"]
            about = json.loads(file.metadata()["deepclust"])
        assert (about["format"], about["kind"], about["version"]) == (1, "model", __version__)

    @pytest.mark.parametrize(
        ("tree", "message"),
        [
            ({1, 2}, "tree: set is not a type"),
            ({"a": [0, object()]}, r"tree\['a'\]\[1\]: object is not a type"),
            ({"a": ({0: 1j},)}, r"tree\['a'\]\[0\]\[0\]: complex is not a type"),
            ({"a": b"bytes"}, r"tree\['a'\]: bytes is not a type"),
            ({"a": Path("a")}, r"tree\['a'\]: \w*Path is not a type"),
            ({"a": {1.5: 0}}, r"tree\['a'\]: key 1.5 is float; keys are str or int"),
            ({True: 0}, "tree: key True is bool; keys are str or int"),
            ({np.int64(1): 0}, "tree: key .*1.* is int64; keys are str or int"),
            ([nn.Linear], r"tree\[0\]: type is not a type"),
            ([torch.float32], r"tree\[0\]: dtype is not a type"),
            ([torch.finfo(torch.float32)], r"tree\[0\]: finfo is not a type"),
            ([np.array(["a"])], r"tree\[0\]: NumPy's <U1 is not a type"),
            ([np.array([{}])], r"tree\[0\]: NumPy's object is not a type"),
            ([np.str_("a")], r"tree\[0\]: NumPy's <U1 is not a type"),
            ([np.complex64(1)], r"tree\[0\]: NumPy's complex64 is not a type"),
            ([torch.ones(2, dtype=torch.complex64)], r"tree\[0\]: a .* of torch.complex64 on cpu"),
            ([torch.ones(2).to_sparse()], r"tree\[0\]: a torch.sparse_coo tensor"),
            ([torch.ones(2, device="meta")], r"tree\[0\]: a .* on meta"),
        ],
    )
    def test_other_types_are_named(self, tmp_path, tree, message):
        with pytest.raises(TypeError, match=message):
            save_tree(tmp_path / "tree", tree, kind="test")
        assert names(tmp_path) == []

    def test_named_tuples_are_refused(self, tmp_path):
        # They would come back as plain tuples.
        with pytest.raises(TypeError, match=r"tree: max is not a type that a file holds"):
            save_tree(tmp_path / "tree", torch.ones(1, 1).max(dim=1), kind="test")

    def test_too_long_a_skeleton_leaves_the_old_file(self, tmp_path):
        save_tree(tmp_path / "tree", 1, kind="test")
        with pytest.raises(OSError, match=r"tree: cannot be written: .*header too large"):
            save_tree(tmp_path / "tree", "x" * 100_000_000, kind="test")
        assert load_tree(tmp_path / "tree", kind="test") == 1
        assert names(tmp_path) == ["tree"]


class TestDamagedTree:
    def refused(self, path, match=None, kind="checkpoint"):
        with pytest.raises(ValueError, match=match) as caught:
            load_tree(path, kind=kind)
        message = str(caught.value)
        assert message.startswith(f"{path}: not a deepclust {kind}: ")
        assert "\n" not in message

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="run"):
            load_tree(tmp_path / "run", kind="checkpoint")

    def test_directory(self, tmp_path):
        with pytest.raises((IsADirectoryError, PermissionError)):
            load_tree(tmp_path, kind="checkpoint")

    def test_truncated_anywhere(self, tmp_path):
        save_tree(tmp_path / "run", {"x": torch.ones(9), "step": 3}, kind="checkpoint")
        whole = (tmp_path / "run").read_bytes()
        for size in range(len(whole)):
            (tmp_path / "run").write_bytes(whole[:size])
            self.refused(tmp_path / "run", "no safetensors file, or cut short")

    @pytest.mark.parametrize("content", [b"\x80\x04pickle", b"PK\x03\x04" + b"0" * 99, b"\n" * 99])
    def test_foreign(self, tmp_path, content):
        (tmp_path / "run").write_bytes(content)
        self.refused(tmp_path / "run", "no safetensors file, or cut short")

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
    def test_safetensors_of_another_program(self, tmp_path, metadata):
        save_file({"x": torch.ones(1)}, tmp_path / "run", metadata=metadata)
        self.refused(tmp_path / "run", "a safetensors file that something else has written")

    def test_other_kind(self, tmp_path):
        save_tree(tmp_path / "run", 1, kind="model")
        self.refused(tmp_path / "run", "it is a model$")

    def test_newer_format(self, tmp_path):
        about = {"format": 7, "version": "9.1", "anything": "else"}
        save_file({}, tmp_path / "run", metadata={"deepclust": json.dumps(about)})
        self.refused(tmp_path / "run", "format 7, written by deepclust 9.1; .* up to format 1$")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{}",
            '{"format": "1"}',
            '{"format": 1, "kind": "checkpoint"}',
            '{"format": 1, "kind": "checkpoint", "tree": {"tensor": "gone"}}',
            '{"format": 1, "kind": "checkpoint", "tree": {"other": 1}}',
            '{"format": 1, "kind": "checkpoint", "tree": {}}',
            '{"format": 1, "kind": "checkpoint", "tree": {"dict": [[1]]}}',
            '{"format": 1, "kind": "checkpoint", "tree": {"dict": [[[], 1]]}}',
            '{"format": 1, "kind": "checkpoint", "tree": {"float": "x"}}',
        ],
    )
    def test_damaged_metadata(self, tmp_path, text):
        save_file({}, tmp_path / "run", metadata={"deepclust": text})
        self.refused(tmp_path / "run")
