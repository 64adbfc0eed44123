"""The live view of --watch, drawn on consoles that keep what they show."""

import io
import json
import sys

import pytest

from pagedcore import LLM, SHIPPED_MODEL, SamplingParams
from pagedcore.cli import main

console_module = pytest.importorskip("rich.console")
from pagedcore.cli import watch  # noqa: E402

SMALL = ["--kv-cache", "4M", "--threads", "1"]


class Clock:
    """Seconds that pass only when asked to, and `tick` of them with every look."""

    def __init__(self):
        self.now = self.tick = 0.0

    def __call__(self):
        self.now += self.tick
        return self.now


@pytest.fixture
def llm():
    return LLM(SHIPPED_MODEL, num_blocks=64, num_threads=1)


def console(width=80, height=40, *, terminal=True):
    return console_module.Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=height, color_system=None
    )


def frames(shown):
    """What was drawn, one text a frame."""
    return shown.file.getvalue().split("╭")[1:]


def generate(llm, prompts=("One day,",), **params):
    params = {"max_tokens": 12, "temperature": 0, "ignore_eos": True} | params
    return llm.generate(list(prompts), SamplingParams(**params), use_tqdm=False)


def test_the_view_shows_blocks_speed_and_sequences(llm):
    shown, clock = console(), Clock()
    with watch.Watch(llm, shown, clock):
        generate(llm, ["One day,", "A fox", "The sea"], max_tokens=2)
        clock.now = 2.0
        generate(llm, ["One day, a fox went to the old mill"], max_tokens=1, n=4)
    first, last = frames(shown)[0], frames(shown)[-1]
    assert "cpu (" in first
    assert "3 held" in first
    assert "61 free" in first
    assert "64 blocks of 16 tokens" in first
    assert "3 running" in first
    assert first.count("running") == 1 + 3  # the count, and each sequence's state
    assert "0 held" in last
    assert "5 tokens/s out" in last  # 3 x 2 and 4 x 1 in two seconds


def test_the_map_has_a_character_a_block_and_tells_shared_from_held(llm):
    prompt = [5] * 40  # two full blocks and a half
    request = llm.engine.add_request(prompt, SamplingParams(n=2, seed=1, ignore_eos=True).core)
    llm.engine.step()
    llm.engine.step()
    text = watch.block_map(llm.engine.kv_map(), width=32, max_lines=4)
    assert [len(line) for line in text.plain.split("\n")] == [32, 32]
    lengths = {kind: 0 for kind in watch._STYLES.values()}
    for span in text.spans:
        lengths[span.style] += span.end - span.start
    assert lengths[watch._STYLES["shared"]] == 2
    assert lengths[watch._STYLES["held"]] == 2
    llm.engine.abort(request)
    text = watch.block_map(llm.engine.kv_map(), width=32, max_lines=1)
    assert len(text.plain) == 32  # two blocks a character
    assert text.plain.count("░") >= 1


@pytest.mark.parametrize("width", [12, 30, 61])
def test_no_line_is_wider_than_the_terminal(llm, width):
    shown = console(width, height=99)
    with watch.Watch(llm, shown, Clock()):
        generate(llm)
    for frame in frames(shown):
        assert all(len(line) <= width for line in ("╭" + frame).split("╯")[0].splitlines())


def test_a_pipe_gets_one_plain_picture_at_the_end(llm):
    shown = console(terminal=False)
    with watch.Watch(llm, shown, Clock()):
        generate(llm)
    assert len(frames(shown)) == 1
    assert "\x1b" not in shown.file.getvalue()


def test_drawing_waits_for_its_time_and_takes_a_small_share_of_it(llm):
    shown, clock = console(), Clock()
    with watch.Watch(llm, shown, clock) as view:
        before = len(frames(shown))
        for _ in range(100):
            clock.now += 0.0101
            view.update()
        assert len(frames(shown)) == before + 5  # in a second
        clock.tick = 0.5  # what a draw takes now
        view.update()
        clock.tick = 0.0
        before = len(frames(shown))
        for _ in range(200):
            clock.now += 0.1
            view.update()
        assert len(frames(shown)) == before
        clock.now += 20
        view.update()
        assert len(frames(shown)) == before + 1


def test_the_model_is_left_as_it_was(llm):
    with pytest.raises(KeyboardInterrupt), watch.Watch(llm, console(), Clock()):
        assert llm.on_step is not None
        raise KeyboardInterrupt
    assert llm.on_step is None


def test_watched_output_is_the_same_and_apart_from_the_view(capsys):
    args = ["generate", "One day,", "A fox", "--greedy", "--max-tokens", "9", "--json", *SMALL]
    assert main(args) == 0
    plain = capsys.readouterr().out
    assert main([*args, "--watch"]) == 0
    watched = capsys.readouterr()
    assert watched.out == plain
    assert "tokens/s out" in watched.err


def test_bench_can_be_watched(capsys):
    lengths = ["--num-prompts", "3", "--prompt-len", "8", "--output-len", "4"]
    assert main(["bench", *lengths, "--no-probe", "--json", "--watch", *SMALL]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["requests"] == 3
    assert "blocks of 16 tokens" in captured.err


def test_without_rich_the_error_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["generate", "One", "--max-tokens", "2", "--watch", *SMALL]) == 2
    assert "pip install 'pagedcore[watch]'" in capsys.readouterr().err


def test_watch_and_stream_exclude_each_other(capsys):
    assert main(["generate", "One", "--stream", "--watch", *SMALL]) == 2
    assert "without --json and --watch" in capsys.readouterr().err
