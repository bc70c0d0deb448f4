"""Which role gets which encoding: decisions, as data.

A recipe is a TOML file. The named ones lie in recipe_data/; `--recipe FILE` loads any other:

    blocks = [32]                       # columns that share a scale where int4 matrices split into them. Default: none
    hadamard = ["attention", "ffn"]     # matrices that are turned before rounding, see turning.py. Default: none
    balance = true                      # scale columns by how large inputs are, see balance.py. Default: false
    search = "mse"                      # or "absmax"; how int4 and int2 scales are chosen. Default: "mse"

    [roles]                             # all of them, so that nothing is decided out of sight
    embedding = "int8"                  # or "head+3", "head": kept in a tied head's table, see below
    ple = "int4"
    head = "int8"
    attention = "int4"
    ffn = { encoding = "int4-b32", search = "absmax" }  # or { encoding = "int4", share = 0.2 }, see below
    altup = "int8"
    small = "int8"
    router = "int8"
    norm = "fp32"                       # always
    vision = "int8"                     # these three where a vision or an audio encoder is converted
    audio = "int8"
    kernel = "fp16"                     # or "fp32": convolutions multiply floats

    # share: a role with a smaller part of a model's values than this saves few bytes in 4 bits, and gets 8.

    [tensors]                           # single matrices that differ from their role, by name; default: none
    "layers.0.mlp.down_proj.weight" = "int8"

    [floor]                             # matrices below it stay fp32 whatever their role; default: no floor
    values = 4096
    columns_multiple_of = 32

The two embedding tables are read one row per token: they are offloaded to a section of their own, which is mapped and
never resident. Everything else is read in full for every token, so it is resident. A row of Gemma 3n's per-layer
embeddings in int4 has a scale for each layer's part of it, where that is as wide as a block may be.

An embedding that is tied to the head may be read from the head's table, which is then stored once: "head+3" keeps three
bits more of each value beside it where the head has int4 in blocks, see rests.py; "head" keeps nothing. Where that
cannot be, "head+3" is int8, and "head" what the head is: the head is another matrix, the format reads no rows of it,
some rows of the embedding are another's (images, audio), or calibration moves the head's integers too far for that.
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Self

from gemma_edge.converter.checkpoint.spelling import EMBEDDING
from gemma_edge.converter.quantize.qat_grid import Grid
from gemma_edge.converter.quantize.quantize import Search
from gemma_edge.converter.quantize.recipe_values import (
    check_keys,
    floor_of,
    one_of,
    roles_of,
    share_of,
    storage_of,
    table_of,
)
from gemma_edge.converter.quantize.storage import ENCODER_ROLES, Floor, Placement, RecipeError, Storage
from gemma_edge.converter.tensors import AS_STORED, HEAD, Role, TensorSpec
from gemma_edge.profiles.plain_file import read_plain_text
from gemma_edge.runtime.formats.encoding import BLOCKS, Encoding, EncodingError

__all__ = ["ENCODER_ROLES", "NAMES", "OTHER_NAMES", "Floor", "Placement", "Recipe", "RecipeError", "Storage"]

NAMES = ("fp32", "fp16", "int8", "int4")
"""The recipes that the precision part of a target ("e2b-int4") may name."""

OTHER_NAMES = ("int4-fast", "bf16")
"""Recipes that come with the package as well: `--recipe int4-fast`. bf16: for formats of other runtimes."""

_FP32 = Encoding("float", 32)
_BF16 = Encoding("float", 16, brain=True)
_INT8, _INT4 = Encoding("int", 8), Encoding("int", 4)
_HEAD = Encoding("rest", 0)


@dataclass(frozen=True)
class Recipe:
    """Role -> Storage for every role, tensors that differ from theirs, and the floor.

    name: one of NAMES, or the path of the file; begins every message. int4_blocks, negative_scales: see `with_blocks`.
    every_block: see `in_blocks`. int8_blocks: see `packing`.
    unfolded: whether tables are stored without what their rows are multiplied by.
    shares: of roles that are int8 where they hold a smaller part of a model's values, see `for_shares`.
    hadamard: roles whose matrices are turned, see turning.py. balance: whether columns are scaled, see balance.py.
    Raises RecipeError, by key, for a decision that no bundle can hold.
    """

    name: str
    roles: Mapping[Role, Storage]
    floor: Floor = field(default_factory=Floor)
    int4_blocks: tuple[int, ...] = ()
    tensors: Mapping[str, Storage] = field(default_factory=dict)
    negative_scales: bool = False
    hadamard: frozenset[Role] = frozenset()
    balance: bool = False
    shares: Mapping[Role, float] = field(default_factory=dict)
    every_block: int = 0
    int8_blocks: tuple[int, ...] = ()
    unfolded: bool = False

    def __post_init__(self) -> None:
        missing = [role.value for role in Role if role not in (*self.roles, *ENCODER_ROLES)]
        if missing:
            raise RecipeError(f"{self.name}: roles: {', '.join(missing)} missing; add a line for each")
        if self.roles[Role.NORM].encoding != _FP32:
            found = self.roles[Role.NORM].encoding.name
            raise RecipeError(
                f"{self.name}: roles.norm: found {found}, expected fp32; norms are vectors, never quantized"
            )
        others = {f"roles.{role}": storage for role, storage in self.roles.items() if role is not Role.EMBEDDING}
        others |= {f"tensors.{name}": storage for name, storage in self.tensors.items()}
        for key, storage in others.items():
            if storage.encoding.kind == "rest":
                raise RecipeError(
                    f"{self.name}: {key}: found {storage.encoding.name}, expected an encoding of its own; "
                    "only roles.embedding may be kept in the head's table"
                )
        if Role.KERNEL in self.roles and self.roles[Role.KERNEL].encoding.kind != "float":
            found = self.roles[Role.KERNEL].encoding.name
            raise RecipeError(
                f"{self.name}: roles.kernel: found {found}, expected fp16 or fp32; kernels of convolutions stay floats"
            )

    @classmethod
    def named(cls, name: str) -> Self:
        """The recipe that comes with the package as `name`. Raises RecipeError for any other name."""
        names = (*NAMES, *OTHER_NAMES)
        if name not in names:
            raise RecipeError(
                f"found recipe {name!r}, expected {', '.join(names)}; for a file of your own use --recipe FILE"
            )
        text = (
            resources.files("gemma_edge.converter.quantize").joinpath("recipe_data", f"{name}.toml").read_text("utf-8")
        )
        return cls._parse(name, text)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The recipe in the TOML file at `path`. Raises RecipeError naming the file and the key."""
        try:
            text = read_plain_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read as a recipe ({error}); use a TOML file with [roles]") from error
        return cls._parse(str(path), text)

    def overridden(self, text: str) -> Self:
        """This recipe but for one role: "head=int4". Raises RecipeError naming the text."""
        where = f"--encoding {text}"
        role, equals, encoding = text.partition("=")
        if not equals:
            raise RecipeError(f"{where}: expected ROLE=ENCODING, such as head=int4; put an = between them")
        key = one_of(where, role, Role)
        try:
            storage = replace(self.roles.get(key, Storage(_FP32)), encoding=Encoding.parse(encoding))
        except EncodingError as error:
            raise RecipeError(f"{where}: {error}") from error
        shares = {other: share for other, share in self.shares.items() if other != key}
        return replace(self, name=f"{self.name}, {text}", roles={**self.roles, key: storage}, shares=shares)

    def for_shares(self, found: Mapping[Role, float]) -> Self:
        """This recipe as it is for a model with these parts of its values in each role: see `shares`."""
        small = [role for role, share in self.shares.items() if found.get(role, 0) < share]
        in_8_bits = {role: replace(self.roles[role], encoding=_INT8) for role in small}
        return replace(self, roles={**self.roles, **in_8_bits}, shares={})

    def with_blocks(self, *blocks: int) -> Self:
        """This recipe with a scale per block where matrices that are read in full are int4 with a scale per row.

        A matrix gets the first of `blocks` that its columns split into, or stays as it is. A format with this freedom
        multiplies by scales of either sign.
        """
        return replace(self, int4_blocks=blocks, negative_scales=True)

    def in_blocks(self, block: int) -> Self:
        """This recipe with a scale for every `block` columns of all matrices of integers, tables included."""
        return replace(self, every_block=block, int4_blocks=(), negative_scales=True)

    def packing(self, roles: Collection[Role], int8_blocks: tuple[int, ...]) -> Self:
        """This recipe with bfloat16 for matrices of other roles, and an int8 scale for the first of these columns that
        split a row; for all of it where none does.
        """
        plain: dict[Role, Storage] = {
            role: replace(storage, encoding=_BF16) for role, storage in self.roles.items() if role is not Role.NORM
        }
        kept = {role: self.roles[role] for role in roles}
        return replace(self, roles={**self.roles, **plain, **kept}, int8_blocks=int8_blocks)

    def without_rests(self) -> Self:
        """This recipe for an embedding with a table of its own."""
        wanted = self.roles[Role.EMBEDDING]
        if wanted.encoding.kind != "rest":
            return self
        own = replace(wanted, encoding=_INT8) if wanted.encoding.bits else self.roles[Role.HEAD]
        return replace(self, roles={**self.roles, Role.EMBEDDING: own})

    def with_one_table(self) -> Self:
        """This recipe for a head and an embedding that are the same bytes: both get what has more bits of the two."""
        one = max(self.roles[Role.HEAD], self.roles[Role.EMBEDDING], key=lambda storage: storage.encoding.bits)
        return replace(self, roles={**self.roles, Role.HEAD: one, Role.EMBEDDING: one})

    @classmethod
    def _parse(cls, name: str, text: str) -> Self:
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{name}: not TOML ({error}); use a TOML file with [roles]") from error
        check_keys(name, table, ("search", "blocks", "hadamard", "balance", "roles", "tensors", "floor"))
        search = one_of(f"{name}: search", table.get("search", Search.MSE.value), Search)
        roles = table_of(f"{name}: roles", table.get("roles", {}))
        storages = {
            one_of(f"{name}: roles", key, Role): storage_of(f"{name}: roles.{key}", value, search, ("share",))
            for key, value in roles.items()
        }
        shares = {
            Role(key): share_of(f"{name}: roles.{key}", value["share"], storages[Role(key)])
            for key, value in roles.items()
            if "share" in value
        }
        tensors = {
            tensor: storage_of(f"{name}: tensors.{tensor}", value, search)
            for tensor, value in table_of(f"{name}: tensors", table.get("tensors", {})).items()
        }
        blocks = table.get("blocks", [])
        if not isinstance(blocks, list) or any(block not in BLOCKS for block in blocks):
            raise RecipeError(f"{name}: blocks: found {blocks!r}, expected a list of some of {list(BLOCKS)}; change it")
        balance = table.get("balance", False)
        if not isinstance(balance, bool):
            raise RecipeError(f"{name}: balance: found {balance!r}, expected true or false; use one of these")
        floor = floor_of(f"{name}: floor", table.get("floor", {}))
        return cls(
            name,
            storages,
            floor,
            tuple(blocks),
            tensors=tensors,
            hadamard=roles_of(f"{name}: hadamard", table.get("hadamard", [])),
            balance=balance,
            shares=shares,
        )

    def storage(self, spec: TensorSpec) -> Storage:
        """The decision for `spec`, see `_decided`."""
        storage = self._decided(spec)
        if self.unfolded and Placement.of(spec.role) is Placement.OFFLOADED:
            return replace(storage, factor=spec.fold.mul)
        return storage

    def _decided(self, spec: TensorSpec) -> Storage:
        """The decision for `spec`: its own or its role's, or fp32 if it is a vector or below the floor.

        What shall be int4 and was trained on a grid of int4 blocks keeps these blocks; tables that are read by row
        cannot. Integers that the checkpoint stores are kept in tables as well.
        Raises RecipeError, with the tensor's name, if the encoding cannot hold its shape or its role has none.
        """
        if spec.role not in self.roles:
            raise RecipeError(f"{self.name}: roles: {spec.role} missing; add a line for it, or leave {spec.name} out")
        storage = self.tensors.get(spec.name, self.roles[spec.role])
        if storage.encoding.kind == "rest":
            return self._in_head(spec, storage) if spec.name == EMBEDDING else self.without_rests()._decided(spec)
        if spec.role is Role.KERNEL:
            return storage
        if spec.grid is not None and self._keeps(spec, grid := Grid(spec.grid, self.negative_scales)):
            return Storage(grid.encoding, storage.search, grid)
        if not self.floor.admits(spec.shape):
            return Storage(_FP32, storage.search)
        is_resident = Placement.of(spec.role) is Placement.RESIDENT
        if self.every_block and storage.encoding.kind == "int" and not storage.encoding.block:
            return self._checked(spec, self._in_blocks(spec, storage))
        # int4-b32 is what int4 becomes where a layer has 32 columns, and what `plan` prints.
        if storage.encoding.block and not is_resident and spec.name not in self.tensors and not self.every_block:
            stored = Encoding("int", 4, self._int4_block(spec))
            if storage.encoding != stored:
                raise RecipeError(
                    f"{spec.name}: found {storage.encoding.name}, expected int4: in 4 bits, tables have a scale "
                    f"per layer or row, here {stored.name} (recipe {self.name}, {self.key(spec)})"
                )
        if storage.encoding.kind == "int" and storage.encoding.bits < 4 and not is_resident:
            raise RecipeError(
                f"{spec.name}: found {storage.encoding.name}, expected int4 or int8; rows of a table are read in at "
                f"least 4 bits (recipe {self.name}, {self.key(spec)})"
            )
        if storage.encoding == _INT4:
            storage = replace(storage, encoding=Encoding("int", 4, self._int4_block(spec)))
        if storage.encoding == _INT8:
            block = next((block for block in self.int8_blocks if spec.shape[1] % block == 0), 0)
            storage = replace(storage, encoding=Encoding("int", 8, block))
        return self._checked(spec, storage)

    def _in_head(self, spec: TensorSpec, storage: Storage) -> Storage:
        """The decision for an embedding that is kept in the table of a head which is the same matrix, grid included."""
        head = self._decided(replace(spec, name=HEAD, role=Role.HEAD, fold=replace(spec.fold, mul=1.0)))
        is_exact = head.grid is not None or head.encoding.bits >= 8
        if head.encoding.bits >= 4 and (is_exact or not storage.encoding.bits):
            return self._checked(spec, replace(storage, encoding=_HEAD, head=head))
        if head.encoding.bits == 4 and head.encoding.block:
            return self._checked(spec, replace(storage, head=head))
        return self.without_rests()._decided(spec)

    def _in_blocks(self, spec: TensorSpec, storage: Storage) -> Storage:
        bits = storage.encoding.bits
        if bits not in (4, 8):
            raise RecipeError(
                f"{spec.name}: found {storage.encoding.name}, expected int4 or int8; this format has a scale for every "
                f"{self.every_block} columns (recipe {self.name}, {self.key(spec)})"
            )
        return replace(storage, encoding=Encoding("int", bits, self.every_block))

    def _checked(self, spec: TensorSpec, storage: Storage) -> Storage:
        try:
            storage.encoding.check(spec.shape)
        except EncodingError as error:
            raise RecipeError(f"{spec.name}: {error} (recipe {self.name}, {self.key(spec)})") from error
        return storage

    def keeps_grid(self, spec: TensorSpec) -> bool:
        """Whether `spec` keeps the 4-bit grid that it was trained on, if there is one.

        In a recipe that knows 4 bits also where it would spend 8: on its grid a matrix is smaller and exact.
        """
        encoding = self.tensors.get(spec.name, self.roles[spec.role]).encoding
        if encoding.kind != "int" or encoding.bits == 4:
            return encoding.bits == 4
        knows_4_bits = any(storage.encoding.bits == 4 for storage in self.roles.values())
        is_chosen = spec.name in self.tensors or Placement.of(spec.role) is not Placement.RESIDENT
        return encoding.bits == 8 and knows_4_bits and not is_chosen and self.floor.admits(spec.shape)

    def keeps_integers(self, spec: TensorSpec) -> bool:
        """Whether `spec` keeps integers that the checkpoint stores, however small it is: in a recipe that knows 4 bits,
        and leaves it to its role.
        """
        knows_4_bits = any(storage.encoding.bits == 4 for storage in self.roles.values())
        is_rounded = self.roles[spec.role].encoding.kind != "float" and spec.name not in self.tensors
        return knows_4_bits and is_rounded and spec.shape[-1] % self.floor.columns_multiple_of == 0

    def _keeps(self, spec: TensorSpec, grid: Grid) -> bool:
        if self.every_block and grid.encoding.block != self.every_block:
            return False
        if grid.is_stored:  # a factor goes into the scales
            return self.keeps_integers(spec) and replace(spec.fold, mul=1.0) == AS_STORED
        is_resident = Placement.of(spec.role) is Placement.RESIDENT and self.floor.admits(spec.shape)
        return is_resident and self.keeps_grid(spec) and spec.fold == AS_STORED

    def _int4_block(self, spec: TensorSpec) -> int:
        """Columns that share a scale where the recipe says int4; 0: all of a row."""
        part = spec.shape[1] // spec.parts
        if spec.parts > 1:
            return part if part in BLOCKS else 0
        blocks = self.int4_blocks if Placement.of(spec.role) is Placement.RESIDENT else ()
        return next((block for block in blocks if spec.shape[1] % block == 0), 0)

    def key(self, spec: TensorSpec) -> str:
        """Where the decision for `spec` stands, for messages."""
        return f"tensors.{spec.name}" if spec.name in self.tensors else f"roles.{spec.role}"

    def check_names(self, specs: Mapping[str, TensorSpec]) -> None:
        """Raises RecipeError for a tensor of [tensors] that is not a matrix of `specs`, or cannot be stored so."""
        for name, storage in self.tensors.items():
            where = f"{self.name}: tensors.{name}"
            spec = specs.get(name)
            if spec is None or len(spec.shape) != 2:
                raise RecipeError(f"{where}: expected the name of a matrix of this model; `inspect` lists a bundle's")
            if storage.encoding.block and Placement.of(spec.role) is Placement.OFFLOADED:
                raise RecipeError(
                    f"{where}: found {storage.encoding.name}, expected no blocks; "
                    "in int4, tables have a scale per layer or row; use int4 or int8"
                )
            if storage.encoding != _FP32 and not self.floor.admits(spec.shape):
                raise RecipeError(
                    f"{where}: found {storage.encoding.name}, expected fp32; {spec.shape} is below the floor, "
                    "lower that or remove the line"
                )

    def encoding(self, spec: TensorSpec) -> Encoding:
        """The encoding of `spec`, see `storage`."""
        return self.storage(spec).encoding
