"""The command line, as a user types it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

import pagedcore
from pagedcore import LLM, SHIPPED_MODEL, SamplingParams
from pagedcore.cli import main
from pagedcore.cli.options import byte_size, show_bytes

SMALL = ["--kv-cache", "4M", "--threads", "1"]
SUGGESTED = {"temperature": 0.8, "top_p": 0.95}  # by the shipped model
COMMANDS = ("generate", "chat", "bench", "info")


def run(*args, code=0, stdin=""):
    command = [sys.executable, "-m", "pagedcore", *args]
    done = subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=120)
    assert done.returncode == code, done.stderr
    return done


def call(capsys, *args):
    """(exit code, stdout, stderr) of a command in this process, which is quicker."""
    try:
        code = main(args)
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def expected():
    llm = LLM(SHIPPED_MODEL, kv_cache_bytes=4 << 20, num_threads=1)

    def text(prompt, **params):
        params = SamplingParams(**{"temperature": 0, "max_tokens": 12, **params})
        return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].text

    return text


def test_generate_prints_prompt_and_text_of_the_shipped_model(expected):
    done = run("generate", "Once upon a time", "--greedy", "--max-tokens", "12", *SMALL)
    assert done.stdout == f"Once upon a time{expected('Once upon a time')}\n"
    assert done.stderr == ""


@pytest.mark.parametrize("extra", [["--stream"], ["--no-stream"]])
def test_generate_reads_stdin_and_prints_the_same_streamed_or_not(extra, expected):
    args = ("--greedy", "--max-tokens", "12", "--no-echo", "--stats")
    done = run("generate", *args, *SMALL, *extra, stdin="One day,\n")
    assert done.stdout == expected("One day,") + "\n"
    assert re.search(r"12 tokens in .* tok/s", done.stderr)


def test_generate_takes_several_prompts_as_json(capsys, expected):
    args = ("--greedy", "--max-tokens", "12", "--json", *SMALL)
    code, out, _ = call(capsys, "generate", "One day,", "A fox", *args)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["prompt"] for line in lines] == ["One day,", "A fox"]
    assert [line["outputs"][0]["text"] for line in lines] == [
        expected("One day,"),
        expected("A fox"),
    ]
    assert lines[0]["outputs"][0]["finish_reason"] == "length"


def test_generate_takes_a_prompt_a_line_and_several_texts_a_prompt():
    args = ("generate", "--lines", "-n", "2", "--seed", "1", "--max-tokens", "3", *SMALL)
    assert len(run(*args, stdin="One\n\nTwo\n").stdout.split("---\n")) == 4


def test_seeds_and_stop_strings_reach_the_sampler(capsys, expected):
    args = ("generate", "One day,", "--no-echo", *SMALL)
    code, out, _ = call(capsys, *args, "--seed", "9", "-t", "0.9", "--max-tokens", "12")
    assert (code, out) == (0, expected("One day,", seed=9, temperature=0.9, top_p=0.95) + "\n")
    stop = expected("One day,")[5:8]
    code, out, _ = call(capsys, *args, "--greedy", "--max-tokens", "12", "--stop", stop)
    assert (code, out) == (0, expected("One day,").split(stop)[0] + "\n")


def test_generate_prints_the_best_beam(capsys, expected):
    args = ("generate", "One day,", "--no-echo", "--max-tokens", "12", *SMALL)
    code, out, _ = call(capsys, *args, "--beam-width", "3", "--length-penalty", "0.5")
    text = expected("One day,", beam_width=3, length_penalty=0.5, **SUGGESTED)
    assert (code, out) == (0, text + "\n")


def test_chat_answers_from_a_pipe(expected):
    done = run("chat", "--greedy", "--max-tokens", "8", *SMALL, stdin="Tell me a story.\n/reset\n")
    llm = LLM(SHIPPED_MODEL, kv_cache_bytes=4 << 20, num_threads=1)
    prompt = [{"role": "user", "content": "Tell me a story."}]
    params = SamplingParams(temperature=0, max_tokens=8)
    assert done.stdout == llm.chat(prompt, params, use_tqdm=False)[0].outputs[0].text + "\n"


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
            environment = {**os.environ, "TERM": "dumb"}
            os.execvpe(sys.executable, [sys.executable, "-m", "pagedcore", *args], environment)
        self.text = ""

    def wait_for(self, pattern, seconds=60, while_silent=lambda: None):
        """Reads until the pattern appears after what was waited for before; gives what it read."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text, re.DOTALL)):
            assert time.monotonic() < end, f"{pattern!r} not in {self.text!r}"
            if select.select([self.fd], [], [], 1.0)[0]:
                self.text += os.read(self.fd, 4096).decode(errors="replace")
            else:
                while_silent()
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def type(self, text):
        os.write(self.fd, text.encode())

    def exit_code(self):
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_ctrl_c_ends_the_answer_and_not_the_chat():
    terminal = Terminal("chat", "--ignore-eos", "--max-tokens", "900", *SMALL)
    terminal.wait_for("Type a message.*> ")
    terminal.type("Tell me a story.\n")
    terminal.wait_for(r"story\.\r\n\S.{20}")
    os.kill(terminal.pid, signal.SIGINT)
    terminal.wait_for(r"\r\n> ")
    terminal.type("/help\n")
    assert "/quit" in terminal.wait_for("Ctrl-C ends the answer.*> ")
    # readline sleeps on if a signal comes after it printed the prompt and before it waits for keys.
    terminal.wait_for("/quit leaves.*> ", while_silent=lambda: os.kill(terminal.pid, signal.SIGINT))
    terminal.type("/quit\n")
    assert terminal.exit_code() == 0


def test_ctrl_c_ends_generate_with_its_own_exit_code():
    terminal = Terminal("generate", "One", "--ignore-eos", "--max-tokens", "1000", *SMALL)
    terminal.wait_for("One .{20}")
    os.kill(terminal.pid, signal.SIGINT)
    code = terminal.exit_code()
    assert code == 130 or (code == 0 and not terminal.text)  # 0: it was done already


def test_info_shows_the_model_and_its_exact_memory(capsys):
    code, out, _ = call(capsys, "info", "--json", "--kv-cache", "8M", "--block-size", "32")
    facts = json.loads(out)
    llm = LLM(SHIPPED_MODEL, kv_cache_bytes=8 << 20, block_size=32)
    assert code == 0
    assert facts["memory"]["allocated_bytes"] == llm.engine.allocated_bytes
    assert facts["model"]["architecture"] == "LlamaForCausalLM"
    assert facts["backends"]["cpu"].startswith("cpu (")
    assert "blocks" in call(capsys, "info")[1]


def test_version_and_prefix(capsys):
    assert call(capsys, "--version")[1] == f"pagedcore {pagedcore.__version__}\n"
    code, out, _ = call(capsys, "--prefix")
    assert code == 0
    assert os.path.isfile(os.path.join(out.strip(), "__init__.py"))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples_and_says_the_defaults(capsys, command):
    code, out, _ = call(capsys, *[part for part in (command, "--help") if part])
    assert code == 0
    assert "examples:\n  pagedcore " in out
    assert max(map(len, out.splitlines())) <= 100
    if command:
        assert "(default: 16)" in out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        (["generate", "x", "--top-k", "many"], 2, "argument --top-k: invalid int value: 'many'"),
        (["generate", "x", "--kv-cache", "big"], 2, "'big' is not a size like 512M or 2G"),
        (["generate", "x", "--kv-cache", "inf"], 2, "'inf' is not a size like 512M or 2G"),
        (["generate", "x", "--lines"], 2, "--lines reads prompts from stdin"),
        (["generate", "x\udcff"], 2, "text must be valid Unicode, it holds '\\udcff' at place 1"),
        (["bench", "--seed", "-1"], 2, "--seed must be at least 0, got -1"),
        (["generate", "x", "--temperature", "-1"], 2, "temperature must be a finite number"),
        (["generate", "x", "--model", "./nowhere"], 2, "model folder './nowhere' does not exist"),
        (["generate", "x", "y", "--stream"], 2, "--stream needs one prompt"),
        (["generate", "x", "--device", "cuda"], 1, "no CUDA"),
        (["info", "--block-size", "3"], 2, "block_size must be a power of two"),
    ],
)
def test_errors_take_one_line_and_have_exit_codes(capsys, args, code, message):
    found, out, err = call(capsys, *args)
    if code == 1 and found == 0:
        pytest.skip("this build has CUDA")
    assert found == code
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""


def test_an_empty_stdin_is_refused():
    assert "stdin is empty" in run("generate", code=2).stderr


def test_a_closed_pipe_is_no_error():
    command = (
        f"{sys.executable} -m pagedcore generate A B C --max-tokens 50 --threads 1 | head -n 1"
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("A")


@pytest.mark.parametrize(
    ("text", "count"),
    [("512", 512), ("4k", 4096), ("1.5G", 3 << 29), ("2GiB", 2 << 30), ("1MB", 1 << 20)],
)
def test_sizes_are_read(text, count):
    assert byte_size(text) == count


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_are_shown(count, text):
    assert show_bytes(count) == text


def test_bench_measures_a_trace(capsys, tmp_path):
    (tmp_path / "trace").write_text("# prompt output\n20 5\n900 300\n7 3\n")
    args = ("bench", "--trace", str(tmp_path / "trace"), "--limit", "2", "--json", *SMALL)
    code, out, _ = call(capsys, *args)
    facts = json.loads(out)
    assert code == 0
    assert (facts["requests"], facts["prompt_tokens"], facts["output_tokens"]) == (2, 744, 305)
    assert facts["output_tokens_per_second"] == pytest.approx(305 / facts["seconds"])
    assert 0 < facts["share_of_limit_percent"] < 150
    assert 0 < facts["first_token_ms_median"] < 1e3 * facts["seconds"]
    (tmp_path / "trace").write_text("20\n")
    code, _, err = call(capsys, *args)
    assert (code, len(err.splitlines())) == (2, 1)
    assert 'is no list of "prompt output" lines' in err
