"""Plug-in for EleutherAI's lm-eval, for tasks of text: `python -m omni.eval.lm_eval run --model omni --tasks ...`.

That command is lm-eval's own, which finds no models of other packages by itself; from Python, import this module and
pass model="omni" to `lm_eval.simple_evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]  (plug-in)
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]

from omni.answer import Result
from omni.eval.extract import spoken
from omni.eval.harness import flag, settings, together
from omni.generate import Stream
from omni.load import load
from processors.batch import Batch

Ids = list[int]


@register_model("omni")
class OmniText(TemplateLM):
    """A model of the family for lm-eval.

    pretrained: as of `omni.load`. max_length: tokens of a window of `loglikelihood_rolling`; nothing else is cut.
    think, thinking_budget: thinking before the answer, with lm-eval's --apply_chat_template; it is taken off before the
    answer is scored. Raises ValueError for arguments that are unknown.
    """

    def __init__(
        self,
        pretrained: str = "tiny",
        batch_size: int | str = 1,
        device: str | None = None,
        max_length: int | str = 4096,
        think: bool | str = False,
        thinking_budget: int | str | None = None,
        quantize: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(f"omni: model_args {', '.join(unknown)} are unknown; see omni.eval.lm_eval.OmniText")
        if not str(batch_size).isdigit():
            raise ValueError(f"omni: batch_size {batch_size!r} came; want a number, such as 8")
        self.model, self.processor = load(pretrained, device=device or "auto", quantize=quantize)  # pyright: ignore[reportArgumentType]  (it checks)
        self.tokenizer: Any = self.processor.tokenizer
        self.pretrained, self.batch_size, self.max_length = pretrained, int(batch_size), int(max_length)
        self.think = flag("think", think)
        self.budget = None if thinking_budget is None else int(thinking_budget)

    @property
    def eot_token_id(self) -> int:
        """The first id that ends an answer."""
        return self.model.config.eos[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the id that begins one, where the tokenizer has it."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests."""
        return self.pretrained.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> Ids:
        """Text → ids, as it stands: nothing is put before it."""
        return self.tokenizer.encode(string, add_special_tokens=False)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the checkpoint's template writes it, thinking on or off."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            enable_thinking=self.think,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Ids, Ids]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Of each (texts, context, continuation): the continuation's log-probability, and whether it is what greedy
        decoding says.
        """
        found = list[tuple[float, bool]]()
        for start in range(0, len(requests), self.batch_size):
            some = requests[start : start + self.batch_size]
            for (texts, _, _), made in zip(some, self._weigh([(a, b) for _, a, b in some]), strict=True):
                found.append(made)
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, made)
        return found

    @torch.inference_mode()
    def _weigh(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
        """Pairs side by side; the vocabulary is scored for continuations alone."""
        read = [(context + text)[:-1] for context, text in pairs]
        ids = [token for each in read for token in each]
        lengths = torch.tensor([len(each) for each in read])
        batch = Batch(tokens=torch.tensor(ids, dtype=torch.long), lengths=lengths)
        spliced = self.model.embed(batch.to(self.model.device))
        ends = lengths.cumsum(0).tolist()
        hidden = self.model.read(spliced.embeddings, spliced.lengths)
        found = list[tuple[float, bool]]()
        for end, (_, text) in zip(ends, pairs, strict=True):
            chances = self.model.score(hidden[end - len(text) : end]).log_softmax(-1)
            wanted = torch.tensor(text, dtype=torch.long, device=chances.device)
            said = chances.gather(1, wanted[:, None])
            found.append((float(said.sum()), bool((chances.argmax(-1) == wanted).all())))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Each text's log-probability, in windows of `max_length`, every token once."""
        found = list[float]()
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(value for value, _ in self._loglikelihood_tokens(pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            found.append(float(total))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests; those with the same settings are written side by side."""
        answers: dict[int, str] = {}
        for batch in together([request.args[1] for request in requests], self.batch_size):
            made = self._answer([requests[i].args[0] for i in batch], requests[batch[0]].args[1], seed=len(answers))
            for i, result in zip(batch, made, strict=True):
                answers[i] = spoken(result.text) or ""
                self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
        return [answers[i] for i in range(len(requests))]

    def _answer(self, prompts: Sequence[str], how: Mapping[str, Any], seed: int) -> list[Result]:
        read = [torch.tensor(self.tok_encode(prompt) or [self.prefix_token_id]) for prompt in prompts]
        pieces = self.model.generate(
            Batch(tokens=torch.cat(read), lengths=torch.tensor([len(each) for each in read])),
            thinking_budget=self.budget if self.think else 0,
            seed=seed,
            stream=True,
            **settings(how, longest=256),
        )
        assert isinstance(pieces, Stream)
        return pieces.results


def main() -> None:
    """lm-eval's own command, which now knows this model."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    main()
