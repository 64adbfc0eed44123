"""Encoding, incremental decoding that never breaks a character, and stop strings."""

import itertools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pagedcore._core import InvalidArgument
from pagedcore.text import Detokenizer, StopFinder, TextStream, Tokenizer, eos_token_ids

SAMPLE = "the cat sat on the mat. né à l'été — 猫は座った 🙂🙃 the end of the story. " * 20


def byte_level():
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([SAMPLE], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": {"content": "</s>"}})


def byte_fallback():
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz.", "▁t", "▁th", "▁the", "▁c", "at", "▁cat"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, {"eos_token": "</s>"})


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}
both = pytest.mark.parametrize("kind", TOKENIZERS)


def pieces_of(tokenizer, prompt, output, **options):
    detokenizer = Detokenizer(tokenizer, prompt, **options)
    return [*(detokenizer.push(token) for token in output), detokenizer.flush()]


@both
@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="the catsonm.é猫🙂🙃—àt ", max_size=40), cut=st.integers(0, 40))
def test_joined_pieces_are_the_text_and_no_character_is_broken(kind, text, cut):
    tokenizer = TOKENIZERS[kind]
    (tokens,) = tokenizer.encode(["the " + text], add_special_tokens=False)
    cut = min(cut, len(tokens))
    while cut < len(tokens) and "\ufffd" in tokenizer.decode(tokens[:cut]):
        cut += 1
    pieces = pieces_of(tokenizer, tokens[:cut], tokens[cut:])
    assert tokenizer.decode(tokens[:cut]) + "".join(pieces) == tokenizer.decode(tokens)
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(tokens=st.lists(st.integers(2, 300), max_size=60))
def test_tokens_that_are_no_text_decode_as_they_do_at_once(tokens):
    tokenizer = TOKENIZERS["byte_level"]
    whole = tokenizer.decode(tokens)
    joined = "".join(pieces_of(tokenizer, [], tokens))
    # Sixteen pending tokens are given up on, and may end inside what is a character after all.
    assert joined == whole or "\ufffd" * 5 in whole


@both
def test_special_tokens_are_skipped_or_kept(kind):
    tokenizer = TOKENIZERS[kind]
    end = tokenizer.token_id("</s>")
    the, cat = tokenizer.encode(["the", "the cat"], add_special_tokens=False)
    output = [*cat[len(the) :], end]
    assert "".join(pieces_of(tokenizer, the, output)) == " cat"
    assert "".join(pieces_of(tokenizer, the, output, skip_special_tokens=False)) == " cat</s>"
    assert "".join(pieces_of(tokenizer, the, [end, *output])) == " cat"


def test_the_cost_of_a_token_does_not_grow():
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = Detokenizer(tokenizer, [])
    valid, broken = tokenizer.encode(["the cat ", "猫"], add_special_tokens=False)
    tokens = (valid * 10 + broken[:1] * 30) * 100
    for token in tokens:
        detokenizer.push(token)
        assert len(detokenizer._window) <= 40
    begin = time.perf_counter()
    for token in tokens:
        detokenizer.push(token)
    assert (time.perf_counter() - begin) / len(tokens) < 1e-3


def test_special_tokens_are_added_as_the_post_processor_says():
    tokenizer = TOKENIZERS["byte_level"]
    assert tokenizer.encode(["the"])[0][0] == 0
    assert 0 not in tokenizer.encode(["the"], add_special_tokens=False)[0]
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path):
    tokenizer = TOKENIZERS["byte_level"]
    backend = Backend.from_str(tokenizer._backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(["the cat sat on", "a"]) == tokenizer.encode(["the cat sat on", "a"])


def test_a_folder_without_tokenizer_gives_none_and_a_broken_one_is_named(tmp_path):
    assert Tokenizer.load(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidArgument, match=r"tokenizer\.json is not a valid tokenizer\.json"):
        Tokenizer.load(tmp_path)
    TOKENIZERS["byte_level"]._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(InvalidArgument, match=r"tokenizer_config\.json is malformed"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, {}, [1]),
        ({"eos_token_id": 7}, {}, [1, 7]),
        ({"eos_token_id": 7}, {"eos_token_id": [9, 8]}, [1, 8, 9]),
        ({"eos_token_id": None}, {}, [1]),
    ],
)
def test_eos_ids_come_from_generation_config_then_config_and_the_tokenizer(
    config, generation, expected
):
    assert eos_token_ids(config, generation, TOKENIZERS["byte_level"]) == expected
    assert eos_token_ids(config, generation, None) == [i for i in expected if i != 1]


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abc", max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=6),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    include=st.booleans(),
)
def test_a_stop_string_is_found_wherever_the_text_is_cut(text, cuts, stops, include):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    finder = StopFinder(stops, include_stop=include)
    out = ""
    for begin, end in itertools.pairwise(edges):
        out += finder.push(text[begin:end])
        if finder.found:
            break
    else:
        out += finder.flush()
    if not any(stop in text for stop in stops):
        assert (out, finder.found) == (text, None)
        return
    assert finder.found in stops
    ends_with_stop = out if include else out + finder.found
    assert ends_with_stop.endswith(finder.found)
    assert text.startswith(ends_with_stop)


def test_text_that_may_begin_a_stop_string_is_held_back():
    finder = StopFinder(["\n\nUser:"])
    assert finder.push("Hello\n") == "Hello"
    assert finder.push("\nUs") == ""
    assert finder.push("ual") == "\n\nUsual"
    assert finder.push("\n\nUser: hi") == ""
    assert finder.found == "\n\nUser:"


def stream_of(text, stops, **options):
    tokenizer = TOKENIZERS["byte_level"]
    (tokens,) = tokenizer.encode([text], add_special_tokens=False)
    stream = TextStream(Detokenizer(tokenizer, []), StopFinder(stops), **options)
    for token in tokens:
        if stream.push(token):
            break
    stream.finish()
    return stream


def test_a_stream_ends_before_its_stop_string_across_token_borders():
    stream = stream_of("the cat sat on the mat", ["t s", "mat"])
    assert stream.text == "the ca"


def test_stop_strings_are_ignored_until_min_tokens():
    stream = stream_of("the cat the mat the end", ["the"], min_tokens=4)
    assert stream.text.startswith("the cat")
    assert stream.text.count("the") < 3


def test_what_was_held_back_comes_out_at_the_end():
    stream = stream_of("the cat", ["cats"])
    assert stream.text == "the cat"
    first, position = stream.take(0)
    assert first == "the cat"
    assert stream.take(position) == ("", position)


def test_settings_may_be_plain_strings_or_objects(tmp_path):
    TOKENIZERS["byte_level"]._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<old>"}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}})
    )
    loaded = Tokenizer.load(tmp_path)
    assert loaded.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
