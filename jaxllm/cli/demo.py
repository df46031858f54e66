"""jaxllm demo"""

import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from jaxllm import compilation_cache
from jaxllm.cli.hints import USE_HINTS
from jaxllm.cli.parse import parse
from jaxllm.config import Config, Count, Range, UserPath
from jaxllm.data import read_documents
from jaxllm.errors import UserError
from jaxllm.generate import Decoder
from jaxllm.text.load import load_model_and_tokenizer
from jaxllm.user_cache import user_cache_folder
from jaxllm.write import Lexicon, ModelSource, Service, ServiceConfig, UserStore
from jaxllm.write.server import check_extra, is_loopback, open_port, serve

_DESCRIPTION = """Open a page that suggests what comes next while you type.

  jaxllm demo pypi:smollm2
  jaxllm demo runs/mine --data notes.jsonl        # a run of yours, and the words that people there use
  jaxllm demo OWNER/NAME --host 0.0.0.0           # for others too: the address that it prints holds a token

Words and phrases are counted in --data, and in what each user writes, which is kept in --users; the model is
asked beside them, and answers in time or not at all."""

_SLOTS = 192  # tokens that the model sees


@dataclass(frozen=True)
class DemoConfig(Config):
    """Values of `jaxllm demo`."""

    model: tyro.conf.Positional[UserPath]  # training run, pretrained folder or file, hub id, pypi:NAME
    adapter: UserPath | None = None  # of that model: a folder as peft writes it, or a run with --lora.rank
    data: UserPath = "sotu"  # text whose words and phrases everybody begins with
    most_words: Count = 200_000  # of it that are counted
    users: UserPath | None = None  # folder of what users wrote; None: in the user's cache folder
    host: str = "127.0.0.1"
    port: Annotated[int, Range(0, 65535)] = 8765  # 0: a free one
    service: ServiceConfig = ServiceConfig()
    checkpoint: Literal["latest", "best"] = "latest"  # of a training run

    def __post_init__(self):
        super().__post_init__()
        if not self.host:
            raise UserError("host is empty; give 127.0.0.1 for this machine alone, or 0.0.0.0")


def main(argv: Sequence[str]) -> None:
    """Serve the page until Ctrl-C."""
    config, _ = parse(DemoConfig, argv, prog="jaxllm demo", description=_DESCRIPTION, hints=USE_HINTS)
    listening = open_port(config.host, config.port)  # before anything that takes time
    check_extra()
    compilation_cache.enable()
    model, params, tokenizer = load_model_and_tokenizer(
        config.model, config.checkpoint, adapter=config.adapter
    )
    slots = min(_SLOTS, model.context_length)
    source = ModelSource(Decoder(model, params), tokenizer, slots=slots)
    print("compiling ...", file=sys.stderr, end=" ", flush=True)
    print(f"{source.warm_up():.0f} s", file=sys.stderr)
    store = UserStore(config.users if config.users is not None else user_cache_folder() / "users")
    service = Service(counted(config.data, config.most_words), source, store, config.service)
    token = None if is_loopback(config.host) else secrets.token_urlsafe(16)
    host, port = listening.getsockname()[:2]
    asked = "" if token is None else f"?token={token}"
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}/{asked}   (Ctrl-C ends)", flush=True)
    serve(service, listening, token)


def counted(data: str, most_words: int) -> Lexicon:
    """Return the words and phrases of a text's first words."""
    lexicon, left = Lexicon(), most_words
    with tqdm(total=most_words, desc="words", unit="word", delay=2, disable=None, leave=False) as bar:
        for line in _lines(data):
            words = line.split(maxsplit=left)[:left]
            lexicon.learn(" ".join(words))
            left -= len(words)
            bar.update(len(words))
            if not left:
                break
    return lexicon


def _lines(data: str) -> Iterator[str]:
    for document in read_documents(data):
        yield from (line for line in document.splitlines() if line.strip())
