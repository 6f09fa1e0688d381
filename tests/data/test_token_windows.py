"""Windows of tokens: each token is predicted once, wherever the tokens are; files of tokens, and broken ones."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsjax import InvalidArgument
from bsjax.data import ExampleStream, JoinedTokens, TextDataset, TokenWindows, read_token_file
from bsjax.data.token_files import MAGIC

PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)
TOKENS = np.random.RandomState(0).randint(50_257, size=1000).astype(np.uint16)


@PROPERTY
@given(st.integers(2, 300), st.integers(1, 299), st.integers(0, 10))
def test_an_epoch_predicts_each_token_once_but_the_first_and_the_tail(size, context, seed):
    context = min(context, size - 1)
    source = TokenWindows(np.arange(size), context)
    stream = ExampleStream(len(source), seed)
    windows = source.gather(stream.indices(0, len(source)))["tokens"]  # an epoch
    assert windows.shape == (len(source), context + 1)
    assert source.nbytes == windows.nbytes
    predicted, tail = windows[:, 1:].ravel(), (size - 1) % context
    assert sorted(predicted.tolist()) == list(range(1, size - tail))
    assert (windows[:, 1:] - windows[:, :-1] == 1).all()  # and each from the token before it
    assert len(source) * context + tail + 1 == size


def test_indices_of_any_shape_and_copies():
    source = TokenWindows(TOKENS, 10)
    gathered = source.gather(np.array([[3, 98], [0, 3]]))["tokens"]
    assert (gathered.shape, gathered.dtype) == ((2, 2, 11), np.uint16)
    np.testing.assert_array_equal(gathered[0, 1], TOKENS[980:991])
    assert not np.shares_memory(gathered, source.tokens)


def test_memory_maps_stay_on_the_disk_and_read_the_same(tmp_path):
    TOKENS.tofile(tmp_path / "tokens.bin")
    mapped, here = TokenWindows(read_token_file(tmp_path / "tokens.bin"), 10), TokenWindows(TOKENS, 10)
    assert isinstance(mapped.tokens.base, np.memmap)
    np.testing.assert_array_equal(mapped.gather(np.arange(99))["tokens"], here.gather(np.arange(99))["tokens"])
    assert mapped.fingerprint == here.fingerprint


@PROPERTY
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 30), st.data())
def test_several_arrays_are_as_one(sizes, context, data):
    sizes = [*sizes, max(2, context + 1 - sum(sizes))]
    tokens = TOKENS[: sum(sizes)]
    joined = JoinedTokens(np.split(tokens, np.cumsum(sizes)[:-1]))
    one, several = (TokenWindows(either, context) for either in (tokens, joined))
    assert (len(several), several.nbytes, several.max_token) == (len(one), one.nbytes, one.max_token)
    assert several.fingerprint == one.fingerprint
    indices = np.array(data.draw(st.lists(st.integers(0, len(one) - 1), max_size=8)), int)
    np.testing.assert_array_equal(several.gather(indices)["tokens"], one.gather(indices)["tokens"], strict=True)
    bound = data.draw(st.integers(0, 50_257))
    assert several.first_beyond(bound) == one.first_beyond(bound)


def test_what_cannot_be_joined():
    for parts, message in (
        ([], r"parts is \[\]; it must be arrays of one dtype"),
        ([TOKENS, TOKENS.astype(np.int32)], r"parts is \['int32', 'uint16'\]; it must be arrays of one dtype"),
        ([TOKENS.astype(float)], r"parts is 'float64 \[1000\]'; it must be arrays \[n\] of whole numbers"),
    ):
        with pytest.raises(InvalidArgument, match=f"^{message}$"):
            JoinedTokens(parts)
    for index in (-1, 2000, [0, 2000]):
        with pytest.raises(IndexError, match="indices of 2,000 tokens are from 0 on"):
            JoinedTokens([TOKENS, TOKENS])[index]


def test_the_fingerprint_is_of_all_the_tokens_and_the_context():
    changed = TOKENS.copy()
    changed[-1] ^= 1  # in the tail, which no window has
    sources = [TokenWindows(TOKENS, 10), TokenWindows(changed, 10), TokenWindows(TOKENS, 11)]
    sources.append(TokenWindows(TOKENS.astype(np.int32), 10))
    assert len({source.fingerprint for source in sources}) == 4
    assert TokenWindows(TOKENS, 10, "known").fingerprint == "windows of 10, known"


def test_tokens_beyond_a_vocabulary():
    tokens = np.array([0, 5, 3, -1, 7])
    found = [TokenWindows(tokens, 2).first_beyond(size) for size in (3, 5, 6, 8)]
    assert found == [1, 1, 3, 3]
    assert TokenWindows(tokens[:3].astype(np.uint8), 2).first_beyond(6) is None
    assert TokenWindows(tokens[:3], 2).max_token == 5
    large = np.zeros((1 << 20) + 7, np.uint16)  # more than are looked at at a time
    large[-2] = 9
    assert TokenWindows(large, 2).first_beyond(9) == len(large) - 2


@pytest.mark.parametrize(
    ("tokens", "context", "message"),
    [
        (
            TOKENS,
            1000,
            "context_length is 1000; .* less than the 1,000 tokens, because .* one token more; nearest: 999",
        ),
        (TOKENS[:1], 1, "context_length is 1; it must be less than the 1 tokens, .* more$"),
        (TOKENS, 0, "context_length is 0; it must be a whole number >= 1; nearest: 1"),
        (TOKENS.astype(float), 8, r"tokens is 'float64 \[1000\]'; it must be a numpy array \[n\] of whole numbers"),
        (TOKENS.reshape(10, 100), 8, r"tokens is 'uint16 \[10, 100\]'; it must be"),
        ([1, 2, 3], 1, r"tokens is 'list \[3\]'; it must be"),
    ],
)
def test_what_has_no_windows(tokens, context, message):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        TokenWindows(tokens, context)


def test_a_context_that_one_part_of_a_text_has_no_room_for():
    text = TextDataset("text", TOKENS[:900], TOKENS[900:], vocab_size=50_257)
    assert len(text.windows(99).test) == 1
    with pytest.raises(InvalidArgument, match=r"^context_length is 100; it must be less than the 100 tok"):
        text.windows(100)


def header(count, version=1):
    return np.array([MAGIC, version, count] + [0] * 253, "<i4").tobytes()


DATA = TOKENS.tobytes()


@pytest.mark.parametrize("data", [DATA, header(1000) + DATA], ids=["nanoGPT", "with a header"])
def test_files_with_and_without_a_header(tmp_path, data):
    (tmp_path / "tokens.bin").write_bytes(data)
    tokens = read_token_file(tmp_path / "tokens.bin")
    np.testing.assert_array_equal(np.asarray(tokens), TOKENS, strict=True)
    assert isinstance(tokens, np.memmap)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "a file that exists"),
        (b"", "a file of tokens; it is empty"),
        (DATA[:-1], "a file of whole uint16 numbers; its 1,999 bytes are an odd number, so it is cut short"),
        (header(1000) + DATA[:-2], "complete: it holds 999 tokens, and its header says 1,000"),
        (header(1000) + DATA + b"00", "complete: it holds 1,001 tokens, and its header says 1,000"),
        (header(1000)[:100], "complete: its header has 100 of 1,024 bytes"),
        (header(1000, version=7) + DATA, "of version 1, uint16; its header says version 7"),
        (header(0), "a file of tokens; it has none"),
    ],
)
def test_broken_files(tmp_path, data, reason):
    path = tmp_path / "tokens.bin"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InvalidArgument, match=re.escape(f"path is '{path}'; it must be {reason}") + "$"):
        read_token_file(path)
