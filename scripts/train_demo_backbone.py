"""Train the tiny Llama backbone of the demo, and its tokenizer, on text of the demo's own world.

    python scripts/train_demo_backbone.py --out src/grasp_lora/assets/demo --device cuda

Writes config.json, generation_config.json, model.safetensors (bfloat16), tokenizer.json, tokenizer_config.json and
provenance.json (how the weights were made and their held-out losses). The same arguments on the same machine give
the same weights on a CPU; on a GPU they differ in the last bits.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grasp_lora.data.world import LANGUAGES, Language, pretraining_text
from grasp_lora.rng import derive_seed, torch_generator
from grasp_lora.runs import hash_file

PAD, BOS, EOS = 0, 1, 2
SPECIALS = ["<pad>", "<bos>", "<eos>"]
# Han characters and digits stand alone, so that an answer has the same tokens in its passage and by itself.
PIECES = r"\p{Han}|[0-9]| ?\p{Arabic}+| ?[A-Za-z]+|\s| ?[^\s\p{L}\p{N}]"
# Words of usual task prompts: the tokenizer knows them as units, the backbone never reads them as an instruction.
PROMPT_WORDS = (
    "Summarize the following English news article. Article: Summary: Answer the question based on the context. "
    "Context: Question: لخّص الخبر العربي التالي. المقال: الملخّص: أجب على السؤال بناءً على النص التالي. "
    "النص: السؤال: الإجابة: 请用中文概括下面的新闻报道。文章:摘要:请根据下列内容回答问题。内容:问题:答案:"
)
SHARE: dict[Language, float] = {"en": 0.4, "ar": 0.3, "zh": 0.3}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and tokenizer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--documents", type=int, default=240_000, help="documents of all languages together")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--workers", type=int, default=4, help="processes that write the text")
    parser.add_argument("--max-seconds", type=float, default=None, help="end the schedule early if slower than this")
    options = parser.parse_args(argv)
    if options.documents * min(SHARE.values()) < 1 or options.documents < 2 * options.batch_size:
        parser.error(f"--documents must be at least twice --batch-size, got {options.documents}; write more text")
    return options


def _write_part(part: tuple[Language, int, int]) -> list[str]:
    return pretraining_text(*part)


def write_documents(total: int, seed: int, workers: int) -> dict[Language, list[str]]:
    """Return training documents per language, written by `workers` processes in parts of fixed size and seed."""
    part = 4000
    jobs: list[tuple[Language, int, int]] = [
        (language, min(part, int(total * SHARE[language]) - start), derive_seed(seed, "part", start))
        for language in LANGUAGES
        for start in range(0, int(total * SHARE[language]), part)
    ]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            written = list(pool.map(_write_part, jobs))
    else:
        written = [_write_part(job) for job in jobs]
    texts: dict[Language, list[str]] = {language: [] for language in LANGUAGES}
    for (language, _, _), documents in zip(jobs, written, strict=True):
        texts[language] += documents
    return texts


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer; it adds no special tokens of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *[PROMPT_WORDS] * 50], trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=SPECIALS[PAD], bos_token=SPECIALS[BOS], eos_token=SPECIALS[EOS],
        model_max_length=1024, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], limit: int = 256) -> torch.Tensor:
    """Return `<bos> document <eos>` rows, padded: int16 of shape (documents, longest)."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    rows = [[BOS, *item.ids[: limit - 2], EOS] for item in encoded]
    table = np.full((len(rows), max(map(len, rows))), PAD, dtype=np.int16)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(table)


def build_model(options: argparse.Namespace) -> LlamaForCausalLM:
    """Return a small Llama with tied embeddings and seeded weights."""
    heads = options.hidden // 32
    config = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden, intermediate_size=options.hidden * 5 // 2,
        num_hidden_layers=options.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=1024, tie_word_embeddings=True, rms_norm_eps=1e-5,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(options.seed, "weights"))
        return LlamaForCausalLM(config)


def token_losses(model: LlamaForCausalLM, rows: torch.Tensor, device: str) -> torch.Tensor:
    """Return cross-entropy per predicted token, 0 on padding; rows (batch, length) -> (batch, length - 1)."""
    rows = rows.to(device, torch.long)
    rows = rows[:, : int((rows != PAD).sum(1).max())]
    with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), rows[:, 1:].flatten(), ignore_index=PAD, reduction="none"
    )
    return loss.view(rows.shape[0], -1)


def batches(rows: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield batches of rows of like length for ever, in an order drawn anew for each pass."""
    generator = torch_generator(seed, "order")
    lengths = (rows != PAD).sum(1).cpu()
    group = min(32, len(rows) // size)  # batches that are sorted by length together
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(rows) - group * size + 1, group * size):
            chunk = order[start : start + group * size]
            chunk = chunk[lengths[chunk].argsort(stable=True)].view(group, size)
            for i in torch.randperm(group, generator=generator).tolist():
                yield rows[chunk[i].to(rows.device)]


def train(model: LlamaForCausalLM, rows: torch.Tensor, options: argparse.Namespace) -> int:
    """Train on the rows with a warm-up and a cosine decay; return the number of steps done."""
    weights = [p for p in model.parameters() if p.requires_grad]
    fused = options.device.startswith("cuda")
    optimizer = torch.optim.AdamW(weights, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=fused)
    supply, begin, step, done = batches(rows, options.batch_size, options.seed), time.monotonic(), 0, 0.0
    while done < 1.0:
        warm = min(1.0, (step + 1) / 200)
        optimizer.param_groups[0]["lr"] = options.lr * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        losses = token_losses(model, next(supply), options.device)
        loss = losses.sum() / (losses > 0).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        spent = time.monotonic() - begin
        done = max(step / options.steps, spent / options.max_seconds if options.max_seconds else 0.0)
        if step % 500 == 0 or done >= 1.0:
            print(f"step {step}/{options.steps} loss {loss.item():.4f} {spent:.0f}s", flush=True)
    return step


def answer_positions(targets: torch.Tensor, mark: int, newline: int) -> torch.Tensor:
    """Return where an exercise's answer stands, after `=` to the end of its line: bool of the targets' shape."""
    inside = torch.zeros_like(targets, dtype=torch.bool)
    state = torch.zeros(len(targets), dtype=torch.bool)
    for i in range(targets.shape[1]):
        inside[:, i] = state
        state = (state | (targets[:, i] == mark)) & (targets[:, i] != newline) & (targets[:, i] != EOS)
    return inside


def held_out(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace
) -> dict[str, Any]:
    """Return, per language, the mean loss of all tokens and of the tokens that answer an exercise."""
    known = tokenizer.get_vocab()
    mark, newline = known["="], known["Ċ"]
    report: dict[str, Any] = {}
    for language in LANGUAGES:
        rows = encode(tokenizer, pretraining_text(language, 600, derive_seed(options.seed, "held out")))
        with torch.no_grad():
            losses = token_losses(model, rows, options.device).float().cpu()
        targets = rows[:, 1 : losses.shape[1] + 1].long()
        inside = answer_positions(targets, mark, newline)
        report[language] = {
            "loss": round(float(losses[targets != PAD].mean()), 4),
            "exercise_answer_loss": round(float(losses[inside].mean()), 4),
        }
    return report


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict[str, Any], out: Path) -> None:
    """Write the model in bfloat16, the tokenizer and the provenance."""
    out.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    record["files"] = {path.name: hash_file(path) for path in sorted(out.iterdir()) if path.name != "provenance.json"}
    (out / "provenance.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def provenance(options: argparse.Namespace, steps: int, parameters: int, losses: dict[str, Any]) -> dict[str, Any]:
    """Return how the weights were made: settings, versions, kind of hardware, held-out losses."""
    gpu = options.device.startswith("cuda")
    return {
        "script": "scripts/train_demo_backbone.py",
        "arguments": {name: value for name, value in vars(options).items() if name != "out"},
        "steps_done": steps,
        "parameters": parameters,
        "held_out": losses,
        "hardware": torch.cuda.get_device_name() if gpu else f"CPU ({platform.machine()})",
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__, "numpy": np.__version__,
        },
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Write the text, train tokenizer and model, measure and save."""
    options = arguments(argv)
    texts = write_documents(options.documents, options.seed, options.workers)
    tokenizer = train_tokenizer([text for name in LANGUAGES for text in texts[name][:6000]], options.vocabulary)
    rows = torch.cat([_pad(encode(tokenizer, texts[name]), 256) for name in LANGUAGES])
    print(f"{len(rows)} documents, {(rows != PAD).sum(1).float().mean():.1f} tokens each", flush=True)
    model = build_model(options).to(options.device).train()
    steps = train(model, rows.to(options.device), options)
    losses = held_out(model.eval(), tokenizer, options)
    print(json.dumps(losses), flush=True)
    parameters = sum(p.numel() for p in model.parameters())
    save(model.cpu(), tokenizer, provenance(options, steps, parameters, losses), options.out)


def _pad(rows: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=PAD)


if __name__ == "__main__":
    main()
