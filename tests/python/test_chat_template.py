"""Chat templates: as transformers renders them, and in a sandbox."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from pagedcore._core import InvalidArgument
from pagedcore.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] }}<|im_end|>\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{- bos_token }}{%- if tools %}{{ tools | tojson(indent=2) }}{% endif -%}"
    "{%- for m in messages %}{%- if m.role == 'skip' %}{% continue %}{% endif %}"
    "{%- if m.role == 'assistant' %}{% generation %}[{{ m.content | trim }}]{% endgeneration %}"
    "{%- else %}({{ m.content | trim }}){% endif %}{%- endfor %}{{ eos_token }}"
)
TALK = [
    {"role": "user", "content": " Hi <there> & é "},
    {"role": "skip", "content": "not this"},
    {"role": "assistant", "content": "Hello"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("template", [CHATML, LLAMA])
@pytest.mark.parametrize("tools", [None, [{"name": "f", "text": "<é>"}]])
@pytest.mark.parametrize("add", [True, False])
def test_a_template_renders_as_transformers_renders_it(template, tools, add):
    ours = ChatTemplate(template, SPECIAL).render(TALK, add_generation_prompt=add, tools=tools)
    theirs, _ = render_jinja_template(
        [TALK], chat_template=template, tools=tools, add_generation_prompt=add, **SPECIAL
    )
    assert [ours] == theirs


def test_a_template_may_refuse_a_conversation_and_ask_for_the_date():
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidArgument, match="refused the messages: roles must alternate"):
        ChatTemplate(refusing, {}).render(TALK)
    assert len(ChatTemplate("{{ strftime_now('%Y') }}", {}).render(TALK)) == 4


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack):
    with pytest.raises(InvalidArgument, match="refused the messages"):
        ChatTemplate(attack, {}).render(TALK)


def test_a_template_that_is_not_jinja_is_refused():
    with pytest.raises(InvalidArgument, match="not valid jinja2"):
        ChatTemplate("{% if %}", {})


def test_content_that_a_template_cannot_take_is_refused():
    template = ChatTemplate("{{ 'Say ' + messages[0]['content'] }}", {})
    with pytest.raises(InvalidArgument, match="refused the messages: can only concatenate str"):
        template.render([{"role": "user", "content": 5}])


@pytest.mark.parametrize("messages", [[], "hi", {"role": "user"}, None])
def test_a_conversation_must_be_a_list_of_messages(messages):
    with pytest.raises(InvalidArgument, match="messages must be a list like"):
        ChatTemplate(CHATML, {}).render(messages)


def test_a_message_needs_a_role():
    with pytest.raises(InvalidArgument, match=r'messages\[1\] must be a mapping with a "role"'):
        ChatTemplate(CHATML, {}).render([TALK[0], {"content": "x"}])


def test_templates_are_found_in_every_place(tmp_path):
    assert ChatTemplate.load(tmp_path, {}, {}) is None
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    assert ChatTemplate.load(tmp_path, {"chat_template": named}, {}).render(TALK) == "D"
    assert ChatTemplate.load(tmp_path, {"chat_template": "S"}, {}).render(TALK) == "S"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert ChatTemplate.load(tmp_path, {"chat_template": "S"}, {}).render(TALK) == "F"
