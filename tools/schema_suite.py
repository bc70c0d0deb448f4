"""What constrained replies make of other people's JSON schemas: nothing invalid gets through, and what is refused.

    python -m tools.schema_suite SUITE TOKENIZER [--draft draft2020-12] [--replies 3] [--sample 500]

SUITE: a checkout of json-schema-org/JSON-Schema-Test-Suite, or of guidance-ai/jsonschemabench. TOKENIZER: a
tokenizer.model. For every schema that is taken, each instance of the suite is written token by token under the
constraint, and random replies are drawn; a reply counts as given if it can be written to its end and passes the check
there. sample: so many schemas, spread evenly; all by default. Exits 1 where something invalid got through.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from gemma_edge.runtime.text.constraints import Constraint, ConstraintError, ConstraintFactory, ResponseFormat
from gemma_edge.runtime.text.json_schema import checker
from gemma_edge.runtime.text.tokenizer import Tokenizer

MOST_TOKENS = 300


def schemas(suite: Path, draft: str) -> Iterator[tuple[str, Any, list[dict[str, Any]]]]:
    """(name, schema, instances) of every group of the test suite, or of every file of the bench."""
    for path in sorted((suite / "tests" / draft).glob("*.json")):
        for group in json.loads(path.read_bytes()):
            yield f"{path.stem}: {group['description']}", group["schema"], group["tests"]
    for path in sorted((suite / "maskbench" / "data").glob("*.json")):
        group = json.loads(path.read_bytes())
        yield path.stem, group["schema"], group["tests"]


def can_be_written(constraint: Constraint, tokenizer: Tokenizer, stop: int, text: str) -> bool:
    """Whether a model could give this reply."""
    for token_id in tokenizer.encode(text):
        if not constraint.allows(token_id):
            return False
        constraint.accept(token_id)
    return constraint.allows(stop) and passes(constraint, text)


def passes(constraint: Constraint, text: str) -> bool:
    try:
        constraint.check(text)
    except ConstraintError:
        return False
    return True


def drawn(constraint: Constraint, tokenizer: Tokenizer, stop: int, seed: int) -> str | None:
    """A reply of a model with random logits; None where it does not end."""
    rng, ids = np.random.default_rng(seed), list[int]()
    while len(ids) < MOST_TOKENS:
        logits, token_ids = constraint.narrow(rng.normal(size=tokenizer.size).astype(np.float32))
        likeliest = int(np.argmax(logits))
        token_id = likeliest if token_ids is None else int(token_ids[likeliest])
        if token_id == stop:
            text = tokenizer.decode(ids)
            return text if passes(constraint, text) else None
        constraint.accept(token_id)
        ids.append(token_id)
    return None


@click.command()
@click.argument("suite", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("tokenizer_model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--draft", default="draft2020-12", show_default=True)
@click.option("--replies", default=3, show_default=True, help="Of each schema.")
@click.option("--lenient", is_flag=True, help="As ResponseFormat.json(lenient=True).")
@click.option("--sample", type=int, help="So many schemas, spread over all.")
def main(suite: Path, tokenizer_model: Path, draft: str, replies: int, lenient: bool, sample: int | None) -> None:
    """Print what is wrong, then counts."""
    tokenizer = Tokenizer(tokenizer_model.read_bytes())
    stop = tokenizer.encode("<end_of_turn>")[0]
    factory = ConstraintFactory(tokenizer, [stop])
    counts: Counter[str] = Counter()
    groups = list(schemas(suite, draft))
    if not groups:
        raise click.UsageError(f"{suite}: neither tests/{draft} nor maskbench/data is there; give a checkout of one")
    for name, schema, instances in groups[:: max(1, len(groups) // (sample or len(groups)))]:
        counts["schemas"] += 1
        wanted = ResponseFormat.json(schema, lenient=lenient)
        try:
            factory.create(wanted)
        except ConstraintError as error:
            counts["schemas refused: " + str(error).split(": ")[1].split(";")[0][:60]] += 1
            continue
        for case in instances:
            given = can_be_written(
                factory.create(wanted), tokenizer, stop, json.dumps(case["data"], ensure_ascii=False)
            )
            counts[f"{'valid' if case['valid'] else 'INVALID'} instances {'given' if given else 'not given'}"] += 1
            if given and not case["valid"]:
                print(f"INVALID {name}: {case['description']}: {json.dumps(case['data'])}")
        check = checker(schema)
        for seed in range(replies):
            text = drawn(factory.create(wanted), tokenizer, stop, seed)
            try:
                wrong = None if text is None else check(text)
            except Exception as error:  # the schema refers to another document, or its pattern is not Python's
                wrong = None
                counts[f"replies not checked: {type(error).__name__}"] += 1
            counts["replies without end" if text is None else "replies" if wrong is None else "INVALID replies"] += 1
            if wrong:
                print(f"INVALID reply {name}: {text!r}: {wrong}")
    for what, count in sorted(counts.items()):
        print(f"{count:6} {what}")
    sys.exit(any("INVALID" in what and "not given" not in what for what in counts))


if __name__ == "__main__":
    main()
