"""Print what a bundle says: LiteRT-LM's own engine continues a prompt, greedily.

python -m tools.demo model.litertlm --prompt "It is a truth universally acknowledged,"
"""

import tempfile
from pathlib import Path

import click

from gemma_edge.profiles.errors import GemmaEdgeError
from gemma_edge.runtime.litert_lm_engine import check_cpu


@click.command()
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--prompt", default="And God said unto", show_default=True)
@click.option("--tokens", "max_output_tokens", type=click.IntRange(min=1), default=40, show_default=True)
def main(bundle: Path, prompt: str, max_output_tokens: int) -> None:
    """Continue PROMPT as plain text, without a chat template: the embedded checkpoints are no chat models."""
    try:
        check_cpu()
    except GemmaEdgeError as error:
        raise click.ClickException(str(error)) from None
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    greedy = litert_lm.SamplerConfig(top_k=1)
    click.echo(prompt, nl=False)
    # The engine's weight cache goes to a folder of its own, so that a demo leaves nothing behind.
    with (
        tempfile.TemporaryDirectory() as cache,
        litert_lm.Engine(str(bundle), cache_dir=cache) as engine,
        engine.create_session(
            apply_prompt_template=False, sampler_config=greedy, max_output_tokens=max_output_tokens
        ) as session,
    ):
        session.run_prefill([prompt])
        for response in session.run_decode_async():
            click.echo(response.texts[0], nl=False)
    click.echo()


if __name__ == "__main__":
    main()
