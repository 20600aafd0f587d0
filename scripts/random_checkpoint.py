#!/usr/bin/env python3
"""Write a random MLA + MoE checkpoint of about 0.74 B parameters, for measurements.

The weights say nothing; sizes and layout are those of a real checkpoint (Hugging Face names,
safetensors, bf16), so that speed and memory are what they would be. Needs numpy alone.

    python3 scripts/random_checkpoint.py /tmp/random-0.7b
    cargo run --release -- bench --model /tmp/random-0.7b

The tokenizer of the demo model is copied beside the weights, so that the directory can be served;
ids beyond it are padding, as in published checkpoints, or with --words tokens of made-up words.
"""

import argparse
import json
import pathlib
import shutil
import struct

import numpy as np


def config(args):
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_act": "silu",
        "attention_bias": False,
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "intermediate_size": 11 * args.hidden // 4,
        "moe_intermediate_size": args.moe_intermediate,
        "num_hidden_layers": args.layers,
        "first_k_dense_replace": 1,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.heads,
        "q_lora_rank": None,
        "kv_lora_rank": args.latent,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": args.experts,
        "num_experts_per_tok": args.top_k,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "moe_layer_freq": 1,
        "max_position_embeddings": args.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def tensors(c):
    """(name, shape) of every tensor."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    qk = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)

    def mlp(name, width):
        yield f"{name}.gate_proj.weight", (width, hidden)
        yield f"{name}.up_proj.weight", (width, hidden)
        yield f"{name}.down_proj.weight", (hidden, width)

    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_proj.weight", (heads * qk, hidden)
        yield f"{at}.self_attn.kv_a_proj_with_mqa.weight", (c["kv_lora_rank"] + c["qk_rope_head_dim"], hidden)
        yield f"{at}.self_attn.kv_a_layernorm.weight", (c["kv_lora_rank"],)
        width = heads * (c["qk_nope_head_dim"] + c["v_head_dim"])
        yield f"{at}.self_attn.kv_b_proj.weight", (width, c["kv_lora_rank"])
        yield f"{at}.self_attn.o_proj.weight", (hidden, heads * c["v_head_dim"])
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        if i < c["first_k_dense_replace"]:
            yield from mlp(f"{at}.mlp", c["intermediate_size"])
            continue
        yield f"{at}.mlp.gate.weight", (c["n_routed_experts"], hidden)
        for e in range(c["n_routed_experts"]):
            yield from mlp(f"{at}.mlp.experts.{e}", c["moe_intermediate_size"])
        yield from mlp(f"{at}.mlp.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"])
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (c["vocab_size"], hidden)


def bf16(x):
    """f32 to bf16 bits by truncation: enough for noise."""
    return (x.view(np.uint32) >> 16).astype("<u2")


def write(path, shapes, seed):
    header, offset = {}, 0
    for name, shape in shapes:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for name, shape in shapes:
            if len(shape) == 1:
                values = np.ones(shape, np.float32)
            else:
                values = rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
            out.write(bf16(values).tobytes())
    return offset // 2


def add_words(path, n, seed):
    """Fills the vocabulary up to n tokens with words that the model may draw: no text becomes one."""
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfywgpbvk"))
    signs = [" ", "", "", "", '"', '",', '":', "0", "17", ".", "(", "\u00c4"]
    first = 1 + max([*vocab.values(), *(token["id"] for token in tokenizer["added_tokens"])])
    known = set(vocab)
    while first < n:
        word = "".join(rng.choice(letters, rng.integers(2, 9)))
        # A space is written as \u0120 in vocabularies of bytes.
        word = str(rng.choice(signs)).replace(" ", "\u0120") + (word if rng.random() < 0.8 else word.capitalize())
        if word not in known:
            known.add(word)
            vocab[word] = first
            first += 1
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    for name, default in [
        ("hidden", 1024),
        ("layers", 12),
        ("heads", 16),
        ("latent", 512),
        ("experts", 32),
        ("top-k", 4),
        ("moe-intermediate", 512),
        ("vocab", 32000),
        ("context", 16384),
        ("seed", 1),
        ("words", 0),
    ]:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    c = config(args)
    (args.directory / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    demo = pathlib.Path(__file__).resolve().parent.parent / "crates/strait/demo"
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        if (demo / name).is_file():
            shutil.copy(demo / name, args.directory / name)
    if args.words:
        add_words(args.directory / "tokenizer.json", args.words, args.seed)
    n = write(args.directory / "model.safetensors", list(tensors(c)), args.seed)
    print(f"{args.directory}: {n / 1e9:.2f} B parameters, {2 * n / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
