"""The frozen description of a hybrid of models, and its parameters; see hybrid.py for what it computes."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxllm.config import Count, CountOrZero, Positive, Size
from jaxllm.errors import UserError, brief
from jaxllm.models.architecture import Declaration, declare, leaves
from jaxllm.models.config import DTYPES, REMAT, LanguageModel, ModelConfig, check_decodes
from jaxllm.models.mamba import MambaConfig
from jaxllm.models.projectors import PROJECTORS, declare_projector
from jaxllm.models.vocab_groups import VocabGroups

# "new": each part has a new table of the vocabulary, which is its head too. "parts": each keeps its own table
# and head, of one vocabulary. "first": part 0 keeps its own, the others have new ones of its vocabulary.
TABLES = ("new", "parts", "first")


@dataclass(frozen=True)
class HybridConfig(LanguageModel):
    """A hybrid of decoders. Fields that are None are the first part's; what is set becomes all parts'.

    Raises:
      UserError: a part's depth that the blocks do not divide, widths or vocabularies that do not go together.

    Examples:
      >>> gpt = ModelConfig(num_layers=6, embed_dim=64, num_heads=4)
      >>> parts = gpt, MambaConfig(num_layers=4, embed_dim=48)
      >>> config = HybridConfig(parts=parts, blocks=2)
      >>> config.embed_dim, config.spans(1)
      (64, (range(0, 2), range(2, 4)))
      >>> HybridConfig(parts=parts, blocks=4)
      Traceback (most recent call last):
      ...
      jaxllm.errors.UserError: blocks=4 do not divide the 6 layers of part 0; choose one of 1, 2
    """

    parts: tuple[LanguageModel, ...] = (ModelConfig(), MambaConfig())
    blocks: Count = 1
    projector: Literal[PROJECTORS] = "linear"
    tables: Literal[TABLES] = "new"
    running: tuple[tuple[CountOrZero, ...], ...] | None = None  # parts that each block runs; None: all
    vocab_size: Size | None = None
    vocab_groups: VocabGroups | None = None  # none: the head is the parts' tables
    init_std: Positive = 0.02  # of new tables
    dtype: Literal[DTYPES] | None = None  # of matmuls; the common stream is float32
    param_dtype: Literal[DTYPES] | None = None
    remat: Literal[REMAT] | None = None  # what each layer keeps for the backward pass
    architecture: Literal["hybrid"] = "hybrid"

    tie_embeddings: ClassVar[bool] = True
    group_head: ClassVar[str] = "hidden"

    def __post_init__(self):
        if not self.parts:
            raise UserError("parts=() is no hybrid; give the config of at least one model")
        super().__post_init__()
        if self.vocab_groups is not None:
            raise UserError(
                "vocab_groups make another head, and a hybrid's is its parts' tables; leave it out"
            )
        for index, part in enumerate(self.parts):
            _check_part(index, part)
        common = dict(dtype=self.dtype, param_dtype=self.param_dtype, remat=self.remat)
        parts = [self._with_vocabulary(index, part, common) for index, part in enumerate(self.parts)]
        object.__setattr__(self, "parts", tuple(parts))
        for index, part in enumerate(self.parts):
            if part.num_layers % self.blocks:
                depth = math.gcd(*(one.num_layers for one in self.parts))
                fitting = ", ".join(str(n) for n in range(1, depth + 1) if depth % n == 0)
                raise UserError(
                    f"blocks={self.blocks} do not divide the {part.num_layers} layers of part {index}; "
                    f"choose one of {fitting}"
                )
        self._check_running()
        widths = [part.embed_dim for part in self.parts]
        mixed = any(len({widths[part] for part in names}) > 1 for names in self.running)
        if self.projector == "none" and mixed:
            raise UserError(
                f"projector='none' passes vectors on as they are, and the parts' widths are {brief(widths)}; "
                "choose projector='linear'"
            )

    def _with_vocabulary(self, index, part, common):
        size = self.vocab_size
        if self.has_new_table(index):
            return dataclasses.replace(part, vocab_size=size, tie_embeddings=True, **common)
        if part.vocab_size is not None and size not in (None, part.vocab_size):
            raise UserError(
                f"part {index} has a vocabulary of {part.vocab_size} tokens and the hybrid one of {size}; "
                "give tables='first' or 'new', where such a part has a new table"
            )
        return dataclasses.replace(part, vocab_size=size, **common)

    def _check_running(self):
        if len(self.running) != self.blocks:
            raise UserError(
                f"running={brief(self.running)} is of {len(self.running)} blocks, and blocks={self.blocks}"
            )
        for block, names in enumerate(self.running):
            if not names or len(set(names)) < len(names) or max(names) >= len(self.parts):
                raise UserError(
                    f"block {block} runs the parts {brief(names)}; name some of 0 to {len(self.parts) - 1}, "
                    "each once"
                )

    @property
    def derived(self) -> dict[str, Any]:
        """What fields that are None become."""
        first = self.parts[0]
        common = {name: getattr(first, name) for name in ("vocab_size", "dtype", "param_dtype", "remat")}
        return common | {"running": (tuple(range(len(self.parts))),) * self.blocks}

    def choose(self, parts: Sequence[int]) -> "HybridConfig":
        """Return the hybrid whose block i runs part `parts[i]` alone: of the same parameters, less work."""
        return dataclasses.replace(self, running=tuple((int(part),) for part in parts))

    def has_new_table(self, part: int) -> bool:
        """Say whether a part has a new table of the vocabulary in place of its own."""
        return self.tables == "new" or (self.tables == "first" and part > 0)

    def spans(self, part: int) -> tuple[range, ...]:
        """Return which of a part's layers each block has."""
        count = self.parts[part].num_layers // self.blocks
        return tuple(range(block * count, (block + 1) * count) for block in range(self.blocks))

    @property
    def num_layers(self) -> int:
        """How many blocks the common stream runs through."""
        return self.blocks

    @property
    def embed_dim(self) -> int:
        """The width of the common stream: the widest part's."""
        return max(part.embed_dim for part in self.parts)

    @property
    def context_length(self) -> int:
        """How many tokens all parts have learned to read."""
        return min(part.context_length for part in self.parts)

    @property
    def most_positions(self) -> int | None:
        """How many tokens of a text all parts have positions for; None: any number."""
        return min((most for part in self.parts if (most := part.most_positions)), default=None)

    @property
    def most_cached(self) -> int:
        """How many tokens the caches of all parts may hold."""
        return min(part.most_cached for part in self.parts)

    def flops_per_token(self, seq_len: int) -> int:
        """Count matmul FLOPs of a training step per token: of spans that run, projectors and the head."""
        total = 6 * self.embed_dim * self.logits_per_token
        for names in self.running:
            for index in names:
                part = self.parts[index]
                head = 6 * part.embed_dim * part.logits_per_token
                total += (part.flops_per_token(seq_len) - head) // self.blocks
                if len(names) > 1:
                    total += 6 * self.projector_weights(index)
        return total

    def projector_weights(self, part: int) -> int:
        """Count the weights of a block's projectors to a part's stream and back that multiply a token."""
        if self.projector == "none":
            return 0
        return sum(one.size for one in leaves(declare_projectors(self, part)) if one.inputs)


def _check_part(index: int, part: LanguageModel) -> None:
    if not isinstance(part, ModelConfig | MambaConfig):
        raise UserError(
            f"part {index} has architecture '{part.architecture}'; a hybrid is of transformers of one stack "
            "and Mambas"
        )
    check_decodes(part)
    if part.head != "tokens" or part.vocab_groups is not None:
        raise UserError(f"part {index} has a head of its own kind; a hybrid's parts predict tokens directly")


@declare.register
def declare_hybrid(config: HybridConfig) -> dict:
    """Return the declarations of a hybrid: its parts' own trees, projectors, new tables and the mixture."""
    V, parts, tables = config.known_vocab_size, {}, {}
    for index, part in enumerate(config.parts):
        tree = declare(part)
        if config.has_new_table(index):
            std, shape = config.init_std, (V, part.embed_dim)
            tables[str(index)] = Declaration(shape, ("vocab", "embed"), ("vocab",), std)
            tree = without_table(tree)
        parts[str(index)] = tree
    tree = {"parts": parts}
    if config.projector != "none":
        one = {str(index): declare_projectors(config, index) for index in range(len(parts))}
        tree["projectors"] = {str(block): one for block in range(config.blocks)}
    if tables:
        tree["tables"] = tables
    logits = Declaration((config.blocks, len(parts)), ("blocks", "mixture"))
    return tree | {"mixture": {"logits": logits}}


def without_table(tree: dict) -> dict:
    """Return a part's tree without its table of tokens and its head."""
    embed = {name: one for name, one in tree["embed"].items() if name != "tokens"}
    rest = {name: one for name, one in tree.items() if name not in ("embed", "head")}
    return rest | ({"embed": embed} if embed else {})


def declare_projectors(config: HybridConfig, part: int) -> dict:
    """Return {"in", "out"}: the projectors of one block to a part's stream and back."""
    common, own = projector_sides(config, part)
    kind = config.projector
    return {"in": declare_projector(kind, common, own), "out": declare_projector(kind, own, common)}


def projector_sides(config, part):
    """Return (name, size) of the common stream's axis, and of a part's."""
    return ("embed", config.embed_dim), ("part_embed", config.parts[part].embed_dim)
