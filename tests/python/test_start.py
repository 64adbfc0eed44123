"""Packages that take long to import are imported where they are needed, and not before."""

import subprocess
import sys

SLOW = {"asyncio", "huggingface_hub", "importlib.metadata", "jinja2", "numpy", "rich"}
SLOW |= {"tokenizers", "torch", "tqdm"}

SERVE_TOKENS = """
from pagedcore import LLM, SHIPPED_MODEL, SamplingParams
llm = LLM(SHIPPED_MODEL, num_blocks=16, num_threads=1)
llm.generate([5, 6, 7], SamplingParams(max_tokens=2), use_tqdm=False)
"""


def imported_by(*arguments):
    """Which of the slow packages a fresh interpreter imports when it is run so."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return SLOW & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_importing_pagedcore_imports_no_slow_package():
    assert imported_by("-c", "import pagedcore") == set()


def test_serving_token_ids_imports_what_reads_tokenizer_and_chat_template_alone():
    assert imported_by("-c", SERVE_TOKENS) == {"jinja2", "tokenizers"}


def test_the_help_of_the_command_line_imports_no_slow_package():
    assert imported_by("-m", "pagedcore", "--help") == set()


def test_ops_are_there_once_pagedcore_is_imported():
    assert "numpy" in imported_by("-c", "import pagedcore; pagedcore.ops.paged_attention")
    assert "numpy" in imported_by("-c", "from pagedcore import ops; ops.paged_attention")
