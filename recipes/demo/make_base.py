"""Make the demo's base: a small ChatGLM2 that knows a language but no task, written in the released layout.

    python recipes/demo/make_base.py                              # recipes/demo/base, about 12 minutes on 2 cores
    python recipes/demo/make_base.py --rows adgen.json --skip_last 500 --tokenizer chatglm2-6b --output base \
        --max_minutes 30

The first form trains a tokenizer and the model on `write_corpus.pretraining_documents`. The second makes a base from a
user's own rows (JSON lines, `content` and `summary`) with a released `tokenizer.model`: each pass words every row anew.
Every document begins with `[gMASK] sop`, as the released models' do, and ends with `</s>`; none has the prompt's form.
"""

import argparse
import io
import json
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import jieba
import sentencepiece as spm
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import GlmConfig, GlmForCausalLM
from write_corpus import draw_splits, pretraining_documents

HERE = Path(__file__).parent
PAD_ID, EOS_ID = 0, 2
SPECIAL_TOKENS = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]  # their ids follow the tokenizer's own pieces
SAMPLE_SIZE = 20_000  # documents that the tokenizer is trained on and the used part of the vocabulary is taken from


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="JSON lines with content and summary; default: the generated corpus")
    parser.add_argument("--skip_last", type=int, default=0, help="rows at the end that the base must not see")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.model or its directory; default: train one")
    parser.add_argument("--output", type=Path, default=HERE / "base")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--max_minutes", type=float, default=math.inf, help="end earlier, with the same schedule")
    parser.add_argument("--batch_tokens", type=int, default=2048, help="tokens of a batch, padding included")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--hidden_size", type=int, default=192)
    parser.add_argument("--vocab_size", type=int, default=2400, help="pieces of the tokenizer that is trained")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def row_documents(rows: list[dict[str, str]], seed: int) -> Iterator[str]:
    """Endless documents worded from the rows: the summary alone, or with its attributes named before or after it."""
    rng = random.Random(f"{seed} rows")
    while True:
        for row in rng.sample(rows, len(rows)):
            pairs = [pair.partition("#")[::2] for pair in row["content"].split("*")]
            rng.shuffle(pairs)
            values = "、".join(value or name for name, value in pairs)
            named = rng.choice(
                ["，".join(f"{a}是{v}" for a, v in pairs), "；".join(f"{a}：{v}" for a, v in pairs), values]
            )
            forms = [
                "{summary}",
                "{named}。\n{summary}",
                "{named}。{summary}",
                "要写到{values}。\n{summary}",
                "{summary}\n关键词：{values}。",
            ]
            yield rng.choice(forms).format(summary=row["summary"], named=named, values=values)


def train_tokenizer(sample: list[str], vocab_size: int) -> bytes:
    """A sentencepiece BPE model with the released one's settings, whose pieces do not reach over word boundaries."""
    delimiter = "\t"
    lines = (delimiter.join(jieba.cut(line)) for document in sample for line in document.splitlines())
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.9999,
        pretokenization_delimiter=delimiter,
        required_chars="".join(map(chr, range(33, 127))),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


class CompactVocabulary:
    """The ids that the text uses, renumbered, and one id for all others: a 65k softmax costs only what is used of it.

    The id of all others stands for `num_others` tokens: with log(num_others) added to its logit, the softmax is that of
    the whole vocabulary whose unused rows are all equal, which is what `expand` writes.
    """

    def __init__(self, used: set[int], full_size: int):
        self.used = torch.tensor(sorted(used))
        self.others = len(self.used)
        self.full_size, self.num_others = full_size, full_size - len(self.used)
        self.compact = torch.full((full_size,), self.others)
        self.compact[self.used] = torch.arange(len(self.used))

    def __len__(self) -> int:
        return self.others + 1

    def expand(self, weight: torch.Tensor) -> torch.Tensor:
        """(compact size, hidden) → (full_size, hidden)"""
        return weight[self.compact]


def released_config(args: argparse.Namespace, full_size: int) -> dict:
    return {
        "_name_or_path": f"softlaunch/chatglm2-{args.output.name}",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "ffn_hidden_size": args.hidden_size * 8 // 3 // 32 * 32,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": args.hidden_size,
        "kv_channels": 32,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": args.hidden_size // 32,
        "num_layers": args.num_layers,
        "original_rope": True,
        "padded_vocab_size": full_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 1024,
        "use_cache": True,
        "torch_dtype": "float16",
        "tie_word_embeddings": False,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }


def build_model(config: dict, vocab_size: int) -> GlmForCausalLM:
    """transformers' own class with the released config's shape and `vocab_size` tokens."""
    return GlmForCausalLM(
        GlmConfig(
            vocab_size=vocab_size,
            hidden_size=config["hidden_size"],
            intermediate_size=config["ffn_hidden_size"],
            num_hidden_layers=config["num_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=config["multi_query_group_num"],
            head_dim=config["kv_channels"],
            rms_norm_eps=config["layernorm_epsilon"],
            attention_bias=config["add_qkv_bias"],
            max_position_embeddings=config["seq_length"],
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        )
    )


def batches(documents: Iterator[list[int]], batch_tokens: int, rng: random.Random) -> Iterator[torch.Tensor]:
    """Endless (batch, length) ids padded on the right; documents of like length go together."""
    while True:
        pool, batch, drawn = sorted(islice(documents, 1024), key=len), [], []
        for document in pool:
            if batch and (len(batch) + 1) * len(document) > batch_tokens:
                drawn.append(batch)
                batch = []
            batch.append(document)
        rng.shuffle(drawn)
        for batch in drawn:
            length = len(batch[-1])
            yield torch.tensor([ids + [PAD_ID] * (length - len(ids)) for ids in batch])


def pretrain(model: GlmForCausalLM, data: Iterator[torch.Tensor], vocabulary: CompactVocabulary, args) -> None:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))
    start, num_tokens = time.perf_counter(), 0
    for step in range(args.steps):
        elapsed_min = (time.perf_counter() - start) / 60
        progress = max(step / args.steps, elapsed_min / args.max_minutes)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(
                progress / 0.05 + 0.01, 0.55 + 0.45 * math.cos(math.pi * progress), 1
            )
        ids = next(data)
        labels = vocabulary.compact[ids[:, 1:]].masked_fill(ids[:, 1:] == PAD_ID, -100)
        inputs = vocabulary.compact[ids[:, :-1]]
        inputs[torch.rand(inputs.shape) < 0.01] = vocabulary.others  # what an unknown token looks like
        logits = model(inputs, use_cache=False).logits
        logits[..., vocabulary.others] += math.log(max(vocabulary.num_others, 1))
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_tokens += ids.numel()
        if step % 50 == 0 or step == args.steps - 1:
            speed = num_tokens / (time.perf_counter() - start)
            print(f"step {step:5}  loss {loss.item():.3f}  {speed:,.0f} tokens/s  {elapsed_min:.1f} min", flush=True)


def released_weights(model: GlmForCausalLM, vocabulary: CompactVocabulary, num_layers: int) -> dict[str, torch.Tensor]:
    """The weights under ChatGLM2's key names, in float16, with every row of the vocabulary."""
    weights = model.state_dict()
    out = {
        "transformer.embedding.word_embeddings.weight": vocabulary.expand(weights["model.embed_tokens.weight"]),
        "transformer.encoder.final_layernorm.weight": weights["model.norm.weight"],
        "transformer.output_layer.weight": vocabulary.expand(weights["lm_head.weight"]),
    }
    for i in range(num_layers):
        new, old = f"model.layers.{i}.", f"transformer.encoder.layers.{i}."
        for kind in ("weight", "bias"):
            fused = torch.cat([weights[f"{new}self_attn.{name}_proj.{kind}"] for name in "qkv"])
            out[f"{old}self_attention.query_key_value.{kind}"] = fused
        out[f"{old}self_attention.dense.weight"] = weights[f"{new}self_attn.o_proj.weight"]
        out[f"{old}mlp.dense_h_to_4h.weight"] = weights[f"{new}mlp.gate_up_proj.weight"]
        out[f"{old}mlp.dense_4h_to_h.weight"] = weights[f"{new}mlp.down_proj.weight"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{old}{norm}.weight"] = weights[f"{new}{norm}.weight"]
    return {name: weight.to(torch.float16).contiguous() for name, weight in out.items()}


def write_base(output: Path, config: dict, weights: dict[str, torch.Tensor], tokenizer: bytes) -> None:
    output.mkdir(parents=True, exist_ok=True)
    tokenizer_config = {
        "name_or_path": config["_name_or_path"],
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
    }
    for name, value in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        (output / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    (output / "tokenizer.model").write_bytes(tokenizer)
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    if args.rows:
        rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
        rows = rows[: len(rows) - args.skip_last]

    def documents() -> Iterator[str]:
        if args.rows:
            return row_documents(rows, args.seed)
        splits = draw_splits(args.seed)
        return pretraining_documents(
            args.seed, {g.combination for split in ("validation", "test") for g in splits[split]}
        )

    sample = list(islice(documents(), SAMPLE_SIZE))
    if args.tokenizer:
        path = args.tokenizer / "tokenizer.model" if args.tokenizer.is_dir() else args.tokenizer
        tokenizer = path.read_bytes()
    else:
        tokenizer = train_tokenizer(sample, args.vocab_size)
    pieces = spm.SentencePieceProcessor(model_proto=tokenizer)
    special = {token: pieces.vocab_size() + i for i, token in enumerate(SPECIAL_TOKENS)}
    start = [special["[gMASK]"], special["sop"]]

    full_size = math.ceil((pieces.vocab_size() + len(special)) / 64) * 64
    vocabulary = CompactVocabulary({EOS_ID, *start, *(i for ids in pieces.encode(sample) for i in ids)}, full_size)
    config = released_config(args, full_size)
    model = build_model(config, len(vocabulary))
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters:,} parameters; {len(vocabulary.used):,} of {full_size:,} tokens in use", flush=True)
    encoded = ([*start, *pieces.encode(document), EOS_ID] for document in documents())
    pretrain(model, batches(encoded, args.batch_tokens, random.Random(args.seed)), vocabulary, args)
    write_base(args.output, config, released_weights(model, vocabulary, args.num_layers), tokenizer)
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
