"""Print how a bundle goes on in three languages, greedily, in our own engine.

python -m tools.demo_real build/real.litertlm --tokens 40
"""

import tempfile
from pathlib import Path

import click

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.engine import Engine
from gemma_edge.runtime.text.sampler import SamplerConfig

PROMPTS = ("The capital of France is", "Die Hauptstadt von Deutschland heißt", "La capital de España es")


@click.command()
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", "max_output_tokens", type=click.IntRange(min=1), default=24, show_default=True)
def main(bundle: Path, max_output_tokens: int) -> None:
    """Continue PROMPTS as plain text, without a chat template: the model that the demo fetches is no chat model."""
    try:
        # The engine's weight cache goes to a folder of its own, so that a demo leaves nothing behind.
        with tempfile.TemporaryDirectory() as cache, Engine(str(bundle), cache_dir=cache) as engine:
            for prompt in PROMPTS:
                click.echo(f"{prompt} -> {_continued(engine, prompt, max_output_tokens)}")
    except GemmaEdgeError as error:
        raise click.ClickException(str(error)) from error


def _continued(engine: Engine, prompt: str, max_output_tokens: int) -> str:
    """What the engine says next, on one line."""
    greedy = SamplerConfig(top_k=1)
    with engine.create_session(
        apply_prompt_template=False, sampler_config=greedy, max_output_tokens=max_output_tokens
    ) as session:
        session.run_prefill([prompt])
        [text] = session.run_decode().texts
        return text.replace("\n", " ").lstrip()


if __name__ == "__main__":
    main()
