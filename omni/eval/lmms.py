"""Plug-in for lmms-eval: `lmms-eval --model omni --model_args pretrained=tiny --tasks ...`, by its chat interface.

Pictures, videos with their own sound, sounds and text, in batches; thinking, if any, is taken off before it is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, TokenCounts  # pyright: ignore[reportMissingImports]  (plug-in)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.protocol import ChatMessages  # pyright: ignore[reportMissingImports]

from omni.answer import Result
from omni.eval.extract import spoken
from omni.eval.harness import flag, settings, together
from omni.generate import Stream
from omni.load import load
from processors.batch import Batch


class OmniChat(lmms):
    """A model of the family for lmms-eval.

    pretrained: as of `omni.load`. max_num_frames, fps: of a video, one of both. evs: share of its tokens removed.
    context: tokens that a prompt may take. think, thinking_budget: thinking before the answer. Raises ValueError for
    arguments that are unknown.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny",
        batch_size: int | str = 1,
        device: str | None = None,
        max_num_frames: int | str | None = None,
        fps: float | str | None = None,
        evs: float | str | None = None,
        context: int | str | None = None,
        think: bool | str = False,
        thinking_budget: int | str | None = None,
        system_prompt: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(f"omni: model_args {', '.join(unknown)} are unknown; see omni.eval.lmms.OmniChat")
        if max_num_frames is not None and fps is not None:
            raise ValueError("omni: max_num_frames and fps came; state one of them")
        self.model, self.processor = load(pretrained, device=device or "auto")
        self.batch_size = int(batch_size)
        self.frames = None if max_num_frames is None else int(max_num_frames)
        self.fps = None if fps is None else float(fps)
        self.evs = None if evs is None else float(evs)
        self.context = None if context is None else int(context)
        self.think = flag("think", think)
        self.budget = None if thinking_budget is None else int(thinking_budget)
        self.system = self._resolve_system_prompt(system_prompt) if system_prompt else ""

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answers in the order of the requests; those with the same settings are written side by side."""
        answers: dict[int, Result] = {}
        for batch in together([request.args[2] for request in requests], self.batch_size):
            made = self._answer([requests[i] for i in batch], seed=len(answers))
            answers.update(zip(batch, made, strict=True))
        found = list[Any]()
        for i, request in enumerate(requests):
            text = spoken(answers[i].text) or ""
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), text)
            counts = TokenCounts(
                input_tokens=answers[i].prompt_tokens,
                output_tokens=len(answers[i].tokens),
                reasoning_tokens=answers[i].thinking_tokens,
            )
            found.append(GenerationResult(text=text, token_counts=counts))
        return found

    def _answer(self, requests: Sequence[Any], seed: int) -> list[Result]:
        pieces = self.model.generate(
            Batch.pack([self._prompt(request) for request in requests]),
            thinking_budget=self.budget if self.think else 0,
            seed=seed,
            stream=True,
            **settings(requests[0].args[2], longest=1024),
        )
        assert isinstance(pieces, Stream)
        return pieces.results

    def _prompt(self, request: Any) -> Batch:
        _, told, _, number, task, split = request.args
        messages = told(self.task_dict[task][split][number])
        messages = self._apply_system_prompt(messages, self.system)
        chat = ChatMessages(messages=messages)
        return self.processor(
            [{"role": m.role, "content": [self._part(part) for part in m.content]} for m in chat.messages],
            context=self.context,
            video_pruning_rate=self.evs,
            enable_thinking=self.think,
        )

    def _part(self, content: Any) -> dict[str, Any]:
        """A part of a message as the processor takes it."""
        match content.type:
            case "text":
                return {"type": "text", "text": content.text}
            case "image":
                return {"type": "image", "image": content.url}
            case "audio":
                return _sound(content.url)
            case _:
                return {"type": "video", "video": content.url, **self._sampling(content.start_time, content.end_time)}

    def _sampling(self, start: float | None, end: float | None) -> dict[str, Any]:
        """Which frames; of a part of a clip, which starts and ends at these seconds, those of its moments."""
        if end is not None:
            start = start or 0.0
            count = self.frames or max(1, round((end - start) * (self.fps or 1.0)))
            return {"times": [start + (end - start) * (i + 0.5) / count for i in range(count)]}
        if start:
            raise ValueError(f"omni: a clip from {start} s on came without its end; lmms-eval's task must state both")
        if self.frames is not None:
            return {"sampling": {"frames": self.frames}}
        return {} if self.fps is None else {"fps": self.fps}

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Always raises ValueError: chat tasks are generated."""
        raise ValueError(
            "omni: lmms-eval asks for likelihoods; take the task's variant with output_type generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Always raises ValueError: the chat interface has one round."""
        raise ValueError("omni: this task asks in several rounds, which lmms-eval's chat interface does not have")


def _sound(value: Any) -> dict[str, Any]:
    """A sound as `datasets` decodes it (an array and its rate), or a file."""
    if isinstance(value, Mapping):
        return {"type": "audio", "audio": value["array"], "rate": value["sampling_rate"]}
    return {"type": "audio", "audio": value}
