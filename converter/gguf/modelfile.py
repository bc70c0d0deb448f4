"""The Modelfile by which Ollama takes a GGUF: its template in Go's language, stop texts, how to sample.

`ollama create NAME -f model.gguf.Modelfile`. A system message is a turn of the user's, as in Ollama's
own for Gemma.
"""

from pathlib import Path

from gemma_edge.converter.tokenizer.generation import sampler_defaults
from gemma_edge.converter.tokenizer.template_turns import Turns


def modelfile(name: str, turns: Turns, checkpoint: Path, context_tokens: int) -> str:
    """name: of the file that lies beside it. Raises MetadataError for sampler values that cannot be."""
    sampler = sampler_defaults(checkpoint)
    settings = [
        ("num_ctx", str(context_tokens)),
        ("temperature", f"{0 if sampler.is_greedy else sampler.temperature:g}"),
    ]
    if not sampler.is_greedy:
        settings += [("top_k", str(sampler.top_k or 0)), ("top_p", f"{sampler.top_p:g}")]
    if stop := turns.model_suffix.strip():
        settings.insert(0, ("stop", f'"{stop}"'))
    lines = [f"FROM ./{name}"]
    if turns.user_prefix:
        lines.append(f'TEMPLATE """{_template(turns)}"""')
    return "\n".join([*lines, *(f"PARAMETER {key} {value}" for key, value in settings), ""])


def _template(turns: Turns) -> str:
    """Turn by turn; the last one opens a reply. No dash in it: a dash would take the line ends beside it away."""
    return (
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if or (eq .Role "user") (eq .Role "system") }}'
        f"{turns.user_prefix}{{{{ .Content }}}}{turns.user_suffix}"
        f"{{{{ if $last }}}}{turns.model_prefix}{{{{ end }}}}"
        '{{ else if eq .Role "assistant" }}'
        f"{turns.model_prefix}{{{{ .Content }}}}{{{{ if not $last }}}}{turns.model_suffix}{{{{ end }}}}"
        "{{ end }}{{ end }}"
    )
