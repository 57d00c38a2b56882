"""Small trained tokenizers with the ids, texts and chats of transformers, for `tests/models/text.rs`.

    python text.py   # transformers 5.23.0, tokenizers 0.22

Writes `tests/fixtures/text/NAME`: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` for
the one that has a template, and `expect.json`.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

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
CHATS = [
    [dict(role="user", content="Hello, dog!")],
    [dict(role="system", content=" Bark. "), dict(role="user", content="Who?"), dict(role="assistant", content="東京"), dict(role="user", content="Why?\n")],
]


def bytelevel():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|im_start|>", "<|end|>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", additional_special_tokens=["<|im_start|>"], chat_template=CHATML)


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


def main():
    for make in (bytelevel, byte_fallback):
        tokenizer, directory = make(), OUT / make.__name__
        tokenizer.save_pretrained(directory)
        texts = []
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            texts.append(dict(text=text, ids=ids, decoded=decoded))
        chats = []
        for messages in CHATS if tokenizer.chat_template else []:
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
            chats.append(dict(messages=messages, rendered=rendered, ids=ids))
        (directory / "expect.json").write_text(json.dumps(dict(texts=texts, chats=chats), ensure_ascii=True, indent=1) + "\n")
        print(make.__name__, len(tokenizer), [len(row["ids"]) for row in texts])


if __name__ == "__main__":
    main()
