"""Own text and files of tokens become data sets, which are read as they were written."""

import json
import os
import re

import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.data import TextDataset, cache, load_dataset, prepare_text

TEXT = "Ça ira. Ah! 你好, 世界.\r\n" * 40
RANDOM = np.random.RandomState(0)


def parts(dataset):
    return [np.asarray(dataset.train_tokens), np.asarray(dataset.test_tokens)]


def test_characters(tmp_path):
    (tmp_path / "input.txt").write_bytes(TEXT.encode())
    dataset, source = prepare_text.read_text("mine", tmp_path / "input.txt", test_share=0.25)
    assert dataset.vocabulary == tuple(sorted(set(TEXT)))
    assert dataset.vocab_size == len(set(TEXT))
    assert dataset.train_tokens.dtype == np.uint8
    assert "".join(dataset.vocabulary[token] for token in np.concatenate(parts(dataset))) == TEXT
    assert len(dataset.train_tokens) == 0.75 * len(TEXT)
    held_out = TEXT[len(dataset.train_tokens) :]
    assert dataset.bytes_per_token == pytest.approx(len(held_out.encode()) / len(held_out))
    assert source["flags"] == {"tokens": "characters", "test_share": 0.25}
    assert source["md5"].keys() == {"input.txt"}


def test_bytes_of_a_folder_in_the_order_of_the_names(tmp_path):
    for name, data in (("b.txt", b"\xff\x00second"), ("a.txt", b"first"), ("c.md", b"not this")):
        (tmp_path / name).write_bytes(data)
    assert prepare_text.is_text(tmp_path)
    dataset, _ = prepare_text.read_text("mine", tmp_path, "bytes")
    assert np.concatenate(parts(dataset)).tobytes() == b"first\xff\x00second"
    assert (dataset.vocab_size, dataset.vocabulary, dataset.bytes_per_token) == (256, (), 1.0)


def test_many_characters_take_two_bytes(tmp_path):
    (tmp_path / "input.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 300))), encoding="utf-8")
    dataset, _ = prepare_text.read_text("mine", tmp_path / "input.txt")
    assert dataset.train_tokens.dtype == np.uint16
    assert dataset.bytes_per_token == 3


def test_token_files(tmp_path):
    one, two, val = (RANDOM.randint(1000, size=size).astype(np.uint16) for size in (500, 300, 100))
    one[17] = 1234
    for name, tokens in (("fineweb_train_000001", one), ("fineweb_train_000002", two), ("fineweb_val_000000", val)):
        tokens.tofile(tmp_path / f"{name}.bin")
    assert prepare_text.is_text(tmp_path)
    dataset, source = prepare_text.read_text("web", tmp_path)
    assert all(isinstance(part.base, np.memmap) for part in dataset.train_tokens.parts)  # nothing is in memory
    cache.write(dataset, tmp_path / "data", source)
    for read in (dataset, load_dataset("web", tmp_path / "data")):
        np.testing.assert_array_equal(read.train_tokens[np.arange(800)], np.concatenate([one, two]), strict=True)
        np.testing.assert_array_equal(read.test_tokens[:], val, strict=True)
    assert isinstance(read.train_tokens.base, np.memmap)
    assert (dataset.vocab_size, dataset.vocabulary, dataset.bytes_per_token) == (1235, (), None)
    assert prepare_text.read_text("web", tmp_path, vocab_size=50_257).dataset.vocab_size == 50_257
    assert list(source["md5"]) == ["fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin"]

    single, _ = prepare_text.read_text("web", tmp_path / "fineweb_train_000001.bin", test_share=0.2)
    assert list(map(len, parts(single))) == [400, 100]
    with pytest.raises(InvalidArgument, match=r"source is '.*_000001.bin'; .* in \[0, 1200\); its token 17 is 1234$"):
        prepare_text.read_text("web", tmp_path, vocab_size=1200)


def test_folders_of_images_are_no_text(tmp_path):
    for name in ("data_batch_1.bin", "test_batch.bin", "train.bin", "test.bin", "batches.meta.txt"):  # of CIFAR
        (tmp_path / name).touch()
    assert not prepare_text.is_text(tmp_path)
    assert not prepare_text.is_text(tmp_path / "cifar-10-python.tar.gz")


def write(folder, data, name="input.txt"):
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"abc\xffdef", {}, "source is '.*'; it must be text in UTF-8; its byte 3 is 0xff; --tokens=bytes takes any"),
        (b"abcd", {"tokens": "byte"}, "tokens is 'byte'; it must be one of characters, bytes; nearest: bytes"),
        (b"abcd", {"test_share": 1.0}, r"test_share is 1.0; it must be in \(0, 1\); nearest: 0.1"),
        (b"abcd", {"vocab_size": 9}, "vocab_size is 9; it must be left out for a text"),
        (
            b"abcd",
            {},
            "source is '.*'; it must be of more than 4 tokens: 0.1 of them are held out, and each part needs",
        ),
        (b"", {}, "source is '.*'; it must be of more than 0 tokens"),
    ],
)
def test_bad_text(tmp_path, data, options, message):
    with pytest.raises(InvalidArgument, match=f"^{message}") as error:
        prepare_text.read_text("mine", write(tmp_path, data), **options)
    assert "\n" not in str(error.value)


def test_bad_token_files(tmp_path):
    path = write(tmp_path, b"abc", "train.bin")
    with pytest.raises(InvalidArgument, match=r"^source is '.*train.bin'; .* 3 bytes are an odd number"):
        prepare_text.read_text("web", path)
    with pytest.raises(InvalidArgument, match=r"^source is '.*'; it must be a folder with both"):
        prepare_text.read_text("web", tmp_path)
    with pytest.raises(InvalidArgument, match=r"^tokens is 'bytes'; it must be left out for .*, which holds tokens"):
        prepare_text.read_text("web", path, "bytes")
    (tmp_path / "val.bin").touch()
    with pytest.raises(InvalidArgument, match=r"^test_share is 0.2; it must be left out for .*, whose \*val\*.bin is"):
        prepare_text.read_text("web", tmp_path, test_share=0.2)
    with pytest.raises(InvalidArgument, match=r"^source is '.*trian.bin'; .* exists; nearest: train.bin$"):
        prepare_text.read_text("web", tmp_path / "trian.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match=r"^source is '.*empty'; it must be a folder of .txt files, or"):
        prepare_text.read_text("web", tmp_path / "empty", "bytes")


def test_what_is_written_is_read_without_copying_it_to_memory(tmp_path):
    path = write(tmp_path, TEXT.encode())
    dataset, source = prepare_text.read_text("mine", path)
    folder = cache.write(dataset, tmp_path / "data", source)
    assert sorted(os.listdir(folder)) == ["dataset.json", "test_tokens.npy", "train_tokens.npy"]
    found = load_dataset("mine", tmp_path / "data")
    assert isinstance(found, TextDataset)
    assert isinstance(found.train_tokens.base, np.memmap)
    for one, other in zip(parts(found), parts(dataset), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    for name in ("name", "vocab_size", "vocabulary", "bytes_per_token"):
        assert getattr(found, name) == getattr(dataset, name)
    assert found.windows(8).train.fingerprint != found.windows(8).test.fingerprint
    assert found.windows(8).train.fingerprint.startswith("windows of 8, token uint8 ")
    assert json.loads((folder / "dataset.json").read_text())["source"]["kind"] == "text, characters"

    (folder / "test_tokens.npy").write_bytes((folder / "test_tokens.npy").read_bytes()[:-1])
    command = f"scripts/prepare_data.py --dataset=mine --source={path} --tokens=characters --test_share=0.1 --data_dir="
    with pytest.raises(InvalidArgument, match=rf"test_tokens.npy has .* bytes instead of .*{re.escape(command)}"):
        load_dataset("mine", tmp_path / "data")


def test_the_script(tmp_path, run_python):
    path, script = (
        write(tmp_path, TEXT.encode()),
        ["scripts/prepare_data.py", "--dataset=mine", f"--data_dir={tmp_path}"],
    )
    result = run_python(*script, f"--source={path}", "--test_share=0.5")
    assert result.returncode == 0, result.stderr
    half = len(TEXT) // 2
    assert f"  {half:,} tokens to train on, {half:,} to test on\n  {len(set(TEXT))} different tokens: " in result.stdout
    again = run_python(*script)
    assert "It is intact; remove that folder to prepare it again." in again.stdout
    wrong = run_python(script[0], "--dataset=other", script[2], f"--source={tmp_path}/mine", "--vocab_size=9")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "error: --vocab_size is 9; it must be combined with a text as --source, not" in wrong.stderr
