"""Write a model folder without weights: a shape, a tokenizer whose words are its ids, a chat
template.

    python make_model.py tiny /tmp/model      # shapes: see SHAPES

An engine started with ``--load-format dummy`` fills in random weights, so nothing is downloaded.
The tokenizer knows exactly the words ``t0 t1 t2 ...`` (word ``t7`` is token 7), hence every text
has a known number of tokens; the chat template only appends, so the tokens of one turn are a
prefix of the tokens of the next, as prefix caching needs. Standard library only.
"""

import argparse
import json
import pathlib

# hidden, layers, heads, KV heads, feed-forward width, head width, vocabulary
SHAPES = {
    "tiny": (256, 4, 4, 2, 768, 64, 2048),  # an agent step takes about 0.5 s on two CPU cores
    "small": (512, 8, 4, 2, 1536, 64, 2048),  # prefill weighs more: thrashing costs about 3x
    "qwen3-8b": (4096, 36, 32, 8, 12288, 128, 151936),
    "qwen3-32b": (5120, 64, 64, 8, 25600, 128, 151936),
}
# The last ids of the vocabulary are set aside for the chat template's own words.
MARKS = ("<|pad|>", "<|begin|>", "<|end|>", "system", "user", "assistant", "tool")
CHAT = (
    "{%- for message in messages -%}"
    "<|begin|> {{ message['role'] }} {{ message['content'] or '' }} <|end|> "
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|begin|> assistant {% endif -%}"
)


def write_model(shape: str, folder: pathlib.Path) -> None:
    """Create the folder and write config, tokenizer and generation defaults into it."""
    hidden, layers, heads, kv_heads, wide, head, vocab = SHAPES[shape]
    marks = {mark: vocab - len(MARKS) + i for i, mark in enumerate(MARKS)}
    end, pad = marks["<|end|>"], marks["<|pad|>"]
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "max_window_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": wide,
        "head_dim": head,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "max_position_embeddings": 40960,
        "attention_bias": False,
        "tie_word_embeddings": hidden < 4096,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": pad,
        "eos_token_id": end,
    }
    words = {f"t{i}": i for i in range(vocab - len(MARKS))} | marks
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": marks[mark],
                "content": mark,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for mark in MARKS
            if mark.startswith("<|")
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "unk_token": "t0",
        "model_max_length": 40960,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", {"bos_token_id": pad, "eos_token_id": end}),
    ):
        (folder / name).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=pathlib.Path)
    arguments = parser.parse_args()
    write_model(arguments.shape, arguments.folder)
