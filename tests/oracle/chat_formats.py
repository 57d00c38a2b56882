"""What mlx-lm does to texts in Python: chats without Jinja, and line breaks; for `tests/models/text.rs`.

    python chat_formats.py   # mlx-lm 0.32.2

Writes `tests/fixtures/text/deepseek_v32.json`: conversations with what mlx-lm's tokenizer makes of them, or
its error. The tokenizer is the one of `bytelevel`, with marks of thoughts where `marks` says so. And
`newline.json`: texts, ids and decoded texts of `NewlineTokenizer` and of its base, from the same file, with
`<n>` as one token where `token` says so. The class gets the file itself: `from_pretrained` of transformers
5 drops the decoder of classes that it does not know.
"""

import copy
import json
import shutil
import tempfile
from pathlib import Path

from mlx_lm.server import process_message_content
from mlx_lm.tokenizer_utils import NewlineTokenizer, load
from transformers import PreTrainedTokenizerFast

TEXT = Path(__file__).resolve().parent.parent / "fixtures" / "text"


def say(role, content, **more):
    return dict(role=role, content=content, **more)


def calls(*pairs):
    return [dict(type="function", id=f"call_{i}", function=dict(name=name, arguments=text)) for i, (name, text) in enumerate(pairs)]


PARAMETERS = dict(type="object", properties=dict(city=dict(type="string", description="e.g. Zürich, \"東京\"\n"), days=dict(type="integer", default=1e20)), required=["city"])
TOOLS = [
    dict(type="function", function=dict(name="get_weather", description="Météo <b>& more</b> \u007f\u0001 \\", parameters=PARAMETERS)),
    dict(type="function", function=dict(name="bare", parameters={}, strict=None, x=[True, 1.5, 1e-7, []])),
]
SCHEMA = dict(type="json_schema", json_schema=dict(name="é", schema=dict(type="object")))
SYSTEM, HELLO, MORE = say("system", "Be brief."), say("user", "Hello!"), say("user", "And 東京?\n")
ANSWER = say("assistant", "Hi 🦀.", reasoning_content="They greet.\nSo do I.")
ONE = say("assistant", None, tool_calls=calls(("get_weather", '{"city": "Zürich \\"x\\" <b>", "days": 2}')), reasoning_content="Look it up.")
TWO = say("assistant", "Wait.", tool_calls=calls(("get_weather", '{"city": "東京", "z": null, "deep": {"a": [1, 2.0, "é"], "b": {}}, "on": true, "city": "Bern"}'), ("bare", "{}")))
RESULT, OTHER = say("tool", '{"degrees": -3}', tool_call_id="call_0"), say("tool", "", tool_call_id="call_1")
ON, OFF = dict(enable_thinking=True), dict(enable_thinking=False)


def case(*messages, marks=True, kwargs=None, tools=None, generate=True, go_on=False):
    return dict(messages=messages, marks=marks, kwargs=kwargs or {}, tools=tools, add_generation_prompt=generate, continue_final_message=go_on)


CASES = [
    case(HELLO),
    case(HELLO, marks=False),
    case(HELLO, kwargs=ON, marks=False),
    case(HELLO, kwargs=OFF),
    case(SYSTEM, HELLO),
    case(SYSTEM, HELLO, kwargs=OFF, generate=False),
    case(SYSTEM, HELLO, generate=False),
    case(say("system", ""), say("user", "")),
    case(say("system", None), say("user", None), kwargs=OFF),
    case(SYSTEM, HELLO, ANSWER, MORE),
    case(SYSTEM, HELLO, ANSWER, MORE, kwargs=OFF),
    case(HELLO, ANSWER, MORE, kwargs=dict(drop_thinking=False)),
    case(HELLO, ANSWER),
    case(HELLO, ANSWER, generate=False, go_on=True),
    case(HELLO, ANSWER, generate=False, go_on=True, kwargs=OFF),
    case(HELLO, ANSWER, generate=False),
    case(HELLO, generate=False, go_on=True),
    case(HELLO, go_on=True),
    case(HELLO, say("assistant", "Hi.")),
    case(HELLO, say("assistant", ""), MORE, kwargs=OFF),
    case(SYSTEM, HELLO, tools=TOOLS),
    case(say("system", ""), HELLO, tools=TOOLS, kwargs=OFF),
    case(HELLO, tools=TOOLS),
    case(SYSTEM, HELLO, tools=[]),
    case(say("system", "x", tools=TOOLS[1:], response_format=SCHEMA), HELLO),
    case(say("system", "x", tools=TOOLS[1:]), HELLO, tools=TOOLS[:1]),
    case(SYSTEM, HELLO, ONE, RESULT, tools=TOOLS),
    case(SYSTEM, HELLO, ONE, RESULT, tools=TOOLS, kwargs=OFF),
    case(SYSTEM, HELLO, ONE, RESULT, ANSWER, MORE, tools=TOOLS),
    case(SYSTEM, HELLO, TWO, RESULT, OTHER),
    case(SYSTEM, HELLO, TWO, RESULT),
    case(HELLO, TWO, RESULT, OTHER, ONE, RESULT, ANSWER, MORE, TWO, OTHER, RESULT),
    case(HELLO, TWO, RESULT, OTHER, ONE, RESULT, kwargs=OFF),
    case(HELLO, TWO, RESULT, OTHER, RESULT),
    case(HELLO, RESULT),
    case(RESULT),
    case(HELLO, ONE, MORE, RESULT),
    case(HELLO, ONE, generate=False, go_on=True),
    case(say("developer", "Do it.", tools=TOOLS[:1], response_format=SCHEMA)),
    case(SYSTEM, say("developer", "Do it."), kwargs=OFF),
    case(say("developer", "")),
    case(say("developer", "Do it."), ANSWER, MORE),
    case(say("developer", "Do it."), ANSWER, MORE, kwargs=OFF),
    case(say("developer", "Do it."), ANSWER, MORE, kwargs=dict(drop_thinking=False)),
    case(say("critic", "No."), kwargs=OFF),
    case(say("critic", "No."), HELLO),
    case(HELLO, SYSTEM, MORE, SYSTEM),
    case(say("user", [dict(type="text", text="in "), dict(type="text", text="parts")])),
    case(say("user", [dict(type="image_url", image_url="x")])),
    case(HELLO, kwargs=dict(add_default_bos_token=False)),
    case(MORE, kwargs=dict(context=[SYSTEM, HELLO, ANSWER])),
    case(RESULT, OTHER, kwargs=dict(context=[HELLO, TWO])),
    case(OTHER, kwargs=dict(context=[HELLO, TWO, RESULT], enable_thinking=False)),
    case(HELLO, kwargs=dict(level=7)),
    case(HELLO, say("assistant", "", tool_calls=calls(("f", "[1]")))),
    case(HELLO, say("assistant", "", tool_calls=calls(("f", "{")))),
    case(HELLO, say("assistant", "", tool_calls=[dict(function=dict(arguments="{}"))])),
    case(HELLO, say("assistant", "x", tool_calls=[], reasoning_content="")),
    case(SYSTEM, HELLO, tools=[dict(name="flat")]),
    case(say("user", "<｜User｜> {braces} {0} %s </think> \u2028\u0000"), generate=False),
    case(),
    case(generate=False),
]


TEXTS = ["", "a\nb", "a<n>b", "\n\nx\r\n", "<", "a <n", "<n >", "é<n<n>\n", "東京\n🦀<", "\\n"]


def add(path, contents):
    state = json.loads(path.read_text())
    flags = state["added_tokens"][0] | dict(special=False)
    first = max(state["model"]["vocab"].values()) + 1
    state["added_tokens"] += [flags | dict(id=first + i, content=content) for i, content in enumerate(contents)]
    path.write_text(json.dumps(state))


def newlines():
    rows = []
    for cls, name, token in ((NewlineTokenizer, "NewlineTokenizer", True), (NewlineTokenizer, "NewlineTokenizer", False), (PreTrainedTokenizerFast, "Other", False)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            shutil.copy(TEXT / "bytelevel" / "tokenizer.json", path)
            add(path, ["<n>"] if token else [])
            tokenizer = cls(tokenizer_file=str(path))
            for text in TEXTS:
                ids = tokenizer.encode(text, add_special_tokens=False)
                rows.append({"class": name, "token": token, "text": text, "ids": ids, "decoded": tokenizer.decode(ids, clean_up_tokenization_spaces=False)})
    return rows


def write(name, rows):
    (TEXT / name).write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(name, len(rows), sum("error" in row for row in rows))


def tokenizer(folder, marks):
    """The tokenizer of `bytelevel` with this format in place of its templates."""
    shutil.copy(TEXT / "bytelevel" / "tokenizer.json", folder)
    config = json.loads((TEXT / "bytelevel" / "tokenizer_config.json").read_text())
    # A template beside the type is not used.
    config |= dict(chat_template_type="deepseek_v32", chat_template="unused")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    add(folder / "tokenizer.json", ["<think>", "</think>"] if marks else [])
    return load(folder)


def main():
    rows = []
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        tokenizers = {marks: tokenizer(Path(folder), marks) for marks, folder in ((False, a), (True, b))}
        for row in CASES:
            given = copy.deepcopy(row)
            messages = list(given["messages"])
            try:
                # Texts as the server hands them on; it takes the arguments of calls apart, which then fail.
                texts = [{"role": m["role"], "content": m["content"]} for m in messages]
                process_message_content(texts)
                messages = [m | text for m, text in zip(messages, texts)]
                flags = dict(add_generation_prompt=row["add_generation_prompt"], continue_final_message=row["continue_final_message"])
                rendered = tokenizers[row["marks"]].apply_chat_template(messages, tokenize=False, tools=given["tools"], **flags, **given["kwargs"])
                rows.append(row | dict(rendered=rendered))
            except Exception as e:
                rows.append(row | dict(error=type(e).__name__))
    write("deepseek_v32.json", rows)
    write("newline.json", newlines())


if __name__ == "__main__":
    main()
