"""What the program learned of each user: a file each, written whole or not at all, exported and erased."""

import hashlib
import json
import time
from pathlib import Path

from jaxllm.atomic import write_file
from jaxllm.errors import UserError, bare
from jaxllm.json_file import read_json
from jaxllm.write.lexicon import Lexicon

_FORMAT = 1
_MOST_BYTES = 2**26
_DAY = 24 * 3600


class User:
    """One user's writing.

    Attributes:
      lexicon: their words and phrases, of a bounded size.
      rejections: how often a word was refused after a context, (context, word) to a count.
      day: when it last faded, in days since 1970.
    """

    def __init__(self, lexicon: Lexicon, rejections: dict[tuple[str, str], int] | None = None, day: int = 0):
        self.lexicon, self.rejections, self.day = lexicon, rejections or {}, day

    @classmethod
    def new(cls, most: int = 50_000, order: int = 4, day: int | None = None) -> "User":
        """Return a user of whom nothing is known."""
        day = int(time.time() // _DAY) if day is None else day
        return cls(Lexicon(order, most, spelling=False), day=day)

    def fade(self, share: float, day: int | None = None) -> None:
        """Let what was learned fade by a share for each day since it last did."""
        day = int(time.time() // _DAY) if day is None else day
        if day > self.day:
            self.lexicon.forget(share ** (day - self.day))
            self.day = day


class UserStore:
    """The users of a folder. Names never become paths: a file is named by a hash.

    Args:
      folder: made when something is saved.
      most: grams held of a user.
    """

    def __init__(self, folder: str | Path, most: int = 50_000):
        self.folder, self.most = Path(folder).expanduser(), most

    def path(self, name: str) -> Path:
        """Return the file of a user, who may have none yet."""
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

    def load(self, name: str) -> User:
        """Return a user, new or as saved.

        Raises:
          UserError: their file is damaged.
        """
        path = self.path(name)
        if not path.exists():
            return User.new(self.most)
        content = read_json(path, most_bytes=_MOST_BYTES)
        try:
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            lexicon = Lexicon.from_dict(content["lexicon"], self.most)
            rejections = {(str(h), str(w)): int(count) for h, w, count in content["rejections"]}
            return User(lexicon, rejections, int(content["day"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the user's file {path} is damaged ({bare(error, 60)}); erase it, or put back a copy"
            ) from error

    def export(self, user: User) -> dict:
        """Return everything that is held of a user, as JSON has it."""
        return {
            "format": _FORMAT,
            "day": user.day,
            "lexicon": user.lexicon.to_dict(),
            "rejections": [[*key, count] for key, count in user.rejections.items()],
        }

    def save(self, name: str, user: User) -> None:
        """Write a user's file; half a character is written as it is, and read so."""
        content = json.dumps(self.export(user), ensure_ascii=False)
        write_file(self.path(name), content.encode(errors="surrogatepass"))

    def erase(self, name: str) -> None:
        """Remove all that was saved of a user."""
        self.path(name).unlink(missing_ok=True)
