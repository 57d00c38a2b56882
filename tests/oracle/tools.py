"""Tool calls and answers in every format, as mlx-lm takes them apart, for `tests/models/tools.rs`.

    python tools.py   # mlx-lm 0.32.2

Writes `tests/fixtures/text/tools.json`: for each format texts with their calls, or `null` where mlx-lm
finds none; and answers in pieces with their parts.
"""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

from mlx_lm.chat_templates.muse_spark import RESPONSE_FORMAT
from mlx_lm.generate import TextStateMachine, make_text_state_machine
from mlx_lm.tokenizer_utils import _infer_tool_parser

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "text" / "tools.json"
PROPERTIES = dict(
    city=dict(type="string"), days=dict(type="integer"), degrees=dict(type="number"), now=dict(type="boolean"),
    where=dict(type="object"), list=dict(type="array"), either=dict(anyOf=[dict(type="integer"), dict(type="null")]),
    kind=dict(enum=["a", 1]), any={}, loose=dict(description="no type"), long=dict(type="long"), both=dict(type=["string", "null"]),
    map=dict(type="dict<str, int>"), float=dict(type="float32"), none=dict(type="null"),
)
TOOLS = [
    dict(type="function", function=dict(name="get_weather", parameters=dict(type="object", properties=PROPERTIES))),
    dict(type="function", function=dict(name="bare", parameters=dict(type="object"))),
]
JSON = '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "where": {"a": [1, null, true]}}}'
VALUES = [
    "Zürich", "3", " 4 ", "-5", "+6", "1_000", "2.0", "2.5", "1e3", "true", "False", "yes", "null", "None", "nil", "[1, 'a']", "['a', (1, 2), {'b': None}]",
    '{"a": "x\ny"}', "{'a': True, 1: 2}", "'quoted'", '"quoted"', "a=b", "", "0x1F", "1.", ".5", "007", "(1,)", "1, 2", "r'\\d'", "'a' 'b'", "'\\u00e9\\n\\x41\\101'", "b'x'", "{1, 2}", "- 3",
    "'''long'''", "1 + 2", "f(1)", "[1, 2", "nan", "<b>&amp;</b>", "a\n\nb", "{}", "[]", "()", "...", "[true, false]", "1__0", "true ", "Infinity",
]
KEYS = ["city", "days", "degrees", "now", "where", "list", "either", "kind", "any", "loose", "long", "both", "map", "float", "none", "unknown"]


def typed(write, keys=KEYS):
    """Every value under every key."""
    return [write(key, value) for key in keys for value in VALUES]


CASES = dict(
    function_gemma=[
        "call:get_weather{city:<escape>Zürich, {CH}<escape>,days:2,now:true,x:abc}", "call:f{}", "call:f{a:<escape>b<escape>}", "call:f{a}", "no", "call:f{a:<escape>b}",
        "call:f{a:1,b:2.5,c:null,d:[1}", "x call:f{a:1} call:g{b:2}",
    ],
    gemma4=[
        'call:get_weather{city:<|"|>Zürich "x" }{<|"|>,days:2}', "call:f{}", 'call:f{a:{b:[1,<|"|>c<|"|>],d:true},e:null}call:g-h{x:1}', "call:f{a:1", "call:f{a:b}", "none", "call:f{a:<1}",
        'call:f{a:<|"|>b\nc<|"|>}', "call:f{bad call:g{a:1}", 'call:f{a:<|"|>k:v,x:y<|"|>,b: 1}',
    ],
    glm47=[
        *typed(lambda k, v: f"get_weather\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>", ["city", "any"]),
        "f<arg_key>a</arg_key>\\n<arg_value>1</arg_value><arg_key>b</arg_key><arg_value>x</arg_value>", "f<arg_key>a</arg_key><arg_value>1", JSON, f"[{JSON}]", '{"function": "f", "arguments": "{\\"a\\": 1}"}',
        '{"tool": {"name": "f"}}', '{"tool": {"name": "get_weather", "arguments": {"city": 5, "days": "3"}}}', '{"name": {"name": "f", "arguments": {"a": 1}}, "arguments": {}}', "f", "  ", "f a=1 b='x y' c=\"q\\\"\" ", "get_weather city=3 days=3",
        "f {\"a\": 1}", "f {'a': True}", "f\n{\"a\": \"2\"}", "f free text", "f a=1 text", "f 'open", "get_weather\n{\"city\": 1}", '{"name": "f", "arguments": 3}', "[]", "f a=\\ b", 'get_weather {"city": [1, "x", true, null]}',
    ],
    json_tools=[JSON, f"\n{JSON}\n", f"[{JSON}, {JSON}]", "{", "", '{"name": "f", "arguments": {}}', '{"arguments": {}}'],
    kimi_k2=[
        'functions.get_weather:0<|tool_call_argument_begin|>{"city": "Zürich"}', '<|tool_call_begin|>functions.a:0<|tool_call_argument_begin|>{"b": 1}<|tool_call_end|><|tool_call_begin|>c.d:12 <|tool_call_argument_begin|> {\'x\': None} <|tool_call_end|>',
        "f:0<|tool_call_argument_begin|>not json", "f<|tool_call_argument_begin|>{}", "", "<|tool_call_begin|>bad<|tool_call_end|>", "functions.f:x:1<|tool_call_argument_begin|>{}",
    ],
    kimi_k3=[
        '<|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>Tokyo<|close|>argument<|sep|><|open|>argument key="n" type="number"<|sep|>2<|close|>argument<|sep|><|close|>call<|sep|>',
        '<|open|>call tool="f"<|sep|><|open|>json type="object"<|sep|>{"a": 1}<|close|>json<|sep|><|close|>call<|sep|><|open|>call tool="a&amp;&quot;b"<|sep|><|close|>call<|sep|>',
        '<|open|>call<|sep|><|close|>call<|sep|>', '<|open|>call tool="f"<|sep|><|open|>json<|sep|>[1]<|close|>json<|sep|><|close|>call<|sep|>', '<|open|>call tool="f"<|sep|><|open|>argument type="number"<|sep|>2<|close|>argument<|sep|><|close|>call<|sep|>',
        '<|open|>call tool="f"<|sep|><|open|>argument key="x" type="object"<|sep|>{bad<|close|>argument<|sep|><|open|>argument key="y"<|sep|>2<|close|>argument<|sep|><|close|>call<|sep|>', "", '<|open|>call tool="f"<|sep|>open',
    ],
    laguna=["f<arg_key>a</arg_key><arg_value>1</arg_value>"],
    longcat=[
        JSON, "f\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>1</longcat_arg_value>", "get_weather<longcat_arg_key>city</longcat_arg_key><longcat_arg_value>1</longcat_arg_value><longcat_arg_key>days</longcat_arg_key><longcat_arg_value>[1, 'x']</longcat_arg_value>",
        "{bad<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>b</longcat_arg_value>",
    ],
    minicpm5=[
        *typed(lambda k, v: f'"get_weather"><param name="{k}">{v}</param>', ["list"]), '<function name="f"><param name="a"><![CDATA[<x> & ]]></param></function><function name=\'g\'></function>', "f>", '"f" ><param name=a> b </param>\n', "", "<>", '"f"><param name="a">1',
    ],
    minimax_m2=[
        *typed(lambda k, v: f'<invoke name="get_weather"><parameter name="{k}">{v}</parameter></invoke>'), '<invoke name="a"><parameter name="x">\n1\n</parameter></invoke>\n<invoke name=b></invoke>', "<invoke name=></invoke>", "", "<invoke name=\"f\">", "<invoke name='f'><parameter name=k>v</parameter><parameter name=k>w</parameter></invoke>",
    ],
    mistral=[
        'get_weather[ARGS]{"city": "Zürich"}', 'a[ARGS]{"x": 1} b-c [ARGS] {"y": [2]}[TOOL_CALLS]d[ARGS]{}', f"[{JSON}]", '[{"name": "f", "arguments": "{\\"a\\": 1}", "id": "abc"}]', "[]", "[1]", '[{"name": "f", "arguments": "x"}]', 'f[ARGS]{"a": ', "", '[{"name": "f"}]', JSON,
    ],
    muse_spark=[
        '<atem:invoke name="get_weather"><atem:parameter name="city">Zürich</atem:parameter><atem:parameter name="n" string="false">2</atem:parameter></atem:invoke>', '<atem:invoke id="1" name="a"></atem:invoke><atem:invoke name="b"><atem:parameter name="x"> [1 </atem:parameter>', "",
        '<atem:invoke name="f"><atem:parameter name="x"></atem:invoke></atem:parameter><atem:parameter name="y">{"a": 1}</atem:parameter></atem:invoke>', "<atem:invoke>", '<atem:invoke name="f">\n',
    ],
    pythonic=[
        '[get_weather(city="Zürich", days=2)]', "[a(x=1), b.c(y=[1, {'k': None}], z=true)]", "[f()]", "text [f(a='x')] more", "[f(1)]", "[f(a=g())]", '[f(a=" unclosed)]', "[f(**x)]", "none", "[f(a=1, a=2)]", "[f(a=-1.5e3, b=(1,), c='it\\'s', d=\"\"\"x\ny\"\"\")]", "[f(a=true, b=null)]",
        "[f(x=some text, y='2')]", "[f(a=1) g(b=2)]", "[]", "[f(a={'b': [true, {'c': null}]},)]", "[f(a='b'\n)]", "[f(a=0x10, b=1_000, c=+1)]", "[f(a=007)]", "[ f ( a = 1 ) , ]",
    ],
    qwen3_coder=[
        *typed(lambda k, v: f"<function=get_weather>\n<parameter={k}>\n{v}\n</parameter>\n</function>"), "<function=f>\n</function>", "<function=f>\n<parameter=a>\nx\n\ny\n</parameter>\n</function>\n", "<function=f></function> more", "no", "<function=></function>", "<function=bare><parameter=a>1</parameter></function>",
        "<function=f><parameter=a>1</parameter><parameter=>2</parameter></function>", "<function=f><parameter=a>unclosed</function>",
    ],
)

TEMPLATES = [
    "<minimax:tool_call>", "<|tool_call><tool_call|>", "<|tool_call>", "<start_function_call>", "<longcat_tool_call>", "<arg_key>", "<|tool_list_start|>", "<|tool_call_start|>", "<tool_call>\\n<function=", "<tool_call>\n<function=",
    "<|tool_calls_section_begin|>", '<function name="<param name="', '<function name="', "[TOOL_CALLS]", "<atem:function_calls>", "<tool_call>tool_call.name", "<tool_call>", "<arg_key>[TOOL_CALLS]", "",
]
VOCABULARIES = [[], ["<|tool_call_start|>", "<|tool_call_end|>"], ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]]

ANSWERS = [
    ("qwen3_coder", ("<think>", "</think>"), "reasoning", "I think\n</think>\n\nLet me <b>see</b>.<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call> done <think>x</think>"),
    ("json_tools", None, "normal", f"a<tool_call>{JSON}</tool_call>b<tool_call>{JSON}</tool_call><tool_"),
    ("json_tools", ("<think>", "</think>"), "reasoning", f"a<tool_call>{JSON}</tool_call>b</think>c"),
    ("mistral", None, "normal", 'Hi [TOOL[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}'),
    ("gemma4", ("<|channel>thought", "<channel|>"), "normal", '<|channel>thought\nhm<channel|>é<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|>東'),
    ("kimi_k3", ("<|open|>think<|sep|>", "<|close|>think<|sep|>"), "reasoning", '東<|close|>think<|sep|><|open|>response<|sep|>hi<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool="f"<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>'),
    ("muse_spark", None, "header", 'x to=self<|message|>thought<|eom|><|start|>assistant to=f<|message|><atem:function_calls><atem:invoke name="f"></atem:invoke></atem:function_calls><|eom|><|start|>assistant to=user<|message|>hi<|eot|>'),
    ("json_tools", None, "normal", "<<tool_call<tool_call>bad</tool_call>"),
]
MARKERS = ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>")


def plain(calls):
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls):
        return None
    return json.loads(json.dumps(calls, allow_nan=False))


def parse(format, text):
    parser = importlib.import_module(f"mlx_lm.tool_parsers.{format}").parse_tool_call
    try:
        return plain(parser(text, TOOLS))
    except Exception as error:
        # A value that JSON does not have: mlx-lm fails when it writes the call.
        return dict(unwritable=True) if isinstance(error, (TypeError, OverflowError)) or "Out of range" in str(error) else None


def answer(format, think, state, text, size):
    module = importlib.import_module(f"mlx_lm.tool_parsers.{format}")
    tokenizer = SimpleNamespace(
        has_thinking=think is not None, think_start=think and think[0], think_end=think and think[1], has_tool_calling=True, tool_call_start=module.tool_call_start, tool_call_end=module.tool_call_end,
        structural_markers=MARKERS if format == "kimi_k3" else (), response_transitions=RESPONSE_FORMAT["transitions"] if format == "muse_spark" else {},
    )
    machine, parts, call = make_text_state_machine(tokenizer).make_state(state), [], ""

    def end():
        nonlocal call
        if call:
            try:
                parts.extend(["call", c] for c in plain(module.parse_tool_call(call, TOOLS)))
            except ValueError:
                parts.append(["bad", call])
            call = ""

    def take(state, text):
        nonlocal call
        if state != "tool":
            end()
        if state == "tool":
            call += text
        elif text and state != "header":
            parts[-1:] = [[state, parts[-1][1] + text]] if parts and parts[-1][0] == state and not split else [*parts[-1:], [state, text]]

    previous = state
    for i in range(0, len(text), size):
        machine, segments = TextStateMachine.split(machine, text[i : i + size])
        for name, segment in segments:
            split = name != previous
            take(name, segment)
            previous = name
    machine, rest, name = TextStateMachine.flush(machine)
    split = False
    take(name, rest)
    end()
    return parts


def main():
    calls = {format: [[text, parse(format, text)] for text in texts] for format, texts in CASES.items()}
    inferred = []
    for template in TEMPLATES:
        for vocabulary in VOCABULARIES:
            tokenizer = SimpleNamespace(chat_template=template, get_vocab=lambda: set(vocabulary))
            inferred.append([template, vocabulary, _infer_tool_parser(tokenizer)])
    answers = [dict(format=f, think=t, state=s, text=x, parts=answer(f, t, s, x, 5)) for f, t, s, x in ANSWERS]
    result = dict(tools=TOOLS, calls=calls, inferred=inferred, answers=answers)
    text = json.dumps(result, ensure_ascii=True).replace("]], [", "]],\n[")
    OUT.write_text(text + "\n")
    print({k: len(v) for k, v in calls.items()}, OUT.stat().st_size)


if __name__ == "__main__":
    main()
