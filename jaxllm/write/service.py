"""Suggestions for many users at once: every key answered by counts, and by the model if it is in time.

Nothing here knows of a network: `jaxllm.write.server` puts it behind a WebSocket.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from jaxllm.config import Config, Count, Positive
from jaxllm.errors import UserError, brief
from jaxllm.write.lexicon import Lexicon
from jaxllm.write.model_source import ModelSession, ModelSource
from jaxllm.write.replay import accepted_words
from jaxllm.write.user_store import UserStore
from jaxllm.write.words import finished
from jaxllm.write.writer import Suggestion, Writer, WriterConfig

_SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class ServiceConfig(Config):
    """What users may send, and how long the model may take."""

    most_characters: Count = 20_000  # of a text
    shown: Count = 3  # suggestions
    budget_ms: Positive = 80.0  # of the model, from a key to its answer
    writer: WriterConfig = WriterConfig(threshold=0.1)


@dataclass
class _Open:
    writer: Writer
    desks: int = 0
    saved: float = field(default_factory=time.monotonic)
    changed: bool = False


class Service:
    """All users of a process.

    Args:
      shared: what everybody writes.
      source: a language model, or None: the counts alone.
      store: where users are kept.
      config: limits.
    """

    def __init__(
        self,
        shared: Lexicon,
        source: ModelSource | None,
        store: UserStore,
        config: ServiceConfig = ServiceConfig(),
    ):
        self.shared, self.source, self.store, self.config = shared, source, store, config
        self._open: dict[str, _Open] = {}
        # One thread: calls of the model take all cores, and users take turns.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    def open(self, name: str) -> "Desk":
        """Return a place for one connection of a user; two of the same user share what was learned.

        Raises:
          UserError: the user's file is damaged.
        """
        if name not in self._open:
            self._open[name] = _Open(self._writer(name))
        self._open[name].desks += 1
        return Desk(self, name, self._open[name])

    def close(self, name: str) -> None:
        """End a connection; a user's last one saves what was learned."""
        one = self._open[name]
        one.desks -= 1
        self._save(name, 0.0)
        if not one.desks:
            del self._open[name]

    def learned(self, name: str) -> None:
        """Note that a user's words changed, and save them every so often."""
        self._open[name].changed = True
        self._save(name, _SAVE_SECONDS)

    def export(self, name: str) -> dict:
        """Return everything that is held of a user."""
        user = self._open[name].writer.user if name in self._open else self.store.load(name)
        return self.store.export(user)

    def erase(self, name: str) -> None:
        """Forget a user: on the disk, and in connections that are open."""
        self.store.erase(name)
        if name in self._open:
            one = self._open[name]
            one.writer, one.changed = self._writer(name), False

    def _writer(self, name: str) -> Writer:
        user = self.store.load(name)
        user.fade(self.config.writer.fades)
        return Writer(self.shared, user, self.config.writer)

    def _save(self, name: str, after: float) -> None:
        one = self._open[name]
        if one.changed and time.monotonic() - one.saved >= after:
            self.store.save(name, one.writer.user)
            one.saved, one.changed = time.monotonic(), False


class Desk:
    """One text of one user, as it changes.

    Attributes:
      late: texts that the model answered too late, or not at all, because a newer one had come.
    """

    def __init__(self, service: Service, name: str, user: _Open):
        self._service, self.name, self._user = service, name, user
        self._session: ModelSession | None = None if service.source is None else service.source.session()
        self.sequence, self.text, self.late = -1, "", 0
        self._learned: int | None = None  # characters of the text that were learned
        self._taken: list[tuple[int, int]] = []
        self._shown: list[Suggestion] = []

    @property
    def writer(self) -> Writer:
        """Who suggests: the user's own, another once they were erased."""
        return self._user.writer

    def typed(self, sequence: int, text: str) -> list[Suggestion]:
        """Return what the counts suggest after a key, at once; finished sentences are learned.

        Raises:
          UserError: the text is too long, older than one that came before, or has half a character.
        """
        most = self._service.config.most_characters
        if not isinstance(sequence, int) or not isinstance(text, str):
            raise UserError(f"seq {brief(sequence, 20)}, text {brief(text, 20)}: expected a number and text")
        if len(text) > most:
            raise UserError(
                f"the text has {len(text):,} characters, and {most:,} are the most; begin a new one"
            )
        if sequence <= self.sequence:
            raise UserError(f"text {sequence} is no newer than {self.sequence}; number texts upwards")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON may say "\ud83d" alone, which no file holds
            raise UserError(
                f"the text has half a character at {error.start:,}; send both halves of it, or neither"
            ) from error
        self._note_refusal(text)
        self.sequence, self.text = sequence, text
        self._learn()
        self._shown = self.writer.suggest(text, self._service.config.shown)
        return self._shown

    async def asked(self, received: float) -> list[Suggestion] | None:
        """Return what the model adds for the latest text; None: too late, or another text has come since.

        Args:
          received: when the text came, by `time.perf_counter`; the budget counts from there.
        """
        if self._session is None:
            return None
        sequence, text = self.sequence, self.text
        deadline = received + self._service.config.budget_ms / 1000
        loop = asyncio.get_running_loop()
        proposals = await loop.run_in_executor(self._service.thread, self._propose, sequence, text, deadline)
        if sequence != self.sequence or not proposals:
            self.late += 1
            return None
        self._shown = self.writer.suggest(text, self._service.config.shown, proposals)
        return self._shown

    def took(self, text: str, whole: bool) -> None:
        """Learn that the first suggestion was taken after a text: its first word, or all of it."""
        if text == self.text and self._shown:
            suggestion = self._shown[0]
            self.writer.accepted(text, suggestion)
            self._user.changed = True
            length = len(suggestion.text if whole else suggestion.first)
            self._taken.append((len(text), len(text) + length))
            self._shown = []

    def refused(self) -> None:
        """Learn that the suggestions shown were sent away."""
        if self._shown:
            self._refuse()
            self._shown = []

    def close(self) -> None:
        """End the connection."""
        self._service.close(self.name)

    def _propose(self, sequence: int, text: str, deadline: float) -> Sequence:
        if sequence != self.sequence:  # a newer key came while others were answered
            return []
        return self._session.propose(text, deadline)

    def _note_refusal(self, text: str) -> None:
        """Count a suggestion as refused where a letter was typed that is not its next."""
        if self._shown and text.startswith(self.text) and len(text) == len(self.text) + 1:
            if not any(one.text.startswith(text[-1]) for one in self._shown):
                self._refuse()

    def _refuse(self) -> None:
        self.writer.rejected(self.text, self._shown[0])
        self._user.changed = True

    def _learn(self) -> None:
        """Learn sentences that were finished since the last key; a text that is there at first is known."""
        end = finished(self.text)
        if self._learned is None or end < self._learned:
            self._learned = end
        if end > self._learned:
            piece, begin = self.text[self._learned : end], self._learned
            taken = [(a - begin, b - begin) for a, b in self._taken]
            words = accepted_words(piece, taken)
            for line in piece.split("\n"):
                count = len(line.split())
                self.writer.learn(line, words[:count])
                words = words[count:]
            self._learned, self._taken = end, []
            self._service.learned(self.name)
