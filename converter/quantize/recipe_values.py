"""The values of a recipe's file, checked one by one; errors name the file and the key. recipes.py has the form."""

from enum import StrEnum
from typing import Any, TypeVar

from gemma_edge.converter.quantize.quantize import Search
from gemma_edge.converter.quantize.storage import Floor, RecipeError, Storage
from gemma_edge.converter.tensors import Role
from gemma_edge.runtime.formats.encoding import Encoding, EncodingError

Choice = TypeVar("Choice", bound=StrEnum)


def storage_of(where: str, value: Any, search: Search, more_keys: tuple[str, ...] = ()) -> Storage:
    """An entry: an encoding's name, or a table with encoding and optionally search and what `more_keys` allow."""
    table = table_of(where, {"encoding": value} if isinstance(value, str) else value)
    check_keys(where, table, ("encoding", "search", *more_keys))
    if not isinstance(table.get("encoding"), str):
        raise RecipeError(f'{where}.encoding: found {table.get("encoding")!r}, expected a name; use one such as "int4"')
    try:
        encoding = Encoding.parse(table["encoding"])
    except EncodingError as error:
        raise RecipeError(f"{where}.encoding: {error}") from error
    return Storage(encoding, one_of(f"{where}.search", table.get("search", search.value), Search))


def share_of(where: str, value: Any, storage: Storage) -> float:
    if type(value) not in (int, float) or not 0 < value < 1:
        raise RecipeError(f"{where}.share: found {value!r}, expected a number between 0 and 1; change it")
    if storage.encoding.bits != 4:
        raise RecipeError(
            f"{where}.share: found with {storage.encoding.name}, expected int4; it says where 8 bits take its place, "
            "leave it out"
        )
    return float(value)


def roles_of(where: str, value: Any) -> frozenset[Role]:
    if not isinstance(value, list):
        raise RecipeError(f'{where}: found {value!r}, expected a list of roles; use one such as ["attention", "ffn"]')
    return frozenset(one_of(where, role, Role) for role in value)


def floor_of(where: str, value: Any) -> Floor:
    table = table_of(where, value)
    check_keys(where, table, ("values", "columns_multiple_of"))
    for key, number in table.items():
        if type(number) is not int or number < 1:
            raise RecipeError(
                f"{where}.{key}: found {number!r}, expected a whole number from 1; change it or leave it out"
            )
    return Floor(**table)


def table_of(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecipeError(
            f"{where}: found {value!r}, expected a table of keys; see converter/quantize/recipes.py for the form"
        )
    return value


def check_keys(where: str, table: dict[str, Any], allowed: tuple[str, ...]) -> None:
    for key in table:
        if key not in allowed:
            raise RecipeError(f"{where}: found key {key!r}, expected {', '.join(allowed)}; rename or remove it")


def one_of(where: str, value: Any, choices: type[Choice]) -> Choice:
    if value not in [choice.value for choice in choices]:
        expected = ", ".join(choice.value for choice in choices)
        raise RecipeError(f"{where}: found {value!r}, expected one of {expected}; use one of these")
    return choices(value)
