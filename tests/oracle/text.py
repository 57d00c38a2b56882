"""Small trained tokenizers with the ids, texts and chats of their sources, for `tests/models/text.rs`.

    python text.py   # transformers 5.23.0, tokenizers 0.22, sentencepiece 0.2.3, tiktoken 0.14

Writes `tests/fixtures/text/NAME`: `tokenizer.json`, or the model of SentencePiece or tiktoken,
`tokenizer_config.json`, chat templates for the one that has them, and `expect.json`.
"""

import base64
import json
import shutil
import tempfile
from pathlib import Path

import sentencepiece as spm
import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "text"
CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Whoever the fox was, the dog did not care: it slept.",
    "naïve café, 10 000 €; über alles 東京 tower",
]
TEXTS = [
    "",
    "Hello, dog!",
    "the fox  sleeps\n\tagain ",
    "naïve café über",
    "🦀",
    "a🦀b 東京 👩‍👩‍👧 ẞ",
    " leading and trailing ",
    "x<|end|>y",
]
CHATML = """{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nBe brief.<|end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message['content'].strip() + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
TOOL_USE = """{{- bos_token if bos_token is defined else 'no bos' }}{% for tool in tools %}{{ tool | tojson(indent=1) }}
{% endfor %}{% for d in documents or [] %}[{{ loop.index }}] {{ d.title | upper }}: {{ d['text'][:4] }}
{% endfor %}
{%- set ns = namespace(seen=[]) %}
{%- for message in messages %}
    {%- set ns.seen = ns.seen + [message.role] %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}
    {%- else %}{{ message.role | title }} says {{ message.content }}
    {%- endif %}
    {%- if message.reasoning_content %} ({{ message.reasoning_content | trim }}){% endif %}
{% endfor %}
{{- ns.seen }} {{ ns.seen | unique | list | length }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }} {{ "%s is %05.1f" | format("x", 3.14159) }} {{ "%d-%s" % (3, none) }} {{ {'a': none, 'b': [true, 1e20, 1e-7, "it's"]} }}
{%- if mode is defined and mode is string %} {{ mode ~ none ~ true }}{% endif %}
{%- if messages[-1].role == 'system' %}{{ raise_exception('ends with ' ~ messages[-1].role) }}{% endif %}"""
TOOLS = [dict(type="function", function=dict(name="bark", description="Loud \"<b>\" é", parameters=dict(type="object", properties=dict(times=dict(type="integer"), at=dict(type="string")), required=["times"])))]
USER = dict(role="user", content="Hello, dog!")
CALL = dict(role="assistant", content=None, thinking=" aloud ", tool_calls=[dict(type="function", function=dict(name="bark", arguments=dict(times=2, at="東京", z=None, b=[1.0, True])))])
CHATS = [
    dict(messages=[USER]),
    dict(messages=[dict(role="system", content=" Bark. "), dict(role="user", content="Who?"), dict(role="assistant", content="東京"), dict(role="user", content="Why?\n")]),
    dict(messages=[USER], add_generation_prompt=False),
    dict(messages=[USER, dict(role="assistant", content="I am ")], add_generation_prompt=False, continue_final_message=True),
    dict(messages=[USER, dict(role="assistant", content=[dict(type="text", text="I am ")])], template="tool_use", tools=[], add_generation_prompt=False, continue_final_message=True),
    dict(messages=[USER, dict(role="assistant", content="no")], continue_final_message=True),
    dict(messages=[USER, CALL, dict(role="tool", content="{}")], tools=TOOLS, kwargs=dict(mode="loud")),
    dict(messages=[USER], template="tool_use", tools=[], documents=[dict(title="Fox", text="brown fox")]),
    dict(messages=[dict(role="user", content=[dict(type="text", text="a'b"), dict(type="image")])], template="tool_use", tools=TOOLS),
    dict(messages=[USER, dict(role="system", content="x")], tools=TOOLS),
]


def bytelevel():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|im_start|>", "<|end|>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", additional_special_tokens=["<|im_start|>"], chat_template=dict(default=CHATML, tool_use=TOOL_USE))


def byte_fallback():
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", "<s>", "<|end|>", *bytes_])
    tokenizer.train_from_iterator(CORPUS[:2], trainer)
    # The bytes are special for the trainer only.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", unk_token="<unk>")


CODE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def sentencepiece(kind):
    """A SentencePiece model of its own, without tokenizer.json."""
    directory = OUT / f"sentencepiece_{kind}"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        corpus, model = Path(temporary) / "corpus.txt", Path(temporary) / "m"
        corpus.write_text("\n".join(CORPUS))
        spm.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(model), vocab_size=330 if kind == "bpe" else 310, model_type=kind,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=kind != "bpe",
            hard_vocab_limit=False, minloglevel=2, num_threads=1, user_defined_symbols=[],
        )
        (directory / "tokenizer.model").write_bytes(model.with_suffix(".model").read_bytes())
    config = dict(tokenizer_class="LlamaTokenizer", add_bos_token=True, bos_token="<s>", eos_token="</s>")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    processor = spm.SentencePieceProcessor(str(directory / "tokenizer.model"))
    rows = []
    for text in TEXTS:
        ids = processor.encode(text)
        prefixes = [processor.decode(ids[: i + 1]) for i in range(len(ids))]
        rows.append(dict(text=text, ids=[1, *ids], ids_without_special=ids, decoded_skip_special=processor.decode(ids), decoded_prefixes=prefixes))
    write(directory, rows, [])


def tiktoken_file():
    """Byte pairs as tiktoken keeps them, and the special tokens in the config."""
    directory = OUT / "tiktoken"
    directory.mkdir(parents=True, exist_ok=True)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CODE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(CORPUS, trainer)
    to_byte = {c: b for b, c in bytes_to_unicode().items()}
    vocab = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    ranks = {bytes(to_byte[c] for c in token): rank for token, rank in vocab}
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    (directory / "tiny.tiktoken").write_text("\n".join(lines) + "\n")
    special = {"<|end|>": len(ranks), "<|im_start|>": len(ranks) + 1}
    decoder = {str(i): dict(content=token, special=True) for token, i in special.items()}
    config = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="<|end|>", added_tokens_decoder=decoder)
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    encoding = tiktoken.Encoding("tiny", pat_str=CODE, mergeable_ranks=ranks, special_tokens=special)
    rows = []
    for text in TEXTS:
        ids = encoding.encode_ordinary(text)
        prefixes = [encoding.decode(ids[: i + 1]) for i in range(len(ids))]
        rows.append(dict(text=text, ids_without_special=ids, ids=ids, decoded=encoding.decode(ids), decoded_prefixes=prefixes))
    write(directory, rows, [])


def texts(tokenizer):
    rows = []
    for text in TEXTS:
        ids, plain = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
        decode = lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        prefixes = [decode(plain[: i + 1], False) for i in range(len(plain))]
        rows.append(dict(text=text, ids=ids, ids_without_special=plain, decoded=decode(ids, False), decoded_skip_special=decode(ids, True), decoded_prefixes=prefixes))
    return rows


def chats(tokenizer):
    rows = []
    for case in CHATS if tokenizer.chat_template else []:
        row = dict(messages=[], tools=None, documents=None, template=None, add_generation_prompt=True, continue_final_message=False, kwargs={}) | case
        arguments = {k: v for k, v in row.items() if k not in ("messages", "template", "kwargs")}
        try:
            rendered = tokenizer.apply_chat_template(row["messages"], tokenize=False, chat_template=row["template"], **arguments, **row["kwargs"])
            row["rendered"] = rendered
            row["ids"] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        except Exception as e:
            row["error"] = f"{type(e).__name__}: {e}"
        rows.append(row)
    return rows


def write(directory, rows, chats):
    (directory / "expect.json").write_text(json.dumps(dict(texts=rows, chats=chats), ensure_ascii=True, indent=None).replace('{"text"', '\n{"text"').replace('{"messages"', '\n{"messages"') + "\n")
    print(directory.name, len(rows), len(chats))


def main():
    for make in (bytelevel, byte_fallback):
        tokenizer, directory = make(), OUT / make.__name__
        shutil.rmtree(directory, ignore_errors=True)
        tokenizer.save_pretrained(directory)
        write(directory, texts(tokenizer), chats(tokenizer))
    sentencepiece("bpe")
    sentencepiece("unigram")
    tiktoken_file()


if __name__ == "__main__":
    main()
