"""Generative calibration's procedure on transformers, as somebody who knows it well would write it."""

import time

import torch
import transformers

from experiments.benchmarks.resident_memory import resident_bytes
from jaxllm.score.few_shot import FewShotTask


class Rival:
    """A model in float32; its methods are those of the benchmark's other side."""

    def __init__(self, folder: str, rows: int):
        self.imported_megabytes = resident_bytes("VmHWM") / 2**20
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
        self.rows = rows

    @torch.inference_mode()
    def job(self, task: FewShotTask, exemplars, inputs, config, seed: int) -> dict[str, float]:
        """Return seconds, and the mean log-probability of the labels after the inputs."""
        torch.manual_seed(seed)
        begun = time.perf_counter()
        prompt = self._ids("".join(task.exemplar(values, label) for values, label in exemplars))
        cache = transformers.DynamicCache(config=self.model.config)
        self.model(torch.tensor([prompt]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        labels = [self._after(f"\n{task.fields[-1]}:", f" {label}")[0] for label in task.labels]
        read = time.perf_counter()
        drawn = self._draw(task, cache, labels, config)
        prior = torch.log_softmax(torch.logsumexp(drawn, 0), 0)
        sampled = time.perf_counter()
        scores = self._classify([task.query(values) for values in inputs], cache, len(prompt), labels)
        after = torch.log_softmax(torch.log_softmax(scores, 1) - prior, 1)
        ended = time.perf_counter()
        assert torch.isfinite(after).all()
        return {
            "seconds/draw": sampled - read, "seconds/classify": ended - sampled,
            "seconds/total": ended - begun,
            "mean_log_prob": float(scores.mean()),
        }  # fmt: skip

    def _draw(self, task, cache, labels, config) -> torch.Tensor:
        """Return log p(label | prompt, input) of inputs that the model writes [L, Y]."""
        opening = self._ids(f"\n{task.fields[0]}:")
        markers = [self._after(": word", f"\n{field}:") for field in task.fields[1:]]
        firsts = torch.tensor([ids[0] for ids in markers])
        banned = [i for i in range(len(self.tokenizer)) if "\n" in self.tokenizer.decode([i])]
        ends = self.model.config.eos_token_id
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        banned = torch.tensor(sorted({*ends, *banned} - set(firsts.tolist())))
        found = []
        while len(found) < config.samples:
            rows = min(self.rows, config.samples - len(found))
            own = self._copies(cache, rows)
            logits = self._step(torch.tensor([opening] * rows), own)
            field, place = torch.zeros(2, rows, dtype=torch.long)
            for _ in range(config.max_new_tokens):
                logits[:, banned] = -torch.inf
                token = torch.multinomial(torch.softmax(logits, 1), 1)[:, 0]
                for row in range(len(token)):  # a few comparisons a row
                    if place[row] or (token[row] == firsts).any():
                        token[row] = markers[field[row]][place[row]]
                        place[row] += 1
                logits = self._step(token[:, None], own)
                ended = torch.tensor([place[row] == len(markers[field[row]]) for row in range(len(token))])
                field, place = field + ended, torch.where(ended, 0, place)
                done = field == len(markers)
                if done.any():
                    log_probs = torch.log_softmax(logits[done], 1)[:, labels]
                    found += list(log_probs)
                    kept = (~done).nonzero()[:, 0]
                    if not len(kept):
                        break
                    own.batch_select_indices(kept)
                    field, place, logits = field[kept], place[kept], logits[kept]
        return torch.stack(found[: config.samples])

    def _classify(self, queries, cache, length, labels) -> torch.Tensor:
        """Return log p(label | prompt, query) [N, Y], sixteen queries at once, of similar length."""
        ids = [self._ids(text) for text in queries]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        scores = torch.zeros(len(ids), len(labels))
        for at in range(0, len(order), 16):
            rows = order[at : at + 16]
            longest = len(ids[rows[0]])
            tokens, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
            for place, row in enumerate(rows):
                tokens[place, longest - len(ids[row]) :] = torch.tensor(ids[row])
                mask[place, longest - len(ids[row]) :] = 1
            positions = length + (mask.cumsum(1) - 1).clamp(min=0)
            seen = torch.cat([torch.ones(len(rows), length, dtype=torch.long), mask], 1)
            logits = self.model(
                tokens, past_key_values=self._copies(cache, len(rows)), use_cache=True, attention_mask=seen,
                position_ids=positions, logits_to_keep=1,
            ).logits  # fmt: skip
            scores[rows] = torch.log_softmax(logits[:, -1], 1)[:, labels]
        return scores

    def _step(self, tokens, cache) -> torch.Tensor:
        return self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def _copies(self, cache, rows: int):
        """Return a cache of so many rows, each with the prompt's keys and values."""
        copied = transformers.DynamicCache(config=self.model.config)
        for number, layer in enumerate(cache.layers):
            repeat = [x.expand(rows, -1, -1, -1) for x in (layer.keys, layer.values)]
            copied.update(*repeat, number)
        return copied

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _after(self, before: str, text: str) -> list[int]:
        return self._ids(before + text)[len(self._ids(before)) :]

