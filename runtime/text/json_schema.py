"""JSON schemas made ready for llguidance: what it has no word for is rewritten, noted, or left for a check at the end.

- Exactly rewritten: `true`, `propertyNames` that list or describe names, `uniqueItems` where there is at most one item.
- Only a note: a `format` that nobody knows, as JSON Schema has it ("password", "binary", pydantic's "path").
- Checked when the reply is complete, since no grammar says it: `uniqueItems`, overlapping branches of `oneOf`, the
  formats "regex" and "idn-email"; with `lenient` all else that llguidance leaves out (`not`, `if`, `contains`, ...).
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

_log = logging.getLogger(__name__)

_SCHEMAS = (
    "items", "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else",
    "unevaluatedItems", "unevaluatedProperties", "contentSchema",
)  # fmt: skip
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_CHECKED_FORMATS = ("regex", "idn-email")  # by jsonschema, whatever else is installed; llguidance does not know them
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")  # 2.0 is 2 to JSON


def prepared(schema: Any) -> tuple[Any, bool]:
    """A schema in words that llguidance has, where it can be rewritten, and whether a check at the end is needed."""
    left_out: list[str] = []

    def walk(part: Any) -> Any:
        if part is True:
            return {}
        if not isinstance(part, Mapping):
            return part
        result = dict(part)
        for key in _SCHEMAS:
            if isinstance(result.get(key), Mapping):
                result[key] = walk(result[key])
        for key in _SCHEMA_LISTS:
            if isinstance(result.get(key), list):
                result[key] = [walk(item) for item in result[key]]
        for key in _SCHEMA_MAPS:
            if isinstance(result.get(key), Mapping):
                result[key] = {name: walk(item) for name, item in result[key].items()}
        for key in _COUNTS:
            if isinstance(result.get(key), float) and result[key].is_integer():
                result[key] = int(result[key])
        if result.get("format") in _CHECKED_FORMATS:
            left_out.append(result.pop("format"))
        _note_format(result)
        _name_properties(result)
        if "uniqueItems" in result:
            most = result.get("maxItems")
            if result.pop("uniqueItems") is True and not (isinstance(most, int) and most <= 1):
                left_out.append("uniqueItems")
        return result

    found = walk(schema)
    return found, bool(left_out)


def _note_format(schema: dict[str, Any]) -> None:
    """Takes a format out that says nothing."""
    wanted = schema.get("format")
    if isinstance(wanted, str) and not _knows_format(wanted):
        _log.info("the format %r of a JSON schema is a note, nothing is enforced for it", wanted)
        del schema["format"]


@cache
def _knows_format(name: str) -> bool:
    import llguidance

    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "format": name}))
    return not llguidance.LLMatcher.validate_grammar(grammar)


def _name_properties(schema: dict[str, Any]) -> None:
    """`propertyNames` as the properties it allows, where that says the same."""
    names = schema.get("propertyNames")
    if names is None or not isinstance(names, Mapping):
        return
    others = schema.get("additionalProperties", {})
    told = {key: value for key, value in names.items() if key not in ("type", "title", "description")}
    listed = [names["const"]] if "const" in names else names.get("enum")
    if not told:
        pass  # every name is a string
    elif isinstance(listed, list) and set(told) <= {"enum", "const"} and "patternProperties" not in schema:
        properties = schema.get("properties", {})
        schema["properties"] = {name: properties.get(name, others) for name in listed if isinstance(name, str)}
        schema["additionalProperties"] = False
    elif set(told) <= {"pattern"} and not {"properties", "patternProperties"} & set(schema):
        schema["patternProperties"] = {names["pattern"]: others}
        schema["additionalProperties"] = False
    else:
        return
    del schema["propertyNames"]


def checker(schema: Any) -> Callable[[str], str | None]:
    """A check of a complete reply: what is wrong with it, or None."""
    import jsonschema

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = kind(schema, format_checker=jsonschema.FormatChecker(_CHECKED_FORMATS))

    def check(text: str) -> str | None:
        error = jsonschema.exceptions.best_match(validator.iter_errors(json.loads(text)))
        return None if error is None else f"{error.json_path}: {error.message[:100]} ({error.validator})"

    return check
